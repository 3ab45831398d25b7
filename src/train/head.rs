//! Heads, forwards with what the way back needs, and back.

use super::backward::{NormGradient, input_gradient};
use super::elastic::ElasticGradient;
use super::tape::{DropSite, Dropout};
use crate::model::slice::Masks;
use crate::model::{PoolMode, Task};
use crate::runtime::kernels::{
    Mat, MatMut, activate, activation_gradient, add_bias, add_columns, add_product, product,
};
use crate::runtime::masked::{Channels, apply_norm};
use crate::runtime::{Batch, Dense, Encoder, RunHead, RunNorm};
use rayon::prelude::*;

/// What a head said, and what it saw on the way.
#[derive(Debug, Clone)]
pub struct HeadTape {
    /// `[rows, width]`: logits, embeddings, or token states; a row is a text or a token.
    pub values: Vec<f32>,
    pub width: usize,
    /// The tokens that were read, one a row; for pooled embeddings none.
    picked: Vec<usize>,
    /// `[rows, hidden]`: the states that were read.
    states: Vec<f32>,
    /// `[rows, hidden]`: before the activation.
    inner: Vec<f32>,
    /// `[rows, hidden]`: what the LayerNorm of the head sees, where it has one.
    activated: Vec<f32>,
    /// `[rows, hidden]`: what the last matrix multiplies.
    features: Vec<f32>,
    /// `[texts]`: lengths of pooled states, where the embedding is normalised.
    lengths: Vec<f32>,
    /// Under which the LayerNorm of a masked-LM head ran.
    masks: Option<Masks>,
    dropout: Dropout,
}

/// What the way back through a head gives.
#[derive(Debug)]
pub struct HeadBack {
    /// `[tokens, hidden]`: with respect to the last hidden state.
    pub last: Vec<f32>,
    /// `[hidden]`: with respect to the mask of hidden dimensions, where the head is under it.
    pub hidden: Vec<f32>,
}

/// Vocabulary rows that one task takes.
const BLOCK: usize = 2048;

/// Runs the head of `encoder` over the last hidden state, `[tokens, hidden]`. A masked-LM head reads only
/// the tokens at `picked`; the others ignore it. Of `masks`, that of hidden dimensions stands behind the
/// LayerNorm of a masked-LM head, where words are told by the table that they are read from.
pub fn forward(
    encoder: &Encoder,
    batch: &Batch,
    last: &[f32],
    picked: &[usize],
    masks: Option<&Masks>,
    dropout: Dropout,
) -> HeadTape {
    let hidden = encoder.model.config.hidden;
    let mut tape = HeadTape {
        values: Vec::new(),
        width: 0,
        picked: match encoder.head {
            RunHead::SequenceClassification { .. } => batch.starts[..batch.texts()].to_vec(),
            RunHead::MaskedLm { .. } => picked.to_vec(),
            _ => Vec::new(),
        },
        states: Vec::new(),
        inner: Vec::new(),
        activated: Vec::new(),
        features: Vec::new(),
        lengths: Vec::new(),
        masks: None,
        dropout,
    };
    tape.states =
        tape.picked.iter().flat_map(|&t| &last[t * hidden..(t + 1) * hidden]).copied().collect();
    match &encoder.head {
        RunHead::SequenceClassification { dense, norm, activation, out, .. } => {
            tape.inner = dense.forward(&tape.states);
            if let Some(norm) = norm {
                tape.activated = tape.inner.clone();
                norm.apply(&mut tape.inner);
                tape.inner.iter_mut().zip(&tape.states).for_each(|(y, x)| *y += x);
            }
            tape.features = tape.inner.clone();
            activate(*activation, &mut tape.features);
            dropout.rows(&mut tape.features, (0, DropSite::Head), 0, dense.out);
            tape.values = out.forward(&tape.features);
            tape.width = out.out;
        }
        RunHead::PerToken(out) => {
            tape.features = last.to_vec();
            if encoder.model.config.task == Task::TokenClassification {
                dropout.rows(&mut tape.features, (0, DropSite::Head), 0, hidden);
            }
            tape.values = out.forward(&tape.features);
            tape.width = out.out;
        }
        RunHead::MaskedLm { dense, activation, norm, bias, .. } => {
            tape.inner = dense.forward(&tape.states);
            tape.activated = tape.inner.clone();
            activate(*activation, &mut tape.activated);
            tape.features = tape.activated.clone();
            tape.masks = masks.filter(|_| encoder.project.is_none()).cloned();
            apply_norm(norm, Channels::of(tape.masks.as_ref()).as_ref(), &mut tape.features);
            tape.width = bias.len();
            tape.values = vocabulary_product(&tape.features, decoder(encoder), dense.out);
            add_bias(&mut tape.values, bias);
        }
        RunHead::Embedding { .. } => {
            let mut output = encoder.pooled(batch, last);
            if let RunHead::Embedding { normalize: true, .. } = encoder.head {
                tape.lengths = crate::runtime::normalize_rows(&mut output, hidden);
            }
            tape.values = output;
            tape.width = hidden;
        }
        RunHead::Bare { .. } => {
            tape.values = last.to_vec();
            tape.width = hidden;
        }
    }
    tape
}

