"""The whole-run cases: requests, and what diffusers makes of them."""

import shutil
import sys

from safetensors.torch import save_file

import pipeline
from common import CASES, write_json

A, B, TOWER = "vit-a", "vit-b", "text-tower"
DEFAULT_PROMPT = {
    "sd15-a": "a cat sitting on a red chair, masterpiece, best quality",
    "sd15-v": "a ship on the sea at sunset, oil painting",
    "sd15-s": "two birds in a blue sky",
    "sdxl-a": "a lonely castle on a mountain, watercolor, highly detailed",
    "sdxl-b": "an astronaut riding a horse, pencil sketch",
    "sd15-i": "a white boat on a lake",
    "sdxl-i": "a stone bridge over a river, ink",
}
NEGATIVE = "text, watermark, lowres, low quality, blurry"
LONG = " ".join(
    f"{colour} {thing} {place},"
    for colour in ("red", "green", "blue", "golden", "bright", "dark")
    for thing, place in (("house", "near the river"), ("tree", "under the sun"), ("cat", "on a table"))
) + " and at the very end a word that is cut away"

CASE_LIST = []
# For large pictures of noise, whose files would be large too.
LATENTS_ALONE = "latents alone"


def ref(adapter, image="waves.png", encoder=A, inject="style", weight=1.0, **extra):
    """A reference; `mask`, `subtract` = (text, scale), `tower`, `start`, `end` in `extra`."""
    out = {
        "image": f"../../images/{image}",
        "adapter": f"../../adapters/{adapter}",
        "image_encoder": f"../../models/{encoder}",
        "inject": inject,
        "weight": weight,
    }
    if "mask" in extra:
        out["mask"] = f"../../images/{extra.pop('mask')}"
    if "subtract" in extra:
        text, scale = extra.pop("subtract")
        out["subtract"] = {"text": text, "scale": scale}
    if "tower" in extra:
        out["text_encoder"] = f"../../models/{extra.pop('tower')}"
    out.update(extra)
    return out


def case(name, model, references=(), features=(), omit=(), **fields):
    job = {
        "model": f"../../models/{model}",
        "precision": "f32",
        "device": "cpu",
        "prompt": DEFAULT_PROMPT[model],
        "negative_prompt": NEGATIVE,
        "width": 64,
        "height": 64,
        "count": 1,
        "seed": 1000 + len(CASE_LIST),
        "steps": 5,
        "guidance": 5.0,
        "sampler": "euler",
        "references": list(references),
    }
    if model == "sd15-s":  # sample prediction under strong guidance is chaotic
        job["guidance"] = 1.5
    job.update(fields)
    for key in omit:
        job.pop(key)
    family = "sdxl" if model.startswith("sdxl") else "sd15"
    tags = [family, model, job.get("sampler", "own"), *features]
    CASE_LIST.append({"name": name, "job": job, "features": tags})


def declare():
    # The plain model, every checkpoint with its own sampler.
    for model, side in (("sd15-a", 64), ("sd15-v", 48), ("sd15-s", 64), ("sdxl-a", 64), ("sdxl-b", 64)):
        case(f"{model}-plain", model, features=["plain", "own sampler"], omit=["sampler"], width=side, height=side)

    # Every sampler on both families, each with an adapter.
    for i, sampler in enumerate(pipeline.SAMPLERS):
        inject = ("style", "all", "layout", "style+layout")[i % 4]
        steps = 4 + i % 4
        case(
            f"sd15-a-{sampler}",
            "sd15-a",
            [ref("sd15-a-base.safetensors", "rings.png", inject=inject)],
            ["base", inject],
            sampler=sampler,
            steps=steps,
        )
        inject = ("all", "style", "style+layout", "layout")[i % 4]
        case(
            f"sdxl-a-{sampler}",
            "sdxl-a",
            [ref("sdxl-a-base.safetensors", "blocks.png", B, inject)],
            ["base", inject],
            sampler=sampler,
            steps=steps,
        )

    # The other scheduler configurations: zero terminal SNR with v-prediction, Karras sigmas with a kept last sigma,
    # sample prediction.
    for sampler in pipeline.SAMPLERS:
        case(
            f"sd15-v-{sampler}",
            "sd15-v",
            [ref("sd15-v-base.bin", "stripes.png", inject="all", weight=0.8)],
            ["base", "all", "v_prediction", "pickle"],
            sampler=sampler,
            width=32,
            height=48,
            steps=6,
        )
    for sampler in ("euler", "ddim", "dpmpp_2m", "unipc", "lcm", "ddpm", "tcd", "euler_a", "lms", "dpmpp_2m_sde_karras"):
        case(
            f"sdxl-b-{sampler}",
            "sdxl-b",
            [ref("sdxl-b-base.bin", "waves.png", B, "style+layout", weight=1.2)],
            ["base", "style+layout", "fp16 shards", "legacy pickle"],
            sampler=sampler,
            # This file leaves clip_sample to the class: with x0 clipped, strong guidance is chaotic.
            **({"steps": 3, "guidance": 1.0} if sampler in ("ddim", "ddpm") else {"steps": 6}),
        )
    for sampler in ("euler", "ddim", "dpmpp_2m", "lcm"):
        case(
            f"sd15-s-{sampler}",
            "sd15-s",
            [ref("sd15-s-base.safetensors", "rings.png", inject="style")],
            ["base", "style", "sample prediction"],
            sampler=sampler,
        )

    projections()
    blocks()
    subtraction()
    several()
    masks()
    guidance()
    sizes()
    prompts()
    windows()
    inputs()
    pictures()
    loras()
    controlled()
    fast()
    high_resolution()
    savings()


