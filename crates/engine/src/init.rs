//! Where sampling starts: from noise, or from a picture (image-to-image), of which a mask may say what is repainted
//! (inpainting). The draws and their order are those of diffusers' pipelines, so that a seed gives their picture.

use crate::encode::{channels_last, planes};
use crate::error::Error;
use crate::model::Place;
use crate::picture::{Filter, Picture, resize};
use crate::plan::Plan;
use crate::references::{mask_at, picture};
use crate::rng::TorchRng;
use crate::sampler::Sampler;
use instantstyle_nets::Tensor;
use instantstyle_nets::vae::{Encoder, VaeConfig};

/// The distribution of a picture's latents, [channels, h, w] each.
struct Moments {
    mean: Vec<f32>,
    /// None where nothing is drawn: small autoencoders give the latents themselves.
    deviation: Option<Vec<f32>>,
    /// True for latents as the UNet sees them.
    scaled: bool,
}

impl Moments {
    /// Of a picture [1, height, width, 3] in -1..1.
    fn of(plan: &Plan, encoder: &Encoder, picture: &Tensor) -> Self {
        let moments = match plan.tiling() {
            Some(tiling) => encoder.forward_tiled(picture, tiling),
            None => encoder.forward(picture),
        };
        let distribution = moments.channels() > plan.vae.latent_channels;
        let mut mean = planes(&moments);
        let deviation = distribution.then(|| {
            let logvar = mean.split_off(mean.len() / 2);
            // The bounds are those of diffusers' `DiagonalGaussianDistribution`.
            logvar.iter().map(|v| (0.5 * v.clamp(-30.0, 20.0)).exp()).collect()
        });
        Moments { mean, deviation, scaled: false }
    }

    /// Latents as the UNet sees them.
    fn draw(&self, vae: &VaeConfig, rng: &mut TorchRng) -> Vec<f32> {
        let mut sample = self.mean.clone();
        if let Some(deviation) = &self.deviation {
            let noise = rng.normal_f32(sample.len());
            sample.iter_mut().zip(deviation).zip(&noise).for_each(|((m, d), n)| *m += d * n);
        }
        if self.scaled {
            return sample;
        }
        let cells = sample.len() / vae.latent_channels;
        let scaling = vae.scaling_factor as f32;
        let norm = vae.latents_mean.as_ref().zip(vae.latents_std.as_ref());
        for (i, v) in sample.iter_mut().enumerate() {
            *v = match norm {
                Some((mean, std)) => (*v - mean[i / cells] as f32) * scaling / std[i / cells] as f32,
                None => *v * scaling,
            };
        }
        sample
    }
}

/// The picture of a request's `init`, encoded once for all pictures of the request.
pub struct Init {
    whole: Moments,
    mask: Option<Mask>,
}

struct Mask {
    /// The picture.
    picture: Picture,
    /// 1 where it is repainted, at the size of the picture.
    full: Vec<f32>,
    /// The same at the size of the latents.
    cells: Vec<f32>,
    /// The picture with grey where it is repainted.
    rest: Moments,
}

/// A picture of this much another aspect than the request's is stretched visibly.
const STRETCH: f64 = 1.02;

/// A picture of the request, resized to its size; says so where that stretches it.
pub(crate) fn fitted(
    field: &str,
    place: &Place,
    width: usize,
    height: usize,
    notice: &mut dyn FnMut(String),
) -> Result<Picture, Error> {
    let picture = picture(place)?;
    tell_stretch(field, &picture, (width, height), notice);
    Ok(resize(&picture, width, height, Filter::Lanczos))
}

/// Says so where a picture is stretched to its new size.
pub(crate) fn tell_stretch(
    field: &str,
    picture: &Picture,
    (width, height): (usize, usize),
    notice: &mut dyn FnMut(String),
) {
    let stretch = (picture.width * height) as f64 / (picture.height * width) as f64;
    if !(1.0 / STRETCH..STRETCH).contains(&stretch) {
        notice(format!(
            "{field} is {} x {} and will be stretched to {width} x {height}; set width and height, or crop it, to keep its \
             shape",
            picture.width, picture.height
        ));
    }
}

