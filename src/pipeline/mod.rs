//! Runs a recipe: one pass after the other, checked, measured, written.

mod apply;
mod cache;
mod emit;
mod files;
mod finetune;
pub mod plan;

pub use apply::{Applied, SideFiles};
pub use cache::Cache;
pub use emit::add as add_targets;
pub use files::{root, side_files, weight_bytes};
pub use finetune::Finetune;

use crate::checkpoint::{OutputFolder, Spill, metadata};
use crate::data::tokenizer::Tokenizer;
use crate::data::{Calibration, Dataset, Words};
use crate::eval::latency;
use crate::eval::tasks::{Prepared, Recut, answer, fidelity, metrics};
use crate::model::cost;
use crate::model::{Model, Task};
use crate::pass::{Pass, Progress, Quiet};
use crate::recipe::Recipe;
use crate::report::{
    self, CalibrationNote, FileNote, InputNote, Measured, Quality, Report, SCHEMA, Summary,
};
use crate::runtime::kernels::Level;
use crate::runtime::{Batch, Encoder, NoObserver};
use crate::train::state::StateFile;
use crate::{Error, Result};
use apply::{Step, apply, one};
use files::{flat_modules, license, name};
use plan::{Foreseen, Plan};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// What a run does besides its recipe.
pub struct Options<'a> {
    pub seed: u64,
    /// What else the output depends on, as it would be written on the command line.
    pub arguments: &'a str,
    /// The files that it depends on.
    pub inputs: &'a [InputNote],
    pub texts: &'a Texts,
    /// The tokenizer of the model as it was read, where a pass needs it.
    pub tokenizer: Option<&'a Tokenizer>,
    /// Reads `texts` anew, for a model that has another vocabulary.
    pub read: &'a dyn Fn(&Model, &Tokenizer) -> Result<Texts>,
    /// The folder where passes that train keep their state, as the path of a file.
    pub state: Option<StateFile>,
    /// Where finished passes are kept, and taken from.
    pub cache: Option<Cache>,
    /// Where finished layers wait to be written, out of memory; `None`: they stay in it.
    pub spill: Option<Spill>,
    pub max_shard_bytes: u64,
    /// Latency is measured before and after; off where time is no concern.
    pub measure: bool,
    /// Has the last word before the output appears.
    pub accept: &'a dyn Fn(&Report) -> Result<()>,
    pub progress: &'a dyn Progress,
    pub interrupted: &'a dyn Fn() -> bool,
}

/// What passes see, and what the output is judged by, in tokens of one vocabulary.
#[derive(Debug, Default)]
pub struct Texts {
    pub calibration: Option<Calibration>,
    /// Texts to train on; `None`: passes that train use the calibration text.
    pub data: Option<Dataset>,
    /// How often words are used, where a pass asks for it.
    pub words: Option<Words>,
    /// Examples to judge the output by, and their file.
    pub eval: Option<(Prepared, ExamplesFile)>,
}

/// What a report says of the file that an output was judged by.
#[derive(Debug, Clone, PartialEq)]
pub struct ExamplesFile {
    /// Without its folder.
    pub name: String,
    pub sha256: String,
}

/// A finished run.
#[derive(Debug)]
pub struct Outcome {
    pub output: PathBuf,
    pub report: Report,
    pub measured: Measured,
}

/// Runs `recipe` on `teacher`, the model as it was read from `input`, and writes `folder`.
///
/// # Errors
/// What the passes, the evaluation and the writer refuse; nothing is left of the output then.
pub fn run(
    teacher: &Model,
    input: &Path,
    recipe: &Recipe,
    folder: OutputFolder,
    options: &Options,
) -> Result<Outcome> {
    let start = Instant::now();
    let side_files = side_files(&root(input), input)?;
    let foreseen =
        Foreseen::of(options.texts, options.tokenizer, &side_files, options.max_shard_bytes);
    let plan = Plan::new(&Model::outline(input)?, input, recipe, &foreseen)?;
    let applied = apply(teacher, recipe, &side_files, options)?;
    let planned = Some((recipe, plan));
    write(teacher, input, applied, planned, folder, (options, &side_files), start)
}

