//! The hub's cache on disk, as `huggingface_hub` lays it out: `models--OWNER--NAME/{blobs,refs,snapshots}`. `blobs` holds
//! files by their hash, `snapshots/COMMIT` the repository's tree with links to them, `refs` the commit of each branch.

use crate::catalogue::{DEFAULT_REVISION, Entry, sound_revision};
use std::env;
use std::path::{Path, PathBuf};

/// A cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cache {
    root: PathBuf,
}

/// A whole entry in a cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The commit of the repository, 40 hexadecimal digits.
    pub commit: String,
    /// The file or folder that the entry's name stands for.
    pub path: PathBuf,
}

impl Cache {
    /// The cache that the environment names, in the order of `huggingface_hub`: `HF_HUB_CACHE`, `HUGGINGFACE_HUB_CACHE`,
    /// then `hub` in `HF_HOME`, which is `~/.cache/huggingface` if not set.
    pub fn from_env() -> Self {
        let named = ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"].iter().find_map(|name| path_of(name));
        Cache { root: named.unwrap_or_else(|| home().join("hub")) }
    }

    /// The cache in a folder.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Cache { root: root.into() }
    }

    /// Its folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A repository's folder.
    pub fn repository(&self, repository: &str) -> PathBuf {
        self.root.join(folder_name(repository))
    }

    /// Where a repository's tree at a commit is.
    pub fn snapshot(&self, repository: &str, commit: &str) -> PathBuf {
        self.repository(repository).join("snapshots").join(commit)
    }

    /// The commit that a revision (a branch, or itself a commit) stands for here.
    pub fn commit(&self, repository: &str, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return Some(revision.to_owned());
        }
        if !sound_revision(revision) {
            return None;
        }
        let path = self.repository(repository).join("refs").join(revision);
        let size = std::fs::metadata(&path).ok()?.len();
        let text = if size <= 100 { std::fs::read_to_string(path).ok()? } else { return None };
        Some(text.trim().to_owned()).filter(|c| is_commit(c))
    }

    /// An entry, if all of its files are here.
    pub fn find(&self, entry: &Entry, revision: Option<&str>) -> Option<Found> {
        let commit = self.commit(entry.repository, revision.unwrap_or(DEFAULT_REVISION))?;
        let snapshot = self.snapshot(entry.repository, &commit);
        let here = entry.files.iter().all(|f| snapshot.join(f).is_file());
        // Nothing is joined for an empty root: the path would end in a slash.
        let path = if entry.root.is_empty() { snapshot } else { snapshot.join(entry.root) };
        here.then_some(Found { commit, path })
    }

    /// Files of an entry that are here, of how many.
    pub fn count(&self, entry: &Entry, revision: Option<&str>) -> (usize, usize) {
        let commit = self.commit(entry.repository, revision.unwrap_or(DEFAULT_REVISION));
        let here = commit.map_or(0, |commit| {
            let snapshot = self.snapshot(entry.repository, &commit);
            entry.files.iter().filter(|f| snapshot.join(f).is_file()).count()
        });
        (here, entry.files.len())
    }
}

/// `models--OWNER--NAME`.
pub(crate) fn folder_name(repository: &str) -> String {
    format!("models--{}", repository.replace('/', "--"))
}

/// True for 40 hexadecimal digits.
pub(crate) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// The hub's folder: `HF_HOME`, else `huggingface` in `XDG_CACHE_HOME` or `~/.cache`.
pub(crate) fn home() -> PathBuf {
    path_of("HF_HOME").unwrap_or_else(|| {
        path_of("XDG_CACHE_HOME").unwrap_or_else(|| user_home().join(".cache")).join("huggingface")
    })
}

fn user_home() -> PathBuf {
    env::home_dir().unwrap_or_default()
}

/// A path in the environment; `~/` at its beginning is the user's folder. Empty counts as not set.
pub(crate) fn path_of(name: &str) -> Option<PathBuf> {
    let value = env::var_os(name).filter(|v| !v.is_empty())?;
    let path = PathBuf::from(value);
    Some(match path.strip_prefix("~") {
        Ok(rest) => user_home().join(rest),
        Err(_) => path,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::find;
    use std::fs;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    #[test]
    fn entries_are_found_when_they_are_whole() {
        let folder = tempfile::tempdir().expect("a folder");
        let cache = Cache::at(folder.path());
        let (entry, _) = find("image-encoder-vit-h").expect("an entry");
        let repository = folder.path().join("models--h94--IP-Adapter");
        let snapshot = repository.join("snapshots").join(COMMIT).join("models/image_encoder");
        fs::create_dir_all(&snapshot).expect("folders");
        fs::create_dir_all(repository.join("refs")).expect("folders");
        fs::write(snapshot.join("config.json"), "{}").expect("written");
        assert_eq!(cache.count(entry, None), (0, 2), "no branch yet");
        fs::write(repository.join("refs/main"), COMMIT).expect("written");
        assert_eq!((cache.find(entry, None), cache.count(entry, None)), (None, (1, 2)));
        fs::write(snapshot.join("model.safetensors"), "").expect("written");
        let want = Found { commit: COMMIT.to_owned(), path: snapshot };
        assert_eq!(cache.find(entry, None), Some(want.clone()));
        assert_eq!(cache.find(entry, Some(COMMIT)), Some(want));
        assert_eq!(cache.find(entry, Some("other")), None);
    }

    #[test]
    fn a_branch_cannot_lead_elsewhere() {
        let folder = tempfile::tempdir().expect("a folder");
        let refs = folder.path().join("models--a--b/refs");
        fs::create_dir_all(&refs).expect("folders");
        for lie in ["../../x", "", "0123", &"f".repeat(1000)] {
            fs::write(refs.join("main"), lie).expect("written");
            assert_eq!(Cache::at(folder.path()).commit("a/b", "main"), None, "{lie}");
        }
        assert_eq!(Cache::at(folder.path()).commit("a/b", "../main"), None);
    }
}
