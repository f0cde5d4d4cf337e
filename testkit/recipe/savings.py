"""Ways to compute less, through their authors' own packages on diffusers' pipelines: merged tokens (`pip install tomesd`, 0.1.3), and frozen
cross-attention (`pip install --no-deps tgate`, 1.0.0, without its caching of self-attention). The latter takes no IP-Adapter:
with references, the layers' outputs are kept here and diffusers' own callback ends guidance.
"""

import torch
from diffusers.callbacks import SDCFGCutoffCallback, SDXLCFGCutoffCallback


def merge(pipe, ratio, seed):
    """At the finest level that has attention. To be called right before the run: places come from torch's global generator."""
    import tomesd

    level = ["Attn" in kind for kind in pipe.unet.config.down_block_types].index(True)
    tomesd.apply_patch(pipe, ratio=ratio, max_downsample=2**level)
    torch.manual_seed(seed)


def gated(pipe, xl, calls):
    """The pipeline's run with cross-attention frozen after so many model calls."""
    from tgate import TgateSDLoader, TgateSDXLLoader

    made = (TgateSDXLLoader if xl else TgateSDLoader)(pipe, gate_step=calls)
    settings = {"gate_step": calls, "sp_interval": 1, "fi_interval": 1, "warm_up": 0}
    return lambda **call: made.tgate(**call, **settings)


def freeze(pipe, xl, calls):
    """The same with an IP-Adapter: a callback for the end of each step, and the tensors that it wants."""
    done, kept = [0], {}
    pipe.unet.register_forward_hook(lambda *_: done.__setitem__(0, done[0] + 1))
    for name, module in pipe.unet.named_modules():
        if not name.endswith("attn2"):
            continue

        def forward(*args, _plain=module.forward, _name=name, **more):
            if done[0] >= calls:
                return kept[_name]
            out = _plain(*args, **more)
            kept[_name] = sum(out.chunk(len(out))) / len(out)
            return out

        module.forward = forward
    cutoff = (SDXLCFGCutoffCallback if xl else SDCFGCutoffCallback)(cutoff_step_ratio=None, cutoff_step_index=calls - 1)
    return cutoff, cutoff.tensor_inputs
