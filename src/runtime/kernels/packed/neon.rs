//! NEON, with `sdot` where the machine has it.
//!
//! Both multiply signed bytes, so codes of 8 bits are made signed by taking 128 off, which the sum of
//! a row's weights makes good at the end. Two vectors of signs: `cnt`.

// Loops over registers: by index they unroll, and closures would not be compiled for these features.
#![allow(clippy::needless_range_loop)]

use super::super::arena;
use super::{BLOCK, Bits, Bytes, Form, GROUP, Pass, Product, Signs, Sum, WORD, Words};
use std::arch::aarch64::*;
use std::arch::{asm, is_aarch64_feature_detected};

/// Registers of a block.
const QUARTERS: usize = 4;
/// Rows of a register.
const LANES: usize = BLOCK / QUARTERS;
/// What is taken off codes of 8 bits.
const SHIFT: u8 = 128;
/// Steps after which sums of 16 bits may be full: 255 · 128 < 2^15 for signs, 3 · 128 · 64 for others.
const STEPS: [usize; 2] = [3, 255];
/// Words after which counts of 8 bits may be full: 31 · 8 < 2^8.
const COUNTS: usize = 31;

type Sums = [int32x4_t; QUARTERS];

pub(super) fn detected() -> bool {
    is_aarch64_feature_detected!("neon")
}

/// Whether there is `sdot`.
pub(super) fn dot_detected() -> bool {
    detected() && is_aarch64_feature_detected!("dotprod")
}

/// # Safety
/// With `DOT`, the machine has `sdot`.
#[target_feature(enable = "neon")]
pub(super) unsafe fn multiply<const DOT: bool>(product: &mut Product) {
    let (weights, x) = (product.weights, product.x);
    let padded = weights.padded();
    let words = padded / WORD;
    let per_block = padded / GROUP;
    if let (Form::Signs(signs), Bits::One) = (&weights.form, x.bits) {
        for k in 0..signs.planes {
            for from in (0..weights.rows).step_by(BLOCK) {
                let lines = &signs.plane(k, padded)[from / BLOCK * words..][..words];
                differing(product, k, from, lines);
            }
        }
        return;
    }
    let codes = signed(product);
    let mut scratch = arena::room(per_block);
    for pass in weights.passes(x.bits) {
        for from in (0..weights.rows).step_by(BLOCK) {
            // SAFETY: as promised to this function.
            unsafe {
                match (&weights.form, pass) {
                    (Form::Int8(int8), _) => {
                        let panel = &int8.codes[from / BLOCK * per_block..][..per_block];
                        block::<DOT, false>(product, pass, from, panel, &codes);
                    }
                    (Form::Signs(signs), Pass::Plane(k)) => {
                        let lines = &signs.plane(k, padded)[from / BLOCK * words..][..words];
                        expand_signs(lines, &mut scratch);
                        block::<DOT, true>(product, pass, from, &scratch, &codes);
                    }
                    (Form::Signs(signs), Pass::Whole) => {
                        expand_levels(signs, padded, from, &mut scratch);
                        block::<DOT, false>(product, pass, from, &scratch, &codes);
                    }
                }
            }
        }
    }
    arena::give(scratch);
    arena::give(codes);
}

/// The codes as signed bytes, less [`SHIFT`] if they have 8 bits: `[tokens, padded]`, zeros in the
/// padding, in the arena's room.
fn signed(product: &Product) -> Vec<i8> {
    let x = product.x;
    let less = |codes: &[u8], shift: u8| {
        let mut signed = arena::room(codes.len());
        let codes = codes.iter().map(|code| code.wrapping_sub(shift) as i8);
        signed.iter_mut().zip(codes).for_each(|(to, code)| *to = code);
        signed
    };
    match x.bits {
        Bits::One => {
            let positive = x.positive();
            let signed = less(&positive, 0);
            arena::give(positive);
            signed
        }
        Bits::Four => less(&x.codes, 0),
        Bits::Eight => {
            let mut codes = less(&x.codes, SHIFT);
            let padded = x.padded();
            (0..x.tokens).for_each(|t| codes[t * padded..][..padded][x.cols..].fill(0));
            codes
        }
    }
}

