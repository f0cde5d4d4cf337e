//! What will be done: the request with every default filled in and checked against the models' configurations and
//! headers. No tensors are read.

mod controls;
mod hidiffusion;
mod hires;
mod init;
mod names;
mod places;
mod precision;
mod references;

pub use controls::PlannedControl;
pub use init::PlannedInit;
pub use references::PlannedReference;

use crate::error::Error;
use crate::family::{self, Family};
use crate::hidiffusion::{Resizing, control_calls, control_size};
use crate::injection::{groups, window};
use crate::loras::{self, PlannedLora};
use crate::memory;
use crate::model::{EMBEDDED, Place};
use crate::model_error;
use crate::request::{Device, LoraUse, Request, Upscale, VaeTiling};
use crate::sampler::{self, SchedulerConfig};
use controls::planned_control;
use init::{check_inpainting, first_step, planned_init};
use instantstyle_hub::Cache;
use instantstyle_nets::unet::{Site, UNetConfig, sites};
use instantstyle_nets::vae::{Tiling, VaeConfig};
use names::Names;
use places::{autoencoder, file, model_index, model_name, model_place, with_unet};
use references::Context;
use serde_json::{Value, json};
use std::ops::Range;

/// A request, resolved: complete and immutable.
#[derive(Clone)]
pub struct Plan {
    request: Request,
    pub(crate) model: Place,
    pub(crate) index: Value,
    pub(crate) family: &'static Family,
    pub(crate) unet: UNetConfig,
    pub(crate) vae_place: Place,
    pub(crate) vae: VaeConfig,
    pub(crate) scheduler: SchedulerConfig,
    pub(crate) sites: Vec<Site>,
    pub(crate) init: Option<PlannedInit>,
    pub(crate) controls: Vec<PlannedControl>,
    pub(crate) loras: Vec<PlannedLora>,
    pub(crate) references: Vec<PlannedReference>,
    /// What HiDiffusion does, where it is on.
    pub(crate) resizing: Option<Resizing>,
    pub(crate) width: usize,
    pub(crate) height: usize,
    pub(crate) count: usize,
    pub(crate) seed: u64,
    pub(crate) steps: usize,
    pub(crate) guidance: f64,
    /// The sampler's call at which sampling starts: later than 0 where a picture is the start.
    pub(crate) first_call: usize,
    calls: usize,
    /// The model calls with guidance.
    pub(crate) guided_calls: std::ops::Range<usize>,
    /// The first model call whose cross-attention is frozen.
    pub(crate) frozen_from: Option<usize>,
    /// What `fast` filled in.
    fast: Vec<String>,
    /// The second, larger pass.
    pub(crate) second: Option<Box<Plan>>,
    /// Memory that may be taken, where it is known and to be checked.
    pub(crate) available_bytes: Option<u64>,
}

/// Settings that neither the request nor the card gives: InstantStyle's reference scripts.
const STEPS: usize = 30;
const GUIDANCE: f64 = 5.0;
const SEED: u64 = 42;

impl Plan {
    /// Resolves a request for the memory that this machine has left.
    ///
    /// # Errors
    /// If the request is impossible, or a file is missing or does not fit.
    pub fn resolve(request: &Request) -> Result<Plan, Error> {
        Plan::resolve_within(request, memory::available_bytes())
    }

    /// The same for so much memory, or without looking at it.
    ///
    /// # Errors
    /// As [`Plan::resolve`].
    pub fn resolve_within(request: &Request, available_bytes: Option<u64>) -> Result<Plan, Error> {
        let Some(hires) = &request.hires else { return Plan::one(request, available_bytes, false) };
        hidiffusion::check_one_pass(request)?;
        let alone = Request { hires: None, ..request.clone() };
        let mut first = Plan::one(&alone, available_bytes, false)?;
        let (mut larger, filled) = hires::second(&first, hires)?;
        // Both passes or none in tiles, so that one stored word repeats the picture.
        larger.vae_tiling = request.vae_tiling;
        let second = Plan::one(&larger, available_bytes, true).map_err(|e| match e {
            Error::Request { field, message } => {
                Error::Request { field: field.replacen("init.", "hires.", 1), message }
            }
            other => other,
        })?;
        let tiling = [&first, &second].into_iter().find(|p| p.request.vae_tiling == Some(VaeTiling::On));
        let tiling = tiling.map_or(VaeTiling::Off, |_| VaeTiling::On);
        first.request.hires = Some(filled);
        first.request.vae_tiling = Some(tiling);
        let mut second = Box::new(second);
        second.request.vae_tiling = Some(tiling);
        first.second = Some(second);
        Ok(first)
    }

