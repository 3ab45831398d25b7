//! From a batch to hidden states to answers.

use super::Batch;
use super::binary::Operands;
use super::encoder::{
    Dense, Encoder, Inputs, RunAttention, RunFeedForward, RunHead, RunLayer, RunNorm, add_table_row,
};
use super::fast::Ranks;
use super::kernels::{self, Mat, MatMut, arena};
use super::lookup::Lookup;
use super::masked::{Channels, apply_norm, block_output, scale};
use super::tokens::{Frozen, States};
use crate::model::family::{Positions, Project};
use crate::model::slice::Masks;
use crate::model::{Model, PoolMode, Reads};
use crate::{Error, Result};
use std::sync::LazyLock;

/// The linear layers of a layer, by the input they share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Site {
    /// Query, key and value.
    QueryKeyValue,
    /// DeBERTa: keys and queries of distances.
    Distances,
    /// MobileBERT: the ways into a layer's narrow stream.
    Narrow,
    /// MobileBERT: values, where they are not made of what queries and keys are made of.
    Value,
    /// MobileBERT: of the feed-forward block of this number before the layer's own.
    MoreUp(usize),
    MoreDown(usize),
    /// MobileBERT: the way out.
    Widen,
    AttentionOutput,
    Up,
    Down,
}

impl Site {
    /// Where the linear layer of this role in [`crate::model::Layer::linears`] stands; of blocks that follow each other,
    /// in the first.
    ///
    /// # Panics
    /// If there is no such role.
    pub fn of(role: &str) -> Site {
        match role {
            "query" | "key" | "value" => Site::QueryKeyValue,
            "distance_key" | "distance_query" => Site::Distances,
            "narrow" => Site::Narrow,
            "wide_value" => Site::Value,
            "more_up" => Site::MoreUp(0),
            "more_down" => Site::MoreDown(0),
            "widen" => Site::Widen,
            "attention_output" => Site::AttentionOutput,
            "up" | "gate" => Site::Up,
            "down" => Site::Down,
            _ => panic!("no linear layer is a `{role}`"),
        }
    }
}

/// Sees what passes by in a forward pass. Every method does nothing unless overridden.
///
/// A `step` is one layer run; it is the layer's number but where layers are run again (ALBERT).
pub trait Observer {
    /// The input of the linear layers at `site` of `layer`: `[tokens, in]`.
    fn linear_input(&mut self, _layer: usize, _site: Site, _x: &[f32]) {}

    /// Probabilities of one head (by its position among those left) of one text of the batch:
    /// `[tokens, tokens]` of that text.
    fn attention(&mut self, _step: usize, _head: usize, _text: usize, _probs: &[f32]) {}

    /// Hidden state `index`, `[tokens, hidden]`: 0 after the embeddings, `s + 1` after step `s`, the last one as the head
    /// gets it.
    ///
    /// Under a token schedule, of the tokens that entered step `s`.
    fn hidden(&mut self, _index: usize, _x: &[f32]) {}

    /// Of the tokens that entered `step`, those at `kept` go on. Comes after its hidden state.
    fn kept(&mut self, _step: usize, _kept: &[usize]) {}

    /// Whether it looks at all. Where nobody does, what no head reads is not computed.
    fn watches(&self) -> bool {
        true
    }
}

/// Watches nothing.
#[derive(Debug)]
pub struct NoObserver;

impl Observer for NoObserver {
    fn watches(&self) -> bool {
        false
    }
}

/// Has everything computed, and looks at nothing.
#[derive(Debug)]
pub struct Everything;

impl Observer for Everything {}

/// Looks on for another, and ranks tokens by the way.
struct Watch<'a, 'b> {
    observer: &'a mut dyn Observer,
    step: usize,
    ranks: Option<Ranks<'b>>,
}

impl Observer for Watch<'_, '_> {
    fn linear_input(&mut self, layer: usize, site: Site, x: &[f32]) {
        self.observer.linear_input(layer, site, x);
    }

