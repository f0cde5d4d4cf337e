"""Measures the trained model with judges that were trained apart from it, and writes the card.

`python measure.py --out run --pictures 500`. Seeds and counts are in the card. Latents once painted are kept in `run/rows`;
`--only` measures some rows and leaves the card, so that several processes can share the work.
"""

import argparse
import hashlib
import json
import os

import numpy as np
import torch
from PIL import Image

import export
import guided
import networks
import references
import train
import world

STEPS, GUIDANCE = 12, 2.0
HERE = os.path.dirname(os.path.abspath(__file__))
FOLDER = os.path.normpath(os.path.join(HERE, "../models/embedded"))
SHEETS = os.path.normpath(os.path.join(HERE, "../docs/embedded"))
GROUPS = ["down_blocks.1.attentions.0", "down_blocks.1.attentions.1", "down_blocks.2.attentions.0", "down_blocks.2.attentions.1",
          "mid_block", "up_blocks.0.attentions.0", "up_blocks.0.attentions.1", "up_blocks.0.attentions.2",
          "up_blocks.1.attentions.0", "up_blocks.1.attentions.1", "up_blocks.1.attentions.2"]


class Bench:
    """The model, the judges and a fixed list of prompts and references."""

    def __init__(self, out, pictures):
        self.out, self.n = out, pictures
        self.words = networks.WordTokens()
        text, vision, _ = train.load_clip(out)
        self.text, self.vision = export.rounded(text), export.rounded(vision, export.VISION_BITS)
        self.decoder = export.rounded_vae(train.load_vae(out))
        self.judge, = train.load(out, "judges", train.Judge())
        self.model = export.rounded(train.load_adapted(out))
        self.wanted = [i % 10 for i in range(pictures)]
        self.shown, self.scenes = references.scenes(pictures)
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

    def latents(self, prompts, spec, subtract=0., count=None):
        """Latents of the first `count` prompts, painted once and kept in the work folder."""
        count = count or self.n
        key = hashlib.sha256(json.dumps([prompts[:count], spec, subtract, STEPS, GUIDANCE]).encode()).hexdigest()[:16]
        path = f"{self.out}/rows/{key}.pt"
        if not os.path.exists(path):
            self.scale(spec)
            parts = []
            for i in range(0, count, 50):
                j = slice(i, min(i + 50, count))
                states, pooled = train.prompt(self.text, self.words, prompts[j])
                features = self.features[j] - subtract * self.contents[j]
                parts.append(train.sample(self.model, states, pooled, features, STEPS, GUIDANCE, seed=1000 + i))
            torch.save(torch.cat(parts).half(), path)
        return torch.load(path)

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
        by_style = {name: percent(b.argmax(1)[style == k] == k) for k, name in enumerate(world.STYLES) if (style == k).any()}
        return dict(by_style=by_style, content=percent((a.argmax(1) == wanted)), style=percent(b.argmax(1) == style),
                    palette=percent((c.view(n, 2, -1).argmax(2) == colours).all(1)),
                    leak=percent((a[row, shown] > 0) | (a.argmax(1) == shown)), pictures=n)

    def row(self, name, spec, subtract=0., count=None):
        """Figures of one way to use the references, and its first pictures."""
        latents = self.latents([f"a {world.CONTENTS[c]}" for c in self.wanted], spec, subtract, count)
        figures = self.once(latents, lambda x: self.judged(x))
        train.log(self.out, f"{name}: {figures}")
        return figures, train.decoded(self.decoder, latents[:12])

    def once(self, latents, judge):
        """What `judge` says of the pictures; kept in the work folder for these latents and this decoder."""
        parts = [latents, *self.decoder.state_dict().values()]
        key = hashlib.sha256(b"".join(p.contiguous().numpy().tobytes() for p in parts)).hexdigest()[:16]
        path = f"{self.out}/rows/{key}.json"
        if not os.path.exists(path):
            with open(path + ".part", "w") as f:
                json.dump(judge(train.decoded(self.decoder, latents)), f)
            os.replace(path + ".part", path)
        with open(path) as f:
            return json.load(f)

    def named(self):
        """Prompts that name content and style, no reference: content and style right."""
        styles = torch.tensor([(i // 10 + i) % 12 for i in range(self.n)])
        latents = self.latents([f"a {world.CONTENTS[c]}, in {world.STYLES[s]} style" for c, s in zip(self.wanted, styles)], 0.)
        percent = lambda right: round(100 * float(right.float().mean()), 1)

        def judge(x):
            parts = [self.judge(x[i:i + 100]) for i in range(0, len(x), 100)]
            a, b, _ = (torch.cat(p) for p in zip(*parts))
            content, style = a.argmax(1) == torch.tensor(self.wanted), b.argmax(1) == styles
            by_style = {name: dict(content=percent(content[styles == k]), style=percent(style[styles == k]), pictures=int((styles == k).sum()))
                        for k, name in enumerate(world.STYLES)}
            return dict(content=percent(content), style=percent(style), by_style=by_style, pictures=self.n)

        figures = self.once(latents, judge)
        train.log(self.out, f"prompts naming content and style: {figures}")
        return figures, train.decoded(self.decoder, latents[:48])


def sheet(pictures, name):
    """Contact sheet of 12 columns, small: it stays in the repository's history."""
    path = f"{SHEETS}/{name}.jpg"
    train.grid(pictures, 12, path)
    picture = Image.open(path)
    picture.resize((picture.width // 2, picture.height // 2), Image.LANCZOS).save(path, quality=60, optimize=True)


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--out", default="run")
    arguments.add_argument("--pictures", type=int, default=500, help="pictures of a row")
    arguments.add_argument("--group-pictures", type=int, default=100, help="pictures of a row of the site study")
    arguments.add_argument("--only", nargs="+", help="measure these rows, or `sites`, and stop")
    a = arguments.parse_args()
    os.makedirs(SHEETS, exist_ok=True), os.makedirs(f"{a.out}/rows", exist_ok=True)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count())))
    bench = Bench(a.out, a.pictures)
    if not a.only or "named" in a.only:
        named, pictures = bench.named()
        sheet(pictures, "named")
    if not a.only or "sites" in a.only:
        groups, presets, scales, subtract = study(bench, a.group_pictures)
        with open(f"{a.out}/presets.json", "w") as f:
            json.dump((presets, subtract), f)
    elif os.path.exists(f"{a.out}/presets.json"):
        with open(f"{a.out}/presets.json") as f:
            presets, subtract = json.load(f)
    else:
        presets, subtract = dict.fromkeys(("style", "layout", "style+layout")), 0.
    rows = {"no adapter": (0., 0.), "plain adapter, 0.4": (.4, 0.), "plain adapter, 0.7": (.7, 0.), "plain adapter, 1.0": (1., 0.),
            "style": (presets["style"], 0.), "style+layout": (presets["style+layout"], 0.), "layout": (presets["layout"], 0.),
            f"subtraction, {subtract}": (1., subtract), f"style + subtraction, {subtract}": (presets["style"], subtract)}
    figures, pictures = {}, [networks.pixels(bench.references[:12])]
    for name, (spec, scale) in rows.items():
        if not a.only or name in a.only:
            figures[name], x = bench.row(name, spec, scale)
            pictures.append(x)
    if a.only:
        return
    sheet(torch.cat(pictures), "methods")
    with open(f"{a.out}/judges.json") as f:
        judges = json.load(f)
    card = {
        "name": "embedded", "license": "MIT OR Apache-2.0",
        "contents": world.CONTENTS, "styles": world.STYLES, "colours": world.COLOURS,
        "defaults": dict(width=128, height=128, steps=20, guidance=GUIDANCE, sampler="ddim", subtract_scale=subtract),
        "presets": presets,
        "b_lora": guided.PARTS,
        "demo": {"prompt": "a house", "seed": 11, "references": [
            {"image": f"references/{s}-{c}.png", "content": f"a {c}", "style": s} for c, s in export.REFERENCES]},
        "figures": dict(steps=STEPS, guidance=GUIDANCE, seeds="1000 + row of 50", judges=judges, named=named, reference=figures,
                        sites=groups, subtraction={str(k): v for k, v in scales.items()}),
        "training": dict(steps=train.STEPS, pictures=train.PICTURES, batch=train.BATCH),
    }
    with open(f"{FOLDER}/card.json", "w") as f:
        json.dump(card, f, indent=1)
    write_card(card)


def study(bench, count):
    """The adapter at weight 1 in one group of sites at a time, and what follows from it: the presets, and the scale of subtraction.
    Style: the groups that bring the reference's style and leave the prompt's content, the best first, for as long as it gets
    better. Layout: where the reference's content comes through and the prompt's goes."""
    groups, pictures = {}, [networks.pixels(bench.references[:12])]
    for name, spec in {"no adapter": 0., "everywhere": 1., **{g: {g: 1.} for g in GROUPS}}.items():
        groups[name], x = bench.row(f"site {name}", spec, count=count)
        pictures.append(x)
    sheet(torch.cat(pictures), "sites")
    base = groups["no adapter"]
    gain = {g: groups[g]["style"] - base["style"] for g in GROUPS}
    leak = {g: groups[g]["leak"] - base["leak"] for g in GROUPS}
    ranked = sorted(GROUPS, key=lambda g: gain[g] - 2 * max(leak[g], 0), reverse=True)
    style, best = [], None
    for g in ranked[:3]:
        tried, _ = bench.row("set " + " ".join([*style, g]), {k: 1. for k in [*style, g]}, count=count)
        score = tried["style"] - 2 * tried["leak"] + tried["content"] + tried["palette"] / 2
        if best is None or score > best + 5:  # less is chance, over so few pictures
            style, best = [*style, g], score
        else:
            break
    layout = max((g for g in GROUPS if g not in style), key=lambda g: leak[g] + base["content"] - groups[g]["content"])
    presets = {"style": {g: 1. for g in style}, "layout": {layout: 1.}, "style+layout": {g: 1. for g in [layout, *style]}}
    # The scale of subtraction that keeps most of the style for the least leak.
    scales = {s: bench.row(f"subtract {s}", 1., s, count)[0] for s in (.25, .5, .75, 1.)}
    subtract = max(scales, key=lambda s: scales[s]["style"] + scales[s]["content"] - scales[s]["leak"])
    return groups, presets, scales, subtract


def weak(card):
    """What is weak, in words; the styles from the figures of named prompts."""
    by, rows = card["figures"]["named"]["by_style"], card["figures"]["reference"]
    below = lambda what: ", ".join(f"{s} ({f[what]})" for s, f in by.items() if f[what] < 85) or "none"
    subtraction = next(n for n in rows if n.startswith("subtraction"))
    shown = sorted((v, k) for k, v in rows["style"]["by_style"].items() if v < 85)
    return f"""What is weak:

- Front and back often come out in colours that lie near each other where the prompt names none, and the content is hard to tell then. Named
  contents below 85 %: {below("content")}.
- Fine patterns mix: flat areas get a trace of a checker, stitches lose their crosses, pixels glow like neon. Named styles below 85 %:
  {below("style")}; with a reference, by style injection, {", ".join(f"{k} ({v})" for v, k in shown)}.
- The reference's colours are not taken over by any row (palette).
- Subtraction does harm here: the reference's content comes out more often with it ({rows[subtraction]["leak"]} % at {subtraction.split(", ")[1]}) than
  without ({rows["plain adapter, 1.0"]["leak"]} %), and the prompt's less."""


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

{weak(card)}

All figures are percentages by judges trained apart on drawn pictures (right on 2000 held-out pictures: contents
{100 * f['judges']['contents']:.1f} %, style {100 * f['judges']['style']:.1f} %, both colours {100 * f['judges']['colours']:.1f} %), with
DDIM, {f['steps']} steps, guidance {f['guidance']}, seeds {f['seeds']}, by `training/measure.py`.
The same measured by the program itself, in f32, bf16 and int8 and with other samplers (`cargo bench -p instantstyle-engine --bench figures`), is in
`benches/README.md`.

**Prompts that name content and style** ({named['pictures']} pictures): content right {named['content']}, style right {named['style']}.
See `docs/embedded/named.jpg`.

{table(named["by_style"], ["content", "style", "pictures"])}
## A prompt with one content, a reference with another

Content: the prompt's is there. Style and palette: the reference's (both colours). Leak: the reference's content appears.
Sheet: `docs/embedded/methods.jpg` (references first, then the rows of this table). The palette is not taken from the reference by any row.

{table(f['reference'], columns)}
## One group of sites at a time

The adapter at weight 1 in one group only. Sheet: `docs/embedded/sites.jpg`. The presets follow from it: style =
{', '.join(card['presets']['style'])}; layout = {', '.join(card['presets']['layout'])}.

{table(f['sites'], columns)}
{scales}Companions of `training/guided.py`: a canny Control-LoRA in `controls/`, LoRAs in `loras/`, drawings to use them on in `drawings/`;
their figures, measured by the program itself (`crates/engine/tests/behaviour/guided.rs`), are in `guided.json`.

Training, by the recipe: {json.dumps(card['training'])}. `training/README.md` says what this model went through.
"""
    with open(f"{FOLDER}/CARD.md", "w") as out:
        out.write(text)


if __name__ == "__main__":
    with torch.no_grad():
        main()
