"""Writes crates/engine/tests/fixtures/schedules.json: what people ask for by the names of A1111 and ComfyUI, as diffusers'
documentation translates them (api/schedulers/overview: "A1111/k-diffusion" and "Noise schedules and schedule types"), run
with the stand-in for the network of samplers.py. Run from the repository's root."""
import inspect
import json
import warnings

import diffusers as d
import torch

warnings.filterwarnings("ignore")
SD = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000)
OWN = {
    "pndm-sd15": (d.PNDMScheduler, dict(SD, skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1)),
    "euler-sdxl": (d.EulerDiscreteScheduler, dict(SD, timestep_spacing="leading", steps_offset=1, interpolation_type="linear")),
    "dpm-karras": (d.DPMSolverMultistepScheduler, dict(SD, use_karras_sigmas=True)),
}
MULTI, SDE = dict(algorithm_type="dpmsolver++"), dict(algorithm_type="sde-dpmsolver++")
# What is asked for: a sampler's name, and diffusers' class with its settings.
NAMES = {
    "Euler": (d.EulerDiscreteScheduler, {}), "Euler a": (d.EulerAncestralDiscreteScheduler, {}),
    "euler_ancestral": (d.EulerAncestralDiscreteScheduler, {}), "DDIM": (d.DDIMScheduler, {}),
    "DPM++ 2M": (d.DPMSolverMultistepScheduler, MULTI), "DPM++ 2M SDE": (d.DPMSolverMultistepScheduler, SDE),
    "dpmpp_2m_sde_gpu": (d.DPMSolverMultistepScheduler, SDE), "UniPC": (d.UniPCMultistepScheduler, {}),
    "uni_pc": (d.UniPCMultistepScheduler, {}), "Heun": (d.HeunDiscreteScheduler, {}), "LMS": (d.LMSDiscreteScheduler, {}),
    "DPM2": (d.KDPM2DiscreteScheduler, {}), "dpm_2": (d.KDPM2DiscreteScheduler, {}),
    "DPM2 a": (d.KDPM2AncestralDiscreteScheduler, {}), "dpm_2_ancestral": (d.KDPM2AncestralDiscreteScheduler, {}),
    "LCM": (d.LCMScheduler, {}), "ddpm": (d.DDPMScheduler, {}), "pndm": (d.PNDMScheduler, {}), "TCD": (d.TCDScheduler, {}),
}
NORMAL = dict(use_karras_sigmas=False, use_exponential_sigmas=False)
SCHEDULES = {
    None: {},
    "normal": NORMAL,
    "karras": dict(NORMAL, use_karras_sigmas=True),
    "exponential": dict(NORMAL, timestep_spacing="linspace", use_exponential_sigmas=True),
    "sgm_uniform": dict(NORMAL, timestep_spacing="trailing"),
}
# Every fifth value of the last sample is kept.
KEPT = 8


def model(x, t):
    return 0.3 * torch.sin(x) + 0.1 * torch.cos(torch.as_tensor(t, dtype=torch.float32) / 100)


def run(scheduler, steps):
    g = torch.Generator().manual_seed(7)
    scheduler.set_timesteps(steps)
    x = torch.randn(1, 4, 6, 5, generator=g) * scheduler.init_noise_sigma
    names = inspect.signature(scheduler.step).parameters
    extra = ({"generator": g} if "generator" in names else {}) | ({"eta": 0.0} if "eta" in names else {})
    for t in scheduler.timesteps:
        x = scheduler.step(model(scheduler.scale_model_input(x, t), t), t, x, return_dict=False, **extra)[0]
    assert torch.isfinite(x).all()
    return [round(float(t), 3) for t in scheduler.timesteps], [float(f"{v:.7g}") for v in x.flatten().tolist()[::KEPT]]


def takes(cls, changes):
    """Whether the class knows what the schedule changes; LCM's and TCD's timesteps are their own."""
    known = inspect.signature(cls.__init__).parameters
    asked = {k for k, v in changes.items() if v not in (False,)}
    return asked <= set(known) and not (asked and cls in (d.LCMScheduler, d.TCDScheduler))


configs, cases = {}, []
for own_name, (own_class, config) in OWN.items():
    saved = json.loads(own_class(**config).to_json_string())
    own = own_class.from_config(saved)
    configs[own_name] = {k: None if v == -float("inf") else v for k, v in saved.items()}
    for name, (cls, extra) in NAMES.items():
        if own_name != "euler-sdxl" and name not in ("Euler", "DPM++ 2M", "DDIM", "UniPC", "pndm"):
            continue
        for schedule, changes in SCHEDULES.items():
            case = dict(config=own_name, sampler=name, schedule=schedule, steps=4)
            if schedule is not None and not takes(cls, changes):
                case["refused"] = True  # diffusers would ignore it silently
            else:
                case["timesteps"], case["last"] = run(cls.from_config(own.config, **extra, **changes), 4)
            cases.append(case)
with open("crates/engine/tests/fixtures/schedules.json", "w") as f:
    f.write(json.dumps({"configs": configs}, separators=(",", ":"))[:-1] + ',"cases":[\n')
    f.write(",\n".join(json.dumps(c, separators=(",", ":")) for c in cases) + "\n]}\n")
print(len(cases), "cases,", sum("refused" in c for c in cases), "refused")
