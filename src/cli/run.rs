//! `compress --passes … MODEL -o OUT`

use super::{
    ColumnArgs, ResumeArgs, ThreadArgs, file_name, keep_freed_buffers, max_tokens, needed, print,
    print_json, progress, shell, tokenizer,
};
use clap::Args;
use compress::checkpoint::{Checkpoint, OutputFolder, sha256};
use compress::data::prepare::is_labelled;
use compress::data::tables::{Columns, read_examples};
use compress::data::tokenizer::Tokenizer;
use compress::data::{Calibration, Dataset, Source, Words};
use compress::eval::tasks::Prepared;
use compress::model::{Model, Task};
use compress::pipeline::{self, Options, Texts};
use compress::recipe::Recipe;
use compress::report;
use compress::train::state::StateFile;
use compress::{Error, Result};
use serde_json::json;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

#[derive(Debug, Args)]
pub struct RunArgs {
    /// Passes in the order they run, with options: 'prune(sparsity=0.5),binarize(planes=2)'
    #[arg(long, value_name = "PASSES", required_unless_present = "recipe")]
    passes: Option<String>,

    /// A TOML file with the passes instead
    #[arg(long, value_name = "FILE", conflicts_with = "passes")]
    recipe: Option<PathBuf>,

    /// Override one option, as `prune.sparsity=0.6`; may be given again
    #[arg(long, value_name = "PASS.OPTION=VALUE")]
    set: Vec<String>,

    /// The checkpoint: a Hugging Face folder, or a .safetensors file with config.json beside it
    #[arg(required = true)]
    model: Option<PathBuf>,

    /// The folder to write; must be new or empty
    #[arg(short, long, value_name = "OUT", required = true)]
    output: Option<PathBuf>,

    /// What the passes watch the model on: a text (.txt, .tsv, .csv, .jsonl), `builtin` text, `random`
    /// tokens, or `none` [default: the text of --data, else builtin]. Without a tokenizer, `builtin` means
    /// `random`
    #[arg(long, value_name = "FILE")]
    calib: Option<String>,

    /// The most texts to take of it; more are drawn by --seed
    #[arg(long, value_name = "N", default_value_t = 512)]
    calib_texts: usize,

    /// Texts to train on, with labels where there are any; passes that train use the text of --calib without
    /// it, and passes that only watch take theirs from here without --calib
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,

    /// The most texts to take of --data; more are drawn by --seed [default: all]
    #[arg(long, value_name = "N", requires = "data")]
    data_texts: Option<usize>,

    /// Examples to judge the output by, before and after
    #[arg(long, value_name = "FILE")]
    eval: Option<PathBuf>,

    // They hold for the files of --calib, --data and --eval.
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

    /// Weight files larger than this are split, in MB
    #[arg(long, value_name = "MB", default_value_t = 5000)]
    max_shard_size: u64,

    /// Print the report as JSON instead of a table
    #[arg(long)]
    json: bool,

    /// No progress on stderr
    #[arg(short, long)]
    quiet: bool,
}

