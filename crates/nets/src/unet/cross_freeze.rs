//! Cross-attention whose outputs stay what they were in an earlier call: they hardly change after the first part of the
//! sampling (Zhang et al., "Cross-Attention Makes Inference Cumbersome in Text-to-Image Diffusion Models", arXiv 2404.02747,
//! T-GATE). Where that call had a row for the negative prompt, the mean of both rows stays, as in the authors' package
//! (tgate 1.0.0), and guidance ends.

use super::trunk::add;
use crate::tensor::Tensor;
use std::cell::RefCell;

/// Where the outputs of cross-attention come from.
#[derive(Clone, Copy)]
pub enum Cross<'a> {
    /// From text and image tokens.
    Computed,
    /// The same, and they are written down.
    Recorded(&'a RefCell<CrossOutputs>),
    /// From an earlier call, for a batch of one row.
    Frozen(&'a CrossOutputs),
}

/// What cross-attention added at each site in one call, the mean over its rows: [1, tokens, width].
#[derive(Default)]
pub struct CrossOutputs(Vec<Option<Tensor>>);

impl CrossOutputs {
    pub(super) fn keep(&mut self, site: usize, out: Tensor) {
        let mean = match out.dim(0) {
            1 => out,
            rows => {
                let mut mean = out.row(0);
                (1..rows).for_each(|i| add(&mut mean, &out.row(i)));
                mean.data_mut().iter_mut().for_each(|v| *v /= rows as f32);
                mean
            }
        };
        self.0.resize_with(self.0.len().max(site + 1), || None);
        self.0[site] = Some(mean);
    }

    pub(super) fn at(&self, site: usize) -> &Tensor {
        self.0.get(site).and_then(Option::as_ref).expect("a whole call was recorded before")
    }
}