/// Fine-tunes `model`, which was read from `input` and may have got a new head, and writes `folder`.
///
/// # Errors
/// As [`run`].
pub fn finetune(
    model: &Model,
    input: &Path,
    finetune: &Finetune,
    folder: OutputFolder,
    options: &Options,
) -> Result<Outcome> {
    let start = Instant::now();
    finetune.check()?;
    let mut applied = Applied::of(model);
    let side_files = side_files(&root(input), input)?;
    let pass = Step { index: 0, name: "train", pass: finetune };
    // No recipe names this pass, so no message does.
    let plain = |e| match e {
        Error::InPass { source, .. } => *source,
        e => e,
    };
    one(model, &mut applied, pass, &side_files, options).map_err(plain)?;
    write(model, input, applied, None, folder, (options, &side_files), start)
}

/// Judges and writes what was made; without a recipe nothing was compressed.
fn write(
    teacher: &Model,
    input: &Path,
    applied: Applied,
    planned: Option<(&Recipe, Plan)>,
    mut folder: OutputFolder,
    (options, side_files): (&Options, &SideFiles),
    start: Instant,
) -> Result<Outcome> {
    let recipe = planned.as_ref().map(|(recipe, _)| *recipe);
    let (quality, latency) = judge(teacher, &applied, recipe.is_some(), options)?;
    let Applied { model, passes, times, tensors, cut } = applied;
    if (options.interrupted)() {
        return Err(Error::Interrupted);
    }

    let root = root(input);
    let metadata = metadata();
    let stored = model.compacted();
    let mut files = folder.write_tensors(
        &stored.tensors(),
        &metadata,
        options.max_shard_bytes,
        options.interrupted,
    )?;
    let written = files.iter().filter(|f| f.name.ends_with(".safetensors")).map(|f| f.bytes).sum();
    let recipe_json = recipe.map_or(Value::Null, Recipe::to_json);
    files.push(folder.add_file("config.json", &pretty(&stored.config_json(&recipe_json)))?);
    for (name, tensors) in &tensors {
        files.push(folder.add_tensors(name, tensors, &metadata, options.interrupted)?);
    }
    let sentences = model.config.task == Task::Embedding;
    let from = files.len();
    let rewritten = cut.as_ref().map_or(&[][..], |cut| &cut.vocabulary.files);
    for (from, name) in side_files {
        // The length and the pooling of sentence embeddings say nothing of another head.
        let stays = sentences || !(name.contains('/') || name.contains("sentence"));
        if stays && !rewritten.iter().any(|(new, _)| new == name) {
            files.push(folder.copy_file(from, name)?);
        }
    }
    for (name, content) in rewritten {
        if let Some(bytes) = content {
            files.push(folder.add_file(name, bytes)?);
        }
    }
    if sentences && root.join("modules.json").is_file() {
        files.push(folder.add_file("modules.json", &pretty(&flat_modules(&root)?))?);
    }
    let beside: Vec<String> = files[from..].iter().map(|f| f.name.clone()).collect();
    let mut emitted = Vec::new();
    if let Some(recipe) = recipe {
        let (shards, stop) = (options.max_shard_bytes, options.interrupted);
        let (notes, more) =
            crate::emit::write(&recipe.emit, &model, &beside, &mut folder, shards, stop)?;
        emitted = notes;
        files.extend(more);
    }
    if let Some((_, plan)) = &planned {
        let planned = plan.planned_targets(options.max_shard_bytes);
        emitted.iter_mut().for_each(|note| note.put_beside(&planned, options.max_shard_bytes));
    }
    let arguments: String = options.arguments.chars().filter(|c| !c.is_control()).collect();
    if let Some(recipe) = recipe {
        let text = format!("# compress --recipe recipe.toml {arguments}\n{}", recipe.to_toml());
        files.push(folder.add_file("recipe.toml", text.as_bytes())?);
    }

    let note = |c: &Calibration| CalibrationNote {
        source: c.source.clone(),
        texts: c.texts,
        tokens: c.tokens,
        labels: c.targets.is_some(),
    };
    let mut report = Report {
        schema: SCHEMA,
        version: env!("CARGO_PKG_VERSION"),
        base_model: name(input),
        seed: options.seed,
        recipe: recipe_json,
        arguments,
        inputs: options.inputs.to_vec(),
        calibration: options.texts.calibration.as_ref().map(note),
        data: options.texts.data.as_ref().map(|d| CalibrationNote {
            source: d.source.clone(),
            texts: d.texts.len(),
            tokens: d.tokens(),
            labels: d.targets.is_some(),
        }),
        before: Summary::of(teacher, weight_bytes(input)?),
        after: Summary::of(&model, written),
        plan: planned.map(|(_, plan)| plan.met(&passes, written, options.max_shard_bytes)),
        passes,
        quality,
        loads_natively: model.loads_natively(),
        loads_without_schedule: model.tensors_load_natively() && !model.loads_natively(),
        fingerprint: fingerprint(&model)?,
        emitted,
        files: Vec::new(),
    };
    let card = report::model_card(&report, license(&root).as_deref());
    files.push(folder.add_file("README.md", card.as_bytes())?);
    files.push(folder.add_file("report.md", report::markdown(&report).as_bytes())?);
    files.sort_by(|a, b| a.name.cmp(&b.name));
    report.files = files.into_iter().map(FileNote::from).collect();
    folder.add_file("report.json", &pretty(&to_json(&report)))?;

    let measured = Measured {
        threads: rayon::current_num_threads(),
        cpu_features: cpu_features(),
        wall_seconds: start.elapsed().as_secs_f64(),
        passes: times,
        peak_memory_bytes: peak_memory(),
        latency,
    };
    folder.add_file("measured.json", &pretty(&to_json(&measured)))?;
    (options.accept)(&report)?;
    let output = folder.commit(options.interrupted)?;
    Ok(Outcome { output, report, measured })
}

