//! Pictures in and out: reading as Pillow reads, resizing as Pillow resizes, and PNG files that carry their request.
//!
//! What a file is, is decided by its content. Sizes are checked on the header, before anything is allocated. The
//! orientation that a camera noted is applied, alpha is flattened on white, and 16 bits become 8, rounded.
//! Pictures that move are refused: which frame was meant?

mod bmp;
mod clip;
mod error;
mod exif;
mod formats;
mod jpeg;
mod png_file;
mod resize;
mod write;

pub use clip::{ClipPreprocess, clip_preprocess};
pub use error::PictureError;
pub use png_file::{encode_png, png_text, read_png_text, write_png};
pub use resize::{Filter, resize, resize_grey};
pub use write::{write_atomic, write_tensor};

use std::io::Read;
use std::path::Path;

/// 8-bit RGB, row-major.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    /// In pixels.
    pub width: usize,
    /// In pixels.
    pub height: usize,
    /// `height · width · 3` bytes.
    pub rgb: Vec<u8>,
}

/// 8-bit grey, row-major: a mask or a control map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grey {
    /// In pixels.
    pub width: usize,
    /// In pixels.
    pub height: usize,
    /// `height · width` bytes.
    pub l: Vec<u8>,
}

/// What is accepted.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Width times height.
    pub max_pixels: u64,
    /// Size of the file.
    pub max_file_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { max_pixels: 100_000_000, max_file_bytes: 512 << 20 }
    }
}

impl Limits {
    /// Refuses a header's size, if need be.
    fn check(&self, width: u64, height: u64) -> Result<(), String> {
        if width == 0 || height == 0 {
            return Err(format!("a picture of {width}×{height} pixels has nothing to show"));
        }
        match width.checked_mul(height) {
            Some(pixels) if pixels <= self.max_pixels => Ok(()),
            _ => Err(format!(
                "{width}×{height} pixels, expected at most {} megapixels; scale it down",
                self.max_pixels / 1_000_000
            )),
        }
    }
}

impl Picture {
    /// A picture of given pixels; `None` if their number does not fit or is 0.
    pub fn new(width: usize, height: usize, rgb: Vec<u8>) -> Option<Self> {
        let bytes = width.checked_mul(height)?.checked_mul(3)?;
        (bytes > 0 && bytes == rgb.len()).then_some(Picture { width, height, rgb })
    }

    /// Reads a file: PNG, JPEG, WebP, GIF, BMP or TIFF.
    ///
    /// # Errors
    /// If it cannot be read, is damaged, too large, or moves.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, PictureError> {
        let path = path.as_ref();
        let bytes = read_file(path, Limits::default().max_file_bytes)?;
        Picture::decode(&bytes, path)
    }

    /// Reads the content of a file; `label` stands for the path in messages.
    ///
    /// # Errors
    /// As [`Picture::open`].
    pub fn decode(bytes: &[u8], label: impl AsRef<Path>) -> Result<Self, PictureError> {
        Picture::decode_within(bytes, label, &Limits::default())
    }

    /// The same within other limits.
    ///
    /// # Errors
    /// As [`Picture::open`].
    pub fn decode_within(
        bytes: &[u8],
        label: impl AsRef<Path>,
        limits: &Limits,
    ) -> Result<Self, PictureError> {
        decode(bytes, limits).map_err(|message| PictureError::content(label.as_ref(), message))
    }

    /// Grey as Pillow's `convert("L")` (ITU-R 601 weights); grey pixels keep their value.
    pub fn to_grey(&self) -> Grey {
        let weigh = |p: &[u8; 3]| {
            let [r, g, b] = p.map(u32::from);
            ((r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16) as u8
        };
        let l = self.rgb.as_chunks::<3>().0.iter().map(weigh).collect();
        Grey { width: self.width, height: self.height, l }
    }
}

impl Grey {
    /// Reads a file as [`Picture::open`] and takes its grey.
    ///
    /// # Errors
    /// As [`Picture::open`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, PictureError> {
        Picture::open(path).map(|p| p.to_grey())
    }
}

