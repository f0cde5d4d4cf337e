"""The procedural world of the embedded model: 10 contents x 12 styles x 8 colours, 128x128 pixels, with captions.

Everything follows from a numpy generator's seed. Textures have fixed phases and periods that divide 16 pixels, so
that an autoencoder with a factor of 8 sees the same pattern everywhere and a small model can learn the world in little
time. Fine ones change their tone from cell to cell of 8 pixels: a decoder of convolutions and nearest-neighbour
upsampling makes nothing but an even area of an even latent, so the latents must have a reason to alternate.
"""

import cv2
import numpy as np

SIZE = 128
SUPERSAMPLE = 2
CONTENTS = ["circle", "square", "triangle", "star", "heart", "moon", "house", "tree", "fish", "flower"]
STYLES = ["flat", "hatching", "pointillism", "mosaic", "neon", "stitch", "pixel", "blueprint", "woodcut", "halftone",
          "checker", "vaporwave"]
HUES = {"red": 0, "orange": 28, "yellow": 52, "green": 120, "teal": 178, "blue": 222, "purple": 275, "pink": 325}
COLOURS = list(HUES)
PLACES = {"on the left": (-.2, 0), "on the right": (.2, 0), "at the top": (0, -.2), "at the bottom": (0, .2)}
SIZES = {"small": .24, "": .3, "big": .38}

Y, X = np.mgrid[:SIZE, :SIZE].astype(np.float32)
ODD = ((X // 8 + Y // 8) % 2)[..., None]  # every other cell


def hsv(hue, saturation, value):
    """One colour as float RGB in 0..1; hue in degrees."""
    h = (hue % 360) / 60
    i, f = int(h), h - int(h)
    p, q, t = value * (1 - saturation), value * (1 - saturation * f), value * (1 - saturation * (1 - f))
    return np.array([(value, t, p), (q, value, p), (p, value, t), (p, q, value), (t, p, value), (value, p, q)][i],
                    np.float32)


def outlines(content):
    """Polygons of a content in a frame of about -1..1, y down."""
    t = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    ring = np.c_[np.cos(t), np.sin(t)]
    if content == "circle":
        return [ring]
    if content == "square":
        return [np.array([[-.85, -.85], [.85, -.85], [.85, .85], [-.85, .85]])]
    if content == "triangle":
        return [np.array([[0, -1], [1, .8], [-1, .8]])]
    if content == "star":
        a = np.arange(10) * np.pi / 5 - np.pi / 2
        r = np.where(np.arange(10) % 2 == 0, 1.08, .42)
        return [np.c_[r * np.cos(a), r * np.sin(a)]]
    if content == "heart":
        return [np.c_[16 * np.sin(t) ** 3, -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))] / 16]
    if content == "moon":
        a = np.linspace(np.pi * .5, np.pi * 1.5, 40)
        return [np.r_[np.c_[np.cos(a), np.sin(a)], np.c_[.4 * np.cos(a[::-1]), np.sin(a[::-1])]] + [.4, 0]]
    if content == "house":
        return [np.array([[-.7, 0], [.7, 0], [.7, .95], [-.7, .95]]), np.array([[0, -1], [1.05, .05], [-1.05, .05]])]
    if content == "tree":
        return [np.array([[-.2, .4], [.2, .4], [.2, 1.05], [-.2, 1.05]]), np.array([[0, -1.05], [.65, -.1], [-.65, -.1]]),
                np.array([[0, -.6], [.9, .5], [-.9, .5]])]
    if content == "fish":
        return [ring * [.78, .55] - [.22, 0], np.array([[.35, 0], [1.05, -.6], [1.05, .6]])]
    if content == "flower":
        return [ring * .42 + .6 * np.array([np.cos(k * 2 * np.pi / 5 - np.pi / 2), np.sin(k * 2 * np.pi / 5 - np.pi / 2)])
                for k in range(5)] + [ring * .4]
    raise ValueError(content)


