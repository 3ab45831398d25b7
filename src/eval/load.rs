//! Several models timed on the same work, in turn.

use super::latency::{max_tokens, synthetic};
use super::metrics::percentile;
use crate::Result;
use crate::data::batches::bucket;
use crate::data::tokenizer::Encoded;
use crate::model::Model;
use crate::runtime::{Batch, Encoder, NoObserver};
use rayon::prelude::*;
use serde::Serialize;
use std::time::Instant;

/// Texts to be run through a model, batch by batch.
#[derive(Debug, Clone, PartialEq)]
pub struct Load {
    /// Texts of a batch; the last may have fewer.
    pub batch: usize,
    pub batches: Vec<Batch>,
}

/// How long a [`Load`] takes, once through.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Timing {
    pub batch: usize,
    pub texts: usize,
    /// Of all texts, without padding: none is run.
    pub tokens: usize,
    pub runs: usize,
    /// Of one batch, on average: what somebody who sends one waits for.
    pub batch_ms: Spread,
    pub texts_per_second: f64,
    pub tokens_per_second: f64,
    /// How many times as fast as the first model, run by run.
    pub speedup: Spread,
}

/// The median of several runs, and the quarters of them around it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    pub median: f64,
    pub low: f64,
    pub high: f64,
}

impl Load {
    /// `batch` texts of `tokens` tokens each, spread over the vocabulary, always the same.
    pub fn synthetic(model: &Model, batch: usize, tokens: usize) -> Load {
        let longest = max_tokens(&model.config, model.family);
        let one = synthetic(&model.config, tokens.min(longest));
        let mut texts = Batch::default();
        (0..batch).for_each(|row| texts.push(&one.ids, &one.type_ids, row));
        Load { batch, batches: vec![texts] }
    }

    /// `texts`, sorted by length, in batches of `batch`, or of all of them where there are fewer.
    pub fn of(texts: &[Encoded], batch: usize) -> Load {
        let batch = batch.min(texts.len()).max(1);
        Load { batch, batches: bucket(texts, usize::MAX, batch) }
    }

    fn texts(&self) -> usize {
        self.batches.iter().map(Batch::texts).sum()
    }

    fn tokens(&self) -> usize {
        self.batches.iter().map(Batch::tokens).sum()
    }
}

/// Runs one batch on all threads: texts side by side, each on one thread.
///
/// # Errors
/// As [`Encoder::forward`].
pub fn run(encoder: &Encoder, batch: &Batch) -> Result<()> {
    let parts = parts(batch, rayon::current_num_threads());
    match &parts[..] {
        [] => Ok(()),
        [_] => encoder.forward(batch, None, &mut NoObserver).map(drop),
        parts => parts
            .par_iter()
            .try_for_each(|part| encoder.forward(part, None, &mut NoObserver).map(drop)),
    }
}

/// `batch` cut between texts into at most `n` parts of about as many tokens.
fn parts(batch: &Batch, n: usize) -> Vec<Batch> {
    let mut cuts = vec![0];
    for part in 1..=n {
        let wanted = batch.tokens() * part / n;
        // The text boundary nearest to an even share.
        let after = batch.starts.partition_point(|&start| start < wanted);
        let nearer = after > 0 && wanted - batch.starts[after - 1] < batch.starts[after] - wanted;
        let cut = if nearer { after - 1 } else { after };
        if cut > cuts[cuts.len() - 1] {
            cuts.push(cut);
        }
    }
    cuts.windows(2).map(|cut| batch.part(cut[0], cut[1])).collect()
}

