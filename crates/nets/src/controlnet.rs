//! ControlNets: diffusers' `ControlNetModel` (Zhang et al., "Adding Conditional Control to Text-to-Image Diffusion
//! Models", arXiv 2302.05543). A copy of the UNet's first half that also sees a control picture; what it computes is
//! added to the UNet's skip connections and to its middle ([`Residuals`]). It reads text tokens and never image tokens.

mod config;
mod control_lora;

pub use config::{ControlNetConfig, diffusers_names, is_controlnet};
pub use control_lora::{ControlLora, is_control_lora};

use crate::error::ModelError;
use crate::layers::{Activation, Conv2d, Precision, activate};
use crate::load::Loader;
use crate::tensor::Tensor;
use crate::unet::trunk::{Counter, Pass, Trunk};
use crate::unet::{Added, Cross, Injections, Residuals, TextContext, Times};
use crate::weights::Weights;

/// The network with its weights.
pub struct ControlNet {
    config: ControlNetConfig,
    trunk: Trunk,
    hint: Hint,
    down: Vec<Conv2d>,
    mid: Conv2d,
}

/// The small network from the control picture to features of the latents' size.
struct Hint {
    first: Conv2d,
    /// At the same size, then to half of it.
    steps: Vec<(Conv2d, Conv2d)>,
    last: Conv2d,
}

impl ControlNet {
    /// Takes the network from weights with diffusers' names (see [`diffusers_names`]).
    ///
    /// # Errors
    /// If a tensor is missing or of another shape than the configuration says.
    pub fn load(config: &ControlNetConfig, weights: &Weights) -> Result<Self, ModelError> {
        Self::load_in(config, weights, Precision::F32)
    }

    /// The same with operands of a precision, but for the features of the control picture, which are computed once.
    ///
    /// # Errors
    /// As [`ControlNet::load`].
    pub fn load_in(
        config: &ControlNetConfig,
        weights: &Weights,
        precision: Precision,
    ) -> Result<Self, ModelError> {
        let at = Loader::new(weights).in_precision(precision);
        if weights.has_prefix("task_embedding") || weights.has_prefix("control_add_embedding.") {
            return Err(at.error(
                "is a ControlNet Union, which is not supported; use a ControlNet for one kind of map",
            ));
        }
        let trunk = Trunk::load(&config.trunk, &at, &mut Counter::default())?;
        let picture = at.at("controlnet_cond_embedding").in_precision(Precision::F32);
        let widths = &config.hint_widths;
        let width = config.trunk.levels[0].width;
        let step = |(i, pair): (usize, &[usize])| {
            Ok((
                picture.conv(&format!("blocks.{}", 2 * i), pair[0], pair[0], 3)?,
                picture.conv(&format!("blocks.{}", 2 * i + 1), pair[0], pair[1], 3)?,
            ))
        };
        let hint = Hint {
            first: picture.conv("conv_in", 3, widths[0], 3)?,
            steps: widths.windows(2).enumerate().map(step).collect::<Result<_, ModelError>>()?,
            last: picture.conv("conv_out", widths[widths.len() - 1], width, 3)?,
        };
        let places = at.at("controlnet_down_blocks");
        let skips = trunk.skip_widths().into_iter().enumerate();
        let down =
            skips.map(|(i, width)| places.conv(&i.to_string(), width, width, 1)).collect::<Result<_, _>>()?;
        let coarsest = config.trunk.levels[config.trunk.levels.len() - 1].width;
        let mid = at.conv("controlnet_mid_block", coarsest, coarsest, 1)?;
        Ok(ControlNet { config: config.clone(), trunk, hint, down, mid })
    }

    /// The configuration.
    pub fn config(&self) -> &ControlNetConfig {
        &self.config
    }