    /// One pass; `made` if its start is made by an earlier one.
    fn one(request: &Request, available_bytes: Option<u64>, made: bool) -> Result<Plan, Error> {
        let cache = Cache::from_env();
        let mut names = Names::new(&cache);
        let asked = request;
        let request = &mut asked.clone();
        names.resolve(request)?;
        let model = model_place(request)?;
        let index = model_index(&model)?;
        let card = if model == Place::embedded() {
            crate::embedded::card()
        } else {
            model.join("card.json").json().unwrap_or(Value::Null)
        };
        let model = match &request.unet {
            Some(path) => with_unet(model, path)?,
            None => model,
        };
        let defaults = card.get("defaults").cloned().unwrap_or(Value::Null);
        let unet_place = model.join("unet").join("config.json");
        let unet = UNetConfig::from_json(&unet_place.json()?, &unet_place.path()).map_err(model_error)?;
        let family = family::of(&unet);
        let (vae_place, vae) = autoencoder(request, &model, family)?;
        for name in family.components {
            if !model.join(name).exists() {
                return Err(model.error(match &model {
                    Place::Checkpoint(..) => {
                        format!("is a {} model without {name}; take the whole checkpoint", family.title)
                    }
                    _ => format!(
                        "is a {} model without the folder {name}; the download may be incomplete",
                        family.title
                    ),
                }));
            }
        }
        let inpaints = unet.in_channels == 2 * vae.latent_channels + 1;
        if unet.in_channels != vae.latent_channels && !inpaints || unet.out_channels != vae.latent_channels {
            return Err(model.error(format!(
                "the UNet reads {} and predicts {} channels, the autoencoder has {}: they are of different models",
                unet.in_channels, unet.out_channels, vae.latent_channels,
            )));
        }
        check_device(request)?;
        precision::check_level()?;
        let precision = precision::resolved(request, &model)?;
        let fast = family::fill(request, asked, family)?;
        names.resolve(request)?;
        let factor = vae.factor();
        let usual = unet.sample_size.map_or(512, |s| s * factor);
        let number = |name: &str| defaults.get(name).and_then(Value::as_u64).map(|n| n as usize);
        let width = side("width", request.width.or(number("width")).unwrap_or(usual), factor)?;
        let height = side("height", request.height.or(number("height")).unwrap_or(usual), factor)?;
        let steps = request.steps.or(number("steps")).unwrap_or(STEPS);
        let guidance =
            request.guidance.or(defaults.get("guidance").and_then(Value::as_f64)).unwrap_or(GUIDANCE);
        let card_sampler = defaults.get("sampler").and_then(Value::as_str);
        let schedule = request.schedule.as_deref();
        let (sampler_name, schedule) = match request.sampler.as_deref().or(card_sampler) {
            None => (None, schedule),
            Some(name) => {
                let (row, schedule) =
                    sampler::named(name, schedule).map_err(|e| Error::request("sampler", e.to_string()))?;
                (Some(row.name), schedule)
            }
        };
        let scheduler_place = model.join("scheduler").join("scheduler_config.json");
        let mut scheduler_json = scheduler_place.json()?;
        (family.scheduler)(&mut scheduler_json, sampler_name.is_none());
        let scheduler =
            SchedulerConfig::from_json(&scheduler_json).map_err(|e| scheduler_place.error(e.to_string()))?;
        let sampler = sampler::build(sampler_name, schedule, &scheduler, steps)
            .map_err(|e| Error::request("sampler", e.to_string()))?;
        let init = request.init.as_ref().map(|i| planned_init(i, made)).transpose()?;
        check_inpainting(&model, &unet, &vae, init.as_ref())?;
        let first_call = match &init {
            Some(init) => first_step(steps, init.strength)? * sampler.calls_per_step(),
            None => 0,
        };
        let calls = sampler.timesteps().len() - first_call;
        let frozen_from = request.cross_freeze.filter(|part| *part < 1.0);
        let frozen_from =
            frozen_from.map(|part| window(0.0, part, calls).len().max(1)).filter(|n| *n < calls);
        let mut guided_calls =
            window(request.guidance_start.unwrap_or(0.0), request.guidance_end.unwrap_or(1.0), calls);
        guided_calls.end = guided_calls.end.min(frozen_from.unwrap_or(calls)).max(guided_calls.start);
        let sites = sites(&unet);
        let resizing =
            hidiffusion::planned(request, family, &unet, [height / factor, width / factor], factor)?;

        let mut resolved = request.clone();
        resolved.model = Some(model_name(&model));
        resolved.precision = Some(precision);
        resolved.device = Some(Device::Cpu);
        resolved.width = Some(width);
        resolved.height = Some(height);
        resolved.count = Some(request.count.unwrap_or(1));
        resolved.seed = Some(request.seed.unwrap_or(SEED));
        resolved.steps = Some(steps);
        resolved.guidance = Some(guidance);
        resolved.guidance_rescale = Some(request.guidance_rescale.unwrap_or(0.0));
        resolved.clip_skip = Some(request.clip_skip.unwrap_or(0));
        resolved.sampler = sampler_name.map(str::to_owned);
        resolved.schedule = schedule.map(str::to_owned);
        // Tiles change the picture a little: what is stored repeats it on any machine.
        let tiled = match request.vae_tiling.unwrap_or_default() {
            VaeTiling::Auto => memory::tiles_needed(
                &vae,
                height,
                width,
                precision::operands(Some(precision)),
                available_bytes,
            ),
            chosen => chosen == VaeTiling::On,
        };
        resolved.vae_tiling = Some(if tiled { VaeTiling::On } else { VaeTiling::Off });
        if let (Some(filled), Some(init)) = (&mut resolved.init, &init) {
            filled.strength = Some(init.strength);
        }
        let mut controls = Vec::new();
        for (i, control) in resolved.controls.iter_mut().enumerate() {
            controls.push(planned_control(&format!("controls[{i}]"), control, &model, &unet, &vae, calls)?);
        }
        if let Some(part) = resizing.as_ref().and_then(|r| r.controls) {
            let most = control_calls(part, steps - first_call / sampler.calls_per_step());
            controls.iter_mut().for_each(|c| c.calls.end = c.calls.end.min(most));
        }
        let planned_lora = |(i, used): (usize, &LoraUse)| {
            let field = format!("loras[{i}]");
            let place = file(&field, "file", &used.file)?;
            loras::planned(&field, used, place, &model, &unet, family, &card)
        };
        let loras = request.loras.iter().enumerate().map(planned_lora).collect::<Result<Vec<_>, _>>()?;
        let context =
            Context { model: &model, index: &index, family, unet: &unet, sites: &sites, card: &card, calls };
        let mut references = Vec::new();
        for (i, reference) in request.references.iter().enumerate() {
            let (planned, filled) = context.reference(&format!("references[{i}]"), reference)?;
            resolved.references[i] = filled;
            references.push(planned);
        }
        names.restore(&mut resolved);
        Ok(Plan {
            width,
            height,
            count: resolved.count.unwrap_or(1),
            seed: resolved.seed.unwrap_or(SEED),
            steps,
            guidance,
            request: resolved,
            model,
            index,
            family,
            unet,
            vae_place,
            vae,
            scheduler,
            sites,
            init,
            controls,
            loras,
            references,
            resizing,
            first_call,
            calls,
            guided_calls,
            frozen_from,
            fast,
            second: None,
            available_bytes,
        })
    }

