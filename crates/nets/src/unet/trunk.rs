//! What a UNet and its ControlNets have in common: the input, the embeddings, the way down and the middle.

use super::blocks::{Resnet, Spatial};
use super::cross_freeze::Cross;
use super::hidiffusion::bicubic;
use super::inject::{Injections, KeyValue};
use super::{Conditions, HiDiffusion, Merging, UNetConfig};
use crate::error::ModelError;
use crate::layers::{Activation, Conv2d, Linear, Precision, activate};
use crate::load::Loader;
use crate::tensor::Tensor;
use rayon::prelude::*;
use std::fmt::Arguments;

/// Resnets with their attentions at one level, and the convolution to the next.
pub(crate) struct Level {
    pub(super) resnets: Vec<Resnet>,
    pub(super) attentions: Vec<Spatial>,
    pub(super) resize: Option<Conv2d>,
}

struct Mid {
    first: Resnet,
    /// The attention, and the resnet after it; both are missing in small ControlNets.
    rest: Option<(Spatial, Resnet)>,
}

/// Two linear layers with SiLU between.
struct Embedding(Linear, Linear);

impl Embedding {
    fn load(at: &Loader, inputs: usize, outputs: usize) -> Result<Self, ModelError> {
        // A few rows, computed once: in full.
        let at = at.in_precision(Precision::F32);
        Ok(Embedding(
            at.linear("linear_1", inputs, outputs, true)?,
            at.linear("linear_2", outputs, outputs, true)?,
        ))
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        self.1.forward(&self.0.forward_activate(x, Activation::Silu))
    }
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

impl TextContext {
    /// Of row `i` of the batch alone.
    pub fn row(&self, i: usize) -> Self {
        TextContext(self.0.iter().map(|kv| kv.row(i)).collect())
    }

    pub(crate) fn of<'a>(spatials: impl Iterator<Item = &'a Spatial>, tokens: &Tensor) -> Self {
        let blocks = spatials.flat_map(|s| &s.blocks);
        TextContext(blocks.map(|b| b.cross_attention.key_value(tokens)).collect())
    }
}

/// What each timestep adds to each resnet.
pub struct Times {
    /// Per resnet in forward order: [steps · batch, channels].
    per_resnet: Vec<Tensor>,
    batch: usize,
    equal_rows: bool,
}

impl Times {
    /// Of row `i` of the batch alone.
    pub fn row(&self, i: usize) -> Self {
        let row = |t: &Tensor| {
            let n = t.channels();
            let rows = t.data().chunks_exact(n).skip(i).step_by(self.batch);
            Tensor::new([t.dim(0) / self.batch, n], rows.flatten().copied().collect())
        };
        Times { per_resnet: self.per_resnet.iter().map(row).collect(), batch: 1, equal_rows: true }
    }

    pub(crate) fn of<'a>(resnets: impl Iterator<Item = &'a Resnet>, emb: &Tensor, batch: usize) -> Self {
        let per_resnet: Vec<Tensor> = resnets.map(|r| r.time.forward(emb)).collect();
        let equal = |t: &Tensor| {
            let n = t.channels();
            t.data().chunks_exact(n * batch).all(|step| {
                let first = &step[..n];
                step.chunks_exact(n).all(|row| row.iter().zip(first).all(|(v, f)| v.to_bits() == f.to_bits()))
            })
        };
        let equal_rows = per_resnet.iter().all(equal);
        Times { per_resnet, batch, equal_rows }
    }

    /// Rows of the batch that it was made for.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// True if all rows of the batch get the same at every step, so that equal latents stay equal up to the first text. SDXL's
    /// pooled text tells them apart.
    pub fn equal_rows(&self) -> bool {
        self.equal_rows
    }
}

/// What ControlNets add to the skip connections and to the middle: the UNet's second seam.
pub struct Residuals {
    /// One for each skip connection, in the order in which they come up on the way down.
    pub down: Vec<Tensor>,
    /// For the middle; None where only the outermost skip connection is wanted.
    pub mid: Option<Tensor>,
}

impl Residuals {
    /// The sum with those of another ControlNet.
    ///
    /// # Panics
    /// If their shapes differ.
    pub fn plus(mut self, other: &Residuals) -> Self {
        assert_eq!(self.down.len(), other.down.len());
        self.down.iter_mut().zip(&other.down).for_each(|(a, b)| add(a, b));
        self.mid.iter_mut().zip(&other.mid).for_each(|(a, b)| add(a, b));
        self
    }