def projections():
    kinds = {
        "sd15-a": (("plus", "sd15-a-plus.safetensors", A), ("plus-b", "sd15-a-plus2.bin", B), ("full", "sd15-a-full.bin", A)),
        "sdxl-a": (("plus", "sdxl-a-plus.safetensors", A), ("full", "sdxl-a-full.bin", B)),
        "sd15-v": (("plus", "sd15-v-plus.safetensors", B), ("full", "sd15-v-full.safetensors", B)),
        "sdxl-b": (("plus", "sdxl-b-plus.bin", B), ("full", "sdxl-b-full.safetensors", A)),
    }
    presets = ("style", "layout", "style+layout", "all")
    samplers = ("euler", "dpmpp_2m_karras", "ddim", "unipc", "euler_a", "heun", "pndm", "lms")
    n = 0
    for model, made in kinds.items():
        for kind, adapter, encoder in made:
            # Every preset on the two main models, two of them on the others.
            for inject in presets if model.endswith("-a") and kind != "plus-b" else presets[n % 2 :: 2]:
                sampler = samplers[n % len(samplers)]
                if model == "sdxl-b" and sampler == "ddim":
                    sampler = "dpmpp_2m"
                file = "pickle" if adapter.endswith(".bin") else "safetensors"
                case(
                    f"{model}-{kind}-{inject.replace('+', '-')}",
                    model,
                    [ref(adapter, ("waves.png", "blocks.png", "rings.png")[n % 3], encoder, inject, weight=(1.0, 0.7)[n % 2])],
                    [kind.removesuffix("-b"), inject, file],
                    sampler=sampler,
                )
                n += 1


def blocks():
    spots = {
        "sdxl-a": (
            ("style-and-mid", {"up_blocks.0.attentions.1": 1.0, "mid_block": 0.2}),
            ("one-transformer", {"up_blocks.0.attentions.1.transformer_blocks.1": 1.0}),
            ("down-and-up", {"down_blocks.1": 0.6, "up_blocks.1.attentions.0": 1.3, "down_blocks.2.attentions.0": 0.0}),
            ("mid", {"mid_block": 1.0}),
        ),
        "sd15-a": (
            ("mid-attention", {"mid_block.attentions.0": 1.5}),
            ("first-last", {"down_blocks.0.attentions.0": 1.0, "up_blocks.3.attentions.2": 0.8}),
            ("one-transformer", {"up_blocks.2.attentions.1.transformer_blocks.0": 1.5, "down_blocks.2": 0.4}),
        ),
    }
    for model, made in spots.items():
        for tag, inject in made:
            adapter = f"{model}-base.safetensors"
            encoder = B if model == "sdxl-a" else A
            case(f"{model}-blocks-{tag}", model, [ref(adapter, "stripes.png", encoder, inject, 1.1)], ["base", "explicit blocks"])
    case(
        "sdxl-b-blocks-third-transformer",
        "sdxl-b",
        [ref("sdxl-b-base.bin", "rings.png", B, {"down_blocks.2.attentions.1.transformer_blocks.2": 1.0, "mid_block": 0.5})],
        ["base", "explicit blocks"],
        sampler="dpmpp_2m",
    )
    case(
        "sdxl-a-blocks-plus",
        "sdxl-a",
        [ref("sdxl-a-plus.safetensors", "blocks.png", A, {"up_blocks.0": 0.9, "mid_block.attentions.0.transformer_blocks.0": 0.4})],
        ["plus", "explicit blocks"],
        sampler="unipc",
    )
    for model, adapter, encoder in (("sd15-a", "sd15-a-base.safetensors", A), ("sdxl-a", "sdxl-a-base.safetensors", B)):
        case(f"{model}-weight-0", model, [ref(adapter, "rings.png", encoder, "all", 0.0)], ["base", "all", "weight 0"])


def subtraction():
    case(
        "sdxl-a-subtract",
        "sdxl-a",
        [ref("sdxl-a-base.safetensors", "blocks.png", B, "style", subtract=("a rabbit", 0.5))],
        ["base", "style", "subtraction"],
    )
    case(
        "sdxl-a-subtract-all",
        "sdxl-a",
        [ref("sdxl-a-base2.bin", "waves.png", B, "all", 0.6, subtract=("two dogs in a field, oil painting", 1.0))],
        ["base", "all", "subtraction"],
        sampler="dpmpp_2m",
    )
    case(
        "sdxl-a-subtract-tower",
        "sdxl-a",
        [ref("sdxl-a-base-h.safetensors", "rings.png", A, "style+layout", subtract=("a house", 0.5), tower=TOWER)],
        ["base", "style+layout", "subtraction", "text encoder given"],
        sampler="unipc",
    )
    case(
        "sdxl-a-subtract-guidance-1",
        "sdxl-a",
        [ref("sdxl-a-base.safetensors", "blocks.png", B, "style", subtract=("a rabbit", 0.8))],
        ["base", "style", "subtraction", "guidance 1"],
        guidance=1.0,
        sampler="ddim",
    )
    case(
        "sdxl-b-subtract",
        "sdxl-b",
        [ref("sdxl-b-base.bin", "stripes.png", B, "all", 0.8, subtract=("猫 a cat", 0.7))],
        ["base", "all", "subtraction"],
        sampler="euler",
    )
    case(
        "sdxl-b-subtract-tower",
        "sdxl-b",
        [ref("sdxl-b-base-h.safetensors", "stripes.png", A, "layout", subtract=("a cat", 0.7), tower=TOWER)],
        ["base", "layout", "subtraction", "text encoder given"],
        sampler="heun",
    )
    for i, (inject, scale) in enumerate((("style", 0.8), ("all", 0.5), ("style+layout", 1.2))):
        case(
            f"sd15-a-subtract-{inject.replace('+', '-')}",
            "sd15-a",
            [ref("sd15-a-base.safetensors", "blocks.png", A, inject, subtract=("a tree by the river", scale), tower=TOWER)],
            ["base", inject, "subtraction", "text encoder given"],
            sampler=("euler", "dpm2_a", "ddim")[i],
            count=1 + (i == 2),
        )
    case(
        "sd15-v-subtract",
        "sd15-v",
        [ref("sd15-v-base.bin", "rings.png", A, "style", subtract=("", 0.5), tower=TOWER)],
        ["base", "style", "subtraction", "text encoder given", "v_prediction"],
        width=40,
        height=40,
    )


