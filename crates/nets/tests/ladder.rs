//! The middle of the ladder: whole networks against diffusers and transformers (`testkit/recipe/ladder.py`).

use instantstyle_nets::Tensor;
use instantstyle_nets::clip::{TextConfig, TextEncoder, VisionConfig, VisionEncoder};
use instantstyle_nets::controlnet::{ControlNet, ControlNetConfig};
use instantstyle_nets::ip_adapter::{IpAdapter, Kind};
use instantstyle_nets::unet::{Added, Branch, Conditions, Cross, Injections, UNet, UNetConfig, covers};
use instantstyle_nets::vae::{Decoder, Encoder, Tiling, VaeConfig};
use instantstyle_nets::weights::Weights;
use std::path::{Path, PathBuf};
use testkit::{distance, fixtures, tolerance};

const MODELS: [&str; 5] = ["sd15-a", "sd15-v", "sd15-s", "sdxl-a", "sdxl-b"];

fn ladder(name: &str) -> Option<Weights> {
    let path = fixtures().join(format!("ladder/{name}.safetensors"));
    path.exists().then(|| Weights::open(path).expect("a sound fixture"))
}

fn json(path: &Path) -> serde_json::Value {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).expect("JSON")
}

fn config<T: serde::de::DeserializeOwned>(path: &Path) -> T {
    let mut value = json(path);
    value.as_object_mut().expect("an object").retain(|_, v| !v.is_null());
    serde_json::from_value(value).expect("a configuration")
}

fn model(name: &str) -> PathBuf {
    fixtures().join("models").join(name)
}

fn tensor(w: &Weights, key: &str) -> Tensor {
    let t = w.get(key).unwrap_or_else(|| panic!("{key} is not in the fixture"));
    Tensor::new(t.shape().to_vec(), t.to_f32())
}

/// `[b, c, h, w]` → `[b, h, w, c]`.
fn last(x: &Tensor) -> Tensor {
    let &[b, c, h, w] = x.shape() else { panic!("four axes") };
    let mut out = Tensor::zeros([b, h, w, c]);
    for (i, v) in x.data().iter().enumerate() {
        let (x_at, y, ch, p) = (i % w, i / w % h, i / (w * h) % c, i / (w * h * c));
        out.data_mut()[((p * h + y) * w + x_at) * c + ch] = *v;
    }
    out
}

fn check(what: &str, got: &Tensor, want: &Tensor) {
    assert_eq!(got.shape(), want.shape(), "{what}");
    let d = distance(got.data(), want.data());
    assert!(d < tolerance::NETWORK, "{what}: {d:.1e}");
}

fn load_unet(name: &str) -> UNet {
    let folder = model(name).join("unet");
    let path = folder.join("config.json");
    let config = UNetConfig::from_json(&json(&path), &path).expect("a sound configuration");
    UNet::load(&config, &Weights::open_component(&folder).expect("weights")).expect("a sound model")
}

fn forward(unet: &UNet, w: &Weights, prefix: &str, injections: &Injections) -> Tensor {
    forward_seen(unet, w, prefix, injections, &mut |_, _| {})
}

fn forward_seen(
    unet: &UNet,
    w: &Weights,
    prefix: &str,
    injections: &Injections,
    seen: &mut dyn FnMut(std::fmt::Arguments, &Tensor),
) -> Tensor {
    conditioned(unet, w, prefix, injections, |sample, conditions| {
        unet.forward_seen(sample, 0, conditions, seen)
    })
}

/// Calls `forward` with the latents and the conditions of a fixture.
fn conditioned(
    unet: &UNet,
    w: &Weights,
    prefix: &str,
    injections: &Injections,
    forward: impl FnOnce(&Tensor, &Conditions) -> Tensor,
) -> Tensor {
    let key = |k: &str| format!("{prefix}{k}");
    let sample = last(&tensor(w, &key("sample")));
    let timestep = w.get(&key("timestep")).expect("a timestep");
    let timestep = match timestep.to_f32().first() {
        Some(t) => *t as f64,
        None => panic!("an empty timestep"),
    };
    let pooled = w.get(&key("text_embeds")).map(|_| tensor(w, &key("text_embeds")));
    let sizes: Vec<[f32; 6]> =
        w.get(&key("time_ids")).map(|t| t.to_f32().as_chunks::<6>().0.to_vec()).unwrap_or_default();
    let added = pooled.as_ref().map(|pooled| Added { pooled, sizes: &sizes });
    let times = unet.times(&[timestep], sample.dim(0), added.as_ref(), None);
    let text = unet.text(&tensor(w, &key("context")));
    let conditions = Conditions {
        times: &times,
        text: &text,
        injections,
        residuals: None,
        hidiffusion: None,
        cross: Cross::Computed,
        merging: None,
    };
    forward(&sample, &conditions)
}

