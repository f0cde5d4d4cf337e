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

/// Where the finished sums of a panel's tiles go.
pub(super) struct Place<'a> {
    pub epilogue: Epilogue<'a>,
    /// True if what is written may be off by as much as rounding operands to bf16 makes it.
    pub narrow: bool,
    /// First column of the output, and how many.
    pub column: usize,
    pub width: usize,
    /// Columns of the output.
    pub stride: usize,
    /// The output; a tile's rows and columns are written by one thread alone.
    pub out: Shared<'a>,
}

/// Where the finished sums of a tile go.
pub(super) struct Tile<'a> {
    pub place: &'a Place<'a>,
    /// Factors of the rows of A, where they are quantised.
    pub factors: &'a [f32],
    /// First row of the output, and how many.
    pub row: usize,
    pub tall: usize,
}

/// The columns from `start` on; the last ones, beyond the end, are 0.
///
/// # Safety
/// The machine must have the level.
#[inline(always)]
unsafe fn columns<V: Lanes, const WHOLE: bool>(x: &[f32], start: usize) -> V {
    let x = if WHOLE { &x[start..start + V::WIDTH] } else { x.get(start..).unwrap_or(&[]) };
    // SAFETY: what is read is there; the caller promises the level.
    unsafe {
        if WHOLE || x.len() >= V::WIDTH {
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
    /// Finishes the sums of a tile, rows of two vectors, and writes them.
    ///
    /// # Safety
    /// The tile's part of the output must be the caller's alone.
    pub(super) fn finish(sums: &[f32], tile: &Tile) = finish_on
}

#[inline(always)]
unsafe fn finish_on<V: Words>(sums: &[f32], tile: &Tile) {
    // SAFETY: the caller's promises.
    unsafe {
        match tile.place.epilogue.then {
            Then::Keep => rows::<V, Keep>(sums, tile),
            Then::Activate(Activation::Silu) => rows::<V, Silu>(sums, tile),
            Then::Activate(Activation::Gelu) => rows::<V, Gelu>(sums, tile),
            Then::Activate(Activation::QuickGelu) => rows::<V, QuickGelu>(sums, tile),
            Then::Gate if tile.place.narrow => rows::<V, ShortGate>(sums, tile),
            Then::Gate => rows::<V, Gate>(sums, tile),
        }
    }
}

/// What [`keep_rows`] and [`gate_rows`] can finish.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Known {
    /// Sums that are kept, maybe with something added.
    Keep,
    /// Values and gates, in the short form.
    Gate,
    /// Neither, or not a whole tile: for [`finish`].
    Other,
}

impl Known {
    /// Of tiles with so many rows in all; `quantised` says what the sums are.
    #[inline(always)]
    pub fn of<V: Words>(tile: &Tile, rows: usize, quantised: bool) -> Self {
        let Place { epilogue, width, narrow, .. } = tile.place;
        if tile.tall != rows || quantised != epilogue.columns.is_some() {
            return Known::Other;
        }
        match (epilogue.then, epilogue.residual.is_some()) {
            (Then::Keep, _) if *width == 2 * V::WIDTH => Known::Keep,
            (Then::Gate, false) if *width == V::WIDTH && *narrow => Known::Gate,
            _ => Known::Other,
        }
    }
}

/// Finishes the sums of a tile of [`Known::Keep`] while they are in registers, `sums(r)` for each row in turn, and writes them: the
/// same bits as [`finish`]. The tile's rows begin at the `first` of those that `common` was made for.
///
/// # Safety
/// As [`finish`]; the machine must have the level.
#[inline(always)]
pub(super) unsafe fn keep_rows<V: Words, const ROWS: usize, const QUANTISED: bool>(
    sums: impl FnMut(usize) -> [V; 2],
    common: &Common<V>,
    first: usize,
) {
    // SAFETY: the caller's promises, and the tile is as wide as asked for.
    unsafe {
        if common.adds {
            all::<V, Keep, ROWS, QUANTISED, true>(sums, common, first);
        } else {
            all::<V, Keep, ROWS, QUANTISED, false>(sums, common, first);
        }
    }
}

/// The same for [`Known::Gate`].
///
/// # Safety
/// As [`finish`]; the machine must have the level.
#[inline(always)]
pub(super) unsafe fn gate_rows<V: Words, const ROWS: usize, const QUANTISED: bool>(
    sums: impl FnMut(usize) -> [V; 2],
    common: &Common<V>,
    first: usize,
) {
    // SAFETY: as above.
    unsafe { all::<V, ShortGate, ROWS, QUANTISED, false>(sums, common, first) };
}

/// A function of two vectors of columns, or of values and their gates: the first result counts.
trait Function {
    /// True if the second vector are gates.
    const GATE: bool;
    fn of<V: Words>(x: [V; 2]) -> [V; 2];
}

macro_rules! function {
    ($name:ident, $gate:literal, $x:ident => $of:expr) => {
        struct $name;
        impl Function for $name {
            const GATE: bool = $gate;
            #[inline(always)]
            fn of<V: Words>($x: [V; 2]) -> [V; 2] {
                $of
            }
        }
    };
}

function!(Keep, false, x => x);
function!(Silu, false, x => [silu_lanes(x[0]), silu_lanes(x[1])]);
function!(Gelu, false, x => [gelu_lanes(x[0]), gelu_lanes(x[1])]);
function!(QuickGelu, false, x => [quick_gelu_lanes(x[0]), quick_gelu_lanes(x[1])]);
function!(Gate, true, x => [x[0].mul(gelu_lanes(x[1])), x[1]]);
function!(ShortGate, true, x => [x[0].mul(gelu_short_lanes(x[1])), x[1]]);

/// What all rows of a tile have in common, or of tiles below each other: two vectors of columns, or one of values and one of their
/// gates.
#[repr(C)]
pub(super) struct Common<V> {
    /// Factors of quantised columns, and what their sums hold too much.
    pub by: [V; 2],
    pub zeros: [V; 2],
    pub bias: [V; 2],
    /// The part of the output that the tile is in, and of what is added to it.
    pub out: *mut f32,
    pub residual: *const f32,
    pub adds: bool,
    /// Columns of both.
    pub stride: usize,
    /// The factors of the rows.
    pub factors: *const f32,
}

impl<V: Words> Common<V> {
    /// `WHOLE` promises that both vectors of columns are.
    ///
    /// # Safety
    /// The machine must have the level.
    #[inline(always)]
    pub unsafe fn of<const WHOLE: bool>(tile: &Tile) -> Self {
        let &Tile { place: &Place { epilogue, column, width, stride, out, .. }, row, tall, factors } = tile;
        let factors = factors[..tall].as_ptr();
        let span = (tall - 1) * stride + width;
        let first = row * stride + column;
        let gate = epilogue.then == Then::Gate;
        let at = [column, column + if gate { stride } else { V::WIDTH }];
        // SAFETY: the caller's promise.
        unsafe {
            let zero = V::splat(0.0);
            let (mut by, mut zeros, mut bias) = ([zero; 2], [zero; 2], [zero; 2]);
            for i in 0..2 {
                if let Some((factors, sums)) = epilogue.columns {
                    by[i] = columns::<V, WHOLE>(factors, at[i]);
                    zeros[i] = columns::<V, WHOLE>(bits(sums), at[i]);
                }
                if let Some(all) = epilogue.bias {
                    bias[i] = columns::<V, WHOLE>(all, at[i]);
                }
            }
            let residual = epilogue.residual.map_or(&[][..], |all| &all[first..first + span]).as_ptr();
            let adds = epilogue.residual.is_some();
            Common { by, zeros, bias, out: out.at(first, span), residual, adds, stride, factors }
        }
    }

    /// A row's values, less what is added last.
    #[inline(always)]
    fn row<F: Function, const QUANTISED: bool>(&self, mut x: [V; 2], factor: f32) -> [V; 2] {
        for (i, x) in x.iter_mut().enumerate() {
            *x = if QUANTISED {
                x.sub_whole(self.zeros[i])
                    .whole_to_f32()
                    .mul_add_once(self.by[i].mul(x.same(factor)), self.bias[i])
            } else {
                x.add(self.bias[i])
            };
        }
        F::of(x)
    }
}

/// All rows of a whole tile in registers.
///
/// # Safety
/// As [`finish`]; the machine must have the level, and the tile must be whole.
// The last row goes on to one that is not there.
#[allow(unused_assignments)]
#[inline(always)]
unsafe fn all<V: Words, F: Function, const ROWS: usize, const QUANTISED: bool, const RESIDUAL: bool>(
    mut sums: impl FnMut(usize) -> [V; 2],
    common: &Common<V>,
    first: usize,
) {
    const { assert!(ROWS <= 14) };
    let stride = common.stride;
    // SAFETY: `Common` has checked that the rows are inside; the rest is as in `rows_of`.
    unsafe {
        let factors = common.factors.add(first);
        let mut out = common.out.wrapping_add(first * stride);
        let mut residual = common.residual.wrapping_add(first * stride);
        // Written out, for the compiler leaves a loop of so much as one, and then the sums are not in registers.
        macro_rules! each {
            ($($r:literal)*) => {$(
                if $r < ROWS {
                    let factor = if QUANTISED { *factors.add($r) } else { 1.0 };
                    let x = common.row::<F, QUANTISED>(sums($r), factor);
                    for (i, mut x) in x.into_iter().enumerate().take(if F::GATE { 1 } else { 2 }) {
                        if RESIDUAL {
                            x = x.add(V::load(residual.add(i * V::WIDTH)));
                        }
                        x.store(out.add(i * V::WIDTH));
                    }
                    (out, residual) = (out.wrapping_add(stride), residual.wrapping_add(stride));
                }
            )*};
        }
        each!(0 1 2 3 4 5 6 7 8 9 10 11 12 13);
    }
}

/// All rows.
///
/// # Safety
/// As [`finish`]; the machine must have the level.
#[inline(always)]
unsafe fn rows<V: Words, F: Function>(sums: &[f32], tile: &Tile) {
    // SAFETY: the caller's promises.
    unsafe {
        match (tile.place.epilogue.columns.is_some(), tile.place.epilogue.residual.is_some()) {
            (false, false) => rows_of::<V, F, false, false>(sums, tile),
            (false, true) => rows_of::<V, F, false, true>(sums, tile),
            (true, false) => rows_of::<V, F, true, false>(sums, tile),
            (true, true) => rows_of::<V, F, true, true>(sums, tile),
        }
    }
}

/// The same; `QUANTISED` says that sums are whole numbers, with factors of rows and columns, and `RESIDUAL` that something is
/// added last. What a row does not need to ask takes a tenth of a short product's time.
#[inline(always)]
unsafe fn rows_of<V: Words, F: Function, const QUANTISED: bool, const RESIDUAL: bool>(
    sums: &[f32],
    tile: &Tile,
) {
    let &Tile { place: &Place { epilogue, width, stride, .. }, factors, tall, .. } = tile;
    let most = if F::GATE { V::WIDTH } else { 2 * V::WIDTH };
    assert!(sums.len() >= tall * 2 * V::WIDTH && width <= most && factors.len() >= tall);
    assert!(RESIDUAL == epilogue.residual.is_some() && QUANTISED == epilogue.columns.is_some());
    // SAFETY: sums and factors are those of `tall` rows; of each row `width` values are read and written, which are inside as
    // `Common` has checked, and nobody else's by the caller's promise.
    unsafe {
        let common = Common::<V>::of::<false>(tile);
        let (mut out, mut residual, mut sums) = (common.out, common.residual, sums.as_ptr());
        for &factor in &factors[..tall] {
            let x = [V::load(sums), V::load(sums.add(V::WIDTH))];
            let x = common.row::<F, QUANTISED>(x, factor);
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
            sums = sums.add(2 * V::WIDTH);
            (out, residual) = (out.wrapping_add(stride), residual.wrapping_add(stride));
        }
    }
}

/// Whole numbers as the f32 that have their bits.
fn bits(whole: &[i32]) -> &[f32] {
    // SAFETY: the types are alike in size and alignment, and all bits are values of both.
    unsafe { std::slice::from_raw_parts(whole.as_ptr().cast(), whole.len()) }
}
