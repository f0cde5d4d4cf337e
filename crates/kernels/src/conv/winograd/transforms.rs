//! The three transforms of one dimension, and their squares.
//!
//! F(m, 3) gives m outputs of a filter of 3 taps from m + 2 products. It evaluates input and filter as polynomials at
//! m + 1 points and at infinity and interpolates the product: Winograd, "Arithmetic Complexity of Computations" (1980);
//! Lavin & Gray, arXiv 1509.09308. The points set the rounding error: Barabasz et al., arXiv 1803.10986.

use crate::lanes::Lanes;
use crate::words::Words;
use std::marker::PhantomData;

/// The longest side of a tile of inputs.
pub(super) const MOST: usize = 6;

/// One dimension of an algorithm F(m, 3). Arrays are as long as the longest; what is beyond the algorithm's own
/// length is neither read nor meant.
pub(super) trait Algorithm {
    /// Outputs of a tile, m.
    const OUT: usize;
    /// Inputs and products of a tile, m + 2.
    const IN: usize = Self::OUT + 2;

    /// Bᵀ d.
    fn input<V: Lanes>(d: [V; MOST]) -> [V; MOST];
    /// G g.
    fn filter<V: Lanes>(g: [V; 3]) -> [V; MOST];
    /// |G| g for magnitudes g: what [`Algorithm::filter`] can reach at most.
    fn reach<V: Lanes>(g: [V; 3]) -> [V; MOST];
    /// Aᵀ m.
    fn output<V: Lanes>(m: [V; MOST]) -> [V; MOST];
}

/// F(2, 3) at the points 0, 1, -1, ∞: no constant but ½, so hardly less exact than the sum itself.
pub(super) struct F2;

impl Algorithm for F2 {
    const OUT: usize = 2;

    #[inline(always)]
    fn input<V: Lanes>(d: [V; MOST]) -> [V; MOST] {
        [d[0].sub(d[2]), d[1].add(d[2]), d[2].sub(d[1]), d[3].sub(d[1]), d[0], d[0]]
    }

    #[inline(always)]
    fn filter<V: Lanes>(g: [V; 3]) -> [V; MOST] {
        let half = g[0].same(0.5);
        let (even, odd) = (g[0].add(g[2]).mul(half), g[1].mul(half));
        [g[0], even.add(odd), even.sub(odd), g[2], g[0], g[0]]
    }

    #[inline(always)]
    fn reach<V: Lanes>(g: [V; 3]) -> [V; MOST] {
        let all = g[0].add(g[1]).add(g[2]).mul(g[0].same(0.5));
        [g[0], all, all, g[2], g[0], g[0]]
    }

    #[inline(always)]
    fn output<V: Lanes>(m: [V; MOST]) -> [V; MOST] {
        [m[0].add(m[1]).add(m[2]), m[1].sub(m[2]).add(m[3]), m[0], m[0], m[0], m[0]]
    }
}

/// The inner and the outer pair of points of F(4, 3), beside 0 and ∞.
pub(super) trait Points {
    const A: f32;
    const B: f32;
}

/// ±⅝, ±1½: the pairs of small fractions with the least error of those searched, in f32 half of what the customary ±1, ±2
/// have (measured in the tests).
pub(super) struct Fractions;

impl Points for Fractions {
    const A: f32 = 0.625;
    const B: f32 = 1.5;
}

/// ±½, ±2, for filters that are whole numbers, see [`Whole`]: with exact filters the error of rounded inputs is three quarters of
/// what ±1, ±2 have (measured).
pub(super) struct Powers;

impl Points for Powers {
    const A: f32 = 0.5;
    const B: f32 = 2.0;
}

/// F(4, 3) at some points.
pub(super) struct At<P>(PhantomData<P>);

/// At those of the least error.
pub(super) type F4 = At<Fractions>;
/// At those for whole numbers.
pub(super) type F4Whole = At<Powers>;

impl<P: Points> At<P> {
    const A: f32 = P::A;
    const B: f32 = P::B;
    const A2: f32 = P::A * P::A;
    const B2: f32 = P::B * P::B;
}

impl<P: Points> Algorithm for At<P> {
    const OUT: usize = 4;

    #[inline(always)]
    fn input<V: Lanes>(d: [V; MOST]) -> [V; MOST] {
        let (a2, b2) = (d[0].same(Self::A2), d[0].same(Self::B2));
        let (product, sum) = (d[0].same(Self::A2 * Self::B2), d[0].same(Self::A2 + Self::B2));
        let (even_a, even_b) = (d[2].neg_mul_add(b2, d[4]), d[2].neg_mul_add(a2, d[4]));
        let odd_a = d[1].neg_mul_add(b2, d[3]).mul(d[0].same(Self::A));
        let odd_b = d[1].neg_mul_add(a2, d[3]).mul(d[0].same(Self::B));
        [
            d[2].neg_mul_add(sum, d[0].mul_add(product, d[4])),
            even_a.add(odd_a),
            even_a.sub(odd_a),
            even_b.add(odd_b),
            even_b.sub(odd_b),
            d[3].neg_mul_add(sum, d[1].mul_add(product, d[5])),
        ]
    }

