//! Operands on their way into a product: narrowed to the precision and cut into 32-bit words; columns of B interleaved, so that
//! the micro-kernel reads them in order.

use super::quantiser::{LEAST, Quantiser};
use super::{LINE, Left, Precision, Right, depth, quantises, tall, wide};
use crate::Weight;
use crate::lanes::ROUND;
use crate::level::per_level;
#[cfg(target_arch = "x86_64")]
use crate::level::{self, Level, level};

use std::cell::RefCell;
use std::ops::Range;

/// Rows interleaved at a time.
const ROWS: usize = 16;

thread_local! {
    /// Narrowed or widened rows before they are interleaved.
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// `out[w · stride + at + r] = rows[r][w]`; at most 16 rows of the same length.
fn interleave(rows: &[&[f32]], stride: usize, at: usize, out: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if level() == Level::Avx512 {
        // SAFETY: the level was detected on this machine.
        return unsafe { super::avx512_pack::interleave(rows, stride, at, out) };
    }
    interleave_plain(rows, stride, at, out);
}

per_level! {
    fn interleave_plain(rows: &[&[f32]], stride: usize, at: usize, out: &mut [f32]) {
        let words = rows.first().map_or(0, |r| r.len());
        // In squares, so that reading and writing stay in few lines of the cache.
        for w0 in (0..words).step_by(16) {
            for (r, row) in rows.iter().enumerate() {
                let row = &row[w0..words.min(w0 + 16)];
                for (w, v) in row.iter().enumerate() {
                    out[(w0 + w) * stride + at + r] = *v;
                }
            }
        }
    }
}

/// Calls `of(r0, rows)` for up to [`ROWS`] rows at a time, `row(r0..)`.
fn in_groups<'a>(rows: usize, row: impl Fn(usize) -> &'a [f32], mut of: impl FnMut(usize, &[&[f32]])) {
    for r0 in (0..rows).step_by(ROWS) {
        let height = ROWS.min(rows - r0);
        let mut found = [&[][..]; ROWS];
        found.iter_mut().enumerate().take(height).for_each(|(i, f)| *f = row(r0 + i));
        of(r0, &found[..height]);
    }
}

/// Interleaves up to 16 rows that are made one by one in scratch memory: `fill(r, row)`.
fn interleave_made(
    height: usize,
    words: usize,
    stride: usize,
    at: usize,
    out: &mut [f32],
    fill: impl Fn(usize, &mut [f32]),
) {
    let mut scratch = SCRATCH.take();
    if scratch.len() < ROWS * words {
        scratch.resize(ROWS * words, 0.0);
    }
    let mut made = [&[][..]; ROWS];
    for (i, row) in scratch.chunks_exact_mut(words).enumerate().take(height) {
        fill(i, row);
        made[i] = row;
    }
    interleave(&made[..height], stride, at, out);
    SCRATCH.set(scratch);
}

/// Rows of as many values each: `[k][rows]`.
pub(crate) fn pack_f32<'a>(rows: usize, out: &mut [f32], row: impl Fn(usize) -> &'a [f32]) {
    in_groups(rows, row, |r0, found| interleave(found, rows, r0, out));
}

/// Rows of `k` values, rounded to bf16, as words of two: `[⌈k / 2⌉][rows]`.
pub(crate) fn pack_bf16<'a>(rows: usize, k: usize, out: &mut [f32], row: impl Fn(usize) -> &'a [f32]) {
    in_groups(rows, row, |r0, found| {
        #[cfg(target_arch = "x86_64")]
        if level() == Level::Avx512 && level::bf16() {
            // SAFETY: the level was detected on this machine.
            return unsafe { super::avx512_pack::interleave_bf16(found, rows, r0, out) };
        }
        interleave_made(found.len(), k.div_ceil(2), rows, r0, out, |i, made| {
            let (x, made) = (found[i], halves(made));
            made[x.len()..].fill(0);
            narrow(x, made);
        });
    });
}

