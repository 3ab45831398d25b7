//! The training loop.

use super::objective::{Moment, Objective};
use super::sampling::{Cache, Order};
use super::schedule::Schedule;
use super::state::{Best, StateFile};
use super::tape::Dropout;
use super::trainer::Trainer;
use crate::data::tokenizer::Encoded;
use crate::progress::Progress;
use crate::runtime::Batch;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::time::Instant;

/// How the loop goes.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Updates of the weights.
    pub steps: usize,
    /// Batches whose mean gradient makes one update.
    pub accumulate: usize,
    pub rate: f32,
    /// Updates in which the rate climbs.
    pub warmup: usize,
    pub schedule: Schedule,
    /// Decoupled weight decay of matrices and tables.
    pub decay: f32,
    /// The gradient is shortened to this length; 0 for never.
    pub clip: f32,
    /// Rates of dropout behind blocks and on attention probabilities.
    pub dropout: f32,
    /// Updates between two judgements; 0 for none.
    pub evaluate: usize,
    pub keep: Keep,
    /// Judgements without gain before the loop stops early; 0 for never.
    pub patience: usize,
    pub seed: u64,
}

/// Which weights the loop leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// The best that were judged; the last, where none were.
    Best,
    /// The last, for a model that shrinks on its way: judgements are shown and decide nothing, and there is
    /// no patience.
    Last,
}

/// What happened.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct History {
    /// Updates done.
    pub steps: usize,
    /// Tokens that the model was trained on.
    pub tokens: u64,
    pub points: Vec<Point>,
    /// The update whose weights are kept, and how they were judged; `None` where none were judged, and where
    /// the last are kept.
    pub best: Option<(usize, f64)>,
    /// Judgements since.
    pub waited: usize,
    /// Sums of the parts of the loss since the last point, and how many batches they are of.
    sums: Vec<(String, f64)>,
    batches: usize,
}

/// The loss up to an update, since the point before.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Point {
    pub step: usize,
    /// Parts of the loss on what was trained on, weighted, by name: means since the point before.
    pub losses: Vec<(String, f64)>,
    /// On what was held out.
    pub judged: Option<f64>,
}

