//! The bridge from tensors to kernels: layers as the networks use them.

use crate::tensor::Tensor;
use crate::weights::Stored;
use instantstyle_kernels::gemm::{Extras, Operand, Packed, Part, Then};
use instantstyle_kernels::{Weight, act, attention, conv, gemm, norm};
use std::sync::{Arc, OnceLock};

pub use instantstyle_kernels::act::Activation;
pub use instantstyle_kernels::buffer::return_large_blocks;
pub use instantstyle_kernels::gemm::Precision;
pub use instantstyle_kernels::level;

/// Fully connected layer. In f32 the weights stay as they are stored; in bf16 and int8 they are packed when they are
/// first used, and the pages of their file given back.
#[derive(Clone)]
pub struct Linear {
    weight: Stored,
    bias: Option<Vec<f32>>,
    inputs: usize,
    outputs: usize,
    precision: Precision,
    packed: Arc<OnceLock<Packed>>,
}

impl Linear {
    pub(crate) fn new(weight: Stored, bias: Option<Vec<f32>>, inputs: usize, outputs: usize) -> Self {
        Linear { weight, bias, inputs, outputs, precision: Precision::F32, packed: Arc::default() }
    }

    /// The same layer, with operands of another precision.
    pub(crate) fn in_precision(self, precision: Precision) -> Self {
        Linear { precision, ..self }
    }

    /// Number format of its operands.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Width of the input.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Width of the output.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// `[.., inputs]` → `[.., outputs]`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        self.apply(x, Then::Keep, None)
    }

    /// The same plus `residual`, which has the output's shape.
    pub fn forward_add(&self, x: &Tensor, residual: &Tensor) -> Tensor {
        self.apply(x, Then::Keep, Some(residual))
    }

    /// The same, then an activation.
    pub fn forward_activate(&self, x: &Tensor, activation: Activation) -> Tensor {
        self.apply(x, Then::Activate(activation), None)
    }

    /// GEGLU: the first half of the outputs times the GELU of the second; `[.., inputs]` → `[.., outputs / 2]`. A layer is
    /// used either so or plainly.
    pub fn forward_gate(&self, x: &Tensor) -> Tensor {
        self.apply(x, Then::Gate, None)
    }

    /// The outputs of several layers of one precision for the same input, which is read once: attention's queries, keys and
    /// values. The same bits as one after the other.
    pub fn forward_each<const N: usize>(layers: [&Linear; N], x: &Tensor) -> [Tensor; N] {
        let mut out = layers.map(|layer| layer.output(x, false));
        let mut parts: Vec<Part> = layers
            .iter()
            .zip(&mut out)
            .map(|(layer, out)| Part {
                weight: layer.operand(false),
                extras: Extras { bias: layer.bias.as_deref(), ..Extras::default() },
                out: out.data_mut(),
            })
            .collect();
        gemm::layers(x.data(), x.channels(), &mut parts);
        out
    }

    fn apply(&self, x: &Tensor, then: Then, residual: Option<&Tensor>) -> Tensor {
        let gated = then == Then::Gate;
        let mut out = self.output(x, gated);
        let extras = Extras { bias: self.bias.as_deref(), then, residual: residual.map(Tensor::data) };
        gemm::layer(x.data(), self.inputs, self.operand(gated), extras, out.data_mut());
        out
    }

    /// A tensor for the output.
    fn output(&self, x: &Tensor, gated: bool) -> Tensor {
        assert_eq!(x.channels(), self.inputs, "input width");
        let mut shape = x.shape().to_vec();
        *shape.last_mut().expect("a tensor has an axis") =
            if gated { self.outputs / 2 } else { self.outputs };
        Tensor::stale(shape)
    }

    fn operand(&self, gated: bool) -> Operand<'_> {
        let weight = self.weight.kernel_view().expect("checked on loading");
        match self.precision {
            Precision::F32 => Operand::Stored(weight, Precision::F32),
            precision => Operand::Packed(self.packed.get_or_init(|| {
                let packed = Packed::new(weight, self.inputs, precision, gated);
                self.weight.release();
                packed
            })),
        }
    }
}

