//! The UNet under its original names (see [`crate::unet::LdmNames`]).

use super::{Part, axis, count, rename};
use crate::error::ModelError;
use crate::unet::{LdmNames, UNetConfig};
use crate::weights::Weights;
use serde_json::{Value, json};

/// How wide the heads of attention are.
#[derive(Clone, Copy, Debug)]
pub enum Heads {
    /// So many at every level.
    Count(usize),
    /// So many channels each.
    Width(usize),
}

/// What a family's UNets have in common and their shapes do not tell.
#[derive(Clone, Copy, Debug)]
pub struct UNetFacts {
    /// Heads of attention.
    pub heads: Heads,
    /// Side of the latents it was trained on.
    pub sample_size: usize,
    /// Width of the embedding of each size (`addition_time_embed_dim`).
    pub time_dim: usize,
}

/// One level on the way down.
#[derive(Default)]
struct Level {
    width: usize,
    layers: usize,
    transformers: usize,
}

/// What the shapes are read from, in the one or the other names.
struct Keys {
    conv_in: &'static str,
    conv_out: &'static str,
    middle: &'static str,
    added: &'static str,
    guidance: &'static str,
}

const ORIGINAL: Keys = Keys {
    conv_in: "input_blocks.0.0.weight",
    conv_out: "out.2.weight",
    middle: "middle_block.1",
    added: "label_emb.0.0.weight",
    guidance: "time_embed.cond_proj.weight",
};
const DIFFUSERS: Keys = Keys {
    conv_in: "conv_in.weight",
    conv_out: "conv_out.weight",
    middle: "mid_block.attentions.0",
    added: "add_embedding.linear_1.weight",
    guidance: "time_embedding.cond_proj.weight",
};

/// The UNet in these tensors, which have no prefix any more.
///
/// # Errors
/// If its parts are not those of a UNet as Stable Diffusion has it.
pub fn unet(weights: &Weights, facts: &UNetFacts) -> Result<Part, ModelError> {
    let config = config(weights, facts, &ORIGINAL, &levels(weights)?)?;
    let names = LdmNames::of(&UNetConfig::from_json(&config, weights.source())?);
    let (weights, unknown) = rename(weights, |key| names.diffusers(key));
    Ok(Part { config, weights, unknown })
}

/// The same in Diffusers' names, where no configuration lies beside (ComfyUI-GGUF writes such files).
///
/// # Errors
/// As [`unet`].
pub fn diffusers_unet(weights: &Weights, facts: &UNetFacts) -> Result<Part, ModelError> {
    let config = config(weights, facts, &DIFFUSERS, &diffusers_levels(weights)?)?;
    let names = LdmNames::of(&UNetConfig::from_json(&config, weights.source())?);
    let (weights, unknown) = rename(weights, |key| names.original(key).map(|_| key.to_owned()));
    Ok(Part { config, weights, unknown })
}

