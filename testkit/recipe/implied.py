"""Writes crates/engine/tests/fixtures/implied.json: the clean samples that diffusers' schedulers predict on the way
(`pred_original_sample`; of DPM-Solver++ and UniPC what `convert_model_output` gives; LCM's `denoised`), for previews. Run
from the repository's root."""
import inspect
import json
import sys

sys.path.insert(0, "testkit/recipe")
import samplers  # noqa: E402  (writes samplers.json anew, the same)
import torch  # noqa: E402

CALL, STEPS = 2, 6
cases = []
for own_name in ("pndm-sd15", "euler-sdxl", "euler-karras-v", "ddim-v-zsnr"):
    own_class, config = samplers.OWN[own_name]
    saved = json.loads(own_class(**config).to_json_string()) | {"clip_sample": False}
    for name in ("euler", "euler_a", "ddim", "ddpm", "lcm", "lms", "heun", "dpm2", "dpm2_a", "dpmpp_2m", "dpmpp_2m_sde_karras", "unipc"):
        cls, extra = samplers.SAMPLERS[name]
        scheduler = cls.from_config(saved, **extra)
        scheduler.set_timesteps(STEPS)
        g = torch.Generator().manual_seed(7)
        x = torch.randn(1, 4, 1, 2, generator=g) * scheduler.init_noise_sigma
        for i, t in enumerate(scheduler.timesteps[: CALL + 1]):
            output = samplers.model(scheduler.scale_model_input(x, t), t)
            converted = None
            if i == CALL and hasattr(scheduler, "convert_model_output"):
                converted = scheduler.convert_model_output(output, sample=x)
            seed = {"generator": torch.Generator().manual_seed(i)} if "generator" in inspect.signature(scheduler.step).parameters else {}
            step = scheduler.step(output, t, x, **seed)
            if i == CALL:
                found = [converted, *(getattr(step, n, None) for n in ("pred_original_sample", "denoised"))]
                clean = next(c for c in found if c is not None)
                number = lambda tensor: [float(f"{v:.6g}") for v in tensor.flatten().tolist()]  # noqa: E731
                stored = {k: None if v == -float("inf") else v for k, v in saved.items()}
                cases.append(dict(sampler=name, config_name=own_name, config=stored, steps=STEPS, call=CALL,
                                  sample=number(x), output=number(output), clean=number(clean)))
            x = step.prev_sample
with open("crates/engine/tests/fixtures/implied.json", "w") as f:
    json.dump(cases, f, separators=(",", ":"))
print([(c["sampler"], c["config_name"]) for c in cases])
