//! Packing for AVX-512: rows as lines, or interleaved.

use super::LINE;
use super::pack::ZERO;
use std::arch::x86_64::*;

/// Transposes 16 rows of 16 words: `out[w][r] = rows[r][w]`.
#[target_feature(enable = "avx512f")]
#[inline]
fn transposed(r: [__m512; 16]) -> [__m512; 16] {
    let mut t = [_mm512_setzero_ps(); 16];
    for i in 0..8 {
        t[2 * i] = _mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]);
    }
    let pd = |lo: bool, a: __m512, b: __m512| {
        let (a, b) = (_mm512_castps_pd(a), _mm512_castps_pd(b));
        _mm512_castpd_ps(if lo { _mm512_unpacklo_pd(a, b) } else { _mm512_unpackhi_pd(a, b) })
    };
    // u[4 g + w]: words w, w + 4, w + 8, w + 12 of rows 4 g .. 4 g + 4, one in each quarter.
    let mut u = [_mm512_setzero_ps(); 16];
    for g in 0..4 {
        for w in 0..4 {
            u[4 * g + w] = pd(w % 2 == 0, t[4 * g + w / 2], t[4 * g + 2 + w / 2]);
        }
    }
    let mut out = [_mm512_setzero_ps(); 16];
    for w in 0..4 {
        let a = _mm512_shuffle_f32x4::<0b10_00_10_00>(u[w], u[4 + w]);
        let b = _mm512_shuffle_f32x4::<0b11_01_11_01>(u[w], u[4 + w]);
        let c = _mm512_shuffle_f32x4::<0b10_00_10_00>(u[8 + w], u[12 + w]);
        let d = _mm512_shuffle_f32x4::<0b11_01_11_01>(u[8 + w], u[12 + w]);
        out[w] = _mm512_shuffle_f32x4::<0b10_00_10_00>(a, c);
        out[8 + w] = _mm512_shuffle_f32x4::<0b11_01_11_01>(a, c);
        out[4 + w] = _mm512_shuffle_f32x4::<0b10_00_10_00>(b, d);
        out[12 + w] = _mm512_shuffle_f32x4::<0b11_01_11_01>(b, d);
    }
    out
}

/// See [`super::pack::interleave`].
///
/// # Safety
/// The machine must have AVX-512 F.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn interleave(rows: &[&[f32]], stride: usize, at: usize, out: &mut [f32]) {
    let words = same_length(rows);
    // SAFETY: `load` is asked for what is there.
    let load = |r: usize, w0, whole| unsafe { some_of(rows[r], w0, whole) };
    interleave_words::<false>(rows.len(), words, stride, at, out, load);
}

/// The same of rows of f16, which are widened.
///
/// # Safety
/// The machine must have AVX-512 F, BW and VL.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(super) unsafe fn interleave_f16(rows: &[&[u8]], stride: usize, at: usize, out: &mut [f32]) {
    let words = same_length(rows) / 2;
    let load = |r: usize, w0: usize, whole: bool| {
        let halves = rows[r].as_ptr().cast::<i16>().wrapping_add(w0);
        // SAFETY: sixteen are there, or the mask leaves out what is beyond the row.
        _mm512_cvtph_ps(unsafe {
            if whole {
                _mm256_loadu_epi16(halves)
            } else {
                _mm256_maskz_loadu_epi16(some(words - w0), halves)
            }
        })
    };
    interleave_words::<false>(rows.len(), words, stride, at, out, load);
}

/// The same of rows that are rounded to bf16, as words of two.
///
/// # Safety
/// The machine must have AVX-512 F and BF16.
#[target_feature(enable = "avx512f,avx512bf16")]
pub(super) unsafe fn interleave_bf16(rows: &[&[f32]], stride: usize, at: usize, out: &mut [f32]) {
    let k = same_length(rows);
    let load = |r: usize, w0: usize, whole: bool| {
        let whole = whole && k % 2 == 0;
        // SAFETY: sixteen words of two are there, or it is not whole; the types are the same 512 bits.
        unsafe {
            let (low, high) = (some_of(rows[r], 2 * w0, whole), some_of(rows[r], 2 * w0 + 16, whole));
            std::mem::transmute::<__m512bh, __m512>(_mm512_cvtne2ps_pbh(high, low))
        }
    };
    interleave_words::<false>(rows.len(), k.div_ceil(2), stride, at, out, load);
}

