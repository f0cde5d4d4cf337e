//! The table of attention sites: the one place that knows their paths and their two orders.

use super::UNetConfig;

/// One transformer block of the UNet with its self- and cross-attention.
#[derive(Clone, Debug, PartialEq)]
pub struct Site {
    /// Path as in diffusers, e.g. `up_blocks.0.attentions.1.transformer_blocks.0`.
    pub path: String,
    /// Width of its tokens.
    pub width: usize,
    /// Level of the U, 0 the finest: tokens are (height >> level) · (width >> level), rounded up.
    pub level: usize,
    /// N of `ip_adapter.N.to_k_ip.weight`: odd numbers over the order down, up, mid (REFERENCE: IP-Adapter).
    pub ordinal: usize,
}

/// All sites in the order of the forward pass: down, mid, up.
pub fn sites(config: &UNetConfig) -> Vec<Site> {
    let levels = config.levels.len();
    let (mut down, mut mid, mut up) = (Vec::new(), Vec::new(), Vec::new());
    let push = |list: &mut Vec<Site>, place: String, level: usize, depth: usize| {
        for t in 0..depth {
            let path = format!("{place}.transformer_blocks.{t}");
            list.push(Site { path, width: config.levels[level].width, level, ordinal: 0 });
        }
    };
    for (i, level) in config.levels.iter().enumerate() {
        for a in 0..level.layers {
            push(&mut down, format!("down_blocks.{i}.attentions.{a}"), i, level.transformers);
        }
    }
    if let Some(depth) = config.mid {
        push(&mut mid, "mid_block.attentions.0".to_owned(), levels - 1, depth);
    }
    for i in 0..levels {
        let level = &config.levels[levels - 1 - i];
        for a in 0..level.layers + 1 {
            push(&mut up, format!("up_blocks.{i}.attentions.{a}"), levels - 1 - i, level.transformers);
        }
    }
    for (n, site) in down.iter_mut().chain(&mut up).chain(&mut mid).enumerate() {
        site.ordinal = 2 * n + 1;
    }
    down.into_iter().chain(mid).chain(up).collect()
}

/// True if `key` names this path or a part of the tree that holds it, by whole components.
pub fn covers(key: &str, path: &str) -> bool {
    path.strip_prefix(key).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn of(json: serde_json::Value) -> Vec<Site> {
        sites(&UNetConfig::from_json(&json, std::path::Path::new("config.json")).unwrap())
    }

    fn ordinals(sites: &[Site], key: &str) -> (usize, usize) {
        let all: Vec<usize> = sites.iter().filter(|s| covers(key, &s.path)).map(|s| s.ordinal).collect();
        (all[0], *all.last().unwrap())
    }

    /// The ordinals that the published adapters use (REFERENCE: orders of the same attention layers).
    #[test]
    fn sdxl_ordinals() {
        let s = of(json!({
            "block_out_channels": [320, 640, 1280], "transformer_layers_per_block": [1, 2, 10],
            "attention_head_dim": [5, 10, 20], "cross_attention_dim": 2048,
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"]}));
        assert_eq!(s.len(), 70);
        for (key, want) in [
            ("down_blocks.1", (1, 7)),
            ("down_blocks.2.attentions.0", (9, 27)),
            ("down_blocks.2.attentions.1", (29, 47)),
            ("up_blocks.0.attentions.0", (49, 67)),
            ("up_blocks.0.attentions.1", (69, 87)),
            ("up_blocks.0.attentions.2", (89, 107)),
            ("up_blocks.1", (109, 119)),
            ("mid_block", (121, 139)),
        ] {
            assert_eq!(ordinals(&s, key), want, "{key}");
        }
        assert!(
            s[0].path.starts_with("down")
                && s[24].path.starts_with("mid")
                && s[69].path.starts_with("up_blocks.1")
        );
    }

    #[test]
    fn sd15_ordinals() {
        let s = of(json!({
            "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
            "attention_head_dim": 8, "cross_attention_dim": 768}));
        assert_eq!(s.len(), 16);
        assert_eq!(ordinals(&s, "down_blocks"), (1, 11));
        assert_eq!(ordinals(&s, "up_blocks"), (13, 29));
        assert_eq!(ordinals(&s, "mid_block"), (31, 31));
    }

    #[test]
    fn keys_match_whole_components() {
        assert!(covers("up_blocks.1", "up_blocks.1.attentions.0"));
        assert!(!covers("up_blocks.1", "up_blocks.10.attentions.0"));
        assert!(!covers("up_blocks.1.att", "up_blocks.1.attentions.0"));
        assert!(covers("mid_block", "mid_block"));
    }
}
