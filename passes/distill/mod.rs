#![doc = include_str!("README.md")]

mod replacing;
#[cfg(test)]
mod tests;

use crate::data::Dataset;
use crate::model::{Linear, Model, Outline, Part, Task, Weight};
use crate::pass::{Context, Entry, Foresight, Pass, PlanContext, Work};
use crate::report::{Change, Training};
use crate::train::distillation::{Distillation, Terms};
use crate::train::fit::{Keep, Settings, fit};
use crate::train::losses::Matching;
use crate::train::objective::Objective;
use crate::train::sampling::{Order, split};
use crate::train::schedule::Schedule;
use crate::train::trainer::Trainer;
use crate::{Error, Result};
use replacing::Replacing;
use serde::{Deserialize, Serialize};

pub const ENTRY: Entry = Entry::new::<Distill>(
    "distill",
    "train what is left to answer as the model that was read does",
    include_str!("README.md"),
    &[],
);

/// Options of the pass.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Distill {
    pub method: Method,
    /// Updates of the weights; 0 for ten passes over the texts, but at most 2,000.
    pub steps: usize,
    /// Texts of a batch.
    pub batch: usize,
    /// Batches whose mean gradient makes one update.
    pub accumulate: usize,
    /// Learning rate at its height; 0 for 3e-5, for 5e-4 where matrices of layers are single planes of signs, and for
    /// 6e-5 as soon as one is more planes or two factors. Scales take a tenth.
    pub rate: f64,
    pub schedule: Schedule,
    /// Share of the steps in which the rate climbs.
    pub warmup: f64,
    /// Decoupled weight decay of matrices.
    pub decay: f64,
    /// Longer gradients are shortened to this; 0 for never.
    pub clip: f64,
    pub dropout: f64,
    /// Batches whose texts are sorted by length among each other; 0 for none.
    pub bucket: usize,
    /// Updates between two judgements on held-out texts; 0 for ten over the run.
    pub evaluate: usize,
    /// Judgements without gain before training stops; 0 for never.
    pub patience: usize,
    /// Train the embeddings as well. Codewords, factors and exact rows of a table that `embed` made are trained anyway.
    pub embeddings: bool,
    /// Learning rate of codewords at its height; 0 for 1e-3.
    pub codewords: f64,
    /// Of the predictions, where they are classes.
    pub temperature: f64,
    /// Weight of the distance between predictions: divergence of classes, squared error of scores, cosine
    /// distance of embeddings.
    pub prediction: f64,
    /// Weight of the distance between hidden states.
    pub hidden: f64,
    /// Which hidden states are compared.
    pub matching: Matching,
    /// Weight of the distance between embeddings of the tokens.
    pub embedding: f64,
    /// Weight of the divergence between the relations of queries, keys and values, each among themselves,
    /// in the last layer.
    pub relations: f64,
    /// Weight of the distance between attention scores of matched layers.
    pub attention: f64,
    /// Share of a text's tokens that are swapped for others of its batch; labels are not used then.
    pub swap: f64,
    /// Weight of the task's own loss, where there are labels.
    pub task: f64,
    /// Weight of the Sinkhorn distance between the batch's predictions.
    pub sinkhorn: f64,
    /// Weight of the divergence between similarities within the batch (sentence embeddings).
    pub similarity: f64,
    /// Theseus: share of layers that are the compressed ones at the start.
    pub replace: f64,
    /// Theseus: share of the steps after which all layers are.
    pub replaced_at: f64,
}

/// How a compressed model is recovered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// Knowledge distillation: predictions and states come close to the original's.
    Kd,
    /// Module replacing: original layers stand in for compressed ones at random, ever fewer (Xu et al. 2020).
    Theseus,
}

impl Default for Distill {
    fn default() -> Self {
        Distill {
            method: Method::Kd,
            steps: 0,
            batch: 32,
            accumulate: 1,
            rate: 0.0,
            schedule: Schedule::Linear,
            warmup: 0.06,
            decay: 0.01,
            clip: 1.0,
            dropout: 0.0,
            bucket: 0,
            evaluate: 0,
            patience: 0,
            embeddings: false,
            codewords: 0.0,
            temperature: 2.0,
            prediction: 1.0,
            hidden: 1.0,
            matching: Matching::Uniform,
            embedding: 0.0,
            relations: 0.0,
            attention: 0.0,
            swap: 0.0,
            task: 0.1,
            sinkhorn: 0.0,
            similarity: 1.0,
            replace: 0.3,
            replaced_at: 0.5,
        }
    }
}

/// Passes over the texts, and the most steps, where none are given: the held-out loss has stopped falling
/// by then (docs/results.md).
const EPOCHS: usize = 10;
const MOST_STEPS: usize = 2000;
/// Judgements of a run, where their distance is not given.
const JUDGEMENTS: usize = 10;

