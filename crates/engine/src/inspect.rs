//! What a file or folder is: told by its content and shapes, never by its name.

use crate::encode::{text_config, vision_config};
use crate::error::Error;
use crate::family;
use crate::injection::{groups, preset_blocks};
use crate::model::Place;
use crate::request::PRESETS;
use crate::sampler::SchedulerConfig;
use instantstyle_nets::clip::{TextEncoder, VisionEncoder};
use instantstyle_nets::ip_adapter::{AdapterShape, IpAdapter, Kind};
use instantstyle_nets::unet::{UNet, UNetConfig, covers, sites};
use instantstyle_nets::vae::{Decoder, Encoder, VaeConfig};
use instantstyle_nets::weights::Weights;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What was found.
pub struct Report {
    /// The path as given.
    pub path: PathBuf,
    /// In a few words.
    pub what: String,
    /// Families of base models that it fits.
    pub fits: Vec<&'static str>,
    /// What else is needed to use it.
    pub needs: Vec<String>,
    /// Facts: widths, parameters, number types.
    pub facts: Vec<(String, Value)>,
    /// Attention groups with their number of sites and roles.
    pub sites: Vec<(String, usize, Vec<&'static str>)>,
    /// What would not load, and why.
    pub problems: Vec<String>,
}

impl Report {
    fn new(path: &Path, what: impl Into<String>) -> Self {
        Report {
            path: path.to_owned(),
            what: what.into(),
            fits: Vec::new(),
            needs: Vec::new(),
            facts: Vec::new(),
            sites: Vec::new(),
            problems: Vec::new(),
        }
    }

    fn fact(&mut self, name: &str, value: impl Into<Value>) {
        self.facts.push((name.to_owned(), value.into()));
    }

    /// Notes the error of a part that does not load.
    fn check<T>(&mut self, part: Result<T, Error>) -> Option<T> {
        part.map_err(|e| self.problems.push(e.to_string())).ok()
    }

