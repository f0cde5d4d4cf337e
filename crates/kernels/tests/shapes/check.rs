//! One kernel over a shape that bytes choose: every level of instructions must give what the scalar specification gives.
//! Used by a test with seeded bytes and by a fuzz target.

use instantstyle_kernels::act::Activation;
use instantstyle_kernels::attention::{KeySet, Queries, attention_over};
use instantstyle_kernels::conv::{self, Algorithm, Conv};
use instantstyle_kernels::gemm::{self, Extras, Operand, Packed, Precision, Then};
use instantstyle_kernels::level::{Level, detected, force};
use instantstyle_kernels::norm::{Affine, layer_norm};
use instantstyle_kernels::{Weight, blocks::Block};

/// Distance from the scalar level, relative in the L2 norm: products in f32, in another order of sums; norms,
/// exponentials and activations; Winograd's F(4×4), whose own error is 3e-6.
const CLOSE: f32 = 2e-5;
/// The same where probabilities are rounded to bf16 (2⁻⁹): a difference in the last bit of a score may flip the rounding.
const CLOSE_BF16: f32 = 2e-3;
/// The same of attention, whose queries, keys, values and probabilities are rounded to bf16 (2⁻⁹ each) at some levels only.
const ROUNDED: f32 = 8e-3;

/// Choices, byte by byte; 0 after the last.
struct Draw<'a>(std::slice::Iter<'a, u8>);

impl Draw<'_> {
    fn byte(&mut self) -> usize {
        self.0.next().copied().unwrap_or(0) as usize
    }

    /// 1 to `most`.
    fn upto(&mut self, most: usize) -> usize {
        1 + self.byte() * most / 256
    }

    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.byte() % all.len()]
    }

    fn maybe<T>(&mut self, value: T) -> Option<T> {
        (self.byte() % 2 == 1).then_some(value)
    }

    /// Numbers in -1..1.
    fn numbers(&mut self, n: usize) -> Vec<f32> {
        let mut s = (self.byte() as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (0..n)
            .map(|_| {
                s ^= s << 13;
                s ^= s >> 7;
                s ^= s << 17;
                (s >> 40) as f32 / (1u64 << 23) as f32 - 1.0
            })
            .collect()
    }
}

/// Runs what `bytes` choose at every level.
pub fn check(bytes: &[u8]) {
    let mut draw = Draw(bytes.iter());
    match draw.byte() % 4 {
        0 => product(&mut draw),
        1 => convolution(&mut draw),
        2 => attention(&mut draw),
        _ => norms(&mut draw),
    }
}

/// Runs at the scalar level, at each other, and with all that the machine has.
fn at_every_level(what: &str, len: usize, close: f32, run: impl Fn(&mut [f32])) {
    let at = |level| {
        force(level);
        let mut out = vec![f32::NAN; len];
        run(&mut out);
        out
    };
    let want = at(Some(Level::Scalar));
    assert!(want.iter().all(|v| v.is_finite()), "{what}: not all was written");
    let all: f32 = want.iter().map(|v| v * v).sum();
    for level in Level::ALL[1..].iter().copied().map(Some).chain([None]) {
        if level.is_some_and(|l| l > detected()) {
            continue;
        }
        let got = at(level);
        let apart: f32 = got.iter().zip(&want).map(|(a, b)| (a - b).powi(2)).sum();
        let error = (apart / all.max(1e-6)).sqrt();
        assert!(error <= close, "{what}: {level:?} is {error:.1e} from scalar");
    }
    force(None);
}

const PRECISIONS: [Precision; 3] = [Precision::F32, Precision::Bf16, Precision::Int8];

fn product(draw: &mut Draw) {
    let precision = draw.of(&PRECISIONS);
    let (m, outputs) = (draw.upto(300), draw.upto(150));
    let k = draw.of(&[1, 7, 32, 100, 257]) * draw.upto(12);
    let then = draw.of(&[
        Then::Keep,
        Then::Gate,
        Then::Activate(Activation::Silu),
        Then::Activate(Activation::Gelu),
        Then::Activate(Activation::QuickGelu),
    ]);
    let gate = then == Then::Gate;
    let n = if gate { 2 * outputs } else { outputs };
    let (a, w, bias) = (draw.numbers(m * k), draw.numbers(n * k), draw.numbers(n));
    let (bias, residual) = (draw.maybe(&bias[..]), draw.numbers(m * outputs));
    let residual = draw.maybe(&residual[..]);
    let stored = precision != Precision::Int8 && draw.byte() % 2 == 1;
    let halves: Vec<u8> = w.iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect();
    let weight = draw.of(&[Weight::from_f32(&w), Weight::F16(&halves)]);
    let extras = Extras { bias, then, residual };
    at_every_level(&format!("{precision:?} {m}x{n}x{k} {then:?}"), m * outputs, CLOSE, |out| {
        // Packed for the level in use.
        let packed = (!stored).then(|| Packed::new(weight, k, precision, gate));
        let operand = packed.as_ref().map_or(Operand::Stored(weight, precision), Operand::Packed);
        gemm::layer(&a, k, operand, extras, out);
    });
}

