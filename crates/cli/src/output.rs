//! Where files go: names, checks before the work starts, and writing all of them or none.

use instantstyle_engine::Error;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

/// Written into the folder to see whether it takes anything.
const PROBE_BYTES: usize = 64 << 10;

/// The files of `count` pictures: `x.png`, or `x-1.png`, `x-2.png`, … padded so that they sort.
pub fn names(out: &Path, count: usize) -> Vec<PathBuf> {
    if count == 1 {
        return vec![out.to_owned()];
    }
    let digits = count.to_string().len();
    let name = |i: usize| {
        let mut name = OsString::from(out.file_stem().unwrap_or_default());
        name.push(format!("-{i:0digits$}"));
        if let Some(extension) = out.extension() {
            name.push(".");
            name.push(extension);
        }
        out.with_file_name(name)
    };
    (1..=count).map(name).collect()
}

/// Refuses names that promise another format than PNG.
///
/// # Errors
/// If they do.
pub fn check_format(flag: &str, out: &Path) -> Result<(), Error> {
    let extension = out.extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default();
    if ["jpg", "jpeg", "webp", "gif", "bmp", "tif", "tiff", "avif", "json", "safetensors"]
        .contains(&extension.as_str())
    {
        return Err(Error::request(
            flag,
            format!("is {}, but pictures are written as PNG; end it in .png", out.display()),
        ));
    }
    Ok(())
}

/// Fails early where a file could not be written later. Leaves nothing behind.
///
/// # Errors
/// If the folder is missing, or the system refuses.
pub fn check(path: &Path) -> Result<(), Error> {
    let machine = |what: String| Error::Machine(format!("{}: {what}", path.display()));
    if path.file_name().is_none()
        || path.as_os_str().to_string_lossy().ends_with(['/', std::path::MAIN_SEPARATOR])
    {
        return Err(machine("is not the name of a file; give one, e.g. cat.png".into()));
    }
    match fs::metadata(path) {
        Ok(found) if found.is_dir() => {
            return Err(machine("is a folder; give the name of a file in it".into()));
        }
        // Files get their names by renaming: that would put a file in the place of the device.
        Ok(found) if !found.is_file() => {
            return Err(machine("is not an ordinary file; choose another name".into()));
        }
        Err(e) if !matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Err(machine(format!("cannot be written ({e}); choose another name or folder")));
        }
        _ => {}
    }
    let path = followed(path);
    let folder = folder(&path);
    if !folder.is_dir() {
        return Err(machine(format!(
            "the folder {} does not exist; make it first, or choose another",
            folder.display()
        )));
    }
    let refused = |e: std::io::Error| {
        machine(format!("the folder cannot be written to ({e}); choose another, or make room"))
    };
    let (mut file, temporary) = Temporary::create(folder).map_err(refused)?;
    let written = file.write_all(&[0; PROBE_BYTES]).and_then(|()| file.flush());
    drop((file, temporary));
    written.map_err(refused)
}

/// Files that appear together or not at all.
#[derive(Default)]
pub struct Files(Vec<(Temporary, PathBuf)>);

impl Files {
    /// Writes the content beside where it will be.
    ///
    /// # Errors
    /// If the system refuses; then nothing appears.
    pub fn add(&mut self, path: &Path, bytes: &[u8]) -> Result<(), Error> {
        let refused = |e: std::io::Error| {
            Error::Machine(format!(
                "{}: cannot be written: {e}; check the folder, its permissions and the free space",
                path.display()
            ))
        };
        let path = followed(path);
        let (mut file, temporary) = Temporary::create(folder(&path)).map_err(refused)?;
        file.write_all(bytes).and_then(|()| file.sync_all()).map_err(refused)?;
        self.0.push((temporary, path));
        Ok(())
    }

    /// Gives all files their names.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn finish(self) -> Result<(), Error> {
        for (temporary, path) in self.0 {
            temporary
                .rename(&path)
                .map_err(|e| Error::Machine(format!("{}: cannot be written: {e}", path.display())))?;
        }
        Ok(())
    }
}

/// A file that is removed unless it is renamed.
struct Temporary(Option<PathBuf>);

impl Temporary {
    fn create(folder: &Path) -> std::io::Result<(File, Temporary)> {
        // Short, so that a name that fits the file system has a temporary one that fits, too.
        for i in 0u32.. {
            let path = folder.join(format!(".instantstyle-{}-{i}.part", std::process::id()));
            match File::options().write(true).create_new(true).open(&path) {
                Ok(file) => return Ok((file, Temporary(Some(path)))),
                Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
                Err(e) => return Err(e),
            }
        }
        Err(ErrorKind::AlreadyExists.into())
    }

    fn rename(mut self, to: &Path) -> std::io::Result<()> {
        match self.0.take() {
            Some(from) => fs::rename(&from, to).inspect_err(|_| self.0 = Some(from)),
            None => Ok(()),
        }
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            let _ = fs::remove_file(path);
        }
    }
}

/// The file behind a link: the link itself stays.
fn followed(path: &Path) -> PathBuf {
    let link = fs::symlink_metadata(path).is_ok_and(|m| m.is_symlink());
    if link { fs::canonicalize(path).unwrap_or_else(|_| path.to_owned()) } else { path.to_owned() }
}

fn folder(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_sort() {
        assert_eq!(names(Path::new("a/x.png"), 1), [Path::new("a/x.png")]);
        let ten = names(Path::new("a/x.y.png"), 10);
        assert_eq!(
            (ten[0].as_path(), ten[9].as_path()),
            (Path::new("a/x.y-01.png"), Path::new("a/x.y-10.png"))
        );
        assert_eq!(names(Path::new("x"), 2)[1], Path::new("x-2"));
    }

    #[test]
    fn all_files_or_none() {
        let folder = tempfile::tempdir().unwrap();
        let list =
            || fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect::<Vec<_>>();
        let mut files = Files::default();
        files.add(&folder.path().join("a"), b"1").unwrap();
        assert!(files.add(&folder.path().join("missing/b"), b"2").is_err());
        drop(files);
        assert!(list().is_empty());
        let mut files = Files::default();
        files.add(&folder.path().join("a"), b"1").unwrap();
        files.finish().unwrap();
        assert_eq!(list(), ["a"]);
        check(&folder.path().join("a")).unwrap();
        assert_eq!(list(), ["a"]);
    }

    #[cfg(unix)]
    #[test]
    fn links_stay_links() {
        let folder = tempfile::tempdir().unwrap();
        let (link, file) = (folder.path().join("link"), folder.path().join("file"));
        fs::write(&file, b"old").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        let mut files = Files::default();
        files.add(&link, b"new").unwrap();
        files.finish().unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read(&file).unwrap(), b"new");
        assert!(check(Path::new("/dev/null")).is_err());
    }
}