type Judged = (Option<Quality>, Option<[latency::Latency; 2]>);

/// Runs both models on the examples, or else on the calibration text that was held out; `compare`s their
/// answers, where the one is to answer as the other. Each sees every text in its own tokens.
fn judge(teacher: &Model, applied: &Applied, compare: bool, options: &Options) -> Result<Judged> {
    let model = &applied.model;
    let (before, after) = (Encoder::within_memory(teacher)?, Encoder::within_memory(model)?);
    let step = || options.progress.step();
    let old = options.texts;
    let new = applied.cut.as_ref().map_or(old, |cut| &cut.texts);
    let kept = applied.cut.as_ref().map(|cut| &cut.vocabulary.kept[..]);
    let flops = |old: &[Batch], new: &[Batch]| {
        let each = [(teacher, old), (model, new)];
        compare.then(|| each.map(|(model, batches)| 2 * macs_of(model, batches)))
    };
    let closeness = |old: &[Batch], new: &[Batch]| match compare {
        true => {
            let recut = kept.map(|kept| Recut::new(new, kept.iter().map(|&id| Some(id)).collect()));
            fidelity(&before, &after, old, recut.as_ref(), &Quiet)
        }
        false => Ok(Vec::new()),
    };
    options.progress.start("evaluating", 3);
    let quality = match (&old.eval, &new.eval, &old.calibration, &new.calibration) {
        (Some((old, file)), Some((new, _)), ..) => {
            let judged = |encoder: &Encoder, prepared: &Prepared| match &prepared.targets {
                Some(_) => {
                    let answers = answer(encoder, &prepared.batches, prepared.rows, &Quiet)?;
                    metrics(teacher, prepared, &answers)
                }
                None => Ok(Vec::new()),
            };
            let found = judged(&before, old)?;
            step()?;
            let left = judged(&after, new)?;
            step()?;
            Some(Quality {
                data: file.name.clone(),
                sha256: Some(file.sha256.clone()),
                examples: old.examples,
                tokens: old.tokens,
                flops: flops(&old.batches, &new.batches),
                columns: Some(old.columns.clone()),
                before: found,
                after: left,
                fidelity: closeness(&old.batches, &new.batches)?,
            })
        }
        (_, _, Some(old), Some(new)) if !old.held_out.is_empty() => {
            // Random tokens are drawn from the vocabulary that there is.
            let renamed = kept.filter(|_| old.is_random()).map(|kept| renamed(&new.held_out, kept));
            let held_out = renamed.as_deref().unwrap_or(&old.held_out);
            Some(Quality {
                data: format!("{}, held out", old.source),
                sha256: None,
                examples: held_out.iter().map(|b| b.texts()).sum(),
                tokens: held_out.iter().map(|b| b.tokens()).sum(),
                flops: flops(held_out, &new.held_out),
                columns: None,
                before: Vec::new(),
                after: Vec::new(),
                fidelity: closeness(held_out, &new.held_out)?,
            })
        }
        _ => None,
    };
    step()?;
    let mut timed = None;
    // Layers that are made ready while they are timed would tell nothing.
    if options.measure && !before.one_by_one && !after.one_by_one {
        let longest = latency::max_tokens(&teacher.config, teacher.family);
        options.progress.start("measuring latency", 1);
        let tokens = report::COMPUTE_TOKENS.min(longest);
        let measured = latency::measure(&[&before, &after], tokens, 9)?;
        timed = Some([measured[0], measured[1]]);
        step()?;
    } else if options.measure {
        options.progress.log("not timed: the layers are larger than what is kept ready in memory");
    }
    Ok((quality, timed))
}

