//! Matrix products `C = A · Bᵀ` with a fused epilogue, in f32, bf16 and int8.
//!
//! Blocked as in Goto & van de Geijn, "Anatomy of High-Performance Matrix Multiplication" (2008), for a register tile
//! of 14 × 32 (AVX-512): a block of A stays in the second-level cache, panels of B stream past it, and sums over
//! several blocks of the shared dimension wait in a buffer beside it, so that the output is written once. Operands are
//! packed on the way in: widened or narrowed, cut into 32-bit words (one f32, two bf16, four bytes), and interleaved.
//!
//! Every element is summed in one order: within a block of the shared dimension in ascending order, then block by
//! block. It depends on the shared dimension alone, not on the tile, the split or the number of threads.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod finish;
mod pack;
mod packed;
mod scalar;

pub(crate) use finish::Epilogue;
pub use finish::Then;
use finish::{Tile, finish};
pub(crate) use pack::{Rows, ZERO, factor, inverse, pack_bf16, pack_int8, pair};
pub use packed::Packed;
pub(crate) use packed::Panels;

use crate::Weight;
use crate::level::{self, Level, level};
use crate::share::{Shared, each, soon};
use pack::{Bf16Rows, Int8Rows, WeightRows};
use std::cell::RefCell;
use std::ops::Range;

/// Number format of a product's operands; sums and results are f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// Single precision.
    #[default]
    F32,
    /// bfloat16: both operands are rounded to 8 significant bits.
    Bf16,
    /// Whole numbers from -127 to 127: each weight row and each row of A times a factor of its own.
    Int8,
}

impl Precision {
    /// Values in one 32-bit word.
    fn per_word(self) -> usize {
        match self {
            Precision::F32 => 1,
            Precision::Bf16 => 2,
            Precision::Int8 => 4,
        }
    }
}

/// Most words of the shared dimension in one block.
const KC: usize = 384;
/// Most rows of A in one block: MC · KC · 4 bytes are a third of a 1 MiB second-level cache.
const MC: usize = 224;
/// Bytes of all blocks of A that are packed at a time; at least [`LEAST`] tiles are.
const BLOCK_BYTES: usize = 4 << 20;
/// Tiles in a block of A, at least: each panel is fetched for so many.
const LEAST: usize = 4;
/// Columns whose sums wait beside the block: MC · NC · 4 bytes, as much again at most.
const NC: usize = 256;
/// Bytes of B that are packed before they are used by several blocks of A: they stay in the last-level cache.
const AHEAD_BYTES: usize = 16 << 20;
/// Products below this many multiplications are not worth a second thread.
const SMALL: usize = 1 << 16;

/// Words in each block of a shared dimension of `words`, but for the last.
fn depth(words: usize) -> usize {
    words.div_ceil(words.div_ceil(KC).max(1)).next_multiple_of(16)
}

/// Rows of A in one block, for a shared dimension of `words`: whole tiles.
fn block_rows(words: usize) -> usize {
    let mr = tile().0;
    (BLOCK_BYTES / 4 / words.max(1)).clamp(LEAST * mr, MC) / mr * mr
}

/// Bytes that products with shared dimensions up to `inner` and weights of up to `weights` values keep for packed operands,
/// at most, on so many threads. Shared dimensions above 18,000 take more.
pub fn scratch_bytes(inner: usize, weights: usize, threads: usize) -> usize {
    let block = BLOCK_BYTES.min(MC * inner * 4);
    AHEAD_BYTES.min(weights * 4) + threads * (block + MC * NC * 4 + KC * 32 * 4)
}

/// Where the left operand's rows come from. `pack` writes block `kb` of rows `m0..m0 + rows` as `[words][rows]`; `factors`
/// are those of the rows.
pub(crate) trait Left: Sync {
    /// What the words hold.
    const PRECISION: Precision = Precision::F32;

    fn pack(&self, kb: usize, m0: usize, rows: usize, factors: &[f32], out: &mut [f32]);

    /// The factors of rows `m0..`, where they are quantised.
    fn factors(&self, _m0: usize, _out: &mut [f32]) {}
}

/// Where the right operand's columns come from. `pack` writes block `kb` of columns `n0..n0 + cols` as
/// `[words][nr]`; columns `cols..nr` may hold anything.
pub(crate) trait Right: Sync {
    fn pack(&self, kb: usize, n0: usize, cols: usize, nr: usize, out: &mut [f32]);

    /// The panel at column `n0`, words `k0..k0 + kc`, if it is packed already.
    fn packed(&self, _n0: usize, _k0: usize, _kc: usize) -> Option<&[f32]> {
        None
    }

    /// True if `packed` has every panel.
    fn is_packed(&self) -> bool {
        false
    }
}

