//! Forms of a matrix, as what is trained: from parameters to the matrix, and its gradient to theirs.

use super::centred::Centred;
use crate::model::binary::{Levels, level};
use crate::model::{Binary, DoubleBinary, Exact, Factored, Int8, LowRank, Subspace};
use crate::runtime::kernels::{Mat, MatMut, add_product, product};
use crate::runtime::lookup;
use rayon::prelude::*;
use std::borrow::Cow;

/// How a matrix of the model is made of what is trained.
#[derive(Debug, Clone)]
pub enum Form {
    /// The matrix itself, or a vector.
    Dense,
    /// One number that scales inputs.
    Scale,
    Signs(Signs),
    Centred(Centred),
    Double(Double),
    Rounded(Rounded),
    Factors(TableFactors),
    Codebook(Box<Codebook>),
}

/// Sign planes whose signs and scales are trained: the nearest level of each latent weight, passed
/// straight through on the way back (BiPFT notes, §1.1 and §5.11).
#[derive(Debug, Clone)]
pub struct Signs {
    pub rows: usize,
    pub cols: usize,
    pub planes: usize,
    /// Columns that share a scale.
    pub group: usize,
    /// `[rows, cols]`
    pub latent: Vec<f32>,
    /// `[rows, groups, planes]`
    pub scales: Vec<f32>,
    /// Added to the planes.
    pub residual: Option<Factors>,
    /// Whether the residual is stored in int8.
    pub residual_int8: bool,
}

/// Two binary factors between three diagonals, whose signs and scales are trained: the signs of latent numbers, passed
/// straight through on the way back (BiPFT notes, §5.6 and §5.11).
#[derive(Debug, Clone)]
pub struct Double {
    pub rows: usize,
    pub rank: usize,
    pub cols: usize,
    /// `[rows, rank]`
    pub u: Vec<f32>,
    /// `[rank, cols]`
    pub v: Vec<f32>,
    /// `[rows]`
    pub a: Vec<f32>,
    /// `[rank]`
    pub m: Vec<f32>,
    /// `[cols]`
    pub b: Vec<f32>,
}

/// A matrix that is stored in int8: latent weights, rounded as they are stored with a scale from the largest of each
/// row, and passed straight through on the way back.
#[derive(Debug, Clone)]
pub struct Rounded {
    pub rows: usize,
    pub cols: usize,
    /// `[rows, cols]`
    pub latent: Vec<f32>,
}

/// Of the way from the border between two levels to the level: nearer to the border no latent weight starts.
const MARGIN: f32 = 0.3;

/// `U·V`: `u` is `[rows, rank]`, `v` is `[rank, cols]`.
#[derive(Debug, Clone)]
pub struct Factors {
    pub rows: usize,
    pub rank: usize,
    pub cols: usize,
    pub u: Vec<f32>,
    pub v: Vec<f32>,
}

/// A table of low rank, and the rows that are stored as they are.
#[derive(Debug, Clone)]
pub struct TableFactors {
    pub factors: Factors,
    pub exact: Exact,
}

/// A table whose rows are put together from codewords (subspace notes, §1.1): codewords and exact rows are trained,
/// codes and rotation stay (§3.6).
#[derive(Debug, Clone)]
pub struct Codebook {
    pub table: Subspace,
}

/// Rows whose gradients are rotated together.
const TABLE_ROWS: usize = 1024;

/// How a parameter is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// At the rate of the schedule, with weight decay where it is a matrix.
    Weight,
    /// Latent weights behind signs: no decay.
    Latent,
    /// A tenth of the rate, no decay: one scale moves a whole row.
    Scale,
    /// No decay: decay of both factors would shrink their product twice.
    Factor,
    /// At a rate of their own, no decay: codewords, each of which stands in many rows.
    Codeword,
}