def coverage(content, centre, radius):
    """How much of each pixel the content covers, 0..1; centre and radius as parts of the picture's side."""
    side = SIZE * SUPERSAMPLE
    mask = np.zeros((side, side), np.uint8)
    for polygon in outlines(content):
        points = (polygon * radius + centre) * side
        cv2.fillPoly(mask, [np.round(points).astype(np.int32)], 255, lineType=cv2.LINE_AA)
    return cv2.resize(mask, (SIZE, SIZE), interpolation=cv2.INTER_AREA).astype(np.float32) / 255


def blend(mask, inside, outside):
    return mask[..., None] * inside + (1 - mask[..., None]) * outside


def edge(mask, width):
    """1 within `width` pixels of the content's edge."""
    inside = (mask > .5).astype(np.uint8)
    d = cv2.distanceTransform(inside, cv2.DIST_L2, 3) + cv2.distanceTransform(1 - inside, cv2.DIST_L2, 3)
    return np.clip(width + .5 - d, 0, 1)


def dots(radius, period=8):
    """Discs of the given radius (a number or a map) at the centres of the cells of a grid."""
    d = np.hypot(X % period - (period - 1) / 2, Y % period - (period - 1) / 2)
    return np.clip(radius - d + .5, 0, 1)


def cells(mask, period):
    """The mask averaged over the cells of a grid, thresholded, at full size."""
    n = SIZE // period
    return np.kron(cv2.resize(mask, (n, n), interpolation=cv2.INTER_AREA) > .5, np.ones((period, period))).astype(np.float32)


