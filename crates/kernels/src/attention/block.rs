//! One group of queries against one block of keys.

use super::eight::{self, Bytes, Quantised};
use super::pack::{Run, runs};
use super::{Form, KEYS, PANELS};
use crate::act::{exp2_lanes, exp2_short_lanes};
use crate::buffer::Buffer;
use crate::lanes::{on_lanes, transpose};
use crate::level::{by_height, level, tile_columns, tile_rows};
use crate::share::Shared;
use crate::words::{Words, on_words};

/// The most queries of a panel.
pub(super) const WIDEST: usize = 32;
/// Below every score.
const LOWEST: f32 = -1e30;

/// Queries of a panel: two vectors.
pub(super) fn panel() -> usize {
    tile_columns(level())
}

/// A block of keys and their values, packed.
pub(super) struct Keys<'a> {
    pub k: &'a [f32],
    pub v: &'a [f32],
    pub n: usize,
    /// If causal: the query of lane l of panel p sees the keys up to this one plus p · panel + l.
    pub seen: Option<isize>,
    /// In bytes: what the keys, and each channel of the values were divided by.
    pub key_factor: f32,
    pub value_factors: &'a [f32],
}

/// What a task works with: its queries, and their state of the softmax over the keys so far.
pub(super) struct Work {
    dim: usize,
    form: Form,
    count: usize,
    /// Per panel `[dim][queries]`: queries times scale and log₂ e (by words in bf16, int8: the first half, quarter), sums of
    /// values, the result over all sets.
    q: Buffer,
    sum: Buffer,
    result: Buffer,
    /// Scores of one panel `[keys][queries]`.
    scores: Buffer,
    /// Per panel and query: the highest score so far, and the sum of the probabilities relative to it.
    most: [f32; PANELS * WIDEST],
    total: [f32; PANELS * WIDEST],
    /// Per panel, in bytes.
    by: [Quantised; PANELS],
}

impl Work {
    /// Values of memory.
    pub fn values(dim: usize, form: Form) -> usize {
        (PANELS * (2 * dim + Work::query(dim, form)) + KEYS) * panel()
    }

    /// Rows of a panel of queries.
    fn query(dim: usize, form: Form) -> usize {
        dim.max(form.words(dim))
    }

    pub fn new(dim: usize, form: Form) -> Self {
        let n = PANELS * dim * panel();
        Work {
            dim,
            form,
            count: 0,
            q: Buffer::stale(PANELS * Work::query(dim, form) * panel()),
            sum: Buffer::stale(n),
            result: Buffer::stale(n),
            scores: Buffer::stale(KEYS * panel()),
            most: [LOWEST; PANELS * WIDEST],
            total: [0.0; PANELS * WIDEST],
            by: [Quantised::NONE; PANELS],
        }
    }

    /// Takes `count` queries, `stride` apart.
    pub fn load(&mut self, from: &[f32], stride: usize, count: usize, scale: f32) {
        let (dim, nr) = (self.dim, panel());
        self.count = count;
        let scale = scale * std::f32::consts::LOG2_E;
        // Queries that are not there are zero: they are computed and not stored.
        if count % nr != 0 {
            self.q.fill(0.0);
        }
        assert!(from.len() >= (count - 1) * stride + dim);
        let panel = Work::query(dim, self.form) * nr;
        for (p, to) in self.q.chunks_exact_mut(panel).enumerate().take(count.div_ceil(nr)) {
            let rows = nr.min(count - p * nr);
            // SAFETY: the rows are there, as asserted, and a panel holds dim rows of nr.
            unsafe { transpose(rows, dim, from[p * nr * stride..].as_ptr(), stride, to.as_mut_ptr(), nr) };
            to[..dim * nr].iter_mut().for_each(|v| *v *= scale);
            match self.form {
                Form::F32 => {}
                Form::Bf16 | Form::Tiles => {
                    // SAFETY: a panel holds dim rows of nr.
                    unsafe { pair(dim, to.as_mut_ptr()) };
                    to[dim.div_ceil(2) * nr..self.form.words(dim) * nr].fill(0.0);
                }
                Form::Int8 => eight::quantise_queries(dim, nr, to, &mut self.by[p]),
            }
        }
    }

