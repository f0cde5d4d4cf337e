//! Memory of the UNet's passes, from shapes.

use super::{LevelConfig, UNetConfig};
use crate::layers::Precision;
use crate::memory::{Ledger, Size};

impl UNetConfig {
    /// Most bytes alive during one call for `rows` latents of this size, beside what is kept over the steps. Deep features that a
    /// call gives (`deep_cache`) come when the most is over: a call that keeps them takes no more.
    pub fn forward_bytes(&self, rows: usize, height: usize, width: usize, precision: Precision) -> u64 {
        let mut ledger = Ledger::new(precision);
        let size =
            |i: usize| Size { batch: rows, height: height.div_ceil(1 << i), width: width.div_ceil(1 << i) };
        let pixels = |i: usize| size(i).pixels();
        let first = self.levels[0].width;
        ledger.take(pixels(0) * self.in_channels);
        // Each activation stays for the way up.
        ledger.take(pixels(0) * first);
        let mut skips = vec![pixels(0) * first];
        let mut inputs = first;
        let last = self.levels.len() - 1;
        for (i, level) in self.levels.iter().enumerate() {
            for _ in 0..level.layers {
                layer(&mut ledger, level, size(i), inputs);
                inputs = level.width;
                skips.push(pixels(i) * inputs);
            }
            if i < last {
                ledger.take(pixels(i + 1) * inputs);
                skips.push(pixels(i + 1) * inputs);
            }
        }
        if let Some(depth) = self.mid {
            let n = pixels(last);
            ledger.resnet(size(last), inputs, inputs);
            if depth > 0 {
                spatial(&mut ledger, &self.levels[last], depth, n, n / rows.max(1));
                ledger.resnet(size(last), inputs, inputs);
                ledger.give(n * inputs);
            }
        }
        for (i, level) in self.levels.iter().enumerate().rev() {
            let n = pixels(i);
            for _ in 0..level.layers + 1 {
                let skip = skips.pop().unwrap_or(0);
                let both = n * inputs + skip;
                ledger.take(both);
                layer(&mut ledger, level, size(i), both / n.max(1));
                // What was joined, the skip, and what came from below.
                ledger.give(both + skip + n * inputs);
                inputs = level.width;
            }
            if i > 0 {
                ledger.conv(size(i - 1), inputs, inputs, false);
                ledger.give(n * inputs);
            }
        }
        ledger.conv(size(0), inputs, self.out_channels, true);
        // Downsampling and GEGLU, of the widest level.
        let widest = self.levels.iter().map(|l| l.width).max().unwrap_or(0);
        // Weights that are packed once need no room in a product; downsampling packs its own, where less is alive.
        let weights = if precision == Precision::F32 { 9 * widest * widest } else { 0 };
        ledger.peak_bytes(9 * widest, weights)
    }

    /// Bytes of the outputs of cross-attention that are frozen, for one row of latents of this size.
    pub fn frozen_bytes(&self, height: usize, width: usize) -> u64 {
        let tokens = |level: usize| height.div_ceil(1 << level) * width.div_ceil(1 << level);
        super::sites(self).iter().map(|s| 4 * tokens(s.level) * s.width).sum::<usize>() as u64
    }

    /// Bytes of the text's keys and values at every site, for `rows` prompts of `tokens` tokens; of image tokens likewise.
    pub fn context_bytes(&self, rows: usize, tokens: usize) -> u64 {
        let width: usize = super::sites(self).iter().map(|s| s.width).sum();
        (rows * tokens * width * 2 * 4) as u64
    }
}

/// A resnet and the transformers after it; the input stays, the output is left alive.
fn layer(ledger: &mut Ledger, level: &LevelConfig, size: Size, inputs: usize) {
    ledger.resnet(size, inputs, level.width);
    if level.transformers > 0 {
        spatial(ledger, level, level.transformers, size.pixels(), size.height * size.width);
    }
}

/// Transformers over all pixels; what they are given goes, what they give stays.
fn spatial(ledger: &mut Ledger, level: &LevelConfig, depth: usize, pixels: usize, keys: usize) {
    let x = pixels * level.width;
    // The norm goes when it is projected.
    ledger.take(x);
    ledger.take(x);
    ledger.give(x);
    for _ in 0..depth {
        // Norm, keys, values; queries, what is attended and the sum: alive beside the input to the end.
        ledger.take(5 * x);
        ledger.attend(pixels / keys.max(1), level.heads, level.width / level.heads.max(1), keys);
        ledger.take(x);
        ledger.give(2 * x);
        // Cross-attention: queries (their norm goes), what is attended, the sum.
        ledger.take(2 * x);
        ledger.give(x);
        ledger.take(2 * x);
        // The norm goes when GEGLU, 4 wide, is there.
        ledger.take(x);
        ledger.take(4 * x);
        ledger.give(x);
        ledger.take(x);
        // Only the last sum is left.
        ledger.give(3 * x + x + 3 * x + 4 * x + x);
    }
    // The output.
    ledger.take(x);
    ledger.give(2 * x);
}
