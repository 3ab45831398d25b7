//! Matrix products, by faer's kernels, on one thread.
//!
//! One thread on purpose: callers spread batches or row blocks over threads, so that results do not
//! depend on how many there are.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatRef, Par};

/// A row-major matrix in a slice: `rows × cols`, each row `stride` after the one before.
#[derive(Debug, Clone, Copy)]
pub struct Mat<'a> {
    pub data: &'a [f32],
    pub rows: usize,
    pub cols: usize,
    pub stride: usize,
    /// Read as its transpose.
    pub transposed: bool,
}

/// A row-major matrix to write to; see [`Mat`].
#[derive(Debug)]
pub struct MatMut<'a> {
    pub data: &'a mut [f32],
    pub rows: usize,
    pub cols: usize,
    pub stride: usize,
}

impl<'a> Mat<'a> {
    /// `[rows, cols]` without gaps.
    pub fn new(data: &'a [f32], rows: usize, cols: usize) -> Mat<'a> {
        Mat { data, rows, cols, stride: cols, transposed: false }
    }

    /// Columns `from..from + cols` of the same rows.
    pub fn columns(self, from: usize, cols: usize) -> Mat<'a> {
        let data = if self.rows == 0 || cols == 0 { &[] } else { &self.data[from..] };
        Mat { data, cols, ..self }
    }

    /// Rows `from..from + rows`.
    pub fn block(self, from: usize, rows: usize) -> Mat<'a> {
        let data = if rows == 0 || self.cols == 0 { &[] } else { &self.data[from * self.stride..] };
        Mat { data, rows, ..self }
    }

    /// The transpose, without moving anything.
    pub fn t(self) -> Mat<'a> {
        Mat { transposed: !self.transposed, ..self }
    }

    #[cfg(test)]
    fn inner(&self) -> usize {
        if self.transposed { self.rows } else { self.cols }
    }

    fn view(&self) -> MatRef<'a, f32> {
        let needed = match self.rows.min(self.cols) {
            0 => 0,
            _ => (self.rows - 1) * self.stride + self.cols,
        };
        assert!(self.data.len() >= needed, "{} values, a matrix of {needed}", self.data.len());
        // SAFETY: the assertion puts every element of the matrix inside the slice.
        let view = unsafe {
            MatRef::from_raw_parts(
                self.data.as_ptr(),
                self.rows,
                self.cols,
                self.stride as isize,
                1,
            )
        };
        if self.transposed { view.transpose() } else { view }
    }
}

impl<'a> MatMut<'a> {
    /// `[rows, cols]` without gaps.
    pub fn new(data: &'a mut [f32], rows: usize, cols: usize) -> MatMut<'a> {
        MatMut { data, rows, cols, stride: cols }
    }

    /// Columns `from..from + cols` of the same rows.
    pub fn columns(self, from: usize, cols: usize) -> MatMut<'a> {
        let data = if self.rows == 0 || cols == 0 { &mut [] } else { &mut self.data[from..] };
        MatMut { data, cols, ..self }
    }

    /// Rows `from..from + rows`.
    pub fn block(self, from: usize, rows: usize) -> MatMut<'a> {
        let empty = rows == 0 || self.cols == 0;
        let data = if empty { &mut [] } else { &mut self.data[from * self.stride..] };
        MatMut { data, rows, ..self }
    }

    /// The same matrix, to write to once more.
    pub fn again(&mut self) -> MatMut<'_> {
        MatMut { data: &mut *self.data, ..*self }
    }

    /// Its rows, `[cols]` each.
    pub fn rows_mut(&mut self) -> impl Iterator<Item = &mut [f32]> {
        let cols = self.cols;
        self.data.chunks_mut(self.stride.max(1)).take(self.rows).map(move |row| &mut row[..cols])
    }

    fn run(self, accumulate: Accum, a: Mat, b: Mat, alpha: f32) {
        let needed = match self.rows.min(self.cols) {
            0 => 0,
            _ => (self.rows - 1) * self.stride + self.cols,
        };
        assert!(self.data.len() >= needed, "{} values, a matrix of {needed}", self.data.len());
        // SAFETY: the assertion puts every element inside the slice, which is borrowed mutably.
        let out = unsafe {
            faer::MatMut::from_raw_parts_mut(
                self.data.as_mut_ptr(),
                self.rows,
                self.cols,
                self.stride as isize,
                1,
            )
        };
        matmul(out, accumulate, a.view(), b.view(), alpha, Par::Seq);
    }
}

/// `out ← alpha · a · b`.
///
/// # Panics
/// If the shapes do not fit.
pub fn product(out: MatMut, a: Mat, b: Mat, alpha: f32) {
    #[cfg(test)]
    MACS.with(|macs| macs.set(macs.get() + (out.rows * out.cols * a.inner()) as u64));
    out.run(Accum::Replace, a, b, alpha);
}

#[cfg(test)]
thread_local! {
    /// Multiply-accumulates of [`product`] on this thread.
    pub static MACS: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

/// `out ← out + alpha · a · b`.
///
/// # Panics
/// If the shapes do not fit.
pub fn add_product(out: MatMut, a: Mat, b: Mat, alpha: f32) {
    out.run(Accum::Add, a, b, alpha);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strides_and_transposes_are_respected() {
        // [[1 2 3] [4 5 6]], of which columns 1..3 are taken, times the transpose of [[1 0] [2 1]].
        let a = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        let b = [1.0, 0.0, 2.0, 1.0];
        let mut out = [9.0; 6];
        let target = MatMut::new(&mut out, 2, 3).columns(1, 2);
        product(target, Mat::new(&a, 2, 3).columns(1, 2), Mat::new(&b, 2, 2).t(), 1.0);
        assert_eq!(out, [9.0, 2.0, 7.0, 9.0, 5.0, 16.0]);
        add_product(
            MatMut::new(&mut out, 2, 3).columns(1, 2),
            Mat::new(&a, 2, 3).columns(1, 2),
            Mat::new(&b, 2, 2).t(),
            2.0,
        );
        assert_eq!(out, [9.0, 6.0, 21.0, 9.0, 15.0, 48.0]);
    }

    #[test]
    fn no_inner_dimension_gives_zeros() {
        let mut out = [1.0; 4];
        product(MatMut::new(&mut out, 2, 2), Mat::new(&[], 2, 0), Mat::new(&[], 0, 2), 1.0);
        assert_eq!(out, [0.0; 4]);
    }
}
