//! The forward pass that keeps what the way back needs.

use super::keep::{Keep, Left};
use crate::Result;
use crate::model::slice::Masks;
use crate::model::{Reads, Score};
use crate::runtime::kernels::dropout;
use crate::runtime::masked::{Channels, apply_norm, scale};
use crate::runtime::tokens::{Frozen, Importance};
use crate::runtime::{Batch, Encoder, RunAttention, RunFeedForward, RunLayer};
use rayon::prelude::*;
use std::borrow::Cow;

/// What training does to the forward pass.
#[derive(Debug, Clone, Copy, Default)]
pub struct Plan<'a> {
    /// Multipliers of heads, units, blocks and hidden dimensions.
    pub masks: Option<&'a Masks>,
    /// Whether the way back sums gradients of the masks (all 1 where there are none).
    pub mask_gradients: bool,
    /// Which tokens layers keep; `None`: as the encoder's own schedule says.
    pub keep: Option<&'a Keep>,
    /// Which importance of tokens to record, where any.
    pub importance: Option<Score>,
    /// Keep hidden states, query, key and value, and nothing else: there is no way back.
    pub states_only: bool,
    pub dropout: Dropout,
}

/// Rates of dropout, as BERT has it: behind the embeddings and both blocks' outputs (`hidden`), and on
/// attention probabilities. What is dropped depends on `key` and the place alone: for tokens, the place among
/// those of their group that are left.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Dropout {
    pub hidden: f32,
    pub attention: f32,
    pub key: u64,
}

/// Places where dropout draws.
#[derive(Debug, Clone, Copy)]
pub(super) enum DropSite {
    Embeddings,
    Probabilities,
    AttentionOutput,
    Down,
    Head,
}

impl Dropout {
    fn key(&self, layer: usize, site: DropSite, sub: usize) -> u32 {
        // splitmix64, once for each word mixed in.
        let mix = |x: u64| {
            let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            x ^ (x >> 31)
        };
        let place = (layer as u64) << 3 | site as u64;
        (mix(mix(self.key ^ mix(place)) ^ sub as u64) >> 32) as u32
    }

    /// On rows `first..` of the whole batch, each `width` wide; a group with fewer rows than tokens has its
    /// first tokens' places.
    pub(super) fn rows(
        &self,
        x: &mut [f32],
        (layer, site): (usize, DropSite),
        first: usize,
        width: usize,
    ) {
        if self.hidden > 0.0 {
            dropout(x, self.hidden, self.key(layer, site, 0), (first * width) as u32);
        }
    }

    /// On the probabilities of one head of one text of the whole batch.
    pub(super) fn probabilities(&self, probs: &mut [f32], layer: usize, text: usize, head: usize) {
        if self.attention > 0.0 {
            let key = self.key(layer, DropSite::Probabilities, text << 12 | head);
            dropout(probs, self.attention, key, 0);
        }
    }
}

/// What is kept of a group of texts of a batch: `tokens` counts those of the group.
///
/// The way back writes gradients over what it no longer needs: afterwards `sum`, `qkv` and `inner` hold
/// the gradients with respect to the outputs of the linear layers.
#[derive(Debug)]
pub struct Tape {
    pub batch: Batch,
    /// Number of the group's first text and token in the whole batch.
    pub first_text: usize,
    pub first_token: usize,
    /// `[tokens, embedding]`: the sum of the embeddings, without masks.
    pub embedding_sum: Vec<f32>,
    /// `[tokens, embedding]`: what ELECTRA's projection multiplies.
    pub embedding_norm: Option<Vec<f32>>,
    /// `[tokens, hidden]`: what it gives out without masks, where there are any.
    pub projected: Option<Vec<f32>>,
    /// With respect to the projection's output, once the way back has been gone.
    pub embedding_grad: Vec<f32>,
    pub layers: Vec<LayerTape>,
    /// `[tokens, hidden]`: the last hidden state.
    pub last: Vec<f32>,
    /// Whether that is of all tokens, though layers dropped some: those have the state that the layer gave them
    /// where they were dropped.
    pub thawed: bool,
}