def several():
    both = lambda a, e, inject="all", w=1.0: [ref(a, "waves.png", e, inject, w), ref(a, "blocks.png", e, inject, w)]  # noqa: E731
    two = ["two references, one adapter"]
    case("sd15-a-two-base", "sd15-a", both("sd15-a-base.safetensors", A), ["base", "all", *two])
    case("sd15-a-two-plus", "sd15-a", both("sd15-a-plus.safetensors", A, "style"), ["plus", "style", *two], sampler="dpmpp_2m")
    case("sd15-a-two-full", "sd15-a", both("sd15-a-full.bin", A, "style+layout", 0.8), ["full", "style+layout", *two], sampler="lms")
    case("sdxl-a-two-base", "sdxl-a", both("sdxl-a-base.safetensors", B, "style"), ["base", "style", *two], sampler="ddim")
    case("sdxl-a-two-plus", "sdxl-a", both("sdxl-a-plus.safetensors", A, "all", 0.5), ["plus", "all", *two])
    case("sdxl-a-two-full", "sdxl-a", both("sdxl-a-full.bin", B, "layout"), ["full", "layout", *two], count=2, sampler="euler_a")
    three = [ref("sdxl-b-base.bin", n, B, "style") for n in ("rings.png", "stripes.png", "small.png")]
    case("sdxl-b-three-base", "sdxl-b", three, ["base", "style", "three references, one adapter"], guidance=1.0)
    subtracted = both("sdxl-a-base.safetensors", B, "style")
    subtracted[1]["subtract"] = {"text": "a bird", "scale": 0.6}
    case("sdxl-a-two-one-subtracted", "sdxl-a", subtracted, ["base", "style", "subtraction", *two])

    more = ["two adapters"]
    case(
        "sd15-a-base-and-plus",
        "sd15-a",
        [ref("sd15-a-base.safetensors", "rings.png", A, "style"), ref("sd15-a-plus.safetensors", "blocks.png", A, "layout", 0.7)],
        ["base", "plus", "style", "layout", *more],
    )
    case(
        "sd15-a-two-encoders",
        "sd15-a",
        [ref("sd15-a-base2.bin", "rings.png", A, "all", 0.5), ref("sd15-a-base-b.safetensors", "waves.png", B, "all", 0.5)],
        ["base", "all", "two encoders", "pickle", *more],
        sampler="unipc",
    )
    case(
        "sdxl-a-two-adapters",
        "sdxl-a",
        [ref("sdxl-a-base.safetensors", "rings.png", B, "style"), ref("sdxl-a-base2.bin", "waves.png", B, "style+layout", 0.6)],
        ["base", "style", "style+layout", *more],
        sampler="dpmpp_2m_karras",
    )
    case(
        "sdxl-a-three-adapters",
        "sdxl-a",
        [
            ref("sdxl-a-full.bin", "rings.png", B, "layout"),
            ref("sdxl-a-plus.safetensors", "waves.png", A, "style", 0.8),
            ref("sdxl-a-base-h.safetensors", "stripes.png", A, {"mid_block": 0.5}, 1.0, subtract=("a dog", 0.5), tower=TOWER),
        ],
        ["base", "plus", "full", "style", "layout", "subtraction", "explicit blocks", "three adapters", "two encoders"],
        guidance=1.0,
    )
    case(
        "sdxl-a-adapter-in-two-roles",
        "sdxl-a",
        [ref("sdxl-a-base.safetensors", "rings.png", B, "style"), ref("sdxl-a-base.safetensors", "waves.png", B, "layout", 0.8)],
        ["base", "style", "layout", "one adapter in two roles"],
    )
    case(
        "sd15-v-two-adapters",
        "sd15-v",
        [ref("sd15-v-plus.safetensors", "rings.png", B, "all", 0.5), ref("sd15-v-full.safetensors", "waves.png", B, "style", 0.6)],
        ["plus", "full", "all", "style", "v_prediction", *more],
        width=48,
        height=32,
        sampler="dpmpp_2m",
    )
    case(
        "sdxl-b-two-adapters-two-references",
        "sdxl-b",
        [
            ref("sdxl-b-base-h.safetensors", "rings.png", A, "style", 0.7),
            ref("sdxl-b-plus.bin", "stripes.png", B, "style", 0.9),
            ref("sdxl-b-base-h.safetensors", "blocks.png", A, "style", 0.7),
        ],
        ["base", "plus", "style", *more, *two],
        sampler="dpmpp_2m_sde_karras",
    )


def masks():
    left, right = {"mask": "mask-left.png"}, {"mask": "mask-right.png"}
    for model, adapter, encoder in (("sd15-a", "sd15-a-base.safetensors", A), ("sdxl-a", "sdxl-a-base.safetensors", B)):
        case(f"{model}-mask", model, [ref(adapter, "rings.png", encoder, "all", **left)], ["base", "all", "mask"])
        case(
            f"{model}-two-masks",
            model,
            [ref(adapter, "rings.png", encoder, "style", **left), ref(adapter, "blocks.png", encoder, "style", **right)],
            ["base", "style", "mask", "two references, one adapter"],
            sampler="ddim",
        )
        case(
            f"{model}-two-masks-weights",
            model,
            [ref(adapter, "waves.png", encoder, "all", 0.9, mask="mask-soft.png"), ref(adapter, "blocks.png", encoder, "all", 0.4, **right)],
            ["base", "all", "mask", "two references, one adapter"],
            sampler="dpmpp_2m",
        )
    case(
        "sd15-a-mask-plus-portrait",
        "sd15-a",
        [
            ref("sd15-a-plus.safetensors", "rings.png", A, "style+layout", mask="mask-top-portrait.png"),
            ref("sd15-a-plus.safetensors", "blocks.png", A, "style+layout", mask="mask-bottom-portrait.png"),
        ],
        ["plus", "style+layout", "mask", "portrait", "two references, one adapter"],
        width=48,
        height=80,
    )
    case(
        "sd15-a-mask-landscape",
        "sd15-a",
        [ref("sd15-a-full.bin", "rings.png", A, "all", 0.8, mask="mask-bars-wide.png")],
        ["full", "all", "mask", "landscape"],
        width=80,
        height=48,
        sampler="euler_a",
        count=2,
    )
    case(
        "sd15-a-mask-odd",
        "sd15-a",
        [ref("sd15-a-base.safetensors", "rings.png", A, "all", mask="mask-disc.png")],
        ["base", "all", "mask", "portrait", "odd latents"],
        width=40,
        height=56,
    )
    case(
        "sdxl-a-mask-disc",
        "sdxl-a",
        [ref("sdxl-a-plus.safetensors", "stripes.png", A, "style", mask="mask-disc.png")],
        ["plus", "style", "mask", "landscape"],
        width=96,
        height=64,
        sampler="unipc",
    )
    case(
        "sdxl-a-masked-adapters",
        "sdxl-a",
        [
            ref("sdxl-a-base.safetensors", "rings.png", B, "style", **left),
            ref("sdxl-a-full.bin", "blocks.png", B, "all", 0.5, **right),
        ],
        ["base", "full", "style", "all", "mask", "two adapters"],
        guidance=1.0,
    )
    case(
        "sdxl-a-mask-and-none",
        "sdxl-a",
        [
            ref("sdxl-a-base.safetensors", "rings.png", B, "style", **left),
            ref("sdxl-a-base2.bin", "blocks.png", B, "layout", 0.8),
        ],
        ["base", "style", "layout", "mask", "two adapters"],
        sampler="lcm",
        guidance=1.5,
    )
    case(
        "sdxl-b-mask-subtract",
        "sdxl-b",
        [
            ref("sdxl-b-base.bin", "rings.png", B, "style", subtract=("a horse", 0.5), mask="mask-top-portrait.png"),
            ref("sdxl-b-base.bin", "stripes.png", B, "style", 0.7, mask="mask-bottom-portrait.png"),
        ],
        ["base", "style", "mask", "subtraction", "portrait", "two references, one adapter"],
        width=48,
        height=80,
        sampler="dpmpp_2m",
    )


