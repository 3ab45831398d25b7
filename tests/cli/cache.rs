//! What finished passes leave on disk: a run that was killed goes on behind them, and other runs take it from a cache.

use crate::determinism::timeless;
use crate::support::Dir;
#[cfg(unix)]
use crate::support::wait;
#[cfg(unix)]
use crate::train::resuming::{start, stderr};
use crate::train::{with_reviews, words};
use std::fs;

/// Every kind of change: other words, other shapes, a coded table, a schedule, packed matrices, trained ones.
const PASSES: [&str; 6] = [
    "vocab",
    "prune(sparsity=0.4,mode=text)",
    "embed",
    "tokens(flops=0.8,steps=4,finetune=4)",
    "binarize(planes=2,rank=2)",
    "distill(steps=60,batch=8)",
];
const TEXTS: &str = "--calib-texts 24 --data train.tsv --data-texts 64 --eval dev.tsv model";

fn run(passes: &[&str], more: &str) -> String {
    format!("--passes {} {TEXTS} {more}", passes.join(","))
}

/// Entries of a folder, by the name of their pass.
fn entries(dir: &Dir, folder: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir.path(folder)) else { return Vec::new() };
    let folders = entries.map(Result::unwrap).filter(|e| e.path().is_dir());
    let names = folders.map(|e| e.file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter(|n| !n.starts_with('.')).collect();
    names.sort();
    names
}

#[test]
#[cfg(unix)]
fn a_run_that_is_killed_after_any_pass_goes_on_behind_it() {
    let dir = with_reviews();
    dir.ok(&words(&run(&PASSES, "-q -o whole")));
    let again = run(&PASSES, "-o out --resume --save-every 1000");
    let mut left = 0;
    while left + 1 < PASSES.len() {
        let done = left + 1;
        let mut child = start(&dir, &again, "");
        // More than one pass may be done by the time that it is seen.
        while entries(&dir, "out.resume").len() < done {
            assert!(child.try_wait().unwrap().is_none(), "it ended before it was stopped");
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        child.kill().unwrap(); // SIGKILL
        assert_eq!(wait(&mut child), None);
        assert!(!dir.path("out").exists());
        left = entries(&dir, "out.resume").len();
    }
    let mut last = start(&dir, &again, "--threads 1");
    assert_eq!(wait(&mut last), Some(0));
    let told = stderr(last);
    assert!(
        told.contains("taken from out.resume: vocab, prune, embed, tokens, binarize"),
        "{told}"
    );
    assert!(!dir.path("out.resume").exists(), "{:?}", dir.tree(""));
    assert_eq!(timeless(&dir, "out"), timeless(&dir, "whole"));
    dir.ok(&["verify", "out"]);
}

#[test]
fn another_run_takes_what_it_shares_from_the_cache() {
    let dir = with_reviews();
    let first = ["vocab", "prune(sparsity=0.4,mode=text)", "binarize"];
    let other = [first[0], first[1], "binarize(planes=1)"];
    let cached = |passes: &[&str], more: &str, taken: &str| {
        let run = dir.run(&words(&run(passes, &format!("--cache cache --force {more}"))));
        assert_eq!(run.code, Some(0), "{run:?}");
        let told = run.stderr.lines().find_map(|l| l.strip_prefix("taken from cache: "));
        assert_eq!(told.unwrap_or_default(), taken, "{run:?}");
    };
    cached(&first, "-o a", "");
    cached(&first, "-o b", "vocab, prune, binarize");
    cached(&other, "-o c", "vocab, prune");
    cached(&first, "-o d --seed 1", "");
    // How it is stored and shown is no part of what passes make.
    cached(&first, "-o e --max-shard-size 1 --emit hf", "vocab, prune, binarize");
    for (passes, out) in [(&first, "plain-a"), (&other, "plain-c")] {
        dir.ok(&words(&run(passes, &format!("-q -o {out}"))));
    }
    assert_eq!(timeless(&dir, "a"), timeless(&dir, "plain-a"));
    assert_eq!(timeless(&dir, "b"), timeless(&dir, "plain-a"));
    assert_eq!(timeless(&dir, "c"), timeless(&dir, "plain-c"));

    // Other texts are another run's, and so is another input under the same name.
    let data = fs::read_to_string(dir.path("train.tsv")).unwrap();
    dir.write("train.tsv", format!("{data}A good film.\t1\n"));
    cached(&first, "-o d", "");
    dir.write("train.tsv", &data);
    let config = fs::read_to_string(dir.path("model/config.json")).unwrap();
    dir.write("model/config.json", format!("{config}\n"));
    cached(&first, "-o d", "");
    dir.write("model/config.json", &config);
    cached(&first, "-o d", "vocab, prune, binarize");
}

#[test]
fn a_cache_in_the_model_is_refused() {
    let dir = Dir::with_tiny();
    fs::create_dir(dir.path("parent")).unwrap();
    for cache in ["model", "model/", "model/cache", "parent/../model/deep/cache"] {
        let run = ["--passes", "prune", "--calib", "none", "model", "-o", "out", "--cache", cache];
        let message = dir.fails(2, &run);
        assert!(message.contains("lies in the model's folder"), "{message}");
    }
    let file = ["--passes", "prune", "--calib", "none", "model/model.safetensors", "-o", "out"];
    dir.fails(2, &[&file[..], &["--cache", "model/cache"]].concat());
    dir.ok(&[&file[..], &["--cache", "cache", "-q"]].concat());
}

#[test]
fn a_damaged_entry_is_named() {
    let dir = with_reviews();
    let passes = ["vocab", "binarize"];
    let command = run(&passes, "-q --cache cache -o out");
    dir.ok(&words(&run(&passes, "-q --cache cache -o first")));
    let [first, second] = &entries(&dir, "cache")[..] else { panic!("{:?}", dir.tree("cache")) };
    let mut text = String::new();
    for (entry, file) in [
        (second, "model.safetensors"),
        (second, "pass.json"),
        (first, "vocabulary-0"),
        (first, "pass.json"),
    ] {
        let path = dir.path("cache").join(entry).join(file);
        let whole = fs::read(&path).unwrap();
        fs::write(&path, &whole[..whole.len() - 2]).unwrap();
        let message = dir.fails(4, &words(&command));
        text += &message.replace(first, "FIRST").replace(second, "SECOND");
        text += "\n";
        fs::write(&path, whole).unwrap();
    }
    insta::assert_snapshot!(text);
    dir.ok(&words(&command));
}
