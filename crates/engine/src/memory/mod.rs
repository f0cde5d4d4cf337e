//! The memory plan: what each stage of a request will take, from shapes and file headers alone, and whether the machine has it.

mod machine;

pub use instantstyle_nets::layers::return_large_blocks;
pub use machine::available_bytes;

use crate::encode::{text_config, vision_config};
use crate::error::Error;
use crate::family::has_component;
use crate::model::Place;
use crate::plan::Plan;
use crate::preview::{self, Previews};
use crate::references::acts;
use instantstyle_nets::layers::Precision;
use instantstyle_nets::vae::{Tiling, VaeConfig};
use instantstyle_nets::weights::Weights;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// The program itself, its threads and what its allocator keeps.
const PROGRAM_BYTES: u64 = 18 << 20;
/// What is left for what no estimate knows.
const MARGIN: f64 = 1.1;
/// Tokens of a prompt.
const PROMPT: usize = 77;

/// What one stage takes at its peak.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stage {
    /// Name, as in progress.
    pub name: &'static str,
    /// Weights that stay in their files, mapped: the system drops and reads them again where memory is short.
    pub mapped_bytes: u64,
    /// What must be in memory: activations, merged and widened weights, pictures.
    pub own_bytes: u64,
}

/// What a request takes, stage by stage; each frees its own before the next.
#[derive(Clone, Debug)]
pub struct MemoryPlan {
    /// The stages in order; those that have nothing to do are left out.
    pub stages: Vec<Stage>,
    /// What may be taken; None where that is not known, or not to be checked.
    pub available_bytes: Option<u64>,
    tiled: bool,
}

impl MemoryPlan {
    /// From a plan, and the previews that are wanted while it is carried out; reads the headers of its files.
    ///
    /// # Errors
    /// If a file is missing or damaged.
    pub fn of(plan: &Plan, previews: Option<&Previews>) -> Result<Self, Error> {
        let mut stages = vec![text(plan)?, pictures(plan)?, denoising(plan, previews)?];
        if let Some(second) = plan.second.as_deref() {
            // Between the passes the first is decoded and coded anew beside the UNet's mapped weights.
            let unet = stages[2].mapped_bytes;
            let parts = [Some(decoding(plan)?), coding(second)?];
            let beside = |s: Stage| (unet + s.mapped_bytes, s.own_bytes);
            stages.push(most("enlarging", parts.into_iter().flatten().map(beside)));
            stages.push(Stage { name: "denoising again", ..denoising(second, previews)? });
        }
        stages.push(decoding(plan.last())?);
        stages.retain(|s| s.own_bytes > 0);
        // What is inside the program stays in memory once it was read.
        let mut inside = 0;
        for stage in &mut stages {
            stage.own_bytes += PROGRAM_BYTES;
            if plan.model == Place::embedded() {
                inside += stage.mapped_bytes;
                stage.mapped_bytes = inside;
            }
        }
        Ok(MemoryPlan { stages, available_bytes: plan.available_bytes, tiled: plan.tiling().is_some() })
    }

    /// The stage that takes most.
    pub fn peak(&self) -> Stage {
        let none = Stage { name: "", mapped_bytes: 0, own_bytes: 0 };
        self.stages.iter().copied().max_by_key(|s| s.mapped_bytes + s.own_bytes).unwrap_or(none)
    }

    /// Refuses what would end in the system stopping the program.
    ///
    /// # Errors
    /// [`Error::Machine`] with what would help.
    pub fn check(&self) -> Result<(), Error> {
        let Some(available) = self.available_bytes else { return Ok(()) };
        let Some(stage) = self.stages.iter().find(|s| !fits(s.own_bytes, Some(available))) else {
            return Ok(());
        };
        let tiles = if stage.name == "decoding" && !self.tiled { "use --vae-tiling on, " } else { "" };
        Err(Error::Machine(format!(
            "memory: {} needs about {}, and {} can be taken; {tiles}choose a smaller --width and --height, free memory, or \
             try all the same with --memory-gib 0",
            stage.name,
            size(stage.own_bytes),
            size(available)
        )))
    }

