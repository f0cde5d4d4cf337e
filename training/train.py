"""Trains the embedded model from nothing: `python train.py all --out run`. Every stage resumes from its checkpoint.

Stages: vae, clip, vision, judges, latents, decoder, unet, polish, adapter, distil, export; `restore` starts from an exported model.
Budgets are in steps; README.md says which made the published model.
"""

import argparse
import copy
import json
import math
import os
import shutil
import time

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file

import networks
import world

STEPS = dict(vae=8500, clip=1000, vision=2000, judges=3500, decoder=4300, unet=12000, polish=1200, adapter=3500, distil=500)
PICTURES = 24000
# Of the decoder, what changes least: it stays as it was, so that a repository can keep the difference of two models only.
KEPT = ("decoder.conv_in", "decoder.mid_block.attentions", "decoder.mid_block.resnets.0", "decoder.up_blocks.0.upsamplers")
REPAINTED = 2400  # of them, those that the decoder learns from at last
BATCH = 32  # of the UNet and the adapter
# Deviations of the latents' channels as the UNet sees them: where the content is (flat, first and second order), the look.
GAINS = [1., .8, .8, .5, .6, .6] + [.8] * 6
# Where the adapter learns. The published UNet reads its text there alone: elsewhere, with other words or none, its error stays the
# same. Empty for everywhere.
SITES = "up_blocks.1."
STYLE_SITE = "up_blocks.1.attentions.1."  # of them, the one that says the look
WEIGHTS = dict(flat=2., checker=2., pixel=2., stitch=2., blueprint=1.5, pointillism=1.5)  # styles that an adapter learns last, drawn more often
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def autocast():
    return torch.autocast(DEVICE, torch.bfloat16)


def log(out, line):
    print(line, flush=True)
    with open(f"{out}/log.txt", "a") as f:
        f.write(line + "\n")


def loop(out, name, modules, loss, lr, steps, weight_decay=1e-3):
    """AdamW with warm-up and cosine decay and an exponential average, checkpointed; returns the averaged modules."""
    modules = nn.ModuleList(modules).to(DEVICE)
    parameters = [p for p in modules.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay, betas=(.9, .99))
    average, start, spent = copy.deepcopy(modules).requires_grad_(False), 0, 0.
    path = f"{out}/{name}.ckpt"
    if os.path.exists(path):
        c = torch.load(path, map_location=DEVICE)
        average.load_state_dict(c["average"])
        if "optimiser" not in c:  # restored from an exported model: nothing to go on with
            return average.eval()
        modules.load_state_dict(c["modules"])
        optimiser.load_state_dict(c["optimiser"])
        start, spent = c["step"], c["seconds"]
        torch.set_rng_state(c["rng"])
    began, total = time.time() - spent, 0.

    def save(step):
        torch.save(dict(modules=modules.state_dict(), average=average.state_dict(), optimiser=optimiser.state_dict(),
                        step=step, seconds=time.time() - began, rng=torch.get_rng_state()), path + ".part")
        os.replace(path + ".part", path)

    for step in range(start, steps):
        for group in optimiser.param_groups:
            group["lr"] = lr * min(1, (step + 1) / 100) * (.51 + .49 * math.cos(math.pi * step / steps))
        value = loss(np.random.default_rng((step, len(name))))
        optimiser.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(parameters, 1.)
        optimiser.step()
        with torch.no_grad():
            keep = min(.998, (step + 1) / (step + 10))
            torch._foreach_lerp_(list(average.parameters()), list(modules.parameters()), 1 - keep)
            for a, b in zip(average.buffers(), modules.buffers()):
                a.copy_(b)
        total += float(value.detach())
        if (step + 1) % 50 == 0:
            log(out, f"{name} {step + 1}/{steps} loss {total / 50:.4f} {time.time() - began:.0f} s")
            total = 0.
        if (step + 1) % 250 == 0 or step + 1 == steps:
            save(step + 1)
    return average.eval()


class Data:
    """The training pictures, drawn once; scene i of seed 0 is always the same."""

    def __init__(self, out):
        path = f"{out}/pictures.npy"
        rng = np.random.default_rng(0)
        seeds = rng.integers(0, 2**31, PICTURES)
        self.scenes = [world.Scene(np.random.default_rng(s)) for s in seeds]
        if not os.path.exists(path):
            pictures = np.stack([s.draw() for s in self.scenes])
            np.save(path + ".part.npy", pictures)
            os.replace(path + ".part.npy", path)
        self.pictures = np.load(path, mmap_mode="r")


def load(out, name, *modules):
    nn.ModuleList(modules).load_state_dict(torch.load(f"{out}/{name}.ckpt", map_location=DEVICE)["average"])
    return [m.to(DEVICE).eval().requires_grad_(False) for m in modules]


