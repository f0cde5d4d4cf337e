//! Maps beside those of onnxruntime, transformers and OpenCV (`testkit/recipe/maps.py`).

use super::super::{MAPS, map_of};
use super::estimator::aux_size;
use super::network::Network;
use super::people::people;
use super::pose::body;
use crate::error::Error;
use crate::picture::{Filter, Picture, resize};
use crate::request::Control;
use std::path::Path;

/// The picture of a case and the request for its map.
fn case(name: &str) -> (Picture, Control, Picture) {
    let folder = testkit::fixtures().join("maps");
    let index = std::fs::read_to_string(folder.join("index.json")).expect("a fixture");
    let index: serde_json::Value = serde_json::from_str(&index).expect("JSON");
    let side = |i: usize| index[name]["size"][i].as_u64().expect("a size") as usize;
    let image = testkit::fixtures().join("images").join(index[name]["image"].as_str().expect("a name"));
    let picture = resize(&Picture::open(&image).expect("a picture"), side(0), side(1), Filter::Lanczos);
    let mut control = Control::new("", image);
    control.preprocess = name.strip_suffix("_people").unwrap_or(name).to_owned();
    control.preprocess_model = Some(folder.join(format!("{}.onnx", control.preprocess)));
    control.preprocess_detector = name.ends_with("_people").then(|| folder.join("people.onnx"));
    let expected = Picture::open(folder.join(format!("{name}.png"))).expect("a fixture");
    (picture, control, expected)
}

fn made(picture: &Picture, control: &Control) -> Result<Picture, Error> {
    map_of(&control.preprocess).expect("a row").make.map(picture, control)
}

/// Largest difference, and the part of the values that differ by more than `levels`.
fn difference(a: &Picture, b: &Picture, levels: u8) -> (u8, f64) {
    assert_eq!((a.width, a.height), (b.width, b.height));
    let apart: Vec<u8> = a.rgb.iter().zip(&b.rgb).map(|(a, b)| a.abs_diff(*b)).collect();
    let more = apart.iter().filter(|d| **d > levels).count() as f64 / apart.len() as f64;
    (apart.into_iter().max().unwrap_or(0), more)
}

#[test]
fn maps_equal_the_references() {
    for map in MAPS.iter().filter(|m| m.make.expects().is_some() && m.name != "pose") {
        let (picture, control, expected) = case(map.name);
        let found = made(&picture, &control).unwrap_or_else(|e| panic!("{}: {e}", map.name));
        let (most, _) = difference(&found, &expected, 0);
        println!("{}: {most}", map.name);
        assert!(most <= 1, "{}: {most} levels apart", map.name);
        // Not for any network.
        let same = control.image.ends_with("rings.png");
        let (other, ..) = case(if same { "normal_bae" } else { "depth" });
        let other = resize(&other, picture.width, picture.height, Filter::Lanczos);
        let (most, _) = difference(&made(&other, &control).expect("a map"), &expected, 0);
        assert!(most > 20, "{}: another picture gives the same", map.name);
    }
}

#[test]
fn people_and_their_points_are_where_the_references_are() {
    let folder = testkit::fixtures().join("maps");
    let index = std::fs::read_to_string(folder.join("index.json")).expect("a fixture");
    let index: serde_json::Value = serde_json::from_str(&index).expect("JSON");
    let rows = |v: &serde_json::Value| -> Vec<Vec<f64>> {
        serde_json::from_value(v.clone()).expect("rows of numbers")
    };
    let (picture, control, _) = case("pose_people");
    let (width, height) = aux_size(picture.width, picture.height);
    let seen = resize(&picture, width, height, Filter::Lanczos);
    let found = people(&seen, control.preprocess_detector.as_deref().expect("a file")).expect("people");
    let boxes = rows(&index["pose_people"]["boxes"]);
    assert!(boxes.len() > 1 && found.len() == boxes.len(), "{} of {} people", found.len(), boxes.len());
    let network = Network::open(control.preprocess_model.as_deref().expect("a file")).expect("a network");
    for ((area, expected), points) in
        found.iter().zip(&boxes).zip(index["pose_people"]["points"].as_array().expect("points"))
    {
        let apart = area.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        let points = rows(points);
        let body = body(&network, &seen, area).expect("a body");
        assert_eq!(body.len(), points.len());
        let mut most = [0.0f64; 2];
        for (p, e) in body.iter().zip(&points) {
            most[0] = most[0].max((p.x - e[0]).abs()).max((p.y - e[1]).abs());
            most[1] = most[1].max((f64::from(p.score) - e[2]).abs());
        }
        // The references are written with two decimals.
        assert!(apart < 0.006 && most[0] < 0.006 && most[1] < 0.006, "box {apart}, points {most:?}");
    }
}

