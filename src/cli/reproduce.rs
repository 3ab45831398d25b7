//! `compress reproduce OUT --model MODEL`

use super::{Cli, ThreadArgs, print, print_json, run};
use clap::{Args, Parser};
use compress::checkpoint::{read_json, sha256};
use compress::report::InputNote;
use compress::{Error, Result};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

#[derive(Debug, Args)]
pub struct ReproduceArgs {
    /// An output of `compress`, or its report.json
    output: PathBuf,
    /// The checkpoint that it was made from
    #[arg(long, value_name = "MODEL")]
    model: PathBuf,
    /// The examples that it was judged by: with them what is said of its quality is compared too
    #[arg(long, value_name = "FILE")]
    eval: Option<PathBuf>,
    /// Write it here, and keep it [default: a temporary folder]
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
    #[command(flatten)]
    threads: ThreadArgs,
    /// No progress on stderr
    #[arg(short, long)]
    quiet: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Files that tell of quality, which depends on examples that no output depends on.
const TELLING: [&str; 3] = ["README.md", "report.json", "report.md"];

/// What a report may say that its run was given.
const ARGUMENTS: [&str; 10] = [
    "--calib",
    "--calib-texts",
    "--seed",
    "--data",
    "--data-texts",
    "--text-column",
    "--pair-column",
    "--label-column",
    "--max-length",
    "--max-shard-size",
];

pub fn main(args: &ReproduceArgs) -> Result<()> {
    let (folder, path) = match args.output.is_dir() {
        true => (args.output.clone(), args.output.join("report.json")),
        false => (compress::pipeline::root(&args.output), args.output.clone()),
    };
    let report = read_json(&path)?;
    let malformed = |found: &str, expected: &str| Error::Malformed {
        path: path.clone(),
        found: found.into(),
        expected: expected.into(),
        advice: "give the report of an output that this version wrote",
    };
    let inputs: Vec<InputNote> = serde_json::from_value(report["inputs"].clone())
        .map_err(|_| malformed("no readable `inputs`", "the files that it was made from"))?;
    let arguments = report["arguments"].as_str().and_then(shlex::split);
    let arguments = arguments.ok_or_else(|| malformed("no `arguments`", "those of its run"))?;
    // What a stranger's report says must not write anywhere.
    let harmless = |a: &String| !a.starts_with('-') || ARGUMENTS.contains(&&a[..]);
    if !arguments.iter().all(harmless) {
        return Err(malformed("`arguments` that are none of a run", "those of its run"));
    }
    let recipe = folder.join("recipe.toml");
    if !recipe.is_file() {
        return Err(Error::Mismatch {
            found: format!("{} has no recipe.toml", folder.display()),
            expected: "`reproduce` makes again what a recipe made".into(),
            advice: "give an output of `compress --passes` or --recipe",
        });
    }
    let version = report["version"].as_str().unwrap_or_default();
    if version != env!("CARGO_PKG_VERSION") {
        eprintln!(
            "made by version {version}, this is {}: bytes may differ",
            env!("CARGO_PKG_VERSION")
        );
    }

    let temporary;
    let output = match &args.keep {
        Some(keep) => keep,
        None => {
            temporary = Temporary::new()?;
            &temporary.0
        }
    };
    let text = |path: &Path| path.as_os_str().to_owned();
    let mut line = vec!["compress".into(), "--recipe".into(), text(&recipe)];
    line.extend(arguments.iter().map(Into::into));
    line.extend([text(&args.model), "--output".into(), text(output)]);
    line.extend(args.eval.iter().flat_map(|eval| ["--eval".into(), text(eval)]));
    line.extend(
        args.threads.threads.iter().flat_map(|n| ["--threads".into(), n.to_string().into()]),
    );
    line.extend(args.quiet.then(|| "--quiet".into()));
    let Ok(Cli { command: None, run: again }) = Cli::try_parse_from(line) else {
        return Err(malformed("`arguments` that are none of a run", "those of its run"));
    };
    let found = run::inputs(&again)?;
    if let Some(other) = inputs.iter().find(|input| !found.contains(input)) {
        let is = found.iter().find(|i| i.name == other.name && i.of_model == other.of_model);
        return Err(Error::Mismatch {
            found: match is {
                Some(is) => format!("{} with the SHA-256 {}", other.name, is.sha256),
                None if other.of_model => format!("no {} in {}", other.name, args.model.display()),
                None => format!("no {} {}", other.name, looked_in(&other.name)),
            },
            expected: format!("it was made from {}", other.sha256),
            advice: "give the same --model, and run it where its texts have the same paths",
        });
    }
    if let (Some(eval), Some(expected)) = (&args.eval, report["quality"]["sha256"].as_str()) {
        let given = super::examples_file(eval)?;
        if given.sha256 != expected {
            return Err(Error::Mismatch {
                found: format!("{} has the SHA-256 {}", eval.display(), given.sha256),
                expected: format!(
                    "it was judged by {} with {expected}",
                    report["quality"]["data"].as_str().unwrap_or("another file")
                ),
                advice: "give that file with --eval, or leave --eval out: no output depends on it",
            });
        }
    }
    let done = run::make(&again)?;

    let hashes = |files: &Value| -> BTreeMap<String, String> {
        let pair = |f: &Value| Some((f["name"].as_str()?.into(), f["sha256"].as_str()?.into()));
        files.as_array().into_iter().flatten().filter_map(pair).collect()
    };
    let mut before = hashes(&report["files"]);
    let again = serde_json::to_value(&done.report).expect("reports are plain data");
    let mut after = hashes(&again["files"]);
    let judged = |report: &Value| report["quality"]["columns"] != Value::Null;
    let same_base = report["base_model"] == again["base_model"];
    let telling = judged(&report) == judged(&again) && same_base;
    if telling {
        before.insert("report.json".into(), sha256(&path)?);
        after.insert("report.json".into(), sha256(&done.output.join("report.json"))?);
    } else {
        before.retain(|name, _| !TELLING.contains(&&name[..]));
        after.retain(|name, _| !TELLING.contains(&&name[..]));
    }
    let names: Vec<&String> =
        before.keys().chain(after.keys().filter(|n| !before.contains_key(*n))).collect();
    let differ: Vec<&str> =
        names.iter().filter(|n| before.get(**n) != after.get(**n)).map(|n| &n[..]).collect();
    if args.json {
        let left = if telling { &[][..] } else { &TELLING };
        print_json(&json!({
            "ok": differ.is_empty(), "files": names.len(), "differ": differ, "not_compared": left,
        }))?;
    } else if differ.is_empty() {
        let left = match (telling, same_base) {
            (true, _) => String::new(),
            (false, true) => {
                format!("; {} were not compared: give --eval as it was given", TELLING.join(", "))
            }
            (false, false) => format!(
                "; {} were not compared: they name {}",
                TELLING.join(", "),
                report["base_model"].as_str().unwrap_or("another folder")
            ),
        };
        print(&format!("ok: {} files, the same bytes{left}\n", names.len()))?;
    }
    match differ.is_empty() {
        true => Ok(()),
        false => Err(Error::NotReproduced {
            found: format!("{} of {} files have other bytes: {}", differ.len(), names.len(), differ.join(", ")),
            advice: "another version or another kind of processor rounds differently; --keep lets you look at it".into(),
        }),
    }
}

/// Where a text of this name was looked for.
fn looked_in(name: &str) -> String {
    match std::env::current_dir() {
        Ok(folder) if Path::new(name).is_relative() => {
            format!("in the current folder, {}", folder.display())
        }
        _ => "there".into(),
    }
}

/// A folder that goes with this.
struct Temporary(PathBuf);

impl Temporary {
    fn new() -> Result<Temporary> {
        let base = std::env::temp_dir();
        let mut number = 0;
        loop {
            let path = base.join(format!("compress-{}-{number}", std::process::id()));
            match std::fs::create_dir(&path) {
                Ok(()) => return Ok(Temporary(path)),
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => number += 1,
                Err(source) => return Err(Error::Write { path, source }),
            }
        }
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
