//! Winograd's convolution 3×3 with stride 1: fewer products than the definition has.
//!
//! F(4×4, 3×3) computes 16 outputs from 36 products where the definition needs 144, F(2×2, 3×3) 4 from 16 instead of 36.
//! The picture goes by in blocks of tiles: their inputs are gathered (normalised and activated on the way) and
//! transformed once, in parallel; then tasks of [`tile::columns`] output channels each transform their filters, multiply,
//! transform back and finish. Filters are transformed anew for each block: beside the products that costs a few
//! percent, and a second copy of the weights, four times as large, never exists.
//!
//! In f32, or with the transformed operands as whole numbers of 16 bits ([`sixteen`]), which takes half of the time; from filters
//! in bytes by additions alone ([`whole`]).
//!
//! Errors against f64, relative in the L2 norm over random pictures and filters of up to 320 channels (tested): below
//! 1e-6 for F(2×2), 3e-6 for F(4×4), where the definition in f32 has about 3e-7; with 16 bits below 2.5e-3 for both, which is
//! what the definition has with operands in bf16, and below 5e-3 where bytes hold the filters exactly.

mod filters;
mod gather;
mod packed;
mod scatter;
mod sixteen;
mod tile;
mod transforms;
mod whole;

use super::{Conv, Epilogue, Filters, Input};
use crate::buffer::Buffer;
use crate::level::level;
use crate::share::{Shared, each};
use gather::{Strip, input};
pub(super) use packed::Packed;
use scatter::finish;
use std::ops::Range;
use tile::{CHUNK, Tiles};
use transforms::{Algorithm, F2, F4};
use whole::Bytes;

/// The algorithms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Variant {
    /// F(2×2, 3×3).
    F2,
    /// F(4×4, 3×3).
    F4,
    /// The same at points where filters in bytes stay whole numbers, for [`Format::Whole`].
    F4Whole,
}

impl Variant {
    fn outputs(self) -> usize {
        match self {
            Variant::F2 => F2::OUT,
            Variant::F4 | Variant::F4Whole => F4::OUT,
        }
    }

    fn inputs(self) -> usize {
        self.outputs() + 2
    }

    /// Products of one tile and channel.
    fn products(self) -> usize {
        self.inputs() * self.inputs()
    }
}

/// Number format of the transformed operands; sums and results are f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// Single precision.
    F32,
    /// Whole numbers of 16 bits, see [`sixteen`].
    I16,
    /// The same, with filters from bytes, see [`whole`].
    Whole,
}

impl Format {
    /// Words that `n` values take.
    fn words(self, n: usize) -> usize {
        match self {
            Format::F32 => n,
            Format::I16 | Format::Whole => n / 2,
        }
    }

    /// Chunks of channels whose filters are transformed at a time, of so many: equal parts of all.
    fn depth(self, chunks: usize) -> usize {
        let most = match self {
            Format::F32 => DEPTH,
            Format::I16 => sixteen::MOST_CHANNELS,
            Format::Whole => whole::MOST_CHANNELS,
        };
        chunks.div_ceil(chunks.div_ceil(most / CHUNK))
    }
}

/// Transformed inputs alive at a time, in words: 12 MiB, so that they stay in the last-level cache.
const BLOCK: usize = 3 << 20;
/// Tiles whose sums are alive in one task: 36 · 32 · 4 bytes each, 1 MiB in all.
const TASK: usize = 224;
/// Chunks of channels that are gathered and transformed by one task in f32.
const GROUP: usize = 4;
/// Values that are gathered by one task in i16, all channels of some tiles: half of a second-level cache.
const GATHERED: usize = 128 << 10;
/// Channels whose filters are transformed at a time in f32: 36 · 320 · 32 · 4 bytes = 1.5 MB.
const DEPTH: usize = 320;

/// The tiles of one convolution.
#[derive(Clone, Copy)]
struct Tiling {
    conv: Conv,
    variant: Variant,
    format: Format,
    /// Rows of tiles of one picture.
    high: usize,
    /// Tiles of one row.
    wide: usize,
    /// Chunks of channels, the last one filled up with zeros.
    chunks: usize,
    /// Rows of the micro-kernel.
    mr: usize,
    /// Columns of the micro-kernel.
    nr: usize,
}

