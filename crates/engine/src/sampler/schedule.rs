//! Noise schedules: betas, the timesteps that are visited, and sigmas. Independent of the sampler that uses them.

use super::{SamplerError, SchedulerConfig};
use serde_json::Value;

/// Defaults that differ between diffusers' classes.
pub(super) struct Defaults {
    pub beta_start: f64,
    pub beta_end: f64,
    pub beta_schedule: &'static str,
    pub spacing: &'static str,
}

/// Most classes.
pub(super) const PLAIN: Defaults =
    Defaults { beta_start: 0.0001, beta_end: 0.02, beta_schedule: "linear", spacing: "linspace" };

/// Cumulative products of 1 − beta, as f32 values.
pub(super) struct Alphas {
    pub cumprod: Vec<f32>,
}

impl Alphas {
    /// `zero_snr`: whether the class knows `rescale_betas_zero_snr`; `floor`: whether it then keeps the last value
    /// above zero, as the classes that work with sigmas do.
    pub fn new(c: &SchedulerConfig, d: &Defaults, zero_snr: bool, floor: bool) -> Result<Self, SamplerError> {
        let n = c.train_timesteps();
        let (start, end) = (c.number("beta_start", d.beta_start)?, c.number("beta_end", d.beta_end)?);
        let schedule = c.word("beta_schedule", d.beta_schedule)?;
        let mut betas: Vec<f32> = match (c.value("trained_betas"), schedule) {
            (Some(Value::Array(list)), _) => {
                let betas: Vec<f32> = list.iter().filter_map(|v| v.as_f64().map(|v| v as f32)).collect();
                if betas.len() != n {
                    return Err(SamplerError::Config(format!(
                        "trained_betas has {} numbers for {n} timesteps",
                        betas.len()
                    )));
                }
                betas
            }
            (_, "linear") => linspace(start as f32, end as f32, n),
            (_, "scaled_linear") => {
                linspace(start.sqrt() as f32, end.sqrt() as f32, n).into_iter().map(|b| b * b).collect()
            }
            // Nichol & Dhariwal, arXiv 2102.09672.
            (_, "squaredcos_cap_v2") => {
                let bar = |t: f64| ((t + 0.008) / 1.008 * std::f64::consts::PI / 2.0).cos().powi(2);
                let at = |i: usize| i as f64 / n as f64;
                (0..n).map(|i| (1.0 - bar(at(i + 1)) / bar(at(i))).min(0.999) as f32).collect()
            }
            (_, other) => {
                return Err(SamplerError::field(
                    "beta_schedule",
                    &Value::from(other),
                    "linear, scaled_linear or squaredcos_cap_v2",
                ));
            }
        };
        if betas.iter().any(|b| !(0.0..1.0).contains(b)) {
            return Err(SamplerError::Config("betas (beta_start, beta_end) must lie between 0 and 1".into()));
        }
        let rescale = zero_snr && c.flag("rescale_betas_zero_snr", false)?;
        if rescale {
            betas = zero_terminal_snr(&betas);
        }
        let mut cumprod = cumulative(&betas);
        if rescale && floor {
            // diffusers keeps the last sigma finite with the smallest f16 subnormal.
            *cumprod.last_mut().expect("at least one timestep") = 2f32.powi(-24);
        }
        Ok(Alphas { cumprod })
    }

    /// Sigmas of the variance-exploding form, ascending with the timestep.
    pub fn sigmas(&self) -> Vec<f64> {
        self.cumprod.iter().map(|a| (((1.0 - a) / a).sqrt()) as f64).collect()
    }

    /// ᾱ at a timestep.
    pub fn at(&self, t: i64) -> f64 {
        self.cumprod[t.clamp(0, self.cumprod.len() as i64 - 1) as usize] as f64
    }
}

fn cumulative(betas: &[f32]) -> Vec<f32> {
    let mut product = 1f64;
    betas
        .iter()
        .map(|b| {
            product *= (1.0 - b) as f64;
            product as f32
        })
        .collect()
}

