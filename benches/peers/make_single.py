"""Writes a Diffusers folder's weights as one file in original names: `make_single.py sd15|sdxl FOLDER OUT.safetensors|.ckpt`.

The names are those that diffusers' own conversion was checked with (`testkit/fixtures/names/*.tsv`, by `testkit/recipe/names.py`).
Then the same request must give the same latents from both:

    make_fullsize.py sd15 DIR/sd15 --bpe bpe_simple_vocab_16e6.txt.gz && make_single.py sd15 DIR/sd15 DIR/sd15.safetensors
    for m in sd15 sd15.safetensors; do instantstyle generate --model DIR/$m --prompt "a cat" --negative-prompt blurry --width 256 \\
        --height 256 --steps 2 --out $m.png --save-latents $m.latents; done; cmp sd15.latents sd15.safetensors.latents
"""
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

NAMES = Path(__file__).resolve().parents[2] / "testkit/fixtures/names"
PARTS = {
    "sd15": [("unet", "sd15-unet", "model.diffusion_model."), ("vae", "vae", "first_stage_model."),
             ("text_encoder", "clip-l", "cond_stage_model.transformer.")],
    "sdxl": [("unet", "sdxl-unet", "model.diffusion_model."), ("vae", "vae", "first_stage_model."),
             ("text_encoder", "clip-l", "conditioner.embedders.0.transformer."),
             ("text_encoder_2", "open-clip-g", "conditioner.embedders.1.model.")],
}

family, folder, out = sys.argv[1:]
tensors = {}
for part, names, prefix in PARTS[family]:
    weights = {}
    for file in sorted(Path(folder, part).glob("*.safetensors")):
        weights |= load_file(file)
    thirds = {}
    for line in (NAMES / f"{names}.tsv").read_text().splitlines():
        original, key, _, how = line.split("\t")
        tensor = weights.pop(key) if key in weights else weights.pop(key.removeprefix("text_model."))
        if part == "vae" and "attn_1" in original and tensor.dim() == 2:
            tensor = tensor[:, :, None, None]  # a 1×1 convolution there
        if how == "T":
            tensor = tensor.T.contiguous()
        if how.endswith("/3"):
            thirds.setdefault(original, [None] * 3)[int(how[0])] = tensor
        else:
            tensors[prefix + original] = tensor
    tensors |= {prefix + k: torch.cat(three) for k, three in thirds.items()}
    assert not [k for k in weights if "position_ids" not in k], list(weights)[:5]
if out.endswith(".ckpt"):
    torch.save({"state_dict": tensors, "global_step": 1}, out)
else:
    save_file({k: v.contiguous() for k, v in tensors.items()}, out, metadata={"format": "pt"})
print(len(tensors), "tensors")
