//! Poses: RTMPose (Jiang et al., 2023) and DWPose (Yang et al., 2023; `dw-ll_ucoco_384.onnx`), which say for every point and
//! axis how likely each half pixel is (SimCC), drawn as OpenPose draws them. What is done before and after the network
//! follows DWPose's `onnxpose.py` and `wholebody.py`.

use super::estimator::{aux_size, normalised};
use super::network::{Network, Output};
use super::people::{Area, people};
use super::planes::Between;
use super::skeleton::{Point, draw};
use crate::error::Error;
use crate::picture::{Filter, Picture, resize};
use std::path::Path;

/// Size of the picture that the network sees, where the file leaves it free: width, height.
const SIZE_PX: (usize, usize) = (288, 384);
/// mmpose's `PoseDataPreprocessor`.
const MEAN: [f32; 3] = [123.675, 116.28, 103.53];
const DEVIATION: [f32; 3] = [58.395, 57.12, 57.375];
/// What is looked at around a person, as a factor of their box.
const PADDING: f64 = 1.25;
/// Classes of an axis for each of its pixels.
const CLASSES_PER_PX: f64 = 2.0;
/// Points of COCO's bodies come first; faces, hands and feet may follow.
const BODY: usize = 17;

/// A drawing of the body poses of a picture, of its size.
///
/// # Errors
/// If a file is no such network.
pub fn pose(picture: &Picture, file: &Path, detector: Option<&Path>) -> Result<Picture, Error> {
    let network = Network::open(file)?;
    let (width, height) = aux_size(picture.width, picture.height);
    let seen = resize(picture, width, height, Filter::Lanczos);
    let mut areas = match detector {
        Some(detector) => people(&seen, detector)?,
        None => Vec::new(),
    };
    if areas.is_empty() {
        areas.push([0.0, 0.0, width as f64, height as f64]);
    }
    let bodies = areas.iter().map(|a| body(&network, &seen, a)).collect::<Result<Vec<_>, _>>()?;
    let drawing = draw(&bodies, width, height);
    let planes = normalised(&drawing, [0.0; 3], [1.0; 3], false);
    let planes = planes.resized(picture.width, picture.height, Between::Linear);
    let pixels = picture.width * picture.height;
    let level = |c: usize, i: usize| planes.values[c * pixels + i].round_ties_even() as u8;
    let rgb = (0..pixels).flat_map(|i| [level(0, i), level(1, i), level(2, i)]).collect();
    Ok(Picture { rgb, ..*picture })
}

/// The points of one person, in COCO's order, in pixels of the picture.
pub(super) fn body(network: &Network, picture: &Picture, area: &Area) -> Result<Vec<Point>, Error> {
    let (width, height) = network.size().unwrap_or(SIZE_PX);
    let aspect = width as f64 / height as f64;
    let centre = [(area[0] + area[2]) / 2.0, (area[1] + area[3]) / 2.0];
    let (w, h) = ((area[2] - area[0]) * PADDING, (area[3] - area[1]) * PADDING);
    let size = if w > h * aspect { [w, w / aspect] } else { [h * aspect, h] };
    let crop = part(picture, centre, size[0] / width as f64, (width, height));
    let outputs = network.run(&normalised(&crop, MEAN, DEVIATION, false))?;
    let classes = |n: usize| (n as f64 * CLASSES_PER_PX) as usize;
    let fits = |o: &Output, n: usize| matches!(o.shape[..], [points, c] if points >= BODY && c == classes(n));
    let [x, y] = &outputs[..] else { return Err(unlike(network, width, height)) };
    if !fits(x, width) || !fits(y, height) || x.shape[0] != y.shape[0] {
        return Err(unlike(network, width, height));
    }
    let points = x.values.chunks_exact(x.shape[1]).zip(y.values.chunks_exact(y.shape[1]));
    let point = |(x, y): (&[f32], &[f32])| {
        let ((x, sure_x), (y, sure_y)) = (most(x), most(y));
        let at = |class: usize, axis: usize, n: usize| {
            class as f64 / CLASSES_PER_PX / n as f64 * size[axis] + centre[axis] - size[axis] / 2.0
        };
        Point { x: at(x, 0, width), y: at(y, 1, height), score: sure_x.min(sure_y) }
    };
    Ok(points.take(BODY).map(point).collect())
}

fn unlike(network: &Network, width: usize, height: usize) -> Error {
    let classes = |n: usize| (n as f64 * CLASSES_PER_PX) as usize;
    network.error(format!(
        "finds no poses; expected RTMPose or DWPose: a picture [1, 3, {height}, {width}] to [1, points, {}] and [1, points, {}], \
         17 points or more",
        classes(width),
        classes(height)
    ))
}

/// The first place of the largest value, and the value.
fn most(values: &[f32]) -> (usize, f32) {
    let mut best = (0, f32::NEG_INFINITY);
    values.iter().enumerate().for_each(|(i, v)| {
        if *v > best.1 {
            best = (i, *v)
        }
    });
    best
}

/// A part of a picture, `scale` of its pixels to one, black around it: OpenCV's `warpAffine` with `INTER_LINEAR`.
fn part(picture: &Picture, centre: [f64; 2], scale: f64, (width, height): (usize, usize)) -> Picture {
    let at = |x: isize, y: isize, c: usize| -> f64 {
        let inside = (0..picture.width as isize).contains(&x) && (0..picture.height as isize).contains(&y);
        if inside { f64::from(picture.rgb[(y as usize * picture.width + x as usize) * 3 + c]) } else { 0.0 }
    };
    let mut rgb = Vec::with_capacity(width * height * 3);
    for y in 0..height {
        let from_y = centre[1] + (y as f64 - height as f64 / 2.0) * scale;
        for x in 0..width {
            let from_x = centre[0] + (x as f64 - width as f64 / 2.0) * scale;
            let (left, top) = (from_x.floor(), from_y.floor());
            let (u, v) = (from_x - left, from_y - top);
            let (left, top) = (left as isize, top as isize);
            for c in 0..3 {
                let above = at(left, top, c) * (1.0 - u) + at(left.saturating_add(1), top, c) * u;
                let below = top.saturating_add(1);
                let below = at(left, below, c) * (1.0 - u) + at(left.saturating_add(1), below, c) * u;
                rgb.push((above * (1.0 - v) + below * v).round_ties_even() as u8);
            }
        }
    }
    Picture { width, height, rgb }
}
