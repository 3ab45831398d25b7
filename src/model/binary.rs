//! A matrix as sign planes, scales and a low-rank residual.

use super::packed::{self, Parts, Scales, Stored};
use crate::Result;
use crate::checkpoint::{Checkpoint, Dtype, Tensor};
use half::f16;

/// `W ≈ Σ_k diag(scale_k) · B_k + U·V`, with `B_k ∈ {−1, +1}` (BiPFT notes, §5.1).
///
/// Scales and factors hold values that their stored dtype represents exactly, so that the model in
/// memory and the model read back are the same numbers. Build it with [`Binary::new`].
#[derive(Debug, Clone)]
pub struct Binary {
    /// Tensor prefix in the checkpoint: signs are at `{name}.weight_packed`.
    pub name: String,
    pub rows: usize,
    pub cols: usize,
    pub planes: usize,
    /// Columns that share a scale; `cols` for one scale a row. The last group may be shorter.
    pub group: usize,
    /// `[planes, rows, ceil(cols / 32)]`: bit `c % 32` of word `c / 32` is 1 for +1, tail bits are 0.
    pub signs: Stored<u32>,
    /// `[planes, rows, ceil(cols / group)]`
    pub scales: Vec<f32>,
    /// F16, or F32 when a scale is too small for it.
    pub scale_dtype: Dtype,
    pub low_rank: Option<LowRank>,
}

/// `U·V`: `u` is `[rows, rank]`, `v` is `[rank, cols]`, both rounded to what is stored.
#[derive(Debug, Clone)]
pub struct LowRank {
    pub rank: usize,
    pub u: Vec<f32>,
    pub v: Vec<f32>,
    /// Scales of the int8 codes behind `u` and `v`, `[rank]` each; `None` where they are stored in f16.
    pub steps: Option<[Scales; 2]>,
}

impl LowRank {
    /// Factors that are stored in f16.
    pub fn new(rank: usize, u: Vec<f32>, v: Vec<f32>) -> LowRank {
        let round = |values: Vec<f32>| values.iter().map(|&x| f16::from_f32(x).to_f32()).collect();
        LowRank { rank, u: round(u), v: round(v), steps: None }
    }

    /// Factors that are stored as int8 codes, with a scale for every column of `u` and every row of `v`.
    pub fn int8(rank: usize, mut u: Vec<f32>, mut v: Vec<f32>) -> LowRank {
        let cols = v.len().checked_div(rank).unwrap_or(0);
        let (mut of_u, mut of_v) = (vec![0.0f32; rank], vec![0.0f32; rank]);
        for (i, x) in u.iter().enumerate() {
            of_u[i % rank] = of_u[i % rank].max(x.abs() / 127.0);
        }
        for (i, x) in v.iter().enumerate() {
            of_v[i / cols] = of_v[i / cols].max(x.abs() / 127.0);
        }
        let (of_u, of_v) = (Scales::new(of_u), Scales::new(of_v));
        let round = |x: &mut f32, step: f32| *x = step * packed::code(*x, step, 127.0) as f32;
        u.iter_mut().enumerate().for_each(|(i, x)| round(x, of_u.values[i % rank]));
        v.iter_mut().enumerate().for_each(|(i, x)| round(x, of_v.values[i / cols]));
        LowRank { rank, u, v, steps: Some([of_u, of_v]) }
    }

    /// The residual's shape alone, with int8 codes or not.
    pub fn blank(rank: usize, int8: bool) -> LowRank {
        let steps = || Scales::new(vec![0.0; rank]);
        LowRank { rank, u: Vec::new(), v: Vec::new(), steps: int8.then(|| [steps(), steps()]) }
    }

    /// Stored bytes of the residual of a `rows x cols` matrix.
    pub fn bytes(&self, rows: usize, cols: usize) -> usize {
        let values = self.rank * (rows + cols);
        match &self.steps {
            None => 2 * values,
            Some(steps) => values + steps.iter().map(Scales::bytes).sum::<usize>(),
        }
    }

