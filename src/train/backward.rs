//! The way back, by hand.

use super::elastic::{BinaryGradient, ElasticGradient, OperandsGradient};
use super::tape::{
    AttentionTape, DropSite, FeedForwardTape, Plan, Tape, last_left, multiply, places,
};
use crate::model::Score;
use crate::runtime::kernels::{
    Mat, MatMut, activation_gradient, add_product, layer_norm_backward, product, softmax_backward,
};
use crate::runtime::masked::{Channels, scale};
use crate::runtime::tokens::rows;
use crate::runtime::{
    Batch, Dense, Encoder, Operands, RunAttention, RunFeedForward, RunLayer, RunNorm,
    relative_bucket,
};
use rayon::prelude::*;

/// Gradients of a loss with respect to what a forward pass computed, over the whole batch. `tokens` counts
/// those that were left by then, group after group.
#[derive(Debug, Clone, Default)]
pub struct Signal {
    /// `[tokens, hidden]` by index of hidden state, 0 after the embeddings; `None` where the loss does
    /// not look.
    pub hidden: Vec<Option<Vec<f32>>>,
    /// By layer, `[tokens, 3 · heads · head_dim]`.
    pub qkv: Vec<Option<Vec<f32>>>,
    /// By layer, `[tokens]`: with respect to the importance that [`Plan::importance`] asked for.
    pub importance: Vec<Option<Vec<f32>>>,
}

impl Signal {
    /// Of a loss that looks nowhere yet, at a model of `layers` layers.
    pub fn new(layers: usize) -> Signal {
        Signal {
            hidden: vec![None; layers + 1],
            qkv: vec![None; layers],
            importance: vec![None; layers],
        }
    }

    /// Adds `scale · grad` to the gradient with respect to hidden state `index`.
    pub fn add_hidden(&mut self, index: usize, grad: Vec<f32>, scale: f32) {
        add(&mut self.hidden[index], grad, scale);
    }

    /// Adds `scale · grad` to the gradient with respect to query, key and value of `layer`.
    pub fn add_qkv(&mut self, layer: usize, grad: Vec<f32>, scale: f32) {
        add(&mut self.qkv[layer], grad, scale);
    }

    /// Adds `scale · grad` to the gradient with respect to the importance of tokens in `layer`.
    pub fn add_importance(&mut self, layer: usize, grad: Vec<f32>, scale: f32) {
        add(&mut self.importance[layer], grad, scale);
    }
}

fn add(sum: &mut Option<Vec<f32>>, mut grad: Vec<f32>, scale: f32) {
    match sum {
        Some(sum) => sum.iter_mut().zip(grad).for_each(|(s, g)| *s += scale * g),
        None => {
            grad.iter_mut().for_each(|g| *g *= scale);
            *sum = Some(grad);
        }
    }
}

/// What a group's way back gives besides what it leaves in the tape.
#[derive(Debug, Clone)]
pub struct Back {
    /// By layer: scale and shift of the LayerNorms of attention and feed-forward block, `[hidden]` each.
    pub norms: Vec<[NormGradient; 2]>,
    pub embedding_norm: NormGradient,
    /// `[32, heads]`; empty where the model has none.
    pub relative_bias: Vec<f32>,
    /// `[tokens, embedding]`: with respect to the sum of the embeddings.
    pub embedding_sum: Vec<f32>,
    /// By layer, `[texts, heads]`: of each head's mask, by text. Empty unless asked for.
    pub heads: Vec<Vec<f32>>,
    /// By layer, `[texts, units]`.
    pub units: Vec<Vec<f32>>,
    /// By layer, of the masks of blocks, over all texts; 0 where there are no masks, or the block was left out.
    pub attention: Vec<f32>,
    pub ffn: Vec<f32>,
    /// `[hidden]`, of the mask of hidden dimensions that are open, over all texts; zeros where it is all ones.
    pub hidden: Vec<f32>,
    /// By layer, `[bins]`: of the values of [`super::keep::Keep`], over all texts; 0 where the value is 0. Empty
    /// where the layer keeps all tokens.
    pub bins: Vec<Vec<f32>>,
    /// By layer.
    pub binary: Vec<BinaryGradient>,
}

