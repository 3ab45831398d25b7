//! `compress verify OUT`

use super::{print, print_json};
use clap::Args;
use compress::checkpoint::{read_json, sha256};
use compress::model::Model;
use compress::pipeline::fingerprint;
use compress::{Error, Result};
use serde_json::json;
use std::path::{Path, PathBuf};

#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// An output of `compress`
    output: PathBuf,
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
    let malformed = |found: String, expected: &str, advice| Error::Malformed {
        path: path.clone(),
        found,
        expected: expected.into(),
        advice,
    };
    const AGAIN: &str = "write the output again";
    let files = report["files"]
        .as_array()
        .filter(|f| !f.is_empty())
        .ok_or_else(|| malformed("no list of files".into(), "the report of an output", AGAIN))?;
    for file in files {
        let name = file["name"].as_str().unwrap_or_default();
        if name.is_empty() || Path::new(name).is_absolute() || name.split('/').any(|p| p == "..") {
            return Err(malformed(
                format!("the file name `{name}`"),
                "a name inside the folder",
                AGAIN,
            ));
        }
        let found = sha256(&args.output.join(name))?;
        let expected = file["sha256"].as_str().unwrap_or_default();
        if found != expected {
            return Err(Error::Malformed {
                path: args.output.join(name),
                found: format!("SHA-256 {found}"),
                expected: format!("{expected}, as written"),
                advice: "the file was changed or damaged; write the output again",
            });
        }
    }
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
    if args.json {
        return print_json(&json!({"ok": true, "files": files.len(), "tensors": tensors}));
    }
    print(&format!(
        "ok: {} files as written, {tensors} tensors in the shapes that config.json states, same answer to the test input\n",
        files.len()
    ))
}
