//! CLIP's towers in OpenCLIP's names (`open_clip/transformer.py`: one matrix for queries, keys and values), and what
//! transformers' configuration of a lone file would be.

use super::{Part, axis, count, transposed};
use crate::error::ModelError;
use crate::weights::{Stored, Weights};
use serde_json::json;

/// A layer's parts: transformers' name, OpenCLIP's.
const LAYER: [(&str, &str); 5] = [
    ("layer_norm1", "ln_1"),
    ("layer_norm2", "ln_2"),
    ("mlp.fc1", "mlp.c_fc"),
    ("mlp.fc2", "mlp.c_proj"),
    ("self_attn.out_proj", "attn.out_proj"),
];
/// Parts of the text tower outside its layers.
const TEXT: [(&str, &str); 4] = [
    ("text_model.embeddings.token_embedding.weight", "token_embedding.weight"),
    ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
    ("text_model.final_layer_norm.weight", "ln_final.weight"),
    ("text_model.final_layer_norm.bias", "ln_final.bias"),
];
/// Parts of the picture tower outside its layers.
const VISION: [(&str, &str); 7] = [
    ("vision_model.embeddings.class_embedding", "class_embedding"),
    ("vision_model.embeddings.patch_embedding.weight", "conv1.weight"),
    ("vision_model.embeddings.position_embedding.weight", "positional_embedding"),
    // The published spelling.
    ("vision_model.pre_layrnorm.weight", "ln_pre.weight"),
    ("vision_model.pre_layrnorm.bias", "ln_pre.bias"),
    ("vision_model.post_layernorm.weight", "ln_post.weight"),
    ("vision_model.post_layernorm.bias", "ln_post.bias"),
];
/// Keys of checkpoints that are no weights of a tower.
const ASIDE: [&str; 4] = ["logit_scale", "attn_mask", "input_resolution", "context_length"];

/// A text tower in OpenCLIP's names (`transformer.resblocks.*`, `text_projection`), without a prefix.
///
/// # Errors
/// If its parts are not those of a CLIP text tower.
pub fn open_clip_text(weights: &Weights) -> Result<Part, ModelError> {
    let (tower, unknown) =
        from_open_clip(weights, "text_model", &TEXT, ("text_projection", "text_projection.weight"))?;
    let mut part = clip_text(&tower)?;
    // Activation of all towers that OpenCLIP trained for the models here (`model_configs/ViT-{H-14,bigG-14}.json`).
    part.config["hidden_act"] = json!("gelu");
    part.unknown.extend(unknown);
    Ok(part)
}

/// A picture tower in OpenCLIP's names, without the prefix `visual.`.
///
/// # Errors
/// If its parts are not those of a CLIP picture tower.
pub fn open_clip_vision(weights: &Weights) -> Result<Part, ModelError> {
    let (tower, unknown) =
        from_open_clip(weights, "vision_model", &VISION, ("proj", "visual_projection.weight"))?;
    let mut part = clip_vision(&tower)?;
    part.config["hidden_act"] = json!("gelu");
    part.unknown.extend(unknown);
    Ok(part)
}

/// Renames, and takes fused projections apart.
fn from_open_clip(
    weights: &Weights,
    root: &str,
    outside: &[(&str, &str)],
    projection: (&str, &str),
) -> Result<(Weights, Vec<String>), ModelError> {
    let mut tower = Weights::from_tensors([], weights.source());
    let mut unknown = Vec::new();
    for (key, tensor) in weights.iter() {
        let wrong = || {
            let shape = tensor.shape();
            ModelError::new(
                weights.source(),
                format!("the tensor {key} has shape {shape:?}, which no CLIP tower has"),
            )
        };
        if let Some((ours, _)) = outside.iter().find(|(_, theirs)| *theirs == key) {
            tower.insert(*ours, tensor.clone());
        } else if key == projection.0 {
            tower.insert(projection.1, transposed(tensor).ok_or_else(wrong)?);
        } else if key == projection.1 {
            tower.insert(key, tensor.clone());
        } else if let Some((layer, rest)) = layer(key, "transformer.resblocks.") {
            let at = format!("{root}.encoder.layers.{layer}");
            if let Some(kind) = rest.strip_prefix("attn.in_proj_") {
                let width = tensor.shape().first().filter(|n| **n % 3 == 0).ok_or_else(wrong)? / 3;
                for (i, name) in ["q", "k", "v"].into_iter().enumerate() {
                    let rows = tensor.rows(i * width, width).ok_or_else(wrong)?;
                    tower.insert(format!("{at}.self_attn.{name}_proj.{kind}"), rows);
                }
            } else if let Some(name) = part(rest, &LAYER, false) {
                tower.insert(format!("{at}.{name}"), tensor.clone());
            } else {
                unknown.push(key.to_owned());
            }
        } else if !ASIDE.contains(&key) {
            unknown.push(key.to_owned());
        }
    }
    Ok((tower, unknown))
}

