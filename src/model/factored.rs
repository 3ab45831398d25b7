//! A table of low rank (subspace notes, §3.4).

use super::exact::{Exact, numbers, store};
use super::packed::{Parts, expect_shape, stored_f32};
use super::subspace::{TableErrors, dense};
use crate::Result;
use crate::checkpoint::{Checkpoint, Dtype, Tensor};

/// `U·V`, but for the rows that are stored as they are. Build it with [`Factored::new`].
#[derive(Debug, Clone)]
pub struct Factored {
    /// Tensor prefix in the checkpoint: the factors are at `{name}.factor_u` and `{name}.factor_v`.
    pub name: String,
    pub rows: usize,
    pub cols: usize,
    pub rank: usize,
    /// `[rows, rank]`, F16 or F32.
    pub u: Tensor,
    /// `[rank, cols]`
    pub v: Vec<f32>,
    pub v_dtype: Dtype,
    pub exact: Exact,
    /// What it lost, where that is known.
    pub errors: Option<TableErrors>,
}

impl Factored {
    /// Rounds the factors to what is stored: `u` is `[rows, rank]`, `v` is `[rank, cols]`.
    ///
    /// # Panics
    /// If the lengths do not fit the shapes: a bug in the caller.
    pub fn new(
        name: String,
        (rows, cols): (usize, usize),
        mut u: Vec<f32>,
        mut v: Vec<f32>,
        exact: Exact,
    ) -> Factored {
        let rank = v.len() / cols.max(1);
        assert_eq!((u.len(), v.len()), (rows * rank, rank * cols), "factors of {rows}x{cols}");
        let (u_dtype, v_dtype) = (store(&mut u), store(&mut v));
        let u = Tensor::from_f32(format!("{name}.factor_u"), &[rows, rank], &u, u_dtype);
        Factored { name, rows, cols, rank, u, v, v_dtype, exact, errors: None }
    }

    /// Its shape alone, where numbers keep to the range of f16.
    pub fn blank(
        name: String,
        (rows, cols): (usize, usize),
        rank: usize,
        exact: Exact,
    ) -> Factored {
        let u = Tensor::blank(format!("{name}.factor_u"), Dtype::F16, &[rows, rank]);
        let (v, v_dtype) = (Vec::new(), Dtype::F16);
        Factored { name, rows, cols, rank, u, v, v_dtype, exact, errors: None }
    }

    /// Row `row` of U, `[rank]`.
    pub fn gather(&self, row: usize, out: &mut [f32]) {
        let read = self.u.row_f32(row, |values| out.copy_from_slice(values));
        read.expect("a factor of floating type");
    }

    /// Adds row `row` of the table it stands for to `out`, `[cols]`.
    pub fn add_row(&self, row: usize, out: &mut [f32]) {
        if let Some(exact) = self.exact.get(row) {
            out.iter_mut().zip(exact).for_each(|(o, x)| *o += x);
            return;
        }
        let mut u = vec![0.0; self.rank];
        self.gather(row, &mut u);
        for (u, v) in u.iter().zip(self.v.chunks_exact(self.cols)) {
            out.iter_mut().zip(v).for_each(|(o, v)| *o += u * v);
        }
    }

    /// The table it stands for, `[rows, cols]`.
    pub fn to_dense(&self) -> Vec<f32> {
        dense(self.rows, self.cols, |row, out| self.add_row(row, out))
    }

    /// Numbers that are stored as such.
    pub fn stored_params(&self) -> usize {
        self.u.numel() + self.rank * self.cols + self.exact.numbers(self.cols)
    }

    /// Stored bytes.
    pub fn bytes(&self) -> usize {
        let v = self.v_dtype.bits() / 8 * self.rank * self.cols;
        self.u.byte_len() + v + self.exact.bytes(self.cols)
    }

    /// Bytes in memory while it is looked up in: U as it is stored, everything else in f32.
    pub fn memory_bytes(&self) -> usize {
        let exact = self.exact.numbers(self.cols) + self.exact.ids.len();
        self.u.byte_len() + 4 * (self.rank * self.cols + exact)
    }

    /// Multiply-accumulates of a row that is looked up.
    pub fn macs(&self) -> usize {
        self.rank * self.cols
    }

    /// The tensors it is stored as (docs/format.md).
    pub fn tensors(&self) -> Vec<Tensor> {
        let at = |part: &str| format!("{}.{part}", self.name);
        let shape = [self.rank, self.cols];
        let mut tensors = vec![
            self.u.clone().renamed(at("factor_u")),
            stored_f32(at("factor_v"), &shape, &self.v, self.v_dtype),
        ];
        tensors.extend(self.exact.tensors(&self.name, self.cols));
        tensors
    }

    /// Reads the tensors at `name`, if the checkpoint has such a table there, and takes them out of it.
    ///
    /// # Errors
    /// When parts are missing or do not fit `shape` or each other, or a number is not finite.
    pub fn take(
        checkpoint: &mut Checkpoint,
        name: &str,
        shape: [usize; 2],
        errors: Option<TableErrors>,
    ) -> Result<Option<Factored>> {
        let [rows, cols] = shape;
        let Some(u) = checkpoint.take(&format!("{name}.factor_u")) else { return Ok(None) };
        let mut parts = Parts::new(checkpoint, name, &u);
        let v = parts.required("factor_v")?;
        let rank = v.shape.first().copied().unwrap_or(0);
        expect_shape(&u, &[rows, rank])?;
        u.check_finite()?;
        if !matches!(u.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) {
            let (name, found) = (u.name, u.dtype.to_string());
            return Err(crate::Error::Dtype { name, found, expected: "F32, F16 or BF16" });
        }
        let (values, v_dtype) = numbers(&v, &[rank, cols])?;
        let exact = Exact::take(&mut parts, shape)?;
        let (name, v) = (name.to_string(), values);
        Ok(Some(Factored { name, rows, cols, rank, u, v, v_dtype, exact, errors }))
    }
}