def guidance():
    sd, xl = [ref("sd15-a-base.safetensors", "rings.png", A, "style")], [ref("sdxl-a-base.safetensors", "rings.png", B, "style")]
    for model, refs in (("sd15-a", sd), ("sdxl-a", xl)):
        case(f"{model}-guidance-1", model, refs, ["base", "style", "guidance 1"], guidance=1.0)
        case(f"{model}-rescale", model, refs, ["base", "style", "guidance_rescale"], guidance=7.5, guidance_rescale=0.7, sampler="dpmpp_2m")
        case(f"{model}-clip-skip", model, refs, ["base", "style", "clip_skip"], clip_skip=1)
        case(f"{model}-count", model, refs, ["base", "style", "count"], count=2, sampler="dpmpp_2m_sde_karras")
        case(f"{model}-count-plain", model, [], ["plain", "count"], count=3, sampler="ddpm", steps=4, guidance=3.0)
        case(f"{model}-one-step", model, refs, ["base", "style", "one step"], steps=1, guidance=3.0)
        case(f"{model}-many-steps", model, refs, ["base", "style", "20 steps"], steps=20, guidance=2.0, sampler="pndm")
    case("sd15-a-guidance-half", "sd15-a", sd, ["base", "style", "guidance 1"], guidance=0.5, sampler="lcm")
    case("sdxl-a-guidance-low", "sdxl-a", xl, ["base", "style"], guidance=1.25, sampler="tcd", steps=4)
    case("sd15-a-clip-skip-2", "sd15-a", [], ["plain", "clip_skip"], clip_skip=2, sampler="pndm")
    case("sdxl-a-clip-skip-1-plus", "sdxl-a", [ref("sdxl-a-plus.safetensors", "waves.png", A, "all", 0.7)], ["plus", "all", "clip_skip"], clip_skip=1, sampler="heun")
    case(
        "sd15-v-rescale",
        "sd15-v",
        [ref("sd15-v-full.safetensors", "waves.png", B, "style+layout")],
        ["full", "style+layout", "guidance_rescale", "v_prediction"],
        guidance=9.0,
        guidance_rescale=0.7,
        sampler="ddim",
        count=2,
        width=32,
        height=32,
    )
    case("sdxl-b-rescale-count", "sdxl-b", [], ["plain", "guidance_rescale", "count", "fp16 shards"], guidance_rescale=0.4, count=2)
    case("sd15-v-clip-skip", "sd15-v", [], ["plain", "clip_skip", "v_prediction"], clip_skip=3, width=32, height=32, sampler="euler")
    case("sd15-s-count", "sd15-s", [ref("sd15-s-base.safetensors", "waves.png", A, "all")], ["base", "all", "count", "sample prediction"], count=2, sampler="tcd")


def sizes():
    sd, xl = ref("sd15-a-base.safetensors", "rings.png", A, "style"), ref("sdxl-a-base.safetensors", "rings.png", B, "style+layout")
    case("sd15-a-portrait", "sd15-a", [sd], ["base", "style", "portrait"], width=48, height=80)
    case("sdxl-a-portrait", "sdxl-a", [xl], ["base", "style+layout", "portrait"], width=48, height=80)
    case("sdxl-a-landscape", "sdxl-a", [xl], ["base", "style+layout", "landscape"], width=96, height=56, sampler="euler_a")
    case("sd15-a-odd", "sd15-a", [sd], ["base", "style", "portrait", "odd latents"], width=40, height=56, sampler="dpm2_a")
    case("sdxl-a-odd", "sdxl-a", [xl], ["base", "style+layout", "landscape", "odd latents"], width=72, height=40, sampler="dpmpp_2m_sde_karras")
    case("sd15-v-portrait", "sd15-v", [], ["plain", "portrait", "v_prediction"], width=40, height=64, sampler="ddpm")
    case("sdxl-b-portrait", "sdxl-b", [], ["plain", "portrait", "odd latents", "fp16 shards"], width=56, height=88, sampler="euler")
    case("sd15-a-tiny", "sd15-a", [sd], ["base", "style"], width=16, height=16)


