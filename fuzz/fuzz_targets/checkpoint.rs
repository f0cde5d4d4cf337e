//! Single files: what they hold is told by keys and shapes, and every configuration that follows is one that loads or is
//! refused. The input is a list of keys and shapes; the values are zeros.
#![no_main]

use instantstyle_engine::checkpoint::Checkpoint;
use instantstyle_nets::unet::UNetConfig;
use instantstyle_nets::weights::{Dtype, Stored, Weights};
use std::path::Path;

/// Beginnings and ends of real keys; what comes between is the fuzzer's.
const WORDS: [&str; 24] = [
    "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer.", "conditioner.embedders.0.transformer.",
    "conditioner.embedders.1.model.", "input_blocks.", "middle_block.1.", "transformer_blocks.0.", "attn2.to_k.weight",
    "0.in_layers.2.weight", "0.op.weight", "out.2.weight", "label_emb.0.0.weight", "proj_in.weight", "decoder.up.0.block.",
    "conv1.weight", "decoder.conv_in.weight", "text_model.", "embeddings.token_embedding.weight",
    "embeddings.position_embedding.weight", "encoder.layers.0.mlp.fc1.weight", "transformer.resblocks.0.attn.in_proj_weight",
    "positional_embedding", "visual.",
];

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let mut tensors = Vec::new();
    for line in data.split(|b| *b == b'\n').take(200) {
        let Some((shape, key)) = line.split_first_chunk::<4>() else { continue };
        let key: String = key.iter().map(|b| match WORDS.get(*b as usize) {
            Some(word) => (*word).to_owned(),
            None => (*b as char).to_string(),
        }).collect();
        let shape: Vec<usize> = shape.iter().filter(|n| **n != 255).map(|n| *n as usize % 64).collect();
        let bytes = vec![0u8; shape.iter().product::<usize>().min(1 << 20) * 2];
        tensors.extend(Stored::new(Dtype::F16, shape, bytes).map(|t| (key, t)));
    }
    let path = Path::new("fuzz.safetensors");
    let Ok(file) = Checkpoint::of(Weights::from_tensors(tensors, path), path) else { return };
    for name in file.files() {
        assert!(file.exists(&name));
        if name.ends_with("config.json") && !name.starts_with("tokenizer") {
            let json = serde_json::from_slice(&file.file(&name).expect("it exists")).expect("valid JSON");
            let _ = UNetConfig::from_json(&json, path);
        }
    }
});