/// The same of rows that are quantised: whole numbers nearest to `x · inverse` of its row, plus 128, as words of four.
///
/// # Safety
/// The machine must have AVX-512 F and BW.
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) unsafe fn interleave_int8(
    rows: &[&[f32]],
    inverses: &[f32],
    stride: usize,
    at: usize,
    out: &mut [f32],
) {
    let k = same_length(rows);
    assert!(inverses.len() == rows.len());
    let load = |r: usize, w0: usize, whole: bool| {
        let whole = whole && k % 4 == 0;
        // SAFETY: sixteen words of four are there, or it is not whole.
        quantised(|i| unsafe { some_of(rows[r], 4 * w0 + 16 * i, whole) }, _mm512_set1_ps(inverses[r]))
    };
    interleave_words::<true>(rows.len(), k.div_ceil(4), stride, at, out, load);
}

/// See [`super::pack::lines_bf16`].
///
/// # Safety
/// The machine must have AVX-512 F and BF16.
#[target_feature(enable = "avx512f,avx512bf16")]
pub(super) unsafe fn lines_bf16(row: &[f32], out: &mut [f32], stride: usize) {
    let words = |x: &[f32], whole| {
        // SAFETY: a whole one has 32 values; the types are the same 512 bits.
        unsafe {
            let (low, high) = (some_of(x, 0, whole), some_of(x, 16, whole));
            std::mem::transmute::<__m512bh, __m512>(_mm512_cvtne2ps_pbh(high, low))
        }
    };
    lines::<32>(row, out, stride, words);
}

/// See [`super::pack::lines_int8`].
///
/// # Safety
/// The machine must have AVX-512 F and BW.
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) unsafe fn lines_int8(row: &[f32], inverse: f32, out: &mut [f32], stride: usize) {
    let inverse = _mm512_set1_ps(inverse);
    let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    let words = |x: &[f32], whole| {
        // SAFETY: a whole one has 64 values.
        _mm512_permutexvar_ps(order, quantised(|i| unsafe { some_of(x, 16 * i, whole) }, inverse))
    };
    lines::<64>(row, out, stride, words);
}

/// Lines of `PER` values each, `stride` words apart: `words(values, whole)` makes one.
#[target_feature(enable = "avx512f")]
#[inline]
fn lines<const PER: usize>(
    row: &[f32],
    out: &mut [f32],
    stride: usize,
    words: impl Fn(&[f32], bool) -> __m512,
) {
    let count = row.len().div_ceil(PER);
    assert!(count == 0 || out.len() >= (count - 1) * stride + LINE);
    let (groups, rest) = row.as_chunks::<PER>();
    let start = out.as_mut_ptr();
    // SAFETY: the last of `count` lines ends inside by the assertion.
    unsafe {
        for (i, x) in groups.iter().enumerate() {
            _mm512_storeu_ps(start.add(i * stride), words(x, true));
        }
        if !rest.is_empty() {
            _mm512_storeu_ps(start.add(groups.len() * stride), words(rest, false));
        }
    }
}

/// 64 values, sixteen at a time, as bytes: whole numbers nearest to `x · inverse`, plus 128. Word 4 i + q of them is at place
/// 4 q + i, for they are packed within quarters of a vector.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn quantised(x: impl Fn(usize) -> __m512, inverse: __m512) -> __m512 {
    let values = |i| _mm512_cvtps_epi32(_mm512_mul_ps(x(i), inverse));
    let (a, b) = (_mm512_packs_epi32(values(0), values(1)), _mm512_packs_epi32(values(2), values(3)));
    _mm512_castsi512_ps(_mm512_xor_si512(_mm512_packs_epi16(a, b), _mm512_set1_epi8(ZERO as i8)))
}

/// See [`super::pack::factor`].
///
/// # Safety
/// The machine must have AVX-512 F.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn largest(x: &[f32]) -> f32 {
    let mut most = [_mm512_setzero_si512(); 4];
    let larger = |most, x| _mm512_max_epu32(most, _mm512_castps_si512(_mm512_abs_ps(x)));
    let (groups, rest) = x.as_chunks::<64>();
    for x in groups {
        for (i, most) in most.iter_mut().enumerate() {
            // SAFETY: 64 values are there.
            *most = larger(*most, unsafe { _mm512_loadu_ps(x.as_ptr().add(16 * i)) });
        }
    }
    for (x, most) in rest.chunks(16).zip(&mut most) {
        // SAFETY: the level has been promised.
        *most = larger(*most, unsafe { first(x) });
    }
    let [a, b, c, d] = most;
    f32::from_bits(_mm512_reduce_max_epu32(_mm512_max_epu32(_mm512_max_epu32(a, b), _mm512_max_epu32(c, d))))
}

