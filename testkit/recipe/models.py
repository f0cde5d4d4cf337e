"""Tiny checkpoints with random weights, made of the real classes and saved as Diffusers folders."""

import json
import shutil

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

import bpe
from common import MODELS, generator, normal, randomise, rescale, write_json

MERGES = bpe.train()
VOCAB = len(bpe.vocabulary(MERGES))
BOS, EOS = VOCAB - 2, VOCAB - 1

TEXT_GAINS = [(r"self_attn\.(q|k)_proj", 1.3), (r"out_proj|fc2", 0.9), (r"text_projection", 1.0)]
VISION_GAINS = [(r"self_attn\.(q|k)_proj", 1.3), (r"out_proj|fc2", 0.9), (r"patch_embedding", 1.0), (r"class_embedding", 1.0)]
UNET_GAINS = [
    (r"resnets\.\d+\.conv2", 0.7),
    (r"time_emb_proj", 0.7),
    (r"attn\d\.to_(q|k)", 1.5),
    (r"attn1\.to_out", 0.7),
    (r"attn2\.to_v", 2.0),
    (r"attn2\.to_out", 2.0),
    (r"ff\.net\.2", 0.7),
    (r"proj_out", 1.2),
    (r"add_embedding", 0.9),
]
VAE_GAINS = [(r"resnets\.\d+\.conv2", 0.6), (r"attentions\.0\.to_out", 0.7)]


def text_config(width, heads, layers, inner, act, projection=None, old_eos=False):
    return CLIPTextConfig(
        vocab_size=VOCAB,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=77,
        hidden_act=act,
        projection_dim=projection or width,
        bos_token_id=0 if old_eos else BOS,
        eos_token_id=2 if old_eos else EOS,
        pad_token_id=1 if old_eos else EOS,
    )


def text_model(config, seed, projected=False):
    model = (CLIPTextModelWithProjection if projected else CLIPTextModel)(config).eval()
    return randomise(model, seed, TEXT_GAINS)


def save_text(model, folder, layout, dtype=torch.float16):
    """`old`: as transformers 4 wrote it, with the `text_model.` prefix and the `position_ids` buffer."""
    probe = torch.tensor([[BOS, 5, 300, 600, EOS, EOS]])
    want = model(probe)[0]
    model.to(dtype).save_pretrained(folder)
    model.float()
    if layout == "old":
        as_transformers_4(folder)
    again = type(model).from_pretrained(folder, dtype=torch.float32).eval()
    assert torch.equal(again(probe)[0], want), folder


def as_transformers_4(folder):
    file = folder / "model.safetensors"
    state = load_file(file)
    state = {k if k.startswith(("text_model.", "text_projection")) else f"text_model.{k}": v for k, v in state.items()}
    state["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    save_file(state, file, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["torch_dtype"] = config.pop("dtype")
    config["transformers_version"] = "4.25.1"
    config["dropout"] = 0.0
    config["_name_or_path"] = "tiny"
    write_json(folder / "config.json", config)


def unet(config, seed, family_gains=()):
    model = UNet2DConditionModel(**{"in_channels": 4, "out_channels": 4, "norm_num_groups": 4, **config}).eval()
    randomise(model, seed, [*UNET_GAINS, *family_gains])
    return calibrate_unet(model, seed)


def calibrate_unet(model, seed):
    """Scale the last layer so that the prediction's standard deviation is about 1."""
    gen = generator(seed + 1)
    config = model.config
    added = {}
    if config.addition_embed_type == "text_time":
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        added = {"text_embeds": normal(gen, (2, pooled)), "time_ids": torch.tensor([[64.0, 64, 0, 0, 64, 64]] * 2)}
    sample, context = normal(gen, (2, config.in_channels, 8, 8)), normal(gen, (2, 77, config.cross_attention_dim))
    out = model(sample, 500, context, added_cond_kwargs=added or None).sample
    rescale(model.conv_out, 1.0 / float(out.std()))
    return model


def vae(channels, seed, layers, scaling, **extra):
    model = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        layers_per_block=layers,
        norm_num_groups=4,
        sample_size=64,
        scaling_factor=scaling,
        **extra,
    ).eval()
    randomise(model, seed, VAE_GAINS)
    gen = generator(seed + 1)
    latents = normal(gen, (1, 4, 8, 8)) / scaling
    # Post-quantisation brings the latents back to unit size, the last layer leaves room within [-1, 1].
    rescale(model.post_quant_conv, scaling)
    rescale(model.decoder.conv_out, 0.45 / float(model.decode(latents).sample.std()))
    return model


