//! Commands, one file each. Nothing in the library can see them: only this layer prints, exits and
//! reads flags. stdout is data, stderr is progress and errors.

mod bench;
mod compare;
#[cfg(test)]
mod documented;
mod emit;
mod eval;
mod forward;
mod gate;
mod inspect;
mod passes;
mod plan;
mod progress;
mod reproduce;
mod run;
mod search;
mod shell;
mod texts;
mod train;
mod units;
mod verify;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args, Parser, Subcommand};
use compress::checkpoint::{Checkpoint, sha256};
use compress::data::tables::Columns;
use compress::data::tokenizer::{Tokenizer, sentence_max_length};
use compress::eval::latency;
use compress::model::{Model, Task};
use compress::pass::Entry;
use compress::passes::ALL;
use compress::pipeline::ExamplesFile;
use compress::runtime::kernels;
use compress::{Error, Result};
use std::error::Error as _;
use std::path::Path;
use std::process::ExitCode;

/// Makes transformer encoders small and fast.
///
/// Reads a Hugging Face checkpoint (BERT, RoBERTa, XLM-R, DistilBERT, ELECTRA, MPNet, ERNIE, ALBERT,
/// ModernBERT, DeBERTa, MobileBERT), runs passes over it, and writes a smaller checkpoint with a report of what it cost.
#[derive(Debug, Parser)]
#[command(
    name = "compress",
    version,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    override_usage = "compress --passes PASSES MODEL -o OUT [OPTIONS]\n       compress <COMMAND>",
    after_help = "Exit codes: 0 ok, 2 usage, 3 bad recipe, 4 bad or unsupported input, \
                  5 gate closed, targets missed or not reproduced, 6 I/O, \
                  130 interrupted, 1 anything else.\n\n\
                  Example: compress --passes 'prune(sparsity=0.3),binarize' models/minilm-sst2 -o small --eval dev.tsv"
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: run::RunArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Say what is in a checkpoint: family, shapes, parameters, FLOPs, bytes by part
    Inspect(inspect::InspectArgs),
    /// Judge a model by a file of examples
    Eval(eval::EvalArgs),
    /// Fine-tune a checkpoint on a task
    Train(train::TrainArgs),
    /// Say what passes would make of a checkpoint: bytes, parameters, FLOPs, memory, time
    Plan(plan::PlanArgs),
    /// List the passes, or explain one
    Passes(passes::PassesArgs),
    /// Run given token ids through a model and store what comes out
    Forward(forward::ForwardArgs),
    /// Check that an output is whole and answers as it did when it was written
    Verify(verify::VerifyArgs),
    /// Make an output again, and compare it byte for byte
    Reproduce(reproduce::ReproduceArgs),
    /// Write an output for other software besides: Transformers, ONNX Runtime
    Emit(emit::EmitArgs),
    /// Put variants of a model side by side: size, compute, speed, quality, as a table or a page
    Compare(compare::CompareArgs),
    /// Time models in turn, over batch sizes and lengths
    Bench(bench::BenchArgs),
    /// Look for the recipe that meets budgets of bytes, time and quality, and run it
    Search(search::SearchArgs),
    /// Say whether an output is good, small and fast enough; exit code 5 if not
    Gate(gate::GateArgs),
    /// Print what a shell needs to complete commands and flags
    Completions(shell::CompletionsArgs),
    /// Print the manual page, or that of a command: compress man search | man -l -
    Man(shell::ManArgs),
}

/// How a file of examples is read.
#[derive(Debug, Clone, Args)]
struct ColumnArgs {
    /// Column of the (first) text: a name from the header, or a number counted from 1
    #[arg(long, value_name = "COLUMN")]
    text_column: Option<String>,
    /// Column of the second text of a pair
    #[arg(long, value_name = "COLUMN")]
    pair_column: Option<String>,
    /// Column of the label: a class name or id, or a score
    #[arg(long, value_name = "COLUMN")]
    label_column: Option<String>,
}

