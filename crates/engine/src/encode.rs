//! From prompts and reference pictures to what the UNet takes.

use crate::error::Error;
use crate::family::{Family, TextFeatures};
use crate::loras::Loras;
use crate::model::Place;
use crate::picture::{ClipPreprocess, Picture, clip_preprocess};
use instantstyle_nets::Tensor;
use instantstyle_nets::clip::{TextConfig, TextEncoder, TextOutput, VisionConfig, VisionEncoder};
use instantstyle_nets::tokenizer::Tokenizer;
use instantstyle_nets::weights::Weights;
use serde_json::Value;

/// The prompts of a request and where the text towers are.
pub struct Prompts<'a> {
    /// The model's root.
    pub model: &'a Place,
    /// `model_index.json`.
    pub index: &'a Value,
    /// LoRAs, some of which change the towers.
    pub(crate) loras: &'a Loras,
    /// The prompt.
    pub prompt: &'a str,
    /// The negative prompt; None is not the same as empty for SDXL.
    pub negative: Option<&'a str>,
    /// Whether row 0 is for the negative prompt.
    pub guided: bool,
    /// Layers to go back from the family's usual one.
    pub clip_skip: usize,
}

impl Prompts<'_> {
    /// The texts of the batch: negative first where guidance is on.
    pub fn rows(&self) -> Vec<&str> {
        if self.guided { vec![self.negative.unwrap_or(""), self.prompt] } else { vec![self.prompt] }
    }

    /// The batch with the prompt's row from `skipped` and the negative prompt's, if there is one, from `usual`:
    /// `clip_skip` acts on the prompt alone.
    pub fn positive_from(&self, usual: &Tensor, skipped: &Tensor) -> Tensor {
        let mut out = skipped.clone();
        if self.guided {
            let row = out.dim(1) * out.dim(2);
            out.data_mut()[..row].copy_from_slice(&usual.data()[..row]);
        }
        out
    }

    /// True if the model has the component.
    pub fn has(&self, name: &str) -> bool {
        crate::family::has_component(self.model, self.index, name)
    }

    /// A flag of `model_index.json`.
    pub fn index_flag(&self, name: &str, default: bool) -> bool {
        self.index.get(name).and_then(Value::as_bool).unwrap_or(default)
    }

    /// Loads a text tower and its tokenizer.
    pub fn tower(&self, encoder: &str, tokenizer: &str) -> Result<Tower, Error> {
        let weights = self.loras.component(self.model, encoder)?;
        Tower::of(&self.model.join(encoder), &weights, &self.model.join(tokenizer))
    }
}

/// A text tower with its tokenizer.
pub struct Tower {
    /// The network.
    pub encoder: TextEncoder,
    tokenizer: Tokenizer,
    place: Place,
}

impl Tower {
    /// Loads from two folders.
    pub fn load(encoder: &Place, tokenizer: &Place) -> Result<Self, Error> {
        Tower::of(encoder, &encoder.component()?, tokenizer)
    }

    fn of(encoder: &Place, weights: &Weights, tokenizer: &Place) -> Result<Self, Error> {
        let config: TextConfig = text_config(encoder)?;
        let tokenizer = tokenizer.tokenizer()?;
        let encoder_net = TextEncoder::load(&config, weights).map_err(crate::model_error)?;
        Ok(Tower { encoder: encoder_net, tokenizer, place: encoder.clone() })
    }

    /// Tokenises, padded and cut to the tower's length, and encodes.
    pub fn encode(&self, texts: &[&str], notice: &mut dyn FnMut(String)) -> Result<TextOutput, Error> {
        Ok(self.encoder.forward(&self.ids(texts, notice)?))
    }

    /// The same without the last layer's states.
    pub fn encode_before_last(
        &self,
        texts: &[&str],
        notice: &mut dyn FnMut(String),
    ) -> Result<TextOutput, Error> {
        Ok(self.encoder.forward_before_last(&self.ids(texts, notice)?))
    }

    fn ids(&self, texts: &[&str], notice: &mut dyn FnMut(String)) -> Result<Vec<Vec<u32>>, Error> {
        let config = self.encoder.config();
        let length = self.tokenizer.max_length().unwrap_or(usize::MAX).min(config.max_position_embeddings);
        let mut ids = Vec::new();
        for text in texts {
            let encoded = self.tokenizer.encode(text, length);
            if let Some(cut) = encoded.truncated {
                notice(format!("the prompt is longer than {length} tokens; ignored: \"{cut}\""));
            }
            if let Some(id) = encoded.ids.iter().find(|id| **id as usize >= config.vocab_size) {
                return Err(self.place.error(format!(
                    "knows {} tokens, but its tokenizer gives number {id}: they are of different models",
                    config.vocab_size
                )));
            }
            ids.push(encoded.ids);
        }
        Ok(ids)
    }

    /// The hidden state `back` layers before the last.
    pub fn layer<'o>(&self, output: &'o TextOutput, back: usize) -> Result<&'o Tensor, Error> {
        let layers = self.encoder.config().num_hidden_layers;
        output.hidden.get(layers.wrapping_sub(back)).ok_or_else(|| {
            Error::request(
                "clip_skip",
                format!(
                    "goes back {back} layers, but the text encoder {} has {}",
                    self.place.path().display(),
                    layers
                ),
            )
        })
    }
}

