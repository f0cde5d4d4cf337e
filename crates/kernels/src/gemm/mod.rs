//! Matrix products `C = A · Bᵀ` with a fused epilogue.
//!
//! Blocked as in Goto & van de Geijn, "Anatomy of High-Performance Matrix Multiplication" (2008): a panel of B stays
//! in the second-level cache, a block of A streams past it, and a register tile of C is updated by the micro-kernel
//! of the level in use. Operands are packed (and weights widened to f32) on the way in.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod scalar;

use crate::Weight;
use crate::level::{Level, level};
use crate::share::{Shared, each};
use std::cell::RefCell;

/// Depth of one block of the shared dimension.
pub(crate) const KC: usize = 256;
/// Columns of B packed at a time: KC · NC · 4 bytes = half of a 1 MiB second-level cache.
const NC: usize = 512;
/// Rows of A packed at a time.
const MC: usize = 112;
/// The largest register tile, rows × columns.
const TILE: usize = 14 * 32;

/// Where the left operand's rows come from. `pack` writes block `kb` of rows `m0..m0 + rows` as `[kc][rows]`.
pub(crate) trait Left: Sync {
    fn pack(&self, kb: usize, m0: usize, rows: usize, out: &mut [f32]);
}

/// Where the right operand's columns come from. `pack` writes block `kb` of columns `n0..n0 + cols` as `[kc][nr]`;
/// columns `cols..nr` may hold anything finite.
pub(crate) trait Right: Sync {
    fn pack(&self, kb: usize, n0: usize, cols: usize, nr: usize, out: &mut [f32]);
}

/// What happens to the finished sums, in this order.
#[derive(Clone, Copy, Default)]
pub(crate) struct Epilogue<'a> {
    /// Added to each row, one value per column.
    pub bias: Option<&'a [f32]>,
    /// `[m, n]`, added element by element.
    pub residual: Option<&'a [f32]>,
}

/// Rows of A, row-major with a stride.
pub(crate) struct Rows<'a> {
    pub data: &'a [f32],
    pub stride: usize,
    pub k: usize,
}

impl Left for Rows<'_> {
    fn pack(&self, kb: usize, m0: usize, rows: usize, out: &mut [f32]) {
        let k0 = kb * KC;
        let kc = KC.min(self.k - k0);
        for r in 0..rows {
            let row = &self.data[(m0 + r) * self.stride + k0..][..kc];
            for (k, v) in row.iter().enumerate() {
                out[k * rows + r] = *v;
            }
        }
    }
}

/// Weights `[n, k]`, row-major: each column of B is a contiguous row of the weight.
struct WeightRows<'a> {
    weight: Weight<'a>,
    k: usize,
}

impl Right for WeightRows<'_> {
    fn pack(&self, kb: usize, n0: usize, cols: usize, nr: usize, out: &mut [f32]) {
        let k0 = kb * KC;
        let kc = KC.min(self.k - k0);
        let mut row = [0f32; KC];
        for c in 0..cols {
            self.weight.widen((n0 + c) * self.k + k0, &mut row[..kc]);
            for (k, v) in row[..kc].iter().enumerate() {
                out[k * nr + c] = *v;
            }
        }
    }
}

/// Fully connected layer: `out[m, n] = a[m, k] · w[n, k]ᵀ (+ bias[n]) (+ residual[m, n])`.
///
/// # Panics
/// If a length does not fit `k` and the number of rows.
pub fn linear(
    a: &[f32],
    k: usize,
    weight: Weight,
    bias: Option<&[f32]>,
    residual: Option<&[f32]>,
    out: &mut [f32],
) {
    assert!(k > 0 && a.len() % k == 0 && weight.len() % k == 0);
    let (m, n) = (a.len() / k, weight.len() / k);
    assert_eq!(out.len(), m * n);
    assert!(bias.is_none_or(|b| b.len() == n) && residual.is_none_or(|r| r.len() == m * n));
    run(
        m,
        n,
        &Blocks::even(k),
        &Rows { data: a, stride: k, k },
        &WeightRows { weight, k },
        Epilogue { bias, residual },
        out,
    );
}

/// Depths of the blocks of the shared dimension.
pub(crate) struct Blocks(pub Vec<usize>);

impl Blocks {
    /// Blocks of [`KC`], the last one shorter.
    pub fn even(k: usize) -> Self {
        Blocks((0..k).step_by(KC).map(|k0| KC.min(k - k0)).collect())
    }
}

/// The register tile of a level: rows, columns.
fn tile(level: Level) -> (usize, usize) {
    match level {
        Level::Avx512 => (14, 32),
        Level::Avx2 => (6, 16),
        Level::Scalar => (4, 16),
    }
}

thread_local! {
    static SCRATCH: RefCell<(Vec<f32>, Vec<f32>)> = const { RefCell::new((Vec::new(), Vec::new())) };
}

