//! CLIP's picture tower.

use super::{Layer, Stack, activation};
use crate::error::ModelError;
use crate::layers::{Conv2d, LayerNorm, Linear};
use crate::load::Loader;
use crate::tensor::Tensor;
use crate::weights::Weights;

/// `config.json` of an image encoder; defaults as in transformers' `CLIPVisionConfig`.
#[derive(Clone, Debug, serde::Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct VisionConfig {
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub projection_dim: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub num_channels: usize,
    pub image_size: usize,
    pub patch_size: usize,
    pub hidden_act: String,
    pub layer_norm_eps: f32,
}

impl Default for VisionConfig {
    fn default() -> Self {
        VisionConfig {
            hidden_size: 768,
            intermediate_size: 3072,
            projection_dim: 512,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            num_channels: 3,
            image_size: 224,
            patch_size: 32,
            hidden_act: "quick_gelu".into(),
            layer_norm_eps: 1e-5,
        }
    }
}

/// What the picture tower gives for a batch of pictures.
pub struct VisionOutput {
    /// Pooled, projected, un-normalised features [batch, projection].
    pub embeds: Tensor,
    /// The output of the last layer but one [batch, 1 + patches, hidden].
    pub penultimate: Tensor,
}

/// CLIP's picture tower with its projection.
pub struct VisionEncoder {
    config: VisionConfig,
    class: Vec<f32>,
    patches: Conv2d,
    positions: Vec<f32>,
    pre_norm: LayerNorm,
    layers: Vec<Layer>,
    post_norm: LayerNorm,
    projection: Linear,
}

impl VisionEncoder {
    /// Takes the tower from weights with or without the `vision_model.` prefix.
    ///
    /// # Errors
    /// If a tensor is missing or of another shape than the configuration says.
    pub fn load(config: &VisionConfig, weights: &Weights) -> Result<Self, ModelError> {
        let root = Loader::new(weights);
        let prefixed = root.has("vision_model.post_layernorm.weight");
        let at = if prefixed { root.at("vision_model") } else { root.clone() };
        let c = config;
        if c.patch_size == 0 || c.image_size < c.patch_size || c.patch_size > 64 || c.num_channels != 3 {
            return Err(root.error(format!(
                "patch_size {}, image_size {}, num_channels {} are not those of a CLIP picture tower",
                c.patch_size, c.image_size, c.num_channels
            )));
        }
        if !root.has("visual_projection.weight") {
            return Err(root.error(
                "visual_projection.weight is missing: an IP-Adapter needs the picture tower saved with its projection \
                 (CLIPVisionModelWithProjection)",
            ));
        }
        let side = c.image_size / c.patch_size;
        let stack = Stack {
            hidden: c.hidden_size,
            intermediate: c.intermediate_size,
            layers: c.num_hidden_layers,
            heads: c.num_attention_heads,
            eps: c.layer_norm_eps,
            activation: activation(&c.hidden_act, &root)?,
            causal: false,
        };
        Ok(VisionEncoder {
            config: c.clone(),
            class: at.values("embeddings.class_embedding", &[c.hidden_size])?,
            patches: at.conv("embeddings.patch_embedding", 3, c.hidden_size, c.patch_size)?,
            positions: at
                .values("embeddings.position_embedding.weight", &[side * side + 1, c.hidden_size])?,
            // The published spelling.
            pre_norm: at.layer_norm("pre_layrnorm", c.hidden_size, c.layer_norm_eps)?,
            layers: stack.load(&at.at("encoder.layers"))?,
            post_norm: at.layer_norm("post_layernorm", c.hidden_size, c.layer_norm_eps)?,
            projection: root.linear("visual_projection", c.hidden_size, c.projection_dim, false)?,
        })
    }

    /// The configuration.
    pub fn config(&self) -> &VisionConfig {
        &self.config
    }

    /// Encodes normalised pictures [batch, image_size, image_size, 3].
    ///
    /// # Panics
    /// If the shape is another.
    pub fn forward(&self, pixels: &Tensor) -> VisionOutput {
        let penultimate = self.penultimate(pixels);
        // Of the last layer only the class token's state is read.
        let layer = self.layers.last().expect("checked on loading");
        let class = layer.forward_at(&penultimate, &vec![0; penultimate.dim(0)]);
        VisionOutput { embeds: self.projection.forward(&self.post_norm.forward(&class)), penultimate }
    }

    /// The output of the last layer but one alone, [batch, 1 + patches, hidden].
    ///
    /// # Panics
    /// As [`VisionEncoder::forward`].
    pub fn penultimate(&self, pixels: &Tensor) -> Tensor {
        let (width, batch) = (self.config.hidden_size, pixels.dim(0));
        assert_eq!(pixels.shape(), [batch, self.config.image_size, self.config.image_size, 3]);
        let patches = self.patches.strided(pixels, self.config.patch_size, 0, 0);
        let tokens = patches.dim(1) * patches.dim(2) + 1;
        let mut x = Tensor::zeros([batch, tokens, width]);
        for (b, sequence) in x.data_mut().chunks_exact_mut(tokens * width).enumerate() {
            let row = (tokens - 1) * width;
            sequence[..width].copy_from_slice(&self.class);
            sequence[width..].copy_from_slice(&patches.data()[b * row..(b + 1) * row]);
            sequence.iter_mut().zip(&self.positions).for_each(|(x, p)| *x += p);
        }
        let before = self.layers.len() - 1;
        self.layers[..before].iter().fold(self.pre_norm.forward(&x), |x, layer| layer.forward(&x))
    }
}
