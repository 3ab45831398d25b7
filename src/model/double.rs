//! A matrix as two binary factors between three diagonals.

use super::packed::{Parts, Scales, Stored, expect_shape};
use crate::Result;
use crate::checkpoint::{Checkpoint, Dtype, Tensor};

/// `W ≈ diag(a)·U·diag(m)·V·diag(b)`, with `U, V ∈ {−1, +1}` (Double Binary Factorization, arXiv 2505.11076; BiPFT
/// notes, §5.6): any number of bits a weight, by the rank. Build it with [`DoubleBinary::new`].
#[derive(Debug, Clone)]
pub struct DoubleBinary {
    /// Tensor prefix in the checkpoint: signs are at `{name}.dbf_u` and `{name}.dbf_v`.
    pub name: String,
    pub rows: usize,
    pub cols: usize,
    pub rank: usize,
    /// `[rows, ceil(rank / 32)]`: bit `r % 32` of word `r / 32` is 1 for +1, tail bits are 0.
    pub u: Stored<u32>,
    /// `[rank, ceil(cols / 32)]`, likewise.
    pub v: Stored<u32>,
    /// `[rows]`
    pub a: Scales,
    /// `[rank]`
    pub m: Scales,
    /// `[cols]`
    pub b: Scales,
}

impl DoubleBinary {
    /// Packs the signs of `u`, `[rows, rank]`, and of `v`, `[rank, cols]`; 0 counts as +1. `scales` are `a`, `m` and
    /// `b`, which are rounded to what is stored.
    ///
    /// # Panics
    /// If the lengths do not fit the shape: a bug in the caller.
    pub fn new(
        name: String,
        (rows, cols): (usize, usize),
        rank: usize,
        (u, v): (&[f32], &[f32]),
        scales: [Vec<f32>; 3],
    ) -> DoubleBinary {
        assert_eq!(u.len(), rows * rank, "signs of {rows}x{rank}");
        assert_eq!(v.len(), rank * cols, "signs of {rank}x{cols}");
        let lengths = [scales[0].len(), scales[1].len(), scales[2].len()];
        assert_eq!(lengths, [rows, rank, cols], "scales of {rows}x{rank}x{cols}");
        let [a, m, b] = scales.map(Scales::new);
        let (u, v) = (pack(u, rows, rank), pack(v, rank, cols));
        DoubleBinary { name, rows, cols, rank, u, v, a, m, b }
    }

    /// Its shape alone, where no scale is too small for f16.
    pub fn blank(name: String, (rows, cols): (usize, usize), rank: usize) -> DoubleBinary {
        let [a, m, b] = [rows, rank, cols].map(|n| Scales::new(vec![0.0; n]));
        let words = |lines, width: usize| Stored::blank(Dtype::I32, &[lines, width.div_ceil(32)]);
        let (u, v) = (words(rows, rank), words(rank, cols));
        DoubleBinary { name, rows, cols, rank, u, v, a, m, b }
    }

    /// The signs of U and V, `[rows, rank]` and `[rank, cols]`, as −1 and +1.
    pub fn signs(&self) -> [Vec<f32>; 2] {
        let unpack = |words: &[u32], lines: usize, width: usize| -> Vec<f32> {
            let count = width.div_ceil(32);
            let sign = |line: usize, c: usize| sign(words[line * count + c / 32], c % 32);
            (0..lines * width).map(|i| sign(i / width, i % width)).collect()
        };
        [unpack(&self.u, self.rows, self.rank), unpack(&self.v, self.rank, self.cols)]
    }

