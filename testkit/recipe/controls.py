"""Tiny ControlNets for the tiny checkpoints, with random zero convolutions; and the maps that ControlNets see."""

import cv2
import numpy as np
import torch
from diffusers import ControlNetModel
from PIL import Image
from safetensors.torch import load_file, save_file

from common import FIXTURES, randomise
from loras import unet
from models import UNET_GAINS

CONTROLS = FIXTURES / "controls"
HINT = (4, 6, 8, 8)


def short(tensor):
    """Values of few bits, so that the files pack well: 2 bits of mantissa."""
    mantissa, exponent = torch.frexp(tensor)
    return torch.ldexp(torch.round(mantissa * 8) / 8, exponent).to(torch.float16).float()


def control(base, seed, **changes):
    """As `ControlNetModel.from_unet` makes it, with weights of its own."""
    made = ControlNetModel.from_unet(unet(base), conditioning_embedding_out_channels=HINT, load_weights_from_unet=False)
    config = {k: v for k, v in made.config.items() if not k.startswith("_")} | {"in_channels": 4} | changes
    model = ControlNetModel(**config).eval()
    randomise(model, seed, [*UNET_GAINS, (r"controlnet_cond_embedding", 1.6), (r"controlnet_(down|mid)", 0.4)])
    for parameter in model.parameters():
        parameter.data.copy_(short(parameter.data))
    return model


def original(state, config):
    """In the names of `cldm.py`."""
    out = {}
    for key, value in state.items():
        name, kind = key.rsplit(".", 1)
        parts = name.split(".")
        if parts[0] == "controlnet_cond_embedding":
            last = 2 * len(HINT) * 2 - 2
            n = {"conv_in": 0, "conv_out": last}.get(parts[1]) if len(parts) == 2 else 2 * int(parts[2]) + 2
            place = f"input_hint_block.{n}"
        elif parts[0] == "controlnet_down_blocks":
            place = f"zero_convs.{parts[1]}.0"
        elif parts[0] == "controlnet_mid_block":
            place = "middle_block_out.0"
        elif parts[0] == "time_embedding":
            place = {"linear_1": "time_embed.0", "linear_2": "time_embed.2"}[parts[1]]
        elif parts[0] == "add_embedding":
            place = {"linear_1": "label_emb.0.0", "linear_2": "label_emb.0.2"}[parts[1]]
        elif parts[0] == "conv_in":
            place = "input_blocks.0.0"
        else:
            place = places(parts, config)
        out[f"control_model.{place}.{kind}"] = value
    return out


def places(parts, config):
    inner = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0"}
    inner |= {"conv2": "out_layers.3", "conv_shortcut": "skip_connection"}
    if parts[0] == "mid_block":
        head = "middle_block." + {("attentions", "0"): "1", ("resnets", "0"): "0", ("resnets", "1"): "2"}[tuple(parts[1:3])]
        kind, rest = parts[1], parts[3:]
    else:
        block, kind, i = int(parts[1]), parts[2], int(parts[3])
        per = config.layers_per_block
        n = 1 + block * (per + 1) + (per if kind == "downsamplers" else i)
        head, rest = f"input_blocks.{n}.{1 if kind == 'attentions' else 0}", parts[4:]
    if kind == "downsamplers":
        rest = ["op"]
    if kind == "resnets":
        rest = [inner[rest[0]]]
    return ".".join([head, *rest])


def differences(model, base, seed):
    """A Control-LoRA, as stabilityai/control-lora has them: `model`, made from the UNet `base`, becomes that UNet's first half with a
    difference of low rank for its matrices and filters and other biases and norms; the rest of it is whole. Some of it is left out
    and stays as it is in the UNet. Returns the file's tensors."""
    g, own, out = torch.Generator().manual_seed(seed), base.state_dict(), {}
    kept = ("mid_block.attentions", "down_blocks.2.attentions.1")
    for key, value in model.state_dict().items():
        name, kind = key.rsplit(".", 1)
        if key not in own:
            out[key] = value
            continue
        value.copy_(own[key])
        if key.startswith(kept):
            continue
        if kind == "weight" and value.ndim > 1:
            rank = 1 if value.ndim == 4 else 2
            down = short(torch.randn(rank, *value.shape[1:], generator=g) * value[0].numel() ** -0.5)
            up = short(torch.randn(value.shape[0], rank, *[1] * (value.ndim - 2), generator=g) * 0.4)
            out[f"{name}.down"], out[f"{name}.up"] = down, up
            value += (up.flatten(1) @ down.flatten(1)).view_as(value)
        else:
            value += short(torch.randn(value.shape, generator=g) * 0.1)
            value.copy_(short(value))
            out[key] = value
    named = original(out, model.config)
    return {"lora_controlnet": torch.zeros(0)} | {k.removeprefix("control_model."): v.clone() for k, v in named.items()}


def control_lora():
    """The ControlNet that the Control-LoRA stands for, and the file's tensors."""
    model = control("sdxl-a", 1008)
    return model, differences(model, unet("sdxl-a"), 1009)


def over(model, changed):
    """The same difference for a changed UNet: the ControlNet that the file stands for beside a LoRA."""
    _, tensors = control_lora()
    own, whole = unet("sdxl-a").state_dict(), {k for k in as_named(tensors) if not k.endswith((".up", ".down"))}
    for key, value in model.state_dict().items():
        if key in own and key not in whole:
            value += changed[key] - own[key]


