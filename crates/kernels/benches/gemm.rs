//! Matrix products at the shapes of SD1.5 and SDXL, one thread: Gop/s and the part of each unit's measured peak.
//!
//! `cargo bench -p instantstyle-kernels --bench gemm [-- FILTER…]`, where a filter is a part of a shape's name, or a precision;
//! weights stored in f16, in bf16 and int8 packed before. Times are the least of many runs. The peaks are
//! measured in the same way, right before.
#![allow(unsafe_code, missing_docs)]

mod timing;

use instantstyle_kernels::Weight;
use instantstyle_kernels::buffer::Buffer;
use instantstyle_kernels::gemm::{Extras, Operand, Packed, Precision, Then, layer};
use instantstyle_kernels::level::amx;
use timing::best;

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

const PRECISIONS: &[(&str, Precision)] =
    &[("f32", Precision::F32), ("bf16", Precision::Bf16), ("int8", Precision::Int8)];

#[cfg(target_arch = "x86_64")]
mod peak {
    use std::arch::x86_64::*;

    /// Multiply-adds in registers: `$name(rounds)` gives operations done, of `$per` operations an instruction.
    macro_rules! peak {
        ($name:ident, $features:literal, $count:literal, $per:literal, $splat:ident, $of:expr) => {
            #[target_feature(enable = $features)]
            pub fn $name(rounds: usize) -> f64 {
                let mut sum = [$splat(0.5); $count];
                let (a, b) = std::hint::black_box(($splat(1e-9), $splat(1.5)));
                for _ in 0..rounds {
                    for s in &mut sum {
                        *s = $of(*s, a, b);
                    }
                }
                std::hint::black_box(sum);
                (rounds * $count * $per) as f64
            }
        };
    }

    peak!(f32_avx2, "avx2,fma", 12, 16, _mm256_set1_ps, |s, a, b| _mm256_fmadd_ps(a, b, s));
    peak!(f32_avx512, "avx512f", 28, 32, _mm512_set1_ps, |s, a, b| _mm512_fmadd_ps(a, b, s));
    peak!(bf16_avx512, "avx512f,avx512bf16", 28, 64, _mm512_set1_ps, |s, a, b| {
        // SAFETY: the types are the same 512 bits.
        let halves = |v| unsafe { std::mem::transmute::<__m512, __m512bh>(v) };
        _mm512_dpbf16_ps(s, halves(a), halves(b))
    });
    peak!(int8_vnni, "avx512f,avx512vnni", 28, 128, _mm512_set1_ps, |s, a, b| {
        let (a, b) = (_mm512_castps_si512(a), _mm512_castps_si512(b));
        _mm512_castsi512_ps(_mm512_dpbusd_epi32(_mm512_castps_si512(s), a, b))
    });
}

/// Operations per second of one core's unit for f32, bf16 and int8: measured; AMX's are as many times f32's as its manual says. Where
/// there is no instruction for bf16, or it is slower, products are f32's; bytes without one are twice as fast as f32.
fn peaks() -> [f64; 3] {
    #[cfg(target_arch = "x86_64")]
    {
        let rounds = 1_000_000;
        let measured = |f: unsafe fn(usize) -> f64| {
            let mut done = 0.0;
            // SAFETY: the features were detected.
            let least = best(|| done = unsafe { f(rounds) });
            done / least
        };
        let f32 = if is_x86_feature_detected!("avx512f") {
            measured(peak::f32_avx512)
        } else if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            measured(peak::f32_avx2)
        } else {
            f64::NAN
        };
        let bf16 = match amx() {
            true => 16.0 * f32,
            false if is_x86_feature_detected!("avx512bf16") => f32.max(measured(peak::bf16_avx512)),
            false => f32,
        };
        let int8 = match amx() {
            true => 32.0 * f32,
            false if is_x86_feature_detected!("avx512vnni") => measured(peak::int8_vnni),
            false => 2.0 * f32,
        };
        [f32, bf16, int8]
    }
    #[cfg(not(target_arch = "x86_64"))]
    [f64::NAN; 3]
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
        let peaks = peaks();
        println!("peak {:.1} {:.1} {:.1} Gop/s", peaks[0] * 1e-9, peaks[1] * 1e-9, peaks[2] * 1e-9);
        println!("Gop/s, and % of these peaks in f32, bf16 and int8");
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
            for (&(name, precision), peak) in PRECISIONS.iter().zip(peaks) {
                if !formats.is_empty() && !formats.iter().any(|f| f == name) {
                    print!("{:>15}", "");
                    continue;
                }
                let weight = Weight::F16(&w);
                let packed = (precision != Precision::F32).then(|| Packed::new(weight, k, precision, gate));
                let operand = packed.as_ref().map_or(Operand::Stored(weight, precision), Operand::Packed);
                let then = if gate { Then::Gate } else { Then::Keep };
                let extras = Extras { bias: Some(&bias), then, residual: add.then_some(&before) };
                let least = best(|| layer(&a, k, operand, extras, &mut out));
                let rate = (2 * m * n * k) as f64 / least;
                print!("{:>9.1}{:>6.1}", rate * 1e-9, 100.0 * rate / peak);
            }
            println!();
        }
    });
}
