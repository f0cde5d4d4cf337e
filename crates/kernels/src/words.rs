//! Vectors of 32-bit words that hold narrow numbers: two bf16, two i16 or four bytes each. The first is lowest.

use crate::lanes::{Lanes, Portable, ROUND};

/// What products of narrow numbers need beside [`Lanes`]. Words travel as the f32 that has their bits.
pub(crate) trait Words: Lanes {
    /// `self + Σ a · b` over the two bf16 of each word, the upper product first, each rounded once (what `vdpbf16ps`
    /// does, which also takes numbers below the normal range as zero).
    fn dot_bf16(self, a: Self, b: Self) -> Self;
    /// `self + Σ a · b` over the two i16 of each word, exactly; `self` and the result are the bits of i32.
    fn dot_i16(self, a: Self, b: Self) -> Self;
    /// `self + Σ a · b` over the four bytes of each word, `a`'s unsigned and `b`'s signed, exactly; `self` and the result are
    /// the bits of i32.
    fn dot_u8(self, a: Self, b: Self) -> Self;
    /// Rounds to the nearest whole numbers, ties to even, which must be 0 to 255: `self` becomes the lowest byte of each word.
    fn quad_u8(self, second: Self, third: Self, highest: Self) -> Self;
    /// Rounds to the nearest bf16, ties away from zero: `self` becomes the lower half of each word.
    fn pair_bf16(self, high: Self) -> Self;
    /// Rounds to the nearest whole number, ties to even, which must fit into i16: `self` becomes the lower half of each word.
    fn pair_i16(self, high: Self) -> Self;
    /// The difference of the bits of i32.
    fn sub_whole(self, other: Self) -> Self;
    /// From the bits of i32 to the nearest f32.
    fn whole_to_f32(self) -> Self;
    /// `self · factor + addend`, rounded once at every level.
    #[inline(always)]
    fn mul_add_once(self, factor: Self, addend: Self) -> Self {
        self.mul_add(factor, addend)
    }
    /// Sums of the two i16 of each word, wrapping around.
    fn add_i16(self, other: Self) -> Self;
    /// Differences of the two i16 of each word, wrapping around.
    fn sub_i16(self, other: Self) -> Self;
    /// Products of the two i16 of each word, rounded to whole multiples of 2¹⁵, ties up: those multiples.
    fn mul_i16(self, other: Self) -> Self;
    /// Bytes, times 8, as words of two i16.
    ///
    /// # Safety
    /// As [`Lanes::splat`], and twice [`Lanes::WIDTH`] bytes must be readable.
    unsafe fn load_i8(p: *const i8) -> Self;
    /// Magnitudes.
    fn abs(self) -> Self;
    /// The values that the lowest four bits of each word count.
    fn pick(self, of: &[f32; 16]) -> Self;
    /// Rounds to the nearest whole numbers, ties to even, which must fit into i16, and writes them one after the other.
    ///
    /// # Safety
    /// [`Lanes::WIDTH`] values must be writable.
    unsafe fn store_i16(self, p: *mut i16);
}

/// Added to the bits of an f32 it rounds what is cut off with the lower half.
const HALF: u32 = 0x8000;
/// The upper half of a word.
const UPPER: u32 = 0xffff_0000;

/// One word of two bf16: [`Words::pair_bf16`] of single values.
#[inline(always)]
pub(crate) fn word_bf16(low: f32, high: f32) -> f32 {
    let (low, high) = (low.to_bits().wrapping_add(HALF), high.to_bits().wrapping_add(HALF));
    f32::from_bits(low >> 16 | high & UPPER)
}

/// One word of two i16.
#[inline(always)]
fn word_i16(low: i16, high: i16) -> f32 {
    f32::from_bits(low as u16 as u32 | (high as u16 as u32) << 16)
}

/// A function of each i16.
#[inline(always)]
fn halves(a: Portable, b: Portable, of: impl Fn(i16, i16) -> i16) -> Portable {
    let mut out = a;
    for (o, b) in out.0.iter_mut().zip(b.0) {
        let (a, b) = (o.to_bits(), b.to_bits());
        *o = word_i16(of(a as i16, b as i16), of((a >> 16) as i16, (b >> 16) as i16));
    }
    out
}

