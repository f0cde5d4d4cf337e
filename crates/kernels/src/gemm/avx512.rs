//! The micro-kernel for AVX-512: a tile of up to 14 × 32, two vectors wide.

use std::arch::x86_64::*;

/// Columns of the tile.
const NR: usize = 32;

/// See [`super::scalar::multiply`].
///
/// # Safety
/// The machine must have AVX-512.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn multiply(rows: usize, kc: usize, block: &[f32], panel: &[f32], tile: &mut [f32]) {
    assert!(block.len() >= kc * rows && panel.len() >= kc * NR && tile.len() >= rows * NR);
    let (a, b, t) = (block.as_ptr(), panel.as_ptr(), tile.as_mut_ptr());
    // SAFETY: the lengths were checked above for this number of rows.
    unsafe {
        match rows {
            1 => tile_of::<1>(kc, a, b, t),
            2 => tile_of::<2>(kc, a, b, t),
            3 => tile_of::<3>(kc, a, b, t),
            4 => tile_of::<4>(kc, a, b, t),
            5 => tile_of::<5>(kc, a, b, t),
            6 => tile_of::<6>(kc, a, b, t),
            7 => tile_of::<7>(kc, a, b, t),
            8 => tile_of::<8>(kc, a, b, t),
            9 => tile_of::<9>(kc, a, b, t),
            10 => tile_of::<10>(kc, a, b, t),
            11 => tile_of::<11>(kc, a, b, t),
            12 => tile_of::<12>(kc, a, b, t),
            13 => tile_of::<13>(kc, a, b, t),
            14 => tile_of::<14>(kc, a, b, t),
            _ => unreachable!("a tile has at most 14 rows"),
        }
    }
}

#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn tile_of<const MR: usize>(kc: usize, mut a: *const f32, mut b: *const f32, t: *mut f32) {
    // SAFETY: the caller checked that kc · MR, kc · NR and MR · NR elements are there.
    unsafe {
        let mut sum = [[_mm512_setzero_ps(); 2]; MR];
        for _ in 0..kc {
            let (b0, b1) = (_mm512_loadu_ps(b), _mm512_loadu_ps(b.add(NR / 2)));
            for (r, sum) in sum.iter_mut().enumerate() {
                let v = _mm512_set1_ps(*a.add(r));
                sum[0] = _mm512_fmadd_ps(v, b0, sum[0]);
                sum[1] = _mm512_fmadd_ps(v, b1, sum[1]);
            }
            a = a.add(MR);
            b = b.add(NR);
        }
        for (r, sum) in sum.iter().enumerate() {
            _mm512_storeu_ps(t.add(r * NR), sum[0]);
            _mm512_storeu_ps(t.add(r * NR + NR / 2), sum[1]);
        }
    }
}
