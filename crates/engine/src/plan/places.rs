//! From paths of a request to files and folders that are there.

use crate::checkpoint::{Checkpoint, Holds};
use crate::error::Error;
use crate::family::Family;
use crate::model::{EMBEDDED, Place};
use crate::request::Request;
use instantstyle_nets::unet::UNetConfig;
use instantstyle_nets::vae::VaeConfig;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The folder itself if it has a configuration, else the component of that name inside.
pub(super) fn component(place: Place, name: &str, field: &str) -> Result<Place, Error> {
    if place.join("config.json").exists() {
        return Ok(place);
    }
    let inner = place.join(name);
    if inner.join("config.json").exists() {
        return Ok(inner);
    }
    Err(place.error(format!("has no config.json: {field}.{name} must be the folder of the encoder")))
}

/// A file on disk, or `embedded/…` inside the program.
pub(super) fn file(field: &str, name: &str, path: &Path) -> Result<Place, Error> {
    let mut place = Place::Disk(path.to_owned());
    if let Ok(inner) = path.strip_prefix(EMBEDDED) {
        if !path.exists() {
            place = Place::Embedded(inner.to_string_lossy().into_owned());
        }
    }
    if place.exists() {
        Ok(place)
    } else {
        Err(Error::file(path, format!("there is no such file ({field}.{name})")))
    }
}

/// A component's folder, or a file that stands for it.
pub(super) fn file_or_folder(field: &str, name: &str, path: &Path) -> Result<Place, Error> {
    match file(field, name, path)? {
        Place::Disk(path) if path.is_file() => Place::checkpoint(&path),
        place => Ok(place),
    }
}

pub(super) fn model_place(request: &Request) -> Result<Place, Error> {
    match request.model.as_deref() {
        None | Some(EMBEDDED) => {
            if crate::embedded::file("model_index.json").is_none() {
                return Err(Error::Machine("this build has no embedded model; give --model".into()));
            }
            Ok(Place::embedded())
        }
        Some(name) => {
            let path = PathBuf::from(name);
            if path.is_dir() {
                Ok(Place::Disk(path))
            } else if path.is_file() {
                let place = Place::checkpoint(&path)?;
                match &place {
                    Place::Checkpoint(c, _) if c.holds() != Holds::Model => Err(Error::file(
                        path,
                        format!(
                            "holds {} alone; the model must be a whole checkpoint or a Diffusers folder",
                            c.holds().name()
                        ),
                    )),
                    _ => Ok(place),
                }
            } else {
                Err(Error::file(path, "there is no such file or folder (model)"))
            }
        }
    }
}

/// The model with the UNet of the request, where it names one: a file, or a folder with its configuration.
pub(super) fn with_unet(model: Place, path: &Path) -> Result<Place, Error> {
    let unet = match file("unet", "unet", path)? {
        Place::Disk(path) if path.is_file() => {
            let place = Place::checkpoint(&path)?;
            match &place {
                Place::Checkpoint(c, _) if c.holds() == Holds::Model => place.join("unet"),
                Place::Checkpoint(c, _) if c.holds() != Holds::UNet => {
                    return Err(place.error(format!("holds {}, not a UNet", c.holds().name())));
                }
                _ => place,
            }
        }
        place => component(place, "unet", "unet")?,
    };
    let config =
        |place: Place| UNetConfig::from_json(&place.json()?, &place.path()).map_err(crate::model_error);
    let (own, other) = (config(model.join("unet/config.json"))?, config(unet.join("config.json"))?);
    let reads = |c: &UNetConfig| (c.context_dim(), c.added.as_ref().map(|a| a.inputs), c.out_channels);
    if reads(&own) != reads(&other) {
        let title = |c| crate::family::of(c).title;
        return Err(unet.error(format!(
            "is a {} UNet for text of width {}, but the model is {} with text of width {}: take one of the same family",
            title(&other), other.context_dim(), title(&own), own.context_dim()
        )));
    }
    Ok(Place::WithUNet(Arc::new((model, unet))))
}

