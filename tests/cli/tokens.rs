//! The pass `tokens` from the command line: budgets, what an output is, and in which orders passes run.

use crate::determinism::timeless;
use crate::support::{Dir, reviews, stored, write_tensors};
use crate::tiny::{HIDDEN, Tiny};
use compress::checkpoint::Tensor;
use serde_json::Value;
use std::fs;

/// A folder with a part of the reviews that the models are judged by.
fn with_reviews() -> Dir {
    let dir = Dir::new();
    let dev = fs::read_to_string(reviews("dev.tsv")).unwrap();
    dir.write("eval.tsv", dev.split_inclusive('\n').take(201).collect::<String>());
    dir
}

#[track_caller]
fn number(report: &Value, pointer: &str) -> f64 {
    let found = report.pointer(pointer).and_then(Value::as_f64);
    found.unwrap_or_else(|| panic!("no {pointer} in {report:#}"))
}

/// FLOPs of the layers that are left, by the pass that stands `index`th.
fn net_flops(report: &Value, index: usize) -> f64 {
    number(report, &format!("/passes/{index}/figures/net_flops"))
}

/// FLOPs on the texts of --eval, as a share of those before.
fn flops_left(report: &Value) -> f64 {
    number(report, "/quality/flops/1") / number(report, "/quality/flops/0")
}

/// Runs `passes` on the model of the reviews, once on one thread and once on two, and returns the report. The output
/// must be what every output is: readable, the same bytes, with its schedule in sight.
#[track_caller]
fn compressed(dir: &Dir, passes: &str, more: &[&str]) -> Value {
    let model = reviews("model");
    let outputs = ["1", "2"].map(|threads| {
        let run = ["-q", "--threads", threads, "--passes", passes, "--eval", "eval.tsv", &model];
        let found = dir.json(&[&run[..], &["-o", threads], more].concat());
        (found["report"].clone(), timeless(dir, threads))
    });
    let [(report, one), (_, two)] = outputs;
    assert_eq!(one, two, "{passes}: 1 and 2 threads");
    dir.ok(&["verify", "1"]);
    let shown = dir.ok(&["inspect", "1"]);
    assert!(shown.contains("units  tokens  parameters"), "{shown}");
    let eval = dir.json(&["eval", "1", "--data", "eval.tsv"]);
    assert_eq!(eval["metrics"][0]["value"], report["quality"]["after"][0]["value"], "{passes}");
    let (before, after) =
        (number(&report, "/quality/before/0/value"), number(&report, "/quality/after/0/value"));
    assert!(after > before - 0.06, "{passes}: accuracy {before} to {after}");
    report
}

#[test]
fn built_in_text_finds_a_schedule() {
    let dir = with_reviews();
    let report = compressed(&dir, "tokens", &[]);
    assert!(net_flops(&report, 0) <= 0.7, "{report:#}");
    assert!((flops_left(&report) - net_flops(&report, 0)).abs() < 0.06, "{}", flops_left(&report));
    // No tensor has changed, and only `compress` makes use of that.
    let weights = |path: &std::path::Path| stored(&path.join("model.safetensors"));
    assert_eq!(weights(&dir.path("1")), weights(reviews("model").as_ref()));
    assert_eq!(report["loads_natively"], false);
    assert_eq!(report["loads_without_schedule"], true);
    let share = |layer: usize| number(&report, &format!("/after/layers/{layer}/tokens"));
    assert!(share(0) < 1.0 && share(1) == share(0), "{report:#}");
    assert!(report["before"]["layers"][0].get("tokens").is_none());
    for file in ["1/README.md", "1/report.md"] {
        let text = fs::read_to_string(dir.path(file)).unwrap();
        assert!(text.contains("they run all tokens") && text.contains("no padding |"), "{text}");
    }
    let text = fs::read_to_string(dir.path("1/report.md")).unwrap();
    let row = format!("{:.1} % |", 100.0 * share(0));
    assert!(text.contains("| units | tokens | parameters |") && text.contains(&row), "{text}");
}

#[test]
fn weights_alone_give_every_layer_the_same_share() {
    let dir = with_reviews();
    let report = compressed(&dir, "tokens(mode=ratio)", &["--calib", "none"]);
    assert!(net_flops(&report, 0) <= 0.7, "{report:#}");
    // Priced by texts of 64 tokens; of shorter ones the first is a larger part.
    assert!((flops_left(&report) - net_flops(&report, 0)).abs() < 0.1, "{}", flops_left(&report));
}

