//! WebP, GIF and TIFF, through their crates.

use super::{Decoded, Limits, MOVES, eight_bits, exif, flatten};
use std::io::Cursor;

pub(super) fn webp(bytes: &[u8], limits: &Limits) -> Result<Decoded, String> {
    let damaged =
        |e: image_webp::DecodingError| format!("the WebP is incomplete or damaged ({e}); get it again");
    let mut decoder = image_webp::WebPDecoder::new(Cursor::new(bytes)).map_err(damaged)?;
    let (width, height) = decoder.dimensions();
    limits.check(width as u64, height as u64)?;
    if decoder.is_animated() && decoder.num_frames() > 1 {
        return Err(MOVES.into());
    }
    let exif = decoder.exif_metadata().ok().flatten().unwrap_or_default();
    let alpha = decoder.has_alpha();
    let (width, height) = (width as usize, height as usize);
    let mut data = vec![0; width * height * if alpha { 4 } else { 3 }];
    decoder.read_image(&mut data).map_err(damaged)?;
    let rgb = if alpha { flatten(&data) } else { data };
    Ok((width, height, rgb, exif::orientation(&exif)))
}

pub(super) fn gif(bytes: &[u8], limits: &Limits) -> Result<Decoded, String> {
    let damaged = |e: gif::DecodingError| format!("the GIF is incomplete or damaged ({e}); get it again");
    let mut options = gif::DecodeOptions::new();
    options.set_color_output(gif::ColorOutput::RGBA);
    // The frame's own size is checked before its pixels are asked for.
    options.set_memory_limit(gif::MemoryLimit::Unlimited);
    let mut decoder = options.read_info(Cursor::new(bytes)).map_err(damaged)?;
    let (width, height) = (decoder.width() as usize, decoder.height() as usize);
    limits.check(width as u64, height as u64)?;
    let Some(frame) = decoder.next_frame_info().map_err(damaged)? else {
        return Err("the GIF has no picture; get it again".into());
    };
    let (fw, fh) = (frame.width as usize, frame.height as usize);
    let (left, top) = (frame.left as usize, frame.top as usize);
    limits.check(fw as u64, fh as u64)?;
    // A code of at most 12 bits stands for at most 4096 pixels.
    if fw * fh > bytes.len().saturating_mul(4096) {
        return Err(format!("the GIF is incomplete: {} bytes for {fw}×{fh} pixels", bytes.len()));
    }
    let mut data = vec![0; decoder.buffer_size()];
    decoder.read_into_buffer(&mut data).map_err(damaged)?;
    if matches!(decoder.next_frame_info(), Ok(Some(_))) {
        return Err(MOVES.into());
    }
    let frame = flatten(&data);
    // What the frame does not cover is transparent: white.
    let mut rgb = vec![255; width * height * 3];
    let columns = fw.min(width.saturating_sub(left));
    for y in 0..fh.min(height.saturating_sub(top)) {
        let from = y * fw * 3;
        let to = ((top + y) * width + left) * 3;
        rgb[to..to + columns * 3].copy_from_slice(&frame[from..from + columns * 3]);
    }
    Ok((width, height, rgb, 1))
}

pub(super) fn tiff(bytes: &[u8], limits: &Limits) -> Result<Decoded, String> {
    use tiff::ColorType::{CMYK, Gray, GrayA, Palette, RGB, RGBA};
    use tiff::decoder::{Decoder, DecodingResult, Limits as TiffLimits};
    let damaged = |e: tiff::TiffError| {
        format!("the TIFF is incomplete, damaged or of an unusual kind ({e}); save it as PNG")
    };
    let mut memory = TiffLimits::default();
    // Eight bytes a pixel: RGBA of 16 bits.
    let bytes_max = usize::try_from(limits.max_pixels.saturating_mul(8)).unwrap_or(usize::MAX);
    memory.decoding_buffer_size = bytes_max;
    memory.intermediate_buffer_size = bytes_max;
    let mut decoder = Decoder::new(Cursor::new(bytes)).map_err(damaged)?.with_limits(memory);
    let (width, height) = decoder.dimensions().map_err(damaged)?;
    limits.check(width as u64, height as u64)?;
    let colour = decoder.colortype().map_err(damaged)?;
    let orientation = decoder.get_tag_u32(tiff::tags::Tag::Orientation).unwrap_or(1).min(8) as u8;
    let pixels = width as usize * height as usize;
    // Deflate gives at most 1032 bytes for one, the other packings far less.
    if pixels / 8 > bytes.len().saturating_mul(1100) {
        return Err(format!("the TIFF is incomplete: {} bytes for {width}×{height} pixels", bytes.len()));
    }
    let wide = match decoder.read_image().map_err(damaged)? {
        DecodingResult::U8(v) => v,
        DecodingResult::U16(v) => v.into_iter().map(eight_bits).collect(),
        _ => return Err("a TIFF with numbers other than 8 or 16 bits; save it as PNG".into()),
    };
    if decoder.more_images() {
        return Err("the TIFF has several pages; save one as PNG and use that".into());
    }
    let rgb: Vec<u8> = match colour {
        Gray(8 | 16) if wide.len() == pixels => wide.iter().flat_map(|l| [*l; 3]).collect(),
        GrayA(8 | 16) if wide.len() == pixels * 2 => {
            let rgba: Vec<u8> = wide.as_chunks::<2>().0.iter().flat_map(|&[l, a]| [l, l, l, a]).collect();
            flatten(&rgba)
        }
        RGB(8 | 16) if wide.len() == pixels * 3 => wide,
        RGBA(8 | 16) if wide.len() == pixels * 4 => flatten(&wide),
        Gray(1) | Palette(_) | CMYK(_) => return Err(format!("a TIFF in {colour:?}; save it as RGB or PNG")),
        _ => return Err(format!("a TIFF in {colour:?} is not supported; save it as PNG")),
    };
    Ok((width as usize, height as usize, rgb, orientation))
}
