//! From hostile JSON to a [`Request`]: every fault names its field and what is allowed.

use super::fields::{
    CONTROLS, Field, HIRES, INIT, Kind, LORAS, List, MAX_BLOCKS, MAX_TEXT_BYTES, MAX_WEIGHT, REFERENCES,
    REQUEST, SUBTRACT,
};
use super::json::{Json, short};
use super::{
    Control, Device, HIDIFFUSIONS, Hires, Init, Inject, LORA_BLOCKS, LoraUse, PRECISIONS, PRESETS, Reference,
    Request, Subtract, UPSCALES, VAE_TILINGS,
};
use crate::control::{CANNY, map_of};
use crate::error::Error;
use crate::sampler;
use std::path::{Path, PathBuf};

/// One object whose simple fields are checked against a table.
struct Fields {
    path: String,
    entries: Vec<(String, Json)>,
}

impl Fields {
    fn new(path: &str, json: Json, what: &str, table: &'static [Field]) -> Result<Self, Error> {
        let Json::Object(entries) = json else {
            let field = if path.is_empty() { "request" } else { path };
            return Err(Error::request(field, format!("is {}, expected an object {{…}}", json.shown())));
        };
        let fields = Fields { path: path.to_owned(), entries };
        for (i, (key, value)) in fields.entries.iter().enumerate() {
            let Some(field) = table.iter().find(|f| f.name == key) else {
                let known: Vec<&str> = table.iter().map(|f| f.name).collect();
                let hint = nearest(key, &known).map_or(String::new(), |n| format!("did you mean {n}? "));
                return Err(Error::request(
                    fields.at(&short(key)),
                    format!("is not a field of {what}; {hint}its fields are {}", known.join(", ")),
                ));
            };
            if fields.entries[..i].iter().any(|(k, _)| k == key) {
                return Err(Error::request(fields.at(key), "is given twice"));
            }
            if let Some(message) = refused(field, value) {
                return Err(Error::request(fields.at(key), message));
            }
        }
        for field in table.iter().filter(|f| f.default.is_empty()) {
            if !fields.entries.iter().any(|(k, v)| k == field.name && !matches!(v, Json::Null)) {
                let message = format!("is missing: {}, e.g. \"{}\"", field.about, field.example);
                return Err(Error::request(fields.at(field.name), message));
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

    fn text(&mut self, key: &str) -> Option<String> {
        match self.take(key) {
            Some(Json::Text(t)) => Some(t),
            _ => None,
        }
    }

    fn path(&mut self, key: &str, base: &Path) -> Result<Option<PathBuf>, Error> {
        let Some(text) = self.text(key) else { return Ok(None) };
        let path = resolve(&text, base);
        match path.to_str() {
            Some(_) => Ok(Some(path)),
            None => Err(Error::request(
                self.at(key),
                format!(
                    "lies in {}, whose name is not Unicode: a stored request cannot name it; rename the folder",
                    base.display()
                ),
            )),
        }
    }

    /// The entries of a list.
    fn list<T>(
        &mut self,
        of: &'static List,
        one: impl Fn(Fields) -> Result<T, Error>,
    ) -> Result<Vec<T>, Error> {
        let Some(Json::List(list)) = self.take(of.name) else { return Ok(Vec::new()) };
        let entry = |(i, json)| one(Fields::new(&format!("{}[{i}]", of.name), json, of.one, of.fields)?);
        list.into_iter().enumerate().map(entry).collect()
    }

    fn whole(&mut self, key: &str) -> Option<u64> {
        match self.take(key) {
            Some(Json::Number(n)) => n.as_u64(),
            _ => None,
        }
    }

    fn number(&mut self, key: &str) -> Option<f64> {
        match self.take(key) {
            Some(Json::Number(n)) => n.as_f64(),
            _ => None,
        }
    }
}

/// Why a value is refused, if it is. Objects and lists are looked into later.
fn refused(field: &Field, value: &Json) -> Option<String> {
    let accepted = match (field.kind, value) {
        (_, Json::Null) => true,
        (Kind::Text | Kind::Path | Kind::Model, Json::Text(t)) if t.len() > MAX_TEXT_BYTES => {
            return Some(format!("has {} bytes, expected at most {MAX_TEXT_BYTES}", t.len()));
        }
        (Kind::Text | Kind::Path | Kind::Model, Json::Text(t)) if t.contains('\0') => {
            return Some("holds a NUL character, which no text or path may".to_owned());
        }
        (Kind::Text, Json::Text(_)) => true,
        (Kind::Path | Kind::Model, Json::Text(t)) => !t.trim().is_empty(),
        (Kind::Whole(least, most), Json::Number(n)) => {
            n.as_u64().is_some_and(|n| (least..=most).contains(&n))
        }
        (Kind::Number(least, most), Json::Number(n)) => {
            n.as_f64().is_some_and(|n| (least..=most).contains(&n))
        }
        (Kind::Choice(choices), Json::Text(t)) => {
            let names: Vec<&str> = choices().iter().map(|c| c.0).collect();
            match nearest(t, &names) {
                _ if names.contains(&t.as_str()) => true,
                None => false,
                Some(near) => {
                    return Some(format!(
                        "is {}; did you mean {near}? Expected {}",
                        value.shown(),
                        field.allowed()
                    ));
                }
            }
        }
        (Kind::Sampler, Json::Text(t)) => match sampler::find(t) {
            Ok(_) => true,
            Err(e) => return Some(format!("is {}: {e}", value.shown())),
        },
        (Kind::Device, Json::Text(t)) => device(t).is_some(),
        (Kind::Inject, Json::Text(t)) => preset(t).is_some(),
        (Kind::Inject | Kind::Subtract | Kind::Init | Kind::Hires, Json::Object(_)) => true,
        (Kind::List(of), Json::List(list)) if list.len() > of.most => {
            return Some(format!("has {} entries, expected at most {}", list.len(), of.most));
        }
        (Kind::List(_), Json::List(_)) => true,
        _ => false,
    };
    (!accepted).then(|| format!("is {}, expected {}", value.shown(), field.allowed()))
}

pub(super) fn request(text: &str, base: &Path) -> Result<Request, Error> {
    let mut f = Fields::new("", Json::parse(text)?, "a request", REQUEST)?;
    let controls = f.list(&CONTROLS, |f| control(f, base))?;
    let loras = f.list(&LORAS, |f| lora(f, base))?;
    let references = f.list(&REFERENCES, |f| reference(f, base))?;
    let init = f.take("init").map(|json| init(json, base)).transpose()?;
    let hires = f.take("hires").map(hires).transpose()?;
    let small = |n: Option<u64>| n.and_then(|n| usize::try_from(n).ok());
    let request = Request {
        model: f.path("model", base)?.map(|p| p.to_string_lossy().into_owned()),
        unet: f.path("unet", base)?,
        vae: f.path("vae", base)?,
        precision: f.text("precision").and_then(|t| PRECISIONS.iter().find(|p| p.0 == t)).map(|p| p.1),
        device: f.text("device").and_then(|t| device(&t)),
        prompt: f.text("prompt").unwrap_or_default(),
        negative_prompt: f.text("negative_prompt"),
        width: small(f.whole("width")),
        height: small(f.whole("height")),
        count: small(f.whole("count")),
        seed: f.whole("seed"),
        steps: small(f.whole("steps")),
        guidance: f.number("guidance"),
        guidance_rescale: f.number("guidance_rescale"),
        guidance_start: f.number("guidance_start"),
        guidance_end: f.number("guidance_end"),
        deep_cache: small(f.whole("deep_cache")),
        cross_freeze: f.number("cross_freeze"),
        token_merging: f.number("token_merging"),
        clip_skip: small(f.whole("clip_skip")),
        sampler: f.text("sampler"),
        schedule: f.text("schedule"),
        fast: f.text("fast"),
        vae_tiling: f.text("vae_tiling").and_then(|t| VAE_TILINGS.iter().find(|v| v.0 == t)).map(|v| v.1),
        init,
        controls,
        hires,
        hidiffusion: f.text("hidiffusion").and_then(|t| HIDIFFUSIONS.iter().find(|h| h.0 == t)).map(|h| h.1),
        loras,
        references,
    };
    let (start, end) = (request.guidance_start.unwrap_or(0.0), request.guidance_end.unwrap_or(1.0));
    if start > end {
        return Err(Error::request(
            "guidance_start",
            format!("is {start}, after guidance_end, which is {end}"),
        ));
    }
    check_cross_freeze(&request)?;
    let (seed, count) = (request.seed.unwrap_or(0), request.count.unwrap_or(1));
    if seed.checked_add(count as u64 - 1).is_none() {
        return Err(Error::request(
            "seed",
            format!("is {seed}, but picture {count} would need a seed above {}; use a smaller one", u64::MAX),
        ));
    }
    Ok(request)
}

/// What frozen cross-attention could no longer do.
fn check_cross_freeze(request: &Request) -> Result<(), Error> {
    let Some(freeze) = request.cross_freeze.filter(|f| *f < 1.0) else { return Ok(()) };
    if let Some(end) = request.guidance_end.filter(|end| *end > freeze) {
        let message = format!(
            "is {end}, after cross_freeze, which is {freeze} and ends guidance; leave one of them out"
        );
        return Err(Error::request("guidance_end", message));
    }
    let starts =
        request.references.iter().enumerate().map(|(i, r)| (format!("references[{i}].start"), r.start));
    let starts = starts.chain(request.guidance_start.map(|start| ("guidance_start".to_owned(), start)));
    for (field, start) in starts.filter(|(_, start)| *start > 0.0) {
        if start >= freeze {
            let message =
                format!("is {start}, not before cross_freeze, which is {freeze}: it would never act");
            return Err(Error::request(field, message));
        }
    }
    Ok(())
}

fn init(json: Json, base: &Path) -> Result<Init, Error> {
    let mut f = Fields::new("init", json, "init", INIT)?;
    let init = Init {
        image: f.path("image", base)?.unwrap_or_default(),
        strength: f.number("strength"),
        mask: f.path("mask", base)?,
        blend_px: f.number("blend_px"),
    };
    if init.blend_px.is_some() && init.mask.is_none() {
        return Err(Error::request(
            "init.blend_px",
            "needs init.mask: without one the whole picture is repainted",
        ));
    }
    Ok(init)
}

fn control(mut f: Fields, base: &Path) -> Result<Control, Error> {
    let model = f.path("model", base)?.unwrap_or_default();
    let mut control = Control::new(model, f.path("image", base)?.unwrap_or_default());
    control.preprocess = f.text("preprocess").unwrap_or(control.preprocess);
    control.preprocess_model = f.path("preprocess_model", base)?;
    control.preprocess_detector = f.path("preprocess_detector", base)?;
    control.scale = f.number("scale").unwrap_or(control.scale);
    control.start = f.number("start").unwrap_or(control.start);
    control.end = f.number("end").unwrap_or(control.end);
    control.canny_low = f.number("canny_low");
    control.canny_high = f.number("canny_high");
    control.tile_downscale = f.number("tile_downscale");
    in_order(&f, control.start, control.end)?;
    let expects = map_of(&control.preprocess).and_then(|m| m.make.expects());
    match (expects, &control.preprocess_model) {
        (Some(expected), None) => {
            return Err(Error::request(
                f.at("preprocess_model"),
                format!("missing: {} needs a network, an ONNX file of {expected}", control.preprocess),
            ));
        }
        (None, Some(_)) => {
            let message =
                format!("is for maps that need a network, but preprocess is {}", control.preprocess);
            return Err(Error::request(f.at("preprocess_model"), message));
        }
        _ => {}
    }
    let settings = [
        ("canny_low", control.canny_low.is_some(), "canny"),
        ("canny_high", control.canny_high.is_some(), "canny"),
        ("tile_downscale", control.tile_downscale.is_some(), "tile"),
        ("preprocess_detector", control.preprocess_detector.is_some(), "pose"),
    ];
    for (name, given, map) in settings {
        if given && control.preprocess != map {
            let message = format!("needs preprocess {map}, but that is {}", control.preprocess);
            return Err(Error::request(f.at(name), message));
        }
    }
    let (low, high) = (control.canny_low.unwrap_or(CANNY.0), control.canny_high.unwrap_or(CANNY.1));
    if low > high {
        return Err(Error::request(
            f.at("canny_low"),
            format!("is {low}, above canny_high, which is {high}"),
        ));
    }
    Ok(control)
}

/// A window that ends after it starts.
fn in_order(f: &Fields, start: f64, end: f64) -> Result<(), Error> {
    if start > end {
        return Err(Error::request(f.at("start"), format!("is {start}, after end, which is {end}")));
    }
    Ok(())
}

fn hires(json: Json) -> Result<Hires, Error> {
    let mut f = Fields::new("hires", json, "hires", HIRES)?;
    let small = |n: Option<u64>| n.and_then(|n| usize::try_from(n).ok());
    let upscale = f.text("upscale").and_then(|t| UPSCALES.iter().find(|u| u.0 == t));
    let hires = Hires {
        scale: f.number("scale"),
        width: small(f.whole("width")),
        height: small(f.whole("height")),
        strength: f.number("strength"),
        upscale: upscale.map(|u| u.1).unwrap_or_default(),
        steps: small(f.whole("steps")),
    };
    if hires.scale.is_some() && (hires.width.is_some() || hires.height.is_some()) {
        return Err(Error::request(
            "hires.scale",
            "is given beside width or height; give the one or the other",
        ));
    }
    Ok(hires)
}

fn lora(mut f: Fields, base: &Path) -> Result<LoraUse, Error> {
    let blocks = f.text("blocks").and_then(|t| LORA_BLOCKS.iter().find(|b| b.0 == t));
    Ok(LoraUse {
        file: f.path("file", base)?.unwrap_or_default(),
        weight: f.number("weight").unwrap_or(1.0),
        blocks: blocks.map(|b| b.1).unwrap_or_default(),
    })
}

fn reference(mut f: Fields, base: &Path) -> Result<Reference, Error> {
    let mut r = Reference::new(f.path("image", base)?.unwrap_or_default());
    r.adapter = f.path("adapter", base)?;
    r.image_encoder = f.path("image_encoder", base)?;
    r.text_encoder = f.path("text_encoder", base)?;
    r.mask = f.path("mask", base)?;
    r.weight = f.number("weight").unwrap_or(r.weight);
    r.start = f.number("start").unwrap_or(r.start);
    r.end = f.number("end").unwrap_or(r.end);
    in_order(&f, r.start, r.end)?;
    match f.take("inject") {
        Some(Json::Text(t)) => r.inject = preset(&t).unwrap_or(r.inject),
        Some(Json::Object(map)) => r.inject = Inject::Blocks(blocks(&f.at("inject"), map)?),
        _ => {}
    }
    if let Some(json) = f.take("subtract") {
        let mut s = Fields::new(&f.at("subtract"), json, "subtract", SUBTRACT)?;
        r.subtract = Some(Subtract { text: s.text("text").unwrap_or_default(), scale: s.number("scale") });
    }
    Ok(r)
}

fn blocks(path: &str, map: Vec<(String, Json)>) -> Result<Vec<(String, f64)>, Error> {
    if map.is_empty() || map.len() > MAX_BLOCKS {
        return Err(Error::request(path, format!("has {} parts, expected 1 to {MAX_BLOCKS}", map.len())));
    }
    let mut out: Vec<(String, f64)> = Vec::new();
    for (key, value) in map {
        let sound = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        if key.len() > 200 || !key.split('.').all(|part| !part.is_empty() && part.chars().all(sound)) {
            return Err(Error::request(
                path,
                format!(
                    "\"{}\" is not a part of a UNet, expected e.g. up_blocks.0.attentions.1 or mid_block",
                    short(&key)
                ),
            ));
        }
        let weight = match &value {
            Json::Number(n) => n.as_f64().filter(|w| w.abs() <= MAX_WEIGHT),
            _ => None,
        };
        let weight = weight.ok_or_else(|| {
            let expected = format!("expected a number from -{MAX_WEIGHT} to {MAX_WEIGHT}");
            Error::request(format!("{path}.{key}"), format!("is {}, {expected}", value.shown()))
        })?;
        if out.iter().any(|(k, _)| *k == key) {
            return Err(Error::request(format!("{path}.{key}"), "is given twice"));
        }
        out.push((key, weight));
    }
    Ok(out)
}

/// The short form of `inject`: a preset, or `path=weight,path=weight`.
pub(super) fn inject(field: &str, text: &str) -> Result<Inject, Error> {
    if let Some(inject) = preset(text) {
        return Ok(inject);
    }
    let wrong = || {
        let names: Vec<&str> = PRESETS.iter().map(|p| p.0).collect();
        let names = names.join(", ");
        Error::request(
            field,
            format!("is \"{}\", expected {names}, or parts like mid_block=0.2,up_blocks.1=1", short(text)),
        )
    };
    let part = |part: &str| {
        let (key, weight) = part.split_once('=').ok_or_else(wrong)?;
        let number = weight.trim().parse().ok().and_then(serde_json::Number::from_f64);
        Ok((key.trim().to_owned(), number.map_or_else(|| Json::Text(weight.to_owned()), Json::Number)))
    };
    let map = text.split(',').map(part).collect::<Result<Vec<_>, Error>>()?;
    blocks(field, map).map(Inject::Blocks)
}

fn preset(text: &str) -> Option<Inject> {
    PRESETS.iter().find(|(name, ..)| *name == text).map(|(_, preset, _)| Inject::Preset(*preset))
}

fn device(text: &str) -> Option<Device> {
    match text {
        "auto" => Some(Device::Auto),
        "cpu" => Some(Device::Cpu),
        "metal" => Some(Device::Metal),
        other => {
            let number = other.strip_prefix("cuda:")?;
            let digits = (1..=4).contains(&number.len()) && number.bytes().all(|b| b.is_ascii_digit());
            digits.then(|| number.parse().ok().map(Device::Cuda)).flatten()
        }
    }
}

/// Absolute, so that a stored request holds wherever its picture is moved. Paths inside the embedded model keep their
/// name, and so do names of the catalogue, unless there is such a file.
fn resolve(path: &str, base: &Path) -> PathBuf {
    let joined = base.join(path);
    let inside = path.starts_with("embedded/") || instantstyle_hub::catalogue::find(path).is_some();
    if path == crate::model::EMBEDDED || inside && !joined.exists() {
        return PathBuf::from(path);
    }
    std::path::absolute(&joined).unwrap_or(joined)
}

/// The name that was probably meant.
pub fn nearest<'a>(text: &str, known: &[&'a str]) -> Option<&'a str> {
    let letters = text.chars().count();
    known
        .iter()
        .map(|k| (distance(text, k), *k))
        .min()
        .filter(|(d, _)| *d <= 3 && *d * 2 <= letters)
        .map(|(_, k)| k)
}

/// Levenshtein distance.
pub(crate) fn distance(a: &str, b: &str) -> usize {
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