impl Words for Portable {
    #[inline(always)]
    fn dot_bf16(self, a: Self, b: Self) -> Self {
        let mut out = self;
        for (o, (a, b)) in out.0.iter_mut().zip(a.0.iter().zip(b.0)) {
            let (a, b) = (a.to_bits(), b.to_bits());
            // A product of two bf16 is exact in f32.
            *o += f32::from_bits(a & UPPER) * f32::from_bits(b & UPPER);
            *o += f32::from_bits(a << 16) * f32::from_bits(b << 16);
        }
        out
    }
    #[inline(always)]
    fn dot_i16(self, a: Self, b: Self) -> Self {
        let mut out = self;
        for (o, (a, b)) in out.0.iter_mut().zip(a.0.iter().zip(b.0)) {
            let (a, b) = (a.to_bits() as i32, b.to_bits() as i32);
            let low = (a as i16 as i32) * (b as i16 as i32);
            *o = f32::from_bits((o.to_bits() as i32).wrapping_add(low + (a >> 16) * (b >> 16)) as u32);
        }
        out
    }
    #[inline(always)]
    fn dot_u8(self, a: Self, b: Self) -> Self {
        let mut out = self;
        for (o, (a, b)) in out.0.iter_mut().zip(a.0.iter().zip(b.0)) {
            let (a, b) = (a.to_bits(), b.to_bits());
            let mut sum = o.to_bits() as i32;
            for i in 0..4 {
                sum = sum.wrapping_add((a >> (8 * i)) as u8 as i32 * ((b >> (8 * i)) as i8 as i32));
            }
            *o = f32::from_bits(sum as u32);
        }
        out
    }
    #[inline(always)]
    fn quad_u8(self, second: Self, third: Self, highest: Self) -> Self {
        let mut out = self;
        for (i, o) in out.0.iter_mut().enumerate() {
            // Adding this leaves the whole number in the low bits.
            let byte = |v: f32| (v + ROUND).to_bits() & 0xff;
            let low = byte(*o) | byte(second.0[i]) << 8;
            *o = f32::from_bits(low | byte(third.0[i]) << 16 | byte(highest.0[i]) << 24);
        }
        out
    }
    #[inline(always)]
    fn pair_bf16(self, high: Self) -> Self {
        let mut out = self;
        for (o, high) in out.0.iter_mut().zip(high.0) {
            *o = word_bf16(*o, high);
        }
        out
    }
    #[inline(always)]
    fn pair_i16(self, high: Self) -> Self {
        let mut out = self;
        for (o, high) in out.0.iter_mut().zip(high.0) {
            let (low, high) = (o.round_ties_even() as i16, high.round_ties_even() as i16);
            *o = word_i16(low, high);
        }
        out
    }
    #[inline(always)]
    fn sub_whole(self, other: Self) -> Self {
        let mut out = self;
        for (o, v) in out.0.iter_mut().zip(other.0) {
            *o = f32::from_bits(o.to_bits().wrapping_sub(v.to_bits()));
        }
        out
    }
    #[inline(always)]
    fn whole_to_f32(self) -> Self {
        let mut out = self;
        for o in &mut out.0 {
            *o = o.to_bits() as i32 as f32;
        }
        out
    }
    #[inline(always)]
    fn mul_add_once(self, factor: Self, addend: Self) -> Self {
        let mut out = self;
        for ((o, f), a) in out.0.iter_mut().zip(factor.0).zip(addend.0) {
            *o = o.mul_add(f, a);
        }
        out
    }
    #[inline(always)]
    fn add_i16(self, other: Self) -> Self {
        halves(self, other, i16::wrapping_add)
    }
    #[inline(always)]
    fn sub_i16(self, other: Self) -> Self {
        halves(self, other, i16::wrapping_sub)
    }
    #[inline(always)]
    fn mul_i16(self, other: Self) -> Self {
        halves(self, other, |a, b| ((a as i32 * b as i32 + (1 << 14)) >> 15) as i16)
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const i8) -> Self {
        // SAFETY: the caller's promise.
        let bytes = unsafe { p.cast::<[[i8; 2]; 8]>().read() };
        Portable(bytes.map(|[low, high]| word_i16(8 * low as i16, 8 * high as i16)))
    }
    #[inline(always)]
    fn abs(self) -> Self {
        let mut out = self;
        for o in &mut out.0 {
            *o = o.abs();
        }
        out
    }
    #[inline(always)]
    fn pick(self, of: &[f32; 16]) -> Self {
        let mut out = self;
        for o in &mut out.0 {
            *o = of[(o.to_bits() & 15) as usize];
        }
        out
    }
    #[inline(always)]
    unsafe fn store_i16(self, p: *mut i16) {
        for (i, v) in self.0.iter().enumerate() {
            // SAFETY: the caller's promise.
            unsafe { p.add(i).write(v.round_ties_even() as i16) };
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{HALF, UPPER, Words};
    use crate::lanes::{Avx2, Avx512};
    use std::arch::x86_64::*;

    /// What the two share, by the names of their instructions.
    macro_rules! common {
        ($from:ident $to:ident $set:ident $add:ident $sub:ident $and:ident $or:ident $shift:ident $left:ident $whole:ident $wide:ident
            $add_i16:ident $sub_i16:ident $mul_i16:ident) => {
            #[inline(always)]
            fn add_i16(self, other: Self) -> Self {
                // SAFETY: a vector exists, so the machine has the level.
                Self(unsafe { $to($add_i16($from(self.0), $from(other.0))) })
            }
            #[inline(always)]
            fn sub_i16(self, other: Self) -> Self {
                // SAFETY: as above.
                Self(unsafe { $to($sub_i16($from(self.0), $from(other.0))) })
            }
            #[inline(always)]
            fn mul_i16(self, other: Self) -> Self {
                // SAFETY: as above.
                Self(unsafe { $to($mul_i16($from(self.0), $from(other.0))) })
            }
            #[inline(always)]
            fn pair_bf16(self, high: Self) -> Self {
                // SAFETY: a vector exists, so the machine has the level.
                unsafe {
                    let half = $set(HALF as i32);
                    let low = $shift::<16>($add($from(self.0), half));
                    let high = $and($add($from(high.0), half), $set(UPPER as i32));
                    Self($to($or(low, high)))
                }
            }
            #[inline(always)]
            fn pair_i16(self, high: Self) -> Self {
                // SAFETY: as above.
                unsafe {
                    let low = $and($whole(self.0), $set(!UPPER as i32));
                    Self($to($or(low, $left::<16>($whole(high.0)))))
                }
            }
            #[inline(always)]
            fn quad_u8(self, second: Self, third: Self, highest: Self) -> Self {
                // SAFETY: as above.
                unsafe {
                    let low = $or($whole(self.0), $left::<8>($whole(second.0)));
                    let high = $or($left::<16>($whole(third.0)), $left::<24>($whole(highest.0)));
                    Self($to($or(low, high)))
                }
            }
            #[inline(always)]
            fn sub_whole(self, other: Self) -> Self {
                // SAFETY: as above.
                Self(unsafe { $to($sub($from(self.0), $from(other.0))) })
            }
            #[inline(always)]
            fn whole_to_f32(self) -> Self {
                // SAFETY: as above.
                Self(unsafe { $wide($from(self.0)) })
            }
            #[inline(always)]
            fn abs(self) -> Self {
                // SAFETY: as above.
                Self(unsafe { $to($and($from(self.0), $set(i32::MAX))) })
            }
        };
    }

    impl Words for Avx2 {
        common!(_mm256_castps_si256 _mm256_castsi256_ps _mm256_set1_epi32 _mm256_add_epi32 _mm256_sub_epi32 _mm256_and_si256
            _mm256_or_si256 _mm256_srli_epi32 _mm256_slli_epi32 _mm256_cvtps_epi32 _mm256_cvtepi32_ps
            _mm256_add_epi16 _mm256_sub_epi16 _mm256_mulhrs_epi16);

        #[inline(always)]
        fn dot_bf16(self, a: Self, b: Self) -> Self {
            // SAFETY: a vector exists, so the machine has the level.
            unsafe {
                let (a, b) = (_mm256_castps_si256(a.0), _mm256_castps_si256(b.0));
                let upper = _mm256_set1_epi32(UPPER as i32);
                let (ha, hb) = (_mm256_and_si256(a, upper), _mm256_and_si256(b, upper));
                let (la, lb) = (_mm256_slli_epi32::<16>(a), _mm256_slli_epi32::<16>(b));
                let sum = _mm256_fmadd_ps(_mm256_castsi256_ps(ha), _mm256_castsi256_ps(hb), self.0);
                Avx2(_mm256_fmadd_ps(_mm256_castsi256_ps(la), _mm256_castsi256_ps(lb), sum))
            }
        }
        #[inline(always)]
        fn dot_i16(self, a: Self, b: Self) -> Self {
            // SAFETY: as above.
            unsafe {
                let products = _mm256_madd_epi16(_mm256_castps_si256(a.0), _mm256_castps_si256(b.0));
                Avx2(_mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(self.0), products)))
            }
        }
        #[inline(always)]
        fn dot_u8(self, a: Self, b: Self) -> Self {
            // SAFETY: as above. Even and odd bytes as numbers of 16 bits.
            unsafe {
                let (a, b) = (_mm256_castps_si256(a.0), _mm256_castps_si256(b.0));
                let even = _mm256_madd_epi16(
                    _mm256_and_si256(a, _mm256_set1_epi16(0xff)),
                    _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(b)),
                );
                let odd = _mm256_madd_epi16(_mm256_srli_epi16::<8>(a), _mm256_srai_epi16::<8>(b));
                let sum = _mm256_add_epi32(_mm256_castps_si256(self.0), _mm256_add_epi32(even, odd));
                Avx2(_mm256_castsi256_ps(sum))
            }
        }
        #[inline(always)]
        fn pick(self, of: &[f32; 16]) -> Self {
            // SAFETY: as above; there are twice eight values.
            unsafe {
                let at = _mm256_castps_si256(self.0);
                let (low, high) = (_mm256_loadu_ps(of.as_ptr()), _mm256_loadu_ps(of.as_ptr().add(8)));
                let (low, high) = (_mm256_permutevar8x32_ps(low, at), _mm256_permutevar8x32_ps(high, at));
                // By the highest of the four bits.
                Avx2(_mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32::<28>(at))))
            }
        }
        #[inline(always)]
        unsafe fn load_i8(p: *const i8) -> Self {
            // SAFETY: the caller's promises.
            unsafe {
                let wide = _mm256_cvtepi8_epi16(_mm_loadu_si128(p.cast()));
                Avx2(_mm256_castsi256_ps(_mm256_slli_epi16::<3>(wide)))
            }
        }
        #[inline(always)]
        unsafe fn store_i16(self, p: *mut i16) {
            // SAFETY: as above; the caller promises the memory.
            unsafe {
                let whole = _mm256_cvtps_epi32(self.0);
                let (low, high) = (_mm256_castsi256_si128(whole), _mm256_extracti128_si256::<1>(whole));
                _mm_storeu_si128(p.cast(), _mm_packs_epi32(low, high));
            }
        }
    }

    impl<const NARROW: bool> Words for Avx512<NARROW> {
        common!(_mm512_castps_si512 _mm512_castsi512_ps _mm512_set1_epi32 _mm512_add_epi32 _mm512_sub_epi32 _mm512_and_si512
            _mm512_or_si512 _mm512_srli_epi32 _mm512_slli_epi32 _mm512_cvtps_epi32 _mm512_cvtepi32_ps
            _mm512_add_epi16 _mm512_sub_epi16 _mm512_mulhrs_epi16);

        #[inline(always)]
        fn dot_bf16(self, a: Self, b: Self) -> Self {
            // SAFETY: a vector exists, so the machine has the level, and with it the narrow instructions if NARROW.
            unsafe {
                if NARROW {
                    let (a, b) = (
                        std::mem::transmute::<__m512, __m512bh>(a.0),
                        std::mem::transmute::<__m512, __m512bh>(b.0),
                    );
                    return Avx512(_mm512_dpbf16_ps(self.0, a, b));
                }
                let (a, b) = (_mm512_castps_si512(a.0), _mm512_castps_si512(b.0));
                let upper = _mm512_set1_epi32(UPPER as i32);
                let (ha, hb) = (_mm512_and_si512(a, upper), _mm512_and_si512(b, upper));
                let (la, lb) = (_mm512_slli_epi32::<16>(a), _mm512_slli_epi32::<16>(b));
                let sum = _mm512_fmadd_ps(_mm512_castsi512_ps(ha), _mm512_castsi512_ps(hb), self.0);
                Avx512(_mm512_fmadd_ps(_mm512_castsi512_ps(la), _mm512_castsi512_ps(lb), sum))
            }
        }
        #[inline(always)]
        fn dot_i16(self, a: Self, b: Self) -> Self {
            // SAFETY: as above.
            unsafe {
                let (sum, a, b) =
                    (_mm512_castps_si512(self.0), _mm512_castps_si512(a.0), _mm512_castps_si512(b.0));
                let sum = if NARROW {
                    _mm512_dpwssd_epi32(sum, a, b)
                } else {
                    _mm512_add_epi32(sum, _mm512_madd_epi16(a, b))
                };
                Avx512(_mm512_castsi512_ps(sum))
            }
        }
        #[inline(always)]
        fn dot_u8(self, a: Self, b: Self) -> Self {
            // SAFETY: as above.
            unsafe {
                let (sum, a, b) =
                    (_mm512_castps_si512(self.0), _mm512_castps_si512(a.0), _mm512_castps_si512(b.0));
                if NARROW {
                    return Avx512(_mm512_castsi512_ps(_mm512_dpbusd_epi32(sum, a, b)));
                }
                let even = _mm512_madd_epi16(
                    _mm512_and_si512(a, _mm512_set1_epi16(0xff)),
                    _mm512_srai_epi16::<8>(_mm512_slli_epi16::<8>(b)),
                );
                let odd = _mm512_madd_epi16(_mm512_srli_epi16::<8>(a), _mm512_srai_epi16::<8>(b));
                Avx512(_mm512_castsi512_ps(_mm512_add_epi32(sum, _mm512_add_epi32(even, odd))))
            }
        }
        #[inline(always)]
        fn pick(self, of: &[f32; 16]) -> Self {
            // SAFETY: as above.
            Avx512(unsafe {
                _mm512_permutexvar_ps(_mm512_castps_si512(self.0), _mm512_loadu_ps(of.as_ptr()))
            })
        }
        #[inline(always)]
        unsafe fn load_i8(p: *const i8) -> Self {
            // SAFETY: the caller's promises.
            unsafe {
                let wide = _mm512_cvtepi8_epi16(_mm256_loadu_si256(p.cast()));
                Avx512(_mm512_castsi512_ps(_mm512_slli_epi16::<3>(wide)))
            }
        }
        #[inline(always)]
        unsafe fn store_i16(self, p: *mut i16) {
            // SAFETY: as above; the caller promises the memory.
            unsafe { _mm256_storeu_si256(p.cast(), _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(self.0))) };
        }
    }
}

