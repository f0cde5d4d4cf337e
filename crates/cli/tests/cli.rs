//! The program as people run it: what it writes, and how it ends on bad input.

use instantstyle_engine::picture::{Filter, Picture, encode_png, resize};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use testkit::fixtures;

fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_instantstyle"))
}

fn run(arguments: &[&str]) -> Output {
    program().args(arguments).output().expect("the program starts")
}

fn fixture(path: &str) -> String {
    fixtures().join(path).to_string_lossy().into_owned()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Ends with `status` and one line of error that holds every word; nothing else is in the folder afterwards.
fn refused(arguments: &[&str], status: i32, words: &[&str]) {
    let out = run(arguments);
    let error = text(&out.stderr);
    assert_eq!(out.status.code(), Some(status), "{arguments:?}: {error}");
    let line =
        error.lines().find(|l| l.starts_with("error: ")).unwrap_or_else(|| panic!("{arguments:?}: {error}"));
    for word in words {
        assert!(line.contains(word), "{arguments:?}: no {word:?} in {line}");
    }
    assert!(!error.contains("panicked"), "{error}");
}

fn folder() -> (tempfile::TempDir, impl Fn(&str) -> String) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().to_owned();
    (dir, move |name: &str| path.join(name).to_string_lossy().into_owned())
}

