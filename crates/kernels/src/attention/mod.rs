//! Scaled dot-product attention over channels-last tokens (Vaswani et al., arXiv 1706.03762).

use crate::act::exp;
use crate::buffer::Buffer;
use crate::gemm::{Blocks, Epilogue, Rows, StridedColumns, StridedRows, serial};
use crate::level::per_level;
use crate::share::{Shared, each};

/// Queries handled at a time: packing keys and values once per block costs little beside the products, and the
/// scores of a block stay in the last-level cache.
const QUERIES: usize = 224;

/// Shapes of one attention. Queries and output `[batch, queries, heads · dim]`, keys and values
/// `[batch, keys, heads · dim]`.
#[derive(Clone, Copy, Debug)]
pub struct Attention<'a> {
    /// Independent sequences.
    pub batch: usize,
    /// Heads.
    pub heads: usize,
    /// Width of one head.
    pub dim: usize,
    /// Query tokens.
    pub queries: usize,
    /// Key tokens.
    pub keys: usize,
    /// Factor of the scores, usually dim^-½.
    pub scale: f32,
    /// Each query sees only keys up to its own position.
    pub causal: bool,
    /// None writes the output; `Some(w)` adds `w · attention` to what is there (image tokens).
    pub add: Option<f32>,
    /// One factor per query of every sequence, `[queries]`: where a masked reference acts.
    pub mask: Option<&'a [f32]>,
}

per_level! {
    /// Turns scores into unnormalised probabilities; returns their sum.
    fn softmax(row: &mut [f32], scale: f32) -> f32 {
        let mut most = [f32::NEG_INFINITY; 16];
        let (whole, rest) = row.as_chunks::<16>();
        for c in whole {
            for (m, v) in most.iter_mut().zip(c) {
                *m = m.max(*v * scale);
            }
        }
        for (m, v) in most.iter_mut().zip(rest) {
            *m = m.max(*v * scale);
        }
        let most = most.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        for v in row.iter_mut() {
            *v = exp(v.mul_add(scale, -most));
        }
        crate::norm::lanes(row, |v| v)
    }
}

/// See [`Attention`].
///
/// # Panics
/// If a length does not fit the shapes, or there are no keys.
pub fn attention(shape: Attention, q: &[f32], k: &[f32], v: &[f32], out: &mut [f32]) {
    let Attention { batch, heads, dim, queries, keys, .. } = shape;
    let width = heads * dim;
    assert!(keys > 0 && dim > 0 && heads > 0);
    assert!(q.len() == batch * queries * width && out.len() == q.len());
    assert!(k.len() == batch * keys * width && v.len() == k.len());
    assert!(shape.mask.is_none_or(|m| m.len() == queries));
    // Few heads (the autoencoder has one): let several threads share a head by its queries.
    let shares = rayon::current_num_threads().div_ceil(batch * heads).clamp(1, queries.div_ceil(16).max(1));
    let share = queries.div_ceil(shares);
    let out = Shared::new(out);
    each(batch * heads * shares, |task| {
        let (head, part) = (task / shares, task % shares);
        let (b, h) = (head / heads, head % heads);
        let from = (part * share).min(queries);
        let to = (from + share).min(queries);
        let k = StridedRows { data: &k[b * keys * width + h * dim..], stride: width, k: dim };
        let v = StridedColumns { data: &v[b * keys * width + h * dim..], stride: width, k: keys };
        let (mut pa, mut pb) = (Vec::new(), Vec::new());
        let rows = QUERIES.min(to - from);
        let mut scores = Buffer::stale(rows * keys);
        let mut result = Buffer::stale(rows * dim);
        let mut sums = vec![0f32; rows];
        for q0 in (from..to).step_by(QUERIES) {
            let n = QUERIES.min(to - q0);
            let left = Rows { data: &q[(b * queries + q0) * width + h * dim..], stride: width, k: dim };
            let scores = &mut scores[..n * keys];
            let shared = Shared::new(scores);
            serial(
                0..n,
                0..keys,
                keys,
                &Blocks::even(dim),
                &left,
                &k,
                Epilogue::default(),
                shared,
                &mut pa,
                &mut pb,
            );
            for (i, (row, sum)) in scores.chunks_exact_mut(keys).zip(&mut sums).enumerate() {
                let seen = if shape.causal { (q0 + i + 1).min(keys) } else { keys };
                *sum = softmax(&mut row[..seen], shape.scale);
                row[seen..].fill(0.0);
            }
            let left = Rows { data: scores, stride: keys, k: keys };
            let shared = Shared::new(&mut result[..n * dim]);
            serial(
                0..n,
                0..dim,
                dim,
                &Blocks::even(keys),
                &left,
                &v,
                Epilogue::default(),
                shared,
                &mut pa,
                &mut pb,
            );
            for i in 0..n {
                // SAFETY: each task owns the queries from..to of its head.
                let out = unsafe { out.part((b * queries + q0 + i) * width + h * dim, dim) };
                let weight = shape.add.unwrap_or(1.0) * shape.mask.map_or(1.0, |m| m[q0 + i]);
                let factor = weight / sums[i];
                let row = &result[i * dim..][..dim];
                if shape.add.is_some() {
                    out.iter_mut().zip(row).for_each(|(o, r)| *o += r * factor);
                } else {
                    out.iter_mut().zip(row).for_each(|(o, r)| *o = r * factor);
                }
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gemm::tests::noise;

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
        ] {
            let width = shape.heads * shape.dim;
            let q = noise(shape.batch * shape.queries * width, 1);
            let k = noise(shape.batch * shape.keys * width, 2);
            let v = noise(shape.batch * shape.keys * width, 3);
            let before = noise(q.len(), 4);
            let mut out = before.clone();
            attention(shape, &q, &k, &v, &mut out);
            for (i, got) in out.iter().enumerate() {
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
                assert!((*got as f64 - want).abs() < 2e-6, "{shape:?} at {i}: {got} {want}");
            }
        }
    }
}
