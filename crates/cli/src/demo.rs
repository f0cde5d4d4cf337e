//! `instantstyle demo`: what the methods do, on the embedded model.

mod guided;

use crate::generate::png;
use crate::output::{self, Files};
use crate::progress::{self, Progress};
use crate::sheet::{Column, Part, Row, sheet};
use crate::{print, say};
use clap::ArgMatches;
use instantstyle_engine::picture::{Picture, encode_png};
use instantstyle_engine::plan::Plan;
use instantstyle_engine::request::{Inject, Preset, Reference, Request, Subtract};
use instantstyle_engine::{Error, embedded, generate};
use std::cell::RefCell;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A column of the sheet: how the reference is used.
struct Method {
    /// Part of the file names.
    name: &'static str,
    heading: &'static str,
    about: &'static str,
    /// Parts of the UNet; `None` leaves the reference out.
    inject: Option<Preset>,
    /// Whether the reference's content is subtracted.
    subtract: bool,
}

const fn method(
    name: &'static str,
    heading: &'static str,
    about: &'static str,
    inject: Option<Preset>,
    subtract: bool,
) -> Method {
    Method { name, heading, about, inject, subtract }
}

const METHODS: &[Method] = &[
    method("none", "no reference", "the prompt alone", None, false),
    method("plain", "IP-Adapter", "every block", Some(Preset::All), false),
    method("style", "InstantStyle", "the style block only", Some(Preset::Style), false),
    method("style-layout", "InstantStyle", "style and layout blocks", Some(Preset::StyleLayout), false),
    method("layout", "InstantStyle", "the layout block only", Some(Preset::Layout), false),
    method("subtract", "Subtraction", "every block, less the content's text", Some(Preset::All), true),
    method("style-subtract", "Both", "the style block, less the text", Some(Preset::Style), true),
];

/// One reference of the model's card.
struct Shown {
    image: String,
    content: String,
    style: String,
}

/// What the card says about the demo.
struct Script {
    prompt: String,
    seed: u64,
    shown: Vec<Shown>,
}

/// Runs the subcommand.
pub fn run(arguments: &ArgMatches, stop: Arc<AtomicBool>) -> Result<(), Error> {
    let folder: &PathBuf = arguments.get_one("out").expect("has a default");
    let script = script(&embedded::card()).ok_or_else(|| {
        Error::Machine("this build has no embedded model to show; build it with models/embedded".into())
    })?;
    let made = prepare(folder)?;
    let result = paint(&script, folder, arguments.get_flag("quiet"), stop);
    if result.is_err() && made {
        // Only if it is empty: what was there before stays.
        let _ = std::fs::remove_dir(folder);
    }
    let sheet = result?;
    print(format!("{}\n", sheet.display()).as_bytes())
}

fn script(card: &serde_json::Value) -> Option<Script> {
    let demo = card.get("demo")?;
    let reference = |r: &serde_json::Value| {
        let text = |key: &str| r.get(key)?.as_str().map(str::to_owned);
        Some(Shown { image: text("image")?, content: text("content")?, style: text("style")? })
    };
    let shown: Vec<Shown> = demo.get("references")?.as_array()?.iter().filter_map(reference).collect();
    let prompt = demo.get("prompt")?.as_str()?.to_owned();
    (!shown.is_empty()).then_some(Script { prompt, seed: demo.get("seed")?.as_u64()?, shown })
}

/// Makes the folder and checks that it takes files; true if it was not there.
fn prepare(folder: &Path) -> Result<bool, Error> {
    let made = !folder.exists();
    std::fs::create_dir_all(folder).map_err(|e| {
        Error::Machine(format!(
            "{}: the folder cannot be made ({e}); choose another with --out",
            folder.display()
        ))
    })?;
    output::check(&folder.join("sheet.png"))?;
    Ok(made)
}

