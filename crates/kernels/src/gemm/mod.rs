//! Matrix products `C = A · Bᵀ` with a fused epilogue, in f32, bf16 and int8.
//!
//! Blocked as in Goto & van de Geijn, "Anatomy of High-Performance Matrix Multiplication" (2008), for a register tile
//! of 14 × 32 (AVX-512): a block of A stays in the second-level cache, panels of B stream past it, and sums over
//! several blocks of the shared dimension wait in a buffer beside it, so that the output is written once. Operands are
//! packed on the way in: widened or narrowed, cut into 32-bit words (one f32, two bf16, four bytes), and interleaved.
//! The micro-kernels tell the processor of the lines that are used next, one for each word that they multiply: all at once
//! would wait for each other. That is the tile's part of the output, and the rows or weights that are packed next.
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
use crate::share::{Shared, each, soon_used};
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
/// So many rows of A are one block where B is not packed: then each panel is packed and used on the spot.
const FEW: usize = 640;
/// Bytes of B that are packed before they are used by several blocks of A: they stay in the last-level cache.
const AHEAD_BYTES: usize = 16 << 20;
/// Values in a line of the cache.
const LINE: usize = 16;
/// Products below this many multiplications are not worth a second thread: handing over takes as long as they do, some 40 µs
/// in f32.
const SMALL: usize = 1 << 21;

/// Words in each block of a shared dimension of `words`, but for the last.
fn depth(words: usize) -> usize {
    words.div_ceil(words.div_ceil(KC).max(1)).next_multiple_of(16)
}

/// Rows of A in one block, for a shared dimension of `words`: whole tiles.
fn block_rows(words: usize) -> usize {
    let mr = tile().0;
    (BLOCK_BYTES / 4 / words.max(1)).clamp(LEAST * mr, MC) / mr * mr
}

/// Columns whose sums wait beside a block of so many rows: whole panels.
fn waiting(rows: usize) -> usize {
    let nr = tile().1;
    (MC * NC / rows.max(MC)).max(nr) / nr * nr
}

/// Bytes that products with shared dimensions up to `inner` and weights of up to `weights` values keep for packed operands,
/// at most, on so many threads. Shared dimensions above 18,000 take more.
pub fn scratch_bytes(inner: usize, weights: usize, threads: usize) -> usize {
    let block = BLOCK_BYTES.min(MC * inner * 4);
    AHEAD_BYTES.min(weights * 4) + FEW * inner * 4 + threads * (block + MC * NC * 4 + KC * 32 * 4)
}

/// Where the left operand's rows come from. `pack` writes block `kb` of rows `m0..m0 + rows` as `[words][rows]`; `factors`
/// are those of the rows.
pub(crate) trait Left: Sync {
    /// What the words hold.
    const PRECISION: Precision = Precision::F32;

    fn pack(&self, kb: usize, m0: usize, rows: usize, factors: &[f32], out: &mut [f32]);

    /// The factors of rows `m0..`, where they are quantised.
    fn factors(&self, _m0: usize, _out: &mut [f32]) {}

    /// Fetches what `pack` reads of block `kb` of some rows.
    fn fetch(&self, _kb: usize, _rows: Range<usize>) {}

    /// What is read of these rows, where it lies together; rows beyond the last are left out.
    fn source(&self, _rows: Range<usize>) -> &[f32] {
        &[]
    }
}

/// Where the right operand's columns come from. `pack` writes block `kb` of columns `n0..n0 + cols` as
/// `[words][nr]`; columns `cols..nr` may hold anything. With `fetch` it also fetches what it will read for the next ones.
pub(crate) trait Right: Sync {
    fn pack(&self, kb: usize, n0: usize, cols: usize, nr: usize, fetch: bool, out: &mut [f32]);

    /// The panel at column `n0`, words `k0..k0 + kc`, if it is packed already.
    fn packed(&self, _n0: usize, _k0: usize, _kc: usize) -> Option<&[f32]> {
        None
    }

