//! Weights back into files, one tensor after the other: no more than one is ever in memory.

use super::{Dtype, Stored, gguf, quantise};
use half::{bf16, f16};
use std::borrow::Cow;
use std::io::{self, Write};

/// A tensor to write: its key, its values, and the type that they get.
pub struct Written {
    /// The key.
    pub key: String,
    /// The values as they are.
    pub tensor: Stored,
    /// The type in the file.
    pub dtype: Dtype,
}

impl Written {
    /// The type `wanted` where it can hold this tensor, else f16: blocks need whole rows of them.
    pub fn fitting(tensor: &Stored, wanted: Dtype) -> Dtype {
        let unit = wanted.unit().0;
        let whole = tensor.shape().len() > 1 && tensor.shape().last().is_some_and(|row| row % unit == 0);
        if unit == 1 || whole { wanted } else { Dtype::F16 }
    }

    /// Bytes that the values take in the file.
    pub fn size_bytes(&self) -> usize {
        let (values, bytes) = self.dtype.unit();
        self.tensor.len() / values * bytes
    }

    /// The values in the file's type.
    fn bytes(&self) -> io::Result<Cow<'_, [u8]>> {
        if self.tensor.dtype() == self.dtype {
            return Ok(Cow::Borrowed(self.tensor.bytes()));
        }
        let values = self.tensor.to_f32();
        Ok(Cow::Owned(match self.dtype {
            Dtype::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            Dtype::F16 => values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
            Dtype::BF16 => values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
            Dtype::Blocks(block) => quantise(block, &values).ok_or_else(|| cannot(self))?,
            _ => return Err(cannot(self)),
        }))
    }
}

fn cannot(tensor: &Written) -> io::Error {
    io::Error::other(format!("the tensor {} cannot be written as {}", tensor.key, tensor.dtype.name()))
}

/// Writes a safetensors file. `done` hears the number of each finished tensor and may stop.
///
/// # Errors
/// If writing fails, a type is unknown to the format, or `done` stops it ([`io::ErrorKind::Interrupted`]).
pub fn write_safetensors(
    tensors: &[Written],
    out: &mut dyn Write,
    done: &mut dyn FnMut(usize) -> bool,
) -> io::Result<()> {
    let mut header = serde_json::Map::new();
    header.insert("__metadata__".into(), serde_json::json!({ "format": "pt" }));
    let mut end = 0;
    for tensor in tensors {
        if tensor.dtype.unit().0 > 1 {
            return Err(cannot(tensor));
        }
        let from = end;
        end += tensor.size_bytes();
        let entry = serde_json::json!({
            "dtype": tensor.dtype.name(), "shape": tensor.tensor.shape(), "data_offsets": [from, end],
        });
        header.insert(tensor.key.clone(), entry);
    }
    let mut header = serde_json::Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(&header)?;
    values(tensors, 1, out, done)
}

/// Writes a GGUF file with texts as metadata, e.g. `general.architecture`. `done` as in [`write_safetensors`].
///
/// # Errors
/// As [`write_safetensors`].
pub fn write_gguf(
    tensors: &[Written],
    metadata: &[(&str, &str)],
    out: &mut dyn Write,
    done: &mut dyn FnMut(usize) -> bool,
) -> io::Result<()> {
    const ALIGNMENT: usize = 32;
    let mut header = b"GGUF\x03\0\0\0".to_vec();
    let text = |header: &mut Vec<u8>, text: &str| {
        header.extend_from_slice(&(text.len() as u64).to_le_bytes());
        header.extend_from_slice(text.as_bytes());
    };
    header.extend_from_slice(&(tensors.len() as u64).to_le_bytes());
    header.extend_from_slice(&(metadata.len() as u64 + 1).to_le_bytes());
    for (key, value) in metadata {
        text(&mut header, key);
        header.extend_from_slice(&gguf::TEXT.to_le_bytes());
        text(&mut header, value);
    }
    // The version of the block formats (`GGML_QNT_VERSION`).
    text(&mut header, "general.quantization_version");
    header.extend_from_slice(&gguf::WHOLE.to_le_bytes());
    header.extend_from_slice(&2u32.to_le_bytes());
    let mut offset = 0;
    for tensor in tensors {
        let number = gguf::number(tensor.dtype).ok_or_else(|| cannot(tensor))?;
        text(&mut header, &tensor.key);
        let shape = tensor.tensor.shape();
        header.extend_from_slice(&(shape.len() as u32).to_le_bytes());
        shape.iter().rev().for_each(|n| header.extend_from_slice(&(*n as u64).to_le_bytes()));
        header.extend_from_slice(&number.to_le_bytes());
        header.extend_from_slice(&(offset as u64).to_le_bytes());
        offset += tensor.size_bytes().next_multiple_of(ALIGNMENT);
    }
    header.resize(header.len().next_multiple_of(ALIGNMENT), 0);
    out.write_all(&header)?;
    values(tensors, ALIGNMENT, out, done)
}

/// The values, each tensor at a multiple of `alignment`.
fn values(
    tensors: &[Written],
    alignment: usize,
    out: &mut dyn Write,
    done: &mut dyn FnMut(usize) -> bool,
) -> io::Result<()> {
    for (i, tensor) in tensors.iter().enumerate() {
        let bytes = tensor.bytes()?;
        out.write_all(&bytes)?;
        let padding = bytes.len().next_multiple_of(alignment) - bytes.len();
        out.write_all(&vec![0; padding])?;
        if !done(i + 1) {
            return Err(io::Error::from(io::ErrorKind::Interrupted));
        }
    }
    Ok(())
}