    /// The matrix it stands for, `[rows, cols]`.
    pub fn to_dense(&self) -> Vec<f32> {
        /// Rows of V whose 16 sums with signs are made once and added to every row of U: a quarter of the additions.
        const AT_ONCE: usize = 4;
        let (cols, words) = (self.cols, self.rank.div_ceil(32));
        let mut dense = vec![0.0; self.rows * cols];
        if cols == 0 {
            return dense;
        }
        let mut sums = vec![0.0f32; cols << AT_ONCE];
        for first in (0..self.rank).step_by(AT_ONCE) {
            sums.fill(0.0);
            for (bit, r) in (first..self.rank.min(first + AT_ONCE)).enumerate() {
                for (code, sum) in sums.chunks_exact_mut(cols).enumerate() {
                    self.add_factor_row(r, sign(code as u32, bit), sum);
                }
            }
            for (row, out) in dense.chunks_exact_mut(cols).enumerate() {
                // Four bits never straddle two words.
                let code = self.u[row * words + first / 32] >> (first % 32) & ((1 << AT_ONCE) - 1);
                let sum = &sums[code as usize * cols..(code as usize + 1) * cols];
                out.iter_mut().zip(sum).for_each(|(o, s)| *o += s);
            }
        }
        for (out, a) in dense.chunks_exact_mut(cols).zip(&self.a.values) {
            out.iter_mut().zip(&self.b.values).for_each(|(o, b)| *o *= a * b);
        }
        dense
    }

    /// Adds row `row` of the matrix it stands for to `out`, `[cols]`.
    pub fn add_row(&self, row: usize, out: &mut [f32]) {
        let words = self.rank.div_ceil(32);
        let mut sum = vec![0.0; self.cols];
        for r in 0..self.rank {
            self.add_factor_row(r, sign(self.u[row * words + r / 32], r % 32), &mut sum);
        }
        let a = self.a.values[row];
        let scaled = sum.iter().zip(&self.b.values).map(|(s, b)| s * (a * b));
        out.iter_mut().zip(scaled).for_each(|(o, s)| *o += s);
    }

    /// `out += sign · m_r · V_r`
    fn add_factor_row(&self, r: usize, sign: f32, out: &mut [f32]) {
        let words = self.cols.div_ceil(32);
        let scale = sign * self.m.values[r];
        let words = &self.v[r * words..(r + 1) * words];
        for (out, word) in out.chunks_mut(32).zip(words) {
            for (c, o) in out.iter_mut().enumerate() {
                // The sign bit of a float: no branch, so that the loop is vectorised.
                *o += f32::from_bits(scale.to_bits() ^ (!word >> c & 1) << 31);
            }
        }
    }

    /// Stored bytes.
    pub fn bytes(&self) -> usize {
        let scales = [&self.a, &self.m, &self.b].map(Scales::bytes);
        let words = self.rows * self.rank.div_ceil(32) + self.rank * self.cols.div_ceil(32);
        4 * words + scales.iter().sum::<usize>() + 16
    }

    /// The tensors it is stored as (docs/format.md).
    pub fn tensors(&self) -> Vec<Tensor> {
        let at = |part: &str| format!("{}.{part}", self.name);
        let (rows, rank, cols) = (self.rows, self.rank, self.cols);
        vec![
            self.v.tensor(at("dbf_v")),
            self.u.tensor(at("dbf_u")),
            self.a.tensor(at("dbf_a"), &[rows]),
            self.m.tensor(at("dbf_m"), &[rank]),
            self.b.tensor(at("dbf_b"), &[cols]),
            Tensor::from_i64(at("weight_shape"), &[2], &[rows as i64, cols as i64]),
        ]
    }

    /// Reads the tensors at `name`, if the checkpoint has such a matrix there, and takes them out of it.
    ///
    /// # Errors
    /// When parts are missing or do not fit `shape` or each other.
    pub fn take(
        checkpoint: &mut Checkpoint,
        name: &str,
        shape: [usize; 2],
    ) -> Result<Option<DoubleBinary>> {
        let Some(u) = checkpoint.take(&format!("{name}.dbf_u")) else { return Ok(None) };
        let [rows, cols] = shape;
        let mut parts = Parts::new(checkpoint, name, &u);
        parts.stated(shape)?;
        let v = parts.required("dbf_v")?;
        let rank = v.shape.first().copied().unwrap_or(0);
        expect_shape(&v, &[rank, cols.div_ceil(32)])?;
        expect_shape(&u, &[rows, rank.div_ceil(32)])?;
        Ok(Some(DoubleBinary {
            name: name.to_string(),
            rows,
            cols,
            rank,
            u: Stored::read(&u, Dtype::I32)?,
            v: Stored::read(&v, Dtype::I32)?,
            a: parts.scales("dbf_a", &[rows])?,
            m: parts.scales("dbf_m", &[rank])?,
            b: parts.scales("dbf_b", &[cols])?,
        }))
    }
}

