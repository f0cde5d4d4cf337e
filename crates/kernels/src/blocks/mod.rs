//! Weights in ggml's block formats: a few values share a scale (`ggml-common.h`, `ggml-quants.c`; the numbers are those
//! of the Python package `gguf`, to the bit).

mod k;
mod plain;

pub use plain::quantise;

/// A block format. `Q4_0` and the like have one scale per 32 values, the `K` formats scales of scales over 256.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, non_camel_case_types)]
pub enum Block {
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
}

/// Values of the longest block.
const LONGEST: usize = 256;

impl Block {
    /// Every format.
    pub const ALL: [Block; 10] = [
        Block::Q4_0,
        Block::Q4_1,
        Block::Q5_0,
        Block::Q5_1,
        Block::Q8_0,
        Block::Q2_K,
        Block::Q3_K,
        Block::Q4_K,
        Block::Q5_K,
        Block::Q6_K,
    ];

    /// Values in a block, and its bytes (`GGML_QUANT_SIZES`).
    pub const fn size(self) -> (usize, usize) {
        match self {
            Block::Q4_0 => (32, 18),
            Block::Q4_1 => (32, 20),
            Block::Q5_0 => (32, 22),
            Block::Q5_1 => (32, 24),
            Block::Q8_0 => (32, 34),
            Block::Q2_K => (256, 84),
            Block::Q3_K => (256, 110),
            Block::Q4_K => (256, 144),
            Block::Q5_K => (256, 176),
            Block::Q6_K => (256, 210),
        }
    }

    /// As ggml spells it.
    pub const fn name(self) -> &'static str {
        match self {
            Block::Q4_0 => "Q4_0",
            Block::Q4_1 => "Q4_1",
            Block::Q5_0 => "Q5_0",
            Block::Q5_1 => "Q5_1",
            Block::Q8_0 => "Q8_0",
            Block::Q2_K => "Q2_K",
            Block::Q3_K => "Q3_K",
            Block::Q4_K => "Q4_K",
            Block::Q5_K => "Q5_K",
            Block::Q6_K => "Q6_K",
        }
    }

    /// One block's values.
    fn expand(self, block: &[u8], out: &mut [f32]) {
        match self {
            Block::Q4_0 => plain::q4_0(block, out),
            Block::Q4_1 => plain::q4_1(block, out),
            Block::Q5_0 => plain::q5_0(block, out),
            Block::Q5_1 => plain::q5_1(block, out),
            Block::Q8_0 => plain::q8_0(block, out),
            Block::Q2_K => k::q2(block, out),
            Block::Q3_K => k::q3(block, out),
            Block::Q4_K => k::q4(block, out),
            Block::Q5_K => k::q5(block, out),
            Block::Q6_K => k::q6(block, out),
        }
    }
}

/// Values `start..start + out.len()` of a row of blocks; they may begin and end inside a block.
///
/// # Panics
/// If they are beyond the end.
pub(crate) fn widen(kind: Block, bytes: &[u8], start: usize, out: &mut [f32]) {
    let (values, size) = kind.size();
    let (mut done, mut at, mut skip) = (0, start / values, start % values);
    let mut whole = [0f32; LONGEST];
    while done < out.len() {
        let block = &bytes[at * size..(at + 1) * size];
        let n = (values - skip).min(out.len() - done);
        let part = &mut out[done..done + n];
        if n == values {
            kind.expand(block, part);
        } else {
            kind.expand(block, &mut whole[..values]);
            part.copy_from_slice(&whole[skip..skip + n]);
        }
        (done, at, skip) = (done + n, at + 1, 0);
    }
}

/// The half-precision number at `at`.
fn half(block: &[u8], at: usize) -> f32 {
    half::f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

#[cfg(test)]
mod tests;
