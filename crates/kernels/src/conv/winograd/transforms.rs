//! The three transforms of one dimension, and their squares.
//!
//! F(m, 3) gives m outputs of a filter of 3 taps from m + 2 products. It evaluates input and filter as polynomials at
//! m + 1 points and at infinity and interpolates the product: Winograd, "Arithmetic Complexity of Computations" (1980);
//! Lavin & Gray, arXiv 1509.09308. The points set the rounding error: Barabasz et al., arXiv 1803.10986.

use crate::lanes::Lanes;

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

/// F(4, 3) at the points 0, ±⅝, ±1½, ∞, the pairs of small fractions with the least error of those searched: in f32
/// half the error of the customary 0, ±1, ±2 (measured in the tests).
pub(super) struct F4;

/// The inner and the outer pair of points, and their squares.
const A: f32 = 0.625;
const B: f32 = 1.5;
const A2: f32 = A * A;
const B2: f32 = B * B;

impl Algorithm for F4 {
    const OUT: usize = 4;

    #[inline(always)]
    fn input<V: Lanes>(d: [V; MOST]) -> [V; MOST] {
        let (a2, b2) = (d[0].same(A2), d[0].same(B2));
        let (product, sum) = (d[0].same(A2 * B2), d[0].same(A2 + B2));
        let (even_a, even_b) = (d[2].neg_mul_add(b2, d[4]), d[2].neg_mul_add(a2, d[4]));
        let odd_a = d[1].neg_mul_add(b2, d[3]).mul(d[0].same(A));
        let odd_b = d[1].neg_mul_add(a2, d[3]).mul(d[0].same(B));
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
        let zero = g[0].same(1.0 / (A2 * B2));
        let (by_a, by_b) = (g[0].same(0.5 / (A2 * (A2 - B2))), g[0].same(0.5 / (B2 * (B2 - A2))));
        let even_a = g[2].mul_add(g[0].same(A2), g[0]).mul(by_a);
        let odd_a = g[1].mul(g[0].same(0.5 / (A * (A2 - B2))));
        let even_b = g[2].mul_add(g[0].same(B2), g[0]).mul(by_b);
        let odd_b = g[1].mul(g[0].same(0.5 / (B * (B2 - A2))));
        [g[0].mul(zero), even_a.add(odd_a), even_a.sub(odd_a), even_b.add(odd_b), even_b.sub(odd_b), g[2]]
    }

    #[inline(always)]
    fn reach<V: Lanes>(g: [V; 3]) -> [V; MOST] {
        // As above; of the squares' differences the magnitude.
        let apart = B2 - A2;
        let even_a = g[2].mul_add(g[0].same(A2), g[0]).mul(g[0].same(0.5 / (A2 * apart)));
        let even_b = g[2].mul_add(g[0].same(B2), g[0]).mul(g[0].same(0.5 / (B2 * apart)));
        let a = g[1].mul_add(g[0].same(0.5 / (A * apart)), even_a);
        let b = g[1].mul_add(g[0].same(0.5 / (B * apart)), even_b);
        [g[0].mul(g[0].same(1.0 / (A2 * B2))), a, a, b, b, g[2]]
    }

    #[inline(always)]
    fn output<V: Lanes>(m: [V; MOST]) -> [V; MOST] {
        let (even_a, odd_a) = (m[1].add(m[2]), m[1].sub(m[2]));
        let (even_b, odd_b) = (m[3].add(m[4]), m[3].sub(m[4]));
        [
            m[0].add(even_a).add(even_b),
            odd_b.mul_add(m[0].same(B), odd_a.mul(m[0].same(A))),
            even_b.mul_add(m[0].same(B2), even_a.mul(m[0].same(A2))),
            odd_b.mul_add(m[0].same(B2 * B), odd_a.mul_add(m[0].same(A2 * A), m[5])),
            m[0],
            m[0],
        ]
    }
}