/// A text tower in transformers' names as OpenCLIP stores it; queries, keys and values are joined again.
///
/// # Errors
/// If a layer lacks one of the three, or a tensor has no place there.
pub fn to_open_clip_text(weights: &Weights) -> Result<Weights, ModelError> {
    let mut out = Weights::from_tensors([], weights.source());
    for (key, tensor) in weights.iter() {
        let wrong = |what: &str| ModelError::new(weights.source(), format!("the tensor {key} {what}"));
        let full = match key.strip_prefix("text_model.") {
            Some(_) => key.to_owned(),
            None if key == "text_projection.weight" => key.to_owned(),
            None => format!("text_model.{key}"),
        };
        if full.ends_with("position_ids") {
            continue;
        }
        if let Some((_, theirs)) = TEXT.iter().find(|(ours, _)| *ours == full) {
            out.insert(*theirs, tensor.clone());
        } else if full == "text_projection.weight" {
            out.insert(
                "text_projection",
                transposed(tensor).ok_or_else(|| wrong("is not a matrix of numbers"))?,
            );
        } else if let Some((layer, rest)) = layer(&full, "text_model.encoder.layers.") {
            let at = format!("transformer.resblocks.{layer}");
            if let Some(kind) = rest.strip_prefix("self_attn.q_proj.") {
                let stem = key.strip_suffix(&format!("q_proj.{kind}")).unwrap_or_default();
                let three = ["q", "k", "v"].map(|n| weights.get(&format!("{stem}{n}_proj.{kind}")));
                let [Some(q), Some(k), Some(v)] = three else {
                    return Err(wrong("has no k_proj and v_proj beside it"));
                };
                let joined = joined(&[q, k, v])
                    .ok_or_else(|| wrong("differs in shape or type from k_proj and v_proj"))?;
                out.insert(format!("{at}.attn.in_proj_{kind}"), joined);
            } else if let Some(name) = part(rest, &LAYER, true) {
                out.insert(format!("{at}.{name}"), tensor.clone());
            } else if !rest.starts_with("self_attn.k_proj.") && !rest.starts_with("self_attn.v_proj.") {
                return Err(wrong("has no place in an OpenCLIP text tower"));
            }
        } else {
            return Err(wrong("has no place in an OpenCLIP text tower"));
        }
    }
    Ok(out)
}

/// Tensors of one shape and type after each other along the first axis.
fn joined(tensors: &[&Stored]) -> Option<Stored> {
    let first = tensors.first()?;
    if tensors.iter().any(|t| (t.shape(), t.dtype()) != (first.shape(), first.dtype())) {
        return None;
    }
    let mut shape = first.shape().to_vec();
    *shape.first_mut()? *= tensors.len();
    let bytes: Vec<u8> = tensors.iter().flat_map(|t| t.bytes()).copied().collect();
    Stored::new(first.dtype(), shape, bytes)
}

/// `key` as the number of a layer and what follows it.
fn layer<'a>(key: &'a str, before: &str) -> Option<(&'a str, &'a str)> {
    let (number, rest) = key.strip_prefix(before)?.split_once('.')?;
    number.bytes().all(|b| b.is_ascii_digit()).then_some((number, rest))
}

