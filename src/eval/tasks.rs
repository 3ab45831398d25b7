//! What a model answers to a file of examples, and how good that is.

use super::metrics::{self, Score};
use crate::data::Targets;
use crate::data::batches::bucket;
use crate::data::calibration::inputs;
use crate::data::labels::targets;
use crate::data::tables::Table;
use crate::data::tokenizer::Tokenizer;
use crate::model::{Model, Task};
use crate::runtime::{Batch, Encoder, NoObserver};
use crate::train::sweep;
use crate::{Error, Result};
use rayon::prelude::*;
use serde::Serialize;
use std::path::Path;

/// A named number with its 95 % interval, where it has one.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Metric {
    pub name: &'static str,
    pub value: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval: Option<[f64; 2]>,
}

/// What a head said of each text, `[width]`: logits or an embedding, in the order of the data.
#[derive(Debug, Clone, PartialEq)]
pub struct Answers {
    pub rows: Vec<Vec<f32>>,
}

/// Examples made ready for a model.
#[derive(Debug, Clone)]
pub struct Prepared {
    pub batches: Vec<Batch>,
    /// Rows of the batches: examples, or twice as many where pairs are embedded one by one.
    pub rows: usize,
    pub examples: usize,
    pub tokens: usize,
    pub targets: Option<Targets>,
    /// How the file's labels were understood, for the report.
    pub columns: crate::data::tables::Columns,
}

/// Tokens of an evaluation batch: beyond this a batch no longer runs faster.
const BATCH_TOKENS: usize = 512;

impl Prepared {
    /// Tokenizes `table`; labels are needed only where `labelled`.
    ///
    /// # Errors
    /// What the tokenizer and [`targets`] refuse; pairs without a second text.
    pub fn new(
        table: &Table,
        model: &Model,
        tokenizer: &Tokenizer,
        max_tokens: usize,
        labelled: bool,
        path: &Path,
    ) -> Result<Prepared> {
        let config = &model.config;
        let examples = &table.examples;
        let embedding = config.task == Task::Embedding;
        let regression = config.regression || embedding;
        let wanted = matches!(config.task, Task::SequenceClassification | Task::Embedding);
        let pairs = examples.iter().all(|e| e.pair.is_some() && e.label.is_some());
        let targets = match labelled && wanted && (pairs || !embedding) {
            true => Some(targets(examples, &config.label_names(), regression, path)?),
            false => None,
        };
        let encoded = tokenizer.encode_all(&inputs(examples, config), max_tokens)?;
        Ok(Prepared {
            tokens: encoded.iter().map(|e| e.ids.len()).sum(),
            rows: encoded.len(),
            examples: examples.len(),
            batches: bucket(&encoded, BATCH_TOKENS, BATCH_TOKENS),
            targets,
            columns: table.columns.clone(),
        })
    }
}

/// Runs all batches, on all threads.
///
/// # Errors
/// As [`Encoder::forward`].
///
/// # Panics
/// For heads that answer token by token: no metric is made of those answers.
pub fn answer(encoder: &Encoder, batches: &[Batch], rows: usize) -> Result<Answers> {
    let outputs: Vec<_> = batches
        .par_iter()
        .map(|batch| encoder.forward(batch, None, &mut NoObserver))
        .collect::<Result<_>>()?;
    let mut answers = vec![Vec::new(); rows];
    for (batch, output) in batches.iter().zip(outputs) {
        assert!(!output.per_token, "answers are kept text by text");
        for (&row, values) in batch.rows.iter().zip(output.values.chunks_exact(output.width)) {
            answers[row] = values.to_vec();
        }
    }
    Ok(Answers { rows: answers })
}

/// Refuses what no metric can be made of.
///
/// # Errors
/// [`Error::Unsupported`] for heads that files of examples cannot judge, [`Error::Mismatch`] for examples
/// that cannot judge sentence embeddings.
pub fn judgeable(model: &Model, prepared: &Prepared) -> Result<()> {
    match (model.config.task, &prepared.targets) {
        (Task::SequenceClassification | Task::Embedding, Some(_)) => Ok(()),
        (Task::Embedding, _) => Err(Error::Mismatch {
            found: "the examples are no pairs with a score".into(),
            expected: "sentence embeddings are judged by pairs of texts and their similarity"
                .into(),
            advice: "name the columns with --text-column, --pair-column and --label-column, \
                         or compare with another model by --teacher",
        }),
        (task, _) => Err(Error::Unsupported {
            what: "evaluation of a head for",
            found: task.name().into(),
            known: "sequence classification and sentence embedding; any head can be compared \
                        with another model by --teacher"
                .into(),
        }),
    }
}

