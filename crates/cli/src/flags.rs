//! The command line's definitions. The flags of a request come from the request's own tables, so that parsing, help,
//! completions, man pages and docs agree; a flag's value becomes the JSON field of the same name and is checked by the
//! request's own parser.

use clap::builder::{PossibleValue, PossibleValuesParser, StringValueParser, TypedValueParser};
use clap::{Arg, ArgAction, Command, ValueHint};
use instantstyle_engine::control::MAPS;
use instantstyle_engine::convert::TYPES;
use instantstyle_engine::family::{SAFE, fast_names};
use instantstyle_engine::request::fields::{Field, HIRES, INIT, Kind, LISTS, List, REQUEST, SUBTRACT};
use instantstyle_engine::request::{PRECISIONS, PRESETS};
use instantstyle_engine::sampler::{SAMPLERS, SCHEDULES};
use instantstyle_hub::catalogue::CATALOGUE;
use std::ffi::OsStr;
use std::path::PathBuf;

/// A flag that fills a field of a request or of an entry of a list.
pub struct Flag {
    /// Name on the command line.
    pub name: String,
    /// The field that holds the object of this field, e.g. `subtract`.
    pub outer: Option<&'static str>,
    /// The field.
    pub field: &'static Field,
}

/// The flags of the request itself.
pub fn of_request() -> Vec<Flag> {
    REQUEST.iter().filter(|f| !matches!(f.kind, Kind::List(_))).flat_map(|f| of_field("", f)).collect()
}

/// The flags of one entry of a list, all but the one that opens it.
pub fn of_entry(list: &'static List) -> Vec<Flag> {
    list.fields[1..].iter().flat_map(|f| of_field(list.prefix, f)).collect()
}

/// The flag of a field; of an object one for each of its fields, the first of which has the object's own name:
/// `--subtract`, `--subtract-scale`.
fn of_field(prefix: &str, field: &'static Field) -> Vec<Flag> {
    let inner = match field.kind {
        Kind::Subtract => SUBTRACT,
        Kind::Init => INIT,
        Kind::Hires => HIRES,
        _ => {
            return vec![Flag {
                name: format!("{prefix}{}", field.name.replace('_', "-")),
                outer: None,
                field,
            }];
        }
    };
    let name = |i: usize, f: &Field| match i {
        0 => format!("{prefix}{}", field.name),
        _ => format!("{prefix}{}-{}", field.name, f.name.replace('_', "-")),
    };
    inner
        .iter()
        .enumerate()
        .map(|(i, f)| Flag { name: name(i, f), outer: Some(field.name), field: f })
        .collect()
}

impl Flag {
    fn arg(&self) -> Arg {
        let field = self.field;
        let default =
            if field.default.is_empty() { String::new() } else { format!(" [default: {}]", field.default) };
        let arg = Arg::new(self.name.clone()).long(self.name.clone()).help(format!(
            "{}{default}, e.g. {}",
            field.about,
            example(&self.name, field.example)
        ));
        let (value, hint) = match field.kind {
            Kind::Text => ("TEXT", ValueHint::Other),
            Kind::Model => ("DIR", ValueHint::DirPath),
            Kind::Path if field.name.ends_with("encoder") => ("DIR", ValueHint::DirPath),
            Kind::Path => ("FILE", ValueHint::FilePath),
            Kind::Whole(..) => ("N", ValueHint::Other),
            Kind::Number(..) => ("X", ValueHint::Other),
            Kind::Inject => ("WHERE", ValueHint::Other),
            Kind::Choice(_)
            | Kind::Sampler
            | Kind::Device
            | Kind::Subtract
            | Kind::Init
            | Kind::Hires
            | Kind::List(_) => ("NAME", ValueHint::Other),
        };
        // Negative numbers, and prompts that begin with a dash.
        let dashes = matches!(field.kind, Kind::Text | Kind::Whole(..) | Kind::Number(..));
        let arg = arg.value_name(value).value_hint(hint).allow_hyphen_values(dashes);
        // Without a name, the settings that hold for every model.
        let arg = if field.name == "fast" { arg.num_args(0..=1).default_missing_value(SAFE) } else { arg };
        let choices = field.choices();
        if choices.is_empty() { arg } else { arg.value_parser(Suggested(choices)).hide_possible_values(true) }
    }
}

fn example(name: &str, value: &str) -> String {
    if value.contains(' ') { format!("--{name} \"{value}\"") } else { format!("--{name} {value}") }
}

/// Any text, with names that shells complete: what is allowed is the request's business.
#[derive(Clone)]
struct Suggested(Vec<(&'static str, &'static str)>);

impl TypedValueParser for Suggested {
    type Value = String;

    fn parse_ref(&self, command: &Command, arg: Option<&Arg>, value: &OsStr) -> Result<String, clap::Error> {
        StringValueParser::new().parse_ref(command, arg, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new(self.0.iter().map(|(name, about)| PossibleValue::new(*name).help(*about))))
    }
}

