//! Element-wise functions.

mod lanes;

pub(crate) use lanes::{
    exp2_lanes, exp2_short_lanes, gelu_lanes, gelu_short_lanes, quick_gelu_lanes, silu_lanes,
};

use crate::lanes::{Lanes, on_lanes};

/// Elements handed to one task: large enough to hide the hand-over, small enough to stay in cache.
const CHUNK: usize = 1 << 14;

/// The logarithm of 2 in two parts, of which the first has so few digits that whole multiples of it are exact.
const LN2_HIGH: f32 = 0.693_359_4;
const LN2_LOW: f32 = -2.121_944_4e-4;
/// Of `(eʳ - 1 - r) / r²`, the highest power first.
const EXP: [f32; 6] = [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];

/// The error function, within 4 ulp: the rational approximation of Eigen's `generic_fast_erf` on |x| ≤ 4, x times the first
/// polynomial in x² over the second, the highest powers first.
const ERF: ([f32; 7], [f32; 5]) = (
    [
        -2.726_142_3e-10,
        2.770_681_4e-8,
        -2.101_024e-6,
        -5.692_506_4e-5,
        -7.349_906_3e-4,
        -2.954_6e-3,
        -1.609_603_3e-2,
    ],
    [-1.456_607_2e-5, -2.133_740_6e-4, -1.682_827e-3, -7.373_329e-3, -1.426_473_9e-2],
);
/// From here on it rounds to 1 in f32.
const ERF_SATURATED: f32 = 3.93;

/// What GELU lacks of max(x, 0), -|x| · Φ(-|x|), on 0..[`GELU_END`], around each quarter a parabola in |x|: its coefficients, the
/// highest power first. Of the parabolas those with the least error, 6.3e-5 and beyond the end 1.04e-4; around 0 with the least
/// error relative to x, 2.5e-5 (linear programs on 400 Chebyshev points each).
#[rustfmt::skip]
pub(crate) const GELU: [[f32; 16]; 3] = [
    [
        3.979_058e-1, 3.734_640_8e-1, 3.073_957_6e-1, 2.163_489e-1, 1.213_771_4e-1, 4.062_046_5e-2, -1.548_656_8e-2, -4.527_198e-2,
        -5.369_688_2e-2, -4.844_905_8e-2, -3.723_868_4e-2, -2.535_124_5e-2, -1.559_058_2e-2, -8.755_523e-3, -4.518_238e-3, -5.359_297e-3,
    ],
    [
        -4.999_751e-1, -4.920_990_8e-1, -4.411_86e-1, -3.268_101_5e-1, -1.608_538_6e-1, 2.002_471e-2, 1.732_647_6e-1, 2.691_007e-1,
        3.000_187_3e-1, 2.773_575_5e-1, 2.239_964_6e-1, 1.616_331_5e-1, 1.056_189_5e-1, 6.301_29e-2, 3.449_9e-2, 4.229_275e-2,
    ],
    [
        0.0, -6.366_381_4e-4, -1.052_263_3e-2, -4.655_886_4e-2, -1.191_797_55e-1, -2.205_646_6e-1, -3.252_653_5e-1, -4.023_860_4e-1,
        -4.307_508e-1, -4.062_867e-1, -3.427_735_3e-1, -2.609_665_4e-1, -1.805_910_8e-1, -1.141_868_3e-1, -6.621_217e-2, -8.351_415e-2,
    ],
];
/// Beyond it what lacks stays what it is there. It is nearer to the last quarter than to the next.
pub(crate) const GELU_END: f32 = 3.874;
/// Added to a number below 2¹⁹, this leaves its nearest quarter in the lowest bits.
pub(crate) const QUARTERS: f32 = 1.5 * (1 << 21) as f32;

/// Activation functions of the networks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// x · σ(x).
    Silu,
    /// x · Φ(x), the exact form.
    Gelu,
    /// x · σ(1.702 x), CLIP's.
    QuickGelu,
}

on_lanes! {
    /// Applies an activation in place.
    ///
    /// # Safety
    /// None beyond the level's, which is checked.
    fn activate_some(activation: Activation, x: &mut [f32]) = activate_on
}

#[inline(always)]
unsafe fn activate_on<V: Lanes>(activation: Activation, x: &mut [f32]) {
    let mut parts = x.chunks_exact_mut(V::WIDTH);
    // SAFETY: each part has as many values as a vector.
    unsafe {
        for part in &mut parts {
            of(activation, V::load(part.as_ptr())).store(part.as_mut_ptr());
        }
        let rest = parts.into_remainder();
        let mut last = [0f32; 16];
        last[..rest.len()].copy_from_slice(rest);
        of(activation, V::load(last.as_ptr())).store(last.as_mut_ptr());
        rest.copy_from_slice(&last[..rest.len()]);
    }
}

/// Of one vector.
#[inline(always)]
pub(crate) fn of<V: Lanes>(activation: Activation, x: V) -> V {
    match activation {
        Activation::Silu => silu_lanes(x),
        Activation::Gelu => gelu_lanes(x),
        Activation::QuickGelu => quick_gelu_lanes(x),
    }
}

/// Applies an activation in place.
pub fn activate(activation: Activation, x: &mut [f32]) {
    use rayon::prelude::*;
    // SAFETY: it asks for nothing.
    x.par_chunks_mut(CHUNK).for_each(|x| unsafe { activate_some(activation, x) });
}

/// GEGLU: rows `[value, gate]` of width 2 n become `value · gelu(gate)` of width n (Shazeer, arXiv 2002.05202).
///
/// # Panics
/// If `x` is not twice as long as `out`, or `n` does not divide it.
pub fn geglu(x: &[f32], n: usize, out: &mut [f32]) {
    use rayon::prelude::*;
    assert!(x.len() == 2 * out.len() && out.len() % n == 0);
    out.par_chunks_mut(n).zip(x.par_chunks(2 * n)).with_min_len(8).for_each(|(out, x)| {
        let (value, gate) = x.split_at(n);
        out.copy_from_slice(gate);
        // SAFETY: it asks for nothing.
        unsafe { activate_some(Activation::Gelu, out) };
        out.iter_mut().zip(value).for_each(|(o, v)| *o *= v);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    /// erf by its Maclaurin series in f64, exact enough up to |x| = 4.
    fn erf_series(x: f64) -> f64 {
        let (mut term, mut sum) = (x, x);
        for n in 1..120 {
            term *= -x * x / n as f64;
            sum += term / (2 * n + 1) as f64;
        }
        sum * 2.0 / std::f64::consts::PI.sqrt()
    }

    #[test]
    fn activations_equal_their_definition() {
        crate::gemm::tests::at_every_level(|level| {
            for i in -3000..3000 {
                let x = i as f32 * 2e-3;
                let d = x as f64;
                let check = |a, want: f64| {
                    let mut v = [x];
                    activate(a, &mut v);
                    assert!((v[0] as f64 - want).abs() < 1e-6, "{level:?} {a:?}({x}) = {} not {want}", v[0]);
                };
                check(Activation::Silu, d / (1.0 + (-d).exp()));
                check(Activation::QuickGelu, d / (1.0 + (-1.702 * d).exp()));
                if d.abs() < 5.0 {
                    check(Activation::Gelu, 0.5 * d * (1.0 + erf_series(d / 2f64.sqrt())));
                }
            }
        });
        let _fixed_level = crate::gemm::tests::fixed_level();
        let mut out = [0.0; 2];
        geglu(&[2.0, 3.0, 100.0, -100.0], 2, &mut out);
        assert_eq!(out, [200.0, 0.0]);
    }
}
