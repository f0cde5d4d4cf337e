//! Transformed operands as whole numbers of 16 bits, whose products are summed exactly in 32.
//!
//! The transforms of F(4×4) enlarge what was rounded: in bf16 its results are 1 % off. Whole numbers of 16 bits cost the same
//! (`vpdpwssd` beside `vdpbf16ps`) and keep more: inputs of one tile and product have 13 bits and a common factor, filters
//! of one output as many as the sums leave room for, 15 at most. Together they are as exact as the definition in bf16.
//! What sums can reach is bounded by the magnitudes of the filters' taps before they are transformed.

use super::filters::{TAPS, Taps};
use super::tile::{CHUNK, columns};
use super::transforms::{Algorithm, F2, F4, F4Whole, MOST};
use super::{Conv, Filters, Variant};
use crate::buffer::Buffer;
use crate::lanes::Lanes;
use crate::level::level;
use crate::share::soon_written;
use crate::words::{Words, on_words};
use std::ops::Range;

/// The largest input: 13 bits.
const INPUT: f32 = 8191.0;
/// The largest filter.
const FILTER: f32 = 32767.0;
/// The largest sum of a filter's magnitudes over the channels of one sum: with inputs of [`INPUT`] it stays below 2³¹. Each of
/// [`MOST_CHANNELS`] values may have been rounded up by a half, and the bound itself by a few parts in 10⁷.
pub(super) const FILTER_SUM: f32 = ((1u64 << 31) as f64 / INPUT as f64) as f32 - 200.0;
/// Channels of one sum, at most. The fewer, the more bits are left for each filter.
pub(super) const MOST_CHANNELS: usize = 160;

on_words! {
    /// One tile's products `[products][plane]`, of `chunks` chunks of channels each, to i16; `to` is where the first chunk of
    /// the first product goes, the next chunk is `chunk` words on, the next product `to_plane`. The factor of product p goes to
    /// `factors[p · factor_plane]`.
    ///
    /// # Safety
    /// The memory described must be there, and what is written the caller's alone.
    pub(super) fn inputs(
        products: usize, chunks: usize, from: *const f32, plane: usize, to: *mut f32, chunk: usize, to_plane: usize,
        factors: *mut f32, factor_plane: usize,
    ) = inputs_on
}

#[allow(clippy::too_many_arguments)]
#[inline(always)]
unsafe fn inputs_on<V: Words>(
    products: usize,
    chunks: usize,
    from: *const f32,
    plane: usize,
    to: *mut f32,
    chunk: usize,
    to_plane: usize,
    factors: *mut f32,
    factor_plane: usize,
) {
    // SAFETY: the caller's promises; CHUNK is a multiple of every width.
    unsafe {
        for p in 0..products {
            let from = from.add(p * plane);
            let (mut most, mut sum) = ([V::splat(0.0); 2], [V::splat(0.0); 2]);
            // Two at a time, named by numbers that are known: else they would be in memory.
            for c in (0..chunks * CHUNK).step_by(2 * V::WIDTH) {
                for i in 0..2 {
                    let c = c + i * V::WIDTH;
                    if c < chunks * CHUNK {
                        let v = V::load(from.add(c)).abs();
                        most[i] = most[i].max(v);
                        sum[i] = sum[i].add(v);
                    }
                }
            }
            let (most, sum) = (most[0].max(most[1]), sum[0].add(sum[1]));
            let (mut high, mut all) = ([0f32; 16], [0f32; 16]);
            most.store(high.as_mut_ptr());
            sum.store(all.as_mut_ptr());
            let (mut most, mut sum) = (0f32, 0f32);
            for l in 0..V::WIDTH {
                most = most.max(high[l]);
                sum += all[l];
            }
            let (factor, inverse) = factor(most, sum, INPUT, f32::MAX);
            *factors.add(p * factor_plane) = factor;
            let (inverse, to) = (V::splat(inverse), to.add(p * to_plane));
            for c in (0..chunks * CHUNK).step_by(V::WIDTH) {
                let to = to.add(c / CHUNK * chunk).cast::<i16>().add(c % CHUNK);
                V::load(from.add(c)).mul(inverse).store_i16(to);
            }
        }
    }
}

