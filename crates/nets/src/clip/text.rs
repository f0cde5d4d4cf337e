//! CLIP's text tower.

use super::{Layer, Stack, activation, pick};
use crate::error::ModelError;
use crate::layers::{LayerNorm, Linear};
use crate::load::Loader;
use crate::tensor::Tensor;
use crate::weights::{Stored, Weights};

/// `config.json` of a text encoder; defaults as in transformers' `CLIPTextConfig`.
#[derive(Clone, Debug, serde::Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct TextConfig {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub projection_dim: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub max_position_embeddings: usize,
    pub hidden_act: String,
    pub layer_norm_eps: f32,
    pub eos_token_id: Option<u32>,
}

impl Default for TextConfig {
    fn default() -> Self {
        TextConfig {
            vocab_size: 49408,
            hidden_size: 512,
            intermediate_size: 2048,
            projection_dim: 512,
            num_hidden_layers: 12,
            num_attention_heads: 8,
            max_position_embeddings: 77,
            hidden_act: "quick_gelu".into(),
            layer_norm_eps: 1e-5,
            eos_token_id: Some(49407),
        }
    }
}

/// What the text tower gives for a batch of prompts.
pub struct TextOutput {
    /// The embedding and each layer's output, `layers + 1` tensors [batch, tokens, hidden]; without the last layer's if only
    /// what is before it was asked for.
    pub hidden: Vec<Tensor>,
    /// The pooled, projected feature [batch, projection], where the model has a projection.
    pub projected: Option<Tensor>,
}

/// CLIP's text tower, with or without the projection into the space shared with pictures.
pub struct TextEncoder {
    config: TextConfig,
    tokens: Stored,
    positions: Vec<f32>,
    layers: Vec<Layer>,
    final_norm: LayerNorm,
    projection: Option<Linear>,
}

impl TextEncoder {
    /// Takes the tower from weights with or without the `text_model.` prefix.
    ///
    /// # Errors
    /// If a tensor is missing or of another shape than the configuration says.
    pub fn load(config: &TextConfig, weights: &Weights) -> Result<Self, ModelError> {
        let root = Loader::new(weights);
        let prefixed = root.has("text_model.final_layer_norm.weight");
        let at = if prefixed { root.at("text_model") } else { root.clone() };
        let c = config;
        let stack = Stack {
            hidden: c.hidden_size,
            intermediate: c.intermediate_size,
            layers: c.num_hidden_layers,
            heads: c.num_attention_heads,
            eps: c.layer_norm_eps,
            activation: activation(&c.hidden_act, &root)?,
            causal: true,
        };
        let projection = if root.has("text_projection.weight") {
            Some(root.linear("text_projection", c.hidden_size, c.projection_dim, false)?)
        } else {
            None
        };
        Ok(TextEncoder {
            config: c.clone(),
            tokens: at.stored("embeddings.token_embedding.weight", &[c.vocab_size, c.hidden_size])?,
            positions: at.values(
                "embeddings.position_embedding.weight",
                &[c.max_position_embeddings, c.hidden_size],
            )?,
            layers: stack.load(&at.at("encoder.layers"))?,
            final_norm: at.layer_norm("final_layer_norm", c.hidden_size, c.layer_norm_eps)?,
            projection,
        })
    }

    /// The configuration.
    pub fn config(&self) -> &TextConfig {
        &self.config
    }

    /// Encodes prompts given as token ids, all of one length of at most `max_position_embeddings`.
    ///
    /// # Panics
    /// If the lengths differ or exceed the limit, or an id is outside the vocabulary.
    pub fn forward(&self, ids: &[Vec<u32>]) -> TextOutput {
        let hidden = self.hidden(ids, self.layers.len());
        let projected = self.projection.as_ref().map(|projection| {
            let last = hidden.last().expect("starts with the embedding");
            projection.forward(&self.final_norm(&pick(last, &self.pooled_positions(ids))))
        });
        TextOutput { hidden, projected }
    }

    /// The same without the last layer's states, as SDXL wants it: of that layer only what the pooled feature needs is
    /// computed, or nothing without a projection.
    ///
    /// # Panics
    /// As [`TextEncoder::forward`].
    pub fn forward_before_last(&self, ids: &[Vec<u32>]) -> TextOutput {
        let hidden = self.hidden(ids, self.layers.len() - 1);
        let projected = self.projection.as_ref().map(|projection| {
            let (x, layer) = (&hidden[hidden.len() - 1], &self.layers[self.layers.len() - 1]);
            projection.forward(&self.final_norm(&layer.forward_at(x, &self.pooled_positions(ids))))
        });
        TextOutput { hidden, projected }
    }

    /// The embedding and the outputs of the first layers.
    fn hidden(&self, ids: &[Vec<u32>], layers: usize) -> Vec<Tensor> {
        let (width, tokens) = (self.config.hidden_size, ids[0].len());
        assert!(tokens <= self.config.max_position_embeddings, "too many tokens");
        let mut x = Tensor::zeros([ids.len(), tokens, width]);
        let view = self.tokens.kernel_view().expect("checked on loading");
        for (row, out) in ids.iter().flatten().zip(x.data_mut().chunks_exact_mut(width)) {
            view.widen(*row as usize * width, out);
        }
        for sequence in x.data_mut().chunks_exact_mut(tokens * width) {
            sequence.iter_mut().zip(&self.positions).for_each(|(x, p)| *x += p);
        }
        let mut hidden = vec![x];
        for layer in &self.layers[..layers] {
            let next = layer.forward(hidden.last().expect("starts with the embedding"));
            hidden.push(next);
        }
        hidden
    }

    /// The norm after the last layer, which `clip_skip` applies to an earlier one.
    pub fn final_norm(&self, hidden: &Tensor) -> Tensor {
        self.final_norm.forward(hidden)
    }

    fn pooled_positions(&self, ids: &[Vec<u32>]) -> Vec<usize> {
        ids.iter().map(|ids| self.pooled_position(ids)).collect()
    }

    /// Configurations with end token 2 were written before the field was right: there the highest id is the end.
    fn pooled_position(&self, ids: &[u32]) -> usize {
        match self.config.eos_token_id {
            Some(end) if end != 2 => ids.iter().position(|id| *id == end).unwrap_or(0),
            _ => {
                let most = ids.iter().max();
                ids.iter().position(|id| Some(id) == most).unwrap_or(0)
            }
        }
    }
}