    fn attention(&mut self, _layer: usize, head: usize, text: usize, probs: &[f32]) {
        self.observer.attention(self.step, head, text, probs);
        if let Some(ranks) = &mut self.ranks {
            ranks.add(text, probs);
        }
    }
}

/// What the head says.
#[derive(Debug, Clone, PartialEq)]
pub struct Output {
    /// `[texts or tokens, width]`: logits, embeddings, or token states.
    pub values: Vec<f32>,
    pub width: usize,
    /// One row a token instead of one a text.
    pub per_token: bool,
    /// BERT's pooler output, `[texts, hidden]`, of a bare encoder that has one.
    pub pooled: Option<Vec<f32>>,
}

/// What attention computes besides its result: the reference that gradients go back through.
#[derive(Debug, Default)]
pub struct AttentionState {
    /// `[tokens, 3 · heads · head_dim]`: query, key and value side by side.
    pub qkv: Vec<f32>,
    /// `[tokens, heads · head_dim]`
    pub context: Vec<f32>,
}

impl Encoder<'_> {
    /// Runs a batch through embeddings, layers and head.
    ///
    /// `masks` multiplies heads, units, blocks and hidden dimensions; `observer` sees the way.
    ///
    /// # Errors
    /// If a token, a type or a position is outside the model's tables.
    pub fn forward(
        &self,
        batch: &Batch,
        masks: Option<&Masks>,
        observer: &mut dyn Observer,
    ) -> Result<Output> {
        if masks.is_none() && !observer.watches() {
            return self.forward_fast(batch);
        }
        let states = self.hidden(batch, masks, observer)?;
        Ok(self.answer(&states.batch, &states.x, masks))
    }

    /// The last hidden state, of the tokens that the head reads at least.
    ///
    /// # Errors
    /// As [`Encoder::forward`].
    pub fn hidden<'b>(
        &self,
        batch: &'b Batch,
        masks: Option<&Masks>,
        observer: &mut dyn Observer,
    ) -> Result<States<'b>> {
        if masks.is_none() && !observer.watches() {
            return Ok(self.finish(0, self.embed(batch)?, batch));
        }
        let mut states = States::of(self.embed_under(batch, masks)?, batch);
        let mut frozen = (self.model.reads() == Reads::Every).then(|| Frozen::new(batch));
        observer.hidden(0, &states.x);
        let last = self.steps();
        for step in 0..last {
            let l = self.layer_of(step);
            let layer = &*self.run_layer(l);
            let schedule = self.tokens.as_ref().filter(|s| s.layers[step].is_some());
            let ranks = schedule.map(|s| Ranks::new(s, step, layer, &states.batch));
            let mut watch = Watch { observer: &mut *observer, step, ranks };
            let x = std::mem::take(&mut states.x);
            let x = self.layer(l, layer, x, &states.batch, masks, &mut watch);
            let kept = watch.ranks.map(|ranks| ranks.kept());
            states.x = x;
            if let Some(norm) = self.final_norm.as_ref().filter(|_| step + 1 == last) {
                norm.apply(&mut states.x);
            }
            observer.hidden(step + 1, &states.x);
            if let Some(kept) = kept {
                observer.kept(step, &kept);
                if let Some(frozen) = &mut frozen {
                    frozen.drop(&states.x, &kept);
                }
                states = states.select(&kept);
            }
        }
        Ok(match frozen {
            Some(frozen) => frozen.thaw(&states.x),
            None => states,
        })
    }

    /// One layer over `x`, `[tokens, hidden]`.
    pub fn layer(
        &self,
        index: usize,
        layer: &RunLayer,
        mut x: Vec<f32>,
        batch: &Batch,
        masks: Option<&Masks>,
        observer: &mut dyn Observer,
    ) -> Vec<f32> {
        if let Some(neck) = &layer.bottleneck {
            return self.through_bottleneck(index, (layer, neck), x, batch, observer);
        }
        let channels = Channels::of(masks);
        let channels = channels.as_ref();
        let block = |of: fn(&Masks) -> &Vec<f32>| masks.map_or(1.0, |m| of(m)[index]);
        let (attends, feeds) = (block(|m| &m.attention), block(|m| &m.ffn));
        let tokens = batch.tokens();
        if let Some(attention) = layer.attention.as_ref().filter(|_| attends != 0.0) {
            let input = attention.norm.input(&x);
            observer.linear_input(index, Site::QueryKeyValue, &input);
            if let Some(table) = &self.distances {
                observer.linear_input(index, Site::Distances, table);
            }
            let heads = masks.map(|m| m.heads[index].as_slice());
            let mut seen = |head: usize, text: usize, probs: &mut [f32]| {
                observer.attention(index, head, text, probs);
            };
            let state = self.attention_context(attention, &input, batch, heads, &mut seen);
            drop(input);
            observer.linear_input(index, Site::AttentionOutput, &state.context);
            let y = block_output(&attention.output, &state.context, tokens, attends, channels);
            x.iter_mut().zip(&y).for_each(|(x, y)| *x += y);
            arena::give_all([y, state.qkv, state.context]);
            if attention.norm.follows() {
                apply_norm(&attention.norm, channels, &mut x);
            }
        }
        if let Some(ffn) = layer.ffn.as_ref().filter(|_| feeds != 0.0) {
            if masks.is_none() && !observer.watches() {
                let y = ffn.run(&x);
                arena::give(x);
                return y;
            }
            let input = ffn.norm.input(&x);
            observer.linear_input(index, Site::Up, &input);
            let mut units = ffn.units(&input);
            drop(input);
            if let Some(mask) = masks.map(|m| &m.units[index]).filter(|m| !m.is_empty()) {
                for row in units.chunks_exact_mut(mask.len()) {
                    row.iter_mut().zip(mask).for_each(|(u, m)| *u *= m);
                }
            }
            observer.linear_input(index, Site::Down, &units);
            let y = block_output(&ffn.down, &units, tokens, feeds, channels);
            x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
            if ffn.norm.follows() {
                apply_norm(&ffn.norm, channels, &mut x);
            }
        }
        x
    }

    /// Hidden state 0, `[tokens, hidden]`.
    ///
    /// # Errors
    /// As [`Encoder::forward`].
    pub fn embed(&self, batch: &Batch) -> Result<Vec<f32>> {
        self.embed_under(batch, None)
    }

    fn embed_under(&self, batch: &Batch, masks: Option<&Masks>) -> Result<Vec<f32>> {
        let channels = Channels::of(masks);
        let mut x = self.embedding_sum(batch)?;
        if let Some(project) = self.project.as_ref().filter(|_| !self.projects_words()) {
            self.norm.apply(&mut x);
            x = project.forward(&x);
            scale(&mut x, 1.0, channels.as_ref());
            return Ok(x);
        }
        scale(&mut x, 1.0, channels.as_ref());
        apply_norm(&self.norm, channels.as_ref(), &mut x);
        Ok(x)
    }

    /// Whether the projection is of words alone.
    fn projects_words(&self) -> bool {
        matches!(self.model.family.project, Some(Project::Words(_)))
    }

    /// What the LayerNorm of the embeddings sees, `[tokens, embedding]`.
    ///
    /// # Errors
    /// As [`Encoder::forward`].
    pub fn embedding_sum(&self, batch: &Batch) -> Result<Vec<f32>> {
        let config = &self.model.config;
        let width = config.embedding;
        let positions = position_rows(self.model, batch);
        let outside = |what: &str, found: usize, rows: usize, advice| {
            Err(Error::Mismatch {
                found: format!("a text has {what} {found}"),
                expected: format!("the model has {rows} (numbered from 0)"),
                advice,
            })
        };
        if let Some(&id) = batch.ids.iter().find(|&&id| id as usize >= config.vocab) {
            let advice = "use the tokenizer that belongs to the checkpoint";
            return outside("token id", id as usize, config.vocab, advice);
        }
        let projected = match self.project.as_ref().filter(|_| self.projects_words()) {
            Some(project) => Some(self.projected_words(project, batch)?),
            None => None,
        };
        let width = if projected.is_some() { config.hidden } else { width };
        let looked_up = match (&self.word, &projected) {
            (None, None) => Lookup::of(&self.model.embeddings.word, &batch.ids),
            _ => None,
        };
        let mut x = arena::zeros(batch.tokens() * width);
        for (t, out) in x.chunks_exact_mut(width).enumerate() {
            let (id, position) = (batch.ids[t] as usize, positions[t] as usize);
            let token_type = batch.type_ids[t] as usize;
            if position >= config.max_positions {
                let advice =
                    "give shorter texts: --max-length cuts them, where they are read as text";
                return outside("a token at position row", position, config.max_positions, advice);
            }
            let add = |table: &[f32], row: usize, out: &mut [f32]| {
                let values = &table[row * width..(row + 1) * width];
                out.iter_mut().zip(values).for_each(|(o, v)| *o += v);
            };
            match (&self.word, &looked_up) {
                _ if projected.is_some() => {}
                (Some(table), _) => add(table, id, out),
                (None, Some(rows)) => add(rows.row(id as u32), 0, out),
                (None, None) => add_table_row(&self.model.embeddings.word, id, out)?,
            }
            if let Some(table) = &self.position {
                add(table, position, out);
            }
            if let Some(table) = &self.token_type {
                let row = self.token_type_row(token_type);
                if row >= config.token_types {
                    let advice = "use the tokenizer that belongs to the checkpoint";
                    return outside("token type", row, config.token_types, advice);
                }
                add(table, row, out);
            }
            if let Some(row) = &self.task_type {
                add(row, 0, out);
            }
        }
        if let Some(words) = projected {
            x.iter_mut().zip(words).for_each(|(x, word)| *x += word);
        }
        Ok(x)
    }

    /// The row of the token type table. RoBERTa has one, and its tokenizers mark the second text all the
    /// same.
    pub fn token_type_row(&self, token_type: usize) -> usize {
        if self.model.config.token_types == 1 { 0 } else { token_type }
    }

    /// Query, key and value of `x`, `[tokens, hidden]`, and what each head makes of them. `seen`
    /// gets head, text and probabilities, which it may change (dropout).
    pub fn attention_context(
        &self,
        attention: &RunAttention,
        x: &[f32],
        batch: &Batch,
        mask: Option<&[f32]>,
        seen: &mut dyn FnMut(usize, usize, &mut [f32]),
    ) -> AttentionState {
        let tokens = batch.tokens();
        let qkv = attention.query_key_value(x, tokens);
        self.context_of(attention, qkv, x, batch, mask, seen)
    }

    /// As [`Encoder::attention_context`], of queries, keys and values that were made of `x`.
    pub(super) fn context_of(
        &self,
        attention: &RunAttention,
        mut qkv: Vec<f32>,
        x: &[f32],
        batch: &Batch,
        mask: Option<&[f32]>,
        seen: &mut dyn FnMut(usize, usize, &mut [f32]),
    ) -> AttentionState {
        let tokens = batch.tokens();
        let (heads, dim) = (attention.heads.len(), attention.head_dim);
        let width = heads * dim;
        let positions = batch.positions.iter().copied();
        attention.positions.turn(&mut qkv, (3 * width, 2 * width, dim), positions);
        let operands = attention.operands(&qkv, x);
        let mut context = arena::room(tokens * width);
        let mut probs = arena::room(batch.longest().pow(2));
        for text in 0..batch.texts() {
            let (from, len) = (batch.starts[text], batch.starts[text + 1] - batch.starts[text]);
            let bias =
                self.score_terms(attention, &operands, &batch.positions[from..from + len], from);
            for head in 0..heads {
                let qkv = &operands.qkv;
                self.probabilities(attention, qkv, from, len, head, bias.as_deref(), &mut probs);
                seen(head, text, &mut probs);
                operands.step(&mut probs);
                let value = qkv_part(qkv, tokens, width, 2, from, len, head * dim, dim);
                let scale = mask.map_or(1.0, |m| m[head]);
                let out = MatMut::new(&mut context, tokens, width)
                    .columns(head * dim, dim)
                    .block(from, len);
                kernels::product(out, Mat::new(&probs, len, len), value, scale);
            }
            arena::give(bias.unwrap_or_default());
        }
        arena::give(probs);
        drop(operands);
        AttentionState { qkv, context }
    }

    /// Attention probabilities of one head in the text at `from..from + len`: `[len, len]`.
    #[allow(clippy::too_many_arguments)] // one text and one head of a batch, named by their places
    pub fn probabilities(
        &self,
        attention: &RunAttention,
        qkv: &[f32],
        from: usize,
        len: usize,
        head: usize,
        bias: Option<&[f32]>,
        probs: &mut Vec<f32>,
    ) {
        let (heads, dim) = (attention.heads.len(), attention.head_dim);
        let width = heads * dim;
        let tokens = qkv.len() / (3 * width);
        probs.resize(len * len, 0.0);
        let part = |which| qkv_part(qkv, tokens, width, which, from, len, head * dim, dim);
        let scale = self.score_scale(dim);
        kernels::product(MatMut::new(probs, len, len), part(0), part(1).t(), scale);
        self.add_distances(attention, head, part(0), part(1), |i| i, probs);
        if let Some(bias) = bias {
            let rows = self.model.config.heads;
            let original = attention.heads[head];
            let bias = &bias[original * len * len..(original + 1) * len * len];
            debug_assert!(original < rows, "head {original} of {rows}");
            probs.iter_mut().zip(bias).for_each(|(p, b)| *p += b);
        }
        for (at, row) in probs.chunks_exact_mut(len).enumerate() {
            attention.positions.softmax(row, at);
        }
    }

    /// What is added to the scores of one text, at `positions` and from row `from` of the batch: MPNet's bias and
    /// what estimators say of it, `[original heads, len, len]`.
    pub fn score_terms(
        &self,
        attention: &RunAttention,
        operands: &Operands,
        positions: &[u32],
        from: usize,
    ) -> Option<Vec<f32>> {
        let bias = self.score_bias(positions);
        let Some(estimates) = &operands.estimates else { return bias };
        let len = positions.len();
        let bracket = estimates.bracket(from, len, 1.0 / (attention.head_dim as f32).sqrt());
        let Some(mut bias) = bias else { return Some(bracket.repeat(self.model.config.heads)) };
        for head in bias.chunks_exact_mut(len * len) {
            head.iter_mut().zip(&bracket).for_each(|(b, e)| *b += e);
        }
        Some(bias)
    }

    /// MPNet's bias for one text, `[original heads, len, len]`.
    pub fn score_bias(&self, positions: &[u32]) -> Option<Vec<f32>> {
        let table = self.relative_bias.as_ref()?;
        static BUCKETS: LazyLock<[usize; 2 * FAR + 1]> =
            LazyLock::new(|| std::array::from_fn(|i| relative_bucket(i as i64 - FAR as i64)));
        let (heads, len) = (self.model.config.heads, positions.len());
        let far = FAR as i64;
        let mut bias = arena::room(heads * len * len);
        for (head, bias) in bias.chunks_exact_mut(len * len).enumerate() {
            let of: [f32; 2 * FAR + 1] = BUCKETS.map(|bucket| table[bucket * heads + head]);
            for (&query, bias) in positions.iter().zip(bias.chunks_exact_mut(len)) {
                for (bias, &key) in bias.iter_mut().zip(positions) {
                    let distance = i64::from(key) - i64::from(query);
                    *bias = of[(distance.clamp(-far, far) + far) as usize];
                }
            }
        }
        Some(bias)
    }

    /// What the head says of the last hidden state, `[tokens, hidden]`, of the tokens of `batch`.
    pub fn answer(&self, batch: &Batch, x: &[f32], masks: Option<&Masks>) -> Output {
        let hidden = self.model.config.hidden;
        let firsts = || -> Vec<f32> {
            let starts = &batch.starts[..batch.texts()];
            starts.iter().flat_map(|&t| &x[t * hidden..(t + 1) * hidden]).copied().collect()
        };
        let per_text = |values, width| Output { values, width, per_token: false, pooled: None };
        let per_token = |values, width| Output { values, width, per_token: true, pooled: None };
        match &self.head {
            RunHead::SequenceClassification { dense, norm, activation, last, mean, out } => {
                let read = if *mean { pooled(batch, x, hidden, PoolMode::Mean) } else { firsts() };
                let mut pooled = pooler(dense, norm.as_ref(), &read);
                kernels::activate(*activation, &mut pooled);
                if let Some(norm) = last {
                    norm.apply(&mut pooled);
                }
                let values = arena::leave(out.forward(&pooled));
                arena::give(pooled);
                per_text(values, out.out)
            }
            RunHead::PerToken(out) => per_token(arena::leave(out.forward(x)), out.out),
            RunHead::MaskedLm { dense, activation, norm, decoder, bias } => {
                let mut states = dense.forward(x);
                kernels::activate(*activation, &mut states);
                let channels = Channels::of(masks).filter(|_| self.project.is_none());
                apply_norm(norm, channels.as_ref(), &mut states);
                let (tokens, vocab, width) = (batch.tokens(), bias.len(), dense.out);
                let mut logits = vec![0.0; tokens * vocab];
                let table = decoder.as_ref().or(self.word.as_ref());
                let decoder = Mat::new(table.expect("a decoder, or a word table"), vocab, width);
                let out = MatMut::new(&mut logits, tokens, vocab);
                kernels::product(out, Mat::new(&states, tokens, width), decoder.t(), 1.0);
                kernels::add_bias(&mut logits, bias);
                arena::give(states);
                per_token(logits, vocab)
            }
            RunHead::Embedding { normalize, .. } => {
                let mut pooled = self.pooled(batch, x);
                if *normalize {
                    normalize_rows(&mut pooled, hidden);
                }
                per_text(pooled, hidden)
            }
            RunHead::Bare { pooler: dense, norm } => {
                let pooled = dense.as_ref().map(|dense| {
                    let mut pooled = pooler(dense, norm.as_ref(), &firsts());
                    kernels::activate(crate::model::Activation::Tanh, &mut pooled);
                    arena::leave(pooled)
                });
                Output { pooled, ..per_token(x.to_vec(), hidden) }
            }
        }
    }
}

