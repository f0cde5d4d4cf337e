//! Stable Diffusion 1.x: one text tower, its last hidden state.

use super::{Family, TextFeatures};
use crate::encode::Prompts;
use crate::error::Error;

pub(super) static FAMILY: Family = Family {
    name: "sd15",
    title: "Stable Diffusion 1.5",
    matches: |unet| unet.added.is_none(),
    // InstantStyle's `infer_style_sd15.py`; weaker than on SDXL (REFERENCE: InstantStyle).
    style: &[("up_blocks.1", 1.0)],
    layout: &[("down_blocks.2", 1.0), ("mid_block", 1.0)],
    b_lora: &[],
    subtract_scale: 0.8,
    feature_tower: None,
    components: &["text_encoder", "tokenizer"],
    encode,
    scheduler,
};

fn encode(prompts: &Prompts, notice: &mut dyn FnMut(String)) -> Result<TextFeatures, Error> {
    let tower = prompts.tower("text_encoder", "tokenizer")?;
    let output = tower.encode(&prompts.rows(), notice)?;
    let tokens = match prompts.clip_skip {
        0 => output.last,
        // The final norm belongs to whichever layer is taken (diffusers' `encode_prompt`); the negative prompt keeps
        // the last.
        n => prompts.positive_from(&output.last, &tower.encoder.final_norm(tower.layer(&output, n)?)),
    };
    Ok(TextFeatures { tokens, pooled: None })
}

/// diffusers' `StableDiffusionPipeline` corrects outdated configurations when it is built. For a sampler that is
/// exchanged afterwards only what the file says counts.
fn scheduler(config: &mut serde_json::Value, own: bool) {
    if let Some(map) = config.as_object_mut() {
        for (key, value) in [("steps_offset", serde_json::Value::from(1)), ("clip_sample", false.into())] {
            if own || map.contains_key(key) {
                map.insert(key.to_owned(), value);
            }
        }
    }
}
