//! The vectors of each level behind one trait, so that an algorithm is written once and compiled per level.

use crate::level::Level;

/// Adding 1.5 · 2²³ rounds to the nearest whole number and leaves it in the low bits.
pub(crate) const ROUND: f32 = 12_582_912.0;

/// A vector of f32. To make one ([`Lanes::splat`], [`Lanes::load`]) the machine must have the instructions, which is
/// why those two are unsafe; whoever holds one may use it.
pub(crate) trait Lanes: Copy {
    /// Values per vector.
    const WIDTH: usize;
    /// The level whose instructions these are.
    const LEVEL: Level;

    /// The same value in each lane.
    ///
    /// # Safety
    /// The machine must have [`Self::LEVEL`].
    unsafe fn splat(v: f32) -> Self;

    /// Reads from any alignment.
    ///
    /// # Safety
    /// As [`Lanes::splat`], and [`Self::WIDTH`] values must be readable.
    unsafe fn load(p: *const f32) -> Self;

    /// Writes to any alignment.
    ///
    /// # Safety
    /// [`Self::WIDTH`] values must be writable.
    unsafe fn store(self, p: *mut f32);

    /// The same value in each lane. Closures do not inherit the instruction set and are best avoided around vectors.
    #[inline(always)]
    fn same(self, v: f32) -> Self {
        // SAFETY: a vector exists, so the machine has the level.
        unsafe { Self::splat(v) }
    }

    fn add(self, other: Self) -> Self;
    fn sub(self, other: Self) -> Self;
    fn mul(self, other: Self) -> Self;
    fn div(self, other: Self) -> Self;
    fn max(self, other: Self) -> Self;
    fn min(self, other: Self) -> Self;
    /// `self · factor + addend`, rounded once where the machine can.
    fn mul_add(self, factor: Self, addend: Self) -> Self;
    /// `addend - self · factor`.
    fn neg_mul_add(self, factor: Self, addend: Self) -> Self;
    /// `self · 2ⁿ` for a whole `n` of which `magic` is n + 1.5 · 2²³; the result must be normal.
    fn scale_by_power(self, magic: Self) -> Self;

    /// The part of x above a whole number, from 0 to 1, and that number as [`Lanes::scale_by`] reads it. Numbers below -126
    /// may count as -126.
    #[inline(always)]
    fn split(self) -> (Self, Self) {
        // In this order, so that what is not a number stays so.
        let x = self.same(-126.0).max(self);
        let magic = x.sub(x.same(0.5)).add(x.same(ROUND));
        (x.sub(magic.sub(x.same(ROUND))), magic)
    }

    /// `self · 2ⁿ` for a number of [`Lanes::split`].
    #[inline(always)]
    fn scale_by(self, whole: Self) -> Self {
        self.scale_by_power(whole)
    }

    /// `to[c][r] = from[r][c]` for a square of [`Self::WIDTH`], rows `from_stride` and `to_stride` apart.
    ///
    /// # Safety
    /// As [`Lanes::splat`], and both squares must be within memory that may be read or written.
    unsafe fn transpose(from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize);
}

/// Portable Rust, in a shape that the compiler vectorises.
#[derive(Clone, Copy)]
pub(crate) struct Portable(pub(crate) [f32; 8]);

impl Portable {
    #[inline(always)]
    fn zip(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        let mut out = self;
        for (o, v) in out.0.iter_mut().zip(other.0) {
            *o = f(*o, v);
        }
        out
    }
}

impl Lanes for Portable {
    const WIDTH: usize = 8;
    const LEVEL: Level = Level::Scalar;

