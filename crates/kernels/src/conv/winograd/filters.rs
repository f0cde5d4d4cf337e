//! The transform of the filters, from the order of checkpoints to panels of the products.

use super::Variant;
use super::tile::{CHUNK, columns};
use super::transforms::{Algorithm, F2, F4, F4Whole, MOST};
use crate::Weight;
use crate::conv::{Conv, Filters};
use crate::lanes::{Lanes, on_lanes};
use crate::level::level;
use std::ops::Range;

/// Taps of a filter.
pub(super) const TAPS: usize = 9;
/// The most columns of a panel.
const COLUMNS: usize = 32;
/// The taps of a chunk of channels for all columns of a panel.
pub(super) type Taps = [f32; COLUMNS * TAPS * CHUNK];
/// Room for them.
pub(super) fn no_taps() -> Taps {
    [0.0; COLUMNS * TAPS * CHUNK]
}

impl Filters<'_> {
    /// See [`taps`].
    pub(super) fn taps(&self, conv: &Conv, n0: usize, c: usize, stored: &mut Taps, turned: &mut Taps) {
        match self {
            Filters::Stored(weight) => taps(*weight, [conv.outputs, conv.inputs], n0, c, stored, turned),
            Filters::Packed(packed) => packed.winograd().taps(n0, c, turned),
        }
    }
}

/// Values between two products in a panel of `chunks` chunks: a row more than they take, so that the products of one
/// filter do not fall into the same set of the cache.
pub(super) fn plane(chunks: usize, nr: usize) -> usize {
    (chunks * CHUNK + 1) * nr
}

/// `u[product][channel][output]` for the outputs from `n0` on and the given channels, zero beyond the true ones.
pub(super) fn transform(
    variant: Variant,
    from: Filters,
    conv: &Conv,
    n0: usize,
    channels: Range<usize>,
    plane: usize,
    u: &mut [f32],
) {
    let nr = columns(level());
    assert!(u.len() >= plane * variant.products() && plane >= channels.len() * nr);
    let (mut stored, mut turned) = (no_taps(), no_taps());
    for c in channels.clone().step_by(CHUNK) {
        from.taps(conv, n0, c, &mut stored, &mut turned);
        // SAFETY: `u` has the planes asserted above.
        unsafe { chunk(variant, &turned, u[(c - channels.start) * nr..].as_mut_ptr(), plane) };
    }
}

/// The filters of the outputs from `n0` on for the chunk of channels at `c`, `[channels · taps][columns]`, zero beyond the true
/// ones. `stored` is memory to work in.
pub(super) fn taps(
    weight: Weight,
    [outputs, inputs]: [usize; 2],
    n0: usize,
    c: usize,
    stored: &mut Taps,
    turned: &mut Taps,
) {
    let nr = columns(level());
    let here = nr.min(outputs - n0);
    let n = CHUNK.min(inputs - c) * TAPS;
    if here < nr || n < CHUNK * TAPS {
        stored.fill(0.0);
    }
    for (o, row) in stored.chunks_exact_mut(TAPS * CHUNK).enumerate().take(here) {
        let start = ((n0 + o) * inputs + c) * TAPS;
        // The next chunk's, which no prefetcher foresees.
        weight.soon(start + n, n);
        weight.widen(start, &mut row[..n]);
    }
    // SAFETY: both arrays hold COLUMNS · TAPS · CHUNK values.
    unsafe { turn(stored, turned) };
}

on_lanes! {
    /// `[columns][taps · channels]` to `[taps · channels][columns]`.
    ///
    /// # Safety
    /// None beyond the level's, which is checked.
    fn turn(from: &Taps, to: &mut Taps) = turn_on
}

#[inline(always)]
unsafe fn turn_on<V: Lanes>(from: &Taps, to: &mut Taps) {
    let nr = 2 * V::WIDTH;
    for o in (0..nr).step_by(V::WIDTH) {
        for k in (0..TAPS * CHUNK).step_by(V::WIDTH) {
            // SAFETY: nr is at most COLUMNS, and TAPS · CHUNK a multiple of every width.
            unsafe {
                let from = from.as_ptr().add(o * TAPS * CHUNK + k);
                V::transpose(from, TAPS * CHUNK, to.as_mut_ptr().add(k * nr + o), nr);
            }
        }
    }
}

on_lanes! {
    /// Transforms the filters of one chunk of channels.
    ///
    /// # Safety
    /// `to` must have room for a chunk in each plane.
    fn chunk(variant: Variant, taps: &Taps, to: *mut f32, plane: usize) = chunk_on
}

#[inline(always)]
unsafe fn chunk_on<V: Lanes>(variant: Variant, taps: &Taps, to: *mut f32, plane: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        match variant {
            Variant::F2 => chunk_of::<V, F2>(taps, to, plane),
            Variant::F4 => chunk_of::<V, F4>(taps, to, plane),
            Variant::F4Whole => chunk_of::<V, F4Whole>(taps, to, plane),
        }
    }
}

// Rows and columns by their indices: both are needed.
#[allow(clippy::needless_range_loop)]
#[inline(always)]
unsafe fn chunk_of<V: Lanes, A: Algorithm>(taps: &Taps, to: *mut f32, plane: usize) {
    let nr = 2 * V::WIDTH;
    // SAFETY: reads stay within COLUMNS · TAPS · CHUNK, since nr is at most COLUMNS; writes are the caller's promise.
    unsafe {
        let zero = V::splat(0.0);
        for c in 0..CHUNK {
            for o in (0..nr).step_by(V::WIDTH) {
                let mut half = [[zero; 3]; MOST];
                for x in 0..3 {
                    let tap = taps.as_ptr().add((c * TAPS + x) * nr + o);
                    let g = [V::load(tap), V::load(tap.add(3 * nr)), V::load(tap.add(6 * nr))];
                    let t = A::filter(g);
                    for y in 0..A::IN {
                        half[y][x] = t[y];
                    }
                }
                for (y, half) in half.iter().enumerate().take(A::IN) {
                    let t = A::filter(*half);
                    for (x, t) in t.iter().enumerate().take(A::IN) {
                        t.store(to.add((y * A::IN + x) * plane + c * nr + o));
                    }
                }
            }
        }
    }
}
