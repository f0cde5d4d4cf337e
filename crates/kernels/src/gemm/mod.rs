//! Matrix products `C = A · Bᵀ` with a fused epilogue, in f32, bf16 and int8.
//!
//! Blocked as in Goto & van de Geijn, "Anatomy of High-Performance Matrix Multiplication" (2008), for a register tile
//! of 14 × 32 (AVX-512): a block of A stays in the second-level cache, panels of B stream past it, and sums over
//! several blocks of the shared dimension wait in a buffer beside it, so that the output is written once. Of many deep rows only one
//! block of the shared dimension stays there: the next one is packed in its place, tile by tile, and the sums of all columns wait.
//! Operands are packed on the way in: widened or narrowed and cut into 32-bit words (one f32, two bf16, four bytes). Lines of the
//! rows of A stay lines, for the micro-kernel broadcasts their words one by one; words of B are interleaved.
//! AVX-512's micro-kernel goes over all whole tiles of a panel in one call: what is done between two tiles is not hidden behind their
//! multiplications. The micro-kernels tell the processor of the lines that are used next, one for each word that they multiply: all at once
//! would wait for each other. That is the tile's part of the output, the rows or weights that are packed next, and the next panel.
//! Tiles of bytes are finished while the next one is multiplied (`avx512_bytes.rs`), and rows of bytes quantised for the next block, where
//! that is faster (`quantiser.rs`).
//!
//! Every element is summed in one order: within a block of the shared dimension in ascending order, then block by
//! block (AMX sums the two bf16 of sixteen words apart, see `amx.rs`). It depends on the shared dimension alone, not on
//! the tile, the split or the number of threads.

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avx512_bytes;
#[cfg(target_arch = "x86_64")]
mod avx512_pack;
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))] // some is for AVX-512 alone
mod finish;
#[cfg(target_arch = "aarch64")]
mod neon;
mod pack;
mod packed;
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
mod quantiser;
mod rows;
mod scalar;
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
mod soon;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod vectors;
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
mod work;

pub(crate) use finish::Epilogue;
pub use finish::Then;
use finish::{Place, Tile};
pub(crate) use pack::{
    Rows, ZERO, factor, inverse, line_bf16, lines_bf16, lines_f32, pack_bf16, pack_f32, pack_int8, pair,
};
pub use packed::Packed;
pub(crate) use packed::Panels;

use crate::Weight;
use crate::level::{self, Level, level};
use crate::share::{Shared, each};
use pack::{Bf16Rows, Int8Rows, WeightRows};
use quantiser::Quantiser;
use soon::Soon;
use std::cell::RefCell;
use std::ops::Range;
use work::split;

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
pub(crate) const KC: usize = 384;
/// Words of a row of A that lie together, a line of the cache: a tile has the first lines of its rows, then the second ones.
pub(crate) const LINE: usize = 16;
/// Most rows of A in one block (of bytes twice as many): what its sums take while they wait is MC · NC · 4 bytes.
const MC: usize = 224;
/// Bytes of the rows in one block of A, as they are before they are packed: these, the packed ones and what is read ahead of the
/// next block stay in a second-level cache of 1 MiB. More if B is larger than a last-level cache's share, so that it is fetched
/// less often: a part of its size, up to a limit. Measured on the shapes of SD1.5 and SDXL.
const ROWS_BYTES: usize = 256 << 10;
const MOST_ROWS_BYTES: usize = 4 << 20;
const PART_OF_B: usize = 6;
/// Tiles in a block of A, at least: each panel is fetched for so many.
const LEAST: usize = 4;
/// Columns whose sums wait beside the block: MC · NC · 4 bytes, as much again at most.
const NC: usize = 256;
/// Bytes of rows, packed, above which they are packed block by block of the shared dimension, where each block has no more bytes than
/// the second limit, and the sums of all columns wait, no more than the third: rows of more would come from the last-level cache
/// again and again, and how fast that is depends on the machine's neighbours.
const FAR_BYTES: usize = 1 << 20;
const BLOCK_BYTES: usize = 800 << 10;
const SUMS_BYTES: usize = 4 << 20;
/// Panels, at least, for which rows are packed so.
const PANELS: usize = 8;
/// Blocks of the shared dimension from which on rows are as many as such a block may have.
const DEEP: usize = 6;
/// So many rows of A are one block where B is not packed: then each panel is packed and used on the spot.
const FEW: usize = 640;
/// Bytes of B that are packed before they are used by several blocks of A: they stay in the last-level cache.
const AHEAD_BYTES: usize = 16 << 20;
/// Products below this many multiplications are not worth a second thread: handing over takes as long as they do, some 40 µs
/// in f32.
const SMALL: usize = 1 << 21;

