//! `compress train MODEL --data FILE -o OUT`

use super::run::{hashes, key, state_file, with_state};
use super::{
    ColumnArgs, ResumeArgs, ThreadArgs, keep_freed_buffers, max_tokens, needed_tokenizer, print,
    print_json, progress, shell,
};
use clap::{Args, ValueEnum};
use compress::checkpoint::OutputFolder;
use compress::data::Dataset;
use compress::data::labels::targets;
use compress::data::tables::{Annotation, Example, read_examples};
use compress::eval::tasks::Prepared;
use compress::model::{Model, Task};
use compress::pipeline::{self, Finetune, Options, Texts};
use compress::recipe::fits;
use compress::report;
use compress::train::fit::{Keep, Settings};
use compress::train::schedule::Schedule;
use compress::{Error, Result};
use serde_json::json;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

#[derive(Debug, Args)]
pub struct TrainArgs {
    /// The checkpoint: a Hugging Face folder, or a .safetensors file with config.json beside it
    model: PathBuf,

    /// The folder to write; must be new or empty
    #[arg(short, long, value_name = "OUT")]
    output: PathBuf,

    /// Texts to train on, with labels (.tsv, .csv, .jsonl); for masked LM texts alone
    #[arg(long, value_name = "FILE")]
    data: PathBuf,

    /// The most texts to take of --data; more are drawn by --seed [default: all]
    #[arg(long, value_name = "N")]
    data_texts: Option<usize>,

    /// Examples to judge the output by, before and after
    #[arg(long, value_name = "FILE")]
    eval: Option<PathBuf>,

    /// What to train for [default: what the checkpoint's head is for; without a head, or where it is for
    /// masked LM and every text has a label, what the labels are for]
    #[arg(long, value_enum)]
    task: Option<TaskArg>,

    /// Put a fresh head in the place of the checkpoint's own
    #[arg(long)]
    new_head: bool,

    /// Updates of the weights [default: as many as --epochs makes]
    #[arg(long, value_name = "N", conflicts_with = "epochs")]
    steps: Option<usize>,

    /// Times that every text is seen
    #[arg(long, value_name = "N", default_value_t = 3.0)]
    epochs: f64,

    /// Texts of a batch
    #[arg(long, value_name = "N", default_value_t = 32)]
    batch: usize,

    /// Batches whose mean gradient makes one update
    #[arg(long, value_name = "N", default_value_t = 1)]
    accumulate: usize,

    /// Learning rate at its height
    #[arg(long, value_name = "RATE", default_value_t = 5e-5)]
    rate: f32,

    /// What the rate does after its warm-up
    #[arg(long, value_enum, default_value = "linear")]
    schedule: ScheduleArg,

    /// Share of the updates in which the rate climbs
    #[arg(long, value_name = "SHARE", default_value_t = 0.1)]
    warmup: f64,

    /// Decoupled weight decay of matrices and tables
    #[arg(long, value_name = "DECAY", default_value_t = 0.01)]
    decay: f32,

    /// Longer gradients are shortened to this; 0 for never
    #[arg(long, value_name = "NORM", default_value_t = 1.0)]
    clip: f32,

    /// Rate of dropout [default: what config.json says, else 0.1]
    #[arg(long, value_name = "RATE")]
    dropout: Option<f32>,

    /// Leave the embeddings as they are
    #[arg(long)]
    freeze_embeddings: bool,

    /// Sort the texts of N batches by length among each other, so that a batch holds texts of a length;
    /// 0 for not at all
    #[arg(long, value_name = "N", default_value_t = 0)]
    bucket: usize,

    /// Hold out one text in sixteen (500 at most), judge by them every N updates, and keep the best weights;
    /// 0 for training on all texts and keeping the last weights
    #[arg(long, value_name = "N", default_value_t = 0)]
    evaluate: usize,

    /// Stop after N judgements without gain; 0 for never
    #[arg(long, value_name = "N", default_value_t = 0, requires = "evaluate")]
    patience: usize,

    /// A file with the examples of each batch, one batch a line, as numbers from 0: to repeat a run of another
    /// program
    #[arg(long, value_name = "FILE", conflicts_with_all = ["batch", "bucket", "evaluate", "data_texts"])]
    order: Option<PathBuf>,

    // They hold for the files of --data and --eval.
    #[command(flatten)]
    columns: ColumnArgs,

    /// Tokens of a text that are read [default: what a sentence-transformers model says, else what the
    /// tokenizer says but at most 128, or 384 for question answering]
    #[arg(long, value_name = "TOKENS")]
    max_length: Option<usize>,

