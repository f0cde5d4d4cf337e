//! Filters in bytes, whose transforms are additions of whole numbers: of taps up to [`MOST_TAP`] the filters of [`F4Whole`] are at
//! most 49 times as large, which 16 bits hold exactly, 32 of them in a vector.
//!
//! Bytes have a factor for each output's taps of 16 channels. In one sum taps must have one unit, so they are first brought
//! to that of the sum, and rounded: the finest with which taps stay small enough, and sums below 2³¹ with inputs of 13 bits.
//! It is found when the filters are packed, and mostly a half to a fifth of a byte's step.

use super::filters::{self, TAPS, Taps};
use super::sixteen::FILTER_SUM;
use super::tile::{CHUNK, columns};
use super::transforms::{F2, F4Whole, MOST, Whole};
use super::{Format, Variant};
use crate::Weight;
use crate::buffer::{Buffer, fresh};
use crate::gemm::{factor, inverse};
use crate::lanes::ROUND;
use crate::level::{level, per_level};
use crate::share::{Shared, each, soon_written};
use crate::words::{Words, on_words};
use std::ops::Range;

/// Channels of one sum, at most: the more, the coarser its unit.
pub(super) const MOST_CHANNELS: usize = 160;
/// The largest tap: 49 of them are below 2¹⁵.
const MOST_TAP: f32 = 668.0;
/// A byte's step in units of its sum, times this, is what its bytes are multiplied by.
const UNIT: f32 = 4096.0;

const OTHER_POINTS: &str = "filters in bytes have points of their own";

/// Filters of [`Format::Whole`].
pub(super) struct Bytes {
    /// `[panels][chunks of channels]` of what the bytes are multiplied by, `[columns]` of words of twice the same i16, and the
    /// bytes, `[pairs of channels][2][taps][columns / 2][2 channels]`.
    words: Vec<f32>,
    /// The units, `[panels][sums][columns]`.
    units: Vec<f32>,
    chunks: usize,
    nr: usize,
}

/// Words of one chunk of a panel.
fn chunk_words(nr: usize) -> usize {
    nr + CHUNK * TAPS * nr / 4
}

impl Bytes {
    pub fn new(weight: Weight, outputs: usize, inputs: usize) -> Self {
        let nr = columns(level());
        let (panels, chunks) = (outputs.div_ceil(nr), inputs.div_ceil(CHUNK));
        let depth = Format::Whole.depth(chunks);
        let (size, sums) = (chunk_words(nr), chunks.div_ceil(depth));
        let (mut words, mut units) = (fresh(panels * chunks * size), vec![0f32; panels * sums * nr]);
        let (to, by) = (Shared::new(&mut words), Shared::new(&mut units));
        each(panels, |panel| {
            let (mut stored, mut taps) = (filters::no_taps(), filters::no_taps());
            for (sum, first) in (0..chunks).step_by(depth).enumerate() {
                let here = depth.min(chunks - first);
                // SAFETY: each panel is its own.
                let (to, units) = unsafe {
                    (
                        to.part((panel * chunks + first) * size, here * size),
                        by.part((panel * sums + sum) * nr, nr),
                    )
                };
                let mut factors = [[0f32; 32]; MOST_CHANNELS / CHUNK];
                for (i, to) in to.chunks_exact_mut(size).enumerate() {
                    let c = (first + i) * CHUNK;
                    filters::taps(weight, [outputs, inputs], panel * nr, c, &mut stored, &mut taps);
                    quantise(&taps, nr, &mut factors[i], bytes_mut(&mut to[nr..]));
                }
                choose_units(&factors[..here], to, units);
            }
        });
        Bytes { words, units, chunks, nr }
    }

    pub fn size_bytes(&self) -> usize {
        (self.words.len() + self.units.len()) * 4
    }