def prompts():
    sd, xl = [ref("sd15-a-base.safetensors", "blocks.png", A, "style")], [ref("sdxl-a-base.safetensors", "blocks.png", B, "style")]
    for model, refs in (("sd15-a", sd), ("sdxl-a", xl)):
        case(f"{model}-prompt-empty", model, refs, ["base", "style", "empty prompt"], prompt="")
        case(f"{model}-prompt-all-empty", model, refs, ["base", "style", "empty prompt", "empty negative"], prompt="", negative_prompt="")
        case(f"{model}-negative-absent", model, refs, ["base", "style", "no negative"], omit=["negative_prompt"])
        case(f"{model}-negative-empty", model, refs, ["base", "style", "empty negative"], negative_prompt="")
        case(f"{model}-prompt-long", model, refs, ["base", "style", "long prompt"], prompt=LONG, negative_prompt=LONG[::-1])
        case(f"{model}-prompt-chinese", model, refs, ["base", "style", "non-Latin prompt"], prompt="一只猫坐在红色的椅子上，水彩画", negative_prompt="模糊")
        case(f"{model}-prompt-emoji", model, refs, ["base", "style", "non-Latin prompt"], prompt="A CAT 🐈‍⬛ & ДОМ, it's 12:30… e\u0301té Ñandú", sampler="ddim")
    case("sdxl-b-negative-absent", "sdxl-b", [], ["plain", "no negative"], omit=["negative_prompt"], sampler="euler")
    case("sd15-v-prompt-mixed", "sd15-v", [], ["plain", "non-Latin prompt", "v_prediction"], prompt="  Größe\t und   ﬁne ①  العربية हिन्दी\n(cat:1.2)!!", width=32, height=32)
    case("sdxl-b-prompt-long", "sdxl-b", [], ["plain", "long prompt"], prompt="a cat, " * 60, sampler="dpmpp_2m")


def windows():
    for model, adapter, encoder in (("sd15-a", "sd15-a-base.safetensors", A), ("sdxl-a", "sdxl-a-base.safetensors", B)):
        case(f"{model}-start", model, [ref(adapter, "rings.png", encoder, "all", start=0.3)], ["base", "all", "start/end"], steps=6)
        case(f"{model}-end", model, [ref(adapter, "rings.png", encoder, "style", end=0.4)], ["base", "style", "start/end"], steps=5, sampler="dpmpp_2m")
    case(
        "sd15-a-window-heun",
        "sd15-a",
        [ref("sd15-a-plus.safetensors", "rings.png", A, "all", start=0.2, end=0.7)],
        ["plus", "all", "start/end"],
        sampler="heun",
        steps=5,
    )
    case(
        "sdxl-a-window-pndm",
        "sdxl-a",
        [ref("sdxl-a-base.safetensors", "rings.png", B, "all", 0.7, start=0.3, end=0.9)],
        ["base", "all", "start/end"],
        sampler="pndm",
        steps=6,
    )
    case(
        "sdxl-a-windows-in-turn",
        "sdxl-a",
        [
            ref("sdxl-a-base.safetensors", "rings.png", B, "style+layout", end=0.5),
            ref("sdxl-a-base2.bin", "blocks.png", B, "style", start=0.5),
        ],
        ["base", "style", "style+layout", "start/end", "two adapters"],
        steps=6,
    )
    case(
        "sd15-a-window-mask",
        "sd15-a",
        [ref("sd15-a-base.safetensors", "rings.png", A, "style", mask="mask-left.png", start=0.25, end=0.75)],
        ["base", "style", "start/end", "mask"],
        steps=4,
        sampler="unipc",
    )


def inputs():
    for i, (tag, image) in enumerate(
        (
            ("exif", "exif6.png"),
            ("rgba", "rgba.png"),
            ("grey16", "grey16.png"),
            ("palette-alpha", "palette-alpha.png"),
            ("large", "large.png"),
            ("wide", "wide.png"),
        )
    ):
        sd = i % 2 == 0
        refs = [ref("sd15-a-base.safetensors", image, A, "all")] if sd else [ref("sdxl-a-base.safetensors", image, B, "all")]
        case(f"{'sd15' if sd else 'sdxl'}-a-image-{tag}", "sd15-a" if sd else "sdxl-a", refs, ["base", "all", "input picture"])
    case("sd15-a-seed-large", "sd15-a", [], ["plain", "large seed"], seed=4294967301, sampler="euler_a")
    case("sdxl-a-seed-0", "sdxl-a", [], ["plain", "seed 0"], seed=0, sampler="dpm2")
    minimal = [ref("sdxl-a-base.safetensors", "waves.png", B, "style")]
    minimal[0].pop("weight")
    case("sdxl-a-defaults", "sdxl-a", minimal, ["base", "style", "defaults"], omit=["count", "negative_prompt", "sampler", "device"])


def pictures():
    """Image-to-image and inpainting; a 4-channel UNet and one with inputs for the mask."""
    sd, xl = [ref("sd15-a-base.safetensors", "rings.png", A, "style")], [ref("sdxl-a-base.safetensors", "rings.png", B, "style")]

    def init(image, strength, mask=None):
        out = {"image": f"../../images/{image}", "strength": strength}
        return out | ({"mask": f"../../images/{mask}"} if mask else {})

    for i, sampler in enumerate(pipeline.SAMPLERS):
        for model, refs in (("sd15-a", sd), ("sdxl-a", xl)):
            steps = 8 if sampler == "pndm" else 6 + i % 3
            start = init(("blocks.png", "large.png")[i % 2], (0.5, 0.7, 0.9)[i % 3])
            case(f"{model}-init-{sampler}", model, refs, ["base", "style", "image-to-image"], sampler=sampler, steps=steps, init=start)
            start = init("blocks.png", (1.0, 0.6)[i % 2], ("mask-disc.png", "mask-left.png", "mask-soft.png")[i % 3])
            case(f"{model}-repaint-{sampler}", model, refs, ["base", "style", "inpainting"], sampler=sampler, steps=steps, init=start)
    for model, adapter in (("sd15-i", "sd15-s-base.safetensors"), ("sdxl-i", "sdxl-a-base.safetensors")):
        refs = [ref(adapter, "rings.png", A if model == "sd15-i" else B, "all")] if model == "sd15-i" else []
        more = ["inpainting", "nine channels"]
        for sampler, strength, mask in (("euler", 1.0, "mask-disc.png"), ("euler_a", 0.8, "mask-left.png"), ("ddim", 0.99, "mask-soft.png")):
            case(f"{model}-{sampler}", model, refs, more, sampler=sampler, init=init("blocks.png", strength, mask), steps=6)
        case(f"{model}-count", model, refs, [*more, "count"], sampler="lcm", init=init("large.png", 1.0, "mask-right.png"), count=2, guidance=1.5)
    for model in ("sd15-v", "sdxl-b"):
        case(f"{model}-init", model, [], ["plain", "image-to-image"], init=init("rings.png", 0.6), width=48, height=64)
        case(f"{model}-init-count", model, [], ["plain", "image-to-image", "count"], init=init("exif6.png", 0.75), count=2, omit=["sampler"])
    window = [ref("sdxl-a-base.safetensors", "rings.png", B, "all", start=0.3, end=0.8)]
    case("sdxl-a-init-window", "sdxl-a", window, ["base", "all", "image-to-image", "start/end"], init=init("rgba.png", 0.8), steps=8)
    case("sdxl-a-init-whole", "sdxl-a", xl, ["base", "style", "image-to-image"], init=init("wide.png", 1.0), width=72, height=40)
    case("sdxl-a-repaint-count", "sdxl-a", xl, ["base", "style", "inpainting", "count"], init=init("large.png", 0.7, "mask-bars-wide.png"), count=2, sampler="euler_a")
    case("sdxl-a-repaint-rescale", "sdxl-a", xl, ["base", "style", "inpainting", "guidance_rescale"], init=init("large.png", 0.7, "mask-disc.png"), guidance_rescale=0.5, width=48, height=80)


