//! `compress --passes … MODEL -o OUT`

use super::emit::TargetArgs;
use super::texts::TextArgs;
use super::units::ShardSize;
use super::{
    ResumeArgs, ThreadArgs, file_name, keep_freed_buffers, plan, print, print_json, progress,
    recipe_text, tokenizer,
};
use clap::{ArgGroup, Args};
use compress::checkpoint::{Checkpoint, OutputFolder, sha256};
use compress::model::Model;
use compress::pipeline::{self, Cache, Options, Outcome};
use compress::recipe::Recipe;
use compress::report::{self, InputNote};
use compress::train::state::StateFile;
use compress::{Error, Result};
use serde_json::json;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What is to be done, for every command that runs or plans passes.
#[derive(Debug, Args)]
#[group(skip)]
#[command(group = ArgGroup::new("steps").required(true).args(["passes", "recipe"]))]
pub struct RecipeArgs {
    /// Passes in the order they run, with options: 'prune(sparsity=0.5),binarize(planes=2)'
    #[arg(long, value_name = "PASSES")]
    pub(super) passes: Option<String>,

    /// A TOML file with the passes instead
    #[arg(long, value_name = "FILE", conflicts_with = "passes")]
    recipe: Option<PathBuf>,

    // They replace what a recipe says.
    #[command(flatten)]
    targets: TargetArgs,

    /// Override one option, as `prune.sparsity=0.6`; may be given again
    #[arg(long, value_name = "PASS.OPTION=VALUE")]
    set: Vec<String>,
}

impl RecipeArgs {
    pub fn read(&self) -> Result<Recipe> {
        let mut recipe = match &self.recipe {
            Some(path) => Recipe::from_toml(&recipe_text(path)?, &self.set)?,
            None => Recipe::parse(self.passes.as_deref().unwrap_or_default(), &self.set)?,
        };
        if let Some(emit) = self.targets.emit()? {
            recipe.emit = emit;
        }
        Ok(recipe)
    }
}

#[derive(Debug, Args)]
pub struct RunArgs {
    #[command(flatten)]
    pub(super) recipe: RecipeArgs,

    /// The checkpoint: a Hugging Face folder, or a .safetensors file with config.json beside it
    #[arg(required = true)]
    model: Option<PathBuf>,

    /// The folder to write; must be new or empty
    #[arg(short, long, value_name = "OUT", required_unless_present = "dry_run")]
    output: Option<PathBuf>,

    #[command(flatten)]
    texts: TextArgs,

    #[command(flatten)]
    threads: ThreadArgs,

    #[command(flatten)]
    resume: ResumeArgs,

    /// Keep what every pass makes in this folder, and take from it what an earlier run made of the same model
    /// and texts by the same passes; it grows until you empty it
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,

    /// Replace an output folder that has content
    #[arg(long)]
    force: bool,

    /// Weight files larger than this are split: `500MB`, `5GB`, or a number of MB
    #[arg(long, alias = "shard-size", value_name = "SIZE", default_value_t)]
    max_shard_size: ShardSize,

    /// Print the plan, as `compress plan` does, and run nothing
    #[arg(long, conflicts_with_all = ["resume", "cache"])]
    dry_run: bool,

    /// Print the report as JSON instead of a table
    #[arg(long)]
    json: bool,

    /// No progress on stderr
    #[arg(short, long)]
    quiet: bool,
}

impl RunArgs {
    /// All that an output depends on besides recipe and files, as it would be written on the command line.
    fn arguments(&self) -> String {
        let mut arguments = self.texts.arguments();
        if self.max_shard_size != ShardSize::default() {
            arguments += &format!(" --max-shard-size {}", self.max_shard_size);
        }
        arguments
    }
}

pub fn main(args: &RunArgs) -> Result<()> {
    if args.dry_run {
        let input = args.model.as_deref().expect("clap requires it");
        args.threads.apply()?;
        let output = args.output.as_deref();
        let (texts, shards) = (&args.texts, args.max_shard_size.0);
        let plan = plan::of(input, &args.recipe.read()?, texts, shards, output)?;
        return plan::show(&plan, args.json);
    }
    let done = make(args)?;
    if args.json {
        return print_json(&json!({
            "output": done.output, "report": done.report, "measured": done.measured,
        }));
    }
    let text = match &done.report.calibration {
        Some(c) => format!("{} ({} texts, {} tokens)", c.source, c.texts, c.tokens),
        None => "none: weights alone".into(),
    };
    let output = args.output.as_deref().unwrap_or(&done.output);
    print(&report::before_after(&done.report, &done.measured))?;
    print(&format!(
        "\ncalibration text: {text}\nwrote {} in {:.1} s; report.md in it has the details\n",
        output.display(),
        done.measured.wall_seconds
    ))
}

/// The files that its output depends on.
pub fn inputs(args: &RunArgs) -> Result<Vec<InputNote>> {
    let (input, recipe) = (args.model.as_deref().expect("clap requires it"), args.recipe.read()?);
    // One that is missing is the pass's to name.
    let of_passes = recipe.steps.iter().flat_map(|s| s.pass.reads()).filter(|p| p.is_file());
    hashes(input, args.texts.files().into_iter().chain(of_passes))
}

