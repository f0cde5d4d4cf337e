//! A picture as CLIP's image tower wants it: transformers' `CLIPImageProcessor` (the Pillow one).

use super::Picture;
use super::resize::{Filter, resize_part};

/// The steps' parameters (`preprocessor_config.json`).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ClipPreprocess {
    /// The shortest edge is resized to this …
    pub resize: usize,
    /// … and a square of this cut from the middle.
    pub crop: usize,
    /// Per channel, of values in 0..1.
    pub mean: [f32; 3],
    /// Per channel.
    pub std: [f32; 3],
}

impl ClipPreprocess {
    /// CLIP's own constants for a tower of this size (224 for nearly every model).
    #[allow(clippy::excessive_precision)] // As published.
    pub fn new(size: usize) -> Self {
        ClipPreprocess {
            resize: size,
            crop: size,
            mean: [0.48145466, 0.4578275, 0.40821073],
            std: [0.26862954, 0.26130258, 0.27577711],
        }
    }
}

/// Shortest edge resized (bicubic), centre cut out, normalised: `[3, crop, crop]`. A crop larger than the resized
/// picture is filled up with black, as transformers does.
///
/// # Panics
/// If a size is 0.
pub fn clip_preprocess(picture: &Picture, params: &ClipPreprocess) -> Vec<f32> {
    let (w, h) = (picture.width, picture.height);
    let (short, long) = (w.min(h), w.max(h));
    // Python's int(size * long / short): the quotient is rounded to a double, then cut.
    let long = ((params.resize * long) as f64 / short as f64) as usize;
    let (new_w, new_h) = if w <= h { (params.resize, long) } else { (long, params.resize) };
    let crop = params.crop;
    // Only the part that stays is computed.
    let (x, left) = span(new_w, crop);
    let (y, top) = span(new_h, crop);
    let (columns, rows) = (x.len(), y.len());
    let part = resize_part::<3>(&picture.rgb, (w, h), (new_w, new_h), Filter::Bicubic, (x, y));
    let mut out = vec![0.0; 3 * crop * crop];
    for (c, plane) in out.chunks_exact_mut(crop * crop).enumerate() {
        // In double, then single precision, as numpy there.
        let value = |v: u8| ((v as f64 * 0.00392156862745098) as f32 - params.mean[c]) / params.std[c];
        plane.fill(value(0));
        for r in 0..rows {
            for k in 0..columns {
                plane[(top + r) * crop + left + k] = value(part[(r * columns + k) * 3 + c]);
            }
        }
    }
    out
}

/// Which of `size` samples stay in a crop from the middle, and where in the crop they begin.
fn span(size: usize, crop: usize) -> (std::ops::Range<usize>, usize) {
    if size >= crop {
        let start = (size - crop) / 2;
        (start..start + crop, 0)
    } else {
        // transformers pads with ceil((crop - size) / 2) before, then cuts at floor((size - crop) / 2) + that.
        (0..size, (crop - size).div_ceil(2))
    }
}
