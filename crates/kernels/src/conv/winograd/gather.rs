//! One row of tiles on its way in: padded, doubled, normalised and activated while it is copied, then transformed.

use super::tile::CHUNK;
use super::transforms::{Algorithm, F2, F4, F4Whole, MOST};
use super::{Tiling, Variant};
use crate::buffer::Buffer;
use crate::conv::Input;
use crate::lanes::{Lanes, on_lanes};
use crate::norm::normalise;
use std::ops::Range;

/// The pixels under some tiles of one row, with their neighbours: `[rows][pixels][channels]`.
pub(super) struct Strip {
    pixels: Buffer,
    /// Values between two rows.
    pub row: usize,
    /// Values between two pixels.
    pub pixel: usize,
    /// Pixels between two tiles.
    step: usize,
}

impl Strip {
    /// Gathers some chunks of the channels of some tiles of row of tiles `strip`, counted over all pictures.
    pub fn gather(t: &Tiling, strip: usize, tiles: Range<usize>, chunks: Range<usize>, x: &Input) -> Self {
        let m = t.variant.outputs();
        let pixel = chunks.len() * CHUNK;
        let wide = tiles.len() * m + 2;
        let row = wide * pixel;
        let mut pixels = Buffer::stale(t.share());
        let left = tiles.start * m;
        let c = &t.conv;
        let (b, top) = (strip / t.high, strip % t.high * m);
        let (height, width) = c.virtual_size();
        let shift = c.upsample as usize;
        let first = chunks.start * CHUNK;
        let channels = pixel.min(c.inputs - first);
        let affine = x.affine.map(|a| {
            let at = b * c.inputs + first;
            (&a.scale[at..at + channels], &a.shift[at..at + channels])
        });
        for (y, to) in pixels.chunks_exact_mut(row).enumerate().take(t.variant.inputs()) {
            let y = (top + y).wrapping_sub(c.pad_before);
            if y >= height {
                to.fill(0.0);
                continue;
            }
            let from = (b * c.height + (y >> shift)) * c.width;
            for (i, to) in to.chunks_exact_mut(pixel).enumerate() {
                let i = (left + i).wrapping_sub(c.pad_before);
                if i >= width {
                    to.fill(0.0);
                    continue;
                }
                let source = &x.data[(from + (i >> shift)) * c.inputs + first..][..channels];
                match affine {
                    None => to[..channels].copy_from_slice(source),
                    // SAFETY: every slice has as many values.
                    Some((scale, shift)) => unsafe {
                        normalise(source, scale, shift, x.silu, &mut to[..channels]);
                    },
                }
                to[channels..].fill(0.0);
            }
        }
        Strip { pixels, row, pixel, step: m }
    }

    /// The first value of one chunk of the `i`th of the tiles.
    pub fn tile(&self, i: usize, chunk: usize) -> *const f32 {
        self.pixels[i * self.step * self.pixel + chunk * CHUNK..].as_ptr()
    }
}

on_lanes! {
    /// Transforms one chunk of one tile's inputs; rows of pixels are `row` values apart, pixels `pixel`, products `plane`.
    ///
    /// # Safety
    /// The tile's pixels must be readable and its products writable, by the caller alone.
    pub(super) fn input(variant: Variant, from: *const f32, row: usize, pixel: usize, to: *mut f32, plane: usize) = input_on
}

#[inline(always)]
unsafe fn input_on<V: Lanes>(
    variant: Variant,
    from: *const f32,
    row: usize,
    pixel: usize,
    to: *mut f32,
    plane: usize,
) {
    // SAFETY: the caller's promises.
    unsafe {
        match variant {
            Variant::F2 => input_of::<V, F2>(from, row, pixel, to, plane),
            Variant::F4 => input_of::<V, F4>(from, row, pixel, to, plane),
            Variant::F4Whole => input_of::<V, F4Whole>(from, row, pixel, to, plane),
        }
    }
}

// Rows and columns by their indices: both are needed.
#[allow(clippy::needless_range_loop)]
#[inline(always)]
unsafe fn input_of<V: Lanes, A: Algorithm>(
    from: *const f32,
    row: usize,
    pixel: usize,
    to: *mut f32,
    plane: usize,
) {
    // SAFETY: the caller's promises; CHUNK is a multiple of every width.
    unsafe {
        let zero = V::splat(0.0);
        for c in (0..CHUNK).step_by(V::WIDTH) {
            let mut half = [[zero; MOST]; MOST];
            for x in 0..A::IN {
                let mut d = [zero; MOST];
                for (y, d) in d.iter_mut().enumerate().take(A::IN) {
                    *d = V::load(from.add(y * row + x * pixel + c));
                }
                let t = A::input(d);
                for y in 0..A::IN {
                    half[y][x] = t[y];
                }
            }
            for (y, half) in half.iter().enumerate().take(A::IN) {
                let t = A::input(*half);
                for (x, t) in t.iter().enumerate().take(A::IN) {
                    t.store(to.add((y * A::IN + x) * plane + c));
                }
            }
        }
    }
}
