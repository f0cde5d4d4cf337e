//! Ids as transformers gives them (`testkit/recipe/files.py tokenizer`): a small vocabulary in every layout, and the
//! published one where its source lies beside the repository.

mod mutate;

use instantstyle_nets::tokenizer::Tokenizer;
use serde_json::{Value, json};
use std::io::Read;
use std::path::{Path, PathBuf};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tokenizer").join(name)
}

fn json<T: serde::de::DeserializeOwned>(name: &str) -> T {
    serde_json::from_slice(&std::fs::read(fixture(name)).unwrap()).unwrap()
}

fn check(tokenizer: &Tokenizer, ids: &str) {
    let texts: Vec<String> = json("texts.json");
    let expected: Vec<Vec<u32>> = json(ids);
    assert_eq!(texts.len(), expected.len());
    let mut wrong = 0;
    for (text, expected) in texts.iter().zip(&expected) {
        let found = tokenizer.encode(text, 77);
        if found.ids != *expected {
            let used = |ids: &[u32]| ids[..ids.len().min(24)].to_vec();
            eprintln!("{ids}: {text:?}\n  expected {:?}\n  found    {:?}", used(expected), used(&found.ids));
            wrong += 1;
        }
        assert!(found.ids.iter().all(|id| (*id as usize) < tokenizer.vocab_size()));
    }
    assert_eq!(wrong, 0, "{ids}: {wrong} of {} texts differ", texts.len());
}

#[test]
fn every_layout_equals_transformers() {
    for name in ["old", "new", "old_pad", "new_pad"] {
        let tokenizer = Tokenizer::from_dir(fixture(name)).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(tokenizer.max_length(), Some(77));
        check(&tokenizer, &format!("ids_{name}.json"));
    }
}

/// `vocab.json` and `merges.txt` of the published tokenizer, from its source.
fn published(path: &Path) -> (String, String) {
    let mut text = String::new();
    flate2::read::GzDecoder::new(std::fs::File::open(path).unwrap()).read_to_string(&mut text).unwrap();
    let merges: Vec<&str> = text.lines().skip(1).take(49152 - 256 - 2).collect();
    // The byte symbols: those that print as themselves, then U+0100 and on.
    let own = (33..127).chain(161..173).chain(174..256);
    let letters: Vec<String> = own.chain(256..324).filter_map(char::from_u32).map(String::from).collect();
    let ends = letters.iter().map(|l| format!("{l}</w>"));
    let merged = merges.iter().map(|m| m.replace(' ', ""));
    let special = ["<|startoftext|>", "<|endoftext|>"].map(String::from);
    let symbols = letters.iter().cloned().chain(ends).chain(merged).chain(special);
    let vocab: serde_json::Map<String, Value> = symbols.zip(0..).map(|(s, i)| (s, Value::from(i))).collect();
    assert_eq!(vocab.len(), 49408);
    (Value::Object(vocab).to_string(), format!("#version: 0.2\n{}\n", merges.join("\n")))
}

#[test]
fn the_published_vocabulary_equals_transformers() {
    let source =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/clip/bpe_simple_vocab_16e6.txt.gz");
    if !source.is_file() {
        println!("SKIPPED: {} is not there; the small vocabulary is tested instead", source.display());
        return;
    }
    let (vocab, merges) = published(&source);
    check(&Tokenizer::from_parts(&vocab, &merges, None).unwrap(), "ids_clip.json");
    let start = std::time::Instant::now();
    let padded = Tokenizer::from_parts(&vocab, &merges, Some("!")).unwrap();
    println!("published vocabulary loaded in {:?}", start.elapsed());
    assert_eq!((padded.bos(), padded.eos(), padded.pad(), padded.vocab_size()), (49406, 49407, 0, 49408));
    check(&padded, "ids_clip_pad.json");
}

/// The one inside, for checkpoints without a tokenizer: ids as transformers gives them, texts of every script.
#[test]
fn the_built_in_tokenizer_equals_transformers() {
    check(&Tokenizer::published("<|endoftext|>").unwrap(), "ids_clip.json");
    let padded = Tokenizer::published("!").unwrap();
    assert_eq!((padded.bos(), padded.eos(), padded.pad(), padded.vocab_size()), (49406, 49407, 0, 49408));
    assert_eq!(padded.max_length(), Some(77));
    check(&padded, "ids_clip_pad.json");
}

#[test]
fn the_cut_part_is_told() {
    let tokenizer = Tokenizer::from_dir(fixture("old")).unwrap();
    let short = tokenizer.encode("a red cat", 77);
    assert_eq!((short.truncated, short.ids[short.tokens_used - 1]), (None, tokenizer.eos()));
    assert_eq!(short.ids[short.tokens_used..], vec![tokenizer.pad(); 77 - short.tokens_used]);
    let long = tokenizer.encode(&format!("{}Straße, кошка 猫", "a ".repeat(75)), 77);
    assert_eq!(long.truncated.as_deref(), Some("straße , кошка 猫"));
    assert_eq!((long.tokens_used, long.ids.len(), long.ids[76]), (77, 77, tokenizer.eos()));
    assert_eq!(tokenizer.encode("a red cat", 0).ids, [tokenizer.bos(), tokenizer.eos()]);
}

