//! Lines of the cache that the processor is told to fetch during a product.

use super::quantiser::Quantiser;
use super::{LINE, Left, Right, columns};
use crate::share::soon_used;
use std::cell::Cell;
use std::ops::Range;

/// Runs of a tile's own: its part of the output, and of what is added to it.
pub(super) const OWN: usize = 2;
/// Those of what is packed or multiplied next, at most.
pub(super) const RUNS: usize = 4;
/// Those of a tile's sums, and of as many rows as it has, two in each.
pub(super) const AFTER: usize = 7 + 1;

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

    /// Those of these bytes for one tile, those of `then`, if there are such, for the next one, and so on; with each as many that are as
    /// far from it as `with` is.
    pub fn of(bytes: &[u8], then: &[u8], with: &[u8]) -> Self {
        let start = bytes.as_ptr();
        let to = |b: &[u8]| if b.is_empty() { 0 } else { b.as_ptr().addr().wrapping_sub(start.addr()) };
        let lines = bytes.len().div_ceil(4 * LINE);
        Run { step: to(then), stride: 4 * LINE, also: to(with), lines, ..Run::none(start.cast()) }
    }

    /// Those that words from `k0` on, so many, of these rows are packed from, if they are known: in each run those of two rows. Gives
    /// the number of runs.
    pub fn of_rows<L: Left>(a: &L, rows: Range<usize>, (k0, kc): (usize, usize), runs: &mut [Run]) -> usize {
        let (n, per) = (rows.len(), L::PRECISION.per_word());
        let source = a.source(rows);
        let (row, half) = (source.len() / n, n.div_ceil(2));
        if source.is_empty() || half > runs.len() {
            return 0;
        }
        for (r, run) in runs[..half].iter_mut().enumerate() {
            let start = source.as_ptr().wrapping_add(r * row + k0 * per);
            let also = if r + half < n { half * row * 4 } else { 0 };
            *run = Run { stride: 4 * LINE, also, lines: (kc * per).div_ceil(LINE), ..Run::none(start) };
        }
        half
    }

    /// Those that block `kb` of columns of the panel at `n0` is packed from: of the first half these, as many as there are runs, for the
    /// next tile as many after them, each with the one as far on in the second half.
    #[inline(always)]
    pub fn of_columns<R: Right>(b: &R, (kb, n0): (usize, usize), first: Range<usize>, runs: &mut [Run]) {
        let (nr, count) = (columns(), runs.len());
        let at = |c| b.source(kb, n0, c, nr);
        for (c, run) in first.zip(runs) {
            *run = Run::of(at(c), at(c + count), at(c + nr / 2));
        }
    }

    /// Takes the next so many of `words` for each of `tiles`: for all of them as many lines, maybe some beyond the end.
    #[inline(always)]
    pub fn first_of(words: &mut &[f32], each: usize, tiles: usize) -> Self {
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
    /// The tile's own lines, and those of what is packed or multiplied next.
    pub runs: &'a [Run; OWN + RUNS],
    /// Its sums, where they are not near, and what is packed right after it.
    pub after: &'a [Run],
    /// What quantises the next rows meanwhile, if the micro-kernel can.
    pub quantiser: Cell<Option<&'a mut Quantiser<'q>>>,
}

impl Soon<'_, '_> {
    /// All at once.
    pub fn fetch(&self) {
        self.runs.iter().chain(self.after).for_each(|run| run.fetch(0));
    }
}