/// Products over the whole output, split over the threads of the current pool.
pub(crate) fn run<L: Left, R: Right>(
    m: usize,
    n: usize,
    blocks: &Blocks,
    a: &L,
    b: &R,
    epilogue: Epilogue,
    out: &mut [f32],
) {
    if m == 0 || n == 0 {
        return;
    }
    let threads = rayon::current_num_threads().max(1);
    let (mr, nr) = tile(level());
    // A split over columns packs A once per thread, one over rows packs B once per thread: split the longer side.
    let small = m * n * blocks.0.iter().sum::<usize>() < 1 << 16;
    let (by_rows, parts) = if threads == 1 || small {
        (true, 1)
    } else if m > n {
        (true, m.div_ceil(mr).min(threads))
    } else {
        (false, n.div_ceil(nr).min(threads))
    };
    let out = Shared::new(out);
    each(parts, |p| {
        let (rows, cols) =
            if by_rows { (span(m, mr, parts, p), 0..n) } else { (0..m, span(n, nr, parts, p)) };
        // Taken out of the cell, so that a task stolen by this thread inside `each` finds it free.
        let (mut pa, mut pb) = SCRATCH.take();
        serial(rows, cols, n, blocks, a, b, epilogue, out, &mut pa, &mut pb);
        SCRATCH.set((pa, pb));
    });
}

/// Part `p` of `parts` of `0..n`, in units of `unit`.
fn span(n: usize, unit: usize, parts: usize, p: usize) -> std::ops::Range<usize> {
    let units = n.div_ceil(unit);
    (units * p / parts * unit).min(n)..(units * (p + 1) / parts * unit).min(n)
}

#[allow(clippy::too_many_arguments)]
fn serial<L: Left, R: Right>(
    rows: std::ops::Range<usize>,
    cols: std::ops::Range<usize>,
    stride: usize,
    blocks: &Blocks,
    a: &L,
    b: &R,
    epilogue: Epilogue,
    out: Shared,
    pa: &mut Vec<f32>,
    pb: &mut Vec<f32>,
) {
    let level = level();
    let (mr, nr) = tile(level);
    let deepest = blocks.0.iter().copied().max().unwrap_or(0);
    pa.resize(pa.len().max(MC.div_ceil(mr) * mr * deepest), 0.0);
    pb.resize(pb.len().max(NC * deepest), 0.0);
    let mut tile = [0f32; TILE];
    for n0 in cols.clone().step_by(NC) {
        let n1 = (n0 + NC).min(cols.end);
        for (kb, &kc) in blocks.0.iter().enumerate() {
            for (j, nt) in (n0..n1).step_by(nr).enumerate() {
                b.pack(kb, nt, nr.min(n1 - nt), nr, &mut pb[j * nr * kc..(j + 1) * nr * kc]);
            }
            let (first, last) = (kb == 0, kb + 1 == blocks.0.len());
            for m0 in rows.clone().step_by(MC / mr * mr) {
                let m1 = (m0 + MC / mr * mr).min(rows.end);
                for (i, mt) in (m0..m1).step_by(mr).enumerate() {
                    a.pack(kb, mt, mr.min(m1 - mt), &mut pa[i * mr * kc..(i + 1) * mr * kc]);
                }
                for (j, nt) in (n0..n1).step_by(nr).enumerate() {
                    let panel = &pb[j * nr * kc..(j + 1) * nr * kc];
                    for (i, mt) in (m0..m1).step_by(mr).enumerate() {
                        let height = mr.min(m1 - mt);
                        let block = &pa[i * mr * kc..][..height * kc];
                        multiply(level, height, kc, block, panel, &mut tile);
                        let width = nr.min(n1 - nt);
                        for r in 0..height {
                            let at = (mt + r) * stride + nt;
                            // SAFETY: this task alone writes rows × cols of the output.
                            let c = unsafe { out.part(at, width) };
                            let t = &tile[r * nr..][..width];
                            store(c, t, first, last, epilogue, nt, at);
                        }
                    }
                }
            }
        }
    }
}

#[inline(always)]
fn store(c: &mut [f32], t: &[f32], first: bool, last: bool, epilogue: Epilogue, n: usize, at: usize) {
    if first {
        c.copy_from_slice(t);
    } else {
        for (c, t) in c.iter_mut().zip(t) {
            *c += t;
        }
    }
    if last {
        if let Some(bias) = epilogue.bias {
            for (c, b) in c.iter_mut().zip(&bias[n..]) {
                *c += b;
            }
        }
        if let Some(residual) = epilogue.residual {
            for (c, r) in c.iter_mut().zip(&residual[at..]) {
                *c += r;
            }
        }
    }
}

/// One register tile: `tile[rows, nr] = block[kc, rows]ᵀ · panel[kc, nr]`.
fn multiply(level: Level, rows: usize, kc: usize, block: &[f32], panel: &[f32], tile: &mut [f32; TILE]) {
    match level {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the level was detected on this machine.
        Level::Avx512 => unsafe { avx512::multiply(rows, kc, block, panel, tile) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Level::Avx2 => unsafe { avx2::multiply(rows, kc, block, panel, tile) },
        _ => scalar::multiply(rows, kc, block, panel, tile),
    }
}

#[cfg(test)]
pub(crate) mod tests;
