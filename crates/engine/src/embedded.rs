//! The model inside the program: a small family trained on a drawn world (see `models/embedded/CARD.md`).

// `FILES: &[(&str, &[u8])]`, sorted by path, written by `build.rs`.
include!(concat!(env!("OUT_DIR"), "/embedded.rs"));

/// A file of the embedded model by its path, e.g. `unet/config.json`.
pub fn file(path: &str) -> Option<&'static [u8]> {
    FILES.binary_search_by(|(name, _)| (*name).cmp(path)).ok().map(|i| FILES[i].1)
}

/// True if there is a file, or a folder with files, of that path.
pub fn exists(path: &str) -> bool {
    path.is_empty()
        || FILES
            .iter()
            .any(|(name, _)| name.strip_prefix(path).is_some_and(|r| r.is_empty() || r.starts_with('/')))
}

/// The model's card: what it is, its presets, its defaults, its measured figures.
pub fn card() -> serde_json::Value {
    file("card.json").and_then(|b| serde_json::from_slice(b).ok()).unwrap_or(serde_json::Value::Null)
}