/// Words in each block of a shared dimension of `words`, but for the last.
fn depth(words: usize) -> usize {
    words.div_ceil(words.div_ceil(KC).max(1)).next_multiple_of(16)
}

/// Rows of A in one block, where each has so many bytes before it is packed, for a packed B of so many: whole
/// tiles.
fn block_rows(precision: Precision, row: usize, b: usize) -> usize {
    // Bytes are packed to a quarter of their place: twice as many rows fit, and what is between two panels is done half as often.
    let times = if precision == Precision::Int8 && goes_on(precision) { 2 } else { 1 };
    let mr = tall(precision);
    let bytes = (b / PART_OF_B).clamp(times * ROWS_BYTES, MOST_ROWS_BYTES);
    (bytes / row.max(1)).clamp(LEAST * mr, times * MC) / mr * mr
}

/// True if so many rows are packed block by block of the shared dimension for so many columns: only those that lie together, for
/// they are packed by each task that has them.
fn by_block<L: Left>(a: &L, blocks: &Blocks, rows: usize, cols: usize) -> bool {
    goes_on(L::PRECISION)
        && L::PRECISION != Precision::Int8 // its factors are of whole rows
        && rows * blocks.room(L::PRECISION) * 4 > FAR_BYTES
        && rows * blocks.deepest(L::PRECISION) * 4 <= BLOCK_BYTES
        && rows * cols.next_multiple_of(columns()) * 4 <= SUMS_BYTES
        && cols >= PANELS * columns()
        && !a.source(0..1).is_empty()
}

/// Bytes that products with shared dimensions up to `inner` and weights of up to `weights` values keep for packed operands,
/// at most, on so many threads.
pub fn scratch_bytes(inner: usize, weights: usize, threads: usize) -> usize {
    let row = Blocks::even(inner).room(Precision::F32) * 4;
    let block = block_rows(Precision::Bf16, row, usize::MAX) * row;
    let sums = if FEW * row > FAR_BYTES { BLOCK_BYTES + SUMS_BYTES } else { MC * NC * 4 };
    AHEAD_BYTES.min(weights * 4) + FEW * row + threads * (2 * block + sums + KC * 32 * 4)
}

/// Where the left operand's rows come from.
pub(crate) trait Left: Sync {
    /// What the words hold.
    const PRECISION: Precision = Precision::F32;

    /// Writes the words of block `kb` of row `m`, whose factor is given, to whole lines `stride` words apart.
    fn pack(&self, kb: usize, m: usize, factor: f32, out: &mut [f32], stride: usize);

    /// The factor of row `m`, if it is quantised.
    fn factor(&self, _m: usize) -> f32 {
        1.0
    }

    /// True if rows can be quantised while others are multiplied.
    fn quantises(&self) -> bool {
        false
    }

