//! Convolution, channels-last, as an implicit matrix product: the patches are gathered while the left operand is
//! packed, so no im2col buffer exists.

use crate::Weight;
use crate::gemm::{Blocks, Epilogue, Left, Right, run};

/// Channels per block of the shared dimension for a 3×3 kernel: 9 · 32 taps, close to the depth of [`crate::gemm`].
const CHANNELS: usize = 32;

/// Shapes of one convolution. Input `[batch, height, width, inputs]`, weights `[outputs, inputs, kernel, kernel]`
/// as checkpoints store them, output `[batch, out_height(), out_width(), outputs]`.
#[derive(Clone, Copy, Debug)]
pub struct Conv {
    /// Pictures.
    pub batch: usize,
    /// Rows of the input.
    pub height: usize,
    /// Columns of the input.
    pub width: usize,
    /// Channels of the input.
    pub inputs: usize,
    /// Channels of the output.
    pub outputs: usize,
    /// Side of the square kernel.
    pub kernel: usize,
    /// Step in both directions.
    pub stride: usize,
    /// Zeros before the first row and column.
    pub pad_before: usize,
    /// Zeros after the last row and column.
    pub pad_after: usize,
    /// Read the input as if doubled by nearest-neighbour upsampling.
    pub upsample: bool,
}

impl Conv {
    fn virtual_size(&self) -> (usize, usize) {
        if self.upsample { (self.height * 2, self.width * 2) } else { (self.height, self.width) }
    }

    fn out(&self, size: usize) -> usize {
        (size + self.pad_before + self.pad_after).saturating_sub(self.kernel) / self.stride + 1
    }

    /// Rows of the output.
    pub fn out_height(&self) -> usize {
        self.out(self.virtual_size().0)
    }

    /// Columns of the output.
    pub fn out_width(&self) -> usize {
        self.out(self.virtual_size().1)
    }
}

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
///
/// # Panics
/// If a length does not fit the shapes, or kernel or stride is 0.
pub fn conv2d(
    conv: Conv,
    x: &[f32],
    weight: Weight,
    bias: Option<&[f32]>,
    residual: Option<&[f32]>,
    out: &mut [f32],
) {
    let taps = conv.kernel * conv.kernel;
    assert!(conv.kernel > 0 && conv.stride > 0);
    assert_eq!(x.len(), conv.batch * conv.height * conv.width * conv.inputs);
    assert_eq!(weight.len(), conv.outputs * conv.inputs * taps);
    let (height, width) = (conv.out_height(), conv.out_width());
    let m = conv.batch * height * width;
    assert_eq!(out.len(), m * conv.outputs);
    assert!(bias.is_none_or(|b| b.len() == conv.outputs) && residual.is_none_or(|r| r.len() == out.len()));
    let blocks = (0..conv.inputs).step_by(CHANNELS).map(|c| CHANNELS.min(conv.inputs - c) * taps).collect();
    let left = Patches { conv, x, width, height };
    let right = Kernels { weight, inputs: conv.inputs, taps };
    run(m, conv.outputs, &Blocks(blocks), &left, &right, Epilogue { bias, residual }, out);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gemm::tests::noise;

    #[test]
    fn equals_the_definition() {
        let base = Conv {
            batch: 2,
            height: 7,
            width: 5,
            inputs: 37,
            outputs: 35,
            kernel: 3,
            stride: 1,
            pad_before: 1,
            pad_after: 1,
            upsample: false,
        };
        for conv in [
            base,
            Conv { stride: 2, ..base },
            Conv { stride: 2, pad_before: 0, ..base },
            Conv { upsample: true, ..base },
            Conv { kernel: 1, pad_before: 0, pad_after: 0, ..base },
            Conv { kernel: 5, stride: 5, pad_before: 0, pad_after: 0, inputs: 3, height: 10, ..base },
        ] {
            let x = noise(conv.batch * conv.height * conv.width * conv.inputs, 1);
            let w = noise(conv.outputs * conv.inputs * conv.kernel * conv.kernel, 2);
            let bias = noise(conv.outputs, 3);
            let (oh, ow) = (conv.out_height(), conv.out_width());
            let mut got = vec![f32::NAN; conv.batch * oh * ow * conv.outputs];
            conv2d(conv, &x, Weight::from_f32(&w), Some(&bias), None, &mut got);
            let s = conv.upsample as usize;
            let (vh, vw) = (conv.height << s, conv.width << s);
            for (i, g) in got.iter().enumerate() {
                let (o, p) = (i % conv.outputs, i / conv.outputs);
                let (ox, oy, b) = (p % ow, p / ow % oh, p / ow / oh);
                let mut want = bias[o] as f64;
                for ky in 0..conv.kernel {
                    for kx in 0..conv.kernel {
                        let y = (oy * conv.stride + ky) as isize - conv.pad_before as isize;
                        let xx = (ox * conv.stride + kx) as isize - conv.pad_before as isize;
                        if y < 0 || xx < 0 || y >= vh as isize || xx >= vw as isize {
                            continue;
                        }
                        let pixel = (b * conv.height + (y as usize >> s)) * conv.width + (xx as usize >> s);
                        for c in 0..conv.inputs {
                            let weight = w[((o * conv.inputs + c) * conv.kernel + ky) * conv.kernel + kx];
                            want += weight as f64 * x[pixel * conv.inputs + c] as f64;
                        }
                    }
                }
                assert!((*g as f64 - want).abs() < 1e-4, "{conv:?} at {i}: {g} {want}");
            }
        }
    }
}
