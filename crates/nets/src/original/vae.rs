//! The autoencoder under its original names (`first_stage_model.*`: Rombach et al.'s `diffusionmodules/model.py`).

use super::{Part, axis, count, rename};
use crate::error::ModelError;
use crate::unet::replaced;
use crate::weights::Weights;
use serde_json::json;

/// The names of one autoencoder's parts on both sides.
pub struct VaeNames(Vec<(String, String)>);

impl VaeNames {
    /// The parts of an autoencoder with so many levels and so many resnets per level of its encoder.
    pub fn of(levels: usize, layers: usize) -> Self {
        let mut names = Vec::new();
        let mut add = |ours: String, theirs: String| names.push((ours, theirs));
        for side in ["encoder", "decoder"] {
            for (ours, theirs) in [("resnets.0", "block_1"), ("resnets.1", "block_2")] {
                add(
                    format!("{side}.mid_block.{ours}.conv_shortcut"),
                    format!("{side}.mid.{theirs}.nin_shortcut"),
                );
                add(format!("{side}.mid_block.{ours}"), format!("{side}.mid.{theirs}"));
            }
            for (ours, theirs) in [
                ("group_norm", "norm"),
                ("to_q", "q"),
                ("to_k", "k"),
                ("to_v", "v"),
                ("to_out.0", "proj_out"),
            ] {
                add(format!("{side}.mid_block.attentions.0.{ours}"), format!("{side}.mid.attn_1.{theirs}"));
            }
            add(format!("{side}.conv_norm_out"), format!("{side}.norm_out"));
        }
        for i in 0..levels {
            // The decoder's levels are counted from the other end.
            for (side, level, end, sampler, n) in [
                ("encoder.down", i, "down_blocks", "downsample", layers),
                ("decoder.up", levels - 1 - i, "up_blocks", "upsample", layers + 1),
            ] {
                let network = &side[..7];
                for j in 0..n {
                    let (ours, theirs) =
                        (format!("{network}.{end}.{i}.resnets.{j}"), format!("{side}.{level}.block.{j}"));
                    add(format!("{ours}.conv_shortcut"), format!("{theirs}.nin_shortcut"));
                    add(ours, theirs);
                }
                add(format!("{network}.{end}.{i}.{sampler}rs.0"), format!("{side}.{level}.{sampler}"));
            }
        }
        for same in [
            "encoder.conv_in",
            "encoder.conv_out",
            "decoder.conv_in",
            "decoder.conv_out",
            "quant_conv",
            "post_quant_conv",
        ] {
            add(same.into(), same.into());
        }
        VaeNames(names)
    }

    /// The original name of a tensor that diffusers calls `key`.
    pub fn original(&self, key: &str) -> Option<String> {
        // Names before diffusers 0.17.
        let older = [("query", "q"), ("key", "k"), ("value", "v"), ("proj_attn", "proj_out")];
        for side in ["encoder", "decoder"] {
            let rest = key.strip_prefix(side).and_then(|k| k.strip_prefix(".mid_block.attentions.0."));
            for (ours, theirs) in older {
                if let Some(end) = rest.and_then(|r| r.strip_prefix(ours)).filter(|e| e.starts_with('.')) {
                    return Some(format!("{side}.mid.attn_1.{theirs}{end}"));
                }
            }
        }
        replaced(key, self.0.iter().map(|(ours, theirs)| (ours, theirs)))
    }

    /// diffusers' name of a tensor that the original code calls `key`.
    pub fn diffusers(&self, key: &str) -> Option<String> {
        replaced(key, self.0.iter().map(|(ours, theirs)| (theirs, ours)))
    }
}

/// The autoencoder in these tensors, which have no prefix any more. `scaling_factor` and `sample_size` (pixels) are the
/// family's.
///
/// # Errors
/// If its parts are not those of an autoencoder as Stable Diffusion has it.
pub fn vae(weights: &Weights, scaling_factor: f64, sample_size: usize) -> Result<Part, ModelError> {
    let levels = count(weights, |i| format!("decoder.up.{i}.block.0.conv1.weight"));
    let layers = count(weights, |j| format!("decoder.up.0.block.{j}.conv1.weight")).saturating_sub(1);
    if levels == 0 || layers == 0 {
        return Err(ModelError::new(
            weights.source(),
            "has no autoencoder in original names (decoder.up.0.block.0.conv1.weight, …), or is incomplete",
        ));
    }
    let widths = (0..levels)
        .map(|i| axis(weights, &format!("decoder.up.{i}.block.0.conv1.weight"), 0))
        .collect::<Result<Vec<_>, _>>()?;
    let has = |key: &str| weights.get(key).is_some();
    let config = json!({
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": widths,
        "down_block_types": vec!["DownEncoderBlock2D"; levels],
        "in_channels": 3,
        "latent_channels": axis(weights, "decoder.conv_in.weight", 1)?,
        "layers_per_block": layers,
        "mid_block_add_attention": has("decoder.mid.attn_1.q.weight"),
        "norm_num_groups": 32,
        "out_channels": axis(weights, "decoder.conv_out.weight", 0)?,
        "sample_size": sample_size,
        "scaling_factor": scaling_factor,
        "up_block_types": vec!["UpDecoderBlock2D"; levels],
        "use_post_quant_conv": has("post_quant_conv.weight"),
        "use_quant_conv": has("quant_conv.weight"),
    });
    let names = VaeNames::of(levels, layers);
    let (weights, unknown) = rename(weights, |key| names.diffusers(key));
    Ok(Part { config, weights, unknown })
}