fn config(weights: &Weights, facts: &UNetFacts, keys: &Keys, levels: &[Level]) -> Result<Value, ModelError> {
    let widths: Vec<usize> = levels.iter().map(|l| l.width).collect();
    let attended: Vec<bool> = levels.iter().map(|l| l.transformers > 0).collect();
    let heads = match facts.heads {
        Heads::Count(n) => json!(n),
        Heads::Width(width) => json!(widths.iter().map(|w| (w / width).max(1)).collect::<Vec<_>>()),
    };
    let kind = |side: &str, attended: bool| match attended {
        true => format!("CrossAttn{side}Block2D"),
        false => format!("{side}Block2D"),
    };
    let mid = count(weights, |i| format!("{}.transformer_blocks.{i}.attn2.to_k.weight", keys.middle));
    let depths: Vec<usize> =
        levels.iter().map(|l| if l.transformers > 0 { l.transformers } else { mid }.max(1)).collect();
    let depth = if depths.iter().all(|d| *d == 1) { json!(1) } else { json!(depths) };
    if mid != depths[depths.len() - 1] {
        return Err(ModelError::new(
            weights.source(),
            format!(
                "has {mid} transformers in its middle and {} beside it; such UNets are not supported",
                depths[depths.len() - 1]
            ),
        ));
    }
    let mut config = json!({
        "_class_name": "UNet2DConditionModel",
        "act_fn": "silu",
        "attention_head_dim": heads,
        "block_out_channels": widths,
        "cross_attention_dim": axis(weights, &format!("{}.transformer_blocks.0.attn2.to_k.weight", keys.middle), 1)?,
        "down_block_types": attended.iter().map(|a| kind("Down", *a)).collect::<Vec<_>>(),
        "downsample_padding": 1,
        "flip_sin_to_cos": true,
        "freq_shift": 0,
        "in_channels": axis(weights, keys.conv_in, 1)?,
        "layers_per_block": levels[0].layers,
        // Rombach et al.'s `openaimodel.py`: `GroupNorm32` and torch's epsilon.
        "norm_eps": 1e-5,
        "norm_num_groups": 32,
        "out_channels": axis(weights, keys.conv_out, 0)?,
        "sample_size": facts.sample_size,
        "transformer_layers_per_block": depth,
        "up_block_types": attended.iter().rev().map(|a| kind("Up", *a)).collect::<Vec<_>>(),
        "use_linear_projection": axis(weights, &format!("{}.proj_in.weight", keys.middle), 3).is_err(),
    });
    if weights.get(keys.added).is_some() {
        config["addition_embed_type"] = json!("text_time");
        config["addition_time_embed_dim"] = json!(facts.time_dim);
        config["projection_class_embeddings_input_dim"] = json!(axis(weights, keys.added, 1)?);
    }
    if weights.get(keys.guidance).is_some() {
        config["time_cond_proj_dim"] = json!(axis(weights, keys.guidance, 1)?);
    }
    Ok(config)
}

/// Goes down the U: resnets, and between the levels a convolution of stride 2.
fn levels(weights: &Weights) -> Result<Vec<Level>, ModelError> {
    let mut levels = vec![Level::default()];
    for n in 1.. {
        if weights.get(&format!("input_blocks.{n}.0.op.weight")).is_some() {
            levels.push(Level::default());
            continue;
        }
        let conv = format!("input_blocks.{n}.0.in_layers.2.weight");
        if weights.get(&conv).is_none() {
            break;
        }
        let level = levels.last_mut().expect("never empty");
        let transformers =
            count(weights, |i| format!("input_blocks.{n}.1.transformer_blocks.{i}.attn2.to_k.weight"));
        let width = axis(weights, &conv, 0)?;
        if level.layers > 0 && (level.width, level.transformers) != (width, transformers) {
            return Err(ModelError::new(
                weights.source(),
                format!(
                    "the block input_blocks.{n} differs from the one before at the same level; such UNets are not supported"
                ),
            ));
        }
        *level = Level { width, transformers, layers: level.layers + 1 };
    }
    if levels.iter().any(|l| l.layers != levels[0].layers || l.layers == 0) {
        return Err(ModelError::new(
            weights.source(),
            "is not a UNet in original names (input_blocks.1.0.in_layers.2.weight, …), or incomplete",
        ));
    }
    Ok(levels)
}

/// The same, where levels and layers have numbers of their own.
fn diffusers_levels(weights: &Weights) -> Result<Vec<Level>, ModelError> {
    let conv = |i: usize, j: usize| format!("down_blocks.{i}.resnets.{j}.conv1.weight");
    let transformer = |i: usize, j: usize, k: usize| {
        format!("down_blocks.{i}.attentions.{j}.transformer_blocks.{k}.attn2.to_k.weight")
    };
    let level = |i: usize| {
        let layers = count(weights, |j| conv(i, j));
        let depths: Vec<usize> = (0..layers).map(|j| count(weights, |k| transformer(i, j, k))).collect();
        if depths.iter().any(|d| *d != depths[0]) {
            let message =
                format!("has layers of different depth in down_blocks.{i}; such UNets are not supported");
            return Err(ModelError::new(weights.source(), message));
        }
        Ok(Level { width: axis(weights, &conv(i, 0), 0)?, layers, transformers: depths[0] })
    };
    let levels = (0..count(weights, |i| conv(i, 0))).map(level).collect::<Result<Vec<_>, _>>()?;
    if levels.is_empty() || levels.iter().any(|l| l.layers != levels[0].layers) {
        let message =
            "is not a UNet in Diffusers' names (down_blocks.0.resnets.0.conv1.weight, …), or incomplete";
        return Err(ModelError::new(weights.source(), message));
    }
    Ok(levels)
}
