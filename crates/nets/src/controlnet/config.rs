//! A ControlNet's shape: from its `config.json`, or from its tensors and the UNet that it was made for.

use crate::error::ModelError;
use crate::unet::{AddedConfig, LdmNames, LevelConfig, UNetConfig};
use crate::weights::Weights;
use serde_json::{Value, json};
use std::path::Path;

/// A `ControlNetModel`'s shape, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct ControlNetConfig {
    /// The UNet whose first half it copies.
    pub trunk: UNetConfig,
    /// Channels of the small network from the control picture to the latents' size, finest first.
    pub hint_widths: Vec<usize>,
    /// Whether it reads blue first.
    pub bgr: bool,
    /// Whether its residuals are averaged over all pixels, and reach the prompt's row alone (`global_pool_conditions`).
    pub pooled: bool,
}

/// Channels of the published ControlNets' control embedding.
const HINT_WIDTHS: [u64; 4] = [16, 32, 96, 256];

impl ControlNetConfig {
    /// Reads the fields with diffusers' defaults.
    ///
    /// # Errors
    /// Names the field that is missing, out of range, or asks for a variant that is not built in.
    pub fn from_json(json: &Value, path: &Path) -> Result<Self, ModelError> {
        let error = |name: &str, what: String| ModelError::new(path, format!("the field {name} {what}"));
        let mut unet = json.clone();
        // Only the way down is there: the way up of such a UNet mirrors it.
        let down = json.get("down_block_types").and_then(Value::as_array);
        if let Some(down) = down {
            let up = |kind: &Value| kind.as_str().map(|k| k.replace("Down", "Up"));
            unet["up_block_types"] = json!(down.iter().rev().map(up).collect::<Vec<_>>());
        }
        let trunk = UNetConfig::from_json(&unet, path)?;
        if trunk.mid.is_none() {
            return Err(error("mid_block_type", "is null, but every ControlNet has a middle".into()));
        }
        match json.get("conditioning_channels").and_then(Value::as_u64) {
            None | Some(3) => {}
            Some(n) => {
                return Err(error("conditioning_channels", format!("is {n}, but only 3 is supported")));
            }
        }
        let widths = match json.get("conditioning_embedding_out_channels") {
            None | Some(Value::Null) => HINT_WIDTHS.map(Some).to_vec(),
            Some(list) => list.as_array().map(|l| l.iter().map(Value::as_u64).collect()).unwrap_or_default(),
        };
        let sound = |w: &Option<u64>| w.filter(|w| (1..=1 << 16).contains(w)).map(|w| w as usize);
        let hint_widths: Vec<usize> = widths.iter().filter_map(sound).collect();
        if hint_widths.len() != widths.len() || !(1..=16).contains(&widths.len()) {
            return Err(error(
                "conditioning_embedding_out_channels",
                "must be a list of 1 to 16 widths, e.g. [16, 32, 96, 256]".into(),
            ));
        }
        let bgr = match json.get("controlnet_conditioning_channel_order").and_then(Value::as_str) {
            None | Some("rgb") => false,
            Some("bgr") => true,
            Some(other) => {
                let what = format!("is \"{}\"; expected rgb or bgr", other.escape_debug());
                return Err(error("controlnet_conditioning_channel_order", what));
            }
        };
        let pooled = json.get("global_pool_conditions").and_then(Value::as_bool).unwrap_or(false);
        Ok(ControlNetConfig { trunk, hint_widths, bgr, pooled })
    }

    /// From the shapes of tensors in diffusers' names. What these do not tell (heads, groups of the norms, …) is as in
    /// `base`, the UNet that it is to work with.
    ///
    /// # Errors
    /// If these are not the tensors of a ControlNet.
    pub fn of_weights(weights: &Weights, base: &UNetConfig) -> Result<Self, ModelError> {
        let axis = |key: &str, axis: usize| {
            let tensor = weights.get(key);
            tensor.and_then(|t| t.shape().get(axis).copied()).filter(|n| *n > 0).ok_or_else(|| {
                ModelError::new(
                    weights.source(),
                    format!("has no tensor {key} of a known shape; is this a ControlNet for SD1.5 or SDXL?"),
                )
            })
        };
        let count =
            |key: &dyn Fn(usize) -> String| (0..64).take_while(|i| weights.get(&key(*i)).is_some()).count();
        let depth = |place: &str| count(&|t| format!("{place}.transformer_blocks.{t}.attn2.to_k.weight"));
        let number = count(&|i| format!("down_blocks.{i}.resnets.0.conv1.weight"));
        let mut levels = Vec::new();
        for i in 0..number {
            let width = axis(&format!("down_blocks.{i}.resnets.0.conv1.weight"), 0)?;
            let transformers = depth(&format!("down_blocks.{i}.attentions.0"));
            let context = match transformers {
                0 => base.context_dim(),
                _ => {
                    axis(&format!("down_blocks.{i}.attentions.0.transformer_blocks.0.attn2.to_k.weight"), 1)?
                }
            };
            levels.push(LevelConfig {
                width,
                layers: count(&|j| format!("down_blocks.{i}.resnets.{j}.conv1.weight")),
                heads: base.levels.get(i).map_or(1, |l| l.heads),
                transformers,
                context,
            });
        }
        axis("down_blocks.0.resnets.0.conv1.weight", 0)?;
        axis("mid_block.resnets.0.conv1.weight", 0)?;
        let added = match weights.get("add_embedding.linear_1.weight") {
            None => None,
            Some(_) => Some(AddedConfig {
                time_dim: base.added.as_ref().map_or(256, |a| a.time_dim),
                inputs: axis("add_embedding.linear_1.weight", 1)?,
            }),
        };
        let mut hint_widths = vec![axis("controlnet_cond_embedding.conv_in.weight", 0)?];
        for i in 0..count(&|i| format!("controlnet_cond_embedding.blocks.{i}.weight")) / 2 {
            hint_widths.push(axis(&format!("controlnet_cond_embedding.blocks.{}.weight", 2 * i + 1), 0)?);
        }
        let up_attention = levels.iter().rev().map(|l| l.transformers > 0).collect();
        let trunk = UNetConfig {
            in_channels: axis("conv_in.weight", 1)?,
            sample_size: None,
            up_attention,
            levels,
            mid: Some(depth("mid_block.attentions.0")),
            added,
            time_cond_dim: None,
            ..base.clone()
        };
        Ok(ControlNetConfig { trunk, hint_widths, bgr: false, pooled: false })
    }

