"""Features of OpenCLIP's own towers: `python open_clip_towers.py` writes `fixtures/names/open-clip.json` (pip install
open_clip_torch==3.3.0; only its `transformer.py` is used). Weights follow from their keys, as in `testkit/src/names.rs`.
"""

import math
import sys
import types
from unittest.mock import MagicMock

import common
import numpy as np
import torch

# `open_clip/transformer.py` needs none of what the package's front door imports.
sys.modules |= {m: MagicMock() for m in ("torchvision", "torchvision.ops", "torchvision.ops.misc", "torchvision.transforms")}
package = types.ModuleType("open_clip")
package.__path__ = [f"{p}/open_clip" for p in sys.path]
sys.modules["open_clip"] = package
from open_clip.transformer import TextTransformer, VisionTransformer  # noqa: E402

MASK = (1 << 64) - 1


def values(key, shape):
    """`testkit::names::values`."""
    seed = 0xCBF29CE484222325
    for byte in key.encode():
        seed = (seed ^ byte) * 0x100000001B3 & MASK
    with np.errstate(over="ignore"):
        z = np.uint64(seed) + np.arange(1, math.prod(shape) + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    uniform = ((z ^ (z >> np.uint64(31))) >> np.uint64(53)).astype(np.float32) / 1024 - 1
    if len(shape) == 1:
        gain = ("norm" in key or "ln_" in key) and key.endswith("weight")
        out = 1 + uniform * 0.125 if gain else uniform * 0.0625
    else:
        out = uniform * 2.0 ** round(math.log2(math.sqrt(3 / math.prod(shape[1:]))))
    return torch.from_numpy(out.astype(np.float32).reshape(shape))


def fill(model, prefix):
    state = {k: v for k, v in model.state_dict().items() if "attn_mask" not in k}
    model.load_state_dict({k: values(prefix + k, tuple(v.shape)) for k, v in state.items()}, strict=False)
    return [[prefix + k, list(v.shape)] for k, v in state.items()]


def build():
    vision = VisionTransformer(image_size=32, patch_size=8, width=128, layers=2, heads=2, mlp_ratio=2.0, output_dim=24).eval()
    text = TextTransformer(context_length=77, vocab_size=100, width=128, heads=2, layers=2, mlp_ratio=2.0, output_dim=24).eval()
    tensors = fill(vision, "visual.") + fill(text, "")
    states = []
    vision.transformer.resblocks[0].register_forward_hook(lambda _m, _i, out: states.append(out))
    embeds = vision(values("pixels", (1, 3, 32, 32)))
    ids = [98, 5, 17, 3, 99] + [0] * 72
    features = text(torch.tensor([ids]))
    state = states[0].reshape(-1, 128)
    assert state.shape[0] == 17
    common.write_json(common.FIXTURES / "names" / "open-clip.json", {
        "tensors": tensors, "ids": ids, "embeds": embeds.flatten().tolist(), "state": state[3].tolist(),
        "features": features.flatten().tolist(),
    })


if __name__ == "__main__":
    build()
