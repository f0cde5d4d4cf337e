"""Tiny networks for maps of ControlNets, as ONNX files with the real inputs and outputs, and the maps that they give.

Needs onnx, onnxscript and onnxruntime too. The networks of depth are transformers' own classes. What is done before and after
a network follows transformers (depth), controlnet_aux (edges, lines, normals) and DWPose (poses); pictures are resized by Pillow.
"""

import json
import math
import re

import cv2
import numpy as np
import onnxruntime
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config, DPTConfig, DPTForDepthEstimation
from transformers.models.dpt.image_processing_pil_dpt import DPTImageProcessorPil

from common import FIXTURES, IMAGES, randomise
from controls import short

MAPS = FIXTURES / "maps"
IMAGENET = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
# Width and height of the request; the picture.
CASES = {
    "depth": ("rings.png", (96, 64)),
    "depth_midas": ("blocks.png", (64, 96)),
    "softedge_hed": ("blocks.png", (72, 56)),
    "softedge_pidinet": ("waves.png", (64, 64)),
    "lineart_realistic": ("rings.png", (104, 64)),
    "normal_bae": ("waves.png", (56, 64)),
    "pose": ("blocks.png", (192, 256)),
    "pose_people": ("rings.png", (320, 192)),
}


class Depth(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x).predicted_depth


def depth_anything():
    """Trained at the size that the processor gives for the case, so that its positions are taken as they are, as where a
    published file is given a square: rten resizes linearly where torch resizes cubically."""
    backbone = Dinov2Config(
        hidden_size=8, num_hidden_layers=4, num_attention_heads=2, mlp_ratio=2, image_size=[350, 518], patch_size=14,
        out_features=["stage1", "stage2", "stage3", "stage4"], reshape_hidden_states=False, apply_layernorm=True,
    )  # fmt: skip
    config = DepthAnythingConfig(
        backbone_config=backbone, patch_size=14, reassemble_hidden_size=8, neck_hidden_sizes=[4, 4, 4, 4],
        fusion_hidden_size=8, head_hidden_size=8,
    )  # fmt: skip
    model = DepthAnythingForDepthEstimation(config)
    embeddings = model.backbone.embeddings
    # While it is traced, transformers resizes them even to the size that they have.
    embeddings.interpolate_pos_encoding = lambda *_: embeddings.position_embeddings
    return Depth(model)


def dpt():
    config = DPTConfig(
        hidden_size=8, num_hidden_layers=4, num_attention_heads=2, intermediate_size=16, image_size=384, patch_size=32,
        backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[4, 4, 4, 4], fusion_hidden_size=8, is_hybrid=False,
        use_batch_norm_in_fusion_residual=False, add_projection=False, readout_type="project",
    )  # fmt: skip
    return Depth(DPTForDepthEstimation(config))


class Hed(nn.Module):
    """Five scales, each with an output of its own."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Conv2d(c, 4, 3, padding=1) for c in (3, 4, 4, 4, 4))
        self.sides = nn.ModuleList(nn.Conv2d(4, 1, 1) for _ in range(5))

    def forward(self, x):
        out = []
        x = x - 120.0
        for i, (block, side) in enumerate(zip(self.blocks, self.sides)):
            x = torch.relu(block(F.max_pool2d(x, 2) if i else x))
            out.append(side(x) * 0.06)
        return tuple(out)


class Edges(nn.Module):
    """Several outputs of the size of the input, the last of which counts."""

    def __init__(self, outputs, channels, last):
        super().__init__()
        self.inner = nn.Conv2d(3, 4, 5, padding=2)
        self.outs = nn.ModuleList(nn.Conv2d(4, channels, 3, padding=1) for _ in range(outputs))
        self.last = last

    def forward(self, x):
        x = torch.relu(self.inner(x))
        return tuple(self.last(out(x)) for out in self.outs)


class Pose(nn.Module):
    """RTMPose's kind: SiLU convolutions, a scaled norm, and a class for each half pixel of an axis."""

    def __init__(self, points=133, hidden=4):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.body = nn.Conv2d(6, points, 1)
        self.mlp = nn.Linear(12 * 9, hidden, bias=False)
        self.g = nn.Parameter(torch.ones(1))
        self.x = nn.Linear(hidden, 576, bias=False)
        self.y = nn.Linear(hidden, 768, bias=False)

    def forward(self, image):
        x = F.avg_pool2d(F.silu(self.stem(image)), 16)
        x = self.body(x).flatten(2)
        x = x / (x.norm(dim=-1, keepdim=True) * x.shape[-1] ** -0.5).clamp(min=1e-5) * self.g
        x = self.mlp(x)
        return self.x(x) * 0.3, self.y(x) * 0.3