def save_index(folder, pipeline, parts, **extra):
    index = {"_class_name": pipeline, "_diffusers_version": "0.42.1"}
    index.update(extra)
    index.update(parts)
    write_json(folder / "model_index.json", index)


SD_PARTS = {
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "safety_checker": [None, None],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
XL_PARTS = {
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}

# As in the published SD1.5 and SDXL base folders: keys that are absent there are absent here.
SD_SCHEDULER = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.6.0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}
XL_SCHEDULER = {
    "_class_name": "EulerDiscreteScheduler",
    "_diffusers_version": "0.19.0.dev0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "interpolation_type": "linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "sample_max_value": 1.0,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "trained_betas": None,
    "use_karras_sigmas": False,
}
V_SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "_diffusers_version": "0.24.0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "timestep_spacing": "trailing",
    "trained_betas": None,
}
S_SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "_diffusers_version": "0.24.0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "prediction_type": "sample",
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
# A later base: Karras sigmas by default, another spacing, the last sigma kept.
B_SCHEDULER = {
    "_class_name": "DPMSolverMultistepScheduler",
    "_diffusers_version": "0.27.0",
    "algorithm_type": "dpmsolver++",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "euler_at_final": True,
    "final_sigmas_type": "sigma_min",
    "lower_order_final": True,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "solver_order": 2,
    "solver_type": "midpoint",
    "steps_offset": 1,
    "timestep_spacing": "linspace",
    "use_karras_sigmas": True,
}


def sd15_a():
    """SD1.5's shape: four levels, 1x1-convolution projections, `attention_head_dim` 8 meaning 8 heads."""
    folder = MODELS / "sd15-a"
    text = text_model(text_config(24, 4, 3, 64, "quick_gelu", old_eos=True), 101)
    save_text(text, folder / "text_encoder", "old")
    bpe.save_old(folder / "tokenizer", MERGES)
    model = unet(
        dict(
            sample_size=8,
            block_out_channels=(8, 16, 24, 24),
            layers_per_block=2,
            down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
            cross_attention_dim=24,
            attention_head_dim=8,
        ),
        102,
    )
    model.half().save_pretrained(folder / "unet")
    vae((8, 8, 16, 16), 103, 2, 0.18215).half().save_pretrained(folder / "vae")
    # As in the first folders: no scaling factor in the file, the class's default counts.
    config = json.loads((folder / "vae/config.json").read_text())
    keep = ["_class_name", "act_fn", "block_out_channels", "down_block_types", "in_channels", "latent_channels"]
    keep += ["layers_per_block", "norm_num_groups", "out_channels", "sample_size", "up_block_types"]
    write_json(folder / "vae/config.json", {"_diffusers_version": "0.6.0", **{k: config[k] for k in keep}})
    # Likewise for the network: only the keys that SD1.5 has.
    config = json.loads((folder / "unet/config.json").read_text())
    keep = ["_class_name", "act_fn", "attention_head_dim", "block_out_channels", "center_input_sample", "cross_attention_dim"]
    keep += ["down_block_types", "downsample_padding", "flip_sin_to_cos", "freq_shift", "in_channels", "layers_per_block"]
    keep += ["mid_block_scale_factor", "norm_eps", "norm_num_groups", "out_channels", "sample_size", "up_block_types"]
    write_json(folder / "unet/config.json", {"_diffusers_version": "0.6.0", **{k: config[k] for k in keep}})
    write_json(folder / "scheduler/scheduler_config.json", SD_SCHEDULER)
    save_index(folder, "StableDiffusionPipeline", {**SD_PARTS, "scheduler": ["diffusers", "PNDMScheduler"]})


def sd15_v():
    """v-prediction with zero terminal SNR, linear projections, heads given per level; bfloat16; new layout."""
    folder = MODELS / "sd15-v"
    text = text_model(text_config(20, 5, 4, 48, "gelu"), 111)
    text.load_state_dict({k: v.to(torch.bfloat16).float() for k, v in text.state_dict().items()})
    save_text(text, folder / "text_encoder", "new", torch.bfloat16)
    bpe.save_new(folder / "tokenizer", MERGES, pad="!")
    model = unet(
        dict(
            sample_size=16,
            block_out_channels=(8, 16, 24, 24),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
            cross_attention_dim=20,
            attention_head_dim=[2, 4, 3, 4],
            use_linear_projection=True,
            upcast_attention=True,
        ),
        112,
    )
    model.to(torch.bfloat16).save_pretrained(folder / "unet")
    vae((8, 16, 16), 113, 1, 0.3).to(torch.bfloat16).save_pretrained(folder / "vae")
    write_json(folder / "scheduler/scheduler_config.json", V_SCHEDULER)
    save_index(folder, "StableDiffusionPipeline", {**SD_PARTS, "scheduler": ["diffusers", "DDIMScheduler"]})


