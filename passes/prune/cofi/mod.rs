//! Pruning in training: CoFi (Xia et al. 2022).

mod objective;
mod settle;
#[cfg(test)]
mod tests;

use super::budget::Budget;
use super::price::{Open, Price, prunable};
use super::{Prune, Shape, Start};
use crate::checkpoint::Tensor;
use crate::data::Dataset;
use crate::model::slice::Masks;
use crate::model::{Head, Linear, Model, Part};
use crate::pass::Context;
use crate::report::Training;
use crate::train::distillation::{Distillation, Terms};
use crate::train::fit::{Keep, Settings, fit};
use crate::train::gates;
use crate::train::lagrangian::{Lagrangian, Warmup};
use crate::train::losses::Projection;
use crate::train::sampling::{Order, split};
use crate::train::schedule::Schedule;
use crate::train::trainer::Trainer;
use crate::{Error, Result};
use objective::{Cofi, Gated};
use settle::{HOVERING, TOLERANCE, settle};

pub use settle::MISSED;

/// What training made of a model.
pub struct Done {
    /// What it was cut by, of the model as it came.
    pub masks: Masks,
    pub trainings: Vec<Training>,
    pub notes: Vec<String>,
    /// CoFi's expected sparsity at the end of the gates' training, by its own count.
    pub expected: f64,
}

/// Share of the updates after which blocks are decided; see [`Cofi::decided`].
const DECIDED: f64 = 0.75;
/// Learning rate of the multipliers, relative to that of the masks.
const LAMBDA: f32 = 0.3;
/// Logit of a gate that mode `text` has closed, and the lowest there is then: P(z > 0) is 0.012. At CoFi's bound it
/// is 0.047, and at a sparsity of 0.95 the closed gates alone would be expected to leave as much as may be left:
/// what is cut could not come near to what is expected.
const CLOSED: f32 = -6.0;
/// Judgements of a loop.
const JUDGEMENTS: usize = 10;

/// Trains weights and masks of `model` together until no more of it is left than `budget` allows, cuts it,
/// and trains what is left.
///
/// # Errors
/// What training refuses; gates that have not settled.
pub fn run(prune: &Prune, model: &mut Model, budget: Budget, cx: &Context) -> Result<Done> {
    let Some(data) = cx.data else { unreachable!("the caller has looked for data") };
    let (train, held) = split(data.texts.len());
    if train.is_empty() {
        return Err(Error::Mismatch {
            found: format!("prune has no text in {}", data.source),
            expected: "it trains on some".into(),
            advice: "give a file with more texts",
        });
    }
    let loops = Loops { prune, data, train, held, cx };
    let mut logits = logits(model);
    // Without training a uniform shape keeps all layers, and so not every target can be reached.
    let start = if prune.shape == Shape::Uniform { Start::Open } else { prune.start };
    let warm = start == Start::Text && cx.calibration.is_some();
    if let (true, Some(text)) = (warm, cx.calibration) {
        let before = model.clone();
        let masks = prune.without_training(model, &before, &budget, Some(text), cx)?;
        *model = uncut(&before, model, &masks)?;
        let close = |logits: &mut [Vec<f32>], masks: &[Vec<f32>]| {
            let gates = logits.iter_mut().flatten().zip(masks.iter().flatten());
            gates.filter(|(_, z)| **z == 0.0).for_each(|(logit, _)| *logit = CLOSED);
        };
        close(&mut logits.heads, &masks.heads);
        close(&mut logits.units, &masks.units);
    }
    let before = model.clone();
    let (mut done, projection) = loops.gates(model, &before, budget, logits, warm)?;
    *model = model.sliced(&done.masks)?;
    done.trainings.push(loops.finetune(model, projection)?);
    Ok(done)
}

/// What both loops of a run share.
struct Loops<'a> {
    prune: &'a Prune,
    data: &'a Dataset,
    /// Rows of the data to train on, and to judge by.
    train: Vec<usize>,
    held: Vec<usize>,
    cx: &'a Context<'a>,
}

impl<'a> Loops<'a> {
    fn order(&self) -> Order {
        Order::Shuffled {
            lengths: self.train.iter().map(|&row| self.data.texts[row].ids.len()).collect(),
            batch: self.prune.batch.min(self.train.len()),
            bucket: 0,
            seed: self.cx.seed,
        }
    }

    /// Updates of a pass over the texts.
    fn epoch(&self) -> usize {
        self.order().epoch()
    }

