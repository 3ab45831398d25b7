//! `compress verify OUT`

use super::{ColumnArgs, max_tokens, needed, print, print_json, tokenizer};
use clap::Args;
use compress::checkpoint::{Checkpoint, read_json, sha256};
use compress::data::{Calibration, Source};
use compress::emit::Target;
use compress::emit::check::{self, Compared};
use compress::model::{Model, Task};
use compress::pipeline::fingerprint;
use compress::runtime::Batch;
use compress::{Error, Result};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// An output of `compress`
    output: PathBuf,
    /// Load what was emitted with Transformers and ONNX Runtime, under this Python [default: $COMPRESS_PYTHON, else python3]
    #[arg(long, value_name = "PATH", num_args = 0..=1, require_equals = true)]
    python: Option<Option<PathBuf>>,
    /// Texts to compare the answers on: .tsv, .csv, .jsonl, or .txt [default: 64 of the built-in text]
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    #[command(flatten)]
    columns: ColumnArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Another CPU may round differently; a wrong tensor is off by far more.
const TOLERANCE: f64 = 1e-3;

pub fn main(args: &VerifyArgs) -> Result<()> {
    let path = args.output.join("report.json");
    if args.output.is_dir() && !path.exists() {
        return Err(Error::Mismatch {
            found: format!("{} has no report.json", args.output.display()),
            expected: "`verify` checks what `compress` wrote".into(),
            advice: "give an output folder; `compress inspect` looks at any checkpoint",
        });
    }
    let report = read_json(&path)?;
    let files = check_files(&args.output, &report, |_| true)?;
    let malformed = |found: String, expected: &str, advice| Error::Malformed {
        path: path.clone(),
        found,
        expected: expected.into(),
        advice,
    };
    let model = Model::open(&args.output)?;
    let found = fingerprint(&model)?;
    let expected: Vec<f64> =
        report["fingerprint"].as_array().into_iter().flatten().filter_map(|v| v.as_f64()).collect();
    let scale = expected.iter().map(|e| e.abs()).fold(1e-6, f64::max);
    let close = |(f, e): (&f32, &f64)| (*f as f64 - e).abs() <= TOLERANCE * scale;
    if found.len() != expected.len() || !found.iter().zip(&expected).all(close) {
        return Err(malformed(
            format!("answers {found:?} to the test input"),
            &format!("{expected:?}, as when it was written"),
            "the tensors are whole but read differently; use the version that wrote them",
        ));
    }
    let tensors = model.tensors().len();
    let said = report["emitted"].as_array().cloned().unwrap_or_default();
    let named = said.iter().map(|e| Target::named(e["target"].as_str().unwrap_or_default()));
    let targets = named.collect::<Result<Vec<_>>>()?;
    let Targets { compared, left } = self::targets(args, &model, &targets, &said)?;
    if args.json {
        let left: Vec<&str> = left.iter().map(|t| t.name()).collect();
        print_json(&json!({
            "ok": true, "files": files, "tensors": tensors, "targets": compared, "not_verified": left,
        }))?;
    } else {
        print(&format!(
            "ok: {} files as written, {tensors} tensors in the shapes that config.json states, same answer to the test input\n",
            files
        ))?;
        for c in &compared {
            let same = c
                .same
                .map_or(String::new(), |[same, all]| format!(", {same} of {all} choose the same"));
            print(&format!(
                "{}: {} texts by {}, answers differ by at most {:.1e}, typically {:.1e}{same}\n",
                c.target, c.texts, c.by, c.difference, c.typical
            ))?;
        }
        for target in &left {
            print(&format!(
                "{}: not verified here: this program does not run it; --python does\n",
                target.name()
            ))?;
        }
    }
    compared.iter().try_for_each(Compared::check)
}

