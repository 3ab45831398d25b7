//! Rows of tables that have a form of their own, made when they are looked up: the table itself is never in memory.

use super::encoder::add_table_row;
use super::kernels::{Mat, MatMut, product};
use crate::Result;
use crate::model::{Factored, Subspace, Weight};
use rayon::prelude::*;
use std::borrow::Cow;

/// Rows that one task makes of a whole table.
const BLOCK: usize = 1024;

/// The rows of one batch, each made once.
#[derive(Debug)]
pub struct Lookup {
    /// Ascending.
    ids: Vec<u32>,
    /// `[ids, width]`
    rows: Vec<f32>,
    width: usize,
}

impl Lookup {
    /// The rows `ids` of `table`; `None` where its form has nothing to gain from making them together.
    ///
    /// # Panics
    /// If an id is outside the table.
    pub fn of(table: &Weight, ids: &[u32]) -> Option<Lookup> {
        if !matches!(table, Weight::Subspace(_) | Weight::Factored(_)) {
            return None;
        }
        let mut ids = ids.to_vec();
        ids.sort_unstable();
        ids.dedup();
        let width = table.cols();
        let mut rows = vec![0.0; ids.len() * width];
        write_rows(table, &ids, &mut rows);
        Some(Lookup { ids, rows, width })
    }

    /// # Panics
    /// If the id was not asked for.
    pub fn row(&self, id: u32) -> &[f32] {
        let at = self.ids.binary_search(&id).expect("an id that was asked for");
        &self.rows[at * self.width..(at + 1) * self.width]
    }
}

/// The whole table in f32, `[rows, cols]`.
///
/// # Errors
/// If a stored tensor is of no floating type.
pub fn dense(table: &Weight) -> Result<Cow<'_, [f32]>> {
    if !matches!(table, Weight::Subspace(_) | Weight::Factored(_)) {
        return table.to_f32();
    }
    let mut all = vec![0.0; table.params()];
    all.par_chunks_mut((BLOCK * table.cols()).max(1)).enumerate().for_each(|(i, out)| {
        let first = i * BLOCK;
        let ids: Vec<u32> = (first..first + out.len() / table.cols()).map(|r| r as u32).collect();
        write_rows(table, &ids, out);
    });
    Ok(Cow::Owned(all))
}

/// The rows `ids` of any table, `[ids, cols]`.
///
/// # Errors
/// If a stored tensor is of no floating type.
///
/// # Panics
/// If an id is outside the table.
pub fn rows(table: &Weight, ids: &[u32]) -> Result<Vec<f32>> {
    let mut out = vec![0.0; ids.len() * table.cols()];
    if matches!(table, Weight::Subspace(_) | Weight::Factored(_)) {
        write_rows(table, ids, &mut out);
        return Ok(out);
    }
    for (out, &id) in out.chunks_exact_mut(table.cols().max(1)).zip(ids) {
        add_table_row(table, id as usize, out)?;
    }
    Ok(out)
}

/// Writes the rows `ids` of a table of such a form to `out`, `[ids, cols]`.
///
/// # Panics
/// If the table is of another form.
pub fn write_rows(table: &Weight, ids: &[u32], out: &mut [f32]) {
    match table {
        Weight::Subspace(subspace) => subspace_rows(subspace, ids, out),
        Weight::Factored(factored) => factored_rows(factored, ids, out),
        _ => panic!("a table of a form of its own"),
    }
}

/// As [`write_rows`]: codewords are gathered, and all rows rotated by one product.
pub fn subspace_rows(table: &Subspace, ids: &[u32], out: &mut [f32]) {
    let cols = table.cols;
    match &table.rotation {
        None => {
            for (out, &id) in out.chunks_exact_mut(cols).zip(ids) {
                table.gather(id as usize, out);
            }
        }
        Some(rotation) => {
            let mut y = vec![0.0; ids.len() * cols];
            for (y, &id) in y.chunks_exact_mut(cols).zip(ids) {
                table.gather(id as usize, y);
            }
            rotate(&y, cols, rotation.block, &rotation.values, true, out);
        }
    }
    if let Some(mean) = &table.mean {
        for out in out.chunks_exact_mut(cols) {
            out.iter_mut().zip(mean).for_each(|(o, m)| *o += m);
        }
    }
    write_exact(&table.exact, cols, ids, out);
}

fn factored_rows(table: &Factored, ids: &[u32], out: &mut [f32]) {
    let (rank, cols) = (table.rank, table.cols);
    let mut u = vec![0.0; ids.len() * rank];
    for (u, &id) in u.chunks_exact_mut(rank.max(1)).zip(ids) {
        table.gather(id as usize, u);
    }
    let v = Mat::new(&table.v, rank, cols);
    product(MatMut::new(out, ids.len(), cols), Mat::new(&u, ids.len(), rank), v, 1.0);
    write_exact(&table.exact, cols, ids, out);
}

fn write_exact(exact: &crate::model::Exact, cols: usize, ids: &[u32], out: &mut [f32]) {
    for (out, &id) in out.chunks_exact_mut(cols.max(1)).zip(ids) {
        if let Some(row) = exact.get(id as usize) {
            out.copy_from_slice(row);
        }
    }
}

/// `out ← x·R`, or `x·Rᵀ`, of the rows of `x`, `[rows, cols]`; R has the blocks `values`, `[cols / block, block, block]`, along its
/// diagonal.
pub fn rotate(
    x: &[f32],
    cols: usize,
    block: usize,
    values: &[f32],
    transposed: bool,
    out: &mut [f32],
) {
    let rows = x.len().checked_div(cols).unwrap_or(0);
    for (i, r) in values.chunks_exact((block * block).max(1)).enumerate() {
        let r = Mat::new(r, block, block);
        let r = if transposed { r.t() } else { r };
        let to = MatMut::new(out, rows, cols).columns(i * block, block);
        product(to, Mat::new(x, rows, cols).columns(i * block, block), r, 1.0);
    }
}
