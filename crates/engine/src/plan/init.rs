//! The picture to start from, resolved.

use super::places::file;
use crate::error::Error;
use crate::model::Place;
use crate::request::Init;
use instantstyle_nets::unet::UNetConfig;
use instantstyle_nets::vae::VaeConfig;

/// The picture to start from, resolved.
#[derive(Clone)]
pub struct PlannedInit {
    /// The picture; None where it is that of the first of two passes.
    pub image: Option<Place>,
    /// The mask picture.
    pub mask: Option<Place>,
    /// Part of the steps that is run.
    pub strength: f64,
}

pub(super) fn planned_init(init: &Init, made: bool) -> Result<PlannedInit, Error> {
    let mask = init.mask.as_ref().map(|m| file("init", "mask", m)).transpose()?;
    let usual = if mask.is_some() { 1.0 } else { Init::STRENGTH };
    Ok(PlannedInit {
        image: if made { None } else { Some(file("init", "image", &init.image)?) },
        mask,
        strength: init.strength.unwrap_or(usual),
    })
}

/// A UNet for inpainting needs a picture and a mask.
pub(super) fn check_inpainting(
    model: &Place,
    unet: &UNetConfig,
    vae: &VaeConfig,
    init: Option<&PlannedInit>,
) -> Result<(), Error> {
    if unet.in_channels == vae.latent_channels || init.is_some_and(|i| i.mask.is_some()) {
        return Ok(());
    }
    Err(Error::request(
        "init.mask",
        format!(
            "is needed: {} is an inpainting model, which repaints the white of a mask in a picture (init.image)",
            model.path().display()
        ),
    ))
}

/// The step at which sampling starts for a strength, as in diffusers' `get_timesteps`.
pub(super) fn first_step(steps: usize, strength: f64) -> Result<usize, Error> {
    let run = ((steps as f64 * strength) as usize).min(steps);
    if run == 0 {
        return Err(Error::request(
            "init.strength",
            format!(
                "is {strength}, which leaves no step of {steps}; use at least {}, or more steps",
                1.0 / steps as f64
            ),
        ));
    }
    Ok(steps - run)
}