/// `config.json` of a text tower; a whole CLIP model's has it under `text_config`.
pub fn text_config(place: &Place) -> Result<TextConfig, Error> {
    let json = place.join("config.json").json()?;
    parse(
        place,
        json.get("text_config").filter(|_| json.get("hidden_size").is_none()).unwrap_or(&json),
        &json,
    )
}

/// `config.json` of a picture tower; a whole CLIP model's has it under `vision_config`.
pub fn vision_config(place: &Place) -> Result<VisionConfig, Error> {
    let json = place.join("config.json").json()?;
    parse(
        place,
        json.get("vision_config").filter(|_| json.get("hidden_size").is_none()).unwrap_or(&json),
        &json,
    )
}

fn parse<T: serde::de::DeserializeOwned>(place: &Place, part: &Value, whole: &Value) -> Result<T, Error> {
    let mut part = part.clone();
    if let (Value::Object(part), Some(dim)) = (&mut part, whole.get("projection_dim")) {
        part.insert("projection_dim".into(), dim.clone());
    }
    if let Value::Object(map) = &mut part {
        map.retain(|_, v| !v.is_null());
    }
    serde_json::from_value(part).map_err(|e| place.join("config.json").error(format!("does not fit: {e}")))
}

/// Encodes the prompts of a request.
pub fn text(
    family: &Family,
    prompts: &Prompts,
    notice: &mut dyn FnMut(String),
) -> Result<TextFeatures, Error> {
    (family.encode)(prompts, notice)
}

/// The features of pictures that one adapter reads.
pub struct PictureFeatures {
    /// Of each picture: pooled [1, width] or states [1, tokens, width].
    pub pictures: Vec<Tensor>,
    /// Of no picture, in the same form.
    pub nothing: Tensor,
}

/// How a picture tower's pictures are prepared: `preprocessor_config.json` where there is one, else as for every CLIP.
pub(crate) fn preprocessing(encoder: &Place, size: usize) -> Result<ClipPreprocess, Error> {
    let place = encoder.join("preprocessor_config.json");
    if !place.exists() {
        return Ok(ClipPreprocess::new(size));
    }
    let unsupported = |e: String| place.error(format!("{e}; remove the file to use CLIP's own preparation"));
    let read = ClipPreprocess::from_json(&place.json()?).map_err(unsupported)?;
    if read.crop != size {
        return Err(unsupported(format!(
            "crop_size is {}, but the tower reads pictures of {size} px",
            read.crop
        )));
    }
    Ok(read)
}

/// Encodes pictures for an adapter that reads pooled features (`pooled`) or the penultimate states.
pub fn pictures(encoder: &Place, pictures: &[&Picture], pooled: bool) -> Result<PictureFeatures, Error> {
    let config = vision_config(encoder)?;
    let net = VisionEncoder::load(&config, &encoder.component()?).map_err(crate::model_error)?;
    let size = config.image_size;
    let normalisation = preprocessing(encoder, size)?;
    let run = |pixels: Tensor| {
        if pooled { net.forward(&pixels).embeds } else { net.penultimate(&pixels) }
    };
    let encoded = pictures
        .iter()
        .map(|picture| run(channels_last(&clip_preprocess(picture, &normalisation), 3, size, size)))
        .collect();
    let nothing = if pooled {
        // The published base adapters are trained with zeros for no picture; the others with the states of a picture
        // whose normalised pixels are all zero (REFERENCE: IP-Adapter).
        Tensor::zeros([1, config.projection_dim])
    } else {
        run(Tensor::zeros([1, size, size, 3]))
    };
    Ok(PictureFeatures { pictures: encoded, nothing })
}

/// The pooled, un-normalised text feature that subtraction takes away: [1, width].
pub fn feature(tower: &Tower, text: &str, notice: &mut dyn FnMut(String)) -> Result<Tensor, Error> {
    let output = tower.encode_before_last(&[text], notice)?;
    output.projected.ok_or_else(|| {
        tower.place.error("has no text_projection; subtraction needs a CLIPTextModelWithProjection")
    })
}

/// `[channels, height, width]` → `[1, height, width, channels]`.
pub fn channels_last(planes: &[f32], channels: usize, height: usize, width: usize) -> Tensor {
    let mut out = Tensor::zeros([1, height, width, channels]);
    for (i, pixel) in out.data_mut().chunks_exact_mut(channels).enumerate() {
        for (c, v) in pixel.iter_mut().enumerate() {
            *v = planes[c * height * width + i];
        }
    }
    out
}

/// `[1, height, width, channels]` → `[channels, height, width]`.
pub fn planes(x: &Tensor) -> Vec<f32> {
    let channels = x.channels();
    let pixels = x.data().len() / channels;
    let mut out = vec![0.0; x.data().len()];
    for (i, pixel) in x.data().chunks_exact(channels).enumerate() {
        for (c, v) in pixel.iter().enumerate() {
            out[c * pixels + i] = *v;
        }
    }
    out
}
