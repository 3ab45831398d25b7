//! The paper's own form: rows told apart by tuples of few codewords (Jaiswal & Liu 2023; subspace notes, §1).

use super::Assignment;
use super::rows::Rows;
use super::subspace::{codes_tensor, exact_rows, hash, mixed};
use crate::Result;
use crate::checkpoint::{Dtype, Tensor};
use crate::model::subspace::{digit, tuples};
use crate::model::{Codes, Subspace};
use crate::pass::Progress;
use crate::train::kmeans::{Settings, Sums, cluster};
use std::collections::HashSet;

/// Rounds of k-means.
const ROUNDS: usize = 25;
const BLOCK: usize = 2048;

/// The least number of codewords of which `slices` tell `rows` rows apart: `⌈rows^(1/slices)⌉`, in integers.
pub fn root(rows: usize, slices: usize) -> usize {
    let (mut low, mut high) = (1usize, rows.max(1));
    while low < high {
        let middle = low + (high - low) / 2;
        if tuples(middle, slices) >= rows as u128 { high = middle } else { low = middle + 1 }
    }
    low
}

/// Fits a table in which rows share codewords of `slices` slices.
///
/// - `tokens`: `[rows]`, how often each row is used: of rows whose tuples are the same, the most frequent keeps its own
///
/// # Errors
/// If the tensor is of no floating type, or the run was interrupted.
pub fn fit(
    (tensor, name): (&Tensor, &str),
    (weights, tokens): (&[f32], &[f64]),
    exact: &[u32],
    (slices, words): (usize, usize),
    assignment: Assignment,
    seed: u64,
    progress: &dyn Progress,
) -> Result<Subspace> {
    let (rows, cols) = (tensor.shape[0], tensor.shape[1]);
    let width = cols.div_ceil(slices);
    let seed = mixed(seed ^ hash(name));
    let table = Table { rows: Rows::all(tensor), width, slices, words, progress };
    let codes = match assignment {
        Assignment::Dispersed => {
            let row = |row: usize| (0..slices).map(move |m| digit(row, words, m) as u16);
            (0..rows).flat_map(row).collect()
        }
        Assignment::Independent => {
            let mut codes = vec![0u16; rows * slices];
            let mut books = Vec::with_capacity(slices);
            for m in 0..slices {
                let x = table.slice(m)?;
                let settings = Settings { words, rounds: ROUNDS, seed: mixed(seed ^ m as u64) };
                let found = cluster(&x, width, weights, &settings, progress)?;
                found.codes.iter().enumerate().for_each(|(row, &c)| codes[row * slices + m] = c);
                books.push(found.centres);
            }
            table.tell_apart(&mut codes, &books, tokens)?;
            codes
        }
        Assignment::Hierarchical => table.hierarchy(weights, seed)?,
    };
    let books = table.means(&codes, weights)?;
    let codes = match assignment {
        Assignment::Dispersed => Codes::Digits,
        _ => codes_tensor(name, [rows, slices], words, &codes),
    };
    let table = Subspace {
        name: name.into(),
        rows,
        cols,
        slices,
        words,
        width,
        codes,
        books,
        books_dtype: Dtype::F16,
        rotation: None,
        mean: None,
        exact: exact_rows(tensor, exact)?,
        errors: None,
    };
    Ok(table.rounded())
}

struct Table<'a> {
    rows: Rows<'a>,
    width: usize,
    slices: usize,
    words: usize,
    progress: &'a dyn Progress,
}