/// Times every model on its loads, `[models][loads]`, `runs` times each: one after the other in every round, so that
/// all of them see the same noise; the first round warms up and does not count.
///
/// Models may cut the same texts into tokens of their own: loads at the same place are the same work.
///
/// # Errors
/// As [`Encoder::forward`].
///
/// # Panics
/// If there are no runs, or not as many loads for each model.
pub fn time(
    encoders: &[&Encoder],
    loads: &[Vec<Load>],
    runs: usize,
    step: &dyn Fn() -> Result<()>,
) -> Result<Vec<Vec<Timing>>> {
    assert!(runs > 0, "a median needs a run");
    assert_eq!(encoders.len(), loads.len(), "loads of every model");
    let count = loads.first().map_or(0, Vec::len);
    assert!(loads.iter().all(|of| of.len() == count), "as many loads for each model");
    let load = |m: usize, l: usize| &loads[m][l];
    let mut timings = vec![Vec::with_capacity(count); encoders.len()];
    for l in 0..count {
        let mut ms = vec![Vec::with_capacity(runs); encoders.len()];
        for run in 0..=runs {
            for (m, encoder) in encoders.iter().enumerate() {
                let start = Instant::now();
                load(m, l).batches.iter().try_for_each(|batch| self::run(encoder, batch))?;
                if run > 0 {
                    ms[m].push(start.elapsed().as_secs_f64() * 1e3);
                }
            }
            step()?;
        }
        for (m, timings) in timings.iter_mut().enumerate() {
            let load = load(m, l);
            let ratios = ms[0].iter().zip(&ms[m]).map(|(first, own)| first / own).collect();
            let whole = Spread::of(ms[m].clone());
            let batches = load.batches.len().max(1) as f64;
            let per_second = |n: usize| n as f64 / whole.median.max(1e-9) * 1e3;
            timings.push(Timing {
                batch: load.batch,
                texts: load.texts(),
                tokens: load.tokens(),
                runs,
                batch_ms: whole.map(|ms| ms / batches),
                texts_per_second: per_second(load.texts()),
                tokens_per_second: per_second(load.tokens()),
                speedup: Spread::of(ratios),
            });
        }
    }
    Ok(timings)
}

impl Spread {
    /// # Panics
    /// If there are no values.
    pub fn of(mut values: Vec<f64>) -> Spread {
        values.sort_by(f64::total_cmp);
        let at = |share| percentile(&values, share);
        Spread { median: at(0.5), low: at(0.25), high: at(0.75) }
    }

    fn map(self, f: impl Fn(f64) -> f64) -> Spread {
        Spread { median: f(self.median), low: f(self.low), high: f(self.high) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Task;
    use crate::model::testing::{batch, tiny};
    use std::cell::Cell;

    #[test]
    fn a_batch_is_cut_between_texts_into_even_parts() {
        let lengths = |n, of: &[usize]| -> Vec<Vec<usize>> {
            let spans = |b: &Batch| b.starts.windows(2).map(|s| s[1] - s[0]).collect();
            parts(&batch(3, of), n).iter().map(spans).collect()
        };
        assert_eq!(lengths(2, &[4, 4, 4, 4]), [[4, 4], [4, 4]]);
        assert_eq!(lengths(2, &[1, 1, 1, 9]), [vec![1, 1, 1], vec![9]]);
        assert_eq!(lengths(4, &[5, 5]), [[5], [5]], "no part is empty");
        assert_eq!(lengths(1, &[2, 3]), [[2, 3]]);
        assert_eq!(lengths(3, &[]), [[0usize; 0]; 0]);
    }

    #[test]
    fn models_are_timed_on_their_own_loads() {
        let model = tiny("bert", Task::SequenceClassification, 1);
        let encoder = Encoder::new(&model).expect("a model that runs");
        let loads = vec![
            vec![Load::synthetic(&model, 1, 5), Load::synthetic(&model, 3, 4)],
            vec![Load::synthetic(&model, 1, 2), Load::synthetic(&model, 3, 1)],
        ];
        let steps = Cell::new(0);
        let step = || {
            steps.set(steps.get() + 1);
            Ok(())
        };
        let timings = time(&[&encoder, &encoder], &loads, 3, &step).expect("runs");
        let sizes: Vec<Vec<_>> = timings
            .iter()
            .map(|t| t.iter().map(|t| (t.batch, t.texts, t.tokens)).collect())
            .collect();
        assert_eq!(sizes, [[(1, 1, 5), (3, 3, 12)], [(1, 1, 2), (3, 3, 3)]]);
        let one = Spread { median: 1.0, low: 1.0, high: 1.0 };
        assert!(timings[0].iter().all(|t| t.speedup == one && t.batch_ms.median > 0.0));
        assert_eq!(steps.get(), 2 * 4);
    }

    #[test]
    fn a_spread_is_the_median_and_its_quarters() {
        let spread = Spread::of(vec![5.0, 1.0, 2.0, 4.0, 3.0]);
        assert_eq!(spread, Spread { median: 3.0, low: 2.0, high: 4.0 });
        assert_eq!(Spread::of(vec![7.0]), Spread { median: 7.0, low: 7.0, high: 7.0 });
    }
}