    fn panels(&self) -> usize {
        self.count.div_ceil(panel())
    }

    /// Begins a set of keys.
    pub fn begin(&mut self) {
        self.most.fill(LOWEST);
        self.total.fill(0.0);
    }

    /// Goes over one block of keys.
    pub fn attend(&mut self, keys: &Keys, first: bool) {
        let (dim, nr) = (self.dim, panel());
        let words = |n| self.form.words(n);
        assert!(keys.k.len() == keys.n * words(dim) && keys.v.len() == words(keys.n) * dim && keys.n <= KEYS);
        assert!(self.form == Form::F32 || keys.seen.is_none());
        assert!(self.form != Form::Int8 || keys.value_factors.len() == dim);
        let attend = match self.form {
            Form::Bf16 => attend_bf16,
            Form::Tiles => attend_tiles,
            Form::F32 | Form::Int8 => attend,
        };
        let query = Work::query(dim, self.form) * nr;
        for p in 0..self.panels() {
            let part = p * dim * nr..(p + 1) * dim * nr;
            let lanes = p * nr..(p + 1) * nr;
            let seen = keys.seen.map(|s| s + (p * nr) as isize);
            let q = &self.q[p * query..(p + 1) * query];
            let (scores, sum) = (&mut self.scores, &mut self.sum[part]);
            let (most, total) = (&mut self.most[lanes.clone()], &mut self.total[lanes]);
            if self.form == Form::Int8 {
                let &Keys { n, k, v, key_factor, value_factors, .. } = keys;
                let keys = Bytes { n, k, v, key_factor, value_factors };
                // SAFETY: as below.
                unsafe { eight::attend(dim, first, &keys, q, &self.by[p], scores, sum, most, total) };
                continue;
            }
            // SAFETY: keys and values are as long as asserted, panels and lanes as they were made.
            unsafe {
                attend(dim, keys.n, first, seen, keys.k, keys.v, q, scores, sum, most, total);
            }
        }
    }

    /// Ends a set: what was attended, times weight and mask, becomes the result or is added to it.
    pub fn end(&mut self, weight: f32, mask: Option<&[f32]>, first: bool) {
        let (dim, nr) = (self.dim, panel());
        let mut factor = [0f32; PANELS * WIDEST];
        for (i, f) in factor.iter_mut().enumerate().take(self.count) {
            *f = weight * mask.map_or(1.0, |m| m[i]) / self.total[i];
        }
        for p in 0..self.panels() {
            let part = p * dim * nr..(p + 1) * dim * nr;
            let factor = &factor[p * nr..(p + 1) * nr];
            let rows = self.result[part.clone()].chunks_exact_mut(nr).zip(self.sum[part].chunks_exact(nr));
            for (result, sum) in rows {
                for ((r, s), f) in result.iter_mut().zip(sum).zip(factor) {
                    *r = if first { s * f } else { *r + s * f };
                }
            }
        }
    }

    /// Writes or adds the result to `out`, from `at` on, queries `stride` apart.
    ///
    /// # Safety
    /// That part of the output must be the caller's alone.
    pub unsafe fn store(&self, out: Shared, at: usize, stride: usize, add: bool) {
        let (dim, nr) = (self.dim, panel());
        let mut turned = Buffer::stale(if add { nr * dim } else { 0 });
        for (p, from) in self.result.chunks_exact(dim * nr).enumerate().take(self.panels()) {
            let queries = nr.min(self.count - p * nr);
            let at = at + p * nr * stride;
            if !add {
                let to = out.at(at, (queries - 1) * stride + dim);
                // SAFETY: the queries are inside, as checked, and the caller's alone.
                unsafe { transpose(dim, queries, from.as_ptr(), nr, to, stride) };
                continue;
            }
            // SAFETY: a panel has dim rows of nr, and `turned` room for as many.
            unsafe { transpose(dim, queries, from.as_ptr(), nr, turned.as_mut_ptr(), dim) };
            for (i, from) in turned.chunks_exact(dim).enumerate().take(queries) {
                // SAFETY: the caller's promise.
                let to = unsafe { out.part(at + i * stride, dim) };
                to.iter_mut().zip(from).for_each(|(o, v)| *o += v);
            }
        }
    }
}

