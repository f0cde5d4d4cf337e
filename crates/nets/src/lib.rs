//! The networks of Stable Diffusion and IP-Adapter: configuration and weights in, forward pass out.
//!
//! No sampling, no requests, no network. A forward pass never changes a model and never depends on an earlier one.

pub mod clip;
pub mod controlnet;
pub mod error;
pub mod ip_adapter;
pub mod layers;
pub mod load;
pub mod lora;
mod memory;
pub mod original;
pub mod tensor;
pub mod tokenizer;
pub mod unet;
pub mod vae;
pub mod weights;

pub use error::ModelError;
pub use tensor::Tensor;
