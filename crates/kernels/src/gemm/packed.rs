//! Weights packed once for many products.

use super::{Blocks, Precision, Right, columns, pack, pack_panels};
use crate::Weight;
use crate::buffer::fresh;
use pack::WeightRows;

/// The panels of a right operand, one after the other.
pub(crate) struct Panels {
    /// Words of the shared dimension.
    depth: usize,
    /// Columns of a panel: a property of the level.
    nr: usize,
    /// Unaligned by a few words, see [`super::aligned`].
    words: Vec<f32>,
    skip: usize,
}

impl Panels {
    /// Packs the `cols` columns of `b`.
    pub fn new(b: &impl Right, cols: usize, blocks: &Blocks) -> Self {
        let (nr, depth) = (columns(), blocks.words());
        let len = cols.next_multiple_of(nr) * depth;
        let mut words = fresh(len + 16);
        let skip = words.as_ptr().align_offset(64).min(15);
        pack_panels(b, 0..cols, blocks, &mut words[skip..skip + len]);
        Panels { depth, nr, words, skip }
    }

    pub fn size_bytes(&self) -> usize {
        self.words.len() * 4
    }

    pub fn check(&self) {
        assert_eq!(self.nr, columns(), "packed for another level");
    }
}

impl Right for Panels {
    fn pack(&self, _: usize, _: usize, _: usize, _: usize, _: &mut [f32]) {
        unreachable!("packed before");
    }

    fn packed(&self, n0: usize, k0: usize, kc: usize) -> Option<&[f32]> {
        Some(&self.words[self.skip + n0 * self.depth + k0 * self.nr..][..kc * self.nr])
    }

    fn is_packed(&self) -> bool {
        true
    }
}

/// A weight `[n, k]` as the micro-kernel of the level in use reads it.
pub struct Packed {
    precision: Precision,
    n: usize,
    k: usize,
    gated: bool,
    panels: Panels,
    /// What the rows were divided by in int8.
    factors: Vec<f32>,
    /// What the sums hold too much because bytes of A are unsigned.
    zeros: Vec<i32>,
}

impl Packed {
    /// Packs `weight`, `[n, k]` row-major; `gated` for [`super::Then::Gate`]. In int8 each row is quantised with a factor
    /// of its own, its largest magnitude / 127.
    ///
    /// # Panics
    /// If `k` does not divide the number of weights, or their rows are gated and odd.
    pub fn new(weight: Weight, k: usize, precision: Precision, gated: bool) -> Self {
        assert!(k > 0 && weight.len() % k == 0);
        let n = weight.len() / k;
        assert!(!gated || n % 2 == 0);
        let nr = columns();
        let (factors, zeros) =
            if precision == Precision::Int8 { pack::columns(weight, k) } else { (Vec::new(), Vec::new()) };
        let b = WeightRows::new(weight, k, precision, gated.then_some(n / 2), &factors);
        let cols = if gated { (n / 2).div_ceil(nr / 2) * nr } else { n };
        let panels = Panels::new(&b, cols, &Blocks::even(k.div_ceil(precision.per_word())));
        Packed { precision, n, k, gated, panels, factors, zeros }
    }

    /// Its number format.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Rows of the weight.
    pub fn rows(&self) -> usize {
        self.n
    }

    /// Memory that it takes.
    pub fn size_bytes(&self) -> usize {
        self.panels.size_bytes() + self.factors.len() * 8
    }

    pub(super) fn columns(&self) -> (&[f32], &[i32]) {
        (&self.factors, &self.zeros)
    }

    pub(super) fn panels(&self) -> &Panels {
        &self.panels
    }

    pub(super) fn check(&self, k: usize, gated: bool) {
        assert_eq!((self.k, self.gated), (k, gated), "packed for another layer");
        self.panels.check();
    }
}
