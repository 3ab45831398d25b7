//! Where an output may go, and what stays as it was.

use crate::support::Dir;
use std::fs;

const RUN: &[&str] = &["--passes", "prune", "--calib", "none", "model", "-o"];

fn to<'a>(out: &'a str, options: &[&'a str]) -> Vec<&'a str> {
    [RUN, &[out], options].concat()
}

#[test]
fn the_report_says_what_a_pass_went_by() {
    let dir = Dir::with_tiny();
    let found = |options: &str| {
        dir.ok(&["--passes", &format!("prune({options})"), "model", "-o", "out", "--force"]);
        let json = fs::read_to_string(dir.path("out/report.json")).unwrap();
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        let markdown = fs::read_to_string(dir.path("out/report.md")).unwrap();
        let note = json["passes"][0]["notes"][0].as_str().map(str::to_string);
        assert!(markdown.contains(&format!("\n\n{}.\n\n", note.clone()?)), "{markdown}");
        note
    };
    assert!(found("mode=weights").unwrap().starts_with("mode weights: "));
    assert!(found("").unwrap().starts_with("mode text: "));
    assert_eq!(found("sparsity=0"), None);
}

#[test]
fn a_folder_in_the_way_is_refused() {
    let dir = Dir::with_tiny();
    dir.ok(&to("full", &[]));
    fs::create_dir_all(dir.path("papers/sub")).unwrap();
    dir.write("papers/thesis.tex", "years of work");
    dir.write("a-file", "x");
    #[cfg(unix)]
    std::os::unix::fs::symlink(dir.path("model"), dir.path("link")).unwrap();
    let mut text = String::new();
    for (out, force) in [
        ("full", false),
        ("papers", false),
        ("papers", true),
        ("a-file", true),
        ("a-file/out", true),
        ("model", true),
        ("model/", true),
        ("./papers/../model", true),
        ("link", true),
        ("link/out", true),
        ("model/out", false),
        ("model/deep/out", false),
        (".", true),
        ("/", true),
        ("nosuch/../model", true),
    ] {
        let options: &[&str] = if force { &["--force"] } else { &[] };
        let message = dir.fails(2, &to(out, options));
        text += &format!("-o '{out}' {}\n    {message}\n", options.join(""));
    }
    insta::assert_snapshot!("in_the_way", text);
    dir.fails(2, &to("..", &["--force"])); // says where the test runs
}

#[test]
fn new_empty_and_forced_folders_are_written() {
    let dir = Dir::with_tiny();
    fs::create_dir(dir.path("empty")).unwrap();
    for out in ["new", "deep/er/new", "empty", "trailing/"] {
        dir.ok(&to(out, &[]));
        dir.ok(&["verify", out]);
    }
    dir.write("new/leftover.safetensors", "of the old output");
    dir.ok(&to("new", &["--force"]));
    assert!(!dir.path("new/leftover.safetensors").exists());
    dir.ok(&["verify", "new"]);
    assert!(dir.tree("").keys().all(|name| !name.contains("/.")), "{:?}", dir.tree("").keys());
}

#[test]
fn force_leaves_alone_what_is_more_than_a_checkpoint() {
    let dir = Dir::with_tiny();
    dir.ok(&to("out", &["--emit", "hf,onnx,dense"]));
    dir.ok(&to("out", &["--force"]));
    fs::create_dir_all(dir.path("project/src")).unwrap();
    fs::create_dir(dir.path("project/.git")).unwrap();
    dir.write("project/config.json", "{}");
    dir.write("project/src/main.c", "int main;");
    dir.write("out/thesis.doc", "years of work");
    let mut text = String::new();
    for out in ["project", "out"] {
        text += &(dir.fails(2, &to(out, &["--force"])) + "\n");
    }
    // What was added stays when an output gets another target.
    dir.ok(&["emit", "out", "--emit", "hf"]);
    assert!(dir.path("out/thesis.doc").exists());
    insta::assert_snapshot!(text, @r"
    the output folder [DIR]/project holds `.git`, which is no file of a checkpoint; choose another folder, or move that away: `--force` replaces checkpoints and deletes nothing else
    the output folder [DIR]/out holds `thesis.doc`, which is no file of a checkpoint; choose another folder, or move that away: `--force` replaces checkpoints and deletes nothing else
    ");
}

#[test]
fn a_failed_forced_run_keeps_the_old_output() {
    let dir = Dir::with_tiny();
    dir.ok(&to("out", &[]));
    dir.fails(4, &to("out", &["--force", "--eval", "out/config.json"]));
    dir.fails(6, &to("out", &["--force", "--eval", "nosuch.tsv"]));
    dir.fails(
        3,
        &["--passes", "prune(mode=text)", "--calib", "none", "model", "-o", "out", "--force"],
    );
    dir.ok(&["verify", "out"]);
}

#[test]
fn verify_notices_every_damage() {
    let dir = Dir::with_tiny();
    dir.ok(&["--passes", "prune,binarize", "model", "-o", "healthy"]);
    type Damage = (&'static str, i32, fn(&std::path::Path));
    let damages: &[Damage] = &[
        ("a bit of a weight", 4, |out| flip(out, "model.safetensors", 9)),
        ("a bit of the tokenizer", 4, |out| flip(out, "vocab.txt", 3)),
        ("a bit of config.json", 4, |out| flip(out, "config.json", 20)),
        ("a missing file", 6, |out| fs::remove_file(out.join("vocab.txt")).unwrap()),
        ("missing weights", 6, |out| fs::remove_file(out.join("model.safetensors")).unwrap()),
        ("a cut off file", 4, |out| fs::write(out.join("recipe.toml"), "version").unwrap()),
        ("no report", 4, |out| fs::remove_file(out.join("report.json")).unwrap()),
        ("a report that is not JSON", 4, |out| fs::write(out.join("report.json"), "{").unwrap()),
        ("a report without files", 4, |out| {
            edit_report(out, |r| r["files"] = serde_json::json!([]))
        }),
        ("a report with files of another type", 4, |out| {
            edit_report(out, |r| r["files"] = serde_json::json!([1]))
        }),
        ("a report that leaves the folder", 4, |out| {
            edit_report(out, |r| r["files"][0]["name"] = "../data.tsv".into())
        }),
        ("a report with an absolute path", 4, |out| {
            edit_report(out, |r| r["files"][0]["name"] = "/etc/passwd".into())
        }),
        ("a report with a wrong hash", 4, |out| {
            edit_report(out, |r| r["files"][0]["sha256"] = "00".into())
        }),
        ("a report with another answer", 4, |out| {
            edit_report(out, |r| r["fingerprint"][0] = 9.0.into())
        }),
        ("a report without an answer", 4, |out| {
            edit_report(out, |r| r["fingerprint"] = serde_json::json!([]))
        }),
    ];
    for (name, code, damage) in damages {
        println!("{name}");
        copy(&dir.path("healthy"), &dir.path("out"));
        dir.ok(&["verify", "out"]);
        damage(&dir.path("out"));
        dir.fails(*code, &["verify", "out"]);
        fs::remove_dir_all(dir.path("out")).unwrap();
    }
}

fn copy(from: &std::path::Path, to: &std::path::Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

/// Flips a bit of the byte that stands so far before the end.
fn flip(out: &std::path::Path, name: &str, from_end: usize) {
    let mut bytes = fs::read(out.join(name)).unwrap();
    let at = bytes.len() - from_end;
    bytes[at] ^= 1;
    fs::write(out.join(name), bytes).unwrap();
}

fn edit_report(out: &std::path::Path, edit: impl FnOnce(&mut serde_json::Value)) {
    let path = out.join("report.json");
    let mut report = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    edit(&mut report);
    fs::write(path, report.to_string()).unwrap();
}
