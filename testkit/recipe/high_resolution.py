"""HiDiffusion through its authors' own package (`pip install hidiffusion`, 0.1.10), which patches diffusers' pipeline.

Two things are told to it: which published model a tiny one stands for (it goes by names and by the paths of all blocks), and
sizes as if the tiny model had been trained on as many latents as the published one (it compares them with fixed numbers).
Its pipeline for ControlNets has one such number, and forgot two imports: both are set right here.
"""

import inspect
import json
import sys

import torch
from diffusers.models.controlnets import multicontrolnet
from diffusers.utils import scale_lora_layers, unscale_lora_layers

# Where diffusers had it when the package was written.
sys.modules["diffusers.pipelines.controlnet.multicontrolnet"] = multicontrolnet

import hidiffusion.hidiffusion as published  # noqa: E402

published.scale_lora_layers, published.unscale_lora_layers = scale_lora_layers, unscale_lora_layers
PIPELINE = inspect.getsource(published.make_diffusers_sdxl_contrtolnet_ppl)

# The name that the package knows, and the side of its latents.
STANDS_FOR = {
    "sd": ("runwayml/stable-diffusion-v1-5", 64),
    "xl": ("stabilityai/stable-diffusion-xl-base-1.0", 128),
    "xl inpainting": ("diffusers/stable-diffusion-xl-1.0-inpainting-0.1", 128),
}


def apply(pipe, folder, family, windows, seed):
    """To be called right before the run: shifts come from torch's global generator. `folder` is the model's."""
    inpainting = pipe.unet.config.in_channels == 9
    name, side = STANDS_FOR[f"{family} inpainting" if inpainting else family]
    # Not from the pipeline's own configuration: diffusers sets the sample_size of SD1.5 to 64 there if it is less.
    factor = side // json.loads((folder / "unet" / "config.json").read_text())["sample_size"]

    def hook(module):
        def sized(module, args):
            module.info["size"] = (args[0].shape[2] * factor, args[0].shape[3] * factor)

        module.info["hooks"].append(module.register_forward_pre_hook(sized))

    published.hook_diffusion_model = hook
    source = PIPELINE.replace("original_h, original_w = (128,128)", f"original_h, original_w = {(side // factor,) * 2}")
    assert source != PIPELINE
    exec(source, vars(published))
    pipe.register_to_config(_name_or_path=name)
    published.apply_hidiffusion(pipe, apply_window_attn=windows)
    torch.manual_seed(seed)