def sd15_s():
    """Sample prediction, two levels, float32; the decoder as a pickle."""
    folder = MODELS / "sd15-s"
    text = text_model(text_config(16, 2, 2, 40, "quick_gelu", old_eos=True), 121)
    save_text(text, folder / "text_encoder", "old", torch.float32)
    bpe.save_old(folder / "tokenizer", MERGES)
    model = unet(
        dict(
            sample_size=16,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=16,
            attention_head_dim=4,
            flip_sin_to_cos=True,
            freq_shift=0,
        ),
        122,
        # Sample prediction iterates the network on its own output: keep it gentle.
        [(r"resnets\.\d+\.conv2", 0.35), (r"attn\d\.to_(q|k)", 0.9), (r"attn1\.to_out", 0.4), (r"attn2\.to_(v|out)", 1.3), (r"ff\.net\.2", 0.4)],
    )
    model.save_pretrained(folder / "unet")
    vae((4, 8, 8, 8), 123, 1, 0.18215).save_pretrained(folder / "vae", safe_serialization=False)
    write_json(folder / "scheduler/scheduler_config.json", S_SCHEDULER)
    save_index(folder, "StableDiffusionPipeline", {**SD_PARTS, "scheduler": ["diffusers", "DDIMScheduler"]})


def xl_unet(seed, channels, heads, depth, cross, pooled, time_width, **extra):
    return unet(
        dict(
            sample_size=8,
            block_out_channels=channels,
            layers_per_block=2,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=depth,
            attention_head_dim=heads,
            cross_attention_dim=cross,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=time_width,
            projection_class_embeddings_input_dim=6 * time_width + pooled,
            **extra,
        ),
        seed,
        # One block holds fewer sites than SD1.5 has in all: make each of them tell.
        [(r"attn2\.to_(q|k)", 1.2), (r"attn2\.to_v", 2.0), (r"attn2\.to_out", 1.8)],
    )


def sdxl_a():
    """SDXL's shape, new layout."""
    folder = MODELS / "sdxl-a"
    save_text(text_model(text_config(16, 2, 3, 40, "quick_gelu", old_eos=True), 201), folder / "text_encoder", "new")
    second = text_model(text_config(24, 4, 4, 64, "gelu", projection=28), 202, projected=True)
    save_text(second, folder / "text_encoder_2", "new")
    bpe.save_new(folder / "tokenizer", MERGES)
    bpe.save_new(folder / "tokenizer_2", MERGES, pad="!")
    xl_unet(203, (8, 16, 24), [2, 4, 3], [1, 2, 2], 40, 28, 8).half().save_pretrained(folder / "unet")
    vae((8, 8, 16, 16), 204, 2, 0.13025, force_upcast=True).half().save_pretrained(folder / "vae")
    write_json(folder / "scheduler/scheduler_config.json", XL_SCHEDULER)
    save_index(
        folder,
        "StableDiffusionXLPipeline",
        {**XL_PARTS, "scheduler": ["diffusers", "EulerDiscreteScheduler"]},
        force_zeros_for_empty_prompt=True,
    )


def sdxl_b():
    """Other widths, old layout, `.fp16` files, a sharded network, a pickled text encoder, no zeroed negatives."""
    folder = MODELS / "sdxl-b"
    first = text_model(text_config(20, 4, 2, 48, "quick_gelu", old_eos=True), 211)
    save_text(first, folder / "text_encoder", "old")
    state = load_file(folder / "text_encoder/model.safetensors")
    torch.save(state, folder / "text_encoder/pytorch_model.fp16.bin")
    (folder / "text_encoder/model.safetensors").unlink()
    second = text_model(text_config(28, 4, 3, 56, "gelu", projection=28, old_eos=True), 212, projected=True)
    save_text(second, folder / "text_encoder_2", "old")
    (folder / "text_encoder_2/model.safetensors").rename(folder / "text_encoder_2/model.fp16.safetensors")
    bpe.save_old(folder / "tokenizer", MERGES)
    bpe.save_old(folder / "tokenizer_2", MERGES, pad="!")
    model = xl_unet(213, (12, 16, 20), [3, 2, 5], [1, 1, 3], 48, 28, 16)
    model.half().save_pretrained(folder / "unet", variant="fp16", max_shard_size="200KB")
    assert (folder / "unet/diffusion_pytorch_model.safetensors.index.fp16.json").exists()
    vae((8, 8, 16, 16), 214, 1, 0.13025).half().save_pretrained(folder / "vae", variant="fp16")
    config = json.loads((folder / "vae/config.json").read_text())
    for key in ("latents_mean", "latents_std", "shift_factor"):
        config.pop(key, None)
    write_json(folder / "vae/config.json", config)
    write_json(folder / "scheduler/scheduler_config.json", B_SCHEDULER)
    save_index(
        folder,
        "StableDiffusionXLPipeline",
        {**XL_PARTS, "scheduler": ["diffusers", "DPMSolverMultistepScheduler"]},
        force_zeros_for_empty_prompt=False,
    )


