//! The UNet's names in original Stable Diffusion code (`input_blocks`, `middle_block`, `output_blocks`: Rombach et al.'s
//! `openaimodel.py`), beside diffusers'. Kohya's SDXL LoRAs and single-file checkpoints use them.

use super::UNetConfig;

/// What a resnet's layers are called on both sides.
const RESNET: [(&str, &str); 6] = [
    ("norm1", "in_layers.0"),
    ("conv1", "in_layers.2"),
    ("time_emb_proj", "emb_layers.1"),
    ("norm2", "out_layers.0"),
    ("conv2", "out_layers.3"),
    ("conv_shortcut", "skip_connection"),
];

/// The names of one UNet's parts on both sides.
pub struct LdmNames(Vec<(String, String)>);

impl LdmNames {
    /// The parts of the UNet of this shape.
    pub fn of(config: &UNetConfig) -> Self {
        let mut names: Vec<(String, String)> = [
            ("time_embedding.linear_1", "time_embed.0"),
            ("time_embedding.linear_2", "time_embed.2"),
            ("time_embedding.cond_proj", "time_embed.cond_proj"),
            ("add_embedding.linear_1", "label_emb.0.0"),
            ("add_embedding.linear_2", "label_emb.0.2"),
            ("conv_in", "input_blocks.0.0"),
            ("conv_norm_out", "out.0"),
            ("conv_out", "out.2"),
        ]
        .map(|(a, b)| (a.to_owned(), b.to_owned()))
        .into();
        let mut resnet = |ours: String, theirs: String| {
            names.extend(RESNET.map(|(a, b)| (format!("{ours}.{a}"), format!("{theirs}.{b}"))));
        };
        let mut others = Vec::new();
        let (levels, mut n) = (config.levels.len(), 1);
        for (i, level) in config.levels.iter().enumerate() {
            for j in 0..level.layers {
                resnet(format!("down_blocks.{i}.resnets.{j}"), format!("input_blocks.{n}.0"));
                if level.transformers > 0 {
                    others.push((format!("down_blocks.{i}.attentions.{j}"), format!("input_blocks.{n}.1")));
                }
                n += 1;
            }
            if i + 1 < levels {
                others
                    .push((format!("down_blocks.{i}.downsamplers.0.conv"), format!("input_blocks.{n}.0.op")));
                n += 1;
            }
        }
        resnet("mid_block.resnets.0".into(), "middle_block.0".into());
        others.push(("mid_block.attentions.0".into(), "middle_block.1".into()));
        resnet("mid_block.resnets.1".into(), "middle_block.2".into());
        n = 0;
        for (i, level) in config.levels.iter().rev().enumerate() {
            for j in 0..level.layers + 1 {
                resnet(format!("up_blocks.{i}.resnets.{j}"), format!("output_blocks.{n}.0"));
                if level.transformers > 0 {
                    others.push((format!("up_blocks.{i}.attentions.{j}"), format!("output_blocks.{n}.1")));
                }
                if j == level.layers && i + 1 < levels {
                    // After the attention, where there is one.
                    let at = if level.transformers > 0 { 2 } else { 1 };
                    others.push((
                        format!("up_blocks.{i}.upsamplers.0.conv"),
                        format!("output_blocks.{n}.{at}.conv"),
                    ));
                }
                n += 1;
            }
        }
        names.append(&mut others);
        LdmNames(names)
    }

    /// The original name of a tensor or layer that diffusers calls `key`.
    pub fn original(&self, key: &str) -> Option<String> {
        replaced(key, self.0.iter().map(|(ours, theirs)| (ours, theirs)))
    }

    /// diffusers' name of a tensor or layer that the original code calls `key`.
    pub fn diffusers(&self, key: &str) -> Option<String> {
        replaced(key, self.0.iter().map(|(ours, theirs)| (theirs, ours)))
    }
}

/// `key` with the first of the names that it starts with, whole components only, replaced.
pub(crate) fn replaced<'a>(
    key: &str,
    mut names: impl Iterator<Item = (&'a String, &'a String)>,
) -> Option<String> {
    names.find_map(|(from, to)| {
        let rest = key.strip_prefix(from.as_str())?;
        (rest.is_empty() || rest.starts_with('.')).then(|| format!("{to}{rest}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::unet::{AddedConfig, LevelConfig};

    fn sdxl() -> UNetConfig {
        let level =
            |width, transformers| LevelConfig { width, layers: 2, heads: 8, transformers, context: 2048 };
        UNetConfig {
            in_channels: 4,
            out_channels: 4,
            sample_size: None,
            levels: vec![level(320, 0), level(640, 2), level(1280, 10)],
            up_attention: vec![true, true, false],
            mid: Some(10),
            groups: 32,
            eps: 1e-5,
            flip_sin_to_cos: true,
            freq_shift: 0.0,
            downsample_padding: 1,
            added: Some(AddedConfig { time_dim: 256, inputs: 2816 }),
            time_cond_dim: None,
        }
    }

    /// Pairs as they stand in SDXL's published single file and in its published folder.
    #[test]
    fn names_of_sdxl() {
        let names = LdmNames::of(&sdxl());
        for (ours, theirs) in [
            (
                "down_blocks.1.attentions.0.transformer_blocks.1.attn2.to_k",
                "input_blocks.4.1.transformer_blocks.1.attn2.to_k",
            ),
            ("down_blocks.2.attentions.1.proj_in", "input_blocks.8.1.proj_in"),
            ("down_blocks.0.downsamplers.0.conv", "input_blocks.3.0.op"),
            ("down_blocks.1.resnets.0.conv_shortcut", "input_blocks.4.0.skip_connection"),
            ("mid_block.resnets.1.conv2.weight", "middle_block.2.out_layers.3.weight"),
            (
                "up_blocks.0.attentions.1.transformer_blocks.9.ff.net.2",
                "output_blocks.1.1.transformer_blocks.9.ff.net.2",
            ),
            ("up_blocks.0.upsamplers.0.conv", "output_blocks.2.2.conv"),
            ("up_blocks.2.resnets.2.time_emb_proj", "output_blocks.8.0.emb_layers.1"),
            ("add_embedding.linear_2.bias", "label_emb.0.2.bias"),
            ("conv_norm_out.weight", "out.0.weight"),
        ] {
            assert_eq!(names.original(ours).as_deref(), Some(theirs));
            assert_eq!(names.diffusers(theirs).as_deref(), Some(ours));
        }
        assert_eq!(names.original("conv_input.weight"), None);
    }
}
