//! One file that stands for a Diffusers folder: a whole model in the names of its first publication, or one part of it
//! (UNet, autoencoder, CLIP tower). What it is, its keys and shapes tell; the rest are facts of its family.

use crate::error::Error;
use crate::family::{FAMILIES, Family};
use crate::model_error;
use instantstyle_nets::original::{self, Part};
use instantstyle_nets::tokenizer::published_files;
use instantstyle_nets::weights::Weights;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What a file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holds {
    /// A UNet with more: a model, though a part of it may be missing.
    Model,
    /// A UNet alone.
    UNet,
    /// An autoencoder alone.
    Vae,
    /// A CLIP tower, or both.
    Clip,
}

impl Holds {
    /// In a few words.
    pub fn name(self) -> &'static str {
        match self {
            Holds::Model => "a whole model",
            Holds::UNet => "a UNet",
            Holds::Vae => "an autoencoder",
            Holds::Clip => "CLIP towers",
        }
    }
}

/// A file, as the folder that it stands for.
pub struct Checkpoint {
    path: PathBuf,
    holds: Holds,
    family: Option<&'static Family>,
    /// `model_index.json`, `unet/config.json`, …; `config.json` of a part that stands alone.
    json: BTreeMap<String, Value>,
    /// By folder; under the empty name of a part that stands alone.
    components: BTreeMap<String, Weights>,
    /// The padding of a tokenizer's folder.
    tokenizers: BTreeMap<String, &'static str>,
    unused: Vec<String>,
}

/// Prefixes of UNets and of autoencoders in whole checkpoints (diffusers' `LDM_UNET_KEY` and `LDM_VAE_KEYS`).
const UNET: &str = "model.diffusion_model.";
const VAES: [&str; 2] = ["first_stage_model.", "vae."];
/// Keys without weights of the model: training's schedule (Rombach et al.'s `ddpm.py`), averages, markers.
const ASIDE: [&str; 16] = [
    "model_ema.",
    "betas",
    "alphas_cumprod",
    "sqrt_",
    "log_one_minus_",
    "posterior_",
    "lvlb_weights",
    "logvar",
    "denoiser.sigmas",
    "v_pred",
    "ztsnr",
    "cond_stage_model.transformer.text_model.embeddings.position_ids",
    "conditioner.embedders.0.transformer.text_model.embeddings.position_ids",
    "conditioner.embedders.1.model.logit_scale",
    "global_step",
    "state_dict",
];

