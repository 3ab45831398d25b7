//! What a run will make, from headers, config.json and options alone (docs/plan.md).

mod estimate;
mod targets;

pub use estimate::Estimate;
pub use targets::TargetPlan;

use super::files::name;
use super::{SideFiles, Texts, weight_bytes};
use crate::data::tokenizer::Tokenizer;
use crate::model::{Bounds, Linear, Model, Outline, TokenSchedule, Weight};
use crate::pass::{PlanContext, TOKENS_OF_A_TEXT, Text};
use crate::recipe::Recipe;
use crate::report::{Expected, PassNote, PlanNote, PlannedTarget, compute_tokens};
use crate::{Error, Result};
use serde::Serialize;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Tokens of the built-in text, in BERT's vocabulary.
const BUILTIN_TOKENS: usize = 7_300;

/// What is known of a run before it reads any text.
#[derive(Debug, Clone, Copy)]
pub struct Foreseen<'a> {
    pub tokenizer: Option<&'a Tokenizer>,
    pub side_files: &'a SideFiles,
    /// What passes will watch the model on, if anything.
    pub text: Option<Text>,
    /// Texts of it at most.
    pub texts: usize,
    /// Whether there are texts to train on.
    pub data: bool,
    pub max_shard_bytes: u64,
}

impl<'a> Foreseen<'a> {
    /// Of a run whose texts are there.
    pub fn of(
        texts: &Texts,
        tokenizer: Option<&'a Tokenizer>,
        side_files: &'a SideFiles,
        max_shard_bytes: u64,
    ) -> Foreseen<'a> {
        let kind = |text: &crate::data::Calibration| match text {
            text if text.is_random() => Text::Random,
            text if text.is_given() => Text::Given,
            _ => Text::Builtin,
        };
        Foreseen {
            tokenizer,
            side_files,
            text: texts.calibration.as_ref().map(kind),
            texts: texts.calibration.as_ref().map_or(0, |text| text.texts),
            data: texts.data.is_some(),
            max_shard_bytes,
        }
    }

    fn context(&self, teacher: &'a Model) -> PlanContext<'a> {
        PlanContext {
            teacher,
            tokenizer: self.tokenizer,
            side_files: self.side_files,
            text: self.text,
            texts: self.texts,
            tokens: match self.text {
                Some(Text::Builtin) => BUILTIN_TOKENS.min(self.texts * TOKENS_OF_A_TEXT),
                _ => self.texts * TOKENS_OF_A_TEXT,
            },
            data: self.data,
        }
    }
}

/// Bytes of the weight files that `recipe` makes of `teacher`: of its [`Plan`] nothing else.
///
/// # Errors
/// As [`Plan::new`].
pub fn planned_bytes(teacher: &Model, recipe: &Recipe, run: &Foreseen) -> Result<Bounds> {
    let cx = run.context(teacher);
    let mut outline = Outline::new(teacher.clone());
    for step in &recipe.steps {
        step.pass.outline(&mut outline, &cx)?;
    }
    outline.file_bytes(run.max_shard_bytes)
}

/// What a run will make.
#[derive(Debug, Clone, Serialize)]
pub struct Plan {
    pub version: &'static str,
    /// Name of the input's folder.
    pub base_model: String,
    pub family: &'static str,
    pub task: &'static str,
    pub recipe: Value,
    /// Tokens of the text that FLOPs are those of.
    pub tokens: usize,
    /// The model as it is read.
    pub before: Expected,
    /// Bytes of its weight files.
    pub file_bytes_before: u64,
    pub passes: Vec<PassPlan>,
    /// Bytes of all weight files that are written.
    pub file_bytes: Bounds,
    /// These files, where they are known.
    pub files: Vec<PlannedFile>,
    /// Of the matrices of the layers, all that is stored for them; least and most.
    pub bits_per_weight: [f64; 2],
    /// Whether stock Transformers classes will load the output and answer as it does; `None` where that is not known.
    pub loads_natively: Option<bool>,
    pub targets: Vec<TargetPlan>,
    pub estimate: Estimate,
}

