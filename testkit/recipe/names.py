"""Names of original checkpoints beside diffusers': `python names.py` writes `fixtures/names/*.tsv`.

The original names are those of Rombach et al.'s code, written down here from its structure; diffusers' own conversion
(`diffusers/loaders/single_file_utils.py`) turns them into its names, and must give every tensor of its model, no more and
no less. A line is: original key, diffusers' key, shape in diffusers' model (of small widths, so that tests can fill it),
and how the one becomes the other (`=`, `T` transposed, `i/3` third of the rows).
"""

import common
import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from diffusers.loaders import single_file_utils as single
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

NAMES = common.FIXTURES / "names"
SD15 = dict(sample_size=64, cross_attention_dim=64, attention_head_dim=8, block_out_channels=[32, 64, 96, 96])
SDXL = dict(sample_size=128, cross_attention_dim=128, attention_head_dim=[1, 1, 1], block_out_channels=[32, 64, 96],
            transformer_layers_per_block=[1, 2, 10], use_linear_projection=True, addition_embed_type="text_time",
            addition_time_embed_dim=256, projection_class_embeddings_input_dim=64 + 6 * 256,
            down_block_types=["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
            up_block_types=["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"])
VAE = dict(block_out_channels=[32, 64, 96, 96], layers_per_block=2, latent_channels=4, sample_size=512,
           down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4)
TEXT = dict(vocab_size=49408, hidden_size=64, intermediate_size=96, num_hidden_layers=12, num_attention_heads=1,
            projection_dim=64, eos_token_id=2)


def both(*names):
    return [f"{n}.{end}" for n in names for end in ("weight", "bias")]


def resnet(at, shortcut):
    layers = ["in_layers.0", "in_layers.2", "emb_layers.1", "out_layers.0", "out_layers.3"] + ["skip_connection"] * shortcut
    return both(*(f"{at}.{layer}" for layer in layers))


def transformer(at, depth):
    keys = both(f"{at}.norm", f"{at}.proj_in", f"{at}.proj_out")
    for i in range(depth):
        block = f"{at}.transformer_blocks.{i}"
        for attention in ("attn1", "attn2"):
            keys += [f"{block}.{attention}.to_{x}.weight" for x in "qkv"] + both(f"{block}.{attention}.to_out.0")
        keys += both(*(f"{block}.{n}" for n in ("norm1", "norm2", "norm3", "ff.net.0.proj", "ff.net.2")))
    return keys


def unet_keys(config, decoder=True):
    """`openaimodel.py`'s order: numbered blocks down, the middle, numbered blocks up."""
    widths = config["block_out_channels"]
    depths = config.get("transformer_layers_per_block", [1, 1, 1, 1])
    attended = ["Cross" in t for t in config.get("down_block_types", ["Cross", "Cross", "Cross", ""])]
    keys = both("time_embed.0", "time_embed.2", "input_blocks.0.0")
    if config.get("addition_embed_type"):
        keys += both("label_emb.0.0", "label_emb.0.2")
    n, width, skips = 1, widths[0], [widths[0]]
    for i, w in enumerate(widths):
        for _ in range(2):
            keys += resnet(f"input_blocks.{n}.0", width != w)
            keys += transformer(f"input_blocks.{n}.1", depths[i]) if attended[i] else []
            n, width = n + 1, w
            skips.append(w)
        if i + 1 < len(widths):
            keys += both(f"input_blocks.{n}.0.op")
            n += 1
            skips.append(w)
    keys += resnet("middle_block.0", False) + transformer("middle_block.1", depths[-1]) + resnet("middle_block.2", False)
    if not decoder:
        return keys, n
    n = 0
    for i, w in reversed(list(enumerate(widths))):
        for j in range(3):
            keys += resnet(f"output_blocks.{n}.0", width + skips.pop() != w)
            keys += transformer(f"output_blocks.{n}.1", depths[i]) if attended[i] else []
            if j == 2 and i > 0:
                keys += both(f"output_blocks.{n}.{2 if attended[i] else 1}.conv")
            n, width = n + 1, w
    return keys + both("out.0", "out.2")


def vae_keys(config):
    widths, keys = config["block_out_channels"], []

    def block(at, shortcut):
        return both(*(f"{at}.{n}" for n in ["norm1", "conv1", "norm2", "conv2"] + ["nin_shortcut"] * shortcut))

    for side, name, n in (("encoder", "down", 2), ("decoder", "up", 3)):
        order = range(len(widths)) if side == "encoder" else reversed(range(len(widths)))
        width = widths[0] if side == "encoder" else widths[-1]
        keys += both(f"{side}.conv_in", f"{side}.norm_out", f"{side}.conv_out")
        for i in order:
            for j in range(n):
                keys += block(f"{side}.{name}.{i}.block.{j}", width != widths[i])
                width = widths[i]
            if i != (len(widths) - 1 if side == "encoder" else 0):
                keys += both(f"{side}.{name}.{i}.{name}sample.conv")
        keys += block(f"{side}.mid.block_1", False) + block(f"{side}.mid.block_2", False)
        keys += both(*(f"{side}.mid.attn_1.{n}" for n in ("norm", "q", "k", "v", "proj_out")))
    return keys + both("quant_conv", "post_quant_conv")


def open_clip_keys(layers):
    keys = ["positional_embedding", "text_projection", "token_embedding.weight", "logit_scale"] + both("ln_final")
    for i in range(layers):
        at = f"transformer.resblocks.{i}"
        keys += [f"{at}.attn.in_proj_weight", f"{at}.attn.in_proj_bias"]
        keys += both(*(f"{at}.{n}" for n in ("ln_1", "ln_2", "attn.out_proj", "mlp.c_fc", "mlp.c_proj")))
    return keys


def controlnet_keys(config):
    keys, n = unet_keys(config, decoder=False)
    keys += both(*(f"input_hint_block.{i}" for i in range(0, 16, 2)), *(f"zero_convs.{i}.0" for i in range(n)))
    return keys + both("middle_block_out.0")


def write(name, model, pairs):
    """`pairs`: diffusers' key → (original key, how)."""
    state = {k: v for k, v in model.state_dict().items() if "position_ids" not in k}
    assert set(pairs) == set(state), (name, sorted(set(pairs) ^ set(state))[:9])
    lines = [f"{o}\t{d}\t{'x'.join(map(str, state[d].shape))}\t{how}\n" for d, (o, how) in sorted(pairs.items())]
    NAMES.mkdir(exist_ok=True)
    (NAMES / f"{name}.tsv").write_text("".join(lines))
    print(name, len(lines), "tensors")


def tagged(keys, prefix="", rows=1):
    """Tensors that say who they are: value = index of the key."""
    return {prefix + k: torch.full((rows, 1, 1, 1) if rows == 1 else (rows, 1), float(i)) for i, k in enumerate(keys)}


def traced(converted, keys):
    """Which original key each converted tensor came from."""
    return {d: (keys[int(t.reshape(-1)[0])], "=") for d, t in converted.items()}


def open_clip_pairs(model, keys):
    width = TEXT["hidden_size"]
    state = {"p." + k: torch.full((3 * width if "in_proj" in k else width, 1), float(i)) for i, k in enumerate(keys)}
    state["p.text_projection"] = torch.full((width, 2), float(keys.index("text_projection")))
    for k, t in state.items():
        if "in_proj" in k:
            t += torch.arange(3).repeat_interleave(width)[:, None] / 4
    pairs = {}
    for d, t in single.convert_open_clip_checkpoint(model, state, prefix="p.").items():
        value = t.reshape(-1)[0].item()
        key = keys[int(value)]
        how = f"{int(value % 1 * 4)}/3" if "in_proj" in key else "T" if tuple(t.shape) == (2, width) else "="
        pairs["text_model." + d if not d.startswith("text_") else d] = (key, how)
    return pairs


def config_of(model):
    return {k: v for k, v in dict(model.config).items() if k != "_use_default_values"}


def build():
    configs = {"sd15": {}, "sdxl": {}}
    for name, config in (("sd15-unet", SD15), ("sdxl-unet", SDXL)):
        with torch.device("meta"):
            model = UNet2DConditionModel(**config)
        keys = unet_keys(config)
        converted = single.convert_ldm_unet_checkpoint(tagged(keys, "model.diffusion_model."), dict(model.config))
        write(name, model, traced(converted, keys))
        configs[name[:4]]["unet"] = config_of(model)
    with torch.device("meta"):
        model = AutoencoderKL(**VAE)
    for name, scaling in (("sd15", 0.18215), ("sdxl", 0.13025)):
        configs[name]["vae"] = config_of(model) | {"scaling_factor": scaling}
    keys = vae_keys(VAE)
    converted = single.convert_ldm_vae_checkpoint(tagged(keys, "first_stage_model."), dict(model.config))
    write("vae", model, traced(converted, keys))
    with torch.device("meta"):
        model = ControlNetModel(cross_attention_dim=64, block_out_channels=SD15["block_out_channels"], attention_head_dim=8,
                                conditioning_embedding_out_channels=(16, 32, 96, 256))
    keys = controlnet_keys(SD15)
    converted = single.convert_controlnet_checkpoint(tagged(keys, "control_model."), dict(model.config))
    write("sd15-controlnet", model, traced(converted, keys))
    with torch.device("meta"):
        clip_l = CLIPTextModel(CLIPTextConfig(**TEXT))
        big_g = CLIPTextModelWithProjection(CLIPTextConfig(**TEXT | dict(num_hidden_layers=32)))
    # transformers 5 has no `text_model.` in CLIPTextModel; checkpoints do.
    state = {("" if k.startswith("text_model.") else "text_model.") + k: v for k, v in clip_l.state_dict().items()}
    clip_l.state_dict = lambda: state
    keys = sorted(k for k in state if "position_ids" not in k)
    converted = single.convert_ldm_clip_checkpoint(tagged(keys, "cond_stage_model.transformer."))
    write("clip-l", clip_l, traced(converted, keys))
    keys = open_clip_keys(32)
    write("open-clip-g", big_g, open_clip_pairs(big_g, keys))
    configs["sd15"]["text_encoder"] = configs["sdxl"]["text_encoder"] = TEXT | {"hidden_act": "quick_gelu"}
    configs["sdxl"]["text_encoder_2"] = big_g.config.to_dict() | {"hidden_act": "gelu"}
    for name, config in configs.items():
        common.write_json(NAMES / f"{name}.json", config)


if __name__ == "__main__":
    common.quiet()
    build()