impl Table<'_> {
    /// Slice `m` of all rows, `[rows, width]`, with zeros behind a short one.
    fn slice(&self, m: usize) -> Result<Vec<f32>> {
        let (cols, width) = (self.rows.cols, self.width);
        let (from, to) = (m * width, ((m + 1) * width).min(cols));
        let mut out = Vec::with_capacity(self.rows.count() * width);
        for i in 0..self.rows.count().div_ceil(BLOCK) {
            for x in self.rows.read(self.rows.span(i, BLOCK))?.chunks_exact(cols) {
                out.extend_from_slice(&x[from..to]);
                out.extend(std::iter::repeat_n(0.0, width - (to - from)));
            }
        }
        Ok(out)
    }

    /// Codewords by least squares: the weighted means of the slices that use them, `[slices, words, width]`.
    fn means(&self, codes: &[u16], weights: &[f32]) -> Result<Vec<f32>> {
        let mut books = vec![0.0; self.slices * self.words * self.width];
        let each = books.chunks_exact_mut(self.words * self.width);
        for (m, book) in each.enumerate() {
            let x = self.slice(m)?;
            let mut sums = Sums::new(self.words, self.width);
            for (row, x) in x.chunks_exact(self.width).enumerate() {
                sums.add(codes[row * self.slices + m] as usize, weights[row], x);
            }
            sums.means(book);
        }
        Ok(books)
    }

    /// Moves rows whose tuple is taken by a more frequent row to the free tuple that adds the least squared error: first by
    /// one digit, then by any.
    fn tell_apart(&self, codes: &mut [u16], books: &[Vec<f32>], tokens: &[f64]) -> Result<()> {
        let (slices, words, width) = (self.slices, self.words, self.width);
        let places = tuples(words, slices);
        let number =
            |tuple: &[u16]| tuple.iter().rev().fold(0u128, |n, &c| n * words as u128 + c as u128);
        let mut order: Vec<usize> = (0..tokens.len()).collect();
        order.sort_by(|&a, &b| tokens[b].total_cmp(&tokens[a]));
        let mut taken: HashSet<u128> = HashSet::with_capacity(tokens.len());
        let mut moved = Vec::new();
        for row in order {
            let tuple = number(&codes[row * slices..(row + 1) * slices]);
            if !taken.insert(tuple) {
                moved.push(row);
            }
        }
        // Every free tuple, where one can list them: there are about as many tuples as rows.
        let mut free: Option<Vec<u128>> = None;
        for row in moved {
            let x = self.rows.read(row..row + 1)?;
            let own = codes[row * slices..(row + 1) * slices].to_vec();
            let costs: Vec<f32> = (0..slices)
                .flat_map(|m| {
                    let x = &x[m * width..((m + 1) * width).min(x.len())];
                    let word = move |word: &[f32]| -> f32 {
                        x.iter().zip(word).map(|(x, c)| (x - c) * (x - c)).sum()
                    };
                    books[m].chunks_exact(width).map(word)
                })
                .collect();
            let mut best: Option<(f32, u128)> = None;
            let offer = |best: &mut Option<(f32, u128)>, cost: f32, tuple: u128| {
                let better = best.is_none_or(|b| (cost, tuple) < b);
                if better && !taken.contains(&tuple) {
                    *best = Some((cost, tuple));
                }
            };
            for m in 0..slices {
                let mut tuple = own.clone();
                for word in 0..words {
                    tuple[m] = word as u16;
                    let added = costs[m * words + word] - costs[m * words + own[m] as usize];
                    offer(&mut best, added, number(&tuple));
                }
            }
            if best.is_none() && places <= 1 << 24 {
                let free = free.get_or_insert_with(|| {
                    (0..places).filter(|tuple| !taken.contains(tuple)).collect()
                });
                free.retain(|tuple| !taken.contains(tuple));
                for &tuple in free.iter() {
                    let cost =
                        (0..slices).map(|m| costs[m * words + digit(tuple as usize, words, m)]);
                    offer(&mut best, cost.sum(), tuple);
                }
            }
            // With so many tuples that they cannot be listed, two rows may stay alike.
            let Some((_, tuple)) = best else { continue };
            taken.insert(tuple);
            let digits = (0..slices).scan(tuple, |rest, _| {
                let digit = *rest % words as u128;
                *rest /= words as u128;
                Some(digit as u16)
            });
            codes[row * slices..(row + 1) * slices].copy_from_slice(&digits.collect::<Vec<u16>>());
        }
        Ok(())
    }

    /// Groups of groups: rows of a group share their first digits, and are told apart by the last.
    fn hierarchy(&self, weights: &[f32], seed: u64) -> Result<Vec<u16>> {
        let mut codes = vec![0u16; self.rows.count() * self.slices];
        let all: Vec<usize> = (0..self.rows.count()).collect();
        self.split(&all, 0, weights, seed, &mut codes)?;
        Ok(codes)
    }

    fn split(
        &self,
        rows: &[usize],
        level: usize,
        weights: &[f32],
        seed: u64,
        codes: &mut [u16],
    ) -> Result<()> {
        let (slices, words) = (self.slices, self.words);
        if rows.is_empty() {
            return Ok(());
        }
        if level + 1 == slices {
            for (rank, &row) in rows.iter().enumerate() {
                codes[row * slices + level] = rank as u16;
            }
            return Ok(());
        }
        let room = tuples(words, slices - level - 1).min(rows.len() as u128) as usize;
        let cols = self.rows.cols;
        let mut x = Vec::with_capacity(rows.len() * cols);
        for &row in rows {
            x.extend(self.rows.read(row..row + 1)?);
        }
        let of_rows: Vec<f32> =
            rows.iter().map(|&row| weights[row].max(f32::MIN_POSITIVE)).collect();
        let settings = Settings { words: words.min(rows.len()), rounds: ROUNDS, seed };
        let found = cluster(&x, cols, &of_rows, &settings, self.progress)?;
        let mut groups: Vec<Vec<usize>> = vec![Vec::new(); words];
        let distance = |i: usize, k: usize| -> f32 {
            let centre = &found.centres[k * cols..(k + 1) * cols];
            x[i * cols..(i + 1) * cols].iter().zip(centre).map(|(x, c)| (x - c) * (x - c)).sum()
        };
        // Who loses most by the second choice chooses first (subspace notes, §1.3).
        let distances: Vec<Vec<f32>> = (0..rows.len())
            .map(|i| (0..settings.words).map(|k| distance(i, k)).collect())
            .collect();
        let regret = |i: usize| {
            let mut two = [f32::INFINITY; 2];
            for &d in &distances[i] {
                if d < two[0] {
                    two = [d, two[0]];
                } else if d < two[1] {
                    two[1] = d;
                }
            }
            two[1] - two[0]
        };
        let mut order: Vec<(f32, usize)> = (0..rows.len()).map(|i| (regret(i), i)).collect();
        order.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        for (_, i) in order {
            // Groups beyond the centres are there for rows that find no room.
            let open = (0..words).filter(|&k| groups[k].len() < room);
            let cost = |k: usize| distances[i].get(k).copied().unwrap_or(f32::MAX);
            let best = open.min_by(|&a, &b| cost(a).total_cmp(&cost(b)));
            groups[best.expect("as many places as rows")].push(i);
        }
        drop(distances);
        for (k, group) in groups.iter_mut().enumerate() {
            group.sort_unstable();
            let rows: Vec<usize> = group.iter().map(|&i| rows[i]).collect();
            rows.iter().for_each(|&row| codes[row * slices + level] = k as u16);
            self.split(&rows, level + 1, weights, mixed(seed ^ k as u64), codes)?;
        }
        Ok(())
    }
}
