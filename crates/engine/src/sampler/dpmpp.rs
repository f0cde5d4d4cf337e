//! DPM-Solver++ as a multistep method of order 1 to 3, deterministic or stochastic (Lu et al., arXiv 2211.01095).

use super::schedule::{Alphas, Curve, PLAIN, interpolate, logs, spaced_multistep, timestep_of};
use super::{Clip, Prediction, Sampler, SamplerError, SchedulerConfig};
use crate::rng::TorchRng;
use serde_json::Value;

pub(super) struct Multistep {
    timesteps: Vec<f64>,
    sigmas: Vec<f64>,
    prediction: Prediction,
    clip: Clip,
    order: usize,
    /// The second-order formula: midpoint or Heun.
    midpoint: bool,
    stochastic: bool,
    lower_order_final: bool,
    euler_at_final: bool,
    ends_at_zero: bool,
    /// Predicted clean latents, the newest first.
    clean: Vec<Vec<f64>>,
}

/// Sigmas in the variance-preserving form: alpha, sigma, and lambda, the logarithm of their ratio.
pub(super) fn preserving(sigma: f64) -> (f64, f64, f64) {
    let alpha = 1.0 / (sigma * sigma + 1.0).sqrt();
    (alpha, sigma * alpha, -sigma.ln())
}

/// Timesteps and sigmas as DPM-Solver and UniPC take them. The last sigma is appended.
pub(super) fn schedule(
    c: &SchedulerConfig,
    alphas: &Alphas,
    steps: usize,
    last: usize,
    unipc: bool,
) -> Result<(Vec<f64>, Vec<f64>), SamplerError> {
    let all = alphas.sigmas();
    let log_sigmas = logs(&all);
    let mut curve = Curve::of(c)?;
    if curve == Curve::Timesteps && !unipc && c.flag("use_lu_lambdas", false)? {
        curve = Curve::Lu;
    }
    let (mut timesteps, mut sigmas);
    if curve == Curve::Timesteps {
        timesteps = spaced_multistep(c, steps, last)?;
        sigmas = timesteps.iter().map(|t| interpolate(&all, *t)).collect::<Vec<_>>();
    } else {
        let end = |key: &str, own: f64| if unipc { c.number(key, own) } else { Ok(own) };
        let max = end("sigma_max", *all.last().expect("at least one timestep"))?;
        let min = end("sigma_min", all[0])?;
        sigmas = curve.between(max, min, steps);
        timesteps = sigmas.iter().map(|s| timestep_of(*s, &log_sigmas)).collect::<Vec<_>>();
        let rounds = if unipc {
            curve == Curve::Karras
        } else {
            curve != Curve::Exponential
                && c.word("beta_schedule", PLAIN.beta_schedule)? != "squaredcos_cap_v2"
        };
        // Whole numbers in any case: rounded, or cut.
        timesteps.iter_mut().for_each(|t| *t = if rounds { t.round_ties_even() } else { t.trunc() });
    }
    let end = match c.word("final_sigmas_type", "zero")? {
        "zero" => 0.0,
        "sigma_min" if unipc && curve != Curve::Timesteps => *sigmas.last().expect("at least one step"),
        "sigma_min" => all[0],
        other => {
            return Err(SamplerError::field("final_sigmas_type", &Value::from(other), "zero or sigma_min"));
        }
    };
    sigmas.push(end);
    sigmas.iter_mut().for_each(|s| *s = *s as f32 as f64);
    Ok((timesteps, sigmas))
}

