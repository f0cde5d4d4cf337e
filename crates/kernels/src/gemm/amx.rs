//! Micro-kernels for AMX: a tile of up to 32 × 32. Of what is used next only the output's lines are fetched, to be written: the rest
//! gained nothing (`benches/README.md`).

use super::LINE;
use super::finish::Tile;
use super::soon::Soon;
use crate::amx::{COLUMNS, Kind, Product, multiply};

/// Multiplies; the sums wait in memory, and the lines of the output that they go to after the `last` block come meanwhile. Words of
/// rows beyond the last must be 0 in bf16 where they fill a line.
///
/// # Safety
/// The level must be in use.
unsafe fn product(
    kind: Kind,
    (rows, kc, _): (usize, usize, usize),
    (block, panel): (&[f32], &[f32]),
    sums: &mut [f32],
    more: bool,
    last: Option<&Tile>,
) -> bool {
    if let Some(&Tile { place, row, tall, .. }) = last {
        (row..row + tall).for_each(|row| place.out.soon(row * place.stride + place.column, place.width));
    }
    assert!(block.len() >= rows * kc.next_multiple_of(LINE));
    assert!(panel.len() >= kc * COLUMNS && sums.len() >= rows * COLUMNS);
    let (lines, rest) = (kc / LINE, kc % LINE);
    let product = Product {
        rows,
        lines,
        a: block.as_ptr(),
        a_row: LINE,
        a_line: rows * LINE,
        b: panel.as_ptr(),
        c: sums.as_mut_ptr(),
        more,
    };
    // SAFETY: the lengths are those asserted.
    unsafe { multiply(kind, &product) };
    if rest > 0 {
        // The words that are left, and zeros.
        let mut b = [0f32; LINE * COLUMNS];
        b[..rest * COLUMNS].copy_from_slice(&panel[lines * LINE * COLUMNS..kc * COLUMNS]);
        let a = block[lines * rows * LINE..].as_ptr();
        let product = Product { lines: 1, a, b: b.as_ptr(), more: more || lines > 0, ..product };
        // SAFETY: as above.
        unsafe { multiply(kind, &product) };
    }
    false
}

/// See [`super::scalar::bf16`]; in another order of sums, see [`Kind::Bf16`].
///
/// # Safety
/// The level must be in use.
pub(super) unsafe fn bf16(
    size: (usize, usize, usize),
    operands: (&[f32], &[f32]),
    sums: &mut [f32],
    more: bool,
    _: &Soon,
    last: Option<&Tile>,
) -> bool {
    // SAFETY: the caller's promise.
    unsafe { product(Kind::Bf16, size, operands, sums, more, last) }
}

/// See [`super::scalar::int8`].
///
/// # Safety
/// The level must be in use.
pub(super) unsafe fn int8(
    size: (usize, usize, usize),
    operands: (&[f32], &[f32]),
    sums: &mut [f32],
    more: bool,
    _: &Soon,
    last: Option<&Tile>,
) -> bool {
    // SAFETY: the caller's promise.
    unsafe { product(Kind::Int8, size, operands, sums, more, last) }
}
