//! `search`: from budgets to an output that a gate lets through.

use crate::support::{Dir, Run, reviews, wait};
use crate::tiny::Tiny;
use serde_json::Value;
use std::fs;
use std::process::Stdio;

const SPACE: &str = r#"version = 1

[[step]]
pass = "prune"
optional = true
mode = "text"
sparsity = { choose = [0.2, 0.4] }

[[step]]
pass = "quantize"
one_of = "layers"
optional = true
embeddings = { choose = ["none", "int8"] }

[[step]]
pass = "binarize"
one_of = "layers"
planes = { choose = [4, 2] }
"#;

/// A step that looks at the word table alone, for the end of a space: it is run once for all.
const WORDS: &str = "\n[[step]]\npass = \"embed\"\noptional = true\nmethod = \"int8\"\n";

/// A tiny classifier, 288 labelled texts, enough for rungs of them, and a space of 15 recipes.
fn tiny() -> Dir {
    let dir = Dir::with_tiny();
    let mut text = String::from("sentence\tlabel\n");
    for (i, who) in ["it", "he", "she", "the film"].iter().enumerate() {
        for (j, how) in
            ["good", "bad", "the best", "the worst", "not good", "not bad"].iter().enumerate()
        {
            for end in [".", "!", "?", ", but very so"] {
                for more in ["", "so ", "very "] {
                    text += &format!("{who} was {more}{how} {end}\t{}\n", (i + j) % 2);
                }
            }
        }
    }
    dir.write("texts.tsv", text);
    dir.write("space.toml", SPACE);
    dir
}

fn search<'a>(output: &'a str, target: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let args = ["search", "model", "-o", output, "--target", target, "--space", "space.toml"];
    let text = ["--calib", "texts.tsv", "--calib-texts", "48", "--quiet"];
    [&args[..], &text, more].concat()
}

