"""Writes a Diffusers folder of the true shape of SD1.5 or SDXL base with random f16 weights: `make_fullsize.py sd15 DIR`.

It has the picture tower of that family's first IP-Adapter, too: OpenCLIP's ViT-H/14 for SD1.5, bigG/14 for SDXL. The tokenizer's vocabulary is CLIP's, from `--bpe bpe_simple_vocab_16e6.txt.gz` (github.com/openai/CLIP).
"""
import argparse
import gzip
import json
import os

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, PNDMScheduler, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import (CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPVisionConfig,
                          CLIPVisionModelWithProjection)

SD = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1)
VAE = dict(block_out_channels=[128, 256, 512, 512], layers_per_block=2, latent_channels=4, sample_size=512,
           down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4)
UNET = {
    "sd15": dict(sample_size=64, cross_attention_dim=768, attention_head_dim=8),
    "sdxl": dict(sample_size=128, cross_attention_dim=2048, attention_head_dim=[5, 10, 20], block_out_channels=[320, 640, 1280],
                 transformer_layers_per_block=[1, 2, 10], use_linear_projection=True, addition_embed_type="text_time",
                 addition_time_embed_dim=256, projection_class_embeddings_input_dim=2816,
                 down_block_types=["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
                 up_block_types=["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"]),
}
CLIP_L = dict(vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
              projection_dim=768, hidden_act="quick_gelu", eos_token_id=2)
CLIP_G = dict(vocab_size=49408, hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=20,
              projection_dim=1280, hidden_act="gelu", eos_token_id=2)
# h94/IP-Adapter, models/image_encoder/config.json and sdxl_models/image_encoder/config.json.
VISION = {
    "sd15": dict(hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=16, projection_dim=1024),
    "sdxl": dict(hidden_size=1664, intermediate_size=8192, num_hidden_layers=48, num_attention_heads=16, projection_dim=1280),
}


def random_weights(model, path, name):
    """Random values with the spread that keeps activations of order one."""
    g, tensors = torch.Generator().manual_seed(1), {}
    for key, value in model.state_dict().items():
        if not value.is_floating_point():
            continue
        if value.dim() < 2:
            t = torch.full(value.shape, 1. if "norm" in key and key.endswith("weight") else 0., dtype=torch.float16)
        else:
            t = (torch.randn(value.shape, generator=g) * value[0].numel() ** -.5).half()
        tensors[key] = t
    os.makedirs(path, exist_ok=True)
    save_file(tensors, f"{path}/{name}.safetensors", metadata={"format": "pt"})
    model.save_config(path) if hasattr(model, "save_config") else model.config.save_pretrained(path)


def tokenizer(folder, bpe, pad):
    with gzip.open(bpe) as f:
        merges = [tuple(m.split()) for m in f.read().decode().split("\n")[1:49152 - 256 - 2 + 1]]
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    symbols = [chr(b) for b in kept] + [chr(256 + i) for i in range(256 - len(kept))]
    tokens = symbols + [s + "</w>" for s in symbols] + ["".join(m) for m in merges] + ["<|startoftext|>", "<|endoftext|>"]
    os.makedirs(folder, exist_ok=True)
    json.dump({t: i for i, t in enumerate(tokens)}, open(f"{folder}/vocab.json", "w"))
    open(f"{folder}/merges.txt", "w").write("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    special = dict(bos_token="<|startoftext|>", eos_token="<|endoftext|>", unk_token="<|endoftext|>", pad_token=pad)
    json.dump(special, open(f"{folder}/special_tokens_map.json", "w"))
    json.dump(dict(tokenizer_class="CLIPTokenizer", model_max_length=77, **special), open(f"{folder}/tokenizer_config.json", "w"))


def main():
    a = argparse.ArgumentParser(description=__doc__)
    a.add_argument("family", choices=list(UNET))
    a.add_argument("folder")
    a.add_argument("--bpe", required=True)
    a.add_argument("--only", help="write these parts' weights alone, e.g. image_encoder")
    a = a.parse_args()
    xl = a.family == "sdxl"
    with torch.device("meta"):
        parts = {"unet": UNet2DConditionModel(**UNET[a.family]), "vae": AutoencoderKL(**VAE, scaling_factor=.13025 if xl else .18215),
                 "text_encoder": CLIPTextModel(CLIPTextConfig(**CLIP_L))}
        vision = CLIPVisionConfig(**VISION[a.family], hidden_act="gelu", image_size=224, patch_size=14)
        parts["image_encoder"] = CLIPVisionModelWithProjection(vision)
        if xl:
            parts["text_encoder_2"] = CLIPTextModelWithProjection(CLIPTextConfig(**CLIP_G))
    for name, part in parts.items():
        if a.only and name not in a.only.split(","):
            continue
        random_weights(part, f"{a.folder}/{name}", "model" if "encoder" in name else "diffusion_pytorch_model")
    # As the published models'; single files, which carry no scheduler, stand for these.
    sampler = EulerDiscreteScheduler(**SD, timestep_spacing="leading") if xl else PNDMScheduler(**SD, skip_prk_steps=True)
    sampler.save_pretrained(f"{a.folder}/scheduler")
    tokenizer(f"{a.folder}/tokenizer", a.bpe, "<|endoftext|>")
    index = {"_class_name": "StableDiffusionXLPipeline" if xl else "StableDiffusionPipeline",
             "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"],
             "scheduler": ["diffusers", "EulerDiscreteScheduler" if xl else "PNDMScheduler"],
             "text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"]}
    if xl:
        tokenizer(f"{a.folder}/tokenizer_2", a.bpe, "!")
        index |= {"text_encoder_2": ["transformers", "CLIPTextModelWithProjection"], "tokenizer_2": ["transformers", "CLIPTokenizer"],
                  "force_zeros_for_empty_prompt": True}
    else:
        index |= {"safety_checker": [None, None], "feature_extractor": [None, None], "image_encoder": [None, None]}
    json.dump(index, open(f"{a.folder}/model_index.json", "w"))


main()
