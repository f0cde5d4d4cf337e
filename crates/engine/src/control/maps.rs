//! The maps that can be made of a picture: one row each.

use super::{canny, lines};
use crate::picture::{Filter, Picture, resize};
use crate::request::Control;

/// One way to make a map of a picture.
pub struct Map {
    /// Name in requests.
    pub name: &'static str,
    /// For people.
    pub about: &'static str,
    /// How it is made of a picture of the request's size, or what to do where this program cannot make it.
    pub make: Result<fn(&Picture, &Control) -> Picture, &'static str>,
}

/// All maps; the first is the default.
pub static MAPS: &[Map] = &[
    Map { name: "none", about: "the picture as it is: a map made elsewhere", make: Ok(|p, _| p.clone()) },
    Map {
        name: "canny",
        about: "edges, equal to OpenCV's Canny",
        make: Ok(|p, c| canny::canny(p, c.canny_low.unwrap_or(CANNY.0), c.canny_high.unwrap_or(CANNY.1))),
    },
    Map {
        name: "lineart",
        about: "lines: what is darker than its surroundings (difference of two blurs)",
        make: Ok(|p, _| lines::lines(p)),
    },
    Map {
        name: "tile",
        about: "the picture with less detail (tile_downscale), to be drawn anew",
        make: Ok(tile),
    },
    Map {
        name: "depth",
        about: "not made here: give a depth map, near is white, with none",
        make: Err(
            "needs a network that estimates depth, which this program does not have: make the map with e.g. Depth \
                   Anything or MiDaS (near is white) and give it with preprocess none",
        ),
    },
    Map {
        name: "pose",
        about: "not made here: give an OpenPose drawing with none",
        make: Err(
            "needs a network that finds poses, which this program does not have: make the drawing with e.g. OpenPose or \
                   DWPose and give it with preprocess none",
        ),
    },
];

/// Thresholds of InstantStyle's scripts (`infer_style_controlnet.py`).
pub(crate) const CANNY: (f64, f64) = (50.0, 200.0);

/// The picture made smaller and enlarged again.
fn tile(picture: &Picture, control: &Control) -> Picture {
    let factor = control.tile_downscale.unwrap_or(1.0);
    if factor <= 1.0 {
        return picture.clone();
    }
    let less = |side: usize| ((side as f64 / factor).round_ties_even() as usize).max(1);
    let small = resize(picture, less(picture.width), less(picture.height), Filter::Lanczos);
    resize(&small, picture.width, picture.height, Filter::Lanczos)
}

/// The row of [`MAPS`] for a name.
pub(crate) fn map_of(name: &str) -> Option<&'static Map> {
    MAPS.iter().find(|m| m.name == name)
}
