//! Variants side by side: `compare`, `bench`, `gate`, as a pipeline would drive them.

use crate::support::{Dir, Run};
use serde_json::Value;
use std::fs;
use std::process::{Command, Stdio};

/// A tiny classifier at `model`, and what two recipes made of it.
fn variants() -> Dir {
    let dir = Dir::with_tiny();
    for (passes, out) in [("binarize", "small"), ("prune(sparsity=0.5)", "cut")] {
        let eval = ["--calib", "none", "--eval", "data.tsv", "model", "-o", out];
        dir.ok(&[&["--passes", passes], &eval[..]].concat());
    }
    dir
}

const QUICK: &[&str] = &["--runs", "1", "--batch", "1,4", "--quiet"];

#[test]
fn compare_has_every_model_and_the_baselines_of_the_first() {
    let dir = variants();
    let compare = |rest: &[&str]| {
        let models = ["compare", "model", "small", "cut", "--eval", "data.tsv"];
        dir.json(&[&models, QUICK, rest].concat())
    };
    let json = compare(&[]);
    let of = |json: &Value| -> Vec<String> {
        let all = json["variants"].as_array().expect("variants");
        all.iter().map(|v| v["name"].as_str().expect("a name").to_string()).collect()
    };
    assert_eq!(of(&json), ["model", "model (f16)", "model (int8)", "small", "cut"]);
    let at =
        |path: &str| json.pointer(path).cloned().unwrap_or_else(|| panic!("no {path}: {json:#}"));
    assert_eq!((at("/schema"), at("/data/examples")), (1.into(), 8.into()));
    // Bytes are those of the files.
    for (i, name) in [(0, "model"), (3, "small"), (4, "cut")] {
        let file = fs::metadata(dir.path(name).join("model.safetensors")).expect("weights").len();
        assert_eq!(at(&format!("/variants/{i}/file_bytes")), file, "{name}");
    }
    // Quality is what `eval` says.
    let eval = dir.json(&["eval", "cut", "--data", "data.tsv"]);
    assert_eq!(at("/variants/4/metrics"), eval["metrics"]);
    assert_eq!(at("/variants/4/passes/0/pass"), "prune");
    assert_eq!(at("/variants/0/timings").as_array().map(Vec::len), Some(2));
    assert!(at("/variants/3/timings/1/speedup/median").as_f64().is_some_and(|x| x > 0.0));
    assert_eq!(of(&compare(&["--no-baselines"])), ["model", "small", "cut"]);
    // What is packed already has no baselines.
    let packed = dir.json(&[&["compare", "small", "cut", "--eval", "data.tsv"], QUICK].concat());
    assert_eq!(of(&packed), ["small", "cut"]);
}

#[test]
fn compare_works_without_examples_and_names_what_it_timed() {
    let dir = variants();
    let text = dir.ok(&[&["compare", "model", "small", "--no-baselines"], QUICK].concat());
    assert!(text.contains("timed on texts of 64 tokens"), "{text}");
    assert!(!text.contains("accuracy"), "{text}");
    assert!(text.contains("binarize  "), "what the pass took away: {text}");
}

#[test]
fn a_batch_is_no_larger_than_the_texts_there_are() {
    let dir = Dir::with_tiny();
    let args = ["compare", "model", "--no-baselines", "--eval", "data.tsv", "--texts", "3", "-q"];
    let text = dir.ok(&[&args[..], &["--runs", "1", "--batch", "1,16,32"]].concat());
    assert!(text.contains("ms, batch of 3 "), "{text}");
    assert_eq!(text.matches("ms, batch of").count(), 2, "{text}");
    assert!(text.contains("timed on 3 texts of data.tsv"), "{text}");
    assert!(text.contains("one run in turn"), "{text}");
}

#[test]
fn what_cannot_be_compared_is_refused() {
    let dir = variants();
    crate::tiny::Tiny::masked_lm().save(&dir.path("words"));
    let refuse = |args: &[&str], code: i32, said: &str| {
        let Run { code: found, stderr, .. } = dir.run(&[args, QUICK].concat());
        assert_eq!(found, Some(code), "{args:?}: {stderr}");
        assert!(stderr.contains(said), "{args:?}: {stderr}");
    };
    refuse(&["compare", "model", "words"], 4, "compare variants of one model");
    refuse(&["compare", "model", "words"], 4, "words has a head for masked LM, but");
    refuse(&["compare", "words", "--eval", "data.tsv"], 4, "is not supported");
    refuse(&["compare", "model", "nowhere"], 6, "cannot read");
    refuse(&["compare", "model", "--texts", "0"], 2, "--texts is 0");
    refuse(&["bench", "model", "--length", "9999"], 2, "--length has 9999");
    refuse(&["compare", "model", "--html", "no/such/folder/x.html"], 6, "cannot write");
}

