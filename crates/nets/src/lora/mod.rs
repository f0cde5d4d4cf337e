//! LoRA and its relatives: changes of a network's weights in files of their own (Hu et al., arXiv 2106.09685).
//!
//! Files of kohya's scripts, peft, diffusers and LyCORIS (LoCon, LoHa, LoKr: Yeh et al., arXiv 2309.14859), with or without
//! DoRA's magnitudes (Liu et al., arXiv 2402.09353), are told by their keys. They are merged into the weights before the
//! network is made, so that the network knows nothing of them and no call costs more.

mod delta;
mod keys;

pub(crate) use delta::Module;
pub use keys::Names;
pub(crate) use keys::Role;

use crate::error::ModelError;
use crate::weights::{Stored, Weights};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The network that a part of a LoRA changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// The UNet.
    UNet,
    /// The first text encoder.
    Text,
    /// SDXL's second text encoder.
    Text2,
}

/// A LoRA's file, its tensors grouped by the layer that they change.
pub struct Lora {
    source: PathBuf,
    modules: BTreeMap<(Part, String), Module>,
    /// Keys of no known form.
    strange: Vec<String>,
}

/// How a LoRA fits one network.
#[derive(Clone, Debug, Default)]
pub struct Fit {
    /// Layers of the file that the network has, in the right shape: their weights' keys.
    pub fitting: Vec<String>,
    /// Layers of the file that the network has not.
    pub unknown: Vec<String>,
    /// Layers whose shapes differ: what is wrong with each.
    pub misshapen: Vec<String>,
}

impl Lora {
    /// Groups a file's tensors; reads no values but the alphas.
    ///
    /// # Errors
    /// If no key is of a LoRA, or the metadata contradicts itself.
    pub fn of(weights: &Weights) -> Result<Self, ModelError> {
        let mut lora =
            Lora { source: weights.source().to_owned(), modules: BTreeMap::new(), strange: Vec::new() };
        for (key, tensor) in weights.iter() {
            match keys::split(key) {
                Some((part, layer, role)) => {
                    lora.modules.entry((part, layer)).or_default().insert(role, tensor.clone());
                }
                None => lora.strange.push(key.to_owned()),
            }
        }
        if lora.modules.is_empty() {
            return Err(ModelError::new(
                &lora.source,
                "holds no LoRA: no key ends in lora_down, lora_A, hada_w1_a, lokr_w1 or their like",
            ));
        }
        if let Some(text) = weights.metadata().get("lora_adapter_metadata") {
            let alphas = keys::PeftAlphas::read(text).map_err(|e| lora.error(e))?;
            for ((part, layer), module) in &mut lora.modules {
                module.scale = alphas.scale(*part, layer, module.rank());
            }
        }
        Ok(lora)
    }

    /// The file.
    pub fn source(&self) -> &Path {
        &self.source
    }

    /// Layers that it changes, in all networks.
    pub fn len(&self) -> usize {
        self.modules.len()
    }

    /// True if it changes nothing.
    pub fn is_empty(&self) -> bool {
        self.modules.is_empty()
    }

    /// Keys of no known form, which are ignored.
    pub fn strange(&self) -> &[String] {
        &self.strange
    }

    /// Width of the text tokens that it was made for, if it changes a layer that reads them.
    pub fn context_dim(&self) -> Option<usize> {
        let reads = |layer: &str| layer.ends_with("attn2_to_k") || layer.ends_with("attn2_to_v");
        self.of_part(Part::UNet).find(|(layer, _)| reads(layer)).and_then(|(_, m)| m.shape()?.get(1).copied())
    }

    /// Layers that it changes in one network.
    pub fn len_of(&self, part: Part) -> usize {
        self.of_part(part).count()
    }

    /// Looks for a network's layers, and at their shapes. No values are read.
    pub fn fit(&self, part: Part, names: &Names, weights: &Weights) -> Fit {
        let mut fit = Fit::default();
        for (layer, module) in self.of_part(part) {
            let Some((key, base)) = names.get(layer).and_then(|k| Some((k, weights.get(k)?))) else {
                fit.unknown.push(layer.to_owned());
                continue;
            };
            match module.check(base.shape()) {
                Ok(()) => fit.fitting.push(key.to_owned()),
                Err(e) => fit.misshapen.push(format!("{layer}: {e}")),
            }
        }
        fit
    }

    fn of_part(&self, part: Part) -> impl Iterator<Item = (&str, &Module)> {
        self.modules.iter().filter(move |((p, _), _)| *p == part).map(|((_, layer), m)| (layer.as_str(), m))
    }

    fn error(&self, message: impl Into<String>) -> ModelError {
        ModelError::new(&self.source, message)
    }
}

/// A LoRA and how it is used.
pub struct Use<'a> {
    /// The file.
    pub lora: &'a Lora,
    /// Strength.
    pub weight: f64,
    /// Where given, only weights under this part of the UNet are changed (B-LoRA: Frenkel et al., arXiv 2403.14572).
    pub only: Option<&'a str>,
}

impl Use<'_> {
    fn covers(&self, key: &str) -> bool {
        self.only.is_none_or(|only| crate::unet::covers(only, key))
    }
}

/// A network's weights with LoRAs merged into them, in f32 where they change. Each change is computed from the weights as
/// they were, and they add up: so the order does not matter.
///
/// # Errors
/// If a LoRA's shapes do not fit, or it holds numbers that are not finite. Layers that the network has not are ignored: ask
/// [`Lora::fit`] first.
pub fn merge(uses: &[Use], part: Part, names: &Names, weights: &Weights) -> Result<Weights, ModelError> {
    let mut changes: BTreeMap<&str, Vec<(&Use, &str, &Module)>> = BTreeMap::new();
    for used in uses.iter().filter(|u| u.weight != 0.0) {
        for (layer, module) in used.lora.of_part(part) {
            if let Some(key) = names.get(layer).filter(|k| used.covers(k)) {
                changes.entry(key).or_default().push((used, layer, module));
            }
        }
    }
    let mut merged = weights.clone();
    for (key, changes) in changes {
        let Some(base) = weights.get(key) else { continue };
        let values = base.to_f32();
        let mut sum = values.clone();
        for (used, layer, module) in changes {
            let wrong = |e: String| used.lora.error(format!("{layer}: {e}"));
            module.check(base.shape()).map_err(wrong)?;
            let delta = module.delta(base.shape(), &values, used.weight as f32);
            if !delta.iter().all(|v| v.is_finite()) {
                return Err(wrong("holds numbers that are not finite; the file is damaged".into()));
            }
            sum.iter_mut().zip(&delta).for_each(|(s, d)| *s += d);
        }
        let stored = Stored::from_f32(base.shape(), &sum).expect("as many values as before");
        merged.insert(key, stored);
    }
    Ok(merged)
}
