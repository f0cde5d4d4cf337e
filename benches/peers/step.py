"""Seconds of one guided UNet step (two rows) at full size: this program and its peers taking turns in one run.

    step.py FAMILY FOLDER [--size 512] [--rounds 3] [--precisions f32,bf16,int8]
        [--engines instantstyle,torch,openvino,stable-diffusion.cpp,candle]

FOLDER comes from make_fullsize.py. Needs torch, diffusers, openvino. Prints minimum and median, how much of the CPUs other
processes had, and how far the answers of torch and openvino are apart. Which engine runs in which precision:

* torch: f32, bf16. openvino: f32, bf16, and int8 (the rest bf16) after quantise.py.
* stable-diffusion.cpp: its f16 in the row of f32, its q8_0 in the row of int8. `SD_CPP` names its sd-cli, `SD_CPP_MODEL` the folder's
  weights as one file (make_single.py).
* candle: f32. `CANDLE` names the program built in candle/. These two take minutes a step on SDXL.
"""
import argparse
import gc
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
import torch
from diffusers import UNet2DConditionModel

HERE = os.path.dirname(os.path.abspath(__file__))
PROGRAM = os.environ.get("INSTANTSTYLE", f"{HERE}/../../target/release/instantstyle")


def busy():
    """Jiffies of all CPUs: (spent, in all)."""
    with open("/proc/stat") as f:
        v = [int(x) for x in f.readline().split()[1:9]]
    return sum(v) - v[3] - v[4], sum(v)


def own():
    t = os.times()
    return (t.user + t.system + t.children_user + t.children_system) * os.sysconf("SC_CLK_TCK")


class Turn:
    """Share of the CPUs' time that went to other processes while it lasted, in percent."""

    def __enter__(self):
        self.before, self.mine = busy(), own()
        return self

    def __exit__(self, *_):
        spent, total = (b - a for a, b in zip(self.before, busy()))
        self.others = 100 * max(0., spent - (own() - self.mine)) / max(1, total)


def inputs(family, side):
    g = torch.Generator().manual_seed(0)
    r = lambda *s: torch.randn(*s, generator=g)
    x, t = r(2, 4, side, side), torch.tensor([500.])
    if family == "sd15":
        return x, t, r(2, 77, 768)
    return x, t, r(2, 77, 2048), r(2, 1280), torch.tensor([[side * 8., side * 8, 0, 0, side * 8, side * 8]]).repeat(2, 1)


class Whole(torch.nn.Module):
    """The UNet with plain arguments in f32, as converters want it."""

    def __init__(self, unet):
        super().__init__()
        self.unet = unet
        self.casts = True

    def forward(self, x, t, states, pooled=None, ids=None):
        dtype = self.unet.dtype if self.casts else torch.float32
        added = None if pooled is None else {"text_embeds": pooled.to(dtype), "time_ids": ids.to(dtype)}
        return self.unet(x.to(dtype), t, states.to(dtype), added_cond_kwargs=added, return_dict=False)[0].float()


def load(folder, dtype):
    return Whole(UNet2DConditionModel.from_pretrained(f"{folder}/unet", torch_dtype=dtype).eval())


def torch_engine(a, precision, given):
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[precision]
    model = load(a.folder, dtype)
    # channels-last is what torch's own advice for CPUs is.
    model = model.to(memory_format=torch.channels_last)
    given = [given[0].contiguous(memory_format=torch.channels_last), *given[1:]]

    def run():
        with torch.inference_mode():
            return model(*given).float().numpy()
    return run


def openvino_engine(a, precision, given):
    import openvino as ov
    from openvino.frontend.pytorch import patch_model
    path = f"{a.folder}/unet/openvino{'_int8' if precision == 'int8' else ''}.xml"
    if not os.path.exists(path):
        if precision == "int8":
            sys.exit(f"{path} is missing: quantise.py writes it")
        model = load(a.folder, torch.float16)
        # Weights stay in f16, everything else is f32: what its own tools do for models that are large (optimum-intel). In f32 SDXL's
        # weights beside their copy are more than 24 GiB.
        getattr(patch_model, "__make_16bit_traceable")(model)
        model.casts = False
        with torch.inference_mode():
            # Traced small, which leaves the size open: tracing runs the network several times.
            converted = ov.convert_model(model, example_input=tuple(inputs(a.family, 32)))
        ov.save_model(converted, path, compress_to_fp16=True)
        del model, converted
        gc.collect()
    core = ov.Core()
    network = core.read_model(path)
    network.reshape({port: tuple(v.shape) for port, v in zip(network.inputs, given)})
    hint = "bf16" if precision == "int8" else precision
    compiled = core.compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY",
                                                   "INFERENCE_NUM_THREADS": os.cpu_count()})
    del network
    request, arrays = compiled.create_infer_request(), [v.numpy() for v in given]
    return lambda: request.infer(arrays)[0].astype(np.float32)


