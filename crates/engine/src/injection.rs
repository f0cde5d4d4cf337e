//! From `inject` to one weight per attention site, and from references to the branches that the UNet reads.

use crate::error::Error;
use crate::family::Family;
use crate::request::{Inject, Preset};
use instantstyle_nets::unet::{Site, covers};
use serde_json::Value;

/// Weights by part of the UNet.
pub type Blocks = Vec<(String, f64)>;

/// The parts behind a preset: the model card's where it has them, else the family's.
pub fn preset_blocks(preset: Preset, family: &Family, card: &Value) -> Blocks {
    let from_card = |name: &str| -> Option<Blocks> {
        let map = card.get("presets")?.get(name)?.as_object()?;
        Some(map.iter().filter_map(|(k, v)| Some((k.clone(), v.as_f64()?))).collect())
    };
    let from_family =
        |blocks: crate::family::Blocks| blocks.iter().map(|(k, v)| ((*k).to_owned(), *v)).collect();
    let style = || from_card("style").unwrap_or_else(|| from_family(family.style));
    let layout = || from_card("layout").unwrap_or_else(|| from_family(family.layout));
    match preset {
        Preset::Style => style(),
        Preset::Layout => layout(),
        Preset::StyleLayout => from_card("style+layout").unwrap_or_else(|| [layout(), style()].concat()),
        Preset::All => ["down_blocks", "mid_block", "up_blocks"].map(|k| (k.to_owned(), 1.0)).to_vec(),
    }
}

/// One weight per site in forward order. The most specific key that covers a site counts.
///
/// # Errors
/// If a key covers no site of this model.
pub fn site_weights(
    field: &str,
    inject: &Inject,
    weight: f64,
    sites: &[Site],
    family: &Family,
    card: &Value,
) -> Result<Vec<f32>, Error> {
    let blocks = match inject {
        Inject::Preset(p) => preset_blocks(*p, family, card),
        Inject::Blocks(map) => map.iter().map(|(k, v)| (k.clone(), *v)).collect(),
    };
    let mut weights = vec![0f32; sites.len()];
    let mut depth = vec![0; sites.len()];
    for (key, value) in &blocks {
        let mut hit = false;
        for (i, _) in sites.iter().enumerate().filter(|(_, s)| covers(key, &s.path)) {
            hit = true;
            if key.len() >= depth[i] {
                depth[i] = key.len();
                weights[i] = (value * weight) as f32;
            }
        }
        if !hit && !matches!(inject, Inject::Preset(Preset::All)) {
            return Err(Error::request(
                format!("{field}.{key}"),
                format!(
                    "covers no attention layer of this {} model; its groups are {}",
                    family.title,
                    groups(sites).join(", ")
                ),
            ));
        }
    }
    Ok(weights)
}

/// The attention groups of a model, e.g. `up_blocks.0.attentions.1`, in forward order.
pub fn groups(sites: &[Site]) -> Vec<String> {
    let mut groups: Vec<String> = Vec::new();
    for site in sites {
        let group = site.path.split(".transformer_blocks").next().unwrap_or(&site.path);
        if groups.last().is_none_or(|g| g != group) {
            groups.push(group.to_owned());
        }
    }
    groups
}

/// The model calls in which a window is open: diffusers' rule for ControlNets, open at call i of n unless i/n < start or
/// (i + 1)/n > end.
pub fn window(start: f64, end: f64, calls: usize) -> std::ops::Range<usize> {
    let n = calls as f64;
    let open = |i: &usize| !(*i as f64 / n < start || (*i + 1) as f64 / n > end);
    let first = (0..calls).find(open).unwrap_or(calls);
    let last = (0..calls).rev().find(open).map_or(first, |i| i + 1);
    first..last
}

/// A mask [height, width] of 0 and 1 at the size of the picture, for `tokens` queries of a layer: bicubic without
/// antialiasing, as diffusers' `IPAdapterMaskProcessor.downsample` with torch's `interpolate`.
pub fn mask_for_tokens(mask: &[f32], height: usize, width: usize, tokens: usize) -> Vec<f32> {
    let ratio = width as f64 / height as f64;
    let mut rows = ((tokens as f64 / ratio).sqrt() as usize).max(1);
    rows += usize::from(tokens % rows != 0);
    let columns = (tokens / rows).max(1);
    let mut out = bicubic(mask, height, width, rows, columns);
    out.resize(tokens, 0.0);
    out
}

/// torch's bicubic kernel (a = -0.75), corners not aligned, edges repeated.
fn bicubic(x: &[f32], height: usize, width: usize, rows: usize, columns: usize) -> Vec<f32> {
    let taps = |from: usize, to: usize, i: usize| -> [(usize, f32); 4] {
        const A: f32 = -0.75;
        let near = |x: f32| ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0;
        let far = |x: f32| ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A;
        let at = (i as f32 + 0.5) * (from as f32 / to as f32) - 0.5;
        let base = at.floor();
        let t = at - base;
        let weights = [far(t + 1.0), near(t), near(1.0 - t), far(2.0 - t)];
        std::array::from_fn(|k| {
            ((base as isize - 1 + k as isize).clamp(0, from as isize - 1) as usize, weights[k])
        })
    };
    let mut out = Vec::with_capacity(rows * columns);
    for r in 0..rows {
        let vertical = taps(height, rows, r);
        for c in 0..columns {
            let horizontal = taps(width, columns, c);
            let row = |y: usize| horizontal.iter().map(|(x_at, w)| x[y * width + x_at] * w).sum::<f32>();
            out.push(vertical.iter().map(|(y, w)| row(*y) * w).sum());
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_cover_the_calls_once() {
        assert_eq!(window(0.0, 1.0, 7), 0..7);
        assert_eq!(window(0.0, 0.5, 7), 0..3);
        assert_eq!(window(0.5, 1.0, 7), 4..7);
        assert_eq!(window(0.95, 1.0, 7), 7..7);
    }

    #[test]
    fn masks_keep_constants_and_sides() {
        let ones = vec![1.0; 64 * 48];
        for v in mask_for_tokens(&ones, 64, 48, 8 * 6) {
            assert!((v - 1.0).abs() < 1e-6);
        }
        let left: Vec<f32> = (0..64 * 64).map(|i| if i % 64 < 32 { 1.0 } else { 0.0 }).collect();
        let m = mask_for_tokens(&left, 64, 64, 16);
        assert_eq!((m[0], m[3]), (1.0, 0.0));
    }
}