    /// The tensors of the residual of a `rows x cols` matrix `name`.
    fn tensors(&self, name: &str, rows: usize, cols: usize) -> Vec<Tensor> {
        let at = |part: &str| format!("{name}.{part}");
        let shapes = [[rows, self.rank], [self.rank, cols]];
        let Some([of_u, of_v]) = &self.steps else {
            let factor = |part, shape: &[usize], values: &[f32]| {
                packed::stored_f32(at(part), shape, values, Dtype::F16)
            };
            let u = factor("lowrank_u", &shapes[0], &self.u);
            return vec![u, factor("lowrank_v", &shapes[1], &self.v)];
        };
        let codes = |values: &[f32], step: &dyn Fn(usize) -> f32| -> Vec<i8> {
            values.iter().enumerate().map(|(i, &x)| packed::code(x, step(i), 127.0)).collect()
        };
        let u = codes(&self.u, &|i| of_u.values[i % self.rank]);
        let v = codes(&self.v, &|i| of_v.values[i / cols]);
        vec![
            packed::stored(at("lowrank_u"), Dtype::I8, &shapes[0], &u),
            packed::stored(at("lowrank_v"), Dtype::I8, &shapes[1], &v),
            of_u.tensor(at("lowrank_u_scale"), &[self.rank]),
            of_v.tensor(at("lowrank_v_scale"), &[self.rank]),
        ]
    }

    /// Reads the residual of a `rows x cols` matrix, if it has one.
    fn take(parts: &mut Parts, rows: usize, cols: usize) -> Result<Option<LowRank>> {
        let (u, v) = match (parts.optional("lowrank_u"), parts.optional("lowrank_v")) {
            (None, None) => return Ok(None),
            (Some(u), Some(v)) => (u, v),
            (Some(_), None) => return Err(parts.missing("lowrank_v")),
            (None, _) => return Err(parts.missing("lowrank_u")),
        };
        let rank = u.shape.get(1).copied().unwrap_or(0);
        for (factor, expected) in [(&u, [rows, rank]), (&v, [rank, cols])] {
            packed::expect_shape(factor, &expected)?;
            factor.check_finite()?;
        }
        if u.dtype != Dtype::I8 {
            let (u, v) = (u.to_f32()?.into_owned(), v.to_f32()?.into_owned());
            return Ok(Some(LowRank { rank, u, v, steps: None }));
        }
        let of_u = parts.scales("lowrank_u_scale", &[rank])?;
        let of_v = parts.scales("lowrank_v_scale", &[rank])?;
        let scaled = |codes: &[i8], step: &dyn Fn(usize) -> f32| -> Vec<f32> {
            codes.iter().enumerate().map(|(i, &c)| step(i) * c as f32).collect()
        };
        let u = scaled(&u.to_i8()?, &|i| of_u.values[i % rank]);
        let v = scaled(&v.to_i8()?, &|i| of_v.values[i / cols]);
        Ok(Some(LowRank { rank, u, v, steps: Some([of_u, of_v]) }))
    }
}

impl Binary {
    /// Packs `codes`, `[rows, cols]`, whose bit `k` is 1 where plane `k` is +1, with `scales`,
    /// `[planes, rows, groups]`, and rounds
    /// scales to what is stored.
    ///
    /// # Panics
    /// If the lengths do not fit the shape: a bug in the caller.
    pub fn new(
        name: String,
        (rows, cols): (usize, usize),
        planes: usize,
        group: usize,
        codes: &[u8],
        scales: &[f32],
        low_rank: Option<LowRank>,
    ) -> Binary {
        let groups = cols.div_ceil(group);
        assert_eq!(codes.len(), rows * cols, "codes of a {rows}x{cols} matrix");
        assert_eq!(scales.len(), planes * rows * groups, "scales of {planes} planes");
        let words = cols.div_ceil(32);
        let mut signs = vec![0u32; planes * rows * words];
        for (row, line) in codes.chunks_exact(cols.max(1)).enumerate() {
            for plane in 0..planes {
                let at = (plane * rows + row) * words;
                for (word, codes) in signs[at..at + words].iter_mut().zip(line.chunks(32)) {
                    let bits = codes.iter().enumerate();
                    *word = bits.fold(0, |w, (c, code)| w | ((code >> plane & 1) as u32) << c);
                }
            }
        }
        let signs = Stored::new(Dtype::I32, &[planes, rows, words], &signs);
        let Scales { values: scales, dtype: scale_dtype } = Scales::new(scales.to_vec());
        Binary { name, rows, cols, planes, group, signs, scales, scale_dtype, low_rank }
    }

