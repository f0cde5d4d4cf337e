//! The denoising network: diffusers' `UNet2DConditionModel` as Stable Diffusion 1.5 and XL use it
//! (Rombach et al., arXiv 2112.10752; Podell et al., arXiv 2307.01952).
//!
//! A forward pass changes nothing: all that stays the same over the steps is computed once beforehand, the keys and
//! values of the text ([`UNet::text`]) and what the timesteps add to each resnet ([`UNet::times`]). Image tokens come
//! in through [`Injections`], which the network only reads.

mod blocks;
mod config;
mod cross_freeze;
mod deep_cache;
mod hidiffusion;
mod inject;
mod ldm;
mod memory;
mod merging;
mod sites;
pub(crate) mod trunk;

pub use config::{AddedConfig, LevelConfig, UNetConfig};
pub use cross_freeze::{Cross, CrossOutputs};
pub use hidiffusion::HiDiffusion;
pub use inject::{Branch, Injections, KeyValue};
pub use ldm::LdmNames;
pub(crate) use ldm::replaced;
pub use merging::Merging;
pub use sites::{Site, covers, sites};
pub use trunk::{Added, Residuals, TextContext, Times};

use crate::error::ModelError;
use crate::layers::{Conv2d, GroupNorm, Precision};
use crate::load::Loader;
use crate::tensor::Tensor;
use crate::weights::Weights;
use blocks::{Resnet, Spatial};
use std::fmt::Arguments;
use trunk::{Counter, Level, Pass, Trunk};

/// The network with its weights.
pub struct UNet {
    sites: Vec<Site>,
    trunk: Trunk,
    up: Vec<Level>,
    norm_out: GroupNorm,
    conv_out: Conv2d,
}

/// What a forward pass reads beside the latents.
pub struct Conditions<'a> {
    /// What the timesteps add.
    pub times: &'a Times,
    /// Keys and values of the text.
    pub text: &'a TextContext,
    /// Image tokens at attention sites.
    pub injections: &'a Injections,
    /// What ControlNets add.
    pub residuals: Option<&'a Residuals>,
    /// What this call does for a picture beyond the trained size.
    pub hidiffusion: Option<&'a HiDiffusion>,
    /// Where the outputs of cross-attention come from.
    pub cross: Cross<'a>,
    /// Tokens that self-attention takes for one.
    pub merging: Option<&'a Merging>,
}

impl UNet {
    /// Takes the network from weights, to compute in f32.
    ///
    /// # Errors
    /// If a tensor is missing or of another shape than the configuration says.
    pub fn load(config: &UNetConfig, weights: &Weights) -> Result<Self, ModelError> {
        Self::load_in(config, weights, Precision::F32)
    }

    /// The same, with the operands of fully connected layers and 1×1 convolutions in `precision`. In bf16 and int8 those of
    /// attention are bf16, and of 3×3 convolutions whole numbers of 16 bits; all else is f32.
    ///
    /// # Errors
    /// As [`UNet::load`].
    pub fn load_in(config: &UNetConfig, weights: &Weights, precision: Precision) -> Result<Self, ModelError> {
        let at = Loader::new(weights).in_precision(precision);
        let c = config;
        let levels = c.levels.len();
        let mut count = Counter::default();
        let trunk = Trunk::load(c, &at, &mut count)?;
        let mut skips = trunk.skip_widths();
        let mut inputs = c.levels[levels - 1].width;
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
            trunk,
            up,
            norm_out: at.group_norm("conv_norm_out", c.levels[0].width, c.groups, c.eps)?,
            conv_out: at.conv("conv_out", c.levels[0].width, c.out_channels, 3)?,
        })
    }

    /// The configuration.
    pub fn config(&self) -> &UNetConfig {
        &self.trunk.config
    }

    /// The attention sites in forward order.
    pub fn sites(&self) -> &[Site] {
        &self.sites
    }

    /// Keys and values of text tokens [batch, tokens, context] at every site.
    pub fn text(&self, tokens: &Tensor) -> TextContext {
        let up = self.up.iter().flat_map(|l| &l.attentions);
        TextContext::of(self.trunk.spatials().chain(up), tokens)
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
        let emb = self.trunk.embed(timesteps, batch, added, guidance);
        let up = self.up.iter().flat_map(|l| &l.resnets);
        Times::of(self.trunk.resnets().chain(up), &emb, batch)
    }

    /// One prediction: latents [batch, h, w, in_channels] at step `step` of [`UNet::times`] → [batch, h, w, out_channels].
    ///
    /// Latents of one row stand for as many equal ones as the batch has: what does not depend on the text, and in SDXL on its
    /// pooled part, is computed once. The prediction is the same, bit for bit.
    ///
    /// # Panics
    /// If latents of several rows are not as many as text and times were made for.
    pub fn forward(&self, latents: &Tensor, step: usize, conditions: &Conditions) -> Tensor {
        self.forward_seen(latents, step, conditions, &mut |_, _| {})
    }

    /// The same, showing what each block gives to `seen`, with the block's path as in checkpoints (e.g.
    /// `down_blocks.1.attentions.0`): for comparing with other implementations. [batch, h, w, channels], or one row while it
    /// stands for all.
    ///
    /// # Panics
    /// As [`UNet::forward`].
    pub fn forward_seen(
        &self,
        latents: &Tensor,
        step: usize,
        conditions: &Conditions,
        seen: &mut dyn FnMut(Arguments, &Tensor),
    ) -> Tensor {
        self.run(latents, step, conditions, seen, None)
    }

    /// The same, keeping what goes into the last layer on the way up.
    fn run(
        &self,
        latents: &Tensor,
        step: usize,
        conditions: &Conditions,
        seen: &mut dyn FnMut(Arguments, &Tensor),
        mut deep: Option<&mut Option<Tensor>>,
    ) -> Tensor {
        let pass = Pass::of(step, conditions);
        let (skips, h) = self.trunk.forward(self.trunk.conv_in.forward(latents), &pass, seen);
        let mut skips: Vec<Tensor> = skips.into_iter().map(|skip| skip.repeated(pass.rows())).collect();
        let mut h = h.repeated(pass.rows());
        match conditions.residuals {
            Some(residuals) if conditions.hidiffusion.is_some() => {
                residuals.sized_for(&skips, &h).add_to(&mut skips, &mut h)
            }
            Some(residuals) => residuals.add_to(&mut skips, &mut h),
            None => {}
        }
        for (i, level) in self.up.iter().enumerate() {
            for j in 0..level.resnets.len() {
                let skip = skips.pop().expect("as many as on the way down");
                if let Some(deep) = deep.as_deref_mut().filter(|_| skips.is_empty()) {
                    *deep = Some(h.clone());
                }
                h = pass.before_up(self.up.len() - 1 - i, &skip, h);
                h = level.layer("up_blocks", i, j, &h.concat_channels(&skip), &pass, seen);
            }
            if let Some(conv) = &level.resize {
                let next = skips.last().expect("the next level has skips");
                h = upsample_to(conv, &h, next.dim(1), next.dim(2));
            }
            seen(format_args!("up_blocks.{i}"), &h);
        }
        self.conv_out.forward_norm(&self.norm_out, &h)
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
