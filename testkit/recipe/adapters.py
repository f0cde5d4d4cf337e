"""IP-Adapters in the published key layout, random weights, for every tiny checkpoint."""

import io
import pickle
import pickletools
import shutil

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file

from common import ADAPTERS, MODELS, f16_exact, generator, normal

VIT = {"vit-a": (32, 24), "vit-b": (40, 28)}  # hidden width, projection width


def cross_sites(unet):
    """Cross-attention layers in the order of the checkpoint's ordinals: down, up, mid."""
    return [name for name in unet.attn_processors if name.endswith("attn2.processor")]


class Maker:
    def __init__(self, seed):
        self.gen = generator(seed)

    def linear(self, out, inner, gain=1.0):
        return f16_exact(normal(self.gen, (out, inner), gain / inner**0.5))

    def bias(self, out):
        return f16_exact(normal(self.gen, (out,), 0.1))

    def norm(self, prefix, width):
        return {
            f"{prefix}.weight": f16_exact(1 + normal(self.gen, (width,), 0.2)),
            f"{prefix}.bias": f16_exact(normal(self.gen, (width,), 0.2)),
        }


def base(maker, vit, cross):
    width = VIT[vit][1]
    proj = {"proj.weight": maker.linear(4 * cross, width), "proj.bias": maker.bias(4 * cross)}
    return {**proj, **maker.norm("norm", cross)}


def full(maker, vit, cross):
    width = VIT[vit][0]
    proj = {
        "proj.0.weight": maker.linear(width, width),
        "proj.0.bias": maker.bias(width),
        "proj.2.weight": maker.linear(cross, width),
        "proj.2.bias": maker.bias(cross),
    }
    return {**proj, **maker.norm("proj.3", cross)}


def plus(maker, vit, cross, inner=32, heads=1, queries=4):
    width = VIT[vit][0]
    proj = {"latents": f16_exact(normal(maker.gen, (1, queries, inner)))}
    proj.update({"proj_in.weight": maker.linear(inner, width), "proj_in.bias": maker.bias(inner)})
    proj.update({"proj_out.weight": maker.linear(cross, inner), "proj_out.bias": maker.bias(cross)})
    proj.update(maker.norm("norm_out", cross))
    for i in range(4):
        attn, ff = f"layers.{i}.0", f"layers.{i}.1"
        proj.update(maker.norm(f"{attn}.norm1", inner))
        proj.update(maker.norm(f"{attn}.norm2", inner))
        proj[f"{attn}.to_q.weight"] = maker.linear(64 * heads, inner, 1.5)
        proj[f"{attn}.to_kv.weight"] = maker.linear(128 * heads, inner, 1.5)
        proj[f"{attn}.to_out.weight"] = maker.linear(inner, 64 * heads)
        proj.update(maker.norm(f"{ff}.0", inner))
        proj[f"{ff}.1.weight"] = maker.linear(4 * inner, inner)
        proj[f"{ff}.3.weight"] = maker.linear(inner, 4 * inner)
    return proj


def attention(maker, unet, gain):
    layers = {}
    cross = unet.config.cross_attention_dim
    modules = dict(unet.named_modules())
    for index, name in enumerate(cross_sites(unet)):
        hidden = modules[name.removesuffix(".processor")].to_q.out_features
        layers[f"{2 * index + 1}.to_k_ip.weight"] = maker.linear(hidden, cross, 1.5)
        layers[f"{2 * index + 1}.to_v_ip.weight"] = maker.linear(hidden, cross, gain)
    return layers


def settle(path):
    """The legacy layout names and sorts storages by their addresses in memory: number them in the order of their use, so
    that the file is the same every time. The layout: magic, protocol, system, object and keys as pickles, then per key
    the number of elements (int64) and the elements (float16 here)."""
    file = io.BytesIO(path.read_bytes())
    for _ in range(4):
        for _ in pickletools.genops(file):  # stops behind the pickle
            pass
    head = file.getvalue()[: file.tell()]
    storages = {}
    for key in pickle.load(file):
        count = file.read(8)
        storages[key] = count + file.read(2 * int.from_bytes(count, "little"))
    order = sorted(storages, key=lambda key: head.index(key.encode()))
    names = [str(number + 1).zfill(len(key)) for number, key in enumerate(order)]
    for key, name in zip(order, names):
        head = head.replace(key.encode(), name.encode())
    path.write_bytes(head + pickle.dumps(names, protocol=2) + b"".join(storages[key] for key in order))