/// What is known of one pass.
#[derive(Debug, Clone, Serialize)]
pub struct PassPlan {
    pub name: &'static str,
    pub touches: Vec<Touched>,
    /// What is not known, and why; a sentence each.
    pub notes: Vec<String>,
    /// The model behind it.
    #[serde(flatten)]
    pub after: Expected,
}

/// Matrices of one part of the model that become something else in the same way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Touched {
    pub part: &'static str,
    pub matrices: usize,
    pub before: String,
    pub after: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PlannedFile {
    pub name: String,
    pub bytes: u64,
}

impl PlannedFile {
    fn list(files: Vec<(String, u64)>) -> Vec<PlannedFile> {
        files.into_iter().map(|(name, bytes)| PlannedFile { name, bytes }).collect()
    }
}

impl Plan {
    /// Of `recipe` on `teacher`, which [`Model::outline`] read from `input`.
    ///
    /// # Errors
    /// What a run would refuse before it does any work.
    pub fn new(teacher: &Model, input: &Path, recipe: &Recipe, run: &Foreseen) -> Result<Plan> {
        let tokens = compute_tokens(teacher);
        let cx = run.context(teacher);
        let mut outline = Outline::new(teacher.clone());
        let before = expected(&outline, tokens);
        let (mut passes, mut foresights) = (Vec::new(), Vec::new());
        for step in &recipe.steps {
            let was = outline.clone();
            let in_pass = |e| match e {
                Error::Option { .. } | Error::Usage { .. } => e,
                e => Error::InPass { pass: step.name, source: Box::new(e) },
            };
            let foresight = step.pass.outline(&mut outline, &cx).map_err(in_pass)?;
            outline.models().iter().try_for_each(Model::validate).map_err(in_pass)?;
            passes.push(PassPlan {
                name: step.name,
                touches: touched(&was, &outline),
                notes: foresight.notes.clone(),
                after: expected(&outline, tokens),
            });
            foresights.push(foresight);
        }
        let millibits = outline.millibits();
        let targets = targets::all(recipe, &outline, run.data, run.max_shard_bytes)?;
        let native = &targets[0];
        Ok(Plan {
            version: env!("CARGO_PKG_VERSION"),
            base_model: name(input),
            family: teacher.family.model_type,
            task: teacher.config.task.name(),
            recipe: recipe.to_json(),
            tokens,
            before,
            file_bytes_before: weight_bytes(input)?,
            file_bytes: native.weight_bytes.expect("the native form carries every model"),
            files: native.files.clone(),
            bits_per_weight: [millibits.low as f64 / 1e3, millibits.high as f64 / 1e3],
            loads_natively: loads_natively(&outline),
            targets,
            estimate: Estimate::of(&foresights, &cx),
            passes,
        })
    }

    /// Beside what came of it.
    pub(super) fn met(&self, passes: &[PassNote], written: u64, max_shard_bytes: u64) -> PlanNote {
        let expected: Vec<Expected> = self.passes.iter().map(|pass| pass.after).collect();
        let targets = self.planned_targets(max_shard_bytes);
        PlanNote::new(&expected, passes, (self.file_bytes, written), targets)
    }

    /// Targets for other software that carry the output, as reports have them. `max_shard_bytes`: what it was planned with.
    pub(super) fn planned_targets(&self, max_shard_bytes: u64) -> Vec<PlannedTarget> {
        let planned = |plan: &TargetPlan| {
            Some(PlannedTarget {
                target: plan.name.into(),
                sign_planes: plan.sign_planes.map(str::to_string),
                weight_bytes: plan.weight_bytes?,
                max_shard_bytes,
            })
        };
        self.targets[1..].iter().filter_map(planned).collect()
    }
}

