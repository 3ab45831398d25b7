//! The pass `vocab` from the command line: a smaller model, its tokenizer with it, and what other passes make of both.

use crate::determinism::timeless;
use crate::support::{Dir, reviews, stored};
use serde_json::Value;
use std::fs;
use std::path::Path;

/// A folder with texts to keep, other texts to judge by, and a part of the first that a short run trains on.
fn with_texts() -> Dir {
    let dir = Dir::new();
    let part = |name: &str, lines: usize| {
        let text = fs::read_to_string(reviews(name)).unwrap();
        text.split_inclusive('\n').take(lines).collect::<String>()
    };
    dir.write("keep.tsv", part("train.tsv", 1501));
    dir.write("data.tsv", part("train.tsv", 97));
    dir.write("eval.tsv", part("dev.tsv", 201));
    dir
}

fn notes(report: &Value, pass: usize) -> Vec<String> {
    let notes = report["passes"][pass]["notes"].as_array().unwrap();
    notes.iter().map(|note| note.as_str().unwrap().to_string()).collect()
}

#[test]
fn an_output_is_whole_and_says_what_texts_lose() {
    let dir = with_texts();
    let model = reviews("model");
    let outputs = ["1", "2"].map(|threads| {
        let run =
            ["-q", "--threads", threads, "--passes", "vocab(keep=keep.tsv)", "--eval", "eval.tsv"];
        let found = dir.json(&[&run[..], &[&model, "-o", threads]].concat());
        (found["report"].clone(), timeless(&dir, threads))
    });
    let [(report, one), (_, two)] = outputs;
    assert_eq!(one, two, "1 and 2 threads");
    insta::assert_snapshot!(notes(&report, 0).join("\n"));
    assert_eq!(report["passes"][0]["figures"]["keep_same"], 1.0);
    let rows = report["passes"][0]["figures"]["rows"].as_f64().unwrap() as u64;
    assert_eq!(report["after"]["vocab"], rows);
    assert_eq!(report["loads_natively"], true);
    dir.ok(&["verify", "1"]);
    assert!(dir.ok(&["inspect", "1"]).contains("vocabulary 1,303, at most 64 positions"));
    let eval = dir.json(&["eval", "1", "--data", "eval.tsv"]);
    assert_eq!(eval["metrics"], report["quality"]["after"]);
    // Each model in its own tokens.
    let against = dir.json(&["eval", "1", "--data", "eval.tsv", "--teacher", &model]);
    assert_eq!(against["fidelity"], report["quality"]["fidelity"]);
    let lines = fs::read_to_string(dir.path("1/vocab.txt")).unwrap();
    assert_eq!(lines.lines().count() as u64, rows);

    // On the texts that were kept, nothing has changed at all.
    let same = dir.json(&["eval", "1", "--data", "keep.tsv", "--teacher", &model]);
    let told = |name: &str| {
        let found = same["fidelity"].as_array().unwrap().iter().find(|m| m["name"] == name);
        found.unwrap()["value"].as_f64().unwrap()
    };
    assert_eq!((told("agreement"), told("relative_l2")), (1.0, 0.0));
}

/// Passes behind `vocab` see texts and a teacher in its tokens: what they make is what they would have made before.
#[test]
fn the_order_of_passes_changes_no_byte() {
    let dir = with_texts();
    let model = reviews("model");
    let run = |passes: &str, out: &str| {
        let args = ["-q", "--calib", "data.tsv", "--passes", passes, &model, "-o", out];
        dir.json(&args)["report"].clone()
    };
    let prune = "prune(sparsity=0.4,mode=text)";
    run(&format!("vocab(keep=keep.tsv),{prune}"), "first");
    let report = run(&format!("{prune},vocab(keep=keep.tsv)"), "last");
    assert_eq!(stored(&dir.path("first")), stored(&dir.path("last")));
    let tokenizer = |out: &str| dir.tree(out)["/tokenizer.json"].clone();
    assert_eq!(tokenizer("first"), tokenizer("last"));
    assert_eq!(report["passes"][1]["name"], "vocab");
    let vocab = "vocab(keep=keep.tsv)";
    let error =
        dir.fails(3, &["-q", "--passes", &format!("quantize,{vocab}"), &model, "-o", "packed"]);
    insta::assert_snapshot!(error);
    dir.ok(&["-q", "--passes", "quantize", &model, "-o", "packed"]);
    let error = dir.fails(4, &["-q", "--passes", vocab, "packed", "-o", "smaller"]);
    insta::assert_snapshot!(error);
}