    /// What will be slow: weights that must be read from disk again and again.
    pub fn notice(&self) -> Option<String> {
        let all = self.peak();
        let short = !fits(all.mapped_bytes + all.own_bytes, self.available_bytes);
        short.then(|| {
            format!(
                "{} works with {} and {} of weights, more than the {} that can be taken: weights will be read from disk again and \
                 again",
                all.name,
                size(all.own_bytes),
                size(all.mapped_bytes),
                size(self.available_bytes.unwrap_or(0))
            )
        })
    }

    /// For programs.
    pub fn to_json(&self) -> Value {
        let stage =
            |s: &Stage| json!({ "name": s.name, "mapped_bytes": s.mapped_bytes, "own_bytes": s.own_bytes });
        let peak = self.peak();
        json!({
            "stages": self.stages.iter().map(stage).collect::<Vec<_>>(),
            "peak_bytes": peak.mapped_bytes + peak.own_bytes,
            "available_bytes": self.available_bytes,
            "fits": self.check().is_ok(),
        })
    }
}

impl std::fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        for (i, s) in self.stages.iter().enumerate() {
            let head = if i == 0 { "memory" } else { "" };
            let tiles = if s.name == "decoding" && self.tiled { ", in tiles" } else { "" };
            let (own, mapped) = (size(s.own_bytes), size(s.mapped_bytes));
            writeln!(f, "{head:10} {}: {own}, and {mapped} of weights in their files{tiles}", s.name)?;
        }
        let peak = self.peak();
        let peak = size(peak.own_bytes + peak.mapped_bytes);
        match (self.available_bytes, self.check()) {
            (None, _) => writeln!(f, "           peak {peak}"),
            (Some(a), Ok(())) => writeln!(f, "           peak {peak}, of {} that can be taken", size(a)),
            (Some(_), Err(e)) => writeln!(f, "           peak {peak}: does not fit; {e}"),
        }
    }
}

/// True if so much can be taken, or nobody knows.
fn fits(bytes: u64, available: Option<u64>) -> bool {
    available.is_none_or(|a| bytes as f64 * MARGIN <= a as f64)
}

/// In the unit that people read.
fn size(bytes: u64) -> String {
    match bytes as f64 / f64::from(1 << 20) {
        mib if mib < 1024.0 => format!("{mib:.0} MiB"),
        mib => format!("{:.1} GiB", mib / 1024.0),
    }
}

/// The tiles of a decoding that does not fit whole.
pub(crate) fn tiles_needed(
    vae: &VaeConfig,
    height: usize,
    width: usize,
    precision: Precision,
    available: Option<u64>,
) -> bool {
    let (h, w) = (height / vae.factor(), width / vae.factor());
    let whole = vae.decode_bytes(h, w, precision).max(vae.encode_bytes(height, width, precision));
    Tiling::of(vae).splits(h, w) && !fits(with_gaps(whole), available)
}

/// Sizes of some tensors: in their files, and in memory.
fn weights_bytes(weights: &Weights, with: impl Fn(&str) -> bool) -> (u64, u64) {
    let (mut mapped, mut own) = (0, 0);
    for (_, t) in weights.iter().filter(|(key, _)| with(key)) {
        let bytes = t.bytes().len() as u64;
        if t.is_mapped() {
            mapped += bytes
        } else {
            own += bytes
        }
        // Norms and biases are widened to f32 when they are loaded.
        if t.shape().len() < 2 {
            own += 4 * t.len() as u64;
        }
    }
    (mapped, own)
}

/// Activations lie in one region with gaps between them: of SD1.5's UNet and decoder 11 and 14 % of what is alive.
fn with_gaps(activations: u64) -> u64 {
    activations + activations / 7
}

/// A tower or network: its weights and its activations.
fn network(weights: &Weights, activations: u64) -> (u64, u64) {
    let (mapped, own) = weights_bytes(weights, |_| true);
    (mapped, own + with_gaps(activations))
}

/// Of several that are loaded one after the other.
fn most(name: &'static str, parts: impl IntoIterator<Item = (u64, u64)>) -> Stage {
    let worst = parts.into_iter().max_by_key(|(mapped, own)| mapped + own);
    let (mapped_bytes, own_bytes) = worst.unwrap_or((0, 0));
    Stage { name, mapped_bytes, own_bytes }
}

