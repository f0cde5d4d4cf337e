//! Seconds of guided steps of candle's UNet: `candle-step FAMILY FOLDER SIZE STEPS`, one line each. FAMILY is sd15 or sdxl (whose pooled
//! text and sizes candle does not take), FOLDER a Diffusers folder.
use candle_core::{DType, Device, Tensor};
use candle_transformers::models::stable_diffusion::StableDiffusionConfig;
use std::time::Instant;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, family, folder, size, steps] = &arguments[..] else {
        return Err("candle-step FAMILY FOLDER SIZE STEPS".into());
    };
    let (size, steps): (usize, usize) = (size.parse()?, steps.parse()?);
    let device = Device::Cpu;
    let (config, text) = match &family[..] {
        "sd15" => (StableDiffusionConfig::v1_5(None, Some(size), Some(size)), 768),
        "sdxl" => (StableDiffusionConfig::sdxl(None, Some(size), Some(size)), 2048),
        other => return Err(format!("{other} is neither sd15 nor sdxl").into()),
    };
    let weights = format!("{folder}/unet/diffusion_pytorch_model.safetensors");
    let unet = config.build_unet(weights, &device, 4, false, DType::F32)?;
    let latents = Tensor::randn(0f32, 1f32, (2, 4, size / 8, size / 8), &device)?;
    let states = Tensor::randn(0f32, 1f32, (2, 77, text), &device)?;
    for _ in 0..steps {
        let start = Instant::now();
        unet.forward(&latents, 500.0, &states)?;
        println!("{:.3}", start.elapsed().as_secs_f64());
    }
    Ok(())
}
