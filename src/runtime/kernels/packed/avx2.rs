//! AVX2.
//!
//! Codes of 8 bits: `vpmaddubsw`, with signs, levels or int8 weights as bytes. Products with ±1 stay in 16 bits for 64
//! steps. Signs with codes of 4 bits, and with signs of more than a few tokens: by tables (`nibbles`).

// Loops over registers: by index they unroll, and closures would not be compiled for these features.
#![allow(clippy::needless_range_loop)]

use super::super::arena;
use super::{
    BLOCK, Bits, Bytes, Form, GROUP, MAX_PLANES, Pass, Product, Signs, Sum, WORD, Words, nibbles,
};
use std::arch::x86_64::*;

/// Registers of a block.
const HALVES: usize = 2;
/// Rows of a register.
const LANES: usize = BLOCK / HALVES;
/// Words after which counts of 8 bits may be full: 31 · 8 < 2^8.
const COUNTS: usize = 31;
/// Steps after which sums of 16 bits may be full: 64 · 2 · 255 < 2^15.
const SHORT: usize = 64;

pub(super) fn detected() -> bool {
    is_x86_feature_detected!("avx2")
}

#[target_feature(enable = "avx2")]
pub(super) fn multiply(product: &mut Product) {
    let (weights, x) = (product.weights, product.x);
    let padded = weights.padded();
    let per_block = padded / GROUP;
    let mut scratch = arena::room(per_block);
    match (&weights.form, x.bits) {
        (Form::Int8(int8), bits) => {
            let mut signs = Vec::new();
            let (codes, sum) = match bits {
                Bits::One => {
                    signs = x.positive();
                    (&signs, Sum::Positive)
                }
                _ => (&x.codes, Sum::Products),
            };
            for from in (0..weights.rows).step_by(BLOCK) {
                let panel = &int8.codes[from / BLOCK * per_block..][..per_block];
                block::<false>(product, Pass::Whole, sum, from, panel, codes);
            }
            arena::give(signs);
        }
        (Form::Signs(signs), Bits::Eight) if signs.planes > 1 => {
            for from in (0..weights.rows).step_by(BLOCK) {
                expand_levels(signs, padded, from, &mut scratch);
                block::<false>(product, Pass::Whole, Sum::Products, from, &scratch, &x.codes);
            }
        }
        (Form::Signs(signs), Bits::Eight) if x.tokens > FEW => {
            let words = padded / WORD;
            for from in (0..weights.rows).step_by(BLOCK) {
                let lines = &signs.plane(0, padded)[from / BLOCK * words..][..words];
                expand_signs(lines, &mut scratch);
                let (pass, sum) = (Pass::Plane(0), Sum::Products);
                block::<true>(product, pass, sum, from, &scratch, &x.codes);
            }
        }
        (Form::Signs(signs), Bits::Eight) => nibbles::multiply::<2>(product, signs),
        (Form::Signs(signs), Bits::Four) => nibbles::multiply::<1>(product, signs),
        (Form::Signs(signs), Bits::One) if x.tokens > FEW => {
            nibbles::multiply::<0>(product, signs);
        }
        (Form::Signs(signs), Bits::One) => {
            let words = padded / WORD;
            for k in 0..signs.planes {
                for from in (0..weights.rows).step_by(BLOCK) {
                    let lines = &signs.plane(k, padded)[from / BLOCK * words..][..words];
                    differing(product, k, from, lines);
                }
            }
        }
    }
    arena::give(scratch);
}

/// Tokens up to which tables are faster for codes of 8 bits than signs made bytes, and slower for signs than counting:
/// then bringing the weights into order for them counts.
const FEW: usize = 2;

