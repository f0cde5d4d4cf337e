//! One file as the model: its pictures equal those of the same weights in a Diffusers folder, bit for bit. Names and
//! configurations of the folder are diffusers' own (`testkit/recipe/names.py`).

mod convert;
mod gguf;
mod references;

use instantstyle_engine::checkpoint::{Checkpoint, Holds};
use instantstyle_engine::plan::Plan;
use instantstyle_engine::request::Request;
use instantstyle_engine::{Error, Event, Observer, generate, inspect, to_safetensors};
use instantstyle_nets::tokenizer::published_files;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use testkit::fixtures;
use testkit::names::{Filled, Name, in_diffusers, in_original, names, values};

struct Quiet;

impl Observer for Quiet {
    fn event(&mut self, _: Event) {}
}

/// A family's parts: folder, names, prefix in a single file.
type Parts = &'static [(&'static str, &'static str, &'static str)];
const SD15: Parts = &[
    ("unet", "sd15-unet", "model.diffusion_model."),
    ("vae", "vae", "first_stage_model."),
    ("text_encoder", "clip-l", "cond_stage_model.transformer."),
];
const SDXL: Parts = &[
    ("unet", "sdxl-unet", "model.diffusion_model."),
    ("vae", "vae", "first_stage_model."),
    ("text_encoder", "clip-l", "conditioner.embedders.0.transformer."),
    ("text_encoder_2", "open-clip-g", "conditioner.embedders.1.model."),
];

fn dir(name: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

fn write(path: &Path, tensors: &[Filled]) {
    let views: Vec<(&str, &[usize], &[f32])> = tensors.iter().map(|(k, s, v)| (&**k, &**s, &**v)).collect();
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, to_safetensors(&views)).unwrap();
}

/// Names of a part; with nine channels its UNet is one for inpainting.
fn part(name: &str, channels: usize) -> Vec<Name> {
    let mut names = names(name);
    names.iter_mut().filter(|n| n.original == "input_blocks.0.0.weight").for_each(|n| n.shape[1] = channels);
    names
}

/// The same weights as one file and as a folder.
fn both(family: &str, parts: Parts, channels: usize, dir: &Path) -> (PathBuf, PathBuf) {
    let (file, folder) = (dir.join("model.safetensors"), dir.join("folder"));
    let all: Vec<Filled> =
        parts.iter().flat_map(|(_, name, prefix)| in_original(&part(name, channels), prefix)).collect();
    write(&file, &all);
    let json = |path: &Path| -> Value { serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap() };
    let save = |name: &str, json: &Value| {
        let path = folder.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, json.to_string()).unwrap();
    };
    let mut configs = json(&fixtures().join("names").join(format!("{family}.json")));
    configs["unet"]["in_channels"] = json!(channels);
    for (name, keys, _) in parts {
        write(&folder.join(name).join("model.safetensors"), &in_diffusers(&part(keys, channels), ""));
        save(&format!("{name}/config.json"), &configs[*name]);
        if let Some(number) = name.strip_prefix("text_encoder") {
            for (file, bytes) in published_files(if number.is_empty() { "<|endoftext|>" } else { "!" }) {
                let path = folder.join(format!("tokenizer{number}")).join(file);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, bytes).unwrap();
            }
        }
    }
    // These fixtures have the published sampler's and pipeline's configurations.
    let published = fixtures().join("models").join(format!("{family}-a"));
    save("model_index.json", &json(&published.join("model_index.json")));
    save("scheduler/scheduler_config.json", &json(&published.join("scheduler/scheduler_config.json")));
    (file, folder)
}

fn plan(model: &Path, more: &Value) -> Result<Plan, Error> {
    let mut request = json!({
        "model": model, "prompt": "a cat in the rain", "negative_prompt": "blurry", "width": 64, "height": 64, "steps": 2,
        "seed": 5,
    });
    request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    Plan::resolve(&Request::from_json(&request.to_string(), Path::new("/"))?)
}

/// Latents and pixels.
fn paint(model: &Path, more: &Value) -> (Vec<f32>, Vec<u8>) {
    let plan = plan(model, more).unwrap_or_else(|e| panic!("{e}"));
    let mut outputs = generate(&plan, &mut Quiet).unwrap_or_else(|e| panic!("{e}"));
    let output = outputs.remove(0);
    assert!(output.latents.iter().all(|v| v.is_finite()) && output.latents.iter().any(|v| v.abs() > 0.1));
    (output.latents, output.picture.rgb)
}

fn image(name: &str) -> String {
    fixtures().join("images").join(name).to_string_lossy().into_owned()
}

