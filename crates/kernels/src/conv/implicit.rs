//! Convolution as an implicit matrix product: the patches are gathered while the left operand is packed, so no im2col
//! buffer exists.

use super::Conv;
use crate::Weight;
use crate::gemm::{Blocks, Epilogue, Left, Right, run};

/// Channels per block of the shared dimension for a 3×3 kernel: 9 · 32 taps, close to the depth of [`crate::gemm`].
const CHANNELS: usize = 32;

struct Patches<'a> {
    conv: Conv,
    x: &'a [f32],
    width: usize,
    height: usize,
}

impl Patches<'_> {
    /// The input pixel under tap (`ky`, `kx`) of output row `m`, or None in the padding.
    #[inline(always)]
    fn pixel(&self, m: usize, ky: usize, kx: usize) -> Option<usize> {
        let c = &self.conv;
        let (b, m) = (m / (self.width * self.height), m % (self.width * self.height));
        let y = (m / self.width * c.stride + ky).wrapping_sub(c.pad_before);
        let x = (m % self.width * c.stride + kx).wrapping_sub(c.pad_before);
        let (h, w) = c.virtual_size();
        if y >= h || x >= w {
            return None;
        }
        let shift = c.upsample as usize;
        Some((b * c.height + (y >> shift)) * c.width + (x >> shift))
    }
}

impl Left for Patches<'_> {
    fn pack(&self, kb: usize, m0: usize, rows: usize, out: &mut [f32]) {
        let c = &self.conv;
        let c0 = kb * CHANNELS;
        let channels = CHANNELS.min(c.inputs - c0);
        for r in 0..rows {
            for ky in 0..c.kernel {
                for kx in 0..c.kernel {
                    let tap = &mut out[(ky * c.kernel + kx) * channels * rows + r..];
                    match self.pixel(m0 + r, ky, kx) {
                        Some(p) => {
                            let source = &self.x[p * c.inputs + c0..][..channels];
                            for (i, v) in source.iter().enumerate() {
                                tap[i * rows] = *v;
                            }
                        }
                        None => (0..channels).for_each(|i| tap[i * rows] = 0.0),
                    }
                }
            }
        }
    }
}

struct Kernels<'a> {
    weight: Weight<'a>,
    inputs: usize,
    taps: usize,
}

impl Right for Kernels<'_> {
    fn pack(&self, kb: usize, n0: usize, cols: usize, nr: usize, out: &mut [f32]) {
        let c0 = kb * CHANNELS;
        let channels = CHANNELS.min(self.inputs - c0);
        let row = &mut vec![0f32; channels * self.taps][..];
        for c in 0..cols {
            self.weight.widen(((n0 + c) * self.inputs + c0) * self.taps, row);
            for (i, taps) in row.chunks_exact(self.taps).enumerate() {
                for (t, v) in taps.iter().enumerate() {
                    out[(t * channels + i) * nr + c] = *v;
                }
            }
        }
    }
}

/// `out = conv(x, weight) (+ bias) (+ residual)`.
pub(super) fn conv2d(conv: Conv, x: &[f32], weight: Weight, epilogue: Epilogue, out: &mut [f32]) {
    let taps = conv.kernel * conv.kernel;
    let (height, width) = (conv.out_height(), conv.out_width());
    let blocks = (0..conv.inputs).step_by(CHANNELS).map(|c| CHANNELS.min(conv.inputs - c) * taps).collect();
    let left = Patches { conv, x, width, height };
    let right = Kernels { weight, inputs: conv.inputs, taps };
    run(conv.batch * height * width, conv.outputs, &Blocks(blocks), &left, &right, epilogue, out);
}
