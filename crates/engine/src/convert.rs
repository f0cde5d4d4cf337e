//! A model from one form into another: Diffusers folder, single file in original names, GGUF. Every tensor goes through
//! one at a time; what has no place in the other form is named.

use crate::checkpoint::Holds;
use crate::error::Error;
use crate::family::{self, Family};
use crate::model::Place;
use crate::model_error;
use instantstyle_nets::original::{VaeNames, to_open_clip_text};
use instantstyle_nets::unet::{LdmNames, UNetConfig};
use instantstyle_nets::vae::VaeConfig;
use instantstyle_nets::weights::{Block, Dtype, Stored, Weights, Written, write_gguf, write_safetensors};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

/// The number types by name, with a line for people; `None` keeps what is there.
pub const TYPES: &[(&str, Option<Dtype>, &str)] = &[
    ("keep", None, "as they are; blocks become f16 where the format has none"),
    ("f32", Some(Dtype::F32), "32 bits"),
    ("f16", Some(Dtype::F16), "16 bits"),
    ("bf16", Some(Dtype::BF16), "16 bits, with the range of f32"),
    ("q8_0", Some(Dtype::Blocks(Block::Q8_0)), "GGUF: the UNet's matrices in 8.5 bits"),
    ("q5_0", Some(Dtype::Blocks(Block::Q5_0)), "GGUF: the UNet's matrices in 5.5 bits"),
    ("q4_0", Some(Dtype::Blocks(Block::Q4_0)), "GGUF: the UNet's matrices in 4.5 bits"),
];

/// What is to be done.
pub struct Conversion<'a> {
    /// Folder or file.
    pub input: &'a Path,
    /// What it becomes: a `.safetensors` file, a `.gguf` file, or a folder. Must not exist.
    pub output: &'a Path,
    /// The type of the numbers, see [`TYPES`].
    pub dtype: Option<Dtype>,
    /// Leave everything but the UNet out, and its prefix, as ComfyUI's loaders want it.
    pub only_unet: bool,
}

/// What was done.
pub struct Converted {
    /// The family's title.
    pub family: &'static str,
    /// Of each part: its folder, tensors, bytes in the file.
    pub parts: Vec<(String, usize, u64)>,
    /// Keys that have no place in the other form.
    pub left_out: Vec<String>,
}

impl Converted {
    /// The same as JSON.
    pub fn to_json(&self) -> Value {
        let part =
            |(name, n, bytes): &(String, usize, u64)| json!({ "part": name, "tensors": n, "bytes": bytes });
        json!({
            "family": self.family, "parts": self.parts.iter().map(part).collect::<Vec<_>>(),
            "left_out": self.left_out,
        })
    }
}

/// Folders of a model with weights that have a place in every form.
const COMPONENTS: [&str; 4] = ["unet", "vae", "text_encoder", "text_encoder_2"];
/// Small files of a Diffusers folder.
const SMALL: [&str; 19] = [
    "model_index.json",
    "scheduler/scheduler_config.json",
    "unet/config.json",
    "vae/config.json",
    "text_encoder/config.json",
    "text_encoder_2/config.json",
    "card.json",
    "tokenizer/vocab.json",
    "tokenizer/merges.txt",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/special_tokens_map.json",
    "tokenizer/added_tokens.json",
    "tokenizer_2/vocab.json",
    "tokenizer_2/merges.txt",
    "tokenizer_2/tokenizer.json",
    "tokenizer_2/tokenizer_config.json",
    "tokenizer_2/special_tokens_map.json",
    "tokenizer_2/added_tokens.json",
];

