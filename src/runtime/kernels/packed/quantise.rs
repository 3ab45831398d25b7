//! Activations as integers, token by token.

use super::super::{Level, arena, dispatch};
use super::{CHUNK, WORD};

/// Bits of an activation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Bits {
    /// The sign alone.
    One,
    /// Codes 0..=15.
    Four,
    /// Codes 0..=255.
    Eight,
}

impl Bits {
    /// The largest code.
    pub(super) fn levels(self) -> u8 {
        match self {
            Bits::One => 1,
            Bits::Four => 15,
            Bits::Eight => 255,
        }
    }
}

/// Activations `[tokens, cols]` as integers: `x ≈ scale · (code − zero)` with a scale and a zero
/// point for each token, or `x ≈ ±scale` at one bit.
#[derive(Debug, Clone, PartialEq)]
pub struct Quantised {
    pub(super) tokens: usize,
    pub(super) cols: usize,
    pub(super) bits: Bits,
    /// At four and eight bits: `[tokens, padded]`, zeros in the padding.
    pub(super) codes: Vec<u8>,
    /// At one bit: `[tokens, padded / 32]`, bit `c % 32` of word `c / 32` is 1 for +1, zeros in the
    /// padding.
    pub(super) words: Vec<u32>,
    /// `[tokens]`.
    pub(super) scales: Vec<f32>,
    /// `[tokens]`; no meaning at one bit.
    pub(super) zeros: Vec<i32>,
    /// `[tokens]`, the sum of the codes; no meaning at one bit.
    pub(super) totals: Vec<i32>,
}

/// `x`, `[tokens, cols]`, to the nearest of `2^bits` equal steps between the least and the greatest
/// value of each token, zero always being a step; at one bit, [`binarise`].
///
/// A token whose range is below 1e-30 becomes zeros. What comes out for a token with values that
/// are not finite is unspecified.
///
/// # Panics
/// If `x` is not `tokens × cols` long.
pub fn quantise(x: &[f32], tokens: usize, cols: usize, bits: Bits) -> Quantised {
    match bits {
        Bits::One => binarise(x, tokens, cols, None, None),
        Bits::Four | Bits::Eight => quantise_with(Level::best(), x, tokens, cols, bits),
    }
}

pub(super) fn quantise_with(
    level: Level,
    x: &[f32],
    tokens: usize,
    cols: usize,
    bits: Bits,
) -> Quantised {
    assert_eq!(x.len(), tokens * cols, "activations of {tokens} tokens and {cols} columns");
    let mut out = Quantised {
        tokens,
        cols,
        bits,
        codes: arena::zeros(tokens * cols.next_multiple_of(CHUNK)),
        words: Vec::new(),
        scales: arena::zeros(tokens),
        zeros: arena::zeros(tokens),
        totals: arena::zeros(tokens),
    };
    if cols == 0 {
        return out;
    }
    assert!(super::detected(level), "kernels of {level:?} on a machine without");
    match level {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the features were just detected; AMX comes with those of AVX-512.
        Level::Avx512 | Level::Amx => unsafe { super::avx512::encode(x, &mut out) },
        _ => encode(x, &mut out),
    }
    out
}

/// The signs of `x + shift`, `[tokens, cols]`, +1 for zero, times `scale`: without one, the mean of
/// `|x + shift|` of each token. `shift`: `[cols]`, or none (the elastic binariser of BiPFT).
///
/// # Panics
/// If `x` is not `tokens × cols` long, or `shift` not `cols`.
pub fn binarise(
    x: &[f32],
    tokens: usize,
    cols: usize,
    shift: Option<&[f32]>,
    scale: Option<f32>,
) -> Quantised {
    binarise_with(Level::best(), x, tokens, cols, shift, scale)
}

