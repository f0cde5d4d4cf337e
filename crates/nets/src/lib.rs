//! The networks of Stable Diffusion and IP-Adapter.

pub mod weights;
pub mod tokenizer;
