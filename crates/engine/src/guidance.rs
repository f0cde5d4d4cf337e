//! Classifier-free guidance (Ho & Salimans, arXiv 2207.12598).

/// `uncond + scale · (cond − uncond)`, then optionally rescaled towards the deviation of `cond`
/// (Lin et al., arXiv 2305.08891, section 3.4).
pub fn guide(uncond: &[f32], cond: &[f32], scale: f32, rescale: f32) -> Vec<f32> {
    let mut out: Vec<f32> = uncond.iter().zip(cond).map(|(u, c)| u + scale * (c - u)).collect();
    if rescale > 0.0 {
        let factor = (deviation(cond) / deviation(&out)) as f32;
        for v in &mut out {
            let rescaled = *v * factor;
            *v = rescale * rescaled + (1.0 - rescale) * *v;
        }
    }
    out
}

/// Standard deviation with n − 1, as torch's.
fn deviation(x: &[f32]) -> f64 {
    let n = x.len() as f64;
    let mean = x.iter().map(|v| *v as f64).sum::<f64>() / n;
    (x.iter().map(|v| (*v as f64 - mean).powi(2)).sum::<f64>() / (n - 1.0)).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_rescale_restores_the_deviation() {
        let (u, c) = ([0.1, -0.3, 0.5, 0.9], [0.2, -0.1, -0.5, 1.5]);
        assert_eq!(guide(&u, &c, 1.0, 0.0)[2], 0.5 + (-0.5 - 0.5));
        let d = deviation(&guide(&u, &c, 7.5, 1.0));
        assert!((d - deviation(&c)).abs() < 1e-6);
    }
}
