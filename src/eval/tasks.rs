//! What a model answers to a file of examples, and how good that is.

use super::metrics::{self, Score};
use super::paired::Outcomes;
use super::squad::{self, Passage};
use super::tagging;
use crate::data::Targets;
use crate::data::batches::bucket;
use crate::data::labels::targets;
use crate::data::prepare::{Tokenized, label, tokenize};
use crate::data::tables::{Annotation, Example, Table};
use crate::data::tokenizer::Tokenizer;
use crate::model::{Config, Model, Task};
use crate::progress::Progress;
use crate::runtime::{Batch, Encoder, NoObserver, Output};
use crate::train::sweep;
use crate::{Error, Result};
use rayon::prelude::*;
use serde::Serialize;
use std::collections::HashMap;
use std::path::Path;

/// A named number with its 95 % interval, where it has one.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Metric {
    pub name: &'static str,
    pub value: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval: Option<[f64; 2]>,
}

/// What a head said of each text, in the order of the data: logits or an embedding, `[width]`, or logits of
/// a head that answers token by token, `[tokens, width]`.
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
    /// By row, where questions are judged by their answers: what the model's are cut from.
    pub passages: Vec<Passage>,
    /// How the file's labels were understood, for the report.
    pub columns: crate::data::tables::Columns,
}

/// Tokens of an evaluation batch: beyond this a batch no longer runs faster.
const BATCH_TOKENS: usize = 512;

impl Prepared {
    /// Tokenizes `table`; labels are needed only where `labelled`.
    ///
    /// # Errors
    /// What the tokenizer, [`label`] and [`targets`] refuse.
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
        let tokenized = tokenize(examples, config, tokenizer, max_tokens)?;
        let pairs = examples.iter().all(|e| e.pair.is_some() && e.label.is_some());
        let targets = match config.task {
            _ if !labelled => None,
            Task::Embedding if !pairs => None,
            Task::Embedding => Some(targets(examples, &[], true, path)?),
            _ => label(examples, config, &tokenized, path)?,
        };
        let Tokenized { encoded, origins } = tokenized;
        let passage = |(example, origins): (&Example, _)| match &example.annotation {
            Some(Annotation::Spans(answers)) => {
                let context = example.pair.as_deref().unwrap_or_default();
                Some(Passage::new(context, answers, origins))
            }
            _ => None,
        };
        let passages = match &targets {
            Some(Targets::Spans(_)) => examples.iter().zip(origins).filter_map(passage).collect(),
            _ => Vec::new(),
        };
        Ok(Prepared {
            tokens: encoded.iter().map(|e| e.ids.len()).sum(),
            rows: encoded.len(),
            examples: examples.len(),
            batches: bucket(&encoded, BATCH_TOKENS, BATCH_TOKENS),
            targets,
            passages,
            columns: table.columns.clone(),
        })
    }
}

