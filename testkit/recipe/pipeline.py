"""Runs one request through diffusers' own pipeline. What the rules are is written in README.md."""

import copy
import json
import math
from functools import lru_cache
from pathlib import Path

import diffusers
import torch
from diffusers import (
    StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionControlNetInpaintPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLControlNetImg2ImgPipeline,
    StableDiffusionXLControlNetInpaintPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
)
from diffusers.image_processor import IPAdapterMaskProcessor
from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0
from diffusers.models.embeddings import ImageProjection
from transformers import CLIPImageProcessor, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer, CLIPVisionModelWithProjection

from lycoris.functional import loha, lokr
from peft import LoraConfig, inject_adapter_in_model
from PIL import Image
from safetensors.torch import load_file

import controls
import high_resolution
import images
import savings

# transformers 5 dropped the attribute that StableDiffusionPipeline's clip_skip reads.
if not hasattr(CLIPTextModel, "text_model"):
    CLIPTextModel.text_model = property(lambda self: self)

SAMPLERS = {
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
    "ddim": ("DDIMScheduler", {}),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "dpmpp_2m_karras": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "use_karras_sigmas": True}),
    "dpmpp_2m_sde_karras": (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True},
    ),
    "unipc": ("UniPCMultistepScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "lms": ("LMSDiscreteScheduler", {}),
    "pndm": ("PNDMScheduler", {}),
    "lcm": ("LCMScheduler", {}),
    "ddpm": ("DDPMScheduler", {}),
    "dpm2": ("KDPM2DiscreteScheduler", {}),
    "dpm2_a": ("KDPM2AncestralDiscreteScheduler", {}),
    "tcd": ("TCDScheduler", {}),
}

STYLE = {"sd": ["up_blocks.1"], "xl": ["up_blocks.0.attentions.1"]}
LAYOUT = {"sd": ["down_blocks.2", "mid_block"], "xl": ["down_blocks.2.attentions.1"]}


# Not among those that every model is run with.
MORE_SAMPLERS = {"dpmpp_2m_sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"})}
# diffusers' documentation: api/schedulers/overview, "Noise schedules and schedule types".
NO_CURVE = {"use_karras_sigmas": False, "use_exponential_sigmas": False}
SCHEDULES = {
    None: {},
    "normal": NO_CURVE,
    "karras": {**NO_CURVE, "use_karras_sigmas": True},
    "exponential": {**NO_CURVE, "timestep_spacing": "linspace", "use_exponential_sigmas": True},
    "sgm_uniform": {**NO_CURVE, "timestep_spacing": "trailing"},
}


def sampler(name, config, schedule=None, own=None):
    cls, extra = (SAMPLERS | MORE_SAMPLERS)[name] if name else (own, {})
    return getattr(diffusers, cls).from_config(config, **extra, **SCHEDULES[schedule])


def load_model(folder):
    folder = Path(folder)
    cls = getattr(diffusers, json.loads((folder / "model_index.json").read_text())["_class_name"])
    assert cls in (StableDiffusionPipeline, StableDiffusionXLPipeline)
    variant = "fp16" if any((folder / "unet").glob("*.fp16*")) else None
    extra = {"add_watermarker": False} if cls is StableDiffusionXLPipeline else {"requires_safety_checker": False}
    pipe = cls.from_pretrained(folder, variant=variant, torch_dtype=torch.float32, local_files_only=True, **extra)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@lru_cache(None)
def vision(folder):
    model = CLIPVisionModelWithProjection.from_pretrained(folder, dtype=torch.float32).eval()
    if (folder / "preprocessor_config.json").exists():
        processor = CLIPImageProcessor.from_pretrained(folder)
    else:  # as load_ip_adapter does
        processor = CLIPImageProcessor(size=model.config.image_size, crop_size=model.config.image_size)
    return model, processor


@lru_cache(None)
def tower(folder):
    return CLIPTextModelWithProjection.from_pretrained(folder, dtype=torch.float32).eval(), CLIPTokenizer.from_pretrained(folder)


