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

/// What GELU lacks of max(x, 0), h(|x|) = |x| · Φ(-|x|), on 0..[`GELU_END`]: |x| times this polynomial in |x|, the highest power
/// first. Of its degree the one with the least error, 1.73e-4 and for |x| < 0.1 1.73e-3 · |x| (a linear program on 3000
/// Chebyshev points); 0.5 · |x| at its beginning to 2e-4.
const GELU: [f32; 7] = [
    -6.646_146_6e-4,
    1.020_588_5e-2,
    -5.902_045e-2,
    1.436_404_9e-1,
    -4.752_246_7e-2,
    -3.879_953_6e-1,
    4.999_118_4e-1,
];
/// Beyond it h stays what it is there, below 1.8e-4.
const GELU_END: f32 = 3.95;

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