/// Encodes the picture that a plan starts from, if it names one.
pub fn encode(plan: &Plan, notice: &mut dyn FnMut(String)) -> Result<Option<Init>, Error> {
    let Some(init) = plan.init.as_ref() else { return Ok(None) };
    let Some(place) = init.image.as_ref() else { return Ok(None) };
    if let Some(mask) = &init.mask {
        tell_stretch("init.mask", &picture(mask)?, (plan.width, plan.height), notice);
    }
    of_fitted(plan, fitted("init.image", place, plan.width, plan.height, notice)?).map(Some)
}

/// Encodes a picture, resized, as a plan's start.
pub fn of_picture(plan: &Plan, picture: &Picture) -> Result<Init, Error> {
    of_fitted(plan, resize(picture, plan.width, plan.height, Filter::Lanczos))
}

fn of_fitted(plan: &Plan, picture: Picture) -> Result<Init, Error> {
    let (width, height, factor) = (plan.width, plan.height, plan.vae.factor());
    let encoder = Encoder::load_in(&plan.vae, &plan.vae_place.component_or_file()?, plan.precision())
        .map_err(crate::model_error)?;
    let values: Vec<f32> = picture.rgb.iter().map(|v| f32::from(*v) / 255.0 * 2.0 - 1.0).collect();
    let mask = match plan.init.as_ref().and_then(|init| init.mask.as_ref()) {
        None => None,
        Some(place) => {
            let full = mask_at(place, width, height)?;
            if full.iter().all(|m| *m < 0.5) {
                return Err(Error::request(
                    "init.mask",
                    "is black everywhere, so nothing would be repainted; white is what is repainted",
                ));
            }
            let rest = values.iter().enumerate().map(|(i, v)| if full[i / 3] < 0.5 { *v } else { 0.0 });
            let rest = Moments::of(plan, &encoder, &Tensor::new([1, height, width, 3], rest.collect()));
            // torch's nearest neighbour: the first pixel of each cell.
            let cell = |y: usize, x: usize| full[y * factor * width + x * factor];
            let cells = (0..height / factor)
                .flat_map(|y| (0..width / factor).map(move |x| (y, x)))
                .map(|(y, x)| cell(y, x));
            let cells = cells.collect();
            Some(Mask { picture, full, cells, rest })
        }
    };
    let whole = Moments::of(plan, &encoder, &Tensor::new([1, height, width, 3], values));
    Ok(Init { whole, mask })
}

/// Latents as the UNet sees them, [channels, h, w], as a start.
pub fn of_latents(latents: Vec<f32>) -> Init {
    Init { whole: Moments { mean: latents, deviation: None, scaled: true }, mask: None }
}

/// What one picture's sampling begins with.
pub struct Start {
    /// The first sample, [channels, h, w].
    pub sample: Vec<f32>,
    /// What a UNet for inpainting reads beside the sample: the mask and the masked picture, [1, h, w, 1 + channels].
    pub beside: Option<Tensor>,
    /// Where a mask is laid over each step's result: 1 where it is repainted, the picture's latents, the noise.
    kept: Option<(Vec<f32>, Vec<f32>, Vec<f32>)>,
}

impl Start {
    /// Draws it; `init` is the plan's.
    pub fn draw(plan: &Plan, init: Option<&Init>, sampler: &dyn Sampler, rng: &mut TorchRng) -> Self {
        let (channels, factor) = (plan.vae.latent_channels, plan.vae.factor());
        let (h, w) = (plan.height / factor, plan.width / factor);
        let n = channels * h * w;
        let from_noise = |rng: &mut TorchRng| rng.normal_f32(n);
        let scaled = |noise: &[f32]| noise.iter().map(|v| v * sampler.init_noise_sigma()).collect();
        let Some(init) = init else {
            return Start { sample: scaled(&from_noise(rng)), beside: None, kept: None };
        };
        let Some(mask) = &init.mask else {
            let clean = init.whole.draw(&plan.vae, rng);
            let noise = from_noise(rng);
            return Start {
                sample: mixed(sampler, plan.first_call, &clean, &noise),
                beside: None,
                kept: None,
            };
        };
        // Inpainting. A UNet with inputs of its own for the mask needs the picture only where some of it shows at first.
        let inputs = plan.unet.in_channels != channels;
        let pure = plan.first_call == 0 && plan.strength() == 1.0;
        let clean = if inputs && pure { Vec::new() } else { init.whole.draw(&plan.vae, rng) };
        let noise = from_noise(rng);
        let sample = if pure { scaled(&noise) } else { mixed(sampler, plan.first_call, &clean, &noise) };
        // Drawn for every kind of UNet: later draws must stay in step.
        let rest = mask.rest.draw(&plan.vae, rng);
        if inputs {
            let cells = Tensor::new([1, h, w, 1], mask.cells.clone());
            let beside = Some(cells.concat_channels(&channels_last(&rest, channels, h, w)));
            Start { sample, beside, kept: None }
        } else {
            Start { sample, beside: None, kept: Some((mask.cells.clone(), clean, noise)) }
        }
    }