pub(super) fn binarise_with(
    level: Level,
    x: &[f32],
    tokens: usize,
    cols: usize,
    shift: Option<&[f32]>,
    scale: Option<f32>,
) -> Quantised {
    assert_eq!(x.len(), tokens * cols, "activations of {tokens} tokens and {cols} columns");
    assert!(super::detected(level), "kernels of {level:?} on a machine without");
    let shift = match shift {
        Some(shift) => {
            assert_eq!(shift.len(), cols, "one shift for each column");
            arena::copy(shift)
        }
        None => arena::zeros(cols),
    };
    let mut out = Quantised {
        tokens,
        cols,
        bits: Bits::One,
        codes: Vec::new(),
        words: arena::zeros(tokens * cols.next_multiple_of(CHUNK) / WORD),
        scales: arena::zeros(tokens),
        zeros: Vec::new(),
        totals: Vec::new(),
    };
    if cols > 0 {
        match level {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the features were just detected; AMX comes with those of AVX-512.
            Level::Avx512 | Level::Amx => unsafe { super::avx512::sign(x, &shift, &mut out) },
            _ => sign(x, &shift, &mut out),
        }
    }
    arena::give(shift);
    if let Some(scale) = scale {
        out.scales.fill(scale);
    }
    out
}

impl Drop for Quantised {
    fn drop(&mut self) {
        arena::give(std::mem::take(&mut self.codes));
        arena::give(std::mem::take(&mut self.words));
        arena::give(std::mem::take(&mut self.scales));
        arena::give(std::mem::take(&mut self.zeros));
        arena::give(std::mem::take(&mut self.totals));
    }
}

impl Quantised {
    /// The numbers that these codes stand for: `[tokens, cols]`.
    pub fn dequantise(&self) -> Vec<f32> {
        let padded = self.padded();
        let value = |t: usize, c: usize| match self.bits {
            Bits::One => {
                let word = self.words[(t * padded + c) / WORD];
                if word >> (c % WORD) & 1 == 1 { self.scales[t] } else { -self.scales[t] }
            }
            Bits::Four | Bits::Eight => {
                self.scales[t] * (i32::from(self.codes[t * padded + c]) - self.zeros[t]) as f32
            }
        };
        (0..self.tokens)
            .flat_map(|t| (0..self.cols).map(move |c| (t, c)))
            .map(|(t, c)| value(t, c))
            .collect()
    }

    /// Signs as codes 0 and 1, `[tokens, padded]`, in the arena's room.
    pub(super) fn positive(&self) -> Vec<u8> {
        // Eight bits at once: each into its own byte, where what is not 0 becomes 1.
        let spread = |byte: &u8| {
            let bits = (u64::from(*byte) * 0x0101_0101_0101_0101) & 0x8040_2010_0804_0201;
            (bits + 0x7f7f_7f7f_7f7f_7f7f) >> 7 & 0x0101_0101_0101_0101
        };
        let mut codes = arena::room(self.words.len() * WORD);
        for (codes, word) in codes.as_chunks_mut::<WORD>().0.iter_mut().zip(&self.words) {
            for (codes, byte) in codes.as_chunks_mut::<8>().0.iter_mut().zip(&word.to_le_bytes()) {
                *codes = spread(byte).to_le_bytes();
            }
        }
        codes
    }

    /// Columns with their padding.
    pub(super) fn padded(&self) -> usize {
        self.cols.next_multiple_of(CHUNK)
    }
}

dispatch! { fn encode(x: &[f32], out: &mut Quantised) = encode_rows }
dispatch! { fn sign(x: &[f32], shift: &[f32], out: &mut Quantised) = sign_rows }

/// Values looked at side by side: four AVX2 registers, so that a minimum does not wait for the one
/// before it.
const LANES: usize = 32;

/// Adding it rounds to an integer, ties to even, and leaves that integer in the low bits.
const MAGIC: f32 = 12_582_912.0; // 1.5 · 2^23

#[inline(always)]
fn encode_rows(x: &[f32], out: &mut Quantised) {
    let (cols, padded) = (out.cols, out.padded());
    let levels = out.bits.levels();
    let top = f32::from(levels);
    for (t, x) in x.chunks_exact(cols).enumerate() {
        let (least, greatest) = range(x);
        let Step { scale, inverse, zero } = Step::new(least, greatest, top);
        let (low, high) = (-zero, top - zero);
        let shift = (zero as u32).wrapping_sub(MAGIC.to_bits());
        let code = |x: f32| {
            let rounded = within(x * inverse, low, high) + MAGIC;
            rounded.to_bits().wrapping_add(shift) & u32::from(levels)
        };
        let (chunks, tail) = x.as_chunks::<LANES>();
        let (codes, last) = out.codes[t * padded..][..cols].as_chunks_mut::<LANES>();
        let mut totals = [0u32; LANES];
        // Chunks of a fixed size: as one loop over the row this stays scalar.
        for (codes, x) in codes.iter_mut().zip(chunks) {
            let mut values = [0; LANES];
            for i in 0..LANES {
                values[i] = code(x[i]);
            }
            for i in 0..LANES {
                totals[i] += values[i];
                codes[i] = values[i] as u8;
            }
        }
        for (byte, &x) in last.iter_mut().zip(tail) {
            let value = code(x);
            totals[0] += value;
            *byte = value as u8;
        }
        let total: u32 = totals.iter().sum();
        out.scales[t] = scale;
        out.zeros[t] = zero as i32;
        out.totals[t] = total as i32;
    }
}