impl Encoder<'_> {
    /// Pooled states of an embedding head, `[texts, hidden]`.
    ///
    /// # Panics
    /// If the head is another.
    pub fn pooled(&self, batch: &Batch, x: &[f32]) -> Vec<f32> {
        let RunHead::Embedding { pool, .. } = self.head else { panic!("no embedding head") };
        pooled(batch, x, self.model.config.hidden, pool)
    }
}

/// The states of every text as one, `[texts, hidden]`.
fn pooled(batch: &Batch, x: &[f32], hidden: usize, pool: PoolMode) -> Vec<f32> {
    let text = |span: &[usize]| pool_states(pool, &x[span[0] * hidden..span[1] * hidden], hidden);
    batch.starts.windows(2).flat_map(text).collect()
}

/// `dense(x)`, with a norm `norm(dense(x)) + x`, `[texts, hidden]`: what the activation of a pooler sees.
fn pooler(dense: &Dense, norm: Option<&RunNorm>, x: &[f32]) -> Vec<f32> {
    let mut pooled = dense.forward(x);
    if let Some(norm) = norm {
        norm.apply(&mut pooled);
        pooled.iter_mut().zip(x).for_each(|(p, x)| *p += x);
    }
    pooled
}

/// Scales each row of `x`, `[rows, width]`, to length 1 and returns the lengths they had.
pub fn normalize_rows(x: &mut [f32], width: usize) -> Vec<f32> {
    let normalize = |row: &mut [f32]| {
        let norm = row.iter().map(|x| x * x).sum::<f32>().sqrt().max(1e-12);
        row.iter_mut().for_each(|x| *x /= norm);
        norm
    };
    x.chunks_exact_mut(width).map(normalize).collect()
}