#[test]
fn as_much_is_dropped_as_answers_bear() {
    let dir = with_reviews();
    let report = compressed(&dir, "tokens(drop=2%)", &["--calib-texts", "128"]);
    assert!(net_flops(&report, 0) < 1.0, "{report:#}");
    let agreement = number(&report, "/quality/fidelity/0/value");
    assert!(agreement > 0.93, "{agreement} of the answers are the same");
    let recipe = fs::read_to_string(dir.path("1/recipe.toml")).unwrap();
    assert!(recipe.contains("drop = \"2%\""), "{recipe}");
}

#[test]
fn passes_stack_with_tokens_in_every_order_that_works() {
    let dir = with_reviews();
    let cases = [
        ("tokens(flops=0.6),binarize(planes=4)", 0, 0.6),
        ("binarize(planes=4),tokens(flops=0.6)", 1, 0.6),
        ("prune(sparsity=0.25,mode=text),tokens,binarize", 1, 0.7),
    ];
    for (passes, place, most) in cases {
        for out in ["1", "2"] {
            let _ = fs::remove_dir_all(dir.path(out));
        }
        let report = compressed(&dir, passes, &["--calib-texts", "128"]);
        let (net, left) = (net_flops(&report, place), flops_left(&report));
        assert!(net <= most, "{passes}: {report:#}");
        match passes.starts_with("prune") {
            true => assert!(left < 0.95 * net, "{passes}: {left}, {net} of what prune left"),
            false => assert!((left - net).abs() < 0.06, "{passes}: {left}, {net}"),
        }
        assert_eq!(report["loads_natively"], false);
        assert!(report.get("loads_without_schedule").is_none(), "{passes}: packed besides");
    }
}

