//! The micro-kernel of the products: like [`crate::gemm`]'s, but for a left operand whose rows are 16 values wide and
//! lie one after the other, as the input transform writes them.

use crate::lanes::{Lanes, on_lanes};
use crate::level::by_height;
pub(super) use crate::level::{tile_columns as columns, tile_rows as rows};
use crate::share::{soon_used, soon_written};
use crate::words::{Words, on_words};

/// Channels that one row of the left operand holds before the next row follows.
pub(super) const CHUNK: usize = 16;

/// The left operands and the results of a product: tiles of one height.
#[derive(Clone, Copy)]
pub(super) struct Tiles {
    pub count: usize,
    pub height: usize,
    /// Of each tile: `[chunks][rows(level)][CHUNK values]`, so many words after the one before.
    pub a: *const f32,
    pub apart: usize,
    pub chunks: usize,
    /// Rows of two vectors, `stride` apart, those of one tile after those of the one before: the sums are added to what is there,
    /// or replace it.
    pub to: *mut f32,
    pub stride: usize,
    pub add: bool,
}

/// A row of them.
const ZEROS: &[f32; 32] = &[0.0; 32];

impl Tiles {
    /// What the sums are added to, and how far apart its rows are: without a branch, which would keep sums in memory on either
    /// side.
    #[inline(always)]
    fn before(&self) -> (*const f32, usize) {
        if self.add { (self.to, self.stride) } else { (ZEROS.as_ptr(), 0) }
    }
}

on_lanes! {
    /// `to[r][..] = or += Σₖ a[k / 16][r][k % 16] · b[k][..]` for each row r of each tile, `k < 16 · chunks`.
    ///
    /// `b` is `[16 · chunks][columns(level)]`. What follows the tile in `a`, wherever it is, is fetched meanwhile, as its part of `to`.
    ///
    /// # Safety
    /// The memory described must be there, and that of `to` belong to the caller alone.
    pub(super) fn multiply(tiles: &Tiles, b: *const f32) = multiply_on
}

on_words! {
    /// The same over words of two i16, `b` `[8 · chunks][columns(level)]`; sums are exact and times the factor of their row and of
    /// their column.
    ///
    /// # Safety
    /// As [`multiply`], with a factor for each row of all tiles, and `columns(level)` of columns.
    pub(super) fn multiply_i16(
        tiles: &Tiles, b: *const f32, row_factors: *const f32, column_factors: *const f32,
    ) = multiply_i16_on
}

/// Values in a line of the cache.
const LINE: usize = 16;

/// Fetches line `k` of `next` and, in the first steps of all, a row of `to` (two lines at most).
#[inline(always)]
fn soon(next: *const f32, to: *mut f32, stride: usize, rows: usize, step: usize, k: usize) {
    soon_used(next.wrapping_add(k * LINE));
    if step < rows {
        let row = to.wrapping_add(step * stride);
        soon_written(row);
        soon_written(row.wrapping_add(LINE));
    }
}

/// `$do` for each row `$r` of fourteen at most: written out, for the compiler leaves a loop of so much as one, and then the sums are
/// not in registers.
macro_rules! each_row {
    ($rows:ident, $r:ident => $do:block) => {
        each_row!($rows, $r => $do, 0 1 2 3 4 5 6 7 8 9 10 11 12 13)
    };
    ($rows:ident, $r:ident => $do:block, $($n:literal)*) => {
        $(if $n < $rows {
            let $r: usize = $n;
            $do
        })*
    };
}

#[inline(always)]
unsafe fn multiply_i16_on<V: Words>(
    tiles: &Tiles,
    b: *const f32,
    row_factors: *const f32,
    column_factors: *const f32,
) {
    by_height!(tiles.height, rows(V::LEVEL), ROWS => {
        // SAFETY: the caller's promises.
        unsafe { tiles_i16::<V, ROWS>(tiles, b, row_factors, column_factors) }
    })
}

