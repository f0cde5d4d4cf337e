//! JPEG, baseline and progressive, to the bit as libjpeg-turbo (and so Pillow) decodes it: the same integer inverse
//! transform, the same "fancy" upsampling, the same colour tables. The crates at hand differ from it by up to four
//! levels, which a style reference would carry into every picture.
//!
//! Format: ITU-T T.81; colour and markers: JFIF 1.02 and Adobe's APP14.

mod colour;
mod entropy;
mod idct;

use super::{Limits, exif};
use entropy::{Bits, Table};

/// Scans of one picture; encoders write about ten.
const MAX_SCANS: usize = 200;

/// Row-major position of the coefficients in the order of the stream.
const ZIGZAG: [u8; 64] = [
    0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6, 7,
    14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39,
    46, 53, 60, 61, 54, 47, 55, 62, 63,
];

/// One colour component of the frame.
struct Component {
    id: u8,
    h: usize,
    v: usize,
    quant: usize,
    /// Size in samples without padding.
    width: usize,
    height: usize,
    /// Size in blocks with padding to whole units of all components.
    blocks_x: usize,
    blocks_y: usize,
    /// Samples, `blocks_x · 8` wide.
    samples: Vec<u8>,
    /// Coefficients of progressive pictures, 64 a block, row-major.
    coefficients: Vec<i16>,
    /// The quantisation table as it was at the component's first scan.
    table: Option<[u16; 64]>,
}

struct Frame {
    progressive: bool,
    width: usize,
    height: usize,
    max_h: usize,
    max_v: usize,
    units_x: usize,
    units_y: usize,
    components: Vec<Component>,
}

#[derive(Default)]
struct Decoder<'a> {
    bytes: &'a [u8],
    at: usize,
    quant: [Option<[u16; 64]>; 4],
    dc: [Option<Table>; 4],
    ac: [Option<Table>; 4],
    restart: usize,
    frame: Option<Frame>,
    jfif: bool,
    adobe: Option<u8>,
    orientation: u8,
    scans: usize,
}

/// Width, height, RGB, EXIF orientation.
pub(super) fn decode(bytes: &[u8], limits: &Limits) -> Result<(usize, usize, Vec<u8>, u8), String> {
    let mut decoder = Decoder { bytes, at: 2, orientation: 1, ..Default::default() };
    decoder.run(limits)?;
    let Some(mut frame) = decoder.frame.take() else { return Err("the JPEG has no picture".into()) };
    if decoder.scans == 0 || frame.components.iter().any(|c| c.table.is_none()) {
        return Err("the JPEG ends before its picture is complete".into());
    }
    if frame.progressive {
        for component in &mut frame.components {
            component.transform();
        }
    }
    let rgb = colour::to_rgb(&frame, decoder.jfif, decoder.adobe)?;
    Ok((frame.width, frame.height, rgb, decoder.orientation))
}

impl<'a> Decoder<'a> {
    fn run(&mut self, limits: &Limits) -> Result<(), String> {
        loop {
            let Some(marker) = self.marker() else {
                // Some writers leave out the end marker.
                return if self.scans > 0 { Ok(()) } else { Err("the JPEG is incomplete".into()) };
            };
            match marker {
                0xd9 => return Ok(()),
                0x01 | 0xd0..=0xd8 => continue,
                _ => {}
            }
            let body = self.segment()?;
            match marker {
                0xc0..=0xc2 => self.frame(body, marker == 0xc2, limits)?,
                0xc4 => self.huffman(body)?,
                0xda => self.scan(body)?,
                0xdb => self.quantisation(body)?,
                0xdd => match body {
                    &[a, b] => self.restart = u16::from_be_bytes([a, b]) as usize,
                    _ => return Err("the JPEG's restart interval is damaged".into()),
                },
                0xe0 if body.starts_with(b"JFIF\0") => self.jfif = true,
                0xe1 if body.starts_with(b"Exif\0\0") => self.orientation = exif::orientation(&body[6..]),
                0xee if body.starts_with(b"Adobe") => self.adobe = body.get(11).copied(),
                0xc3 | 0xc5..=0xc7 | 0xc9..=0xcb | 0xcd..=0xcf => {
                    return Err("a lossless, hierarchical or arithmetic-coded JPEG; save it as an ordinary JPEG or PNG".into());
                }
                0xdc => return Err("a JPEG whose height comes late; save it again".into()),
                _ => {}
            }
        }
    }

