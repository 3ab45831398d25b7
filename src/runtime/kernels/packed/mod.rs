//! Products with packed matrices, in integers: 1-bit weights in one to four planes, or int8.
//!
//! `y[t][r] = x[t] · W[r]`. Activations become integers token by token ([`quantise`],
//! [`binarise`]); weights are [`Packed`] once. Sums are exact, and the few float operations at the
//! end are in one order everywhere, so all instruction sets give the same bits:
//!
//! | weights | activations | what a kernel sums |
//! |---|---|---|
//! | signs, 1 plane | 8 or 4 bits | codes where the sign is +1, or all with their sign |
//! | signs, 2 to 4 planes | 8 bits | codes times levels, see [`Packed::signs`] |
//! | signs, 2 to 4 planes | 4 bits | as one plane, plane after plane |
//! | signs | 1 bit | signs that differ, plane after plane |
//! | int8 | any | codes times codes |
//!
//! One thread, like the other kernels. Memory order: strips of `STRIP` rows, in them blocks of
//! `BLOCK` rows, in them columns by 32 (signs) or by 4 (int8), in them the rows: a register is
//! one column group of a block, and its lanes are rows.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(all(target_arch = "aarch64", target_endian = "little"))]
mod neon;
#[cfg(target_arch = "x86_64")]
mod nibbles;
mod quantise;
mod scalar;
#[cfg(test)]
mod tests;

pub use quantise::{Bits, Quantised, binarise, quantise};

use super::{Level, MatMut};
use crate::model::binary::whole_levels;

/// Columns are padded to a multiple of this: the bytes of a 512-bit register.
const CHUNK: usize = 64;
/// Columns of a word of signs.
const WORD: usize = 32;
/// Columns whose codes are one 32-bit lane.
const GROUP: usize = 4;
/// Rows of a block: the 32-bit lanes of a 512-bit register.
const BLOCK: usize = 16;
/// Rows are padded to a multiple of this: as many as the widest kernel takes at once.
const STRIP: usize = 4 * BLOCK;
const MAX_PLANES: usize = 4;
/// Weights are within ±64: two products with 8-bit activations fit 16 bits, which AVX2 needs.
const MAX_WEIGHT: i8 = 64;
/// 255 · 64 · 2^16 < 2^31: sums stay in 32 bits.
const MAX_COLS: usize = 1 << 16;

/// Signs of 32 columns, a word for each row of a block.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct Words([u32; BLOCK]);

/// Bytes of 4 columns for each row of a block.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Bytes([i8; GROUP * BLOCK]);

impl Default for Bytes {
    fn default() -> Bytes {
        Bytes::ZERO
    }
}

impl Bytes {
    const ZERO: Bytes = Bytes([0; GROUP * BLOCK]);
}

/// Whether this machine has what the kernels of `level` need.
pub(super) fn detected(level: Level) -> bool {
    match level {
        Level::Scalar => true,
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => avx2::detected(),
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => avx512::detected(),
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        Level::Amx => amx::detected(),
        #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
        Level::Neon => neon::detected(),
        #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
        Level::NeonDot => neon::dot_detected(),
        _ => false,
    }
}

/// A packed matrix, `[rows, cols]`.
#[derive(Debug, Clone)]
pub struct Packed {
    rows: usize,
    cols: usize,
    form: Form,
}

#[derive(Debug, Clone)]
enum Form {
    Signs(Signs),
    Int8(Int8),
}

#[derive(Debug, Clone)]
struct Signs {
    planes: usize,
    /// `[planes, blocks, words]`, zeros in the padding.
    words: Vec<Words>,
    /// `[planes, rows]`.
    scales: Vec<f32>,
    /// `[planes, rows]`, the sum of the ±1 of a row.
    sums: Vec<i32>,
    /// With more than one plane.
    levels: Option<Levels>,
}

/// All planes of a row as one integer for each combination of signs.
#[derive(Debug, Clone)]
struct Levels {
    /// `[rows]`; bit `k` of an index is the sign in plane `k`.
    table: Vec<[i8; 1 << MAX_PLANES]>,
    /// `[rows]`: what the integer 1 stands for.
    units: Vec<f32>,
    /// `[rows]`, the sum of the integers of a row.
    sums: Vec<i32>,
}