impl History {
    fn add(&mut self, losses: &[(&'static str, f64)]) {
        for (name, value) in losses {
            match self.sums.iter_mut().find(|(n, _)| n == name) {
                Some((_, sum)) => *sum += value,
                None => self.sums.push((name.to_string(), *value)),
            }
        }
        self.batches += 1;
    }

    /// Closes the stretch since the last point.
    fn close(&mut self, judged: Option<f64>) {
        let batches = self.batches.max(1) as f64;
        let losses = self.sums.drain(..).map(|(name, sum)| (name, sum / batches)).collect();
        self.batches = 0;
        self.points.push(Point { step: self.steps, losses, judged });
    }

    /// Mean loss since the last point.
    fn loss(&self) -> f64 {
        self.sums.iter().map(|(_, sum)| sum).sum::<f64>() / self.batches.max(1) as f64
    }
}

/// Points of a history without judgements.
const STRETCHES: usize = 10;

/// Trains on `texts` in `order` and leaves the weights that [`Settings::keep`] names in `trainer`.
///
/// With `state`, an earlier run that was stopped goes on where it stood, and gives the same bytes as one
/// that was not.
///
/// # Errors
/// What the objective refuses; [`Error::Diverged`]; [`Error::Interrupted`], after the state was saved.
pub fn fit(
    trainer: &mut Trainer,
    objective: &mut dyn Objective,
    texts: &[Encoded],
    order: &Order,
    settings: &Settings,
    state: Option<&StateFile>,
    progress: (&str, &dyn Progress),
) -> Result<History> {
    let (name, progress) = progress;
    progress.start(name, settings.steps);
    let mut best: Best = Vec::new();
    let mut history = History::default();
    match state.map(|s| s.load(trainer, objective)).transpose()?.flatten() {
        Some((found, values)) => {
            (history, best) = (found, values);
            progress.log(&format!("{name}: going on after step {}", history.steps));
            (0..history.steps).try_for_each(|_| progress.step())?;
        }
        None if settings.evaluate > 0 => {
            judge(trainer, objective, settings.keep, &mut history, &mut best)?;
            tell(
                name,
                &history,
                settings.steps,
                0.0,
                objective.note(history.steps as u32),
                progress,
            );
        }
        None => {}
    }
    let (start, before) = (Instant::now(), history.tokens);
    let stretch = settings.steps.div_ceil(STRETCHES);
    let mut saved = Instant::now();
    let mut cache = Cache::default();
    while history.steps < settings.steps && !stopped(&history, settings) {
        for part in 0..settings.accumulate {
            let rows = order.batch(history.steps * settings.accumulate + part, &mut cache);
            let mut batch = Batch::default();
            for &row in rows {
                batch.push(&texts[row].ids, &texts[row].type_ids, row);
            }
            let at = Moment { update: history.steps as u32, part: part as u32 };
            let key = settings.seed ^ (at.update as u64) << 24 ^ part as u64;
            let rate = settings.dropout;
            let dropout = Dropout { hidden: rate, attention: rate, key };
            let losses = trainer.gather(objective, &batch, dropout, at)?;
            history.add(&losses);
            history.tokens += batch.tokens() as u64;
        }
        let factor = settings.schedule.factor(history.steps, settings.steps, settings.warmup);
        trainer.update(objective, settings.rate * factor, settings.decay, settings.clip)?;
        history.steps += 1;
        let rate = (history.tokens - before) as f64 / start.elapsed().as_secs_f64();
        progress.note(&format!("loss {:.4}, {rate:.0} tokens/s", history.loss()));
        let last = history.steps == settings.steps;
        if settings.evaluate > 0 && (last || history.steps.is_multiple_of(settings.evaluate)) {
            judge(trainer, objective, settings.keep, &mut history, &mut best)?;
            tell(
                name,
                &history,
                settings.steps,
                rate,
                objective.note(history.steps as u32),
                progress,
            );
        } else if last || (settings.evaluate == 0 && history.steps.is_multiple_of(stretch)) {
            history.close(None);
            tell(
                name,
                &history,
                settings.steps,
                rate,
                objective.note(history.steps as u32),
                progress,
            );
        }
        let asked = progress.step();
        let over = last || stopped(&history, settings);
        if let Some(state) = state
            && (asked.is_err() || over || saved.elapsed() >= state.every)
        {
            state.save(trainer, objective, &history, &best)?;
            saved = Instant::now();
        }
        asked?;
    }
    for (parameter, values) in trainer.parameters().into_iter().zip(best) {
        *parameter.values = values;
    }
    trainer.refresh();
    Ok(history)
}

fn stopped(history: &History, settings: &Settings) -> bool {
    settings.patience > 0 && history.waited >= settings.patience
}

fn judge(
    trainer: &mut Trainer,
    objective: &dyn Objective,
    keep: Keep,
    history: &mut History,
    best: &mut Best,
) -> Result<()> {
    let judged = objective.judge(&trainer.encoder)?;
    history.close(judged);
    let Some(judged) = judged else { return Ok(()) };
    if !judged.is_finite() {
        return Err(Error::Diverged { step: history.steps, found: judged });
    }
    if keep == Keep::Last {
        return Ok(());
    }
    history.waited += 1;
    if history.best.is_none_or(|(_, least)| judged < least) {
        history.best = Some((history.steps, judged));
        history.waited = 0;
        *best = trainer.parameters().into_iter().map(|p| p.values.clone()).collect();
    }
    Ok(())
}

fn tell(
    name: &str,
    history: &History,
    steps: usize,
    rate: f64,
    note: Option<String>,
    progress: &dyn Progress,
) {
    let Some(point) = history.points.last() else { return };
    let mut line = format!("{name}: step {} of {steps}", point.step);
    if !point.losses.is_empty() {
        let parts: Vec<String> =
            point.losses.iter().map(|(name, value)| format!("{name} {value:.4}")).collect();
        line += &format!(", loss: {}", parts.join(" + "));
    }
    if let Some(judged) = point.judged {
        let best = history.best.is_some_and(|(step, _)| step == point.step);
        line += &format!(", held out {judged:.4}{}", if best { " (best)" } else { "" });
    }
    if let Some(note) = note {
        line += &format!(", {note}");
    }
    if rate > 0.0 {
        line += &format!(", {rate:.0} tokens/s");
    }
    progress.log(&line);
}
