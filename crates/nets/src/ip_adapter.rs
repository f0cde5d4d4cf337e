//! IP-Adapters: from picture features to tokens, and from tokens to keys and values at every site
//! (Ye et al., arXiv 2308.06721). The kind is told by keys and shapes, never by the file's name.

use crate::error::ModelError;
use crate::layers::{Activation, LayerNorm, Linear, attend};
use crate::load::Loader;
use crate::tensor::Tensor;
use crate::unet::{KeyValue, Site};
use crate::weights::{Stored, Weights};

/// torch's default.
const EPS: f32 = 1e-5;

/// How an adapter turns a picture into tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One linear layer over the pooled feature.
    Base,
    /// A perceiver resampler over the penultimate hidden states.
    Plus,
    /// An MLP over all penultimate hidden states.
    Full,
}

impl Kind {
    /// The published name.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Base => "IP-Adapter",
            Kind::Plus => "IP-Adapter Plus",
            Kind::Full => "IP-Adapter Full",
        }
    }
}

/// The keys under which adapters are published (`image_proj.*`, `ip_adapter.N.*`), from the others that are met:
///
/// * A whole checkpoint of `tutorial_train.py` has `image_proj_model.*`, `adapter_modules.*` and the unchanged `unet.*`
///   (tencent-ailab/IP-Adapter, README).
/// * Saved as safetensors, where a tensor has one name only, it has `unet.PROCESSOR.to_k_ip.weight` instead of
///   `adapter_modules.*`, as for `down_blocks.0.attentions.0.transformer_blocks.0.attn2.processor`; what people convert it to has
///   the same names under `ip_adapter` (its issues 164, 166 and 168).
/// * diffusers' own processors number their adapters: `to_k_ip.0.weight`.
///
/// Others stay as they are.
pub fn published_names(weights: &Weights) -> Weights {
    let mut sites: Vec<Order> =
        weights.keys().filter_map(|key| processor(key)).map(|(order, _)| order).collect();
    sites.sort_unstable();
    sites.dedup();
    if sites.is_empty() && !weights.has_prefix("adapter_modules.") {
        return weights.clone();
    }
    weights.renamed(|key| {
        if let Some((order, part)) = processor(key) {
            let place = sites.binary_search(&order).ok()?;
            return Some(format!("ip_adapter.{}.{part}.weight", 2 * place + 1));
        }
        let names = [
            ("image_proj_model.", "image_proj."),
            ("image_proj.", "image_proj."),
            ("adapter_modules.", "ip_adapter."),
        ];
        names.iter().find_map(|(from, to)| Some(format!("{to}{}", key.strip_prefix(from)?)))
    })
}

/// Where an attention stands in the order of `ip_adapter.N`: down, up, middle; block, attention, transformer.
type Order = (u8, usize, usize, usize);

/// The place and the part (`to_k_ip`, `to_v_ip`) of a key that names a processor by the path of its attention.
fn processor(key: &str) -> Option<(Order, &str)> {
    let key = ["unet.", "ip_adapter."].iter().find_map(|p| key.strip_prefix(p)).unwrap_or(key);
    let (path, part) = key.split_once(".attn2.processor.")?;
    let part = part.strip_suffix(".weight")?;
    let part = part.strip_suffix(".0").unwrap_or(part);
    let parts: Vec<&str> = path.split('.').collect();
    let (block, rest) = match parts[..] {
        ["down_blocks", n, ref rest @ ..] => ((0, n), rest),
        ["up_blocks", n, ref rest @ ..] => ((1, n), rest),
        ["mid_block", ref rest @ ..] => ((2, "0"), rest),
        _ => return None,
    };
    let ["attentions", attention, "transformer_blocks", transformer] = rest else { return None };
    let number = |n: &str| n.parse::<usize>().ok();
    let order = (block.0, number(block.1)?, number(attention)?, number(transformer)?);
    ["to_k_ip", "to_v_ip"].contains(&part).then_some((order, part))
}

/// What the shapes of an adapter's file say.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterShape {
    /// How it projects.
    pub kind: Kind,
    /// Width of the feature that it reads: the projection's for Base, else the hidden width of the picture tower.
    pub input: usize,
    /// Width of its tokens: must equal the UNet's cross-attention width.
    pub context: usize,
    /// Tokens per picture, where the file fixes it (Full gives one per hidden state).
    pub tokens: Option<usize>,
    /// Number of cross-attention layers that it has keys and values for.
    pub layers: usize,
}

