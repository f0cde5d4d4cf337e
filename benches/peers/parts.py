"""Seconds of a model's encoders and autoencoder (decoding): this program, PyTorch and OpenVINO taking turns in one run.

    cargo build --release -p instantstyle-nets --example parts
    parts.py FOLDER [--parts text_encoder,text_encoder_2,image_encoder,vae] [--sizes 512,1024] [--rounds 3] [--precisions f32,bf16]

FOLDER comes from make_fullsize.py. Text encoders have two rows of 77 tokens, picture towers two pictures (the reference and the black one
of guidance), and both run in f32 here. Each round of each engine is two runs; the first of an engine's does not count, but is
printed for the encoders with what loading takes, for a picture encodes once. Needs torch, diffusers, transformers, openvino.
"""
import argparse
import gc
import os
import statistics
import subprocess
import tempfile
import time

import numpy as np
import torch

from step import Turn

HERE = os.path.dirname(os.path.abspath(__file__))
PROGRAM = os.environ.get("PARTS", f"{HERE}/../../target/release/examples/parts")


class Decode(torch.nn.Module):
    def __init__(self, vae):
        super().__init__()
        self.vae = vae

    def forward(self, latents):
        return self.vae.decode(latents, return_dict=False)[0]


class Text(torch.nn.Module):
    def __init__(self, tower):
        super().__init__()
        self.tower = tower

    def forward(self, ids):
        out = self.tower(ids, output_hidden_states=True)
        return out.hidden_states[-2], out[0]


class Image(torch.nn.Module):
    def __init__(self, tower):
        super().__init__()
        self.tower = tower

    def forward(self, pixels):
        out = self.tower(pixels, output_hidden_states=True)
        return out.image_embeds, out.hidden_states[-2]


def model(folder, part, dtype):
    from diffusers import AutoencoderKL
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPVisionModelWithProjection
    if part == "image_encoder":
        return Image(CLIPVisionModelWithProjection.from_pretrained(f"{folder}/{part}", torch_dtype=dtype).eval())
    if part == "vae":
        return Decode(AutoencoderKL.from_pretrained(f"{folder}/vae", torch_dtype=dtype).eval())
    kind = CLIPTextModelWithProjection if part == "text_encoder_2" else CLIPTextModel
    return Text(kind.from_pretrained(f"{folder}/{part}", torch_dtype=dtype).eval())


def openvino_of(folder, part, given, hint):
    import openvino as ov
    with torch.inference_mode(), tempfile.TemporaryDirectory() as work:
        # Traced small, then given its size: tracing runs the network several times.
        example = given[..., :16, :16] if part == "vae" else given
        converted = ov.convert_model(model(folder, part, torch.float32), example_input=(example,))
        converted.reshape(tuple(given.shape))
        ov.save_model(converted, f"{work}/m.xml", compress_to_fp16=True)
        del converted
        gc.collect()
        start = time.time()
        compiled = ov.Core().compile_model(f"{work}/m.xml", "CPU", {
            "INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": os.cpu_count()})
        loading = time.time() - start
    request, array = compiled.create_infer_request(), given.numpy()
    return lambda: request.infer([array]), loading


def torch_of(folder, part, given, precision):
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[precision]
    start = time.time()
    m = model(folder, part, dtype)
    loading = time.time() - start
    if part == "vae":
        m, given = m.to(memory_format=torch.channels_last), given.to(dtype, memory_format=torch.channels_last)

    def run():
        with torch.inference_mode():
            return m(given)
    return run, loading


def timed(run, count):
    row = []
    for _ in range(count):
        start = time.time()
        run()
        row.append(time.time() - start)
    return row


def measure(name, folder, part, given, precision, rounds, ours):
    engines, first = {}, {}
    for engine, of in (("torch", torch_of), ("openvino", openvino_of)):
        engines[engine], took = of(folder, part, given, precision)
        first[engine] = took + timed(engines[engine], 1)[0]
    times, others = {}, 0.
    for _ in range(rounds):
        for engine in ["instantstyle", *engines]:
            with Turn() as turn:
                if engine == "instantstyle":
                    out = subprocess.run([PROGRAM, f"{folder}/{part}", *ours, precision, "3"], capture_output=True, text=True, check=True)
                    loading, begun, *row = [float(v) for v in out.stdout.split()]
                    first["instantstyle"] = min(first.get("instantstyle", 1e9), loading + begun)
                else:
                    row = timed(engines[engine], 2)
            times.setdefault(engine, []).extend(row)
            others = max(others, turn.others)
    least = {k: min(v) for k, v in times.items()}
    fastest = min(v for k, v in least.items() if k != "instantstyle")
    print(f"{name} {precision}: " + ", ".join(f"{k} {v:.3f} (median {statistics.median(times[k]):.3f})" for k, v in least.items())
          + "; loading and the first run " + ", ".join(f"{k} {v:.2f}" for k, v in first.items())
          + f"; fastest peer / ours {fastest / least['instantstyle']:.2f}; others' CPU up to {others:.0f} %", flush=True)
    engines.clear()
    gc.collect()


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("folder")
    p.add_argument("--parts", default="text_encoder,text_encoder_2,image_encoder,vae")
    p.add_argument("--sizes", default="512,1024")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--precisions", default="f32,bf16")
    a = p.parse_args()
    torch.set_num_threads(os.cpu_count())
    ids = np.arange(77) * 631 % 49000
    ids[-1] = 49407
    pixels = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    for part, given, ours in (("text_encoder", torch.tensor(np.stack([ids, ids])), ["text", "77"]),
                              ("text_encoder_2", torch.tensor(np.stack([ids, ids])), ["text", "77"]),
                              ("image_encoder", pixels, ["image", "2"])):
        if part in a.parts.split(",") and os.path.exists(f"{a.folder}/{part}"):
            measure(part, a.folder, part, given, "f32", a.rounds, ours)
    for size in map(int, a.sizes.split(",") if "vae" in a.parts.split(",") else []):
        latents = torch.randn(1, 4, size // 8, size // 8, generator=torch.Generator().manual_seed(0))
        for precision in a.precisions.split(","):
            measure(f"decode {size}", a.folder, "vae", latents, precision, a.rounds, ["decode", str(size)])


if __name__ == "__main__":
    main()
