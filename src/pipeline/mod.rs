//! Runs a recipe: one pass after the other, checked, measured, written.

mod finetune;

pub use finetune::Finetune;

use crate::checkpoint::{self, OutputFolder, Tensor, metadata};
use crate::data::tokenizer::Tokenizer;
use crate::data::vocabulary::{Cuts, broken, by_row};
use crate::data::{Calibration, Dataset, Vocabulary, Words};
use crate::eval::latency;
use crate::eval::tasks::{Prepared, Recut, answer, fidelity, metrics};
use crate::model::cost::{self, Cost};
use crate::model::{Model, Task};
use crate::pass::{Context, Pass, Progress, Work};
use crate::recipe::Recipe;
use crate::report::{
    self, CalibrationNote, FileNote, Measured, PassNote, Quality, Report, SCHEMA, Summary,
};
use crate::runtime::{Batch, Encoder, NoObserver};
use crate::train::state::StateFile;
use crate::{Error, Result};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// What a run does besides its recipe.
pub struct Options<'a> {
    pub seed: u64,
    /// What else the output depends on, as it would be written on the command line.
    pub arguments: &'a str,
    pub texts: &'a Texts,
    /// The tokenizer of the model as it was read, where a pass needs it.
    pub tokenizer: Option<&'a Tokenizer>,
    /// Reads `texts` anew, for a model that has another vocabulary.
    pub read: &'a dyn Fn(&Model, &Tokenizer) -> Result<Texts>,
    /// The folder where passes that train keep their state, as the path of a file.
    pub state: Option<StateFile>,
    pub max_shard_bytes: u64,
    /// Latency is measured before and after; off where time is no concern.
    pub measure: bool,
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
    /// Examples to judge the output by, and their name.
    pub eval: Option<(Prepared, String)>,
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
    let applied = apply(teacher, recipe, &side_files, options)?;
    write(teacher, input, applied, Some(recipe), folder, (options, &side_files), start)
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
    recipe: Option<&Recipe>,
    mut folder: OutputFolder,
    (options, side_files): (&Options, &SideFiles),
    start: Instant,
) -> Result<Outcome> {
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
    let rewritten = cut.map_or_else(Vec::new, |cut| cut.vocabulary.files);
    for (from, name) in side_files {
        // The length and the pooling of sentence embeddings say nothing of another head.
        let stays = sentences || !(name.contains('/') || name.contains("sentence"));
        if stays && !rewritten.iter().any(|(new, _)| new == name) {
            files.push(folder.copy_file(from, name)?);
        }
    }
    for (name, content) in rewritten {
        if let Some(bytes) = content {
            files.push(folder.add_file(&name, &bytes)?);
        }
    }
    if sentences && root.join("modules.json").is_file() {
        files.push(folder.add_file("modules.json", &pretty(&flat_modules(&root)?))?);
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
        calibration: options.texts.calibration.as_ref().map(note),
        data: options.texts.data.as_ref().map(|d| CalibrationNote {
            source: d.source.clone(),
            texts: d.texts.len(),
            tokens: d.tokens(),
            labels: d.targets.is_some(),
        }),
        before: Summary::of(teacher, weight_bytes(input)?),
        after: Summary::of(&model, written),
        passes,
        quality,
        loads_natively: model.loads_natively(),
        loads_without_schedule: model.tensors_load_natively() && !model.loads_natively(),
        fingerprint: fingerprint(&model)?,
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
    let output = folder.commit(options.interrupted)?;
    Ok(Outcome { output, report, measured })
}

/// What the passes made.
struct Applied {
    model: Model,
    passes: Vec<PassNote>,
    times: Vec<(&'static str, f64)>,
    /// Further safetensors files, by name.
    tensors: Vec<(String, Vec<Tensor>)>,
    /// What a pass that cut the vocabulary left.
    cut: Option<Cut>,
}

/// A vocabulary that has lost words, and what speaks in its tokens: the model that is made has its ids from then on,
/// and so have its teacher and all texts. The model as it was read keeps its own.
struct Cut {
    vocabulary: Vocabulary,
    teacher: Model,
    texts: Texts,
}

impl Applied {
    /// Nothing done yet.
    fn of(model: &Model) -> Applied {
        Applied {
            model: model.clone(),
            passes: Vec::new(),
            times: Vec::new(),
            tensors: Vec::new(),
            cut: None,
        }
    }
}

/// Files beside the weights that the output gets too, each with its name there.
type SideFiles = [(PathBuf, String)];

/// The passes, one after the other.
fn apply(
    teacher: &Model,
    recipe: &Recipe,
    side_files: &SideFiles,
    options: &Options,
) -> Result<Applied> {
    let mut applied = Applied::of(teacher);
    for (index, step) in recipe.steps.iter().enumerate() {
        let pass = Step { index, name: step.name, pass: &*step.pass };
        one(teacher, &mut applied, pass, side_files, options)?;
    }
    Ok(applied)
}

/// A pass to be run.
struct Step<'a> {
    index: usize,
    name: &'static str,
    pass: &'a dyn Pass,
}

/// Runs one pass and checks the model after it.
fn one(
    teacher: &Model,
    applied: &mut Applied,
    step: Step,
    side_files: &SideFiles,
    options: &Options,
) -> Result<()> {
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
        seed: options.seed,
        progress: options.progress,
    };
    let in_pass = |e| match e {
        Error::Interrupted | Error::Option { .. } | Error::Usage { .. } => e,
        e => Error::InPass { pass: step.name, source: Box::new(e) },
    };
    let work = step.pass.run(model, &cx).and_then(|work| check(model).map(|()| work));
    let mut work = work.map_err(in_pass)?;
    let after = Cost::of(model).total;
    if let Some(vocabulary) = work.vocabulary.take() {
        assert!(applied.cut.is_none(), "the vocabulary is cut once");
        let cut = recut(teacher, vocabulary, &mut work, options).map_err(in_pass)?;
        applied.cut = Some(cut);
    }
    applied.passes.push(PassNote {
        name: step.name,
        params_before: before.params,
        params_after: after.params,
        bytes_before: before.bytes,
        bytes_after: after.bytes,
        changes: work.changes,
        training: work.training,
        notes: work.notes,
        figures: work.figures,
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
fn recut(
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
    if let (Some((before, name)), Some((after, _))) = (&before.eval, &after.eval) {
        let cuts = compare(name, paired(&before.batches, &after.batches))?;
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

type Judged = (Option<Quality>, Option<[latency::Latency; 2]>);

/// Runs both models on the examples, or else on the calibration text that was held out; `compare`s their
/// answers, where the one is to answer as the other. Each sees every text in its own tokens.
fn judge(teacher: &Model, applied: &Applied, compare: bool, options: &Options) -> Result<Judged> {
    let model = &applied.model;
    let (before, after) = (Encoder::packed(teacher)?, Encoder::packed(model)?);
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
            fidelity(&before, &after, old, recut.as_ref())
        }
        false => Ok(Vec::new()),
    };
    options.progress.start("evaluating", 3);
    let quality = match (&old.eval, &new.eval, &old.calibration, &new.calibration) {
        (Some((old, name)), Some((new, _)), ..) => {
            let judged = |encoder: &Encoder, prepared: &Prepared| match &prepared.targets {
                Some(_) => {
                    let answers = answer(encoder, &prepared.batches, prepared.rows)?;
                    metrics(teacher, prepared, &answers)
                }
                None => Ok(Vec::new()),
            };
            let found = judged(&before, old)?;
            step()?;
            let left = judged(&after, new)?;
            step()?;
            Some(Quality {
                data: name.to_string(),
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
    if options.measure {
        let longest = latency::max_tokens(&teacher.config, teacher.family);
        options.progress.start("measuring latency", 1);
        let tokens = report::COMPUTE_TOKENS.min(longest);
        let measured = latency::measure(&[&before, &after], tokens, 9)?;
        timed = Some([measured[0], measured[1]]);
        step()?;
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
    let encoder = Encoder::packed(model)?;
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

/// The folder of a checkpoint given as folder or file.
pub fn root(input: &Path) -> PathBuf {
    match input.is_dir() {
        true => input.to_path_buf(),
        false => input
            .parent()
            .filter(|p| !p.as_os_str().is_empty())
            .unwrap_or(Path::new("."))
            .to_path_buf(),
    }
}

/// The name of the input's folder; of a folder of the Hugging Face cache, the repository's.
fn name(input: &Path) -> String {
    let folder = root(input);
    let folder = match folder.file_name() {
        Some(_) => folder,
        None => std::fs::canonicalize(&folder).unwrap_or(folder), // `.` and `..`
    };
    let repository = folder.ancestors().nth(2).and_then(|p| p.file_name()?.to_str());
    let snapshot = folder.parent().is_some_and(|p| p.ends_with("snapshots"));
    match repository.and_then(|r| r.strip_prefix("models--")).filter(|_| snapshot) {
        Some(repository) => repository.replace("--", "/"),
        None => folder.file_name().map_or("model".into(), |n| n.to_string_lossy().into_owned()),
    }
}

/// Bytes of the weight files of a checkpoint.
///
/// # Errors
/// As [`checkpoint::Checkpoint::open`].
pub fn weight_bytes(input: &Path) -> Result<u64> {
    let checkpoint = checkpoint::Checkpoint::open(input)?;
    let sizes = checkpoint.files.iter().map(|path| {
        let read = |source| Error::Read { path: path.clone(), source };
        Ok(std::fs::metadata(path).map_err(read)?.len())
    });
    sizes.sum()
}

/// Files that belong to a tokenizer or to the model's papers, by name; weights in other formats, code
/// and what we write ourselves stay behind.
const SIDE_FILES: &[&str] = &[
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "sentencepiece.bpe.model",
    "spiece.model",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
];

fn side_files(root: &Path, input: &Path) -> Result<Vec<(PathBuf, String)>> {
    let transformer = checkpoint::Checkpoint::open(input)?.transformer_dir;
    let mut found = BTreeMap::new();
    for folder in [root, &transformer] {
        for name in SIDE_FILES {
            let path = folder.join(name);
            if path.is_file() {
                found.insert(name.to_string(), path);
            }
        }
        let read = |source| Error::Read { path: folder.to_path_buf(), source };
        for entry in std::fs::read_dir(folder).map_err(read)? {
            let path = entry.map_err(read)?.path();
            let name =
                path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            let papers =
                ["LICENSE", "LICENCE", "NOTICE"].iter().any(|p| name.to_uppercase().starts_with(p));
            if papers && path.is_file() {
                found.insert(name, path);
            }
        }
    }
    for (_, path) in modules(root)? {
        let config = root.join(&path).join("config.json");
        if !path.is_empty() && root.join(&path) != transformer && config.is_file() {
            found.insert(format!("{path}/config.json"), config);
        }
    }
    Ok(found.into_iter().map(|(name, path)| (path, name)).collect())
}

/// Type and folder of every module of a sentence-transformers model.
fn modules(root: &Path) -> Result<Vec<(String, String)>> {
    let path = root.join("modules.json");
    if !path.is_file() {
        return Ok(Vec::new());
    }
    let list = checkpoint::read_json(&path)?;
    let text = |v: &Value| v.as_str().unwrap_or_default().to_string();
    Ok(list
        .as_array()
        .into_iter()
        .flatten()
        .map(|m| (text(&m["type"]), text(&m["path"])))
        .collect())
}

/// modules.json of the output, where the transformer lies in the folder itself.
fn flat_modules(root: &Path) -> Result<Value> {
    let mut list = checkpoint::read_json(&root.join("modules.json"))?;
    for module in list.as_array_mut().into_iter().flatten() {
        if module["type"].as_str().and_then(|t| t.rsplit('.').next()) == Some("Transformer") {
            module["path"] = json!("");
        }
    }
    Ok(list)
}

/// The licence that the input's model card states, in its front matter.
fn license(root: &Path) -> Option<String> {
    let card = std::fs::read_to_string(root.join("README.md")).ok()?;
    let front = card.strip_prefix("---\n")?.split("\n---").next()?;
    let value = front.lines().find_map(|l| l.strip_prefix("license:"))?.trim();
    let plain = value.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c));
    (plain && !value.is_empty()).then(|| value.to_string())
}

/// What of this CPU the kernels may use.
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
