//! Same input, recipe, seed and version give the same bytes, on any number of threads.

use crate::support::{Dir, reviews};
use std::collections::BTreeMap;

/// Hashes of an output, without what was timed.
pub fn timeless(dir: &Dir, out: &str) -> BTreeMap<String, String> {
    let mut tree = dir.tree(out);
    assert!(tree.remove("/measured.json").is_some());
    tree
}

#[test]
fn threads_change_no_byte() {
    let dir = Dir::with_tiny();
    let (reviews, train) = (reviews("model"), reviews("dev.tsv"));
    let recipe = ["--passes", "prune(sparsity=0.5),binarize(planes=2,rank=2)"];
    // Built-in texts; random tokens; with labels, more texts than are taken, and examples.
    let labelled = ["--calib", &train, "--calib-texts", "60", "--eval", "data.tsv"];
    let runs = [("model", &[][..]), ("model", &["--calib", "random"]), (&reviews, &labelled[..])];
    for (i, (model, options)) in runs.into_iter().enumerate() {
        let recipe = match i {
            1 => ["--passes", "prune(sparsity=0.5),embed(bytes=3),binarize(planes=2,rank=2)"],
            2 => ["--passes", "prune(sparsity=0.5),embed,binarize(planes=2,rank=2)"],
            _ => recipe,
        };
        let outputs = ["1", "2", "1"].into_iter().enumerate().map(|(j, threads)| {
            let out = format!("out-{i}-{j}");
            let last = ["--threads", threads, model, "-o", &out];
            dir.ok(&[&recipe[..], options, &last[..]].concat());
            timeless(&dir, &out)
        });
        let outputs: Vec<_> = outputs.collect();
        assert_eq!(outputs[0], outputs[1], "{model}: 1 and 2 threads");
        assert_eq!(outputs[0], outputs[2], "{model}: again");
    }
}

#[test]
fn the_seed_is_in_the_report_and_draws_the_texts() {
    let dir = Dir::with_tiny();
    let run = |seed: &str, out: &str| {
        let calib = ["--calib", "data.tsv", "--calib-texts", "3", "--seed", seed];
        dir.json(&[&["--passes", "binarize", "model", "-o", out], &calib[..]].concat())
    };
    let (a, b, c) = (run("1", "a"), run("1", "b"), run("2", "c"));
    assert_eq!(a["report"]["seed"], 1);
    assert_eq!(timeless(&dir, "a"), timeless(&dir, "b"));
    assert_ne!(a["report"]["fingerprint"], c["report"]["fingerprint"]);
    assert_eq!(a["report"]["fingerprint"], b["report"]["fingerprint"]);
}

#[test]
fn the_recipe_of_an_output_makes_it_again() {
    let dir = Dir::with_tiny();
    dir.ok(&[
        "--passes",
        "prune(sparsity=0.2),binarize(planes=1)",
        "--set",
        "prune.shape=uniform",
        "model",
        "-o",
        "a",
    ]);
    dir.ok(&["--recipe", "a/recipe.toml", "model", "-o", "b"]);
    assert_eq!(timeless(&dir, "a"), timeless(&dir, "b"));
}