def content_features(pipe, text, folder):
    """Pooled, projected, un-normalised text features."""
    model, tokenizer = tower(folder) if folder else (pipe.text_encoder_2, pipe.tokenizer_2)
    ids = tokenizer(text, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
    return model(ids).text_embeds


def site_weights(inject, family, sites):
    """Weight per site: `sites` are module paths like up_blocks.0.attentions.1.transformer_blocks.0.attn2."""
    if inject == "all":
        return {site: 1.0 for site in sites}
    if isinstance(inject, str):
        keys = {"style": STYLE[family], "layout": LAYOUT[family], "style+layout": STYLE[family] + LAYOUT[family]}[inject]
        inject = {key: 1.0 for key in keys}
    out = {}
    for site in sites:
        matches = [(len(k), w) for k, w in inject.items() if site == k or site.startswith(k + ".")]
        out[site] = max(matches)[1] if matches else 0.0
    for key in inject:
        assert any(s == key or s.startswith(key + ".") for s in sites), key
    return out


def active(index, total, start, end):
    """diffusers' rule for a ControlNet's guidance window, over the scheduler's list of timesteps."""
    return not (index / total < start or (index + 1) / total > end)


def group(references):
    """References that share a file, an encoder and their settings attend together; the others stand alone."""
    groups = []
    for ref in references:
        masked = ref.get("mask") is not None
        key = (ref["adapter"], ref["image_encoder"], json.dumps(ref.get("inject", "style")), ref.get("start", 0.0), ref.get("end", 1.0))
        weight = ref.get("weight", 1.0)
        for g in groups:
            if g["key"] == key and g["masked"] == masked and (masked or g["weights"][0] == weight):
                g["refs"].append(ref)
                g["weights"].append(weight)
                break
        else:
            groups.append({"key": key, "masked": masked, "refs": [ref], "weights": [weight]})
    return groups


# Pipelines by family, by where they start, and by whether ControlNets take part.
PIPELINES = {
    "sd": {
        "init": (StableDiffusionImg2ImgPipeline, StableDiffusionControlNetImg2ImgPipeline),
        "mask": (StableDiffusionInpaintPipeline, StableDiffusionControlNetInpaintPipeline),
        "noise": (StableDiffusionPipeline, StableDiffusionControlNetPipeline),
    },
    "xl": {
        "init": (StableDiffusionXLImg2ImgPipeline, StableDiffusionXLControlNetImg2ImgPipeline),
        "mask": (StableDiffusionXLInpaintPipeline, StableDiffusionXLControlNetInpaintPipeline),
        "noise": (StableDiffusionXLPipeline, StableDiffusionXLControlNetPipeline),
    },
}


def other_pipeline(pipe, xl, init, nets):
    """The pipeline that starts from a picture or has ControlNets, on the parts of the plain one."""
    start = "noise" if not init else "mask" if init.get("mask") else "init"
    extra = {"add_watermarker": False} if xl else {"requires_safety_checker": False}
    if xl:
        extra["force_zeros_for_empty_prompt"] = pipe.config.force_zeros_for_empty_prompt
    if nets:
        extra["controlnet"] = nets if len(nets) > 1 else nets[0]
    made = PIPELINES["xl" if xl else "sd"][start][bool(nets)](**{k: v for k, v in pipe.components.items()}, **extra)
    made.set_progress_bar_config(disable=True)
    return made


B_LORA = {"content": "unet.up_blocks.0.attentions.0.", "style": "unet.up_blocks.0.attentions.1."}


def load_lora(pipe, file, used, name):
    """Through diffusers and peft; LoHa and LoKr, which they do not take from such files, merged with LyCORIS' own functions."""
    state = load_file(file)
    if any("hada_" in k or "lokr_" in k for k in state):
        return merge_lycoris(pipe.unet, state, used["weight"])
    if any("dora_scale" in k for k in state):
        return merge_dora(pipe.unet, state, used["weight"])
    blocks = used.get("blocks", "all")
    if blocks != "all":
        return pipe.load_lora_weights({k: v for k, v in state.items() if k.startswith(B_LORA[blocks])}, adapter_name=name)
    towers = {k: v for k, v in state.items() if k.startswith("lora_te")}
    if not towers:
        return pipe.load_lora_weights(file.parent, weight_name=file.name, adapter_name=name)
    # diffusers 0.42 does not find text encoders' layers where transformers 5 names them: these are merged here.
    for key in {k.split(".")[0] for k in towers}:
        prefix, layer = key.split("_text_model_")
        tower = pipe.text_encoder_2 if prefix == "lora_te2" else pipe.text_encoder
        modules = {n.removeprefix("text_model.").replace(".", "_"): m for n, m in tower.named_modules()}
        down, up = towers[f"{key}.lora_down.weight"].float(), towers[f"{key}.lora_up.weight"].float()
        modules[layer].weight.data += used["weight"] * float(towers[f"{key}.alpha"]) / len(down) * (up @ down)
    pipe.load_lora_weights({k: v for k, v in state.items() if k not in towers}, adapter_name=name)


def merge_lycoris(network, state, weight):
    state = {k: v.float() for k, v in state.items()}
    modules = {n.replace(".", "_"): m for n, m in network.named_modules()}
    for key in {k.split(".")[0] for k in state}:
        module = modules[key.removeprefix("lycoris_").removeprefix("lora_unet_")]
        get = lambda n: state.get(f"{key}.{n}")  # noqa: B023, E731
        if get("hada_w1_a") is not None:
            gamma = get("alpha") / get("hada_w1_b").shape[0]
            delta = loha.diff_weight(get("hada_w1_b"), get("hada_w1_a"), get("hada_w2_b"), get("hada_w2_a"), None, None, gamma=float(gamma))
        else:
            delta = lokr.diff_weight(get("lokr_w1"), None, None, None, get("lokr_w2_a"), get("lokr_w2_b"), None, gamma=float(get("alpha")))
        module.weight.data += weight * delta.reshape(module.weight.shape)


def merge_dora(network, state, weight):
    """With peft's own layers: diffusers 0.42 leaves the magnitudes of kohya's files out."""
    modules = {n.replace(".", "_"): m for n, m in network.named_modules()}
    for key in {k.split(".")[0] for k in state}:
        module = modules[key.removeprefix("lora_unet_")]
        down, up, alpha, scale = (state[f"{key}.{n}"].float() for n in ("lora_down.weight", "lora_up.weight", "alpha", "dora_scale"))
        config = LoraConfig(r=len(down), lora_alpha=float(alpha), target_modules=["0"], use_dora=True)
        layer = inject_adapter_in_model(config, torch.nn.Sequential(copy.deepcopy(module)))[0]
        layer.lora_A["default"].weight.data, layer.lora_B["default"].weight.data = down, up
        layer.lora_magnitude_vector["default"].weight.data = scale.flatten()
        layer.set_scale("default", weight)
        layer.merge()
        module.weight.data = layer.get_base_layer().weight.data


def two_passes(job, base):
    """The latents of a first pass, enlarged by torch, as the start of image-to-image."""
    first = {k: v for k, v in job.items() if k != "hires"}
    latents, _, _ = run(first, base)
    hires = job["hires"]
    scale = latents.shape[-1] / job["width"]
    size = (int(hires["height"] * scale), int(hires["width"] * scale))
    mode = {"latent": {"mode": "bilinear", "align_corners": False}, "latent-nearest": {"mode": "nearest"}}[hires["upscale"]]
    start = {"latents": torch.nn.functional.interpolate(latents, size=size, **mode), "strength": hires["strength"]}
    return run({**first, "width": hires["width"], "height": hires["height"], "steps": hires["steps"], "init": start}, base)


def run(job, base, drop_references=False, prompt=None, perturb=0.0, alone=None):
    """Returns (latents, pictures, info). The keyword arguments make the variations of the sensitivity check."""
    base = Path(base)
    if job.get("hires"):
        return two_passes(job, base)
    init = job.get("init")
    if init and job.get("count", 1) > 1 and alone is None:
        # Each picture as if it were made alone: diffusers' inpainting encodes the picture once, with the first generator.
        parts = [run(job, base, drop_references, prompt, perturb, i) for i in range(job["count"])]
        return torch.cat([p[0] for p in parts]), [p[1][0] for p in parts], parts[0][2]
    pipe = load_model(base / job["model"])
    xl = isinstance(pipe, StableDiffusionXLPipeline)
    if job.get("vae"):
        folder = (base / job["vae"]).resolve()
        variant = "fp16" if any(folder.glob("*.fp16*")) else None
        kind = getattr(diffusers, json.loads((folder / "config.json").read_text())["_class_name"])
        pipe.register_modules(vae=kind.from_pretrained(folder, variant=variant, torch_dtype=torch.float32))
    used_controls = job.get("controls", [])
    if init or used_controls:
        pipe = other_pipeline(pipe, xl, init, [controls.load((base / c["model"]).resolve()) for c in used_controls])
    family = "xl" if xl else "sd"
    if job.get("sampler") is not None or job.get("schedule") is not None:
        pipe.scheduler = sampler(job.get("sampler"), pipe.scheduler.config, job.get("schedule"), type(pipe.scheduler).__name__)
    steps, guidance = job["steps"], job["guidance"]
    width, height, count, seed = job["width"], job["height"], job.get("count", 1), job["seed"]
    seeds = [seed + i for i in range(count)] if alone is None else [seed + alone]
    guided = guidance > 1

    for i, used in enumerate(job.get("loras", [])):
        load_lora(pipe, (base / used["file"]).resolve(), used, f"l{i}")
    weights = {f"l{i}": used["weight"] for i, used in enumerate(job.get("loras", [])) if f"l{i}" in str(pipe.get_list_adapters())}
    if weights:
        pipe.set_adapters(list(weights), list(weights.values()))

    if weights and any(c["model"].endswith("control-lora.safetensors") for c in used_controls):
        fused = copy.deepcopy(pipe.unet)
        fused.fuse_lora(adapter_names=list(weights))
        state = {k.replace(".base_layer", ""): v for k, v in fused.state_dict().items()}
        nets = pipe.controlnet.nets if len(used_controls) > 1 else [pipe.controlnet]
        for net, used in zip(nets, used_controls):
            if used["model"].endswith("control-lora.safetensors"):
                controls.over(net, state)

    call = {}
    references = [] if drop_references else job.get("references", [])
    groups = group(references)
    if groups:
        files = [(base / g["key"][0]).resolve() for g in groups]
        pipe.register_modules(image_encoder=vision((base / groups[0]["key"][1]).resolve())[0])
        pipe.load_ip_adapter(
            [str(f.parent) for f in files],
            subfolder=[""] * len(files),
            weight_name=[f.name for f in files],
            image_encoder_folder=None,
        )
        embeds, plain = [], True
        for g, projection in zip(groups, pipe.unet.encoder_hid_proj.image_projection_layers):
            encoder, processor = vision((base / g["key"][1]).resolve())
            plain &= encoder is vision((base / groups[0]["key"][1]).resolve())[0]
            pipe.register_modules(image_encoder=encoder, feature_extractor=processor)
            hidden = not isinstance(projection, ImageProjection)
            positive, negative = pipe.encode_image([images.load(base / r["image"]) for r in g["refs"]], "cpu", 1, hidden)
            for i, ref in enumerate(g["refs"]):
                if ref.get("subtract"):
                    assert not hidden
                    plain = False
                    folder = (base / ref["text_encoder"]).resolve() if ref.get("text_encoder") else None
                    features = content_features(pipe, ref["subtract"]["text"], folder)
                    positive[i] -= ref["subtract"]["scale"] * features[0]
            embeds.append(torch.cat([negative[None], positive[None]]) if guided else positive[None])
        if plain:
            call["ip_adapter_image"] = [[images.load(base / r["image"]) for r in g["refs"]] for g in groups]
        else:
            call["ip_adapter_image_embeds"] = embeds

        if any(g["masked"] for g in groups):
            masks = []
            for g in groups:
                if not g["masked"]:
                    masks.append(None)
                    continue
                mask = IPAdapterMaskProcessor().preprocess(
                    [images.load(base / r["mask"]) for r in g["refs"]], height=height, width=width
                )
                masks.append(mask.reshape(1, len(g["refs"]), mask.shape[2], mask.shape[3]))
            call["cross_attention_kwargs"] = {"ip_adapter_masks": masks}

        processors = {
            name.removesuffix(".processor"): p
            for name, p in pipe.unet.attn_processors.items()
            if isinstance(p, IPAdapterAttnProcessor2_0)
        }
        weights = [site_weights(g["refs"][0].get("inject", "style"), family, processors) for g in groups]
        probe = copy.deepcopy(pipe.scheduler)
        probe.set_timesteps(steps)
        skipped = steps - min(int(steps * init["strength"]), steps) if init else 0
        total = len(probe.timesteps) - skipped * probe.order

        def apply(index):
            for site, processor in processors.items():
                for i, g in enumerate(groups):
                    ref = g["refs"][0]
                    on = active(index, total, ref.get("start", 0.0), ref.get("end", 1.0))
                    w = [weights[i][site] * x if on else 0.0 for x in g["weights"]]
                    processor.scale[i] = w if g["masked"] else w[0]

        if xl and len(groups) == 1 and not groups[0]["masked"]:
            check_official(pipe, groups[0], processors, apply)
        apply(0)
    else:
        apply = None

    caught = {}

    cutoff = None

    def on_step(_, index, timestep, kwargs):
        caught["latents"] = kwargs["latents"].clone()
        caught.setdefault("norms", []).append(float(kwargs["latents"].std()))
        if apply is not None:
            apply(index + 1)
        return cutoff(pipe, index, timestep, kwargs) if cutoff else {}

    generators = [torch.Generator("cpu").manual_seed(s) for s in seeds]
    if perturb:
        factor = pipe.vae_scale_factor
        shape = (1, pipe.unet.config.in_channels, height // factor, width // factor)
        noise = torch.cat([torch.randn(shape, generator=g) for g in generators])
        nudge = torch.randn(noise.shape, generator=torch.Generator().manual_seed(5))
        call["latents"] = noise + perturb * nudge
    clip_skip = job.get("clip_skip", 0)
    if init:
        assert not perturb
        size = (width, height)
        picture = init["latents"] if "latents" in init else images.load(base / init["image"]).resize(size, Image.LANCZOS)
        call |= {"image": picture, "strength": init["strength"]}
        if init.get("mask"):
            call |= {"mask_image": images.load(base / init["mask"]).resize(size, Image.LANCZOS), "width": width, "height": height}
    else:
        call |= {"width": width, "height": height}
    if used_controls:
        pictures = [images.load(base / c["image"]).resize((width, height), Image.LANCZOS) for c in used_controls]
        pictures = [controls.preprocess(p, c) for p, c in zip(pictures, used_controls)]
        one = (lambda values: values) if len(used_controls) > 1 else (lambda values: values[0])
        call |= {
            "control_image" if init else "image": one(pictures),
            "width": width,
            "height": height,
            "controlnet_conditioning_scale": one([c.get("scale", 1.0) for c in used_controls]),
            "control_guidance_start": one([c.get("start", 0.0) for c in used_controls]),
            "control_guidance_end": one([c.get("end", 1.0) for c in used_controls]),
        }
    if (xl or not init) and not used_controls:
        call["guidance_rescale"] = job.get("guidance_rescale", 0.0)
    if job.get("hidiffusion", "off") != "off":
        assert len(seeds) == 1
        high_resolution.apply(pipe, base / job["model"], family, job["hidiffusion"] == "on", seeds[0])
    paint = pipe
    if job.get("token_merging"):
        assert len(seeds) == 1
        savings.merge(pipe, job["token_merging"], seeds[0])
    if job.get("cross_freeze"):
        calls = math.floor(job["cross_freeze"] * steps)  # samplers of one call a step
        if groups:
            cutoff, wanted = savings.freeze(pipe, xl, calls)
            call["callback_on_step_end_tensor_inputs"] = ["latents", *wanted]
        else:
            paint = savings.gated(pipe, xl, calls)
    result = paint(
        prompt=job["prompt"] if prompt is None else prompt,
        negative_prompt=job.get("negative_prompt"),
        num_images_per_prompt=len(seeds),
        num_inference_steps=steps,
        guidance_scale=guidance,
        clip_skip=clip_skip or None,
        generator=generators,
        callback_on_step_end=on_step,
        output_type="pil",
        **call,
    )
    latents = caught["latents"].float().contiguous()
    assert torch.isfinite(latents).all()
    info = {"timesteps": [float(t) for t in pipe.scheduler.timesteps], "std": caught["norms"]}
    return latents, result.images, info


def check_official(pipe, g, processors, apply):
    """On SDXL the two presets have an official spelling: it must set the same scales."""
    inject, weight = g["refs"][0].get("inject", "style"), g["weights"][0]
    down = {"block_2": [0.0, weight]} if "layout" in inject else None
    up = {"block_0": [0.0, weight, 0.0]} if "style" in inject else None
    if inject not in ("style", "layout", "style+layout") or g["refs"][0].get("start", 0.0) > 0:
        return
    if 1 / 8 > g["refs"][0].get("end", 1.0):
        return
    scale = {k: v for k, v in (("down", down), ("up", up)) if v}
    pipe.set_ip_adapter_scale(scale)
    official = {site: list(p.scale) for site, p in processors.items()}
    apply(0)
    ours = {site: list(p.scale) for site, p in processors.items()}
    assert official == ours, (official, ours)


def relative(a, b):
    return float((a - b).norm() / b.norm())