pub fn main(args: &RunArgs) -> Result<()> {
    let input = args.model.as_deref().expect("clap requires it");
    let output = args.output.as_deref().expect("clap requires it");
    args.threads.apply()?;
    let recipe = match &args.recipe {
        Some(path) => {
            let read = |source| Error::Read { path: path.clone(), source };
            let text = String::from_utf8(std::fs::read(path).map_err(read)?).map_err(|_| {
                let found = format!("{} that is not UTF-8", path.display());
                Error::Recipe { found, expected: "TOML".into() }
            })?;
            Recipe::from_toml(&text, &args.set)?
        }
        None => Recipe::parse(args.passes.as_deref().unwrap_or_default(), &args.set)?,
    };
    if recipe.steps.iter().any(|s| s.pass.trains(args.data.is_some())) {
        keep_freed_buffers();
    }
    let model = Model::open(input)?;
    let folder = OutputFolder::create(output, input, args.force)?;
    let calib = match (&args.calib, &args.data) {
        (Some(text), _) => text.clone(),
        (None, Some(data)) => data.to_string_lossy().into_owned(),
        (None, None) => "builtin".into(),
    };
    let counted = recipe.steps.iter().any(|s| s.pass.counts_words());
    let needed = counted || recipe.steps.iter().any(|s| s.pass.needs_tokenizer());
    let read_by_one = calib != "none" || args.data.is_some() || args.eval.is_some();
    let tokenizer = if needed || read_by_one { tokenizer(input)? } else { None };
    let texts = texts(args, &calib, &model, tokenizer.as_ref(), input, counted)?;
    let bar = progress::Bar::new(args.quiet);
    let mut arguments = format!(
        "--calib {} --calib-texts {} --seed {}",
        shell(&calib),
        args.calib_texts,
        args.seed
    );
    if let Some(data) = &args.data {
        arguments += &format!(" --data {}", shell(&data.to_string_lossy()));
    }
    if let Some(texts) = args.data_texts {
        arguments += &format!(" --data-texts {texts}");
    }
    let columns = [
        ("text", &args.columns.text_column),
        ("pair", &args.columns.pair_column),
        ("label", &args.columns.label_column),
    ];
    for (role, column) in columns.iter().filter_map(|(r, c)| c.as_ref().map(|c| (r, c))) {
        arguments += &format!(" --{role}-column {}", shell(column));
    }
    if let Some(length) = args.max_length {
        arguments += &format!(" --max-length {length}");
    }
    let state = match args.resume.resume {
        true => {
            let files = [args.data.clone(), Some(PathBuf::from(&calib)).filter(|p| p.is_file())];
            let arguments = format!("{} {arguments}", recipe.to_toml());
            let of_passes = recipe.steps.iter().flat_map(|s| s.pass.reads());
            let files = files.into_iter().flatten().chain(of_passes);
            Some(state_file(&arguments, input, output, files, args.resume.save_every)?)
        }
        false => None,
    };
    let options = Options {
        seed: args.seed,
        arguments: &arguments,
        texts: &texts,
        tokenizer: tokenizer.as_ref(),
        read: &|model, tokenizer| self::texts(args, &calib, model, Some(tokenizer), input, counted),
        state,
        max_shard_bytes: args.max_shard_size.max(1).saturating_mul(1_000_000),
        measure: true,
        progress: &bar,
        interrupted: &progress::interrupted,
    };
    let done =
        with_state(&options, &bar, || pipeline::run(&model, input, &recipe, folder, &options))?;
    if args.json {
        return print_json(&json!({
            "output": done.output, "report": done.report, "measured": done.measured,
        }));
    }
    let text = match &done.report.calibration {
        Some(c) => format!("{} ({} texts, {} tokens)", c.source, c.texts, c.tokens),
        None => "none: weights alone".into(),
    };
    print(&report::before_after(&done.report, &done.measured))?;
    print(&format!(
        "\ncalibration text: {text}\nwrote {} in {:.1} s; report.md in it has the details\n",
        output.display(),
        done.measured.wall_seconds
    ))
}

/// All texts of the run, in the tokens of `tokenizer`.
fn texts(
    args: &RunArgs,
    calib: &str,
    model: &Model,
    tokenizer: Option<&Tokenizer>,
    input: &Path,
    counted: bool,
) -> Result<Texts> {
    let data = data(args, model, tokenizer, input)?;
    let calibration = calibration(args, calib, model, tokenizer, input)?;
    let data = match (data, &calibration) {
        // Without --eval, the report judges by what calibration holds out; with it, the output must be the same.
        (Some(data), Some(text)) => Some(data.without_held_out(text)),
        (data, _) => data,
    };
    let eval = match &args.eval {
        None => None,
        Some(path) => {
            let tokenizer = needed(tokenizer, input)?;
            let tokens = max_tokens(model, Some(tokenizer), input, args.max_length)?;
            let table = read_examples(path, &args.columns.columns())?;
            // Heads that answer token by token can be judged by agreement alone.
            let task = model.config.task;
            let labelled = !matches!(task, Task::TokenClassification | Task::QuestionAnswering)
                || table.examples.iter().any(|e| is_labelled(e, task));
            let prepared = Prepared::new(&table, model, tokenizer, tokens, labelled, path)?;
            Some((prepared, file_name(path)))
        }
    };
    let words = match counted {
        true => {
            let source = source(args, calib, tokenizer.is_some());
            let tokens = max_tokens(model, tokenizer, input, args.max_length)?;
            let (text, data) = (calibration.as_ref(), data.as_ref());
            Some(Words::read(source.as_ref(), text, data, tokenizer, &model.config, tokens)?)
        }
        false => None,
    };
    Ok(Texts { calibration, data, words, eval })
}

