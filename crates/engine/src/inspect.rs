//! What a file or folder is: told by its content and shapes, never by its name.

use crate::checkpoint::{Checkpoint, Holds};
use crate::encode::{text_config, vision_config};
use crate::error::Error;
use crate::family::{self, FAMILIES, Family};
use crate::injection::{groups, preset_blocks};
use crate::model::{EMBEDDED, Place};
use crate::picture::Picture;
use crate::request::{PRESETS, Preset, Request};
use crate::sampler::SchedulerConfig;
use instantstyle_nets::clip::{TextEncoder, VisionEncoder};
use instantstyle_nets::controlnet::{
    ControlLora, ControlNet, ControlNetConfig, diffusers_names, is_control_lora, is_controlnet,
};
use instantstyle_nets::ip_adapter::{AdapterShape, IpAdapter, Kind, published_names};
use instantstyle_nets::lora::{Lora, Part};
use instantstyle_nets::unet::{Site, UNet, UNetConfig, covers, sites};
use instantstyle_nets::vae::{Decoder, Encoder, VaeConfig};
use instantstyle_nets::weights::Weights;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

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
            "path": self.path.to_string_lossy(), "what": self.what, "fits": self.fits, "needs": self.needs,
            "facts": self.facts.iter().cloned().collect::<serde_json::Map<_, _>>(),
            "attention": sites, "problems": self.problems,
        })
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        writeln!(f, "{}: {}", self.path.display(), self.what)?;
        if !self.fits.is_empty() {
            writeln!(f, "  fits            {}", self.fits.join(", "))?;
        }
        for (name, value) in &self.facts {
            writeln!(f, "  {name:15} {}", value.as_str().map_or_else(|| value.to_string(), str::to_owned))?;
        }
        for need in &self.needs {
            writeln!(f, "  needs           {need}")?;
        }
        for (group, n, roles) in &self.sites {
            writeln!(f, "  attention       {group:32} {n:2} sites  {}", roles.join(", "))?;
        }
        for problem in &self.problems {
            writeln!(f, "  PROBLEM         {problem}")?;
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
        if path == Path::new(EMBEDDED) && Place::embedded().join("model_index.json").exists() {
            return model(path, &Place::embedded());
        }
        return Err(Error::file(path, "there is no such file or folder"));
    }
    if !path.is_dir() {
        return match place.weights() {
            Ok(weights) => file(path, &weights),
            Err(e) => other_file(path).unwrap_or(Err(e)),
        };
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
    if place.join("scheduler_config.json").exists() {
        let mut report = Report::new(path, "configuration of a sampler");
        scheduler(&mut report, &place);
        return Ok(report);
    }
    let inside = weight_files(path);
    let hint = if inside.is_empty() {
        String::new()
    } else {
        format!("; inspect what is in it: {}", inside.join(", "))
    };
    Err(Error::file(
        path,
        format!(
            "is neither a model folder (model_index.json), a component (config.json), nor a tokenizer{hint}"
        ),
    ))
}

/// Names of a few weight files in a folder.
fn weight_files(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let weights =
        |name: &String| [".safetensors", ".bin", ".ckpt", ".pth", ".pt"].iter().any(|e| name.ends_with(e));
    let mut names: Vec<String> =
        entries.filter_map(|e| e.file_name().into_string().ok()).filter(weights).collect();
    names.sort();
    names.truncate(8);
    names
}

