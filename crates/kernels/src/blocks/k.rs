//! Scales of scales: 256 values in 8 or 16 groups, each with a small integer scale of its own.

use super::half;

/// Six-bit scale and minimum of group `i` of `q4` and `q5` (`get_scale_min_k4`).
fn scale_min(scales: &[u8], i: usize) -> (f32, f32) {
    let (scale, min) = match i {
        0..4 => (scales[i] & 63, scales[i + 4] & 63),
        _ => (scales[i + 4] & 15 | scales[i - 4] >> 6 << 4, scales[i + 4] >> 4 | scales[i] >> 6 << 4),
    };
    (scale as f32, min as f32)
}

pub(super) fn q2(block: &[u8], out: &mut [f32]) {
    let (scales, qs) = (&block[..16], &block[16..80]);
    let (d, dmin) = (half(block, 80), half(block, 82));
    for (group, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let (scale, min) = (d * (scales[group] & 15) as f32, dmin * (scales[group] >> 4) as f32);
        // 128 values of four times 32, the two halves of each 32 in groups of their own.
        let (bytes, shift) = (&qs[group / 8 * 32 + group % 2 * 16..], group % 8 / 2 * 2);
        out.iter_mut().zip(bytes).for_each(|(o, q)| *o = scale * (q >> shift & 3) as f32 - min);
    }
}

pub(super) fn q3(block: &[u8], out: &mut [f32]) {
    let (mask, qs, packed, d) = (&block[..32], &block[32..96], &block[96..108], half(block, 108));
    for (group, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let low = packed[group % 8] >> (group / 8 * 4) & 15;
        let high = packed[8 + group % 4] >> (group / 4 * 2) & 3;
        let scale = d * ((low | high << 4) as i32 - 32) as f32;
        let at = group % 2 * 16;
        let (bytes, shift) = (&qs[group / 8 * 32 + at..], group % 8 / 2 * 2);
        for ((o, q), m) in out.iter_mut().zip(bytes).zip(&mask[at..]) {
            // A set bit means that nothing is taken away.
            let offset = if m >> (group / 2) & 1 == 0 { 4 } else { 0 };
            *o = scale * ((q >> shift & 3) as i32 - offset) as f32;
        }
    }
}

pub(super) fn q4(block: &[u8], out: &mut [f32]) {
    let (d, dmin, scales, qs) = (half(block, 0), half(block, 2), &block[4..16], &block[16..144]);
    for (group, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (scale, min) = scale_min(scales, group);
        let (scale, min, shift) = (d * scale, dmin * min, group % 2 * 4);
        out.iter_mut()
            .zip(&qs[group / 2 * 32..])
            .for_each(|(o, q)| *o = scale * (q >> shift & 15) as f32 - min);
    }
}

pub(super) fn q5(block: &[u8], out: &mut [f32]) {
    let (d, dmin, scales) = (half(block, 0), half(block, 2), &block[4..16]);
    let (high, qs) = (&block[16..48], &block[48..176]);
    for (group, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (scale, min) = scale_min(scales, group);
        let (scale, min, shift) = (d * scale, dmin * min, group % 2 * 4);
        for ((o, q), h) in out.iter_mut().zip(&qs[group / 2 * 32..]).zip(high) {
            *o = scale * (q >> shift & 15 | (h >> group & 1) << 4) as f32 - min;
        }
    }
}

pub(super) fn q6(block: &[u8], out: &mut [f32]) {
    let (low, high, scales, d) = (&block[..128], &block[128..192], &block[192..208], half(block, 208));
    for (group, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let scale = d * scales[group] as i8 as f32;
        // 128 values at a time: four times 32, from two rows of 32 bytes.
        let (half, row, at) = (group / 8, group % 8 / 2, group % 2 * 16);
        let (low, high) = (&low[half * 64 + row % 2 * 32 + at..], &high[half * 32 + at..]);
        for ((o, l), h) in out.iter_mut().zip(low).zip(high) {
            let q = (l >> (row / 2 * 4) & 15) | (h >> (row * 2) & 3) << 4;
            *o = scale * (q as i32 - 32) as f32;
        }
    }
}