    /// The request with every default filled in: what is stored with the picture.
    pub fn request(&self) -> &Request {
        &self.request
    }

    /// The resolved request for picture `i` alone.
    pub fn request_of(&self, i: usize) -> Request {
        let mut request = self.request.clone();
        request.seed = Some(self.seed.wrapping_add(i as u64));
        request.count = Some(1);
        request
    }

    /// Number format of the operands of UNet, ControlNets and autoencoder.
    pub fn precision(&self) -> instantstyle_nets::layers::Precision {
        precision::operands(self.request.precision)
    }

    /// True if two rows are run, for the negative prompt and the prompt.
    pub fn guided(&self) -> bool {
        self.guidance > 1.0 && self.unet.time_cond_dim.is_none()
    }

    /// Deep features are computed in every so manyth model call.
    pub fn deep_cache(&self) -> usize {
        self.request.deep_cache.unwrap_or(1)
    }

    /// A line about what `fast` filled in, where it did.
    pub fn chosen(&self) -> Option<String> {
        (!self.fast.is_empty()).then(|| format!("fast: {}", self.fast.join(", ")))
    }

    /// The tiles in which the autoencoder works, if it does.
    pub(crate) fn tiling(&self) -> Option<Tiling> {
        let tiling = Tiling::of(&self.vae);
        let (h, w) = (self.height / self.vae.factor(), self.width / self.vae.factor());
        (self.request.vae_tiling == Some(VaeTiling::On) && tiling.splits(h, w)).then_some(tiling)
    }