impl Form {
    /// The parameters, in the order of [`Form::gradients`]; `leaf` is the matrix.
    pub fn parameters<'a>(&'a mut self, leaf: &'a mut Vec<f32>) -> Vec<(Kind, &'a mut Vec<f32>)> {
        match self {
            Form::Dense => vec![(Kind::Weight, leaf)],
            Form::Scale => vec![(Kind::Scale, leaf)],
            Form::Centred(centred) => vec![(Kind::Latent, &mut centred.latent)],
            Form::Signs(signs) => {
                let mut all =
                    vec![(Kind::Latent, &mut signs.latent), (Kind::Scale, &mut signs.scales)];
                if let Some(r) = &mut signs.residual {
                    all.extend([(Kind::Factor, &mut r.u), (Kind::Factor, &mut r.v)]);
                }
                all
            }
            Form::Double(d) => vec![
                (Kind::Latent, &mut d.u),
                (Kind::Latent, &mut d.v),
                (Kind::Scale, &mut d.a),
                (Kind::Scale, &mut d.m),
                (Kind::Scale, &mut d.b),
            ],
            Form::Rounded(rounded) => vec![(Kind::Latent, &mut rounded.latent)],
            Form::Factors(TableFactors { factors: f, exact }) => vec![
                (Kind::Factor, &mut f.u),
                (Kind::Factor, &mut f.v),
                (Kind::Factor, &mut exact.rows),
            ],
            Form::Codebook(c) => {
                vec![(Kind::Codeword, &mut c.table.books), (Kind::Factor, &mut c.table.exact.rows)]
            }
        }
    }

    /// The gradients of the parameters, from `grad`, the one of the matrix.
    pub fn gradients<'a>(&self, grad: &'a [f32]) -> Vec<Cow<'a, [f32]>> {
        match self {
            Form::Dense | Form::Scale | Form::Centred(_) | Form::Rounded(_) => {
                vec![Cow::Borrowed(grad)]
            }
            Form::Double(d) => d.gradients(grad).map(Cow::Owned).into(),
            Form::Signs(signs) => {
                let mut all = vec![Cow::Borrowed(grad), Cow::Owned(signs.scale_gradient(grad))];
                if let Some(r) = &signs.residual {
                    all.extend(r.gradients(grad).map(Cow::Owned));
                }
                all
            }
            Form::Factors(f) => f.gradients(grad).map(Cow::Owned).into(),
            Form::Codebook(c) => c.gradients(grad).map(Cow::Owned).into(),
        }
    }

    /// Writes the matrix that the parameters make; a dense one is its own parameter.
    pub fn write(&self, leaf: &mut [f32]) {
        match self {
            Form::Dense | Form::Scale => {}
            Form::Centred(centred) => centred.write(leaf),
            Form::Signs(signs) => signs.write(leaf),
            Form::Double(d) => d.write(leaf),
            Form::Rounded(rounded) => {
                leaf.copy_from_slice(&rounded.pack(String::new()).to_dense());
            }
            Form::Factors(f) => f.write(leaf),
            Form::Codebook(c) => c.write(leaf),
        }
    }
}

impl Signs {
    /// What a packed matrix is trained as. Latent weights start at the levels that they take, unless what was packed is
    /// known: [`Signs::start_at`].
    pub fn of(binary: &Binary) -> Signs {
        let Binary { rows, cols, planes, group, .. } = *binary;
        let groups = cols.div_ceil(group);
        let mut scales = vec![0.0; rows * groups * planes];
        for (i, scale) in scales.iter_mut().enumerate() {
            let (row_group, plane) = (i / planes, i % planes);
            *scale = binary.scales[plane * rows * groups + row_group];
        }
        let residual_int8 = binary.low_rank.as_ref().is_some_and(|l| l.steps.is_some());
        let residual = binary.low_rank.as_ref().map(|l| Factors {
            rows,
            rank: l.rank,
            cols,
            u: l.u.clone(),
            v: l.v.clone(),
        });
        let value = |(i, &code): (usize, &u8)| {
            let at = (i / cols * groups + i % cols / group) * planes;
            level(&scales[at..at + planes], code)
        };
        let latent = binary.codes().iter().enumerate().map(value).collect();
        Signs { rows, cols, planes, group, latent, scales, residual, residual_int8 }
    }

