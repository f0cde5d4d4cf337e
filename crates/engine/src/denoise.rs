//! From noise to latents.

use crate::control::{self, Active, Inputs};
use crate::error::Error;
use crate::family::TextFeatures;
use crate::guidance::guide;
use crate::hidiffusion;
use crate::init::{Init, Start};
use crate::merging::Merger;
use crate::picture::Picture;
use crate::plan::Plan;
use crate::preview::Previewer;
use crate::rng::TorchRng;
use crate::sampler;
use crate::{Event, Observer};
use instantstyle_nets::Tensor;
use instantstyle_nets::unet::{Added, Conditions, Cross, CrossOutputs, Injections, TextContext, Times, UNet};
use instantstyle_nets::weights::Weights;
use std::cell::RefCell;

/// Everything that stays the same over the steps and over the pictures of one request.
pub struct Conditioning {
    /// Keys and values of the text at every site.
    pub text: TextContext,
    /// What each timestep adds to each resnet.
    pub times: Times,
    /// Image tokens.
    pub injections: Injections,
    /// ControlNets.
    pub controls: Vec<Active>,
    /// The positive row alone, for the calls outside the window of guidance.
    pub alone: Option<Box<Conditioning>>,
}

impl Conditioning {
    /// Of row `i` of the batch alone.
    fn row(&self, i: usize) -> Self {
        Conditioning {
            text: self.text.row(i),
            times: self.times.row(i),
            injections: self.injections.row(i),
            controls: self.controls.iter().map(|c| c.row(i)).collect(),
            alone: None,
        }
    }
}

/// Computes what does not change: rows are negative and positive, or the positive alone. `maps` are those of the plan's
/// ControlNets, `weights` the UNet's, where Control-LoRAs need them.
pub fn prepare(
    plan: &Plan,
    unet: &UNet,
    text: &TextFeatures,
    injections: Injections,
    maps: &[Picture],
    weights: Option<&Weights>,
) -> Result<Conditioning, Error> {
    let (tokens, pooled) = (&text.tokens, text.pooled.as_ref());
    let rows = tokens.dim(0);
    if tokens.channels() != plan.unet.context_dim() {
        return Err(plan.model.error(format!(
            "the text encoders give tokens of width {}, the UNet reads {}: they are of different models",
            tokens.channels(),
            plan.unet.context_dim()
        )));
    }
    // SDXL's micro-conditioning: original size, crop, target size, each as height, width.
    let (h, w) = (plan.height as f32, plan.width as f32);
    let sizes = [h, w, 0.0, 0.0, h, w];
    let all_sizes = vec![sizes; rows];
    let added = pooled.map(|pooled| Added { pooled, sizes: &all_sizes });
    if let (Some(a), Some(pooled)) = (&plan.unet.added, pooled) {
        if a.inputs != pooled.channels() + 6 * a.time_dim {
            return Err(plan.model.error(format!(
                "the UNet expects {} numbers of pooled text and sizes, the text encoder gives {} + {}",
                a.inputs,
                pooled.channels(),
                6 * a.time_dim
            )));
        }
    }
    let sampler = build(plan)?;
    let timesteps = &sampler.timesteps()[plan.first_call..];
    let times = unet.times(timesteps, rows, added.as_ref(), Some(plan.guidance));
    let controls = control::prepare(plan, maps, &Inputs { tokens, pooled, sizes, timesteps, unet: weights })?;
    let mut conditioning = Conditioning { text: unet.text(tokens), times, injections, controls, alone: None };
    if plan.guided() && plan.guided_calls.len() < plan.calls() {
        conditioning.alone = Some(Box::new(conditioning.row(1)));
    }
    Ok(conditioning)
}

fn build(plan: &Plan) -> Result<Box<dyn sampler::Sampler>, Error> {
    let (sampler, schedule) = (plan.request().sampler.as_deref(), plan.request().schedule.as_deref());
    sampler::build(sampler, schedule, &plan.scheduler, plan.steps)
        .map_err(|e| Error::request("sampler", e.to_string()))
}

