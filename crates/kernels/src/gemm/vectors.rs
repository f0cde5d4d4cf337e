//! The frame of the micro-kernels for AVX2 and NEON: a tile of up to 6 × 16.

/// Columns of the tile.
pub(super) const NR: usize = 16;

/// One micro-kernel, of `$count` vectors a row, which are read, written and filled by `$load`, `$store` and `$splat`:
/// `$fma(sums, a, b)` adds the products of a broadcast word of A to a vector of sums, `$add` adds sums; each sum begins with what
/// `$first(b, words)` makes of its column's words, so many, each 16 after the one before.
macro_rules! kernel {
    ($(#[$doc:meta])* $name:ident, $features:literal, $count:literal of ($load:ident, $store:ident, $splat:ident),
     $fma:expr, $add:expr, $first:expr) => {
        $(#[$doc])*
        ///
        /// # Safety
        /// The machine must have the features of the kernel.
        #[target_feature(enable = $features)]
        pub(in crate::gemm) unsafe fn $name(
            (rows, kc, _): (usize, usize, usize),
            (block, panel): (&[f32], &[f32]),
            sums: &mut [f32],
            more: bool,
            soon: &$crate::gemm::soon::Soon,
            _: Option<&$crate::gemm::finish::Tile>,
        ) -> bool {
            use $crate::gemm::{LINE, vectors::NR};
            const WIDTH: usize = NR / $count;
            #[target_feature(enable = $features)]
            #[inline]
            unsafe fn tile_of<const MR: usize>(kc: usize, a: *const f32, mut b: *const f32, t: *mut f32, more: bool) {
                // SAFETY: the caller checked that MR rows of kc words in whole lines, kc · NR and MR · NR words are there.
                unsafe {
                    let mut first = [$splat(0.0); $count];
                    for (i, first) in first.iter_mut().enumerate() {
                        *first = $first(b.add(i * WIDTH), kc);
                    }
                    let mut sum = [first; MR];
                    for w in 0..kc {
                        let a = a.add(w / LINE * MR * LINE + w % LINE);
                        let mut right = [$splat(0.0); $count];
                        for (i, right) in right.iter_mut().enumerate() {
                            *right = $load(b.add(i * WIDTH));
                        }
                        for (r, sum) in sum.iter_mut().enumerate() {
                            let v = $splat(*a.add(r * LINE));
                            for (sum, right) in sum.iter_mut().zip(right) {
                                *sum = $fma(*sum, v, right);
                            }
                        }
                        b = b.add(NR);
                    }
                    for (r, sum) in sum.iter().enumerate() {
                        for (i, sum) in sum.iter().enumerate() {
                            let at = t.add(r * NR + i * WIDTH);
                            let sum = if more { $add($load(at), *sum) } else { *sum };
                            $store(at, sum);
                        }
                    }
                }
            }
            soon.fetch();
            assert!(block.len() >= rows * kc.next_multiple_of(LINE) && panel.len() >= kc * NR && sums.len() >= rows * NR);
            let (a, b, t) = (block.as_ptr(), panel.as_ptr(), sums.as_mut_ptr());
            // SAFETY: the lengths were checked above for this number of rows.
            unsafe {
                match rows {
                    1 => tile_of::<1>(kc, a, b, t, more),
                    2 => tile_of::<2>(kc, a, b, t, more),
                    3 => tile_of::<3>(kc, a, b, t, more),
                    4 => tile_of::<4>(kc, a, b, t, more),
                    5 => tile_of::<5>(kc, a, b, t, more),
                    6 => tile_of::<6>(kc, a, b, t, more),
                    _ => unreachable!("a tile has at most 6 rows"),
                }
            }
            false
        }
    };
}
pub(super) use kernel;
