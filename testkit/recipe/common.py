"""Shared helpers: paths, seeded weights, saving."""

import hashlib
import json
import math
import os
import re
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch  # noqa: E402
from torch import nn  # noqa: E402

torch.set_num_threads(1)
torch.set_grad_enabled(False)

RECIPE = Path(__file__).resolve().parent
FIXTURES = RECIPE.parent / "fixtures"
MODELS = FIXTURES / "models"
ADAPTERS = FIXTURES / "adapters"
IMAGES = FIXTURES / "images"
LADDER = FIXTURES / "ladder"
CASES = FIXTURES / "cases"


def generator(seed):
    return torch.Generator("cpu").manual_seed(seed)


def versions():
    import diffusers
    from importlib.metadata import version

    import numpy
    import peft
    import PIL
    import scipy
    import tokenizers
    import transformers

    return {
        "torch": torch.__version__.split("+")[0],
        "diffusers": diffusers.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
        "lycoris-lora": version("lycoris-lora"),
        "opencv-python-headless": version("opencv-python-headless"),
        "tokenizers": tokenizers.__version__,
        "pillow": PIL.__version__,
        "numpy": numpy.__version__,
        "scipy": scipy.__version__,
    }


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def f16_exact(tensor):
    """The nearest float16 value, as float32."""
    return tensor.to(torch.float16).to(torch.float32)


def normal(gen, shape, scale=1.0):
    return torch.randn(shape, generator=gen, dtype=torch.float32) * scale


NORMS = (nn.LayerNorm, nn.GroupNorm)


def randomise(model, seed, gains=()):
    """Give every parameter of `model` a non-trivial value that float16 holds exactly.

    `gains` is a list of (regex, factor): the last one that matches a parameter's name multiplies its scale.
    """
    gen = generator(seed)
    owners = {}
    for prefix, module in model.named_modules():
        for name, _ in module.named_parameters(recurse=False):
            owners[f"{prefix}.{name}" if prefix else name] = module
    for name, parameter in model.named_parameters():
        owner = owners[name]
        shape = parameter.shape
        gain = 1.0
        for pattern, factor in gains:
            if re.search(pattern, name):
                gain = factor
        if isinstance(owner, NORMS):
            value = normal(gen, shape, 0.2 * gain)
            if name.endswith("weight"):
                value += 1.0
        elif isinstance(owner, nn.Embedding):
            value = normal(gen, shape, (0.3 if "position" in name else 0.8) * gain)
        elif name.endswith("bias"):
            value = normal(gen, shape, 0.1 * gain)
        elif parameter.ndim >= 2:
            fan_in = math.prod(shape[1:])
            value = normal(gen, shape, gain / math.sqrt(fan_in))
        else:
            value = normal(gen, shape, 0.5 * gain)
        parameter.data.copy_(f16_exact(value))
    return model


def rescale(linear, factor):
    """Multiply a layer's weight and bias, staying on float16 values."""
    for parameter in (linear.weight, linear.bias):
        if parameter is not None:
            parameter.data.copy_(f16_exact(parameter.data * factor))


def tree_sha(path):
    """SHA-256 over a file, or over the files of a folder in sorted order."""
    digest = hashlib.sha256()
    path = Path(path)
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    for file in files:
        digest.update(file.name.encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()


def quiet():
    import logging
    import warnings

    import diffusers
    import transformers

    warnings.filterwarnings("ignore")
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)
