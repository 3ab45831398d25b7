//! The low-rank residual, and how errors are measured.

use super::products::{multiply, transposed};
use crate::model::LowRank;
use crate::runtime::kernels::{Mat, MatMut, add_product, product};
use crate::train::moments::{Moments, inverse_factor};
use crate::{Error, Result};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use rayon::prelude::*;
use std::borrow::Cow;
use std::ops::Range;

/// What the inputs of a layer say of its weights: an error `E` costs `tr(E·H·Eᵀ)`.
pub struct Metric {
    /// `[cols, cols]`: `H`, the damped second moments.
    pub h: Vec<f32>,
    /// `[cols, cols]`: upper triangular `U`, `UᵀU = H⁻¹`, columns in the order of `order`.
    pub factor: Vec<f32>,
    /// Columns by falling `H_jj`.
    pub order: Vec<usize>,
    /// `[outputs, cols]`: what weights have to gain so that outputs become what they should be, `E[r·xᵀ]·H⁻¹` for what
    /// outputs lack, `r`. Nothing where that was not watched.
    pub aim: Vec<f32>,
}

impl Metric {
    /// # Errors
    /// Where squares of the inputs are beyond f32.
    pub fn new(inputs: Moments, damp: f64) -> Result<Metric> {
        let (n, outputs) = (inputs.inputs, inputs.outputs);
        let tokens = inputs.tokens.max(1) as f32;
        let lacking: Vec<f32> = inputs.xr.iter().map(|v| v / tokens).collect();
        let h = inputs.damped(damp);
        let mut order: Vec<usize> = (0..n).collect();
        order.sort_by(|&a, &b| h[b * n + b].total_cmp(&h[a * n + a]).then(a.cmp(&b)));
        // With a positive ridge they are positive definite, as long as they are numbers.
        let Some(factor) = inverse_factor(&h, &order) else {
            return Err(Error::Mismatch {
                found: format!("inputs of {n} numbers whose squares are beyond f32"),
                expected: "layers that compute moderate numbers of the text".into(),
                advice: "check the checkpoint; `--calib none` packs it by its weights alone",
            });
        };
        let mut metric = Metric { h, factor, order, aim: Vec::new() };
        metric.aim = metric.solve(&transposed(&lacking, n, outputs), outputs);
        Ok(metric)
    }

    /// `R·H⁻¹` of `R`, `[rows, cols]`.
    fn solve(&self, r: &[f32], rows: usize) -> Vec<f32> {
        let n = self.order.len();
        let ordered: Vec<f32> =
            r.chunks_exact(n.max(1)).flat_map(|row| self.order.iter().map(|&c| row[c])).collect();
        let factor = Mat::new(&self.factor, n, n);
        let mut half = vec![0.0; rows * n];
        multiply(&mut half, n, Mat::new(&ordered, rows, n), factor.t());
        let mut whole = ordered;
        multiply(&mut whole, n, Mat::new(&half, rows, n), factor);
        let mut solved = half;
        for (out, row) in solved.chunks_exact_mut(n.max(1)).zip(whole.chunks_exact(n.max(1))) {
            self.order.iter().zip(row).for_each(|(&c, x)| out[c] = *x);
        }
        solved
    }

    /// `H_jj`, `[cols]`.
    pub fn diagonal(&self, cols: usize) -> Vec<f32> {
        (0..cols).map(|j| self.h[j * cols + j]).collect()
    }
}

/// `w − U·V`
pub fn minus<'a>(w: &'a [f32], low_rank: Option<&LowRank>, cols: usize) -> Cow<'a, [f32]> {
    let Some(low) = low_rank else { return Cow::Borrowed(w) };
    let mut rest = w.to_vec();
    let rows = w.len() / cols;
    let (u, v) = (Mat::new(&low.u, rows, low.rank), Mat::new(&low.v, low.rank, cols));
    add_product(MatMut::new(&mut rest, rows, cols), u, v, -1.0);
    Cow::Owned(rest)
}

/// `w − ŵ` in some rows; `add_row` adds a row of ŵ.
pub fn difference(
    w: &[f32],
    cols: usize,
    rows: Range<usize>,
    add_row: impl Fn(usize, &mut [f32]),
) -> Vec<f32> {
    let mut difference = vec![0.0; rows.len() * cols];
    for (row, out) in rows.zip(difference.chunks_exact_mut(cols.max(1))) {
        add_row(row, out);
        out.iter_mut().zip(&w[row * cols..]).for_each(|(q, w)| *q = w - *q);
    }
    difference
}

