//! The names in LoRA files: which network, which layer, which of its tensors.

use super::Part;
use crate::unet::{LdmNames, UNetConfig};
use crate::weights::Weights;
use std::collections::HashMap;

/// What a tensor is in the change of one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Role {
    Down,
    Up,
    /// The core of a decomposed convolution (LoCon).
    Mid,
    Alpha,
    /// DoRA's magnitudes: LyCORIS', of outputs or inputs, and peft's, of outputs.
    Magnitude,
    PeftMagnitude,
    /// The whole change.
    Diff,
    /// LoHa: (w1_a · w1_b) ∘ (w2_a · w2_b), with cores for convolutions.
    Hada1A,
    Hada1B,
    Hada2A,
    Hada2B,
    HadaCore1,
    HadaCore2,
    /// LoKr: w1 ⊗ w2, each whole or a product.
    Lokr1,
    Lokr1A,
    Lokr1B,
    Lokr2,
    Lokr2A,
    Lokr2B,
    LokrCore2,
}

/// How keys end.
const ENDS: &[(&str, Role)] = &[
    // kohya, LyCORIS
    (".lora_down.weight", Role::Down),
    (".lora_up.weight", Role::Up),
    (".lora_mid.weight", Role::Mid),
    (".alpha", Role::Alpha),
    (".dora_scale", Role::Magnitude),
    (".diff", Role::Diff),
    (".hada_w1_a", Role::Hada1A),
    (".hada_w1_b", Role::Hada1B),
    (".hada_w2_a", Role::Hada2A),
    (".hada_w2_b", Role::Hada2B),
    (".hada_t1", Role::HadaCore1),
    (".hada_t2", Role::HadaCore2),
    (".lokr_w1", Role::Lokr1),
    (".lokr_w1_a", Role::Lokr1A),
    (".lokr_w1_b", Role::Lokr1B),
    (".lokr_w2", Role::Lokr2),
    (".lokr_w2_a", Role::Lokr2A),
    (".lokr_w2_b", Role::Lokr2B),
    (".lokr_t2", Role::LokrCore2),
    // peft, with and without the adapter's name
    (".lora_A.weight", Role::Down),
    (".lora_B.weight", Role::Up),
    (".lora_A.default.weight", Role::Down),
    (".lora_B.default.weight", Role::Up),
    (".lora_magnitude_vector", Role::PeftMagnitude),
    (".lora_magnitude_vector.weight", Role::PeftMagnitude),
    (".lora_magnitude_vector.default.weight", Role::PeftMagnitude),
    // diffusers, newer and older
    (".lora.down.weight", Role::Down),
    (".lora.up.weight", Role::Up),
    (".lora_linear_layer.down.weight", Role::Down),
    (".lora_linear_layer.up.weight", Role::Up),
    ("_lora.down.weight", Role::Down),
    ("_lora.up.weight", Role::Up),
];

/// How keys begin; without one of these a key is the UNet's.
const STARTS: &[(&str, Part)] = &[
    ("lora_unet_", Part::UNet),
    ("lycoris_", Part::UNet),
    ("unet.", Part::UNet),
    ("base_model.model.", Part::UNet),
    ("model.diffusion_model.", Part::UNet),
    ("diffusion_model.", Part::UNet),
    ("lora_te_", Part::Text),
    ("lora_te1_", Part::Text),
    ("text_encoder.", Part::Text),
    ("lora_te2_", Part::Text2),
    ("text_encoder_2.", Part::Text2),
];

/// Network, layer (dots written as underscores) and role of a key; None if it is of no known form.
pub(super) fn split(key: &str) -> Option<(Part, String, Role)> {
    let (layer, role) = ENDS.iter().find_map(|(end, role)| Some((key.strip_suffix(end)?, *role)))?;
    let (part, layer) = STARTS
        .iter()
        .find_map(|(start, part)| Some((*part, layer.strip_prefix(start)?)))
        .unwrap_or((Part::UNet, layer));
    // diffusers' older files name the processor, not the layer.
    Some((part, flat(&layer.replace(".processor.", ".")), role))
}

fn flat(name: &str) -> String {
    name.replace('.', "_")
}

/// The names that LoRA files have for one network's layers, each with the key of its weight.
pub struct Names(HashMap<String, String>);

impl Names {
    /// Of a UNet: diffusers' names and the original ones.
    pub fn of_unet(config: &UNetConfig, weights: &Weights) -> Self {
        let original = LdmNames::of(config);
        Names::of(weights, |layer| {
            let mut names = vec![flat(layer)];
            names.extend(original.original(layer).map(|n| flat(&n)));
            // `to_out` for `to_out.0`.
            names.extend(layer.strip_suffix("to_out.0").map(|l| flat(l) + "to_out"));
            names
        })
    }

