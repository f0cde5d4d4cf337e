//! Micro-kernels for NEON: a tile of up to 6 × 16, four registers wide.

use super::vectors::{NR, kernel};
use crate::neon::{dot_bf16, dot_u8};
use std::arch::{aarch64::*, asm};

#[inline(always)]
fn fma_f32(sum: float32x4_t, a: float32x4_t, b: float32x4_t) -> float32x4_t {
    // SAFETY: every 64-bit ARM processor has NEON.
    unsafe { vfmaq_f32(sum, a, b) }
}

#[inline(always)]
fn add_f32(x: float32x4_t, y: float32x4_t) -> float32x4_t {
    // SAFETY: as above.
    unsafe { vaddq_f32(x, y) }
}

#[inline(always)]
fn add_i32(x: float32x4_t, y: float32x4_t) -> float32x4_t {
    // SAFETY: as above.
    unsafe { vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(x), vreinterpretq_s32_f32(y))) }
}

/// Sums begin with nothing.
#[inline(always)]
fn nothing(_: *const f32, _: usize) -> float32x4_t {
    // SAFETY: as above.
    unsafe { vdupq_n_f32(0.0) }
}

/// Four products a word, unsigned by signed bytes. Rust's function for the instruction is not stable.
#[inline(always)]
unsafe fn usdot(mut sum: float32x4_t, a: float32x4_t, b: float32x4_t) -> float32x4_t {
    // SAFETY: called from kernels that enable I8MM.
    unsafe {
        asm!("usdot {s:v}.4s, {a:v}.16b, {b:v}.16b", s = inout(vreg) sum, a = in(vreg) a, b = in(vreg) b,
            options(pure, nomem, nostack, preserves_flags));
    }
    sum
}

/// The same of signed bytes.
#[inline(always)]
unsafe fn sdot(mut sum: float32x4_t, a: float32x4_t, b: float32x4_t) -> float32x4_t {
    // SAFETY: called from kernels that enable DotProd.
    unsafe {
        asm!("sdot {s:v}.4s, {a:v}.16b, {b:v}.16b", s = inout(vreg) sum, a = in(vreg) a, b = in(vreg) b,
            options(pure, nomem, nostack, preserves_flags));
    }
    sum
}

/// Four products a word, of bytes of A less 128.
#[inline(always)]
unsafe fn sdot_centred(sum: float32x4_t, a: float32x4_t, b: float32x4_t) -> float32x4_t {
    // SAFETY: as above.
    unsafe {
        let a = veorq_u8(vreinterpretq_u8_f32(a), vdupq_n_u8(0x80));
        sdot(sum, vreinterpretq_f32_u8(a), b)
    }
}

/// 128 times the sums of a column's bytes: what [`sdot_centred`] leaves out.
#[inline(always)]
unsafe fn column(b: *const f32, words: usize) -> float32x4_t {
    // SAFETY: the words are there; the rest as above.
    unsafe {
        let (half, mut sum) = (vreinterpretq_f32_s8(vdupq_n_s8(64)), vdupq_n_f32(0.0));
        for w in 0..words {
            sum = sdot(sum, half, vld1q_f32(b.add(w * NR)));
        }
        add_i32(sum, sum)
    }
}

kernel! {
    /// See [`super::scalar::f32`]; each product is rounded together with its sum.
    f32, "neon", 4 of (vld1q_f32, vst1q_f32, vdupq_n_f32), fma_f32, add_f32, nothing
}
kernel! {
    /// See [`super::scalar::bf16`].
    bf16, "neon", 4 of (vld1q_f32, vst1q_f32, vdupq_n_f32), dot_bf16, add_f32, nothing
}
kernel! {
    /// See [`super::scalar::int8`].
    int8, "neon", 4 of (vld1q_f32, vst1q_f32, vdupq_n_f32), dot_u8, add_i32, nothing
}
kernel! {
    /// See [`super::scalar::int8`]; with DotProd.
    int8_dotprod, "neon,dotprod", 4 of (vld1q_f32, vst1q_f32, vdupq_n_f32), sdot_centred, add_i32, column
}
kernel! {
    /// See [`super::scalar::int8`]; with I8MM.
    int8_i8mm, "neon,i8mm", 4 of (vld1q_f32, vst1q_f32, vdupq_n_f32), usdot, add_i32, nothing
}
