//! The specification of the micro-kernels, in plain Rust.
//!
//! Operands are 32-bit words: one f32, two bf16 (the first in the lower half) or four bytes (the first lowest).
//! `tile[rows, 16] (+)= block[rows, kc] · panel[kc, 16]`, summed over the words in ascending order from zero; the
//! block has lines of [`LINE`] words, the first ones of its rows, then the second ones. With `more` the finished sums are added to what the tile holds. What `soon` names may be fetched
//! meanwhile.

use super::LINE;
use super::finish::Tile;
use super::soon::Soon;

/// Columns of the tile.
const NR: usize = 16;
/// Most rows of the tile.
const MR: usize = 4;

#[inline(always)]
fn tile_of<S: Copy + Default>(
    (rows, kc, _): (usize, usize, usize),
    (block, panel): (&[f32], &[f32]),
    tile: &mut [f32],
    fma: impl Fn(S, u32, u32) -> S,
    finish: impl Fn(&mut f32, S),
) {
    let mut sums = [[S::default(); NR]; MR];
    for (w, b) in panel.as_chunks::<NR>().0.iter().enumerate().take(kc) {
        for (r, sums) in sums.iter_mut().enumerate().take(rows) {
            let a = block[(w / LINE * rows + r) * LINE + w % LINE].to_bits();
            for (s, b) in sums.iter_mut().zip(b) {
                *s = fma(*s, a, b.to_bits());
            }
        }
    }
    for (tile, sums) in tile[..rows * NR].as_chunks_mut::<NR>().0.iter_mut().zip(&sums) {
        tile.iter_mut().zip(sums).for_each(|(t, s)| finish(t, *s));
    }
}

/// Products of f32.
pub(super) fn f32(
    size: (usize, usize, usize),
    operands: (&[f32], &[f32]),
    sums: &mut [f32],
    more: bool,
    _: &Soon,
    _: Option<&Tile>,
) -> bool {
    let fma = |s: f32, a: u32, b: u32| s + f32::from_bits(a) * f32::from_bits(b);
    tile_of(size, operands, sums, fma, |t, s| *t = if more { *t + s } else { s });
    false
}

/// Products of bf16, summed in f32: the upper of a word's two first, each with one rounding (what `vdpbf16ps` does,
/// which also takes numbers below the normal range as zero).
pub(super) fn bf16(
    size: (usize, usize, usize),
    operands: (&[f32], &[f32]),
    sums: &mut [f32],
    more: bool,
    _: &Soon,
    _: Option<&Tile>,
) -> bool {
    let (high, low) = (|w: u32| f32::from_bits(w & 0xffff_0000), |w: u32| f32::from_bits(w << 16));
    let fma = |s: f32, a: u32, b: u32| low(a).mul_add(low(b), high(a).mul_add(high(b), s));
    tile_of(size, operands, sums, fma, |t, s| *t = if more { *t + s } else { s });
    false
}

/// Products of unsigned bytes of A and signed bytes of B, summed exactly: the tile holds the bits of i32.
pub(super) fn int8(
    size: (usize, usize, usize),
    operands: (&[f32], &[f32]),
    sums: &mut [f32],
    more: bool,
    _: &Soon,
    _: Option<&Tile>,
) -> bool {
    let fma = |s: i32, a: u32, b: u32| {
        let (a, b) = (a.to_le_bytes(), b.to_le_bytes());
        a.iter().zip(b).fold(s, |s, (a, b)| s + *a as i32 * (b as i8) as i32)
    };
    tile_of(size, operands, sums, fma, |t, s: i32| {
        let before = if more { t.to_bits() as i32 } else { 0 };
        *t = f32::from_bits((before + s) as u32);
    });
    false
}
