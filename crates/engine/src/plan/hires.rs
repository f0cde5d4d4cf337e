//! The second of two passes, resolved: what would be asked for by hand, with the first picture as its start.

use super::{Plan, side};
use crate::error::Error;
use crate::request::{Hires, Init, Request, Upscale};
use std::path::PathBuf;

/// The request of the second pass, and `hires` with its defaults filled in.
pub(super) fn second(first: &Plan, asked: &Hires) -> Result<(Request, Hires), Error> {
    let factor = first.vae.factor();
    let scale = asked.scale.unwrap_or(Hires::SCALE);
    // One side given: the other follows.
    let scale = match (asked.width, asked.height) {
        (Some(w), None) => w as f64 / first.width as f64,
        (None, Some(h)) => h as f64 / first.height as f64,
        _ => scale,
    };
    let scaled = |side: usize| ((side as f64 * scale / factor as f64).round() as usize).max(1) * factor;
    let width = side("hires.width", asked.width.unwrap_or(scaled(first.width)), factor)?;
    let height = side("hires.height", asked.height.unwrap_or(scaled(first.height)), factor)?;
    for (name, new, old) in [("width", width, first.width), ("height", height, first.height)] {
        if new < old {
            return Err(Error::request(
                format!("hires.{name}"),
                format!(
                    "is {new}, less than the first pass has, which is {old}; set {name} to less, or this to more"
                ),
            ));
        }
    }
    let strength = asked.strength.unwrap_or(Hires::STRENGTH);
    let steps = asked.steps.unwrap_or(first.steps);
    let mut request = first.request.clone();
    let (mask, blend_px) = request.init.as_ref().map_or((None, None), |i| (i.mask.clone(), i.blend_px));
    if mask.is_some() && asked.upscale != Upscale::Pixel {
        return Err(Error::request(
            "hires.upscale",
            "must be pixel where a mask says what is repainted: what is kept is taken from the picture",
        ));
    }
    request.width = Some(width);
    request.height = Some(height);
    request.steps = Some(steps);
    request.init = Some(Init { image: PathBuf::new(), strength: Some(strength), mask, blend_px });
    let filled = Hires {
        scale: None,
        width: Some(width),
        height: Some(height),
        strength: Some(strength),
        upscale: asked.upscale,
        steps: Some(steps),
    };
    Ok((request, filled))
}
