//! Where a model's files are: a Diffusers folder, one file that stands for it, or the model inside the program.

use crate::checkpoint::Checkpoint;
use crate::embedded;
use crate::error::Error;
use instantstyle_nets::tokenizer::Tokenizer;
use instantstyle_nets::weights::Weights;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The name of the embedded model in requests.
pub const EMBEDDED: &str = "embedded";

/// Largest `config.json` that is read.
const MAX_JSON_BYTES: u64 = 64 << 20;

/// A folder of a model, on disk or in the program.
#[derive(Clone, Debug, PartialEq)]
pub enum Place {
    /// A folder or file.
    Disk(PathBuf),
    /// A path inside the embedded model.
    Embedded(String),
    /// A path inside the folder that one file stands for.
    Checkpoint(Arc<Checkpoint>, String),
    /// A model's root with another UNet: the model, the UNet.
    WithUNet(Arc<(Place, Place)>),
}

impl Place {
    /// The root of the embedded model.
    pub fn embedded() -> Self {
        Place::Embedded(String::new())
    }

    /// The folder that a file stands for.
    ///
    /// # Errors
    /// If it is no weight file, or of nothing known.
    pub fn checkpoint(path: &Path) -> Result<Self, Error> {
        Ok(Place::Checkpoint(Arc::new(Checkpoint::open(path)?), String::new()))
    }

    /// A file or folder inside.
    pub fn join(&self, name: &str) -> Place {
        match self {
            Place::Disk(p) => Place::Disk(p.join(name)),
            Place::Embedded(p) if p.is_empty() => Place::Embedded(name.to_owned()),
            Place::Embedded(p) => Place::Embedded(format!("{p}/{name}")),
            Place::WithUNet(both) => match name.strip_prefix("unet") {
                Some("") => both.1.clone(),
                Some(rest) if rest.starts_with('/') => both.1.join(&rest[1..]),
                _ => both.0.join(name),
            },
            Place::Checkpoint(c, p) if p.is_empty() => Place::Checkpoint(c.clone(), name.to_owned()),
            Place::Checkpoint(c, p) => Place::Checkpoint(c.clone(), format!("{p}/{name}")),
        }
    }

    /// For messages and for the stored request.
    pub fn path(&self) -> PathBuf {
        match self {
            Place::Disk(p) => p.clone(),
            Place::Embedded(p) => Path::new(EMBEDDED).join(p),
            Place::Checkpoint(c, _) => c.path().to_owned(),
            Place::WithUNet(both) => both.0.path(),
        }
    }

    /// True if there is such a file or folder.
    pub fn exists(&self) -> bool {
        match self {
            Place::Disk(p) => p.exists(),
            Place::Embedded(p) => embedded::exists(p),
            Place::Checkpoint(c, p) => c.exists(p),
            Place::WithUNet(both) => both.0.exists(),
        }
    }

    /// An error about this place.
    pub fn error(&self, message: impl Into<String>) -> Error {
        Error::file(self.path(), message)
    }

    /// The bytes of a small file.
    pub fn read(&self) -> Result<Vec<u8>, Error> {
        match self {
            Place::Embedded(p) => embedded::file(p)
                .map(<[u8]>::to_vec)
                .ok_or_else(|| self.error("is not in the embedded model")),
            Place::Checkpoint(c, p) => c.file(p).ok_or_else(|| self.error(format!("holds nothing for {p}"))),
            Place::WithUNet(both) => both.0.read(),
            Place::Disk(p) => {
                let size = std::fs::metadata(p).map_err(|e| match e.kind() {
                    std::io::ErrorKind::NotFound => {
                        self.error("is missing: the download may be incomplete, fetch it again")
                    }
                    _ => self.error(e.to_string()),
                })?;
                let size = size.len();
                if size > MAX_JSON_BYTES {
                    return Err(self.error(format!("has {size} bytes, far too many for a configuration")));
                }
                std::fs::read(p).map_err(|e| self.error(e.to_string()))
            }
        }
    }

    /// A JSON object.
    pub fn json(&self) -> Result<Value, Error> {
        let bytes = self.read()?;
        let value: Value = serde_json::from_slice(&without_infinities(bytes))
            .map_err(|e| self.error(format!("is not valid JSON ({e}); the download may be incomplete")))?;
        if value.is_object() { Ok(value) } else { Err(self.error("holds JSON, but not an object")) }
    }