class People(nn.Module):
    """YOLOX's outputs: 8400 boxes of 85 values, relative to the cells of three grids."""

    def __init__(self):
        super().__init__()
        self.heads = nn.ModuleList(nn.Conv2d(3, 85, 1) for _ in range(3))

    def forward(self, x):
        out = []
        for head, stride in zip(self.heads, (8, 16, 32)):
            y = head(F.avg_pool2d(x, stride) / 60 - 2)
            y = torch.cat([y[:, :2], y[:, 2:4] * 0.3 + 1.5, torch.sigmoid(3 * y[:, 4:] - 2.2)], 1)
            out.append(y.flatten(2))
        return torch.cat(out, 2).transpose(1, 2)


NETWORKS = {
    "depth": (depth_anything, 2101, (1, 3, 350, 518), ["predicted_depth"], True),
    "depth_midas": (dpt, 2102, (1, 3, 384, 384), ["predicted_depth"], False),
    "softedge_hed": (Hed, 2103, (1, 3, 64, 64), [f"side_{i}" for i in range(5)], True),
    "softedge_pidinet": (lambda: Edges(3, 1, lambda x: torch.sigmoid(8 * x + 2)), 2104, (1, 3, 64, 64), ["e1", "e2", "fused"], True),
    "lineart_realistic": (lambda: Edges(1, 1, lambda x: torch.sigmoid(6 * x)), 2105, (1, 3, 64, 64), ["output"], True),
    "normal_bae": (lambda: Edges(2, 4, torch.tanh), 2106, (1, 3, 64, 64), ["coarse", "fine"], True),
    "pose": (Pose, 2107, (1, 3, 384, 288), ["simcc_x", "simcc_y"], False),
    "people": (People, 2108, (1, 3, 640, 640), ["output"], False),
}


def export(name):
    make, seed, shape, outputs, free = NETWORKS[name]
    torch.manual_seed(seed)
    model = make().eval()
    randomise(model, seed, [(r"norm\.bias", 0.1), (r"\.inner\.", 2.5), (r"outs", 2.0), (r"heads", 1.5), (r"fusion|head\.", 1.6)])
    for parameter in model.parameters():
        parameter.data.copy_(short(parameter.data))
    MAPS.mkdir(parents=True, exist_ok=True)
    file = MAPS / f"{name}.onnx"
    axes = {"input": {2: "height", 3: "width"}} if free else None
    # Sizes that a network computes become those of the example.
    torch.onnx.export(
        model, (torch.zeros(shape),), file, dynamo=False, opset_version=14, input_names=["input"], output_names=outputs,
        dynamic_axes=axes,
    )  # fmt: skip
    import onnx

    graph = onnx.load(file)
    del graph.metadata_props[:], graph.functions[:]
    shorten(graph.graph)
    onnx.save(graph, file)


def shorten(graph):
    """Names of scopes take more than the weights."""
    kept = {v.name for v in [*graph.input, *graph.output]}
    names = {}
    of = lambda n: n if n in kept or not n else names.setdefault(n, f"v{len(names)}")  # noqa: E731
    del graph.value_info[:], graph.metadata_props[:]
    for i, node in enumerate(graph.node):
        node.doc_string, node.name = "", f"n{i}"
        del node.metadata_props[:]
        node.input[:], node.output[:] = [of(n) for n in node.input], [of(n) for n in node.output]
    for tensor in graph.initializer:
        del tensor.metadata_props[:]
        tensor.name = of(tensor.name)


def run(name, image):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(MAPS / f"{name}.onnx", options, providers=["CPUExecutionProvider"])
    return session.run(None, {"input": np.ascontiguousarray(image.transpose(2, 0, 1)[None], np.float32)})


