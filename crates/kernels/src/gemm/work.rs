//! A product at work: tasks of rows and columns, in each blocks of rows of A, in each tiles.

use super::finish::{Place, Tile, finish};
use super::quantiser::Quantiser;
use super::rows::{Packed, Tiling, pack_block, pack_tile, packed_at};
use super::soon::{AFTER, OWN, RUNS, Run, Soon};
use super::{
    Blocks, LEFT, LINE, Left, MC, Micro, NC, Precision, Right, SCRATCH, SMALL, Target, aligned, by_amx,
    by_block, columns, goes_on, micro, tall, target,
};
#[cfg(target_arch = "x86_64")]
use crate::amx::Session;
use crate::share::{Shared, each};
use std::cell::Cell;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Columns whose sums wait beside a block of so many rows: whole panels. The rows are read once for them.
fn waiting(rows: usize) -> usize {
    let nr = columns();
    (MC * NC / rows.max(MC)).max(nr) / nr * nr
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
    let most = (tiles.div_ceil(down) * mr).min(m);
    let by_block = by_block(a, blocks, most, cols.len().div_ceil(across));
    // Where all tasks have the same rows, these are packed once.
    let mut left = LEFT.take();
    let mut ready = None;
    if down == 1 && across > 1 && !by_block {
        let words = m * blocks.room(L::PRECISION);
        let (packed, factors) = aligned(&mut left, words + m).split_at_mut(words);
        let (to, of) = (Shared::new(packed), Shared::new(factors));
        let all: Vec<_> = Tiling::of(L::PRECISION, false).tiles(0..m).collect();
        // SAFETY: each tile has its own part.
        each(tiles, |t| unsafe { pack_tile(a, blocks, 0..m, all[t].clone(), to, of, true) });
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
        serial((&mut rows, most), (meanwhile, by_block), part, blocks, a, b, targets, ready, &mut scratch);
        SCRATCH.set(scratch);
    });
    LEFT.set(left);
}

/// Part `p` of `parts` of `0..n`, in units of `unit`.
fn span(n: usize, unit: usize, parts: usize, p: usize) -> Range<usize> {
    let units = n.div_ceil(unit);
    (units * p / parts * unit).min(n)..(units * (p + 1) / parts * unit).min(n)
}

