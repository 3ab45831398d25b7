//! The rotation that makes slices of rows alike: balanced weighted PCA (subspace notes, §3.3).

use super::rows::Rows;
use crate::Result;
use crate::runtime::kernels::{Mat, MatMut, product};
use crate::train::sweep;
use faer::Side;

/// Rows that one task sums.
const BLOCK: usize = 1024;
/// Eigenvalues below this share of the largest count as this.
const FLOOR: f64 = 1e-9;

/// Weighted mean of the rows, `[cols]`.
///
/// # Errors
/// If the table cannot be read.
pub fn mean(rows: &Rows, weights: &[f32]) -> Result<Vec<f32>> {
    let mut sums = vec![0.0f64; rows.cols];
    let total: f64 = weights.iter().map(|&w| w as f64).sum();
    let block = |i: usize| {
        let span = rows.span(i, BLOCK);
        let mut sums = vec![0.0f64; rows.cols];
        for (x, &w) in rows.read(span.clone())?.chunks_exact(rows.cols).zip(&weights[span]) {
            sums.iter_mut().zip(x).for_each(|(s, &x)| *s += w as f64 * x as f64);
        }
        Ok(sums)
    };
    sweep(rows.count().div_ceil(BLOCK), block, |_, part| {
        sums.iter_mut().zip(part).for_each(|(s, p)| *s += p);
        Ok(())
    })?;
    Ok(sums.iter().map(|s| (s / total) as f32).collect())
}

/// `Σ w (x − mean)(x − mean)ᵀ / Σ w`, `[cols, cols]`.
///
/// # Errors
/// If the table cannot be read.
pub fn covariance(rows: &Rows, weights: &[f32], mean: Option<&[f32]>) -> Result<Vec<f64>> {
    let cols = rows.cols;
    let mut sums = vec![0.0f64; cols * cols];
    let block = |i: usize| {
        let span = rows.span(i, BLOCK);
        let mut x = rows.read(span.clone())?;
        for (x, &w) in x.chunks_exact_mut(cols).zip(&weights[span.clone()]) {
            let root = w.sqrt();
            match mean {
                Some(mean) => x.iter_mut().zip(mean).for_each(|(x, m)| *x = root * (*x - m)),
                None => x.iter_mut().for_each(|x| *x *= root),
            }
        }
        let mut part = vec![0.0f32; cols * cols];
        let x = Mat::new(&x, span.len(), cols);
        product(MatMut::new(&mut part, cols, cols), x.t(), x, 1.0);
        Ok(part)
    };
    sweep(rows.count().div_ceil(BLOCK), block, |_, part| {
        sums.iter_mut().zip(part).for_each(|(s, p)| *s += p as f64);
        Ok(())
    })?;
    let total: f64 = weights.iter().map(|&w| w as f64).sum();
    sums.iter_mut().for_each(|s| *s /= total);
    Ok(sums)
}

/// Eigenvalues, falling, and eigenvectors as rows, `[size, size]`, of the symmetric matrix. The largest component of each is
/// positive, of equals the first.
pub fn eigen(matrix: &[f64], size: usize) -> (Vec<f64>, Vec<f32>) {
    let of = faer::Mat::from_fn(size, size, |i, j| matrix[i * size + j]);
    let found = of.self_adjoint_eigen(Side::Lower).expect("a finite matrix has eigenvalues");
    let mut order: Vec<usize> = (0..size).collect();
    order.sort_by(|&a, &b| found.S()[b].total_cmp(&found.S()[a]));
    let mut vectors = Vec::with_capacity(size * size);
    for &j in &order {
        let most = (0..size).fold(0, |m, i| {
            if found.U()[(i, j)].abs() > found.U()[(m, j)].abs() * (1.0 + 1e-9) { i } else { m }
        });
        let sign = found.U()[(most, j)].signum();
        vectors.extend((0..size).map(|i| (sign * found.U()[(i, j)]) as f32));
    }
    (order.iter().map(|&j| found.S()[j]).collect(), vectors)
}

/// Which eigenvectors each slice gets: the next one goes to the slice with room whose product of eigenvalues is least so
/// far. `sizes` are the dimensions of the slices.
pub fn buckets(eigenvalues: &[f64], sizes: &[usize]) -> Vec<Vec<usize>> {
    let most = eigenvalues.iter().fold(0.0f64, |m, &e| m.max(e));
    let floor = (most * FLOOR).max(f64::MIN_POSITIVE);
    let least = eigenvalues.iter().fold(most, |m, &e| m.min(e)).max(floor);
    let mut buckets: Vec<(f64, Vec<usize>)> = vec![(0.0, Vec::new()); sizes.len()];
    for (i, &value) in eigenvalues.iter().enumerate() {
        let room = |b: &usize| buckets[*b].1.len() < sizes[*b];
        let open = (0..buckets.len()).filter(room);
        let next = open.min_by(|&a, &b| buckets[a].0.total_cmp(&buckets[b].0));
        let next = next.expect("as many places as eigenvalues");
        // Relative to the least, so that no logarithm is negative: else one slice would take all.
        buckets[next].0 += (value.max(floor) / least).ln();
        buckets[next].1.push(i);
    }
    buckets.into_iter().map(|(_, bucket)| bucket).collect()
}

/// The rotation of a covariance, one matrix for each `block` columns along the diagonal: `[cols / block, block, block]`,
/// for `y = x·R`, with slices of `width` columns.
pub fn balanced(covariance: &[f64], cols: usize, block: usize, width: usize) -> Vec<f32> {
    let mut values = Vec::with_capacity(cols * block);
    for first in (0..cols).step_by(block) {
        let part: Vec<f64> = (first..first + block)
            .flat_map(|r| &covariance[r * cols + first..r * cols + first + block])
            .copied()
            .collect();
        let (eigenvalues, vectors) = eigen(&part, block);
        let sizes: Vec<usize> = (0..block).step_by(width).map(|at| width.min(block - at)).collect();
        let order: Vec<usize> = buckets(&eigenvalues, &sizes).into_iter().flatten().collect();
        for row in 0..block {
            values.extend(order.iter().map(|&j| vectors[j * block + row]));
        }
    }
    values
}