    /// The filters of the outputs from `n0` on for the channels of one sum, as words of two channels, `[products][plane]`, and
    /// behind them their factors, `[products][outputs]`.
    pub fn transform(
        &self,
        variant: Variant,
        n0: usize,
        channels: Range<usize>,
        plane: usize,
        out: &mut [f32],
    ) {
        let (panel, first, here) = (n0 / self.nr, channels.start / CHUNK, channels.len() / CHUNK);
        let (words, found) = out.split_at_mut(plane * variant.products());
        let size = chunk_words(self.nr);
        let from = &self.words[(panel * self.chunks + first) * size..][..here * size];
        transformed(variant, from, here, words, plane);
        let depth = Format::Whole.depth(self.chunks);
        let sum = panel * self.chunks.div_ceil(depth) + first / depth;
        let own = &self.units[sum * self.nr..][..self.nr];
        let units = match variant {
            Variant::F2 => &F2::UNITS,
            Variant::F4Whole => &F4Whole::UNITS,
            Variant::F4 => unreachable!("{OTHER_POINTS}"),
        };
        let side = variant.inputs();
        for (p, found) in found.chunks_exact_mut(self.nr).enumerate().take(side * side) {
            let unit = units[p / side] * units[p % side];
            found.iter_mut().zip(own).for_each(|(o, own)| *o = own * unit);
        }
    }
}

/// Words as the signed bytes they hold.
fn bytes_mut(words: &mut [f32]) -> &mut [i8] {
    // SAFETY: any f32 is four bytes, with weaker alignment.
    unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), words.len() * 4) }
}

per_level! {
    /// The taps of one chunk, each output's to whole numbers and their factor, in the order of [`Bytes`].
    fn quantise(taps: &Taps, nr: usize, factors: &mut [f32; 32], to: &mut [i8]) {
        // Magnitudes in the order of their bits, what is not a number last.
        let mut most = [0u32; 32];
        for row in taps[..CHUNK * TAPS * nr].chunks_exact(nr) {
            most.iter_mut().zip(row).for_each(|(m, v)| *m = (*m).max(v.abs().to_bits()));
        }
        let mut inverses = [0f32; 32];
        for ((f, i), m) in factors.iter_mut().zip(&mut inverses).zip(&most) {
            *f = factor(&[f32::from_bits(*m)]);
            *i = inverse(*f);
        }
        let half = nr / 2;
        for (part, to) in to.chunks_exact_mut(TAPS * nr).enumerate() {
            let (pair, first) = (part / 2, part % 2 * half);
            for (tap, to) in to.as_chunks_mut::<2>().0.chunks_exact_mut(half).enumerate() {
                let row = |c: usize| &taps[((2 * pair + c) * TAPS + tap) * nr + first..][..half];
                for (((to, i), low), high) in to.iter_mut().zip(&inverses[first..]).zip(row(0)).zip(row(1)) {
                    *to = [low, high].map(|v| (v * i + ROUND).to_bits() as i8);
                }
            }
        }
    }
}

/// The units of one sum, from the factors of its chunks, whose bytes are in `words`; what these are multiplied by is written
/// before them.
fn choose_units(factors: &[[f32; 32]], words: &mut [f32], units: &mut [f32]) {
    let (nr, chunks) = (units.len(), factors.len());
    for (o, unit) in units.iter_mut().enumerate() {
        // What is not a number stays so.
        let most = factors.iter().map(|f| f[o]).fold(0f32, |m, f| if f > m || f.is_nan() { f } else { m });
        *unit = most * 127.0 / MOST_TAP;
    }
    loop {
        for (factors, words) in factors.iter().zip(words.chunks_exact_mut(chunk_words(nr))) {
            for ((word, f), unit) in words.iter_mut().zip(factors).zip(&*units) {
                let by = (f / unit * UNIT).round_ties_even() as i16 as u16 as u32;
                *word = f32::from_bits(by << 16 | by);
            }
        }
        let reach = [Variant::F2, Variant::F4Whole].map(|variant| reach(variant, words, chunks));
        let mut fits = true;
        for (unit, (a, b)) in units.iter_mut().zip(reach[0].iter().zip(&reach[1])) {
            let sum = a.max(*b);
            if sum > FILTER_SUM {
                // A little more, for taps are rounded anew.
                *unit *= sum / FILTER_SUM * 1.005;
                fits = false;
            }
        }
        if fits {
            return;
        }
    }
}