/// Of a LayerNorm's scale and shift; empty where there is none.
#[derive(Debug, Clone, Default)]
pub struct NormGradient {
    pub weight: Vec<f32>,
    pub bias: Vec<f32>,
}

impl NormGradient {
    /// Goes back through `norm`, whose input was `x`: changes `grad` in place. Under `channels` what the mask
    /// gets of it is added to `hidden`.
    pub(super) fn through(
        norm: &RunNorm,
        channels: Option<&Channels>,
        x: &[f32],
        grad: &mut [f32],
        hidden: &mut [f32],
    ) -> NormGradient {
        let zeros = || vec![0.0; norm.weight.len()];
        let mut found = NormGradient { weight: zeros(), bias: zeros() };
        if let Some(channels) = channels {
            if channels.open.is_empty() {
                grad.fill(0.0);
                return found;
            }
            let (x, mut compact) = (channels.gather(x), channels.gather(grad));
            // `h ⊙ LN_h` is a LayerNorm of the open dimensions with scale `h ⊙ γ` and shift `h ⊙ β`.
            let weight = channels.folded(&norm.weight);
            let mut folded = [vec![0.0; weight.len()], vec![0.0; weight.len()]];
            let [by_weight, by_bias] = &mut folded;
            layer_norm_backward(&x, &weight, norm.eps, &mut compact, by_weight, by_bias);
            channels.scatter(&compact, grad);
            for ((&i, w), b) in channels.open.iter().zip(by_weight).zip(by_bias) {
                found.weight[i] = channels.mask[i] * *w;
                found.bias[i] = channels.mask[i] * *b;
                hidden[i] += norm.weight[i] * *w + norm.bias[i] * *b;
            }
            return found;
        }
        let NormGradient { weight, bias } = &mut found;
        layer_norm_backward(x, &norm.weight, norm.eps, grad, weight, bias);
        found
    }
}

/// Goes back from `signal` to the embeddings, group by group on all threads. Tapes are left with the
/// gradients with respect to the outputs of all linear layers, for [`super::weights`].
pub fn backward(
    encoder: &Encoder,
    path: &[&RunLayer],
    tapes: &mut [Tape],
    signal: &Signal,
    plan: &Plan,
) -> Vec<Back> {
    let firsts = first_rows(tapes);
    let groups = tapes.par_iter_mut().zip(&firsts);
    groups.map(|(tape, first)| group(encoder, path, tape, first, signal, plan)).collect()
}

/// By group, and by hidden state: the group's first row in that of the whole batch.
fn first_rows(tapes: &[Tape]) -> Vec<Vec<usize>> {
    let mut next = vec![0; tapes.first().map_or(0, |tape| tape.layers.len() + 1)];
    let first = |tape: &Tape| {
        let first = next.clone();
        next.iter_mut().enumerate().for_each(|(i, next)| *next += tape.batch_at(i).tokens());
        first
    };
    tapes.iter().map(first).collect()
}

