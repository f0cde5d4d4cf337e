//! The autoencoders between pictures and latents: diffusers' `AutoencoderKL`, and small ones of TAESD's kind.

mod kl;
mod memory;
mod tiling;
mod tiny;

pub use tiling::Tiling;

use crate::error::ModelError;
use crate::layers::Precision;
use crate::load::Loader;
use crate::tensor::Tensor;
use crate::weights::Weights;

/// `vae/config.json`; defaults as in diffusers.
#[derive(Clone, Debug, serde::Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct VaeConfig {
    /// `AutoencoderKL` or `AutoencoderTiny`.
    #[serde(rename = "_class_name")]
    pub class_name: String,
    pub in_channels: usize,
    pub out_channels: usize,
    pub latent_channels: usize,
    pub block_out_channels: Vec<usize>,
    pub layers_per_block: usize,
    pub norm_num_groups: usize,
    /// Side of the pictures it was trained on; a list's first number.
    #[serde(deserialize_with = "first_number")]
    pub sample_size: usize,
    pub act_fn: String,
    pub scaling_factor: f64,
    pub shift_factor: Option<f64>,
    pub latents_mean: Option<Vec<f64>>,
    pub latents_std: Option<Vec<f64>>,
    pub mid_block_add_attention: bool,
    pub use_quant_conv: bool,
    pub use_post_quant_conv: bool,
    pub down_block_types: Vec<String>,
    pub up_block_types: Vec<String>,
}

impl Default for VaeConfig {
    fn default() -> Self {
        VaeConfig {
            class_name: "AutoencoderKL".into(),
            in_channels: 3,
            out_channels: 3,
            latent_channels: 4,
            block_out_channels: vec![64],
            layers_per_block: 1,
            norm_num_groups: 32,
            sample_size: 32,
            act_fn: "silu".into(),
            scaling_factor: 0.18215,
            shift_factor: None,
            latents_mean: None,
            latents_std: None,
            mid_block_add_attention: true,
            use_quant_conv: true,
            use_post_quant_conv: true,
            down_block_types: Vec::new(),
            up_block_types: Vec::new(),
        }
    }
}

impl VaeConfig {
    /// True if it is a small autoencoder of TAESD's kind.
    pub fn is_tiny(&self) -> bool {
        self.class_name == "AutoencoderTiny"
    }

    /// Pixels per latent, in each direction.
    pub fn factor(&self) -> usize {
        1 << self.block_out_channels.len().saturating_sub(1).min(16)
    }
}

/// Where diffusers takes a number or a list of two.
fn first_number<'de, D: serde::Deserializer<'de>>(d: D) -> Result<usize, D::Error> {
    #[derive(serde::Deserialize)]
    #[serde(untagged)]
    enum Size {
        One(usize),
        List(Vec<usize>),
    }
    Ok(match <Size as serde::Deserialize>::deserialize(d)? {
        Size::One(n) => n,
        Size::List(list) => list.first().copied().unwrap_or(0),
    })
}

/// From latents to pictures.
pub struct Decoder {
    config: VaeConfig,
    net: Net<kl::Decoder, tiny::Decoder>,
}

/// From pictures to latents.
pub struct Encoder {
    net: Net<kl::Encoder, tiny::Encoder>,
}

/// The root of an autoencoder's weights. Its few products are too exact a part of a picture for 8 bits, and cost little.
fn pictures(weights: &Weights, precision: Precision) -> Loader<'_> {
    let precision = if precision == Precision::Int8 { Precision::Bf16 } else { precision };
    Loader::new(weights).in_precision(precision)
}

enum Net<K, T> {
    Kl(K),
    Tiny(T),
}

impl Decoder {
    /// Takes the decoder's half of the weights.
    ///
    /// # Errors
    /// If a tensor is missing or of another shape than the configuration says.
    pub fn load(config: &VaeConfig, weights: &Weights) -> Result<Self, ModelError> {
        Decoder::load_in(config, weights, Precision::F32)
    }

    /// The same with operands of a precision; int8 means bf16 here. Small decoders are f32 always.
    ///
    /// # Errors
    /// As [`Decoder::load`].
    pub fn load_in(config: &VaeConfig, weights: &Weights, precision: Precision) -> Result<Self, ModelError> {
        let net = if config.is_tiny() {
            Net::Tiny(tiny::Decoder::load(config, weights)?)
        } else {
            Net::Kl(kl::Decoder::load(config, &pictures(weights, precision))?)
        };
        Ok(Decoder { config: config.clone(), net })
    }

    /// The configuration.
    pub fn config(&self) -> &VaeConfig {
        &self.config
    }

    /// Latents [batch, h, w, latent channels] (scaling factor divided out) → pictures
    /// [batch, h · factor, w · factor, 3], nominally in -1..1.
    pub fn forward(&self, latents: &Tensor) -> Tensor {
        match &self.net {
            Net::Kl(net) => net.forward(latents),
            Net::Tiny(net) => net.forward(latents),
        }
    }

    /// The same in tiles, for one picture: `rows` gets its rows from the top down, [1, rows, width, 3] at a time, and may stop.
    ///
    /// # Errors
    /// What `rows` ends with.
    pub fn forward_tiled<E>(
        &self,
        latents: &Tensor,
        tiling: Tiling,
        rows: &mut dyn FnMut(Tensor) -> Result<(), E>,
    ) -> Result<(), E> {
        tiling::decode_tiled(tiling, latents, |tile| self.forward(tile), rows)
    }
}

impl Encoder {
    /// Takes the encoder's half of the weights.
    ///
    /// # Errors
    /// If a tensor is missing or of another shape than the configuration says.
    pub fn load(config: &VaeConfig, weights: &Weights) -> Result<Self, ModelError> {
        Encoder::load_in(config, weights, Precision::F32)
    }

    /// The same with operands of a precision; int8 means bf16 here. Small encoders are f32 always.
    ///
    /// # Errors
    /// As [`Encoder::load`].
    pub fn load_in(config: &VaeConfig, weights: &Weights, precision: Precision) -> Result<Self, ModelError> {
        Ok(Encoder {
            net: if config.is_tiny() {
                Net::Tiny(tiny::Encoder::load(config, weights)?)
            } else {
                Net::Kl(kl::Encoder::load(config, &pictures(weights, precision))?)
            },
        })
    }

    /// Pictures [batch, h, w, 3] in -1..1 → moments [batch, h / factor, w / factor, 2 · latent channels]: the means,
    /// then the logarithms of the variances. A small autoencoder gives the latents themselves, without variances.
    pub fn forward(&self, pictures: &Tensor) -> Tensor {
        match &self.net {
            Net::Kl(net) => net.forward(pictures),
            Net::Tiny(net) => net.forward(pictures),
        }
    }

    /// The same in tiles, for one picture.
    pub fn forward_tiled(&self, picture: &Tensor, tiling: Tiling) -> Tensor {
        tiling::encode_tiled(tiling, picture, |tile| self.forward(tile))
    }
}