/// The whole command line.
pub fn command() -> Command {
    Command::new("instantstyle")
        .about("Paint a sentence in the style of a picture, without its subject")
        .long_about(
            "Paint a sentence in the style of a picture, without its subject: InstantStyle with Stable Diffusion 1.5 and XL \
             and IP-Adapters, on your own models or on the one inside this program.",
        )
        .after_help(
            "Exit status: 0 done, 1 a fault of this program, 2 the request or the command line, 3 a file, 4 the machine \
             (disk, memory, device), 130 stopped by Ctrl-C.",
        )
        .version(clap::crate_version!())
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(generate())
        .subcommand(
            Command::new("demo")
                .about("Show what the methods do, on the embedded model: a folder with a contact sheet and single pictures")
                .arg(path("out", "DIR", "Folder to write, e.g. --out demo").default_value("demo").value_hint(ValueHint::DirPath))
                .arg(threads())
                .arg(quiet()),
        )
        .subcommand(
            Command::new("inspect")
                .about("Say what files and folders are, what they need, and where their attention sites are")
                .long_about(
                    "Say what files and folders are (by content and shapes, never by name), which family they fit, which \
                     companions they need, and where their attention sites are. Ends with 3 where something would not load.",
                )
                .arg(
                    Arg::new("path")
                        .value_name("PATH")
                        .help("File or folder, e.g. inspect ip-adapter.bin")
                        .required(true)
                        .num_args(1..)
                        .value_parser(clap::value_parser!(PathBuf))
                        .value_hint(ValueHint::AnyPath),
                )
                .arg(switch("json", "Print a JSON list, e.g. --json")),
        )
        .subcommand(pull())
        .subcommand(
            Command::new("convert")
                .about("Turn a model into another form: Diffusers folder, single .safetensors file, GGUF")
                .long_about(
                    "Turn a model into another form: a Diffusers folder, a single file in the original names, or GGUF as \
                     stable-diffusion.cpp and ComfyUI-GGUF read it. Says how many tensors went where and names those that \
                     have no place there.",
                )
                .arg(
                    path("input", "INPUT", "Folder or file of the model, e.g. convert sdxl.safetensors sdxl-folder")
                        .long(None)
                        .required(true)
                        .value_hint(ValueHint::AnyPath),
                )
                .arg(
                    path("output", "OUTPUT", "What it becomes: a name that ends in .safetensors or .gguf, or else a folder")
                        .long(None)
                        .required(true)
                        .value_hint(ValueHint::AnyPath),
                )
                .arg(
                    Arg::new("type")
                        .long("type")
                        .value_name("NAME")
                        .help("Type of the numbers, e.g. --type q8_0")
                        .default_value("keep")
                        .value_parser(PossibleValuesParser::new(
                            TYPES.iter().map(|(name, _, about)| PossibleValue::new(*name).help(*about)),
                        )),
                )
                .arg(switch("only-unet", "Write the UNet alone, without its prefix (for ComfyUI-GGUF), e.g. --only-unet"))
                .arg(switch("json", "Print one JSON object about what went where, e.g. --json"))
                .arg(quiet()),
        )
        .subcommand(
            Command::new("completions")
                .about("Print shell completions, e.g. instantstyle completions bash > instantstyle.bash")
                .arg(
                    Arg::new("shell")
                        .value_name("SHELL")
                        .help("The shell, e.g. completions zsh")
                        .required(true)
                        .value_parser(clap::value_parser!(clap_complete::Shell)),
                ),
        )
        .subcommand(
            Command::new("man")
                .about("Print the man page, e.g. instantstyle man > instantstyle.1")
                .arg(
                    path("out", "DIR", "Write one page for each command into this folder instead, e.g. --out man/man1")
                        .value_hint(ValueHint::DirPath),
                ),
        )
}