/// Files that are no weights, but that requests know: pictures, and jobs.
fn other_file(path: &Path) -> Option<Result<Report, Error>> {
    use std::io::Read;
    let mut head = Vec::new();
    std::fs::File::open(path).ok()?.take(16).read_to_end(&mut head).ok()?;
    let pictures: [&[u8]; 7] = [b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*"];
    if pictures.iter().any(|magic| head.starts_with(magic)) {
        return Some(Picture::open(path).map_err(Error::from).map(|picture| {
            let mut report = Report::new(path, "picture, for references and masks");
            report.fact("pixels", format!("{} x {}", picture.width, picture.height));
            if let Ok(request) = Request::from_file(path) {
                report.what = "picture made by instantstyle".to_owned();
                report.fact("prompt", request.prompt);
                report.fact("seed", request.seed);
            }
            report
        }));
    }
    if head.trim_ascii_start().starts_with(b"{") {
        return Some(Request::from_file(path).map(|request| {
            let mut report = Report::new(path, "request (a job)");
            report.fact("prompt", request.prompt);
            report.fact("references", request.references.len());
            report
        }));
    }
    None
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
    let adapters = ["ip_adapter.", "image_proj.", "adapter_modules.", "processor.to_k_ip."];
    let mut report = if adapters.into_iter().any(any) {
        adapter(path, &published_names(weights))
    } else if any("perceiver_resampler.") {
        unsupported(path, "FaceID adapter")
    } else if is_control_lora(weights) {
        control_lora(path, weights)
    } else if is_controlnet(weights) {
        controlnet(path, weights, None)
    } else if any("input_blocks.0.0.weight") || any("decoder.up.0.") || any("resblocks.") {
        return single_file(path, weights);
    } else if LORA.iter().any(|k| any(k)) {
        lora(path, weights)
    } else if any("down_blocks.") && any("up_blocks.") && any("time_embedding") {
        return single_file(path, weights);
    } else if any("decoder.up_blocks.") {
        part(path, "autoencoder weights")
    } else if any("visual_projection") || any("patch_embedding") || any("token_embedding") {
        return single_file(path, weights);
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

/// Parts of the keys of LoRAs: kohya, peft, diffusers, LyCORIS.
const LORA: &[&str] =
    &["lora_down", "lora_A", "lora.down", "_lora.", "lora_linear_layer", "hada_w", "lokr_w", "dora_scale"];

fn lora(path: &Path, weights: &Weights) -> Report {
    let mut report = Report::new(path, "LoRA");
    let Some(lora) = report.check(Lora::of(weights).map_err(crate::model_error)) else { return report };
    for (name, part) in
        [("UNet layers", Part::UNet), ("text layers", Part::Text), ("text 2 layers", Part::Text2)]
    {
        if lora.len_of(part) > 0 {
            report.fact(name, lora.len_of(part));
        }
    }
    let width = lora.context_dim();
    report
        .fits
        .extend(published().iter().filter(|(_, c)| Some(c.context_dim()) == width).map(|(name, _)| name));
    if let Some(width) = width {
        report.fact("token width", width);
        report.needs.push(format!("a base model with cross-attention width {width}"));
    }
    if let Some(key) = lora.strange().first() {
        report.fact("unknown keys", format!("{}, e.g. {key}", lora.strange().len()));
    }
    report
}

/// A whole model, or a part of one, that needs no configuration beside it.
fn single_file(path: &Path, weights: &Weights) -> Result<Report, Error> {
    let file = Checkpoint::of(weights.clone(), path)?;
    let (holds, unused) = (file.holds(), file.unused().to_vec());
    let place = Place::Checkpoint(Arc::new(file), String::new());
    let mut report = match holds {
        Holds::Model => model(path, &place)?,
        Holds::UNet | Holds::Vae | Holds::Clip => component(path, &place)?,
    };
    report.fact("format", weights.format().name());
    if let Some(key) = unused.first() {
        report.fact("unused keys", format!("{}, e.g. {key}", unused.len()));
    }
    Ok(report)
}

fn part(path: &Path, what: &str) -> Report {
    let mut report = Report::new(path, what);
    report.needs.push("config.json beside it; give the folder of both".to_owned());
    report
}

fn of_name(name: &str) -> &'static Family {
    FAMILIES.iter().find(|f| f.name == name).copied().unwrap_or(FAMILIES[0])
}

/// UNets of the published families: what adapters are made for.
fn published() -> Vec<(&'static str, UNetConfig)> {
    let sdxl = json!({
        "block_out_channels": [320, 640, 1280], "transformer_layers_per_block": [1, 2, 10],
        "attention_head_dim": [5, 10, 20], "cross_attention_dim": 2048, "addition_embed_type": "text_time",
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    });
    let sd15 = json!({
        "block_out_channels": [320, 640, 1280, 1280], "attention_head_dim": 8, "cross_attention_dim": 768,
        "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    });
    let config = |(name, json): (&'static str, Value)| {
        Some((name, UNetConfig::from_json(&json, Path::new(name)).ok()?))
    };
    [("sdxl", sdxl), ("sd15", sd15)].into_iter().filter_map(config).collect()
}

fn adapter(path: &Path, weights: &Weights) -> Report {
    let mut report = Report::new(path, "IP-Adapter");
    let Some(shape) = report.check(AdapterShape::of(weights).map_err(crate::model_error)) else {
        return report;
    };
    report.what = shape.kind.name().to_owned();
    for (name, config) in published() {
        let all = sites(&config);
        let fits = |s: &Site| {
            let key = weights.get(&format!("ip_adapter.{}.to_k_ip.weight", s.ordinal));
            key.is_some_and(|t| t.shape() == [s.width, config.context_dim()])
        };
        if all.len() == shape.layers && all.iter().all(fits) {
            report.fits.push(name);
            attention(&mut report, &all, of_name(name), &Value::Null);
        }
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

/// A ControlNet with its configuration, or a file of its weights alone.
fn controlnet(path: &Path, weights: &Weights, config: Option<(&Value, &Path)>) -> Report {
    let mut report = Report::new(path, "ControlNet");
    let shape = match config {
        Some((json, path)) => {
            let read = ControlNetConfig::from_json(json, path).map_err(crate::model_error);
            let Some(shape) = report.check(read) else { return report };
            report.check(ControlNet::load(&shape, weights).map_err(crate::model_error));
            Some(shape)
        }
        // What the shapes do not tell is as in the published model that it fits.
        None => published().into_iter().find_map(|(_, base)| {
            let weights = diffusers_names(weights, &base);
            let shape = ControlNetConfig::of_weights(&weights, &base).ok()?;
            let fits = shape.fits(&base, base.out_channels);
            fits.then(|| {
                report.check(ControlNet::load(&shape, &weights).map_err(crate::model_error));
                shape
            })
        }),
    };
    if weights.has_prefix("control_model.") || weights.has_prefix("input_hint_block.") {
        report.what.push_str(" (original names)");
    }
    let Some(shape) = shape else {
        report
            .needs
            .push("the base model that it was made for, which is none of the published families".into());
        return report;
    };
    report.fits.push(family::of(&shape.trunk).name);
    report.fact("token width", shape.trunk.context_dim());
    report.fact("pixels per latent", shape.factor());
    report.fact("reads", if shape.bgr { "blue, green, red" } else { "red, green, blue" });
    if shape.pooled {
        report.fact("residuals", "averaged over all pixels");
    }
    let widths: Vec<String> = shape.trunk.levels.iter().map(|l| l.width.to_string()).collect();
    report.needs.push(format!(
        "a base model with levels of {} channels and tokens {} wide",
        widths.join(", "),
        shape.trunk.context_dim()
    ));
    report.needs.push("a picture to follow: a map, or one made of a photo with preprocess".to_owned());
    report
}

/// A ControlNet as a difference from the UNet that it works with: what can be said without that.
fn control_lora(path: &Path, weights: &Weights) -> Report {
    let mut report = Report::new(path, "Control-LoRA");
    let layers = weights.keys().filter(|k| k.ends_with(".down")).count();
    report.fact("layers of low rank", layers);
    let width = |key: &str, axis: usize| weights.get(key).and_then(|t| t.shape().get(axis).copied());
    let fits = |base: &UNetConfig| {
        let mut widths = base.levels[..1].iter().map(|l| l.width).collect::<Vec<_>>();
        for (i, level) in base.levels.iter().enumerate() {
            // One more for the convolution to the next level.
            let number = level.layers + usize::from(i + 1 < base.levels.len());
            widths.extend(std::iter::repeat_n(level.width, number));
        }
        let same = |(i, w): (usize, &usize)| width(&format!("zero_convs.{i}.0.weight"), 0) == Some(*w);
        widths.iter().enumerate().all(same) && ControlLora::of(weights, base).is_ok()
    };
    report.fits.extend(published().iter().filter(|(_, base)| fits(base)).map(|(name, _)| name));
    report.needs.push("the UNet that it was made for: it takes most of its weights from there".to_owned());
    report.needs.push("a picture to follow: a map, or one made of a photo with preprocess".to_owned());
    report
}

fn component(path: &Path, place: &Place) -> Result<Report, Error> {
    let config = place.join("config.json").json()?;
    let class = config.get("_class_name").and_then(Value::as_str).unwrap_or("");
    let weights = place.component()?;
    let has = |part: &str| weights.keys().any(|k| k.contains(part));
    let config_path = place.join("config.json").path();
    let mut report = if class == "ControlNetModel" || is_controlnet(&weights) {
        controlnet(path, &weights, Some((&config, &config_path)))
    } else if has("down_blocks.") && has("time_embedding") {
        let mut report = Report::new(path, "UNet");
        unet(&mut report, &config, &config_path, &weights, &Value::Null);
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
        picture_tower(&mut report, place, &weights);
        if has("token_embedding") {
            report.what = "CLIP picture and text tower".to_owned();
            text_tower(&mut report, place, &weights);
        }
        report
    } else if has("token_embedding") {
        let mut report = Report::new(path, "CLIP text tower");
        text_tower(&mut report, place, &weights);
        report
    } else {
        return Err(Error::file(path, "is a component of no model that this program knows"));
    };
    weights_facts(&mut report, &weights);
    Ok(report)
}

fn picture_tower(report: &mut Report, place: &Place, weights: &Weights) {
    let Some(c) = report.check(vision_config(place)) else { return };
    report.fact("layers", c.num_hidden_layers);
    report.fact("pooled features", c.projection_dim);
    report.fact("hidden states", c.hidden_size);
    report.fact("picture size", c.image_size);
    report.needs.push(format!(
        "an adapter that reads pooled features of width {} (base) or hidden states of width {} (Plus, Full)",
        c.projection_dim, c.hidden_size
    ));
    report.check(VisionEncoder::load(&c, weights).map_err(crate::model_error));
}

fn text_tower(report: &mut Report, place: &Place, weights: &Weights) {
    let Some(c) = report.check(text_config(place)) else { return };
    report.fact("text layers", c.num_hidden_layers);
    report.fact("text width", c.hidden_size);
    if weights.keys().any(|k| k.contains("text_projection")) {
        report.fact("text features", c.projection_dim);
    }
    report.check(TextEncoder::load(&c, weights).map_err(crate::model_error));
}

fn scheduler(report: &mut Report, place: &Place) {
    let Some(json) = report.check(place.join("scheduler_config.json").json()) else { return };
    let config = SchedulerConfig::from_json(&json).map_err(|e| place.error(e.to_string()));
    if let Some(config) = report.check(config) {
        report.fact("sampler", config.class_name().unwrap_or("not named").to_owned());
    }
}

/// The groups of sites, and which preset acts in each.
fn attention(report: &mut Report, all: &[Site], family: &Family, card: &Value) {
    let presets = PRESETS.iter().filter(|p| matches!(p.1, Preset::Style | Preset::Layout));
    let roles: Vec<(&'static str, _)> =
        presets.map(|(name, p, _)| (*name, preset_blocks(*p, family, card))).collect();
    for group in groups(all) {
        let n = all.iter().filter(|s| covers(&group, &s.path)).count();
        let of = |blocks: &[(String, f64)]| {
            blocks.iter().any(|(key, weight)| *weight != 0.0 && (covers(key, &group) || covers(&group, key)))
        };
        let roles = roles.iter().filter(|(_, blocks)| of(blocks)).map(|(name, _)| *name).collect();
        report.sites.push((group, n, roles));
    }
}

fn unet(
    report: &mut Report,
    config: &Value,
    config_path: &Path,
    weights: &Weights,
    card: &Value,
) -> Option<UNetConfig> {
    let c = report.check(UNetConfig::from_json(config, config_path).map_err(crate::model_error))?;
    let family = family::of(&c);
    report.fits.push(family.name);
    report.fact("token width", c.context_dim());
    report.fact("latent channels", c.out_channels);
    if c.in_channels != c.out_channels {
        report.fact("paints", "the white of a mask (inpainting)");
    }
    attention(report, &sites(&c), family, card);
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
    let card = place.join("card.json").json().unwrap_or(Value::Null);
    let Some(c) = unet(&mut report, &config, &config_place.path(), &weights, &card) else {
        return Ok(report);
    };
    let family = family::of(&c);
    let kind = if matches!(place, Place::Checkpoint(..)) { "one file with" } else { "Diffusers folder of" };
    report.what = format!("{kind} a {} model", family.title);
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
    scheduler(&mut report, &place.join("scheduler"));
    let width = c.context_dim();
    report.needs.push(format!(
        "for references: an IP-Adapter with image tokens of width {width} for {} sites",
        sites(&c).len()
    ));
    let own = family.feature_tower.filter(|name| family::has_component(place, &index, name));
    let own = own.and_then(|name| text_config(&place.join(name)).ok());
    report.needs.push(match own {
        Some(c) => format!(
            "for subtract: an adapter that reads features of width {}, or the text tower of the adapter's CLIP model",
            c.projection_dim
        ),
        None => "for subtract: the text tower of the adapter's CLIP model".to_owned(),
    });
    Ok(report)
}
