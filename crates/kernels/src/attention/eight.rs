//! Attention whose products read bytes, for int8.
//!
//! Keys lose their mean over the tokens, which changes all scores of a query alike and so no softmax (Zhang et al., SageAttention,
//! arXiv 2410.02367). Then a block of keys has one factor, and a query one of its own. Probabilities of a block are relative
//! to the highest score that the query has in this block, so that a peak elsewhere does not cost them their digits; values
//! have a factor for each channel of a block. All sums are exact in i32.

use super::block::WIDEST;
use super::pack::{Run, runs, tiles};
use crate::act::{exp2_lanes, exp2_short_lanes};
use crate::buffer::Buffer;
use crate::gemm::{ZERO, factor, inverse, pack_int8};
use crate::lanes::ROUND;
use crate::level::{by_height, level, per_level, tile_rows};
use crate::words::{Words, on_words};

/// log₂ 254: the highest probability. 255 is left for what is rounded up.
const HIGHEST: f32 = 7.988_684_7;
/// Four bytes of 1.
const ONES: u32 = 0x0101_0101;

per_level! {
    /// The mean of `n` rows.
    pub(super) fn mean(from: &[f32], stride: usize, n: usize, out: &mut [f32]) {
        out.fill(0.0);
        for k in 0..n {
            let row = &from[k * stride..][..out.len()];
            out.iter_mut().zip(row).for_each(|(o, v)| *o += v);
        }
        out.iter_mut().for_each(|o| *o /= n as f32);
    }
}

per_level! {
    /// `from` less `mean`.
    pub(super) fn centre(from: &[f32], mean: &[f32], out: &mut [f32]) {
        for ((o, v), m) in out.iter_mut().zip(from).zip(mean) {
            *o = v - m;
        }
    }
}

/// `[keys][dim]`, less `mean`, to tiles `[words of four channels][keys of the tile]` of bytes from 128 on; their factor.
pub(super) fn pack_keys(
    from: &[f32],
    stride: usize,
    n: usize,
    dim: usize,
    mean: &[f32],
    to: &mut [f32],
) -> f32 {
    let mut centred = Buffer::stale(n * dim);
    for (k, to) in centred.chunks_exact_mut(dim).enumerate() {
        centre(&from[k * stride..][..dim], mean, to);
    }
    let factor = factor(&centred);
    let words = dim.div_ceil(4);
    let factors = vec![factor; tile_rows(level())];
    for (start, end) in tiles(n) {
        let row = |r| &centred[(start + r) * dim..][..dim];
        pack_int8(end - start, dim, &factors[..end - start], &mut to[start * words..end * words], row);
    }
    factor
}

/// The byte of a quantised value.
#[inline(always)]
fn byte(v: f32, inverse: f32) -> u32 {
    (v * inverse + ROUND).to_bits() & 0xff
}

per_level! {
    /// `[keys][dim]` to tiles `[words of four keys][channels of the tile]` of signed bytes; their factors, `[dim]`.
    pub(super) fn pack_values(
        from: &[f32], stride: usize, n: usize, dim: usize, to: &mut [f32], factors: &mut [f32],
    ) {
        let mut most = vec![0u32; dim];
        for k in 0..n {
            // In the order of their bits, what is not a number last.
            let row = &from[k * stride..][..dim];
            most.iter_mut().zip(row).for_each(|(m, v)| *m = (*m).max(v.abs().to_bits()));
        }
        for (f, m) in factors.iter_mut().zip(&most) {
            *f = factor(&[f32::from_bits(*m)]);
        }
        let inverses: Vec<f32> = factors.iter().map(|f| inverse(*f)).collect();
        let zeros = vec![0f32; dim];
        let words = n.div_ceil(4);
        for w in 0..words {
            let [a, b, c, d] = [0, 1, 2, 3].map(|i| match 4 * w + i < n {
                true => &from[(4 * w + i) * stride..][..dim],
                false => &zeros[..],
            });
            for (start, end) in tiles(dim) {
                let to = &mut to[start * words + w * (end - start)..][..end - start];
                let (a, b, c, d) = (&a[start..end], &b[start..end], &c[start..end], &d[start..end]);
                for (j, (to, by)) in to.iter_mut().zip(&inverses[start..end]).enumerate() {
                    let low = byte(a[j], *by) | byte(b[j], *by) << 8;
                    *to = f32::from_bits(low | byte(c[j], *by) << 16 | byte(d[j], *by) << 24);
                }
            }
        }
    }
}

/// What a panel of queries is quantised by.
#[derive(Clone, Copy)]
pub(super) struct Quantised {
    /// Of each query.
    factors: [f32; WIDEST],
    /// The bits of -128 times the sum of each query's bytes: what the products with keys hold too much.
    zeros: [f32; WIDEST],
}

impl Quantised {
    pub const NONE: Self = Quantised { factors: [0.0; WIDEST], zeros: [0.0; WIDEST] };
}