#[derive(Debug, Clone)]
struct Int8 {
    /// `[blocks, groups]`, zeros in the padding.
    codes: Vec<Bytes>,
    /// `[rows]`.
    scales: Vec<f32>,
    /// `[rows]`, the sum of the codes of a row.
    sums: Vec<i32>,
}

impl Packed {
    /// `Σ_k scales[k, r] · ±1`: one to four planes of signs.
    ///
    /// - `signs`: `[planes, rows, ceil(cols / 32)]`, bit `c % 32` of word `c / 32` is 1 for +1; bits
    ///   past `cols` are ignored
    /// - `scales`: `[planes, rows]`
    ///
    /// With 8-bit activations two and more planes are one integer product: the `2^planes` levels of
    /// a row are rounded to integers, the unit being 1/64 of the greatest level. That moves a level
    /// by at most 0.8 % of the greatest one (2.0 · 10^-5 of its square on average), where two planes
    /// stand for Gaussian weights with an error of 12 % of the weights' own square, and three with 4 %.
    ///
    /// # Panics
    /// If lengths do not fit, or there are more than 4 planes or 65536 columns.
    pub fn signs(signs: &[u32], scales: &[f32], planes: usize, rows: usize, cols: usize) -> Packed {
        assert!((1..=MAX_PLANES).contains(&planes), "{planes} planes of signs, not 1 to 4");
        assert!(cols <= MAX_COLS, "{cols} columns, more than {MAX_COLS}");
        let stored = cols.div_ceil(WORD);
        assert_eq!(signs.len(), planes * rows * stored, "words of signs");
        assert_eq!(scales.len(), planes * rows, "one scale for each row and plane");
        let (blocks, per_row) = (blocks(rows), cols.next_multiple_of(CHUNK) / WORD);
        let mut words = vec![Words([0; BLOCK]); planes * blocks * per_row];
        let mut sums = vec![0; planes * rows];
        let tail = match cols % WORD {
            0 => u32::MAX,
            rest => (1 << rest) - 1,
        };
        for k in 0..planes {
            for r in 0..rows {
                let mut set = 0;
                for w in 0..stored {
                    let mask = if w + 1 == stored { tail } else { u32::MAX };
                    let word = signs[(k * rows + r) * stored + w] & mask;
                    words[(k * blocks + r / BLOCK) * per_row + w].0[r % BLOCK] = word;
                    set += word.count_ones() as i32;
                }
                sums[k * rows + r] = 2 * set - cols as i32;
            }
        }
        let mut form = Signs { planes, words, scales: scales.to_vec(), sums, levels: None };
        if planes > 1 {
            form.levels = Some(form.round(rows, cols));
        }
        Packed { rows, cols, form: Form::Signs(form) }
    }

    /// `scales[r] · codes[r, c]`.
    ///
    /// - `codes`: `[rows, cols]`, each within ±64
    /// - `scales`: `[rows]`
    ///
    /// # Panics
    /// If lengths do not fit, a code is beyond ±64, or there are more than 65536 columns.
    pub fn int8(codes: &[i8], scales: &[f32], rows: usize, cols: usize) -> Packed {
        assert!(cols <= MAX_COLS, "{cols} columns, more than {MAX_COLS}");
        assert_eq!(codes.len(), rows * cols, "one code for each row and column");
        assert_eq!(scales.len(), rows, "one scale for each row");
        assert!(
            codes.iter().all(|code| (-MAX_WEIGHT..=MAX_WEIGHT).contains(code)),
            "int8 weights are within ±{MAX_WEIGHT}"
        );
        let per_row = cols.next_multiple_of(CHUNK) / GROUP;
        let mut lines = vec![Bytes::ZERO; blocks(rows) * per_row];
        for r in 0..rows {
            for c in 0..cols {
                let line = &mut lines[r / BLOCK * per_row + c / GROUP];
                line.0[r % BLOCK * GROUP + c % GROUP] = codes[r * cols + c];
            }
        }
        let sum = |r: usize| codes[r * cols..][..cols].iter().map(|&code| i32::from(code)).sum();
        let sums = (0..rows).map(sum).collect();
        let form = Int8 { codes: lines, scales: scales.to_vec(), sums };
        Packed { rows, cols, form: Form::Int8(form) }
    }

