"""The tiled decoding of one picture with an autoencoder of SDXL's true shape and random weights, in diffusers (f32) and here, one
after the other: seconds (loading included), peak memory, and how far the pictures are apart.

    cargo build --release -p instantstyle-nets --example decode
    python tiled.py target/release/examples/decode SIZE_PX TILE_PX   (2048 1024 is what diffusers does with SDXL)
"""
import os
import platform
import subprocess
import sys
import tempfile
import time

PEER = """
import sys, time
start = time.time()
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
folder, latents, tile, out = sys.argv[1:]
with torch.no_grad():
    vae = AutoencoderKL.from_pretrained(folder, torch_dtype=torch.float32)
    vae.enable_tiling()
    vae.tile_sample_min_size, vae.tile_latent_min_size = int(tile), int(tile) // 8
    picture = vae.decode(load_file(latents)["latents"]).sample
print(f"{time.time() - start:.1f}")
save_file({"picture": picture.contiguous()}, out)
"""


def make(folder, size):
    import torch
    from diffusers import AutoencoderKL
    from safetensors.torch import save_file

    shape = dict(block_out_channels=[128, 256, 512, 512], layers_per_block=2, latent_channels=4, sample_size=1024, scaling_factor=0.13025)
    with torch.device("meta"):
        vae = AutoencoderKL(**shape, down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4)
    g, tensors = torch.Generator().manual_seed(1), {}
    for key, value in vae.state_dict().items():
        one = 1.0 if "norm" in key and key.endswith("weight") else 0.0
        random = torch.randn(value.shape, generator=g) * value[0].numel() ** -0.5 if value.dim() > 1 else torch.full(value.shape, one)
        tensors[key] = random.half()
    vae.save_config(folder)
    save_file(tensors, f"{folder}/diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    save_file({"latents": torch.randn(1, 4, size // 8, size // 8, generator=g)}, f"{folder}/latents.safetensors")


def run(name, command):
    load, start = os.getloadavg()[0], time.time()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    seconds = process.stdout.read().strip()
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, name
    cpu = usage.ru_utime + usage.ru_stime
    print(f"{name}: {seconds} s, {cpu:.0f} s of CPU, peak {usage.ru_maxrss / 2**20:.2f} GiB, load before {load:.1f}, {time.time() - start:.0f} s in all", flush=True)


def main(program, size, tile):
    import diffusers
    import torch
    from safetensors.torch import load_file

    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs; torch {torch.__version__}, diffusers {diffusers.__version__}; {size} px, tiles of {tile} px")
    with tempfile.TemporaryDirectory() as folder:
        make(folder, int(size))
        at = lambda name: os.path.join(folder, name)  # noqa: E731
        run("instantstyle", [program, folder, at("latents.safetensors"), tile, at("ours.safetensors")])
        run("diffusers", [sys.executable, "-c", PEER, folder, at("latents.safetensors"), tile, at("theirs.safetensors")])
        a, b = (load_file(at(f"{n}.safetensors"))["picture"] for n in ("ours", "theirs"))
        print(f"pictures differ by {float((a - b).norm() / b.norm()):.1e}")


main(*sys.argv[1:])