#[test]
fn deep_features_of_the_same_call_give_the_same_prediction() {
    for name in MODELS {
        let w = ladder(&format!("unet-{name}")).expect("a fixture for every model");
        let unet = load_unet(name);
        conditioned(&unet, &w, "square.", &Injections::default(), |sample, conditions| {
            let whole = unet.forward(sample, 0, conditions);
            let (kept, deep) = unet.forward_keeping(sample, 0, conditions);
            assert_eq!(kept, whole, "{name}");
            assert_eq!(unet.forward_shallow(sample, 0, conditions, &deep), whole, "{name}");
            whole
        });
    }
}

#[test]
fn unet_equals_diffusers_block_by_block() {
    let (mut blocks, mut parts) = (0, 0);
    for name in MODELS {
        let w = ladder(&format!("unet-{name}")).expect("a fixture for every model");
        let unet = load_unet(name);
        for case in ["square", "odd"] {
            if w.get(&format!("{case}.sample")).is_some() {
                let prefix = format!("{case}.");
                let got = forward_seen(&unet, &w, &prefix, &Injections::default(), &mut |place, got| {
                    let place = place.to_string();
                    if let Some(want) = between(&w, &prefix, &place) {
                        check(&format!("{name} {case}.{place}"), got, &want);
                        parts += 1;
                    }
                    let key = format!("{case}.{place}");
                    // The fixture has the first resnet and attention, and the output of every level.
                    if w.get(&key).is_some() {
                        let want = tensor(&w, &key);
                        // Tokens lie as here, planes do not.
                        let want = if want.shape().len() == 4 { last(&want) } else { want };
                        check(&format!("{name} {key}"), got, &want);
                        blocks += 1;
                    }
                });
                check(&format!("{name} {case}"), &got, &last(&tensor(&w, &format!("{case}.conv_out"))));
            }
        }
    }
    assert_eq!((blocks, parts), (94 + 5, 2 * 5));
}

/// The state after a part of a transformer block, where the fixture has the parts: what went in and all that was added.
fn between(w: &Weights, prefix: &str, place: &str) -> Option<Tensor> {
    let (block, part) = place.rsplit_once(".after_")?;
    let (spatial, _) = block.rsplit_once(".transformer_blocks.0")?;
    w.get(&format!("{prefix}{block}.{part}"))?;
    // A 1×1 convolution gives planes, a linear layer tokens.
    let mut state = tensor(w, &format!("{prefix}{spatial}.proj_in"));
    if state.shape().len() == 4 {
        let planes = last(&state);
        state = planes.clone().reshape([planes.dim(0), planes.dim(1) * planes.dim(2), planes.dim(3)]);
    }
    for one in ["attn1", "attn2"] {
        let added = tensor(w, &format!("{prefix}{block}.{one}"));
        state.data_mut().iter_mut().zip(added.data()).for_each(|(s, a)| *s += a);
        if one == part {
            break;
        }
    }
    Some(state)
}