/// Rows of `k` values, each quantised by its factor, [`ZERO`] added, as words of four: `[⌈k / 4⌉][rows]`.
pub(crate) fn pack_int8<'a>(
    rows: usize,
    k: usize,
    factors: &[f32],
    out: &mut [f32],
    row: impl Fn(usize) -> &'a [f32],
) {
    in_groups(rows, row, |r0, found| {
        let mut inverses = [0f32; ROWS];
        let inverses = &mut inverses[..found.len()];
        inverses.iter_mut().zip(&factors[r0..]).for_each(|(i, f)| *i = inverse(*f));
        #[cfg(target_arch = "x86_64")]
        if level() == Level::Avx512 {
            // SAFETY: the level was detected on this machine.
            return unsafe { super::avx512_pack::interleave_int8(found, inverses, rows, r0, out) };
        }
        interleave_made(found.len(), k.div_ceil(4), rows, r0, out, |i, made| {
            let (x, made) = (found[i], bytes(made));
            made[x.len()..].fill(ZERO);
            quantise(x, inverses[i], ZERO, made);
        });
    });
}

/// A row as lines `stride` words apart; what a last one has too much may hold anything.
pub(crate) fn lines_f32(row: &[f32], out: &mut [f32], stride: usize) {
    let (lines, rest) = row.as_chunks::<LINE>();
    for (i, line) in lines.iter().enumerate() {
        out[i * stride..][..LINE].copy_from_slice(line);
    }
    if !rest.is_empty() {
        out[lines.len() * stride..][..rest.len()].copy_from_slice(rest);
    }
}

/// The same, rounded to bf16, as words of two; the last one may be one and zero, and its line ends with zeros.
pub(crate) fn lines_bf16(row: &[f32], out: &mut [f32], stride: usize) {
    if wide(Precision::Bf16) {
        return lines_wide(row, out, stride);
    }
    #[cfg(target_arch = "x86_64")]
    if level() == Level::Avx512 && level::bf16() {
        // SAFETY: the level was detected on this machine.
        return unsafe { super::avx512_pack::lines_bf16(row, out, stride) };
    }
    for (i, x) in row.chunks(2 * LINE).enumerate() {
        let (some, rest) = halves(&mut out[i * stride..][..LINE]).split_at_mut(x.len());
        narrow(x, some);
        rest.fill(0);
    }
}

/// Values of one line of [`lines_bf16`].
pub(crate) fn line_bf16() -> usize {
    if wide(Precision::Bf16) { LINE } else { 2 * LINE }
}

per_level! {
    /// The same, rounded to bf16, as words of one; whole words of two, the last one may be one and zero.
    pub(super) fn lines_wide(row: &[f32], out: &mut [f32], stride: usize) {
        for (i, x) in row.chunks(LINE).enumerate() {
            let line = &mut out[i * stride..][..LINE];
            if x.len() < LINE {
                line.fill(0.0);
            }
            line.iter_mut().zip(x).for_each(|(o, x)| *o = f32::from_bits(bf16(*x) << 16));
        }
    }
}

/// The same, quantised: whole numbers nearest to `x · inverse`, [`ZERO`] added, as words of four.
pub(super) fn lines_int8(row: &[f32], inverse: f32, out: &mut [f32], stride: usize) {
    #[cfg(target_arch = "x86_64")]
    if level() == Level::Avx512 {
        // SAFETY: the level was detected on this machine.
        return unsafe { super::avx512_pack::lines_int8(row, inverse, out, stride) };
    }
    for (i, x) in row.chunks(4 * LINE).enumerate() {
        let (some, rest) = bytes(&mut out[i * stride..][..LINE]).split_at_mut(x.len());
        quantise(x, inverse, ZERO, some);
        rest.fill(ZERO);
    }
}

/// Words as the halves they hold.
fn halves(words: &mut [f32]) -> &mut [u16] {
    // SAFETY: any four bytes of an f32 are two u16, with weaker alignment.
    unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), words.len() * 2) }
}

