//! The specification of the micro-kernel, in plain Rust.

/// Columns of the tile.
const NR: usize = 16;

/// `tile[rows, 16] = block[kc, rows]ᵀ · panel[kc, 16]`, accumulated over k in ascending order.
pub(super) fn multiply(rows: usize, kc: usize, block: &[f32], panel: &[f32], tile: &mut [f32]) {
    let tile = &mut tile[..rows * NR];
    tile.fill(0.0);
    for (a, b) in block.chunks_exact(rows).zip(panel.as_chunks::<NR>().0).take(kc) {
        for (t, a) in tile.as_chunks_mut::<NR>().0.iter_mut().zip(a) {
            for (t, b) in t.iter_mut().zip(b) {
                *t += a * b;
            }
        }
    }
}