/// Rates where none is given; found on 2,000 sentences of SST-2's training file for a 6 x 384 classifier,
/// half pruned, or in one plane with a residual of rank 16.
const DENSE_RATE: f32 = 3e-5;
const PACKED_RATE: f32 = 5e-4;
/// Of signs that fit better than one plane does: the rate above takes them further away than they were (docs/results.md,
/// "What packed layers keep").
const FINE_RATE: f32 = 6e-5;
/// Of codewords (subspace notes, §3.6): each is a part of many rows.
const CODEWORD_RATE: f32 = 1e-3;

/// The rate for `model`, where none is given.
fn usual_rate(model: &Model) -> f32 {
    let linears = model.layers.iter().flat_map(|l| l.linears());
    let mut rate = DENSE_RATE;
    for (_, linear) in linears {
        match &linear.weight {
            Weight::Binary(binary) if binary.planes == 1 => rate = rate.max(PACKED_RATE),
            // One that fits well is the first to be lost.
            Weight::Binary(_) | Weight::Double(_) => return FINE_RATE,
            _ => {}
        }
    }
    rate
}

impl Distill {
    /// Refuses what the teacher's answers cannot be compared by.
    fn check_task(&self, teacher: &Model) -> Result<()> {
        let config = &teacher.config;
        let classes = config.task == Task::SequenceClassification && !config.regression;
        if self.sinkhorn > 0.0 && !classes {
            return Err(Error::Mismatch {
                found: format!("distill(sinkhorn={}) on {}", self.sinkhorn, config.task.name()),
                expected: "the Sinkhorn distance compares classes of whole texts".into(),
                advice: "leave sinkhorn at 0 for this model",
            });
        }
        Ok(())
    }

    fn terms(&self) -> Terms {
        let terms = Terms {
            temperature: self.temperature,
            prediction: self.prediction,
            hidden: self.hidden,
            matching: self.matching,
            embedding: self.embedding,
            relations: self.relations,
            attention: self.attention,
            task: self.task,
            swap: self.swap,
            sinkhorn: self.sinkhorn,
            similarity: self.similarity,
            ..Terms::default()
        };
        match self.method {
            Method::Kd => terms,
            // Where the teacher's layers stand in, states are partly its own.
            Method::Theseus => {
                Terms { hidden: 0.0, embedding: 0.0, relations: 0.0, attention: 0.0, ..terms }
            }
        }
    }
}

