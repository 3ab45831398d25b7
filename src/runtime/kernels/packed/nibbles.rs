//! Signs on AVX2, by tables: four signs of weights are an index into the 16 results that four codes, or four signs, of a
//! token can give, and `vpshufb` looks up 32 rows at once: 128 multiply-accumulates for a lookup and an addition of bytes.
//! Tables are made for each token once, and used by all rows. Codes of 8 bits are two digits of 4.

// Loops over registers: by index they unroll, and closures would not be compiled for these features.
#![allow(clippy::needless_range_loop)]

use super::super::arena;
use super::{BLOCK, GROUP, Pass, Product, Signs, Sum, WORD, Words};
use std::arch::x86_64::*;

/// Rows of a register.
const ROWS: usize = 2 * BLOCK;
/// Bytes of tables that all rows see before those of the next tokens: most of the first-level cache.
const TABLES: usize = 24 << 10;
/// Sums of 16 bits take so many of 8: 256 · 240 < 2^16.
const WIDE: usize = 256;

/// Signs of 32 rows in 8 columns: the low four bits of a byte are those of the first four.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C, align(32))]
struct Line([u8; ROWS]);

/// What four columns of a token give, by the signs of the weights.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C, align(16))]
struct Table([u8; 16]);

arena::kept!(Line Table);

/// Columns of a line.
const COLUMNS: usize = 2 * GROUP;

/// With codes of `DIGITS` times 4 bits; with signs, where that is 0.
#[target_feature(enable = "avx2")]
pub(super) fn multiply<const DIGITS: usize>(product: &mut Product, signs: &Signs) {
    let (weights, x) = (product.weights, product.x);
    let padded = weights.padded();
    let (per_pair, digits) = (padded / COLUMNS, DIGITS.max(1));
    let per_token = digits * padded / GROUP;
    let pairs = weights.rows.div_ceil(ROWS);
    let mut lines = arena::room::<Line>(signs.planes * pairs * per_pair);
    if per_pair > 0 {
        for (i, lines) in lines.chunks_exact_mut(per_pair).enumerate() {
            transpose(signs, padded, i / pairs, i % pairs * 2, lines);
        }
    }
    let most = match per_token {
        0 => x.tokens,
        tables => (TABLES / size_of::<Table>() / tables / 4 * 4).max(4),
    };
    let mut tables = arena::room::<Table>(most.min(x.tokens) * per_token);
    for first in (0..x.tokens).step_by(most) {
        let tokens = most.min(x.tokens - first);
        for t in 0..tokens {
            let tables = &mut tables[t * per_token..][..per_token];
            match DIGITS {
                0 => differences(&x.words[(first + t) * padded / WORD..], tables),
                _ => subsets(&x.codes[(first + t) * padded..][..padded], digits, tables),
            }
        }
        for k in 0..signs.planes {
            for pair in 0..pairs {
                let lines = &lines[(k * pairs + pair) * per_pair..][..per_pair];
                let mut t = 0;
                while t < tokens {
                    let (at, ahead) = (first + t, &tables[t * per_token..]);
                    let place = (Pass::Plane(k), at, pair * ROWS);
                    t += match tokens - t {
                        1 => some::<DIGITS, 1>(product, place, lines, ahead),
                        2 | 3 => some::<DIGITS, 2>(product, place, lines, ahead),
                        _ => some::<DIGITS, 4>(product, place, lines, ahead),
                    };
                }
            }
        }
    }
    arena::give(lines);
    arena::give(tables);
}

/// `T` tokens with 32 rows; says how many those were. `tables`: `[T, digits, columns / 4]`.
#[inline]
#[target_feature(enable = "avx2")]
fn some<const DIGITS: usize, const T: usize>(
    product: &mut Product,
    (pass, first, from): (Pass, usize, usize),
    lines: &[Line],
    tables: &[Table],
) -> usize {
    let each = lines.len() * COLUMNS / GROUP;
    let (sum, sums) = match DIGITS {
        0 => (Sum::Differing, look::<60, T>(lines, tables, each)),
        1 => (Sum::Set, look::<4, T>(lines, tables, each)),
        _ => {
            let mut sums = look::<4, T>(lines, tables, 2 * each);
            let high = look::<4, T>(lines, &tables[each..], 2 * each);
            for t in 0..T {
                for row in 0..ROWS {
                    sums[t][row] += 16 * high[t][row];
                }
            }
            (Sum::Set, sums)
        }
    };
    for (t, sums) in sums.iter().enumerate() {
        product.finish(pass, sum, first + t, from, sums);
    }
    T
}

