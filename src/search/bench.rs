//! Makes variants in memory, and judges them beside the original by texts that no pass saw.

use super::{ETA, Found, SpeedBy};
use crate::checkpoint::{Tensor, file_bytes};
use crate::compare::typical;
use crate::data::Calibration;
use crate::data::prepare::is_labelled;
use crate::data::tables::Table;
use crate::data::tokenizer::Tokenizer;
use crate::eval::load::{self, Load};
use crate::eval::tasks::{
    Answers, Metric, Prepared, Recut, answer, fidelity, fidelity_of, metrics,
};
use crate::model::{Embeddings, Model, Task, Weight};
use crate::pass::{Progress, Quiet};
use crate::pipeline::{Applied, Options, SideFiles, Texts, macs_of};
use crate::recipe::{Recipe, passes_step};
use crate::runtime::{Batch, Encoder};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::time::Instant;

/// How much text a variant is made and judged with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rung {
    /// Of the calibration text.
    pub texts: usize,
    /// To train on; 0 where there are none.
    pub data: usize,
    /// Held out.
    pub judged: usize,
}

/// Fewest texts of a rung, where there are more: below these, which variant is better is a matter of chance, and what takes
/// many texts to repair looks worse than it is (a cut of 0.6 made with 37 texts lost 7.4 points, with 336 1.3; lighter ones
/// lost as much with either). Rungs of few texts are not much cheaper either: variants are judged and timed as well.
const LEAST: Rung = Rung { texts: 96, data: 64, judged: 64 };

impl Rung {
    /// At most `n` rungs, each with [`ETA`] times the text of the one below it, the last with all of `whole`; fewer where
    /// there is little text.
    pub fn plan(whole: &Rung, n: usize) -> Vec<Rung> {
        let share = |all: usize, least: usize, part: usize| (all / part).max(least).min(all);
        let rung = |below: usize| {
            let part = ETA.saturating_pow(below as u32);
            Rung {
                texts: share(whole.texts, LEAST.texts, part),
                data: share(whole.data, LEAST.data, part),
                judged: share(whole.judged, LEAST.judged, part),
            }
        };
        let mut rungs: Vec<Rung> = (0..n.max(1)).rev().map(rung).collect();
        rungs.dedup();
        rungs
    }
}

/// Texts that variants are judged by.
#[derive(Debug, Clone)]
pub enum Held {
    /// Examples of a file, in an order such that the first of them stand for all.
    File { table: Table, path: PathBuf, max_tokens: usize },
    /// What the calibration text holds out.
    Calibration,
}

impl Held {
    /// Examples there are.
    pub fn examples(&self, texts: &Texts) -> usize {
        match self {
            Held::File { table, .. } => table.examples.len(),
            Held::Calibration => {
                let held = texts.calibration.iter().flat_map(|c| &c.held_out);
                held.map(Batch::texts).sum()
            }
        }
    }

    /// The first `n` examples, in the tokens of `tokenizer`, with labels where all of the file have one that fits.
    ///
    /// - `texts`: in the same tokens
    fn prepared(
        &self,
        n: usize,
        model: &Model,
        tokenizer: Option<&Tokenizer>,
        texts: &Texts,
    ) -> Result<Prepared> {
        let Held::File { table, path, max_tokens } = self else {
            let held = texts.calibration.as_ref().map_or(&[][..], |c| &c.held_out);
            return Ok(unlabelled(held));
        };
        let tokenizer = tokenizer.expect("who reads a file has a tokenizer");
        let task = model.config.task;
        let labelled = table.examples.iter().all(|e| is_labelled(e, task));
        let examples = table.examples[..n].to_vec();
        let table = Table { examples, ..table.clone() };
        let prepare =
            |labelled| Prepared::new(&table, model, tokenizer, *max_tokens, labelled, path);
        // Labels are a help, not a need: those of another task are left out.
        match prepare(labelled) {
            Err(Error::Mismatch { .. }) if labelled => prepare(false),
            done => done,
        }
    }
}

/// `batches` by themselves, their rows counted from 0.
fn unlabelled(batches: &[Batch]) -> Prepared {
    let mut batches = batches.to_vec();
    let mut rows: Vec<usize> = batches.iter().flat_map(|b| b.rows.clone()).collect();
    rows.sort_unstable();
    for row in batches.iter_mut().flat_map(|b| &mut b.rows) {
        *row = rows.binary_search(row).expect("it is one of them");
    }
    Prepared {
        rows: rows.len(),
        examples: rows.len(),
        tokens: batches.iter().map(Batch::tokens).sum(),
        batches,
        targets: None,
        passages: Vec::new(),
        columns: Default::default(),
    }
}

