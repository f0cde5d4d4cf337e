//! Convolution as an implicit matrix product: the patches are gathered while the left operand is packed, so no im2col
//! buffer exists.

use super::{Conv, Filters};
use crate::Weight;
use crate::buffer::Buffer;
use crate::gemm::{Blocks, Epilogue, Left, Panels, Precision, Right, Target, pair, run};

/// Words of channels per block of the shared dimension for a 3×3 kernel: 9 · 32 taps, close to the depth of [`crate::gemm`].
const WORDS: usize = 32;

struct Patches<'a> {
    conv: Conv,
    x: &'a [f32],
    width: usize,
    height: usize,
    /// Channels per block.
    channels: usize,
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
    fn pack(&self, kb: usize, m0: usize, rows: usize, _: &[f32], out: &mut [f32]) {
        let c = &self.conv;
        let c0 = kb * self.channels;
        let channels = self.channels.min(c.inputs - c0);
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
    channels: usize,
}

impl Right for Kernels<'_> {
    fn pack(&self, kb: usize, n0: usize, cols: usize, nr: usize, _: bool, out: &mut [f32]) {
        let c0 = kb * self.channels;
        let channels = self.channels.min(self.inputs - c0);
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

/// An operand of blocks with so many values, in bf16: its values in pairs, a last one alone with zero.
struct Paired<'a, T>(T, &'a [usize]);

impl<T> Paired<'_, T> {
    /// Block `kb`, which `pack` writes in f32, of `wide` rows or columns.
    fn pack(&self, kb: usize, wide: usize, out: &mut [f32], pack: impl Fn(&mut [f32])) {
        let values = self.1[kb];
        let mut whole = Buffer::stale(values.next_multiple_of(2) * wide);
        let (filled, rest) = whole.split_at_mut(values * wide);
        pack(filled);
        rest.fill(0.0);
        for (out, two) in out.chunks_exact_mut(wide).zip(whole.chunks_exact(2 * wide)) {
            pair(&two[..wide], &two[wide..], out);
        }
    }
}

impl<T: Left> Left for Paired<'_, T> {
    const PRECISION: Precision = Precision::Bf16;

    fn pack(&self, kb: usize, m0: usize, rows: usize, factors: &[f32], out: &mut [f32]) {
        self.pack(kb, rows, out, |out| self.0.pack(kb, m0, rows, factors, out));
    }
}

impl<T: Right> Right for Paired<'_, T> {
    fn pack(&self, kb: usize, n0: usize, cols: usize, nr: usize, fetch: bool, out: &mut [f32]) {
        self.pack(kb, nr, out, |out| self.0.pack(kb, n0, cols, nr, fetch, out));
    }
}

/// Channels per block, and the values of each block of the shared dimension.
fn blocks(inputs: usize, taps: usize, narrow: bool) -> (usize, Vec<usize>) {
    let channels = if narrow { 2 * WORDS } else { WORDS };
    (channels, (0..inputs).step_by(channels).map(|c| channels.min(inputs - c) * taps).collect())
}

/// The same in words of two.
fn paired(values: &[usize]) -> Blocks {
    Blocks(values.iter().map(|n| n.div_ceil(2)).collect())
}

/// Kernels in bf16 as the products read them at the level in use.
pub(super) struct Packed {
    panels: Panels,
    shape: [usize; 3],
}

impl Packed {
    /// Packs kernels `[outputs, inputs, taps]`.
    pub fn new(weight: Weight, [outputs, inputs, taps]: [usize; 3]) -> Self {
        assert_eq!(weight.len(), outputs * inputs * taps);
        let (channels, values) = blocks(inputs, taps, true);
        let kernels = Kernels { weight, inputs, taps, channels };
        let panels = Panels::new(&Paired(kernels, &values), outputs, &paired(&values));
        Packed { panels, shape: [outputs, inputs, taps] }
    }

    pub fn size_bytes(&self) -> usize {
        self.panels.size_bytes()
    }

    pub fn check(&self, shape: [usize; 3]) {
        assert_eq!(self.shape, shape, "packed for another layer");
        self.panels.check();
    }
}

/// `out = conv(x, weight) (+ bias) (+ residual)`, in f32 or, for what is less, with operands in bf16.
pub(super) fn conv2d(
    conv: Conv,
    precision: Precision,
    x: &[f32],
    filters: Filters,
    epilogue: Epilogue,
    out: &mut [f32],
) {
    let taps = conv.kernel * conv.kernel;
    let (height, width) = (conv.out_height(), conv.out_width());
    let narrow = precision != Precision::F32;
    let (channels, values) = blocks(conv.inputs, taps, narrow);
    let left = Patches { conv, x, width, height, channels };
    let rows = conv.batch * height * width;
    let targets = &mut [Target::new(conv.outputs, epilogue, out)];
    let weight = match filters {
        Filters::Packed(packed) => {
            let panels = &packed.implicit().panels;
            let left = Paired(left, &values);
            return run(rows, &paired(&values), &left, &[panels], targets);
        }
        Filters::Stored(weight) => weight,
    };
    let right = Kernels { weight, inputs: conv.inputs, taps, channels };
    if narrow {
        let (left, right) = (Paired(left, &values), Paired(right, &values));
        run(rows, &paired(&values), &left, &[&right], targets);
    } else {
        run(rows, &Blocks(values), &left, &[&right], targets);
    }
}