#[test]
fn a_page_replaces_pages_alone() {
    let dir = variants();
    let compare = |page: &str| {
        // More runs than a test has time for: it must be refused before.
        dir.fails(2, &["compare", "model", "small", "--runs", "1000000", "-q", "--html", page])
    };
    assert!(compare("model/config.json").contains("exists and is no HTML page"));
    assert!(compare("model/model.safetensors").contains("exists and is no HTML page"));
    assert!(compare("small").contains("is a folder"));
    let late = ["compare", "model", "--runs", "1000000", "-q", "--html", "no/such/folder/x.html"];
    assert!(dir.fails(6, &late).contains("cannot write no/such/folder/x.html"));
    dir.write("page.html", "\n<HTML>of another time</HTML>");
    for _ in 0..2 {
        dir.ok(&[&["compare", "model", "--no-baselines", "--html", "page.html"], QUICK].concat());
        let page = fs::read_to_string(dir.path("page.html")).expect("a page");
        assert!(page.starts_with("<!doctype html>"), "{page}");
    }
}

#[test]
fn bench_times_every_batch_size_and_length() {
    let dir = variants();
    let json =
        dir.json(&[&["bench", "model", "small", "--length", "4,8", "--baselines"], QUICK].concat());
    let models = json["models"].as_array().expect("models");
    assert_eq!(models.len(), 4);
    for model in models {
        let timings = model["timings"].as_array().expect("timings");
        let sizes: Vec<_> = timings
            .iter()
            .map(|t| (t["batch"].as_u64().unwrap(), t["tokens"].as_u64().unwrap()))
            .collect();
        assert_eq!(sizes, [(1, 4), (1, 8), (4, 16), (4, 32)]);
    }
    // Of the usual lengths those that fit: the model takes 32 tokens.
    let json = dir.json(&["bench", "model", "--runs", "1", "--batch", "1", "-q"]);
    let timings = json["models"][0]["timings"].as_array().expect("timings");
    assert_eq!(timings.iter().map(|t| t["tokens"].as_u64()).collect::<Vec<_>>(), [Some(16)]);
    let text = dir.ok(&[&["bench", "model", "small", "--eval", "data.tsv"], QUICK].concat());
    assert!(text.contains("8 texts of data.tsv"), "{text}");
    assert!(text.contains("mean tokens"), "{text}");
}

/// Exit 0 and 5, with what failed, as JSON and as text; from the report of the run, and measured now.
#[test]
fn a_gate_lets_through_what_keeps_its_promises() {
    let dir = variants();
    let gate = |rest: &[&str]| dir.run(&[&["gate", "small"], rest, QUICK].concat());
    let passed = gate(&["--max-drop", "100%", "--max-size", "1MB", "--max-latency-ratio", "1e6"]);
    assert_eq!(passed.code, Some(0), "{passed:?}");
    assert_eq!(passed.stdout.matches(" ok ").count(), 3, "{}", passed.stdout);
    let closed = gate(&["--max-size", "1kB", "--json"]);
    assert_eq!(closed.code, Some(5), "{closed:?}");
    assert!(closed.stderr.starts_with("error: the gate is closed: size: "), "{}", closed.stderr);
    let json: Value = serde_json::from_str(&closed.stdout).expect("JSON");
    assert_eq!((&json["passed"], &json["checks"][0]["name"]), (&false.into(), &"size".into()));
    assert_eq!(json["checks"][0]["limit"], 1000.0);

    let against = ["--against", "model", "--eval", "data.tsv", "--json"];
    let measured = gate(
        &[
            &against[..],
            &["--max-drop", "100%", "--min-agreement", "0", "--max-latency-ratio", "1e-9"],
        ]
        .concat(),
    );
    assert_eq!(measured.code, Some(5), "{measured:?}");
    let json: Value = serde_json::from_str(&measured.stdout).expect("JSON");
    let of = |key: &str| -> Vec<Value> {
        json["checks"].as_array().expect("checks").iter().map(|c| c[key].clone()).collect()
    };
    assert_eq!(of("name"), ["drop", "agreement", "latency"]);
    assert_eq!(of("passed"), [true, true, false].map(Value::from));
    assert!(of("source").iter().all(|s| s == "measured"));
}