/// What variants are made of and judged by.
pub struct Given<'a> {
    /// The model as it was read.
    pub teacher: &'a Model,
    pub tokenizer: Option<&'a Tokenizer>,
    pub side_files: &'a SideFiles,
    /// All of it, as a run would have it.
    pub texts: &'a Texts,
    /// Reads `texts` anew, for a model that has another vocabulary.
    pub read: &'a dyn Fn(&Model, &Tokenizer) -> Result<Texts>,
    pub held: &'a Held,
    pub rungs: &'a [Rung],
    /// Time variants at every rung; else at the last alone, and count FLOPs below.
    pub timed: bool,
    pub seed: u64,
    pub progress: &'a dyn Progress,
    pub interrupted: &'a dyn Fn() -> bool,
}

/// The original, and all that variants have in common.
pub struct Bench<'a> {
    given: Given<'a>,
    encoder: Encoder<'a>,
    rungs: Vec<Ready>,
    /// The rung, and what the steps of the last recipe left, one after the other.
    made: (usize, Vec<(String, Applied)>),
    /// What steps that look at the tables alone make of those of the original with the texts of a rung, whatever stands
    /// before them.
    tables: HashMap<(usize, String), Embeddings>,
}

/// One rung.
struct Ready {
    texts: Texts,
    prepared: Prepared,
    /// What the original says; `None` where that is too much to keep.
    answers: Option<Answers>,
    /// How good that is, where there are labels.
    metric: Option<Metric>,
    flops: u64,
}

/// Texts of a batch that are timed: one user, and a queue of them. The slower of the two counts.
const BATCHES: [usize; 2] = [1, 32];
/// Texts that are timed at the last rung, and below.
const TIMED: [usize; 2] = [128, 32];
/// Times that each is timed.
const RUNS: usize = 5;

