//! Micro-kernels for NEON: a tile of up to 6 × 16, four registers wide.

use super::LINE;
use super::finish::Tile;
use super::work::Soon;
use crate::neon::{dot_bf16, dot_u8};
use std::arch::{aarch64::*, asm};

/// Columns of the tile.
const NR: usize = 16;

/// One micro-kernel: `$fma(sums, a, b)` adds the products of a broadcast word of A to a register of sums, `$add` adds sums; each
/// sum begins with what `$first(b, words)` makes of its column's words, `words` of them, each 16 after the one before.
macro_rules! kernel {
    ($(#[$doc:meta])* $name:ident, $features:literal, $fma:expr, $add:expr, $first:expr) => {
        $(#[$doc])*
        ///
        /// # Safety
        /// The machine must have the features of the kernel.
        #[target_feature(enable = $features)]
        pub(in crate::gemm) unsafe fn $name(
            (rows, kc): (usize, usize),
            (block, panel): (&[f32], &[f32]),
            sums: &mut [f32],
            more: bool,
            _: &Soon,
            _: Option<&Tile>,
        ) -> bool {
            #[target_feature(enable = $features)]
            #[inline]
            unsafe fn tile_of<const MR: usize>(kc: usize, a: *const f32, mut b: *const f32, t: *mut f32, more: bool) {
                // SAFETY: the caller checked that MR rows of kc words in whole lines, kc · NR and MR · NR words are there.
                unsafe {
                    let mut first = [vdupq_n_f32(0.0); 4];
                    for (i, first) in first.iter_mut().enumerate() {
                        *first = $first(b.add(4 * i), kc);
                    }
                    let mut sum = [first; MR];
                    for w in 0..kc {
                        let a = a.add(w / LINE * MR * LINE + w % LINE);
                        let right = [vld1q_f32(b), vld1q_f32(b.add(4)), vld1q_f32(b.add(8)), vld1q_f32(b.add(12))];
                        for (r, sum) in sum.iter_mut().enumerate() {
                            let v = vdupq_n_f32(*a.add(r * LINE));
                            for (sum, right) in sum.iter_mut().zip(right) {
                                *sum = $fma(*sum, v, right);
                            }
                        }
                        b = b.add(NR);
                    }
                    for (r, sum) in sum.iter().enumerate() {
                        for (i, sum) in sum.iter().enumerate() {
                            let at = t.add(r * NR + 4 * i);
                            let sum = if more { $add(vld1q_f32(at), *sum) } else { *sum };
                            vst1q_f32(at, sum);
                        }
                    }
                }
            }
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
    f32, "neon", fma_f32, add_f32, nothing
}
kernel! {
    /// See [`super::scalar::bf16`].
    bf16, "neon", dot_bf16, add_f32, nothing
}
kernel! {
    /// See [`super::scalar::int8`].
    int8, "neon", dot_u8, add_i32, nothing
}
kernel! {
    /// See [`super::scalar::int8`]; with DotProd.
    int8_dotprod, "neon,dotprod", sdot_centred, add_i32, column
}
kernel! {
    /// See [`super::scalar::int8`]; with I8MM.
    int8_i8mm, "neon,i8mm", usdot, add_i32, nothing
}