/// What codes of a token mean: `x ≈ scale · (code − zero)`.
pub(super) struct Step {
    pub scale: f32,
    /// `1 / scale`, or 0.
    pub inverse: f32,
    /// A whole number.
    pub zero: f32,
}

impl Step {
    /// Of values from `least` to `greatest`, of which one is not above and one not below 0; `top`: the greatest code.
    #[inline(always)]
    pub fn new(least: f32, greatest: f32, top: f32) -> Step {
        let span = greatest - least;
        // Below this the inverse of a step may overflow; NaN cannot get here, infinity can.
        let (scale, inverse) = if span > 1e-30 { (span / top, top / span) } else { (0.0, 0.0) };
        let zero = within(-least * inverse, 0.0, top).round_ties_even();
        Step { scale, inverse, zero }
    }
}

/// `x` cut to `low..=high`; NaN becomes `low`. Comparisons in this form are single instructions.
#[inline(always)]
fn within(x: f32, low: f32, high: f32) -> f32 {
    let x = if x > low { x } else { low };
    if x < high { x } else { high }
}

/// The least and the greatest value, zero included, NaN left out.
#[inline(always)]
fn range(x: &[f32]) -> (f32, f32) {
    let (mut least, mut greatest) = ([0.0f32; LANES], [0.0f32; LANES]);
    let (chunks, tail) = x.as_chunks::<LANES>();
    for x in chunks {
        for i in 0..LANES {
            least[i] = if x[i] < least[i] { x[i] } else { least[i] };
            greatest[i] = if x[i] > greatest[i] { x[i] } else { greatest[i] };
        }
    }
    for &x in tail {
        least[0] = if x < least[0] { x } else { least[0] };
        greatest[0] = if x > greatest[0] { x } else { greatest[0] };
    }
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            least[i] = if least[i + half] < least[i] { least[i + half] } else { least[i] };
            greatest[i] =
                if greatest[i + half] > greatest[i] { greatest[i + half] } else { greatest[i] };
        }
        half /= 2;
    }
    (least[0], greatest[0])
}

#[inline(always)]
fn sign_rows(x: &[f32], shift: &[f32], out: &mut Quantised) {
    let (cols, words) = (out.cols, out.padded() / WORD);
    for (t, x) in x.chunks_exact(cols).enumerate() {
        let packed = &mut out.words[t * words..][..words];
        let mut sums = [0.0f32; WORD];
        let (chunks, tail) = x.as_chunks::<WORD>();
        let (shifts, last) = shift.as_chunks::<WORD>();
        for ((word, x), shift) in packed.iter_mut().zip(chunks).zip(shifts) {
            let mut bits = 0;
            for i in 0..WORD {
                let u = x[i] + shift[i];
                sums[i] += u.abs();
                bits |= u32::from(u >= 0.0) << i;
            }
            *word = bits;
        }
        for (i, (&x, &shift)) in tail.iter().zip(last).enumerate() {
            let u = x + shift;
            sums[i] += u.abs();
            packed[chunks.len()] |= u32::from(u >= 0.0) << i;
        }
        out.scales[t] = by_halves(sums) / cols as f32;
    }
}

/// The sum. One after the other, 32 additions would each wait for the one before.
#[inline(always)]
fn by_halves(mut sums: [f32; WORD]) -> f32 {
    let mut half = WORD / 2;
    while half > 0 {
        for i in 0..half {
            sums[i] += sums[i + half];
        }
        half /= 2;
    }
    sums[0]
}
