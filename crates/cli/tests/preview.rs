//! Previews: what they look like, that they change nothing, and how bad requests of them end.

use instantstyle_engine::picture::Picture;
use std::path::Path;
use std::process::{Command, Output};
use testkit::fixtures;

fn fixture(path: &str) -> String {
    fixtures().join(path).to_string_lossy().into_owned()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn generate(more: &[&str]) -> Output {
    let model = fixture("models/sd15-a");
    let all = [
        "generate", "--model", &model, "--prompt", "a cat", "--width", "64", "--height", "48", "--steps", "3",
    ];
    Command::new(env!("CARGO_BIN_EXE_instantstyle"))
        .args(all)
        .args(more)
        .output()
        .expect("the program starts")
}

#[test]
fn previews_are_small_or_decoded_and_change_nothing() {
    let dir = tempfile::tempdir().expect("a folder");
    let at = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    let small = fixture("models/vae-tiny");
    let file = fixture("models/vae-tiny/diffusion_pytorch_model.safetensors");
    let mut last = Vec::new();
    for (name, more) in [
        ("plain", vec![]),
        ("linear", vec![]),
        ("folder", vec!["--preview-decoder", &small]),
        ("file", vec!["--preview-decoder", &file, "--preview-every", "2"]),
    ] {
        let (out, now) = (at(&format!("{name}.png")), at(&format!("{name}-now.png")));
        let mut words = vec!["--out", &out, "--quiet"];
        if name != "plain" {
            words.extend(["--preview", &now]);
        }
        words.extend(more);
        let done = generate(&words);
        assert!(done.status.success(), "{}", text(&done.stderr));
        last.push(std::fs::read(&out).expect("a picture"));
    }
    assert!(last.iter().all(|bytes| *bytes == last[0]), "the picture is the same with previews");
    let picture = |name: &str| Picture::open(Path::new(&at(name))).expect("a picture");
    let (linear, folder) = (picture("linear-now.png"), picture("folder-now.png"));
    assert_eq!((linear.width, linear.height), (8, 6));
    assert_eq!((folder.width, folder.height), (64, 48));
    assert_eq!(folder.rgb, picture("file-now.png").rgb, "a folder and its file, after the last call");
    let names = std::fs::read_dir(dir.path()).expect("a folder").count();
    assert_eq!(names, 4 + 3, "nothing temporary is left");
}

#[test]
fn previews_that_cannot_be_are_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    let at = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    let (out, now) = (at("x.png"), at("now.png"));
    let (other, unet) =
        (fixture("models/sd15-a/vae/diffusion_pytorch_model.safetensors"), fixture("models/sd15-a/unet"));
    for (more, status, words) in [
        (vec!["--preview-every", "2"], 2, vec!["--preview-every", "--preview FILE"]),
        (vec!["--preview", &now, "--preview-every", "0"], 2, vec!["--preview-every"]),
        (vec!["--preview", &out], 2, vec!["--preview", "same file"]),
        (vec!["--preview", "/no/such/now.png"], 4, vec!["does not exist"]),
        (vec!["--preview", &now, "--preview-decoder", "/no/such"], 3, vec!["/no/such", "no such file"]),
        (
            vec!["--preview", &now, "--preview-decoder", &other],
            3,
            vec!["no small autoencoder", "taesd_decoder"],
        ),
        (vec!["--preview", &now, "--preview-decoder", &unet], 3, vec!["unet"]),
    ] {
        let done = generate(&[&["--out", &out], &more[..]].concat());
        let error = text(&done.stderr);
        assert_eq!(done.status.code(), Some(status), "{more:?}: {error}");
        let line = error.lines().find(|l| l.starts_with("error: ")).expect("an error");
        for word in words {
            assert!(line.contains(word), "{more:?}: no {word:?} in {line}");
        }
        assert!(!Path::new(&out).exists() && !Path::new(&now).exists());
    }
}

/// A small autoencoder makes the result, too, and codes the picture to start from.
#[test]
fn a_small_autoencoder_in_the_place_of_the_models_own() {
    let dir = tempfile::tempdir().expect("a folder");
    let at = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    let (small, photo) = (fixture("models/vae-tiny"), fixture("images/blocks.png"));
    let file = fixture("models/vae-tiny/diffusion_pytorch_model.safetensors");
    let now = at("now.png");
    let make = |name: &str, more: &[&str]| {
        let out = at(name);
        let done = generate(&[&["--out", &out, "--quiet"], more].concat());
        assert!(done.status.success(), "{}", text(&done.stderr));
        Picture::open(Path::new(&out)).expect("a picture").rgb
    };
    let folder = make("folder.png", &["--vae", &small, "--preview", &now, "--preview-decoder", &small]);
    assert_eq!(folder, make("file.png", &["--vae", &file]));
    assert_ne!(folder, make("own.png", &[]));
    // The last preview is of the clean latents that the last call implies: for this sampler nearly the result.
    let preview = Picture::open(Path::new(&now)).expect("a preview");
    assert_eq!(preview.rgb.len(), folder.len());
    assert_ne!(folder, make("init.png", &["--vae", &small, "--init", &photo, "--init-strength", "0.7"]));
}