per_level! {
    /// A panel of queries, `[dim][nr]`, to words of four signed bytes, in place.
    pub(super) fn quantise_queries(dim: usize, nr: usize, panel: &mut [f32], by: &mut Quantised) {
        let mut most = [0u32; WIDEST];
        for row in panel.chunks_exact(nr) {
            most.iter_mut().zip(row).for_each(|(m, v)| *m = (*m).max(v.abs().to_bits()));
        }
        let mut inverses = [0f32; WIDEST];
        for ((f, i), m) in by.factors.iter_mut().zip(&mut inverses).zip(&most) {
            *f = factor(&[f32::from_bits(*m)]);
            *i = inverse(*f);
        }
        let mut sums = [0i32; WIDEST];
        for w in 0..dim.div_ceil(4) {
            let mut words = [0u32; WIDEST];
            for i in 0..4.min(dim - 4 * w) {
                let row = &panel[(4 * w + i) * nr..][..nr];
                for (l, v) in row.iter().enumerate() {
                    let byte = byte(*v, inverses[l]);
                    words[l] |= byte << (8 * i);
                    sums[l] += byte as i8 as i32;
                }
            }
            // Its rows were read before.
            let to = &mut panel[w * nr..][..nr];
            to.iter_mut().zip(words).for_each(|(t, w)| *t = f32::from_bits(w));
        }
        for (z, s) in by.zeros.iter_mut().zip(sums) {
            *z = f32::from_bits((-(ZERO as i32) * s) as u32);
        }
    }
}

/// A block of keys and values, and what they were divided by.
pub(super) struct Bytes<'a> {
    pub n: usize,
    pub k: &'a [f32],
    pub v: &'a [f32],
    pub key_factor: f32,
    /// `[dim]`.
    pub value_factors: &'a [f32],
}

on_words! {
    /// One panel of queries over one block of keys.
    ///
    /// # Safety
    /// Of the block, `k` must hold n · ⌈dim / 4⌉ words, `v` ⌈n / 4⌉ · dim, and dim factors; `q` and `sum` dim · panel, `scores`
    /// n · panel, `most` and `total` panel.
    pub(super) fn attend(
        dim: usize, first: bool, keys: &Bytes, q: &[f32], by: &Quantised, scores: &mut [f32], sum: &mut [f32],
        most: &mut [f32], total: &mut [f32],
    ) = attend_on
}

#[allow(clippy::too_many_arguments)]
#[inline(always)]
unsafe fn attend_on<V: Words>(
    dim: usize,
    first: bool,
    keys: &Bytes,
    q: &[f32],
    by: &Quantised,
    scores: &mut [f32],
    sum: &mut [f32],
    most: &mut [f32],
    total: &mut [f32],
) {
    let n = keys.n;
    let (nr, scores) = (2 * V::WIDTH, &mut scores[..n * 2 * V::WIDTH]);
    let (channels, words) = (dim.div_ceil(4), n.div_ceil(4));
    // SAFETY: the lengths are the caller's promise; tiles cover n or dim rows exactly.
    unsafe {
        let zero = V::splat(0.0);
        let mut high = [V::splat(f32::MIN); 2];
        for run in runs(n) {
            let to = scores.as_mut_ptr().add(run.start * nr);
            let k = keys.k.as_ptr().add(run.start * channels);
            score::<V>(run, channels, k, q.as_ptr(), by.zeros.as_ptr(), to, &mut high);
        }
        // What this block, and what the sums so far are multiplied by.
        let (mut weight, mut fade) = ([zero; 2], [zero; 2]);
        for i in 0..2 {
            let h = i * V::WIDTH;
            let scores = scores.as_mut_ptr().add(h);
            let by = V::load(by.factors.as_ptr().add(h)).mul(V::splat(keys.key_factor));
            let here = high[i].mul(by);
            let lift = here.same(HIGHEST).sub(here);
            let mut part = zero;
            for w in 0..words {
                let mut p = [zero; 4];
                for (i, p) in p.iter_mut().enumerate() {
                    if 4 * w + i < n {
                        *p = exp2_short_lanes(V::load(scores.add((4 * w + i) * nr)).mul_add(by, lift));
                    }
                }
                let word = p[0].quad_u8(p[1], p[2], p[3]);
                part = part.dot_u8(word, word.same(f32::from_bits(ONES)));
                // Its rows were read before.
                word.store(scores.add(w * nr));
            }
            let before = V::load(most.as_ptr().add(h));
            let now = before.max(here);
            now.store(most.as_mut_ptr().add(h));
            // Not a number if the factors are none: nothing else would say so.
            weight[i] = exp2_lanes(here.sub(now)).add(by.sub(by));
            let total = total.as_mut_ptr().add(h);
            let mut all = part.whole_to_f32().mul(weight[i]);
            if !first {
                fade[i] = exp2_lanes(before.sub(now));
                all = V::load(total).mul_add(fade[i], all);
            }
            all.store(total);
        }
        for run in runs(dim) {
            let to = sum.as_mut_ptr().add(run.start * nr);
            let (v, factors) =
                (keys.v.as_ptr().add(run.start * words), keys.value_factors.as_ptr().add(run.start));
            values::<V>(run, words, v, scores.as_ptr(), factors, weight, fade, first, to);
        }
    }
}

