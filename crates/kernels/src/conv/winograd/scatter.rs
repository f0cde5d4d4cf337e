//! Tiles on their way out: sums transformed back, finished and written to their pixels.

use super::transforms::{Algorithm, F2, F4, F4Whole, MOST};
use super::{Tiling, Variant};
use crate::conv::Epilogue;
use crate::lanes::{Lanes, on_lanes};
use crate::share::{Shared, soon};

/// Transforms the sums of some tiles back and writes them out.
pub(super) fn finish(
    t: &Tiling,
    first_tile: usize,
    sums: &[f32],
    n0: usize,
    epilogue: &Epilogue,
    out: Shared,
) {
    let (width, height) = (t.conv.out_width(), t.conv.out_height());
    let m = t.variant.outputs();
    for (i, sums) in sums.chunks_exact(t.variant.products() * t.nr).enumerate() {
        let tile = first_tile + i;
        let (b, ty, tx) = (tile / t.wide / t.high, tile / t.wide % t.high, tile % t.wide);
        let finish = epilogue.of_picture(b, n0, t.conv.outputs);
        let place = Place {
            pixel: (b * height + ty * m) * width + tx * m,
            high: m.min(height - ty * m),
            wide: m.min(width - tx * m),
            width,
            outputs: t.conv.outputs,
            n0,
            columns: t.nr.min(t.conv.outputs - n0),
        };
        place.soon(&finish, out);
        // SAFETY: these output channels of this tile's pixels are this task's alone.
        unsafe { output(t.variant, sums, &place, &finish, out) };
    }
}

/// Where a tile's outputs go.
struct Place {
    /// The first pixel.
    pixel: usize,
    /// Rows and columns of the tile within the picture.
    high: usize,
    wide: usize,
    /// Pixels of a row.
    width: usize,
    /// Channels of the output, and those of this panel.
    outputs: usize,
    n0: usize,
    columns: usize,
}

impl Place {
    /// Tells the processor that the outputs will be written soon, and what is added to them read.
    fn soon(&self, finish: &Epilogue, out: Shared) {
        for y in 0..self.high {
            for x in 0..self.wide {
                let at = (self.pixel + y * self.width + x) * self.outputs + self.n0;
                out.soon(at, self.columns);
                if let Some(residual) = finish.residual {
                    soon(residual, at, self.columns);
                }
            }
        }
    }
}

on_lanes! {
    /// Transforms one tile's sums back, finishes them and writes them out.
    ///
    /// # Safety
    /// The outputs of the place must belong to the caller alone.
    fn output(variant: Variant, sums: &[f32], place: &Place, finish: &Epilogue, out: Shared) = output_on
}

#[inline(always)]
unsafe fn output_on<V: Lanes>(variant: Variant, sums: &[f32], place: &Place, finish: &Epilogue, out: Shared) {
    // SAFETY: the caller's promises.
    unsafe {
        match variant {
            Variant::F2 => output_of::<V, F2>(sums, place, finish, out),
            Variant::F4 => output_of::<V, F4>(sums, place, finish, out),
            Variant::F4Whole => output_of::<V, F4Whole>(sums, place, finish, out),
        }
    }
}

// Rows and columns by their indices: both are needed.
#[allow(clippy::needless_range_loop)]
#[inline(always)]
unsafe fn output_of<V: Lanes, A: Algorithm>(sums: &[f32], place: &Place, finish: &Epilogue, out: Shared) {
    let nr = 2 * V::WIDTH;
    assert_eq!(sums.len(), A::IN * A::IN * nr);
    for h in 0..2 {
        let n = h * V::WIDTH;
        if n >= place.columns {
            break;
        }
        let columns = V::WIDTH.min(place.columns - n);
        // SAFETY: reads are within the sums as asserted, writes go through checked parts of the output.
        unsafe {
            let zero = V::splat(0.0);
            let mut half = [[zero; MOST]; MOST];
            for x in 0..A::IN {
                let mut s = [zero; MOST];
                for (y, s) in s.iter_mut().enumerate().take(A::IN) {
                    *s = V::load(sums.as_ptr().add((y * A::IN + x) * nr + n));
                }
                let t = A::output(s);
                for y in 0..A::OUT {
                    half[y][x] = t[y];
                }
            }
            let mut added = [0f32; 16];
            for term in [finish.bias, finish.picture].into_iter().flatten() {
                added.iter_mut().zip(&term[n..n + columns]).for_each(|(a, v)| *a += v);
            }
            let added = V::load(added.as_ptr());
            for (y, half) in half.iter().enumerate().take(place.high.min(A::OUT)) {
                let t = A::output(*half);
                for (x, t) in t.iter().enumerate().take(place.wide.min(A::OUT)) {
                    let at = (place.pixel + y * place.width + x) * place.outputs + place.n0 + n;
                    let mut value = t.add(added);
                    let to = out.part(at, columns);
                    if columns == V::WIDTH {
                        if let Some(residual) = finish.residual {
                            value = value.add(V::load(residual[at..at + columns].as_ptr()));
                        }
                        value.store(to.as_mut_ptr());
                    } else {
                        let mut all = [0f32; 16];
                        value.store(all.as_mut_ptr());
                        to.copy_from_slice(&all[..columns]);
                        if let Some(residual) = finish.residual {
                            to.iter_mut().zip(&residual[at..]).for_each(|(o, r)| *o += r);
                        }
                    }
                }
            }
        }
    }
}