    #[inline(always)]
    fn filter<V: Lanes>(g: [V; 3]) -> [V; MOST] {
        // 1 over the product of a point's distances to the others; for ±p this is 1 / (2 p² (p² - q²)).
        let zero = g[0].same(1.0 / (Self::A2 * Self::B2));
        let (by_a, by_b) = (
            g[0].same(0.5 / (Self::A2 * (Self::A2 - Self::B2))),
            g[0].same(0.5 / (Self::B2 * (Self::B2 - Self::A2))),
        );
        let even_a = g[2].mul_add(g[0].same(Self::A2), g[0]).mul(by_a);
        let odd_a = g[1].mul(g[0].same(0.5 / (Self::A * (Self::A2 - Self::B2))));
        let even_b = g[2].mul_add(g[0].same(Self::B2), g[0]).mul(by_b);
        let odd_b = g[1].mul(g[0].same(0.5 / (Self::B * (Self::B2 - Self::A2))));
        [g[0].mul(zero), even_a.add(odd_a), even_a.sub(odd_a), even_b.add(odd_b), even_b.sub(odd_b), g[2]]
    }

    #[inline(always)]
    fn reach<V: Lanes>(g: [V; 3]) -> [V; MOST] {
        // As above; of the squares' differences the magnitude.
        let apart = Self::B2 - Self::A2;
        let even_a = g[2].mul_add(g[0].same(Self::A2), g[0]).mul(g[0].same(0.5 / (Self::A2 * apart)));
        let even_b = g[2].mul_add(g[0].same(Self::B2), g[0]).mul(g[0].same(0.5 / (Self::B2 * apart)));
        let a = g[1].mul_add(g[0].same(0.5 / (Self::A * apart)), even_a);
        let b = g[1].mul_add(g[0].same(0.5 / (Self::B * apart)), even_b);
        [g[0].mul(g[0].same(1.0 / (Self::A2 * Self::B2))), a, a, b, b, g[2]]
    }

    #[inline(always)]
    fn output<V: Lanes>(m: [V; MOST]) -> [V; MOST] {
        let (even_a, odd_a) = (m[1].add(m[2]), m[1].sub(m[2]));
        let (even_b, odd_b) = (m[3].add(m[4]), m[3].sub(m[4]));
        [
            m[0].add(even_a).add(even_b),
            odd_b.mul_add(m[0].same(Self::B), odd_a.mul(m[0].same(Self::A))),
            even_b.mul_add(m[0].same(Self::B2), even_a.mul(m[0].same(Self::A2))),
            odd_b.mul_add(m[0].same(Self::B2 * Self::B), odd_a.mul_add(m[0].same(Self::A2 * Self::A), m[5])),
            m[0],
            m[0],
        ]
    }
}

/// An algorithm whose filters stay whole numbers but for a constant factor, where their taps are whole numbers.
pub(super) trait Whole: Algorithm {
    /// G g without those factors, of words of two i16: at most 7 times the largest tap, 49 times in two dimensions.
    fn whole<V: Words>(g: [V; 3]) -> [V; MOST];
    /// The factors.
    const UNITS: [f32; MOST];
}

impl Whole for F2 {
    const UNITS: [f32; MOST] = [1.0, 0.5, 0.5, 1.0, 0.0, 0.0];

    #[inline(always)]
    fn whole<V: Words>(g: [V; 3]) -> [V; MOST] {
        let even = g[0].add_i16(g[2]);
        [g[0], even.add_i16(g[1]), even.sub_i16(g[1]), g[2], g[0], g[0]]
    }
}

impl Whole for F4Whole {
    // Of ±½ the taps by 4, 2, 1 instead of 1, ½, ¼.
    const UNITS: [f32; MOST] = {
        let apart = Self::B2 - Self::A2;
        let (a, b) = (-0.5 / apart, 0.5 / (Self::B2 * apart));
        [1.0 / (Self::A2 * Self::B2), a, a, b, b, 1.0]
    };

    #[inline(always)]
    fn whole<V: Words>(g: [V; 3]) -> [V; MOST] {
        let twice = g[1].add_i16(g[1]);
        let four = |v: V| {
            let twice = v.add_i16(v);
            twice.add_i16(twice)
        };
        let (even_a, even_b) = (four(g[0]).add_i16(g[2]), g[0].add_i16(four(g[2])));
        [
            g[0],
            even_a.add_i16(twice),
            even_a.sub_i16(twice),
            even_b.add_i16(twice),
            even_b.sub_i16(twice),
            g[2],
        ]
    }
}