/// The weight of a fully connected layer.
#[derive(Clone, Copy)]
pub enum Operand<'a> {
    /// As it is stored, `[n, k]`: packed during each product. Not for int8.
    Stored(Weight<'a>, Precision),
    /// Packed before.
    Packed(&'a Packed),
}

/// What a fully connected layer does beside the product.
#[derive(Clone, Copy, Default)]
pub struct Extras<'a> {
    /// Added to each row, one value per row of the weight.
    pub bias: Option<&'a [f32]>,
    /// A function of each value; [`Then::Gate`] halves the number of outputs.
    pub then: Then,
    /// Added last, of the output's shape.
    pub residual: Option<&'a [f32]>,
}

/// Fully connected layer: `out[m, n] = then(a[m, k] · w[n, k]ᵀ (+ bias[n])) (+ residual[m, n])`.
///
/// # Panics
/// If a length does not fit `k` and the number of rows, or [`Operand::Stored`] asks for int8.
pub fn layer(a: &[f32], k: usize, weight: Operand, extras: Extras, out: &mut [f32]) {
    assert!(k > 0 && a.len() % k == 0);
    let m = a.len() / k;
    let Extras { bias, then, residual } = extras;
    let epilogue = Epilogue { columns: None, bias, then, residual };
    let rows = Rows { data: a, stride: k, k };
    let gate = then == Then::Gate;
    let n = match weight {
        Operand::Stored(w, _) => w.len() / k,
        Operand::Packed(p) => p.rows(),
    };
    let outputs = if gate { n / 2 } else { n };
    assert!(!gate || n % 2 == 0);
    assert_eq!(out.len(), m * outputs);
    assert!(bias.is_none_or(|b| b.len() == n) && residual.is_none_or(|r| r.len() == out.len()));
    match weight {
        Operand::Stored(weight, precision) => {
            assert_eq!(weight.len(), n * k);
            let gated = gate.then_some(outputs);
            let b = WeightRows { weight, k, precision, gated, factors: &[] };
            match precision {
                Precision::F32 => run(m, outputs, &Blocks::even(k), &rows, &b, epilogue, out),
                Precision::Bf16 => {
                    run(m, outputs, &Blocks::even(k.div_ceil(2)), &Bf16Rows(rows), &b, epilogue, out)
                }
                Precision::Int8 => panic!("int8 weights are packed before they are used"),
            }
        }
        Operand::Packed(p) => {
            p.check(k, gate);
            let blocks = Blocks::even(k.div_ceil(p.precision().per_word()));
            match p.precision() {
                Precision::F32 => run(m, outputs, &blocks, &rows, p.panels(), epilogue, out),
                Precision::Bf16 => run(m, outputs, &blocks, &Bf16Rows(rows), p.panels(), epilogue, out),
                Precision::Int8 => {
                    let epilogue = Epilogue { columns: Some(p.columns()), ..epilogue };
                    run(m, outputs, &blocks, &Int8Rows(rows), p.panels(), epilogue, out);
                }
            }
        }
    }
}

/// Fully connected layer in f32: `out[m, n] = a[m, k] · w[n, k]ᵀ (+ bias[n]) (+ residual[m, n])`.
///
/// # Panics
/// If a length does not fit `k` and the number of rows.
pub fn linear(
    a: &[f32],
    k: usize,
    weight: Weight,
    bias: Option<&[f32]>,
    residual: Option<&[f32]>,
    out: &mut [f32],
) {
    let extras = Extras { bias, residual, ..Extras::default() };
    layer(a, k, Operand::Stored(weight, Precision::F32), extras, out);
}

/// Depths of the blocks of the shared dimension, in words.
pub(crate) struct Blocks(pub Vec<usize>);

impl Blocks {
    /// Blocks of equal depth, the last one shorter.
    pub fn even(words: usize) -> Self {
        let deep = depth(words);
        Blocks((0..words).step_by(deep).map(|k0| deep.min(words - k0)).collect())
    }

    fn words(&self) -> usize {
        self.0.iter().sum()
    }

    /// Index, first word and depth of each block.
    fn iter(&self) -> impl Iterator<Item = (usize, usize, usize)> {
        self.0
            .iter()
            .scan(0, |at, &kc| Some((*at, kc, *at += kc)))
            .enumerate()
            .map(|(i, (k0, kc, ()))| (i, k0, kc))
    }
}

/// The register tile of the level in use: rows, columns.
fn tile() -> (usize, usize) {
    match level() {
        Level::Avx512 => (14, 32),
        Level::Avx2 => (6, 16),
        Level::Scalar => (4, 16),
    }
}

/// One register tile: see [`scalar`].
type Micro = unsafe fn(usize, usize, &[f32], &[f32], &mut [f32], bool);

