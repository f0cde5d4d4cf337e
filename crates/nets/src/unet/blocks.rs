//! Resnets and spatial transformers of the UNet.

use super::cross_freeze::Cross;
use super::trunk::{Counter, Pass, add};
use super::{KeyValue, LevelConfig, UNetConfig};
use crate::error::ModelError;
use crate::layers::{Around, Attended, Conv2d, GroupNorm, LayerNorm, Linear, Precision, attend_over};
use crate::load::Loader;
use crate::tensor::Tensor;
use std::fmt::Arguments;

/// diffusers fixes this for the norm before a spatial transformer.
const SPATIAL_EPS: f32 = 1e-6;
/// torch's default for layer norms.
const LAYER_EPS: f32 = 1e-5;

pub(crate) struct Resnet {
    norm1: GroupNorm,
    conv1: Conv2d,
    pub(super) time: Linear,
    norm2: GroupNorm,
    conv2: Conv2d,
    shortcut: Option<Conv2d>,
    index: usize,
}

impl Resnet {
    pub(super) fn load(
        at: &Loader,
        inputs: usize,
        outputs: usize,
        config: &UNetConfig,
        count: &mut Counter,
    ) -> Result<Self, ModelError> {
        let index = count.resnets;
        count.resnets += 1;
        Ok(Resnet {
            norm1: at.group_norm("norm1", inputs, config.groups, config.eps)?,
            conv1: at.conv("conv1", inputs, outputs, 3)?,
            time: at.in_precision(Precision::F32).linear(
                "time_emb_proj",
                config.time_dim(),
                outputs,
                true,
            )?,
            norm2: at.group_norm("norm2", outputs, config.groups, config.eps)?,
            conv2: at.conv("conv2", outputs, outputs, 3)?,
            shortcut: if inputs == outputs {
                None
            } else {
                Some(at.conv("conv_shortcut", inputs, outputs, 1)?)
            },
            index,
        })
    }

    pub(super) fn forward(&self, x: &Tensor, pass: &Pass) -> Tensor {
        let time = Around {
            norm: Some(&self.norm1),
            picture: Some(pass.time(self.index, x.dim(0))),
            residual: None,
        };
        let h = self.conv1.forward_around(time, x);
        let shortcut = self.shortcut.as_ref().map(|s| s.forward(x));
        let residual = Some(shortcut.as_ref().unwrap_or(x));
        self.conv2.forward_around(Around { norm: Some(&self.norm2), residual, picture: None }, &h)
    }
}

pub(crate) struct Attention {
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
    heads: usize,
}

impl Attention {
    fn load(at: &Loader, width: usize, context: usize, heads: usize) -> Result<Self, ModelError> {
        Ok(Attention {
            q: at.linear("to_q", width, width, false)?,
            k: at.linear("to_k", context, width, false)?,
            v: at.linear("to_v", context, width, false)?,
            out: at.linear("to_out.0", width, width, true)?,
            heads,
        })
    }

    pub(super) fn key_value(&self, tokens: &Tensor) -> KeyValue {
        let [k, v] = Linear::forward_each([&self.k, &self.v], tokens);
        KeyValue { k, v }
    }
}

/// One transformer block: a site.
pub(crate) struct Transformer {
    norm1: LayerNorm,
    self_attention: Attention,
    norm2: LayerNorm,
    pub(super) cross_attention: Attention,
    norm3: LayerNorm,
    feed_in: Linear,
    feed_out: Linear,
    site: usize,
}

impl Transformer {
    fn load(at: &Loader, level: &LevelConfig, site: usize) -> Result<Self, ModelError> {
        let width = level.width;
        Ok(Transformer {
            norm1: at.layer_norm("norm1", width, LAYER_EPS)?,
            self_attention: Attention::load(&at.at("attn1"), width, width, level.heads)?,
            norm2: at.layer_norm("norm2", width, LAYER_EPS)?,
            cross_attention: Attention::load(&at.at("attn2"), width, level.context, level.heads)?,
            norm3: at.layer_norm("norm3", width, LAYER_EPS)?,
            feed_in: at.linear("ff.net.0.proj", width, 8 * width, true)?,
            feed_out: at.linear("ff.net.2", 4 * width, width, true)?,
            site,
        })
    }

