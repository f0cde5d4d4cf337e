//! What happens to the finished sums of a tile on their way to the output.

use crate::act::{Activation, gelu_lanes, gelu_short_lanes, quick_gelu_lanes, silu_lanes};
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
    /// True if what is written may be off by as much as rounding operands to bf16 makes it.
    pub narrow: bool,
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
    // SAFETY: the caller's promises.
    unsafe {
        match epilogue.then {
            Then::Keep => rows::<V, Keep>(epilogue, tile),
            Then::Activate(Activation::Silu) => rows::<V, Silu>(epilogue, tile),
            Then::Activate(Activation::Gelu) => rows::<V, Gelu>(epilogue, tile),
            Then::Activate(Activation::QuickGelu) => rows::<V, QuickGelu>(epilogue, tile),
            Then::Gate if tile.narrow => rows::<V, ShortGate>(epilogue, tile),
            Then::Gate => rows::<V, Gate>(epilogue, tile),
        }
    }
}

/// A function of two vectors of columns, or of values and their gates: the first result counts.
trait Function {
    fn of<V: Lanes>(x: [V; 2]) -> [V; 2];
}

macro_rules! function {
    ($name:ident, $x:ident => $of:expr) => {
        struct $name;
        impl Function for $name {
            #[inline(always)]
            fn of<V: Lanes>($x: [V; 2]) -> [V; 2] {
                $of
            }
        }
    };
}

function!(Keep, x => x);
function!(Silu, x => [silu_lanes(x[0]), silu_lanes(x[1])]);
function!(Gelu, x => [gelu_lanes(x[0]), gelu_lanes(x[1])]);
function!(QuickGelu, x => [quick_gelu_lanes(x[0]), quick_gelu_lanes(x[1])]);
function!(Gate, x => [x[0].mul(gelu_lanes(x[1])), x[1]]);
function!(ShortGate, x => [x[0].mul(gelu_short_lanes(x[1])), x[1]]);

/// All rows.
///
/// # Safety
/// As [`finish`]; the machine must have the level.
#[inline(always)]
unsafe fn rows<V: Words, F: Function>(epilogue: &Epilogue, tile: &Tile) {
    // SAFETY: the caller's promises.
    unsafe {
        match (epilogue.columns.is_some(), epilogue.residual.is_some()) {
            (false, false) => rows_of::<V, F, false, false>(epilogue, tile),
            (false, true) => rows_of::<V, F, false, true>(epilogue, tile),
            (true, false) => rows_of::<V, F, true, false>(epilogue, tile),
            (true, true) => rows_of::<V, F, true, true>(epilogue, tile),
        }
    }
}

/// The same; `QUANTISED` says that sums are whole numbers, with factors of rows and columns, and `RESIDUAL` that something is
/// added last. What a row does not need to ask takes a tenth of a short product's time.
#[inline(always)]
unsafe fn rows_of<V: Words, F: Function, const QUANTISED: bool, const RESIDUAL: bool>(
    epilogue: &Epilogue,
    tile: &Tile,
) {
    let &Tile { sums, nr, factors, row, column, width, stride, out, .. } = tile;
    let gate = epilogue.then == Then::Gate;
    let most = if gate { V::WIDTH } else { nr };
    let tall = sums.len() / nr;
    assert!(nr == 2 * V::WIDTH && width <= most && tall > 0 && factors.len() >= tall);
    // The part of the output that the tile is in, and of what is added to it.
    let span = (tall - 1) * stride + width;
    let first = row * stride + column;
    let mut out = out.at(first, span);
    let mut residual = epilogue.residual.map_or(&[][..], |all| &all[first..first + span]).as_ptr();
    assert!(RESIDUAL == epilogue.residual.is_some() && QUANTISED == epilogue.columns.is_some());
    // Two vectors of columns, or one of values and one of their gates.
    let at = [column, column + if gate { stride } else { V::WIDTH }];
    // SAFETY: sums and factors are those of `tall` rows, what is read of columns is there; of each row `width` values are
    // read and written, which are inside by the checks above and nobody else's by the caller's promise.
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
        let mut sums = sums.as_ptr();
        for &factor in &factors[..tall] {
            let mut x = [V::load(sums), V::load(sums.add(V::WIDTH))];
            if QUANTISED {
                let factor = V::splat(factor);
                for i in 0..2 {
                    x[i] = x[i].sub_whole(zeros[i]).whole_to_f32().mul(by[i].mul(factor));
                }
            }
            x = F::of([x[0].add(bias[0]), x[1].add(bias[1])]);
            if width == most {
                for (i, mut x) in x.into_iter().enumerate().take(most / V::WIDTH) {
                    if RESIDUAL {
                        x = x.add(V::load(residual.add(i * V::WIDTH)));
                    }
                    x.store(out.add(i * V::WIDTH));
                }
            } else {
                for (i, x) in x.into_iter().enumerate() {
                    let mut all = [0f32; WIDEST];
                    x.store(all.as_mut_ptr());
                    for (c, v) in (i * V::WIDTH..width).zip(all) {
                        *out.add(c) = if RESIDUAL { v + *residual.add(c) } else { v };
                    }
                }
            }
            sums = sums.add(nr);
            (out, residual) = (out.wrapping_add(stride), residual.wrapping_add(stride));
        }
    }
}

/// Whole numbers as the f32 that have their bits.
fn bits(whole: &[i32]) -> &[f32] {
    // SAFETY: the types are alike in size and alignment, and all bits are values of both.
    unsafe { std::slice::from_raw_parts(whole.as_ptr().cast(), whole.len()) }
}
