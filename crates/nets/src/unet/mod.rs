//! The denoising network: diffusers' `UNet2DConditionModel` as Stable Diffusion 1.5 and XL use it
//! (Rombach et al., arXiv 2112.10752; Podell et al., arXiv 2307.01952).
//!
//! A forward pass changes nothing: all that stays the same over the steps is computed once beforehand, the keys and
//! values of the text ([`UNet::text`]) and what the timesteps add to each resnet ([`UNet::times`]). Image tokens come
//! in through [`Injections`], which the network only reads.

mod blocks;
mod config;
mod inject;
mod ldm;
mod sites;

pub use config::{AddedConfig, LevelConfig, UNetConfig};
pub use inject::{Branch, Injections, KeyValue};
pub use ldm::LdmNames;
pub use sites::{Site, covers, sites};

use crate::error::ModelError;
use crate::layers::{Activation, Conv2d, GroupNorm, Linear, activate};
use crate::load::Loader;
use crate::tensor::Tensor;
use crate::weights::Weights;
use blocks::{Resnet, Spatial};
use std::fmt::Arguments;

/// Resnets with their attentions at one level, and the convolution to the next.
struct Level {
    resnets: Vec<Resnet>,
    attentions: Vec<Spatial>,
    resize: Option<Conv2d>,
}

struct Mid {
    first: Resnet,
    attention: Option<Spatial>,
    second: Resnet,
}

/// Two linear layers with SiLU between.
struct Embedding(Linear, Linear);

impl Embedding {
    fn load(at: &Loader, inputs: usize, outputs: usize) -> Result<Self, ModelError> {
        Ok(Embedding(
            at.linear("linear_1", inputs, outputs, true)?,
            at.linear("linear_2", outputs, outputs, true)?,
        ))
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        self.1.forward(&activate(Activation::Silu, self.0.forward(x)))
    }
}

/// The network with its weights.
pub struct UNet {
    config: UNetConfig,
    sites: Vec<Site>,
    conv_in: Conv2d,
    time: Embedding,
    /// What distilled models add for the strength of guidance.
    guidance: Option<Linear>,
    added: Option<Embedding>,
    down: Vec<Level>,
    mid: Option<Mid>,
    up: Vec<Level>,
    norm_out: GroupNorm,
    conv_out: Conv2d,
}

/// SDXL's conditioning beside the tokens.
pub struct Added<'a> {
    /// Pooled text [batch, width].
    pub pooled: &'a Tensor,
    /// Original size, crop, target size: six numbers per row of the batch.
    pub sizes: &'a [[f32; 6]],
}

/// The keys and values of the text at every site, for one batch of prompts.
pub struct TextContext(Vec<KeyValue>);

/// What each timestep adds to each resnet.
pub struct Times {
    /// Per resnet in forward order: [steps · batch, channels].
    per_resnet: Vec<Tensor>,
    batch: usize,
}

/// Numbers places in forward order while the network is built.
#[derive(Default)]
struct Counter {
    resnets: usize,
    sites: usize,
}