/// Codes of all tokens, `[tokens, padded]`, with weights of a block, `[padded / 4]`; `SIGNS`: all of
/// these are ±1.
///
/// # Safety
/// With `DOT`, the machine has `sdot`.
#[target_feature(enable = "neon")]
unsafe fn block<const DOT: bool, const SIGNS: bool>(
    product: &mut Product,
    pass: Pass,
    from: usize,
    panel: &[Bytes],
    codes: &[i8],
) {
    let (tokens, padded) = (product.x.tokens, product.weights.padded());
    let sum = if product.x.bits == Bits::One { Sum::Positive } else { Sum::Products };
    let mut t = 0;
    while t < tokens {
        let ahead = &codes[t * padded..];
        // SAFETY: as promised to this function.
        t += unsafe {
            match tokens - t {
                1 if DOT => store(product, pass, sum, t, from, dot::<1>(panel, ahead)),
                2 | 3 if DOT => store(product, pass, sum, t, from, dot::<2>(panel, ahead)),
                _ if DOT => store(product, pass, sum, t, from, dot::<4>(panel, ahead)),
                1 => store(product, pass, sum, t, from, long::<SIGNS, 1>(panel, ahead)),
                _ => store(product, pass, sum, t, from, long::<SIGNS, 2>(panel, ahead)),
            }
        }
    }
}

/// By `sdot`: four columns of four rows in one instruction.
#[target_feature(enable = "neon,dotprod")]
fn dot<const T: usize>(panel: &[Bytes], codes: &[i8]) -> [Sums; T] {
    assert!(codes.len() >= T * panel.len() * GROUP);
    let mut sums = [[vdupq_n_s32(0); QUARTERS]; T];
    for (group, line) in panel.iter().enumerate() {
        let weights = quarters(line);
        for t in 0..T {
            // SAFETY: asserted above.
            let codes = unsafe { four(codes, t * panel.len() + group) };
            for q in 0..QUARTERS {
                // The intrinsic is not stable yet.
                // SAFETY: only the registers named are touched, and this function has the feature.
                unsafe {
                    asm!(
                        "sdot {sum:v}.4s, {weights:v}.16b, {codes:v}.16b",
                        sum = inout(vreg) sums[t][q],
                        weights = in(vreg) weights[q],
                        codes = in(vreg) codes,
                        options(pure, nomem, nostack, preserves_flags),
                    );
                }
            }
        }
    }
    sums
}

/// By `smlal` into 16 bits, and these by `sadalp` into 32 before they are full.
#[target_feature(enable = "neon")]
fn long<const SIGNS: bool, const T: usize>(panel: &[Bytes], codes: &[i8]) -> [Sums; T] {
    assert!(codes.len() >= T * panel.len() * GROUP);
    // Two sums for each row, of the even and of the odd pairs of columns.
    let mut sums = [[[vdupq_n_s32(0); 2]; QUARTERS]; T];
    let steps = STEPS[usize::from(SIGNS)];
    for (part, lines) in panel.chunks(steps).enumerate() {
        let mut short = [[[vdupq_n_s16(0); 2]; QUARTERS]; T];
        for (i, line) in lines.iter().enumerate() {
            let weights = quarters(line);
            for t in 0..T {
                // SAFETY: asserted above.
                let codes = unsafe { four(codes, t * panel.len() + part * steps + i) };
                for q in 0..QUARTERS {
                    let [low, high] = short[t][q];
                    let low = vmlal_s8(low, vget_low_s8(weights[q]), vget_low_s8(codes));
                    short[t][q] = [low, vmlal_high_s8(high, weights[q], codes)];
                }
            }
        }
        for t in 0..T {
            for q in 0..QUARTERS {
                for half in 0..2 {
                    sums[t][q][half] = vpadalq_s16(sums[t][q][half], short[t][q][half]);
                }
            }
        }
    }
    let mut out = [[vdupq_n_s32(0); QUARTERS]; T];
    for t in 0..T {
        for q in 0..QUARTERS {
            out[t][q] = vpaddq_s32(sums[t][q][0], sums[t][q][1]);
        }
    }
    out
}

