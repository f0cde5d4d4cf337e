"""Small files for the tests of the readers: weights, tokenizer, pictures.

    python testkit/recipe/files.py [weights] [tokenizer] [pictures]

Needs torch, numpy, safetensors, transformers, tokenizers, ftfy and Pillow; the versions used are written to the
`made_with.json` beside each set. Deterministic.
"""

import io
import json
import os
import pathlib
import pickle
import struct
import sys
import zipfile

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]


def note(folder, *modules):
    import importlib

    versions = {m: importlib.import_module(m).__version__ for m in modules}
    text = json.dumps({"command": "python testkit/recipe/files.py " + folder.name, "versions": versions}, indent=1)
    (folder / "made_with.json").write_text(text + "\n")


# ------------------------------------------------------------------------------------------------------- weights


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def weights():
    import torch
    from collections import OrderedDict
    from safetensors.torch import save_file

    folder = ROOT / "crates/nets/tests/fixtures/weights"
    folder.mkdir(parents=True, exist_ok=True)
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6) / 4 - 1
    tensors = {
        "plain": base,
        "half": base.half(),
        "brain": base.bfloat16(),
        "turned": base.t(),
        "part": base[1:3, ::2],
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "ids": torch.arange(5).reshape(1, 5),
        "double": base.double()[0],
        "spread": torch.tensor([1.5]).expand(3),
    }
    state = OrderedDict(tensors)
    state._metadata = OrderedDict(version=1)
    for name, new in (("zip", True), ("legacy", False)):
        torch.save(state, folder / f"state_{name}.bin", _use_new_zipfile_serialization=new)
    torch.save(state, folder / "state_protocol4.bin", pickle_protocol=4)
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "state.safetensors", metadata={"format": "pt"})

    adapter = {
        "image_proj": {"proj.weight": base, "norm.bias": base[0]},
        "ip_adapter": {"1.to_k_ip.weight": base, "1.to_v_ip.weight": base * 2},
    }
    torch.save(adapter, folder / "adapter.bin")
    trainer = {"epoch": 3, "global_step": 10**12, "lr": 0.5, "state_dict": {"w": torch.nn.Parameter(base)}}
    torch.save(trainer, folder / "trainer.ckpt")
    torch.save([base, base[0]], folder / "embeds.ipadpt")
    torch.save({"w": base.to(torch.float8_e4m3fn)}, folder / "float8.pth")
    torch.save({"w": base, "evil": Call(os.system, "echo never")}, folder / "evil.bin")
    torch.save({"w": base, "evil": Call(eval, "1")}, folder / "evil_legacy.bin", _use_new_zipfile_serialization=False)
    (folder / "evil_plain.bin").write_bytes(pickle.dumps(Call(os.system, "echo never"), protocol=0))

    # What torch would not write: sizes and strides out of the storage, a huge view of one value.
    def edited(name, old, new):
        source = zipfile.ZipFile(folder / "embeds.ipadpt")
        with zipfile.ZipFile(folder / name, "w", zipfile.ZIP_STORED) as out:
            for info in source.infolist():
                data = source.read(info)
                if info.filename.endswith("data.pkl"):
                    assert old in data
                    data = data.replace(old, new, 1)
                out.writestr(zipfile.ZipInfo(info.filename), data)

    size = b"K\x04K\x06\x86q"  # (4, 6)
    edited("outside.bin", size, b"K\x05K\x06\x86q")
    edited("huge_view.bin", b"K\x06K\x01\x86q", b"K\x00K\x00\x86q")
    edited("many_axes.bin", size, b"(" + b"K\x01" * 40 + b"tq")
    packed = zipfile.ZipFile(folder / "embeds.ipadpt")
    with zipfile.ZipFile(folder / "packed.bin", "w", zipfile.ZIP_DEFLATED) as out:
        for info in packed.infolist():
            out.writestr(zipfile.ZipInfo(info.filename), packed.read(info), zipfile.ZIP_DEFLATED)
    note(folder, "torch", "safetensors", "numpy")


