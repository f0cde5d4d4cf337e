//! Rows of A that are quantised while others are multiplied, a line at a time: what that takes (loads, comparisons,
//! conversions) keeps other units busy than those that multiply, so inside the micro-kernel it takes half of its time.

use super::LINE;
use super::pack::PER_LINE;
use std::marker::PhantomData;
use std::ops::Range;

/// Words between two lines for which it is no slower than packing beside the multiplications; measured on the shapes of SD1.5
/// and SDXL.
const EVERY: Range<usize> = 8..128;

/// Lines of a block of the shared dimension, at least: after each half or third of one the micro-kernel does something beside.
pub(super) const LEAST: usize = 5;

/// Lines of rows that are quantised by whole rows or whole parts of rows beside each tile: their ends are where they were in the
/// tile before, and a branch that is not foreseen costs much more than a line.
const FEW: usize = 10;

/// Rows on their way. Of each the largest magnitude is found line by line, while the row before it is quantised.
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
pub(crate) struct Quantiser<'a> {
    pub lines: Lines,
    pub seen: Seen,
    /// What the pointers of the lines point to.
    _rows: PhantomData<(&'a [f32], &'a mut [f32])>,
}

/// What is in memory between two lines.
pub(crate) struct Seen {
    /// Largest magnitudes so far of the row that is looked at.
    most: [f32; LINE],
    /// What the row before it is multiplied by.
    inverse: f32,
}

/// Where the next line is. All of it changes, and nobody is told where it is: so a micro-kernel has it in registers.
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
#[derive(Clone, Copy)]
pub(crate) struct Lines {
    /// The next line of the row that is looked at, and the lines of a row.
    at: *const f32,
    of_row: usize,
    /// Those left in it, the row, and how many there are.
    line: usize,
    row: usize,
    rows: usize,
    /// Where the next line of the row before goes, how far on the one after it, and lines left in the block.
    out: *mut f32,
    next: usize,
    left: usize,
    /// Rows of a tile, and words of a block of the shared dimension; the packed rows, as in [`super::work`], and their factors.
    mr: usize,
    deep: usize,
    packed: *mut f32,
    factors: *mut f32,
    /// The first row of the tile of the row that is quantised, and their number.
    first: usize,
    tall: usize,
    /// Lines beside each tile.
    per: usize,
}

impl<'a> Quantiser<'a> {
    /// For rows of `k` values, whole lines of them, in tiles of `mr` and blocks of `deep` words, while so many words are multiplied by
    /// so many whole tiles; none if these are too few, or so many that it is not worth while.
    ///
    /// # Panics
    /// If lengths do not fit.
    pub fn new(
        source: &'a [f32],
        (k, mr, deep): (usize, usize, usize),
        packed: &'a mut [f32],
        factors: &'a mut [f32],
        (words, tiles): (usize, usize),
    ) -> Option<Self> {
        assert!(super::quantises(), "asked for where the machine can");
        let (rows, of_row) = (factors.len(), k / PER_LINE);
        assert!(of_row > 0 && k == of_row * PER_LINE && source.len() == rows * k);
        assert!(mr > 0 && deep > 0 && deep % LINE == 0);
        assert!(packed.len() == rows * (of_row * LINE).next_multiple_of(deep));
        let all = (rows + 1) * of_row;
        let per = all.div_ceil(tiles.max(1));
        let per = match of_row {
            ..=FEW if per < of_row => of_row.div_ceil(of_row / per),
            ..=FEW => per.next_multiple_of(of_row),
            _ => per,
        };
        let lines = Lines {
            at: source.as_ptr(),
            of_row,
            line: of_row,
            row: 0,
            rows,
            out: packed.as_mut_ptr(),
            next: 0,
            left: 0,
            mr,
            deep,
            packed: packed.as_mut_ptr(),
            factors: factors.as_mut_ptr(),
            first: 0,
            tall: 0,
            per,
        };
        let seen = Seen { most: [0.0; LINE], inverse: 0.0 };
        EVERY.contains(&(words / all)).then_some(Quantiser { lines, seen, _rows: PhantomData })
    }

