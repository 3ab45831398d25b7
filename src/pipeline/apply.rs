//! The passes of a recipe, one after the other, in memory.

use super::{Options, Texts};
use crate::checkpoint::Tensor;
use crate::data::Vocabulary;
use crate::data::vocabulary::{Cuts, broken, by_row};
use crate::model::Model;
use crate::model::cost::{self, Cost};
use crate::pass::{Context, Pass, Work};
use crate::recipe::{self, Recipe};
use crate::report::{PassNote, compute_tokens};
use crate::runtime::Batch;
use crate::train::state::StateFile;
use crate::{Error, Result};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

/// What the passes made. A clone shares what it can.
#[derive(Debug, Clone)]
pub struct Applied {
    pub model: Model,
    pub(super) passes: Vec<PassNote>,
    pub(super) times: Vec<(&'static str, f64)>,
    /// Further safetensors files, by name.
    pub(super) tensors: Vec<(String, Vec<Tensor>)>,
    /// What a pass that cut the vocabulary left.
    pub(super) cut: Option<Arc<Cut>>,
}

/// A vocabulary that has lost words, and what speaks in its tokens: the model that is made has its ids from then on,
/// and so have its teacher and all texts. The model as it was read keeps its own.
#[derive(Debug)]
pub(super) struct Cut {
    pub(super) vocabulary: Vocabulary,
    pub(super) teacher: Model,
    pub(super) texts: Texts,
}

impl Applied {
    /// Nothing done yet.
    pub fn of(model: &Model) -> Applied {
        Applied {
            model: model.clone(),
            passes: Vec::new(),
            times: Vec::new(),
            tensors: Vec::new(),
            cut: None,
        }
    }

    /// Runs `step`, number `index` of its recipe, on what there is.
    ///
    /// - `teacher`: the model as it was read
    ///
    /// # Errors
    /// What the pass refuses, and a model that it leaves broken; half of it may have been run then.
    pub fn run(
        &mut self,
        teacher: &Model,
        (index, step): (usize, &recipe::Step),
        side_files: &SideFiles,
        options: &Options,
    ) -> Result<()> {
        let step = Step { index, name: step.name, pass: &*step.pass };
        one(teacher, self, step, side_files, options)
    }

    /// The vocabulary that the model has, and all texts in its tokens, where a pass cut it.
    pub fn recut(&self) -> Option<(&Vocabulary, &Texts)> {
        self.cut.as_ref().map(|cut| (&cut.vocabulary, &cut.texts))
    }
}

/// Files beside the weights that the output gets too, each with its name there.
pub type SideFiles = [(PathBuf, String)];

/// The passes, one after the other.
pub(super) fn apply(
    teacher: &Model,
    recipe: &Recipe,
    side_files: &SideFiles,
    options: &Options,
) -> Result<Applied> {
    let steps = &recipe.steps;
    let Some(cache) = &options.cache else {
        let mut applied = Applied::of(teacher);
        for step in steps.iter().enumerate() {
            applied.run(teacher, step, side_files, options)?;
        }
        return Ok(applied);
    };
    let (mut applied, done) = cache.latest(teacher, steps, options)?;
    if done > 0 {
        let names: Vec<&str> = steps[..done].iter().map(|s| s.name).collect();
        let folder = cache.folder.display();
        options.progress.log(&format!("taken from {folder}: {}", names.join(", ")));
    }
    for index in done..steps.len() {
        let (tensors, whole) = (applied.tensors.len(), applied.cut.is_none());
        applied.run(teacher, (index, &steps[index]), side_files, options)?;
        let (tensors, cut) = (applied.tensors.len() - tensors, whole && applied.cut.is_some());
        cache.keep(&applied, tensors, cut, &steps[..=index], options.interrupted)?;
    }
    Ok(applied)
}

/// A pass to be run.
pub(super) struct Step<'a> {
    pub(super) index: usize,
    pub(super) name: &'static str,
    pub(super) pass: &'a dyn Pass,
}

