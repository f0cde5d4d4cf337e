//! One scale per 32 values.

use super::{Block, half};
use ::half::f16;

/// Low nibbles are the first half of a block, high nibbles the second.
fn nibbles(bytes: &[u8]) -> impl Iterator<Item = u8> {
    bytes.iter().map(|b| b & 15).chain(bytes.iter().map(|b| b >> 4))
}

pub(super) fn q4_0(block: &[u8], out: &mut [f32]) {
    let d = half(block, 0);
    out.iter_mut().zip(nibbles(&block[2..18])).for_each(|(o, q)| *o = d * (q as i32 - 8) as f32);
}

pub(super) fn q4_1(block: &[u8], out: &mut [f32]) {
    let (d, m) = (half(block, 0), half(block, 2));
    out.iter_mut().zip(nibbles(&block[4..20])).for_each(|(o, q)| *o = d * q as f32 + m);
}

/// The fifth bits of a block, lowest first.
fn fifths(bytes: &[u8]) -> impl Iterator<Item = u8> {
    (0..32).map(|i| (bytes[i / 8] >> (i % 8) & 1) << 4)
}

pub(super) fn q5_0(block: &[u8], out: &mut [f32]) {
    let d = half(block, 0);
    for ((o, q), h) in out.iter_mut().zip(nibbles(&block[6..22])).zip(fifths(&block[2..6])) {
        *o = d * ((q | h) as i32 - 16) as f32;
    }
}

pub(super) fn q5_1(block: &[u8], out: &mut [f32]) {
    let (d, m) = (half(block, 0), half(block, 2));
    for ((o, q), h) in out.iter_mut().zip(nibbles(&block[8..24])).zip(fifths(&block[4..8])) {
        *o = d * (q | h) as f32 + m;
    }
}

pub(super) fn q8_0(block: &[u8], out: &mut [f32]) {
    let d = half(block, 0);
    out.iter_mut().zip(&block[2..34]).for_each(|(o, q)| *o = *q as i8 as f32 * d);
}

/// Values in a block format, as ggml's reference quantises them (`quantize_row_q4_0_ref` and its neighbours); `None` for
/// the formats with scales of scales, which are read only, and where the values do not fill whole blocks.
pub fn quantise(kind: Block, values: &[f32]) -> Option<Vec<u8>> {
    let one: fn(&[f32; 32], &mut Vec<u8>) = match kind {
        Block::Q4_0 => |v, out| to_q4_0(v, out),
        Block::Q5_0 => |v, out| to_q5_0(v, out),
        Block::Q8_0 => |v, out| to_q8_0(v, out),
        _ => return None,
    };
    let (blocks, []) = values.as_chunks::<32>() else { return None };
    let mut out = Vec::with_capacity(blocks.len() * kind.size().1);
    blocks.iter().for_each(|block| one(block, &mut out));
    Some(out)
}

/// The value of largest size, with its sign; the first of equals.
fn extreme(values: &[f32; 32]) -> f32 {
    values.iter().fold(0f32, |most, v| if v.abs() > most.abs() { *v } else { most })
}

fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

/// Shifted so that the extreme value is exact; the halves of the block share bytes.
fn levels(values: &[f32; 32], inverse: f32, middle: f32, most: u8) -> [u8; 32] {
    // A product and a sum, as the reference: no fused step.
    values.map(|v| ((v * inverse + middle) as u8).min(most))
}

fn to_q4_0(values: &[f32; 32], out: &mut Vec<u8>) {
    let d = extreme(values) / -8.0;
    let q = levels(values, inverse(d), 8.5, 15);
    out.extend_from_slice(&f16::from_f32(d).to_le_bytes());
    out.extend((0..16).map(|i| q[i] | q[i + 16] << 4));
}

fn to_q5_0(values: &[f32; 32], out: &mut Vec<u8>) {
    let d = extreme(values) / -16.0;
    let q = levels(values, inverse(d), 16.5, 31);
    out.extend_from_slice(&f16::from_f32(d).to_le_bytes());
    out.extend((0..4).map(|i| (0..8).fold(0, |bits, j| bits | (q[i * 8 + j] >> 4) << j)));
    out.extend((0..16).map(|i| q[i] & 15 | q[i + 16] << 4));
}

fn to_q8_0(values: &[f32; 32], out: &mut Vec<u8>) {
    let d = extreme(values).abs() / 127.0;
    let inverse = inverse(d);
    out.extend_from_slice(&f16::from_f32(d).to_le_bytes());
    // C's `roundf`: halves away from zero, as Rust's.
    out.extend(values.iter().map(|v| (v * inverse).round() as i8 as u8));
}
