//! Where people are in a picture: YOLOX (Ge et al., 2021), as DWPose uses it (`yolox_l.onnx`).

use super::estimator::normalised;
use super::network::Network;
use crate::error::Error;
use crate::picture::{Filter, Picture, resize};
use std::path::Path;

/// Side of the picture where the file leaves it free, and the grey around it (DWPose `onnxdet.py`).
const SIDE_PX: usize = 640;
const GREY: u8 = 114;
/// Pixels of one cell of each grid.
const STRIDES: [usize; 3] = [8, 16, 32];
/// Scores from which a box is looked at, and from which it is a person; overlap from which two boxes are one.
const LOOKED_AT: f32 = 0.1;
const A_PERSON: f32 = 0.3;
const SAME: f64 = 0.45;

/// Left, top, right, bottom, in pixels.
pub type Area = [f64; 4];

/// The people of a picture, surest first.
///
/// # Errors
/// If the file is no such network.
pub fn people(picture: &Picture, file: &Path) -> Result<Vec<Area>, Error> {
    let network = Network::open(file)?;
    let (width, height) = network.size().unwrap_or((SIDE_PX, SIDE_PX));
    let ratio = (width as f64 / picture.width as f64).min(height as f64 / picture.height as f64);
    let side = |n: usize| ((n as f64 * ratio) as usize).max(1);
    let small = resize(picture, side(picture.width), side(picture.height), Filter::Bilinear);
    let mut padded = Picture { width, height, rgb: vec![GREY; width * height * 3] };
    for (to, from) in padded.rgb.chunks_exact_mut(width * 3).zip(small.rgb.chunks_exact(small.width * 3)) {
        to[..from.len()].copy_from_slice(from);
    }
    // Its training shows it values 0..255, blue first (mmdetection's `yolox_l_8xb8-300e_coco.py`).
    let output = network.run(&normalised(&padded, [0.0; 3], [1.0; 3], true))?.into_iter().next();
    let cells: Vec<(usize, usize, usize)> = STRIDES
        .iter()
        .flat_map(|s| (0..height / s).flat_map(move |y| (0..width / s).map(move |x| (x, y, *s))))
        .collect();
    let fits = |shape: &[usize]| matches!(*shape, [boxes, values] if boxes == cells.len() && values >= 6);
    let Some(output) = output.filter(|o| fits(&o.shape)) else {
        let boxes = cells.len();
        return Err(network.error(format!(
            "finds no people; expected YOLOX: a picture [1, 3, {height}, {width}] to boxes [1, {boxes}, 85]"
        )));
    };
    let mut found = Vec::new();
    for (b, (x, y, stride)) in output.values.chunks_exact(output.shape[1]).zip(cells) {
        // Of the classes the first is a person.
        let score = b[4] * b[5];
        if score <= LOOKED_AT {
            continue;
        }
        let stride = stride as f64;
        let centre = [(f64::from(b[0]) + x as f64) * stride, (f64::from(b[1]) + y as f64) * stride];
        let half = [f64::from(b[2]).exp() * stride / 2.0, f64::from(b[3]).exp() * stride / 2.0];
        let area = [centre[0] - half[0], centre[1] - half[1], centre[0] + half[0], centre[1] + half[1]];
        found.push((score, area.map(|v| v / ratio)));
    }
    found.retain(|(_, area)| area.iter().all(|v| v.is_finite()));
    found.sort_by(|a, b| b.0.total_cmp(&a.0));
    let mut kept: Vec<(f32, Area)> = Vec::new();
    for (score, area) in found {
        if kept.iter().all(|(_, other)| overlap(&area, other) <= SAME) {
            kept.push((score, area));
        }
    }
    Ok(kept.into_iter().filter(|(score, _)| *score > A_PERSON).map(|(_, area)| area).collect())
}

/// Intersection over union, of pixels.
fn overlap(a: &Area, b: &Area) -> f64 {
    let area = |c: &Area| (c[2] - c[0] + 1.0) * (c[3] - c[1] + 1.0);
    let width = (a[2].min(b[2]) - a[0].max(b[0]) + 1.0).max(0.0);
    let height = (a[3].min(b[3]) - a[1].max(b[1]) + 1.0).max(0.0);
    width * height / (area(a) + area(b) - width * height)
}