#[test]
fn a_gate_that_asks_nothing_or_cannot_know_is_refused() {
    let dir = variants();
    let refuse = |args: &[&str], code: i32, said: &str| {
        let Run { code: found, stderr, .. } = dir.run(&[args, QUICK].concat());
        assert_eq!(found, Some(code), "{args:?}: {stderr}");
        assert!(stderr.contains(said), "{args:?}: {stderr}");
    };
    refuse(&["gate", "small"], 2, "nothing is asked of the output");
    refuse(
        &["gate", "small", "--max-drop", "1%", "--against", "model"],
        2,
        "give examples with --eval",
    );
    refuse(&["gate", "model", "--max-drop", "1%"], 4, "report.json is not there");
    refuse(&["gate", "nosuch", "--max-drop", "1%"], 6, "cannot read nosuch");
    refuse(&["gate", "small", "--max-latency-ratio", "0"], 2, "expected a number above 0");
    refuse(&["gate", "small", "--max-drop", "1"], 2, "write 1% or 0.01");
    refuse(&["gate", "small", "--max-size", "0,5MB"], 2, "is written `0.5MB`");
    assert_eq!(dir.run(&["gate", "small", "--max-latency-ratio", "100000%"]).code, Some(0));
    refuse(&["gate", "small", "--max-size", "12 parsecs"], 2, "expected bytes");
    dir.write("other.tsv", "sentence\tlabel\nto the sea\t1\n");
    refuse(
        &["gate", "small", "--max-drop", "1%", "--eval", "other.tsv"],
        4,
        "does not judge by other.tsv, but by another data.tsv",
    );
    // Of the same name, and of other content; and the same under another.
    let data = fs::read(dir.path("data.tsv")).expect("examples");
    fs::create_dir(dir.path("more")).expect("a folder");
    dir.write("more/data.tsv", "sentence\tlabel\nto the sea\t1\n");
    let asked = ["gate", "small", "--max-drop", "100%", "--eval"];
    refuse(
        &[&asked[..], &["more/data.tsv"]].concat(),
        4,
        "does not judge by more/data.tsv, but by another data.tsv",
    );
    dir.write("copy.tsv", data);
    assert_eq!(dir.run(&[&asked[..], &["copy.tsv"]].concat()).code, Some(0));
    // A report of an earlier version names the file alone.
    let path = dir.path("small/report.json");
    let text = fs::read_to_string(&path).expect("a report");
    let mut report: Value = serde_json::from_str(&text).expect("JSON");
    report["quality"].as_object_mut().expect("quality").remove("sha256");
    dir.write("small/report.json", report.to_string());
    refuse(
        &[&asked[..], &["data.tsv"]].concat(),
        4,
        "does not judge by data.tsv as far as it says",
    );
    dir.ok(&["--passes", "binarize", "--calib", "none", "model", "-o", "unjudged"]);
    refuse(&["gate", "unjudged", "--min-agreement", "0"], 4, "does not judge");
}

#[test]
fn a_gate_says_what_its_answers_come_from() {
    let dir = variants();
    dir.ok(&["--passes", "binarize", "model", "-o", "held"]);
    let note = |gate: &[&str]| {
        let json = dir.json(&[gate, QUICK].concat());
        let check = &json["checks"][0];
        let text = check["text"].as_str().expect("a text");
        let said = text.rsplit_once("; ").expect("its data").1.to_string();
        (check["data"]["name"].clone(), check["data"]["examples"].as_u64().expect("a number"), said)
    };
    let eval = note(&["gate", "small", "--max-drop", "100%"]);
    assert_eq!(eval, ("data.tsv".into(), 8, "8 texts of data.tsv".into()));
    let against =
        ["gate", "small", "--min-agreement", "0", "--against", "model", "--eval", "data.tsv"];
    assert_eq!(note(&against), eval);
    let (name, examples, said) = note(&["gate", "held", "--min-agreement", "0"]);
    let name = name.as_str().expect("a name").to_string();
    assert!(name.ends_with(", held out") && examples > 0, "{name} {examples}");
    assert_eq!(said, format!("{examples} texts of {name}"));
}

