//! Memory of the autoencoder's passes, from shapes.

use super::VaeConfig;
use crate::layers::Precision;
use crate::memory::{Ledger, Size};

impl VaeConfig {
    /// Most bytes alive while one picture's latents of this size are decoded, latents and picture included.
    pub fn decode_bytes(&self, height: usize, width: usize, precision: Precision) -> u64 {
        if self.is_tiny() {
            return self.tiny_bytes(height * self.factor(), width * self.factor());
        }
        let mut ledger = Ledger::new(precision);
        let mut size = Size { batch: 1, height, width };
        let pixels = size.pixels();
        let mut inputs = self.block_out_channels.last().copied().unwrap_or(0);
        // The latents, before and after the 1×1 convolution.
        ledger.take(pixels * self.latent_channels * 2);
        ledger.take(pixels * inputs);
        ledger.give(pixels * self.latent_channels);
        self.middle(&mut ledger, size, inputs);
        for (i, &outputs) in self.block_out_channels.iter().rev().enumerate() {
            for _ in 0..self.layers_per_block + 1 {
                ledger.resnet(size, inputs, outputs);
                ledger.give(size.pixels() * inputs);
                inputs = outputs;
            }
            if i + 1 < self.block_out_channels.len() {
                ledger.conv(size.double(), outputs, outputs, false);
                ledger.give(size.pixels() * outputs);
                size = size.double();
            }
        }
        ledger.conv(size, inputs, self.out_channels, true);
        let widest = self.widest();
        ledger.peak_bytes(widest, widest * widest)
    }

    /// Most bytes alive while one picture of this size is encoded, picture and moments included.
    pub fn encode_bytes(&self, height: usize, width: usize, precision: Precision) -> u64 {
        if self.is_tiny() {
            return self.tiny_bytes(height, width);
        }
        let mut ledger = Ledger::new(precision);
        let mut size = Size { batch: 1, height, width };
        let pixels = size.pixels();
        let mut inputs = self.block_out_channels.first().copied().unwrap_or(0);
        ledger.take(pixels * self.in_channels);
        ledger.take(pixels * inputs);
        for (i, &outputs) in self.block_out_channels.iter().enumerate() {
            for _ in 0..self.layers_per_block {
                ledger.resnet(size, inputs, outputs);
                ledger.give(size.pixels() * inputs);
                inputs = outputs;
            }
            if i + 1 < self.block_out_channels.len() {
                ledger.take(size.pixels() / 4 * outputs);
                ledger.give(size.pixels() * outputs);
                size = Size { height: size.height / 2, width: size.width / 2, ..size };
            }
        }
        self.middle(&mut ledger, size, inputs);
        ledger.conv(size, inputs, 2 * self.latent_channels, true);
        ledger.take(size.pixels() * 2 * self.latent_channels);
        // Downsampling gathers its patches.
        let patch = 9 * self.widest();
        ledger.peak_bytes(patch, patch * self.widest())
    }

    fn widest(&self) -> usize {
        self.block_out_channels.iter().copied().max().unwrap_or(0)
    }

    /// A block at full size: its input, what is between its convolutions, and its output, beside the picture.
    fn tiny_bytes(&self, height: usize, width: usize) -> u64 {
        let mut ledger = Ledger::new(Precision::F32);
        let channels = self.block_out_channels.first().copied().unwrap_or(0);
        ledger.take(height * width * (3 * channels + self.out_channels));
        ledger.peak_bytes(9 * channels, 9 * channels * channels)
    }

    /// The block between the two halves; the input goes, the output stays.
    fn middle(&self, ledger: &mut Ledger, size: Size, channels: usize) {
        let pixels = size.pixels();
        let x = pixels * channels;
        ledger.resnet(size, channels, channels);
        ledger.give(x);
        if self.mid_block_add_attention {
            // The norm, queries, keys, values and what is attended; then the output beside the norm and the latter.
            ledger.take(5 * x);
            ledger.attend(1, 1, channels, pixels);
            ledger.give(3 * x);
            ledger.take(x);
            ledger.give(3 * x);
        }
        ledger.resnet(size, channels, channels);
        ledger.give(x);
    }
}
