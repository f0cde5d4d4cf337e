//! One file: fetched to `HASH.incomplete`, resumed there, checked, renamed to `HASH`.

use super::http::{Failure, Http};
use super::{Error, Event, Remote, Settings, Watch, disk, made};
use crate::catalogue::Entry;
use sha1::Sha1;
use sha2::{Digest, Sha256};
use std::fs::{self, File, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

const BUFFER_BYTES: usize = 256 << 10;

pub(super) struct Blob<'a> {
    pub entry: &'a Entry,
    pub commit: &'a str,
    pub file: &'a Remote,
    /// Where it will be.
    pub target: &'a Path,
    /// Held while it is written.
    pub lock: &'a Path,
}

/// Where a blob is while it is not whole.
pub(super) fn incomplete(target: &Path) -> PathBuf {
    let mut name = target.file_name().unwrap_or_default().to_owned();
    name.push(".incomplete");
    target.with_file_name(name)
}

/// The hub names large files by SHA-256, the others as git does: by the SHA-1 of a header and the content.
enum Hasher {
    Large(Sha256),
    Git(Sha1),
}

impl Hasher {
    fn new(file: &Remote) -> Self {
        if file.hash.len() == 64 {
            return Hasher::Large(Sha256::new());
        }
        let mut sha1 = Sha1::new();
        sha1.update(format!("blob {}\0", file.bytes));
        Hasher::Git(sha1)
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Hasher::Large(h) => h.update(bytes),
            Hasher::Git(h) => h.update(bytes),
        }
    }

    fn finish(self) -> String {
        let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        match self {
            Hasher::Large(h) => hex(&h.finalize()),
            Hasher::Git(h) => hex(&h.finalize()),
        }
    }
}

/// What is on disk so far.
struct Part {
    file: File,
    path: PathBuf,
    bytes: u64,
    hasher: Hasher,
    /// Whether its beginning was there before this run.
    older: bool,
}

impl Part {
    fn open(blob: &Blob, watch: &dyn Watch) -> Result<Self, Error> {
        let path = incomplete(blob.target);
        made(path.parent())?;
        let refused = |e: std::io::Error| disk(&path, &e);
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(refused)?;
        let mut part =
            Part { file, path: path.clone(), bytes: 0, hasher: Hasher::new(blob.file), older: false };
        let there = part.file.metadata().map_err(refused)?.len();
        if there > blob.file.bytes {
            part.restart(blob)?;
            return Ok(part);
        }
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            if watch.cancelled() {
                return Err(Error::Cancelled);
            }
            match part.file.read(&mut buffer).map_err(refused)? {
                0 => break,
                n => {
                    part.hasher.update(&buffer[..n]);
                    part.bytes += n as u64;
                }
            }
        }
        part.older = part.bytes > 0;
        Ok(part)
    }

    fn restart(&mut self, blob: &Blob) -> Result<(), Error> {
        let cleared = self.file.set_len(0).and_then(|()| self.file.seek(SeekFrom::Start(0)));
        cleared.map_err(|e| disk(&self.path, &e))?;
        (self.bytes, self.hasher, self.older) = (0, Hasher::new(blob.file), false);
        Ok(())
    }
}

