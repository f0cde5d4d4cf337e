//! Which instruction set the kernels use: detected once, overridable for tests and measurements.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};

/// Instruction sets with kernels of their own, in ascending order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Level {
    /// Portable Rust: the specification.
    Scalar = 1,
    /// 64-bit ARM, which always has NEON.
    Neon = 2,
    /// x86-64 with AVX2 and FMA.
    Avx2 = 3,
    /// x86-64 with AVX-512 F, VL, BW and DQ.
    Avx512 = 4,
}

impl Level {
    /// Those of this processor's family, in ascending order.
    pub const ALL: &[Level] = if cfg!(target_arch = "x86_64") {
        &[Level::Scalar, Level::Avx2, Level::Avx512]
    } else if cfg!(target_arch = "aarch64") {
        &[Level::Scalar, Level::Neon]
    } else {
        &[Level::Scalar]
    };
}

/// Rows of the register tile at a level: with two vectors of columns it fills the registers.
pub(crate) fn tile_rows(level: Level) -> usize {
    match level {
        Level::Avx512 => 14,
        Level::Avx2 | Level::Neon => 6,
        Level::Scalar => 4,
    }
}

/// Its columns.
pub(crate) fn tile_columns(level: Level) -> usize {
    if level == Level::Avx512 { 32 } else { 16 }
}

/// Rows of the tile of AMX.
pub(crate) const AMX_ROWS: usize = 32;

/// The environment variable that lowers what is used from the start, to one of [`names`].
pub const SWITCH: &str = "INSTANTSTYLE_LEVEL";

/// What is in use: 0 before the first question, then a [`Level`], or one of those after it.
static CURRENT: AtomicU8 = AtomicU8::new(0);
/// AVX-512 with what the machine has beside for bf16 and int8.
const NARROW: u8 = 5;
/// The same and AMX.
const AMX: u8 = 6;
/// The same, AMX's instructions done by plain code: for tests on machines that lack it.
#[cfg(test)]
const EMULATED: u8 = 7;

/// The best of this machine.
fn best() -> u8 {
    static BEST: OnceLock<u8> = OnceLock::new();
    *BEST.get_or_init(|| match detected() {
        Level::Avx512 if amx_found() => AMX,
        Level::Avx512 => NARROW,
        other => other as u8,
    })
}

/// What the wish and the machine allow.
fn set(wish: Option<u8>) -> u8 {
    let now = wish.unwrap_or(u8::MAX).min(best());
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

/// What [`SWITCH`] may ask for: levels, AVX-512 without its instructions for bf16 and int8; and with them, without AMX.
const NAMES: [(&str, u8); 5] = [
    ("scalar", Level::Scalar as u8),
    ("neon", Level::Neon as u8),
    ("avx2", Level::Avx2 as u8),
    ("avx512", Level::Avx512 as u8),
    ("avx512-vnni", NARROW),
];

/// The names of [`SWITCH`] for this processor's family.
pub fn names() -> Vec<&'static str> {
    let here = |rank: u8| match rank {
        NARROW => Level::ALL.contains(&Level::Avx512),
        rank => Level::ALL.iter().any(|l| *l as u8 == rank),
    };
    NAMES.into_iter().filter(|(_, rank)| here(*rank)).map(|(name, _)| name).collect()
}

fn wish(value: Option<&str>, best: u8) -> Result<Option<u8>, Refused> {
    let Some(value) = value else { return Ok(None) };
    let found = NAMES.into_iter().find(|(name, _)| *name == value && names().contains(name));
    match found {
        None => Err(Refused::Unknown(value.to_owned())),
        Some((name, rank)) if rank > best => Err(Refused::Lacking(name)),
        Some((_, rank)) => Ok(Some(rank)),
    }
}

fn switch() -> Result<Option<u8>, Refused> {
    let value = std::env::var_os(SWITCH);
    wish(value.map(|v| v.to_string_lossy().into_owned()).as_deref(), best())
}

/// Checks [`SWITCH`].
///
/// # Errors
/// If it asks for what does not exist, or not on this machine. Kernels take the best then: whoever starts them checks first.
pub fn check() -> Result<(), Refused> {
    switch().map(|_| ())
}

#[cold]
fn first() -> u8 {
    set(switch().unwrap_or(None))
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
        static BEST: OnceLock<Level> = OnceLock::new();
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
    if cfg!(target_arch = "aarch64") { Level::Neon } else { Level::Scalar }
}

/// The level in use: the detected one unless [`force`] or [`SWITCH`] lowered it.
#[inline]
pub fn level() -> Level {
    match current() {
        1 => Level::Scalar,
        2 => Level::Neon,
        3 => Level::Avx2,
        _ => Level::Avx512,
    }
}

