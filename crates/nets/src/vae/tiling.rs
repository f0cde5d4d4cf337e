//! Pictures larger than memory likes: coded in overlapping tiles whose edges are blended, as `enable_tiling()` of diffusers'
//! `AutoencoderKL` does. The result is not that of the whole picture, as norms and attention see one tile each.

use super::VaeConfig;
use crate::tensor::Tensor;

/// Sizes of the tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tiling {
    /// Side of a tile, in latents: a multiple of 4, so that a quarter of it is whole.
    latents: usize,
    /// Pixels per latent.
    factor: usize,
}

/// Sides and steps of one direction (coding or decoding).
#[derive(Clone, Copy)]
struct Grid {
    /// Side of a tile of the input.
    tile: usize,
    /// From one tile of the input to the next.
    step: usize,
    /// Rows and columns of the output that are blended with the tile before.
    blend: usize,
    /// Rows and columns of the output that a tile fills.
    limit: usize,
}

impl Tiling {
    /// The tiles that diffusers takes: of the size of the pictures that the autoencoder was trained on (`sample_size`).
    pub fn of(config: &VaeConfig) -> Self {
        Tiling::new(config.sample_size / config.factor(), config.factor())
    }

    /// Tiles of so many latents, which is rounded down to a multiple of 4.
    pub fn new(latents: usize, factor: usize) -> Self {
        Tiling { latents: (latents / 4 * 4).max(4), factor: factor.max(1) }
    }

    /// Side of a tile, in latents.
    pub fn latents(&self) -> usize {
        self.latents
    }

    /// True if latents of this size make more than one tile.
    pub fn splits(&self, height: usize, width: usize) -> bool {
        height > self.latents || width > self.latents
    }

    /// A quarter overlaps (`tile_overlap_factor`).
    fn decoding(&self) -> Grid {
        let (tile, factor) = (self.latents, self.factor);
        Grid { tile, step: tile / 4 * 3, blend: tile / 4 * factor, limit: tile / 4 * 3 * factor }
    }

    fn coding(&self) -> Grid {
        let (tile, factor) = (self.latents, self.factor);
        Grid { tile: tile * factor, step: tile / 4 * 3 * factor, blend: tile / 4, limit: tile / 4 * 3 }
    }
}

/// Decodes latents [1, h, w, channels] in tiles by `decode`; `rows` gets the finished rows of the picture from the top down,
/// [1, rows, width, channels] at a time, and may stop it.
///
/// # Errors
/// What `rows` ends with.
pub fn decode_tiled<E>(
    tiling: Tiling,
    latents: &Tensor,
    decode: impl Fn(&Tensor) -> Tensor,
    rows: &mut dyn FnMut(Tensor) -> Result<(), E>,
) -> Result<(), E> {
    tiled(tiling.decoding(), latents, decode, rows)
}

/// Codes a picture [1, height, width, 3] in tiles by `encode`, which gives moments.
pub fn encode_tiled(tiling: Tiling, picture: &Tensor, encode: impl Fn(&Tensor) -> Tensor) -> Tensor {
    let mut bands: Vec<Tensor> = Vec::new();
    let kept = tiled(tiling.coding(), picture, encode, &mut |band| {
        bands.push(band);
        Ok::<(), std::convert::Infallible>(())
    });
    match kept {
        Ok(()) => {}
    }
    let shape = [1, bands.iter().map(|b| b.dim(1)).sum(), bands[0].dim(2), bands[0].channels()];
    Tensor::new(shape, bands.into_iter().flat_map(Tensor::into_data).collect::<Vec<f32>>())
}

fn tiled<E>(
    grid: Grid,
    x: &Tensor,
    code: impl Fn(&Tensor) -> Tensor,
    rows: &mut dyn FnMut(Tensor) -> Result<(), E>,
) -> Result<(), E> {
    let (height, width) = (x.dim(1), x.dim(2));
    // Of the tiles above: the rows that the next ones are blended with, which were blended themselves.
    let mut above: Vec<Tensor> = Vec::new();
    for y in (0..height).step_by(grid.step) {
        let mut below = Vec::new();
        let mut left: Option<Tensor> = None;
        let mut band: Option<Tensor> = None;
        for (column, x0) in (0..width).step_by(grid.step).enumerate() {
            let part = crop(x, y, x0, grid.tile, grid.tile);
            let mut tile = code(&part);
            if let Some(above) = above.get(column) {
                blend_rows(above, &mut tile, grid.blend);
            }
            if let Some(left) = &left {
                blend_columns(left, &mut tile, grid.blend);
            }
            let part = crop(&tile, 0, 0, grid.limit, grid.limit);
            band = Some(match band {
                Some(band) => beside(&band, &part),
                None => part,
            });
            let (h, w) = (tile.dim(1), tile.dim(2));
            below.push(crop(&tile, h.saturating_sub(grid.blend), 0, h, w));
            left = Some(crop(&tile, 0, w.saturating_sub(grid.blend), h, w));
        }
        above = below;
        if let Some(band) = band {
            rows(band)?;
        }
    }
    Ok(())
}

