//! Two binary factors, refitted in the full metric of the inputs' second moments.

use super::products::{BLOCK, multiply};
use super::residual::Metric;
use crate::runtime::kernels::{Mat, MatMut, add_product, product};
use rayon::prelude::*;

/// `diag(a)·U·diag(m)·V·diag(b)` while it is fitted: signs as ±1, `u` `[rows, rank]`, `v` `[rank, cols]`.
#[derive(Debug, Clone)]
pub struct Factors {
    pub rows: usize,
    pub rank: usize,
    pub cols: usize,
    pub u: Vec<f32>,
    pub v: Vec<f32>,
    pub a: Vec<f32>,
    pub m: Vec<f32>,
    pub b: Vec<f32>,
}

/// Times that a row or a column of signs is gone over.
const SWEEPS: usize = 4;
/// Steps of conjugate gradients for inner and column scales.
const STEPS: usize = 12;
/// Columns of V between two products.
const STRIP: usize = 64;

impl Factors {
    /// Makes `tr(E·H·Eᵀ)` smaller, `E` what is missing of `w`, `[rows, cols]`: by turns signs of U, row scales, inner scales,
    /// signs of V, column scales, each the best (or better) while the others stand still, so that the error only falls.
    pub fn refine(&mut self, w: &[f32], metric: &Metric, rounds: usize) {
        let (rows, cols) = (self.rows, self.cols);
        let h = Mat::new(&metric.h, cols, cols);
        let mut wh = vec![0.0; rows * cols];
        multiply(&mut wh, cols, Mat::new(w, rows, cols), h);
        for _ in 0..rounds {
            self.fit_u(&wh, h);
            self.fit_m(&wh, h);
            self.fit_v(&wh, metric);
            self.fit_b(&wh, &metric.h);
        }
        self.fit_u(&wh, h);
    }

    /// `diag(m)·V·diag(b)`, `[rank, cols]`.
    fn inner(&self, with_m: bool) -> Vec<f32> {
        let lines = self.v.chunks_exact(self.cols).zip(&self.m);
        lines
            .flat_map(|(line, &m)| {
                let m = if with_m { m } else { 1.0 };
                line.iter().zip(&self.b).map(move |(v, b)| m * v * b)
            })
            .collect()
    }

    /// `diag(a)·U·diag(m)`, `[rows, rank]`.
    fn outer(&self, with_m: bool) -> Vec<f32> {
        let lines = self.u.chunks_exact(self.rank).zip(&self.a);
        lines
            .flat_map(|(line, &a)| {
                line.iter().zip(&self.m).map(move |(u, &m)| a * u * if with_m { m } else { 1.0 })
            })
            .collect()
    }

    /// `x·H·xᵀ` and `wh·xᵀ` of `x`, `[rank, cols]`.
    fn seen_by(&self, x: &[f32], wh: &[f32], h: Mat) -> (Vec<f32>, Vec<f32>) {
        let (rows, rank, cols) = (self.rows, self.rank, self.cols);
        let x = Mat::new(x, rank, cols);
        let mut xh = vec![0.0; rank * cols];
        multiply(&mut xh, cols, x, h);
        let mut moments = vec![0.0; rank * rank];
        multiply(&mut moments, rank, Mat::new(&xh, rank, cols), x.t());
        let mut target = vec![0.0; rows * rank];
        multiply(&mut target, rank, Mat::new(wh, rows, cols), x.t());
        (moments, target)
    }

    /// Signs of U and the scale of each row: coordinate descent with the inputs that V makes.
    fn fit_u(&mut self, wh: &[f32], h: Mat) {
        let rank = self.rank;
        let (moments, target) = self.seen_by(&self.inner(true), wh, h);
        let moments = Mat::new(&moments, rank, rank);
        self.u
            .par_chunks_mut(BLOCK * rank)
            .zip(self.a.par_chunks_mut(BLOCK))
            .zip(target.par_chunks(BLOCK * rank))
            .for_each(|((u, a), target)| {
                let rows = a.len();
                let mut seen = vec![0.0; rows * rank];
                product(MatMut::new(&mut seen, rows, rank), Mat::new(u, rows, rank), moments, 1.0);
                let lines = u.chunks_exact_mut(rank).zip(seen.chunks_exact_mut(rank));
                for (((u, seen), a), target) in lines.zip(a).zip(target.chunks_exact(rank)) {
                    for _ in 0..SWEEPS {
                        let mut moved = false;
                        for c in 0..rank {
                            // Of a² uᵀMu − 2a u·t, when u_c turns round.
                            let own = moments.data[c * rank + c];
                            let gain = *a * u[c] * (seen[c] - u[c] * own) - u[c] * target[c];
                            if gain > 0.0 {
                                let step = -2.0 * u[c];
                                u[c] = -u[c];
                                let line = &moments.data[c * rank..(c + 1) * rank];
                                seen.iter_mut().zip(line).for_each(|(s, m)| *s += step * m);
                                moved = true;
                            }
                        }
                        let dot = |x: &[f32]| -> f64 {
                            u.iter().zip(x).map(|(u, x)| (u * x) as f64).sum()
                        };
                        let (power, best) = (dot(seen), dot(target));
                        if power > 0.0 && best > 0.0 {
                            *a = (best / power) as f32;
                        }
                        if !moved {
                            break;
                        }
                    }
                }
            });
    }