/// torch's `linspace`: from both ends towards the middle.
fn linspace(start: f32, end: f32, n: usize) -> Vec<f32> {
    let step = (end - start) / (n.max(2) - 1) as f32;
    (0..n)
        .map(|i| if i < n / 2 || n == 1 { start + step * i as f32 } else { end - step * (n - 1 - i) as f32 })
        .collect()
}

/// Lin et al., "Common Diffusion Noise Schedules and Sample Steps are Flawed", arXiv 2305.08891, algorithm 1.
fn zero_terminal_snr(betas: &[f32]) -> Vec<f32> {
    let mut root: Vec<f32> = cumulative(betas).iter().map(|a| a.sqrt()).collect();
    let (first, last) = (root[0], *root.last().expect("at least one timestep"));
    root.iter_mut().for_each(|r| *r = (*r - last) * (first / (first - last)));
    let bar: Vec<f32> = root.iter().map(|r| r * r).collect();
    (0..bar.len()).map(|i| 1.0 - if i == 0 { bar[0] } else { bar[i] / bar[i - 1] }).collect()
}

/// numpy's rounding.
fn round(x: f64) -> f64 {
    x.round_ties_even()
}

/// The visited timesteps in descending order. `whole` rounds them, as the classes do that index by timestep.
pub(super) fn spaced(
    c: &SchedulerConfig,
    d: &Defaults,
    steps: usize,
    whole: bool,
) -> Result<Vec<f64>, SamplerError> {
    let train = c.train_timesteps();
    let offset = c.number("steps_offset", 0.0)?;
    match c.word("timestep_spacing", d.spacing)? {
        "linspace" => {
            let at = |i: usize| {
                if steps == 1 { 0.0 } else { i as f64 * ((train - 1) as f64 / (steps - 1) as f64) }
            };
            Ok((0..steps).rev().map(|i| if whole { round(at(i)) } else { at(i) as f32 as f64 }).collect())
        }
        "leading" => Ok((0..steps).rev().map(|i| (i * (train / steps)) as f64 + offset).collect()),
        "trailing" => Ok(trailing(train, train, steps)),
        other => {
            Err(SamplerError::field("timestep_spacing", &Value::from(other), "linspace, leading or trailing"))
        }
    }
}

fn trailing(train: usize, last: usize, steps: usize) -> Vec<f64> {
    let ratio = train as f64 / steps as f64;
    let n = (last as f64 / ratio).ceil() as usize;
    (0..n).map(|i| round(last as f64 - i as f64 * ratio) - 1.0).collect()
}

/// The spacing of the multistep classes (DPM-Solver, UniPC), which take one point more and drop the last.
pub(super) fn spaced_multistep(
    c: &SchedulerConfig,
    steps: usize,
    last: usize,
) -> Result<Vec<f64>, SamplerError> {
    let offset = c.number("steps_offset", 0.0)?;
    match c.word("timestep_spacing", PLAIN.spacing)? {
        "linspace" => {
            let step = (last.max(1) - 1) as f64 / steps as f64;
            Ok((1..=steps).rev().map(|i| round(i as f64 * step)).collect())
        }
        "leading" => Ok((1..=steps).rev().map(|i| (i * (last / (steps + 1))) as f64 + offset).collect()),
        "trailing" => Ok(trailing(c.train_timesteps(), last, steps)),
        other => {
            Err(SamplerError::field("timestep_spacing", &Value::from(other), "linspace, leading or trailing"))
        }
    }
}

/// numpy's `interp` over whole-numbered abscissae.
pub(super) fn interpolate(values: &[f64], t: f64) -> f64 {
    let t = t.clamp(0.0, (values.len() - 1) as f64);
    let i = (t as usize).min(values.len().max(2) - 2);
    match values.get(i + 1) {
        Some(next) => values[i] + (next - values[i]) * (t - i as f64),
        None => values[i],
    }
}

/// The (fractional) timestep of a sigma, by linear interpolation of the logarithms.
pub(super) fn timestep_of(sigma: f64, log_sigmas: &[f64]) -> f64 {
    let log = sigma.max(1e-10).ln();
    let low =
        log_sigmas.iter().filter(|l| log >= **l).count().saturating_sub(1).min(log_sigmas.len().max(2) - 2);
    let high = (low + 1).min(log_sigmas.len() - 1);
    let w = ((log_sigmas[low] - log) / (log_sigmas[low] - log_sigmas[high])).clamp(0.0, 1.0);
    (1.0 - w) * low as f64 + w * high as f64
}

