//! Memory of the towers' passes, from shapes.

use super::{TextConfig, VisionConfig};
use crate::layers::Precision;
use crate::memory::Ledger;

/// One layer; the input stays, the output is left alive.
fn layer(ledger: &mut Ledger, x: usize, inner: usize, keys: usize) {
    ledger.take(5 * x);
    ledger.attend(x / keys.max(1), 1, 1, keys);
    ledger.give(3 * x);
    ledger.take(x);
    ledger.take(x + inner);
    ledger.give(x);
    ledger.take(x);
    ledger.give(3 * x + inner);
}

impl TextConfig {
    /// Most bytes alive while `rows` prompts are encoded: every layer's states are kept.
    pub fn forward_bytes(&self, rows: usize) -> u64 {
        let mut ledger = Ledger::new(Precision::F32);
        let tokens = rows * self.max_position_embeddings;
        let x = tokens * self.hidden_size;
        ledger.take(x);
        for _ in 0..self.num_hidden_layers {
            layer(&mut ledger, x, tokens * self.intermediate_size, self.max_position_embeddings);
        }
        ledger.take(x);
        ledger.peak_bytes(self.intermediate_size, self.hidden_size * self.intermediate_size)
    }
}

impl VisionConfig {
    /// Most bytes alive while one picture is encoded.
    pub fn forward_bytes(&self) -> u64 {
        let mut ledger = Ledger::new(Precision::F32);
        let side = self.image_size / self.patch_size.max(1);
        let tokens = side * side + 1;
        let x = tokens * self.hidden_size;
        // The picture, the patches, what is normed, and two copies.
        ledger.take(self.image_size * self.image_size * 3 + 4 * x);
        layer(&mut ledger, x, tokens * self.intermediate_size, tokens);
        ledger.peak_bytes(self.intermediate_size, self.hidden_size * self.intermediate_size)
    }
}
