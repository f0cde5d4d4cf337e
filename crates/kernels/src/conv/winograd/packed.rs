//! Filters put once into the order in which the transform reads them: one stream, where checkpoints have a row for each output.

use super::filters::{self, TAPS, Taps};
use super::tile::{CHUNK, columns};
use super::whole::Bytes;
use crate::Weight;
use crate::buffer::fresh;
use crate::level::level;
use crate::share::{Shared, each};
use half::f16;
use half::slice::HalfFloatSliceExt;

/// Filters `[outputs, inputs, 3, 3]` as Winograd's algorithms read them at the level in use.
pub(in crate::conv) struct Packed {
    outputs: usize,
    inputs: usize,
    /// Columns of a panel: a property of the level.
    nr: usize,
    kind: Kind,
}

enum Kind {
    /// f16, `[panels][chunks of channels][channels · taps][nr]`.
    Halves(Vec<f32>),
    Bytes(Bytes),
}

impl Packed {
    pub fn new(weight: Weight, outputs: usize, inputs: usize, bytes: bool) -> Self {
        assert_eq!(weight.len(), outputs * inputs * TAPS);
        let nr = columns(level());
        let kind = if bytes {
            Kind::Bytes(Bytes::new(weight, outputs, inputs))
        } else {
            Kind::Halves(halves(weight, outputs, inputs))
        };
        Packed { outputs, inputs, nr, kind }
    }

    pub fn size_bytes(&self) -> usize {
        match &self.kind {
            Kind::Halves(words) => words.len() * 4,
            Kind::Bytes(bytes) => bytes.size_bytes(),
        }
    }

    pub fn check(&self, shape: [usize; 3]) {
        assert_eq!([self.outputs, self.inputs, TAPS], shape, "packed for another layer");
        assert_eq!(self.nr, columns(level()), "packed for another level");
    }

    /// The filters, if they are bytes.
    pub(super) fn bytes(&self) -> Option<&Bytes> {
        match &self.kind {
            Kind::Halves(_) => None,
            Kind::Bytes(bytes) => Some(bytes),
        }
    }

    /// The filters of the outputs from `n0` on for the chunk of channels at `c`, `[channels · taps][columns]`.
    ///
    /// # Panics
    /// If they are bytes.
    pub(super) fn taps(&self, n0: usize, c: usize, out: &mut Taps) {
        let Kind::Halves(words) = &self.kind else { panic!("bytes are transformed as they are") };
        let size = chunk_words(self.nr);
        let at = (n0 / self.nr * self.inputs.div_ceil(CHUNK) + c / CHUNK) * size;
        let words = &words[at..at + size];
        // SAFETY: any f32 is four bytes.
        let bytes = unsafe { std::slice::from_raw_parts(words.as_ptr().cast(), words.len() * 4) };
        Weight::F16(bytes).widen(0, &mut out[..CHUNK * TAPS * self.nr]);
    }
}

/// Words of one chunk of a panel in f16.
fn chunk_words(nr: usize) -> usize {
    CHUNK * TAPS * nr / 2
}

fn halves(weight: Weight, outputs: usize, inputs: usize) -> Vec<f32> {
    let nr = columns(level());
    let (panels, chunks, size) = (outputs.div_ceil(nr), inputs.div_ceil(CHUNK), chunk_words(nr));
    let mut words = fresh(panels * chunks * size);
    let to = Shared::new(&mut words);
    each(panels, |panel| {
        let (mut stored, mut turned) = (filters::no_taps(), filters::no_taps());
        for chunk in 0..chunks {
            filters::taps(weight, [outputs, inputs], panel * nr, chunk * CHUNK, &mut stored, &mut turned);
            let from = &turned[..CHUNK * TAPS * nr];
            // SAFETY: each panel is its own; any f32 is the bits of two f16, with weaker alignment.
            let to: &mut [f16] = unsafe {
                let to = to.part((panel * chunks + chunk) * size, size);
                std::slice::from_raw_parts_mut(to.as_mut_ptr().cast(), from.len())
            };
            to.convert_from_f32_slice(from);
        }
    });
    words
}
