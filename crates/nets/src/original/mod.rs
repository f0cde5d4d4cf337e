//! Checkpoints in the names of their first publication: what Diffusers would call each tensor, and the configuration that
//! the shapes tell.
//!
//! Tensors are not copied: names are exchanged, fused projections become views. Only the small matrices that one side
//! stores transposed are turned. What the shapes do not tell (heads, norms' groups, activations) are facts of a family,
//! given by the caller or noted here with their source.

mod clip;
mod unet;
mod vae;

pub use clip::{clip_text, clip_vision, open_clip_text, open_clip_vision, to_open_clip_text};
pub use unet::{Heads, UNetFacts, diffusers_unet, unet};
pub use vae::{VaeNames, vae};

use crate::error::ModelError;
use crate::weights::{Stored, Weights};
use serde_json::Value;

/// A component as it would lie in a Diffusers folder.
#[derive(Clone, Debug)]
pub struct Part {
    /// Its `config.json`.
    pub config: Value,
    /// Its weights in Diffusers' or transformers' names.
    pub weights: Weights,
    /// Keys of the file that have no place in it.
    pub unknown: Vec<String>,
}

/// Renames every tensor; what `name` does not know is collected.
fn rename(weights: &Weights, name: impl Fn(&str) -> Option<String>) -> (Weights, Vec<String>) {
    let unknown = weights.keys().filter(|k| name(k).is_none()).map(str::to_owned).collect();
    (weights.renamed(name), unknown)
}

/// One axis of a tensor's shape.
fn axis(weights: &Weights, key: &str, axis: usize) -> Result<usize, ModelError> {
    let error = |message: String| ModelError::new(weights.source(), message);
    let tensor = weights.get(key).ok_or_else(|| {
        error(format!("the tensor {key} is missing; is this file of another kind, or incomplete?"))
    })?;
    match tensor.shape().get(axis) {
        Some(n) if *n > 0 => Ok(*n),
        _ => Err(error(format!("the tensor {key} has shape {:?}, which no known model has", tensor.shape()))),
    }
}

/// How many of the numbered keys `name(0)`, `name(1)`, … there are without a gap.
fn count(weights: &Weights, name: impl Fn(usize) -> String) -> usize {
    (0..).take_while(|i| weights.get(&name(*i)).is_some()).count()
}

/// The transposed matrix; `None` if it is no matrix of numbers that the networks use.
fn transposed(tensor: &Stored) -> Option<Stored> {
    let &[rows, columns] = tensor.shape() else { return None };
    tensor.kernel_view()?;
    if tensor.dtype().unit().0 > 1 {
        let plain = Stored::from_f32([rows, columns], &tensor.to_f32())?;
        return transposed(&plain);
    }
    let size = tensor.dtype().unit().1;
    let mut bytes = Vec::with_capacity(tensor.bytes().len());
    for column in 0..columns {
        for row in 0..rows {
            let at = (row * columns + column) * size;
            bytes.extend_from_slice(&tensor.bytes()[at..at + size]);
        }
    }
    Stored::new(tensor.dtype(), [columns, rows], bytes)
}
