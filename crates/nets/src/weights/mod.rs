//! Named tensors from files: safetensors, GGUF, and PyTorch pickles read without running any code.
//!
//! Everything in a file is taken as hostile: sizes are checked against the file before anything is allocated, and a
//! damaged file ends in a [`WeightsError`], never in a panic. Tensors stay where they are, in a memory map of the
//! file, until somebody asks for their values. What a file is, is decided by its content, never by its name.

mod bytes;
mod dtype;
mod error;
mod folder;
mod gguf;
mod pickle;
mod safetensors;
mod write;
mod zip;

pub use bytes::Bytes;
pub use dtype::Dtype;
pub use error::WeightsError;
pub use safetensors::to_safetensors;
pub use write::{Written, write_gguf, write_safetensors};

pub(crate) use error::shown;
use instantstyle_kernels::Weight;
pub use instantstyle_kernels::blocks::{Block, quantise};
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

/// More axes than any weight has.
const MAX_RANK: usize = 16;

/// A tensor as it is stored: a range of a memory map or of shared memory. Cheap to clone.
#[derive(Clone)]
pub struct Stored {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Bytes,
}

impl Stored {
    /// From contiguous, row-major, little-endian bytes; `None` if their number does not fit the shape.
    pub fn new(dtype: Dtype, shape: impl Into<Vec<usize>>, bytes: impl Into<Bytes>) -> Option<Self> {
        let (shape, bytes) = (shape.into(), bytes.into());
        (size_in_bytes(dtype, &shape)? == bytes.len()).then_some(Stored { dtype, shape, bytes })
    }

    /// From values; `None` if their number does not fit the shape.
    pub fn from_f32(shape: impl Into<Vec<usize>>, values: &[f32]) -> Option<Self> {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Stored::new(Dtype::F32, shape, bytes)
    }

    /// The number type.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// The shape, row-major.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        let (values, bytes) = self.dtype.unit();
        self.bytes.len() / bytes * values
    }

    /// True if there are no values.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The values' bytes: little-endian, row-major, possibly unaligned.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// True if the values lie in a file or in the program's image and take no memory of their own.
    pub fn is_mapped(&self) -> bool {
        self.bytes.is_mapped()
    }

    /// Gives the memory back that holds pages of a file: they are read anew if somebody asks again.
    pub fn release(&self) {
        self.bytes.release();
    }

    /// All values as f32: exact for f32, f16, bf16, rounded for wider types.
    pub fn to_f32(&self) -> Vec<f32> {
        match self.kernel_view() {
            Some(view) => {
                let mut out = vec![0.0; view.len()];
                view.widen(0, &mut out);
                out
            }
            None => self.dtype.widen(&self.bytes),
        }
    }

    /// The values for the kernels; `None` unless they are f32, f16, bf16 or blocks.
    pub fn kernel_view(&self) -> Option<Weight<'_>> {
        match self.dtype {
            Dtype::F32 => Some(Weight::F32(&self.bytes)),
            Dtype::F16 => Some(Weight::F16(&self.bytes)),
            Dtype::BF16 => Some(Weight::Bf16(&self.bytes)),
            Dtype::Blocks(block) => Some(Weight::Blocks(block, &self.bytes)),
            _ => None,
        }
    }

    /// Rows `start..start + rows` of the first axis, without a copy (fused projections); `None` if they are not inside, or
    /// a row is no whole number of blocks.
    pub fn rows(&self, start: usize, rows: usize) -> Option<Self> {
        let mut shape = self.shape.clone();
        let all = *shape.first()?;
        let per_row = self.len() / all.max(1);
        if start.checked_add(rows)? > all || per_row % self.dtype.unit().0 != 0 {
            return None;
        }
        let row = self.bytes.len() / all.max(1);
        shape[0] = rows;
        let bytes = self.bytes.slice(start * row..(start + rows) * row)?;
        Some(Stored { dtype: self.dtype, shape, bytes })
    }

    /// The same values under another shape; `None` if the number of values differs.
    pub fn reshape(&self, shape: impl Into<Vec<usize>>) -> Option<Self> {
        Stored::new(self.dtype, shape, self.bytes.clone())
    }
}

