//! From a request to pictures: plan, encode, denoise, decode.
//!
//! ```no_run
//! use instantstyle_engine::{Event, Observer, generate, plan::Plan, request::Request};
//! struct Quiet;
//! impl Observer for Quiet {
//!     fn event(&mut self, _: Event) {}
//! }
//! let request = Request::from_json(r#"{"prompt": "a house", "seed": 7}"#, std::path::Path::new("."))?;
//! let outputs = generate(&Plan::resolve(&request)?, &mut Quiet)?;
//! assert_eq!(outputs[0].seed, 7);
//! # Ok::<(), instantstyle_engine::Error>(())
//! ```

pub mod checkpoint;
pub mod control;
pub mod convert;
mod decode;
pub mod denoise;
pub mod embedded;
pub mod encode;
pub mod error;
pub mod family;
pub mod guidance;
pub mod hidiffusion;
mod hires;
mod init;
pub mod injection;
pub mod inspect;
mod loras;
pub mod memory;
mod merging;
pub mod model;
pub mod parameters;
pub mod picture;
pub mod plan;
pub mod preview;
mod references;
pub mod request;
pub mod rng;
pub mod sampler;

pub use error::Error;
pub use instantstyle_nets::weights::to_safetensors;

use crate::encode::Prompts;
use crate::init::Init;
use crate::loras::Loras;
use crate::memory::MemoryPlan;
use crate::picture::Picture;
use crate::plan::Plan;
use crate::preview::{Previewer, Previews};
use crate::references::Tokens;
use instantstyle_nets::unet::UNet;
use std::time::Instant;

