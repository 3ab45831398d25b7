//! The tile registers of AMX: whether there are any, and how they are set up.
//!
//! Its instructions are written out, since the compiler's own are not stable. Between two blocks of them only the
//! configuration lives on, and nothing else in this process uses tiles.

use std::arch::asm;
use std::arch::x86_64::{__cpuid_count, _xgetbv};
use std::sync::OnceLock;

/// Rows of a tile.
pub const ROWS: usize = 16;
/// Bytes of a row of a tile.
pub const ROW: usize = 64;

/// Whether the processor has tiles of bytes and of bf16, the system keeps them for us, and AVX-512 is there as well.
pub fn detected() -> bool {
    static DETECTED: OnceLock<bool> = OnceLock::new();
    *DETECTED.get_or_init(|| {
        is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && in_hardware()
            && granted()
    })
}

/// AMX-TILE, AMX-INT8 and AMX-BF16, and that the system saves tiles (Intel SDM 1, §18.3).
fn in_hardware() -> bool {
    // SAFETY: AVX-512 comes with these leaves, and with `xgetbv`. (Older compilers want to hear it.)
    #[allow(unused_unsafe)]
    let features = unsafe { __cpuid_count(7, 0) }.edx;
    #[target_feature(enable = "xsave")]
    fn enabled() -> u64 {
        // SAFETY: that the system uses XSAVE was found with AVX-512; register 0 always exists.
        unsafe { _xgetbv(0) }
    }
    // SAFETY: as above.
    let enabled = unsafe { enabled() };
    features >> 22 & 1 == 1 && features >> 24 & 0b11 == 0b11 && enabled >> 17 & 0b11 == 0b11
}

/// Asks Linux for the use of tiles, for all threads of the process. Of other systems they are not asked for.
#[cfg(not(target_os = "linux"))]
fn granted() -> bool {
    false
}

#[cfg(target_os = "linux")]
fn granted() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: the call takes two numbers, and changes nothing but what this process may use.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

/// What `ldtilecfg` reads (Intel SDM 1, §18.2).
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    /// Bytes of a row of each tile.
    bytes: [u16; 16],
    rows: [u8; 16],
}

const _: () = assert!(size_of::<Config>() == 64);

/// The tiles of this thread, while they are in use.
#[derive(Debug, Default)]
pub struct Tiles {
    /// Of each tile; none before they are configured.
    rows: [u8; 8],
}

impl Tiles {
    /// Gives each tile so many rows, 1 to 16, of 64 bytes. What they held is gone.
    ///
    /// # Panics
    /// If the machine has none, or on other numbers of rows.
    pub fn configure(&mut self, rows: [u8; 8]) {
        assert!(detected() && rows.iter().all(|r| (1..=ROWS as u8).contains(r)), "{rows:?}");
        if self.rows == rows {
            return;
        }
        self.rows = rows;
        let (mut bytes, mut all) = ([0; 16], [0; 16]);
        bytes[..8].fill(ROW as u16);
        all[..8].copy_from_slice(&rows);
        let config = Config { palette: 1, start_row: 0, reserved: [0; 14], bytes, rows: all };
        // SAFETY: 64 bytes are read that outlive the call; the values are ones that the palette allows, as asserted.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) &config, options(nostack, readonly),
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _);
        }
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        if self.rows[0] > 0 {
            // SAFETY: the tiles were only used here; without a configuration the system need not save them.
            unsafe { asm!("tilerelease", options(nostack, nomem)) }
        }
    }
}
