"""One picture with OpenVINO from the start of a process to the PNG: `whole_openvino.py FOLDER STEPS SIZE f32|bf16|int8 OUT.png`.

The least that a program with OpenVINO must do, and no more, so that the peer is as fast as it can be: no tokenizer (the ids of "a cat" are below),
no torch, an Euler loop in numpy. `--convert` first writes the networks (needs torch, diffusers, transformers; not timed). SDXL's UNet is what step.py has
written, in int8 what quantise.py has. Prints seconds to the first step and in all.
"""
import os
import sys
import time

start = time.time()
import numpy as np  # noqa: E402
import openvino as ov  # noqa: E402

folder, steps, size, precision, out = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5]
work = f"{folder}/openvino"
sdxl = os.path.exists(f"{folder}/text_encoder_2")
towers = ["text_encoder", "text_encoder_2"] if sdxl else ["text_encoder"]


def convert():
    import torch

    import parts
    import step
    os.makedirs(work, exist_ok=True)
    ids = torch.zeros(2, 77, dtype=torch.int64)
    latents = torch.zeros(1, 4, size // 8, size // 8)
    with torch.inference_mode():
        networks = [(name, lambda name=name: parts.model(folder, name, torch.float32), (latents,) if name == "vae" else (ids,))
                    for name in [*towers, "vae"]]
        if not sdxl:
            networks.append(("unet", lambda: step.load(folder, torch.float32), step.inputs("sd15", size // 8)))
        for name, model, given in networks:
            ov.save_model(ov.convert_model(model(), example_input=given, input=[tuple(v.shape) for v in given]), f"{work}/{name}_{size}.xml",
                          compress_to_fp16=True)


if "--convert" in sys.argv:
    convert()
    sys.exit()

core = ov.Core()


def compiled(name):
    network = f"{work}/{name}_{size}.xml"
    if name == "unet" and (sdxl or precision == "int8"):
        # What step.py and quantise.py wrote; beside int8 everything is bf16.
        network = core.read_model(f"{folder}/unet/openvino{'_int8' if precision == 'int8' else ''}.xml")
        shapes = [(2, 4, size // 8, size // 8), (1,)] + ([(2, 77, 2048), (2, 1280), (2, 6)] if sdxl else [(2, 77, 768)])
        network.reshape(dict(zip(network.inputs, shapes)))
    return core.compile_model(network, "CPU", {
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "int8" else precision, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": os.cpu_count()})


ids = np.full((2, 77), 49407)
ids[:, 0] = 49406
ids[1, 1:3] = 320, 2368  # "a cat"; the first row is the empty prompt
texts = [compiled(tower)([ids]) for tower in towers]
if sdxl:
    # Both towers' last layer but one, the second one's projection, and the picture's sizes.
    given = [np.concatenate([text[0] for text in texts], 2), texts[1][1], np.array([[size, size, 0, 0, size, size]] * 2, np.float32)]
else:
    given = [texts[0][1]]
unet = compiled("unet").create_infer_request()
# Karras et al.'s Euler over the schedule of SD1.5 and SDXL, timesteps "leading".
betas = np.linspace(0.00085 ** .5, 0.012 ** .5, 1000, dtype=np.float64) ** 2
sigmas = ((1 - np.cumprod(1 - betas)) / np.cumprod(1 - betas)) ** .5
timesteps = (np.arange(steps) * (1000 // steps))[::-1] + 1
levels = np.append(sigmas[timesteps], 0.)
x = np.random.default_rng(42).standard_normal((1, 4, size // 8, size // 8)) * levels[0]
first = None
for i, t in enumerate(timesteps):
    first = first or time.time() - start
    scaled = (x / (levels[i] ** 2 + 1) ** .5).astype(np.float32)
    e = unet.infer([np.repeat(scaled, 2, 0), np.array([t], np.float32), *given])[0]
    e = e[:1] + 5. * (e[1:] - e[:1])
    x = x + e * (levels[i + 1] - levels[i])
del unet
picture = compiled("vae")([(x / (0.13025 if sdxl else 0.18215)).astype(np.float32)])[0][0]
from PIL import Image  # noqa: E402

Image.fromarray((np.clip(picture.transpose(1, 2, 0) / 2 + .5, 0, 1) * 255).round().astype(np.uint8)).save(out)
print(f"openvino {precision}: first step after {first:.2f} s, whole {time.time() - start:.1f} s")