    /// Its shape alone, where no scale is too small for f16.
    pub fn blank(
        name: String,
        (rows, cols): (usize, usize),
        planes: usize,
        group: usize,
        low_rank: Option<LowRank>,
    ) -> Binary {
        let signs = Stored::blank(Dtype::I32, &[planes, rows, cols.div_ceil(32)]);
        let (scales, scale_dtype) = (Vec::new(), Dtype::F16);
        Binary { name, rows, cols, planes, group, signs, scales, scale_dtype, low_rank }
    }

    /// One plane for all of `weights`, `[rows, cols]`, with one scale: `m · sgn(w − e)`, with `m = mean |w|` and
    /// `e = mean w` (BiPFT notes, §1.1). The scale is kept in f32: it is one number.
    pub fn centred(name: String, (rows, cols): (usize, usize), weights: &[f32]) -> Binary {
        let (scale, mean) = centre(weights);
        Binary::around(name, (rows, cols), weights, mean, vec![scale; rows])
    }

    /// As [`Binary::centred`], with a scale for each row, the mean of all rows being one: word tables.
    pub fn centred_rows(name: String, (rows, cols): (usize, usize), weights: &[f32]) -> Binary {
        let scales = weights.chunks(cols.max(1)).map(|row| centre(row).0).collect();
        Binary::around(name, (rows, cols), weights, centre(weights).1, scales)
    }

    fn around(
        name: String,
        (rows, cols): (usize, usize),
        weights: &[f32],
        mean: f32,
        scales: Vec<f32>,
    ) -> Binary {
        if weights.is_empty() {
            let blank = Binary::blank(name, (rows, cols), 1, cols.max(1), None);
            return Binary { scale_dtype: Dtype::F32, ..blank };
        }
        let codes: Vec<u8> = weights.iter().map(|&w| (w - mean >= 0.0) as u8).collect();
        let ones = vec![1.0; rows];
        let signs = Binary::new(name, (rows, cols), 1, cols.max(1), &codes, &ones, None);
        Binary { scales, scale_dtype: Dtype::F32, ..signs }
    }

    /// The matrix it stands for, `[rows, cols]`.
    pub fn to_dense(&self) -> Vec<f32> {
        let mut dense = vec![0.0; self.rows * self.cols];
        if self.cols > 0 {
            dense.chunks_exact_mut(self.cols).enumerate().for_each(|(r, out)| self.add_row(r, out));
        }
        dense
    }

    /// Adds row `row` of the matrix it stands for to `out`, `[cols]`.
    pub fn add_row(&self, row: usize, out: &mut [f32]) {
        let words = self.cols.div_ceil(32);
        let groups = self.cols.div_ceil(self.group);
        for plane in 0..self.planes {
            let line = plane * self.rows + row;
            let signs = &self.signs[line * words..(line + 1) * words];
            let scales = &self.scales[line * groups..(line + 1) * groups];
            for (c, o) in out.iter_mut().enumerate() {
                let scale = scales[c / self.group];
                *o += if signs[c / 32] >> (c % 32) & 1 == 1 { scale } else { -scale };
            }
        }
        if let Some(low) = &self.low_rank {
            for (r, &u) in low.u[row * low.rank..(row + 1) * low.rank].iter().enumerate() {
                let v = &low.v[r * self.cols..(r + 1) * self.cols];
                out.iter_mut().zip(v).for_each(|(o, v)| *o += u * v);
            }
        }
    }