impl UNet {
    /// Takes the network from weights.
    ///
    /// # Errors
    /// If a tensor is missing or of another shape than the configuration says.
    pub fn load(config: &UNetConfig, weights: &Weights) -> Result<Self, ModelError> {
        let at = Loader::new(weights);
        let c = config;
        let levels = c.levels.len();
        let time_dim = c.time_dim();
        let mut count = Counter::default();
        let mut skips = vec![c.levels[0].width];
        let mut down = Vec::new();
        let mut inputs = c.levels[0].width;
        for (i, level) in c.levels.iter().enumerate() {
            let at = at.at(format!("down_blocks.{i}"));
            let (mut resnets, mut attentions) = (Vec::new(), Vec::new());
            for j in 0..level.layers {
                resnets.push(Resnet::load(
                    &at.at(format!("resnets.{j}")),
                    inputs,
                    level.width,
                    c,
                    &mut count,
                )?);
                if level.transformers > 0 {
                    attentions.push(Spatial::load(
                        &at.at(format!("attentions.{j}")),
                        level,
                        level.transformers,
                        c,
                        &mut count,
                    )?);
                }
                inputs = level.width;
                skips.push(level.width);
            }
            let resize = if i + 1 < levels {
                skips.push(level.width);
                Some(at.conv("downsamplers.0.conv", level.width, level.width, 3)?)
            } else {
                None
            };
            down.push(Level { resnets, attentions, resize });
        }
        let mid = match c.mid {
            None => None,
            Some(depth) => {
                let (at, level) = (at.at("mid_block"), &c.levels[levels - 1]);
                let first = Resnet::load(&at.at("resnets.0"), inputs, inputs, c, &mut count)?;
                let attention = Some(Spatial::load(&at.at("attentions.0"), level, depth, c, &mut count)?);
                let second = Resnet::load(&at.at("resnets.1"), inputs, inputs, c, &mut count)?;
                Some(Mid { first, attention, second })
            }
        };
        let mut up = Vec::new();
        for i in 0..levels {
            let level = &c.levels[levels - 1 - i];
            let at = at.at(format!("up_blocks.{i}"));
            let (mut resnets, mut attentions) = (Vec::new(), Vec::new());
            for j in 0..level.layers + 1 {
                let skip =
                    skips.pop().ok_or_else(|| at.error("layers_per_block does not match up and down"))?;
                resnets.push(Resnet::load(
                    &at.at(format!("resnets.{j}")),
                    inputs + skip,
                    level.width,
                    c,
                    &mut count,
                )?);
                if level.transformers > 0 {
                    attentions.push(Spatial::load(
                        &at.at(format!("attentions.{j}")),
                        level,
                        level.transformers,
                        c,
                        &mut count,
                    )?);
                }
                inputs = level.width;
            }
            let resize =
                if i + 1 < levels { Some(at.conv("upsamplers.0.conv", inputs, inputs, 3)?) } else { None };
            up.push(Level { resnets, attentions, resize });
        }
        Ok(UNet {
            sites: sites(c),
            conv_in: at.conv("conv_in", c.in_channels, c.levels[0].width, 3)?,
            time: Embedding::load(&at.at("time_embedding"), c.levels[0].width, time_dim)?,
            guidance: match c.time_cond_dim {
                Some(dim) => Some(at.linear("time_embedding.cond_proj", dim, c.levels[0].width, false)?),
                None => None,
            },
            added: match &c.added {
                Some(a) => Some(Embedding::load(&at.at("add_embedding"), a.inputs, time_dim)?),
                None => None,
            },
            down,
            mid,
            up,
            norm_out: at.group_norm("conv_norm_out", c.levels[0].width, c.groups, c.eps)?,
            conv_out: at.conv("conv_out", c.levels[0].width, c.out_channels, 3)?,
            config: c.clone(),
        })
    }

    /// The configuration.
    pub fn config(&self) -> &UNetConfig {
        &self.config
    }

    /// The attention sites in forward order.
    pub fn sites(&self) -> &[Site] {
        &self.sites
    }

    /// Keys and values of text tokens [batch, tokens, context] at every site.
    pub fn text(&self, tokens: &Tensor) -> TextContext {
        let spatials =
            self.levels_down().chain(self.mid.iter().flat_map(|m| &m.attention)).chain(self.levels_up());
        TextContext(spatials.flat_map(|s| &s.blocks).map(|b| b.cross_attention.key_value(tokens)).collect())
    }

    fn levels_down(&self) -> impl Iterator<Item = &Spatial> {
        self.down.iter().flat_map(|l| &l.attentions)
    }

    fn levels_up(&self) -> impl Iterator<Item = &Spatial> {
        self.up.iter().flat_map(|l| &l.attentions)
    }

