"""Does every case depend on its text and on its references, and how well conditioned is it?

Prints one line a case: relative change of the last latents without references, with another prompt, and the factor by
which a relative change of 1e-5 in the initial noise grows.
"""

import copy
import sys

from safetensors.torch import load_file

import cases
import pipeline
from common import CASES, quiet

OTHER = "a small green dragon flying over a village, mosaic"


def main(only):
    cases.declare()
    weak, worst = [], 0.0
    for item in cases.CASE_LIST:
        if only and item["name"] not in only:
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
        import numpy as np

        pixels = np.stack([np.asarray(p) for p in pictures])
        clipped = float(((pixels == 0) | (pixels == 255)).mean())
        batch = ""
        if job.get("count", 1) > 1:
            alone = [pipeline.run(job, folder, alone=i)[0] for i in range(job["count"])]
            batch = f" alone {max(pipeline.relative(a, want[i : i + 1]) for i, a in enumerate(alone)):.1e}"
        worst = max(worst, growth)
        if text < 0.05 or (without is not None and without < 0.05):
            weak.append(item["name"])
        shown = "-" if without is None else f"{without:.3f}"
        print(
            f"{item['name']}: without references {shown}, other prompt {text:.3f}, growth {growth:.1f}, "
            f"repeat {repeat:.0e}, pixels std {pixels.std():.0f} clipped {clipped:.3f}{batch}",
            flush=True,
        )
    print(f"weak: {weak}\nlargest growth: {worst:.1f}")


if __name__ == "__main__":
    quiet()
    main(set(sys.argv[1:]))
