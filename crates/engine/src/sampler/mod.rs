//! Samplers: each maps a schedule and the network's predictions to a trajectory, as diffusers' class of the same row does.
//!
//! A schedule (`schedule.rs`), what a prediction means ([`Prediction`]) and the sampler itself are three independent
//! things. To add a sampler: one file, one row in [`SAMPLERS`], one arm in [`build`].

mod config;
mod consistency;
mod ddim;
mod dpmpp;
mod euler;
mod lms;
mod pndm;
mod schedule;
mod second_order;
mod unipc;

pub use config::{Prediction, SchedulerConfig};

use crate::rng::TorchRng;
use serde_json::{Value, json};

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

/// One row per sampler: the command line, the docs and the schema come from this table.
pub struct SamplerInfo {
    /// Name in requests.
    pub name: &'static str,
    /// diffusers' class.
    pub class: &'static str,
    /// One line for people.
    pub about: &'static str,
}

const fn row(name: &'static str, class: &'static str, about: &'static str) -> SamplerInfo {
    SamplerInfo { name, class, about }
}

/// All samplers.
pub const SAMPLERS: &[SamplerInfo] = &[
    row("euler", "EulerDiscreteScheduler", "Euler's method; SDXL's own"),
    row("euler_a", "EulerAncestralDiscreteScheduler", "Euler's method with fresh noise at each step"),
    row("ddim", "DDIMScheduler", "DDIM, deterministic"),
    row("dpmpp_2m", "DPMSolverMultistepScheduler", "DPM-Solver++ (2M): good in 20 to 30 steps"),
    row("dpmpp_2m_karras", "DPMSolverMultistepScheduler", "DPM-Solver++ (2M) on Karras' sigmas"),
    row(
        "dpmpp_2m_sde_karras",
        "DPMSolverMultistepScheduler",
        "stochastic DPM-Solver++ (2M) on Karras' sigmas",
    ),
    row("unipc", "UniPCMultistepScheduler", "UniPC: good in 10 to 20 steps"),
    row("heun", "HeunDiscreteScheduler", "Heun's method: two model calls a step"),
    row("lms", "LMSDiscreteScheduler", "linear multistep"),
    row("pndm", "PNDMScheduler", "PNDM; SD1.5's own"),
    row("lcm", "LCMScheduler", "for LCM models: 1 to 8 steps"),
    row("ddpm", "DDPMScheduler", "ancestral sampling as in training; needs many steps"),
    row("dpm2", "KDPM2DiscreteScheduler", "DPM-Solver-2: two model calls a step"),
    row("dpm2_a", "KDPM2AncestralDiscreteScheduler", "DPM-Solver-2 with fresh noise"),
    row("tcd", "TCDScheduler", "for TCD models: 1 to 8 steps"),
];

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

/// A sampler for this configuration and number of steps; `None` is the checkpoint's own.
///
/// # Errors
/// If there is no such sampler, or it cannot take the configuration or the number of steps.
pub fn build(
    name: Option<&str>,
    config: &SchedulerConfig,
    steps: usize,
) -> Result<Box<dyn Sampler>, SamplerError> {
    let train = config.train_timesteps();
    if steps == 0 || steps > train {
        return Err(SamplerError::Steps(format!("steps is {steps}, but must lie between 1 and {train}")));
    }
    let known = || SAMPLERS.iter().map(|s| s.name).collect::<Vec<_>>().join(", ");
    let multistep = |changes: &[(&str, Value)]| dpmpp::Multistep::new(&config.with(changes), steps);
    let solver = |algorithm: &str, karras: bool| {
        let mut changes = vec![("algorithm_type", json!(algorithm))];
        if karras {
            changes.push(("use_karras_sigmas", json!(true)));
        }
        multistep(&changes)
    };
    let class = match name {
        Some(name) => match SAMPLERS.iter().find(|s| s.name == name) {
            Some(row) => row.class,
            None => {
                return Err(SamplerError::Unknown(format!(
                    "there is no sampler \"{name}\"; known: {}",
                    known()
                )));
            }
        },
        None => config.class_name().unwrap_or("EulerDiscreteScheduler"),
    };
    Ok(match (class, name) {
        ("EulerDiscreteScheduler", _) => Box::new(euler::Euler::new(config, steps)?),
        ("EulerAncestralDiscreteScheduler", _) => Box::new(euler::Ancestral::new(config, steps)?),
        ("DDIMScheduler", _) => Box::new(ddim::Ddim::new(config, steps)?),
        ("DPMSolverMultistepScheduler", Some("dpmpp_2m")) => Box::new(solver("dpmsolver++", false)?),
        ("DPMSolverMultistepScheduler", Some("dpmpp_2m_karras")) => Box::new(solver("dpmsolver++", true)?),
        ("DPMSolverMultistepScheduler", Some(_)) => Box::new(solver("sde-dpmsolver++", true)?),
        ("DPMSolverMultistepScheduler", None) => Box::new(multistep(&[])?),
        ("UniPCMultistepScheduler", _) => Box::new(unipc::UniPc::new(config, steps)?),
        ("HeunDiscreteScheduler", _) => Box::new(second_order::Heun::new(config, steps)?),
        ("LMSDiscreteScheduler", _) => Box::new(lms::Lms::new(config, steps)?),
        ("PNDMScheduler", _) => Box::new(pndm::Pndm::new(config, steps)?),
        ("LCMScheduler", _) => Box::new(consistency::Lcm::new(config, steps)?),
        ("DDPMScheduler", _) => Box::new(ddim::Ddpm::new(config, steps)?),
        ("KDPM2DiscreteScheduler", _) => Box::new(second_order::Dpm2::new(config, steps)?),
        ("KDPM2AncestralDiscreteScheduler", _) => Box::new(second_order::Dpm2Ancestral::new(config, steps)?),
        ("TCDScheduler", _) => Box::new(consistency::Tcd::new(config, steps)?),
        (other, _) => {
            return Err(SamplerError::Unknown(format!(
                "the checkpoint's own sampler {other} is not supported; choose one of {}",
                known()
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
