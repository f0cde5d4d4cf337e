"""LoRA files for the tiny checkpoints, in the forms that are about: kohya (both block names, with convolutions, DoRA), peft with
its metadata, diffusers' older processors, LoHa and LoKr of LyCORIS."""

import json

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from common import FIXTURES, MODELS, f16_exact, generator, normal

LORAS = FIXTURES / "loras"


def unet(model):
    variant = "fp16" if any((MODELS / model / "unet").glob("*.fp16*")) else None
    return UNet2DConditionModel.from_pretrained(MODELS / model / "unet", variant=variant)


def layers(network, wanted):
    """Name and weight of the linear and convolutional layers whose name passes."""
    return [(n, m.weight) for n, m in network.named_modules() if hasattr(m, "weight") and m.weight.ndim in (2, 4) and wanted(n)]


def pair(gen, weight, rank, strength=0.5):
    """down [rank, in, …], up [out, rank, …]."""
    out, rest = weight.shape[0], weight.shape[1:]
    fan = rest.numel()
    down = normal(gen, (rank, *rest), fan**-0.5)
    up = normal(gen, (out, rank, *([1, 1] if weight.ndim == 4 else [])), strength * rank**-0.5)
    return f16_exact(down), f16_exact(up)


def ldm(name, config):
    """diffusers' name of a UNet layer in original code."""
    per, levels = config.layers_per_block, len(config.block_out_channels)
    inner = {"conv1": "in_layers_2", "time_emb_proj": "emb_layers_1", "conv2": "out_layers_3", "conv_shortcut": "skip_connection"}
    parts = name.split(".")
    if parts[0] == "mid_block":
        place = {("attentions", "0"): "1", ("resnets", "0"): "0", ("resnets", "1"): "2"}[tuple(parts[1:3])]
        head, rest = f"middle_block_{place}", parts[3:]
    else:
        block, kind, i = int(parts[1]), parts[2], int(parts[3])
        if parts[0] == "down_blocks":
            n = 1 + block * (per + 1) + (per if kind == "downsamplers" else i)
            head = f"input_blocks_{n}_{1 if kind == 'attentions' else 0}"
        else:
            n = block * (per + 1) + (per if kind == "upsamplers" else i)
            attention = config.up_block_types[block].startswith("CrossAttn")
            head = f"output_blocks_{n}_{ {'resnets': 0, 'attentions': 1, 'upsamplers': 2 if attention else 1}[kind] }"
        rest = parts[4:]
        if kind == "downsamplers":
            rest = ["op"]
    if "resnets" in parts:
        rest = [inner[rest[0]]]
    assert levels
    return "_".join([head, *rest])


def text(model, folder, cls):
    return cls.from_pretrained(MODELS / model / folder)


def text_name(name):
    return name if name.startswith("text_model.") else f"text_model.{name}"


def kohya(state, prefix, name, weight, gen, rank, alpha, dora=False):
    down, up = pair(gen, weight, rank)
    key = prefix + name.replace(".", "_")
    state[f"{key}.lora_down.weight"], state[f"{key}.lora_up.weight"] = down, up
    state[f"{key}.alpha"] = torch.tensor(float(alpha))
    if dora:
        norm = weight.float().flatten(1).norm(dim=1)
        state[f"{key}.dora_scale"] = f16_exact(norm * (1 + normal(gen, norm.shape, 0.2)))[:, None]


def save(state, name, metadata=None):
    LORAS.mkdir(parents=True, exist_ok=True)
    half = {k: v.to(torch.float16).contiguous() for k, v in state.items()}
    save_file(half, LORAS / name, metadata={"format": "pt", **(metadata or {})})


ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out")