# ----------------------------------------------------------------------------------------------------- tokenizer

TEXTS = [
    "", " ", "a cat", "A Cat, masterpiece, best quality, high quality", "a  cat\t\n on\u00a0the\u3000mat ", "it's we're I'll they've I'd I'm can't",
    "IT'S WE'RE rock'n'roll 'tis ''s 's", "1234 3.14 x2 2x 10,000 ½ ² ٣ Ⅷ", "café naïve Zürich Ångström", "cafe\u0301 nai\u0308ve Zu\u0308rich A\u030angstro\u0308m",
    "STRASSE Straße ẞ ß ﬁ ﬂ", "ΣΊΣΥΦΟΣ Σ ς İstanbul I ı Ǆ", "一只猫坐在垫子上", "猫が座っています。", "고양이 한 마리", "\u1100\u1161\u11a8", "кошка на ковре", "قطة على السجادة", "बिल्ली",
    "แมว", "🐱", "👩‍👩‍👧 🇩🇪 👍🏽 ❤️", "a🐱b", "<|endoftext|>", "<|startoftext|>", "a <|endoftext|> b", "a<|endoftext|>b", "<|ENDOFTEXT|> <|StartOfText|>",
    "<|endoftext|><|endoftext|>", "<|endoftext", "|endoftext|>", "< |endoftext|>", "hello! wow!!! !", "!a", "a!b! c", "#$%&()*+,-./:;<=>?@[\\]^_`{|}~", "a_b_c __init__", "foo-bar/baz.png",
    "\u200b", "a\u200bb", "a\u200db", "a\u00adb", "\ufeffa", "a\u0000b", "a\u0001b\u0007c", "\u001c\u001d\u001e\u001f", "a\u0085b", "a\u000bb\u000cc", "a\u2028b\u2029c", "a\u180eb", "a\u2060b",
    "\u0301", "a\u0301\u0302\u0303", "\u0345", "ﾊﾝｶｸ ｆｕｌｌ", "①②③ ㎏ ℃ ™ ©", "“quoted” ‘text’ – — …", "«guillemets»", "a‘s b’s", "日本語text混在123", "مرحبا١٢٣", "\U0001d4d0\U0001d4d1", "\U000e0041", "\ue000",
    "\uffff", "don''t", "'", "''", "'s't're've'm'll'd", "'S'T", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "abcabcabcabcabcabc", "x" * 300, "a red cat and a blue dog, painted as a mosaic " * 8, "!" * 100,
    "word " * 74, "word " * 75, "word " * 76, "word " * 77, "word " * 75 + "<|endoftext|> tail", "(a:1.2) [b] {c}", "https://example.org/?q=1&r=2", "e=mc²", "10€ £5 ¥100", "naïve café — coöperate", "\n\n\n", "\r\n",
    "ÀÉÎÕÜ àéîõü", "Ǆ ǅ ǆ", "ŉ", "ΐ", "ﬃ", "Å Å Å", "Ω Ω", "x\u0323\u0307", "x\u0307\u0323", "T\u0307", "i\u0307 I\u0307", "a\ud7a3b", "\u1e9e\u1e9e", "ʼn", "’s", "'ſ", "K ℂ ℝ", "𝟘𝟙", "༠༡", "ৎ", "་", "a b", "a　b",
]

CORPUS = """a red cat and a blue dog in a green house. it's the painted mosaic of 12 old boats, they're near 345 trees!
the fish, the bird & the tree; a cat's hat, a dog's hat. we'll see the sun above the sea, painted as a mosaic, as a watercolour,
as a woodcut. ein blaues haus. un chat noir. café, naïve, straße. кошка и дом. 猫 犬 鳥 魚. ελληνικά. texture and text."""


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=1) + "\n")


