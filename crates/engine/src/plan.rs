//! What will be done: the request with every default filled in and checked against the models' configurations and
//! headers. No tensors are read.

use crate::encode::{text_config, vision_config};
use crate::error::Error;
use crate::family::{self, Family};
use crate::injection::{groups, site_weights, window};
use crate::model::{EMBEDDED, Place};
use crate::request::{Device, Init, Precision, Reference, Request};
use crate::sampler::{self, SchedulerConfig};
use instantstyle_nets::ip_adapter::{AdapterShape, Kind};
use instantstyle_nets::unet::{Site, UNetConfig, sites};
use instantstyle_nets::vae::VaeConfig;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// One reference, resolved.
#[derive(Clone)]
pub struct PlannedReference {
    /// The picture.
    pub image: Place,
    /// The adapter.
    pub adapter: Place,
    /// What its shapes say.
    pub shape: AdapterShape,
    /// The picture tower.
    pub image_encoder: Place,
    /// The text tower and tokenizer of subtraction, where it is asked for, with the text and the scale.
    pub subtract: Option<(Place, Place, String, f64)>,
    /// One weight per site in forward order.
    pub weights: Vec<f32>,
    /// Model calls in which it acts.
    pub calls: std::ops::Range<usize>,
    /// The mask picture.
    pub mask: Option<Place>,
}

/// The picture to start from, resolved.
#[derive(Clone)]
pub struct PlannedInit {
    /// The picture.
    pub image: Place,
    /// The mask picture.
    pub mask: Option<Place>,
    /// Part of the steps that is run.
    pub strength: f64,
}

/// A request, resolved: complete and immutable.
#[derive(Clone)]
pub struct Plan {
    request: Request,
    pub(crate) model: Place,
    pub(crate) index: Value,
    pub(crate) family: &'static Family,
    pub(crate) unet: UNetConfig,
    pub(crate) vae: VaeConfig,
    pub(crate) scheduler: SchedulerConfig,
    pub(crate) sites: Vec<Site>,
    pub(crate) init: Option<PlannedInit>,
    pub(crate) references: Vec<PlannedReference>,
    pub(crate) width: usize,
    pub(crate) height: usize,
    pub(crate) count: usize,
    pub(crate) seed: u64,
    pub(crate) steps: usize,
    pub(crate) guidance: f64,
    /// The sampler's call at which sampling starts: later than 0 where a picture is the start.
    pub(crate) first_call: usize,
    calls: usize,
}

/// Settings that neither the request nor the card gives: InstantStyle's reference scripts.
const STEPS: usize = 30;
const GUIDANCE: f64 = 5.0;
const SEED: u64 = 42;

