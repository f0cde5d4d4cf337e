//! Scaled dot-product attention over channels-last tokens (Vaswani et al., arXiv 1706.03762), in blocks with a running
//! softmax, so that no matrix of scores exists (Dao, FlashAttention-2, arXiv 2307.08691).
//!
//! Queries stand in the lanes of vectors: a block of scores is `keys · queriesᵀ`, its softmax goes down the keys without
//! a sum across lanes, and the block, as it is, is the right operand of `valuesᵀ · scores`. Every width of a head is
//! a number of rows, so none is filled up. Keys and values are packed once per head, for all queries.
//!
//! In bf16 both products read words of two values, rounded to 8 significant bits: two channels of a query and a key, two
//! keys' probabilities and values. Scores, maxima and sums stay f32. In int8 long sets are attended by bytes, see `eight.rs`.
//! Where there is AMX it multiplies all that is not f32, as bf16.

mod block;
mod eight;
mod pack;

use crate::buffer::Buffer;
use crate::gemm::{LINE, Precision};
use crate::level::{self, Level};
use crate::share::{Shared, each};
use block::{Keys, Work};
use rayon::prelude::*;

/// Queries that go over the keys together, in panels of two vectors: what is read of keys and values stays in cache
/// for all of them.
const PANELS: usize = 4;
/// Keys of a block: sixteen tiles of AVX-512's micro-kernel; scores of one panel are 28 KB.
const KEYS: usize = 224;

/// Keys from which on a set is attended in int8. Shorter ones, as of text, gain little, and their probabilities, of which the
/// first token often has nearly all, need the digits of bf16.
const LONG: usize = 1024;

/// Number format of the products' operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    F32,
    Bf16,
    /// bf16 by AMX: words of a key, and those of a channel of the values lie together, zeros fill whole tiles.
    Tiles,
    Int8,
}

impl Form {
    /// What the precision stands for.
    fn asked(queries: &Queries, keys: usize) -> Self {
        match queries.precision {
            _ if queries.causal => Form::F32,
            Precision::F32 => Form::F32,
            Precision::Int8 if keys >= LONG => Form::Int8,
            Precision::Bf16 | Precision::Int8 => Form::Bf16,
        }
    }

    /// The same on this machine: by AMX; where no instruction multiplies bf16, or bytes, faster than f32, fewer digits would save
    /// no time.
    fn of(queries: &Queries, keys: usize) -> Self {
        match Form::asked(queries, keys) {
            Form::Bf16 | Form::Int8 if level::amx() => Form::Tiles,
            Form::Bf16 if !level::fast_bf16() => Form::F32,
            Form::Int8 if level::level() == Level::Neon => Form::F32,
            form => form,
        }
    }

    /// Words of `n` values that are summed over.
    fn words(self, n: usize) -> usize {
        match self {
            Form::F32 => n,
            Form::Bf16 => n.div_ceil(2),
            Form::Tiles => n.div_ceil(2).next_multiple_of(LINE),
            Form::Int8 => n.div_ceil(4),
        }
    }
}

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

/// See [`Attention`].
///
/// # Panics
/// If a length does not fit the shapes, or there are no keys.
pub fn attention(shape: Attention, q: &[f32], k: &[f32], v: &[f32], out: &mut [f32]) {
    let Attention { batch, heads, dim, queries, keys, scale, causal, add, mask } = shape;
    let queries = Queries { batch, heads, dim, queries, scale, causal, precision: Precision::F32 };
    let set = KeySet { k, v, keys, weight: add.unwrap_or(1.0), mask };
    run(&queries, Form::F32, q, &[set], add.is_some(), out);
}

