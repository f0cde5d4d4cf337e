//! How much memory a forward pass takes, from shapes alone: each network's walk books what its layers allocate and free, in
//! the same order. `tests/memory.rs` compares with an allocator that counts.

/// Values that are alive, and the most that were.
#[derive(Clone, Copy, Default)]
pub(crate) struct Ledger {
    live: u64,
    peak: u64,
}

impl Ledger {
    /// A tensor of so many values appears.
    pub fn take(&mut self, values: usize) {
        self.live += values as u64;
        self.peak = self.peak.max(self.live);
    }

    /// It goes.
    pub fn give(&mut self, values: usize) {
        self.live = self.live.saturating_sub(values as u64);
    }

    /// Tensors of so many values come and go.
    pub fn pass(&mut self, values: usize) {
        self.take(values);
        self.give(values);
    }

    /// The most bytes of f32 that were alive, the packed operands of matrix products included.
    pub fn peak_bytes(&self) -> u64 {
        self.peak * 4 + threads() as u64 * PACKED_BYTES
    }

    /// Attention over `keys` keys: each thread keeps the scores of a block of queries (`kernels`, `attention/mod.rs`).
    pub fn attend(&mut self, keys: usize) {
        self.pass(threads() * QUERIES * keys);
    }

    /// A group norm and a 3×3 convolution twice with a shortcut around them (UNet and autoencoder); the input stays with
    /// the caller, the output is left alive.
    pub fn resnet(&mut self, pixels: usize, inputs: usize, outputs: usize) {
        let (x, y) = (pixels * inputs, pixels * outputs);
        self.take(x);
        self.take(y);
        self.give(x);
        self.take(y);
        self.give(y);
        let shortcut = if inputs == outputs { 0 } else { y };
        self.take(shortcut);
        self.take(y);
        self.give(y + shortcut);
    }
}

/// Of one thread.
const PACKED_BYTES: u64 = 1 << 20;
/// Queries of a block.
const QUERIES: usize = 224;

fn threads() -> usize {
    rayon::current_num_threads()
}