/// Codes of all tokens, `[tokens, padded]`, with weights of a block, `[padded / 4]`; `SIGNS`: all of
/// these are ±1.
#[target_feature(enable = "avx2")]
fn block<const SIGNS: bool>(
    product: &mut Product,
    pass: Pass,
    sum: Sum,
    from: usize,
    panel: &[Bytes],
    codes: &[u8],
) {
    let tokens = product.x.tokens;
    let mut t = 0;
    while t < tokens {
        let ahead = &codes[t * product.weights.padded()..];
        t += match tokens - t {
            1 => store(product, pass, sum, t, from, dot::<SIGNS, 1>(panel, ahead)),
            2 | 3 => store(product, pass, sum, t, from, dot::<SIGNS, 2>(panel, ahead)),
            _ => store(product, pass, sum, t, from, dot::<SIGNS, 4>(panel, ahead)),
        }
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn dot<const SIGNS: bool, const T: usize>(panel: &[Bytes], codes: &[u8]) -> [[__m256i; HALVES]; T] {
    let groups = panel.len();
    assert!(codes.len() >= T * groups * GROUP);
    let (zero, ones) = (_mm256_setzero_si256(), _mm256_set1_epi16(1));
    let mut sums = [[zero; HALVES]; T];
    for start in (0..groups).step_by(SHORT) {
        let mut short = [[zero; HALVES]; T];
        for group in start..groups.min(start + SHORT) {
            // SAFETY: `group` is below the number of groups.
            let weights = halves(unsafe { panel.get_unchecked(group) });
            for t in 0..T {
                // SAFETY: asserted above; the read needs no alignment.
                let codes = unsafe {
                    let at = codes.as_ptr().add((t * groups + group) * GROUP);
                    _mm256_set1_epi32(at.cast::<i32>().read_unaligned())
                };
                for half in 0..HALVES {
                    // Two products fit 16 bits: 2 · 255 · 64 < 2^15.
                    let pairs = _mm256_maddubs_epi16(codes, weights[half]);
                    if SIGNS {
                        short[t][half] = _mm256_add_epi16(short[t][half], pairs);
                    } else {
                        let fours = _mm256_madd_epi16(pairs, ones);
                        sums[t][half] = _mm256_add_epi32(sums[t][half], fours);
                    }
                }
            }
        }
        if SIGNS {
            for t in 0..T {
                for half in 0..HALVES {
                    let fours = _mm256_madd_epi16(short[t][half], ones);
                    sums[t][half] = _mm256_add_epi32(sums[t][half], fours);
                }
            }
        }
    }
    sums
}

/// Bytes that are not zero where bits `4 · group..` of a word are set, one after the other.
#[inline]
#[target_feature(enable = "avx2")]
fn spread(words: __m256i, group: usize) -> __m256i {
    let byte = (group / 2) as i32 * 0x0101_0101;
    let lanes = _mm256_setr_epi32(
        0,
        0x0404_0404,
        0x0808_0808,
        0x0c0c_0c0c,
        0,
        0x0404_0404,
        0x0808_0808,
        0x0c0c_0c0c,
    );
    let bytes = _mm256_shuffle_epi8(words, _mm256_add_epi8(lanes, _mm256_set1_epi32(byte)));
    let bits = 0x0804_0201u32 << (group % 2 * 4);
    _mm256_and_si256(bytes, _mm256_set1_epi32(bits as i32))
}

/// Signs of a block, `[words]`, as ±1: `[8 · words]`.
#[target_feature(enable = "avx2")]
fn expand_signs(words: &[Words], panel: &mut [Bytes]) {
    let (zero, one) = (_mm256_setzero_si256(), _mm256_set1_epi8(1));
    for (words, lines) in words.iter().zip(panel.as_chunks_mut::<{ WORD / GROUP }>().0) {
        let words = word_halves(words);
        for (group, line) in lines.iter_mut().enumerate() {
            let mut signs = [zero; HALVES];
            for half in 0..HALVES {
                // 0 becomes -1, all else 0; then 1 is put into it.
                let unset = _mm256_cmpeq_epi8(spread(words[half], group), zero);
                signs[half] = _mm256_or_si256(unset, one);
            }
            store_halves(line, signs);
        }
    }
}

/// The levels of a block from row `from` on: `[padded / 4]`.
#[target_feature(enable = "avx2")]
fn expand_levels(signs: &Signs, padded: usize, from: usize, panel: &mut [Bytes]) {
    match signs.planes {
        2 => expand::<2, 4>(signs, padded, from, panel),
        3 => expand::<3, 8>(signs, padded, from, panel),
        _ => expand::<MAX_PLANES, 16>(signs, padded, from, panel),
    }
}

#[target_feature(enable = "avx2")]
fn expand<const K: usize, const LEVELS: usize>(
    signs: &Signs,
    padded: usize,
    from: usize,
    panel: &mut [Bytes],
) {
    let table = &signs.whole().table;
    let words = padded / WORD;
    let zero = _mm256_setzero_si256();
    // Each level of a row in the four bytes of its lane. Padding columns meet codes of zero.
    let mut levels = [[zero; HALVES]; LEVELS];
    for (i, levels) in levels.iter_mut().enumerate() {
        let mut line = Bytes::ZERO;
        for (r, bytes) in line.0.as_chunks_mut::<GROUP>().0.iter_mut().enumerate() {
            *bytes = [table.get(from + r).map_or(0, |row| row[i]); GROUP];
        }
        *levels = halves(&line);
    }
    let mut planes: [&[Words]; K] = [&[]; K];
    for (k, plane) in planes.iter_mut().enumerate() {
        *plane = &signs.plane(k, padded)[from / BLOCK * words..][..words];
    }
    let (lines, _) = panel.as_chunks_mut::<{ WORD / GROUP }>();
    for (w, lines) in lines.iter_mut().enumerate() {
        for (group, line) in lines.iter_mut().enumerate() {
            let mut out = [zero; HALVES];
            for half in 0..HALVES {
                let mut chosen = [zero; LEVELS];
                for i in 0..LEVELS {
                    chosen[i] = levels[i][half];
                }
                for k in 0..K {
                    let words = word_halves(&planes[k][w])[half];
                    let unset = _mm256_cmpeq_epi8(spread(words, group), zero);
                    for i in 0..LEVELS >> (k + 1) {
                        chosen[i] = _mm256_blendv_epi8(chosen[2 * i + 1], chosen[2 * i], unset);
                    }
                }
                out[half] = chosen[0];
            }
            store_halves(line, out);
        }
    }
}

/// Signs of all tokens with those of a block, `[words]`.
#[target_feature(enable = "avx2")]
fn differing(product: &mut Product, k: usize, from: usize, words: &[Words]) {
    let x = product.x;
    let mut t = 0;
    while t < x.tokens {
        let ahead = &x.words[t * words.len()..];
        let (pass, sum) = (Pass::Plane(k), Sum::Differing);
        t += match x.tokens - t {
            1 => store(product, pass, sum, t, from, differ::<1>(words, ahead)),
            _ => store(product, pass, sum, t, from, differ::<2>(words, ahead)),
        }
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn differ<const T: usize>(words: &[Words], x: &[u32]) -> [[__m256i; HALVES]; T] {
    assert!(x.len() >= T * words.len());
    let counts =
        _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
    let (zero, low) = (_mm256_setzero_si256(), _mm256_set1_epi8(15));
    let mut sums = [[zero; HALVES]; T];
    for start in (0..words.len()).step_by(COUNTS) {
        let mut bytes = [[zero; HALVES]; T];
        for w in start..words.len().min(start + COUNTS) {
            let lines = word_halves(&words[w]);
            for t in 0..T {
                // SAFETY: asserted above.
                let x = unsafe { *x.get_unchecked(t * words.len() + w) };
                let x = _mm256_set1_epi32(x as i32);
                for half in 0..HALVES {
                    let differ = _mm256_xor_si256(x, lines[half]);
                    let high = _mm256_and_si256(_mm256_srli_epi16(differ, 4), low);
                    let count = _mm256_add_epi8(
                        _mm256_shuffle_epi8(counts, _mm256_and_si256(differ, low)),
                        _mm256_shuffle_epi8(counts, high),
                    );
                    bytes[t][half] = _mm256_add_epi8(bytes[t][half], count);
                }
            }
        }
        for t in 0..T {
            for half in 0..HALVES {
                sums[t][half] = _mm256_add_epi32(sums[t][half], fours(bytes[t][half]));
            }
        }
    }
    sums
}

/// The sum of the four bytes of each lane.
#[inline]
#[target_feature(enable = "avx2")]
fn fours(bytes: __m256i) -> __m256i {
    let pairs = _mm256_maddubs_epi16(bytes, _mm256_set1_epi8(1));
    _mm256_madd_epi16(pairs, _mm256_set1_epi16(1))
}

/// Finishes `T` tokens from `first` on, and says how many those were.
#[inline]
#[target_feature(enable = "avx2")]
fn store<const T: usize>(
    product: &mut Product,
    pass: Pass,
    sum: Sum,
    first: usize,
    from: usize,
    sums: [[__m256i; HALVES]; T],
) -> usize {
    for (t, sums) in sums.iter().enumerate() {
        let mut row = [0i32; BLOCK];
        for (row, &sums) in row.as_chunks_mut::<LANES>().0.iter_mut().zip(sums) {
            // SAFETY: 32 bytes are written to an array of 32 bytes.
            unsafe { _mm256_storeu_si256(row.as_mut_ptr().cast(), sums) };
        }
        product.finish(pass, sum, first + t, from, &row);
    }
    T
}

#[inline]
#[target_feature(enable = "avx2")]
fn halves(line: &Bytes) -> [__m256i; HALVES] {
    let at: *const __m256i = line.0.as_ptr().cast();
    // SAFETY: a line is 64 bytes, aligned to 64.
    unsafe { [_mm256_load_si256(at), _mm256_load_si256(at.add(1))] }
}

#[inline]
#[target_feature(enable = "avx2")]
fn word_halves(line: &Words) -> [__m256i; HALVES] {
    let at: *const __m256i = line.0.as_ptr().cast();
    // SAFETY: a line is 64 bytes, aligned to 64.
    unsafe { [_mm256_load_si256(at), _mm256_load_si256(at.add(1))] }
}

#[inline]
#[target_feature(enable = "avx2")]
fn store_halves(line: &mut Bytes, [low, high]: [__m256i; HALVES]) {
    let at: *mut __m256i = line.0.as_mut_ptr().cast();
    // SAFETY: a line is 64 bytes, aligned to 64.
    unsafe {
        _mm256_store_si256(at, low);
        _mm256_store_si256(at.add(1), high);
    }
}
