//! Exponentials of whole vectors.

use super::{ERF, ERF_SATURATED, GELU, GELU_END, QUARTERS};
use crate::lanes::{Lanes, ROUND};
use crate::words::Words;

/// 2ˣ with a relative error below 1.5 ulp for x in -126..127; 2⁻¹²⁶ or less below, undefined above.
///
/// The coefficients are those of the polynomial of degree 6 with the least relative error on 0..1 (Remez; 1.9e-9 before
/// rounding).
// One of them is near ln 2, and is not it.
#[allow(clippy::approx_constant)]
#[inline(always)]
pub(crate) fn exp2_lanes<V: Lanes>(x: V) -> V {
    let (r, whole) = x.split();
    let mut p = x.same(2.170_225_5e-4);
    for c in [1.243_968_8e-3, 9.678_841e-3, 5.548_334e-2, 2.402_298_4e-1, 6.931_47e-1, 1.0] {
        p = p.mul_add(r, x.same(c));
    }
    p.scale_by(whole)
}

/// The same with a relative error below 8e-5: a polynomial of degree 3, enough for what is rounded to bf16 afterwards.
#[inline(always)]
pub(crate) fn exp2_short_lanes<V: Lanes>(x: V) -> V {
    let (r, whole) = x.split();
    let mut p = x.same(7.802_452e-2);
    for c in [2.260_671_6e-1, 6.958_335_4e-1, 9.999_252e-1] {
        p = p.mul_add(r, x.same(c));
    }
    p.scale_by(whole)
}

/// eˣ with a relative error below 2 ulp for x in -87..88, clamped outside.
///
/// Range reduction by ln 2 in two parts and a polynomial of degree 5: S. Moshier, Cephes `expf.c`.
#[inline(always)]
fn exp_lanes<V: Lanes>(x: V) -> V {
    let x = x.max(x.same(-87.0)).min(x.same(88.0));
    let magic = x.mul_add(x.same(std::f32::consts::LOG2_E), x.same(ROUND));
    let n = magic.sub(x.same(ROUND));
    let r = n.neg_mul_add(x.same(super::LN2_LOW), n.neg_mul_add(x.same(super::LN2_HIGH), x));
    let [first, rest @ ..] = super::EXP;
    let mut p = x.same(first);
    for c in rest {
        p = p.mul_add(r, x.same(c));
    }
    p.mul_add(r.mul(r), r).add(x.same(1.0)).scale_by_power(magic)
}

/// x · σ(x).
#[inline(always)]
pub(crate) fn silu_lanes<V: Lanes>(x: V) -> V {
    x.div(exp_lanes(x.same(0.0).sub(x)).add(x.same(1.0)))
}

/// x · σ(1.702 x).
#[inline(always)]
pub(crate) fn quick_gelu_lanes<V: Lanes>(x: V) -> V {
    x.div(exp_lanes(x.mul(x.same(-1.702))).add(x.same(1.0)))
}

/// x · Φ(x), see [`super::ERF`].
#[inline(always)]
pub(crate) fn gelu_lanes<V: Lanes>(x: V) -> V {
    let t = x.mul(x.same(std::f32::consts::FRAC_1_SQRT_2));
    let s = t.mul(t).min(t.same(ERF_SATURATED * ERF_SATURATED));
    let ([first_p, rest_p @ ..], [first_q, rest_q @ ..]) = ERF;
    let (mut p, mut q) = (x.same(first_p), x.same(first_q));
    for c in rest_p {
        p = p.mul_add(s, x.same(c));
    }
    for c in rest_q {
        q = q.mul_add(s, x.same(c));
    }
    // Beyond saturation the quotient stays, so that the product passes 1.
    let erf = t.mul(p).div(q).max(x.same(-1.0)).min(x.same(1.0));
    x.mul(x.same(0.5)).mul(erf.add(x.same(1.0)))
}

