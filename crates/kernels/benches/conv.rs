//! Convolutions at the shapes of SD1.5's UNet (512 px, guided: batch 2) and of the autoencoder's decoder, one thread.
//!
//! `cargo bench -p instantstyle-kernels --bench conv [-- FILTER]`. Times are the least of some
//! runs. The operations are those of the definition, so that Winograd's algorithms can pass the machine's peak.
#![allow(missing_docs)]

mod timing;

use instantstyle_kernels::Weight;
use instantstyle_kernels::conv::{Algorithm, Conv, Epilogue, Filters, Input, Packed, choose, conv2d_by};
use instantstyle_kernels::gemm::Precision;
use timing::best;

/// Batch, side, inputs, outputs, stride, doubled.
const SHAPES: &[(&str, usize, usize, usize, usize, usize, bool)] = &[
    ("sd15 in", 2, 64, 4, 320, 1, false),
    ("sd15 64", 2, 64, 320, 320, 1, false),
    ("sd15 64 up", 2, 64, 640, 320, 1, false),
    ("sd15 64 up", 2, 64, 960, 320, 1, false),
    ("sd15 64 down", 2, 64, 320, 320, 2, false),
    ("sd15 32", 2, 32, 320, 640, 1, false),
    ("sd15 32", 2, 32, 640, 640, 1, false),
    ("sd15 32 up", 2, 32, 1280, 640, 1, false),
    ("sd15 32 up", 2, 32, 1920, 640, 1, false),
    ("sd15 32 double", 2, 32, 640, 640, 1, true),
    ("sd15 16", 2, 16, 1280, 1280, 1, false),
    ("sd15 16 up", 2, 16, 2560, 1280, 1, false),
    ("sd15 16 double", 2, 16, 1280, 1280, 1, true),
    ("sd15 8", 2, 8, 1280, 1280, 1, false),
    ("sd15 8 up", 2, 8, 2560, 1280, 1, false),
    ("sd15 8 double", 2, 8, 1280, 1280, 1, true),
    ("sd15 out", 2, 64, 320, 4, 1, false),
    ("vae 64", 1, 64, 512, 512, 1, false),
    ("vae 64 double", 1, 64, 512, 512, 1, true),
    ("vae 128", 1, 128, 512, 512, 1, false),
    ("vae 256", 1, 256, 512, 256, 1, false),
    ("vae 256", 1, 256, 256, 256, 1, false),
    ("vae 256 double", 1, 256, 256, 256, 1, true),
    ("vae 512", 1, 512, 256, 128, 1, false),
    ("vae 512", 1, 512, 128, 128, 1, false),
    ("vae out", 1, 512, 128, 3, 1, false),
];

fn main() {
    let filter = std::env::args().skip(1).find(|a| !a.starts_with("--")).unwrap_or_default();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a thread");
    println!(
        "{:<44} {:>9} {:>24} {:>24} {:>24} {:>24} {:>24} {:>24}",
        "shape",
        "GFLOP",
        "implicit",
        "F(2,3)",
        "F(4,3)",
        "implicit in bf16",
        "F(4,3) in bf16",
        "F(4,3) in int8"
    );
    for &(name, batch, side, inputs, outputs, stride, upsample) in SHAPES {
        if !name.contains(&filter) {
            continue;
        }
        let conv = Conv {
            batch,
            height: side,
            width: side,
            inputs,
            outputs,
            kernel: 3,
            stride,
            pad_before: 1,
            pad_after: 1,
            upsample,
        };
        let noise = |n: usize| (0..n).map(|i| (i * 7919 % 1999) as f32 * 1e-3 - 1.0).collect::<Vec<_>>();
        let x = noise(batch * side * side * inputs);
        let w: Vec<u8> =
            noise(inputs * outputs * 9).iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect();
        let pixels = batch * conv.out_height() * conv.out_width();
        let mut out = vec![0f32; pixels * outputs];
        let bias = noise(outputs);
        let work = (pixels * inputs * outputs * 18) as f64;
        let label = format!("{name} {batch}x{side}x{side}x{inputs} -> {outputs}");
        print!("{label:<44} {:>9.2}", work * 1e-9);
        for (algorithm, precision) in [
            (Algorithm::Implicit, Precision::F32),
            (Algorithm::Winograd2, Precision::F32),
            (Algorithm::Winograd4, Precision::F32),
            (Algorithm::Implicit, Precision::Bf16),
            (Algorithm::Winograd4, Precision::Bf16),
            (Algorithm::Winograd4, Precision::Int8),
        ] {
            if algorithm != Algorithm::Implicit && stride > 1 {
                continue;
            }
            let input = Input { data: &x, affine: None, silu: false };
            let epilogue = Epilogue { bias: Some(&bias), ..Epilogue::default() };
            let weight = Weight::F16(&w);
            let packed = (precision != Precision::F32)
                .then(|| Packed::new(algorithm, weight, outputs, inputs, 3, precision));
            let filters = packed.as_ref().map_or(weight.into(), Filters::Packed);
            let s = pool.install(|| {
                best(|| conv2d_by(algorithm, precision, conv, &input, filters, &epilogue, &mut out))
            });
            let mark = if algorithm == choose(&conv, precision) { "*" } else { " " };
            print!(" {:>9.2} ms {:>6.0} Gop/s{mark}", s * 1e3, work / s * 1e-9);
        }
        println!();
    }
}