/// The micro-kernel of the level in use.
fn micro(precision: Precision) -> Micro {
    match (level(), precision) {
        #[cfg(target_arch = "x86_64")]
        (Level::Avx512, Precision::F32) => avx512::f32,
        #[cfg(target_arch = "x86_64")]
        (Level::Avx512, Precision::Bf16) if level::bf16() => avx512::bf16,
        #[cfg(target_arch = "x86_64")]
        (Level::Avx512, Precision::Bf16) => avx512::bf16_plain,
        #[cfg(target_arch = "x86_64")]
        (Level::Avx512, Precision::Int8) if level::vnni() => avx512::int8,
        #[cfg(target_arch = "x86_64")]
        (Level::Avx512, Precision::Int8) => avx512::int8_plain,
        #[cfg(target_arch = "x86_64")]
        (Level::Avx2, Precision::F32) => avx2::f32,
        #[cfg(target_arch = "x86_64")]
        (Level::Avx2, Precision::Bf16) => avx2::bf16,
        #[cfg(target_arch = "x86_64")]
        (Level::Avx2, Precision::Int8) => avx2::int8,
        (_, Precision::F32) => scalar::f32,
        (_, Precision::Bf16) => scalar::bf16,
        (_, Precision::Int8) => scalar::int8,
    }
}

thread_local! {
    static SCRATCH: RefCell<(Vec<f32>, Vec<f32>)> = const { RefCell::new((Vec::new(), Vec::new())) };
    /// B, packed ahead for all threads by the one that calls.
    static AHEAD: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// `len` words of a buffer that grows, from the start of a line of the cache.
fn aligned(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if buffer.len() < len + 16 {
        buffer.resize(len + 16, 0.0);
    }
    let skip = buffer.as_ptr().align_offset(64).min(15);
    &mut buffer[skip..skip + len]
}

/// Panels that were packed ahead, from column `n0` on.
struct Ahead<'a> {
    words: &'a [f32],
    n0: usize,
    k: usize,
}

impl Right for Ahead<'_> {
    fn pack(&self, _: usize, _: usize, _: usize, _: usize, _: &mut [f32]) {
        unreachable!("packed ahead");
    }

    fn packed(&self, n0: usize, k0: usize, kc: usize) -> Option<&[f32]> {
        let nr = tile().1;
        Some(&self.words[(n0 - self.n0) * self.k + k0 * nr..][..kc * nr])
    }

    fn is_packed(&self) -> bool {
        true
    }
}

/// Packs the panels of `cols`, each with all its blocks, one after the other.
fn pack_panels<R: Right>(b: &R, cols: Range<usize>, blocks: &Blocks, words: &mut [f32]) {
    let nr = tile().1;
    let panel = blocks.words() * nr;
    let words = Shared::new(words);
    each(cols.len().div_ceil(nr), |p| {
        let n0 = cols.start + p * nr;
        for (kb, k0, kc) in blocks.iter() {
            // SAFETY: each panel is its own.
            let out = unsafe { words.part(p * panel + k0 * nr, kc * nr) };
            b.pack(kb, n0, nr.min(cols.end - n0), nr, out);
        }
    });
}

/// Products over the whole output `[m, outputs]`, split over the threads of the current pool.
pub(crate) fn run<L: Left, R: Right>(
    m: usize,
    outputs: usize,
    blocks: &Blocks,
    a: &L,
    b: &R,
    epilogue: Epilogue,
    out: &mut [f32],
) {
    if m == 0 || outputs == 0 {
        return;
    }
    let nr = tile().1;
    // Half of a gated panel are gates: its columns are counted in whole panels.
    let n = if epilogue.then == Then::Gate { outputs.div_ceil(nr / 2) * nr } else { outputs };
    let words = blocks.words();
    let out = Shared::new(out);
    let go = |cols| split(m, cols, outputs, blocks, a, b, epilogue, out);
    if m <= block_rows(words) || b.is_packed() {
        return go(0..n);
    }
    // Several blocks of A meet each panel: pack it once.
    let chunk = (AHEAD_BYTES / (words * 4)).max(nr) / nr * nr;
    let mut ahead = AHEAD.take();
    for n0 in (0..n).step_by(chunk) {
        let cols = n0..n.min(n0 + chunk);
        let words = aligned(&mut ahead, cols.len().next_multiple_of(nr) * words);
        pack_panels(b, cols.clone(), blocks, words);
        let b = Ahead { words, n0, k: blocks.words() };
        split(m, cols, outputs, blocks, a, &b, epilogue, out);
    }
    AHEAD.set(ahead);
}