/// `to[r][..] = zeros[..] + Σ a[w][r] · b[w][..]` over words of four bytes, `a` unsigned, as f32, for each tile of a run; `high`
/// gets what is higher.
///
/// # Safety
/// Of each tile, `depth · height` words of `a` and `height` rows of `to` must be there, and `depth` rows of `b`.
#[inline(always)]
unsafe fn score<V: Words>(
    run: Run,
    depth: usize,
    a: *const f32,
    b: *const f32,
    zeros: *const f32,
    to: *mut f32,
    high: &mut [V; 2],
) {
    if run.count == 0 {
        return;
    }
    by_height!(run.height, tile_rows(V::LEVEL), ROWS => {
        // SAFETY: the caller's promises.
        unsafe { score_tiles::<V, ROWS>(run.count, depth, a, b, zeros, to, high) }
    })
}

#[allow(clippy::too_many_arguments)]
#[inline(always)]
unsafe fn score_tiles<V: Words, const ROWS: usize>(
    count: usize,
    depth: usize,
    mut a: *const f32,
    b: *const f32,
    zeros: *const f32,
    mut to: *mut f32,
    high: &mut [V; 2],
) {
    // SAFETY: the caller's promises of memory; a level's function is only reached where it was detected.
    unsafe {
        for _ in 0..count {
            let mut sum = [[V::load(zeros), V::load(zeros.add(V::WIDTH))]; ROWS];
            let mut b = b;
            for _ in 0..depth {
                let right = [V::load(b), V::load(b.add(V::WIDTH))];
                for (r, sum) in sum.iter_mut().enumerate() {
                    let left = V::splat(*a.add(r));
                    sum[0] = sum[0].dot_u8(left, right[0]);
                    sum[1] = sum[1].dot_u8(left, right[1]);
                }
                a = a.add(ROWS);
                b = b.add(2 * V::WIDTH);
            }
            for (r, sum) in sum.iter().enumerate() {
                for (h, sum) in sum.iter().enumerate() {
                    let score = sum.whole_to_f32();
                    score.store(to.add((2 * r + h) * V::WIDTH));
                    high[h] = high[h].max(score);
                }
            }
            to = to.add(2 * ROWS * V::WIDTH);
        }
    }
}

/// `to[r][..] = to[r][..] · fade + weight · factors[r] · Σ a[w][r] · b[w][..]` over words of four bytes, `b` unsigned, for each
/// tile of a run.
///
/// # Safety
/// As [`score`], and a factor for each row.
#[allow(clippy::too_many_arguments)]
#[inline(always)]
unsafe fn values<V: Words>(
    run: Run,
    depth: usize,
    a: *const f32,
    b: *const f32,
    factors: *const f32,
    weight: [V; 2],
    fade: [V; 2],
    first: bool,
    to: *mut f32,
) {
    if run.count == 0 {
        return;
    }
    by_height!(run.height, tile_rows(V::LEVEL), ROWS => {
        // SAFETY: the caller's promises.
        unsafe { values_tiles::<V, ROWS>(run.count, depth, a, b, factors, weight, fade, first, to) }
    })
}

#[allow(clippy::too_many_arguments)]
#[inline(always)]
unsafe fn values_tiles<V: Words, const ROWS: usize>(
    count: usize,
    depth: usize,
    mut a: *const f32,
    b: *const f32,
    mut factors: *const f32,
    weight: [V; 2],
    fade: [V; 2],
    first: bool,
    mut to: *mut f32,
) {
    const MOST_SUMS: usize = 14 * 32;
    // SAFETY: the caller's promises of memory; a level's function is only reached where it was detected.
    unsafe {
        let mut whole = [0f32; MOST_SUMS];
        for _ in 0..count {
            let mut sum = [[V::splat(0.0); 2]; ROWS];
            let mut b = b;
            for _ in 0..depth {
                let right = [V::load(b), V::load(b.add(V::WIDTH))];
                for (r, sum) in sum.iter_mut().enumerate() {
                    let left = V::splat(*a.add(r));
                    sum[0] = sum[0].dot_u8(right[0], left);
                    sum[1] = sum[1].dot_u8(right[1], left);
                }
                a = a.add(ROWS);
                b = b.add(2 * V::WIDTH);
            }
            // By way of memory: a longer end would keep the sums there during the loop above.
            for (r, sum) in sum.iter().enumerate() {
                for (h, sum) in sum.iter().enumerate() {
                    sum.store(whole.as_mut_ptr().add((2 * r + h) * V::WIDTH));
                }
            }
            for r in 0..ROWS {
                let factor = V::splat(*factors.add(r));
                for h in 0..2 {
                    let at = (2 * r + h) * V::WIDTH;
                    let sum = V::load(whole.as_ptr().add(at)).whole_to_f32().mul(factor.mul(weight[h]));
                    let sum = if first { sum } else { V::load(to.add(at)).mul_add(fade[h], sum) };
                    sum.store(to.add(at));
                }
            }
            factors = factors.add(ROWS);
            to = to.add(2 * ROWS * V::WIDTH);
        }
    }
}
