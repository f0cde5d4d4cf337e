//! The accurate integer inverse cosine transform of libjpeg (`jidctint.c`), after Loeffler, Ligtenberg and Moschytz
//! (ICASSP 1989).

const PASS1_BITS: i32 = 2;
const BITS: i32 = 13;

const F0_298631336: i32 = 2446;
const F0_390180644: i32 = 3196;
const F0_541196100: i32 = 4433;
const F0_765366865: i32 = 6270;
const F0_899976223: i32 = 7373;
const F1_175875602: i32 = 9633;
const F1_501321110: i32 = 12299;
const F1_847759065: i32 = 15137;
const F1_961570560: i32 = 16069;
const F2_053119869: i32 = 16819;
const F2_562915447: i32 = 20995;
const F3_072711026: i32 = 25172;

/// Eight values, one way; wrapping, since damaged files hold anything.
fn eight(v: [i32; 8], shift: i32) -> [i32; 8] {
    let mul = i32::wrapping_mul;
    let add = i32::wrapping_add;
    let sub = i32::wrapping_sub;
    let z1 = mul(add(v[2], v[6]), F0_541196100);
    let t2 = sub(z1, mul(v[6], F1_847759065));
    let t3 = add(z1, mul(v[2], F0_765366865));
    let t0 = add(v[0], v[4]).wrapping_shl(BITS as u32);
    let t1 = sub(v[0], v[4]).wrapping_shl(BITS as u32);
    let even = [add(t0, t3), add(t1, t2), sub(t1, t2), sub(t0, t3)];

    let (z1, z2) = (add(v[7], v[1]), add(v[5], v[3]));
    let (z3, z4) = (add(v[7], v[3]), add(v[5], v[1]));
    let z5 = mul(add(z3, z4), F1_175875602);
    let (z1, z2) = (mul(z1, -F0_899976223), mul(z2, -F2_562915447));
    let (z3, z4) = (add(mul(z3, -F1_961570560), z5), add(mul(z4, -F0_390180644), z5));
    let odd = [
        add(mul(v[1], F1_501321110), add(z1, z4)),
        add(mul(v[3], F3_072711026), add(z2, z3)),
        add(mul(v[5], F2_053119869), add(z2, z4)),
        add(mul(v[7], F0_298631336), add(z1, z3)),
    ];
    let mut out = [0; 8];
    for i in 0..4 {
        let round = 1 << (shift - 1);
        out[i] = add(add(even[i], odd[i]), round) >> shift;
        out[7 - i] = add(sub(even[i], odd[i]), round) >> shift;
    }
    out
}

/// Dequantises and transforms one block; `out` begins at its upper left sample.
pub(super) fn block(values: &[i16; 64], table: &[u16; 64], out: &mut [u8], stride: usize) {
    let mut work = [0i32; 64];
    for x in 0..8 {
        let mut column = [0; 8];
        for (y, c) in column.iter_mut().enumerate() {
            *c = values[y * 8 + x] as i32 * table[y * 8 + x] as i32;
        }
        if column[1..] == [0; 7] {
            for y in 0..8 {
                work[y * 8 + x] = column[0].wrapping_shl(PASS1_BITS as u32);
            }
            continue;
        }
        for (y, v) in eight(column, BITS - PASS1_BITS).into_iter().enumerate() {
            work[y * 8 + x] = v;
        }
    }
    for (y, row) in work.as_chunks::<8>().0.iter().enumerate() {
        let line = &mut out[y * stride..y * stride + 8];
        for (o, v) in line.iter_mut().zip(eight(*row, BITS + PASS1_BITS + 3)) {
            *o = v.wrapping_add(128).clamp(0, 255) as u8;
        }
    }
}