/// `batches` in the ids that stand in `kept` at theirs.
fn renamed(batches: &[Batch], kept: &[u32]) -> Vec<Batch> {
    let mut batches = batches.to_vec();
    for id in batches.iter_mut().flat_map(|batch| &mut batch.ids) {
        *id = kept[*id as usize];
    }
    batches
}

/// Multiply-accumulates of all texts of `batches`, each at its own length.
pub fn macs_of(model: &Model, batches: &[Batch]) -> u64 {
    let lengths = batches.iter().flat_map(|b| b.starts.windows(2).map(|span| span[1] - span[0]));
    lengths.map(|tokens| cost::macs(model, 1, tokens)).sum()
}

/// The head's answer to a fixed text: at most 16 numbers, and as many of BERT's pooler output,
/// rounded to 6 digits.
///
/// # Errors
/// As [`Encoder::forward`].
pub fn fingerprint(model: &Model) -> Result<Vec<f32>> {
    let encoder = Encoder::within_memory(model)?;
    let tokens = 12.min(latency::max_tokens(&model.config, model.family));
    let output =
        encoder.forward(&latency::synthetic(&model.config, tokens), None, &mut NoObserver)?;
    // Through text, so that the report holds no digit that another CPU would compute differently by
    // rounding alone.
    let rounded = |x: &f32| format!("{x:.5e}").parse().unwrap_or(*x);
    let pooled = output.pooled.iter().flatten().take(16);
    Ok(output.values.iter().take(16).chain(pooled).map(rounded).collect())
}

fn pretty(value: &Value) -> Vec<u8> {
    format!("{value:#}\n").into_bytes()
}

fn to_json(value: &impl serde::Serialize) -> Value {
    serde_json::to_value(value).expect("reports are plain data")
}

/// What of this CPU the kernels may use, and last what `COMPRESS_SIMD` leaves of it, where that is set.
pub fn cpu_features() -> Vec<&'static str> {
    let mut found = Vec::new();
    #[cfg(target_arch = "x86_64")]
    {
        let mut add = |name, there: bool| {
            if there {
                found.push(name);
            }
        };
        add("avx2", std::arch::is_x86_feature_detected!("avx2"));
        add("fma", std::arch::is_x86_feature_detected!("fma"));
        add("avx512f", std::arch::is_x86_feature_detected!("avx512f"));
        add("avx512vnni", std::arch::is_x86_feature_detected!("avx512vnni"));
    }
    #[cfg(target_arch = "aarch64")]
    found.push("neon");
    let has = |level| Level::available().any(|found| found == level);
    for (name, level) in [("amx", Level::Amx), ("dotprod", Level::NeonDot)] {
        if has(level) {
            found.push(name);
        }
    }
    if std::env::var_os("COMPRESS_SIMD").is_some() {
        found.push(match Level::best() {
            Level::Scalar => "COMPRESS_SIMD=scalar",
            Level::Avx2 => "COMPRESS_SIMD=avx2",
            Level::Avx512 => "COMPRESS_SIMD=avx512",
            Level::Amx => "COMPRESS_SIMD=amx",
            Level::Neon => "COMPRESS_SIMD=neon",
            Level::NeonDot => "COMPRESS_SIMD=neon-dot",
        });
    }
    found
}

/// The most memory this process had at once, mapped files included.
pub fn peak_memory() -> Option<u64> {
    #[cfg(unix)]
    {
        // SAFETY: `usage` is a plain struct that getrusage fills.
        let usage = unsafe {
            let mut usage: libc::rusage = std::mem::zeroed();
            (libc::getrusage(libc::RUSAGE_SELF, &mut usage) == 0).then_some(usage)
        }?;
        let unit = if cfg!(target_os = "macos") { 1 } else { 1024 };
        Some(usage.ru_maxrss as u64 * unit)
    }
    #[cfg(not(unix))]
    None
}
