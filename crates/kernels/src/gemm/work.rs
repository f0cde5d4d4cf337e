//! A product at work: tasks of rows and columns, in each blocks of rows of A, in each tiles.

use super::finish::{Place, Tile, finish};
use super::quantiser::Quantiser;
use super::{
    Blocks, FAR_BYTES, LEFT, LINE, Left, MC, Micro, NC, Precision, Right, SCRATCH, SMALL, Target, aligned,
    columns, goes_on, micro, tall, target,
};
#[cfg(target_arch = "x86_64")]
use crate::amx::Session;
use crate::share::{Shared, each, soon, soon_used};
use std::cell::Cell;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Columns whose sums wait beside a block of so many rows of so many words: whole panels. The rows are read once for them.
fn waiting(rows: usize, words: usize) -> usize {
    let nr = columns();
    let sums = if rows * words * 4 > FAR_BYTES { 4 * NC } else { NC };
    (MC * sums / rows.max(MC)).max(nr) / nr * nr
}

/// Splits rows, of which a block has `most`, and columns into tasks.
pub(super) fn split<L: Left, R: Right>(
    m: usize,
    cols: Range<usize>,
    most: usize,
    blocks: &Blocks,
    a: &L,
    b: &R,
    targets: &[Target],
) {
    let (mr, nr) = (tall(L::PRECISION), columns());
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
        let words = m * blocks.room(L::PRECISION);
        let (packed, factors) = aligned(&mut left, words + m).split_at_mut(words);
        let (to, of) = (Shared::new(packed), Shared::new(factors));
        // SAFETY: each tile has its own part.
        each(tiles, |t| unsafe { pack_tile(a, blocks, 0..m, t * mr, to, of, true) });
        ready = Some((&*packed, &*factors));
    }
    // Where the next block is quantised meanwhile, a task takes one block after the other, until none is left.
    let meanwhile = a.quantises() && across == 1 && down > threads;
    let taken = AtomicUsize::new(0);
    let tasks = if meanwhile { threads } else { down * across };
    each(tasks, |task| {
        let mut one = Some(task / across);
        let mut rows = std::iter::from_fn(|| {
            let i = if meanwhile { Some(taken.fetch_add(1, Ordering::Relaxed)) } else { one.take() };
            i.filter(|i| *i < down).map(|i| span(m, mr, down, i))
        });
        let part = span(cols.len(), nr, across, task % across);
        let part = cols.start + part.start..cols.start + part.end;
        // Taken out of the cell, so that a task stolen by this thread inside `each` finds it free.
        let mut scratch = SCRATCH.take();
        let most = (tiles.div_ceil(down) * mr).min(m);
        serial((&mut rows, most, meanwhile), part, blocks, a, b, targets, ready, &mut scratch);
        SCRATCH.set(scratch);
    });
    LEFT.set(left);
}

/// Where block `kb` of the tile at row `mt` is among packed `rows`, whose blocks of `deep` words lie one after the other.
/// Tiles have `mr` rows but for the last one.
fn packed_at(mr: usize, rows: &Range<usize>, deep: usize, kb: usize, mt: usize) -> Range<usize> {
    let tall = mr.min(rows.end - mt);
    let at = (rows.len() * kb + (mt - rows.start)) * deep;
    at..at + tall * deep
}

/// Values of rows that are packed at a time: half of a first-level cache.
const GROUP: usize = 6 << 10;

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
    let mr = tall(L::PRECISION);
    let tall = mr.min(rows.end - mt);
    let deep = blocks.deepest(L::PRECISION);
    let place = |kb| packed_at(mr, &rows, deep, kb, mt);
    // SAFETY: the caller's promise.
    let factors = unsafe { factors.part(mt - rows.start, tall) };
    // As many rows at a time as stay in the first-level cache: what is quantised is read twice.
    let per = blocks.words() * L::PRECISION.per_word();
    let group = (GROUP / per.max(1)).clamp(1, tall);
    for first in (0..tall).step_by(group) {
        let group = first..tall.min(first + group);
        if cold {
            for r in group.clone() {
                let row = a.source(mt + r..mt + r + 1);
                soon(row, 0, row.len());
                for kb in 0..blocks.0.len() {
                    place(kb).skip(r * LINE).step_by(tall * LINE).for_each(|line| packed.soon(line, 1));
                }
            }
        }
        group.clone().for_each(|r| factors[r] = a.factor(mt + r));
        for kb in 0..blocks.0.len() {
            let place = place(kb);
            // SAFETY: the caller's promise.
            let out = unsafe { packed.part(place.start, place.len()) };
            for r in group.clone() {
                a.pack(kb, mt + r, factors[r], &mut out[r * LINE..], tall * LINE);
            }
        }
    }
}