    /// True if `packed` has every panel.
    fn is_packed(&self) -> bool {
        false
    }

    /// What `pack` reads of column `c` of the panel at `n0`, if it lies together and there is such a column.
    fn source(&self, _kb: usize, _n0: usize, _c: usize, _nr: usize) -> &[u8] {
        &[]
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

/// One of several layers of the same input.
pub struct Part<'a> {
    /// Its weight.
    pub weight: Operand<'a>,
    /// What it does beside the product.
    pub extras: Extras<'a>,
    /// Its output, `[m, n]`.
    pub out: &'a mut [f32],
}

/// Fully connected layer: `out[m, n] = then(a[m, k] · w[n, k]ᵀ (+ bias[n])) (+ residual[m, n])`.
///
/// # Panics
/// If a length does not fit `k` and the number of rows, or [`Operand::Stored`] asks for int8.
pub fn layer(a: &[f32], k: usize, weight: Operand, extras: Extras, out: &mut [f32]) {
    layers(a, k, &mut [Part { weight, extras, out }]);
}

/// Layers that have their input in common, as attention's queries, keys and values have: it is read and packed once. The same
/// bits as one after the other.
///
/// # Panics
/// As [`layer`], or if their weights differ in precision, or in being packed.
pub fn layers(a: &[f32], k: usize, parts: &mut [Part]) {
    assert!(k > 0 && a.len() % k == 0);
    let m = a.len() / k;
    let (mut targets, mut stored, mut packed) = (Vec::new(), Vec::new(), Vec::new());
    let mut precision = None;
    for Part { weight, extras, out } in parts {
        let Extras { bias, then, residual } = *extras;
        let gate = then == Then::Gate;
        let n = match weight {
            Operand::Stored(w, _) => w.len() / k,
            Operand::Packed(p) => p.rows(),
        };
        let outputs = if gate { n / 2 } else { n };
        assert!(!gate || n % 2 == 0);
        assert_eq!(out.len(), m * outputs);
        assert!(bias.is_none_or(|b| b.len() == n) && residual.is_none_or(|r| r.len() == out.len()));
        let (own, columns) = match *weight {
            Operand::Stored(weight, precision) => {
                assert_eq!(weight.len(), n * k);
                assert!(precision != Precision::Int8, "int8 weights are packed before they are used");
                stored.push(WeightRows {
                    weight,
                    k,
                    precision,
                    gated: gate.then_some(outputs),
                    factors: &[],
                });
                (precision, None)
            }
            Operand::Packed(p) => {
                p.check(k, gate);
                packed.push(p.panels());
                (p.precision(), (p.precision() == Precision::Int8).then(|| p.columns()))
            }
        };
        assert_eq!(*precision.get_or_insert(own), own, "layers of one precision");
        targets.push(Target::new(outputs, Epilogue { columns, bias, then, residual }, out));
    }
    let Some(precision) = precision else { return };
    let blocks = Blocks::even(k.div_ceil(precision.per_word()));
    let stored: Vec<&WeightRows> = stored.iter().collect();
    let rows = Rows::new(a, k, precision.per_word());
    match (precision, stored.is_empty()) {
        (Precision::F32, false) => run(m, &blocks, &rows, &stored, &mut targets),
        (Precision::F32, true) => run(m, &blocks, &rows, &packed, &mut targets),
        (Precision::Bf16, false) => run(m, &blocks, &Bf16Rows(rows), &stored, &mut targets),
        (Precision::Bf16, true) => run(m, &blocks, &Bf16Rows(rows), &packed, &mut targets),
        (Precision::Int8, _) => run(m, &blocks, &Int8Rows(rows), &packed, &mut targets),
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
type Micro = unsafe fn(usize, usize, &[f32], &[f32], &mut [f32], bool, &Soon);

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
    /// A, packed for all threads by the one that calls.
    static LEFT: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
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
    fn pack(&self, _: usize, _: usize, _: usize, _: usize, _: bool, _: &mut [f32]) {
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
            b.pack(kb, n0, nr.min(cols.end - n0), nr, true, out);
        }
    });
}