fn convolution(draw: &mut Draw) {
    let kernel = draw.of(&[3, 3, 3, 1, 2, 5]);
    let conv = Conv {
        batch: draw.upto(2),
        height: draw.upto(20),
        width: draw.upto(20),
        inputs: draw.upto(200),
        outputs: draw.upto(70),
        kernel,
        stride: draw.of(&[1, 1, 2, 3]),
        pad_before: draw.byte() % kernel,
        pad_after: draw.byte() % kernel,
        upsample: draw.byte() % 4 == 1,
    };
    let (high, wide) = (conv.height << conv.upsample as usize, conv.width << conv.upsample as usize);
    let pads = conv.pad_before + conv.pad_after;
    if high + pads < kernel || wide + pads < kernel {
        return; // no output
    }
    let mut all = vec![Algorithm::Implicit];
    if kernel == 3 && conv.stride == 1 {
        all.extend([Algorithm::Winograd2, Algorithm::Winograd4]);
    }
    let (algorithm, precision) = (draw.of(&all), draw.of(&PRECISIONS));
    let x = draw.numbers(conv.batch * conv.height * conv.width * conv.inputs);
    let w = draw.numbers(conv.outputs * conv.inputs * kernel * kernel);
    let (gamma, beta) = (draw.numbers(conv.inputs), draw.numbers(conv.inputs));
    let groups = draw.of(&[1, 2, 5, 32]);
    let groups = if conv.inputs.is_multiple_of(groups) { groups } else { 1 };
    let affine = Affine::of_groups(&x, conv.batch, groups, &gamma, &beta, 1e-5);
    let input = conv::Input { data: &x, affine: draw.maybe(&affine), silu: draw.byte() % 2 == 1 };
    let len = conv.batch * conv.out_height() * conv.out_width() * conv.outputs;
    let (bias, picture, residual) =
        (draw.numbers(conv.outputs), draw.numbers(conv.batch * conv.outputs), draw.numbers(len));
    let epilogue = conv::Epilogue {
        bias: draw.maybe(&bias),
        picture: draw.maybe(&picture),
        residual: draw.maybe(&residual),
    };
    // In 16 bits a difference in the last bit of an input may round another way.
    let close = if precision == Precision::F32 { CLOSE } else { CLOSE_BF16 };
    let packed = precision != Precision::F32 && draw.byte() % 2 == 1;
    at_every_level(&format!("{algorithm:?} {precision:?} {conv:?} {packed}"), len, close, |out| {
        let weight = Weight::from_f32(&w);
        // Packed for the level in use.
        let packed = packed
            .then(|| conv::Packed::new(algorithm, weight, conv.outputs, conv.inputs, conv.kernel, precision));
        let filters = packed.as_ref().map_or(weight.into(), conv::Filters::Packed);
        conv::conv2d_by(algorithm, precision, conv, &input, filters, &epilogue, out);
    });
}

fn attention(draw: &mut Draw) {
    let (batch, heads, dim) = (draw.upto(2), draw.upto(3), draw.of(&[1, 3, 8, 40, 64, 80, 160]));
    let queries = draw.of(&[1, 4, 60]) * draw.upto(6);
    let precision = draw.of(&PRECISIONS);
    let causal = draw.byte() % 4 == 1;
    let width = heads * dim;
    let q = draw.numbers(batch * queries * width);
    let mask = draw.numbers(queries);
    let sets: Vec<_> = (0..draw.upto(3))
        .map(|_| {
            // From 1024 on int8 is by bytes.
            let keys = if causal { queries } else { draw.of(&[1, 4, 77, 150, 1024]) * draw.upto(3) };
            let (k, v) = (draw.numbers(batch * keys * width), draw.numbers(batch * keys * width));
            (k, v, keys, draw.of(&[1.0, 0.5, -0.3]), draw.maybe(&mask[..]))
        })
        .collect();
    let sets: Vec<_> = sets
        .iter()
        .map(|(k, v, keys, weight, mask)| KeySet { k, v, keys: *keys, weight: *weight, mask: *mask })
        .collect();
    let shape = Queries { batch, heads, dim, queries, scale: (dim as f32).powf(-0.5), causal, precision };
    let close = if precision == Precision::F32 || causal { CLOSE } else { ROUNDED };
    at_every_level(&format!("{shape:?}, {} sets", sets.len()), q.len(), close, |out| {
        attention_over(&shape, &q, &sets, out);
    });
}

fn norms(draw: &mut Draw) {
    let (batch, pixels) = (draw.upto(2), draw.upto(90));
    let groups = draw.upto(8);
    let channels = groups * draw.upto(30);
    let x = draw.numbers(batch * pixels * channels);
    let (gamma, beta) = (draw.numbers(channels), draw.numbers(channels));
    let what = format!("norm of {batch}x{pixels}x{channels} in {groups} groups");
    let silu = draw.byte() % 2 == 1;
    at_every_level(&what, x.len(), CLOSE, |out| {
        Affine::of_groups(&x, batch, groups, &gamma, &beta, 1e-5).apply(&x, silu, out);
    });
    at_every_level(&what, x.len(), CLOSE, |out| layer_norm(&x, &gamma, &beta, 1e-5, out));
    // Blocks of 32 values: whole rows of them, from any place on.
    let bytes: Vec<u8> = (0..32 * 34).map(|i| (i * 31 % 251) as u8).collect();
    let weight = Weight::Blocks(Block::Q8_0, &bytes);
    let start = draw.byte() % 500;
    let len = draw.upto(500);
    // Scales of such bytes may be not finite; what is widened must be the same bits.
    let widened = |level| {
        force(level);
        let mut out = vec![0f32; len];
        weight.widen(start, &mut out);
        out.iter().map(|v| v.to_bits()).collect::<Vec<_>>()
    };
    assert_eq!(widened(Some(Level::Scalar)), widened(None), "widening {len} values from {start}");
}
