//! diffusers' `AutoencoderKL` (Rombach et al., arXiv 2112.10752).

use super::VaeConfig;
use crate::error::ModelError;
use crate::layers::{Around, Attended, Conv2d, GroupNorm, Linear, attend_over};
use crate::load::Loader;
use crate::tensor::Tensor;

/// diffusers fixes this for the autoencoder's norms.
const EPS: f32 = 1e-6;

struct Resnet {
    norm1: GroupNorm,
    conv1: Conv2d,
    norm2: GroupNorm,
    conv2: Conv2d,
    shortcut: Option<Conv2d>,
}

impl Resnet {
    fn load(at: &Loader, inputs: usize, outputs: usize, groups: usize) -> Result<Self, ModelError> {
        Ok(Resnet {
            norm1: at.group_norm("norm1", inputs, groups, EPS)?,
            conv1: at.conv("conv1", inputs, outputs, 3)?,
            norm2: at.group_norm("norm2", outputs, groups, EPS)?,
            conv2: at.conv("conv2", outputs, outputs, 3)?,
            shortcut: if inputs == outputs {
                None
            } else {
                Some(at.conv("conv_shortcut", inputs, outputs, 1)?)
            },
        })
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let h = self.conv1.forward_norm(&self.norm1, x);
        let shortcut = self.shortcut.as_ref().map(|s| s.forward(x));
        let residual = Some(shortcut.as_ref().unwrap_or(x));
        self.conv2.forward_around(Around { norm: Some(&self.norm2), residual, picture: None }, &h)
    }
}

/// Self-attention with one head over all pixels.
struct MidAttention {
    norm: GroupNorm,
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
}

impl MidAttention {
    fn load(at: &Loader, channels: usize, groups: usize) -> Result<Self, ModelError> {
        // Checkpoints saved before diffusers 0.17 use the second spelling.
        let names = if at.has("to_q.weight") {
            ["to_q", "to_k", "to_v", "to_out.0"]
        } else {
            ["query", "key", "value", "proj_attn"]
        };
        let [q, k, v, out] = names.map(|n| at.linear(n, channels, channels, true));
        Ok(MidAttention {
            norm: at.group_norm("group_norm", channels, groups, EPS)?,
            q: q?,
            k: k?,
            v: v?,
            out: out?,
        })
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let tokens = [x.dim(0), x.dim(1) * x.dim(2), x.dim(3)];
        let n = self.norm.forward(x).reshape(tokens);
        let [q, k, v] = Linear::forward_each([&self.q, &self.k, &self.v], &n);
        let all = Attended { k: &k, v: &v, weight: 1.0, mask: None };
        let a = attend_over(&q, &[all], 1, self.q.precision());
        self.out.forward_add(&a.reshape(x.shape()), x)
    }
}

struct Mid {
    first: Resnet,
    attention: Option<MidAttention>,
    second: Resnet,
}

impl Mid {
    fn load(at: &Loader, channels: usize, config: &VaeConfig) -> Result<Self, ModelError> {
        let groups = config.norm_num_groups;
        Ok(Mid {
            first: Resnet::load(&at.at("resnets.0"), channels, channels, groups)?,
            attention: if config.mid_block_add_attention {
                Some(MidAttention::load(&at.at("attentions.0"), channels, groups)?)
            } else {
                None
            },
            second: Resnet::load(&at.at("resnets.1"), channels, channels, groups)?,
        })
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let mut h = self.first.forward(x);
        if let Some(attention) = &self.attention {
            h = attention.forward(&h);
        }
        self.second.forward(&h)
    }
}

/// Resnets at one resolution and the convolution that halves or doubles it.
struct Level {
    resnets: Vec<Resnet>,
    resize: Option<Conv2d>,
}

fn check(config: &VaeConfig, at: &Loader) -> Result<(), ModelError> {
    let levels = config.block_out_channels.len();
    if levels == 0 || levels > 8 || config.layers_per_block == 0 || config.layers_per_block > 16 {
        return Err(at.error("block_out_channels and layers_per_block of the autoencoder are out of range"));
    }
    if config.act_fn != "silu" {
        return Err(at.error(format!("act_fn \"{}\" is not supported; expected silu", config.act_fn)));
    }
    let known = ["DownEncoderBlock2D", "UpDecoderBlock2D"];
    for t in config.down_block_types.iter().chain(&config.up_block_types) {
        if !known.contains(&t.as_str()) {
            return Err(at.error(format!("block type {t} is not supported; known: {}", known.join(", "))));
        }
    }
    Ok(())
}

