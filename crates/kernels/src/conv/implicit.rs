//! Convolution as an implicit matrix product: the patches are gathered while the left operand is packed, so no im2col
//! buffer exists.

use super::{Conv, Filters};
use crate::Weight;
use crate::buffer::Buffer;
use crate::gemm::{
    Blocks, Epilogue, KC as WORDS, LINE, Left, Panels, Precision, Right, Target, line_bf16, lines_bf16,
    lines_f32, pair, run,
};
use std::ops::Range;

/// A block of the shared dimension, whose values are those of each tap in turn: all taps of some channels, or some taps of one.
struct Part {
    channels: Range<usize>,
    taps: Range<usize>,
}

impl Part {
    fn values(&self) -> usize {
        self.channels.len() * self.taps.len()
    }
}

/// The blocks for so many channels and taps, for words of so many values.
fn parts(inputs: usize, taps: usize, per_word: usize) -> Vec<Part> {
    let (most, line) = (per_word * WORDS, per_word * LINE);
    // Whole lines of the cache, where there are so many.
    let channels = match most / taps {
        0 => 1,
        n if n < line => n,
        n => n / line * line,
    };
    let all = |c: usize| (0..taps).step_by(most).map(move |t| (c, t));
    (0..inputs)
        .step_by(channels)
        .flat_map(all)
        .map(|(c, t)| Part { channels: c..inputs.min(c + channels), taps: t..taps.min(t + most) })
        .collect()
}

struct Patches<'a> {
    conv: Conv,
    x: &'a [f32],
    width: usize,
    height: usize,
    parts: &'a [Part],
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

impl Patches<'_> {
    /// The values of block `kb` of row `m`, to be used by `of`.
    fn row(&self, kb: usize, m: usize, of: impl FnOnce(&[f32])) {
        let (c, Part { channels, taps }) = (&self.conv, &self.parts[kb]);
        let mut row = [0f32; 2 * WORDS];
        let row = &mut row[..self.parts[kb].values()];
        for (tap, out) in taps.clone().zip(row.chunks_exact_mut(channels.len())) {
            if let Some(p) = self.pixel(m, tap / c.kernel, tap % c.kernel) {
                out.copy_from_slice(&self.x[p * c.inputs..][channels.clone()]);
            }
        }
        of(row);
    }
}

impl Patches<'_> {
    /// Packs block `kb` of row `m` by `lines`, which makes lines of `per` values each.
    #[inline(always)]
    fn lines(
        &self,
        kb: usize,
        m: usize,
        per: usize,
        out: &mut [f32],
        stride: usize,
        lines: impl Fn(&[f32], &mut [f32], usize),
    ) {
        let (c, Part { channels, taps }) = (&self.conv, &self.parts[kb]);
        if channels.len() % per != 0 {
            return self.row(kb, m, |row| lines(row, out, stride));
        }
        // Each tap's channels are whole lines: without a copy.
        let count = channels.len() / per;
        for (i, tap) in taps.clone().enumerate() {
            let out = &mut out[i * count * stride..];
            match self.pixel(m, tap / c.kernel, tap % c.kernel) {
                Some(p) => lines(&self.x[p * c.inputs..][channels.clone()], out, stride),
                None => (0..count).for_each(|l| out[l * stride..][..LINE].fill(0.0)),
            }
        }
    }
}

impl Left for Patches<'_> {
    fn pack(&self, kb: usize, m: usize, _: f32, out: &mut [f32], stride: usize) {
        self.lines(kb, m, LINE, out, stride, lines_f32);
    }
}

struct Kernels<'a> {
    weight: Weight<'a>,
    inputs: usize,
    taps: usize,
    parts: &'a [Part],
}

impl Right for Kernels<'_> {
    fn pack(&self, kb: usize, n0: usize, cols: usize, nr: usize, out: &mut [f32]) {
        let Part { channels, taps } = &self.parts[kb];
        let row = &mut vec![0f32; channels.len() * self.taps][..];
        for c in 0..cols {
            self.weight.widen(((n0 + c) * self.inputs + channels.start) * self.taps, row);
            for (i, all) in row.chunks_exact(self.taps).enumerate() {
                for (t, v) in all[taps.clone()].iter().enumerate() {
                    out[(t * channels.len() + i) * nr + c] = *v;
                }
            }
        }
    }
}

/// An operand in bf16: its values in pairs, a last one alone with zero.
struct Paired<'a, T>(T, &'a [Part]);

impl Left for Paired<'_, Patches<'_>> {
    const PRECISION: Precision = Precision::Bf16;

    fn pack(&self, kb: usize, m: usize, _: f32, out: &mut [f32], stride: usize) {
        self.0.lines(kb, m, line_bf16(), out, stride, lines_bf16);
    }
}

impl<T: Right> Right for Paired<'_, T> {
    fn pack(&self, kb: usize, n0: usize, cols: usize, nr: usize, out: &mut [f32]) {
        let values = self.1[kb].values();
        let mut whole = Buffer::stale(values.next_multiple_of(2) * nr);
        let (filled, rest) = whole.split_at_mut(values * nr);
        self.0.pack(kb, n0, cols, nr, filled);
        rest.fill(0.0);
        for (out, two) in out.chunks_exact_mut(nr).zip(whole.chunks_exact(2 * nr)) {
            pair(&two[..nr], &two[nr..], out);
        }
    }
}

/// Their depths, for words of so many values.
fn depths(parts: &[Part], per_word: usize) -> Blocks {
    Blocks(parts.iter().map(|p| p.values().div_ceil(per_word)).collect())
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
        let parts = parts(inputs, taps, 2);
        let kernels = Kernels { weight, inputs, taps, parts: &parts };
        let panels = Panels::new(&Paired(kernels, &parts), outputs, &depths(&parts, 2));
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
    let per_word = if precision == Precision::F32 { 1 } else { 2 };
    let parts = &parts(conv.inputs, taps, per_word)[..];
    let blocks = depths(parts, per_word);
    let left = Patches { conv, x, width, height, parts };
    let rows = conv.batch * height * width;
    let targets = &mut [Target::new(conv.outputs, epilogue, out)];
    let weight = match filters {
        Filters::Packed(packed) => {
            return run(rows, &blocks, &Paired(left, parts), &[&packed.implicit().panels], targets);
        }
        Filters::Stored(weight) => weight,
    };
    let right = Kernels { weight, inputs: conv.inputs, taps, parts };
    if per_word == 2 {
        run(rows, &blocks, &Paired(left, parts), &[&Paired(right, parts)], targets);
    } else {
        run(rows, &blocks, &left, &[&right], targets);
    }
}