impl Blob<'_> {
    /// Fetches it; `before` bytes of the whole download are here already.
    pub fn fetch(
        &self,
        http: &Http,
        settings: &Settings,
        before: u64,
        watch: &mut dyn Watch,
    ) -> Result<(), Error> {
        let _held = self.locked(watch)?;
        if self.target.is_file() {
            return Ok(());
        }
        let mut part = Part::open(self, watch)?;
        let (mut tries, mut furthest) = (0, part.bytes);
        loop {
            match self.rest(http, &mut part, before, watch) {
                Ok(()) => {}
                Err(Failure::Final(e)) => return Err(e),
                Err(Failure::Again(why)) => {
                    // A server that gives a little each time is followed to the end; one that gives the same again, not.
                    tries = if part.bytes > furthest { 1 } else { tries + 1 };
                    furthest = furthest.max(part.bytes);
                    if tries >= settings.tries {
                        return Err(Error::Network(format!(
                            "{why}; given up after {tries} tries at byte {} of {}; the next pull goes on from there",
                            part.bytes, self.file.bytes
                        )));
                    }
                    self.pause(settings.wait * 2u32.pow(tries - 1), watch)?;
                    continue;
                }
            }
            let got = std::mem::replace(&mut part.hasher, Hasher::new(self.file)).finish();
            if got == self.file.hash {
                break;
            }
            // The beginning may be from a damaged earlier download: once more from the start.
            if part.older {
                watch.event(Event::Notice("what an earlier download left is damaged; it begins anew"));
                part.restart(self)?;
                continue;
            }
            let _ = fs::remove_file(&part.path);
            return Err(Error::Damaged {
                path: self.target.to_owned(),
                message: format!(
                    "{} of {} arrived damaged: its hash is {got}, the hub's {}; it was removed, try again",
                    self.file.path, self.entry.repository, self.file.hash
                ),
            });
        }
        part.file.sync_all().map_err(|e| disk(&part.path, &e))?;
        fs::rename(&part.path, self.target).map_err(|e| disk(self.target, &e))
    }

    /// Fetches what is missing of it.
    fn rest(&self, http: &Http, part: &mut Part, before: u64, watch: &mut dyn Watch) -> Result<(), Failure> {
        watch.event(Event::Bytes(before + part.bytes));
        if part.bytes == self.file.bytes {
            return Ok(());
        }
        let mut response = http.get(self.entry, self.commit, self.file.path, part.bytes)?;
        let partial = response.status().as_u16() == 206;
        let range = response.headers().get("content-range").and_then(|v| v.to_str().ok());
        if response.status().as_u16() == 416 || partial && range != Some(&self.range(part.bytes)) {
            let had = part.bytes > 0;
            part.restart(self)?;
            let why = format!("{}: the server cannot go on where the download was cut", self.file.path);
            // Without a beginning there was no range to refuse.
            return Err(if had { Failure::Again(why) } else { Failure::Final(Error::Network(why)) });
        }
        if !partial && part.bytes > 0 {
            part.restart(self)?;
        }
        let mut reader = response.body_mut().as_reader();
        let mut buffer = vec![0; BUFFER_BYTES];
        while part.bytes < self.file.bytes {
            if watch.cancelled() {
                return Err(Error::Cancelled.into());
            }
            let n = match reader.read(&mut buffer) {
                Ok(0) => {
                    return Err(Failure::Again(format!("{}: the connection ended early", self.file.path)));
                }
                Ok(n) => n,
                Err(e) => return Err(Failure::Again(format!("{}: {e}", self.file.path))),
            };
            // What is beyond the announced size is not wanted.
            let n = n.min(usize::try_from(self.file.bytes - part.bytes).unwrap_or(n));
            part.file.write_all(&buffer[..n]).map_err(|e| disk(&part.path, &e))?;
            part.hasher.update(&buffer[..n]);
            part.bytes += n as u64;
            watch.event(Event::Bytes(before + part.bytes));
        }
        Ok(())
    }

    /// `Content-Range` of the rest.
    fn range(&self, from: u64) -> String {
        format!("bytes {from}-{}/{}", self.file.bytes - 1, self.file.bytes)
    }

    fn pause(&self, time: Duration, watch: &dyn Watch) -> Result<(), Error> {
        let end = std::time::Instant::now() + time;
        while let Some(left) = end.checked_duration_since(std::time::Instant::now()) {
            if watch.cancelled() {
                return Err(Error::Cancelled);
            }
            std::thread::sleep(left.min(Duration::from_millis(100)));
        }
        Ok(())
    }

    /// The lock of `huggingface_hub` for this file: two programs do not write one file.
    fn locked(&self, watch: &mut dyn Watch) -> Result<File, Error> {
        made(self.lock.parent())?;
        let refused = |e: std::io::Error| disk(self.lock, &e);
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(self.lock)
            .map_err(refused)?;
        let mut told = false;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::Error(e)) if e.kind() != std::io::ErrorKind::Unsupported => {
                    return Err(refused(e));
                }
                // A file system without locks: huggingface_hub goes on as well.
                Err(TryLockError::Error(_)) => return Ok(file),
                Err(TryLockError::WouldBlock) => {}
            }
            if !told {
                watch.event(Event::Notice("another program is fetching this file; waiting for it"));
                told = true;
            }
            self.pause(Duration::from_millis(200), watch)?;
        }
    }
}