/// Paints everything, and then writes it.
fn paint(script: &Script, folder: &Path, quiet: bool, stop: Arc<AtomicBool>) -> Result<PathBuf, Error> {
    let lines = !std::io::stderr().is_terminal();
    // Without a reference the picture is the same in every row: it is painted once.
    let pictures = script.shown.len() * (METHODS.len() - 1) + 1 + guided::pictures(script);
    let bar = progress::bar(
        quiet || lines,
        pictures as u64,
        "painting [{bar:40}] {pos}/{len} {elapsed} < {eta} {msg}",
    );
    let files = RefCell::new(Files::default());
    let mut paint_one = |name: &str, request: &Request| -> Result<Picture, Error> {
        bar.set_message(name.to_owned());
        let plan = Plan::resolve(request)?;
        let output = generate(&plan, &mut Progress::inner(&bar, stop.clone()))?
            .pop()
            .ok_or_else(|| Error::Internal("no picture was made".into()))?;
        files.borrow_mut().add(&folder.join(format!("{name}.png")), &png(&plan, 0, &output)?)?;
        bar.inc(1);
        if lines && !quiet {
            say(&format!("{} of {pictures}: {name}, {:.0} s", bar.position(), bar.elapsed().as_secs_f64()));
        }
        Ok(output.picture)
    };
    let mut alone: Option<Picture> = None;
    let mut rows = Vec::new();
    for shown in &script.shown {
        let reference = inside(&shown.image)?;
        files.borrow_mut().add(
            &folder.join(format!("reference-{}.png", dashed(&shown.style))),
            &encode_png(&reference, &[]),
        )?;
        let mut row =
            Row { caption: format!("{}: {}", shown.style, shown.content), pictures: vec![reference] };
        for method in METHODS {
            if let (None, Some(done)) = (method.inject, &alone) {
                row.pictures.push(done.clone());
                continue;
            }
            let name = match method.inject {
                None => method.name.to_owned(),
                Some(_) => format!("{}-{}", dashed(&shown.style), method.name),
            };
            let picture = paint_one(&name, &request(script, shown, method))?;
            if method.inject.is_none() {
                alone = Some(picture.clone());
            }
            row.pictures.push(picture);
        }
        rows.push(row);
    }
    let mut parts = vec![Part {
        title: format!("\"{}\", seed {}, in the style of each reference", script.prompt, script.seed),
        first: "reference",
        columns: METHODS.iter().map(|m| column(m.heading, m.about)).collect(),
        rows,
    }];
    parts.extend(guided::parts(script, &mut paint_one)?);
    bar.finish_and_clear();
    let sheet = sheet(&parts).ok_or_else(|| Error::Internal("the sheet has no pictures".into()))?;
    let path = folder.join("sheet.png");
    let mut files = files.into_inner();
    files.add(&path, &encode_png(&sheet, &[]))?;
    if stop.load(Ordering::Relaxed) {
        return Err(Error::Cancelled);
    }
    files.finish()?;
    Ok(path)
}

/// A picture of the embedded model.
fn inside(path: &str) -> Result<Picture, Error> {
    let bytes = embedded::file(path)
        .ok_or_else(|| Error::Internal(format!("{path} is not in the embedded model")))?;
    Ok(Picture::decode(bytes, path)?)
}

fn column(heading: &str, about: &str) -> Column {
    Column { heading: heading.to_owned(), about: about.to_owned() }
}

fn plain(script: &Script, prompt: String) -> Request {
    Request { prompt, seed: Some(script.seed), ..Request::default() }
}

fn request(script: &Script, shown: &Shown, method: &Method) -> Request {
    let mut request = plain(script, script.prompt.clone());
    if let Some(preset) = method.inject {
        let mut reference = Reference::new(Path::new("embedded").join(&shown.image));
        reference.inject = Inject::Preset(preset);
        reference.subtract = method.subtract.then(|| Subtract { text: shown.content.clone(), scale: None });
        request.references.push(reference);
    }
    request
}

fn dashed(text: &str) -> String {
    text.chars().map(|c| if c.is_alphanumeric() { c } else { '-' }).collect()
}
