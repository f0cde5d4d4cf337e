//! Methods with two model calls a step: Heun (Karras et al., arXiv 2206.00364, algorithm 1) and DPM-Solver-2 as in
//! k-diffusion (`sample_dpm_2`, `sample_dpm_2_ancestral`).

use super::euler::ancestral_split;
use super::schedule::{Alphas, Defaults, Sigmas, exploding, logs, timestep_of};
use super::{Clip, Prediction, Sampler, SamplerError, SchedulerConfig, scale_exploding};
use crate::rng::TorchRng;

/// These classes have Stable Diffusion's betas as defaults.
const DEFAULTS: Defaults =
    Defaults { beta_start: 0.00085, beta_end: 0.012, beta_schedule: "linear", spacing: "linspace" };

pub(super) struct Heun {
    schedule: Sigmas,
    prediction: Prediction,
    clip: Clip,
    /// The first call's derivative and sample.
    first: Option<(Vec<f64>, Vec<f32>)>,
}

impl Heun {
    pub fn new(c: &SchedulerConfig, steps: usize) -> Result<Self, SamplerError> {
        let alphas = Alphas::new(c, &DEFAULTS, false, false)?;
        let mut schedule = exploding(c, &DEFAULTS, &alphas, steps, true, false, true)?;
        // Every timestep but the first is visited twice: as the end of one step and the start of the next.
        let t = &schedule.timesteps;
        schedule.timesteps = t.iter().flat_map(|t| [*t as f32 as f64; 2]).skip(1).collect();
        Ok(Heun { schedule, prediction: c.prediction_type(), clip: Clip::new(c, false)?, first: None })
    }

    /// Sigma before and after the step that call `i` belongs to.
    fn ends(&self, i: usize) -> (f64, f64) {
        let s = i / 2;
        (self.schedule.sigmas[s], self.schedule.sigmas[s + 1])
    }
}

impl Sampler for Heun {
    fn timesteps(&self) -> &[f64] {
        &self.schedule.timesteps
    }

    fn noised(&self, i: usize) -> (f64, f64) {
        (1.0, self.schedule.sigmas[i.div_ceil(2)])
    }

    fn calls_per_step(&self) -> usize {
        2
    }

    fn init_noise_sigma(&self) -> f32 {
        self.schedule.start
    }

    fn scale_model_input(&self, i: usize, sample: &mut [f32]) {
        scale_exploding(sample, self.schedule.sigmas[i.div_ceil(2)]);
    }

    fn step(&mut self, i: usize, output: &[f32], sample: &mut Vec<f32>, _: &mut TorchRng) {
        let (sigma, next) = self.ends(i);
        let at = if self.first.is_none() { sigma } else { next };
        let mut clean: Vec<f64> =
            output.iter().zip(sample.iter()).map(|(o, x)| self.prediction.denoised(*o, *x, at)).collect();
        if self.clip.range.is_some() {
            self.clip.apply(&mut clean);
        }
        let derivative: Vec<f64> = sample.iter().zip(&clean).map(|(x, c)| (*x as f64 - c) / at).collect();
        match self.first.take() {
            None => {
                let before = sample.clone();
                for (x, d) in sample.iter_mut().zip(&derivative) {
                    *x = (*x as f64 + d * (next - sigma)) as f32;
                }
                self.first = Some((derivative, before));
            }
            Some((first, before)) => {
                for (((x, b), d0), d1) in sample.iter_mut().zip(&before).zip(&first).zip(&derivative) {
                    *x = (*b as f64 + (d0 + d1) / 2.0 * (next - sigma)) as f32;
                }
            }
        }
    }
}

pub(super) struct Dpm2 {
    /// Sigma before, at the middle, and after each step.
    steps: Vec<(f64, f64, f64)>,
    timesteps: Vec<f64>,
    start: f32,
    prediction: Prediction,
    before: Option<Vec<f32>>,
}

impl Dpm2 {
    pub fn new(c: &SchedulerConfig, steps: usize) -> Result<Self, SamplerError> {
        let prediction = c.prediction_type().not_sample("dpm2")?;
        let alphas = Alphas::new(c, &DEFAULTS, false, false)?;
        let schedule = exploding(c, &DEFAULTS, &alphas, steps, true, true, false)?;
        let log_sigmas = logs(&alphas.sigmas());
        let s = &schedule.sigmas;
        let middle = |i: usize| ((s[i].ln() + s[i + 1].ln()) / 2.0).exp();
        let steps: Vec<_> = (0..schedule.timesteps.len()).map(|i| (s[i], middle(i), s[i + 1])).collect();
        Ok(Dpm2 {
            timesteps: twice(&schedule.timesteps, &steps, &log_sigmas),
            steps,
            start: schedule.start,
            prediction,
            before: None,
        })
    }
}

