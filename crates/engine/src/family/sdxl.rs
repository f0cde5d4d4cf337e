//! Stable Diffusion XL: two text towers side by side, pooled text and picture sizes.

use super::fast::{Fast, hyper, lcm, lightning};
use super::{Family, Original, OriginalTower, TextFeatures};
use crate::encode::Prompts;
use crate::error::Error;
use crate::hidiffusion::Resizing;
use instantstyle_nets::Tensor;
use instantstyle_nets::original::{Heads, UNetFacts};
use instantstyle_nets::unet::UNetConfig;
use serde_json::json;

pub(super) static FAMILY: Family = Family {
    name: "sdxl",
    title: "Stable Diffusion XL",
    matches: |unet| unet.added.is_some(),
    // Wang et al., "InstantStyle", arXiv 2404.02733, figure 5.
    style: &[("up_blocks.0.attentions.1", 1.0)],
    layout: &[("down_blocks.2.attentions.1", 1.0)],
    // Frenkel et al., "Implicit Style-Content Separation using B-LoRA", arXiv 2403.14572.
    b_lora: &[("content", "up_blocks.0.attentions.0"), ("style", "up_blocks.0.attentions.1")],
    fast: &[
        lightning("lightning-2", "SDXL-Lightning in 2 steps", 2, "lightning-2-lora"),
        lightning("lightning-4", "SDXL-Lightning in 4 steps", 4, "lightning-4-lora"),
        lightning("lightning-8", "SDXL-Lightning in 8 steps", 8, "lightning-8-lora"),
        hyper("hyper-2", "Hyper-SD in 2 steps", 2, "hyper-2-lora-sdxl"),
        hyper("hyper-4", "Hyper-SD in 4 steps", 4, "hyper-4-lora-sdxl"),
        hyper("hyper-8", "Hyper-SD in 8 steps", 8, "hyper-8-lora-sdxl"),
        lcm("lcm-lora-sdxl", "https://huggingface.co/latent-consistency/lcm-lora-sdxl"),
        // A model of its own, with this sampler in its scheduler_config.json.
        Fast {
            sampler: "euler_a",
            side_px: Some(512),
            lora: None,
            source: "https://huggingface.co/stabilityai/sdxl-turbo",
            ..lightning("turbo", "SDXL-Turbo in 1 step, 512 x 512", 1, "")
        },
    ],
    subtract_scale: 0.5,
    feature_tower: Some("text_encoder_2"),
    components: &["text_encoder_2", "tokenizer_2"],
    // diffusers' documentation, "Pipeline callbacks", `latents_to_rgb`.
    latent_rgb: Some((
        &[[60.0, 60.0, 60.0], [-60.0, -5.0, 10.0], [25.0, 15.0, -5.0], [-70.0, -50.0, -35.0]],
        &[150.0, 140.0, 130.0],
    )),
    hidiffusion,
    encode,
    scheduler: |_, _| {},
    // The configurations of stabilityai/stable-diffusion-xl-base-1.0.
    original: Original {
        matches: |unet| {
            ["label_emb.0.0.weight", "add_embedding.linear_1.weight"].iter().any(|k| unet.get(k).is_some())
        },
        unet: UNetFacts { heads: Heads::Width(64), sample_size: 128, time_dim: 256 },
        scaling_factor: 0.13025,
        towers: &[
            OriginalTower {
                prefix: "conditioner.embedders.0.transformer.",
                open_clip: false,
                encoder: "text_encoder",
                tokenizer: "tokenizer",
                pad: "<|endoftext|>",
            },
            OriginalTower {
                prefix: "conditioner.embedders.1.model.",
                open_clip: true,
                encoder: "text_encoder_2",
                tokenizer: "tokenizer_2",
                pad: "!",
            },
        ],
        scheduler: || {
            json!({
                "_class_name": "EulerDiscreteScheduler", "beta_end": 0.012, "beta_schedule": "scaled_linear",
                "beta_start": 0.00085, "clip_sample": false, "interpolation_type": "linear", "num_train_timesteps": 1000,
                "prediction_type": "epsilon", "sample_max_value": 1.0, "set_alpha_to_one": false, "skip_prk_steps": true,
                "steps_offset": 1, "timestep_spacing": "leading", "trained_betas": null, "use_karras_sigmas": false,
            })
        },
        index: || {
            json!({
                "_class_name": "StableDiffusionXLPipeline", "force_zeros_for_empty_prompt": true,
                "scheduler": ["diffusers", "EulerDiscreteScheduler"], "text_encoder": ["transformers", "CLIPTextModel"],
                "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
                "tokenizer": ["transformers", "CLIPTokenizer"], "tokenizer_2": ["transformers", "CLIPTokenizer"],
                "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"],
            })
        },
    },
};

/// `switching_threshold_ratio_dict`, `aggressive_step` and `sdxl_hidiffusion_key` of megvii-research/HiDiffusion: 2048 and
/// 4096 pixels, inpainting models, and SDXL-Turbo, which is the one made for 512 pixels. ControlNets:
/// `text_to_img_controlnet_switching_threshold_ratio_dict` and `controlnet_apply_steps_rate`.
fn hidiffusion(unet: &UNetConfig, sides: f64, controlled: bool) -> Resizing {
    let usual = if controlled { 0.5 } else { 0.4 };
    let (strided, pooled) = match () {
        () if unet.sample_size == Some(64) => (0.0..0.0, 0.0..0.5),
        () if sides >= 4.0 => (0.0..0.3, 0.0..0.7),
        () if unet.in_channels > unet.out_channels => (0.0..0.0, 0.0..usual),
        () => (0.0..8.0 / 50.0, 8.0 / 50.0..usual),
    };
    Resizing { windows: 1, strided: (1, strided), pooled: (1, pooled), controls: Some(0.6) }
}

fn encode(prompts: &Prompts, notice: &mut dyn FnMut(String)) -> Result<TextFeatures, Error> {
    let mut tokens: Option<Tensor> = None;
    let mut pooled = None;
    // The first tower may be missing (refiners, small models): then the second one's width is all there is.
    let towers = [("text_encoder", "tokenizer"), ("text_encoder_2", "tokenizer_2")];
    for (encoder, tokenizer) in towers.into_iter().filter(|(e, _)| prompts.has(e)) {
        let tower = prompts.tower(encoder, tokenizer)?;
        let output = tower.encode_before_last(&prompts.rows(), notice)?;
        // The layer before the last, without the final norm.
        let usual = tower.layer(&output, 1)?;
        let states = match prompts.clip_skip {
            0 => usual.clone(),
            n => prompts.positive_from(usual, tower.layer(&output, 1 + n)?),
        };
        tokens = Some(match tokens {
            Some(first) => first.concat_channels(&states),
            None => states,
        });
        pooled = output.projected;
    }
    let missing = || prompts.model.error("has no text_encoder_2 with a projection, which SDXL needs");
    let (mut tokens, mut pooled) = (tokens.ok_or_else(missing)?, pooled.ok_or_else(missing)?);
    if prompts.guided
        && prompts.negative.is_none()
        && prompts.index_flag("force_zeros_for_empty_prompt", true)
    {
        let row = tokens.dim(1) * tokens.dim(2);
        tokens.data_mut()[..row].fill(0.0);
        let row = pooled.channels();
        pooled.data_mut()[..row].fill(0.0);
    }
    Ok(TextFeatures { tokens, pooled: Some(pooled) })
}
