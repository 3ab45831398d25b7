//! Two binary factors between three diagonals, fitted to a matrix.

use super::products::{BLOCK, multiply, transposed};
use super::refine::Factors;
use super::residual::Metric;
use crate::model::DoubleBinary;
use crate::runtime::kernels::{Mat, MatMut, add_product};
use faer::linalg::solvers::Llt;
use faer::linalg::triangular_solve::{
    solve_lower_triangular_in_place, solve_upper_triangular_in_place,
};
use faer::{Par, Side};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use rayon::prelude::*;

/// How long is fitted.
#[derive(Debug, Clone, Copy)]
pub struct Rounds {
    /// Rounds over both factors. Half of them take half the time and leave 5 to 8 % more error, twice as many 3 to 6 % less
    /// (normal numbers, 384 x 384, 1 to 2 bits).
    pub outer: usize,
    /// Rounds in the whole metric behind them.
    pub refine: usize,
}

impl Rounds {
    /// What is behind the first rounds makes up for half of them.
    fn usual(metric: bool) -> Rounds {
        Rounds { outer: if metric { 20 } else { 40 }, refine: 2 }
    }
}

/// Rounds of ADMM on one factor while the other stands still.
const INNER: usize = 3;
/// Added to the diagonal of a factor's Gram matrix, whose diagonal is 1.
const RIDGE: f32 = 0.03;
/// Rounds of the power method behind a projection.
const POWER: usize = 3;

/// Inner dimension with which a `rows x cols` matrix takes `rate` bits a weight, scales left aside: a multiple of
/// 32, so that no word of signs is cut.
pub fn rank(rate: f64, rows: usize, cols: usize) -> usize {
    let exact = rate * (rows * cols) as f64 / (rows + cols).max(1) as f64;
    ((exact / 32.0).round() as usize).max(1) * 32
}

/// `W ≈ diag(a)·U·diag(m)·V·diag(b)` with U and V of signs, `[rows, rank]` and `[rank, cols]` (Double Binary
/// Factorization, arXiv 2505.11076; BiPFT notes, §5.6): `Σ_j H_jj·‖column j of the error‖²` is made small by turns,
/// and the best turn counts; then `tr(E·H·Eᵀ)`, with all of the metric's `H`.
///
/// - `w`: `[rows, cols]`
///
/// # Panics
/// If the lengths do not fit the shape.
pub fn fit(
    name: String,
    w: &[f32],
    (rows, cols): (usize, usize),
    rank: usize,
    metric: Option<&Metric>,
) -> DoubleBinary {
    fit_in(name, w, (rows, cols), rank, metric, &Rounds::usual(metric.is_some()))
}

/// As [`fit`], in so many rounds.
pub fn fit_in(
    name: String,
    w: &[f32],
    (rows, cols): (usize, usize),
    rank: usize,
    metric: Option<&Metric>,
    rounds: &Rounds,
) -> DoubleBinary {
    assert_eq!(w.len(), rows * cols, "a {rows}x{cols} matrix");
    if w.is_empty() {
        let signs = (&vec![1.0; rows * rank][..], &vec![1.0; rank * cols][..]);
        let scales = [rows, rank, cols].map(|n| vec![0.0; n]);
        return DoubleBinary::new(name, (rows, cols), rank, signs, scales);
    }
    let roots: Vec<f32> = match metric {
        Some(metric) => metric.diagonal(cols).iter().map(|d| d.sqrt()).collect(),
        None => vec![1.0; cols],
    };
    let weighted = w.chunks_exact(cols);
    let weighted: Vec<f32> =
        weighted.flat_map(|row| row.iter().zip(&roots).map(|(w, root)| w * root)).collect();
    let turned = transposed(&weighted, rows, cols);
    // The eigenvalues that start it are those of the shorter side.
    let [u, v] = match rows <= cols {
        true => factors(&weighted, &turned, (rows, cols), rank, rounds.outer),
        false => {
            let [v, u] = factors(&turned, &weighted, (cols, rows), rank, rounds.outer);
            [u, v]
        }
    };
    let sign = |x: &f32| if *x >= 0.0 { 1.0 } else { -1.0 };
    let mut found = Factors {
        rows,
        rank,
        cols,
        u: u.values.iter().map(sign).collect(),
        v: transposed(&v.values, cols, rank).iter().map(sign).collect(),
        a: u.outer,
        m: u.inner.iter().zip(&v.inner).map(|(u, v)| u * v).collect(),
        b: v.outer.iter().zip(&roots).map(|(b, root)| b / root).collect(),
    };
    if let Some(metric) = metric {
        found.refine(w, metric, rounds.refine);
    }
    let Factors { u, v, mut a, mut m, mut b, .. } = found;
    // Of one size, none leaves the range of f16, and one rate of training suits all.
    let means = [&a, &m, &b].map(|s| s.iter().sum::<f32>() / s.len().max(1) as f32);
    let size = means.iter().product::<f32>().cbrt();
    if size > 0.0 {
        for (scales, mean) in [&mut a, &mut m, &mut b].into_iter().zip(means) {
            scales.iter_mut().for_each(|s| *s *= size / mean);
        }
    }
    DoubleBinary::new(name, (rows, cols), rank, (&u, &v), [a, m, b])
}

