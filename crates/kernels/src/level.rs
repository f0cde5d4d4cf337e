//! Which instruction set the kernels use: detected once, overridable for tests and measurements.

use std::sync::atomic::{AtomicU8, Ordering};

/// Instruction sets with kernels of their own, in ascending order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Level {
    /// Portable Rust: the specification.
    Scalar = 1,
    /// x86-64 with AVX2 and FMA.
    Avx2 = 2,
    /// x86-64 with AVX-512 F, VL, BW and DQ.
    Avx512 = 3,
}

/// The environment variable that lowers the level from the start, to `scalar`, `avx2` or `avx512` (without the
/// instructions for bf16 and int8).
pub const SWITCH: &str = "INSTANTSTYLE_LEVEL";

/// What is in use: 0 before the first question, then a [`Level`], or [`BEST`].
static CURRENT: AtomicU8 = AtomicU8::new(0);
/// AVX-512 with whatever the machine has beside.
const BEST: u8 = 4;

/// What the detected level and the wish allow.
fn set(wish: Option<Level>) -> u8 {
    let now = match (wish, detected()) {
        (None, Level::Avx512) => BEST,
        (None, best) => best as u8,
        (Some(wish), best) => best.min(wish) as u8,
    };
    CURRENT.store(now, Ordering::Relaxed);
    now
}

#[cold]
fn first() -> u8 {
    set(match std::env::var(SWITCH).as_deref() {
        Ok("scalar") => Some(Level::Scalar),
        Ok("avx2") => Some(Level::Avx2),
        Ok("avx512") => Some(Level::Avx512),
        _ => None,
    })
}

#[inline]
fn current() -> u8 {
    match CURRENT.load(Ordering::Relaxed) {
        0 => first(),
        now => now,
    }
}

/// The best level of this machine.
pub fn detected() -> Level {
    #[cfg(target_arch = "x86_64")]
    {
        static BEST: std::sync::OnceLock<Level> = std::sync::OnceLock::new();
        *BEST.get_or_init(|| {
            let avx2 = is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c");
            let avx512 = avx2
                && is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq");
            if avx512 {
                Level::Avx512
            } else if avx2 {
                Level::Avx2
            } else {
                Level::Scalar
            }
        })
    }
    #[cfg(not(target_arch = "x86_64"))]
    Level::Scalar
}

/// The level in use: the detected one unless [`force`] or [`SWITCH`] lowered it.
#[inline]
pub fn level() -> Level {
    match current() {
        1 => Level::Scalar,
        2 => Level::Avx2,
        _ => Level::Avx512,
    }
}

/// True if products of bf16 use an instruction of their own (AVX-512 BF16).
pub fn bf16() -> bool {
    #[cfg(target_arch = "x86_64")]
    return current() == BEST && is_x86_feature_detected!("avx512bf16");
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// True if products of int8 use an instruction of their own (AVX-512 VNNI).
pub fn vnni() -> bool {
    #[cfg(target_arch = "x86_64")]
    return current() == BEST && is_x86_feature_detected!("avx512vnni");
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// Uses `level` from now on (never above the detected one), AVX-512 without the instructions for bf16 and int8; `None`
/// goes back to the best. For tests and benchmarks.
pub fn force(level: Option<Level>) {
    set(level);
}

#[cfg(target_arch = "x86_64")]
pub(crate) fn f16c() -> bool {
    level() >= Level::Avx2
}

/// Compiles a function body once per level and picks by [`level`] at run time. The body is plain Rust, which the
/// compiler vectorises for each instruction set.
macro_rules! per_level {
    ($(#[$doc:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$doc])*
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn body($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma,f16c")]
                fn avx512($($arg: $ty),*) $(-> $ret)? { body($($arg),*) }
                #[target_feature(enable = "avx2,fma,f16c")]
                fn avx2($($arg: $ty),*) $(-> $ret)? { body($($arg),*) }
                match $crate::level::level() {
                    // SAFETY: `level` returns only what was detected on this machine.
                    $crate::level::Level::Avx512 => return unsafe { avx512($($arg),*) },
                    // SAFETY: as above.
                    $crate::level::Level::Avx2 => return unsafe { avx2($($arg),*) },
                    $crate::level::Level::Scalar => {}
                }
            }
            body($($arg),*)
        }
    };
}
pub(crate) use per_level;
