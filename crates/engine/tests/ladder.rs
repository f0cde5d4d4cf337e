//! The ladder's rungs that belong to the engine: torch's noise, masks over tokens, and what the picture towers see
//! (`testkit/recipe/ladder.py`).

use instantstyle_engine::control::MAPS;
use instantstyle_engine::injection::mask_for_tokens;
use instantstyle_engine::picture::{ClipPreprocess, Filter, Picture, clip_preprocess, resize};
use instantstyle_engine::request::Control;
use instantstyle_engine::rng::TorchRng;
use instantstyle_nets::weights::Weights;
use testkit::{distance, fixtures, tolerance};

fn ladder(name: &str) -> Weights {
    Weights::open(fixtures().join(format!("ladder/{name}.safetensors"))).expect("a sound fixture")
}

fn picture(name: &str) -> Picture {
    Picture::open(fixtures().join(format!("images/{name}.png"))).expect("a picture")
}

#[test]
fn noise_equals_torch() {
    let w = ladder("noise");
    let mut seen = 0;
    for key in w.keys().filter(|k| !k.ends_with(".next")) {
        let (seed, _) = key.split_once('.').expect("seed.shape");
        let mut rng = TorchRng::new(seed.parse().expect("a seed"));
        for key in [key.to_owned(), format!("{key}.next")] {
            let want = w.get(&key).expect("both draws").to_f32();
            let got = rng.normal_f32(want.len());
            for (got, want) in got.iter().zip(&want) {
                assert!((got - want).abs() < 1e-6, "{key}: {got}, not {want}");
            }
            seen += 1;
        }
    }
    assert_eq!(seen, 80);
}

#[test]
fn masks_equal_diffusers() {
    let w = ladder("masks");
    let mut seen = 0;
    for key in w.keys() {
        let parts: Vec<&str> = key.split('.').collect();
        let &[name, size, what] = parts.as_slice() else { panic!("{key}: NAME.WIDTHxHEIGHT.WHAT") };
        let (width, height) = size.split_once('x').expect("WIDTHxHEIGHT");
        let (width, height) = (width.parse().expect("a width"), height.parse().expect("a height"));
        let want = w.get(key).expect("a key of its own").to_f32();
        if what == "full" {
            let grey = resize(&picture(name), width, height, Filter::Lanczos).to_grey();
            let got: Vec<f32> =
                grey.l.iter().map(|l| f32::from(u8::from(*l as f32 / 255.0 >= 0.5))).collect();
            assert_eq!(got, want, "{key}");
        } else {
            let full = w.get(&format!("{name}.{size}.full")).expect("the whole mask").to_f32();
            let got = mask_for_tokens(&full, height, width, what.parse().expect("a count"));
            for (got, want) in got.iter().zip(&want) {
                assert!((got - want).abs() < 1e-6, "{key}: {got}, not {want}");
            }
            assert_eq!(got.len(), want.len(), "{key}");
        }
        seen += 1;
    }
    assert_eq!(seen, 96);
}

#[test]
fn towers_see_what_transformers_makes_of_a_picture() {
    let w = ladder("pixel_values");
    let mut seen = 0;
    for key in w.keys() {
        let (_, name) = key.split_once('.').expect("TOWER.NAME");
        let want = w.get(key).expect("a key of its own");
        let got = clip_preprocess(&picture(name), &ClipPreprocess::new(want.shape()[1]));
        let d = distance(&got, &want.to_f32());
        assert!(d < tolerance::OPERATION, "{key}: {d:.1e}");
        seen += 1;
    }
    assert_eq!(seen, 22);
}

/// The same pixels as `noise_picture` of the recipe makes.
fn noise(width: usize, height: usize, most: u64) -> Picture {
    let mut state = (7 * width + height) as u64;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((state >> 40) % (most + 1)) as u8
    };
    Picture::new(width, height, (0..width * height * 3).map(|_| next()).collect()).expect("a picture")
}

#[test]
fn control_maps_equal_opencv_and_pillow() {
    let w = ladder("control-maps");
    let mut seen = 0;
    for key in w.keys() {
        let parts: Vec<&str> = key.split('|').collect();
        let numbers: Vec<f64> = parts[2..].iter().map(|n| n.parse().expect("a number")).collect();
        let picture = match parts[1].strip_prefix("noise.") {
            None => picture(parts[1]),
            Some(rest) => {
                let n: Vec<u64> = rest.split('.').map(|n| n.parse().expect("a number")).collect();
                noise(n[0] as usize, n[1] as usize, n[2])
            }
        };
        let mut control = Control::new("", "");
        control.preprocess = parts[0].to_owned();
        match numbers[..] {
            [low, high] => (control.canny_low, control.canny_high) = (Some(low), Some(high)),
            [factor] => control.tile_downscale = Some(factor),
            _ => {}
        }
        let map = MAPS.iter().find(|m| m.name == parts[0]).expect("a map");
        let got = map.make.map(&picture, &control).expect("made here");
        let want = w.get(key).expect("a key of its own");
        let want = want.to_f32();
        let (step, factor) = match parts[0] {
            "canny" => (3, 255.0),
            "lineart" => (3, 1.0),
            _ => (1, 1.0),
        };
        let got: Vec<f32> = got.rgb.iter().step_by(step).map(|v| f32::from(*v) / factor).collect();
        let different = got.iter().zip(&want).filter(|(g, w)| g != w).count();
        assert_eq!((got.len(), different), (want.len(), 0), "{key}");
        seen += 1;
    }
    assert_eq!(seen, 95);
}
