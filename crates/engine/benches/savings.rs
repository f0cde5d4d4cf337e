//! What each way to spend less does to the embedded model's pictures, as a table: `cargo bench -p instantstyle-engine
//! --bench savings [-- PICTURES]`. Content and style are what the judge of the card sees in pictures whose prompts name
//! both; distances are from the same seeds' pictures without it.

#[path = "../tests/behaviour/judge.rs"]
#[allow(dead_code)]
mod judge;

use instantstyle_engine::plan::Plan;
use instantstyle_engine::request::Request;
use instantstyle_engine::{Event, Observer, Output, embedded, generate_timed};
use judge::Judge;
use serde_json::{Value, json};
use std::path::Path;

struct Quiet;

impl Observer for Quiet {
    fn event(&mut self, _: Event) {}
}

/// One picture and the seconds of its denoising.
fn paint(prompt: &str, seed: u64, changes: &Value) -> (Output, f64) {
    let mut job = json!({ "prompt": prompt, "seed": seed });
    for (key, value) in changes.as_object().expect("an object") {
        job[key] = value.clone();
    }
    let request = Request::from_json(&job.to_string(), Path::new(".")).expect("a sound request");
    let plan = Plan::resolve(&request).expect("a plan");
    let (mut outputs, timings) = generate_timed(&plan, &mut Quiet).expect("a picture");
    (outputs.remove(0), timings.denoise_s)
}

fn names(list: &str) -> Vec<String> {
    let card = embedded::card();
    let list = card[list].as_array().expect("a list of the card");
    list.iter().map(|v| v.as_str().expect("a name").to_owned()).collect()
}

fn main() {
    let wanted = std::env::args().skip(1).find_map(|a| a.parse().ok()).unwrap_or(120usize);
    let (judge, contents, styles) = (Judge::open(), names("contents"), names("styles"));
    let prompts: Vec<(usize, usize)> = (0..wanted).map(|i| (i % 10, (i / 10 + i) % styles.len())).collect();
    let settings = [
        ("as it is", json!({})),
        ("guidance_end 0.8", json!({ "guidance_end": 0.8 })),
        ("guidance_end 0.6", json!({ "guidance_end": 0.6 })),
        ("guidance_end 0.4", json!({ "guidance_end": 0.4 })),
        ("deep_cache 2", json!({ "deep_cache": 2 })),
        ("deep_cache 3", json!({ "deep_cache": 3 })),
        ("deep_cache 5", json!({ "deep_cache": 5 })),
        ("guidance_end 0.8, deep_cache 2", json!({ "guidance_end": 0.8, "deep_cache": 2 })),
        ("half of the steps", json!({ "steps": 10 })),
    ];
    let mut plain: Vec<Output> = Vec::new();
    println!(
        "{wanted} pictures a row; distances are relative (L2) of the latents and mean levels of the picture\n"
    );
    println!("| | content % | style % | denoising, s | latents | levels |\n|---|---|---|---|---|---|");
    for (name, changes) in settings {
        let (mut content, mut style, mut seconds, mut far, mut levels) = (0, 0, 0.0, 0.0, 0.0);
        for (i, &(c, s)) in prompts.iter().enumerate() {
            let prompt = format!("a {}, in {} style", contents[c], styles[s]);
            let (output, s_of_picture) = paint(&prompt, 1000 + i as u64, &changes);
            let look = judge.look(&output.picture);
            content += usize::from(look.content() == c);
            style += usize::from(look.style() == s);
            seconds += s_of_picture;
            if let Some(plain) = plain.get(i) {
                far += testkit::distance(&output.latents, &plain.latents);
                levels += testkit::levels(&output.picture.rgb, &plain.picture.rgb).1;
            } else {
                plain.push(output);
            }
        }
        let n = wanted as f64;
        println!(
            "| {name} | {:.1} | {:.1} | {:.2} | {:.3} | {:.1} |",
            100.0 * content as f64 / n,
            100.0 * style as f64 / n,
            seconds / n,
            far / n,
            levels / n
        );
    }
}
