//! Pictures larger than those that a network was trained on (Zhang et al., "HiDiffusion: Unlocking Higher-Resolution
//! Creativity and Efficiency in Pretrained Diffusion Models", arXiv 2311.17528; megvii-research/HiDiffusion,
//! `hidiffusion/hidiffusion.py`).
//!
//! RAU-Net: one level takes more off the size than it was trained to, so that the deeper ones see the size that they
//! know, and repetition, which comes from them, stays away. MSW-MSA: self-attention in four windows, whose place differs
//! from block to block and call to call.

use super::trunk::Pass;
use crate::tensor::Tensor;
use rayon::prelude::*;

/// What one model call does otherwise than the plain network; nothing by default. Levels count from 0, the finest.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HiDiffusion {
    /// The level whose downsampler takes off a quarter of each side: its convolution reads every second pixel.
    pub strided: Option<usize>,
    /// The level that goes on with features of half the size after its first layer on the way down, and with the whole
    /// size again before its last layer on the way up.
    pub pooled: Option<usize>,
    /// For each attention site, in forward order: by how many quarters of their size the windows of its self-attention are
    /// shifted; None where all is one window. Sites after the end have none.
    pub windows: Vec<Option<usize>>,
}

impl HiDiffusion {
    /// Sides of tokens that can be split in windows.
    pub fn splits(height: usize, width: usize) -> bool {
        height % 2 == 0 && width % 2 == 0
    }

    /// What ControlNets see, [batch, h, w, channels] at another size: torch's `interpolate(mode="nearest")`. What they give is
    /// resized in the network, to its levels.
    pub fn nearest(x: &Tensor, height: usize, width: usize) -> Tensor {
        let &[batch, h, w, c] = x.shape() else { panic!("{:?} has not four axes", x.shape()) };
        let step = |from: usize, to: usize| from as f32 / to as f32;
        let at = |i: usize, step: f32, length: usize| ((i as f32 * step) as usize).min(length - 1);
        let (down, across) = (step(h, height), step(w, width));
        let mut out = Tensor::stale([batch, height, width, c]);
        for (i, pixel) in out.data_mut().chunks_exact_mut(c).enumerate() {
            let (b, y, x_out) = (i / (height * width), i / width % height, i % width);
            pixel
                .copy_from_slice(&x.data()[((b * h + at(y, down, h)) * w + at(x_out, across, w)) * c..][..c]);
        }
        out
    }
}

impl Pass<'_> {
    /// What goes into the downsampler of a level.
    pub(super) fn to_stride(&self, level: usize, x: &Tensor) -> Option<Tensor> {
        self.hidiffusion.filter(|h| h.strided == Some(level)).map(|_| every_second(x))
    }

    /// What a level on the way down goes on with after layer `j`.
    pub(super) fn after_down(&self, level: usize, j: usize, x: Tensor) -> Tensor {
        match self.hidiffusion {
            Some(h) if h.pooled == Some(level) && j == 0 => halved(&x),
            _ => x,
        }
    }

    /// What a level on the way up goes on with before a layer that reads `skip`.
    pub(super) fn before_up(&self, level: usize, skip: &Tensor, x: Tensor) -> Tensor {
        match self.hidiffusion {
            Some(h) if h.pooled == Some(level) && x.shape()[1..3] != skip.shape()[1..3] => {
                bicubic(&x, skip.dim(1), skip.dim(2))
            }
            _ => x,
        }
    }

    /// The windows of a site's self-attention over tokens that lie in a grid [height, width].
    pub(super) fn windows(&self, site: usize, grid: [usize; 2]) -> Option<Windows> {
        let quarters = (*self.hidiffusion?.windows.get(site)?)?;
        Some(Windows::of(grid, quarters))
    }
}

/// Four windows, two by two, over tokens in a grid that is shifted around its edges.
pub(super) struct Windows {
    height: usize,
    width: usize,
    shift: [usize; 2],
}

impl Windows {
    fn of([height, width]: [usize; 2], quarters: usize) -> Self {
        assert!(HiDiffusion::splits(height, width), "{height} x {width} tokens do not split in windows");
        let shift = [height / 2 / 4 * quarters, width / 2 / 4 * quarters];
        // Windows too small to shift one way are not shifted the other way either.
        let shift = if shift[0] == 0 { [0, 0] } else { shift };
        Windows { height, width, shift }
    }

