//! `unet/config.json` and what follows from it.

use crate::error::ModelError;
use serde_json::Value;
use std::path::Path;

/// Where the shared widths of one level of the U come from.
#[derive(Clone, Debug, PartialEq)]
pub struct LevelConfig {
    /// Channels.
    pub width: usize,
    /// Resnets on the way down; one more on the way up.
    pub layers: usize,
    /// Heads of its attention.
    pub heads: usize,
    /// Transformer blocks in each attention; 0 where the level has none.
    pub transformers: usize,
    /// Width of the text tokens.
    pub context: usize,
}

/// What the UNet gets beside the timestep.
#[derive(Clone, Debug, PartialEq)]
pub struct AddedConfig {
    /// Width of the embedding of each of the six sizes (`addition_time_embed_dim`).
    pub time_dim: usize,
    /// Width of pooled text and sizes together (`projection_class_embeddings_input_dim`).
    pub inputs: usize,
}

/// A `UNet2DConditionModel`'s shape, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct UNetConfig {
    /// Channels of the latents it reads.
    pub in_channels: usize,
    /// Channels it predicts.
    pub out_channels: usize,
    /// Side of the latents it was trained on.
    pub sample_size: Option<usize>,
    /// The levels from the finest down.
    pub levels: Vec<LevelConfig>,
    /// Whether level i has attention on the way up, in up order (coarsest first).
    pub up_attention: Vec<bool>,
    /// The middle block's transformer depth; 0 if it is a single resnet; None if there is no middle block.
    pub mid: Option<usize>,
    /// Groups of the norms.
    pub groups: usize,
    /// Epsilon of the resnets' norms.
    pub eps: f32,
    /// Whether the timestep's embedding starts with the cosines.
    pub flip_sin_to_cos: bool,
    /// `freq_shift` of the timestep's embedding.
    pub freq_shift: f32,
    /// Padding of the downsampling convolutions.
    pub downsample_padding: usize,
    /// SDXL's `text_time` conditioning.
    pub added: Option<AddedConfig>,
    /// Width of the guidance embedding of distilled models (`time_cond_proj_dim`).
    pub time_cond_dim: Option<usize>,
}

/// Fields that change the network in ways that are not built in, with the only value that is.
const FIXED: &[(&str, &[&str])] = &[
    ("act_fn", &["\"silu\""]),
    ("class_embed_type", &["null"]),
    ("encoder_hid_dim_type", &["null"]),
    ("resnet_time_scale_shift", &["\"default\""]),
    ("time_embedding_type", &["\"positional\""]),
    ("dual_cross_attention", &["false"]),
    ("only_cross_attention", &["false", "null"]),
    ("mid_block_only_cross_attention", &["false", "null"]),
    ("cross_attention_norm", &["null"]),
    ("attention_type", &["\"default\""]),
    ("center_input_sample", &["false"]),
    ("resnet_skip_time_act", &["false"]),
    ("conv_in_kernel", &["3"]),
    ("conv_out_kernel", &["3"]),
    ("time_embedding_act_fn", &["null"]),
    ("timestep_post_act", &["null"]),
    ("time_embedding_dim", &["null"]),
    ("mid_block_scale_factor", &["1", "1.0"]),
    ("num_class_embeds", &["null"]),
    ("class_embeddings_concat", &["false"]),
    ("reverse_transformer_layers_per_block", &["null"]),
    ("dropout", &["0.0", "0"]),
];