    /// All randomness derives from it
    #[arg(long, default_value_t = 0)]
    seed: u64,

    #[command(flatten)]
    threads: ThreadArgs,

    #[command(flatten)]
    resume: ResumeArgs,

    /// Replace an output folder that has content
    #[arg(long)]
    force: bool,

    /// Print the report as JSON instead of a table
    #[arg(long)]
    json: bool,

    /// No progress on stderr
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum TaskArg {
    /// Classes of texts or pairs
    Classification,
    /// A number for a text or a pair
    Regression,
    /// Classes of words
    Tokens,
    /// Answers in a context
    Questions,
    /// Hidden words
    MaskedLm,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ScheduleArg {
    Linear,
    Cosine,
    Constant,
}

pub fn main(args: &TrainArgs) -> Result<()> {
    args.threads.apply()?;
    check(args)?;
    keep_freed_buffers();
    let read = Model::open(&args.model)?;
    fits("train", Some(Finetune::DOES), &read)?;
    let tokenizer = needed_tokenizer(&args.model)?;
    let table = read_examples(&args.data, &args.columns.columns())?;
    let model = headed(args, &read, &table.examples)?;
    let folder = OutputFolder::create(&args.output, &args.model, args.force)?;
    let tokens = max_tokens(&model, Some(&tokenizer), &args.model, args.max_length)?;
    let limit = args.data_texts.unwrap_or(usize::MAX);
    let (config, seed) = (&model.config, args.seed);
    let columns = args.columns.columns();
    let data = Dataset::read(&args.data, &columns, &tokenizer, config, limit, tokens, seed)?;
    if data.targets.is_none() && config.task != Task::MaskedLm {
        return Err(Error::Mismatch {
            found: format!("{} has no labels for {}", args.data.display(), config.task.name()),
            expected: "training on a task needs them".into(),
            advice: "name the column with --label-column, or give another --task",
        });
    }
    let eval = match &args.eval {
        None => None,
        Some(path) => {
            let table = read_examples(path, &columns)?;
            let prepared = Prepared::new(&table, &model, &tokenizer, tokens, true, path)?;
            Some((prepared, super::examples_file(path)?))
        }
    };
    let raw = |key: &str| config.raw[key].as_f64().filter(|r| (0.0..1.0).contains(r));
    let stated = raw("hidden_dropout_prob").or(raw("dropout")).unwrap_or(0.1);
    let dropout = args.dropout.unwrap_or(stated as f32);
    let finetune = Finetune {
        settings: Settings {
            steps: args.steps.unwrap_or(0),
            accumulate: args.accumulate,
            rate: args.rate,
            warmup: 0,
            schedule: match args.schedule {
                ScheduleArg::Linear => Schedule::Linear,
                ScheduleArg::Cosine => Schedule::Cosine,
                ScheduleArg::Constant => Schedule::Constant,
            },
            decay: args.decay,
            clip: args.clip,
            dropout,
            evaluate: args.evaluate,
            keep: Keep::Best,
            patience: args.patience,
            seed,
        },
        epochs: args.epochs,
        warmup_share: args.warmup,
        batch: args.batch,
        bucket: args.bucket,
        order: args.order.as_deref().map(|p| read_order(p, data.texts.len())).transpose()?,
        freeze_embeddings: args.freeze_embeddings,
    };
    let arguments = arguments(args, dropout);
    let files = [Some(args.data.clone()), args.order.clone()].into_iter().flatten();
    let inputs = hashes(&args.model, files)?;
    let state = match args.resume.resume {
        true => {
            let key = key(&arguments, &inputs);
            Some(state_file(key, &args.output, args.resume.save_every)?)
        }
        false => None,
    };
    let bar = progress::Bar::new(args.quiet);
    let texts = Texts { calibration: None, data: Some(data), words: None, eval };
    let options = Options {
        seed,
        arguments: &arguments,
        inputs: &inputs,
        texts: &texts,
        tokenizer: None,
        read: &|_, _| unreachable!("training cuts no vocabulary"),
        state,
        cache: None,
        spill: None,
        max_shard_bytes: 5_000_000_000,
        measure: false,
        accept: &|_| Ok(()),
        progress: &bar,
        interrupted: &progress::interrupted,
    };
    let done = with_state(&options, &bar, || {
        pipeline::finetune(&model, &args.model, &finetune, folder, &options)
    })?;
    if args.json {
        return print_json(&json!({
            "output": done.output, "report": done.report, "measured": done.measured,
        }));
    }
    print(&report::before_after(&done.report, &done.measured))?;
    print(&format!(
        "\nwrote {} in {:.1} s; report.md in it has the details\n",
        args.output.display(),
        done.measured.wall_seconds
    ))
}

fn check(args: &TrainArgs) -> Result<()> {
    let counts = [
        ("batch", args.batch, 65536),
        ("accumulate", args.accumulate, 65536),
        ("data-texts", args.data_texts.unwrap_or(1), usize::MAX),
        ("steps", args.steps.unwrap_or(1), 100_000_000),
    ];
    for (name, value, most) in counts {
        if value == 0 || value > most {
            let advice = if value == 0 { "at least 1".into() } else { format!("at most {most}") };
            return Err(Error::Usage {
                found: format!("--{name} is {value}"),
                advice: format!("give {advice}"),
            });
        }
    }
    let numbers = [
        ("epochs", args.epochs, 1e-6..=1e6, "a number above 0"),
        ("rate", args.rate as f64, 1e-12..=1.0, "a number in (0, 1]"),
        ("warmup", args.warmup, 0.0..=1.0, "a number in [0, 1]"),
        ("decay", args.decay as f64, 0.0..=1e3, "a number from 0 on"),
        ("clip", args.clip as f64, 0.0..=1e6, "a number from 0 on"),
        ("dropout", args.dropout.unwrap_or(0.0) as f64, 0.0..=0.99, "a number in [0, 1)"),
    ];
    for (name, value, range, expected) in numbers {
        if !range.contains(&value) {
            return Err(Error::Usage {
                found: format!("--{name} is {value}"),
                advice: format!("give {expected}"),
            });
        }
    }
    Ok(())
}

/// The model with the head that is to be trained.
fn headed(args: &TrainArgs, read: &Model, examples: &[Example]) -> Result<Model> {
    let own = match read.config.task {
        Task::SequenceClassification if read.config.regression => Some(TaskArg::Regression),
        Task::SequenceClassification => Some(TaskArg::Classification),
        Task::TokenClassification => Some(TaskArg::Tokens),
        Task::QuestionAnswering => Some(TaskArg::Questions),
        Task::MaskedLm => Some(TaskArg::MaskedLm),
        Task::Embedding | Task::Bare => None,
    };
    let by_labels = match examples.first() {
        Some(Example { annotation: Some(Annotation::Tags(_)), .. }) => TaskArg::Tokens,
        Some(Example { annotation: Some(Annotation::Spans(_)), .. }) => TaskArg::Questions,
        _ if looks_like_scores(examples) => TaskArg::Regression,
        _ => TaskArg::Classification,
    };
    // A checkpoint that was pretrained has a masked-LM head; labels say that it is to learn a task.
    let labelled = examples.iter().all(|e| e.label.is_some() || e.annotation.is_some());
    let pretrained = own == Some(TaskArg::MaskedLm) && labelled;
    let task = match (args.task, own) {
        (Some(task), _) => task,
        (None, Some(own)) if !pretrained && !args.new_head => own,
        _ => by_labels,
    };
    if own == Some(task) && !args.new_head {
        let classes = task == TaskArg::Classification && labelled;
        let names = read.config.label_names();
        if classes && let Err(e) = targets(examples, &names, false, &args.data) {
            return Err(match e {
                Error::Mismatch { found, expected, .. } => {
                    let advice = "write the model's names or class ids into the file, or give \
                                  --new-head for a head that knows these labels";
                    Error::Mismatch { found, expected, advice }
                }
                e => e,
            });
        }
        return Ok(read.clone());
    }
    match task {
        TaskArg::Classification => {
            let labels = class_names(examples, &args.data)?;
            read.with_head(Task::SequenceClassification, &labels, args.seed)
        }
        TaskArg::Regression => {
            read.with_head(Task::SequenceClassification, &["score".into()], args.seed)
        }
        TaskArg::Tokens => {
            let tags = examples.iter().flat_map(|e| match &e.annotation {
                Some(Annotation::Tags(tags)) => tags.clone(),
                _ => Vec::new(),
            });
            read.with_head(Task::TokenClassification, &names(tags.collect()), args.seed)
        }
        TaskArg::Questions => read.with_head(Task::QuestionAnswering, &[], args.seed),
        TaskArg::MaskedLm => read.with_head(Task::MaskedLm, &[], args.seed),
    }
}

/// Numbers, one of them at least with a fraction.
fn looks_like_scores(examples: &[Example]) -> bool {
    let labels: BTreeSet<&str> = examples.iter().filter_map(|e| e.label.as_deref()).collect();
    let numbers: Vec<f64> = labels.iter().filter_map(|l| l.parse().ok()).collect();
    !labels.is_empty() && numbers.len() == labels.len() && numbers.iter().any(|n| n.fract() != 0.0)
}

/// The classes that labels name.
fn class_names(examples: &[Example], path: &Path) -> Result<Vec<String>> {
    let labels: BTreeSet<String> = examples.iter().filter_map(|e| e.label.clone()).collect();
    if labels.is_empty() {
        return Err(Error::Mismatch {
            found: format!("{} has no labels", path.display()),
            expected: "training on a task needs them".into(),
            advice: "name the column with --label-column",
        });
    }
    const MOST: usize = 1000;
    if labels.len() < 2 || labels.len() > MOST {
        return Err(Error::Mismatch {
            found: format!("{} has {} different labels", path.display(), labels.len()),
            expected: format!("a classification has 2 to {MOST}"),
            advice: "name the column with --label-column, or train with --task regression",
        });
    }
    Ok(names(labels))
}

/// In the order of their ids: numbers from 0 on are ids already, and get Transformers' names for classes
/// without one.
fn names(labels: BTreeSet<String>) -> Vec<String> {
    let ids: Option<BTreeSet<usize>> = labels.iter().map(|l| l.parse().ok()).collect();
    match ids {
        Some(ids) if ids.iter().copied().eq(0..ids.len()) => {
            ids.iter().map(|i| format!("LABEL_{i}")).collect()
        }
        _ => labels.into_iter().collect(),
    }
}

/// Lines of numbers below `texts`.
fn read_order(path: &Path, texts: usize) -> Result<Vec<Vec<usize>>> {
    let read = |source| Error::Read { path: path.into(), source };
    let text = std::fs::read_to_string(path).map_err(read)?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let batches: Vec<Vec<usize>> = lines
        .map(|(i, line)| {
            let number = |word: &str| {
                word.parse().ok().filter(|&row: &usize| row < texts).ok_or_else(|| {
                    Error::Malformed {
                        path: path.into(),
                        found: format!("`{}` in line {}", word.escape_debug(), i + 1),
                        expected: format!("numbers of examples, 0 to {}", texts - 1),
                        advice: "write one batch a line, numbers with spaces between",
                    }
                })
            };
            line.split_whitespace().map(number).collect()
        })
        .collect::<Result<_>>()?;
    match batches.is_empty() {
        true => Err(Error::Malformed {
            path: path.into(),
            found: "no line".into(),
            expected: "one batch a line".into(),
            advice: "leave --order out to draw an order",
        }),
        false => Ok(batches),
    }
}

/// What the outcome depends on besides the files, as it would be written on the command line.
fn arguments(args: &TrainArgs, dropout: f32) -> String {
    let mut text = format!("train --data {}", shell(&args.data.to_string_lossy()));
    let mut add = |name: &str, value: String| text += &format!(" --{name} {}", shell(&value));
    match args.steps {
        Some(steps) => add("steps", steps.to_string()),
        None => add("epochs", args.epochs.to_string()),
    }
    add("batch", args.batch.to_string());
    add("accumulate", args.accumulate.to_string());
    add("rate", args.rate.to_string());
    add("schedule", format!("{:?}", args.schedule).to_lowercase());
    add("warmup", args.warmup.to_string());
    add("decay", args.decay.to_string());
    add("clip", args.clip.to_string());
    add("dropout", dropout.to_string());
    add("bucket", args.bucket.to_string());
    add("evaluate", args.evaluate.to_string());
    add("patience", args.patience.to_string());
    add("seed", args.seed.to_string());
    let given = [
        ("task", args.task.and_then(|t| Some(t.to_possible_value()?.get_name().to_string()))),
        ("data-texts", args.data_texts.map(|n| n.to_string())),
        ("max-length", args.max_length.map(|n| n.to_string())),
        ("order", args.order.as_ref().map(|p| p.display().to_string())),
        ("text-column", args.columns.text_column.clone()),
        ("pair-column", args.columns.pair_column.clone()),
        ("label-column", args.columns.label_column.clone()),
    ];
    for (name, value) in given {
        if let Some(value) = value {
            add(name, value);
        }
    }
    for (name, given) in
        [("new-head", args.new_head), ("freeze-embeddings", args.freeze_embeddings)]
    {
        if given {
            text += &format!(" --{name}");
        }
    }
    text
}