#[test]
fn unet_with_image_tokens_equals_diffusers() {
    for name in MODELS {
        let Some(w) = ladder(&format!("unet-image-{name}")) else { continue };
        let note = json(&fixtures().join(format!("ladder/unet-image-{name}.json")));
        let note = note["what"].as_str().expect("a note");
        let files: Vec<&str> = note.split('\'').skip(1).step_by(2).collect();
        let unet = load_unet(name);
        let adapters: Vec<(IpAdapter, Tensor)> = files
            .iter()
            .enumerate()
            .map(|(i, file)| {
                let weights = Weights::open(fixtures().join("adapters").join(file)).expect("an adapter");
                let adapter = IpAdapter::load(&weights, unet.sites()).expect("a sound adapter");
                let features = tensor(&w, &format!("embeds.{i}"));
                let (b, channels) = (features.dim(0), features.channels());
                let states = features.data().len() / b / channels;
                let features = match adapter.shape().kind {
                    Kind::Base => features.reshape([b, channels]),
                    _ => features.reshape([b, states, channels]),
                };
                let tokens = adapter.tokens(&features);
                let want = tensor(&w, &format!("tokens.{i}"));
                let shape = tokens.shape().to_vec();
                check(&format!("{name} {file}"), &tokens, &want.reshape(shape));
                (adapter, tokens)
            })
            .collect();
        let inject = |which: &[usize], weight: f32, key: &str| {
            let mut injections = Injections::default();
            for (i, site) in
                unet.sites().iter().enumerate().filter(|(_, s)| key.is_empty() || covers(key, &s.path))
            {
                for &a in which {
                    let tokens = adapters[a].0.key_value(i, &adapters[a].1);
                    injections.push(i, Branch { tokens, weight, calls: 0..1, mask: None });
                }
                let _ = site;
            }
            injections
        };
        let plain = forward(&unet, &w, "", &Injections::default());
        check(&format!("{name} plain"), &plain, &last(&tensor(&w, "plain")));
        for key in w.keys() {
            let injections = if key == "all" {
                inject(&(0..adapters.len()).collect::<Vec<_>>(), 1.0, "")
            } else if let Some(rest) = key.strip_prefix("only") {
                let (which, weight) = rest.split_once(".weight").expect("onlyN.weightW");
                inject(&[which.parse().expect("a number")], weight.parse().expect("a number"), "")
            } else if let Some(site) = key.strip_prefix("site.") {
                inject(&[0], 1.0, site)
            } else {
                continue;
            };
            check(&format!("{name} {key}"), &forward(&unet, &w, "", &injections), &last(&tensor(&w, key)));
        }
    }
}

#[test]
fn controlnets_equal_diffusers() {
    let file = |name: &str| fixtures().join("controls").join(name);
    let base = |name: &str| {
        let path = model(name).join("unet/config.json");
        UNetConfig::from_json(&json(&path), &path).expect("a sound configuration")
    };
    for (name, unet, folder) in [
        ("sd15-a", "sd15-a", true),
        ("sd15-s-small", "sd15-s", true),
        ("sd15-s-pooled", "sd15-s", true),
        ("sdxl-a", "sdxl-a", false),
    ] {
        let w = ladder(&format!("controlnet-{name}")).expect("a fixture");
        let base = base(unet);
        let (config, weights) = if folder {
            let path = file(name).join("config.json");
            let config = ControlNetConfig::from_json(&json(&path), &path).expect("a sound configuration");
            (config, Weights::open_component(file(name)).expect("weights"))
        } else {
            let weights = Weights::open(file(&format!("{name}.safetensors"))).expect("weights");
            (ControlNetConfig::of_weights(&weights, &base).expect("a ControlNet"), weights)
        };
        assert!(config.fits(&base, 4), "{name}");
        // What the shapes tell agrees with the configuration.
        let told = ControlNetConfig::of_weights(&weights, &base).expect("a ControlNet");
        assert_eq!((&told.trunk, &told.hint_widths), (&config.trunk, &config.hint_widths), "{name}");
        let net = ControlNet::load(&config, &weights).expect("a sound model");
        let hint = net.hint(&last(&tensor(&w, "picture")));
        check(&format!("{name} hint"), &hint, &last(&tensor(&w, "hint")));
        let sample = last(&tensor(&w, "sample"));
        let pooled = w.get("text_embeds").map(|_| tensor(&w, "text_embeds"));
        let sizes: Vec<[f32; 6]> =
            w.get("time_ids").map(|t| t.to_f32().as_chunks::<6>().0.to_vec()).unwrap_or_default();
        let added = pooled.as_ref().map(|pooled| Added { pooled, sizes: &sizes });
        let times = net.times(&[741.5], sample.dim(0), added.as_ref());
        let text = net.text(&tensor(&w, "context"));
        let got = net.forward(&sample, &hint, 0, &times, &text, 0.7);
        let everywhere = |want: &Tensor, like: &Tensor| {
            let want = last(want);
            let pixels = like.dim(1) * like.dim(2);
            match want.dim(1) * want.dim(2) {
                1 => {
                    let rows = want.data().chunks_exact(want.channels());
                    let all = rows.flat_map(|r| std::iter::repeat_n(r, pixels).flatten().copied()).collect();
                    Tensor::new(like.shape(), all)
                }
                _ => want,
            }
        };
        assert!(w.get(&format!("down.{}", got.down.len())).is_none());
        for (i, down) in got.down.iter().enumerate() {
            check(&format!("{name} down {i}"), down, &everywhere(&tensor(&w, &format!("down.{i}")), down));
        }
        let mid = got.mid.expect("a whole pass");
        let values: usize = got.down.iter().chain([&mid]).map(|t| t.data().len()).sum();
        assert_eq!(config.residual_bytes(2, sample.dim(1), sample.dim(2)), 4 * values as u64, "{name}");
        check(&format!("{name} mid"), &mid, &everywhere(&tensor(&w, "mid"), &mid));
        assert_eq!(net.forward_outermost(&sample, &hint, 0.7).down[0], got.down[0], "{name}");
    }
}

