use super::*;
use crate::gemm::tests::{at_every_level, noise};
use Precision::{Bf16, F32};

const BASE: Conv = Conv {
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

/// The definition in f64, without what comes before and after.
fn definition(conv: &Conv, x: &[f64], w: &[f32]) -> Vec<f64> {
    let (oh, ow) = (conv.out_height(), conv.out_width());
    let s = conv.upsample as usize;
    let (vh, vw) = (conv.height << s, conv.width << s);
    let mut out = vec![0f64; conv.batch * oh * ow * conv.outputs];
    for (i, out) in out.iter_mut().enumerate() {
        let (o, p) = (i % conv.outputs, i / conv.outputs);
        let (ox, oy, b) = (p % ow, p / ow % oh, p / ow / oh);
        for ky in 0..conv.kernel {
            for kx in 0..conv.kernel {
                let y = (oy * conv.stride + ky).wrapping_sub(conv.pad_before);
                let xx = (ox * conv.stride + kx).wrapping_sub(conv.pad_before);
                if y >= vh || xx >= vw {
                    continue;
                }
                let pixel = (b * conv.height + (y >> s)) * conv.width + (xx >> s);
                for c in 0..conv.inputs {
                    let weight = w[((o * conv.inputs + c) * conv.kernel + ky) * conv.kernel + kx];
                    *out += weight as f64 * x[pixel * conv.inputs + c];
                }
            }
        }
    }
    out
}

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|v| *v as f64).collect()
}

/// The algorithms that can compute this convolution.
fn algorithms(conv: &Conv) -> Vec<Algorithm> {
    let mut all = vec![Algorithm::Implicit];
    if conv.kernel == 3 && conv.stride == 1 {
        all.extend([Algorithm::Winograd2, Algorithm::Winograd4]);
    }
    all
}

#[test]
fn every_algorithm_equals_the_definition() {
    let base = BASE;
    for conv in [
        base,
        Conv { stride: 2, ..base },
        Conv { stride: 2, pad_before: 0, ..base },
        Conv { upsample: true, ..base },
        Conv { upsample: true, height: 1, width: 9, inputs: 16, outputs: 64, ..base },
        Conv { kernel: 1, pad_before: 0, pad_after: 0, ..base },
        Conv { kernel: 5, stride: 5, pad_before: 0, pad_after: 0, inputs: 3, height: 10, ..base },
        Conv { height: 16, width: 12, inputs: 32, outputs: 32, ..base },
        Conv { height: 1, width: 1, inputs: 1, outputs: 1, ..base },
        Conv { height: 33, width: 21, inputs: 130, outputs: 3, batch: 1, ..base },
        Conv { height: 9, width: 4, inputs: 340, outputs: 33, batch: 1, ..base },
        Conv { pad_before: 0, pad_after: 1, ..base },
        // More taps than a block of the shared dimension has words.
        Conv { kernel: 21, stride: 7, height: 30, width: 22, inputs: 2, batch: 1, ..base },
    ] {
        let x = noise(conv.batch * conv.height * conv.width * conv.inputs, 1);
        let w = noise(conv.outputs * conv.inputs * conv.kernel * conv.kernel, 2);
        let bias = noise(conv.outputs, 3);
        let n = conv.out_height() * conv.out_width() * conv.outputs;
        let residual = noise(conv.batch * n, 4);
        let picture = noise(conv.batch * conv.outputs, 5);
        let plain = definition(&conv, &wide(&x), &w);
        for algorithm in algorithms(&conv) {
            at_every_level(|level| {
                for terms in 0..8 {
                    let epilogue = Epilogue {
                        bias: (terms & 1 > 0).then_some(&bias),
                        picture: (terms & 2 > 0).then_some(&picture),
                        residual: (terms & 4 > 0).then_some(&residual),
                    };
                    let input = Input { data: &x, affine: None, silu: false };
                    let mut got = vec![f32::NAN; conv.batch * n];
                    conv2d_by(algorithm, F32, conv, &input, Weight::from_f32(&w), &epilogue, &mut got);
                    for (i, g) in got.iter().enumerate() {
                        let o = i % conv.outputs;
                        let at = |v: Option<&[f32]>, i: usize| v.map_or(0.0, |v| v[i] as f64);
                        let want = plain[i]
                            + at(epilogue.bias, o)
                            + at(epilogue.picture, i / n * conv.outputs + o)
                            + at(epilogue.residual, i);
                        let bound = 4e-6 * ((conv.inputs * conv.kernel * conv.kernel) as f64).sqrt().max(1.0);
                        assert!(
                            (*g as f64 - want).abs() < bound,
                            "{algorithm:?} {level:?} {conv:?} at {i}: {g} {want}"
                        );
                    }
                }
            });
        }
    }
}