/// As [`crate::lanes::on_lanes`], for functions over [`Words`]: with AVX-512 BF16 and VNNI where the machine has both.
macro_rules! on_words {
    ($(#[$doc:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) = $body:path) => {
        $(#[$doc])*
        #[allow(clippy::too_many_arguments)]
        $vis unsafe fn $name($($arg: $ty),*) {
            use $body as body;
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(
                    enable = "avx512f,avx512vl,avx512bw,avx512dq,avx512bf16,avx512vnni,avx2,fma,f16c"
                )]
                #[allow(clippy::too_many_arguments)]
                unsafe fn narrow($($arg: $ty),*) {
                    // SAFETY: the caller's promises.
                    unsafe { body::<$crate::lanes::Avx512<true>>($($arg),*) }
                }
                if $crate::level::bf16() && $crate::level::vnni() {
                    // SAFETY: the instructions were detected on this machine; the rest the caller promises.
                    return unsafe { narrow($($arg),*) };
                }
            }
            $crate::lanes::on_lanes! {
                /// # Safety
                /// As the whole.
                fn plain($($arg: $ty),*) = body
            }
            // SAFETY: the caller's promises.
            unsafe { plain($($arg),*) }
        }
    };
}
pub(crate) use on_words;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gemm::tests::{at_every_level, noise};

    on_words! {
        /// # Safety
        /// Slices of 16.
        fn all(a: &[f32], b: &[f32], c: &[f32], out: &mut [[f32; 16]; 12], whole: &mut [i16; 16]) = all_on
    }

    #[inline(always)]
    unsafe fn all_on<V: Words>(
        a: &[f32],
        b: &[f32],
        c: &[f32],
        out: &mut [[f32; 16]; 12],
        whole: &mut [i16; 16],
    ) {
        for i in (0..16).step_by(V::WIDTH) {
            // SAFETY: 16 is a multiple of every width.
            unsafe {
                let (a, b, c) =
                    (V::load(a[i..].as_ptr()), V::load(b[i..].as_ptr()), V::load(c[i..].as_ptr()));
                a.pair_bf16(b).store(out[0][i..].as_mut_ptr());
                let k = a.same(30_000.0);
                let (ka, kb) = (a.mul(k), b.mul(k));
                ka.pair_i16(kb).store(out[1][i..].as_mut_ptr());
                c.dot_bf16(a.pair_bf16(b), b.pair_bf16(c)).store(out[2][i..].as_mut_ptr());
                let sum = a.same(f32::from_bits(7)).dot_i16(ka.pair_i16(kb), kb.pair_i16(ka));
                sum.store(out[3][i..].as_mut_ptr());
                sum.sub_whole(a.same(f32::from_bits(7))).whole_to_f32().abs().store(out[4][i..].as_mut_ptr());
                ka.store_i16(whole[i..].as_mut_ptr());
                let [ba, bb, bc] = [a, b, c].map(|v| v.abs().mul(k.same(255.0)));
                let word = ba.quad_u8(bb, bc, k.same(255.0));
                word.store(out[5][i..].as_mut_ptr());
                a.same(f32::from_bits(7)).dot_u8(word, word).store(out[6][i..].as_mut_ptr());
                let (wa, wb) = (ka.pair_i16(kb), kb.pair_i16(kb));
                wa.add_i16(wb).store(out[7][i..].as_mut_ptr());
                wa.sub_i16(wb).store(out[8][i..].as_mut_ptr());
                wa.mul_i16(wb).store(out[10][i..].as_mut_ptr());
                let of = std::array::from_fn(|i| i as f32);
                word.pick(&of).store(out[11][i..].as_mut_ptr());
                // The bytes of some words, lowest first.
                let bytes = out[5].as_ptr().cast::<i8>().add(2 * i);
                V::load_i8(bytes).store(out[9][i..].as_mut_ptr());
            }
        }
    }

    #[test]
    fn words_are_as_defined_at_every_level() {
        let (a, b, c) = (noise(16, 1), noise(16, 2), noise(16, 3));
        let narrow = |v: f32| half::bf16::from_f32(v).to_f32();
        at_every_level(|level| {
            let (mut out, mut whole) = ([[0f32; 16]; 12], [0i16; 16]);
            // SAFETY: all have 16 values.
            unsafe { all(&a, &b, &c, &mut out, &mut whole) };
            for i in 0..16 {
                let [na, nb, nc] = [a[i], b[i], c[i]].map(narrow);
                let word = out[0][i].to_bits();
                let halves = [f32::from_bits(word << 16), f32::from_bits(word & UPPER)];
                assert_eq!(halves, [na, nb], "{level:?}");
                let dot = nb.mul_add(nc, c[i]);
                assert_eq!(out[2][i], na.mul_add(nb, dot), "{level:?}");
                let (wa, wb) =
                    ((a[i] * 30_000.0).round_ties_even() as i32, (b[i] * 30_000.0).round_ties_even() as i32);
                assert_eq!(out[1][i].to_bits(), wa as u16 as u32 | (wb as u16 as u32) << 16, "{level:?}");
                assert_eq!(whole[i] as i32, wa, "{level:?}");
                let sum = 7 + 2 * wa * wb;
                assert_eq!(out[3][i].to_bits() as i32, sum, "{level:?}");
                assert_eq!(out[4][i], ((sum - 7) as f32).abs(), "{level:?}");
                let [ba, bb, bc] = [a[i], b[i], c[i]].map(|v| (v.abs() * 255.0).round_ties_even() as u8);
                assert_eq!(out[5][i].to_bits().to_le_bytes(), [ba, bb, bc, 255], "{level:?}");
                assert_eq!(out[11][i], (ba & 15) as f32, "{level:?}");
                let dot: i32 = [ba, bb, bc, 255].iter().map(|v| *v as i32 * (*v as i8 as i32)).sum();
                assert_eq!(out[6][i].to_bits() as i32, 7 + dot, "{level:?}");
                let (wa, wb) = (wa as i16, wb as i16);
                let halves = |o: f32| [o.to_bits() as i16, (o.to_bits() >> 16) as i16];
                assert_eq!(halves(out[7][i]), [wa.wrapping_add(wb), wb.wrapping_add(wb)], "{level:?}");
                assert_eq!(halves(out[8][i]), [wa.wrapping_sub(wb), 0], "{level:?}");
                let bytes = out[5][i / 2].to_bits() >> (16 * (i % 2));
                let want = [bytes as i8 as i16, (bytes >> 8) as i8 as i16].map(|b| 8 * b);
                assert_eq!(halves(out[9][i]), want, "{level:?}");
                let product = |a: i16| ((a as f64 * wb as f64 / 32768.0 + 0.5).floor()) as i16;
                assert_eq!(halves(out[10][i]), [product(wa), product(wb)], "{level:?}");
            }
        });
    }
}