    /// `[batch, tokens, width]` → the same, of tokens in a grid [height, width]; one row that stands for all becomes as many as
    /// the text has. `seen` gets the states between the parts.
    fn forward(
        &self,
        x: Tensor,
        grid: [usize; 2],
        pass: &Pass,
        seen: &mut dyn FnMut(&str, &Tensor),
    ) -> Tensor {
        let mut n = self.norm1.forward(&x);
        let windows = pass.windows(self.site, grid);
        if let Some(windows) = &windows {
            n = windows.split(&n);
        }
        let merged = pass.merging.and_then(|m| m.of(self.site, &x, grid));
        if let Some(merged) = &merged {
            n = merged.merge(&n);
        }
        let a = &self.self_attention;
        let [q, k, v] = Linear::forward_each([&a.q, &a.k, &a.v], &n);
        let own = Attended { k: &k, v: &v, weight: 1.0, mask: None };
        let mut attended = attend_over(&q, &[own], a.heads, a.q.precision());
        drop((q, k, v));
        if let Some(windows) = &windows {
            attended = windows.join(&attended);
        }
        let mut x = match &merged {
            Some(merged) => merged.add(&a.out.forward(&attended), x),
            None => a.out.forward_add(&attended, &x),
        };
        drop(attended);
        seen("after_attn1", &x);
        let out = &self.cross_attention.out;
        match pass.cross {
            Cross::Computed => {
                let attended = self.attend_cross(&x, pass);
                x = out.forward_add(&attended, &x.repeated(pass.rows()));
            }
            Cross::Recorded(outputs) => {
                let given = out.forward(&self.attend_cross(&x, pass));
                x = x.repeated(pass.rows());
                add(&mut x, &given);
                outputs.borrow_mut().keep(self.site, given);
            }
            Cross::Frozen(outputs) => add(&mut x, outputs.at(self.site)),
        }
        seen("after_attn2", &x);
        let h = self.feed_in.forward_gate(&self.norm3.forward(&x));
        self.feed_out.forward_add(&h, &x)
    }

    /// What the text and the image tokens give to every row, before the layer behind it.
    fn attend_cross(&self, x: &Tensor, pass: &Pass) -> Tensor {
        let a = &self.cross_attention;
        let q = a.q.forward(&self.norm2.forward(x)).repeated(pass.rows());
        let text = pass.text_at(self.site);
        let text = Attended { k: &text.k, v: &text.v, weight: 1.0, mask: None };
        let images = pass.injections.at(self.site, pass.step).map(|branch| {
            let (KeyValue { k, v }, mask) = (&branch.tokens, branch.mask.as_deref());
            Attended { k, v, weight: branch.weight, mask }
        });
        let sets: Vec<Attended> = std::iter::once(text).chain(images).collect();
        attend_over(&q, &sets, a.heads, a.q.precision())
    }
}

/// A stack of transformer blocks over all pixels, with a residual around it.
pub(crate) struct Spatial {
    norm: GroupNorm,
    proj_in: Linear,
    pub(super) blocks: Vec<Transformer>,
    proj_out: Linear,
}

impl Spatial {
    pub(super) fn load(
        at: &Loader,
        level: &LevelConfig,
        depth: usize,
        config: &UNetConfig,
        count: &mut Counter,
    ) -> Result<Self, ModelError> {
        let width = level.width;
        let mut blocks = Vec::new();
        for t in 0..depth {
            blocks.push(Transformer::load(&at.at(format!("transformer_blocks.{t}")), level, count.sites)?);
            count.sites += 1;
        }
        Ok(Spatial {
            norm: at.group_norm("norm", width, config.groups, SPATIAL_EPS)?,
            // Channels-last, a 1×1 convolution and a linear layer are the same product.
            proj_in: at.linear("proj_in", width, width, true)?,
            blocks,
            proj_out: at.linear("proj_out", width, width, true)?,
        })
    }

    pub(super) fn forward(&self, x: Tensor, pass: &Pass, seen: &mut dyn FnMut(Arguments, &Tensor)) -> Tensor {
        let tokens = [x.dim(0), x.dim(1) * x.dim(2), x.dim(3)];
        let mut h = self.proj_in.forward(&self.norm.forward(&x).reshape(tokens));
        for (t, block) in self.blocks.iter().enumerate() {
            h = block.forward(h, [x.dim(1), x.dim(2)], pass, &mut |part, x| {
                seen(format_args!("transformer_blocks.{t}.{part}"), x);
            });
            seen(format_args!("transformer_blocks.{t}"), &h);
        }
        let x = x.repeated(h.dim(0));
        self.proj_out.forward_add(&h, &x).reshape(x.shape())
    }
}
