//! AMX: tiles of bytes, 16 tokens by 16 rows by 64 columns an instruction.
//!
//! All forms are one product here: codes of the activations, and weights as bytes (int8, levels, or signs as 0 and 1,
//! expanded strip by strip into the first-level cache). 16,384 multiply-accumulates take 16 cycles: tables or counts of
//! bits gain nothing over that but for very few tokens, which are left to AVX-512.

use super::{BLOCK, Bits, Bytes, CHUNK, Form, GROUP, Pass, Product, STRIP, Sum, avx512};
use crate::runtime::kernels::arena;
use crate::runtime::kernels::tiles::{self, Tiles};
use std::arch::asm;
use std::ops::Range;

/// Blocks of a strip.
const BLOCKS: usize = STRIP / BLOCK;
/// Tokens of a tile.
const TILE: usize = tiles::ROWS;
/// Bytes of codes, and of results, of the tokens that all strips see before the next ones: a quarter of the second-level
/// cache. More pages of results at once cost more than weights read again: 1.3 times at 4096 tokens.
const CACHE: usize = 512 << 10;
/// Tokens that are taken at once whatever they take: expanding signs has to pay.
const LEAST: usize = 64;

/// Whether there are tiles, and what the rest takes.
pub(super) fn detected() -> bool {
    avx512::detected() && tiles::detected()
}

#[target_feature(
    enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi,avx512vpopcntdq"
)]
pub(super) fn multiply(product: &mut Product) {
    let (weights, x) = (product.weights, product.x);
    let padded = weights.padded();
    // Counting where signs differ takes AVX-512 a third of the time that tiles of bytes take.
    let signs = matches!(weights.form, Form::Signs(_)) && x.bits == Bits::One;
    if signs || x.tokens < fewest(&weights.form, x.bits) || padded == 0 {
        return avx512::multiply(product);
    }
    let mut positive = Vec::new();
    let codes = match x.bits {
        Bits::One => {
            positive = x.positive();
            &positive
        }
        Bits::Four | Bits::Eight => &x.codes,
    };
    let sum = match (&weights.form, x.bits) {
        (Form::Int8(_), Bits::One) => Sum::Positive,
        (Form::Signs(signs), Bits::Eight) if signs.planes > 1 => Sum::Products,
        (Form::Signs(_), _) => Sum::Set,
        (Form::Int8(_), _) => Sum::Products,
    };
    let signs = matches!(weights.form, Form::Signs(_));
    let mut panel = arena::room(if signs { BLOCKS * padded / GROUP } else { 0 });
    let most =
        (CACHE / padded.max(weights.rows * size_of::<f32>())).max(LEAST) / (2 * TILE) * 2 * TILE;
    let mut work = Work::new();
    for first in (0..x.tokens).step_by(most) {
        let to = x.tokens.min(first + most);
        for pass in weights.passes(x.bits) {
            for from in (0..weights.rows).step_by(STRIP) {
                let panel = match (&weights.form, pass) {
                    (Form::Int8(int8), _) => int8.strip(from / STRIP),
                    (Form::Signs(signs), Pass::Whole) => {
                        avx512::expand_levels(signs, padded, from, &mut panel);
                        &panel
                    }
                    (Form::Signs(signs), Pass::Plane(k)) => {
                        avx512::expand_bits(signs.strip(k, from / STRIP, padded), &mut panel);
                        &panel
                    }
                };
                work.strip(product, pass, sum, from, panel, codes, first..to);
            }
        }
    }
    arena::give(panel);
    arena::give(positive);
}

/// Tokens from which on tiles are faster than AVX-512: one of them takes as long as 16.
fn fewest(form: &Form, bits: Bits) -> usize {
    match (form, bits) {
        (Form::Int8(_), _) => 3,
        (Form::Signs(signs), Bits::Eight) if signs.planes > 1 => 2,
        (Form::Signs(_), _) => 5,
    }
}

/// Where products of this thread are made.
struct Work {
    tiles: Tiles,
    sums: Sums,
}

/// Of two tiles of tokens and a strip: `[2 · TILE, STRIP]`.
#[repr(C, align(64))]
struct Sums([[i32; STRIP]; 2 * TILE]);

impl Work {
    fn new() -> Work {
        Work { tiles: Tiles::default(), sums: Sums([[0; STRIP]; 2 * TILE]) }
    }

    /// Makes the tiles of activations and of sums so long. With one tile of tokens, sums are 0 to 3 and activations 4;
    /// with two, sums are 0 to 3 (token by token) and activations 4 and 5. The others hold weights.
    fn configure(&mut self, tokens: [usize; 2]) {
        let full = TILE as u8;
        let [first, second] = tokens.map(|t| t as u8);
        self.tiles.configure(match second {
            0 => [first, first, first, first, first, full, full, full],
            _ => [first, first, second, second, first, second, full, full],
        });
    }