impl Tiling {
    fn of(conv: Conv, variant: Variant, format: Format) -> Self {
        let m = variant.outputs();
        Tiling {
            conv,
            variant,
            format,
            high: conv.out_height().div_ceil(m),
            wide: conv.out_width().div_ceil(m),
            chunks: conv.inputs.div_ceil(CHUNK),
            mr: tile::rows(level()),
            nr: tile::columns(level()),
        }
    }

    /// Words of one row of the left operand in one chunk.
    fn chunk(&self) -> usize {
        self.format.words(CHUNK)
    }

    /// Rows of tiles that are done together: equal parts of all that keep to the limit.
    fn strips_per_block(&self) -> usize {
        let strips = self.conv.batch * self.high;
        let per_strip = self.wide * self.variant.products() * self.chunks * self.chunk();
        strips.div_ceil(strips.div_ceil((BLOCK / per_strip).max(1)))
    }

    /// See [`Format::depth`].
    fn depth(&self) -> usize {
        self.format.depth(self.chunks)
    }

    /// Values between two products of a tile's inputs before they become i16.
    fn input_plane(&self) -> usize {
        (self.chunks + 1) * CHUNK
    }

    /// Tiles of a row that are gathered by one task in i16: equal parts of all.
    fn gathered(&self) -> usize {
        let column = self.variant.inputs() * self.variant.outputs() * self.chunks * CHUNK;
        self.wide.div_ceil(self.wide.div_ceil((GATHERED / column).max(1)))
    }

    /// Words between two products of the filters of one depth.
    fn filter_plane(&self) -> usize {
        match self.format {
            Format::F32 => filters::plane(self.depth(), self.nr),
            Format::I16 | Format::Whole => (self.depth() * self.chunk() + 1) * self.nr,
        }
    }

    /// Words of the filters of all products for one depth, their factors included.
    fn filters(&self) -> usize {
        let factors = if self.format == Format::F32 { 0 } else { self.nr };
        self.variant.products() * (self.filter_plane() + factors)
    }

    /// Parts of the channels whose filters a task keeps: all where they are small, in i16, or all there are.
    fn kept(&self) -> usize {
        if self.format == Format::F32 { 1 } else { self.chunks.div_ceil(self.depth()) }
    }

    /// Values of memory that a task of either kind takes: all alike, so that each finds what the one before gave back.
    fn share(&self) -> usize {
        let products = self.variant.products();
        let (tiles, chunks) = match self.format {
            Format::F32 => (self.wide, GROUP.min(self.chunks)),
            Format::I16 | Format::Whole => (self.gathered(), self.chunks),
        };
        let strip = self.variant.inputs() * (tiles * self.variant.outputs() + 2) * chunks * CHUNK;
        let tiles = (TASK + 2 * self.mr).min(self.strips_per_block() * self.wide);
        strip.max(self.kept() * self.filters() + tiles * products * self.nr)
    }

    /// Words between two products of the same tile in `blocks` blocks of rows: a line more than they take, so that
    /// the products of one tile do not fall into the same set of the cache.
    fn plane(&self, blocks: usize) -> usize {
        blocks * self.chunks * self.mr * self.chunk() + CHUNK
    }
}

/// `out = conv(x, weight)` and what `epilogue` says. The kernel is 3×3, the stride 1.
pub(super) fn run(
    conv: Conv,
    mut variant: Variant,
    mut format: Format,
    x: &Input,
    filters: Filters,
    epilogue: &Epilogue,
    out: &mut [f32],
) {
    if bytes_of(filters).is_some() {
        format = Format::Whole;
        variant = if variant == Variant::F4 { Variant::F4Whole } else { variant };
    } else if format == Format::Whole {
        format = Format::I16;
    }
    let tiling = Tiling::of(conv, variant, format);
    let strips = conv.batch * tiling.high;
    let out = Shared::new(out);
    let step = tiling.strips_per_block();
    for first in (0..strips).step_by(step) {
        block(&tiling, first..(first + step).min(strips), x, filters, epilogue, out);
    }
}

/// The filters, if they are packed as bytes.
fn bytes_of<'a>(filters: Filters<'a>) -> Option<&'a Bytes> {
    match filters {
        Filters::Stored(_) => None,
        Filters::Packed(packed) => packed.winograd().bytes(),
    }
}