fn calibration(
    args: &RunArgs,
    calib: &str,
    model: &Model,
    tokenizer: Option<&Tokenizer>,
    input: &Path,
) -> Result<Option<Calibration>> {
    let Some(source) = source(args, calib, tokenizer.is_some()) else { return Ok(None) };
    if let Source::File { .. } = &source {
        needed(tokenizer, input)?;
    }
    if args.calib_texts == 0 {
        return Err(Error::Usage {
            found: "--calib-texts is 0".into(),
            advice: "give at least 1, or --calib none".into(),
        });
    }
    let tokens = max_tokens(model, tokenizer, input, args.max_length)?;
    let config = &model.config;
    Calibration::read(&source, tokenizer, config, args.calib_texts, tokens, args.seed).map(Some)
}

/// What --calib names; `None`: nothing.
fn source(args: &RunArgs, calib: &str, tokenizer: bool) -> Option<Source> {
    Some(match calib {
        "none" => return None,
        "random" => Source::Random,
        "builtin" if tokenizer => Source::Builtin,
        // A checkpoint without a tokenizer can still be watched; the report says on what.
        "builtin" => Source::Random,
        path => {
            let columns = match Path::new(path).extension().is_some_and(|e| e == "txt") {
                true => Columns::default(), // plain text beside a table for --eval
                false => args.columns.columns(),
            };
            Source::File { path: path.into(), columns }
        }
    })
}

/// The texts of --data.
fn data(
    args: &RunArgs,
    model: &Model,
    tokenizer: Option<&Tokenizer>,
    input: &Path,
) -> Result<Option<Dataset>> {
    let Some(path) = &args.data else { return Ok(None) };
    if args.data_texts == Some(0) {
        return Err(Error::Usage {
            found: "--data-texts is 0".into(),
            advice: "give at least 1, or leave --data out".into(),
        });
    }
    let tokenizer = needed(tokenizer, input)?;
    let tokens = max_tokens(model, Some(tokenizer), input, args.max_length)?;
    let limit = args.data_texts.unwrap_or(usize::MAX);
    let columns = args.columns.columns();
    Dataset::read(path, &columns, tokenizer, &model.config, limit, tokens, args.seed).map(Some)
}

/// Where training keeps its state: a folder beside the output, with what the outcome depends on: the
/// arguments, and the contents of the files.
pub fn state_file(
    arguments: &str,
    input: &Path,
    output: &Path,
    files: impl IntoIterator<Item = PathBuf>,
    save_every: u64,
) -> Result<StateFile> {
    let mut name = output.file_name().unwrap_or_default().to_os_string();
    name.push(".resume");
    let folder = output.with_file_name(name);
    let failed = |source| Error::Write { path: folder.clone(), source };
    std::fs::create_dir_all(&folder).map_err(failed)?;
    let mut key = format!("{} {arguments}", env!("CARGO_PKG_VERSION"));
    let checkpoint = Checkpoint::open(input)?;
    let mut read: BTreeSet<PathBuf> = checkpoint.files.iter().cloned().collect();
    let pooling = checkpoint.root.join("1_Pooling");
    for folder in [&checkpoint.root, &checkpoint.transformer_dir, &pooling] {
        // Configurations and vocabularies, whatever the tokenizer calls them.
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let known = |p: &PathBuf| {
            p.is_file() && p.extension().is_some_and(|e| e == "json" || e == "txt" || e == "model")
        };
        read.extend(entries.map(|entry| entry.path()).filter(known));
    }
    for file in read.into_iter().chain(files) {
        key += &format!(" {}", sha256(&file)?);
    }
    Ok(StateFile { path: folder, key, every: Duration::from_secs(save_every) })
}

/// Runs what may be resumed: its state goes when it is done, and stays when it is stopped.
pub fn with_state<T>(
    options: &Options,
    bar: &progress::Bar,
    run: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let done = run();
    bar.finish();
    let Some(StateFile { path: folder, .. }) = &options.state else { return done };
    if done.is_ok() {
        remove_states(folder).map_err(|source| Error::Write { path: folder.clone(), source })?;
    }
    // Fails where there is something in it: a run that never trained leaves nothing behind.
    let kept = std::fs::remove_dir(folder).is_err();
    if kept && matches!(done, Err(Error::Interrupted)) {
        let folder = folder.display();
        options.progress.log(&format!("the state is in {folder}; the same command goes on"));
    }
    done
}

/// Removes what training wrote, and what a killed run was writing: the user may keep other files there.
fn remove_states(folder: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let number = name.trim_start_matches('.').split('-').next().unwrap_or_default();
        let numbered = number.parse::<usize>().is_ok();
        if numbered && (name.ends_with(".safetensors") || name.contains(".safetensors.tmp-")) {
            std::fs::remove_file(&path)?;
        }
    }
    Ok(())
}
