//! CLIP's published tokenizer, for checkpoints that come without one. Its merges are read from a crate when this program
//! is built (`build.rs`); the vocabulary follows from them.

use super::{Tokenizer, bpe::letter, files};
use crate::ModelError;
use serde_json::{Map, Value, json};

const MERGES: &str = include_str!(concat!(env!("OUT_DIR"), "/clip_merges.txt"));

impl Tokenizer {
    /// CLIP's published tokenizer with the padding `pad`: `<|endoftext|>` for OpenAI's towers, `!` for OpenCLIP's.
    ///
    /// # Errors
    /// None, unless this program was built wrongly.
    pub fn published(pad: &str) -> Result<Self, ModelError> {
        let files = published_files(pad);
        Tokenizer::from_files("CLIP's tokenizer", |name| {
            Ok(files.iter().find(|(n, _)| *n == name).map(|(_, bytes)| bytes.clone()))
        })
    }
}

/// The files of a folder with CLIP's published tokenizer: their names and contents.
pub fn published_files(pad: &str) -> Vec<(&'static str, Vec<u8>)> {
    // The bytes in the order of GPT-2's `bytes_to_unicode`: those that print as themselves first.
    let own = (33..127).chain(161..173).chain(174..=255);
    let letters: Vec<String> =
        own.chain(0..33).chain(127..161).chain([173]).map(|b| letter(b).to_string()).collect();
    let ends = letters.iter().map(|l| format!("{l}</w>"));
    let merged = MERGES.lines().skip(1).map(|m| m.replace(' ', ""));
    let special = [files::BOS, files::EOS].map(String::from);
    let symbols = letters.iter().cloned().chain(ends).chain(merged).chain(special);
    let vocab: Map<String, Value> = symbols.zip(0..).map(|(s, i)| (s, Value::from(i))).collect();
    let token = |content: &str| json!({ "content": content, "lstrip": false, "normalized": true, "rstrip": false, "single_word": false });
    let config = json!({
        "add_prefix_space": false, "bos_token": token(files::BOS), "do_lower_case": true, "eos_token": token(files::EOS),
        "errors": "replace", "model_max_length": 77, "pad_token": pad, "tokenizer_class": "CLIPTokenizer",
        "unk_token": token(files::EOS),
    });
    let special = json!({
        "bos_token": token(files::BOS), "eos_token": token(files::EOS), "pad_token": pad, "unk_token": token(files::EOS),
    });
    vec![
        ("vocab.json", Value::Object(vocab).to_string().into_bytes()),
        ("merges.txt", MERGES.into()),
        ("tokenizer_config.json", format!("{config:#}\n").into_bytes()),
        ("special_tokens_map.json", format!("{special:#}\n").into_bytes()),
    ]
}