/// One factor, `[rows, rank]`: signs times `outer · innerᵀ` once it was projected.
#[derive(Debug, Clone)]
struct Factor {
    values: Vec<f32>,
    /// What the projections so far have taken away: ADMM's scaled dual variable.
    dual: Vec<f32>,
    /// `[rows]`
    outer: Vec<f32>,
    /// `[rank]`
    inner: Vec<f32>,
}

/// `t ≈ left · rightᵀ`; `t` is `[rows, cols]` with no more rows than columns, `turned` its transpose.
fn factors(
    t: &[f32],
    turned: &[f32],
    (rows, cols): (usize, usize),
    rank: usize,
    rounds: usize,
) -> [Factor; 2] {
    let [mut left, mut right] = start(t, turned, rows, cols, rank);
    let (t, turned) = (Mat::new(t, rows, cols), Mat::new(turned, cols, rows));
    let mut best: Option<(f64, [Factor; 2])> = None;
    for round in 0..rounds {
        // From a least-squares fit to one that is bound to its projection.
        let bond = (round as f32 / (rounds - 3) as f32).min(1.0).powi(3);
        improve(&mut left, &mut right, t, rank, bond);
        improve(&mut right, &mut left, turned, rank, bond);
        let error = distance(t, &left.values, &right.values, rank);
        if best.as_ref().is_none_or(|(least, _)| error < *least) {
            best = Some((error, [left.clone(), right.clone()]));
        }
    }
    best.expect("there is at least one round").1
}

/// The square roots of the truncated SVD, turned by a random rotation of the inner dimension: singular vectors
/// themselves have a few large elements, and lose most as signs.
fn start(t: &[f32], turned: &[f32], rows: usize, cols: usize, rank: usize) -> [Factor; 2] {
    let mut gram = vec![0.0; rows * rows];
    let (t, turned) = (Mat::new(t, rows, cols), Mat::new(turned, cols, rows));
    multiply(&mut gram, rows, t, turned);
    let gram = faer::Mat::from_fn(rows, rows, |i, j| gram[i * rows + j] as f64);
    let eigen = gram.self_adjoint_eigen(Side::Lower).expect("a finite matrix has eigenvalues");
    let kept = rank.min(rows);
    // Eigenvalues rise.
    let place = |j: usize| rows - 1 - j;
    let value = |j: usize| eigen.S()[place(j)].max(0.0).sqrt();
    let largest = value(0);
    let vector = |i: usize, j: usize| eigen.U()[(i, place(j))];
    let (mut p, mut q) = (Vec::with_capacity(rows * kept), Vec::with_capacity(rows * kept));
    for (i, j) in (0..rows).flat_map(|i| (0..kept).map(move |j| (i, j))) {
        let root = value(j).sqrt();
        p.push((vector(i, j) * root) as f32);
        // Behind the rank there are no right vectors.
        let real = value(j) > 1e-6 * largest;
        q.push(if real { (vector(i, j) / root) as f32 } else { 0.0 });
    }
    let rotation = rotation(kept, rank);
    let rotation = Mat::new(&rotation, kept, rank);
    let mut right = vec![0.0; cols * kept];
    multiply(&mut right, kept, turned, Mat::new(&q, rows, kept));
    let factor = |values: &[f32], rows: usize| {
        let mut turned = vec![0.0; rows * rank];
        multiply(&mut turned, rank, Mat::new(values, rows, kept), rotation);
        Factor {
            values: turned,
            dual: vec![0.0; rows * rank],
            outer: vec![0.0; rows],
            inner: vec![0.0; rank],
        }
    };
    [factor(&p, rows), factor(&right, cols)]
}