/// Converts. `progress` hears how many tensors of how many are done and may stop.
///
/// # Errors
/// If the input is no model, the output is there already or cannot be written, or `progress` stops.
pub fn convert(
    wanted: &Conversion,
    progress: &mut dyn FnMut(usize, usize) -> bool,
) -> Result<Converted, Error> {
    let extension = wanted.output.extension().map(|e| e.to_string_lossy().to_lowercase());
    let form = extension.as_deref().filter(|e| ["safetensors", "gguf"].contains(e));
    if wanted.dtype.is_some_and(|d| d.unit().0 > 1) && form != Some("gguf") {
        return Err(Error::request(
            "--type",
            "is a block format, which only GGUF files hold; end OUTPUT in .gguf",
        ));
    }
    if wanted.output.exists() {
        return Err(Error::request(
            "OUTPUT",
            format!("{} is there already; choose another name", wanted.output.display()),
        ));
    }
    let source = Source::open(wanted.input)?;
    if form.is_none() && (wanted.only_unet || source.alone) {
        return Err(Error::request("OUTPUT", "must end in .safetensors or .gguf for a UNet alone"));
    }
    let mut done = Converted { family: source.family.title, parts: Vec::new(), left_out: source.left_out()? };
    let temporary = Temporary::beside(wanted.output);
    match form {
        None => source.to_folder(wanted, &temporary.0, &mut done, progress)?,
        Some(form) => source.to_file(wanted, form == "gguf", &temporary.0, &mut done, progress)?,
    }
    fs::rename(&temporary.0, wanted.output).map_err(|e| refused(wanted.output, e))?;
    Ok(done)
}

/// A path beside the output; what lies there is removed unless it got its name.
struct Temporary(PathBuf);