/// Words as the bytes they hold.
fn bytes(words: &mut [f32]) -> &mut [u8] {
    // SAFETY: any f32 is four bytes, with weaker alignment.
    unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), words.len() * 4) }
}

/// The upper half of the nearest bf16, ties to even; what is not a number stays so.
#[inline(always)]
fn bf16(x: f32) -> u32 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    if x.is_nan() { bits >> 16 | 0x40 } else { rounded }
}

per_level! {
    /// Rounds to bf16.
    fn narrow(x: &[f32], out: &mut [u16]) {
        for (o, x) in out.iter_mut().zip(x) {
            *o = bf16(*x) as u16;
        }
    }
}

per_level! {
    /// Words of two bf16: of each value of `low` with the one of `high`.
    pub(crate) fn pair(low: &[f32], high: &[f32], out: &mut [f32]) {
        for ((o, low), high) in out.iter_mut().zip(low).zip(high) {
            *o = f32::from_bits(bf16(*low) | bf16(*high) << 16);
        }
    }
}

per_level! {
    /// Rounds `x · inverse`, within -127..127, to whole numbers, and adds `zero`.
    fn quantise(x: &[f32], inverse: f32, zero: u8, out: &mut [u8]) {
        for (o, x) in out.iter_mut().zip(x) {
            *o = ((x * inverse + ROUND).to_bits() as u8).wrapping_add(zero);
        }
    }
}

/// Largest magnitude; not a number if one value is none. Magnitudes are in the order of their bits, what is not a number
/// last.
fn largest(x: &[f32]) -> f32 {
    #[cfg(target_arch = "x86_64")]
    if level() == Level::Avx512 {
        // SAFETY: the level was detected on this machine.
        return unsafe { super::avx512_pack::largest(x) };
    }
    largest_plain(x)
}

per_level! {
    fn largest_plain(x: &[f32]) -> f32 {
        let mut most = [0u32; 32];
        for c in x.chunks(32) {
            for (m, v) in most.iter_mut().zip(c) {
                *m = (*m).max(v.abs().to_bits());
            }
        }
        f32::from_bits(most.iter().copied().fold(0, u32::max))
    }
}

/// The factor of a quantised row: largest magnitude / 127; 0 where there is no inverse, not a number where one value is not
/// finite: it must not pass for zero.
pub(crate) fn factor(row: &[f32]) -> f32 {
    factor_of(largest(row))
}

/// The same of a row's largest magnitude.
#[inline(always)]
pub(super) fn factor_of(largest: f32) -> f32 {
    let factor = largest / 127.0;
    match (factor.is_finite(), (1.0 / factor).is_finite()) {
        (true, true) => factor,
        (true, false) => 0.0,
        (false, _) => f32::NAN,
    }
}

/// What a row with this factor is multiplied by.
#[inline(always)]
pub(crate) fn inverse(factor: f32) -> f32 {
    if factor > 0.0 { 1.0 / factor } else { 0.0 }
}

/// Values of a line of bytes.
pub(super) const PER_LINE: usize = 4 * LINE;

/// Unsigned bytes of A stand for numbers from -127: this is added.
pub(crate) const ZERO: u8 = 128;

/// Rows of A, row-major.
pub(crate) struct Rows<'a> {
    data: &'a [f32],
    k: usize,
    /// Values in a block of the shared dimension.
    deep: usize,
}

impl<'a> Rows<'a> {
    /// Rows of `k` values each, for words of `per`.
    pub fn new(data: &'a [f32], k: usize, per: usize) -> Self {
        Rows { data, k, deep: depth(k.div_ceil(per)) * per }
    }

    /// Row `m`.
    fn row(&self, m: usize) -> &'a [f32] {
        &self.data[m * self.k..][..self.k]
    }

    /// Block `kb` of row `m`.
    fn block(&self, kb: usize, m: usize) -> &'a [f32] {
        let k0 = kb * self.deep;
        &self.row(m)[k0..self.k.min(k0 + self.deep)]
    }
}

