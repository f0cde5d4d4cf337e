"""Measures the trained model with judges that were trained apart from it, and writes the card.

`python measure.py --out run --pictures 500`. Seeds and counts are in the card.
"""

import argparse
import json
import os

import numpy as np
import torch

import export
import networks
import train
import world

STEPS, GUIDANCE = 12, 4.0
FOLDER = os.path.normpath(os.path.join(os.path.dirname(os.path.abspath(__file__)), "../models/embedded"))
GROUPS = ["down_blocks.1.attentions.0", "down_blocks.1.attentions.1", "down_blocks.2.attentions.0", "down_blocks.2.attentions.1",
          "mid_block", "up_blocks.0.attentions.0", "up_blocks.0.attentions.1", "up_blocks.0.attentions.2",
          "up_blocks.1.attentions.0", "up_blocks.1.attentions.1", "up_blocks.1.attentions.2"]


class Bench:
    """The model, the judges and a fixed list of prompts and references."""

    def __init__(self, out, pictures):
        self.out, self.n = out, pictures
        self.words = networks.WordTokens()
        text, vision, _ = train.load_clip(out)
        self.text, self.vision = export.rounded(text), export.rounded(vision)
        self.decoder = export.rounded(train.load_vae(out))
        self.judge, = train.load(out, "judges", train.Judge())
        self.model = export.rounded(train.load_adapted(out))
        rng = np.random.default_rng(77)
        self.wanted = [i % 10 for i in range(pictures)]
        self.shown = [(i % 10 + 1 + int(rng.integers(9))) % 10 for i in range(pictures)]
        self.scenes = [world.Scene(np.random.default_rng((10**6 + 1, i)), [world.CONTENTS[c]], world.STYLES[(i // 10 + i) % 12], plain=True)
                       for i, c in enumerate(self.shown)]
        self.references = np.stack([s.draw() for s in self.scenes])
        with torch.no_grad():
            self.features = torch.cat([self.vision(pixel_values=train.clip_pixels(self.references[i:i + 100])).image_embeds
                                       for i in range(0, pictures, 100)])
            contents = [f"a {world.CONTENTS[c]}" for c in self.shown]
            self.contents = self.text(input_ids=self.words(contents)).text_embeds

    def scale(self, spec):
        """Weights of the adapter: a number everywhere, or by part of the network."""
        for name, processor in self.model.attn_processors.items():
            if "attn2" in name:
                weight = spec if isinstance(spec, float) else max([w for k, w in spec.items() if name.startswith(k + ".")], default=0.)
                processor.scale = [weight]

    def paint(self, prompts, spec, subtract=0., count=None):
        count = count or self.n
        self.scale(spec)
        parts = []
        for i in range(0, count, 50):
            j = slice(i, min(i + 50, count))
            states, pooled = train.prompt(self.text, self.words, prompts[j])
            features = self.features[j] - subtract * self.contents[j]
            parts.append(train.sample(self.model, self.decoder, states, pooled, features, STEPS, GUIDANCE, seed=1000 + i))
        return torch.cat(parts)

    @torch.no_grad()
    def judged(self, x):
        """Rates in percent. Palette: the judge sees the reference's two colours."""
        parts = [self.judge(x[i:i + 100]) for i in range(0, len(x), 100)]
        a, b, c = (torch.cat(p) for p in zip(*parts))
        n = len(x)
        _, style, colours = train.labels(self.scenes[:n])
        wanted, shown = torch.tensor(self.wanted[:n]), torch.tensor(self.shown[:n])
        percent = lambda right: round(100 * float(right.float().mean()), 1)
        row = torch.arange(n)
        return dict(content=percent((a.argmax(1) == wanted)), style=percent(b.argmax(1) == style),
                    palette=percent((c.view(n, 2, -1).argmax(2) == colours).all(1)),
                    leak=percent((a[row, shown] > 0) | (a.argmax(1) == shown)), pictures=n)

    def named(self):
        """Prompts that name content and style, no reference: content and style right."""
        styles = [(i // 10 + i) % 12 for i in range(self.n)]
        prompts = [f"a {world.CONTENTS[c]}, in {world.STYLES[s]} style" for c, s in zip(self.wanted, styles)]
        x = self.paint(prompts, 0.)
        parts = [self.judge(x[i:i + 100]) for i in range(0, len(x), 100)]
        a, b, _ = (torch.cat(p) for p in zip(*parts))
        train.grid(x[:48], 12, f"{FOLDER}/sheets/named.jpg")
        percent = lambda right: round(100 * float(right.float().mean()), 1)
        return dict(content=percent(a.argmax(1) == torch.tensor(self.wanted)), style=percent(b.argmax(1) == torch.tensor(styles)),
                    pictures=self.n)


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--out", default="run")
    arguments.add_argument("--pictures", type=int, default=500, help="pictures of a row")
    arguments.add_argument("--group-pictures", type=int, default=100, help="pictures of a row of the site study")
    a = arguments.parse_args()
    os.makedirs(f"{FOLDER}/sheets", exist_ok=True)
    torch.set_num_threads(os.cpu_count())
    bench = Bench(a.out, a.pictures)
    prompts = [f"a {world.CONTENTS[c]}" for c in bench.wanted]
    sheet = [networks.pixels(bench.references[:12])]
    groups = {}
    for name, spec in {"no adapter": 0., "everywhere": 1., **{g: {g: 1.} for g in GROUPS}}.items():
        x = bench.paint(prompts, spec, count=a.group_pictures)
        groups[name] = bench.judged(x)
        sheet.append(x[:12])
        train.log(a.out, f"site study {name}: {groups[name]}")
        train.grid(torch.cat(sheet), 12, f"{FOLDER}/sheets/sites.jpg")
    # Style: the groups that bring the reference's style and leave the prompt's content, the best first, until the style
    # is as strong as the whole adapter's or the content suffers. Layout: where the reference's content comes through.
    base, whole = groups["no adapter"], groups["everywhere"]
    gain = {g: groups[g]["style"] - base["style"] for g in GROUPS}
    leak = {g: groups[g]["leak"] - base["leak"] for g in GROUPS}
    ranked = sorted(GROUPS, key=lambda g: gain[g] - 2 * max(leak[g], 0), reverse=True)
    style, best = [], None
    for g in ranked[:4]:
        tried = bench.judged(bench.paint(prompts, {k: 1. for k in [*style, g]}, count=a.group_pictures))
        train.log(a.out, f"style set {[*style, g]}: {tried}")
        score = tried["style"] - 2 * tried["leak"] + tried["content"]
        if best is None or score > best:
            style, best = [*style, g], score
        else:
            break
    left = [g for g in GROUPS if g not in style]
    layout = [max(left, key=lambda g: leak[g] - gain[g])]
    presets = {"style": {g: 1. for g in style}, "layout": {g: 1. for g in layout},
               "style+layout": {g: 1. for g in [*layout, *style]}}
    # The scale of subtraction that keeps most of the style for the least leak.
    scales = {s: bench.judged(bench.paint(prompts, 1., s, count=a.group_pictures)) for s in (.25, .5, .75, 1.)}
    subtract = max(scales, key=lambda s: scales[s]["style"] + scales[s]["content"] - scales[s]["leak"])
    rows = {"no adapter": (0., 0.), "plain adapter, 0.4": (.4, 0.), "plain adapter, 0.7": (.7, 0.), "plain adapter, 1.0": (1., 0.),
            "style": (presets["style"], 0.), "style+layout": (presets["style+layout"], 0.), "layout": (presets["layout"], 0.),
            f"subtraction, {subtract}": (1., subtract), f"style + subtraction, {subtract}": (presets["style"], subtract)}
    figures, sheet = {}, [networks.pixels(bench.references[:12])]
    for name, (spec, scale) in rows.items():
        x = bench.paint(prompts, spec, scale)
        figures[name] = bench.judged(x)
        sheet.append(x[:12])
        train.log(a.out, f"{name}: {figures[name]}")
        train.grid(torch.cat(sheet), 12, f"{FOLDER}/sheets/methods.jpg")
    named = bench.named()
    train.log(a.out, f"prompts naming content and style: {named}")
    with open(f"{a.out}/judges.json") as f:
        judges = json.load(f)
    card = {
        "name": "embedded", "license": "MIT OR Apache-2.0",
        "contents": world.CONTENTS, "styles": world.STYLES, "colours": world.COLOURS,
        "defaults": dict(width=128, height=128, steps=20, guidance=GUIDANCE, sampler="ddim", subtract_scale=subtract),
        "presets": presets,
        "demo": {"prompt": "a house", "seed": 11, "references": [
            {"image": f"references/{s}-{c}.png", "content": f"a {c}", "style": s} for c, s in export.REFERENCES]},
        "figures": dict(steps=STEPS, guidance=GUIDANCE, seeds="1000 + row of 50", judges=judges, named=named, reference=figures,
                        sites=groups, subtraction={str(k): v for k, v in scales.items()}),
        "training": dict(steps=train.STEPS, pictures=train.PICTURES, batch=train.BATCH),
    }
    with open(f"{FOLDER}/card.json", "w") as f:
        json.dump(card, f, indent=1)
    write_card(card)


def table(rows, columns):
    head = "| | " + " | ".join(columns) + " |\n|---|" + "---|" * len(columns) + "\n"
    return head + "".join(f"| {name} | " + " | ".join(str(row[c]) for c in columns) + " |\n" for name, row in rows.items())


def goals(card):
    """One line for each goal: reached or not, by the figures."""
    f = card["figures"]
    named, rows = f["named"], f["reference"]
    style = rows["style"]
    # The plain adapter at the scale whose style is nearest to style injection's.
    plain = min((n for n in rows if n.startswith("plain")), key=lambda n: abs(rows[n]["style"] - style["style"]))
    size = sum(os.path.getsize(os.path.join(d, n)) for d, _, names in os.walk(FOLDER) for n in names) / 1e6
    lines = [("content right for prompts that name content and style", named["content"], named["content"] >= 95, "95"),
             ("style right for prompts that name content and style", named["style"], named["style"] >= 95, "95"),
             ("content of the prompt under style injection", style["content"], style["content"] >= 90, "90"),
             ("style of the reference under style injection", style["style"], style["style"] >= 85, "85"),
             (f"leak under style injection ({plain} leaks {rows[plain]['leak']})", style["leak"],
              style["leak"] * 3 < rows[plain]["leak"], "under a third"),
             ("megabytes of the folder", round(size, 1), size < 25, "under 25")]
    return "Goals:\n\n" + "\n".join(f"- {what}: {got} (goal {goal}): {'reached' if met else '**not reached**'}"
                                     for what, got, met, goal in lines)


def write_card(card):
    f = card["figures"]
    columns = ["content", "style", "palette", "leak", "pictures"]
    named = f["named"]
    scales = f"## Subtraction everywhere, by scale\n\n{table(f['subtraction'], columns)}\n" if f["subtraction"] else ""
    text = f"""# The embedded model

A small family of the real architectures (an SDXL-shaped UNet, `AutoencoderKL`, a CLIP pair, an IP-Adapter), trained on a drawn
world of {len(card['contents'])} contents, {len(card['styles'])} styles and {len(card['colours'])} colours at 128x128 by `training/`. It is
there so that the program shows what it does anywhere and its tests measure behaviour. Its vocabulary is small: the contents are
{', '.join(card['contents'])}; the styles {', '.join(card['styles'])}; the colours {', '.join(card['colours'])}. Prompts read like
"a big star on the left, in neon style, red on blue".

{goals(card)}

All figures are percentages by judges trained apart on drawn pictures (right on 2000 held-out pictures: contents
{100 * f['judges']['contents']:.1f} %, style {100 * f['judges']['style']:.1f} %, both colours {100 * f['judges']['colours']:.1f} %), with
DDIM, {f['steps']} steps, guidance {f['guidance']}, seeds {f['seeds']}.

**Prompts that name content and style** ({named['pictures']} pictures): content right {named['content']}, style right {named['style']}.
See `sheets/named.jpg`.

## A prompt with one content, a reference with another

Content: the prompt's is there. Style and palette: the reference's. Leak: the reference's content appears. Sheet: `sheets/methods.jpg`
(references first, then the rows of this table).

{table(f['reference'], columns)}
## One group of sites at a time

The adapter at weight 1 in one group only. Sheet: `sheets/sites.jpg`. The presets follow from it: style =
{', '.join(card['presets']['style'])}; layout = {', '.join(card['presets']['layout'])}.

{table(f['sites'], columns)}
{scales}Training: {json.dumps(card['training'])}.
"""
    with open(f"{FOLDER}/CARD.md", "w") as out:
        out.write(text)


if __name__ == "__main__":
    with torch.no_grad():
        main()
