//! What HiDiffusion does in each model call: the published settings of a family ([`Family::hidiffusion`]), and where the
//! windows of its attention lie (Zhang et al., arXiv 2311.17528; see [`instantstyle_nets::unet::HiDiffusion`]).
//!
//! [`Family::hidiffusion`]: crate::family::Family::hidiffusion

use crate::plan::Plan;
use crate::request;
use crate::rng::TorchRng;
use instantstyle_nets::unet::HiDiffusion;
use std::ops::Range;

/// How a family is treated: levels count from 0, the finest; ranges are parts of the sampling.
#[derive(Clone, Debug, PartialEq)]
pub struct Resizing {
    /// The level whose self-attention runs in windows, in every call.
    pub windows: usize,
    /// The level whose downsampler takes off a quarter of each side, and when.
    pub strided: (usize, Range<f64>),
    /// The level that computes at half its size, and when.
    pub pooled: (usize, Range<f64>),
    /// In how many model calls ControlNets act, as a part of the steps; None where nothing is published of them.
    pub controls: Option<f64>,
}

/// Both sides of the latents that ControlNets see are multiples of this, as published.
const CONTROL_SIDES: usize = 8;

/// The size of latents [height, width] that ControlNets see in place of larger ones: the longer side is as they were trained.
pub fn control_size([height, width]: [usize; 2], trained: usize) -> [usize; 2] {
    let side =
        |n: usize| (n * trained / height.max(width) / CONTROL_SIDES * CONTROL_SIDES).max(CONTROL_SIDES);
    [side(height), side(width)]
}

/// In how many calls ControlNets act, as published: calls are held against steps, whatever a sampler makes of a step.
pub fn control_calls(part: f64, steps: usize) -> usize {
    (part * steps as f64).ceil() as usize
}

/// The model calls of a part of the sampling: rounded down, as published.
pub fn calls_of(part: &Range<f64>, calls: usize) -> Range<usize> {
    let at = |x: f64| (x * calls as f64) as usize;
    at(part.start)..at(part.end)
}

/// Every model call of a picture with this seed, in order; None where HiDiffusion is off.
///
/// The published code draws each windowed block's shift, in forward order, from torch's global generator: here it is a
/// generator of its own, seeded like the picture's noise (what `torch.manual_seed(seed)` before a run gives there).
pub fn calls(plan: &Plan, seed: u64) -> Option<Vec<HiDiffusion>> {
    let resizing = plan.resizing.as_ref()?;
    let mut rng = TorchRng::new(seed);
    let windows = plan.request().hidiffusion == Some(request::HiDiffusion::On);
    let at = |(level, part): &(usize, Range<f64>), call: usize| {
        calls_of(part, plan.calls()).contains(&call).then_some(*level)
    };
    let call = |call| HiDiffusion {
        strided: at(&resizing.strided, call),
        pooled: at(&resizing.pooled, call),
        windows: plan
            .sites
            .iter()
            .map(|site| (windows && site.level == resizing.windows).then(|| quarters(rng.uniform_f32())))
            .collect(),
    };
    Some((0..plan.calls()).map(call).collect())
}

/// A number from 0 to 1 as one of four shifts: the upper ends belong to them, as published.
fn quarters(x: f32) -> usize {
    [0.25, 0.5, 0.75].iter().filter(|end| x > **end).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::family;
    use instantstyle_nets::unet::UNetConfig;
    use serde_json::json;

    /// What the published `apply_hidiffusion` decides for 50 calls (`T1`, `T1_start`, `T1_end` of its blocks).
    #[test]
    fn families_switch_when_published() {
        let unet = |json| UNetConfig::from_json(&json, std::path::Path::new("config.json")).unwrap();
        let sd15 = unet(json!({}));
        let sdxl = |more: serde_json::Value| {
            let mut config = json!({
                "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
                "projection_class_embeddings_input_dim": 2816, "block_out_channels": [320, 640, 1280],
                "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
                "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"], "sample_size": 128,
            });
            config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            unet(config)
        };
        let of = |unet: &UNetConfig, sides: f64| {
            let r = (family::of(unet).hidiffusion)(unet, sides, false);
            let (strided, pooled) = (calls_of(&r.strided.1, 50), calls_of(&r.pooled.1, 50));
            (r.windows, (r.strided.0, strided), (r.pooled.0, pooled))
        };
        assert_eq!(of(&sd15, 2.0), (0, (0, 0..20), (1, 0..0)));
        assert_eq!(of(&sd15, 4.0), (0, (0, 0..35), (1, 0..15)));
        assert_eq!(of(&sdxl(json!({})), 2.0), (1, (1, 0..8), (1, 8..20)));
        assert_eq!(of(&sdxl(json!({})), 4.0), (1, (1, 0..15), (1, 0..35)));
        assert_eq!(of(&sdxl(json!({ "in_channels": 9 })), 2.0), (1, (1, 0..0), (1, 0..20)));
        assert_eq!(of(&sdxl(json!({ "sample_size": 64 })), 2.0), (1, (1, 0..0), (1, 0..25)));
        // Text to image with a ControlNet: `text_to_img_controlnet_switching_threshold_ratio_dict`, where it says anything.
        let controlled =
            |unet: &UNetConfig, sides| (family::of(unet).hidiffusion)(unet, sides, true).pooled.1;
        assert_eq!(calls_of(&controlled(&sdxl(json!({})), 2.0), 50), 8..25);
        assert_eq!(calls_of(&controlled(&sdxl(json!({})), 4.0), 50), 0..35);
    }

    /// The lines of the published `sdxl_contrtolnet_ppl` that give `downsample_size`, for latents of these sizes.
    #[test]
    fn control_nets_see_the_trained_size() {
        for (latents, seen) in [
            ([256, 256], [128, 128]),
            ([256, 192], [128, 96]),
            ([168, 240], [88, 128]),
            ([512, 208], [128, 48]),
            ([130, 200], [80, 128]),
        ] {
            assert_eq!(control_size(latents, 128), seen);
        }
        // As many `i` as are less than 0.6 * steps.
        assert_eq!([1, 5, 6, 13, 20, 50].map(|steps| control_calls(0.6, steps)), [1, 3, 4, 8, 12, 30]);
    }

    #[test]
    fn shifts_are_quarters() {
        assert_eq!([0.0, 0.25, 0.26, 0.5, 0.6, 0.75, 0.99].map(quarters), [0, 0, 1, 1, 2, 2, 3]);
    }
}