    fn objective(&self, student: &Model) -> Result<Distillation<'a>> {
        let terms = Terms {
            temperature: self.prune.temperature,
            prediction: self.prune.prediction,
            hidden: self.prune.hidden,
            matching: self.prune.matching,
            ..Terms::default()
        };
        let cx = self.cx;
        let mut inner =
            Distillation::new(terms, cx.teacher, student, self.data, &self.held, cx.seed)?;
        inner.rows.clone_from(&self.train);
        Ok(inner)
    }

    fn settings(&self, steps: usize, rate: f64, keep: Keep) -> Settings {
        Settings {
            steps,
            accumulate: 1,
            rate: rate as f32,
            warmup: 0,
            schedule: Schedule::Linear,
            decay: 0.0,
            clip: 1.0,
            dropout: self.prune.dropout as f32,
            evaluate: steps.div_ceil(JUDGEMENTS),
            keep,
            patience: 0,
            seed: self.cx.seed,
        }
    }

    fn training(&self, method: &str, params: usize) -> Training {
        Training {
            method: method.into(),
            data: self.data.source.clone(),
            texts: self.train.len(),
            held_out: self.held.len(),
            labels: false,
            params,
            batch: self.prune.batch.min(self.train.len()),
            ..Training::default()
        }
    }

    /// Trains masks and weights together. The tables stay as they are (CoFi notes, §3.4).
    fn gates(
        &self,
        model: &mut Model,
        before: &Model,
        budget: Budget,
        logits: Masks,
        warm: bool,
    ) -> Result<(Done, Option<Projection>)> {
        let prune = self.prune;
        let steps = prune.gate_steps(self.epoch());
        let uniform = prune.shape == Shape::Uniform;
        let states = matches!(model.head, Head::Embedding { .. } | Head::Bare { .. });
        let gated = Gated {
            heads: !uniform,
            hidden: prune.width && !uniform && !states,
            whole_layers: uniform,
        };
        let mut inner = self.objective(before)?;
        let (wide, narrow) = (self.cx.teacher.config.hidden, before.config.hidden);
        if prune.hidden > 0.0 {
            inner.projection = Some(Projection::new(wide, narrow));
        }
        let mut cofi = Cofi {
            inner,
            logits,
            gated,
            lagrangian: Lagrangian::default(),
            least: if warm { CLOSED } else { -gates::BOUND },
            there: Open::all(before),
            warmup: Warmup {
                from: 0.0,
                to: budget.target,
                steps: (prune.warmup * steps as f64).round() as u32,
            },
            decided: (DECIDED * steps as f64).round() as u32,
            budget,
            rates: [prune.mask_rate(steps), LAMBDA * prune.mask_rate(steps)],
            seed: self.cx.seed,
        };
        cofi.warmup.from = cofi.sparsity(0).min(cofi.warmup.to);
        let mut trainer = Trainer::new(before, |part| matches!(part, Part::Layer(_) | Part::Head))?;
        let texts: Vec<_> = self.train.iter().map(|&row| self.data.texts[row].clone()).collect();
        let settings = self.settings(steps, prune.rate, Keep::Last);
        let progress = ("prune", self.cx.progress);
        let history = fit(
            &mut trainer,
            &mut cofi,
            &texts,
            &self.order(),
            &settings,
            self.cx.state,
            progress,
        )?;
        let training =
            self.training("CoFi, masks and weights", trainer.trained_params()).with(&history);

        let expected = cofi.sparsity(steps as u32);
        let drawn = cofi.hard_sparsity();
        let asked = cofi.budget.target;
        let mut masks = settle(&cofi, prune.round_to, uniform);
        let cut = cofi.budget.sparsity(&cofi.hard(&masks));
        if (expected - cut).abs() > TOLERANCE
            || (expected - drawn).abs() > HOVERING
            || (expected - asked).abs() > MISSED
        {
            let open = settle::histogram(&cofi.expected(steps as u32));
            return Err(Error::Mismatch {
                found: format!(
                    "the gates have not settled: {} {:.3} is asked for, {expected:.3} expected of the gates, \
                     {drawn:.3} of the masks that come of them, and {cut:.3} of these in whole widths (gates by \
                     how open they are, in tenths: {open:?})",
                    cofi.budget.name, asked,
                ),
                expected: format!(
                    "what is cut and what is expected lie within {TOLERANCE}, and that within {MISSED} of what is \
                     asked for"
                ),
                advice: "train for more `steps`, with another `mask_rate` or a smaller `round_to`, or on more texts, \
                         and remove the state of --resume",
            });
        }
        // What the gates came to is checked above: from here on a speed that is missed may move the cut further
        // than they were trained for, and fine-tuning makes up for it.
        let mut speed = Vec::new();
        while let Some(found) = cofi.budget.measured(before, &before.sliced(&masks)?)? {
            if cofi.budget.reached(found, &mut speed) {
                break;
            }
            masks = settle(&cofi, prune.round_to, uniform);
        }
        let cut = cofi.budget.sparsity(&cofi.hard(&masks));
        let mut notes = vec![format!(
            "mode train (CoFi, from {}): {} {asked:.4} asked for, {expected:.4} expected of the gates, \
             {cut:.4} cut",
            if warm { "what mode text leaves" } else { "all gates open" },
            cofi.budget.name,
        )];
        notes.extend(speed);
        let price = match gated.hidden {
            true => Price::expected(&before.config),
            false => Price::expected_at_full_width(&before.config),
        };
        let by_paper = 1.0 - price.of(&cofi.expected(steps as u32)) / prunable(&before.config);
        let projection = cofi.inner.projection.take().map(|p| narrowed(p, &masks));
        drop(cofi);
        trainer.finish().put(model)?;
        Ok((Done { masks, trainings: vec![training], notes, expected: by_paper }, projection))
    }

    /// Trains what is left (CoFi notes, §5.5): the same losses, no masks.
    fn finetune(&self, model: &mut Model, projection: Option<Projection>) -> Result<Training> {
        let prune = self.prune;
        let before = model.clone();
        let mut objective = self.objective(&before)?;
        objective.projection = projection;
        let mut trainer =
            Trainer::new(&before, |part| matches!(part, Part::Layer(_) | Part::Head))?;
        let texts: Vec<_> = self.train.iter().map(|&row| self.data.texts[row].clone()).collect();
        let steps = prune.finetune_steps(self.epoch());
        let settings = self.settings(steps, prune.finetune_rate, Keep::Best);
        let state = self.cx.state.map(|s| s.part("finetune"));
        let progress = ("prune: fine-tuning", self.cx.progress);
        let order = self.order();
        let history =
            fit(&mut trainer, &mut objective, &texts, &order, &settings, state.as_ref(), progress)?;
        let training = self.training("fine-tuning of what is left", trainer.trained_params());
        let trained = trainer.finish();
        drop(objective);
        trained.put(model)?;
        Ok(training.with(&history))
    }
}