/// What values are divided by so that the largest is at most `limit` and the sum of magnitudes at most `sum_limit`, and the
/// inverse: 0 where all are 0, not a number where one is not finite.
#[inline(always)]
fn factor(most: f32, sum: f32, limit: f32, sum_limit: f32) -> (f32, f32) {
    let factor = (most / limit).max(sum / sum_limit);
    let inverse = 1.0 / factor;
    match (sum.is_finite(), inverse.is_finite()) {
        (true, true) => (factor, inverse),
        (true, false) => (0.0, 0.0),
        (false, _) => (f32::NAN, 0.0),
    }
}

on_words! {
    /// The factors of some filters, two vectors for each product, from their taps, `[chunks]` of [`Taps`]; and their inverses,
    /// which `inverses` gets. They keep the largest magnitude and the sum of all that the transform can reach to the limits.
    ///
    /// # Safety
    /// Factors and inverses must have room for two vectors of each product.
    fn factors(variant: Variant, taps: &[Taps], factors: *mut f32, inverses: *mut f32) = factors_on
}

#[inline(always)]
unsafe fn factors_on<V: Words>(variant: Variant, taps: &[Taps], factors: *mut f32, inverses: *mut f32) {
    // SAFETY: the caller's promises.
    unsafe {
        match variant {
            Variant::F2 => factors_of::<V, F2>(taps, factors, inverses),
            Variant::F4 => factors_of::<V, F4>(taps, factors, inverses),
            Variant::F4Whole => factors_of::<V, F4Whole>(taps, factors, inverses),
        }
    }
}

#[inline(always)]
unsafe fn factors_of<V: Words, A: Algorithm>(taps: &[Taps], factors: *mut f32, inverses: *mut f32) {
    let nr = 2 * V::WIDTH;
    // SAFETY: reads stay within the chunks, since nr is at most their columns; writes are the caller's promise.
    unsafe {
        let zero = V::splat(0.0);
        for h in [0, V::WIDTH] {
            let (mut most, mut sum) = ([[zero; 3]; 3], [[zero; 3]; 3]);
            for y in 0..3 {
                for x in 0..3 {
                    let (mut m, mut s) = ([zero; 2], [zero; 2]);
                    for taps in taps {
                        for c in (0..CHUNK).step_by(2) {
                            for i in 0..2 {
                                let tap = ((c + i) * TAPS + y * 3 + x) * nr + h;
                                let v = V::load(taps.as_ptr().add(tap)).abs();
                                m[i] = m[i].max(v);
                                s[i] = s[i].add(v);
                            }
                        }
                    }
                    most[x][y] = m[0].max(m[1]);
                    sum[x][y] = s[0].add(s[1]);
                }
            }
            let (most, sum) = (reach::<V, A>(most), reach::<V, A>(sum));
            for y in 0..A::IN {
                for x in 0..A::IN {
                    let (mut high, mut all) = ([0f32; 16], [0f32; 16]);
                    most[y][x].store(high.as_mut_ptr());
                    sum[y][x].store(all.as_mut_ptr());
                    for l in 0..V::WIDTH {
                        (high[l], all[l]) = factor(high[l], all[l], FILTER, FILTER_SUM);
                    }
                    let at = (y * A::IN + x) * nr + h;
                    V::load(high.as_ptr()).store(factors.add(at));
                    V::load(all.as_ptr()).store(inverses.add(at));
                }
            }
        }
    }
}

/// What the transform of filters with taps of these magnitudes, `[x][y]`, can reach at most.
#[allow(clippy::needless_range_loop)]
#[inline(always)]
fn reach<V: Lanes, A: Algorithm>(taps: [[V; 3]; 3]) -> [[V; MOST]; MOST] {
    let mut half = [[taps[0][0]; 3]; MOST];
    for x in 0..3 {
        let t = A::reach(taps[x]);
        for y in 0..A::IN {
            half[y][x] = t[y];
        }
    }
    let mut out = [[taps[0][0]; MOST]; MOST];
    for y in 0..A::IN {
        out[y] = A::reach(half[y]);
    }
    out
}

