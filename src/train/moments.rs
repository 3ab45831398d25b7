//! Second moments of layer inputs, gathered batch by batch, and what is solved with them.

use crate::runtime::kernels::{Mat, MatMut, add_product};
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt::factor::{cholesky_in_place, cholesky_in_place_scratch};
use faer::linalg::triangular_inverse::invert_lower_triangular;
use faer::linalg::triangular_solve::{
    solve_lower_triangular_in_place, solve_upper_triangular_in_place,
};
use faer::{Mat as Matrix, Par};
use rayon::prelude::*;

/// `Σ x·xᵀ`, `Σ x` and, for least squares, `Σ x·rᵀ` and `Σ r` over tokens.
///
/// Blocks of fixed size go to threads, and batches come in order, so sums do not depend on how many
/// threads there are.
#[derive(Debug, Clone)]
pub struct Moments {
    /// Width of `x`.
    pub inputs: usize,
    /// Width of `r`; 0 when only the inputs are watched.
    pub outputs: usize,
    pub tokens: usize,
    /// `[inputs, inputs]`
    pub xx: Vec<f32>,
    /// `[inputs, outputs]`
    pub xr: Vec<f32>,
    pub x: Vec<f64>,
    pub r: Vec<f64>,
}

/// Rows of a product that one thread computes.
const BLOCK: usize = 64;

impl Moments {
    pub fn new(inputs: usize, outputs: usize) -> Moments {
        Moments {
            inputs,
            outputs,
            tokens: 0,
            xx: vec![0.0; inputs * inputs],
            xr: vec![0.0; inputs * outputs],
            x: vec![0.0; inputs],
            r: vec![0.0; outputs],
        }
    }

    /// Adds a batch: `x` is `[tokens, inputs]`, `r` is `[tokens, outputs]`.
    pub fn add(&mut self, x: &[f32], r: &[f32]) {
        let (inputs, outputs) = (self.inputs, self.outputs);
        if inputs == 0 {
            return;
        }
        let tokens = x.len() / inputs;
        self.tokens += tokens;
        let (x, r) = (Mat::new(x, tokens, inputs), Mat::new(r, tokens, outputs));
        let accumulate = |sums: &mut [f32], width: usize, with: Mat| {
            sums.par_chunks_mut(BLOCK * width).enumerate().for_each(|(i, block)| {
                let rows = block.len() / width;
                let part = x.columns(i * BLOCK, rows).t();
                add_product(MatMut::new(block, rows, width), part, with, 1.0);
            });
        };
        accumulate(&mut self.xx, inputs, x);
        sum_rows(x.data, &mut self.x);
        if outputs > 0 {
            accumulate(&mut self.xr, outputs, r);
            sum_rows(r.data, &mut self.r);
        }
    }

    /// `H = E[x·xᵀ]` plus `damp` times the mean of its diagonal on the diagonal, `[inputs, inputs]`;
    /// inputs that were never live get that and nothing else.
    pub fn damped(self, damp: f64) -> Vec<f32> {
        let (n, tokens) = (self.inputs, self.tokens.max(1) as f64);
        let mut h = self.xx;
        h.iter_mut().for_each(|v| *v = (*v as f64 / tokens) as f32);
        let mean = (0..n).map(|i| h[i * n + i] as f64).sum::<f64>() / n.max(1) as f64;
        let ridge = (damp * mean).max(1e-12) as f32;
        (0..n).for_each(|i| h[i * n + i] += ridge);
        h
    }

    /// The change of a linear layer, weight `[outputs, inputs]` and bias `[outputs]`, that best removes
    /// the residual `r`: ridge regression of `r` on `x`, with `damp` relative to the mean variance.
    ///
    /// Returns `None` where the inputs do not vary.
    pub fn least_squares(&self, damp: f64) -> Option<(Vec<f32>, Vec<f32>)> {
        let (n, m, tokens) = (self.inputs, self.outputs, self.tokens as f64);
        if n == 0 || tokens < 2.0 {
            return None;
        }
        let mean = |sums: &[f64], i: usize| sums[i] / tokens;
        let covariance = |i: usize, j: usize| {
            self.xx[i * n + j] as f64 / tokens - mean(&self.x, i) * mean(&self.x, j)
        };
        let ridge = damp * (0..n).map(|i| covariance(i, i)).sum::<f64>() / n as f64;
        if ridge <= 0.0 {
            return None;
        }
        let lhs = Matrix::from_fn(n, n, |i, j| covariance(i, j) + if i == j { ridge } else { 0.0 });
        let factor = factor(lhs)?;
        let mut solution = Matrix::from_fn(n, m, |i, o| {
            self.xr[i * m + o] as f64 / tokens - mean(&self.x, i) * mean(&self.r, o)
        });
        solve_lower_triangular_in_place(factor.as_ref(), solution.as_mut(), Par::Seq);
        solve_upper_triangular_in_place(factor.transpose(), solution.as_mut(), Par::Seq);
        let weight = (0..m).flat_map(|o| (0..n).map(move |i| (o, i)));
        let weight = weight.map(|(o, i)| solution[(i, o)] as f32).collect();
        let bias = (0..m)
            .map(|o| {
                let moved: f64 = (0..n).map(|i| solution[(i, o)] * mean(&self.x, i)).sum();
                (mean(&self.r, o) - moved) as f32
            })
            .collect();
        Some((weight, bias))
    }
}

