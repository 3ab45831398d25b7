//! Targets for other software: what is written, refused, added, verified; and, where there is a Python with Transformers
//! and ONNX Runtime, that they answer alike.

use crate::support::{Dir, reviews};
use crate::tiny::Tiny;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn make(dir: &Dir, passes: &str, more: &[&str], out: &str) {
    let args = ["--passes", passes, "--calib", "none", "model", "-o", out];
    dir.ok(&[&args[..], more].concat());
}

#[test]
fn targets_stand_in_folders_of_their_own_and_are_verified() {
    let dir = Dir::with_tiny();
    make(&dir, "prune,binarize", &["--emit", "hf,onnx,dense", "--onnx-binary", "int8"], "out");
    for file in
        ["onnx/model.onnx", "dense/config.json", "dense/vocab.txt", "hf/modeling_compress.py"]
    {
        assert!(dir.path("out").join(file).is_file(), "{file}");
    }
    let recipe = fs::read_to_string(dir.path("out/recipe.toml")).unwrap();
    assert!(
        recipe.contains("emit = [\"hf\", \"onnx\", \"dense\"]\nonnx_binary = \"int8\"\n"),
        "{recipe}"
    );
    let found = dir.json(&["verify", "out"]);
    assert_eq!(found["targets"][0]["target"], "dense");
    assert!(found["targets"][0]["difference"].as_f64().unwrap() < 1e-5, "{found}");
    assert_eq!(found["not_verified"], serde_json::json!(["hf", "onnx"]));
    // The padded checkpoint is one like any other.
    let text = dir.ok(&["inspect", "out/dense"]);
    assert!(text.contains("2 heads"), "{text}");
    // The same recipe makes the same bytes.
    let again = ["--recipe", "out/recipe.toml", "--calib", "none", "model", "-o", "again"];
    dir.ok(&again);
    let report = |out: &str| fs::read_to_string(dir.path(out).join("report.json")).unwrap();
    assert_eq!(report("out"), report("again"));
}

#[test]
fn what_a_target_cannot_carry_is_refused_before_anything_is_done() {
    let dir = Dir::with_tiny();
    let refused = |passes: &str, targets: &str| {
        dir.fails(
            4,
            &["--passes", passes, "--emit", targets, "--calib", "none", "model", "-o", "out"],
        )
    };
    insta::assert_snapshot!(refused("tokens(drop=0.5)", "hf,dense"), @"after `tokens` layers drop tokens, but the target `dense` cannot carry that, of all targets native, hf, onnx can; leave it out of --emit, or change the recipe");
    insta::assert_snapshot!(refused("binarize(planes=1,activations=1)", "onnx"), @"after `binarize` inputs of layers are signs, but the target `onnx` cannot carry that, of all targets native can; leave it out of --emit, or change the recipe");
    insta::assert_snapshot!(refused("prune(mode=train)", "dense"), @"after `prune` training may cut hidden dimensions, and blocks with their LayerNorms, but the target `dense` cannot carry that, of all targets native, hf, onnx can; leave it out of --emit, or change the recipe");
    let usage = |more: &[&str]| {
        dir.fails(2, &[&["--passes", "prune", "model", "-o", "out"], more].concat())
    };
    insta::assert_snapshot!(usage(&["--emit", "tflite"]), @"no target is named `tflite`; this build writes native, hf, onnx, dense");
    insta::assert_snapshot!(usage(&["--emit", "hf", "--onnx-binary", "int8"]), @"--onnx-binary without the target `onnx`; add --emit onnx, or leave --onnx-binary out");
}