impl Left for Rows<'_> {
    fn pack(&self, kb: usize, m: usize, _: f32, out: &mut [f32], stride: usize) {
        lines_f32(self.block(kb, m), out, stride);
    }

    fn source(&self, rows: Range<usize>) -> &[f32] {
        let end = self.data.len();
        &self.data[(rows.start * self.k).min(end)..(rows.end * self.k).min(end)]
    }
}

/// Rows of A, rounded to bf16 while they are packed.
pub(super) struct Bf16Rows<'a>(pub Rows<'a>);

impl Left for Bf16Rows<'_> {
    const PRECISION: Precision = Precision::Bf16;

    fn pack(&self, kb: usize, m: usize, _: f32, out: &mut [f32], stride: usize) {
        lines_bf16(self.0.block(kb, m), out, stride);
    }

    fn source(&self, rows: Range<usize>) -> &[f32] {
        self.0.source(rows)
    }
}

/// Rows of A, quantised while they are packed, each with a factor of its own.
pub(super) struct Int8Rows<'a>(pub Rows<'a>);

impl Left for Int8Rows<'_> {
    const PRECISION: Precision = Precision::Int8;

    fn pack(&self, kb: usize, m: usize, factor: f32, out: &mut [f32], stride: usize) {
        lines_int8(self.0.block(kb, m), inverse(factor), out, stride);
    }

    fn factor(&self, m: usize) -> f32 {
        factor(self.0.row(m))
    }

    fn quantises(&self) -> bool {
        quantises() && self.0.k % PER_LINE == 0 && self.0.k >= LEAST * PER_LINE
    }

    fn quantiser<'q>(
        &'q self,
        rows: Range<usize>,
        deep: usize,
        (packed, factors): (&'q mut [f32], &'q mut [f32]),
        words: (usize, usize),
    ) -> Option<Quantiser<'q>> {
        let shape = (self.0.k, tall(Precision::Int8), deep);
        Quantiser::new(self.source(rows), shape, packed, factors, words)
    }

    fn source(&self, rows: Range<usize>) -> &[f32] {
        self.0.source(rows)
    }
}

/// Weights `[n, k]`, row-major: each column of B is a contiguous row of the weight.
pub(super) struct WeightRows<'a> {
    pub weight: Weight<'a>,
    pub k: usize,
    pub precision: Precision,
    /// Where the rows are values and gates of as many outputs: a panel's first half are values, its second their gates.
    pub gated: Option<usize>,
    /// What the rows are divided by in int8.
    pub factors: &'a [f32],
    /// Values in a block of the shared dimension.
    deep: usize,
}

impl<'a> WeightRows<'a> {
    pub fn new(
        weight: Weight<'a>,
        k: usize,
        precision: Precision,
        gated: Option<usize>,
        factors: &'a [f32],
    ) -> Self {
        let per = precision.per_word();
        WeightRows { weight, k, precision, gated, factors, deep: depth(k.div_ceil(per)) * per }
    }
}

