//! ControlNets of a request: the maps that they see, and what they add to the UNet at each call.

mod canny;
mod estimators;
mod kept;
mod lines;
mod maps;

pub use estimators::Estimator;
pub(crate) use estimators::check_file;
pub use kept::edges_kept;
pub(crate) use maps::{CANNY, map_of};
pub use maps::{MAPS, Make, Map};

use crate::error::Error;
use crate::init::fitted;
use crate::model::Place;
use crate::model_error;
use crate::picture::Picture;
use crate::plan::{Plan, PlannedControl};
use instantstyle_nets::Tensor;
use instantstyle_nets::controlnet::{
    ControlLora, ControlNet, ControlNetConfig, diffusers_names, is_control_lora,
};
use instantstyle_nets::unet::{Added, HiDiffusion, Residuals, TextContext, Times, UNetConfig};
use instantstyle_nets::weights::Weights;
use std::ops::Range;
use std::sync::Arc;

/// The maps that a plan's ControlNets see, in the order of the request.
pub(crate) fn pictures(plan: &Plan, notice: &mut dyn FnMut(String)) -> Result<Vec<Picture>, Error> {
    let one = |(i, c): (usize, &PlannedControl)| {
        let picture = fitted(&format!("controls[{i}].image"), &c.image, plan.width, plan.height, notice)?;
        c.map.map(&picture, &plan.request().controls[i])
    };
    plan.controls.iter().enumerate().map(one).collect()
}

/// The tensors of a ControlNet in diffusers' names. A Control-LoRA is made whole with the weights of the UNet, those of the
/// request's LoRAs among them, as in ComfyUI (`comfy/controlnet.py`, `ControlLora.pre_run`).
fn weights(place: &Place, base: &UNetConfig, unet: Option<&Weights>) -> Result<Weights, Error> {
    let file = place.component_or_file()?;
    if !is_control_lora(&file) {
        return Ok(diffusers_names(&file, base));
    }
    let unet = unet.ok_or_else(|| Error::Internal("a Control-LoRA without its UNet".into()))?;
    ControlLora::of(&file, base).and_then(|lora| lora.merged(unet)).map_err(model_error)
}

/// The same for its shapes: of a Control-LoRA the UNet's own weights, and how many values will be made anew.
pub(crate) fn outline(
    place: &Place,
    base: &UNetConfig,
    model: &Place,
) -> Result<(Weights, Option<u64>), Error> {
    let file = place.component_or_file()?;
    if !is_control_lora(&file) {
        return Ok((diffusers_names(&file, base), None));
    }
    let unet = model.join("unet").component()?;
    let lora = ControlLora::of(&file, base).map_err(model_error)?;
    let changed = lora.changed().filter_map(|key| unet.get(key)).map(|t| t.len() as u64).sum();
    Ok((lora.outline(&unet).map_err(model_error)?, Some(changed)))
}

/// A ControlNet that acts, with all that stays the same over the steps.
pub struct Active {
    net: Arc<ControlNet>,
    hint: Arc<Tensor>,
    text: TextContext,
    times: Times,
    scale: f32,
    calls: Range<usize>,
    /// Whether it sees the prompt's row alone, as diffusers does with pooled conditions.
    alone: bool,
}

impl Active {
    /// For row `i` of the batch alone.
    pub(crate) fn row(&self, i: usize) -> Self {
        let i = if self.alone { 0 } else { i };
        Active {
            net: self.net.clone(),
            hint: self.hint.clone(),
            text: self.text.row(i),
            times: self.times.row(i),
            calls: self.calls.clone(),
            ..*self
        }
    }
}

/// What the text towers give, and when.
pub(crate) struct Inputs<'a> {
    /// [rows, tokens, width].
    pub tokens: &'a Tensor,
    /// [rows, width].
    pub pooled: Option<&'a Tensor>,
    /// SDXL's sizes.
    pub sizes: [f32; 6],
    /// Of the calls that are made.
    pub timesteps: &'a [f64],
    /// The UNet's weights, for Control-LoRAs.
    pub unet: Option<&'a Weights>,
}

