//! The `parameters` text that A1111 and tools around it read from pictures.

use crate::request::{Inject, Request};

/// Prompt, negative prompt, and one line of settings.
pub fn a1111(request: &Request, model: &str) -> String {
    let mut lines = vec![request.prompt.clone()];
    if let Some(negative) = request.negative_prompt.as_ref().filter(|n| !n.is_empty()) {
        lines.push(format!("Negative prompt: {negative}"));
    }
    let mut settings = Vec::new();
    let mut add = |name: &str, value: Option<String>| settings.extend(value.map(|v| format!("{name}: {v}")));
    add("Steps", request.steps.map(|v| v.to_string()));
    add("Sampler", request.sampler.clone());
    add("CFG scale", request.guidance.map(|v| v.to_string()));
    add("Seed", request.seed.map(|v| v.to_string()));
    add("Size", request.width.zip(request.height).map(|(w, h)| format!("{w}x{h}")));
    add("Model", Some(model.to_owned()));
    add("Clip skip", request.clip_skip.filter(|n| *n > 0).map(|n| (n + 1).to_string()));
    for (i, r) in request.references.iter().enumerate() {
        let name = r.image.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
        let inject = match &r.inject {
            Inject::Preset(p) => serde_json::to_value(p).ok().and_then(|v| v.as_str().map(str::to_owned)),
            Inject::Blocks(b) => {
                Some(b.iter().map(|(k, w)| format!("{k}={w}")).collect::<Vec<_>>().join(" "))
            }
        };
        add(
            &format!("IP-Adapter {}", i + 1),
            Some(format!("{name} {} x {}", inject.unwrap_or_default(), r.weight)),
        );
    }
    add("Version", Some(format!("instantstyle {}", env!("CARGO_PKG_VERSION"))));
    lines.push(settings.join(", "));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_follow_the_prompts() {
        let request = Request { prompt: "a cat".into(), seed: Some(3), steps: Some(4), ..Request::default() };
        let text = a1111(&request, "m");
        assert!(text.starts_with("a cat\nSteps: 4, Seed: 3, Model: m"), "{text}");
    }
}