/// Values of each row.
fn same_length<T>(rows: &[&[T]]) -> usize {
    let len = rows.first().map_or(0, |r| r.len());
    assert!(rows.iter().all(|r| r.len() == len));
    len
}

/// A mask of the first `n` of sixteen.
#[inline(always)]
fn some(n: usize) -> u16 {
    if n < 16 { (1u16 << n) - 1 } else { u16::MAX }
}

/// The first values of `x`, zeros where it has fewer than sixteen.
///
/// # Safety
/// The machine must have AVX-512 F.
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn first(x: &[f32]) -> __m512 {
    // SAFETY: the slice is long enough, or the mask leaves out what is beyond it.
    unsafe {
        match x.len() {
            // Masked loads of nothing from nowhere are right, but very slow.
            0 => _mm512_setzero_ps(),
            n @ 1..16 => _mm512_maskz_loadu_ps(some(n), x.as_ptr()),
            _ => _mm512_loadu_ps(x.as_ptr()),
        }
    }
}

/// The values of `x` from `start` on, zeros beyond its end; `whole` promises sixteen.
///
/// # Safety
/// The promise must hold, and the machine must have AVX-512 F.
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn some_of(x: &[f32], start: usize, whole: bool) -> __m512 {
    debug_assert!(!whole || x.len() >= start + 16);
    // SAFETY: as promised.
    unsafe {
        if whole { _mm512_loadu_ps(x.as_ptr().add(start)) } else { first(x.get(start..).unwrap_or(&[])) }
    }
}

/// `out[w · stride + at + r]` is word `w` of row `r`, where `load(r, w0, whole)` gives words from `w0` on, all sixteen if
/// `whole`; `QUARTERS` says that word 4 i + q of them is at place 4 q + i.
#[target_feature(enable = "avx512f")]
#[inline]
fn interleave_words<const QUARTERS: bool>(
    height: usize,
    words: usize,
    stride: usize,
    at: usize,
    out: &mut [f32],
    load: impl Fn(usize, usize, bool) -> __m512,
) {
    match height {
        // Panels have sixteen rows at a time, tiles of A fourteen.
        16 => interleave_of::<16, QUARTERS>(height, words, stride, at, out, load),
        14 => interleave_of::<14, QUARTERS>(height, words, stride, at, out, load),
        _ => interleave_of::<0, QUARTERS>(height, words, stride, at, out, load),
    }
}

/// The same for so many rows; any number if `HEIGHT` is 0.
#[target_feature(enable = "avx512f")]
#[inline]
fn interleave_of<const HEIGHT: usize, const QUARTERS: bool>(
    height: usize,
    words: usize,
    stride: usize,
    at: usize,
    out: &mut [f32],
    load: impl Fn(usize, usize, bool) -> __m512,
) {
    let height = if HEIGHT == 0 { height } else { HEIGHT };
    assert!(height <= 16);
    assert!(at + height <= stride && (words == 0 || out.len() >= (words - 1) * stride + at + height));
    let mask = some(height);
    let place = |w: usize| if QUARTERS { 4 * (w % 4) + w / 4 } else { w };
    let mut w0 = 0;
    // In a block without gaps the words after it overwrite what is too much.
    let over = height == 16 || height == stride;
    while HEIGHT != 0 && over && w0 + 16 <= words && (w0 + 15) * stride + at + 16 <= out.len() {
        let columns =
            transposed(std::array::from_fn(
                |r| if r < HEIGHT { load(r, w0, true) } else { _mm512_setzero_ps() },
            ));
        // SAFETY: the last one ends inside by the condition.
        unsafe {
            let start = out.as_mut_ptr().add(w0 * stride + at);
            for w in 0..16 {
                _mm512_storeu_ps(start.add(w * stride), columns[place(w)]);
            }
        }
        w0 += 16;
    }
    for w0 in (w0..words).step_by(16) {
        let mut r = [_mm512_setzero_ps(); 16];
        for (i, r) in r.iter_mut().enumerate().take(height) {
            *r = load(i, w0, false);
        }
        let columns = transposed(r);
        for w in 0..16.min(words - w0) {
            let start = (w0 + w) * stride + at;
            // SAFETY: only `height` words are written, which are inside by the assertion.
            unsafe { _mm512_mask_storeu_ps(out.as_mut_ptr().add(start), mask, columns[place(w)]) };
        }
    }
}
