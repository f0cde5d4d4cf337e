//! Tiles, and the memory plan: what it says, and when it refuses.

use std::process::{Command, Output};
use testkit::fixtures;

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_instantstyle")).args(arguments).output().expect("the program starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A tiny SDXL whose tiles are 64 × 64 px.
fn generate(more: &[&str]) -> Output {
    let model = fixtures().join("models/sdxl-a").to_string_lossy().into_owned();
    run(&[&["generate", "--model", &model, "--prompt", "a ship", "--steps", "1", "--quiet"], more].concat())
}

fn plan(more: &[&str]) -> serde_json::Value {
    let out = generate(&[more, &["--dry-run", "--json"]].concat());
    assert!(out.status.success(), "{}", text(&out.stderr));
    serde_json::from_slice(&out.stdout).expect("one JSON object")
}

#[test]
fn tiles_repeat_to_the_byte_on_any_number_of_threads() {
    let dir = tempfile::tempdir().expect("a folder");
    let at = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    let photo = fixtures().join("images/wide.png").to_string_lossy().into_owned();
    let picture = |name: &str, more: &[&str]| {
        let file = at(name);
        let size =
            ["--width", "136", "--height", "96", "--init", &photo, "--init-strength", "1", "--out", &file];
        let done = generate(&[&size, more].concat());
        assert!(done.status.success(), "{}", text(&done.stderr));
        std::fs::read(file).expect("a picture")
    };
    let tiled = picture("tiled.png", &["--vae-tiling", "on", "--threads", "1"]);
    assert_eq!(tiled, picture("two.png", &["--vae-tiling", "on", "--threads", "2"]));
    let whole = picture("whole.png", &["--vae-tiling", "off"]);
    assert_ne!(tiled, whole);
    assert_eq!(whole, picture("auto.png", &[]));
    // What was resolved is stored: on a machine with less memory, too, it is the same picture.
    let again = run(&["generate", "--job", &at("tiled.png"), "--out", &at("again.png"), "--quiet"]);
    assert!(again.status.success(), "{}", text(&again.stderr));
    assert_eq!(std::fs::read(at("again.png")).expect("a picture"), tiled);
}

#[test]
fn tiles_come_where_memory_asks_for_them() {
    let large = ["--width", "768", "--height", "768"];
    let with = |more: &[&str]| plan(&[&large, more].concat());
    let (much, little) = (with(&["--memory-gib", "1"]), with(&["--memory-gib", "0.06"]));
    assert_eq!(much["request"]["vae_tiling"], "off");
    assert_eq!(little["request"]["vae_tiling"], "on");
    let peak = |json: &serde_json::Value| json["memory"]["peak_bytes"].as_u64().expect("a number");
    assert!(peak(&little) < peak(&much));
    for json in [&much, &little] {
        assert_eq!(json["memory"]["fits"], true);
        let stages = json["memory"]["stages"].as_array().expect("a list");
        let names: Vec<&str> = stages.iter().filter_map(|s| s["name"].as_str()).collect();
        assert_eq!(names, ["encoding text", "denoising", "decoding"]);
    }
    assert!(with(&["--memory-gib", "0"])["memory"]["available_bytes"].is_null());
    // A picture of one tile has nothing to split.
    assert_eq!(
        plan(&["--width", "64", "--height", "64", "--memory-gib", "0.001"])["request"]["vae_tiling"],
        "off"
    );
    let shown = generate(&[&large[..], &["--dry-run", "--memory-gib", "0.06"]].concat());
    assert!(text(&shown.stdout).contains("in tiles"), "{}", text(&shown.stdout));
}

/// A small decoder for previews takes what decoding one picture by it takes.
#[test]
fn previews_are_planned_for() {
    let small = fixtures().join("models/vae-tiny").to_string_lossy().into_owned();
    let denoising = |more: &[&str]| {
        let size = ["--width", "768", "--height", "768", "--preview", "now.png"];
        let plan = plan(&[&size[..], more].concat());
        let stages = plan["memory"]["stages"].as_array().expect("a list").clone();
        let stage = stages.into_iter().find(|s| s["name"] == "denoising").expect("is a stage");
        (stage["own_bytes"].as_u64().expect("a number"), stage["mapped_bytes"].as_u64().expect("a number"))
    };
    let (without, with) = (denoising(&[]), denoising(&["--preview-decoder", &small]));
    // At least the picture as numbers and as bytes, and the decoder's file but its biases.
    assert!(with.0 >= without.0 + 768 * 768 * 3, "{without:?} {with:?}");
    let file = fixtures().join("models/vae-tiny/diffusion_pytorch_model.safetensors");
    let file = std::fs::metadata(file).expect("a file").len();
    let mapped = with.1 - without.1;
    assert!(mapped > file / 2 && mapped <= file, "{mapped} of {file}");
}

#[test]
fn what_does_not_fit_is_refused_before_loading() {
    let dir = tempfile::tempdir().expect("a folder");
    let out = dir.path().join("x.png").to_string_lossy().into_owned();
    let large = ["--width", "768", "--height", "768", "--out", &out];
    for (more, status, words) in [
        (
            vec!["--vae-tiling", "off", "--memory-gib", "0.06"],
            4,
            vec!["decoding", "--vae-tiling on", "--memory-gib 0"],
        ),
        (vec!["--memory-gib", "0.02"], 4, vec!["memory", "--width", "--memory-gib 0"]),
        (vec!["--memory-gib", "-1"], 2, vec!["--memory-gib", "GiB"]),
        (vec!["--memory-gib", "nan"], 2, vec!["--memory-gib", "GiB"]),
        (vec!["--memory-gib", "much"], 2, vec!["--memory-gib"]),
        (vec!["--vae-tiling", "yes"], 2, vec!["vae_tiling", "auto, on, off"]),
    ] {
        let done = generate(&[&large[..], &more].concat());
        let error = text(&done.stderr);
        assert_eq!(done.status.code(), Some(status), "{more:?}: {error}");
        let line = error.lines().find(|l| l.starts_with("error: ")).expect("an error");
        for word in words {
            assert!(line.contains(word), "{more:?}: no {word:?} in {line}");
        }
        assert!(!std::path::Path::new(&out).exists());
    }
}