    /// Rows: outputs.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns: inputs.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Bytes that it holds.
    pub fn bytes(&self) -> usize {
        match &self.form {
            Form::Signs(signs) => {
                let levels = signs.levels.as_ref().map_or(0, |levels| {
                    size_of_val(&levels.table[..])
                        + size_of_val(&levels.units[..])
                        + size_of_val(&levels.sums[..])
                });
                size_of_val(&signs.words[..])
                    + size_of_val(&signs.scales[..])
                    + size_of_val(&signs.sums[..])
                    + levels
            }
            Form::Int8(int8) => {
                size_of_val(&int8.codes[..])
                    + size_of_val(&int8.scales[..])
                    + size_of_val(&int8.sums[..])
            }
        }
    }

    /// The matrix that products with activations of `bits` are made with: `[rows, cols]`.
    pub fn dense(&self, bits: Bits) -> Vec<f32> {
        let mut out = vec![0.0; self.rows * self.cols];
        let mut row = vec![0; self.padded()];
        for pass in self.passes(bits) {
            for r in 0..self.rows {
                self.row(pass, r, &mut row);
                let scale = self.scales(pass)[r];
                let target = &mut out[r * self.cols..][..self.cols];
                target.iter_mut().zip(&row).for_each(|(y, &w)| *y += scale * f32::from(w));
            }
        }
        out
    }

    /// `out[t, r] ← x[t] · W[r] + bias[r]`.
    ///
    /// # Panics
    /// If the shapes do not fit.
    pub fn multiply(&self, x: &Quantised, bias: Option<&[f32]>, out: MatMut) {
        self.multiply_with(Level::best(), x, bias, out);
    }

