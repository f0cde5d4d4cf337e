//! The micro-kernel of the products: like [`crate::gemm`]'s, but for a left operand whose rows are 16 values wide and
//! lie one after the other, as the input transform writes them.

use crate::lanes::{Lanes, on_lanes};
pub(super) use crate::level::{tile_columns as columns, tile_rows as rows};
use crate::share::{soon_used, soon_written};
use crate::words::{Words, on_words};

/// Channels that one row of the left operand holds before the next row follows.
pub(super) const CHUNK: usize = 16;

on_lanes! {
    /// `to[r][..] = or += Σₖ a[k / 16][r][k % 16] · b[k][..]` for `r < height`, `k < 16 · chunks`.
    ///
    /// `a` is `[chunks][rows(level)][16]`, `b` `[16 · chunks][columns(level)]`; rows of `to` are `stride` apart. `next` is the
    /// left operand that follows: like `to`, it is fetched meanwhile, wherever it is.
    ///
    /// # Safety
    /// The memory described must be there, and that of `to` belong to the caller alone.
    pub(super) fn multiply(
        height: usize, chunks: usize, a: *const f32, next: *const f32, b: *const f32, to: *mut f32, stride: usize,
        add: bool,
    ) = multiply_on
}

on_words! {
    /// The same over words of two i16, `a` `[chunks][rows(level)][8]` and `b` `[8 · chunks][columns(level)]`; sums are exact
    /// and times the factor of their row and of their column.
    ///
    /// # Safety
    /// As [`multiply`], with `height` factors of rows and `columns(level)` of columns.
    pub(super) fn multiply_i16(
        height: usize, chunks: usize, a: *const f32, next: *const f32, b: *const f32, to: *mut f32, stride: usize,
        add: bool, row_factors: *const f32, column_factors: *const f32,
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

#[allow(clippy::too_many_arguments)]
#[inline(always)]
unsafe fn multiply_i16_on<V: Words>(
    height: usize,
    chunks: usize,
    a: *const f32,
    next: *const f32,
    b: *const f32,
    to: *mut f32,
    stride: usize,
    add: bool,
    row_factors: *const f32,
    column_factors: *const f32,
) {
    macro_rules! tile {
        ($($n:literal)*) => {
            match height {
                // SAFETY: the caller's promises.
                $($n if $n <= rows(V::LEVEL) => unsafe {
                    tile_of_i16::<V, $n>(chunks, a, next, b, to, stride, add, row_factors, column_factors)
                },)*
                _ => unreachable!("a tile has at most {} rows", rows(V::LEVEL)),
            }
        };
    }
    tile!(1 2 3 4 5 6 7 8 9 10 11 12 13 14)
}

#[allow(clippy::too_many_arguments)]
#[inline(always)]
unsafe fn tile_of_i16<V: Words, const ROWS: usize>(
    chunks: usize,
    mut a: *const f32,
    mut next: *const f32,
    mut b: *const f32,
    to: *mut f32,
    stride: usize,
    add: bool,
    row_factors: *const f32,
    column_factors: *const f32,
) {
    const WORDS: usize = CHUNK / 2;
    const MOST_SUMS: usize = 14 * 32;
    // SAFETY: the caller's promises of memory; a level's function is only reached where it was detected.
    unsafe {
        let mut sum = [[V::splat(0.0); 2]; ROWS];
        for chunk in 0..chunks {
            for k in 0..WORDS {
                soon(next, to, stride, ROWS, chunk * WORDS + k, k);
                let right = [V::load(b), V::load(b.add(V::WIDTH))];
                for (r, sum) in sum.iter_mut().enumerate() {
                    let left = V::splat(*a.add(r * WORDS + k));
                    sum[0] = sum[0].dot_i16(left, right[0]);
                    sum[1] = sum[1].dot_i16(left, right[1]);
                }
                b = b.add(2 * V::WIDTH);
            }
            a = a.add(rows(V::LEVEL) * WORDS);
            next = next.wrapping_add(rows(V::LEVEL) * WORDS);
        }
        // By way of memory: a longer end would keep the sums there during the loop above.
        let mut whole = [0f32; MOST_SUMS];
        for (r, sum) in sum.iter().enumerate() {
            for (h, sum) in sum.iter().enumerate() {
                sum.store(whole.as_mut_ptr().add((2 * r + h) * V::WIDTH));
            }
        }
        for r in 0..ROWS {
            let row = V::splat(*row_factors.add(r));
            for h in [0, V::WIDTH] {
                let (to, whole) = (to.add(r * stride + h), whole.as_ptr().add(2 * r * V::WIDTH + h));
                let sum = V::load(whole).whole_to_f32().mul(V::load(column_factors.add(h)));
                let sum = if add { sum.mul_add(row, V::load(to)) } else { sum.mul(row) };
                sum.store(to);
            }
        }
    }
}

#[inline(always)]
unsafe fn multiply_on<V: Lanes>(
    height: usize,
    chunks: usize,
    a: *const f32,
    next: *const f32,
    b: *const f32,
    to: *mut f32,
    stride: usize,
    add: bool,
) {
    macro_rules! tile {
        ($($n:literal)*) => {
            match height {
                // SAFETY: the caller's promises.
                $($n if $n <= rows(V::LEVEL) => unsafe { tile_of::<V, $n>(chunks, a, next, b, to, stride, add) },)*
                _ => unreachable!("a tile has at most {} rows", rows(V::LEVEL)),
            }
        };
    }
    tile!(1 2 3 4 5 6 7 8 9 10 11 12 13 14)
}

#[inline(always)]
unsafe fn tile_of<V: Lanes, const ROWS: usize>(
    chunks: usize,
    mut a: *const f32,
    mut next: *const f32,
    mut b: *const f32,
    to: *mut f32,
    stride: usize,
    add: bool,
) {
    // SAFETY: the caller's promises of memory; a level's function is only reached where it was detected.
    unsafe {
        let mut sum = [[V::splat(0.0); 2]; ROWS];
        for chunk in 0..chunks {
            for k in 0..CHUNK {
                soon(next, to, stride, ROWS, chunk * CHUNK + k, k);
                let right = [V::load(b), V::load(b.add(V::WIDTH))];
                for (r, sum) in sum.iter_mut().enumerate() {
                    let left = V::splat(*a.add(r * CHUNK + k));
                    sum[0] = left.mul_add(right[0], sum[0]);
                    sum[1] = left.mul_add(right[1], sum[1]);
                }
                b = b.add(2 * V::WIDTH);
            }
            a = a.add(rows(V::LEVEL) * CHUNK);
            next = next.wrapping_add(rows(V::LEVEL) * CHUNK);
        }
        for (r, sum) in sum.iter().enumerate() {
            for (h, sum) in sum.iter().enumerate() {
                let to = to.add(r * stride + h * V::WIDTH);
                let sum = if add { V::load(to).add(*sum) } else { *sum };
                sum.store(to);
            }
        }
    }
}