    /// Latent weights start at `origin`, `[rows, cols]`, the matrix as it was before it was packed, but no nearer to the
    /// next level than `MARGIN` says: all keep the level that they have, and those that were near another reach it first.
    /// (Of one plane, from 4,000 texts in 300 updates, the distance on held-out texts is 0.40 from the levels themselves,
    /// 0.33 from `origin` without a margin, after 0.57 at 180, and 0.32 so.)
    pub fn start_at(&mut self, origin: &[f32]) {
        let codes = self.codes();
        let (groups, planes) = (self.groups(), self.planes);
        for (row, (latent, codes)) in self
            .latent
            .chunks_exact_mut(self.cols.max(1))
            .zip(codes.chunks_exact(self.cols.max(1)))
            .enumerate()
        {
            let origin = &origin[row * self.cols..];
            for group in 0..groups {
                let at = (row * groups + group) * planes;
                let levels = Levels::new(&self.scales[at..at + planes]);
                let span = group * self.group..((group + 1) * self.group).min(self.cols);
                for c in span {
                    let (low, high) = levels.around(codes[c], MARGIN);
                    latent[c] = origin[c].clamp(low, high);
                }
            }
        }
    }

    /// As it is stored.
    pub fn pack(&self, name: String) -> Binary {
        let scale = |k: usize| self.scales.iter().skip(k).step_by(self.planes).copied();
        let scales: Vec<f32> = (0..self.planes).flat_map(scale).collect();
        let low_rank = self.residual.as_ref().map(|r| {
            let stored = if self.residual_int8 { LowRank::int8 } else { LowRank::new };
            stored(r.rank, r.u.clone(), r.v.clone())
        });
        let shape = (self.rows, self.cols);
        Binary::new(name, shape, self.planes, self.group, &self.codes(), &scales, low_rank)
    }

    fn groups(&self) -> usize {
        self.cols.div_ceil(self.group)
    }

    /// `[rows, cols]`
    fn codes(&self) -> Vec<u8> {
        let mut codes = vec![0; self.latent.len()];
        self.each_group(&mut codes, |latent, scales, codes| {
            let levels = Levels::new(scales);
            codes.iter_mut().zip(latent).for_each(|(code, &w)| *code = levels.nearest(w).0);
        });
        codes
    }

    fn write(&self, leaf: &mut [f32]) {
        self.each_group(leaf, |latent, scales, out| {
            let levels = Levels::new(scales);
            out.iter_mut().zip(latent).for_each(|(out, &w)| *out = levels.nearest(w).1);
        });
        if let Some(r) = &self.residual {
            r.add_to(leaf);
        }
    }

    /// Latent weights, scales and `out` of every group that shares scales, rows in parallel.
    fn each_group<T: Send>(&self, out: &mut [T], work: impl Fn(&[f32], &[f32], &mut [T]) + Sync) {
        if self.cols == 0 {
            return;
        }
        let scales = self.scales.par_chunks(self.groups() * self.planes);
        let rows = self.latent.par_chunks(self.cols).zip(out.par_chunks_mut(self.cols));
        rows.zip(scales).for_each(|((latent, out), scales)| {
            let groups = latent.chunks(self.group).zip(out.chunks_mut(self.group));
            for ((latent, out), scales) in groups.zip(scales.chunks_exact(self.planes)) {
                work(latent, scales, out);
            }
        });
    }

    /// `Σ_j grad_j · sign_kj` over the columns of a group.
    fn scale_gradient(&self, grad: &[f32]) -> Vec<f32> {
        let codes = self.codes();
        let mut sums = vec![0.0; self.scales.len()];
        if self.cols == 0 {
            return sums;
        }
        let rows = grad.par_chunks(self.cols).zip(codes.par_chunks(self.cols));
        let sums_by_row = sums.par_chunks_mut(self.groups() * self.planes);
        rows.zip(sums_by_row).for_each(|((grad, codes), sums)| {
            let groups = grad.chunks(self.group).zip(codes.chunks(self.group));
            for ((grad, codes), sums) in groups.zip(sums.chunks_exact_mut(self.planes)) {
                for (g, code) in grad.iter().zip(codes) {
                    for (k, sum) in sums.iter_mut().enumerate() {
                        *sum += if code >> k & 1 == 1 { *g } else { -g };
                    }
                }
            }
        });
        sums
    }
}