/// The upper triangular `U`, `[n, n]`, with `UᵀU = H⁻¹`, rows and columns of `h` taken in the order of
/// `order`; `None` if `h` is not positive definite.
///
/// With the order reversed, `H = L·Lᵀ` gives `U = L⁻¹` read backwards: one factorisation, and no inverse
/// of `H` itself.
pub fn inverse_factor(h: &[f32], order: &[usize]) -> Option<Vec<f32>> {
    let n = order.len();
    let from = |i: usize| order[n - 1 - i];
    let lower = factor(Matrix::from_fn(n, n, |i, j| h[from(i) * n + from(j)] as f64))?;
    let mut inverse = Matrix::zeros(n, n);
    invert_lower_triangular(inverse.as_mut(), lower.as_ref(), Par::Seq);
    let mut upper = vec![0.0; n * n];
    for i in 0..n {
        for j in i..n {
            upper[i * n + j] = inverse[(n - 1 - i, n - 1 - j)] as f32;
        }
    }
    Some(upper)
}

/// The lower triangular `L` with `L·Lᵀ = matrix`, in the memory of `matrix` (what stands above the
/// diagonal is not part of it).
fn factor(mut matrix: Matrix<f64>) -> Option<Matrix<f64>> {
    let scratch = cholesky_in_place_scratch::<f64>(matrix.nrows(), Par::Seq, Default::default());
    let mut memory = MemBuffer::new(scratch);
    let stack = MemStack::new(&mut memory);
    cholesky_in_place(matrix.as_mut(), Default::default(), Par::Seq, stack, Default::default())
        .ok()?;
    Some(matrix)
}

fn sum_rows(x: &[f32], sums: &mut [f64]) {
    for row in x.chunks_exact(sums.len()) {
        sums.iter_mut().zip(row).for_each(|(s, &x)| *s += x as f64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn least_squares_finds_the_map_that_made_the_residual() {
        // r = 2·x0 − x1 + 3, x on a small grid.
        let grid: Vec<(f32, f32)> = (0..25).map(|i| ((i % 5) as f32, (i / 5) as f32)).collect();
        let x: Vec<f32> = grid.iter().flat_map(|&(a, b)| [a, b]).collect();
        let r: Vec<f32> = grid.iter().map(|&(a, b)| 2.0 * a - b + 3.0).collect();
        let mut moments = Moments::new(2, 1);
        moments.add(&x[..20], &r[..10]);
        moments.add(&x[20..], &r[10..]);
        let (weight, bias) = moments.least_squares(1e-9).expect("a regular system");
        for (found, expected) in weight.iter().chain(&bias).zip([2.0, -1.0, 3.0]) {
            assert!((found - expected).abs() < 1e-4, "{weight:?} {bias:?}");
        }
    }

    #[test]
    fn the_inverse_factor_is_one() {
        let h: Vec<f32> = vec![2.0, 0.5, 0.1, 0.5, 3.0, 0.7, 0.1, 0.7, 1.0];
        let order = [2, 0, 1];
        let u = inverse_factor(&h, &order).expect("positive definite");
        assert!(u[3] == 0.0 && u[6] == 0.0 && u[7] == 0.0, "upper triangular: {u:?}");
        for i in 0..3 {
            for j in 0..3 {
                // (UᵀU)·H = 1
                let value: f64 = (0..3)
                    .map(|k| {
                        let inverse: f64 =
                            (0..3).map(|r| (u[r * 3 + i] * u[r * 3 + k]) as f64).sum();
                        inverse * h[order[k] * 3 + order[j]] as f64
                    })
                    .sum();
                assert!((value - if i == j { 1.0 } else { 0.0 }).abs() < 1e-6);
            }
        }
    }
}
