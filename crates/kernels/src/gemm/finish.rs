//! What happens to the finished sums of a tile on their way to the output.

use crate::act::{self, Activation, gelu_lanes};
use crate::lanes::Lanes;
use crate::share::Shared;
use crate::words::{Words, on_words};

/// A function of the sums, after the bias and before the residual.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Then {
    /// None.
    #[default]
    Keep,
    /// An activation.
    Activate(Activation),
    /// GEGLU: the weight's rows are values and gates of as many outputs, `value · gelu(gate)` is written
    /// (Shazeer, arXiv 2002.05202).
    Gate,
}

/// What happens to the finished sums, in this order.
#[derive(Clone, Copy, Default)]
pub(crate) struct Epilogue<'a> {
    /// Factor of each column, and what its sums hold too much: sums of quantised products.
    pub columns: Option<(&'a [f32], &'a [i32])>,
    /// Added to each row, one value per column.
    pub bias: Option<&'a [f32]>,
    /// A function of each value.
    pub then: Then,
    /// `[m, n]`, added element by element.
    pub residual: Option<&'a [f32]>,
}

/// A tile of finished sums and where it goes.
pub(super) struct Tile<'a> {
    /// `[rows][nr]`.
    pub sums: &'a [f32],
    pub nr: usize,
    /// Factors of the rows of A, where they are quantised.
    pub factors: &'a [f32],
    /// First row and column of the output, and how many columns.
    pub row: usize,
    pub column: usize,
    pub width: usize,
    /// Columns of the output.
    pub stride: usize,
    /// The output; the tile's rows and columns are written by one thread alone.
    pub out: Shared<'a>,
}

/// The columns from `start` on; the last ones, beyond the end, are 0.
///
/// # Safety
/// The machine must have the level.
#[inline(always)]
unsafe fn columns<V: Lanes>(x: &[f32], start: usize) -> V {
    let x = x.get(start..).unwrap_or(&[]);
    // SAFETY: what is read is there; the caller promises the level.
    unsafe {
        if x.len() >= V::WIDTH {
            return V::load(x.as_ptr());
        }
        let mut some = [0f32; WIDEST];
        some[..x.len()].copy_from_slice(x);
        V::load(some.as_ptr())
    }
}

/// Values of the widest vector.
const WIDEST: usize = 16;

on_words! {
    /// Finishes a tile and writes it.
    ///
    /// # Safety
    /// The tile's part of the output must be the caller's alone.
    pub(super) fn finish(epilogue: &Epilogue, tile: &Tile) = finish_on
}

#[inline(always)]
unsafe fn finish_on<V: Words>(epilogue: &Epilogue, tile: &Tile) {
    let &Tile { sums, nr, factors, row, column, width, stride, out } = tile;
    let gate = epilogue.then == Then::Gate;
    assert!(
        nr == 2 * V::WIDTH && width <= if gate { V::WIDTH } else { nr } && factors.len() * nr >= sums.len()
    );
    // Two vectors of columns, or one of values and one of their gates.
    let at = [column, column + if gate { stride } else { V::WIDTH }];
    // SAFETY: what is read of sums and columns is there; the rest is the caller's promise.
    unsafe {
        let zero = V::splat(0.0);
        let (mut by, mut zeros, mut bias) = ([zero; 2], [zero; 2], [zero; 2]);
        for i in 0..2 {
            if let Some((factors, sums)) = epilogue.columns {
                by[i] = columns(factors, at[i]);
                zeros[i] = columns(bits(sums), at[i]);
            }
            if let Some(all) = epilogue.bias {
                bias[i] = columns(all, at[i]);
            }
        }
        for (r, sums) in sums.chunks_exact(nr).enumerate() {
            let mut x = [V::load(sums.as_ptr()), V::load(sums.as_ptr().add(V::WIDTH))];
            if epilogue.columns.is_some() {
                let factor = V::splat(factors[r]);
                for i in 0..2 {
                    x[i] = x[i].sub_whole(zeros[i]).whole_to_f32().mul(by[i].mul(factor));
                }
            }
            if epilogue.bias.is_some() {
                x = [x[0].add(bias[0]), x[1].add(bias[1])];
            }
            match epilogue.then {
                Then::Keep => {}
                Then::Activate(activation) => x = [act::of(activation, x[0]), act::of(activation, x[1])],
                Then::Gate => x[0] = x[0].mul(gelu_lanes(x[1])),
            }
            let start = (row + r) * stride + column;
            // The output's part is nobody else's.
            let out = out.part(start, width);
            let residual = epilogue.residual.map(|all| &all[start..start + width]);
            for (i, out) in out.chunks_mut(V::WIDTH).enumerate() {
                let mut x = x[i];
                if let Some(residual) = residual {
                    x = x.add(columns(residual, i * V::WIDTH));
                }
                if out.len() == V::WIDTH {
                    x.store(out.as_mut_ptr());
                } else {
                    let mut all = [0f32; WIDEST];
                    x.store(all.as_mut_ptr());
                    out.copy_from_slice(&all[..out.len()]);
                }
            }
        }
    }
}

/// Whole numbers as the f32 that have their bits.
fn bits(whole: &[i32]) -> &[f32] {
    // SAFETY: the types are alike in size and alignment, and all bits are values of both.
    unsafe { std::slice::from_raw_parts(whole.as_ptr().cast(), whole.len()) }
}
