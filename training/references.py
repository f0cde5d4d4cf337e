"""The pictures whose style is taken where the model is measured: one content each, never that of the prompt with the same number
(i % 10), and every style in turn.

`python references.py FOLDER [PICTURES]` writes them with their names, for `cargo bench -p instantstyle-engine --bench figures`.
"""

import json
import os
import sys

import numpy as np
from PIL import Image

import world


def scenes(pictures):
    """Places of the contents in the world's list, and the scenes."""
    rng = np.random.default_rng(77)
    shown = [(i % 10 + 1 + int(rng.integers(9))) % 10 for i in range(pictures)]
    return shown, [world.Scene(np.random.default_rng((10**6 + 1, i)), [world.CONTENTS[c]], world.STYLES[(i // 10 + i) % 12], plain=True)
                   for i, c in enumerate(shown)]


def main():
    folder, pictures = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 500
    os.makedirs(folder, exist_ok=True)
    rows = []
    for i, scene in enumerate(scenes(pictures)[1]):
        rows.append(dict(image=f"{i:04}.png", content=scene.contents[0], style=scene.style))
        Image.fromarray(scene.draw()).save(f"{folder}/{i:04}.png")
    with open(f"{folder}/references.json", "w") as f:
        json.dump(rows, f)


if __name__ == "__main__":
    main()
