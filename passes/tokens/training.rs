//! Token pruning in training: ToP (Li et al. 2023; notes, §5).

use super::budget::Budget;
use super::gated::Gated;
use super::{Start, Tokens, refusal, words};
use crate::data::Dataset;
use crate::model::{Model, Part, TokenSchedule};
use crate::pass::Context;
use crate::report::Training;
use crate::train::distillation::{Distillation, RankingTerm, Terms};
use crate::train::fit::{Keep, Settings, fit};
use crate::train::gates;
use crate::train::lagrangian::{Lagrangian, Warmup};
use crate::train::losses::Matching;
use crate::train::sampling::{Order, split};
use crate::train::schedule::Schedule;
use crate::train::trainer::Trainer;
use crate::{Error, Result};

/// Logit of a bin that a schedule has turned off before training, and the lowest there is: P(z > 0) is 0.012. At the
/// usual bound it is 0.047, and the bins that are off would be expected to leave a twentieth.
const CLOSED: f32 = -6.0;
/// Share of the updates after which sites are decided; see [`Gated::decided`].
const DECIDED: f64 = 0.75;
/// How far what is expected at the end and what is cut may lie apart: bins are drawn to the last, and what is cut is
/// brought to the budget by turning the nearest of them.
const TOLERANCE: f64 = 0.05;
/// Judgements of a loop.
const JUDGEMENTS: usize = 10;

/// What training left.
pub struct Done {
    pub schedule: TokenSchedule,
    pub trainings: Vec<Training>,
    pub note: String,
    pub expected: f64,
}

/// Trains bins, sites and weights together until what is left meets the budget, then the weights alone.
pub struct Loops<'a> {
    tokens: &'a Tokens,
    data: &'a Dataset,
    train: Vec<usize>,
    held: Vec<usize>,
    cx: &'a Context<'a>,
}

