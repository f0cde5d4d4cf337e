//! Samplers and schedules by their names here, in ComfyUI and in A1111.

use super::{SamplerError, SchedulerConfig};
use serde_json::Value;

/// One row per sampler: the command line, the docs and the schema come from this table.
pub struct SamplerInfo {
    /// Name in requests.
    pub name: &'static str,
    /// diffusers' class.
    pub class: &'static str,
    /// One line for people.
    pub about: &'static str,
    /// Other names, where they differ by more than capitals, spaces and signs (`DPM++ 2M` is `dpmpp_2m`).
    pub aliases: &'static [&'static str],
    /// Whether the class knows curves of sigmas (Karras, exponential).
    curves: bool,
    /// Whether the class asks how timesteps are spaced.
    spaced: bool,
    settings: &'static [(&'static str, Setting)],
}

/// A value of a scheduler's configuration.
#[derive(Clone, Copy)]
enum Setting {
    Flag(bool),
    Word(&'static str),
}

impl Setting {
    fn json(self) -> Value {
        match self {
            Setting::Flag(flag) => Value::from(flag),
            Setting::Word(word) => Value::from(word),
        }
    }
}

const fn row(name: &'static str, class: &'static str, about: &'static str) -> SamplerInfo {
    SamplerInfo { name, class, about, aliases: &[], curves: true, spaced: true, settings: &[] }
}

const fn timesteps(name: &'static str, class: &'static str, about: &'static str) -> SamplerInfo {
    SamplerInfo { curves: false, ..row(name, class, about) }
}

const fn multistep(
    name: &'static str,
    about: &'static str,
    settings: &'static [(&'static str, Setting)],
) -> SamplerInfo {
    SamplerInfo { settings, ..row(name, "DPMSolverMultistepScheduler", about) }
}

const ODE: (&str, Setting) = ("algorithm_type", Setting::Word("dpmsolver++"));
const SDE: (&str, Setting) = ("algorithm_type", Setting::Word("sde-dpmsolver++"));
const KARRAS: (&str, Setting) = ("use_karras_sigmas", Setting::Flag(true));

/// All samplers.
pub const SAMPLERS: &[SamplerInfo] = &[
    row("euler", "EulerDiscreteScheduler", "Euler's method; SDXL's own"),
    SamplerInfo {
        aliases: &["euler_ancestral"],
        ..timesteps(
            "euler_a",
            "EulerAncestralDiscreteScheduler",
            "Euler's method with fresh noise at each step",
        )
    },
    timesteps("ddim", "DDIMScheduler", "DDIM, deterministic"),
    multistep("dpmpp_2m", "DPM-Solver++ (2M): good in 20 to 30 steps", &[ODE]),
    multistep("dpmpp_2m_karras", "DPM-Solver++ (2M) on Karras' sigmas", &[ODE, KARRAS]),
    SamplerInfo {
        aliases: &["dpmpp_2m_sde_gpu"],
        ..multistep("dpmpp_2m_sde", "stochastic DPM-Solver++ (2M)", &[SDE])
    },
    multistep("dpmpp_2m_sde_karras", "stochastic DPM-Solver++ (2M) on Karras' sigmas", &[SDE, KARRAS]),
    SamplerInfo {
        // ComfyUI's uni_pc is the variant bh1; diffusers' class, and its own documentation for that name, is bh2.
        aliases: &["uni_pc", "uni_pc_bh2"],
        ..row("unipc", "UniPCMultistepScheduler", "UniPC: good in 10 to 20 steps")
    },
    row("heun", "HeunDiscreteScheduler", "Heun's method: two model calls a step"),
    row("lms", "LMSDiscreteScheduler", "linear multistep"),
    timesteps("pndm", "PNDMScheduler", "PNDM; SD1.5's own"),
    SamplerInfo { spaced: false, ..timesteps("lcm", "LCMScheduler", "for LCM models: 1 to 8 steps") },
    timesteps("ddpm", "DDPMScheduler", "ancestral sampling as in training; needs many steps"),
    SamplerInfo {
        aliases: &["dpm_2"],
        ..row("dpm2", "KDPM2DiscreteScheduler", "DPM-Solver-2: two model calls a step")
    },
    SamplerInfo {
        aliases: &["dpm_2_ancestral"],
        ..row("dpm2_a", "KDPM2AncestralDiscreteScheduler", "DPM-Solver-2 with fresh noise")
    },
    SamplerInfo { spaced: false, ..timesteps("tcd", "TCDScheduler", "for TCD models: 1 to 8 steps") },
];

/// Which timesteps and sigmas a sampler visits.
pub struct ScheduleInfo {
    /// Name in requests, as in ComfyUI.
    pub name: &'static str,
    /// One line for people.
    pub about: &'static str,
    changes: &'static [(&'static str, Setting)],
}

const NO_KARRAS: (&str, Setting) = ("use_karras_sigmas", Setting::Flag(false));
const NO_EXPONENTIAL: (&str, Setting) = ("use_exponential_sigmas", Setting::Flag(false));
const NO_LU: (&str, Setting) = ("use_lu_lambdas", Setting::Flag(false));

