//! ControlNets and other autoencoders on the command line: what they change, what is written, and how bad ones end.

use instantstyle_engine::picture::Picture;
use instantstyle_nets::original::VaeNames;
use instantstyle_nets::weights::{Weights, to_safetensors};
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

/// Files of one test.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Folder(tempfile::tempdir().expect("a folder"))
    }

    fn at(&self, name: &str) -> String {
        self.0.path().join(name).to_string_lossy().into_owned()
    }

    fn generate(&self, model: &str, out: &str, more: &[&str]) -> Output {
        let (model, out) = (fixture(&format!("models/{model}")), self.at(out));
        let mut words =
            vec!["generate", "--model", &model, "--prompt", "a cat", "--steps", "3", "--out", &out];
        words.extend(["--width", "32", "--height", "32"]);
        words.extend(more);
        run(&words)
    }

    fn latents(&self, model: &str, name: &str, more: &[&str]) -> Vec<u8> {
        let file = self.at(&format!("{name}.safetensors"));
        let done = self.generate(model, &format!("{name}.png"), &[more, &["--save-latents", &file]].concat());
        assert!(done.status.success(), "{}", text(&done.stderr));
        std::fs::read(&file).expect("latents")
    }

    /// Ends with `status` and one line of error that holds every word.
    fn refused(&self, model: &str, more: &[&str], status: i32, words: &[&str]) {
        let done = self.generate(model, "refused.png", more);
        let error = text(&done.stderr);
        assert_eq!(done.status.code(), Some(status), "{more:?}: {error}");
        let line = error.lines().find(|l| l.starts_with("error: ")).unwrap_or_else(|| panic!("{error}"));
        for word in words {
            assert!(line.contains(word), "{more:?}: no {word:?} in {line}");
        }
        assert!(!error.contains("panicked") && !Path::new(&self.at("refused.png")).exists(), "{error}");
    }
}

