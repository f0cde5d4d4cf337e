//! What was asked: the public, stable request. JSON of `--job`, of every API, and of what is stored in each picture.
//!
//! A [`Request`] resolves nothing: fields that were not given are `None` and get their defaults from the model's card or
//! family when the [plan](crate::plan) is made.

pub mod fields;
mod json;
mod parse;

pub(crate) use parse::distance;
pub use parse::nearest;

use crate::error::Error;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// Number format of the arithmetic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum Precision {
    Auto,
    F32,
    Bf16,
    F16,
    Int8,
}

/// The number formats by name, with a line for people.
pub const PRECISIONS: &[(&str, Precision, &str)] = &[
    (
        "auto",
        Precision::Auto,
        "bf16 for UNets of 100 million weights and more where the processor has AVX-512 BF16, else f32; what was used is stored",
    ),
    ("f32", Precision::F32, "32 bits"),
    (
        "bf16",
        Precision::Bf16,
        "operands in 16 bits: of matrix products and attention with the range of f32, of 3x3 convolutions as whole numbers",
    ),
    ("f16", Precision::F16, "16 bits; not on the CPU"),
    (
        "int8",
        Precision::Int8,
        "operands of the UNet's matrix products and long self-attention in 8 bits, its filters stored in 8, the rest as in bf16",
    ),
];

/// Whether the autoencoder works in tiles.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum VaeTiling {
    #[default]
    Auto,
    On,
    Off,
}

/// The choices of `vae_tiling` by name, with a line for people.
pub const VAE_TILINGS: &[(&str, VaeTiling, &str)] = &[
    ("auto", VaeTiling::Auto, "where the whole does not fit into memory"),
    ("on", VaeTiling::On, "wherever the picture is larger than a tile"),
    ("off", VaeTiling::Off, "never"),
];

/// Which parts of HiDiffusion act.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum HiDiffusion {
    #[default]
    Off,
    On,
    Raunet,
}

/// The choices of `hidiffusion` by name, with a line for people.
pub const HIDIFFUSIONS: &[(&str, HiDiffusion, &str)] = &[
    ("off", HiDiffusion::Off, "the plain network"),
    ("on", HiDiffusion::On, "the trained size inside in the first steps, and attention in windows"),
    ("raunet", HiDiffusion::Raunet, "the trained size inside alone: slower, and any size will do"),
];

/// Where it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Device {
    Auto,
    Cpu,
    Cuda(u32),
    Metal,
}

impl Serialize for Device {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self {
            Device::Auto => s.serialize_str("auto"),
            Device::Cpu => s.serialize_str("cpu"),
            Device::Cuda(n) => s.serialize_str(&format!("cuda:{n}")),
            Device::Metal => s.serialize_str("metal"),
        }
    }
}

/// Named choices of `inject`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub enum Preset {
    #[serde(rename = "style")]
    Style,
    #[serde(rename = "layout")]
    Layout,
    #[serde(rename = "style+layout")]
    StyleLayout,
    #[serde(rename = "all")]
    All,
}

/// The presets by name, with a line for people.
pub const PRESETS: &[(&str, Preset, &str)] = &[
    ("style", Preset::Style, "only the block that carries style (InstantStyle)"),
    ("layout", Preset::Layout, "only the block that carries layout"),
    ("style+layout", Preset::StyleLayout, "both"),
    ("all", Preset::All, "every block: the plain IP-Adapter; content leaks"),
];

/// Where a reference is injected.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Inject {
    /// By name.
    Preset(Preset),
    /// By parts of the UNet, each with its weight.
    #[serde(serialize_with = "as_map")]
    Blocks(Vec<(String, f64)>),
}

fn as_map<S: serde::Serializer>(blocks: &[(String, f64)], s: S) -> Result<S::Ok, S::Error> {
    s.collect_map(blocks.iter().map(|(k, v)| (k, v)))
}

/// The content to take away from a reference's feature.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Subtract {
    /// What the reference shows, e.g. "a rabbit".
    pub text: String,
    /// How much of its text feature to take away; the family's default where not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scale: Option<f64>,
}

/// A style picture and how it is used.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Reference {
    /// The picture.
    pub image: PathBuf,
    /// The IP-Adapter's file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adapter: Option<PathBuf>,
    /// The CLIP picture tower: folder or file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_encoder: Option<PathBuf>,
    /// The CLIP text tower, folder or file, for subtraction where the model lacks it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text_encoder: Option<PathBuf>,
    /// Where it acts.
    pub inject: Inject,
    /// Multiplies every weight of `inject`.
    pub weight: f64,
    /// Content to take away.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subtract: Option<Subtract>,
    /// White where the reference acts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mask: Option<PathBuf>,
    /// Start of the window, as a part of the sampling.
    pub start: f64,
    /// End of the window.
    pub end: f64,
}

