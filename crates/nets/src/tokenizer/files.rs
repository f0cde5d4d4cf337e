//! The files of a tokenizer's folder, old and new.
//!
//! Which file has the last word follows transformers: `tokenizer.json` before `vocab.json` and `merges.txt`; where
//! `tokenizer_config.json` lists the added tokens (`added_tokens_decoder`), the other lists do not count.

use super::bpe::Bpe;
use super::{Added, PIECES, Tokenizer, WORDS, normalize};
use crate::ModelError;
use crate::weights::shown;
use regex::Regex;
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::io::{self, Read};
use std::path::Path;

pub(super) const BOS: &str = "<|startoftext|>";
pub(super) const EOS: &str = "<|endoftext|>";

/// CLIP's largest file has 3 MB.
const MAX_FILE_BYTES: u64 = 64 << 20;
/// Textual inversions come in tens.
const MAX_ADDED: usize = 4096;

type ReadFile<'a> = &'a dyn Fn(&str) -> io::Result<Option<Vec<u8>>>;

pub(super) fn from_dir(dir: &Path) -> Result<Tokenizer, ModelError> {
    if !dir.is_dir() {
        return Err(ModelError::new(
            dir,
            "no such folder; expected a tokenizer's (vocab.json or tokenizer.json)",
        ));
    }
    load(dir, &|name| {
        let path = dir.join(name);
        if !path.is_file() {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        std::fs::File::open(path)?.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)?;
        Ok(Some(bytes))
    })
}

/// The files at hand, with messages that name them.
struct Files<'a> {
    label: &'a Path,
    read: ReadFile<'a>,
}

impl Files<'_> {
    fn error(&self, name: &str, message: impl std::fmt::Display) -> ModelError {
        let message = shown(&message.to_string());
        ModelError::new(
            self.label.join(name),
            message + "; expected a CLIP tokenizer's files, get them again",
        )
    }

    fn text(&self, name: &str) -> Result<Option<String>, ModelError> {
        match (self.read)(name).map_err(|e| self.error(name, format!("cannot be read: {e}")))? {
            None => Ok(None),
            Some(bytes) if bytes.len() as u64 > MAX_FILE_BYTES => {
                Err(self.error(name, "is larger than 64 MiB"))
            }
            Some(bytes) => {
                String::from_utf8(bytes).map(Some).map_err(|_| self.error(name, "is not UTF-8 text"))
            }
        }
    }

    fn json(&self, name: &str) -> Result<Option<Value>, ModelError> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        // Some editors put a byte order mark.
        let value = serde_json::from_str(text.trim_start_matches('\u{feff}'));
        value.map(Some).map_err(|e| self.error(name, format!("is not valid JSON: {e}")))
    }
}