    /// Where token `i` of the windows, one after the other, lies in the grid.
    fn source(&self, i: usize) -> usize {
        let (h, w) = (self.height / 2, self.width / 2);
        let (window, inner) = (i / (h * w), i % (h * w));
        let (y, x) = (window / 2 * h + inner / w, window % 2 * w + inner % w);
        (y + self.shift[0]) % self.height * self.width + (x + self.shift[1]) % self.width
    }

    /// [batch, tokens, channels] → [batch · 4, tokens / 4, channels].
    pub(super) fn split(&self, x: &Tensor) -> Tensor {
        let (tokens, c) = (self.height * self.width, x.channels());
        let mut out = Tensor::stale([x.dim(0) * 4, tokens / 4, c]);
        out.data_mut().par_chunks_mut(c).with_min_len(64).enumerate().for_each(|(i, to)| {
            let from = i / tokens * tokens + self.source(i % tokens);
            to.copy_from_slice(&x.data()[from * c..][..c]);
        });
        out
    }

    /// The reverse of [`Windows::split`].
    pub(super) fn join(&self, x: &Tensor) -> Tensor {
        let (tokens, c) = (self.height * self.width, x.channels());
        let batch = x.dim(0) / 4;
        let mut from = vec![0; tokens];
        (0..tokens).for_each(|i| from[self.source(i)] = i);
        let mut out = Tensor::stale([batch, tokens, c]);
        out.data_mut().par_chunks_mut(c).with_min_len(64).enumerate().for_each(|(i, to)| {
            let from = i / tokens * tokens + from[i % tokens];
            to.copy_from_slice(&x.data()[from * c..][..c]);
        });
        out
    }
}

/// The pixels of even rows and columns, [batch, h, w, channels]: a convolution over them with stride 2 and padding 1 is one
/// over all with stride 4, padding 2 and dilation 2, which is what the published downsampler becomes.
fn every_second(x: &Tensor) -> Tensor {
    let &[batch, h, w, c] = x.shape() else { unreachable!("activations have four axes") };
    let (height, width) = (h.div_ceil(2), w.div_ceil(2));
    let mut out = Tensor::stale([batch, height, width, c]);
    for (i, pixel) in out.data_mut().chunks_exact_mut(c).enumerate() {
        let (b, y, x_out) = (i / (height * width), i / width % height, i % width);
        pixel.copy_from_slice(&x.data()[((b * h + 2 * y) * w + 2 * x_out) * c..][..c]);
    }
    out
}

/// torch's `avg_pool2d` over two by two pixels with `ceil_mode`: what an edge lacks does not count.
fn halved(x: &Tensor) -> Tensor {
    let &[batch, h, w, c] = x.shape() else { unreachable!("activations have four axes") };
    let (height, width) = (h.div_ceil(2), w.div_ceil(2));
    let mut out = Tensor::zeros([batch, height, width, c]);
    out.data_mut().par_chunks_mut(c).with_min_len(64).enumerate().for_each(|(i, pixel)| {
        let (b, y, x_out) = (i / (height * width), i / width % height, i % width);
        let (rows, columns) = ((2 * y)..h.min(2 * y + 2), (2 * x_out)..w.min(2 * x_out + 2));
        let count = (rows.len() * columns.len()) as f32;
        for (y, x_in) in rows.flat_map(|y| columns.clone().map(move |x_in| (y, x_in))) {
            let from = &x.data()[((b * h + y) * w + x_in) * c..][..c];
            pixel.iter_mut().zip(from).for_each(|(p, v)| *p += v);
        }
        pixel.iter_mut().for_each(|p| *p /= count);
    });
    out
}