/// The queries of one attention, `[batch, queries, heads · dim]`.
#[derive(Clone, Copy, Debug)]
pub struct Queries {
    /// Independent sequences.
    pub batch: usize,
    /// Heads.
    pub heads: usize,
    /// Width of one head.
    pub dim: usize,
    /// Tokens of a sequence.
    pub queries: usize,
    /// Factor of the scores, usually dim^-½.
    pub scale: f32,
    /// Each query sees only keys up to its own position.
    pub causal: bool,
    /// Of the products' operands. In int8 they are bytes where all sets have 1024 keys or more, else bf16; they are f32
    /// where the processor computes these faster, and bf16 where it has AMX. Causal attention is always f32.
    pub precision: Precision,
}

/// One set of keys and values, `[batch, keys, heads · dim]`, with a softmax of its own.
#[derive(Clone, Copy, Debug)]
pub struct KeySet<'a> {
    /// Keys.
    pub k: &'a [f32],
    /// Values.
    pub v: &'a [f32],
    /// Tokens of a sequence.
    pub keys: usize,
    /// Factor of what is attended.
    pub weight: f32,
    /// One more factor per query of every sequence, `[queries]`.
    pub mask: Option<&'a [f32]>,
}

/// `out = Σ weight · mask · softmax(scale · q kᵀ) v` over the sets, in one pass over the queries: text and image tokens.
///
/// # Panics
/// If a length does not fit the shapes, or a set has no keys.
pub fn attention_over(queries: &Queries, q: &[f32], sets: &[KeySet], out: &mut [f32]) {
    let keys = sets.iter().map(|s| s.keys).min().unwrap_or(0);
    run(queries, Form::of(queries, keys), q, sets, false, out);
}

/// Bytes that attention needs beside its operands and its output, on so many threads; `keys` of all sets.
pub fn scratch_bytes(queries: &Queries, keys: usize, threads: usize) -> usize {
    let Queries { batch, heads, dim, .. } = *queries;
    // In int8 the sets may be short.
    let form = Form::of(queries, 0);
    let packed = keys * form.words(dim) + form.words(keys) * dim;
    4 * (batch * heads * packed + threads * Work::values(dim, form))
}

fn run(shape: &Queries, form: Form, q: &[f32], sets: &[KeySet], add: bool, out: &mut [f32]) {
    let Queries { batch, heads, dim, queries, .. } = *shape;
    let width = heads * dim;
    assert!(dim > 0 && heads > 0);
    assert!(q.len() == batch * queries * width && out.len() == q.len());
    for set in sets {
        assert!(set.keys > 0 && set.k.len() == batch * set.keys * width && set.v.len() == set.k.len());
        assert!(set.mask.is_none_or(|m| m.len() == queries));
    }
    let packed: Vec<Packed> = sets.iter().map(|set| pack(shape, form, set)).collect();
    let group = PANELS * block::panel();
    let groups = queries.div_ceil(group);
    let out = Shared::new(out);
    each(batch * heads * groups, |task| {
        let (head, g) = (task / groups, task % groups);
        let (b, h) = (head / heads, head % heads);
        let first = g * group;
        let count = group.min(queries - first);
        #[cfg(target_arch = "x86_64")]
        let _tiles = crate::amx::Session::begin();
        let mut work = Work::new(dim, form);
        let at = (b * queries + first) * width + h * dim;
        work.load(&q[at..], width, count, shape.scale);
        for (i, (set, packed)) in sets.iter().zip(&packed).enumerate() {
            let (k_words, v_words) = (set.keys * form.words(dim), form.words(set.keys) * dim);
            let (k, v) = (&packed.k[head * k_words..][..k_words], &packed.v[head * v_words..][..v_words]);
            let blocks = set.keys.div_ceil(KEYS);
            work.begin();
            for start in (0..set.keys).step_by(KEYS) {
                let n = KEYS.min(set.keys - start);
                // Keys beyond the last query of the group are seen by none.
                if shape.causal && start >= first + count {
                    break;
                }
                let block = head * blocks + start / KEYS;
                let keys = Keys {
                    k: &k[start * form.words(dim)..][..n * form.words(dim)],
                    v: &v[form.words(start) * dim..][..form.words(n) * dim],
                    key_factor: packed.key_factors.get(block).copied().unwrap_or(1.0),
                    value_factors: packed.value_factors.get(block * dim..(block + 1) * dim).unwrap_or(&[]),
                    n,
                    // Lane l of panel p sees the keys up to this one plus its place.
                    seen: shape.causal.then_some(first as isize - start as isize),
                };
                work.attend(&keys, start == 0);
            }
            work.end(set.weight, set.mask.map(|m| &m[first..first + count]), i == 0);
        }
        // SAFETY: each task owns its queries' part of its head.
        unsafe { work.store(out, at, width, add) };
    });
}

