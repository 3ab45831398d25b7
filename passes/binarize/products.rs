//! Matrix products on all threads: blocks of rows of a fixed size, so that sums do not depend on how many there are.

use crate::runtime::kernels::{Mat, MatMut, product};
use rayon::prelude::*;

/// Rows that one thread takes.
pub const BLOCK: usize = 96;

/// `out ← a·b`, `out` of `cols` columns.
pub fn multiply(out: &mut [f32], cols: usize, a: Mat, b: Mat) {
    out.par_chunks_mut((BLOCK * cols).max(1)).enumerate().for_each(|(i, out)| {
        let (first, rows) = (i * BLOCK, out.len() / cols);
        let part = match a.transposed {
            true => a.t().columns(first, rows).t(),
            false => a.block(first, rows),
        };
        product(MatMut::new(out, rows, cols), part, b, 1.0);
    });
}

/// `[rows, cols]` to `[cols, rows]`.
pub fn transposed(x: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    (0..rows * cols).map(|i| x[i % rows * cols + i / rows]).collect()
}
