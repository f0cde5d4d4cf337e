//! Two passes: the same as by hand, and how bad requests of them end.

use std::process::{Command, Output};
use testkit::fixtures;

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_instantstyle")).args(arguments).output().expect("the program starts")
}

fn fixture(path: &str) -> String {
    fixtures().join(path).to_string_lossy().into_owned()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn generate(more: &[&str]) -> Output {
    let (model, adapter) = (fixture("models/sdxl-a"), fixture("adapters/sdxl-a-base.safetensors"));
    let (encoder, mask) = (fixture("models/vit-b"), fixture("images/mask-left.png"));
    let (style, lora) = (fixture("images/rings.png"), fixture("loras/sdxl-a-kohya.safetensors"));
    let all = [
        "generate",
        "--model",
        &model,
        "--prompt",
        "a ship",
        "--quiet",
        "--adapter",
        &adapter,
        "--image-encoder",
        &encoder,
        "--reference",
        &style,
        "--mask",
        &mask,
        "--end",
        "0.8",
        "--lora",
        &lora,
        "--guidance-rescale",
        "0.3",
    ];
    run(&[&all, more].concat())
}

fn made(more: &[&str]) {
    let done = generate(more);
    assert!(done.status.success(), "{more:?}: {}", text(&done.stderr));
}

/// With a reference, its mask and window, and a LoRA, which act in both passes.
#[test]
fn two_passes_equal_those_by_hand() {
    let dir = tempfile::tempdir().expect("a folder");
    let at = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    let latents = |name: &str| std::fs::read(at(name)).expect("latents");
    let small = ["--width", "64", "--height", "48", "--steps", "4"];
    let with = |size: &[&str], more: &[&str]| made(&[size, more].concat());
    let save = |name: &str| (at(&format!("{name}.png")), at(&format!("{name}.safetensors")));

    let (both, both_latents) = save("both");
    let hires = ["--hires", "1.5", "--hires-strength", "0.6", "--hires-steps", "5"];
    with(
        &small,
        &[&hires[..], &["--count", "2", "--seed", "11", "--out", &both, "--save-latents", &both_latents]]
            .concat(),
    );
    let (first, _) = save("first");
    with(&small, &["--seed", "12", "--out", &first]);
    let (second, second_latents) = save("second");
    let large = ["--width", "96", "--height", "72", "--steps", "5", "--seed", "12"];
    let init =
        ["--init", &first, "--init-strength", "0.6", "--out", &second, "--save-latents", &second_latents];
    with(&large, &init);
    let (pair, alone) = (latents("both.safetensors"), latents("second.safetensors"));
    let values = |bytes: &[u8], n: usize| bytes[bytes.len() - n..].to_vec();
    let n = 4 * 12 * 9 * 4;
    assert_eq!(values(&pair, n), values(&alone, n), "the second picture's latents, bit for bit");
    let rgb = |name: &str| instantstyle_engine::picture::Picture::open(at(name)).expect("a picture").rgb;
    assert_eq!(rgb("both-2.png"), rgb("second.png"));

    // A stored request repeats its picture.
    let again = run(&[
        "generate",
        "--job",
        &at("both-2.png"),
        "--out",
        &at("again.png"),
        "--quiet",
        "--threads",
        "1",
    ]);
    assert!(again.status.success(), "{}", text(&again.stderr));
    assert_eq!(latents("again.png"), latents("both-2.png"));

    // The latents enlarged are others, and so are the two ways.
    for (name, way) in [("bilinear.png", "latent"), ("nearest.png", "latent-nearest")] {
        with(&small, &[&hires[..], &["--seed", "12", "--hires-upscale", way, "--out", &at(name)]].concat());
    }
    assert!(rgb("bilinear.png") != rgb("nearest.png") && rgb("bilinear.png") != rgb("second.png"));
}

/// A ControlNet acts in both passes: its map is made of the picture anew at each size, its window is one of each pass's own.
#[test]
fn controls_act_in_both_passes() {
    let dir = tempfile::tempdir().expect("a folder");
    let at = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    let (net, photo) = (fixture("controls/sdxl-a.safetensors"), fixture("images/blocks.png"));
    let control = [
        "--control",
        &net,
        "--control-image",
        &photo,
        "--control-preprocess",
        "canny",
        "--control-scale",
        "0.8",
        "--control-end",
        "0.7",
    ];
    let small = ["--width", "64", "--height", "48", "--steps", "4"];
    made(&[&small[..], &control, &["--hires", "2", "--out", &at("both.png")]].concat());
    made(&[&small[..], &control, &["--out", &at("first.png")]].concat());
    let large = ["--width", "128", "--height", "96", "--steps", "4"];
    let first = at("first.png");
    let start = ["--init", &first, "--init-strength", "0.5"];
    made(&[&large[..], &start, &control, &["--out", &at("second.png")]].concat());
    made(&[&large[..], &start, &["--out", &at("without.png")]].concat());
    let rgb = |name: &str| instantstyle_engine::picture::Picture::open(at(name)).expect("a picture").rgb;
    assert_eq!(rgb("both.png"), rgb("second.png"));
    assert_ne!(rgb("both.png"), rgb("without.png"));
}

/// What the mask leaves out stays in both passes.
#[test]
fn inpainting_in_two_passes() {
    let dir = tempfile::tempdir().expect("a folder");
    let at = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    let (photo, mask) = (fixture("images/blocks.png"), fixture("images/mask-disc.png"));
    let start = ["--init", &photo, "--init-mask", &mask, "--init-blend-px", "2"];
    let size = ["--width", "64", "--height", "64", "--steps", "4"];
    made(&[&size[..], &start, &["--hires", "2", "--out", &at("both.png")]].concat());
    made(&[&size[..], &start, &["--out", &at("first.png")]].concat());
    let first = at("first.png");
    let again = ["--init", &first, "--init-mask", &mask, "--init-blend-px", "2", "--init-strength", "0.5"];
    made(
        &[&["--width", "128", "--height", "128", "--steps", "4"], &again[..], &["--out", &at("second.png")]]
            .concat(),
    );
    let rgb = |name: &str| instantstyle_engine::picture::Picture::open(at(name)).expect("a picture").rgb;
    assert_eq!(rgb("both.png"), rgb("second.png"));
}

#[test]
fn passes_that_cannot_be_are_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    let out = dir.path().join("x.png").to_string_lossy().into_owned();
    let (photo, mask) = (fixture("images/blocks.png"), fixture("images/mask-disc.png"));
    let masked = ["--init", &photo, "--init-mask", &mask, "--hires-upscale", "latent"];
    for (more, words) in [
        (vec!["--hires", "0.5"], vec!["hires.scale", "1 to 8"]),
        (vec!["--hires", "NaN"], vec!["hires.scale"]),
        (vec!["--hires", "2", "--hires-width", "128"], vec!["hires.scale", "one or the other"]),
        (vec!["--hires-width", "100"], vec!["hires.width", "multiple of 8"]),
        (vec!["--hires-height", "32"], vec!["hires.width", "less than the first pass"]),
        (vec!["--hires", "2", "--hires-strength", "0"], vec!["hires.strength", "no step"]),
        (vec!["--hires", "2", "--hires-strength", "0.1"], vec!["hires.strength", "more steps"]),
        (vec!["--hires", "2", "--hires-upscale", "lanczos"], vec!["hires.upscale", "latent-nearest"]),
        (masked.to_vec(), vec!["hires.upscale", "pixel"]),
    ] {
        let done = generate(
            &[&["--width", "64", "--height", "64", "--steps", "4", "--out", &out], &more[..]].concat(),
        );
        let error = text(&done.stderr);
        assert_eq!(done.status.code(), Some(2), "{more:?}: {error}");
        let line = error.lines().find(|l| l.starts_with("error: ")).expect("an error");
        for word in words {
            assert!(line.contains(word), "{more:?}: no {word:?} in {line}");
        }
        assert!(!std::path::Path::new(&out).exists());
    }
}