/// The best `U·V` of rank `rank` for `e`, `[rows, cols]`, in the metric `H` (the identity without one).
///
/// With `SSᵀ = H` the solution is the truncated SVD of `E·S`, undone by `S⁻¹` (SVD-LLM; BiPFT notes
/// §5.7). Its left vectors are those of `E·H·Eᵀ`, and `V = UᵀE`, so neither `S` nor its inverse is
/// needed: subspace iteration on `E·H·Eᵀ`, with more columns than asked for, finds them.
pub fn low_rank(
    e: &[f32],
    (rows, cols): (usize, usize),
    rank: usize,
    metric: Option<&Metric>,
) -> LowRank {
    let width = (rank + 16).min(rows).min(cols);
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let mut basis: Vec<f32> = (0..rows * width)
        .map(|_| (rng.next_u32() >> 8) as f32 / (1u32 << 23) as f32 - 1.0)
        .collect();
    orthonormalise(&mut basis, rows, width);
    let e_mat = Mat::new(e, rows, cols);
    let mut right = vec![0.0; cols * width];
    for _ in 0..ITERATIONS {
        let q = Mat::new(&basis, rows, width);
        product(MatMut::new(&mut right, cols, width), e_mat.t(), q, 1.0);
        if let Some(metric) = metric {
            let mut weighted = vec![0.0; cols * width];
            let h = Mat::new(&metric.h, cols, cols);
            product(MatMut::new(&mut weighted, cols, width), h, Mat::new(&right, cols, width), 1.0);
            right = weighted;
        }
        let out = MatMut::new(&mut basis, rows, width);
        product(out, e_mat, Mat::new(&right, cols, width), 1.0);
        // In order of falling singular value, so that the first `rank` columns are the ones to keep.
        orthonormalise(&mut basis, rows, width);
    }
    let u: Vec<f32> = basis.chunks_exact(width).flat_map(|row| &row[..rank]).copied().collect();
    let mut v = vec![0.0; rank * cols];
    let u_mat = Mat::new(&u, rows, rank);
    product(MatMut::new(&mut v, rank, cols), u_mat.t(), e_mat, 1.0);
    LowRank::new(rank, u, v)
}

/// Orthogonal iteration converges with the ratio of singular values squared; 12 rounds with 16 columns
/// to spare are within 0.1 % of the optimum on the matrices of `tests.rs`.
const ITERATIONS: usize = 12;

/// The columns of `q`, `[rows, width]`, replaced by the left singular vectors of `q`, strongest first.
fn orthonormalise(q: &mut [f32], rows: usize, width: usize) {
    let matrix = faer::Mat::from_fn(rows, width, |i, j| q[i * width + j] as f64);
    let svd = matrix.thin_svd().expect("a finite matrix has an SVD");
    let u = svd.U();
    for (i, value) in q.iter_mut().enumerate() {
        *value = u[(i / width, i % width)] as f32;
    }
}

/// `‖(W − Ŵ)S‖² / ‖W·S‖²`, with `SSᵀ = H`: of the layer's output, or of the weights without a metric.
/// `add_row` adds a row of Ŵ.
pub fn relative_error(
    w: &[f32],
    (rows, cols): (usize, usize),
    add_row: impl Fn(usize, &mut [f32]) + Sync,
    metric: Option<&Metric>,
) -> f64 {
    /// A table is measured in blocks: it may have a quarter of a million rows.
    const ROWS: usize = 512;
    let power = |x: &[f32]| -> f64 {
        let Some(metric) = metric else { return x.iter().map(|&x| (x as f64).powi(2)).sum() };
        let rows = x.len() / cols;
        let mut weighted = vec![0.0; x.len()];
        let h = Mat::new(&metric.h, cols, cols);
        product(MatMut::new(&mut weighted, rows, cols), Mat::new(x, rows, cols), h, 1.0);
        weighted.iter().zip(x).map(|(a, b)| (a * b) as f64).sum()
    };
    let starts: Vec<usize> = (0..if cols > 0 { rows } else { 0 }).step_by(ROWS).collect();
    let blocks: Vec<(f64, f64)> = starts
        .into_par_iter()
        .map(|start| {
            let block = start..(start + ROWS).min(rows);
            let values = &w[block.start * cols..block.end * cols];
            (power(&difference(w, cols, block, &add_row)), power(values))
        })
        .collect();
    let (error, total) = blocks.iter().fold((0.0, 0.0), |(e, t), b| (e + b.0, t + b.1));
    if total > 0.0 { error / total } else { 0.0 }
}
