//! Training on a task alone, against its labels.

use super::backward::Signal;
use super::head::{self, HeadTape};
use super::losses::{Loss, cross_entropy, span_cross_entropy, squares};
use super::objective::{Moment, Objective, Seen, Verdict};
use super::tape::{self, Dropout};
use crate::Result;
use crate::data::Targets;
use crate::data::masking::Masker;
use crate::runtime::{Batch, Encoder, NoObserver};
use std::borrow::Cow;

/// What the head said of `batch` against `targets`, by `batch.rows`: a mean over texts, or over the tokens
/// that have a label.
pub fn loss(head: &HeadTape, batch: &Batch, targets: &Targets) -> Loss {
    let rows = || batch.rows.iter();
    match targets {
        Targets::Classes(classes) => {
            let classes: Vec<_> = rows().map(|&r| Some(classes[r])).collect();
            cross_entropy(&head.values, head.width, &classes)
        }
        Targets::Scores(scores) => {
            let scores: Vec<_> = rows().map(|&r| scores[r]).collect();
            squares(&head.values, &scores)
        }
        Targets::Tokens(labels) => {
            let classes: Vec<_> = rows().flat_map(|&r| labels[r].iter().copied()).collect();
            cross_entropy(&head.values, head.width, &classes)
        }
        Targets::Spans(spans) => {
            let spans: Vec<_> = rows().map(|&r| spans[r]).collect();
            span_cross_entropy(&head.values, &batch.starts, &spans)
        }
    }
}

/// What a masked-LM head said of the hidden tokens against what they were; `[tokens]`, see
/// [`Objective::input`].
pub fn masked_loss(head: &HeadTape, targets: &[Option<u32>]) -> Loss {
    let hidden: Vec<_> = targets.iter().filter(|t| t.is_some()).copied().collect();
    cross_entropy(&head.values, head.width, &hidden)
}

/// The tokens at which something is asked.
pub fn places(targets: &[Option<u32>]) -> Vec<usize> {
    (0..targets.len()).filter(|&t| targets[t].is_some()).collect()
}

/// The number by which [`Masker::hide`] draws at a point in time. The part counts in the last bits: no run
/// gathers more than 65,536 batches for an update.
pub fn masking_step(at: Moment) -> u64 {
    (at.update as u64) << 16 | at.part as u64
}

/// As [`masking_step`], for texts that are judged by; no update draws the same.
pub const JUDGED: u64 = u64::MAX;

/// `batch` with its texts numbered by `rows`, those of the data.
pub fn renumbered(mut batch: Batch, rows: &[usize]) -> Batch {
    batch.rows.iter_mut().for_each(|row| *row = rows[*row]);
    batch
}

/// Labels, or hidden tokens, and nothing else.
#[derive(Debug)]
pub struct TaskObjective<'a> {
    pub vocab: usize,
    pub targets: Option<&'a Targets>,
    /// For masked-LM models, which need no labels.
    pub masker: Option<&'a Masker>,
    /// Rows of the data that batches are numbered by.
    pub rows: Vec<usize>,
    /// Texts to judge by, numbered by rows of the data.
    pub held: Vec<Batch>,
    pub seed: u64,
}

impl TaskObjective<'_> {
    fn of(&self, head: &HeadTape, batch: &Batch, hidden: &[Option<u32>]) -> Loss {
        match self.targets {
            Some(targets) if self.masker.is_none() => loss(head, batch, targets),
            _ => masked_loss(head, hidden),
        }
    }
}

impl Objective for TaskObjective<'_> {
    fn input<'a>(&self, batch: &'a Batch, at: Moment) -> (Cow<'a, Batch>, Vec<Option<u32>>) {
        let Some(masker) = self.masker else { return (Cow::Borrowed(batch), Vec::new()) };
        let (hidden, asked) = masker.hide(batch, self.vocab, self.seed, masking_step(at));
        (Cow::Owned(hidden), asked)
    }

    fn loss(&self, seen: &Seen) -> Result<Verdict> {
        let depth = seen.encoder.layers.len();
        let last = tape::hidden(seen.tapes, depth);
        let picked = places(seen.targets);
        let head = head::forward(seen.encoder, seen.left, &last, &picked, None, seen.dropout);
        let batch = renumbered(seen.batch.clone(), &self.rows);
        let loss = self.of(&head, &batch, seen.targets);
        Ok(Verdict {
            losses: vec![("task", loss.value)],
            signal: Signal::new(depth),
            head: Some((head, loss.grad)),
            own: Vec::new(),
        })
    }

    fn judge(&self, encoder: &Encoder) -> Result<Option<f64>> {
        let (mut sum, mut texts) = (0.0, 0);
        for batch in &self.held {
            let (hidden, asked) = match self.masker {
                Some(masker) => masker.hide(batch, self.vocab, self.seed, JUDGED),
                None => (batch.clone(), Vec::new()),
            };
            let last = encoder.hidden(&hidden, None, &mut NoObserver)?;
            let (left, picked) = (&last.batch, places(&asked));
            let head = head::forward(encoder, left, &last.x, &picked, None, Dropout::default());
            sum += self.of(&head, batch, &asked).value * batch.texts() as f64;
            texts += batch.texts();
        }
        Ok((texts > 0).then(|| sum / texts as f64))
    }
}