impl Temporary {
    fn beside(output: &Path) -> Self {
        let mut name = output.file_name().unwrap_or_default().to_owned();
        name.push(format!(".part-{}", std::process::id()));
        Temporary(output.with_file_name(name))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // Either of the two, if any.
        let _ = fs::remove_file(&self.0);
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn refused(path: &Path, e: io::Error) -> Error {
    match e.kind() {
        io::ErrorKind::Interrupted => Error::Cancelled,
        _ => Error::Machine(format!(
            "{}: cannot be written: {e}; check the folder, its permissions and the free space",
            path.display()
        )),
    }
}

/// The model to convert.
struct Source {
    place: Place,
    /// A UNet without the rest.
    alone: bool,
    family: &'static Family,
    unet: UNetConfig,
}

impl Source {
    fn open(path: &Path) -> Result<Self, Error> {
        let place = if path.is_dir() { Place::Disk(path.to_owned()) } else { Place::checkpoint(path)? };
        let alone = match &place {
            Place::Checkpoint(file, _) => match file.holds() {
                Holds::Model => false,
                Holds::UNet => true,
                other => {
                    return Err(place
                        .error(format!("holds {} alone; a model or a UNet can be converted", other.name())));
                }
            },
            _ if place.join("model_index.json").exists() => false,
            _ => return Err(place.error("has no model_index.json: this is not a Diffusers model folder")),
        };
        let config = if alone { place.join("config.json") } else { place.join("unet/config.json") };
        let unet = UNetConfig::from_json(&config.json()?, &config.path()).map_err(model_error)?;
        Ok(Source { place, alone, family: family::of(&unet), unet })
    }

    /// The parts that there are.
    fn parts(&self, only_unet: bool) -> Vec<&'static str> {
        let there = |name: &&str| self.alone && *name == "unet" || self.place.join(name).exists();
        COMPONENTS.into_iter().filter(there).filter(|name| !only_unet || *name == "unet").collect()
    }

    fn weights(&self, part: &str) -> Result<Weights, Error> {
        if self.alone { self.place.component() } else { self.place.join(part).component() }
    }

    /// What the input has and no form of output takes.
    fn left_out(&self) -> Result<Vec<String>, Error> {
        let mut left = match &self.place {
            Place::Checkpoint(file, _) => file.unused().to_vec(),
            _ => Vec::new(),
        };
        let others = ["image_encoder", "safety_checker", "feature_extractor"];
        left.extend(others.into_iter().filter(|o| self.place.join(o).exists()).map(|o| format!("{o}/")));
        Ok(left)
    }

    fn to_folder(
        &self,
        wanted: &Conversion,
        folder: &Path,
        done: &mut Converted,
        progress: &mut dyn FnMut(usize, usize) -> bool,
    ) -> Result<(), Error> {
        let machine = |e| refused(wanted.output, e);
        for name in SMALL {
            let place = self.place.join(name);
            if place.exists() {
                let path = folder.join(name);
                fs::create_dir_all(path.parent().unwrap_or(folder)).map_err(machine)?;
                let bytes = match name.ends_with(".json") && matches!(self.place, Place::Checkpoint(..)) {
                    true => format!("{:#}\n", place.json()?).into_bytes(),
                    false => place.read()?,
                };
                fs::write(path, bytes).map_err(machine)?;
            }
        }
        let mut parts = Vec::new();
        for part in self.parts(false) {
            let weights = self.weights(part)?;
            let named = weights.iter().map(|(key, tensor)| (key.to_owned(), tensor.clone())).collect();
            parts.push((part, self.written(part, named, wanted.dtype, false, &mut done.left_out)));
        }
        let (all, mut before) = (parts.iter().map(|p| p.1.len()).sum(), 0);
        for (part, tensors) in &parts {
            let name = if part.starts_with("text") { "model" } else { "diffusion_pytorch_model" };
            fs::create_dir_all(folder.join(part)).map_err(machine)?;
            let file =
                File::create(folder.join(part).join(format!("{name}.safetensors"))).map_err(machine)?;
            let mut out = BufWriter::new(file);
            write_safetensors(tensors, &mut out, &mut |n| progress(before + n, all))
                .and_then(|()| out.flush())
                .and_then(|()| out.get_ref().sync_all())
                .map_err(machine)?;
            before += tensors.len();
            done.parts.push((part.to_string(), tensors.len(), size(tensors)));
        }
        Ok(())
    }

    fn to_file(
        &self,
        wanted: &Conversion,
        gguf: bool,
        path: &Path,
        done: &mut Converted,
        progress: &mut dyn FnMut(usize, usize) -> bool,
    ) -> Result<(), Error> {
        let only_unet = wanted.only_unet || self.alone;
        let mut all = Vec::new();
        for part in self.parts(only_unet) {
            let named = self.original(part, only_unet, &mut done.left_out)?;
            let tensors = self.written(part, named, wanted.dtype, gguf, &mut done.left_out);
            done.parts.push((part.to_owned(), tensors.len(), size(&tensors)));
            all.extend(tensors);
        }
        if !only_unet {
            all.extend(self.markers()?);
        }
        let machine = |e| refused(wanted.output, e);
        let mut out = BufWriter::new(File::create(path).map_err(machine)?);
        let n = all.len();
        let mut done = |i| progress(i, n);
        // ComfyUI-GGUF's names of the two families.
        let architecture = if self.unet.added.is_some() { "sdxl" } else { "sd1" };
        let written = match gguf {
            true => write_gguf(&all, &[("general.architecture", architecture)], &mut out, &mut done),
            false => write_safetensors(&all, &mut out, &mut done),
        };
        written.and_then(|()| out.flush()).and_then(|()| out.get_ref().sync_all()).map_err(machine)
    }

    /// A part's tensors under their original names.
    fn original(
        &self,
        part: &str,
        bare: bool,
        left: &mut Vec<String>,
    ) -> Result<Vec<(String, Stored)>, Error> {
        let weights = self.weights(part)?;
        let mut named = Vec::new();
        let mut add = |key: &str, name: Option<String>, tensor: &Stored, prefix: &str| match name {
            Some(name) => named.push((format!("{prefix}{name}"), tensor.clone())),
            None => left.push(format!("{part}/{key}")),
        };
        match part {
            "unet" => {
                let names = LdmNames::of(&self.unet);
                let prefix = if bare { "" } else { "model.diffusion_model." };
                weights.iter().for_each(|(key, tensor)| add(key, names.original(key), tensor, prefix));
            }
            "vae" => {
                let config: VaeConfig = self.place.join("vae/config.json").config()?;
                let names = VaeNames::of(config.block_out_channels.len(), config.layers_per_block);
                for (key, tensor) in weights.iter() {
                    let name = names.original(key);
                    // Its attention is written as convolutions there.
                    let square = name.as_ref().filter(|n| n.contains(".attn_1.")).and_then(|_| match *tensor
                        .shape()
                    {
                        [outputs, inputs] => tensor.reshape([outputs, inputs, 1, 1]),
                        _ => None,
                    });
                    add(key, name, square.as_ref().unwrap_or(tensor), "first_stage_model.");
                }
            }
            _ => {
                let tower = self.family.original.towers.iter().find(|t| t.encoder == part);
                let tower = tower.ok_or_else(|| {
                    self.place.error(format!("has a {part} that {} has not", self.family.title))
                })?;
                let weights =
                    if tower.open_clip { to_open_clip_text(&weights).map_err(model_error)? } else { weights };
                let full = |key: &str| match tower.open_clip || key.starts_with("text_") {
                    true => key.to_owned(),
                    false => format!("text_model.{key}"),
                };
                weights.iter().for_each(|(key, tensor)| add(key, Some(full(key)), tensor, tower.prefix));
            }
        }
        Ok(named)
    }

    /// Tensors with the types that they get.
    fn written(
        &self,
        part: &str,
        named: Vec<(String, Stored)>,
        dtype: Option<Dtype>,
        gguf: bool,
        left: &mut Vec<String>,
    ) -> Vec<Written> {
        let mut out = Vec::new();
        for (key, tensor) in named {
            // Positions counted up: transformers' buffer, no weight.
            if tensor.kernel_view().is_none() && matches!(tensor.dtype(), Dtype::I64 | Dtype::I32) {
                left.push(format!("{part}/{key}"));
                continue;
            }
            let plain = if tensor.dtype().unit().0 > 1 { Dtype::F16 } else { tensor.dtype() };
            let dtype = match (dtype, gguf) {
                (None, true) if tensor.kernel_view().is_some() => tensor.dtype(),
                (None, true) => Dtype::F16,
                (None, false) => plain,
                (Some(d), false) => d,
                // What is added rather than multiplied stays exact, as stable-diffusion.cpp and ComfyUI-GGUF have it.
                (Some(_), true) if tensor.shape().len() < 2 => Dtype::F32,
                (Some(d), true)
                    if d.unit().0 > 1
                        && (part != "unet" || key.contains("_embed.") || key.contains("label_emb.")) =>
                {
                    Dtype::F16
                }
                (Some(d), true) => Written::fitting(&tensor, d),
            };
            out.push(Written { key, tensor, dtype });
        }
        out
    }

    /// Empty-handed tensors that say what the network predicts (see [`crate::checkpoint`]).
    fn markers(&self) -> Result<Vec<Written>, Error> {
        let json = self.place.join("scheduler/scheduler_config.json").json()?;
        let marker = |key: &str| {
            let tensor = Stored::from_f32([1], &[0.0])?;
            Some(Written { key: key.to_owned(), tensor, dtype: Dtype::F32 })
        };
        let mut keys = Vec::new();
        if json.get("prediction_type").and_then(Value::as_str) == Some("v_prediction") {
            keys.push("v_pred");
        }
        if json.get("rescale_betas_zero_snr").and_then(Value::as_bool) == Some(true) {
            keys.push("ztsnr");
        }
        Ok(keys.into_iter().filter_map(marker).collect())
    }
}

fn size(tensors: &[Written]) -> u64 {
    tensors.iter().map(|t| t.size_bytes() as u64).sum()
}