    /// The part of the first skip connection alone.
    pub(super) fn add_to_first(&self, skip: &mut Tensor) {
        add(skip, &self.down[0]);
    }

    /// Those of ControlNets that saw latents of another size, at the sizes of this pass.
    pub(super) fn sized_for(&self, skips: &[Tensor], mid: &Tensor) -> Self {
        let sized = |(r, x): (&Tensor, &Tensor)| match r.shape()[1..3] == x.shape()[1..3] {
            true => r.clone(),
            false => bicubic(r, x.dim(1), x.dim(2)),
        };
        Residuals {
            down: self.down.iter().zip(skips).map(sized).collect(),
            mid: self.mid.as_ref().map(|r| sized((r, mid))),
        }
    }

    pub(super) fn add_to(&self, skips: &mut [Tensor], mid: &mut Tensor) {
        assert_eq!(self.down.len(), skips.len());
        skips.iter_mut().zip(&self.down).for_each(|(skip, r)| add(skip, r));
        add(mid, self.mid.as_ref().expect("of a whole pass"));
    }
}

pub(super) fn add(x: &mut Tensor, y: &Tensor) {
    assert_eq!(x.shape(), y.shape());
    x.data_mut().par_iter_mut().zip(y.data()).with_min_len(1 << 14).for_each(|(x, y)| *x += y);
}

/// Numbers places in forward order while the network is built.
#[derive(Default)]
pub(crate) struct Counter {
    pub(super) resnets: usize,
    pub(super) sites: usize,
}

/// What a forward pass reads at each block.
pub(crate) struct Pass<'a> {
    pub(crate) step: usize,
    pub(crate) times: &'a Times,
    pub(crate) text: &'a TextContext,
    pub(crate) injections: &'a Injections,
    pub(crate) hidiffusion: Option<&'a HiDiffusion>,
    pub(crate) cross: Cross<'a>,
    pub(crate) merging: Option<&'a Merging>,
}

impl<'a> Pass<'a> {
    pub(super) fn of(step: usize, conditions: &Conditions<'a>) -> Self {
        let &Conditions { times, text, injections, residuals: _, hidiffusion, cross, merging } = conditions;
        Pass { step, times, text, injections, hidiffusion, cross, merging }
    }

    /// Rows of the batch.
    pub(crate) fn rows(&self) -> usize {
        self.times.batch
    }

    /// What the step adds to resnet `i` for activations of all rows, or of one that stands for all: [rows, channels].
    pub(super) fn time(&self, i: usize, rows: usize) -> &[f32] {
        assert!(rows == self.rows() || rows == 1 && self.times.equal_rows);
        let t = &self.times.per_resnet[i];
        let n = t.channels();
        &t.data()[self.step * n * self.rows()..][..n * rows]
    }

    pub(super) fn text_at(&self, site: usize) -> &KeyValue {
        &self.text.0[site]
    }
}

/// The first half of the network.
pub(crate) struct Trunk {
    pub(crate) config: UNetConfig,
    pub(crate) conv_in: Conv2d,
    time: Embedding,
    /// What distilled models add for the strength of guidance.
    guidance: Option<Linear>,
    added: Option<Embedding>,
    down: Vec<Level>,
    mid: Option<Mid>,
}

impl Trunk {
    pub(crate) fn load(c: &UNetConfig, at: &Loader, count: &mut Counter) -> Result<Self, ModelError> {
        let levels = c.levels.len();
        let mut down = Vec::new();
        let mut inputs = c.levels[0].width;
        for (i, level) in c.levels.iter().enumerate() {
            let at = at.at(format!("down_blocks.{i}"));
            let (mut resnets, mut attentions) = (Vec::new(), Vec::new());
            for j in 0..level.layers {
                resnets.push(Resnet::load(&at.at(format!("resnets.{j}")), inputs, level.width, c, count)?);
                if level.transformers > 0 {
                    let at = at.at(format!("attentions.{j}"));
                    attentions.push(Spatial::load(&at, level, level.transformers, c, count)?);
                }
                inputs = level.width;
            }
            let resize = if i + 1 < levels {
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
                let first = Resnet::load(&at.at("resnets.0"), inputs, inputs, c, count)?;
                let rest = match depth {
                    0 => None,
                    _ => Some((
                        Spatial::load(&at.at("attentions.0"), level, depth, c, count)?,
                        Resnet::load(&at.at("resnets.1"), inputs, inputs, c, count)?,
                    )),
                };
                Some(Mid { first, rest })
            }
        };
        let (width, time_dim) = (c.levels[0].width, c.time_dim());
        Ok(Trunk {
            conv_in: at.conv("conv_in", c.in_channels, width, 3)?,
            time: Embedding::load(&at.at("time_embedding"), width, time_dim)?,
            guidance: match c.time_cond_dim {
                Some(dim) => Some(at.linear("time_embedding.cond_proj", dim, width, false)?),
                None => None,
            },
            added: match &c.added {
                Some(a) => Some(Embedding::load(&at.at("add_embedding"), a.inputs, time_dim)?),
                None => None,
            },
            down,
            mid,
            config: c.clone(),
        })
    }