fn sign(word: u32, bit: usize) -> f32 {
    if word >> bit & 1 == 1 { 1.0 } else { -1.0 }
}

/// A bit each for lines of `width` values; every line begins a word.
fn pack(values: &[f32], lines: usize, width: usize) -> Stored<u32> {
    let word = |values: &[f32]| {
        values.iter().enumerate().fold(0, |word, (c, &x)| word | ((x >= 0.0) as u32) << c)
    };
    let all = values.chunks_exact(width.max(1)).flat_map(|line| line.chunks(32).map(word));
    Stored::new(Dtype::I32, &[lines, width.div_ceil(32)], &Vec::from_iter(all))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::testing::gaussian;
    use proptest::prelude::*;

    fn random(rows: usize, cols: usize, rank: usize, seed: u64) -> DoubleBinary {
        let (u, v) = (gaussian(rows * rank, seed), gaussian(rank * cols, seed + 1));
        let scales = [rows, rank, cols].map(|n| {
            let numbers = gaussian(n, seed + 2 + n as u64);
            numbers.iter().map(|x| 0.1 + x.abs()).collect()
        });
        DoubleBinary::new("w".into(), (rows, cols), rank, (&u, &v), scales)
    }

    proptest! {
        #[test]
        fn unpacking_gives_back_the_signs_and_their_product(
            rows in 1..6usize, cols in 1..70usize, rank in 1..70usize, seed in 0..1000u64,
        ) {
            let double = random(rows, cols, rank, seed);
            let [u, v] = double.signs();
            let plus = |x: &[f32]| x.iter().filter(|x| **x >= 0.0).count() as u32;
            let set = |words: &[u32]| words.iter().map(|w| w.count_ones()).sum::<u32>();
            prop_assert_eq!(set(&double.u), plus(&gaussian(rows * rank, seed)), "tail bits are 0");
            prop_assert_eq!(set(&double.v), plus(&gaussian(rank * cols, seed + 1)));
            let dense = double.to_dense();
            let [a, m, b] = [&double.a, &double.m, &double.b].map(|s| &s.values);
            for (row, col) in (0..rows).flat_map(|r| (0..cols).map(move |c| (r, c))) {
                let terms = (0..rank).map(|r| (u[row * rank + r] * m[r] * v[r * cols + col]) as f64);
                let expected = terms.sum::<f64>() * (a[row] * b[col]) as f64;
                let found = dense[row * cols + col] as f64;
                prop_assert!((found - expected).abs() < 1e-4 * (1.0 + expected.abs()), "{found} {expected}");
            }
            let mut line = vec![1.0; cols];
            double.add_row(rows - 1, &mut line);
            for (found, expected) in line.iter().zip(&dense[(rows - 1) * cols..]) {
                prop_assert!((found - 1.0 - expected).abs() < 1e-3 * (1.0 + expected.abs()));
            }
        }
    }

    #[test]
    fn a_matrix_by_hand() {
        // U = [[+ −] [+ +]], V = [[+ +] [+ −]]: U·diag(1, 2)·V = [[-1 3] [3 -1]].
        let u = [1.0, -1.0, 1.0, 0.0];
        let v = [1.0, 1.0, 1.0, -1.0];
        let scales = [vec![1.0, 10.0], vec![1.0, 2.0], vec![1.0, 0.5]];
        let double = DoubleBinary::new("w".into(), (2, 2), 2, (&u, &v), scales);
        assert_eq!(double.to_dense(), [-1.0, 1.5, 30.0, -5.0]);
        assert_eq!((&double.u[..], &double.v[..]), (&[0b01, 0b11][..], &[0b11, 0b01][..]));
        assert_eq!(double.bytes(), double.tensors().iter().map(|t| t.bytes().len()).sum::<usize>());
    }

    #[test]
    fn tiny_scales_are_stored_in_f32() {
        let scales = [vec![1e-6], vec![1.0], vec![1.0]];
        let double = DoubleBinary::new("w".into(), (1, 1), 1, (&[1.0], &[1.0]), scales);
        assert_eq!((double.a.dtype, double.m.dtype), (Dtype::F32, Dtype::F16));
        assert_eq!(double.to_dense(), [1e-6]);
    }
}