def loras():
    """LoRAs of every writer, several at once, with a style reference."""
    sd, xl = [ref("sd15-a-base.safetensors", "rings.png", A, "style")], [ref("sdxl-a-base.safetensors", "rings.png", B, "style")]

    def use(name, weight=1.0, **extra):
        return {"file": f"../../loras/{name}.safetensors", "weight": weight, **extra}

    for name, model, refs, used in (
        ("kohya", "sd15-a", sd, [use("sd15-a-kohya", 0.8)]),
        ("peft", "sd15-a", sd, [use("sd15-a-peft")]),
        ("processors", "sd15-a", [], [use("sd15-a-processors", 1.2)]),
        ("three", "sd15-a", sd, [use("sd15-a-kohya", 0.5), use("sd15-a-peft", -0.6), use("sd15-a-processors", 0.7)]),
        ("kohya", "sdxl-a", xl, [use("sdxl-a-kohya", 0.8)]),
        ("dora", "sdxl-a", xl, [use("sdxl-a-dora", 1.0)]),
        ("b-lora", "sdxl-a", [], [use("sdxl-a-blora", 1.0, blocks="style")]),
        ("b-lora-content", "sdxl-a", xl, [use("sdxl-a-blora", 0.9, blocks="content")]),
        ("two", "sdxl-a", xl, [use("sdxl-a-kohya", 0.6), use("sdxl-a-blora", 0.8)]),
        ("loha", "sdxl-a", xl, [use("sdxl-a-loha", 0.9)]),
        ("lokr", "sdxl-a", [], [use("sdxl-a-lokr", 0.9)]),
    ):
        tags = ["base", "style"] if refs else ["plain"]
        case(f"{model}-lora-{name}", model, refs, [*tags, "LoRA"], loras=used, sampler=("euler", "dpmpp_2m")[len(CASE_LIST) % 2])
    start = {"image": "../../images/large.png", "strength": 0.7}
    case("sd15-a-lora-init", "sd15-a", sd, ["base", "style", "LoRA", "image-to-image"], loras=[use("sd15-a-kohya")], init=start, steps=7)