impl<'a> Bench<'a> {
    /// Judges the original at every rung.
    ///
    /// # Errors
    /// What reading and judging the held-out texts refuses.
    pub fn new(given: Given<'a>) -> Result<Bench<'a>> {
        let encoder = Encoder::packed(given.teacher)?;
        let all = given.rungs.iter().map(|r| r.judged).max().unwrap_or(0);
        let prepare = |n| given.held.prepared(n, given.teacher, given.tokenizer, given.texts);
        let held = prepare(all)?.batches;
        let mut rungs = Vec::new();
        for rung in given.rungs {
            let prepared = prepare(rung.judged)?;
            let (mut answers, mut metric) = (None, None);
            if !matches!(given.teacher.config.task, Task::MaskedLm | Task::Bare) {
                let said = answer(&encoder, &prepared.batches, prepared.rows, &Quiet)?;
                if prepared.targets.is_some() {
                    metric = metrics(given.teacher, &prepared, &said)?.into_iter().next();
                }
                answers = Some(said);
            }
            let flops = 2 * macs_of(given.teacher, &prepared.batches);
            let texts = part(given.texts, rung, &held);
            rungs.push(Ready { texts, prepared, answers, metric, flops });
        }
        Ok(Bench { given, encoder, rungs, made: (0, Vec::new()), tables: HashMap::new() })
    }

    /// Makes `recipe` with the text of `rung`, and judges it; with the seconds that it took.
    ///
    /// # Errors
    /// What the passes refuse; [`Error::Mismatch`] for answers that are no numbers.
    pub fn look_at(&mut self, recipe: &Recipe, rung: usize) -> Result<(Found, f64)> {
        let start = Instant::now();
        let applied = self.make(recipe, rung)?;
        let (at, teacher, model) = (&self.rungs[rung], self.given.teacher, &applied.model);
        let recut = match applied.recut() {
            None => None,
            Some((vocabulary, texts)) => {
                if texts.calibration.as_ref().is_some_and(Calibration::is_random) {
                    return Err(Error::Mismatch {
                        found: "random tokens of another vocabulary".into(),
                        expected: "a variant that lost words is judged by text".into(),
                        advice: "give a --calib",
                    });
                }
                let judged = self.given.rungs[rung].judged;
                let tokenizer = Some(&vocabulary.tokenizer);
                Some((self.given.held.prepared(judged, model, tokenizer, texts)?, vocabulary))
            }
        };
        let prepared = recut.as_ref().map_or(&at.prepared, |(prepared, _)| prepared);
        let encoder = Encoder::packed(model)?;

        let mut found: BTreeMap<String, f64> = BTreeMap::new();
        let closeness = match &at.answers {
            Some(of) => {
                let said = answer(&encoder, &prepared.batches, prepared.rows, &Quiet)?;
                if prepared.targets.is_some() {
                    // By the labels of the original: what a class is called is its business.
                    let scores = metrics(teacher, prepared, &said)?;
                    found.extend(scores.into_iter().map(|m| (m.name.to_string(), m.value)));
                }
                fidelity_of(teacher, of, &said)
            }
            None => {
                let recut = recut.as_ref().map(|(prepared, vocabulary)| {
                    let old = vocabulary.kept.iter().map(|&id| Some(id)).collect();
                    Recut::new(&prepared.batches, old)
                });
                fidelity(&self.encoder, &encoder, &at.prepared.batches, recut.as_ref(), &Quiet)?
            }
        };
        found.extend(closeness.into_iter().map(|m| (m.name.to_string(), m.value)));
        let lost = lost(&found, at.metric.as_ref());
        if let Some(metric) = &at.metric {
            found.insert(format!("{}_of_the_original", metric.name), metric.value);
        }
        if let Some((name, value)) = found.iter().find(|(_, value)| !value.is_finite()) {
            return Err(Error::Mismatch {
                found: format!("the {name} of the variant is {value}"),
                expected: "answers are numbers".into(),
                advice: "leave it out of the space",
            });
        }
        let flops = 2 * macs_of(model, &prepared.batches);
        let (speed, speed_by) = match self.given.timed || rung + 1 == self.rungs.len() {
            true => (self.speed(&encoder, at, prepared, rung)?, SpeedBy::Measured),
            false => (at.flops as f64 / flops.max(1) as f64, SpeedBy::Flops),
        };
        let found = Found {
            texts: at.texts.calibration.as_ref().map_or(0, |c| c.texts),
            data: at.texts.data.as_ref().map_or(0, |d| d.texts.len()),
            judged: prepared.examples,
            bytes: file_bytes(&model.compacted().tensors())?,
            flops,
            flops_share: flops as f64 / at.flops.max(1) as f64,
            speed,
            speed_by,
            drop: lost.drop,
            drop_of: lost.drop_of,
            divergence: lost.divergence,
            divergence_of: lost.divergence_of,
            metrics: found,
        };
        Ok((found, start.elapsed().as_secs_f64()))
    }

    /// The model that `recipe` makes; the steps that it begins with like the last one are not run again.
    fn make(&mut self, recipe: &Recipe, rung: usize) -> Result<Applied> {
        let Given { teacher, tokenizer, side_files, read, seed, progress, interrupted, .. } =
            self.given;
        let (of, made) = &mut self.made;
        if *of != rung {
            made.clear();
            *of = rung;
        }
        let name = |step: &crate::recipe::Step| passes_step(step.name, step.options.iter());
        let same = recipe.steps.iter().zip(made.iter());
        let same = same.take_while(|(step, (made, _))| name(step) == *made).count();
        made.truncate(same);
        let mut applied = made.last().map_or_else(|| Applied::of(teacher), |(_, a)| a.clone());
        let (size, held) = (&self.given.rungs[rung], self.given.held);
        let reread = |model: &Model, tokenizer: &Tokenizer| {
            let texts = read(model, tokenizer)?;
            let all = held.prepared(held.examples(&texts), model, Some(tokenizer), &texts)?;
            Ok(part(&texts, size, &all.batches))
        };
        let options = Options {
            seed,
            arguments: "",
            inputs: &[],
            texts: &self.rungs[rung].texts,
            tokenizer,
            read: &reread,
            state: None,
            cache: None,
            spill: None,
            max_shard_bytes: u64::MAX,
            measure: false,
            accept: &|_| Ok(()),
            progress,
            interrupted,
        };
        for (index, step) in recipe.steps.iter().enumerate().skip(same) {
            let key = name(step);
            if step.pass.tables_alone() && has_tables_of(&applied.model, teacher) {
                let of_rung = (rung, key.clone());
                if !self.tables.contains_key(&of_rung) {
                    let mut alone = Applied::of(teacher);
                    alone.run(teacher, (index, step), side_files, &options)?;
                    self.tables.insert(of_rung.clone(), alone.model.embeddings);
                }
                let (tables, model) = (self.tables[&of_rung].clone(), &mut applied.model);
                model.embeddings.word = tables.word;
                model.embeddings.position = tables.position;
                model.drop_tied_copy();
            } else {
                applied.run(teacher, (index, step), side_files, &options)?;
            }
            made.push((key, applied.clone()));
        }
        Ok(applied)
    }

    /// How many times as fast as the original, in turn with it, on all threads: the worse of one text and of a batch.
    fn speed(&self, encoder: &Encoder, at: &Ready, own: &Prepared, rung: usize) -> Result<f64> {
        let texts = TIMED[usize::from(rung + 1 < self.rungs.len())];
        let loads = [&at.prepared, own].map(|prepared| {
            let texts = typical(prepared, texts);
            BATCHES.map(|batch| Load::of(&texts, batch)).to_vec()
        });
        let step = || self.given.progress.step();
        let timings = load::time(&[&self.encoder, encoder], &loads, RUNS, &step)?;
        let speeds = timings[1].iter().map(|t| t.speedup.median);
        Ok(speeds.fold(f64::INFINITY, f64::min))
    }
}

/// Whether nothing has touched the words and positions of `teacher`: the same bytes at the same place.
fn has_tables_of(model: &Model, teacher: &Model) -> bool {
    let (own, theirs) = (&model.embeddings, &teacher.embeddings);
    let same = |a: &Tensor, b: &Tensor| std::ptr::eq(a.bytes(), b.bytes());
    let words = match (&own.word, &theirs.word) {
        (Weight::Dense(a), Weight::Dense(b)) => same(a, b),
        _ => false,
    };
    words
        && match (&own.position, &theirs.position) {
            (Some(a), Some(b)) => same(a, b),
            (a, b) => a.is_none() && b.is_none(),
        }
}

/// The share of `texts` that `rung` has, without what variants are judged by.
fn part(texts: &Texts, rung: &Rung, judged: &[Batch]) -> Texts {
    Texts {
        calibration: texts.calibration.as_ref().map(|c| c.part(rung.texts)),
        data: texts.data.as_ref().map(|d| d.without(judged).part(rung.data)),
        words: texts.words.clone(),
        // Seen once, by the winner.
        eval: None,
    }
}

struct Lost {
    drop: f64,
    drop_of: String,
    divergence: f64,
    divergence_of: String,
}

/// What of the original's quality is gone: see [`Found`].
///
/// - `found`: what was measured of the variant, by name
/// - `metric`: the main one, of the original
fn lost(found: &BTreeMap<String, f64>, metric: Option<&Metric>) -> Lost {
    let get = |name: &str| found.get(name).copied();
    // Answers that are all 0 have no relative error, and no variant of them is off.
    let error = get("relative_l2").unwrap_or(0.0);
    let closeness = ["agreement", "mean_cosine"].into_iter().find_map(|n| Some((n, 1.0 - get(n)?)));
    let labelled = metric.and_then(|m| Some((m.name, m.value - get(m.name)?)));
    let (drop_of, drop) = labelled.or(closeness).unwrap_or(("relative_l2", error));
    let (divergence_of, divergence) = match (get("mean_kl_nats"), closeness) {
        (Some(kl), _) => ("mean_kl_nats", kl),
        (None, Some(("mean_cosine", off))) => ("1 - mean_cosine", off),
        _ => ("relative_l2", error),
    };
    Lost { drop, drop_of: drop_of.into(), divergence, divergence_of: divergence_of.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rungs_grow_to_all_of_the_text() {
        let rungs = |texts, data, judged, n| {
            let rungs = Rung::plan(&Rung { texts, data, judged }, n);
            rungs.into_iter().map(|r| (r.texts, r.data, r.judged)).collect::<Vec<_>>()
        };
        assert_eq!(rungs(448, 0, 2048, 3), [(96, 0, 227), (149, 0, 682), (448, 0, 2048)]);
        assert_eq!(rungs(448, 900, 2048, 1), [(448, 900, 2048)]);
        // Too little text for three of them.
        assert_eq!(rungs(100, 0, 150, 3), [(96, 0, 64), (100, 0, 150)][..]);
        assert_eq!(rungs(7, 0, 1, 5), [(7, 0, 1)]);
    }

    #[test]
    fn what_is_lost_is_a_metric_or_else_closeness() {
        let found = |pairs: &[(&str, f64)]| -> BTreeMap<String, f64> {
            pairs.iter().map(|(k, v)| (k.to_string(), *v)).collect()
        };
        let said = |found: BTreeMap<String, f64>, metric: Option<Metric>| {
            let lost = lost(&found, metric.as_ref());
            (lost.drop_of, lost.drop, lost.divergence_of, lost.divergence)
        };
        let classes = [("agreement", 0.75), ("mean_kl_nats", 0.2), ("relative_l2", 0.5)];
        let accuracy = Metric { name: "accuracy", value: 0.75, interval: None };
        let labelled = found(&[&classes[..], &[("accuracy", 0.5)]].concat());
        let kl = || "mean_kl_nats".to_string();
        assert_eq!(said(labelled, Some(accuracy)), ("accuracy".into(), 0.25, kl(), 0.2));
        assert_eq!(said(found(&classes), None), ("agreement".into(), 0.25, kl(), 0.2));
        let sentences = found(&[("mean_cosine", 0.75), ("relative_l2", 0.5)]);
        let cosine = ("mean_cosine".to_string(), 0.25, "1 - mean_cosine".to_string(), 0.25);
        assert_eq!(said(sentences, None), cosine);
        let scores = found(&[("relative_l2", 0.5)]);
        let error = || "relative_l2".to_string();
        assert_eq!(said(scores, None), (error(), 0.5, error(), 0.5));
    }
}
