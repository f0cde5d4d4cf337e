//! NEON: vectors of eight, two registers each, so that a tile of 6 × 16 sums fills the registers as with AVX2.

use crate::lanes::Lanes;
use crate::level::Level;
use crate::words::Words;
use std::arch::aarch64::*;

/// Eight f32. Every 64-bit ARM processor has NEON: the functions below are safe to call on any.
#[derive(Clone, Copy)]
pub(crate) struct Neon([float32x4_t; 2]);

impl Neon {
    #[inline(always)]
    fn each(self, of: impl Fn(float32x4_t) -> float32x4_t) -> Self {
        Neon([of(self.0[0]), of(self.0[1])])
    }

    #[inline(always)]
    fn with(self, other: Self, of: impl Fn(float32x4_t, float32x4_t) -> float32x4_t) -> Self {
        Neon([of(self.0[0], other.0[0]), of(self.0[1], other.0[1])])
    }

    #[inline(always)]
    fn with_two(
        self,
        a: Self,
        b: Self,
        of: impl Fn(float32x4_t, float32x4_t, float32x4_t) -> float32x4_t,
    ) -> Self {
        Neon([of(self.0[0], a.0[0], b.0[0]), of(self.0[1], a.0[1], b.0[1])])
    }
}

/// A closure of intrinsics.
macro_rules! neon {
    (|$($x:ident),+| $body:expr) => {
        // SAFETY: every 64-bit ARM processor has NEON.
        #[inline(always)]
        |$($x),+| unsafe { $body }
    };
}

impl Lanes for Neon {
    const WIDTH: usize = 8;
    const LEVEL: Level = Level::Neon;

    #[inline(always)]
    unsafe fn splat(v: f32) -> Self {
        // SAFETY: as above.
        unsafe { Neon([vdupq_n_f32(v); 2]) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: the caller's promise.
        unsafe { Neon([vld1q_f32(p), vld1q_f32(p.add(4))]) }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe {
            vst1q_f32(p, self.0[0]);
            vst1q_f32(p.add(4), self.0[1]);
        }
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        self.with(other, neon!(|a, b| vaddq_f32(a, b)))
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        self.with(other, neon!(|a, b| vsubq_f32(a, b)))
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        self.with(other, neon!(|a, b| vmulq_f32(a, b)))
    }
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        self.with(other, neon!(|a, b| vdivq_f32(a, b)))
    }
    /// The second where one is not a number, as on x86.
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        self.with(other, neon!(|a, b| vbslq_f32(vcgtq_f32(a, b), a, b)))
    }
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        self.with(other, neon!(|a, b| vbslq_f32(vcltq_f32(a, b), a, b)))
    }
    #[inline(always)]
    fn mul_add(self, factor: Self, addend: Self) -> Self {
        self.with_two(factor, addend, neon!(|x, f, a| vfmaq_f32(a, x, f)))
    }
    #[inline(always)]
    fn neg_mul_add(self, factor: Self, addend: Self) -> Self {
        self.with_two(factor, addend, neon!(|x, f, a| vfmsq_f32(a, x, f)))
    }
    #[inline(always)]
    fn scale_by_power(self, magic: Self) -> Self {
        self.with(
            magic,
            neon!(|x, m| {
                let power = vshlq_n_s32::<23>(vreinterpretq_s32_f32(m));
                vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(x), power))
            }),
        )
    }
    #[inline(always)]
    unsafe fn transpose(from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
        // SAFETY: the caller's promise. Four squares of 4 × 4: pairs of rows, then of pairs.
        unsafe {
            for (r, c) in [(0, 0), (0, 4), (4, 0), (4, 4)] {
                let row = |i: usize| vld1q_f32(from.add((r + i) * from_stride + c));
                let (a, b) = (vtrnq_f32(row(0), row(1)), vtrnq_f32(row(2), row(3)));
                let wide = |v| vreinterpretq_f64_f32(v);
                let put = |i: usize, v| vst1q_f32(to.add((c + i) * to_stride + r), vreinterpretq_f32_f64(v));
                put(0, vtrn1q_f64(wide(a.0), wide(b.0)));
                put(1, vtrn1q_f64(wide(a.1), wide(b.1)));
                put(2, vtrn2q_f64(wide(a.0), wide(b.0)));
                put(3, vtrn2q_f64(wide(a.1), wide(b.1)));
            }
        }
    }
}