fn text(plan: &Plan) -> Result<Stage, Error> {
    let rows = if plan.guided() { 2 } else { 1 };
    let mut parts = Vec::new();
    for name in ["text_encoder", "text_encoder_2"] {
        if has_component(&plan.model, &plan.index, name) {
            let config = text_config(&plan.model.join(name))?;
            let (mapped, own) = network(&plan.model.join(name).component()?, config.forward_bytes(rows));
            parts.push((mapped, own + merged_bytes(plan, name)));
        }
    }
    Ok(most("encoding text", parts))
}

fn pictures(plan: &Plan) -> Result<Stage, Error> {
    let mut parts = Vec::new();
    for r in plan.references.iter().filter(|r| acts(r)) {
        let config = vision_config(&r.image_encoder)?;
        parts.push(network(&r.image_encoder.component()?, config.forward_bytes()));
        if let Some((tower, ..)) = &r.subtract {
            parts.push(network(&tower.component()?, text_config(tower)?.forward_bytes(1)));
        }
    }
    // Networks of maps, as their file and as loaded; what they take while they run is theirs to say.
    for c in &plan.request().controls {
        let networks = [&c.preprocess_model, &c.preprocess_detector].into_iter().flatten();
        parts.extend(networks.map(|n| (0, 2 * std::fs::metadata(n).map_or(0, |m| m.len()))));
    }
    parts.extend(coding(plan)?.map(|s| (s.mapped_bytes, s.own_bytes)));
    Ok(most("encoding pictures", parts))
}

/// The picture that a plan starts from.
fn coding(plan: &Plan) -> Result<Option<Stage>, Error> {
    if plan.init.is_none() {
        return Ok(None);
    }
    let weights = plan.vae_place.component_or_file()?;
    let (mapped, own) = weights_bytes(&weights, |key| key.starts_with("encoder."));
    let side = plan.tiling().map_or(usize::MAX, |t| t.latents() * plan.vae.factor());
    // The picture in bytes, its values and those of the masked one.
    let pictures = (plan.width * plan.height * (3 + 2 * 12)) as u64;
    let activations = plan.vae.encode_bytes(side.min(plan.height), side.min(plan.width), plan.precision());
    Ok(Some(most("", [(mapped, own + pictures + with_gaps(activations))])))
}

fn denoising(plan: &Plan, previews: Option<&Previews>) -> Result<Stage, Error> {
    let rows = if plan.guided() { 2 } else { 1 };
    let (h, w) = latents(plan);
    let weights = plan.model.join("unet").component()?;
    let (preview_mapped, preview_own, preview) = previewing(plan, previews)?;
    // A preview is made between two calls.
    let activations = plan.unet.forward_bytes(rows, h, w, plan.precision()).max(preview);
    let (mapped, own) = network(&weights, activations);
    let (mapped, own) = (mapped + preview_mapped, own + preview_own);
    let (released, packed) = packed_bytes(&weights, plan.precision());
    let (mapped, own) = (mapped - released, own + packed);
    let (control_mapped, control_own) = controls(plan, rows)?;
    let tokens: usize =
        plan.references.iter().filter(|r| acts(r)).map(|r| r.shape.tokens.unwrap_or(257)).sum();
    let context = plan.unet.context_bytes(rows, PROMPT + tokens);
    // What stays of the start, and of the sampler between its calls.
    let samples = (8 * h * w * plan.vae.latent_channels * 4) as u64;
    let frozen = plan.frozen_from.map_or(0, |_| plan.unet.frozen_bytes(h, w));
    let own = own + context + samples + frozen + merged_bytes(plan, "unet");
    Ok(most("denoising", [(mapped + control_mapped, own + control_own)]))
}

/// The small decoder of previews, if one is wanted: its weights in their file and in memory, and what one preview takes.
fn previewing(plan: &Plan, previews: Option<&Previews>) -> Result<(u64, u64, u64), Error> {
    let Some(path) = previews.and_then(|p| p.decoder.as_deref()) else { return Ok((0, 0, 0)) };
    let (config, weights) = preview::decoder_files(path, plan)?;
    let (mapped, own) = weights_bytes(&weights, |_| true);
    let (h, w) = latents(plan);
    let pixels = h * w * config.factor() * config.factor();
    Ok((mapped, own, with_gaps(config.decode_bytes(h, w, Precision::F32)) + 3 * pixels as u64))
}

