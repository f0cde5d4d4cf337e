//! Group and layer normalisation over channels-last activations.

use crate::act::silu_lanes;
use crate::lanes::{Lanes, on_lanes};
use crate::level::per_level;
use crate::share::{Shared, each};

/// Rows (pixels) per task: fixed, so that the order of the sums does not depend on the number of threads.
const ROWS: usize = 256;

per_level! {
    /// Adds each row's values and squares to one sum per channel.
    fn sums(x: &[f32], channels: usize, sum: &mut [f64], square: &mut [f64]) {
        for row in x.chunks_exact(channels) {
            for ((v, s), q) in row.iter().zip(sum.iter_mut()).zip(square.iter_mut()) {
                let v = *v as f64;
                *s += v;
                *q += v * v;
            }
        }
    }
}
per_level! {
    fn layer_rows(x: &[f32], gamma: &[f32], beta: &[f32], eps: f32, out: &mut [f32]) {
        let n = gamma.len();
        for (x, out) in x.chunks_exact(n).zip(out.chunks_exact_mut(n)) {
            let mean = lanes(x, |v| v) / n as f32;
            let variance = lanes(x, |v| (v - mean) * (v - mean)) / n as f32;
            let inverse = 1.0 / (variance + eps).sqrt();
            for (((o, v), g), b) in out.iter_mut().zip(x).zip(gamma).zip(beta) {
                *o = ((v - mean) * inverse).mul_add(*g, *b);
            }
        }
    }
}

/// A sum in sixteen lanes: a fixed order that vectorises.
#[inline(always)]
pub(crate) fn lanes(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut sum = [0f32; 16];
    let (whole, rest) = x.as_chunks::<16>();
    for c in whole {
        for (s, v) in sum.iter_mut().zip(c) {
            *s += f(*v);
        }
    }
    for (s, v) in sum.iter_mut().zip(rest) {
        *s += f(*v);
    }
    sum.iter().sum()
}

/// A group normalisation whose statistics are known: `x · scale + shift`, per picture and channel.
#[derive(Clone, Debug)]
pub struct Affine {
    pub(crate) scale: Vec<f32>,
    pub(crate) shift: Vec<f32>,
    channels: usize,
}

impl Affine {
    /// Group normalisation (Wu & He, arXiv 1803.08494) of `x` `[batch, pixels, channels]`; `gamma` and `beta` `[channels]`.
    /// Statistics in f64.
    ///
    /// # Panics
    /// If a length does not fit, or `groups` does not divide the channels.
    pub fn of_groups(x: &[f32], batch: usize, groups: usize, gamma: &[f32], beta: &[f32], eps: f32) -> Self {
        let channels = gamma.len();
        assert!(channels > 0 && groups > 0 && channels % groups == 0 && beta.len() == channels);
        assert!(batch > 0 && x.len() % (batch * channels) == 0);
        let parts = Parts::of(x.len() / batch / channels, channels);
        let mut partial = vec![(Vec::new(), Vec::new()); batch * parts.count];
        {
            use rayon::prelude::*;
            partial.par_iter_mut().enumerate().for_each(|(i, (sum, square))| {
                *sum = vec![0f64; channels];
                *square = vec![0f64; channels];
                sums(&x[parts.range(i)], channels, sum, square);
            });
        }
        let width = channels / groups;
        let count = (parts.pixels * width) as f64;
        let mut scale = vec![0f32; batch * channels];
        let mut shift = vec![0f32; batch * channels];
        for b in 0..batch {
            for g in 0..groups {
                let (mut sum, mut square) = (0f64, 0f64);
                for (s, q) in &partial[b * parts.count..(b + 1) * parts.count] {
                    sum += s[g * width..(g + 1) * width].iter().sum::<f64>();
                    square += q[g * width..(g + 1) * width].iter().sum::<f64>();
                }
                let mean = sum / count;
                let inverse = 1.0 / ((square / count - mean * mean).max(0.0) + eps as f64).sqrt();
                for c in g * width..(g + 1) * width {
                    scale[b * channels + c] = (inverse * gamma[c] as f64) as f32;
                    shift[b * channels + c] = (beta[c] as f64 - mean * inverse * gamma[c] as f64) as f32;
                }
            }
        }
        Affine { scale, shift, channels }
    }

    /// True if this belongs to `batch` pictures of `channels` channels.
    pub fn fits(&self, batch: usize, channels: usize) -> bool {
        self.channels == channels && self.scale.len() == batch * channels
    }

    /// Normalises, and applies SiLU if asked for.
    ///
    /// # Panics
    /// If a length does not fit.
    pub fn apply(&self, x: &[f32], silu: bool, out: &mut [f32]) {
        let channels = self.channels;
        let batch = self.scale.len() / channels;
        assert!(x.len() % (batch * channels) == 0 && out.len() == x.len());
        let parts = Parts::of(x.len() / batch / channels, channels);
        let out = Shared::new(out);
        each(batch * parts.count, |i| {
            let (range, c) = (parts.range(i), i / parts.count * channels..(i / parts.count + 1) * channels);
            // SAFETY: the parts do not overlap; scale and shift are one row long.
            unsafe {
                let out = out.part(range.start, range.len());
                normalise(&x[range], &self.scale[c.clone()], &self.shift[c], silu, out);
            }
        });
    }
}

/// The pixels of each picture in parts of [`ROWS`].
struct Parts {
    pixels: usize,
    channels: usize,
    count: usize,
}

impl Parts {
    fn of(pixels: usize, channels: usize) -> Self {
        Parts { pixels, channels, count: pixels.div_ceil(ROWS) }
    }