#[test]
fn poses_are_drawn_as_the_references() {
    for name in ["pose", "pose_people"] {
        let (picture, control, expected) = case(name);
        let found = made(&picture, &control).unwrap_or_else(|e| panic!("{name}: {e}"));
        let (most, more) = difference(&found, &expected, 8);
        println!("{name}: {most}, {more}");
        // Limbs are exact ellipses here and polygons of whole pixels there: outlines differ.
        assert!(more < 0.02, "{name}: {more} of the values differ");
        let drawn = expected.rgb.iter().filter(|v| **v > 0).count();
        assert!(drawn > expected.rgb.len() / 50, "{name}: nothing to compare");
    }
}

#[test]
fn threads_change_nothing() {
    let of = |n: usize, name: &str| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(n).build().expect("a pool");
        let (picture, control, _) = case(name);
        pool.install(|| made(&picture, &control)).expect("a map")
    };
    for name in ["depth", "depth_midas", "softedge_hed", "pose_people"] {
        assert_eq!(of(1, name), of(3, name), "{name}");
    }
}

#[test]
fn wrong_files_say_what_was_expected() {
    let folder = tempfile::tempdir().expect("a folder");
    let maps = testkit::fixtures().join("maps");
    let said = |name: &str, file: &Path| {
        let (picture, mut control, _) = case(name);
        control.preprocess_model = Some(file.to_owned());
        match made(&picture, &control) {
            Err(e @ Error::File { .. }) if !e.to_string().contains('\n') => e.to_string(),
            other => panic!("{name}: {:?}", other.map(|_| "a map")),
        }
    };
    let network = |name: &str| maps.join(format!("{name}.onnx"));
    for (name, file, words) in [
        ("depth", network("pose"), "Depth Anything"),
        ("softedge_hed", network("normal_bae"), "HED"),
        ("softedge_pidinet", network("pose"), "PiDiNet"),
        ("normal_bae", network("lineart_realistic"), "three channels"),
        ("pose", network("depth"), "DWPose"),
        ("pose", network("people"), "17 points"),
        ("depth", maps.join("depth.png"), "ONNX file"),
        ("depth", maps.clone(), "is no file"),
    ] {
        let said = said(name, &file);
        // A network of another kind is told by what it gives, or by what it cannot do with this picture.
        assert!(said.contains(words) || said.contains("cannot be run"), "{name}: {said}");
    }
    // Damaged in every way that a cut and a changed byte are.
    let whole = std::fs::read(network("softedge_pidinet")).expect("a fixture");
    let file = folder.path().join("damaged.onnx");
    // What is left of a cut file may be a smaller network: refused or run, never a panic.
    for cut in (0..whole.len()).step_by(7) {
        std::fs::write(&file, &whole[..cut]).expect("a file");
        let (picture, mut control, _) = case("softedge_pidinet");
        control.preprocess_model = Some(file.clone());
        match made(&picture, &control) {
            Ok(map) => assert_eq!((map.width, map.height), (picture.width, picture.height)),
            Err(e) => assert!(matches!(e, Error::File { .. }) && !e.to_string().contains('\n'), "{e}"),
        }
    }
    // An operator that there is not.
    let at = whole.windows(7).position(|w| w == b"Sigmoid").expect("an operator");
    let mut other = whole.clone();
    other[at..at + 7].copy_from_slice(b"Sigmund");
    std::fs::write(&file, &other).expect("a file");
    assert!(said("softedge_pidinet", &file).contains("Sigmund"));
    // A length below zero, at which the runtime would read the same bytes for ever.
    std::fs::write(&file, [&whole[..], &[2 << 3 | 2], &[255; 9], &[1]].concat()).expect("a file");
    assert!(said("softedge_pidinet", &file).contains("longer than the file"));
    // No file of this size is read.
    let large = std::fs::File::create(folder.path().join("large.onnx")).expect("a file");
    large.set_len(super::network::MAX_FILE_BYTES + 1).expect("a size");
    assert!(said("depth", &folder.path().join("large.onnx")).contains("more than an ONNX file can hold"));
}