/// `[rows, cols]` with orthonormal rows, always the same ones.
fn rotation(rows: usize, cols: usize) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    // Four uniform numbers: near enough to normal ones for directions to be even.
    let mut number = || (0..4).map(|_| rng.next_u32() as f64 / (1u64 << 31) as f64 - 1.0).sum();
    let mut columns = faer::Mat::<f64>::zeros(cols, rows);
    (0..rows).for_each(|j| (0..cols).for_each(|i| columns[(i, j)] = number()));
    let q = columns.qr().compute_thin_Q();
    (0..rows * cols).map(|i| q[(i % cols, i / cols)] as f32).collect()
}

/// One factor made anew while the other stands still: `min ‖T − X·Nᵀ‖²` over X of signs and scales, by rounds of
/// ADMM. `n` is `still` with its columns brought to length 1; the product of both stays what it was.
fn improve(x: &mut Factor, still: &mut Factor, t: Mat, rank: usize, bond: f32) {
    let mut lengths = vec![0.0f64; rank];
    for row in still.values.chunks_exact(rank) {
        lengths.iter_mut().zip(row).for_each(|(l, v)| *l += (*v as f64).powi(2));
    }
    let lengths: Vec<f32> = lengths.iter().map(|l| l.sqrt() as f32).collect();
    let inverse: Vec<f32> =
        lengths.iter().map(|&l| if l > 0.0 { l.recip() } else { 0.0 }).collect();
    still.rescale(&inverse);
    x.rescale(&lengths);

    let n = Mat::new(&still.values, t.cols, rank);
    let mut gram = vec![0.0; rank * rank];
    multiply(&mut gram, rank, n.t(), n);
    let mut target = vec![0.0; x.values.len()];
    multiply(&mut target, rank, t, n);
    let solver = |bond: f32| -> Llt<f32> {
        let at = |i: usize, j: usize| gram[i * rank + j] + if i == j { RIDGE + bond } else { 0.0 };
        let matrix = faer::Mat::from_fn(rank, rank, at);
        matrix.llt(Side::Lower).expect("a Gram matrix with a ridge is positive definite")
    };
    let (loose, tight) = (solver(bond), solver(1.0));
    for round in 0..INNER {
        let (solver, bond) = if round == 0 { (&loose, bond) } else { (&tight, 1.0) };
        let mut free = target.clone();
        let drawn = x.values.iter().zip(&x.dual);
        free.iter_mut().zip(drawn).for_each(|(f, (z, dual))| *f += bond * (z - dual));
        solve(solver, &mut free, rank);
        free.iter_mut().zip(&x.dual).for_each(|(f, dual)| *f += dual);
        x.project(&free);
        let pairs = free.iter().zip(&x.values);
        x.dual.iter_mut().zip(pairs).for_each(|(dual, (free, z))| *dual = free - z);
    }
}

impl Factor {
    fn rescale(&mut self, columns: &[f32]) {
        for values in [&mut self.values, &mut self.dual] {
            for row in values.chunks_exact_mut(columns.len()) {
                row.iter_mut().zip(columns).for_each(|(v, c)| *v *= c);
            }
        }
        self.inner.iter_mut().zip(columns).for_each(|(v, c)| *v *= c);
    }

