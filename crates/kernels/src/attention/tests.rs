use super::*;
use crate::gemm::tests::{at_every_level, noise};
use Precision::{Bf16, F32, Int8};

#[test]
fn equals_the_definition() {
    let base = Attention {
        batch: 2,
        heads: 3,
        dim: 10,
        queries: 241,
        keys: 300,
        scale: 0.7,
        causal: false,
        add: None,
        mask: None,
    };
    let mask = noise(base.queries, 7);
    for shape in [
        base,
        Attention { keys: 4, add: Some(0.5), mask: Some(&mask), ..base },
        Attention { keys: base.queries, causal: true, batch: 1, heads: 1, ..base },
        Attention { keys: 77, queries: 77, causal: true, dim: 64, scale: 0.125, ..base },
        Attention { keys: 77, dim: 40, ..base },
        Attention { dim: 80, keys: 1, ..base },
        Attention { dim: 160, heads: 2, queries: 33, keys: 64, scale: 0.1, ..base },
        Attention { dim: 512, heads: 1, batch: 1, queries: 5, keys: 230, scale: 0.05, ..base },
        Attention { dim: 1, queries: 1, ..base },
    ] {
        let width = shape.heads * shape.dim;
        let q = noise(shape.batch * shape.queries * width, 1);
        let k = noise(shape.batch * shape.keys * width, 2);
        let v = noise(shape.batch * shape.keys * width, 3);
        let before = noise(q.len(), 4);
        let mut want_all = vec![0f64; q.len()];
        for (i, want_at) in want_all.iter_mut().enumerate() {
            let (c, t) = (i % width, i / width);
            let (h, b, query) = (c / shape.dim, t / shape.queries, t % shape.queries);
            let seen = if shape.causal { query + 1 } else { shape.keys };
            let (mut total, mut want) = (0f64, 0f64);
            for key in 0..seen {
                let at = (b * shape.keys + key) * width;
                let dot: f64 = (0..shape.dim)
                    .map(|d| q[t * width + h * shape.dim + d] as f64 * k[at + h * shape.dim + d] as f64)
                    .sum();
                let p = (dot * shape.scale as f64).exp();
                total += p;
                want += p * v[at + c] as f64;
            }
            want /= total;
            want *= shape.mask.map_or(1.0, |m| m[query]) as f64;
            if let Some(w) = shape.add {
                want = before[i] as f64 + w as f64 * want;
            }
            *want_at = want;
        }
        at_every_level(|level| {
            let mut out = before.clone();
            attention(shape, &q, &k, &v, &mut out);
            for (i, (got, want)) in out.iter().zip(&want_all).enumerate() {
                assert!((*got as f64 - want).abs() < 2e-6, "{level:?} {shape:?} at {i}: {got} {want}");
            }
        });
    }
}

/// Sets of one attention beside the sum of attentions, at every level.
#[test]
fn sets_are_summed() {
    let queries =
        Queries { batch: 2, heads: 3, dim: 40, queries: 150, scale: 0.3, causal: false, precision: F32 };
    let width = queries.heads * queries.dim;
    let q = noise(queries.batch * queries.queries * width, 1);
    let mask: Vec<f32> = (0..queries.queries).map(|i| (i % 3) as f32 * 0.5).collect();
    let sets: Vec<(usize, Vec<f32>, Vec<f32>)> = [(77, 2), (4, 3), (450, 4)]
        .map(|(n, seed)| {
            let values = queries.batch * n * width;
            (n, noise(values, seed), noise(values, seed + 10))
        })
        .into();
    let weights = [1.0, 0.7, -0.25];
    let masks = [None, Some(&mask[..]), None];
    at_every_level(|level| {
        let mut want = vec![0.0; q.len()];
        for (i, (keys, k, v)) in sets.iter().enumerate() {
            let Queries { batch, heads, dim, queries, scale, causal, .. } = queries;
            let (keys, add, mask) = (*keys, Some(weights[i]), masks[i]);
            let shape = Attention { batch, heads, dim, queries, keys, scale, causal, add, mask };
            attention(shape, &q, k, v, &mut want);
        }
        let sets: Vec<KeySet> = (0..3)
            .map(|i| {
                let (keys, k, v) = &sets[i];
                KeySet { k, v, keys: *keys, weight: weights[i], mask: masks[i] }
            })
            .collect();
        let mut got = vec![f32::NAN; q.len()];
        attention_over(&queries, &q, &sets, &mut got);
        for (g, w) in got.iter().zip(&want) {
            assert!((g - w).abs() < 1e-6, "{level:?}: {g} {w}");
        }
    });
}

