//! Conversion: from form to form and back gives the same pictures.

use super::{SD15, SDXL, both, dir, paint};
use instantstyle_engine::Error;
use instantstyle_engine::convert::{Conversion, Converted, TYPES, convert};
use instantstyle_nets::weights::{Dtype, Weights};
use serde_json::json;
use std::path::Path;

fn to(input: &Path, output: &Path, name: &str, only_unet: bool) -> Result<Converted, Error> {
    let dtype = TYPES.iter().find(|t| t.0 == name).unwrap().1;
    convert(&Conversion { input, output, dtype, only_unet }, &mut |_, _| true)
}

#[test]
fn every_form_gives_the_same_pictures() {
    for (family, parts) in [("sd15", SD15), ("sdxl", SDXL)] {
        let dir = dir(&format!("convert-{family}"));
        let (file, folder) = both(family, parts, 4, &dir);
        let want = paint(&folder, &json!({}));
        // From a folder and from a file, to every form, and back to a folder.
        for (i, source) in [&folder, &file].into_iter().enumerate() {
            for name in ["as-folder", "as.safetensors", "as.gguf"] {
                let output = dir.join(format!("{i}-{name}"));
                let done = to(source, &output, "keep", false).unwrap_or_else(|e| panic!("{e}"));
                assert_eq!(
                    done.parts.iter().map(|p| &*p.0).collect::<Vec<_>>(),
                    parts.iter().map(|p| p.0).collect::<Vec<_>>()
                );
                assert!(done.left_out.is_empty(), "{:?}", done.left_out);
                assert_eq!(paint(&output, &json!({})), want, "{}", output.display());
                std::fs::remove_dir_all(&output).or_else(|_| std::fs::remove_file(&output)).unwrap();
            }
        }
        // The file has the original's tensors, to the bit.
        let again = dir.join("again.safetensors");
        to(&folder, &again, "keep", false).unwrap();
        let (a, b) = (Weights::open(&again).unwrap(), Weights::open(&file).unwrap());
        assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
        assert!(a.iter().zip(b.iter()).all(|((_, x), (_, y))| x.bytes() == y.bytes()));
    }
}

#[test]
fn numbers_get_smaller() {
    let dir = dir("convert-types");
    let (file, folder) = both("sd15", SD15, 4, &dir);
    let bytes = |p: &Path| std::fs::metadata(p).unwrap().len();
    let half = dir.join("half.safetensors");
    to(&file, &half, "f16", false).unwrap();
    assert!(bytes(&half) * 2 < bytes(&file) + 1_000_000);
    let half_folder = dir.join("half");
    to(&folder, &half_folder, "f16", false).unwrap();
    let halves = paint(&half, &json!({}));
    assert_eq!(halves, paint(&half_folder, &json!({})));
    assert!(testkit::distance(&halves.0, &paint(&folder, &json!({})).0) < 1e-2);
    let unet = dir.join("unet.gguf");
    let done = to(&folder, &unet, "q8_0", true).unwrap();
    assert_eq!(done.parts.len(), 1);
    let weights = Weights::open(&unet).unwrap();
    let types = |dtype: Dtype| weights.iter().filter(|(_, t)| t.dtype() == dtype).count();
    assert!(types(TYPES[4].1.unwrap()) > 100 && types(Dtype::F32) > 300, "{:?}", weights.metadata());
    assert_eq!(weights.get("time_embed.0.weight").unwrap().dtype(), Dtype::F16);
    let small = paint(&folder, &json!({ "unet": unet }));
    let plain = paint(&folder, &json!({}));
    let away = testkit::distance(&small.0, &plain.0);
    assert!(away > 0.0 && away < 0.05, "{away}");
    // Blocks back into a file without blocks.
    let back = dir.join("back.safetensors");
    to(&unet, &back, "f32", false).unwrap();
    assert_eq!(paint(&folder, &json!({ "unet": back })), small);
}

#[test]
fn what_cannot_be_done_leaves_nothing() {
    let dir = dir("convert-refused");
    let (file, folder) = both("sd15", SD15, 4, &dir);
    let before = std::fs::read_dir(&dir).unwrap().count();
    let error = |output: &str, name: &str, only: bool| {
        to(&file, &dir.join(output), name, only).err().unwrap().to_string()
    };
    assert!(error("x.safetensors", "q8_0", false).contains("only GGUF files hold"));
    assert!(error("folder", "keep", false).contains("is there already"));
    assert!(error("x", "keep", true).contains("must end in .safetensors or .gguf"));
    assert!(error("no/such/x.gguf", "keep", false).contains("cannot be written"));
    let missing = to(&dir.join("none"), &dir.join("x.gguf"), "keep", false).err().unwrap();
    assert!(matches!(missing, Error::File { .. }));
    for output in ["x.gguf", "x"] {
        let mut stop = |done: usize, all: usize| done * 2 < all;
        let output = dir.join(output);
        let wanted = Conversion { input: &folder, output: &output, dtype: None, only_unet: false };
        assert!(matches!(convert(&wanted, &mut stop), Err(Error::Cancelled)));
    }
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), before);
}