impl fmt::Debug for Stored {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}{:?}", self.dtype.name(), self.shape)
    }
}

/// Bytes of a tensor; `None` if no machine could hold it.
fn size_in_bytes(dtype: Dtype, shape: &[usize]) -> Option<usize> {
    // [0, huge, huge] is refused, too: products of its sides would overflow elsewhere.
    let values = shape.iter().try_fold(1usize, |n, d| n.checked_mul((*d).max(1)))?;
    if shape.contains(&0) {
        return Some(0);
    }
    let (unit, bytes) = dtype.unit();
    let bytes = (values / unit).checked_mul(bytes)?;
    (values % unit == 0 && bytes <= isize::MAX as usize).then_some(bytes)
}

/// How a set of weights was stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Safetensors.
    Safetensors,
    /// PyTorch's zip archive around a pickle (since 1.6).
    PickleZip,
    /// PyTorch's older row of pickles.
    PickleLegacy,
    /// ggml's GGUF.
    Gguf,
}

impl Format {
    /// In a few words.
    pub fn name(self) -> &'static str {
        match self {
            Format::Safetensors => "safetensors",
            Format::PickleZip => "PyTorch checkpoint",
            Format::PickleLegacy => "PyTorch checkpoint (before 1.6)",
            Format::Gguf => "GGUF",
        }
    }
}

/// Named tensors from one or more files.
#[derive(Clone, Debug)]
pub struct Weights {
    source: PathBuf,
    format: Format,
    tensors: BTreeMap<String, Stored>,
    metadata: BTreeMap<String, String>,
}

impl Weights {
    /// Reads one file, whatever it is called.
    ///
    /// # Errors
    /// If it is not a complete, valid weight file, or would run code.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, WeightsError> {
        let path = path.as_ref();
        match Bytes::map(path) {
            Ok(bytes) => read(bytes, path),
            Err(e) if e.kind() == std::io::ErrorKind::IsADirectory => Err(WeightsError::NotWeights {
                path: path.into(),
                found: "a folder".into(),
                way_out: "name the file in it".into(),
            }),
            Err(source) => Err(WeightsError::Io { path: path.into(), source }),
        }
    }

    /// Reads a component's folder as Diffusers and transformers write them: one file or shards with an index,
    /// safetensors before pickles, full precision before `.fp16`.
    ///
    /// # Errors
    /// If no weights are there, or as [`Weights::open`].
    pub fn open_component(dir: impl AsRef<Path>) -> Result<Self, WeightsError> {
        folder::open(dir.as_ref())
    }

    /// Reads a file's content from memory; nothing is copied. `label` stands for the path in messages.
    ///
    /// # Errors
    /// As [`Weights::open`].
    pub fn from_bytes(bytes: impl Into<Bytes>, label: impl AsRef<Path>) -> Result<Self, WeightsError> {
        read(bytes.into(), label.as_ref())
    }

    /// From tensors at hand.
    pub fn from_tensors(
        tensors: impl IntoIterator<Item = (String, Stored)>,
        label: impl AsRef<Path>,
    ) -> Self {
        Weights {
            source: label.as_ref().into(),
            format: Format::Safetensors,
            tensors: tensors.into_iter().collect(),
            metadata: BTreeMap::new(),
        }
    }

    /// The tensor `key`.
    pub fn get(&self, key: &str) -> Option<&Stored> {
        self.tensors.get(key)
    }

    /// All keys, sorted.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// All tensors, sorted by key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Stored)> {
        self.tensors.iter().map(|(k, v)| (k.as_str(), v))
    }

    /// True if a key starts with `prefix`.
    pub fn has_prefix(&self, prefix: &str) -> bool {
        self.tensors.range(prefix.to_owned()..).next().is_some_and(|(k, _)| k.starts_with(prefix))
    }

    /// Number of tensors.
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// Sum of the tensors' sizes in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.tensors.values().map(|t| t.bytes().len() as u64).sum()
    }

    /// The file or folder, for messages.
    pub fn source(&self) -> &Path {
        &self.source
    }

    /// How it was stored.
    pub fn format(&self) -> Format {
        self.format
    }

    /// `__metadata__` of a safetensors file.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// The tensors under `prefix`, which is cut off; `prefix` includes its final dot. Shares the memory.
    pub fn strip_prefix(&self, prefix: &str) -> Weights {
        self.renamed(|key| key.strip_prefix(prefix).map(str::to_owned))
    }

    /// The same tensors with `prefix` in front of every key. Shares the memory.
    pub fn with_prefix(&self, prefix: &str) -> Weights {
        self.renamed(|key| Some(format!("{prefix}{key}")))
    }

    /// The tensors for which `name` gives a new key. Shares the memory.
    pub fn renamed(&self, name: impl Fn(&str) -> Option<String>) -> Weights {
        let tensors = self.tensors.iter().filter_map(|(k, v)| Some((name(k)?, v.clone()))).collect();
        Weights { tensors, ..self.clone_empty() }
    }

    /// Sets one tensor.
    pub fn insert(&mut self, key: impl Into<String>, tensor: Stored) {
        self.tensors.insert(key.into(), tensor);
    }

    fn clone_empty(&self) -> Weights {
        Weights {
            source: self.source.clone(),
            format: self.format,
            tensors: BTreeMap::new(),
            metadata: self.metadata.clone(),
        }
    }
}

