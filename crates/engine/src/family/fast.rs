//! Settings of distilled models, by name: each family has a table of its own. They are those of the examples on the models'
//! pages ([`Fast::source`]), which were read.

use super::{FAMILIES, Family};
use crate::error::Error;
use crate::request::{HiDiffusion, LoraBlocks, LoraUse, Request};
use instantstyle_hub::catalogue::find;
use serde_json::{Map, Value};
use std::path::PathBuf;

/// How a distilled model is sampled.
pub struct Fast {
    /// Name in requests.
    pub name: &'static str,
    /// One line for people.
    pub about: &'static str,
    /// Steps.
    pub steps: usize,
    /// Guidance; 0 is none.
    pub guidance: f64,
    /// Sampler.
    pub sampler: &'static str,
    /// Schedule, where it is not the checkpoint's.
    pub schedule: Option<&'static str>,
    /// Width and height, where they are not the model's.
    pub side_px: Option<usize>,
    /// The LoRA that makes a base model one of these, in the catalogue.
    pub lora: Option<&'static str>,
    /// Where the settings are from.
    pub source: &'static str,
}

/// Euler over trailing timesteps without guidance, as many steps as the LoRA's name says.
pub(super) const fn lightning(
    name: &'static str,
    about: &'static str,
    steps: usize,
    lora: &'static str,
) -> Fast {
    Fast {
        name,
        about,
        steps,
        guidance: 0.0,
        sampler: "euler",
        schedule: Some("sgm_uniform"),
        side_px: None,
        lora: Some(lora),
        source: "https://huggingface.co/ByteDance/SDXL-Lightning",
    }
}

/// DDIM over trailing timesteps without guidance, as many steps as the LoRA's name says, for both families ("2-Steps, 4-Steps,
/// 8-steps LoRA"). The LoRAs "CFG" (guidance 5 to 8) and the unified ones of 1 step (TCD) are others.
pub(super) const fn hyper(name: &'static str, about: &'static str, steps: usize, lora: &'static str) -> Fast {
    let source = "https://huggingface.co/ByteDance/Hyper-SD";
    Fast { sampler: "ddim", source, ..lightning(name, about, steps, lora) }
}

/// LCM's sampler with its own timesteps, 4 steps without guidance (2 to 8 steps and guidance from 1 to 2 are said to do, too).
pub(super) const fn lcm(lora: &'static str, source: &'static str) -> Fast {
    Fast { sampler: "lcm", schedule: None, source, ..lightning("lcm", "LCM in 4 steps", 4, lora) }
}

/// The name of the savings that keep the picture, on any model.
pub const SAFE: &str = "safe";
/// What it stands for, chosen by what each does to the embedded model's pictures (`benches/README.md`, "Less work"): together they take
/// half the time, and contents and styles are seen as often as without.
const SAFE_GUIDANCE_END: f64 = 0.8;
const SAFE_DEEP_CACHE: usize = 2;

/// The names of all families' settings, each once, and the one for every model.
pub fn fast_names() -> Vec<(&'static str, &'static str)> {
    let mut names: Vec<(&str, &str)> = vec![(SAFE, "savings that keep the picture, on any model")];
    for fast in FAMILIES.iter().flat_map(|f| f.fast) {
        if names.iter().all(|(name, _)| *name != fast.name) {
            names.push((fast.name, fast.about));
        }
    }
    names
}

/// Fills in what `fast` stands for and says it, field by field; what the request gives itself holds. `asked` is the request before its names were
/// resolved: a LoRA that it names itself is not added.
///
/// # Errors
/// If the family has no such settings.
pub(crate) fn fill(request: &mut Request, asked: &Request, family: &Family) -> Result<Vec<String>, Error> {
    let Some(name) = request.fast.take() else { return Ok(Vec::new()) };
    let before = fields(request)?;
    if name == SAFE {
        save(request)
    } else {
        distil(request, asked, family, &name)?
    }
    let after = fields(request)?;
    Ok(after.iter().filter(|(k, v)| before.get(*k) != Some(v)).map(|(k, v)| format!("{k} {v}")).collect())
}

fn fields(request: &Request) -> Result<Map<String, Value>, Error> {
    match serde_json::to_value(request) {
        Ok(Value::Object(fields)) => Ok(fields),
        Ok(_) => Ok(Map::new()),
        Err(e) => Err(Error::Internal(e.to_string())),
    }
}

/// The safe savings, but for those that do not go with what is asked for.
fn save(request: &mut Request) {
    if request.guidance_start.is_none_or(|start| start < SAFE_GUIDANCE_END) && request.cross_freeze.is_none()
    {
        request.guidance_end.get_or_insert(SAFE_GUIDANCE_END);
    }
    if request.hidiffusion.unwrap_or_default() == HiDiffusion::Off {
        request.deep_cache.get_or_insert(SAFE_DEEP_CACHE);
    }
}