    /// `[rows, cols]`: bit `k` is 1 where plane `k` is +1.
    pub fn codes(&self) -> Vec<u8> {
        let words = self.cols.div_ceil(32);
        let code = |i: usize| {
            let (row, col) = (i / self.cols, i % self.cols);
            (0..self.planes).fold(0, |code, k| {
                let word = self.signs[(k * self.rows + row) * words + col / 32];
                code | ((word >> (col % 32) & 1) as u8) << k
            })
        };
        (0..self.rows * self.cols).map(code).collect()
    }

    /// Stored bytes.
    pub fn bytes(&self) -> usize {
        let Binary { planes, rows, cols, group, .. } = *self;
        let low = self.low_rank.as_ref().map_or(0, |low| low.bytes(rows, cols));
        let scales = self.scale_dtype.bits() / 8 * planes * rows * cols.div_ceil(group);
        4 * planes * rows * cols.div_ceil(32) + scales + low + 16
    }

    /// The tensors it is stored as (docs/format.md).
    pub fn tensors(&self) -> Vec<Tensor> {
        let groups = self.cols.div_ceil(self.group);
        let (planes, rows, cols) = (self.planes, self.rows, self.cols);
        let at = |part: &str| format!("{}.{part}", self.name);
        let scale_shape = if groups == 1 { vec![planes, rows] } else { vec![planes, rows, groups] };
        let shape = [rows as i64, cols as i64];
        let mut tensors = vec![
            self.signs.tensor(at("weight_packed")),
            packed::stored_f32(at("weight_scale"), &scale_shape, &self.scales, self.scale_dtype),
            Tensor::from_i64(at("weight_shape"), &[2], &shape),
        ];
        if let Some(low) = &self.low_rank {
            tensors.extend(low.tensors(&self.name, rows, cols));
        }
        tensors
    }

    /// Reads the tensors at `name`, if the checkpoint has a packed matrix there, and takes them out
    /// of it. `group` is what config.json says of it; `None` for one scale a row.
    ///
    /// # Errors
    /// When parts are missing or do not fit `shape` or each other.
    pub fn take(
        checkpoint: &mut Checkpoint,
        name: &str,
        shape: [usize; 2],
        group: Option<usize>,
    ) -> Result<Option<Binary>> {
        let Some(packed) = checkpoint.take(&format!("{name}.weight_packed")) else {
            return Ok(None);
        };
        let [rows, cols] = shape;
        let mut parts = Parts::new(checkpoint, name, &packed);
        parts.stated(shape)?;
        let planes = packed.shape.first().copied().unwrap_or(0);
        let words = [planes, rows, cols.div_ceil(32)];
        if packed.shape != words || !(1..=4).contains(&planes) {
            let expected = [planes.clamp(1, 4), words[1], words[2]];
            return Err(packed::wrong_shape(&packed, None, &expected));
        }
        let group = group.unwrap_or(cols).max(1);
        let groups = cols.div_ceil(group);
        let expected = if groups == 1 { vec![planes, rows] } else { vec![planes, rows, groups] };
        let scales = parts.scales("weight_scale", &expected)?;
        let low_rank = LowRank::take(&mut parts, rows, cols)?;
        Ok(Some(Binary {
            name: name.to_string(),
            rows,
            cols,
            planes,
            group,
            signs: Stored::read(&packed, Dtype::I32)?,
            scales: scales.values,
            scale_dtype: scales.dtype,
            low_rank,
        }))
    }
}

/// Mean of `|w|`, and of `w`; zeros for no weights at all.
pub fn centre(weights: &[f32]) -> (f32, f32) {
    let n = weights.len().max(1) as f64;
    let scale = weights.iter().map(|w| w.abs() as f64).sum::<f64>() / n;
    let mean = weights.iter().map(|&w| w as f64).sum::<f64>() / n;
    (scale as f32, mean as f32)
}

