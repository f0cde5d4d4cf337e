//! What can go wrong, sorted by whose fault it is: the exit status and the HTTP status follow from the variant.

use std::path::{Path, PathBuf};

/// An error of the engine. The text says what was wrong, where, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request asks for something impossible. `field` is the JSON path, e.g. `references[0].inject`.
    #[error("{field}: {message}")]
    Request {
        /// JSON path of the field.
        field: String,
        /// What is wrong and what is allowed.
        message: String,
    },
    /// A file is missing, broken, or does not fit the others.
    #[error("{}: {message}", path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong and what to do.
        message: String,
    },
    /// The machine cannot do it: memory, disk, device.
    #[error("{0}")]
    Machine(String),
    /// A fault of this program.
    #[error("internal error (please report it): {0}")]
    Internal(String),
    /// The observer asked to stop.
    #[error("cancelled")]
    Cancelled,
}

impl Error {
    /// A [`Error::Request`].
    pub fn request(field: impl Into<String>, message: impl Into<String>) -> Self {
        Error::Request { field: field.into(), message: message.into() }
    }

    /// A [`Error::File`].
    pub fn file(path: impl AsRef<Path>, message: impl Into<String>) -> Self {
        Error::File { path: path.as_ref().to_owned(), message: message.into() }
    }

    /// Exit status of the command line: request 2, file 3, machine 4, ours 1, cancelled 130.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Request { .. } => 2,
            Error::File { .. } => 3,
            Error::Machine(_) => 4,
            Error::Internal(_) => 1,
            Error::Cancelled => 130,
        }
    }
}
