"""Writes crates/engine/tests/fixtures/samplers.json: trajectories of diffusers' schedulers with a cheap stand-in for
the network, for every sampler on several checkpoints' configurations. Run from the repository's root."""
import json
import warnings

import diffusers as d
import torch

warnings.filterwarnings("ignore")
SD = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000)
OWN = {
    "pndm-sd15": (d.PNDMScheduler, dict(SD, skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1)),
    "euler-sdxl": (d.EulerDiscreteScheduler, dict(SD, timestep_spacing="leading", steps_offset=1, interpolation_type="linear")),
    "ddim-v-zsnr": (d.DDIMScheduler, dict(SD, prediction_type="v_prediction", rescale_betas_zero_snr=True,
                                          timestep_spacing="trailing", clip_sample=False, set_alpha_to_one=False)),
    "ddim-sample": (d.DDIMScheduler, dict(SD, prediction_type="sample", clip_sample=False, steps_offset=1)),
    "ddim-plain": (d.DDIMScheduler, dict(beta_schedule="linear")),
    "ddpm-linear": (d.DDPMScheduler, dict()),
    "dpm-karras": (d.DPMSolverMultistepScheduler, dict(SD, use_karras_sigmas=True)),
    "dpm-lu": (d.DPMSolverMultistepScheduler, dict(SD, use_lu_lambdas=True, solver_order=3)),
    "dpm-heun3": (d.DPMSolverMultistepScheduler, dict(SD, solver_type="heun", final_sigmas_type="sigma_min")),
    "euler-karras-v": (d.EulerDiscreteScheduler, dict(SD, use_karras_sigmas=True, prediction_type="v_prediction")),
    "euler-exp": (d.EulerDiscreteScheduler, dict(SD, use_exponential_sigmas=True, final_sigmas_type="sigma_min")),
    "lcm": (d.LCMScheduler, dict(SD)),
    "unipc-3": (d.UniPCMultistepScheduler, dict(SD, solver_order=3, solver_type="bh1")),
    "cosine": (d.DDIMScheduler, dict(beta_schedule="squaredcos_cap_v2", clip_sample=False)),
}
SAMPLERS = {
    "euler": (d.EulerDiscreteScheduler, {}), "euler_a": (d.EulerAncestralDiscreteScheduler, {}), "ddim": (d.DDIMScheduler, {}),
    "dpmpp_2m": (d.DPMSolverMultistepScheduler, dict(algorithm_type="dpmsolver++")),
    "dpmpp_2m_karras": (d.DPMSolverMultistepScheduler, dict(algorithm_type="dpmsolver++", use_karras_sigmas=True)),
    "dpmpp_2m_sde_karras": (d.DPMSolverMultistepScheduler, dict(algorithm_type="sde-dpmsolver++", use_karras_sigmas=True)),
    "unipc": (d.UniPCMultistepScheduler, {}), "heun": (d.HeunDiscreteScheduler, {}), "lms": (d.LMSDiscreteScheduler, {}),
    "pndm": (d.PNDMScheduler, {}), "lcm": (d.LCMScheduler, {}), "ddpm": (d.DDPMScheduler, {}),
    "dpm2": (d.KDPM2DiscreteScheduler, {}), "dpm2_a": (d.KDPM2AncestralDiscreteScheduler, {}), "tcd": (d.TCDScheduler, {}),
    None: (None, {}),
}


def model(x, t):
    return 0.3 * torch.sin(x) + 0.1 * torch.cos(torch.as_tensor(t, dtype=torch.float32) / 100)


def run(scheduler, steps):
    g = torch.Generator().manual_seed(7)
    scheduler.set_timesteps(steps)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)
    x = torch.randn(1, 4, 6, 5, generator=g) * scheduler.init_noise_sigma
    import inspect
    names = inspect.signature(scheduler.step).parameters
    extra = ({"generator": g} if "generator" in names else {}) | ({"eta": 0.0} if "eta" in names else {})
    for t in scheduler.timesteps:
        x = scheduler.step(model(scheduler.scale_model_input(x, t), t), t, x, return_dict=False, **extra)[0]
    if not torch.isfinite(x).all():
        raise FloatingPointError
    return [float(t) for t in scheduler.timesteps], [float(f"{v:.7g}") for v in x.flatten().tolist()]


cases = []
for own_name, (own_class, config) in OWN.items():
    extra_keys = {"clip_sample": False} if own_name == "pndm-sd15" else {}
    saved = json.loads(own_class(**config).to_json_string()) | extra_keys
    own = own_class.from_config(saved)
    stored = {k: None if v == -float("inf") else v for k, v in saved.items()}
    for name, (cls, extra) in SAMPLERS.items():
        for steps in (1, 2, 5, 20) if own_name in ("pndm-sd15", "euler-sdxl") else (4, 17):
            case = dict(sampler=name, config_name=own_name, config=stored, steps=steps)
            try:
                scheduler = own_class.from_config(own.config) if cls is None else cls.from_config(own.config, **extra)
                case["timesteps"], case["final"] = run(scheduler, steps)
            except FloatingPointError:
                continue  # diffusers' own trajectory is not finite: nothing to compare with
            except Exception as e:
                case["error"] = f"{type(e).__name__}: {e}"[:80]
            cases.append(case)
with open("crates/engine/tests/fixtures/samplers.json", "w") as f:
    json.dump(cases, f, separators=(",", ":"))
print(len(cases), "cases,", sum("error" in c for c in cases), "refused by diffusers")
for c in cases:
    if "error" in c:
        print(c["sampler"], c["config_name"], c["steps"], c["error"])
