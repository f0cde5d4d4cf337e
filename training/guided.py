"""Trains the small companions of the embedded model, its UNet frozen: `python guided.py all --out run`, after `train.py`.

Stages: hint and control (a canny Control-LoRA), look (a LoRA of one drawn style), parts (a pair of B-LoRAs). Each resumes from its checkpoint.
"""

import argparse
import os

import cv2
import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from diffusers import ControlNetModel
from PIL import Image
from safetensors.torch import save_file
from torch.nn.utils import parametrize

import export
import networks
import train
import world

FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../models/embedded")
STEPS = dict(hint=400, control=1000, look=300, parts=300)
BATCH = 16  # of the control
CANNY = (50, 200)  # InstantStyle's thresholds
HINT_WIDTHS = (16, 24, 32, 64)
CONV_RANK, LINEAR_RANK = 8, 4
BITS = 4  # of the stored weights' mantissas
LOOK = "woodcut"  # the style of the LoRA
LOOK_RANK, PARTS_RANK = 4, 8
SHOWN = ("flower", "hatching")  # the reference picture of the B-LoRAs
# Where the UNet's content and style are decided (README.md): what B-LoRA calls its blocks.
PARTS = {"content": "up_blocks.1.attentions.2", "style": "up_blocks.1.attentions.1"}


class LowRank(nn.Module):
    """A weight and a difference of low rank, `up @ down`, which starts at zero; convolutions are flattened [out, in * k * k]."""

    def __init__(self, weight, rank):
        super().__init__()
        out, inside = weight.shape[0], weight[0].numel()
        self.up = nn.Parameter(torch.zeros(out, rank))
        self.down = nn.Parameter(torch.randn(rank, inside) * inside ** -.5)

    def forward(self, weight):
        return weight + (self.up @ self.down).view_as(weight)


def control_net(unet):
    """A ControlNet whose copy of the UNet's first half differs by low ranks alone; hint network and output convolutions whole."""
    torch.manual_seed(7)
    net = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=HINT_WIDTHS).requires_grad_(False)
    whole = ("controlnet_cond_embedding", "controlnet_down_blocks", "controlnet_mid_block")
    for name, module in list(net.named_modules()):
        if name.startswith(whole):
            module.requires_grad_(True)
        elif name.startswith(("down_blocks", "mid_block")) and "time_emb" not in name and isinstance(module, (nn.Conv2d, nn.Linear)):
            rank = CONV_RANK if isinstance(module, nn.Conv2d) else LINEAR_RANK
            parametrize.register_parametrization(module, "weight", LowRank(module.weight, rank))
    return net


def edges(picture):
    """The canny map of a uint8 RGB picture, as three channels 0..1."""
    return np.repeat(cv2.Canny(picture, *CANNY)[None].astype(np.float32) / 255, 3, 0)


def drawn_edges(scene, style):
    """The map of a scene drawn in a style; its own hues."""
    return edges(world.render(style, scene.mask(), *scene.hues))


def maps_of(data, rng, indices):
    """Maps of scenes drawn flat or in any style: what to keep is where things are; the look is the prompt's."""
    style = lambda: "flat" if rng.random() < .5 else str(rng.choice(world.STYLES))
    return torch.from_numpy(np.stack([drawn_edges(data.scenes[j], style()) for j in indices]))


def hint(out, steps):
    """The hint network alone: its features become what the first convolution makes of the clean latents' shape channels, so that the
    copied half reads them from its first step. From nothing, 150 steps of all together taught nothing that could be seen."""
    data, z, k = train.Data(out), torch.load(f"{out}/latents.pt", mmap=True)["z"], networks.SHAPE_CHANNELS
    unet, = train.load(out, "unet", networks.build_unet())
    net = control_net(unet).controlnet_cond_embedding
    nn.init.kaiming_normal_(net.conv_out.weight, nonlinearity="linear")

    def loss(rng):
        i = np.sort(rng.integers(0, train.PICTURES - 2000, 24))
        wanted = F.conv2d(z[i][:, :k].float(), unet.conv_in.weight[:, :k], padding=1)
        with train.autocast():
            return F.mse_loss(net(maps_of(data, rng, i)).float(), wanted) / wanted.square().mean()

    train.loop(out, "hint", [net], loss, 3e-3, steps)


