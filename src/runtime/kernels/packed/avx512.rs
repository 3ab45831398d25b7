//! AVX-512 with VNNI, VBMI and VPOPCNTDQ.
//!
//! One plane of signs with codes of 8 or 4 bits: four signs are an index into a table with the 16
//! sums that four codes can make, and `vpermb` looks up 64 of them at once (16 rows, 16 columns): 256
//! multiply-accumulates for two instructions, where `vpdpbusd` does 64. Codes of 8 bits are two
//! digits of 4. Levels and int8 go through `vpdpbusd`, two vectors of signs through `vpopcntd`.

// Loops over registers: by index they unroll, and closures would not be compiled for these features.
#![allow(clippy::needless_range_loop)]

use super::super::arena;
use super::quantise::{Quantised, Step};
use super::{
    BLOCK, Bits, Bytes, CHUNK, Form, GROUP, MAX_PLANES, Pass, Product, STRIP, Signs, Sum, WORD,
    Words,
};
use std::arch::x86_64::*;
use std::ops::Range;

/// Blocks of a strip: all kernels take this many at once.
const BLOCKS: usize = STRIP / BLOCK;
/// Columns of a half word: what one register of indices covers.
const HALF: usize = WORD / 2;
/// Bytes of tables that are made at once: a part of the second-level cache.
const TABLES: usize = 256 << 10;
/// Bytes of codes that all strips see before the next ones: as above.
const CODES: usize = 256 << 10;

pub(super) fn detected() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512vnni")
        && is_x86_feature_detected!("avx512vbmi")
        && is_x86_feature_detected!("avx512vpopcntdq")
}

#[target_feature(
    enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi,avx512vpopcntdq"
)]
pub(super) fn multiply(product: &mut Product) {
    let (weights, x) = (product.weights, product.x);
    match (&weights.form, x.bits) {
        (Form::Int8(int8), Bits::One) => {
            let codes = x.positive();
            bytes(product, Sum::Positive, &codes, |strip, _| Some(int8.strip(strip)));
            arena::give(codes);
        }
        (Form::Int8(int8), _) => {
            bytes(product, Sum::Products, &x.codes, |strip, _| Some(int8.strip(strip)));
        }
        (Form::Signs(signs), Bits::Eight) if signs.planes > 1 => {
            bytes(product, Sum::Products, &x.codes, |strip, panel| {
                expand_levels(signs, weights.padded(), strip * STRIP, panel);
                None
            });
        }
        (Form::Signs(signs), Bits::Eight) if x.tokens >= EXPAND && two_dots() => {
            bytes(product, Sum::Set, &x.codes, |strip, panel| {
                expand_bits(signs.strip(0, strip, weights.padded()), panel);
                None
            });
        }
        (Form::Signs(signs), Bits::Eight) => lookup::<2>(product, signs),
        (Form::Signs(signs), Bits::Four) => lookup::<1>(product, signs),
        (Form::Signs(signs), Bits::One) => differing(product, signs),
    }
}

/// Codes of 8 bits with signs: from so many tokens on, signs made bytes are as fast as tables, if `vpdpbusd` is.
const EXPAND: usize = 8;

/// Whether `vpdpbusd` runs twice a cycle: 128 multiply-accumulates, which tables for 8 bits do as well, but for making
/// them. AMD's Zen 4 runs it once, and tables are 1.1 times as fast there; Intel's servers twice, and tables take twice as long.
fn two_dots() -> bool {
    static TWO: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    *TWO.get_or_init(|| {
        let vendor = __cpuid(0);
        [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes).concat() == b"GenuineIntel"
    })
}

/// Products with weights as bytes, of one pass: part by part of the tokens, in it strip by strip. `panel` gives those of a
/// strip, `[BLOCKS, padded / 4]`, or writes them where it is told.
#[target_feature(
    enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi,avx512vpopcntdq"
)]
fn bytes<'a>(
    product: &mut Product,
    sum: Sum,
    codes: &[u8],
    panel: impl Fn(usize, &mut [Bytes]) -> Option<&'a [Bytes]>,
) {
    let (tokens, padded) = (product.x.tokens, product.weights.padded());
    let pass = product.weights.passes(product.x.bits).next().expect("one pass");
    let mut written = arena::room(BLOCKS * padded / GROUP);
    let most = CODES.checked_div(padded).map_or(tokens, |most| (most / 6 * 6).max(6));
    for first in (0..tokens).step_by(most) {
        for (strip, from) in (0..product.weights.rows).step_by(STRIP).enumerate() {
            let weights = panel(strip, &mut written).unwrap_or(&written);
            panel_strip(product, pass, sum, from, weights, codes, first..tokens.min(first + most));
        }
    }
    arena::give(written);
}

