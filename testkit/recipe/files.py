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


if __name__ == "__main__":
    for part in sys.argv[1:] or ["weights", "tokenizer", "pictures"]:
        globals()[part]()