def as_named(tensors):
    """A Control-LoRA's keys in diffusers' names."""
    state = control("sdxl-a", 1008)
    names = {k.removeprefix("control_model."): key for key, v in state.state_dict().items() for k in original({key: v}, state.config)}
    stem = {k.rsplit(".", 1)[0]: v.rsplit(".", 1)[0] for k, v in names.items()}
    return {f"{stem[k.rsplit('.', 1)[0]]}.{k.rsplit('.', 1)[1]}" for k in tensors if k != "lora_controlnet"}


def as_diffusers(model, tensors):
    """diffusers' own reading of the file must give the same, but for the biases of layers of low rank, which it leaves as they are."""
    other = ControlNetModel.from_unet(unet("sdxl-a"), conditioning_embedding_out_channels=HINT)
    other.load_lora_adapter({k: v.float() for k, v in tensors.items()}, prefix=None)
    other.fuse_lora()
    state = {k.replace(".base_layer", "").replace(".modules_to_save.default_0", ""): v for k, v in other.state_dict().items()}
    wrong = [k for k, v in model.state_dict().items() if (v - state[k]).abs().max() > 1e-5]
    assert all(k.endswith(".bias") and f"{k[:-5]}.weight" in state and "norm" not in k for k in wrong), wrong


def save(model, name):
    model.half().save_pretrained(CONTROLS / name)
    model.float()


def build():
    CONTROLS.mkdir(parents=True, exist_ok=True)
    save(control("sd15-a", 1001), "sd15-a")
    save(control("sd15-s", 1003), "sd15-s")
    # Blue first, no attention, a middle of one resnet (as the small ones for SDXL), residuals averaged over all pixels.
    plain = {"down_block_types": ("DownBlock2D",) * 2, "mid_block_type": "UNetMidBlock2D", "controlnet_conditioning_channel_order": "bgr"}
    save(control("sd15-s", 1002, **plain), "sd15-s-small")
    save(control("sd15-s", 1004, **plain, global_pool_conditions=True), "sd15-s-pooled")
    # Files on their own: in diffusers' names, and in the original ones inside a pickle.
    model = control("sdxl-a", 1005, transformer_layers_per_block=[1, 1, 1])
    save_file({k: v.half().contiguous() for k, v in model.state_dict().items()}, CONTROLS / "sdxl-a.safetensors", metadata={"format": "pt"})
    model = control("sd15-s", 1006)
    torch.save({"state_dict": {k: v.half() for k, v in original(model.state_dict(), model.config).items()}}, CONTROLS / "sd15-s-original.pth")
    save(control("sdxl-i", 1007), "sdxl-i")
    _, tensors = control_lora()
    save_file({k: v.half().contiguous() for k, v in tensors.items()}, CONTROLS / "sdxl-a-control-lora.safetensors")


def load(path):
    """A ControlNet from one of the files above, through diffusers."""
    if path.is_dir():
        return ControlNetModel.from_pretrained(path, torch_dtype=torch.float32)
    if path.name == "sdxl-a.safetensors":
        model = control("sdxl-a", 1005, transformer_layers_per_block=[1, 1, 1])
        model.load_state_dict({k: v.float() for k, v in load_file(path).items()})
        return model
    if path.name == "sdxl-a-control-lora.safetensors":
        model, tensors = control_lora()
        stored = load_file(path)
        assert stored.keys() == tensors.keys() and all(torch.equal(v, stored[k].float()) for k, v in tensors.items())
        as_diffusers(model, stored)
        return model
    assert path.name == "sd15-s-original.pth"
    model = control("sd15-s", 1006)
    state = {k: v.float() for k, v in torch.load(path, weights_only=True)["state_dict"].items()}
    assert all(torch.equal(v, state[k]) for k, v in original(model.state_dict(), model.config).items())
    return model


def lines(picture):
    """Difference of Gaussians, by OpenCV's blur; see README."""
    grey = np.asarray(picture.convert("L")).astype(np.float64)
    blur = lambda sigma: cv2.GaussianBlur(grey, (0, 0), sigma, borderType=cv2.BORDER_REFLECT_101)  # noqa: E731
    darker = np.maximum(blur(1.6) - blur(1.0), 0)
    strongest = max(np.sort(darker.ravel())[int(0.99 * (darker.size - 1))], 4.0)
    return np.clip(np.rint(darker / strongest * 255), 0, 255).astype(np.uint8)


def preprocess(picture, use):
    """What a ControlNet sees of a picture that has the request's size already."""
    kind = use.get("preprocess", "none")
    if kind == "canny":
        blue_first = cv2.cvtColor(np.asarray(picture), cv2.COLOR_RGB2BGR)
        edges = cv2.Canny(blue_first, use.get("canny_low", 50), use.get("canny_high", 200))
        return Image.fromarray(cv2.cvtColor(edges, cv2.COLOR_GRAY2RGB))
    if kind == "lineart":
        return Image.fromarray(np.repeat(lines(picture)[..., None], 3, -1))
    if kind == "tile":
        factor = use.get("tile_downscale", 1)
        small = tuple(max(1, round(s / factor)) for s in picture.size)
        return picture.resize(small, Image.LANCZOS).resize(picture.size, Image.LANCZOS) if factor > 1 else picture
    assert kind == "none"
    return picture


if __name__ == "__main__":
    build()
