//! Filters put once into the order in which the transform reads them: one stream, where checkpoints have a row for each output.

use super::filters::{self, TAPS, Taps};
use super::tile::{CHUNK, columns};
use crate::Weight;
use crate::buffer::fresh;
use crate::gemm::{factor, inverse};
use crate::lanes::ROUND;
use crate::level::{level, per_level};
use crate::share::{Shared, each};
use half::f16;
use half::slice::HalfFloatSliceExt;

/// Filters `[outputs, inputs, 3, 3]` as Winograd's algorithms read them at the level in use: f16, or bytes with factors.
pub(in crate::conv) struct Packed {
    outputs: usize,
    inputs: usize,
    /// Bytes instead of f16.
    bytes: bool,
    /// Columns of a panel: a property of the level.
    nr: usize,
    /// `[panels][chunks of channels][channels · taps][nr]`; in bytes each chunk's factors come first, `[nr]` of f32.
    words: Vec<f32>,
}

impl Packed {
    pub fn new(weight: Weight, outputs: usize, inputs: usize, bytes: bool) -> Self {
        assert_eq!(weight.len(), outputs * inputs * TAPS);
        let nr = columns(level());
        let mut packed = Packed { outputs, inputs, bytes, nr, words: Vec::new() };
        let (panels, chunks) = (outputs.div_ceil(nr), inputs.div_ceil(CHUNK));
        let size = packed.chunk_words();
        packed.words = fresh(panels * chunks * size);
        let words = Shared::new(&mut packed.words);
        each(panels, |panel| {
            let (mut stored, mut turned) = (filters::no_taps(), filters::no_taps());
            for chunk in 0..chunks {
                filters::taps(weight, [outputs, inputs], panel * nr, chunk * CHUNK, &mut stored, &mut turned);
                let from = &turned[..CHUNK * TAPS * nr];
                // SAFETY: each panel is its own.
                let to = unsafe { words.part((panel * chunks + chunk) * size, size) };
                if bytes {
                    let (factors, to) = to.split_at_mut(nr);
                    quantise(from, nr, factors, to);
                } else {
                    // SAFETY: any f32 is the bits of two f16, with weaker alignment.
                    let to = unsafe { std::slice::from_raw_parts_mut(to.as_mut_ptr().cast(), from.len()) };
                    let to: &mut [f16] = to;
                    to.convert_from_f32_slice(from);
                }
            }
        });
        packed
    }

    /// Words of one chunk of a panel.
    fn chunk_words(&self) -> usize {
        let taps = CHUNK * TAPS * self.nr;
        if self.bytes { taps / 4 + self.nr } else { taps / 2 }
    }

    pub fn size_bytes(&self) -> usize {
        self.words.len() * 4
    }

    pub fn check(&self, shape: [usize; 3]) {
        assert_eq!([self.outputs, self.inputs, TAPS], shape, "packed for another layer");
        assert_eq!(self.nr, columns(level()), "packed for another level");
    }

    /// The filters of the outputs from `n0` on for the chunk of channels at `c`, `[channels · taps][columns]`.
    pub(super) fn taps(&self, n0: usize, c: usize, out: &mut Taps) {
        let size = self.chunk_words();
        let at = (n0 / self.nr * self.inputs.div_ceil(CHUNK) + c / CHUNK) * size;
        let (words, out) = (&self.words[at..at + size], &mut out[..CHUNK * TAPS * self.nr]);
        if self.bytes {
            let (factors, words) = words.split_at(self.nr);
            widen(words, self.nr, factors, out);
        } else {
            // SAFETY: any f32 is four bytes.
            let bytes = unsafe { std::slice::from_raw_parts(words.as_ptr().cast(), words.len() * 4) };
            Weight::F16(bytes).widen(0, out);
        }
    }
}

per_level! {
    /// Columns of `nr`, each to whole numbers and its factor.
    fn quantise(from: &[f32], nr: usize, factors: &mut [f32], to: &mut [f32]) {
        // Magnitudes in the order of their bits, what is not a number last.
        let mut most = [0u32; 32];
        for row in from.chunks_exact(nr) {
            most.iter_mut().zip(row).for_each(|(m, v)| *m = (*m).max(v.abs().to_bits()));
        }
        let mut inverses = [0f32; 32];
        for ((f, i), m) in factors.iter_mut().zip(&mut inverses).zip(&most) {
            *f = factor(&[f32::from_bits(*m)]);
            *i = inverse(*f);
        }
        // SAFETY: any f32 is four bytes.
        let to: &mut [u8] = unsafe { std::slice::from_raw_parts_mut(to.as_mut_ptr().cast(), from.len()) };
        for (to, row) in to.chunks_exact_mut(nr).zip(from.chunks_exact(nr)) {
            for ((t, v), i) in to.iter_mut().zip(row).zip(&inverses) {
                *t = (v * i + ROUND).to_bits() as u8;
            }
        }
    }
}

per_level! {
    /// The reverse.
    fn widen(from: &[f32], nr: usize, factors: &[f32], out: &mut [f32]) {
        // SAFETY: any f32 is four bytes.
        let from: &[i8] = unsafe { std::slice::from_raw_parts(from.as_ptr().cast(), from.len() * 4) };
        for (out, row) in out.chunks_exact_mut(nr).zip(from.chunks_exact(nr)) {
            for ((o, v), f) in out.iter_mut().zip(row).zip(factors) {
                *o = *v as f32 * f;
            }
        }
    }
}
