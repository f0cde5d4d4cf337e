//! The micro-kernel of the products: like [`crate::gemm`]'s, but for a left operand whose rows are 16 values wide and
//! lie one after the other, as the input transform writes them.

use crate::lanes::{Lanes, on_lanes};
use crate::level::Level;

/// Channels that one row of the left operand holds before the next row follows.
pub(super) const CHUNK: usize = 16;

/// Rows of the register tile at a level: with two vectors of columns it fills the registers.
pub(super) fn rows(level: Level) -> usize {
    match level {
        Level::Avx512 => 14,
        Level::Avx2 => 6,
        Level::Scalar => 4,
    }
}

/// Columns of the register tile: two vectors.
pub(super) fn columns(level: Level) -> usize {
    match level {
        Level::Avx512 => 32,
        Level::Avx2 | Level::Scalar => 16,
    }
}

on_lanes! {
    /// `to[r][..] = or += Σₖ a[k / 16][r][k % 16] · b[k][..]` for `r < height`, `k < 16 · chunks`.
    ///
    /// `a` is `[chunks][rows(level)][16]`, `b` `[16 · chunks][columns(level)]`; rows of `to` are `stride` apart.
    ///
    /// # Safety
    /// The memory described must be there, and that of `to` belong to the caller alone.
    pub(super) fn multiply(
        height: usize, chunks: usize, a: *const f32, b: *const f32, to: *mut f32, stride: usize, add: bool,
    ) = multiply_on
}

#[inline(always)]
unsafe fn multiply_on<V: Lanes>(
    height: usize,
    chunks: usize,
    a: *const f32,
    b: *const f32,
    to: *mut f32,
    stride: usize,
    add: bool,
) {
    macro_rules! tile {
        ($($n:literal)*) => {
            match height {
                // SAFETY: the caller's promises.
                $($n if $n <= rows(V::LEVEL) => unsafe { tile_of::<V, $n>(chunks, a, b, to, stride, add) },)*
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
    mut b: *const f32,
    to: *mut f32,
    stride: usize,
    add: bool,
) {
    // SAFETY: the caller's promises of memory; a level's function is only reached where it was detected.
    unsafe {
        let mut sum = [[V::splat(0.0); 2]; ROWS];
        for _ in 0..chunks {
            for k in 0..CHUNK {
                let right = [V::load(b), V::load(b.add(V::WIDTH))];
                for (r, sum) in sum.iter_mut().enumerate() {
                    let left = V::splat(*a.add(r * CHUNK + k));
                    sum[0] = left.mul_add(right[0], sum[0]);
                    sum[1] = left.mul_add(right[1], sum[1]);
                }
                b = b.add(2 * V::WIDTH);
            }
            a = a.add(rows(V::LEVEL) * CHUNK);
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
