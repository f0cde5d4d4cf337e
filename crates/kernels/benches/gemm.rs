//! Matrix products at the shapes of SD1.5 and SDXL, one thread: Gop/s and the part of the unit's measured peak.
//!
//! `cargo bench -p instantstyle-kernels --bench gemm [-- FILTER…]`, where a filter is a part of a shape's name, or a precision;
//! weights stored in f16, in bf16 and int8 packed before. Times are CPU time of the thread, the least of many runs, so that
//! other programs on the machine disturb little. The peak is measured in the same way, right before.
#![allow(unsafe_code, missing_docs)]

use instantstyle_kernels::Weight;
use instantstyle_kernels::buffer::Buffer;
use instantstyle_kernels::gemm::{Extras, Operand, Packed, Precision, Then, layer};
use instantstyle_kernels::level::amx;

/// Rows, inner, columns: SD1.5 at 512 px with guidance (batch 2), SDXL at 1024 px, and the small ones.
const SHAPES: &[(&str, usize, usize, usize)] = &[
    ("sd15 64x64 qkv/out/proj", 8192, 320, 320),
    ("sd15 64x64 feed in", 8192, 320, 2560),
    ("sd15 64x64 feed out", 8192, 1280, 320),
    ("sd15 64x64 shortcut", 8192, 640, 320),
    ("sd15 32x32 qkv/out/proj", 2048, 640, 640),
    ("sd15 32x32 feed in", 2048, 640, 5120),
    ("sd15 32x32 feed out", 2048, 2560, 640),
    ("sd15 16x16 qkv/out/proj", 512, 1280, 1280),
    ("sd15 16x16 feed in", 512, 1280, 10240),
    ("sd15 16x16 feed out", 512, 5120, 1280),
    ("sd15 8x8 qkv/out/proj", 128, 1280, 1280),
    ("sd15 8x8 feed in", 128, 1280, 10240),
    ("sd15 8x8 feed out", 128, 5120, 1280),
    ("sd15 text keys", 154, 768, 1280),
    // A LoRA of rank 16 on the side of the first would be these two.
    ("sd15 64x64 rank 16 down", 8192, 320, 16),
    ("sd15 64x64 rank 16 up", 8192, 16, 320),
    ("sdxl 64x64 qkv/out/proj", 8192, 640, 640),
    ("sdxl 64x64 feed in", 8192, 640, 5120),
    ("sdxl 64x64 feed out", 8192, 2560, 640),
    ("sdxl 32x32 qkv/out/proj", 2048, 1280, 1280),
    ("sdxl 32x32 feed in", 2048, 1280, 10240),
    ("sdxl 32x32 feed out", 2048, 5120, 1280),
];

/// Name, format, and how many times f32's operations its unit does: of vectors, and AMX.
const PRECISIONS: &[(&str, Precision, [f64; 2])] = &[
    ("f32", Precision::F32, [1.0, 1.0]),
    ("bf16", Precision::Bf16, [2.0, 16.0]),
    ("int8", Precision::Int8, [4.0, 32.0]),
];

/// CPU time of this thread in seconds.
fn cpu_s() -> f64 {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the clock exists on Linux and `t` is a valid place.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut t) };
    t.tv_sec as f64 + t.tv_nsec as f64 * 1e-9
}

/// The least time of runs of `f`: at least `least`, until about 0.6 s are spent.
fn best(least: usize, mut f: impl FnMut()) -> f64 {
    let (mut best, mut spent, mut n) = (f64::INFINITY, 0.0, 0);
    while n < least || spent < 0.6 {
        let start = cpu_s();
        f();
        let took = cpu_s() - start;
        best = best.min(took);
        spent += took;
        n += 1;
    }
    best
}

#[cfg(target_arch = "x86_64")]
mod peak {
    use std::arch::x86_64::*;

    /// Multiply-adds in registers: operations done.
    #[target_feature(enable = "avx512f")]
    pub fn f32_avx512(rounds: usize) -> f64 {
        let mut sum = [_mm512_set1_ps(0.5); 28];
        let (a, b) = std::hint::black_box((_mm512_set1_ps(1e-9), _mm512_set1_ps(1.5)));
        for _ in 0..rounds {
            for s in &mut sum {
                *s = _mm512_fmadd_ps(*s, a, b);
            }
        }
        std::hint::black_box(sum);
        (rounds * 28 * 16 * 2) as f64
    }

