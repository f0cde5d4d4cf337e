//! Weights of convolutions packed once for many.

use super::{Algorithm, implicit, winograd};
use crate::Weight;
use crate::gemm::Precision;

/// The weight of a convolution as its algorithm reads it at the level in use, for less than f32.
pub struct Packed(Kind);

enum Kind {
    Implicit(implicit::Packed),
    Winograd(winograd::Packed),
}

impl Packed {
    /// Packs `weight`, `[outputs, inputs, kernel, kernel]`. For implicit products in bf16. For Winograd's algorithms, which
    /// transform it further, in bf16 as f16: weights in f16 stay exact, wider ones keep 11 bits; in int8 as whole numbers from
    /// -127 to 127, with a factor for each output's taps of 16 channels.
    ///
    /// # Panics
    /// If the number of weights does not fit, or they are asked for in f32: those are read as they are stored.
    pub fn new(
        algorithm: Algorithm,
        weight: Weight,
        outputs: usize,
        inputs: usize,
        kernel: usize,
        precision: Precision,
    ) -> Self {
        assert!(precision != Precision::F32, "f32 filters are read as they are stored");
        Packed(match algorithm {
            Algorithm::Implicit => {
                Kind::Implicit(implicit::Packed::new(weight, [outputs, inputs, kernel * kernel]))
            }
            Algorithm::Winograd2 | Algorithm::Winograd4 => {
                assert_eq!(kernel, 3, "Winograd's algorithms are for kernel 3");
                Kind::Winograd(winograd::Packed::new(weight, outputs, inputs, precision == Precision::Int8))
            }
        })
    }

    /// Memory that it takes.
    pub fn size_bytes(&self) -> usize {
        match &self.0 {
            Kind::Implicit(packed) => packed.size_bytes(),
            Kind::Winograd(packed) => packed.size_bytes(),
        }
    }

    pub(super) fn check(&self, shape: [usize; 3]) {
        match &self.0 {
            Kind::Implicit(packed) => packed.check(shape),
            Kind::Winograd(packed) => packed.check(shape),
        }
    }

    pub(super) fn implicit(&self) -> &implicit::Packed {
        let Kind::Implicit(packed) = &self.0 else { panic!("packed for another algorithm") };
        packed
    }

    pub(super) fn winograd(&self) -> &winograd::Packed {
        let Kind::Winograd(packed) = &self.0 else { panic!("packed for another algorithm") };
        packed
    }
}