/// The ControlNets that act: their weights, what they keep over the steps, and the residuals, which wait for the UNet.
fn controls(plan: &Plan, rows: usize) -> Result<(u64, u64), Error> {
    let [h, w] = plan.control_latents();
    let factor = plan.vae.factor();
    let (mut mapped, mut own, mut hint, mut residuals) = (0, 0, 0, 0);
    for c in plan.controls.iter().filter(|c| c.acts()) {
        let weights = c.model.component_or_file()?;
        let (in_file, loaded) = network(&weights, 0);
        let (released, packed) = packed_bytes(&weights, plan.precision());
        mapped += in_file - released;
        own += loaded + packed + c.merged.unwrap_or(0) * 4 + c.config.trunk.context_bytes(rows, PROMPT);
        hint = c.config.hint_bytes(h * factor, w * factor).max(hint);
        // The sum of those before, and its own.
        residuals =
            (residuals + c.config.residual_bytes(rows, h, w)).min(2 * c.config.residual_bytes(rows, h, w));
    }
    // HiDiffusion makes them as large as the UNet's skip connections.
    if plan.resizing.is_some() && residuals > 0 {
        let (h, w) = latents(plan);
        let acting = plan.controls.iter().filter(|c| c.acts());
        residuals += acting.map(|c| c.config.residual_bytes(rows, h, w)).max().unwrap_or(0);
    }
    // In bytes, and one at a time as numbers.
    let maps = ((plan.controls.len() + 4) * plan.width * plan.height * 3) as u64;
    let maps = if plan.controls.is_empty() { 0 } else { maps };
    Ok((mapped, own + maps + hint + residuals))
}

fn decoding(plan: &Plan) -> Result<Stage, Error> {
    let weights = plan.vae_place.component_or_file()?;
    let (mapped, own) = weights_bytes(&weights, |key| key.starts_with("decoder."));
    let (h, w) = latents(plan);
    let (th, tw) = plan.tiling().map_or((h, w), |t| (t.latents().min(h), t.latents().min(w)));
    let pictures = (plan.count * plan.width * plan.height * 3) as u64;
    Ok(most(
        "decoding",
        [(mapped, own + pictures + with_gaps(plan.vae.decode_bytes(th, tw, plan.precision())))],
    ))
}

fn latents(plan: &Plan) -> (usize, usize) {
    (plan.height / plan.vae.factor(), plan.width / plan.vae.factor())
}

/// What is packed in a precision of its own, matrices and filters: what their files no longer take, and what they take instead.
fn packed_bytes(weights: &Weights, precision: Precision) -> (u64, u64) {
    let per_value = match precision {
        Precision::F32 => return (0, 0),
        Precision::Bf16 => 2,
        Precision::Int8 => 1,
    };
    // The embeddings of time and sizes, and what looks at a control picture, stay in f32 as they are stored.
    let stays = |key: &str| {
        ["time_emb", "add_embedding", "cond_proj", "controlnet_cond_embedding"]
            .iter()
            .any(|part| key.contains(part))
    };
    let packed = weights.iter().filter(|(key, _)| !stays(key)).filter_map(|(key, t)| {
        let values = t.len() as u64;
        let bytes = match *t.shape() {
            [_, _] | [_, _, 1, 1] => values * per_value,
            // In bytes with a factor of four for the taps of 16 channels; strided and very small ones are bf16.
            [outputs, inputs, 3, 3] if inputs >= 16 && !key.contains("downsamplers") => {
                let factors =
                    if precision == Precision::Int8 { outputs * inputs.div_ceil(16) * 4 } else { 0 };
                values * per_value + factors as u64
            }
            [_, _, _, _] => values * 2,
            _ => return None,
        };
        Some((t, bytes))
    });
    packed.fold((0, 0), |(released, all), (t, bytes)| {
        (released + if t.is_mapped() { t.bytes().len() as u64 } else { 0 }, all + bytes)
    })
}

/// Weights that LoRAs change are copied in f32.
fn merged_bytes(plan: &Plan, folder: &str) -> u64 {
    let acting = plan.loras.iter().filter(|l| l.weight != 0.0);
    let changed: BTreeMap<&str, u64> = acting
        .flat_map(|l| &l.changed)
        .filter(|c| c.folder == folder)
        .map(|c| (c.key.as_str(), c.values * 4))
        .collect();
    changed.values().sum()
}
