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

/// ControlNets act in the first 0.6 of the calls, and two of half the strength do what one does.
#[test]
fn controls_act_for_a_part_of_it() {
    let dir = tempfile::tempdir().expect("a folder");
    let out = dir.path().join("x.png").to_string_lossy().into_owned();
    let (model, control) = (fixture("models/sdxl-a"), fixture("controls/sdxl-a.safetensors"));
    let image = fixture("images/rings.png");
    let always = ["--model", &model, "--prompt", "a", "--steps", "5", "--width", "128", "--height", "128"];
    let always = [&always[..], &["--hidiffusion", "on", "--out", &out]].concat();
    let used = |scale| vec!["--control", &control, "--control-image", &image, "--control-scale", scale];
    let planned = run(&[&always[..], &used("0.8"), &["--dry-run"]].concat(), "1");
    assert!(text(&planned.stdout).contains("calls 1 to 3 of 5"), "{}", text(&planned.stdout));
    let made = |more: &[&str]| {
        let done = run(&[&always[..], more].concat(), "1");
        assert!(done.status.success(), "{}", text(&done.stderr));
        instantstyle_engine::picture::Picture::open(&out).expect("a picture").rgb
    };
    let (none, one) = (made(&[]), made(&used("0.8")));
    let both = made(&[used("0.4"), used("0.4")].concat());
    assert_ne!(none, one);
    let apart = one.iter().zip(&both).map(|(a, b)| a.abs_diff(*b)).max();
    assert!(apart <= Some(2), "{apart:?} levels apart");
    // Without any strength nothing changes.
    assert_eq!(made(&used("0")), none);
}

#[test]
fn what_does_not_fit_is_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    let out = dir.path().join("x.png").to_string_lossy().into_owned();
    let model = fixture("models/sdxl-a");
    let (adapter, encoder) = (fixture("adapters/sdxl-a-base.safetensors"), fixture("models/vit-b"));
    let (style, mask) = (fixture("images/rings.png"), fixture("images/mask-left.png"));
    let control = fixture("controls/sdxl-a.safetensors");
    let controlled = ["--control", &control, "--control-image", &style];
    let (other, others) = (fixture("models/sd15-a"), fixture("controls/sd15-a"));
    let masked = ["--reference", &style, "--adapter", &adapter, "--image-encoder", &encoder, "--mask", &mask];
    let large = ["--width", "128", "--height", "128"];
    for (more, words) in [
        (vec!["--width", "64", "--height", "64"], vec!["larger than 64 x 64", "at 64 x 64"]),
        (vec!["--width", "320", "--height", "128"], vec!["beyond 256 x 256", "320 x 128"]),
        (vec!["--width", "120", "--height", "128"], vec!["multiples of 64", "raunet"]),
        ([&large[..], &["--hires", "2"]].concat(), vec!["hires"]),
        ([&large[..], &["--deep-cache", "2"]].concat(), vec!["deep_cache"]),
        ([&large[..], &masked].concat(), vec!["references[0].mask"]),
        (
            [&large[..], &controlled, &["--init", &style, "--init-mask", &mask]].concat(),
            vec!["controls", "init.mask"],
        ),
        (
            [&large[..], &["--model", &other, "--control", &others, "--control-image", &style]].concat(),
            vec!["controls", "Stable Diffusion 1.5", "XL only"],
        ),
        ([&large[..], &["--hidiffusion", "yes"]].concat(), vec!["off, on, raunet"]),
    ] {
        let first = if more.contains(&"--hidiffusion") { &[][..] } else { &["--hidiffusion", "on"] };
        let always = ["--prompt", "a", "--steps", "2", "--out", &out];
        let usual = if more.contains(&"--model") { &[][..] } else { &["--model", &model] };
        let done = run(&[&always[..], usual, first, &more].concat(), "1");
        let error = text(&done.stderr);
        assert_eq!(done.status.code(), Some(2), "{more:?}: {error}");
        let line = error.lines().find(|l| l.starts_with("error: ")).expect("an error");
        for word in [vec!["hidiffusion"], words].concat() {
            assert!(line.contains(word), "{more:?}: no {word:?} in {line}");
        }
        assert!(!std::path::Path::new(&out).exists());
    }
}
