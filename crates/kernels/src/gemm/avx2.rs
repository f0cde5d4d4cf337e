//! Micro-kernels for AVX2 and FMA: a tile of up to 6 × 16, two vectors wide.

use super::LINE;
use super::finish::Tile;
use super::work::Soon;
use std::arch::x86_64::*;

/// Columns of the tile.
const NR: usize = 16;

/// One micro-kernel: `$fma(sums, a, b)` adds the products of a broadcast word of A to a vector of sums, `$add` adds sums.
macro_rules! kernel {
    ($(#[$doc:meta])* $name:ident, $fma:expr, $add:expr) => {
        $(#[$doc])*
        ///
        /// # Safety
        /// The machine must have AVX2 and FMA.
        #[target_feature(enable = "avx2,fma")]
        pub(in crate::gemm) unsafe fn $name(
            (rows, kc): (usize, usize),
            (block, panel): (&[f32], &[f32]),
            sums: &mut [f32],
            more: bool,
            soon: &Soon,
            _: Option<&Tile>,
        ) -> bool {
            #[target_feature(enable = "avx2,fma")]
            #[inline]
            unsafe fn tile_of<const MR: usize>(
                kc: usize,
                a: *const f32,
                mut b: *const f32,
                t: *mut f32,
                more: bool,
            ) {
                // SAFETY: the caller checked that MR rows of kc words in whole lines, kc · NR and MR · NR words are there.
                unsafe {
                    let mut sum = [[_mm256_setzero_ps(); 2]; MR];
                    for w in 0..kc {
                        let a = a.add(w / LINE * MR * LINE + w % LINE);
                        let (b0, b1) = (_mm256_loadu_ps(b), _mm256_loadu_ps(b.add(NR / 2)));
                        for (r, sum) in sum.iter_mut().enumerate() {
                            let v = _mm256_set1_ps(*a.add(r * LINE));
                            sum[0] = $fma(sum[0], v, b0);
                            sum[1] = $fma(sum[1], v, b1);
                        }
                        b = b.add(NR);
                    }
                    for (r, sum) in sum.iter().enumerate() {
                        for (half, sum) in sum.iter().enumerate() {
                            let at = t.add(r * NR + half * NR / 2);
                            let sum = if more { $add(_mm256_loadu_ps(at), *sum) } else { *sum };
                            _mm256_storeu_ps(at, sum);
                        }
                    }
                }
            }
            soon.fetch();
            assert!(block.len() >= rows * kc.next_multiple_of(LINE) && panel.len() >= kc * NR && sums.len() >= rows * NR);
            let (a, b, t) = (block.as_ptr(), panel.as_ptr(), sums.as_mut_ptr());
            // SAFETY: the lengths were checked above for this number of rows.
            unsafe {
                match rows {
                    1 => tile_of::<1>(kc, a, b, t, more),
                    2 => tile_of::<2>(kc, a, b, t, more),
                    3 => tile_of::<3>(kc, a, b, t, more),
                    4 => tile_of::<4>(kc, a, b, t, more),
                    5 => tile_of::<5>(kc, a, b, t, more),
                    6 => tile_of::<6>(kc, a, b, t, more),
                    _ => unreachable!("a tile has at most 6 rows"),
                }
            }
            false
        }
    };
}

/// Sums of products in f32.
#[inline(always)]
unsafe fn fma_f32(sum: __m256, a: __m256, b: __m256) -> __m256 {
    // SAFETY: called from kernels that enable FMA.
    unsafe { _mm256_fmadd_ps(a, b, sum) }
}

#[inline(always)]
unsafe fn add_f32(x: __m256, y: __m256) -> __m256 {
    // SAFETY: called from kernels that enable AVX2.
    unsafe { _mm256_add_ps(x, y) }
}

/// Two bf16 products a word: the upper one first, each with one rounding, as `vdpbf16ps` does.
#[inline(always)]
unsafe fn fma_bf16(sum: __m256, a: __m256, b: __m256) -> __m256 {
    // SAFETY: called from kernels that enable AVX2 and FMA.
    unsafe {
        let (a, b) = (_mm256_castps_si256(a), _mm256_castps_si256(b));
        let upper = _mm256_set1_epi32(0xffff_0000u32 as i32);
        let high = |v| _mm256_castsi256_ps(_mm256_and_si256(v, upper));
        let low = |v| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(v));
        _mm256_fmadd_ps(low(a), low(b), _mm256_fmadd_ps(high(a), high(b), sum))
    }
}

/// Four products a word, unsigned by signed bytes, summed exactly in i32: even and odd bytes as 16-bit numbers.
#[inline(always)]
unsafe fn fma_int8(sum: __m256, a: __m256, b: __m256) -> __m256 {
    // SAFETY: called from kernels that enable AVX2.
    unsafe {
        let (a, b) = (_mm256_castps_si256(a), _mm256_castps_si256(b));
        let even = _mm256_madd_epi16(
            _mm256_and_si256(a, _mm256_set1_epi16(0xff)),
            _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(b)),
        );
        let odd = _mm256_madd_epi16(_mm256_srli_epi16::<8>(a), _mm256_srai_epi16::<8>(b));
        _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(sum), _mm256_add_epi32(even, odd)))
    }
}

#[inline(always)]
unsafe fn add_i32(x: __m256, y: __m256) -> __m256 {
    // SAFETY: called from kernels that enable AVX2.
    unsafe { _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(x), _mm256_castps_si256(y))) }
}

kernel! {
    /// See [`super::scalar::f32`].
    f32, fma_f32, add_f32
}
kernel! {
    /// See [`super::scalar::bf16`].
    bf16, fma_bf16, add_f32
}
kernel! {
    /// See [`super::scalar::int8`].
    int8, fma_int8, add_i32
}
