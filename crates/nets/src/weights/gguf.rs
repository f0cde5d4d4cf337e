//! ggml's GGUF: a header of typed metadata, a table of tensors, their values at aligned offsets.
//! Specification: github.com/ggml-org/ggml, docs/gguf.md. Shapes are stored with the fastest axis first.

use super::error::shown;
use super::{Block, Bytes, Dtype, Format, MAX_RANK, Stored, Weights, WeightsError, size_in_bytes};
use std::collections::BTreeMap;
use std::path::Path;

/// Types of metadata: a whole number of 32 bits, a text, a list.
pub(super) const WHOLE: u32 = 4;
pub(super) const TEXT: u32 = 8;
const LIST: u32 = 9;
/// Where `general.alignment` is not given.
const ALIGNMENT: u64 = 32;
/// Lists in lists of metadata.
const MAX_DEPTH: usize = 4;
/// Tensors whose rows do not fill blocks are stored under another shape by ComfyUI-GGUF, which notes the true one here.
const TRUE_SHAPE: &str = "comfy.gguf.orig_shape.";

/// `ggml_type`, the ones that are read.
fn dtype(number: u32) -> Option<Dtype> {
    Some(match number {
        0 => Dtype::F32,
        1 => Dtype::F16,
        2 => Dtype::Blocks(Block::Q4_0),
        3 => Dtype::Blocks(Block::Q4_1),
        6 => Dtype::Blocks(Block::Q5_0),
        7 => Dtype::Blocks(Block::Q5_1),
        8 => Dtype::Blocks(Block::Q8_0),
        10 => Dtype::Blocks(Block::Q2_K),
        11 => Dtype::Blocks(Block::Q3_K),
        12 => Dtype::Blocks(Block::Q4_K),
        13 => Dtype::Blocks(Block::Q5_K),
        14 => Dtype::Blocks(Block::Q6_K),
        24 => Dtype::I8,
        25 => Dtype::I16,
        26 => Dtype::I32,
        27 => Dtype::I64,
        28 => Dtype::F64,
        30 => Dtype::BF16,
        _ => return None,
    })
}

/// The number of a type that [`write`](super::write) writes.
pub(super) fn number(of: Dtype) -> Option<u32> {
    (0..=30).find(|n| dtype(*n) == Some(of))
}

/// Reads on from a place in the file; never beyond its end.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    path: &'a Path,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, n: u64, what: &str) -> Result<&'a [u8], WeightsError> {
        let end = usize::try_from(n).ok().and_then(|n| self.at.checked_add(n));
        let found =
            end.and_then(|end| self.bytes.get(self.at..end)).ok_or_else(|| WeightsError::Truncated {
                path: self.path.into(),
                what: what.into(),
                expected: (self.at as u64).saturating_add(n),
                found: self.bytes.len() as u64,
            })?;
        self.at += found.len();
        Ok(found)
    }

    fn u32(&mut self, what: &str) -> Result<u32, WeightsError> {
        Ok(u32::from_le_bytes(self.take(4, what)?.try_into().expect("four bytes")))
    }

    fn u64(&mut self, what: &str) -> Result<u64, WeightsError> {
        Ok(u64::from_le_bytes(self.take(8, what)?.try_into().expect("eight bytes")))
    }

    fn text(&mut self, what: &str) -> Result<&'a str, WeightsError> {
        let length = self.u64(what)?;
        std::str::from_utf8(self.take(length, what)?)
            .map_err(|_| self.malformed(format!("{what} is not UTF-8 text")))
    }

    fn malformed(&self, message: String) -> WeightsError {
        WeightsError::Malformed { path: self.path.into(), message: format!("GGUF: {message}") }
    }

    /// Goes over a value; numbers of a list of 32-bit integers and texts are kept.
    fn value(&mut self, kind: u32, depth: usize) -> Result<Value<'a>, WeightsError> {
        const WHAT: &str = "the GGUF metadata";
        Ok(match kind {
            TEXT => Value::Text(self.text(WHAT)?),
            LIST if depth < MAX_DEPTH => {
                let (inner, count) = (self.u32(WHAT)?, self.u64(WHAT)?);
                if let Some(width) = width(inner) {
                    let all = self.take(count.saturating_mul(width), WHAT)?;
                    return Ok(if inner == 5 { Value::Whole(all) } else { Value::Other });
                }
                for _ in 0..count {
                    self.value(inner, depth + 1)?;
                }
                Value::Other
            }
            _ => {
                let width = width(kind)
                    .ok_or_else(|| self.malformed(format!("a metadata value of the unknown type {kind}")))?;
                Value::Number(self.take(width, WHAT)?.iter().rev().fold(0, |n, b| n << 8 | *b as u64))
            }
        })
    }
}