fn generate() -> Command {
    let rows = |rows: &mut dyn Iterator<Item = (&str, &str)>| {
        rows.map(|(name, about)| format!("  {name:20} {about}\n")).collect::<String>()
    };
    let presets = rows(&mut PRESETS.iter().map(|(name, _, about)| (*name, *about)));
    let maps = rows(&mut MAPS.iter().map(|m| (m.name, m.about)));
    let samplers = rows(&mut SAMPLERS.iter().map(|s| (s.name, s.about)));
    let schedules = rows(&mut SCHEDULES.iter().map(|s| (s.name, s.about)));
    let fast = rows(&mut fast_names().into_iter());
    let precisions = rows(&mut PRECISIONS.iter().map(|(name, _, about)| (*name, *about)));
    let mut command = Command::new("generate")
        .about("Paint a prompt in the style of pictures")
        .after_help(format!(
            "Flags of a reference belong to the last --reference before them; those before the first one hold for all. \
             Without --reference they override the job's: one value for all references, or one for each. \
             Likewise --control and --lora with their flags.\n\n\
             --inject, by name or by part of the UNet (e.g. --inject up_blocks.0.attentions.1=1,mid_block=0.2):\n{presets}\n\
             --control-preprocess:\n{maps}\n--sampler:\n{samplers}\n--schedule:\n{schedules}\n--fast:\n{fast}\n--precision:\n{precisions}"
        ))
        .next_help_heading("Request");
    for flag in of_request() {
        command = command.arg(flag.arg());
    }
    for list in LISTS {
        let first = &list.fields[0];
        let heading = list.name[..1].to_uppercase() + &list.name[1..];
        command = command.next_help_heading(heading).arg(
            Arg::new(list.opening)
                .long(list.opening)
                .value_name("FILE")
                .help(format!(
                    "{}; may be given several times, e.g. {}",
                    first.about,
                    example(list.opening, first.example)
                ))
                .value_hint(ValueHint::FilePath)
                .action(ArgAction::Append),
        );
        for flag in of_entry(list) {
            command = command.arg(flag.arg().action(ArgAction::Append));
        }
    }
    command
        .next_help_heading("Running")
        .arg(path("job", "FILE", "Read the request from JSON, or from a picture made before; flags override it, e.g. --job cat.png"))
        .arg(
            path("out", "FILE", "The PNG to write; several become x-1.png, x-2.png, …, e.g. --out cat.png")
                .default_value("instantstyle.png"),
        )
        .arg(path("save-latents", "FILE", "Write the sampler's last latents (safetensors), e.g. --save-latents cat.safetensors"))
        .arg(path(
            "save-control-maps",
            "FILE",
            "Write the maps that the ControlNets see (PNG); several become x-1.png, …, e.g. --save-control-maps map.png",
        ))
        .arg(path(
            "preview",
            "FILE",
            "Keep writing a small PNG of what the picture will be like while it is made, e.g. --preview now.png",
        ))
        .arg(
            Arg::new("preview-every")
                .long("preview-every")
                .value_name("N")
                .help("After every so manyth model call [default: 1], e.g. --preview-every 5")
                .value_parser(clap::value_parser!(u16).range(1..=1000)),
        )
        .arg(path(
            "preview-decoder",
            "PATH",
            "Small autoencoder (TAESD) for previews of full size [default: none, one pixel for each latent], \
             e.g. --preview-decoder taesd_decoder.safetensors",
        ))
        .arg(switch("dry-run", "Print the resolved plan and stop, e.g. --dry-run"))
        .arg(switch("json", "Print one JSON object about the result, or the error, e.g. --json"))
        .arg(
            Arg::new("memory-gib")
                .long("memory-gib")
                .value_name("X")
                .help("Memory that may be taken, in GiB; 0 does not check [default: what is free], e.g. --memory-gib 6.5")
                .value_parser(clap::value_parser!(f64))
                .allow_hyphen_values(true),
        )
        .arg(threads())
        .arg(quiet())
}

fn pull() -> Command {
    let rows = CATALOGUE.iter().map(|e| (e.name, e.about)).collect::<Vec<_>>();
    let listed = rows.iter().map(|(name, about)| format!("  {name:27} {about}\n")).collect::<String>();
    Command::new("pull")
        .about("Download published models by name, to use them by these names in generate")
        .long_about(
            "Download published models by name, to use them by these names in generate. Files go to the cache that \
             Python's huggingface_hub uses and are shared with it; what was cut goes on where it was cut; every file is \
             checked by the hub's hash. An adapter brings its image encoder. The licence is shown before.",
        )
        .after_help(format!(
            "Names (name@revision for another than main):\n{listed}\n\
             Environment: HF_HOME, HF_HUB_CACHE (where files go), HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE=1 (download nothing)."
        ))
        .arg(
            Arg::new("name")
                .value_name("NAME")
                .help("Name in the catalogue, e.g. pull sdxl-base ip-adapter-sdxl")
                .required_unless_present("list")
                .num_args(1..)
                .value_parser(Suggested(rows))
                .hide_possible_values(true),
        )
        .arg(switch("list", "Show the catalogue and what of it is here, e.g. --list"))
        .arg(switch("yes", "Accept the licences without being asked, e.g. --yes"))
        .arg(switch("alone", "Without what the named ones need, e.g. --alone"))
        .arg(switch("json", "Print one JSON object about the result, or the error, e.g. --json"))
        .arg(quiet())
}

fn path(name: &'static str, value: &'static str, help: &'static str) -> Arg {
    Arg::new(name)
        .long(name)
        .value_name(value)
        .help(help)
        .value_parser(clap::value_parser!(PathBuf))
        .value_hint(ValueHint::FilePath)
}

fn switch(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).help(help).action(ArgAction::SetTrue)
}

fn threads() -> Arg {
    Arg::new("threads")
        .long("threads")
        .value_name("N")
        .help("Threads; pictures do not depend on it [default: one for each core that this process may use], e.g. --threads 2")
        .value_parser(clap::value_parser!(u16).range(1..=1024))
}

fn quiet() -> Arg {
    switch("quiet", "No progress and no notes, e.g. --quiet")
}