/// What becomes of the sums of one right operand.
pub(crate) struct Target<'a> {
    epilogue: Epilogue<'a>,
    /// Width of the output.
    outputs: usize,
    out: Shared<'a>,
    /// Its columns as the panels have them: half of a gated panel are gates, the last one may be narrower.
    columns: usize,
    /// Where they begin among those of all: whole panels.
    first: usize,
}

impl<'a> Target<'a> {
    /// `[m, outputs]`.
    pub fn new(outputs: usize, epilogue: Epilogue<'a>, out: &'a mut [f32]) -> Self {
        let nr = tile().1;
        let gate = epilogue.then == Then::Gate;
        let columns = if gate { outputs.div_ceil(nr / 2) * nr } else { outputs };
        Target { epilogue, outputs, out: Shared::new(out), columns, first: 0 }
    }
}

/// Right operands side by side, each from a whole panel on.
struct Joined<'a, R> {
    rights: &'a [&'a R],
    targets: &'a [Target<'a>],
}

/// The index of the target that column `n0` belongs to.
fn target(targets: &[Target], n0: usize) -> usize {
    targets.partition_point(|t| t.first <= n0) - 1
}

impl<R: Right> Right for Joined<'_, R> {
    fn pack(&self, kb: usize, n0: usize, cols: usize, nr: usize, fetch: bool, out: &mut [f32]) {
        let t = target(self.targets, n0);
        let n0 = n0 - self.targets[t].first;
        self.rights[t].pack(kb, n0, cols.min(self.targets[t].columns - n0), nr, fetch, out);
    }

    fn source(&self, kb: usize, n0: usize, c: usize, nr: usize) -> &[u8] {
        let t = target(self.targets, n0);
        self.rights[t].source(kb, n0 - self.targets[t].first, c, nr)
    }

    fn packed(&self, n0: usize, k0: usize, kc: usize) -> Option<&[f32]> {
        let t = target(self.targets, n0);
        self.rights[t].packed(n0 - self.targets[t].first, k0, kc)
    }

    fn is_packed(&self) -> bool {
        self.rights.iter().all(|r| r.is_packed())
    }
}

/// Products of `m` rows with each of `rights`, over the whole outputs, split over the threads of the current pool.
pub(crate) fn run<L: Left, R: Right>(
    m: usize,
    blocks: &Blocks,
    a: &L,
    rights: &[&R],
    targets: &mut [Target],
) {
    let nr = tile().1;
    let mut n = 0;
    for target in &mut *targets {
        target.first = n;
        n += target.columns.next_multiple_of(nr);
    }
    if m == 0 || n == 0 {
        return;
    }
    let b = Joined { rights, targets };
    let words = blocks.words();
    if b.is_packed() {
        return split(m, 0..n, block_rows(words), blocks, a, &b, targets);
    }
    if m <= FEW {
        return split(m, 0..n, m, blocks, a, &b, targets);
    }
    // Several blocks of A meet each panel: pack it once.
    let chunk = (AHEAD_BYTES / (words * 4)).max(nr) / nr * nr;
    let mut ahead = AHEAD.take();
    for n0 in (0..n).step_by(chunk) {
        let cols = n0..n.min(n0 + chunk);
        let words = aligned(&mut ahead, cols.len().next_multiple_of(nr) * words);
        pack_panels(&b, cols.clone(), blocks, words);
        let b = Ahead { words, n0, k: blocks.words() };
        split(m, cols, block_rows(blocks.words()), blocks, a, &b, targets);
    }
    AHEAD.set(ahead);
}

