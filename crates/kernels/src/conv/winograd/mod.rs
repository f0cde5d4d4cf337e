//! Winograd's convolution 3×3 with stride 1: fewer products than the definition has.
//!
//! F(4×4, 3×3) computes 16 outputs from 36 products where the definition needs 144, F(2×2, 3×3) 4 from 16 instead of 36.
//! The picture goes by in blocks of tiles: their inputs are gathered (normalised and activated on the way) and
//! transformed once, in parallel; then tasks of [`tile::columns`] output channels each transform their filters, multiply,
//! transform back and finish. Filters are transformed anew for each block: beside the products that costs a few
//! percent, and a second copy of the weights, four times as large, never exists.
//!
//! Errors against f64, relative in the L2 norm over random pictures and filters of up to 320 channels (tested): below
//! 1e-6 for F(2×2), 3e-6 for F(4×4), where the definition in f32 has about 3e-7.

mod filters;
mod gather;
mod tile;
mod transforms;

use super::{Conv, Epilogue, Input};
use crate::Weight;
use crate::buffer::Buffer;
use crate::lanes::{Lanes, on_lanes};
use crate::level::level;
use crate::share::{Shared, each};
use gather::Strip;
use tile::CHUNK;
use transforms::{Algorithm, F2, F4, MOST};

/// The algorithms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Variant {
    /// F(2×2, 3×3).
    F2,
    /// F(4×4, 3×3).
    F4,
}