impl Tape {
    /// What was left by hidden state `index`; `None`: all tokens.
    fn left(&self, index: usize) -> Option<&Left> {
        let thawed = self.thawed && index == self.layers.len();
        last_left(&self.layers[..index]).filter(|_| !thawed)
    }

    /// The tokens that hidden state `index` has rows for, and so has layer `index`.
    pub fn batch_at(&self, index: usize) -> &Batch {
        self.left(index).map_or(&self.batch, |left| &left.batch)
    }
}

/// The last word of `layers` on which tokens are left; `None`: all.
pub(super) fn last_left(layers: &[LayerTape]) -> Option<&Left> {
    layers.iter().rev().find_map(|layer| layer.left.as_ref())
}

/// Where in a group of `tokens` tokens those stand that are left behind `layers`.
pub(super) fn places(layers: &[LayerTape], tokens: usize) -> Cow<'_, [usize]> {
    last_left(layers).map_or_else(|| (0..tokens).collect(), |left| Cow::Borrowed(&left.tokens[..]))
}

/// `tokens` counts those that are left by then.
#[derive(Debug)]
pub struct LayerTape {
    /// `[tokens, hidden]`: the hidden state that the layer gets.
    pub x: Vec<f32>,
    pub attention: Option<AttentionTape>,
    pub ffn: Option<FeedForwardTape>,
    /// `[tokens]`: what each token gets of attention, before dropout, where [`Plan::importance`] asks for it.
    pub importance: Option<Vec<f32>>,
    /// Which tokens go on, where the layer may drop some.
    pub left: Option<Left>,
}

#[derive(Debug)]
pub struct AttentionTape {
    /// `[tokens, 3 · heads · head_dim]`: query, key and value side by side.
    pub qkv: Vec<f32>,
    /// `[tokens, heads · head_dim]`, masks applied.
    pub context: Vec<f32>,
    /// As `context` without masks, where there are any.
    pub unmasked: Option<Vec<f32>>,
    /// `[tokens, hidden]`: the block's output without the masks of blocks and hidden dimensions, where there
    /// are any.
    pub out: Option<Vec<f32>>,
    /// `[tokens, hidden]`: what the LayerNorm sees.
    pub sum: Vec<f32>,
}

#[derive(Debug)]
pub struct FeedForwardTape {
    /// `[tokens, hidden]`
    pub x: Vec<f32>,
    /// `[tokens, ffn]`: before the activation.
    pub inner: Vec<f32>,
    /// `[tokens, ffn]`: behind it, masks applied.
    pub units: Vec<f32>,
    pub unmasked: Option<Vec<f32>>,
    pub out: Option<Vec<f32>>,
    /// `[tokens, hidden]`: what the LayerNorm sees.
    pub sum: Vec<f32>,
}

/// Tokens of a group: where there are enough of them, 256, which run 1.15 times as fast as 128 (each
/// product packs its weights anew); a small batch makes four groups of at least 64.
const GROUP_TOKENS: (usize, usize) = (64, 256);

/// Cuts a batch into groups of consecutive texts with about the same number of tokens, by its lengths
/// alone: results do not depend on the number of threads.
pub fn groups(batch: &Batch) -> Vec<std::ops::Range<usize>> {
    let tokens = batch.tokens();
    let count = tokens.div_ceil((tokens / 4).clamp(GROUP_TOKENS.0, GROUP_TOKENS.1));
    let mut groups = Vec::new();
    let mut from = 0;
    for text in 1..=batch.texts() {
        let due = tokens * (groups.len() + 1) / count;
        if batch.starts[text] >= due || text == batch.texts() {
            groups.push(from..text);
            from = text;
        }
    }
    groups
}

