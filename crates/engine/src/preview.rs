//! Previews while a picture is denoised: of the clean latents that the latest prediction implies, by a linear map from latents to
//! colours (one pixel for each latent), or by a small decoder of TAESD's kind.

use crate::embedded;
use crate::encode::{channels_last, planes};
use crate::error::Error;
use crate::model::Place;
use crate::model_error;
use crate::picture::{Filter, Picture, resize};
use crate::plan::Plan;
use crate::rng::TorchRng;
use instantstyle_nets::Tensor;
use instantstyle_nets::vae::{Decoder, Encoder, VaeConfig};
use instantstyle_nets::weights::Weights;
use std::path::{Path, PathBuf};

/// What previews are wanted.
#[derive(Clone, Debug)]
pub struct Previews {
    /// After every so manyth model call; the last always.
    pub every: usize,
    /// A small autoencoder (Diffusers folder or file); a linear map where there is none.
    pub decoder: Option<PathBuf>,
}

/// A linear map from latents, as the UNet sees them, to red, green and blue from 0 to 255.
#[derive(Clone, Debug, PartialEq)]
pub struct LatentRgb {
    /// Per channel of the latents.
    pub factors: Vec<[f64; 3]>,
    /// Added.
    pub bias: [f64; 3],
}

/// Makes previews.
pub struct Previewer {
    every: usize,
    kind: Kind,
}

enum Kind {
    Linear(LatentRgb),
    Small(Box<Decoder>),
}

impl Previewer {
    /// For a plan: with the small decoder that is asked for, the map that is published for the family, or one that is fitted to
    /// the model's own autoencoder.
    ///
    /// # Errors
    /// If a file is missing or does not fit.
    pub fn new(plan: &Plan, asked: &Previews) -> Result<Self, Error> {
        let channels = plan.vae.latent_channels;
        let kind = match &asked.decoder {
            Some(path) => Kind::Small(Box::new(small(path, plan)?)),
            None => Kind::Linear(match plan.family.latent_rgb {
                Some((factors, bias)) if factors.len() == channels => {
                    LatentRgb { factors: factors.to_vec(), bias: *bias }
                }
                _ => fitted(plan)?,
            }),
        };
        Ok(Previewer { every: asked.every.max(1), kind })
    }

    /// True if call `done` (from 1) of `calls` is followed by a preview.
    pub fn due(&self, done: usize, calls: usize) -> bool {
        done % self.every == 0 || done == calls
    }

    /// Of latents [channels, h, w].
    pub fn picture(&self, latents: &[f32], height: usize, width: usize) -> Option<Picture> {
        let channels = latents.len() / (height * width);
        let x = channels_last(latents, channels, height, width);
        match &self.kind {
            Kind::Linear(map) => Picture::new(width, height, map.apply(&x)),
            Kind::Small(decoder) => {
                let scaling = decoder.config().scaling_factor as f32;
                let x = Tensor::new(x.shape(), x.data().iter().map(|v| v / scaling).collect());
                let out = decoder.forward(&x);
                let rgb = out.data().iter().map(|v| crate::decode::level(*v)).collect();
                Picture::new(out.dim(2), out.dim(1), rgb)
            }
        }
    }
}

impl LatentRgb {
    /// The colours of latents [1, h, w, channels].
    fn apply(&self, x: &Tensor) -> Vec<u8> {
        let pixel = |cell: &[f32]| {
            let colour = |c: usize| {
                let sum: f64 = cell.iter().zip(&self.factors).map(|(v, f)| f64::from(*v) * f[c]).sum();
                (sum + self.bias[c]).round().clamp(0.0, 255.0) as u8
            };
            [colour(0), colour(1), colour(2)]
        };
        x.data().chunks_exact(self.factors.len()).flat_map(pixel).collect()
    }
}

/// The small decoder in a folder or file.
fn small(path: &Path, plan: &Plan) -> Result<Decoder, Error> {
    let (config, weights) = decoder_files(path, plan)?;
    Decoder::load(&config, &weights).map_err(model_error)
}