impl WeightRows<'_> {
    /// Values of block `kb`.
    fn block(&self, kb: usize) -> Range<usize> {
        kb * self.deep..self.k.min((kb + 1) * self.deep)
    }

    /// The weight's row for column `c` of the panel at `n0`.
    fn row(&self, n0: usize, c: usize, nr: usize) -> Option<usize> {
        match self.gated {
            None => Some(n0 + c),
            Some(outputs) => {
                let output = (n0 + 2 * (c % (nr / 2))) / 2;
                (output < outputs).then_some(output + c / (nr / 2) * outputs)
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
impl WeightRows<'_> {
    /// Rows of f16 to f32, without a copy in between.
    #[allow(clippy::too_many_arguments)]
    fn pack_f16(&self, all: &[u8], part: Range<usize>, n0: usize, cols: usize, nr: usize, out: &mut [f32]) {
        let none = if self.gated.is_some() { vec![0; 2 * part.len()] } else { Vec::new() };
        for r0 in (0..cols).step_by(ROWS) {
            let mut rows = [&none[..]; ROWS];
            let rows = &mut rows[..ROWS.min(cols - r0)];
            for (i, row) in rows.iter_mut().enumerate() {
                // The row that comes sixteen later, maybe in the next panel, is fetched meanwhile.
                let later = r0 + i + ROWS;
                if let Some(n) = self.row(n0 + later / nr * nr, later % nr, nr) {
                    self.weight.soon(n * self.k + part.start, part.len());
                }
                if let Some(n) = self.row(n0, r0 + i, nr) {
                    *row = &all[2 * (n * self.k + part.start)..2 * (n * self.k + part.end)];
                }
            }
            // SAFETY: the level was detected on this machine.
            unsafe { super::avx512_pack::interleave_f16(rows, nr, r0, out) };
        }
    }
}

impl Right for WeightRows<'_> {
    fn pack(&self, kb: usize, n0: usize, cols: usize, nr: usize, out: &mut [f32]) {
        let per = self.precision.per_word();
        let Range { start: k0, end } = self.block(kb);
        let kc = end - k0;
        #[cfg(target_arch = "x86_64")]
        if let (Precision::F32, Weight::F16(all), Level::Avx512) = (self.precision, self.weight, level()) {
            return self.pack_f16(all, k0..end, n0, cols, nr, out);
        }
        for r0 in (0..cols).step_by(ROWS) {
            let height = ROWS.min(cols - r0);
            interleave_made(height, kc.div_ceil(per), nr, r0, out, |i, row| {
                let c = r0 + i;
                // The row that comes sixteen later, maybe in the next panel, is fetched meanwhile.
                let later = c + ROWS;
                if let Some(n) = self.row(n0 + later / nr * nr, later % nr, nr) {
                    self.weight.soon(n * self.k + k0, kc);
                }
                let Some(n) = self.row(n0, c, nr) else { return row.fill(0.0) };
                let start = n * self.k + k0;
                match (self.precision, self.weight) {
                    (Precision::F32, weight) => weight.widen(start, row),
                    (Precision::Bf16, Weight::Bf16(b)) => {
                        let row = bytes(row);
                        row[kc * 2..].fill(0);
                        row[..kc * 2].copy_from_slice(&b[start * 2..][..kc * 2]);
                    }
                    (precision, weight) => {
                        let mut wide = [0f32; 256];
                        row[kc / per..].fill(0.0);
                        for k in (0..kc).step_by(wide.len()) {
                            let wide = &mut wide[..(kc - k).min(256)];
                            weight.widen(start + k, wide);
                            if precision == Precision::Bf16 {
                                narrow(wide, &mut halves(row)[k..]);
                            } else {
                                quantise(wide, inverse(self.factors[n]), 0, &mut bytes(row)[k..]);
                            }
                        }
                    }
                }
            });
        }
    }

    fn source(&self, kb: usize, n0: usize, c: usize, nr: usize) -> &[u8] {
        let block = self.block(kb);
        let Some(n) = self.row(n0, c, nr).filter(|n| n * self.k < self.weight.len()) else { return &[] };
        self.weight.bytes(n * self.k + block.start, block.len())
    }
}

/// What each row of a weight is divided by in int8, and 128 times the sum of its quantised values: what the sums hold too
/// much because bytes of A are unsigned.
pub(super) fn columns(weight: Weight, k: usize) -> (Vec<f32>, Vec<i32>) {
    use rayon::prelude::*;
    (0..weight.len() / k)
        .into_par_iter()
        .with_min_len(16)
        .map(|n| {
            let mut row = vec![0f32; k];
            weight.widen(n * k, &mut row);
            let factor = factor(&row);
            let mut whole = vec![0u8; k];
            quantise(&row, inverse(factor), 0, &mut whole);
            let sum: i32 = whole.iter().map(|v| *v as i8 as i32).sum();
            (factor, ZERO as i32 * sum)
        })
        .unzip()
}
