//! Which instruction sets the kernels use: the best that the machine has, or a lower one that was asked for.

use super::packed;
use crate::{Error, Result};
use std::sync::atomic::{AtomicU8, Ordering};

/// Instruction sets that there are kernels for, from none to the best. Those of another architecture are never
/// detected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Level {
    Scalar,
    Avx2,
    /// Packed products need VNNI, VBMI and VPOPCNTDQ with it: Ice Lake, Zen 4 and later. Older AVX-512 has little for
    /// them that AVX2 has not.
    Avx512,
    /// Tiles of bytes and of bf16 on top of `Avx512`: Sapphire Rapids and later, under Linux.
    Amx,
    Neon,
    /// With `sdot`: ARMv8.2 and later, mostly.
    NeonDot,
}

/// The environment variable that [`limit_by_environment`] reads.
pub const VARIABLE: &str = "COMPRESS_SIMD";

/// The greatest level that may be used.
static LIMIT: AtomicU8 = AtomicU8::new(Level::NeonDot as u8);

impl Level {
    const ALL: [Level; 6] =
        [Level::NeonDot, Level::Neon, Level::Amx, Level::Avx512, Level::Avx2, Level::Scalar];

    /// As users write it.
    pub fn name(self) -> &'static str {
        match self {
            Level::Scalar => "scalar",
            Level::Avx2 => "avx2",
            Level::Avx512 => "avx512",
            Level::Amx => "amx",
            Level::Neon => "neon",
            Level::NeonDot => "neon-dot",
        }
    }

    /// What this machine has, best first.
    pub fn available() -> impl Iterator<Item = Level> {
        Level::ALL.into_iter().filter(|&level| packed::detected(level))
    }

    /// The level of packed products: the best of those available within the limit.
    pub fn best() -> Level {
        Level::available().find(|level| level.allowed()).unwrap_or(Level::Scalar)
    }

    /// Whether it is within the limit.
    #[inline]
    pub fn allowed(self) -> bool {
        self as u8 <= LIMIT.load(Ordering::Relaxed)
    }
}

/// Has all kernels of this process use `level` and those below it. Of products of f32 matrices only those by
/// tiles take notice.
///
/// # Errors
/// If the machine does not have it.
pub fn limit(level: Level) -> Result<()> {
    if !packed::detected(level) {
        return Err(unknown(level.name(), "is not on this machine"));
    }
    LIMIT.store(level as u8, Ordering::Relaxed);
    Ok(())
}

/// [`limit`] by the name in `COMPRESS_SIMD`; without that, nothing.
///
/// # Errors
/// If it names no level, or one that the machine does not have.
pub fn limit_by_environment() -> Result<()> {
    let Some(name) = std::env::var_os(VARIABLE) else { return Ok(()) };
    let name = name.to_string_lossy();
    match Level::ALL.into_iter().find(|level| level.name() == name) {
        Some(level) => limit(level),
        None => Err(unknown(&name, "is no instruction set that there are kernels for")),
    }
}

fn unknown(name: &str, what: &str) -> Error {
    let known: Vec<&str> = Level::available().map(Level::name).collect();
    Error::Usage {
        found: format!("`{VARIABLE}={name}` {what}"),
        advice: format!("use one of `{}`, or unset it for the first of these", known.join("`, `")),
    }
}