def build():
    attention = lambda n: n.endswith(ATTENTION)  # noqa: E731
    everywhere = lambda n: attention(n) or n.endswith(("conv1", "conv2", "time_emb_proj", "conv_shortcut", "samplers.0.conv"))  # noqa: E731
    projections = lambda n: n.endswith(("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"))  # noqa: E731

    sd, xl = unet("sd15-a"), unet("sdxl-a")
    gen, state = generator(901), {}
    for i, (name, weight) in enumerate(layers(sd, everywhere)):
        if i % 3 == 0:
            kohya(state, "lora_unet_", name, weight, gen, 2, 1)
    for name, weight in layers(text("sd15-a", "text_encoder", CLIPTextModel), projections):
        kohya(state, "lora_te_", text_name(name), weight, gen, 2, 1)
    save(state, "sd15-a-kohya.safetensors")

    gen, state = generator(902), {}
    for i, (name, weight) in enumerate(layers(sd, attention)):
        if i % 3 == 1:
            state[f"unet.{name}.lora_A.weight"], state[f"unet.{name}.lora_B.weight"] = pair(gen, weight, 3)
    about = {"unet.r": 3, "unet.lora_alpha": 2, "unet.target_modules": sorted({k.split(".lora")[0][5:] for k in state})}
    save(state, "sd15-a-peft.safetensors", {"lora_adapter_metadata": json.dumps(about)})

    gen, state = generator(903), {}
    for i, (name, weight) in enumerate(layers(sd, lambda n: n.endswith(("to_q", "to_k", "to_v", "to_out.0")))):
        if i % 3 == 2:
            place, layer = name.removesuffix(".0").rsplit(".", 1)
            down, up = pair(gen, weight, 2)
            state[f"unet.{place}.processor.{layer}_lora.down.weight"], state[f"unet.{place}.processor.{layer}_lora.up.weight"] = down, up
    save(state, "sd15-a-processors.safetensors")

    gen, state = generator(904), {}
    for i, (name, weight) in enumerate(layers(xl, everywhere)):
        if i % 4 == 0:
            kohya(state, "lora_unet_", ldm(name, xl.config), weight, gen, 2, 1.5)
    for prefix, folder, cls in (("lora_te1_", "text_encoder", CLIPTextModel), ("lora_te2_", "text_encoder_2", CLIPTextModelWithProjection)):
        for i, (name, weight) in enumerate(layers(text("sdxl-a", folder, cls), projections)):
            if i % 2 == 0:
                kohya(state, prefix, text_name(name), weight, gen, 2, 1)
    save(state, "sdxl-a-kohya.safetensors")

    gen, state = generator(905), {}
    for i, (name, weight) in enumerate(layers(xl, lambda n: n.endswith(("to_q", "to_k", "to_v", "ff.net.2")))):
        if i % 4 == 1:
            kohya(state, "lora_unet_", name, weight, gen, 2, 1, dora=True)
    save(state, "sdxl-a-dora.safetensors")

    gen, state = generator(906), {}
    for name, weight in layers(xl, lambda n: n.startswith("up_blocks.0.attentions.") and n.endswith(("to_q", "to_k", "to_v", "to_out.0"))):
        state[f"unet.{name}.lora_A.weight"], state[f"unet.{name}.lora_B.weight"] = pair(gen, weight, 2, 0.8)
    save(state, "sdxl-a-blora.safetensors")

    gen, state = generator(907), {}
    for i, (name, weight) in enumerate(layers(xl, everywhere)):
        if i % 6 == 2:
            key, out = "lycoris_" + name.replace(".", "_"), weight.shape[0]
            for n in (1, 2):
                state[f"{key}.hada_w{n}_a"] = f16_exact(normal(gen, (out, 2), 0.6))
                state[f"{key}.hada_w{n}_b"] = f16_exact(normal(gen, (2, weight[0].numel()), weight[0].numel() ** -0.25))
            state[f"{key}.alpha"] = torch.tensor(1.0)
    save(state, "sdxl-a-loha.safetensors")

    gen, state = generator(908), {}
    for i, (name, weight) in enumerate(layers(xl, everywhere)):
        if i % 6 == 4:
            key, (out, inputs) = "lora_unet_" + name.replace(".", "_"), weight.shape[:2]
            state[f"{key}.lokr_w1"] = f16_exact(normal(gen, (2, 2), 1.0))
            rest = (inputs // 2, *weight.shape[2:])
            state[f"{key}.lokr_w2_a"] = f16_exact(normal(gen, (out // 2, 2), 0.5))
            state[f"{key}.lokr_w2_b"] = f16_exact(normal(gen, (2, torch.Size(rest).numel()), torch.Size(rest).numel() ** -0.5))
            state[f"{key}.alpha"] = torch.tensor(1.0)
    save(state, "sdxl-a-lokr.safetensors")