impl Reference {
    /// A reference with the defaults: style only, weight 1, the whole time.
    pub fn new(image: impl Into<PathBuf>) -> Self {
        Reference {
            image: image.into(),
            adapter: None,
            image_encoder: None,
            text_encoder: None,
            inject: Inject::Preset(Preset::Style),
            weight: 1.0,
            subtract: None,
            mask: None,
            start: 0.0,
            end: 1.0,
        }
    }
}

/// The picture to start from: image-to-image, and inpainting with a mask.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Init {
    /// The picture; resized to the request's size.
    pub image: PathBuf,
    /// How much is repainted: the part of the steps that is run. [`Init::STRENGTH`] where not given, with a mask 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub strength: Option<f64>,
    /// White where the picture is repainted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mask: Option<PathBuf>,
    /// Where given, the pixels outside the mask are put back exactly, with a soft edge of this width inside it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blend_px: Option<f64>,
}

impl Init {
    /// Strength without a mask, where none is given.
    pub const STRENGTH: f64 = 0.6;
}

/// How the first pass of [`Hires`] is enlarged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub enum Upscale {
    #[default]
    #[serde(rename = "pixel")]
    Pixel,
    #[serde(rename = "latent")]
    Latent,
    #[serde(rename = "latent-nearest")]
    LatentNearest,
}

/// The ways to enlarge by name, with a line for people.
pub const UPSCALES: &[(&str, Upscale, &str)] = &[
    ("pixel", Upscale::Pixel, "the picture, by Lanczos, coded anew"),
    ("latent", Upscale::Latent, "the latents, bilinearly; wants a strength of 0.5 or more"),
    ("latent-nearest", Upscale::LatentNearest, "the latents, by the nearest neighbour; likewise"),
];

/// Two passes: the picture is made at the request's size, enlarged, and painted over at the larger size.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Hires {
    /// Factor of both sides; [`Hires::SCALE`] where nothing is given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scale: Option<f64>,
    /// Width of the result, instead of the factor.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub width: Option<usize>,
    /// Height of the result, likewise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub height: Option<usize>,
    /// How much is repainted in the second pass; [`Hires::STRENGTH`] where not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub strength: Option<f64>,
    /// How it is enlarged.
    pub upscale: Upscale,
    /// Steps of the second pass before `strength`; the request's where not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<usize>,
}

impl Hires {
    /// Factor where none is given.
    pub const SCALE: f64 = 2.0;
    /// Strength where none is given.
    pub const STRENGTH: f64 = 0.5;
}

/// Which part of a B-LoRA acts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum LoraBlocks {
    #[default]
    All,
    Content,
    Style,
}

/// The parts of a B-LoRA by name, with a line for people.
pub const LORA_BLOCKS: &[(&str, LoraBlocks, &str)] = &[
    ("all", LoraBlocks::All, "everything in the file"),
    ("content", LoraBlocks::Content, "only the block that carries content (B-LoRA)"),
    ("style", LoraBlocks::Style, "only the block that carries style (B-LoRA)"),
];

/// A LoRA and how it is used.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LoraUse {
    /// The file.
    pub file: PathBuf,
    /// Strength.
    pub weight: f64,
    /// Which part of it acts.
    pub blocks: LoraBlocks,
}

/// A ControlNet and the picture that it follows.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Control {
    /// The ControlNet's folder or file.
    pub model: PathBuf,
    /// The picture; resized to the request's size.
    pub image: PathBuf,
    /// The map that is made of it, by its name in [`MAPS`](crate::control::MAPS).
    pub preprocess: String,
    /// The network that makes the map, where one is needed: an ONNX file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preprocess_model: Option<PathBuf>,
    /// For pose: the network that finds people, an ONNX file. None takes the whole picture for one person.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preprocess_detector: Option<PathBuf>,
    /// Strength.
    pub scale: f64,
    /// Start of the window, as a part of the sampling.
    pub start: f64,
    /// End of the window.
    pub end: f64,
    /// For canny: the lower threshold of the gradient.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub canny_low: Option<f64>,
    /// For canny: the upper threshold of the gradient.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub canny_high: Option<f64>,
    /// For tile: how many times smaller the picture is made before it is enlarged again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tile_downscale: Option<f64>,
}

impl Control {
    /// A ControlNet with the defaults: the picture as it is, scale 1, the whole time.
    pub fn new(model: impl Into<PathBuf>, image: impl Into<PathBuf>) -> Self {
        Control {
            model: model.into(),
            image: image.into(),
            preprocess: crate::control::MAPS[0].name.to_owned(),
            preprocess_model: None,
            preprocess_detector: None,
            scale: 1.0,
            start: 0.0,
            end: 1.0,
            canny_low: None,
            canny_high: None,
            tile_downscale: None,
        }
    }
}