def depth(name, picture):
    imagenet = name == "depth"
    processor = DPTImageProcessorPil(
        size={"height": 518, "width": 518} if imagenet else {"height": 384, "width": 384},
        keep_aspect_ratio=imagenet, ensure_multiple_of=14 if imagenet else 1, resample=Image.BICUBIC,
        image_mean=[0.485, 0.456, 0.406] if imagenet else [0.5] * 3,
        image_std=[0.229, 0.224, 0.225] if imagenet else [0.5] * 3,
    )  # fmt: skip
    pixels = np.asarray(processor(picture, return_tensors="np")["pixel_values"][0])
    predicted = torch.from_numpy(run(name, pixels.transpose(1, 2, 0))[0])
    size = picture.size[::-1]
    predicted = F.interpolate(predicted[:, None], size=size, mode="bicubic", align_corners=False)[0, 0].numpy()
    predicted = (predicted - predicted.min()) / (predicted.max() - predicted.min())
    return (predicted * 255).astype(np.uint8)


def seen(picture):
    """The picture at controlnet_aux's resolution of detection."""
    k = 512.0 / min(picture.size)
    size = [int(np.round(s * k / 64.0)) * 64 for s in picture.size]
    return np.asarray(picture.resize(size, Image.LANCZOS))


def edges(name, picture):
    image = seen(picture).astype(np.float32)
    if name == "softedge_hed":
        sides = [cv2.resize(e[0, 0], image.shape[1::-1], interpolation=cv2.INTER_LINEAR) for e in run(name, image)]
        value = 1 / (1 + np.exp(-np.mean(np.stack(sides, 2), axis=2).astype(np.float64)))
    elif name == "softedge_pidinet":
        value = run(name, image[..., ::-1] / 255.0)[-1][0, 0]
    elif name == "lineart_realistic":
        value = run(name, image / 255.0)[0][0, 0]
    else:
        value = run(name, (image / 255.0 - IMAGENET[0]) / IMAGENET[1])[-1][0, :3].transpose(1, 2, 0)
        value = ((value + 1) * 0.5).clip(0, 1)
    value = (value * 255.0).clip(0, 255).astype(np.uint8)
    value = cv2.resize(value, picture.size, interpolation=cv2.INTER_LINEAR)
    return 255 - value if name == "lineart_realistic" else value


def people(image):
    """Boxes (left, top, right, bottom) of people: DWPose's rules over YOLOX's outputs; YOLOX sees blue first."""
    ratio = min(640 / image.shape[0], 640 / image.shape[1])
    small = Image.fromarray(image).resize((int(image.shape[1] * ratio), int(image.shape[0] * ratio)), Image.BILINEAR)
    padded = np.full((640, 640, 3), 114, np.uint8)
    padded[: small.height, : small.width] = np.asarray(small)
    out = run("people", padded[..., ::-1])[0][0]
    at, strides = [], []
    for stride in (8, 16, 32):
        y, x = np.mgrid[0 : 640 // stride, 0 : 640 // stride]
        at.append(np.stack([x, y], -1).reshape(-1, 2))
        strides.append(np.full((at[-1].shape[0], 1), stride))
    at, strides = np.concatenate(at), np.concatenate(strides)
    centre, size = (out[:, :2] + at) * strides, np.exp(out[:, 2:4]) * strides
    boxes = np.concatenate([centre - size / 2, centre + size / 2], 1) / ratio
    scores = out[:, 4] * out[:, 5]
    order, kept = [i for i in np.argsort(-scores) if scores[i] > 0.1], []
    area = lambda b: (b[2] - b[0] + 1) * (b[3] - b[1] + 1)  # noqa: E731
    for i in order:
        def overlap(j):
            a, b = boxes[i], boxes[j]
            both = max(0, min(a[2], b[2]) - max(a[0], b[0]) + 1) * max(0, min(a[3], b[3]) - max(a[1], b[1]) + 1)
            return both / (area(a) + area(b) - both)
        if all(overlap(j) <= 0.45 for j in kept):
            kept.append(i)
    return [boxes[i] for i in kept if scores[i] > 0.3]


def keypoints(image, box):
    """[points, (x, y, score)] in pixels of the picture."""
    box = np.float64(box)
    centre, size = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) * 1.25
    aspect = 288 / 384
    size = np.array([size[0], size[0] / aspect] if size[0] > size[1] * aspect else [size[1] * aspect, size[1]])
    scale = 288 / size[0]
    warp = np.float64([[scale, 0, 144 - scale * centre[0]], [0, scale, 192 - scale * centre[1]]])
    crop = cv2.warpAffine(image, warp, (288, 384), flags=cv2.INTER_LINEAR).astype(np.float32)
    x, y = run("pose", (crop - np.float32([123.675, 116.28, 103.53])) / np.float32([58.395, 57.12, 57.375]))
    at = np.stack([x[0].argmax(-1), y[0].argmax(-1)], -1) / 2.0
    score = np.minimum(x[0].max(-1), y[0].max(-1))
    at[score <= 0] = -0.5
    at = at / [288, 384] * size + centre - size / 2
    return np.concatenate([at, score[:, None]], -1)