/// As `encode_rows`, which reads like what it does, with the same codes: four registers side by side, and integers
/// packed with saturation instead of cut in f32.
#[target_feature(
    enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi,avx512vpopcntdq"
)]
pub(super) fn encode(x: &[f32], out: &mut Quantised) {
    let (cols, padded) = (out.cols, out.padded());
    let levels = out.bits.levels();
    let zero = _mm512_setzero_ps();
    // `vpackusdw` and `vpackuswb` work within 128 bits: this puts the 32-bit lanes back in order.
    let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    let most = _mm512_set1_epi8(levels as i8);
    // Of the last columns, where they are no whole line.
    let tail = cols % CHUNK;
    let live = (1u64 << tail) - 1;
    for (t, (x, codes)) in x.chunks_exact(cols).zip(out.codes.chunks_exact_mut(padded)).enumerate()
    {
        let (lines, rest) = x.as_chunks::<CHUNK>();
        let (mut least, mut greatest) = ([zero; 4], [zero; 4]);
        let last = registers(rest, live);
        for line in lines.iter().map(|line| registers(line, u64::MAX)).chain([last]) {
            for i in 0..4 {
                // With NaN in the first place the second one stays.
                least[i] = _mm512_min_ps(line[i], least[i]);
                greatest[i] = _mm512_max_ps(line[i], greatest[i]);
            }
        }
        let [a, b, c, d] = least;
        let least = _mm512_reduce_min_ps(_mm512_min_ps(_mm512_min_ps(a, b), _mm512_min_ps(c, d)));
        let [a, b, c, d] = greatest;
        let greatest =
            _mm512_reduce_max_ps(_mm512_max_ps(_mm512_max_ps(a, b), _mm512_max_ps(c, d)));
        let step = Step::new(least, greatest, f32::from(levels));
        let inverse = _mm512_set1_ps(step.inverse);
        let shift = _mm512_set1_epi32(step.zero as i32);
        let code = |line: [__m512; 4]| {
            let mut values = [_mm512_setzero_si512(); 4];
            for i in 0..4 {
                let rounded = _mm512_cvtps_epi32(_mm512_mul_ps(line[i], inverse));
                values[i] = _mm512_add_epi32(rounded, shift);
            }
            let [a, b, c, d] = values;
            let bytes = _mm512_packus_epi16(_mm512_packus_epi32(a, b), _mm512_packus_epi32(c, d));
            _mm512_min_epu8(_mm512_permutexvar_epi32(order, bytes), most)
        };
        let mut totals = _mm512_setzero_si512();
        let (codes, _) = codes.as_chunks_mut::<CHUNK>();
        for (x, out) in lines.iter().zip(codes.iter_mut()) {
            let bytes = code(registers(x, u64::MAX));
            totals = _mm512_dpbusd_epi32(totals, bytes, _mm512_set1_epi8(1));
            // SAFETY: 64 bytes are written to an array of 64 bytes.
            unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), bytes) };
        }
        if let Some(out) = codes.get_mut(lines.len()) {
            // Zeros of the padding would be codes of zero.
            let bytes = _mm512_maskz_mov_epi8(live, code(last));
            totals = _mm512_dpbusd_epi32(totals, bytes, _mm512_set1_epi8(1));
            // SAFETY: 64 bytes are written to an array of 64 bytes.
            unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), bytes) };
        }
        out.scales[t] = step.scale;
        out.zeros[t] = step.zero as i32;
        out.totals[t] = _mm512_reduce_add_epi32(totals);
    }
}