    /// Codes of some tokens, of `[tokens, padded]`, with weights of a strip, `[BLOCKS, padded / 4]`.
    #[allow(clippy::too_many_arguments)] // one product of a part of the tokens and a part of the rows
    #[target_feature(
        enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi,avx512vpopcntdq"
    )]
    fn strip(
        &mut self,
        product: &mut Product,
        pass: Pass,
        sum: Sum,
        from: usize,
        panel: &[Bytes],
        codes: &[u8],
        tokens: Range<usize>,
    ) {
        let padded = product.weights.padded();
        let mut first = tokens.start;
        while first < tokens.end {
            let count = (tokens.end - first).min(2 * TILE);
            let codes = &codes[first * padded..(first + count) * padded];
            match count.checked_sub(TILE) {
                None | Some(0) => self.one(codes, padded, panel, count),
                Some(second) => {
                    let used = product.weights.rows - from;
                    self.two(codes, padded, panel, [TILE, second], used.div_ceil(2 * BLOCK).min(2));
                }
            }
            for (t, sums) in self.sums.0[..count].iter().enumerate() {
                product.finish(pass, sum, first + t, from, sums);
            }
            first += count;
        }
    }

    /// One tile of tokens, four of rows.
    fn one(&mut self, codes: &[u8], padded: usize, panel: &[Bytes], tokens: usize) {
        self.configure([tokens, 0]);
        let per_block = padded / GROUP;
        assert!(codes.len() == tokens * padded && panel.len() == BLOCKS * per_block);
        assert!(padded > 0 && tokens <= TILE);
        let block = |i: usize| panel[i * per_block..].as_ptr();
        // SAFETY: `tokens` rows of `padded` codes are read, and `padded / 4` lines of each block, as asserted; written are
        // `tokens` rows of `STRIP` sums, of which there are more. Sizes of tiles are as configured.
        unsafe {
            asm!(
                "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
                "2:",
                "tileloadd tmm4, [{codes} + {stride}]",
                "tileloadd tmm5, [{b0} + {line}]",
                "tileloadd tmm6, [{b1} + {line}]",
                "tileloadd tmm7, [{b2} + {line}]",
                "tdpbusd tmm0, tmm4, tmm5",
                "tileloadd tmm5, [{b3} + {line}]",
                "tdpbusd tmm1, tmm4, tmm6",
                "tdpbusd tmm2, tmm4, tmm7",
                "tdpbusd tmm3, tmm4, tmm5",
                "add {codes}, 64", "add {b0}, 1024", "add {b1}, 1024", "add {b2}, 1024",
                "add {b3}, 1024",
                "dec {chunks}",
                "jnz 2b",
                "tilestored [{sums} + {row}], tmm0",
                "tilestored [{sums} + {row} + 64], tmm1",
                "tilestored [{sums} + {row} + 128], tmm2",
                "tilestored [{sums} + {row} + 192], tmm3",
                codes = inout(reg) codes.as_ptr() => _,
                b0 = inout(reg) block(0) => _,
                b1 = inout(reg) block(1) => _,
                b2 = inout(reg) block(2) => _,
                b3 = inout(reg) block(3) => _,
                chunks = inout(reg) padded / CHUNK => _,
                stride = in(reg) padded,
                line = in(reg) size_of::<Bytes>(),
                sums = in(reg) self.sums.0.as_mut_ptr(),
                row = in(reg) size_of::<[i32; STRIP]>(),
                options(nostack),
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            );
        }
    }

    /// Two tiles of tokens, and of rows two after two: half the loads of [`Work::one`]. `pairs` of blocks are in use.
    fn two(
        &mut self,
        codes: &[u8],
        padded: usize,
        panel: &[Bytes],
        tokens: [usize; 2],
        pairs: usize,
    ) {
        self.configure(tokens);
        let per_block = padded / GROUP;
        assert!(codes.len() == (TILE + tokens[1]) * padded && tokens[0] == TILE);
        assert!(panel.len() == BLOCKS * per_block && padded > 0 && pairs <= 2 && tokens[1] <= TILE);
        for pair in 0..pairs {
            let block = |i: usize| panel[(2 * pair + i) * per_block..].as_ptr();
            // SAFETY: 16 rows of `padded` codes are read and then `tokens[1]` more, and `padded / 4` lines of each block, as
            // asserted; written are as many rows of 32 sums of `STRIP`, of which there are more. Sizes of tiles are as
            // configured.
            unsafe {
                asm!(
                    "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
                    "2:",
                    "tileloadd tmm4, [{a0} + {stride}]",
                    "tileloadd tmm6, [{b0} + {line}]",
                    "tileloadd tmm7, [{b1} + {line}]",
                    "tdpbusd tmm0, tmm4, tmm6",
                    "tileloadd tmm5, [{a1} + {stride}]",
                    "tdpbusd tmm1, tmm4, tmm7",
                    "tdpbusd tmm2, tmm5, tmm6",
                    "tdpbusd tmm3, tmm5, tmm7",
                    "add {a0}, 64", "add {a1}, 64", "add {b0}, 1024", "add {b1}, 1024",
                    "dec {chunks}",
                    "jnz 2b",
                    "tilestored [{sums} + {row}], tmm0",
                    "tilestored [{sums} + {row} + 64], tmm1",
                    "tilestored [{sums} + {row} + 4096], tmm2",
                    "tilestored [{sums} + {row} + 4160], tmm3",
                    a0 = inout(reg) codes.as_ptr() => _,
                    a1 = inout(reg) codes[TILE * padded..].as_ptr() => _,
                    b0 = inout(reg) block(0) => _,
                    b1 = inout(reg) block(1) => _,
                    chunks = inout(reg) padded / CHUNK => _,
                    stride = in(reg) padded,
                    line = in(reg) size_of::<Bytes>(),
                    sums = in(reg) self.sums.0.as_mut_ptr().cast::<i32>().add(pair * 2 * BLOCK),
                    row = in(reg) size_of::<[i32; STRIP]>(),
                    options(nostack),
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                );
            }
        }
    }
}

/// What the instructions above count with.
const _: () = assert!(TILE * size_of::<[i32; STRIP]>() == 4096 && BLOCKS == 4);
const _: () = assert!(size_of::<Bytes>() * CHUNK / GROUP == 1024);
