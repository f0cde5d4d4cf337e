//! Small autoencoders: TAESD (Bohan, github.com/madebyollin/taesd) and diffusers' `AutoencoderTiny`, which wraps it.
//!
//! A row of 3×3 convolutions and residual blocks. Which of them halve or double the picture follows from the weights: those
//! have no bias. Files differ in names only: `decoder.layers.N` in Diffusers folders, bare numbers in `taesd_decoder` files,
//! where the decoder's are one higher (its clamp is a layer there).

use super::VaeConfig;
use crate::error::ModelError;
use crate::layers::Conv2d;
use crate::load::Loader;
use crate::tensor::Tensor;
use crate::weights::Weights;
use rayon::prelude::*;

/// More layers than any has.
const MOST: usize = 256;

enum Layer {
    Conv(Conv2d),
    /// Halves in the encoder, doubles in the decoder.
    Resize(Conv2d),
    /// Three convolutions with ReLU between; ReLU of the sum with the input.
    Block(Box<[Conv2d; 3]>),
}

/// Which half of the file.
#[derive(Clone, Copy)]
enum Half {
    Encoder,
    Decoder,
}

impl VaeConfig {
    /// Of a file of a small autoencoder without a configuration; None if these are other weights.
    pub fn of_tiny(weights: &Weights) -> Option<Self> {
        let latents = |half: Half| {
            let (at, layers) = Stack::places(weights, half)?;
            let end = match half {
                Half::Decoder => layers.first()?,
                Half::Encoder => layers.last()?,
            };
            let shape = weights.get(&format!("{at}{end}.weight"))?.shape();
            let channels = shape.get(if matches!(half, Half::Decoder) { 1 } else { 0 })?;
            let resized = layers.iter().filter(|n| {
                let has = |name: &str| weights.get(&format!("{at}{n}.{name}")).is_some();
                has("weight") && !has("bias")
            });
            Some((*channels, resized.count()))
        };
        let (latent_channels, resized) = latents(Half::Decoder).or_else(|| latents(Half::Encoder))?;
        Some(VaeConfig {
            class_name: "AutoencoderTiny".into(),
            latent_channels,
            block_out_channels: vec![64; resized + 1],
            act_fn: "relu".into(),
            scaling_factor: 1.0,
            ..VaeConfig::default()
        })
    }
}

struct Stack(Vec<Layer>);

impl Stack {
    /// What the half's keys begin with, and the numbers of its layers.
    fn places(weights: &Weights, half: Half) -> Option<(&'static str, Vec<usize>)> {
        let prefixes = match half {
            Half::Encoder => ["encoder.layers.", "encoder.", ""],
            Half::Decoder => ["decoder.layers.", "decoder.", ""],
        };
        let numbers = |prefix: &str| {
            let number = |key: &str| key.strip_prefix(prefix)?.split('.').next()?.parse::<usize>().ok();
            let mut found: Vec<usize> = weights.keys().filter_map(number).filter(|n| *n < MOST).collect();
            found.sort_unstable();
            found.dedup();
            found
        };
        let of = |prefix: &'static str| (prefix, numbers(prefix));
        let (prefix, layers) = prefixes.into_iter().map(of).find(|(_, layers)| !layers.is_empty())?;
        // Bare numbers are of the one half or of the other: an encoder begins with three channels and has no clamp.
        let first = weights.get(&format!("{prefix}{}.weight", layers[0]))?;
        let encodes = layers[0] == 0 && first.shape().get(1) == Some(&3);
        let fits = !prefix.is_empty() || encodes == matches!(half, Half::Encoder);
        (fits && layers.len() > 2).then_some((prefix, layers))
    }

