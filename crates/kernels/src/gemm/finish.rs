//! What happens to the finished sums of a tile on their way to the output.

use crate::act::{Activation, gelu_of, quick_gelu_of, silu_of};
use crate::level::per_level;
use crate::share::Shared;

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

/// Columns finished at a time: one vector of AVX-512. By value, so that the compiler keeps them in registers.
const LANES: usize = 16;
type Lanes = [f32; LANES];

/// `LANES` values from `start` on; the last ones, beyond the end, are 0.
#[inline(always)]
fn load<T: Copy + Default>(x: &[T], start: usize) -> [T; LANES] {
    match x[start..].first_chunk() {
        Some(whole) => *whole,
        None => {
            let mut lanes = [T::default(); LANES];
            lanes.iter_mut().zip(&x[start..]).for_each(|(l, x)| *l = *x);
            lanes
        }
    }
}

/// Not `array::map`: what it calls does not inherit the instruction set, and each `mul_add` would become a call.
#[inline(always)]
fn map(mut x: Lanes, f: impl Fn(f32) -> f32) -> Lanes {
    x.iter_mut().for_each(|x| *x = f(*x));
    x
}

#[inline(always)]
fn add(mut x: Lanes, y: Lanes) -> Lanes {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
    x
}

/// Sums of the columns from `start` on, from bits of i32 to numbers where they are quantised, and the bias.
#[inline(always)]
fn biased(mut x: Lanes, epilogue: &Epilogue, factor: f32, start: usize) -> Lanes {
    if let Some((factors, zeros)) = epilogue.columns {
        let (factors, zeros) = (load(factors, start), load(zeros, start));
        for i in 0..LANES {
            x[i] = (x[i].to_bits() as i32).wrapping_sub(zeros[i]) as f32 * (factors[i] * factor);
        }
    }
    match epilogue.bias {
        Some(bias) => add(x, load(bias, start)),
        None => x,
    }
}

per_level! {
    /// Finishes a tile and writes it.
    pub(super) fn finish(epilogue: &Epilogue, tile: &Tile) {
        let &Tile { sums, nr, factors, row, column, width, stride, out } = tile;
        for (r, sums) in sums.chunks_exact(nr).enumerate() {
            let at = (row + r) * stride + column;
            let factor = factors[r];
            // SAFETY: nobody else uses this part of the output.
            let out = unsafe { out.part(at, width) };
            for c in (0..width).step_by(LANES) {
                let mut x = biased(load(sums, c), epilogue, factor, column + c);
                match epilogue.then {
                    Then::Keep => {}
                    Then::Activate(Activation::Silu) => x = map(x, silu_of),
                    Then::Activate(Activation::Gelu) => x = map(x, gelu_of),
                    Then::Activate(Activation::QuickGelu) => x = map(x, quick_gelu_of),
                    Then::Gate => {
                        let gates = biased(load(sums, nr / 2 + c), epilogue, factor, column + stride + c);
                        let gates = map(gates, gelu_of);
                        x.iter_mut().zip(gates).for_each(|(x, gate)| *x *= gate);
                    }
                }
                if let Some(residual) = epilogue.residual {
                    x = add(x, load(&residual[..at + width], at + c));
                }
                match out[c..].first_chunk_mut() {
                    Some(out) => *out = x,
                    None => out[c..].iter_mut().zip(x).for_each(|(o, x)| *o = x),
                }
            }
        }
    }
}