    /// What is left of all rows.
    pub fn finish(&mut self) {
        #[cfg(target_arch = "x86_64")]
        while self.lines.row <= self.lines.rows {
            // SAFETY: only machines that have the features make one.
            unsafe { self.lines.step(&mut self.seen) };
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{LINE, Lines, PER_LINE, Seen};
    use crate::gemm::pack::ZERO;
    use crate::lanes::ROUND;
    use crate::share::soon_used;
    use std::arch::asm;
    use std::ptr::{null, null_mut};

    /// Values that are fetched before they are looked at.
    const SOON: usize = 16 * PER_LINE;

    /// What the instructions below have in memory.
    #[repr(C)]
    struct Constants {
        magnitude: u32,
        /// Added to a number, this leaves the nearest whole one, plus what bytes have too much, in its lowest bits.
        whole: f32,
        /// The largest byte, 1, and no number.
        largest: f32,
        one: f32,
        none: f32,
    }

    static CONSTANTS: Constants = Constants {
        magnitude: i32::MAX as u32,
        whole: ROUND + ZERO as f32,
        largest: 127.0,
        one: 1.0,
        none: f32::NAN,
    };

    impl Lines {
        /// Nothing.
        pub const NONE: Self = Lines {
            at: null(),
            of_row: 0,
            line: 0,
            row: 1,
            rows: 0,
            out: null_mut(),
            next: 0,
            left: 0,
            mr: 0,
            deep: 0,
            packed: null_mut(),
            factors: null_mut(),
            first: 0,
            tall: 0,
            per: 0,
        };

        /// Lines beside the next tile.
        #[inline(always)]
        pub fn beside(&self) -> usize {
            if self.row > self.rows { 0 } else { self.per }
        }

        /// A line of the row that is looked at, and one of the row before it; nothing at the end. The same bits as
        /// [`super::super::pack::factor`] and the packing of one row after the other.
        ///
        /// Written as instructions: the compiler would take more registers than a tile leaves, and put sums into memory. Vectors
        /// are stored by their halves: on Zen 5 a whole one takes a cycle from the units that multiply, and these take none.
        ///
        /// # Safety
        /// The machine must have the features; the rows and their places must be there, as [`super::Quantiser::new`] checks.
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
        #[inline]
        pub unsafe fn step(&mut self, seen: *mut Seen) {
            if self.row > self.rows {
                return;
            }
            if self.row > 0 {
                // SAFETY: by the lengths that were checked at the beginning, as above.
                unsafe {
                    asm!(
                        "vbroadcastss zmm29, dword ptr [{inverse}]",
                        "vbroadcastss zmm30, dword ptr [{constants} + 4]",
                        "vmulps zmm31, zmm29, zmmword ptr [{x}]",
                        "vaddps zmm31, zmm31, zmm30",
                        "vpmovdb xmmword ptr [{out}], zmm31",
                        "vmulps zmm31, zmm29, zmmword ptr [{x} + 64]",
                        "vaddps zmm31, zmm31, zmm30",
                        "vpmovdb xmmword ptr [{out} + 16], zmm31",
                        "vmulps zmm31, zmm29, zmmword ptr [{x} + 128]",
                        "vaddps zmm31, zmm31, zmm30",
                        "vpmovdb xmmword ptr [{out} + 32], zmm31",
                        "vmulps zmm31, zmm29, zmmword ptr [{x} + 192]",
                        "vaddps zmm31, zmm31, zmm30",
                        "vpmovdb xmmword ptr [{out} + 48], zmm31",
                        inverse = in(reg) &raw const (*seen).inverse,
                        x = in(reg) self.at.wrapping_sub(self.of_row * PER_LINE),
                        out = in(reg) self.out,
                        constants = in(reg) &CONSTANTS,
                        out("zmm29") _,
                        out("zmm30") _,
                        out("zmm31") _,
                        options(nostack, preserves_flags),
                    );
                }
                self.out = self.out.wrapping_add(self.next);
                self.left -= 1;
                if self.left == 0 {
                    // The next block of the row.
                    self.out = self.out.wrapping_add((self.rows - self.tall) * self.deep);
                    self.left = self.deep / LINE;
                }
            }
            if self.row < self.rows {
                // SAFETY: as above.
                unsafe {
                    asm!(
                        "vmovdqu64 zmm29, zmmword ptr [{most}]",
                        "vpbroadcastd zmm31, dword ptr [{constants}]",
                        "vpandd zmm30, zmm31, zmmword ptr [{x}]",
                        "vpmaxud zmm29, zmm29, zmm30",
                        "vpandd zmm30, zmm31, zmmword ptr [{x} + 64]",
                        "vpmaxud zmm29, zmm29, zmm30",
                        "vpandd zmm30, zmm31, zmmword ptr [{x} + 128]",
                        "vpmaxud zmm29, zmm29, zmm30",
                        "vpandd zmm30, zmm31, zmmword ptr [{x} + 192]",
                        "vpmaxud zmm29, zmm29, zmm30",
                        "vextracti32x8 ymmword ptr [{most}], zmm29, 0",
                        "vextracti32x8 ymmword ptr [{most} + 32], zmm29, 1",
                        most = in(reg) &raw mut (*seen).most,
                        x = in(reg) self.at,
                        constants = in(reg) &CONSTANTS,
                        out("zmm29") _,
                        out("zmm30") _,
                        out("zmm31") _,
                        options(nostack, preserves_flags),
                    );
                }
                for line in 0..PER_LINE / LINE {
                    soon_used(self.at.wrapping_add(line * LINE + SOON));
                }
            }
            self.at = self.at.wrapping_add(PER_LINE);
            self.line -= 1;
            if self.line == 0 {
                // SAFETY: the caller's promise.
                unsafe { self.end_of_row(seen) };
            }
        }

        /// The row that was looked at is the next one that is quantised.
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
        #[inline]
        unsafe fn end_of_row(&mut self, seen: *mut Seen) {
            if self.row < self.rows {
                // SAFETY: the memory is what was seen, and one factor for each row.
                unsafe {
                    asm!(
                        "vmovdqu32 ymm29, ymmword ptr [{most}]",
                        "vpmaxud ymm29, ymm29, ymmword ptr [{most} + 32]",
                        "vextracti32x4 xmm30, ymm29, 1",
                        "vpmaxud xmm29, xmm29, xmm30",
                        "vpshufd xmm30, xmm29, 0x4e",
                        "vpmaxud xmm29, xmm29, xmm30",
                        "vpshufd xmm30, xmm29, 0xb1",
                        "vpmaxud xmm29, xmm29, xmm30",
                        // As `factor_of` and `inverse`, without a branch.
                        "vdivss xmm29, xmm29, dword ptr [{constants} + 8]",
                        "vmovss xmm30, dword ptr [{constants} + 12]",
                        "vdivss xmm30, xmm30, xmm29",
                        // Infinite, or not a number.
                        "vfpclassss k1, xmm29, 0x99",
                        "vfpclassss k2, xmm30, 0x99",
                        "knotw k3, k2",
                        "vmovaps xmm29 {{k3}} {{z}}, xmm29",
                        "vbroadcastss xmm29 {{k1}}, dword ptr [{constants} + 16]",
                        "vmovss dword ptr [{factor}], xmm29",
                        "kandnw k3, k1, k3",
                        "vmovaps xmm30 {{k3}} {{z}}, xmm30",
                        "vmovss dword ptr [{inverse}], xmm30",
                        "vpxord zmm29, zmm29, zmm29",
                        "vextracti32x8 ymmword ptr [{most}], zmm29, 0",
                        "vextracti32x8 ymmword ptr [{most} + 32], zmm29, 1",
                        most = in(reg) &raw mut (*seen).most,
                        inverse = in(reg) &raw mut (*seen).inverse,
                        factor = in(reg) self.factors.add(self.row),
                        constants = in(reg) &CONSTANTS,
                        out("k1") _,
                        out("k2") _,
                        out("k3") _,
                        out("zmm29") _,
                        out("zmm30") _,
                        options(nostack, preserves_flags),
                    );
                }
                if self.row == self.first + self.tall {
                    self.first = self.row;
                    self.tall = self.mr.min(self.rows - self.first);
                    self.next = self.tall * LINE;
                }
                self.out = self.packed.wrapping_add(self.first * self.deep + (self.row - self.first) * LINE);
                self.left = self.deep / LINE;
            }
            (self.row, self.line) = (self.row + 1, self.of_row);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gemm::pack::{Int8Rows, Rows};
    use crate::gemm::tests::{fixed_level, noise};
    use crate::gemm::{Left, quantises};

    #[test]
    fn lines_and_factors_are_those_of_packing_row_by_row() {
        let _fixed_level = fixed_level();
        if !quantises() {
            return println!("ignored: this machine quantises no rows meanwhile");
        }
        let mr = 14;
        for (rows, k, deep) in [(1, 64, 16), (14, 320, 80), (33, 320, 80), (57, 2560, 320), (29, 1600, 208)] {
            let mut a = noise(rows * k, k as u64);
            // Rows of nothing, of what is too small to divide by, and of what is not finite.
            a[..k].fill(0.0);
            if rows > 20 {
                a[3 * k..4 * k].fill(1e-44);
                (a[15 * k + 7], a[16 * k + 64]) = (f32::NAN, f32::NEG_INFINITY);
            }
            let room = (k / 4).next_multiple_of(deep);
            let (mut packed, mut factors) = (vec![0.0; rows * room], vec![0.0; rows]);
            let words = ((rows + 1) * k / PER_LINE * EVERY.start, 1);
            let mut quantiser =
                Quantiser::new(&a, (k, mr, deep), &mut packed, &mut factors, words).expect("enough words");
            quantiser.finish();
            let left = Int8Rows(Rows::new(&a, k, 4));
            for r in 0..rows {
                let factor = left.factor(r);
                assert_eq!(factors[r].to_bits(), factor.to_bits(), "{rows}x{k}: factor of row {r}");
                if factor.is_nan() {
                    continue;
                }
                let first = r / mr * mr;
                let tall = mr.min(rows - first);
                let mut want = vec![0.0; k / 4];
                crate::gemm::pack::lines_int8(
                    &a[r * k..][..k],
                    crate::gemm::inverse(factor),
                    &mut want,
                    LINE,
                );
                for (i, line) in want.chunks(LINE).enumerate() {
                    let (block, line_of) = (i / (deep / LINE), i % (deep / LINE));
                    let at = (rows * block + first) * deep + (line_of * tall + r - first) * LINE;
                    let bits = |x: &[f32]| x.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
                    assert_eq!(bits(&packed[at..at + LINE]), bits(line), "{rows}x{k}: row {r}, line {i}");
                }
            }
        }
    }
}