#[test]
fn sd15_in_one_file_equals_its_folder() {
    let dir = dir("single-sd15");
    let (file, folder) = both("sd15", SD15, 4, &dir);
    let lora = dir.join("lora.safetensors");
    let layer = |key: &str, outputs: usize, inputs: usize| {
        [("down", [2, inputs]), ("up", [outputs, 2])].map(|(end, shape)| {
            let key = format!("{key}.lora_{end}.weight");
            let given = values(&key, &shape);
            (key, shape.to_vec(), given)
        })
    };
    let to_q = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_q";
    let fc1 = "lora_te_text_model_encoder_layers_3_mlp_fc1";
    write(&lora, &[layer(to_q, 96, 96), layer(fc1, 96, 64)].concat());
    let start = json!({ "init": { "image": image("rings.png"), "strength": 0.6 }, "steps": 4 });
    let with_lora = json!({ "loras": [{ "file": lora }], "clip_skip": 1 });
    for more in [json!({}), start, with_lora] {
        assert_eq!(paint(&file, &more), paint(&folder, &more), "{more}");
    }
    assert_ne!(paint(&file, &json!({})), paint(&file, &json!({ "loras": [{ "file": lora }] })));
    // What is stored with the picture names the file.
    let stored = plan(&file, &json!({})).unwrap().request().model.clone().unwrap();
    assert_eq!(Path::new(&stored), file.canonicalize().unwrap());
    let report = inspect::inspect(&file).unwrap();
    assert!(report.problems.is_empty() && report.fits == ["sd15"], "{report}");
    assert!(report.what.contains("one file") && report.what.contains("Stable Diffusion 1.5"), "{report}");
}

#[test]
fn sdxl_in_one_file_equals_its_folder() {
    let (file, folder) = both("sdxl", SDXL, 4, &dir("single-sdxl"));
    for more in [json!({}), json!({ "clip_skip": 1, "guidance": 1.0 })] {
        assert_eq!(paint(&file, &more), paint(&folder, &more), "{more}");
    }
    let report = inspect::inspect(&file).unwrap();
    assert!(report.problems.is_empty() && report.fits == ["sdxl"], "{report}");
}

#[test]
fn nine_channels_are_for_inpainting() {
    let more = json!({ "init": { "image": image("rings.png"), "mask": image("mask-disc.png") } });
    for (family, parts) in [("sd15", SD15), ("sdxl", SDXL)] {
        let (file, folder) = both(family, parts, 9, &dir(&format!("single-{family}-nine")));
        assert_eq!(paint(&file, &more), paint(&folder, &more), "{family}");
        assert!(plan(&file, &json!({})).err().unwrap().to_string().contains("init.mask"));
    }
}

fn single(name: &str, parts: Parts, more: &[Filled], keep: impl Fn(&str) -> bool) -> PathBuf {
    let path = dir(name).join("model.safetensors");
    let mut all: Vec<Filled> =
        parts.iter().flat_map(|(_, name, prefix)| in_original(&names(name), prefix)).collect();
    all.retain(|t| keep(&t.0));
    all.extend_from_slice(more);
    write(&path, &all);
    path
}

#[test]
fn markers_tell_what_the_network_predicts() {
    let marker = |key: &str| (key.to_owned(), vec![0], vec![]);
    let config = |more: &[Filled]| {
        let file = Checkpoint::open(&single("single-markers", SD15, more, |_| true)).unwrap();
        assert!(file.unused().is_empty(), "{:?}", file.unused());
        serde_json::from_slice::<Value>(&file.file("scheduler/scheduler_config.json").unwrap()).unwrap()
    };
    let plain = config(&[]);
    assert!(plain.get("prediction_type").is_none());
    let v = config(&[marker("v_pred")]);
    assert_eq!(
        (v["prediction_type"].as_str(), v.get("rescale_betas_zero_snr")),
        (Some("v_prediction"), None)
    );
    let zero = config(&[marker("v_pred"), marker("ztsnr")]);
    assert_eq!(
        (&zero["rescale_betas_zero_snr"], zero["timestep_spacing"].as_str()),
        (&json!(true), Some("trailing"))
    );
}

#[test]
fn what_is_missing_is_named() {
    let refused = |path: &Path, words: &[&str]| {
        let error = plan(path, &json!({})).err().expect("must be refused");
        let text = error.to_string();
        assert!(matches!(error, Error::File { .. }) && !text.contains('\n'), "{text}");
        assert!(words.iter().all(|w| text.contains(w)), "{text}");
    };
    let name = "single-missing";
    refused(
        &single(name, SD15, &[], |k| !k.starts_with("first_stage")),
        &["no autoencoder", "the field vae"],
    );
    refused(&single(name, SD15, &[], |k| !k.starts_with("cond_stage")), &["without text_encoder"]);
    refused(&single(name, SD15, &[], |k| !k.contains("middle_block.1.")), &["0 transformers in its middle"]);
    refused(&single(name, SD15, &[], |k| k.starts_with("first_stage")), &["an autoencoder alone"]);
    refused(&single(name, SDXL, &[], |k| k.starts_with("conditioner")), &["no CLIP tower"]);
    let odd = |key: &str| (key.to_owned(), vec![1], vec![0.0]);
    refused(&single(name, SDXL, &[odd("edm_mean")], |_| true), &["edm_mean"]);
    refused(&single(name, SD15, &[odd("cond_stage_model.model.x")], |_| true), &["Stable Diffusion 2"]);
    let file = single(
        name,
        SD15,
        &[odd("model.diffusion_model.strange"), odd("stranger"), odd("model_ema.decay")],
        |_| true,
    );
    assert_eq!(Checkpoint::open(&file).unwrap().unused(), ["model.diffusion_model.strange", "stranger"]);
    assert_eq!(Checkpoint::open(&file).unwrap().holds(), Holds::Model);
    let whole = std::fs::read(&file).unwrap();
    std::fs::write(&file, &whole[..whole.len() / 2]).unwrap();
    refused(&file, &["incomplete"]);
    std::fs::write(&file, "<!DOCTYPE html><html>").unwrap();
    refused(&file, &["an HTML page"]);
}