fn read_file(path: &Path, limit: u64) -> Result<Vec<u8>, PictureError> {
    let io = |source| PictureError::reading(path, source);
    let content = |message: String| PictureError::content(path, message);
    let file = std::fs::File::open(path).map_err(io)?;
    let found = file.metadata().map_err(io)?;
    if !found.is_file() {
        return Err(content("not a file; name a picture".into()));
    }
    if found.len() > limit {
        return Err(content(format!("{} bytes, expected at most {limit}; is this a picture?", found.len())));
    }
    let mut bytes = Vec::with_capacity(found.len() as usize);
    file.take(limit).read_to_end(&mut bytes).map_err(io)?;
    Ok(bytes)
}

/// Width, height, RGB and EXIF orientation, as each format's reader gives them.
type Decoded = (usize, usize, Vec<u8>, u8);

fn decode(bytes: &[u8], limits: &Limits) -> Result<Picture, String> {
    if bytes.len() as u64 > limits.max_file_bytes {
        return Err(format!("{} bytes, expected at most {}", bytes.len(), limits.max_file_bytes));
    }
    let read: fn(&[u8], &Limits) -> Result<Decoded, String> = match bytes {
        [] => return Err("the file is empty; get it again".into()),
        [0x89, b'P', b'N', b'G', ..] => png_file::decode,
        [0xff, 0xd8, ..] => jpeg::decode,
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => formats::webp,
        [b'G', b'I', b'F', b'8', ..] => formats::gif,
        [b'B', b'M', ..] => bmp::decode,
        [b'I', b'I', b'*', 0, ..] | [b'M', b'M', 0, b'*', ..] => formats::tiff,
        _ => return Err(stranger(bytes)),
    };
    let (width, height, rgb, orientation) = read(bytes, limits)?;
    let (width, height, rgb) = exif::apply(orientation, width, height, rgb);
    Picture::new(width, height, rgb).ok_or_else(|| "the picture is damaged".into())
}

/// What a file that is no picture is.
fn stranger(bytes: &[u8]) -> String {
    let text = bytes.trim_ascii_start();
    let starts = |word: &[u8]| text.len() >= word.len() && text[..word.len()].eq_ignore_ascii_case(word);
    let brand = bytes.get(4..12).and_then(|b| b.strip_prefix(b"ftyp"));
    let what = match brand {
        Some(b"avif" | b"avis") => "an AVIF picture, which is not supported; save it as PNG",
        Some(b"heic" | b"heix" | b"mif1" | b"msf1") => {
            "a HEIC picture, which is not supported; save it as PNG"
        }
        Some(_) => "a video, not a picture; save a frame as PNG",
        None if starts(b"<svg") || starts(b"<?xml") => "a drawing in text form (SVG); save it as PNG",
        None if starts(b"<") => "an HTML page, not a picture; download the picture itself",
        None if starts(b"{") => "a JSON text, not a picture; download the picture itself",
        None if starts(b"version https://git-lfs") => "a git-LFS pointer, not a picture; run `git lfs pull`",
        None if starts(b"%PDF") => "a PDF, not a picture; save its page as PNG",
        None => "not a picture that can be read here; expected PNG, JPEG, WebP, GIF, BMP or TIFF",
    };
    what.into()
}

/// 16 bits to 8, to the nearest: 65535 is 255 × 257.
fn eight_bits(value: u16) -> u8 {
    ((u32::from(value) + 128) / 257) as u8
}

/// One sample over white, rounded as Pillow's `alpha_composite` does.
fn over_white(value: u8, alpha: u8) -> u8 {
    let (value, alpha) = (value as u32, alpha as u32);
    let t = value * alpha + 255 * (255 - alpha) + 128;
    (((t >> 8) + t) >> 8) as u8
}

/// RGBA over white.
fn flatten(rgba: &[u8]) -> Vec<u8> {
    rgba.as_chunks::<4>().0.iter().flat_map(|&[r, g, b, a]| [r, g, b].map(|v| over_white(v, a))).collect()
}

const MOVES: &str = "the picture moves; save one frame as PNG and use that";