impl ColumnArgs {
    fn columns(&self) -> Columns {
        Columns {
            text: self.text_column.clone(),
            pair: self.pair_column.clone(),
            label: self.label_column.clone(),
        }
    }
}

/// What a run that trains keeps while it runs, for every command that trains.
#[derive(Debug, Clone, Args)]
struct ResumeArgs {
    /// Keep what finished passes made and the state of training in OUT.resume while it runs, and go on from
    /// there if an earlier run with the same arguments was stopped: the outcome is the same
    #[arg(long)]
    resume: bool,
    /// Seconds between two savings of that state
    #[arg(long, value_name = "SECONDS", default_value_t = 60, requires = "resume")]
    save_every: u64,
}

/// Threads, for every command that computes.
#[derive(Debug, Clone, Args)]
struct ThreadArgs {
    /// Threads to use, at most 4 a core, or 64 [default: all cores]; results do not depend on it
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
}

impl ThreadArgs {
    fn apply(&self) -> Result<()> {
        let threads = match self.threads {
            Some(0) => {
                return Err(Error::Usage {
                    found: "--threads is 0".into(),
                    advice: "give at least 1".into(),
                });
            }
            Some(n) if n > most_threads() => {
                return Err(Error::Usage {
                    found: format!("--threads is {n}"),
                    advice: format!(
                        "give at most {}: more than there are cores make nothing faster",
                        most_threads()
                    ),
                });
            }
            Some(n) => n,
            None => 0,
        };
        rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().map_err(|e| {
            Error::Usage {
                found: format!("{threads} threads could not be started ({e})"),
                advice: "give a smaller --threads".into(),
            }
        })
    }
}

/// Thousands of threads wait for each other longer than they compute. 64 on any machine: what is tried on a large one may be
/// repeated on a small one.
fn most_threads() -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    (4 * cores).max(64)
}

/// Parses the command line, runs it, and turns errors into text and exit codes.
pub fn main() -> ExitCode {
    return_large_buffers();
    quiet_guarded_panics();
    let cli = Cli::try_parse().unwrap_or_else(|error| explained(error).exit());
    let keeps_nothing = matches!(
        cli.command,
        None | Some(
            Command::Forward(_)
                | Command::Train(_)
                | Command::Search(_)
                | Command::Emit(_)
                | Command::Reproduce(_)
        )
    );
    if keeps_nothing {
        progress::catch_signals(); // the others leave nothing behind when a signal ends them
    }
    let done = kernels::limit_by_environment().and_then(|()| match &cli.command {
        None => run::main(&cli.run),
        Some(Command::Inspect(args)) => inspect::main(args),
        Some(Command::Eval(args)) => eval::main(args),
        Some(Command::Train(args)) => train::main(args),
        Some(Command::Plan(args)) => plan::main(args),
        Some(Command::Passes(args)) => passes::main(args),
        Some(Command::Forward(args)) => forward::main(args),
        Some(Command::Verify(args)) => verify::main(args),
        Some(Command::Emit(args)) => emit::main(args),
        Some(Command::Reproduce(args)) => reproduce::main(args),
        Some(Command::Compare(args)) => compare::main(args),
        Some(Command::Bench(args)) => bench::main(args),
        Some(Command::Search(args)) => search::main(args),
        Some(Command::Gate(args)) => gate::main(args),
        Some(Command::Completions(args)) => shell::completions(args),
        Some(Command::Man(args)) => shell::man(args),
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let mut text = format!("error: {error}");
            let mut cause = error.source();
            while let Some(inner) = cause {
                text += &format!(": {inner}");
                cause = inner.source();
            }
            eprintln!("{}", plain(&text));
            ExitCode::from(error.exit_code())
        }
    }
}