#[test]
fn norm_and_activation_on_the_way_in() {
    let _fixed_level = crate::gemm::tests::fixed_level();
    let conv = Conv { inputs: 36, height: 9, ..BASE };
    let x = noise(conv.batch * conv.height * conv.width * conv.inputs, 1);
    let w = noise(conv.outputs * conv.inputs * 9, 2);
    let (gamma, beta) = (noise(conv.inputs, 3), noise(conv.inputs, 4));
    let affine = Affine::of_groups(&x, conv.batch, 4, &gamma, &beta, 1e-5);
    for silu in [false, true] {
        let mut normal = vec![0.0; x.len()];
        affine.apply(&x, silu, &mut normal);
        let want = definition(&conv, &wide(&normal), &w);
        for algorithm in algorithms(&conv) {
            let mut got = vec![f32::NAN; want.len()];
            let input = Input { data: &x, affine: Some(&affine), silu };
            conv2d_by(algorithm, F32, conv, &input, Weight::from_f32(&w), &Epilogue::default(), &mut got);
            for (g, want) in got.iter().zip(&want) {
                assert!((*g as f64 - want).abs() < 1e-4, "{algorithm:?} {silu}: {g} {want}");
            }
        }
    }
}

/// The bounds named in [`winograd`], and that the points of F(4) earn their place.
#[test]
fn errors_keep_to_their_bounds() {
    let conv = Conv { batch: 1, height: 16, width: 16, inputs: 320, outputs: 16, ..BASE };
    let x = noise(conv.height * conv.width * conv.inputs, 1);
    let w = noise(conv.outputs * conv.inputs * 9, 2);
    let want = definition(&conv, &wide(&x), &w);
    at_every_level(|level| {
        for (algorithm, precision, bound) in [
            (Algorithm::Implicit, F32, 1e-6),
            (Algorithm::Winograd2, F32, 1e-6),
            (Algorithm::Winograd4, F32, 3e-6),
            (Algorithm::Implicit, Bf16, 2.5e-3),
            (Algorithm::Winograd2, Bf16, 2.5e-3),
            (Algorithm::Winograd4, Bf16, 2.5e-3),
        ] {
            let mut got = vec![0.0; want.len()];
            let input = Input { data: &x, affine: None, silu: false };
            conv2d_by(
                algorithm,
                precision,
                conv,
                &input,
                Weight::from_f32(&w),
                &Epilogue::default(),
                &mut got,
            );
            let difference: f64 = got.iter().zip(&want).map(|(g, w)| (*g as f64 - w).powi(2)).sum();
            let error = (difference / want.iter().map(|w| w * w).sum::<f64>()).sqrt();
            println!("{level:?} {algorithm:?} {precision:?}: {error:.1e}");
            assert!(error < bound, "{level:?} {algorithm:?} {precision:?}: {error:.1e}");
            assert!(precision == F32 || error > 1e-5, "operands were rounded");
        }
    });
}

#[test]
fn threads_and_batches_do_not_change_a_bit() {
    for precision in [F32, Bf16] {
        threads_and_batches_do_not_change(precision);
    }
}

fn threads_and_batches_do_not_change(precision: Precision) {
    let _fixed_level = crate::gemm::tests::fixed_level();
    for algorithm in algorithms(&BASE) {
        let conv = Conv { height: 40, width: 45, inputs: 70, ..BASE };
        let x = noise(conv.batch * conv.height * conv.width * conv.inputs, 1);
        let w = noise(conv.outputs * conv.inputs * 9, 2);
        let run = |threads: usize, conv: Conv, x: &[f32]| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let mut out = vec![0.0; conv.batch * conv.out_height() * conv.out_width() * conv.outputs];
            let input = Input { data: x, affine: None, silu: false };
            pool.install(|| {
                conv2d_by(
                    algorithm,
                    precision,
                    conv,
                    &input,
                    Weight::from_f32(&w),
                    &Epilogue::default(),
                    &mut out,
                )
            });
            out
        };
        let one = run(1, conv, &x);
        assert_eq!(one, run(2, conv, &x));
        assert_eq!(one, run(5, conv, &x));
        let second = run(3, Conv { batch: 1, ..conv }, &x[x.len() / 2..]);
        assert_eq!(one[one.len() / 2..], second[..]);
    }
}