    /// Puts back what is not repainted, with the noise of call `next`, or none after the last one.
    pub fn keep(&self, sampler: &dyn Sampler, next: Option<usize>, sample: &mut [f32]) {
        let Some((mask, clean, noise)) = &self.kept else { return };
        let noised = next.map(|i| mixed(sampler, i, clean, noise));
        let outside = noised.as_ref().unwrap_or(clean);
        for (i, (x, o)) in sample.iter_mut().zip(outside).enumerate() {
            let m = mask[i % mask.len()];
            *x = (1.0 - m) * o + m * *x;
        }
    }
}

fn mixed(sampler: &dyn Sampler, i: usize, clean: &[f32], noise: &[f32]) -> Vec<f32> {
    let (alpha, sigma) = sampler.noised(i);
    let (alpha, sigma) = (alpha as f32, sigma as f32);
    clean.iter().zip(noise).map(|(c, n)| alpha * c + sigma * n).collect()
}

impl Init {
    /// Puts the pixels outside the mask back exactly; inside, the painted picture fades in over `edge_px` pixels.
    pub fn blend(&self, painted: &mut Picture, edge_px: f64) {
        let Some(mask) = &self.mask else { return };
        let distance = distance_inside(&mask.full, painted.width);
        for (i, (p, o)) in painted.rgb.iter_mut().zip(&mask.picture.rgb).enumerate() {
            let part = (f64::from(distance[i / 3]) / (edge_px + 1.0)).min(1.0);
            *p = (f64::from(*o) + part * (f64::from(*p) - f64::from(*o))).round() as u8;
        }
    }
}

/// Distance of each pixel of the mask to the nearest one outside it, in pixels, 0 outside: the two-pass chamfer
/// transform with steps of 1 and √2 (Borgefors, "Distance transformations in digital images", 1986).
fn distance_inside(mask: &[f32], width: usize) -> Vec<f32> {
    let height = mask.len() / width;
    let mut d: Vec<f32> = mask.iter().map(|m| if *m < 0.5 { 0.0 } else { f32::INFINITY }).collect();
    let mut relax = |y: usize, x: usize, neighbours: [(isize, isize, f32); 4]| {
        for (dy, dx, step) in neighbours {
            let (ny, nx) = (y.wrapping_add_signed(dy), x.wrapping_add_signed(dx));
            if ny < height && nx < width {
                d[y * width + x] = d[y * width + x].min(d[ny * width + nx] + step);
            }
        }
    };
    let diagonal = std::f32::consts::SQRT_2;
    for y in 0..height {
        for x in 0..width {
            relax(y, x, [(-1, -1, diagonal), (-1, 0, 1.0), (-1, 1, diagonal), (0, -1, 1.0)]);
        }
    }
    for y in (0..height).rev() {
        for x in (0..width).rev() {
            relax(y, x, [(1, 1, diagonal), (1, 0, 1.0), (1, -1, diagonal), (0, 1, 1.0)]);
        }
    }
    d
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_count_from_the_edge_of_the_mask() {
        // A 3 x 3 hole in the middle of 5 x 5.
        let mask: Vec<f32> =
            (0..25).map(|i| f32::from((1..4).contains(&(i / 5)) && (1..4).contains(&(i % 5)))).collect();
        let d = distance_inside(&mask, 5);
        assert_eq!((d[0], d[6], d[7], d[12]), (0.0, 1.0, 1.0, 2.0));
        assert!(distance_inside(&[1.0; 6], 3).iter().all(|d| d.is_infinite()), "no outside");
        assert!(distance_inside(&[0.0; 6], 3).iter().all(|d| *d == 0.0));
    }
}