/// Sums of what is found in the tables of `T` tokens, `[T, stride]`, of which `2 · lines` are used. `FULL` lookups fit 8 bits:
/// 4 of four codes, each up to 60, or 60 of four signs.
#[inline]
#[target_feature(enable = "avx2")]
fn look<const FULL: usize, const T: usize>(
    lines: &[Line],
    tables: &[Table],
    stride: usize,
) -> [[i32; ROWS]; T] {
    assert!(tables.len() >= (T - 1) * stride + 2 * lines.len());
    let zero = _mm256_setzero_si256();
    let (nibble, even) = (_mm256_set1_epi8(15), _mm256_set1_epi16(255));
    let mut sums = [[0; ROWS]; T];
    for from in (0..lines.len()).step_by(WIDE * FULL / 2) {
        let to = lines.len().min(from + WIDE * FULL / 2);
        // Of even and odd rows.
        let mut wide = [[zero; 2]; T];
        for start in (from..to).step_by(FULL / 2) {
            let mut bytes = [zero; T];
            for at in start..to.min(start + FULL / 2) {
                // SAFETY: `at` is below the number of lines, which are aligned; a table of each of the `T` tokens lies at
                // twice that and one further, as asserted.
                unsafe {
                    let line = _mm256_load_si256(lines.as_ptr().add(at).cast());
                    let low = _mm256_and_si256(line, nibble);
                    let high = _mm256_and_si256(_mm256_srli_epi16::<4>(line), nibble);
                    for t in 0..T {
                        let tables: *const __m128i =
                            tables.as_ptr().add(t * stride + 2 * at).cast();
                        let [first, second] = [tables, tables.add(1)]
                            .map(|table| _mm256_broadcastsi128_si256(_mm_load_si128(table)));
                        let found = _mm256_shuffle_epi8(first, low);
                        bytes[t] = _mm256_add_epi8(bytes[t], found);
                        let found = _mm256_shuffle_epi8(second, high);
                        bytes[t] = _mm256_add_epi8(bytes[t], found);
                    }
                }
            }
            for t in 0..T {
                let [evens, odds] = &mut wide[t];
                *evens = _mm256_add_epi16(*evens, _mm256_and_si256(bytes[t], even));
                *odds = _mm256_add_epi16(*odds, _mm256_srli_epi16::<8>(bytes[t]));
            }
        }
        for t in 0..T {
            // Rows 0 to 7 and 16 to 23, then those between and behind.
            let [evens, odds] = wide[t];
            let low = _mm256_unpacklo_epi16(evens, odds);
            let high = _mm256_unpackhi_epi16(evens, odds);
            let mut rows = [0u16; ROWS];
            // SAFETY: 64 bytes are written to an array of 64 bytes.
            unsafe {
                let out: *mut __m256i = rows.as_mut_ptr().cast();
                _mm256_storeu_si256(out, _mm256_permute2x128_si256::<0x20>(low, high));
                _mm256_storeu_si256(out.add(1), _mm256_permute2x128_si256::<0x31>(low, high));
            }
            for row in 0..ROWS {
                sums[t][row] += i32::from(rows[row]);
            }
        }
    }
    sums
}