/// `Σ ±scale_k`, plus where the bit of `code` is set.
pub fn level(scales: &[f32], code: u8) -> f32 {
    let signed = |(k, &s): (usize, &f32)| if code >> k & 1 == 1 { s } else { -s };
    scales.iter().enumerate().map(signed).sum()
}

/// The levels of a row as whole numbers up to `most` of a unit, by code, and the unit: how integer kernels multiply
/// several planes at once (`runtime::kernels::packed`).
///
/// # Panics
/// For more than four scales.
pub fn whole_levels(scales: &[f32], most: i8) -> ([i8; 16], f32) {
    let greatest: f32 = scales.iter().map(|s| s.abs()).sum();
    let unit = greatest / f32::from(most);
    let mut table = [0; 16];
    for (code, whole) in table[..1 << scales.len()].iter_mut().enumerate() {
        // NaN, of a row of zeros, becomes 0.
        *whole = ((level(scales, code as u8) / unit).round() as i8).clamp(-most, most);
    }
    (table, unit)
}

/// The levels that a weight of a group can take, sorted, with their codes.
#[derive(Debug, Clone)]
pub struct Levels {
    values: [(f32, u8); 16],
    count: usize,
}

impl Levels {
    /// # Panics
    /// For more than four scales.
    pub fn new(scales: &[f32]) -> Levels {
        let mut values = [(0.0, 0); 16];
        let count = 1 << scales.len();
        for (code, value) in values[..count].iter_mut().enumerate() {
            *value = (level(scales, code as u8), code as u8);
        }
        values[..count].sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        Levels { values, count }
    }

    /// Between which values a weight keeps the level of `code`, no nearer to the next levels than `margin` of the way from
    /// the border to the level.
    ///
    /// # Panics
    /// If there is no such code.
    pub fn around(&self, code: u8, margin: f32) -> (f32, f32) {
        let values = &self.values[..self.count];
        let at = values.iter().position(|v| v.1 == code).expect("a code of these levels");
        let mine = values[at].0;
        let border = |other: f32| {
            let middle = (other + mine) / 2.0;
            middle + margin * (mine - middle)
        };
        let low = if at == 0 { f32::NEG_INFINITY } else { border(values[at - 1].0) };
        let high = values.get(at + 1).map_or(f32::INFINITY, |next| border(next.0));
        (low, high)
    }

