//! A picture as CLIP's image tower wants it: transformers' `CLIPImageProcessor` (the Pillow one).

use super::Picture;
use super::resize::{Filter, resize_part};
use serde_json::Value;

/// The steps' parameters (`preprocessor_config.json`).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ClipPreprocess {
    /// The shortest edge is resized to this …
    pub resize: usize,
    /// … with this filter,
    pub filter: Filter,
    /// … and a square of this cut from the middle.
    pub crop: usize,
    /// 8-bit values are multiplied by it.
    pub rescale: f64,
    /// Per channel, of rescaled values.
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
            filter: Filter::Bicubic,
            crop: size,
            rescale: 0.00392156862745098,
            mean: [0.48145466, 0.4578275, 0.40821073],
            std: [0.26862954, 0.26130258, 0.27577711],
        }
    }
}

/// No tower reads larger pictures.
const MAX_SIDE: u64 = 4096;

impl ClipPreprocess {
    /// From `preprocessor_config.json`; for what it lacks, the defaults of `CLIPImageProcessor`.
    ///
    /// # Errors
    /// If it asks for something else than shortest edge, square from the middle, rescaling and normalisation: names the
    /// key, what it is, and what is possible.
    pub fn from_json(json: &Value) -> Result<Self, String> {
        let wrong = |key: &str, allowed: &str| Err(format!("{key} is {}, expected {allowed}", json[key]));
        let usual = ClipPreprocess::new(224);
        for key in ["image_processor_type", "feature_extractor_type"] {
            match json[key].as_str() {
                None => {}
                Some(name) if name.starts_with("CLIP") => {}
                Some(_) => return wrong(key, "CLIPImageProcessor"),
            }
        }
        for key in ["do_resize", "do_center_crop"] {
            if !matches!(json[key], Value::Null | Value::Bool(true)) {
                return wrong(key, "true");
            }
        }
        let side = |value: &Value| value.as_u64().filter(|n| (1..=MAX_SIDE).contains(n)).map(|n| n as usize);
        let resize = match &json["size"] {
            Value::Null => usual.resize,
            Value::Object(map) if map.len() == 1 && map.contains_key("shortest_edge") => {
                side(&map["shortest_edge"])
                    .ok_or(format!("size is {}, expected 1 to {MAX_SIDE}", json["size"]))?
            }
            number => match side(number) {
                Some(n) => n,
                None => return wrong("size", "a number, or {\"shortest_edge\": number}"),
            },
        };
        let crop = match &json["crop_size"] {
            Value::Null => usual.crop,
            Value::Object(map) if map.get("height") == map.get("width") && map.contains_key("width") => {
                side(&map["width"])
                    .ok_or(format!("crop_size is {}, expected 1 to {MAX_SIDE}", json["crop_size"]))?
            }
            number => match side(number) {
                Some(n) => n,
                None => return wrong("crop_size", "a number, or the same height and width"),
            },
        };
        // PIL.Image.Resampling.
        let filter = match &json["resample"] {
            Value::Null => usual.filter,
            number => match number.as_u64() {
                Some(0) => Filter::Nearest,
                Some(1) => Filter::Lanczos,
                Some(2) => Filter::Bilinear,
                Some(3) => Filter::Bicubic,
                _ => return wrong("resample", "0 (nearest), 1 (Lanczos), 2 (bilinear) or 3 (bicubic)"),
            },
        };
        let on = |key: &str| match &json[key] {
            Value::Null => Ok(true),
            Value::Bool(on) => Ok(*on),
            other => Err(format!("{key} is {other}, expected true or false")),
        };
        let rescale = match (on("do_rescale")?, &json["rescale_factor"]) {
            (false, _) => 1.0,
            (true, Value::Null) => usual.rescale,
            (true, number) => match number.as_f64().filter(|f| f.is_finite() && *f > 0.0) {
                Some(factor) => factor,
                None => return wrong("rescale_factor", "a number above 0"),
            },
        };
        let normalised = on("do_normalize")?;
        let three = |key: &str, usual: [f32; 3], off: f32| {
            let Value::Array(list) = &json[key] else {
                let known = json[key].is_null();
                let usual = if normalised { usual } else { [off; 3] };
                return if known {
                    Ok(usual)
                } else {
                    Err(format!("{key} is {}, expected three numbers", json[key]))
                };
            };
            let numbers: Vec<f32> = list.iter().filter_map(|v| v.as_f64().map(|v| v as f32)).collect();
            let sound = |v: &f32| v.is_finite() && (key == "image_mean" || *v > 0.0);
            match numbers.as_slice() {
                &[r, g, b] if numbers.iter().all(sound) => Ok(if normalised { [r, g, b] } else { [off; 3] }),
                _ => Err(format!("{key} is {}, expected three numbers", json[key])),
            }
        };
        let (mean, std) = (three("image_mean", usual.mean, 0.0)?, three("image_std", usual.std, 1.0)?);
        Ok(ClipPreprocess { resize, filter, crop, rescale, mean, std })
    }
}

/// Shortest edge resized, centre cut out, normalised: `[3, crop, crop]`. A crop larger than the resized
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
    let part = resize_part::<3>(&picture.rgb, (w, h), (new_w, new_h), params.filter, (x, y));
    let mut out = vec![0.0; 3 * crop * crop];
    for (c, plane) in out.chunks_exact_mut(crop * crop).enumerate() {
        // In double, then single precision, as numpy there.
        let value = |v: u8| ((v as f64 * params.rescale) as f32 - params.mean[c]) / params.std[c];
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