/// Rows × columns of the outputs on this thread, block by block of at most so many rows; columns are counted as the panels have
/// them. `ready` has the rows packed, with their factors, where they are. The next ones can be quantised meanwhile, or all be packed
/// `by_block`.
#[allow(clippy::too_many_arguments)]
fn serial<L: Left, R: Right>(
    (all, most): (&mut dyn Iterator<Item = Range<usize>>, usize),
    (quantises, by_block): (bool, bool),
    cols: Range<usize>,
    blocks: &Blocks,
    a: &L,
    b: &R,
    targets: &[Target],
    ready: Option<(&[f32], &[f32])>,
    (pa, pb): &mut (Vec<f32>, Vec<f32>),
) {
    let (tiling, nr) = (Tiling::of(L::PRECISION, quantises), columns());
    #[cfg(target_arch = "x86_64")]
    let _tiles = Session::begin();
    let deep = blocks.deepest(L::PRECISION);
    let words = if by_block { deep } else { blocks.room(L::PRECISION) };
    let panel = aligned(pb, blocks.0.iter().copied().max().unwrap_or(0) * nr);
    // The sums of tiles, rows packed with their factors, and as much again where the next ones are quantised meanwhile.
    let own = if ready.is_some() { 0 } else { (most * (words + 1)).next_multiple_of(LINE) };
    let wide = if by_block { cols.len().next_multiple_of(nr) } else { waiting(most) };
    let (sums, rest) =
        aligned(pa, most * wide + own * if quantises { 2 } else { 1 }).split_at_mut(most * wide);
    let (mut here, mut there) = rest.split_at_mut(own);
    let mut now = all.next();
    let mut quantised = false;
    while let Some(rows) = now {
        let later = all.next();
        let (packed, factors) = match ready {
            Some((packed, factors)) => (Packed::All(packed), factors),
            None => {
                let (packed, factors) = parts(here, rows.len(), most, words);
                if by_block {
                    for tile in tiling.tiles(rows.clone()) {
                        let at = packed_at(&rows, deep, 0, &tile);
                        pack_block(a, 0, tile, &mut packed[at]);
                    }
                    factors.fill(1.0);
                } else if !quantised {
                    let (packed, factors) = (Shared::new(&mut *packed), Shared::new(&mut *factors));
                    // SAFETY: only this thread has them.
                    tiling.tiles(rows.clone()).for_each(|tile| unsafe {
                        pack_tile(a, blocks, rows.clone(), tile, packed, factors, false);
                    });
                }
                (if by_block { Packed::One(packed) } else { Packed::All(packed) }, &*factors)
            }
        };
        let mut quantiser = match &later {
            Some(later) if quantises => {
                // Of each tile the last few words are multiplied while it is finished.
                let panels = rows.len() / tiling.mr * cols.len().div_ceil(nr);
                let meanwhile = (panels * blocks.words() / 16 * 15, panels * blocks.0.len());
                let to = parts(there, later.len(), most, words);
                a.quantiser(later.clone(), deep, to, meanwhile)
            }
            _ => None,
        };
        // The rows below these, which this thread may have next.
        let below = rows.end..rows.end + rows.len();
        let next =
            if by_block || quantiser.is_some() { &[] } else { a.source(later.clone().unwrap_or(below)) };
        let of = Block {
            rows,
            tiling,
            deep,
            micro: micro(L::PRECISION),
            packed,
            sums: &mut *sums,
            factors,
            next,
            quantiser: quantiser.as_mut(),
            narrow: L::PRECISION != Precision::F32,
            goes: goes_on(L::PRECISION),
            fetches: !by_amx(L::PRECISION),
        };
        of.all(cols.clone(), wide, blocks, a, b, targets, panel);
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

/// Rows of A at work.
struct Block<'a, 'q> {
    rows: Range<usize>,
    tiling: Tiling,
    micro: Micro,
    /// The rows, packed, and words of them in a block.
    deep: usize,
    packed: Packed<'a>,
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
    /// The micro-kernel goes over several tiles, and is told what is used next.
    goes: bool,
    fetches: bool,
}

impl Block<'_, '_> {
    /// All columns `cols`, of which the sums of `wide` wait at a time.
    #[allow(clippy::too_many_arguments)]
    fn all<L: Left, R: Right>(
        mut self,
        cols: Range<usize>,
        wide: usize,
        blocks: &Blocks,
        a: &L,
        b: &R,
        targets: &[Target],
        room: &mut [f32],
    ) {
        let nr = columns();
        let rows = self.rows.clone();
        let tiles = rows.len().div_ceil(self.tiling.mr);
        let products = cols.len().div_ceil(nr) * tiles * blocks.0.len();
        let lines = self.next.len().div_ceil(LINE).div_ceil(products);
        let alone = blocks.0.len() == 1;
        // Columns of the next panel, in each half, whose weights are fetched during each tile's product, beside what packing fetches.
        let half = nr / 2;
        let ahead = half.div_ceil(tiles);
        let ahead = if b.is_packed() || ahead > RUNS { 0 } else { ahead };
        // All whole tiles in one go, or one by one.
        let whole = if self.goes { self.tiling.whole(rows.len()) } else { 1 };
        let none = Run::none(std::ptr::null());
        let (mut runs, mut after) = ([none; OWN + RUNS], [none; AFTER]);
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
                    // With its last panel each tile gives its place to the next block.
                    let next = match (&self.packed, later) {
                        (Packed::One(_), Some((next, k0, _))) if next != kb => Some((next, k0)),
                        _ => None,
                    };
                    let mut mt = rows.start;
                    let mut i = 0;
                    while mt < rows.end {
                        let tile = self.tiling.tile(&rows, mt);
                        let count = if i == 0 && next.is_none() { whole } else { 1 };
                        let mut used = 0;
                        if self.fetches {
                            runs[OWN] = Run::first_of(&mut self.next, lines * LINE, count);
                            runs[OWN + 1] = Run::first_of(&mut coming, share, count);
                            if let (true, Some((kb, _, nt))) = (ahead > 0, later) {
                                runs[OWN..].fill(none);
                                Run::of_columns(b, (kb, nt), i * ahead..half, &mut runs[OWN..OWN + ahead]);
                            }
                            // One for the sums.
                            used = if matches!(self.packed, Packed::One(_)) { 1 } else { 0 };
                            if let Some((kb, k0)) = next {
                                used += Run::of_rows(a, tile.clone(), (k0, blocks.0[kb]), &mut after[used..]);
                            }
                        }
                        // Sums that wait for no other block take the same place again.
                        let wait = if alone { 0 } else { (nt - n0) * rows.len() + (mt - rows.start) * nr };
                        self.multiply(
                            (kb, kc),
                            (kb > 0, last),
                            panel,
                            &place,
                            (&tile, count),
                            wait,
                            (&mut runs, &mut after[..used]),
                        );
                        (mt, i) = (mt + count * tile.len(), i + count);
                        if let (Packed::One(packed), Some((next, _))) = (&mut self.packed, next) {
                            let at = packed_at(&rows, self.deep, 0, &tile);
                            pack_block(a, next, tile, &mut packed[at]);
                        }
                    }
                }
            }
        }
    }

    /// Multiplies the `kc` words of block `kb` of this tile, and of some more after it, by a panel, several only if they are whole; their sums
    /// are at `wait`, those of `more` blocks before are there already. After the `last` block the tiles are written.
    #[allow(clippy::too_many_arguments)]
    fn multiply(
        &mut self,
        (kb, kc): (usize, usize),
        (more, last): (bool, bool),
        panel: &[f32],
        place: &Place,
        (tile, tiles): (&Range<usize>, usize),
        wait: usize,
        (runs, after): (&mut [Run; OWN + RUNS], &mut [Run]),
    ) {
        let nr = columns();
        let (mt, tall) = (tile.start, tile.len());
        let sums = &mut self.sums[wait..][..tiles * tall * nr];
        let at = mt * place.stride + place.column;
        if self.fetches {
            // Of the last block's tiles the rows, of one line of the cache or two.
            let run = |start: *const f32| Run {
                step: tall * place.stride * 4,
                stride: place.stride * 4,
                also: if place.width > LINE { 4 * LINE } else { 0 },
                lines: if last { tall } else { 0 },
                ..Run::none(start)
            };
            let added = place
                .epilogue
                .residual
                .map_or(Run::none(panel.as_ptr()), |all| run(all.as_ptr().wrapping_add(at)));
            (runs[0], runs[1]) = (run(place.out.line(at)), added);
            if let [first, ..] = after {
                let lines = if more || !last { tall * nr / LINE } else { 0 };
                let sums = Run { step: tall * nr * 4, stride: 4 * LINE, lines, ..Run::none(sums.as_ptr()) };
                *first = sums;
            }
        }
        let soon = Soon { runs, after, quantiser: Cell::new(self.quantiser.as_deref_mut()) };
        let factors = &self.factors[mt - self.rows.start..];
        let end = Tile { place, factors, row: mt, tall: tiles * tall };
        let (packed, kb) = match &self.packed {
            Packed::All(packed) => (*packed, kb),
            Packed::One(packed) => (&**packed, 0),
        };
        let at = packed_at(&self.rows, self.deep, kb, tile);
        let panels = (&packed[at.start..at.start + tiles * at.len()], panel);
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
