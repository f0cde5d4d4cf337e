//! CLIP's tokenizer, as transformers' `CLIPTokenizer` (the fast one) has it: text is composed (NFC), white space
//! collapsed, lower-cased, cut into words, and each word merged from bytes (Sennrich et al., arXiv 1508.07909).
//!
//! ```no_run
//! # fn main() -> Result<(), instantstyle_nets::ModelError> {
//! let tokenizer = instantstyle_nets::tokenizer::Tokenizer::from_dir("model/tokenizer")?;
//! let encoding = tokenizer.encode("a cat", tokenizer.max_length().unwrap_or(77));
//! assert_eq!(encoding.ids.len(), 77);
//! # Ok(())
//! # }
//! ```

mod bpe;
mod files;
mod published;

pub use published::published_files;

use crate::ModelError;
use bpe::Bpe;
use regex::Regex;
use std::path::Path;
use unicode_normalization::UnicodeNormalization;

/// A text as the text encoder wants it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoding {
    /// Start, text, end, padding: as many as were asked for.
    pub ids: Vec<u32>,
    /// How many of them are not padding: start, text and end.
    pub tokens_used: usize,
    /// What did not fit, for a notice.
    pub truncated: Option<String>,
}

/// A tokenizer of the CLIP kind.
pub struct Tokenizer {
    bpe: Bpe,
    added: Vec<Added>,
    words: Regex,
    pieces: Regex,
    bos: u32,
    eos: u32,
    pad: u32,
    max_length: Option<usize>,
}

/// A token that is recognised as a whole, before the text is cut into words.
#[derive(Clone, Debug)]
struct Added {
    content: String,
    id: u32,
    /// Compared with the text after lower-casing rather than before.
    normalized: bool,
    /// Not inside a word.
    single_word: bool,
}

/// CLIP's words.
const WORDS: &str =
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";
/// The byte-level step cuts once more, as GPT-2 did; only a special token spelled in other letters is affected.
const PIECES: &str = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}+|[^\s\p{L}\p{N}]+";

impl Tokenizer {
    /// Reads a tokenizer's folder: `tokenizer.json`, or `vocab.json` and `merges.txt`; then `tokenizer_config.json`,
    /// `special_tokens_map.json` and `added_tokens.json` where they exist.
    ///
    /// # Errors
    /// If a file is missing or is not a CLIP tokenizer's.
    pub fn from_dir(dir: impl AsRef<Path>) -> Result<Self, ModelError> {
        files::from_dir(dir.as_ref())
    }

    /// The same over files that `read` gives by name (`None`: there is none). `label` stands for the folder in
    /// messages.
    ///
    /// # Errors
    /// As [`Tokenizer::from_dir`].
    pub fn from_files(
        label: impl AsRef<Path>,
        read: impl Fn(&str) -> std::io::Result<Option<Vec<u8>>>,
    ) -> Result<Self, ModelError> {
        files::load(label.as_ref(), &read)
    }

    /// From the two classic files, with CLIP's special tokens as published and `pad` (`None`: `<|endoftext|>`).
    ///
    /// # Errors
    /// As [`Tokenizer::from_dir`].
    pub fn from_parts(vocab_json: &str, merges: &str, pad: Option<&str>) -> Result<Self, ModelError> {
        let [bos, eos] =
            [files::BOS, files::EOS].map(|t| serde_json::json!({ "content": t, "normalized": true }));
        let pad = pad.unwrap_or(files::EOS);
        let config =
            serde_json::json!({ "bos_token": bos, "eos_token": eos, "unk_token": eos, "pad_token": pad })
                .to_string();
        Tokenizer::from_files("tokenizer", |name| {
            Ok(match name {
                "vocab.json" => Some(vocab_json.into()),
                "merges.txt" => Some(merges.into()),
                "tokenizer_config.json" => Some(config.clone().into_bytes()),
                _ => None,
            })
        })
    }

    /// The configured length (77 for CLIP), if one is given.
    pub fn max_length(&self) -> Option<usize> {
        self.max_length
    }

    /// Id of the start token.
    pub fn bos(&self) -> u32 {
        self.bos
    }

