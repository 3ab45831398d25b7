//! Fisher scores of heads and feed-forward units (Kwon et al. 2022, §4.2; CoFi notes, §7.1).

use super::backward::{self, Back, Signal, input_gradient};
use super::tape::{self, Plan, Tape};
use super::weights;
use crate::Result;
use crate::data::Targets;
use crate::model::{PoolMode, Task};
use crate::runtime::kernels::{activate, activation_gradient};
use crate::runtime::{Batch, Encoder, RunHead};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// Gradients of the loss with respect to every mask, one row a text.
#[derive(Debug, Clone, Default)]
pub struct MaskGradients {
    /// By layer: `[texts, heads]`
    pub heads: Vec<Vec<f32>>,
    /// By layer: `[texts, units]`
    pub units: Vec<Vec<f32>>,
}

/// Gradients of the masks (all at 1) over one batch.
///
/// The loss is the cross-entropy against `targets` (by `batch.rows`), summed over the labelled tokens of a
/// text, or over the start and the end of an answer; tokens and texts without a target add nothing.
/// Without `targets`, or with those of another head, it is the cross-entropy against labels
/// drawn from the model's own predictions, whose squared gradients estimate the Fisher information
/// itself instead of its empirical cousin. Where there are no classes (regression, embeddings, masked LM,
/// bare encoders) it is a random projection of what the head gives out, whose squared gradients estimate
/// the squared error of reconstructing that output. Randomness depends on `seed` and the text's row only.
///
/// # Errors
/// As [`Encoder::forward`].
pub fn mask_gradients(
    encoder: &Encoder,
    batch: &Batch,
    targets: Option<&Targets>,
    seed: u64,
) -> Result<MaskGradients> {
    let path: Vec<_> = encoder.layers.iter().collect();
    let plan = Plan { mask_gradients: true, ..Plan::default() };
    let mut tapes = tape::forward(encoder, &path, batch, &plan)?;
    let mut signal = Signal::new(path.len());
    let last = tape::hidden(&tapes, path.len());
    let left = tape::left(&tapes, batch);
    let loss = targets.map_or(Loss::Drawn, Loss::Targets);
    let grad = loss_gradient(encoder, &left, &last, loss, seed);
    signal.add_hidden(path.len(), grad, 1.0);
    let backs = backward::backward(encoder, &path, &mut tapes, &signal, &plan);
    let rows = |pick: fn(&Back) -> &Vec<Vec<f32>>| {
        let layer = |l| backs.iter().flat_map(|b| &pick(b)[l]).copied().collect();
        (0..path.len()).map(layer).collect()
    };
    Ok(MaskGradients { heads: rows(|b| &b.heads), units: rows(|b| &b.units) })
}

/// By layer, for each place whose input linear layers share (query, key and value; attention output; up; down): how
/// strongly what they make of each token moves what the head gives out, as the mean square of the gradient of a random
/// projection of that: `[tokens]` of each, none where the block is gone.
///
/// Of classes too it is the logits that are projected: drawn labels say next to nothing of texts that the model is
/// sure of, and these count as well.
///
/// # Errors
/// As [`Encoder::forward`].
pub fn token_powers(encoder: &Encoder, batch: &Batch, seed: u64) -> Result<Vec<[Vec<f32>; 4]>> {
    let (tapes, _) = projected(encoder, batch, seed)?;
    Ok((0..encoder.layers.len()).map(|l| weights::token_powers(&tapes, l)).collect())
}

/// How what the head gives out moves with the sum of each token's embeddings: the gradient of a random projection of
/// that, `[tokens, embedding]`.
///
/// # Errors
/// As [`Encoder::forward`].
pub fn embedding_gradients(encoder: &Encoder, batch: &Batch, seed: u64) -> Result<Vec<f32>> {
    Ok(projected(encoder, batch, seed)?.1.into_iter().flat_map(|b| b.embedding_sum).collect())
}

/// Goes back from a random projection of what the head gives out.
fn projected(encoder: &Encoder, batch: &Batch, seed: u64) -> Result<(Vec<Tape>, Vec<Back>)> {
    let path: Vec<_> = encoder.layers.iter().collect();
    let plan = Plan::default();
    let mut tapes = tape::forward(encoder, &path, batch, &plan)?;
    let mut signal = Signal::new(path.len());
    let last = tape::hidden(&tapes, path.len());
    let left = tape::left(&tapes, batch);
    let grad = loss_gradient(encoder, &left, &last, Loss::Projection, seed);
    signal.add_hidden(path.len(), grad, 1.0);
    let backs = backward::backward(encoder, &path, &mut tapes, &signal, &plan);
    Ok((tapes, backs))
}

/// What gradients are of.
#[derive(Clone, Copy)]
enum Loss<'a> {
    Targets(&'a Targets),
    /// The cross-entropy against classes drawn from the predictions; a projection where there are none.
    Drawn,
    /// A random projection of what the head gives out.
    Projection,
}