    /// Becomes the signs of `x`, `[rows, rank]`, times the best `outer · innerᵀ` for `|x|`. The sign of 0 is +1.
    fn project(&mut self, x: &[f32]) {
        let rank = self.inner.len();
        let rows = || x.par_chunks(BLOCK * rank);
        let square = |v: &[f32]| v.iter().map(|v| (v * v) as f64).sum::<f64>().max(1e-30) as f32;
        self.outer = vec![1.0; self.outer.len()];
        for _ in 0..POWER {
            let parts: Vec<Vec<f32>> = rows()
                .zip(self.outer.par_chunks(BLOCK))
                .map(|(x, outer)| {
                    let mut sums = vec![0.0; rank];
                    for (row, outer) in x.chunks_exact(rank).zip(outer) {
                        sums.iter_mut().zip(row).for_each(|(s, x)| *s += outer * x.abs());
                    }
                    sums
                })
                .collect();
            self.inner.fill(0.0);
            for part in parts {
                self.inner.iter_mut().zip(part).for_each(|(i, p)| *i += p);
            }
            let scale = square(&self.outer).recip();
            self.inner.iter_mut().for_each(|i| *i *= scale);
            let scale = square(&self.inner).recip();
            let inner = &self.inner;
            rows().zip(self.outer.par_chunks_mut(BLOCK)).for_each(|(x, outer)| {
                for (row, outer) in x.chunks_exact(rank).zip(outer) {
                    *outer = scale * dot(row, inner);
                }
            });
        }
        let values = self.values.par_chunks_mut(BLOCK * rank).zip(rows());
        values.zip(self.outer.par_chunks(BLOCK)).for_each(|((values, x), outer)| {
            let rows = values.chunks_exact_mut(rank).zip(x.chunks_exact(rank));
            for ((values, x), outer) in rows.zip(outer) {
                for ((v, x), inner) in values.iter_mut().zip(x).zip(&self.inner) {
                    *v = if *x >= 0.0 { outer * inner } else { -outer * inner };
                }
            }
        });
    }
}

/// `Σ |x|·y`, in lanes of their own.
fn dot(x: &[f32], y: &[f32]) -> f32 {
    let mut lanes = [0.0f32; 16];
    let (xs, ys) = (x.chunks_exact(16), y.chunks_exact(16));
    let rest: f32 = xs.remainder().iter().zip(ys.remainder()).map(|(x, y)| x.abs() * y).sum();
    for (x, y) in xs.zip(ys) {
        for (lane, (x, y)) in lanes.iter_mut().zip(x.iter().zip(y)) {
            *lane += x.abs() * y;
        }
    }
    lanes.iter().sum::<f32>() + rest
}

/// The rows of `x`, `[rows, rank]`, times the inverse.
fn solve(solver: &Llt<f32>, x: &mut [f32], rank: usize) {
    x.par_chunks_mut(BLOCK * rank).for_each(|block| {
        let rows = block.len() / rank;
        // A row is a right-hand side, and with that a column.
        let mut columns = faer::MatMut::from_column_major_slice_mut(block, rank, rows);
        solve_lower_triangular_in_place(solver.L(), columns.as_mut(), Par::Seq);
        solve_upper_triangular_in_place(solver.L().transpose(), columns, Par::Seq);
    });
}

