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

/// Runs a test at each level that this machine has, with AMX done by plain code, and with all that it has beside.
pub(crate) fn at_every_level(test: impl Fn(Level)) {
    for &level in Level::ALL {
        if level > detected() {
            println!("ignored: this machine has no {level:?}");
            continue;
        }
        let _one_at_a_time = LEVEL.write().unwrap_or_else(|e| e.into_inner());
        force(Some(level));
        test(level);
        if level == Level::Avx512 {
            crate::level::force_amx(true);
            test(level);
        }
        force(None);
    }
    let _best = LEVEL.read().unwrap_or_else(|e| e.into_inner());
    test(detected());
}

#[test]
fn every_level_equals_f64() {
    for (i, (m, n, k)) in SHAPES.into_iter().enumerate() {
        let (a, w, bias, res) = (noise(m * k, i as u64), noise(n * k, 9), noise(n, 3), noise(m * n, 4));
        let mut want = vec![0f64; m * n];
        for r in 0..m {
            for c in 0..n {
                let dot: f64 = (0..k).map(|x| a[r * k + x] as f64 * w[c * k + x] as f64).sum();
                want[r * n + c] = dot + bias[c] as f64 + res[r * n + c] as f64;
            }
        }
        for &l in Level::ALL {
            if l > detected() {
                println!("ignored: this machine has no {l:?}");
                continue;
            }
            let mut got = vec![f32::NAN; m * n];
            let _one_at_a_time = LEVEL.write().unwrap_or_else(|e| e.into_inner());
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

/// Shapes with odd lengths, several blocks, and more rows than one block of A.
const SHAPES: [(usize, usize, usize); 9] = [
    (1, 1, 1),
    (3, 5, 7),
    (14, 32, 256),
    (15, 33, 257),
    (77, 40, 320),
    (200, 530, 600),
    (5, 1100, 30),
    (467, 70, 801),
    (31, 20, 3205),
];

/// Every variant that this machine has: levels, AVX-512 without the instructions for bf16 and int8, with them, and with AMX's
/// done by plain code.
pub(crate) fn each_level(mut test: impl FnMut(&str)) {
    let _one_at_a_time = LEVEL.write().unwrap_or_else(|e| e.into_inner());
    let forced: [(&str, Level, &dyn Fn()); 7] = [
        ("scalar", Level::Scalar, &|| force(Some(Level::Scalar))),
        ("neon", Level::Neon, &|| force(Some(Level::Neon))),
        ("avx2", Level::Avx2, &|| force(Some(Level::Avx2))),
        ("avx512", Level::Avx512, &|| force(Some(Level::Avx512))),
        ("avx512-vnni", Level::Avx512, &|| level::force_amx(false)),
        (EMULATED, Level::Avx512, &|| level::force_amx(true)),
        ("best", Level::Scalar, &|| force(None)),
    ];
    for (name, needed, force) in forced {
        if !Level::ALL.contains(&needed) {
            continue;
        }
        if needed > detected() {
            println!("ignored: this machine has no {name}");
            continue;
        }
        force();
        test(name);
    }
    force(None);
}

/// AMX's instructions by plain code.
const EMULATED: &str = "amx by plain code";

/// A layer of one precision, its weight packed before or not.
fn by(precision: Precision, packed: bool, a: &[f32], k: usize, w: &[f32], extras: Extras) -> Vec<f32> {
    let (m, n) = (a.len() / k, w.len() / k);
    let gated = extras.then == Then::Gate;
    let mut out = vec![f32::NAN; m * if gated { n / 2 } else { n }];
    let weight = Weight::from_f32(w);
    let before = packed.then(|| Packed::new(weight, k, precision, gated));
    let operand = before.as_ref().map_or(Operand::Stored(weight, precision), Operand::Packed);
    layer(a, k, operand, extras, &mut out);
    out
}

/// Rounds to bf16, independently of the kernels.
fn rounded(x: &[f32]) -> Vec<f32> {
    x.iter().map(|v| half::bf16::from_f32(*v).to_f32()).collect()
}

/// The sums in f64, and the sums of magnitudes that bound the rounding.
fn sums(a: &[f32], k: usize, w: &[f32]) -> (Vec<f64>, Vec<f64>) {
    let dots = a.chunks_exact(k).flat_map(|row| {
        w.chunks_exact(k).map(move |col| {
            row.iter()
                .zip(col)
                .map(|(x, y)| *x as f64 * *y as f64)
                .fold((0.0, 0.0), |s, p| (s.0 + p, s.1 + p.abs()))
        })
    });
    dots.unzip()
}

#[test]
fn bf16_equals_f64_of_rounded_operands() {
    for (i, (m, n, k)) in SHAPES.into_iter().enumerate() {
        let (a, w, bias, res) = (noise(m * k, i as u64), noise(n * k, 9), noise(n, 3), noise(m * n, 4));
        let (want, size) = sums(&rounded(&a), k, &rounded(&w));
        let (mut first, mut tiled): (Option<Vec<f32>>, Option<Vec<f32>>) = (None, None);
        each_level(|level| {
            for packed in [false, true] {
                let extras = Extras { bias: Some(&bias), residual: Some(&res), ..Extras::default() };
                let got = by(Precision::Bf16, packed, &a, k, &w, extras);
                for (at, g) in got.iter().enumerate() {
                    let want = want[at] + bias[at % n] as f64 + res[at] as f64;
                    // Products of bf16 are exact in f32: only the sums round, at most by half a bit of the magnitudes' sum.
                    let bound = f32::EPSILON as f64 * (size[at] + 4.0) * (1.0 + (k as f64).sqrt() / 4.0);
                    assert!((*g as f64 - want).abs() <= bound, "{level} {m}x{n}x{k} at {at}: {g} {want}");
                }
                // The instruction and what stands in for it give the same bits; AMX sums in another order.
                if level::amx() {
                    assert_eq!(*tiled.get_or_insert_with(|| got.clone()), got, "{level} {m}x{n}x{k}");
                    continue;
                }
                let first = first.get_or_insert_with(|| got.clone());
                assert_eq!(*first, got, "{level} {m}x{n}x{k}");
            }
        });
    }
}

#[test]
fn int8_equals_its_definition() {
    for (i, (m, n, k)) in SHAPES.into_iter().enumerate() {
        let (a, w, bias) = (noise(m * k, i as u64), noise(n * k, 9), noise(n, 3));
        let whole = |x: &[f32]| -> (Vec<f32>, Vec<f64>) {
            let rows = x.chunks_exact(k).map(|row| {
                let scale = row.iter().fold(0f32, |m, v| m.max(v.abs())) / 127.0;
                let inverse = 1.0 / scale;
                (row.iter().map(|v| (v * inverse).round_ties_even()).collect::<Vec<_>>(), scale as f64)
            });
            let (values, scales): (Vec<_>, Vec<_>) = rows.unzip();
            (values.concat(), scales)
        };
        let ((qa, sa), (qw, sw)) = (whole(&a), whole(&w));
        let (want, _) = sums(&qa, k, &qw);
        let mut first: Option<Vec<f32>> = None;
        each_level(|level| {
            let extras = Extras { bias: Some(&bias), ..Extras::default() };
            let got = by(Precision::Int8, true, &a, k, &w, extras);
            for (at, g) in got.iter().enumerate() {
                let want = want[at] * sa[at / n] * sw[at % n] + bias[at % n] as f64;
                assert!(
                    (*g as f64 - want).abs() <= 4e-7 * (want.abs() + 1.0),
                    "{level} {m}x{n}x{k} at {at}: {g} {want}"
                );
            }
            assert_eq!(*first.get_or_insert_with(|| got.clone()), got, "{level} {m}x{n}x{k}");
        });
    }
}

#[test]
fn gates_and_activations_equal_their_definition() {
    use crate::act::{Activation, activate, geglu};
    for (m, n, k) in [(3, 2, 5), (17, 46, 70), (230, 130, 33), (40, 320, 400)] {
        let (a, w, bias) = (noise(m * k, 1), noise(n * k, 2), noise(n, 3));
        each_level(|level| {
            for precision in [Precision::F32, Precision::Bf16, Precision::Int8] {
                let packed = precision == Precision::Int8;
                let plain =
                    by(precision, packed, &a, k, &w, Extras { bias: Some(&bias), ..Extras::default() });
                let mut want = vec![0.0; m * n / 2];
                geglu(&plain, n / 2, &mut want);
                for packed in [packed, true] {
                    let extras = Extras { bias: Some(&bias), then: Then::Gate, residual: None };
                    let got = by(precision, packed, &a, k, &w, extras);
                    if precision == Precision::F32 {
                        assert_eq!(got, want, "{level} {m}x{n}x{k}");
                    }
                    // In bf16 and int8 by the short gelu, which is within 1.1e-4: that times the value.
                    for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                        let value = plain[i / (n / 2) * n + i % (n / 2)];
                        let bound = 1.1e-4 * value.abs() + 2.0 * f32::EPSILON * want.abs();
                        assert!(
                            (got - want).abs() <= bound,
                            "{level} {precision:?} {m}x{n}x{k}: {got} {want}"
                        );
                    }
                }
                for activation in [Activation::Silu, Activation::Gelu, Activation::QuickGelu] {
                    let mut want = plain.clone();
                    activate(activation, &mut want);
                    let extras =
                        Extras { bias: Some(&bias), then: Then::Activate(activation), residual: None };
                    assert_eq!(
                        by(precision, packed, &a, k, &w, extras),
                        want,
                        "{level} {precision:?} {activation:?}"
                    );
                }
            }
        });
    }
}

#[test]
fn far_rows_have_the_same_bits_as_near_ones() {
    let _fixed_level = fixed_level();
    // On one thread more columns than wait beside so many rows.
    let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a pool of one thread");
    let (m, k, n) = (400, 8000, 640);
    assert!(m * k * 4 > super::FAR_BYTES);
    let (a, w) = (noise(m * k, 1), noise(n * k, 2));
    let all = one.install(|| by(Precision::F32, false, &a, k, &w, Extras::default()));
    let some = by(Precision::F32, false, &a[..20 * k], k, &w, Extras::default());
    assert!(all[..20 * n] == some);
}

#[test]
fn layers_of_one_input_equal_each_alone() {
    let _fixed_level = fixed_level();
    for (m, k, widths) in [(3, 5, [1, 2, 3]), (60, 70, [48, 40, 31]), (300, 400, [320, 17, 96])] {
        let a = noise(m * k, 1);
        let weights = widths.map(|n| noise(n * k, n as u64));
        let bias = widths.map(|n| noise(n, 7));
        for (precision, packed) in [
            (Precision::F32, false),
            (Precision::F32, true),
            (Precision::Bf16, false),
            (Precision::Bf16, true),
            (Precision::Int8, true),
        ] {
            let bytes =
                weights.each_ref().map(|w| w.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>());
            // One of them is gated.
            let gate = |i: usize| i == 1 && widths[1] % 2 == 0;
            let packs: Vec<Packed> =
                (0..3).map(|i| Packed::new(Weight::F32(&bytes[i]), k, precision, gate(i))).collect();
            let operand = |i: usize| {
                if packed {
                    Operand::Packed(&packs[i])
                } else {
                    Operand::Stored(Weight::F32(&bytes[i]), precision)
                }
            };
            let extras = |i: usize| Extras {
                bias: Some(&bias[i][..]),
                then: if gate(i) { Then::Gate } else { Then::Keep },
                residual: None,
            };
            let width = |i: usize| if gate(i) { widths[i] / 2 } else { widths[i] };
            let mut alone = [0, 1, 2].map(|i| vec![0.0; m * width(i)]);
            for (i, out) in alone.iter_mut().enumerate() {
                layer(&a, k, operand(i), extras(i), out);
            }
            let mut together = [0, 1, 2].map(|i| vec![f32::NAN; m * width(i)]);
            let mut parts: Vec<Part> = together
                .iter_mut()
                .enumerate()
                .map(|(i, out)| Part { weight: operand(i), extras: extras(i), out })
                .collect();
            layers(&a, k, &mut parts);
            assert_eq!(together, alone, "{precision:?} {m}x{k} {widths:?}");
        }
    }
}

#[test]
fn what_is_not_finite_does_not_pass_for_a_number() {
    let _fixed_level = fixed_level();
    let (k, w) = (40, noise(3 * 40, 1));
    for precision in [Precision::F32, Precision::Bf16, Precision::Int8] {
        for bad in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN] {
            let mut a = noise(k, 2);
            a[7] = bad;
            let out = by(precision, true, &a, k, &w, Extras::default());
            assert!(out.iter().all(|v| !v.is_finite()), "{precision:?} {bad}: {out:?}");
        }
    }
}

#[test]
fn int8_of_many_rows_has_the_same_bits_at_each_level() {
    // Several blocks of rows a thread, which AVX-512 quantises while it multiplies those before; one and two blocks of words, in few
    // lines, some and many.
    for (m, n, k) in [(1003, 320, 320), (450, 320, 640), (450, 300, 2560)] {
        let (mut a, w, bias, res) = (noise(m * k, 1), noise(n * k, 2), noise(n, 3), noise(m * n, 4));
        a[700.min(m - 9) * k] = f32::NAN;
        a[k..2 * k].fill(0.0);
        let plain = Extras { bias: Some(&bias), ..Extras::default() };
        for extras in [Extras { residual: Some(&res), ..plain }, plain, Extras { then: Then::Gate, ..plain }]
        {
            let gated = extras.then == Then::Gate;
            let mut want = Vec::new();
            each_level(|level| {
                let got = by(Precision::Int8, true, &a, k, &w, extras);
                if want.is_empty() {
                    want = got;
                } else {
                    // Some levels round a gate's multiplications and additions apart; values are below 100.
                    let near = |g: f32, w: f32| gated && (g - w).abs() <= 5e-5;
                    let same = |(g, w): (&f32, &f32)| g == w || g.is_nan() && w.is_nan() || near(*g, *w);
                    assert!(got.iter().zip(&want).all(same), "{level} {m}x{n}x{k} {:?}", extras.then);
                }
            });
            assert_eq!(want.iter().filter(|v| v.is_nan()).count(), if gated { n / 2 } else { n });
        }
    }
}

#[test]
fn rows_packed_by_block_have_the_bits_of_few_rows() {
    // One task, and several side by side; two rows are left of whole tiles of 14, and words of whole lines.
    let m = 128;
    for (precision, k) in [(Precision::F32, 2203), (Precision::Bf16, 4403)] {
        for (threads, n) in [(1, 290), (2, 1100)] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
            let (a, w, bias, res) = (noise(m * k, 1), noise(n * k, 2), noise(n, 3), noise(m * n, 4));
            let plain = Extras { bias: Some(&bias), ..Extras::default() };
            let test = |level: &str| {
                if goes_on(precision) {
                    let blocks = Blocks::even(k.div_ceil(precision.per_word()));
                    let columns = if threads == 1 { n } else { n / (2 * threads) };
                    assert!(
                        by_block(&Rows::new(&a, k, precision.per_word()), &blocks, m, columns),
                        "{level}"
                    );
                }
                for (packed, gate) in [(false, false), (false, true), (true, false), (true, true)] {
                    let then = if gate { Then::Gate } else { Then::Keep };
                    let outputs = if gate { n / 2 } else { n };
                    let got = pool.install(|| {
                        let residual = (!gate).then_some(&res[..]);
                        by(precision, packed, &a, k, &w, Extras { then, residual, ..plain })
                    });
                    for r0 in (0..m).step_by(25) {
                        let rows = r0..m.min(r0 + 9);
                        let part = |x: &[f32], wide: usize| x[rows.start * wide..rows.end * wide].to_vec();
                        let res = (!gate).then(|| part(&res, n));
                        let extras = Extras { then, residual: res.as_deref(), ..plain };
                        let few = by(precision, true, &part(&a, k), k, &w, extras);
                        assert_eq!(
                            few,
                            part(&got, outputs),
                            "{level} {precision:?} packed {packed} gate {gate} {rows:?}"
                        );
                    }
                }
            };
            if threads == 1 {
                each_level(test);
            } else {
                let _fixed_level = fixed_level();
                test("best");
            }
        }
    }
}

#[test]
fn half_weights_are_widened_exactly() {
    let _fixed_level = fixed_level();
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
    let _fixed_level = fixed_level();
    let (m, n, k) = (261, 700, 520);
    let (a, w) = (noise(m * k, 5), noise(n * k, 6));
    for (precision, packed) in [
        (Precision::F32, false),
        (Precision::F32, true),
        (Precision::Bf16, false),
        (Precision::Bf16, true),
        (Precision::Int8, true),
    ] {
        let run = |threads: usize, a: &[f32]| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| by(precision, packed, a, k, &w, Extras::default()))
        };
        let one = run(1, &a);
        assert_eq!(one, run(2, &a));
        assert_eq!(one, run(5, &a));
        // A row computed alone equals the same row in a batch.
        assert_eq!(one[17 * n..18 * n], run(2, &a[17 * k..18 * k])[..]);
    }
}
