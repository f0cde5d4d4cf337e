//! Attention at the shapes of SD1.5's UNet (512 px, guided: batch 2), SDXL's and the autoencoder's, one thread.
//!
//! `cargo bench -p instantstyle-kernels --bench attention [-- FILTER]`. Times are the least of some
//! runs. Operations are those of the two products alone.
#![allow(missing_docs)]

mod timing;

use instantstyle_kernels::attention::{KeySet, Queries, attention_over};
use instantstyle_kernels::gemm::Precision;
use timing::best;

/// Batch, heads, width of a head, queries, keys.
const SHAPES: &[(&str, usize, usize, usize, usize, usize)] = &[
    ("sd15 64x64 self", 2, 8, 40, 4096, 4096),
    ("sd15 64x64 text", 2, 8, 40, 4096, 77),
    ("sd15 32x32 self", 2, 8, 80, 1024, 1024),
    ("sd15 32x32 text", 2, 8, 80, 1024, 77),
    ("sd15 16x16 self", 2, 8, 160, 256, 256),
    ("sd15 16x16 text", 2, 8, 160, 256, 77),
    ("sd15 8x8 self", 2, 8, 160, 64, 64),
    ("sdxl 64x64 self", 2, 10, 64, 4096, 4096),
    ("sdxl 32x32 self", 2, 20, 64, 1024, 1024),
    ("clip text", 2, 12, 64, 77, 77),
    ("vae 64x64", 1, 1, 512, 4096, 4096),
];

fn main() {
    let filter = std::env::args().skip(1).find(|a| !a.starts_with("--")).unwrap_or_default();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a thread");
    for &(name, batch, heads, dim, queries, keys) in SHAPES {
        if !name.contains(&filter) {
            continue;
        }
        let width = heads * dim;
        let noise = |n: usize| (0..n).map(|i| (i * 7919 % 1999) as f32 * 1e-3 - 1.0).collect::<Vec<_>>();
        let q = noise(batch * queries * width);
        let (k, v) = (noise(batch * keys * width), noise(batch * keys * width));
        let mut out = vec![0f32; q.len()];
        let scale = 1.0 / (dim as f32).sqrt();
        let set = KeySet { k: &k, v: &v, keys, weight: 1.0, mask: None };
        let label = format!("{name} {batch}x{queries}x{keys}, {heads} heads of {dim}");
        print!("{label:<52}");
        for precision in [Precision::F32, Precision::Bf16, Precision::Int8] {
            let shape = Queries { batch, heads, dim, queries, scale, causal: false, precision };
            let best = pool.install(|| best(|| attention_over(&shape, &q, &[set], &mut out)));
            let work = (4 * batch * heads * queries * keys * dim) as f64;
            print!(" {precision:?} {:>9.3} ms {:>6.0} Gop/s", best * 1e3, work / best * 1e-9);
        }
        println!();
    }
}