/// Splits rows, of which a block has `most`, and columns into tasks.
fn split<L: Left, R: Right>(
    m: usize,
    cols: Range<usize>,
    most: usize,
    blocks: &Blocks,
    a: &L,
    b: &R,
    targets: &[Target],
) {
    let (mr, nr) = tile();
    let threads = rayon::current_num_threads().max(1);
    let small = m * cols.len() * blocks.words() < SMALL;
    let threads = if small { 1 } else { threads };
    // As many row blocks as threads, or a multiple; where there are too few, columns are split as well. Two tasks a
    // thread, so that one that is held up does not hold up all.
    let tiles = m.div_ceil(mr);
    let needed = m.div_ceil(most);
    let down = if needed >= threads { needed.next_multiple_of(threads).min(tiles) } else { needed };
    let across = if threads == 1 { 1 } else { (2 * threads).div_ceil(down) }.min(cols.len().div_ceil(nr));
    // Where all tasks have the same rows, these are packed once.
    let mut left = LEFT.take();
    let mut ready = None;
    if down == 1 && across > 1 {
        let (packed, factors) = aligned(&mut left, m * blocks.words() + m).split_at_mut(m * blocks.words());
        let (to, of) = (Shared::new(packed), Shared::new(factors));
        // SAFETY: each tile has its own part.
        each(tiles, |t| unsafe { pack_tile(a, blocks, 0..m, t * mr, to, of, true) });
        ready = Some((&*packed, &*factors));
    }
    each(down * across, |task| {
        let rows = span(m, mr, down, task / across);
        let part = span(cols.len(), nr, across, task % across);
        let part = cols.start + part.start..cols.start + part.end;
        // Taken out of the cell, so that a task stolen by this thread inside `each` finds it free.
        let mut scratch = SCRATCH.take();
        serial(rows, part, most, blocks, a, b, targets, ready, &mut scratch);
        SCRATCH.set(scratch);
    });
    LEFT.set(left);
}

/// Where a block of the tile at row `mt` is among packed `rows`, for words `k0..k0 + kc`.
fn place(rows: &Range<usize>, k0: usize, kc: usize, mt: usize) -> Range<usize> {
    let tall = tile().0.min(rows.end - mt);
    let at = rows.len() * k0 + (mt - rows.start) * kc;
    at..at + tall * kc
}

/// Packs all blocks of the tile at row `mt` of `rows`, and writes their factors. What is `cold` was written by another thread,
/// and its place read by one: both are fetched before.
///
/// # Safety
/// No other thread may use the tile's parts of `packed` and `factors` meanwhile.
unsafe fn pack_tile<L: Left>(
    a: &L,
    blocks: &Blocks,
    rows: Range<usize>,
    mt: usize,
    packed: Shared,
    factors: Shared,
    cold: bool,
) {
    let tall = tile().0.min(rows.end - mt);
    // SAFETY: the caller's promise.
    let factors = unsafe { factors.part(mt - rows.start, tall) };
    a.factors(mt, factors);
    for (kb, k0, kc) in blocks.iter() {
        let place = place(&rows, k0, kc, mt);
        if cold {
            a.fetch(kb, mt..mt + tall);
            packed.soon(place.start, place.len());
        }
        // SAFETY: the caller's promise.
        a.pack(kb, mt, tall, factors, unsafe { packed.part(place.start, place.len()) });
    }
}

/// Part `p` of `parts` of `0..n`, in units of `unit`.
fn span(n: usize, unit: usize, parts: usize, p: usize) -> Range<usize> {
    let units = n.div_ceil(unit);
    (units * p / parts * unit).min(n)..(units * (p + 1) / parts * unit).min(n)
}