/// A request.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Request {
    /// Folder or file of the model, or `embedded`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Another UNet in the model's place: folder or file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unet: Option<PathBuf>,
    /// Folder or file of another autoencoder than the model's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vae: Option<PathBuf>,
    /// Number format.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub precision: Option<Precision>,
    /// Device.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<Device>,
    /// What to paint.
    pub prompt: String,
    /// What to avoid. For SDXL not the same as an empty one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub negative_prompt: Option<String>,
    /// Pixels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub width: Option<usize>,
    /// Pixels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub height: Option<usize>,
    /// Pictures, with seeds seed, seed + 1, …
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<usize>,
    /// Seed of torch's CPU generator.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// Sampling steps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<usize>,
    /// Strength of classifier-free guidance; 1 or less turns it off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guidance: Option<f64>,
    /// Rescaling of the guided prediction, 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guidance_rescale: Option<f64>,
    /// Start of the window of guidance, as a part of the sampling; outside it the prompt alone leads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guidance_start: Option<f64>,
    /// End of the window of guidance.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guidance_end: Option<f64>,
    /// Deep features are computed in every n-th model call only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deep_cache: Option<usize>,
    /// Part of the sampling after which cross-attention gives what it gave last, and guidance has ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cross_freeze: Option<f64>,
    /// Part of the tokens that self-attention merges at the finest level that has any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_merging: Option<f64>,
    /// Layers of the text encoder to skip.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip_skip: Option<usize>,
    /// Sampler by name; the checkpoint's own where not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sampler: Option<String>,
    /// Which timesteps and sigmas the sampler visits; the checkpoint's where not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schedule: Option<String>,
    /// Settings of a distilled model by name. A plan has them filled in, and no name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fast: Option<String>,
    /// Whether the autoencoder works in tiles.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vae_tiling: Option<VaeTiling>,
    /// The picture to start from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init: Option<Init>,
    /// ControlNets.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub controls: Vec<Control>,
    /// Two passes, the second one larger.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hires: Option<Hires>,
    /// High resolution in one pass.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hidiffusion: Option<HiDiffusion>,
    /// Changes of the model's weights.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub loras: Vec<LoraUse>,
    /// Style pictures.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub references: Vec<Reference>,
}

/// Largest job file, in bytes; a picture with its request may be larger.
const MAX_JOB_BYTES: usize = 16 << 20;
/// Largest picture that is searched for its request, in bytes.
const MAX_PICTURE_BYTES: u64 = 512 << 20;
/// The keyword under which a PNG carries its request.
pub const PNG_KEYWORD: &str = "instantstyle";

impl Request {
    /// Parses and checks JSON; relative paths are taken from `base`.
    ///
    /// # Errors
    /// Names the field, what was found and what is allowed.
    pub fn from_json(text: &str, base: &Path) -> Result<Request, Error> {
        parse::request(text, base)
    }

    /// Reads a job: a JSON file, or a PNG that carries its request. Relative paths are taken from its folder.
    ///
    /// # Errors
    /// If it is neither, or its content is refused.
    pub fn from_file(path: &Path) -> Result<Request, Error> {
        use std::io::Read;
        let refused = |e: std::io::Error| Error::file(path, format!("cannot be read: {e}; check the path"));
        let file = std::fs::File::open(path).map_err(refused)?;
        if file.metadata().is_ok_and(|m| m.is_dir()) {
            return Err(Error::file(
                path,
                "is a folder; a job is a JSON file, or a picture made by instantstyle",
            ));
        }
        // Read once, whatever its length says: it may be a pipe.
        let mut bytes = Vec::new();
        file.take(MAX_PICTURE_BYTES).read_to_end(&mut bytes).map_err(refused)?;
        let base =
            std::path::absolute(path).ok().and_then(|p| p.parent().map(Path::to_owned)).unwrap_or_default();
        if bytes.starts_with(b"\x89PNG") {
            let text = crate::picture::png_text(&bytes, PNG_KEYWORD).map_err(|e| Error::file(path, e))?;
            let text = text.ok_or_else(|| {
                Error::file(
                    path,
                    "is a picture without a request in it; only pictures made by instantstyle carry one",
                )
            })?;
            return Self::from_json(&text, &base);
        }
        if bytes.len() > MAX_JOB_BYTES {
            return Err(Error::file(path, format!("is longer than {MAX_JOB_BYTES} bytes; is this a job?")));
        }
        let text = String::from_utf8(bytes)
            .map_err(|_| Error::file(path, "is neither JSON text nor a PNG with a request in it"))?;
        Self::from_json(&text, &base)
    }

    /// Checks a request that was put together by hand (flags), as the parser does.
    ///
    /// # Errors
    /// As [`Request::from_json`].
    pub fn checked(&self, base: &Path) -> Result<Request, Error> {
        let text = serde_json::to_string(self).map_err(|e| Error::Internal(e.to_string()))?;
        Self::from_json(&text, base)
    }
}

/// Parses the short form of `inject` that the command line takes: a preset, or `path=weight,path=weight`. `field` names
/// it in messages.
///
/// # Errors
/// If it is neither.
pub fn parse_inject(field: &str, text: &str) -> Result<Inject, Error> {
    parse::inject(field, text)
}

#[cfg(test)]
mod tests;
