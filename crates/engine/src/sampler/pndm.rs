//! Pseudo numerical methods (Liu et al., arXiv 2202.09778): linear multistep, optionally after Runge–Kutta steps.

use super::ddim::inside;
use super::schedule::{Alphas, Defaults, PLAIN, spaced};
use super::{Prediction, Sampler, SamplerError, SchedulerConfig, noised_at};
use crate::rng::TorchRng;

const DEFAULTS: Defaults = Defaults { spacing: "leading", ..PLAIN };
/// Runge–Kutta steps, four model calls each.
const WARM_UP: usize = 4;

pub(super) struct Pndm {
    timesteps: Vec<f64>,
    /// Calls of the Runge–Kutta phase.
    warm_up: usize,
    alphas: Alphas,
    last: f64,
    stride: i64,
    prediction: Prediction,
    /// The newest last.
    outputs: Vec<Vec<f64>>,
    sum: Vec<f64>,
    before: Option<Vec<f32>>,
    /// Calls so far: where a picture is the start, the warm-up begins there.
    calls: usize,
}

impl Pndm {
    pub fn new(c: &SchedulerConfig, steps: usize) -> Result<Self, SamplerError> {
        let prediction = c.prediction_type().not_sample("pndm")?;
        let alphas = Alphas::new(c, &DEFAULTS, false, false)?;
        let spaced = spaced(c, &DEFAULTS, steps, true)?;
        let stride = c.train_timesteps() / steps;
        let (timesteps, warm_up) = if c.flag("skip_prk_steps", false)? {
            // The second timestep is visited twice: the first step is corrected once.
            let mut t = spaced.clone();
            if t.len() > 1 {
                t.insert(1, t[1]);
            }
            (t, 0)
        } else {
            if steps < WARM_UP {
                return Err(SamplerError::Steps(format!(
                    "pndm with Runge–Kutta steps needs at least {WARM_UP} steps, not {steps}"
                )));
            }
            // Each of the first steps in halves; the inner points twice.
            let half = (stride / 2) as f64;
            let points: Vec<f64> =
                spaced[..WARM_UP].iter().rev().flat_map(|t| [*t, t + half]).take(2 * WARM_UP - 1).collect();
            let doubled: Vec<f64> = points.iter().flat_map(|t| [*t; 2]).collect();
            let mut t: Vec<f64> = doubled[1..doubled.len() - 1].iter().rev().copied().collect();
            let warm_up = t.len();
            t.extend_from_slice(&spaced[3..]);
            (t, warm_up)
        };
        inside(&timesteps, c.train_timesteps())?;
        Ok(Pndm {
            timesteps,
            warm_up,
            last: if c.flag("set_alpha_to_one", false)? { 1.0 } else { alphas.at(0) },
            alphas,
            stride: stride as i64,
            prediction,
            outputs: Vec::new(),
            sum: Vec::new(),
            before: None,
            calls: 0,
        })
    }

    /// The transfer of the paper's equation 11.
    fn transfer(&self, sample: &[f32], output: &[f64], from: i64, to: i64) -> Vec<f32> {
        let a = self.alphas.at(from);
        let b = if to >= 0 { self.alphas.at(to) } else { self.last };
        let scale = (b / a).sqrt();
        let divisor = a * (1.0 - b).sqrt() + (a * (1.0 - a) * b).sqrt();
        let (alpha, sigma) = (a.sqrt(), (1.0 - a).sqrt());
        let noise = |o: f64, x: f32| match self.prediction {
            Prediction::V => alpha * o + sigma * x as f64,
            _ => o,
        };
        sample
            .iter()
            .zip(output)
            .map(|(x, o)| (scale * *x as f64 - (b - a) * noise(*o, *x) / divisor) as f32)
            .collect()
    }

    fn runge_kutta(&mut self, i: usize, output: &[f64], sample: &mut Vec<f32>) {
        let to = self.timesteps[i] as i64 - if self.calls % 2 == 1 { 0 } else { self.stride / 2 };
        let from = self.timesteps[self.calls / 4 * 4] as i64;
        self.sum.resize(output.len(), 0.0);
        let mut add = |part: f64| self.sum.iter_mut().zip(output).for_each(|(s, o)| *s += part * o);
        let mut slope = output.to_vec();
        match self.calls % 4 {
            0 => {
                add(1.0 / 6.0);
                self.outputs.push(output.to_vec());
                self.before = Some(sample.clone());
            }
            1 | 2 => add(1.0 / 3.0),
            _ => {
                add(1.0 / 6.0);
                slope = std::mem::take(&mut self.sum);
            }
        }
        let start = self.before.clone().unwrap_or_else(|| sample.clone());
        *sample = self.transfer(&start, &slope, from, to);
    }

    fn multistep(&mut self, i: usize, output: &[f64], sample: &mut Vec<f32>) {
        let mut from = self.timesteps[i] as i64;
        let mut to = from - self.stride;
        if self.calls == 1 {
            (to, from) = (from, from + self.stride);
        } else {
            let keep = self.outputs.len().saturating_sub(3);
            self.outputs.drain(..keep);
            self.outputs.push(output.to_vec());
        }
        let n = self.outputs.len();
        let mix = |weights: &[f64]| -> Vec<f64> {
            (0..output.len())
                .map(|p| weights.iter().enumerate().map(|(k, w)| w * self.outputs[n - 1 - k][p]).sum())
                .collect()
        };
        let (start, slope) = match (n, self.calls) {
            (1, 0) => {
                self.before = Some(sample.clone());
                (sample.clone(), output.to_vec())
            }
            (1, 1) => {
                let slope = output.iter().zip(&self.outputs[0]).map(|(a, b)| (a + b) / 2.0).collect();
                (self.before.take().unwrap_or_else(|| sample.clone()), slope)
            }
            (2, _) => (sample.clone(), mix(&[1.5, -0.5])),
            (3, _) => (sample.clone(), mix(&[23.0 / 12.0, -16.0 / 12.0, 5.0 / 12.0])),
            (1, _) => (sample.clone(), mix(&[1.0])),
            _ => (sample.clone(), mix(&[55.0 / 24.0, -59.0 / 24.0, 37.0 / 24.0, -9.0 / 24.0])),
        };
        *sample = self.transfer(&start, &slope, from, to);
    }
}

impl Sampler for Pndm {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn noised(&self, i: usize) -> (f64, f64) {
        noised_at(&self.alphas, self.timesteps[i])
    }

    fn step(&mut self, i: usize, output: &[f32], sample: &mut Vec<f32>, _: &mut TorchRng) {
        let output: Vec<f64> = output.iter().map(|v| *v as f64).collect();
        if self.calls < self.warm_up {
            self.runge_kutta(i, &output, sample)
        } else {
            self.multistep(i, &output, sample)
        }
        self.calls += 1;
    }
}