    /// What the given timesteps add to each resnet, for a batch of `batch` rows. `guidance` is for distilled models
    /// that take its strength as an input.
    ///
    /// # Panics
    /// If SDXL's conditioning is needed and missing, or of another width.
    pub fn times(
        &self,
        timesteps: &[f64],
        batch: usize,
        added: Option<&Added>,
        guidance: Option<f64>,
    ) -> Times {
        let c = &self.config;
        let width = c.levels[0].width;
        let mut waves = Tensor::zeros([timesteps.len(), width]);
        for (t, row) in timesteps.iter().zip(waves.data_mut().chunks_exact_mut(width)) {
            sinusoids(*t as f32, c.flip_sin_to_cos, c.freq_shift, row);
        }
        if let (Some(layer), Some(strength)) = (&self.guidance, guidance) {
            // diffusers' `get_guidance_scale_embedding`: sines first, the strength less one times 1000.
            let mut wave = Tensor::zeros([1, layer.inputs()]);
            sinusoids((strength as f32 - 1.0) * 1000.0, false, 1.0, wave.data_mut());
            let add = layer.forward(&wave);
            for row in waves.data_mut().chunks_exact_mut(width) {
                row.iter_mut().zip(add.data()).for_each(|(r, a)| *r += a);
            }
        }
        let time = self.time.forward(&waves);
        let aug = self.added.as_ref().zip(c.added.as_ref()).map(|(layer, a)| {
            let added = added.expect("a text_time UNet needs pooled text and sizes");
            assert_eq!(added.sizes.len(), batch);
            let mut sizes = Tensor::zeros([batch, 6 * a.time_dim]);
            for (row, out) in added.sizes.iter().zip(sizes.data_mut().chunks_exact_mut(6 * a.time_dim)) {
                for (v, out) in row.iter().zip(out.chunks_exact_mut(a.time_dim)) {
                    sinusoids(*v, c.flip_sin_to_cos, c.freq_shift, out);
                }
            }
            layer.forward(&added.pooled.concat_channels(&sizes))
        });
        let dim = c.time_dim();
        let mut emb = Tensor::zeros([timesteps.len() * batch, dim]);
        for (i, row) in emb.data_mut().chunks_exact_mut(dim).enumerate() {
            row.copy_from_slice(&time.data()[i / batch * dim..][..dim]);
            if let Some(aug) = &aug {
                row.iter_mut().zip(&aug.data()[i % batch * dim..][..dim]).for_each(|(r, a)| *r += a);
            }
        }
        let emb = activate(Activation::Silu, emb);
        let down = self.down.iter().flat_map(|l| &l.resnets);
        let mid = self.mid.iter().flat_map(|m| [&m.first, &m.second]);
        let up = self.up.iter().flat_map(|l| &l.resnets);
        Times { per_resnet: down.chain(mid).chain(up).map(|r| r.time.forward(&emb)).collect(), batch }
    }

    /// One prediction: latents [batch, h, w, in_channels] at step `step` of [`UNet::times`] → [batch, h, w, out_channels].
    ///
    /// # Panics
    /// If the batch differs from the one that text and times were made for.
    pub fn forward(
        &self,
        latents: &Tensor,
        step: usize,
        times: &Times,
        text: &TextContext,
        injections: &Injections,
    ) -> Tensor {
        self.forward_seen(latents, step, times, text, injections, &mut |_, _| {})
    }

