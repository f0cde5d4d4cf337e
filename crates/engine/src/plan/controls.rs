//! ControlNets, resolved: the network against the model, the map, the window.

use super::places::file;
use crate::control::{CANNY, Make, check_file, map_of, misfit, outline};
use crate::error::Error;
use crate::injection::window;
use crate::model::Place;
use crate::model_error;
use crate::request::Control;
use instantstyle_nets::controlnet::{ControlNetConfig, is_controlnet};
use instantstyle_nets::unet::UNetConfig;
use instantstyle_nets::vae::VaeConfig;

/// One ControlNet, resolved.
#[derive(Clone)]
pub struct PlannedControl {
    /// The network's folder or file.
    pub model: Place,
    /// Its shape.
    pub config: ControlNetConfig,
    /// The picture.
    pub image: Place,
    /// How the map is made of it.
    pub map: Make,
    /// Strength.
    pub scale: f64,
    /// Of a Control-LoRA: how many values are made of the UNet's.
    pub(crate) merged: Option<u64>,
    /// Model calls in which it acts.
    pub calls: std::ops::Range<usize>,
}

impl PlannedControl {
    /// True if it does anything.
    pub(crate) fn acts(&self) -> bool {
        self.scale != 0.0 && !self.calls.is_empty()
    }
}

/// Resolves one ControlNet and fills in its request.
pub(super) fn planned_control(
    field: &str,
    control: &mut Control,
    base: &Place,
    unet: &UNetConfig,
    vae: &VaeConfig,
    calls: usize,
) -> Result<PlannedControl, Error> {
    let map = map_of(&control.preprocess).ok_or_else(|| Error::Internal("a map without a row".into()))?;
    for (name, network) in [
        ("preprocess_model", &control.preprocess_model),
        ("preprocess_detector", &control.preprocess_detector),
    ] {
        if let Some(path) = network {
            file(field, name, path)?;
            check_file(path)?;
        }
    }
    if map.name == "canny" {
        control.canny_low.get_or_insert(CANNY.0);
        control.canny_high.get_or_insert(CANNY.1);
    }
    if map.name == "tile" {
        control.tile_downscale.get_or_insert(1.0);
    }
    let image = file(field, "image", &control.image)?;
    let model = file(field, "model", &control.model)?;
    let (config, merged) = config(&model, unet, base)?;
    if merged.is_some() && unet.in_channels != vae.latent_channels {
        return Err(model.error(format!(
            "is a Control-LoRA, which takes its weights from the UNet, and this one reads {} channels for inpainting: use a \
             whole ControlNet, or a model with an ordinary UNet",
            unet.in_channels
        )));
    }
    if let Some(message) = misfit(&config, unet, vae.latent_channels) {
        return Err(model.error(message));
    }
    if config.factor() != vae.factor() {
        return Err(model.error(format!(
            "makes {} pixels of its picture one latent, the autoencoder {}: they are for different models",
            config.factor(),
            vae.factor()
        )));
    }
    Ok(PlannedControl {
        model,
        config,
        image,
        map: map.make,
        scale: control.scale,
        merged,
        calls: window(control.start, control.end, calls),
    })
}

/// The shape of a ControlNet: what its configuration says, or, where there is none, what its tensors say; and how many values
/// a Control-LoRA makes of the UNet's.
fn config(place: &Place, base: &UNetConfig, model: &Place) -> Result<(ControlNetConfig, Option<u64>), Error> {
    let (found, merged) = outline(place, base, model)?;
    if !is_controlnet(&found) {
        return Err(place.error(
            "is no ControlNet: it has no tensors under controlnet_cond_embedding or control_model; see `instantstyle inspect`",
        ));
    }
    let config = match configuration(place) {
        Some(config) => ControlNetConfig::from_json(&config.json()?, &config.path()),
        None => ControlNetConfig::of_weights(&found, base),
    };
    Ok((config.map_err(model_error)?, merged))
}

/// `config.json` in the folder, or beside a file that has the name of a folder's weights.
fn configuration(place: &Place) -> Option<Place> {
    let folder = match place {
        Place::Disk(path) if path.is_file() => {
            let name = path.file_name()?.to_string_lossy().into_owned();
            Place::Disk(path.parent().filter(|_| name.starts_with("diffusion_pytorch_model"))?.to_owned())
        }
        other => other.clone(),
    };
    Some(folder.join("config.json")).filter(Place::exists)
}