/// The task's metrics, the main one first.
///
/// # Errors
/// [`Error::Unsupported`] for heads that files of examples cannot judge.
pub fn metrics(model: &Model, prepared: &Prepared, answers: &Answers) -> Result<Vec<Metric>> {
    let mut found = Vec::new();
    let mut add = |name: &'static str, score: Option<Score>| {
        if let Some(s) = score {
            found.push(Metric { name, value: s.value, interval: Some([s.low, s.high]) });
        }
    };
    match (model.config.task, &prepared.targets) {
        (Task::SequenceClassification, Some(Targets::Classes(classes))) => {
            // An answer that is no number is none of the classes.
            let none = model.config.classes() as u32;
            let predicted: Vec<u32> =
                answers.rows.iter().map(|r| metrics::argmax(r).unwrap_or(none)).collect();
            add("accuracy", metrics::accuracy(&predicted, classes));
            match model.config.classes() {
                2 => add("f1", metrics::f1(&predicted, classes, 0)),
                _ => add("macro_f1", metrics::macro_f1(&predicted, classes, 0)),
            }
            add("matthews", metrics::matthews(&predicted, classes, 0));
        }
        (Task::SequenceClassification, Some(Targets::Scores(scores))) => {
            let predicted: Vec<f64> = answers.rows.iter().map(|r| r[0] as f64).collect();
            correlations(&predicted, scores, &mut add);
        }
        (Task::Embedding, Some(Targets::Scores(scores)))
            if answers.rows.len() == 2 * scores.len() =>
        {
            let pairs = answers.rows.chunks_exact(2);
            let cosines: Vec<f64> = pairs.map(|p| metrics::cosine(&p[0], &p[1])).collect();
            correlations(&cosines, scores, &mut add);
        }
        _ => judgeable(model, prepared)?,
    }
    Ok(found)
}

fn correlations(
    predicted: &[f64],
    scores: &[f32],
    add: &mut impl FnMut(&'static str, Option<Score>),
) {
    let scores: Vec<f64> = scores.iter().map(|&s| s as f64).collect();
    add("spearman", metrics::spearman(predicted, &scores, 0));
    add("pearson", metrics::pearson(predicted, &scores, 0));
}

/// How close `student`'s answers are to `teacher`'s, gathered batch by batch: what heads say token by token
/// is too much to keep.
#[derive(Debug, Clone, Copy, Default)]
struct Closeness {
    rows: usize,
    agreeing: usize,
    kl: f64,
    cosine: f64,
    error: f64,
    power: f64,
}

impl Closeness {
    fn of(teacher: &[f32], student: &[f32], width: usize, classes: bool) -> Closeness {
        let rows = teacher.len() / width.max(1);
        let square = |x: f64| x * x;
        let error = teacher.iter().zip(student).map(|(t, s)| square((t - s) as f64)).sum();
        let mut closeness = Closeness { rows, error, ..Closeness::default() };
        closeness.power = teacher.iter().map(|&t| square(t as f64)).sum();
        if classes {
            let pairs = teacher.chunks_exact(width).zip(student.chunks_exact(width));
            let same = |(t, s): (&[f32], &[f32])| {
                metrics::argmax(t).is_some_and(|best| metrics::argmax(s) == Some(best))
            };
            closeness.agreeing = pairs.filter(|&pair| same(pair)).count();
            closeness.kl = metrics::mean_kl(teacher, student, width).unwrap_or(0.0) * rows as f64;
        } else {
            let mean = metrics::mean_cosine(teacher, student, width).unwrap_or(0.0);
            closeness.cosine = mean * rows as f64;
        }
        closeness
    }

    fn add(&mut self, other: Closeness) {
        self.rows += other.rows;
        self.agreeing += other.agreeing;
        self.kl += other.kl;
        self.cosine += other.cosine;
        self.error += other.error;
        self.power += other.power;
    }
}

/// How close `student`'s answers to all batches are to `teacher`'s.
///
/// # Errors
/// As [`Encoder::forward`].
pub fn fidelity(teacher: &Encoder, student: &Encoder, batches: &[Batch]) -> Result<Vec<Metric>> {
    let config = &teacher.model.config;
    let classes = match config.task {
        Task::SequenceClassification => !config.regression,
        Task::TokenClassification | Task::MaskedLm => true,
        Task::QuestionAnswering | Task::Embedding | Task::Bare => false,
    };
    let mut sum = Closeness::default();
    let compare = |i: usize| {
        let t = teacher.forward(&batches[i], None, &mut NoObserver)?;
        let s = student.forward(&batches[i], None, &mut NoObserver)?;
        Ok(Closeness::of(&t.values, &s.values, t.width, classes))
    };
    sweep(batches.len(), compare, |_, one| {
        sum.add(one);
        Ok(())
    })?;
    let plain = |name, value| Metric { name, value, interval: None };
    let mean = |total: f64| total / sum.rows.max(1) as f64;
    let mut found = Vec::new();
    if classes {
        let score = metrics::proportion(sum.agreeing, sum.rows);
        let interval = |s: Score| Some([s.low, s.high]);
        found.extend(score.map(|s| Metric {
            name: "agreement",
            value: s.value,
            interval: interval(s),
        }));
        found.push(plain("mean_kl_nats", mean(sum.kl)));
    } else if matches!(config.task, Task::Embedding | Task::Bare) {
        found.push(plain("mean_cosine", mean(sum.cosine)));
    }
    if sum.power > 0.0 {
        found.push(plain("relative_l2", (sum.error / sum.power).sqrt()));
    }
    Ok(found)
}
