//! Values of a network's output, resized.

/// Values in planes: [channels, height, width].
#[derive(Clone, Debug)]
pub struct Planes {
    pub channels: usize,
    pub height: usize,
    pub width: usize,
    pub values: Vec<f32>,
}

/// How values between samples are found.
#[derive(Clone, Copy)]
pub enum Between {
    /// As OpenCV's `INTER_LINEAR` and torch's `bilinear`.
    Linear,
    /// As torch's `bicubic`: Keys' kernel with a = -3/4.
    Cubic,
}

impl Between {
    fn weights(self, t: f64) -> [f64; 4] {
        match self {
            Between::Linear => [0.0, 1.0 - t, t, 0.0],
            Between::Cubic => {
                const A: f64 = -0.75;
                let near = |x: f64| ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0;
                let far = |x: f64| ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A;
                [far(1.0 + t), near(t), near(1.0 - t), far(2.0 - t)]
            }
        }
    }
}

impl Planes {
    /// One of its planes, or several.
    pub fn first(mut self, channels: usize) -> Self {
        self.values.truncate(channels * self.height * self.width);
        self.channels = self.channels.min(channels);
        self
    }

    /// Samples at pixel centres, edges repeated, nothing averaged where it shrinks.
    pub fn resized(&self, width: usize, height: usize, between: Between) -> Planes {
        if (width, height) == (self.width, self.height) {
            return self.clone();
        }
        let columns = taps(self.width, width, between);
        let rows = taps(self.height, height, between);
        let mut values = Vec::with_capacity(self.channels * width * height);
        for plane in self.values.chunks_exact(self.width * self.height) {
            for (ys, wy) in &rows {
                for (xs, wx) in &columns {
                    let line = |y: usize| -> f64 {
                        let line = &plane[y * self.width..][..self.width];
                        xs.iter().zip(wx).map(|(x, w)| f64::from(line[*x]) * w).sum()
                    };
                    values.push(ys.iter().zip(wy).map(|(y, w)| line(*y) * w).sum::<f64>() as f32);
                }
            }
        }
        Planes { channels: self.channels, height, width, values }
    }
}

/// Four samples and their weights for each place of an axis.
fn taps(from: usize, to: usize, between: Between) -> Vec<([usize; 4], [f64; 4])> {
    let tap = |i: usize| {
        let x = (i as f64 + 0.5) * from as f64 / to as f64 - 0.5;
        let x = if matches!(between, Between::Linear) { x.max(0.0) } else { x };
        let base = x.floor();
        let at = |k: isize| (base as isize + k).clamp(0, from as isize - 1) as usize;
        ([at(-1), at(0), at(1), at(2)], between.weights(x - base))
    };
    (0..to).map(tap).collect()
}