/// As `sign_rows`, with the same signs and scales: a comparison makes 16 bits of a word.
#[target_feature(
    enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi,avx512vpopcntdq"
)]
pub(super) fn sign(x: &[f32], shift: &[f32], out: &mut Quantised) {
    let (cols, words) = (out.cols, out.padded() / WORD);
    let zero = _mm512_setzero_ps();
    let (live, whole) = ((1u64 << (cols % CHUNK)) - 1, cols / CHUNK);
    for (t, (x, packed)) in x.chunks_exact(cols).zip(out.words.chunks_exact_mut(words)).enumerate()
    {
        // Lanes 0 to 15 and 16 to 31 of a word.
        let mut sums = [zero; 2];
        let lines = x.chunks(CHUNK).zip(shift.chunks(CHUNK)).zip(packed.as_chunks_mut::<2>().0);
        for (line, ((x, shift), packed)) in lines.enumerate() {
            let live = if line < whole { u64::MAX } else { live };
            let (x, shift) = (registers(x, live), registers(shift, live));
            let mut signs = 0u64;
            for i in 0..4 {
                let u = _mm512_add_ps(x[i], shift[i]);
                sums[i % 2] = _mm512_add_ps(sums[i % 2], _mm512_abs_ps(u));
                let positive = _mm512_cmp_ps_mask::<_CMP_GE_OQ>(u, zero);
                signs |= u64::from(positive) << (16 * i);
            }
            signs &= live;
            *packed = [signs as u32, (signs >> 32) as u32];
        }
        let sum = _mm512_add_ps(sums[0], sums[1]);
        let (low, high) = (_mm512_castps512_ps256(sum), _mm512_extractf32x8_ps::<1>(sum));
        let sum = _mm256_add_ps(low, high);
        let sum = _mm_add_ps(_mm256_castps256_ps128(sum), _mm256_extractf128_ps::<1>(sum));
        let sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
        let sum = _mm_add_ss(sum, _mm_shuffle_ps::<1>(sum, sum));
        out.scales[t] = _mm_cvtss_f32(sum) / cols as f32;
    }
}

/// Up to 64 values, as many as there are bits in `live`, from the lowest on; zeros behind them.
#[inline]
#[target_feature(
    enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi,avx512vpopcntdq"
)]
fn registers(x: &[f32], live: u64) -> [__m512; 4] {
    assert!(x.len() >= (u64::BITS - live.leading_zeros()) as usize);
    let mut line = [_mm512_setzero_ps(); 4];
    for i in 0..4 {
        // SAFETY: what is not masked lies in `x`, as asserted.
        line[i] = unsafe {
            _mm512_maskz_loadu_ps((live >> (16 * i)) as u16, x.as_ptr().wrapping_add(16 * i))
        };
    }
    line
}

/// Codes of `DIGITS` times 4 bits and planes of signs, by tables.
#[target_feature(
    enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi,avx512vpopcntdq"
)]
fn lookup<const DIGITS: usize>(product: &mut Product, signs: &Signs) {
    let (weights, x) = (product.weights, product.x);
    let padded = weights.padded();
    let per_token = DIGITS * padded / HALF;
    let per_strip = BLOCKS * padded / WORD;
    // A multiple of 6, so that only the last part has odd tokens.
    let most = match per_token {
        0 => x.tokens,
        lines => (TABLES / size_of::<Bytes>() / lines / 6 * 6).max(6),
    };
    let mut tables = arena::room(most.min(x.tokens) * per_token);
    let mut indices = arena::room(if x.tokens > 2 { BLOCKS * padded / HALF } else { 0 });
    for first in (0..x.tokens).step_by(most) {
        let tokens = most.min(x.tokens - first);
        let straight = tokens <= 2;
        for t in 0..tokens {
            let codes = &x.codes[(first + t) * padded..][..padded];
            tabulate::<DIGITS>(codes, &mut tables[t * per_token..][..per_token]);
        }
        for k in 0..signs.planes {
            let (pass, plane) = (Pass::Plane(k), signs.plane(k, padded));
            for from in (0..weights.rows).step_by(STRIP) {
                let words = &plane[from / STRIP * per_strip..][..per_strip];
                if !straight {
                    index(words, &mut indices);
                }
                let mut t = 0;
                while t < tokens {
                    let (at, ahead) = (first + t, &tables[t * per_token..]);
                    t += match tokens - t {
                        1 if straight => {
                            let sums = look::<DIGITS, 1, true>(words, &[], ahead);
                            store(product, pass, Sum::Set, at, from, sums)
                        }
                        2 if straight => {
                            let sums = look::<DIGITS, 2, true>(words, &[], ahead);
                            store(product, pass, Sum::Set, at, from, sums)
                        }
                        1 => {
                            let sums = look::<DIGITS, 1, false>(words, &indices, ahead);
                            store(product, pass, Sum::Set, at, from, sums)
                        }
                        2 => {
                            let sums = look::<DIGITS, 2, false>(words, &indices, ahead);
                            store(product, pass, Sum::Set, at, from, sums)
                        }
                        _ => {
                            let sums = look::<DIGITS, 3, false>(words, &indices, ahead);
                            store(product, pass, Sum::Set, at, from, sums)
                        }
                    }
                }
            }
        }
    }
    arena::give_all([tables, indices]);
}