    /// Id of the end token.
    pub fn eos(&self) -> u32 {
        self.eos
    }

    /// Id of the padding.
    pub fn pad(&self) -> u32 {
        self.pad
    }

    /// One more than the largest id that [`Tokenizer::encode`] can give: the rows that an embedding must have.
    pub fn vocab_size(&self) -> usize {
        let added = self.added.iter().map(|t| t.id).chain([self.bos, self.eos, self.pad]).max().unwrap_or(0);
        (added.max(self.bpe.largest_id()) as usize).saturating_add(1)
    }

    /// Exactly `length` ids (at least 2): start, text, end, padding. A longer text is cut.
    pub fn encode(&self, text: &str, length: usize) -> Encoding {
        let mut ids = self.ids(text);
        let length = length.max(2);
        let truncated = (ids.len() > length - 2).then(|| {
            let rest = self.decode(&ids[length - 2..]);
            ids.truncate(length - 2);
            rest
        });
        ids.insert(0, self.bos);
        ids.push(self.eos);
        let tokens_used = ids.len();
        ids.resize(length, self.pad);
        Encoding { ids, tokens_used, truncated }
    }

    /// The text's ids alone: no start, end or padding.
    pub fn ids(&self, text: &str) -> Vec<u32> {
        let mut out = Vec::new();
        // As transformers: special tokens in the raw text, then in the normalised rest, then words.
        for part in split(text, &self.added, false) {
            match part {
                Part::Token(id) => out.push(id),
                Part::Text(raw) => {
                    let clean = normalize(raw);
                    for part in split(&clean, &self.added, true) {
                        match part {
                            Part::Token(id) => out.push(id),
                            Part::Text(text) => self.words(text, &mut out),
                        }
                    }
                }
            }
        }
        out
    }

    fn words(&self, text: &str, out: &mut Vec<u32>) {
        for word in self.words.find_iter(text) {
            for piece in self.pieces.find_iter(word.as_str()) {
                self.bpe.encode(piece.as_str(), out);
            }
        }
    }

    /// A text that reads like the ids.
    pub fn decode(&self, ids: &[u32]) -> String {
        let mut out = String::new();
        let mut bytes = Vec::new();
        for id in ids {
            match self.added.iter().find(|t| t.id == *id) {
                Some(token) => {
                    out.push_str(&String::from_utf8_lossy(&std::mem::take(&mut bytes)));
                    out.push_str(&token.content);
                    out.push(' ');
                }
                None => self.bpe.decode(*id, &mut bytes),
            }
        }
        out.push_str(&String::from_utf8_lossy(&bytes));
        out.trim().to_owned()
    }
}

/// NFC, runs of white space to one space, lower case letter by letter.
fn normalize(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut space = false;
    for c in text.nfc() {
        if c.is_whitespace() {
            if !space {
                out.push(' ');
            }
            space = true;
        } else {
            space = false;
            out.extend(c.to_lowercase());
        }
    }
    out
}

enum Part<'a> {
    Token(u32),
    Text(&'a str),
}

/// Cuts out the added tokens; at each place the longest counts.
fn split<'a>(text: &'a str, added: &[Added], normalized: bool) -> Vec<Part<'a>> {
    let mut parts = Vec::new();
    let (mut from, mut at) = (0, 0);
    while let Some(first) = text[at..].chars().next() {
        let rest = &text[at..];
        let token = added
            .iter()
            .filter(|t| t.normalized == normalized && rest.starts_with(t.content.as_str()))
            .max_by_key(|t| t.content.len())
            .filter(|t| !t.single_word || alone(text, at, at + t.content.len()));
        match token {
            Some(token) => {
                if from < at {
                    parts.push(Part::Text(&text[from..at]));
                }
                parts.push(Part::Token(token.id));
                at += token.content.len();
                from = at;
            }
            None => at += first.len_utf8(),
        }
    }
    if from < text.len() {
        parts.push(Part::Text(&text[from..]));
    }
    parts
}

fn alone(text: &str, from: usize, to: usize) -> bool {
    let word = |c: char| c.is_alphanumeric() || c == '_';
    !text[..from].chars().next_back().is_some_and(word) && !text[to..].chars().next().is_some_and(word)
}
