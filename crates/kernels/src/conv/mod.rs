//! Convolution, channels-last: by Winograd's algorithms where the kernel is 3×3 and the stride 1, else as an implicit
//! matrix product. In bf16 and int8 Winograd's operands have 16 bits, those of implicit products are bf16.

mod implicit;
mod packed;
mod winograd;

use crate::buffer::Buffer;
use crate::gemm::Precision;
use crate::level;
use crate::norm::Affine;
use crate::{Weight, gemm};
use winograd::{Format, Variant};

pub use packed::Packed;

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

/// What a convolution reads.
#[derive(Clone, Copy)]
pub struct Input<'a> {
    /// `[batch, height, width, inputs]`.
    pub data: &'a [f32],
    /// Applied to each pixel on the way in: a group norm whose statistics are known. The zeros around the picture stay
    /// zeros.
    pub affine: Option<&'a Affine>,
    /// SiLU after `affine`.
    pub silu: bool,
}

/// What happens to the finished sums, in this order.
#[derive(Clone, Copy, Default)]
pub struct Epilogue<'a> {
    /// Added to each pixel, `[outputs]`.
    pub bias: Option<&'a [f32]>,
    /// Added to each pixel of one picture, `[batch, outputs]`: what the timestep adds.
    pub picture: Option<&'a [f32]>,
    /// Added element by element, of the output's shape.
    pub residual: Option<&'a [f32]>,
}

impl Epilogue<'_> {
    /// What concerns picture `b` and the output channels from `n0` on.
    fn of_picture(&self, b: usize, n0: usize, outputs: usize) -> Self {
        Epilogue {
            bias: self.bias.map(|v| &v[n0..]),
            picture: self.picture.map(|v| &v[b * outputs + n0..(b + 1) * outputs]),
            residual: self.residual,
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
    let input = Input { data: x, affine: None, silu: false };
    conv2d_fused(
        conv,
        Precision::F32,
        &input,
        weight.into(),
        &Epilogue { bias, residual, picture: None },
        out,
    );
}

/// The weight of a convolution.
#[derive(Clone, Copy)]
pub enum Filters<'a> {
    /// As it is stored.
    Stored(Weight<'a>),
    /// Packed before, for the algorithm in use.
    Packed(&'a Packed),
}

impl<'a> From<Weight<'a>> for Filters<'a> {
    fn from(weight: Weight<'a>) -> Self {
        Filters::Stored(weight)
    }
}

/// How a convolution is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// As an implicit matrix product: any shape.
    Implicit,
    /// Winograd's F(2×2, 3×3): kernel 3×3, stride 1.
    Winograd2,
    /// Winograd's F(4×4, 3×3): the same.
    Winograd4,
}

impl Algorithm {
    fn variant(self) -> Option<Variant> {
        match self {
            Algorithm::Implicit => None,
            Algorithm::Winograd2 => Some(Variant::F2),
            Algorithm::Winograd4 => Some(Variant::F4),
        }
    }
}

/// The same in a precision, with a group norm and an activation on the way in and more on the way out.
///
/// # Panics
/// If a length does not fit the shapes, kernel or stride is 0, or filters are packed for another algorithm, another layer or f32.
pub fn conv2d_fused(
    conv: Conv,
    precision: Precision,
    x: &Input,
    weight: Filters,
    epilogue: &Epilogue,
    out: &mut [f32],
) {
    conv2d_by(choose(&conv, precision), precision, conv, x, weight, epilogue, out);
}

/// Outputs up to which AMX's products of bf16 are faster than Winograd's in 16 bits: layers with more have pictures of few pixels. It may
/// not depend on the picture's size, for weights are packed for one algorithm.
const TILED: usize = 512;

/// The fastest algorithm by measurement (`benches/README.md`). It depends on the picture's shape, never on the batch, so
/// that pictures come out the same alone and together.
pub fn choose(conv: &Conv, precision: Precision) -> Algorithm {
    let tiled = level::amx() && precision == Precision::Bf16 && conv.outputs <= TILED;
    if conv.kernel != 3 || conv.stride != 1 || conv.inputs < 16 || tiled {
        return Algorithm::Implicit;
    }
    let tiles = |m: usize| conv.out_height().div_ceil(m) * conv.out_width().div_ceil(m);
    // A tile of F(4) costs 36 products, one of F(2) 16.
    if tiles(4) * 36 <= tiles(2) * 16 { Algorithm::Winograd4 } else { Algorithm::Winograd2 }
}

