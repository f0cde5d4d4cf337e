//! Downloads from the hub into its cache: resumed where they were cut, checked by the hub's hashes, complete or not there.
//!
//! A file is written to `blobs/HASH.incomplete`, checked, renamed to `blobs/HASH` and linked from
//! `snapshots/COMMIT/PATH`. The branch in `refs` moves when everything is there. The locks are those of `huggingface_hub`.

mod blob;
mod http;
mod settings;

pub use settings::Settings;

use crate::cache::{folder_name, is_commit};
use crate::catalogue::{DEFAULT_REVISION, Entry};
use blob::Blob;
use http::Http;
use std::fs;
use std::path::{Path, PathBuf};

/// What can go wrong. The text says what was wrong, where, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The hub does not give the file: no such file, no access, or it does not say what a client must know.
    #[error("{url}: {message}")]
    Refused {
        /// The address.
        url: String,
        /// Why, and what to do.
        message: String,
    },
    /// What arrived is not what the hub announced.
    #[error("{}: {message}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// How.
        message: String,
    },
    /// Downloads are turned off, and something is missing in the cache.
    #[error("the cache {0}")]
    Offline(String),
    /// The network or the server.
    #[error("{0}")]
    Network(String),
    /// This machine's disk or settings.
    #[error("{0}")]
    Machine(String),
    /// The watcher asked to stop. What was fetched stays for the next time.
    #[error("cancelled")]
    Cancelled,
}

/// What happens during a download.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// The next file begins.
    File(&'a str),
    /// So many bytes of all that was missing are here.
    Bytes(u64),
    /// Something that the user should know.
    Notice(&'a str),
}

/// Gets progress and may cancel.
pub trait Watch {
    /// Something happened.
    fn event(&mut self, event: Event);
    /// Asked between reads; true stops with [`Error::Cancelled`].
    fn cancelled(&self) -> bool {
        false
    }
}

/// One file of an entry as the hub has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remote {
    /// Path in the repository.
    pub path: &'static str,
    /// Its hash: SHA-256 of large files (LFS), git's SHA-1 of the others, in hexadecimal.
    pub hash: String,
    /// Its size.
    pub bytes: u64,
    /// Whether it is here already.
    pub here: bool,
}

/// What an entry is on the hub, and what of it is missing here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    /// The entry.
    pub entry: &'static Entry,
    /// The branch or commit that was asked for.
    pub revision: String,
    /// The commit that it is now.
    pub commit: String,
    /// Its files; empty where the hub was not reached.
    pub files: Vec<Remote>,
    /// Why the hub was not asked, where everything is here anyway.
    pub unreached: Option<String>,
}

impl Listing {
    /// Bytes that are not here.
    pub fn missing_bytes(&self) -> u64 {
        self.files.iter().filter(|f| !f.here).map(|f| f.bytes).sum()
    }
}

/// A client of one hub and one cache.
pub struct Client {
    settings: Settings,
    http: Http,
}

impl Client {
    /// A client with these settings.
    ///
    /// # Errors
    /// If the hub's address or the token cannot be ones.
    pub fn new(settings: Settings) -> Result<Self, Error> {
        let http = Http::new(&settings)?;
        Ok(Client { settings, http })
    }

    /// Asks the hub what an entry is now.
    ///
    /// # Errors
    /// If the hub refuses, or cannot be reached while something is missing.
    pub fn look(
        &self,
        entry: &'static Entry,
        revision: Option<&str>,
        watch: &dyn Watch,
    ) -> Result<Listing, Error> {
        let revision = revision.unwrap_or(DEFAULT_REVISION).to_owned();
        let here = self.settings.cache.find(entry, Some(&revision));
        let without = |why: String| {
            here.clone().map(|found| Listing {
                entry,
                revision: revision.clone(),
                commit: found.commit,
                files: Vec::new(),
                unreached: Some(why),
            })
        };
        if self.settings.offline {
            let why = "HF_HUB_OFFLINE is set".to_owned();
            return without(why).ok_or_else(|| {
                let (have, all) = self.settings.cache.count(entry, Some(&revision));
                Error::Offline(format!(
                    "has {have} of the {all} files of {}, and HF_HUB_OFFLINE is set: nothing is downloaded; unset it",
                    entry.name
                ))
            });
        }
        match self.ask(entry, &revision, watch) {
            Err(Error::Network(why)) => without(why.clone()).ok_or(Error::Network(why)),
            other => other,
        }
    }