on_lanes! {
    /// One panel of queries over one block of keys.
    ///
    /// # Safety
    /// `k` and `v` must hold n · dim values, `q` and `sum` dim · panel, `scores` n · panel, `most` and `total` panel.
    fn attend(
        dim: usize, n: usize, first: bool, seen: Option<isize>, k: &[f32], v: &[f32], q: &[f32], scores: &mut [f32],
        sum: &mut [f32], most: &mut [f32], total: &mut [f32],
    ) = attend_f32_on
}

on_words! {
    /// The same over words of two bf16, `k` of ⌈dim / 2⌉ words each, `v` of dim words for every two keys.
    ///
    /// # Safety
    /// As [`attend`], with the words of `k` and `v` as said.
    fn attend_bf16(
        dim: usize, n: usize, first: bool, seen: Option<isize>, k: &[f32], v: &[f32], q: &[f32], scores: &mut [f32],
        sum: &mut [f32], most: &mut [f32], total: &mut [f32],
    ) = attend_bf16_on
}

on_words! {
    /// The same by AMX, `k` of whole tiles of words for each key, `v` for each channel.
    ///
    /// # Safety
    /// As [`attend`], with the words of `k` and `v` as said; there must be AMX.
    fn attend_tiles(
        dim: usize, n: usize, first: bool, seen: Option<isize>, k: &[f32], v: &[f32], q: &[f32], scores: &mut [f32],
        sum: &mut [f32], most: &mut [f32], total: &mut [f32],
    ) = attend_tiles_on
}

on_words! {
    /// `rows` rows of a panel of queries to half as many of words, in place.
    ///
    /// # Safety
    /// The rows must be there and the caller's alone.
    fn pair(rows: usize, panel: *mut f32) = pair_on
}

#[inline(always)]
unsafe fn pair_on<V: Words>(rows: usize, panel: *mut f32) {
    let nr = 2 * V::WIDTH;
    // SAFETY: the caller's promise; what is written was read before.
    unsafe {
        for r in (0..rows).step_by(2) {
            for h in [0, V::WIDTH] {
                let low = V::load(panel.add(r * nr + h));
                let high = if r + 1 < rows { V::load(panel.add((r + 1) * nr + h)) } else { V::splat(0.0) };
                low.pair_bf16(high).store(panel.add(r / 2 * nr + h));
            }
        }
    }
}

/// The forms of [`attend_on`].
macro_rules! form {
    ($name:ident, $bf16:literal, $tiles:literal) => {
        #[allow(clippy::too_many_arguments)]
        #[inline(always)]
        unsafe fn $name<V: Words>(
            dim: usize,
            n: usize,
            first: bool,
            seen: Option<isize>,
            k: &[f32],
            v: &[f32],
            q: &[f32],
            scores: &mut [f32],
            sum: &mut [f32],
            most: &mut [f32],
            total: &mut [f32],
        ) {
            // SAFETY: the caller's promises.
            unsafe { attend_on::<V, $bf16, $tiles>(dim, n, first, seen, k, v, q, scores, sum, most, total) }
        }
    };
}
form!(attend_f32_on, false, false);
form!(attend_bf16_on, true, false);
form!(attend_tiles_on, true, true);