fn expected(outline: &Outline, tokens: usize) -> Expected {
    Expected { params: outline.params(), bytes: outline.bytes(), flops: outline.flops(tokens) }
}

/// `None` where models disagree, and where widths are open of dense matrices: by chance they may all be the same.
fn loads_natively(outline: &Outline) -> Option<bool> {
    let dense = |weight: &Weight| matches!(weight, Weight::Dense(_));
    let packed = |m: &Model| {
        !dense(&m.embeddings.word) || m.linears().iter().any(|linear| !dense(&linear.weight))
    };
    let models = outline.models();
    let native = models[0].loads_natively();
    let agreed = models.iter().all(|m| m.loads_natively() == native);
    (agreed && (!outline.uneven || packed(&models[0]))).then_some(native)
}

/// Parts of a model that have matrices.
const PARTS: [&str; 5] = ["word table", "positions", "projection", "layers", "head"];

/// What becomes another form or another shape; of several models, in the first.
fn touched(before: &Outline, after: &Outline) -> Vec<Touched> {
    let (was, is) = (&before.models()[0], &after.models()[0]);
    // Where sizes are open, those of one model say nothing, nor do its forms where each matrix may get another.
    let kind = |weight: &Weight| weight.form().split('(').next().unwrap_or_default().to_string();
    let all = after.models().iter().flat_map(|m| &m.layers).flat_map(|layer| layer.linears());
    let kinds: BTreeSet<String> = all.map(|(_, linear)| kind(&linear.weight)).collect();
    let form = |part: usize, weight: &Weight| match after.is_exact() {
        true => weight.form(),
        false if PARTS[part] == "layers" => Vec::from_iter(kinds.clone()).join(" or "),
        false => kind(weight),
    };
    let mut counts: BTreeMap<(usize, String, String), usize> = BTreeMap::new();
    let mut pair = |part: usize, was: &Weight, is: Option<&Weight>| {
        let shape = |w: &Weight| (w.rows(), w.cols());
        let to = match is.filter(|is| was.form() != is.form()) {
            Some(is) => form(part, is),
            None if is.is_some_and(|is| shape(is) == shape(was)) => return,
            None => "cut".to_string(),
        };
        *counts.entry((part, was.form(), to)).or_default() += 1;
    };
    pair(0, &was.embeddings.word, Some(&is.embeddings.word));
    let positions = |m: &Model| m.embeddings.position.clone().map(Weight::Dense);
    if let Some(was) = positions(was) {
        pair(1, &was, positions(is).as_ref());
    }
    if let (Some(was), Some(is)) = (&was.embeddings.project, &is.embeddings.project) {
        pair(2, &was.weight, Some(&is.weight));
    }
    for (was, is) in was.layers.iter().zip(&is.layers) {
        let left = is.linears();
        for (role, was) in was.linears() {
            let is = left.iter().find(|(r, _)| *r == role).map(|(_, linear)| &linear.weight);
            pair(3, &was.weight, is);
        }
    }
    let heads = |m: &Model| m.head.linears().into_iter().cloned().collect::<Vec<Linear>>();
    for (was, is) in heads(was).iter().zip(&heads(is)) {
        pair(4, &was.weight, Some(&is.weight));
    }
    let mut touched: Vec<Touched> = counts
        .into_iter()
        .map(|((part, before, after), matrices)| Touched {
            part: PARTS[part],
            matrices,
            before,
            after,
        })
        .collect();
    let drops = |outline: &Outline| -> Vec<TokenSchedule> {
        outline.models().iter().filter_map(|m| m.tokens.clone()).collect()
    };
    let had = drops(before);
    if drops(after).iter().any(|schedule| !had.contains(schedule)) {
        let (before, after) = ("all tokens".into(), "fewer tokens".into());
        touched.push(Touched { part: "layers", matrices: 0, before, after });
    }
    touched
}