/// A student that is the teacher but for rows that no text reads has nothing to learn from it.
#[test]
fn teacher_and_student_see_the_same_words() {
    let dir = with_texts();
    let model = reviews("model");
    let args = ["-q", "--data", "data.tsv", "--passes", "vocab,distill(steps=2,task=0)", &model];
    let report =
        dir.json(&[&args[..], &["-o", "out", "--eval", "eval.tsv"]].concat())["report"].clone();
    let training = &report["passes"][1]["training"][0];
    assert!(training["judged_before"].as_f64().unwrap() < 1e-9, "{training:#}");
    let told = notes(&report, 0);
    assert!(told.iter().any(|n| n.starts_with("data.tsv: 100.00 % of")), "{told:?}");
    assert!(report["passes"][0]["figures"]["eval_same"].as_f64().unwrap() < 1.0);
    dir.ok(&["verify", "out"]);
}

#[test]
fn random_tokens_and_token_pruning_work_in_the_new_ids() {
    let dir = with_texts();
    let model = reviews("model");
    let args = ["-q", "--calib", "random", "--passes", "vocab(keep=keep.tsv)", &model, "-o", "a"];
    let report = dir.json(&args)["report"].clone();
    // The words are other rows of the same table.
    let same = report["quality"]["fidelity"].as_array().unwrap();
    assert_eq!(same[0]["value"], 1.0, "{same:?}");
    let args =
        ["-q", "--passes", "vocab(keep=keep.tsv),tokens(mode=ratio),binarize(planes=4)", &model];
    dir.ok(&[&args[..], &["-o", "b", "--eval", "eval.tsv"]].concat());
    dir.ok(&["verify", "b"]);
}

#[test]
fn what_is_missing_is_named() {
    let dir = with_texts();
    let model = reviews("model");
    let mut text = String::new();
    for (code, passes) in [
        (4, "vocab"),
        (6, "vocab(keep=nowhere.tsv)"),
        (4, "vocab(keep=\"keep.doc\")"),
        (3, "vocab(keep=keep.tsv,size=10)"),
        (3, "vocab(min_count=0)"),
        (3, "vocab(columns=[\"a\"])"),
        (4, "vocab(keep=keep.tsv,columns=[\"nosuch\"])"),
        (3, "vocab(keep=keep.tsv),vocab(keep=keep.tsv)"),
        (3, "vocab(kepe=keep.tsv)"),
    ] {
        let args = ["-q", "--passes", passes, &model, "-o", "out"];
        text += &format!("{passes}\n    {}\n", dir.fails(code, &args));
    }
    insta::assert_snapshot!(text.replace(&model, "MODEL"));
}

/// Tokens and logits of the texts, of the model at each folder.
const PYTHON: &str = r#"
import json, sys
try:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
except ImportError:
    sys.exit(77)
torch.set_num_threads(1)
texts = json.loads(sys.argv[1])
for folder in sys.argv[2:]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model, info = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    kinds = ["missing_keys", "unexpected_keys", "mismatched_keys"]
    problems = [str(key) for kind in kinds for key in info[kind]]
    tokens, logits = [], []
    for text in texts:
        one = tokenizer(text, return_tensors="pt")
        tokens.append(tokenizer.convert_ids_to_tokens(one["input_ids"][0].tolist()))
        with torch.no_grad():
            logits += model.eval()(**one).logits.flatten().tolist()
    print(json.dumps({"problems": problems, "tokens": tokens, "logits": logits, "size": len(tokenizer)}))
"#;

/// With torch and transformers, in the Python of `COMPRESS_PYTHON` or `python3`.
#[test]
fn transformers_loads_the_smaller_model_with_its_tokenizer() {
    let dir = with_texts();
    let model = reviews("model");
    dir.ok(&["-q", "--passes", "vocab(keep=keep.tsv)", &model, "-o", "out"]);
    let texts = fs::read_to_string(dir.path("keep.tsv")).unwrap();
    let texts: Vec<&str> =
        texts.lines().skip(1).take(30).map(|line| line.split('\t').next().unwrap()).collect();
    let python = std::env::var("COMPRESS_PYTHON").unwrap_or_else(|_| "python3".into());
    let mut command = std::process::Command::new(python);
    command.args(["-c", PYTHON, &serde_json::json!(texts).to_string()]);
    command.arg(Path::new(&model)).arg(dir.path("out")).env("HF_HUB_OFFLINE", "1");
    let Some(run) = command.output().ok().filter(|run| run.status.code() != Some(77)) else {
        println!("skipped: no Python with torch and transformers");
        return;
    };
    let told = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success(), "{told}");
    let lines: Vec<Value> = String::from_utf8_lossy(&run.stdout)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let [before, after] = &lines[..] else { panic!("{told}") };
    assert_eq!(after["problems"], serde_json::json!([]), "{told}");
    assert_eq!((&before["tokens"], &before["logits"]), (&after["tokens"], &after["logits"]));
    assert!(after["size"].as_u64() < before["size"].as_u64());
}
