//! References, resolved: adapter, encoders, sites, window.

use super::places::{component, file, file_or_folder};
use crate::encode::{preprocessing, text_config, vision_config};
use crate::error::Error;
use crate::family::{self, Family};
use crate::injection::{site_weights, window};
use crate::model::Place;
use crate::model_error;
use crate::request::Reference;
use instantstyle_nets::ip_adapter::{AdapterShape, Kind};
use instantstyle_nets::unet::{Site, UNetConfig};
use serde_json::Value;

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

/// What the references of one request share.
pub(super) struct Context<'a> {
    pub(super) model: &'a Place,
    pub(super) index: &'a Value,
    pub(super) family: &'static Family,
    pub(super) unet: &'a UNetConfig,
    pub(super) sites: &'a [Site],
    pub(super) card: &'a Value,
    pub(super) calls: usize,
}

impl Context<'_> {
    pub(super) fn reference(
        &self,
        field: &str,
        r: &Reference,
    ) -> Result<(PlannedReference, Reference), Error> {
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
        preprocessing(&image_encoder, vision.image_size)?;
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
            let place = file_or_folder(field, "image_encoder", path)?;
            return component(place, "image_encoder", field);
        }
        // The adapter's own folder keeps its encoder in the published layout.
        let beside = match adapter {
            Place::Disk(p) => p.parent().map(|d| Place::Disk(d.join("image_encoder"))).filter(Place::exists),
            _ => None,
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
            let root = file_or_folder(field, "text_encoder", path)?;
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
            _ => None,
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
