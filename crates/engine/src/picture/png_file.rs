//! PNG: pictures in, and pictures out with the request that made them.

use super::{
    Decoded, Limits, MOVES, Picture, PictureError, eight_bits, exif, flatten, over_white, write_atomic,
};
use std::io::{Cursor, Read};
use std::path::Path;

const SIGNATURE: &[u8] = b"\x89PNG\r\n\x1a\n";
/// Of one text in a PNG, unpacked; requests have a few kilobytes.
const MAX_TEXT_BYTES: u64 = 16 << 20;

pub(super) fn decode(bytes: &[u8], limits: &Limits) -> Result<Decoded, String> {
    let damaged = |e: png::DecodingError| format!("the PNG is incomplete or damaged ({e}); get it again");
    // The header by hand: the crate allocates before it can be asked.
    let side = |i: usize| bytes.get(i..).and_then(|b| b.first_chunk()).map(|b| u32::from_be_bytes(*b) as u64);
    let (Some(width), Some(height)) = (side(16), side(20)) else {
        return Err("the PNG is incomplete; get it again".into());
    };
    limits.check(width, height)?;
    // Deflate gives at most 1032 bytes for one.
    if width * height / 8 > bytes.len() as u64 * 1100 {
        return Err(format!("the PNG is incomplete: {} bytes for {width}×{height} pixels", bytes.len()));
    }
    let mut options = png::DecodeOptions::default();
    options.set_ignore_text_chunk(true);
    options.set_ignore_iccp_chunk(true);
    let mut decoder = png::Decoder::new_with_options(Cursor::new(bytes), options);
    decoder.set_limits(png::Limits {
        bytes: usize::try_from(limits.max_pixels.saturating_mul(9)).unwrap_or(usize::MAX),
    });
    // Palettes and 1, 2, 4 bits to 8, colour keys to alpha.
    decoder.set_transformations(png::Transformations::EXPAND);
    let mut reader = decoder.read_info().map_err(damaged)?;
    if reader.info().animation_control().is_some_and(|a| a.num_frames > 1) {
        return Err(MOVES.into());
    }
    let size = reader.output_buffer_size().ok_or("the PNG is too large")?;
    let mut data = vec![0; size];
    let info = reader.next_frame(&mut data).map_err(damaged)?;
    // What stands after the pixels may say which way is up; if it is damaged, the pixels are still whole.
    let _ = reader.finish();
    let orientation = reader.info().exif_metadata.as_deref().map_or(1, exif::orientation);
    data.truncate(info.buffer_size());
    if info.bit_depth == png::BitDepth::Sixteen {
        data = data.as_chunks::<2>().0.iter().map(|v| eight_bits(u16::from_be_bytes(*v))).collect();
    }
    let rgb = match info.color_type {
        png::ColorType::Rgb => data,
        png::ColorType::Rgba => flatten(&data),
        png::ColorType::Grayscale => data.iter().flat_map(|l| [*l; 3]).collect(),
        png::ColorType::GrayscaleAlpha => {
            data.as_chunks::<2>().0.iter().flat_map(|&[l, a]| [over_white(l, a); 3]).collect()
        }
        png::ColorType::Indexed => return Err("the PNG's palette is damaged; get it again".into()),
    };
    Ok((width as usize, height as usize, rgb, orientation))
}

/// A PNG file's bytes with texts (keyword, text); the same bytes for the same input. A text that is Latin-1 becomes a
/// `tEXt` chunk, any other an `iTXt` chunk, uncompressed.
///
/// # Panics
/// If a keyword is not 1 to 79 printable ASCII letters, or the number of pixels does not fit the size.
pub fn encode_png(picture: &Picture, text: &[(&str, &str)]) -> Vec<u8> {
    assert_eq!(picture.rgb.len(), picture.width * picture.height * 3, "pixels for the size");
    let side = |n: usize| i32::try_from(n).expect("a size that PNG can hold").to_be_bytes();
    let mut out = SIGNATURE.to_vec();
    let mut header = [side(picture.width), side(picture.height)].concat();
    // 8 bits, RGB, deflate, adaptive filters, not interlaced.
    header.extend([8, 2, 0, 0, 0]);
    chunk(&mut out, b"IHDR", &header);
    for (keyword, text) in text {
        let sound =
            (1..=79).contains(&keyword.len()) && keyword.bytes().all(|b| b.is_ascii_graphic() || b == b' ');
        assert!(sound, "PNG keyword {keyword:?}");
        let latin: Option<Vec<u8>> =
            text.chars().map(|c| u8::try_from(c as u32).ok().filter(|b| *b != 0)).collect();
        let mut body = [keyword.as_bytes(), b"\0"].concat();
        match latin {
            Some(latin) => {
                body.extend(latin);
                chunk(&mut out, b"tEXt", &body);
            }
            None => {
                // Not compressed; no language, no translated keyword.
                body.extend([0, 0, 0, 0]);
                body.extend(text.bytes());
                chunk(&mut out, b"iTXt", &body);
            }
        }
    }
    chunk(&mut out, b"IDAT", &compressed(picture));
    chunk(&mut out, b"IEND", &[]);
    out
}

