//! The families of base models: one file each, one row each in [`FAMILIES`]. Nothing outside asks which family it is.

mod fast;
mod sd15;
mod sdxl;

pub(crate) use fast::fill;
pub use fast::{Fast, SAFE, fast_names};

use crate::encode::Prompts;
use crate::error::Error;
use crate::hidiffusion::Resizing;
use crate::model::Place;
use instantstyle_nets::Tensor;
use instantstyle_nets::original::UNetFacts;
use instantstyle_nets::unet::UNetConfig;
use instantstyle_nets::weights::Weights;
use serde_json::Value;

/// Weights by part of the UNet: a preset of `inject`.
pub type Blocks = &'static [(&'static str, f64)];

/// What distinguishes one family.
pub struct Family {
    /// Short name, as in reports.
    pub name: &'static str,
    /// Long name.
    pub title: &'static str,
    /// Whether a UNet belongs to it.
    pub matches: fn(&UNetConfig) -> bool,
    /// The parts of the UNet behind `style` and `layout` (`style+layout` is both, `all` everything).
    pub style: Blocks,
    /// See `style`.
    pub layout: Blocks,
    /// The parts of the UNet that carry content and style in B-LoRAs, where they are known.
    pub b_lora: &'static [(&'static str, &'static str)],
    /// Settings of distilled models, by name.
    pub fast: &'static [Fast],
    /// Scale of subtraction that the reference scripts use.
    pub subtract_scale: f64,
    /// The text tower whose space bigG adapters share, if the family has one.
    pub feature_tower: Option<&'static str>,
    /// Components of a folder, beside `unet`, `vae` and `scheduler`, that must be there.
    pub components: &'static [&'static str],
    /// Corrects `scheduler_config.json` as the family's pipeline does in diffusers; the flag says whether the
    /// checkpoint's own sampler is used.
    pub scheduler: fn(&mut Value, bool),
    /// What checkpoints in original names leave unsaid.
    pub original: Original,
    /// A published linear map from latents to red, green and blue from 0 to 255, per channel, and what is added: for previews.
    pub latent_rgb: Option<(&'static [[f64; 3]], &'static [f64; 3])>,
    /// How HiDiffusion treats the family: `unet` for latents whose sides are so many times the trained ones, the smaller
    /// factor; the flag says whether ControlNets take part and the start is noise.
    pub hidiffusion: fn(&UNetConfig, f64, bool) -> Resizing,
    /// Encodes prompts: see [`TextFeatures`].
    pub encode: fn(&Prompts, &mut dyn FnMut(String)) -> Result<TextFeatures, Error>,
}

/// What a family's single files, in the names of its first publication, leave unsaid.
pub struct Original {
    /// Whether a UNet's tensors (without a prefix) are of this family.
    pub matches: fn(&Weights) -> bool,
    /// Of the UNet.
    pub unet: UNetFacts,
    /// Of the autoencoder.
    pub scaling_factor: f64,
    /// The text towers.
    pub towers: &'static [OriginalTower],
    /// `scheduler_config.json` of the published model.
    pub scheduler: fn() -> Value,
    /// `model_index.json` of the published model.
    pub index: fn() -> Value,
}

/// A text tower of a single file.
pub struct OriginalTower {
    /// What its keys begin with.
    pub prefix: &'static str,
    /// Whether its names are OpenCLIP's rather than transformers'.
    pub open_clip: bool,
    /// Its folder in a Diffusers model.
    pub encoder: &'static str,
    /// Its tokenizer's folder.
    pub tokenizer: &'static str,
    /// The padding of its tokenizer.
    pub pad: &'static str,
}

/// What the UNet takes of prompts; row 0 is the negative prompt where guidance is on.
pub struct TextFeatures {
    /// [rows, tokens, width].
    pub tokens: Tensor,
    /// [rows, width], where the family has pooled conditioning.
    pub pooled: Option<Tensor>,
}

/// All families.
pub static FAMILIES: &[&Family] = &[&sdxl::FAMILY, &sd15::FAMILY];

/// The family of a UNet.
pub fn of(config: &UNetConfig) -> &'static Family {
    FAMILIES.iter().find(|f| (f.matches)(config)).copied().unwrap_or(&sd15::FAMILY)
}

/// True if `model_index.json` lists the component as present.
pub fn has_component(model: &Place, index: &Value, name: &str) -> bool {
    let listed = index.get(name).and_then(Value::as_array).is_some_and(|a| a.iter().any(|v| !v.is_null()));
    listed && model.join(name).exists()
}