/// Back from `grad`, with respect to what the head said, to the last hidden state, `[tokens, hidden]`. Adds
/// the gradients of the head's weights (and of a tied word table) to `grads`, where they are wanted.
pub fn backward(
    encoder: &Encoder,
    mut grads: Option<&mut Encoder>,
    batch: &Batch,
    last: &[f32],
    tape: &HeadTape,
    grad: &[f32],
) -> HeadBack {
    let hidden = encoder.model.config.hidden;
    let mut of_mask = vec![0.0; hidden];
    let mut back = vec![0.0; last.len()];
    let head = grads.as_deref_mut().map(|g| &mut g.head);
    match &encoder.head {
        RunHead::SequenceClassification { dense, norm, activation, out, .. } => {
            let mut inner = input_gradient(out, grad);
            tape.dropout.rows(&mut inner, (0, DropSite::Head), 0, dense.out);
            activation_gradient(*activation, &tape.inner, &mut inner);
            // Past dense layer and LayerNorm.
            let skip = norm.as_ref().map(|_| inner.clone());
            let norms = norm.as_ref().map(|norm| {
                NormGradient::through(norm, None, &tape.activated, &mut inner, &mut of_mask)
            });
            let mut states = input_gradient(dense, &inner);
            let elastic = ElasticGradient::through(dense, &tape.states, &mut states);
            if let Some(RunHead::SequenceClassification { dense: sum, norm, out, .. }) = head {
                add_linear(out, grad, &tape.features);
                add_linear(sum, &inner, &dense.inputs(&tape.states));
                ElasticGradient::add(sum, std::iter::once(&elastic));
                if let (Some(norm), Some(norms)) = (norm, norms) {
                    norm_gradient(norm, norms);
                }
            }
            if let Some(skip) = skip {
                states.iter_mut().zip(skip).for_each(|(s, g)| *s += g);
            }
            scatter(&mut back, &states, &tape.picked, hidden);
        }
        RunHead::PerToken(out) => {
            back = input_gradient(out, grad);
            if encoder.model.config.task == Task::TokenClassification {
                tape.dropout.rows(&mut back, (0, DropSite::Head), 0, hidden);
            }
            if let Some(RunHead::PerToken(out)) = head {
                add_linear(out, grad, &tape.features);
            }
        }
        RunHead::MaskedLm { dense, activation, norm, .. } => {
            let table = decoder(encoder);
            let mut inner = vocabulary_input_gradient(grad, table, tape.width, dense.out);
            let channels = Channels::of(tape.masks.as_ref());
            let of_mask = &mut of_mask;
            let norms = NormGradient::through(
                norm,
                channels.as_ref(),
                &tape.activated,
                &mut inner,
                of_mask,
            );
            activation_gradient(*activation, &tape.inner, &mut inner);
            if let Some(g) = grads {
                let RunHead::MaskedLm { dense, norm, decoder, bias, .. } = &mut g.head else {
                    unreachable!("gradients have the head of their model");
                };
                add_linear(dense, &inner, &tape.states);
                norm_gradient(norm, norms);
                if !bias.is_empty() {
                    add_columns(grad, bias.to_mut());
                }
                if let Some(table) = decoder.as_mut().or(g.word.as_mut()) {
                    add_vocabulary(table.to_mut(), grad, &tape.features, tape.width);
                }
            }
            scatter(&mut back, &input_gradient(dense, &inner), &tape.picked, hidden);
        }
        RunHead::Embedding { pool, .. } => {
            let mut grad = grad.to_vec();
            for (i, &length) in tape.lengths.iter().enumerate() {
                let row = i * hidden..(i + 1) * hidden;
                let (g, y) = (&mut grad[row.clone()], &tape.values[row]);
                let dot: f32 = g.iter().zip(y).map(|(g, y)| g * y).sum();
                g.iter_mut().zip(y).for_each(|(g, y)| *g = (*g - y * dot) / length);
            }
            for (span, grad) in batch.starts.windows(2).zip(grad.chunks_exact(hidden)) {
                let tokens = span[0] * hidden..span[1] * hidden;
                unpool(*pool, &last[tokens.clone()], grad, &mut back[tokens]);
            }
        }
        RunHead::Bare { .. } => back.copy_from_slice(grad),
    }
    HeadBack { last: back, hidden: of_mask }
}

/// Adds the gradients of a LayerNorm.
fn norm_gradient(sum: &mut RunNorm, part: NormGradient) {
    for (sum, part) in [(&mut sum.weight, part.weight), (&mut sum.bias, part.bias)] {
        sum.to_mut().iter_mut().zip(part).for_each(|(s, p)| *s += p);
    }
}