/// Logarithms as numpy takes them of an f32 array.
pub(super) fn logs(sigmas: &[f64]) -> Vec<f64> {
    sigmas.iter().map(|s| (*s as f32).ln() as f64).collect()
}

/// Which curve the sigmas follow.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Curve {
    /// Those of the spaced timesteps.
    Timesteps,
    /// Karras et al., arXiv 2206.00364, equation 5, rho 7.
    Karras,
    /// Equal steps of the logarithm.
    Exponential,
    /// Lu et al., arXiv 2211.01095: equal steps of lambda.
    Lu,
}

impl Curve {
    pub fn of(c: &SchedulerConfig) -> Result<Self, SamplerError> {
        let karras = c.flag("use_karras_sigmas", false)?;
        let exponential = c.flag("use_exponential_sigmas", false)?;
        if karras && exponential {
            return Err(SamplerError::Config(
                "use_karras_sigmas and use_exponential_sigmas exclude each other".into(),
            ));
        }
        Ok(if karras {
            Curve::Karras
        } else if exponential {
            Curve::Exponential
        } else {
            Curve::Timesteps
        })
    }

    /// `n` sigmas from `max` down to `min`.
    pub fn between(self, max: f64, min: f64, n: usize) -> Vec<f64> {
        let ramp = |i: usize| if n == 1 { 0.0 } else { i as f64 / (n - 1) as f64 };
        (0..n)
            .map(|i| match self {
                Curve::Karras => {
                    let (a, b) = (max.powf(1.0 / 7.0), min.powf(1.0 / 7.0));
                    (a + ramp(i) * (b - a)).powi(7)
                }
                _ => (max.ln() + ramp(i) * (min.ln() - max.ln())).exp(),
            })
            .collect()
    }
}

/// Timesteps and sigmas of the classes that work in the variance-exploding form.
pub(super) struct Sigmas {
    pub timesteps: Vec<f64>,
    /// One more than timesteps; f32 values.
    pub sigmas: Vec<f64>,
    /// `init_noise_sigma`.
    pub start: f32,
}

/// For Euler, Heun, LMS and DPM2. `rounded`: whether the class rounds the timesteps of a Karras curve.
pub(super) fn exploding(
    c: &SchedulerConfig,
    d: &Defaults,
    alphas: &Alphas,
    steps: usize,
    curves: bool,
    rounded: bool,
    limits: bool,
) -> Result<Sigmas, SamplerError> {
    let all = alphas.sigmas();
    let log_sigmas = logs(&all);
    let mut timesteps = spaced(c, d, steps, false)?;
    let mut sigmas: Vec<f64> = timesteps.iter().map(|t| interpolate(&all, *t)).collect();
    let curve = if curves { Curve::of(c)? } else { Curve::Timesteps };
    if curve != Curve::Timesteps {
        let end = |key: &str, own: f64| if limits { c.number(key, own) } else { Ok(own) };
        let max = end("sigma_max", sigmas[0])?;
        let min = end("sigma_min", sigmas[sigmas.len() - 1])?;
        sigmas = curve.between(max, min, steps);
        timesteps = sigmas.iter().map(|s| timestep_of(*s, &log_sigmas)).collect();
        if rounded && curve == Curve::Karras {
            timesteps.iter_mut().for_each(|t| *t = round(*t));
        }
    }
    let mut sigmas: Vec<f64> = sigmas.into_iter().map(|s| s as f32 as f64).collect();
    sigmas.push(0.0);
    let most = sigmas.iter().copied().fold(0.0, f64::max);
    let start = match c.word("timestep_spacing", d.spacing)? {
        "linspace" | "trailing" => most,
        _ => (most * most + 1.0).sqrt(),
    };
    Ok(Sigmas { timesteps, sigmas, start: start as f32 })
}
