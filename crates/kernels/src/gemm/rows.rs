//! Rows of A, cut into tiles and packed.

use super::{Blocks, LINE, Left, Precision, by_amx, tall};
use crate::share::{Shared, soon};
use std::ops::Range;

/// Rows of A, packed.
pub(super) enum Packed<'a> {
    /// Block by block of the shared dimension.
    All(&'a [f32]),
    /// One block: the next one takes its place.
    One(&'a mut [f32]),
}

/// How rows are cut into tiles.
#[derive(Clone, Copy)]
pub(super) struct Tiling {
    /// Rows of each, but for the last ones.
    pub mr: usize,
    /// The last two have as many rows each, if the last one would have few: their sums would wait for each other.
    even: bool,
}

impl Tiling {
    /// Those of the level in use. Where rows are quantised `meanwhile` the last one is shorter, and AMX multiplies few rows in as
    /// little time as 16.
    pub fn of(precision: Precision, meanwhile: bool) -> Self {
        Tiling { mr: tall(precision), even: !meanwhile && !by_amx(precision) }
    }

    /// The rows of the tile of `rows` at row `mt`.
    pub fn tile(self, rows: &Range<usize>, mt: usize) -> Range<usize> {
        let left = rows.end - mt;
        let few = self.even && left > self.mr && left < self.mr + FEWEST;
        mt..mt + if few { left.div_ceil(2) } else { left.min(self.mr) }
    }

    /// Whole tiles at the beginning of so many rows, or one.
    pub fn whole(self, rows: usize) -> usize {
        let whole = rows / self.mr;
        let few = self.even && (1..FEWEST).contains(&(rows % self.mr));
        (whole - if few && whole > 0 { 1 } else { 0 }).max(1)
    }

    /// One after the other.
    pub fn tiles(self, rows: Range<usize>) -> impl Iterator<Item = Range<usize>> {
        let mut mt = rows.start;
        std::iter::from_fn(move || {
            let tile = (mt < rows.end).then(|| self.tile(&rows, mt))?;
            mt = tile.end;
            Some(tile)
        })
    }
}

/// Rows of a tile at which as many sums are added to in turns as one takes cycles.
const FEWEST: usize = 4;

/// Where block `kb` of this tile is among packed `rows`, whose blocks of `deep` words lie one after the other.
pub(super) fn packed_at(rows: &Range<usize>, deep: usize, kb: usize, tile: &Range<usize>) -> Range<usize> {
    let at = (rows.len() * kb + (tile.start - rows.start)) * deep;
    at..at + tile.len() * deep
}

/// Values of rows that are packed at a time: half of a first-level cache.
const GROUP: usize = 6 << 10;

/// Packs all blocks of this tile of `rows`, and writes their factors. What is `cold` was written by another thread,
/// and its place read by one: both are fetched before.
///
/// # Safety
/// No other thread may use the tile's parts of `packed` and `factors` meanwhile.
pub(super) unsafe fn pack_tile<L: Left>(
    a: &L,
    blocks: &Blocks,
    rows: Range<usize>,
    tile: Range<usize>,
    packed: Shared,
    factors: Shared,
    cold: bool,
) {
    let (mt, tall) = (tile.start, tile.len());
    let deep = blocks.deepest(L::PRECISION);
    let place = |kb| packed_at(&rows, deep, kb, &tile);
    // SAFETY: the caller's promise.
    let factors = unsafe { factors.part(mt - rows.start, tall) };
    // What is quantised is read twice: as many rows at a time as stay in the first-level cache. Else all, for lines of one row
    // may be a power of two apart.
    let per = blocks.words() * L::PRECISION.per_word();
    let group = if L::PRECISION == Precision::Int8 { (GROUP / per.max(1)).clamp(1, tall) } else { tall };
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

/// Packs block `kb` of these rows, a tile that needs no factors.
pub(super) fn pack_block<L: Left>(a: &L, kb: usize, rows: Range<usize>, out: &mut [f32]) {
    let stride = rows.len() * LINE;
    for (r, row) in rows.enumerate() {
        a.pack(kb, row, 1.0, &mut out[r * LINE..], stride);
    }
}