    /// Channels of each skip connection, in the order of the way down.
    pub(crate) fn skip_widths(&self) -> Vec<usize> {
        let levels = &self.config.levels;
        let mut widths = vec![levels[0].width];
        for (i, level) in levels.iter().enumerate() {
            let resize = usize::from(i + 1 < levels.len());
            widths.extend(std::iter::repeat_n(level.width, level.layers + resize));
        }
        widths
    }

    /// The attentions in forward order.
    pub(crate) fn spatials(&self) -> impl Iterator<Item = &Spatial> {
        let mid = self.mid.iter().flat_map(|m| &m.rest).map(|(attention, _)| attention);
        self.down.iter().flat_map(|l| &l.attentions).chain(mid)
    }

    /// The resnets in forward order.
    pub(crate) fn resnets(&self) -> impl Iterator<Item = &Resnet> {
        let mid = self.mid.iter().flat_map(|m| [Some(&m.first), m.rest.as_ref().map(|(_, second)| second)]);
        self.down.iter().flat_map(|l| &l.resnets).chain(mid.flatten())
    }

    /// The embedding of every timestep for every row of a batch, after its SiLU: [steps · batch, time width].
    ///
    /// # Panics
    /// If SDXL's conditioning is needed and missing, or of another width.
    pub(crate) fn embed(
        &self,
        timesteps: &[f64],
        batch: usize,
        added: Option<&Added>,
        guidance: Option<f64>,
    ) -> Tensor {
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
        activate(Activation::Silu, emb)
    }

    /// From the input's features to the skip connections and the middle, [batch, h, w, channels]. Features of one row stand for
    /// all: what comes before the rows are told apart, by their timesteps or the first text, has one row too.
    pub(crate) fn forward(
        &self,
        h: Tensor,
        pass: &Pass,
        seen: &mut dyn FnMut(Arguments, &Tensor),
    ) -> (Vec<Tensor>, Tensor) {
        seen(format_args!("conv_in"), &h);
        let h = if pass.times.equal_rows { h } else { h.repeated(pass.rows()) };
        // Each activation is the next layer's input and stays for the way up: nothing is copied.
        let mut skips = vec![h];
        let last = |skips: &[Tensor]| skips.len() - 1;
        for (i, level) in self.down.iter().enumerate() {
            for j in 0..level.resnets.len() {
                let h = level.layer("down_blocks", i, j, &skips[last(&skips)], pass, seen);
                skips.push(pass.after_down(i, j, h));
            }
            if let Some(conv) = &level.resize {
                let pad = self.config.downsample_padding;
                // Padding 0 means zeros after the last row and column only, as in the autoencoder.
                let h = match pass.to_stride(i, &skips[last(&skips)]) {
                    None => conv.strided(&skips[last(&skips)], 2, pad, 1),
                    Some(fewer) => conv.strided(&fewer, 2, 1, 1),
                };
                skips.push(h);
            }
            seen(format_args!("down_blocks.{i}"), &skips[last(&skips)]);
        }
        let below = &skips[last(&skips)];
        let h = match &self.mid {
            Some(mid) => {
                let mut h = mid.first.forward(below, pass);
                if let Some((attention, second)) = &mid.rest {
                    let attended = attention.forward(h, pass, &mut |part, x| {
                        seen(format_args!("mid_block.attentions.0.{part}"), x);
                    });
                    h = second.forward(&attended, pass);
                }
                seen(format_args!("mid_block"), &h);
                h
            }
            None => below.clone(),
        };
        (skips, h)
    }
}

impl Level {
    /// Resnet `j` and its attention, of the level `i` of `side`.
    pub(super) fn layer(
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
            h = attention.forward(h, pass, &mut |part, x| {
                seen(format_args!("{side}.{i}.attentions.{j}.{part}"), x);
            });
            seen(format_args!("{side}.{i}.attentions.{j}"), &h);
        }
        h
    }
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