impl<'a> Loops<'a> {
    /// # Errors
    /// Without texts to train on.
    pub fn new(tokens: &'a Tokens, data: &'a Dataset, cx: &'a Context<'a>) -> Result<Loops<'a>> {
        let (train, held) = split(data.texts.len());
        if train.is_empty() {
            return Err(Error::Mismatch {
                found: format!("tokens has no text in {}", data.source),
                expected: "it trains on some".into(),
                advice: "give a file with more texts",
            });
        }
        Ok(Loops { tokens, data, train, held, cx })
    }

    /// Trains `model` under `budget`, whose model is as it was before; `start` is what mode `text` found.
    ///
    /// # Errors
    /// What training refuses; gates that have not settled.
    pub fn run(
        &self,
        model: &mut Model,
        budget: &Budget,
        flops: f64,
        start: Option<TokenSchedule>,
    ) -> Result<Done> {
        let (mut done, training) = self.gates(model, budget, flops, start)?;
        done.trainings.push(training);
        model.tokens = done.schedule.drops().then(|| done.schedule.clone());
        done.trainings.extend(self.finetune(model)?);
        Ok(done)
    }

    fn order(&self) -> Order {
        Order::Shuffled {
            lengths: self.train.iter().map(|&row| self.data.texts[row].ids.len()).collect(),
            batch: self.tokens.batch.min(self.train.len()),
            bucket: 0,
            seed: self.cx.seed,
        }
    }

    /// Updates of bins, sites and weights.
    fn steps(&self) -> usize {
        match self.tokens.steps {
            0 => (5 * self.order().epoch()).clamp(200, 1000),
            steps => steps,
        }
    }

    /// The paper's, or where gates have to travel from one end to the other, fast enough to do so within a fraction
    /// of the warm-up.
    fn gate_rate(&self, steps: usize, travel: bool) -> f32 {
        match self.tokens.mask_rate {
            0.0 if travel => (20.0 / steps as f32).max(0.02),
            0.0 => 0.02,
            rate => rate as f32,
        }
    }

    fn objective(&self, student: &Model, ranking: RankingTerm) -> Result<Distillation<'a>> {
        let tokens = self.tokens;
        let terms = Terms {
            temperature: tokens.temperature,
            prediction: tokens.prediction,
            hidden: tokens.hidden,
            matching: Matching::Uniform,
            task: tokens.task,
            ranking,
            ..Terms::default()
        };
        let cx = self.cx;
        let mut inner =
            Distillation::new(terms, cx.teacher, student, self.data, &self.held, cx.seed)?;
        inner.rows.clone_from(&self.train);
        Ok(inner)
    }

    fn settings(&self, steps: usize, keep: Keep) -> Settings {
        Settings {
            steps,
            accumulate: 1,
            rate: self.tokens.rate as f32,
            warmup: 0,
            schedule: Schedule::Linear,
            decay: 0.0,
            clip: 1.0,
            dropout: self.tokens.dropout as f32,
            evaluate: steps.div_ceil(JUDGEMENTS),
            keep,
            patience: 0,
            seed: self.cx.seed,
        }
    }

    fn training(&self, method: &str, params: usize, labels: bool) -> Training {
        Training {
            method: method.into(),
            data: self.data.source.clone(),
            texts: self.train.len(),
            held_out: self.held.len(),
            labels,
            params,
            batch: self.tokens.batch.min(self.train.len()),
            ..Training::default()
        }
    }

    fn gates(
        &self,
        model: &mut Model,
        budget: &Budget,
        flops: f64,
        start: Option<TokenSchedule>,
    ) -> Result<(Done, Training)> {
        let tokens = self.tokens;
        let before = model.clone();
        let steps = self.steps();
        let warmup = (tokens.warmup * steps as f64).round() as u32;
        let ranking = RankingTerm {
            weight: tokens.ranking,
            kind: tokens.ranking_loss,
            top: tokens.top,
            warmup: warmup.max(1),
        };
        let score = start.as_ref().map_or_else(|| tokens.scores()[0], |s| s.score);
        let mut inner = self.objective(&before, ranking)?;
        inner.score = score;
        let labels = inner.labels();
        let (bins, sites) = logits(budget, start.as_ref());
        let mut gated = Gated {
            inner,
            budget,
            score,
            bins,
            sites,
            lagrangian: Lagrangian::default(),
            warmup: Warmup { from: 0.0, to: 1.0 - flops, steps: warmup },
            decided: (DECIDED * steps as f64).round() as u32,
            rate: self.gate_rate(steps, start.is_none()),
            least: if start.is_some() { CLOSED } else { -gates::BOUND },
            seed: self.cx.seed,
        };
        // From where the gates are, to either side: λ1 would first learn to bring them there, and then swing.
        gated.warmup.from = gated.expected(0);
        let mut trainer =
            Trainer::new(&before, |part| matches!(part, Part::Layer(_) | Part::Head))?;
        let texts: Vec<_> = self.train.iter().map(|&row| self.data.texts[row].clone()).collect();
        let settings = self.settings(steps, Keep::Last);
        let history = fit(
            &mut trainer,
            &mut gated,
            &texts,
            &self.order(),
            &settings,
            self.cx.state,
            ("tokens", self.cx.progress),
        )?;
        let training = self
            .training("ToP, schedule and weights", trainer.trained_params(), labels)
            .with(&history);
        let expected = 1.0 - gated.expected(steps as u32);
        let drawn = budget.share(&gated.settled(None));
        let schedule = gated.settled(Some(flops));
        let cut = budget.share(&schedule);
        // On short texts a schedule has no fine steps: what comes of the gates may lie above the budget, and what is
        // brought to it below.
        let hovering = (expected - cut).abs().min((expected - drawn).abs()) > TOLERANCE;
        if cut > flops || hovering {
            return Err(Error::Mismatch {
                found: format!(
                    "the gates have not settled: {flops:.3} of the FLOPs are asked for, {expected:.3} expected of \
                     the gates, {drawn:.3} left by the schedule that comes of them, and {cut:.3} once it is \
                     brought to the budget"
                ),
                expected: format!("what is expected and what is left lie within {TOLERANCE}"),
                advice: "train for more `steps`, with another `mask_rate`, or on more texts, and remove the \
                         state of --resume",
            });
        }
        let note = format!(
            "mode train (ToP, from {}): ranked by {}, {flops:.4} of the FLOPs asked for, {expected:.4} expected of the \
             gates, {cut:.4} left",
            if start.is_some() { "what mode text finds" } else { "all gates shut" },
            words(score),
        );
        drop(gated);
        trainer.finish().put(model)?;
        Ok((Done { schedule, trainings: Vec::new(), note, expected }, training))
    }

    /// Trains the weights under the schedule that `model` has (notes, §5.1): the same losses without the ranking.
    fn finetune(&self, model: &mut Model) -> Result<Option<Training>> {
        let steps = match self.tokens.finetune {
            0 => self.steps(),
            steps => steps,
        };
        let before = model.clone();
        let mut objective = self.objective(&before, RankingTerm::default())?;
        let labels = objective.labels();
        let mut trainer =
            Trainer::new(&before, |part| matches!(part, Part::Layer(_) | Part::Head))?;
        let texts: Vec<_> = self.train.iter().map(|&row| self.data.texts[row].clone()).collect();
        let state = self.cx.state.map(|s| s.part("finetune"));
        let history = fit(
            &mut trainer,
            &mut objective,
            &texts,
            &self.order(),
            &self.settings(steps, Keep::Best),
            state.as_ref(),
            ("tokens: fine-tuning", self.cx.progress),
        )?;
        let params = trainer.trained_params();
        let trained = trainer.finish();
        drop(objective);
        trained.put(model)?;
        Ok(Some(self.training("fine-tuning under the schedule", params, labels).with(&history)))
    }
}