/// Bytes of a metadata value of fixed size.
fn width(kind: u32) -> Option<u64> {
    match kind {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

enum Value<'a> {
    Text(&'a str),
    /// The bits of a number.
    Number(u64),
    /// 32-bit integers, in bytes.
    Whole(&'a [u8]),
    Other,
}

struct Entry<'a> {
    key: &'a str,
    shape: Vec<usize>,
    dtype: Dtype,
    offset: u64,
    size: usize,
}

pub(super) fn read(bytes: Bytes, path: &Path) -> Result<Weights, WeightsError> {
    let mut file = Cursor { bytes: &bytes, at: 4, path };
    let version = file.u32("the GGUF header")?;
    if !matches!(version, 2 | 3) {
        let found = if version.swap_bytes() < 16 {
            "a big-endian GGUF file".into()
        } else {
            format!("a GGUF file of version {version}")
        };
        let way_out = "only little-endian files of versions 2 and 3 are read; convert it anew".into();
        return Err(WeightsError::NotWeights { path: path.into(), found, way_out });
    }
    let (tensors, entries) = (file.u64("the GGUF header")?, file.u64("the GGUF header")?);
    let mut metadata = BTreeMap::new();
    let mut shapes = BTreeMap::new();
    let mut alignment = ALIGNMENT;
    for _ in 0..entries {
        let key = file.text("the GGUF metadata")?;
        let kind = file.u32("the GGUF metadata")?;
        match (key, file.value(kind, 0)?) {
            ("general.alignment", Value::Number(n)) if n.is_power_of_two() && n <= 1 << 20 => alignment = n,
            ("general.alignment", _) => {
                return Err(file.malformed("general.alignment is no power of two".into()));
            }
            ("split.count", Value::Number(n)) if n > 1 => {
                return Err(WeightsError::NotWeights {
                    path: path.into(),
                    found: format!("one of {n} parts of a GGUF file"),
                    way_out: "join them first (gguf-split --merge)".into(),
                });
            }
            (key, Value::Text(text)) => drop(metadata.insert(key.to_owned(), text.to_owned())),
            (key, Value::Whole(numbers)) => {
                if let Some(tensor) = key.strip_prefix(TRUE_SHAPE) {
                    shapes.insert(tensor, numbers);
                }
            }
            _ => {}
        }
    }
    let mut table = Vec::new();
    for _ in 0..tensors {
        table.push(entry(&mut file, &shapes)?);
    }
    let start = (file.at as u64).next_multiple_of(alignment);
    let tensors = place(&bytes, table, start, alignment, path)?;
    Ok(Weights { source: path.into(), format: Format::Gguf, tensors, metadata })
}

/// One line of the table of tensors.
fn entry<'a>(file: &mut Cursor<'a>, shapes: &BTreeMap<&str, &[u8]>) -> Result<Entry<'a>, WeightsError> {
    const WHAT: &str = "the GGUF table of tensors";
    let key = file.text(WHAT)?;
    let wrong = |expected: String, found: String| WeightsError::Tensor {
        path: file.path.into(),
        key: shown(key),
        expected,
        found,
    };
    let rank = file.u32(WHAT)? as usize;
    if rank > MAX_RANK {
        return Err(wrong(format!("at most {MAX_RANK} axes"), rank.to_string()));
    }
    let mut shape = Vec::with_capacity(rank);
    for _ in 0..rank {
        let side = file.u64(WHAT)?;
        shape.insert(
            0,
            usize::try_from(side)
                .map_err(|_| wrong("a shape that fits in memory".into(), side.to_string()))?,
        );
    }
    let (kind, offset) = (file.u32(WHAT)?, file.u64(WHAT)?);
    let dtype = dtype(kind).ok_or_else(|| {
        wrong("F32, F16, BF16, Q4_0 to Q8_0 or Q2_K to Q6_K".into(), format!("ggml's type {kind}"))
    })?;
    let unit = dtype.unit().0;
    if shape.last().is_some_and(|row| row % unit != 0) || (shape.is_empty() && unit > 1) {
        return Err(wrong(
            format!("rows of whole blocks of {unit} values ({})", dtype.name()),
            format!("{shape:?}"),
        ));
    }
    let size = size_in_bytes(dtype, &shape)
        .ok_or_else(|| wrong("a shape that fits in memory".into(), format!("{shape:?}")))?;
    if let Some(numbers) = shapes.get(key) {
        let true_shape: Option<Vec<usize>> = numbers
            .as_chunks::<4>()
            .0
            .iter()
            .take(MAX_RANK + 1)
            .map(|n| usize::try_from(i32::from_le_bytes(*n)).ok())
            .collect();
        let fits = |s: &Vec<usize>| s.len() <= MAX_RANK && size_in_bytes(dtype, s) == Some(size);
        shape = true_shape.filter(fits).ok_or_else(|| {
            wrong(
                format!("a true shape of as many values as {shape:?}"),
                format!("{TRUE_SHAPE}{}", shown(key)),
            )
        })?;
    }
    Ok(Entry { key, shape, dtype, offset, size })
}

/// Gives each tensor its bytes: inside the file, aligned, no two at one place.
fn place(
    bytes: &Bytes,
    mut table: Vec<Entry>,
    start: u64,
    alignment: u64,
    path: &Path,
) -> Result<BTreeMap<String, Stored>, WeightsError> {
    table.sort_by_key(|e| e.offset);
    let (mut tensors, mut end) = (BTreeMap::new(), 0u64);
    for Entry { key, shape, dtype, offset, size } in table {
        let wrong = |expected: &str, found: String| WeightsError::Tensor {
            path: path.into(),
            key: shown(key),
            expected: expected.into(),
            found,
        };
        if offset % alignment != 0 {
            return Err(wrong(&format!("an offset that is a multiple of {alignment}"), offset.to_string()));
        }
        if offset < end {
            return Err(wrong("values of its own", format!("the offset {offset} inside the tensor before")));
        }
        end = offset.saturating_add(size as u64);
        let place = usize::try_from(start.saturating_add(offset))
            .ok()
            .and_then(|from| bytes.slice(from..from.checked_add(size)?))
            .ok_or_else(|| WeightsError::Truncated {
                path: path.into(),
                what: format!("tensor {}", shown(key)),
                expected: start.saturating_add(end),
                found: bytes.len() as u64,
            })?;
        if tensors.insert(key.to_owned(), Stored { dtype, shape, bytes: place }).is_some() {
            return Err(wrong("one tensor of that name", "two".into()));
        }
    }
    Ok(tensors)
}