/// `‖T − left · rightᵀ‖²`
fn distance(t: Mat, left: &[f32], right: &[f32], rank: usize) -> f64 {
    let parts: Vec<f64> = left
        .par_chunks(BLOCK * rank)
        .enumerate()
        .map(|(i, left)| {
            let rows = left.len() / rank;
            let first = i * BLOCK * t.cols;
            let mut rest = t.data[first..first + rows * t.cols].to_vec();
            let right = Mat::new(right, t.cols, rank).t();
            add_product(
                MatMut::new(&mut rest, rows, t.cols),
                Mat::new(left, rows, rank),
                right,
                -1.0,
            );
            rest.iter().map(|x| (x * x) as f64).sum()
        })
        .collect();
    parts.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::testing::gaussian;

    fn error(w: &[f32], cols: usize, double: &DoubleBinary, d: &[f32]) -> f64 {
        let square = |(i, x): (usize, f32)| (x as f64).powi(2) * d[i % cols] as f64;
        let power: f64 = w.iter().copied().enumerate().map(square).sum();
        let rest = w.iter().zip(double.to_dense()).map(|(a, b)| a - b);
        rest.enumerate().map(square).sum::<f64>() / power
    }

    /// BiPFT notes, §5.3, within 4 %: they are of more rounds.
    #[test]
    fn gaussian_matrices_lose_what_was_published() {
        let w = super::super::tests::gaussian(384 * 384);
        for (rate, expected) in [(1.0, 0.335), (1.5, 0.203), (2.0, 0.131)] {
            let rank = rank(rate, 384, 384);
            assert_eq!(rank as f64, 192.0 * rate);
            let double = fit("w".into(), &w, (384, 384), rank, None);
            let found = error(&w, 384, &double, &[1.0; 384]);
            assert!((found / expected - 1.0).abs() < 0.05, "{rate} bits: {found}, {expected}");
        }
    }

    #[test]
    fn a_matrix_of_that_form_is_found_again() {
        // One sign vector a side: the scales of rows and columns are all there is to find.
        let (rows, cols) = (48, 64);
        let (a, b) = (gaussian(rows, 1), gaussian(cols, 2));
        let w: Vec<f32> = (0..rows * cols).map(|i| a[i / cols] * b[i % cols]).collect();
        let double = fit("w".into(), &w, (rows, cols), 32, None);
        let found = error(&w, cols, &double, &[1.0; 64]);
        assert!(found < 1e-3, "{found}");
    }

    #[test]
    fn more_bits_never_hurt_and_tall_matrices_are_no_worse_than_wide_ones() {
        let (w, ones) = (gaussian(64 * 96, 3), vec![1.0; 96]);
        let of = |rate: f64| {
            error(&w, 96, &fit("w".into(), &w, (64, 96), rank(rate, 64, 96), None), &ones)
        };
        let errors = [0.8, 1.6, 2.4, 3.3].map(of);
        assert!(errors.windows(2).all(|e| e[1] < e[0]), "{errors:?}");
        let tall = transposed(&w, 64, 96);
        let tall = error(&tall, 64, &fit("w".into(), &tall, (96, 64), 64, None), &ones);
        assert!((tall / errors[1] - 1.0).abs() < 0.01, "{tall} {errors:?}");
    }

    #[test]
    fn columns_with_strong_inputs_are_kept_best() {
        let w = gaussian(64 * 64, 4);
        let d: Vec<f32> = (0..64).map(|j| if j % 4 == 0 { 50.0 } else { 0.1 }).collect();
        let h = (0..64 * 64).map(|i| if i % 65 == 0 { d[i / 65] } else { 0.0 }).collect();
        let order = (0..64).collect();
        let metric = Metric { h, factor: Vec::new(), order, aim: Vec::new() };
        let [plain, weighted] = [None, Some(&metric)].map(|m| fit("w".into(), &w, (64, 64), 64, m));
        let [before, after] = [plain, weighted].map(|double| error(&w, 64, &double, &d));
        assert!(after < 0.5 * before, "{after} {before}");
    }

    #[test]
    fn nothing_at_all_is_fitted_by_nothing() {
        for (rows, cols) in [(4, 0), (0, 4), (3, 5)] {
            let rank = rank(1.5, rows, cols);
            assert_eq!(rank, 32);
            let double = fit("w".into(), &vec![0.0; rows * cols], (rows, cols), rank, None);
            assert_eq!(double.to_dense(), vec![0.0; rows * cols]);
        }
    }

    #[test]
    fn threads_change_no_bit() {
        let w = gaussian(130 * 200, 5);
        let run = |threads| {
            let pool =
                rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
            let double = pool.install(|| fit("w".into(), &w, (130, 200), 96, None));
            (double.u, double.v, double.a, double.m, double.b)
        };
        assert_eq!(run(1), run(3));
    }
}