/// A flag that names an option of a pass is the most natural mistake; clap would name one that looks like it.
fn explained(mut error: clap::Error) -> clap::Error {
    let tip = match (error.kind(), error.get(ContextKind::InvalidArg)) {
        (ErrorKind::UnknownArgument, Some(ContextValue::String(flag))) => pass_option(
            flag,
            &std::env::args_os().map(|a| a.to_string_lossy().into()).collect::<Vec<_>>(),
        ),
        _ => None,
    };
    if let Some(tip) = tip {
        error.remove(ContextKind::SuggestedArg);
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip.into()]));
    }
    error
}

/// How the option of a pass is written that `flag` names, on a command line that has passes or a recipe.
fn pass_option(flag: &str, line: &[String]) -> Option<String> {
    let has = |name: &str| line.iter().any(|a| a.split('=').next() == Some(name));
    let option = flag.strip_prefix("--")?.replace('-', "_");
    let mut passes: Vec<&Entry> =
        ALL.iter().filter(|entry| (entry.defaults)().contains_key(&option)).collect();
    // Of passes with an option of this name, those that are asked for come first.
    passes.sort_by_key(|entry| !line.iter().any(|a| a.contains(entry.name)));
    let pass = passes.first()?.name;
    let after = line.iter().skip_while(|a| *a != flag).nth(1).filter(|v| !v.starts_with('-'));
    let joined = line.iter().find_map(|a| a.strip_prefix(flag)?.strip_prefix('='));
    let value = joined.or(after.map(String::as_str)).unwrap_or("…");
    match (has("--passes"), has("--recipe")) {
        (true, _) => Some(format!(
            "options of a pass stand in its brackets: --passes '{pass}({option}={value})'"
        )),
        (_, true) => Some(format!("options of a recipe's passes: --set {pass}.{option}={value}")),
        _ => None,
    }
}

/// glibc keeps freed buffers of up to 32 MiB for later, once it has seen one; over a run of passes that is
/// a third of the peak. Buffers from 16 MiB on go back to the system when they are freed; up to 32 MiB of smaller ones stay, which every
/// layer of a forward pass asks for again.
fn return_large_buffers() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: mallopt only sets a parameter, before any thread is started.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 16 << 20);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 32 << 20);
    }
}

/// Training asks for the same buffers again in every step: freed memory stays with the process instead of
/// being fetched from the system anew, a page at a time.
fn keep_freed_buffers() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: mallopt only sets a parameter, and takes its own lock.
    unsafe {
        libc::mallopt(libc::M_TRIM_THRESHOLD, 512 << 20);
    }
}

/// The tokenizer library panics on some malformed files; the library turns that into an error, and the
/// user needs no backtrace of it. Our own panics still speak.
fn quiet_guarded_panics() {
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let foreign = info.location().is_some_and(|l| l.file().contains("tokenizers-"));
        if !foreign {
            default(info);
        }
    }));
}

/// One paragraph without control characters: names from hostile files must not steer the terminal.
fn plain(text: &str) -> String {
    let escape = |c: char| match c.is_control() {
        true => c.escape_default().to_string(),
        false => c.to_string(),
    };
    text.chars().map(escape).collect()
}

/// Writes a line to stdout; a closed pipe is no error of ours.
fn print(text: &str) -> Result<()> {
    use std::io::Write;
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Error::Write { path: "stdout".into(), source: e })
        }
        _ => Ok(()),
    }
}

fn print_json(value: &impl serde::Serialize) -> Result<()> {
    let value = serde_json::to_value(value).expect("what commands print is plain data");
    print(&format!("{value:#}\n"))
}

/// The tokenizer of a checkpoint, if it has one.
fn tokenizer(input: &Path) -> Result<Option<Tokenizer>> {
    let root = compress::pipeline::root(input);
    match Tokenizer::load(&root)? {
        Some(tokenizer) => Ok(Some(tokenizer)),
        None => Tokenizer::load(&Checkpoint::open(input)?.transformer_dir),
    }
}

fn needed_tokenizer(input: &Path) -> Result<Tokenizer> {
    needed(tokenizer(input)?, input)
}