    /// The values of part `i`, counted over all pictures.
    fn range(&self, i: usize) -> std::ops::Range<usize> {
        let (b, p) = (i / self.count, i % self.count);
        let start = (b * self.pixels + p * ROWS) * self.channels;
        start..start + ROWS.min(self.pixels - p * ROWS) * self.channels
    }
}

on_lanes! {
    /// `to = x · scale + shift`, then SiLU if asked for, for rows as long as `scale`.
    ///
    /// # Safety
    /// `shift` must be as long as `scale`, `to` as long as `x`, and that a whole number of rows.
    pub(crate) fn normalise(x: &[f32], scale: &[f32], shift: &[f32], silu: bool, to: &mut [f32]) = normalise_on
}

#[inline(always)]
unsafe fn normalise_on<V: Lanes>(x: &[f32], scale: &[f32], shift: &[f32], silu: bool, to: &mut [f32]) {
    let n = scale.len();
    let whole = n / V::WIDTH * V::WIDTH;
    for (x, to) in x.chunks_exact(n).zip(to.chunks_exact_mut(n)) {
        for i in (0..whole).step_by(V::WIDTH) {
            // SAFETY: i + WIDTH is within all four.
            unsafe {
                let (scale, shift) = (scale.as_ptr().add(i), shift.as_ptr().add(i));
                normalise_one::<V>(x.as_ptr().add(i), scale, shift, silu, to.as_mut_ptr().add(i));
            }
        }
        let rest = n - whole;
        if rest > 0 {
            let mut last = [[0f32; 16]; 4];
            for (last, from) in last.iter_mut().zip([x, scale, shift]) {
                last[..rest].copy_from_slice(&from[whole..]);
            }
            let [x, scale, shift, out] = &mut last;
            // SAFETY: 16 is no less than any width.
            unsafe { normalise_one::<V>(x.as_ptr(), scale.as_ptr(), shift.as_ptr(), silu, out.as_mut_ptr()) };
            to[whole..].copy_from_slice(&out[..rest]);
        }
    }
}

/// One vector of it.
///
/// # Safety
/// A vector's worth of values must be at each pointer.
#[inline(always)]
unsafe fn normalise_one<V: Lanes>(
    x: *const f32,
    scale: *const f32,
    shift: *const f32,
    silu: bool,
    to: *mut f32,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let v = V::load(x).mul_add(V::load(scale), V::load(shift));
        let v = if silu { silu_lanes(v) } else { v };
        v.store(to);
    }
}

/// Group normalisation, optionally followed by SiLU: [`Affine::of_groups`] and [`Affine::apply`].
///
/// # Panics
/// If a length does not fit, or `groups` does not divide the channels.
#[allow(clippy::too_many_arguments)]
pub fn group_norm(
    x: &[f32],
    batch: usize,
    groups: usize,
    gamma: &[f32],
    beta: &[f32],
    eps: f32,
    silu: bool,
    out: &mut [f32],
) {
    Affine::of_groups(x, batch, groups, gamma, beta, eps).apply(x, silu, out);
}

/// Layer normalisation over the last axis (Ba et al., arXiv 1607.06450); `x` and `out` are `[rows, gamma.len()]`.
///
/// # Panics
/// If a length does not fit.
pub fn layer_norm(x: &[f32], gamma: &[f32], beta: &[f32], eps: f32, out: &mut [f32]) {
    use rayon::prelude::*;
    let n = gamma.len();
    assert!(n > 0 && x.len() % n == 0 && out.len() == x.len() && beta.len() == n);
    let task = ROWS.min(1 + (1 << 14) / n) * n;
    out.par_chunks_mut(task).zip(x.par_chunks(task)).for_each(|(o, x)| layer_rows(x, gamma, beta, eps, o));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gemm::tests::noise;

    #[test]
    fn norms_equal_their_definition() {
        let (batch, pixels, channels, groups) = (2, 517, 12, 4);
        let x = noise(batch * pixels * channels, 1);
        let (gamma, beta) = (noise(channels, 2), noise(channels, 3));
        let mut out = vec![0.0; x.len()];
        group_norm(&x, batch, groups, &gamma, &beta, 1e-5, true, &mut out);
        let width = channels / groups;
        for b in 0..batch {
            for g in 0..groups {
                let at = |p: usize, c: usize| (b * pixels + p) * channels + g * width + c;
                let all = || (0..pixels).flat_map(|p| (0..width).map(move |c| (p, c)));
                let n = (pixels * width) as f64;
                let mean = all().map(|(p, c)| x[at(p, c)] as f64).sum::<f64>() / n;
                let var = all().map(|(p, c)| (x[at(p, c)] as f64 - mean).powi(2)).sum::<f64>() / n;
                for (p, c) in all() {
                    let ch = g * width + c;
                    let y = (x[at(p, c)] as f64 - mean) / (var + 1e-5).sqrt() * gamma[ch] as f64
                        + beta[ch] as f64;
                    let want = y / (1.0 + (-y).exp());
                    assert!((out[at(p, c)] as f64 - want).abs() < 1e-5);
                }
            }
        }
        let mut out = vec![0.0; x.len()];
        layer_norm(&x, &gamma, &beta, 1e-6, &mut out);
        for (x, o) in x.chunks(channels).zip(out.chunks(channels)) {
            let mean = x.iter().map(|v| *v as f64).sum::<f64>() / channels as f64;
            let var = x.iter().map(|v| (*v as f64 - mean).powi(2)).sum::<f64>() / channels as f64;
            for c in 0..channels {
                let want = (x[c] as f64 - mean) / (var + 1e-6).sqrt() * gamma[c] as f64 + beta[c] as f64;
                assert!((o[c] as f64 - want).abs() < 1e-5);
            }
        }
    }
}