    /// Code and value of the level next to `x`. Halfway between two the upper one counts: the sign of 0
    /// is +1.
    pub fn nearest(&self, x: f32) -> (u8, f32) {
        let mut best = 0;
        for i in 1..self.count {
            best += (x >= (self.values[i - 1].0 + self.values[i].0) / 2.0) as usize;
        }
        (self.values[best].1, self.values[best].0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn unpacking_gives_back_the_signs(
            rows in 1..5usize, cols in 1..70usize, planes in 1..4usize, seed in any::<u64>(),
        ) {
            let codes: Vec<u8> = (0..rows * cols)
                .map(|i| (seed.rotate_left(i as u32 % 64) ^ i as u64) as u8 & ((1 << planes) - 1))
                .collect();
            // Powers of two: every one of the 2^planes sums is distinct and exact.
            let scales: Vec<f32> =
                (0..planes).flat_map(|k| vec![f32::powi(2.0, -(k as i32)); rows]).collect();
            let binary = Binary::new("w".into(), (rows, cols), planes, cols, &codes, &scales, None);
            for (&code, value) in codes.iter().zip(binary.to_dense()) {
                let sign = |k: usize| if code >> k & 1 == 1 { 1.0 } else { -1.0 };
                let expected: f32 = (0..planes).map(|k| f32::powi(2.0, -(k as i32)) * sign(k)).sum();
                prop_assert_eq!(value, expected);
            }
            let set: u32 = binary.signs.iter().map(|w| w.count_ones()).sum();
            prop_assert_eq!(set, codes.iter().map(|c| c.count_ones()).sum::<u32>());
        }
    }

    #[test]
    fn a_group_scales_its_own_columns_and_the_last_may_be_short() {
        let scales = [1.0, 2.0, 4.0];
        let binary = Binary::new("w".into(), (1, 5), 1, 2, &[1, 0, 1, 1, 0], &scales, None);
        assert_eq!(binary.to_dense(), [1.0, -1.0, 2.0, 2.0, -4.0]);
    }

    #[test]
    fn signs_are_those_around_the_mean_and_one_scale_is_that_of_all() {
        let weights = [4.0, -3.0, 2.0, 1.0, -1.0, 3.0]; // mean 1, mean of absolute values 14 / 6
        let m = 14.0 / 6.0;
        let one = Binary::centred("w".into(), (2, 3), &weights);
        assert_eq!(one.to_dense(), [m, -m, m, m, -m, m]);
        let rows = Binary::centred_rows("w".into(), (2, 3), &weights);
        let (a, b) = (3.0, 5.0 / 3.0);
        assert_eq!(rows.to_dense(), [a, -a, a, b, -b, b]);
        // Made of its own values it is the same.
        let again = Binary::centred("w".into(), (2, 3), &one.to_dense());
        assert_eq!((again.signs, again.scales), (one.signs, one.scales));
    }

    #[test]
    fn tiny_scales_are_stored_in_f32() {
        let binary = Binary::new("w".into(), (1, 1), 1, 1, &[1], &[1e-6], None);
        assert_eq!((binary.scale_dtype, binary.to_dense()[0]), (Dtype::F32, 1e-6));
    }

    #[test]
    fn a_level_reaches_to_the_middle_and_with_a_margin_less_far() {
        // Levels −3, −1, 1, 3.
        let levels = Levels::new(&[2.0, 1.0]);
        let (low, high) = levels.around(0b10, 0.0);
        assert_eq!((low, high), (-2.0, 0.0));
        assert_eq!(levels.around(0b10, 0.5), (-1.5, -0.5));
        assert_eq!(levels.around(0b11, 0.5), (2.5, f32::INFINITY));
        assert_eq!(levels.around(0b00, 0.5), (f32::NEG_INFINITY, -2.5));
        // Two planes that repeat each other: levels meet, and nothing lies between them.
        let (low, high) = Levels::new(&[1.0, 1.0]).around(0b01, 0.3);
        assert!(low <= high);
    }

    #[test]
    fn the_residual_is_added() {
        let low_rank = Some(LowRank::new(1, vec![0.5, -1.0], vec![2.0, 4.0]));
        let binary = Binary::new("w".into(), (2, 2), 1, 2, &[1; 4], &[1.0, 1.0], low_rank);
        assert_eq!(binary.to_dense(), [2.0, 3.0, -1.0, -3.0]);
    }

    #[test]
    fn int8_factors_have_a_scale_a_direction_and_are_rounded_once() {
        // Directions of very different size, and one of nothing.
        let u = vec![1.0, 100.0, 0.0, -0.3, 0.1, 0.0];
        let v = vec![0.2, -0.1, 0.05, 3.0, 2.0, -4.0, 0.0, 0.0, 0.0];
        let low = LowRank::int8(3, u, v);
        assert!((low.u[3] + 0.3).abs() < 1.0 / 250.0, "as fine as its own direction: {}", low.u[3]);
        assert!((low.u[1] - 100.0).abs() < 0.05 && (low.v[4] - 2.0).abs() < 0.02, "{low:?}");
        assert_eq!((low.u[2], low.v[8]), (0.0, 0.0));
        assert_eq!(low.bytes(2, 3), 6 + 9 + 2 * (3 + 3));
        let tensors = low.tensors("w", 2, 3);
        assert_eq!(tensors.iter().map(|t| t.bytes().len()).sum::<usize>(), low.bytes(2, 3));
        let again = LowRank::int8(3, low.u.clone(), low.v.clone());
        assert_eq!((again.u, again.v), (low.u, low.v), "rounding twice is rounding once");
    }
}
