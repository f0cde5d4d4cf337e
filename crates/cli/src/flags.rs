//! The command line's definitions: one table of request flags, from which parsing, help, completions and the man page
//! come. A flag's value becomes the JSON field of the same name and is checked by the request's own parser.

use clap::{Arg, ArgAction, ArgMatches, Command, ValueHint};
use instantstyle_engine::request::PRESETS;
use instantstyle_engine::sampler::SAMPLERS;
use serde_json::{Map, Value, json};
use std::path::PathBuf;

/// How a flag's text becomes JSON.
#[derive(Clone, Copy, PartialEq)]
pub enum Kind {
    /// A text.
    Text,
    /// A number.
    Number,
    /// A path, relative to the current folder.
    Path,
    /// A preset, or `path=weight,…`.
    Inject,
}

/// One field of the request.
pub struct Flag {
    /// Name on the command line.
    pub name: &'static str,
    /// Name in the JSON.
    pub field: &'static str,
    /// Type.
    pub kind: Kind,
    /// Shown for the value.
    pub value: &'static str,
    /// What it does, with an example.
    pub help: &'static str,
}

const fn flag(
    name: &'static str,
    field: &'static str,
    kind: Kind,
    value: &'static str,
    help: &'static str,
) -> Flag {
    Flag { name, field, kind, value, help }
}

/// Fields of the request itself.
pub const REQUEST: &[Flag] = &[
    flag("prompt", "prompt", Kind::Text, "TEXT", "What to paint, e.g. --prompt \"a cat\""),
    flag(
        "negative-prompt",
        "negative_prompt",
        Kind::Text,
        "TEXT",
        "What to avoid, e.g. --negative-prompt \"blurry, text\"",
    ),
    flag(
        "model",
        "model",
        Kind::Path,
        "DIR",
        "Diffusers folder of an SD1.5 or SDXL model; the embedded model if not given, e.g. --model sdxl-base",
    ),
    flag(
        "width",
        "width",
        Kind::Number,
        "PX",
        "Width, a multiple of the autoencoder's factor (8), e.g. --width 1024",
    ),
    flag("height", "height", Kind::Number, "PX", "Height, likewise, e.g. --height 768"),
    flag("count", "count", Kind::Number, "N", "Pictures, with seeds seed, seed+1, …, e.g. --count 4"),
    flag("seed", "seed", Kind::Number, "N", "Seed, the same as in diffusers, e.g. --seed 42"),
    flag("steps", "steps", Kind::Number, "N", "Sampling steps, 1 to 1000, e.g. --steps 30"),
    flag(
        "guidance",
        "guidance",
        Kind::Number,
        "X",
        "Strength of classifier-free guidance; 1 turns it off, e.g. --guidance 5",
    ),
    flag(
        "guidance-rescale",
        "guidance_rescale",
        Kind::Number,
        "X",
        "Rescales the guided prediction, 0 to 1, e.g. --guidance-rescale 0.7",
    ),
    flag(
        "clip-skip",
        "clip_skip",
        Kind::Number,
        "N",
        "Last layers of the text encoder to skip, e.g. --clip-skip 1",
    ),
    flag(
        "sampler",
        "sampler",
        Kind::Text,
        "NAME",
        "Sampler; the checkpoint's own if not given, e.g. --sampler dpmpp_2m_karras",
    ),
    flag("precision", "precision", Kind::Text, "NAME", "auto, f32, bf16 or f16, e.g. --precision f32"),
    flag("device", "device", Kind::Text, "NAME", "auto, cpu, cuda:0 or metal, e.g. --device cpu"),
];

