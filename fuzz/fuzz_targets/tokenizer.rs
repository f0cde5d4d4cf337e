//! Texts for a sound tokenizer, and tokenizer files.
#![no_main]

use instantstyle_nets::tokenizer::Tokenizer;
use std::sync::LazyLock;

const VOCAB: &str = include_str!("../../crates/nets/tests/fixtures/tokenizer/old/vocab.json");
const MERGES: &str = include_str!("../../crates/nets/tests/fixtures/tokenizer/old/merges.txt");

static SOUND: LazyLock<Tokenizer> =
    LazyLock::new(|| Tokenizer::from_parts(VOCAB, MERGES, Some("!")).expect("the fixture is sound"));

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    assert_eq!(SOUND.encode(&text, 77).ids.len(), 77);
    let files = |name: &str| Ok((name == "tokenizer.json").then(|| data.to_vec()));
    if let Ok(tokenizer) = Tokenizer::from_files("fuzz", files) {
        assert_eq!(tokenizer.encode("a red cat! <|endoftext|> Straße 猫", 20).ids.len(), 20);
    }
    // The sound vocabulary takes its time: only for what has a chance.
    if serde_json::from_slice::<serde_json::Value>(data).is_err() {
        return;
    }
    let config = |name: &str| {
        Ok(match name {
            "vocab.json" => Some(VOCAB.into()),
            "merges.txt" => Some(MERGES.into()),
            "tokenizer_config.json" => Some(data.to_vec()),
            _ => None,
        })
    };
    if let Ok(tokenizer) = Tokenizer::from_files("fuzz", config) {
        assert_eq!(tokenizer.encode("a red cat! <|endoftext|>", 20).ids.len(), 20);
    }
});
