//! The `parameters` text that A1111 and tools around it read from pictures.

use crate::request::{Inject, Request};

/// Prompt, negative prompt, and one line of settings. `sampler` names the checkpoint's own where the request names none.
pub fn a1111(request: &Request, model: &str, sampler: &str) -> String {
    let mut lines = vec![request.prompt.clone()];
    if let Some(negative) = request.negative_prompt.as_ref().filter(|n| !n.is_empty()) {
        lines.push(format!("Negative prompt: {negative}"));
    }
    let mut settings = Vec::new();
    let mut add =
        |name: &str, value: Option<String>| settings.extend(value.map(|v| format!("{name}: {}", quoted(&v))));
    add("Steps", request.steps.map(|v| v.to_string()));
    add("Sampler", Some(request.sampler.as_deref().unwrap_or(sampler).to_owned()));
    add("Schedule type", request.schedule.clone());
    add("CFG scale", request.guidance.map(|v| v.to_string()));
    add("Seed", request.seed.map(|v| v.to_string()));
    add("Size", request.width.zip(request.height).map(|(w, h)| format!("{w}x{h}")));
    add("Model", Some(model.to_owned()));
    let vae = request.vae.as_ref().and_then(|v| v.file_name());
    add("VAE", vae.map(|v| v.to_string_lossy().into_owned()));
    // A1111 counts from the last layer as 1.
    add("Clip skip", request.clip_skip.filter(|n| *n > 0).map(|n| (n + 1).to_string()));
    add("Token merging ratio", request.token_merging.filter(|r| *r > 0.0).map(|r| r.to_string()));
    for (i, l) in request.loras.iter().enumerate() {
        let name = l.file.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
        add(&format!("LoRA {}", i + 1), Some(format!("{name} x {}", l.weight)));
    }
    for (i, c) in request.controls.iter().enumerate() {
        let name = c.model.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
        add(&format!("ControlNet {}", i + 1), Some(format!("{name} {} x {}", c.preprocess, c.scale)));
    }
    for (i, r) in request.references.iter().enumerate() {
        let name = r.image.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
        let inject = match &r.inject {
            Inject::Preset(p) => serde_json::to_value(p).ok().and_then(|v| v.as_str().map(str::to_owned)),
            Inject::Blocks(b) => {
                Some(b.iter().map(|(k, w)| format!("{k}={w}")).collect::<Vec<_>>().join(" "))
            }
        };
        let less = r.subtract.as_ref().map_or_else(String::new, |s| format!(" less {}", s.text));
        add(
            &format!("IP-Adapter {}", i + 1),
            Some(format!("{name} {} x {}{less}", inject.unwrap_or_default(), r.weight)),
        );
    }
    add("Version", Some(format!("instantstyle {}", env!("CARGO_PKG_VERSION"))));
    lines.push(settings.join(", "));
    lines.join("\n")
}

/// As A1111 writes values that its own separators would break.
fn quoted(value: &str) -> String {
    if value.contains([',', ':', '\n', '"']) {
        serde_json::Value::from(value).to_string()
    } else {
        value.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::Reference;

    #[test]
    fn settings_follow_the_prompts() {
        let request = Request {
            prompt: "a cat".into(),
            negative_prompt: Some("text".into()),
            seed: Some(3),
            steps: Some(4),
            guidance: Some(5.0),
            references: vec![Reference::new("/x/a,b.png")],
            ..Request::default()
        };
        let text = a1111(&request, "m", "EulerDiscreteScheduler");
        let want = "a cat\nNegative prompt: text\nSteps: 4, Sampler: EulerDiscreteScheduler, CFG scale: 5, Seed: 3, Model: m, \
                    IP-Adapter 1: \"a,b.png style x 1\", Version: instantstyle ";
        assert!(text.starts_with(want), "{text}");
    }
}