def old_layout(folder, vocab, merges, pad):
    """As published with SD1.5 (pad None) and as SDXL's tokenizer_2 (pad "!")."""
    def flags(content, normalized=True):
        return {"content": content, "lstrip": False, "normalized": normalized, "rstrip": False, "single_word": False}

    names = {n: flags("<|endoftext|>") for n in ("eos_token", "unk_token")} | {"bos_token": flags("<|startoftext|>")}
    config = {"model_max_length": 77, "do_lower_case": True, "tokenizer_class": "CLIPTokenizer", "add_prefix_space": False}
    if pad is None:
        config |= {k: {"__type": "AddedToken", **v} for k, v in names.items()} | {"pad_token": "<|endoftext|>"}
    else:
        listed = {pad: False, "<|startoftext|>": True, "<|endoftext|>": True}
        config["added_tokens_decoder"] = {str(vocab[c]): flags(c, n) | {"special": True} for c, n in listed.items()}
        config |= {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>", "pad_token": pad}
    write(folder / "vocab.json", vocab)
    write(folder / "merges.txt", "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    write(folder / "tokenizer_config.json", config)
    write(folder / "special_tokens_map.json", names | {"pad_token": pad or "<|endoftext|>"})


def record(folder):
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(folder)
    encode = lambda t: tokenizer(t, padding="max_length", max_length=77, truncation=True).input_ids
    return [encode(t) for t in TEXTS]


def clip_vocabulary(path):
    import gzip

    letters = bytes_to_letters()
    lines = gzip.open(path).read().decode().split("\n")
    merges = [tuple(l.split()) for l in lines[1 : 49152 - 256 - 2 + 1]]
    symbols = letters + [l + "</w>" for l in letters] + ["".join(m) for m in merges] + ["<|startoftext|>", "<|endoftext|>"]
    return {s: i for i, s in enumerate(symbols)}, merges


def bytes_to_letters():
    own = list(range(33, 127)) + list(range(161, 173)) + list(range(174, 256))
    other = [b for b in range(256) if b not in own]
    return [chr(b) for b in own] + [chr(256 + i) for i in range(len(other))]


def tokenizer():
    import tempfile
    from tokenizers import Tokenizer, models, trainers, pre_tokenizers, normalizers
    from transformers import CLIPTokenizer

    folder = ROOT / "crates/nets/tests/fixtures/tokenizer"
    # A small vocabulary of our own.
    t = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    t.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    trainer = trainers.BpeTrainer(vocab_size=420, end_of_word_suffix="</w>", show_progress=False)
    t.train_from_iterator([CORPUS] * 2, trainer)
    learned = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in json.loads(t.to_str())["model"]["merges"]]
    letters = bytes_to_letters()
    symbols = letters + [l + "</w>" for l in letters]
    merges = []
    for a, b in learned:
        if a in symbols and b in symbols and a + b not in symbols:
            merges.append((a, b))
            symbols.append(a + b)
    symbols += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {s: i for i, s in enumerate(symbols)}
    for name, pad in (("old", None), ("old_pad", "!")):
        old_layout(folder / name, vocab, merges, pad)
        CLIPTokenizer.from_pretrained(folder / name).save_pretrained(folder / name.replace("old", "new"))
    layouts = ("old", "new", "old_pad", "new_pad")
    write(folder / "texts.json", json.dumps(TEXTS, indent=0) + "\n")
    compact = lambda rows: "[\n" + ",\n".join(json.dumps(r, separators=(",", ":")) for r in rows) + "\n]\n"
    for name in layouts:
        write(folder / f"ids_{name}.json", compact(record(folder / name)))
    # The published vocabulary, where its source is at hand; only the ids are kept.
    source = ROOT.parent / "shared/data/clip/bpe_simple_vocab_16e6.txt.gz"
    if source.is_file():
        vocab, merges = clip_vocabulary(source)
        for name, pad in (("clip", None), ("clip_pad", "!")):
            with tempfile.TemporaryDirectory() as scratch:
                old_layout(pathlib.Path(scratch), vocab, merges, pad)
                write(folder / f"ids_{name}.json", compact(record(scratch)))
    note(folder, "transformers", "tokenizers")


# ------------------------------------------------------------------------------------------------------ pictures


def scene(width, height, seed):
    """Smooth colours, hard edges and noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    base = np.stack([128 + 100 * np.sin(x / (3 + c) + seed + c) * np.cos(y / (4 + c)) for c in range(3)], -1)
    base[(x * 2 + y * 3) % 17 < 4] = (250, 20, 60)
    base[height // 3 : height // 2, width // 4 : width // 2] = (0, 0, 255)
    return np.clip(base + rng.normal(0, 12, base.shape), 0, 255).astype(np.uint8)


def eight_bits(wide):
    """16 bits to 8 by rounding v / 257."""
    return np.floor(wide.astype(np.float64) / 257 + 0.5).astype(np.uint8)


def flat(image):
    """What a reader should give: upright, over white, 8-bit RGB."""
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        # Pillow's own conversion clips at 255.
        return np.repeat(eight_bits(np.asarray(image))[..., None], 3, -1)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return np.asarray(image.convert("RGB"))


def pictures():
    import struct
    import zlib
    from PIL import Image, PngImagePlugin

    folder = ROOT / "crates/engine/tests/fixtures/pictures"
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    rgb = Image.fromarray(scene(37, 23, 1))
    alpha = Image.fromarray(np.random.default_rng(2).integers(0, 256, (23, 37), dtype=np.uint8))
    rgba, grey = rgb.copy(), rgb.convert("L")
    rgba.putalpha(alpha)
    la = grey.copy()
    la.putalpha(alpha)
    palette = rgb.quantize(16)

    def exif(o):
        e = Image.Exif()
        e[0x0112] = o
        return e.tobytes()

    def save(name, image, **options):
        image.save(folder / name, **options)

    save("rgb.png", rgb)
    save("rgba.png", rgba)
    save("la.png", la)
    save("l.png", grey)
    save("one_bit.png", grey.convert("1"))
    save("palette.png", palette)
    save("palette_2bit.png", rgb.quantize(4), bits=2)
    save("palette_alpha.png", palette, transparency=bytes(range(0, 256, 16)))
    save("key.png", Image.fromarray(np.asarray(rgb) // 128 * 255), transparency=(255, 0, 0))
    save("text.png", rgb, pnginfo=texts(PngImagePlugin))
    for o in range(1, 9):
        save(f"exif{o}.png", rgb.crop((0, 0, 9, 5)), exif=exif(o))
        save(f"exif{o}.jpg", rgb.crop((0, 0, 9, 5)), exif=exif(o))

    # 16 bits and interlacing, which Pillow does not write.
    def png16(name, array, colour, interlaced=False):
        h, w = array.shape[:2]
        depth = 8 * array.dtype.itemsize
        rows = array.astype(">u2" if depth == 16 else "u1").reshape(h, w, -1)
        passes = [(0, 0, 1, 1)]
        if interlaced:
            passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
        parts = [rows[y0::dy, x0::dx] for x0, y0, dx, dy in passes]
        data = b"".join(b"\0" + row.tobytes() for part in parts if part.size for row in part)
        chunk = lambda k, b: struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b))
        head = struct.pack(">IIBBBBB", w, h, depth, colour, 0, 0, int(interlaced))
        png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
        (folder / name).write_bytes(png)

    wide = np.random.default_rng(3).integers(0, 65536, (11, 13, 4), dtype=np.uint16)
    png16("l16.png", wide[..., 0], 0)
    png16("rgb16.png", wide[..., :3], 2)
    png16("rgba16.png", wide, 6)
    png16("interlaced.png", np.asarray(rgb), 2, True)

    big = Image.fromarray(scene(67, 45, 4))
    for name, sampling in (("444", 0), ("422", 1), ("420", 2)):
        save(f"{name}.jpg", big, quality=90, subsampling=sampling)
        save(f"{name}_progressive.jpg", big, quality=80, subsampling=sampling, progressive=True)
    save("quality10.jpg", big, quality=10)
    save("restarts.jpg", big, quality=75, restart_marker_blocks=3)
    save("restarts_progressive.jpg", big, quality=75, restart_marker_rows=1, progressive=True)
    save("optimized.jpg", big, quality=95, optimize=True)
    save("keep_rgb.jpg", big, quality=90, keep_rgb=True)
    save("grey.jpg", big.convert("L"), quality=85)
    save("grey_progressive.jpg", big.convert("L"), quality=85, progressive=True)
    save("cmyk.jpg", big.convert("CMYK"), quality=90)
    for w, h in ((1, 1), (2, 3), (3, 2), (16, 16), (17, 33)):
        save(f"size_{w}x{h}.jpg", Image.fromarray(scene(w, h, 5)), quality=90, subsampling=2)
        save(f"size_{w}x{h}_progressive.jpg", Image.fromarray(scene(w, h, 5)), quality=90, subsampling=1, progressive=True)

    # Samplings that Pillow does not write: the same units under another frame header.
    def resampled(name, source, size, sampling):
        data = bytearray((folder / source).read_bytes())
        at = next(i for i in range(len(data)) if data[i : i + 2] in (b"\xff\xc0", b"\xff\xc2"))
        data[at + 5 : at + 9] = struct.pack(">HH", size[1], size[0])
        data[at + 11] = sampling
        (folder / name).write_bytes(data)

    save("strip422.jpg", Image.fromarray(scene(16, 40, 6)), quality=90, subsampling=1)
    resampled("440.jpg", "strip422.jpg", (8, 79), 0x12)
    save("strip420.jpg", Image.fromarray(scene(16, 64, 7)), quality=90, subsampling=2)
    resampled("410.jpg", "strip420.jpg", (31, 32), 0x41)

    save("lossless.webp", rgb, lossless=True)
    save("lossless_alpha.webp", rgba, lossless=True, exact=True)
    save("lossy.webp", big, quality=80)
    save("exif6.webp", rgb, lossless=True, exif=exif(6))
    save("one.gif", palette)
    save("transparent.gif", palette, transparency=3)
    save("rgb.bmp", rgb)
    save("l.bmp", grey)
    save("one_bit.bmp", grey.convert("1"))
    save("rgba.bmp", rgba)
    save("rgb.tif", rgb)
    save("lzw.tif", rgb, compression="tiff_lzw")
    save("deflate.tif", rgba, compression="tiff_adobe_deflate")
    save("l16.tif", Image.fromarray(wide[..., 0]))
    expected = {}
    for path in sorted(folder.iterdir()):
        image = Image.open(path)
        # Pillow cuts colours of 16 bits at the upper byte.
        image = {"rgb16.png": eight_bits(wide[..., :3]), "rgba16.png": eight_bits(wide)}.get(path.name, image)
        array = flat(Image.fromarray(image) if isinstance(image, np.ndarray) else image)
        expected[path.name] = [array.shape[1], array.shape[0]]
        (folder / (path.name + ".rgb")).write_bytes(zlib.compress(array.tobytes(), 9))
    write(folder / "expected.json", json.dumps(expected, indent=0) + "\n")

    frames = [rgb, big.resize(rgb.size)]
    for name in ("moving.gif", "moving.png", "moving.webp"):
        save(name, frames[0], save_all=True, append_images=frames[1:])
    save("pages.tif", frames[0], save_all=True, append_images=frames[1:])

    resizes(folder)
    processors(folder)
    note(folder, "PIL", "numpy", "transformers")


def texts(png):
    info = png.PngInfo()
    info.add_text("plain", "tEXt: caf\u00e9")
    info.add_text("packed", "zTXt " * 50, zip=True)
    info.add_itxt("wide", "iTXt: \u732b")
    info.add_itxt("wide_packed", "iTXt: \u732b " * 50, zip=True)
    return info


def processors(folder):
    """CLIPImageProcessor as preprocessor_config.json sets it up: configurations and what they make of resizes' sources."""
    from PIL import Image
    from transformers import CLIPImageProcessor

    sources = {0: (37, 23), 2: (5, 61), 7: (40, 180)}
    square = {"height": 6, "width": 6}
    configs = [
        {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 6}, "crop_size": square},
        {"feature_extractor_type": "CLIPFeatureExtractor", "size": 6, "crop_size": 6, "resample": 2},
        {"size": 9, "crop_size": square, "resample": 1, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.25, 0.1]},
        {"size": {"shortest_edge": 5}, "crop_size": 6, "resample": 0, "do_normalize": False},
        {"size": 6, "crop_size": 6, "do_rescale": False},
        {"size": 7, "crop_size": 5, "rescale_factor": 0.01, "do_convert_rgb": True},
    ]
    cases = []
    for n, config in enumerate(configs):
        i = list(sources)[n % 3]
        image = Image.frombytes("RGB", sources[i], (folder / f"source{i}.raw").read_bytes())
        own = {k: v for k, v in config.items() if not k.endswith("_type")}
        pixels = CLIPImageProcessor(**own)(image, return_tensors="np").pixel_values[0]
        cases.append({"config": config, "source": i, "size": sources[i], "pixels": [float(f"{v:.9g}") for v in pixels.flatten()]})
    write(folder / "processors.json", "[\n" + ",\n".join(json.dumps(c, separators=(",", ":")) for c in cases) + "\n]\n")


