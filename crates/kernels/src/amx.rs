//! AMX: products of tiles in registers of 16 rows of 64 bytes (Intel, Software Developer's Manual, volume 1, chapter 18; volume 2,
//! TILELOADD to TDPBF16PS). Inline assembly, for Rust's functions for it are not stable.
//!
//! A thread configures the registers before it multiplies and gives them back at the end of its task ([`Session`]): a thread
//! that sleeps with tiles in use costs the system 8 KB each time it is switched.

use crate::level;
use std::arch::asm;
use std::cell::Cell;

/// Rows of a register, and 32-bit words of a row.
pub(crate) const SIDE: usize = 16;
/// Rows of the sums of one product, at most: two registers.
pub(crate) const ROWS: usize = level::AMX_ROWS;
const _: () = assert!(ROWS == 2 * SIDE);
/// Their columns: two registers.
pub(crate) const COLUMNS: usize = 2 * SIDE;

/// What the words hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Two bf16, the first in the lower half; sums are f32. Of [`SIDE`] words at a time the products of the lower and those of
    /// the upper halves are summed apart, then both together are added. What is below the normal range is taken as zero.
    Bf16,
    /// Four bytes, of A unsigned, of B signed; sums are exact, the bits of i32.
    Int8,
}

/// `c[rows, 32] (+)= a[rows, 16 · lines] · b[16 · lines, 32]`, of words.
#[derive(Clone, Copy)]
pub(crate) struct Product {
    /// 1 to [`ROWS`].
    pub rows: usize,
    /// Times 16 words of the shared dimension.
    pub lines: usize,
    /// Row r's words of line l are at `a + r · a_row + l · a_line`.
    pub a: *const f32,
    pub a_row: usize,
    pub a_line: usize,
    /// Rows of 32 words, one after the other.
    pub b: *const f32,
    pub c: *mut f32,
    /// Adds to what `c` holds.
    pub more: bool,
}

thread_local! {
    /// Rows for which this thread's registers are configured; 0 if they are not.
    static CONFIGURED: Cell<usize> = const { Cell::new(0) };
}

/// At its end its thread's registers are given back. It must end where it began.
pub(crate) struct Session(std::marker::PhantomData<*const ()>);

impl Session {
    pub fn begin() -> Self {
        Session(std::marker::PhantomData)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if CONFIGURED.replace(0) != 0 && !level::emulated() {
            // SAFETY: they were configured, so the instruction exists.
            unsafe { asm!("tilerelease", options(nomem, nostack, preserves_flags)) };
        }
    }
}

