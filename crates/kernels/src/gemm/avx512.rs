//! Micro-kernels for AVX-512: a tile of up to 14 × 32, two vectors wide.

use super::LINE;
use super::finish::{Common, Known, Tile, gate_rows, keep_rows};
use super::pack::ZERO;
use super::quantiser::Quantiser;
use super::work::Soon;
use crate::lanes::Avx512;
use crate::share::soon_used;
use std::arch::x86_64::*;

/// Columns of the tile.
const NR: usize = 32;

/// Words that are left for the way out of a tile: see the end of `tile_of`.
const TAIL: usize = 4;

/// Does `$body` for each part of word `$w`, as the kernel has them: with two vectors of B, and where the first row's word of A
/// is, which is its word `$v`.
macro_rules! parts {
    ([$($part:literal),+], $a:expr, $b:expr, $w:expr, $mr:ident, ($b0:ident, $b1:ident, $at:ident, $v:ident) => $body:block) => {
        let (count, b) = (const { [$($part),+].len() }, $b);
        $(
            let $b0 = part(count, $part, _mm512_loadu_ps(b));
            let $b1 = part(count, $part, _mm512_loadu_ps(b.add(NR / 2)));
            let $v = count * $w + count - 1 - $part;
            let $at = $a.add($v / LINE * $mr * LINE + $v % LINE);
            $body
        )+
    };
}

/// The part of a word of B that a word of A is multiplied by: all of it, or one of its two bf16, the upper one first, as f32.
#[inline(always)]
unsafe fn part(count: usize, part: usize, b: __m512) -> __m512 {
    // SAFETY: called from kernels that enable AVX-512 F.
    unsafe {
        let whole = _mm512_castps_si512(b);
        match (count, part) {
            (1, _) => b,
            (_, 0) => _mm512_castsi512_ps(_mm512_and_si512(whole, _mm512_set1_epi32(0xffff_0000u32 as i32))),
            _ => _mm512_castsi512_ps(_mm512_slli_epi32::<16>(whole)),
        }
    }
}

/// Multiplies word `$w` of the shared dimension and goes on to the next.
macro_rules! step {
    ($sum:ident, $a:ident, $b:ident, $w:ident, $mr:ident, $fma:expr, $parts:tt) => {
        parts!($parts, $a, $b, $w, $mr, (b0, b1, at, v) => {
            // The lines after these, one by one: maybe those of the next tile.
            soon_used($a.wrapping_add((v / LINE * $mr + $mr + v % LINE) * LINE));
            for (r, sum) in $sum.iter_mut().enumerate() {
                let v = _mm512_set1_ps(*at.add(r * LINE));
                sum[0] = $fma(sum[0], v, b0);
                sum[1] = $fma(sum[1], v, b1);
            }
        });
        $w += 1;
        $b = $b.add(NR);
    };
}

/// Multiplies `$n` words, with `$fetch` before each; quantises lines when they are due.
macro_rules! words {
    ($n:expr, |$i:ident| $fetch:expr, ($quantiser:ident, $due:ident), ($sum:ident, $a:ident, $b:ident, $w:ident, $mr:ident, $fma:expr, $parts:tt)) => {
        let n = $n;
        let mut at = 0;
        while at < n {
            let to = if QUANTISES { at + $due.min(n - at) } else { n };
            for $i in at..to {
                $fetch;
                step!($sum, $a, $b, $w, $mr, $fma, $parts);
            }
            if let (true, Some(quantiser)) = (QUANTISES, &mut $quantiser) {
                $due -= to - at;
                if $due == 0 {
                    quantiser.step();
                    $due = quantiser.every;
                }
            }
            at = to;
        }
    };
}