on_words! {
    /// The filters of one chunk of channels, transformed, times `inverses`, as words of two channels: `[products][to_plane]`.
    ///
    /// # Safety
    /// The memory described must be there, and what is written the caller's alone.
    fn chunk(variant: Variant, taps: &Taps, inverses: *const f32, to: *mut f32, to_plane: usize) = chunk_on
}

#[inline(always)]
unsafe fn chunk_on<V: Words>(
    variant: Variant,
    taps: &Taps,
    inverses: *const f32,
    to: *mut f32,
    to_plane: usize,
) {
    // SAFETY: the caller's promises.
    unsafe {
        match variant {
            Variant::F2 => chunk_of::<V, F2>(taps, inverses, to, to_plane),
            Variant::F4 => chunk_of::<V, F4>(taps, inverses, to, to_plane),
            Variant::F4Whole => chunk_of::<V, F4Whole>(taps, inverses, to, to_plane),
        }
    }
}

// Rows and columns by their indices: both are needed.
#[allow(clippy::needless_range_loop)]
#[inline(always)]
unsafe fn chunk_of<V: Words, A: Algorithm>(taps: &Taps, inverses: *const f32, to: *mut f32, to_plane: usize) {
    let nr = 2 * V::WIDTH;
    // SAFETY: reads of taps stay within them, since nr is at most their columns; the rest is the caller's promise.
    unsafe {
        let zero = V::splat(0.0);
        for c in (0..CHUNK).step_by(2) {
            for h in [0, V::WIDTH] {
                for p in 0..A::IN * A::IN {
                    soon_written(to.wrapping_add(p * to_plane + c / 2 * nr + h));
                }
                let mut half = [[[zero; 3]; MOST]; 2];
                for (i, half) in half.iter_mut().enumerate() {
                    for x in 0..3 {
                        let tap = taps.as_ptr().add(((c + i) * TAPS + x) * nr + h);
                        let t = A::filter([V::load(tap), V::load(tap.add(3 * nr)), V::load(tap.add(6 * nr))]);
                        for y in 0..A::IN {
                            half[y][x] = t[y];
                        }
                    }
                }
                for y in 0..A::IN {
                    let (low, high) = (A::filter(half[0][y]), A::filter(half[1][y]));
                    for x in 0..A::IN {
                        let p = y * A::IN + x;
                        let inverse = V::load(inverses.add(p * nr + h));
                        let word = low[x].mul(inverse).pair_i16(high[x].mul(inverse));
                        word.store(to.add(p * to_plane + c / 2 * nr + h));
                    }
                }
            }
        }
    }
}

/// The filters of the outputs from `n0` on for the given channels, at most [`MOST_CHANNELS`], as words of two channels,
/// `[products][plane]`, and behind them their factors, `[products][outputs]`; zero beyond the true ones.
pub(super) fn filters(
    variant: Variant,
    from: Filters,
    conv: &Conv,
    n0: usize,
    channels: Range<usize>,
    plane: usize,
    out: &mut [f32],
) {
    let (nr, products) = (columns(level()), variant.products());
    let (words, found) = out.split_at_mut(plane * products);
    let chunks = channels.len() / CHUNK;
    assert!(
        found.len() >= nr * products && plane >= chunks * CHUNK / 2 * nr && chunks <= MOST_CHANNELS / CHUNK
    );
    // The last part is what `taps` works in.
    let mut memory = Buffer::stale((chunks + 1) * size_of::<Taps>() / 4);
    let (all, _) = memory.as_chunks_mut();
    let (stored, all) = all.split_last_mut().expect("at least one");
    for (i, taps) in all.iter_mut().enumerate() {
        from.taps(conv, n0, channels.start + i * CHUNK, stored, taps);
    }
    let mut inverses = [0f32; MOST * MOST * 32];
    // SAFETY: there is room for two vectors of each product, and for the words of all chunks, as asserted.
    unsafe {
        factors(variant, all, found.as_mut_ptr(), inverses.as_mut_ptr());
        for (i, taps) in all.iter().enumerate() {
            let to = words[i * CHUNK / 2 * nr..].as_mut_ptr();
            chunk(variant, taps, inverses.as_ptr(), to, plane);
        }
    }
}
