"""Writes crates/engine/tests/fixtures/rng.json: draws of torch's CPU generator (first and last 20 values)."""
import json
import torch

cases = []
for seed in (0, 42, 2**32 + 7, 2**40 + 123):
    g = torch.Generator().manual_seed(seed)
    draws = []
    for n in (16, 3, 1, 64, 15, 17, 100, 1, 1000, 16384, 5):
        x = torch.randn(n, generator=g).tolist()
        draws.append(dict(n=n, values=[*x[:20], *x[::-1][:20]]))
    cases.append(dict(seed=seed, draws=draws))
with open("crates/engine/tests/fixtures/rng.json", "w") as f:
    json.dump(cases, f)