/// Runs `batch` through the layers of `path`, group by group on all threads.
///
/// A layer drops tokens behind its feed-forward block, by the rank of what they get of its attention; of the
/// heads, those count that no mask closes. A layer without any ranks by position.
///
/// # Errors
/// As [`Encoder::forward`].
pub fn forward(
    encoder: &Encoder,
    path: &[&RunLayer],
    batch: &Batch,
    plan: &Plan,
) -> Result<Vec<Tape>> {
    let own = encoder.tokens.as_ref().filter(|_| plan.keep.is_none()).map(Keep::from);
    let keep = plan.keep.or(own.as_ref()).filter(|keep| keep.schedule.drops());
    let plan = &Plan { keep, ..*plan };
    let group = |g: std::ops::Range<usize>| group(encoder, path, batch, g, plan);
    groups(batch).into_par_iter().map(group).collect()
}

fn group(
    encoder: &Encoder,
    path: &[&RunLayer],
    whole: &Batch,
    texts: std::ops::Range<usize>,
    plan: &Plan,
) -> Result<Tape> {
    let batch = whole.part(texts.start, texts.end);
    let first = (texts.start, whole.starts[texts.start]);
    let embedding_sum = encoder.embedding_sum(&batch)?;
    let channels = Channels::of(plan.masks);
    let channels = channels.as_ref();
    // A projection stands between the tables and the residual stream: the mask is behind it.
    let of_tables = channels.filter(|_| encoder.project.is_none());
    let mut x = embedding_sum.clone();
    scale(&mut x, 1.0, of_tables);
    apply_norm(&encoder.norm, of_tables, &mut x);
    let width = encoder.norm.weight.len();
    plan.dropout.rows(&mut x, (0, DropSite::Embeddings), first.1, width);
    let (mut embedding_norm, mut projected) = (None, None);
    if let Some(project) = &encoder.project {
        let y = project.forward(&x);
        embedding_norm = Some(std::mem::replace(&mut x, y));
        projected = channels.map(|_| x.clone());
        scale(&mut x, 1.0, channels);
    }
    let every = plan.keep.is_some() && encoder.model.reads() == Reads::Every;
    let mut frozen = every.then(|| Frozen::new(&batch));
    let mut layers = Vec::with_capacity(path.len());
    for (l, layer) in path.iter().enumerate() {
        let live = last_left(&layers).map_or(&batch, |left| &left.batch);
        let way = Way { batch: live, first, layer: l, plan };
        let mut tape = LayerTape { x, attention: None, ffn: None, importance: None, left: None };
        let mut ranked_by = None;
        let mut out = None;
        let open = |of: fn(&Masks) -> &Vec<f32>| plan.masks.is_none_or(|m| of(m)[l] != 0.0);
        if let Some(attention) = layer.attention.as_ref().filter(|_| open(|m| &m.attention)) {
            let (kept, [ranks, recorded], y) = attend(encoder, attention, &tape.x, &way);
            tape.attention = Some(kept);
            tape.importance = recorded;
            ranked_by = ranks;
            out = Some(y);
        }
        if let Some(ffn) = layer.ffn.as_ref().filter(|_| open(|m| &m.ffn)) {
            let x = out.take().unwrap_or_else(|| tape.x.clone());
            let (kept, y) = feed_forward(ffn, x, &way);
            tape.ffn = Some(kept);
            out = Some(y);
        }
        x = out.unwrap_or_else(|| tape.x.clone());
        if let Some(keep) = plan.keep.filter(|keep| keep.values[l].is_some()) {
            let scores = ranked_by.unwrap_or_else(|| vec![0.0; live.tokens()]);
            let places = places(&layers, batch.tokens());
            let left = Left::of((keep, l), (live, &places), &scores, &x);
            if let Some(frozen) = &mut frozen {
                frozen.drop(&x, &left.rows());
            }
            x = left.states();
            tape.left = Some(left);
        }
        if plan.states_only {
            tape.ffn = None;
            if let Some(kept) = &mut tape.attention {
                (kept.context, kept.sum) = (Vec::new(), Vec::new());
            }
            if let Some(left) = &mut tape.left {
                left.x = Vec::new();
            }
        }
        layers.push(tape);
    }
    if let Some(frozen) = frozen {
        x = frozen.thaw(&x).x;
    }
    Ok(Tape {
        batch,
        first_text: first.0,
        first_token: first.1,
        embedding_sum,
        embedding_norm,
        projected,
        embedding_grad: Vec::new(),
        layers,
        last: x,
        thawed: every,
    })
}