# COCO's points in OpenPose's order; the neck (1) lies between the shoulders.
OPENPOSE = [0, None, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3]
LIMBS = [
    (1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13), (1, 0), (0, 14), (14, 16),
    (0, 15), (15, 17),
]  # fmt: skip
HUES = [
    (255, 0, 0), (255, 85, 0), (255, 170, 0), (255, 255, 0), (170, 255, 0), (85, 255, 0), (0, 255, 0), (0, 255, 85), (0, 255, 170),
    (0, 255, 255), (0, 170, 255), (0, 85, 255), (0, 0, 255), (85, 0, 255), (170, 0, 255), (255, 0, 255), (255, 0, 170), (255, 0, 85),
]  # fmt: skip


def skeleton(found, height, width):
    canvas = np.zeros((height, width, 3), np.uint8)
    bodies = []
    for points in found:
        neck = np.mean(points[[5, 6]], axis=0)
        neck[2] = float(points[5, 2] > 0.3 and points[6, 2] > 0.3)
        bodies.append([neck if i is None else points[i] for i in OPENPOSE])
    for (a, b), hue in zip(LIMBS, HUES):
        for body in bodies:
            if body[a][2] <= 0.3 or body[b][2] <= 0.3:
                continue
            (xa, ya, _), (xb, yb, _) = body[a], body[b]
            length, angle = math.hypot(ya - yb, xa - xb), math.degrees(math.atan2(ya - yb, xa - xb))
            middle = (int(np.mean([xa, xb])), int(np.mean([ya, yb])))
            cv2.fillConvexPoly(canvas, cv2.ellipse2Poly(middle, (int(length / 2), 4), int(angle), 0, 360, 1), hue)
    canvas = (canvas * 0.6).astype(np.uint8)
    for i, hue in enumerate(HUES):
        for body in bodies:
            if body[i][2] > 0.3:
                cv2.circle(canvas, (int(body[i][0]), int(body[i][1])), 4, hue, thickness=-1)
    return canvas


def pose(picture, detect):
    image = seen(picture)
    height, width = image.shape[:2]
    boxes = people(image) if detect else []
    found = [keypoints(image, box) for box in boxes or [[0, 0, width, height]]]
    notes = {"boxes": np.round(boxes, 2).tolist(), "points": [np.round(f[:17], 2).tolist() for f in found]}
    return cv2.resize(skeleton(found, height, width), picture.size, interpolation=cv2.INTER_LINEAR), notes


def build():
    for name in NETWORKS:
        export(name)
    notes = {}
    for name, (image, size) in CASES.items():
        picture = Image.open(IMAGES / image).convert("RGB").resize(size, Image.LANCZOS)
        if name.startswith("depth"):
            value = depth(name, picture)
        elif name.startswith("pose"):
            value, points = pose(picture, name != "pose")
            notes[name] = points
        else:
            value = edges(name, picture)
        Image.fromarray(value).save(MAPS / f"{name}.png", optimize=True)
        notes.setdefault(name, {})
        notes[name] |= {"image": image, "size": list(size)}
        print(f"{name}: {value.min()} to {value.max()}, deviation {value.std():.1f}")
    text = json.dumps(notes, indent=1)
    (MAPS / "index.json").write_text(re.sub(r"\[\s+([^\[\]]*?)\s+\]", lambda m: "[" + " ".join(m[1].split()) + "]", text) + "\n")


if __name__ == "__main__":
    build()
