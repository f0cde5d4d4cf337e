//! One row of tiles on its way into the transform: padded, doubled, normalised and activated while it is copied.

use super::Tiling;
use super::tile::CHUNK;
use crate::buffer::Buffer;
use crate::conv::Input;
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