/// Relative in the L2 norm.
fn distance(a: &[f32], b: &[f32]) -> f64 {
    let square: f64 = a.iter().zip(b).map(|(a, b)| (*a as f64 - *b as f64).powi(2)).sum();
    (square / b.iter().map(|b| (*b as f64).powi(2)).sum::<f64>()).sqrt()
}

/// The distance from f32 is at most `limit` at every level, and they differ no more than by roundings.
fn is_close_to_f32(precision: Precision, shape: [usize; 3], scale: f32, k: &[f32], v: &[f32], limit: f64) {
    let [dim, queries, keys] = shape;
    let q = noise(4 * queries * dim, 1);
    let set = KeySet { k, v, keys, weight: 1.0, mask: None };
    let of = |precision| Queries { batch: 2, heads: 2, dim, queries, scale, causal: false, precision };
    let run = |precision, form| {
        let mut out = vec![f32::NAN; q.len()];
        run(&of(precision), form, &q, &[set], false, &mut out);
        out
    };
    let asked = |precision| run(precision, Form::asked(&of(precision), keys));
    let first = std::cell::RefCell::new(None);
    at_every_level(|level| {
        let (narrow, wide) = (asked(precision), asked(F32));
        let error = distance(&narrow, &wide);
        let mut public = vec![f32::NAN; q.len()];
        attention_over(&of(precision), &q, &[set], &mut public);
        let form = Form::of(&of(precision), keys);
        assert_eq!(public, run(precision, form), "{level:?}");
        if form == Form::Tiles {
            let error = distance(&public, &wide);
            println!("{precision:?} by AMX {shape:?} {scale}: {error:.1e}");
            assert!(error < limit.max(5e-3) && (keys == 1 || error > 1e-5), "by AMX {shape:?}: {error}");
        } else {
            let slow = if precision == Int8 { level == Level::Neon } else { !level::fast_bf16() };
            assert_eq!(form == Form::F32, slow, "{level:?}");
        }
        println!("{precision:?} {level:?} {shape:?} {scale}: {error:.1e}");
        assert!(error < limit, "{level:?} {shape:?}: {error}");
        assert!(keys == 1 || error > 1e-5, "operands were rounded");
        let mut first = first.borrow_mut();
        let first = first.get_or_insert_with(|| narrow.clone());
        // Probabilities that fall on the other side of a rounding.
        assert!(distance(&narrow, first) < 5e-4, "{level:?} {dim}: {:.1e}", distance(&narrow, first));
    });
}

#[test]
fn bf16_is_close_to_f32() {
    for [dim, queries, keys] in [[40, 150, 450], [64, 33, 77], [1, 5, 1], [13, 65, 225], [160, 40, 224]] {
        let v: Vec<f32> = noise(4 * keys * dim, 3).iter().map(|v| v + 0.5).collect();
        is_close_to_f32(Bf16, [dim, queries, keys], 0.3, &noise(4 * keys * dim, 2), &v, 5e-3);
    }
}

/// Flat and peaked softmaxes, and keys far from zero, whose mean must not cost them their digits.
#[test]
fn int8_is_close_to_f32() {
    for [dim, queries, keys] in [[40, 50, 1024], [64, 33, 1100], [13, 5, 1025], [160, 40, 1343]] {
        let n = 4 * keys * dim;
        let v: Vec<f32> = noise(n, 3).iter().map(|v| v + 0.5).collect();
        let far: Vec<f32> = noise(n, 2).iter().enumerate().map(|(i, k)| k + (i % dim) as f32 * 0.5).collect();
        let root = (dim as f32).powf(-0.5);
        for (scale, limit) in [(root, 5e-4), (4.0 * root, 2e-3), (16.0 * root, 1.5e-2)] {
            is_close_to_f32(Int8, [dim, queries, keys], scale, &noise(n, 2), &v, limit);
            is_close_to_f32(Int8, [dim, queries, keys], scale, &far, &v, limit);
        }
    }
}

