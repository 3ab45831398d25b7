//! Two factors of low rank, by what rows weigh (subspace notes, §3.4).

use super::rotation::{covariance, eigen};
use super::rows::Rows;
use super::subspace::exact_rows;
use crate::Result;
use crate::checkpoint::Tensor;
use crate::model::Factored;
use crate::runtime::kernels::{Mat, MatMut, product};
use crate::train::sweep;

const BLOCK: usize = 2048;

/// The best factors of `diag(√w)·E`: `V` has the strongest eigenvectors of `EᵀWE`, and `U = E·Vᵀ`.
///
/// # Errors
/// If the tensor is of no floating type.
pub fn fit(
    (tensor, name): (&Tensor, &str),
    weights: &[f32],
    exact: &[u32],
    rank: usize,
) -> Result<Factored> {
    let rows = Rows::all(tensor);
    let cols = rows.cols;
    let (_, vectors) = eigen(&covariance(&rows, weights, None)?, cols);
    let v = vectors[..rank * cols].to_vec();
    let mut u = Vec::with_capacity(rows.count() * rank);
    let block = |i: usize| {
        let span = rows.span(i, BLOCK);
        let x = rows.read(span.clone())?;
        let mut part = vec![0.0; span.len() * rank];
        let out = MatMut::new(&mut part, span.len(), rank);
        product(out, Mat::new(&x, span.len(), cols), Mat::new(&v, rank, cols).t(), 1.0);
        Ok(part)
    };
    sweep(rows.count().div_ceil(BLOCK), block, |_, part| {
        u.extend(part);
        Ok(())
    })?;
    Ok(Factored::new(name.into(), (rows.count(), cols), u, v, exact_rows(tensor, exact)?))
}