    fn multiply_with(&self, level: Level, x: &Quantised, bias: Option<&[f32]>, out: MatMut) {
        assert_eq!(x.cols, self.cols, "columns of activations and weights");
        assert_eq!((out.rows, out.cols), (x.tokens, self.rows), "shape of the product");
        assert!(bias.is_none_or(|b| b.len() == self.rows), "a bias for each row");
        if x.tokens == 0 || self.rows == 0 {
            return;
        }
        assert!(out.stride >= self.rows || x.tokens == 1, "rows of the product overlap");
        let needed = (x.tokens - 1) * out.stride + self.rows;
        assert!(out.data.len() >= needed, "{} values, a product of {needed}", out.data.len());
        let mut product = Product { weights: self, x, bias, data: out.data, stride: out.stride };
        assert!(detected(level), "kernels of {level:?} on a machine without");
        match level {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the features were just detected.
            Level::Avx2 => unsafe { avx2::multiply(&mut product) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the features were just detected.
            Level::Avx512 => unsafe { avx512::multiply(&mut product) },
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            // SAFETY: the features were just detected, and the use of tiles was granted.
            Level::Amx => unsafe { amx::multiply(&mut product) },
            #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
            // SAFETY: the feature was just detected.
            Level::Neon => unsafe { neon::multiply::<false>(&mut product) },
            #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
            // SAFETY: both features were just detected.
            Level::NeonDot => unsafe { neon::multiply::<true>(&mut product) },
            _ => scalar::multiply(&mut product),
        }
    }

    /// Columns with their padding.
    fn padded(&self) -> usize {
        self.cols.next_multiple_of(CHUNK)
    }

    /// The integer products that make up one with activations of `bits`.
    fn passes(&self, bits: Bits) -> impl Iterator<Item = Pass> + use<> {
        let planes = match &self.form {
            Form::Int8(_) => return [Some(Pass::Whole), None, None, None].into_iter().flatten(),
            Form::Signs(signs) if signs.planes > 1 && bits == Bits::Eight => {
                return [Some(Pass::Whole), None, None, None].into_iter().flatten();
            }
            Form::Signs(signs) => signs.planes,
        };
        let plane = |k| (k < planes).then_some(Pass::Plane(k));
        [plane(0), plane(1), plane(2), plane(3)].into_iter().flatten()
    }

    /// `[rows]`: what the integer 1 stands for.
    #[inline]
    fn scales(&self, pass: Pass) -> &[f32] {
        match (&self.form, pass) {
            (Form::Int8(int8), _) => &int8.scales,
            (Form::Signs(signs), Pass::Plane(k)) => &signs.scales[k * self.rows..][..self.rows],
            (Form::Signs(signs), Pass::Whole) => &signs.whole().units,
        }
    }

    /// `[rows]`: the sums of the integers.
    #[inline]
    fn sums(&self, pass: Pass) -> &[i32] {
        match (&self.form, pass) {
            (Form::Int8(int8), _) => &int8.sums,
            (Form::Signs(signs), Pass::Plane(k)) => &signs.sums[k * self.rows..][..self.rows],
            (Form::Signs(signs), Pass::Whole) => &signs.whole().sums,
        }
    }

    /// The integers of row `r`, zeros in the padding; `out`: `[padded]`.
    fn row(&self, pass: Pass, r: usize, out: &mut [i8]) {
        out.fill(0);
        let out = &mut out[..self.cols];
        match (&self.form, pass) {
            (Form::Int8(int8), _) => {
                let lines = &int8.codes[r / BLOCK * self.padded() / GROUP..];
                for (out, line) in out.chunks_mut(GROUP).zip(lines) {
                    out.copy_from_slice(&line.0[r % BLOCK * GROUP..][..out.len()]);
                }
            }
            (Form::Signs(signs), Pass::Plane(k)) => {
                let lines = signs.plane(k, self.padded());
                let lines = &lines[r / BLOCK * self.padded() / WORD..];
                for (out, line) in out.chunks_mut(WORD).zip(lines) {
                    let word = line.0[r % BLOCK];
                    let sign = |i: usize| 2 * (word >> i & 1) as i8 - 1;
                    out.iter_mut().enumerate().for_each(|(i, out)| *out = sign(i));
                }
            }
            (Form::Signs(signs), Pass::Whole) => {
                let table = &signs.whole().table[r];
                let at = r / BLOCK * self.padded() / WORD;
                for (c, out) in out.iter_mut().enumerate() {
                    let bit = |k: usize| {
                        let line = &signs.plane(k, self.padded())[at + c / WORD];
                        (line.0[r % BLOCK] >> (c % WORD) & 1) << k
                    };
                    *out = table[(0..signs.planes).map(bit).sum::<u32>() as usize];
                }
            }
        }
    }
}

impl Int8 {
    /// Strip `at`: `[STRIP / BLOCK, groups]`.
    #[inline]
    fn strip(&self, at: usize) -> &[Bytes] {
        let per_strip = self.codes.len() / self.scales.len().div_ceil(STRIP);
        &self.codes[at * per_strip..][..per_strip]
    }
}

impl Signs {
    /// `[blocks, words]` of plane `k`.
    #[inline]
    fn plane(&self, k: usize, padded: usize) -> &[Words] {
        let per_plane = self.words.len() / self.planes;
        debug_assert!(padded == 0 || per_plane.is_multiple_of(padded / WORD));
        &self.words[k * per_plane..][..per_plane]
    }

    /// Of plane `k` strip `at`: `[STRIP / BLOCK, words]`.
    #[inline]
    fn strip(&self, k: usize, at: usize, padded: usize) -> &[Words] {
        let per_strip = STRIP / BLOCK * padded / WORD;
        &self.plane(k, padded)[at * per_strip..][..per_strip]
    }

    #[inline]
    fn whole(&self) -> &Levels {
        self.levels.as_ref().expect("more than one plane has levels")
    }