impl RunAttention<'_> {
    /// `[tokens, 3 · heads · head_dim]`: query, key and value side by side.
    pub fn query_key_value(&self, x: &[f32], tokens: usize) -> Vec<f32> {
        let inputs = Inputs::new(x, tokens);
        self.query_key_value_of(&inputs, &inputs)
    }

    /// As [`RunAttention::query_key_value`], with values made of something else.
    pub(super) fn query_key_value_of(&self, x: &Inputs, values: &Inputs) -> Vec<f32> {
        let tokens = x.rows;
        let width = self.heads.len() * self.head_dim;
        let mut qkv = arena::room(tokens * 3 * width);
        if width == 0 {
            return qkv;
        }
        let parts = [(&self.query, x), (&self.key, x), (&self.value, values)];
        for (i, (linear, x)) in parts.into_iter().enumerate() {
            let out = MatMut::new(&mut qkv, tokens, 3 * width).columns(i * width, width);
            linear.multiply(x, out);
        }
        qkv
    }

    /// Output projection, residual and LayerNorm.
    pub fn finish(&self, context: &[f32], residual: &[f32]) -> Vec<f32> {
        let mut y = self.output.forward_rows(context, residual.len() / self.output.out);
        self.norm.apply_sum(&mut y, residual);
        y
    }
}