/// Tables of one token: for each 64 columns and digit four registers, each of four tables, of the
/// 16 sums of four codes. `codes`: `[padded]`; `tables`: `[padded / 64, DIGITS, 4]`.
#[target_feature(
    enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi,avx512vpopcntdq"
)]
fn tabulate<const DIGITS: usize>(codes: &[u8], tables: &mut [Bytes]) {
    // Lane j of 16 bytes takes code 4j + b, at the entries whose bit b is set.
    const SET: [u64; 4] = [
        0xaaaa_aaaa_aaaa_aaaa,
        0xcccc_cccc_cccc_cccc,
        0xf0f0_f0f0_f0f0_f0f0,
        0xff00_ff00_ff00_ff00,
    ];
    let lanes = _mm512_set_epi32(12, 12, 12, 12, 8, 8, 8, 8, 4, 4, 4, 4, 0, 0, 0, 0);
    let lanes = _mm512_mullo_epi32(lanes, _mm512_set1_epi32(0x0101_0101));
    let mut take = [lanes; 4];
    for (b, take) in take.iter_mut().enumerate() {
        *take = _mm512_add_epi8(lanes, _mm512_set1_epi8(b as i8));
    }
    let low = _mm_set1_epi8(15);
    let (codes, _) = codes.as_chunks::<16>();
    for (q, codes) in codes.iter().enumerate() {
        // SAFETY: 16 bytes are read from an array of 16 bytes.
        let codes = unsafe { _mm_loadu_si128(codes.as_ptr().cast()) };
        for digit in 0..DIGITS {
            let digits = match digit {
                0 => _mm_and_si128(codes, low),
                _ => _mm_and_si128(_mm_srli_epi16(codes, 4), low),
            };
            let digits = _mm512_broadcast_i32x4(digits);
            let mut sums = _mm512_maskz_shuffle_epi8(SET[0], digits, take[0]);
            for b in 1..4 {
                let part = _mm512_maskz_shuffle_epi8(SET[b], digits, take[b]);
                sums = _mm512_add_epi8(sums, part);
            }
            let line = &mut tables[(q / 4 * DIGITS + digit) * 4 + q % 4];
            // SAFETY: a line is 64 bytes, aligned to 64.
            unsafe { _mm512_store_si512(line.0.as_mut_ptr().cast(), sums) };
        }
    }
}

/// The shifts that bring the four nibbles of each half of a word into four bytes, a row each.
#[target_feature(
    enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi,avx512vpopcntdq"
)]
fn nibbles() -> [__m512i; 2] {
    [_mm512_set1_epi64(0x2c28_2420_0c08_0400), _mm512_set1_epi64(0x3c38_3430_1c18_1410)]
}

/// One half of the words of a block as places in four tables of 16.
#[inline]
#[target_feature(
    enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi,avx512vpopcntdq"
)]
fn places(words: __m512i, shifts: __m512i) -> __m512i {
    let spread = _mm512_multishift_epi64_epi8(shifts, words);
    // (spread & 15) | 16 · table
    let table = _mm512_set1_epi32(0x3020_1000);
    _mm512_ternarylogic_epi32::<0xea>(spread, _mm512_set1_epi8(15), table)
}