    /// The next marker; whatever stands before it is skipped.
    fn marker(&mut self) -> Option<u8> {
        loop {
            let found = self.bytes.get(self.at..)?.iter().position(|b| *b == 0xff)?;
            self.at += found + 1;
            while self.bytes.get(self.at) == Some(&0xff) {
                self.at += 1;
            }
            let marker = *self.bytes.get(self.at)?;
            self.at += 1;
            if marker != 0 {
                return Some(marker);
            }
        }
    }

    fn segment(&mut self) -> Result<&'a [u8], String> {
        let rest = self.bytes.get(self.at..).unwrap_or(&[]);
        let &[a, b, ..] = rest else { return Err("the JPEG is incomplete".into()) };
        let length = u16::from_be_bytes([a, b]) as usize;
        let body = rest.get(2..length).ok_or("the JPEG is incomplete or damaged")?;
        self.at += length;
        Ok(body)
    }

    fn quantisation(&mut self, mut body: &[u8]) -> Result<(), String> {
        while let Some((&head, rest)) = body.split_first() {
            let wide = head >> 4 != 0;
            let n = if wide { 128 } else { 64 };
            let values = rest.get(..n).ok_or("the JPEG's quantisation table is damaged")?;
            body = &rest[n..];
            let mut table = [0u16; 64];
            for (i, place) in ZIGZAG.iter().enumerate() {
                table[*place as usize] = if wide {
                    u16::from_be_bytes([values[2 * i], values[2 * i + 1]])
                } else {
                    values[i] as u16
                };
            }
            *self.quant.get_mut((head & 15) as usize).ok_or("the JPEG's quantisation table is damaged")? =
                Some(table);
        }
        Ok(())
    }

    fn huffman(&mut self, mut body: &[u8]) -> Result<(), String> {
        const DAMAGED: &str = "the JPEG's code table is damaged";
        while let Some((&head, rest)) = body.split_first() {
            let counts = rest.first_chunk::<16>().ok_or(DAMAGED)?;
            let n: usize = counts.iter().map(|c| *c as usize).sum();
            let symbols = rest.get(16..16 + n).ok_or(DAMAGED)?;
            body = &rest[16 + n..];
            let tables = if head >> 4 == 0 { &mut self.dc } else { &mut self.ac };
            *tables.get_mut((head & 15) as usize).ok_or(DAMAGED)? =
                Some(Table::new(counts, symbols).ok_or(DAMAGED)?);
        }
        Ok(())
    }

    fn frame(&mut self, body: &[u8], progressive: bool, limits: &Limits) -> Result<(), String> {
        const DAMAGED: &str = "the JPEG's frame header is damaged";
        if self.frame.is_some() {
            return Err("the JPEG has two frames".into());
        }
        let &[precision, h1, h0, w1, w0, count, ref rest @ ..] = body else { return Err(DAMAGED.into()) };
        if precision != 8 {
            return Err(format!("a JPEG of {precision} bits; save it with 8"));
        }
        let (width, height) = (u16::from_be_bytes([w1, w0]) as usize, u16::from_be_bytes([h1, h0]) as usize);
        limits.check(width as u64, height as u64)?;
        // Every block of 8 × 8 takes at least a bit.
        if (width / 8) as u64 * (height / 8) as u64 > self.bytes.len() as u64 * 8 * 16 {
            return Err(format!(
                "the JPEG is incomplete: {} bytes for {width}×{height} pixels",
                self.bytes.len()
            ));
        }
        if ![1, 3, 4].contains(&count) || rest.len() != count as usize * 3 {
            return Err(format!("a JPEG of {count} colour components; save it as RGB or greyscale"));
        }
        let mut components = Vec::new();
        for c in rest.as_chunks::<3>().0 {
            let (h, v) = ((c[1] >> 4) as usize, (c[1] & 15) as usize);
            if !(1..=4).contains(&h) || !(1..=4).contains(&v) || c[2] > 3 {
                return Err(DAMAGED.into());
            }
            components.push((c[0], h, v, c[2] as usize));
        }
        let max_h = components.iter().map(|c| c.1).max().unwrap_or(1);
        let max_v = components.iter().map(|c| c.2).max().unwrap_or(1);
        if components.iter().any(|c| max_h % c.1 != 0 || max_v % c.2 != 0) {
            return Err("a JPEG with fractional sampling; save it again".into());
        }
        let (units_x, units_y) = (width.div_ceil(8 * max_h), height.div_ceil(8 * max_v));
        let components = components
            .into_iter()
            .map(|(id, h, v, quant)| {
                let (blocks_x, blocks_y) = (units_x * h, units_y * v);
                let blocks = blocks_x * blocks_y;
                Component {
                    id,
                    h,
                    v,
                    quant,
                    width: (width * h).div_ceil(max_h),
                    height: (height * v).div_ceil(max_v),
                    blocks_x,
                    blocks_y,
                    samples: vec![0; blocks * 64],
                    coefficients: if progressive { vec![0; blocks * 64] } else { Vec::new() },
                    table: None,
                }
            })
            .collect();
        self.frame = Some(Frame { progressive, width, height, max_h, max_v, units_x, units_y, components });
        Ok(())
    }

    fn scan(&mut self, body: &[u8]) -> Result<(), String> {
        const DAMAGED: &str = "the JPEG's scan header is damaged";
        self.scans += 1;
        if self.scans > MAX_SCANS {
            return Err("the JPEG has too many scans".into());
        }
        let Some(frame) = &mut self.frame else { return Err("the JPEG has a scan before its frame".into()) };
        let (&count, rest) = body.split_first().ok_or(DAMAGED)?;
        let count = count as usize;
        if count == 0 || count > frame.components.len() || rest.len() != count * 2 + 3 {
            return Err(DAMAGED.into());
        }
        let mut parts = Vec::new();
        for c in rest[..count * 2].as_chunks::<2>().0 {
            let index = frame.components.iter().position(|k| k.id == c[0]).ok_or(DAMAGED)?;
            if parts.iter().any(|p: &Part| p.index == index) {
                return Err(DAMAGED.into());
            }
            parts.push(Part { index, dc: (c[1] >> 4) as usize, ac: (c[1] & 15) as usize });
            let component = &mut frame.components[index];
            if component.table.is_none() {
                component.table =
                    Some(self.quant[component.quant].ok_or("the JPEG lacks a quantisation table")?);
            }
        }
        let &[first, last, bits] = &rest[count * 2..] else { return Err(DAMAGED.into()) };
        let (first, last) = (first as usize, last as usize);
        let (high, low) = (bits >> 4, bits & 15);
        if frame.progressive {
            let dc_only = first == 0 && last == 0;
            if first > last || last > 63 || low > 13 || (first == 0 && !dc_only) || (first > 0 && count != 1)
            {
                return Err(DAMAGED.into());
            }
        }
        let mut reader = Bits::new(self.bytes, self.at);
        let mut scan = Scan {
            progressive: frame.progressive,
            first,
            last,
            refine: high != 0,
            low,
            previous: [0; 4],
            skip: 0,
            dc: &self.dc,
            ac: &self.ac,
        };
        // A single component comes block by block, without the padding; several come in units.
        let single = count == 1;
        let (nx, ny) = if single {
            let c = &frame.components[parts[0].index];
            (c.width.div_ceil(8), c.height.div_ceil(8))
        } else {
            (frame.units_x, frame.units_y)
        };
        for unit in 0..nx * ny {
            if self.restart > 0 && unit > 0 && unit % self.restart == 0 {
                reader.restart()?;
                scan.previous = [0; 4];
                scan.skip = 0;
            }
            let (x, y) = (unit % nx, unit / nx);
            for part in &parts {
                let component = &mut frame.components[part.index];
                if single {
                    scan.block(&mut reader, part, component, x, y)?;
                    continue;
                }
                let (h, v) = (component.h, component.v);
                for by in 0..v {
                    for bx in 0..h {
                        scan.block(&mut reader, part, component, x * h + bx, y * v + by)?;
                    }
                }
            }
        }
        self.at = reader.position();
        Ok(())
    }
}

