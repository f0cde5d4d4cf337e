//! UniPC: a predictor and a corrector of one form (Zhao et al., arXiv 2302.04867, algorithms 5 to 8).

use super::dpmpp::{preserving, schedule};
use super::schedule::{Alphas, PLAIN};
use super::{Clip, Prediction, Sampler, SamplerError, SchedulerConfig};
use crate::rng::TorchRng;
use serde_json::Value;

pub(super) struct UniPc {
    timesteps: Vec<f64>,
    sigmas: Vec<f64>,
    prediction: Prediction,
    clip: Clip,
    /// Whether the solver extrapolates the clean latents or the noise.
    predict_x0: bool,
    order: usize,
    /// B(h) of the paper: h itself (bh1) or e^h − 1 (bh2).
    bh1: bool,
    lower_order_final: bool,
    no_corrector_after: Vec<usize>,
    /// Converted outputs, the newest first.
    outputs: Vec<Vec<f64>>,
    /// The sample before the last prediction and that prediction's order.
    last: Option<(Vec<f32>, usize)>,
}

impl UniPc {
    pub fn new(c: &SchedulerConfig, steps: usize) -> Result<Self, SamplerError> {
        let alphas = Alphas::new(c, &PLAIN, true, true)?;
        let (timesteps, sigmas) = schedule(c, &alphas, steps, c.train_timesteps(), true)?;
        let bh1 = match c.word("solver_type", "bh2")? {
            "bh1" => true,
            "bh2" | "midpoint" | "heun" | "logrho" => false,
            other => return Err(SamplerError::field("solver_type", &Value::from(other), "bh1 or bh2")),
        };
        let order = c.number("solver_order", 2.0)? as usize;
        if !(1..=4).contains(&order) {
            return Err(SamplerError::Config(format!("solver_order is {order}, expected 1 to 4")));
        }
        let no_corrector_after = match c.value("disable_corrector") {
            Some(Value::Array(a)) => a.iter().filter_map(|v| v.as_u64().map(|n| n as usize)).collect(),
            _ => Vec::new(),
        };
        Ok(UniPc {
            timesteps,
            sigmas,
            prediction: c.prediction_type(),
            clip: Clip { range: None, ..Clip::new(c, false)? },
            predict_x0: c.flag("predict_x0", true)?,
            order,
            bh1,
            lower_order_final: c.flag("lower_order_final", true)?,
            no_corrector_after,
            outputs: Vec::new(),
            last: None,
        })
    }

    /// From sigma index `from` to `from + 1` with the outputs `m` (newest first, belonging to `from`, `from − 1`, …);
    /// `end` is the output at the target, where it is known (the corrector).
    fn solve(&self, from: usize, order: usize, x: &[f32], m: &[Vec<f64>], end: Option<&[f64]>) -> Vec<f32> {
        let (alpha_s, sigma_s, lambda_s) = preserving(self.sigmas[from]);
        let (alpha, sigma, lambda) = preserving(self.sigmas[from + 1]);
        let h = lambda - lambda_s;
        let ratios: Vec<f64> =
            (1..order).map(|k| (preserving(self.sigmas[from - k]).2 - lambda_s) / h).collect();
        let hh = if self.predict_x0 { -h } else { h };
        let phi_1 = hh.exp_m1();
        let bh = if self.bh1 { hh } else { phi_1 };
        let rhos = match (&end, order) {
            (_, 1) => vec![0.5],
            (None, 2) => vec![0.5],
            _ => {
                let mut r = ratios.clone();
                r.push(1.0);
                let mut phi = phi_1 / hh - 1.0;
                let mut factorial = 1.0;
                let mut right = Vec::new();
                for i in 1..=order {
                    right.push(phi * factorial / bh);
                    factorial *= (i + 1) as f64;
                    phi = phi / hh - 1.0 / factorial;
                }
                // The predictor does not know the end: one equation and one unknown less.
                let n = if end.is_some() { order } else { order - 1 };
                let rows = (0..n).map(|i| r[..n].iter().map(|r| r.powi(i as i32)).collect()).collect();
                linear_solve(rows, right[..n].to_vec())
            }
        };
        let (keep, of_output, of_slope) = if self.predict_x0 {
            (sigma / sigma_s, -alpha * phi_1, -alpha * bh)
        } else {
            (alpha / alpha_s, -sigma * phi_1, -sigma * bh)
        };
        (0..x.len())
            .map(|p| {
                let m0 = m[0][p];
                let mut slope = 0.0;
                for (k, r) in ratios.iter().enumerate() {
                    slope += rhos[k] * (m[k + 1][p] - m0) / r;
                }
                if let Some(end) = end {
                    slope += rhos[rhos.len() - 1] * (end[p] - m0);
                }
                (keep * x[p] as f64 + of_output * m0 + of_slope * slope) as f32
            })
            .collect()
    }
}

/// Gaussian elimination with row exchange, for at most four unknowns.
fn linear_solve(mut a: Vec<Vec<f64>>, mut b: Vec<f64>) -> Vec<f64> {
    let n = b.len();
    for i in 0..n {
        let pivot = (i..n).max_by(|x, y| a[*x][i].abs().total_cmp(&a[*y][i].abs())).unwrap_or(i);
        a.swap(i, pivot);
        b.swap(i, pivot);
        for r in i + 1..n {
            let row = a[i].clone();
            let f = a[r][i] / row[i];
            a[r].iter_mut().zip(&row).skip(i).for_each(|(x, y)| *x -= f * y);
            b[r] -= f * b[i];
        }
    }
    for i in (0..n).rev() {
        b[i] = (b[i] - (i + 1..n).map(|c| a[i][c] * b[c]).sum::<f64>()) / a[i][i];
    }
    b
}

impl Sampler for UniPc {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn noised(&self, i: usize) -> (f64, f64) {
        let (alpha, sigma, _) = preserving(self.sigmas[i]);
        (alpha, sigma)
    }

    fn step(&mut self, i: usize, output: &[f32], sample: &mut Vec<f32>, _: &mut TorchRng) {
        let (alpha, sigma, _) = preserving(self.sigmas[i]);
        let p = self.prediction;
        let pairs = output.iter().zip(sample.iter());
        let converted: Vec<f64> = if self.predict_x0 {
            let mut clean: Vec<f64> = pairs.map(|(o, x)| p.clean(*o, *x, alpha, sigma)).collect();
            self.clip.apply(&mut clean);
            clean
        } else {
            pairs.map(|(o, x)| p.noise(*o, *x, alpha, sigma)).collect()
        };
        if let Some((before, order)) = self.last.take() {
            if !self.no_corrector_after.contains(&(i - 1)) {
                *sample = self.solve(i - 1, order, &before, &self.outputs, Some(&converted));
            }
        }
        let seen = self.outputs.len();
        self.outputs.insert(0, converted);
        self.outputs.truncate(self.order);
        let wanted =
            if self.lower_order_final { self.order.min(self.timesteps.len() - i) } else { self.order };
        let order = wanted.min(seen + 1);
        let next = self.solve(i, order, sample, &self.outputs, None);
        self.last = Some((std::mem::replace(sample, next), order));
    }
}