def program(*command):
    out = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if out.returncode:
        sys.exit(out.stdout)
    return out.stdout


def ours(a, precision):
    """Model calls of a whole picture, without the first, which packs weights."""
    with tempfile.TemporaryDirectory() as work:
        out = program(PROGRAM, "generate", "--model", a.folder, "--prompt", "a cat", "--negative-prompt", "", "--guidance", "5",
                      "--sampler", "euler", "--steps", str(a.steps + 1), "--width", str(a.size), "--height", str(a.size),
                      "--precision", precision, "--json", "--quiet", "--out", f"{work}/o.png")
    return json.loads(out)["seconds"]["calls"][1:]


def sd_cpp(a, precision):
    """Steps of a whole picture, by its own clock: it says the time of all."""
    with tempfile.TemporaryDirectory() as work:
        out = program(os.environ["SD_CPP"], "-m", os.environ["SD_CPP_MODEL"], "-p", "a cat", "--cfg-scale", "5", "--sampling-method",
                      "euler", "--steps", str(a.steps), "-W", str(a.size), "-H", str(a.size), "-t", str(os.cpu_count()),
                      "-o", f"{work}/o.png", "-v", *(["--type", "q8_0"] if precision == "int8" else []))
    return [float(re.search(r"sampling completed, taking ([0-9.]+)s", out)[1]) / a.steps]


def candle(a, _):
    """Steps without the first."""
    return [float(v) for v in program(os.environ["CANDLE"], a.family, a.folder, str(a.size), str(a.steps + 1)).split()[1:]]


# Programs of their own, and the precisions in which they run.
PROGRAMS = {"instantstyle": (ours, ("f32", "bf16", "int8")), "stable-diffusion.cpp": (sd_cpp, ("f32", "int8")),
            "candle": (candle, ("f32",))}
LIBRARIES = {"torch": (torch_engine, ("f32", "bf16")), "openvino": (openvino_engine, ("f32", "bf16", "int8"))}


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("family", choices=["sd15", "sdxl"])
    p.add_argument("folder")
    p.add_argument("--size", type=int, default=512)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--steps", type=int, default=2, help="timed steps a turn")
    p.add_argument("--precisions", default="f32,bf16")
    p.add_argument("--engines", default="instantstyle,torch,openvino")
    a = p.parse_args()
    torch.set_num_threads(os.cpu_count())
    given = inputs(a.family, a.size // 8)
    for precision in a.precisions.split(","):
        times, others, answers = {}, {}, {}
        engines = a.engines.split(",")
        runs = {}
        for name in engines:
            if precision in LIBRARIES.get(name, (None, ()))[1]:
                runs[name] = LIBRARIES[name][0](a, precision, given)
                answers[name] = runs[name]()
        for _ in range(a.rounds):
            for name in engines:
                alone = PROGRAMS.get(name)
                if name in runs or alone and precision in alone[1]:
                    with Turn() as turn:
                        if alone:
                            row = alone[0](a, precision)
                        else:
                            row = []
                            for _ in range(a.steps):
                                start = time.time()
                                runs[name]()
                                row.append(time.time() - start)
                    times.setdefault(name, []).extend(row)
                    others.setdefault(name, []).append(turn.others)
        for name, t in times.items():
            peers = [min(v) for n, v in times.items() if n != "instantstyle"]
            ratio = f", fastest peer / ours {min(peers) / min(t):.2f}" if name == "instantstyle" and peers else ""
            print(f"{a.family} {a.size} {precision} {name}: min {min(t):.2f} s, median {statistics.median(t):.2f} s of {len(t)}, "
                  f"others' CPU {max(others[name]):.0f} %{ratio}", flush=True)
        if len(answers) == 2:
            x, y = answers.values()
            print(f"  {' and '.join(answers)} differ by {np.linalg.norm(x - y) / np.linalg.norm(x):.1e}", flush=True)
        runs.clear()
        gc.collect()


if __name__ == "__main__":
    main()