/// Each step's own timestep and its middle's; the last step has no middle, since it ends at zero.
fn twice(timesteps: &[f64], steps: &[(f64, f64, f64)], log_sigmas: &[f64]) -> Vec<f64> {
    let both =
        timesteps.iter().zip(steps).flat_map(|(t, (_, middle, _))| [*t, timestep_of(*middle, log_sigmas)]);
    both.take(2 * timesteps.len() - 1).collect()
}

impl Sampler for Dpm2 {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn noised(&self, i: usize) -> (f64, f64) {
        (1.0, self.steps.get(i.div_ceil(2)).map_or(0.0, |s| s.0))
    }

    fn calls_per_step(&self) -> usize {
        2
    }

    fn init_noise_sigma(&self) -> f32 {
        self.start
    }

    fn scale_model_input(&self, i: usize, sample: &mut [f32]) {
        let (sigma, middle, _) = self.steps[i / 2];
        scale_exploding(sample, if i % 2 == 0 { sigma } else { middle });
    }

    fn step(&mut self, i: usize, output: &[f32], sample: &mut Vec<f32>, _: &mut TorchRng) {
        let (sigma, middle, next) = self.steps[i / 2];
        step_half(&mut self.before, self.prediction, output, sample, [sigma, middle, next]);
    }
}

/// The first half goes to the middle, the second from the start to the end with the middle's derivative.
fn step_half(
    before: &mut Option<Vec<f32>>,
    prediction: Prediction,
    output: &[f32],
    sample: &mut [f32],
    [sigma, middle, next]: [f64; 3],
) {
    let derivative = |o: f32, x: f32, at: f64| (x as f64 - prediction.denoised(o, x, at)) / at;
    match before.take() {
        None => {
            *before = Some(sample.to_vec());
            for (x, o) in sample.iter_mut().zip(output) {
                *x = (*x as f64 + derivative(*o, *x, sigma) * (middle - sigma)) as f32;
            }
        }
        Some(start) => {
            for ((x, o), s) in sample.iter_mut().zip(output).zip(&start) {
                *x = (*s as f64 + derivative(*o, *x, middle) * (next - sigma)) as f32;
            }
        }
    }
}

pub(super) struct Dpm2Ancestral {
    /// Sigma before, at the middle, after the deterministic part, and the fresh noise of each step.
    steps: Vec<(f64, f64, f64, f64)>,
    timesteps: Vec<f64>,
    start: f32,
    prediction: Prediction,
    before: Option<Vec<f32>>,
}

impl Dpm2Ancestral {
    pub fn new(c: &SchedulerConfig, steps: usize) -> Result<Self, SamplerError> {
        let prediction = c.prediction_type().not_sample("dpm2_a")?;
        let alphas = Alphas::new(c, &DEFAULTS, false, false)?;
        let schedule = exploding(c, &DEFAULTS, &alphas, steps, true, true, false)?;
        let log_sigmas = logs(&alphas.sigmas());
        let s = &schedule.sigmas;
        let n = schedule.timesteps.len();
        let steps: Vec<_> = (0..n)
            .map(|i| {
                let (down, up) = ancestral_split(s[i], s[i + 1]);
                let middle = if i + 1 == n { 0.0 } else { ((s[i].ln() + down.ln()) / 2.0).exp() };
                (s[i], middle, down, up)
            })
            .collect();
        let middles: Vec<_> = steps.iter().map(|(a, m, b, _)| (*a, *m, *b)).collect();
        Ok(Dpm2Ancestral {
            timesteps: twice(&schedule.timesteps, &middles, &log_sigmas),
            steps,
            start: schedule.start,
            prediction,
            before: None,
        })
    }
}

impl Sampler for Dpm2Ancestral {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn noised(&self, i: usize) -> (f64, f64) {
        (1.0, self.steps.get(i.div_ceil(2)).map_or(0.0, |s| s.0))
    }

    fn calls_per_step(&self) -> usize {
        2
    }

    fn init_noise_sigma(&self) -> f32 {
        self.start
    }

    fn scale_model_input(&self, i: usize, sample: &mut [f32]) {
        let (sigma, middle, ..) = self.steps[i / 2];
        scale_exploding(sample, if i % 2 == 0 { sigma } else { middle });
    }

    fn step(&mut self, i: usize, output: &[f32], sample: &mut Vec<f32>, rng: &mut TorchRng) {
        let (sigma, middle, down, up) = self.steps[i / 2];
        let second = self.before.is_some();
        step_half(&mut self.before, self.prediction, output, sample, [sigma, middle, down]);
        if second {
            let noise = rng.normal_f32(sample.len());
            sample.iter_mut().zip(&noise).for_each(|(x, n)| *x = (*x as f64 + *n as f64 * up) as f32);
        }
    }
}