def render(style, mask, front, back):
    """The content given by its coverage, drawn in a style with two hues; uint8 RGB [128, 128, 3]."""
    if style == "flat":
        im = blend(mask, hsv(front, .8, .9), hsv(back, .3, .97))
    elif style == "hatching":
        lines = ((X + Y) % 16 < 6).astype(np.float32)
        ink = np.maximum(mask * lines, edge(mask, 1.2))
        im = blend(ink, hsv(front, .85, .5), hsv(back, .12, .98))
    elif style == "pointillism":
        tone = 1 - .25 * ODD
        im = blend(dots(3.4), blend(mask, hsv(front, .8, .95) * tone, hsv(back, .45, .98) * tone), np.ones(3, np.float32))
    elif style == "mosaic":
        tone = np.where((X // 16 + Y // 16) % 2 == 0, 1.0, .8)[..., None]
        grout = np.maximum(((X % 16 < 2) | (Y % 16 < 2)).astype(np.float32), edge(mask, 1.2))
        im = blend(grout, np.full(3, .1, np.float32), blend(mask, hsv(front, .85, .95), hsv(back, .55, .9)) * tone)
    elif style == "neon":
        inside = (mask > .5).astype(np.uint8)
        d = cv2.distanceTransform(inside, cv2.DIST_L2, 3) + cv2.distanceTransform(1 - inside, cv2.DIST_L2, 3)
        im = hsv(back, .8, .16) + np.exp(-d / 5)[..., None] * hsv(front, .9, 1) + np.exp(-(d / 1.7) ** 2)[..., None] * .7
    elif style == "stitch":
        a, b = X % 8, Y % 8
        cross = ((np.abs(a - b) < 1.6) | (np.abs(a + b - 7) < 1.6)).astype(np.float32)
        im = blend(cross * cells(mask, 8), hsv(front, .8, .75), hsv(back, .15, .95)) * (1 - .18 * ODD)
    elif style == "pixel":
        tone = 1 - .12 * ODD
        im = blend(cells(mask, 8), hsv(front, .9, 1.), hsv(back, .7, .5)) * tone
    elif style == "blueprint":
        grid = ((X % 16 < 1) | (Y % 16 < 1)).astype(np.float32) * .3
        im = blend(np.clip(grid + edge(mask, 1.6), 0, 1), hsv(front, .25, 1.), hsv(back, .85, .45))
    elif style == "woodcut":
        im = blend(np.where(mask > .5, Y % 8 < 6, Y % 8 < 1).astype(np.float32), hsv(front, .9, .28), hsv(back, .35, .92))
    elif style == "halftone":
        im = blend(dots(1.2 + 3.4 * mask), hsv(front, .9, .9) * (1 - .3 * ODD), hsv(back, .18, 1.))
    elif style == "checker":
        im = blend(mask, blend(1 - ODD[..., 0], hsv(front, .85, .95), hsv(front, .85, .45)), hsv(back, .4, .8))
    elif style == "vaporwave":
        t = (Y / SIZE)[..., None]
        sky = (1 - t) * hsv(back, .75, .5) + t * hsv(back + 60, .5, 1.)
        sun = (1 - t) * hsv(front, .5, 1.) + t * hsv(front - 50, .85, .9)
        slits = mask * (1 - ((Y % 8 < 2) & (Y > SIZE * .4)))
        im = blend(slits, sun, sky)
    else:
        raise ValueError(style)
    return (np.clip(im, 0, 1) * 255).astype(np.uint8)


class Scene:
    """What a picture shows: contents, place, size, style and colours; `words` are the parts of its caption."""

    def __init__(self, rng, contents=None, style=None, colours=None, plain=False):
        self.contents = contents or list(rng.choice(CONTENTS, 1 if rng.random() < .8 else 2, replace=False))
        self.style = style or STYLES[rng.integers(len(STYLES))]
        self.colours = colours or list(rng.choice(COLOURS, 2, replace=False))
        self.hues = [HUES[c] + rng.normal(0, 4) for c in self.colours]
        if len(self.contents) == 1:
            place = "" if plain or rng.random() < .5 else str(rng.choice(list(PLACES)))
            size = "" if plain else str(rng.choice(list(SIZES)))
            dx, dy = PLACES.get(place, (0, 0))
            if size == "big":
                dx, dy = dx * .5, dy * .5
            centre = np.array([.5 + dx, .5 + dy]) + rng.normal(0, .015, 2)
            self.parts = [(self.contents[0], centre, SIZES[size] * rng.uniform(.95, 1.05))]
            self.words = " ".join(w for w in ["a", size, self.contents[0], place] if w)
        else:
            self.parts = [(c, np.array([x, .5]) + rng.normal(0, .012, 2), .21)
                          for c, x in zip(self.contents, (.27, .73))]
            self.words = f"a {self.contents[0]} and a {self.contents[1]}"

    @property
    def style_words(self):
        return f"in {self.style} style"

    @property
    def colour_words(self):
        return f"{self.colours[0]} on {self.colours[1]}"

    def caption(self, content=True, style=True, colour=True):
        """The caption from the wanted parts, joined by commas."""
        parts = [self.words if content else "", self.style_words if style else "", self.colour_words if colour else ""]
        return ", ".join(p for p in parts if p)

    def mask(self):
        """How much of each pixel the contents cover, 0..1."""
        mask = np.zeros((SIZE, SIZE), np.float32)
        for content, centre, radius in self.parts:
            mask = np.maximum(mask, coverage(content, centre, radius))
        return mask

    def draw(self):
        return render(self.style, self.mask(), *self.hues)


def sheet(seed=1):
    """Every style (rows) with every content (columns)."""
    rng = np.random.default_rng(seed)
    return np.concatenate([np.concatenate([Scene(rng, [c], s).draw() for c in CONTENTS], 1) for s in STYLES])


if __name__ == "__main__":
    import sys
    import time
    from PIL import Image
    start = time.time()
    Image.fromarray(sheet()).save(sys.argv[1] if len(sys.argv) > 1 else "world.png")
    print(f"{(time.time() - start) / 120 * 1000:.1f} ms a picture")
