//! The tables themselves.

use super::super::{HIDIFFUSIONS, LORA_BLOCKS, PRECISIONS, UPSCALES, VAE_TILINGS};
use super::{CONTROLS, Field, Kind, LORAS, MAX_WEIGHT, REFERENCES};
use crate::control::MAPS;
use crate::family::fast_names;
use crate::sampler::SCHEDULES;

/// Longest side, in pixels.
const MAX_SIDE: u64 = 16_384;
/// Largest sum of a Sobel gradient's two sides over 8-bit values: 4 · 255 each.
const MAX_GRADIENT: f64 = 2040.0;

const fn field(
    name: &'static str,
    kind: Kind,
    default: &'static str,
    about: &'static str,
    example: &'static str,
) -> Field {
    Field { name, kind, default, about, example }
}

fn schedules() -> Vec<(&'static str, &'static str)> {
    SCHEDULES.iter().map(|s| (s.name, s.about)).collect()
}

fn precisions() -> Vec<(&'static str, &'static str)> {
    PRECISIONS.iter().map(|(name, _, about)| (*name, *about)).collect()
}

fn vae_tilings() -> Vec<(&'static str, &'static str)> {
    VAE_TILINGS.iter().map(|(name, _, about)| (*name, *about)).collect()
}

fn hidiffusions() -> Vec<(&'static str, &'static str)> {
    HIDIFFUSIONS.iter().map(|(name, _, about)| (*name, *about)).collect()
}

/// Fields of a request.
pub const REQUEST: &[Field] = &[
    field("prompt", Kind::Text, "empty", "What to paint", "a cat on a chair"),
    field(
        "negative_prompt",
        Kind::Text,
        "none; on SDXL not the same as an empty one",
        "What to avoid",
        "text, blurry",
    ),
    field(
        "model",
        Kind::Model,
        "the embedded model",
        "SD1.5 or SDXL model: Diffusers folder, single file (.safetensors, .ckpt), or its name in instantstyle pull --list",
        "sdxl-base",
    ),
    field(
        "unet",
        Kind::Path,
        "the model's own",
        "Another UNet in its place, e.g. a quantised one: GGUF or safetensors file, or folder",
        "sdxl-q8_0.gguf",
    ),
    field(
        "vae",
        Kind::Path,
        "the model's own",
        "Another autoencoder: its Diffusers folder, or a file of its weights",
        "sdxl-vae-fp16-fix",
    ),
    field(
        "width",
        Kind::Whole(1, MAX_SIDE),
        "the model's",
        "Width in pixels, a multiple of the autoencoder's factor (usually 8)",
        "1024",
    ),
    field("height", Kind::Whole(1, MAX_SIDE), "the model's", "Height in pixels, likewise", "768"),
    field(
        "count",
        Kind::Whole(1, 1000),
        "1",
        "Number of pictures, with the seeds seed, seed+1, …; each as if it were made alone",
        "4",
    ),
    field(
        "seed",
        Kind::Whole(0, u64::MAX),
        "42",
        "Seed of the noise, the same as in diffusers on the CPU",
        "7",
    ),
    field("steps", Kind::Whole(1, 1000), "the model card's, else 30", "Sampling steps", "20"),
    field(
        "guidance",
        Kind::Number(0.0, 100.0),
        "the model card's, else 5",
        "Strength of classifier-free guidance; 1 or less turns it off",
        "7.5",
    ),
    field(
        "guidance_rescale",
        Kind::Number(0.0, 1.0),
        "0",
        "How far the guided prediction is scaled back to the contrast of the unguided one",
        "0.7",
    ),
    field(
        "guidance_start",
        Kind::Number(0.0, 1.0),
        "0",
        "Start of the window of guidance, as a part of the sampling; a step outside it takes half the time",
        "0.1",
    ),
    field("guidance_end", Kind::Number(0.0, 1.0), "1", "End of the window of guidance", "0.7"),
    field(
        "deep_cache",
        Kind::Whole(1, 100),
        "1: in every one",
        "Compute the deep features in every so manyth model call only; the others take a fraction of the time (DeepCache)",
        "2",
    ),
    field(
        "cross_freeze",
        Kind::Number(0.0, 1.0),
        "1: never",
        "Part of the sampling after which cross-attention gives what it gave last: the mean over prompt and negative prompt, \
         and guidance ends (T-GATE)",
        "0.6",
    ),
    field(
        "token_merging",
        Kind::Number(0.0, 0.75),
        "0: none",
        "Part of the tokens that self-attention takes for others like them, at the finest level that has attention (ToMe)",
        "0.5",
    ),
    field("clip_skip", Kind::Whole(0, 64), "0", "Last layers of the text encoder to skip", "1"),
    field(
        "sampler",
        Kind::Sampler,
        "the checkpoint's own",
        "Sampler, here or by its name in A1111 (\"DPM++ 2M Karras\") or ComfyUI",
        "dpmpp_2m_karras",
    ),
    field(
        "schedule",
        Kind::Choice(schedules),
        "the checkpoint's own",
        "Which timesteps and sigmas the sampler visits",
        "karras",
    ),
    field(
        "fast",
        Kind::Choice(fast_names),
        "none",
        "safe (also without a name): savings that keep the picture; or settings of a distilled model, with its LoRA from the \
         catalogue: steps, guidance, sampler, schedule; what the request gives itself holds (the LoRA with weight 0: the \
         model has it in it)",
        "lightning-4",
    ),
    field("precision", Kind::Choice(precisions), "auto", "Number format of the arithmetic", "f32"),
    field("device", Kind::Device, "auto", "Where to compute: auto, cpu, cuda:0 or metal", "cpu"),
    field(
        "vae_tiling",
        Kind::Choice(vae_tilings),
        "auto: where the whole does not fit into memory",
        "Code and decode large pictures in tiles with blended edges, as diffusers does: auto, on or off",
        "on",
    ),
    field(
        "init",
        Kind::Init,
        "none: from noise",
        "The picture to start from (image-to-image), with a mask to repaint a part of it (inpainting)",
        "",
    ),
    field(
        "controls",
        Kind::List(&CONTROLS),
        "none",
        "ControlNets, each with the picture that it follows",
        "",
    ),
    field(
        "hires",
        Kind::Hires,
        "none: one pass",
        "A second, larger pass over the enlarged picture: high resolution without repetition",
        "",
    ),
    field(
        "hidiffusion",
        Kind::Choice(hidiffusions),
        "off",
        "High resolution without repetition in one pass (HiDiffusion): at width x height beyond the model's own, the first steps \
         run at the size it was trained on inside, and the largest attention in windows",
        "on",
    ),
    field(
        "loras",
        Kind::List(&LORAS),
        "none",
        "LoRAs: changes of the model's weights, each with its strength",
        "",
    ),
    field("references", Kind::List(&REFERENCES), "none", "The style pictures and how each is used", ""),
];