    fn round(&self, rows: usize, cols: usize) -> Levels {
        let mut levels = Levels { table: Vec::new(), units: Vec::new(), sums: Vec::new() };
        for r in 0..rows {
            let scales: Vec<f32> = (0..self.planes).map(|k| self.scales[k * rows + r]).collect();
            let (table, unit) = whole_levels(&scales, MAX_WEIGHT);
            levels.table.push(table);
            levels.units.push(unit);
        }
        let packed = Packed {
            rows,
            cols,
            form: Form::Signs(Signs { levels: Some(levels), ..self.clone() }),
        };
        let mut row = vec![0; packed.padded()];
        let mut sums = Vec::new();
        for r in 0..rows {
            packed.row(Pass::Whole, r, &mut row);
            sums.push(row.iter().map(|&w| i32::from(w)).sum());
        }
        let Form::Signs(Signs { levels: Some(levels), .. }) = packed.form else { unreachable!() };
        Levels { sums, ..levels }
    }
}

/// Blocks of so many rows, in whole strips.
fn blocks(rows: usize) -> usize {
    rows.next_multiple_of(STRIP) / BLOCK
}

/// One integer product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pass {
    /// Of int8 weights, or of all planes as levels.
    Whole,
    /// Of one plane of signs.
    Plane(usize),
}

/// What a kernel has summed for a token and a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sum {
    /// Codes times weights.
    Products,
    /// Codes where the sign is +1.
    Set,
    /// Columns where two signs differ.
    Differing,
    /// Weights where the sign of the activation is +1.
    Positive,
}

/// A product being made; `data` has an element for each token and row, which `multiply` checked.
struct Product<'a> {
    weights: &'a Packed,
    x: &'a Quantised,
    bias: Option<&'a [f32]>,
    data: &'a mut [f32],
    stride: usize,
}

impl Product<'_> {
    /// Writes rows from `from` on of token `t`, or adds a later plane to them: integers to floats.
    ///
    /// The only place with float arithmetic, compiled into each kernel: so their results agree.
    #[inline(always)]
    fn finish(&mut self, pass: Pass, sum: Sum, t: usize, from: usize, sums: &[i32]) {
        let (weights, x) = (self.weights, self.x);
        let (gain, base, zero) = match sum {
            Sum::Products => (1, 0, x.zeros[t]),
            Sum::Set => (2, -x.totals[t], x.zeros[t]),
            Sum::Differing => (-2, weights.cols as i32, 0),
            Sum::Positive => (2, 0, 1),
        };
        let to = weights.rows.min(from + sums.len());
        let out = &mut self.data[t * self.stride + from..][..to - from];
        let scales = &weights.scales(pass)[from..to];
        let row_sums = &weights.sums(pass)[from..to];
        let token = x.scales[t];
        let value = |sum: i32, row_sum: i32, scale: f32| {
            (gain * sum + base - zero * row_sum) as f32 * scale * token
        };
        let first = matches!(pass, Pass::Whole | Pass::Plane(0));
        let bias = self.bias.filter(|_| first).map(|bias| &bias[from..to]);
        // By whole blocks: then there is no loop for a tail in each strip, and no test for overlap.
        let (outs, out) = out.as_chunks_mut::<BLOCK>();
        let (sums, last_sums) = sums[..to - from].as_chunks::<BLOCK>();
        let (row_sums, last_row_sums) = row_sums.as_chunks::<BLOCK>();
        let (scales, last_scales) = scales.as_chunks::<BLOCK>();
        let (biases, last_bias) = bias.unwrap_or_default().as_chunks::<BLOCK>();
        let mut biases = biases.iter();
        for (((out, sums), row_sums), scales) in outs.iter_mut().zip(sums).zip(row_sums).zip(scales)
        {
            let mut values = [0.0; BLOCK];
            for i in 0..BLOCK {
                values[i] = value(sums[i], row_sums[i], scales[i]);
            }
            let before = if first { biases.next() } else { Some(&*out) };
            if let Some(before) = before {
                for i in 0..BLOCK {
                    values[i] += before[i];
                }
            }
            *out = values;
        }
        for (i, out) in out.iter_mut().enumerate() {
            let value = value(last_sums[i], last_row_sums[i], last_scales[i]);
            let before = if first { last_bias.get(i).copied() } else { Some(*out) };
            *out = before.map_or(value, |before| value + before);
        }
    }
}
