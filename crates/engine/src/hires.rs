//! From the first of two passes to the start of the second.

use crate::decode;
use crate::error::Error;
use crate::init::{Init, of_latents, of_picture};
use crate::plan::Plan;
use crate::request::Upscale;
use crate::{Event, Observer};

/// The starts of the second pass, one for each picture of the first: what `init` would make of the picture that the first
/// pass alone gives, or its latents enlarged. `init` is the first pass's own start.
pub fn starts(
    first: &Plan,
    second: &Plan,
    latents: &[Vec<f32>],
    init: Option<&Init>,
    observer: &mut dyn Observer,
) -> Result<Vec<Init>, Error> {
    let upscale = first.request().hires.as_ref().map(|h| h.upscale).unwrap_or_default();
    let factor = first.vae.factor();
    let of = |plan: &Plan| (plan.height / factor, plan.width / factor);
    let enlarged = |sample: fn(&Grid, usize, usize) -> f32| {
        let starts = latents.iter().map(|l| of_latents(resampled(l, of(first), of(second), sample)));
        Ok(starts.collect())
    };
    match upscale {
        Upscale::Latent => enlarged(bilinear),
        Upscale::LatentNearest => enlarged(nearest),
        Upscale::Pixel => {
            observer.event(Event::Stage("enlarging"));
            let decoder = decode::decoder(first)?;
            let one =
                |l: &Vec<f32>| of_picture(second, &decode::painted(first, &decoder, l, init, observer)?);
            latents.iter().map(one).collect()
        }
    }
}

/// One channel, and how far apart its samples are.
struct Grid<'a> {
    plane: &'a [f32],
    width: usize,
    height: usize,
    step: (f32, f32),
}

/// Planes [channels, h, w] at another size.
fn resampled(
    latents: &[f32],
    (height, width): (usize, usize),
    (new_height, new_width): (usize, usize),
    sample: fn(&Grid, usize, usize) -> f32,
) -> Vec<f32> {
    let step = (height as f32 / new_height as f32, width as f32 / new_width as f32);
    let planes = latents.chunks_exact(height * width);
    let plane = |plane| {
        let grid = Grid { plane, width, height, step };
        (0..new_height * new_width)
            .map(move |i| sample(&grid, i / new_width, i % new_width))
            .collect::<Vec<f32>>()
    };
    planes.flat_map(plane).collect()
}

/// torch's `interpolate(mode="bilinear", align_corners=False)`.
fn bilinear(grid: &Grid, y: usize, x: usize) -> f32 {
    let at = |i: usize, step: f32, length: usize| {
        let source = (step * (i as f32 + 0.5) - 0.5).max(0.0);
        let first = (source as usize).min(length - 1);
        (first, (first + 1).min(length - 1), source - first as f32)
    };
    let (y0, y1, fy) = at(y, grid.step.0, grid.height);
    let (x0, x1, fx) = at(x, grid.step.1, grid.width);
    let row = |y: usize| {
        let row = &grid.plane[y * grid.width..];
        (1.0 - fx) * row[x0] + fx * row[x1]
    };
    (1.0 - fy) * row(y0) + fy * row(y1)
}

/// torch's `interpolate(mode="nearest")`.
fn nearest(grid: &Grid, y: usize, x: usize) -> f32 {
    let at = |i: usize, step: f32, length: usize| ((i as f32 * step) as usize).min(length - 1);
    grid.plane[at(y, grid.step.0, grid.height) * grid.width + at(x, grid.step.1, grid.width)]
}
#[cfg(test)]
mod tests {
    use super::*;

    /// Against `torch.nn.functional.interpolate` of `arange(6).view(1, 1, 2, 3) ** 2`.
    #[test]
    fn resampling_equals_torch() {
        let plane: Vec<f32> = (0..6).map(|i| (i * i) as f32).collect();
        let nearest = resampled(&plane, (2, 3), (3, 5), nearest);
        assert_eq!(nearest, NEAREST);
        let bilinear = resampled(&plane, (2, 3), (3, 5), bilinear);
        for (got, want) in bilinear.iter().zip(BILINEAR) {
            assert!((got - want).abs() < 1e-5, "{bilinear:?}");
        }
    }

    const NEAREST: [f32; 15] = [0.0, 0.0, 1.0, 1.0, 4.0, 0.0, 0.0, 1.0, 1.0, 4.0, 9.0, 9.0, 16.0, 16.0, 25.0];
    const BILINEAR: [f32; 15] =
        [0.0, 0.4, 1.0, 2.8, 4.0, 4.5, 6.1, 8.5, 12.1, 14.5, 9.0, 11.800001, 16.0, 21.400002, 25.0];
}
