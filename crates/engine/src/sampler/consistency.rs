//! Few-step samplers of distilled models: LCM (Luo et al., arXiv 2310.04378) and TCD (Zheng et al., arXiv 2402.19159,
//! gamma 0 as diffusers' pipelines pass it).

use super::schedule::{Alphas, Defaults};
use super::{Clip, Prediction, Sampler, SamplerError, SchedulerConfig, noised_at};
use crate::rng::TorchRng;

const DEFAULTS: Defaults =
    Defaults { beta_start: 0.00085, beta_end: 0.012, beta_schedule: "scaled_linear", spacing: "leading" };
/// `sigma_data` of the boundary condition.
const SIGMA_DATA: f64 = 0.5;

/// A subset of the timesteps of distillation.
fn subset(c: &SchedulerConfig, steps: usize) -> Result<Vec<f64>, SamplerError> {
    let original = c.number("original_inference_steps", 50.0)?;
    let train = c.train_timesteps();
    if original < 1.0 || original > train as f64 {
        return Err(SamplerError::Config(format!(
            "original_inference_steps is {original}, expected 1 to {train}"
        )));
    }
    let original = original as usize;
    if steps > original {
        return Err(SamplerError::Steps(format!(
            "steps is {steps}, but this sampler can take at most {original} (original_inference_steps)"
        )));
    }
    let k = train / original;
    let all: Vec<f64> = (1..=original).rev().map(|i| (i * k) as f64 - 1.0).collect();
    Ok((0..steps).map(|i| all[(i as f64 * (original as f64 / steps as f64)).floor() as usize]).collect())
}

pub(super) struct Lcm {
    timesteps: Vec<f64>,
    alphas: Alphas,
    scaling: f64,
    prediction: Prediction,
    clip: Clip,
}

impl Lcm {
    pub fn new(c: &SchedulerConfig, steps: usize) -> Result<Self, SamplerError> {
        Ok(Lcm {
            timesteps: subset(c, steps)?,
            alphas: Alphas::new(c, &DEFAULTS, true, false)?,
            scaling: c.number("timestep_scaling", 10.0)?,
            prediction: c.prediction_type(),
            clip: Clip::new(c, false)?,
        })
    }
}

impl Sampler for Lcm {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn noised(&self, i: usize) -> (f64, f64) {
        noised_at(&self.alphas, self.timesteps[i])
    }

    fn step(&mut self, i: usize, output: &[f32], sample: &mut Vec<f32>, rng: &mut TorchRng) {
        let t = self.timesteps[i];
        let a = self.alphas.at(t as i64);
        let next = self.timesteps.get(i + 1).map(|t| self.alphas.at(*t as i64));
        let scaled = t * self.scaling;
        let skip = SIGMA_DATA * SIGMA_DATA / (scaled * scaled + SIGMA_DATA * SIGMA_DATA);
        let out = scaled / (scaled * scaled + SIGMA_DATA * SIGMA_DATA).sqrt();
        let p = self.prediction;
        let (alpha, sigma) = (a.sqrt(), (1.0 - a).sqrt());
        let mut clean: Vec<f64> =
            output.iter().zip(sample.iter()).map(|(o, x)| p.clean(*o, *x, alpha, sigma)).collect();
        self.clip.apply(&mut clean);
        let noise = next.map(|_| rng.normal_f32(sample.len()));
        for (p, (x, c)) in sample.iter_mut().zip(&clean).enumerate() {
            let denoised = out * c + skip * *x as f64;
            *x = match (next, &noise) {
                (Some(a), Some(n)) => a.sqrt() * denoised + (1.0 - a).sqrt() * n[p] as f64,
                _ => denoised,
            } as f32;
        }
    }
}

pub(super) struct Tcd {
    timesteps: Vec<f64>,
    alphas: Alphas,
    prediction: Prediction,
}

impl Tcd {
    pub fn new(c: &SchedulerConfig, steps: usize) -> Result<Self, SamplerError> {
        Ok(Tcd {
            timesteps: subset(c, steps)?,
            alphas: Alphas::new(c, &DEFAULTS, true, false)?,
            prediction: c.prediction_type(),
        })
    }
}

impl Sampler for Tcd {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn noised(&self, i: usize) -> (f64, f64) {
        noised_at(&self.alphas, self.timesteps[i])
    }

    fn step(&mut self, i: usize, output: &[f32], sample: &mut Vec<f32>, _: &mut TorchRng) {
        let a = self.alphas.at(self.timesteps[i] as i64);
        // With gamma 0 the sample goes straight to the next timestep, the last one to timestep 0.
        let to = self.alphas.at(self.timesteps.get(i + 1).map_or(0, |t| *t as i64));
        let (alpha, sigma) = (a.sqrt(), (1.0 - a).sqrt());
        for (x, o) in sample.iter_mut().zip(output) {
            let clean = self.prediction.clean(*o, *x, alpha, sigma);
            let noise = self.prediction.noise(*o, *x, alpha, sigma);
            *x = (to.sqrt() * clean + (1.0 - to).sqrt() * noise) as f32;
        }
    }
}
