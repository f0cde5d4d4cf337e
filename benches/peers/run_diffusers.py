"""One picture with diffusers on the CPU in f32: prints seconds to the first step, seconds in all, peak memory.
Saves the last latents for comparison: `run_diffusers.py DIR STEPS SIZE latents.safetensors`."""
import resource
import sys
import time

start = time.time()
import torch  # noqa: E402
from diffusers import DiffusionPipeline  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

folder, steps, size, out = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
pipe = DiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
pipe.set_progress_bar_config(disable=True)
first = []
real = pipe.unet.forward


def forward(*a, **k):
    first.append(time.time() - start)
    return real(*a, **k)


pipe.unet.forward = forward
kept = {}


def keep(_pipe, _i, _t, k):
    kept["latents"] = k["latents"]
    return k


pipe("a cat", negative_prompt="blurry", num_inference_steps=steps, guidance_scale=5., width=size, height=size,
     generator=torch.Generator().manual_seed(42), callback_on_step_end=keep)
save_file({"latents": kept["latents"].contiguous()}, out)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
print(f"first step after {first[0]:.2f} s, whole {time.time() - start:.1f} s, peak {peak:.2f} GiB")
