//! Fixtures and named tolerances for the tests, and a hub to download from.

pub mod hub;

pub mod names;

use std::path::PathBuf;

/// Where `testkit/recipe/make.py` puts its files.
pub fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}

/// How far a result may be from diffusers'.
pub mod tolerance {
    /// Final latents of a whole run in f32, relative in the L2 norm.
    pub const LATENTS: f64 = 1e-3;
    /// Largest difference of one 8-bit value of a picture.
    pub const LEVELS_MOST: u8 = 2;
    /// Mean difference of all 8-bit values of a picture.
    pub const LEVELS_MEAN: f64 = 0.1;
    /// Mean difference of the 8-bit values of a picture of the embedded model in bf16 from the one in f32.
    pub const BF16_MEAN: f64 = 1.0;
    /// The same in int8.
    pub const INT8_MEAN: f64 = 6.0;
    /// One operation's output in f32, relative in the L2 norm.
    pub const OPERATION: f64 = 2e-6;
    /// One network's output in f32, relative in the L2 norm.
    pub const NETWORK: f64 = 2e-5;
}

/// Relative distance in the L2 norm.
///
/// # Panics
/// If the lengths differ.
pub fn distance(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len(), "lengths");
    let difference: f64 = got.iter().zip(want).map(|(g, w)| (*g as f64 - *w as f64).powi(2)).sum();
    let size: f64 = want.iter().map(|w| (*w as f64).powi(2)).sum();
    if difference.is_nan() { f64::INFINITY } else { (difference / size.max(1e-30)).sqrt() }
}

/// Largest and mean difference of two 8-bit pictures.
///
/// # Panics
/// If the lengths differ.
pub fn levels(got: &[u8], want: &[u8]) -> (u8, f64) {
    assert_eq!(got.len(), want.len(), "sizes");
    let most = got.iter().zip(want).map(|(g, w)| g.abs_diff(*w)).max().unwrap_or(0);
    let sum: u64 = got.iter().zip(want).map(|(g, w)| g.abs_diff(*w) as u64).sum();
    (most, sum as f64 / got.len().max(1) as f64)
}
