//! How long a forward pass takes.

use crate::model::{Config, Family};
use crate::runtime::{Batch, Encoder, NoObserver};
use crate::{Error, Result};
use serde::Serialize;
use std::time::Instant;

/// Latency of one text on one thread, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Latency {
    pub tokens: usize,
    pub runs: usize,
    pub median_ms: f64,
    pub min_ms: f64,
    pub max_ms: f64,
}

/// Times `runs` passes over one text of `tokens` tokens each for several models in turn, so that all of
/// them see the same noise; the first round warms up and does not count.
///
/// # Errors
/// As [`Encoder::forward`].
pub fn measure(encoders: &[&Encoder], tokens: usize, runs: usize) -> Result<Vec<Latency>> {
    on_one_thread(|| measured(encoders, tokens, runs))
}

/// Runs `work` where kernels find one thread to spread over: this one.
///
/// # Errors
/// If no thread can be started, and those of `work`.
pub fn on_one_thread<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build();
    let pool = pool.map_err(|e| Error::Mismatch {
        found: format!("no thread could be started to time on ({e})"),
        expected: "one is needed".into(),
        advice: "raise the limit of threads and processes",
    })?;
    pool.install(work)
}

fn measured(encoders: &[&Encoder], tokens: usize, runs: usize) -> Result<Vec<Latency>> {
    let mut times = vec![Vec::with_capacity(runs); encoders.len()];
    for run in 0..=runs {
        for (encoder, times) in encoders.iter().zip(&mut times) {
            let batch = synthetic(&encoder.model.config, tokens);
            let start = Instant::now();
            encoder.forward(&batch, None, &mut NoObserver)?;
            if run > 0 {
                times.push(start.elapsed().as_secs_f64() * 1e3);
            }
        }
    }
    let summary = |mut times: Vec<f64>| {
        times.sort_by(f64::total_cmp);
        Latency {
            tokens,
            runs,
            median_ms: times[times.len() / 2],
            min_ms: times[0],
            max_ms: times[times.len() - 1],
        }
    };
    Ok(times.into_iter().map(summary).collect())
}

/// A text of `tokens` tokens spread over the vocabulary, always the same.
pub fn synthetic(config: &Config, tokens: usize) -> Batch {
    let ids: Vec<u32> = (0..tokens)
        .map(|i| {
            let id = ((i * 7919 + 13) % config.vocab) as u32;
            if id == config.pad_id { (id + 1) % config.vocab as u32 } else { id }
        })
        .collect();
    let mut batch = Batch::default();
    batch.push(&ids, &vec![0; tokens], 0);
    batch
}

/// The most tokens that a text of this model may have, special ones included.
pub fn max_tokens(config: &Config, family: &Family) -> usize {
    use crate::model::family::Positions;
    let offset = match family.positions {
        Positions::FromZero => 0,
        Positions::AfterPadding => config.pad_id as usize + 1,
        Positions::AfterOne => 2,
    };
    config.max_positions.saturating_sub(offset).max(1)
}