#[allow(clippy::too_many_arguments)]
#[inline(always)]
unsafe fn attend_on<V: Words, const BF16: bool, const TILES: bool>(
    dim: usize,
    n: usize,
    first: bool,
    seen: Option<isize>,
    k: &[f32],
    v: &[f32],
    q: &[f32],
    scores: &mut [f32],
    sum: &mut [f32],
    most: &mut [f32],
    total: &mut [f32],
) {
    let nr = 2 * V::WIDTH;
    // The keys that one query at least sees.
    let near = seen.map_or(n, |seen| (seen + nr as isize).clamp(0, n as isize) as usize);
    if near == 0 {
        return;
    }
    // What the products sum over: values, or words of two.
    let form = if TILES {
        Form::Tiles
    } else if BF16 {
        Form::Bf16
    } else {
        Form::F32
    };
    let (channels, keys) = (form.words(dim), form.words(n));
    let depth = if BF16 { keys } else { near };
    // SAFETY: the lengths are the caller's promise; tiles cover n or dim rows exactly.
    unsafe {
        // The highest score of each query, unless some keys are hidden from it.
        let mut high = [V::splat(LOWEST); 2];
        if TILES {
            amx(n, channels, k, q, scores, false);
        } else {
            for run in runs(n).map(|run| run.before(near)) {
                let to = scores.as_mut_ptr().add(run.start * nr);
                let k = k.as_ptr().add(run.start * channels);
                multiply::<V, BF16, true>(run, channels, channels, k, q.as_ptr(), to, false, &mut high);
            }
        }
        let (n, scores) = (near, if TILES { scores } else { &mut scores[..near * nr] });
        if let Some(seen) = seen {
            hide(scores, nr, seen, LOWEST);
        }
        for (i, high) in high.into_iter().enumerate() {
            let h = i * V::WIDTH;
            let scores = scores.as_mut_ptr().add(h);
            let most = most.as_mut_ptr().add(h);
            let total = total.as_mut_ptr().add(h);
            let before = V::load(most);
            let high = if TILES || seen.is_some() { highest(scores, nr, n) } else { high };
            let now = before.max(high);
            // Two at a time: each alone would wait for the one before.
            let mut part = [V::splat(0.0); 2];
            for key in (0..n).step_by(2) {
                let mut p = [V::splat(0.0); 2];
                for (i, (p, part)) in p.iter_mut().zip(&mut part).enumerate() {
                    if key + i < n {
                        let x = V::load(scores.add((key + i) * nr)).sub(now);
                        *p = if BF16 { exp2_short_lanes(x) } else { exp2_lanes(x) };
                        *part = part.add(*p);
                        if !BF16 {
                            p.store(scores.add((key + i) * nr));
                        }
                    }
                }
                if BF16 {
                    // Its rows were read before.
                    p[0].pair_bf16(p[1]).store(scores.add(key / 2 * nr));
                }
            }
            let part = part[0].add(part[1]);
            now.store(most);
            if first {
                part.store(total);
            } else {
                let fade = exp2_lanes(before.sub(now));
                V::load(total).mul_add(fade, part).store(total);
                for d in 0..dim {
                    let sum = sum.as_mut_ptr().add(d * nr + h);
                    V::load(sum).mul(fade).store(sum);
                }
            }
        }
        if TILES {
            scores[n.div_ceil(2) * nr..keys * nr].fill(0.0);
            return amx(dim, keys, v, scores, sum, !first);
        }
        if let Some(seen) = seen {
            hide(scores, nr, seen, 0.0);
        }
        for run in runs(dim) {
            let to = sum.as_mut_ptr().add(run.start * nr);
            let v = v.as_ptr().add(run.start * keys);
            multiply::<V, BF16, false>(run, depth, keys, v, scores.as_ptr(), to, !first, &mut high);
        }
    }
}

