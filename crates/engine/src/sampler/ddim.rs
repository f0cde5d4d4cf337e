//! DDIM without noise (Song et al., arXiv 2010.02502, equation 12) and DDPM (Ho et al., arXiv 2006.11239, algorithm 2).

use super::schedule::{Alphas, Defaults, PLAIN, spaced};
use super::{Clip, Prediction, Sampler, SamplerError, SchedulerConfig, noised_at};
use crate::rng::TorchRng;
use serde_json::Value;

const DEFAULTS: Defaults = Defaults { spacing: "leading", ..PLAIN };

/// Refuses timesteps beyond the schedule (a `steps_offset` too large for this number of steps).
pub(super) fn inside(timesteps: &[f64], train: usize) -> Result<(), SamplerError> {
    match timesteps.iter().find(|t| **t < 0.0 || **t >= train as f64) {
        None => Ok(()),
        Some(t) => Err(SamplerError::Steps(format!(
            "timestep {t} lies outside the {train} timesteps of training; take fewer steps or another sampler"
        ))),
    }
}

pub(super) struct Ddim {
    timesteps: Vec<f64>,
    alphas: Alphas,
    last: f64,
    stride: i64,
    prediction: Prediction,
    clip: Clip,
}

impl Ddim {
    pub fn new(c: &SchedulerConfig, steps: usize) -> Result<Self, SamplerError> {
        let alphas = Alphas::new(c, &DEFAULTS, true, false)?;
        let timesteps = spaced(c, &DEFAULTS, steps, true)?;
        inside(&timesteps, c.train_timesteps())?;
        Ok(Ddim {
            last: if c.flag("set_alpha_to_one", true)? { 1.0 } else { alphas.at(0) },
            stride: (c.train_timesteps() / steps) as i64,
            timesteps,
            alphas,
            prediction: c.prediction_type(),
            clip: Clip::new(c, true)?,
        })
    }
}

impl Sampler for Ddim {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn noised(&self, i: usize) -> (f64, f64) {
        noised_at(&self.alphas, self.timesteps[i])
    }

    fn step(&mut self, i: usize, output: &[f32], sample: &mut Vec<f32>, _: &mut TorchRng) {
        let t = self.timesteps[i] as i64;
        let before = t - self.stride;
        let a = self.alphas.at(t);
        let to = if before >= 0 { self.alphas.at(before) } else { self.last };
        let (alpha, sigma) = (a.sqrt(), (1.0 - a).sqrt());
        let p = self.prediction;
        let mut clean: Vec<f64> =
            output.iter().zip(sample.iter()).map(|(o, x)| p.clean(*o, *x, alpha, sigma)).collect();
        // The noise comes from the prediction before clipping, except where the prediction is the clean sample.
        let noise: Vec<f64> =
            output.iter().zip(sample.iter()).map(|(o, x)| p.noise(*o, *x, alpha, sigma)).collect();
        self.clip.apply(&mut clean);
        for ((x, c), n) in sample.iter_mut().zip(&clean).zip(&noise) {
            *x = (to.sqrt() * c + (1.0 - to).sqrt() * n) as f32;
        }
    }
}

pub(super) struct Ddpm {
    timesteps: Vec<f64>,
    alphas: Alphas,
    prediction: Prediction,
    clip: Clip,
    variance: Variance,
}

/// `variance_type`.
#[derive(Clone, Copy)]
enum Variance {
    Small,
    SmallLog,
    Large,
    LargeLog,
}

impl Ddpm {
    pub fn new(c: &SchedulerConfig, steps: usize) -> Result<Self, SamplerError> {
        let alphas = Alphas::new(c, &DEFAULTS, true, false)?;
        let timesteps = spaced(c, &DEFAULTS, steps, true)?;
        inside(&timesteps, c.train_timesteps())?;
        let variance = match c.word("variance_type", "fixed_small")? {
            "fixed_small" => Variance::Small,
            "fixed_small_log" => Variance::SmallLog,
            "fixed_large" => Variance::Large,
            "fixed_large_log" => Variance::LargeLog,
            other => {
                return Err(SamplerError::field(
                    "variance_type",
                    &Value::from(other),
                    "fixed_small, fixed_small_log or fixed_large",
                ));
            }
        };
        Ok(Ddpm { timesteps, alphas, prediction: c.prediction_type(), clip: Clip::new(c, true)?, variance })
    }
}

impl Sampler for Ddpm {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn noised(&self, i: usize) -> (f64, f64) {
        noised_at(&self.alphas, self.timesteps[i])
    }

    fn step(&mut self, i: usize, output: &[f32], sample: &mut Vec<f32>, rng: &mut TorchRng) {
        let t = self.timesteps[i] as i64;
        let a = self.alphas.at(t);
        let before = self.timesteps.get(i + 1).map_or(1.0, |t| self.alphas.at(*t as i64));
        let (current, beta) = (a / before, 1.0 - a / before);
        let p = self.prediction;
        let (alpha, sigma) = (a.sqrt(), (1.0 - a).sqrt());
        let mut clean: Vec<f64> =
            output.iter().zip(sample.iter()).map(|(o, x)| p.clean(*o, *x, alpha, sigma)).collect();
        self.clip.apply(&mut clean);
        let (of_clean, of_sample) =
            (before.sqrt() * beta / (1.0 - a), current.sqrt() * (1.0 - before) / (1.0 - a));
        let small = ((1.0 - before) / (1.0 - a) * beta).max(1e-20);
        let deviation = match self.variance {
            Variance::Small | Variance::SmallLog => small.sqrt(),
            Variance::Large => beta.sqrt(),
            Variance::LargeLog => beta.ln().sqrt(),
        };
        let noise = if t > 0 { Some(rng.normal_f32(sample.len())) } else { None };
        for (p, (x, c)) in sample.iter_mut().zip(&clean).enumerate() {
            let fresh = noise.as_ref().map_or(0.0, |n| deviation * n[p] as f64);
            *x = (of_clean * c + of_sample * *x as f64 + fresh) as f32;
        }
    }
}