def controlled():
    """ControlNets: one and two, with windows, from noise and from pictures, with style references."""
    sd, xl = [ref("sd15-a-base.safetensors", "rings.png", A, "style")], [ref("sdxl-a-base.safetensors", "rings.png", B, "style")]
    small = [ref("sd15-s-base.safetensors", "rings.png", A, "all")]

    def use(name, image="blocks.png", scale=1.0, **extra):
        return {"model": f"../../controls/{name}", "image": f"../../images/{image}", "scale": scale, **extra}

    def start(strength, mask=None, image="large.png"):
        out = {"image": f"../../images/{image}", "strength": strength}
        return out | ({"mask": f"../../images/{mask}"} if mask else {})

    for i, (name, model, refs, used, tags, more) in enumerate((
        ("one", "sd15-a", sd, [use("sd15-a", preprocess="canny")], ["canny"], {}),
        ("two", "sd15-a", sd, [use("sd15-a", "rings.png", 0.6), use("sd15-a", "blocks.png", 0.4, preprocess="canny", canny_low=30, canny_high=90)], ["canny", "two ControlNets"], {"sampler": "dpmpp_2m"}),
        ("windows", "sd15-a", sd, [use("sd15-a", "waves.png", 0.8, end=0.6), use("sd15-a", "blocks.png", 0.9, start=0.3, preprocess="lineart")], ["lineart", "two ControlNets", "start/end"], {"sampler": "heun"}),
        ("window-pndm", "sd15-a", sd, [use("sd15-a", end=0.5)], ["start/end"], {"sampler": "pndm", "steps": 6}),
        ("dpm2", "sd15-a", [], [use("sd15-a", start=0.2)], ["start/end"], {"sampler": "dpm2"}),
        ("guidance-1", "sd15-a", sd, [use("sd15-a")], ["guidance 1"], {"guidance": 1.0}),
        ("count", "sd15-a", sd, [use("sd15-a", scale=0.7)], ["count"], {"count": 2, "sampler": "euler_a"}),
        ("init", "sd15-a", sd, [use("sd15-a", preprocess="canny")], ["canny", "image-to-image"], {"init": start(0.7), "steps": 7}),
        ("repaint", "sd15-a", sd, [use("sd15-a", scale=0.5)], ["inpainting"], {"init": start(0.8, "mask-disc.png"), "sampler": "ddim", "steps": 6}),
        ("odd", "sd15-a", sd, [use("sd15-a", "wide.png")], ["landscape", "odd latents"], {"width": 56, "height": 40}),
        ("bgr", "sd15-s", small, [use("sd15-s-small", "waves.png")], ["sample prediction", "bgr", "small"], {}),
        ("pooled", "sd15-s", small, [use("sd15-s-pooled", "stripes.png")], ["sample prediction", "pooled conditions"], {}),
        ("pooled-guidance-1", "sd15-s", [], [use("sd15-s-pooled", "stripes.png")], ["sample prediction", "pooled conditions", "guidance 1"], {"guidance": 1.0, "sampler": "ddim"}),
        ("original", "sd15-s", small, [use("sd15-s-original.pth", "large.png", 0.6), use("sd15-s", "rings.png", 0.5)], ["sample prediction", "two ControlNets", "original names"], {}),
        ("one", "sd15-i", small, [use("sd15-s")], ["inpainting", "nine channels"], {"init": start(1.0, "mask-disc.png")}),
        ("two-count", "sd15-i", small, [use("sd15-s", "waves.png", 0.7), use("sd15-s-original.pth", scale=0.5, end=0.7)], ["inpainting", "nine channels", "two ControlNets", "count", "start/end"], {"init": start(0.8, "mask-left.png"), "count": 2, "sampler": "euler_a"}),
        ("one", "sdxl-a", xl, [use("sdxl-a.safetensors", preprocess="canny")], ["canny"], {}),
        ("two-windows", "sdxl-a", xl, [use("sdxl-a.safetensors", "rings.png", 0.8, start=0.1, end=0.7), use("sdxl-a.safetensors", "waves.png", 0.5, end=0.5)], ["two ControlNets", "start/end"], {"sampler": "dpm2_a"}),
        ("tile", "sdxl-a", xl, [use("sdxl-a.safetensors", "blocks.png", 0.9, preprocess="tile", tile_downscale=5)], ["tile"], {"sampler": "unipc", "width": 48, "height": 64}),
        ("guidance-1", "sdxl-a", [], [use("sdxl-a.safetensors")], ["guidance 1"], {"guidance": 1.0, "sampler": "heun"}),
        ("count", "sdxl-a", xl, [use("sdxl-a.safetensors", scale=0.7)], ["count"], {"count": 2, "sampler": "dpmpp_2m_sde_karras"}),
        ("init", "sdxl-a", xl, [use("sdxl-a.safetensors", scale=0.6)], ["image-to-image"], {"init": start(0.6), "steps": 7, "sampler": "dpmpp_2m"}),
        ("init-window", "sdxl-a", [], [use("sdxl-a.safetensors", end=0.6, preprocess="canny")], ["canny", "image-to-image", "start/end"], {"init": start(0.8), "sampler": "heun", "steps": 5}),
        ("repaint", "sdxl-a", xl, [use("sdxl-a.safetensors", scale=0.6)], ["inpainting"], {"init": start(0.9, "mask-left.png"), "sampler": "pndm", "steps": 7}),
        ("one", "sdxl-i", [], [use("sdxl-i", preprocess="canny")], ["canny", "inpainting", "nine channels"], {"init": start(0.99, "mask-soft.png")}),
        ("window", "sdxl-i", [], [use("sdxl-i", "rings.png", 0.7, start=0.2, end=0.8)], ["inpainting", "nine channels", "start/end"], {"init": start(1.0, "mask-disc.png"), "sampler": "lms"}),
    )):
        tags = [*(["base", "style"] if refs else ["plain"]), "ControlNet", *tags]
        # Small pictures: the files pack badly.
        case(f"{model}-control-{name}", model, refs, tags, controls=used, **({"width": 40, "height": 40, "seed": 3000 + i} | more))
    other = {"vae": "../../models/sdxl-b/vae", "width": 40, "height": 40, "seed": 3100}
    small = {"vae": "../../models/vae-tiny", "width": 40, "height": 40}
    case("sd15-a-vae-small", "sd15-a", sd, ["base", "style", "small autoencoder", "image-to-image"], init=start(0.7), seed=3110, **small)
    case("sdxl-a-vae-small", "sdxl-a", [], ["plain", "small autoencoder"], seed=3111, **small)

    def twice(upscale, steps):
        return {"width": 64, "height": 48, "strength": 0.6, "upscale": upscale, "steps": steps}

    case("sdxl-a-hires", "sdxl-a", xl, ["base", "style", "two passes"], hires=twice("latent", 6), width=40, height=32, seed=3112)
    case("sd15-a-hires", "sd15-a", sd, ["base", "style", "two passes"], hires=twice("latent-nearest", 5), width=40, height=40, seed=3113)
    case("sdxl-a-vae", "sdxl-a", xl, ["base", "style", "another autoencoder", "image-to-image"], init=start(0.7), **other)
    name, tags = "sdxl-a-control-lora", ["ControlNet", "Control-LoRA"]
    one = {"controls": [use(f"{name}.safetensors", preprocess="canny")], "width": 40, "height": 40, "seed": 3120}
    case(name, "sdxl-a", xl, ["base", "style", *tags, "canny"], **one)
    both = [use(f"{name}.safetensors", "rings.png", 0.7, end=0.6), use("sdxl-a.safetensors", "waves.png", 0.5)]
    tags = ["plain", *tags, "two ControlNets", "start/end", "image-to-image"]
    case(f"{name}-two", "sdxl-a", [], tags, **one | {"controls": both, "init": start(0.7), "steps": 7, "seed": 3121})
    lora = {"loras": [{"file": "../../loras/sdxl-a-kohya.safetensors", "weight": 0.8}], "seed": 3122}
    case(f"{name}-lora", "sdxl-a", xl, ["base", "style", "ControlNet", "Control-LoRA", "LoRA"], **one | lora)


def fast():
    """Distilled models' settings and schedules: the last cases, whose seeds are given, so that others may come before."""
    sd, xl = [ref("sd15-a-base.safetensors", "rings.png", A, "style")], [ref("sdxl-a-base.safetensors", "rings.png", B, "style")]

    def some(number, name, model, refs, features, lora=True, **fields):
        loras = [{"file": f"../../loras/{model}-kohya.safetensors", "weight": 1.0}] if lora else []
        more = {"loras": loras} if loras else {}
        case(f"{model}-{name}", model, refs, ["fast", *features], seed=3000 + number, width=32, height=32, **more, **fields)

    some(0, "fast-lightning-4", "sdxl-a", xl, ["base", "style", "LoRA"], sampler="euler", schedule="sgm_uniform", steps=4, guidance=0.0)
    some(1, "fast-hyper-2", "sdxl-a", [], ["plain", "LoRA"], sampler="ddim", schedule="sgm_uniform", steps=2, guidance=0.0)
    some(2, "fast-turbo", "sdxl-a", xl, ["base", "style"], False, sampler="euler_a", schedule="sgm_uniform", steps=1, guidance=0.0)
    some(3, "fast-lcm", "sd15-a", sd, ["base", "style", "LoRA"], sampler="lcm", steps=4, guidance=0.0)
    some(4, "fast-hyper-4", "sd15-a", [], ["plain", "LoRA"], sampler="ddim", schedule="sgm_uniform", steps=4, guidance=0.0)
    some(5, "schedule-exponential", "sd15-a", sd, ["base", "style"], False, sampler="dpmpp_2m_sde", schedule="exponential", steps=5)
    some(6, "schedule-karras-own", "sdxl-a", xl, ["base", "style"], False, schedule="karras", steps=5, omit=["sampler"])


