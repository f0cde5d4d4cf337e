//! HiDiffusion from the command line: what is stored repeats the picture, and what does not fit is refused.

use std::process::{Command, Output};
use testkit::fixtures;

fn fixture(path: &str) -> String {
    fixtures().join(path).to_string_lossy().into_owned()
}

fn run(arguments: &[&str], threads: &str) -> Output {
    let mut program = Command::new(env!("CARGO_BIN_EXE_instantstyle"));
    program.arg("generate").args(arguments).args(["--quiet", "--threads", threads]);
    program.output().expect("the program starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn stored_requests_repeat_it() {
    let dir = tempfile::tempdir().expect("a folder");
    let at = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    let model = fixture("models/sdxl-a");
    let small =
        ["--model", &model, "--prompt", "a ship", "--steps", "3", "--width", "128", "--height", "128"];
    let made = |more: &[&str], threads: &str| {
        let done = run(more, threads);
        assert!(done.status.success(), "{}", text(&done.stderr));
    };
    let bytes = |name: &str| std::fs::read(at(name)).expect("a picture");
    made(&[&small[..], &["--hidiffusion", "on", "--out", &at("on.png")]].concat(), "1");
    made(&["--job", &at("on.png"), "--out", &at("again.png")], "2");
    assert_eq!(bytes("on.png"), bytes("again.png"));
    // Off is what it was, and on is not.
    let rgb = |name: &str| instantstyle_engine::picture::Picture::open(at(name)).expect("a picture").rgb;
    made(&[&small[..], &["--out", &at("plain.png")]].concat(), "1");
    made(&[&small[..], &["--hidiffusion", "off", "--out", &at("off.png")]].concat(), "1");
    made(&[&small[..], &["--hidiffusion", "raunet", "--out", &at("raunet.png")]].concat(), "1");
    assert_eq!(rgb("plain.png"), rgb("off.png"));
    assert!(rgb("plain.png") != rgb("on.png") && rgb("raunet.png") != rgb("on.png"));
    // Pictures of one request are what each is alone: windows follow the picture's own seed.
    made(
        &[&small[..], &["--hidiffusion", "on", "--seed", "41", "--count", "2", "--out", &at("two.png")]]
            .concat(),
        "2",
    );
    assert_eq!(rgb("two-2.png"), rgb("on.png"));
}

#[test]
fn plans_tell_it() {
    let model = fixture("models/sdxl-a");
    let done = run(
        &[
            "--model",
            &model,
            "--prompt",
            "a",
            "--steps",
            "50",
            "--width",
            "128",
            "--height",
            "128",
            "--hidiffusion",
            "on",
            "--dry-run",
        ],
        "1",
    );
    let said = text(&done.stdout);
    assert!(said.contains("first 20 of 50 model calls, attention in windows"), "{said}");
}

#[test]
fn what_does_not_fit_is_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    let out = dir.path().join("x.png").to_string_lossy().into_owned();
    let model = fixture("models/sdxl-a");
    let (adapter, encoder) = (fixture("adapters/sdxl-a-base.safetensors"), fixture("models/vit-b"));
    let (style, mask) = (fixture("images/rings.png"), fixture("images/mask-left.png"));
    let control = fixture("controls/sdxl-a.safetensors");
    let masked = ["--reference", &style, "--adapter", &adapter, "--image-encoder", &encoder, "--mask", &mask];
    let large = ["--width", "128", "--height", "128"];
    for (more, words) in [
        (vec!["--width", "64", "--height", "64"], vec!["larger than 64 x 64", "at 64 x 64"]),
        (vec!["--width", "320", "--height", "128"], vec!["beyond 256 x 256", "320 x 128"]),
        (vec!["--width", "120", "--height", "128"], vec!["multiples of 64", "raunet"]),
        ([&large[..], &["--hires", "2"]].concat(), vec!["hires"]),
        ([&large[..], &["--deep-cache", "2"]].concat(), vec!["deep_cache"]),
        ([&large[..], &masked].concat(), vec!["references[0].mask"]),
        ([&large[..], &["--control", &control, "--control-image", &style]].concat(), vec!["controls"]),
        ([&large[..], &["--hidiffusion", "yes"]].concat(), vec!["off, on, raunet"]),
    ] {
        let first = if more.contains(&"--hidiffusion") { &[][..] } else { &["--hidiffusion", "on"] };
        let always = ["--model", &model, "--prompt", "a", "--steps", "2", "--out", &out];
        let done = run(&[&always[..], first, &more].concat(), "1");
        let error = text(&done.stderr);
        assert_eq!(done.status.code(), Some(2), "{more:?}: {error}");
        let line = error.lines().find(|l| l.starts_with("error: ")).expect("an error");
        for word in [vec!["hidiffusion"], words].concat() {
            assert!(line.contains(word), "{more:?}: no {word:?} in {line}");
        }
        assert!(!std::path::Path::new(&out).exists());
    }
}