impl Checkpoint {
    /// Reads a file's header.
    ///
    /// # Errors
    /// If it is no weight file, or of nothing known.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let weights = Weights::open(path).map_err(|e| Error::file(e.path(), e.message()))?;
        Checkpoint::of(weights, path)
    }

    /// The same for weights that are read.
    ///
    /// # Errors
    /// If they are of nothing known.
    pub fn of(weights: Weights, path: &Path) -> Result<Self, Error> {
        let mut file = Checkpoint {
            path: path.to_owned(),
            holds: Holds::Model,
            family: None,
            json: BTreeMap::new(),
            components: BTreeMap::new(),
            tokenizers: BTreeMap::new(),
            unused: Vec::new(),
        };
        let has = |key: &str| weights.get(key).is_some();
        if weights.has_prefix(UNET) {
            file.model(&weights)?;
        } else if has("input_blocks.0.0.weight") {
            file.holds = Holds::UNet;
            let unet = file.unet(&weights)?;
            file.add("", unet, "");
        } else if has("down_blocks.0.resnets.0.conv1.weight") && has("up_blocks.0.resnets.0.conv1.weight") {
            file.holds = Holds::UNet;
            let family = FAMILIES.iter().find(|f| (f.original.matches)(&weights)).copied();
            let family =
                family.ok_or_else(|| file.error("has a UNet of no family that this program knows"))?;
            file.family = Some(family);
            let unet = original::diffusers_unet(&weights, &family.original.unet).map_err(model_error)?;
            file.add("", unet, "");
        } else if has("decoder.up.0.block.0.conv1.weight") || VAES.iter().any(|p| weights.has_prefix(p)) {
            file.holds = Holds::Vae;
            let prefix = VAES.iter().find(|p| weights.has_prefix(p)).copied().unwrap_or("");
            let alone = weights.strip_prefix(prefix);
            // Alone it does not tell its family: SD1.x's factor, as diffusers takes (`LDM_VAE_DEFAULT_SCALING_FACTOR`).
            let part = original::vae(&alone, 0.18215, 512).map_err(model_error)?;
            file.add("", part, prefix);
        } else if weights.keys().any(|k| k.contains("resblocks.") || k.contains("encoder.layers.")) {
            file.holds = Holds::Clip;
            file.clip(&weights)?;
        } else {
            return Err(Error::file(path, "holds tensors, but of no model that this program knows"));
        }
        file.unused.retain(|k| !ASIDE.iter().any(|a| k.starts_with(a)));
        Ok(file)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it holds.
    pub fn holds(&self) -> Holds {
        self.holds
    }

    /// The family of its UNet.
    pub fn family(&self) -> Option<&'static Family> {
        self.family
    }

    /// Keys that have no place in the model.
    pub fn unused(&self) -> &[String] {
        &self.unused
    }

    /// A component's weights in Diffusers' names.
    pub fn component(&self, folder: &str) -> Option<&Weights> {
        self.components.get(folder)
    }

    /// The folders of its components.
    pub fn components(&self) -> impl Iterator<Item = (&str, &Weights)> {
        self.components.iter().map(|(k, v)| (k.as_str(), v))
    }

    /// True if the folder would have a file or folder of that name.
    pub fn exists(&self, name: &str) -> bool {
        let inside =
            |key: &str| key == name || key.strip_prefix(name).is_some_and(|rest| rest.starts_with('/'));
        name.is_empty()
            || self.json.keys().any(|k| inside(k))
            || self.components.contains_key(name)
            || self.tokenizers.keys().any(|k| inside(k))
            || self.tokenizer_file(name).is_some()
    }

    /// The bytes of a small file of the folder.
    pub fn file(&self, name: &str) -> Option<Vec<u8>> {
        if let Some(json) = self.json.get(name) {
            return Some(json.to_string().into_bytes());
        }
        let (pad, file) = self.tokenizer_file(name)?;
        published_files(pad).into_iter().find(|(n, _)| *n == file).map(|(_, bytes)| bytes)
    }

    /// Names of all small files.
    pub fn files(&self) -> Vec<String> {
        let of_tokenizer = |folder: &String| TOKENIZER.map(|file| join(folder, file));
        self.json.keys().cloned().chain(self.tokenizers.keys().flat_map(of_tokenizer)).collect()
    }

    /// The padding and the file's own name, where `name` is a file of a tokenizer.
    fn tokenizer_file<'a>(&self, name: &'a str) -> Option<(&'static str, &'a str)> {
        let (folder, file) = name.rsplit_once('/').unwrap_or(("", name));
        let pad = self.tokenizers.get(folder)?;
        TOKENIZER.contains(&file).then_some((pad, file))
    }

    fn error(&self, message: impl Into<String>) -> Error {
        Error::file(&self.path, message)
    }

    /// Adds a component's configuration and weights; what it does not know was under `prefix`.
    fn add(&mut self, folder: &str, part: Part, prefix: &str) {
        self.unused.extend(part.unknown.iter().map(|k| format!("{prefix}{k}")));
        self.json.insert(join(folder, "config.json"), part.config);
        self.components.insert(folder.to_owned(), part.weights);
    }

    fn unet(&mut self, weights: &Weights) -> Result<Part, Error> {
        let family = FAMILIES.iter().find(|f| (f.original.matches)(weights)).copied();
        let family = family.ok_or_else(|| self.error("has a UNet of no family that this program knows"))?;
        self.family = Some(family);
        original::unet(weights, &family.original.unet).map_err(model_error)
    }

    fn model(&mut self, weights: &Weights) -> Result<(), Error> {
        if weights.has_prefix("cond_stage_model.model.") {
            return Err(
                self.error("is a Stable Diffusion 2 model, which is not supported; use SD1.5 or SDXL")
            );
        }
        if weights.has_prefix("conditioner.embedders.0.model.") {
            return Err(self.error("is an SDXL refiner, which is not supported; use the base model"));
        }
        if weights.get("edm_mean").is_some() || weights.get("edm_vpred.sigma_max").is_some() {
            return Err(self.error("predicts in EDM's terms (edm_mean, edm_vpred), which is not supported"));
        }
        let unet = self.unet(&weights.strip_prefix(UNET))?;
        self.add("unet", unet, UNET);
        let Some(family) = self.family else { return Ok(()) };
        let facts = &family.original;
        let mut used = vec![UNET];
        let vae = VAES.iter().find(|p| weights.has_prefix(&format!("{p}decoder.")));
        if let Some(prefix) = vae {
            let side = facts.unet.sample_size * 8;
            let part = original::vae(&weights.strip_prefix(prefix), facts.scaling_factor, side)
                .map_err(model_error)?;
            self.add("vae", part, prefix);
            used.push(prefix);
        }
        let mut index = (facts.index)();
        for tower in facts.towers {
            used.push(tower.prefix);
            let alone = weights.strip_prefix(tower.prefix);
            if alone.is_empty() {
                index[tower.encoder] = json!([null, null]);
                index[tower.tokenizer] = json!([null, null]);
                continue;
            }
            let read = if tower.open_clip { original::open_clip_text } else { original::clip_text };
            self.add(tower.encoder, read(&alone).map_err(model_error)?, tower.prefix);
            self.tokenizers.insert(tower.tokenizer.to_owned(), tower.pad);
        }
        self.json.insert("model_index.json".to_owned(), index);
        self.json
            .insert("scheduler/scheduler_config.json".to_owned(), scheduler((facts.scheduler)(), weights));
        let rest = weights.keys().filter(|k| !used.iter().any(|p| k.starts_with(p)));
        self.unused.extend(rest.map(str::to_owned));
        Ok(())
    }

    /// One or both towers in OpenCLIP's or transformers' names.
    fn clip(&mut self, weights: &Weights) -> Result<(), Error> {
        let open = weights.keys().any(|k| k.contains("transformer.resblocks."));
        let mut parts = Vec::new();
        if open {
            if weights.has_prefix("visual.") {
                parts.push(("vision_config", original::open_clip_vision(&weights.strip_prefix("visual."))));
            }
            if weights.has_prefix("transformer.resblocks.") {
                let text = weights.renamed(|k| (!k.starts_with("visual.")).then(|| k.to_owned()));
                parts.push(("text_config", original::open_clip_text(&text)));
            }
        } else {
            if weights.keys().any(|k| k.ends_with("embeddings.patch_embedding.weight")) {
                parts.push(("vision_config", original::clip_vision(weights)));
            }
            if weights.keys().any(|k| k.ends_with("embeddings.token_embedding.weight")) {
                parts.push(("text_config", original::clip_text(weights)));
            }
        }
        let mut both = Weights::from_tensors([], &self.path);
        let mut config = json!({});
        for (name, part) in parts {
            let part = part.map_err(model_error)?;
            if name == "text_config" {
                self.tokenizers.insert(String::new(), "<|endoftext|>");
            }
            config["projection_dim"] = part.config["projection_dim"].clone();
            config[name] = part.config;
            self.unused.extend(part.unknown);
            part.weights.iter().for_each(|(k, t)| both.insert(k, t.clone()));
        }
        if both.is_empty() {
            return Err(self.error("holds no CLIP tower that this program knows"));
        }
        self.json.insert("config.json".to_owned(), config);
        self.components.insert(String::new(), both);
        Ok(())
    }
}