/// Rows with the filter that leaves the smallest sum of differences (as libpng chooses), deflated.
fn compressed(picture: &Picture) -> Vec<u8> {
    use std::io::Write;
    let stride = picture.width * 3;
    let mut deflate = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
    let zeros = vec![0u8; stride];
    let mut best: Vec<u8> = Vec::new();
    let mut line: Vec<u8> = Vec::new();
    for y in 0..picture.height {
        let row = &picture.rgb[y * stride..][..stride];
        let above = if y == 0 { &zeros } else { &picture.rgb[(y - 1) * stride..][..stride] };
        let mut least = u64::MAX;
        for filter in 0..5u8 {
            line.clear();
            line.push(filter);
            for (i, &value) in row.iter().enumerate() {
                let (left, corner) = if i < 3 { (0, 0) } else { (row[i - 3], above[i - 3]) };
                let guess = match filter {
                    0 => 0,
                    1 => left,
                    2 => above[i],
                    3 => ((left as u16 + above[i] as u16) / 2) as u8,
                    _ => paeth(left, above[i], corner),
                };
                line.push(value.wrapping_sub(guess));
            }
            let sum = line[1..].iter().map(|v| (*v as i8).unsigned_abs() as u64).sum();
            if sum < least {
                least = sum;
                std::mem::swap(&mut best, &mut line);
            }
        }
        deflate.write_all(&best).expect("memory takes every write");
    }
    deflate.finish().expect("memory takes every write")
}

fn paeth(left: u8, above: u8, corner: u8) -> u8 {
    let (a, b, c) = (left as i32, above as i32, corner as i32);
    let p = a + b - c;
    let (da, db, dc) = ((p - a).abs(), (p - b).abs(), (p - c).abs());
    if da <= db && da <= dc {
        left
    } else if db <= dc {
        above
    } else {
        corner
    }
}

fn chunk(out: &mut Vec<u8>, kind: &[u8; 4], body: &[u8]) {
    out.extend((body.len() as u32).to_be_bytes());
    let start = out.len();
    out.extend(kind);
    out.extend(body);
    let mut crc = flate2::Crc::new();
    crc.update(&out[start..]);
    out.extend(crc.sum().to_be_bytes());
}

/// Writes [`encode_png`] with [`write_atomic`].
///
/// # Errors
/// If the system refuses; nothing is left behind.
pub fn write_png(
    path: impl AsRef<Path>,
    picture: &Picture,
    text: &[(&str, &str)],
) -> Result<(), PictureError> {
    write_atomic(path, &encode_png(picture, text))
}

/// The first text under `keyword` in a PNG file (`tEXt`, `zTXt` or `iTXt`); `None` if it has none.
///
/// # Errors
/// If the file cannot be read or is not a PNG.
pub fn read_png_text(path: impl AsRef<Path>, keyword: &str) -> Result<Option<String>, PictureError> {
    let path = path.as_ref();
    let bytes = super::read_file(path, Limits::default().max_file_bytes)?;
    png_text(&bytes, keyword).map_err(|message| PictureError::content(path, message))
}

/// The same from a file's bytes.
///
/// # Errors
/// With a sentence that says what is wrong.
pub fn png_text(bytes: &[u8], keyword: &str) -> Result<Option<String>, String> {
    let Some(mut rest) = bytes.strip_prefix(SIGNATURE) else {
        return Err("not a PNG; expected a picture that this program has written".into());
    };
    while let Some((head, after)) = rest.split_first_chunk::<8>() {
        let length = u32::from_be_bytes([head[0], head[1], head[2], head[3]]) as usize;
        let Some(body) = after.get(..length) else { break };
        rest = after.get(length + 4..).unwrap_or(&[]);
        let kind = &head[4..];
        if ![&b"tEXt"[..], b"zTXt", b"iTXt"].contains(&kind) {
            continue;
        }
        let Some(text) = body.strip_prefix(keyword.as_bytes()).and_then(|b| b.strip_prefix(b"\0")) else {
            continue;
        };
        let bad = || format!("the text \"{keyword}\" in the PNG is damaged");
        return match kind {
            b"tEXt" => Ok(Some(latin(text))),
            b"zTXt" => Ok(Some(latin(&inflate(text.get(1..).ok_or_else(bad)?).ok_or_else(bad)?))),
            _ => {
                let (flags, text) = text.split_first_chunk::<2>().ok_or_else(bad)?;
                // Language and translated keyword come first.
                let text = text.splitn(3, |b| *b == 0).nth(2).ok_or_else(bad)?;
                let text = if flags[0] == 1 { inflate(text).ok_or_else(bad)? } else { text.to_vec() };
                String::from_utf8(text).map(Some).map_err(|_| bad())
            }
        };
    }
    Ok(None)
}

fn latin(text: &[u8]) -> String {
    text.iter().map(|b| *b as char).collect()
}

fn inflate(packed: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    flate2::read::ZlibDecoder::new(packed).take(MAX_TEXT_BYTES + 1).read_to_end(&mut out).ok()?;
    (out.len() as u64 <= MAX_TEXT_BYTES).then_some(out)
}
