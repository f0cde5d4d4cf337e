//! CPU kernels: slices in, slices out. They know no tensor type and no model.
//!
//! This is the only crate with `unsafe` arithmetic: SIMD intrinsics and disjoint writes from several threads.
//! Activations are channels-last, `[batch, height, width, channels]` = `[batch, tokens, channels]`, so that a
//! 1×1 convolution is a matrix product and a transformer block needs no permute.
//!
//! Every result is independent of the number of threads, bit for bit: work is split over outputs only, and each
//! output element is accumulated in one fixed order.
//!
//! ```
//! use instantstyle_kernels::{gemm, Weight};
//! // [2 rows, 3 in] x [2 out, 3 in]^T
//! let a = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
//! let w = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0f32];
//! let mut out = [0.0; 4];
//! gemm::linear(&a, 3, Weight::from_f32(&w), Some(&[10.0, 20.0]), None, &mut out);
//! assert_eq!(out, [11.0, 22.0, 14.0, 25.0]);
//! ```
#![allow(unsafe_code)]

pub mod act;
#[cfg(target_arch = "x86_64")]
mod amx;
pub mod attention;
pub mod blocks;
pub mod buffer;
pub mod conv;
pub mod gemm;
mod lanes;
pub mod level;
#[cfg(target_arch = "aarch64")]
mod neon;
pub mod norm;
mod share;
mod words;

/// Weights as they are stored: little-endian bytes of one number type, possibly in a memory map and unaligned.
/// They are widened to f32 while they are packed for the product, so no second copy of a model is ever made.
#[derive(Clone, Copy, Debug)]
pub enum Weight<'a> {
    /// IEEE single precision, 4 bytes each.
    F32(&'a [u8]),
    /// IEEE half precision, 2 bytes each.
    F16(&'a [u8]),
    /// bfloat16, 2 bytes each.
    Bf16(&'a [u8]),
    /// Blocks of values that share a scale; whole blocks only.
    Blocks(blocks::Block, &'a [u8]),
}

impl<'a> Weight<'a> {
    /// Views a slice of f32 as weights.
    pub fn from_f32(values: &'a [f32]) -> Self {
        // SAFETY: any f32 is four initialised bytes, and u8 has no alignment.
        Weight::F32(unsafe {
            std::slice::from_raw_parts(values.as_ptr().cast(), std::mem::size_of_val(values))
        })
    }

    /// Number of weights.
    pub fn len(&self) -> usize {
        match self {
            Weight::F32(b) => b.len() / 4,
            Weight::F16(b) | Weight::Bf16(b) => b.len() / 2,
            Weight::Blocks(kind, b) => {
                let (values, size) = kind.size();
                b.len() / size * values
            }
        }
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes of weights `start..start + len`, as far as there are such.
    #[inline]
    pub(crate) fn bytes(&self, start: usize, len: usize) -> &'a [u8] {
        let (b, start, len) = match *self {
            Weight::F32(b) => (b, start * 4, len * 4),
            Weight::F16(b) | Weight::Bf16(b) => (b, start * 2, len * 2),
            Weight::Blocks(kind, b) => {
                let (values, size) = kind.size();
                (b, start / values * size, len.div_ceil(values) * size)
            }
        };
        &b[start.min(b.len())..(start + len).min(b.len())]
    }

    /// Tells the processor that weights `start..start + len`, as far as there are such, will be read soon.
    pub(crate) fn soon(&self, start: usize, len: usize) {
        let bytes = self.bytes(start, len);
        share::soon(bytes, 0, bytes.len());
    }

    /// Widens `out.len()` weights starting at `start` to f32. Exact; of blocks the values that ggml's reference gives.
    ///
    /// # Panics
    /// If `start + out.len()` is beyond the end.
    pub fn widen(&self, start: usize, out: &mut [f32]) {
        match *self {
            Weight::F32(b) => {
                let b = &b[start * 4..(start + out.len()) * 4];
                for (o, c) in out.iter_mut().zip(b.as_chunks::<4>().0) {
                    *o = f32::from_le_bytes(*c);
                }
            }
            Weight::F16(b) => widen_f16(&b[start * 2..(start + out.len()) * 2], out),
            Weight::Blocks(kind, b) => blocks::widen(kind, b, start, out),
            Weight::Bf16(b) => {
                let b = &b[start * 2..(start + out.len()) * 2];
                for (o, c) in out.iter_mut().zip(b.as_chunks::<2>().0) {
                    *o = f32::from_bits((u16::from_le_bytes(*c) as u32) << 16);
                }
            }
        }
    }
}

fn widen_f16(b: &[u8], out: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if level::f16c() {
        // SAFETY: f16c was detected; every access is within the two slices, which have matching lengths.
        unsafe { widen_f16c(b, out) };
        return;
    }
    for (o, c) in out.iter_mut().zip(b.as_chunks::<2>().0) {
        *o = half::f16::from_le_bytes(*c).to_f32();
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx,f16c")]
unsafe fn widen_f16c(b: &[u8], out: &mut [f32]) {
    use std::arch::x86_64::*;
    debug_assert_eq!(b.len(), out.len() * 2);
    let whole = out.len() / 8 * 8;
    for i in (0..whole).step_by(8) {
        // SAFETY: i + 8 <= out.len(); unaligned loads and stores are used.
        unsafe {
            let h = _mm_loadu_si128(b.as_ptr().add(i * 2).cast());
            _mm256_storeu_ps(out.as_mut_ptr().add(i), _mm256_cvtph_ps(h));
        }
    }
    for (o, c) in out[whole..].iter_mut().zip(b[whole * 2..].as_chunks::<2>().0) {
        *o = half::f16::from_le_bytes(*c).to_f32();
    }
}