/// Keys and values of one set, per head and block of keys in the order in which the products read them.
struct Packed {
    k: Buffer,
    v: Buffer,
    /// In bytes what they were divided by: of each block the keys, and each channel of the values.
    key_factors: Buffer,
    value_factors: Buffer,
}

fn pack(shape: &Queries, form: Form, set: &KeySet) -> Packed {
    let Queries { batch, heads, dim, .. } = *shape;
    let (width, keys) = (heads * dim, set.keys);
    let blocks = keys.div_ceil(KEYS);
    let (k_words, v_words) = (keys * form.words(dim), form.words(keys) * dim);
    let factors = if form == Form::Int8 { batch * heads * blocks } else { 0 };
    let mut packed = Packed {
        k: Buffer::stale(batch * heads * k_words),
        v: Buffer::stale(batch * heads * v_words),
        key_factors: Buffer::stale(factors),
        value_factors: Buffer::stale(factors * dim),
    };
    // Keys lose their mean, see `eight.rs`: bf16 has as many digits for what is far from zero as for what is near.
    let centred = matches!(form, Form::Int8 | Form::Tiles);
    let mut means = Buffer::stale(if centred { batch * width } else { 0 });
    means.par_chunks_mut(dim).enumerate().for_each(|(head, mean)| {
        eight::mean(&set.k[head / heads * keys * width + head % heads * dim..], width, keys, mean);
    });
    let (to_k, to_v) = (Shared::new(&mut packed.k), Shared::new(&mut packed.v));
    let (k_factors, v_factors) =
        (Shared::new(&mut packed.key_factors), Shared::new(&mut packed.value_factors));
    each(batch * heads * blocks, |i| {
        let (head, block) = (i / blocks, i % blocks);
        let start = block * KEYS;
        let n = KEYS.min(keys - start);
        let from = (head / heads * keys + start) * width + head % heads * dim;
        let k_at = head * k_words + start * form.words(dim);
        let v_at = head * v_words + form.words(start) * dim;
        // SAFETY: the parts of heads and blocks do not overlap.
        let (to_k, to_v) =
            unsafe { (to_k.part(k_at, n * form.words(dim)), to_v.part(v_at, form.words(n) * dim)) };
        let (k, v) = (&set.k[from..], &set.v[from..]);
        match form {
            Form::F32 => {
                pack::pack_keys(k, width, n, dim, to_k);
                pack::pack_values(v, width, n, dim, to_v);
            }
            Form::Bf16 => {
                pack::pack_keys_bf16(k, width, n, dim, to_k);
                pack::pack_values_bf16(v, width, n, dim, to_v);
            }
            Form::Tiles => {
                pack::pack_keys_tiles(k, width, n, dim, &means[head * dim..][..dim], to_k);
                pack::pack_values_tiles(v, width, n, dim, to_v);
            }
            Form::Int8 => {
                // SAFETY: as above.
                let (k_factor, v_factors) = unsafe { (k_factors.part(i, 1), v_factors.part(i * dim, dim)) };
                k_factor[0] = eight::pack_keys(k, width, n, dim, &means[head * dim..][..dim], to_k);
                eight::pack_values(v, width, n, dim, to_v, v_factors);
            }
        }
    });
    packed
}

#[cfg(test)]
mod tests;
