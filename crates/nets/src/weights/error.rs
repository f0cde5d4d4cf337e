//! What can be wrong with a weight file. Every message is one line: path, what was expected and found, the way out.

use std::io;
use std::path::{Path, PathBuf};

/// A weight file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// The system refuses.
    #[error("{}: cannot be read: {source}; check the path and its permissions", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The file is something else: a web page, a pointer, a picture.
    #[error("{}: this is {found}, not model weights; {way_out}", path.display())]
    NotWeights {
        /// The file.
        path: PathBuf,
        /// What it is.
        found: String,
        /// What to do.
        way_out: String,
    },
    /// Less is there than the file itself announces.
    #[error(
        "{}: the file is incomplete: {what} needs {expected} bytes, found {found}; download or copy it again",
        path.display()
    )]
    Truncated {
        /// The file.
        path: PathBuf,
        /// The part that does not fit.
        what: String,
        /// Bytes needed.
        expected: u64,
        /// Bytes there.
        found: u64,
    },
    /// One tensor contradicts itself.
    #[error(
        "{}: tensor {key}: expected {expected}, found {found}; the file is damaged or was written by a faulty program, \
         get it again",
        path.display()
    )]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        key: String,
        /// What the format asks for.
        expected: String,
        /// What is there.
        found: String,
    },
    /// The file breaks the rules of its format.
    #[error("{}: {message}; the file is damaged or was written by a faulty program, get it again", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Which rule.
        message: String,
    },
    /// A pickle that asks for code.
    #[error(
        "{}: this file wants to run {global}; refused, no code of a file is ever run. If you trust it, convert it to \
         safetensors elsewhere, or get a safetensors version",
        path.display()
    )]
    Refused {
        /// The file.
        path: PathBuf,
        /// `module.name` of what it would call.
        global: String,
    },
    /// A model folder without weights.
    #[error("{}: no weights here: expected {expected}, found {found}; check the folder or complete the download", path.display())]
    NoWeights {
        /// The folder.
        path: PathBuf,
        /// The names looked for.
        expected: String,
        /// What the folder holds.
        found: String,
    },
}

impl WeightsError {
    /// The file or folder at fault.
    pub fn path(&self) -> &Path {
        match self {
            WeightsError::Io { path, .. }
            | WeightsError::NotWeights { path, .. }
            | WeightsError::Truncated { path, .. }
            | WeightsError::Tensor { path, .. }
            | WeightsError::Malformed { path, .. }
            | WeightsError::Refused { path, .. }
            | WeightsError::NoWeights { path, .. } => path,
        }
    }

    /// The message without the path in front, for errors that show the path themselves.
    pub fn message(&self) -> String {
        let all = self.to_string();
        all.strip_prefix(&format!("{}: ", self.path().display())).map(str::to_owned).unwrap_or(all)
    }
}

/// A string from a file, made fit for one line of a message: nothing invisible, not too long.
pub(crate) fn shown(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars().take(160) {
        match c {
            '"' | '\'' | '\\' => out.push(c),
            c => out.extend(c.escape_debug()),
        }
    }
    if text.chars().nth(160).is_some() {
        out.push('…');
    }
    out
}

impl From<WeightsError> for crate::ModelError {
    fn from(error: WeightsError) -> Self {
        crate::ModelError::new(error.path(), error.message())
    }
}