/// The definition with operands in bf16, any shape, at every level.
#[test]
fn implicit_products_round_to_bf16_and_no_more() {
    for conv in [
        BASE,
        Conv { stride: 2, pad_before: 0, inputs: 70, ..BASE },
        Conv { kernel: 5, stride: 5, pad_before: 0, pad_after: 0, inputs: 3, height: 10, ..BASE },
        Conv { kernel: 1, pad_before: 0, pad_after: 0, inputs: 130, ..BASE },
        Conv { upsample: true, inputs: 9, ..BASE },
        Conv { kernel: 29, stride: 9, height: 31, width: 30, inputs: 2, batch: 1, ..BASE },
        Conv { height: 1, width: 1, inputs: 1, outputs: 1, ..BASE },
    ] {
        let x = noise(conv.batch * conv.height * conv.width * conv.inputs, 1);
        let w = noise(conv.outputs * conv.inputs * conv.kernel * conv.kernel, 2);
        let narrow =
            |x: &[f32]| -> Vec<f32> { x.iter().map(|v| half::bf16::from_f32(*v).to_f32()).collect() };
        let want = definition(&conv, &wide(&narrow(&x)), &narrow(&w));
        at_every_level(|level| {
            for precision in [Bf16, Precision::Int8] {
                let mut got = vec![f32::NAN; want.len()];
                let input = Input { data: &x, affine: None, silu: false };
                let (weight, epilogue) = (Weight::from_f32(&w), Epilogue::default());
                conv2d_by(Algorithm::Implicit, precision, conv, &input, weight, &epilogue, &mut got);
                for (i, (g, want)) in got.iter().zip(&want).enumerate() {
                    assert!((*g as f64 - want).abs() < 1e-4, "{level:?} {conv:?} at {i}: {g} {want}");
                }
            }
        });
    }
}

/// The distance of the 16-bit forms from f32, over every shape; nothing depends on the size of the values.
#[test]
fn sixteen_bits_are_close_to_f32() {
    for conv in [
        BASE,
        Conv { upsample: true, height: 1, width: 9, inputs: 16, outputs: 64, ..BASE },
        Conv { height: 16, width: 12, inputs: 32, outputs: 32, ..BASE },
        Conv { height: 1, width: 1, inputs: 1, outputs: 1, ..BASE },
        Conv { height: 33, width: 21, inputs: 130, outputs: 3, batch: 1, ..BASE },
        Conv { height: 9, width: 4, inputs: 700, outputs: 33, batch: 1, ..BASE },
        Conv { height: 70, width: 66, inputs: 330, outputs: 40, batch: 1, ..BASE },
    ] {
        let x: Vec<f32> = noise(conv.batch * conv.height * conv.width * conv.inputs, 1);
        let w = noise(conv.outputs * conv.inputs * 9, 2);
        let n = conv.batch * conv.out_height() * conv.out_width() * conv.outputs;
        let (bias, residual) = (noise(conv.outputs, 3), noise(n, 4));
        for algorithm in [Algorithm::Winograd2, Algorithm::Winograd4] {
            let run = |precision, x: &[f32]| {
                let mut out = vec![f32::NAN; n];
                let input = Input { data: x, affine: None, silu: false };
                let epilogue = Epilogue { bias: Some(&bias), residual: Some(&residual), picture: None };
                conv2d_by(algorithm, precision, conv, &input, Weight::from_f32(&w), &epilogue, &mut out);
                out
            };
            for size in [1e-3, 1.0, 1e4] {
                let x: Vec<f32> = x.iter().map(|v| v * size).collect();
                at_every_level(|level| {
                    let (narrow, wide) = (run(Precision::Int8, &x), run(F32, &x));
                    let apart: f64 =
                        narrow.iter().zip(&wide).map(|(a, b)| (*a as f64 - *b as f64).powi(2)).sum();
                    let all = wide.iter().map(|b| (*b as f64).powi(2)).sum::<f64>();
                    let error = (apart / all).sqrt();
                    assert!(error < 3e-3, "{level:?} {algorithm:?} {conv:?} {size}: {error:.1e}");
                });
            }
        }
    }
}