/// Samples picture `i`, from `init` or from noise: the last latents [channels, h, w], not yet divided by the autoencoder's scaling factor.
pub fn denoise(
    plan: &Plan,
    unet: &UNet,
    conditioning: &Conditioning,
    init: Option<&Init>,
    i: usize,
    previewer: Option<&Previewer>,
    observer: &mut dyn Observer,
) -> Result<Vec<f32>, Error> {
    let mut sampler = build(plan)?;
    let (channels, factor) = (plan.vae.latent_channels, plan.vae.factor());
    let (h, w) = (plan.height / factor, plan.width / factor);
    let n = channels * h * w;
    let mut rng = TorchRng::new(plan.seed.wrapping_add(i as u64));
    let start = Start::draw(plan, init, sampler.as_ref(), &mut rng);
    let mut x = start.sample.clone();
    let (first, calls) = (plan.first_call, plan.calls());
    let mut deep: Option<Tensor> = None;
    let resized = hidiffusion::calls(plan, plan.seed.wrapping_add(i as u64));
    let mut merger = Merger::new(plan, plan.seed.wrapping_add(i as u64));
    let cross = RefCell::new(CrossOutputs::default());
    for call in 0..calls {
        if observer.cancelled() {
            return Err(Error::Cancelled);
        }
        let mut scaled = x.clone();
        sampler.scale_model_input(first + call, &mut scaled);
        let row = crate::encode::channels_last(&scaled, channels, h, w);
        let guided = plan.guided() && plan.guided_calls.contains(&call);
        let now = conditioning.alone.as_deref().filter(|_| !guided).unwrap_or(conditioning);
        let rows = if guided { 2 } else { 1 };
        // What is frozen is written down in a whole call.
        let recorded = plan.frozen_from == Some(call + 1);
        let shallow = call % plan.deep_cache() > 0
            && !recorded
            && deep.as_ref().is_some_and(|kept| kept.dim(0) >= rows);
        // All rows have these latents: networks get them once. ControlNets see them alone, also where the UNet sees a mask
        // beside them.
        let residuals = control::residuals(&now.controls, &row, rows, call, shallow);
        let row = match &start.beside {
            Some(beside) => row.concat_channels(beside),
            None => row,
        };
        let frozen = plan.frozen_from.filter(|first| call >= *first).map(|_| cross.borrow());
        let merging = merger.as_mut().map(|m| m.call(rows));
        let conditions = Conditions {
            times: &now.times,
            text: &now.text,
            injections: &now.injections,
            residuals: residuals.as_ref(),
            hidiffusion: resized.as_ref().map(|calls| &calls[call]),
            cross: match &frozen {
                Some(outputs) => Cross::Frozen(outputs),
                None if recorded => Cross::Recorded(&cross),
                None => Cross::Computed,
            },
            merging: merging.as_ref(),
        };
        let out = match &deep {
            _ if plan.deep_cache() == 1 => unet.forward(&row, call, &conditions),
            Some(kept) if shallow => {
                // Where guidance has ended since, the prompt's row goes on alone.
                let alone = (kept.dim(0) > rows).then(|| kept.row(1));
                unet.forward_shallow(&row, call, &conditions, alone.as_ref().unwrap_or(kept))
            }
            _ => {
                // The old ones go first, so that they never lie beside a whole call.
                drop(deep.take());
                let (out, kept) = unet.forward_keeping(&row, call, &conditions);
                deep = Some(kept);
                out
            }
        };
        let prediction = if guided {
            let (uncond, cond) = out.data().split_at(n);
            let rescale = plan.request().guidance_rescale.unwrap_or(0.0);
            guide(uncond, cond, plan.guidance as f32, rescale as f32)
        } else {
            out.into_data()
        };
        let prediction = crate::encode::planes(&Tensor::new([1, h, w, channels], prediction));
        let preview = previewer.filter(|p| p.due(call + 1, calls)).and_then(|p| {
            let kind = plan.scheduler.prediction_type();
            p.picture(&sampler::implied(sampler.as_ref(), kind, first + call, &prediction, &x), h, w)
        });
        sampler.step(first + call, &prediction, &mut x, &mut rng);
        let next = (call + 1 < calls).then_some(first + call + 1);
        start.keep(sampler.as_ref(), next, &mut x);
        if let Some(preview) = &preview {
            observer.event(Event::Preview(preview));
        }
        observer.event(Event::Step { picture: i, pictures: plan.count, step: call + 1, steps: calls });
    }
    if x.iter().any(|v| !v.is_finite()) {
        return Err(plan.model.error("gave numbers that are not finite; the weights may be damaged"));
    }
    Ok(x)
}
