//! The top of the ladder: whole runs against diffusers (`testkit/recipe`), in f32, for the same request and seed.

use instantstyle_engine::picture::Picture;
use instantstyle_engine::plan::Plan;
use instantstyle_engine::request::Request;
use instantstyle_engine::{Event, Observer, generate};
use instantstyle_nets::weights::Weights;
use testkit::{distance, fixtures, levels, tolerance};

struct Quiet;

impl Observer for Quiet {
    fn event(&mut self, _: Event) {}
}

/// Runs one case; its worst figures, or what went wrong. Cases of large pictures have `latents alone`.
fn run(case: &str, alone: bool) -> Result<(f64, u8, f64), String> {
    let folder = fixtures().join("cases").join(case);
    let request = Request::from_file(&folder.join("job.json")).map_err(|e| e.to_string())?;
    let plan = Plan::resolve(&request).map_err(|e| e.to_string())?;
    let outputs = generate(&plan, &mut Quiet).map_err(|e| e.to_string())?;
    let want = Weights::open(folder.join("expected.safetensors")).map_err(|e| e.to_string())?;
    let latents = want.get("latents").ok_or("no latents")?.to_f32();
    let per = latents.len() / outputs.len();
    let (mut worst, mut most, mut mean) = (0f64, 0u8, 0f64);
    for (i, output) in outputs.iter().enumerate() {
        if output.latents.len() != per {
            return Err(format!("{} latents, expected {per}", output.latents.len()));
        }
        worst = worst.max(distance(&output.latents, &latents[i * per..(i + 1) * per]));
        if alone {
            continue;
        }
        let name =
            if outputs.len() == 1 { "expected.png".to_owned() } else { format!("expected-{}.png", i + 1) };
        let picture = Picture::open(folder.join(name)).map_err(|e| e.to_string())?;
        let (m, a) = levels(&output.picture.rgb, &picture.rgb);
        (most, mean) = (most.max(m), mean.max(a));
    }
    Ok((worst, most, mean))
}

#[test]
fn whole_runs_equal_diffusers() {
    let index = std::fs::read_to_string(fixtures().join("cases/index.json"))
        .expect("the fixtures are part of the project");
    let index: serde_json::Value = serde_json::from_str(&index).expect("the index is JSON");
    let only = std::env::var("CASE").unwrap_or_default();
    let (mut failed, mut n, mut worst) = (Vec::new(), 0, (0f64, 0u8, 0f64));
    for case in index.as_array().expect("a list") {
        let name = case["name"].as_str().expect("a name");
        if !name.contains(&only) {
            continue;
        }
        n += 1;
        let alone = case["features"].as_array().is_some_and(|f| f.iter().any(|f| f == "latents alone"));
        match run(name, alone) {
            Ok((latents, most, mean)) => {
                worst = (worst.0.max(latents), worst.1.max(most), worst.2.max(mean));
                if latents > tolerance::LATENTS
                    || most > tolerance::LEVELS_MOST
                    || mean > tolerance::LEVELS_MEAN
                {
                    failed.push(format!(
                        "{name}: latents {latents:.1e}, levels {most} at most, {mean:.3} on average"
                    ));
                }
            }
            Err(e) => failed.push(format!("{name}: {e}")),
        }
    }
    assert!(n > 0, "no cases");
    println!(
        "{n} cases; worst: latents {:.1e}, levels {} at most, {:.3} on average",
        worst.0, worst.1, worst.2
    );
    assert!(failed.is_empty(), "{} of {n} cases differ:\n{}", failed.len(), failed.join("\n"));
}