impl Multistep {
    pub fn new(c: &SchedulerConfig, steps: usize) -> Result<Self, SamplerError> {
        let stochastic = match c.word("algorithm_type", "dpmsolver++")? {
            "dpmsolver++" | "deis" => false,
            "sde-dpmsolver++" => true,
            other => {
                return Err(SamplerError::field(
                    "algorithm_type",
                    &Value::from(other),
                    "dpmsolver++ or sde-dpmsolver++",
                ));
            }
        };
        let midpoint = match c.word("solver_type", "midpoint")? {
            "heun" => false,
            "midpoint" | "logrho" | "bh1" | "bh2" => true,
            other => return Err(SamplerError::field("solver_type", &Value::from(other), "midpoint or heun")),
        };
        let order = c.number("solver_order", 2.0)? as usize;
        if !(1..=3).contains(&order) {
            return Err(SamplerError::Config(format!("solver_order is {order}, expected 1 to 3")));
        }
        let alphas = Alphas::new(c, &PLAIN, true, true)?;
        let clipped = c.number("lambda_min_clipped", f64::MIN)?;
        let below = alphas.sigmas().iter().filter(|s| -s.ln() < clipped).count();
        let last = c.train_timesteps() - below;
        if last == 0 {
            return Err(SamplerError::Config("lambda_min_clipped leaves no timesteps".into()));
        }
        let (timesteps, sigmas) = schedule(c, &alphas, steps, last, false)?;
        Ok(Multistep {
            ends_at_zero: c.word("final_sigmas_type", "zero")? == "zero",
            timesteps,
            sigmas,
            prediction: c.prediction_type(),
            clip: Clip { range: None, ..Clip::new(c, false)? },
            order,
            midpoint,
            stochastic,
            lower_order_final: c.flag("lower_order_final", true)?,
            euler_at_final: c.flag("euler_at_final", false)?,
            clean: Vec::new(),
        })
    }
}

impl Sampler for Multistep {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn noised(&self, i: usize) -> (f64, f64) {
        let (alpha, sigma, _) = preserving(self.sigmas[i]);
        (alpha, sigma)
    }

    fn step(&mut self, i: usize, output: &[f32], sample: &mut Vec<f32>, rng: &mut TorchRng) {
        let n = self.timesteps.len();
        let (alpha_s, sigma_s, lambda_s) = preserving(self.sigmas[i]);
        let p = self.prediction;
        let mut clean: Vec<f64> =
            output.iter().zip(sample.iter()).map(|(o, x)| p.clean(*o, *x, alpha_s, sigma_s)).collect();
        self.clip.apply(&mut clean);
        let seen = self.clean.len();
        self.clean.insert(0, clean);
        self.clean.truncate(self.order);
        let noise = if self.stochastic { rng.normal_f32(sample.len()) } else { Vec::new() };

        let few = self.lower_order_final && n < 15;
        let first_at_end = i + 1 == n && (self.euler_at_final || few || self.ends_at_zero);
        let order = if self.order == 1 || seen < 1 || first_at_end {
            1
        } else if self.order == 2 || seen < 2 || (i + 2 == n && few) {
            2
        } else {
            3
        };
        let (alpha, sigma, lambda) = preserving(self.sigmas[i + 1]);
        let h = lambda - lambda_s;
        // What is left of the old sample, and the weight of the clean latents; twice h where noise is added.
        let (keep, decay) =
            if self.stochastic { (sigma / sigma_s * (-h).exp(), -2.0 * h) } else { (sigma / sigma_s, -h) };
        let weight = -alpha * decay.exp_m1();
        let fresh = if self.stochastic { sigma * (1.0 - (-2.0 * h).exp()).max(0.0).sqrt() } else { 0.0 };
        let lambda_at = |k: usize| preserving(self.sigmas[i - k]).2;
        // Heun's form: with d = −h it is alpha · ((e^d − 1) / h + 1), with d = −2h alpha · ((1 − e^d) / d + 1).
        let of_slope = if self.midpoint { 0.5 * weight } else { alpha * (1.0 - decay.exp_m1() / decay) };
        let ratio = |k: usize| (lambda_at(k - 1) - lambda_at(k)) / h;
        for p in 0..sample.len() {
            let m0 = self.clean[0][p];
            let mut x = keep * sample[p] as f64 + weight * m0;
            if order == 2 {
                x += of_slope * (m0 - self.clean[1][p]) / ratio(1);
            } else if order == 3 {
                let (m1, m2) = (self.clean[1][p], self.clean[2][p]);
                let (r0, r1) = (ratio(1), ratio(2));
                let (a, b) = ((m0 - m1) / r0, (m1 - m2) / r1);
                let slope = a + r0 / (r0 + r1) * (a - b);
                let bend = (a - b) / (r0 + r1);
                // With d = −h, or −2h where noise is added.
                let e = decay.exp_m1();
                let half = if self.stochastic { -0.5 } else { 0.5 };
                x +=
                    alpha * (1.0 - e / decay) * slope + alpha * ((decay - e) / (decay * decay) + half) * bend;
            }
            if self.stochastic {
                x += fresh * noise[p] as f64;
            }
            sample[p] = x as f32;
        }
    }
}