fn maps() -> Vec<(&'static str, &'static str)> {
    MAPS.iter().map(|m| (m.name, m.about)).collect()
}

/// Fields of one ControlNet.
pub const CONTROL: &[Field] = &[
    field(
        "model",
        Kind::Path,
        "",
        "ControlNet made for the model: its Diffusers folder, a file of its weights (diffusers' or original names), or its name \
         in instantstyle pull --list",
        "controlnet-canny-sdxl",
    ),
    field(
        "image",
        Kind::Path,
        "",
        "Picture that the ControlNet follows, resized to width x height",
        "photo.png",
    ),
    field(
        "preprocess",
        Kind::Choice(maps),
        "none",
        "Map to make of the picture: none, canny, lineart, tile, or one by a network of preprocess_model: depth, depth_midas, \
         softedge_hed, softedge_pidinet, lineart_realistic, normal_bae, pose",
        "canny",
    ),
    field(
        "preprocess_model",
        Kind::Path,
        "none",
        "Network that makes the map, for those that need one: an ONNX file with its weights inside, from a source you trust \
         (it may take any time and memory)",
        "depth_anything_v2_vits.onnx",
    ),
    field(
        "preprocess_detector",
        Kind::Path,
        "none: one person, who fills the picture",
        "For pose: YOLOX network (ONNX file) that finds people",
        "yolox_l.onnx",
    ),
    field("scale", Kind::Number(0.0, MAX_WEIGHT), "1", "Strength of the ControlNet", "0.6"),
    field(
        "start",
        Kind::Number(0.0, 1.0),
        "0",
        "Start of the ControlNet's window, as a part of the sampling",
        "0.1",
    ),
    field("end", Kind::Number(0.0, 1.0), "1", "End of the window", "0.8"),
    field(
        "canny_low",
        Kind::Number(0.0, MAX_GRADIENT),
        "50",
        "For canny: gradient from which a pixel may go on an edge",
        "100",
    ),
    field(
        "canny_high",
        Kind::Number(0.0, MAX_GRADIENT),
        "200",
        "For canny: gradient above which a pixel begins an edge",
        "200",
    ),
    field(
        "tile_downscale",
        Kind::Number(1.0, 64.0),
        "1: the picture as it is",
        "For tile: how many times smaller the picture is made, and enlarged again, so that detail is lost",
        "4",
    ),
];

fn lora_blocks() -> Vec<(&'static str, &'static str)> {
    LORA_BLOCKS.iter().map(|(name, _, about)| (*name, *about)).collect()
}