def control(out, steps):
    """All of it. Texts are dropped or cut often, so that the map says what they do not, and the noise is such that shapes are open."""
    data, words, z = train.Data(out), networks.WordTokens(), torch.load(f"{out}/latents.pt", mmap=True)["z"]
    text, _, _ = train.load_clip(out)
    unet, = train.load(out, "unet", networks.build_unet())
    net, schedule = control_net(unet), networks.noise_schedule()
    train.load(out, "hint", net.controlnet_cond_embedding)
    net.controlnet_cond_embedding.train().requires_grad_(True)
    unet.to(memory_format=torch.channels_last), net.to(memory_format=torch.channels_last)

    def loss(rng):
        i = np.sort(rng.integers(0, train.PICTURES - 2000, BATCH))
        parts = lambda: (False, True, False) if rng.random() < .4 else train.caption_parts(rng)
        captions = [data.scenes[j].caption(*parts()) if rng.random() < .7 else "" for j in i]
        with torch.no_grad():
            states, pooled = train.prompt(text, words, captions)
        x = z[i].float().contiguous(memory_format=torch.channels_last)
        noise, t = torch.randn_like(x), torch.from_numpy(rng.integers(300, 1000, BATCH))
        seen = schedule.add_noise(x, noise, t)
        with train.autocast():
            down, mid = net(seen, t, states, maps_of(data, rng, i), added_cond_kwargs=train.added(pooled), return_dict=False)
            o = unet(seen, t, states, added_cond_kwargs=train.added(pooled), down_block_additional_residuals=down,
                     mid_block_additional_residual=mid).sample
        return F.mse_loss(o.float(), schedule.get_velocity(x, noise, t))

    train.loop(out, "control", [net], loss, 2e-3, steps)


def with_lora(unet, places, rank):
    """Adds a LoRA to the attention layers under `places`; what is trained."""
    unet.requires_grad_(False)
    for name, module in list(unet.named_modules()):
        if name.startswith(places) and ".attn" in name and isinstance(module, nn.Linear):
            parametrize.register_parametrization(module, "weight", LowRank(module.weight, rank))
    return unet


def lora_loss(model, schedule, text, words, latents, captions, rng):
    """As the UNet was trained, at the noise at which things are decided."""
    states, pooled = train.prompt(text, words, captions)
    noise, t = torch.randn_like(latents), torch.from_numpy(rng.integers(200, 1000, len(latents)))
    with train.autocast():
        o = model(schedule.add_noise(latents, noise, t), t, states, added_cond_kwargs=train.added(pooled)).sample
    return F.mse_loss(o.float(), schedule.get_velocity(latents, noise, t))


def look(out, steps):
    """A style LoRA: pictures of one style, whose captions do not name it."""
    data, words, z = train.Data(out), networks.WordTokens(), torch.load(f"{out}/latents.pt", mmap=True)["z"]
    text, _, _ = train.load_clip(out)
    unet, = train.load(out, "unet", networks.build_unet())
    model, schedule = with_lora(unet, ("up_blocks.1.",), LOOK_RANK), networks.noise_schedule()
    drawn = np.array([i for i, s in enumerate(data.scenes[:train.PICTURES - 2000]) if s.style == LOOK])

    def loss(rng):
        i = np.sort(rng.choice(drawn, 12, replace=False))
        captions = [data.scenes[j].caption(True, False, rng.random() < .3) if rng.random() < .9 else "" for j in i]
        return lora_loss(model, schedule, text, words, z[i].float(), captions, rng)

    train.loop(out, "look", [model], loss, 3e-3, steps)


def parts(out, steps):
    """B-LoRAs (Frenkel et al., arXiv 2403.14572): one picture with a prompt that says nothing, learnt by two blocks together, of which
    each can be used alone."""
    words, text = networks.WordTokens(), train.load_clip(out)[0]
    unet, = train.load(out, "unet", networks.build_unet())
    model, schedule = with_lora(unet, tuple(PARTS.values()), PARTS_RANK), networks.noise_schedule()
    picture = np.asarray(Image.open(f"{FOLDER}/references/{SHOWN[1]}-{SHOWN[0]}.png").convert("RGB"))
    with torch.no_grad():
        z = train.load_vae(out).encode(networks.pixels(picture[None])).latent_dist.mean.float()
    loss = lambda rng: lora_loss(model, schedule, text, words, z.repeat(8, 1, 1, 1), ["a picture"] * 8, rng)
    train.loop(out, "parts", [model], loss, 2e-3, steps)