    /// The same as JSON.
    pub fn to_json(&self) -> Value {
        let sites: Vec<Value> = self
            .sites
            .iter()
            .map(|(g, n, roles)| json!({ "group": g, "sites": n, "roles": roles }))
            .collect();
        json!({
            "path": self.path, "what": self.what, "fits": self.fits, "needs": self.needs,
            "facts": self.facts.iter().cloned().collect::<serde_json::Map<_, _>>(),
            "attention": sites, "problems": self.problems,
        })
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        writeln!(f, "{}: {}", self.path.display(), self.what)?;
        if !self.fits.is_empty() {
            writeln!(f, "  fits       {}", self.fits.join(", "))?;
        }
        for (name, value) in &self.facts {
            writeln!(f, "  {name:10} {}", value.as_str().map_or_else(|| value.to_string(), str::to_owned))?;
        }
        for need in &self.needs {
            writeln!(f, "  needs      {need}")?;
        }
        for (group, n, roles) in &self.sites {
            writeln!(f, "  attention  {group:32} {n:2} sites  {}", roles.join(", "))?;
        }
        for problem in &self.problems {
            writeln!(f, "  PROBLEM    {problem}")?;
        }
        Ok(())
    }
}

/// Looks at a path.
///
/// # Errors
/// If it is nothing that this program knows; what is known but would not load is reported in
/// [`Report::problems`].
pub fn inspect(path: &Path) -> Result<Report, Error> {
    let place = Place::Disk(path.to_owned());
    if !path.exists() {
        return Err(Error::file(path, "there is no such file or folder"));
    }
    if path.is_file() {
        return file(path, &place.weights()?);
    }
    if place.join("model_index.json").exists() {
        return model(path, &place);
    }
    if place.join("config.json").exists() {
        return component(path, &place);
    }
    if place.join("vocab.json").exists() || place.join("tokenizer.json").exists() {
        let tokenizer = place.tokenizer()?;
        let mut report = Report::new(path, "CLIP tokenizer");
        report.fact("tokens", tokenizer.vocab_size());
        return Ok(report);
    }
    Err(Error::file(
        path,
        "is neither a model folder (model_index.json), a component (config.json), nor a tokenizer",
    ))
}

fn weights_facts(report: &mut Report, weights: &Weights) {
    let mut types: BTreeMap<&str, usize> = BTreeMap::new();
    let mut parameters = 0usize;
    for (_, t) in weights.iter() {
        *types.entry(t.dtype().name()).or_default() += 1;
        parameters += t.len();
    }
    report.fact("tensors", weights.len());
    report.fact("parameters", parameters);
    report.fact("stored as", types.keys().copied().collect::<Vec<_>>().join(", "));
}

fn file(path: &Path, weights: &Weights) -> Result<Report, Error> {
    let any = |part: &str| weights.keys().any(|k| k.contains(part));
    let mut report = if any("ip_adapter.") || any("image_proj.") {
        adapter(path, weights)
    } else if weights.has_prefix("model.diffusion_model.") {
        unsupported(path, "whole checkpoint in one file (original names)")
    } else if any("lora_down") || any("lora_A") || any("hada_w") || any("lokr_w") {
        unsupported(path, "LoRA")
    } else if any("controlnet_") || weights.has_prefix("control_model.") {
        unsupported(path, "ControlNet")
    } else if any("down_blocks.") && any("up_blocks.") && any("time_embedding") {
        part(path, "UNet weights; give the folder with its config.json")
    } else if any("decoder.up_blocks.") {
        part(path, "autoencoder weights; give the folder with its config.json")
    } else if any("visual_projection") || any("patch_embedding") {
        part(path, "CLIP picture tower; give the folder with its config.json")
    } else if any("token_embedding") {
        part(path, "CLIP text tower; give the folder with its config.json")
    } else {
        return Err(Error::file(path, "holds tensors, but of no model that this program knows"));
    };
    weights_facts(&mut report, weights);
    Ok(report)
}

fn unsupported(path: &Path, what: &str) -> Report {
    let mut report = Report::new(path, what);
    report.problems.push(format!("a {what} is recognised, but not supported yet"));
    report
}

fn part(path: &Path, what: &str) -> Report {
    Report::new(path, what)
}

fn adapter(path: &Path, weights: &Weights) -> Report {
    let mut report = Report::new(path, "IP-Adapter");
    let Some(shape) = report.check(AdapterShape::of(weights).map_err(crate::model_error)) else {
        return report;
    };
    report.what = shape.kind.name().to_owned();
    match (shape.context, shape.layers) {
        (2048, 70) => report.fits.push("sdxl"),
        (768, 16) => report.fits.push("sd15"),
        _ => {}
    }
    report.fact("image tokens", shape.tokens.map_or_else(|| json!("one per hidden state"), |t| json!(t)));
    report.fact("token width", shape.context);
    report.fact("layers", shape.layers);
    let feature = match shape.kind {
        Kind::Base => "pooled features",
        Kind::Plus | Kind::Full => "hidden states",
    };
    report.needs.push(format!(
        "a base model with cross-attention width {} and {} attention sites",
        shape.context, shape.layers
    ));
    report.needs.push(format!("an image encoder with {feature} of width {}", shape.input));
    if shape.kind == Kind::Base {
        report.needs.push(format!("for subtract: a text tower with a projection of width {}", shape.input));
    }
    // Sites of the widths that the file itself has: the projection and every layer are read as for generating.
    let widths: Vec<_> = (0..shape.layers)
        .filter_map(|n| {
            let ordinal = 2 * n + 1;
            let width = *weights.get(&format!("ip_adapter.{ordinal}.to_k_ip.weight"))?.shape().first()?;
            Some(instantstyle_nets::unet::Site { path: String::new(), width, level: 0, ordinal })
        })
        .collect();
    report.check(IpAdapter::load(weights, &widths).map_err(crate::model_error));
    report
}

fn component(path: &Path, place: &Place) -> Result<Report, Error> {
    let config = place.join("config.json").json()?;
    let class = config.get("_class_name").and_then(Value::as_str).unwrap_or("");
    let weights = place.component()?;
    let has = |part: &str| weights.keys().any(|k| k.contains(part));
    let config_path = place.join("config.json").path();
    let mut report = if class == "ControlNetModel" || has("controlnet_") {
        unsupported(path, "ControlNet")
    } else if has("down_blocks.") && has("time_embedding") {
        let mut report = Report::new(path, "UNet");
        unet(&mut report, &config, &config_path, &weights);
        report
    } else if has("decoder.up_blocks") {
        let mut report = Report::new(path, "autoencoder");
        if let Some(c) = report.check(place.join("config.json").config::<VaeConfig>()) {
            report.fact("factor", c.factor());
            report.fact("latent channels", c.latent_channels);
            report.check(Decoder::load(&c, &weights).map_err(crate::model_error));
            report.check(Encoder::load(&c, &weights).map_err(crate::model_error));
        }
        report
    } else if has("patch_embedding") {
        let mut report = Report::new(path, "CLIP picture tower");
        if let Some(c) = report.check(vision_config(place)) {
            report.fact("layers", c.num_hidden_layers);
            report.fact("pooled features", c.projection_dim);
            report.fact("hidden states", c.hidden_size);
            report.fact("picture size", c.image_size);
            report.check(VisionEncoder::load(&c, &weights).map_err(crate::model_error));
        }
        report
    } else if has("token_embedding") {
        let mut report = Report::new(path, "CLIP text tower");
        if let Some(c) = report.check(text_config(place)) {
            report.fact("layers", c.num_hidden_layers);
            report.fact("width", c.hidden_size);
            if has("text_projection") {
                report.fact("pooled features", c.projection_dim);
            }
            report.check(TextEncoder::load(&c, &weights).map_err(crate::model_error));
        }
        report
    } else {
        return Err(Error::file(path, "is a component of no model that this program knows"));
    };
    weights_facts(&mut report, &weights);
    Ok(report)
}

fn unet(report: &mut Report, config: &Value, config_path: &Path, weights: &Weights) -> Option<UNetConfig> {
    let c = report.check(UNetConfig::from_json(config, config_path).map_err(crate::model_error))?;
    let family = family::of(&c);
    report.fits.push(family.name);
    report.fact("token width", c.context_dim());
    report.fact("latent channels", c.in_channels);
    let all = sites(&c);
    let roles = PRESETS[..2].iter().map(|(name, p, _)| (*name, preset_blocks(*p, family, &Value::Null)));
    let roles: Vec<(&'static str, _)> = roles.collect();
    for group in groups(&all) {
        let n = all.iter().filter(|s| covers(&group, &s.path)).count();
        let of = |blocks: &[(String, f64)]| blocks.iter().any(|(key, _)| covers(key, &group));
        let roles = roles.iter().filter(|(_, blocks)| of(blocks)).map(|(name, _)| *name).collect();
        report.sites.push((group, n, roles));
    }
    report.check(UNet::load(&c, weights).map_err(crate::model_error));
    Some(c)
}

fn model(path: &Path, place: &Place) -> Result<Report, Error> {
    let index = place.join("model_index.json").json()?;
    let mut report = Report::new(path, "Diffusers folder");
    let unet_place = place.join("unet");
    let config_place = unet_place.join("config.json");
    let Some(config) = report.check(config_place.json()) else { return Ok(report) };
    let Some(weights) = report.check(unet_place.component()) else { return Ok(report) };
    let Some(c) = unet(&mut report, &config, &config_place.path(), &weights) else { return Ok(report) };
    let family = family::of(&c);
    report.what = format!("Diffusers folder of a {} model", family.title);
    weights_facts(&mut report, &weights);
    for name in ["vae", "text_encoder", "text_encoder_2", "image_encoder"] {
        let listed = family::has_component(place, &index, name);
        if listed || place.join(name).join("config.json").exists() {
            if let Some(inner) = report.check(component(&place.join(name).path(), &place.join(name))) {
                report.fact(name, inner.what.clone());
                report.problems.extend(inner.problems);
            }
        }
    }
    for name in family.components.iter().chain(&["vae", "scheduler"]) {
        if !place.join(name).exists() {
            report.problems.push(format!("the folder {name} is missing"));
        }
    }
    for name in ["tokenizer", "tokenizer_2"] {
        if family::has_component(place, &index, name) {
            report.check(place.join(name).tokenizer());
        }
    }
    if let Some(json) = report.check(place.join("scheduler").join("scheduler_config.json").json()) {
        let config = SchedulerConfig::from_json(&json).map_err(|e| place.error(e.to_string()));
        if let Some(config) = report.check(config) {
            report.fact("sampler", config.class_name().unwrap_or("not named").to_owned());
        }
    }
    let width = c.context_dim();
    report.needs.push(format!(
        "for references: an IP-Adapter with image tokens of width {width} for {} sites",
        sites(&c).len()
    ));
    Ok(report)
}