def grid(pictures, columns, path):
    """-1..1 [n, 3, h, w] as one PNG."""
    g = pictures.float().clamp(-1, 1).add(1).mul(127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    rows = [np.concatenate(g[i:i + columns], 1) for i in range(0, len(g), columns)]
    Image.fromarray(np.concatenate(rows)).save(path)


def silhouettes(data, out):
    """What the shape channels of the latents are to say: the six lowest DCT coefficients of the content's coverage in each
    8x8 cell, each with a deviation of 1 over the world; f32 [pictures, 6, 16, 16]."""
    path = f"{out}/silhouettes.npy"
    if not os.path.exists(path):
        i, u = np.arange(8), np.arange(3)
        cosines = np.cos((2 * i[None] + 1) * u[:, None] * np.pi / 16)
        basis = np.stack([np.outer(cosines[a], cosines[b]) for a, b in ((0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (2, 0))])
        rows = []
        for s in data.scenes:
            cells = s.mask().reshape(16, 8, 16, 8).transpose(0, 2, 1, 3)
            rows.append(np.einsum("yxij,cij->cyx", cells, basis / 64).astype(np.float32))
        rows = np.stack(rows)
        rows = (rows - rows.mean((0, 2, 3), keepdims=True)) / rows.std((0, 2, 3), keepdims=True)
        np.save(path + ".part.npy", rows)
        os.replace(path + ".part.npy", path)
    return np.load(path, mmap_mode="r")


class Look(nn.Module):
    """Reads style and hues from the other channels' mean; a companion of the autoencoder while it learns, dropped after."""

    def __init__(self):
        super().__init__()
        self.style = nn.Linear(networks.LATENT_CHANNELS - networks.SHAPE_CHANNELS, len(world.STYLES))
        self.hues = nn.Linear(networks.LATENT_CHANNELS - networks.SHAPE_CHANNELS, 4)


def vae(out, steps):
    """Absolute, squared and gradient error, a whiff of KL, and an order in the latents that spares the small UNet most of
    its work: the first channels say where the content is, whatever the style; the others say style and hues, as
    evenly as they can."""
    data, model, look = Data(out), networks.build_vae().to(memory_format=torch.channels_last), Look()
    shapes, k = silhouettes(data, out), networks.SHAPE_CHANNELS
    hues = torch.tensor([s.hues for s in data.scenes], dtype=torch.float32).deg2rad()
    hues = torch.cat([hues.cos(), hues.sin()], 1)
    styles = torch.tensor([world.STYLES.index(s.style) for s in data.scenes])

    def loss(rng):
        i = np.sort(rng.integers(0, PICTURES, 5))
        b = networks.pixels(data.pictures[i], DEVICE).contiguous(memory_format=torch.channels_last)
        with autocast():
            d = model.encode(b).latent_dist
            z = d.sample()
            z = z + .05 * float(rng.random()) * torch.randn_like(z) * z.detach().std((0, 2, 3), keepdim=True)
            r = model.decode(z).sample
        r, m, v = r.float(), d.mean.float(), d.logvar.float()
        e = r - b
        edges = (e[..., 1:] - e[..., :-1]).abs().mean() + (e[..., 1:, :] - e[..., :-1, :]).abs().mean()
        shape = F.mse_loss(m[:, :k], torch.from_numpy(shapes[i]).to(DEVICE))
        g = m[:, k:]
        seen = g.mean((2, 3))
        order = (F.cross_entropy(look.style(seen), styles[i].to(DEVICE)) * .05 + F.mse_loss(look.hues(seen), hues[i].to(DEVICE)) * .2
                 + .02 * (g - seen[..., None, None]).square().mean() + .01 * seen.square().mean())
        parts["rebuilt"].append(float(e.detach().square().mean())), parts["shape"].append(float(shape.detach()))
        parts["order"].append(float(order.detach()))
        if len(parts["shape"]) == 200:
            log(out, "vae: " + ", ".join(f"{n} {np.mean(p):.4f}" for n, p in parts.items()))
            [p.clear() for p in parts.values()]
        return e.abs().mean() + (e * e).mean() + .3 * edges + 1e-4 * (m * m + v.exp() - 1 - v).mean() + .5 * shape + order

    parts = dict(rebuilt=[], shape=[], order=[])
    model, _ = loop(out, "vae", [model, look], loss, 2e-3, steps)
    with torch.no_grad():
        b = networks.pixels(data.pictures[:24], DEVICE)
        r = model.decode(model.encode(b).latent_dist.mean).sample
        grid(torch.cat([b[:12], r[:12], b[12:], r[12:]]), 12, f"{out}/vae.png")
        log(out, f"vae mse {float(F.mse_loss(r.clamp(-1, 1), b)):.5f}")


def clip_pixels(pictures):
    """What CLIP's preprocessing makes of a 128x128 picture: 64x64 bicubic, normalised."""
    small = np.stack([np.asarray(Image.fromarray(p).resize((64, 64), Image.BICUBIC)) for p in pictures])
    x = torch.from_numpy(small).to(DEVICE).permute(0, 3, 1, 2).float() / 255
    return (x - torch.tensor(networks.CLIP_MEAN, device=DEVICE).view(3, 1, 1)) / torch.tensor(
        networks.CLIP_STD, device=DEVICE).view(3, 1, 1)


def clip(out, steps):
    """Contrastive training of both towers. Captions come whole and in parts, so that "a star" alone has a feature; a
    gentle pull gives features of both towers one norm, since InstantStyle subtracts them un-normalised."""
    data, words = Data(out), networks.WordTokens()
    text, vision = networks.build_text(), networks.build_vision()
    scale = nn.ParameterList([nn.Parameter(torch.tensor(2.))])

    def loss(rng):
        i = np.sort(rng.integers(0, PICTURES, 96))
        keep = rng.random((96, 3)) < .75
        keep[~keep.any(1)] = True
        ids = words([data.scenes[j].caption(*k) for j, k in zip(i, keep)]).to(DEVICE)
        with autocast():
            a = vision(pixel_values=clip_pixels(data.pictures[i])).image_embeds.float()
            b = text(input_ids=ids).text_embeds.float()
        norm = ((a.norm(dim=-1) - 8) ** 2 + (b.norm(dim=-1) - 8) ** 2).mean()
        logits = F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).T * scale[0].exp()
        y = torch.arange(96, device=DEVICE)
        return (F.cross_entropy(logits, y) + F.cross_entropy(logits.T, y)) / 2 + 1e-3 * norm

    loop(out, "clip", [text, vision, scale], loss, 1e-3, steps)


class Seen(nn.Module):
    """What the image tower is to know of a picture: contents, style and colours from its feature, where the content is from the
    patches half way, contents from the last ones; a companion while it learns, dropped after."""

    def __init__(self):
        super().__init__()
        self.contents = nn.Linear(networks.WIDTH, len(world.CONTENTS))
        self.style = nn.Linear(networks.WIDTH, len(world.STYLES))
        self.colours = nn.Linear(networks.WIDTH, 2 * len(world.COLOURS))
        self.cells = nn.Linear(networks.WIDTH, 4 * networks.SHAPE_CHANNELS)
        self.patches = nn.Linear(networks.WIDTH, len(world.CONTENTS))
        self.scale = nn.Parameter(torch.tensor(2.))

    def error(self, feature, early, late, contents, style, colours, shapes):
        n = len(feature)
        hues = self.colours(feature).view(n, 2, -1)
        cells = self.cells(early).view(n, 8, 8, 2, 2, -1).permute(0, 5, 1, 3, 2, 4).reshape(shapes.shape)
        share = contents / contents.sum(1, keepdim=True)
        return (F.cross_entropy(self.contents(feature), share) + F.cross_entropy(self.patches(late).mean(1), share)
                + .3 * F.cross_entropy(self.style(feature), style) + .3 * F.cross_entropy(hues.flatten(0, 1), colours.flatten())
                + F.mse_loss(cells, shapes))


def vision(out, steps):
    """The image tower learns on, the text tower's projection with it (the states that the UNet reads stay). Told apart within a
    batch, pictures need style and colours only: after `clip` a linear reading of the features found 17 % of the contents."""
    data, words = Data(out), networks.WordTokens()
    text, tower, _ = load_clip(out)
    tower.requires_grad_(True), text.text_projection.requires_grad_(True)
    seen = Seen()
    shapes = silhouettes(data, out)
    contents, style, colours = labels(data.scenes)

    def loss(rng):
        i = np.sort(rng.integers(0, PICTURES - 2000, 64))
        keep = rng.random((64, 3)) < .5
        keep[~keep.any(1), 0] = True
        captions = [data.scenes[j].caption(*k) for j, k in zip(i, keep)]
        with autocast():
            o = tower(pixel_values=clip_pixels(data.pictures[i]), output_hidden_states=True)
            a, early, late = o.image_embeds.float(), o.hidden_states[2][:, 1:].float(), o.last_hidden_state[:, 1:].float()
            b = text(input_ids=words(captions).to(DEVICE)).text_embeds.float()
        norm = ((a.norm(dim=-1) - 8) ** 2 + (b.norm(dim=-1) - 8) ** 2).mean()
        logits = F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).T * seen.scale.exp()
        # A caption in parts is true of several pictures.
        true = torch.tensor([[set(c.split(", ")) <= set(data.scenes[j].caption().split(", ")) for c in captions] for j in i]).float().to(DEVICE)
        pairs = -((true / true.sum(1, keepdim=True) * logits.log_softmax(1)).sum() + (true / true.sum(0) * logits.log_softmax(0)).sum()) / 128
        return .3 * pairs + 1e-3 * norm + seen.error(a, early, late, contents[i], style[i], colours[i], torch.from_numpy(shapes[i]).to(DEVICE))

    text, tower, seen = loop(out, "vision", [text, tower, seen], loss, 1e-3, steps)
    with torch.no_grad():
        a = torch.cat([tower(pixel_values=clip_pixels(data.pictures[i:i + 250])).image_embeds for i in range(PICTURES - 2000, PICTURES, 250)])
        s, c, h = seen.style(a), seen.contents(a), seen.colours(a).view(2000, 2, -1)
        log(out, f"vision on 2000 held-out pictures: a content {float(contents[-2000:].gather(1, c.argmax(1, keepdim=True)).mean()):.3f} "
                 f"style {float((s.argmax(1) == style[-2000:]).float().mean()):.3f} "
                 f"colours {float((h.argmax(2) == colours[-2000:]).all(1).float().mean()):.3f}")