    /// The size of latents [height, width] that ControlNets see.
    pub(crate) fn control_latents(&self) -> [usize; 2] {
        let whole = [self.height, self.width].map(|n| n / self.vae.factor());
        match self.unet.sample_size.filter(|_| self.resizing.is_some()) {
            Some(trained) => control_size(whole, trained),
            None => whole,
        }
    }

    /// Pictures of the request.
    pub fn count(&self) -> usize {
        self.count
    }

    /// How much of the picture to start from is repainted; 1 where there is none.
    pub(crate) fn strength(&self) -> f64 {
        self.init.as_ref().map_or(1.0, |i| i.strength)
    }

    /// Model calls per picture of this pass.
    pub fn calls(&self) -> usize {
        self.calls
    }

    /// The pass whose pictures are the result.
    pub(crate) fn last(&self) -> &Plan {
        self.second.as_deref().unwrap_or(self)
    }

    /// A short name of the model, for the A1111 text.
    pub fn model_title(&self) -> String {
        if let Some(name) = self.request.model.as_deref().and_then(names::title) {
            return name.to_owned();
        }
        self.model
            .path()
            .file_name()
            .map_or_else(|| EMBEDDED.to_owned(), |n| n.to_string_lossy().into_owned())
    }

    /// The plan as JSON: the resolved request and what follows from it.
    pub fn to_json(&self) -> Value {
        let references: Vec<Value> = self
            .references
            .iter()
            .map(|r| {
                let groups: Vec<Value> = groups(&self.sites)
                    .iter()
                    .filter_map(|g| {
                        let at = |s: &Site| s.path.starts_with(&format!("{g}."));
                        let w: Vec<f32> = self
                            .sites
                            .iter()
                            .zip(&r.weights)
                            .filter(|(s, w)| at(s) && **w != 0.0)
                            .map(|(_, w)| *w)
                            .collect();
                        (!w.is_empty()).then(|| json!({"group": g, "sites": w.len(), "weight": w[0]}))
                    })
                    .collect();
                json!({
                    "image": r.image.path(), "adapter": r.adapter.path(), "kind": r.shape.kind.name(),
                    "image_encoder": r.image_encoder.path(), "injected": groups,
                    "model_calls": [r.calls.start, r.calls.end],
                })
            })
            .collect();
        let controls: Vec<Value> = self
            .controls
            .iter()
            .map(|c| json!({ "model": c.model.path(), "model_calls": [c.calls.start, c.calls.end] }))
            .collect();
        let loras: Vec<Value> = self
            .loras
            .iter()
            .map(|l| json!({ "file": l.place.path(), "layers": l.layers.0, "layers_in_file": l.layers.1 }))
            .collect();
        json!({
            "request": self.request,
            "family": self.family.name,
            "sampler": self.request.sampler.clone().or_else(|| self.scheduler.class_name().map(str::to_owned)),
            "model_calls": self.calls + self.second.as_ref().map_or(0, |s| s.calls),
            "rows_per_call": if self.guided() { 2 } else { 1 },
            "deep_cache": self.deep_cache(),
            "frozen_calls": self.frozen_from.map(|first| [first, self.calls]),
            "fast": self.fast,
            "hidiffusion": self.resizing.as_ref().map(|r| hidiffusion::to_json(r, self)),
            "guided_calls": if self.guided() { json!([self.guided_calls.start, self.guided_calls.end]) } else { json!([0, 0]) },
            "latents": [self.vae.latent_channels, self.last().height / self.vae.factor(), self.last().width / self.vae.factor()],
            "controls": controls,
            "loras": loras,
            "references": references,
        })
    }
}

