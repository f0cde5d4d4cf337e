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

/// Why a value of [`SWITCH`] is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// No level has this name.
    Unknown(String),
    /// The machine lacks the instructions of the level with this name.
    Lacking(&'static str),
}

/// The levels by name.
pub const NAMES: [(&str, Level); 3] =
    [("scalar", Level::Scalar), ("avx2", Level::Avx2), ("avx512", Level::Avx512)];

fn wish(value: Option<&str>, best: Level) -> Result<Option<Level>, Refused> {
    let Some(value) = value else { return Ok(None) };
    match NAMES.into_iter().find(|(name, _)| *name == value) {
        None => Err(Refused::Unknown(value.to_owned())),
        Some((name, level)) if level > best => Err(Refused::Lacking(name)),
        Some((_, level)) => Ok(Some(level)),
    }
}

/// The level that [`SWITCH`] asks for, if it is set.
///
/// # Errors
/// If there is no such level, or not on this machine. Kernels take the best one then: whoever starts them checks first.
pub fn asked() -> Result<Option<Level>, Refused> {
    let value = std::env::var_os(SWITCH);
    wish(value.map(|v| v.to_string_lossy().into_owned()).as_deref(), detected())
}

#[cold]
fn first() -> u8 {
    set(asked().unwrap_or(None))
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

/// True if there is an instruction for products of bf16 (AVX-512 BF16), fast or not.
pub fn bf16() -> bool {
    #[cfg(target_arch = "x86_64")]
    return current() == BEST && is_x86_feature_detected!("avx512bf16");
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// True if that instruction is faster than two multiplications in f32: AMD's processors (Zen 4) take a cycle for it, as for one
/// of these; Intel's measured (a Xeon with AMX) two cycles, in which they do four (`benches/README.md`).
pub(crate) fn fast_bf16() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        static AMD: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
        bf16()
            && *AMD.get_or_init(|| {
                let id = std::arch::x86_64::__cpuid(0);
                [id.ebx, id.edx, id.ecx].map(u32::to_le_bytes).concat() == b"AuthenticAMD"
            })
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wishes_are_levels_that_are_there() {
        assert_eq!(wish(None, Level::Scalar), Ok(None));
        assert_eq!(wish(Some("avx2"), Level::Avx512), Ok(Some(Level::Avx2)));
        assert_eq!(wish(Some("avx2"), Level::Avx2), Ok(Some(Level::Avx2)));
        assert_eq!(wish(Some("avx512"), Level::Avx2), Err(Refused::Lacking("avx512")));
        for unknown in ["", "AVX2", "avx-512", "best"] {
            assert_eq!(wish(Some(unknown), Level::Avx512), Err(Refused::Unknown(unknown.into())));
        }
    }
}
