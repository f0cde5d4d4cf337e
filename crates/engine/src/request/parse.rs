//! From hostile JSON to a [`Request`]: every fault names its field and what is allowed.

use super::{Device, Inject, PRESETS, Precision, Reference, Request, Subtract};
use crate::error::Error;
use crate::sampler::SAMPLERS;
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use std::path::{Path, PathBuf};

/// Most references in one request.
const MAX_REFERENCES: usize = 32;
/// Longest text, in bytes.
const MAX_TEXT_BYTES: usize = 100_000;
/// Longest side, in pixels.
const MAX_SIDE: u64 = 16_384;
/// Most pictures of one request.
const MAX_COUNT: u64 = 1000;
/// Most steps.
const MAX_STEPS: u64 = 1000;
/// Most entries of an `inject` map.
const MAX_BLOCKS: usize = 1024;

/// JSON as it was written: keys in order, twice where they were given twice.
enum Json {
    Null,
    Bool(bool),
    Number(serde_json::Number),
    Text(String),
    List(Vec<Json>),
    Object(Vec<(String, Json)>),
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = Json;
            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str("JSON")
            }
            fn visit_unit<E>(self) -> Result<Json, E> {
                Ok(Json::Null)
            }
            fn visit_bool<E>(self, v: bool) -> Result<Json, E> {
                Ok(Json::Bool(v))
            }
            fn visit_u64<E>(self, v: u64) -> Result<Json, E> {
                Ok(Json::Number(v.into()))
            }
            fn visit_i64<E>(self, v: i64) -> Result<Json, E> {
                Ok(Json::Number(v.into()))
            }
            fn visit_f64<E>(self, v: f64) -> Result<Json, E> {
                Ok(serde_json::Number::from_f64(v).map_or(Json::Null, Json::Number))
            }
            fn visit_str<E>(self, v: &str) -> Result<Json, E> {
                Ok(Json::Text(v.to_owned()))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut a: A) -> Result<Json, A::Error> {
                let mut list = Vec::new();
                while let Some(v) = a.next_element()? {
                    list.push(v);
                }
                Ok(Json::List(list))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut a: A) -> Result<Json, A::Error> {
                let mut map = Vec::new();
                while let Some(entry) = a.next_entry()? {
                    map.push(entry);
                }
                Ok(Json::Object(map))
            }
        }
        d.deserialize_any(V)
    }
}

impl Json {
    fn shown(&self) -> String {
        match self {
            Json::Null => "null".into(),
            Json::Bool(b) => b.to_string(),
            Json::Number(n) => n.to_string(),
            Json::Text(t) => format!("\"{}\"", t.chars().take(60).collect::<String>()),
            Json::List(_) => "a list".into(),
            Json::Object(_) => "an object".into(),
        }
    }
}

/// One object with its path.
struct Fields {
    path: String,
    entries: Vec<(String, Json)>,
}

impl Fields {
    fn new(path: &str, json: Json, known: &[&str]) -> Result<Self, Error> {
        let Json::Object(entries) = json else {
            let field = if path.is_empty() { "request" } else { path };
            return Err(Error::request(field, format!("is {}, expected an object {{…}}", json.shown())));
        };
        let fields = Fields { path: path.to_owned(), entries };
        for (i, (key, _)) in fields.entries.iter().enumerate() {
            if !known.contains(&key.as_str()) {
                let near = known.iter().min_by_key(|k| distance(key, k)).filter(|k| distance(key, k) <= 3);
                let hint = near.map_or(String::new(), |n| format!("; did you mean {n}?"));
                let key: String = key.chars().take(60).collect();
                return Err(Error::request(
                    fields.at(&key),
                    format!("is not a field of a request{hint} Known: {}", known.join(", ")),
                ));
            }
            if fields.entries[..i].iter().any(|(k, _)| k == key) {
                return Err(Error::request(fields.at(key), "is given twice"));
            }
        }
        Ok(fields)
    }

