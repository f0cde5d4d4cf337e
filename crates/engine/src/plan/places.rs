//! From paths of a request to files and folders that are there.

use crate::checkpoint::Holds;
use crate::error::Error;
use crate::model::{EMBEDDED, Place};
use crate::request::Request;
use serde_json::Value;
use std::path::{Path, PathBuf};

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

/// How the model is named in the stored request.
pub(super) fn model_name(model: &Place) -> String {
    match model {
        Place::Embedded(_) => EMBEDDED.to_owned(),
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
