//! What a model answers to a file of examples, and how good that is.

use super::metrics::{self, Score};
use crate::data::Targets;
use crate::data::batches::bucket;
use crate::data::labels::targets;
use crate::data::tables::Table;
use crate::data::tokenizer::Tokenizer;
use crate::model::{Model, Task};
use crate::runtime::{Batch, Encoder, NoObserver};
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

/// What a head said of each text: logits or an embedding; of heads that answer token by token, all
/// tokens' rows one behind the other.
#[derive(Debug, Clone, PartialEq)]
pub struct Answers {
    /// By text, in the order of the data: `[width]`, or `[tokens · width]`.
    pub rows: Vec<Vec<f32>>,
    pub width: usize,
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
        let has_labels = examples.iter().all(|e| e.label.is_some());
        let regression = config.regression || embedding;
        let wanted = matches!(config.task, Task::SequenceClassification | Task::Embedding);
        let targets = match labelled && wanted && (has_labels || !embedding) {
            true => Some(targets(examples, &config.label_names(), regression, path)?),
            false => None,
        };
        let encoded = if embedding && examples.iter().all(|e| e.pair.is_some()) {
            let split: Vec<_> = examples
                .iter()
                .flat_map(|e| {
                    [Some(&e.text), e.pair.as_ref()].into_iter().flatten().map(|text| {
                        crate::data::tables::Example { text: text.clone(), ..Default::default() }
                    })
                })
                .collect();
            tokenizer.encode_all(&split, max_tokens)?
        } else {
            tokenizer.encode_all(examples, max_tokens)?
        };
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
pub fn answer(encoder: &Encoder, batches: &[Batch], rows: usize) -> Result<Answers> {
    let outputs: Vec<_> = batches
        .par_iter()
        .map(|batch| encoder.forward(batch, None, &mut NoObserver))
        .collect::<Result<_>>()?;
    let mut answers = Answers { rows: vec![Vec::new(); rows], width: 1 };
    for (batch, output) in batches.iter().zip(outputs) {
        answers.width = output.width;
        for (text, &row) in batch.rows.iter().enumerate() {
            let span = match output.per_token {
                true => batch.starts[text]..batch.starts[text + 1],
                false => text..text + 1,
            };
            let values = span.start * output.width..span.end * output.width;
            answers.rows[row] = output.values[values].to_vec();
        }
    }
    Ok(answers)
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
            let predicted: Vec<u32> =
                answers.rows.iter().map(|r| metrics::argmax(r).unwrap_or(u32::MAX)).collect();
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
        (Task::Embedding, _) => {
            return Err(Error::Mismatch {
                found: "the examples are no pairs with a score".into(),
                expected: "sentence embeddings are judged by pairs of texts and their similarity"
                    .into(),
                advice: "name the columns with --text-column, --pair-column and --label-column, \
                         or compare with another model by --teacher",
            });
        }
        (task, _) => {
            return Err(Error::Unsupported {
                what: "evaluation of a head for",
                found: task.name().into(),
                known: "sequence classification and sentence embedding; any head can be compared \
                        with another model by --teacher"
                    .into(),
            });
        }
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

/// How close `student`'s answers are to `teacher`'s.
pub fn fidelity(model: &Model, teacher: &Answers, student: &Answers) -> Vec<Metric> {
    let flat = |a: &Answers| a.rows.concat();
    let (t, s, width) = (flat(teacher), flat(student), teacher.width);
    let mut found = Vec::new();
    let plain =
        |name, value: Option<f64>| value.map(|value| Metric { name, value, interval: None });
    let classes = match model.config.task {
        Task::SequenceClassification => !model.config.regression,
        Task::TokenClassification | Task::MaskedLm => true,
        _ => false,
    };
    if classes {
        let score = metrics::agreement(&t, &s, width);
        let metric = |s: Score| Metric {
            name: "agreement",
            value: s.value,
            interval: Some([s.low, s.high]),
        };
        found.extend(score.map(metric));
        found.extend(plain("mean_kl_nats", metrics::mean_kl(&t, &s, width)));
    }
    if matches!(model.config.task, Task::Embedding | Task::Bare) {
        found.extend(plain("mean_cosine", metrics::mean_cosine(&t, &s, width)));
    }
    found.extend(plain("relative_l2", metrics::relative_l2(&t, &s)));
    found
}
