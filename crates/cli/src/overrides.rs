//! Flags over a job: the JSON of the request that is asked for.

use crate::flags::{self, Flag};
use clap::ArgMatches;
use instantstyle_engine::Error;
use instantstyle_engine::request::fields::{Kind, LISTS, List};
use instantstyle_engine::request::parse_inject;
use serde_json::{Map, Value, json};

/// Writes the given flags over a request's JSON.
///
/// # Errors
/// If flags of references or LoRAs cannot be told to which one they belong.
pub fn apply(matches: &ArgMatches, request: &mut Map<String, Value>) -> Result<(), Error> {
    for flag in flags::of_request() {
        if let Some(text) = matches.get_one::<String>(&flag.name) {
            set(request, &flag, value(&flag, text)?);
        }
    }
    LISTS.into_iter().try_for_each(|list| apply_list(list, matches, request))
}

fn apply_list(
    list: &'static List,
    matches: &ArgMatches,
    request: &mut Map<String, Value>,
) -> Result<(), Error> {
    let flags = flags::of_entry(list);
    let given = given(list, matches, &flags);
    if given.is_empty() {
        return Ok(());
    }
    let entries = if given.iter().any(|g| g.flag.is_none()) {
        opened(list, &given)?
    } else {
        match request.remove(list.name) {
            Some(Value::Array(entries)) if !entries.is_empty() => onto(list, entries, &flags, &given)?,
            _ => {
                let name = given[0].flag.map_or("", |f| &f.name);
                return Err(Error::request(
                    format!("--{name}"),
                    format!("belongs to {}; give one with --{} FILE", list.one, list.opening),
                ));
            }
        }
    };
    request.insert(list.name.to_owned(), Value::Array(entries));
    Ok(())
}

/// One flag of an entry as it was given; `None` is the one that opens it.
struct Given<'a> {
    at: usize,
    flag: Option<&'a Flag>,
    text: &'a str,
}

/// All flags of a list in the order in which they were written.
fn given<'a>(list: &'static List, matches: &'a ArgMatches, flags: &'a [Flag]) -> Vec<Given<'a>> {
    let mut given = Vec::new();
    for flag in flags.iter().map(Some).chain([None]) {
        let name = flag.map_or(list.opening, |f| &f.name);
        if let (Some(values), Some(at)) = (matches.get_many::<String>(name), matches.indices_of(name)) {
            given.extend(at.zip(values).map(|(at, text)| Given { at, flag, text }));
        }
    }
    given.sort_by_key(|g| g.at);
    given
}

/// The entries that the command line opens. What comes before the first holds for all.
fn opened(list: &'static List, given: &[Given]) -> Result<Vec<Value>, Error> {
    let first = given.iter().position(|g| g.flag.is_none()).unwrap_or(given.len());
    let (common, rest) = given.split_at(first);
    let mut base = Map::new();
    fill(list, &mut base, common)?;
    rest.chunk_by(|_, next| next.flag.is_some())
        .map(|own| {
            let mut entry = base.clone();
            entry.insert(list.fields[0].name.to_owned(), Value::from(own[0].text));
            fill(list, &mut entry, &own[1..])?;
            Ok(Value::Object(entry))
        })
        .collect()
}

fn fill(list: &List, entry: &mut Map<String, Value>, given: &[Given]) -> Result<(), Error> {
    for (i, g) in given.iter().enumerate() {
        let Some(flag) = g.flag else { continue };
        if given[..i].iter().any(|h| h.flag.is_some_and(|f| f.name == flag.name)) {
            return Err(Error::request(
                format!("--{}", flag.name),
                format!("is given twice for {}", list.one),
            ));
        }
        set(entry, flag, value(flag, g.text)?);
    }
    Ok(())
}

/// The job's entries with flags over them: one value holds for all, else there must be one for each.
fn onto(list: &List, mut entries: Vec<Value>, flags: &[Flag], given: &[Given]) -> Result<Vec<Value>, Error> {
    let n = entries.len();
    for flag in flags {
        let texts: Vec<&str> =
            given.iter().filter(|g| g.flag.is_some_and(|f| f.name == flag.name)).map(|g| g.text).collect();
        if texts.len() > 1 && texts.len() != n {
            let message = format!(
                "is given {} times, but the job has {n} {}; give it once, or once for each",
                texts.len(),
                list.name
            );
            return Err(Error::request(format!("--{}", flag.name), message));
        }
        for (entry, text) in entries.iter_mut().zip(texts.iter().cycle()) {
            // What is no object is refused by the request's parser.
            if let Value::Object(entry) = entry {
                set(entry, flag, value(flag, text)?);
            }
        }
    }
    Ok(entries)
}

fn set(object: &mut Map<String, Value>, flag: &Flag, value: Value) {
    let Some(outer) = flag.outer else {
        object.insert(flag.field.name.to_owned(), value);
        return;
    };
    let inner = object.entry(outer).or_insert(Value::Null);
    if !inner.is_object() {
        *inner = json!({});
    }
    inner[flag.field.name] = value;
}