    fn ask(&self, entry: &'static Entry, revision: &str, watch: &dyn Watch) -> Result<Listing, Error> {
        let mut commit: Option<String> = None;
        let mut files = Vec::new();
        for path in entry.files {
            if watch.cancelled() {
                return Err(Error::Cancelled);
            }
            // All files of one commit, even if the branch moves meanwhile.
            let at = commit.as_deref().unwrap_or(revision);
            let head = self.http.head(entry, at, path)?;
            let commit = commit.get_or_insert(head.commit);
            let link = self.settings.cache.snapshot(entry.repository, commit).join(path);
            let here = link.is_file() || self.blob(entry, &head.hash).is_file();
            files.push(Remote { path, hash: head.hash, bytes: head.bytes, here });
        }
        let commit = commit
            .filter(|c| is_commit(c))
            .ok_or_else(|| Error::Refused { url: entry.page(), message: "has no files".to_owned() })?;
        Ok(Listing { entry, revision: revision.to_owned(), commit, files, unreached: None })
    }

    /// Fetches what is missing.
    ///
    /// # Errors
    /// If the disk is too small, the hub refuses, the connection fails again and again, or what arrives is not what was
    /// announced. What was fetched is kept for the next time, unless it is wrong.
    pub fn fetch(&self, listing: &Listing, watch: &mut dyn Watch) -> Result<(), Error> {
        if listing.unreached.is_some() {
            return Ok(());
        }
        let (entry, cache) = (listing.entry, &self.settings.cache);
        self.check_space(listing)?;
        let mut done = 0;
        for file in &listing.files {
            let target = self.blob(entry, &file.hash);
            let link = cache.snapshot(entry.repository, &listing.commit).join(file.path);
            if !link.is_file() && !target.is_file() {
                watch.event(Event::File(file.path));
                let folder = cache.root().join(".locks").join(folder_name(entry.repository));
                let lock = folder.join(format!("{}.lock", file.hash));
                let blob = Blob { entry, commit: &listing.commit, file, target: &target, lock: &lock };
                blob.fetch(&self.http, &self.settings, done, watch)?;
            }
            if !link.is_file() {
                linked(&target, &link, file.path)?;
            }
            done += if file.here { 0 } else { file.bytes };
        }
        if listing.revision != listing.commit {
            let branch = cache.repository(entry.repository).join("refs").join(&listing.revision);
            written(&branch, listing.commit.as_bytes())?;
        }
        Ok(())
    }

    fn blob(&self, entry: &Entry, hash: &str) -> PathBuf {
        self.settings.cache.repository(entry.repository).join("blobs").join(hash)
    }

    fn check_space(&self, listing: &Listing) -> Result<(), Error> {
        let partial = |f: &Remote| {
            let path = blob::incomplete(&self.blob(listing.entry, &f.hash));
            fs::metadata(path).map_or(0, |m| m.len()).min(f.bytes)
        };
        let needed: u64 = listing.files.iter().filter(|f| !f.here).map(|f| f.bytes - partial(f)).sum();
        let root = self.settings.cache.root();
        let Some(there) = root.ancestors().find(|p| p.exists()) else { return Ok(()) };
        // A file system that does not say is tried.
        match fs4::available_space(there) {
            Ok(free) if free < needed => Err(Error::Machine(format!(
                "{}: {needed} bytes are needed, {free} are free; make room, or set HF_HOME to a folder on another disk",
                root.display()
            ))),
            _ => Ok(()),
        }
    }
}

/// Errors of the disk, with what to do.
fn disk(path: &Path, e: &std::io::Error) -> Error {
    let hint = match e.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => "make room",
        _ => "check the folder and its permissions",
    };
    Error::Machine(format!(
        "{}: cannot be written: {e}; {hint}, or set HF_HOME to another folder",
        path.display()
    ))
}

fn made(folder: Option<&Path>) -> Result<(), Error> {
    let Some(folder) = folder else { return Ok(()) };
    fs::create_dir_all(folder).map_err(|e| disk(folder, &e))
}

/// Writes a small file, whole or not at all.
fn written(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    made(path.parent())?;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    let beside = path.with_file_name(name);
    let result = fs::write(&beside, bytes).and_then(|()| fs::rename(&beside, path));
    result.map_err(|e| {
        let _ = fs::remove_file(&beside);
        disk(path, &e)
    })
}

/// Links a file of the tree to its blob, relatively, so that the cache can be moved.
fn linked(target: &Path, link: &Path, path: &str) -> Result<(), Error> {
    made(link.parent())?;
    let up = "../".repeat(path.split('/').count() + 1);
    let to = format!("{up}blobs/{}", target.file_name().unwrap_or_default().to_string_lossy());
    let mut name = link.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    let beside = link.with_file_name(name);
    let _ = fs::remove_file(&beside);
    // Where the system has no links, the file itself goes to its place, as huggingface_hub does.
    let result = symlink(&to, &beside)
        .or_else(|_| fs::rename(target, &beside))
        .and_then(|()| fs::rename(&beside, link));
    result.map_err(|e| {
        let _ = fs::remove_file(&beside);
        disk(link, &e)
    })
}

#[cfg(unix)]
fn symlink(to: &str, link: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(to, link)
}

#[cfg(windows)]
fn symlink(to: &str, link: &Path) -> std::io::Result<()> {
    std::os::windows::fs::symlink_file(to.replace('/', "\\"), link)
}