/// The files of a tokenizer's folder.
const TOKENIZER: [&str; 4] = ["vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"];

fn join(folder: &str, file: &str) -> String {
    if folder.is_empty() { file.to_owned() } else { format!("{folder}/{file}") }
}

/// The family's sampler, with what markers in the file say of its training.
///
/// Empty tensors `v_pred` and `ztsnr` are what trainers of v-prediction SDXL models put in (ComfyUI's
/// `supported_models.py`, `SDXL.model_type`); `modelspec.prediction_type` is Stability's ModelSpec 1.0.
fn scheduler(mut config: Value, weights: &Weights) -> Value {
    let told = weights.metadata().get("modelspec.prediction_type").map(String::as_str);
    if weights.get("v_pred").is_some() || matches!(told, Some("v" | "v_prediction")) {
        config["prediction_type"] = json!("v_prediction");
    }
    if weights.get("ztsnr").is_some() {
        // Noise without signal is only met if sampling begins at the last timestep (Lin et al., arXiv 2305.08891, 3.3).
        config["rescale_betas_zero_snr"] = json!(true);
        config["timestep_spacing"] = json!("trailing");
    }
    config
}

impl PartialEq for Checkpoint {
    fn eq(&self, other: &Self) -> bool {
        self.path == other.path
    }
}

impl std::fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "Checkpoint({:?})", self.path)
    }
}
