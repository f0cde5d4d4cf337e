//! Resampling, to the bit as Pillow's `Image.resize` (`Resample.c`, `Geometry.c`): convolution with a filter whose
//! support grows when the picture shrinks, in two passes, with 22-bit fixed-point weights.

use super::{Grey, Picture};
use std::collections::VecDeque;
use std::ops::Range;

/// How samples are weighted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Filter {
    Nearest,
    Bilinear,
    Bicubic,
    Lanczos,
}

impl Filter {
    fn support(self) -> f64 {
        match self {
            Filter::Nearest => 0.5,
            Filter::Bilinear => 1.0,
            Filter::Bicubic => 2.0,
            Filter::Lanczos => 3.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        match self {
            Filter::Nearest => 1.0,
            Filter::Bilinear => (1.0 - x.abs()).max(0.0),
            Filter::Bicubic => {
                // Keys' kernel with a = -1/2, in Pillow's order of operations.
                const A: f64 = -0.5;
                let x = x.abs();
                if x < 1.0 {
                    ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
                } else if x < 2.0 {
                    (((x - 5.0) * x + 8.0) * x - 4.0) * A
                } else {
                    0.0
                }
            }
            Filter::Lanczos => {
                let sinc = |x: f64| {
                    let x = x * std::f64::consts::PI;
                    if x == 0.0 { 1.0 } else { x.sin() / x }
                };
                if (-3.0..3.0).contains(&x) { sinc(x) * sinc(x / 3.0) } else { 0.0 }
            }
        }
    }
}

/// Resizes to `width` × `height`.
///
/// # Panics
/// If a size is 0.
pub fn resize(picture: &Picture, width: usize, height: usize, filter: Filter) -> Picture {
    let (from, to) = ((picture.width, picture.height), (width, height));
    let rgb = resize_part::<3>(&picture.rgb, from, to, filter, (0..width, 0..height));
    Picture { width, height, rgb }
}

/// Resizes to `width` × `height`.
///
/// # Panics
/// If a size is 0.
pub fn resize_grey(grey: &Grey, width: usize, height: usize, filter: Filter) -> Grey {
    let (from, to) = ((grey.width, grey.height), (width, height));
    let l = resize_part::<1>(&grey.l, from, to, filter, (0..width, 0..height));
    Grey { width, height, l }
}

const BITS: u32 = 32 - 8 - 2;

/// What one output sample is made of: input samples from `start` on, and their weights.
struct Taps {
    start: usize,
    weights: Vec<i32>,
}

fn taps(input: usize, output: usize, filter: Filter, i: usize) -> Taps {
    let scale = input as f64 / output as f64;
    let stretch = scale.max(1.0);
    let support = filter.support() * stretch;
    let centre = (i as f64 + 0.5) * scale;
    // C's cast: towards zero.
    let start = (centre - support + 0.5).max(0.0) as usize;
    let end = ((centre + support + 0.5) as usize).min(input);
    let per = 1.0 / stretch;
    let mut weights: Vec<f64> =
        (start..end).map(|x| filter.weight((x as f64 - centre + 0.5) * per)).collect();
    let sum: f64 = weights.iter().sum();
    if sum != 0.0 {
        weights.iter_mut().for_each(|w| *w /= sum);
    }
    let fixed = |w: f64| (w * (1 << BITS) as f64 + if w < 0.0 { -0.5 } else { 0.5 }) as i32;
    Taps { start, weights: weights.into_iter().map(fixed).collect() }
}

fn clip(sum: i32) -> u8 {
    (sum >> BITS).clamp(0, 255) as u8
}

/// The part `columns` × `rows` of a resized picture of `C` channels. Memory grows with the part, not with the rest.
pub(super) fn resize_part<const C: usize>(
    input: &[u8],
    (in_w, in_h): (usize, usize),
    (out_w, out_h): (usize, usize),
    filter: Filter,
    (columns, rows): (Range<usize>, Range<usize>),
) -> Vec<u8> {
    assert!(in_w > 0 && in_h > 0 && out_w > 0 && out_h > 0, "a picture has pixels");
    assert_eq!(input.len(), in_w * in_h * C, "pixels for the size");
    assert!(columns.end <= out_w && rows.end <= out_h, "the part is inside");
    let stride = in_w * C;
    let wide = columns.len() * C;
    if filter == Filter::Nearest {
        let (xs, ys) = (nearest(in_w, out_w, columns), nearest(in_h, out_h, rows));
        return ys
            .iter()
            .flat_map(|y| xs.iter().flat_map(move |x| &input[y * stride + x * C..][..C]))
            .copied()
            .collect();
    }
    let across =
        (in_w != out_w).then(|| columns.clone().map(|x| taps(in_w, out_w, filter, x)).collect::<Vec<_>>());
    let horizontal = |row: &[u8], out: &mut [u8]| {
        let Some(across) = &across else {
            out.copy_from_slice(&row[columns.start * C..columns.end * C]);
            return;
        };
        for (pixel, taps) in out.as_chunks_mut::<C>().0.iter_mut().zip(across) {
            let mut sums = [1i32 << (BITS - 1); C];
            let samples = row[taps.start * C..].as_chunks::<C>().0;
            for (sample, weight) in samples.iter().zip(&taps.weights) {
                for c in 0..C {
                    sums[c] = sums[c].wrapping_add(sample[c] as i32 * weight);
                }
            }
            *pixel = sums.map(clip);
        }
    };
    let mut out = vec![0; wide * rows.len()];
    let lines = out.chunks_mut(wide.max(1));
    let input = |y: usize| &input[y * stride..][..stride];
    if in_h == out_h {
        for (y, line) in rows.zip(lines) {
            horizontal(input(y), line);
        }
    } else if in_h > out_h && (in_h - out_h) as i128 > 2 * (in_w as i128 - out_w as i128) {
        // Since 13.0, Pillow begins vertically where the height shrinks much more than the width.
        let mut lines = lines;
        vertical(
            (in_h, out_h),
            filter,
            rows,
            stride,
            |y, line| line.copy_from_slice(input(y)),
            |row| {
                if let Some(line) = lines.next() {
                    horizontal(row, line);
                }
            },
        );
    } else {
        let mut lines = lines;
        vertical(
            (in_h, out_h),
            filter,
            rows,
            wide,
            |y, line| horizontal(input(y), line),
            |row| {
                if let Some(line) = lines.next() {
                    line.copy_from_slice(row);
                }
            },
        );
    }
    out
}

/// The vertical pass: `read` gives input rows, `done` gets the output rows in order. Input rows go by once. Each is
/// added to the output rows that it belongs to; these are neighbours and finish in order, so only a window of them is
/// open at a time.
fn vertical(
    (in_h, out_h): (usize, usize),
    filter: Filter,
    rows: Range<usize>,
    wide: usize,
    mut read: impl FnMut(usize, &mut [u8]),
    mut done: impl FnMut(&[u8]),
) {
    let mut open: VecDeque<(Taps, Vec<i32>)> = VecDeque::new();
    let mut waiting = rows.map(|row| taps(in_h, out_h, filter, row)).peekable();
    let mut line = vec![0u8; wide];
    let mut y = waiting.peek().map_or(in_h, |t| t.start);
    while y < in_h && (waiting.peek().is_some() || !open.is_empty()) {
        while let Some(taps) = waiting.next_if(|t| t.start <= y) {
            open.push_back((taps, vec![1 << (BITS - 1); wide]));
        }
        read(y, &mut line);
        for (taps, sums) in &mut open {
            if let Some(&weight) = taps.weights.get(y - taps.start) {
                for (sum, value) in sums.iter_mut().zip(&line) {
                    *sum = sum.wrapping_add(*value as i32 * weight);
                }
            }
        }
        y += 1;
        while let Some((_, sums)) = open.pop_front_if(|(t, _)| y >= t.start + t.weights.len()) {
            for (o, sum) in line.iter_mut().zip(&sums) {
                *o = clip(*sum);
            }
            done(&line);
        }
    }
}

/// The input sample of each output sample; the position is summed up step by step, as Pillow does.
fn nearest(input: usize, output: usize, part: Range<usize>) -> Vec<usize> {
    let step = input as f64 / output as f64;
    let mut at = step * 0.5;
    let mut places = Vec::with_capacity(part.len());
    for i in 0..part.end {
        if i >= part.start {
            places.push((at as usize).min(input - 1));
        }
        at += step;
    }
    places
}
