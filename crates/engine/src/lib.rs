//! From a request to pictures.

pub mod picture;
pub mod rng;
pub mod sampler;