fn distil(request: &mut Request, asked: &Request, family: &Family, name: &str) -> Result<(), Error> {
    let fast = family.fast.iter().find(|f| f.name == name).ok_or_else(|| {
        let known: Vec<&str> = family.fast.iter().map(|f| f.name).collect();
        Error::request(
            "fast",
            format!(
                "is \"{name}\", which is not for {}; there it can be {SAFE}, {}",
                family.title,
                known.join(", ")
            ),
        )
    })?;
    request.steps.get_or_insert(fast.steps);
    request.guidance.get_or_insert(fast.guidance);
    if request.sampler.is_none() {
        // A schedule belongs to its sampler.
        request.sampler = Some(fast.sampler.to_owned());
        request.schedule = request.schedule.take().or(fast.schedule.map(str::to_owned));
    }
    if let Some(side) = fast.side_px {
        request.width.get_or_insert(side);
        request.height.get_or_insert(side);
    }
    let named = |l: &LoraUse| l.file.to_str().and_then(find).map(|(e, _)| e.name);
    if let Some(lora) = fast.lora.filter(|lora| !asked.loras.iter().any(|l| named(l) == Some(lora))) {
        let used = LoraUse { file: PathBuf::from(lora), weight: 1.0, blocks: LoraBlocks::All };
        request.loras.insert(0, used);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::family::{sd15, sdxl};
    use instantstyle_hub::catalogue::Kind;

    fn filled(json: &str, family: &Family) -> Result<Request, Error> {
        let asked = Request::from_json(json, std::path::Path::new("/no/such"))?;
        let mut request = asked.clone();
        fill(&mut request, &asked, family).map(|_| request)
    }

    #[test]
    fn settings_are_the_published_ones() {
        // Name, family, steps, guidance, sampler, schedule: as on the pages named in this file.
        for (name, family, steps, sampler, schedule) in [
            ("lightning-2", &sdxl::FAMILY, 2, "euler", Some("sgm_uniform")),
            ("lightning-4", &sdxl::FAMILY, 4, "euler", Some("sgm_uniform")),
            ("lightning-8", &sdxl::FAMILY, 8, "euler", Some("sgm_uniform")),
            ("hyper-2", &sdxl::FAMILY, 2, "ddim", Some("sgm_uniform")),
            ("hyper-4", &sdxl::FAMILY, 4, "ddim", Some("sgm_uniform")),
            ("hyper-8", &sdxl::FAMILY, 8, "ddim", Some("sgm_uniform")),
            ("lcm", &sdxl::FAMILY, 4, "lcm", None),
            ("turbo", &sdxl::FAMILY, 1, "euler_a", Some("sgm_uniform")),
            ("hyper-2", &sd15::FAMILY, 2, "ddim", Some("sgm_uniform")),
            ("hyper-4", &sd15::FAMILY, 4, "ddim", Some("sgm_uniform")),
            ("hyper-8", &sd15::FAMILY, 8, "ddim", Some("sgm_uniform")),
            ("lcm", &sd15::FAMILY, 4, "lcm", None),
        ] {
            let r = filled(&format!("{{\"fast\": \"{name}\"}}"), family).expect(name);
            assert_eq!((r.steps, r.guidance), (Some(steps), Some(0.0)), "{name}");
            assert_eq!((r.sampler.as_deref(), r.schedule.as_deref()), (Some(sampler), schedule), "{name}");
            assert_eq!(r.width, (name == "turbo").then_some(512), "{name}");
            assert_eq!(r.fast, None);
        }
    }

    #[test]
    fn every_row_has_its_lora_and_is_listed() {
        for family in FAMILIES {
            for fast in family.fast {
                assert!(fast_names().iter().any(|n| n.0 == fast.name));
                assert!(fast.source.starts_with("https://"), "{}", fast.source);
                if let Some((entry, _)) = fast.lora.map(|l| find(l).expect("an entry")) {
                    assert_eq!((entry.kind, entry.family), (Kind::Lora, family.name), "{}", fast.name);
                    // The page is that of the repository that the LoRA is pulled from.
                    assert!(fast.source.ends_with(entry.repository), "{}", fast.name);
                    let flag = format!("(--fast {})", fast.name);
                    assert!(entry.about.ends_with(&flag), "{}: {}", entry.name, entry.about);
                }
            }
        }
    }

    #[test]
    fn what_the_request_gives_itself_holds() {
        let r = filled(
            r#"{"fast": "lightning-4", "steps": 6, "guidance": 1.5, "sampler": "dpmpp_2m", "loras": [{"file": "x"}]}"#,
            &sdxl::FAMILY,
        )
        .expect("filled");
        assert_eq!((r.steps, r.guidance), (Some(6), Some(1.5)));
        assert_eq!((r.sampler.as_deref(), r.schedule), (Some("dpmpp_2m"), None));
        assert_eq!(r.loras.len(), 2);
        assert_eq!((r.loras[0].file.to_str(), r.loras[0].weight), (Some("lightning-4-lora"), 1.0));
        let own = filled(
            r#"{"fast": "lightning-4", "loras": [{"file": "lightning-4-lora", "weight": 0.5}]}"#,
            &sdxl::FAMILY,
        )
        .expect("filled");
        assert_eq!(own.loras.iter().map(|l| l.weight).collect::<Vec<_>>(), [0.5], "not added twice");
        let wrong = filled(r#"{"fast": "lightning-4"}"#, &sd15::FAMILY).expect_err("another family");
        assert!(
            wrong.exit_code() == 2 && wrong.to_string().contains("there it can be safe, hyper-2"),
            "{wrong}"
        );
    }
}