/// Four codes from `4 · group` on, in each lane.
///
/// # Safety
/// There are so many.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn four(codes: &[i8], group: usize) -> int8x16_t {
    // SAFETY: as promised; the read needs no alignment.
    let codes = unsafe { codes.as_ptr().add(group * GROUP).cast::<i32>().read_unaligned() };
    vreinterpretq_s8_s32(vdupq_n_s32(codes))
}

/// 0xff where bits `4 · group..` of the words of four rows are set, one after the other, and 0 where not.
#[inline]
#[target_feature(enable = "neon")]
fn spread(words: uint8x16_t, group: usize) -> uint8x16_t {
    const ROWS: [u8; 16] = [0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12];
    let at = vaddq_u8(bytes(&ROWS), vdupq_n_u8((group / 2) as u8));
    let bits = vreinterpretq_u8_u32(vdupq_n_u32(0x0804_0201 << (group % 2 * 4)));
    vtstq_u8(vqtbl1q_u8(words, at), bits)
}

/// Signs of a block, `[words]`, as ±1: `[8 · words]`.
#[target_feature(enable = "neon")]
fn expand_signs(words: &[Words], panel: &mut [Bytes]) {
    let (plus, minus) = (vdupq_n_s8(1), vdupq_n_s8(-1));
    for (words, lines) in words.iter().zip(panel.as_chunks_mut::<{ WORD / GROUP }>().0) {
        let words = word_quarters(words);
        for (group, line) in lines.iter_mut().enumerate() {
            for q in 0..QUARTERS {
                store_quarter(line, q, vbslq_s8(spread(words[q], group), plus, minus));
            }
        }
    }
}

/// The levels of a block from row `from` on: `[padded / 4]`.
#[target_feature(enable = "neon")]
fn expand_levels(signs: &Signs, padded: usize, from: usize, panel: &mut [Bytes]) {
    const ROWS: [u8; 16] = [0, 0, 0, 0, 16, 16, 16, 16, 32, 32, 32, 32, 48, 48, 48, 48];
    let table = &signs.whole().table;
    let words = padded / WORD;
    let (lines, _) = panel.as_chunks_mut::<{ WORD / GROUP }>();
    for q in 0..QUARTERS {
        // The 16 levels of each of four rows: one table of 64.
        let level = |r: usize| table.get(from + q * LANES + r).copied().unwrap_or_default();
        let levels: [[i8; 16]; LANES] = std::array::from_fn(level);
        let registers = levels.map(|row| bytes(&row.map(|level| level as u8)));
        let [a, b, c, d] = registers;
        let levels = uint8x16x4_t(a, b, c, d);
        for (w, lines) in lines.iter_mut().enumerate() {
            for (group, line) in lines.iter_mut().enumerate() {
                let mut at = bytes(&ROWS);
                for k in 0..signs.planes {
                    let plane = &signs.plane(k, padded)[from / BLOCK * words..][..words];
                    let set = spread(word_quarters(&plane[w])[q], group);
                    at = vorrq_u8(at, vandq_u8(set, vdupq_n_u8(1 << k)));
                }
                store_quarter(line, q, vreinterpretq_s8_u8(vqtbl4q_u8(levels, at)));
            }
        }
    }
}

/// Signs of all tokens with those of a block, `[words]`.
#[target_feature(enable = "neon")]
fn differing(product: &mut Product, k: usize, from: usize, words: &[Words]) {
    let x = product.x;
    let mut t = 0;
    while t < x.tokens {
        let ahead = &x.words[t * words.len()..];
        let (pass, sum) = (Pass::Plane(k), Sum::Differing);
        t += match x.tokens - t {
            1 => store(product, pass, sum, t, from, differ::<1>(words, ahead)),
            2 | 3 => store(product, pass, sum, t, from, differ::<2>(words, ahead)),
            _ => store(product, pass, sum, t, from, differ::<4>(words, ahead)),
        }
    }
}

