//! The one field of EXIF data that matters: which way is up.

/// The orientation (1–8) in a TIFF structure; 1 if there is none or it is damaged.
pub(super) fn orientation(tiff: &[u8]) -> u8 {
    find(tiff).filter(|o| (1..=8).contains(o)).unwrap_or(1)
}

fn find(tiff: &[u8]) -> Option<u8> {
    // Some writers repeat the name of the block.
    let tiff = tiff.strip_prefix(b"Exif\0\0").unwrap_or(tiff);
    let little = match tiff.get(..4)? {
        b"II*\0" => true,
        b"MM\0*" => false,
        _ => return None,
    };
    let u16_at = |i: usize| {
        let b = *tiff.get(i..)?.first_chunk::<2>()?;
        Some(if little { u16::from_le_bytes(b) } else { u16::from_be_bytes(b) })
    };
    let start = *tiff.get(4..)?.first_chunk::<4>()?;
    let start = if little { u32::from_le_bytes(start) } else { u32::from_be_bytes(start) } as usize;
    for entry in 0..u16_at(start)? as usize {
        let at = start + 2 + entry * 12;
        if u16_at(at)? == 0x0112 {
            // A short (3); its value stands at the beginning of the field.
            return (u16_at(at + 2)? == 3).then(|| u16_at(at + 8).map(|v| v.min(255) as u8))?;
        }
    }
    None
}

/// Turns and mirrors RGB pixels as the orientation says: width, height, pixels.
pub(super) fn apply(orientation: u8, width: usize, height: usize, rgb: Vec<u8>) -> (usize, usize, Vec<u8>) {
    if orientation <= 1 {
        return (width, height, rgb);
    }
    let turned = orientation >= 5;
    let (w, h) = if turned { (height, width) } else { (width, height) };
    let mut out = Vec::with_capacity(rgb.len());
    for y in 0..h {
        for x in 0..w {
            let (sx, sy) = match orientation {
                2 => (width - 1 - x, y),
                3 => (width - 1 - x, height - 1 - y),
                4 => (x, height - 1 - y),
                5 => (y, x),
                6 => (y, height - 1 - x),
                7 => (width - 1 - y, height - 1 - x),
                _ => (width - 1 - y, x),
            };
            let at = (sy * width + sx) * 3;
            out.extend_from_slice(&rgb[at..at + 3]);
        }
    }
    (w, h, out)
}