impl std::fmt::Display for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let json = self.to_json();
        writeln!(f, "model      {} ({})", self.model.path().display(), self.family.title)?;
        writeln!(f, "prompt     {}", self.request.prompt)?;
        if let Some(negative) = &self.request.negative_prompt {
            writeln!(f, "negative   {negative}")?;
        }
        writeln!(
            f,
            "pictures   {} of {} x {} px, seeds from {}",
            self.count, self.width, self.height, self.seed
        )?;
        let mut sampler = json["sampler"].as_str().unwrap_or("").to_owned();
        if let Some(schedule) = &self.request.schedule {
            sampler += &format!(" on schedule {schedule}");
        }
        writeln!(
            f,
            "sampler    {sampler}, {} steps, {} model calls, guidance {}",
            self.steps, self.calls, self.guidance
        )?;
        writeln!(f, "precision  {}", precision::name(self.request.precision))?;
        if self.guided() && self.guided_calls.len() < self.calls {
            let Range { start, end } = self.guided_calls;
            writeln!(f, "guidance   in model calls {} to {end} only", start + 1)?;
        }
        if self.deep_cache() > 1 {
            writeln!(f, "deep cache deep features in every {}. model call only", self.deep_cache())?;
        }
        if let Some(first) = self.frozen_from {
            writeln!(f, "cross      frozen after model call {first}: as it was there")?;
        }
        if let Some(ratio) = self.request.token_merging.filter(|r| *r > 0.0) {
            writeln!(f, "merging    {ratio} of the tokens in the finest self-attention")?;
        }
        if !self.fast.is_empty() {
            writeln!(f, "fast       {}", self.fast.join(", "))?;
        }
        if let Some(resizing) = &self.resizing {
            writeln!(f, "hidiffusion {}", hidiffusion::in_words(resizing, self))?;
        }
        if let Some(init) = &self.init {
            let verb = if init.mask.is_some() { "repaints a part of" } else { "starts from" };
            let image = init.image.as_ref().map(Place::path).unwrap_or_default();
            writeln!(f, "init       {verb} {}, strength {}", image.display(), init.strength)?;
        }
        if let (Some(second), Some(hires)) = (&self.second, &self.request.hires) {
            writeln!(
                f,
                "hires      {} x {} px from the {}, {} more model calls, strength {}",
                second.width,
                second.height,
                if hires.upscale == Upscale::Pixel { "picture" } else { "latents" },
                second.calls,
                second.strength()
            )?;
        }
        if self.request.vae.is_some() {
            writeln!(f, "vae        {}", self.vae_place.path().display())?;
        }
        for (c, asked) in self.controls.iter().zip(&self.request.controls) {
            let map = if asked.preprocess == "none" { "" } else { &format!("{} of ", asked.preprocess) };
            let (image, model) = (c.image.path(), c.model.path());
            writeln!(f, "control    {} x {}, follows {map}{}", model.display(), c.scale, image.display())?;
            if c.calls != (0..self.calls) {
                writeln!(f, "           calls {} to {} of {}", c.calls.start + 1, c.calls.end, self.calls)?;
            }
        }
        for l in &self.loras {
            let only = l.only.as_ref().map_or_else(String::new, |only| format!(", only {only}"));
            let (used, all) = l.layers;
            writeln!(
                f,
                "lora       {} x {}, {used} of {all} layers{only}",
                l.place.path().display(),
                l.weight
            )?;
        }
        for (r, j) in self.references.iter().zip(json["references"].as_array().into_iter().flatten()) {
            writeln!(f, "reference  {} through {}", r.image.path().display(), r.shape.kind.name())?;
            for g in j["injected"].as_array().into_iter().flatten() {
                writeln!(
                    f,
                    "           {} x {} ({} sites)",
                    g["group"].as_str().unwrap_or(""),
                    g["weight"],
                    g["sites"]
                )?;
            }
            if let Some((_, _, text, scale)) = &r.subtract {
                writeln!(f, "           less {scale} x \"{text}\"")?;
            }
        }
        Ok(())
    }
}

fn check_device(request: &Request) -> Result<(), Error> {
    match request.device {
        None | Some(Device::Auto | Device::Cpu) => Ok(()),
        Some(Device::Cuda(_) | Device::Metal) => {
            Err(Error::Machine("device: this build computes on the CPU only; use auto or cpu".into()))
        }
    }
}

fn side(field: &str, value: usize, factor: usize) -> Result<usize, Error> {
    if value >= factor && value % factor == 0 {
        return Ok(value);
    }
    let below = (value / factor).max(1) * factor;
    Err(Error::request(
        field,
        format!("is {value}, but must be a multiple of {factor}, e.g. {below} or {}", below + factor),
    ))
}