    /// A configuration parsed into a struct.
    pub fn config<T: serde::de::DeserializeOwned>(&self) -> Result<T, Error> {
        serde_json::from_value(without_nulls(self.json()?))
            .map_err(|e| self.error(format!("does not fit: {e}")))
    }

    /// The weights of a component's folder.
    pub fn component(&self) -> Result<Weights, Error> {
        match self {
            Place::Disk(p) => Weights::open_component(p).map_err(|e| Error::file(e.path(), e.message())),
            Place::Embedded(p) => {
                let names = ["model.safetensors", "diffusion_pytorch_model.safetensors"];
                let name = names.iter().map(|n| format!("{p}/{n}")).find(|n| embedded::exists(n));
                self.embedded_weights(
                    &name.ok_or_else(|| self.error("has no weights in the embedded model"))?,
                )
            }
            Place::Checkpoint(c, p) => {
                c.component(p).cloned().ok_or_else(|| self.error(format!("holds no weights for {p}")))
            }
            Place::WithUNet(both) => both.0.component(),
        }
    }

    /// The weights of a component's folder, or of one file.
    pub fn component_or_file(&self) -> Result<Weights, Error> {
        match self {
            Place::Disk(p) if p.is_file() => self.weights(),
            Place::Embedded(p) if embedded::file(p).is_some() => self.weights(),
            _ => self.component(),
        }
    }

    /// The weights of one file.
    pub fn weights(&self) -> Result<Weights, Error> {
        match self {
            Place::Disk(p) => Weights::open(p).map_err(|e| Error::file(e.path(), e.message())),
            Place::Embedded(p) => self.embedded_weights(p),
            Place::Checkpoint(..) => self.component(),
            Place::WithUNet(both) => both.0.weights(),
        }
    }

    fn embedded_weights(&self, name: &str) -> Result<Weights, Error> {
        let bytes = embedded::file(name).ok_or_else(|| self.error("is not in the embedded model"))?;
        Weights::from_bytes(bytes, Path::new(EMBEDDED).join(name))
            .map_err(|e| Error::file(e.path(), e.message()))
    }

    /// The tokenizer of a folder.
    pub fn tokenizer(&self) -> Result<Tokenizer, Error> {
        match self {
            Place::Disk(p) => Tokenizer::from_dir(p).map_err(crate::model_error),
            Place::Embedded(p) => {
                let read = |name: &str| Ok(embedded::file(&format!("{p}/{name}")).map(<[u8]>::to_vec));
                Tokenizer::from_files(self.path(), read).map_err(crate::model_error)
            }
            Place::WithUNet(both) => both.0.tokenizer(),
            Place::Checkpoint(..) => {
                let read =
                    |name: &str| Ok(Some(self.join(name)).filter(Place::exists).and_then(|p| p.read().ok()));
                Tokenizer::from_files(self.path(), read).map_err(crate::model_error)
            }
        }
    }
}

/// `null` in a configuration means the default.
fn without_nulls(mut value: Value) -> Value {
    if let Value::Object(map) = &mut value {
        map.retain(|_, v| !v.is_null());
    }
    value
}

/// Python writes infinite numbers into JSON, e.g. `lambda_min_clipped` of a scheduler: they become null, the default.
fn without_infinities(bytes: Vec<u8>) -> Vec<u8> {
    let words: [&[u8]; 3] = [b"-Infinity", b"Infinity", b"NaN"];
    let (mut out, mut i, mut quoted) = (Vec::with_capacity(bytes.len()), 0, false);
    while i < bytes.len() {
        match words.iter().find(|w| !quoted && bytes[i..].starts_with(w)) {
            Some(word) => {
                out.extend_from_slice(b"null");
                i += word.len();
            }
            None => {
                if quoted && bytes[i] == b'\\' {
                    out.push(bytes[i]);
                    i += 1;
                } else if bytes[i] == b'"' {
                    quoted = !quoted;
                }
                out.extend(bytes.get(i));
                i += 1;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn infinities_become_null_outside_texts() {
        let text = br#"{"a": -Infinity, "b": "NaN \" Infinity", "c": NaN}"#.to_vec();
        let value: Value = serde_json::from_slice(&without_infinities(text)).unwrap();
        assert!(value["a"].is_null() && value["c"].is_null());
        assert_eq!(value["b"], "NaN \" Infinity");
    }
}