    /// Features of a control picture, which stay the same over the steps: RGB in 0..1 [1, height, width, 3] →
    /// [1, height / factor, width / factor, channels].
    pub fn hint(&self, picture: &Tensor) -> Tensor {
        let mut picture = picture.clone();
        if self.config.bgr {
            picture.data_mut().as_chunks_mut::<3>().0.iter_mut().for_each(|pixel| pixel.swap(0, 2));
        }
        let silu = |x: Tensor| activate(Activation::Silu, x);
        let mut h = silu(self.hint.first.forward(&picture));
        for (same, half) in &self.hint.steps {
            h = silu(same.forward(&h));
            h = silu(half.strided(&h, 2, 1, 1));
        }
        self.hint.last.forward(&h)
    }

    /// Keys and values of text tokens [batch, tokens, context].
    pub fn text(&self, tokens: &Tensor) -> TextContext {
        TextContext::of(self.trunk.spatials(), tokens)
    }

    /// What the given timesteps add to each resnet.
    ///
    /// # Panics
    /// If SDXL's conditioning is needed and missing, or of another width.
    pub fn times(&self, timesteps: &[f64], batch: usize, added: Option<&Added>) -> Times {
        Times::of(self.trunk.resnets(), &self.trunk.embed(timesteps, batch, added, None), batch)
    }

    /// What it adds to the UNet at step `step` of [`ControlNet::times`], times `scale`: latents
    /// [batch, h, w, in_channels] without a mask's channels, or one row that stands for all as in the UNet; `hint` as
    /// [`ControlNet::hint`] gives it.
    ///
    /// # Panics
    /// If latents of several rows are not as many as text and times were made for, or the hint's size differs from the
    /// latents'.
    pub fn forward(
        &self,
        latents: &Tensor,
        hint: &Tensor,
        step: usize,
        times: &Times,
        text: &TextContext,
        scale: f32,
    ) -> Residuals {
        let injections = Injections::default();
        let pass = Pass {
            step,
            times,
            text,
            injections: &injections,
            hidiffusion: None,
            cross: Cross::Computed,
            merging: None,
        };
        let (skips, middle) = self.trunk.forward(self.input(latents, hint), &pass, &mut |_, _| {});
        let out = |(conv, x)| self.out(conv, x, scale).repeated(pass.rows());
        let down = self.down.iter().zip(&skips).map(out).collect();
        Residuals { down, mid: Some(out((&self.mid, &middle))) }
    }

    /// What it adds to the outermost skip connection alone, which needs neither time nor text: for each row of the latents.
    ///
    /// # Panics
    /// If the hint's size differs from the latents'.
    pub fn forward_outermost(&self, latents: &Tensor, hint: &Tensor, scale: f32) -> Residuals {
        let down = vec![self.out(&self.down[0], &self.input(latents, hint), scale)];
        Residuals { down, mid: None }
    }

    fn input(&self, latents: &Tensor, hint: &Tensor) -> Tensor {
        let mut h = self.trunk.conv_in.forward(latents);
        let row = hint.data().len();
        assert_eq!(h.data().len(), row * h.dim(0), "the control picture has the size of the latents");
        for row in h.data_mut().chunks_exact_mut(row) {
            row.iter_mut().zip(hint.data()).for_each(|(x, y)| *x += y);
        }
        h
    }

    fn out(&self, conv: &Conv2d, x: &Tensor, scale: f32) -> Tensor {
        let mut y = conv.forward(x);
        y.data_mut().iter_mut().for_each(|v| *v *= scale);
        if self.config.pooled {
            mean_over_pixels(&mut y);
        }
        y
    }
}

/// Every pixel `[batch, h, w, channels]` replaced by the mean of all.
fn mean_over_pixels(x: &mut Tensor) {
    let &[_, h, w, c] = x.shape() else { unreachable!("activations have four axes") };
    for picture in x.data_mut().chunks_exact_mut(h * w * c) {
        let mut mean = vec![0f64; c];
        for pixel in picture.chunks_exact(c) {
            mean.iter_mut().zip(pixel).for_each(|(m, p)| *m += f64::from(*p));
        }
        for pixel in picture.chunks_exact_mut(c) {
            pixel.iter_mut().zip(&mean).for_each(|(p, m)| *p = (m / (h * w) as f64) as f32);
        }
    }
}