#[test]
fn text_towers_equal_transformers() {
    for name in MODELS {
        let w = ladder(&format!("text-{name}")).expect("a fixture for every model");
        for part in ["text_encoder", "text_encoder_2"] {
            let Some(ids) = w.get(&format!("{part}.ids")) else { continue };
            let folder = model(name).join(part);
            let config: TextConfig = config(&folder.join("config.json"));
            let net = TextEncoder::load(&config, &Weights::open_component(&folder).expect("weights"))
                .expect("a tower");
            let rows: Vec<Vec<u32>> =
                ids.to_f32().chunks(ids.shape()[1]).map(|r| r.iter().map(|v| *v as u32).collect()).collect();
            let out = net.forward(&rows);
            let last = net.final_norm(&out.hidden[config.num_hidden_layers]);
            check(&format!("{name} {part}"), &last, &tensor(&w, &format!("{part}.last")));
            let before = net.forward_before_last(&rows);
            assert_eq!(before.hidden[..], out.hidden[..config.num_hidden_layers], "{name} {part}");
            for (i, hidden) in out.hidden.iter().enumerate() {
                if let Some(want) = w.get(&format!("{part}.hidden.{i}")) {
                    let n = want.len();
                    let d = distance(&hidden.data()[..n], &want.to_f32());
                    // transformers 5 gives the last one after the final norm.
                    let last = i + 1 == out.hidden.len();
                    assert!(last || d < tolerance::NETWORK, "{name} {part} hidden {i}: {d:.1e}");
                }
            }
            assert_eq!(before.projected.is_some(), out.projected.is_some());
            for projected in [&out.projected, &before.projected].into_iter().flatten() {
                check(
                    &format!("{name} {part} pooled"),
                    projected,
                    &tensor(&w, &format!("{part}.text_embeds")),
                );
            }
        }
    }
}

#[test]
fn picture_towers_equal_transformers() {
    for name in ["vit-a", "vit-b"] {
        let w = ladder(&format!("vision-{name}")).expect("a fixture");
        let config: VisionConfig = config(&model(name).join("config.json"));
        let net = VisionEncoder::load(&config, &Weights::open_component(model(name)).expect("weights"))
            .expect("a tower");
        let pixels = tensor(&w, "pixel_values");
        // The second row of the fixture is a picture of zeros.
        let both = Tensor::stack(&[&last(&pixels), &Tensor::zeros(last(&pixels).shape())]);
        let out = net.forward(&both);
        check(&format!("{name} embeds"), &out.embeds, &tensor(&w, "image_embeds"));
        let want = tensor(&w, &format!("hidden.{}", config.num_hidden_layers - 1));
        check(&format!("{name} states"), &out.penultimate, &want);
        assert_eq!(net.penultimate(&both), out.penultimate, "{name}");
    }
}