/// Runs it, and says nothing on stdout.
pub fn make(args: &RunArgs) -> Result<Outcome> {
    let input = args.model.as_deref().expect("clap requires it");
    args.threads.apply()?;
    let output = args.output.as_deref().expect("clap requires it");
    let recipe = args.recipe.read()?;
    if recipe.steps.iter().any(|s| s.pass.trains(args.texts.data.is_some())) {
        keep_freed_buffers();
    }
    let model = Model::open(input)?;
    recipe.check_family(&model)?;
    recipe.check_emit(&model, args.texts.data.is_some())?;
    if let Some(cache) = &args.cache {
        OutputFolder::check_outside(cache, &pipeline::root(input))?;
    }
    let folder = OutputFolder::create(output, input, args.force)?;
    let given = &args.texts;
    let calib = given.calib();
    let counted = recipe.steps.iter().any(|s| s.pass.counts_words());
    let needed = counted || recipe.steps.iter().any(|s| s.pass.needs_tokenizer());
    let read_by_one = calib != "none" || given.data.is_some() || given.eval.is_some();
    let tokenizer = if needed || read_by_one { tokenizer(input)? } else { None };
    let texts = given.read(&model, tokenizer.as_ref(), input, counted)?;
    let bar = progress::Bar::new(args.quiet);
    let arguments = args.arguments();
    let inputs = inputs(args)?;
    let (mut state, mut cache) = (None, None);
    if args.resume.resume || args.cache.is_some() {
        // What passes read besides is told by the passes.
        let arguments = format!("{} {}", program()?, given.arguments());
        let key = key(&arguments, &hashes(input, given.files())?);
        let folder = args.cache.clone().unwrap_or_else(|| resume_folder(output));
        std::fs::create_dir_all(&folder)
            .map_err(|source| Error::Write { path: folder.clone(), source })?;
        let judged_by = match &given.eval {
            Some(path) => format!("{} {}", file_name(path), sha256(path)?),
            None => String::new(),
        };
        cache = Some(Cache { folder, key, judged_by });
        if args.resume.resume {
            let key = key_of_run(&arguments, &recipe, &inputs);
            state = Some(state_file(key, output, args.resume.save_every)?);
        }
    }
    let options = Options {
        seed: given.seed,
        arguments: &arguments,
        inputs: &inputs,
        texts: &texts,
        tokenizer: tokenizer.as_ref(),
        read: &|model, tokenizer| given.read(model, Some(tokenizer), input, counted),
        state,
        cache,
        spill: Some(folder.spill()),
        max_shard_bytes: args.max_shard_size.0,
        measure: true,
        accept: &|_| Ok(()),
        progress: &bar,
        interrupted: &progress::interrupted,
    };
    with_state(&options, &bar, || pipeline::run(&model, input, &recipe, folder, &options))
}

/// All that every pass depends on besides its options: the version, the arguments, and the contents of the files.
pub fn key(arguments: &str, inputs: &[InputNote]) -> String {
    let mut key = format!("{} {arguments}", env!("CARGO_PKG_VERSION"));
    for input in inputs {
        key += &format!(" {}", input.sha256);
    }
    key
}

/// SHA-256 of this program: two builds of one version may compute differently.
fn program() -> Result<String> {
    let read = |source| Error::Read { path: "the running program".into(), source };
    sha256(&std::env::current_exe().map_err(read)?)
}

fn key_of_run(arguments: &str, recipe: &Recipe, inputs: &[InputNote]) -> String {
    format!("{} {}", key(arguments, inputs), recipe.to_toml())
}

/// The folder beside the output where a run keeps what lets it go on.
fn resume_folder(output: &Path) -> PathBuf {
    let mut name = output.file_name().unwrap_or_default().to_os_string();
    name.push(".resume");
    output.with_file_name(name)
}

/// Where training keeps its state; `key`: what the outcome depends on.
pub fn state_file(key: String, output: &Path, save_every: u64) -> Result<StateFile> {
    let folder = resume_folder(output);
    let failed = |source| Error::Write { path: folder.clone(), source };
    std::fs::create_dir_all(&folder).map_err(failed)?;
    Ok(StateFile { path: folder, key, every: Duration::from_secs(save_every) })
}

/// The files that an output depends on: those of the checkpoint, then `files`.
pub fn hashes(input: &Path, files: impl IntoIterator<Item = PathBuf>) -> Result<Vec<InputNote>> {
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
    let note = |file: PathBuf, of_model: bool| {
        let name = match file.strip_prefix(&checkpoint.root) {
            Ok(inside) if of_model => inside,
            _ => &file,
        };
        let name = name.to_string_lossy().replace(|c: char| c.is_control(), "");
        Ok(InputNote { name, sha256: sha256(&file)?, of_model })
    };
    let of_model = read.into_iter().map(|file| note(file, true));
    of_model.chain(files.into_iter().map(|file| note(file, false))).collect()
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

/// Removes what passes and training kept, and what a killed run was writing: the user may keep other files there.
fn remove_states(folder: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let number = name.trim_start_matches('.').split('-').next().unwrap_or_default();
        let numbered = number.parse::<usize>().is_ok();
        if numbered && (name.ends_with(".safetensors") || name.contains(".safetensors.tmp-")) {
            std::fs::remove_file(&path)?;
        } else if Cache::is_entry(&name) && path.is_dir() {
            std::fs::remove_dir_all(&path)?;
        }
    }
    Ok(())
}
