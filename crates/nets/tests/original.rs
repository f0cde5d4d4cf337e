//! Original names against diffusers' own conversion (`testkit/recipe/names.py`): every tensor of every part.

use instantstyle_nets::ModelError;
use instantstyle_nets::original::{self, Heads, Part, UNetFacts, VaeNames, to_open_clip_text};
use instantstyle_nets::unet::{LdmNames, UNetConfig};
use instantstyle_nets::weights::{Stored, Weights};
use std::path::Path;
use testkit::names::{Filled, How, in_diffusers, in_original, names};

fn weights(tensors: &[Filled]) -> Weights {
    let stored = |(key, shape, values): &Filled| {
        (key.clone(), Stored::from_f32(shape.clone(), values).expect("as many values as the shape says"))
    };
    Weights::from_tensors(tensors.iter().map(stored), "test")
}

/// A 1×1 convolution is a matrix on the other side.
fn squeezed(tensor: &Stored) -> (Vec<usize>, Vec<f32>) {
    (tensor.shape().iter().copied().filter(|d| *d != 1).collect(), tensor.to_f32())
}

fn same(got: &Weights, want: &Weights) {
    let keys = |w: &Weights| w.keys().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(keys(got), keys(want));
    for (key, tensor) in want.iter() {
        assert_eq!(squeezed(got.get(key).unwrap()), squeezed(tensor), "{key}");
    }
}

fn check(name: &str, read: impl Fn(&Weights) -> Result<Part, ModelError>) -> Part {
    let names = names(name);
    let part = read(&weights(&in_original(&names, ""))).unwrap_or_else(|e| panic!("{name}: {e}"));
    assert!(part.unknown.is_empty(), "{name}: {:?}", part.unknown);
    same(&part.weights, &weights(&in_diffusers(&names, "")));
    part
}

const SD15: UNetFacts = UNetFacts { heads: Heads::Count(8), sample_size: 64, time_dim: 256 };
const SDXL: UNetFacts = UNetFacts { heads: Heads::Width(64), sample_size: 128, time_dim: 256 };

#[test]
fn unets_have_diffusers_names_and_configurations() {
    for (name, facts) in [("sd15", SD15), ("sdxl", SDXL)] {
        let part = check(&format!("{name}-unet"), |w| original::unet(w, &facts));
        let path = testkit::fixtures().join("names").join(format!("{name}.json"));
        let saved: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let read = |json: &serde_json::Value| UNetConfig::from_json(json, Path::new("config.json")).unwrap();
        assert_eq!(read(&part.config), read(&saved["unet"]), "{name}");
        // And back.
        let ldm = LdmNames::of(&read(&part.config));
        for n in names(&format!("{name}-unet")) {
            assert_eq!(ldm.original(&n.diffusers).as_deref(), Some(n.original.as_str()));
        }
    }
}

#[test]
fn autoencoders_have_diffusers_names_and_configurations() {
    let part = check("vae", |w| original::vae(w, 0.18215, 512));
    for (key, value) in
        [("block_out_channels", "[32,64,96,96]"), ("layers_per_block", "2"), ("latent_channels", "4")]
    {
        assert_eq!(part.config[key].to_string(), value);
    }
    let back = VaeNames::of(4, 2);
    for n in names("vae") {
        assert_eq!(back.original(&n.diffusers).as_deref(), Some(n.original.as_str()));
    }
    assert_eq!(
        back.original("decoder.mid_block.attentions.0.proj_attn.bias").as_deref(),
        Some("decoder.mid.attn_1.proj_out.bias")
    );
}

#[test]
fn text_towers_have_transformers_names() {
    let part = check("clip-l", original::clip_text);
    assert_eq!(
        (part.config["hidden_act"].as_str(), part.config["num_hidden_layers"].as_u64()),
        (Some("quick_gelu"), Some(12))
    );
    let part = check("open-clip-g", original::open_clip_text);
    assert_eq!(
        (part.config["hidden_act"].as_str(), part.config["num_hidden_layers"].as_u64()),
        (Some("gelu"), Some(32))
    );
    // And back, to the bit.
    let names = names("open-clip-g");
    let back = to_open_clip_text(&weights(&in_diffusers(&names, ""))).unwrap();
    same(&back, &weights(&in_original(&names, "")));
    assert!(names.iter().any(|n| n.how == How::Transposed) && names.iter().any(|n| n.how == How::Third(2)));
}

#[test]
fn views_take_no_memory() {
    let names = names("open-clip-g");
    let given = weights(&in_original(&names, ""));
    let part = original::open_clip_text(&given).unwrap();
    let fused = given.get("transformer.resblocks.3.attn.in_proj_weight").unwrap();
    let k = part.weights.get("text_model.encoder.layers.3.self_attn.k_proj.weight").unwrap();
    assert!(fused.bytes().as_ptr_range().contains(&k.bytes().as_ptr()));
}

#[test]
fn what_is_missing_or_strange_is_named() {
    let names = names("sd15-unet");
    let all = in_original(&names, "");
    let without = |key: &str| weights(&all.iter().filter(|t| t.0 != key).cloned().collect::<Vec<_>>());
    let error = |w: &Weights| original::unet(w, &SD15).unwrap_err().to_string();
    assert!(error(&without("out.2.weight")).contains("the tensor out.2.weight is missing"));
    assert!(error(&without("input_blocks.1.0.in_layers.2.weight")).contains("not a UNet in original names"));
    let mut more = all.clone();
    more.push(("input_blocks.1.7.weight".into(), vec![1], vec![0.0]));
    assert_eq!(original::unet(&weights(&more), &SD15).unwrap().unknown, ["input_blocks.1.7.weight"]);
    let odd: Vec<Filled> =
        vec![("transformer.resblocks.0.attn.in_proj_weight".into(), vec![4], vec![0.0; 4])];
    assert!(
        original::open_clip_text(&weights(&odd))
            .unwrap_err()
            .to_string()
            .contains("in_proj_weight has shape [4]")
    );
}
