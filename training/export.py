"""Writes the trained model as a Diffusers folder (f16) with its adapter, image encoder and reference pictures."""

import json
import os

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn.utils.fusion import fuse_conv_bn_eval

import networks
import train
import world

# What the demo shows: held-out pictures, one per style.
REFERENCES = [("fish", "neon"), ("heart", "mosaic"), ("tree", "halftone"), ("moon", "vaporwave"), ("flower", "hatching"),
              ("star", "blueprint")]


MANTISSA_BITS = 6
VISION_BITS = 4  # of the image tower
DECODER_BITS = 5
HERE = os.path.dirname(os.path.abspath(__file__))


@torch.no_grad()
def rounded(module, bits=MANTISSA_BITS):
    """f16 with zero bits at the end of each weight: nothing that a picture shows (`measure.py` judges the rounded weights), and
    the file packs to two thirds or less in a repository."""
    for p in module.parameters() if isinstance(module, torch.nn.Module) else module:
        mantissa, exponent = torch.frexp(p.float())
        scale = 2. ** (bits + 1)
        p.copy_(torch.ldexp((mantissa * scale).round() / scale, exponent).half().to(p.dtype))
    return module


def rounded_vae(vae):
    """The parts of the decoder that learn last have fewer bits."""
    rounded([p for n, p in vae.named_parameters() if n.startswith("decoder.") and not n.startswith(train.KEPT)], DECODER_BITS)
    return rounded(vae)


def check_tokenizer(folder):
    """transformers' tokenizer must give the ids that were trained with."""
    from transformers import CLIPTokenizer
    theirs, ours = CLIPTokenizer.from_pretrained(folder), networks.WordTokens()
    captions = [f"a big {c} on the left, in {s} style, {k} on red" for c in world.CONTENTS for s in world.STYLES for k in world.COLOURS]
    for caption, row in zip(captions, ours(captions).tolist()):
        assert theirs(caption, padding="max_length", max_length=networks.LENGTH).input_ids == row, caption


@torch.no_grad()
def export_judge(out, folder, path=os.path.join(HERE, "../testkit/fixtures/judge.safetensors")):
    """The judge for the program's own tests: contents and style, f16, the batch norms folded into the convolutions, and its
    answers about the embedded reference pictures, which the program's tests must repeat."""
    judge, = train.load(out, "judges", train.Judge())
    layers = judge.features
    convolutions = [fuse_conv_bn_eval(c, n) for c, n in zip(layers[0::3], layers[1::3])]
    judge.features = torch.nn.Sequential(*[m for c in convolutions for m in (c, torch.nn.ReLU())])
    judge = rounded(judge)
    tensors = {k: v.half().contiguous() for k, v in judge.state_dict().items() if not k.startswith("colours")}
    for content, style in REFERENCES:
        picture = np.asarray(Image.open(f"{folder}/references/{style}-{content}.png").convert("RGB"))
        contents, styles, _ = judge(networks.pixels(picture[None]))
        tensors[f"answer.{style}-{content}.contents"], tensors[f"answer.{style}-{content}.style"] = contents[0], styles[0]
    save_file(tensors, path)


def export(out, folder=os.path.join(HERE, "../models/embedded")):
    """The folder that the program embeds; everything but the card (see `measure.py`)."""
    folder = os.path.normpath(folder)
    vae = train.load_vae(out)
    vae.register_to_config(scaling_factor=1.)
    text, vision, _ = train.load_clip(out)
    unet, = train.load(out, "unet", networks.build_unet())
    rounded_vae(vae).half().save_pretrained(f"{folder}/vae")
    rounded(unet).half().save_pretrained(f"{folder}/unet")
    rounded(text).half().save_pretrained(f"{folder}/text_encoder_2")
    rounded(vision, VISION_BITS).half().save_pretrained(f"{folder}/image_encoder")
    networks.save_tokenizer(f"{folder}/tokenizer_2")
    check_tokenizer(f"{folder}/tokenizer_2")
    networks.sampling_schedule().save_pretrained(f"{folder}/scheduler")
    with open(f"{folder}/image_encoder/preprocessor_config.json", "w") as f:
        json.dump(dict(image_processor_type="CLIPImageProcessor", size=dict(shortest_edge=64), crop_size=dict(height=64, width=64),
                       do_resize=True, do_center_crop=True, do_rescale=True, rescale_factor=1 / 255, do_normalize=True,
                       do_convert_rgb=True, resample=3, image_mean=networks.CLIP_MEAN, image_std=networks.CLIP_STD), f, indent=1)
    parts = {"scheduler": ["diffusers", "DDIMScheduler"], "text_encoder": [None, None], "tokenizer": [None, None],
             "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"], "tokenizer_2": ["transformers", "CLIPTokenizer"],
             "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"]}
    with open(f"{folder}/model_index.json", "w") as f:
        json.dump({"_class_name": "StableDiffusionXLPipeline", "force_zeros_for_empty_prompt": True, **parts}, f, indent=1)
    if os.path.exists(f"{out}/adapter.ckpt"):
        adapted = rounded(train.load_adapted(out))
        start = train.adapter_start(train.load(out, "unet", networks.build_unet())[0], out)
        named = train.adapter_parameters(adapted)
        places = [n.rsplit(".", 1)[0] for n in adapted.attn_processors if "attn2" in n]
        order = [p for part in ("down", "up", "mid") for p in places if p.startswith(part)]
        tensors = {}
        for i, place in enumerate(order):
            for kind in ("to_k_ip", "to_v_ip"):
                tensors[f"ip_adapter.{2 * i + 1}.{kind}.weight"] = named[f"{place}.processor.{kind}.0.weight"]
        projection = "encoder_hid_proj.image_projection_layers.0"
        for ours, theirs in (("proj", "image_embeds"), ("norm", "norm")):
            for kind in ("weight", "bias"):
                tensors[f"image_proj.{ours}.{kind}"] = named[f"{projection}.{theirs}.{kind}"]
        assert len(tensors) == len(start["image_proj"]) + len(start["ip_adapter"])
        save_file({k: v.half().contiguous() for k, v in tensors.items()}, f"{folder}/ip-adapter.safetensors")
    os.makedirs(f"{folder}/references", exist_ok=True)
    for i, (content, style) in enumerate(REFERENCES):
        scene = world.Scene(np.random.default_rng((10**6, i)), [content], style, plain=True)
        Image.fromarray(scene.draw()).save(f"{folder}/references/{style}-{content}.png", optimize=True)
    export_judge(out, folder)
    size = sum(os.path.getsize(os.path.join(d, f)) for d, _, fs in os.walk(folder) for f in fs)
    train.log(out, f"exported, {size / 1e6:.1f} MB in all")
