//! Filters in bytes, whose transforms stay whole numbers: of taps up to 127 the filters of [`F4Whole`] are at most 49 · 127, which
//! 16 bits hold exactly. So the transform takes additions only, of 32 values at a time, and no digit of the filters. The inputs
//! get as many bits as the sums leave room for, 15 at most, which is found when the filters are packed.

use super::filters::{self, TAPS, Taps};
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

/// Channels of one sum, at most.
pub(super) const MOST_CHANNELS: usize = 224;

const OTHER_POINTS: &str = "filters in bytes have points of their own";

/// Filters of [`Format::Whole`], with a factor for each output's taps of the channels of one sum.
pub(super) struct Bytes {
    /// `[panels][chunks of channels][pairs of channels][2][taps][columns / 2][2 channels]` of i8.
    words: Vec<f32>,
    /// `[panels][sums][columns]`.
    factors: Vec<f32>,
    /// The largest magnitude of inputs with which no sum overflows.
    pub limit: f32,
    chunks: usize,
    nr: usize,
}

/// Words of one chunk of a panel.
fn chunk_words(nr: usize) -> usize {
    CHUNK * TAPS * nr / 4
}

impl Bytes {
    pub fn new(weight: Weight, outputs: usize, inputs: usize) -> Self {
        let nr = columns(level());
        let (panels, chunks) = (outputs.div_ceil(nr), inputs.div_ceil(CHUNK));
        let depth = Format::Whole.depth(chunks);
        let (size, sums) = (chunk_words(nr), chunks.div_ceil(depth));
        let (mut words, mut factors) = (fresh(panels * chunks * size), vec![0f32; panels * sums * nr]);
        let mut highest = vec![0f32; panels];
        let (to, by, most) = (Shared::new(&mut words), Shared::new(&mut factors), Shared::new(&mut highest));
        each(panels, |panel| {
            let mut stored = filters::no_taps();
            let mut memory = Buffer::stale(depth * size_of::<Taps>() / 4);
            let all = memory.as_chunks_mut().0;
            for (sum, first) in (0..chunks).step_by(depth).enumerate() {
                let here = depth.min(chunks - first);
                for (i, taps) in all.iter_mut().enumerate().take(here) {
                    let c = (first + i) * CHUNK;
                    filters::taps(weight, [outputs, inputs], panel * nr, c, &mut stored, taps);
                }
                // SAFETY: each panel is its own.
                let (to, by, most) = unsafe {
                    (
                        to.part((panel * chunks + first) * size, here * size),
                        by.part((panel * sums + sum) * nr, nr),
                        &mut most.part(panel, 1)[0],
                    )
                };
                quantise(&all[..here], nr, by, bytes_mut(to));
                *most = most.max(reach(Variant::F2, to, here)).max(reach(Variant::F4Whole, to, here));
            }
        });
        let most = highest.into_iter().fold(1f32, f32::max);
        // Sums are exact in f64, and were rounded to f32.
        let limit = (i32::MAX as f64 / (most as f64 * (1.0 + 1e-6))).floor().min(i16::MAX as f64) as f32;
        Bytes { words, factors, limit, chunks, nr }
    }

    pub fn size_bytes(&self) -> usize {
        (self.words.len() + self.factors.len()) * 4
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
        let factors = &self.factors[sum * self.nr..][..self.nr];
        let units = match variant {
            Variant::F2 => &F2::UNITS,
            Variant::F4Whole => &F4Whole::UNITS,
            Variant::F4 => unreachable!("{OTHER_POINTS}"),
        };
        let side = variant.inputs();
        for (p, found) in found.chunks_exact_mut(self.nr).enumerate().take(side * side) {
            let unit = units[p / side] * units[p % side];
            found.iter_mut().zip(factors).for_each(|(o, f)| *o = f * unit);
        }
    }
}

/// Words as the signed bytes they hold.
fn bytes_mut(words: &mut [f32]) -> &mut [i8] {
    // SAFETY: any f32 is four bytes, with weaker alignment.
    unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), words.len() * 4) }
}

per_level! {
    /// The taps of the channels of one sum, each output's to whole numbers and its factor, in the order of [`Bytes`].
    fn quantise(all: &[Taps], nr: usize, factors: &mut [f32], to: &mut [i8]) {
        // Magnitudes in the order of their bits, what is not a number last.
        let mut most = [0u32; 32];
        for row in all.iter().flat_map(|taps| taps[..CHUNK * TAPS * nr].chunks_exact(nr)) {
            most.iter_mut().zip(row).for_each(|(m, v)| *m = (*m).max(v.abs().to_bits()));
        }
        let mut inverses = [0f32; 32];
        for ((f, i), m) in factors.iter_mut().zip(&mut inverses).zip(&most) {
            *f = factor(&[f32::from_bits(*m)]);
            *i = inverse(*f);
        }
        let half = nr / 2;
        for (taps, to) in all.iter().zip(to.chunks_exact_mut(CHUNK * TAPS * nr)) {
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
}

/// Transforms `chunks` chunks of a panel.
fn transformed(variant: Variant, from: &[f32], chunks: usize, words: &mut [f32], plane: usize) {
    let nr = columns(level());
    assert!(from.len() >= chunks * chunk_words(nr));
    assert!(plane >= chunks * CHUNK / 2 * nr && words.len() >= plane * variant.products());
    // SAFETY: as asserted.
    unsafe { transform(variant, from.as_ptr().cast(), chunks, words.as_mut_ptr(), plane) };
}

/// The largest sum of magnitudes of one product and output.
fn reach(variant: Variant, from: &[f32], chunks: usize) -> f32 {
    let nr = columns(level());
    let plane = chunks * CHUNK / 2 * nr;
    let mut words = Buffer::stale(plane * variant.products());
    transformed(variant, from, chunks, &mut words, plane);
    let mut sums = [0f32; 32];
    let sums = &mut sums[..nr];
    let mut most = 0f32;
    for words in words.chunks_exact(plane) {
        sums.fill(0.0);
        magnitudes(words, sums);
        most = sums.iter().copied().fold(most, f32::max);
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
    /// `[chunks]` of bytes to words of two i16, `[products][plane]`.
    ///
    /// # Safety
    /// The memory described must be there, and what is written the caller's alone.
    fn transform(variant: Variant, from: *const i8, chunks: usize, to: *mut f32, plane: usize) = transform_on
}

#[inline(always)]
unsafe fn transform_on<V: Words>(
    variant: Variant,
    from: *const i8,
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
unsafe fn transform_of<V: Words, A: Whole>(from: *const i8, chunks: usize, to: *mut f32, plane: usize) {
    // SAFETY: the caller's promises.
    unsafe {
        let zero = V::splat(0.0);
        for part in 0..chunks * CHUNK {
            let (from, to) = (from.add(part * TAPS * 2 * V::WIDTH), to.add(part * V::WIDTH));
            for p in 0..A::IN * A::IN {
                soon_written(to.wrapping_add(p * plane));
            }
            let mut half = [[zero; 3]; MOST];
            for x in 0..3 {
                let tap = from.add(x * 2 * V::WIDTH);
                let row = 3 * 2 * V::WIDTH;
                let t = A::whole([V::load_i8(tap), V::load_i8(tap.add(row)), V::load_i8(tap.add(2 * row))]);
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
