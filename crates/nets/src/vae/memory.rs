//! Memory of the autoencoder's passes, from shapes.

use super::VaeConfig;
use crate::memory::Ledger;

impl VaeConfig {
    /// Most bytes alive while one picture's latents of this size are decoded, latents and picture included.
    pub fn decode_bytes(&self, height: usize, width: usize) -> u64 {
        let mut ledger = Ledger::default();
        let mut pixels = height * width;
        let mut inputs = self.block_out_channels.last().copied().unwrap_or(0);
        // The latents, before and after the 1×1 convolution.
        ledger.take(pixels * self.latent_channels * 2);
        ledger.take(pixels * inputs);
        ledger.give(pixels * self.latent_channels);
        self.middle(&mut ledger, pixels, inputs);
        for (i, &outputs) in self.block_out_channels.iter().rev().enumerate() {
            for _ in 0..self.layers_per_block + 1 {
                ledger.resnet(pixels, inputs, outputs);
                ledger.give(pixels * inputs);
                inputs = outputs;
            }
            if i + 1 < self.block_out_channels.len() {
                ledger.take(4 * pixels * outputs);
                ledger.give(pixels * outputs);
                pixels *= 4;
            }
        }
        ledger.take(pixels * inputs);
        ledger.take(pixels * self.out_channels);
        ledger.peak_bytes()
    }

    /// Most bytes alive while one picture of this size is encoded, picture and moments included.
    pub fn encode_bytes(&self, height: usize, width: usize) -> u64 {
        let mut ledger = Ledger::default();
        let mut pixels = height * width;
        let mut inputs = self.block_out_channels.first().copied().unwrap_or(0);
        ledger.take(pixels * self.in_channels);
        ledger.take(pixels * inputs);
        for (i, &outputs) in self.block_out_channels.iter().enumerate() {
            for _ in 0..self.layers_per_block {
                ledger.resnet(pixels, inputs, outputs);
                ledger.give(pixels * inputs);
                inputs = outputs;
            }
            if i + 1 < self.block_out_channels.len() {
                ledger.take(pixels / 4 * outputs);
                ledger.give(pixels * outputs);
                pixels /= 4;
            }
        }
        self.middle(&mut ledger, pixels, inputs);
        ledger.take(pixels * (inputs + 4 * self.latent_channels));
        ledger.peak_bytes()
    }

    /// The block between the two halves; the input goes, the output stays.
    fn middle(&self, ledger: &mut Ledger, pixels: usize, channels: usize) {
        let x = pixels * channels;
        ledger.resnet(pixels, channels, channels);
        ledger.give(x);
        if self.mid_block_add_attention {
            // The norm, queries, keys, values and what is attended; then the output beside the norm and the latter.
            ledger.take(5 * x);
            ledger.attend(pixels);
            ledger.give(3 * x);
            ledger.take(x);
            ledger.give(3 * x);
        }
        ledger.resnet(pixels, channels, channels);
        ledger.give(x);
    }
}
