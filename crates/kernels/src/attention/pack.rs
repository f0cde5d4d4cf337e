//! Tiles of keys and values, and how they are packed.

use super::{Form, eight};
use crate::buffer::Buffer;
use crate::gemm::{LINE, lines_bf16, pack_bf16, pack_f32, pair as pair_bf16};
use crate::lanes::transpose;
use crate::level::{level, per_level, tile_rows};
use crate::words::word_bf16;

/// `n` rows in as few tiles as there can be, all but equally high and the higher ones first: start and end of each.
pub(super) fn tiles(n: usize) -> impl Iterator<Item = (usize, usize)> {
    runs(n).into_iter().flat_map(|run| (0..run.count).map(move |i| (run.at(i), run.at(i + 1))))
}

/// Tiles of the same height.
#[derive(Clone, Copy)]
pub(super) struct Run {
    pub start: usize,
    pub count: usize,
    pub height: usize,
}

impl Run {
    /// Where tile `i` starts.
    fn at(&self, i: usize) -> usize {
        self.start + i * self.height
    }

    /// Without the tiles from row `end` on.
    pub fn before(self, end: usize) -> Self {
        Run { count: self.count.min(end.saturating_sub(self.start).div_ceil(self.height.max(1))), ..self }
    }
}

/// The same tiles, run by run.
pub(super) fn runs(n: usize) -> [Run; 2] {
    let tiles = n.div_ceil(tile_rows(level())).max(1);
    let (height, higher) = (n / tiles, n % tiles);
    let first = Run { start: 0, count: higher, height: height + 1 };
    [first, Run { start: first.at(higher), count: tiles - higher, height }]
}

/// `[keys][dim]` to tiles `[dim][keys of the tile]`.
pub(super) fn pack_keys(from: &[f32], stride: usize, n: usize, dim: usize, to: &mut [f32]) {
    for (start, end) in tiles(n) {
        pack_f32(end - start, &mut to[start * dim..end * dim], |r| &from[(start + r) * stride..][..dim]);
    }
}

/// `[keys][dim]` to tiles `[keys][channels of the tile]`.
pub(super) fn pack_values(from: &[f32], stride: usize, n: usize, dim: usize, to: &mut [f32]) {
    for (start, end) in tiles(dim) {
        for (k, to) in to[start * n..end * n].chunks_exact_mut(end - start).enumerate() {
            to.copy_from_slice(&from[k * stride + start..k * stride + end]);
        }
    }
}

/// `[keys][dim]` to tiles `[words of two channels][keys of the tile]`, in bf16.
pub(super) fn pack_keys_bf16(from: &[f32], stride: usize, n: usize, dim: usize, to: &mut [f32]) {
    let words = dim.div_ceil(2);
    for (start, end) in tiles(n) {
        let to = &mut to[start * words..end * words];
        pack_bf16(end - start, dim, to, |r| &from[(start + r) * stride..][..dim]);
    }
}

per_level! {
    /// `[keys][dim]` to tiles `[words of two keys][channels of the tile]`, in bf16.
    pub(super) fn pack_values_bf16(from: &[f32], stride: usize, n: usize, dim: usize, to: &mut [f32]) {
        let words = n.div_ceil(2);
        for (start, end) in tiles(dim) {
            for (w, to) in to[start * words..end * words].chunks_exact_mut(end - start).enumerate() {
                let first = &from[2 * w * stride + start..][..end - start];
                if 2 * w + 1 < n {
                    let second = &from[(2 * w + 1) * stride + start..][..end - start];
                    to.iter_mut().zip(first.iter().zip(second)).for_each(|(t, (a, b))| *t = word_bf16(*a, *b));
                } else {
                    to.iter_mut().zip(first).for_each(|(t, a)| *t = word_bf16(*a, 0.0));
                }
            }
        }
    }
}

/// `[keys][dim]`, less `mean`, to keys of words of two channels, in bf16, with zeros up to whole tiles.
pub(super) fn pack_keys_tiles(
    from: &[f32],
    stride: usize,
    n: usize,
    dim: usize,
    mean: &[f32],
    to: &mut [f32],
) {
    let mut centred = Buffer::stale(dim);
    for (k, to) in to.chunks_exact_mut(Form::Tiles.words(dim)).enumerate().take(n) {
        eight::centre(&from[k * stride..][..dim], mean, &mut centred);
        lines_bf16(&centred, to, LINE);
    }
}

/// `[keys][dim]` to channels of words of two keys, in bf16, with zeros up to whole tiles.
pub(super) fn pack_values_tiles(from: &[f32], stride: usize, n: usize, dim: usize, to: &mut [f32]) {
    let words = Form::Tiles.words(n);
    let mut pairs = Buffer::stale(words * dim);
    let none = vec![0f32; dim];
    for (w, to) in pairs.chunks_exact_mut(dim).enumerate() {
        let row = |k: usize| if k < n { &from[k * stride..][..dim] } else { &none };
        pair_bf16(row(2 * w), row(2 * w + 1), to);
    }
    assert!(to.len() == dim * words);
    // SAFETY: as many rows and columns are in both.
    unsafe { transpose(words, dim, pairs.as_ptr(), dim, to.as_mut_ptr(), words) };
}
