//! GGUF: whole models and UNets beside another model.

use super::{SD15, both, dir, paint, part, plan, write};
use instantstyle_engine::inspect;
use instantstyle_nets::weights::{Block, Dtype, Stored, Written, write_gguf};
use serde_json::json;
use std::path::Path;
use testkit::names::{Filled, in_diffusers, in_original};

/// The tensors as a GGUF file; matrices in `dtype`.
fn gguf(path: &Path, tensors: &[Filled], dtype: Dtype) {
    let written = |(key, shape, values): &Filled| {
        let tensor = Stored::from_f32(shape.clone(), values).unwrap();
        let fitting = if shape.len() < 2 { Dtype::F32 } else { Written::fitting(&tensor, dtype) };
        Written { key: key.clone(), tensor, dtype: fitting }
    };
    let all: Vec<Written> = tensors.iter().map(written).collect();
    let mut file = std::fs::File::create(path).unwrap();
    write_gguf(&all, &[("general.architecture", "sd1")], &mut file, &mut |_| true).unwrap();
}

/// A file whose values are those that the blocks widen to: what the network computes with.
fn widened(path: &Path) -> Vec<Filled> {
    let weights = instantstyle_nets::weights::Weights::open(path).unwrap();
    weights.iter().map(|(k, t)| (k.to_owned(), t.shape().to_vec(), t.to_f32())).collect()
}

#[test]
fn a_unet_in_gguf_equals_its_widened_values() {
    let dir = dir("gguf-unet");
    let (file, folder) = both("sd15", SD15, 4, &dir);
    for (name, block) in [("q8_0", Block::Q8_0), ("q4_0", Block::Q4_0)] {
        let unet = dir.join(format!("{name}.gguf"));
        // As stable-diffusion.cpp names them, with the prefix, and as ComfyUI-GGUF does, without.
        gguf(&unet, &in_original(&part("sd15-unet", 4), "model.diffusion_model."), Dtype::Blocks(block));
        let bare = dir.join(format!("{name}-bare.gguf"));
        gguf(&bare, &in_original(&part("sd15-unet", 4), ""), Dtype::Blocks(block));
        let diffusers = dir.join(format!("{name}-diffusers.gguf"));
        gguf(&diffusers, &in_diffusers(&part("sd15-unet", 4), ""), Dtype::Blocks(block));
        let wide = dir.join(format!("{name}.safetensors"));
        write(&wide, &widened(&bare));
        let want = paint(&folder, &json!({ "unet": wide }));
        for unet in [&unet, &bare, &diffusers] {
            assert_eq!(paint(&folder, &json!({ "unet": unet })), want, "{}", unet.display());
        }
        assert_eq!(paint(&file, &json!({ "unet": bare })), want);
        assert_ne!(paint(&file, &json!({})), want);
        let report = inspect::inspect(&bare).unwrap();
        assert!(report.problems.is_empty() && report.fits == ["sd15"], "{report}");
    }
    // The model's own weights in that place change nothing.
    assert_eq!(paint(&folder, &json!({ "unet": folder.join("unet") })), paint(&folder, &json!({})));
    let stored = plan(&folder, &json!({ "unet": dir.join("q8_0.gguf") })).unwrap();
    assert_eq!(stored.request().unet.as_deref(), Some(dir.join("q8_0.gguf").as_path()));
    assert!(stored.request().model.as_deref().unwrap().ends_with("folder"));
}

/// Quantised weights with operands in bf16 and int8: near what they give in f32, as f16 weights are
/// (`tests/precision.rs` has pictures of a trained model).
#[test]
fn quantised_unets_in_other_precisions_stay_near_f32() {
    let dir = dir("gguf-precision");
    let (_, folder) = both("sd15", SD15, 4, &dir);
    for (name, block) in [("q8_0", Block::Q8_0), ("q4_0", Block::Q4_0)] {
        let unet = dir.join(format!("{name}.gguf"));
        gguf(&unet, &in_original(&part("sd15-unet", 4), ""), Dtype::Blocks(block));
        let of = |unet: &Path, precision: &str| {
            // Without guidance, which multiplies what random weights make of rounding.
            paint(&folder, &json!({ "unet": unet, "precision": precision, "guidance": 1.0 })).0
        };
        let exact = of(&unet, "f32");
        let wide = dir.join(format!("{name}.safetensors"));
        write(&wide, &widened(&unet));
        let mut last = 0.0;
        for precision in ["bf16", "int8"] {
            let got = of(&unet, precision);
            let far = testkit::distance(&got, &exact);
            println!("{name}, {precision}: {far:.1e} from f32");
            assert!(far > last && far < 0.05, "{name}, {precision}: {far}");
            // Packing sees the values alone, not how they are stored.
            assert_eq!(got, of(&wide, precision), "{name}, {precision}");
            last = far;
        }
    }
}

#[test]
fn a_whole_model_in_gguf_is_a_model() {
    let dir = dir("gguf-model");
    let parts = |keep: &dyn Fn(&str) -> bool| -> Vec<Filled> {
        SD15.iter()
            .filter(|p| keep(p.0))
            .flat_map(|(_, name, prefix)| in_original(&part(name, 4), prefix))
            .collect()
    };
    let (file, folder) = both("sd15", SD15, 4, &dir);
    let whole = dir.join("model.gguf");
    gguf(&whole, &parts(&|_| true), Dtype::F32);
    assert_eq!(paint(&whole, &json!({})), paint(&file, &json!({})));
    let error =
        |model: &Path, more: serde_json::Value| plan(model, &more).err().expect("refused").to_string();
    let vae = dir.join("vae.gguf");
    gguf(&vae, &parts(&|p| p == "vae"), Dtype::F32);
    assert!(error(&folder, json!({ "unet": vae })).contains("holds an autoencoder, not a UNet"));
    let xl = dir.join("xl.gguf");
    gguf(&xl, &in_original(&part("sdxl-unet", 4), ""), Dtype::F32);
    assert!(error(&folder, json!({ "unet": xl })).contains("take one of the same family"));
    assert!(error(&xl, json!({})).contains("holds a UNet alone"));
    let mut cut = std::fs::read(&whole).unwrap();
    cut.truncate(cut.len() / 3);
    std::fs::write(&whole, cut).unwrap();
    assert!(error(&whole, json!({})).contains("incomplete"));
}