#[inline(always)]
unsafe fn tiles_i16<V: Words, const ROWS: usize>(
    tiles: &Tiles,
    b: *const f32,
    mut row_factors: *const f32,
    column_factors: *const f32,
) {
    const WORDS: usize = CHUNK / 2;
    let &Tiles { count, apart, chunks, stride, mut a, mut to, .. } = tiles;
    let (mut before, before_stride) = tiles.before();
    // SAFETY: the caller's promises of memory; a level's function is only reached where it was detected.
    unsafe {
        for _ in 0..count {
            let mut sum = [[V::splat(0.0); 2]; ROWS];
            let (mut left, mut next, mut b) = (a, a.wrapping_add(apart), b);
            for chunk in 0..chunks {
                for k in 0..WORDS {
                    soon(next, to, stride, ROWS, chunk * WORDS + k, k);
                    let right = [V::load(b), V::load(b.add(V::WIDTH))];
                    for (r, sum) in sum.iter_mut().enumerate() {
                        let left = V::splat(*left.add(r * WORDS + k));
                        sum[0] = sum[0].dot_i16(left, right[0]);
                        sum[1] = sum[1].dot_i16(left, right[1]);
                    }
                    b = b.add(2 * V::WIDTH);
                }
                left = left.add(rows(V::LEVEL) * WORDS);
                next = next.wrapping_add(rows(V::LEVEL) * WORDS);
            }
            each_row!(ROWS, r => {
                let row = V::splat(*row_factors.add(r));
                for h in 0..2 {
                    let sum = sum[r][h].whole_to_f32().mul(V::load(column_factors.add(h * V::WIDTH)));
                    let before = V::load(before.add(r * before_stride + h * V::WIDTH));
                    sum.mul_add(row, before).store(to.add(r * stride + h * V::WIDTH));
                }
            });
            a = a.wrapping_add(apart);
            to = to.wrapping_add(ROWS * stride);
            before = before.wrapping_add(ROWS * before_stride);
            row_factors = row_factors.wrapping_add(ROWS);
        }
    }
}

#[inline(always)]
unsafe fn multiply_on<V: Lanes>(tiles: &Tiles, b: *const f32) {
    by_height!(tiles.height, rows(V::LEVEL), ROWS => {
        // SAFETY: the caller's promises.
        unsafe { tiles_f32::<V, ROWS>(tiles, b) }
    })
}

#[inline(always)]
unsafe fn tiles_f32<V: Lanes, const ROWS: usize>(tiles: &Tiles, b: *const f32) {
    let &Tiles { count, apart, chunks, stride, mut a, mut to, .. } = tiles;
    let (mut before, before_stride) = tiles.before();
    // SAFETY: the caller's promises of memory; a level's function is only reached where it was detected.
    unsafe {
        for _ in 0..count {
            let mut sum = [[V::splat(0.0); 2]; ROWS];
            let (mut left, mut next, mut b) = (a, a.wrapping_add(apart), b);
            for chunk in 0..chunks {
                for k in 0..CHUNK {
                    soon(next, to, stride, ROWS, chunk * CHUNK + k, k);
                    let right = [V::load(b), V::load(b.add(V::WIDTH))];
                    for (r, sum) in sum.iter_mut().enumerate() {
                        let left = V::splat(*left.add(r * CHUNK + k));
                        sum[0] = left.mul_add(right[0], sum[0]);
                        sum[1] = left.mul_add(right[1], sum[1]);
                    }
                    b = b.add(2 * V::WIDTH);
                }
                left = left.add(rows(V::LEVEL) * CHUNK);
                next = next.wrapping_add(rows(V::LEVEL) * CHUNK);
            }
            for (r, sum) in sum.iter().enumerate() {
                for (h, sum) in sum.iter().enumerate() {
                    let before = V::load(before.add(r * before_stride + h * V::WIDTH));
                    before.add(*sum).store(to.add(r * stride + h * V::WIDTH));
                }
            }
            a = a.wrapping_add(apart);
            to = to.wrapping_add(ROWS * stride);
            before = before.wrapping_add(ROWS * before_stride);
        }
    }
}