impl Double {
    /// What a packed matrix is trained as. Latent numbers start as far from 0 as its weights are on average: signs
    /// flip after as many steps as those of sign planes.
    pub fn of(double: &DoubleBinary) -> Double {
        let DoubleBinary { rows, rank, cols, .. } = *double;
        let dense = double.to_dense();
        let size = dense.iter().map(|w| w.abs()).sum::<f32>() / dense.len().max(1) as f32;
        let [u, v] = double.signs().map(|signs| signs.iter().map(|s| s * size).collect());
        let [a, m, b] = [&double.a, &double.m, &double.b].map(|s| s.values.clone());
        Double { rows, rank, cols, u, v, a, m, b }
    }

    /// As it is stored.
    pub fn pack(&self, name: String) -> DoubleBinary {
        let scales = [self.a.clone(), self.m.clone(), self.b.clone()];
        DoubleBinary::new(name, (self.rows, self.cols), self.rank, (&self.u, &self.v), scales)
    }

    fn write(&self, leaf: &mut [f32]) {
        let [u, v] = self.scaled();
        let v = Mat::new(&v, self.rank, self.cols);
        let out = MatMut::new(leaf, self.rows, self.cols);
        product(out, Mat::new(&u, self.rows, self.rank), v, 1.0);
    }

    /// `diag(a)·U·diag(m)` and `V·diag(b)`, of signs.
    fn scaled(&self) -> [Vec<f32>; 2] {
        let Double { rank, cols, .. } = *self;
        let u = self.u.iter().enumerate();
        let u = u.map(|(i, &x)| sign(x) * self.a[i / rank] * self.m[i % rank]).collect();
        let v = self.v.iter().enumerate().map(|(i, &x)| sign(x) * self.b[i % cols]).collect();
        [u, v]
    }

    /// Of `u`, `v`, `a`, `m` and `b`.
    fn gradients(&self, grad: &[f32]) -> [Vec<f32>; 5] {
        let Double { rows, rank, cols, .. } = *self;
        let [u, v] = self.scaled();
        let grad = Mat::new(grad, rows, cols);
        let (mut du, mut dv) = (vec![0.0; self.u.len()], vec![0.0; self.v.len()]);
        product(MatMut::new(&mut du, rows, rank), grad, Mat::new(&v, rank, cols).t(), 1.0);
        product(MatMut::new(&mut dv, rank, cols), Mat::new(&u, rows, rank).t(), grad, 1.0);
        let (mut da, mut dm, mut db) = (vec![0.0; rows], vec![0.0; rank], vec![0.0; cols]);
        for (i, (g, x)) in du.iter_mut().zip(&self.u).enumerate() {
            let (row, r) = (i / rank, i % rank);
            da[row] += *g * sign(*x) * self.m[r];
            dm[r] += *g * sign(*x) * self.a[row];
            *g *= self.a[row] * self.m[r];
        }
        for (i, (g, x)) in dv.iter_mut().zip(&self.v).enumerate() {
            db[i % cols] += *g * sign(*x);
            *g *= self.b[i % cols];
        }
        [du, dv, da, dm, db]
    }
}

/// The sign of 0 is +1.
fn sign(x: f32) -> f32 {
    if x >= 0.0 { 1.0 } else { -1.0 }
}

impl Rounded {
    /// What a packed matrix is trained as.
    pub fn of(int8: &Int8) -> Rounded {
        Rounded { rows: int8.rows, cols: int8.cols, latent: int8.to_dense() }
    }

    /// As it is stored.
    pub fn pack(&self, name: String) -> Int8 {
        Int8::new(name, (self.rows, self.cols), &self.latent)
    }
}

impl Factors {
    /// `out += U·V`.
    fn add_to(&self, out: &mut [f32]) {
        let (u, v) = self.mats();
        add_product(MatMut::new(out, self.rows, self.cols), u, v, 1.0);
    }

    /// Of `u` and `v`: `G·Vᵀ` and `Uᵀ·G`.
    fn gradients(&self, grad: &[f32]) -> [Vec<f32>; 2] {
        let (u, v) = self.mats();
        let grad = Mat::new(grad, self.rows, self.cols);
        let (mut du, mut dv) = (vec![0.0; self.u.len()], vec![0.0; self.v.len()]);
        product(MatMut::new(&mut du, self.rows, self.rank), grad, v.t(), 1.0);
        product(MatMut::new(&mut dv, self.rank, self.cols), u.t(), grad, 1.0);
        [du, dv]
    }