/// Rows × columns of the outputs on this thread; columns are counted as the panels have them. `ready` has the rows packed,
/// with their factors, where they are.
#[allow(clippy::too_many_arguments)]
fn serial<L: Left, R: Right>(
    rows: Range<usize>,
    cols: Range<usize>,
    most: usize,
    blocks: &Blocks,
    a: &L,
    b: &R,
    targets: &[Target],
    ready: Option<(&[f32], &[f32])>,
    (pa, pb): &mut (Vec<f32>, Vec<f32>),
) {
    let (mr, nr) = tile();
    let words = blocks.words();
    let panel = aligned(pb, blocks.0.iter().copied().max().unwrap_or(0) * nr);
    let height = most.min(rows.len());
    let own = if ready.is_some() { 0 } else { height };
    // The sums of tiles, the rows packed, and their factors.
    let wide = waiting(height);
    let (sums, rest) = aligned(pa, height * wide + own * (words + 1)).split_at_mut(height * wide);
    let (packed, factors) = rest.split_at_mut(own * words);
    let micro = micro(L::PRECISION);
    for m0 in rows.clone().step_by(most) {
        let rows = m0..(m0 + most).min(rows.end);
        let tiles = rows.clone().step_by(mr);
        if ready.is_none() {
            let (packed, factors) = (Shared::new(packed), Shared::new(factors));
            // SAFETY: only this thread has them.
            tiles
                .clone()
                .for_each(|mt| unsafe { pack_tile(a, blocks, rows.clone(), mt, packed, factors, false) });
        }
        let (packed, factors) = ready.unwrap_or((packed, factors));
        let next = a.source(rows.end..rows.end + most);
        let products = cols.len().div_ceil(nr) * tiles.len() * blocks.0.len();
        let lines = next.len().div_ceil(LINE).div_ceil(products);
        let alone = blocks.0.len() == 1;
        // Columns whose weights are fetched during each product; where these are few, packing does it.
        let ahead = nr.div_ceil(tiles.len());
        let ahead = if b.is_packed() || ahead > RUNS { 0 } else { ahead };
        let mut of = Block {
            rows,
            targets,
            micro,
            narrow: L::PRECISION != Precision::F32,
            packed,
            sums,
            factors,
            next,
        };
        for n0 in cols.clone().step_by(wide) {
            let n1 = (n0 + wide).min(cols.end);
            for (kb, k0, kc) in blocks.iter() {
                let last = kb + 1 == blocks.0.len();
                for nt in (n0..n1).step_by(nr) {
                    let panel = match b.packed(nt, k0, kc) {
                        Some(panel) => panel,
                        None => {
                            let panel = &mut panel[..kc * nr];
                            b.pack(kb, nt, nr.min(n1 - nt), nr, ahead == 0, panel);
                            panel
                        }
                    };
                    // The panel after this one.
                    let (later_kb, later) = match nt + nr < n1 {
                        true => (kb, nt + nr),
                        false if !last => (kb + 1, n0),
                        false => (0, n1),
                    };
                    for (i, mt) in tiles.clone().enumerate() {
                        let mut runs = [Run::default(); RUNS];
                        runs[0] = of.next(lines);
                        if ahead > 0 && later < cols.end {
                            for (c, run) in (i * ahead..nr).zip(&mut runs[..ahead]) {
                                *run = Run::of(b.source(later_kb, later, c, nr));
                            }
                        }
                        // Sums that wait for no other block take the same place again.
                        let wait = if alone { 0 } else { (nt - n0) * of.rows.len() + (mt - m0) * nr };
                        of.multiply((k0, kc), (kb > 0, last), panel, (mt, nt), wait, &runs);
                    }
                }
            }
        }
    }
}

/// Runs of lines that are fetched during one product, at most.
const RUNS: usize = 4;

/// Lines of the cache that lie together.
#[derive(Clone, Copy)]
struct Run {
    start: *const f32,
    lines: usize,
}

impl Default for Run {
    fn default() -> Self {
        Run { start: std::ptr::null(), lines: 0 }
    }
}