/// Fields of one reference; they belong to the last --reference before them.
pub const REFERENCE: &[Flag] = &[
    flag(
        "adapter",
        "adapter",
        Kind::Path,
        "FILE",
        "IP-Adapter of the reference (.safetensors or .bin), e.g. --adapter ip-adapter_sdxl.safetensors",
    ),
    flag(
        "image-encoder",
        "image_encoder",
        Kind::Path,
        "DIR",
        "CLIP image encoder that the adapter was trained with, e.g. --image-encoder sdxl_models/image_encoder",
    ),
    flag(
        "text-encoder",
        "text_encoder",
        Kind::Path,
        "DIR",
        "CLIP text encoder for --subtract, where the model lacks it, e.g. --text-encoder CLIP-ViT-H-14",
    ),
    flag(
        "inject",
        "inject",
        Kind::Inject,
        "WHERE",
        "Where the reference acts: a preset or parts with weights, e.g. --inject style, --inject up_blocks.0.attentions.1=1.0,mid_block=0.2",
    ),
    flag("weight", "weight", Kind::Number, "X", "Strength of the reference, e.g. --weight 0.8"),
    flag(
        "subtract",
        "subtract.text",
        Kind::Text,
        "TEXT",
        "What the reference shows and the picture should not, e.g. --subtract \"a rabbit\"",
    ),
    flag(
        "subtract-scale",
        "subtract.scale",
        Kind::Number,
        "X",
        "How much of it to take away, e.g. --subtract-scale 0.5",
    ),
    flag(
        "mask",
        "mask",
        Kind::Path,
        "FILE",
        "Picture that is white where the reference acts, e.g. --mask left.png",
    ),
    flag(
        "start",
        "start",
        Kind::Number,
        "X",
        "Start of the reference's window as a part of the sampling, e.g. --start 0.2",
    ),
    flag("end", "end", Kind::Number, "X", "End of the window, e.g. --end 0.8"),
];

/// The whole command line.
pub fn command() -> Command {
    let path = |name: &'static str, value: &'static str, help: &'static str| {
        Arg::new(name)
            .long(name)
            .value_name(value)
            .help(help)
            .value_parser(clap::value_parser!(PathBuf))
            .value_hint(ValueHint::AnyPath)
    };
    let switch = |name: &'static str, help: &'static str| {
        Arg::new(name).long(name).help(help).action(ArgAction::SetTrue)
    };
    let threads = Arg::new("threads")
        .long("threads")
        .value_name("N")
        .help("Threads; the pictures do not depend on it, e.g. --threads 2")
        .value_parser(clap::value_parser!(u16).range(1..=1024));
    let quiet = switch("quiet", "No progress and no notices, e.g. --quiet");
    let presets: Vec<String> = PRESETS.iter().map(|(n, _, about)| format!("  {n:13} {about}")).collect();
    let samplers: Vec<String> = SAMPLERS.iter().map(|s| format!("  {:20} {}", s.name, s.about)).collect();
    let mut generate = Command::new("generate").about("Paint a prompt in the style of pictures").after_help(
        format!("Presets of --inject:\n{}\n\nSamplers:\n{}", presets.join("\n"), samplers.join("\n")),
    );
    for f in REQUEST {
        generate = generate.arg(request_arg(f).help_heading("Request"));
    }
    generate = generate.arg(
        path("reference", "FILE", "Style picture; may be given several times, each followed by its own flags, e.g. --reference style.png --weight 0.8")
            .action(ArgAction::Append)
            .help_heading("References"),
    );
    for f in REFERENCE {
        generate = generate.arg(request_arg(f).action(ArgAction::Append).help_heading("References"));
    }
    generate = generate
        .arg(path("job", "FILE", "Read the request from a JSON file, or from a picture made before; flags override it, e.g. --job picture.png"))
        .arg(path("out", "FILE", "Where to write; several pictures become x-1.png, x-2.png, …, e.g. --out cat.png").default_value("instantstyle.png"))
        .arg(path("save-latents", "FILE", "Write the sampler's last latents as safetensors, e.g. --save-latents cat.safetensors"))
        .arg(switch("dry-run", "Print what would be done, and stop, e.g. --dry-run"))
        .arg(switch("json", "Print one JSON object about the result, e.g. --json"))
        .arg(threads.clone())
        .arg(quiet.clone());
    Command::new("instantstyle")
        .about("Paint a sentence in the style of a picture, without its subject: InstantStyle on your own models, no Python")
        .version(clap::crate_version!())
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(generate)
        .subcommand(
            Command::new("demo")
                .about("Show what the methods do, on the embedded model: a folder with a contact sheet and single pictures")
                .arg(path("out", "DIR", "Folder to write, e.g. --out demo").default_value("demo"))
                .arg(threads)
                .arg(quiet),
        )
        .subcommand(
            Command::new("inspect")
                .about("Say what files and folders are, what they need, and where their attention sites are")
                .arg(Arg::new("path").value_name("PATH").help("File or folder, e.g. inspect ip-adapter.bin").required(true).num_args(1..).value_parser(clap::value_parser!(PathBuf)))
                .arg(switch("json", "Print JSON, e.g. --json")),
        )
        .subcommand(
            Command::new("completions")
                .about("Print shell completions, e.g. instantstyle completions bash > instantstyle.bash")
                .arg(Arg::new("shell").value_name("SHELL").help("bash, zsh, fish, elvish or powershell, e.g. completions zsh").required(true).value_parser(clap::value_parser!(clap_complete::Shell))),
        )
        .subcommand(Command::new("man").about("Print the man page, e.g. instantstyle man > instantstyle.1"))
}