/// Part `p` of `parts` of `0..n`, in units of `unit`.
fn span(n: usize, unit: usize, parts: usize, p: usize) -> Range<usize> {
    let units = n.div_ceil(unit);
    (units * p / parts * unit).min(n)..(units * (p + 1) / parts * unit).min(n)
}

/// Rows × columns of the outputs on this thread, block by block of at most so many rows; columns are counted as the panels have
/// them. `ready` has the rows packed, with their factors, where they are.
#[allow(clippy::too_many_arguments)]
fn serial<L: Left, R: Right>(
    (all, most, quantises): (&mut dyn Iterator<Item = Range<usize>>, usize, bool),
    cols: Range<usize>,
    blocks: &Blocks,
    a: &L,
    b: &R,
    targets: &[Target],
    ready: Option<(&[f32], &[f32])>,
    (pa, pb): &mut (Vec<f32>, Vec<f32>),
) {
    let (mr, nr) = (tall(L::PRECISION), columns());
    #[cfg(target_arch = "x86_64")]
    let _tiles = Session::begin();
    let words = blocks.room(L::PRECISION);
    let panel = aligned(pb, blocks.0.iter().copied().max().unwrap_or(0) * nr);
    // The sums of tiles, rows packed with their factors, and as much again where the next ones are quantised meanwhile.
    let own = if ready.is_some() { 0 } else { (most * (words + 1)).next_multiple_of(LINE) };
    let wide = waiting(most, words);
    let (sums, rest) =
        aligned(pa, most * wide + own * if quantises { 2 } else { 1 }).split_at_mut(most * wide);
    let (mut here, mut there) = rest.split_at_mut(own);
    let mut now = all.next();
    let mut quantised = false;
    while let Some(rows) = now {
        let later = all.next();
        let (packed, factors) = match ready {
            Some(ready) => ready,
            None => {
                let (packed, factors) = parts(here, rows.len(), most, words);
                if !quantised {
                    let (packed, factors) = (Shared::new(&mut *packed), Shared::new(&mut *factors));
                    let tiles = rows.clone().step_by(mr);
                    // SAFETY: only this thread has them.
                    tiles.for_each(|mt| unsafe {
                        pack_tile(a, blocks, rows.clone(), mt, packed, factors, false);
                    });
                }
                (&*packed, &*factors)
            }
        };
        let mut quantiser = match &later {
            Some(later) if quantises => {
                // Of each tile the last few words are multiplied while it is finished.
                let panels = rows.len() / mr * cols.len().div_ceil(nr);
                let meanwhile = (panels * blocks.words() / 16 * 15, panels * blocks.0.len());
                let to = parts(there, later.len(), most, words);
                a.quantiser(later.clone(), blocks.deepest(L::PRECISION), to, meanwhile)
            }
            _ => None,
        };
        // The rows below these, which this thread may have next.
        let below = rows.end..rows.end + rows.len();
        let next = if quantiser.is_some() { &[] } else { a.source(later.clone().unwrap_or(below)) };
        let of = Block {
            rows,
            mr,
            deep: blocks.deepest(L::PRECISION),
            micro: micro(L::PRECISION),
            packed,
            sums: &mut *sums,
            factors,
            next,
            quantiser: quantiser.as_mut(),
            narrow: L::PRECISION != Precision::F32,
            goes: goes_on(L::PRECISION),
        };
        of.all(cols.clone(), wide, blocks, b, targets, panel);
        quantised = quantiser.is_some();
        if let Some(quantiser) = &mut quantiser {
            quantiser.finish();
            std::mem::swap(&mut here, &mut there);
        }
        now = later;
    }
}

/// Of a place for `most` rows of so many words, packed, and their factors: the parts for `rows`.
fn parts(place: &mut [f32], rows: usize, most: usize, words: usize) -> (&mut [f32], &mut [f32]) {
    let (packed, factors) = place.split_at_mut(most * words);
    (&mut packed[..rows * words], &mut factors[..rows])
}

/// Runs of lines that are fetched during one product for what is packed or multiplied next, at most.
const RUNS: usize = 4;

