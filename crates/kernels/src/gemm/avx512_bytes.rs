//! The micro-kernel for bytes in whole tiles: while a tile is multiplied, the one before it is finished, row by row, and the next
//! rows are quantised, line by line.
//!
//! Beside multiplications only what multiplies takes time, where all rows of a tile finished in one go take that of all their
//! instructions. But a processor takes in no more than five or six instructions a cycle (measured on a Zen 5), of which
//! multiplications with what they load are three: what is done beside must be few instructions, and always the same at the same
//! place, for a branch that is not foreseen costs as much as a row.

use super::LINE;
use super::avx512::{NR, TAIL, add_i32, fma_int8};
use super::finish::{Common, Known, Tile};
use super::quantiser::{LEAST, Lines};
use super::soon::Soon;
use crate::act::{GELU, GELU_END, QUARTERS};
use crate::lanes::{Avx512, Lanes};
use crate::share::soon_used;
use std::arch::{asm, x86_64::*};
use std::mem::{MaybeUninit, offset_of};

/// Rows of a tile.
const ROWS: usize = 14;

/// What the instructions below have in memory.
#[repr(C, align(64))]
struct Constants {
    gelu: [[f32; 16]; 3],
    end: f32,
    quarters: f32,
}

static CONSTANTS: Constants = Constants { gelu: GELU, end: GELU_END, quarters: QUARTERS };

/// Sums of a tile.
#[repr(C, align(64))]
struct Sums(MaybeUninit<[f32; ROWS * NR]>);

/// True if [`tiles`] can multiply so many words.
pub(super) fn takes(kc: usize) -> bool {
    kc % LINE == 0 && kc >= LEAST * LINE
}

/// A vector of values as [`Common::row`] has them: of sums, and of what is known of columns `$half` bytes on.
macro_rules! value {
    ($to:literal, $factor:literal, $half:literal) => {
        concat!(
            concat!("vbroadcastss ", $factor, ", dword ptr [{factor}]\n"),
            concat!("vmulps ", $factor, ", ", $factor, ", zmmword ptr [{common} + {by} + ", $half, "]\n"),
            concat!("vmovdqa64 ", $to, ", zmmword ptr [{sums} + ", $half, "]\n"),
            concat!("vpsubd ", $to, ", ", $to, ", zmmword ptr [{common} + {zeros} + ", $half, "]\n"),
            concat!("vcvtdq2ps ", $to, ", ", $to, "\n"),
            concat!("vfmadd213ps ", $to, ", ", $factor, ", zmmword ptr [{common} + {bias} + ", $half, "]\n"),
        )
    };
}

/// Finishes a row of sums of [`Known::Keep`] or [`Known::Gate`] and writes it: the same bits as [`super::finish::finish`]. What
/// is `ahead` of its output and of what is added to it will be used soon.
///
/// Written as instructions: the compiler would take more registers than a tile leaves, and put sums into memory.
///
/// # Safety
/// The machine must have AVX-512; the row's part of the output must be the caller's alone.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
#[inline]
unsafe fn finish_row(
    common: &Common<Avx512<true>>,
    known: Known,
    (sums, factor): (*const f32, *const f32),
    (out, residual, ahead): (*mut f32, *const f32, usize),
) {
    macro_rules! row {
        ($($lines:expr,)* => $($more:tt)*) => {
            asm!(
                $($lines,)*
                factor = in(reg) factor,
                sums = in(reg) sums,
                common = in(reg) common,
                by = const offset_of!(Common<Avx512<true>>, by),
                zeros = const offset_of!(Common<Avx512<true>>, zeros),
                bias = const offset_of!(Common<Avx512<true>>, bias),
                out = in(reg) out,
                ahead = in(reg) ahead,
                out("zmm28") _,
                out("zmm29") _,
                out("zmm30") _,
                out("zmm31") _,
                options(nostack, preserves_flags),
                $($more)*
            )
        };
    }
    // SAFETY: `Common` has checked that all rows are inside.
    unsafe {
        if known == Known::Gate {
            row!(
                value!("zmm28", "zmm31", 64),
                // As `gelu_short_lanes`; the first one is the lesser magnitude.
                "vrangeps zmm29, zmm28, dword ptr [{constants} + {end}]{{1to16}}, 10",
                "vpxord zmm30, zmm30, zmm30",
                "vmaxps zmm28, zmm30, zmm28",
                "vaddps zmm30, zmm29, dword ptr [{constants} + {quarters}]{{1to16}}",
                "vpermps zmm31, zmm30, zmmword ptr [{constants}]",
                "vpermps zmm30, zmm30, zmmword ptr [{constants} + 64]",
                "vfmadd213ps zmm31, zmm29, zmm30",
                "vaddps zmm30, zmm29, dword ptr [{constants} + {quarters}]{{1to16}}",
                "vpermps zmm30, zmm30, zmmword ptr [{constants} + 128]",
                "vaddps zmm28, zmm30, zmm28",
                "vfmadd231ps zmm28, zmm29, zmm31",
                value!("zmm30", "zmm29", 0),
                "vmulps zmm30, zmm30, zmm28",
                "vmovups zmmword ptr [{out}], zmm30",
                "prefetcht0 byte ptr [{out} + {ahead}]",
                =>
                constants = in(reg) &CONSTANTS,
                end = const offset_of!(Constants, end),
                quarters = const offset_of!(Constants, quarters),
            );
        } else {
            // `$added` and `$soon` are there where something is added.
            macro_rules! keep {
                ([$($added:literal)*] [$($soon:literal)*] $($more:tt)*) => {
                    row!(
                        value!("zmm28", "zmm29", 0),
                        value!("zmm30", "zmm31", 64),
                        $($added,)*
                        "vmovups zmmword ptr [{out}], zmm28",
                        "vmovups zmmword ptr [{out} + 64], zmm30",
                        "prefetcht0 byte ptr [{out} + {ahead}]",
                        "prefetcht0 byte ptr [{out} + {ahead} + 64]",
                        $($soon,)*
                        =>
                        $($more)*
                    )
                };
            }
            if common.adds {
                keep!(
                    ["vaddps zmm28, zmm28, zmmword ptr [{residual}]" "vaddps zmm30, zmm30, zmmword ptr [{residual} + 64]"]
                    ["prefetcht0 byte ptr [{residual} + {ahead}]" "prefetcht0 byte ptr [{residual} + {ahead} + 64]"]
                    residual = in(reg) residual,
                );
            } else {
                keep!([] []);
            }
        }
    }
}

