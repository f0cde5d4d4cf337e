//! Micro-kernels for AVX-512: a tile of up to 14 × 32, two vectors wide.

use super::LINE;
use super::avx512_bytes;
use super::finish::{Common, Known, Tile, gate_rows, keep_rows};
use super::soon::{Run, Soon};
use crate::lanes::Avx512;
use crate::share::soon_used;
use std::arch::x86_64::*;

/// Columns of the tile.
pub(super) const NR: usize = 32;

/// Words that are left for the way out of a tile: see the end of `tile_of`.
pub(super) const TAIL: usize = 2;

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

/// One micro-kernel: `$fma(sums, a, b)` adds the products of a broadcast word of A to a vector of sums, `$add` adds sums; of the
/// `$parts` of a word of B each has a word of A. `$meanwhile` says that rows can be finished and quantised meanwhile.
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
            unsafe fn tiles_of<const MR: usize>(
                (kc, tiles): (usize, usize),
                (a, apart): (*const f32, usize),
                b: *const f32,
                t: *mut f32,
                more: bool,
                soon: &Soon,
                last: Option<&Tile>,
            ) -> bool {
                let known = match last {
                    // Only whole tiles: the others would be as many copies of it.
                    Some(tile) if MR == 14 => Known::of::<Avx512<true>>(tile, MR * tiles, $quantised),
                    _ => Known::Other,
                };
                let known = if kc < TAIL { Known::Other } else { known };
                // SAFETY: the caller checked that MR rows of kc words in whole lines are there for each tile, kc · NR words, and
                // MR · NR for each tile; what is known is whole.
                unsafe {
                    let common = match (known, last) {
                        (Known::Keep | Known::Gate, Some(tile)) => Some(Common::of::<true>(tile)),
                        _ => None,
                    };
                    for i in 0..tiles {
                        let tile = (a.add(i * apart), t.add(i * MR * NR));
                        tile_of::<MR>(kc, tile, b, more, (soon, i), (known, common.as_ref()));
                    }
                    common.is_some()
                }
            }
            #[target_feature(enable = $features)]
            #[inline]
            unsafe fn tile_of<const MR: usize>(
                kc: usize,
                (a, t): (*const f32, *mut f32),
                mut b: *const f32,
                more: bool,
                (soon, i): (&Soon, usize),
                (known, common): (Known, Option<&Common<Avx512<true>>>),
            ) {
                // SAFETY: the caller's promises.
                unsafe {
                    let mut sum = [[_mm512_setzero_ps(); 2]; MR];
                    let mut w = 0;
                    // A line for each word: a processor waits for only so many at a time. Lines that are left over are fetched late.
                    let mut left = if known != Known::Other { kc - TAIL } else { kc };
                    let all = Run { lines: usize::MAX, ..Run::none(b) };
                    for run in soon.runs.iter().chain(soon.after).chain([&all]) {
                        let (mut line, n) = (run.at(i), run.lines.min(left));
                        left -= n;
                        for _ in 0..n {
                            soon_used(line);
                            soon_used(line.wrapping_byte_add(run.also));
                            line = line.wrapping_byte_add(run.stride);
                            step!(sum, a, b, w, MR, $fma, $parts);
                        }
                    }
                    let before = |r: usize, sum: [__m512; 2]| {
                        let t = t.add(r * NR);
                        if more {
                            [$add(_mm512_loadu_ps(t), sum[0]), $add(_mm512_loadu_ps(t.add(NR / 2)), sum[1])]
                        } else {
                            sum
                        }
                    };
                    // The last words row by row: while a row is finished, the next ones are multiplied.
                    let last = |r: usize| {
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
                    match (known, common) {
                        (Known::Keep, Some(common)) => return keep_rows::<_, MR, $quantised>(last, common, i * MR),
                        (Known::Gate, Some(common)) => return gate_rows::<_, MR, $quantised>(last, common, i * MR),
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
            let (a, b, t) = (block.as_ptr(), panel.as_ptr(), sums.as_mut_ptr());
            // SAFETY: the lengths were checked above for this number of rows.
            unsafe {
                match rows {
                    1 => tiles_of::<1>((kc, tiles), (a, apart), b, t, more, soon, last),
                    2 => tiles_of::<2>((kc, tiles), (a, apart), b, t, more, soon, last),
                    3 => tiles_of::<3>((kc, tiles), (a, apart), b, t, more, soon, last),
                    4 => tiles_of::<4>((kc, tiles), (a, apart), b, t, more, soon, last),
                    5 => tiles_of::<5>((kc, tiles), (a, apart), b, t, more, soon, last),
                    6 => tiles_of::<6>((kc, tiles), (a, apart), b, t, more, soon, last),
                    7 => tiles_of::<7>((kc, tiles), (a, apart), b, t, more, soon, last),
                    8 => tiles_of::<8>((kc, tiles), (a, apart), b, t, more, soon, last),
                    9 => tiles_of::<9>((kc, tiles), (a, apart), b, t, more, soon, last),
                    10 => tiles_of::<10>((kc, tiles), (a, apart), b, t, more, soon, last),
                    11 => tiles_of::<11>((kc, tiles), (a, apart), b, t, more, soon, last),
                    12 => tiles_of::<12>((kc, tiles), (a, apart), b, t, more, soon, last),
                    13 => tiles_of::<13>((kc, tiles), (a, apart), b, t, more, soon, last),
                    14 if $meanwhile && avx512_bytes::takes(kc) => {
 avx512_bytes::tiles((kc, tiles), (a, apart), b, t, more, soon, last) }
                    14 => tiles_of::<14>((kc, tiles), (a, apart), b, t, more, soon, last),
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
pub(super) unsafe fn fma_int8(sum: __m512, a: __m512, b: __m512) -> __m512 {
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
pub(super) unsafe fn add_i32(x: __m512, y: __m512) -> __m512 {
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
