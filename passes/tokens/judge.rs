//! How far a model that drops tokens is from the one that keeps them, without labels (ToP notes, §7.1).

use crate::Result;
use crate::eval::metrics;
use crate::model::{Task, TokenSchedule};
use crate::runtime::{Batch, Encoder};
use crate::train::losses;
use rayon::prelude::*;

/// Texts, and what the model says of them when it keeps all tokens.
pub struct Judge<'a> {
    encoder: &'a Encoder<'a>,
    texts: Vec<Text<'a>>,
}

struct Text<'a> {
    batch: &'a Batch,
    /// Hidden states of all tokens before each layer, `[tokens, hidden]`, as far as memory allows.
    states: Vec<Vec<f32>>,
    /// What the head says; for a masked-LM model, whose words are too many to keep, the last hidden state.
    said: Vec<f32>,
}

/// What a schedule costs in quality.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Distance {
    /// The lower the better: mean divergence of classes, squared error of scores, 1 - cosine of embeddings and
    /// states.
    pub loss: f64,
    /// Share of the answers that are others (classes; starts and ends of answers); of scores and embeddings 1 -
    /// Spearman's correlation of scores, or of similarities between texts, and where there are too few for one, and of
    /// states, the loss.
    pub moved: f64,
}

/// Bytes of hidden states that are kept.
const CACHE: usize = 512 << 20;

impl<'a> Judge<'a> {
    /// `encoder` has no schedule.
    ///
    /// # Errors
    /// As [`Encoder::forward`].
    pub fn new(encoder: &'a Encoder<'a>, batches: &'a [Batch]) -> Result<Judge<'a>> {
        let tokens: usize = batches.iter().map(Batch::tokens).sum();
        let state = tokens * encoder.model.config.hidden * size_of::<f32>();
        let depth = (CACHE / state.max(1)).clamp(1, encoder.layers.len().max(1));
        let text = |batch: &'a Batch| -> Result<Text<'a>> {
            let mut states = vec![encoder.embed(batch)?];
            for l in 0..depth - 1 {
                let x = states[l].clone();
                let layer = &encoder.layers[l];
                let observer = &mut crate::runtime::NoObserver;
                states.push(encoder.layer(l, layer, x, batch, None, observer));
            }
            let mut text = Text { batch, states, said: Vec::new() };
            text.said = said(encoder, &text, 0);
            Ok(text)
        };
        let texts = batches.par_iter().map(text).collect::<Result<_>>()?;
        Ok(Judge { encoder, texts })
    }

    /// How many texts there are.
    pub fn len(&self) -> usize {
        self.texts.iter().map(|t| t.batch.texts()).sum()
    }

    /// What `schedule` changes.
    pub fn of(&self, schedule: &TokenSchedule) -> Distance {
        let encoder = Encoder { tokens: Some(schedule.clone()), ..self.encoder.clone() };
        let first = schedule.layers.iter().position(Option::is_some).unwrap_or(0);
        let found: Vec<Vec<f32>> =
            self.texts.par_iter().map(|text| said(&encoder, text, first)).collect();
        let mut sum = Distance::default();
        let mut rows = 0;
        let config = &self.encoder.model.config;
        for (text, found) in self.texts.iter().zip(&found) {
            let starts = &text.batch.starts;
            let texts = text.batch.texts();
            let (n, one) = match config.task {
                Task::SequenceClassification if config.regression => {
                    (texts, Distance { loss: losses::squares(found, &text.said).value, moved: 0.0 })
                }
                Task::SequenceClassification | Task::TokenClassification => {
                    let n = if config.task == Task::TokenClassification {
                        text.batch.tokens()
                    } else {
                        texts
                    };
                    let width = found.len() / n;
                    let agreement = metrics::agreement(&text.said, found, width);
                    (
                        n,
                        Distance {
                            loss: losses::divergence(found, &text.said, width, 1.0).value,
                            moved: agreement.map_or(1.0, |a| 1.0 - a.value),
                        },
                    )
                }
                Task::QuestionAnswering => {
                    let other = starts.windows(2).filter(|s| {
                        let span = 2 * s[0]..2 * s[1];
                        best_span(&text.said[span.clone()]) != best_span(&found[span])
                    });
                    (
                        texts,
                        Distance {
                            loss: losses::span_divergence(found, &text.said, starts, 1.0).value,
                            moved: other.count() as f64 / texts as f64,
                        },
                    )
                }
                Task::Embedding | Task::MaskedLm | Task::Bare => {
                    let n =
                        if config.task == Task::Embedding { texts } else { text.batch.tokens() };
                    let cosine = metrics::mean_cosine(&text.said, found, found.len() / n);
                    (n, Distance { loss: 1.0 - cosine.unwrap_or(0.0), moved: 0.0 })
                }
            };
            sum.loss += n as f64 * one.loss;
            sum.moved += n as f64 * one.moved;
            rows += n;
        }
        let rows = rows.max(1) as f64;
        let moved = match config.task {
            Task::SequenceClassification if config.regression => {
                self.reordered(&found, |said| said.to_vec()).unwrap_or(sum.loss / rows)
            }
            Task::Embedding => {
                let similarities = |said: &[f32]| {
                    let texts: Vec<&[f32]> = said.chunks_exact(config.hidden).collect();
                    texts.windows(2).map(|w| metrics::cosine(w[0], w[1]) as f32).collect()
                };
                self.reordered(&found, similarities).unwrap_or(sum.loss / rows)
            }
            // Of states nobody says what they are for.
            Task::MaskedLm | Task::Bare => sum.loss / rows,
            _ => sum.moved / rows,
        };
        Distance { loss: sum.loss / rows, moved }
    }

    /// 1 - Spearman's correlation of the numbers that `of` makes of all answers, before and now.
    fn reordered(&self, found: &[Vec<f32>], of: impl Fn(&[f32]) -> Vec<f32>) -> Option<f64> {
        let before: Vec<f32> = self.texts.iter().flat_map(|t| t.said.iter().copied()).collect();
        let numbers = |said: &[f32]| -> Vec<f64> { of(said).into_iter().map(f64::from).collect() };
        let (before, now) = (numbers(&before), numbers(&found.concat()));
        metrics::spearman(&before, &now, 0).map(|s| 1.0 - s.value)
    }
}

/// What the head says, from the states before layer `first`, or the last that were kept before it.
fn said(encoder: &Encoder, text: &Text, first: usize) -> Vec<f32> {
    let from = first.min(text.states.len() - 1);
    let last = encoder.finish(from, text.states[from].clone(), text.batch);
    match encoder.model.config.task {
        Task::MaskedLm | Task::Bare => last.x,
        _ => encoder.answer(&last.batch, &last.x, None).values,
    }
}

/// Tokens with the best start and the best end score, of `[tokens, 2]`.
fn best_span(logits: &[f32]) -> [Option<u32>; 2] {
    [0, 1].map(|column| {
        let scores: Vec<f32> = logits.iter().skip(column).step_by(2).copied().collect();
        metrics::argmax(&scores)
    })
}
