//! How much memory a forward pass takes, from shapes alone: each network's walk books what its layers allocate and free, in
//! the same order. `tests/memory.rs` compares with an allocator that counts.

use instantstyle_kernels::attention::{self, Queries};
use instantstyle_kernels::conv::{Conv, scratch_bytes};
use instantstyle_kernels::gemm::{self, Precision};

/// Values that are alive, and the most that were.
#[derive(Clone, Copy)]
pub(crate) struct Ledger {
    precision: Precision,
    live: u64,
    peak: u64,
}

impl Ledger {
    /// Nothing yet, of a network whose operands have this format.
    pub fn new(precision: Precision) -> Self {
        Ledger { precision, live: 0, peak: 0 }
    }

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

    /// The most bytes of f32 that were alive, and what matrix products pack, of which the largest has this shared dimension
    /// and this many weights.
    pub fn peak_bytes(&self, inner: usize, weights: usize) -> u64 {
        self.peak * 4 + gemm::scratch_bytes(inner, weights, threads()) as u64
    }

    /// Attention of `heads` heads of width `dim`: keys and values are packed for the products.
    pub fn attend(&mut self, batch: usize, heads: usize, dim: usize, keys: usize) {
        let precision = self.precision;
        let queries = Queries { batch, heads, dim, queries: 1, scale: 1.0, causal: false, precision };
        self.pass(attention::scratch_bytes(&queries, keys, threads()) / 4);
    }

    /// A convolution 3×3 that keeps the size, of a normed input or not; the input stays, the output is left alive.
    pub fn conv(&mut self, size: Size, inputs: usize, outputs: usize, normed: bool) {
        let Size { batch, height, width } = size;
        let conv = Conv {
            batch,
            height,
            width,
            inputs,
            outputs,
            kernel: 3,
            stride: 1,
            pad_before: 1,
            pad_after: 1,
            upsample: false,
        };
        self.take(size.pixels() * outputs);
        self.pass(scratch_bytes(&conv, self.precision, normed, threads()) / 4);
    }

    /// Two convolutions with a shortcut around them (UNet and autoencoder), their norms included; the input stays with the
    /// caller, the output is left alive.
    pub fn resnet(&mut self, size: Size, inputs: usize, outputs: usize) {
        let y = size.pixels() * outputs;
        self.conv(size, inputs, outputs, true);
        let shortcut = if inputs == outputs { 0 } else { y };
        self.take(shortcut);
        self.conv(size, outputs, outputs, true);
        self.give(y + shortcut);
    }
}

/// Pictures of one size.
#[derive(Clone, Copy)]
pub(crate) struct Size {
    /// Pictures.
    pub batch: usize,
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
}

impl Size {
    /// Pixels of all pictures.
    pub fn pixels(self) -> usize {
        self.batch * self.height * self.width
    }

    /// Doubled.
    pub fn double(self) -> Self {
        Size { height: 2 * self.height, width: 2 * self.width, ..self }
    }
}

fn threads() -> usize {
    rayon::current_num_threads()
}
