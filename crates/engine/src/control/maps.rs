//! The maps that can be made of a picture: one row each.

use super::estimators::{self, Estimator};
use super::{canny, lines};
use crate::error::Error;
use crate::picture::{Filter, Picture, resize};
use crate::request::Control;
use std::path::Path;

/// One way to make a map of a picture.
pub struct Map {
    /// Name in requests.
    pub name: &'static str,
    /// For people.
    pub about: &'static str,
    /// How it is made of a picture of the request's size.
    pub make: Make,
}

/// How a map is made.
#[derive(Clone, Copy)]
pub enum Make {
    /// Of the picture alone.
    Plain(fn(&Picture, &Control) -> Picture),
    /// By a network, whose file the request names.
    Network(&'static Estimator),
    /// By a network that finds the points of a body, and, if the request names one, one that finds people.
    Pose,
}

impl Make {
    /// What the network's file is; none where none is needed.
    pub fn expects(&self) -> Option<&'static str> {
        match self {
            Make::Plain(_) => None,
            Make::Network(estimator) => Some(estimator.expects),
            Make::Pose => Some("DWPose or RTMPose: a picture [1, 3, 384, 288] to simcc_x and simcc_y"),
        }
    }

    /// The map of a picture of the request's size.
    ///
    /// # Errors
    /// If a network's file is missing from the request, damaged, or another kind's.
    pub fn map(&self, picture: &Picture, control: &Control) -> Result<Picture, Error> {
        let file = || {
            let missing = || Error::request("preprocess_model", "missing");
            control.preprocess_model.as_deref().ok_or_else(missing)
        };
        match self {
            Make::Plain(make) => Ok(make(picture, control)),
            Make::Network(estimator) => estimator.map(picture, file()?),
            Make::Pose => {
                let people = control.preprocess_detector.as_deref();
                estimators::pose(picture, file()?, people.map(Path::new))
            }
        }
    }
}

/// All maps; the first is the default.
pub static MAPS: &[Map] = &[
    Map {
        name: "none",
        about: "the picture as it is: a map made elsewhere",
        make: Make::Plain(|p, _| p.clone()),
    },
    Map {
        name: "canny",
        about: "edges, equal to OpenCV's Canny",
        make: Make::Plain(|p, c| {
            canny::canny(p, c.canny_low.unwrap_or(CANNY.0), c.canny_high.unwrap_or(CANNY.1))
        }),
    },
    Map {
        name: "lineart",
        about: "lines: what is darker than its surroundings (difference of two blurs)",
        make: Make::Plain(|p, _| lines::lines(p)),
    },
    Map {
        name: "tile",
        about: "the picture with less detail (tile_downscale), to be drawn anew",
        make: Make::Plain(tile),
    },
    Map {
        name: "depth",
        about: "near is white, by Depth Anything V1 or V2 (ONNX file in preprocess_model)",
        make: Make::Network(&estimators::DEPTH),
    },
    Map {
        name: "depth_midas",
        about: "the same by MiDaS 3 (DPT)",
        make: Make::Network(&estimators::DEPTH_MIDAS),
    },
    Map {
        name: "softedge_hed",
        about: "soft edges by ControlNet's HED (ONNX)",
        make: Make::Network(&estimators::SOFTEDGE_HED),
    },
    Map {
        name: "softedge_pidinet",
        about: "soft edges by PiDiNet (ONNX)",
        make: Make::Network(&estimators::SOFTEDGE_PIDINET),
    },
    Map {
        name: "lineart_realistic",
        about: "lines by the generator of informative drawings (ONNX)",
        make: Make::Network(&estimators::LINEART_REALISTIC),
    },
    Map {
        name: "normal_bae",
        about: "surface normals by NormalBae (ONNX)",
        make: Make::Network(&estimators::NORMAL_BAE),
    },
    Map {
        name: "pose",
        about: "bodies as OpenPose draws them, without hands and faces, by DWPose or RTMPose (ONNX; who is where by YOLOX in \
                preprocess_detector, or one person who fills the picture)",
        make: Make::Pose,
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