fn group(
    encoder: &Encoder,
    path: &[&RunLayer],
    tape: &mut Tape,
    first_rows: &[usize],
    signal: &Signal,
    plan: &Plan,
) -> Back {
    let hidden = encoder.model.config.hidden;
    let depth = path.len();
    let last_rows = tape.batch_at(depth).tokens();
    let Tape { batch: whole, first_text, first_token, .. } = tape;
    let (whole, first_text, first_token) = (&*whole, *first_text, *first_token);
    // The group's part of what a signal says of `tokens` rows of hidden state `index`, or of layer `index`.
    let mine = |signal: &'_ Option<Vec<f32>>, index: usize, tokens: usize, width: usize| {
        let first = first_rows[index];
        signal.as_ref().map(|all| all[first * width..(first + tokens) * width].to_vec())
    };
    let mut grad = mine(&signal.hidden[depth], depth, last_rows, hidden)
        .unwrap_or_else(|| vec![0.0; last_rows * hidden]);
    // With respect to the last states of all tokens, those of dropped ones among them.
    let mut thawed = None;
    if tape.thawed {
        let live = rows(&grad, hidden, &places(&tape.layers, whole.tokens()));
        thawed = Some(std::mem::replace(&mut grad, live));
    }
    let mut back = Back {
        norms: vec![Default::default(); depth],
        embedding_norm: NormGradient::default(),
        relative_bias: vec![0.0; encoder.relative_bias.as_ref().map_or(0, |b| b.len())],
        embedding_sum: Vec::new(),
        heads: vec![Vec::new(); depth],
        units: vec![Vec::new(); depth],
        attention: vec![0.0; depth],
        ffn: vec![0.0; depth],
        hidden: vec![0.0; hidden],
        bins: vec![Vec::new(); depth],
        binary: vec![BinaryGradient::default(); depth],
    };
    let channels = Channels::of(plan.masks);
    let channels = channels.as_ref();
    for (l, layer) in path.iter().enumerate().rev() {
        let (before, kept) = tape.layers.split_at_mut(l);
        let (before, kept) = (&*before, &mut kept[0]);
        let batch = last_left(before).map_or(whole, |left| &left.batch);
        let tokens = batch.tokens();
        let way = Way { batch, first_text, first_token, layer: l, plan, channels };
        if let Some(left) = &kept.left {
            let mut entered = match &thawed {
                Some(all) => rows(all, hidden, &places(before, whole.tokens())),
                None => vec![0.0; tokens * hidden],
            };
            back.bins[l] = left.back(grad, &mut entered);
            grad = entered;
        }
        if let (Some(ffn), Some(kept)) = (&layer.ffn, &mut kept.ffn) {
            (back.norms[l][1], back.units[l]) = feed_forward(
                ffn,
                kept,
                &mut grad,
                &way,
                (&mut back.ffn[l], &mut back.hidden),
                &mut back.binary[l],
            );
        }
        let x = &kept.x;
        if let (Some(attention), Some(kept)) = (&layer.attention, &mut kept.attention) {
            let width = attention.heads.len() * attention.head_dim;
            let injected = Injected {
                qkv: mine(&signal.qkv[l], l, tokens, 3 * width),
                importance: mine(&signal.importance[l], l, tokens, 1),
            };
            let bias = &mut back.relative_bias;
            let masks = (&mut back.attention[l], &mut back.hidden);
            let binary = &mut back.binary[l];
            (back.norms[l][0], back.heads[l]) = attend(
                encoder,
                attention,
                (x, kept),
                &mut grad,
                injected,
                bias,
                &way,
                masks,
                binary,
            );
        }
        if let Some(more) = &signal.hidden[l] {
            let from = first_rows[l] * hidden;
            grad.iter_mut().zip(&more[from..]).for_each(|(g, m)| *g += m);
        }
    }
    if let Some(project) = &encoder.project {
        if let Some(projected) = &tape.projected {
            add_by_channel(&mut back.hidden, &grad, projected);
            scale(&mut grad, 1.0, channels);
        }
        let input = input_gradient(project, &grad);
        tape.embedding_grad = std::mem::replace(&mut grad, input);
    }
    let width = encoder.norm.weight.len();
    plan.dropout.rows(&mut grad, (0, DropSite::Embeddings), first_token, width);
    let of_tables = channels.filter(|_| encoder.project.is_none());
    let mut sum = tape.embedding_sum.clone();
    scale(&mut sum, 1.0, of_tables);
    back.embedding_norm =
        NormGradient::through(&encoder.norm, of_tables, &sum, &mut grad, &mut back.hidden);
    if of_tables.is_some() {
        add_by_channel(&mut back.hidden, &grad, &tape.embedding_sum);
        scale(&mut grad, 1.0, of_tables);
    }
    back.embedding_sum = grad;
    back
}

/// What a loss asks of one attention block of a group.
struct Injected {
    /// `[tokens, 3 · heads · head_dim]`
    qkv: Option<Vec<f32>>,
    /// `[tokens]`
    importance: Option<Vec<f32>>,
}