    /// Inner scales, by least squares; where one turns negative, its row of V turns round.
    fn fit_m(&mut self, wh: &[f32], h: Mat) {
        let rank = self.rank;
        let (mut system, target) = self.seen_by(&self.inner(false), wh, h);
        let outer = self.outer(false);
        let gram = gram(&outer, self.rows, rank);
        system.iter_mut().zip(&gram).for_each(|(s, g)| *s *= g);
        let mut wanted = vec![0.0f64; rank];
        for (outer, target) in outer.chunks_exact(rank).zip(target.chunks_exact(rank)) {
            for (w, (o, t)) in wanted.iter_mut().zip(outer.iter().zip(target)) {
                *w += (o * t) as f64;
            }
        }
        conjugate_gradients(&system, &wanted, &mut self.m);
        for (m, line) in self.m.iter_mut().zip(self.v.chunks_exact_mut(self.cols)) {
            if *m < 0.0 {
                *m = -*m;
                line.iter_mut().for_each(|v| *v = -*v);
            }
        }
    }

    /// Column scales, by least squares; where one turns negative, its column of V turns round.
    fn fit_b(&mut self, wh: &[f32], h: &[f32]) {
        let (rows, rank, cols) = (self.rows, self.rank, self.cols);
        let outer = self.outer(true);
        let mut left = vec![0.0; rows * cols];
        multiply(&mut left, cols, Mat::new(&outer, rows, rank), Mat::new(&self.v, rank, cols));
        let mut system = gram(&left, rows, cols);
        system.iter_mut().zip(h).for_each(|(s, h)| *s *= h);
        let mut wanted = vec![0.0f64; cols];
        for (left, wh) in left.chunks_exact(cols).zip(wh.chunks_exact(cols)) {
            for (w, (l, t)) in wanted.iter_mut().zip(left.iter().zip(wh)) {
                *w += (l * t) as f64;
            }
        }
        conjugate_gradients(&system, &wanted, &mut self.b);
        let turned: Vec<f32> = self.b.iter().map(|b| if *b < 0.0 { -1.0 } else { 1.0 }).collect();
        self.b.iter_mut().for_each(|b| *b = b.abs());
        for line in self.v.chunks_exact_mut(cols) {
            line.iter_mut().zip(&turned).for_each(|(v, t)| *v *= t);
        }
    }