impl Plan {
    /// Resolves a request.
    ///
    /// # Errors
    /// If the request is impossible, or a file is missing or does not fit.
    pub fn resolve(request: &Request) -> Result<Plan, Error> {
        let model = model_place(request)?;
        let index = model_index(&model)?;
        let card = if model == Place::embedded() {
            crate::embedded::card()
        } else {
            model.join("card.json").json().unwrap_or(Value::Null)
        };
        let defaults = card.get("defaults").cloned().unwrap_or(Value::Null);
        let unet_place = model.join("unet").join("config.json");
        let unet = UNetConfig::from_json(&unet_place.json()?, &unet_place.path()).map_err(model_error)?;
        let vae: VaeConfig = model.join("vae").join("config.json").config()?;
        let family = family::of(&unet);
        for name in family.components {
            if !model.join(name).exists() {
                return Err(model.error(format!(
                    "is a {} model without the folder {name}; the download may be incomplete",
                    family.title
                )));
            }
        }
        let inpaints = unet.in_channels == 2 * vae.latent_channels + 1;
        if unet.in_channels != vae.latent_channels && !inpaints || unet.out_channels != vae.latent_channels {
            return Err(model.error(format!(
                "the UNet reads {} and predicts {} channels, the autoencoder has {}: they are of different models",
                unet.in_channels, unet.out_channels, vae.latent_channels,
            )));
        }
        check_machine(request)?;
        let factor = vae.factor();
        let usual = unet.sample_size.map_or(512, |s| s * factor);
        let number = |name: &str| defaults.get(name).and_then(Value::as_u64).map(|n| n as usize);
        let width = side("width", request.width.or(number("width")).unwrap_or(usual), factor)?;
        let height = side("height", request.height.or(number("height")).unwrap_or(usual), factor)?;
        let steps = request.steps.or(number("steps")).unwrap_or(STEPS);
        let guidance =
            request.guidance.or(defaults.get("guidance").and_then(Value::as_f64)).unwrap_or(GUIDANCE);
        let sampler_name = request
            .sampler
            .clone()
            .or_else(|| defaults.get("sampler").and_then(Value::as_str).map(str::to_owned));
        let scheduler_place = model.join("scheduler").join("scheduler_config.json");
        let mut scheduler_json = scheduler_place.json()?;
        (family.scheduler)(&mut scheduler_json, sampler_name.is_none());
        let scheduler =
            SchedulerConfig::from_json(&scheduler_json).map_err(|e| scheduler_place.error(e.to_string()))?;
        let sampler = sampler::build(sampler_name.as_deref(), &scheduler, steps)
            .map_err(|e| Error::request("sampler", e.to_string()))?;
        let init = request.init.as_ref().map(planned_init).transpose()?;
        check_inpainting(&model, &unet, &vae, init.as_ref())?;
        let first_call = match &init {
            Some(init) => first_step(steps, init.strength)? * sampler.calls_per_step(),
            None => 0,
        };
        let calls = sampler.timesteps().len() - first_call;
        let sites = sites(&unet);

        let mut resolved = request.clone();
        resolved.model = Some(model_name(&model));
        resolved.precision = Some(Precision::F32);
        resolved.device = Some(Device::Cpu);
        resolved.width = Some(width);
        resolved.height = Some(height);
        resolved.count = Some(request.count.unwrap_or(1));
        resolved.seed = Some(request.seed.unwrap_or(SEED));
        resolved.steps = Some(steps);
        resolved.guidance = Some(guidance);
        resolved.guidance_rescale = Some(request.guidance_rescale.unwrap_or(0.0));
        resolved.clip_skip = Some(request.clip_skip.unwrap_or(0));
        resolved.sampler = sampler_name;
        if let (Some(filled), Some(init)) = (&mut resolved.init, &init) {
            filled.strength = Some(init.strength);
        }
        let context =
            Context { model: &model, index: &index, family, unet: &unet, sites: &sites, card: &card, calls };
        let mut references = Vec::new();
        for (i, reference) in request.references.iter().enumerate() {
            let (planned, filled) = context.reference(&format!("references[{i}]"), reference)?;
            resolved.references[i] = filled;
            references.push(planned);
        }
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
            vae,
            scheduler,
            sites,
            init,
            references,
            first_call,
            calls,
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

    /// True if two rows are run, for the negative prompt and the prompt.
    pub fn guided(&self) -> bool {
        self.guidance > 1.0 && self.unet.time_cond_dim.is_none()
    }

    /// Pictures of the request.
    pub fn count(&self) -> usize {
        self.count
    }

    /// How much of the picture to start from is repainted; 1 where there is none.
    pub(crate) fn strength(&self) -> f64 {
        self.init.as_ref().map_or(1.0, |i| i.strength)
    }

    /// Model calls per picture.
    pub fn calls(&self) -> usize {
        self.calls
    }

    /// A short name of the model, for the A1111 text.
    pub fn model_title(&self) -> String {
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
        json!({
            "request": self.request,
            "family": self.family.name,
            "sampler": self.request.sampler.clone().or_else(|| self.scheduler.class_name().map(str::to_owned)),
            "model_calls": self.calls,
            "rows_per_call": if self.guided() { 2 } else { 1 },
            "latents": [self.vae.latent_channels, self.height / self.vae.factor(), self.width / self.vae.factor()],
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
        let sampler = json["sampler"].as_str().unwrap_or("");
        writeln!(
            f,
            "sampler    {sampler}, {} steps, {} model calls, guidance {}",
            self.steps, self.calls, self.guidance
        )?;
        if let Some(init) = &self.init {
            let verb = if init.mask.is_some() { "repaints a part of" } else { "starts from" };
            writeln!(f, "init       {verb} {}, strength {}", init.image.path().display(), init.strength)?;
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

fn planned_init(init: &Init) -> Result<PlannedInit, Error> {
    let mask = init.mask.as_ref().map(|m| file("init", "mask", m)).transpose()?;
    let usual = if mask.is_some() { 1.0 } else { Init::STRENGTH };
    Ok(PlannedInit {
        image: file("init", "image", &init.image)?,
        mask,
        strength: init.strength.unwrap_or(usual),
    })
}

/// A UNet for inpainting needs a picture and a mask.
fn check_inpainting(
    model: &Place,
    unet: &UNetConfig,
    vae: &VaeConfig,
    init: Option<&PlannedInit>,
) -> Result<(), Error> {
    if unet.in_channels == vae.latent_channels || init.is_some_and(|i| i.mask.is_some()) {
        return Ok(());
    }
    Err(Error::request(
        "init.mask",
        format!(
            "is needed: {} is an inpainting model, which repaints the white of a mask in a picture (init.image)",
            model.path().display()
        ),
    ))
}

/// The step at which sampling starts for a strength, as in diffusers' `get_timesteps`.
fn first_step(steps: usize, strength: f64) -> Result<usize, Error> {
    let run = ((steps as f64 * strength) as usize).min(steps);
    if run == 0 {
        return Err(Error::request(
            "init.strength",
            format!(
                "is {strength}, which leaves no step of {steps}; use at least {}, or more steps",
                1.0 / steps as f64
            ),
        ));
    }
    Ok(steps - run)
}

/// What the references of one request share.
struct Context<'a> {
    model: &'a Place,
    index: &'a Value,
    family: &'static Family,
    unet: &'a UNetConfig,
    sites: &'a [Site],
    card: &'a Value,
    calls: usize,
}

impl Context<'_> {
    fn reference(&self, field: &str, r: &Reference) -> Result<(PlannedReference, Reference), Error> {
        let mut filled = r.clone();
        let image = file(field, "image", &r.image)?;
        let adapter = match &r.adapter {
            Some(path) => file(field, "adapter", path)?,
            None => self.companion("ip-adapter.safetensors").ok_or_else(|| {
                Error::request(
                    format!("{field}.adapter"),
                    "is needed: the IP-Adapter file made for this model, e.g. ip-adapter_sdxl.safetensors",
                )
            })?,
        };
        let shape = AdapterShape::of(&adapter.weights()?).map_err(model_error)?;
        let context = self.unet.context_dim();
        if shape.context != context || shape.layers != self.sites.len() {
            return Err(adapter.error(format!(
                "was made for another family: its image tokens are {} wide for {} attention layers, but this {} model has \
                 {context} and {}; use an adapter for {}",
                shape.context,
                shape.layers,
                self.family.title,
                self.sites.len(),
                self.family.title
            )));
        }
        let image_encoder = self.image_encoder(field, r, &adapter)?;
        let vision = vision_config(&image_encoder)?;
        let (gives, what) = match shape.kind {
            Kind::Base => (vision.projection_dim, "pooled features"),
            Kind::Plus | Kind::Full => (vision.hidden_size, "hidden states"),
        };
        if gives != shape.input {
            return Err(image_encoder.error(format!(
                "is the wrong image encoder: it gives {what} of width {gives}, but the adapter {} reads width {}{}",
                adapter.path().display(),
                shape.input,
                encoder_hint(shape.input)
            )));
        }
        let subtract = match &r.subtract {
            None => None,
            Some(s) => {
                let (tower, tokenizer) = self.feature_tower(field, r, &shape)?;
                let scale = s.scale.unwrap_or(
                    self.card["defaults"]["subtract_scale"].as_f64().unwrap_or(self.family.subtract_scale),
                );
                if let Some(s) = &mut filled.subtract {
                    s.scale = Some(scale);
                }
                Some((tower, tokenizer, s.text.clone(), scale))
            }
        };
        let mask = r.mask.as_ref().map(|m| file(field, "mask", m)).transpose()?;
        let weights = site_weights(
            &format!("{field}.inject"),
            &r.inject,
            r.weight,
            self.sites,
            self.family,
            self.card,
        )?;
        filled.adapter = Some(adapter.path());
        filled.image_encoder = Some(image_encoder.path());
        if let Some((tower, ..)) = &subtract {
            if r.text_encoder.is_some() {
                filled.text_encoder = Some(tower.path());
            }
        }
        let calls = window(r.start, r.end, self.calls);
        Ok((
            PlannedReference { image, adapter, shape, image_encoder, subtract, weights, calls, mask },
            filled,
        ))
    }

    /// A file or folder of the model itself.
    fn companion(&self, name: &str) -> Option<Place> {
        Some(self.model.join(name)).filter(Place::exists)
    }

    fn image_encoder(&self, field: &str, r: &Reference, adapter: &Place) -> Result<Place, Error> {
        if let Some(path) = &r.image_encoder {
            let place = file(field, "image_encoder", path)?;
            return component(place, "image_encoder", field);
        }
        // The adapter's own folder keeps its encoder in the published layout.
        let beside = match adapter {
            Place::Disk(p) => p.parent().map(|d| Place::Disk(d.join("image_encoder"))).filter(Place::exists),
            Place::Embedded(_) => None,
        };
        self.companion("image_encoder").or(beside).ok_or_else(|| {
            Error::request(
                format!("{field}.image_encoder"),
                "is needed: the folder of the CLIP image encoder that the adapter was trained with",
            )
        })
    }

    fn feature_tower(
        &self,
        field: &str,
        r: &Reference,
        shape: &AdapterShape,
    ) -> Result<(Place, Place), Error> {
        if shape.kind != Kind::Base {
            return Err(Error::request(
                format!("{field}.subtract"),
                format!(
                    "has no meaning for an {}: it reads patches, not the pooled feature that a text could be subtracted \
                     from; use a base adapter, or leave subtract out",
                    shape.kind.name()
                ),
            ));
        }
        if let Some(path) = &r.text_encoder {
            let root = file(field, "text_encoder", path)?;
            let tower = component(root.clone(), "text_encoder", field)?;
            let width = text_config(&tower)?.projection_dim;
            if width != shape.input {
                return Err(tower.error(format!(
                    "is the wrong text encoder: its projection is {width} wide, but the adapter reads features of width {}",
                    shape.input
                )));
            }
            return Ok((tower.clone(), self.tokenizer_of(&root, &tower)?));
        }
        if let Some(name) = self.family.feature_tower {
            if family::has_component(self.model, self.index, name) {
                let tower = self.model.join(name);
                if text_config(&tower)?.projection_dim == shape.input {
                    return Ok((tower, self.model.join(&name.replace("text_encoder", "tokenizer"))));
                }
            }
        }
        Err(Error::request(
            format!("{field}.text_encoder"),
            format!(
                "is needed for subtract: the adapter reads features of width {}, and this model has no text tower in that \
                 space{}",
                shape.input,
                if shape.input == 1024 {
                    "; give the folder of laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
                } else {
                    "; give the text encoder of the adapter's CLIP model (CLIPTextModelWithProjection)"
                }
            ),
        ))
    }

    /// The tokenizer of a separate text tower: in its folder, beside it, or the model's own (all CLIPs share one).
    fn tokenizer_of(&self, root: &Place, tower: &Place) -> Result<Place, Error> {
        let holds = |p: &Place| p.join("tokenizer.json").exists() || p.join("vocab.json").exists();
        let parent = match tower {
            Place::Disk(p) => p.parent().map(|d| Place::Disk(d.join("tokenizer"))),
            Place::Embedded(_) => None,
        };
        let candidates = [
            Some(tower.clone()),
            Some(root.clone()),
            Some(root.join("tokenizer")),
            parent,
            Some(self.model.join("tokenizer")),
            Some(self.model.join("tokenizer_2")),
        ];
        candidates
            .into_iter()
            .flatten()
            .find(holds)
            .ok_or_else(|| tower.error("has no tokenizer (vocab.json or tokenizer.json)"))
    }
}

/// Which published encoder gives features of this width.
fn encoder_hint(width: usize) -> &'static str {
    match width {
        1024 | 1280 => " (width 1024: CLIP ViT-H; pooled 1280: CLIP bigG; hidden 1280: CLIP ViT-H)",
        1664 => " (hidden 1664: CLIP bigG)",
        _ => "",
    }
}

/// The folder itself if it has a configuration, else the component of that name inside.
fn component(place: Place, name: &str, field: &str) -> Result<Place, Error> {
    if place.join("config.json").exists() {
        return Ok(place);
    }
    let inner = place.join(name);
    if inner.join("config.json").exists() {
        return Ok(inner);
    }
    Err(place.error(format!("has no config.json: {field}.{name} must be the folder of the encoder")))
}

/// A file on disk, or `embedded/…` inside the program.
fn file(field: &str, name: &str, path: &Path) -> Result<Place, Error> {
    let mut place = Place::Disk(path.to_owned());
    if let Ok(inner) = path.strip_prefix(EMBEDDED) {
        if !path.exists() {
            place = Place::Embedded(inner.to_string_lossy().into_owned());
        }
    }
    if place.exists() {
        Ok(place)
    } else {
        Err(Error::file(path, format!("there is no such file ({field}.{name})")))
    }
}

fn model_error(e: instantstyle_nets::ModelError) -> Error {
    Error::file(e.path, e.message)
}

fn model_place(request: &Request) -> Result<Place, Error> {
    match request.model.as_deref() {
        None | Some(EMBEDDED) => {
            if crate::embedded::file("model_index.json").is_none() {
                return Err(Error::Machine("this build has no embedded model; give --model".into()));
            }
            Ok(Place::embedded())
        }
        Some(name) => {
            let path = PathBuf::from(name);
            if path.is_dir() {
                Ok(Place::Disk(path))
            } else if path.is_file() {
                Err(Error::file(
                    path,
                    "is a file; the model must be a Diffusers folder (model_index.json, unet/, vae/, …)",
                ))
            } else {
                Err(Error::file(path, "there is no such folder (model)"))
            }
        }
    }
}

/// How the model is named in the stored request.
fn model_name(model: &Place) -> String {
    match model {
        Place::Embedded(_) => EMBEDDED.to_owned(),
        Place::Disk(p) => p.canonicalize().unwrap_or_else(|_| p.clone()).to_string_lossy().into_owned(),
    }
}

fn model_index(model: &Place) -> Result<Value, Error> {
    let place = model.join("model_index.json");
    if !place.exists() {
        return Err(model.error(
            "has no model_index.json: this is not a Diffusers model folder (it needs unet/, vae/, scheduler/, text_encoder/ …)",
        ));
    }
    place.json()
}

fn check_machine(request: &Request) -> Result<(), Error> {
    match request.device {
        None | Some(Device::Auto | Device::Cpu) => {}
        Some(Device::Cuda(_) | Device::Metal) => {
            return Err(Error::Machine(
                "device: this build computes on the CPU only; use auto or cpu".into(),
            ));
        }
    }
    match request.precision {
        None | Some(Precision::Auto | Precision::F32) => Ok(()),
        Some(Precision::Bf16 | Precision::F16) => Err(Error::Machine(
            "precision: this build computes in f32 only (weights stored in f16 or bf16 stay so in memory); use auto or f32".into(),
        )),
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