    #[inline(always)]
    unsafe fn splat(v: f32) -> Self {
        Portable([v; 8])
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: the caller's promise; arrays of f32 have the alignment of f32.
        Portable(unsafe { p.cast::<[f32; 8]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { p.cast::<[f32; 8]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        self.zip(other, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        self.zip(other, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        self.zip(other, |a, b| a / b)
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        self.zip(other, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        self.zip(other, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn mul_add(self, factor: Self, addend: Self) -> Self {
        let mut out = self;
        for ((o, f), a) in out.0.iter_mut().zip(factor.0).zip(addend.0) {
            // Without the instruction it would be a call for each value.
            *o = if cfg!(any(target_feature = "fma", target_arch = "aarch64")) {
                o.mul_add(f, a)
            } else {
                *o * f + a
            };
        }
        out
    }
    #[inline(always)]
    fn neg_mul_add(self, factor: Self, addend: Self) -> Self {
        self.zip(self, |v, _| -v).mul_add(factor, addend)
    }
    #[inline(always)]
    fn scale_by_power(self, magic: Self) -> Self {
        // The whole number is in the low bits of the mantissa; added to the exponent it multiplies by 2ⁿ.
        self.zip(magic, |v, m| f32::from_bits(v.to_bits().wrapping_add(m.to_bits() << 23)))
    }
    #[inline(always)]
    unsafe fn transpose(from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
        for r in 0..8 {
            for c in 0..8 {
                // SAFETY: the caller's promise.
                unsafe { *to.add(c * to_stride + r) = *from.add(r * from_stride + c) }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Lanes, Level};
    use std::arch::x86_64::*;

    /// 256 bits, with FMA.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx2(pub(crate) __m256);

    /// 512 bits; `NARROW` with the instructions for bf16 and int8.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx512<const NARROW: bool = false>(pub(crate) __m512);

    /// What the two share, by the names of their instructions.
    macro_rules! arithmetic {
        ($splat:ident $load:ident $store:ident $add:ident $sub:ident $mul:ident $div:ident $max:ident $min:ident
         $fma:ident $fnma:ident) => {
            #[inline(always)]
            unsafe fn splat(v: f32) -> Self {
                // SAFETY: the caller promises the level.
                Self(unsafe { $splat(v) })
            }
            #[inline(always)]
            unsafe fn load(p: *const f32) -> Self {
                // SAFETY: the caller promises the level and the memory.
                Self(unsafe { $load(p) })
            }
            #[inline(always)]
            unsafe fn store(self, p: *mut f32) {
                // SAFETY: a vector exists, so the machine has the level; the caller promises the memory.
                unsafe { $store(p, self.0) }
            }
            #[inline(always)]
            fn add(self, other: Self) -> Self {
                // SAFETY: a vector exists, so the machine has the level.
                Self(unsafe { $add(self.0, other.0) })
            }
            #[inline(always)]
            fn sub(self, other: Self) -> Self {
                // SAFETY: as above.
                Self(unsafe { $sub(self.0, other.0) })
            }
            #[inline(always)]
            fn mul(self, other: Self) -> Self {
                // SAFETY: as above.
                Self(unsafe { $mul(self.0, other.0) })
            }
            #[inline(always)]
            fn div(self, other: Self) -> Self {
                // SAFETY: as above.
                Self(unsafe { $div(self.0, other.0) })
            }
            #[inline(always)]
            fn max(self, other: Self) -> Self {
                // SAFETY: as above.
                Self(unsafe { $max(self.0, other.0) })
            }
            #[inline(always)]
            fn min(self, other: Self) -> Self {
                // SAFETY: as above.
                Self(unsafe { $min(self.0, other.0) })
            }
            #[inline(always)]
            fn mul_add(self, factor: Self, addend: Self) -> Self {
                // SAFETY: as above.
                Self(unsafe { $fma(self.0, factor.0, addend.0) })
            }
            #[inline(always)]
            fn neg_mul_add(self, factor: Self, addend: Self) -> Self {
                // SAFETY: as above.
                Self(unsafe { $fnma(self.0, factor.0, addend.0) })
            }
        };
    }

    impl Lanes for Avx2 {
        const WIDTH: usize = 8;
        const LEVEL: Level = Level::Avx2;

        arithmetic!(_mm256_set1_ps _mm256_loadu_ps _mm256_storeu_ps _mm256_add_ps _mm256_sub_ps _mm256_mul_ps
            _mm256_div_ps _mm256_max_ps _mm256_min_ps _mm256_fmadd_ps _mm256_fnmadd_ps);

        #[inline(always)]
        fn scale_by_power(self, magic: Self) -> Self {
            // SAFETY: a vector exists, so the machine has the level.
            unsafe {
                let power = _mm256_slli_epi32::<23>(_mm256_castps_si256(magic.0));
                Avx2(_mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(self.0), power)))
            }
        }

        #[inline(always)]
        unsafe fn transpose(from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
            // SAFETY: the caller promises the level and the memory. Pairs of rows, then of pairs, then halves.
            unsafe {
                let mut v = [_mm256_setzero_ps(); 8];
                for (r, v) in v.iter_mut().enumerate() {
                    *v = _mm256_loadu_ps(from.add(r * from_stride));
                }
                let mut t = v;
                for i in (0..8).step_by(2) {
                    t[i] = _mm256_unpacklo_ps(v[i], v[i + 1]);
                    t[i + 1] = _mm256_unpackhi_ps(v[i], v[i + 1]);
                }
                for i in (0..8).step_by(4) {
                    for h in 0..2 {
                        v[i + 2 * h] = _mm256_shuffle_ps::<0x44>(t[i + h], t[i + 2 + h]);
                        v[i + 2 * h + 1] = _mm256_shuffle_ps::<0xee>(t[i + h], t[i + 2 + h]);
                    }
                }
                for i in 0..4 {
                    let low = _mm256_permute2f128_ps::<0x20>(v[i], v[i + 4]);
                    let high = _mm256_permute2f128_ps::<0x31>(v[i], v[i + 4]);
                    _mm256_storeu_ps(to.add(i * to_stride), low);
                    _mm256_storeu_ps(to.add((i + 4) * to_stride), high);
                }
            }
        }
    }

    impl<const NARROW: bool> Lanes for Avx512<NARROW> {
        const WIDTH: usize = 16;
        const LEVEL: Level = Level::Avx512;

        arithmetic!(_mm512_set1_ps _mm512_loadu_ps _mm512_storeu_ps _mm512_add_ps _mm512_sub_ps _mm512_mul_ps
            _mm512_div_ps _mm512_max_ps _mm512_min_ps _mm512_fmadd_ps _mm512_fnmadd_ps);

        #[inline(always)]
        fn scale_by_power(self, magic: Self) -> Self {
            // SAFETY: a vector exists, so the machine has the level.
            unsafe {
                let power = _mm512_slli_epi32::<23>(_mm512_castps_si512(magic.0));
                Avx512(_mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(self.0), power)))
            }
        }

        #[inline(always)]
        fn split(self) -> (Self, Self) {
            // x less its floor; the instruction below takes the floor itself.
            // SAFETY: a vector exists, so the machine has the level.
            (Avx512(unsafe { _mm512_reduce_ps::<0x09>(self.0) }), self)
        }

        #[inline(always)]
        fn scale_by(self, whole: Self) -> Self {
            // SAFETY: as above.
            Avx512(unsafe { _mm512_scalef_ps(self.0, whole.0) })
        }

        #[inline(always)]
        unsafe fn transpose(from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
            // SAFETY: the caller promises the level and the memory. Pairs of rows, then of pairs, then quarters.
            unsafe {
                let mut v = [_mm512_setzero_ps(); 16];
                for (r, v) in v.iter_mut().enumerate() {
                    *v = _mm512_loadu_ps(from.add(r * from_stride));
                }
                let mut t = v;
                for i in (0..16).step_by(2) {
                    t[i] = _mm512_unpacklo_ps(v[i], v[i + 1]);
                    t[i + 1] = _mm512_unpackhi_ps(v[i], v[i + 1]);
                }
                for i in (0..16).step_by(4) {
                    for h in 0..2 {
                        v[i + 2 * h] = _mm512_shuffle_ps::<0x44>(t[i + h], t[i + 2 + h]);
                        v[i + 2 * h + 1] = _mm512_shuffle_ps::<0xee>(t[i + h], t[i + 2 + h]);
                    }
                }
                // v[4 q + c] has, in its quarter k, rows 4 q .. 4 q + 4 of column 4 k + c.
                for c in 0..4 {
                    let a = _mm512_shuffle_f32x4::<0x88>(v[c], v[4 + c]);
                    let b = _mm512_shuffle_f32x4::<0x88>(v[8 + c], v[12 + c]);
                    let d = _mm512_shuffle_f32x4::<0xdd>(v[c], v[4 + c]);
                    let e = _mm512_shuffle_f32x4::<0xdd>(v[8 + c], v[12 + c]);
                    _mm512_storeu_ps(to.add(c * to_stride), _mm512_shuffle_f32x4::<0x88>(a, b));
                    _mm512_storeu_ps(to.add((4 + c) * to_stride), _mm512_shuffle_f32x4::<0x88>(d, e));
                    _mm512_storeu_ps(to.add((8 + c) * to_stride), _mm512_shuffle_f32x4::<0xdd>(a, b));
                    _mm512_storeu_ps(to.add((12 + c) * to_stride), _mm512_shuffle_f32x4::<0xdd>(d, e));
                }
            }
        }
    }
}

/// Compiles `$body::<V>($args)`, an `#[inline(always)]` function over [`Lanes`], for each level, and picks by
/// [`crate::level::level`] at run time.
macro_rules! on_lanes {
    ($(#[$doc:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? = $body:path) => {
        $(#[$doc])*
        #[allow(clippy::too_many_arguments)]
        $vis unsafe fn $name($($arg: $ty),*) $(-> $ret)? {
            use $body as body;
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma,f16c")]
                #[allow(clippy::too_many_arguments)]
                unsafe fn avx512($($arg: $ty),*) $(-> $ret)? {
                    // SAFETY: the caller's promises.
                    unsafe { body::<$crate::lanes::Avx512>($($arg),*) }
                }
                #[target_feature(enable = "avx2,fma,f16c")]
                #[allow(clippy::too_many_arguments)]
                unsafe fn avx2($($arg: $ty),*) $(-> $ret)? {
                    // SAFETY: the caller's promises.
                    unsafe { body::<$crate::lanes::Avx2>($($arg),*) }
                }
                match $crate::level::level() {
                    // SAFETY: `level` returns only what was detected on this machine; the rest the caller promises.
                    $crate::level::Level::Avx512 => return unsafe { avx512($($arg),*) },
                    // SAFETY: as above.
                    $crate::level::Level::Avx2 => return unsafe { avx2($($arg),*) },
                    _ => {}
                }
            }
            #[cfg(target_arch = "aarch64")]
            if $crate::level::level() == $crate::level::Level::Neon {
                // SAFETY: every such processor has NEON; the rest the caller promises.
                return unsafe { body::<$crate::neon::Neon>($($arg),*) };
            }
            // SAFETY: the caller's promises.
            unsafe { body::<$crate::lanes::Portable>($($arg),*) }
        }
    };
}
pub(crate) use on_lanes;

on_lanes! {
    /// `to[c][r] = from[r][c]`, rows `from_stride` and `to_stride` apart.
    ///
    /// # Safety
    /// The memory described must be there, and that of `to` belong to the caller alone.
    pub(crate) fn transpose(
        rows: usize, columns: usize, from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize,
    ) = transpose_on
}

#[inline(always)]
unsafe fn transpose_on<V: Lanes>(
    rows: usize,
    columns: usize,
    from: *const f32,
    from_stride: usize,
    to: *mut f32,
    to_stride: usize,
) {
    let (whole_rows, whole_columns) = (rows / V::WIDTH * V::WIDTH, columns / V::WIDTH * V::WIDTH);
    // SAFETY: all indices are below rows and columns.
    unsafe {
        for r in (0..whole_rows).step_by(V::WIDTH) {
            for c in (0..whole_columns).step_by(V::WIDTH) {
                let (from, to) = (from.add(r * from_stride + c), to.add(c * to_stride + r));
                V::transpose(from, from_stride, to, to_stride);
            }
        }
        for r in 0..rows {
            let done = if r < whole_rows { whole_columns } else { 0 };
            for c in done..columns {
                *to.add(c * to_stride + r) = *from.add(r * from_stride + c);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transposing_moves_every_value() {
        crate::gemm::tests::at_every_level(|level| {
            for (rows, columns) in [(16, 16), (32, 40), (17, 35), (1, 5), (8, 8), (33, 3)] {
                let from: Vec<f32> = (0..rows * (columns + 2)).map(|i| i as f32).collect();
                let mut to = vec![-1.0; columns * (rows + 1)];
                // SAFETY: both are as long as their strides say.
                unsafe { transpose(rows, columns, from.as_ptr(), columns + 2, to.as_mut_ptr(), rows + 1) };
                for r in 0..rows {
                    for c in 0..columns {
                        assert_eq!(
                            to[c * (rows + 1) + r],
                            from[r * (columns + 2) + c],
                            "{level:?} {rows} {columns}"
                        );
                    }
                }
                assert_eq!(to[rows], -1.0);
            }
        });
    }
}