#[test]
fn an_output_gets_more_targets_whole_or_not_at_all() {
    let dir = Dir::with_tiny();
    make(&dir, "prune", &["--emit", "onnx,dense"], "both");
    make(&dir, "prune", &[], "out");
    dir.ok(&["emit", "out", "--emit", "onnx"]);
    dir.ok(&["emit", "out", "--emit", "dense"]);
    dir.ok(&["verify", "out"]);
    // As if they had been asked for at once, but for what was timed.
    let (mut out, mut both) = (dir.tree("out"), dir.tree("both"));
    out.remove("/measured.json");
    both.remove("/measured.json");
    assert_eq!(out, both);
    let before = dir.tree("out");
    make(&dir, "tokens(flops=0.6)", &[], "dropping");
    let message = dir.fails(4, &["emit", "dropping", "--emit", "dense"]);
    assert!(message.starts_with("layers drop tokens, but the target `dense`"), "{message}");
    dir.fails(2, &["emit", "out", "--emit", "native"]);
    dir.fails(4, &["emit", "model", "--emit", "onnx"]);
    assert_eq!(dir.tree("out"), before);
}

/// A report is a file like any other: what it names may lie outside of the folder.
#[test]
fn names_in_a_report_lead_nowhere_else() {
    let dir = Dir::with_tiny();
    make(&dir, "prune", &[], "out");
    fs::write(dir.path("secret.txt"), "secret").unwrap();
    let path = dir.path("out/report.json");
    let mut report: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let file = serde_json::json!({"name": "../secret.txt", "bytes": 6, "sha256": ""});
    report["files"].as_array_mut().unwrap().push(file);
    fs::write(&path, report.to_string()).unwrap();
    let before = dir.tree("out");
    let message = dir.fails(4, &["emit", "out", "--emit", "hf"]);
    assert!(message.contains("a relative path inside the folder"), "{message}");
    assert_eq!(dir.tree("out"), before);
}

/// A Python that has all that is needed: of COMPRESS_PYTHON, or on the path.
fn python() -> Option<PathBuf> {
    let asked = std::env::var_os("COMPRESS_PYTHON");
    let python = PathBuf::from(asked.clone().unwrap_or("python3".into()));
    let test = "import numpy, onnxruntime, safetensors, torch, transformers; assert transformers.__version__ >= '5'";
    let found = Command::new(&python).args(["-c", test]).output();
    if found.is_ok_and(|output| output.status.success()) {
        return Some(python);
    }
    assert!(asked.is_none(), "COMPRESS_PYTHON has no torch, transformers 5 or onnxruntime");
    println!(
        "skipped: no Python with torch, transformers 5 and onnxruntime; COMPRESS_PYTHON names one"
    );
    None
}

#[test]
fn transformers_and_onnx_runtime_answer_as_we_do() {
    let Some(python) = python() else { return };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop/compare.py");
    let output = Command::new(&python)
        .arg(script)
        .args([crate::support::BIN, &reviews("model")])
        .args(["--", "--calib-texts", "64"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(text.matches("| ONNX Runtime").count(), 4, "{text}");
}

#[test]
fn python_runs_no_code_but_ours() {
    let dir = Dir::with_tiny();
    make(&dir, "prune", &["--emit", "hf"], "out");
    let file = "out/hf/modeling_compress.py";
    let code = fs::read_to_string(dir.path(file)).unwrap() + "import os; os.abort()\n";
    dir.write(file, &code);
    // Somebody who changes the code can change the report too.
    let path = dir.path("out/report.json");
    let mut report: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let sha256 = compress::checkpoint::sha256(&dir.path(file)).unwrap();
    let files = report["files"].as_array_mut().unwrap();
    files.iter_mut().find(|f| f["name"] == "hf/modeling_compress.py").unwrap()["sha256"] =
        sha256.into();
    fs::write(&path, report.to_string()).unwrap();
    dir.ok(&["verify", "out"]);
    let message = dir.fails(4, &["verify", "out", "--python=/nonexistent"]);
    assert!(message.contains("found other code than this version writes"), "{message}");
}

#[test]
fn a_masked_lm_without_a_tokenizer_is_verified_too() {
    let dir = Dir::new();
    Tiny::masked_lm().save(&dir.path("model"));
    make(&dir, "", &["--emit", "dense,onnx"], "out");
    let found = dir.json(&["verify", "out"]);
    assert_eq!(found["targets"][0]["same"][0], found["targets"][0]["same"][1]);
}
