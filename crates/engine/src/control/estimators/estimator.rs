//! Networks that take a picture and give a map of it.

use super::network::{Network, Output};
use super::planes::{Between, Planes};
use crate::error::Error;
use crate::picture::{Filter, Picture, resize};
use std::path::Path;

/// A kind of network: what it is given, and how its outputs are read.
pub struct Estimator {
    /// What the file is, for people.
    pub expects: &'static str,
    /// The size of the picture that it sees, where the file leaves it free.
    fit: Fit,
    filter: Filter,
    /// Values 0..255 less these, divided by those, in the order of the network's channels.
    mean: [f32; 3],
    deviation: [f32; 3],
    /// It sees blue first.
    bgr: bool,
    read: Read,
}

/// How the size of a network's picture follows from the size of the request.
enum Fit {
    /// One side has this many pixels, the other keeps the aspect: the side for which less is resized. Both become a multiple.
    Nearer { side_px: usize, multiple_px: usize },
    /// The shorter side has this many pixels, the longer keeps the aspect. Both become a multiple.
    Shorter { side_px: usize, multiple_px: usize },
    /// A square.
    Square { side_px: usize },
}

impl Fit {
    fn size(&self, width: usize, height: usize) -> (usize, usize) {
        let (w, h) = (width as f64, height as f64);
        let (scale, multiple) = match *self {
            Fit::Nearer { side_px, multiple_px } => {
                let (by_width, by_height) = (side_px as f64 / w, side_px as f64 / h);
                let nearer = (1.0 - by_width).abs() < (1.0 - by_height).abs();
                (if nearer { by_width } else { by_height }, multiple_px)
            }
            Fit::Shorter { side_px, multiple_px } => (side_px as f64 / w.min(h), multiple_px),
            Fit::Square { side_px } => return (side_px, side_px),
        };
        let side = |n: f64| ((scale * n / multiple as f64).round_ties_even() as usize).max(1) * multiple;
        (side(w), side(h))
    }
}

/// The resolution at which controlnet_aux's detectors see a picture (`util.resize_image`, `detect_resolution`).
const AUX: Fit = Fit::Shorter { side_px: 512, multiple_px: 64 };

/// The size of the picture that controlnet_aux's detectors see.
pub(super) fn aux_size(width: usize, height: usize) -> (usize, usize) {
    AUX.size(width, height)
}

/// How the outputs of a network become a map.
enum Read {
    /// The only output: what is near is large. Least to greatest becomes 0 to 255.
    Depth,
    /// All outputs, one plane each: the sigmoid of their mean.
    Sides,
    /// The last output, 0..1.
    Edges,
    /// The only output, 0..1, dark lines on white.
    Lines,
    /// Three planes of the last output, -1..1.
    Normals,
}

const IMAGENET_MEAN: [f32; 3] = [0.485 * 255.0, 0.456 * 255.0, 0.406 * 255.0];
const IMAGENET_DEVIATION: [f32; 3] = [0.229 * 255.0, 0.224 * 255.0, 0.225 * 255.0];

/// Depth Anything (Yang et al., 2024), V1 and V2: `preprocessor_config.json` beside its ONNX files, read by transformers'
/// `DPTImageProcessor`; the map is that of transformers' depth pipeline.
///
/// The runtime resizes linearly where a file says cubically. Depth Anything resizes its position embeddings so, which changes
/// nothing for square pictures (they are seen at the size of its training). Beside onnxruntime, a tiny random network whose 37×37
/// positions became 25×37 was 1 level of 255 off; one whose 5×5 became 25×37, 8 levels. Trained networks were not compared.
pub const DEPTH: Estimator = Estimator {
    expects: "Depth Anything V1 or V2: a picture [1, 3, height, width] to a depth [1, height, width]",
    fit: Fit::Nearer { side_px: 518, multiple_px: 14 },
    filter: Filter::Bicubic,
    mean: IMAGENET_MEAN,
    deviation: IMAGENET_DEVIATION,
    bgr: false,
    read: Read::Depth,
};

/// MiDaS 3 with DPT (Ranftl et al., 2021), as `Intel/dpt-large` and `dpt-hybrid-midas` are configured.
pub const DEPTH_MIDAS: Estimator = Estimator {
    expects: "MiDaS 3 (DPT): a picture [1, 3, 384, 384] to a depth [1, height, width]",
    fit: Fit::Square { side_px: 384 },
    filter: Filter::Bicubic,
    mean: [127.5; 3],
    deviation: [127.5; 3],
    bgr: false,
    read: Read::Depth,
};

/// HED (Xie & Tu, 2015) as ControlNet's authors trained it: controlnet_aux `hed/__init__.py`.
pub const SOFTEDGE_HED: Estimator = Estimator {
    expects: "ControlNet's HED: a picture [1, 3, height, width] to side outputs of one channel each",
    fit: AUX,
    filter: Filter::Lanczos,
    mean: [0.0; 3],
    deviation: [1.0; 3],
    bgr: false,
    read: Read::Sides,
};

/// PiDiNet (Su et al., 2021): controlnet_aux `pidi/__init__.py`.
pub const SOFTEDGE_PIDINET: Estimator = Estimator {
    expects: "PiDiNet: a picture [1, 3, height, width] to edges of one channel, the last output",
    fit: AUX,
    filter: Filter::Lanczos,
    mean: [0.0; 3],
    deviation: [255.0; 3],
    bgr: true,
    read: Read::Edges,
};