/// The part of [1, h, w, c] from (`y`, `x`) on, at most `height` × `width`.
fn crop(a: &Tensor, y: usize, x: usize, height: usize, width: usize) -> Tensor {
    let &[1, h, w, c] = a.shape() else { panic!("expected [1, h, w, c], got {:?}", a.shape()) };
    let (height, width) = (height.min(h - y), width.min(w - x));
    let rows = (y..y + height).flat_map(|row| &a.data()[(row * w + x) * c..][..width * c]);
    Tensor::new([1, height, width, c], rows.copied().collect::<Vec<f32>>())
}

/// Two parts of the same height side by side.
fn beside(a: &Tensor, b: &Tensor) -> Tensor {
    let (height, c) = (a.dim(1), a.channels());
    let (wa, wb) = (a.dim(2) * c, b.dim(2) * c);
    let mut data = Vec::with_capacity(height * (wa + wb));
    for y in 0..height {
        data.extend_from_slice(&a.data()[y * wa..][..wa]);
        data.extend_from_slice(&b.data()[y * wb..][..wb]);
    }
    Tensor::new([1, height, a.dim(2) + b.dim(2), c], data)
}

/// The first rows of `b` fade in over the last of `a` (diffusers' `blend_v`).
fn blend_rows(a: &Tensor, b: &mut Tensor, extent: usize) {
    let extent = extent.min(a.dim(1)).min(b.dim(1));
    let (row, from) = (b.dim(2) * b.channels(), a.dim(1) - extent);
    for y in 0..extent {
        let old = &a.data()[(from + y) * row..][..row];
        fade(old, &mut b.data_mut()[y * row..][..row], y as f64 / extent as f64);
    }
}

/// The first columns of `b` fade in over the last of `a` (diffusers' `blend_h`).
fn blend_columns(a: &Tensor, b: &mut Tensor, extent: usize) {
    let (wa, wb, c) = (a.dim(2), b.dim(2), b.channels());
    let extent = extent.min(wa).min(wb);
    for y in 0..b.dim(1) {
        for x in 0..extent {
            let old = &a.data()[(y * wa + wa - extent + x) * c..][..c];
            fade(old, &mut b.data_mut()[(y * wb + x) * c..][..c], x as f64 / extent as f64);
        }
    }
}

fn fade(old: &[f32], new: &mut [f32], part: f64) {
    let (keep, take) = ((1.0 - part) as f32, part as f32);
    new.iter_mut().zip(old).for_each(|(n, o)| *n = o * keep + *n * take);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_of_a_constant_leave_no_seams() {
        // Decoding by repetition: wherever the tiles lie, blending must give the same back.
        let tiling = Tiling::new(8, 2);
        for (height, width) in [(8, 9), (13, 20), (7, 30), (18, 6)] {
            let values = (0..height * width).map(|i| (i / width) as f32 + (i % width) as f32 * 0.5);
            let latents = Tensor::new([1, height, width, 1], values.collect::<Vec<_>>());
            let double = |x: &Tensor| {
                let (h, w) = (x.dim(1), x.dim(2));
                let pixel = |i: usize| x.data()[i / (2 * w) / 2 * w + i % (2 * w) / 2];
                Tensor::new([1, 2 * h, 2 * w, 1], (0..4 * h * w).map(pixel).collect::<Vec<_>>())
            };
            let mut got = Vec::new();
            let done = decode_tiled(tiling, &latents, double, &mut |band| {
                assert_eq!(band.dim(2), 2 * width);
                got.extend_from_slice(band.data());
                Ok::<(), ()>(())
            });
            assert_eq!(done, Ok(()));
            let want = double(&latents);
            assert_eq!(got.len(), want.data().len());
            let worst = got.iter().zip(want.data()).map(|(g, w)| (g - w).abs()).fold(0f32, f32::max);
            assert!(worst < 1e-5, "{height} x {width}: {worst}");
        }
    }

    #[test]
    fn rows_may_stop_it() {
        let latents = Tensor::zeros([1, 40, 4, 1]);
        let mut seen = 0;
        let mut stop = |_| {
            seen += 1;
            if seen == 2 { Err("enough") } else { Ok(()) }
        };
        assert_eq!(decode_tiled(Tiling::new(8, 1), &latents, Tensor::clone, &mut stop), Err("enough"));
        assert_eq!(seen, 2);
    }

    #[test]
    fn a_tile_is_never_empty() {
        assert_eq!(Tiling::new(0, 8).latents(), 4);
        assert_eq!(Tiling::new(67, 8).latents(), 64);
        assert!(!Tiling::new(64, 8).splits(64, 64) && Tiling::new(64, 8).splits(64, 65));
    }
}