    /// Of a text encoder, with or without its `text_model.` prefix.
    pub fn of_text(weights: &Weights) -> Self {
        Names::of(weights, |layer| {
            let inner = flat(layer.strip_prefix("text_model.").unwrap_or(layer));
            let mut names = vec![format!("text_model_{inner}")];
            for (usual, older) in
                [("q_proj", "to_q"), ("k_proj", "to_k"), ("v_proj", "to_v"), ("out_proj", "to_out")]
            {
                names.extend(inner.strip_suffix(usual).map(|l| format!("text_model_{l}{older}")));
            }
            names.push(inner);
            names
        })
    }

    fn of(weights: &Weights, names: impl Fn(&str) -> Vec<String>) -> Self {
        let layers = weights.keys().filter_map(|k| Some((k, k.strip_suffix(".weight")?)));
        Names(layers.flat_map(|(k, l)| names(l).into_iter().map(|n| (n, k.to_owned()))).collect())
    }

    /// The key of the weight that a LoRA's layer changes.
    pub fn get(&self, layer: &str) -> Option<&str> {
        self.0.get(layer).map(String::as_str)
    }
}

/// What peft writes beside its tensors: alphas are not among them.
pub(super) struct PeftAlphas(serde_json::Value);

impl PeftAlphas {
    /// Reads `lora_adapter_metadata` of a safetensors file.
    pub(super) fn read(text: &str) -> Result<Self, String> {
        let value: serde_json::Value = serde_json::from_str(text)
            .map_err(|e| format!("its lora_adapter_metadata is not valid JSON ({e})"))?;
        Ok(PeftAlphas(value))
    }

    /// alpha / rank of a layer; None where nothing is said.
    pub(super) fn scale(&self, part: Part, layer: &str, rank: Option<usize>) -> Option<f32> {
        let prefix = match part {
            Part::UNet => "unet",
            Part::Text => "text_encoder",
            Part::Text2 => "text_encoder_2",
        };
        let field = |name: &str| self.0.get(format!("{prefix}.{name}"));
        // A pattern names a layer by the end of its path.
        let own = field("alpha_pattern").and_then(serde_json::Value::as_object).and_then(|patterns| {
            let fits = |p: &str| layer.strip_suffix(p).is_some_and(|l| l.is_empty() || l.ends_with('_'));
            patterns.iter().find(|(p, _)| fits(&flat(p.trim_start_matches('^')))).map(|(_, alpha)| alpha)
        });
        let alpha = own.or_else(|| field("lora_alpha"))?.as_f64()?;
        let rank = rank? as f64;
        let rooted = field("use_rslora").and_then(serde_json::Value::as_bool).unwrap_or(false);
        Some((alpha / if rooted { rank.sqrt() } else { rank }) as f32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_every_writer() {
        let q = "down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q";
        let dotted = "down_blocks.1.attentions.0.transformer_blocks.0.attn1";
        for key in [
            format!("lora_unet_{q}.lora_down.weight"),
            format!("unet.{dotted}.to_q.lora_A.weight"),
            format!("base_model.model.{dotted}.to_q.lora_A.default.weight"),
            format!("unet.{dotted}.to_q.lora.down.weight"),
            format!("unet.{dotted}.processor.to_q_lora.down.weight"),
            format!("{dotted}.processor.to_q_lora.down.weight"),
        ] {
            assert_eq!(split(&key), Some((Part::UNet, q.to_owned(), Role::Down)), "{key}");
        }
        let fc1 = "text_model_encoder_layers_0_mlp_fc1";
        assert_eq!(split(&format!("lora_te_{fc1}.alpha")), Some((Part::Text, fc1.into(), Role::Alpha)));
        assert_eq!(
            split(&format!("lora_te2_{fc1}.dora_scale")),
            Some((Part::Text2, fc1.into(), Role::Magnitude))
        );
        assert_eq!(split("bundle_emb.x.string_to_param.clip_l"), None);
    }

    #[test]
    fn alphas_of_peft() {
        let text = r#"{"unet.lora_alpha": 8, "unet.alpha_pattern": {"attn1.to_q": 2}, "text_encoder.lora_alpha": 4,
            "text_encoder.use_rslora": true}"#;
        let alphas = PeftAlphas::read(text).unwrap();
        assert_eq!(alphas.scale(Part::UNet, "x_attn1_to_q", Some(4)), Some(0.5));
        assert_eq!(alphas.scale(Part::UNet, "x_attn1_to_k", Some(4)), Some(2.0));
        assert_eq!(alphas.scale(Part::Text, "x", Some(4)), Some(2.0));
        assert_eq!(alphas.scale(Part::Text2, "x", Some(4)), None);
    }
}