/// Fields of one LoRA.
pub const LORA: &[Field] = &[
    field(
        "file",
        Kind::Path,
        "",
        "LoRA of kohya, peft, diffusers or LyCORIS (LoCon, LoHa, LoKr, DoRA), .safetensors, a checkpoint, or its name in the \
         catalogue",
        "watercolour.safetensors",
    ),
    field("weight", Kind::Number(-MAX_WEIGHT, MAX_WEIGHT), "1", "Strength of the LoRA", "0.8"),
    field(
        "blocks",
        Kind::Choice(lora_blocks),
        "all",
        "Which part of a B-LoRA acts: all, content or style (SDXL)",
        "style",
    ),
];

/// Fields of one reference.
pub const REFERENCE: &[Field] = &[
    field("image", Kind::Path, "", "The style picture: PNG, JPEG, WebP, GIF, BMP or TIFF", "style.png"),
    field(
        "adapter",
        Kind::Path,
        "the model's own, if it has one",
        "The IP-Adapter: base, Plus or Full, .safetensors or .bin, or its name in the catalogue",
        "ip-adapter_sdxl.safetensors",
    ),
    field(
        "image_encoder",
        Kind::Path,
        "the one of an adapter by name, else the one beside the adapter or in the model",
        "CLIP image encoder that the adapter was trained with: folder, or file",
        "sdxl_models/image_encoder",
    ),
    field(
        "text_encoder",
        Kind::Path,
        "the model's, where its features fit the adapter",
        "CLIP text encoder for subtraction, where the model lacks it (ViT-H adapters): folder, or file",
        "CLIP-ViT-H-14",
    ),
    field(
        "inject",
        Kind::Inject,
        "style",
        "Where the reference acts: style, layout, style+layout, all, or parts of the UNet with weights",
        "style+layout",
    ),
    field(
        "weight",
        Kind::Number(-MAX_WEIGHT, MAX_WEIGHT),
        "1",
        "Strength: multiplies every weight of inject",
        "0.8",
    ),
    field(
        "subtract",
        Kind::Subtract,
        "nothing",
        "Content to take away from the reference's feature (base adapters only)",
        "",
    ),
    field(
        "mask",
        Kind::Path,
        "the whole picture",
        "Picture that is white where the reference acts",
        "left.png",
    ),
    field(
        "start",
        Kind::Number(0.0, 1.0),
        "0",
        "Start of the reference's window, as a part of the sampling",
        "0.2",
    ),
    field("end", Kind::Number(0.0, 1.0), "1", "End of the window", "0.8"),
];

/// Fields of `init`.
pub const INIT: &[Field] = &[
    field("image", Kind::Path, "", "Picture to start from, resized to width x height", "photo.png"),
    field(
        "strength",
        Kind::Number(0.0, 1.0),
        "0.6; with a mask 1",
        "How much is repainted: the part of the steps that is run",
        "0.5",
    ),
    field("mask", Kind::Path, "none", "Picture that is white where it is repainted (inpainting)", "sky.png"),
    field(
        "blend_px",
        Kind::Number(0.0, 1024.0),
        "not put back",
        "Put the pixels outside the mask back exactly, with a soft edge of so many pixels inside it",
        "8",
    ),
];

fn upscales() -> Vec<(&'static str, &'static str)> {
    UPSCALES.iter().map(|(name, _, about)| (*name, *about)).collect()
}

/// Fields of `hires`.
pub const HIRES: &[Field] = &[
    field(
        "scale",
        Kind::Number(1.0, 8.0),
        "2, or what width and height say",
        "Make the picture at width x height, enlarge it by this factor, and paint over it in a second pass",
        "2",
    ),
    field(
        "width",
        Kind::Whole(1, MAX_SIDE),
        "by the factor",
        "Width of the result in pixels, instead of a factor",
        "2048",
    ),
    field("height", Kind::Whole(1, MAX_SIDE), "by the factor", "Height of the result, likewise", "1536"),
    field(
        "strength",
        Kind::Number(0.0, 1.0),
        "0.5",
        "How much the second pass repaints: the part of its steps that is run",
        "0.4",
    ),
    field(
        "upscale",
        Kind::Choice(upscales),
        "pixel",
        "What is enlarged: pixel (the picture), latent or latent-nearest (the latents)",
        "latent",
    ),
    field("steps", Kind::Whole(1, 1000), "the request's", "Steps of the second pass", "20"),
];

/// Fields of `subtract`.
pub const SUBTRACT: &[Field] = &[
    field("text", Kind::Text, "", "What the reference shows and the picture should not", "a rabbit"),
    field(
        "scale",
        Kind::Number(-MAX_WEIGHT, MAX_WEIGHT),
        "the model card's, else 0.5 on SDXL and 0.8 on SD1.5",
        "How much of it to take away",
        "0.5",
    ),
];
