//! A product at work: tasks of rows and columns, in each blocks of rows of A, in each tiles.

use super::finish::{Tile, finish};
use super::{
    Blocks, LEFT, Left, MC, Micro, NC, Precision, Right, SCRATCH, SMALL, Target, Then, aligned, micro,
    target, tile,
};
use crate::share::{Shared, each, soon_used};
use std::ops::Range;

/// Values in a line of the cache.
const LINE: usize = 16;

/// Columns whose sums wait beside a block of so many rows: whole panels.
fn waiting(rows: usize) -> usize {
    let nr = tile().1;
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
pub(super) struct Run {
    start: *const f32,
    pub lines: usize,
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
    pub fn soon(&self, line: usize) {
        soon_used(self.start.wrapping_add(line * LINE));
    }
}

/// What is used after the product of a tile: the processor may fetch it meanwhile.
pub(super) struct Soon<'a> {
    /// The tile's part of the output, and of what is added to it; so many rows, this far apart, of one line of the cache or
    /// two.
    out: *const f32,
    residual: Option<*const f32>,
    stride: usize,
    wide: bool,
    pub rows: usize,
    /// What will be packed next.
    pub runs: &'a [Run; RUNS],
}

impl Soon<'_> {
    #[inline(always)]
    pub fn row(&self, r: usize) {
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
    pub fn fetch(&self) {
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