def high_resolution():
    """HiDiffusion in each of its published regimes: the tiny models were made for 64 x 64."""
    sd, xl = [ref("sd15-a-base.safetensors", "rings.png", A, "style")], [ref("sdxl-a-base.safetensors", "rings.png", B, "style")]

    def start(strength, **mask):
        return {"image": "../../images/large.png", "strength": strength} | mask

    masked = start(1.0, mask="../../images/mask-disc.png")
    for i, (name, model, refs, tags, w, h, more) in enumerate((
        ("", "sdxl-a", xl, [], 128, 128, {"steps": 13}),
        ("-init", "sdxl-a", [], ["image-to-image"], 128, 128, {"steps": 20, "init": start(0.7), "sampler": "dpmpp_2m"}),
        ("-4x", "sdxl-a", xl, ["four times the size"], 256, 256, {"steps": 7}),
        ("", "sdxl-i", [], ["inpainting", "nine channels"], 128, 128, {"steps": 5, "init": masked}),
        ("", "sd15-a", sd, ["landscape"], 192, 128, {"steps": 5, "sampler": "heun"}),
        ("-4x", "sd15-a", sd, ["four times the size"], 256, 256, {"steps": 7, "sampler": "ddim"}),
        ("-odd", "sd15-a", sd, ["odd latents", "raunet"], 120, 104, {"steps": 6, "hidiffusion": "raunet"}),
    )):
        fields = {"width": w, "height": h, "hidiffusion": "on", "seed": 3200 + i, **more}
        case(f"{model}-hidiffusion{name}", model, refs, [*(["base", "style"] if refs else ["plain"]), "HiDiffusion", LATENTS_ALONE, *tags], **fields)
    # The package's pipeline for ControlNets takes no adapters.
    control = {"model": "../../controls/sdxl-a.safetensors", "image": "../../images/rings.png", "scale": 0.8, "preprocess": "canny"}
    for i, (name, tags, side, more) in enumerate((
        ("", ["canny"], 128, {"steps": 13}),
        ("-init", ["image-to-image", "start/end"], 128, {"steps": 10, "init": start(0.7), "sampler": "dpmpp_2m", "controls": [control | {"start": 0.2}]}),
        ("-4x", ["four times the size"], 256, {"steps": 4, "sampler": "heun"}),
    )):
        fields = {"width": side, "height": side, "hidiffusion": "on", "controls": [control], "seed": 3210 + i, **more}
        case(f"sdxl-a-hidiffusion-control{name}", "sdxl-a", [], ["plain", "HiDiffusion", "ControlNet", LATENTS_ALONE, *tags], **fields)


def savings():
    """Frozen cross-attention and merged tokens: tiny pictures."""
    sd, xl = [ref("sd15-a-base.safetensors", "rings.png", A, "style")], [ref("sdxl-a-base.safetensors", "rings.png", B, "style")]
    for i, (name, model, refs, tags, more) in enumerate((
        ("cross-freeze", "sd15-a", [], [], {"steps": 8, "cross_freeze": 0.5}),
        ("cross-freeze", "sdxl-a", [], [], {"steps": 6, "cross_freeze": 0.5, "sampler": "ddim"}),
        ("cross-freeze-base", "sd15-a", sd, [], {"steps": 5, "cross_freeze": 0.6}),
        ("cross-freeze-base", "sdxl-a", xl, [], {"steps": 4, "cross_freeze": 0.25}),
        ("token-merging", "sd15-a", sd, [], {"steps": 3, "token_merging": 0.5}),
        ("token-merging", "sdxl-a", xl, ["odd latents"], {"steps": 3, "token_merging": 0.6, "width": 72, "height": 88}),
        ("token-merging-unguided", "sd15-a", [], ["no guidance"], {"steps": 3, "token_merging": 0.75, "guidance": 1.0}),
        ("token-merging-cross-freeze", "sdxl-a", [], [], {"steps": 4, "token_merging": 0.4, "cross_freeze": 0.5}),
    )):
        fields = {"width": 96, "height": 96, "seed": 3300 + i, **more}
        case(f"{model}-{name}", model, refs, [*(["base", "style"] if refs else ["plain"]), LATENTS_ALONE, *tags], **fields)


def finish(only=None):
    CASES.mkdir(parents=True, exist_ok=True)
    if only is None:
        shutil.rmtree(CASES)
        CASES.mkdir()
    index = []
    for item in CASE_LIST:
        index.append({"name": item["name"], "features": item["features"]})
        if only is not None and item["name"] not in only:
            continue
        folder = CASES / item["name"]
        write_json(folder / "job.json", item["job"])
        latents, pictures, _ = pipeline.run(item["job"], folder)
        save_file({"latents": latents}, folder / "expected.safetensors")
        if LATENTS_ALONE in item["features"]:
            pictures = []
        digits = len(str(len(pictures)))
        for i, picture in enumerate(pictures):
            name = "expected.png" if len(pictures) == 1 else f"expected-{i + 1:0{digits}d}.png"
            picture.save(folder / name, optimize=True)
        print(f"{item['name']}: {tuple(latents.shape)} std {float(latents.std()):.3f}", flush=True)
    write_json(CASES / "index.json", index)


def build(only=None):
    declare()
    names = [c["name"] for c in CASE_LIST]
    assert len(set(names)) == len(names)
    finish(only)


if __name__ == "__main__":
    from common import quiet

    quiet()
    build(set(sys.argv[1:]) or None)