/// torch's `interpolate(mode="bicubic", align_corners=False)`.
pub(super) fn bicubic(x: &Tensor, height: usize, width: usize) -> Tensor {
    let &[batch, h, w, c] = x.shape() else { unreachable!("activations have four axes") };
    let (rows, columns) = (cubic(h, height), cubic(w, width));
    let mut out = Tensor::zeros([batch, height, width, c]);
    out.data_mut().par_chunks_mut(c).with_min_len(16).enumerate().for_each(|(i, pixel)| {
        let (b, y, x_out) = (i / (height * width), i / width % height, i % width);
        for (y, wy) in rows[y] {
            for (x_in, wx) in columns[x_out] {
                let from = &x.data()[((b * h + y) * w + x_in) * c..][..c];
                pixel.iter_mut().zip(from).for_each(|(p, v)| *p += wy * wx * v);
            }
        }
    });
    out
}

/// For each place of a side of length `to`: four places of one of length `from`, edges repeated, and their weights by
/// torch's cubic kernel (a = -0.75).
fn cubic(from: usize, to: usize) -> Vec<[(usize, f32); 4]> {
    const A: f32 = -0.75;
    let near = |x: f32| ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0;
    let far = |x: f32| ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A;
    let scale = from as f32 / to as f32;
    let place = |i: usize| {
        let at = (i as f32 + 0.5) * scale - 0.5;
        let (base, t) = (at.floor(), at - at.floor());
        let weights = [far(t + 1.0), near(t), near(1.0 - t), far(2.0 - t)];
        let last = from as isize - 1;
        std::array::from_fn(|k| ((base as isize - 1 + k as isize).clamp(0, last) as usize, weights[k]))
    };
    (0..to).map(place).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plane(height: usize, width: usize) -> Tensor {
        let values = (0..height * width).map(|i| (i * i) as f32).collect();
        Tensor::new([1, height, width, 1], values)
    }

    /// `avg_pool2d(x, (2, 2), ceil_mode=True)` of `arange(15).view(1, 1, 3, 5) ** 2`, torch 2.15.
    #[test]
    fn pooling_equals_torch() {
        let got = halved(&plane(3, 5));
        assert_eq!(got.shape(), [1, 2, 3, 1]);
        assert_eq!(got.data(), POOLED);
    }

    /// `interpolate(x, size=(4, 5), mode="bicubic")` of `arange(6).view(1, 1, 2, 3) ** 2`, torch 2.15.
    #[test]
    fn resizing_equals_torch() {
        let got = bicubic(&plane(2, 3), 4, 5);
        for (g, w) in got.data().iter().zip(ENLARGED) {
            assert!((g - w).abs() < 1e-4, "{:?}", got.data());
        }
    }

    /// `interpolate(x, size=(2, 4))` of `arange(15).view(1, 1, 3, 5) ** 2`, torch 2.15.
    #[test]
    fn nearest_equals_torch() {
        let got = HiDiffusion::nearest(&plane(3, 5), 2, 4);
        assert_eq!(got.data(), [0.0, 1.0, 4.0, 9.0, 25.0, 36.0, 49.0, 64.0]);
    }

    /// Windows of a grid of 8 x 16, shifted by three quarters: `torch.roll` by (-3, -6), then split.
    #[test]
    fn windows_come_back() {
        let windows = Windows::of([8, 16], 3);
        let x = Tensor::new([2, 128, 1], (0..256).map(|i| i as f32).collect());
        let split = windows.split(&x);
        assert_eq!(split.shape(), [8, 32, 1]);
        let first = [3 * 16 + 6, 3 * 16 + 14, 7 * 16 + 6, 7 * 16 + 14].map(|v| v as f32);
        let got: Vec<f32> = (0..4).map(|i| split.data()[i * 32]).collect();
        assert_eq!(got, first);
        assert_eq!(windows.join(&split), x);
        // 2 / 4 rows and 8 / 4 columns: not shifted at all.
        assert_eq!(Windows::of([4, 16], 1).shift, [0, 0]);
    }

    const POOLED: [f32; 6] = [15.5, 31.5, 48.5, 110.5, 156.5, 196.0];
    const ENLARGED: [f32; 20] = [
        -0.984_469, -0.977_187, -0.582_031, 0.893_125, 2.012_407, 1.812_563, 2.640_626, 4.398_438, 7.236_25,
        9.176_313, 6.419_438, 8.599_378, 12.601_563, 17.683_75, 20.975_689, 9.216_47, 12.217_191, 17.582_031,
        24.026_876, 28.139_597,
    ];
}
