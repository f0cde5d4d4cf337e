//! Pictures as Pillow reads and resizes them, and CLIP's preprocessing as transformers does it
//! (`testkit/recipe/files.py pictures`).

#[path = "../../nets/tests/mutate/mod.rs"]
mod mutate;

use instantstyle_engine::picture::*;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/pictures").join(name)
}

fn bytes(name: &str) -> Vec<u8> {
    std::fs::read(fixture(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

fn inflated(name: &str) -> Vec<u8> {
    let mut out = Vec::new();
    flate2::read::ZlibDecoder::new(&bytes(name)[..]).read_to_end(&mut out).unwrap();
    out
}

/// A folder of its own for one test.
fn folder(name: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

#[test]
fn every_format_reads_as_pillow_reads_it() {
    let expected: BTreeMap<String, [usize; 2]> = serde_json::from_slice(&bytes("expected.json")).unwrap();
    let mut wrong = Vec::new();
    for (name, [width, height]) in &expected {
        let rgb = inflated(&format!("{name}.rgb"));
        match Picture::open(fixture(name)) {
            Err(e) => wrong.push(e.to_string()),
            Ok(p) if (p.width, p.height) != (*width, *height) => {
                wrong.push(format!("{name}: {}×{}, expected {width}×{height}", p.width, p.height));
            }
            Ok(p) => {
                let most = p.rgb.iter().zip(&rgb).map(|(a, b)| a.abs_diff(*b)).max();
                let many = p.rgb.iter().zip(&rgb).filter(|(a, b)| a != b).count();
                if many > 0 {
                    wrong.push(format!("{name}: {many} of {} samples differ, by up to {most:?}", rgb.len()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), expected.len(), wrong.join("\n"));
}

fn source(sources: &Value, i: usize) -> Picture {
    let [w, h] = [0, 1].map(|k| sources[i][k].as_u64().unwrap() as usize);
    Picture::new(w, h, bytes(&format!("source{i}.raw"))).unwrap()
}

#[test]
fn resizing_equals_pillow() {
    let cases: Value = serde_json::from_slice(&bytes("resizes.json")).unwrap();
    let blob = inflated("resizes.bin");
    let list = cases["resize"].as_array().unwrap();
    let mut wrong = Vec::new();
    for case in list {
        let picture = source(&cases["sources"], case["source"].as_u64().unwrap() as usize);
        let [w, h] = [0, 1].map(|k| case["size"][k].as_u64().unwrap() as usize);
        let filter = match case["filter"].as_str().unwrap() {
            "Nearest" => Filter::Nearest,
            "Bilinear" => Filter::Bilinear,
            "Bicubic" => Filter::Bicubic,
            _ => Filter::Lanczos,
        };
        let found = if case["mode"] == "RGB" {
            resize(&picture, w, h, filter).rgb
        } else {
            resize_grey(&picture.to_grey(), w, h, filter).l
        };
        let at = case["at"].as_u64().unwrap() as usize;
        let differ = found.iter().zip(&blob[at..]).filter(|(a, b)| a != b).count();
        let most = found.iter().zip(&blob[at..]).map(|(a, b)| a.abs_diff(*b)).max();
        if differ > 0 {
            wrong.push(format!("{case}: {differ} of {} differ, by up to {most:?}", found.len()));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), list.len(), wrong.join("\n"));
    assert!(list.len() > 200);
}

#[test]
fn clip_preprocessing_equals_transformers() {
    let cases: Value = serde_json::from_slice(&bytes("resizes.json")).unwrap();
    let blob = inflated("resizes.bin");
    for case in cases["clip"].as_array().unwrap() {
        let [i, size, crop, at] =
            ["source", "size", "crop", "at"].map(|k| case[k].as_u64().unwrap() as usize);
        let params = ClipPreprocess { crop, ..ClipPreprocess::new(size) };
        let found = clip_preprocess(&source(&cases["sources"], i), &params);
        assert_eq!(found.len(), 3 * crop * crop);
        let expected =
            blob[at..at + found.len() * 4].as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b));
        let most = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert_eq!(most, 0.0, "{case}");
    }
}

#[test]
fn preprocessor_config_is_read_as_transformers_reads_it() {
    let cases: Value = serde_json::from_slice(&bytes("processors.json")).unwrap();
    for case in cases.as_array().unwrap() {
        let params = ClipPreprocess::from_json(&case["config"]).unwrap();
        let [w, h] = [0, 1].map(|k| case["size"][k].as_u64().unwrap() as usize);
        let raw = bytes(&format!("source{}.raw", case["source"]));
        let found = clip_preprocess(&Picture::new(w, h, raw).unwrap(), &params);
        let want: Vec<f64> = case["pixels"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
        assert_eq!(found.len(), want.len());
        for (got, want) in found.iter().zip(&want) {
            assert!((*got as f64 - want).abs() <= want.abs() * 1e-7, "{}: {got}, not {want}", case["config"]);
        }
    }
    for (config, key) in [
        (json!({"do_center_crop": false}), "do_center_crop"),
        (json!({"do_resize": 1}), "do_resize"),
        (json!({"size": {"height": 8, "width": 8}}), "size"),
        (json!({"size": 0}), "size"),
        (json!({"crop_size": {"height": 8, "width": 9}}), "crop_size"),
        (json!({"crop_size": 1_000_000}), "crop_size"),
        (json!({"resample": 5}), "resample"),
        (json!({"image_mean": [0.5]}), "image_mean"),
        (json!({"image_std": [0.5, 0, 0.5]}), "image_std"),
        (json!({"rescale_factor": 0}), "rescale_factor"),
        (json!({"image_processor_type": "SiglipImageProcessor"}), "image_processor_type"),
    ] {
        let message = ClipPreprocess::from_json(&config).unwrap_err();
        assert!(message.starts_with(&format!("{key} is ")) && message.contains("expected"), "{message}");
    }
    assert_eq!(ClipPreprocess::from_json(&json!({})), Ok(ClipPreprocess::new(224)));
}

#[test]
fn a_thread_of_pixels_needs_no_memory() {
    // Resized as a whole this would have 224 × 22,400,000 pixels.
    let thread = Picture::new(1, 100_000, [200, 100, 50].repeat(100_000)).unwrap();
    assert_eq!(clip_preprocess(&thread, &ClipPreprocess::new(224)).len(), 3 * 224 * 224);
    assert_eq!(resize(&thread, 3, 2, Filter::Lanczos).rgb, [200, 100, 50].repeat(6));
}

#[test]
fn bad_files_are_named() {
    let dir = folder("bad_pictures");
    // 40 bytes: signature, header of 60,000 × 60,000, the beginning of a chunk.
    let mut huge = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\xea\x60\0\0\xea\x60\x08\x02\0\0\0".to_vec();
    huge.resize(40, 0);
    let cut = |name: &str, n: usize| bytes(name)[..n].to_vec();
    let mut empty = bytes("rgb.png");
    empty[16..20].fill(0);
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("empty.png", vec![], "the file is empty"),
        ("huge.png", huge, "60000×60000 pixels, expected at most 100 megapixels"),
        ("page.png", b" <!doctype HTML><html>".to_vec(), "an HTML page"),
        ("a.svg", b"<svg xmlns='x'>".to_vec(), "SVG"),
        ("a.jpg", b"\0\0\0\x20ftypavif0000".to_vec(), "AVIF"),
        ("a.mp4", b"\0\0\0\x20ftypisom0000".to_vec(), "a video"),
        ("a.json", b"{}".to_vec(), "JSON"),
        ("a.txt", b"hello".to_vec(), "expected PNG, JPEG, WebP, GIF, BMP or TIFF"),
        ("moving.gif", bytes("moving.gif"), "moves"),
        ("moving.png", bytes("moving.png"), "moves"),
        ("moving.webp", bytes("moving.webp"), "moves"),
        ("pages.tif", bytes("pages.tif"), "several pages"),
        ("cut.png", cut("rgb.png", 300), "incomplete"),
        ("cut.jpg", cut("420.jpg", 1200), "incomplete"),
        ("head.jpg", cut("420.jpg", 4), "incomplete"),
        ("cut_progressive.jpg", cut("420_progressive.jpg", 1500), "incomplete"),
        ("cut.webp", cut("lossy.webp", 500), "incomplete"),
        ("cut.gif", cut("one.gif", 200), "incomplete"),
        ("cut.bmp", cut("rgb.bmp", 200), "incomplete"),
        ("cut.tif", cut("rgb.tif", 200), "incomplete"),
        ("none.png", empty, "has nothing to show"),
    ];
    for (name, content, expected) in cases {
        std::fs::write(dir.join(name), content).unwrap();
        let path = dir.join(name);
        let text = Picture::open(&path).expect_err(name).to_string();
        assert!(text.contains(expected), "{text:?} should contain {expected:?}");
        assert!(text.starts_with(&format!("{}: ", path.display())) && !text.contains('\n'), "{text:?}");
    }
    assert!(Picture::open(&dir).unwrap_err().to_string().contains("not a file"));
    assert!(Picture::open(dir.join("no.png")).unwrap_err().to_string().contains("check the path"));
    let small = Limits { max_pixels: 100, max_file_bytes: 1 << 20 };
    for name in ["rgb.png", "420.jpg", "lossy.webp", "one.gif", "rgb.bmp", "rgb.tif"] {
        let text = Picture::decode_within(&bytes(name), name, &small).unwrap_err().to_string();
        assert!(text.contains("expected at most"), "{text}");
    }
}

#[test]
fn a_png_keeps_its_texts() {
    let text = |name: &str| read_png_text(fixture("text.png"), name).unwrap();
    assert_eq!(text("plain").as_deref(), Some("tEXt: café"));
    assert_eq!(text("packed"), Some("zTXt ".repeat(50)));
    assert_eq!(text("wide").as_deref(), Some("iTXt: 猫"));
    assert_eq!(text("wide_packed"), Some("iTXt: 猫 ".repeat(50)));
    assert_eq!(text("none"), None);
    assert!(read_png_text(fixture("444.jpg"), "plain").unwrap_err().to_string().contains("not a PNG"));

    let dir = folder("png_out");
    let path = dir.join("out.png");
    for name in ["rgb.png", "444.jpg", "size_1x1.jpg", "grey.jpg"] {
        let picture = Picture::open(fixture(name)).unwrap();
        let json = r#"{"prompt": "猫 \u0000"}"#;
        write_png(&path, &picture, &[("parameters", "a café\nSteps: 30"), ("instantstyle", json)]).unwrap();
        assert_eq!(Picture::open(&path).unwrap(), picture);
        assert_eq!(read_png_text(&path, "instantstyle").unwrap().as_deref(), Some(json));
        assert_eq!(read_png_text(&path, "parameters").unwrap().as_deref(), Some("a café\nSteps: 30"));
        assert_eq!(encode_png(&picture, &[]), encode_png(&picture, &[]));
    }
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 1, "only the picture is left");
}

#[test]
fn writing_is_whole_or_not_at_all() {
    let dir = folder("atomic");
    let path = dir.join("out.bin");
    write_atomic(&path, b"old").unwrap();
    write_atomic(&path, b"new").unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"new");
    let error = write_atomic(dir.join("none/out.bin"), b"x").unwrap_err();
    assert!(error.is_writing() && error.to_string().contains("cannot be written"), "{error}");
    assert_eq!(instantstyle_engine::Error::from(error).exit_code(), 4);
    std::fs::create_dir(dir.join("folder")).unwrap();
    assert!(write_atomic(dir.join("folder"), b"x").is_err());
    assert!(write_atomic(dir.join(".."), b"x").is_err());
    #[cfg(target_os = "linux")]
    {
        use std::os::unix::fs::FileTypeExt;
        assert!(write_atomic("/dev/full", b"x").unwrap_err().to_string().contains("No space"));
        write_atomic("/dev/null", b"x").unwrap();
        assert!(std::fs::metadata("/dev/null").unwrap().file_type().is_char_device());
        std::os::unix::fs::symlink("out.bin", dir.join("link")).unwrap();
        write_atomic(dir.join("link"), b"linked").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"linked");
        std::fs::remove_file(dir.join("link")).unwrap();
    }
    let mut locked = std::fs::metadata(&path).unwrap().permissions();
    locked.set_readonly(true);
    std::fs::set_permissions(&path, locked).unwrap();
    assert!(write_atomic(&path, b"x").unwrap_err().to_string().contains("ermission"));
    write_tensor(dir.join("t.safetensors"), "latents", &[1, 2], &[1.0, 2.0]).unwrap();
    let weights = instantstyle_nets::weights::Weights::open(dir.join("t.safetensors")).unwrap();
    assert_eq!(weights.get("latents").unwrap().to_f32(), [1.0, 2.0]);
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 3);
}

#[test]
fn damaged_files_are_harmless() {
    let names = [
        "rgb.png",
        "palette_alpha.png",
        "text.png",
        "interlaced.png",
        "420.jpg",
        "422_progressive.jpg",
        "restarts.jpg",
        "cmyk.jpg",
        "exif6.jpg",
        "410.jpg",
        "lossy.webp",
        "lossless_alpha.webp",
        "moving.webp",
        "one.gif",
        "moving.gif",
        "rgb.bmp",
        "one_bit.bmp",
        "lzw.tif",
        "deflate.tif",
        "l16.tif",
    ];
    let files: Vec<Vec<u8>> = names.iter().map(|n| bytes(n)).collect();
    let limits = Limits { max_pixels: 1 << 20, max_file_bytes: 1 << 20 };
    let mut read = 0;
    mutate::survive(&files, 600, |bytes| {
        if let Ok(picture) = Picture::decode_within(&bytes, "damaged", &limits) {
            assert_eq!(picture.rgb.len(), picture.width * picture.height * 3);
            read += 1;
        }
        let _ = png_text(&bytes, "wide_packed");
    });
    assert!(read > 1000, "only {read} of the damaged files were readable");
}

/// Real photographs, where they lie beside the repository: every JPEG decodes, in reasonable time.
#[test]
fn photographs_are_read() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/images");
    let Ok(entries) = std::fs::read_dir(&dir) else {
        println!("SKIPPED: {} is not there", dir.display());
        return;
    };
    for entry in entries {
        let path = entry.unwrap().path();
        let start = std::time::Instant::now();
        let picture = Picture::open(&path).unwrap_or_else(|e| panic!("{e}"));
        println!("{}: {}×{} in {:?}", path.display(), picture.width, picture.height, start.elapsed());
    }
}
