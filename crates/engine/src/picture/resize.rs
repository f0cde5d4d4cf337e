//! Resampling, to the bit as Pillow's `Image.resize` (`Resample.c`, `Geometry.c`): convolution with a filter whose
//! support grows when the picture shrinks, horizontally then vertically, with 22-bit fixed-point weights.

use super::{Grey, Picture};
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
    let same_width = in_w == out_w;
    let across: Vec<Taps> =
        if same_width { Vec::new() } else { columns.clone().map(|x| taps(in_w, out_w, filter, x)).collect() };
    let horizontal = |y: usize, out: &mut [u8]| {
        let row = &input[y * stride..][..stride];
        if same_width {
            out.copy_from_slice(&row[columns.start * C..columns.end * C]);
            return;
        }
        for (pixel, taps) in out.as_chunks_mut::<C>().0.iter_mut().zip(&across) {
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
    if in_h == out_h {
        for (y, line) in rows.zip(out.chunks_mut(wide.max(1))) {
            horizontal(y, line);
        }
        return out;
    }
    // Input rows go by once. Each is added to the output rows that it belongs to; these are neighbours and finish in
    // order, so only a window of them is open at a time.
    struct Open {
        row: usize,
        taps: Taps,
        sums: Vec<i32>,
    }
    let mut open: std::collections::VecDeque<Open> = Default::default();
    let mut next = rows.start;
    let mut line = vec![0u8; wide];
    let mut pending = (next < rows.end).then(|| taps(in_h, out_h, filter, next));
    let mut y = pending.as_ref().map_or(0, |t| t.start);
    while y < in_h && (pending.is_some() || !open.is_empty()) {
        while let Some(taps_next) = pending.take_if(|t| t.start <= y) {
            open.push_back(Open { row: next, taps: taps_next, sums: vec![1 << (BITS - 1); wide] });
            next += 1;
            pending = (next < rows.end).then(|| taps(in_h, out_h, filter, next));
        }
        horizontal(y, &mut line);
        for part in &mut open {
            if let Some(&weight) = part.taps.weights.get(y - part.taps.start) {
                for (sum, value) in part.sums.iter_mut().zip(&line) {
                    *sum = sum.wrapping_add(*value as i32 * weight);
                }
            }
        }
        y += 1;
        while let Some(done) = open.front().filter(|p| y >= p.taps.start + p.taps.weights.len()) {
            let at = (done.row - rows.start) * wide;
            for (o, sum) in out[at..at + wide].iter_mut().zip(&done.sums) {
                *o = clip(*sum);
            }
            open.pop_front();
        }
    }
    out
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