/// One micro-kernel: `$fma(sums, a, b)` adds the products of a broadcast word of A to a vector of sums, `$add` adds sums; of the
/// `$parts` of a word of B each has a word of A. `$meanwhile` says that rows can be quantised meanwhile.
macro_rules! kernel {
    ($(#[$doc:meta])* $name:ident, $features:literal, $fma:expr, $add:expr, $quantised:literal, $meanwhile:literal, $parts:tt) => {
        $(#[$doc])*
        ///
        /// # Safety
        /// The machine must have the features of the kernel.
        #[target_feature(enable = $features)]
        pub(in crate::gemm) unsafe fn $name(
            (rows, kc, tiles): (usize, usize, usize),
            (block, panel): (&[f32], &[f32]),
            sums: &mut [f32],
            more: bool,
            soon: &Soon,
            last: Option<&Tile>,
        ) -> bool {
            #[target_feature(enable = $features)]
            #[inline]
            unsafe fn tiles_of<const MR: usize, const QUANTISES: bool>(
                (kc, tiles): (usize, usize),
                (a, apart): (*const f32, usize),
                b: *const f32,
                t: *mut f32,
                more: bool,
                (soon, mut quantiser): (&Soon, Option<&mut Quantiser>),
                last: Option<&Tile>,
            ) -> bool {
                let rows = soon.rows.min(kc);
                let known = match last {
                    // Only whole tiles: the others would be as many copies of it.
                    Some(tile) if MR == 14 => Known::of::<Avx512<true>>(tile, MR * tiles, $quantised),
                    _ => Known::Other,
                };
                let known = if known == Known::Keep && kc - rows < TAIL { Known::Other } else { known };
                // SAFETY: the caller checked that MR rows of kc words in whole lines are there for each tile, kc · NR words, and
                // MR · NR for each tile; what is known is whole.
                unsafe {
                    let common = match (known, last) {
                        (Known::Keep | Known::Gate, Some(tile)) => Some(Common::of::<true>(tile)),
                        _ => None,
                    };
                    for i in 0..tiles {
                        let tile = (a.add(i * apart), t.add(i * MR * NR));
                        let quantiser = quantiser.as_deref_mut();
                        tile_of::<MR, QUANTISES>((kc, rows), tile, b, more, (soon, i, quantiser), (known, common.as_ref()));
                    }
                    common.is_some()
                }
            }
            #[target_feature(enable = $features)]
            #[inline]
            unsafe fn tile_of<const MR: usize, const QUANTISES: bool>(
                (kc, rows): (usize, usize),
                (a, t): (*const f32, *mut f32),
                mut b: *const f32,
                more: bool,
                (soon, i, mut quantiser): (&Soon, usize, Option<&mut Quantiser>),
                (known, common): (Known, Option<&Common<Avx512<true>>>),
            ) {
                (rows..soon.rows).for_each(|r| soon.row(i * MR + r));
                // SAFETY: the caller's promises.
                unsafe {
                    let mut sum = [[_mm512_setzero_ps(); 2]; MR];
                    let mut w = 0;
                    // A row or a line for each word: a processor waits for only so many at a time. What is left over comes late.
                    let mut due = quantiser.as_ref().map_or(usize::MAX, |q| q.due);
                    words!(rows, |r| soon.row(i * MR + r), (quantiser, due), (sum, a, b, w, MR, $fma, $parts));
                    let tail = if known == Known::Keep { TAIL } else { 0 };
                    let mut left = kc - rows - tail;
                    for run in soon.runs {
                        let lines = run.lines.min(left);
                        words!(lines, |l| run.soon(i, l), (quantiser, due), (sum, a, b, w, MR, $fma, $parts));
                        left -= lines;
                    }
                    words!(left, |_i| (), (quantiser, due), (sum, a, b, w, MR, $fma, $parts));
                    if let Some(quantiser) = quantiser {
                        quantiser.due = due;
                    }
                    let before = |r: usize, sum: [__m512; 2]| {
                        let t = t.add(r * NR);
                        if more {
                            [$add(_mm512_loadu_ps(t), sum[0]), $add(_mm512_loadu_ps(t.add(NR / 2)), sum[1])]
                        } else {
                            sum
                        }
                    };
                    match (known, common) {
                        // The last words row by row: while a row is finished, the next ones are multiplied.
                        (Known::Keep, Some(common)) => {
                            let row = |r: usize| {
                                let mut sum = sum[r];
                                for i in 0..TAIL {
                                    parts!($parts, a, b.add(i * NR), (w + i), MR, (b0, b1, at, _v) => {
                                        let v = _mm512_set1_ps(*at.add(r * LINE));
                                        sum[0] = $fma(sum[0], v, b0);
                                        sum[1] = $fma(sum[1], v, b1);
                                    });
                                }
                                let sum = before(r, sum);
                                [Avx512::<true>(sum[0]), Avx512(sum[1])]
                            };
                            return keep_rows::<_, MR, $quantised>(row, common, i * MR);
                        }
                        (Known::Gate, Some(common)) => {
                            let row = |r: usize| {
                                let sum = before(r, sum[r]);
                                [Avx512::<true>(sum[0]), Avx512(sum[1])]
                            };
                            return gate_rows::<_, MR, $quantised>(row, common, i * MR);
                        }
                        _ => {}
                    }
                    for (r, sum) in sum.iter_mut().enumerate() {
                        *sum = before(r, *sum);
                    }
                    for (r, sum) in sum.iter().enumerate() {
                        for (half, sum) in sum.iter().enumerate() {
                            _mm512_storeu_ps(t.add(r * NR + half * NR / 2), *sum);
                        }
                    }
                }
            }
            let words = kc * $parts.len();
            let apart = block.len() / tiles;
            assert!(apart >= rows * words.next_multiple_of(LINE) && panel.len() >= kc * NR && sums.len() >= tiles * rows * NR);
            let quantiser = soon.quantiser.take();
            let (a, b, t) = (block.as_ptr(), panel.as_ptr(), sums.as_mut_ptr());
            // SAFETY: the lengths were checked above for this number of rows.
            unsafe {
                match rows {
                    1 => tiles_of::<1, false>((kc, tiles), (a, apart), b, t, more, (soon, None), last),
                    2 => tiles_of::<2, false>((kc, tiles), (a, apart), b, t, more, (soon, None), last),
                    3 => tiles_of::<3, false>((kc, tiles), (a, apart), b, t, more, (soon, None), last),
                    4 => tiles_of::<4, false>((kc, tiles), (a, apart), b, t, more, (soon, None), last),
                    5 => tiles_of::<5, false>((kc, tiles), (a, apart), b, t, more, (soon, None), last),
                    6 => tiles_of::<6, false>((kc, tiles), (a, apart), b, t, more, (soon, None), last),
                    7 => tiles_of::<7, false>((kc, tiles), (a, apart), b, t, more, (soon, None), last),
                    8 => tiles_of::<8, false>((kc, tiles), (a, apart), b, t, more, (soon, None), last),
                    9 => tiles_of::<9, false>((kc, tiles), (a, apart), b, t, more, (soon, None), last),
                    10 => tiles_of::<10, false>((kc, tiles), (a, apart), b, t, more, (soon, None), last),
                    11 => tiles_of::<11, false>((kc, tiles), (a, apart), b, t, more, (soon, None), last),
                    12 => tiles_of::<12, false>((kc, tiles), (a, apart), b, t, more, (soon, None), last),
                    13 => tiles_of::<13, false>((kc, tiles), (a, apart), b, t, more, (soon, None), last),
                    14 if $meanwhile && quantiser.is_some() => {
                        tiles_of::<14, $meanwhile>((kc, tiles), (a, apart), b, t, more, (soon, quantiser), last)
                    }
                    14 => tiles_of::<14, false>((kc, tiles), (a, apart), b, t, more, (soon, None), last),
                    _ => unreachable!("a tile has at most 14 rows"),
                }
            }
        }
    };
}

/// Sums of products in f32.
#[inline(always)]
unsafe fn fma_f32(sum: __m512, a: __m512, b: __m512) -> __m512 {
    // SAFETY: called from kernels that enable AVX-512 F.
    unsafe { _mm512_fmadd_ps(a, b, sum) }
}

#[inline(always)]
unsafe fn add_f32(x: __m512, y: __m512) -> __m512 {
    // SAFETY: as above.
    unsafe { _mm512_add_ps(x, y) }
}

/// Two bf16 products a word: the upper one first, each with one rounding, as `vdpbf16ps` does.
#[inline(always)]
unsafe fn fma_bf16(sum: __m512, a: __m512, b: __m512) -> __m512 {
    // SAFETY: called from kernels that enable AVX-512 BF16; the types are the same 512 bits.
    unsafe {
        let halves = |v| std::mem::transmute::<__m512, __m512bh>(v);
        _mm512_dpbf16_ps(sum, halves(a), halves(b))
    }
}

/// Four products a word, unsigned by signed bytes, summed exactly in i32.
#[inline(always)]
unsafe fn fma_int8(sum: __m512, a: __m512, b: __m512) -> __m512 {
    // SAFETY: called from kernels that enable AVX-512 VNNI.
    unsafe {
        let (a, b) = (_mm512_castps_si512(a), _mm512_castps_si512(b));
        _mm512_castsi512_ps(_mm512_dpbusd_epi32(_mm512_castps_si512(sum), a, b))
    }
}

/// The same without the instruction: even and odd bytes as 16-bit numbers.
#[inline(always)]
unsafe fn fma_int8_plain(sum: __m512, a: __m512, b: __m512) -> __m512 {
    // SAFETY: called from kernels that enable AVX-512 BW.
    unsafe {
        let (a, b) = (_mm512_castps_si512(a), _mm512_castps_si512(b));
        let even = _mm512_madd_epi16(
            _mm512_and_si512(a, _mm512_set1_epi16(0xff)),
            _mm512_srai_epi16::<8>(_mm512_slli_epi16::<8>(b)),
        );
        let odd = _mm512_madd_epi16(_mm512_srli_epi16::<8>(a), _mm512_srai_epi16::<8>(b));
        _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(sum), _mm512_add_epi32(even, odd)))
    }
}

#[inline(always)]
unsafe fn add_i32(x: __m512, y: __m512) -> __m512 {
    // SAFETY: called from kernels that enable AVX-512 F.
    unsafe { _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(x), _mm512_castps_si512(y))) }
}

kernel! {
    /// See [`super::scalar::f32`].
    f32, "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma,f16c", fma_f32, add_f32, false, false, [0]
}
kernel! {
    /// See [`super::scalar::bf16`].
    bf16, "avx512f,avx512vl,avx512bw,avx512dq,avx512bf16,avx2,fma,f16c", fma_bf16, add_f32, false, false, [0]
}
kernel! {
    /// See [`super::scalar::bf16`]; without the instruction, of rows that are packed as [`super::pack::lines_wide`] does.
    bf16_wide, "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma,f16c", fma_f32, add_f32, false, false, [0, 1]
}
kernel! {
    /// See [`super::scalar::int8`].
    int8, "avx512f,avx512vl,avx512bw,avx512dq,avx512vnni,avx2,fma,f16c", fma_int8, add_i32, true, true, [0]
}
kernel! {
    /// See [`super::scalar::int8`]; without the VNNI instructions.
    int8_plain, "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma,f16c", fma_int8_plain, add_i32, true, false, [0]
}

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
