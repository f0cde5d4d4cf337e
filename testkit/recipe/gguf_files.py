"""GGUF fixtures, made by ggml's own Python package: `python gguf_files.py` (pip install gguf==0.19.0).

`blocks.gguf` holds three blocks of random bytes in every block format, with the values that `gguf.quants.dequantize` gives
(`blocks.safetensors`), and random values with the bytes that `gguf.quants.quantize` gives. `odd.gguf` has what readers must
get right: reversed axes, text metadata, another alignment, a true shape beside a stored one.
"""

from pathlib import Path

import common
import gguf
import numpy as np
from safetensors.numpy import save_file

OUT = Path(__file__).resolve().parents[2] / "crates/nets/tests/fixtures/gguf"
FORMATS = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]
WRITTEN = ["Q4_0", "Q5_0", "Q8_0"]
# Where each format keeps half-precision scales.
HALVES = dict(Q4_0=[0], Q4_1=[0, 2], Q5_0=[0], Q5_1=[0, 2], Q8_0=[0], Q2_K=[80, 82], Q3_K=[108], Q4_K=[0, 2], Q5_K=[0, 2],
              Q6_K=[208])


def kind(name):
    return gguf.GGMLQuantizationType[name]


def blocks(rng):
    writer = gguf.GGUFWriter(str(OUT / "blocks.gguf"), "sd1")
    expected = {}
    for name in FORMATS:
        values, size = gguf.GGML_QUANT_SIZES[kind(name)]
        raw = rng.integers(0, 256, (2, 3 * size), dtype=np.uint8)
        for row in raw.reshape(6, size):
            for at in HALVES[name]:
                row[at:at + 2] = np.float16([rng.normal() / 8]).view(np.uint8)
        writer.add_tensor(name, raw, raw_dtype=kind(name))
        expected[name] = gguf.quants.dequantize(raw, kind(name))
        assert expected[name].shape == (2, 3 * values) and np.isfinite(expected[name]).all()
    for name in ("F32", "F16", "BF16"):
        given = rng.normal(size=(2, 7 if name != "BF16" else 8)).astype(np.float32)
        data = gguf.quants.quantize(given, kind(name))
        writer.add_tensor(name, data, raw_dtype=kind(name))
        expected[name] = gguf.quants.dequantize(data, kind(name))
    write(writer)
    # Ties, zeros, one sign, outliers.
    given = rng.normal(size=(6, 64)).astype(np.float32)
    given[0, :32] = 0
    given[1] = np.abs(given[1])
    given[2] = -np.abs(given[2])
    given[3, 5] = 1000
    given[4] = np.round(given[4] * 4) / 4
    given[5] *= 1e-7
    expected["given"] = given
    for name in WRITTEN:
        expected[f"to {name}"] = gguf.quants.quantize(given, kind(name))
    save_file(expected, OUT / "blocks.safetensors")


def odd():
    writer = gguf.GGUFWriter(str(OUT / "odd.gguf"), "sdxl")
    writer.add_custom_alignment(64)
    writer.add_name("odd")
    writer.add_array("some.words", ["a", "b"])
    writer.add_array("some.numbers", [1, 2, 3])
    writer.add_float32("some.number", 0.5)
    cube = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    writer.add_tensor("cube", cube)
    kernel = np.arange(512, dtype=np.float32).reshape(8, 64) / 64
    writer.add_array("comfy.gguf.orig_shape.kernel", [4, 128, 1, 1])
    writer.add_tensor("kernel", gguf.quants.quantize(kernel, kind("Q8_0")), raw_dtype=kind("Q8_0"))
    write(writer)


def write(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    common.quiet()
    OUT.mkdir(parents=True, exist_ok=True)
    blocks(np.random.default_rng(7))
    odd()
