//! Tokens that are dropped on the way: which, and what becomes of the rest (ToP notes, §1, §2 and §6).

use super::Batch;
use super::kernels::arena;
use crate::model::{Score, TokenSchedule};
use std::borrow::Cow;

/// What each token of a batch gets of attention in one layer.
#[derive(Debug, Clone)]
pub struct Importance {
    score: Score,
    /// `[tokens]`: a mean over heads and queries.
    pub values: Vec<f32>,
}

impl Importance {
    /// Of `tokens` tokens, nothing seen yet.
    pub fn new(score: Score, tokens: usize) -> Importance {
        Importance { score, values: vec![0.0; tokens] }
    }

    /// Adds the probabilities of one of `heads` heads, `[queries, len]` with the first token's first, for the
    /// text at `from..from + len`.
    pub fn add(&mut self, from: usize, len: usize, heads: usize, probs: &[f32]) {
        let values = &mut self.values[from..from + len];
        let queries = match self.score {
            Score::First => 1,
            Score::Received => probs.len() / len,
        };
        let share = 1.0 / (heads * queries) as f32;
        for row in probs.chunks_exact(len).take(queries) {
            values.iter_mut().zip(row).for_each(|(v, p)| *v += share * p);
        }
    }

    /// The tokens that `schedule` leaves behind `layer`, ascending.
    pub fn kept(&self, schedule: &TokenSchedule, layer: usize, batch: &Batch) -> Vec<usize> {
        let mut kept = Vec::with_capacity(batch.tokens());
        for span in batch.starts.windows(2) {
            kept.extend(self.kept_of(schedule, layer, batch, span[0]..span[1]));
        }
        kept
    }

    /// As [`Importance::kept`], of the text at `span`.
    pub fn kept_of(
        &self,
        schedule: &TokenSchedule,
        layer: usize,
        batch: &Batch,
        span: std::ops::Range<usize>,
    ) -> impl Iterator<Item = usize> {
        let (ids, scores) = (&batch.ids[span.clone()], &self.values[span.clone()]);
        schedule.kept(layer, ids, scores).into_iter().map(move |t| span.start + t)
    }
}

/// Hidden states of what is left of a batch.
#[derive(Debug, Clone)]
pub struct States<'b> {
    /// `[tokens, hidden]`
    pub x: Vec<f32>,
    /// The tokens that `x` has rows for.
    pub batch: Cow<'b, Batch>,
}

impl<'b> States<'b> {
    /// Of all tokens of a batch.
    pub fn of(x: Vec<f32>, batch: &'b Batch) -> States<'b> {
        States { x, batch: Cow::Borrowed(batch) }
    }

    /// The tokens at `kept`.
    pub fn select(&self, kept: &[usize]) -> States<'b> {
        let width = self.x.len() / self.batch.tokens();
        let x = rows(&self.x, width, kept);
        States { x, batch: Cow::Owned(self.batch.select(kept)) }
    }

    /// As [`States::select`], and the others' room is free.
    pub fn into_selected(self, kept: &[usize]) -> States<'b> {
        let left = self.select(kept);
        arena::give(self.x);
        left
    }
}

/// The rows of `x`, `[rows, width]`, at `kept`.
pub fn rows(x: &[f32], width: usize, kept: &[usize]) -> Vec<f32> {
    let mut out = arena::room(kept.len() * width);
    for (out, &t) in out.chunks_exact_mut(width.max(1)).zip(kept) {
        out.copy_from_slice(&x[t * width..(t + 1) * width]);
    }
    out
}

/// For heads that read every token: the last states of those that are gone.
#[derive(Debug)]
pub struct Frozen<'b> {
    batch: &'b Batch,
    /// `[tokens, hidden]`
    x: Vec<f32>,
    /// Where in the batch the tokens stand that are left.
    live: Vec<usize>,
}

impl<'b> Frozen<'b> {
    /// Nothing gone yet.
    pub fn new(batch: &'b Batch) -> Frozen<'b> {
        Frozen { batch, x: Vec::new(), live: (0..batch.tokens()).collect() }
    }

    /// Of `x`, the states of what was left, only the tokens at `kept` go on.
    pub fn drop(&mut self, x: &[f32], kept: &[usize]) {
        self.keep(x);
        self.live = kept.iter().map(|&t| self.live[t]).collect();
    }

    /// All states in their places, given those of what is left.
    pub fn thaw(mut self, x: &[f32]) -> States<'b> {
        self.keep(x);
        States::of(self.x, self.batch)
    }

    fn keep(&mut self, x: &[f32]) {
        let width = x.len() / self.live.len();
        self.x.resize(self.batch.tokens() * width, 0.0);
        for (&t, row) in self.live.iter().zip(x.chunks_exact(width)) {
            self.x[t * width..(t + 1) * width].copy_from_slice(row);
        }
    }
}
