//! A matrix in 8-bit integers with a scale for each row.

use super::packed::{self, Parts, Scales, Stored, expect_shape};
use crate::checkpoint::{Checkpoint, Dtype, Tensor};
use crate::{Error, Result};

/// `W ≈ diag(scale)·codes`, symmetric. Build it with [`Int8::new`].
#[derive(Debug, Clone)]
pub struct Int8 {
    /// Tensor prefix in the checkpoint: codes are at `{name}.weight_int8`.
    pub name: String,
    pub rows: usize,
    pub cols: usize,
    /// `[rows, cols]`, from −64 to 64.
    pub codes: Stored<i8>,
    /// `[rows]`
    pub scales: Scales,
}

impl Int8 {
    /// The largest code. CPUs without VNNI add pairs of products of an unsigned and a signed byte in 16 bits, where
    /// `2 · 255 · 64` has room and `2 · 255 · 65` saturates: with one bit less, products are exact everywhere.
    pub const MOST: i8 = 64;

    /// The nearest codes for `w`, `[rows, cols]`: the largest |w| of a row is 64 steps.
    ///
    /// # Panics
    /// If the length does not fit the shape: a bug in the caller.
    pub fn new(name: String, (rows, cols): (usize, usize), w: &[f32]) -> Int8 {
        assert_eq!(w.len(), rows * cols, "a {rows}x{cols} matrix");
        let lines = || w.chunks_exact(cols.max(1));
        let scales = match cols {
            0 => vec![0.0; rows],
            _ => lines().map(Int8::step).collect(),
        };
        let scales = Scales::new(scales);
        let codes = lines().zip(&scales.values).flat_map(|(line, &scale)| {
            line.iter().map(move |&x| packed::code(x, scale, Int8::MOST as f32))
        });
        let codes = Stored::new(Dtype::I8, &[rows, cols], &Vec::from_iter(codes));
        Int8 { name, rows, cols, codes, scales }
    }

    /// Its shape alone, where no scale is too small for f16.
    pub fn blank(name: String, (rows, cols): (usize, usize)) -> Int8 {
        let codes = Stored::blank(Dtype::I8, &[rows, cols]);
        Int8 { name, rows, cols, codes, scales: Scales::new(vec![0.0; rows]) }
    }

    /// The distance of two levels of a row.
    pub fn step(row: &[f32]) -> f32 {
        row.iter().fold(0.0f32, |most, x| most.max(x.abs())) / Int8::MOST as f32
    }

    /// The matrix it stands for, `[rows, cols]`.
    pub fn to_dense(&self) -> Vec<f32> {
        let lines = self.codes.chunks_exact(self.cols.max(1)).zip(&self.scales.values);
        lines.flat_map(|(line, &s)| line.iter().map(move |&code| s * code as f32)).collect()
    }

    /// Adds row `row` of the matrix it stands for to `out`, `[cols]`.
    pub fn add_row(&self, row: usize, out: &mut [f32]) {
        let scale = self.scales.values[row];
        let codes = &self.codes[row * self.cols..(row + 1) * self.cols];
        out.iter_mut().zip(codes).for_each(|(o, &code)| *o += scale * code as f32);
    }

    /// Stored bytes.
    pub fn bytes(&self) -> usize {
        self.rows * self.cols + self.scales.bytes()
    }

    /// The tensors it is stored as (docs/format.md).
    pub fn tensors(&self) -> Vec<Tensor> {
        let at = |part: &str| format!("{}.{part}", self.name);
        vec![
            self.codes.tensor(at("weight_int8")),
            self.scales.tensor(at("weight_scale"), &[self.rows]),
        ]
    }

    /// Reads the tensors at `name`, if the checkpoint has such a matrix there, and takes them out of it.
    ///
    /// # Errors
    /// When the scales are missing, a part does not fit `shape`, or a code is out of range.
    pub fn take(
        checkpoint: &mut Checkpoint,
        name: &str,
        shape: [usize; 2],
    ) -> Result<Option<Int8>> {
        let Some(codes) = checkpoint.take(&format!("{name}.weight_int8")) else { return Ok(None) };
        expect_shape(&codes, &shape)?;
        let scales = Parts::new(checkpoint, name, &codes).scales("weight_scale", &shape[..1])?;
        let values: Stored<i8> = Stored::read(&codes, Dtype::I8)?;
        if let Some(code) = values.iter().find(|c| c.unsigned_abs() > Int8::MOST as u8) {
            return Err(Error::Mismatch {
                found: format!("tensor `{}` holds the code {code}", codes.name),
                expected: format!("codes go from -{0} to {0}", Int8::MOST),
                advice: "pack the model again, or fetch the checkpoint again",
            });
        }
        let (name, [rows, cols]) = (name.to_string(), shape);
        Ok(Some(Int8 { name, rows, cols, codes: values, scales }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_weight_is_within_half_a_step_of_its_row(
            rows in 1..5usize, w in prop::collection::vec(-3.0f32..3.0, 5..60),
        ) {
            let cols = w.len() / rows;
            let w = &w[..rows * cols];
            let int8 = Int8::new("w".into(), (rows, cols), w);
            let dense = int8.to_dense();
            for (i, (found, expected)) in dense.iter().zip(w).enumerate() {
                // Half a step, and 64 times what the scale lost in f16.
                let step = int8.scales.values[i / cols];
                prop_assert!((found - expected).abs() <= 0.54 * step, "{found} {expected} {step}");
            }
            prop_assert!(int8.codes.iter().all(|c| (-64..=64).contains(c)));
            let again = Int8::new("w".into(), (rows, cols), &dense);
            prop_assert_eq!(again.codes, int8.codes.clone(), "rounding twice is rounding once");
            let mut line = vec![0.0; cols];
            int8.add_row(rows - 1, &mut line);
            prop_assert_eq!(&line[..], &dense[(rows - 1) * cols..]);
            let stored: usize = int8.tensors().iter().map(|t| t.bytes().len()).sum();
            prop_assert_eq!(int8.bytes(), stored);
        }
    }

    #[test]
    fn rows_of_zeros_and_of_tiny_weights_keep_their_values() {
        let int8 = Int8::new("w".into(), (2, 2), &[0.0, 0.0, 6.4e-5, -1e-6]);
        assert_eq!(int8.scales.dtype, Dtype::F32);
        assert_eq!(int8.codes[..], [0, 0, 64, -1]);
    }
}