    #[target_feature(enable = "avx2,fma")]
    pub fn f32_avx2(rounds: usize) -> f64 {
        let mut sum = [_mm256_set1_ps(0.5); 12];
        let (a, b) = std::hint::black_box((_mm256_set1_ps(1e-9), _mm256_set1_ps(1.5)));
        for _ in 0..rounds {
            for s in &mut sum {
                *s = _mm256_fmadd_ps(*s, a, b);
            }
        }
        std::hint::black_box(sum);
        (rounds * 12 * 8 * 2) as f64
    }
}

/// Operations per second of one core's multiply-add unit, in f32.
fn peak() -> f64 {
    #[cfg(target_arch = "x86_64")]
    {
        let rounds = 1_000_000;
        let mut done = 0.0;
        let f: unsafe fn(usize) -> f64 = if is_x86_feature_detected!("avx512f") {
            peak::f32_avx512
        } else if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            peak::f32_avx2
        } else {
            return f64::NAN;
        };
        // SAFETY: the feature was detected.
        let least = best(5, || done = unsafe { f(rounds) });
        done / least
    }
    #[cfg(not(target_arch = "x86_64"))]
    f64::NAN
}

fn noise(n: usize, mut s: u64) -> Vec<f32> {
    (0..n)
        .map(|_| {
            s ^= s << 13;
            s ^= s >> 7;
            s ^= s << 17;
            (s >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

fn main() {
    let (formats, only): (Vec<String>, Vec<String>) = std::env::args()
        .skip(1)
        .filter(|a| !a.starts_with("--"))
        .partition(|a| PRECISIONS.iter().any(|(name, ..)| a == name));
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a pool of one thread");
    pool.install(|| {
        let peak = peak();
        println!("peak {:.1} Gop/s", peak * 1e-9);
        println!("Gop/s, and % of this peak in f32, of twice and four times as much in bf16 and int8 (with AMX 16 and 32 times)");
        println!(
            "{:<28}{:>6}{:>6}{:>6}{:>15}{:>15}{:>15}",
            "shape", "rows", "inner", "cols", "f32", "bf16", "int8"
        );
        for &(name, m, k, n) in SHAPES {
            if !only.is_empty() && !only.iter().any(|o| name.contains(o.as_str())) {
                continue;
            }
            // Where the networks have them.
            let mut a = Buffer::stale(m * k);
            a.copy_from_slice(&noise(m * k, 3));
            let w: Vec<u8> =
                noise(n * k, 5).into_iter().flat_map(|v| half::f16::from_f32(v).to_le_bytes()).collect();
            let bias = noise(n, 7);
            // As in the networks: GEGLU on the way in, what was there before added on the way out.
            let (gate, add) = (name.ends_with("in"), name.ends_with("feed out"));
            let before = Buffer::zeros(if add { m * n } else { 0 });
            let mut out = Buffer::zeros(if gate { m * n / 2 } else { m * n });
            print!("{name:<28}{m:>6}{k:>6}{n:>6}");
            for &(name, precision, times) in PRECISIONS {
                if !formats.is_empty() && !formats.iter().any(|f| f == name) {
                    print!("{:>15}", "");
                    continue;
                }
                let weight = Weight::F16(&w);
                let packed = (precision != Precision::F32).then(|| Packed::new(weight, k, precision, gate));
                let operand = packed.as_ref().map_or(Operand::Stored(weight, precision), Operand::Packed);
                let then = if gate { Then::Gate } else { Then::Keep };
                let extras = Extras { bias: Some(&bias), then, residual: add.then_some(&before) };
                let least = best(3, || layer(&a, k, operand, extras, &mut out));
                let rate = (2 * m * n * k) as f64 / least;
                print!("{:>9.1}{:>6.1}", rate * 1e-9, 100.0 * rate / (times[amx() as usize] * peak));
            }
            println!();
        }
    });
}