/// Checks that of the files of an output those that are `wanted` are as its report says, and that its weights are
/// among them all; returns how many the report names.
///
/// # Errors
/// [`Error::Malformed`] for files that changed and reports that name none, [`Error::Read`].
pub fn check_files(output: &Path, report: &Value, wanted: impl Fn(&str) -> bool) -> Result<usize> {
    let malformed = |found: String, expected: &str| Error::Malformed {
        path: output.join("report.json"),
        found,
        expected: expected.into(),
        advice: "write the output again",
    };
    let files = report["files"]
        .as_array()
        .filter(|f| !f.is_empty())
        .ok_or_else(|| malformed("no list of files".into(), "the report of an output"))?;
    let name = |file: &Value| file["name"].as_str().unwrap_or_default().to_string();
    for file in files {
        let name = name(file);
        if name.is_empty() || Path::new(&name).is_absolute() || name.split('/').any(|p| p == "..") {
            return Err(malformed(format!("the file name `{name}`"), "a name inside the folder"));
        }
        if !wanted(&name) {
            continue;
        }
        let found = sha256(&output.join(&name))?;
        let expected = file["sha256"].as_str().unwrap_or_default();
        if found != expected {
            return Err(Error::Malformed {
                path: output.join(name),
                found: format!("SHA-256 {found}"),
                expected: format!("{expected}, as written"),
                advice: "the file was changed or damaged; write the output again",
            });
        }
    }
    // One file of weights beside shards would be read in their place.
    let weights = Checkpoint::open(output)?.files;
    match weights.iter().find(|path| !files.iter().any(|f| **path == output.join(name(f)))) {
        None => Ok(files.len()),
        Some(path) => Err(Error::Malformed {
            path: path.clone(),
            found: "weights that the report does not name".into(),
            expected: "those that were written".into(),
            advice: "remove the file, or write the output again",
        }),
    }
}

/// What was compared, and what only Python could.
struct Targets {
    compared: Vec<Compared>,
    left: Vec<Target>,
}

/// Texts that are compared on where no file is given.
const TEXTS: usize = 64;
/// Numbers of an answer that are compared at once: the logits of a masked-LM head are many.
const NUMBERS: usize = 1 << 24;

fn targets(
    args: &VerifyArgs,
    model: &Model,
    targets: &[Target],
    said: &[Value],
) -> Result<Targets> {
    if args.python.is_some() && targets.is_empty() {
        return Err(Error::Mismatch {
            found: format!("{} has no target for other software", args.output.display()),
            expected: "--python loads those".into(),
            advice: "write some: `compress emit`",
        });
    }
    if targets.is_empty() {
        return Ok(Targets { compared: Vec::new(), left: Vec::new() });
    }
    let batches = batches(args, model)?;
    let mut compared = Vec::new();
    if targets.contains(&Target::Dense) {
        compared.push(check::dense(model, &args.output.join(Target::Dense.name()), &batches)?);
    }
    let left: Vec<Target> = targets.iter().copied().filter(|t| *t != Target::Dense).collect();
    let Some(python) = &args.python else { return Ok(Targets { compared, left }) };
    let usual = || std::env::var_os("COMPRESS_PYTHON").unwrap_or("python3".into()).into();
    let python = python.clone().unwrap_or_else(usual);
    let nbits = said.iter().any(|e| e["sign_planes"] == "nbits");
    compared.extend(check::by_python(&python, model, &args.output, targets, nbits, &batches)?);
    Ok(Targets { compared, left: Vec::new() })
}

/// Texts in tokens of the model, or random tokens where it has no tokenizer.
fn batches(args: &VerifyArgs, model: &Model) -> Result<Vec<Batch>> {
    let tokenizer = tokenizer(&args.output)?;
    let tokens = max_tokens(model, tokenizer.as_ref(), &args.output, None)?;
    let (source, limit) = match &args.data {
        Some(path) => {
            needed(tokenizer.as_ref(), &args.output)?;
            let columns = args.columns.columns();
            (Source::File { path: path.clone(), columns }, usize::MAX)
        }
        None if tokenizer.is_some() => (Source::Builtin, TEXTS),
        None => (Source::Random, TEXTS),
    };
    let texts = Calibration::read(&source, tokenizer.as_ref(), &model.config, limit, tokens, 0)?;
    let width = match model.config.task {
        Task::MaskedLm => model.config.vocab,
        Task::Bare => model.config.hidden,
        _ => 1,
    };
    let mut left = NUMBERS / width;
    let mut batches = texts.batches;
    batches.extend(texts.held_out);
    batches.retain(|batch| {
        let fits = batch.tokens() <= left;
        left = left.saturating_sub(batch.tokens());
        fits
    });
    Ok(batches)
}