/// The largest sums that 16-bit operands can have stay within 32 bits, and what is not finite does not pass for a number.
#[test]
fn sixteen_bits_at_their_limits() {
    let conv = Conv { batch: 1, height: 6, width: 6, inputs: 512, outputs: 2, ..BASE };
    let w: Vec<f32> =
        (0..conv.outputs * conv.inputs * 9).map(|i| if i < conv.inputs * 9 { 1.0 } else { -1.0 }).collect();
    let weight = Weight::from_f32(&w);
    let run = |algorithm, x: &[f32], packed: Option<&Packed>| {
        let mut out = vec![f32::NAN; 36 * 2];
        let input = Input { data: x, affine: None, silu: false };
        let (filters, epilogue) = (packed.map_or(weight.into(), Filters::Packed), Epilogue::default());
        conv2d_by(algorithm, Bf16, conv, &input, filters, &epilogue, &mut out);
        out
    };
    at_every_level(|level| {
        for algorithm in [Algorithm::Winograd2, Algorithm::Winograd4] {
            let packed = Packed::new(algorithm, weight, conv.outputs, conv.inputs, 3, Precision::Int8);
            // In bytes the taps' unit is coarser for such sums than for any other: a 33rd of the largest.
            for (packed, most) in [(None, 10.0), (Some(&packed), 20.0)] {
                let mut x = vec![1f32; 36 * conv.inputs];
                let out = run(algorithm, &x, packed);
                // In the middle all nine taps meet a one.
                let (more, less) = (out[(2 * 6 + 2) * 2], out[(2 * 6 + 2) * 2 + 1]);
                let apart = (more - 4608.0).abs().max((less + 4608.0).abs());
                assert!(apart < most, "{level:?} {algorithm:?}: {more} {less}");
                x[7 * conv.inputs] = f32::NAN;
                assert!(run(algorithm, &x, packed)[(6 + 1) * 2].is_nan(), "{level:?}");
                x[7 * conv.inputs] = f32::INFINITY;
                assert!(!run(algorithm, &x, packed)[(6 + 1) * 2].is_finite(), "{level:?}");
            }
        }
    });
}

/// Where taps are whole numbers times a factor of their output, bytes hold them exactly: what is left is the rounding of the
/// inputs, and of taps to the unit of their sum.
#[test]
fn filters_in_bytes_lose_little_on_their_way() {
    for conv in [
        Conv { height: 9, width: 4, inputs: 700, outputs: 33, batch: 1, ..BASE },
        Conv { height: 16, width: 16, inputs: 37, outputs: 70, batch: 1, ..BASE },
        Conv { height: 3, width: 2, inputs: 16, outputs: 1, ..BASE },
    ] {
        let x = noise(conv.batch * conv.height * conv.width * conv.inputs, 1);
        let each = conv.inputs * 9;
        let mut w: Vec<f32> = noise(conv.outputs * each, 2)
            .iter()
            .enumerate()
            .map(|(i, v)| (v * 127.0).round() * (0.5 + (i / each) as f32))
            .collect();
        // The largest tap of each output and sum says what the factor is.
        w.iter_mut()
            .enumerate()
            .filter(|(i, _)| i % 9 == 4)
            .for_each(|(i, w)| *w = 127.0 * (0.5 + (i / each) as f32));
        let want = definition(&conv, &wide(&x), &w);
        for algorithm in [Algorithm::Winograd2, Algorithm::Winograd4] {
            at_every_level(|level| {
                let weight = Weight::from_f32(&w);
                let packed = Packed::new(algorithm, weight, conv.outputs, conv.inputs, 3, Precision::Int8);
                let mut got = vec![f32::NAN; want.len()];
                let input = Input { data: &x, affine: None, silu: false };
                let filters = Filters::Packed(&packed);
                conv2d_by(algorithm, Precision::Int8, conv, &input, filters, &Epilogue::default(), &mut got);
                for o in 0..conv.outputs {
                    let of = |i: &usize| i % conv.outputs == o;
                    let (apart, all) = (0..want.len()).filter(of).fold((0f64, 0f64), |(apart, all), i| {
                        (apart + (got[i] as f64 - want[i]).powi(2), all + want[i].powi(2))
                    });
                    let error = (apart / all).sqrt();
                    assert!(error < 5e-3, "{level:?} {algorithm:?} {conv:?} {o}: {error:.1e}");
                }
            });
        }
    }
}