    fn mats(&self) -> (Mat<'_>, Mat<'_>) {
        let v = Mat::new(&self.v, self.rank, self.cols);
        (Mat::new(&self.u, self.rows, self.rank), v)
    }
}

impl TableFactors {
    /// What a stored table is trained as.
    pub fn of(table: &Factored) -> TableFactors {
        let (rows, rank, cols) = (table.rows, table.rank, table.cols);
        let mut u = vec![0.0; rows * rank];
        u.chunks_exact_mut(rank.max(1)).enumerate().for_each(|(row, u)| table.gather(row, u));
        let factors = Factors { rows, rank, cols, u, v: table.v.clone() };
        TableFactors { factors, exact: table.exact.clone() }
    }

    /// As it is stored.
    pub fn pack(self, name: String) -> Factored {
        let Factors { rows, cols, u, v, .. } = self.factors;
        let exact = Exact::new(self.exact.ids, self.exact.rows);
        Factored::new(name, (rows, cols), u, v, exact)
    }

    fn write(&self, leaf: &mut [f32]) {
        leaf.fill(0.0);
        self.factors.add_to(leaf);
        let cols = self.factors.cols;
        for (&id, row) in self.exact.ids.iter().zip(self.exact.rows.chunks_exact(cols)) {
            leaf[id as usize * cols..(id as usize + 1) * cols].copy_from_slice(row);
        }
    }

    /// Of both factors and the exact rows, which have no part in these.
    fn gradients(&self, grad: &[f32]) -> [Vec<f32>; 3] {
        let mut rest = grad.to_vec();
        let exact = take_exact(&self.exact, self.factors.cols, &mut rest);
        let [u, v] = self.factors.gradients(&rest);
        [u, v, exact]
    }
}

/// The gradients of exact rows, of which zeros are left.
fn take_exact(exact: &Exact, cols: usize, grad: &mut [f32]) -> Vec<f32> {
    let mut rows = Vec::with_capacity(exact.rows.len());
    for &id in &exact.ids {
        let row = &mut grad[id as usize * cols..(id as usize + 1) * cols];
        rows.extend_from_slice(row);
        row.fill(0.0);
    }
    rows
}

impl Codebook {
    /// As it is stored.
    pub fn pack(self, name: String) -> Subspace {
        let table = self.table;
        let exact = Exact::new(table.exact.ids.clone(), table.exact.rows.clone());
        Subspace { name, exact, errors: None, ..table }.rounded()
    }

    fn write(&self, leaf: &mut [f32]) {
        let table = &self.table;
        leaf.par_chunks_mut((TABLE_ROWS * table.cols).max(1)).enumerate().for_each(|(i, out)| {
            let first = i * TABLE_ROWS;
            let ids: Vec<u32> =
                (first..first + out.len() / table.cols).map(|row| row as u32).collect();
            lookup::subspace_rows(table, &ids, out);
        });
    }