/// The products of every row of `a` [m, width] with every row of `b` [n, width], in f32: [m, n].
pub(crate) fn products(a: &Tensor, b: &Tensor) -> Tensor {
    let mut out = Tensor::stale([a.dim(0), b.dim(0)]);
    let b: Vec<u8> = b.data().iter().flat_map(|v| v.to_le_bytes()).collect();
    gemm::linear(a.data(), a.channels(), Weight::F32(&b), None, None, out.data_mut());
    out
}

/// Square convolution over `[batch, height, width, channels]`. In f32 the weights stay as they are stored; in bf16 and int8
/// they are packed when they are first used, and the pages of their file given back. A layer has one stride.
#[derive(Clone)]
pub struct Conv2d {
    weight: Stored,
    bias: Option<Vec<f32>>,
    inputs: usize,
    outputs: usize,
    kernel: usize,
    precision: Precision,
    packed: Arc<OnceLock<conv::Packed>>,
    /// A convolution of 1×1 is a fully connected layer.
    point: Option<Linear>,
}

impl Conv2d {
    pub(crate) fn new(
        weight: Stored,
        bias: Option<Vec<f32>>,
        inputs: usize,
        outputs: usize,
        kernel: usize,
    ) -> Self {
        let point = (kernel == 1).then(|| Linear::new(weight.clone(), bias.clone(), inputs, outputs));
        Conv2d {
            weight,
            bias,
            inputs,
            outputs,
            kernel,
            precision: Precision::F32,
            packed: Arc::default(),
            point,
        }
    }

    /// The same layer, with operands of another precision.
    pub(crate) fn in_precision(self, precision: Precision) -> Self {
        Conv2d { point: self.point.map(|p| p.in_precision(precision)), precision, ..self }
    }

    /// Stride 1, the size kept.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        self.apply(x, 1, self.kernel / 2, self.kernel / 2, false, Around::default())
    }

    /// Stride 1, the size kept, of `x` normalised and activated by SiLU, which is done on the way in.
    pub fn forward_norm(&self, norm: &GroupNorm, x: &Tensor) -> Tensor {
        self.forward_around(Around { norm: Some(norm), ..Around::default() }, x)
    }

    /// The same, with all that a layer can do on its way in and out.
    pub(crate) fn forward_around(&self, around: Around, x: &Tensor) -> Tensor {
        self.apply(x, 1, self.kernel / 2, self.kernel / 2, false, around)
    }

    /// Stride 1, the size kept, plus `residual` of the output's shape.
    pub fn forward_add(&self, x: &Tensor, residual: &Tensor) -> Tensor {
        self.forward_around(Around { residual: Some(residual), ..Around::default() }, x)
    }

    /// Any stride and padding, e.g. the autoencoder's downsampling with zeros after the last row and column only.
    pub fn strided(&self, x: &Tensor, stride: usize, pad_before: usize, pad_after: usize) -> Tensor {
        self.apply(x, stride, pad_before, pad_after, false, Around::default())
    }

    /// Over the input doubled by nearest-neighbour upsampling, which is never stored.
    pub fn upsampled(&self, x: &Tensor) -> Tensor {
        self.apply(x, 1, self.kernel / 2, self.kernel / 2, true, Around::default())
    }

    fn apply(
        &self,
        x: &Tensor,
        stride: usize,
        pad_before: usize,
        pad_after: usize,
        upsample: bool,
        around: Around,
    ) -> Tensor {
        let &[batch, height, width, inputs] = x.shape() else {
            panic!("expected [b, h, w, c], got {:?}", x.shape())
        };
        assert_eq!(inputs, self.inputs, "input channels");
        if let (Some(point), 1, false, None, None) =
            (&self.point, stride, upsample, &around.norm, &around.picture)
        {
            return point.apply(x, Then::Keep, around.residual);
        }
        let weight = self.weight.kernel_view().expect("checked on loading");
        let residual = around.residual.map(Tensor::data);
        let shape = conv::Conv {
            batch,
            height,
            width,
            inputs,
            outputs: self.outputs,
            kernel: self.kernel,
            stride,
            pad_before,
            pad_after,
            upsample,
        };
        let mut out = Tensor::stale([batch, shape.out_height(), shape.out_width(), self.outputs]);
        let affine = around.norm.map(|norm| norm.affine(x));
        let input = conv::Input { data: x.data(), affine: affine.as_ref(), silu: affine.is_some() };
        let epilogue = conv::Epilogue { bias: self.bias.as_deref(), picture: around.picture, residual };
        let filters = match self.precision {
            Precision::F32 => conv::Filters::Stored(weight),
            precision => conv::Filters::Packed(self.packed.get_or_init(|| {
                let (outputs, kernel) = (self.outputs, self.kernel);
                let packed = conv::Packed::new(
                    conv::choose(&shape, precision),
                    weight,
                    outputs,
                    inputs,
                    kernel,
                    precision,
                );
                self.weight.release();
                packed
            })),
        };
        conv::conv2d_fused(shape, self.precision, &input, filters, &epilogue, out.data_mut());
        out
    }
}

