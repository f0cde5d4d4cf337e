//! Samplers: each maps a schedule and the network's predictions to a trajectory, as diffusers' class of the same row does.
//!
//! A schedule (`schedule.rs`), what a prediction means ([`Prediction`]) and the sampler itself are three independent
//! things. To add a sampler: one file, one row in [`SAMPLERS`] (`names.rs`), one arm in [`build`].

mod config;
mod consistency;
mod ddim;
mod dpmpp;
mod euler;
mod lms;
mod names;
mod pndm;
mod schedule;
mod second_order;
mod unipc;

pub use config::{Prediction, SchedulerConfig};
pub use names::{SAMPLERS, SCHEDULES, SamplerInfo, ScheduleInfo, find, named};

use crate::rng::TorchRng;
use serde_json::Value;

/// What cannot be sampled, and what can.
#[derive(Debug, thiserror::Error)]
pub enum SamplerError {
    /// The scheduler configuration is out of range.
    #[error("scheduler_config.json: {0}")]
    Config(String),
    /// No such sampler.
    #[error("{0}")]
    Unknown(String),
    /// The sampler cannot take this number of steps.
    #[error("{0}")]
    Steps(String),
}

impl SamplerError {
    fn field(key: &str, value: &Value, allowed: &str) -> Self {
        SamplerError::Config(format!("{key} is {value}, expected {allowed}"))
    }
}

/// One run of a sampler. Calls come in order, `i` from 0, or from a later one where a picture is the start.
pub trait Sampler: Send {
    /// The timestep of every model call.
    fn timesteps(&self) -> &[f64];

    /// Factor of the initial noise.
    fn init_noise_sigma(&self) -> f32 {
        1.0
    }

    /// Model calls of a step.
    fn calls_per_step(&self) -> usize {
        1
    }

    /// How a clean sample is mixed with noise so that it could be the sample before call `i`: the factors of the clean
    /// sample and of the noise (diffusers' `add_noise`).
    fn noised(&self, i: usize) -> (f64, f64);

    /// What the network gets at call `i` for the sample, in place.
    fn scale_model_input(&self, _i: usize, _sample: &mut [f32]) {}

    /// The next sample, in place; draws from `rng` where the method is stochastic.
    fn step(&mut self, i: usize, output: &[f32], sample: &mut Vec<f32>, rng: &mut TorchRng);
}

/// A sampler for this configuration and number of steps; `None` is the checkpoint's own. The schedule may be part of the
/// sampler's name.
///
/// # Errors
/// If there is no such sampler, or it cannot take the schedule, the configuration or the number of steps.
pub fn build(
    name: Option<&str>,
    schedule: Option<&str>,
    config: &SchedulerConfig,
    steps: usize,
) -> Result<Box<dyn Sampler>, SamplerError> {
    let train = config.train_timesteps();
    if steps == 0 || steps > train {
        return Err(SamplerError::Steps(format!("steps is {steps}, but must lie between 1 and {train}")));
    }
    let (asked, schedule) = match name {
        Some(name) => named(name, schedule).map(|(row, schedule)| (Some(row), schedule))?,
        None => (None, schedule),
    };
    let class = match asked {
        Some(row) => row.class,
        None => config.class_name().unwrap_or("EulerDiscreteScheduler"),
    };
    let row = asked.or_else(|| SAMPLERS.iter().find(|s| s.class == class));
    let config = &names::settled(config, row, asked.is_some(), schedule)?;
    Ok(match class {
        "EulerDiscreteScheduler" => Box::new(euler::Euler::new(config, steps)?),
        "EulerAncestralDiscreteScheduler" => Box::new(euler::Ancestral::new(config, steps)?),
        "DDIMScheduler" => Box::new(ddim::Ddim::new(config, steps)?),
        "DPMSolverMultistepScheduler" => Box::new(dpmpp::Multistep::new(config, steps)?),
        "UniPCMultistepScheduler" => Box::new(unipc::UniPc::new(config, steps)?),
        "HeunDiscreteScheduler" => Box::new(second_order::Heun::new(config, steps)?),
        "LMSDiscreteScheduler" => Box::new(lms::Lms::new(config, steps)?),
        "PNDMScheduler" => Box::new(pndm::Pndm::new(config, steps)?),
        "LCMScheduler" => Box::new(consistency::Lcm::new(config, steps)?),
        "DDPMScheduler" => Box::new(ddim::Ddpm::new(config, steps)?),
        "KDPM2DiscreteScheduler" => Box::new(second_order::Dpm2::new(config, steps)?),
        "KDPM2AncestralDiscreteScheduler" => Box::new(second_order::Dpm2Ancestral::new(config, steps)?),
        "TCDScheduler" => Box::new(consistency::Tcd::new(config, steps)?),
        other => {
            return Err(SamplerError::Unknown(format!(
                "the checkpoint's own sampler {other} is not supported; choose one of {}",
                SAMPLERS.iter().map(|s| s.name).collect::<Vec<_>>().join(", ")
            )));
        }
    })
}