impl Variant {
    fn outputs(self) -> usize {
        match self {
            Variant::F2 => F2::OUT,
            Variant::F4 => F4::OUT,
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

/// Transformed inputs alive at a time, in values: 12 MiB, so that they stay in the last-level cache.
const BLOCK: usize = 3 << 20;
/// Tiles of one task: their sums are 36 · 32 · 4 bytes each, 1 MiB in all.
const TASK: usize = 224;
/// Chunks of channels that are gathered and transformed by one task.
const GROUP: usize = 4;
/// Channels whose filters are transformed at a time: 36 · 320 · 32 · 4 bytes = 1.5 MB.
const DEPTH: usize = 320;

/// The tiles of one convolution.
#[derive(Clone, Copy)]
struct Tiling {
    conv: Conv,
    variant: Variant,
    /// Rows of tiles of one picture.
    high: usize,
    /// Tiles of one row.
    wide: usize,
    /// Chunks of channels, the last one filled up with zeros.
    chunks: usize,
    /// Rows of the micro-kernel.
    mr: usize,
}

impl Tiling {
    fn of(conv: Conv, variant: Variant) -> Self {
        let m = variant.outputs();
        Tiling {
            conv,
            variant,
            high: conv.out_height().div_ceil(m),
            wide: conv.out_width().div_ceil(m),
            chunks: conv.inputs.div_ceil(CHUNK),
            mr: tile::rows(level()),
        }
    }

    /// Rows of tiles that are done together: equal parts of all that keep to the limit.
    fn strips_per_block(&self) -> usize {
        let strips = self.conv.batch * self.high;
        let per_strip = self.wide * self.variant.products() * self.chunks * CHUNK;
        strips.div_ceil(strips.div_ceil((BLOCK / per_strip).max(1)))
    }

    /// Chunks of channels whose filters are transformed at a time: equal parts of all.
    fn depth(&self) -> usize {
        self.chunks.div_ceil(self.chunks.div_ceil(DEPTH / CHUNK))
    }

    /// Values of memory that a task of either kind takes: all alike, so that each finds what the one before gave back.
    fn share(&self) -> usize {
        let (products, nr) = (self.variant.products(), tile::columns(level()));
        let strip =
            self.variant.inputs() * (self.wide * self.variant.outputs() + 2) * GROUP.min(self.chunks) * CHUNK;
        let tiles = (TASK + 2 * self.mr).min(self.strips_per_block() * self.wide);
        strip.max(filters::plane(self.depth(), nr) * products + tiles * products * nr)
    }

    /// Values between two products of the same tile in `blocks` blocks of rows: a line more than they take, so that
    /// the products of one tile do not fall into the same set of the cache.
    fn plane(&self, blocks: usize) -> usize {
        blocks * self.chunks * self.mr * CHUNK + CHUNK
    }
}

/// `out = conv(x, weight)` and what `epilogue` says. The kernel is 3×3, the stride 1.
pub(super) fn run(
    conv: Conv,
    variant: Variant,
    x: &Input,
    weight: Weight,
    epilogue: &Epilogue,
    out: &mut [f32],
) {
    let (level, m) = (level(), variant.outputs());
    let tiling = Tiling {
        conv,
        variant,
        high: conv.out_height().div_ceil(m),
        wide: conv.out_width().div_ceil(m),
        chunks: conv.inputs.div_ceil(CHUNK),
        mr: tile::rows(level),
    };
    let strips = conv.batch * tiling.high;
    let per_strip = tiling.wide * variant.products() * tiling.chunks * CHUNK;
    // As many equal blocks as keep to the limit.
    let blocks = strips.div_ceil((BLOCK / per_strip).max(1));
    let strips_per_block = strips.div_ceil(blocks);
    let out = Shared::new(out);
    for first in (0..strips).step_by(strips_per_block) {
        block(&tiling, first..(first + strips_per_block).min(strips), x, weight, epilogue, out);
    }
}

/// Values that [`run`] needs beside input and output, on so many threads.
pub(super) fn scratch(conv: Conv, variant: Variant, threads: usize) -> usize {
    let t = Tiling::of(conv, variant);
    let tiles = t.strips_per_block() * t.wide;
    t.plane(tiles.div_ceil(t.mr)) * variant.products() + threads * t.share()
}

/// The strips (rows of tiles) of one block.
fn block(
    t: &Tiling,
    strips: std::ops::Range<usize>,
    x: &Input,
    weight: Weight,
    epilogue: &Epilogue,
    out: Shared,
) {
    let tiles = strips.len() * t.wide;
    let row_blocks = tiles.div_ceil(t.mr);
    let plane = t.plane(row_blocks);
    let mut transformed = Buffer::stale(plane * t.variant.products());
    let v = Shared::new(&mut transformed);
    let groups = t.chunks.div_ceil(GROUP);
    each(strips.len() * groups, |i| {
        let (s, g) = (i / groups, i % groups);
        let chunks = g * GROUP..((g + 1) * GROUP).min(t.chunks);
        let strip = Strip::gather(t, strips.start + s, chunks.clone(), x);
        for tx in 0..t.wide {
            let tile = s * t.wide + tx;
            for chunk in chunks.clone() {
                let at = ((tile / t.mr * t.chunks + chunk) * t.mr + tile % t.mr) * CHUNK;
                // SAFETY: of each plane this task alone writes the chunk of this tile.
                unsafe {
                    let from = strip.tile(tx, chunk - chunks.start);
                    input(
                        t.variant,
                        from,
                        strip.row,
                        strip.pixel,
                        v.at(at, plane * (t.variant.products() - 1) + CHUNK),
                        plane,
                    );
                }
            }
        }
    });
    let nr = tile::columns(level());
    let panels = t.conv.outputs.div_ceil(nr);
    let parts = tiles.div_ceil(TASK);
    let per_part = row_blocks.div_ceil(parts);
    let parts = row_blocks.div_ceil(per_part);
    let v = &transformed[..];
    each(parts * panels, |i| {
        let (part, panel) = (i / panels, i % panels);
        let rows = part * per_part..((part + 1) * per_part).min(row_blocks);
        task(t, strips.start * t.wide, tiles, rows, panel * nr, v, plane, weight, epilogue, out);
    });
}

/// The blocks of rows `rows` of one block, times `nr` output channels from `n0` on.
#[allow(clippy::too_many_arguments)]
fn task(
    t: &Tiling,
    first_tile: usize,
    tiles: usize,
    rows: std::ops::Range<usize>,
    n0: usize,
    v: &[f32],
    plane: usize,
    weight: Weight,
    epilogue: &Epilogue,
    out: Shared,
) {
    let (nr, products) = (tile::columns(level()), t.variant.products());
    let from = rows.start * t.mr;
    let count = (rows.end * t.mr).min(tiles) - from;
    let depth = t.depth();
    let filter_plane = filters::plane(depth, nr);
    let mut share = Buffer::stale(t.share());
    let (u, sums) = share.split_at_mut(filter_plane * products);
    let sums = &mut sums[..count * products * nr];
    for c in (0..t.chunks).step_by(depth) {
        let chunks = depth.min(t.chunks - c);
        filters::transform(t.variant, weight, &t.conv, n0, c * CHUNK..(c + chunks) * CHUNK, filter_plane, u);
        for p in 0..products {
            for block in rows.clone() {
                let row = block * t.mr;
                let height = t.mr.min(tiles - row);
                let a = &v[p * plane + (block * t.chunks + c) * t.mr * CHUNK..][..chunks * t.mr * CHUNK];
                let b = &u[p * filter_plane..][..chunks * CHUNK * nr];
                let to = &mut sums[((row - from) * products + p) * nr..][..(height - 1) * products * nr + nr];
                // SAFETY: the three slices have what the kernel reads and writes.
                unsafe {
                    tile::multiply(
                        height,
                        chunks,
                        a.as_ptr(),
                        b.as_ptr(),
                        to.as_mut_ptr(),
                        products * nr,
                        c > 0,
                    );
                }
            }
        }
    }
    let (width, height) = (t.conv.out_width(), t.conv.out_height());
    let m = t.variant.outputs();
    let columns = nr.min(t.conv.outputs - n0);
    for (i, sums) in sums.chunks_exact(products * nr).enumerate() {
        let tile = first_tile + from + i;
        let (b, ty, tx) = (tile / t.wide / t.high, tile / t.wide % t.high, tile % t.wide);
        let finish = epilogue.of_picture(b, n0, t.conv.outputs);
        let place = Place {
            pixel: (b * height + ty * m) * width + tx * m,
            high: m.min(height - ty * m),
            wide: m.min(width - tx * m),
            width,
            outputs: t.conv.outputs,
            n0,
            columns,
        };
        // SAFETY: these output channels of this tile's pixels are this task's alone.
        unsafe { output(t.variant, sums, &place, &finish, out) };
    }
}

/// Where a tile's outputs go.
struct Place {
    /// The first pixel.
    pixel: usize,
    /// Rows and columns of the tile within the picture.
    high: usize,
    wide: usize,
    /// Pixels of a row.
    width: usize,
    /// Channels of the output, and those of this panel.
    outputs: usize,
    n0: usize,
    columns: usize,
}

on_lanes! {
    /// Transforms one chunk of one tile's inputs; rows of pixels are `row` values apart, pixels `pixel`, products `plane`.
    ///
    /// # Safety
    /// The tile's pixels must be readable and its products writable, by the caller alone.
    fn input(variant: Variant, from: *const f32, row: usize, pixel: usize, to: *mut f32, plane: usize) = input_on
}

#[inline(always)]
unsafe fn input_on<V: Lanes>(
    variant: Variant,
    from: *const f32,
    row: usize,
    pixel: usize,
    to: *mut f32,
    plane: usize,
) {
    // SAFETY: the caller's promises.
    unsafe {
        match variant {
            Variant::F2 => input_of::<V, F2>(from, row, pixel, to, plane),
            Variant::F4 => input_of::<V, F4>(from, row, pixel, to, plane),
        }
    }
}

// Rows and columns by their indices: both are needed.
#[allow(clippy::needless_range_loop)]
#[inline(always)]
unsafe fn input_of<V: Lanes, A: Algorithm>(
    from: *const f32,
    row: usize,
    pixel: usize,
    to: *mut f32,
    plane: usize,
) {
    // SAFETY: the caller's promises; CHUNK is a multiple of every width.
    unsafe {
        let zero = V::splat(0.0);
        for c in (0..CHUNK).step_by(V::WIDTH) {
            let mut half = [[zero; MOST]; MOST];
            for x in 0..A::IN {
                let mut d = [zero; MOST];
                for (y, d) in d.iter_mut().enumerate().take(A::IN) {
                    *d = V::load(from.add(y * row + x * pixel + c));
                }
                let t = A::input(d);
                for y in 0..A::IN {
                    half[y][x] = t[y];
                }
            }
            for (y, half) in half.iter().enumerate().take(A::IN) {
                let t = A::input(*half);
                for (x, t) in t.iter().enumerate().take(A::IN) {
                    t.store(to.add((y * A::IN + x) * plane + c));
                }
            }
        }
    }
}

on_lanes! {
    /// Transforms one tile's sums back, finishes them and writes them out.
    ///
    /// # Safety
    /// The outputs of the place must belong to the caller alone.
    fn output(variant: Variant, sums: &[f32], place: &Place, finish: &Epilogue, out: Shared) = output_on
}

#[inline(always)]
unsafe fn output_on<V: Lanes>(variant: Variant, sums: &[f32], place: &Place, finish: &Epilogue, out: Shared) {
    // SAFETY: the caller's promises.
    unsafe {
        match variant {
            Variant::F2 => output_of::<V, F2>(sums, place, finish, out),
            Variant::F4 => output_of::<V, F4>(sums, place, finish, out),
        }
    }
}

// Rows and columns by their indices: both are needed.
#[allow(clippy::needless_range_loop)]
#[inline(always)]
unsafe fn output_of<V: Lanes, A: Algorithm>(sums: &[f32], place: &Place, finish: &Epilogue, out: Shared) {
    let nr = 2 * V::WIDTH;
    assert_eq!(sums.len(), A::IN * A::IN * nr);
    for h in 0..2 {
        let n = h * V::WIDTH;
        if n >= place.columns {
            break;
        }
        let columns = V::WIDTH.min(place.columns - n);
        // SAFETY: reads are within the sums as asserted, writes go through checked parts of the output.
        unsafe {
            let zero = V::splat(0.0);
            let mut half = [[zero; MOST]; MOST];
            for x in 0..A::IN {
                let mut s = [zero; MOST];
                for (y, s) in s.iter_mut().enumerate().take(A::IN) {
                    *s = V::load(sums.as_ptr().add((y * A::IN + x) * nr + n));
                }
                let t = A::output(s);
                for y in 0..A::OUT {
                    half[y][x] = t[y];
                }
            }
            let mut added = [0f32; 16];
            for term in [finish.bias, finish.picture].into_iter().flatten() {
                added.iter_mut().zip(&term[n..n + columns]).for_each(|(a, v)| *a += v);
            }
            let added = V::load(added.as_ptr());
            for (y, half) in half.iter().enumerate().take(place.high.min(A::OUT)) {
                let t = A::output(*half);
                for (x, t) in t.iter().enumerate().take(place.wide.min(A::OUT)) {
                    let at = (place.pixel + y * place.width + x) * place.outputs + place.n0 + n;
                    let mut value = t.add(added);
                    let to = out.part(at, columns);
                    if columns == V::WIDTH {
                        if let Some(residual) = finish.residual {
                            value = value.add(V::load(residual[at..at + columns].as_ptr()));
                        }
                        value.store(to.as_mut_ptr());
                    } else {
                        let mut all = [0f32; 16];
                        value.store(all.as_mut_ptr());
                        to.copy_from_slice(&all[..columns]);
                        if let Some(residual) = finish.residual {
                            to.iter_mut().zip(&residual[at..]).for_each(|(o, r)| *o += r);
                        }
                    }
                }
            }
        }
    }
}