/// The bits of other kinds.
#[inline(always)]
fn s32(v: float32x4_t) -> int32x4_t {
    // SAFETY: as above.
    unsafe { vreinterpretq_s32_f32(v) }
}

#[inline(always)]
fn u32(v: float32x4_t) -> uint32x4_t {
    // SAFETY: as above.
    unsafe { vreinterpretq_u32_f32(v) }
}

#[inline(always)]
fn s16(v: float32x4_t) -> int16x8_t {
    // SAFETY: as above.
    unsafe { vreinterpretq_s16_f32(v) }
}

/// Two products of bf16 in each word, the upper one first.
#[inline(always)]
pub(crate) fn dot_bf16(sum: float32x4_t, a: float32x4_t, b: float32x4_t) -> float32x4_t {
    // SAFETY: as above.
    unsafe {
        let high = |v| vreinterpretq_f32_u32(vandq_u32(u32(v), vdupq_n_u32(0xffff_0000)));
        let low = |v| vreinterpretq_f32_u32(vshlq_n_u32::<16>(u32(v)));
        vfmaq_f32(vfmaq_f32(sum, high(a), high(b)), low(a), low(b))
    }
}

/// Four products of unsigned by signed bytes in each word, summed as i32.
#[inline(always)]
pub(crate) fn dot_u8(sum: float32x4_t, a: float32x4_t, b: float32x4_t) -> float32x4_t {
    // SAFETY: as above.
    unsafe {
        let (a, b) = (vreinterpretq_u8_f32(a), vreinterpretq_s8_f32(b));
        let (a0, a1) = (vmovl_u8(vget_low_u8(a)), vmovl_high_u8(a));
        let (a0, a1) = (vreinterpretq_s16_u16(a0), vreinterpretq_s16_u16(a1));
        let (b0, b1) = (vmovl_s8(vget_low_s8(b)), vmovl_high_s8(b));
        // Each has the products of one word.
        let low = vpaddq_s32(vmull_s16(vget_low_s16(a0), vget_low_s16(b0)), vmull_high_s16(a0, b0));
        let high = vpaddq_s32(vmull_s16(vget_low_s16(a1), vget_low_s16(b1)), vmull_high_s16(a1, b1));
        vreinterpretq_f32_s32(vaddq_s32(s32(sum), vpaddq_s32(low, high)))
    }
}

/// Rounds to whole numbers, ties to even.
#[inline(always)]
fn whole(v: float32x4_t) -> uint32x4_t {
    // SAFETY: as above.
    unsafe { vreinterpretq_u32_s32(vcvtnq_s32_f32(v)) }
}

