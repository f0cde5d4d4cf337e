//! LoRAs on the command line: what they change, and how the program ends on bad ones.

use instantstyle_nets::weights::{Stored, Weights, to_safetensors};
use std::path::Path;
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

fn generate(model: &str, out: &str, more: &[&str]) -> Output {
    let model = fixture(&format!("models/{model}"));
    let mut words =
        vec!["generate", "--model", &model, "--prompt", "a cat", "--steps", "2", "--out", out, "--quiet"];
    words.extend(["--width", "32", "--height", "32"]);
    words.extend(more);
    run(&words)
}

/// Writes a LoRA of two layers, changed by `change`.
fn write(path: &str, change: impl Fn(&mut Vec<(String, Stored)>)) {
    let whole = Weights::open(fixtures().join("loras/sd15-a-kohya.safetensors")).expect("a fixture");
    let layer = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q";
    let layer = whole.keys().find(|k| k.starts_with(layer)).map_or_else(
        || whole.keys().find(|k| k.ends_with("lora_down.weight")).expect("a layer").to_owned(),
        str::to_owned,
    );
    let layer = layer.split('.').next().expect("a layer").to_owned();
    let own = |k: &str| k.split('.').next() == Some(&layer);
    let mut tensors: Vec<(String, Stored)> =
        whole.iter().filter(|(k, _)| own(k)).map(|(k, t)| (k.to_owned(), t.clone())).collect();
    change(&mut tensors);
    let named: Vec<(&str, &[usize], Vec<f32>)> =
        tensors.iter().map(|(k, t)| (k.as_str(), t.shape(), t.to_f32())).collect();
    let rows: Vec<(&str, &[usize], &[f32])> = named.iter().map(|(k, s, v)| (*k, *s, v.as_slice())).collect();
    std::fs::write(path, to_safetensors(&rows)).expect("a file");
}

#[test]
fn a_lora_changes_the_picture_and_weight_0_does_not() {
    let dir = tempfile::tempdir().expect("a folder");
    let at = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    let lora = fixture("loras/sd15-a-kohya.safetensors");
    let latents = |name: &str, more: &[&str]| {
        let file = at(&format!("{name}.safetensors"));
        let mut words = vec!["--save-latents", &file];
        words.extend(more);
        let done = generate("sd15-a", &at(&format!("{name}.png")), &words);
        assert!(done.status.success(), "{}", text(&done.stderr));
        std::fs::read(&file).expect("latents")
    };
    let plain = latents("plain", &[]);
    assert_eq!(plain, latents("zero", &["--lora", &lora, "--lora-weight", "0"]));
    let half = latents("half", &["--lora", &lora, "--lora-weight", "0.5"]);
    assert_ne!(plain, half);
    // The picture carries its LoRA, and half of one twice is close to a whole one: they add up.
    let again = run(&["generate", "--job", &at("half.png"), "--out", &at("again.png"), "--quiet"]);
    assert!(again.status.success(), "{}", text(&again.stderr));
    assert_eq!(
        std::fs::read(at("again.png")).expect("a file"),
        std::fs::read(at("half.png")).expect("a file")
    );
    let sum = |name: &str, more: &[&str]| {
        latents(name, more);
        Weights::open(at(&format!("{name}.safetensors")))
            .expect("latents")
            .get("latents")
            .expect("latents")
            .to_f32()
    };
    let twice = sum("twice", &["--lora-weight", "0.5", "--lora", &lora, "--lora", &lora]);
    let whole = sum("whole", &["--lora", &lora]);
    let distance = testkit::distance(&twice, &whole);
    assert!(distance < 1e-4, "differ by {distance:.1e}");
}

#[test]
fn bad_loras_are_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    let at = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    let out = at("out.png");
    let (sd, xl) = (fixture("loras/sd15-a-kohya.safetensors"), fixture("loras/sdxl-a-kohya.safetensors"));
    let (blora, adapter) =
        (fixture("loras/sdxl-a-blora.safetensors"), fixture("adapters/sd15-a-base.safetensors"));
    let (nan, half, alien) = (at("nan.safetensors"), at("half.safetensors"), at("alien.safetensors"));
    write(&nan, |t| {
        let up = t.iter_mut().find(|(k, _)| k.contains("lora_up")).expect("one");
        let mut values = up.1.to_f32();
        values[0] = f32::NAN;
        up.1 = Stored::from_f32(up.1.shape(), &values).expect("as many");
    });
    write(&half, |t| t.retain(|(k, _)| !k.contains("lora_up")));
    write(&alien, |t| t.iter_mut().for_each(|(k, _)| *k = k.replace("lora_unet_", "lora_unet_alien_")));
    for (model, more, status, words) in [
        ("sdxl-a", vec!["--lora", sd.as_str()], 3, vec!["sd15-a-kohya", "another family", "layers fit"]),
        ("sd15-a", vec!["--lora", &xl], 3, vec!["sdxl-a-kohya", "family"]),
        ("sd15-a", vec!["--lora", &adapter], 3, vec!["no LoRA"]),
        ("sd15-a", vec!["--lora", &nan], 3, vec!["nan.safetensors", "not finite"]),
        ("sd15-a", vec!["--lora", &half], 3, vec!["half.safetensors", "Up", "incomplete"]),
        ("sd15-a", vec!["--lora", &alien], 3, vec!["alien.safetensors", "no layer"]),
        ("sd15-a", vec!["--lora", "nowhere.safetensors"], 3, vec!["nowhere.safetensors"]),
        ("sd15-a", vec!["--lora", &sd, "--lora-blocks", "style"], 2, vec!["blocks", "SDXL"]),
        ("sdxl-a", vec!["--lora", &blora, "--lora-blocks", "styl"], 2, vec!["blocks", "style"]),
        ("sd15-a", vec!["--lora", &sd, "--lora-weight", "11"], 2, vec!["weight", "-10 to 10"]),
        ("sd15-a", vec!["--lora-weight", "1"], 2, vec!["--lora FILE"]),
    ] {
        let done = generate(model, &out, &more);
        let error = text(&done.stderr);
        assert_eq!(done.status.code(), Some(status), "{more:?}: {error}");
        for word in words {
            assert!(error.contains(word), "{more:?}: no {word:?} in {error}");
        }
        assert!(!error.contains("panicked") && !Path::new(&out).exists(), "{error}");
    }
}

#[test]
fn inspect_knows_loras() {
    let out = run(&["inspect", &fixture("loras/sdxl-a-kohya.safetensors")]);
    let said = text(&out.stdout);
    assert!(out.status.success() && said.contains("LoRA") && said.contains("text 2 layers"), "{said}");
}