# name: model, projection, encoder, file kind, keyword arguments
ADAPTERS_MADE = {
    "sd15-a-base.safetensors": ("sd15-a", base, "vit-a", "flat", {}),
    "sd15-a-base2.bin": ("sd15-a", base, "vit-a", "pickle", {}),
    "sd15-a-base-b.safetensors": ("sd15-a", base, "vit-b", "flat", {}),
    "sd15-a-plus.safetensors": ("sd15-a", plus, "vit-a", "flat", {}),
    "sd15-a-plus2.bin": ("sd15-a", plus, "vit-b", "pickle", {"heads": 2, "queries": 6, "inner": 24}),
    "sd15-a-full.bin": ("sd15-a", full, "vit-a", "legacy", {}),
    "sd15-v-base.bin": ("sd15-v", base, "vit-a", "pickle", {}),
    "sd15-v-plus.safetensors": ("sd15-v", plus, "vit-b", "flat", {}),
    "sd15-v-full.safetensors": ("sd15-v", full, "vit-b", "flat", {}),
    "sd15-s-base.safetensors": ("sd15-s", base, "vit-a", "f32", {}),
    "sdxl-a-base.safetensors": ("sdxl-a", base, "vit-b", "flat", {}),
    "sdxl-a-base2.bin": ("sdxl-a", base, "vit-b", "pickle", {}),
    "sdxl-a-base-h.safetensors": ("sdxl-a", base, "vit-a", "bf16", {}),
    "sdxl-a-plus.safetensors": ("sdxl-a", plus, "vit-a", "flat", {"heads": 2}),
    "sdxl-a-full.bin": ("sdxl-a", full, "vit-b", "pickle", {}),
    "sdxl-b-base.bin": ("sdxl-b", base, "vit-b", "legacy", {}),
    "sdxl-b-base-h.safetensors": ("sdxl-b", base, "vit-a", "flat", {}),
    "sdxl-b-plus.bin": ("sdxl-b", plus, "vit-b", "pickle", {"queries": 6, "inner": 40}),
    "sdxl-b-full.safetensors": ("sdxl-b", full, "vit-a", "flat", {}),
}


def build():
    shutil.rmtree(ADAPTERS, ignore_errors=True)
    ADAPTERS.mkdir(parents=True)
    networks = {}
    for number, (name, (model, kind, vit, file, options)) in enumerate(ADAPTERS_MADE.items()):
        if model not in networks:
            variant = "fp16" if model == "sdxl-b" else None
            networks[model] = UNet2DConditionModel.from_pretrained(
                MODELS / model / "unet", variant=variant, torch_dtype=torch.float32
            )
        unet = networks[model]
        maker = Maker(400 + number)
        proj = kind(maker, vit, unet.config.cross_attention_dim, **options)
        gain = 2.2 if model.startswith("sdxl") else 2.0
        layers = attention(maker, unet, gain)
        dtype = {"f32": torch.float32, "bf16": torch.bfloat16}.get(file, torch.float16)
        proj = {k: v.to(dtype).contiguous() for k, v in proj.items()}
        layers = {k: v.to(dtype).contiguous() for k, v in layers.items()}
        path = ADAPTERS / name
        if file in ("pickle", "legacy"):
            torch.save({"image_proj": proj, "ip_adapter": layers}, path, _use_new_zipfile_serialization=file == "pickle")
            if file == "legacy":
                before = torch.load(path, weights_only=True)
                settle(path)
                after = torch.load(path, weights_only=True)
                assert all(torch.equal(t, after[part][k]) for part in before for k, t in before[part].items())
        else:
            flat = {f"image_proj.{k}": v for k, v in proj.items()}
            flat.update({f"ip_adapter.{k}": v for k, v in layers.items()})
            save_file(flat, path)


if __name__ == "__main__":
    build()
