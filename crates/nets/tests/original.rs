//! Original names against diffusers' own conversion (`testkit/recipe/names.py`): every tensor of every part.

use instantstyle_nets::clip::{TextConfig, TextEncoder, VisionConfig, VisionEncoder};
use instantstyle_nets::controlnet::diffusers_names;
use instantstyle_nets::ip_adapter::{AdapterShape, IpAdapter, published_names};
use instantstyle_nets::original::{self, Heads, Part, UNetFacts, VaeNames, to_open_clip_text};
use instantstyle_nets::unet::{LdmNames, UNetConfig, sites};
use instantstyle_nets::weights::{Stored, Weights};
use instantstyle_nets::{ModelError, Tensor};
use std::path::Path;
use testkit::names::{Filled, How, in_diffusers, in_original, names, values};

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

/// Features of OpenCLIP's own towers (`testkit/recipe/open_clip_towers.py`).
#[test]
fn open_clip_towers_give_their_features() {
    let path = testkit::fixtures().join("names/open-clip.json");
    let fixture: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let read = |name: &str| serde_json::from_value::<Vec<f32>>(fixture[name].clone()).unwrap();
    let keys: Vec<(String, Vec<usize>)> = serde_json::from_value(fixture["tensors"].clone()).unwrap();
    let filled: Vec<Filled> = keys.into_iter().map(|(k, s)| (k.clone(), s.clone(), values(&k, &s))).collect();
    let all = weights(&filled);

    let part = original::open_clip_vision(&all.strip_prefix("visual.")).unwrap();
    assert!(part.unknown.is_empty(), "{:?}", part.unknown);
    let config: VisionConfig = serde_json::from_value(part.config).unwrap();
    assert_eq!((config.num_attention_heads, config.image_size, config.patch_size), (2, 32, 8));
    let planes = values("pixels", &[1, 3, 32, 32]);
    let pixels = (0..32 * 32 * 3).map(|i| planes[i % 3 * 1024 + i / 3]).collect::<Vec<_>>();
    let output =
        VisionEncoder::load(&config, &part.weights).unwrap().forward(&Tensor::new([1, 32, 32, 3], pixels));
    assert!(testkit::distance(output.embeds.data(), &read("embeds")) < testkit::tolerance::NETWORK);
    let state = &output.penultimate.data()[3 * 128..4 * 128];
    assert!(testkit::distance(state, &read("state")) < testkit::tolerance::NETWORK);

    let text = all.renamed(|k| (!k.starts_with("visual.")).then(|| k.to_owned()));
    let part = original::open_clip_text(&text).unwrap();
    let config: TextConfig = serde_json::from_value(part.config).unwrap();
    let ids: Vec<u32> = serde_json::from_value(fixture["ids"].clone()).unwrap();
    let output = TextEncoder::load(&config, &part.weights).unwrap().forward(&[ids]);
    let features = output.projected.expect("a projection");
    assert!(testkit::distance(features.data(), &read("features")) < testkit::tolerance::NETWORK);
}

#[test]
fn unets_in_diffusers_names_need_no_configuration() {
    for (name, facts) in [("sd15", SD15), ("sdxl", SDXL)] {
        let all = in_diffusers(&names(&format!("{name}-unet")), "");
        let part = original::diffusers_unet(&weights(&all), &facts).unwrap();
        let original =
            original::unet(&weights(&in_original(&names(&format!("{name}-unet")), "")), &facts).unwrap();
        assert_eq!(part.config, original.config);
        same(&part.weights, &weights(&all));
        let cut: Vec<Filled> =
            all.into_iter().filter(|t| !t.0.starts_with("down_blocks.1.resnets.1.")).collect();
        assert!(original::diffusers_unet(&weights(&cut), &facts).is_err());
    }
}

/// Adapters as training saves them: other beginnings, and the whole UNet beside.
#[test]
fn adapters_of_training_have_published_names() {
    for file in ["sdxl-a-base.safetensors", "sd15-a-plus.safetensors"] {
        let path = testkit::fixtures().join("adapters").join(file);
        let published = Weights::open(&path).unwrap_or_else(|e| panic!("{e}"));
        let mut saved = published.renamed(|key| {
            let ends = [("image_proj.", "image_proj_model."), ("ip_adapter.", "adapter_modules.")];
            ends.iter().find_map(|(a, b)| Some(format!("{b}{}", key.strip_prefix(a)?)))
        });
        assert_eq!(saved.len(), published.len());
        saved.insert("unet.conv_in.weight", Stored::from_f32([1], &[0.0]).unwrap());
        same(&published_names(&saved), &published);
        same(&published_names(&published), &published);
        assert_eq!(AdapterShape::of(&saved).unwrap(), AdapterShape::of(&published).unwrap());
    }
}

/// Adapters whose layers are named by the paths of their processors, as diffusers' `unet.attn_processors` names them
/// (in its order, of the checkpoint's own UNet): in a whole checkpoint, converted, and as diffusers saves its own processors.
#[test]
fn adapters_by_processors_have_published_names() {
    for (file, model) in [("sdxl-a-base.safetensors", "sdxl-a"), ("sd15-a-plus.safetensors", "sd15-a")] {
        let published = Weights::open(testkit::fixtures().join("adapters").join(file)).unwrap();
        let config = testkit::fixtures().join("models").join(model).join("unet/config.json");
        let json = serde_json::from_slice(&std::fs::read(&config).unwrap()).unwrap();
        let sites = sites(&UNetConfig::from_json(&json, &config).unwrap());
        for (image, layer, number) in [
            ("image_proj_model.", "unet.", ""),
            ("image_proj.", "ip_adapter.", ""),
            ("image_proj.", "", ".0"),
        ] {
            let mut saved = published.renamed(|key| {
                if let Some(rest) = key.strip_prefix("image_proj.") {
                    return Some(format!("{image}{rest}"));
                }
                let mut parts = key.split('.').skip(1);
                let ordinal: usize = parts.next()?.parse().ok()?;
                let (path, part) = (&sites.iter().find(|s| s.ordinal == ordinal)?.path, parts.next()?);
                Some(format!("{layer}{path}.attn2.processor.{part}{number}.weight"))
            });
            assert_eq!(saved.len(), published.len());
            saved.insert("unet.conv_in.weight", Stored::from_f32([1], &[0.0]).unwrap());
            same(&published_names(&saved), &published);
            assert_eq!(AdapterShape::of(&saved).unwrap(), AdapterShape::of(&published).unwrap());
            IpAdapter::load(&saved, &sites).unwrap();
        }
    }
}

/// ControlNets in the names of their first publication, as diffusers converts them.
#[test]
fn controlnets_have_diffusers_names() {
    let names = names("sd15-controlnet");
    let path = testkit::fixtures().join("names/sd15.json");
    let saved: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let base = UNetConfig::from_json(&saved["unet"], Path::new("config.json")).unwrap();
    for prefix in ["control_model.", ""] {
        let found = diffusers_names(&weights(&in_original(&names, prefix)), &base);
        same(&found, &weights(&in_diffusers(&names, "")));
    }
}
