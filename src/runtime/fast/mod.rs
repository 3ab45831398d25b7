//! The forward pass that computes only what is read: [`Encoder::forward`] where nobody watches.
//!
//! It gives what the plain one gives (the tests compare them). Tokens that a layer drops have no query beyond
//! what ranks them, no context, no output projection and no feed-forward block there; of the last layer of a model
//! whose head reads the first token, only that token is computed.

#[cfg(test)]
mod tests;

use super::encoder::{Encoder, Inputs, RunAttention, RunLayer};
use super::forward::AttentionState;
use super::forward::NoObserver;
use super::kernels::arena::Held;
use super::kernels::{self, Mat, MatMut, arena};
use super::tokens::{Frozen, Importance, States, rows};
use super::{Batch, Dense, Output};
use crate::Result;
use crate::model::{Reads, Score, TokenSchedule};
use rayon::prelude::*;

/// Which tokens leave a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leaves<'a> {
    All,
    /// The first of each text: all that the head reads.
    Firsts,
    /// Those that rank high enough.
    Ranked(&'a TokenSchedule),
}

/// Tokens of texts that go through all layers together: what a layer makes of them stays in the second-level cache. Groups are
/// cut without regard to threads, and share them.
const GROUP: usize = 256;

impl Encoder<'_> {
    /// [`Encoder::forward`] with nobody looking on.
    pub(super) fn forward_fast(&self, batch: &Batch) -> Result<Output> {
        let groups = groups(batch);
        if groups.len() <= 1 {
            let states = self.finish(0, self.embed(batch)?, batch);
            let output = self.answer(&states.batch, &states.x, None);
            arena::give(states.x);
            return Ok(output);
        }
        let outputs = groups.par_iter().map(|group| self.forward_fast(group));
        let outputs: Vec<Output> = outputs.collect::<Result<_>>()?;
        let pooled = outputs.iter().map(|o| o.pooled.as_deref()).collect::<Option<Vec<_>>>();
        Ok(Output {
            values: outputs.iter().flat_map(|o| &o.values).copied().collect(),
            width: outputs[0].width,
            per_token: outputs[0].per_token,
            pooled: pooled.map(|pooled| pooled.concat()),
        })
    }

    /// See [`Leaves`].
    pub fn leaves(&self, layer: usize) -> Leaves<'_> {
        if self.model.reads() == Reads::First && self.last_attention() == Some(layer) {
            return Leaves::Firsts;
        }
        match &self.tokens {
            Some(schedule) if schedule.layers[layer].is_some() => Leaves::Ranked(schedule),
            _ => Leaves::All,
        }
    }

    /// The last step where tokens see each other.
    fn last_attention(&self) -> Option<usize> {
        (0..self.steps()).rposition(|step| self.attends(self.layer_of(step)))
    }

    /// Goes through the steps of `range`. `states` are those before it, of what is left by then.
    fn through<'b>(
        &self,
        range: std::ops::Range<usize>,
        mut states: States<'b>,
        mut frozen: Option<&mut Frozen>,
    ) -> States<'b> {
        for l in range {
            let layer = &*self.run_layer(self.layer_of(l));
            let leaves = self.leaves(l);
            match (leaves, &mut frozen) {
                (Leaves::All, _) => {
                    let x = std::mem::take(&mut states.x);
                    states.x = self.layer(l, layer, x, &states.batch, None, &mut NoObserver);
                }
                (Leaves::Ranked(schedule), Some(frozen)) => {
                    let mut ranks = Ranks::new(schedule, l, layer, &states.batch);
                    let x = std::mem::take(&mut states.x);
                    states.x = self.layer(l, layer, x, &states.batch, None, &mut ranks);
                    let kept = ranks.kept();
                    frozen.drop(&states.x, &kept);
                    states = states.into_selected(&kept);
                }
                (_, _) if layer.bottleneck.is_some() => {
                    let x = std::mem::take(&mut states.x);
                    let batch = &states.batch;
                    states.x = self.layer(self.layer_of(l), layer, x, batch, None, &mut NoObserver);
                    let firsts = states.batch.firsts().to_vec();
                    states = states.into_selected(&firsts);
                }
                (_, _) => {
                    if let Some(attention) = &layer.attention {
                        states = self.attend_and_leave(l, attention, states, leaves);
                    }
                    if let Some(ffn) = &layer.ffn {
                        let x = ffn.run(&states.x);
                        arena::give(std::mem::replace(&mut states.x, x));
                    }
                }
            }
        }
        states
    }

    /// The last states of what the head reads, from `x`, hidden state `layer` of all tokens of `batch`.
    pub fn finish<'b>(&self, layer: usize, x: Vec<f32>, batch: &'b Batch) -> States<'b> {
        let mut states = States::of(x, batch);
        let reads = self.model.reads();
        if reads == Reads::First && self.last_attention().is_none() {
            states = states.select(batch.firsts());
        }
        let layers = layer..self.steps();
        if reads != Reads::Every || self.tokens.is_none() {
            let mut last = self.through(layers, states, None);
            if let Some(norm) = &self.final_norm {
                norm.apply(&mut last.x);
            }
            return last;
        }
        let mut frozen = Frozen::new(batch);
        let last = self.through(layers, states, Some(&mut frozen));
        frozen.thaw(&last.x)
    }

    /// An attention block for the tokens that leave it.
    fn attend_and_leave<'b>(
        &self,
        layer: usize,
        attention: &RunAttention,
        states: States<'b>,
        leaves: Leaves,
    ) -> States<'b> {
        let States { x, batch } = &states;
        let tokens = batch.tokens();
        let width = attention.heads.len() * attention.head_dim;
        let hidden = attention.output.out;
        if attention.binary.is_some() {
            return self.attend_by_signs(layer, attention, states, leaves);
        }
        let input = attention.norm.input(x);
        let x = &*input;
        let (dim, positions) = (attention.head_dim, &attention.positions);
        let query = |of: &[usize]| {
            let inputs = rows(x, hidden, of);
            let mut queries = attention.query.forward_rows(&inputs, of.len());
            arena::give(inputs);
            let at = of.iter().map(|&t| batch.positions[t]);
            positions.turn(&mut queries, (width, width, dim), at);
            queries
        };
        let mut kv = key_value(&attention.key, &attention.value, x, tokens);
        positions.turn(&mut kv, (2 * width, width, dim), batch.positions.iter().copied());
        let firsts = batch.firsts();
        // At once what the longest text needs: what grows on the way would be another room in each pass.
        let longest = batch.longest();
        let queries = if let Leaves::Ranked(_) = leaves { longest } else { 1 };
        let mut probs = arena::room(attention.heads.len() * queries * longest);
        let (kept, context) = match leaves {
            Leaves::Ranked(schedule) if schedule.score == Score::Received => {
                let queries = attention.query.forward_rows(x, tokens);
                let mut importance = Importance::new(schedule.score, tokens);
                let (mut kept, mut context) = (Vec::new(), arena::room(tokens * width));
                context.clear();
                for span in batch.starts.windows(2) {
                    let (from, len) = (span[0], span[1] - span[0]);
                    let bias = self.score_bias(&batch.positions[from..from + len]);
                    let all: Vec<usize> = (from..from + len).collect();
                    let text = Text { queries: &queries, kv: &kv, tokens, from, len };
                    self.probabilities_of(
                        attention,
                        &text,
                        &all,
                        from,
                        bias.as_deref(),
                        &mut probs,
                    );
                    for probs in probs.chunks_exact(len * len) {
                        importance.add(from, len, attention.heads.len(), probs);
                    }
                    let left: Vec<usize> =
                        importance.kept_of(schedule, layer, batch, from..from + len).collect();
                    let local: Vec<usize> = left.iter().map(|t| t - from).collect();
                    let of_text = text.context(attention, &probs, Some(&local), len);
                    context.extend_from_slice(&of_text);
                    arena::give_all([of_text, bias.unwrap_or_default()]);
                    kept.extend(left);
                }
                arena::give(queries);
                (kept, context)
            }
            _ => {
                let mut kept = firsts.to_vec();
                if let Leaves::Ranked(schedule) = leaves {
                    let queries = query(firsts);
                    let mut importance = Importance::new(schedule.score, tokens);
                    for (i, span) in batch.starts.windows(2).enumerate() {
                        let (from, len) = (span[0], span[1] - span[0]);
                        let bias = self.score_bias(&batch.positions[from..from + len]);
                        let text = Text { queries: &queries, kv: &kv, tokens, from, len };
                        self.probabilities_of(
                            attention,
                            &text,
                            &[from],
                            i,
                            bias.as_deref(),
                            &mut probs,
                        );
                        for probs in probs.chunks_exact(len) {
                            importance.add(from, len, attention.heads.len(), probs);
                        }
                        arena::give(bias.unwrap_or_default());
                    }
                    arena::give(queries);
                    kept = importance.kept(schedule, layer, batch);
                }
                let queries = query(&kept);
                let mut context = arena::room(kept.len() * width);
                context.clear();
                let mut row = 0;
                for span in batch.starts.windows(2) {
                    let (from, len) = (span[0], span[1] - span[0]);
                    let count = kept[row..].partition_point(|&t| t < span[1]);
                    let bias = self.score_bias(&batch.positions[from..from + len]);
                    let text = Text { queries: &queries, kv: &kv, tokens, from, len };
                    let mine = &kept[row..row + count];
                    self.probabilities_of(attention, &text, mine, row, bias.as_deref(), &mut probs);
                    let of_text = text.context(attention, &probs, None, count);
                    context.extend_from_slice(&of_text);
                    arena::give_all([of_text, bias.unwrap_or_default()]);
                    row += count;
                }
                arena::give(queries);
                (kept, context)
            }
        };
        arena::give_all([kv, probs]);
        drop(input);
        let left = states.into_selected(&kept);
        attended(attention, context, left)
    }

    /// As [`Encoder::attend_and_leave`], of signs: what those that leave are spared is their output projection.
    fn attend_by_signs<'b>(
        &self,
        layer: usize,
        attention: &RunAttention,
        states: States<'b>,
        leaves: Leaves,
    ) -> States<'b> {
        let States { x, batch } = &states;
        let heads = attention.heads.len();
        let schedule = match leaves {
            Leaves::Ranked(schedule) => Some(schedule),
            Leaves::All | Leaves::Firsts => None,
        };
        let mut importance = schedule.map(|s| Importance::new(s.score, batch.tokens()));
        let mut seen = |_: usize, text: usize, probs: &mut [f32]| {
            let (from, to) = (batch.starts[text], batch.starts[text + 1]);
            if let Some(importance) = &mut importance {
                importance.add(from, to - from, heads, probs);
            }
        };
        let AttentionState { qkv, context } =
            self.attention_context(attention, x, batch, None, &mut seen);
        let kept = match (schedule, &importance) {
            (Some(schedule), Some(importance)) => importance.kept(schedule, layer, batch),
            _ => batch.firsts().to_vec(),
        };
        let some = rows(&context, heads * attention.head_dim, &kept);
        arena::give_all([qkv, context]);
        attended(attention, some, states.into_selected(&kept))
    }

    /// Probabilities of all heads for the queries in rows `row..` of `text.queries`, those of the tokens at
    /// `of`: `[heads, queries, len]`, into `out`.
    fn probabilities_of(
        &self,
        attention: &RunAttention,
        text: &Text,
        of: &[usize],
        row: usize,
        bias: Option<&[f32]>,
        out: &mut Vec<f32>,
    ) {
        let (heads, dim, len) = (attention.heads.len(), attention.head_dim, text.len);
        let (width, count) = (heads * dim, of.len());
        let scale = self.score_scale(dim);
        out.clear();
        out.resize(heads * count * len, 0.0);
        let rows = text.queries.len() / width.max(1);
        for head in 0..heads {
            let probs = &mut out[head * count * len..(head + 1) * count * len];
            let q = Mat::new(text.queries, rows, width).columns(head * dim, dim).block(row, count);
            let k = text.keys(width, head * dim, dim);
            kernels::product(MatMut::new(probs, count, len), q, k.t(), scale);
            self.add_distances(attention, head, q, k, |i| of[i] - text.from, probs);
            for (&token, probs) in of.iter().zip(probs.chunks_exact_mut(len)) {
                if let Some(bias) = bias {
                    let from = (attention.heads[head] * len + token - text.from) * len;
                    probs.iter_mut().zip(&bias[from..]).for_each(|(p, b)| *p += b);
                }
                attention.positions.softmax(probs, token - text.from);
            }
        }
    }
}

