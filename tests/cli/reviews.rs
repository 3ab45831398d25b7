//! The trained classifier of `fixtures/reviews` answers as it did in Transformers, and compresses well.

use crate::support::{Dir, reviews, stored, write_tensors};
use compress::checkpoint::Tensor;
use compress::data::tokenizer::Tokenizer;
use serde_json::Value;
use std::path::Path;

fn expected() -> Value {
    serde_json::from_slice(&std::fs::read(reviews("expected.json")).unwrap()).unwrap()
}

#[test]
fn the_fixture_is_tokenized_as_in_transformers() {
    let (expected, model) = (expected(), reviews("model"));
    let tokenizer = Tokenizer::load(Path::new(&model)).unwrap().unwrap();
    for row in expected["first_dev_rows"].as_array().unwrap() {
        let ids = tokenizer.encode(row["sentence"].as_str().unwrap(), None, 64).unwrap().ids;
        assert_eq!(serde_json::json!(ids), row["input_ids"]);
    }
}

#[test]
fn accuracy_is_that_of_transformers() {
    let (expected, dir) = (expected(), Dir::new());
    let found = dir.json(&["eval", &reviews("model"), "--data", &reviews("dev.tsv")]);
    assert_eq!(found["examples"], expected["dev"]["total"]);
    assert_eq!(found["max_length"], expected["max_length"]);
    assert_eq!(found["metrics"][0]["name"], "accuracy");
    assert_eq!(found["metrics"][0]["value"], expected["dev"]["accuracy"]);
}

#[test]
fn logits_are_those_of_transformers() {
    let (expected, dir) = (expected(), Dir::new());
    let rows = expected["first_dev_rows"].as_array().unwrap();
    assert!(!rows.is_empty());
    let numbers = |value: &Value| -> Vec<f64> {
        value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
    };
    let longest = rows.iter().map(|r| numbers(&r["input_ids"]).len()).max().unwrap();
    let (mut ids, mut mask) = (Vec::new(), Vec::new());
    for row in rows {
        let mut row: Vec<i64> = numbers(&row["input_ids"]).iter().map(|&v| v as i64).collect();
        mask.extend((0..longest).map(|i| (i < row.len()) as i64));
        row.resize(longest, 0);
        ids.extend(row);
    }
    let shape = [rows.len(), longest];
    let tensors = [
        Tensor::from_i64("input_ids", &shape, &ids),
        Tensor::from_i64("attention_mask", &shape, &mask),
    ];
    write_tensors(&dir.path("in.safetensors"), &tensors);
    dir.ok(&["forward", &reviews("model"), "--inputs", "in.safetensors", "-o", "out.safetensors"]);
    let found = stored(&dir.path("out.safetensors"))["logits"].f32();
    for (row, found) in rows.iter().zip(found.chunks(2)) {
        for (expected, &found) in numbers(&row["logits"]).iter().zip(found) {
            // Logits are up to 4: 1e-4 is about f32 rounding over two layers, ten times.
            assert!((expected - found as f64).abs() < 1e-4, "{found} for {expected} in {row}");
        }
    }
}

/// Points of accuracy: what the README promises for this model must not rot.
#[test]
fn compression_costs_little_accuracy() {
    let dir = Dir::new();
    let (model, dev) = (reviews("model"), reviews("dev.tsv"));
    let run = ["--passes", "prune(sparsity=0.3),binarize(planes=3,rank=4)", &model, "-o", "out"];
    let report = dir.json(&[&run[..], &["--eval", &dev]].concat());
    let accuracy = |when: &str| report["report"]["quality"][when][0]["value"].as_f64().unwrap();
    assert_eq!(accuracy("before"), expected()["dev"]["accuracy"]);
    assert!(accuracy("after") > accuracy("before") - 0.02, "{}", accuracy("after"));
}