/// True if there is an instruction for products of bf16 (AVX-512 BF16), fast or not.
pub fn bf16() -> bool {
    #[cfg(target_arch = "x86_64")]
    return current() >= NARROW && is_x86_feature_detected!("avx512bf16");
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// True if that instruction is faster than two multiplications in f32: AMD's processors (Zen 4) take a cycle for it, as for one
/// of these; Intel's measured (a Xeon with AMX) two cycles, in which they do four (`benches/README.md`).
pub(crate) fn fast_bf16() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        static AMD: OnceLock<bool> = OnceLock::new();
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
    return current() >= NARROW && is_x86_feature_detected!("avx512vnni");
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// True if ARM's processor has products of unsigned by signed bytes (`usdot`, the extension I8MM).
#[cfg(target_arch = "aarch64")]
pub(crate) fn i8mm() -> bool {
    level() == Level::Neon && std::arch::is_aarch64_feature_detected!("i8mm")
}

/// True if it has products of signed bytes (`sdot`, the extension DotProd).
#[cfg(target_arch = "aarch64")]
pub(crate) fn dotprod() -> bool {
    level() == Level::Neon && std::arch::is_aarch64_feature_detected!("dotprod")
}

/// True if products of bf16 and int8 use AMX's tiles: Linux gives their registers to processes that ask.
pub fn amx() -> bool {
    current() >= AMX
}

/// True if plain code does what AMX's instructions do.
#[cfg(target_arch = "x86_64")]
pub(crate) fn emulated() -> bool {
    #[cfg(test)]
    return current() == EMULATED;
    #[cfg(not(test))]
    false
}

/// Asks for the tiles' registers, if the processor has them. CPUID: Intel's manual, volume 2A; `arch_prctl`: Linux,
/// Documentation/arch/x86/xstate.rst.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn amx_found() -> bool {
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    /// AMX-BF16, AMX-TILE and AMX-INT8 in EDX of leaf 7.
    const NEEDED: u32 = 1 << 22 | 1 << 24 | 1 << 25;
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: the call changes nothing but what this process may use; it fails where it is not known.
    __cpuid(0).eax >= 7
        && __cpuid_count(7, 0).edx & NEEDED == NEEDED
        && unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) } == 0
}

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
fn amx_found() -> bool {
    false
}

/// Uses `level` from now on (never above the detected one), AVX-512 without the instructions for bf16 and int8; `None`
/// goes back to the best. For tests and benchmarks.
pub fn force(level: Option<Level>) {
    set(level.map(|l| l as u8));
}

/// The best but for AMX, or AMX done by plain code. For tests.
#[cfg(test)]
pub(crate) fn force_amx(emulated: bool) {
    assert!(best() >= NARROW);
    CURRENT.store(if emulated { EMULATED } else { NARROW }, Ordering::Relaxed);
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
                    _ => {}
                }
            }
            body($($arg),*)
        }
    };
}
pub(crate) use per_level;

/// `$of` with the constant `$rows` equal to `$height`, the height of a tile of at most `$most` rows.
macro_rules! by_height {
    ($height:expr, $most:expr, $rows:ident => $of:expr) => {
        by_height!($height, $most, $rows => $of, 1 2 3 4 5 6 7 8 9 10 11 12 13 14)
    };
    ($height:expr, $most:expr, $rows:ident => $of:expr, $($n:literal)*) => {
        match $height {
            $($n if $n <= $most => {
                const $rows: usize = $n;
                $of
            })*
            _ => unreachable!("a tile has at most {} rows", $most),
        }
    };
}
pub(crate) use by_height;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wishes_are_levels_that_are_there() {
        let unknown = |name: &str| Err(Refused::Unknown(name.into()));
        assert_eq!(wish(None, 1), Ok(None));
        if !Level::ALL.contains(&Level::Avx512) {
            assert_eq!(wish(Some("avx2"), AMX), unknown("avx2"));
            return;
        }
        assert_eq!(wish(Some("neon"), AMX), unknown("neon"));
        assert_eq!(wish(Some("avx2"), AMX), Ok(Some(Level::Avx2 as u8)));
        assert_eq!(wish(Some("avx2"), Level::Avx2 as u8), Ok(Some(Level::Avx2 as u8)));
        assert_eq!(wish(Some("avx512-vnni"), AMX), Ok(Some(NARROW)));
        assert_eq!(wish(Some("avx512-vnni"), Level::Avx2 as u8), Err(Refused::Lacking("avx512-vnni")));
        assert_eq!(wish(Some("avx512"), Level::Avx2 as u8), Err(Refused::Lacking("avx512")));
        for name in ["", "AVX2", "avx-512", "best"] {
            assert_eq!(wish(Some(name), AMX), unknown(name));
        }
    }
}
