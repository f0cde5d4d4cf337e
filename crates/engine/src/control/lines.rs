//! Lines without a network: where a pixel is darker than what surrounds it, as in a drawing.

use crate::picture::{Grey, Picture};

/// Deviations of the two blurs, in pixels; their ratio is the one at which their difference comes closest to the
/// Laplacian (Marr & Hildreth, "Theory of edge detection", 1980).
const NARROW: f64 = 1.0;
const WIDE: f64 = 1.6;
/// The pixel of this rank, as a part of all, becomes white.
const WHITE_RANK: f64 = 0.99;
/// Differences are not stretched beyond this: a picture without lines stays black. In levels of grey.
const LEAST_WHITE: f64 = 4.0;

/// White lines on black: the wide blur less the narrow one, where that is positive.
pub(super) fn lines(picture: &Picture) -> Picture {
    let grey = picture.to_grey();
    let (wide, narrow) = (blur(&grey, WIDE), blur(&grey, NARROW));
    let darker: Vec<f64> = wide.iter().zip(&narrow).map(|(w, n)| (w - n).max(0.0)).collect();
    let mut ranked = darker.clone();
    ranked.sort_by(f64::total_cmp);
    let white = ranked[(WHITE_RANK * (ranked.len() - 1) as f64) as usize].max(LEAST_WHITE);
    let level = |d: &f64| (d / white * 255.0).round_ties_even().min(255.0) as u8;
    let rgb = darker.iter().flat_map(|d| [level(d); 3]).collect();
    Picture { width: picture.width, height: picture.height, rgb }
}

/// Gaussian blur as OpenCV's: cut off at four deviations, mirrored at the edges without repeating them.
fn blur(grey: &Grey, deviation: f64) -> Vec<f64> {
    let radius = ((deviation * 8.0 + 1.0).round() as usize | 1) / 2;
    let weight = |i: usize| {
        let x = i as f64 - radius as f64;
        (-x * x / (2.0 * deviation * deviation)).exp()
    };
    let kernel: Vec<f64> = (0..=2 * radius).map(weight).collect();
    let sum: f64 = kernel.iter().sum();
    let (width, height) = (grey.width, grey.height);
    let along = |at: usize, length: usize, value: &dyn Fn(usize) -> f64| {
        let tap = |(i, k): (usize, &f64)| {
            k / sum * value(mirrored(at as isize + i as isize - radius as isize, length))
        };
        kernel.iter().enumerate().map(tap).sum::<f64>()
    };
    let places = || (0..height).flat_map(|y| (0..width).map(move |x| (x, y)));
    let rows: Vec<f64> =
        places().map(|(x, y)| along(x, width, &|x| f64::from(grey.l[y * width + x]))).collect();
    places().map(|(x, y)| along(y, height, &|y| rows[y * width + x])).collect()
}

/// OpenCV's `BORDER_REFLECT_101`.
fn mirrored(at: isize, length: usize) -> usize {
    if length == 1 {
        return 0;
    }
    let period = 2 * (length as isize - 1);
    let at = at.rem_euclid(period);
    at.min(period - at) as usize
}