/// Values that [`run`] needs beside input and output, on so many threads.
pub(super) fn scratch(conv: Conv, variant: Variant, format: Format, threads: usize) -> usize {
    let t = Tiling::of(conv, variant, format);
    let rows = (t.strips_per_block() * t.wide).div_ceil(t.mr);
    let factors = if format == Format::F32 { 0 } else { rows * t.mr + t.input_plane() * threads };
    (t.plane(rows) + factors) * variant.products() + threads * t.share()
}

/// The left operand of one block of strips.
struct Left {
    /// `[products][blocks of rows][chunks][rows][chunk]`.
    words: Buffer,
    plane: usize,
    /// `[products][tiles]`, in i16.
    factors: Buffer,
    factor_plane: usize,
}

/// The strips (rows of tiles) of one block.
fn block(t: &Tiling, strips: Range<usize>, x: &Input, filters: Filters, epilogue: &Epilogue, out: Shared) {
    let tiles = strips.len() * t.wide;
    let row_blocks = tiles.div_ceil(t.mr);
    let left = match t.format {
        Format::F32 => inputs_f32(t, strips.clone(), x),
        Format::I16 | Format::Whole => inputs_i16(t, strips.clone(), x),
    };
    let panels = t.conv.outputs.div_ceil(t.nr);
    let parts = tiles.div_ceil(TASK);
    let per_part = row_blocks.div_ceil(parts);
    let parts = row_blocks.div_ceil(per_part);
    // Several parts in one task have their filters transformed once, if those of all channels are kept.
    let threads = rayon::current_num_threads().max(1);
    let together =
        if t.kept() * t.depth() >= t.chunks { parts.div_ceil((2 * threads).div_ceil(panels)) } else { 1 };
    let tasks = parts.div_ceil(together);
    each(tasks * panels, |i| {
        let (task, panel) = (i / panels, i % panels);
        let parts = (task * together..parts.min((task + 1) * together))
            .map(|part| part * per_part..((part + 1) * per_part).min(row_blocks));
        products(t, strips.start * t.wide, tiles, parts, panel * t.nr, &left, filters, epilogue, out);
    });
}

/// Gathers and transforms the inputs of some strips.
fn inputs_f32(t: &Tiling, strips: Range<usize>, x: &Input) -> Left {
    let products = t.variant.products();
    let plane = t.plane((strips.len() * t.wide).div_ceil(t.mr));
    let mut words = Buffer::stale(plane * products);
    let v = Shared::new(&mut words);
    let groups = t.chunks.div_ceil(GROUP);
    each(strips.len() * groups, |i| {
        let (s, g) = (i / groups, i % groups);
        let chunks = g * GROUP..((g + 1) * GROUP).min(t.chunks);
        let strip = Strip::gather(t, strips.start + s, 0..t.wide, chunks.clone(), x);
        for tx in 0..t.wide {
            let tile = s * t.wide + tx;
            for chunk in chunks.clone() {
                let at = ((tile / t.mr * t.chunks + chunk) * t.mr + tile % t.mr) * CHUNK;
                let from = strip.tile(tx, chunk - chunks.start);
                let to = v.at(at, plane * (products - 1) + CHUNK);
                // SAFETY: of each plane this task alone writes the chunk of this tile.
                unsafe { input(t.variant, from, strip.row, strip.pixel, to, plane) };
            }
        }
    });
    Left { words, plane, factors: Buffer::default(), factor_plane: 0 }
}

/// The same; all channels of a tile get one factor.
fn inputs_i16(t: &Tiling, strips: Range<usize>, x: &Input) -> Left {
    let products = t.variant.products();
    let tiles = strips.len() * t.wide;
    let plane = t.plane(tiles.div_ceil(t.mr));
    let (mut words, mut factors) = (Buffer::stale(plane * products), Buffer::stale(tiles * products));
    let (v, f) = (Shared::new(&mut words), Shared::new(&mut factors));
    let step = t.gathered();
    let parts = t.wide.div_ceil(step);
    let row = t.chunk();
    each(strips.len() * parts, |i| {
        let (s, part) = (i / parts, i % parts);
        let here = part * step..((part + 1) * step).min(t.wide);
        let strip = Strip::gather(t, strips.start + s, here.clone(), 0..t.chunks, x);
        let input_plane = t.input_plane();
        let mut transformed = Buffer::stale(input_plane * products);
        for tx in here.clone() {
            for chunk in 0..t.chunks {
                let to = transformed[chunk * CHUNK..].as_mut_ptr();
                let from = strip.tile(tx - here.start, chunk);
                // SAFETY: each plane has room for all chunks.
                unsafe { input(t.variant, from, strip.row, strip.pixel, to, input_plane) };
            }
            let tile = s * t.wide + tx;
            let at = (tile / t.mr * t.chunks * t.mr + tile % t.mr) * row;
            let to = v.at(at, plane * (products - 1) + ((t.chunks - 1) * t.mr + 1) * row);
            let factors = f.at(tile, tiles * (products - 1) + 1);
            let from = transformed.as_ptr();
            // SAFETY: of each plane this task alone writes the rows and the factor of this tile.
            unsafe {
                let (chunks, chunk) = (t.chunks, t.mr * row);
                sixteen::inputs(products, chunks, from, input_plane, to, chunk, plane, factors, tiles);
            }
        }
    });
    Left { words, plane, factors, factor_plane: tiles }
}

