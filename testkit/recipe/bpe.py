"""A small byte-level CLIP vocabulary, trained on the words below, in both file layouts."""

import json
from collections import Counter

from transformers import CLIPTokenizer

WORDS = """
a an the of in on at with and or by for from to is it this that over under near beside behind between into out up down
cat cat cat dog dog dog bird fish horse house house tree tree flower mountain river sea ocean lake boat ship car train road
bridge castle tower city street village forest garden field meadow desert island beach sky cloud sun moon star night day
morning evening sunset sunrise rain snow storm wind fire water stone rock sand grass leaf wood metal glass gold silver
red green blue yellow orange purple pink brown black white grey dark light bright pale warm cold soft sharp smooth rough
big small little large tall short long wide narrow round square old new young ancient modern beautiful pretty lonely happy
sad quiet loud calm wild gentle strong weak fast slow rich poor heavy empty full broken golden wooden
painting painting picture photo photograph drawing sketch watercolor oil ink pencil charcoal pastel mosaic engraving poster
print illustration portrait landscape style style artist artistic art masterpiece masterpiece best best quality quality high
highly detailed detail details texture pattern color colors colour palette brush stroke canvas paper line shape shadow
contrast blurry lowres low worst deformed glitch noisy text watermark saturation ugly bad anatomy
rabbit fox bear wolf lion tiger mouse robot astronaut knight queen king wizard dragon child woman man girl boy people
person face hand eye head hair hat coat dress shoe chair table lamp book cup bottle bowl apple pear lemon bread cake
sitting standing running flying swimming sleeping walking jumping looking holding riding wearing playing reading dancing
through across around above below left right middle center front back side corner edge top bottom
one two three four five many few some each every very most more less much so too also only
made making taken shown seen drawn painted carved folded woven knitted printed glowing shining floating rising falling
summer winter spring autumn stained window door wall roof floor kitchen room market harbor harbour station museum
the the the and and and of of of a a a in in in with with with ing ing ed er est ly ness tion ment
"""

MERGES = 320


def byte_symbols():
    """CLIP's table from bytes to printable characters, in vocabulary order ('!' is id 0)."""
    codes = list(range(ord("!"), ord("~") + 1)) + list(range(0xA1, 0xAD)) + list(range(0xAE, 0x100))
    symbols = {c: chr(c) for c in codes}
    extra = 0
    for code in range(256):
        if code not in symbols:
            symbols[code] = chr(256 + extra)
            extra += 1
    order = codes + [c for c in range(256) if c not in codes]
    return [symbols[c] for c in order]


def train(merges=MERGES):
    words = Counter()
    for word in WORDS.split():
        words[tuple(word[:-1]) + (word[-1] + "</w>",)] += 1
    learned = []
    while len(learned) < merges:
        pairs = Counter()
        for word, count in words.items():
            for pair in zip(word, word[1:]):
                pairs[pair] += count
        if not pairs:
            break
        best = min(pairs, key=lambda p: (-pairs[p], p))
        learned.append(best)
        merged = Counter()
        for word, count in words.items():
            out, i = [], 0
            while i < len(word):
                if i + 1 < len(word) and (word[i], word[i + 1]) == best:
                    out.append(word[i] + word[i + 1])
                    i += 2
                else:
                    out.append(word[i])
                    i += 1
            merged[tuple(out)] += count
        words = merged
    return learned


def vocabulary(merges):
    symbols = byte_symbols()
    tokens = symbols + [s + "</w>" for s in symbols] + [a + b for a, b in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    unique = list(dict.fromkeys(tokens))
    assert len(unique) == len(tokens)
    return {token: index for index, token in enumerate(unique)}


def special(text):
    return {
        "__type": "AddedToken",
        "content": text,
        "lstrip": False,
        "normalized": True,
        "rstrip": False,
        "single_word": False,
    }


def save_old(folder, merges, pad="<|endoftext|>"):
    """The layout of transformers 4: vocab.json and merges.txt."""
    folder.mkdir(parents=True, exist_ok=True)
    vocab = vocabulary(merges)
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")
    lines = ["#version: 0.2"] + [f"{a} {b}" for a, b in merges]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    plain = {k: v for k, v in special("<|startoftext|>").items() if k != "__type"}
    end = {k: v for k, v in special("<|endoftext|>").items() if k != "__type"}
    (folder / "special_tokens_map.json").write_text(
        json.dumps({"bos_token": plain, "eos_token": end, "pad_token": pad, "unk_token": end}, indent=2) + "\n"
    )
    config = {
        "add_prefix_space": False,
        "bos_token": special("<|startoftext|>"),
        "do_lower_case": True,
        "eos_token": special("<|endoftext|>"),
        "errors": "replace",
        "model_max_length": 77,
        "name_or_path": "tiny",
        "pad_token": pad,
        "special_tokens_map_file": "./special_tokens_map.json",
        "tokenizer_class": "CLIPTokenizer",
        "unk_token": special("<|endoftext|>"),
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def save_new(folder, merges, pad="<|endoftext|>"):
    """The layout of transformers 5: tokenizer.json, as the library itself writes it."""
    tokenizer = CLIPTokenizer(
        vocab=vocabulary(merges),
        merges=[tuple(m) for m in merges],
        pad_token=pad,
        model_max_length=77,
    )
    tokenizer.save_pretrained(folder)
    assert (folder / "tokenizer.json").exists()