/// Its configuration and its weights.
pub(crate) fn decoder_files(path: &Path, plan: &Plan) -> Result<(VaeConfig, Weights), Error> {
    if !path.exists() {
        return Err(Error::file(path, "there is no such file or folder (the preview's decoder)"));
    }
    let (config, weights) = if path.is_dir() {
        let place = Place::Disk(path.to_owned());
        (place.join("config.json").config::<VaeConfig>()?, place.component()?)
    } else {
        let weights = Weights::open(path).map_err(|e| Error::file(e.path(), e.message()))?;
        let config = VaeConfig::of_tiny(&weights);
        let config = config.ok_or_else(|| {
            Error::file(
                path,
                "is no small autoencoder, expected one of TAESD's kind, e.g. taesd_decoder.safetensors",
            )
        })?;
        (config, weights)
    };
    if config.latent_channels != plan.vae.latent_channels {
        return Err(Error::file(
            path,
            format!(
                "decodes {} channels, the model has latents of {}: it is for another family of models",
                config.latent_channels, plan.vae.latent_channels
            ),
        ));
    }
    Ok((config, weights))
}

/// The map that is nearest, in the least squares, to what the model's own decoder makes of latents: those of the pictures that
/// the model brings along, or of noise where it has none.
fn fitted(plan: &Plan) -> Result<LatentRgb, Error> {
    let weights = plan.vae_place.component_or_file()?;
    let encoder = Encoder::load(&plan.vae, &weights).map_err(model_error)?;
    let decoder = Decoder::load(&plan.vae, &weights).map_err(model_error)?;
    let (factor, channels) = (plan.vae.factor(), plan.vae.latent_channels);
    let scaling = plan.vae.scaling_factor;
    let n = channels + 1;
    let mut normal = vec![vec![0f64; n]; n];
    let mut right = vec![[0f64; 3]; n];
    for latents in samples(plan, &encoder)? {
        let decoded = decoder.forward(&latents);
        let width = latents.dim(2);
        for (i, cell) in latents.data().chunks_exact(channels).enumerate() {
            let mut row: Vec<f64> = cell.iter().map(|v| f64::from(*v) * scaling).collect();
            row.push(1.0);
            let colour = mean(&decoded, i / width * factor, i % width * factor, factor);
            for (a, x) in row.iter().enumerate() {
                row.iter().zip(&mut normal[a]).for_each(|(y, sum)| *sum += x * y);
                colour.iter().zip(&mut right[a]).for_each(|(c, sum)| *sum += x * c);
            }
        }
    }
    let solved = solve(normal, right);
    let (bias, factors) = solved.split_last().ok_or_else(|| Error::Internal("no channels".into()))?;
    Ok(LatentRgb { factors: factors.to_vec(), bias: *bias })
}

/// Latents on a side.
const CELLS: usize = 16;

/// Latents as the decoder reads them, [1, 16, 16, channels] each.
fn samples(plan: &Plan, encoder: &Encoder) -> Result<Vec<Tensor>, Error> {
    let (channels, side) = (plan.vae.latent_channels, CELLS * plan.vae.factor());
    let card = if plan.model == Place::embedded() { embedded::card() } else { serde_json::Value::Null };
    let shown = card["demo"]["references"].as_array().cloned().unwrap_or_default();
    let mut out = Vec::new();
    for name in shown.iter().filter_map(|r| r["image"].as_str()) {
        let picture =
            resize(&crate::references::picture(&plan.model.join(name))?, side, side, Filter::Lanczos);
        let values = picture.rgb.iter().map(|v| f32::from(*v) / 127.5 - 1.0).collect::<Vec<_>>();
        let coded = planes(&encoder.forward(&Tensor::new([1, side, side, 3], values)));
        out.push(channels_last(&coded[..channels * CELLS * CELLS], channels, CELLS, CELLS));
    }
    let mut rng = TorchRng::new(0);
    while out.len() < 4 {
        let noise = rng.normal_f32(channels * CELLS * CELLS);
        let noise: Vec<f32> = noise.iter().map(|v| v / plan.vae.scaling_factor as f32).collect();
        out.push(channels_last(&noise, channels, CELLS, CELLS));
    }
    Ok(out)
}

/// Mean colour of a square of [1, h, w, 3] in -1..1, from 0 to 255.
fn mean(picture: &Tensor, y: usize, x: usize, side: usize) -> [f64; 3] {
    let width = picture.dim(2);
    let mut sum = [0f64; 3];
    for i in 0..side * side {
        let pixel = &picture.data()[((y + i / side) * width + x + i % side) * 3..][..3];
        sum.iter_mut().zip(pixel).for_each(|(s, v)| *s += f64::from(v.clamp(-1.0, 1.0)));
    }
    sum.map(|s| (s / (side * side) as f64 * 0.5 + 0.5) * 255.0)
}