#[test]
fn a_control_acts_and_leaves_no_trace_without_strength() {
    let folder = Folder::new();
    let (net, image) = (fixture("controls/sd15-a"), fixture("images/blocks.png"));
    let with = |more: &[&'static str]| [&["--control", &net, "--control-image", &image], more].concat();
    let latents = |name: &str, more: &[&str]| folder.latents("sd15-a", name, more);
    let plain = latents("plain", &[]);
    assert_eq!(plain, latents("zero", &with(&["--control-scale", "0"])));
    // The last of four calls covers 3/4 to 1, which ends after 0.9.
    assert_eq!(plain, latents("closed", &with(&["--control-start", "0.7", "--control-end", "0.9"])));
    let full = latents("full", &with(&["--threads", "1"]));
    assert_ne!(plain, full);
    assert_eq!(full, latents("threads", &with(&["--threads", "3"])));
    assert_ne!(full, latents("half", &with(&["--control-scale", "0.5"])));
    assert_ne!(full, latents("edges", &with(&["--control-preprocess", "canny"])));
    // With what saves time elsewhere.
    let window = latents("window", &with(&["--guidance-end", "0.5"]));
    assert_ne!(window, full);
    assert_ne!(latents("deep", &with(&["--deep-cache", "2"])), full);
    // A stored request makes its picture again.
    let again = run(&["generate", "--job", &folder.at("edges.png"), "--out", &folder.at("again.png")]);
    assert!(again.status.success(), "{}", text(&again.stderr));
    let bytes = |name: &str| std::fs::read(folder.at(name)).expect("a picture");
    assert_eq!(bytes("edges.png"), bytes("again.png"));
}

#[test]
fn maps_are_written_and_plans_say_what_is_followed() {
    let folder = Folder::new();
    let (net, image) = (fixture("controls/sd15-a"), fixture("images/blocks.png"));
    let one = ["--control", &net, "--control-image", &image];
    let edges = ["--control-preprocess", "canny", "--control-canny-low", "20", "--control-canny-high", "60"];
    let maps = ["--save-control-maps", &folder.at("map.png")];
    let done = folder.generate("sd15-a", "x.png", &[&one[..], &edges, &one, &maps].concat());
    assert!(done.status.success(), "{}", text(&done.stderr));
    let said = text(&done.stderr);
    assert!(said.contains("controls[0].image is 50 x 110 and will be stretched to 32 x 32"), "{said}");
    let map = |name: &str| Picture::open(folder.at(name)).expect("a map");
    let (first, second) = (map("map-1.png"), map("map-2.png"));
    assert_eq!((first.width, first.height, second.width), (32, 32, 32));
    assert!(first.rgb.iter().all(|v| *v == 0 || *v == 255) && first.rgb.contains(&255));
    assert_ne!(first, second);

    if cfg!(feature = "onnx") {
        let network = fixture("maps/depth_midas.onnx");
        let depth = ["--control-preprocess", "depth_midas", "--control-preprocess-model", &network];
        let maps_to = ["--save-control-maps", &folder.at("depth-map.png")];
        let done = folder.generate("sd15-a", "depth.png", &[&one[..], &depth, &maps_to].concat());
        assert!(done.status.success(), "{}", text(&done.stderr));
        let depth = map("depth-map.png");
        assert!(depth.rgb.contains(&0) && depth.rgb.contains(&255) && depth != second);
    }

    let window = ["--control-end", "0.5", "--control-scale", "0.6", "--dry-run"];
    let plan = folder.generate("sd15-a", "x.png", &[&one[..], &edges, &window].concat());
    let plan = text(&plan.stdout);
    assert!(plan.contains("x 0.6, follows canny of") && plan.contains("calls 1 to 2 of 4"), "{plan}");

    folder.refused("sd15-a", &maps, 2, &["--save-control-maps", "--control"]);
    let jpeg = ["--save-control-maps", "map.jpg"];
    folder.refused("sd15-a", &[&one[..], &jpeg].concat(), 2, &["--save-control-maps", "PNG"]);
    let same = ["--save-control-maps", &folder.at("refused.png")];
    folder.refused("sd15-a", &[&one[..], &same].concat(), 2, &["--save-control-maps", "same file as --out"]);
    let over = ["--save-control-maps", &image];
    folder.refused("sd15-a", &[&one[..], &over].concat(), 2, &["--save-control-maps", "would overwrite"]);
}

#[test]
fn bad_controls_are_refused() {
    let folder = Folder::new();
    let (net, image) = (fixture("controls/sd15-a"), fixture("images/blocks.png"));
    let refused = |net: &str, image: &str, more: &[&str], status: i32, words: &[&str]| {
        let words_of = [&["--control", net, "--control-image", image], more].concat();
        folder.refused("sd15-a", &words_of, status, words);
    };
    for (value, words) in [("NaN", "0 to 10"), ("inf", "0 to 10"), ("-0.5", "0 to 10"), ("1e9", "0 to 10")] {
        refused(&net, &image, &["--control-scale", value], 2, &["controls[0].scale", words]);
    }
    let window = ["--control-start", "0.8", "--control-end", "0.2"];
    refused(&net, &image, &window, 2, &["controls[0].start", "after end"]);
    for (map, network) in [("depth", "Depth Anything"), ("pose", "DWPose")] {
        let words = ["controls[0].preprocess_model", network, "ONNX"];
        refused(&net, &image, &["--control-preprocess", map], 2, &words);
    }
    let depth = ["--control-preprocess", "depth", "--control-preprocess-model"];
    let other = fixture("maps/pose.onnx");
    let (code, words) = match cfg!(feature = "onnx") {
        true => (3, ["pose.onnx", "expected Depth Anything"]),
        false => (4, ["this build", "feature onnx"]),
    };
    refused(&net, &image, &[&depth[..], &[&other]].concat(), code, &words);
    let missing = folder.at("missing.onnx");
    refused(&net, &image, &[&depth[..], &[&missing]].concat(), 3, &["missing.onnx", "preprocess_model"]);
    if cfg!(feature = "onnx") {
        refused(&net, &image, &[&depth[..], &[&image]].concat(), 3, &["blocks.png", "ONNX file"]);
    }
    folder.refused("sd15-a", &["--control", &net], 2, &["controls[0].image", "missing"]);
    folder.refused("sd15-a", &["--control-scale", "1"], 2, &["--control-scale", "--control FILE"]);

    refused(&net, &folder.at("missing.png"), &[], 3, &["missing.png", "controls[0].image"]);
    refused(&folder.at("missing"), &image, &[], 3, &["missing", "controls[0].model"]);
    refused(&net, &fixture("controls/sd15-a/config.json"), &[], 3, &["JSON"]);
    let other = fixture("controls/sdxl-a.safetensors");
    let words =
        ["Stable Diffusion XL", "8, 16, 24 channels", "Stable Diffusion 1.5", "8, 16, 24, 24 channels"];
    refused(&other, &image, &[], 3, &words);
    refused(&fixture("controls/sd15-s"), &image, &[], 3, &["8, 16 channels", "8, 16, 24, 24 channels"]);
    refused(&fixture("adapters/sd15-a-base.safetensors"), &image, &[], 3, &["no ControlNet"]);
    refused(&fixture("models/sd15-a/unet"), &image, &[], 3, &["no ControlNet"]);

    // Damaged ones.
    let whole = Weights::open(fixtures().join("controls/sd15-a/diffusion_pytorch_model.safetensors"));
    let whole = whole.expect("a fixture");
    let write = |name: &str, keep: &dyn Fn(&str) -> bool| {
        let tensors: Vec<_> =
            whole.iter().filter(|(k, _)| keep(k)).map(|(k, t)| (k, t.shape(), t.to_f32())).collect();
        let rows: Vec<_> = tensors.iter().map(|(k, s, v)| (*k, *s, v.as_slice())).collect();
        std::fs::write(folder.at(name), to_safetensors(&rows)).expect("a file");
        folder.at(name)
    };
    let part = write("part.safetensors", &|k| k != "controlnet_mid_block.weight");
    refused(&part, &image, &[], 3, &["part.safetensors", "controlnet_mid_block.weight", "missing"]);
    let hint = write("hint.safetensors", &|k| k.starts_with("controlnet_cond_embedding."));
    refused(&hint, &image, &[], 3, &["hint.safetensors", "down_blocks.0"]);
    let cut = folder.at("cut.safetensors");
    let bytes = std::fs::read(&part).expect("a file");
    std::fs::write(&cut, &bytes[..bytes.len() / 2]).expect("a file");
    refused(&cut, &image, &[], 3, &["cut.safetensors"]);
    // The same file whole is as good as its folder.
    let alone = write("alone.safetensors", &|_| true);
    let follow = ["--control-image", &image];
    let from_folder = folder.latents("sd15-a", "folder", &[&["--control", &net], &follow[..]].concat());
    assert_eq!(
        folder.latents("sd15-a", "file", &[&["--control", &alone], &follow[..]].concat()),
        from_folder
    );
}

#[test]
fn control_loras_act_and_bad_ones_are_refused() {
    let folder = Folder::new();
    let (net, image) = (fixture("controls/sdxl-a-control-lora.safetensors"), fixture("images/blocks.png"));
    let follow = ["--control", &net, "--control-image", &image];
    let latents = |name: &str, more: &[&str]| folder.latents("sdxl-a", name, more);
    let plain = latents("plain", &[]);
    assert_eq!(plain, latents("zero", &[&follow[..], &["--control-scale", "0"]].concat()));
    let full = latents("full", &[&follow[..], &["--threads", "1"]].concat());
    assert_ne!(plain, full);
    assert_eq!(full, latents("threads", &[&follow[..], &["--threads", "2"]].concat()));

    // For other shapes, other families, UNets for inpainting.
    let of = |model: &str, words: &[&str]| folder.refused(model, &follow, 3, words);
    of("sdxl-b", &["sdxl-a-control-lora", "Control-LoRA", "shape"]);
    of("sd15-a", &["sdxl-a-control-lora", "Control-LoRA"]);
    let start = ["--init", &image, "--init-mask", &fixture("images/mask-disc.png")];
    folder.refused("sdxl-i", &[&follow[..], &start].concat(), 3, &["Control-LoRA"]);

    let whole = Weights::open(&net).expect("a fixture");
    let write = |name: &str, change: &dyn Fn(&str, Vec<f32>) -> Option<(String, Vec<f32>)>| {
        let changed: Vec<_> = whole
            .iter()
            .filter_map(|(k, t)| change(k, t.to_f32()).map(|(key, values)| (key, t.shape(), values)))
            .collect();
        let rows: Vec<_> = changed.iter().map(|(k, s, v)| (k.as_str(), *s, v.as_slice())).collect();
        std::fs::write(folder.at(name), to_safetensors(&rows)).expect("a file");
        folder.at(name)
    };
    let layer = "input_blocks.1.0.in_layers.2";
    let half = write("half.safetensors", &|k, v| (k != format!("{layer}.up")).then(|| (k.to_owned(), v)));
    let alien =
        write("alien.safetensors", &|k, v| Some((k.replace(layer, "input_blocks.90.0.in_layers.2"), v)));
    let nan = write("nan.safetensors", &|k, v| {
        let values = if k == format!("{layer}.up") { vec![f32::NAN; v.len()] } else { v };
        Some((k.to_owned(), values))
    });
    let bare = write("bare.safetensors", &|k, v| (!k.starts_with("zero_convs")).then(|| (k.to_owned(), v)));
    for (file, words) in [
        (&half, ["half.safetensors", "Up is missing"]),
        (&alien, ["alien.safetensors", "have no place"]),
        (&nan, ["nan.safetensors", "not finite"]),
        (&bare, ["bare.safetensors", "controlnet_down_blocks.0.weight is missing"]),
    ] {
        folder.refused("sdxl-a", &["--control", file, "--control-image", &image], 3, &words);
    }
}

#[test]
fn inspect_knows_controlnets() {
    let inspect = |path: &str| {
        let done = run(&["inspect", path]);
        (done.status.code(), text(&done.stdout) + &text(&done.stderr))
    };
    let (status, said) = inspect(&fixture("controls/sdxl-i"));
    assert_eq!(status, Some(0), "{said}");
    assert!(
        said.contains(": ControlNet\n") && said.contains("sdxl") && said.contains("8, 12, 16 channels"),
        "{said}"
    );
    let (status, said) = inspect(&fixture("controls/sd15-s-pooled"));
    assert_eq!(status, Some(0), "{said}");
    assert!(said.contains("blue, green, red") && said.contains("averaged"), "{said}");
    let (status, said) = inspect(&fixture("controls/sd15-s-original.pth"));
    assert_eq!(status, Some(0), "{said}");
    assert!(said.contains("ControlNet (original names)"), "{said}");
    let (status, said) = inspect(&fixture("controls/sdxl-a-control-lora.safetensors"));
    assert_eq!(status, Some(0), "{said}");
    assert!(said.contains(": Control-LoRA\n") && said.contains("layers of low rank"), "{said}");

    let folder = Folder::new();
    let from = fixtures().join("controls/sd15-a");
    std::fs::copy(from.join("config.json"), folder.at("config.json")).expect("a copy");
    let small = fixtures().join("controls/sd15-s/diffusion_pytorch_model.safetensors");
    std::fs::copy(small, folder.at("diffusion_pytorch_model.safetensors")).expect("a copy");
    let (status, said) = inspect(folder.0.path().to_str().expect("a name"));
    assert_eq!(status, Some(3), "{said}");
    assert!(said.contains("PROBLEM"), "{said}");
}

#[test]
fn another_autoencoder_decodes() {
    let folder = Folder::new();
    let own = fixtures().join("models/sdxl-a/vae/diffusion_pytorch_model.safetensors");
    let alone = folder.at("vae.safetensors");
    std::fs::copy(&own, &alone).expect("a copy");
    let picture = |name: &str, more: &[&str]| {
        let done = folder.generate("sdxl-a", name, more);
        assert!(done.status.success(), "{}", text(&done.stderr));
        Picture::open(folder.at(name)).expect("a picture").rgb
    };
    let usual = picture("usual.png", &[]);
    assert_eq!(picture("file.png", &["--vae", &alone]), usual);
    assert_eq!(picture("folder.png", &["--vae", &fixture("models/sdxl-a")]), usual);
    assert_ne!(picture("other.png", &["--vae", &fixture("models/sdxl-b/vae")]), usual);
    // In original names, with what the file does not tell taken from the model's own.
    let (weights, names) = (Weights::open(&own).expect("a fixture"), VaeNames::of(4, 2));
    let renamed = weights.renamed(|key| names.original(key));
    assert_eq!(renamed.len(), weights.len());
    let tensors: Vec<_> = renamed.iter().map(|(k, t)| (k, t.shape(), t.to_f32())).collect();
    let rows: Vec<_> = tensors.iter().map(|(k, s, v)| (*k, *s, v.as_slice())).collect();
    let original = folder.at("original.safetensors");
    std::fs::write(&original, to_safetensors(&rows)).expect("a file");
    assert_eq!(picture("original.png", &["--vae", &original]), usual);

    folder.refused("sdxl-a", &["--vae", &folder.at("missing")], 3, &["missing", "(vae)"]);
    folder.refused("sdxl-a", &["--vae", &fixture("models/sdxl-a/unet")], 3, &["no autoencoder"]);
    let adapter = fixture("adapters/sdxl-a-base.safetensors");
    folder.refused("sdxl-a", &["--vae", &adapter], 3, &["no autoencoder"]);
    // Of another shape than the model's own, without a configuration beside it.
    let other = folder.at("other.safetensors");
    let file = fixtures().join("models/sd15-v/vae/diffusion_pytorch_model.safetensors");
    std::fs::copy(file, &other).expect("a copy");
    folder.refused("sdxl-a", &["--vae", &other], 3, &["other.safetensors", "tensor"]);
}
