//! The fields of a request, once: the parser, the flags and their help, the schema and the docs read these tables.

mod tables;

pub use tables::{CONTROL, HIRES, INIT, LORA, REFERENCE, REQUEST, SUBTRACT};

use super::PRESETS;
use crate::sampler::SAMPLERS;
use serde_json::{Value, json};

/// What a field takes.
#[derive(Clone, Copy)]
pub enum Kind {
    /// Any text.
    Text,
    /// A file or folder; relative to the job file, on the command line to the current folder. Where it is a model of some
    /// kind, a name of the catalogue will do; an existing path wins.
    Path,
    /// A model's folder, its name in the catalogue, or `embedded`.
    Model,
    /// A whole number of this range.
    Whole(u64, u64),
    /// A number of this range.
    Number(f64, f64),
    /// One of these names; the second text is for people.
    Choice(fn() -> Vec<(&'static str, &'static str)>),
    /// A sampler, here or in A1111 or ComfyUI.
    Sampler,
    /// `auto`, `cpu`, `cuda:N` or `metal`.
    Device,
    /// A preset, or weights by part of the UNet.
    Inject,
    /// An object of [`SUBTRACT`].
    Subtract,
    /// An object of [`INIT`].
    Init,
    /// An object of [`HIRES`].
    Hires,
    /// A list of objects.
    List(&'static List),
}

/// A field that holds a list of objects. On the command line each entry is opened by a flag of its own.
pub struct List {
    /// Name of the field.
    pub name: &'static str,
    /// One entry, in words.
    pub one: &'static str,
    /// The flag that opens an entry and gives its first field.
    pub opening: &'static str,
    /// What the flags of its other fields begin with.
    pub prefix: &'static str,
    /// Most entries.
    pub most: usize,
    /// Fields of an entry; the first must be given.
    pub fields: &'static [Field],
}

/// The style pictures.
pub static REFERENCES: List = List {
    name: "references",
    one: "a reference",
    opening: "reference",
    prefix: "",
    most: 32,
    fields: REFERENCE,
};

/// The LoRAs.
pub static LORAS: List =
    List { name: "loras", one: "a LoRA", opening: "lora", prefix: "lora-", most: 32, fields: LORA };

/// The ControlNets.
pub static CONTROLS: List = List {
    name: "controls",
    one: "a ControlNet",
    opening: "control",
    prefix: "control-",
    most: 16,
    fields: CONTROL,
};

/// All lists of a request.
pub static LISTS: [&List; 3] = [&CONTROLS, &LORAS, &REFERENCES];

/// One field.
pub struct Field {
    /// Name in the JSON.
    pub name: &'static str,
    /// What it takes.
    pub kind: Kind,
    /// What holds where it is not given, in words; empty where it must be given.
    pub default: &'static str,
    /// What it does.
    pub about: &'static str,
    /// A value, as on the command line.
    pub example: &'static str,
}

/// Longest text, in bytes.
pub const MAX_TEXT_BYTES: usize = 100_000;
/// Most entries of an `inject` map.
pub const MAX_BLOCKS: usize = 1024;
/// Weights are factors near 1; beyond this it is a slip.
pub const MAX_WEIGHT: f64 = 10.0;

fn samplers() -> Vec<(&'static str, &'static str)> {
    SAMPLERS.iter().map(|s| (s.name, s.about)).collect()
}

impl Field {
    /// What is allowed, in words, for messages and docs.
    pub fn allowed(&self) -> String {
        match self.kind {
            Kind::Text => "a text in quotes".to_owned(),
            Kind::Path => "a path in quotes".to_owned(),
            Kind::Model => "a folder, a file or a name in quotes, or \"embedded\"".to_owned(),
            Kind::Whole(least, most) => format!("a whole number from {least} to {most}"),
            Kind::Number(least, most) => format!("a number from {least} to {most}"),
            Kind::Choice(choices) => {
                let names: Vec<&str> = choices().iter().map(|c| c.0).collect();
                format!("one of {}", names.join(", "))
            }
            Kind::Sampler => "the name of a sampler in quotes".to_owned(),
            Kind::Device => "auto, cpu, cuda:N (N from 0) or metal".to_owned(),
            Kind::Inject => {
                let names: Vec<String> = PRESETS.iter().map(|p| format!("\"{}\"", p.0)).collect();
                format!(
                    "{}, or an object of parts and weights like {{\"up_blocks.0.attentions.1\": 1.0}}",
                    names.join(", ")
                )
            }
            Kind::Subtract => "an object like {\"text\": \"a rabbit\", \"scale\": 0.5}".to_owned(),
            Kind::Init => "an object like {\"image\": \"photo.png\", \"strength\": 0.6}".to_owned(),
            Kind::Hires => "an object like {\"scale\": 2, \"strength\": 0.5}".to_owned(),
            Kind::List(list) => {
                let first = &list.fields[0];
                format!(
                    "a list of at most {} objects like {{\"{}\": \"{}\"}}",
                    list.most, first.name, first.example
                )
            }
        }
    }