/// A folder's files, one of them replaced.
fn with(
    folder: &str,
    name: &str,
    content: Option<Vec<u8>>,
) -> Result<Tokenizer, instantstyle_nets::ModelError> {
    Tokenizer::from_files("damaged", |wanted| {
        Ok(if wanted == name { content.clone() } else { std::fs::read(fixture(folder).join(wanted)).ok() })
    })
}

#[test]
fn added_tokens_are_whole() {
    let config = json!({ "model_max_length": 1e30, "extra_special_tokens": ["<style>"] }).to_string();
    let tokenizer = with("old", "tokenizer_config.json", Some(config.into())).unwrap();
    assert_eq!((tokenizer.max_length(), tokenizer.vocab_size()), (None, 661));
    assert_eq!(tokenizer.ids("a <style>"), [tokenizer.ids("a"), vec![660]].concat());
    assert_eq!(tokenizer.decode(&[660]), "<style>");
    let added = json!({ "<cat-toy>": 660 }).to_string();
    let tokenizer = with("old", "added_tokens.json", Some(added.into())).unwrap();
    assert_eq!(tokenizer.ids("<CAT-toy>"), [660]);
}

#[test]
fn faults_are_named() {
    let cases: [(&str, &str, Option<&[u8]>, &str); 12] = [
        ("old", "merges.txt", None, "damaged: no tokenizer here"),
        ("old", "merges.txt", Some(b"a b c\n"), "merges.txt: line 1 is not a pair"),
        ("old", "merges.txt", Some("\u{731} b\n".as_bytes()), "is not in the vocabulary"),
        ("old", "merges.txt", Some(b"\xff\xfe"), "is not UTF-8"),
        ("old", "vocab.json", Some(b"{\"a\": 1"), "vocab.json: is not valid JSON"),
        ("old", "vocab.json", Some(b"[]"), "has no vocabulary"),
        ("old", "vocab.json", Some(b"{\"a\": -1}"), "the id of \"a\" is not a number"),
        ("old", "vocab.json", Some(b"{}"), "is not in the vocabulary"),
        (
            "old_pad",
            "tokenizer_config.json",
            Some(br#"{"added_tokens_decoder": {"x": "y"}}"#),
            "token id \"x\"",
        ),
        ("new", "tokenizer.json", Some(b"<html>"), "tokenizer.json: is not valid JSON"),
        ("new", "tokenizer.json", Some(br#"{"model": {"type": "Unigram"}}"#), "is a Unigram tokenizer"),
        (
            "new",
            "tokenizer.json",
            Some(br#"{"model": {"end_of_word_suffix": "</w>", "vocab": {}}}"#),
            "no list of merges",
        ),
    ];
    for (folder, name, content, expected) in cases {
        let error =
            with(folder, name, content.map(Vec::from)).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(error.contains(expected) && !error.contains('\n'), "{error:?} should contain {expected:?}");
    }
    assert!(Tokenizer::from_dir(fixture("none")).err().unwrap().to_string().contains("no such folder"));
}

#[test]
fn damaged_files_and_texts_are_harmless() {
    let texts: Vec<String> = json("texts.json");
    let names = [
        ("old", "vocab.json"),
        ("old", "merges.txt"),
        ("old_pad", "tokenizer_config.json"),
        ("new", "tokenizer.json"),
    ];
    let mut read = 0;
    for (folder, name) in names {
        let file = std::fs::read(fixture(folder).join(name)).unwrap();
        let mut count = 0;
        mutate::survive(&[file], 500, |bytes| {
            count += 1;
            if let Ok(tokenizer) = with(folder, name, Some(bytes)) {
                read += 1;
                let encoding = tokenizer.encode(&texts[count % texts.len()], 77);
                assert_eq!(encoding.ids.len(), 77);
            }
        });
    }
    assert!(read > 50, "only {read} of the damaged files were readable");

    let tokenizer = Tokenizer::from_dir(fixture("old_pad")).unwrap();
    let files: Vec<Vec<u8>> = texts.iter().map(|t| t.clone().into_bytes()).collect();
    mutate::survive(&files, 100, |bytes| {
        let text = String::from_utf8_lossy(&bytes);
        assert_eq!(tokenizer.encode(&text, 20).ids.len(), 20);
    });
    // A word of a megabyte.
    let long = tokenizer.encode(&"ab".repeat(1 << 19), 77);
    assert!(long.truncated.is_some());
}