/// Runs all batches, on all threads; each is a step of `progress`.
///
/// # Errors
/// As [`Encoder::forward`]; [`Error::Interrupted`].
///
/// # Panics
/// For masked LMs and bare encoders: what they say of every token is too much to keep, and no metric is
/// made of it.
pub fn answer(
    encoder: &Encoder,
    batches: &[Batch],
    rows: usize,
    progress: &dyn Progress,
) -> Result<Answers> {
    let judged = !matches!(encoder.model.config.task, Task::MaskedLm | Task::Bare);
    assert!(judged, "answers are kept for metrics");
    let outputs: Vec<_> = batches
        .par_iter()
        .map(|batch| {
            let output = encoder.forward(batch, None, &mut NoObserver)?;
            progress.step().map(|()| output)
        })
        .collect::<Result<_>>()?;
    let mut answers = vec![Vec::new(); rows];
    for (batch, output) in batches.iter().zip(outputs) {
        for (text, &row) in batch.rows.iter().enumerate() {
            let rows = match output.per_token {
                true => batch.starts[text]..batch.starts[text + 1],
                false => text..text + 1,
            };
            answers[row] = output.values[rows.start * output.width..rows.end * output.width].into();
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
        (
            Task::SequenceClassification
            | Task::TokenClassification
            | Task::QuestionAnswering
            | Task::Embedding,
            Some(_),
        ) => Ok(()),
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
            known: "sequence and token classification, question answering and sentence embedding; \
                        any head can be compared with another model by --teacher"
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
            let predicted = said_classes(model, answers);
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
        (Task::TokenClassification, Some(Targets::Tokens(labels))) => {
            let names = model.config.label_names();
            let (predicted, actual) = labelled_tokens(answers, labels, names.len());
            if tagging::is_bio(&names) {
                add("entity_f1", tagging::entity_f1(&predicted, &actual, &names, 0));
            }
            add("accuracy", tagging::accuracy(&predicted, &actual, 0));
            add("macro_f1", tagging::macro_f1(&predicted, &actual, 0));
        }
        (Task::QuestionAnswering, Some(Targets::Spans(_))) => {
            let said = said_answers(prepared, answers);
            let pairs = || said.iter().zip(&prepared.passages);
            let f1: Vec<f64> = pairs().map(|(s, p)| squad::f1(s, &p.answers)).collect();
            let exact = pairs().filter(|(s, p)| squad::exact_match(s, &p.answers)).count();
            add("f1", metrics::ratio(&f1, &vec![1.0; f1.len()], 0));
            add("exact_match", metrics::proportion(exact, said.len()));
        }
        (Task::Embedding, Some(Targets::Scores(scores)))
            if answers.rows.len() == 2 * scores.len() =>
        {
            correlations(&pair_cosines(answers), scores, &mut add);
        }
        _ => judgeable(model, prepared)?,
    }
    Ok(found)
}

/// What the first of [`metrics()`] is made of; `None` where there is none.
pub fn outcomes(model: &Model, prepared: &Prepared, answers: &Answers) -> Option<Outcomes> {
    let ranks = |predicted: Vec<f64>, scores: &[f32]| Outcomes::Ranks {
        predicted,
        actual: scores.iter().map(|&s| s as f64).collect(),
    };
    Some(match (model.config.task, prepared.targets.as_ref()?) {
        (Task::SequenceClassification, Targets::Classes(classes)) => {
            let said = said_classes(model, answers);
            let right = said.iter().zip(classes).map(|(p, c)| f64::from(u8::from(p == c)));
            let parts = right.collect();
            Outcomes::Ratio { parts, wholes: vec![1.0; classes.len()] }
        }
        (Task::SequenceClassification, Targets::Scores(scores)) => {
            ranks(answers.rows.iter().map(|r| r[0] as f64).collect(), scores)
        }
        (Task::TokenClassification, Targets::Tokens(labels)) => {
            let names = model.config.label_names();
            let (predicted, actual) = labelled_tokens(answers, labels, names.len());
            let (parts, wholes) = match tagging::is_bio(&names) {
                true => tagging::entity_counts(&predicted, &actual, &names),
                false => tagging::token_counts(&predicted, &actual),
            };
            Outcomes::Ratio { parts, wholes }
        }
        (Task::QuestionAnswering, Targets::Spans(_)) => {
            let said = said_answers(prepared, answers);
            let pairs = said.iter().zip(&prepared.passages);
            let parts: Vec<f64> = pairs.map(|(s, p)| squad::f1(s, &p.answers)).collect();
            Outcomes::Ratio { wholes: vec![1.0; parts.len()], parts }
        }
        (Task::Embedding, Targets::Scores(scores)) if answers.rows.len() == 2 * scores.len() => {
            ranks(pair_cosines(answers), scores)
        }
        _ => return None,
    })
}

/// The class that each row prefers; an answer that is no number is none of the classes.
fn said_classes(model: &Model, answers: &Answers) -> Vec<u32> {
    let none = model.config.classes() as u32;
    answers.rows.iter().map(|r| metrics::argmax(r).unwrap_or(none)).collect()
}

/// The answer to each question. A file where every question has one is judged as SQuAD 1, else as SQuAD 2.
fn said_answers(prepared: &Prepared, answers: &Answers) -> Vec<String> {
    let may_be_none = prepared.passages.iter().any(|p| p.answers.is_empty());
    let said = prepared.passages.iter().zip(&answers.rows);
    said.map(|(p, row)| p.answer(row, may_be_none)).collect()
}

/// How alike the two texts of each pair are.
fn pair_cosines(answers: &Answers) -> Vec<f64> {
    answers.rows.chunks_exact(2).map(|p| metrics::cosine(&p[0], &p[1])).collect()
}

/// Of the tokens with a label: the class said and the class it has, by text. An answer that is no number is
/// none of the classes.
fn labelled_tokens(
    answers: &Answers,
    labels: &[Vec<Option<u32>>],
    classes: usize,
) -> (Vec<Vec<u32>>, Vec<Vec<u32>>) {
    let text = |(logits, labels): (&Vec<f32>, &Vec<Option<u32>>)| {
        let tokens = logits.chunks_exact(classes).zip(labels);
        let of = |(logits, label): (&[f32], &Option<u32>)| {
            label.map(|label| (metrics::argmax(logits).unwrap_or(classes as u32), label))
        };
        tokens.filter_map(of).unzip()
    };
    answers.rows.iter().zip(labels).map(text).unzip()
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

    fn metrics(&self, config: &Config) -> Vec<Metric> {
        let plain = |name, value| Metric { name, value, interval: None };
        let mean = |total: f64| total / self.rows.max(1) as f64;
        let mut found = Vec::new();
        if says_classes(config) {
            let score = metrics::proportion(self.agreeing, self.rows);
            let interval = |s: Score| Some([s.low, s.high]);
            found.extend(score.map(|s| Metric {
                name: "agreement",
                value: s.value,
                interval: interval(s),
            }));
            found.push(plain("mean_kl_nats", mean(self.kl)));
        } else if matches!(config.task, Task::Embedding | Task::Bare) {
            found.push(plain("mean_cosine", mean(self.cosine)));
        }
        if self.power > 0.0 {
            found.push(plain("relative_l2", (self.error / self.power).sqrt()));
        }
        found
    }
}

/// The same texts, cut into tokens of another vocabulary, for a model that has it.
#[derive(Debug)]
pub struct Recut<'a> {
    /// By row of the data: ids and type ids.
    texts: HashMap<usize, [&'a [u32]; 2]>,
    /// By new id: the old one of the same token, where there is one.
    old: Vec<Option<u32>>,
}

impl<'a> Recut<'a> {
    /// - `batches`: all texts, in new ids
    /// - `old`: by new id, the old one of the same token, where there is one
    pub fn new(batches: &'a [Batch], old: Vec<Option<u32>>) -> Recut<'a> {
        let texts = batches.iter().flat_map(|batch| {
            batch.rows.iter().zip(batch.starts.windows(2)).map(move |(&row, span)| {
                let span = span[0]..span[1];
                (row, [&batch.ids[span.clone()], &batch.type_ids[span]])
            })
        });
        Recut { texts: texts.collect(), old }
    }

    /// The texts of `batch`, in new ids.
    fn batch(&self, batch: &Batch) -> Batch {
        let mut new = Batch::default();
        for &row in &batch.rows {
            let [ids, type_ids] = self.texts[&row];
            new.push(ids, type_ids, row);
        }
        new
    }

    /// What both models say of the same tokens: all of it where they answer by text; else of the texts that are cut
    /// into the same tokens. Where they tell tokens, of those that both have.
    fn shared(
        &self,
        (teacher, before): (&Output, &Batch),
        (student, after): (&Output, &Batch),
        words: bool,
    ) -> [Vec<f32>; 2] {
        let mut said = [Vec::new(), Vec::new()];
        let same = |text: usize| {
            let [before, after] =
                [before, after].map(|b| &b.ids[b.starts[text]..b.starts[text + 1]]);
            let pairs = before.iter().zip(after);
            before.len() == after.len() && { pairs }
                .all(|(&old, &new)| self.old[new as usize] == Some(old))
        };
        for text in (0..before.texts()).filter(|&t| !teacher.per_token || same(t)) {
            for ((output, batch), said) in
                [(teacher, before), (student, after)].into_iter().zip(&mut said)
            {
                let rows = match output.per_token {
                    true => batch.starts[text]..batch.starts[text + 1],
                    false => text..text + 1,
                };
                said.extend(&output.values[rows.start * output.width..rows.end * output.width]);
            }
        }
        if words {
            let both = || self.old.iter().enumerate().filter_map(|(new, old)| Some((new, (*old)?)));
            let pick = |said: &[f32], width: usize, word: &dyn Fn((usize, u32)) -> usize| {
                let rows = said.chunks_exact(width);
                rows.flat_map(|row| both().map(|pair| row[word(pair)])).collect()
            };
            said = [
                pick(&said[0], teacher.width, &|(_, old)| old as usize),
                pick(&said[1], student.width, &|(new, _)| new),
            ];
        }
        said
    }
}

/// How close `student`'s answers to all batches are to `teacher`'s.
///
/// - `recut`: the texts as the student takes them, where that has another vocabulary
///
/// # Errors
/// As [`Encoder::forward`].
pub fn fidelity(
    teacher: &Encoder,
    student: &Encoder,
    batches: &[Batch],
    recut: Option<&Recut>,
    progress: &dyn Progress,
) -> Result<Vec<Metric>> {
    let config = &teacher.model.config;
    let classes = says_classes(config);
    let words = config.task == Task::MaskedLm;
    let mut sum = Closeness::default();
    let compare = |i: usize| {
        let batch = &batches[i];
        let t = teacher.forward(batch, None, &mut NoObserver)?;
        let Some(recut) = recut else {
            let s = student.forward(batch, None, &mut NoObserver)?;
            return Ok(Closeness::of(&t.values, &s.values, t.width, classes));
        };
        let new = recut.batch(batch);
        let s = student.forward(&new, None, &mut NoObserver)?;
        let [of_teacher, of_student] = recut.shared((&t, batch), (&s, &new), words);
        let width = if words { recut.old.iter().flatten().count() } else { t.width };
        Ok(Closeness::of(&of_teacher, &of_student, width, classes))
    };
    sweep(batches.len(), compare, |_, one| {
        sum.add(one);
        progress.step()
    })?;
    Ok(sum.metrics(config))
}

/// As [`fidelity`], of answers that are there already, text by text. Where both models say something of every token,
/// and cut a text into tokens of their own, that text does not count.
///
/// - `teacher`: whose answers `of` are compared with
pub fn fidelity_of(teacher: &Model, of: &Answers, student: &Answers) -> Vec<Metric> {
    let config = &teacher.config;
    let classes = says_classes(config);
    let mut sum = Closeness::default();
    let per_token = matches!(config.task, Task::TokenClassification | Task::QuestionAnswering);
    for (t, s) in of.rows.iter().zip(&student.rows).filter(|(t, s)| t.len() == s.len()) {
        let width = match config.task {
            Task::QuestionAnswering => 2,
            _ if per_token => config.classes(),
            _ => t.len(),
        };
        sum.add(Closeness::of(t, s, width, classes));
    }
    sum.metrics(config)
}

/// Whether a head's numbers are logits of classes.
fn says_classes(config: &Config) -> bool {
    match config.task {
        Task::SequenceClassification => !config.regression,
        Task::TokenClassification | Task::MaskedLm => true,
        Task::QuestionAnswering | Task::Embedding | Task::Bare => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::tables::{Columns, Span};
    use crate::data::tokenizer::Origin;
    use crate::model::testing::{batch, parts, tiny};
    use crate::progress::Quiet;

    fn prepared(targets: Targets, passages: Vec<Passage>, batches: Vec<Batch>) -> Prepared {
        let (rows, tokens) = (2, batches.iter().map(Batch::tokens).sum());
        let columns = Columns::default();
        Prepared { batches, rows, examples: 2, tokens, targets: Some(targets), passages, columns }
    }

    fn values(metrics: &[Metric]) -> Vec<(&'static str, f64)> {
        metrics.iter().map(|m| (m.name, (m.value * 1e4).round() / 1e4)).collect()
    }

    #[test]
    fn only_labelled_tokens_count() {
        let mut parts = parts("bert", Task::TokenClassification, 1);
        parts.config["id2label"] = serde_json::json!({"0": "O", "1": "B-X", "2": "I-X"});
        let model = parts.open();
        let labels = vec![vec![None, Some(1), None, Some(2), None], vec![None, Some(0), None]];
        let prepared = prepared(Targets::Tokens(labels), Vec::new(), Vec::new());
        let say = |classes: &[usize]| {
            classes.iter().flat_map(|&c| (0..3).map(move |i| f32::from(i == c))).collect()
        };
        let said = |rows: [&[usize]; 2]| {
            metrics(&model, &prepared, &Answers { rows: rows.map(say).to_vec() })
        };
        let right = said([&[0, 1, 2, 2, 2], &[1, 0, 1]]).expect("judged");
        assert_eq!(values(&right), [("entity_f1", 1.0), ("accuracy", 1.0), ("macro_f1", 1.0)]);
        // B-X O | B-X: one of three tokens, no entity of three; F1 of B-X is 1/2.
        let wrong = said([&[0, 1, 2, 0, 2], &[1, 1, 1]]).expect("judged");
        assert_eq!(
            values(&wrong),
            [("entity_f1", 0.0), ("accuracy", 0.3333), ("macro_f1", 0.2222)]
        );
        let mut rows = vec![say(&[0, 1, 2, 2, 2]), say(&[1, 0, 1])];
        rows[1][3] = f32::NAN;
        let broken = metrics(&model, &prepared, &Answers { rows }).expect("judged");
        assert_eq!(values(&broken)[1], ("accuracy", 0.6667));
    }

    #[test]
    fn questions_are_judged_by_the_text_of_the_answer() {
        let model = tiny("bert", Task::QuestionAnswering, 2);
        let origin = |start, end| Some(Origin { in_pair: true, start, end });
        let passage = |answers: &[Span]| {
            Passage::new(
                "in old Rome",
                answers,
                vec![None, origin(0, 2), origin(3, 6), origin(7, 11)],
            )
        };
        let rome = Span { start: 7, text: "Rome".into() };
        let judge = |answers: [&[Span]; 2], spans: [[usize; 2]; 2]| {
            let targets = Targets::Spans(vec![Some((3, 3)), None]);
            let prepared = prepared(targets, answers.map(passage).to_vec(), Vec::new());
            let say = |[first, last]: [usize; 2]| {
                let mut logits = vec![0.0; 8];
                (logits[2 * first], logits[2 * last + 1]) = (1.0, 1.0);
                logits
            };
            let rows = spans.map(say).to_vec();
            values(&metrics(&model, &prepared, &Answers { rows }).expect("judged"))
        };
        let one = std::slice::from_ref(&rome);
        // "Rome", and "old Rome" with an F1 of 2/3.
        assert_eq!(judge([one, one], [[3, 3], [2, 3]]), [("f1", 0.8333), ("exact_match", 0.5)]);
        // No answer is an answer where some question has none.
        assert_eq!(judge([one, &[]], [[3, 3], [0, 0]]), [("f1", 1.0), ("exact_match", 1.0)]);
        assert_eq!(judge([one, &[]], [[0, 0], [3, 3]]), [("f1", 0.0), ("exact_match", 0.0)]);
    }

    #[test]
    fn answers_are_kept_token_by_token_where_heads_give_them_so() {
        let model = tiny("bert", Task::TokenClassification, 3);
        let encoder = Encoder::new(&model).expect("a model that runs");
        let mut both = batch(4, &[2, 5]);
        both.rows = vec![1, 0];
        let output = encoder.forward(&both, None, &mut NoObserver).expect("runs");
        let answers = answer(&encoder, &[both], 2, &Quiet).expect("runs");
        assert_eq!(answers.rows, [output.values[6..].to_vec(), output.values[..6].to_vec()]);
    }
}