/// Signs of a strip, `[BLOCKS, words]`, as places: `[2 · words, BLOCKS]`.
#[target_feature(
    enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi,avx512vpopcntdq"
)]
fn index(words: &[Words], indices: &mut [Bytes]) {
    let shifts = nibbles();
    let per_block = words.len() / BLOCKS;
    for (w, indices) in indices.as_chunks_mut::<{ 2 * BLOCKS }>().0.iter_mut().enumerate() {
        for block in 0..BLOCKS {
            let word = load_words(&words[block * per_block + w]);
            for half in 0..2 {
                let line = &mut indices[half * BLOCKS + block];
                // SAFETY: a line is 64 bytes, aligned to 64.
                unsafe {
                    _mm512_store_si512(line.0.as_mut_ptr().cast(), places(word, shifts[half]));
                }
            }
        }
    }
}

/// Sums of the codes where signs are +1, of `T` tokens and a strip.
///
/// - `words`: `[BLOCKS, words]`
/// - `indices`: [`index`] of these, `[padded / 16, BLOCKS]`; not looked at when `STRAIGHT`, for so few
///   tokens that making them first would cost more
/// - `tables`: those of `T` tokens, [`tabulate`], and maybe more
#[inline]
#[target_feature(
    enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi,avx512vpopcntdq"
)]
fn look<const DIGITS: usize, const T: usize, const STRAIGHT: bool>(
    words: &[Words],
    indices: &[Bytes],
    tables: &[Bytes],
) -> [[__m512i; BLOCKS]; T] {
    let per_block = words.len() / BLOCKS;
    let chunks = per_block / 2;
    let per_token = chunks * DIGITS * 4;
    assert!(tables.len() >= T * per_token);
    assert!(STRAIGHT || indices.len() >= chunks * 4 * BLOCKS);
    let zero = _mm512_setzero_si512();
    let shifts = nibbles();
    let mut sums = [[zero; BLOCKS]; T];
    for chunk in 0..chunks {
        for digit in 0..DIGITS {
            // Four sums of four digits fit a byte: 4 · 4 · 15 = 240.
            let mut bytes = [[zero; BLOCKS]; T];
            for i in 0..4 {
                let mut at = [zero; BLOCKS];
                for block in 0..BLOCKS {
                    at[block] = if STRAIGHT {
                        let line = block * per_block + chunk * 2 + i / 2;
                        // SAFETY: `chunk` is below half of the words of a block, `i` below 4.
                        places(load_words(unsafe { words.get_unchecked(line) }), shifts[i % 2])
                    } else {
                        let line = (chunk * 4 + i) * BLOCKS + block;
                        // SAFETY: asserted above.
                        load(unsafe { indices.get_unchecked(line) })
                    };
                }
                for t in 0..T {
                    let line = t * per_token + (chunk * DIGITS + digit) * 4 + i;
                    // SAFETY: asserted above.
                    let table = load(unsafe { tables.get_unchecked(line) });
                    for block in 0..BLOCKS {
                        let found = _mm512_permutexvar_epi8(at[block], table);
                        bytes[t][block] = match i {
                            0 => found,
                            _ => _mm512_add_epi8(bytes[t][block], found),
                        };
                    }
                }
            }
            let worth = _mm512_set1_epi8(if digit == 0 { 1 } else { 16 });
            for t in 0..T {
                for block in 0..BLOCKS {
                    sums[t][block] = _mm512_dpbusd_epi32(sums[t][block], bytes[t][block], worth);
                }
            }
        }
    }
    sums
}

/// Codes of some tokens, of `[tokens, padded]`, with weights of a strip, `[BLOCKS, padded / 4]`.
#[target_feature(
    enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi,avx512vpopcntdq"
)]
fn panel_strip(
    product: &mut Product,
    pass: Pass,
    sum: Sum,
    from: usize,
    panel: &[Bytes],
    codes: &[u8],
    tokens: Range<usize>,
) {
    let mut t = tokens.start;
    while t < tokens.end {
        let ahead = &codes[t * product.weights.padded()..];
        t += match tokens.end - t {
            1 => store(product, pass, sum, t, from, dot::<1>(panel, ahead)),
            2 | 3 => store(product, pass, sum, t, from, dot::<2>(panel, ahead)),
            4 | 5 => store(product, pass, sum, t, from, dot::<4>(panel, ahead)),
            _ => store(product, pass, sum, t, from, dot::<6>(panel, ahead)),
        }
    }
}