    /// Pixels per latent, in each direction.
    pub fn factor(&self) -> usize {
        1 << (self.hint_widths.len() - 1)
    }

    /// Most bytes alive while the hint is computed, beside the picture: its copy and two activations of its size.
    pub fn hint_bytes(&self, height: usize, width: usize) -> u64 {
        (height * width * (3 + 2 * self.hint_widths[0]) * 4) as u64
    }

    /// Bytes of the residuals for `rows` latents of this size.
    pub fn residual_bytes(&self, rows: usize, height: usize, width: usize) -> u64 {
        let levels = &self.trunk.levels;
        let pixels = |i: usize| rows * height.div_ceil(1 << i) * width.div_ceil(1 << i);
        let mut values = pixels(0) * levels[0].width;
        for (i, level) in levels.iter().enumerate() {
            values += level.layers * pixels(i) * level.width;
            // The convolution to the next level, or, after the last one, the middle.
            values += pixels((i + 1).min(levels.len() - 1)) * level.width;
        }
        (values * 4) as u64
    }

    /// True if what it gives can be added to such a UNet, whose latents have `channels`.
    pub fn fits(&self, unet: &UNetConfig, channels: usize) -> bool {
        let t = &self.trunk;
        let skips = |c: &UNetConfig| c.levels.iter().map(|l| (l.width, l.layers)).collect::<Vec<_>>();
        let attends = t.levels.iter().any(|l| l.transformers > 0) || t.mid.is_some_and(|depth| depth > 0);
        skips(t) == skips(unet)
            && unet.mid.is_some()
            && t.in_channels == channels
            && t.added.as_ref().map(|a| a.inputs) == unet.added.as_ref().map(|a| a.inputs)
            && (!attends || t.context_dim() == unet.context_dim())
    }
}

/// True if the keys are those of a ControlNet, of diffusers or original (those inside a whole checkpoint count, too).
pub fn is_controlnet(weights: &Weights) -> bool {
    ["controlnet_cond_embedding.", "control_model.", "input_hint_block."]
        .iter()
        .any(|p| weights.has_prefix(p))
}

/// The tensors under diffusers' names: original ones (`cldm/cldm.py`: `control_model.input_blocks.…`, also without the
/// prefix) are renamed as in `base`, the UNet that it is to work with; a full checkpoint's other parts are left out.
pub fn diffusers_names(weights: &Weights, base: &UNetConfig) -> Weights {
    let weights = match weights.has_prefix("control_model.") {
        true => weights.strip_prefix("control_model."),
        false => weights.clone(),
    };
    if !weights.has_prefix("input_hint_block.") {
        return weights;
    }
    // The convolutions of the hint are numbered together with the activations between them.
    let hints = (0..64).filter(|i| weights.has_prefix(&format!("input_hint_block.{i}."))).max().unwrap_or(0);
    let names = LdmNames::of(base);
    weights.renamed(|key| {
        if let Some(rest) = key.strip_prefix("input_hint_block.") {
            let (number, rest) = rest.split_once('.')?;
            let number: usize = number.parse().ok()?;
            return Some(match number {
                0 => format!("controlnet_cond_embedding.conv_in.{rest}"),
                n if n == hints => format!("controlnet_cond_embedding.conv_out.{rest}"),
                n => format!("controlnet_cond_embedding.blocks.{}.{rest}", n / 2 - 1),
            });
        }
        if let Some(rest) = key.strip_prefix("zero_convs.") {
            // Each stands in a sequence of its own: `zero_convs.3.0.weight`.
            return Some(format!("controlnet_down_blocks.{}", rest.replacen(".0.", ".", 1)));
        }
        if let Some(rest) = key.strip_prefix("middle_block_out.0.") {
            return Some(format!("controlnet_mid_block.{rest}"));
        }
        names.diffusers(key)
    })
}
