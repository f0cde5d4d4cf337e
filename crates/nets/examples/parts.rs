//! Seconds of one part of a model over random numbers, for `benches/peers/parts.py`: `parts FOLDER decode SIZE_PX PRECISION RUNS`,
//! `parts FOLDER text TOKENS f32 RUNS` or `parts FOLDER image PICTURES f32 RUNS`: a line for loading, then one for each run.

use instantstyle_nets::Tensor;
use instantstyle_nets::clip::{TextConfig, TextEncoder, VisionConfig, VisionEncoder};
use instantstyle_nets::layers::Precision;
use instantstyle_nets::vae::{Decoder, VaeConfig};
use instantstyle_nets::weights::Weights;
use serde::de::DeserializeOwned;
use std::error::Error;
use std::time::Instant;

fn config<T: DeserializeOwned>(folder: &str) -> Result<T, Box<dyn Error>> {
    let mut config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(format!("{folder}/config.json"))?)?;
    config.as_object_mut().ok_or("not a configuration")?.retain(|_, v| !v.is_null());
    Ok(serde_json::from_value(config)?)
}

fn main() -> Result<(), Box<dyn Error>> {
    // As the program does.
    rayon::ThreadPoolBuilder::new().use_current_thread().build_global()?;
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [folder, part, size, precision, runs] = &words[..] else {
        return Err("expected FOLDER PART SIZE PRECISION RUNS".into());
    };
    let (size, runs): (usize, usize) = (size.parse()?, runs.parse()?);
    let precision = match &precision[..] {
        "f32" => Precision::F32,
        "bf16" => Precision::Bf16,
        other => return Err(format!("{other} is neither f32 nor bf16").into()),
    };
    let start = Instant::now();
    let weights = Weights::open_component(folder)?;
    let run: Box<dyn Fn()> = match &part[..] {
        "decode" => {
            let config: VaeConfig = config(folder)?;
            let decoder = Decoder::load_in(&config, &weights, precision)?;
            let (side, channels) = (size / config.factor(), config.latent_channels);
            let values = (0..side * side * channels).map(|i| (i * 37 % 101) as f32 / 50.0 - 1.0).collect();
            let latents = Tensor::new([1, side, side, channels], values);
            Box::new(move || drop(decoder.forward(&latents)))
        }
        "text" => {
            let encoder = TextEncoder::load(&config::<TextConfig>(folder)?, &weights)?;
            // As the engine does: with a projection it wants the layer before the last and the pooled feature.
            let pooled = weights.get("text_projection.weight").is_some();
            // The prompt and the negative prompt.
            let ids = (0..size as u32).map(|i| if i + 1 < size as u32 { i * 631 % 49_000 } else { 49_407 });
            let ids = vec![ids.collect::<Vec<u32>>(); 2];
            Box::new(move || {
                drop(if pooled { encoder.forward_before_last(&ids) } else { encoder.forward(&ids) });
            })
        }
        "image" => {
            let config: VisionConfig = config(folder)?;
            let encoder = VisionEncoder::load(&config, &weights)?;
            let side = config.image_size;
            let values = (0..size * side * side * 3).map(|i| (i * 37 % 101) as f32 / 50.0 - 1.0).collect();
            let pixels = Tensor::new([size, side, side, 3], values);
            Box::new(move || drop(encoder.forward(&pixels)))
        }
        other => return Err(format!("{other} is neither decode, text nor image").into()),
    };
    println!("{:.4}", start.elapsed().as_secs_f64());
    for _ in 0..runs {
        let start = Instant::now();
        run();
        println!("{:.4}", start.elapsed().as_secs_f64());
    }
    Ok(())
}