/// The same within 1.1e-4 (2.6e-5 · |x| near 0), without a division and with two multiplications: enough for what is rounded to
/// bf16 or less afterwards. See [`super::GELU`].
#[inline(always)]
pub(crate) fn gelu_short_lanes<V: Words>(x: V) -> V {
    let t = x.abs().min(x.same(GELU_END));
    let quarter = t.add(x.same(QUARTERS));
    let [square, linear, rest] = &GELU;
    // In this order it keeps what is not a number.
    let rest = quarter.pick(rest).add(x.same(0.0).max(x));
    quarter.pick(square).mul_add(t, quarter.pick(linear)).mul_add(t, rest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gemm::tests::at_every_level;
    use crate::lanes::on_lanes;

    on_lanes! {
        /// # Safety
        /// None beyond the level's.
        fn powers(x: &[f32; 16], out: &mut [[f32; 16]; 7]) = powers_on
    }

    #[inline(always)]
    unsafe fn powers_on<V: Words>(x: &[f32; 16], out: &mut [[f32; 16]; 7]) {
        for i in (0..16).step_by(V::WIDTH) {
            // SAFETY: 16 is a multiple of every width.
            unsafe {
                let x = V::load(x.as_ptr().add(i));
                exp2_lanes(x).store(out[0].as_mut_ptr().add(i));
                exp_lanes(x).store(out[1].as_mut_ptr().add(i));
                silu_lanes(x).store(out[2].as_mut_ptr().add(i));
                exp2_short_lanes(x).store(out[3].as_mut_ptr().add(i));
                gelu_lanes(x).store(out[4].as_mut_ptr().add(i));
                quick_gelu_lanes(x).store(out[5].as_mut_ptr().add(i));
                gelu_short_lanes(x).store(out[6].as_mut_ptr().add(i));
            }
        }
    }

    #[test]
    fn the_short_gelu_is_within_its_bound() {
        at_every_level(|level| {
            let (mut worst, mut near) = (0f32, 0f32);
            for i in 0..4000 {
                let x = std::array::from_fn(|l| (i as f32 - 2000.0) * 5e-3 + l as f32 * 3e-4);
                let mut got = [[0f32; 16]; 7];
                // SAFETY: the level is chosen from those that were detected.
                unsafe { powers(&x, &mut got) };
                // Beside the other one, which is measured against the definition in `act::tests`.
                for l in 0..16 {
                    let error = (got[6][l] - got[4][l]).abs();
                    worst = worst.max(error);
                    near = near.max(if x[l].abs() < 0.1 { error / x[l].abs() } else { 0.0 });
                }
            }
            assert!(worst < 1.1e-4 && near < 2.6e-5, "{level:?} {worst} {near}");
            let mut got = [[0f32; 16]; 7];
            // SAFETY: as above.
            unsafe { powers(&std::array::from_fn(|l| 1e3 * (l as f32 - 7.5)), &mut got) };
            for (l, got) in got[6].into_iter().enumerate() {
                let want = (1e3 * (l as f32 - 7.5)).max(0.0);
                assert!((got - want).abs() <= 1.1e-4 + want * f32::EPSILON, "{level:?} {got} {want}");
            }
        });
    }

    #[test]
    fn exponentials_are_within_their_bounds() {
        at_every_level(|level| {
            let mut worst = [0f64; 4];
            for i in 0..16_000 {
                let x = std::array::from_fn(|l| (i as f32 - 8000.0) * 1.07e-2 + l as f32 * 6.9e-4);
                let mut got = [[0f32; 16]; 7];
                // SAFETY: the level is chosen from those that were detected.
                unsafe { powers(&x, &mut got) };
                for (l, x) in x.iter().map(|x| *x as f64).enumerate() {
                    let want = [x.exp2(), x.exp(), x / (1.0 + (-x).exp()), x.exp2()];
                    for k in 0..4 {
                        worst[k] = worst[k].max(((got[k][l] as f64 - want[k]) / want[k]).abs());
                    }
                }
            }
            println!("{level:?}: {worst:?}");
            let ulp = f32::EPSILON as f64;
            assert!(
                worst[0] < 1.5 * ulp && worst[1] < 2.0 * ulp && worst[2] < 4.0 * ulp && worst[3] < 8e-5,
                "{level:?} {worst:?}"
            );
        });
        at_every_level(|level| {
            let mut got = [[0f32; 16]; 7];
            // SAFETY: as above.
            unsafe { powers(&[f32::NAN; 16], &mut got) };
            assert!([2, 4, 5, 6].iter().all(|k| got[*k].iter().all(|v| v.is_nan())), "{level:?} {got:?}");
        });
        let mut got = [[0f32; 16]; 7];
        // SAFETY: as above.
        unsafe { powers(&[-1e30; 16], &mut got) };
        for two in [got[0], got[3]] {
            assert!(two.iter().all(|v| (0.0..1.2e-38).contains(v)), "{two:?}");
        }
    }
}