    /// The same, showing what each block gives to `seen`, with the block's path as in checkpoints (e.g.
    /// `down_blocks.1.attentions.0`): for comparing with other implementations. [batch, h, w, channels].
    ///
    /// # Panics
    /// As [`UNet::forward`].
    pub fn forward_seen(
        &self,
        latents: &Tensor,
        step: usize,
        times: &Times,
        text: &TextContext,
        injections: &Injections,
        seen: &mut dyn FnMut(Arguments, &Tensor),
    ) -> Tensor {
        assert_eq!(latents.dim(0), times.batch);
        let pass = Pass { step, times, text, injections };
        let mut h = self.conv_in.forward(latents);
        seen(format_args!("conv_in"), &h);
        let mut skips = vec![h.clone()];
        for (i, level) in self.down.iter().enumerate() {
            for j in 0..level.resnets.len() {
                h = level.layer("down_blocks", i, j, &h, &pass, seen);
                skips.push(h.clone());
            }
            if let Some(conv) = &level.resize {
                let pad = self.config.downsample_padding;
                // Padding 0 means zeros after the last row and column only, as in the autoencoder.
                h = conv.strided(&h, 2, pad, 1);
                skips.push(h.clone());
            }
            seen(format_args!("down_blocks.{i}"), &h);
        }
        if let Some(mid) = &self.mid {
            h = mid.first.forward(&h, &pass);
            if let Some(attention) = &mid.attention {
                h = attention.forward(h, &pass);
            }
            h = mid.second.forward(&h, &pass);
            seen(format_args!("mid_block"), &h);
        }
        for (i, level) in self.up.iter().enumerate() {
            for j in 0..level.resnets.len() {
                let skip = skips.pop().expect("as many as on the way down");
                h = level.layer("up_blocks", i, j, &h.concat_channels(&skip), &pass, seen);
            }
            if let Some(conv) = &level.resize {
                let next = skips.last().expect("the next level has skips");
                h = upsample_to(conv, &h, next.dim(1), next.dim(2));
            }
            seen(format_args!("up_blocks.{i}"), &h);
        }
        self.conv_out.forward(&self.norm_out.forward_silu(&h))
    }
}

impl Level {
    /// Resnet `j` and its attention, of the level `i` of `side`.
    fn layer(
        &self,
        side: &str,
        i: usize,
        j: usize,
        x: &Tensor,
        pass: &Pass,
        seen: &mut dyn FnMut(Arguments, &Tensor),
    ) -> Tensor {
        let mut h = self.resnets[j].forward(x, pass);
        seen(format_args!("{side}.{i}.resnets.{j}"), &h);
        if let Some(attention) = self.attentions.get(j) {
            h = attention.forward(h, pass);
            seen(format_args!("{side}.{i}.attentions.{j}"), &h);
        }
        h
    }
}

/// What a forward pass reads beside the latents.
struct Pass<'a> {
    step: usize,
    times: &'a Times,
    text: &'a TextContext,
    injections: &'a Injections,
}

impl Pass<'_> {
    /// What the step adds to resnet `i`: [batch, channels].
    fn time(&self, i: usize) -> &[f32] {
        let t = &self.times.per_resnet[i];
        let row = t.channels() * self.times.batch;
        &t.data()[self.step * row..(self.step + 1) * row]
    }
}

/// Doubles by nearest neighbour, then convolves; where the level above has an odd size (latents that do not halve
/// evenly) its size is taken instead, as diffusers' `upsample_size` does.
fn upsample_to(conv: &Conv2d, x: &Tensor, height: usize, width: usize) -> Tensor {
    let &[batch, h, w, c] = x.shape() else { unreachable!("activations have four axes") };
    if (height, width) == (2 * h, 2 * w) {
        return conv.upsampled(x);
    }
    let mut out = Tensor::zeros([batch, height, width, c]);
    for (i, pixel) in out.data_mut().chunks_exact_mut(c).enumerate() {
        let (b, y, x_out) = (i / (height * width), i / width % height, i % width);
        let source = (b * h + y * h / height) * w + x_out * w / width;
        pixel.copy_from_slice(&x.data()[source * c..][..c]);
    }
    conv.forward(&out)
}

/// The sinusoidal embedding of one number (Ho et al., arXiv 2006.11239; diffusers' `get_timestep_embedding`).
fn sinusoids(t: f32, cosines_first: bool, shift: f32, out: &mut [f32]) {
    let half = out.len() / 2;
    for i in 0..half {
        let frequency = (-(10000f32.ln()) * i as f32 / (half as f32 - shift)).exp();
        let (sin, cos) = ((t * frequency) as f64).sin_cos();
        let (first, second) = if cosines_first { (cos, sin) } else { (sin, cos) };
        out[i] = first as f32;
        out[half + i] = second as f32;
    }
}