fn request_arg(f: &Flag) -> Arg {
    let hint = if f.kind == Kind::Path { ValueHint::AnyPath } else { ValueHint::Other };
    Arg::new(f.name).long(f.name).value_name(f.value).help(f.help).value_hint(hint).allow_hyphen_values(true)
}

/// Writes the given flags over a request's JSON.
pub fn apply(matches: &ArgMatches, request: &mut Map<String, Value>) {
    for f in REQUEST {
        if let Some(text) = matches.get_one::<String>(f.name) {
            request.insert(f.field.to_owned(), to_json(f, text));
        }
    }
    // In the order in which they were written; flags before the first --reference belong to it.
    let mut given: Vec<(usize, Option<&Flag>, String)> = Vec::new();
    if let (Some(values), Some(at)) =
        (matches.get_many::<PathBuf>("reference"), matches.indices_of("reference"))
    {
        given.extend(at.zip(values).map(|(i, v)| (i, None, v.to_string_lossy().into_owned())));
    }
    for f in REFERENCE {
        if let (Some(values), Some(at)) = (matches.get_many::<String>(f.name), matches.indices_of(f.name)) {
            given.extend(at.zip(values).map(|(i, v)| (i, Some(f), v.clone())));
        }
    }
    if given.is_empty() {
        return;
    }
    given.sort_by_key(|g| g.0);
    let opened = given.iter().any(|g| g.1.is_none());
    let mut references = match request.get("references") {
        Some(Value::Array(list)) if !opened => list.clone(),
        _ => Vec::new(),
    };
    let mut early = Vec::new();
    for (_, flag, text) in given {
        match flag {
            None => {
                let mut reference = json!({ "image": absolute(&text) });
                early.drain(..).for_each(|(f, text): (&Flag, String)| set(&mut reference, f, &text));
                references.push(reference);
            }
            Some(f) => match references.last_mut() {
                Some(reference) => set(reference, f, &text),
                None => early.push((f, text)),
            },
        }
    }
    if !early.is_empty() {
        // Flags of a reference without one: the parser says that the picture is missing.
        let mut reference = json!({});
        early.drain(..).for_each(|(f, text)| set(&mut reference, f, &text));
        references.push(reference);
    }
    request.insert("references".into(), Value::Array(references));
}

fn set(reference: &mut Value, f: &Flag, text: &str) {
    match f.field.split_once('.') {
        None => reference[f.field] = to_json(f, text),
        Some((outer, inner)) => {
            if !reference[outer].is_object() {
                reference[outer] = json!({});
            }
            reference[outer][inner] = to_json(f, text);
        }
    }
}

fn absolute(text: &str) -> String {
    if text.starts_with("embedded") && !std::path::Path::new(text).exists() {
        return text.to_owned();
    }
    std::path::absolute(text).map_or_else(|_| text.to_owned(), |p| p.to_string_lossy().into_owned())
}

/// A number that is none stays a text, which the request's parser refuses by name.
fn to_json(f: &Flag, text: &str) -> Value {
    match f.kind {
        Kind::Text => Value::from(text),
        Kind::Number => {
            serde_json::from_str::<serde_json::Number>(text).map_or_else(|_| Value::from(text), Value::Number)
        }
        Kind::Path => Value::from(absolute(text)),
        Kind::Inject => match text.contains('=') {
            false => Value::from(text),
            true => Value::Object(
                text.split(',')
                    .map(|part| {
                        let (key, weight) = part.split_once('=').unwrap_or((part, ""));
                        let weight = serde_json::from_str::<serde_json::Number>(weight.trim());
                        (key.trim().to_owned(), weight.map_or_else(|_| Value::from(part), Value::Number))
                    })
                    .collect(),
            ),
        },
    }
}