impl AdapterShape {
    /// Reads the shapes.
    ///
    /// # Errors
    /// If this is not an IP-Adapter of a known kind.
    pub fn of(weights: &Weights) -> Result<Self, ModelError> {
        let weights = &published_names(weights);
        let root = Loader::new(weights);
        let image = root.at("image_proj");
        let layers = (0..)
            .map(|n| format!("ip_adapter.{}.to_k_ip.weight", 2 * n + 1))
            .take_while(|k| root.has(k))
            .count();
        let two = |t: &Stored, name: &str| match t.shape() {
            &[a, b] if a > 0 && b > 0 => Ok((a, b)),
            s => Err(root.error(format!("image_proj.{name} has shape {s:?}, expected two axes"))),
        };
        if layers == 0 {
            return Err(root.error(
                "no ip_adapter.N.to_k_ip tensors: this is not an IP-Adapter (expected image_proj.* and ip_adapter.*)",
            ));
        }
        let context = two(root.any("ip_adapter.1.to_k_ip.weight")?, "to_k_ip")?.1;
        if root.at("perceiver_resampler").has("proj_in.weight")
            || image.has("perceiver_resampler.proj_in.weight")
        {
            return Err(root.error(
                "this is a FaceID adapter, which is not supported; use a base, Plus or Full adapter",
            ));
        }
        if image.has("latents") {
            let latents = image.any("latents")?.shape();
            let tokens = *latents.iter().rev().nth(1).unwrap_or(&0);
            let input = two(image.any("proj_in.weight")?, "proj_in.weight")?.1;
            return Ok(AdapterShape { kind: Kind::Plus, input, context, tokens: Some(tokens), layers });
        }
        if image.has("proj.3.weight") {
            let input = two(image.any("proj.0.weight")?, "proj.0.weight")?.1;
            return Ok(AdapterShape { kind: Kind::Full, input, context, tokens: None, layers });
        }
        if image.has("proj.weight") {
            let (outputs, input) = two(image.any("proj.weight")?, "proj.weight")?;
            let width = image.any("norm.weight")?.len();
            if width == 0 || outputs % width != 0 || width != context {
                return Err(root.error(format!(
                    "image_proj.proj gives {outputs} numbers and image_proj.norm has {width}, but ip_adapter reads {context}"
                )));
            }
            return Ok(AdapterShape {
                kind: Kind::Base,
                input,
                context,
                tokens: Some(outputs / width),
                layers,
            });
        }
        if image.has("proj.0.weight") && image.has("proj.2.weight") {
            return Err(root.error(
                "this is a FaceID adapter, which is not supported; use a base, Plus or Full adapter",
            ));
        }
        Err(root.error("image_proj.* is of no known kind (base, Plus or Full)"))
    }
}

/// Attention of the resampler's queries over the picture's states and the queries themselves.
struct Resample {
    norm_states: LayerNorm,
    norm_queries: LayerNorm,
    q: Linear,
    kv_k: Linear,
    kv_v: Linear,
    out: Linear,
    feed_norm: LayerNorm,
    feed_in: Linear,
    feed_out: Linear,
    heads: usize,
}

enum Projection {
    Base { proj: Linear, norm: LayerNorm, tokens: usize },
    Full { first: Linear, second: Linear, norm: LayerNorm },
    Plus { latents: Tensor, proj_in: Linear, layers: Vec<Resample>, proj_out: Linear, norm_out: LayerNorm },
}

/// An adapter: its projection and the keys and values of every site.
pub struct IpAdapter {
    shape: AdapterShape,
    projection: Projection,
    /// Per site in forward order.
    sites: Vec<(Linear, Linear)>,
}

/// Width of one head of the resampler, as published.
const HEAD: usize = 64;

impl IpAdapter {
    /// Takes an adapter for a UNet with these sites.
    ///
    /// # Errors
    /// If its layers do not fit the sites one by one, or a tensor is missing or of another shape.
    pub fn load(weights: &Weights, sites: &[Site]) -> Result<Self, ModelError> {
        let weights = &published_names(weights);
        let shape = AdapterShape::of(weights)?;
        let root = Loader::new(weights);
        if shape.layers != sites.len() {
            return Err(root.error(format!(
                "the adapter has {} cross-attention layers, the model {}: it was made for another family of models",
                shape.layers,
                sites.len()
            )));
        }
        let layer = |site: &Site| {
            let at = root.at(format!("ip_adapter.{}", site.ordinal));
            Ok((
                at.linear("to_k_ip", shape.context, site.width, false)?,
                at.linear("to_v_ip", shape.context, site.width, false)?,
            ))
        };
        let sites = sites.iter().map(layer).collect::<Result<_, ModelError>>()?;
        let image = root.at("image_proj");
        let projection = match shape.kind {
            Kind::Base => {
                let tokens = shape.tokens.unwrap_or(1);
                Projection::Base {
                    proj: image.linear("proj", shape.input, tokens * shape.context, true)?,
                    norm: image.layer_norm("norm", shape.context, EPS)?,
                    tokens,
                }
            }
            Kind::Full => {
                let middle = image.any("proj.0.weight")?.shape()[0];
                Projection::Full {
                    first: image.linear("proj.0", shape.input, middle, true)?,
                    second: image.linear("proj.2", middle, shape.context, true)?,
                    norm: image.layer_norm("proj.3", shape.context, EPS)?,
                }
            }
            Kind::Plus => load_resampler(&image, &shape)?,
        };
        Ok(IpAdapter { shape, projection, sites })
    }

