//! Where the bytes of a tensor live: a memory map, the program's own image, or memory. Cheap to clone.

use std::fs::File;
use std::io;
use std::ops::{Deref, Range};
use std::path::Path;
use std::sync::Arc;

/// A range of shared, immutable bytes.
#[derive(Clone)]
pub struct Bytes {
    owner: Owner,
    range: Range<usize>,
}

#[derive(Clone)]
enum Owner {
    Map(Arc<memmap2::Mmap>),
    Static(&'static [u8]),
    Shared(Arc<[u8]>),
    Vec(Arc<Vec<u8>>),
}

impl Owner {
    fn all(&self) -> &[u8] {
        match self {
            Owner::Map(m) => m,
            Owner::Static(s) => s,
            Owner::Shared(s) => s,
            Owner::Vec(v) => v,
        }
    }
}

impl Bytes {
    fn new(owner: Owner) -> Self {
        let range = 0..owner.all().len();
        Bytes { owner, range }
    }

    /// Maps a file into memory. The file must not be shortened while it is in use: the system then stops the
    /// program, as with every reader of memory-mapped checkpoints.
    pub fn map(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let found = file.metadata()?;
        if found.is_dir() {
            return Err(io::Error::new(io::ErrorKind::IsADirectory, "is a folder"));
        }
        if !found.is_file() {
            return Err(io::Error::other("is not an ordinary file"));
        }
        if found.len() == 0 {
            return Ok(Bytes::from(Vec::new()));
        }
        Ok(Bytes::new(Owner::Map(Arc::new(map_file(&file)?))))
    }

    /// A part of these bytes, without a copy; `None` if it is not inside.
    pub fn slice(&self, range: Range<usize>) -> Option<Self> {
        let start = self.range.start.checked_add(range.start)?;
        let end = self.range.start.checked_add(range.end)?;
        (start <= end && end <= self.range.end)
            .then(|| Bytes { owner: self.owner.clone(), range: start..end })
    }

    /// True if the bytes are neither in memory of their own nor will be: they come from a file or the program image.
    pub fn is_mapped(&self) -> bool {
        matches!(self.owner, Owner::Map(_) | Owner::Static(_))
    }
}

impl Bytes {
    /// Gives pages of a map back to the system; they are read from the file again when they are next used.
    pub fn release(&self) {
        #[cfg(unix)]
        if let Owner::Map(map) = &self.owner {
            // Only a hint: an error changes nothing.
            let _ = forget(map, &self.range);
        }
    }
}

#[cfg(unix)]
#[allow(unsafe_code)]
fn forget(map: &memmap2::Mmap, range: &Range<usize>) -> io::Result<()> {
    // SAFETY: the map is of a file and read-only, so that no page holds anything that the file does not.
    unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, range.start, range.len()) }
}

/// One of the two uses of `unsafe` in this crate, both here.
#[allow(unsafe_code)]
fn map_file(file: &File) -> io::Result<memmap2::Mmap> {
    // SAFETY: the map is read-only and private to `Bytes`, which hands out `&[u8]` only. A change of the file by
    // another process can change the values that are read (they are numbers: any bit pattern is valid, and all sizes
    // are checked against the length of the map, which is fixed here); shortening it raises SIGBUS on access, which
    // `Bytes::map` documents. This is the contract of every memory-mapped weight reader.
    unsafe { memmap2::Mmap::map(file) }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.owner.all()[self.range.clone()]
    }
}

impl From<&'static [u8]> for Bytes {
    fn from(bytes: &'static [u8]) -> Self {
        Bytes::new(Owner::Static(bytes))
    }
}

impl From<Arc<[u8]>> for Bytes {
    fn from(bytes: Arc<[u8]>) -> Self {
        Bytes::new(Owner::Shared(bytes))
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Self {
        Bytes::new(Owner::Vec(Arc::new(bytes)))
    }
}
