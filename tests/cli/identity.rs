//! Passes that change nothing change no byte.

use crate::support::{Dir, stored, write_tensors};
use crate::tiny::{HIDDEN, Tiny, VOCAB};
use compress::checkpoint::{Dtype, Tensor};
use serde_json::Value;
use std::fs;
use std::path::Path;

type Make = fn(&Path);

const INPUTS: &[(&str, Make)] = &[
    ("a classifier", |m| Tiny::classifier().save(m)),
    ("F16", |m| Tiny::classifier().converted(Dtype::F16).save(m)),
    ("BF16", |m| Tiny::classifier().converted(Dtype::BF16).save(m)),
    ("mixed dtypes", |m| {
        let mut tiny = Tiny::classifier().converted(Dtype::BF16);
        tiny.tensors[..8].clone_from_slice(&Tiny::classifier().converted(Dtype::F16).tensors[..8]);
        tiny.save(m);
    }),
    ("shards", |m| Tiny::classifier().save_sharded(m)),
    ("packed matrices", |m| Tiny::packed().save(m)),
    ("old names of LayerNorm", |m| {
        let mut tiny = Tiny::classifier();
        for t in &mut tiny.tensors {
            t.name = t
                .name
                .replace("LayerNorm.weight", "LayerNorm.gamma")
                .replace("LayerNorm.bias", "LayerNorm.beta");
        }
        tiny.save(m);
    }),
    ("a masked LM with tensors that it does not use", |m| {
        let mut tiny = Tiny::masked_lm();
        let positions: Vec<i64> = (0..32).collect();
        tiny.tensors.push(Tensor::from_i64("bert.embeddings.position_ids", &[1, 32], &positions));
        for (name, shape) in [
            ("bert.pooler.dense.weight", &[HIDDEN, HIDDEN][..]),
            ("bert.pooler.dense.bias", &[HIDDEN]),
            ("cls.seq_relationship.weight", &[2, HIDDEN]),
            ("cls.seq_relationship.bias", &[2]),
        ] {
            tiny.tensor(name, shape);
        }
        let word = tiny.find("word_embeddings.weight").clone();
        tiny.tensors.push(word.renamed("cls.predictions.decoder.weight"));
        tiny.save(m);
    }),
    ("a masked LM whose decoder is its own", |m| {
        let mut tiny = Tiny::masked_lm();
        tiny.config["tie_word_embeddings"] = false.into();
        tiny.tensor("cls.predictions.decoder.weight", &[VOCAB, HIDDEN]);
        tiny.save(m);
    }),
    ("an encoder alone, its names without prefix", |m| {
        let mut tiny = Tiny::classifier();
        tiny.config["architectures"] = serde_json::json!(["BertModel"]);
        tiny.tensors.retain(|t| !t.name.starts_with("classifier"));
        for t in &mut tiny.tensors {
            t.name = t.name.replace("bert.", "");
        }
        tiny.save(m);
    }),
    ("a lone file", |m| {
        Tiny::classifier().save(m);
        fs::rename(m.join("model.safetensors"), m.join("bert.safetensors")).unwrap();
    }),
];

#[test]
fn passes_that_change_nothing_keep_every_tensor() {
    for (name, make) in INPUTS {
        let dir = Dir::new();
        make(&dir.path("model"));
        let input = if *name == "a lone file" { "model/bert.safetensors" } else { "model" };
        let before = (stored(&dir.path("model")), dir.tree("model"));
        let packed = *name == "packed matrices"; // nothing left to prune, and said so
        for (i, passes) in ["", "prune(sparsity=0)"].into_iter().enumerate() {
            let out = format!("out{i}");
            dir.ok(&["--passes", passes, input, "-o", &out]);
            assert_eq!(stored(&dir.path(&out)), before.0, "{name}, `{passes}`");
            assert!(dir.tree("model") == before.1, "{name}: the input changed");
            for file in ["vocab.txt", "tokenizer_config.json"] {
                assert_eq!(
                    dir.tree(&out)[&format!("/{file}")],
                    before.1[&format!("/{file}")],
                    "{name}: {file}"
                );
            }
            if passes.is_empty() && !packed {
                assert_eq!(config(&dir.path(&out)), config(&dir.path("model")), "{name}");
            }
            dir.ok(&["verify", &out]);
        }
    }
}

#[test]
fn an_output_is_an_input() {
    let dir = Dir::with_tiny();
    dir.ok(&["--passes", "prune(sparsity=0.5),binarize(planes=2,rank=2)", "model", "-o", "small"]);
    dir.ok(&["--passes", "", "small", "-o", "again"]);
    assert_eq!(stored(&dir.path("again")), stored(&dir.path("small")));
    let data = ["--data", "data.tsv", "--teacher", "small"];
    let same = dir.json(&[&["eval", "again"], &data[..]].concat());
    assert_eq!(same["fidelity"][0]["value"], 1.0, "{same:#}");
}

#[test]
fn output_shards_are_read_back() {
    let dir = Dir::new();
    let mut tiny = Tiny::masked_lm();
    tiny.config["vocab_size"] = 20_000.into(); // 1.28 MB: more than one shard of 1 MB
    tiny.remove("word_embeddings.weight");
    tiny.tensor("bert.embeddings.word_embeddings.weight", &[20_000, HIDDEN]);
    tiny.remove("cls.predictions.bias");
    tiny.tensor("cls.predictions.bias", &[20_000]);
    tiny.save(&dir.path("model"));
    dir.ok(&["--passes", "", "--shard-size", "1", "model", "-o", "out"]);
    assert!(dir.path("out/model.safetensors.index.json").exists());
    assert_eq!(stored(&dir.path("out")), stored(&dir.path("model")));
    dir.ok(&["--passes", "", "out", "-o", "whole"]);
    assert_eq!(stored(&dir.path("whole/model.safetensors")), stored(&dir.path("model")));
    dir.ok(&["verify", "out"]);
}

/// Weights are what is copied; nothing else may come along.
#[test]
fn stale_weights_and_code_stay_behind() {
    let dir = Dir::with_tiny();
    for name in [
        "pytorch_model.bin",
        "modeling_x.py",
        "training_args.bin",
        "README.md",
        "LICENSE.txt",
        "merges.txt",
    ] {
        dir.write(&format!("model/{name}"), "x");
    }
    fs::create_dir(dir.path("model/onnx")).unwrap();
    dir.write("model/onnx/model.onnx", "x");
    write_tensors(&dir.path("model/other.safetensors"), &Tiny::classifier().tensors);
    dir.ok(&["--passes", "prune", "model", "-o", "out"]);
    let files: Vec<String> = dir.tree("out").into_keys().collect();
    insta::assert_snapshot!(files.join(" "), @"/ /LICENSE.txt /README.md /config.json /measured.json /merges.txt /model.safetensors /recipe.toml /report.json /report.md /tokenizer_config.json /vocab.txt");
}

fn config(folder: &Path) -> Value {
    serde_json::from_slice(&fs::read(folder.join("config.json")).unwrap()).unwrap()
}
