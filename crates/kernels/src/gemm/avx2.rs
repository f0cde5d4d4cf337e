//! Micro-kernels for AVX2 and FMA: a tile of up to 6 × 16, two vectors wide.

use super::vectors::kernel;
use std::arch::x86_64::*;

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

/// Sums begin with nothing.
#[inline(always)]
unsafe fn nothing(_: *const f32, _: usize) -> __m256 {
    // SAFETY: called from kernels that enable AVX2.
    unsafe { _mm256_setzero_ps() }
}

kernel! {
    /// See [`super::scalar::f32`].
    f32, "avx2,fma", 2 of (_mm256_loadu_ps, _mm256_storeu_ps, _mm256_set1_ps), fma_f32, add_f32, nothing
}
kernel! {
    /// See [`super::scalar::bf16`].
    bf16, "avx2,fma", 2 of (_mm256_loadu_ps, _mm256_storeu_ps, _mm256_set1_ps), fma_bf16, add_f32, nothing
}
kernel! {
    /// See [`super::scalar::int8`].
    int8, "avx2,fma", 2 of (_mm256_loadu_ps, _mm256_storeu_ps, _mm256_set1_ps), fma_int8, add_i32, nothing
}