/// The blocks of rows of each of `parts` of one block of strips, times `nr` output channels from `n0` on.
#[allow(clippy::too_many_arguments)]
fn products(
    t: &Tiling,
    first_tile: usize,
    tiles: usize,
    parts: impl ExactSizeIterator<Item = Range<usize>>,
    n0: usize,
    left: &Left,
    weight: Filters,
    epilogue: &Epilogue,
    out: Shared,
) {
    let (nr, products) = (t.nr, t.variant.products());
    let (depth, plane) = (t.depth(), t.filter_plane());
    let mut share = Buffer::stale(t.share());
    let (filters, sums) = share.split_at_mut(t.kept() * t.filters());
    // Kept for the next part, or always in the same place, which stays in the second-level cache.
    let keeps = parts.len() > 1 && t.kept() * depth >= t.chunks;
    let places = if keeps { t.kept() } else { 1 };
    for (p, rows) in parts.enumerate() {
        let from = rows.start * t.mr;
        let count = (rows.end * t.mr).min(tiles) - from;
        let sums = &mut sums[..count * products * nr];
        for (i, c) in (0..t.chunks).step_by(depth).enumerate() {
            let chunks = depth.min(t.chunks - c);
            let filters = &mut filters[i % places * t.filters()..][..t.filters()];
            if p == 0 || !keeps {
                let channels = c * CHUNK..(c + chunks) * CHUNK;
                match t.format {
                    Format::F32 => {
                        filters::transform(t.variant, weight, &t.conv, n0, channels, plane, filters)
                    }
                    Format::I16 => sixteen::filters(t.variant, weight, &t.conv, n0, channels, plane, filters),
                    Format::Whole => {
                        let bytes = bytes_of(weight).expect("filters of the format");
                        bytes.transform(t.variant, n0, channels, plane, filters);
                    }
                }
            }
            let chunk = t.mr * t.chunk();
            for p in 0..products {
                let b = filters[p * plane..][..chunks * t.chunk() * nr].as_ptr();
                // Tiles of full height, and maybe one that is lower.
                let (full, rest) = (count / t.mr, count % t.mr);
                for (first, number, height) in [(0, full, t.mr), (full, 1, rest)] {
                    if number * height == 0 {
                        continue;
                    }
                    let (block, row) = (rows.start + first, first * t.mr);
                    let apart = t.chunks * chunk;
                    let at = p * left.plane + block * apart + c * chunk;
                    let a = left.words[at..][..(number - 1) * apart + chunks * chunk].as_ptr();
                    let to =
                        &mut sums[(row * products + p) * nr..][..(number * height - 1) * products * nr + nr];
                    let (to, stride) = (to.as_mut_ptr(), products * nr);
                    let of = Tiles { count: number, height, a, apart, chunks, to, stride, add: c > 0 };
                    // SAFETY: the slices have what the kernels read and write.
                    unsafe {
                        match t.format {
                            Format::F32 => tile::multiply(&of, b),
                            Format::I16 | Format::Whole => {
                                let columns = filters[plane * products + p * nr..][..nr].as_ptr();
                                let factors = &left.factors[p * left.factor_plane + from + row..];
                                tile::multiply_i16(&of, b, factors[..number * height].as_ptr(), columns);
                            }
                        }
                    }
                }
            }
        }
        finish(t, first_tile + from, sums, n0, epilogue, out);
    }
}