/// Where in batch and model a block stands.
struct Way<'a> {
    /// What was left of the group.
    batch: &'a Batch,
    first_text: usize,
    first_token: usize,
    layer: usize,
    plan: &'a Plan<'a>,
    channels: Option<&'a Channels<'a>>,
}

/// Where gradients of the masks of a block and of hidden dimensions are summed.
type BlockMasks<'a> = (&'a mut f32, &'a mut Vec<f32>);

/// `grad`, `[tokens, hidden]`, with respect to what a block adds to the residual stream, becomes the one
/// with respect to its output `out` before masks.
fn through_masks(grad: &mut [f32], out: &[f32], block: f32, way: &Way, masks: BlockMasks) {
    let (of_block, of_hidden) = masks;
    // Σ grad · out by hidden dimension serves both.
    let mut sums = vec![0.0; of_hidden.len()];
    add_by_channel(&mut sums, grad, out);
    let h = |i: usize| way.channels.map_or(1.0, |c| c.mask[i]);
    *of_block += sums.iter().enumerate().map(|(i, s)| h(i) * s).sum::<f32>();
    if way.channels.is_some() {
        of_hidden.iter_mut().zip(&sums).for_each(|(sum, s)| *sum += block * s);
    }
    scale(grad, block, way.channels);
}

/// `sums ← sums + Σ_t a ⊙ b`
fn add_by_channel(sums: &mut [f32], a: &[f32], b: &[f32]) {
    let width = sums.len();
    for (a, b) in a.chunks_exact(width).zip(b.chunks_exact(width)) {
        sums.iter_mut().zip(a.iter().zip(b)).for_each(|(s, (a, b))| *s += a * b);
    }
}

/// `grad`, with respect to the block's output, becomes the one with respect to its input.
fn feed_forward(
    ffn: &RunFeedForward,
    kept: &mut FeedForwardTape,
    grad: &mut [f32],
    way: &Way,
    masks: BlockMasks,
    binary: &mut BinaryGradient,
) -> (NormGradient, Vec<f32>) {
    let norm = NormGradient::through(&ffn.norm, way.channels, &kept.sum, grad, masks.1);
    let out = &mut kept.sum;
    out.copy_from_slice(grad);
    let hidden = ffn.down.out;
    way.plan.dropout.rows(out, (way.layer, DropSite::Down), way.first_token, hidden);
    if let (Some(plan), Some(unscaled)) = (way.plan.masks, &kept.out) {
        through_masks(out, unscaled, plan.ffn[way.layer], way, masks);
    }
    let mut inner = input_gradient(&ffn.down, out);
    binary.inputs[5] = ElasticGradient::through(&ffn.down, &kept.units, &mut inner);
    let mut mask = Vec::new();
    if way.plan.mask_gradients {
        let units = kept.unmasked.as_ref().unwrap_or(&kept.units);
        mask = masked(way.batch, &inner, units, ffn.up.out, 1);
    }
    if let Some(masks) = way.plan.masks {
        multiply(&mut inner, &masks.units[way.layer], 1);
    }
    activation_gradient(ffn.activation, &kept.inner, &mut inner);
    if ffn.up.out > 0 {
        let tokens = way.batch.tokens();
        let part = Mat::new(&inner, tokens, ffn.up.out);
        binary.inputs[4] = add_input_gradient(&ffn.up, part, &kept.x, grad);
    }
    kept.inner = inner;
    (norm, mask)
}