/// All schedules, with the settings that diffusers' documentation gives for them (api/schedulers/overview, "Noise
/// schedules and schedule types").
pub const SCHEDULES: &[ScheduleInfo] = &[
    ScheduleInfo {
        name: "normal",
        about: "the checkpoint's timesteps and their sigmas",
        changes: &[NO_KARRAS, NO_EXPONENTIAL, NO_LU],
    },
    ScheduleInfo {
        name: "karras",
        about: "Karras' sigmas: more steps where there is little noise",
        changes: &[KARRAS, NO_EXPONENTIAL, NO_LU],
    },
    ScheduleInfo {
        name: "exponential",
        about: "sigmas in equal steps of their logarithm",
        changes: &[
            NO_KARRAS,
            ("use_exponential_sigmas", Setting::Flag(true)),
            NO_LU,
            ("timestep_spacing", Setting::Word("linspace")),
        ],
    },
    ScheduleInfo {
        name: "sgm_uniform",
        about: "timesteps in equal steps from the very last one on (trailing): for distilled models",
        changes: &[NO_KARRAS, NO_EXPONENTIAL, NO_LU, ("timestep_spacing", Setting::Word("trailing"))],
    },
];

/// The sampler of a name, and the schedule where the name carries one: `DPM++ 2M Karras`.
///
/// # Errors
/// If there is none: says the nearest ones.
pub fn find(name: &str) -> Result<(&'static SamplerInfo, Option<&'static ScheduleInfo>), SamplerError> {
    let plain = plain(name);
    let exact = |n: &str| SAMPLERS.iter().find(|s| s.name == n || s.aliases.contains(&n));
    if let Some(row) = exact(&plain) {
        return Ok((row, None));
    }
    for schedule in SCHEDULES {
        let sampler = plain.strip_suffix(schedule.name).and_then(|rest| exact(rest.strip_suffix('_')?));
        if let Some(row) = sampler {
            return Ok((row, Some(schedule)));
        }
    }
    let known: Vec<&str> =
        SAMPLERS.iter().flat_map(|s| std::iter::once(s.name).chain(s.aliases.iter().copied())).collect();
    let mut near: Vec<(usize, &str)> =
        known.iter().map(|k| (crate::request::distance(&plain, k), *k)).collect();
    near.sort_unstable();
    let near: Vec<&str> = near.iter().take(3).map(|n| n.1).collect();
    let names: Vec<&str> = SAMPLERS.iter().map(|s| s.name).collect();
    Err(SamplerError::Unknown(format!(
        "there is no such sampler; the nearest are {}; all: {}",
        near.join(", "),
        names.join(", ")
    )))
}

/// The same with a schedule that is asked for beside it.
///
/// # Errors
/// If there is no such sampler, or its name carries another schedule.
pub fn named<'a>(
    name: &str,
    schedule: Option<&'a str>,
) -> Result<(&'static SamplerInfo, Option<&'a str>), SamplerError> {
    let (row, of_name) = find(name)?;
    match (of_name, schedule) {
        (Some(of_name), Some(asked)) if of_name.name != asked => Err(SamplerError::Unknown(format!(
            "the sampler's name means {} on schedule {}, but schedule is {asked}; leave one of them out",
            row.name, of_name.name
        ))),
        (of_name, asked) => Ok((row, asked.or(of_name.map(|s| s.name)))),
    }
}

/// `DPM++ 2M` → `dpmpp_2m`.
fn plain(name: &str) -> String {
    let words = name.trim().to_lowercase().replace("++", "pp");
    words.split([' ', '_', '-']).filter(|w| !w.is_empty()).collect::<Vec<_>>().join("_")
}

/// The configuration with what a sampler's row and a schedule set.
pub(super) fn settled(
    config: &SchedulerConfig,
    row: Option<&SamplerInfo>,
    asked: bool,
    schedule: Option<&str>,
) -> Result<SchedulerConfig, SamplerError> {
    let changed = |config: &SchedulerConfig, settings: &[(&'static str, Setting)]| {
        config.with(&settings.iter().map(|(k, v)| (*k, v.json())).collect::<Vec<_>>())
    };
    let mut config = config.clone();
    if let (Some(row), true) = (row, asked) {
        config = changed(&config, row.settings);
    }
    let Some(schedule) = schedule else { return Ok(config) };
    let unknown = |message: String| SamplerError::Unknown(message);
    let schedule = SCHEDULES.iter().find(|s| s.name == schedule).ok_or_else(|| {
        let names: Vec<&str> = SCHEDULES.iter().map(|s| s.name).collect();
        unknown(format!("there is no schedule \"{schedule}\"; known: {}", names.join(", ")))
    })?;
    let Some(row) = row else { return Ok(changed(&config, schedule.changes)) };
    let own = row.settings.iter().any(|(k, _)| *k == KARRAS.0);
    let sets =
        |key: &str| schedule.changes.iter().any(|(k, v)| *k == key && !matches!(v, Setting::Flag(false)));
    let curve = sets("use_karras_sigmas") || sets("use_exponential_sigmas");
    if asked && own && schedule.name != "karras" {
        return Err(unknown(format!(
            "{} is on Karras' sigmas and takes no other schedule; use {} with schedule {}",
            row.name,
            row.name.trim_end_matches("_karras"),
            schedule.name
        )));
    }
    if curve && !row.curves || sets("timestep_spacing") && !row.spaced {
        let possible = |s: &&ScheduleInfo| match s.name {
            "normal" => true,
            "sgm_uniform" => row.spaced,
            _ => row.curves,
        };
        let names: Vec<&str> = SCHEDULES.iter().filter(possible).map(|s| s.name).collect();
        return Err(unknown(format!(
            "{} has no schedule {}; it takes {}",
            row.name,
            schedule.name,
            names.join(", ")
        )));
    }
    Ok(changed(&config, schedule.changes))
}
