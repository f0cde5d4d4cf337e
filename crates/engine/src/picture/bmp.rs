//! Windows bitmaps: uncompressed, 1 to 32 bits a pixel.

use super::{Decoded, Limits};

pub(super) fn decode(bytes: &[u8], limits: &Limits) -> Result<Decoded, String> {
    const DAMAGED: &str = "the BMP is incomplete or damaged; get it again";
    let u16_at = |i: usize| {
        bytes.get(i..).and_then(|b| b.first_chunk()).map(|b| u16::from_le_bytes(*b)).ok_or(DAMAGED)
    };
    let u32_at = |i: usize| {
        bytes.get(i..).and_then(|b| b.first_chunk()).map(|b| u32::from_le_bytes(*b)).ok_or(DAMAGED)
    };
    let start = u32_at(10)? as usize;
    let head = u32_at(14)? as usize;
    if head < 40 {
        return Err("a BMP of OS/2; save it as PNG".into());
    }
    let (width, tall) = (u32_at(18)? as i32, u32_at(22)? as i32);
    let width = u64::try_from(width).map_err(|_| DAMAGED)?;
    let height = tall.unsigned_abs() as u64;
    limits.check(width, height)?;
    let (width, height) = (width as usize, height as usize);
    let depth = u16_at(28)? as usize;
    // 3: masks; only the usual order of bytes is understood.
    let masks = match u32_at(30)? {
        0 => false,
        3 => true,
        _ => return Err("a compressed BMP; save it as PNG".into()),
    };
    if masks && !(depth == 32 && [u32_at(54)?, u32_at(58)?, u32_at(62)?] == [0xff_0000, 0xff00, 0xff]) {
        return Err("a BMP with unusual colour masks; save it as PNG".into());
    }
    let stride = (width * depth).div_ceil(32) * 4;
    let data = bytes.get(start..).and_then(|b| b.get(..stride * height)).ok_or(DAMAGED)?;
    let colours = match u32_at(46)? as usize {
        0 if depth <= 8 => 1 << depth,
        n => n.min(256),
    };
    let palette = if depth <= 8 {
        bytes.get(14 + head..).and_then(|b| b.get(..colours * 4)).ok_or(DAMAGED)?
    } else {
        &[]
    };
    let palette = palette.as_chunks::<4>().0;
    let mut rgb = Vec::with_capacity(width * height * 3);
    for y in 0..height {
        // Rows go up, unless the height is negative.
        let row = if tall > 0 { height - 1 - y } else { y };
        let row = &data[row * stride..(row + 1) * stride];
        for x in 0..width {
            let pixel = match depth {
                1 | 4 | 8 => {
                    let bit = x * depth;
                    let value = row[bit / 8] >> (8 - depth - bit % 8) & (0xff >> (8 - depth)) as u8;
                    palette.get(value as usize).map(|&[b, g, r, _]| [r, g, b]).ok_or(DAMAGED)?
                }
                16 => {
                    let v = u16::from_le_bytes([row[x * 2], row[x * 2 + 1]]) as u32;
                    [10, 5, 0].map(|shift| ((v >> shift & 31) * 255 / 31) as u8)
                }
                24 | 32 => {
                    let at = x * depth / 8;
                    [row[at + 2], row[at + 1], row[at]]
                }
                _ => return Err(format!("a BMP of {depth} bits a pixel; save it as PNG")),
            };
            rgb.extend_from_slice(&pixel);
        }
    }
    Ok((width, height, rgb, 1))
}