/// What happens while pictures are made.
pub enum Event<'a> {
    /// A stage begins: "encoding", "loading", "denoising", "decoding".
    Stage(&'a str),
    /// Model call `step` (from 1) of `steps` is done, for picture `picture` (from 0) of `pictures`.
    Step {
        /// Index of the picture.
        picture: usize,
        /// Pictures of the request.
        pictures: usize,
        /// Calls done.
        step: usize,
        /// Calls per picture.
        steps: usize,
    },
    /// The maps that the ControlNets see, in the order of the request.
    Maps(&'a [Picture]),
    /// What the picture will be like, as far as it can be told.
    Preview(&'a Picture),
    /// Something that the user should know, e.g. a prompt that was cut.
    Notice(String),
}

/// Gets progress and may cancel.
pub trait Observer {
    /// Something happened.
    fn event(&mut self, event: Event);
    /// What previews it wants; asked once, before the work.
    fn previews(&self) -> Option<Previews> {
        None
    }
    /// Asked before each model call; true stops with [`Error::Cancelled`].
    fn cancelled(&self) -> bool {
        false
    }
}

/// A finished picture.
pub struct Output {
    /// Its seed.
    pub seed: u64,
    /// The picture.
    pub picture: Picture,
    /// The sampler's last latents, before the scaling factor is divided out.
    pub latents: Vec<f32>,
    /// [channels, height, width] of the latents.
    pub latents_shape: [usize; 3],
}

/// Seconds that the stages of one request took.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timings {
    /// Text and pictures, loading their towers included.
    pub encode_s: f64,
    /// Loading the UNet and what is computed once before the steps.
    pub prepare_s: f64,
    /// All steps of all pictures.
    pub denoise_s: f64,
    /// Latents to pictures.
    pub decode_s: f64,
}

/// Makes the pictures of a plan.
///
/// # Errors
/// If a file turns out damaged or does not fit, memory does not suffice, or the observer cancels.
pub fn generate(plan: &Plan, observer: &mut dyn Observer) -> Result<Vec<Output>, Error> {
    generate_timed(plan, observer).map(|(outputs, _)| outputs)
}

/// The same, with the time of each stage.
///
/// # Errors
/// As [`generate`].
pub fn generate_timed(plan: &Plan, observer: &mut dyn Observer) -> Result<(Vec<Output>, Timings), Error> {
    let mut timings = Timings::default();
    let check =
        |observer: &mut dyn Observer| if observer.cancelled() { Err(Error::Cancelled) } else { Ok(()) };

    check(observer)?;
    let previews = observer.previews();
    let memory = MemoryPlan::of(plan, previews.as_ref())?;
    memory.check()?;
    memory.notice().into_iter().for_each(|n| observer.event(Event::Notice(n)));
    let previewer = previews.map(|asked| Previewer::new(plan, &asked)).transpose()?;
    plan.chosen().into_iter().for_each(|n| observer.event(Event::Notice(n)));
    plan.loras.iter().filter_map(|l| l.notice.clone()).for_each(|n| observer.event(Event::Notice(n)));
    observer.event(Event::Stage("encoding"));
    let start = Instant::now();
    let loras = Loras::open(plan)?;
    let prompts = Prompts {
        model: &plan.model,
        loras: &loras,
        index: &plan.index,
        prompt: &plan.request().prompt,
        negative: plan.request().negative_prompt.as_deref(),
        guided: plan.guided(),
        clip_skip: plan.request().clip_skip.unwrap_or(0),
    };
    // The text towers are dropped inside, the picture towers too: only their features go on.
    let text = encode::text(plan.family, &prompts, &mut |n| observer.event(Event::Notice(n)))?;
    check(observer)?;
    let tokens = references::encode(plan, &mut |n| observer.event(Event::Notice(n)))?;
    check(observer)?;
    let init = init::encode(plan, &mut |n| observer.event(Event::Notice(n)))?;
    let maps = control::pictures(plan, &mut |n| observer.event(Event::Notice(n)))?;
    observer.event(Event::Maps(&maps));
    timings.encode_s = start.elapsed().as_secs_f64();

    check(observer)?;
    observer.event(Event::Stage("loading"));
    let start = Instant::now();
    let weights = loras.component(&plan.model, "unet")?;
    let unet = UNet::load_in(&plan.unet, &weights, plan.precision()).map_err(model_error)?;
    // Control-LoRAs are made of them, too.
    let weights = Some(weights).filter(|_| plan.controls.iter().any(|c| c.merged.is_some()));
    let prepared = |plan: &Plan, tokens: &[Tokens], maps: &[Picture]| {
        let injections = references::inject(plan, &unet, tokens)?;
        denoise::prepare(plan, &unet, &text, injections, maps, weights.as_ref())
    };
    let conditioning = prepared(plan, &tokens, &maps)?;
    drop(maps);
    timings.prepare_s = start.elapsed().as_secs_f64();

    observer.event(Event::Stage("denoising"));
    let start = Instant::now();
    let mut latents = (0..plan.count)
        .map(|i| denoise::denoise(plan, &unet, &conditioning, init.as_ref(), i, previewer.as_ref(), observer))
        .collect::<Result<Vec<_>, _>>()?;
    drop(conditioning);
    let mut starts: Vec<Init> = init.into_iter().collect();
    if let Some(second) = plan.second.as_deref() {
        starts = hires::starts(plan, second, &latents, starts.first(), observer)?;
        let maps = control::pictures(second, &mut |_| {})?;
        let conditioning = prepared(second, &references::resized(second, &tokens)?, &maps)?;
        observer.event(Event::Stage("denoising"));
        latents = (0..plan.count)
            .map(|i| {
                denoise::denoise(second, &unet, &conditioning, starts.get(i), i, previewer.as_ref(), observer)
            })
            .collect::<Result<Vec<_>, _>>()?;
    }
    drop((unet, weights, text, tokens));
    timings.denoise_s = start.elapsed().as_secs_f64();

    check(observer)?;
    observer.event(Event::Stage("decoding"));
    let start = Instant::now();
    let last = plan.last();
    let decoder = decode::decoder(last)?;
    let factor = last.vae.factor();
    let shape = [last.vae.latent_channels, last.height / factor, last.width / factor];
    let mut outputs = Vec::new();
    for (i, latents) in latents.into_iter().enumerate() {
        check(observer)?;
        // One start for all pictures, or one for each.
        let init = starts.get(i).or(starts.first());
        outputs.push(Output {
            seed: plan.seed.wrapping_add(i as u64),
            picture: decode::painted(last, &decoder, &latents, init, observer)?,
            latents,
            latents_shape: shape,
        });
    }
    timings.decode_s = start.elapsed().as_secs_f64();
    Ok((outputs, timings))
}

fn model_error(e: instantstyle_nets::ModelError) -> Error {
    Error::file(e.path, e.message)
}
