//! Matrix products at the shapes of SD1.5 and SDXL, one thread: Gop/s and the part of each unit's measured peak.
//!
//! `cargo bench -p instantstyle-kernels --bench gemm [-- FILTER…]`, where a filter is a part of a shape's name, or a precision;
//! weights stored in f16, in bf16 and int8 packed before. Times are the least of many runs. The unit's peak is measured in turns with
//! them, for about as long: the clock goes up and down with the load and that of its neighbours.
#![allow(unsafe_code, missing_docs)]

mod timing;

use instantstyle_kernels::Weight;
use instantstyle_kernels::buffer::Buffer;
use instantstyle_kernels::gemm::{Extras, Operand, Packed, Precision, Then, layer};
use instantstyle_kernels::level::amx;
use timing::{beside, seconds};

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

/// Runs one core's unit for a number of rounds, and gives the operations done.
type Unit = Box<dyn Fn(usize) -> f64>;

/// The units for f32, bf16 and int8; AMX's are f32's, as many times as its manual says. Where there is no instruction for bf16, or it is
/// slower, products are f32's; bytes without one are twice as fast as f32.
#[cfg(target_arch = "x86_64")]
fn units() -> [Unit; 3] {
    // SAFETY: asked for where the features were detected.
    let times =
        |by: f64, f: unsafe fn(usize) -> f64| -> Unit { Box::new(move |rounds| by * unsafe { f(rounds) }) };
    let f32: unsafe fn(usize) -> f64 = if is_x86_feature_detected!("avx512f") {
        peak::f32_avx512
    } else if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        peak::f32_avx2
    } else {
        |_| f64::NAN
    };
    let bf16 = match amx() {
        true => times(16.0, f32),
        false if is_x86_feature_detected!("avx512bf16") => {
            let (plain, own) = (times(1.0, f32), times(1.0, peak::bf16_avx512));
            if rate(&own) > rate(&plain) { own } else { plain }
        }
        false => times(1.0, f32),
    };
    let int8 = match amx() {
        true => times(32.0, f32),
        false if is_x86_feature_detected!("avx512vnni") => times(1.0, peak::int8_vnni),
        false => times(2.0, f32),
    };
    [times(1.0, f32), bf16, int8]
}

#[cfg(not(target_arch = "x86_64"))]
fn units() -> [Unit; 3] {
    std::array::from_fn(|_| Box::new(|_| f64::NAN) as Unit)
}

/// Operations per second of a unit, by one long run.
fn rate(unit: &Unit) -> f64 {
    let mut done = 0.0;
    let took = seconds(|| done = unit(3_000_000));
    done / took
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
        let units = units();
        let peaks = units.each_ref().map(rate);
        println!("peak {:.1} {:.1} {:.1} Gop/s", peaks[0] * 1e-9, peaks[1] * 1e-9, peaks[2] * 1e-9);
        println!("Gop/s, and % of the peak measured beside it, in f32, bf16 and int8");
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
            for (&(name, precision), unit) in PRECISIONS.iter().zip(&units) {
                if !formats.is_empty() && !formats.iter().any(|f| f == name) {
                    print!("{:>15}", "");
                    continue;
                }
                let weight = Weight::F16(&w);
                let packed = (precision != Precision::F32).then(|| Packed::new(weight, k, precision, gate));
                let operand = packed.as_ref().map_or(Operand::Stored(weight, precision), Operand::Packed);
                let then = if gate { Then::Gate } else { Then::Keep };
                let extras = Extras { bias: Some(&bias), then, residual: add.then_some(&before) };
                let operations = (2 * m * n * k) as f64;
                let per_round = unit(1);
                // As long as the product, if that were at the unit's peak.
                let rounds = (operations / per_round).max(1.0) as usize;
                let product = || layer(&a, k, operand, extras, &mut out);
                let [least, peak] = beside(product, || _ = unit(rounds));
                let share = operations / least / (rounds as f64 * per_round / peak);
                print!("{:>9.1}{:>6.1}", operations / least * 1e-9, 100.0 * share);
            }
            println!();
        }
    });
}
