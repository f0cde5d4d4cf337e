//! Element-wise functions, vectorised by the compiler for each level.

mod lanes;

pub(crate) use lanes::{exp2_lanes, exp2_short_lanes, silu_lanes};

use crate::lanes::ROUND;
use crate::level::per_level;

/// Elements handed to one task: large enough to hide the hand-over, small enough to stay in cache.
const CHUNK: usize = 1 << 14;

/// The logarithm of 2 in two parts, of which the first has so few digits that whole multiples of it are exact.
const LN2_HIGH: f32 = 0.693_359_4;
const LN2_LOW: f32 = -2.121_944_4e-4;
/// Of `(eʳ - 1 - r) / r²`, the highest power first.
const EXP: [f32; 6] = [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];

/// eˣ with a relative error below 2 ulp on -87..88; 0 below, clamped above.
///
/// Range reduction by ln 2 in two parts and a polynomial of degree 5: S. Moshier, Cephes `expf.c`.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    let clamped = x.clamp(-87.0, 88.0);
    // Adding and taking this away rounds to the nearest whole number without a call.
    let n = clamped.mul_add(LOG2_E, ROUND) - ROUND;
    let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, clamped));
    let mut p = EXP[0];
    for c in &EXP[1..] {
        p = p.mul_add(r, *c);
    }
    let e = p.mul_add(r * r, r) + 1.0;
    // The sum above and its bit pattern give 2ⁿ without a conversion that the compiler would have to guard.
    let scale = f32::from_bits(((n + ROUND).to_bits() << 23).wrapping_add(127 << 23));
    if x < -87.0 { 0.0 } else { e * scale }
}

/// The error function, within 4 ulp: the rational approximation of Eigen's `generic_fast_erf` on |x| ≤ 4.
#[inline(always)]
fn erf(x: f32) -> f32 {
    // From here on erf rounds to 1 in f32.
    const SATURATED: f32 = 3.93;
    let s = (x * x).min(SATURATED * SATURATED);
    let mut p = -2.726_142_3e-10f32;
    p = p.mul_add(s, 2.770_681_4e-8);
    p = p.mul_add(s, -2.101_024e-6);
    p = p.mul_add(s, -5.692_506_4e-5);
    p = p.mul_add(s, -7.349_906_3e-4);
    p = p.mul_add(s, -2.954_6e-3);
    p = p.mul_add(s, -1.609_603_3e-2);
    let mut q = -1.456_607_2e-5f32;
    q = q.mul_add(s, -2.133_740_6e-4);
    q = q.mul_add(s, -1.682_827e-3);
    q = q.mul_add(s, -7.373_329e-3);
    q = q.mul_add(s, -1.426_473_9e-2);
    if x.abs() >= SATURATED { 1f32.copysign(x) } else { x * p / q }
}

#[inline(always)]
pub(crate) fn silu_of(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

#[inline(always)]
pub(crate) fn gelu_of(x: f32) -> f32 {
    0.5 * x * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2))
}

#[inline(always)]
pub(crate) fn quick_gelu_of(x: f32) -> f32 {
    x / (1.0 + exp(-1.702 * x))
}

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

per_level! {
    fn silu_slice(x: &mut [f32]) { for v in x { *v = silu_of(*v); } }
}
per_level! {
    fn gelu_slice(x: &mut [f32]) { for v in x { *v = gelu_of(*v); } }
}
per_level! {
    fn quick_gelu_slice(x: &mut [f32]) { for v in x { *v = quick_gelu_of(*v); } }
}
per_level! {
    fn gated_slice(x: &[f32], out: &mut [f32]) {
        let (value, gate) = x.split_at(out.len());
        for ((o, v), g) in out.iter_mut().zip(value).zip(gate) {
            *o = v * gelu_of(*g);
        }
    }
}

/// Applies an activation in place.
pub fn activate(activation: Activation, x: &mut [f32]) {
    use rayon::prelude::*;
    let f = match activation {
        Activation::Silu => silu_slice,
        Activation::Gelu => gelu_slice,
        Activation::QuickGelu => quick_gelu_slice,
    };
    if x.len() <= CHUNK { f(x) } else { x.par_chunks_mut(CHUNK).for_each(f) }
}

/// GEGLU: rows `[value, gate]` of width 2 n become `value · gelu(gate)` of width n (Shazeer, arXiv 2002.05202).
///
/// # Panics
/// If `x` is not twice as long as `out`, or `n` does not divide it.
pub fn geglu(x: &[f32], n: usize, out: &mut [f32]) {
    use rayon::prelude::*;
    assert!(x.len() == 2 * out.len() && out.len() % n == 0);
    out.par_chunks_mut(n).zip(x.par_chunks(2 * n)).with_min_len(8).for_each(|(o, x)| gated_slice(x, o));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_ulp() {
        let mut worst = 0f64;
        for i in -86_990..88_000 {
            let x = i as f32 * 1e-3;
            let want = (x as f64).exp();
            worst = worst.max(((exp(x) as f64 - want) / want).abs());
        }
        assert!(worst < 2.0 * f32::EPSILON as f64, "{worst}");
        assert_eq!(exp(-1000.0), 0.0);
        assert_eq!(exp(0.0), 1.0);
    }

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
        for i in -3000..3000 {
            let x = i as f32 * 2e-3;
            let d = x as f64;
            let check = |a, want: f64| {
                let mut v = [x];
                activate(a, &mut v);
                assert!((v[0] as f64 - want).abs() < 1e-6, "{a:?}({x}) = {} not {want}", v[0]);
            };
            check(Activation::Silu, d / (1.0 + (-d).exp()));
            check(Activation::QuickGelu, d / (1.0 + (-1.702 * d).exp()));
            if d.abs() < 5.0 {
                check(Activation::Gelu, 0.5 * d * (1.0 + erf_series(d / 2f64.sqrt())));
            }
        }
        let mut out = [0.0; 2];
        geglu(&[2.0, 3.0, 100.0, -100.0], 2, &mut out);
        assert_eq!(out, [200.0, 0.0]);
    }
}