/// Bytes that a convolution needs beside input and output on so many threads, the packed operands of implicit
/// products not counted. `normed` says whether it normalises its input.
pub fn scratch_bytes(conv: &Conv, precision: Precision, normed: bool, threads: usize) -> usize {
    match choose(conv, precision).variant() {
        Some(variant) => 4 * winograd::scratch(*conv, variant, format(precision), threads),
        None if normed => 4 * conv.batch * conv.height * conv.width * conv.inputs,
        None => 0,
    }
}

/// The format of Winograd's operands: 16 bits wherever less than f32 is asked for, in int8 from packed bytes.
fn format(precision: Precision) -> Format {
    match precision {
        Precision::F32 => Format::F32,
        Precision::Bf16 => Format::I16,
        Precision::Int8 => Format::Whole,
    }
}

/// [`conv2d_fused`] by a given algorithm: for tests and measurements.
///
/// # Panics
/// As [`conv2d_fused`], and if the algorithm cannot compute this shape.
pub fn conv2d_by<'a>(
    algorithm: Algorithm,
    precision: Precision,
    conv: Conv,
    x: &Input,
    filters: impl Into<Filters<'a>>,
    epilogue: &Epilogue,
    out: &mut [f32],
) {
    let taps = conv.kernel * conv.kernel;
    assert!(conv.kernel > 0 && conv.stride > 0);
    assert_eq!(x.data.len(), conv.batch * conv.height * conv.width * conv.inputs);
    let filters = filters.into();
    match filters {
        Filters::Stored(weight) => assert_eq!(weight.len(), conv.outputs * conv.inputs * taps),
        Filters::Packed(packed) => {
            assert!(precision != Precision::F32, "packed for less than f32");
            packed.check([conv.outputs, conv.inputs, taps]);
        }
    }
    let picture = conv.out_height() * conv.out_width() * conv.outputs;
    assert_eq!(out.len(), conv.batch * picture);
    assert!(epilogue.bias.is_none_or(|b| b.len() == conv.outputs));
    assert!(epilogue.picture.is_none_or(|p| p.len() == conv.batch * conv.outputs));
    assert!(epilogue.residual.is_none_or(|r| r.len() == out.len()));
    assert!(x.affine.is_none_or(|a| a.fits(conv.batch, conv.inputs)));
    if conv.batch == 0 || picture == 0 {
        return;
    }
    if let Some(variant) = algorithm.variant() {
        assert!(conv.kernel == 3 && conv.stride == 1, "Winograd's algorithms are for kernel 3, stride 1");
        return winograd::run(conv, variant, format(precision), x, filters, epilogue, out);
    }
    let mut normal = None;
    if let Some(affine) = x.affine {
        let mut buffer = Buffer::stale(x.data.len());
        affine.apply(x.data, x.silu, &mut buffer);
        normal = Some(buffer);
    }
    let data = normal.as_deref().unwrap_or(x.data);
    let Some(terms) = epilogue.picture else {
        let finish =
            gemm::Epilogue { bias: epilogue.bias, residual: epilogue.residual, ..Default::default() };
        return implicit::conv2d(conv, precision, data, filters, finish, out);
    };
    let one = Conv { batch: 1, ..conv };
    let input = data.len() / conv.batch;
    for (b, out) in out.chunks_exact_mut(picture).enumerate() {
        let mut bias = terms[b * conv.outputs..][..conv.outputs].to_vec();
        for (sum, b) in bias.iter_mut().zip(epilogue.bias.into_iter().flatten()) {
            *sum += b;
        }
        let residual = epilogue.residual.map(|r| &r[b * picture..][..picture]);
        let finish = gemm::Epilogue { bias: Some(&bias), residual, ..Default::default() };
        implicit::conv2d(one, precision, &data[b * input..][..input], filters, finish, out);
    }
}

#[cfg(test)]
mod tests;