/// Tokens whose units are computed at once: at width 1536 they take 400 KB, and stay in the second-level cache until they are
/// multiplied again. Matrices that are not packed are read from further away, and want more of them.
const TOKENS: usize = 64;
const TOKENS_F32: usize = 128;

impl RunFeedForward<'_> {
    /// The whole block of `x`, `[tokens, hidden]`.
    pub fn run(&self, x: &[f32]) -> Vec<f32> {
        let (hidden, width) = (self.down.out, self.up.out);
        let most = if self.up.integers.is_some() { TOKENS } else { TOKENS_F32 };
        let mut units = arena::room((x.len() / hidden).min(most) * width);
        let room = if width == 0 { arena::zeros } else { arena::room };
        let mut y = room(x.len());
        for (x, y) in x.chunks(most * hidden).zip(y.chunks_mut(most * hidden)) {
            let tokens = x.len() / hidden;
            units.resize(tokens * width, 0.0);
            let input = self.norm.input(x);
            let inputs = Inputs::new(&input, tokens);
            self.up.multiply(&inputs, MatMut::new(&mut units, tokens, width));
            kernels::activate(self.activation, &mut units);
            self.gate(&inputs, &mut units);
            self.down.multiply(&Inputs::new(&units, tokens), MatMut::new(y, tokens, hidden));
            self.norm.apply_sum(y, x);
        }
        arena::give(units);
        y
    }

    /// The units' values, `[tokens, ffn]`, of what the block multiplies.
    pub fn units(&self, x: &[f32]) -> Vec<f32> {
        let mut units = self.up.forward(x);
        kernels::activate(self.activation, &mut units);
        self.gate(&Inputs::new(x, x.len() / self.up.input), &mut units);
        units
    }

    fn gate(&self, x: &Inputs, units: &mut [f32]) {
        let Some(gate) = &self.gate else { return };
        let mut by = arena::room(units.len());
        gate.multiply(x, MatMut::new(&mut by, x.rows, gate.out));
        units.iter_mut().zip(&by).for_each(|(u, by)| *u *= by);
        arena::give(by);
    }

    /// Second matrix, residual and LayerNorm.
    pub fn finish(&self, units: &[f32], residual: &[f32]) -> Vec<f32> {
        let mut y = self.down.forward_rows(units, residual.len() / self.down.out);
        self.norm.apply_sum(&mut y, residual);
        y
    }
}