impl Prediction {
    /// The clean latents, where the sample is clean + sigma · noise.
    fn denoised(self, output: f32, sample: f32, sigma: f64) -> f64 {
        let (o, x) = (output as f64, sample as f64);
        match self {
            Prediction::Epsilon => x - sigma * o,
            Prediction::V => o * (-sigma / (sigma * sigma + 1.0).sqrt()) + x / (sigma * sigma + 1.0),
            Prediction::Sample => o,
        }
    }

    /// The clean latents, where the sample is alpha · clean + sigma · noise.
    fn clean(self, output: f32, sample: f32, alpha: f64, sigma: f64) -> f64 {
        let (o, x) = (output as f64, sample as f64);
        match self {
            Prediction::Epsilon => (x - sigma * o) / alpha,
            Prediction::V => alpha * x - sigma * o,
            Prediction::Sample => o,
        }
    }

    /// The noise, where the sample is alpha · clean + sigma · noise.
    fn noise(self, output: f32, sample: f32, alpha: f64, sigma: f64) -> f64 {
        let (o, x) = (output as f64, sample as f64);
        match self {
            Prediction::Epsilon => o,
            Prediction::V => alpha * o + sigma * x,
            Prediction::Sample => (x - alpha * o) / sigma,
        }
    }

    /// Refuses what a class cannot do.
    fn not_sample(self, class: &str) -> Result<Self, SamplerError> {
        if self == Prediction::Sample {
            return Err(SamplerError::Config(format!(
                "prediction_type \"sample\" does not work with {class}; choose another sampler"
            )));
        }
        Ok(self)
    }
}

/// The clean sample that a prediction at call `i` implies: for previews.
pub(crate) fn implied(
    sampler: &dyn Sampler,
    prediction: Prediction,
    i: usize,
    output: &[f32],
    sample: &[f32],
) -> Vec<f32> {
    let (alpha, sigma) = sampler.noised(i);
    let alpha = alpha.max(1e-4);
    let clean =
        |(o, x): (&f32, &f32)| prediction.denoised(*o, (f64::from(*x) / alpha) as f32, sigma / alpha) as f32;
    output.iter().zip(sample).map(clean).collect()
}

/// [`Sampler::noised`] of the classes that are indexed by timestep.
fn noised_at(alphas: &schedule::Alphas, timestep: f64) -> (f64, f64) {
    let a = alphas.at(timestep as i64);
    (a.sqrt(), (1.0 - a).sqrt())
}

/// Divides by √(sigma² + 1): the input of networks trained on the variance-preserving form.
fn scale_exploding(sample: &mut [f32], sigma: f64) {
    let divisor = (sigma * sigma + 1.0).sqrt() as f32;
    sample.iter_mut().for_each(|v| *v /= divisor);
}

/// What some classes do to the predicted clean latents.
struct Clip {
    /// Largest magnitude, where `clip_sample` is on.
    range: Option<f64>,
    /// Dynamic thresholding (Saharia et al., arXiv 2205.11487): ratio and largest value.
    threshold: Option<(f64, f64)>,
}

impl Clip {
    fn new(c: &SchedulerConfig, clip_default: bool) -> Result<Self, SamplerError> {
        let threshold = c.flag("thresholding", false)?;
        let clip = c.flag("clip_sample", clip_default)?;
        Ok(Clip {
            range: if clip && !threshold { Some(c.number("clip_sample_range", 1.0)?) } else { None },
            threshold: if threshold {
                Some((c.number("dynamic_thresholding_ratio", 0.995)?, c.number("sample_max_value", 1.0)?))
            } else {
                None
            },
        })
    }

    fn apply(&self, x: &mut [f64]) {
        if let Some(range) = self.range {
            x.iter_mut().for_each(|v| *v = v.clamp(-range, range));
        }
        if let Some((ratio, most)) = self.threshold {
            let mut sizes: Vec<f64> = x.iter().map(|v| v.abs()).collect();
            sizes.sort_by(f64::total_cmp);
            let s =
                schedule::interpolate(&sizes, ratio * (sizes.len() - 1) as f64).max(1.0).min(most.max(1.0));
            x.iter_mut().for_each(|v| *v = v.clamp(-s, s) / s);
        }
    }
}

#[cfg(test)]
mod tests;