#[allow(clippy::too_many_arguments)] // a block, its tape, and the places that gradients go to
fn attend(
    encoder: &Encoder,
    attention: &RunAttention,
    (x, kept): (&[f32], &mut AttentionTape),
    grad: &mut [f32],
    injected: Injected,
    relative_bias: &mut [f32],
    way: &Way,
    masks: BlockMasks,
    binary: &mut BinaryGradient,
) -> (NormGradient, Vec<f32>) {
    let norm = NormGradient::through(&attention.norm, way.channels, &kept.sum, grad, masks.1);
    let out = &mut kept.sum;
    out.copy_from_slice(grad);
    let hidden = attention.output.out;
    way.plan.dropout.rows(out, (way.layer, DropSite::AttentionOutput), way.first_token, hidden);
    if let (Some(plan), Some(unscaled)) = (way.plan.masks, &kept.out) {
        through_masks(out, unscaled, plan.attention[way.layer], way, masks);
    }
    let mut context = input_gradient(&attention.output, out);
    binary.inputs[3] = ElasticGradient::through(&attention.output, &kept.context, &mut context);
    let width = attention.heads.len() * attention.head_dim;
    let mut mask = Vec::new();
    if way.plan.mask_gradients {
        let values = kept.unmasked.as_ref().unwrap_or(&kept.context);
        mask = masked(way.batch, &context, values, width, attention.head_dim);
    }
    if let Some(masks) = way.plan.masks {
        multiply(&mut context, &masks.heads[way.layer], attention.head_dim);
    }
    let upstream = (&context[..], injected.importance.as_deref());
    let operands = attention.operands(&kept.qkv, x);
    let (mut qkv, back) = scores(encoder, attention, &operands, upstream, relative_bias, way);
    back.finish(attention, (&kept.qkv, &mut qkv), (x, &mut *grad), binary);
    if let Some(injected) = injected.qkv {
        qkv.iter_mut().zip(injected).for_each(|(g, i)| *g += i);
    }
    let tokens = way.batch.tokens();
    let linears = [&attention.query, &attention.key, &attention.value];
    for (i, linear) in linears.into_iter().enumerate().filter(|_| width > 0) {
        let part = Mat::new(&qkv, tokens, 3 * width).columns(i * width, width);
        binary.inputs[i] = add_input_gradient(linear, part, x, grad);
    }
    kept.qkv = qkv;
    (norm, mask)
}

/// Adds `out·W`, with respect to what `linear` makes of its input `x`, to that of the input, `grad`.
fn add_input_gradient(linear: &Dense, out: Mat, x: &[f32], grad: &mut [f32]) -> ElasticGradient {
    let shape = (out.rows, linear.input);
    if linear.elastic.is_none() {
        add_product(MatMut::new(grad, shape.0, shape.1), out, linear.matrix(), 1.0);
        return ElasticGradient::default();
    }
    let mut input = vec![0.0; grad.len()];
    product(MatMut::new(&mut input, shape.0, shape.1), out, linear.matrix(), 1.0);
    let found = ElasticGradient::through(linear, x, &mut input);
    grad.iter_mut().zip(input).for_each(|(g, i)| *g += i);
    found
}

/// `grad·W`: with respect to a linear layer's input.
pub(super) fn input_gradient(linear: &Dense, grad: &[f32]) -> Vec<f32> {
    let rows = grad.len() / linear.out;
    let mut input = vec![0.0; rows * linear.input];
    if linear.input > 0 {
        let out = MatMut::new(&mut input, rows, linear.input);
        product(out, Mat::new(grad, rows, linear.out), linear.matrix(), 1.0);
    }
    input
}

/// With respect to masks that multiply blocks of `dim` columns of `value`: Σ grad · value over the
/// tokens of each text. Both are `[tokens, width]`; `[texts, width / dim]`.
fn masked(batch: &Batch, grad: &[f32], value: &[f32], width: usize, dim: usize) -> Vec<f32> {
    let count = width / dim;
    let mut sums = vec![0.0; batch.texts() * count];
    for (span, sums) in batch.starts.windows(2).zip(sums.chunks_exact_mut(count.max(1))) {
        for t in span[0]..span[1] {
            let row = t * width..(t + 1) * width;
            let pairs = grad[row.clone()].chunks_exact(dim).zip(value[row].chunks_exact(dim));
            for (sum, (g, v)) in sums.iter_mut().zip(pairs) {
                *sum += g.iter().zip(v).map(|(g, v)| g * v).sum::<f32>();
            }
        }
    }
    sums
}

