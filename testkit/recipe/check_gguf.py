"""Reads a GGUF file that `instantstyle convert` wrote with ggml's own package, and compares every tensor's bytes with what that
package quantises from the source: `check_gguf.py OUT.gguf SOURCE.safetensors` (original names; pip install gguf==0.19.0)."""

import collections
import sys

import gguf
import numpy as np
import torch
from safetensors import safe_open

reader, source = gguf.GGUFReader(sys.argv[1]), safe_open(sys.argv[2], "pt")
keys = {t.name for t in reader.tensors}
missing = [k for k in source.keys() if k not in keys and source.get_tensor(k).dtype != torch.int64]
seen = collections.Counter()
for tensor in reader.tensors:
    given = source.get_tensor(tensor.name)
    assert list(reversed(tensor.shape.tolist())) == list(given.shape), (tensor.name, tensor.shape, given.shape)
    want = gguf.quants.quantize(given.float().numpy(), tensor.tensor_type)
    assert np.array_equal(tensor.data.view(np.uint8).ravel(), want.view(np.uint8).ravel()), tensor.name
    seen[tensor.tensor_type.name] += 1
print(dict(seen), "equal to the byte; missing:", missing)