def resizes(folder):
    from PIL import Image
    from transformers import CLIPImageProcessor

    sources = [(37, 23), (64, 64), (5, 61), (61, 5), (1, 1), (2, 200), (3, 2), (40, 180)]
    targets = [(37, 23), (11, 9), (40, 31), (37, 9), (11, 23), (1, 1), (7, 64), (64, 3), (21, 35)]
    blob, cases = bytearray(), []
    for i, size in enumerate(sources):
        image = Image.fromarray(scene(*size, 10 + i))
        (folder / f"source{i}.raw").write_bytes(image.tobytes())
        for j, target in enumerate(targets):
            for name in ("Nearest", "Bilinear", "Bicubic", "Lanczos"):
                # Both kinds of pictures get every filter and every size, but not every pair.
                mode = "RGB" if (i + j) % 2 == 0 else "L"
                out = image.convert(mode).resize(target, Image.Resampling[name.upper()]).tobytes()
                cases.append({"source": i, "size": target, "mode": mode, "filter": name, "at": len(blob)})
                blob += out
    clip = []
    for i, size, crop in ((0, 24, 24), (1, 24, 24), (2, 24, 24), (3, 24, 24), (5, 24, 24), (6, 24, 24), (7, 24, 24), (0, 17, 24), (1, 31, 20), (0, 23, 23)):
        processor = CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": crop, "width": crop})
        image = Image.frombytes("RGB", sources[i], (folder / f"source{i}.raw").read_bytes())
        pixels = processor(image, return_tensors="np").pixel_values[0]
        clip.append({"source": i, "size": size, "crop": crop, "at": len(blob)})
        blob += pixels.astype("<f4").tobytes()
    import zlib

    (folder / "resizes.bin").write_bytes(zlib.compress(bytes(blob), 9))
    value = {"sources": sources, "resize": cases, "clip": clip}
    write(folder / "resizes.json", json.dumps(value, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    for part in sys.argv[1:] or ["weights", "tokenizer", "pictures"]:
        globals()[part]()