/// Logits to begin with: as `start` has them, or all bins on and all sites shut. (The paper's 10 and -10 are these
/// bounds after one update.)
fn logits(budget: &Budget, start: Option<&TokenSchedule>) -> (Vec<Vec<f32>>, Vec<f32>) {
    let mut bins = vec![vec![gates::BOUND; budget.bins]; budget.sites.len()];
    let mut sites = vec![-gates::BOUND; budget.sites.len()];
    for (i, &layer) in budget.sites.iter().enumerate() {
        let Some(on) = start.and_then(|s| s.layers[layer].as_ref()) else { continue };
        sites[i] = gates::BOUND;
        let off = bins[i].iter_mut().zip(on).filter(|(_, on)| !**on);
        off.for_each(|(logit, _)| *logit = CLOSED);
    }
    (bins, sites)
}

impl Tokens {
    /// Refuses options of training outside their range.
    pub(super) fn check_training(&self) -> Result<()> {
        for (option, value, range) in [
            ("batch", self.batch, 1..=65536),
            ("steps", self.steps, 0..=100_000_000),
            ("finetune", self.finetune, 0..=100_000_000),
            ("top", self.top, 2..=4096),
        ] {
            if !range.contains(&value) {
                let expected = format!("a number from {} to {}", range.start(), range.end());
                return Err(refusal(option, value, &expected));
            }
        }
        for (option, value, most) in [
            ("warmup", self.warmup, 1.0),
            ("rate", self.rate, 1.0),
            ("mask_rate", self.mask_rate, 10.0),
            ("prediction", self.prediction, 1e6),
            ("hidden", self.hidden, 1e6),
            ("task", self.task, 1e6),
            ("ranking", self.ranking, 1e6),
        ] {
            if !(0.0..=most).contains(&value) {
                return Err(refusal(option, value, &format!("a number from 0 to {most}")));
            }
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return Err(refusal("dropout", self.dropout, "a number in [0, 1)"));
        }
        if !(self.temperature > 0.0 && self.temperature <= 100.0) {
            return Err(refusal("temperature", self.temperature, "a number in (0, 100]"));
        }
        if self.prediction + self.hidden + self.task == 0.0 {
            return Err(refusal("prediction", "0, as `hidden` and `task` are", "one above 0"));
        }
        Ok(())
    }

    /// Bins of every layer.
    pub(super) fn bins_for(&self, trains: bool, lengths: &[usize]) -> usize {
        match (self.bins, trains) {
            // Each bin of a schedule that is learned needs tokens to learn from (notes, §5.2).
            (0, true) => {
                let mean = lengths.iter().sum::<usize>() as f64 / lengths.len().max(1) as f64;
                ((1.3 * mean).round() as usize).clamp(20, 150)
            }
            (0, false) => 100,
            (bins, _) => bins,
        }
    }

    /// Whether what mode `text` finds is where training starts.
    pub(super) fn starts_from_text(&self, cx: &Context) -> bool {
        self.start == Start::Text && cx.calibration.is_some()
    }
}