#[inline]
#[target_feature(
    enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi,avx512vpopcntdq"
)]
fn dot<const T: usize>(panel: &[Bytes], codes: &[u8]) -> [[__m512i; BLOCKS]; T] {
    let groups = panel.len() / BLOCKS;
    assert!(codes.len() >= T * groups * GROUP);
    let mut sums = [[_mm512_setzero_si512(); BLOCKS]; T];
    for group in 0..groups {
        let mut weights = [_mm512_setzero_si512(); BLOCKS];
        for block in 0..BLOCKS {
            // SAFETY: `group` is below the number of groups.
            weights[block] = load(unsafe { panel.get_unchecked(block * groups + group) });
        }
        for t in 0..T {
            // SAFETY: asserted above; the read needs no alignment.
            let codes = unsafe {
                let at = codes.as_ptr().add((t * groups + group) * GROUP);
                _mm512_set1_epi32(at.cast::<i32>().read_unaligned())
            };
            for block in 0..BLOCKS {
                sums[t][block] = _mm512_dpbusd_epi32(sums[t][block], codes, weights[block]);
            }
        }
    }
    sums
}

/// Signs of a strip, `[BLOCKS, padded / 32]`, as 0 and 1, `[BLOCKS, padded / 4]`.
#[target_feature(
    enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi,avx512vpopcntdq"
)]
pub(super) fn expand_bits(words: &[Words], panel: &mut [Bytes]) {
    let one = _mm512_set1_epi8(1);
    let (lines, _) = panel.as_chunks_mut::<{ WORD / GROUP }>();
    assert_eq!(lines.len(), words.len(), "words of a strip");
    for (lines, words) in lines.iter_mut().zip(words) {
        let words = load_words(words);
        let mut shifts = _mm512_set1_epi64(0x2322_2120_0302_0100);
        for line in lines {
            let bits = _mm512_and_si512(_mm512_multishift_epi64_epi8(shifts, words), one);
            // SAFETY: a line is 64 bytes, aligned to 64.
            unsafe { _mm512_store_si512(line.0.as_mut_ptr().cast(), bits) };
            shifts = _mm512_add_epi8(shifts, _mm512_set1_epi8(GROUP as i8));
        }
    }
}

/// The levels of a strip from row `from` on: `[BLOCKS, padded / 4]`.
#[target_feature(
    enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi,avx512vpopcntdq"
)]
pub(super) fn expand_levels(signs: &Signs, padded: usize, from: usize, panel: &mut [Bytes]) {
    match signs.planes {
        2 => expand::<2, 4>(signs, padded, from, panel),
        3 => expand::<3, 8>(signs, padded, from, panel),
        _ => expand::<MAX_PLANES, 16>(signs, padded, from, panel),
    }
}

#[target_feature(
    enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi,avx512vpopcntdq"
)]
fn expand<const K: usize, const LEVELS: usize>(
    signs: &Signs,
    padded: usize,
    from: usize,
    panel: &mut [Bytes],
) {
    let table = &signs.whole().table;
    let (words, groups) = (padded / WORD, padded / GROUP);
    let (zero, bit) = (_mm512_setzero_si512(), _mm512_set1_epi8(1));
    for block in 0..BLOCKS {
        let first = from + block * BLOCK;
        // Each level of a row in the four bytes of its lane. Padding columns meet codes of zero.
        let mut levels = [zero; LEVELS];
        for (i, levels) in levels.iter_mut().enumerate() {
            let mut line = Bytes::ZERO;
            for (r, bytes) in line.0.as_chunks_mut::<GROUP>().0.iter_mut().enumerate() {
                *bytes = [table.get(first + r).map_or(0, |row| row[i]); GROUP];
            }
            *levels = load(&line);
        }
        let mut planes: [&[Words]; K] = [&[]; K];
        for (k, plane) in planes.iter_mut().enumerate() {
            *plane = &signs.plane(k, padded)[first / BLOCK * words..][..words];
        }
        let (lines, _) = panel[block * groups..][..groups].as_chunks_mut::<{ WORD / GROUP }>();
        for (w, lines) in lines.iter_mut().enumerate() {
            let mut shifts = _mm512_set1_epi64(0x2322_2120_0302_0100);
            for line in lines {
                let mut chosen = levels;
                for k in 0..K {
                    let signs = _mm512_multishift_epi64_epi8(shifts, load_words(&planes[k][w]));
                    let set = _mm512_test_epi8_mask(signs, bit);
                    for i in 0..LEVELS >> (k + 1) {
                        chosen[i] = _mm512_mask_blend_epi8(set, chosen[2 * i], chosen[2 * i + 1]);
                    }
                }
                // SAFETY: a line is 64 bytes, aligned to 64.
                unsafe { _mm512_store_si512(line.0.as_mut_ptr().cast(), chosen[0]) };
                shifts = _mm512_add_epi8(shifts, _mm512_set1_epi8(GROUP as i8));
            }
        }
    }
}

