//! Makes the tables of docs/results.md: every recipe on one model, judged on one file.
//!
//! `cargo run --release --example results -- MODEL DEV_FILE TRAIN_FILE [PART_OF_A_RECIPE] > table.md`
//!
//! It runs the `compress` binary of the same build, so that time and memory are those of a user.

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

const NONE: &[&str] = &["none"];
const ALL: &[&str] = &["none", "random", "builtin", "train"];
const TEXT: &[&str] = &["none", "builtin", "train"];
/// Calibrated on the built-in text, trained on 4,000 texts of the training file.
const DATA: &[&str] = &["data"];

/// Recipes and the calibrations they are run with.
const ROWS: &[(&str, &[&str])] = &[
    ("", NONE),
    ("prune(sparsity=0.25)", ALL),
    ("prune(sparsity=0.5)", ALL),
    ("prune(sparsity=0.25,shape=uniform)", &["builtin"]),
    ("binarize(planes=1)", TEXT),
    ("binarize(planes=1,rank=16)", TEXT),
    ("binarize(planes=2)", TEXT),
    ("binarize(planes=2,rank=16)", TEXT),
    ("binarize(planes=3)", TEXT),
    ("binarize(planes=3,rank=16)", TEXT),
    ("binarize(planes=3,embeddings=4)", TEXT),
    ("binarize(planes=3,rank=16,embeddings=4)", TEXT),
    ("binarize(planes=4,embeddings=4)", TEXT),
    ("prune,binarize(planes=3)", ALL),
    ("prune,binarize(planes=3,embeddings=4)", TEXT),
    ("prune(sparsity=0.5),binarize(planes=3,embeddings=4)", TEXT),
    ("prune(sparsity=0.5,mode=text),distill", DATA),
    ("prune(sparsity=0.5,mode=text),distill(sinkhorn=0.02)", DATA),
    ("prune(sparsity=0.5,mode=text),distill(method=theseus)", DATA),
    ("binarize(planes=1,rank=16),distill", DATA),
    ("binarize(planes=1,rank=16),distill(sinkhorn=0.02)", DATA),
    ("binarize(planes=1,rank=16),distill(method=theseus)", DATA),
];

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let ([model, dev, train], only) = match &args[..] {
        [model, dev, train] => ([model, dev, train], None),
        [model, dev, train, only] => ([model, dev, train], Some(only)),
        _ => {
            eprintln!("usage: results MODEL DEV_FILE TRAIN_FILE [PART_OF_A_RECIPE]");
            std::process::exit(2);
        }
    };
    let input: u64 = weights(Path::new(model));
    println!(
        "| recipe | text | bytes | factor | accuracy | correct | agreement | seconds | peak memory, x input |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    for (passes, calibrations) in
        ROWS.iter().filter(|(p, _)| only.is_none_or(|o| p.contains(o.as_str())))
    {
        for calibration in *calibrations {
            let (text, data) = match *calibration {
                "train" => (train.as_str(), None),
                "data" => ("builtin", Some(train.as_str())),
                other => (other, None),
            };
            let row = run(model, dev, passes, text, data);
            let quality = &row["report"]["quality"];
            let metric = |list: &Value, name: &str| -> f64 {
                let found = list.as_array().into_iter().flatten().find(|m| m["name"] == name);
                found.and_then(|m| m["value"].as_f64()).unwrap_or(f64::NAN)
            };
            let accuracy = metric(&quality["after"], "accuracy");
            let examples = quality["examples"].as_f64().unwrap_or(0.0);
            let bytes = row["report"]["after"]["file_bytes"].as_u64().unwrap_or(0);
            let measured = &row["measured"];
            let name = if passes.is_empty() { "(none)" } else { passes };
            println!(
                "| `{name}` | {calibration} | {bytes} | {:.2} | {accuracy:.4} | {:.0} | {:.4} | {:.1} | {:.2} |",
                input as f64 / bytes as f64,
                accuracy * examples,
                metric(&quality["fidelity"], "agreement"),
                measured["wall_seconds"].as_f64().unwrap_or(f64::NAN),
                measured["peak_memory_bytes"].as_f64().unwrap_or(f64::NAN) / input as f64,
            );
        }
    }
}

fn run(model: &str, dev: &str, passes: &str, calibration: &str, data: Option<&str>) -> Value {
    let output = std::env::temp_dir().join(format!("compress-results-{}", std::process::id()));
    let done = Command::new(binary())
        .args([
            "--passes",
            passes,
            model,
            "--calib",
            calibration,
            "--eval",
            dev,
            "--json",
            "--force",
            "-o",
        ])
        .arg(&output)
        .args(data.into_iter().flat_map(|data| ["--data", data, "--data-texts", "4000"]))
        .output()
        .expect("the compress binary runs");
    let _ = std::fs::remove_dir_all(&output);
    assert!(done.status.success(), "{passes}: {}", String::from_utf8_lossy(&done.stderr));
    serde_json::from_slice(&done.stdout).expect("--json prints JSON")
}

/// `target/release/compress`, beside `target/release/examples/results`.
fn binary() -> PathBuf {
    let me = std::env::current_exe().expect("the path of this program");
    me.parent().and_then(Path::parent).expect("an examples folder").join("compress")
}

fn weights(model: &Path) -> u64 {
    let file = if model.is_dir() { model.join("model.safetensors") } else { model.to_path_buf() };
    std::fs::metadata(file).expect("the weight file").len()
}