pub(super) fn load(label: &Path, read: ReadFile) -> Result<Tokenizer, ModelError> {
    let files = Files { label, read };
    let main = files.json("tokenizer.json")?;
    let (source, vocab, merges) = match &main {
        Some(json) => {
            let (vocab, merges) = main_file(&files, json)?;
            ("tokenizer.json", vocab, merges)
        }
        None => {
            let (Some(vocab), Some(merges)) = (files.json("vocab.json")?, files.text("merges.txt")?) else {
                let message = "no tokenizer here: expected tokenizer.json, or vocab.json and merges.txt";
                return Err(ModelError::new(label, message));
            };
            ("merges.txt", vocabulary(&files, "vocab.json", &vocab)?, text_merges(&files, &merges)?)
        }
    };
    let config = files.json("tokenizer_config.json")?.unwrap_or_default();
    let mut names = Names::default();
    names.take(&config);
    let mut added = BTreeMap::new();
    if let Some(Value::Object(list)) = config.get("added_tokens_decoder") {
        for (id, token) in list {
            let id =
                id.parse().map_err(|_| files.error("tokenizer_config.json", format!("token id \"{id}\"")))?;
            added.extend(Special::new(token).map(|t| (id, t)));
        }
    } else {
        if let Some(map) = files.json("special_tokens_map.json")? {
            names.take(&map);
        }
        if let Some(Value::Object(list)) = files.json("added_tokens.json")? {
            for (content, id) in list {
                let id = id
                    .as_u64()
                    .ok_or_else(|| files.error("added_tokens.json", format!("id of \"{content}\"")))?;
                let normalized = !names.has(&content);
                added.insert(id, Special { content, normalized, single_word: false, plain: false });
            }
        }
        if let Some(Value::Array(list)) = main.as_ref().and_then(|m| m.get("added_tokens")) {
            for token in list {
                let id = token.get("id").and_then(Value::as_u64);
                let id = id.ok_or_else(|| files.error("tokenizer.json", "an added token without an id"))?;
                added.extend(Special::new(token).map(|t| (id, t)));
            }
        }
    }
    let added = assign(&files, &vocab, added.into_values().collect(), &names)?;

    let find = |special: &Special| {
        let known = added.iter().find(|t| t.content == special.content).map(|t| t.id);
        known.or_else(|| vocab.get(&special.content).copied()).ok_or_else(|| {
            files.error(source, format!("the token \"{}\" is not in the vocabulary", special.content))
        })
    };
    let (bos, eos, pad, unknown) =
        (find(&names.bos)?, find(&names.eos)?, find(&names.pad)?, find(&names.unk)?);
    let pairs = merges.iter().map(|(a, b)| (a.as_str(), b.as_str()));
    let bpe = Bpe::new(vocab, pairs, unknown).map_err(|e| files.error(source, format!("merges: {e}")))?;
    let regex = |pattern| Regex::new(pattern).map_err(|e| files.error(source, e));
    Ok(Tokenizer {
        bpe,
        // Those found after normalising are normalised themselves.
        added: added
            .into_iter()
            .map(|t| if t.normalized { Added { content: normalize(&t.content), ..t } } else { t })
            .filter(|t| !t.content.is_empty())
            .collect(),
        words: regex(WORDS)?,
        pieces: regex(PIECES)?,
        bos,
        eos,
        pad,
        // Absent limits are written as 1e30.
        max_length: config
            .get("model_max_length")
            .and_then(Value::as_u64)
            .and_then(|n| usize::try_from(n).ok())
            .filter(|n| (2..=1 << 20).contains(n)),
    })
}

type Merges = Vec<(String, String)>;

/// `tokenizer.json`: `model.vocab` and `model.merges`.
fn main_file(files: &Files, json: &Value) -> Result<(HashMap<String, u32>, Merges), ModelError> {
    const NAME: &str = "tokenizer.json";
    let model = json.get("model").unwrap_or(&Value::Null);
    let kind = model.get("type").and_then(Value::as_str).unwrap_or("BPE");
    let suffix = model.get("end_of_word_suffix").and_then(Value::as_str).unwrap_or("");
    if kind != "BPE" || suffix != "</w>" {
        return Err(
            files.error(NAME, format!("is a {kind} tokenizer with the word end \"{suffix}\", not CLIP's"))
        );
    }
    let vocab = vocabulary(files, NAME, model.get("vocab").unwrap_or(&Value::Null))?;
    let Some(Value::Array(list)) = model.get("merges") else {
        return Err(files.error(NAME, "has no list of merges"));
    };
    let pair = |merge: &Value| match merge {
        Value::String(s) => s.split_once(' ').map(|(a, b)| (a.to_owned(), b.to_owned())),
        Value::Array(p) => match p.as_slice() {
            [Value::String(a), Value::String(b)] => Some((a.clone(), b.clone())),
            _ => None,
        },
        _ => None,
    };
    let merges: Option<Merges> = list.iter().map(pair).collect();
    Ok((vocab, merges.ok_or_else(|| files.error(NAME, "has a merge that is not a pair"))?))
}

fn vocabulary(files: &Files, name: &str, json: &Value) -> Result<HashMap<String, u32>, ModelError> {
    let Value::Object(map) = json else { return Err(files.error(name, "has no vocabulary")) };
    map.iter()
        .map(|(token, id)| {
            let id = id.as_u64().and_then(|id| u32::try_from(id).ok());
            let id = id.ok_or_else(|| files.error(name, format!("the id of \"{token}\" is not a number")))?;
            Ok((token.clone(), id))
        })
        .collect()
}