/// Lines of the cache that are fetched one by one, of each of several tiles as many.
#[derive(Clone, Copy)]
pub(super) struct Run {
    /// The first one, and how many bytes on those of the next tile are.
    pub start: *const f32,
    pub step: usize,
    /// Bytes from one to the next, and to another one that is fetched with it: 0 if there is none.
    pub stride: usize,
    pub also: usize,
    pub lines: usize,
}

impl Run {
    /// No lines. Who asks for one all the same gets the one at `start`.
    pub const fn none(start: *const f32) -> Self {
        Run { start, step: 0, stride: 0, also: 0, lines: 0 }
    }

    /// Those of these bytes for one tile, those of `then`, if there are such, for the next one, and so on.
    fn of(bytes: &[u8], then: &[u8]) -> Self {
        let (start, next) = (bytes.as_ptr(), then.as_ptr());
        let step = if then.is_empty() { 0 } else { next.addr().wrapping_sub(start.addr()) };
        Run { step, stride: 4 * LINE, lines: bytes.len().div_ceil(4 * LINE), ..Run::none(start.cast()) }
    }

    /// Takes the next so many of `words` for each of `tiles`: for all of them as many lines, maybe some beyond the end.
    #[inline(always)]
    fn first_of(words: &mut &[f32], each: usize, tiles: usize) -> Self {
        let (now, rest) = words.split_at(words.len().min(each * tiles));
        *words = rest;
        let lines = now.len().div_ceil(LINE).div_ceil(tiles);
        Run { step: lines * LINE * 4, stride: 4 * LINE, lines, ..Run::none(now.as_ptr()) }
    }

    /// The first line of a tile.
    #[inline(always)]
    pub fn at(&self, tile: usize) -> *const f32 {
        self.start.wrapping_byte_add(tile.wrapping_mul(self.step))
    }

    /// Fetches all lines of a tile.
    #[inline(always)]
    pub fn fetch(&self, tile: usize) {
        for l in 0..self.lines {
            let line = self.at(tile).wrapping_byte_add(l * self.stride);
            soon_used(line);
            soon_used(line.wrapping_byte_add(self.also));
        }
    }
}

/// What is used after the product of a tile: the processor may fetch it meanwhile.
pub(super) struct Soon<'a, 'q> {
    /// The tile's part of the output and of what is added to it, and what will be packed or multiplied next.
    pub runs: [Run; 2 + RUNS],
    /// What quantises the next rows meanwhile, if the micro-kernel can.
    pub quantiser: Cell<Option<&'a mut Quantiser<'q>>>,
}

impl Soon<'_, '_> {
    /// All at once.
    pub fn fetch(&self) {
        self.runs.iter().for_each(|run| run.fetch(0));
    }
}

/// Rows of A at work.
struct Block<'a, 'q> {
    rows: Range<usize>,
    /// Rows of a tile.
    mr: usize,
    micro: Micro,
    /// The rows, packed: block by block of the shared dimension, each `deep` words.
    deep: usize,
    packed: &'a [f32],
    /// Sums of tiles that wait for the next block.
    sums: &'a mut [f32],
    /// Factors of the rows.
    factors: &'a [f32],
    /// What is left to fetch of the rows that are packed next.
    next: &'a [f32],
    /// Or what quantises them meanwhile.
    quantiser: Option<&'a mut Quantiser<'q>>,
    /// See [`Place::narrow`].
    narrow: bool,
    /// The micro-kernel goes over several tiles.
    goes: bool,
}

