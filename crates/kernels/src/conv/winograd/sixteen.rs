//! Transformed operands as whole numbers of 16 bits, whose products are summed exactly in 32.
//!
//! The transforms of F(4×4) enlarge what was rounded: in bf16 its results are 1 % off. Whole numbers of 16 bits cost the same
//! (`vpdpwssd` beside `vdpbf16ps`) and keep more: inputs of one tile and product have 13 bits and a common factor, filters
//! of one output as many as the sums leave room for, 15 at most. Together they are as exact as the definition in bf16.

use super::tile::CHUNK;
use crate::words::{Words, on_words};

/// The largest input: 13 bits.
const INPUT: f32 = 8191.0;
/// The largest filter.
const FILTER: f32 = 32767.0;
/// The largest sum of a filter's magnitudes over the channels of one sum: with inputs of [`INPUT`] it stays below 2³¹. Each of
/// up to 512 values may have been rounded up by a half.
const FILTER_SUM: f32 = ((1u64 << 31) as f64 / INPUT as f64) as f32 - 300.0;
/// Channels of one sum, at most, for [`FILTER_SUM`] to hold.
pub(super) const MOST_CHANNELS: usize = 512;

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
            for c in (0..chunks * CHUNK).step_by(V::WIDTH) {
                let v = V::load(from.add(c)).abs();
                let i = c / V::WIDTH % 2;
                most[i] = most[i].max(v);
                sum[i] = sum[i].add(v);
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
    /// Filters `[products][plane]`, of `channels` rows of two vectors of outputs each, to words of two channels, `[products][to_plane]`.
    /// The factors of the outputs go to `factors`, two vectors for each product.
    ///
    /// # Safety
    /// The memory described must be there, and what is written the caller's alone. `channels` must be even, and at most
    /// [`MOST_CHANNELS`].
    pub(super) fn filters(
        products: usize, channels: usize, from: *const f32, plane: usize, to: *mut f32, to_plane: usize,
        factors: *mut f32,
    ) = filters_on
}

#[inline(always)]
unsafe fn filters_on<V: Words>(
    products: usize,
    channels: usize,
    from: *const f32,
    plane: usize,
    to: *mut f32,
    to_plane: usize,
    factors: *mut f32,
) {
    let nr = 2 * V::WIDTH;
    // SAFETY: the caller's promises.
    unsafe {
        for p in 0..products {
            for h in [0, V::WIDTH] {
                let from = from.add(p * plane + h);
                let (mut most, mut sum) = ([V::splat(0.0); 2], [V::splat(0.0); 2]);
                for c in 0..channels {
                    let v = V::load(from.add(c * nr)).abs();
                    most[c % 2] = most[c % 2].max(v);
                    sum[c % 2] = sum[c % 2].add(v);
                }
                let (mut high, mut all) = ([0f32; 16], [0f32; 16]);
                most[0].max(most[1]).store(high.as_mut_ptr());
                sum[0].add(sum[1]).store(all.as_mut_ptr());
                for l in 0..V::WIDTH {
                    (high[l], all[l]) = factor(high[l], all[l], FILTER, FILTER_SUM);
                }
                V::load(high.as_ptr()).store(factors.add(p * nr + h));
                let inverse = V::load(all.as_ptr());
                let to = to.add(p * to_plane + h);
                for c in (0..channels).step_by(2) {
                    let low = V::load(from.add(c * nr)).mul(inverse);
                    let high = V::load(from.add((c + 1) * nr)).mul(inverse);
                    low.pair_i16(high).store(to.add(c / 2 * nr));
                }
            }
        }
    }
}