impl Words for Neon {
    #[inline(always)]
    fn dot_bf16(self, a: Self, b: Self) -> Self {
        self.with_two(a, b, dot_bf16)
    }
    #[inline(always)]
    fn dot_i16(self, a: Self, b: Self) -> Self {
        self.with_two(
            a,
            b,
            neon!(|sum, a, b| {
                // The lower and the upper halves of the words.
                let (a, b) = (s16(a), s16(b));
                let low = |v| vget_low_s16(vuzp1q_s16(v, v));
                let high = |v| vget_low_s16(vuzp2q_s16(v, v));
                let sum = vmlal_s16(s32(sum), low(a), low(b));
                vreinterpretq_f32_s32(vmlal_s16(sum, high(a), high(b)))
            }),
        )
    }
    #[inline(always)]
    fn dot_u8(self, a: Self, b: Self) -> Self {
        self.with_two(a, b, dot_u8)
    }
    #[inline(always)]
    fn quad_u8(self, second: Self, third: Self, highest: Self) -> Self {
        let low = self.with(
            second,
            neon!(|a, b| vreinterpretq_f32_u32(vorrq_u32(whole(a), vshlq_n_u32::<8>(whole(b))))),
        );
        let high = third.with(
            highest,
            neon!(|a, b| {
                let (a, b) = (vshlq_n_u32::<16>(whole(a)), vshlq_n_u32::<24>(whole(b)));
                vreinterpretq_f32_u32(vorrq_u32(a, b))
            }),
        );
        low.with(high, neon!(|a, b| vreinterpretq_f32_u32(vorrq_u32(u32(a), u32(b)))))
    }
    #[inline(always)]
    fn pair_bf16(self, high: Self) -> Self {
        self.with(
            high,
            neon!(|low, high| {
                let rounded = |v| vaddq_u32(u32(v), vdupq_n_u32(0x8000));
                // The upper half of one beside the other's.
                vreinterpretq_f32_u32(vsriq_n_u32::<16>(rounded(high), rounded(low)))
            }),
        )
    }
    #[inline(always)]
    fn pair_i16(self, high: Self) -> Self {
        self.with(high, neon!(|low, high| vreinterpretq_f32_u32(vsliq_n_u32::<16>(whole(low), whole(high)))))
    }
    #[inline(always)]
    fn sub_whole(self, other: Self) -> Self {
        self.with(other, neon!(|a, b| vreinterpretq_f32_s32(vsubq_s32(s32(a), s32(b)))))
    }
    #[inline(always)]
    fn whole_to_f32(self) -> Self {
        self.each(neon!(|v| vcvtq_f32_s32(s32(v))))
    }
    #[inline(always)]
    fn add_i16(self, other: Self) -> Self {
        self.with(other, neon!(|a, b| vreinterpretq_f32_s16(vaddq_s16(s16(a), s16(b)))))
    }
    #[inline(always)]
    fn sub_i16(self, other: Self) -> Self {
        self.with(other, neon!(|a, b| vreinterpretq_f32_s16(vsubq_s16(s16(a), s16(b)))))
    }
    /// -2¹⁵ by itself becomes 2¹⁵ - 1, elsewhere -2¹⁵; no filter has it.
    #[inline(always)]
    fn mul_i16(self, other: Self) -> Self {
        self.with(other, neon!(|a, b| vreinterpretq_f32_s16(vqrdmulhq_s16(s16(a), s16(b)))))
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const i8) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            let bytes = vld1q_s8(p);
            Neon(
                [vshll_n_s8::<3>(vget_low_s8(bytes)), vshll_high_n_s8::<3>(bytes)]
                    .map(|v| vreinterpretq_f32_s16(v)),
            )
        }
    }
    #[inline(always)]
    fn abs(self) -> Self {
        self.each(neon!(|v| vabsq_f32(v)))
    }
    #[inline(always)]
    fn pick(self, of: &[f32; 16]) -> Self {
        let mut out = self;
        for v in &mut out.0 {
            // SAFETY: the level was detected; the values are 64 bytes.
            *v = unsafe {
                let of = vld1q_u8_x4(of.as_ptr().cast());
                // The four bytes of each value: four times its number, and which of them.
                let first = vandq_u32(vshlq_n_u32::<2>(u32(*v)), vdupq_n_u32(60));
                let bytes = vmlaq_n_u32(vdupq_n_u32(0x0302_0100), first, 0x0101_0101);
                vreinterpretq_f32_u8(vqtbl4q_u8(of, vreinterpretq_u8_u32(bytes)))
            };
        }
        out
    }
    #[inline(always)]
    unsafe fn store_i16(self, p: *mut i16) {
        // SAFETY: the caller's promise.
        unsafe {
            let [low, high] = self.0.map(|v| vmovn_s32(vcvtnq_s32_f32(v)));
            vst1q_s16(p, vcombine_s16(low, high));
        }
    }
}