/// Transforms `chunks` chunks of a panel.
fn transformed(variant: Variant, from: &[f32], chunks: usize, words: &mut [f32], plane: usize) {
    let nr = columns(level());
    assert!(from.len() >= chunks * chunk_words(nr));
    assert!(plane >= chunks * CHUNK / 2 * nr && words.len() >= plane * variant.products());
    // SAFETY: as asserted.
    unsafe { transform(variant, from.as_ptr(), chunks, words.as_mut_ptr(), plane) };
}

/// The largest sum of magnitudes of each output's products.
fn reach(variant: Variant, from: &[f32], chunks: usize) -> [f32; 32] {
    let nr = columns(level());
    let plane = chunks * CHUNK / 2 * nr;
    let mut words = Buffer::stale(plane * variant.products());
    transformed(variant, from, chunks, &mut words, plane);
    let mut most = [0f32; 32];
    for words in words.chunks_exact(plane) {
        let mut sums = [0f32; 32];
        magnitudes(words, &mut sums[..nr]);
        most.iter_mut().zip(sums).for_each(|(m, s)| *m = m.max(s));
    }
    most
}

per_level! {
    /// Adds the magnitudes of both i16 of each word: whole numbers, which stay exact.
    fn magnitudes(words: &[f32], sums: &mut [f32]) {
        for row in words.chunks_exact(sums.len()) {
            for (s, w) in sums.iter_mut().zip(row) {
                let w = w.to_bits() as i32;
                *s += ((w as i16 as i32).abs() + (w >> 16).abs()) as f32;
            }
        }
    }
}

on_words! {
    /// `[chunks]` of [`Bytes`] to words of two i16, `[products][plane]`.
    ///
    /// # Safety
    /// The memory described must be there, and what is written the caller's alone.
    fn transform(variant: Variant, from: *const f32, chunks: usize, to: *mut f32, plane: usize) = transform_on
}

#[inline(always)]
unsafe fn transform_on<V: Words>(
    variant: Variant,
    from: *const f32,
    chunks: usize,
    to: *mut f32,
    plane: usize,
) {
    // SAFETY: the caller's promises.
    unsafe {
        match variant {
            Variant::F2 => transform_of::<V, F2>(from, chunks, to, plane),
            Variant::F4Whole => transform_of::<V, F4Whole>(from, chunks, to, plane),
            Variant::F4 => unreachable!("{OTHER_POINTS}"),
        }
    }
}

// Rows and columns by their indices: both are needed.
#[allow(clippy::needless_range_loop)]
#[inline(always)]
unsafe fn transform_of<V: Words, A: Whole>(from: *const f32, chunks: usize, to: *mut f32, plane: usize) {
    let nr = 2 * V::WIDTH;
    // SAFETY: the caller's promises.
    unsafe {
        let zero = V::splat(0.0);
        for part in 0..chunks * CHUNK {
            let from = from.add(part / CHUNK * chunk_words(nr));
            let by = V::load(from.add(part % 2 * V::WIDTH));
            let from = from.add(nr).cast::<i8>().add(part % CHUNK * TAPS * nr);
            let to = to.add(part * V::WIDTH);
            for p in 0..A::IN * A::IN {
                soon_written(to.wrapping_add(p * plane));
            }
            let mut half = [[zero; 3]; MOST];
            for x in 0..3 {
                let mut g = [zero; 3];
                for (y, g) in g.iter_mut().enumerate() {
                    *g = V::load_i8(from.add((y * 3 + x) * nr)).mul_i16(by);
                }
                let t = A::whole(g);
                for y in 0..A::IN {
                    half[y][x] = t[y];
                }
            }
            for (y, half) in half.iter().enumerate().take(A::IN) {
                let t = A::whole(*half);
                for (x, t) in t.iter().enumerate().take(A::IN) {
                    t.store(to.add((y * A::IN + x) * plane));
                }
            }
        }
    }
}