    /// Of codewords and exact rows. Every codeword gets the sum of the rows that use it.
    fn gradients(&self, grad: &[f32]) -> [Vec<f32>; 2] {
        let (table, cols) = (&self.table, self.table.cols);
        let (mut books, mut exact) =
            (vec![0.0; table.books.len()], vec![0.0; table.exact.rows.len()]);
        for (&id, out) in table.exact.ids.iter().zip(exact.chunks_exact_mut(cols)) {
            out.copy_from_slice(&grad[id as usize * cols..(id as usize + 1) * cols]);
        }
        // Most rows are in no text of a batch, and have no gradient.
        let row = |row: usize| &grad[row * cols..(row + 1) * cols];
        let touched =
            |r: &usize| table.exact.get(*r).is_none() && row(*r).iter().any(|&g| g != 0.0);
        let touched: Vec<usize> = (0..table.rows).filter(touched).collect();
        for rows in touched.chunks(TABLE_ROWS) {
            let mut y: Vec<f32> = rows.iter().flat_map(|&r| row(r)).copied().collect();
            if let Some(rotation) = &table.rotation {
                let grads = y.clone();
                lookup::rotate(&grads, cols, rotation.block, &rotation.values, false, &mut y);
            }
            for (&row, y) in rows.iter().zip(y.chunks_exact(cols)) {
                for (slice, y) in y.chunks(table.width).enumerate() {
                    let sums = &mut books[table.place(row, slice)];
                    sums.iter_mut().zip(y).for_each(|(s, g)| *s += g);
                }
            }
        }
        [books, exact]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::testing::gaussian;

    /// Along a random direction of each parameter, the loss `Σ direction · matrix` changes as its gradient
    /// says.
    fn assert_gradients(mut form: Form, size: usize) {
        let direction = gaussian(size, 3);
        let loss = |form: &Form| -> f64 {
            let mut matrix = vec![0.0; size];
            form.write(&mut matrix);
            matrix.iter().zip(&direction).map(|(m, d)| (*m * d) as f64).sum()
        };
        let gradients = form.gradients(&direction);
        for (i, gradient) in gradients.iter().enumerate() {
            let along = gaussian(gradient.len(), 4 + i as u64);
            let at = |step: f32| {
                let mut moved = form.clone();
                let mut leaf = Vec::new();
                let mut parameters = moved.parameters(&mut leaf);
                if parameters[i].0 == Kind::Latent {
                    return 0.0;
                }
                assert_eq!(parameters[i].1.len(), gradient.len());
                let values = parameters[i].1.iter_mut().zip(&along);
                values.for_each(|(v, d)| *v += step * d);
                drop(parameters);
                loss(&moved)
            };
            let expected = (at(1e-3) - at(-1e-3)) / 2e-3;
            let found: f64 = gradient.iter().zip(&along).map(|(g, d)| (*g * d) as f64).sum();
            if form.parameters(&mut Vec::new())[i].0 == Kind::Latent {
                assert_eq!(&gradient[..], &direction[..], "straight through");
                continue;
            }
            assert!((found - expected).abs() < 0.02 * found.abs().max(1.0), "{found} {expected}");
        }
    }

    #[test]
    fn factors_and_codebooks_have_the_gradients_of_their_differences() {
        let (u, v) = (gaussian(5 * 3, 1), gaussian(3 * 7, 2));
        let exact = |cols: usize| Exact::new(vec![1, 4], gaussian(2 * cols, 6));
        let factors = Factors { rows: 5, rank: 3, cols: 7, u, v };
        assert_gradients(Form::Factors(TableFactors { factors, exact: exact(7) }), 35);
        for (count, rotated) in [(3, false), (3, true), (1, true)] {
            // Slices of 3, 3 and 2 columns.
            let table = Subspace {
                exact: exact(8),
                ..crate::model::testing::subspace(6, 8, count, rotated)
            };
            assert_gradients(Form::Codebook(Box::new(Codebook { table })), 48);
        }
    }

    #[test]
    fn scales_and_residuals_have_the_gradients_of_their_differences() {
        for (planes, group) in [(1, 6), (2, 6), (3, 4)] {
            let (rows, cols) = (4, 6usize);
            let groups = cols.div_ceil(group);
            // Far from the middle between two levels, so that no step changes a code.
            let scales: Vec<f32> = (0..rows * groups)
                .flat_map(|r| (0..planes).map(move |k| (1.0 + r as f32 / 10.0) / (1 << k) as f32))
                .collect();
            let codes: Vec<u8> =
                (0..rows * cols).map(|i| (i * 7 % 8) as u8 & ((1 << planes) - 1)).collect();
            let stored: Vec<f32> = (0..planes)
                .flat_map(|k| scales.iter().skip(k).step_by(planes).copied().collect::<Vec<_>>())
                .collect();
            let low_rank = LowRank::new(2, gaussian(8, 8), gaussian(12, 9));
            let shape = (rows, cols);
            let binary =
                Binary::new("w".into(), shape, planes, group, &codes, &stored, Some(low_rank));
            let signs = Signs::of(&binary);
            assert_eq!(signs.codes(), codes);
            assert_gradients(Form::Signs(signs), rows * cols);
        }
    }

    fn double(rows: usize, cols: usize, rank: usize) -> DoubleBinary {
        let (u, v) = (gaussian(rows * rank, 11), gaussian(rank * cols, 12));
        let scales = [rows, rank, cols].map(|n| (0..n).map(|i| 0.5 + 0.1 * i as f32).collect());
        DoubleBinary::new("w".into(), (rows, cols), rank, (&u, &v), scales)
    }

    /// The signs taken for numbers, the matrix is linear in each of its five parts: a step of 1 is exact.
    #[test]
    fn binary_factors_have_the_gradients_of_their_differences() {
        let (rows, cols, rank) = (4, 6, 5);
        let start = Double::of(&double(rows, cols, rank));
        let direction = gaussian(rows * cols, 13);
        let [u, v] = [&start.u, &start.v].map(|x| x.iter().map(|&x| sign(x)).collect());
        let parts: [Vec<f32>; 5] = [u, v, start.a.clone(), start.m.clone(), start.b.clone()];
        let loss = |[u, v, a, m, b]: &[Vec<f32>; 5]| -> f64 {
            let term = |i: usize| {
                let (row, r, col) = (i / (rank * cols), i / cols % rank, i % cols);
                let value = a[row] * u[row * rank + r] * m[r] * v[r * cols + col] * b[col];
                (value * direction[row * cols + col]) as f64
            };
            (0..rows * rank * cols).map(term).sum()
        };
        let gradients = Form::Double(start).gradients(&direction);
        assert_eq!(gradients.len(), parts.len());
        for (i, gradient) in gradients.iter().enumerate() {
            for j in 0..gradient.len() {
                let mut moved = parts.clone();
                moved[i][j] += 1.0;
                let expected = loss(&moved) - loss(&parts);
                let found = gradient[j] as f64;
                assert!((found - expected).abs() < 1e-3 * (1.0 + expected.abs()), "part {i}, {j}");
            }
        }
    }

    #[test]
    fn binary_factors_and_int8_train_from_their_own_values_and_pack_to_the_same() {
        let before = double(7, 40, 33);
        let form = Double::of(&before);
        let mut matrix = vec![0.0; 7 * 40];
        form.write(&mut matrix);
        for (found, expected) in matrix.iter().zip(before.to_dense()) {
            assert!((found - expected).abs() < 1e-4 * (1.0 + expected.abs()), "{found} {expected}");
        }
        let after = form.pack("w".into());
        assert_eq!((&after.u, &after.v), (&before.u, &before.v));
        assert_eq!((&after.a, &after.m, &after.b), (&before.a, &before.m, &before.b));
        // A latent number that crosses 0 flips its sign, and no other.
        let mut moved = form;
        moved.u[3] = -moved.u[3];
        let [found, expected] = [moved.pack("w".into()), after].map(|d| d.signs()[0].clone());
        let flipped: Vec<usize> = (0..found.len()).filter(|&i| found[i] != expected[i]).collect();
        assert_eq!(flipped, [3]);

        let before = Int8::new("w".into(), (7, 40), &gaussian(7 * 40, 14));
        let rounded = Rounded::of(&before);
        let after = rounded.pack("w".into());
        assert_eq!((&after.codes, &after.scales), (&before.codes, &before.scales));
        assert_gradients(Form::Rounded(rounded.clone()), 7 * 40);
        let mut moved = rounded;
        moved.latent[5] += 0.6 * before.scales.values[0];
        let changed = moved.pack("w".into());
        let changed: Vec<usize> =
            (0..280).filter(|&i| changed.codes[i] != before.codes[i]).collect();
        assert_eq!(changed, [5]);
    }

    #[test]
    fn what_is_packed_trains_from_its_own_values_and_packs_to_the_same() {
        let (rows, cols) = (6, 40);
        let codes: Vec<u8> = (0..rows * cols).map(|i| (i * 13 % 4) as u8).collect();
        let scales: Vec<f32> = (0..2 * rows).map(|i| 0.3 + 0.1 * i as f32).collect();
        let binary = Binary::new("w".into(), (rows, cols), 2, cols, &codes, &scales, None);
        let signs = Signs::of(&binary);
        let mut matrix = vec![0.0; rows * cols];
        Form::Signs(signs.clone()).write(&mut matrix);
        assert_eq!(matrix, binary.to_dense());
        let packed = signs.pack("w".into());
        assert_eq!((packed.signs, packed.scales), (binary.signs, binary.scales));
    }
}