    fn load(config: &VaeConfig, weights: &Weights, half: Half) -> Result<Self, ModelError> {
        let root = Loader::new(weights);
        let (name, ends) = match half {
            Half::Encoder => ("encoder", (config.in_channels, config.latent_channels)),
            Half::Decoder => ("decoder", (config.latent_channels, config.out_channels)),
        };
        if config.act_fn != "relu" {
            return Err(root.error(format!(
                "act_fn \"{}\" of a small autoencoder is not supported; expected relu",
                config.act_fn
            )));
        }
        let (prefix, numbers) = Stack::places(weights, half).ok_or_else(|| {
            root.error(format!("holds no {name} of a small autoencoder ({name}.layers.0.weight …)"))
        })?;
        let mut inputs = ends.0;
        let mut layers = Vec::new();
        for n in numbers {
            let key = format!("{prefix}{n}");
            let at = root.at(&key);
            if at.has("conv.0.weight") {
                if at.has("skip.weight") {
                    return Err(
                        root.error(format!("{key}.skip: blocks that change their width are not supported"))
                    );
                }
                let conv = |i: usize| at.conv(&format!("conv.{i}"), inputs, inputs, 3);
                layers.push(Layer::Block(Box::new([conv(0)?, conv(2)?, conv(4)?])));
                continue;
            }
            let outputs = at.any("weight")?.shape().first().copied().unwrap_or(0);
            let conv = root.conv(&key, inputs, outputs, 3)?;
            layers.push(if at.has("bias") { Layer::Conv(conv) } else { Layer::Resize(conv) });
            inputs = outputs;
        }
        let resized = layers.iter().filter(|l| matches!(l, Layer::Resize(_))).count();
        if inputs != ends.1 || 1 << resized.min(16) != config.factor() {
            return Err(root.error(format!(
                "the {name} ends with {inputs} channels after {resized} changes of size; its configuration says {} and {}",
                ends.1,
                config.factor().trailing_zeros()
            )));
        }
        Ok(Stack(layers))
    }

    fn forward(&self, mut x: Tensor, half: Half) -> Tensor {
        for (i, layer) in self.0.iter().enumerate() {
            x = match (layer, half) {
                (Layer::Conv(conv), Half::Decoder) if i == 0 => relu(conv.forward(&x)),
                (Layer::Conv(conv), _) => conv.forward(&x),
                (Layer::Resize(conv), Half::Encoder) => conv.strided(&x, 2, 1, 1),
                (Layer::Resize(conv), Half::Decoder) => conv.upsampled(&x),
                (Layer::Block(convs), _) => {
                    let [first, second, third] = &**convs;
                    let mut h = relu(first.forward(&x));
                    h = relu(second.forward(&h));
                    relu(third.forward_add(&h, &x))
                }
            };
        }
        x
    }
}

/// See [`super::Decoder`].
pub(super) struct Decoder(Stack);

impl Decoder {
    pub(super) fn load(config: &VaeConfig, weights: &Weights) -> Result<Self, ModelError> {
        Stack::load(config, weights, Half::Decoder).map(Decoder)
    }

    pub(super) fn forward(&self, latents: &Tensor) -> Tensor {
        // The clamp that the first layer of TAESD is.
        let x = mapped(latents.clone(), |v| (v / 3.0).tanh() * 3.0);
        mapped(self.0.forward(x, Half::Decoder), |v| v * 2.0 - 1.0)
    }
}

/// See [`super::Encoder`].
pub(super) struct Encoder(Stack);

impl Encoder {
    pub(super) fn load(config: &VaeConfig, weights: &Weights) -> Result<Self, ModelError> {
        Stack::load(config, weights, Half::Encoder).map(Encoder)
    }

    pub(super) fn forward(&self, pictures: &Tensor) -> Tensor {
        self.0.forward(mapped(pictures.clone(), |v| (v + 1.0) / 2.0), Half::Encoder)
    }
}

fn relu(x: Tensor) -> Tensor {
    mapped(x, |v| v.max(0.0))
}

fn mapped(mut x: Tensor, f: impl Fn(f32) -> f32 + Sync) -> Tensor {
    x.data_mut().par_iter_mut().with_min_len(1 << 14).for_each(|v| *v = f(*v));
    x
}