/// Runs one pass and checks the model after it.
pub(super) fn one(
    teacher: &Model,
    applied: &mut Applied,
    step: Step,
    side_files: &SideFiles,
    options: &Options,
) -> Result<()> {
    recipe::fits(step.name, step.pass.needs_plain_layers(), teacher)?;
    let model = &mut applied.model;
    let (words, texts) = match &applied.cut {
        Some(cut) => (&cut.teacher, &cut.texts),
        None => (teacher, options.texts),
    };
    let start = Instant::now();
    let before = Cost::of(model).total;
    let state = options.state.as_ref().map(|s| StateFile {
        path: s.path.join(format!("{}-{}.safetensors", step.index, step.name)),
        ..s.clone()
    });
    let cx = Context {
        teacher: words,
        tokenizer: options.tokenizer,
        side_files,
        calibration: texts.calibration.as_ref(),
        data: texts.data.as_ref(),
        words: texts.words.as_ref(),
        state: state.as_ref(),
        spill: options.spill.as_ref(),
        seed: options.seed,
        progress: options.progress,
    };
    let in_pass = |e| match e {
        Error::Interrupted | Error::Option { .. } | Error::Usage { .. } => e,
        e => Error::InPass { pass: step.name, source: Box::new(e) },
    };
    let work = step.pass.run(model, &cx).and_then(|work| {
        check(model)?;
        model.layers.iter_mut().try_for_each(|layer| cx.finished(layer))?;
        Ok(work)
    });
    let mut work = work.map_err(in_pass)?;
    let after = Cost::of(model).total;
    if let Some(vocabulary) = work.vocabulary.take() {
        assert!(applied.cut.is_none(), "the vocabulary is cut once");
        let cut = recut(teacher, vocabulary, &mut work, options).map_err(in_pass)?;
        applied.cut = Some(Arc::new(cut));
    }
    applied.passes.push(PassNote {
        name: step.name.to_string(),
        params_before: before.params,
        params_after: after.params,
        bytes_before: before.bytes,
        bytes_after: after.bytes,
        flops_after: 2 * cost::macs(&applied.model, 1, compute_tokens(&applied.model)),
        changes: work.changes,
        training: work.training,
        notes: work.notes,
        figures: work.figures.iter().map(|(&name, &value)| (name.to_string(), value)).collect(),
    });
    applied.times.push((step.name, start.elapsed().as_secs_f64()));
    for (name, tensors) in work.files {
        // Of a pass that stands in a recipe twice, by its place.
        let taken = applied.tensors.iter().any(|(n, _)| n == name);
        let name = if taken { format!("{}-{name}", step.index) } else { name.to_string() };
        applied.tensors.push((name, tensors));
    }
    Ok(())
}

/// Brings the teacher and all texts to `vocabulary`, and notes in `work` what that does to the texts.
///
/// # Errors
/// Where a text is cut otherwise though all of its tokens are kept.
pub(super) fn recut(
    teacher: &Model,
    vocabulary: Vocabulary,
    work: &mut Work,
    options: &Options,
) -> Result<Cut> {
    let teacher = teacher.select_words(&vocabulary.kept)?;
    let (before, after) = (options.texts, (options.read)(&teacher, &vocabulary.tokenizer)?);
    let mut compare = |name: &str, texts: Vec<[&[u32]; 2]>| {
        // As many tokens as the longest has: it may have lost its end, and what stood there.
        let limit = texts.iter().map(|[before, _]| before.len()).max().unwrap_or(0);
        let pairs = texts.iter().map(|&[before, after]| (before, after));
        let cuts = Cuts::of(&vocabulary.kept, vocabulary.unknown, limit, pairs);
        if let Some(text) = cuts.broken {
            return Err(broken(&format!("text {} of {name}", text + 1)));
        }
        work.notes.push(format!("{name}: {}", cuts.describe()));
        Ok(cuts)
    };
    match (&before.data, &after.data, &before.calibration, &after.calibration) {
        // Of two long texts that begin alike, one may be told from a held-out text by its last token, and cut before
        // that now: then other rows are left, and none is the other's counterpart.
        (Some(before), Some(after), ..) if before.texts.len() == after.texts.len() => {
            let texts = before.texts.iter().zip(&after.texts);
            compare(&before.source, texts.map(|(b, a)| [&b.ids[..], &a.ids[..]]).collect())?;
        }
        (None, None, Some(before), Some(after)) if !before.is_random() => {
            compare(&before.source, paired(&before.batches, &after.batches))?;
        }
        _ => {}
    }
    if let (Some((before, file)), Some((after, _))) = (&before.eval, &after.eval) {
        let cuts = compare(&file.name, paired(&before.batches, &after.batches))?;
        work.figures.insert("eval_same", cuts.share());
    } else if let (Some(before), Some(after)) = (&before.calibration, &after.calibration)
        && !before.is_random()
    {
        let name = format!("{}, held out", before.source);
        let cuts = compare(&name, paired(&before.held_out, &after.held_out))?;
        work.figures.insert("eval_same", cuts.share());
    }
    Ok(Cut { vocabulary, teacher, texts: after })
}

/// The ids of each text in both, in the order of the data.
fn paired<'a>(before: &'a [Batch], after: &'a [Batch]) -> Vec<[&'a [u32]; 2]> {
    let (before, after) = (by_row(before), by_row(after));
    before.iter().filter_map(|(row, &ids)| Some([ids, *after.get(row)?])).collect()
}

fn check(model: &Model) -> Result<()> {
    model.validate()?;
    model.tensors().iter().filter(|t| !t.is_mapped()).try_for_each(|t| t.check_finite())
}