/// How the model is named in the stored request.
pub(super) fn model_name(model: &Place) -> String {
    match model {
        Place::Embedded(_) => EMBEDDED.to_owned(),
        Place::WithUNet(both) => model_name(&both.0),
        Place::Disk(_) | Place::Checkpoint(..) => {
            let path = model.path();
            path.canonicalize().unwrap_or(path).to_string_lossy().into_owned()
        }
    }
}

pub(super) fn model_index(model: &Place) -> Result<Value, Error> {
    let place = model.join("model_index.json");
    if !place.exists() {
        return Err(model.error(
            "has no model_index.json: this is not a Diffusers model folder (it needs unet/, vae/, scheduler/, text_encoder/ …)",
        ));
    }
    place.json()
}

/// The autoencoder, the request's or the model's own, and its configuration.
pub(super) fn autoencoder(
    request: &Request,
    model: &Place,
    family: &Family,
) -> Result<(Place, VaeConfig), Error> {
    let configuration = |place: &Place| place.join("config.json").config::<VaeConfig>();
    let own = model.join("vae");
    let Some(path) = &request.vae else {
        if !matches!(model, Place::Disk(_) | Place::Embedded(_)) && !own.exists() {
            return Err(
                model.error("holds no autoencoder (first_stage_model.*): give one with the field vae")
            );
        }
        let config = configuration(&own)?;
        return Ok((own, config));
    };
    let place = Place::Disk(path.clone());
    let none = || {
        place.error(
            "holds no autoencoder: vae must be a Diffusers folder with config.json and weights, or a file of weights",
        )
    };
    if !place.exists() {
        return Err(Error::file(path, "there is no such file or folder (vae)"));
    }
    if path.is_dir() {
        // A whole model's folder stands for its autoencoder.
        let inside = [place.join("vae"), place.clone()];
        let folder = inside.into_iter().find(|p| is_autoencoder(&p.join("config.json"))).ok_or_else(none)?;
        let config = configuration(&folder)?;
        return Ok((folder, config));
    }
    let weights = place.weights()?;
    if let Some(config) = VaeConfig::of_tiny(&weights) {
        return Ok((place, config));
    }
    // What a file does not tell is as in the model's own.
    let usual = if own.join("config.json").exists() { Some(configuration(&own)?) } else { None };
    if weights.has_prefix("decoder.up_blocks.") {
        let beside = path.parent().map(|folder| Place::Disk(folder.to_owned()));
        let beside = beside.filter(|b| is_autoencoder(&b.join("config.json")));
        let config = match (beside, usual) {
            (Some(folder), _) => configuration(&folder)?,
            (None, Some(usual)) => usual,
            (None, None) => {
                return Err(
                    place.error("needs its config.json beside it: the model has no autoencoder of its own")
                );
            }
        };
        return Ok((place, config));
    }
    let file = Checkpoint::of(weights, path).map_err(|_| none())?;
    let alone = file.holds() == Holds::Vae;
    let whole = Place::Checkpoint(Arc::new(file), String::new());
    let part = if alone { whole } else { whole.join("vae") };
    if !part.join("config.json").exists() {
        return Err(none());
    }
    let mut config = configuration(&part)?;
    if alone {
        config.scaling_factor =
            usual.as_ref().map_or(family.original.scaling_factor, |usual| usual.scaling_factor);
        config.norm_num_groups = usual.map_or(config.norm_num_groups, |usual| usual.norm_num_groups);
    }
    Ok((part, config))
}

/// True for a configuration of an autoencoder; old ones do not name their class.
fn is_autoencoder(config: &Place) -> bool {
    let Ok(json) = config.json() else { return false };
    match json["_class_name"].as_str() {
        Some(class) => ["AutoencoderKL", "AutoencoderTiny"].contains(&class),
        None => json["latent_channels"].is_u64(),
    }
}
