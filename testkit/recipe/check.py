"""Does every case depend on its text and on its references, and how well conditioned is it?

Prints one line a case: relative change of the last latents without references, with another prompt, the factor by which a
relative change of 1e-5 in the initial noise grows, and the change when one thing that the request asks for is taken away.
"""

import copy
import json
import sys

import numpy as np
from safetensors.torch import load_file

import cases
import pipeline
from common import CASES, FIXTURES, quiet

OTHER = "a small green dragon flying over a village, mosaic"


def ablations(job):
    """The request with one thing taken away, for everything that it asks for."""

    def changed(name, edit):
        other = copy.deepcopy(job)
        edit(other)
        return name, other

    refs = job["references"]
    if any(r.get("subtract") for r in refs):
        yield changed("subtraction", lambda j: [r.pop("subtract", None) for r in j["references"]])
    if any(r.get("mask") for r in refs):
        yield changed("mask", lambda j: [r.pop("mask", None) for r in j["references"]])
    if any("start" in r or "end" in r for r in refs):
        yield changed("window", lambda j: [(r.pop("start", None), r.pop("end", None)) for r in j["references"]])
    if len(refs) > 1:
        for i in range(len(refs)):
            yield changed(f"reference {i}", lambda j: j["references"].pop(i))
    if any(r["inject"] != "all" for r in refs):
        yield changed("inject", lambda j: [r.update(inject="all") for r in j["references"]])
    if job.get("controls"):
        for i in range(len(job["controls"])):
            yield changed(f"control {i}", lambda j: j["controls"].pop(i))
        if any("start" in c or "end" in c for c in job["controls"]):
            yield changed("control window", lambda j: [(c.pop("start", None), c.pop("end", None)) for c in j["controls"]])
        if any("preprocess" in c for c in job["controls"]):
            yield changed("map", lambda j: [c.pop("preprocess", None) for c in j["controls"]])
    for i in range(len(job.get("loras", []))):
        yield changed(f"lora {i}", lambda j: j["loras"].pop(i))
    if job.get("hidiffusion"):
        yield changed("hidiffusion", lambda j: j.pop("hidiffusion"))
    for key in ("cross_freeze", "token_merging"):
        if job.get(key):
            yield changed(key, lambda j: j.pop(key))
    for key in ("clip_skip", "guidance_rescale", "negative_prompt"):
        if job.get(key) and (key != "negative_prompt" or job["guidance"] > 1):
            yield changed(key, lambda j: j.pop(key))


def main(only):
    cases.declare()
    weak, worst, table = [], 0.0, {}
    for item in cases.CASE_LIST:
        if only and item["name"] not in only:
            continue
        if "init" in item["job"] or "hires" in item["job"]:  # its noise is not given from outside, so it cannot be shaken
            continue
        job, folder = item["job"], CASES / item["name"]
        want = load_file(folder / "expected.safetensors")["latents"]
        again, pictures, info = pipeline.run(job, folder)
        repeat = pipeline.relative(again, want)
        without = None
        if job["references"]:
            without = pipeline.relative(pipeline.run(job, folder, drop_references=True)[0], want)
        text = pipeline.relative(pipeline.run(job, folder, prompt=OTHER)[0], want)
        shaken = copy.deepcopy(job)
        growth = pipeline.relative(pipeline.run(shaken, folder, perturb=1e-5)[0], want) / 1e-5
        pixels = np.stack([np.asarray(p) for p in pictures])
        clipped = float(((pixels == 0) | (pixels == 255)).mean())
        parts = {name: pipeline.relative(pipeline.run(other, folder)[0], want) for name, other in ablations(job)}
        if parts and min(parts.values()) < 0.005:
            weak.append(f"{item['name']} {parts}")
        batch = " " + ", ".join(f"{k} {v:.3f}" for k, v in parts.items())
        if job.get("count", 1) > 1:
            alone = [pipeline.run(job, folder, alone=i)[0] for i in range(job["count"])]
            batch += f" alone {max(pipeline.relative(a, want[i : i + 1]) for i, a in enumerate(alone)):.1e}"
        worst = max(worst, growth)
        if text < 0.05 or (without is not None and without < 0.05):
            weak.append(item["name"])
        shown = "-" if without is None else f"{without:.3f}"
        print(
            f"{item['name']}: without references {shown}, other prompt {text:.3f}, growth {growth:.1f}, "
            f"repeat {repeat:.0e}, pixels std {pixels.std():.0f} clipped {clipped:.3f}{batch}",
            flush=True,
        )
        table[item["name"]] = {
            "without references": None if without is None else round(without, 4),
            "other prompt": round(text, 4),
            "growth": round(growth, 1),
            **{f"without {k}": round(v, 4) for k, v in parts.items()},
        }
    known = {} if not only else json.loads((FIXTURES / "sensitivity.json").read_text())
    table = known | table
    names = [item["name"] for item in cases.CASE_LIST]
    table = {name: table[name] for name in sorted(table, key=names.index)}
    (FIXTURES / "sensitivity.json").write_text(json.dumps(table, indent=1))
    print(f"weak: {weak}\nlargest growth: {worst:.1f}")


if __name__ == "__main__":
    quiet()
    main(set(sys.argv[1:]))
