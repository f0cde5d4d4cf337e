//! Writes CLIP's published merges to `$OUT_DIR/clip_merges.txt`, for checkpoints that come without a tokenizer.
//!
//! The crate `instant-clip-tokenizer` carries OpenAI's `bpe_simple_vocab_16e6.txt` (MIT), but shows only what its own
//! tokenizer makes of it. Its ids are the order of the vocabulary, and decoding an id gives the token's bytes; a merged
//! token's two halves are what the merges before it leave of its bytes.

use instant_clip_tokenizer::{Token, Tokenizer};
use std::collections::HashMap;
use std::path::Path;

/// 256 bytes, and each once more as the end of a word.
const LETTERS: u16 = 512;
/// Tokens that were merged from two others.
const MERGED: u16 = 49408 - 2 - LETTERS;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let tokenizer = Tokenizer::new();
    // Symbols by their bytes and whether they end a word; the letters in the order of their ids.
    let mut ids: HashMap<(Vec<u8>, bool), u16> = HashMap::new();
    let letters: Vec<u8> =
        (33..127).chain(161..173).chain(174..=255).chain(0..33).chain(127..161).chain([173]).collect();
    for (id, letter) in (0u16..).zip(&letters) {
        ids.insert((vec![*letter], false), id);
        ids.insert((vec![*letter], true), id + 256);
    }
    let mut merges = String::from("#version: 0.2\n");
    let mut names: Vec<String> = vec![String::new(); LETTERS as usize];
    for ((bytes, end), id) in &ids {
        names[*id as usize] = name(bytes, *end);
    }
    let mut ranks: HashMap<(u16, u16), u16> = HashMap::new();
    for id in LETTERS..LETTERS + MERGED {
        let (bytes, end) = bytes(&tokenizer, id);
        let (first, second) = halves(&bytes, end, &ids, &ranks);
        merges.push_str(&format!("{} {}\n", names[first as usize], names[second as usize]));
        ranks.insert((first, second), id);
        names.push(name(&bytes, end));
        ids.insert((bytes, end), id);
    }
    let out = std::env::var("OUT_DIR").expect("set by cargo");
    std::fs::write(Path::new(&out).join("clip_merges.txt"), merges).expect("the build folder can be written");
}

/// A token's bytes, and whether it ends a word.
///
/// Tokens that are not whole characters would decode to a mark: they are decoded between bytes that complete them.
fn bytes(tokenizer: &Tokenizer, id: u16) -> (Vec<u8>, bool) {
    let token = |id: u16| Token::from_u16(id, tokenizer).expect("inside the vocabulary");
    let letter = |byte: u8| {
        let at = match byte {
            161..=172 => byte as u16 - 161 + 94,
            174..=255 => byte as u16 - 174 + 106,
            127..=160 => byte as u16 - 127 + 221,
            _ => panic!("no byte of a longer character"),
        };
        token(at)
    };
    // Beginnings of characters that lack one to three bytes, and ends.
    let before: [&[u8]; 7] =
        [b"", &[0xc3], &[0xe1], &[0xe1, 0x80], &[0xf1], &[0xf1, 0x80], &[0xf1, 0x80, 0x80]];
    let after: [&[u8]; 7] =
        [b"", &[0x80], &[0xa0], &[0x80, 0x80], &[0xa0, 0x80], &[0x90, 0x80, 0x80], &[0x80, 0x80, 0x80]];
    for (b, a) in before.iter().flat_map(|b| after.iter().map(move |a| (b, a))) {
        let tokens = b.iter().map(|b| letter(*b)).chain([token(id)]).chain(a.iter().map(|b| letter(*b)));
        let text = tokenizer.decode(tokens);
        if !text.contains('\u{fffd}') {
            return split_end(&text.as_bytes()[b.len()..text.len() - a.len()]);
        }
    }
    // The mark itself is a word of the vocabulary.
    split_end(tokenizer.decode([token(id)]).as_bytes())
}

/// The end of a word decodes to a space.
fn split_end(bytes: &[u8]) -> (Vec<u8>, bool) {
    match bytes.strip_suffix(b" ") {
        Some(word) => (word.to_vec(), true),
        None => (bytes.to_vec(), false),
    }
}

/// The two symbols that the merges so far leave of a token.
fn halves(
    bytes: &[u8],
    end: bool,
    ids: &HashMap<(Vec<u8>, bool), u16>,
    ranks: &HashMap<(u16, u16), u16>,
) -> (u16, u16) {
    let last = bytes.len() - 1;
    let mut symbols: Vec<u16> =
        bytes.iter().enumerate().map(|(i, b)| ids[&(vec![*b], end && i == last)]).collect();
    while symbols.len() > 2 {
        let best = (0..symbols.len() - 1)
            .filter_map(|i| ranks.get(&(symbols[i], symbols[i + 1])).map(|rank| (*rank, i)))
            .min()
            .expect("made by merges");
        symbols[best.1] = best.0;
        symbols.remove(best.1 + 1);
    }
    (symbols[0], symbols[1])
}

/// A symbol as vocabularies spell it: GPT-2's `bytes_to_unicode`, and the mark of a word's end.
fn name(bytes: &[u8], end: bool) -> String {
    let letter = |b: &u8| {
        let code = match *b {
            b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => *b as u32,
            b @ 0..=b' ' => 0x100 + b as u32,
            b @ 0x7f..=0xa0 => 0x100 + 33 + (b - 0x7f) as u32,
            0xad => 0x100 + 67,
        };
        char::from_u32(code).expect("a letter")
    };
    let mut name: String = bytes.iter().map(letter).collect();
    if end {
        name.push_str("</w>");
    }
    name
}