/// Signs with signs.
#[target_feature(
    enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi,avx512vpopcntdq"
)]
fn differing(product: &mut Product, signs: &Signs) {
    let (weights, x) = (product.weights, product.x);
    let padded = weights.padded();
    let per_strip = BLOCKS * padded / WORD;
    for k in 0..signs.planes {
        let plane = signs.plane(k, padded);
        for from in (0..weights.rows).step_by(STRIP) {
            let words = &plane[from / STRIP * per_strip..][..per_strip];
            let (pass, sum) = (Pass::Plane(k), Sum::Differing);
            let mut t = 0;
            while t < x.tokens {
                let ahead = &x.words[t * padded / WORD..];
                t += match x.tokens - t {
                    1 => store(product, pass, sum, t, from, differ::<1>(words, ahead)),
                    2 | 3 => store(product, pass, sum, t, from, differ::<2>(words, ahead)),
                    _ => store(product, pass, sum, t, from, differ::<4>(words, ahead)),
                }
            }
        }
    }
}

#[inline]
#[target_feature(
    enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi,avx512vpopcntdq"
)]
fn differ<const T: usize>(words: &[Words], x: &[u32]) -> [[__m512i; BLOCKS]; T] {
    let per_block = words.len() / BLOCKS;
    assert!(x.len() >= T * per_block);
    let mut sums = [[_mm512_setzero_si512(); BLOCKS]; T];
    for w in 0..per_block {
        let mut lines = [_mm512_setzero_si512(); BLOCKS];
        for block in 0..BLOCKS {
            // SAFETY: `w` is below the number of words.
            lines[block] = load_words(unsafe { words.get_unchecked(block * per_block + w) });
        }
        for t in 0..T {
            // SAFETY: asserted above.
            let x = _mm512_set1_epi32(unsafe { *x.get_unchecked(t * per_block + w) } as i32);
            for block in 0..BLOCKS {
                let count = _mm512_popcnt_epi32(_mm512_xor_si512(x, lines[block]));
                sums[t][block] = _mm512_add_epi32(sums[t][block], count);
            }
        }
    }
    sums
}

/// Finishes `T` tokens from `first` on, and says how many those were.
#[inline]
#[target_feature(
    enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi,avx512vpopcntdq"
)]
fn store<const T: usize>(
    product: &mut Product,
    pass: Pass,
    sum: Sum,
    first: usize,
    from: usize,
    sums: [[__m512i; BLOCKS]; T],
) -> usize {
    for (t, sums) in sums.iter().enumerate() {
        let mut row = [0i32; STRIP];
        for (row, &sums) in row.as_chunks_mut::<BLOCK>().0.iter_mut().zip(sums) {
            // SAFETY: 64 bytes are written to an array of 64 bytes.
            unsafe { _mm512_storeu_si512(row.as_mut_ptr().cast(), sums) };
        }
        product.finish(pass, sum, first + t, from, &row);
    }
    T
}

#[inline]
#[target_feature(
    enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi,avx512vpopcntdq"
)]
fn load(line: &Bytes) -> __m512i {
    // SAFETY: a line is 64 bytes, aligned to 64.
    unsafe { _mm512_load_si512(line.0.as_ptr().cast()) }
}

#[inline]
#[target_feature(
    enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi,avx512vpopcntdq"
)]
fn load_words(line: &Words) -> __m512i {
    // SAFETY: a line is 64 bytes, aligned to 64.
    unsafe { _mm512_load_si512(line.0.as_ptr().cast()) }
}
const _: () = assert!(CHUNK == 4 * HALF);