/// `to[rows, 32] (+)= a[rows, words] · b[words, 32]` by AMX.
///
/// # Safety
/// There must be AMX.
unsafe fn amx(rows: usize, words: usize, a: &[f32], b: &[f32], to: &mut [f32], more: bool) {
    #[cfg(target_arch = "x86_64")]
    {
        use crate::amx::{COLUMNS, Kind, Product, ROWS, SIDE, multiply};
        assert!(words % SIDE == 0 && a.len() >= rows * words);
        assert!(b.len() >= words * COLUMNS && to.len() >= rows * COLUMNS);
        for start in (0..rows).step_by(ROWS) {
            let product = Product {
                rows: ROWS.min(rows - start),
                lines: words / SIDE,
                a: a[start * words..].as_ptr(),
                a_row: words,
                a_line: SIDE,
                b: b.as_ptr(),
                c: to[start * COLUMNS..].as_mut_ptr(),
                more,
            };
            // SAFETY: all is inside as asserted.
            unsafe { multiply(Kind::Bf16, &product) };
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    unreachable!("{rows} {words} {more} {:?}", (a, b, to))
}

/// The highest of `n` vectors `stride` apart, one at least.
///
/// # Safety
/// They must be there.
#[inline(always)]
pub(super) unsafe fn highest<V: Words>(of: *const f32, stride: usize, n: usize) -> V {
    // SAFETY: the caller's promise.
    unsafe {
        // Four at a time, for each alone would wait for the one before; named by numbers that are known, or they would be in memory.
        let mut high = [V::load(of); 4];
        for group in 0..n / 4 {
            let of = of.add(4 * group * stride);
            for (i, high) in high.iter_mut().enumerate() {
                *high = high.max(V::load(of.add(i * stride)));
            }
        }
        for rest in n / 4 * 4..n {
            high[0] = high[0].max(V::load(of.add(rest * stride)));
        }
        high[0].max(high[1]).max(high[2].max(high[3]))
    }
}

/// Puts `value` where lane l does not see the key: beyond `seen + l`.
fn hide(scores: &mut [f32], nr: usize, seen: isize, value: f32) {
    for (key, row) in scores.chunks_exact_mut(nr).enumerate() {
        let blind = (key as isize - seen).clamp(0, nr as isize) as usize;
        row[..blind].fill(value);
    }
}

/// `to[r][..] = or += Σₖ a[k][r] · b[k][..]` of values or words of two bf16, for each tile of a run; rows of `b` and `to` are two
/// vectors wide, tiles of `a` have `long` rows. With `HIGH` the results are compared with `high`, which gets the higher ones.
///
/// # Safety
/// Of each tile, `long · height` values of `a` and `height` rows of `to` must be there, and `depth` rows of `b`, at most `long`.
#[allow(clippy::too_many_arguments)]
#[inline(always)]
unsafe fn multiply<V: Words, const BF16: bool, const HIGH: bool>(
    run: Run,
    depth: usize,
    long: usize,
    a: *const f32,
    b: *const f32,
    to: *mut f32,
    add: bool,
    high: &mut [V; 2],
) {
    if run.count == 0 {
        return;
    }
    by_height!(run.height, tile_rows(V::LEVEL), ROWS => {
        // SAFETY: the caller's promises.
        unsafe { multiply_tiles::<V, BF16, HIGH, ROWS>(run.count, depth, long, a, b, to, add, high) }
    })
}

#[allow(clippy::too_many_arguments)]
#[inline(always)]
unsafe fn multiply_tiles<V: Words, const BF16: bool, const HIGH: bool, const ROWS: usize>(
    count: usize,
    depth: usize,
    long: usize,
    mut a: *const f32,
    b: *const f32,
    mut to: *mut f32,
    add: bool,
    high: &mut [V; 2],
) {
    // SAFETY: the caller's promises of memory; a level's function is only reached where it was detected.
    unsafe {
        for _ in 0..count {
            let mut sum = [[V::splat(0.0); 2]; ROWS];
            let (mut left, mut b) = (a, b);
            for _ in 0..depth {
                let right = [V::load(b), V::load(b.add(V::WIDTH))];
                for (r, sum) in sum.iter_mut().enumerate() {
                    let left = V::splat(*left.add(r));
                    if BF16 {
                        sum[0] = sum[0].dot_bf16(left, right[0]);
                        sum[1] = sum[1].dot_bf16(left, right[1]);
                    } else {
                        sum[0] = left.mul_add(right[0], sum[0]);
                        sum[1] = left.mul_add(right[1], sum[1]);
                    }
                }
                left = left.add(ROWS);
                b = b.add(2 * V::WIDTH);
            }
            for (r, sum) in sum.iter().enumerate() {
                for (h, sum) in sum.iter().enumerate() {
                    let to = to.add((2 * r + h) * V::WIDTH);
                    let sum = if add { V::load(to).add(*sum) } else { *sum };
                    sum.store(to);
                    if HIGH {
                        high[h] = high[h].max(sum);
                    }
                }
            }
            a = a.add(ROWS * long);
            to = to.add(2 * ROWS * V::WIDTH);
        }
    }
}