/// Splits rows and columns into tasks.
#[allow(clippy::too_many_arguments)]
fn split<L: Left, R: Right>(
    m: usize,
    cols: Range<usize>,
    stride: usize,
    blocks: &Blocks,
    a: &L,
    b: &R,
    epilogue: Epilogue,
    out: Shared,
) {
    let (mr, nr) = tile();
    let threads = rayon::current_num_threads().max(1);
    let small = m * cols.len() * blocks.words() < SMALL;
    let threads = if small { 1 } else { threads };
    // As many row blocks as threads, or a multiple; where there are too few, columns are split as well. Two tasks a
    // thread, so that one that is held up does not hold up all.
    let tiles = m.div_ceil(mr);
    let needed = m.div_ceil(block_rows(blocks.words()));
    let down = if needed >= threads { needed.next_multiple_of(threads).min(tiles) } else { needed };
    let across = if threads == 1 { 1 } else { (2 * threads).div_ceil(down) }.min(cols.len().div_ceil(nr));
    each(down * across, |task| {
        let rows = span(m, mr, down, task / across);
        let part = span(cols.len(), nr, across, task % across);
        let part = cols.start + part.start..cols.start + part.end;
        // Taken out of the cell, so that a task stolen by this thread inside `each` finds it free.
        let (mut pa, mut pb) = SCRATCH.take();
        serial(rows, part, stride, blocks, a, b, epilogue, out, &mut pa, &mut pb);
        SCRATCH.set((pa, pb));
    });
}

/// Part `p` of `parts` of `0..n`, in units of `unit`.
fn span(n: usize, unit: usize, parts: usize, p: usize) -> Range<usize> {
    let units = n.div_ceil(unit);
    (units * p / parts * unit).min(n)..(units * (p + 1) / parts * unit).min(n)
}

/// Rows × columns of the output on this thread; `pa` and `pb` are memory to work in. Columns are counted as the panels
/// have them, `stride` is the width of the output.
#[allow(clippy::too_many_arguments)]
fn serial<L: Left, R: Right>(
    rows: Range<usize>,
    cols: Range<usize>,
    stride: usize,
    blocks: &Blocks,
    a: &L,
    b: &R,
    epilogue: Epilogue,
    out: Shared,
    pa: &mut Vec<f32>,
    pb: &mut Vec<f32>,
) {
    let (mr, nr) = tile();
    let micro = micro(L::PRECISION);
    let words = blocks.words();
    let deepest = blocks.0.iter().copied().max().unwrap_or(0);
    let most = block_rows(words);
    let panel = aligned(pb, deepest * nr);
    // The block of A, the sums of its tiles, and the factors of its rows.
    let height = most.min(rows.len());
    let pa = aligned(pa, height * words + height * NC + height);
    let (pa, rest) = pa.split_at_mut(height * words);
    let (sums, factors) = rest.split_at_mut(height * NC);
    let gated = epilogue.then == Then::Gate;
    for m0 in rows.clone().step_by(most) {
        let m1 = (m0 + most).min(rows.end);
        let height = m1 - m0;
        for (kb, k0, kc) in blocks.iter() {
            for mt in (m0..m1).step_by(mr) {
                let tall = mr.min(m1 - mt);
                let at = height * k0 + (mt - m0) * kc;
                let factors = &mut factors[mt - m0..][..tall];
                if kb == 0 {
                    a.factors(mt, factors);
                }
                a.pack(kb, mt, tall, factors, &mut pa[at..at + tall * kc]);
            }
        }
        for n0 in cols.clone().step_by(NC) {
            let n1 = (n0 + NC).min(cols.end);
            for (kb, k0, kc) in blocks.iter() {
                let last = kb + 1 == blocks.0.len();
                for nt in (n0..n1).step_by(nr) {
                    let width = nr.min(n1 - nt);
                    let panel = match b.packed(nt, k0, kc) {
                        Some(panel) => panel,
                        None => {
                            b.pack(kb, nt, width, nr, &mut panel[..kc * nr]);
                            &panel[..kc * nr]
                        }
                    };
                    let start = if gated { nt / 2 } else { nt };
                    let width = if gated { (nr / 2).min(stride - start) } else { width };
                    for mt in (m0..m1).step_by(mr) {
                        let tall = mr.min(m1 - mt);
                        let block = &pa[height * k0 + (mt - m0) * kc..][..tall * kc];
                        let tile = &mut sums[(nt - n0) * height + (mt - m0) * nr..][..tall * nr];
                        if last {
                            for r in mt..mt + tall {
                                out.soon(r * stride + start, width);
                                if let Some(residual) = epilogue.residual {
                                    soon(residual, r * stride + start, width);
                                }
                            }
                        }
                        // SAFETY: the level was detected on this machine.
                        unsafe { micro(tall, kc, block, panel, tile, kb > 0) };
                        if last {
                            let factors = &factors[mt - m0..];
                            let (sums, row, column) = (tile, mt, start);
                            let tile = Tile { sums, nr, factors, row, column, width, stride, out };
                            // SAFETY: this task alone writes rows × cols of the output.
                            unsafe { finish(&epilogue, &tile) };
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
