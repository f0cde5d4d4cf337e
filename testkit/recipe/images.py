"""The reference pictures and masks of the cases."""

import numpy as np
from PIL import Image, ImageDraw

from common import IMAGES


def field(width, height):
    y, x = np.mgrid[0:height, 0:width]
    return x / max(1, width - 1), y / max(1, height - 1)


def rgb(r, g, b):
    return Image.fromarray(np.clip(np.stack([r, g, b], -1) * 255.0 + 0.5, 0, 255).astype(np.uint8), "RGB")


def waves(width, height):
    x, y = field(width, height)
    return rgb(0.5 + 0.5 * np.sin(9 * x + 4 * y), 0.2 + 0.3 * np.cos(14 * y), 0.75 - 0.5 * x * y)


def rings(width, height):
    x, y = field(width, height)
    d = np.hypot(x - 0.3, y - 0.6)
    return rgb(0.1 + 0.2 * np.sin(30 * d), 0.5 + 0.45 * np.cos(22 * d), 0.3 + 0.3 * x)


def blocks(width, height):
    image = Image.new("RGB", (width, height), (240, 220, 180))
    draw = ImageDraw.Draw(image)
    rng = np.random.RandomState(7)
    for _ in range(14):
        x0, y0 = rng.randint(0, width), rng.randint(0, height)
        w, h = rng.randint(4, width // 2), rng.randint(4, height // 2)
        draw.rectangle([x0, y0, x0 + w, y0 + h], fill=tuple(int(v) for v in rng.randint(0, 256, 3)))
    return image


def stripes(width, height):
    x, y = field(width, height)
    on = ((x * 12 + y * 3).astype(int) % 2).astype(float)
    return rgb(0.95 * on, 0.1 + 0.1 * on, 0.9 - 0.8 * on)


def disc(width, height, colour, ground):
    x, y = field(width, height)
    inside = (np.hypot(x - 0.5, y - 0.5) < 0.35)[..., None]
    return np.where(inside, np.array(colour), np.array(ground)).astype(np.uint8)


def build():
    IMAGES.mkdir(parents=True, exist_ok=True)
    waves(64, 64).save(IMAGES / "waves.png")
    rings(96, 60).save(IMAGES / "rings.png")
    blocks(50, 110).save(IMAGES / "blocks.png")
    stripes(37, 41).save(IMAGES / "stripes.png")
    waves(20, 17).save(IMAGES / "small.png")
    rings(230, 180).save(IMAGES / "large.png")
    rings(140, 40).save(IMAGES / "wide.png")

    # Orientation stored as EXIF in a PNG chunk: 6 = turn by 90 degrees clockwise, 3 = turn by 180, 2 = mirror, 5 = transpose.
    for orientation in (2, 3, 5, 6, 8):
        exif = Image.Exif()
        exif[0x0112] = orientation
        blocks(64, 44).save(IMAGES / f"exif{orientation}.png", exif=exif)

    # 16 bits per sample. The values are multiples of 257, so halving them to 8 bits by any sound rule agrees.
    x, y = field(60, 45)
    grey = (np.clip(0.5 + 0.5 * np.sin(11 * x) * np.cos(7 * y), 0, 1) * 255 + 0.5).astype(np.uint16)
    Image.fromarray(grey * 257).save(IMAGES / "grey16.png")
    Image.fromarray(grey.astype(np.uint8)).save(IMAGES / "grey8.png")

    # Alpha: flattened on white.
    rgba = np.dstack([np.asarray(waves(56, 40)), (field(56, 40)[0] * 255 + 0.5).astype(np.uint8)])
    Image.fromarray(rgba, "RGBA").save(IMAGES / "rgba.png")
    la = np.dstack([np.asarray(waves(40, 52).convert("L")), (field(40, 52)[1] * 255 + 0.5).astype(np.uint8)])
    Image.fromarray(la, "LA").save(IMAGES / "grey-alpha.png")
    palette = blocks(48, 48).quantize(16)
    palette.save(IMAGES / "palette.png")
    palette.save(IMAGES / "palette-alpha.png", transparency=bytes([0, 128, 255, 64] + [255] * 12))

    # Masks.
    def mask(array, name):
        Image.fromarray(array.astype(np.uint8), "L").save(IMAGES / name)

    x, y = field(64, 64)
    mask((x < 0.5) * 255, "mask-left.png")
    mask((x >= 0.5) * 255, "mask-right.png")
    mask(np.clip(x * 1.2 - 0.1, 0, 1) * 255, "mask-soft.png")
    Image.fromarray(disc(100, 100, (255, 255, 255), (0, 0, 0)), "RGB").save(IMAGES / "mask-disc.png")
    x, y = field(48, 80)
    mask((y < 0.45) * 255, "mask-top-portrait.png")
    mask((y >= 0.45) * 255, "mask-bottom-portrait.png")
    x, y = field(96, 60)
    mask(((x * 5).astype(int) % 2) * 255, "mask-bars-wide.png")


def load(path):
    """How this project reads a picture: EXIF turned, alpha flattened on white, 16 bits scaled to 8, RGB."""
    from PIL import ImageOps

    image = ImageOps.exif_transpose(Image.open(path))
    if image.mode.startswith("I;16") or image.mode == "I":
        image = Image.fromarray(((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8), "L")
    if image.mode == "P":
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    if image.mode in ("RGBA", "LA", "PA"):
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(ground, image)
    return image.convert("RGB")