/// Loads the ControlNets that do anything.
pub(crate) fn prepare(plan: &Plan, pictures: &[Picture], inputs: &Inputs) -> Result<Vec<Active>, Error> {
    let one = |(c, picture): (&PlannedControl, &Picture)| {
        let weights = weights(&c.model, &plan.unet, inputs.unet)?;
        let net = ControlNet::load_in(&c.config, &weights, plan.precision()).map_err(model_error)?;
        let values = picture.rgb.iter().map(|v| f32::from(*v) / 255.0).collect();
        let whole = Tensor::new([1, picture.height, picture.width, 3], values);
        let seen = plan.control_latents().map(|n| n * plan.vae.factor());
        let hint = match seen == [picture.height, picture.width] {
            true => net.hint(&whole),
            false => net.hint(&HiDiffusion::nearest(&whole, seen[0], seen[1])),
        };
        let alone = c.config.pooled && inputs.tokens.dim(0) > 1;
        let last = |x: &Tensor| if alone { x.row(x.dim(0) - 1) } else { x.clone() };
        let (tokens, pooled) = (last(inputs.tokens), inputs.pooled.map(last));
        let rows = tokens.dim(0);
        let sizes = vec![inputs.sizes; rows];
        let added = pooled.as_ref().map(|pooled| Added { pooled, sizes: &sizes });
        Ok(Active {
            hint: Arc::new(hint),
            text: net.text(&tokens),
            times: net.times(inputs.timesteps, rows, added.as_ref()),
            scale: c.scale as f32,
            calls: c.calls.clone(),
            alone,
            net: Arc::new(net),
        })
    };
    plan.controls.iter().zip(pictures).filter(|(c, _)| c.acts()).map(one).collect()
}

/// What all ControlNets add at call `call`, for latents [1, h, w, channels] that all `rows` rows have; to the outermost skip
/// connection alone where the call is `shallow`. None where no ControlNet acts.
pub(crate) fn residuals(
    active: &[Active],
    latents: &Tensor,
    rows: usize,
    call: usize,
    shallow: bool,
) -> Option<Residuals> {
    let of = |a: &Active| {
        let (h, w) = (a.hint.dim(1), a.hint.dim(2));
        let resized = (latents.shape()[1..3] != [h, w]).then(|| HiDiffusion::nearest(latents, h, w));
        let seen = resized.as_ref().unwrap_or(latents);
        let Residuals { down, mid } = match shallow {
            true => a.net.forward_outermost(seen, &a.hint, a.scale),
            false => a.net.forward(seen, &a.hint, call, &a.times, &a.text, a.scale),
        };
        let in_rows = |x: Tensor| match a.alone && rows > 1 {
            // Nothing for the negative prompt's row.
            true => Tensor::stack(&[&Tensor::zeros(x.shape()), &x]),
            false => x.repeated(rows),
        };
        Residuals { down: down.into_iter().map(in_rows).collect(), mid: mid.map(in_rows) }
    };
    active.iter().filter(|a| a.calls.contains(&call)).map(of).reduce(|sum, next| sum.plus(&next))
}

/// A UNet's or ControlNet's shape in a few words.
fn shape(c: &UNetConfig) -> String {
    let widths: Vec<String> = c.levels.iter().map(|l| l.width.to_string()).collect();
    format!("levels of {} channels and tokens {} wide", widths.join(", "), c.context_dim())
}

/// Why a ControlNet does not go with a UNet, if it does not.
pub(crate) fn misfit(config: &ControlNetConfig, unet: &UNetConfig, channels: usize) -> Option<String> {
    if config.fits(unet, channels) {
        return None;
    }
    let title = |c: &UNetConfig| crate::family::of(c).title;
    let own = &config.trunk;
    Some(format!(
        "is a ControlNet for {} with {}, but this {} model has {}; use a ControlNet made for it",
        title(own),
        shape(own),
        title(unet),
        shape(unet)
    ))
}