/// Bytes are for long sets; a shorter one beside them makes all of them bf16.
#[test]
fn short_sets_are_bf16_in_int8() {
    let _fixed_level = crate::gemm::tests::fixed_level();
    let (q, k, v) = (noise(50 * 8, 1), noise(LONG * 8, 2), noise(LONG * 8, 3));
    let run = |precision, lengths: &[usize]| {
        let shape = Queries { batch: 1, heads: 1, dim: 8, queries: 50, scale: 0.3, causal: false, precision };
        let set = |n: &usize| KeySet { k: &k[..n * 8], v: &v[..n * 8], keys: *n, weight: 1.0, mask: None };
        let mut out = vec![f32::NAN; q.len()];
        attention_over(&shape, &q, &lengths.iter().map(set).collect::<Vec<_>>(), &mut out);
        out
    };
    for lengths in [&[LONG - 1][..], &[77], &[LONG, 77]] {
        assert_eq!(run(Int8, lengths), run(Bf16, lengths));
    }
    let alike = level::amx() || level::level() == Level::Neon;
    assert_eq!(run(Int8, &[LONG]) == run(Bf16, &[LONG]), alike);
}

/// What is not a number in a query, a key or a value must not pass for one; nor, in bytes, what is infinite.
#[test]
fn what_is_not_a_number_stays_so() {
    let n = LONG * 8;
    at_every_level(|level| {
        for precision in [F32, Bf16, Int8] {
            let shape =
                Queries { batch: 1, heads: 1, dim: 8, queries: LONG, scale: 0.3, causal: false, precision };
            let bytes = Form::of(&shape, LONG) == Form::Int8;
            for bad in [f32::NAN, f32::INFINITY].into_iter().filter(|bad| bytes || bad.is_nan()) {
                for operand in 0..3 {
                    let mut all = [noise(n, 1), noise(n, 2), noise(n, 3)];
                    all[operand][8 * 3 + 5] = bad;
                    let [q, k, v] = &all;
                    let mut out = vec![0.0; n];
                    let set = KeySet { k, v, keys: LONG, weight: 1.0, mask: None };
                    attention_over(&shape, q, &[set], &mut out);
                    assert!(!out[8 * 3 + 5].is_finite(), "{level:?} {precision:?} {operand} {bad}");
                }
            }
        }
    });
}

/// Causal attention has no form in bf16.
#[test]
fn causal_attention_stays_f32() {
    let _fixed_level = crate::gemm::tests::fixed_level();
    let (q, k, v) = (noise(50 * 8, 1), noise(50 * 8, 2), noise(50 * 8, 3));
    let run = |precision| {
        let shape = Queries { batch: 1, heads: 1, dim: 8, queries: 50, scale: 0.3, causal: true, precision };
        let mut out = vec![f32::NAN; q.len()];
        let set = KeySet { k: &k, v: &v, keys: 50, weight: 1.0, mask: None };
        attention_over(&shape, &q, &[set], &mut out);
        out
    };
    assert_eq!(run(Bf16), run(F32));
}

#[test]
fn threads_do_not_change_a_bit() {
    for (precision, tokens) in [(F32, 333), (Bf16, 333), (Int8, 1030)] {
        threads_do_not_change(precision, tokens);
    }
}

fn threads_do_not_change(precision: Precision, queries: usize) {
    let _fixed_level = crate::gemm::tests::fixed_level();
    let queries = Queries { batch: 1, heads: 2, dim: 24, queries, scale: 0.2, causal: false, precision };
    let n = queries.queries * queries.heads * queries.dim;
    let (q, k, v) = (noise(n, 1), noise(n, 2), noise(n, 3));
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let mut out = vec![0.0; n];
        let set = KeySet { k: &k, v: &v, keys: queries.queries, weight: 1.0, mask: None };
        pool.install(|| attention_over(&queries, &q, &[set], &mut out));
        out
    };
    let one = run(1);
    assert_eq!(one, run(2));
    assert_eq!(one, run(7));
}

/// Scores so large that a softmax without its running maximum would overflow, rising over the blocks of keys.
#[test]
fn large_scores_do_not_overflow() {
    let shape = Queries { batch: 1, heads: 1, dim: 1, queries: 3, scale: 1.0, causal: false, precision: F32 };
    let keys = 3 * KEYS + 5;
    let k: Vec<f32> = (0..keys).map(|i| i as f32).collect();
    let v: Vec<f32> = (0..keys).map(|i| (i % 7) as f32).collect();
    at_every_level(|level| {
        let mut out = [f32::NAN; 3];
        let set = KeySet { k: &k, v: &v, keys, weight: 1.0, mask: None };
        attention_over(&shape, &[100.0, -100.0, 0.0], &[set], &mut out);
        let mean = v.iter().sum::<f32>() / keys as f32;
        assert!((out[0] - v[keys - 1]).abs() < 1e-6 && (out[1] - v[0]).abs() < 1e-6, "{level:?}: {out:?}");
        assert!((out[2] - mean).abs() < 1e-5, "{level:?}: {} {mean}", out[2]);
    });
}
