use super::*;

fn parse(text: &str) -> Result<Request, Error> {
    Request::from_json(text, Path::new("/base"))
}

#[test]
fn a_start_is_checked() {
    let init = |json: &str| parse(&format!("{{\"prompt\": \"\", \"init\": {json}}}"));
    let sound =
        init(r#"{"image": "a.png", "strength": 0.5, "mask": "m.png", "blend_px": 4}"#).unwrap().init.unwrap();
    assert_eq!((sound.strength, sound.blend_px), (Some(0.5), Some(4.0)));
    assert_eq!(sound.mask.unwrap(), Path::new("/base/m.png"));
    for (json, field) in [
        (r#"{"strength": 0.5}"#, "init.image"),
        (r#"{"image": "a", "strength": 1.5}"#, "init.strength"),
        (r#"{"image": "a", "strength": "NaN"}"#, "init.strength"),
        (r#"{"image": "a", "blend_px": 4}"#, "init.blend_px"),
        (r#"{"image": "a", "blend_px": -1, "mask": "m"}"#, "init.blend_px"),
        (r#"{"image": "a", "masks": "m"}"#, "init.masks"),
        ("[]", "init"),
    ] {
        let message = init(json).unwrap_err().to_string();
        assert!(message.contains(field), "{json}: {message}");
    }
}

#[test]
fn a_whole_request_survives_the_round_trip() {
    let text = r#"{"model":"m","unet":"u","precision":"f32","device":"cpu","prompt":"a cat","negative_prompt":"","width":64,
        "height":48,"count":2,"seed":9,"steps":4,"guidance":5.0,"guidance_rescale":0.1,"clip_skip":1,"sampler":"euler",
        "init":{"image":"i","strength":1,"mask":"m","blend_px":1},
        "vae":"v",
        "controls":[{"model":"c","image":"e.png","preprocess":"tile","scale":0.5,"start":0.1,"end":0.2,"tile_downscale":4}],
        "loras":[{"file":"f","weight":1,"blocks":"style"}],
        "references":[{"image":"s.png","adapter":"/a.bin","inject":{"up_blocks.0.attentions.1":1.0,"mid_block":0.2},
        "weight":0.5,"subtract":{"text":"a rabbit","scale":0.5},"mask":"m.png","start":0.1,"end":0.9}]}"#;
    let request = parse(text).unwrap();
    assert_eq!(request.model.as_deref(), Some("/base/m"));
    assert_eq!(request.references[0].image, Path::new("/base/s.png"));
    assert_eq!(request.references[0].adapter.as_deref(), Some(Path::new("/a.bin")));
    assert_eq!(request.negative_prompt.as_deref(), Some(""));
    let again = parse(&serde_json::to_string(&request).unwrap()).unwrap();
    assert_eq!(request, again);
}

#[test]
fn faults_name_the_field_and_what_is_allowed() {
    for (text, field, words) in [
        (r#"{"promt":"x"}"#, "promt", "did you mean prompt"),
        (r#"{"steps":0}"#, "steps", "1 to 1000"),
        (r#"{"steps":100000}"#, "steps", "1 to 1000"),
        (r#"{"steps":4.5}"#, "steps", "whole number"),
        (r#"{"seed":-1}"#, "seed", "whole number"),
        (r#"{"guidance":"big"}"#, "guidance", "a number"),
        (r#"{"guidance":1e999}"#, "request", "JSON"),
        (r#"{"guidance":NaN}"#, "request", "NaN and Infinity are not JSON"),
        (r#"{"guidance":-3}"#, "guidance", "0 to 100"),
        (r#"{"guidance_end":1.5}"#, "guidance_end", "0 to 1"),
        (r#"{"guidance_start":0.8,"guidance_end":0.5}"#, "guidance_start", "after guidance_end"),
        (r#"{"seed":1,"seed":2}"#, "seed", "twice"),
        (r#"{"sampler":"eular"}"#, "sampler", "euler"),
        (r#"{"device":"tpu"}"#, "device", "cuda:N"),
        (r#"{"hires":{"scale":0.5}}"#, "hires.scale", "1 to 8"),
        (r#"{"hires":{"scale":2,"width":64}}"#, "hires.scale", "one or the other"),
        (r#"{"hires":{"upscale":"latents"}}"#, "hires.upscale", "did you mean latent"),
        (r#"{"hires":{"strength":NaN}}"#, "request", "NaN and Infinity are not JSON"),
        (r#"{"hires":{"steps":0}}"#, "hires.steps", "1 to 1000"),
        (r#"{"hires":2}"#, "hires", "an object like"),
        (r#"{"vae_tiling":"yes"}"#, "vae_tiling", "auto, on, off"),
        (r#"{"references":[{}]}"#, "references[0].image", "missing"),
        (r#"{"loras":[{"weight":1}]}"#, "loras[0].file", "missing"),
        (r#"{"controls":[{"model":"m"}]}"#, "controls[0].image", "missing"),
        (r#"{"controls":[{"image":"i"}]}"#, "controls[0].model", "missing"),
        (r#"{"controls":[{"model":"m","image":"i","scale":-1}]}"#, "controls[0].scale", "0 to 10"),
        (r#"{"controls":[{"model":"m","image":"i","scale":"NaN"}]}"#, "controls[0].scale", "0 to 10"),
        (
            r#"{"controls":[{"model":"m","image":"i","scale":NaN}]}"#,
            "request",
            "NaN and Infinity are not JSON",
        ),
        (r#"{"controls":[{"model":"m","image":"i","scale":1e999}]}"#, "request", "JSON"),
        (
            r#"{"controls":[{"model":"m","image":"i","start":0.9,"end":0.1}]}"#,
            "controls[0].start",
            "after end",
        ),
        (
            r#"{"controls":[{"model":"m","image":"i","preprocess":"cany"}]}"#,
            "controls[0].preprocess",
            "did you mean canny",
        ),
        (r#"{"controls":[{"model":"m","image":"i","mask":"i"}]}"#, "controls[0].mask", "its fields are"),
        (
            r#"{"controls":[{"model":"m","image":"i","preprocess":"depth"}]}"#,
            "controls[0].preprocess_model",
            "Depth Anything",
        ),
        (
            r#"{"controls":[{"model":"m","image":"i","preprocess":"canny","preprocess_model":"d.onnx"}]}"#,
            "controls[0].preprocess_model",
            "preprocess is canny",
        ),
        (
            r#"{"controls":[{"model":"m","image":"i","preprocess":"depth","preprocess_model":"d.onnx","preprocess_detector":"p"}]}"#,
            "controls[0].preprocess_detector",
            "needs preprocess pose",
        ),
        (
            r#"{"controls":[{"model":"m","image":"i","canny_low":1}]}"#,
            "controls[0].canny_low",
            "needs preprocess canny",
        ),
        (
            r#"{"controls":[{"model":"m","image":"i","preprocess":"canny","canny_low":300}]}"#,
            "controls[0].canny_low",
            "above canny_high",
        ),
        (r#"{"vae":""}"#, "vae", "a path"),
        (r#"{"loras":[{"file":"a","blocks":"styles"}]}"#, "loras[0].blocks", "did you mean style"),
        (r#"{"references":[{"image":"a","inject":"styl"}]}"#, "references[0].inject", "style+layout"),
        (
            r#"{"references":[{"image":"a","inject":{"up blocks":1}}]}"#,
            "references[0].inject",
            "part of a UNet",
        ),
        (
            r#"{"references":[{"image":"a","inject":{"mid_block":"1"}}]}"#,
            "references[0].inject.mid_block",
            "-10 to 10",
        ),
        (r#"{"references":[{"image":"a","start":0.9,"end":0.1}]}"#, "references[0].start", "after end"),
        (
            r#"{"references":[{"image":"a","subtract":{"scale":1}}]}"#,
            "references[0].subtract.text",
            "missing",
        ),
        (r#"{"references":[{"image":"a","weigth":1}]}"#, "references[0].weigth", "did you mean weight"),
        (r#"{"steps":"4"}"#, "steps", "whole number"),
        (r#"{"seed":3.0}"#, "seed", "whole number"),
        (r#"{"seed":18446744073709551615,"count":2}"#, "seed", "smaller"),
        (r#"{"seed":18446744073709551616}"#, "seed", "whole number"),
        (r#"{"count":0}"#, "count", "1 to 1000"),
        (r#"{"device":"cuda:+1"}"#, "device", "cuda:N"),
        (r#"{"precision":"fp16"}"#, "precision", "did you mean f16"),
        (r#"{"prompt":"a\u0000b"}"#, "prompt", "NUL"),
        (r#"{"prompt":7}"#, "prompt", "text in quotes"),
        (r#"{"model":""}"#, "model", "embedded"),
        (r#"{"references":{}}"#, "references", "list"),
        (r#"{"references":["style.png"]}"#, "references[0]", "object"),
        (r#"{"references":[{"image":"a","weight":-Infinity}]}"#, "request", "NaN and Infinity are not JSON"),
        (r#"{"references":[{"image":"a","inject":{}}]}"#, "references[0].inject", "0 parts"),
        (
            r#"{"references":[{"image":"a","inject":{"mid_block":1,"mid_block":2}}]}"#,
            "references[0].inject.mid_block",
            "twice",
        ),
        (
            r#"{"references":[{"image":"a","inject":{"mid_block.":1}}]}"#,
            "references[0].inject",
            "part of a UNet",
        ),
        (
            r#"{"references":[{"image":"a","subtract":{"text":"b","scale":99}}]}"#,
            "references[0].subtract.scale",
            "-10 to 10",
        ),
        (r#"{"references":[{"image":null}]}"#, "references[0].image", "missing"),
        ("[1]", "request", "object"),
        ("", "request", "JSON"),
    ] {
        match parse(text) {
            Err(Error::Request { field: f, message }) => {
                assert_eq!(f, field, "{text}: {message}");
                assert!(message.contains(words), "{text}: {message}");
            }
            other => panic!("{text}: {other:?}"),
        }
    }
}

#[test]
fn a_fault_beside_a_word_is_not_blamed_on_it() {
    for text in [r#"{"prompt": "a banana" "seed": 3}"#, r#"{"prompt": "Infinity", }"#] {
        let message = parse(text).unwrap_err().to_string();
        assert!(!message.contains("NaN"), "{message}");
    }
}

#[test]
fn every_message_is_one_line() {
    for text in [
        "{\"a\\nb\": 1}",
        r#"{"sampler": "a\nb"}"#,
        "{\"references\":[{\"image\":\"a\",\"inject\":{\"x\\ny\":1}}]}",
    ] {
        let message = parse(text).unwrap_err().to_string();
        assert!(!message.contains('\n'), "{message}");
    }
}

#[test]
fn the_largest_seed_counts() {
    let request = parse(r#"{"seed":18446744073709551615}"#).unwrap();
    assert_eq!(request.seed, Some(u64::MAX));
    assert_eq!(parse(&serde_json::to_string(&request).unwrap()).unwrap(), request);
}

#[test]
fn numbers_survive_the_round_trip_to_the_bit() {
    // The shortest form of a number must be read back to the same number: pictures repeat to the byte.
    let mut state = 7u64;
    for _ in 0..20_000 {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let guidance = (state >> 11) as f64 / (1u64 << 53) as f64 * 100.0;
        let request = Request { guidance: Some(guidance), ..Request::default() };
        assert_eq!(request.checked(Path::new("/")).unwrap().guidance, Some(guidance));
    }
}

#[test]
fn the_short_form_of_inject() {
    assert_eq!(parse_inject("--inject", "style+layout").unwrap(), Inject::Preset(Preset::StyleLayout));
    let blocks = Inject::Blocks(vec![("mid_block".into(), 0.5), ("up_blocks.1".into(), -1.0)]);
    assert_eq!(parse_inject("--inject", "mid_block=.5, up_blocks.1=-1").unwrap(), blocks);
    for text in
        ["", "styl", "mid_block", "mid_block=", "mid_block=nan", "a=1,a=2", "mid_block=99", "=1", "a b=1"]
    {
        assert!(parse_inject("--inject", text).is_err(), "{text}");
    }
}

#[test]
fn the_tables_are_complete() {
    let text = r#"{"model":"m","unet":"u","precision":"f32","device":"cpu","prompt":"p","negative_prompt":"n","width":8,"height":8,
        "count":1,"seed":1,"steps":1,"guidance":1,"guidance_rescale":0,"guidance_start":0,"guidance_end":1,"deep_cache":2,
        "cross_freeze":1,"token_merging":0,"clip_skip":0,"sampler":"euler",
        "schedule":"karras","fast":"lcm",
        "vae_tiling":"on","hidiffusion":"on","hires":{"width":8,"height":8,"strength":1,"upscale":"latent","steps":1},
        "init":{"image":"i","strength":1,"mask":"m","blend_px":1},
        "vae":"v",
        "controls":[{"model":"m","image":"i","preprocess":"canny","scale":1,"start":0,"end":1,"canny_low":50,"canny_high":200}],
        "loras":[{"file":"f","weight":1,"blocks":"style"}],
        "references":[{"image":"i","adapter":"a","image_encoder":"e","text_encoder":"t","inject":"all","weight":1,
        "subtract":{"text":"s","scale":1},"mask":"m","start":0,"end":1}]}"#;
    let stored = serde_json::to_value(parse(text).unwrap()).unwrap();
    let keys = |v: &serde_json::Value| {
        v.as_object().unwrap().keys().cloned().collect::<std::collections::BTreeSet<_>>()
    };
    let names =
        |t: &[fields::Field]| t.iter().map(|f| f.name.to_owned()).collect::<std::collections::BTreeSet<_>>();
    assert_eq!(keys(&stored), names(fields::REQUEST));
    assert_eq!(keys(&stored["init"]), names(fields::INIT));
    let mut hires = names(fields::HIRES);
    hires.remove("scale");
    assert_eq!(keys(&stored["hires"]), hires, "all but what excludes the sides");
    assert_eq!(keys(&stored["loras"][0]), names(fields::LORA));
    let mut control = keys(&stored["controls"][0]);
    // Belongs to another map than the canny of this request.
    for name in ["tile_downscale", "preprocess_model", "preprocess_detector"] {
        control.insert(name.into());
    }
    assert_eq!(control, names(fields::CONTROL));
    assert_eq!(keys(&stored["references"][0]), names(fields::REFERENCE));
    assert_eq!(keys(&stored["references"][0]["subtract"]), names(fields::SUBTRACT));
    assert_eq!(keys(&fields::schema()["properties"]), names(fields::REQUEST));
}

#[test]
fn random_damage_never_panics() {
    let good = br#"{"prompt":"a","seed":3,"init":{"image":"i","mask":"m"},"references":[{"image":"s","inject":{"mid_block":0.2},"subtract":{"text":"t"}}]}"#;
    let mut state = 1u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as usize
    };
    for _ in 0..5000 {
        let mut bytes = good.to_vec();
        for _ in 0..1 + next() % 4 {
            let at = next() % bytes.len();
            match next() % 3 {
                0 => bytes[at] = next() as u8,
                1 => bytes.truncate(at.max(1)),
                _ => bytes.insert(at, b"{}[]\",:0-e"[next() % 10]),
            }
        }
        if let Ok(text) = std::str::from_utf8(&bytes) {
            let _ = parse(text);
        }
    }
}
