//! Upsampling and colour as in libjpeg-turbo (`jdsample.c`, `jdcolor.c`) with Pillow's rules for CMYK.

use super::{Component, Frame};

enum Space {
    Grey,
    YCbCr,
    Rgb,
    Cmyk,
    Ycck,
}

fn space(frame: &Frame, jfif: bool, adobe: Option<u8>) -> Space {
    let ids: Vec<u8> = frame.components.iter().map(|c| c.id).collect();
    match (ids.as_slice(), adobe) {
        ([_], _) => Space::Grey,
        ([_, _, _, _], Some(2)) => Space::Ycck,
        ([_, _, _, _], _) => Space::Cmyk,
        _ if jfif => Space::YCbCr,
        (_, Some(0)) => Space::Rgb,
        (_, Some(_)) => Space::YCbCr,
        (b"RGB", None) => Space::Rgb,
        _ => Space::YCbCr,
    }
}

pub(super) fn to_rgb(frame: &Frame, jfif: bool, adobe: Option<u8>) -> Result<Vec<u8>, String> {
    let space = space(frame, jfif, adobe);
    let (width, height) = (frame.width, frame.height);
    let mut out = vec![0; width * height * 3];
    // Rows may be wider than the picture.
    let wide = frame.units_x * frame.max_h * 8 + 8;
    let mut rows = vec![vec![0u8; wide]; frame.components.len()];
    for y in 0..height {
        for (component, row) in frame.components.iter().zip(&mut rows) {
            upsample(component, frame.max_h / component.h, frame.max_v / component.v, y, row);
        }
        let line = &mut out[y * width * 3..(y + 1) * width * 3];
        for (x, pixel) in line.as_chunks_mut::<3>().0.iter_mut().enumerate() {
            *pixel = match (&space, rows.as_slice()) {
                (Space::Grey, [l, ..]) => [l[x]; 3],
                (Space::Rgb, [r, g, b, ..]) => [r[x], g[x], b[x]],
                (Space::YCbCr, [l, b, r, ..]) => ycc(l[x], b[x], r[x]),
                // Stored inverted, as Pillow assumes of every such file.
                (Space::Cmyk, [c, m, y, k]) => cmyk([255 - c[x], 255 - m[x], 255 - y[x]], 255 - k[x]),
                // This gives 255 − C, M, Y, and the file is inverted: C, M, Y come out.
                (Space::Ycck, [l, b, r, k]) => cmyk(ycc(l[x], b[x], r[x]), 255 - k[x]),
                _ => return Err("the JPEG's colours are not understood".into()),
            };
        }
    }
    Ok(out)
}

fn clip(v: i32) -> u8 {
    v.clamp(0, 255) as u8
}

fn ycc(y: u8, cb: u8, cr: u8) -> [u8; 3] {
    let (y, cb, cr) = (y as i32, cb as i32 - 128, cr as i32 - 128);
    const HALF: i32 = 1 << 15;
    [
        clip(y + ((91881 * cr + HALF) >> 16)),
        clip(y + ((-22554 * cb - 46802 * cr + HALF) >> 16)),
        clip(y + ((116130 * cb + HALF) >> 16)),
    ]
}

fn cmyk(inks: [u8; 3], k: u8) -> [u8; 3] {
    let white = 255 - k as i32;
    inks.map(|ink| {
        let t = ink as i32 * white + 128;
        clip(white - (((t >> 8) + t) >> 8))
    })
}

/// Row `y` of the picture from a component that is `h` times narrower and `v` times lower.
fn upsample(component: &Component, h: usize, v: usize, y: usize, out: &mut [u8]) {
    let stride = component.blocks_x * 8;
    let width = component.width;
    let row = |r: usize| &component.samples[r * stride..][..width];
    let (here, last) = (y / v, component.height - 1);
    let near = row(here);
    let first = y.is_multiple_of(2);
    // The other row that a doubled one is mixed with: above for the first of two, below for the second.
    let far = row(if first { here.saturating_sub(1) } else { (here + 1).min(last) });
    match (h, v) {
        (1, 1) => out[..width].copy_from_slice(near),
        (2, 1) if width > 2 => {
            let at = |i: usize| near[i] as u32;
            for i in 0..width {
                out[2 * i] = if i == 0 { near[0] } else { ((3 * at(i) + at(i - 1) + 1) >> 2) as u8 };
                out[2 * i + 1] =
                    if i + 1 == width { near[i] } else { ((3 * at(i) + at(i + 1) + 2) >> 2) as u8 };
            }
        }
        (1, 2) => {
            let bias = if first { 1 } else { 2 };
            for i in 0..width {
                out[i] = ((3 * near[i] as u32 + far[i] as u32 + bias) >> 2) as u8;
            }
        }
        (2, 2) if width > 2 => {
            let at = |i: usize| 3 * near[i] as u32 + far[i] as u32;
            for i in 0..width {
                let left = if i == 0 { at(0) } else { at(i - 1) };
                let right = if i + 1 == width { at(i) } else { at(i + 1) };
                out[2 * i] = ((3 * at(i) + left + 8) >> 4) as u8;
                out[2 * i + 1] = ((3 * at(i) + right + 7) >> 4) as u8;
            }
        }
        _ => {
            for (cell, value) in out.chunks_mut(h).zip(near) {
                cell.fill(*value);
            }
        }
    }
}