/// Packed filters: in f16 bit for bit the stored ones, which are of that format here; in bytes as far away as rounding to 8 bits is.
#[test]
fn packed_filters_are_the_stored_ones() {
    for conv in [
        BASE,
        Conv { height: 1, width: 1, inputs: 1, outputs: 1, ..BASE },
        Conv { height: 9, width: 4, inputs: 700, outputs: 33, batch: 1, ..BASE },
    ] {
        let x = noise(conv.batch * conv.height * conv.width * conv.inputs, 1);
        // Outputs of very different size.
        let each = conv.inputs * 9;
        let w: Vec<f32> = noise(conv.outputs * each, 2)
            .iter()
            .enumerate()
            .map(|(i, v)| half::f16::from_f32(v * (1 << (i / each % 8)) as f32).to_f32())
            .collect();
        let weight = Weight::from_f32(&w);
        let n = conv.batch * conv.out_height() * conv.out_width() * conv.outputs;
        let run = |precision, filters: Filters| {
            let mut out = vec![f32::NAN; n];
            let input = Input { data: &x, affine: None, silu: false };
            conv2d_by(Algorithm::Winograd4, precision, conv, &input, filters, &Epilogue::default(), &mut out);
            out
        };
        at_every_level(|level| {
            let packed = |precision| {
                Packed::new(Algorithm::Winograd4, weight, conv.outputs, conv.inputs, 3, precision)
            };
            let (half, byte) = (packed(Bf16), packed(Precision::Int8));
            let stored = run(Bf16, weight.into());
            assert_eq!(run(Bf16, Filters::Packed(&half)), stored, "{level:?} {conv:?}");
            assert!(byte.size_bytes() * 5 < half.size_bytes() * 3, "{}", byte.size_bytes());
            let got = run(Precision::Int8, Filters::Packed(&byte));
            // Of each output by itself: a small one must not drown in a large one's error.
            for o in 0..conv.outputs {
                let of = |all: &[f32]| all.iter().skip(o).step_by(conv.outputs).copied().collect::<Vec<_>>();
                let apart: f64 = of(&got).iter().zip(of(&stored)).map(|(a, b)| (a - b).powi(2) as f64).sum();
                let all: f64 = of(&stored).iter().map(|v| v.powi(2) as f64).sum();
                let error = (apart / all).sqrt();
                assert!(
                    error < 1.5e-2 && (conv.inputs == 1 || error > 1e-4),
                    "{level:?} {conv:?} {o}: {error:.1e}"
                );
            }
        });
    }
}

/// Implicit products in bf16: packed and stored weights give the same bits.
#[test]
fn packed_kernels_are_the_stored_ones() {
    for conv in [
        Conv { stride: 2, inputs: 70, outputs: 45, ..BASE },
        Conv { stride: 2, pad_before: 0, height: 12, inputs: 129, outputs: 3, ..BASE },
        Conv { inputs: 4, outputs: 40, ..BASE },
    ] {
        let x = noise(conv.batch * conv.height * conv.width * conv.inputs, 1);
        let w = noise(conv.outputs * conv.inputs * 9, 2);
        let weight = Weight::from_f32(&w);
        let n = conv.batch * conv.out_height() * conv.out_width() * conv.outputs;
        let picture = noise(conv.batch * conv.outputs, 3);
        at_every_level(|level| {
            for precision in [Bf16, Precision::Int8] {
                let packed = Packed::new(
                    choose(&conv, precision),
                    weight,
                    conv.outputs,
                    conv.inputs,
                    conv.kernel,
                    precision,
                );
                let run = |filters| {
                    let mut out = vec![f32::NAN; n];
                    let input = Input { data: &x, affine: None, silu: false };
                    let epilogue = Epilogue { picture: Some(&picture), ..Epilogue::default() };
                    conv2d_fused(conv, precision, &input, filters, &epilogue, &mut out);
                    out
                };
                assert_eq!(run(Filters::Packed(&packed)), run(weight.into()), "{level:?} {conv:?}");
            }
        });
    }
}