/// Columns `column..column + dim` of query (0), key (1) or value (2), rows `from..from + len`.
#[allow(clippy::too_many_arguments)] // a window of a matrix of three matrices
pub fn qkv_part(
    qkv: &[f32],
    tokens: usize,
    width: usize,
    which: usize,
    from: usize,
    len: usize,
    column: usize,
    dim: usize,
) -> Mat<'_> {
    Mat::new(qkv, tokens, 3 * width).columns(which * width + column, dim).block(from, len)
}

/// Rows of the position table, `[tokens]`.
pub fn position_rows(model: &Model, batch: &Batch) -> Vec<u32> {
    let pad = match model.family.positions {
        Positions::FromZero => return batch.positions.clone(),
        Positions::AfterPadding => model.config.pad_id,
        Positions::AfterOne => 1,
    };
    let mut rows = Vec::with_capacity(batch.tokens());
    for span in batch.starts.windows(2) {
        let mut live = 0;
        for &id in &batch.ids[span[0]..span[1]] {
            // A padding id inside a text gets the padding row, as in Transformers.
            live += (id != pad) as u32;
            rows.push(if id == pad { pad } else { pad + live });
        }
    }
    rows
}

/// From here on all distances fall into one bucket.
const FAR: usize = 128;

/// The row of MPNet's table for a key `distance` tokens behind the query: 16 buckets a direction, the
/// upper 8 logarithmic up to 128 (as T5).
pub fn relative_bucket(distance: i64) -> usize {
    let n = distance.unsigned_abs() as usize;
    let side = if distance > 0 { 16 } else { 0 };
    let bucket = if n < 8 {
        n
    } else {
        // In f32, as Transformers computes it: the truncation falls on the same side.
        let log = (n as f32 / 8.0).ln() / ((128.0f64 / 8.0).ln() as f32) * 8.0;
        (8 + log as usize).min(15)
    };
    side + bucket
}

fn pool_states(pool: PoolMode, states: &[f32], hidden: usize) -> Vec<f32> {
    let rows = states.chunks_exact(hidden);
    let count = rows.len() as f32;
    match pool {
        PoolMode::Cls => states[..hidden].to_vec(),
        PoolMode::Mean => {
            let mut sum = vec![0.0; hidden];
            for row in rows {
                sum.iter_mut().zip(row).for_each(|(s, x)| *s += x);
            }
            sum.iter_mut().for_each(|s| *s /= count);
            sum
        }
        PoolMode::Max => {
            let mut max = vec![f32::NEG_INFINITY; hidden];
            for row in rows {
                max.iter_mut().zip(row).for_each(|(m, x)| *m = m.max(*x));
            }
            max
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_fall_into_the_buckets_of_transformers() {
        // relative_position_bucket(torch.tensor([...])), Transformers 5.23.
        let distances = [0, 1, -1, 7, -7, 8, -8, 11, 12, -16, 31, 64, -90, 91, -127, 128, 500];
        let expected = [0, 17, 1, 23, 7, 24, 8, 24, 25, 10, 27, 30, 14, 31, 15, 31, 31];
        assert_eq!(distances.map(relative_bucket), expected);
    }
}
