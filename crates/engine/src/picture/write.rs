//! Files that appear whole or not at all.

use super::PictureError;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Writes a file through a temporary one beside it. On an error nothing is left behind, and an older file stays.
///
/// # Errors
/// If the system refuses.
pub fn write_atomic(path: impl AsRef<Path>, bytes: &[u8]) -> Result<(), PictureError> {
    let path = path.as_ref();
    write(path, bytes).map_err(|source| PictureError::writing(path, source))
}

fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    // A link stays a link: what it points to is written.
    let path = &fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let name = path.file_name().ok_or_else(|| io::Error::other("is not the name of a file"))?;
    if let Ok(old) = fs::metadata(path) {
        if old.is_dir() {
            return Err(io::Error::from(io::ErrorKind::IsADirectory));
        }
        if !old.is_file() {
            // A device or a pipe takes the bytes themselves; it must not be replaced by a file.
            return File::options().write(true).open(path)?.write_all(bytes);
        }
        if old.permissions().readonly() {
            return Err(io::Error::from(io::ErrorKind::PermissionDenied));
        }
    }
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let (mut file, temporary) = create(folder, name)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    drop(file);
    fs::rename(&temporary.0, path)?;
    // The rename is done: there is nothing to remove any more.
    std::mem::forget(temporary);
    // So that the name, too, survives a power cut; not every system can.
    if let Ok(folder) = File::open(folder) {
        let _ = folder.sync_all();
    }
    Ok(())
}

/// Removed unless renamed.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn create(folder: &Path, name: &std::ffi::OsStr) -> io::Result<(File, Temporary)> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    loop {
        let mut temporary = std::ffi::OsString::from(".");
        temporary.push(name);
        temporary.push(format!(".{}-{}.part", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed)));
        let path = folder.join(temporary);
        match File::options().write(true).create_new(true).open(&path) {
            Ok(file) => return Ok((file, Temporary(path))),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e),
        }
    }
}

/// Writes one f32 tensor as a safetensors file, with [`write_atomic`].
///
/// # Errors
/// If the system refuses.
///
/// # Panics
/// If the number of values does not fit the shape.
pub fn write_tensor(
    path: impl AsRef<Path>,
    name: &str,
    shape: &[usize],
    values: &[f32],
) -> Result<(), PictureError> {
    write_atomic(path, &instantstyle_nets::weights::to_safetensors(&[(name, shape, values)]))
}
