//! What can be wrong with a model's files.

use std::path::PathBuf;

/// A model folder or file that does not fit what the networks need.
#[derive(Debug, thiserror::Error)]
#[error("{}: {message}", path.display())]
pub struct ModelError {
    /// The file or folder at fault.
    pub path: PathBuf,
    /// What is wrong (key, expected, found) and what to do.
    pub message: String,
}

impl ModelError {
    /// A fault of `path`.
    pub fn new(path: impl Into<PathBuf>, message: impl Into<String>) -> Self {
        ModelError { path: path.into(), message: message.into() }
    }
}