    fn at(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// Takes a field out; null counts as not given.
    fn take(&mut self, key: &str) -> Option<Json> {
        let i = self.entries.iter().position(|(k, _)| k == key)?;
        Some(self.entries.swap_remove(i).1).filter(|v| !matches!(v, Json::Null))
    }

    fn wrong(&self, key: &str, found: &Json, expected: &str) -> Error {
        Error::request(self.at(key), format!("is {}, expected {expected}", found.shown()))
    }

    fn text(&mut self, key: &str) -> Result<Option<String>, Error> {
        match self.take(key) {
            None => Ok(None),
            Some(Json::Text(t)) if t.len() <= MAX_TEXT_BYTES && !t.contains('\0') => Ok(Some(t)),
            Some(Json::Text(_)) => Err(Error::request(
                self.at(key),
                format!("is longer than {MAX_TEXT_BYTES} bytes, or holds a NUL"),
            )),
            Some(v) => Err(self.wrong(key, &v, "a text in quotes")),
        }
    }

    fn path(&mut self, key: &str, base: &Path) -> Result<Option<PathBuf>, Error> {
        match self.text(key)? {
            None => Ok(None),
            Some(t) if t.is_empty() => Err(Error::request(self.at(key), "is empty, expected a path")),
            Some(t) => Ok(Some(resolve(&t, base))),
        }
    }

    fn whole(&mut self, key: &str, least: u64, most: u64) -> Result<Option<u64>, Error> {
        match self.take(key) {
            None => Ok(None),
            Some(Json::Number(n)) if n.as_u64().is_some_and(|n| (least..=most).contains(&n)) => {
                Ok(n.as_u64())
            }
            Some(v) => Err(self.wrong(key, &v, &format!("a whole number from {least} to {most}"))),
        }
    }

    fn number(&mut self, key: &str, least: f64, most: f64) -> Result<Option<f64>, Error> {
        match self.take(key) {
            None => Ok(None),
            Some(Json::Number(n)) if n.as_f64().is_some_and(|n| (least..=most).contains(&n)) => {
                Ok(n.as_f64())
            }
            Some(v) => Err(self.wrong(key, &v, &format!("a number from {least} to {most}"))),
        }
    }
}

/// Paths inside the embedded model keep their name.
fn resolve(path: &str, base: &Path) -> PathBuf {
    if path == crate::model::EMBEDDED || path.starts_with("embedded/") && !base.join(path).exists() {
        return PathBuf::from(path);
    }
    base.join(path)
}

/// Levenshtein distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().take(64).enumerate() {
        let mut corner = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let change = corner + usize::from(x != *y);
            corner = row[j + 1];
            row[j + 1] = change.min(corner + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

const FIELDS: &[&str] = &[
    "model",
    "precision",
    "device",
    "prompt",
    "negative_prompt",
    "width",
    "height",
    "count",
    "seed",
    "steps",
    "guidance",
    "guidance_rescale",
    "clip_skip",
    "sampler",
    "references",
];
const REFERENCE_FIELDS: &[&str] = &[
    "image",
    "adapter",
    "image_encoder",
    "text_encoder",
    "inject",
    "weight",
    "subtract",
    "mask",
    "start",
    "end",
];

pub(super) fn request(text: &str, base: &Path) -> Result<Request, Error> {
    let json: Json = serde_json::from_str(text).map_err(|e| {
        let lower = text.to_ascii_lowercase();
        let hint = if lower.contains("nan") || lower.contains("infinity") {
            " (NaN and Infinity are not JSON)"
        } else {
            ""
        };
        Error::request("request", format!("is not valid JSON: {e}{hint}"))
    })?;
    let mut f = Fields::new("", json, FIELDS)?;
    let model = match f.text("model")? {
        Some(m) if m.is_empty() => {
            return Err(Error::request("model", "is empty, expected a folder or \"embedded\""));
        }
        Some(m) => Some(resolve(&m, base).to_string_lossy().into_owned()),
        None => None,
    };
    let precision = match f.text("precision")?.as_deref() {
        None => None,
        Some("auto") => Some(Precision::Auto),
        Some("f32") => Some(Precision::F32),
        Some("bf16") => Some(Precision::Bf16),
        Some("f16") => Some(Precision::F16),
        Some(other) => {
            return Err(Error::request(
                "precision",
                format!("is \"{other}\", expected auto, f32, bf16 or f16"),
            ));
        }
    };
    let device = f.text("device")?.map(|d| device(&d)).transpose()?;
    let sampler = f.text("sampler")?;
    if let Some(name) = &sampler {
        if !SAMPLERS.iter().any(|s| s.name == name) {
            let names: Vec<&str> = SAMPLERS.iter().map(|s| s.name).collect();
            return Err(Error::request(
                "sampler",
                format!("is \"{name}\", expected one of {}", names.join(", ")),
            ));
        }
    }
    let seed = f.whole("seed", 0, i64::MAX as u64)?;
    let count = f.whole("count", 1, MAX_COUNT)?;
    let references = match f.take("references") {
        None => Vec::new(),
        Some(Json::List(list)) if list.len() <= MAX_REFERENCES => list
            .into_iter()
            .enumerate()
            .map(|(i, r)| reference(&format!("references[{i}]"), r, base))
            .collect::<Result<_, _>>()?,
        Some(v) => {
            return Err(f.wrong("references", &v, &format!("a list of at most {MAX_REFERENCES} references")));
        }
    };
    Ok(Request {
        model,
        precision,
        device,
        prompt: f.text("prompt")?.unwrap_or_default(),
        negative_prompt: f.text("negative_prompt")?,
        width: f.whole("width", 1, MAX_SIDE)?.map(|n| n as usize),
        height: f.whole("height", 1, MAX_SIDE)?.map(|n| n as usize),
        count: count.map(|n| n as usize),
        seed,
        steps: f.whole("steps", 1, MAX_STEPS)?.map(|n| n as usize),
        guidance: f.number("guidance", 0.0, 100.0)?,
        guidance_rescale: f.number("guidance_rescale", 0.0, 1.0)?,
        clip_skip: f.whole("clip_skip", 0, 64)?.map(|n| n as usize),
        sampler,
        references,
    })
}

fn device(text: &str) -> Result<Device, Error> {
    match text {
        "auto" => Ok(Device::Auto),
        "cpu" => Ok(Device::Cpu),
        "metal" => Ok(Device::Metal),
        other => {
            other.strip_prefix("cuda:").and_then(|n| n.parse().ok()).map(Device::Cuda).ok_or_else(|| {
                Error::request("device", format!("is \"{other}\", expected auto, cpu, cuda:0 or metal"))
            })
        }
    }
}

fn reference(path: &str, json: Json, base: &Path) -> Result<Reference, Error> {
    let mut f = Fields::new(path, json, REFERENCE_FIELDS)?;
    let image = f
        .path("image", base)?
        .ok_or_else(|| Error::request(f.at("image"), "is needed: the style picture"))?;
    let mut r = Reference::new(image);
    r.adapter = f.path("adapter", base)?;
    r.image_encoder = f.path("image_encoder", base)?;
    r.text_encoder = f.path("text_encoder", base)?;
    r.mask = f.path("mask", base)?;
    r.weight = f.number("weight", -10.0, 10.0)?.unwrap_or(r.weight);
    r.start = f.number("start", 0.0, 1.0)?.unwrap_or(r.start);
    r.end = f.number("end", 0.0, 1.0)?.unwrap_or(r.end);
    if r.start > r.end {
        return Err(Error::request(f.at("start"), format!("is {}, after end, which is {}", r.start, r.end)));
    }
    match f.take("inject") {
        None => {}
        Some(Json::Text(t)) => match PRESETS.iter().find(|(name, ..)| *name == t) {
            Some((_, preset, _)) => r.inject = Inject::Preset(*preset),
            None => return Err(f.wrong("inject", &Json::Text(t), &inject_choices())),
        },
        Some(Json::Object(map)) => r.inject = Inject::Blocks(blocks(&f.at("inject"), map)?),
        Some(v) => return Err(f.wrong("inject", &v, &inject_choices())),
    }
    if let Some(json) = f.take("subtract") {
        let mut s = Fields::new(&f.at("subtract"), json, &["text", "scale"])?;
        let text = s.text("text")?;
        let text = text.ok_or_else(|| {
            Error::request(s.at("text"), "is needed: what the reference shows, e.g. \"a rabbit\"")
        })?;
        r.subtract = Some(Subtract { text, scale: s.number("scale", -10.0, 10.0)? });
    }
    Ok(r)
}

fn inject_choices() -> String {
    let names: Vec<String> = PRESETS.iter().map(|p| format!("\"{}\"", p.0)).collect();
    format!(
        "{} or an object of parts and weights, e.g. {{\"up_blocks.0.attentions.1\": 1.0}}",
        names.join(", ")
    )
}

fn blocks(path: &str, map: Vec<(String, Json)>) -> Result<Vec<(String, f64)>, Error> {
    if map.is_empty() || map.len() > MAX_BLOCKS {
        return Err(Error::request(path, format!("has {} parts, expected 1 to {MAX_BLOCKS}", map.len())));
    }
    let mut out: Vec<(String, f64)> = Vec::new();
    for (key, value) in map {
        let sound = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        if key.is_empty()
            || key.len() > 200
            || !key.split('.').all(|part| !part.is_empty() && part.chars().all(sound))
        {
            let key: String = key.chars().take(60).collect();
            return Err(Error::request(
                path,
                format!("\"{key}\" is not a path of the UNet, e.g. up_blocks.0.attentions.1"),
            ));
        }
        let weight = match &value {
            Json::Number(n) => n.as_f64().filter(|w| (-10.0..=10.0).contains(w)),
            _ => None,
        };
        let weight = weight.ok_or_else(|| {
            Error::request(
                format!("{path}.{key}"),
                format!("is {}, expected a number from -10 to 10", value.shown()),
            )
        })?;
        if out.iter().any(|(k, _)| *k == key) {
            return Err(Error::request(format!("{path}.{key}"), "is given twice"));
        }
        out.push((key, weight));
    }
    Ok(out)
}
