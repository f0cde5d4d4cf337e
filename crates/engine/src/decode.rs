//! From latents to pictures.

use crate::encode::channels_last;
use crate::error::Error;
use crate::init::Init;
use crate::picture::Picture;
use crate::plan::Plan;
use crate::{Observer, model_error};
use instantstyle_nets::Tensor;
use instantstyle_nets::vae::Decoder;

/// Loads a plan's decoder.
pub fn decoder(plan: &Plan) -> Result<Decoder, Error> {
    Decoder::load_in(&plan.vae, &plan.vae_place.component_or_file()?, plan.precision()).map_err(model_error)
}

/// A finished picture: decoded, and where the request says so with the pixels of `init` outside its mask put back.
pub fn painted(
    plan: &Plan,
    decoder: &Decoder,
    latents: &[f32],
    init: Option<&Init>,
    observer: &dyn Observer,
) -> Result<Picture, Error> {
    let mut picture = decode(plan, decoder, latents, observer)?;
    let edge_px = plan.request().init.as_ref().and_then(|i| i.blend_px);
    if let (Some(init), Some(edge_px)) = (init, edge_px) {
        init.blend(&mut picture, edge_px);
    }
    Ok(picture)
}

/// Decodes a sampler's last latents [channels, h, w], in tiles where the plan says so.
pub fn decode(
    plan: &Plan,
    decoder: &Decoder,
    latents: &[f32],
    observer: &dyn Observer,
) -> Result<Picture, Error> {
    let latents = unscaled(plan, latents);
    let mut rgb = Vec::with_capacity(plan.width * plan.height * 3);
    let mut rows = |rows: Tensor| {
        rgb.extend(rows.data().iter().map(|v| level(*v)));
        if observer.cancelled() { Err(Error::Cancelled) } else { Ok(()) }
    };
    match plan.tiling() {
        Some(tiling) => decoder.forward_tiled(&latents, tiling, &mut rows)?,
        None => rows(decoder.forward(&latents))?,
    }
    Picture::new(plan.width, plan.height, rgb)
        .ok_or_else(|| Error::Internal("the autoencoder gave a picture of another size".into()))
}

/// (x / 2 + 0.5) clamped, times 255, rounded half to even: as diffusers and numpy do.
pub fn level(v: f32) -> u8 {
    ((v * 0.5 + 0.5).clamp(0.0, 1.0) * 255.0).round_ties_even() as u8
}

/// Latents as the decoder reads them: the scaling factor divided out.
fn unscaled(plan: &Plan, latents: &[f32]) -> Tensor {
    let (channels, factor) = (plan.vae.latent_channels, plan.vae.factor());
    let mut x = channels_last(latents, channels, plan.height / factor, plan.width / factor);
    let scaling = plan.vae.scaling_factor as f32;
    let shift = plan.vae.shift_factor.unwrap_or(0.0) as f32;
    match (&plan.vae.latents_mean, &plan.vae.latents_std) {
        (Some(mean), Some(std)) if mean.len() == channels && std.len() == channels => {
            for pixel in x.data_mut().chunks_exact_mut(channels) {
                for ((v, m), s) in pixel.iter_mut().zip(mean).zip(std) {
                    *v = *v * *s as f32 / scaling + *m as f32;
                }
            }
        }
        _ => x.data_mut().iter_mut().for_each(|v| *v = *v / scaling + shift),
    }
    x
}
