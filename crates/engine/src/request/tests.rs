use super::*;

fn parse(text: &str) -> Result<Request, Error> {
    Request::from_json(text, Path::new("/base"))
}

#[test]
fn a_whole_request_survives_the_round_trip() {
    let text = r#"{"model":"m","precision":"f32","device":"cpu","prompt":"a cat","negative_prompt":"","width":64,
        "height":48,"count":2,"seed":9,"steps":4,"guidance":5.0,"guidance_rescale":0.1,"clip_skip":1,"sampler":"euler",
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
        (r#"{"seed":1,"seed":2}"#, "seed", "twice"),
        (r#"{"sampler":"eular"}"#, "sampler", "euler"),
        (r#"{"device":"tpu"}"#, "device", "cuda:0"),
        (r#"{"references":[{}]}"#, "references[0].image", "needed"),
        (r#"{"references":[{"image":"a","inject":"styl"}]}"#, "references[0].inject", "style+layout"),
        (
            r#"{"references":[{"image":"a","inject":{"up blocks":1}}]}"#,
            "references[0].inject",
            "path of the UNet",
        ),
        (
            r#"{"references":[{"image":"a","inject":{"mid_block":"1"}}]}"#,
            "references[0].inject.mid_block",
            "-10 to 10",
        ),
        (r#"{"references":[{"image":"a","start":0.9,"end":0.1}]}"#, "references[0].start", "after end"),
        (r#"{"references":[{"image":"a","subtract":{"scale":1}}]}"#, "references[0].subtract.text", "needed"),
        (r#"{"references":[{"image":"a","weigth":1}]}"#, "references[0].weigth", "did you mean weight"),
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
fn random_damage_never_panics() {
    let good = br#"{"prompt":"a","seed":3,"references":[{"image":"s","inject":{"mid_block":0.2},"subtract":{"text":"t"}}]}"#;
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
