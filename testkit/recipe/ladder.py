"""Inputs and outputs of single operations, blocks, networks and scheduler steps."""

import shutil


import diffusers
import numpy as np
import torch
import torch.nn.functional as F
from diffusers.image_processor import IPAdapterMaskProcessor
from diffusers.models.embeddings import get_timestep_embedding
from safetensors.torch import save_file

from transformers.activations import ACT2FN

import controls
import images
import pipeline
from adapters import ADAPTERS_MADE
from common import ADAPTERS, FIXTURES, IMAGES, LADDER, MODELS, f16_exact, generator, normal, quiet, tree_sha, versions, write_json


def save(name, tensors, note, models=()):
    tensors = {k: v.detach().contiguous().clone() for k, v in tensors.items()}
    LADDER.mkdir(parents=True, exist_ok=True)
    save_file(tensors, LADDER / f"{name}.safetensors")
    write_json(
        LADDER / f"{name}.json",
        {
            "command": "python make.py ladder",
            "what": note,
            "models": {str(m.relative_to(FIXTURES)): tree_sha(m) for m in models},
            "versions": versions(),
            "tensors": f"{len(tensors)}, named and shaped in the file's header",
        },
    )


def randoms(seed):
    gen = generator(seed)
    return lambda *shape, scale=1.0: f16_exact(normal(gen, shape, scale))


