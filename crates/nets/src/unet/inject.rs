//! Where image tokens enter: extra attention at chosen sites.

use crate::tensor::Tensor;
use std::collections::HashMap;

/// Keys and values of some tokens at one site, each [batch, tokens, width].
#[derive(Clone)]
pub struct KeyValue {
    /// Keys.
    pub k: Tensor,
    /// Values.
    pub v: Tensor,
}

impl KeyValue {
    /// Those of row `i` of the batch alone.
    pub fn row(&self, i: usize) -> Self {
        KeyValue { k: self.k.row(i), v: self.v.row(i) }
    }
}

/// One attention added at one site: `weight · mask · Attn(Q, K, V)`.
#[derive(Clone)]
pub struct Branch {
    /// Keys and values of the image tokens.
    pub tokens: KeyValue,
    /// Its weight, not 0.
    pub weight: f32,
    /// Active at these model calls.
    pub calls: std::ops::Range<usize>,
    /// One factor per token of the site.
    pub mask: Option<Vec<f32>>,
}

/// Everything that is injected, by site. Empty means the plain model, bit for bit.
#[derive(Clone, Default)]
pub struct Injections(HashMap<usize, Vec<Branch>>);

impl Injections {
    /// Adds a branch at a site (index into [`super::UNet::sites`]).
    pub fn push(&mut self, site: usize, branch: Branch) {
        self.0.entry(site).or_default().push(branch);
    }

    /// What row `i` of the batch gets, alone.
    pub fn row(&self, i: usize) -> Self {
        let row = |b: &Branch| Branch { tokens: b.tokens.row(i), ..b.clone() };
        Injections(self.0.iter().map(|(site, b)| (*site, b.iter().map(row).collect())).collect())
    }

    /// True if nothing is injected anywhere.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The branches of a site that act at model call `call`, in the order of the references.
    pub fn at(&self, site: usize, call: usize) -> impl Iterator<Item = &Branch> {
        self.0.get(&site).into_iter().flatten().filter(move |b| b.calls.contains(&call))
    }
}
