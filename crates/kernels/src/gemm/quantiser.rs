//! Rows of A that are quantised while others are multiplied, a line at a time: what that takes (loads, comparisons,
//! conversions) keeps other units busy than those that multiply, so inside the micro-kernel it takes half of its time.

use super::LINE;
use super::pack::PER_LINE;
use std::ops::Range;

/// Words between two lines for which it is no slower than packing beside the multiplications; measured on the shapes of SD1.5
/// and SDXL.
const EVERY: Range<usize> = 8..128;

/// Rows on their way. Of each the largest magnitude is found line by line, while the row before it is quantised.
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
pub(crate) struct Quantiser<'a> {
    /// Largest magnitudes so far of the row that is looked at.
    most: [f32; LINE],
    /// What the row before it is multiplied by.
    inverse: f32,
    /// The rows, the lines of each, and the rows of a tile.
    source: &'a [f32],
    lines: usize,
    mr: usize,
    /// The row that is looked at, its next line, and where in the source that is.
    row: usize,
    line: usize,
    at: usize,
    /// Where they go, as in [`super::work`]; words of a block of the shared dimension.
    packed: &'a mut [f32],
    deep: usize,
    factors: &'a mut [f32],
    /// Place of the next line of the row that is quantised, its tile's first row and their number, and lines left in the block.
    out: usize,
    first: usize,
    tall: usize,
    left: usize,
    /// Words that are multiplied before each line, and before the next one.
    pub every: usize,
    pub due: usize,
}

impl<'a> Quantiser<'a> {
    /// For rows of `k` values, whole lines of them, in tiles of `mr` and blocks of `deep` words, while `words` are multiplied by
    /// whole tiles; none if these are too few, or so many that it is not worth while.
    ///
    /// # Panics
    /// If lengths do not fit.
    pub fn new(
        source: &'a [f32],
        (k, mr, deep): (usize, usize, usize),
        packed: &'a mut [f32],
        factors: &'a mut [f32],
        words: usize,
    ) -> Option<Self> {
        assert!(super::quantises(), "asked for where the machine can");
        let (rows, lines) = (factors.len(), k / PER_LINE);
        assert!(lines > 0 && k == lines * PER_LINE && source.len() == rows * k);
        assert!(mr > 0 && deep > 0 && deep % LINE == 0);
        assert!(packed.len() == rows * (lines * LINE).next_multiple_of(deep));
        let every = words / ((rows + 1) * lines);
        let new = Quantiser {
            most: [0.0; LINE],
            inverse: 0.0,
            source,
            lines,
            mr,
            row: 0,
            line: 0,
            at: 0,
            packed,
            deep,
            factors,
            out: 0,
            first: 0,
            tall: 0,
            left: 0,
            every,
            due: every,
        };
        EVERY.contains(&every).then_some(new)
    }

    /// What is left of all rows.
    pub fn finish(&mut self) {
        #[cfg(target_arch = "x86_64")]
        while self.row <= self.factors.len() {
            // SAFETY: only machines that have the features make one.
            unsafe { self.step() };
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{LINE, PER_LINE, Quantiser};
    use crate::gemm::pack::{ZERO, factor_of, inverse};
    use crate::lanes::ROUND;
    use crate::share::soon_used;
    use std::arch::asm;

    /// Values that are fetched before they are looked at.
    const SOON: usize = 16 * PER_LINE;

    /// What the instructions below have in memory.
    #[repr(C)]
    struct Constants {
        magnitude: u32,
        /// Added to a number, this leaves the nearest whole one, plus what bytes have too much, in its lowest bits.
        whole: f32,
    }

    static CONSTANTS: Constants = Constants { magnitude: i32::MAX as u32, whole: ROUND + ZERO as f32 };

    impl Quantiser<'_> {
        /// A line of the row that is looked at, and one of the row before it; nothing at the end. The same bits as
        /// [`super::super::pack::factor`] and the packing of one row after the other.
        ///
        /// Written as instructions: the compiler would take more registers than a tile leaves, and put sums into memory. Vectors
        /// are stored by their halves: on Zen 5 a whole one takes a cycle from the units that multiply, and these take none.
        ///
        /// # Safety
        /// The machine must have the features.
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
        #[inline]
        pub unsafe fn step(&mut self) {
            let rows = self.factors.len();
            if self.row > rows {
                return;
            }
            if self.row > 0 {
                let at = self.at - self.lines * PER_LINE;
                debug_assert!(at + PER_LINE <= self.source.len() && self.out + LINE <= self.packed.len());
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
                        inverse = in(reg) &self.inverse,
                        x = in(reg) self.source.as_ptr().add(at),
                        out = in(reg) self.packed.as_mut_ptr().add(self.out),
                        constants = in(reg) &CONSTANTS,
                        out("zmm29") _,
                        out("zmm30") _,
                        out("zmm31") _,
                        options(nostack, preserves_flags),
                    );
                }
                self.out += self.tall * LINE;
                self.left -= 1;
                if self.left == 0 {
                    // The next block of the row.
                    self.out += (rows - self.tall) * self.deep;
                    self.left = self.deep / LINE;
                }
            }
            if self.row < rows {
                debug_assert!(self.at + PER_LINE <= self.source.len());
                // SAFETY: as above.
                unsafe {
                    let x = self.source.as_ptr().add(self.at);
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
                        most = in(reg) self.most.as_mut_ptr(),
                        x = in(reg) x,
                        constants = in(reg) &CONSTANTS,
                        out("zmm29") _,
                        out("zmm30") _,
                        out("zmm31") _,
                        options(nostack, preserves_flags),
                    );
                    for line in 0..PER_LINE / LINE {
                        soon_used(x.wrapping_add(line * LINE + SOON));
                    }
                }
            }
            self.at += PER_LINE;
            self.line += 1;
            if self.line == self.lines {
                // SAFETY: the caller's promise.
                unsafe { self.end_of_row(rows) };
            }
        }

        /// The row that was looked at is the next one that is quantised.
        #[target_feature(enable = "avx512f,avx512vl")]
        #[inline]
        unsafe fn end_of_row(&mut self, rows: usize) {
            let most: u32;
            // SAFETY: the memory is this object's.
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
                    "vmovd {largest:e}, xmm29",
                    "vpxord xmm29, xmm29, xmm29",
                    "vextracti32x8 ymmword ptr [{most}], zmm29, 0",
                    "vextracti32x8 ymmword ptr [{most} + 32], zmm29, 1",
                    most = in(reg) self.most.as_mut_ptr(),
                    largest = out(reg) most,
                    out("zmm29") _,
                    out("zmm30") _,
                    options(nostack, preserves_flags),
                );
            }
            if self.row < rows {
                let factor = factor_of(f32::from_bits(most));
                // SAFETY: one for each row.
                unsafe { *self.factors.get_unchecked_mut(self.row) = factor };
                self.inverse = inverse(factor);
                if self.row == self.first + self.tall {
                    self.first = self.row;
                    self.tall = self.mr.min(rows - self.first);
                }
                self.out = self.first * self.deep + (self.row - self.first) * LINE;
                self.left = self.deep / LINE;
            }
            (self.row, self.line) = (self.row + 1, 0);
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
            let words = (rows + 1) * k / PER_LINE * EVERY.start;
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