def borrow(folder, other, parts):
    """Parts of another folder, unchanged."""
    for part in parts:
        shutil.copytree(MODELS / other / part, folder / part)


def sd15_i():
    """A network for inpainting: nine channels in. The rest is sd15-s's."""
    folder = MODELS / "sd15-i"
    borrow(folder, "sd15-s", ["text_encoder", "tokenizer", "vae"])
    model = unet(
        dict(
            in_channels=9,
            sample_size=16,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=16,
            attention_head_dim=4,
        ),
        132,
    )
    model.half().save_pretrained(folder / "unet")
    write_json(folder / "scheduler/scheduler_config.json", SD_SCHEDULER)
    save_index(folder, "StableDiffusionPipeline", {**SD_PARTS, "scheduler": ["diffusers", "PNDMScheduler"]})


def sdxl_i():
    """SDXL's shape for inpainting: nine channels in. The rest is sdxl-a's."""
    folder = MODELS / "sdxl-i"
    borrow(folder, "sdxl-a", ["text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "vae"])
    xl_unet(223, (8, 12, 16), [2, 3, 4], [1, 1, 1], 40, 28, 8, in_channels=9).half().save_pretrained(folder / "unet")
    write_json(folder / "scheduler/scheduler_config.json", XL_SCHEDULER)
    save_index(
        folder,
        "StableDiffusionXLPipeline",
        {**XL_PARTS, "scheduler": ["diffusers", "EulerDiscreteScheduler"]},
        force_zeros_for_empty_prompt=True,
    )


def vision(name, seed, width, heads, layers, inner, act, image, patch, projection, old):
    folder = MODELS / name
    config = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        image_size=image,
        patch_size=patch,
        hidden_act=act,
        projection_dim=projection,
    )
    model = randomise(CLIPVisionModelWithProjection(config).eval(), seed, VISION_GAINS)
    model.half().save_pretrained(folder)
    if old:
        file = folder / "model.safetensors"
        state = load_file(file)
        count = (image // patch) ** 2 + 1
        state["vision_model.embeddings.position_ids"] = torch.arange(count)[None]
        save_file(state, file, metadata={"format": "pt"})
        CLIPImageProcessor(size={"shortest_edge": image}, crop_size=image).save_pretrained(folder)


def text_tower():
    """The text half of vit-a's pair, for subtraction where the base model has no tower in that space."""
    folder = MODELS / "text-tower"
    model = text_model(text_config(32, 4, 3, 64, "gelu", projection=24, old_eos=True), 303, projected=True)
    save_text(model, folder, "old")
    bpe.save_old(folder, MERGES)


def vae_tiny():
    """A small autoencoder of TAESD's kind, as diffusers saves it."""
    widths, blocks = (8, 8, 8, 8), (1, 1, 2, 1)
    model = AutoencoderTiny(
        encoder_block_out_channels=widths, decoder_block_out_channels=widths, num_encoder_blocks=blocks, num_decoder_blocks=blocks[::-1]
    ).eval()
    randomise(model, 131, [(r"conv\.4", 0.7)])
    model.half().save_pretrained(MODELS / "vae-tiny")


def build():
    shutil.rmtree(MODELS, ignore_errors=True)
    for make in (sd15_a, sd15_v, sd15_s, sdxl_a, sdxl_b, sd15_i, sdxl_i, text_tower, vae_tiny):
        make()
    vision("vit-a", 301, 32, 4, 3, 64, "gelu", 32, 8, 24, old=False)
    vision("vit-b", 302, 40, 5, 4, 80, "quick_gelu", 40, 10, 28, old=True)


if __name__ == "__main__":
    build()