def operations():
    r = randoms(1)
    out = {}

    def put(name, **tensors):
        for k, v in tensors.items():
            out[f"{name}.{k}"] = v

    for tag, shape, groups, eps in (("a", (2, 12, 5, 7), 4, 1e-5), ("b", (1, 8, 3, 3), 8, 1e-6), ("c", (3, 6, 10), 2, 1e-5)):
        x, w, b = r(*shape, scale=3.0) + 1.5, 1 + r(shape[1], scale=0.3), r(shape[1], scale=0.3)
        put(f"group_norm.{tag}", x=x, weight=w, bias=b, groups=torch.tensor(groups), eps=torch.tensor(eps), y=F.group_norm(x, groups, w, b, eps))
    x, w, b = r(4, 9, 20, scale=2.0) - 0.7, 1 + r(20, scale=0.3), r(20, scale=0.3)
    put("layer_norm", x=x, weight=w, bias=b, y=F.layer_norm(x, (20,), w, b, 1e-5))
    x = torch.cat([r(101, scale=4.0), torch.tensor([0.0, -0.0, 1e-4, -1e-4, 20.0, -20.0, 88.0, -88.0])])
    put("activation", x=x, silu=F.silu(x), gelu=ACT2FN["gelu"](x), quick_gelu=ACT2FN["quick_gelu"](x), gelu_tanh=F.gelu(x, approximate="tanh"))
    from diffusers.models.activations import GEGLU

    layer = GEGLU(12, 20)
    layer.proj.weight.data.copy_(r(40, 12, scale=0.4))
    layer.proj.bias.data.copy_(r(40, scale=0.2))
    x = r(2, 7, 12)
    put("geglu", x=x, weight=layer.proj.weight, bias=layer.proj.bias, y=layer(x))
    for tag, size, stride, pad, kernel in (
        ("3x3", (2, 6, 9, 11), 1, 1, 3),
        ("stride2", (1, 6, 8, 10), 2, 1, 3),
        ("stride2_odd", (1, 6, 7, 9), 2, 1, 3),
        ("1x1", (2, 6, 5, 4), 1, 0, 1),
        ("patch", (1, 6, 12, 12), 4, 0, 4),
    ):
        x, w, b = r(*size), r(8, 6, kernel, kernel, scale=0.2), r(8, scale=0.2)
        put(f"conv.{tag}", x=x, weight=w, bias=b, stride=torch.tensor(stride), pad=torch.tensor(pad), y=F.conv2d(x, w, b, stride, pad))
    for tag, size in (("even", (1, 6, 8, 8)), ("odd", (1, 6, 7, 5))):
        # The VAE's downsampling: one row and column of zeros after, none before.
        x, w, b = r(*size), r(6, 6, 3, 3, scale=0.2), r(6, scale=0.2)
        put(f"conv.asymmetric_{tag}", x=x, weight=w, bias=b, y=F.conv2d(F.pad(x, (0, 1, 0, 1)), w, b, 2))
    x = r(1, 3, 4, 5)
    put("nearest", x=x, double=F.interpolate(x, scale_factor=2.0, mode="nearest"), to_7x9=F.interpolate(x, size=(7, 9), mode="nearest"))
    for tag, heads, width, queries, keys in (("self", 4, 24, 30, 30), ("cross", 2, 16, 35, 77), ("one", 8, 8, 6, 4)):
        q, k, v = r(2, queries, width, scale=2.0), r(2, keys, width, scale=2.0), r(2, keys, width)

        def split(t):
            return t.view(2, -1, heads, width // heads).transpose(1, 2)

        y = F.scaled_dot_product_attention(split(q), split(k), split(v)).transpose(1, 2).reshape(2, queries, width)
        put(f"attention.{tag}", q=q, k=k, v=v, heads=torch.tensor(heads), y=y)
    q, k, v = r(2, 13, 16, scale=2.0), r(2, 13, 16, scale=2.0), r(2, 13, 16)
    y = F.scaled_dot_product_attention(*(t.view(2, 13, 4, 4).transpose(1, 2) for t in (q, k, v)), is_causal=True)
    put("attention.causal", q=q, k=k, v=v, heads=torch.tensor(4), y=y.transpose(1, 2).reshape(2, 13, 16))
    t = torch.tensor([0.0, 1.0, 20.5, 499.0, 500.25, 999.0])
    for width in (16, 17, 32):
        for flip in (False, True):
            for shift in (0, 1):
                y = get_timestep_embedding(t, width, flip_sin_to_cos=flip, downscale_freq_shift=shift)
                put(f"timestep.{width}.flip{int(flip)}.shift{shift}", y=y)
    put("timestep", t=t)
    save("ops", out, "single operations; scalars (groups, eps, stride, pad, heads) are 0-d tensors")


def noise():
    out = {}
    for seed in (0, 42, 1000, 2**31 + 7, 2**63 - 1):
        for shape in ((1, 4, 8, 8), (1, 4, 5, 7), (1, 4, 2, 2), (1, 4, 3, 1), (3,), (16,), (17,), (33,)):
            g = torch.Generator("cpu").manual_seed(seed)
            name = f"{seed}." + "x".join(map(str, shape))
            out[name] = torch.randn(shape, generator=g)
            out[f"{name}.next"] = torch.randn(shape, generator=g)
    save("noise", out, "torch.randn(shape, generator=torch.Generator('cpu').manual_seed(seed)), and the draw after it; name = seed.shape")


def mask_downsampling():
    out = {}
    for width, height, counts in ((64, 64, (64, 16, 4, 1)), (80, 48, (60, 15, 6, 2)), (48, 80, (60, 15, 6, 2)), (40, 56, (35, 12, 4, 1)), (96, 64, (96, 24, 6))):
        for name in ("mask-left.png", "mask-soft.png", "mask-disc.png", "mask-bars-wide.png"):
            mask = IPAdapterMaskProcessor().preprocess([images.load(IMAGES / name)], height=height, width=width)
            tag = f"{name.removesuffix('.png')}.{width}x{height}"
            out[f"{tag}.full"] = mask[0, 0].to(torch.uint8)
            for n in counts:
                out[f"{tag}.{n}"] = IPAdapterMaskProcessor.downsample(mask[0], 1, n, 1)[0, :, 0]
    save("masks", out, "IPAdapterMaskProcessor: WIDTHxHEIGHT.full = binarised mask [H, W], .N = the weights of N queries")


def pixel_values():
    out = {}
    names = ["waves", "rings", "blocks", "stripes", "small", "large", "wide", "exif2", "exif3", "exif5", "exif6", "exif8"]
    names += ["grey16", "grey8", "rgba", "grey-alpha", "palette", "palette-alpha"]
    for vit in ("vit-a", "vit-b"):
        _, processor = pipeline.vision(MODELS / vit)
        for name in names if vit == "vit-a" else ("waves", "blocks", "wide", "small"):
            picture = images.load(IMAGES / f"{name}.png")
            out[f"{vit}.{name}"] = torch.as_tensor(np.asarray(processor(picture, return_tensors="np").pixel_values))[0]
    save("pixel_values", out, "what the vision tower sees, from images/NAME.png", [MODELS / "vit-a", MODELS / "vit-b"])


def capture(modules, call):
    """Outputs of named modules during one call."""
    seen, hooks = {}, []
    for name, module in modules.items():

        def hook(_, __, out, name=name):
            out = out.sample if hasattr(out, "sample") else out
            if isinstance(out, tuple):
                seen[name] = out[0]
                for i, skip in enumerate(out[1] if len(out) > 1 else ()):
                    seen[f"{name}.skip{i}"] = skip
            else:
                seen[name] = out

        hooks.append(module.register_forward_hook(hook))
    call()
    for h in hooks:
        h.remove()
    return seen


def unet_blocks(name):
    pipe = pipeline.load_model(MODELS / name)
    unet = pipe.unet
    r = randoms(sum(map(ord, name)))
    out = {}
    for tag, height, width, timestep in (("square", 8, 8, 500.0), ("odd", 7, 5, 20.5)):
        sample, context = r(1, 4, height, width), r(1, 77, unet.config.cross_attention_dim)
        added = None
        if name.startswith("sdxl"):
            added = {"text_embeds": r(1, 28), "time_ids": torch.tensor([[64.0, 48, 0, 0, 64, 48]])}
        modules = {"conv_in": unet.conv_in, "time_embedding": unet.time_embedding, "mid_block": unet.mid_block, "conv_out": unet.conv_out}
        if name.startswith("sdxl"):
            modules["add_embedding"] = unet.add_embedding
        modules.update({f"down_blocks.{i}": b for i, b in enumerate(unet.down_blocks)})
        modules.update({f"up_blocks.{i}": b for i, b in enumerate(unet.up_blocks)})
        if tag == "square":
            # One level deeper, for the first block with attention.
            first = next(i for i, b in enumerate(unet.down_blocks) if hasattr(b, "attentions"))
            prefix = f"down_blocks.{first}"
            block = unet.down_blocks[first]
            modules[f"{prefix}.resnets.0"] = block.resnets[0]
            modules[f"{prefix}.attentions.0"] = block.attentions[0]
            modules[f"{prefix}.attentions.0.norm"] = block.attentions[0].norm
            modules[f"{prefix}.attentions.0.proj_in"] = block.attentions[0].proj_in
            basic = block.attentions[0].transformer_blocks[0]
            for part in ("norm1", "attn1", "norm2", "attn2", "norm3", "ff"):
                modules[f"{prefix}.attentions.0.transformer_blocks.0.{part}"] = getattr(basic, part)
            modules[f"{prefix}.attentions.0.transformer_blocks.0"] = basic

        def call():
            unet(sample, torch.tensor(timestep), context, added_cond_kwargs=added)

        seen = capture(modules, call)
        out.update({f"{tag}.sample": sample, f"{tag}.context": context, f"{tag}.timestep": torch.tensor(timestep)})
        if added:
            out.update({f"{tag}.{k}": v for k, v in added.items()})
        out.update({f"{tag}.{k}": v for k, v in seen.items()})
    note = "outputs of blocks for sample, timestep, context; BLOCK.skipN are a down block's skip outputs"
    save(f"unet-{name}", out, note, [MODELS / name / "unet"])


def unet_with_images(name, files):
    """The network with image tokens, everywhere and at one site."""
    pipe = pipeline.load_model(MODELS / name)
    r = randoms(77 + sum(map(ord, name)))
    sample, context = r(2, 4, 8, 6), r(2, 77, pipe.unet.config.cross_attention_dim)
    added = {}
    if name.startswith("sdxl"):
        added = {"text_embeds": r(2, 28), "time_ids": torch.tensor([[64.0, 48, 0, 0, 64, 48]] * 2)}
    out = {"sample": sample, "context": context, "timestep": torch.tensor(300.0), **added}
    t = torch.tensor(300.0)
    out["plain"] = pipe.unet(sample, t, context, added_cond_kwargs=added or None).sample
    pipe.load_ip_adapter([str(ADAPTERS)] * len(files), subfolder=[""] * len(files), weight_name=files, image_encoder_folder=None)
    embeds = []
    for i, file in enumerate(files):
        vit = ADAPTERS_MADE[file][2]
        width, projection = pipeline.vision(MODELS / vit)[0].config.hidden_size, pipeline.vision(MODELS / vit)[0].config.projection_dim
        base = "base" in file
        embeds.append(r(2, 1, projection) if base else r(2, 1, 17, width))
        out[f"embeds.{i}"] = embeds[-1]
    tokens = pipe.unet.encoder_hid_proj(embeds)
    for i, t_i in enumerate(tokens):
        out[f"tokens.{i}"] = t_i
    added["image_embeds"] = embeds
    pipe.set_ip_adapter_scale([1.0] * len(files))
    out["all"] = pipe.unet(sample, t, context, added_cond_kwargs=added).sample
    for i in range(len(files)):
        pipe.set_ip_adapter_scale([0.7 if j == i else 0.0 for j in range(len(files))])
        out[f"only{i}.weight0.7"] = pipe.unet(sample, t, context, added_cond_kwargs=added).sample
    for site in {"sd15": ("up_blocks.1", "mid_block", "down_blocks.2.attentions.0"), "sdxl": ("up_blocks.0.attentions.1", "mid_block", "down_blocks.2.attentions.1.transformer_blocks.0")}[name[:4]]:
        for path, processor in pipe.unet.attn_processors.items():
            if path.endswith("attn2.processor"):
                processor.scale[:] = [1.0 if path.startswith(site + ".") else 0.0] + [0.0] * (len(files) - 1)
        out[f"site.{site}"] = pipe.unet(sample, t, context, added_cond_kwargs=added).sample
    what = "the network with image tokens; embeds.N before the projection, tokens.N after it; all, one adapter, one site (first adapter)"
    save(f"unet-image-{name}", out, f"{what}; adapters {files}", [MODELS / name / "unet", *[ADAPTERS / f for f in files]])


def vae_blocks(name):
    vae = pipeline.load_model(MODELS / name).vae
    r = randoms(13 + sum(map(ord, name)))
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    out = {}
    picture, latents = r(1, 3, 6 * factor, 4 * factor, scale=0.5).clamp(-1, 1), r(1, 4, 6, 4)
    enc, dec = vae.encoder, vae.decoder
    modules = {"conv_in": enc.conv_in, "mid_block": enc.mid_block, "conv_norm_out": enc.conv_norm_out, "conv_out": enc.conv_out}
    modules["mid_block.attentions.0"] = enc.mid_block.attentions[0]
    modules.update({f"down_blocks.{i}": b for i, b in enumerate(enc.down_blocks)})
    out["encode.picture"] = picture
    moments = {}
    seen = capture(modules, lambda: moments.update(d=vae.encode(picture).latent_dist))
    for k, v in seen.items():
        if v.numel() < 3000:
            out[f"encoder.{k}"] = v
    out["encode.mean"], out["encode.logvar"] = moments["d"].mean, moments["d"].logvar
    modules = {"conv_in": dec.conv_in, "mid_block": dec.mid_block, "conv_norm_out": dec.conv_norm_out}
    modules["mid_block.attentions.0"] = dec.mid_block.attentions[0]
    modules.update({f"up_blocks.{i}": b for i, b in enumerate(dec.up_blocks)})
    out["decode.latents"] = latents
    seen = capture(modules, lambda: moments.update(p=vae.decode(latents).sample))
    for k, v in seen.items():
        if v.numel() < 3000:
            out[f"decoder.{k}"] = v
    out["decode.picture"] = moments["p"]
    save(f"vae-{name}", out, "decode.latents are already divided by the scaling factor; encoder.*, decoder.* block outputs", [MODELS / name / "vae"])


def vae_tiles(name):
    """diffusers' own tiling, with tiles of 8 latents: whole and cut tiles, and a side that is not split."""
    vae = pipeline.load_model(MODELS / name).vae
    r = randoms(17)
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    vae.enable_tiling()
    vae.tile_latent_min_size, vae.tile_sample_min_size = 8, 8 * factor
    out = {}
    for case, (h, w) in (("both", (10, 13)), ("wide", (4, 11))):
        latents, picture = r(1, 4, h, w), r(1, 3, h * factor, w * factor, scale=0.5).clamp(-1, 1)
        out[f"{case}.decode.latents"], out[f"{case}.decode.picture"] = latents.half(), vae.decode(latents).sample
        d = vae.encode(picture).latent_dist
        out[f"{case}.encode.picture"], out[f"{case}.encode.moments"] = picture.half(), d.parameters
        vae.disable_tiling()
        assert not torch.allclose(vae.decode(latents).sample, out[f"{case}.decode.picture"], rtol=1e-2)
        vae.enable_tiling()
    save(f"vae-tiles-{name}", out, "AutoencoderKL with enable_tiling(), tiles of 8 latents, a quarter overlapping", [MODELS / name / "vae"])


def vae_tiny():
    vae = diffusers.AutoencoderTiny.from_pretrained(MODELS / "vae-tiny").float().eval()
    r = randoms(19)
    picture, latents = r(1, 3, 48, 32, scale=0.5).clamp(-1, 1), r(1, 4, 5, 4, scale=2.0)
    out = {"encode.picture": picture.half(), "encode.latents": vae.encode(picture).latents}
    out |= {"decode.latents": latents.half(), "decode.picture": vae.decode(latents).sample}
    save("vae-tiny", out, "AutoencoderTiny, both halves", [MODELS / "vae-tiny"])


PROMPTS = ["a cat, masterpiece, best quality", "", "Ein Café — 猫 🐈 naïve", "red " * 90]


def text(name):
    out = {}
    if name == "text-tower":
        model, tokenizer = pipeline.tower(MODELS / name)
        towers = {"": (model, tokenizer)}
    else:
        pipe = pipeline.load_model(MODELS / name)
        towers = {"text_encoder.": (pipe.text_encoder, pipe.tokenizer)}
        if name.startswith("sdxl"):
            towers["text_encoder_2."] = (pipe.text_encoder_2, pipe.tokenizer_2)
    for prefix, (model, tokenizer) in towers.items():
        ids = tokenizer(PROMPTS, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
        result = model(ids, output_hidden_states=True)
        out[f"{prefix}ids"] = ids
        # All rows of the first prompt; of the others the rows around the ends.
        for i, hidden in enumerate(result.hidden_states):
            out[f"{prefix}hidden.{i}"] = hidden[:1]
        out[f"{prefix}last"] = result.last_hidden_state
        if "text_embeds" in result:
            out[f"{prefix}text_embeds"] = result.text_embeds
        else:
            out[f"{prefix}pooled"] = result.pooler_output
    note = "hidden.N of the first prompt (0 = embeddings, the last one before the final norm), `last` after the final norm; prompts: "
    save(f"text-{name}", out, note + repr(PROMPTS), [MODELS / name] if name == "text-tower" else sorted((MODELS / name).glob("text_encoder*")))


def vision(name):
    model, _ = pipeline.vision(MODELS / name)
    r = randoms(51)
    size = model.config.image_size
    x = torch.cat([r(1, 3, size, size), torch.zeros(1, 3, size, size)])
    result = model(x, output_hidden_states=True)
    out = {"pixel_values": x[:1], "image_embeds": result.image_embeds}
    for i, hidden in enumerate(result.hidden_states):
        out[f"hidden.{i}"] = hidden
    save(f"vision-{name}", out, "row 0: pixel_values, row 1: an all-zero input; hidden.0 after the pre-norm", [MODELS / name])


def projections():
    out = {}
    r = randoms(61)
    sources = []
    for file, (model, kind, vit, _, _) in ADAPTERS_MADE.items():
        pipe = pipeline.load_model(MODELS / model)
        pipe.load_ip_adapter(str(ADAPTERS), subfolder="", weight_name=file, image_encoder_folder=None)
        config = pipeline.vision(MODELS / vit)[0].config
        shape = (2, config.projection_dim) if kind.__name__ == "base" else (2, 17, config.hidden_size)
        x = r(*shape)
        layer = pipe.unet.encoder_hid_proj.image_projection_layers[0]
        out[f"{file}.x"], out[f"{file}.y"] = x, layer(x)
        if kind.__name__ == "base":
            out[f"{file}.zero"] = layer(torch.zeros(1, config.projection_dim))
        if file == "sd15-a-plus.safetensors":
            for i, y in capture({str(i): b for i, b in enumerate(layer.layers)}, lambda: layer(x)).items():
                out[f"{file}.layer.{i}"] = y
        sources.append(ADAPTERS / file)
    save("projections", out, "FILE.x -> FILE.y through the adapter's image projection; FILE.zero: of zeros (base)", sources)


def schedulers():
    """Timesteps, and every step of a run where the network is a fixed function of its input."""
    quiet()
    for model in ("sd15-a", "sd15-v", "sd15-s", "sdxl-a", "sdxl-b"):
        out, notes = {}, {}
        pipe = pipeline.load_model(MODELS / model)
        for name in pipeline.SAMPLERS:
            for steps in (1, 4, 7, 20):
                scheduler = pipeline.sampler(name, pipe.scheduler.config)
                tag = f"{name}.{steps}"
                try:
                    g = torch.Generator("cpu").manual_seed(9)
                    scheduler.set_timesteps(steps)
                    x = torch.randn((1, 4, 3, 3), generator=g) * scheduler.init_noise_sigma
                    rows = [x]
                    kwargs = {}
                    import inspect

                    names = inspect.signature(scheduler.step).parameters
                    if "generator" in names:
                        kwargs["generator"] = g
                    if "eta" in names:
                        kwargs["eta"] = 0.0
                    if model.startswith("sdxl") and hasattr(scheduler, "set_begin_index"):
                        scheduler.set_begin_index(0)
                    for t in scheduler.timesteps:
                        scaled = scheduler.scale_model_input(x, t)
                        prediction = 0.5 * scaled + 0.3 * scaled.roll(1, 3) - 0.0002 * float(t) + 0.1
                        x = scheduler.step(prediction, t, x, **kwargs, return_dict=False)[0]
                        rows.append(x)
                    if not torch.isfinite(torch.cat(rows)).all():
                        raise ValueError("not finite")
                    out[f"{tag}.timesteps"] = scheduler.timesteps.to(torch.float64)
                    out[f"{tag}.x"] = torch.cat(rows) if steps < 20 else rows[-1]
                    if hasattr(scheduler, "sigmas") and steps < 20:
                        out[f"{tag}.sigmas"] = torch.as_tensor(np.asarray(scheduler.sigmas)).to(torch.float64)
                    out[f"{tag}.init_noise_sigma"] = torch.as_tensor(float(scheduler.init_noise_sigma), dtype=torch.float64)
                except Exception as error:  # which combinations diffusers itself refuses
                    notes[tag] = f"{type(error).__name__}: {str(error)[:160]}"
        note = (
            "SAMPLER.STEPS.x: row 0 = initial sample, then after every step (20 steps: the last one only), with "
            "prediction = 0.5 s + 0.3 roll(s, 1, last axis) - 0.0002 t + 0.1 where s = scale_model_input(x, t); one generator, seed 9, "
            "draws the initial noise and then the sampler's; refused by diffusers: " + repr(notes)
        )
        save(f"scheduler-{model}", out, note, [MODELS / model / "scheduler"])
        print(model, notes)


def scheduler_configs():
    """What a sampler's configuration becomes, for files as they are met in practice."""
    import json
    import tempfile

    import models
    from common import LADDER

    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
    files = {
        "sd15": models.SD_SCHEDULER,
        "sdxl": models.XL_SCHEDULER,
        "v": models.V_SCHEDULER,
        "karras": models.B_SCHEDULER,
        "pndm without offset": {"_class_name": "PNDMScheduler", "skip_prk_steps": True, **betas},
        "ddim bare": {"_class_name": "DDIMScheduler", **betas},
        "ddim old, clipping": {"_class_name": "DDIMScheduler", "clip_sample": True, "steps_offset": 0, **betas},
        "euler ancestral, trailing": {"_class_name": "EulerAncestralDiscreteScheduler", "timestep_spacing": "trailing", "prediction_type": "v_prediction", **betas},
        "turbo": {"_class_name": "EulerAncestralDiscreteScheduler", "timestep_spacing": "trailing", "steps_offset": 1, "interpolation_type": "linear", "prediction_type": "epsilon", "set_alpha_to_one": False, "skip_prk_steps": True, "use_karras_sigmas": False, "sample_max_value": 1.0, "clip_sample": False, **betas},
        "lcm": {"_class_name": "LCMScheduler", "original_inference_steps": 50, "timestep_scaling": 10.0, "set_alpha_to_one": True, "steps_offset": 1, "timestep_spacing": "leading", **betas},
        "euler beta sigmas": {"_class_name": "EulerDiscreteScheduler", "use_beta_sigmas": True, "timestep_spacing": "leading", **betas},
        "euler exponential": {"_class_name": "EulerDiscreteScheduler", "use_exponential_sigmas": True, "final_sigmas_type": "sigma_min", **betas},
        "dpm lu": {"_class_name": "DPMSolverMultistepScheduler", "use_lu_lambdas": True, "solver_order": 3, **betas},
        "linear betas, defaults": {"_class_name": "DDPMScheduler"},
        "cosine": {"_class_name": "DDIMScheduler", "beta_schedule": "squaredcos_cap_v2", "clip_sample": False, "steps_offset": 1},
    }
    tiny = {"sd15": pipeline.load_model(MODELS / "sd15-s"), "sdxl": pipeline.load_model(MODELS / "sdxl-a")}
    rows, values, tiny_configs = [], {}, {}
    for number, (label, file) in enumerate(files.items()):
        with tempfile.TemporaryDirectory() as folder:
            write_json(pipeline.Path(folder) / "scheduler_config.json", file)
            for family, pipe in tiny.items():
                scheduler = getattr(diffusers, file["_class_name"]).from_pretrained(folder)
                built = type(pipe)(**{**pipe.components, "scheduler": scheduler}, **({"requires_safety_checker": False} if family == "sd15" else {"add_watermarker": False}))
                if family == "sdxl" and dict(tiny_configs[number]) == dict(built.scheduler.config):
                    continue  # the SD1.5 pipeline changed nothing: the same rows again
                tiny_configs[number] = built.scheduler.config
                for name in (None, *pipeline.SAMPLERS):
                    tag = f"{number}.{family}.{name or 'own'}"
                    row = {"tag": tag, "file": number, "family": family, "sampler": name}
                    try:
                        used = built.scheduler if name is None else pipeline.sampler(name, built.scheduler.config)
                        row["class"] = type(used).__name__
                        used.set_timesteps(5)
                        values[f"{tag}.timesteps"] = used.timesteps.to(torch.float64)
                        if hasattr(used, "sigmas"):
                            values[f"{tag}.sigmas"] = torch.as_tensor(np.asarray(used.sigmas)).to(torch.float64)
                        keys = ("clip_sample", "steps_offset", "timestep_spacing", "prediction_type", "set_alpha_to_one", "skip_prk_steps", "rescale_betas_zero_snr", "final_sigmas_type", "use_karras_sigmas", "algorithm_type", "solver_order", "euler_at_final", "lower_order_final", "beta_schedule")
                        known = __import__("inspect").signature(type(used).__init__).parameters
                        row["resolved"] = {k: used.config[k] for k in keys if k in known}
                    except Exception as error:
                        row["refused"] = f"{type(error).__name__}: {str(error)[:160]}"
                    rows.append(row)
    save("scheduler-configs", values, "timesteps and sigmas at 5 steps; tags: file number, family of the pipeline, sampler; see scheduler-configs-rows.json")
    path = LADDER / "scheduler-configs-rows.json"
    head = json.dumps([{"label": label, **file} for label, file in files.items()], indent=1)
    path.write_text('{"files": ' + head + ', "rows": [\n' + ",\n".join(json.dumps(r, separators=(",", ":")) for r in rows) + "\n]}\n")


def controlnet(name, seed):
    """What a ControlNet adds: the hint, the residuals of every skip connection and of the middle, at scale 0.7."""
    file = controls.CONTROLS / name
    model, r = controls.load(file), randoms(seed)
    config = model.config
    out = {"sample": r(2, 4, 6, 5), "picture": r(1, 3, 48, 40, scale=0.3).abs(), "timestep": torch.tensor(741.5)}
    out["context"] = r(2, 9, config.cross_attention_dim)
    added = {}
    if config.addition_embed_type == "text_time":
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        out |= {"text_embeds": r(2, pooled), "time_ids": torch.tensor([[48.0, 40, 0, 0, 48, 40]] * 2)}
        added = {"added_cond_kwargs": {"text_embeds": out["text_embeds"], "time_ids": out["time_ids"]}}
    seen = model(out["sample"], out["timestep"], out["context"], out["picture"].expand(2, -1, -1, -1), conditioning_scale=0.7, **added)
    picture = out["picture"].flip(1) if config.controlnet_conditioning_channel_order == "bgr" else out["picture"]
    out["hint"] = model.controlnet_cond_embedding(picture)
    for i, residual in enumerate(seen.down_block_res_samples):
        out[f"down.{i}"] = residual
    out["mid"] = seen.mid_block_res_sample
    save(f"controlnet-{file.stem}", out, "ControlNetModel.forward, conditioning_scale 0.7", [file])


def noise_picture(width, height, seed, most):
    """Random pixels from a generator that is written in a line anywhere: Knuth's MMIX, its top bits."""
    state, values = seed, []
    for _ in range(width * height * 3):
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        values.append((state >> 40) % (most + 1))
    return images.Image.fromarray(np.array(values, np.uint8).reshape(height, width, 3))


def control_maps():
    """OpenCV's edges and the other maps, of the reference pictures and of noise; the maps are grey."""
    out = {}
    pictures = {name: images.load(IMAGES / f"{name}.png") for name in ("blocks", "rings", "stripes", "rgba", "exif6")}
    for width, height, most in ((1, 1, 255), (1, 9, 255), (9, 1, 255), (2, 2, 255), (3, 5, 90), (33, 47, 255), (64, 40, 60), (50, 50, 24)):
        pictures[f"noise.{width}.{height}.{most}"] = noise_picture(width, height, 7 * width + height, most)
    for name, picture in pictures.items():
        for low, high in ((50, 200), (100, 200), (0, 0), (20, 60), (40.7, 90.2), (150, 150)):
            edges = np.asarray(controls.preprocess(picture, {"preprocess": "canny", "canny_low": low, "canny_high": high}))
            out[f"canny|{name}|{low}|{high}"] = torch.from_numpy(edges[..., 0] // 255)
        out[f"lineart|{name}"] = torch.from_numpy(np.asarray(controls.preprocess(picture, {"preprocess": "lineart"}))[..., 0].copy())
    for factor in (1, 2, 3.5, 64):
        tile = controls.preprocess(pictures["rgba"], {"preprocess": "tile", "tile_downscale": factor})
        out[f"tile|rgba|{factor}"] = torch.from_numpy(np.asarray(tile).copy())
    save("control-maps", out, "cv2.Canny(picture[..., ::-1], low, high) / 255, lines by cv2.GaussianBlur, tiles by Pillow's Lanczos")


def build():
    shutil.rmtree(LADDER, ignore_errors=True)
    operations()
    noise()
    mask_downsampling()
    pixel_values()
    for name in ("sd15-a", "sd15-v", "sd15-s", "sdxl-a", "sdxl-b"):
        unet_blocks(name)
        vae_blocks(name)
        text(name)
    vae_tiles("sd15-v")
    vae_tiny()
    text("text-tower")
    vision("vit-a")
    vision("vit-b")
    projections()
    unet_with_images("sd15-a", ["sd15-a-base.safetensors", "sd15-a-plus.safetensors"])
    unet_with_images("sd15-v", ["sd15-v-full.safetensors"])
    unet_with_images("sdxl-a", ["sdxl-a-base.safetensors", "sdxl-a-full.bin", "sdxl-a-plus.safetensors"])
    unet_with_images("sdxl-b", ["sdxl-b-base.bin"])
    schedulers()
    scheduler_configs()
    for i, name in enumerate(("sd15-a", "sd15-s-small", "sd15-s-pooled", "sdxl-a.safetensors")):
        controlnet(name, 60 + i)
    control_maps()


if __name__ == "__main__":
    quiet()
    build()