/// Where in batch and model a block stands.
struct Way<'a> {
    /// What is left of the group.
    batch: &'a Batch,
    /// The group's first text and token in the whole batch.
    first: (usize, usize),
    layer: usize,
    plan: &'a Plan<'a>,
}

impl Plan<'_> {
    /// Whether a head counts in the importance of tokens: not where it is as good as gone.
    pub(super) fn counts(&self, layer: usize, head: usize) -> bool {
        self.masks.is_none_or(|masks| masks.heads[layer].get(head) != Some(&0.0))
    }
}

/// Besides the tape and the block's output: what tokens are ranked by, where the layer drops some, and the
/// importance that is to be recorded.
fn attend(
    encoder: &Encoder,
    attention: &RunAttention,
    x: &[f32],
    way: &Way,
) -> (AttentionTape, [Option<Vec<f32>>; 2], Vec<f32>) {
    let Way { batch, first: (first_text, first_token), layer, plan } = *way;
    let dropping = plan.keep.filter(|keep| keep.values[layer].is_some());
    let scores = [dropping.map(|keep| keep.schedule.score), plan.importance];
    let mut seen = scores.map(|score| score.map(|s| Importance::new(s, batch.tokens())));
    let counted = (0..attention.heads.len()).filter(|&head| plan.counts(layer, head)).count();
    let mut drop = |head: usize, text: usize, probs: &mut [f32]| {
        let (from, to) = (batch.starts[text], batch.starts[text + 1]);
        for importance in seen.iter_mut().flatten().filter(|_| plan.counts(layer, head)) {
            importance.add(from, to - from, counted, probs);
        }
        plan.dropout.probabilities(probs, layer, first_text + text, head);
    };
    let state = encoder.attention_context(attention, x, batch, None, &mut drop);
    let mut context = state.context;
    let mut unmasked = None;
    if let Some(masks) = plan.masks {
        unmasked = Some(context.clone());
        multiply(&mut context, &masks.heads[layer], attention.head_dim);
    }
    let mut sum = attention.output.forward_rows(&context, batch.tokens());
    let out = plan.masks.map(|_| sum.clone());
    let channels = Channels::of(plan.masks);
    scale(&mut sum, plan.masks.map_or(1.0, |m| m.attention[layer]), channels.as_ref());
    let hidden = attention.output.out;
    plan.dropout.rows(&mut sum, (layer, DropSite::AttentionOutput), first_token, hidden);
    sum.iter_mut().zip(x).for_each(|(s, x)| *s += x);
    let mut y = sum.clone();
    apply_norm(&attention.norm, channels.as_ref(), &mut y);
    let seen = seen.map(|importance| importance.map(|i| i.values));
    (AttentionTape { qkv: state.qkv, context, unmasked, out, sum }, seen, y)
}