/// The lines of a log.
fn lines(dir: &Dir, name: &str) -> Vec<Value> {
    let text = fs::read_to_string(dir.path(name)).expect("a log");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// What is the same in every run: no timings.
fn timeless(lines: &[Value]) -> Vec<Value> {
    let mut lines = lines.to_vec();
    for line in &mut lines {
        let measured = line["speed_by"] == "measured";
        let line = line.as_object_mut().expect("an object");
        line.remove("seconds");
        if measured {
            line.remove("speed");
        }
    }
    lines
}

#[test]
fn a_search_that_was_cut_off_goes_on_to_the_same_choice() {
    let dir = tiny();
    let whole = dir.json(&search("out", "size=24kB,drop=30%", &["--trials", "6"]));
    let winner = whole["winner"].as_str().expect("something is small enough");
    let log = lines(&dir, "out.search.jsonl");
    assert_eq!((&log[0]["search"], &log[0]["targets"]["size"]), (&1.into(), &24_000.into()));
    // The file is as large as the log said, and its recipe makes it again.
    let last = log.iter().rfind(|line| line["passes"] == winner).expect("the winner is in it");
    let file = fs::metadata(dir.path("out/model.safetensors")).expect("weights").len();
    assert_eq!((&last["bytes"], &last["feasible"]), (&file.into(), &true.into()));
    assert_eq!((&last["miss"], &last["speed_by"]), (&0.0.into(), &"measured".into()));
    let again = ["--recipe", "out/recipe.toml", "--calib", "texts.tsv", "--calib-texts", "48"];
    dir.ok(&[&again[..], &["--quiet", "model", "-o", "again"]].concat());
    assert_eq!(dir.tree("again")["/model.safetensors"], dir.tree("out")["/model.safetensors"]);

    // Killed in the middle of a line.
    let text = fs::read_to_string(dir.path("out.search.jsonl")).expect("a log");
    let at = text.match_indices('\n').nth(4).expect("five lines").0;
    dir.write("cut.jsonl", &text[..at + 20]);
    let cut = ["--trials", "6", "--log", "cut.jsonl", "--resume"];
    let rest = dir.json(&search("rest", "size=24kB,drop=30%", &cut));
    assert_eq!((&rest["winner"], &rest["known"]), (&winner.into(), &4.into()));
    assert_eq!(timeless(&lines(&dir, "cut.jsonl")), timeless(&log));

    // The same log answers another question; a search with another seed has another log.
    let other = ["--trials", "6", "--log", "cut.jsonl", "--resume"];
    let other = dir.json(&search("other", "size=26kB", &other));
    assert!(other["known"].as_u64().is_some_and(|n| n > 0), "{other:#}");
    // With a speed asked for what was not timed is made again, and without one all of it is known.
    let fast = ["--trials", "6", "--log", "cut.jsonl", "--resume"];
    let fast = dir.json(&search("fast", "size=26kB,speedup=0.001", &fast));
    let (known, all) = (fast["known"].as_u64(), fast["evaluations"].as_u64());
    assert!(known > Some(0) && known < all, "{fast:#}");
    let slow = ["--trials", "6", "--log", "cut.jsonl", "--resume"];
    let slow = dir.json(&search("slow", "size=26kB", &slow));
    assert_eq!(slow["known"], slow["evaluations"], "{slow:#}");
    let seed = ["--log", "cut.jsonl", "--resume", "--seed", "1"];
    let message = dir.fails(4, &search("seed", "size=26kB", &seed));
    assert!(message.contains("cut.jsonl: its arguments: "), "{message}");
    let message = dir.fails(2, &search("new", "size=26kB", &["--log", "cut.jsonl"]));
    assert!(message.contains("go on with it by --resume"), "{message}");
}

#[test]
fn targets_that_nothing_meets_close_the_gate_and_nothing_is_written() {
    let dir = tiny();
    let Run { code, stdout, stderr } = dir.run(&search("out", "size=1kB", &["--trials", "4"]));
    assert_eq!(code, Some(5), "{stderr}");
    assert!(stderr.starts_with("error: no variant meets the targets; the nearest: `"), "{stderr}");
    assert!(stderr.contains("bytes, at most 1000"), "{stderr}");
    assert!(stdout.contains("the nearest to the targets first"), "{stdout}");
    let left: Vec<String> = dir.tree("").into_keys().filter(|name| name.contains("out")).collect();
    assert_eq!(left, ["/out.search.jsonl"]);
    let json = dir.run(&search("out", "size=1kB", &["--trials", "4", "--resume", "--json"]));
    let json: Value = serde_json::from_str(&json.stdout).expect("JSON");
    assert_eq!((&json["output"], &json["winner"]), (&Value::Null, &Value::Null));
    assert!(json["front"][0]["missed"][0].as_str().is_some_and(|m| m.contains("at most 1000")));
    assert_eq!(json["known"], json["evaluations"], "all of it was in the log");
}

#[test]
fn recipes_that_are_refused_are_in_the_log() {
    let dir = tiny();
    let space = "version = 1\n[[step]]\npass = \"quantize\"\n[[step]]\npass = \"binarize\"\noptional = true\n\
        [[step]]\npass = \"embed\"\noptional = true\nshare = { choose = [0.5, 0.0001] }\nmethod = \"svd\"\n";
    dir.write("space.toml", space);
    let found = dir.json(&search("out", "size=1MB", &["--trials", "6", "--rungs", "1"]));
    assert_eq!(found["winner"], "quantize");
    let refused: Vec<String> = lines(&dir, "out.search.jsonl")
        .iter()
        .filter_map(|line| Some(line["refused"].as_str()?.to_string()))
        .collect();
    assert_eq!(found["refused"], refused.len());
    assert!(
        refused.iter().any(|why| why.contains("expected `binarize` before `quantize`")),
        "{refused:?}"
    );
    dir.write(
        "space.toml",
        "version = 1\n[[step]]\npass = \"binarize\"\n[[step]]\npass = \"prune\"\n",
    );
    let message = dir.run(&search("all", "size=1MB", &[])).stderr;
    assert!(
        message.contains("no recipe of the search space that runs, the first one `binarize,prune`"),
        "{message}"
    );
}

#[test]
fn what_cannot_be_searched_is_refused() {
    let dir = tiny();
    let refuse = |target: &str, more: &[&str], code: i32, said: &str| {
        let message = dir.fails(code, &search("out", target, more));
        assert!(message.contains(said), "{message}");
    };
    refuse("size=1MB", &["--trials", "0"], 2, "--trials is 0");
    refuse("size=1MB,size=2MB", &[], 2, "--target has a budget twice");
    let none = ["search", "model", "-o", "out", "--target", "size=1MB", "--calib", "none", "-q"];
    assert!(dir.fails(2, &none).contains("--calib is none"));
    dir.write("space.toml", "version = 1\n[[step]]\npass = \"quantise\"\n");
    refuse("size=1MB", &[], 3, "did you mean `quantize`?");
    dir.ok(&["--passes", "quantize", "--calib", "none", "model", "-o", "packed"]);
    let packed = ["search", "packed", "-o", "out", "--target", "size=1MB", "--quiet"];
    let space = dir.ok(&["search", "packed", "--print-space"]);
    assert!(space.contains("tokens") && !space.contains("prune"), "{space}");
    assert!(dir.run(&[&packed[..], &["--calib", "texts.tsv"]].concat()).code == Some(0));
}

#[test]
fn every_head_can_be_searched() {
    let dir = tiny();
    let heads = [
        ("mlm", Tiny::masked_lm(), "mean_kl_nats"),
        ("tags", Tiny::tagger(), "mean_kl_nats"),
        ("answers", Tiny::reader(), "relative_l2"),
    ];
    for (name, head, divergence) in heads {
        head.save(&dir.path(name));
        let args = ["search", name, "--space", "space.toml", "--target", "drop=100%", "--quiet"];
        let small = ["--trials", "2", "--rungs", "1", "--calib-texts", "64"];
        for calib in ["builtin", "random"] {
            let output = format!("{name}-{calib}");
            let found = dir.json(&[&args[..], &small, &["-o", &output, "--calib", calib]].concat());
            assert_eq!(found["front"][0]["divergence_of"], divergence, "{output}");
            assert!(dir.path(&output).join("recipe.toml").is_file(), "{output}");
        }
    }
}

/// A share of the texts, and none that variants are judged by; the best is trained on all.
#[test]
fn passes_that_train_have_less_data_while_searching() {
    let dir = tiny();
    dir.write(
        "space.toml",
        "version = 1\n[[step]]\npass = \"distill\"\nsteps = 2\nbatch = { choose = [4, 8] }\n",
    );
    let data = ["--trials", "2", "--data", "texts.tsv", "--rungs", "1"];
    let found = dir.json(&search("out", "drop=100%", &data));
    // 240 are not drawn and 6 of the others held out: 42 of 288 are left.
    assert_eq!(
        (&found["front"][0]["data"], &found["front"][0]["judged"]),
        (&42.into(), &246.into())
    );
    assert_eq!(found["report"]["data"]["texts"], 282);
}

/// Variants that lost words see the held-out texts in their own tokens.
#[test]
fn a_vocabulary_may_be_part_of_the_space() {
    let dir = tiny();
    dir.write(
        "space.toml",
        "version = 1\n[[step]]\npass = \"vocab\"\n[[step]]\npass = \"quantize\"\noptional = true\n",
    );
    for (name, model) in [("classes", Tiny::classifier()), ("mlm", Tiny::masked_lm())] {
        model.save(&dir.path("model"));
        let found = dir.json(&search(name, "drop=100%", &["--trials", "2", "--rungs", "1"]));
        let front = found["front"].as_array().expect("a front");
        let vocab = front.iter().find(|f| f["passes"] == "vocab").expect("nothing is closer");
        // The words that no text uses are gone, and nothing else is.
        assert!(vocab["divergence"].as_f64().is_some_and(|d| d.abs() < 1e-6), "{name}: {vocab:#}");
    }
}

/// From budgets to a page: what is printed as a space is taken as one, and the gate asks what the search was asked.
#[test]
fn a_pipeline_searches_gates_and_compares() {
    let dir = Dir::new();
    let (model, dev, train) = (reviews("model"), reviews("dev.tsv"), reviews("train.tsv"));
    let default = dir.ok(&["search", &model, "--print-space"]);
    for pass in ["prune", "tokens", "embed", "quantize", "binarize"] {
        assert!(default.contains(&format!("pass = \"{pass}\"")), "{default}");
    }
    dir.write("default.toml", &default);
    let taken = dir.ok(&["search", &model, "--space", "default.toml", "--print-space"]);
    assert_eq!(taken, default);
    // What of it takes a second on a slow machine.
    let space = SPACE.replace("sparsity = { choose = [0.2, 0.4] }", "sparsity = 0.2");
    let space = space.replace("[\"none\", \"int8\"]", "[\"none\"]") + WORDS;
    dir.write("space.toml", space.replace("choose = [4, 2]", "choose = [2]"));
    let args =
        ["search", &model, "-o", "best", "--target", "size=900kB,drop=2%", "--space", "space.toml"];
    let text = ["--calib", &train, "--calib-texts", "32", "--judge-texts", "200", "--eval", &dev];
    let found =
        dir.json(&[&args[..], &text, &["--trials", "8", "--rungs", "2", "--quiet"]].concat());
    assert_eq!(found["judged_by"], "200 held-out texts of train.tsv");
    assert_eq!(found["report"]["quality"]["data"], "dev.tsv");
    // What was judged is what was written, tables that were made for another recipe included.
    let top = &found["front"][0];
    let written = fs::metadata(dir.path("best/model.safetensors")).expect("weights").len();
    assert_eq!((&top["passes"], &top["bytes"]), (&found["winner"], &written.into()));
    assert!(found["winner"].as_str().is_some_and(|w| w.contains("quantize")), "{found:#}");
    dir.ok(&["verify", "best"]);

    let budgets = ["gate", "best", "--max-size", "900kB", "--max-drop", "2%"];
    dir.ok(&budgets);
    let against =
        ["--against", &model, "--eval", &dev, "--runs", "1", "--batch", "1", "--texts", "8", "-q"];
    let gate = dir.json(&[&budgets[..], &against].concat());
    assert_eq!(gate["passed"], true, "{gate:#}");

    let compare = ["compare", &model, "best", "best.search.jsonl", "--no-baselines", "--runs", "1"];
    let page = ["--batch", "1", "--quiet", "--html", "page.html"];
    let json = dir.json(&[&compare[..], &page].concat());
    let tried = json["searches"][0]["tried"].as_array().expect("a search");
    // Of the eight, the four that are small enough.
    assert_eq!(tried.len(), 4);
    assert!(tried.iter().all(|t| t["bytes"].as_u64().is_some_and(|b| b <= 900_000)), "{tried:#?}");
    let html = fs::read_to_string(dir.path("page.html")).expect("a page");
    for t in tried {
        let size = t["bytes"].as_f64().expect("bytes") / 1_048_576.0;
        let passes = t["passes"].as_str().expect("a recipe");
        let point = format!("data-variant=\"{passes}\" data-cost=\"{size}\"");
        assert!(html.contains(&point), "{point}");
    }
    let alone = dir.run(&["compare", "best.search.jsonl", "--quiet"]);
    assert_eq!(alone.code, Some(2), "{}", alone.stderr);
}

#[test]
#[cfg(unix)]
fn an_interrupted_search_leaves_its_log_alone() {
    let dir = Dir::new();
    let (model, train) = (reviews("model"), reviews("train.tsv"));
    dir.write("space.toml", SPACE);
    let args = |trials: &'static str| {
        let args = ["search", &model, "-o", "out", "--target", "size=2MB", "--space", "space.toml"];
        let text =
            ["--calib", &train, "--calib-texts", "32", "--judge-texts", "64", "--rungs", "1"];
        let all = [&args[..], &text, &["--trials", trials, "--resume"]].concat();
        all.into_iter().map(String::from).collect::<Vec<_>>()
    };
    let command = |args: &[String]| {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let mut command = dir.command(&args);
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        command
    };
    let mut child = command(&args("15")).spawn().expect("it starts");
    let made = || fs::read_to_string(dir.path("out.search.jsonl")).map_or(0, |t| t.lines().count());
    while made() < 2 && child.try_wait().expect("ours").is_none() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    // SAFETY: the child is ours and not yet waited for, so the number is still its own.
    assert_eq!(unsafe { libc::kill(child.id() as i32, libc::SIGINT) }, 0);
    assert_eq!(wait(&mut child), Some(130), "all 15 recipes cannot have been made");
    let stderr = std::io::read_to_string(child.stderr.take().expect("piped")).expect("text");
    assert!(stderr.contains("the same command with --resume goes on"), "{stderr}");
    let names: Vec<String> = dir.tree("").into_keys().collect();
    assert_eq!(names, ["/", "/out.search.jsonl", "/space.toml"]);
    let lines = made();
    assert_eq!(wait(&mut command(&args("2")).spawn().expect("it starts")), Some(0));
    assert!(made() >= lines && dir.path("out/model.safetensors").is_file());
}