/// A number that is none stays a text, which the request's parser refuses by name.
fn value(flag: &Flag, text: &str) -> Result<Value, Error> {
    let trimmed = text.trim();
    Ok(match flag.field.kind {
        Kind::Whole(..) => trimmed.parse::<u64>().map_or_else(|_| number(trimmed, text), Value::from),
        Kind::Number(..) => number(trimmed, text),
        Kind::Inject => {
            let inject = parse_inject(&format!("--{}", flag.name), trimmed)?;
            serde_json::to_value(inject).map_err(|e| Error::Internal(e.to_string()))?
        }
        _ => Value::from(text),
    })
}

fn number(trimmed: &str, text: &str) -> Value {
    let number = trimmed.parse().ok().and_then(serde_json::Number::from_f64);
    number.map_or_else(|| Value::from(text), Value::Number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn over(job: Value, line: &str) -> Result<Value, Error> {
        let words = ["instantstyle", "generate"].into_iter().chain(line.split_whitespace());
        let matches = flags::command().try_get_matches_from(words).unwrap();
        let Value::Object(mut request) = job else { panic!("an object") };
        apply(matches.subcommand_matches("generate").unwrap(), &mut request)?;
        Ok(Value::Object(request))
    }

    #[test]
    fn flags_become_fields() {
        let got = over(
            json!({ "seed": 1, "steps": 3 }),
            "--seed 18446744073709551615 --guidance .5 --negative-prompt=-x",
        )
        .unwrap();
        assert_eq!(got, json!({ "seed": u64::MAX, "steps": 3, "guidance": 0.5, "negative_prompt": "-x" }));
    }

    #[test]
    fn flags_of_the_start_make_an_object() {
        let job = json!({ "init": { "image": "a", "strength": 0.3 } });
        let got = over(job, "--init-strength .5 --init-mask m").unwrap();
        assert_eq!(got, json!({ "init": { "image": "a", "strength": 0.5, "mask": "m" } }));
        assert_eq!(over(json!({}), "--init a").unwrap(), json!({ "init": { "image": "a" } }));
    }

    #[test]
    fn flags_belong_to_the_reference_before_them() {
        let got =
            over(json!({}), "--reference a --weight 1 --reference b --weight 2 --subtract fish").unwrap();
        let want = json!([{ "image": "a", "weight": 1.0 }, { "image": "b", "weight": 2.0, "subtract": { "text": "fish" } }]);
        assert_eq!(got["references"], want);
    }

    #[test]
    fn loras_have_flags_of_their_own() {
        let got = over(
            json!({}),
            "--lora a --lora-weight .5 --reference r --weight 2 --lora b --lora-blocks style",
        )
        .unwrap();
        let want = json!([{ "file": "a", "weight": 0.5 }, { "file": "b", "blocks": "style" }]);
        assert_eq!(got["loras"], want);
        assert_eq!(got["references"], json!([{ "image": "r", "weight": 2.0 }]));
        let got = over(json!({ "loras": [{ "file": "a" }] }), "--lora-weight 0").unwrap();
        assert_eq!(got["loras"], json!([{ "file": "a", "weight": 0.0 }]));
    }

    #[test]
    fn flags_before_the_first_reference_hold_for_all() {
        let got = over(json!({}), "--adapter f --weight 1 --reference a --reference b --weight 2").unwrap();
        let want = json!([{ "adapter": "f", "weight": 1.0, "image": "a" }, { "adapter": "f", "weight": 2.0, "image": "b" }]);
        assert_eq!(got["references"], want);
    }

    #[test]
    fn flags_without_a_reference_override_the_job() {
        let job = json!({ "references": [{ "image": "a", "weight": 0.1 }, { "image": "b", "subtract": { "text": "t" } }] });
        let got = over(job.clone(), "--weight 0 --subtract-scale 1 --subtract-scale 2").unwrap();
        let want = json!([
            { "image": "a", "weight": 0.0, "subtract": { "scale": 1.0 } },
            { "image": "b", "subtract": { "text": "t", "scale": 2.0 }, "weight": 0.0 },
        ]);
        assert_eq!(got["references"], want);
        assert_eq!(over(job, "--reference c").unwrap()["references"], json!([{ "image": "c" }]));
    }

    #[test]
    fn what_cannot_be_told_is_refused() {
        let two = json!({ "references": [{ "image": "a" }, { "image": "b" }] });
        for (job, line) in [
            (json!({}), "--weight 1"),
            (json!({}), "--reference a --weight 1 --weight 2"),
            (two, "--weight 1 --weight 2 --weight 3"),
            (json!({}), "--reference a --inject styl"),
        ] {
            assert!(over(job, line).is_err(), "{line}");
        }
    }
}
