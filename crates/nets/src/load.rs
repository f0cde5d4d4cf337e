//! From named tensors to layers: every shape is checked, what is missing is named with its nearest neighbour.

use crate::error::ModelError;
use crate::layers::{Conv2d, GroupNorm, LayerNorm, Linear, Precision};
use crate::weights::{Stored, Weights};

/// A place in a tree of keys, e.g. `down_blocks.0.resnets.1`.
#[derive(Clone)]
pub struct Loader<'a> {
    weights: &'a Weights,
    prefix: String,
    precision: Precision,
}

impl<'a> Loader<'a> {
    /// The root.
    pub fn new(weights: &'a Weights) -> Self {
        Loader { weights, prefix: String::new(), precision: Precision::F32 }
    }

    /// One level or several down: `at("resnets.0")`.
    pub fn at(&self, name: impl std::fmt::Display) -> Loader<'a> {
        let prefix =
            if self.prefix.is_empty() { name.to_string() } else { format!("{}.{name}", self.prefix) };
        Loader { prefix, ..*self }
    }

    /// The same place; matrix products of layers that are taken from here on have operands of this precision.
    pub fn in_precision(&self, precision: Precision) -> Loader<'a> {
        Loader { precision, ..self.clone() }
    }

    fn key(&self, name: &str) -> String {
        if self.prefix.is_empty() { name.to_owned() } else { format!("{}.{name}", self.prefix) }
    }

    /// True if the tensor `name` is here.
    pub fn has(&self, name: &str) -> bool {
        self.weights.get(&self.key(name)).is_some()
    }

    /// An error about this file.
    pub fn error(&self, message: impl Into<String>) -> ModelError {
        ModelError::new(self.weights.source(), message)
    }

    /// The tensor `name` in whatever shape it has.
    pub fn any(&self, name: &str) -> Result<&'a Stored, ModelError> {
        let key = self.key(name);
        self.weights.get(&key).ok_or_else(|| {
            let near = nearest(&key, self.weights.keys());
            let hint = near.map_or("the file holds no tensors".to_owned(), |n| format!("nearest key: {n}"));
            self.error(format!(
                "the tensor {key} is missing ({hint}); is this file of another model, or incomplete?"
            ))
        })
    }

    /// The tensor `name`, which must have this many values and, ones aside, this shape.
    pub fn stored(&self, name: &str, shape: &[usize]) -> Result<Stored, ModelError> {
        let tensor = self.any(name)?;
        let squeezed = |s: &[usize]| s.iter().copied().filter(|d| *d != 1).collect::<Vec<_>>();
        if squeezed(tensor.shape()) != squeezed(shape) {
            return Err(self.error(format!(
                "the tensor {} has shape {:?}, expected {shape:?}; the weights and the configuration are of different models",
                self.key(name),
                tensor.shape()
            )));
        }
        if tensor.kernel_view().is_none() {
            return Err(self.error(format!(
                "the tensor {} is stored as {:?}; expected f32, f16, bf16 or GGUF's blocks",
                self.key(name),
                tensor.dtype()
            )));
        }
        Ok(tensor.clone())
    }

    /// Values widened to f32.
    pub fn values(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, ModelError> {
        Ok(self.stored(name, shape)?.to_f32())
    }

    /// `name.weight` [outputs, inputs] and, if `bias`, `name.bias`.
    pub fn linear(
        &self,
        name: &str,
        inputs: usize,
        outputs: usize,
        bias: bool,
    ) -> Result<Linear, ModelError> {
        let at = self.at(name);
        let weight = at.stored("weight", &[outputs, inputs])?;
        let bias = if bias { Some(at.values("bias", &[outputs])?) } else { None };
        Ok(Linear::new(weight, bias, inputs, outputs).in_precision(self.precision))
    }

    /// `name.weight` [outputs, inputs, kernel, kernel] and `name.bias`.
    pub fn conv(
        &self,
        name: &str,
        inputs: usize,
        outputs: usize,
        kernel: usize,
    ) -> Result<Conv2d, ModelError> {
        let at = self.at(name);
        let weight = at.stored("weight", &[outputs, inputs, kernel, kernel])?;
        let bias = if at.has("bias") { Some(at.values("bias", &[outputs])?) } else { None };
        Ok(Conv2d::new(weight, bias, inputs, outputs, kernel).in_precision(self.precision))
    }

    /// `name.weight` and `name.bias`, one value per channel.
    pub fn group_norm(
        &self,
        name: &str,
        channels: usize,
        groups: usize,
        eps: f32,
    ) -> Result<GroupNorm, ModelError> {
        if groups == 0 || channels % groups != 0 {
            return Err(
                self.error(format!("{groups} groups do not divide {channels} channels (norm_num_groups)"))
            );
        }
        let at = self.at(name);
        let (gamma, beta) = (at.values("weight", &[channels])?, at.values("bias", &[channels])?);
        Ok(GroupNorm { gamma, beta, groups, eps })
    }

    /// `name.weight` and `name.bias`, one value per channel.
    pub fn layer_norm(&self, name: &str, channels: usize, eps: f32) -> Result<LayerNorm, ModelError> {
        let at = self.at(name);
        Ok(LayerNorm { gamma: at.values("weight", &[channels])?, beta: at.values("bias", &[channels])?, eps })
    }
}

/// The candidate that shares the longest beginning and end with `key`.
fn nearest<'k>(key: &str, candidates: impl Iterator<Item = &'k str>) -> Option<&'k str> {
    let same = |a: &mut dyn Iterator<Item = (u8, u8)>| a.take_while(|(x, y)| x == y).count();
    candidates.max_by_key(|c| {
        let front = same(&mut key.bytes().zip(c.bytes()));
        let back = same(&mut key.bytes().rev().zip(c.bytes().rev()));
        front + back
    })
}