/// Decides by content and reads.
fn read(bytes: Bytes, path: &Path) -> Result<Weights, WeightsError> {
    let not = |found: &str, way_out: &str| {
        Err(WeightsError::NotWeights { path: path.into(), found: found.into(), way_out: way_out.into() })
    };
    let head = &bytes[..bytes.len().min(512)];
    let text = head.trim_ascii_start();
    let starts = |word: &[u8]| text.len() >= word.len() && text[..word.len()].eq_ignore_ascii_case(word);
    let again = "download the file itself (a login or licence page may have been saved in its place)";
    if head.is_empty() {
        return not("an empty file", "download or copy it again");
    }
    if head.starts_with(b"GGUF") {
        return gguf::read(bytes.clone(), path);
    }
    // Before the other first bytes: here they are a length and may be anything.
    if head.get(8) == Some(&b'{') {
        return safetensors::read(bytes.clone(), path);
    }
    if head.starts_with(b"PK\x03\x04") || head.starts_with(b"PK\x05\x06") {
        return pickle::read_zip(bytes.clone(), path);
    }
    if head[0] == 0x80 {
        return pickle::read_legacy(bytes.clone(), path);
    }
    if starts(b"version https://git-lfs") {
        return not("a git-LFS pointer", "run `git lfs pull` in its folder to get the real file");
    }
    if starts(b"<") {
        return not("an HTML page", again);
    }
    if starts(b"{") || starts(b"[") {
        return not("a JSON text", again);
    }
    if head.starts_with(b"\x89PNG") || head.starts_with(b"\xff\xd8\xff") || head.starts_with(b"GIF8") {
        return not("a picture", "name a weight file (.safetensors, .gguf, .bin, .ckpt, .pth)");
    }
    if head.get(257..262) == Some(b"ustar") {
        return not(
            "a tar archive",
            "unpack it; checkpoints in tar form (PyTorch before 0.2) must be saved anew",
        );
    }
    // A pickle in text form: name what it would run.
    if let Err(e @ WeightsError::Refused { .. }) = pickle::read_legacy(bytes.clone(), path) {
        return Err(e);
    }
    // The name says nothing about a good file, but it helps to explain a bad one.
    if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("safetensors")) {
        return safetensors::read(bytes.clone(), path);
    }
    let start = shown(&String::from_utf8_lossy(&head[..head.len().min(16)]));
    not(
        &format!("an unknown kind of file (it starts with \"{start}\")"),
        "expected safetensors, GGUF or a PyTorch checkpoint",
    )
}