/// The texts of `batch` in groups of at most [`GROUP`] tokens, or of one text.
fn groups(batch: &Batch) -> Vec<Batch> {
    let mut groups = Vec::new();
    let mut from = 0;
    while from < batch.texts() {
        let end = batch.starts[from] + GROUP;
        let to = (batch.starts.partition_point(|&start| start <= end) - 1).max(from + 1);
        groups.push(batch.part(from, to.min(batch.texts())));
        from = to;
    }
    groups
}

/// One text of a batch, within attention.
struct Text<'a> {
    /// `[some tokens, heads · head_dim]`
    queries: &'a [f32],
    /// `[tokens, 2 · heads · head_dim]`: key and value side by side.
    kv: &'a [f32],
    tokens: usize,
    from: usize,
    len: usize,
}

impl Text<'_> {
    fn keys(&self, width: usize, column: usize, dim: usize) -> Mat<'_> {
        Mat::new(self.kv, self.tokens, 2 * width).columns(column, dim).block(self.from, self.len)
    }

    /// What the heads make of `probs`, `[heads, queries, len]`, for the queries at `kept` (all of them):
    /// `[queries, heads · head_dim]`.
    fn context(
        &self,
        attention: &RunAttention,
        probs: &[f32],
        kept: Option<&[usize]>,
        queries: usize,
    ) -> Vec<f32> {
        let (heads, dim) = (attention.heads.len(), attention.head_dim);
        let (width, count) = (heads * dim, kept.map_or(queries, <[usize]>::len));
        let mut context = arena::room(count * width);
        for head in 0..heads {
            let all = &probs[head * queries * self.len..(head + 1) * queries * self.len];
            let probs = match kept {
                Some(kept) => Held::Room(rows(all, self.len, kept)),
                None => Held::Borrowed(all),
            };
            let out = MatMut::new(&mut context, count, width).columns(head * dim, dim);
            let value = self.keys(width, width + head * dim, dim);
            kernels::product(out, Mat::new(&probs, count, self.len), value, 1.0);
        }
        context
    }
}