/// `cut`, which `masks` made of `before` and whose output matrices were repaired, with what was cut in its
/// place again.
fn uncut(before: &Model, cut: &Model, masks: &Masks) -> Result<Model> {
    let mut model = before.clone();
    let wide = |old: &Linear, new: &Linear, mask: &[f32], dim: usize| -> Result<Linear> {
        let (tensor, cols) = (old.weight.dense()?, old.weight.cols());
        let mut values = tensor.to_f32()?.into_owned();
        let repaired = new.weight.to_f32()?;
        let left: Vec<usize> = (0..cols).filter(|c| mask[c / dim] != 0.0).collect();
        // An attention block may have no heads left.
        let rows = values.chunks_exact_mut(cols.max(1));
        for (row, from) in rows.zip(repaired.chunks_exact(left.len().max(1))) {
            left.iter().zip(from).for_each(|(&c, v)| row[c] = *v);
        }
        let tensor = Tensor::from_f32(tensor.name.clone(), &tensor.shape, &values, tensor.dtype);
        Ok(Linear::dense(tensor, new.bias.clone()))
    };
    for (l, (old, new)) in model.layers.iter_mut().zip(&cut.layers).enumerate() {
        if let (Some(old), Some(new)) = (&mut old.attention, &new.attention) {
            old.output = wide(&old.output, &new.output, &masks.heads[l], old.head_dim)?;
        }
        if let (Some(old), Some(new)) = (&mut old.ffn, &new.ffn) {
            old.down = wide(&old.down, &new.down, &masks.units[l], 1)?;
        }
    }
    Ok(model)
}

/// Logits to begin with: all gates open. (CoFi begins those of units at 0, by mistake as its author thinks;
/// notes, §2. Its 10 for the others is this after one update.)
fn logits(model: &Model) -> Masks {
    let mut logits = Masks::ones(model);
    let Masks { heads, units, attention, ffn, hidden } = &mut logits;
    let all = heads.iter_mut().chain(units).chain([attention, ffn, hidden]).flatten();
    all.for_each(|logit| *logit = gates::BOUND);
    logits
}

/// Without the columns of hidden dimensions that are gone.
fn narrowed(projection: Projection, masks: &Masks) -> Projection {
    let width = masks.hidden.len();
    let rows = projection.weight.chunks_exact(width);
    let kept = |row: &[f32]| -> Vec<f32> {
        // What a kept dimension is multiplied by now stands in the LayerNorms before it.
        (0..width).filter(|&i| masks.hidden[i] != 0.0).map(|i| row[i]).collect()
    };
    Projection { weight: rows.flat_map(kept).collect(), bias: projection.bias }
}
