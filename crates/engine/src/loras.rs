//! LoRAs of a request: fitted to the model's headers in the plan, merged into its weights when these are loaded.

use crate::error::Error;
use crate::family::Family;
use crate::model::Place;
use crate::model_error;
use crate::plan::Plan;
use crate::request::{LORA_BLOCKS, LoraBlocks, LoraUse};
use instantstyle_nets::lora::{Fit, Lora, Names, Part, Use, merge};
use instantstyle_nets::unet::{UNetConfig, covers};
use instantstyle_nets::weights::Weights;
use serde_json::Value;

/// The parts of a model that LoRAs change, by their folder.
const PARTS: [(&str, Part); 3] =
    [("unet", Part::UNet), ("text_encoder", Part::Text), ("text_encoder_2", Part::Text2)];

/// One LoRA, resolved.
#[derive(Clone)]
pub struct PlannedLora {
    pub(crate) place: Place,
    pub(crate) weight: f64,
    /// The part of the UNet to which it is held.
    pub(crate) only: Option<String>,
    /// Layers that it changes, of those in the file.
    pub(crate) layers: (usize, usize),
    /// The weights that it changes.
    pub(crate) changed: Vec<Changed>,
    /// What does not fit, for people.
    pub(crate) notice: Option<String>,
}

/// A weight that a LoRA changes.
#[derive(Clone)]
pub(crate) struct Changed {
    /// The component's folder.
    pub(crate) folder: &'static str,
    pub(crate) key: String,
    /// Number of values.
    pub(crate) values: u64,
}

/// Looks at the headers of one LoRA and of the model.
pub(crate) fn planned(
    field: &str,
    used: &LoraUse,
    place: Place,
    model: &Place,
    unet: &UNetConfig,
    family: &Family,
    card: &Value,
) -> Result<PlannedLora, Error> {
    let lora = Lora::of(&place.weights()?).map_err(model_error)?;
    let held = only(field, used.blocks, family, card)?;
    let only = held.as_deref();
    let title = family.title;
    let (mut fit, mut all, mut changed) = (Fit::default(), lora.len(), Vec::new());
    for (folder, part) in PARTS {
        let place = model.join(folder);
        if lora.len_of(part) == 0 || (only.is_some() && part != Part::UNet) || !place.exists() {
            continue;
        }
        let weights = place.component()?;
        let found = lora.fit(part, &names(part, unet, &weights), &weights);
        let kept = found.fitting.iter().filter(|key| only.is_none_or(|only| covers(only, key)));
        changed.extend(kept.map(|key| Changed {
            folder,
            key: key.clone(),
            values: weights.get(key).map_or(0, |t| t.len() as u64),
        }));
        fit.fitting.extend(found.fitting);
        fit.unknown.extend(found.unknown);
        fit.misshapen.extend(found.misshapen);
    }
    if let Some(wrong) = fit.misshapen.first() {
        return Err(place.error(format!(
            "is a LoRA for another family than this {title} model: {} of its {all} layers fit, {} have another shape; {wrong}",
            fit.fitting.len(),
            fit.misshapen.len()
        )));
    }
    if let Some(only) = only {
        fit.fitting.retain(|key| covers(only, key));
        fit.unknown.clear();
        all = fit.fitting.len();
    }
    if fit.fitting.is_empty() {
        let of = only.map_or_else(String::new, |only| format!(" under {only}"));
        return Err(place.error(format!(
            "changes no layer of this {title} model{of}: none of its {} layers is known; is it for another family?",
            lora.len()
        )));
    }
    let mut unused = Vec::new();
    if fit.fitting.len() < all {
        let example = fit.unknown.first().map_or_else(String::new, |u| format!(", e.g. {u}"));
        unused.push(format!("{} of its {all} layers fit nowhere{example}", all - fit.fitting.len()));
    }
    if let Some(key) = lora.strange().first() {
        unused.push(format!("{} tensors are of no known kind, e.g. {key}", lora.strange().len()));
    }
    let notice = (!unused.is_empty())
        .then(|| format!("{}: {}; the rest is used", place.path().display(), unused.join("; ")));
    Ok(PlannedLora {
        place,
        weight: used.weight,
        only: held,
        layers: (fit.fitting.len(), all),
        changed,
        notice,
    })
}

/// The part of the UNet that a part of a B-LoRA is held to: the model card's where it has one, else the family's.
fn only(field: &str, blocks: LoraBlocks, family: &Family, card: &Value) -> Result<Option<String>, Error> {
    let Some((name, ..)) = LORA_BLOCKS.iter().find(|b| b.1 == blocks && blocks != LoraBlocks::All) else {
        return Ok(None);
    };
    let of_family = || family.b_lora.iter().find(|(n, _)| n == name).map(|(_, path)| *path);
    let path = card["b_lora"][*name].as_str().or_else(of_family);
    path.map(|path| Some(path.to_owned())).ok_or_else(|| {
        Error::request(
            format!("{field}.blocks"),
            format!("is \"{name}\", but B-LoRA's blocks are known for SDXL only, and this is a {} model; use \"all\"", family.title),
        )
    })
}

fn names(part: Part, unet: &UNetConfig, weights: &Weights) -> Names {
    match part {
        Part::UNet => Names::of_unet(unet, weights),
        Part::Text | Part::Text2 => Names::of_text(weights),
    }
}

/// The LoRAs of a plan, read.
pub struct Loras {
    loras: Vec<(Lora, PlannedLora)>,
    unet: UNetConfig,
}

impl Loras {
    /// Opens the files.
    pub(crate) fn open(plan: &Plan) -> Result<Self, Error> {
        let open = |planned: &PlannedLora| {
            Ok((Lora::of(&planned.place.weights()?).map_err(model_error)?, planned.clone()))
        };
        let loras = plan.loras.iter().filter(|l| l.weight != 0.0).map(open).collect::<Result<_, Error>>()?;
        Ok(Loras { loras, unet: plan.unet.clone() })
    }

    /// A component's weights with the LoRAs merged into them.
    pub(crate) fn component(&self, model: &Place, folder: &str) -> Result<Weights, Error> {
        let weights = model.join(folder).component()?;
        let Some((_, part)) = PARTS.iter().find(|(name, _)| *name == folder) else { return Ok(weights) };
        let uses: Vec<Use> = self
            .loras
            .iter()
            .filter(|(_, p)| p.only.is_none() || *part == Part::UNet)
            .map(|(lora, p)| Use { lora, weight: p.weight, only: p.only.as_deref() })
            .collect();
        if uses.iter().all(|u| u.lora.len_of(*part) == 0) {
            return Ok(weights);
        }
        merge(&uses, *part, &names(*part, &self.unet, &weights), &weights).map_err(model_error)
    }
}