/// `tokenizer`, of the checkpoint `input`, where there must be one.
fn needed<T>(tokenizer: Option<T>, input: &Path) -> Result<T> {
    tokenizer.ok_or_else(|| Error::Mismatch {
        found: format!("{} has no tokenizer", input.display()),
        expected: "texts need one: tokenizer.json, or vocab.txt for WordPiece".into(),
        advice: "copy it from the model that this one was trained from",
    })
}

/// How many tokens of a text are read: what the user asked for, else what a sentence-transformers model
/// says, else what the tokenizer says but at most 128, or 384 for question answering.
///
/// # Errors
/// [`Error::Usage`] for more than the model takes, and for what leaves no room beside special tokens.
fn max_tokens(
    model: &Model,
    tokenizer: Option<&Tokenizer>,
    input: &Path,
    asked: Option<usize>,
) -> Result<usize> {
    let most = latency::max_tokens(&model.config, model.family);
    if let Some(asked) = asked {
        let least = tokenizer.map_or(0, |t| t.special_tokens(false)) + 1;
        if asked < least || asked > most {
            return Err(Error::Usage {
                found: format!("--max-length is {asked}"),
                advice: format!("the model takes {least} to {most} tokens of a text"),
            });
        }
        return Ok(asked);
    }
    let root = compress::pipeline::root(input);
    let sentence = match sentence_max_length(&root)? {
        Some(length) => Some(length),
        None => sentence_max_length(&Checkpoint::open(input)?.transformer_dir)?,
    };
    let usual = match model.config.task {
        Task::QuestionAnswering => 384, // as in Transformers' run_qa.py: contexts are longer than sentences
        _ => 128,
    };
    let tokenizers = tokenizer.and_then(Tokenizer::max_length).map(|n| n.min(usual));
    let made_for = sentence.or(tokenizers).unwrap_or(usual);
    Ok(made_for.clamp(1, most))
}

/// What a TOML file says.
fn recipe_text(path: &Path) -> Result<String> {
    let read = |source| Error::Read { path: path.to_path_buf(), source };
    String::from_utf8(std::fs::read(path).map_err(read)?).map_err(|_| {
        let found = format!("{} that is not UTF-8", path.display());
        Error::Recipe { found, expected: "TOML".into() }
    })
}

fn file_name(path: &Path) -> String {
    path.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned())
}

/// The file at `path` as a report names it, which is judged by it.
fn examples_file(path: &Path) -> Result<ExamplesFile> {
    Ok(ExamplesFile { name: file_name(path), sha256: sha256(path)? })
}

/// As a shell takes it back: in quotes, where it holds more than letters, digits and the like.
fn shell(text: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "-_./=+,:@%".contains(c);
    match !text.is_empty() && text.chars().all(plain) {
        true => text.into(),
        false => format!("'{}'", text.replace('\'', "'\\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flag_that_names_an_option_is_told_where_it_stands() {
        let tip = |flag: &str, line: &str| {
            let line: Vec<String> = line.split(' ').map(str::to_string).collect();
            pass_option(flag, &line)
        };
        let bracket = "options of a pass stand in its brackets: --passes";
        for (flag, line, expected) in [
            (
                "--sparsity",
                "--passes prune m --sparsity 0.5",
                format!("{bracket} 'prune(sparsity=0.5)'"),
            ),
            (
                "--rank",
                "--passes=binarize m --rank -o out",
                format!("{bracket} 'binarize(rank=…)'"),
            ),
            ("--steps", "--passes distill m --steps=9", format!("{bracket} 'distill(steps=9)'")),
            ("--steps", "--passes tokens m --steps 9", format!("{bracket} 'tokens(steps=9)'")),
            (
                "--sparsity",
                "--recipe r m --sparsity 1",
                "options of a recipe's passes: --set prune.sparsity=1".into(),
            ),
        ] {
            assert_eq!(tip(flag, line), Some(expected), "{line}");
        }
        assert_eq!(tip("--nonsense", "--passes prune m --nonsense 1"), None);
        assert_eq!(tip("--sparsity", "eval m --sparsity 1"), None);
    }
}