impl Block<'_, '_> {
    /// All columns `cols`, of which the sums of `wide` wait at a time.
    fn all<R: Right>(
        mut self,
        cols: Range<usize>,
        wide: usize,
        blocks: &Blocks,
        b: &R,
        targets: &[Target],
        room: &mut [f32],
    ) {
        let (mr, nr) = (self.mr, columns());
        let rows = self.rows.clone();
        let tiles = rows.len().div_ceil(mr);
        let products = cols.len().div_ceil(nr) * tiles * blocks.0.len();
        let lines = self.next.len().div_ceil(LINE).div_ceil(products);
        let alone = blocks.0.len() == 1;
        // Columns of the next panel whose weights are fetched during each tile's product, beside what packing fetches.
        let ahead = nr.div_ceil(tiles);
        let ahead = if b.is_packed() || ahead > RUNS { 0 } else { ahead };
        for n0 in cols.clone().step_by(wide) {
            let n1 = (n0 + wide).min(cols.end);
            for (kb, k0, kc) in blocks.iter() {
                let last = kb + 1 == blocks.0.len();
                for nt in (n0..n1).step_by(nr) {
                    let panel = match b.packed(nt, k0, kc) {
                        Some(panel) => panel,
                        None => {
                            let panel = &mut room[..kc * nr];
                            b.pack(kb, nt, nr.min(n1 - nt), nr, panel);
                            panel
                        }
                    };
                    // The panel after this one.
                    let later = if nt + nr < n1 {
                        Some((kb, k0, nt + nr))
                    } else if !last {
                        Some((kb + 1, k0 + kc, n0))
                    } else {
                        (n1 < cols.end).then_some((0, 0, n1))
                    };
                    let mut coming =
                        later.and_then(|(kb, k0, nt)| b.packed(nt, k0, blocks.0[kb])).unwrap_or(&[]);
                    let share = coming.len().div_ceil(tiles).next_multiple_of(LINE);
                    let place = targets[target(targets, nt)].place(nt, self.narrow);
                    // All whole tiles in one go, or one by one.
                    let whole = if self.goes { rows.len() / mr } else { 0 };
                    let mut mt = rows.start;
                    let mut i = 0;
                    while mt < rows.end {
                        let count = if i < whole { whole } else { 1 };
                        let mut runs = [Run::none(std::ptr::null()); RUNS];
                        runs[0] = Run::first_of(&mut self.next, lines * LINE, count);
                        runs[1] = Run::first_of(&mut coming, share, count);
                        if let (true, Some((kb, _, nt))) = (ahead > 0, later) {
                            for (c, run) in (i * ahead..nr).zip(&mut runs[..ahead]) {
                                *run = Run::of(b.source(kb, nt, c, nr), b.source(kb, nt, c + ahead, nr));
                            }
                        }
                        // Sums that wait for no other block take the same place again.
                        let wait = if alone { 0 } else { (nt - n0) * rows.len() + (mt - rows.start) * nr };
                        self.multiply((kb, kc), (kb > 0, last), panel, &place, (mt, count), wait, &runs);
                        (mt, i) = (mt + count * mr, i + count);
                    }
                }
            }
        }
    }

    /// Multiplies the `kc` words of block `kb` of some tiles from row `mt` on by a panel, several only if they are whole; their sums
    /// are at `wait`, those of `more` blocks before are there already. After the `last` block the tiles are written.
    #[allow(clippy::too_many_arguments)]
    fn multiply(
        &mut self,
        (kb, kc): (usize, usize),
        (more, last): (bool, bool),
        panel: &[f32],
        place: &Place,
        (mt, tiles): (usize, usize),
        wait: usize,
        runs: &[Run; RUNS],
    ) {
        let (mr, nr) = (self.mr, columns());
        let tall = mr.min(self.rows.end - mt);
        let sums = &mut self.sums[wait..][..tiles * tall * nr];
        let at = mt * place.stride + place.column;
        // Of the last block's tiles the rows, of one line of the cache or two.
        let run = |start: *const f32| Run {
            step: tall * place.stride * 4,
            stride: place.stride * 4,
            also: if place.width > LINE { 4 * LINE } else { 0 },
            lines: if last { tall } else { 0 },
            ..Run::none(start)
        };
        let [a, b, c, d] = *runs;
        let added = place
            .epilogue
            .residual
            .map_or(Run::none(panel.as_ptr()), |all| run(all.as_ptr().wrapping_add(at)));
        let soon = Soon {
            runs: [run(place.out.line(at)), added, a, b, c, d],
            quantiser: Cell::new(self.quantiser.as_deref_mut()),
        };
        let factors = &self.factors[mt - self.rows.start..];
        let end = Tile { place, factors, row: mt, tall: tiles * tall };
        let at = packed_at(mr, &self.rows, self.deep, kb, mt);
        let panels = (&self.packed[at.start..at.start + tiles * at.len()], panel);
        // SAFETY: the level was detected on this machine; a task alone writes its rows × columns of the output.
        unsafe {
            let written = (self.micro)((tall, kc, tiles), panels, sums, more, &soon, last.then_some(&end));
            if last && !written {
                for (i, sums) in sums.chunks_exact(tall * nr).enumerate() {
                    finish(sums, &Tile { place, factors: &factors[i * tall..], row: mt + i * tall, tall });
                }
            }
        }
    }
}