/// What LDTILECFG reads: palette 1, then for each register the bytes of a row and the rows.
#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// Configures this thread's registers for products of so many rows: sums in 0 to 3, A in 4 and 5, B in 6 and 7.
///
/// # Safety
/// The machine must have AMX, and this process the permission.
unsafe fn configure(rows: usize) {
    let (first, second) = (rows.min(SIDE) as u8, rows.saturating_sub(SIDE) as u8);
    let mut to =
        Configuration { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
    for (register, rows) in [first, first, second, second, first, second, 16, 16].into_iter().enumerate() {
        if rows > 0 {
            to.row_bytes[register] = 64;
            to.rows[register] = rows;
        }
    }
    // SAFETY: the caller's promise; the sizes are within palette 1's (16 rows of 64 bytes).
    unsafe {
        asm!("ldtilecfg [{}]", in(reg) &to, options(nostack, readonly, preserves_flags),
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _);
    }
    CONFIGURED.set(rows);
}

/// A product of at most sixteen rows in registers, or with what the others need beside.
macro_rules! multiply {
    ($product:expr, $dot:literal, [$($load:literal)*], [$($zero:literal)*], [$($words:expr),*], [$($store:literal)*]) => {{
        let p: &Product = $product;
        asm!(
            "test {more}, {more}",
            "jz 2f",
            "tileloadd tmm0, [{c} + {wide}*1]",
            "tileloadd tmm1, [{c} + {wide}*1 + 64]",
            $($load,)*
            "jmp 3f",
            "2:",
            "tilezero tmm0",
            "tilezero tmm1",
            $($zero,)*
            "3:",
            "tileloadd tmm4, [{a} + {row}*1]",
            "tileloadd tmm6, [{b} + {wide}*1]",
            concat!($dot, " tmm0, tmm4, tmm6"),
            "tileloadd tmm7, [{b} + {wide}*1 + 64]",
            concat!($dot, " tmm1, tmm4, tmm7"),
            $($words,)*
            "add {a}, {line}",
            "add {a2}, {line}",
            "add {b}, 2048",
            "dec {lines}",
            "jnz 3b",
            "tilestored [{c} + {wide}*1], tmm0",
            "tilestored [{c} + {wide}*1 + 64], tmm1",
            $($store,)*
            more = in(reg) p.more as usize,
            a = inout(reg) p.a => _,
            a2 = inout(reg) p.a.wrapping_add(SIDE * p.a_row) => _,
            row = in(reg) p.a_row * 4,
            line = in(reg) p.a_line * 4,
            b = inout(reg) p.b => _,
            wide = in(reg) COLUMNS * 4,
            c = in(reg) p.c,
            lines = inout(reg) p.lines => _,
            options(nostack),
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
        )
    }};
    ($product:expr, $dot:literal) => {
        if $product.rows <= SIDE {
            multiply!($product, $dot, [], [], [], [])
        } else {
            multiply!(
                $product,
                $dot,
                ["tileloadd tmm2, [{c} + {wide}*1 + 2048]" "tileloadd tmm3, [{c} + {wide}*1 + 2112]"],
                ["tilezero tmm2" "tilezero tmm3"],
                [
                    "tileloadd tmm5, [{a2} + {row}*1]",
                    concat!($dot, " tmm2, tmm5, tmm6"),
                    concat!($dot, " tmm3, tmm5, tmm7")
                ],
                ["tilestored [{c} + {wide}*1 + 2048], tmm2" "tilestored [{c} + {wide}*1 + 2112], tmm3"]
            )
        }
    };
}

/// Multiplies.
///
/// # Safety
/// [`level::amx`] must have said yes. All that the product reads must be, the lines of B whole
/// and of A in every row; what it writes must be there and the caller's alone.
pub(crate) unsafe fn multiply(kind: Kind, product: &Product) {
    assert!((1..=ROWS).contains(&product.rows));
    if product.lines == 0 {
        return;
    }
    // SAFETY: the caller's promises; more than `rows` rows are neither read nor written, for the registers have no more.
    unsafe {
        if level::emulated() {
            return emulate(kind, product);
        }
        if CONFIGURED.get() != product.rows {
            configure(product.rows);
        }
        match kind {
            Kind::Bf16 => multiply!(product, "tdpbf16ps"),
            Kind::Int8 => multiply!(product, "tdpbusd"),
        }
    }
}

/// The same in plain code: the specification, as the manual has it (TDPBF16PS, TDPBUSD).
///
/// # Safety
/// As [`multiply`], but for the machine.
unsafe fn emulate(kind: Kind, p: &Product) {
    let half = |w: u32, upper: bool| f32::from_bits(if upper { w & 0xffff_0000 } else { w << 16 });
    for r in 0..p.rows {
        for c in 0..COLUMNS {
            // SAFETY: the caller's promises.
            unsafe {
                let to = p.c.add(r * COLUMNS + c);
                let mut sum = if p.more { to.read().to_bits() } else { 0 };
                for l in 0..p.lines {
                    let word = |w: usize| {
                        let a = p.a.add(r * p.a_row + l * p.a_line + w).read().to_bits();
                        let b = p.b.add((l * SIDE + w) * COLUMNS + c).read().to_bits();
                        (a, b)
                    };
                    match kind {
                        Kind::Bf16 => {
                            let mut parts = [0f32; 2];
                            for (a, b) in (0..SIDE).map(word) {
                                for (upper, part) in [false, true].into_iter().zip(&mut parts) {
                                    *part = half(a, upper).mul_add(half(b, upper), *part);
                                }
                            }
                            sum = (f32::from_bits(sum) + (parts[0] + parts[1])).to_bits();
                        }
                        Kind::Int8 => {
                            for (a, b) in (0..SIDE).map(word) {
                                let (a, b) = (a.to_le_bytes(), b.to_le_bytes());
                                let dot: i32 =
                                    a.iter().zip(b).map(|(a, b)| *a as i32 * (b as i8) as i32).sum();
                                sum = (sum as i32).wrapping_add(dot) as u32;
                            }
                        }
                    }
                }
                to.write(f32::from_bits(sum));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gemm::tests::{each_level, noise};

    /// Words that are bytes, or two bf16.
    fn words(kind: Kind, n: usize, seed: u64) -> Vec<f32> {
        let values = noise(4 * n, seed);
        let word = |v: &[f32]| match kind {
            Kind::Bf16 => {
                let [low, high] = [v[0], v[1]].map(|v| half::bf16::from_f32(v).to_bits() as u32);
                low | high << 16
            }
            Kind::Int8 => u32::from_le_bytes([v[0], v[1], v[2], v[3]].map(|v| (v * 127.0) as i8 as u8)),
        };
        values.chunks_exact(4).map(|v| f32::from_bits(word(v))).collect()
    }

    #[test]
    fn the_instructions_do_what_the_manual_says() {
        each_level(|name| {
            if !level::amx() || level::emulated() {
                println!("ignored: no AMX at {name}");
                return;
            }
            for (i, (rows, lines)) in
                [(1, 1), (16, 3), (17, 2), (31, 1), (32, 12), (5, 7)].into_iter().enumerate()
            {
                for kind in [Kind::Bf16, Kind::Int8] {
                    let a = words(kind, rows * lines * SIDE, i as u64);
                    let b = words(kind, lines * SIDE * COLUMNS, 7);
                    // Rows after one another, and lines of all rows after one another.
                    for (a_row, a_line) in [(lines * SIDE, SIDE), (SIDE, rows * SIDE)] {
                        let mut got = noise(rows * COLUMNS + 1, 9);
                        let mut want = got.clone();
                        for more in [false, true] {
                            let product = |c: &mut [f32]| Product {
                                rows,
                                lines,
                                a: a.as_ptr(),
                                a_row,
                                a_line,
                                b: b.as_ptr(),
                                c: c.as_mut_ptr(),
                                more,
                            };
                            // SAFETY: all is there.
                            unsafe {
                                let _session = Session::begin();
                                multiply(kind, &product(&mut got));
                                emulate(kind, &product(&mut want));
                            }
                            let bits = |v: &[f32]| v.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
                            assert_eq!(bits(&got), bits(&want), "{kind:?} {rows} {lines} {more}");
                        }
                    }
                }
            }
        });
    }

    #[test]
    fn the_specification_equals_f64() {
        let (rows, lines) = (19, 5);
        for kind in [Kind::Bf16, Kind::Int8] {
            let (a, b) = (words(kind, rows * lines * SIDE, 1), words(kind, lines * SIDE * COLUMNS, 2));
            let mut got = vec![0f32; rows * COLUMNS];
            let (c, a_row) = (got.as_mut_ptr(), lines * SIDE);
            let product =
                Product { rows, lines, a: a.as_ptr(), a_row, a_line: SIDE, b: b.as_ptr(), c, more: false };
            // SAFETY: all is there.
            unsafe { emulate(kind, &product) };
            let values = |w: f32, signed: bool| -> Vec<f64> {
                let bytes = w.to_le_bytes();
                match kind {
                    Kind::Bf16 => {
                        let of = |i| half::bf16::from_le_bytes([bytes[i], bytes[i + 1]]).to_f64();
                        vec![of(0), of(2)]
                    }
                    Kind::Int8 => bytes.map(|b| if signed { b as i8 as f64 } else { b as f64 }).to_vec(),
                }
            };
            for (i, got) in got.iter().enumerate() {
                let (r, c) = (i / COLUMNS, i % COLUMNS);
                let (mut want, mut size) = (0f64, 0f64);
                for w in 0..lines * SIDE {
                    let (a, b) = (values(a[r * a_row + w], false), values(b[w * COLUMNS + c], true));
                    for (a, b) in a.iter().zip(b) {
                        want += a * b;
                        size += (a * b).abs();
                    }
                }
                match kind {
                    Kind::Bf16 => assert!((*got as f64 - want).abs() <= 1e-6 * size, "{got} {want}"),
                    Kind::Int8 => assert_eq!(got.to_bits() as i32 as f64, want),
                }
            }
        }
    }
}