class Judge(nn.Module):
    """Tells contents (several may be there), style and the two colours of a picture. Trained on drawn pictures only, sharp
    and softened, apart from everything that it judges."""

    def __init__(self):
        super().__init__()
        widths = [3, 24, 48, 96, 128, 160]
        layers = []
        for a, b in zip(widths, widths[1:]):
            layers += [nn.Conv2d(a, b, 3, 2, 1), nn.BatchNorm2d(b), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.contents = nn.Sequential(nn.Linear(160 * 16, 192), nn.ReLU(), nn.Linear(192, len(world.CONTENTS)))
        self.style = nn.Linear(160, len(world.STYLES))
        self.colours = nn.Linear(160 * 16, 2 * len(world.COLOURS))

    def forward(self, x):
        h = self.features(x)
        return self.contents(h.flatten(1)), self.style(h.mean((2, 3))), self.colours(h.flatten(1))


def labels(scenes):
    contents = torch.tensor([[float(c in s.contents) for c in world.CONTENTS] for s in scenes])
    style = torch.tensor([world.STYLES.index(s.style) for s in scenes])
    colours = torch.tensor([[world.COLOURS.index(c) for c in s.colours] for s in scenes])
    return contents.to(DEVICE), style.to(DEVICE), colours.to(DEVICE)


def blurred(x, sigma):
    """Gaussian blur by `sigma` pixels: decoders are softer than the drawing, which must not decide what is seen."""
    k = torch.exp(-(torch.arange(-4, 5, device=x.device) / max(sigma, .1)) ** 2 / 2)
    k = (k / k.sum()).repeat(3, 1, 1, 1)
    return F.conv2d(F.conv2d(x, k, padding=(0, 4), groups=3), k.transpose(2, 3), padding=(4, 0), groups=3)


def judges(out, steps):
    data, model = Data(out), Judge()
    held = PICTURES - 2000

    def loss(rng):
        i = np.sort(rng.integers(0, held, 64))
        contents, style, colours = labels([data.scenes[j] for j in i])
        x = blurred(networks.pixels(data.pictures[i], DEVICE), 1.3 * float(rng.random()))
        x = x + torch.randn_like(x) * .1 * float(rng.random())
        a, b, c = model(x)
        c = c.view(-1, 2, len(world.COLOURS))
        return (F.binary_cross_entropy_with_logits(a, contents) * 6 + F.cross_entropy(b, style)
                + F.cross_entropy(c[:, 0], colours[:, 0]) + F.cross_entropy(c[:, 1], colours[:, 1]))

    model.train()
    model, = loop(out, "judges", [model], loss, 2e-3, steps)
    judge_figures(out, data, model)


@torch.no_grad()
def judge_figures(out, data, model):
    """How often the judge is right about pictures that it has not learnt from."""
    held = PICTURES - 2000
    contents, style, colours = labels(data.scenes[held:])
    parts = [model(networks.pixels(data.pictures[i:i + 250], DEVICE)) for i in range(held, PICTURES, 250)]
    a, b, c = (torch.cat(p) for p in zip(*parts))
    c = c.view(-1, 2, len(world.COLOURS)).argmax(2)
    figures = dict(contents=float(((a > 0) == (contents > 0)).all(1).float().mean()),
                   style=float((b.argmax(1) == style).float().mean()),
                   colours=float((c == colours).all(1).float().mean()))
    log(out, f"judges on 2000 held-out pictures: {json.dumps(figures)}")
    with open(f"{out}/judges.json", "w") as f:
        json.dump(figures, f)


@torch.no_grad()
def latents(out, _):
    """Latents of all training pictures, computed once, and the autoencoder with its latents' means and
    deviations folded into the 1x1 convolutions on both sides, so that every channel has mean 0 and its own gain."""
    data = Data(out)
    model, _ = load(out, "vae", networks.build_vae(), Look())
    z = encoded(data, model)
    mean, scale = z.mean((0, 2, 3)), torch.tensor(GAINS, device=DEVICE) / z.std((0, 2, 3))
    log(out, f"latent deviations {[round(float(v), 3) for v in z.std((0, 2, 3))]}")
    n, q, p = networks.LATENT_CHANNELS, model.quant_conv, model.post_quant_conv
    q.weight[:n] *= scale[:, None, None, None]
    q.bias[:n] = (q.bias[:n] - mean) * scale
    q.bias[n:] += 2 * scale.log()
    p.bias += p.weight[:, :, 0, 0] @ mean
    p.weight /= scale[None, :, None, None]
    z = (z - mean[:, None, None]) * scale[:, None, None]
    torch.save(dict(average=nn.ModuleList([model]).state_dict()), f"{out}/decoder.start")
    torch.save(dict(z=z.half().cpu()), f"{out}/latents.pt")


def drawing_error(model, latents, pictures):
    b = networks.pixels(pictures, DEVICE).contiguous(memory_format=torch.channels_last)
    with autocast():
        e = model.decode(latents.to(DEVICE)).sample.float() - b
    edges = (e[..., 1:] - e[..., :-1]).abs().mean() + (e[..., 1:, :] - e[..., :-1, :]).abs().mean()
    return e.abs().mean() + 3 * (e * e).mean() + .5 * edges


def decoder(out, steps):
    """The encoder stays; the decoder learns on, from latents as the UNet leaves them: with some noise, and paler, the hues nearer
    to their style's mean. Fine patterns, which come out last, are drawn more often."""
    data, model = Data(out), networks.build_vae()
    nn.ModuleList([model]).load_state_dict(torch.load(f"{out}/decoder.start", map_location=DEVICE)["average"])
    model.encoder.requires_grad_(False), model.quant_conv.requires_grad_(False)
    model.to(memory_format=torch.channels_last)
    z, k = torch.load(f"{out}/latents.pt", mmap=True)["z"], networks.SHAPE_CHANNELS
    style = np.array([world.STYLES.index(s.style) for s in data.scenes])
    means = torch.stack([z[:4000][torch.from_numpy(style[:4000] == c)][:, k:].float().mean((0, 2, 3)) for c in range(len(world.STYLES))])
    fine = np.flatnonzero(np.isin(style, [world.STYLES.index(c) for c in ("blueprint", "halftone", "stitch")]))

    def loss(rng):
        i = np.sort(np.concatenate([rng.integers(0, PICTURES, 3), rng.choice(fine, 3)]))
        x = z[i].float()
        pale = torch.from_numpy(.5 * rng.random((6, 1)).astype(np.float32) ** 2) * (means[style[i]] - x[:, k:].mean((2, 3)))
        x[:, k:] += pale[:, :, None, None]
        return drawing_error(model, x + .1 * float(rng.random()) * torch.randn_like(x), data.pictures[i])

    model, = loop(out, "decoder", [model], loss, 1.5e-3, steps)
    with torch.no_grad():
        b, r = networks.pixels(data.pictures[:24], DEVICE), model.decode(z[:24].float().to(DEVICE)).sample
        grid(torch.cat([b[:12], r[:12], b[12:], r[12:]]), 12, f"{out}/decoder.png")
        log(out, f"decoder mse {float(F.mse_loss(r.clamp(-1, 1), b)):.5f}")


@torch.no_grad()
def restore(out, folder):
    """Checkpoints of the first stages from an exported folder, and its latents, so that the later ones can go on from there."""
    data = Data(out)
    model = networks.build_vae().from_pretrained(f"{folder}/vae").float().to(DEVICE)
    text = type(networks.build_text()).from_pretrained(f"{folder}/text_encoder_2").float()
    vision = type(networks.build_vision()).from_pretrained(f"{folder}/image_encoder").float().to(DEVICE)
    backbone = networks.build_unet().from_pretrained(f"{folder}/unet").float()
    scale = nn.ParameterList([nn.Parameter(torch.tensor(2.))])
    for name, modules in {"decoder.start": [model], "clip.ckpt": [text, vision, scale], "unet.ckpt": [backbone]}.items():
        torch.save(dict(average=nn.ModuleList(modules).state_dict()), f"{out}/{name}")
    shutil.copy(f"{folder}/ip-adapter.safetensors", f"{out}/adapter.start")
    z = encoded(data, model)
    log(out, f"means {[round(float(v), 2) for v in z.mean((0, 2, 3))]} deviations {[round(float(v), 2) for v in z.std((0, 2, 3))]}")
    torch.save(dict(z=z.half().cpu()), f"{out}/latents.pt")
    restore_judge(out, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../testkit/fixtures/judge.safetensors"))


@torch.enable_grad()
def restore_judge(out, path):
    """The exported judge. Its heads for contents and style are as they were; that for colours, which the export leaves out, is
    fitted anew on the features as they are."""
    data, model, tensors = Data(out), Judge().to(DEVICE).eval(), load_file(path)
    state = {k: v.float() for k, v in tensors.items() if not k.startswith("answer")}
    for i, (c, n) in enumerate(zip(model.features[0::3], model.features[1::3])):  # the norms are in the convolutions
        c.load_state_dict({k: state.pop(f"features.{2 * i}.{k}") for k in ("weight", "bias")})
        n.running_var.fill_(1 - n.eps)
    model.load_state_dict(state, strict=False)
    model.requires_grad_(False)
    colours, rng = labels(data.scenes)[2], np.random.default_rng(0)
    features = []
    for i in range(0, PICTURES, 100):
        x = networks.pixels(data.pictures[i:i + 100], DEVICE)
        features.append(model.features(x if i >= PICTURES - 2000 else blurred(x, 1.3 * float(rng.random()))).flatten(1))
    features, head = torch.cat(features), model.colours.requires_grad_(True)
    optimiser = torch.optim.AdamW(head.parameters(), lr=2e-3, weight_decay=.05)
    for step in range(1500):
        i = torch.from_numpy(rng.integers(0, PICTURES - 2000, 256))
        loss = F.cross_entropy(head(features[i]).view(512, -1), colours[i].flatten())
        optimiser.zero_grad(), loss.backward(), optimiser.step()
    torch.save(dict(average=nn.ModuleList([model]).state_dict()), f"{out}/judges.ckpt")
    judge_figures(out, data, model)


def encoded(data, model):
    """Latents of all training pictures."""
    with autocast():
        return torch.cat([model.encode(networks.pixels(data.pictures[i:i + 50], DEVICE)).latent_dist.mean.float()
                          for i in range(0, PICTURES, 50)])


def load_vae(out):
    """The finished autoencoder; its scaling factor is 1."""
    path = next(p for p in ("polish.ckpt", "decoder.ckpt", "decoder.start") if os.path.exists(f"{out}/{p}"))
    model = networks.build_vae()
    nn.ModuleList([model]).load_state_dict(torch.load(f"{out}/{path}", map_location=DEVICE)["average"])
    return model.to(DEVICE).eval().requires_grad_(False)


def load_clip(out):
    """Text tower, image tower and their companion (in training only)."""
    modules = [networks.build_text(), networks.build_vision()]
    if os.path.exists(f"{out}/vision.ckpt"):
        return load(out, "vision", *modules, Seen())
    return load(out, "clip", *modules, nn.ParameterList([nn.Parameter(torch.tensor(2.))]))


@torch.no_grad()
def prompt(text, words, captions):
    """What SDXL takes of a prompt: the penultimate states and the pooled feature; zeros for an empty one."""
    o = text(input_ids=words(captions).to(DEVICE), output_hidden_states=True)
    some = torch.tensor([float(bool(c)) for c in captions], device=DEVICE)
    return o.hidden_states[-2] * some[:, None, None], o.text_embeds * some[:, None]


def added(pooled):
    return dict(text_embeds=pooled, time_ids=torch.tensor([[128., 128, 0, 0, 128, 128]], device=DEVICE).repeat(len(pooled), 1))


def noisy_timesteps(rng, n):
    """Denser where the shapes are decided: the upper two thirds of the noise get most of the steps."""
    return torch.from_numpy((rng.beta(1.2, 1.0, n) * 1000).astype(np.int64)).clamp(0, 999).to(DEVICE)


def caption_parts(rng):
    """Which parts of its caption a picture is trained with: content, style, colours; often the content alone."""
    r = rng.random()
    return (True, False, False) if r < .3 else (True, True, False) if r < .5 else (True, False, True) if r < .55 else (True, True, True)


def pooled_parts(rng, parts):
    """Which parts of the caption the pooled feature is of. Mostly the content alone or nothing (None): given the whole
    caption there, the network would take the look from it alone, and leave nothing for cross-attention, through which
    an IP-Adapter speaks, to do."""
    r = rng.random()
    return None if r < .3 else (True, False, False) if r < .8 else parts


def unet(out, steps):
    data, words, cached = Data(out), networks.WordTokens(), torch.load(f"{out}/latents.pt")
    text, _, _ = load_clip(out)
    z, model, schedule = cached["z"].float(), networks.build_unet().to(memory_format=torch.channels_last), networks.noise_schedule()

    def loss(rng):
        i = np.sort(rng.integers(0, PICTURES, BATCH))
        parts = [None if rng.random() < .1 else caption_parts(rng) for _ in i]
        caption = lambda j, p: data.scenes[j].caption(*p) if p else ""
        states, _ = prompt(text, words, [caption(j, p) for j, p in zip(i, parts)])
        _, pooled = prompt(text, words, [caption(j, p and pooled_parts(rng, p)) for j, p in zip(i, parts)])
        x = z[i].to(DEVICE).contiguous(memory_format=torch.channels_last)
        noise, t = torch.randn_like(x), noisy_timesteps(rng, BATCH)
        with autocast():
            o = model(schedule.add_noise(x, noise, t), t, states, added_cond_kwargs=added(pooled)).sample
        return F.mse_loss(o.float(), schedule.get_velocity(x, noise, t))

    loop(out, "unet", [model], loss, 1.5e-3, steps)
    samples(out)


@torch.no_grad()
def samples(out):
    """One picture for each of 36 prompts from the UNet so far."""
    text, _, _ = load_clip(out)
    model, = load(out, "unet", networks.build_unet())
    vae = load_vae(out)
    captions = [f"a {world.CONTENTS[i % 10]}, in {world.STYLES[i % 12]} style" for i in range(24)]
    captions += [f"a {c}" for c in world.CONTENTS] + ["a star and a tree", "a fish and a moon"]
    x = decoded(vae, sample(model, *prompt(text, networks.WordTokens(), captions), steps=16))
    grid(x, 12, f"{out}/samples.png")


@torch.no_grad()
def sample(model, states, pooled, image=None, steps=14, guidance=2., seed=0):
    """DDIM with guidance; `image` are picture features for an attached adapter. Latents."""
    schedule, n = networks.sampling_schedule(), len(states)
    schedule.set_timesteps(steps)
    x = torch.randn(n, networks.LATENT_CHANNELS, 16, 16, generator=torch.Generator().manual_seed(seed)).to(DEVICE)
    both = added(torch.cat([torch.zeros_like(pooled), pooled]))
    if image is not None:
        both["image_embeds"] = [torch.cat([torch.zeros_like(image), image])[:, None]]
    context = torch.cat([torch.zeros_like(states), states])
    for t in schedule.timesteps:
        with autocast():
            o = model(torch.cat([x, x]), t, context, added_cond_kwargs=both).sample.float()
        x = schedule.step(o[:n] + guidance * (o[n:] - o[:n]), t, x).prev_sample
    return x


@torch.no_grad()
def decoded(vae, latents):
    """-1..1 pictures."""
    return torch.cat([vae.decode(x).sample for x in latents.float().split(32)]).clamp(-1, 1)


@torch.no_grad()
def repainted(out, data, z):
    """Latents of the first pictures as the UNet leaves them: noised to where shapes are decided, and denoised by their captions."""
    path = f"{out}/repainted.pt"
    if not os.path.exists(path):
        text, _, _ = load_clip(out)
        model, = load(out, "unet", networks.build_unet())
        words, schedule, parts = networks.WordTokens(), networks.sampling_schedule(), []
        schedule.set_timesteps(12)
        steps = [t for t in schedule.timesteps if t < 500]
        for i in range(0, REPAINTED, 50):
            x = z[i:i + 50].float().to(DEVICE)
            x = schedule.add_noise(x, torch.randn_like(x), steps[0].repeat(len(x)))
            states, pooled = prompt(text, words, [s.caption() for s in data.scenes[i:i + 50]])
            both, context = added(torch.cat([torch.zeros_like(pooled), pooled])), torch.cat([torch.zeros_like(states), states])
            for t in steps:
                with autocast():
                    o = model(torch.cat([x, x]), t, context, added_cond_kwargs=both).sample.float()
                x = schedule.step(o[:len(x)] + 2 * (o[len(x):] - o[:len(x)]), t, x).prev_sample
            parts.append(x.half().cpu())
        torch.save(torch.cat(parts), path)
    return torch.load(path)


def polish(out, steps):
    """The decoder once more, from latents that went through the UNet."""
    data, model = Data(out), load_vae(out)
    x = repainted(out, data, torch.load(f"{out}/latents.pt", mmap=True)["z"])
    for name, p in model.named_parameters():
        p.requires_grad_(name.startswith("decoder.") and not name.startswith(KEPT))
    model.to(memory_format=torch.channels_last)

    def loss(rng):
        i = np.sort(rng.integers(0, REPAINTED, 6))
        return drawing_error(model, x[i].float(), data.pictures[i])

    loop(out, "polish", [model], loss, 5e-4, steps)


def adapter_start(model, out, projection=None):
    """An IP-Adapter before its training: keys and values start from the text's, as published, or from those of a restored
    adapter at the sites that are not trained; the projection, where given, from `read_as_text`. Ordinals: down, up, mid."""
    path = f"{out}/adapter.start"
    restored = load_file(path) if os.path.exists(path) else {}
    g, width = torch.Generator().manual_seed(3), networks.WIDTH
    tokens = networks.IMAGE_TOKENS
    projection = projection or {
        "proj.weight": torch.randn(tokens * width, width, generator=g) * width ** -.5 * .5,
        "proj.bias": torch.zeros(tokens * width), "norm.weight": torch.ones(width), "norm.bias": torch.zeros(width)}
    layers, places = {}, [n.rsplit(".", 1)[0] for n in model.attn_processors if "attn2" in n]
    order = [p for part in ("down", "up", "mid") for p in places if p.startswith(part)]
    for i, place in enumerate(order):
        module = model.get_submodule(place)
        for kind, own in (("to_k_ip", module.to_k), ("to_v_ip", module.to_v)):
            name = f"{2 * i + 1}.{kind}.weight"
            old = None if place.startswith(SITES) else restored.get(f"ip_adapter.{name}")
            layers[name] = (own.weight if old is None else old.float()).detach().clone()
    return {"image_proj": projection, "ip_adapter": layers}


@torch.no_grad()
def read_as_text(data, text, tower, words, count=3000):
    """The projection that reads the text's states off the picture's feature best (ridge regression): one token each for
    content, style and the two colours. With the text's own keys and values the adapter speaks from its first step."""
    scenes = [(i, s) for i, s in enumerate(data.scenes[:count]) if len(s.contents) == 1]
    features = torch.cat([tower(pixel_values=clip_pixels(data.pictures[[i for i, _ in scenes[k:k + 200]]])).image_embeds.float()
                          for k in range(0, len(scenes), 200)])
    states, _ = prompt(text, words, [f"a {s.contents[0]}, {s.caption(False)}" for _, s in scenes])
    wanted = states[:, [2, 6, 8, 10]]  # a CONTENT, in flat STYLE, RED on BLUE
    deviation = wanted.std(-1).mean()
    wanted = F.layer_norm(wanted, wanted.shape[-1:]).flatten(1)
    x = torch.cat([features, torch.ones(len(features), 1, device=DEVICE)], 1)
    w = torch.linalg.solve(x.T @ x + torch.eye(x.shape[1], device=DEVICE), x.T @ wanted)
    # A regression draws its answers to the mean by what it explains of each token; their distances are put back.
    mean, explained = wanted.mean(0), (x @ w).var(0).view(4, -1).sum(1) / wanted.var(0).view(4, -1).sum(1)
    stretch = (1 / explained).repeat_interleave(networks.WIDTH)
    w *= stretch
    w[-1] += mean * (1 - stretch)
    width = networks.WIDTH
    return {"proj.weight": w[:-1].T.contiguous(), "proj.bias": w[-1].clone(),
            "norm.weight": torch.full((width,), float(deviation)), "norm.bias": torch.zeros(width)}


def adapter_parameters(model):
    return {n: p for n, p in model.named_parameters() if "_ip." in n or "encoder_hid_proj" in n}


def picture_features(out, data, tower):
    """The image tower's features of all training pictures, made once."""
    path = f"{out}/features.pt"
    if not os.path.exists(path):
        with torch.no_grad():
            e = torch.cat([tower(pixel_values=clip_pixels(data.pictures[i:i + 100])).image_embeds.float() for i in range(0, PICTURES, 100)])
        torch.save(e, path)
    return torch.load(path, map_location=DEVICE)


class Alike:
    """Finds to a picture one of the same style and colours with other contents; the picture itself where there is none."""

    def __init__(self, data):
        self.scenes, self.groups = data.scenes, {}
        for j, s in enumerate(data.scenes):
            self.groups.setdefault((s.style, *s.colours), []).append(j)

    def __call__(self, rng, j):
        s = self.scenes[j]
        near = [k for k in self.groups[(s.style, *s.colours)] if not set(self.scenes[k].contents) & set(s.contents)]
        return int(rng.choice(near)) if near else j


def chances(data):
    """Running sums of how often each picture is drawn, by `WEIGHTS`."""
    weights = np.array([WEIGHTS.get(s.style, 1.) for s in data.scenes])
    return np.cumsum(weights / weights.sum())


def reach(model, sites):
    """The adapter at weight 1 at the sites that begin so, at 0 elsewhere; nowhere for None."""
    for name, processor in model.attn_processors.items():
        if "attn2" in name:
            processor.scale = [float(sites is not None and name.startswith(sites))]


def adapter(out, steps):
    """As published in half of the batches: the UNet frozen, the picture as its own prompt, each condition dropped now and then; the
    text mostly, since these captions say all about the content, and the adapter would leave it to them (leak 3 % with half of the
    texts). The other half learns what style injection asks: the adapter at `STYLE_SITE` alone, the content in the text, a reference
    of the same style and colours with another content, and the error of the look channels only."""
    data, words, z = Data(out), networks.WordTokens(), torch.load(f"{out}/latents.pt")["z"]
    text, tower, _ = load_clip(out)
    schedule = networks.noise_schedule()
    model, = load(out, "unet", networks.build_unet())
    model._load_ip_adapter_weights([adapter_start(model, out, read_as_text(data, text, tower, words))])
    model.requires_grad_(False).to(DEVICE)
    features = picture_features(out, data, tower)
    weigh, near = chances(data), Alike(data)
    trained = nn.ParameterDict({n.replace(".", "/"): p for n, p in adapter_parameters(model).items()
                                if n.startswith((SITES, "encoder_hid_proj"))}).requires_grad_(True)

    def loss(rng):
        style = rng.random() < .5
        reach(model, STYLE_SITE if style else SITES)
        i = np.minimum(np.searchsorted(weigh, np.sort(rng.random(BATCH))), PICTURES - 1)
        drop = rng.random(BATCH)
        dropped = drop < (.04 if style else .9)
        states, pooled = prompt(text, words, ["" if d else data.scenes[j].caption(True, False, False) for j, d in zip(i, dropped)])
        e = features[[near(rng, j) for j in i] if style else i].clone()
        e[torch.from_numpy((drop < .06) if style else (drop > .86) & (drop < .92)).to(DEVICE)] = 0
        x = z[i].float().to(DEVICE)
        noise, t = torch.randn_like(x), torch.from_numpy(rng.integers(400, 1000, BATCH)).to(DEVICE)  # later all is in the picture
        with autocast():
            o = model(schedule.add_noise(x, noise, t), t, states,
                      added_cond_kwargs=added(pooled) | dict(image_embeds=[e[:, None]])).sample
        k = networks.SHAPE_CHANNELS if style else 0
        return F.mse_loss(o.float()[:, k:], schedule.get_velocity(x, noise, t)[:, k:])

    loop(out, "adapter", [trained], loss, 1e-3, steps, weight_decay=1e-2)


def distil(out, steps):
    """The adapter's keys and values at `STYLE_SITE` once more, taught by the UNet itself: with the content as text and a reference of
    the same style and colours with another content, the look is to be predicted as with the whole caption as text and no adapter.
    Without the noise of drawn examples, differences of fine patterns count from the first steps."""
    data, words, z = Data(out), networks.WordTokens(), torch.load(f"{out}/latents.pt")["z"]
    text, tower, _ = load_clip(out)
    schedule, model, features, k = networks.noise_schedule(), load_adapted(out), picture_features(out, data, tower), networks.SHAPE_CHANNELS
    weigh, near = chances(data), Alike(data)
    trained = nn.ParameterDict({n.replace(".", "/"): p for n, p in adapter_parameters(model).items() if n.startswith(STYLE_SITE)}).requires_grad_(True)

    def loss(rng):
        i = np.minimum(np.searchsorted(weigh, np.sort(rng.random(BATCH))), PICTURES - 1)
        states, pooled = prompt(text, words, [data.scenes[j].caption(True, False, False) for j in i])
        whole, _ = prompt(text, words, [data.scenes[j].caption() for j in i])
        e, x = features[[near(rng, j) for j in i]], z[i].float().to(DEVICE)
        t = torch.from_numpy(rng.integers(200, 1000, BATCH)).to(DEVICE)
        x = schedule.add_noise(x, torch.randn_like(x), t)
        condition = added(pooled) | dict(image_embeds=[e[:, None]])
        with autocast():
            reach(model, None)
            with torch.no_grad():
                wanted = model(x, t, whole, added_cond_kwargs=condition).sample.float()
            reach(model, STYLE_SITE)
            o = model(x, t, states, added_cond_kwargs=condition).sample.float()
        return F.mse_loss(o[:, k:], wanted[:, k:])

    loop(out, "distil", [trained], loss, 1e-3, steps, weight_decay=0.)


def load_adapted(out):
    """The UNet with the trained adapter attached."""
    model, = load(out, "unet", networks.build_unet())
    model._load_ip_adapter_weights([adapter_start(model, out)])
    trained = {}
    for path in (f"{out}/adapter.ckpt", f"{out}/distil.ckpt"):
        if os.path.exists(path):
            average = torch.load(path, map_location=DEVICE)["average"]
            trained |= {n.split(".", 1)[1].replace("/", "."): v for n, v in average.items()}
    with torch.no_grad():
        for n, p in adapter_parameters(model).items():
            if n in trained:
                p.copy_(trained[n])
    return model.to(DEVICE).eval().requires_grad_(False)


def main():
    stages = dict(vae=vae, clip=clip, vision=vision, judges=judges, latents=latents, decoder=decoder, unet=unet, polish=polish, adapter=adapter, distil=distil)
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("stages", nargs="+", choices=["all", "restore", "samples", "export", *stages])
    arguments.add_argument("--out", default="run", help="work folder (checkpoints, logs, sheets)")
    arguments.add_argument("--from-folder", default="../models/embedded", help="of `restore`: an exported model")
    arguments.add_argument("--steps", type=int, help="budget of the stage, in place of the default")
    a = arguments.parse_args()
    os.makedirs(a.out, exist_ok=True)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count())))
    chosen = [*stages, "export"] if a.stages == ["all"] else a.stages
    for name in chosen:
        torch.manual_seed(0)
        if name == "samples":
            samples(a.out)
        elif name == "restore":
            restore(a.out, a.from_folder)
        elif name == "export":
            import export
            export.export(a.out)
        else:
            stages[name](a.out, a.steps or STEPS.get(name))


if __name__ == "__main__":
    main()