#[test]
fn what_cannot_be_is_refused() {
    let dir = with_reviews();
    let model = reviews("model");
    let mut text = String::new();
    let mut refuse = |passes: &str, calib: &str, model: &str, code: i32| {
        let args = ["-q", "--passes", passes, "--calib", calib, model, "-o", "out"];
        text += &format!("{passes}\n    {}\n", dir.fails(code, &args));
    };
    for (passes, calib) in [
        ("tokens(flops=0)", "none"),
        ("tokens(flops=1.5)", "none"),
        ("tokens(drop=150%)", "builtin"),
        ("tokens(drop=many)", "builtin"),
        ("tokens(drop=1%,flops=0.5)", "builtin"),
        ("tokens(drop=1%,mode=ratio)", "builtin"),
        ("tokens(drop=1%)", "none"),
        ("tokens(mode=text)", "none"),
        ("tokens,tokens", "none"),
        ("tokens,prune", "none"),
        ("tokens,binarize,prune", "none"),
    ] {
        refuse(passes, calib, &model, 3);
    }
    for passes in ["tokens(from=1)", "tokens(flops=0.05)", "tokens(flops=0.05,mode=ratio)"] {
        refuse(passes, "builtin", &model, 4);
    }
    let run = ["-q", "--calib", "none", "--passes", "tokens"];
    dir.ok(&[&run[..], &[&model, "-o", "short"]].concat());
    let args = ["-q", "--passes", "prune", "short", "-o", "out"];
    text += &format!("prune, later\n    {}\n", dir.fails(4, &args));
    // A schedule is found anew where there is one.
    dir.ok(&[&run[..4], &["tokens(flops=0.6)", "short", "-o", "shorter"]].concat());
    dir.ok(&["verify", "shorter"]);
    insta::assert_snapshot!(text, @r#"
    tokens(flops=0)
        pass `tokens`: `flops` is 0, expected a share that is left, in (0, 1]
    tokens(flops=1.5)
        pass `tokens`: `flops` is 1.5, expected a share that is left, in (0, 1]
    tokens(drop=150%)
        pass `tokens`: `drop` is 1.5, expected a share below 1, or per cent below 100
    tokens(drop=many)
        cannot read the recipe: found `drop="many"` of `tokens` (`many` is no share, as 0.5%), expected what `compress passes tokens` lists
    tokens(drop=1%,flops=0.5)
        pass `tokens`: `flops` is given beside drop, expected one target
    tokens(drop=1%,mode=ratio)
        pass `tokens`: `drop` is given with mode=ratio, expected a text, to see what changes
    tokens(drop=1%)
        pass `tokens`: `drop` is given without calibration text, expected a text by --calib, to see what changes
    tokens(mode=text)
        pass `tokens`: `mode` is "text", without calibration text, expected a text by --calib, or mode=ratio
    tokens,tokens
        cannot read the recipe: found `tokens` after `tokens`, expected `tokens` once: a second one cannot build on the first
    tokens,prune
        cannot read the recipe: found `prune` after `tokens`, expected `prune` before `tokens`: it does not run on what `tokens` leaves
    tokens,binarize,prune
        cannot read the recipe: found `prune` after `tokens`, expected `prune` before `tokens`: it does not run on what `tokens` leaves
    tokens(from=1)
        pass `tokens` failed: no layer from 1 on can drop tokens, but dropping takes attention heads, and a layer behind them that it saves; leave tokens out for this model, or give a smaller `from`
    tokens(flops=0.05)
        pass `tokens` failed: dropping all tokens where that is allowed leaves 0.183 of the FLOPs, but flops=0.05 is asked for; ask for a larger share, or give a smaller `from`
    tokens(flops=0.05,mode=ratio)
        pass `tokens` failed: dropping all tokens where that is allowed leaves 0.183 of the FLOPs, but flops=0.05 is asked for; ask for a larger share, or give a smaller `from`
    prune, later
        pass `prune` failed: the model drops tokens by a schedule, but that was found for the heads that are there; prune the checkpoint as it was before `tokens`, then run `tokens`
    "#);
}

/// Three texts, one padded on the right and one on the left.
const IDS: [[i64; 7]; 3] =
    [[2, 20, 25, 30, 21, 26, 3], [2, 7, 11, 35, 3, 0, 0], [0, 0, 2, 9, 12, 14, 3]];

#[test]
fn forward_stores_zeros_for_tokens_that_are_gone() {
    let dir = Dir::new();
    Tiny::tagger().save(&dir.path("model"));
    let run = ["-q", "--calib", "none", "--passes", "tokens(flops=0.8)", "model", "-o", "short"];
    dir.ok(&run);
    let mask: Vec<i64> = IDS.as_flattened().iter().map(|&id| i64::from(id != 0)).collect();
    let tensors = [
        Tensor::from_i64("input_ids", &[3, 7], IDS.as_flattened()),
        Tensor::from_i64("attention_mask", &[3, 7], &mask),
    ];
    write_tensors(&dir.path("in.safetensors"), &tensors);
    let mut outputs = ["model", "short"].map(|model| {
        let args = ["forward", model, "--inputs", "in.safetensors", "-o", "out.safetensors"];
        dir.ok(&[&args[..], &["--force", "--hidden-states", "--attentions"]].concat());
        stored(&dir.path("out.safetensors"))
    });
    let whole = std::mem::take(&mut outputs[0]);
    let short = &outputs[1];
    let there = |name: &str, width: usize| -> Vec<bool> {
        short[name].f32().chunks(width).map(|row| row.iter().any(|&x| x != 0.0)).collect()
    };
    let given: Vec<bool> = mask.iter().map(|&m| m != 0).collect();
    // The layer that drops tokens still computes them; the next one does not.
    for name in ["hidden_states.0", "hidden_states.1", "attentions.0"] {
        assert_eq!(short[name], whole[name], "{name}");
    }
    assert_eq!(there("hidden_states.1", HIDDEN), given);
    let left = there("hidden_states.2", HIDDEN);
    assert!(left.iter().zip(&given).all(|(left, given)| !left || *given), "padding stays zero");
    for (row, given) in left.chunks(7).zip(given.chunks(7)) {
        let count = |row: &[bool]| row.iter().filter(|t| **t).count();
        assert!((2..count(given)).contains(&count(row)), "{left:?}");
        assert!(row[given.iter().position(|t| *t).unwrap()], "the first token stays: {left:?}");
    }
    let attention = short["attentions.1"].f32();
    for (i, row) in attention.chunks(7).enumerate() {
        let (text, query) = (i / 14, i % 7);
        let keys = &left[7 * text..7 * text + 7];
        let seen: Vec<bool> = row.iter().map(|&p| p != 0.0).collect();
        let sum: f32 = row.iter().sum();
        match keys[query] {
            true => assert!(seen == keys && (sum - 1.0).abs() < 1e-6, "row {i}: {row:?}"),
            false => assert_eq!(sum, 0.0, "row {i}"),
        }
    }
    // A head of words answers for all of them, by the last states there were.
    assert_eq!(there("logits", 3), given);
}