    /// What does that, where they can: rows with blocks of `deep` words, and where they go with their factors; as many words
    /// as are multiplied meanwhile, by as many tiles.
    fn quantiser<'q>(
        &'q self,
        _rows: Range<usize>,
        _deep: usize,
        _to: (&'q mut [f32], &'q mut [f32]),
        _words: (usize, usize),
    ) -> Option<Quantiser<'q>> {
        None
    }

    /// What is read of these rows, where it lies together; rows beyond the last are left out.
    fn source(&self, _rows: Range<usize>) -> &[f32] {
        &[]
    }
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
                stored.push(WeightRows::new(weight, k, precision, gate.then_some(outputs), &[]));
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

    /// Words of a packed row of A in the deepest block, in whole lines.
    fn deepest(&self, precision: Precision) -> usize {
        let deepest = self.0.iter().copied().max().unwrap_or(0);
        (deepest * if wide(precision) { 2 } else { 1 }).next_multiple_of(LINE)
    }

    /// Words that a packed row of A takes.
    fn room(&self, precision: Precision) -> usize {
        self.0.len() * self.deepest(precision)
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

/// True if rows of A are packed as numbers of f32 that are bf16: where AVX-512 multiplies these faster than words of two.
fn wide(precision: Precision) -> bool {
    precision == Precision::Bf16 && level() == Level::Avx512 && !level::amx() && !level::fast_bf16()
}

/// True if AMX multiplies: its micro-kernels do without what the others are told to fetch.
fn by_amx(precision: Precision) -> bool {
    level::amx() && precision != Precision::F32
}

/// Rows of the register tile of the level in use.
fn tall(precision: Precision) -> usize {
    if by_amx(precision) { level::AMX_ROWS } else { level::tile_rows(level()) }
}

/// Its columns.
fn columns() -> usize {
    level::tile_columns(level())
}

/// True if the micro-kernel of the level in use multiplies several whole tiles in one go, if they want the same lines fetched.
fn goes_on(precision: Precision) -> bool {
    level() == Level::Avx512 && !by_amx(precision)
}

/// True if the micro-kernel of bytes quantises rows meanwhile: on AMD's processors, one of which was measured to be faster so
/// (`benches/README.md`).
fn quantises() -> bool {
    goes_on(Precision::Int8) && level::vnni() && level::fast_bf16()
}

/// Multiplies register tiles: their rows, words and number, which is 1 but where [`goes_on`]; see [`scalar`].
type Micro =
    unsafe fn((usize, usize, usize), (&[f32], &[f32]), &mut [f32], bool, &Soon, Option<&Tile>) -> bool;

/// The micro-kernel of the level in use.
fn micro(precision: Precision) -> Micro {
    match (level(), precision) {
        #[cfg(target_arch = "x86_64")]
        (Level::Avx512, Precision::F32) => avx512::f32,
        #[cfg(target_arch = "x86_64")]
        (Level::Avx512, Precision::Bf16) if level::amx() => amx::bf16,
        #[cfg(target_arch = "x86_64")]
        (Level::Avx512, Precision::Int8) if level::amx() => amx::int8,
        #[cfg(target_arch = "x86_64")]
        (Level::Avx512, Precision::Bf16) if wide(precision) => avx512::bf16_wide,
        #[cfg(target_arch = "x86_64")]
        (Level::Avx512, Precision::Bf16) => avx512::bf16,
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
        #[cfg(target_arch = "aarch64")]
        (Level::Neon, Precision::F32) => neon::f32,
        #[cfg(target_arch = "aarch64")]
        (Level::Neon, Precision::Bf16) => neon::bf16,
        #[cfg(target_arch = "aarch64")]
        (Level::Neon, Precision::Int8) if level::i8mm() => neon::int8_i8mm,
        #[cfg(target_arch = "aarch64")]
        (Level::Neon, Precision::Int8) if level::dotprod() => neon::int8_dotprod,
        #[cfg(target_arch = "aarch64")]
        (Level::Neon, Precision::Int8) => neon::int8,
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
    fn pack(&self, _: usize, _: usize, _: usize, _: usize, _: &mut [f32]) {
        unreachable!("packed ahead");
    }

    fn packed(&self, n0: usize, k0: usize, kc: usize) -> Option<&[f32]> {
        let nr = columns();
        Some(&self.words[(n0 - self.n0) * self.k + k0 * nr..][..kc * nr])
    }

    fn is_packed(&self) -> bool {
        true
    }
}

/// Packs the panels of `cols`, each with all its blocks, one after the other.
fn pack_panels<R: Right>(b: &R, cols: Range<usize>, blocks: &Blocks, words: &mut [f32]) {
    let nr = columns();
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
        let nr = columns();
        let gate = epilogue.then == Then::Gate;
        let columns = if gate { outputs.div_ceil(nr / 2) * nr } else { outputs };
        Target { epilogue, outputs, out: Shared::new(out), columns, first: 0 }
    }

    /// Where the sums of the panel at column `n0` go.
    fn place(&self, n0: usize, narrow: bool) -> Place<'_> {
        let &Target { epilogue, outputs, out, first, .. } = self;
        let nr = columns();
        let halves = if epilogue.then == Then::Gate { 2 } else { 1 };
        let column = (n0 - first) / halves;
        Place { epilogue, narrow, column, width: (nr / halves).min(outputs - column), stride: outputs, out }
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
    fn pack(&self, kb: usize, n0: usize, cols: usize, nr: usize, out: &mut [f32]) {
        let t = target(self.targets, n0);
        let n0 = n0 - self.targets[t].first;
        self.rights[t].pack(kb, n0, cols.min(self.targets[t].columns - n0), nr, out);
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
    assert!(blocks.0.iter().all(|kc| *kc <= KC), "a block is at most as deep as a row of A is long");
    let nr = columns();
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
    let mr = tall(L::PRECISION);
    let many = BLOCK_BYTES / (4 * blocks.deepest(L::PRECISION)) / mr * mr;
    let most = if blocks.0.len() >= DEEP && by_block(a, blocks, many, n) {
        many
    } else {
        block_rows(L::PRECISION, words * 4 * L::PRECISION.per_word(), words * 4 * n)
    };
    if b.is_packed() {
        return split(m, 0..n, most, blocks, a, &b, targets);
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
        split(m, cols, most, blocks, a, &b, targets);
    }
    AHEAD.set(ahead);
}

#[cfg(test)]
pub(crate) mod tests;