/// What an attention block makes of `context`, `[tokens, heads · head_dim]`, and the states before it.
fn attended<'b>(attention: &RunAttention, context: Vec<f32>, mut states: States<'b>) -> States<'b> {
    let x = attention.finish(&context, &states.x);
    arena::give(context);
    arena::give(std::mem::replace(&mut states.x, x));
    states
}

/// `[tokens, 2 · heads · head_dim]`
fn key_value(key: &Dense, value: &Dense, x: &[f32], tokens: usize) -> Vec<f32> {
    let width = key.out;
    let mut kv = arena::room(tokens * 2 * width);
    if width == 0 {
        return kv;
    }
    let inputs = Inputs::new(x, tokens);
    for (i, linear) in [key, value].into_iter().enumerate() {
        let out = MatMut::new(&mut kv, tokens, 2 * width).columns(i * width, width);
        linear.multiply(&inputs, out);
    }
    kv
}

/// Ranks the tokens of a layer by what is seen of its attention.
pub(super) struct Ranks<'a> {
    schedule: &'a TokenSchedule,
    layer: usize,
    heads: usize,
    batch: &'a Batch,
    importance: Importance,
}

impl<'a> Ranks<'a> {
    pub fn new(
        schedule: &'a TokenSchedule,
        layer: usize,
        of: &RunLayer,
        batch: &'a Batch,
    ) -> Ranks<'a> {
        let heads = of.attention.as_ref().map_or(0, |a| a.heads.len());
        let importance = Importance::new(schedule.score, batch.tokens());
        Ranks { schedule, layer, heads, batch, importance }
    }

    pub fn add(&mut self, text: usize, probs: &[f32]) {
        let span = &self.batch.starts[text..text + 2];
        self.importance.add(span[0], span[1] - span[0], self.heads, probs);
    }

    pub fn kept(&self) -> Vec<usize> {
        self.importance.kept(self.schedule, self.layer, self.batch)
    }
}

impl super::Observer for Ranks<'_> {
    fn attention(&mut self, _layer: usize, _head: usize, text: usize, probs: &[f32]) {
        self.add(text, probs);
    }
}
