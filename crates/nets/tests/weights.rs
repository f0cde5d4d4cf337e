//! Weight files as torch and safetensors write them (`testkit/recipe/files.py weights`), and damaged ones.

mod mutate;

use instantstyle_nets::weights::{Dtype, Format, Weights, WeightsError, to_safetensors};
use std::path::{Path, PathBuf};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/weights").join(name)
}

fn open(name: &str) -> Weights {
    Weights::open(fixture(name)).unwrap_or_else(|e| panic!("{e}"))
}

/// The message, which must be one line that begins with the path.
fn refusal(path: &Path) -> String {
    let error = match Weights::open(path) {
        Ok(w) => panic!("{} was read: {w:?}", path.display()),
        Err(e) => e,
    };
    let text = error.to_string();
    assert!(text.starts_with(&format!("{}: ", path.display())) && !text.contains('\n'), "{text:?}");
    assert!(!error.message().contains(&path.display().to_string()));
    text
}

/// A folder of its own for one test.
fn folder(name: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

/// 4 × 6, as in the recipe.
fn base() -> Vec<f32> {
    (0..24).map(|v| v as f32 / 4.0 - 1.0).collect()
}

#[test]
fn every_layout_gives_the_same_tensors() {
    let layouts = [
        ("state.safetensors", Format::Safetensors),
        ("state_zip.bin", Format::PickleZip),
        ("state_legacy.bin", Format::PickleLegacy),
        ("state_protocol4.bin", Format::PickleZip),
    ];
    for (name, format) in layouts {
        let w = open(name);
        assert_eq!(w.format(), format, "{name}");
        let keys = ["brain", "double", "empty", "half", "ids", "part", "plain", "scalar", "spread", "turned"];
        assert_eq!(w.keys().collect::<Vec<_>>(), keys, "{name}");
        let get = |key: &str| w.get(key).unwrap();
        for (key, dtype) in [("plain", Dtype::F32), ("half", Dtype::F16), ("brain", Dtype::BF16)] {
            assert_eq!((get(key).dtype(), get(key).shape()), (dtype, &[4, 6][..]), "{name} {key}");
            assert_eq!(get(key).to_f32(), base(), "{name} {key}");
            assert!(get(key).is_mapped() && get(key).kernel_view().is_some());
        }
        let turned: Vec<f32> = (0..24).map(|i| base()[i % 4 * 6 + i / 4]).collect();
        assert_eq!((get("turned").shape(), get("turned").to_f32()), (&[6, 4][..], turned), "{name}");
        assert_eq!(get("part").to_f32(), [0.5, 1.0, 1.5, 2.0, 2.5, 3.0], "{name}");
        assert_eq!((get("scalar").shape(), get("scalar").to_f32()), (&[][..], vec![2.5]));
        assert_eq!((get("empty").shape(), get("empty").len()), (&[0, 3][..], 0));
        assert_eq!((get("ids").dtype(), get("ids").to_f32()), (Dtype::I64, vec![0.0, 1.0, 2.0, 3.0, 4.0]));
        assert_eq!((get("double").dtype(), get("double").to_f32()), (Dtype::F64, base()[..6].to_vec()));
        assert_eq!(get("spread").to_f32(), [1.5; 3], "{name}");
    }
    assert_eq!(open("state.safetensors").metadata()["format"], "pt");
}

#[test]
fn wrappers_are_flattened() {
    let adapter = open("adapter.bin");
    let keys = ["image_proj.norm.bias", "image_proj.proj.weight", "ip_adapter.1.to_k_ip.weight"];
    assert_eq!(adapter.keys().take(3).collect::<Vec<_>>(), keys);
    assert!(adapter.has_prefix("ip_adapter.") && !adapter.has_prefix("ip_adapters"));
    let part = adapter.strip_prefix("image_proj.");
    assert_eq!(part.get("norm.bias").unwrap().to_f32(), base()[..6]);
    assert_eq!(part.len(), 2);
    assert!(part.with_prefix("x.").get("x.norm.bias").is_some());

    let trainer = open("trainer.ckpt");
    assert_eq!(trainer.keys().collect::<Vec<_>>(), ["w"]);
    assert_eq!(trainer.get("w").unwrap().to_f32(), base());
    assert_eq!(open("embeds.ipadpt").keys().collect::<Vec<_>>(), ["0", "1"]);
    let float8 = open("float8.pth");
    assert_eq!(float8.get("w").unwrap().dtype(), Dtype::F8E4M3);
    assert!(float8.get("w").unwrap().kernel_view().is_none());
    assert_eq!(float8.get("w").unwrap().to_f32()[..4], [-1.0, -0.75, -0.5, -0.25]);
}

#[test]
fn no_code_runs() {
    for (name, global) in
        [("evil.bin", "os.system"), ("evil_legacy.bin", "builtins.eval"), ("evil_plain.bin", "os.system")]
    {
        let path = fixture(name);
        let text = refusal(&path);
        assert!(text.contains("this file wants to run ") && text.contains(global), "{text}");
        assert!(matches!(Weights::open(&path), Err(WeightsError::Refused { .. })));
    }
}

#[test]
fn views_stay_in_their_storage() {
    assert!(refusal(&fixture("outside.bin")).contains("expected a view inside its storage"));
    assert!(refusal(&fixture("many_axes.bin")).contains("more than 16 axes"));
    assert!(refusal(&fixture("packed.bin")).contains("is compressed"));
    // Strides of 0 are legal, and here as small as the file.
    assert_eq!(open("huge_view.bin").get("0").unwrap().to_f32(), [-1.0; 24]);
}

#[test]
fn other_files_are_named() {
    let dir = folder("other_files");
    let cases: [(&str, &[u8], &str); 11] = [
        ("empty.bin", b"", "an empty file"),
        ("page.safetensors", b"\n<!DOCTYPE html><html><body>Login", "an HTML page"),
        ("error.bin", b"{\"error\": \"not found\"}", "a JSON text"),
        ("lfs.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull"),
        ("q4.gguf", b"GGUF\x03\0\0\0", "incomplete"),
        ("a.png", b"\x89PNG\r\n\x1a\n0000", "a picture"),
        ("pickle.bin", b"\x80\x02K\x01.", "torch.save did not write"),
        ("cut.bin", b"PK\x03\x04abcdefghijklmnopqrstuvwxyz", "incomplete"),
        ("zip.bin", b"PK\x05\x06\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", "without data.pkl"),
        ("noise.bin", b"\x01\x02\x03 and\nmore", "an unknown kind of file"),
        ("short.safetensors", b"\x01\x02\x03", "incomplete"),
    ];
    for (name, content, expected) in cases {
        std::fs::write(dir.join(name), content).unwrap();
        let text = refusal(&dir.join(name));
        assert!(text.contains(expected), "{text:?} should contain {expected:?}");
    }
    assert!(refusal(&dir).contains("this is a folder"));
    assert!(refusal(&dir.join("none.bin")).contains("check the path"));
    for (name, cut) in [("state_zip.bin", 3000), ("state_legacy.bin", 1500), ("state.safetensors", 1000)] {
        let bytes = std::fs::read(fixture(name)).unwrap();
        std::fs::write(dir.join(name), &bytes[..cut]).unwrap();
        assert!(refusal(&dir.join(name)).contains("incomplete"), "{}", refusal(&dir.join(name)));
    }
}

#[test]
fn a_folder_is_found_by_its_names() {
    let one = |v: f32| to_safetensors(&[("w", &[1], &[v])]);
    let value = |dir: &Path| Weights::open_component(dir).map(|w| w.get("w").unwrap().to_f32()[0]);
    let dir = folder("component");
    assert!(value(&dir).unwrap_err().to_string().contains("found no files"));
    std::fs::write(dir.join("notes.txt"), "").unwrap();
    assert!(value(&dir).unwrap_err().to_string().contains("found notes.txt"));
    // Each is preferred to those before.
    let names = [
        "odd_name.bin",
        "pytorch_model.fp16.bin",
        "pytorch_model.bin",
        "model.fp16.safetensors",
        "diffusion_pytorch_model.fp16.safetensors",
        "model.safetensors",
    ];
    for (i, name) in names.into_iter().enumerate() {
        std::fs::write(dir.join(name), one(i as f32)).unwrap();
        assert_eq!(value(&dir).unwrap(), i as f32, "{name}");
    }
    assert!(value(&dir.join("none")).unwrap_err().to_string().contains("cannot be read"));
}

#[test]
fn shards_are_joined() {
    let dir = folder("shards");
    let index = |map: &str| {
        let text = format!(r#"{{"metadata":{{"total_size":8}},"weight_map":{map}}}"#);
        std::fs::write(dir.join("diffusion_pytorch_model.safetensors.index.fp16.json"), text).unwrap();
        Weights::open_component(&dir)
    };
    std::fs::write(dir.join("m-1.safetensors"), to_safetensors(&[("a", &[1], &[1.0])])).unwrap();
    std::fs::write(dir.join("m-2.safetensors"), to_safetensors(&[("b", &[1], &[2.0])])).unwrap();
    std::fs::write(dir.join("m-3.safetensors"), to_safetensors(&[("b", &[1], &[2.0])])).unwrap();
    let w = index(r#"{"a":"m-1.safetensors","b":"m-2.safetensors"}"#).unwrap();
    assert_eq!((w.len(), w.source()), (2, dir.as_path()));
    let cases = [
        (r#"{"a":"m-1.safetensors","b":"m-4.safetensors"}"#, "m-4.safetensors is missing"),
        (r#"{"a":"m-1.safetensors","b":"m-1.safetensors"}"#, "the tensor b is not in its shard"),
        (r#"{"a":"m-1.safetensors","b":"m-2.safetensors","c":"m-3.safetensors"}"#, "in two shards"),
        (r#"{"a":"../shards/m-1.safetensors"}"#, "not a file name of this folder"),
        (r#"{"a":"/m-1.safetensors"}"#, "not a file name of this folder"),
        (r#"{"a":".."}"#, "not a file name of this folder"),
        (r#"{"a":""}"#, "not a file name of this folder"),
        ("{}", "without shards"),
        ("3", "index: invalid type"),
    ];
    for (map, expected) in cases {
        let text = index(map).unwrap_err().to_string();
        assert!(text.contains(expected), "{text:?} should contain {expected:?}");
    }
}

#[test]
fn damaged_files_are_harmless() {
    let names =
        ["state.safetensors", "state_zip.bin", "state_legacy.bin", "state_protocol4.bin", "adapter.bin"];
    let files: Vec<Vec<u8>> = names.iter().map(|n| std::fs::read(fixture(n)).unwrap()).collect();
    let mut read = 0;
    mutate::survive(&files, 4000, |bytes| {
        if let Ok(weights) = Weights::from_bytes(bytes, "damaged") {
            read += 1;
            for (_, tensor) in weights.iter() {
                assert_eq!(tensor.to_f32().len(), tensor.shape().iter().product::<usize>());
            }
        }
    });
    // Some changes hit values only; if none did, the damage would be too coarse to test anything.
    assert!(read > 200, "only {read} of the damaged files were readable");
}