/// See [`super::scalar::int8`]; of whole tiles, as many words as [`takes`] says, and panels of as many.
///
/// # Safety
/// The machine must have the features; `tiles` tiles of ROWS rows of `kc` words must be at `a`, `apart` words from one to the next,
/// a panel of as many words at `panel`, and places for the tiles' sums at `t`.
#[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx512vnni,avx2,fma,f16c")]
pub(super) unsafe fn tiles(
    shape: (usize, usize),
    a: (*const f32, usize),
    panel: *const f32,
    t: *mut f32,
    more: bool,
    soon: &Soon,
    last: Option<&Tile>,
) -> bool {
    // SAFETY: the caller's promises.
    unsafe {
        match shape.0 / LINE {
            ..7 => tiles_of::<3, false>(shape, a, panel, t, more, soon, last),
            7..ROWS => tiles_of::<2, false>(shape, a, panel, t, more, soon, last),
            _ => tiles_of::<2, true>(shape, a, panel, t, more, soon, last),
        }
    }
}

/// The same with lines of A in so many parts, after each of which something is done beside; or after some, all as far from each
/// other as there is room: a processor waits for only so much of what it fetches.
///
/// # Safety
/// As [`tiles`].
#[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn tiles_of<const SPLITS: usize, const SPREAD: bool>(
    (kc, tiles): (usize, usize),
    (a, apart): (*const f32, usize),
    panel: *const f32,
    t: *mut f32,
    more: bool,
    soon: &Soon,
    last: Option<&Tile>,
) -> bool {
    let known = last.map_or(Known::Other, |tile| Known::of::<Avx512<true>>(tile, ROWS * tiles, true));
    let lines = kc / LINE;
    let mut quantiser = soon.quantiser.take();
    let (mut next, seen) = match &mut quantiser {
        Some(quantiser) => (quantiser.lines, &raw mut quantiser.seen),
        None => (Lines::NONE, std::ptr::null_mut()),
    };
    // SAFETY: the caller's promises; only machines that have the features make a quantiser.
    unsafe {
        let common = match last {
            Some(tile) if known != Known::Other => Some(Common::of::<true>(tile)),
            _ => None,
        };
        let mut sums = Sums(MaybeUninit::uninit());
        let sums = sums.0.as_mut_ptr().cast::<f32>();
        // Rows of the tile before that wait, the first one's factor, the next one's place, and how far what is added is from it.
        let mut waiting = 0;
        let (mut factors, mut out, added, stride) = match &common {
            Some(c) => (c.factors, c.out, c.residual.addr().wrapping_sub(c.out.addr()), c.stride),
            None => (std::ptr::null(), std::ptr::null_mut(), 0, 0),
        };
        let ahead = 4 * ROWS * stride;
        soon.runs[..2].iter().for_each(|run| run.fetch(0));
        let [_, _, first, second, rest @ ..] = soon.runs;
        let ends = [first.lines, second.lines];
        let parts = lines * SPLITS;
        for i in 0..tiles {
            rest.iter().for_each(|run| run.fetch(i));
            let runs = [first.at(i), second.at(i)];
            let beside = next.beside();
            let a = a.add(i * apart);
            let (mut v, mut b) = (a, panel);
            // The lines after these, some twice, for there are as many words as two lines more: in the end those of the next tile.
            let mut later = a.wrapping_add(ROWS * LINE);
            let mut sum = [[_mm512_setzero_ps(); 2]; ROWS];
            let (mut row, mut rows_at, mut lines_at) = (0, 0, 0);
            let mut part = 0;
            for line in 0..lines {
                for split in 0..SPLITS {
                    let words = match (split + 1 < SPLITS, line + 1 < lines) {
                        (true, _) => LINE / SPLITS,
                        (false, true) => LINE - (SPLITS - 1) * (LINE / SPLITS),
                        (false, false) => LINE - (SPLITS - 1) * (LINE / SPLITS) - TAIL,
                    };
                    for _ in 0..words {
                        let (b0, b1) = (_mm512_loadu_ps(b), _mm512_loadu_ps(b.add(NR / 2)));
                        for (r, sum) in sum.iter_mut().enumerate() {
                            let v = _mm512_set1_ps(*v.add(r * LINE));
                            sum[0] = fma_int8(sum[0], v, b0);
                            sum[1] = fma_int8(sum[1], v, b1);
                        }
                        soon_used(later);
                        (v, b, later) = (v.add(1), b.add(NR), later.wrapping_add(ROWS));
                    }
                    let (row_due, line_due) = if SPREAD {
                        (rows_at, lines_at) = (rows_at + ROWS, lines_at + beside);
                        (rows_at >= parts, lines_at >= parts)
                    } else {
                        (true, part < beside)
                    };
                    if row_due {
                        let now = if SPREAD { row } else { part };
                        if now < waiting {
                            // Where rows wait there is one.
                            let common = common.as_ref().unwrap_unchecked();
                            let residual = out.wrapping_byte_add(added);
                            let of = (sums.add(now * NR).cast_const(), factors.add(now));
                            finish_row(common, known, of, (out, residual, ahead));
                            out = out.wrapping_add(stride);
                        }
                        if SPREAD {
                            (row, rows_at) = (row + 1, rows_at - parts);
                        }
                    }
                    if line_due {
                        next.step(seen);
                        if SPREAD {
                            lines_at -= parts;
                        }
                    }
                    let mut l = part;
                    while l < ends[0] {
                        soon_used(runs[0].wrapping_add(l * LINE));
                        l += parts;
                    }
                    let mut l = part;
                    while l < ends[1] {
                        soon_used(runs[1].wrapping_add(l * LINE));
                        l += parts;
                    }
                    part += 1;
                }
                v = v.wrapping_add((ROWS - 1) * LINE);
            }
            let v = a.add((lines - 1) * ROWS * LINE + LINE - TAIL);
            let t = t.add(i * ROWS * NR);
            let to = if common.is_some() { sums } else { t };
            // Written out, for the compiler leaves a loop of so much as one, and then the sums are not in registers.
            macro_rules! each {
                ($($r:literal)*) => {$(
                    let [mut low, mut high] = sum[$r];
                    for i in 0..TAIL {
                        let v = _mm512_set1_ps(*v.add($r * LINE + i));
                        low = fma_int8(low, v, _mm512_loadu_ps(b.add(i * NR)));
                        high = fma_int8(high, v, _mm512_loadu_ps(b.add(i * NR + NR / 2)));
                    }
                    if more {
                        low = add_i32(_mm512_loadu_ps(t.add($r * NR)), low);
                        high = add_i32(_mm512_loadu_ps(t.add($r * NR + NR / 2)), high);
                    }
                    Avx512::<true>(low).store(to.add($r * NR));
                    Avx512::<true>(high).store(to.add($r * NR + NR / 2));
                )*};
            }
            each!(0 1 2 3 4 5 6 7 8 9 10 11 12 13);
            if common.is_some() {
                factors = factors.wrapping_add(waiting);
                waiting = ROWS;
            }
        }
        if let Some(common) = &common {
            for part in 0..ROWS {
                let row = (sums.add(part * NR).cast_const(), factors.add(part));
                finish_row(common, known, row, (out, out.wrapping_byte_add(added), 0));
                out = out.wrapping_add(stride);
            }
        }
        if let Some(quantiser) = quantiser {
            quantiser.lines = next;
        }
    }
    known != Known::Other
}
