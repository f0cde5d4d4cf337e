//! What the embedded model does by its card's measures, in the program itself, as a table: `cargo bench -p instantstyle-engine
//! --bench figures [-- PICTURES] [--seed N] [--references FOLDER] [JSON…]`. Each JSON object is a row: the fields of the request
//! that it sets, e.g. '{"sampler": "euler_a", "steps": 20}'; without one, the card's defaults in f32, bf16 and int8.
//!
//! FOLDER holds the pictures that `training/references.py` draws, whose contents and styles are those of the card's own
//! figures; without it the six references inside the program take turns.

mod painting;

use instantstyle_engine::embedded;
use painting::{Judge, names, paint};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A picture to take the style from: where it is, and the places of its content and style in the card's lists.
struct Shown {
    image: String,
    content: usize,
    style: usize,
}

/// What is counted over the pictures of a row.
#[derive(Default)]
struct Counts {
    content: usize,
    style: usize,
    leak: usize,
    seconds: f64,
}

/// The ways in which the model is used: a prompt that names the style, or a reference through the whole adapter or the style block.
const USES: [&str; 3] = ["named", "all", "style"];

fn references(folder: Option<&Path>, contents: &[String], styles: &[String]) -> Vec<Shown> {
    let place =
        |list: &[String], name: &str| list.iter().position(|n| n == name).expect("a name of the card");
    let (list, folder) = match folder {
        Some(folder) => {
            let text = std::fs::read_to_string(folder.join("references.json"))
                .expect("training/references.py wrote it");
            (serde_json::from_str(&text).expect("JSON"), std::path::absolute(folder).expect("a path"))
        }
        None => (embedded::card()["demo"]["references"].clone(), PathBuf::from("embedded")),
    };
    let text = |v: &Value| v.as_str().expect("text").to_owned();
    let shown = |r: &Value| Shown {
        image: folder.join(text(&r["image"])).to_string_lossy().into_owned(),
        content: place(contents, text(&r["content"]).trim_start_matches("a ")),
        style: place(styles, &text(&r["style"])),
    };
    list.as_array().expect("a list").iter().map(shown).collect()
}

fn main() {
    let (mut pictures, mut seed, mut folder, mut rows, mut uses) =
        (500, 1_000_000, None, Vec::new(), Vec::new());
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--bench" => {}
            "--seed" => seed = args.next().and_then(|a| a.parse().ok()).expect("--seed N"),
            "--references" => folder = args.next().map(PathBuf::from),
            name if USES.contains(&name) => uses.push(arg),
            json if json.starts_with('{') => rows.push(serde_json::from_str::<Value>(json).expect("JSON")),
            number => pictures = number.parse().expect("a number of pictures"),
        }
    }
    if rows.is_empty() {
        rows = ["f32", "bf16", "int8"].map(|p| json!({ "precision": p })).to_vec();
    }
    if uses.is_empty() {
        uses = USES.map(str::to_owned).to_vec();
    }
    let (judge, contents, styles) = (Mutex::new(Judge::open()), names("contents"), names("styles"));
    let shown = references(folder.as_deref(), &contents, &styles);
    println!("{pictures} pictures a row, seeds from {seed}, {} references\n", shown.len());
    println!("| request | use | content % | style % | leak % | denoising, s |\n|---|---|---|---|---|---|");
    let of = |count: usize| 100.0 * count as f64 / pictures as f64;
    for row in &rows {
        for using in &uses {
            // Threads paint whole pictures, each alone: small networks gain little from more.
            let (next, counts) = (AtomicUsize::new(0), Mutex::new(Counts::default()));
            let work = || {
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    if i >= pictures {
                        return;
                    }
                    let (reference, mut changes) = (&shown[i % shown.len()], row.clone());
                    let named = using == "named";
                    // A content other than the reference's.
                    let wanted = match i % contents.len() {
                        c if !named && c == reference.content => (c + 1) % contents.len(),
                        c => c,
                    };
                    let style = if named { (i / 10 + i) % styles.len() } else { reference.style };
                    let mut prompt = format!("a {}", contents[wanted]);
                    if named {
                        prompt += &format!(", in {} style", styles[style]);
                    } else {
                        let mut reference = json!({ "image": reference.image, "inject": using });
                        for (key, value) in row["reference"].as_object().into_iter().flatten() {
                            reference[key] = value.clone();
                        }
                        changes["references"] = json!([reference]);
                    }
                    changes.as_object_mut().expect("an object").remove("reference");
                    let (output, seconds) = paint(&prompt, seed + i as u64, &changes);
                    let look = judge.lock().expect("sound").look(&output.picture);
                    let mut counts = counts.lock().expect("sound");
                    counts.content += usize::from(look.content() == wanted);
                    counts.style += usize::from(look.style() == style);
                    counts.leak += usize::from(!named && look.shows(reference.content));
                    counts.seconds += seconds;
                }
            };
            std::thread::scope(|threads| {
                for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
                    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a pool");
                    threads.spawn(move || pool.install(work));
                }
            });
            let c = counts.into_inner().expect("sound");
            let leak = if using == "named" { String::new() } else { format!("{:.1}", of(c.leak)) };
            println!(
                "| {row} | {using} | {:.1} | {:.1} | {leak} | {:.2} |",
                of(c.content),
                of(c.style),
                c.seconds / pictures as f64
            );
        }
    }
}