    /// Signs of V, column by column in the order of the inputs' strength.
    fn fit_v(&mut self, wh: &[f32], metric: &Metric) {
        let (rows, rank, cols) = (self.rows, self.rank, self.cols);
        let outer = self.outer(true);
        let gram = gram(&outer, rows, rank);
        // By column of H in the metric's order, scaled: what a change of one column does to all.
        let order = &metric.order;
        let h = |i: usize, j: usize| {
            let (i, j) = (order[i], order[j]);
            metric.h[i * cols + j] * self.b[i] * self.b[j]
        };
        let mut scaled = vec![0.0; cols * cols];
        scaled.par_chunks_mut(cols).enumerate().for_each(|(i, line)| {
            line.iter_mut().enumerate().for_each(|(j, x)| *x = h(i, j));
        });
        // `diag(b)·(H·Wᵀ·outer − H·diag(b)·Vᵀ·gram)`, `[cols, rank]`: half of what the error gains with each sign.
        let wh_outer = {
            let mut out = vec![0.0; cols * rank];
            multiply(&mut out, rank, Mat::new(wh, rows, cols).t(), Mat::new(&outer, rows, rank));
            out
        };
        let mut v: Vec<f32> = vec![0.0; cols * rank];
        for (line, &c) in v.chunks_exact_mut(rank).zip(order) {
            line.iter_mut().enumerate().for_each(|(r, x)| *x = self.v[r * cols + c]);
        }
        let mut seen = vec![0.0; cols * rank];
        multiply(&mut seen, rank, Mat::new(&scaled, cols, cols), Mat::new(&v, cols, rank));
        let mut pull = vec![0.0; cols * rank];
        multiply(&mut pull, rank, Mat::new(&seen, cols, rank), Mat::new(&gram, rank, rank));
        for (line, &c) in pull.chunks_exact_mut(rank).zip(order) {
            let from = &wh_outer[c * rank..(c + 1) * rank];
            line.iter_mut().zip(from).for_each(|(p, t)| *p = self.b[c] * t - *p);
        }
        // What changed so far, times H: to be multiplied by the Gram matrix when a column's turn comes.
        let mut owed = seen;
        owed.fill(0.0);
        for start in (0..cols).step_by(STRIP) {
            let end = (start + STRIP).min(cols);
            let mut changes = vec![0.0f32; (end - start) * rank];
            for j in start..end {
                let own = scaled[j * cols + j];
                let (before, rest) = changes.split_at_mut((j - start) * rank);
                let debt = &mut owed[j * rank..(j + 1) * rank];
                for (i, line) in before.chunks_exact(rank).enumerate() {
                    let h = scaled[j * cols + start + i];
                    debt.iter_mut().zip(line).for_each(|(d, c)| *d += h * c);
                }
                let pull = &mut pull[j * rank..(j + 1) * rank];
                let debt = Mat::new(debt, 1, rank);
                add_product(MatMut::new(pull, 1, rank), debt, Mat::new(&gram, rank, rank), -1.0);
                let v = &mut v[j * rank..(j + 1) * rank];
                let change = &mut rest[..rank];
                for _ in 0..SWEEPS {
                    let mut moved = false;
                    for r in 0..rank {
                        // 2·v·pull is what turning round adds, and the square of the step what it costs besides.
                        if v[r] * pull[r] + own * gram[r * rank + r] < 0.0 {
                            let step = -2.0 * v[r];
                            v[r] = -v[r];
                            change[r] += step;
                            let line = &gram[r * rank..(r + 1) * rank];
                            let step = step * own;
                            pull.iter_mut().zip(line).for_each(|(p, g)| *p -= step * g);
                            moved = true;
                        }
                    }
                    if !moved {
                        break;
                    }
                }
            }
            let behind = cols - end;
            if behind > 0 {
                let h =
                    Mat::new(&scaled, cols, cols).block(end, behind).columns(start, end - start);
                let changes = Mat::new(&changes, end - start, rank);
                add_blocks(&mut owed[end * rank..], rank, h, changes);
            }
        }
        for (line, &c) in v.chunks_exact(rank).zip(order) {
            line.iter().enumerate().for_each(|(r, x)| self.v[r * cols + c] = *x);
        }
    }
}

/// `xᵀ·x` of `x`, `[rows, cols]`.
fn gram(x: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    let x = Mat::new(x, rows, cols);
    let mut out = vec![0.0; cols * cols];
    multiply(&mut out, cols, x.t(), x);
    out
}

/// `out ← out + a·b`
fn add_blocks(out: &mut [f32], cols: usize, a: Mat, b: Mat) {
    out.par_chunks_mut(BLOCK * cols).enumerate().for_each(|(i, out)| {
        let rows = out.len() / cols;
        add_product(MatMut::new(out, rows, cols), a.block(i * BLOCK, rows), b, 1.0);
    });
}

/// A few steps from `x` on towards the solution of `system·x = wanted`: each makes the squared error that it comes
/// from smaller.
fn conjugate_gradients(system: &[f32], wanted: &[f64], x: &mut [f32]) {
    let n = x.len();
    let times = |x: &[f64]| -> Vec<f64> {
        system
            .par_chunks(n)
            .map(|line| line.iter().zip(x).map(|(s, x)| *s as f64 * x).sum())
            .collect()
    };
    let inverse: Vec<f64> = (0..n)
        .map(|i| if system[i * n + i] > 0.0 { 1.0 / system[i * n + i] as f64 } else { 0.0 })
        .collect();
    let mut at: Vec<f64> = x.iter().map(|&x| x as f64).collect();
    let mut rest: Vec<f64> = wanted.iter().zip(times(&at)).map(|(w, s)| w - s).collect();
    let precondition =
        |r: &[f64]| -> Vec<f64> { r.iter().zip(&inverse).map(|(r, i)| r * i).collect() };
    let dot = |a: &[f64], b: &[f64]| -> f64 { a.iter().zip(b).map(|(a, b)| a * b).sum() };
    let mut z = precondition(&rest);
    let mut direction = z.clone();
    let mut power = dot(&rest, &z);
    for _ in 0..STEPS {
        let seen = times(&direction);
        let curve = dot(&direction, &seen);
        if curve <= 0.0 || power <= 0.0 {
            break;
        }
        let step = power / curve;
        at.iter_mut().zip(&direction).for_each(|(x, d)| *x += step * d);
        rest.iter_mut().zip(&seen).for_each(|(r, s)| *r -= step * s);
        z = precondition(&rest);
        let next = dot(&rest, &z);
        let ratio = next / power;
        power = next;
        direction.iter_mut().zip(&z).for_each(|(d, z)| *d = z + ratio * *d);
    }
    x.iter_mut().zip(at).for_each(|(x, at)| *x = at as f32);
}