fn files(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .expect("a folder")
        .map(|e| e.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

#[test]
fn a_picture_repeats_itself_to_the_byte_on_any_number_of_threads() {
    let (_dir, at) = folder();
    let job = fixture("cases/sd15-s-euler/job.json");
    for (out, threads) in [("one.png", "1"), ("two.png", "2"), ("three.png", "3")] {
        let done = run(&["generate", "--job", &job, "--out", &at(out), "--threads", threads, "--quiet"]);
        assert!(done.status.success(), "{}", text(&done.stderr));
    }
    let again = run(&["generate", "--job", &at("one.png"), "--out", &at("again.png"), "--quiet"]);
    assert!(again.status.success(), "{}", text(&again.stderr));
    let bytes = |name: &str| std::fs::read(at(name)).expect("a picture");
    assert_eq!(bytes("one.png"), bytes("two.png"));
    assert_eq!(bytes("one.png"), bytes("three.png"));
    assert_eq!(bytes("one.png"), bytes("again.png"));
}

#[test]
fn several_pictures_equal_single_ones() {
    let (dir, at) = folder();
    let job = fixture("cases/sd15-s-euler/job.json");
    let latents = at("l.safetensors");
    let done = run(&[
        "generate",
        "--job",
        &job,
        "--count",
        "3",
        "--seed",
        "7",
        "--out",
        &at("x.png"),
        "--save-latents",
        &latents,
    ]);
    assert!(done.status.success(), "{}", text(&done.stderr));
    let done = run(&["generate", "--job", &job, "--seed", "8", "--out", &at("single.png")]);
    assert!(done.status.success(), "{}", text(&done.stderr));
    assert_eq!(std::fs::read(at("x-2.png")).unwrap(), std::fs::read(at("single.png")).unwrap());
    assert_eq!(files(dir.path()), ["l.safetensors", "single.png", "x-1.png", "x-2.png", "x-3.png"]);
}

/// No references, and references whose weights are all 0, give the plain model's output bit for bit.
#[test]
fn a_weight_of_zero_leaves_no_trace() {
    let (_dir, at) = folder();
    let model = fixture("models/sdxl-a");
    let adapter = fixture("adapters/sdxl-a-base.safetensors");
    let encoder = fixture("models/vit-b");
    let image = fixture("images/rings.png");
    let common = [
        "generate", "--model", &model, "--prompt", "a ship", "--width", "48", "--height", "64", "--steps",
        "3",
    ];
    let latents = |name: &str, more: &[&str]| {
        let (png, file) = (at(&format!("{name}.png")), at(name));
        let mut all = common.to_vec();
        all.extend_from_slice(&["--out", &png, "--save-latents", &file]);
        all.extend_from_slice(more);
        let done = run(&all);
        assert!(done.status.success(), "{}", text(&done.stderr));
        std::fs::read(file).expect("latents")
    };
    let plain = latents("plain", &[]);
    let reference = ["--reference", &image, "--adapter", &adapter, "--image-encoder", &encoder];
    let with = |more: &[&'static str]| [&reference[..], more].concat();
    assert_eq!(plain, latents("zero", &with(&["--weight", "0"])));
    assert_eq!(plain, latents("blocks", &with(&["--inject", "up_blocks.0=0,mid_block=0.0"])));
    assert_ne!(plain, latents("one", &with(&[])));
}

#[test]
fn what_the_mask_leaves_out_is_put_back_exactly() {
    let (_dir, at) = folder();
    let (photo, mask) = (fixture("images/blocks.png"), fixture("images/mask-disc.png"));
    let size = ["--width", "64", "--height", "64", "--steps", "3", "--seed", "5", "--quiet"];
    let model = fixture("models/sd15-a");
    let paint = |more: &[&str], out: &str| {
        let mut words = vec!["generate", "--model", &model, "--init", &photo, "--out", out];
        words.extend(size.iter().chain(more));
        let done = run(&words);
        assert!(done.status.success(), "{}", text(&done.stderr));
        Picture::open(Path::new(out)).expect("a picture")
    };
    let blended = paint(&["--init-mask", &mask, "--init-blend-px", "3"], &at("blended.png"));
    let photo_there = resize(&Picture::open(Path::new(&photo)).expect("a picture"), 64, 64, Filter::Lanczos);
    let white =
        resize(&Picture::open(Path::new(&mask)).expect("a picture"), 64, 64, Filter::Lanczos).to_grey();
    let (mut kept, mut changed) = (0, 0);
    for ((now, then), m) in blended.rgb.chunks(3).zip(photo_there.rgb.chunks(3)).zip(&white.l) {
        if *m < 128 {
            assert_eq!(now, then, "outside the mask");
            kept += 1;
        } else {
            changed += usize::from(now != then);
        }
    }
    assert!(kept > 500 && changed > 500, "{kept} kept, {changed} changed");
    // Without blending the autoencoder has touched everything.
    assert_ne!(paint(&["--init-mask", &mask], &at("plain.png")).rgb[..30], photo_there.rgb[..30]);
    // White everywhere repaints everything; a mask of another aspect is stretched, which is said.
    let white = Picture::new(24, 8, vec![255; 24 * 8 * 3]).expect("a picture");
    std::fs::write(at("white.png"), encode_png(&white, &[])).expect("a file");
    let all = paint(&["--init-mask", &at("white.png"), "--init-blend-px", "3"], &at("all.png"));
    let same = all.rgb.chunks(3).zip(photo_there.rgb.chunks(3)).filter(|(a, b)| a == b).count();
    assert!(same < 100, "{same} pixels of {} are as they were", 64 * 64);
    let words = ["--init", &photo, "--init-mask", &at("white.png"), "--width", "64", "--height", "64"];
    let said =
        run(&[&["generate", "--model", &model, "--steps", "2", "--out", &at("said.png")], &words[..]]
            .concat());
    assert!(
        said.status.success() && text(&said.stderr).contains("init.mask is 24 x 8 and will be stretched"),
        "{}",
        text(&said.stderr)
    );
    // Less strength stays nearer to the picture.
    let far =
        |p: &Picture| p.rgb.iter().zip(&photo_there.rgb).map(|(a, b)| u64::from(a.abs_diff(*b))).sum::<u64>();
    let (weak, strong) = (["--init-strength", "0.34"], ["--init-strength", "1"]);
    assert!(far(&paint(&weak, &at("weak.png"))) < far(&paint(&strong, &at("strong.png"))));
    // The picture carries the request, the start included.
    let again = run(&["generate", "--job", &at("blended.png"), "--out", &at("again.png"), "--quiet"]);
    assert!(again.status.success(), "{}", text(&again.stderr));
    let read = |name: &str| std::fs::read(at(name)).expect("a file");
    assert_eq!(read("again.png"), read("blended.png"));
}

#[test]
fn starts_that_cannot_be_are_refused() {
    let (_dir, at) = folder();
    let black = at("black.png");
    let grey = Picture::new(8, 8, vec![0; 192]).expect("a picture");
    std::fs::write(&black, encode_png(&grey, &[])).expect("a file");
    let photo = fixture("images/blocks.png");
    let (plain, inpaints) = (fixture("models/sd15-a"), fixture("models/sd15-i"));
    let out = at("out.png");
    for (model, more, status, words) in [
        (&plain, vec!["--init", &photo, "--init-strength", "0"], 2, vec!["init.strength", "no step"]),
        (
            &plain,
            vec!["--init", &photo, "--init-strength", "NaN"],
            2,
            vec!["init.strength", "number from 0 to 1"],
        ),
        (&plain, vec!["--init", &photo, "--init-strength", "0.01"], 2, vec!["init.strength", "more steps"]),
        (&plain, vec!["--init", &photo, "--init-strength", "1.5"], 2, vec!["init.strength", "from 0 to 1"]),
        (&plain, vec!["--init", &photo, "--init-strength", "-inf"], 2, vec!["init.strength", "from 0 to 1"]),
        (&plain, vec!["--init-strength", "0.5"], 2, vec!["init.image"]),
        (&plain, vec!["--init", "nowhere.png"], 3, vec!["init.image", "nowhere.png"]),
        (&plain, vec!["--init", &photo, "--init-mask", &black], 2, vec!["init.mask", "black"]),
        (&inpaints, vec![], 2, vec!["init.mask", "inpainting"]),
        (&inpaints, vec!["--init", &photo], 2, vec!["init.mask", "inpainting"]),
    ] {
        let mut words_of =
            vec!["generate", "--model", model, "--width", "64", "--height", "64", "--out", &out, "--quiet"];
        words_of.extend(more);
        refused(&words_of, status, &words);
        assert!(!Path::new(&out).exists());
    }
}

#[test]
fn bad_requests_end_with_2() {
    let model = fixture("models/sd15-a");
    let image = fixture("images/rings.png");
    let with = |more: &[&'static str]| {
        let all: Vec<&str> =
            ["generate", "--model", &model].into_iter().chain(more.iter().copied()).collect();
        all.into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    let refuse = |more: &[&'static str], words: &[&str]| {
        let all = with(more);
        refused(&all.iter().map(String::as_str).collect::<Vec<_>>(), 2, words);
    };
    refuse(&["--steps", "0"], &["steps", "1 to 1000"]);
    refuse(&["--steps", "100000"], &["steps", "1 to 1000"]);
    refuse(&["--guidance", "NaN"], &["guidance", "NaN"]);
    refuse(&["--guidance", "-1"], &["guidance", "0 to 100"]);
    refuse(&["--guidance", "inf"], &["guidance", "inf"]);
    refuse(&["--seed", "-4"], &["seed"]);
    refuse(&["--width", "63"], &["width", "multiple of 8"]);
    refuse(&["--sampler", "nope"], &["sampler", "euler_a"]);
    refuse(&["--adapter", "x"], &["--adapter", "--reference FILE"]);
    refused(&["generate", "--model", &model, "--reference", &image], 2, &["references[0].adapter"]);
    let adapter = fixture("adapters/sd15-a-base.safetensors");
    let plus = fixture("adapters/sd15-a-plus.safetensors");
    let encoder = fixture("models/vit-a");
    let given = ["generate", "--model", &model, "--reference", &image, "--image-encoder", &encoder];
    let more = |rest: &[&'static str], adapter: &str, words: &[&str]| {
        let all = [&given[..], &["--adapter", adapter], rest].concat();
        refused(&all, 2, words);
    };
    more(&["--subtract", "a rabbit"], &adapter, &["text_encoder", "is needed", "24"]);
    more(&["--subtract", "a rabbit"], &plus, &["subtract", "Plus"]);
    more(&["--inject", "up_blocks.9=1"], &adapter, &["up_blocks.9", "mid_block"]);
    more(&["--inject", "stil"], &adapter, &["inject", "style+layout"]);
    more(&["--weight", "inf"], &adapter, &["weight"]);
    more(&["--start", "0.9", "--end", "0.2"], &adapter, &["start"]);
}

#[test]
fn files_that_do_not_fit_end_with_3() {
    let (_dir, at) = folder();
    let (sd15, sdxl) = (fixture("models/sd15-a"), fixture("models/sdxl-a"));
    let image = fixture("images/rings.png");
    let (a15, axl) =
        (fixture("adapters/sd15-a-base.safetensors"), fixture("adapters/sdxl-a-base.safetensors"));
    let (vit_a, vit_b) = (fixture("models/vit-a"), fixture("models/vit-b"));
    let with = |model: &str, image: &str, adapter: &str, encoder: &str, words: &[&str]| {
        let all = [
            "generate",
            "--model",
            model,
            "--reference",
            image,
            "--adapter",
            adapter,
            "--image-encoder",
            encoder,
            "--out",
            &at("o.png"),
            "--steps",
            "2",
        ];
        refused(&all, 3, words);
    };
    with(&sd15, &image, &axl, &vit_a, &["another family", "Stable Diffusion 1.5"]);
    with(&sdxl, &image, &a15, &vit_a, &["another family", "Stable Diffusion XL"]);
    with(&sd15, &image, &a15, &vit_b, &["wrong image encoder", "28", "24"]);
    with(&sd15, "/no/such.png", &a15, &vit_a, &["no such file"]);
    refused(&["generate", "--model", "/no/such"], 3, &["no such file or folder"]);

    // Weights that are none.
    let good = std::fs::read(&a15).expect("an adapter");
    let write = |name: &str, bytes: &[u8]| {
        std::fs::write(at(name), bytes).expect("a file");
        at(name)
    };
    let header = |json: &str, data: usize| {
        let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(json.as_bytes());
        bytes.resize(bytes.len() + data, 0);
        bytes
    };
    let two = r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[2,6]}}"#;
    for (name, bytes) in [
        ("empty", Vec::new()),
        ("truncated", good[..good.len() / 2].to_vec()),
        ("huge", [&u64::MAX.to_le_bytes()[..], b"{}"].concat()),
        ("overlapping", header(two, 6)),
        ("dtype", header(r#"{"a":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}}"#, 4)),
        ("shape", header(r#"{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,4]}}"#, 4)),
        (
            "overflow",
            header(r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296,4],"data_offsets":[0,4]}}"#, 4),
        ),
        ("html", b"<!DOCTYPE html><html><body>Sign in</body></html>".to_vec()),
        // A pickle that calls os.system.
        ("code", b"\x80\x02cos\nsystem\nq\x00X\x02\x00\x00\x00lsq\x01\x85q\x02Rq\x03.".to_vec()),
    ] {
        let file = write(name, &bytes);
        with(&sd15, &image, &file, &vit_a, &[name]);
        refused(&["inspect", &file], 3, &[name]);
    }

    // Pictures that are none.
    let png = |width: u32, height: u32| {
        let mut bytes = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR".to_vec();
        bytes.extend_from_slice(&width.to_be_bytes());
        bytes.extend_from_slice(&height.to_be_bytes());
        bytes.extend_from_slice(&[8, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        bytes
    };
    for (name, bytes, word) in [
        ("zero.png", Vec::new(), "empty"),
        ("big.png", png(60_000, 60_000), "megapixels"),
        ("cut.png", png(64, 64), "cut.png"),
        ("page.png", b"<html></html>".to_vec(), "page.png"),
    ] {
        with(&sd15, &write(name, &bytes), &a15, &vit_a, &[name, word]);
    }
    assert!(!Path::new(&at("o.png")).exists(), "nothing is written after an error");
}

/// A download that broke off anywhere is told as such, and where.
#[test]
fn models_by_half_say_so() {
    let (dir, at) = folder();
    let (model, out) = (PathBuf::from(at("model")), at("out.png"));
    let weights = "unet/diffusion_pytorch_model.safetensors";
    let size = std::fs::metadata(fixtures().join("models/sd15-a").join(weights)).expect("a file").len();
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n";
    // What becomes of one part: gone, or other bytes.
    for (part, left, words) in [
        ("unet", None, &["unet/config.json", "is missing", "incomplete"][..]),
        ("vae", None, &["vae/config.json", "is missing", "incomplete"]),
        ("scheduler", None, &["scheduler_config.json", "is missing", "incomplete"]),
        ("text_encoder", None, &["without the folder text_encoder", "incomplete"]),
        ("tokenizer", None, &["without the folder tokenizer", "incomplete"]),
        ("model_index.json", None, &["no model_index.json"]),
        (weights, None, &["no weights here", "complete the download"]),
        (weights, Some(&[][..]), &[weights, "empty file", "download"]),
        (weights, Some(&[0; 300]), &[weights, "damaged"]),
        (weights, Some(pointer), &[weights, "git-LFS pointer"]),
        ("unet/config.json", Some(b"{\"sample_size\": 6"), &["config.json", "JSON", "incomplete"]),
    ] {
        copy_folder(&fixtures().join("models/sd15-a"), &model);
        let place = model.join(part);
        match left {
            Some(bytes) => std::fs::write(&place, bytes).expect("a file"),
            None if place.is_dir() => std::fs::remove_dir_all(&place).expect("a folder"),
            None => std::fs::remove_file(&place).expect("a file"),
        }
        refused(&["generate", "--model", &at("model"), "--prompt", "a", "--out", &out], 3, words);
        std::fs::remove_dir_all(&model).expect("a folder");
    }
    copy_folder(&fixtures().join("models/sd15-a"), &model);
    let cut = std::fs::OpenOptions::new().write(true).open(model.join(weights)).expect("a file");
    cut.set_len(size / 2).expect("a size");
    let words = [weights, "incomplete", "download or copy it again"];
    refused(&["generate", "--model", &at("model"), "--prompt", "a", "--out", &out], 3, &words);
    assert_eq!(files(dir.path()), ["model"]);
}

#[test]
fn the_machine_ends_with_4() {
    let model = fixture("models/sd15-a");
    refused(&["generate", "--model", &model, "--out", "/no/such/x.png"], 4, &["does not exist"]);
    refused(&["generate", "--model", &model, "--out", "/dev/null"], 4, &["not an ordinary file"]);
    refused(&["generate", "--model", &model, "--device", "cuda:0"], 4, &["device"]);
    refused(&["generate", "--model", &model, "--precision", "f16"], 4, &["precision", "bf16"]);
}

#[test]
fn a_level_that_is_none_is_refused() {
    let with = |level: &str, more: &[&str]| {
        let arguments = [&["generate", "--dry-run", "--json"], more].concat();
        program().args(arguments).env("INSTANTSTYLE_LEVEL", level).output().expect("the program starts")
    };
    for level in ["", "best", "AVX2"] {
        let out = with(level, &[]);
        let error = text(&out.stderr);
        assert_eq!(out.status.code(), Some(2), "{level}: {error}");
        assert!(error.contains("INSTANTSTYLE_LEVEL") && error.contains("scalar, avx2, avx512"), "{error}");
    }
    assert!(with("scalar", &[]).status.success());
}

#[test]
fn fast_without_a_name_says_what_it_chose() {
    let base = ["generate", "--prompt", "a star", "--steps", "2", "--dry-run"];
    let bare = run(&[&base[..], &["--fast"]].concat());
    assert!(bare.status.success() && text(&bare.stdout).contains("\nfast       "), "{}", text(&bare.stdout));
    assert_eq!(text(&bare.stdout), text(&run(&[&base[..], &["--fast", "safe"]].concat()).stdout));
    let plain = run(&base);
    assert!(!text(&plain.stdout).contains("\nfast "), "{}", text(&plain.stdout));
    let (_dir, at) = folder();
    let made = run(&["generate", "--prompt", "a star", "--steps", "2", "--fast", "--out", &at("x.png")]);
    assert!(text(&made.stderr).contains("note: fast: "), "{}", text(&made.stderr));
}

#[test]
fn missing_companions_are_named() {
    let (dir, _) = folder();
    let copy = dir.path().join("model");
    copy_folder(&fixtures().join("models/sd15-s"), &copy);
    std::fs::remove_dir_all(copy.join("tokenizer")).expect("the tokenizer");
    let copy = copy.to_string_lossy().into_owned();
    refused(&["generate", "--model", &copy], 3, &["tokenizer"]);
    std::fs::remove_file(Path::new(&copy).join("model_index.json")).expect("the index");
    refused(&["generate", "--model", &copy], 3, &["model_index.json"]);
}

#[test]
fn an_encoders_own_preparation_is_read_or_refused() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let encoder = dir.path().join("encoder");
    copy_folder(&fixtures().join("models/vit-a"), &encoder);
    let job = fixture("cases/sd15-a-euler/job.json");
    let out = dir.path().join("x.png").to_string_lossy().into_owned();
    let encoder_text = encoder.to_string_lossy().into_owned();
    let arguments = ["generate", "--job", &job, "--image-encoder", &encoder_text, "--out", &out, "--quiet"];
    let config = encoder.join("preprocessor_config.json");
    for (text, words) in [
        (
            r#"{"do_center_crop": false}"#,
            ["preprocessor_config.json", "do_center_crop is false", "remove the file"],
        ),
        (r#"{"crop_size": 7}"#, ["preprocessor_config.json", "crop_size is 7", "the tower reads"]),
        ("<html>", ["preprocessor_config.json", "not valid JSON", ""]),
    ] {
        std::fs::write(&config, text).expect("written");
        refused(&arguments, 3, &words);
    }
    std::fs::remove_file(&config).expect("removed");
    let latents = |name: &str| {
        let file = dir.path().join(name).to_string_lossy().into_owned();
        let done = run(&[&arguments[..], &["--save-latents", &file]].concat());
        assert!(done.status.success(), "{}", text(&done.stderr));
        std::fs::read(file).expect("latents")
    };
    let usual = latents("usual");
    let size = serde_json::from_slice::<serde_json::Value>(
        &std::fs::read(encoder.join("config.json")).expect("a file"),
    )
    .expect("JSON")["image_size"]
        .clone();
    std::fs::write(&config, format!(r#"{{"size": {size}, "crop_size": {size}}}"#)).expect("written");
    assert!(usual == latents("same"), "the defaults are CLIP's own");
    let other = format!(r#"{{"size": {size}, "crop_size": {size}, "image_mean": [0, 0, 0]}}"#);
    std::fs::write(&config, other).expect("written");
    assert!(usual != latents("other"), "the file counts");
}

fn copy_folder(from: &Path, to: &PathBuf) {
    std::fs::create_dir_all(to).expect("a folder");
    for entry in std::fs::read_dir(from).expect("a folder") {
        let path = entry.expect("an entry").path();
        let target = to.join(path.file_name().expect("a name"));
        if path.is_dir() {
            copy_folder(&path, &target);
        } else {
            std::fs::copy(&path, &target).expect("a copy");
        }
    }
}

#[test]
fn json_speaks_of_results_and_errors() {
    let (_dir, at) = folder();
    let job = fixture("cases/sd15-s-euler/job.json");
    let out = run(&["generate", "--job", &job, "--json", "--out", &at("x.png"), "--quiet"]);
    let report: serde_json::Value = serde_json::from_slice(&out.stdout).expect("one JSON object");
    assert_eq!(report["pictures"][0]["path"], at("x.png"));
    assert_eq!(report["plan"]["request"]["steps"], 5);
    let calls = report["seconds"]["calls"].as_array().expect("a list");
    assert_eq!(Some(calls.len() as u64), report["plan"]["model_calls"].as_u64());
    let sum: f64 = calls.iter().filter_map(serde_json::Value::as_f64).sum();
    assert!(sum > 0.0 && sum <= report["seconds"]["total"].as_f64().expect("a number"), "{report}");
    let out = run(&["generate", "--job", &job, "--json", "--steps", "0"]);
    let report: serde_json::Value = serde_json::from_slice(&out.stdout).expect("one JSON object");
    assert_eq!(
        (report["error"]["kind"].as_str(), report["error"]["field"].as_str()),
        (Some("request"), Some("steps"))
    );
    let out =
        run(&["inspect", "--json", &fixture("models/sdxl-a"), &fixture("adapters/sdxl-a-plus.safetensors")]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    let report: serde_json::Value = serde_json::from_slice(&out.stdout).expect("a JSON list");
    assert_eq!(report[0]["fits"][0], "sdxl");
    let style: Vec<&serde_json::Value> = report[0]["attention"]
        .as_array()
        .expect("sites")
        .iter()
        .filter(|s| s["roles"][0] == "style")
        .collect();
    assert_eq!(style.len(), 1);
    assert_eq!(style[0]["group"], "up_blocks.0.attentions.1");
    assert_eq!(report[1]["what"], "IP-Adapter Plus");
}

#[test]
fn every_flag_is_documented_with_an_example() {
    let help = text(&run(&["generate", "--help"]).stdout);
    for line in ["--prompt", "--job", "--inject", "--save-latents", "dpmpp_2m_karras", "style+layout"] {
        assert!(help.contains(line), "{line}");
    }
    assert!(text(&run(&["man"]).stdout).contains(".TH instantstyle"));
    for shell in ["bash", "zsh", "fish"] {
        assert!(text(&run(&["completions", shell]).stdout).contains("instantstyle"));
    }
}

/// Ctrl-C stops within a step and leaves nothing behind.
#[cfg(unix)]
#[test]
fn an_interrupt_leaves_nothing_behind() {
    let (dir, at) = folder();
    let job = fixture("cases/sd15-a-euler/job.json");
    let mut child = program()
        .args([
            "generate",
            "--job",
            &job,
            "--steps",
            "1000",
            "--width",
            "256",
            "--height",
            "256",
            "--out",
            &at("x.png"),
            "--quiet",
        ])
        .spawn()
        .expect("the program starts");
    std::thread::sleep(std::time::Duration::from_millis(1500));
    let killed = Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("kill");
    assert!(killed.success(), "it was still running");
    let status = child.wait().expect("it ends");
    assert_eq!(status.code(), Some(130));
    assert!(files(dir.path()).is_empty(), "{:?}", files(dir.path()));
}