impl Run {
    /// Those of these bytes.
    fn of(bytes: &[u8]) -> Self {
        Run { start: bytes.as_ptr().cast(), lines: bytes.len().div_ceil(4 * LINE) }
    }

    #[inline(always)]
    fn soon(&self, line: usize) {
        soon_used(self.start.wrapping_add(line * LINE));
    }
}

/// What is used after the product of a tile: the processor may fetch it meanwhile.
struct Soon<'a> {
    /// The tile's part of the output, and of what is added to it; so many rows, this far apart, of one line of the cache or
    /// two.
    out: *const f32,
    residual: Option<*const f32>,
    stride: usize,
    wide: bool,
    rows: usize,
    /// What will be packed next.
    runs: &'a [Run; RUNS],
}

impl Soon<'_> {
    #[inline(always)]
    fn row(&self, r: usize) {
        for start in [Some(self.out), self.residual].into_iter().flatten() {
            let start = start.wrapping_add(r * self.stride);
            soon_used(start);
            if self.wide {
                soon_used(start.wrapping_add(LINE));
            }
        }
    }

    /// All at once.
    #[cfg(target_arch = "x86_64")]
    fn fetch(&self) {
        (0..self.rows).for_each(|r| self.row(r));
        for run in self.runs {
            (0..run.lines).for_each(|l| run.soon(l));
        }
    }
}

/// Rows of A at work.
struct Block<'a> {
    rows: Range<usize>,
    targets: &'a [Target<'a>],
    micro: Micro,
    /// True for bf16 and int8.
    narrow: bool,
    /// The rows, packed: by blocks of the shared dimension, tile by tile.
    packed: &'a [f32],
    /// Sums of tiles that wait for the next block.
    sums: &'a mut [f32],
    /// Factors of the rows.
    factors: &'a [f32],
    /// What is left to fetch of the rows that are packed next.
    next: &'a [f32],
}

impl Block<'_> {
    /// The next so many lines of the rows that are packed next.
    fn next(&mut self, lines: usize) -> Run {
        let (now, rest) = self.next.split_at(self.next.len().min(LINE * lines));
        self.next = rest;
        Run { start: now.as_ptr(), lines: now.len().div_ceil(LINE) }
    }

    /// Multiplies words `k0..k0 + kc` of the tile at row `mt` by the panel at column `nt`; its sums are at `wait`, those of
    /// `more` blocks before are there already. After the `last` block the tile is written.
    fn multiply(
        &mut self,
        (k0, kc): (usize, usize),
        (more, last): (bool, bool),
        panel: &[f32],
        (mt, nt): (usize, usize),
        wait: usize,
        runs: &[Run; RUNS],
    ) {
        let nr = tile().1;
        let target = &self.targets[target(self.targets, nt)];
        let &Target { epilogue, outputs, out, first, .. } = target;
        let gate = epilogue.then == Then::Gate;
        let column = (nt - first) / if gate { 2 } else { 1 };
        let width = (if gate { nr / 2 } else { nr }).min(outputs - column);
        let place = place(&self.rows, k0, kc, mt);
        let tall = place.len() / kc;
        let sums = &mut self.sums[wait..][..tall * nr];
        let at = mt * outputs + column;
        let soon = Soon {
            out: out.line(at),
            residual: epilogue.residual.map(|all| all.as_ptr().wrapping_add(at)),
            stride: outputs,
            wide: width > LINE,
            rows: if last { tall } else { 0 },
            runs,
        };
        // SAFETY: the level was detected on this machine.
        unsafe { (self.micro)(tall, kc, &self.packed[place], panel, sums, more, &soon) };
        if last {
            let factors = &self.factors[mt - self.rows.start..];
            let (row, stride, narrow) = (mt, outputs, self.narrow);
            let tile = Tile { sums, nr, factors, narrow, row, column, width, stride, out };
            // SAFETY: a task alone writes its rows × columns of the output.
            unsafe { finish(&epilogue, &tile) };
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
