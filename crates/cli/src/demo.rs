//! `instantstyle demo`: what the methods do, on the embedded model.

use crate::generate::write;
use crate::progress::Progress;
use crate::sheet::Sheet;
use clap::ArgMatches;
use indicatif::{ProgressBar, ProgressStyle};
use instantstyle_engine::picture::{Picture, write_png};
use instantstyle_engine::plan::Plan;
use instantstyle_engine::request::{Inject, Preset, Reference, Request, Subtract};
use instantstyle_engine::{Error, embedded, generate};
use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// The columns: name of the files, heading, explanation, and how the reference is used (`None`: not at all).
type Use = fn(&mut Reference, &str);
const COLUMNS: &[(&str, &str, &str, Option<Use>)] = &[
    ("none", "no reference", "the prompt alone", None),
    ("plain", "IP-Adapter", "everywhere", Some(|r, _| r.inject = Inject::Preset(Preset::All))),
    ("style", "InstantStyle", "style", Some(|r, _| r.inject = Inject::Preset(Preset::Style))),
    (
        "style-layout",
        "InstantStyle",
        "style+layout",
        Some(|r, _| r.inject = Inject::Preset(Preset::StyleLayout)),
    ),
    ("layout", "InstantStyle", "layout", Some(|r, _| r.inject = Inject::Preset(Preset::Layout))),
    (
        "subtract",
        "IP-Adapter",
        "less the content",
        Some(|r, content| {
            r.inject = Inject::Preset(Preset::All);
            r.subtract = Some(Subtract { text: content.to_owned(), scale: None });
        }),
    ),
    (
        "style-subtract",
        "InstantStyle",
        "style, less",
        Some(|r, content| {
            r.subtract = Some(Subtract { text: content.to_owned(), scale: None });
        }),
    ),
];

/// One reference of the model's card.
struct Shown {
    image: String,
    content: String,
    style: String,
}

/// Pixels between pictures.
const GAP: usize = 8;
/// Height of the headings.
const HEADING: usize = 52;

/// Runs the subcommand.
pub fn run(arguments: &ArgMatches, stop: Arc<AtomicBool>) -> Result<(), Error> {
    let folder: &PathBuf = arguments.get_one("out").expect("has a default");
    let card = embedded::card();
    let demo = &card["demo"];
    let prompt = demo["prompt"].as_str().unwrap_or("a house").to_owned();
    let seed = demo["seed"].as_u64().unwrap_or(42);
    let shown: Vec<Shown> = demo["references"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|r| {
            let text = |key: &str| r[key].as_str().map(str::to_owned);
            Some(Shown { image: text("image")?, content: text("content")?, style: text("style")? })
        })
        .collect();
    if shown.is_empty() {
        return Err(Error::Machine("this build has no embedded model to show".into()));
    }
    std::fs::create_dir_all(folder).map_err(|e| {
        Error::Machine(format!(
            "{}: cannot be made ({e}); choose another folder with --out",
            folder.display()
        ))
    })?;
    crate::output::check(&folder.join("sheet.png"))?;

    let quiet = arguments.get_flag("quiet");
    // Without a reference the picture is the same in every row: it is painted once.
    let bar = ProgressBar::new((shown.len() * (COLUMNS.len() - 1) + 1) as u64);
    let style = ProgressStyle::with_template("painting [{bar:40}] {pos}/{len} {elapsed} < {eta} {msg}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> "));
    let lines = !std::io::stderr().is_terminal() && !quiet;
    if quiet || lines {
        bar.set_draw_target(indicatif::ProgressDrawTarget::hidden());
    }
    let mut plain: Option<Picture> = None;
    let mut rows = Vec::new();
    for s in &shown {
        let mut row = Vec::new();
        for (name, _, _, set) in COLUMNS {
            let label = format!("{name}-{}", s.style.replace(' ', "-"));
            bar.set_message(label.clone());
            if let (None, Some(done)) = (set, &plain) {
                row.push(done.clone());
                continue;
            }
            let mut request = Request { prompt: prompt.clone(), seed: Some(seed), ..Request::default() };
            if let Some(set) = set {
                let mut reference = Reference::new(PathBuf::from("embedded").join(&s.image));
                set(&mut reference, &s.content);
                request.references.push(reference);
            }
            let plan = Plan::resolve(&request)?;
            let output = generate(&plan, &mut Progress::inner(stop.clone()))?.remove(0);
            let file = if set.is_none() { "none.png".to_owned() } else { format!("{label}.png") };
            write(&plan, 0, &output, &folder.join(file))?;
            if set.is_none() {
                plain = Some(output.picture.clone());
            }
            row.push(output.picture);
            bar.inc(1);
            if lines {
                eprintln!(
                    "{} of {}: {label}, {:.0} s",
                    bar.position(),
                    bar.length().unwrap_or(0),
                    bar.elapsed().as_secs_f64()
                );
            }
        }
        let bytes =
            embedded::file(&s.image).ok_or_else(|| Error::Internal(format!("{} is missing", s.image)))?;
        rows.push((Picture::decode(bytes, &s.image)?, row));
    }
    bar.finish_and_clear();

    let path = folder.join("sheet.png");
    let picture = sheet(&prompt, seed, &shown, &rows)
        .ok_or_else(|| Error::Internal("the sheet has no pictures".into()))?;
    write_png(&path, &picture, &[])?;
    crate::print(format!("{}\n", path.display()).as_bytes())
}

fn sheet(prompt: &str, seed: u64, shown: &[Shown], rows: &[(Picture, Vec<Picture>)]) -> Option<Picture> {
    let (w, h) = (rows.first()?.0.width, rows.first()?.0.height);
    let (cell_w, cell_h) = (w + GAP, h + GAP + 16);
    let title = 40;
    let mut sheet =
        Sheet::new(GAP + cell_w * (COLUMNS.len() + 1), title + HEADING + cell_h * rows.len() + GAP);
    let (black, grey) = ([20, 20, 20], [110, 110, 110]);
    sheet.text(&format!("\"{prompt}\", seed {seed}, in the style of each reference"), GAP, 14, 2, black);
    sheet.text("reference", GAP, title + 16, 1, black);
    for (i, (_, first, second, _)) in COLUMNS.iter().enumerate() {
        let x = GAP + cell_w * (i + 1);
        sheet.text(first, x, title + 16, 1, black);
        sheet.text(second, x, title + 30, 1, grey);
    }
    for (r, ((reference, pictures), s)) in rows.iter().zip(shown).enumerate() {
        let y = title + HEADING + cell_h * r;
        sheet.paste(reference, GAP, y, 1);
        sheet.text(&s.content, GAP, y + h + 4, 1, grey);
        for (i, picture) in pictures.iter().enumerate() {
            sheet.paste(picture, GAP + cell_w * (i + 1), y, 1);
        }
    }
    sheet.into_picture()
}