/// Adds the gradients of one linear layer; buffers that are empty are not wanted.
fn add_linear(sum: &mut Dense, output: &[f32], input: &[f32]) {
    let rows = output.len() / sum.out;
    let (out, width) = (sum.out, sum.input);
    if !sum.weight.is_empty() {
        let weight = MatMut::new(sum.weight.to_mut(), out, width);
        add_product(weight, Mat::new(output, rows, out).t(), Mat::new(input, rows, width), 1.0);
    }
    if let Some(bias) = sum.bias.as_mut().filter(|b| !b.is_empty()) {
        add_columns(output, bias.to_mut());
    }
}

fn scatter(back: &mut [f32], rows: &[f32], picked: &[usize], width: usize) {
    for (&token, row) in picked.iter().zip(rows.chunks_exact(width)) {
        back[token * width..(token + 1) * width].copy_from_slice(row);
    }
}

/// Spreads the gradient of a text's pooled state, `[hidden]`, over its tokens.
fn unpool(pool: PoolMode, states: &[f32], grad: &[f32], back: &mut [f32]) {
    let hidden = grad.len();
    let tokens = states.len() / hidden;
    match pool {
        PoolMode::Cls => back[..hidden].copy_from_slice(grad),
        PoolMode::Mean => {
            for row in back.chunks_exact_mut(hidden) {
                row.iter_mut().zip(grad).for_each(|(b, g)| *b = g / tokens as f32);
            }
        }
        PoolMode::Max => {
            for (c, g) in grad.iter().enumerate() {
                // The first of equals, as the forward pass keeps it.
                let best = (0..tokens).reduce(|best, t| {
                    if states[t * hidden + c] > states[best * hidden + c] { t } else { best }
                });
                if let Some(t) = best {
                    back[t * hidden + c] = *g;
                }
            }
        }
    }
}

fn decoder<'a>(encoder: &'a Encoder) -> &'a [f32] {
    let RunHead::MaskedLm { decoder, .. } = &encoder.head else {
        unreachable!("only masked-LM heads have a decoder")
    };
    decoder.as_ref().or(encoder.word.as_ref()).expect("a decoder, or a word table")
}

/// `x·Wᵀ` for a `W`, `[vocab, width]`, that is far taller than `x`: blocks of the vocabulary in parallel.
fn vocabulary_product(x: &[f32], table: &[f32], width: usize) -> Vec<f32> {
    let (rows, vocab) = (x.len() / width, table.len() / width);
    let block = |table: &[f32]| {
        let words = table.len() / width;
        let mut part = vec![0.0; rows * words];
        let (x, table) = (Mat::new(x, rows, width), Mat::new(table, words, width));
        product(MatMut::new(&mut part, rows, words), x, table.t(), 1.0);
        part
    };
    let parts: Vec<Vec<f32>> = table.par_chunks(BLOCK * width).map(block).collect();
    let mut out = vec![0.0; rows * vocab];
    for (row, out) in out.chunks_exact_mut(vocab).enumerate() {
        for (part, out) in parts.iter().zip(out.chunks_mut(BLOCK)) {
            out.copy_from_slice(&part[row * out.len()..(row + 1) * out.len()]);
        }
    }
    out
}

/// `grad·W`, summed over blocks of the vocabulary in their order.
fn vocabulary_input_gradient(grad: &[f32], table: &[f32], vocab: usize, width: usize) -> Vec<f32> {
    let rows = grad.len() / vocab;
    let block = |(i, table): (usize, &[f32])| {
        let words = table.len() / width;
        let mut part = vec![0.0; rows * width];
        let grad = Mat::new(grad, rows, vocab).columns(i * BLOCK, words);
        let out = MatMut::new(&mut part, rows, width);
        product(out, grad, Mat::new(table, words, width), 1.0);
        part
    };
    let parts: Vec<Vec<f32>> = table.par_chunks(BLOCK * width).enumerate().map(block).collect();
    let mut sum = vec![0.0; rows * width];
    for part in parts {
        sum.iter_mut().zip(part).for_each(|(s, p)| *s += p);
    }
    sum
}

/// `table += gradᵀ·x`; nothing where `table` is empty.
fn add_vocabulary(table: &mut [f32], grad: &[f32], x: &[f32], vocab: usize) {
    let rows = grad.len() / vocab;
    let width = x.len() / rows.max(1);
    if width == 0 {
        return;
    }
    table.par_chunks_mut(BLOCK * width).enumerate().for_each(|(i, table)| {
        let words = table.len() / width;
        let grad = Mat::new(grad, rows, vocab).columns(i * BLOCK, words);
        add_product(MatMut::new(table, words, width), grad.t(), Mat::new(x, rows, width), 1.0);
    });
}
