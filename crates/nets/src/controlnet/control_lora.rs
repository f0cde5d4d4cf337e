//! Control-LoRA (stabilityai/control-lora): a ControlNet as what differs from the UNet that it works with. `NAME.up` and
//! `NAME.down` are a difference of low rank for the weight of the layer NAME, `up · down` with all axes but the first taken as
//! one; other tensors stand whole; what is not there is the UNet's own.

use super::diffusers_names;
use crate::error::ModelError;
use crate::lora::{Module, Role};
use crate::unet::UNetConfig;
use crate::weights::{Stored, Weights};
use std::collections::BTreeMap;

/// The tensor that marks such files; it has no values.
const MARK: &str = "lora_controlnet";

/// The parts of a UNet that a ControlNet copies.
const COPIED: [&str; 5] = ["conv_in.", "time_embedding.", "add_embedding.", "down_blocks.", "mid_block."];

/// True if the file is a Control-LoRA.
pub fn is_control_lora(weights: &Weights) -> bool {
    weights.get(MARK).is_some()
}

/// A Control-LoRA, in diffusers' names.
pub struct ControlLora {
    whole: Weights,
    /// By the key of the weight that they change.
    low: BTreeMap<String, Module>,
}

impl ControlLora {
    /// Sorts a file's tensors, renamed as in `base`, the UNet that it is to work with; no values are read.
    ///
    /// # Errors
    /// If a difference has no place in such a UNet.
    pub fn of(weights: &Weights, base: &UNetConfig) -> Result<Self, ModelError> {
        let named = diffusers_names(weights, base);
        let is_low = |key: &str| key.ends_with(".up") || key.ends_with(".down");
        let (there, here) =
            (weights.keys().filter(|k| is_low(k)).count(), named.keys().filter(|k| is_low(k)).count());
        if here < there {
            return Err(ModelError::new(
                weights.source(),
                format!(
                    "is a Control-LoRA for another UNet: {} of its {there} tensors of low rank have no place in this one; use \
                     one made for this model's family",
                    there - here
                ),
            ));
        }
        let mut low: BTreeMap<String, Module> = BTreeMap::new();
        for (key, tensor) in named.iter().filter(|(key, _)| is_low(key)) {
            let Some((layer, part)) = key.rsplit_once('.') else { continue };
            let role = if part == "up" { Role::Up } else { Role::Down };
            low.entry(format!("{layer}.weight")).or_default().insert(role, tensor.clone());
        }
        Ok(ControlLora { whole: named.renamed(|key| (!is_low(key)).then(|| key.to_owned())), low })
    }

    /// The weights of the UNet that are changed: what [`ControlLora::merged`] makes anew, in f32.
    pub fn changed(&self) -> impl Iterator<Item = &str> {
        self.low.keys().map(String::as_str)
    }

    /// The ControlNet's tensors with the differences left out: of the right shapes, without a value read.
    ///
    /// # Errors
    /// If a difference or a whole tensor does not fit the UNet's.
    pub fn outline(&self, unet: &Weights) -> Result<Weights, ModelError> {
        let mut out = self.whole.clone();
        for (key, tensor) in unet.iter().filter(|(key, _)| COPIED.iter().any(|part| key.starts_with(part))) {
            match self.whole.get(key) {
                Some(own) if own.shape() != tensor.shape() => {
                    let (own, theirs) = (own.shape(), tensor.shape());
                    return Err(self.misfit(key, &format!("has the shape {own:?}, the UNet's is {theirs:?}")));
                }
                Some(_) => {}
                None => out.insert(key, tensor.clone()),
            }
        }
        for (key, module) in &self.low {
            let Some(base) = unet.get(key) else { return Err(self.misfit(key, "is not in this UNet")) };
            if self.whole.get(key).is_some() {
                return Err(self.misfit(key, "is there twice, whole and as a difference"));
            }
            module.check(base.shape()).map_err(|e| self.misfit(key, &e))?;
        }
        Ok(out)
    }

    /// The ControlNet's tensors; those that differ by a low rank in f32.
    ///
    /// # Errors
    /// As [`ControlLora::outline`], and if a difference is not finite.
    pub fn merged(&self, unet: &Weights) -> Result<Weights, ModelError> {
        let mut out = self.outline(unet)?;
        for (key, module) in &self.low {
            let Some(base) = unet.get(key) else { continue };
            let mut values = base.to_f32();
            let delta = module.delta(base.shape(), &values, 1.0);
            if !delta.iter().all(|v| v.is_finite()) {
                return Err(self.misfit(key, "holds numbers that are not finite; the file is damaged"));
            }
            values.iter_mut().zip(&delta).for_each(|(v, d)| *v += d);
            out.insert(
                key.clone(),
                Stored::from_f32(base.shape(), &values).expect("as many values as before"),
            );
        }
        Ok(out)
    }

    fn misfit(&self, key: &str, what: &str) -> ModelError {
        let layer = key.strip_suffix(".weight").unwrap_or(key);
        ModelError::new(self.whole.source(), format!("is a Control-LoRA that does not fit: {layer} {what}"))
    }
}
