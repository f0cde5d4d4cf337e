//! Pictures of the embedded model with operands in bf16 and int8, beside those in f32.

use instantstyle_engine::plan::Plan;
use instantstyle_engine::request::{Precision, Request};
use instantstyle_engine::{Event, Observer, generate};
use testkit::{distance, levels, tolerance};

struct Quiet;

impl Observer for Quiet {
    fn event(&mut self, _: Event) {}
}

/// Latents and pixels of the same request in some precision.
fn picture(precision: &str, seed: u64) -> (Vec<f32>, Vec<u8>) {
    let text =
        format!(r#"{{"prompt": "a red circle", "seed": {seed}, "steps": 8, "precision": "{precision}"}}"#);
    let request = Request::from_json(&text, std::path::Path::new(".")).expect("a request");
    let plan = Plan::resolve(&request).expect("a plan");
    let mut outputs = generate(&plan, &mut Quiet).expect("a picture");
    let output = outputs.remove(0);
    (output.latents, output.picture.rgb)
}

#[test]
fn pictures_stay_near_those_in_f32() {
    for (precision, most) in [("bf16", tolerance::BF16_MEAN), ("int8", tolerance::INT8_MEAN)] {
        let mut worst = 0f64;
        for seed in 0..4 {
            let ((exact, plain), (near, rgb)) = (picture("f32", seed), picture(precision, seed));
            let (largest, mean) = levels(&rgb, &plain);
            println!(
                "{precision}, seed {seed}: latents {:.1e}, levels {mean:.2} on average, {largest} at most",
                distance(&near, &exact)
            );
            assert!(near != exact, "{precision} was not used");
            worst = worst.max(mean);
        }
        assert!(worst <= most, "{precision}: {worst} levels on average, more than {most}");
    }
}

#[test]
fn pictures_do_not_depend_on_threads_and_repeat_to_the_bit() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a pool");
    for precision in ["bf16", "int8"] {
        let one = pool.install(|| picture(precision, 1));
        assert!(one == picture(precision, 1), "{precision}");
    }
}

#[test]
fn the_precision_is_resolved_and_stored() {
    for (asked, stored) in [("auto", Precision::F32), ("bf16", Precision::Bf16), ("int8", Precision::Int8)] {
        let text = format!(r#"{{"precision": "{asked}"}}"#);
        let request = Request::from_json(&text, std::path::Path::new(".")).expect("a request");
        assert_eq!(Plan::resolve(&request).expect("a plan").request().precision, Some(stored));
    }
    let request =
        Request::from_json(r#"{"precision": "f16"}"#, std::path::Path::new(".")).expect("a request");
    let refused = Plan::resolve(&request).err().expect("not built in").to_string();
    assert!(refused.contains("f16") && refused.contains("bf16"), "{refused}");
}

/// The first model of the fixtures, as if its UNet had so many weights more: a hole in the file.
fn grown(folder: &std::path::Path, more: u64) -> std::path::PathBuf {
    let model = folder.join("model");
    copy(&testkit::fixtures().join("models/sd15-a"), &model);
    let unet = std::fs::read_dir(model.join("unet")).expect("a folder").map(|f| f.expect("a file").path());
    let file = unet.into_iter().find(|f| f.extension().is_some_and(|e| e == "safetensors")).expect("weights");
    let bytes = std::fs::read(&file).expect("weights");
    let (length, rest) = bytes.split_at(8);
    let length = u64::from_le_bytes(length.try_into().expect("eight")) as usize;
    let mut header: serde_json::Value = serde_json::from_slice(&rest[..length]).expect("a header");
    let end = (rest.len() - length) as u64;
    header["more.weight"] =
        serde_json::json!({ "dtype": "F16", "shape": [more, 1], "data_offsets": [end, end + 2 * more] });
    let mut header = header.to_string();
    header += &" ".repeat(header.len().next_multiple_of(8) - header.len());
    let start = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &rest[length..]].concat();
    std::fs::write(&file, &start).expect("written");
    let file = std::fs::OpenOptions::new().write(true).open(&file).expect("opened");
    file.set_len(start.len() as u64 + 2 * more).expect("a hole");
    model
}

fn copy(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).expect("a folder");
    for entry in std::fs::read_dir(from).expect("a folder").map(|e| e.expect("an entry").path()) {
        let to = to.join(entry.file_name().expect("a name"));
        if entry.is_dir() {
            copy(&entry, &to);
        } else {
            std::fs::copy(&entry, &to).expect("copied");
        }
    }
}

#[test]
fn auto_is_bf16_for_a_large_network_where_the_machine_has_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let large = if instantstyle_kernels::level::bf16() { Precision::Bf16 } else { Precision::F32 };
    for (more, want) in [(1_000_000, Precision::F32), (100_000_000, large)] {
        let model = grown(folder.path(), more);
        let request = Request { model: Some(model.to_string_lossy().into_owned()), ..Request::default() };
        let plan = Plan::resolve_within(&request, None).expect("a plan");
        assert_eq!(plan.request().precision, Some(want), "{more}");
        assert_eq!(plan.request_of(0).precision, Some(want), "stored with the picture");
    }
}
