//! Euler's method and its ancestral variant (Karras et al., arXiv 2206.00364, algorithm 2; k-diffusion).

use super::schedule::{Alphas, PLAIN, Sigmas, exploding};
use super::{Prediction, Sampler, SamplerError, SchedulerConfig, scale_exploding};
use crate::rng::TorchRng;
use serde_json::Value;

pub(super) struct Euler {
    schedule: Sigmas,
    prediction: Prediction,
}

impl Euler {
    pub fn new(c: &SchedulerConfig, steps: usize) -> Result<Self, SamplerError> {
        let alphas = Alphas::new(c, &PLAIN, true, true)?;
        let mut schedule = exploding(c, &PLAIN, &alphas, steps, true, false, true)?;
        let all = alphas.sigmas();
        match c.word("interpolation_type", "linear")? {
            "linear" => {}
            other => return Err(SamplerError::field("interpolation_type", &Value::from(other), "linear")),
        }
        match c.word("final_sigmas_type", "zero")? {
            "zero" => {}
            "sigma_min" => *schedule.sigmas.last_mut().expect("has the end") = all[0],
            other => {
                return Err(SamplerError::field(
                    "final_sigmas_type",
                    &Value::from(other),
                    "zero or sigma_min",
                ));
            }
        }
        if c.word("timestep_type", "discrete")? == "continuous" && c.prediction_type() == Prediction::V {
            // EDM networks take a quarter of the logarithm of sigma.
            schedule.timesteps =
                schedule.sigmas[..steps].iter().map(|s| (0.25 * s.ln()) as f32 as f64).collect();
        }
        schedule.timesteps.iter_mut().for_each(|t| *t = *t as f32 as f64);
        Ok(Euler { schedule, prediction: c.prediction_type() })
    }
}

impl Sampler for Euler {
    fn timesteps(&self) -> &[f64] {
        &self.schedule.timesteps
    }

    fn noised(&self, i: usize) -> (f64, f64) {
        (1.0, self.schedule.sigmas[i])
    }

    fn init_noise_sigma(&self) -> f32 {
        self.schedule.start
    }

    fn scale_model_input(&self, i: usize, sample: &mut [f32]) {
        scale_exploding(sample, self.schedule.sigmas[i]);
    }

    fn step(&mut self, i: usize, output: &[f32], sample: &mut Vec<f32>, _: &mut TorchRng) {
        let (sigma, next) = (self.schedule.sigmas[i], self.schedule.sigmas[i + 1]);
        for (x, o) in sample.iter_mut().zip(output) {
            let derivative = (*x as f64 - self.prediction.denoised(*o, *x, sigma)) / sigma;
            *x = (*x as f64 + derivative * (next - sigma)) as f32;
        }
    }
}

pub(super) struct Ancestral {
    schedule: Sigmas,
    prediction: Prediction,
}

impl Ancestral {
    pub fn new(c: &SchedulerConfig, steps: usize) -> Result<Self, SamplerError> {
        let prediction = c.prediction_type().not_sample("euler_a")?;
        let alphas = Alphas::new(c, &PLAIN, true, true)?;
        Ok(Ancestral { schedule: exploding(c, &PLAIN, &alphas, steps, false, false, false)?, prediction })
    }
}

/// How a step from `from` to `to` splits into a deterministic part (down to the first) and fresh noise (the second).
pub(super) fn ancestral_split(from: f64, to: f64) -> (f64, f64) {
    let up = (to * to * (from * from - to * to) / (from * from)).max(0.0).sqrt();
    ((to * to - up * up).max(0.0).sqrt(), up)
}

impl Sampler for Ancestral {
    fn timesteps(&self) -> &[f64] {
        &self.schedule.timesteps
    }

    fn noised(&self, i: usize) -> (f64, f64) {
        (1.0, self.schedule.sigmas[i])
    }

    fn init_noise_sigma(&self) -> f32 {
        self.schedule.start
    }

    fn scale_model_input(&self, i: usize, sample: &mut [f32]) {
        scale_exploding(sample, self.schedule.sigmas[i]);
    }

    fn step(&mut self, i: usize, output: &[f32], sample: &mut Vec<f32>, rng: &mut TorchRng) {
        let (sigma, next) = (self.schedule.sigmas[i], self.schedule.sigmas[i + 1]);
        let (down, up) = ancestral_split(sigma, next);
        // Drawn at the last step too, where it counts for nothing: later draws must stay in step.
        let noise = rng.normal_f32(sample.len());
        for ((x, o), n) in sample.iter_mut().zip(output).zip(&noise) {
            let derivative = (*x as f64 - self.prediction.denoised(*o, *x, sigma)) / sigma;
            *x = (*x as f64 + derivative * (down - sigma) + *n as f64 * up) as f32;
        }
    }
}