#[target_feature(enable = "neon")]
fn differ<const T: usize>(words: &[Words], x: &[u32]) -> [Sums; T] {
    let mut sums = [[vdupq_n_u32(0); QUARTERS]; T];
    for (part, lines) in words.chunks(COUNTS).enumerate() {
        let mut counts = [[vdupq_n_u8(0); QUARTERS]; T];
        for (i, line) in lines.iter().enumerate() {
            let line = word_quarters(line);
            for t in 0..T {
                let x = x[t * words.len() + part * COUNTS + i];
                let x = vreinterpretq_u8_u32(vdupq_n_u32(x));
                for q in 0..QUARTERS {
                    let count = vcntq_u8(veorq_u8(x, line[q]));
                    counts[t][q] = vaddq_u8(counts[t][q], count);
                }
            }
        }
        for t in 0..T {
            for q in 0..QUARTERS {
                sums[t][q] = vpadalq_u16(sums[t][q], vpaddlq_u8(counts[t][q]));
            }
        }
    }
    let mut out = [[vdupq_n_s32(0); QUARTERS]; T];
    for t in 0..T {
        for q in 0..QUARTERS {
            out[t][q] = vreinterpretq_s32_u32(sums[t][q]);
        }
    }
    out
}

/// Finishes `T` tokens from `first` on, and says how many those were.
#[target_feature(enable = "neon")]
fn store<const T: usize>(
    product: &mut Product,
    pass: Pass,
    sum: Sum,
    first: usize,
    from: usize,
    sums: [Sums; T],
) -> usize {
    let weights = product.weights;
    let shift = if product.x.bits == Bits::Eight { i32::from(SHIFT) } else { 0 };
    for (t, sums) in sums.iter().enumerate() {
        let mut row = [0i32; BLOCK];
        for (row, &sums) in row.as_chunks_mut::<LANES>().0.iter_mut().zip(sums) {
            // SAFETY: 16 bytes are written to an array of 16 bytes.
            unsafe { vst1q_s32(row.as_mut_ptr(), sums) };
        }
        for (sum, row_sum) in row.iter_mut().zip(&weights.sums(pass)[from..]) {
            *sum += shift * row_sum;
        }
        product.finish(pass, sum, first + t, from, &row);
    }
    T
}

#[inline]
#[target_feature(enable = "neon")]
fn bytes(bytes: &[u8; 16]) -> uint8x16_t {
    // SAFETY: 16 bytes are read from an array of 16 bytes.
    unsafe { vld1q_u8(bytes.as_ptr()) }
}

#[inline]
#[target_feature(enable = "neon")]
fn quarters(line: &Bytes) -> [int8x16_t; QUARTERS] {
    let at = line.0.as_ptr();
    // SAFETY: a line is 64 bytes.
    unsafe { [vld1q_s8(at), vld1q_s8(at.add(16)), vld1q_s8(at.add(32)), vld1q_s8(at.add(48))] }
}

#[inline]
#[target_feature(enable = "neon")]
fn word_quarters(line: &Words) -> [uint8x16_t; QUARTERS] {
    let at: *const u8 = line.0.as_ptr().cast();
    // SAFETY: a line is 64 bytes, and the first byte of a word its lowest bits: the target is little-endian.
    unsafe { [vld1q_u8(at), vld1q_u8(at.add(16)), vld1q_u8(at.add(32)), vld1q_u8(at.add(48))] }
}

#[inline]
#[target_feature(enable = "neon")]
fn store_quarter(line: &mut Bytes, q: usize, values: int8x16_t) {
    let (quarters, _) = line.0.as_chunks_mut::<16>();
    // SAFETY: 16 bytes are written to an array of 16 bytes.
    unsafe { vst1q_s8(quarters[q].as_mut_ptr(), values) };
}
