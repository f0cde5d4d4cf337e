//! Stable Diffusion 1.x: one text tower, its last hidden state.

use super::fast::{hyper, lcm};
use super::{Family, Original, OriginalTower, TextFeatures};
use crate::encode::Prompts;
use crate::error::Error;
use crate::hidiffusion::Resizing;
use instantstyle_nets::original::{Heads, UNetFacts};
use serde_json::json;

pub(super) static FAMILY: Family = Family {
    name: "sd15",
    title: "Stable Diffusion 1.5",
    matches: |unet| unet.added.is_none(),
    // InstantStyle's `infer_style_sd15.py`; weaker than on SDXL (REFERENCE: InstantStyle).
    style: &[("up_blocks.1", 1.0)],
    layout: &[("down_blocks.2", 1.0), ("mid_block", 1.0)],
    b_lora: &[],
    fast: &[
        hyper("hyper-2", "Hyper-SD in 2 steps", 2, "hyper-2-lora-sd15"),
        hyper("hyper-4", "Hyper-SD in 4 steps", 4, "hyper-4-lora-sd15"),
        hyper("hyper-8", "Hyper-SD in 8 steps", 8, "hyper-8-lora-sd15"),
        lcm("lcm-lora-sd15", "https://huggingface.co/latent-consistency/lcm-lora-sdv1-5"),
    ],
    subtract_scale: 0.8,
    feature_tower: None,
    components: &["text_encoder", "tokenizer"],
    latent_rgb: Some((&LATENT_RGB, &[127.5; 3])),
    // `switching_threshold_ratio_dict` and `sd15_hidiffusion_key` of megvii-research/HiDiffusion: 1024 and 2048 pixels.
    // Its pipeline for ControlNets is SDXL's.
    hidiffusion: |_, sides, _| Resizing {
        windows: 0,
        strided: (0, 0.0..if sides < 4.0 { 0.4 } else { 0.7 }),
        pooled: (1, 0.0..if sides < 4.0 { 0.0 } else { 0.3 }),
        controls: None,
    },
    encode,
    scheduler,
    // The configurations of stable-diffusion-v1-5/stable-diffusion-v1-5.
    original: Original {
        matches: |unet| {
            ["label_emb.0.0.weight", "add_embedding.linear_1.weight"].iter().all(|k| unet.get(k).is_none())
        },
        unet: UNetFacts { heads: Heads::Count(8), sample_size: 64, time_dim: 256 },
        scaling_factor: 0.18215,
        towers: &[OriginalTower {
            prefix: "cond_stage_model.transformer.",
            open_clip: false,
            encoder: "text_encoder",
            tokenizer: "tokenizer",
            pad: "<|endoftext|>",
        }],
        scheduler: || {
            json!({
                "_class_name": "PNDMScheduler", "beta_end": 0.012, "beta_schedule": "scaled_linear", "beta_start": 0.00085,
                "clip_sample": false, "num_train_timesteps": 1000, "set_alpha_to_one": false, "skip_prk_steps": true,
                "steps_offset": 1, "trained_betas": null,
            })
        },
        index: || {
            json!({
                "_class_name": "StableDiffusionPipeline",
                "feature_extractor": [null, null], "image_encoder": [null, null], "requires_safety_checker": false,
                "safety_checker": [null, null],
                "scheduler": ["diffusers", "PNDMScheduler"], "text_encoder": ["transformers", "CLIPTextModel"],
                "tokenizer": ["transformers", "CLIPTokenizer"], "unet": ["diffusers", "UNet2DConditionModel"],
                "vae": ["diffusers", "AutoencoderKL"],
            })
        },
    },
};

/// keturn, "Decoding latents to RGB without upscaling", discuss.huggingface.co/t/23204, 2022: -1..1 for Stable Diffusion 1.4,
/// whose autoencoder 1.5 has.
const LATENT_RGB: [[f64; 3]; 4] = [
    [127.5 * 0.298, 127.5 * 0.207, 127.5 * 0.208],
    [127.5 * 0.187, 127.5 * 0.286, 127.5 * 0.173],
    [127.5 * -0.158, 127.5 * 0.189, 127.5 * 0.264],
    [127.5 * -0.184, 127.5 * -0.271, 127.5 * -0.473],
];

fn encode(prompts: &Prompts, notice: &mut dyn FnMut(String)) -> Result<TextFeatures, Error> {
    let tower = prompts.tower("text_encoder", "tokenizer")?;
    let output = tower.encode(&prompts.rows(), notice)?;
    // The final norm belongs to whichever layer is taken (diffusers' `encode_prompt`); the negative prompt keeps the last.
    let last = tower.encoder.final_norm(tower.layer(&output, 0)?);
    let tokens = match prompts.clip_skip {
        0 => last,
        n => prompts.positive_from(&last, &tower.encoder.final_norm(tower.layer(&output, n)?)),
    };
    Ok(TextFeatures { tokens, pooled: None })
}

/// diffusers' `StableDiffusionPipeline` corrects outdated configurations when it is built. For a sampler that is
/// exchanged afterwards only what the file says counts.
fn scheduler(config: &mut serde_json::Value, own: bool) {
    if let Some(map) = config.as_object_mut() {
        for (key, value) in [("steps_offset", serde_json::Value::from(1)), ("clip_sample", false.into())] {
            if own || map.contains_key(key) {
                map.insert(key.to_owned(), value);
            }
        }
    }
}
