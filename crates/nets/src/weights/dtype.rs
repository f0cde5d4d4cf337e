//! Number types of stored tensors.

use half::{bf16, f16};
use instantstyle_kernels::Weight;
use instantstyle_kernels::blocks::Block;

/// How the values of a tensor are stored. The networks compute with the first three and with blocks; the others are known
/// so that a file that holds them can be read and described.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Dtype {
    F32,
    F16,
    BF16,
    F64,
    F8E4M3,
    F8E5M2,
    I64,
    I32,
    I16,
    I8,
    U64,
    U32,
    U16,
    U8,
    Bool,
    /// Values that share scales, as GGUF files hold them.
    Blocks(Block),
}

impl Dtype {
    /// Every type with its name in safetensors files and in Python's `torch`.
    const TABLE: [(Dtype, &'static str, &'static str); 15] = [
        (Dtype::F32, "F32", "float32"),
        (Dtype::F16, "F16", "float16"),
        (Dtype::BF16, "BF16", "bfloat16"),
        (Dtype::F64, "F64", "float64"),
        (Dtype::F8E4M3, "F8_E4M3", "float8_e4m3fn"),
        (Dtype::F8E5M2, "F8_E5M2", "float8_e5m2"),
        (Dtype::I64, "I64", "int64"),
        (Dtype::I32, "I32", "int32"),
        (Dtype::I16, "I16", "int16"),
        (Dtype::I8, "I8", "int8"),
        (Dtype::U64, "U64", "uint64"),
        (Dtype::U32, "U32", "uint32"),
        (Dtype::U16, "U16", "uint16"),
        (Dtype::U8, "U8", "uint8"),
        (Dtype::Bool, "BOOL", "bool"),
    ];

    /// From the spelling of safetensors, e.g. `BF16`.
    pub fn from_safetensors(name: &str) -> Option<Self> {
        Dtype::TABLE.iter().find(|t| t.1 == name).map(|t| t.0)
    }

    /// From the spelling of torch, e.g. `bfloat16`.
    pub fn from_torch(name: &str) -> Option<Self> {
        Dtype::TABLE.iter().find(|t| t.2 == name).map(|t| t.0)
    }

    /// The spelling of safetensors, e.g. `BF16`.
    pub fn name(self) -> &'static str {
        if let Dtype::Blocks(block) = self {
            return block.name();
        }
        Dtype::TABLE.iter().find(|t| t.0 == self).map_or("?", |t| t.1)
    }

    /// The smallest number of values that stand alone, and their bytes.
    pub fn unit(self) -> (usize, usize) {
        let bytes = match self {
            Dtype::Blocks(block) => return block.size(),
            Dtype::F64 | Dtype::I64 | Dtype::U64 => 8,
            Dtype::F32 | Dtype::I32 | Dtype::U32 => 4,
            Dtype::F16 | Dtype::BF16 | Dtype::I16 | Dtype::U16 => 2,
            Dtype::F8E4M3 | Dtype::F8E5M2 | Dtype::I8 | Dtype::U8 | Dtype::Bool => 1,
        };
        (1, bytes)
    }

    /// Little-endian bytes to f32; exact for the types that the networks use.
    pub(super) fn widen(self, bytes: &[u8]) -> Vec<f32> {
        match self {
            Dtype::F32 => each(bytes, f32::from_le_bytes),
            Dtype::F16 => each(bytes, |b| f16::from_le_bytes(b).to_f32()),
            Dtype::BF16 => each(bytes, |b| bf16::from_le_bytes(b).to_f32()),
            Dtype::F64 => each(bytes, |b| f64::from_le_bytes(b) as f32),
            Dtype::F8E4M3 => each(bytes, |[b]| e4m3(b)),
            // The upper byte of a half.
            Dtype::F8E5M2 => each(bytes, |[b]| f16::from_bits((b as u16) << 8).to_f32()),
            Dtype::I64 => each(bytes, |b| i64::from_le_bytes(b) as f32),
            Dtype::I32 => each(bytes, |b| i32::from_le_bytes(b) as f32),
            Dtype::I16 => each(bytes, |b| i16::from_le_bytes(b) as f32),
            Dtype::I8 => each(bytes, |b| i8::from_le_bytes(b) as f32),
            Dtype::U64 => each(bytes, |b| u64::from_le_bytes(b) as f32),
            Dtype::U32 => each(bytes, |b| u32::from_le_bytes(b) as f32),
            Dtype::U16 => each(bytes, |b| u16::from_le_bytes(b) as f32),
            Dtype::U8 => each(bytes, |[b]| b as f32),
            Dtype::Bool => each(bytes, |[b]| (b != 0) as u8 as f32),
            Dtype::Blocks(block) => {
                let (values, size) = block.size();
                let mut out = vec![0.0; bytes.len() / size * values];
                Weight::Blocks(block, bytes).widen(0, &mut out);
                out
            }
        }
    }
}

fn each<const N: usize>(bytes: &[u8], f: impl Fn([u8; N]) -> f32) -> Vec<f32> {
    bytes.as_chunks::<N>().0.iter().map(|c| f(*c)).collect()
}

/// OCP 8-bit float with 4 exponent bits, bias 7, no infinities.
fn e4m3(b: u8) -> f32 {
    let (exponent, mantissa) = ((b >> 3) & 15, b & 7);
    let magnitude = match (exponent, mantissa) {
        (15, 7) => f32::NAN,
        (0, m) => m as f32 / 512.0,
        (e, m) => (1.0 + m as f32 / 8.0) * 2f32.powi(e as i32 - 7),
    };
    if b & 0x80 == 0 { magnitude } else { -magnitude }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_floats_widen() {
        assert_eq!(Dtype::F8E4M3.widen(&[0x38, 0x7e, 0x01, 0xb8]), [1.0, 448.0, 2f32.powi(-9), -1.0]);
        assert_eq!(Dtype::F8E5M2.widen(&[0x3c, 0x7b]), [1.0, 57344.0]);
        assert_eq!(Dtype::BF16.widen(&[0x80, 0x3f, 0x00, 0xc0]), [1.0, -2.0]);
        assert_eq!(Dtype::F16.widen(&[0x00, 0x3c, 0x01, 0x00]), [1.0, 2f32.powi(-24)]);
    }

    #[test]
    fn names_are_unique() {
        for (t, safetensors, torch) in Dtype::TABLE {
            assert_eq!(Dtype::from_safetensors(safetensors), Some(t));
            assert_eq!(Dtype::from_torch(torch), Some(t));
            assert_eq!(t.name(), safetensors);
        }
    }
}