    /// Kind and widths.
    pub fn shape(&self) -> &AdapterShape {
        &self.shape
    }

    /// Features → tokens [batch, tokens, context]. Base reads pooled features [batch, input], the others hidden states
    /// [batch, states, input].
    pub fn tokens(&self, features: &Tensor) -> Tensor {
        let batch = features.dim(0);
        match &self.projection {
            Projection::Base { proj, norm, tokens } => {
                norm.forward(&proj.forward(features).reshape([batch, *tokens, self.shape.context]))
            }
            Projection::Full { first, second, norm } => {
                norm.forward(&second.forward(&first.forward_activate(features, Activation::Gelu)))
            }
            Projection::Plus { latents, proj_in, layers, proj_out, norm_out } => {
                let states = proj_in.forward(features);
                let mut x = Tensor::stack(&vec![latents; batch]);
                for layer in layers {
                    x = layer.forward(&x, &states);
                }
                norm_out.forward(&proj_out.forward(&x))
            }
        }
    }

    /// Keys and values of image tokens at site `i` of the forward order.
    pub fn key_value(&self, i: usize, tokens: &Tensor) -> KeyValue {
        let (k, v) = &self.sites[i];
        KeyValue { k: k.forward(tokens), v: v.forward(tokens) }
    }
}

fn load_resampler(image: &Loader, shape: &AdapterShape) -> Result<Projection, ModelError> {
    let latents = image.any("latents")?;
    let (width, queries) = match *latents.shape() {
        [1, q, w] | [q, w] if q > 0 && w > 0 => (w, q),
        ref s => {
            return Err(
                image.error(format!("image_proj.latents has shape {s:?}, expected [1, queries, width]"))
            );
        }
    };
    let mut layers = Vec::new();
    while image.has(&format!("layers.{}.0.to_q.weight", layers.len())) {
        let at = image.at(format!("layers.{}", layers.len()));
        let (attention, feed) = (at.at("0"), at.at("1"));
        let inner = attention.any("to_q.weight")?.shape()[0];
        if inner == 0 || inner % HEAD != 0 {
            return Err(image
                .error(format!("the resampler's width {inner} is not a multiple of its head width {HEAD}")));
        }
        let middle = feed.any("1.weight")?.shape()[0];
        let kv = attention.stored("to_kv.weight", &[2 * inner, width])?;
        let half = |i: usize| {
            let rows =
                kv.rows(i * inner, inner).ok_or_else(|| attention.error("to_kv.weight cannot be halved"))?;
            Ok::<_, ModelError>(Linear::new(rows, None, width, inner))
        };
        layers.push(Resample {
            norm_states: attention.layer_norm("norm1", width, EPS)?,
            norm_queries: attention.layer_norm("norm2", width, EPS)?,
            q: attention.linear("to_q", width, inner, false)?,
            kv_k: half(0)?,
            kv_v: half(1)?,
            out: attention.linear("to_out", inner, width, false)?,
            feed_norm: feed.layer_norm("0", width, EPS)?,
            feed_in: feed.linear("1", width, middle, false)?,
            feed_out: feed.linear("3", middle, width, false)?,
            heads: inner / HEAD,
        });
    }
    if layers.is_empty() {
        return Err(image.error("image_proj.layers.0 is missing: the resampler has no layers"));
    }
    Ok(Projection::Plus {
        latents: Tensor::new([1, queries, width], latents.to_f32()),
        proj_in: image.linear("proj_in", shape.input, width, true)?,
        layers,
        proj_out: image.linear("proj_out", width, shape.context, true)?,
        norm_out: image.layer_norm("norm_out", shape.context, EPS)?,
    })
}

impl Resample {
    /// `x` [batch, queries, width] over `states` [batch, states, width].
    fn forward(&self, x: &Tensor, states: &Tensor) -> Tensor {
        let queries = self.norm_queries.forward(x);
        let all = Tensor::concat_tokens(&[&self.norm_states.forward(states), &queries]);
        let q = self.q.forward(&queries);
        let [k, v] = Linear::forward_each([&self.kv_k, &self.kv_v], &all);
        let x = self.out.forward_add(&attend(&q, &k, &v, self.heads, false), x);
        let h = self.feed_in.forward_activate(&self.feed_norm.forward(&x), Activation::Gelu);
        self.feed_out.forward_add(&h, &x)
    }
}