/// Solves the normal equations by Gauss' elimination with pivots; what is undetermined becomes 0.
fn solve(mut a: Vec<Vec<f64>>, mut b: Vec<[f64; 3]>) -> Vec<[f64; 3]> {
    let n = a.len();
    for i in 0..n {
        let pivot = (i..n).max_by(|x, y| a[*x][i].abs().total_cmp(&a[*y][i].abs())).unwrap_or(i);
        a.swap(i, pivot);
        b.swap(i, pivot);
        if a[i][i].abs() < 1e-9 {
            continue;
        }
        let (pivot, pivot_right) = (a[i].clone(), b[i]);
        for (_, (row, right)) in a.iter_mut().zip(&mut b).enumerate().filter(|(j, _)| *j != i) {
            let part = row[i] / pivot[i];
            row.iter_mut().zip(&pivot).for_each(|(x, p)| *x -= part * p);
            right.iter_mut().zip(pivot_right).for_each(|(x, p)| *x -= part * p);
        }
    }
    (0..n).map(|i| if a[i][i].abs() < 1e-9 { [0.0; 3] } else { b[i].map(|v| v / a[i][i]) }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::Request;

    #[test]
    fn equations_are_solved() {
        let x = solve(vec![vec![0.0, 2.0], vec![4.0, 1.0]], vec![[2.0, 4.0, 0.0], [9.0, 2.0, 4.0]]);
        assert_eq!(x, [[2.0, 0.0, 1.0], [1.0, 2.0, 0.0]]);
    }

    /// The published factors: keturn in the Hugging Face forum (SD1.x), diffusers' documentation of callbacks (SDXL).
    #[test]
    fn published_factors_give_their_colours() {
        let of = |name: &str| {
            let family = crate::family::FAMILIES.iter().find(|f| f.name == name).expect("a family");
            let (factors, bias) = family.latent_rgb.expect("published");
            LatentRgb { factors: factors.to_vec(), bias: *bias }
        };
        let colour = |name: &str, cell: [f32; 4]| of(name).apply(&Tensor::new([1, 1, 1, 4], cell.to_vec()));
        // ((0.298 - 0.184 · 0.5, 0.207 - 0.271 · 0.5, 0.208 - 0.473 · 0.5) + 1) / 2 · 255
        assert_eq!(colour("sd15", [1.0, 0.0, 0.0, 0.5]), [154, 137, 124]);
        assert_eq!(colour("sd15", [0.0, 1.0, -1.0, 0.0]), [171, 140, 116]);
        assert_eq!(colour("sdxl", [0.5, 0.0, 0.0, -0.5]), [215, 195, 178]);
        assert_eq!(colour("sdxl", [0.0, 1.0, 1.0, 0.0]), [115, 150, 135]);
    }

    /// A map of twelve channels to three cannot tell all colours: how near it comes is measured on the pictures themselves.
    #[test]
    fn a_fitted_map_gives_the_colours_of_pictures() {
        if embedded::file("model_index.json").is_none() {
            return;
        }
        let plan = Plan::resolve_within(&Request::default(), None).expect("a plan");
        let previewer = Previewer::new(&plan, &Previews { every: 1, decoder: None }).expect("a map");
        let weights = plan.model.join("vae").component().expect("weights");
        let encoder = Encoder::load(&plan.vae, &weights).expect("an encoder");
        let card = embedded::card();
        let shown = card["demo"]["references"].as_array().expect("references");
        let mut sum = 0.0;
        for (latents, reference) in samples(&plan, &encoder).expect("latents").iter().zip(shown) {
            let name = reference["image"].as_str().expect("a name");
            let picture = crate::references::picture(&plan.model.join(name)).expect("a picture");
            let scaled: Vec<f32> =
                planes(latents).iter().map(|v| v * plan.vae.scaling_factor as f32).collect();
            let preview = previewer.picture(&scaled, CELLS, CELLS).expect("a preview");
            let r = correlation(&preview.rgb, &resize(&picture, CELLS, CELLS, Filter::Lanczos).rgb);
            println!("{name}: correlation {r:.2}");
            sum += r / shown.len() as f64;
        }
        assert!(sum > 0.7, "{sum}");
    }

    fn correlation(a: &[u8], b: &[u8]) -> f64 {
        let mean = |x: &[u8]| x.iter().map(|v| f64::from(*v)).sum::<f64>() / x.len() as f64;
        let (ma, mb) = (mean(a), mean(b));
        let sum = |x: &[u8], mx: f64, y: &[u8], my: f64| {
            x.iter().zip(y).map(|(p, q)| (f64::from(*p) - mx) * (f64::from(*q) - my)).sum::<f64>()
        };
        sum(a, ma, b, mb) / (sum(a, ma, a, ma) * sum(b, mb, b, mb)).sqrt()
    }
}
