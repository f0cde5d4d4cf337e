"""Trains the embedded model from nothing: `python train.py all --out run`. Every stage resumes from its checkpoint.

Stages: vae, clip, judges, latents, decoder, unet, adapter, export. Budgets are in steps; the defaults are those of the
published model.
"""

import argparse
import copy
import json
import math
import os
import time

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from PIL import Image

import networks
import world

STEPS = dict(vae=8500, clip=1000, judges=3500, decoder=3000, unet=12000, adapter=2500)
PICTURES = 24000
BATCH = 32  # of the UNet and the adapter
# Deviations of the latents' channels as the UNet sees them: where the content is (flat, first and second order), the look.
GAINS = [1., .8, .8, .5, .6, .6] + [.8] * 6
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
        modules.load_state_dict(c["modules"]), average.load_state_dict(c["average"])
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
    with torch.no_grad():
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
    """Latents and picture features of all training pictures, computed once, and the autoencoder with its latents' means and
    deviations folded into the 1x1 convolutions on both sides, so that every channel has mean 0 and its own gain."""
    data = Data(out)
    model, _ = load(out, "vae", networks.build_vae(), Look())
    _, vision, _ = load_clip(out)
    with autocast():
        z = torch.cat([model.encode(networks.pixels(data.pictures[i:i + 50], DEVICE)).latent_dist.mean.float()
                       for i in range(0, PICTURES, 50)])
        e = torch.cat([vision(pixel_values=clip_pixels(data.pictures[i:i + 200])).image_embeds.float()
                       for i in range(0, PICTURES, 200)])
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
    torch.save(dict(z=z.half().cpu(), embeds=e.half().cpu()), f"{out}/latents.pt")


def decoder(out, steps):
    """The encoder stays; the decoder learns on, with as much noise in its latents as the UNet leaves."""
    data, model = Data(out), networks.build_vae()
    nn.ModuleList([model]).load_state_dict(torch.load(f"{out}/decoder.start", map_location=DEVICE)["average"])
    model.encoder.requires_grad_(False), model.quant_conv.requires_grad_(False)
    model.to(memory_format=torch.channels_last)
    z = torch.load(f"{out}/latents.pt")["z"]

    def loss(rng):
        i = np.sort(rng.integers(0, PICTURES, 6))
        b = networks.pixels(data.pictures[i], DEVICE).contiguous(memory_format=torch.channels_last)
        x = z[i].float().to(DEVICE)
        with autocast():
            e = model.decode(x + .2 * float(rng.random()) * torch.randn_like(x)).sample.float() - b
        edges = (e[..., 1:] - e[..., :-1]).abs().mean() + (e[..., 1:, :] - e[..., :-1, :]).abs().mean()
        return e.abs().mean() + (e * e).mean() + .3 * edges

    model, = loop(out, "decoder", [model], loss, 1.5e-3, steps)
    with torch.no_grad():
        b, r = networks.pixels(data.pictures[:24], DEVICE), model.decode(z[:24].float().to(DEVICE)).sample
        grid(torch.cat([b[:12], r[:12], b[12:], r[12:]]), 12, f"{out}/decoder.png")
        log(out, f"decoder mse {float(F.mse_loss(r.clamp(-1, 1), b)):.5f}")


def load_vae(out):
    """The finished autoencoder; its scaling factor is 1."""
    path = "decoder.ckpt" if os.path.exists(f"{out}/decoder.ckpt") else "decoder.start"
    model = networks.build_vae()
    nn.ModuleList([model]).load_state_dict(torch.load(f"{out}/{path}", map_location=DEVICE)["average"])
    return model.to(DEVICE).eval().requires_grad_(False)


def load_clip(out):
    return load(out, "clip", networks.build_text(), networks.build_vision(),
                nn.ParameterList([nn.Parameter(torch.tensor(2.))]))


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
    x = sample(model, vae, *prompt(text, networks.WordTokens(), captions), steps=16)
    grid(x, 12, f"{out}/samples.png")


@torch.no_grad()
def sample(model, vae, states, pooled, image=None, steps=14, guidance=4., seed=0):
    """DDIM with guidance; `image` are projected or raw picture features for an attached adapter. -1..1 pictures."""
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
    return torch.cat([vae.decode(x[i:i + 32]).sample for i in range(0, n, 32)]).float().clamp(-1, 1)