    /// The names to choose from, if these are fixed.
    pub fn choices(&self) -> Vec<(&'static str, &'static str)> {
        match self.kind {
            Kind::Choice(choices) => choices(),
            Kind::Sampler => samplers(),
            Kind::Device => vec![("auto", "the best there is"), ("cpu", ""), ("cuda:0", ""), ("metal", "")],
            Kind::Inject => PRESETS.iter().map(|(name, _, about)| (*name, *about)).collect(),
            _ => Vec::new(),
        }
    }

    fn schema(&self) -> Value {
        let mut schema = match self.kind {
            Kind::Text => json!({ "type": "string", "maxLength": MAX_TEXT_BYTES }),
            Kind::Path | Kind::Model => {
                json!({ "type": "string", "minLength": 1, "maxLength": MAX_TEXT_BYTES })
            }
            Kind::Whole(least, most) => json!({ "type": "integer", "minimum": least, "maximum": most }),
            Kind::Number(least, most) => json!({ "type": "number", "minimum": least, "maximum": most }),
            Kind::Choice(choices) => json!({ "enum": choices().iter().map(|c| c.0).collect::<Vec<_>>() }),
            Kind::Sampler => json!({
                "type": "string", "minLength": 1, "examples": samplers().iter().map(|c| c.0).collect::<Vec<_>>(),
            }),
            Kind::Device => json!({ "type": "string", "pattern": "^(auto|cpu|metal|cuda:[0-9]+)$" }),
            Kind::Inject => json!({ "anyOf": [
                { "enum": PRESETS.iter().map(|p| p.0).collect::<Vec<_>>() },
                {
                    "type": "object", "minProperties": 1, "maxProperties": MAX_BLOCKS,
                    "propertyNames": { "pattern": "^[a-z0-9_]+(\\.[a-z0-9_]+)*$" },
                    "additionalProperties": { "type": "number", "minimum": -MAX_WEIGHT, "maximum": MAX_WEIGHT },
                },
            ] }),
            Kind::Subtract => object(SUBTRACT),
            Kind::Init => object(INIT),
            Kind::Hires => object(HIRES),
            Kind::List(list) => {
                json!({ "type": "array", "maxItems": list.most, "items": object(list.fields) })
            }
        };
        schema["description"] = Value::from(format!("{}. Default: {}.", self.about, self.default));
        if self.default.is_empty() {
            schema["description"] = Value::from(format!("{}.", self.about));
        }
        schema
    }
}

fn object(fields: &[Field]) -> Value {
    let properties: serde_json::Map<String, Value> =
        fields.iter().map(|f| (f.name.to_owned(), f.schema())).collect();
    let required: Vec<&str> = fields.iter().filter(|f| f.default.is_empty()).map(|f| f.name).collect();
    json!({ "type": "object", "properties": properties, "required": required, "additionalProperties": false })
}

/// The request as a JSON schema (2020-12).
pub fn schema() -> Value {
    let mut schema = object(REQUEST);
    schema["$schema"] = Value::from("https://json-schema.org/draft/2020-12/schema");
    schema["title"] = Value::from("instantstyle request");
    schema
}