/// Back through scores, softmax and weighted sum: gradients with respect to the context and to the importance
/// of tokens, `[tokens]`, become the one with respect to the operands, `[tokens, 3 · heads · head_dim]`, and what
/// else made these.
fn scores(
    encoder: &Encoder,
    attention: &RunAttention,
    operands: &Operands,
    (grad, importance): (&[f32], Option<&[f32]>),
    relative_bias: &mut [f32],
    way: &Way,
) -> (Vec<f32>, OperandsGradient) {
    let batch = way.batch;
    let qkv = &operands.qkv[..];
    let mut back = OperandsGradient::new(operands);
    let (tokens, dim) = (batch.tokens(), attention.head_dim);
    let width = attention.heads.len() * dim;
    let scale = 1.0 / (dim as f32).sqrt();
    let mut out = vec![0.0; qkv.len()];
    let (mut probs, mut dropped, mut steps) = (Vec::new(), Vec::new(), Vec::new());
    let counts = |head: usize| way.plan.counts(way.layer, head);
    let counted = (0..attention.heads.len()).filter(|&head| counts(head)).count();
    for text in 0..batch.texts() {
        let (from, len) = (batch.starts[text], batch.starts[text + 1] - batch.starts[text]);
        let positions = &batch.positions[from..from + len];
        let bias = encoder.score_terms(attention, operands, positions, from);
        let mut of_terms = vec![0.0; operands.estimates.as_ref().map_or(0, |_| len * len)];
        let mut inner = vec![0.0; len * len];
        for head in 0..attention.heads.len() {
            let column = head * dim;
            let part = |which: usize| {
                Mat::new(qkv, tokens, 3 * width)
                    .columns(which * width + column, dim)
                    .block(from, len)
            };
            let mut write = |which: usize, a: Mat, b: Mat, alpha: f32| {
                let out = MatMut::new(&mut out, tokens, 3 * width);
                product(out.columns(which * width + column, dim).block(from, len), a, b, alpha);
            };
            let drop = |values: &mut [f32]| {
                way.plan.dropout.probabilities(values, way.layer, way.first_text + text, head);
            };
            let upstream = Mat::new(grad, tokens, width).columns(column, dim).block(from, len);
            encoder.probabilities(attention, qkv, from, len, head, bias.as_deref(), &mut probs);
            dropped.clone_from(&probs);
            drop(&mut dropped);
            steps.clone_from(&dropped);
            operands.step(&mut steps);
            write(2, Mat::new(&steps, len, len).t(), upstream, 1.0);
            product(MatMut::new(&mut inner, len, len), upstream, part(2).t(), 1.0);
            back.step(operands, &dropped, &mut inner);
            drop(&mut inner);
            if let Some(importance) = importance.filter(|_| counts(head)) {
                // Each is a mean over heads and queries, before dropout.
                let queries = if way.plan.importance == Some(Score::First) { 1 } else { len };
                let share = 1.0 / (counted * queries) as f32;
                for row in inner.chunks_exact_mut(len).take(queries) {
                    let keys = importance[from..from + len].iter();
                    row.iter_mut().zip(keys).for_each(|(g, i)| *g += share * i);
                }
            }
            for (p, g) in probs.chunks_exact(len).zip(inner.chunks_exact_mut(len)) {
                softmax_backward(p, g);
            }
            if !relative_bias.is_empty() {
                add_by_distance(relative_bias, &inner, positions, attention.heads[head]);
            }
            of_terms.iter_mut().zip(&inner).for_each(|(sum, g)| *sum += g);
            write(0, Mat::new(&inner, len, len), part(1), scale);
            write(1, Mat::new(&inner, len, len).t(), part(0), scale);
        }
        if let Some(estimates) = &operands.estimates {
            back.bracket(estimates, &of_terms, from, len, scale);
        }
    }
    (out, back)
}

/// Adds gradients of scores, `[len, len]`, to those of MPNet's table, `[32, heads]`.
fn add_by_distance(table: &mut [f32], grad: &[f32], positions: &[u32], head: usize) {
    let heads = table.len() / 32;
    let rows = grad.chunks_exact(positions.len());
    for (&query, row) in positions.iter().zip(rows) {
        for (&key, g) in positions.iter().zip(row) {
            table[relative_bucket(key as i64 - query as i64) * heads + head] += g;
        }
    }
}