impl Pass for Distill {
    fn needs_plain_layers(&self) -> Option<&'static str> {
        Some("trains no such layers")
    }

    fn check(&self) -> Result<()> {
        let fail = |option, found: String, expected: &str| {
            Err(Error::Option { pass: "distill", option, found, expected: expected.into() })
        };
        for (option, value, range) in [
            ("batch", self.batch, 1..=65536),
            ("accumulate", self.accumulate, 1..=65536),
            ("steps", self.steps, 0..=100_000_000),
        ] {
            if !range.contains(&value) {
                let expected = format!("a number from {} to {}", range.start(), range.end());
                return fail(option, value.to_string(), &expected);
            }
        }
        for (option, rate) in [("rate", self.rate), ("codewords", self.codewords)] {
            if !(0.0..=1.0).contains(&rate) {
                return fail(option, rate.to_string(), "a number in [0, 1]");
            }
        }
        for (option, value) in [
            ("warmup", self.warmup),
            ("dropout", self.dropout),
            ("swap", self.swap),
            ("replace", self.replace),
            ("replaced_at", self.replaced_at),
        ] {
            let open = option == "dropout" && value == 1.0;
            if !(0.0..=1.0).contains(&value) || open {
                let expected = if option == "dropout" { "in [0, 1)" } else { "in [0, 1]" };
                return fail(option, value.to_string(), &format!("a number {expected}"));
            }
        }
        if !(self.temperature > 0.0 && self.temperature <= 100.0) {
            return fail("temperature", self.temperature.to_string(), "a number in (0, 100]");
        }
        let weights = [
            ("prediction", self.prediction),
            ("hidden", self.hidden),
            ("embedding", self.embedding),
            ("relations", self.relations),
            ("attention", self.attention),
            ("task", self.task),
            ("sinkhorn", self.sinkhorn),
            ("similarity", self.similarity),
            ("decay", self.decay),
            ("clip", self.clip),
        ];
        for (option, value) in weights {
            if !(0.0..=1e6).contains(&value) {
                return fail(option, value.to_string(), "a number from 0 to 1000000");
            }
        }
        if weights[..8].iter().all(|(_, value)| *value == 0.0) {
            return fail("prediction", "0, as all other weights are".into(), "one above 0");
        }
        if self.method == Method::Kd && self.prediction == 0.0 && self.sinkhorn > 0.0 {
            return fail(
                "prediction",
                "0, with sinkhorn".into(),
                "above 0: the distance alone does not \
                say which text is which",
            );
        }
        Ok(())
    }

    fn trains(&self, _data: bool) -> bool {
        true
    }

    fn outline(&self, _outline: &mut Outline, cx: &PlanContext) -> Result<Foresight> {
        self.check()?;
        if cx.text.is_none() && !cx.data {
            return Err(no_text());
        }
        self.check_task(cx.teacher)?;
        let steps = match (self.steps, cx.data) {
            (0, true) => MOST_STEPS,
            (0, false) => (EPOCHS * cx.texts.div_ceil(self.batch)).min(MOST_STEPS),
            (steps, _) => steps,
        };
        let seconds = cx.training(steps * self.accumulate, self.batch);
        let foresight = Foresight { seconds, copies: 12.0, ..Foresight::default() };
        Ok(foresight.noting("numbers are trained, forms and shapes stay"))
    }

    fn run(&self, model: &mut Model, cx: &Context) -> Result<Work> {
        self.check()?;
        let fallback;
        let data = match (cx.data, cx.calibration) {
            (Some(data), _) => data,
            (None, Some(text)) => {
                fallback = Dataset::of(text);
                &fallback
            }
            (None, None) => return Err(no_text()),
        };
        let (train, held) = split(data.texts.len());
        if train.is_empty() {
            return Err(Error::Mismatch {
                found: format!("distill has no text in {}", data.source),
                expected: "it trains on some".into(),
                advice: "give a file with more texts",
            });
        }
        self.check_task(cx.teacher)?;
        let before = model.clone();
        let embedded = matches!(before.embeddings.word, Weight::Subspace(_) | Weight::Factored(_));
        let mut distillation =
            Distillation::new(self.terms(), cx.teacher, &before, data, &held, cx.seed)?;
        let mut trainer = Trainer::new(&before, |part| match part {
            Part::Words => self.embeddings || embedded,
            Part::Embeddings => self.embeddings,
            Part::Layer(_) => true,
            // Module replacing trains the compressed layers alone (Xu et al. 2020, in their code).
            Part::Head => self.method == Method::Kd,
        })?;
        trainer.start_at(cx.teacher)?;
        let order = Order::Shuffled {
            lengths: train.iter().map(|&row| data.texts[row].ids.len()).collect(),
            batch: self.batch.min(train.len()),
            bucket: self.bucket,
            seed: cx.seed,
        };
        let steps = match self.steps {
            0 => (EPOCHS * order.epoch()).div_ceil(self.accumulate).min(MOST_STEPS),
            steps => steps,
        };
        let settings = Settings {
            steps,
            accumulate: self.accumulate,
            rate: match self.rate {
                0.0 => usual_rate(&before),
                rate => rate as f32,
            },
            warmup: (self.warmup * steps as f64).round() as usize,
            schedule: self.schedule,
            decay: self.decay as f32,
            clip: self.clip as f32,
            dropout: self.dropout as f32,
            evaluate: match self.evaluate {
                0 => steps.div_ceil(JUDGEMENTS),
                every => every,
            },
            keep: Keep::Best,
            patience: self.patience,
            seed: cx.seed,
        };
        let texts: Vec<_> = train.iter().map(|&row| data.texts[row].clone()).collect();
        distillation.rows = train;
        let labels = distillation.labels();
        let (method, mut objective): (_, Box<dyn Objective>) = match self.method {
            Method::Kd => ("distillation", Box::new(distillation)),
            Method::Theseus => {
                let (from, until) = (self.replace, self.replaced_at * steps as f64);
                let replacing = Replacing { distillation, from, until, seed: cx.seed };
                ("module replacing", Box::new(replacing))
            }
        };
        let codewords = if self.codewords == 0.0 { CODEWORD_RATE } else { self.codewords as f32 };
        trainer.codeword_rate = codewords / settings.rate.max(f32::MIN_POSITIVE);
        let progress = ("distill", cx.progress);
        let history =
            fit(&mut trainer, &mut *objective, &texts, &order, &settings, cx.state, progress)?;
        let training = Training {
            method: method.into(),
            data: data.source.clone(),
            texts: texts.len(),
            held_out: held.len(),
            labels,
            params: trainer.trained_params(),
            batch: self.batch.min(texts.len()) * self.accumulate,
            ..Training::default()
        };
        let trained = trainer.finish();
        drop(objective);
        trained.put(model)?;
        let training = vec![training.with(&history)];
        Ok(Work { training, ..changes(&before, model).into() })
    }
}

fn no_text() -> Error {
    Error::Mismatch {
        found: "distill has no text".into(),
        expected: "it trains on some".into(),
        advice: "give a file by --data, or drop `--calib none`",
    }
}

/// One entry for every linear layer whose weight or bias changed, and for the word table.
fn changes(before: &Model, after: &Model) -> Vec<Change> {
    let pairs = before.layers.iter().zip(&after.layers);
    let layers = pairs.flat_map(|(b, a)| b.linears().into_iter().zip(a.linears()));
    let word = |m: &Model| Linear::table(&m.embeddings.word);
    let words = (word(before), word(after));
    let heads = before.head.linears().into_iter().zip(after.head.linears());
    layers
        .map(|((_, b), (_, a))| (b, a))
        .chain(heads)
        .chain([(&words.0, &words.1)])
        .filter(|(b, a)| {
            let bytes = |l: &Linear| -> Vec<Vec<u8>> {
                l.tensors().iter().map(|t| t.bytes().to_vec()).collect()
            };
            bytes(b) != bytes(a)
        })
        .map(|(b, a)| Change::new(b, a, None))
        .collect()
}