/// The report tells of the model that it was written with, and of no other.
#[test]
fn a_gate_believes_no_report_of_other_files() {
    let dir = variants();
    let gate = |rest: &[&str]| dir.run(&[&["gate", "small"], rest, QUICK].concat());
    let whole = fs::read(dir.path("small/model.safetensors")).expect("weights");
    let mut damaged = whole.clone();
    *damaged.last_mut().expect("a byte") ^= 1;
    dir.write("small/model.safetensors", &damaged);
    for asked in [["--max-drop", "100%"], ["--min-agreement", "0"], ["--max-latency-ratio", "1e6"]]
    {
        let run = gate(&asked);
        assert_eq!(run.code, Some(4), "{run:?}");
        assert!(run.stderr.contains("the file was changed or damaged"), "{}", run.stderr);
    }
    assert_eq!(gate(&["--max-size", "1MB"]).code, Some(0), "asks nothing of the report");
    dir.write("small/model.safetensors", &whole);

    for file in ["config.json", "vocab.txt"] {
        let text = fs::read_to_string(dir.path("small").join(file)).expect("a text");
        dir.write(&format!("small/{file}"), format!("{text}\n"));
        let run = gate(&["--max-drop", "100%"]);
        assert_eq!(run.code, Some(4), "{file}: {run:?}");
        dir.write(&format!("small/{file}"), text);
    }
    // What no answer depends on may be edited.
    dir.write("small/README.md", "mine");
    assert_eq!(gate(&["--max-drop", "100%"]).code, Some(0));

    // Weights that the report does not name.
    dir.ok(&[
        "--passes",
        "prune",
        "--calib",
        "none",
        "--eval",
        "data.tsv",
        "--max-shard-size",
        "5kB",
        "model",
        "-o",
        "shards",
    ]);
    let shards = [&["gate", "shards", "--max-drop", "100%"], QUICK].concat();
    assert_eq!(dir.run(&shards).code, Some(0));
    fs::copy(dir.path("model/model.safetensors"), dir.path("shards/model.safetensors"))
        .expect("a copy");
    let run = dir.run(&shards);
    assert_eq!(run.code, Some(4), "{run:?}");
    assert!(run.stderr.contains("weights that the report does not name"), "{}", run.stderr);
    dir.fails(4, &["verify", "shards"]);
}

/// Where Chromium is: no console error, nothing asked of the net, and the points that the data says.
#[test]
fn the_page_opens_in_a_browser() {
    let names = ["chromium", "chromium-browser", "google-chrome", "chromium-headless-shell"];
    let runs = |name: &&str| {
        Command::new(name)
            .arg("--version")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok()
    };
    let dir = variants();
    let compare = ["compare", "model", "small", "--eval", "data.tsv", "--html", "page.html"];
    dir.ok(&[&compare, QUICK].concat());
    let Some(browser) = names.into_iter().find(runs) else {
        eprintln!("skipped: no Chromium");
        return;
    };
    let profile = dir.path("profile");
    let output = Command::new(browser)
        .args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--no-first-run",
            "--disable-background-networking",
        ])
        .args([
            "--disable-component-update",
            "--disable-sync",
            "--enable-logging=stderr",
            "--v=0",
            "--dump-dom",
        ])
        .arg(format!("--user-data-dir={}", profile.display()))
        .arg(format!("file://{}", dir.path("page.html").display()))
        .stdin(Stdio::null())
        .output()
        .expect("a browser that runs");
    let (dom, log) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{log}");
    // What a page says, and what its policy forbids, is logged as CONSOLE.
    assert!(!log.contains("CONSOLE"), "{log}");
    let start = dom.find("id=\"comparison\">").expect("the data") + "id=\"comparison\">".len();
    let data = &dom[start..start + dom[start..].find("</script>").expect("its end")];
    let json: Value = serde_json::from_str(data).expect("JSON");
    for v in json["variants"].as_array().expect("variants") {
        let size = v["file_bytes"].as_f64().expect("bytes") / 1_048_576.0;
        let value = v["metrics"][0]["value"].as_f64().expect("judged");
        let point = format!(
            "data-variant=\"{}\" data-cost=\"{size}\" data-value=\"{value}\"",
            v["name"].as_str().expect("a name")
        );
        assert!(dom.contains(&point), "{point}");
    }
}