/// Informative drawings (Chan et al., 2022): controlnet_aux `lineart/__init__.py`.
pub const LINEART_REALISTIC: Estimator = Estimator {
    expects: "informative drawings' generator: a picture [1, 3, height, width] to lines of one channel",
    fit: AUX,
    filter: Filter::Lanczos,
    mean: [0.0; 3],
    deviation: [255.0; 3],
    bgr: false,
    read: Read::Lines,
};

/// Surface normals (Bae et al., 2021): controlnet_aux `normalbae/__init__.py`.
pub const NORMAL_BAE: Estimator = Estimator {
    expects: "NormalBae: a picture [1, 3, height, width] to normals of three channels or more, the last output",
    fit: AUX,
    filter: Filter::Lanczos,
    mean: IMAGENET_MEAN,
    deviation: IMAGENET_DEVIATION,
    bgr: false,
    read: Read::Normals,
};

impl Estimator {
    /// The map of a picture, of its size.
    ///
    /// # Errors
    /// If the file is no such network.
    pub fn map(&self, picture: &Picture, file: &Path) -> Result<Picture, Error> {
        let network = Network::open(file)?;
        let (width, height) = network.size().unwrap_or_else(|| self.fit.size(picture.width, picture.height));
        let seen = resize(picture, width, height, self.filter);
        let outputs = network.run(&normalised(&seen, self.mean, self.deviation, self.bgr))?;
        let size = (picture.width, picture.height);
        self.read(outputs, (width, height), size)
            .ok_or_else(|| network.error(format!("gives no such map; expected {}", self.expects)))
    }

    /// None if the outputs are not as they should be.
    fn read(&self, mut outputs: Vec<Output>, seen: (usize, usize), size: (usize, usize)) -> Option<Picture> {
        let (width, height) = size;
        let bytes = |planes: &Planes, value: &dyn Fn(f32) -> f32| {
            // As numpy's `astype(uint8)`: cut, not rounded.
            let values = planes.values.iter().map(|v| f32::from(value(*v) as u8)).collect();
            Planes { values, ..*planes }.resized(width, height, Between::Linear)
        };
        let unit = |v: f32| v * 255.0;
        // One plane of the size of what the network saw.
        let plane = |output: Output| {
            output.planes().filter(|p| (p.channels, p.width, p.height) == (1, seen.0, seen.1))
        };
        let map = match self.read {
            Read::Depth => {
                let depth =
                    outputs.pop().filter(|_| outputs.is_empty())?.planes().filter(|p| p.channels == 1)?;
                let depth = depth.resized(width, height, Between::Cubic);
                let least = depth.values.iter().copied().fold(f32::INFINITY, f32::min);
                let most = depth.values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                // The same depth everywhere is the same grey everywhere.
                let range = if most > least { most - least } else { 1.0 };
                let level = |v: &f32| f32::from(((v - least) / range * 255.0) as u8);
                Planes { values: depth.values.iter().map(level).collect(), ..depth }
            }
            Read::Sides => {
                let mut sum = Planes { channels: 1, height: seen.1, width: seen.0, values: Vec::new() };
                sum.values = vec![0.0; seen.0 * seen.1];
                let count = outputs.len() as f32;
                for side in outputs {
                    let side = side.planes().filter(|p| p.channels == 1)?;
                    let side = side.resized(seen.0, seen.1, Between::Linear);
                    sum.values.iter_mut().zip(&side.values).for_each(|(s, v)| *s += v);
                }
                bytes(&sum, &|s| 255.0 / (1.0 + (-s / count).exp()))
            }
            Read::Edges => bytes(&plane(outputs.pop()?)?, &unit),
            Read::Lines => {
                let lines = plane(outputs.pop().filter(|_| outputs.is_empty())?)?;
                let mut lines = bytes(&lines, &unit);
                lines.values.iter_mut().for_each(|v| *v = 255.0 - *v);
                lines
            }
            Read::Normals => {
                let normals = outputs.pop()?.planes().filter(|p| p.channels >= 3)?.first(3);
                bytes(&normals, &|v| (v + 1.0) * 127.5)
            }
        };
        Some(picture(&map))
    }
}

/// What a network sees of a picture.
pub(super) fn normalised(picture: &Picture, mean: [f32; 3], deviation: [f32; 3], bgr: bool) -> Planes {
    let mut values = Vec::with_capacity(picture.rgb.len());
    for (c, (mean, deviation)) in mean.into_iter().zip(deviation).enumerate() {
        let from = if bgr { 2 - c } else { c };
        values.extend(picture.rgb.iter().skip(from).step_by(3).map(|v| (f32::from(*v) - mean) / deviation));
    }
    Planes { channels: 3, height: picture.height, width: picture.width, values }
}

/// One plane is grey, three are colours; levels are rounded.
fn picture(planes: &Planes) -> Picture {
    let pixels = planes.width * planes.height;
    let level =
        |c: usize, i: usize| planes.values[c.min(planes.channels - 1) * pixels + i].round_ties_even() as u8;
    let rgb = (0..pixels).flat_map(|i| [level(0, i), level(1, i), level(2, i)]).collect();
    Picture { width: planes.width, height: planes.height, rgb }
}