/// With respect to the last hidden state, `[tokens, hidden]`, of the tokens of `batch`.
fn loss_gradient(encoder: &Encoder, batch: &Batch, x: &[f32], loss: Loss, seed: u64) -> Vec<f32> {
    let hidden = encoder.model.config.hidden;
    let regression = encoder.model.config.regression;
    let mut random: Vec<ChaCha8Rng> = batch
        .rows
        .iter()
        .map(|&row| {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            rng.set_stream(row as u64);
            rng
        })
        .collect();
    let mut grad = vec![0.0; x.len()];
    match &encoder.head {
        // A pooler with a LayerNorm has packed layers before it, which nobody ranks to cut.
        RunHead::SequenceClassification { dense, activation, out, .. } => {
            let firsts: Vec<f32> = batch.starts[..batch.texts()]
                .iter()
                .flat_map(|&t| &x[t * hidden..(t + 1) * hidden])
                .copied()
                .collect();
            let inner = dense.forward(&firsts);
            let mut pooled = inner.clone();
            activate(*activation, &mut pooled);
            let mut logits = out.forward(&pooled);
            for (text, logits) in logits.chunks_exact_mut(out.out).enumerate() {
                let (row, rng) = (batch.rows[text], &mut random[text]);
                match loss {
                    Loss::Targets(Targets::Scores(scores)) => logits[0] -= scores[row],
                    Loss::Targets(Targets::Classes(classes)) => {
                        cross_entropy(logits, Some(classes[row] as usize), rng);
                    }
                    Loss::Projection => logits.iter_mut().for_each(|l| *l = normal(rng)),
                    _ if regression => logits[0] = normal(rng),
                    _ => cross_entropy(logits, None, rng),
                }
            }
            let mut back = input_gradient(out, &logits);
            activation_gradient(*activation, &inner, &mut back);
            let back = input_gradient(dense, &back);
            for (text, &t) in batch.starts[..batch.texts()].iter().enumerate() {
                grad[t * hidden..(t + 1) * hidden]
                    .copy_from_slice(&back[text * hidden..(text + 1) * hidden]);
            }
        }
        RunHead::PerToken(out) => {
            let mut logits = out.forward(x);
            let span_heads = encoder.model.config.task == Task::QuestionAnswering;
            for (text, span) in batch.starts.windows(2).enumerate() {
                let (row, rng) = (batch.rows[text], &mut random[text]);
                let logits = &mut logits[span[0] * out.out..span[1] * out.out];
                match loss {
                    Loss::Projection => logits.iter_mut().for_each(|l| *l = normal(rng)),
                    Loss::Targets(Targets::Tokens(labels)) if !span_heads => {
                        for (logits, label) in logits.chunks_exact_mut(out.out).zip(&labels[row]) {
                            match label {
                                Some(class) => cross_entropy(logits, Some(*class as usize), rng),
                                None => logits.fill(0.0),
                            }
                        }
                    }
                    Loss::Targets(Targets::Spans(answers)) if span_heads => match answers[row] {
                        Some((first, last)) => span_cross_entropy(logits, Some([first, last]), rng),
                        None => logits.fill(0.0),
                    },
                    _ if span_heads => span_cross_entropy(logits, None, rng),
                    _ => {
                        let tokens = logits.chunks_exact_mut(out.out);
                        tokens.for_each(|logits| cross_entropy(logits, None, rng));
                    }
                }
            }
            grad = input_gradient(out, &logits);
        }
        RunHead::Embedding { pool: PoolMode::Cls, .. } => {
            for (text, &t) in batch.starts[..batch.texts()].iter().enumerate() {
                let row = &mut grad[t * hidden..(t + 1) * hidden];
                row.iter_mut().for_each(|g| *g = normal(&mut random[text]));
            }
        }
        RunHead::Embedding { .. } => {
            // Max pooling is treated as mean pooling: which token wins is not what should be kept.
            for (text, span) in batch.starts.windows(2).enumerate() {
                let scale = 1.0 / (span[1] - span[0]) as f32;
                let direction: Vec<f32> =
                    (0..hidden).map(|_| scale * normal(&mut random[text])).collect();
                for row in grad[span[0] * hidden..span[1] * hidden].chunks_exact_mut(hidden) {
                    row.copy_from_slice(&direction);
                }
            }
        }
        RunHead::MaskedLm { .. } | RunHead::Bare { .. } => {
            for (text, span) in batch.starts.windows(2).enumerate() {
                let rows = &mut grad[span[0] * hidden..span[1] * hidden];
                rows.iter_mut().for_each(|g| *g = normal(&mut random[text]));
            }
        }
    }
    grad
}

/// `logits` become softmax − one-hot of `class`, or of a class drawn from the softmax.
fn cross_entropy(logits: &mut [f32], class: Option<usize>, rng: &mut ChaCha8Rng) {
    crate::runtime::kernels::softmax(logits);
    let class = class.unwrap_or_else(|| {
        let mut left = uniform(rng);
        let drawn = logits.iter().position(|&p| {
            left -= p;
            left < 0.0
        });
        drawn.unwrap_or(logits.len() - 1)
    });
    logits[class] -= 1.0;
}

/// As [`cross_entropy`], for the start and the end of an answer: they are chosen over the tokens, one
/// softmax a column of `logits`, `[tokens, 2]`.
fn span_cross_entropy(logits: &mut [f32], answer: Option<[u32; 2]>, rng: &mut ChaCha8Rng) {
    for column in 0..2 {
        let mut scores: Vec<f32> = logits.iter().skip(column).step_by(2).copied().collect();
        cross_entropy(&mut scores, answer.map(|a| a[column] as usize), rng);
        let cells = logits.iter_mut().skip(column).step_by(2);
        cells.zip(scores).for_each(|(cell, score)| *cell = score);
    }
}

fn uniform(rng: &mut ChaCha8Rng) -> f32 {
    (rng.next_u32() >> 8) as f32 / (1u32 << 24) as f32
}

/// Standard normal, by Box and Muller.
pub(super) fn normal(rng: &mut ChaCha8Rng) -> f32 {
    let (u, v) = (1.0 - uniform(rng), uniform(rng));
    (-2.0 * u.ln()).sqrt() * (std::f32::consts::TAU * v).cos()
}