#[test]
fn autoencoders_equal_diffusers() {
    for name in MODELS {
        let w = ladder(&format!("vae-{name}")).expect("a fixture for every model");
        let folder = model(name).join("vae");
        let config: VaeConfig = config(&folder.join("config.json"));
        let weights = Weights::open_component(&folder).expect("weights");
        let decoder = Decoder::load(&config, &weights).expect("a decoder");
        let picture = decoder.forward(&last(&tensor(&w, "decode.latents")));
        check(&format!("{name} decode"), &picture, &last(&tensor(&w, "decode.picture")));
        let moments = Encoder::load(&config, &weights)
            .expect("an encoder")
            .forward(&last(&tensor(&w, "encode.picture")));
        let (mean, logvar) = (last(&tensor(&w, "encode.mean")), last(&tensor(&w, "encode.logvar")));
        check(&format!("{name} encode"), &moments, &mean.concat_channels(&logvar));
    }
}

#[test]
fn tiled_autoencoders_equal_diffusers() {
    let w = ladder("vae-tiles-sd15-v").expect("a fixture");
    let folder = model("sd15-v").join("vae");
    let config: VaeConfig = config(&folder.join("config.json"));
    let weights = Weights::open_component(&folder).expect("weights");
    let tiling = Tiling::new(8, config.factor());
    for case in ["both", "wide"] {
        let of = |key: &str| last(&tensor(&w, &format!("{case}.{key}")));
        let decoder = Decoder::load(&config, &weights).expect("a decoder");
        let (latents, want) = (of("decode.latents"), of("decode.picture"));
        let (mut got, mut bands) = (Vec::new(), 0);
        let done = decoder.forward_tiled(&latents, tiling, &mut |band| {
            got.extend_from_slice(band.data());
            bands += 1;
            Ok::<(), ()>(())
        });
        assert_eq!((done, bands), (Ok(()), latents.dim(1).div_ceil(6)));
        check(&format!("{case} decode"), &Tensor::new(want.shape(), got), &want);
        // Tiles are not the whole: the difference is far above the tolerance.
        assert!(distance(decoder.forward(&latents).data(), want.data()) > 1e-2);
        let encoder = Encoder::load(&config, &weights).expect("an encoder");
        let moments = encoder.forward_tiled(&of("encode.picture"), tiling);
        check(&format!("{case} encode"), &moments, &of("encode.moments"));
    }
}

#[test]
fn small_autoencoders_equal_diffusers() {
    let w = ladder("vae-tiny").expect("a fixture");
    let of = |key: &str| last(&tensor(&w, key));
    let folder = model("vae-tiny");
    let weights = Weights::open_component(&folder).expect("weights");
    let config: VaeConfig = config(&folder.join("config.json"));
    assert_eq!((config.is_tiny(), config.factor(), config.scaling_factor), (true, 8, 1.0));
    let check_decoder = |config: &VaeConfig, weights: &Weights| {
        let decoder = Decoder::load(config, weights).expect("a decoder");
        check("decode", &decoder.forward(&of("decode.latents")), &of("decode.picture"));
    };
    let check_encoder = |config: &VaeConfig, weights: &Weights| {
        let encoder = Encoder::load(config, weights).expect("an encoder");
        check("encode", &encoder.forward(&of("encode.picture")), &of("encode.latents"));
    };
    check_decoder(&config, &weights);
    check_encoder(&config, &weights);
    // taesd_decoder.safetensors and taesd_encoder.safetensors: bare numbers, with the decoder's clamp as layer 0.
    let decoder = weights.renamed(|key| {
        let (n, rest) = key.strip_prefix("decoder.layers.")?.split_once('.')?;
        Some(format!("{}.{rest}", n.parse::<usize>().ok()? + 1))
    });
    let encoder = weights.strip_prefix("encoder.layers.");
    let found = VaeConfig::of_tiny(&decoder).expect("a small autoencoder");
    assert_eq!((found.latent_channels, found.factor(), found.scaling_factor), (4, 8, 1.0));
    check_decoder(&found, &decoder);
    check_encoder(&VaeConfig::of_tiny(&encoder).expect("a small autoencoder"), &encoder);
    // One half is not the other, and other weights are neither.
    assert!(Encoder::load(&found, &decoder).is_err() && Decoder::load(&found, &encoder).is_err());
    let other = Weights::open_component(model("sd15-v").join("vae")).expect("weights");
    assert!(VaeConfig::of_tiny(&other).is_none());
    let message = Decoder::load(&found, &other).err().expect("refused").to_string();
    assert!(message.contains("small autoencoder"), "{message}");
    let wider = VaeConfig { latent_channels: 16, ..found };
    assert!(Decoder::load(&wider, &decoder).is_err());
}