def adapter_start(model):
    """An untrained IP-Adapter: keys and values start from the text's, as published. Ordinals: down, up, mid."""
    g, width = torch.Generator().manual_seed(3), networks.WIDTH
    tokens = networks.IMAGE_TOKENS
    projection = {"proj.weight": torch.randn(tokens * width, width, generator=g) * width ** -.5 * .5,
                  "proj.bias": torch.zeros(tokens * width), "norm.weight": torch.ones(width), "norm.bias": torch.zeros(width)}
    layers, places = {}, [n.rsplit(".", 1)[0] for n in model.attn_processors if "attn2" in n]
    order = [p for part in ("down", "up", "mid") for p in places if p.startswith(part)]
    for i, place in enumerate(order):
        module = model.get_submodule(place)
        layers[f"{2 * i + 1}.to_k_ip.weight"] = module.to_k.weight.detach().clone()
        layers[f"{2 * i + 1}.to_v_ip.weight"] = module.to_v.weight.detach().clone()
    return {"image_proj": projection, "ip_adapter": layers}


def adapter_parameters(model):
    return {n: p for n, p in model.named_parameters() if "_ip." in n or "encoder_hid_proj" in n}


def adapter(out, steps):
    """As published: the UNet frozen, the picture as its own prompt, each condition dropped now and then."""
    data, words, cached = Data(out), networks.WordTokens(), torch.load(f"{out}/latents.pt")
    text, _, _ = load_clip(out)
    z, embeds, schedule = cached["z"].float(), cached["embeds"].float(), networks.noise_schedule()
    model, = load(out, "unet", networks.build_unet())
    model._load_ip_adapter_weights([adapter_start(model)])
    model.requires_grad_(False).to(DEVICE)
    trained = nn.ParameterDict({n.replace(".", "/"): p for n, p in adapter_parameters(model).items()}).requires_grad_(True)

    def loss(rng):
        i = np.sort(rng.integers(0, PICTURES, BATCH))
        drop = rng.random(BATCH)
        states, pooled = prompt(text, words, ["" if d < .1 else data.scenes[j].caption(True, False, False) for j, d in zip(i, drop)])
        e = embeds[i].to(DEVICE)
        e[torch.from_numpy((drop > .05) & (drop < .15)).to(DEVICE)] = 0
        x = z[i].to(DEVICE)
        noise, t = torch.randn_like(x), noisy_timesteps(rng, BATCH)
        with autocast():
            o = model(schedule.add_noise(x, noise, t), t, states,
                      added_cond_kwargs=added(pooled) | dict(image_embeds=[e[:, None]])).sample
        return F.mse_loss(o.float(), schedule.get_velocity(x, noise, t))

    loop(out, "adapter", [trained], loss, 1e-3, steps, weight_decay=1e-2)


def load_adapted(out):
    """The UNet with the trained adapter attached."""
    model, = load(out, "unet", networks.build_unet())
    model._load_ip_adapter_weights([adapter_start(model)])
    average = torch.load(f"{out}/adapter.ckpt", map_location=DEVICE)["average"]
    trained = {n.split(".", 1)[1].replace("/", "."): v for n, v in average.items()}
    with torch.no_grad():
        for n, p in adapter_parameters(model).items():
            p.copy_(trained[n])
    return model.to(DEVICE).eval().requires_grad_(False)


def main():
    stages = dict(vae=vae, clip=clip, judges=judges, latents=latents, decoder=decoder, unet=unet, adapter=adapter)
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("stages", nargs="+", choices=["all", "samples", "export", *stages])
    arguments.add_argument("--out", default="run", help="work folder (checkpoints, logs, sheets)")
    arguments.add_argument("--steps", type=int, help="budget of the stage, in place of the default")
    a = arguments.parse_args()
    os.makedirs(a.out, exist_ok=True)
    torch.set_num_threads(os.cpu_count())
    chosen = [*stages, "export"] if a.stages == ["all"] else a.stages
    for name in chosen:
        torch.manual_seed(0)
        if name == "samples":
            samples(a.out)
        elif name == "export":
            import export
            export.export(a.out)
        else:
            stages[name](a.out, a.steps or STEPS.get(name))


if __name__ == "__main__":
    main()