fn feed_forward(ffn: &RunFeedForward, x: Vec<f32>, way: &Way) -> (FeedForwardTape, Vec<f32>) {
    let Way { first: (_, first_token), layer, plan, .. } = *way;
    let inner = ffn.up.forward(&x);
    let mut units = inner.clone();
    crate::runtime::kernels::activate(ffn.activation, &mut units);
    let mut unmasked = None;
    if let Some(masks) = plan.masks {
        unmasked = Some(units.clone());
        multiply(&mut units, &masks.units[layer], 1);
    }
    let hidden = ffn.down.out;
    let mut sum = ffn.down.forward_rows(&units, x.len() / hidden);
    let out = plan.masks.map(|_| sum.clone());
    let channels = Channels::of(plan.masks);
    scale(&mut sum, plan.masks.map_or(1.0, |m| m.ffn[layer]), channels.as_ref());
    plan.dropout.rows(&mut sum, (layer, DropSite::Down), first_token, hidden);
    sum.iter_mut().zip(&x).for_each(|(s, x)| *s += x);
    let mut y = sum.clone();
    apply_norm(&ffn.norm, channels.as_ref(), &mut y);
    (FeedForwardTape { x, inner, units, unmasked, out, sum }, y)
}

/// Multiplies blocks of `dim` columns of `x` by the numbers of `mask`.
pub(super) fn multiply(x: &mut [f32], mask: &[f32], dim: usize) {
    if mask.is_empty() {
        return;
    }
    for row in x.chunks_exact_mut(mask.len() * dim) {
        for (block, m) in row.chunks_exact_mut(dim).zip(mask) {
            block.iter_mut().for_each(|x| *x *= m);
        }
    }
}

/// Hidden state `index` of the whole batch, `[tokens, hidden]`: 0 after the embeddings, `l + 1` after
/// layer `l`. It has a row for each of [`tokens`].
pub fn hidden(tapes: &[Tape], index: usize) -> Vec<f32> {
    let state = |t: &Tape| t.layers.get(index).map_or(&t.last, |l| &l.x).clone();
    tapes.iter().flat_map(state).collect()
}

/// Query, key and value of `layer` of the whole batch, `[tokens, 3 · heads · head_dim]`; `None` where
/// the attention is gone, or its mask closed. A row for each token of hidden state `layer`.
pub fn qkv(tapes: &[Tape], layer: usize) -> Option<Vec<f32>> {
    let mut all = Vec::new();
    for tape in tapes {
        all.extend_from_slice(&tape.layers[layer].attention.as_ref()?.qkv);
    }
    Some(all)
}

/// What each token of hidden state `layer` gets of the attention of `layer`, `[tokens]`; `None` where the
/// attention is gone, its mask closed, or [`Plan::importance`] asked for nothing.
pub fn importance(tapes: &[Tape], layer: usize) -> Option<Vec<f32>> {
    let mut all = Vec::new();
    for tape in tapes {
        all.extend_from_slice(tape.layers[layer].importance.as_ref()?);
    }
    Some(all)
}

/// Whether hidden state `index` has rows for some of the tokens alone.
pub fn dropped(tapes: &[Tape], index: usize) -> bool {
    tapes.iter().any(|tape| tape.left(index).is_some())
}

/// Where in the whole batch the tokens stand that hidden state `index` has rows for, ascending.
pub fn tokens(tapes: &[Tape], index: usize) -> Vec<usize> {
    let mut all = Vec::new();
    for tape in tapes {
        match tape.left(index) {
            Some(left) => all.extend(left.tokens.iter().map(|t| tape.first_token + t)),
            None => all.extend((0..tape.batch.tokens()).map(|t| tape.first_token + t)),
        }
    }
    all
}

/// Where texts begin among the rows of hidden state `index`, `[texts + 1]`.
pub fn starts(tapes: &[Tape], index: usize) -> Vec<usize> {
    let mut all = vec![0];
    for tape in tapes {
        let before = all[all.len() - 1];
        all.extend(tape.batch_at(index).starts[1..].iter().map(|start| before + start));
    }
    all
}

/// The tokens of `batch` that the last hidden state has rows for.
pub fn left<'b>(tapes: &[Tape], batch: &'b Batch) -> Cow<'b, Batch> {
    let depth = tapes.first().map_or(0, |tape| tape.layers.len());
    match dropped(tapes, depth) {
        true => Cow::Owned(batch.select(&tokens(tapes, depth))),
        false => Cow::Borrowed(batch),
    }
}