/// A pair a line, after a line with the version.
fn text_merges(files: &Files, text: &str) -> Result<Merges, ModelError> {
    let lines = text.lines().enumerate().filter(|(_, l)| !l.starts_with("#version") && !l.is_empty());
    lines
        .map(|(i, line)| match line.split_once(' ') {
            Some((a, b)) if !b.contains(' ') => Ok((a.to_owned(), b.to_owned())),
            _ => Err(files.error("merges.txt", format!("line {} is not a pair", i + 1))),
        })
        .collect()
}

/// A special token as files describe it: a text, or an object with flags.
#[derive(Clone)]
struct Special {
    content: String,
    normalized: bool,
    single_word: bool,
    /// Written as a text, without flags.
    plain: bool,
}

impl Special {
    fn plain(content: &str) -> Self {
        Special { content: content.into(), normalized: false, single_word: false, plain: true }
    }

    fn new(json: &Value) -> Option<Self> {
        match json {
            Value::String(content) => Some(Special::plain(content)),
            Value::Object(fields) => {
                let flag = |name: &str| fields.get(name).and_then(Value::as_bool);
                Some(Special {
                    content: fields.get("content")?.as_str()?.into(),
                    normalized: flag("normalized").unwrap_or(!flag("special").unwrap_or(false)),
                    single_word: flag("single_word").unwrap_or(false),
                    plain: false,
                })
            }
            _ => None,
        }
    }
}

/// The tokens with a role.
struct Names {
    bos: Special,
    eos: Special,
    unk: Special,
    pad: Special,
    extra: Vec<Special>,
}

impl Default for Names {
    fn default() -> Self {
        let [bos, eos, unk, pad] = [BOS, EOS, EOS, EOS].map(Special::plain);
        Names { bos, eos, unk, pad, extra: Vec::new() }
    }
}

impl Names {
    fn take(&mut self, json: &Value) {
        let roles = [
            ("bos_token", &mut self.bos),
            ("eos_token", &mut self.eos),
            ("unk_token", &mut self.unk),
            ("pad_token", &mut self.pad),
        ];
        for (name, role) in roles {
            if let Some(token) = json.get(name).and_then(Special::new) {
                *role = token;
            }
        }
        for name in ["additional_special_tokens", "extra_special_tokens"] {
            if let Some(Value::Array(list)) = json.get(name) {
                self.extra.extend(list.iter().filter_map(Special::new));
            }
        }
    }

    fn all(&self) -> impl Iterator<Item = Special> {
        [&self.bos, &self.eos, &self.unk, &self.pad].into_iter().chain(&self.extra).cloned()
    }

    fn has(&self, content: &str) -> bool {
        self.all().any(|t| t.content == content)
    }
}

/// Gives ids as transformers does: the vocabulary's, or the next free one.
fn assign(
    files: &Files,
    vocab: &HashMap<String, u32>,
    listed: Vec<Special>,
    names: &Names,
) -> Result<Vec<Added>, ModelError> {
    let mut all = listed;
    let listed = all.len();
    for token in names.all() {
        match all.iter().position(|t| t.content == token.content) {
            None => all.push(token),
            // A list describes a token for good; of two roles with the same token the later one does, unless both
            // have flags.
            Some(i) if i >= listed && all[i].plain != token.plain => all[i] = token,
            Some(_) => {}
        }
    }
    if all.len() > MAX_ADDED {
        return Err(files.error("tokenizer_config.json", format!("has more than {MAX_ADDED} added tokens")));
    }
    let mut next = vocab.len() as u32;
    let mut out: Vec<Added> = Vec::new();
    for Special { content, normalized, single_word, .. } in all {
        if content.is_empty() || out.iter().any(|t| t.content == content) {
            continue;
        }
        let id = vocab.get(&content).copied().unwrap_or_else(|| {
            let id = next;
            next += 1;
            id
        });
        out.push(Added { content, id, normalized, single_word });
    }
    Ok(out)
}