/// A component's part in a scan.
struct Part {
    index: usize,
    dc: usize,
    ac: usize,
}

/// The state of one scan.
struct Scan<'a> {
    progressive: bool,
    first: usize,
    last: usize,
    refine: bool,
    low: u8,
    previous: [i32; 4],
    /// Blocks still to be left as they are.
    skip: u32,
    dc: &'a [Option<Table>; 4],
    ac: &'a [Option<Table>; 4],
}

impl Scan<'_> {
    fn block(
        &mut self,
        bits: &mut Bits,
        part: &Part,
        component: &mut Component,
        x: usize,
        y: usize,
    ) -> Result<(), String> {
        const NO_TABLE: &str = "the JPEG lacks a code table";
        let (dc_tables, ac_tables) = (self.dc, self.ac);
        let dc = || dc_tables.get(part.dc).and_then(Option::as_ref).ok_or(NO_TABLE);
        let ac = || ac_tables.get(part.ac).and_then(Option::as_ref).ok_or(NO_TABLE);
        let block = y * component.blocks_x + x;
        if !self.progressive {
            let mut values = [0i16; 64];
            let diff = bits.difference(dc()?)?;
            let previous = &mut self.previous[part.index];
            *previous = previous.wrapping_add(diff);
            values[0] = *previous as i16;
            bits.baseline(ac()?, &mut values)?;
            component.write(x, y, &values);
            return Ok(());
        }
        let Some(values) = component.coefficients[block * 64..].first_chunk_mut::<64>() else {
            return Err("the JPEG is damaged".into());
        };
        if self.first == 0 {
            if self.refine {
                if bits.bit()? {
                    values[0] |= 1 << self.low;
                }
            } else {
                let diff = bits.difference(dc()?)?;
                let previous = &mut self.previous[part.index];
                *previous = previous.wrapping_add(diff);
                values[0] = (*previous << self.low) as i16;
            }
        } else if self.refine {
            bits.refine(ac()?, self.first, self.last, self.low, &mut self.skip, values)?;
        } else {
            bits.first(ac()?, self.first, self.last, self.low, &mut self.skip, values)?;
        }
        Ok(())
    }
}

impl Component {
    /// Inverse transform of one block into the samples.
    fn write(&mut self, x: usize, y: usize, values: &[i16; 64]) {
        let Some(table) = &self.table else { return };
        let stride = self.blocks_x * 8;
        let at = y * 8 * stride + x * 8;
        idct::block(values, table, &mut self.samples[at..], stride);
    }

    /// All blocks of a progressive picture.
    fn transform(&mut self) {
        let coefficients = std::mem::take(&mut self.coefficients);
        for (i, values) in coefficients.as_chunks::<64>().0.iter().enumerate() {
            self.write(i % self.blocks_x, i / self.blocks_x, values);
        }
        debug_assert_eq!(coefficients.len(), self.blocks_x * self.blocks_y * 64);
    }
}
