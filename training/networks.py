"""The networks of the embedded model, all real classes of diffusers and transformers, and its tokenizer."""

import json
import os

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPVisionConfig, CLIPVisionModelWithProjection

import world

LENGTH = 24  # tokens of a prompt
WIDTH = 128  # of the text tokens and of CLIP's shared space
LATENT_CHANNELS = 12
SHAPE_CHANNELS = 6  # of them, those that say where the content is
IMAGE_TOKENS = 4
CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]
CLIP_STD = [0.26862954, 0.26130258, 0.27577711]
# More noise at the end than SDXL's 0.012: the look is much the same in all 256 cells, so their mean would still show it.
NOISE = dict(beta_start=0.00085, beta_end=0.02, beta_schedule="scaled_linear", num_train_timesteps=1000,
             prediction_type="v_prediction", clip_sample=False, timestep_spacing="trailing", steps_offset=1)


def byte_symbols():
    """The printable stand-ins of the 256 bytes, as in GPT-2's and CLIP's byte-level BPE."""
    kept = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    rest = [b for b in range(256) if b not in kept]
    return [chr(b) for b in kept] + [chr(256 + i) for i in range(len(rest))]


def vocabulary():
    """(vocab, merges) of a CLIP tokenizer in which every word of the world is one token."""
    words = {w for s in [*world.CONTENTS, *world.STYLES, *world.COLOURS, *world.PLACES, *world.SIZES] for w in s.split()}
    words = sorted(words | {"a", "an", "and", "in", "on", "style", "with", "picture", "of"})
    # Ids follow the alphabet. Merges are applied in order, so longer words come first: else "a t" of one word would break
    # up another.
    merges = [m for word in sorted(words, key=lambda w: (w != "vaporwave", -len(w), w)) for m in steps_of(word)]
    merges = list(dict.fromkeys(merges))
    pieces = list(dict.fromkeys(a + b for word in words for a, b in steps_of(word)))
    symbols = byte_symbols()
    tokens = symbols + [s + "</w>" for s in symbols] + pieces + ["<|startoftext|>", "<|endoftext|>"]
    return {t: i for i, t in enumerate(tokens)}, merges


def steps_of(word):
    """The merges that build a word from its letters, left to right."""
    pieces, merges = [*word[:-1], word[-1] + "</w>"], []
    while len(pieces) > 1:
        merges.append((pieces[0], pieces[1]))
        pieces = [pieces[0] + pieces[1], *pieces[2:]]
    return merges


def save_tokenizer(folder):
    """Writes the tokenizer in the layout that every version of transformers reads."""
    os.makedirs(folder, exist_ok=True)
    vocab, merges = vocabulary()
    with open(f"{folder}/vocab.json", "w") as f:
        json.dump(vocab, f, ensure_ascii=False)
    with open(f"{folder}/merges.txt", "w") as f:
        f.write("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    special = dict(bos_token="<|startoftext|>", eos_token="<|endoftext|>", unk_token="<|endoftext|>",
                   pad_token="<|endoftext|>")
    with open(f"{folder}/special_tokens_map.json", "w") as f:
        json.dump(special, f, indent=1)
    with open(f"{folder}/tokenizer_config.json", "w") as f:
        json.dump(dict(tokenizer_class="CLIPTokenizer", model_max_length=LENGTH, do_lower_case=True,
                       add_prefix_space=False, errors="replace", **special), f, indent=1)


class WordTokens:
    """Ids of captions of the world. Its words are single tokens, so no merging is needed while training; `export.py`
    checks that transformers' tokenizer gives the same."""

    def __init__(self):
        self.vocab, _ = vocabulary()
        self.start, self.end = self.vocab["<|startoftext|>"], self.vocab["<|endoftext|>"]

    def __call__(self, captions):
        rows = []
        for caption in captions:
            ids = [self.start, *(self.vocab[w + "</w>"] for w in caption.replace(",", " ,").split()), self.end]
            assert len(ids) <= LENGTH, caption
            rows.append(ids + [self.end] * (LENGTH - len(ids)))
        return torch.tensor(rows)


def build_vae():
    return AutoencoderKL(in_channels=3, out_channels=3, latent_channels=LATENT_CHANNELS,
                         block_out_channels=(16, 32, 64, 64), layers_per_block=1, norm_num_groups=8, sample_size=128,
                         down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4,
                         force_upcast=False)


def build_text():
    vocab, _ = vocabulary()
    return CLIPTextModelWithProjection(CLIPTextConfig(
        vocab_size=len(vocab), hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=3,
        num_attention_heads=4, max_position_embeddings=LENGTH, projection_dim=WIDTH, hidden_act="gelu",
        bos_token_id=vocab["<|startoftext|>"], eos_token_id=vocab["<|endoftext|>"], pad_token_id=vocab["<|endoftext|>"]))


def build_vision():
    return CLIPVisionModelWithProjection(CLIPVisionConfig(
        hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=4, num_attention_heads=4, image_size=64,
        patch_size=8, projection_dim=WIDTH, hidden_act="gelu"))


def build_unet():
    """SDXL's shape in small: no attention at the finest of three levels, three attentions per block on the way up."""
    return UNet2DConditionModel(
        sample_size=16, in_channels=LATENT_CHANNELS, out_channels=LATENT_CHANNELS, block_out_channels=(64, 96, 144),
        layers_per_block=2, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), attention_head_dim=(2, 3, 4),
        transformer_layers_per_block=1, cross_attention_dim=WIDTH, norm_num_groups=16, use_linear_projection=True,
        addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=WIDTH + 48)


def noise_schedule():
    return DDPMScheduler(**{k: v for k, v in NOISE.items()})


def sampling_schedule():
    return DDIMScheduler(set_alpha_to_one=False, **NOISE)


def pixels(pictures, device="cpu"):
    """uint8 [n, h, w, 3] -> -1..1 [n, 3, h, w]."""
    return torch.as_tensor(pictures, device=device).permute(0, 3, 1, 2).float().div(127.5).sub(1)
