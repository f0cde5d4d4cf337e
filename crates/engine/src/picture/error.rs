//! What can go wrong with a picture. Each message is one line and says what to do.

use crate::Error;
use std::io;
use std::path::{Path, PathBuf};

/// A picture that cannot be read, or a file that cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("{}: {message}", path.display())]
pub struct PictureError {
    path: PathBuf,
    message: String,
    writing: bool,
}

impl PictureError {
    /// A fault of the content.
    pub(super) fn content(path: &Path, message: String) -> Self {
        PictureError { path: path.into(), message, writing: false }
    }

    pub(super) fn reading(path: &Path, source: io::Error) -> Self {
        let message = format!("cannot be read: {source}; check the path and its permissions");
        PictureError { path: path.into(), message, writing: false }
    }

    pub(super) fn writing(path: &Path, source: io::Error) -> Self {
        let message =
            format!("cannot be written: {source}; check the folder, its permissions and the free space");
        PictureError { path: path.into(), message, writing: true }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is wrong and what to do, without the path.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// True if a file could not be written.
    pub fn is_writing(&self) -> bool {
        self.writing
    }
}

impl From<PictureError> for Error {
    fn from(error: PictureError) -> Self {
        if error.writing { Error::Machine(error.to_string()) } else { Error::file(error.path, error.message) }
    }
}
