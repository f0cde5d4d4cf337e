//! Style references on a single-file model, and CLIP towers in OpenCLIP's names as lone files: as with folders, to the bit.

use super::{SD15, both, dir, image, paint, write};
use instantstyle_nets::original::{open_clip_text, open_clip_vision};
use instantstyle_nets::tokenizer::published_files;
use instantstyle_nets::unet::{UNetConfig, sites};
use instantstyle_nets::weights::{Stored, Weights};
use serde_json::{Value, json};
use std::path::Path;
use testkit::fixtures;
use testkit::names::{Filled, in_original, names, values};

/// Width of the space that the two towers share.
const WIDTH: usize = 48;

/// A base adapter for a UNet: four tokens.
fn adapter(path: &Path, unet: &Path) {
    let json: Value = serde_json::from_slice(&std::fs::read(unet).unwrap()).unwrap();
    let config = UNetConfig::from_json(&json, unet).unwrap();
    let context = config.context_dim();
    let mut shapes = vec![
        ("image_proj.proj.weight".to_owned(), vec![4 * context, WIDTH]),
        ("image_proj.proj.bias".to_owned(), vec![4 * context]),
        ("image_proj.norm.weight".to_owned(), vec![context]),
        ("image_proj.norm.bias".to_owned(), vec![context]),
    ];
    for site in sites(&config) {
        for part in ["k", "v"] {
            shapes.push((
                format!("ip_adapter.{}.to_{part}_ip.weight", site.ordinal),
                vec![site.width, context],
            ));
        }
    }
    let filled: Vec<Filled> =
        shapes.into_iter().map(|(k, s)| (k.clone(), s.clone(), values(&k, &s))).collect();
    write(path, &filled);
}

fn weights(tensors: &[Filled]) -> Weights {
    let stored = |(k, s, v): &Filled| (k.clone(), Stored::from_f32(s.clone(), v).unwrap());
    Weights::from_tensors(tensors.iter().map(stored), "test")
}

/// A tower's folder in transformers' names.
fn folder(path: &Path, part: &instantstyle_nets::original::Part) {
    let filled: Vec<Filled> =
        part.weights.iter().map(|(k, t)| (k.to_owned(), t.shape().to_vec(), t.to_f32())).collect();
    write(&path.join("model.safetensors"), &filled);
    std::fs::write(path.join("config.json"), part.config.to_string()).unwrap();
}

#[test]
fn references_and_lone_towers_act_as_from_folders() {
    let dir = dir("single-references");
    let (file, model) = both("sd15", SD15, 4, &dir);
    adapter(&dir.join("adapter.safetensors"), &model.join("unet/config.json"));

    // The tower whose features are OpenCLIP's own (`nets/tests/original.rs`), with another width of the last matrix.
    let path = fixtures().join("names/open-clip.json");
    let fixture: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let keys: Vec<(String, Vec<usize>)> = serde_json::from_value(fixture["tensors"].clone()).unwrap();
    let vision: Vec<Filled> = keys
        .into_iter()
        .filter(|(k, _)| k.starts_with("visual."))
        .map(|(k, s)| if k == "visual.proj" { (k, vec![s[0], WIDTH]) } else { (k, s) })
        .map(|(k, s)| (k.clone(), s.clone(), values(&k, &s)))
        .collect();
    write(&dir.join("vision.safetensors"), &vision);
    folder(&dir.join("vision"), &open_clip_vision(&weights(&vision).strip_prefix("visual.")).unwrap());

    let text = in_original(&names("open-clip-g"), "");
    let mut text: Vec<Filled> = text.into_iter().filter(|t| t.0 != "text_projection").collect();
    let width = text.iter().find(|t| t.0 == "ln_final.weight").unwrap().1[0];
    text.push(("text_projection".into(), vec![width, WIDTH], values("text_projection", &[width, WIDTH])));
    write(&dir.join("text.safetensors"), &text);
    folder(&dir.join("text"), &open_clip_text(&weights(&text)).unwrap());
    for (name, bytes) in published_files("!") {
        std::fs::write(dir.join("text").join(name), bytes).unwrap();
    }

    let reference = |end: &str, inject: &str, subtract: bool| {
        let mut reference = json!({
            "image": image("rings.png"), "adapter": dir.join("adapter.safetensors"), "inject": inject,
            "image_encoder": dir.join(format!("vision{end}")),
        });
        if subtract {
            reference["text_encoder"] = json!(dir.join(format!("text{end}")));
            reference["subtract"] = json!({ "text": "rings", "scale": 0.5 });
        }
        json!({ "references": [reference] })
    };
    let plain = paint(&file, &json!({}));
    let mut seen = vec![plain];
    for (inject, subtract) in [("style", false), ("all", false), ("all", true)] {
        let want = paint(&model, &reference("", inject, subtract));
        assert_eq!(paint(&file, &reference("", inject, subtract)), want, "{inject}: a file as the model");
        let lone = reference(".safetensors", inject, subtract);
        assert_eq!(paint(&file, &lone), want, "{inject}: files as the towers");
        assert!(!seen.contains(&want), "{inject}, subtract {subtract}: changes nothing");
        seen.push(want);
    }
}