/// From latents to pictures.
pub struct Decoder {
    post_quant: Option<Conv2d>,
    conv_in: Conv2d,
    mid: Mid,
    up: Vec<Level>,
    norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Decoder {
    /// Takes the decoder's half of the weights.
    ///
    /// # Errors
    /// If a tensor is missing or of another shape than the configuration says.
    pub fn load(config: &VaeConfig, root: &Loader) -> Result<Self, ModelError> {
        check(config, root)?;
        let at = root.at("decoder");
        let (groups, latents) = (config.norm_num_groups, config.latent_channels);
        let widths: Vec<usize> = config.block_out_channels.iter().rev().copied().collect();
        let mut up = Vec::new();
        for (i, &width) in widths.iter().enumerate() {
            let at = at.at(format!("up_blocks.{i}"));
            let mut inputs = widths[i.saturating_sub(1)];
            let mut resnets = Vec::new();
            for j in 0..config.layers_per_block + 1 {
                resnets.push(Resnet::load(&at.at(format!("resnets.{j}")), inputs, width, groups)?);
                inputs = width;
            }
            let resize = if i + 1 < widths.len() {
                Some(at.conv("upsamplers.0.conv", width, width, 3)?)
            } else {
                None
            };
            up.push(Level { resnets, resize });
        }
        let last = config.block_out_channels[0];
        Ok(Decoder {
            post_quant: if config.use_post_quant_conv {
                Some(root.conv("post_quant_conv", latents, latents, 1)?)
            } else {
                None
            },
            conv_in: at.conv("conv_in", latents, widths[0], 3)?,
            mid: Mid::load(&at.at("mid_block"), widths[0], config)?,
            up,
            norm_out: at.group_norm("conv_norm_out", last, groups, EPS)?,
            conv_out: at.conv("conv_out", last, config.out_channels, 3)?,
        })
    }

    /// Latents [batch, h, w, latent channels] (scaling factor divided out) → pictures
    /// [batch, h · factor, w · factor, 3], nominally in -1..1.
    pub fn forward(&self, latents: &Tensor) -> Tensor {
        let mut h = match &self.post_quant {
            Some(conv) => self.conv_in.forward(&conv.forward(latents)),
            None => self.conv_in.forward(latents),
        };
        h = self.mid.forward(&h);
        for level in &self.up {
            for resnet in &level.resnets {
                h = resnet.forward(&h);
            }
            if let Some(conv) = &level.resize {
                h = conv.upsampled(&h);
            }
        }
        self.conv_out.forward_norm(&self.norm_out, &h)
    }
}

/// From pictures to the distribution of their latents.
pub struct Encoder {
    conv_in: Conv2d,
    down: Vec<Level>,
    mid: Mid,
    norm_out: GroupNorm,
    conv_out: Conv2d,
    quant: Option<Conv2d>,
}

impl Encoder {
    /// Takes the encoder's half of the weights.
    ///
    /// # Errors
    /// If a tensor is missing or of another shape than the configuration says.
    pub fn load(config: &VaeConfig, root: &Loader) -> Result<Self, ModelError> {
        check(config, root)?;
        let at = root.at("encoder");
        let groups = config.norm_num_groups;
        let widths = &config.block_out_channels;
        let mut inputs = widths[0];
        let mut down = Vec::new();
        for (i, &width) in widths.iter().enumerate() {
            let at = at.at(format!("down_blocks.{i}"));
            let mut resnets = Vec::new();
            for j in 0..config.layers_per_block {
                resnets.push(Resnet::load(&at.at(format!("resnets.{j}")), inputs, width, groups)?);
                inputs = width;
            }
            let resize = if i + 1 < widths.len() {
                Some(at.conv("downsamplers.0.conv", width, width, 3)?)
            } else {
                None
            };
            down.push(Level { resnets, resize });
        }
        // Mean and logarithm of the variance.
        let moments = 2 * config.latent_channels;
        Ok(Encoder {
            conv_in: at.conv("conv_in", config.in_channels, widths[0], 3)?,
            down,
            mid: Mid::load(&at.at("mid_block"), inputs, config)?,
            norm_out: at.group_norm("conv_norm_out", inputs, groups, EPS)?,
            conv_out: at.conv("conv_out", inputs, moments, 3)?,
            quant: if config.use_quant_conv {
                Some(root.conv("quant_conv", moments, moments, 1)?)
            } else {
                None
            },
        })
    }

    /// Pictures [batch, h, w, 3] in -1..1 → moments [batch, h / factor, w / factor, 2 · latent channels]: the means,
    /// then the logarithms of the variances.
    pub fn forward(&self, pictures: &Tensor) -> Tensor {
        let mut h = self.conv_in.forward(pictures);
        for level in &self.down {
            for resnet in &level.resnets {
                h = resnet.forward(&h);
            }
            if let Some(conv) = &level.resize {
                h = conv.strided(&h, 2, 0, 1);
            }
        }
        let h = self.conv_out.forward_norm(&self.norm_out, &self.mid.forward(&h));
        match &self.quant {
            Some(conv) => conv.forward(&h),
            None => h,
        }
    }
}
