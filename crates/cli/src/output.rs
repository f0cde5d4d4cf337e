//! Where pictures go: names, and checks before the work starts.

use instantstyle_engine::Error;
use std::path::{Path, PathBuf};

/// The files of `count` pictures: `x.png`, or `x-1.png`, `x-2.png`, … padded so that they sort.
pub fn names(out: &Path, count: usize) -> Vec<PathBuf> {
    if count == 1 {
        return vec![out.to_owned()];
    }
    let stem = out.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let extension = out.extension().map_or_else(String::new, |e| format!(".{}", e.to_string_lossy()));
    let digits = count.to_string().len();
    (1..=count).map(|i| out.with_file_name(format!("{stem}-{i:0digits$}{extension}"))).collect()
}

/// Fails early where a file could not be written later.
pub fn check(path: &Path) -> Result<(), Error> {
    let machine = |what: String| Error::Machine(format!("{}: {what}", path.display()));
    if path.is_dir() {
        return Err(machine("is a folder; give the name of a file".into()));
    }
    if path.exists() && !path.is_file() {
        return Err(machine("is not an ordinary file; choose another name".into()));
    }
    if path.file_name().is_none() {
        return Err(machine("is not the name of a file".into()));
    }
    let folder = match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    };
    if !folder.is_dir() {
        return Err(machine(format!("the folder {} does not exist; make it first", folder.display())));
    }
    let probe = folder.join(format!(".instantstyle-{}.tmp", std::process::id()));
    let written = std::fs::write(&probe, b"x");
    let _ = std::fs::remove_file(&probe);
    written.map_err(|e| machine(format!("cannot be written there ({e}); choose another folder")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_sort() {
        assert_eq!(names(Path::new("a/x.png"), 1), [Path::new("a/x.png")]);
        let ten = names(Path::new("a/x.png"), 10);
        assert_eq!((ten[0].as_path(), ten[9].as_path()), (Path::new("a/x-01.png"), Path::new("a/x-10.png")));
    }
}