/// A part of a layer with its `weight` or `bias`, under its other name.
fn part(rest: &str, names: &[(&str, &str)], to_open_clip: bool) -> Option<String> {
    names.iter().find_map(|(ours, theirs)| {
        let (from, to) = if to_open_clip { (ours, theirs) } else { (theirs, ours) };
        let end = rest.strip_prefix(from).filter(|e| e.starts_with('.'))?;
        Some(format!("{to}{end}"))
    })
}

/// A text tower in transformers' names, with or without `text_model.` in front.
///
/// # Errors
/// If its parts are not those of a CLIP text tower.
pub fn clip_text(weights: &Weights) -> Result<Part, ModelError> {
    let at = if weights.has_prefix("text_model.") { "text_model." } else { "" };
    let tokens = format!("{at}embeddings.token_embedding.weight");
    let width = axis(weights, &tokens, 1)?;
    let projection = match weights.get("text_projection.weight") {
        Some(_) => axis(weights, "text_projection.weight", 0)?,
        None => width,
    };
    let config = json!({
        "architectures": [if weights.get("text_projection.weight").is_some() { "CLIPTextModelWithProjection" } else { "CLIPTextModel" }],
        "model_type": "clip_text_model",
        // As published with SD1.5 and SDXL: the highest id is the end (see `TextEncoder`).
        "eos_token_id": 2,
        // OpenAI's towers (512 and 768 wide) use the quick form, OpenCLIP's wider ones the exact one.
        "hidden_act": if width <= 768 { "quick_gelu" } else { "gelu" },
        "hidden_size": width,
        "intermediate_size": axis(weights, &format!("{at}encoder.layers.0.mlp.fc1.weight"), 0)?,
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": axis(weights, &format!("{at}embeddings.position_embedding.weight"), 0)?,
        // 64 channels per head in every text tower (OpenAI's and OpenCLIP's `model_configs`).
        "num_attention_heads": (width / 64).max(1),
        "num_hidden_layers": count(weights, |i| format!("{at}encoder.layers.{i}.layer_norm1.weight")),
        "projection_dim": projection,
        "vocab_size": axis(weights, &tokens, 0)?,
    });
    Ok(Part { config, weights: weights.clone(), unknown: Vec::new() })
}

/// A picture tower in transformers' names, with `vision_model.` in front or not.
///
/// # Errors
/// If its parts are not those of a CLIP picture tower.
pub fn clip_vision(weights: &Weights) -> Result<Part, ModelError> {
    let at = if weights.has_prefix("vision_model.") { "vision_model." } else { "" };
    let patches = format!("{at}embeddings.patch_embedding.weight");
    let (width, patch) = (axis(weights, &patches, 0)?, axis(weights, &patches, 2)?);
    let positions = axis(weights, &format!("{at}embeddings.position_embedding.weight"), 0)?;
    let side = (positions - 1).isqrt();
    let config = json!({
        "architectures": ["CLIPVisionModelWithProjection"],
        "model_type": "clip_vision_model",
        // As for text: OpenAI's towers are at most 1024 wide.
        "hidden_act": if width <= 1024 { "quick_gelu" } else { "gelu" },
        "hidden_size": width,
        "image_size": side * patch,
        "intermediate_size": axis(weights, &format!("{at}encoder.layers.0.mlp.fc1.weight"), 0)?,
        "layer_norm_eps": 1e-5,
        "num_attention_heads": vision_heads(width),
        "num_channels": 3,
        "num_hidden_layers": count(weights, |i| format!("{at}encoder.layers.{i}.layer_norm1.weight")),
        "patch_size": patch,
        "projection_dim": axis(weights, "visual_projection.weight", 0)?,
    });
    Ok(Part { config, weights: weights.clone(), unknown: Vec::new() })
}

/// Heads by width: `head_width` in OpenCLIP's `model_configs` is 80 for ViT-H-14 (1280), 88 for ViT-g-14 (1408), 104 for
/// ViT-bigG-14 (1664), else 64.
fn vision_heads(width: usize) -> usize {
    let head = match width {
        1280 => 80,
        1408 => 88,
        1664 => 104,
        _ => 64,
    };
    (width / head).max(1)
}
