//! What attention knows of positions besides the tables: turned queries and keys, windows, distances.

use super::encoder::{Dense, Encoder, RunAttention};
use super::kernels::{self, Mat, MatMut, arena};
use crate::Result;
use crate::model::{Attention, Linear, Rotary};
use std::sync::OnceLock;

/// Of one attention block.
#[derive(Debug, Clone, Default)]
pub struct RunPositions<'m> {
    pub rotary: Option<Rotary>,
    /// DeBERTa: what makes keys and queries of distances, where those of words do not.
    pub of_distances: [Option<Dense<'m>>; 2],
    /// What they make, `[2 · span, heads · head_dim]` each, nothing where scores do without: the same for all texts.
    made: OnceLock<[Vec<f32>; 2]>,
}

impl<'m> RunPositions<'m> {
    pub(super) fn with(
        attention: &'m Attention,
        dense: fn(&'m Linear) -> Result<Dense<'m>>,
    ) -> Result<RunPositions<'m>> {
        let [key, query] = &attention.of_distances;
        let made = |linear: &'m Option<Linear>| linear.as_ref().map(dense).transpose();
        Ok(RunPositions {
            rotary: attention.rotary,
            of_distances: [made(key)?, made(query)?],
            made: OnceLock::new(),
        })
    }

    /// Turns the heads in the first `width` columns of `x`, rows of `stride`, that stand at `positions`.
    pub(super) fn turn(
        &self,
        x: &mut [f32],
        (stride, width, dim): (usize, usize, usize),
        positions: impl Iterator<Item = u32>,
    ) {
        let Some(rotary) = self.rotary else { return };
        let half = dim / 2;
        let frequency = |i: usize| 1.0 / rotary.theta.powf(2.0 * i as f32 / dim as f32);
        let (mut frequencies, mut sines, mut cosines) =
            (arena::room(half), arena::room(half), arena::room(half));
        frequencies.iter_mut().enumerate().for_each(|(i, f)| *f = frequency(i));
        for (row, position) in x.chunks_exact_mut(stride.max(1)).zip(positions) {
            let angles = sines.iter_mut().zip(&mut cosines);
            for ((sin, cos), frequency) in angles.zip(&frequencies) {
                (*sin, *cos) = (position as f32 * frequency).sin_cos();
            }
            for head in row[..width].chunks_exact_mut(dim) {
                let (a, b) = head.split_at_mut(half);
                for ((a, b), (sin, cos)) in a.iter_mut().zip(b).zip(sines.iter().zip(&cosines)) {
                    (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
                }
            }
        }
        arena::give_all([frequencies, sines, cosines]);
    }

    /// Makes probabilities of the scores of the token at `at`: 0 outside its window.
    pub(super) fn softmax(&self, scores: &mut [f32], at: usize) {
        match self.rotary.and_then(|rotary| rotary.window) {
            None => kernels::softmax(scores),
            Some(window) => {
                let (from, to) = (at.saturating_sub(window), (at + window + 1).min(scores.len()));
                scores[..from].fill(0.0);
                scores[to..].fill(0.0);
                kernels::softmax(&mut scores[from..to]);
            }
        }
    }
}

impl Encoder<'_> {
    /// What products of queries and keys are multiplied by.
    pub(super) fn score_scale(&self, dim: usize) -> f32 {
        let factor = self.model.config.features.distances.map_or(1, |d| d.factor());
        1.0 / ((dim * factor) as f32).sqrt()
    }

    /// Adds to `scores`, `[queries, keys]` of one head, what queries at `at` and all keys make of their distances.
    pub(super) fn add_distances(
        &self,
        attention: &RunAttention,
        head: usize,
        queries: Mat,
        keys: Mat,
        at: impl Fn(usize) -> usize,
        scores: &mut [f32],
    ) {
        let (Some(distances), Some(table)) =
            (&self.model.config.features.distances, &self.distances)
        else {
            return;
        };
        let (len, dim) = (keys.rows, attention.head_dim);
        let width = attention.heads.len() * dim;
        let [of_keys, of_queries] = attention.positions.made.get_or_init(|| {
            let [key, query] = &attention.positions.of_distances;
            let key = key.as_ref().unwrap_or(&attention.key);
            let query = query.as_ref().unwrap_or(&attention.query);
            let make =
                |wanted: bool, by: &Dense| if wanted { by.forward(table) } else { Vec::new() };
            [make(distances.c2p, key), make(distances.p2c, query)]
        });
        let last = len as i64 - 1;
        let rows: Vec<usize> = (-last..=last).map(|d| distances.row(d)).collect();
        let (from, count) = (rows[0], rows[rows.len() - 1] + 1 - rows[0]);
        let scale = self.score_scale(dim);
        let meet = |x: Mat, made: &[f32]| {
            let made = Mat::new(made, made.len() / width, width).columns(head * dim, dim);
            let mut out = vec![0.0; x.rows * count];
            let to = MatMut::new(&mut out, x.rows, count);
            kernels::product(to, x, made.block(from, count).t(), scale);
            out
        };
        let row = |i: usize, key: usize| rows[at(i) + last as usize - key] - from;
        if distances.c2p {
            let met = meet(queries, of_keys);
            for (i, scores) in scores.chunks_exact_mut(len).enumerate() {
                let met = &met[i * count..(i + 1) * count];
                scores.iter_mut().enumerate().for_each(|(key, s)| *s += met[row(i, key)]);
            }
        }
        if distances.p2c {
            let met = meet(keys, of_queries);
            for (i, scores) in scores.chunks_exact_mut(len).enumerate() {
                let added = scores.iter_mut().enumerate();
                added.for_each(|(key, s)| *s += met[key * count + row(i, key)]);
            }
        }
    }
}