/// Blocks `block` and the next one of plane `k`, byte by byte of their words: `[padded / 8]`.
#[target_feature(enable = "avx2")]
fn transpose(signs: &Signs, padded: usize, k: usize, block: usize, lines: &mut [Line]) {
    let words = padded / WORD;
    let plane = &signs.plane(k, padded)[block * words..][..2 * words];
    let (first, second) = plane.split_at(words);
    // Byte 0 of four words, byte 1, and so on.
    let together = _mm256_broadcastsi128_si256(_mm_setr_epi8(
        0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15,
    ));
    for ((first, second), lines) in first.iter().zip(second).zip(lines.as_chunks_mut::<4>().0) {
        // Four rows of each block.
        let rows = [0, 1, 2, 3].map(|i| {
            let rows = _mm256_set_m128i(quarter(second, i), quarter(first, i));
            _mm256_shuffle_epi8(rows, together)
        });
        let [a, b] =
            [_mm256_unpacklo_epi32(rows[0], rows[1]), _mm256_unpackhi_epi32(rows[0], rows[1])];
        let [c, d] =
            [_mm256_unpacklo_epi32(rows[2], rows[3]), _mm256_unpackhi_epi32(rows[2], rows[3])];
        let bytes = [
            _mm256_unpacklo_epi64(a, c),
            _mm256_unpackhi_epi64(a, c),
            _mm256_unpacklo_epi64(b, d),
            _mm256_unpackhi_epi64(b, d),
        ];
        for (line, bytes) in lines.iter_mut().zip(bytes) {
            // SAFETY: a line is 32 bytes, aligned to 32.
            unsafe { _mm256_store_si256(line.0.as_mut_ptr().cast(), bytes) };
        }
    }
}

/// Rows `4 · i..` of a block.
#[inline]
#[target_feature(enable = "avx2")]
fn quarter(words: &Words, i: usize) -> __m128i {
    assert!(i < BLOCK / 4);
    // SAFETY: four of the 16 words, which are aligned.
    unsafe { _mm_load_si128(words.0.as_ptr().add(4 * i).cast()) }
}

/// The sums of all subsets of four codes: `[digits, columns / 4]` of `codes`, `[columns]`.
#[target_feature(enable = "avx2")]
fn subsets(codes: &[u8], digits: usize, tables: &mut [Table]) {
    // Of the first four codes in the lower half, of the others in the upper one.
    let halves = _mm256_setr_epi64x(0, 0, 0x0404_0404_0404_0404, 0x0404_0404_0404_0404);
    // Bit `b` of the place of a byte.
    let places = _mm256_broadcastsi128_si256(_mm_setr_epi8(
        0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15,
    ));
    let mut masks = [_mm256_setzero_si256(); GROUP];
    for b in 0..GROUP {
        let bit = _mm256_set1_epi8(1 << b);
        masks[b] = _mm256_cmpeq_epi8(_mm256_and_si256(places, bit), bit);
    }
    let (codes, _) = codes.as_chunks::<COLUMNS>();
    let per_digit = tables.len() / digits;
    for (digit, tables) in tables.chunks_exact_mut(per_digit.max(1)).enumerate() {
        for (codes, tables) in codes.iter().zip(tables.as_chunks_mut::<2>().0) {
            let codes = u64::from_le_bytes(*codes) >> (4 * digit) & 0x0f0f_0f0f_0f0f_0f0f;
            let codes = _mm256_set1_epi64x(codes as i64);
            let mut sums = _mm256_setzero_si256();
            for b in 0..GROUP {
                let place = _mm256_add_epi8(halves, _mm256_set1_epi8(b as i8));
                let code = _mm256_shuffle_epi8(codes, place);
                sums = _mm256_add_epi8(sums, _mm256_and_si256(code, masks[b]));
            }
            // SAFETY: 32 bytes are written to two tables of 16.
            unsafe { _mm256_storeu_si256(tables.as_mut_ptr().cast(), sums) };
        }
    }
}

/// How many of four signs differ: `[columns / 4]` of `words`.
fn differences(words: &[u32], tables: &mut [Table]) {
    const COUNTS: [Table; 16] = {
        let mut counts = [Table([0; 16]); 16];
        let mut i = 0;
        while i < 256 {
            counts[i / 16].0[i % 16] = ((i / 16) ^ (i % 16)).count_ones() as u8;
            i += 1;
        }
        counts
    };
    for (tables, word) in tables.as_chunks_mut::<{ WORD / GROUP }>().0.iter_mut().zip(words) {
        for (group, table) in tables.iter_mut().enumerate() {
            *table = COUNTS[(word >> (4 * group) & 15) as usize];
        }
    }
}
