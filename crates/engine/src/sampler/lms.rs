//! Linear multistep (Adams–Bashforth over sigma), order 4: k-diffusion's `sample_lms`.

use super::schedule::{Alphas, PLAIN, Sigmas, exploding};
use super::{Prediction, Sampler, SamplerError, SchedulerConfig, scale_exploding};
use crate::rng::TorchRng;

const ORDER: usize = 4;

pub(super) struct Lms {
    schedule: Sigmas,
    prediction: Prediction,
    /// The newest first.
    derivatives: Vec<Vec<f64>>,
}

impl Lms {
    pub fn new(c: &SchedulerConfig, steps: usize) -> Result<Self, SamplerError> {
        let alphas = Alphas::new(c, &PLAIN, false, false)?;
        let mut schedule = exploding(c, &PLAIN, &alphas, steps, true, false, false)?;
        schedule.timesteps.iter_mut().for_each(|t| *t = *t as f32 as f64);
        Ok(Lms { schedule, prediction: c.prediction_type(), derivatives: Vec::new() })
    }

    /// The integral over the step of the Lagrange polynomial of derivative `k` among `order`.
    fn coefficient(&self, order: usize, i: usize, k: usize) -> f64 {
        // Gauss–Legendre with four points is exact for these polynomials of degree 3 at most.
        const NODES: [(f64, f64); 2] = [
            (0.339_981_043_584_856_26, 0.652_145_154_862_546_2),
            (0.861_136_311_594_052_6, 0.347_854_845_137_453_85),
        ];
        let s = &self.schedule.sigmas;
        let lagrange = |tau: f64| -> f64 {
            (0..order).filter(|j| *j != k).map(|j| (tau - s[i - j]) / (s[i - k] - s[i - j])).product()
        };
        let (middle, half) = ((s[i] + s[i + 1]) / 2.0, (s[i + 1] - s[i]) / 2.0);
        half * NODES
            .iter()
            .map(|(x, w)| w * (lagrange(middle + half * x) + lagrange(middle - half * x)))
            .sum::<f64>()
    }
}

impl Sampler for Lms {
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
        let sigma = self.schedule.sigmas[i];
        let derivative = output
            .iter()
            .zip(sample.iter())
            .map(|(o, x)| (*x as f64 - self.prediction.denoised(*o, *x, sigma)) / sigma);
        self.derivatives.insert(0, derivative.collect());
        self.derivatives.truncate(ORDER);
        let order = (i + 1).min(ORDER);
        let coefficients: Vec<f64> = (0..order).map(|k| self.coefficient(order, i, k)).collect();
        for (p, x) in sample.iter_mut().enumerate() {
            let change: f64 = coefficients.iter().zip(&self.derivatives).map(|(c, d)| c * d[p]).sum();
            *x = (*x as f64 + change) as f32;
        }
    }
}
