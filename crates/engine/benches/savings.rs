//! What each way to spend less does to the embedded model's pictures, as a table: `cargo bench -p instantstyle-engine
//! --bench savings [-- PICTURES]`. Content and style are what the judge of the card sees in pictures whose prompts name
//! both; distances are from the same seeds' pictures without it. Times are those of the thread on the processor while it
//! denoises, so that what else the machine does counts little.

mod painting;

use instantstyle_engine::Output;
use painting::{Judge, names, paint};
use serde_json::json;

/// What is counted over the pictures of a row.
#[derive(Default)]
struct Row {
    content: usize,
    style: usize,
    seconds: f64,
    latents: f64,
    levels: f64,
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
        ("cross_freeze 0.8", json!({ "cross_freeze": 0.8 })),
        ("cross_freeze 0.6", json!({ "cross_freeze": 0.6 })),
        ("cross_freeze 0.4", json!({ "cross_freeze": 0.4 })),
        ("token_merging 0.25", json!({ "token_merging": 0.25 })),
        ("token_merging 0.5", json!({ "token_merging": 0.5 })),
        ("guidance_end 0.8, deep_cache 2", json!({ "guidance_end": 0.8, "deep_cache": 2 })),
        ("cross_freeze 0.8, deep_cache 2", json!({ "cross_freeze": 0.8, "deep_cache": 2 })),
        ("--fast safe", json!({ "fast": "safe" })),
        ("half of the steps", json!({ "steps": 10 })),
    ];
    // Each picture on one thread, whose time is measured.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a pool");
    pool.install(|| {
        let mut plain: Vec<Output> = Vec::new();
        let mut whole_s = 0.0;
        println!(
            "{wanted} pictures a row; distances are relative (L2) of the latents and mean levels of the picture\n"
        );
        println!("| | content % | style % | denoising, s | of the whole | latents | levels |\n|---|---|---|---|---|---|---|");
        for (name, changes) in settings {
            let mut row = Row::default();
            for (i, &(c, s)) in prompts.iter().enumerate() {
                let prompt = format!("a {}, in {} style", contents[c], styles[s]);
                let (output, seconds) = paint(&prompt, 1000 + i as u64, &changes);
                let look = judge.look(&output.picture);
                row.content += usize::from(look.content() == c);
                row.style += usize::from(look.style() == s);
                row.seconds += seconds;
                if let Some(plain) = plain.get(i) {
                    row.latents += testkit::distance(&output.latents, &plain.latents);
                    row.levels += testkit::levels(&output.picture.rgb, &plain.picture.rgb).1;
                } else {
                    plain.push(output);
                }
            }
            let n = wanted as f64;
            if whole_s == 0.0 {
                whole_s = row.seconds;
            }
            println!(
                "| {name} | {:.1} | {:.1} | {:.3} | {:.2} | {:.3} | {:.1} |",
                100.0 * row.content as f64 / n,
                100.0 * row.style as f64 / n,
                row.seconds / n,
                row.seconds / whole_s,
                row.latents / n,
                row.levels / n
            );
        }
    });
}