impl UNetConfig {
    /// Reads the fields with diffusers' defaults.
    ///
    /// # Errors
    /// Names the field that is missing, out of range, or asks for a variant that is not built in.
    pub fn from_json(json: &Value, path: &Path) -> Result<Self, ModelError> {
        let field = Fields { json, path };
        for (name, allowed) in FIXED {
            if let Some(v) = json.get(*name) {
                if !allowed.contains(&v.to_string().as_str()) {
                    return Err(
                        field.error(name, &format!("is {v}, but only {} is supported", allowed.join(" or ")))
                    );
                }
            }
        }
        let widths = field.list("block_out_channels", &[320, 640, 1280, 1280])?;
        let levels = widths.len();
        let down = field.names("down_block_types", &["CrossAttnDownBlock2D", "DownBlock2D"])?;
        let up = field.names("up_block_types", &["CrossAttnUpBlock2D", "UpBlock2D"])?;
        if levels == 0 || levels > 8 || down.len() != levels || up.len() != levels {
            return Err(field.error(
                "block_out_channels",
                &format!(
                    "has {levels} levels, down_block_types {}, up_block_types {}; they must agree",
                    down.len(),
                    up.len()
                ),
            ));
        }
        let layers = field.per_level("layers_per_block", 2, levels)?;
        // Old configurations call the number of heads `attention_head_dim`; diffusers keeps that reading.
        let heads =
            if field.given("num_attention_heads") { "num_attention_heads" } else { "attention_head_dim" };
        let heads = field.per_level(heads, 8, levels)?;
        let transformers = field.per_level("transformer_layers_per_block", 1, levels)?;
        let context = field.per_level("cross_attention_dim", 1280, levels)?;
        let mut level_configs = Vec::new();
        for i in 0..levels {
            let attention = down[i];
            let up_attention = up[levels - 1 - i];
            if (attention || up_attention) && (heads[i] == 0 || widths[i] % heads[i] != 0) {
                return Err(field.error("attention_head_dim", "does not divide the width of its level"));
            }
            level_configs.push(LevelConfig {
                width: widths[i],
                layers: layers[i],
                heads: heads[i],
                transformers: if attention { transformers[i] } else { 0 },
                context: context[i],
            });
        }
        let groups = field.number("norm_num_groups", 32)?;
        if groups == 0 || widths.iter().any(|w| w % groups != 0) {
            return Err(field.error("norm_num_groups", "does not divide every level's width"));
        }
        for (i, (a, b)) in down.iter().zip(up.iter().rev()).enumerate() {
            if a != b {
                return Err(field
                    .error("up_block_types", &format!("level {i} has attention on one side of the U only")));
            }
        }
        let mid = match json.get("mid_block_type") {
            None => Some(transformers[levels - 1]),
            Some(Value::String(s)) if s == "UNetMidBlock2DCrossAttn" => Some(transformers[levels - 1]),
            // diffusers builds it with no further layer and no attention.
            Some(Value::String(s)) if s == "UNetMidBlock2D" => Some(0),
            Some(Value::Null) => None,
            Some(other) => {
                return Err(field.error(
                    "mid_block_type",
                    &format!("{other} is not supported (UNetMidBlock2DCrossAttn, UNetMidBlock2D or null is)"),
                ));
            }
        };
        let added = match json.get("addition_embed_type") {
            None | Some(Value::Null) => None,
            Some(Value::String(s)) if s == "text_time" => Some(AddedConfig {
                time_dim: field.number("addition_time_embed_dim", 256)?,
                inputs: field.number("projection_class_embeddings_input_dim", 2816)?,
            }),
            Some(other) => {
                return Err(field.error(
                    "addition_embed_type",
                    &format!("{other} is not supported (text_time or null is)"),
                ));
            }
        };
        if let Some(a) = &added {
            if a.time_dim < 2 || a.time_dim > 4096 || a.inputs <= 6 * a.time_dim {
                return Err(field.error(
                    "projection_class_embeddings_input_dim",
                    "leaves no room for pooled text beside six sizes",
                ));
            }
        }
        let sample_size = match json.get("sample_size") {
            Some(Value::Number(n)) => n.as_u64().map(|n| n as usize),
            _ => None,
        };
        let time_cond_dim = match json.get("time_cond_proj_dim") {
            None | Some(Value::Null) => None,
            Some(_) => Some(field.number("time_cond_proj_dim", 256)?),
        };
        Ok(UNetConfig {
            in_channels: field.number("in_channels", 4)?,
            out_channels: field.number("out_channels", 4)?,
            sample_size,
            levels: level_configs,
            up_attention: up,
            mid,
            groups,
            eps: json.get("norm_eps").and_then(Value::as_f64).unwrap_or(1e-5) as f32,
            flip_sin_to_cos: json.get("flip_sin_to_cos").and_then(Value::as_bool).unwrap_or(true),
            freq_shift: json.get("freq_shift").and_then(Value::as_f64).unwrap_or(0.0) as f32,
            downsample_padding: json.get("downsample_padding").and_then(Value::as_u64).unwrap_or(1).min(1)
                as usize,
            added,
            time_cond_dim,
        })
    }

    /// Width of the timestep's embedding inside the network.
    pub fn time_dim(&self) -> usize {
        self.levels[0].width * 4
    }

    /// Width of the text tokens.
    pub fn context_dim(&self) -> usize {
        self.levels.last().map_or(0, |l| l.context)
    }
}

struct Fields<'a> {
    json: &'a Value,
    path: &'a Path,
}

/// No width or count in a UNet comes near this.
const MOST: u64 = 1 << 16;

impl Fields<'_> {
    fn error(&self, name: &str, what: &str) -> ModelError {
        ModelError::new(self.path, format!("the field {name} {what}"))
    }

    fn given(&self, name: &str) -> bool {
        self.json.get(name).is_some_and(|v| !v.is_null())
    }

    fn whole(&self, name: &str, v: &Value) -> Result<usize, ModelError> {
        match v.as_u64() {
            Some(n) if n > 0 && n <= MOST => Ok(n as usize),
            _ => Err(self.error(name, &format!("is {v}; expected a whole number from 1 to {MOST}"))),
        }
    }

    fn number(&self, name: &str, default: usize) -> Result<usize, ModelError> {
        match self.json.get(name) {
            None | Some(Value::Null) => Ok(default),
            Some(v) => self.whole(name, v),
        }
    }

    fn list(&self, name: &str, default: &[usize]) -> Result<Vec<usize>, ModelError> {
        match self.json.get(name) {
            None | Some(Value::Null) => Ok(default.to_vec()),
            Some(Value::Array(a)) => a.iter().map(|v| self.whole(name, v)).collect(),
            Some(v) => Err(self.error(name, &format!("is {v}; expected a list of whole numbers"))),
        }
    }

    fn per_level(&self, name: &str, default: usize, levels: usize) -> Result<Vec<usize>, ModelError> {
        match self.json.get(name) {
            Some(Value::Array(_)) => {
                let list = self.list(name, &[])?;
                if list.len() == levels {
                    Ok(list)
                } else {
                    Err(self.error(name, &format!("has {} entries for {levels} levels", list.len())))
                }
            }
            _ => Ok(vec![self.number(name, default)?; levels]),
        }
    }

    /// Block types as "has attention".
    fn names(&self, name: &str, known: &[&str; 2]) -> Result<Vec<bool>, ModelError> {
        let default = if known[0].contains("Down") {
            vec![true, true, true, false]
        } else {
            vec![false, true, true, true]
        };
        let Some(Value::Array(a)) = self.json.get(name) else { return Ok(default) };
        a.iter()
            .map(|v| match v.as_str() {
                Some(s) if s == known[0] => Ok(true),
                Some(s) if s == known[1] => Ok(false),
                _ => Err(self.error(name, &format!("holds {v}; known: {}", known.join(", ")))),
            })
            .collect()
    }
}
