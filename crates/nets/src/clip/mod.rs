//! CLIP's two towers as transformers saves them (Radford et al., arXiv 2103.00020; `modeling_clip.py`).

mod memory;
mod text;
mod vision;

pub use text::{TextConfig, TextEncoder, TextOutput};
pub use vision::{VisionConfig, VisionEncoder, VisionOutput};

use crate::error::ModelError;
use crate::layers::{Activation, LayerNorm, Linear, attend};
use crate::load::Loader;
use crate::tensor::Tensor;

/// One pre-norm transformer layer, the same in both towers.
struct Layer {
    norm1: LayerNorm,
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
    norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    heads: usize,
    activation: Activation,
    causal: bool,
}

/// Shape of a stack of [`Layer`]s.
struct Stack {
    hidden: usize,
    intermediate: usize,
    layers: usize,
    heads: usize,
    eps: f32,
    activation: Activation,
    causal: bool,
}

impl Stack {
    fn load(&self, at: &Loader) -> Result<Vec<Layer>, ModelError> {
        if self.heads == 0 || self.hidden % self.heads != 0 {
            return Err(at.error(format!("{} heads do not divide the width {}", self.heads, self.hidden)));
        }
        if self.layers == 0 {
            return Err(at.error("num_hidden_layers is 0"));
        }
        (0..self.layers).map(|i| self.layer(&at.at(i))).collect()
    }

    fn layer(&self, at: &Loader) -> Result<Layer, ModelError> {
        let (h, attn) = (self.hidden, at.at("self_attn"));
        Ok(Layer {
            norm1: at.layer_norm("layer_norm1", h, self.eps)?,
            q: attn.linear("q_proj", h, h, true)?,
            k: attn.linear("k_proj", h, h, true)?,
            v: attn.linear("v_proj", h, h, true)?,
            out: attn.linear("out_proj", h, h, true)?,
            norm2: at.layer_norm("layer_norm2", h, self.eps)?,
            fc1: at.linear("mlp.fc1", h, self.intermediate, true)?,
            fc2: at.linear("mlp.fc2", self.intermediate, h, true)?,
            heads: self.heads,
            activation: self.activation,
            causal: self.causal,
        })
    }
}

impl Layer {
    /// `[batch, tokens, hidden]` → the same.
    fn forward(&self, x: &Tensor) -> Tensor {
        let [q, k, v] = Linear::forward_each([&self.q, &self.k, &self.v], &self.norm1.forward(x));
        let a = attend(&q, &k, &v, self.heads, self.causal);
        let x = self.out.forward_add(&a, x);
        let h = self.fc1.forward_activate(&self.norm2.forward(&x), self.activation);
        self.fc2.forward_add(&h, &x)
    }
}

impl Layer {
    /// What [`Layer::forward`] gives for one token of each row, `[batch, tokens, hidden]` → `[batch, hidden]`, which is all that a
    /// pooled feature needs of the last layer. The softmax may round otherwise.
    fn forward_at(&self, x: &Tensor, tokens: &[usize]) -> Tensor {
        let n = self.norm1.forward(x);
        let [k, v] = Linear::forward_each([&self.k, &self.v], &n);
        let q = self.q.forward(&pick(&n, tokens));
        let mut attended = Tensor::zeros(q.shape());
        for (b, (token, out)) in
            tokens.iter().zip(attended.data_mut().chunks_exact_mut(q.channels())).enumerate()
        {
            let seen = if self.causal { token + 1 } else { x.dim(1) };
            let own = &q.data()[b * q.channels()..][..q.channels()];
            let own = Tensor::new([1, 1, q.channels()], own.to_vec());
            let (k, v) = (first_tokens(&k, b, seen), first_tokens(&v, b, seen));
            out.copy_from_slice(attend(&own, &k, &v, self.heads, false).data());
        }
        let x = self.out.forward_add(&attended, &pick(x, tokens));
        let h = self.fc1.forward_activate(&self.norm2.forward(&x), self.activation);
        self.fc2.forward_add(&h, &x)
    }
}

/// One token of each row: `[batch, tokens, width]` → `[batch, width]`.
fn pick(x: &Tensor, tokens: &[usize]) -> Tensor {
    let (width, all) = (x.channels(), x.dim(1));
    let mut out = Tensor::zeros([tokens.len(), width]);
    for (b, (token, out)) in tokens.iter().zip(out.data_mut().chunks_exact_mut(width)).enumerate() {
        out.copy_from_slice(&x.data()[(b * all + token) * width..][..width]);
    }
    out
}

/// The first tokens of row `b`: `[1, tokens, width]`.
fn first_tokens(x: &Tensor, b: usize, tokens: usize) -> Tensor {
    let (width, all) = (x.channels(), x.dim(1));
    Tensor::new([1, tokens, width], x.data()[b * all * width..][..tokens * width].to_vec())
}

/// The activation of a `hidden_act` field.
fn activation(name: &str, at: &Loader) -> Result<Activation, ModelError> {
    match name {
        "quick_gelu" => Ok(Activation::QuickGelu),
        "gelu" => Ok(Activation::Gelu),
        "silu" => Ok(Activation::Silu),
        other => {
            Err(at.error(format!("hidden_act \"{other}\" is not supported; known: quick_gelu, gelu, silu")))
        }
    }
}