/// What a convolution does beside its own work, without a pass over a feature map of its own.
#[derive(Clone, Copy, Default)]
pub(crate) struct Around<'a> {
    /// Normalises the input, then SiLU.
    pub norm: Option<&'a GroupNorm>,
    /// Added to every pixel of a picture, [batch, outputs].
    pub picture: Option<&'a [f32]>,
    /// Added to the output, whose shape it has.
    pub residual: Option<&'a Tensor>,
}

/// Group normalisation over channels-last pictures.
#[derive(Clone)]
pub struct GroupNorm {
    pub(crate) gamma: Vec<f32>,
    pub(crate) beta: Vec<f32>,
    pub(crate) groups: usize,
    pub(crate) eps: f32,
}

impl GroupNorm {
    /// Normalises.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        self.apply(x, false)
    }

    /// Normalises, then SiLU.
    pub fn forward_silu(&self, x: &Tensor) -> Tensor {
        self.apply(x, true)
    }

    fn apply(&self, x: &Tensor, silu: bool) -> Tensor {
        let mut out = Tensor::stale(x.shape());
        self.affine(x).apply(x.data(), silu, out.data_mut());
        out
    }

    fn affine(&self, x: &Tensor) -> norm::Affine {
        norm::Affine::of_groups(x.data(), x.dim(0), self.groups, &self.gamma, &self.beta, self.eps)
    }
}

/// Layer normalisation over the last axis.
#[derive(Clone)]
pub struct LayerNorm {
    pub(crate) gamma: Vec<f32>,
    pub(crate) beta: Vec<f32>,
    pub(crate) eps: f32,
}

impl LayerNorm {
    /// Normalises.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let mut out = Tensor::stale(x.shape());
        norm::layer_norm(x.data(), &self.gamma, &self.beta, self.eps, out.data_mut());
        out
    }
}

/// Applies an activation.
pub fn activate(activation: Activation, mut x: Tensor) -> Tensor {
    act::activate(activation, x.data_mut());
    x
}

/// Multi-head attention of `q` [batch, queries, width] over `k`, `v` [batch, keys, width].
pub fn attend(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, causal: bool) -> Tensor {
    over(q, &[Attended { k, v, weight: 1.0, mask: None }], heads, causal, Precision::F32)
}

/// One set of keys and values, [batch, keys, width] each, and how much of what is attended counts.
pub struct Attended<'a> {
    /// Keys.
    pub k: &'a Tensor,
    /// Values.
    pub v: &'a Tensor,
    /// Factor of what is attended.
    pub weight: f32,
    /// One more factor per query.
    pub mask: Option<&'a [f32]>,
}

/// Multi-head attention of `q` over several sets, each with a softmax of its own, summed: text and image tokens. In bf16 and
/// int8 the operands of its products are rounded to bf16.
pub fn attend_over(q: &Tensor, sets: &[Attended], heads: usize, precision: Precision) -> Tensor {
    over(q, sets, heads, false, precision)
}

fn over(q: &Tensor, sets: &[Attended], heads: usize, causal: bool, precision: Precision) -> Tensor {
    let dim = q.channels() / heads;
    let scale = 1.0 / (dim as f32).sqrt();
    let queries =
        attention::Queries { batch: q.dim(0), heads, dim, queries: q.dim(1), scale, causal, precision };
    let sets: Vec<attention::KeySet> = sets
        .iter()
        .map(|s| attention::KeySet {
            k: s.k.data(),
            v: s.v.data(),
            keys: s.k.dim(1),
            weight: s.weight,
            mask: s.mask,
        })
        .collect();
    let mut out = Tensor::stale(q.shape());
    attention::attention_over(&queries, q.data(), &sets, out.data_mut());
    out
}