def original_name(name):
    """The name in the original code (`cldm.py`) of a layer that diffusers' ControlNetModel calls `name`."""
    per = networks.build_unet().config.layers_per_block
    inner = dict(norm1="in_layers.0", conv1="in_layers.2", time_emb_proj="emb_layers.1", norm2="out_layers.0", conv2="out_layers.3",
                 conv_shortcut="skip_connection")
    parts = name.split(".")
    if parts[0] == "controlnet_cond_embedding":
        number = {"conv_in": 0, "conv_out": 4 * len(HINT_WIDTHS) - 2}.get(parts[1])
        return f"input_hint_block.{2 * int(parts[2]) + 2 if number is None else number}"
    if parts[0] == "controlnet_down_blocks":
        return f"zero_convs.{parts[1]}.0"
    if parts[0] == "controlnet_mid_block":
        return "middle_block_out.0"
    if parts[0] == "mid_block":
        kind, number, rest = parts[1], int(parts[2]), parts[3:]
        head = f"middle_block.{1 if kind == 'attentions' else 2 * number}"
    else:
        block, kind, number, rest = int(parts[1]), parts[2], int(parts[3]), parts[4:]
        head = f"input_blocks.{1 + block * (per + 1) + (per if kind == 'downsamplers' else number)}.{int(kind == 'attentions')}"
    rest = [inner[rest[0]]] if kind == "resnets" else ["op"] if kind == "downsamplers" else rest
    return ".".join([head, *rest])


def low_ranks(module):
    """Name, weight and difference of the layers that have one; rounded, as they are stored."""
    for name, layer in module.named_modules():
        if parametrize.is_parametrized(layer, "weight"):
            low = layer.parametrizations.weight[0]
            export.rounded(low, BITS)
            yield name, layer.parametrizations.weight.original, low


@torch.no_grad()
def trained(out, name, rank=None):
    """What a stage made, with rounded weights."""
    unet, = train.load(out, "unet", networks.build_unet())
    if name == "control":
        net = control_net(unet)
        for part in (net.controlnet_cond_embedding, net.controlnet_down_blocks, net.controlnet_mid_block):
            part.requires_grad_(True)
        net, = train.load(out, name, net)
        for part in (net.controlnet_cond_embedding, net.controlnet_down_blocks, net.controlnet_mid_block):
            export.rounded(part, BITS)
    else:
        net, = train.load(out, name, with_lora(unet, ("up_blocks.1.",) if name == "look" else tuple(PARTS.values()), rank))
    list(low_ranks(net))
    return net


def draw(folder):
    """Drawings to start from: each content alone, pairs of them, and the mask of a pair's right half."""
    os.makedirs(f"{folder}/drawings", exist_ok=True)
    for i, content in enumerate(world.CONTENTS):
        for name, contents in ((content, [content]), (f"{content}-and-{world.CONTENTS[(i + 3) % 10]}", [content, world.CONTENTS[(i + 3) % 10]])):
            if len(contents) == 1 or i % 2 == 0:
                scene = world.Scene(np.random.default_rng((10**6 + 2, i)), contents, "flat")
                Image.fromarray(scene.draw()).save(f"{folder}/drawings/{name}.png", optimize=True)
    mask = np.zeros((world.SIZE, world.SIZE), np.uint8)
    mask[16:112, 64:] = 255
    Image.fromarray(mask).save(f"{folder}/drawings/mask-right.png", optimize=True)


@torch.no_grad()
def write(out, folder=FOLDER):
    """The files: a Control-LoRA in the names of stabilityai/control-lora, LoRAs in peft's; the drawings to use them on."""
    draw(folder)
    os.makedirs(f"{folder}/controls", exist_ok=True), os.makedirs(f"{folder}/loras", exist_ok=True)
    net, tensors = trained(out, "control"), {"lora_controlnet": torch.zeros(0)}
    for name, weight, low in low_ranks(net):
        tensors[f"{original_name(name)}.down"] = low.down.view(-1, *weight.shape[1:])
        tensors[f"{original_name(name)}.up"] = low.up.view(*low.up.shape, *[1] * (weight.ndim - 2))
    for name, value in net.state_dict().items():
        if name.startswith("controlnet_"):
            layer, kind = name.rsplit(".", 1)
            tensors[f"{original_name(layer)}.{kind}"] = value
    save_file({k: v.half().contiguous() for k, v in tensors.items()}, f"{folder}/controls/canny.safetensors")
    for name, file, rank in (("look", LOOK, LOOK_RANK), ("parts", "-".join(SHOWN), PARTS_RANK)):
        tensors = {}
        for layer, _, low in low_ranks(trained(out, name, rank)):
            tensors[f"unet.{layer}.lora_A.weight"], tensors[f"unet.{layer}.lora_B.weight"] = low.down, low.up
        save_file({k: v.half().contiguous() for k, v in tensors.items()}, f"{folder}/loras/{file}.safetensors")


def main():
    stages = dict(hint=hint, control=control, look=look, parts=parts, write=lambda out, _: write(out))
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("stages", nargs="+", choices=["all", *stages])
    arguments.add_argument("--out", default="run", help="the work folder of train.py")
    arguments.add_argument("--steps", type=int, help="budget of the stage, in place of the default")
    a = arguments.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count())))
    for name in stages if a.stages == ["all"] else a.stages:
        torch.manual_seed(0)
        stages[name](a.out, a.steps or STEPS.get(name))


if __name__ == "__main__":
    main()
