use super::*;
use crate::level::{detected, force};

/// Held for writing while a test forces a level, for reading while one compares bits.
static LEVEL: std::sync::RwLock<()> = std::sync::RwLock::new(());

/// Deterministic numbers in -1..1.
pub(crate) fn noise(n: usize, seed: u64) -> Vec<f32> {
    let mut s = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..n)
        .map(|_| {
            s ^= s << 13;
            s ^= s >> 7;
            s ^= s << 17;
            (s >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

/// Holds the level as it is.
pub(crate) fn fixed_level() -> std::sync::RwLockReadGuard<'static, ()> {
    LEVEL.read().unwrap_or_else(|e| e.into_inner())
}

/// Runs a test at each level that this machine has.
pub(crate) fn at_every_level(test: impl Fn(Level)) {
    for level in [Level::Scalar, Level::Avx2, Level::Avx512] {
        if level > detected() {
            println!("ignored: this machine has no {level:?}");
            continue;
        }
        let _one_at_a_time = LEVEL.write().unwrap_or_else(|e| e.into_inner());
        force(Some(level));
        test(level);
        force(None);
    }
}

#[test]
fn every_level_equals_f64() {
    for (i, &(m, n, k)) in
        [(1, 1, 1), (3, 5, 7), (14, 32, 256), (15, 33, 257), (77, 40, 320), (200, 530, 600), (5, 1100, 30)]
            .iter()
            .enumerate()
    {
        let (a, w, bias, res) = (noise(m * k, i as u64), noise(n * k, 9), noise(n, 3), noise(m * n, 4));
        let mut want = vec![0f64; m * n];
        for r in 0..m {
            for c in 0..n {
                let dot: f64 = (0..k).map(|x| a[r * k + x] as f64 * w[c * k + x] as f64).sum();
                want[r * n + c] = dot + bias[c] as f64 + res[r * n + c] as f64;
            }
        }
        for l in [Level::Scalar, Level::Avx2, Level::Avx512] {
            if l > detected() {
                println!("ignored: this machine has no {l:?}");
                continue;
            }
            let mut got = vec![f32::NAN; m * n];
            let _one_at_a_time = LEVEL.write().unwrap();
            force(Some(l));
            linear(&a, k, Weight::from_f32(&w), Some(&bias), Some(&res), &mut got);
            force(None);
            let bound = 1e-6 * (k as f64).sqrt() * 4.0;
            for (g, w) in got.iter().zip(&want) {
                assert!((*g as f64 - w).abs() <= bound, "{l:?} {m}x{n}x{k}: {g} {w}");
            }
        }
    }
}

#[test]
fn half_weights_are_widened_exactly() {
    let _fixed_level = LEVEL.read().unwrap();
    let (m, n, k) = (9, 35, 300);
    let a = noise(m * k, 1);
    let w: Vec<half::f16> = noise(n * k, 2).into_iter().map(half::f16::from_f32).collect();
    let b: Vec<half::bf16> = noise(n * k, 2).into_iter().map(half::bf16::from_f32).collect();
    let run = |w: Weight| {
        let mut out = vec![0.0; m * n];
        linear(&a, k, w, None, None, &mut out);
        out
    };
    let bytes: Vec<u8> = w.iter().flat_map(|v| v.to_le_bytes()).collect();
    let wide: Vec<f32> = w.iter().map(|v| v.to_f32()).collect();
    assert_eq!(run(Weight::F16(&bytes)), run(Weight::from_f32(&wide)));
    let bytes: Vec<u8> = b.iter().flat_map(|v| v.to_le_bytes()).collect();
    let wide: Vec<f32> = b.iter().map(|v| v.to_f32()).collect();
    assert_eq!(run(Weight::Bf16(&bytes)), run(Weight::from_f32(&wide)));
}

#[test]
fn threads_and_neighbours_do_not_change_a_bit() {
    let _fixed_level = LEVEL.read().unwrap();
    let (m, n, k) = (61, 700, 520);
    let (a, w) = (noise(m * k, 5), noise(n * k, 6));
    let run = |threads: usize, a: &[f32]| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let mut out = vec![0.0; a.len() / k * n];
        pool.install(|| linear(a, k, Weight::from_f32(&w), None, None, &mut out));
        out
    };
    let one = run(1, &a);
    assert_eq!(one, run(2, &a));
    assert_eq!(one, run(5, &a));
    // A row computed alone equals the same row in a batch.
    assert_eq!(one[17 * n..18 * n], run(2, &a[17 * k..18 * k])[..]);
}
