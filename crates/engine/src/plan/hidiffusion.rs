//! Whether HiDiffusion fits the request, and what it will do.

use super::Plan;
use crate::error::Error;
use crate::family::Family;
use crate::hidiffusion::{Resizing, calls_of};
use crate::request::{self, Request};
use instantstyle_nets::unet::UNetConfig;
use serde_json::{Value, json};

/// Latents of these sides [height, width] are divided evenly by all that splits them: three halvings above the windows.
const SIDES: usize = 8;
/// Largest factor of the trained side that there are published settings for.
const MOST: usize = 4;

/// Two passes are another way to the same end.
pub(super) fn check_one_pass(request: &Request) -> Result<(), Error> {
    match request.hidiffusion.unwrap_or_default() {
        request::HiDiffusion::Off => Ok(()),
        _ => Err(Error::request("hidiffusion", "does not go with hires; leave one of them out")),
    }
}

/// What is done at this size of latents [height, width], where it is asked for.
pub(super) fn planned(
    request: &Request,
    family: &Family,
    unet: &UNetConfig,
    latents: [usize; 2],
    factor: usize,
) -> Result<Option<Resizing>, Error> {
    let choice = request.hidiffusion.unwrap_or_default();
    if choice == request::HiDiffusion::Off {
        return Ok(None);
    }
    let refused = |message: String| Err(Error::request("hidiffusion", message));
    let masked = request.references.iter().position(|r| r.mask.is_some());
    let without = match () {
        () if request.deep_cache.is_some_and(|n| n > 1) => Some("deep_cache".to_owned()),
        () if request.cross_freeze.is_some_and(|f| f < 1.0) => Some("cross_freeze".to_owned()),
        () if request.token_merging.is_some_and(|r| r > 0.0) => Some("token_merging".to_owned()),
        () => masked.map(|i| format!("references[{i}].mask")),
    };
    if let Some(field) = without {
        return refused(format!("does not go with {field}; leave one of them out"));
    }
    let Some(trained) = unet.sample_size else {
        return refused(
            "is not known for this model: its UNet does not say the size it was trained on".into(),
        );
    };
    let [height, width] = latents;
    let side = trained * factor;
    let given = format!("{} x {}", width * factor, height * factor);
    if height * width <= trained * trained {
        return refused(format!(
            "is for pictures larger than {side} x {side}, which this {} model was made for; set a larger width and height, \
             or leave it out at {given}",
            family.title
        ));
    }
    if height.max(width) > MOST * trained {
        return refused(format!(
            "has no settings beyond {0} x {0} for this {1} model, and the picture is {given}; make it smaller",
            MOST * side,
            family.title
        ));
    }
    if choice == request::HiDiffusion::On && (height % SIDES > 0 || width % SIDES > 0) {
        return refused(format!(
            "needs width and height in multiples of {} for its windows, not {given}; change them, or use raunet",
            SIDES * factor
        ));
    }
    let sides = height.min(width) as f64 / trained as f64;
    let controlled = request.controls.iter().any(|c| c.scale != 0.0);
    let resizing = (family.hidiffusion)(unet, sides, controlled && request.init.is_none());
    if controlled && resizing.controls.is_none() {
        return refused(format!(
            "does not go with controls for {}: there are published settings for Stable Diffusion XL only; leave one of them out",
            family.title
        ));
    }
    if controlled && request.init.as_ref().is_some_and(|i| i.mask.is_some()) {
        return refused(
            "does not go with controls and init.mask together: nothing is published of it; leave one of the three out".into(),
        );
    }
    Ok(Some(resizing))
}

/// For programs: levels, and the model calls in which they are resized.
pub(super) fn to_json(resizing: &Resizing, plan: &Plan) -> Value {
    let part = |(level, part): &(usize, std::ops::Range<f64>)| {
        let calls = calls_of(part, plan.calls());
        json!({ "level": level, "model_calls": [calls.start, calls.end] })
    };
    let windows = plan.request().hidiffusion == Some(request::HiDiffusion::On);
    json!({
        "strided": part(&resizing.strided), "pooled": part(&resizing.pooled),
        "windows": windows.then_some(json!({ "level": resizing.windows })),
    })
}

/// For people.
pub(super) fn in_words(resizing: &Resizing, plan: &Plan) -> String {
    let ends = [&resizing.strided.1, &resizing.pooled.1].map(|part| calls_of(part, plan.calls()).end);
    let first = ends[0].max(ends[1]);
    let windows = match plan.request().hidiffusion {
        Some(request::HiDiffusion::On) => ", attention in windows",
        _ => "",
    };
    format!("the trained size inside in the first {first} of {} model calls{windows}", plan.calls())
}
