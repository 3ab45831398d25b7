//! Training: recovery by the pass `distill`, and fine-tuning by `compress train`.

mod finetuning;
mod recovery;
mod refusals;
pub mod resuming;

use crate::support::{Dir, reviews};
use crate::tiny::{HIDDEN, Tiny};
use serde_json::{Value, json};
use std::fs;

/// The arguments of a line as a user types it.
pub fn words(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}

/// The trained classifier of `fixtures/reviews` at `model`, with `train.tsv` and `dev.tsv`.
pub fn with_reviews() -> Dir {
    let dir = Dir::new();
    fs::create_dir(dir.path("model")).unwrap();
    for file in fs::read_dir(reviews("model")).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), dir.path("model").join(file.file_name())).unwrap();
    }
    for file in ["train.tsv", "dev.tsv"] {
        fs::copy(reviews(file), dir.path(file)).unwrap();
    }
    dir
}

/// What a model of a folder is, read from its config.json.
pub fn config(dir: &Dir, folder: &str) -> Value {
    serde_json::from_slice(&fs::read(dir.path(folder).join("config.json")).unwrap()).unwrap()
}

pub fn report(dir: &Dir, folder: &str) -> Value {
    serde_json::from_slice(&fs::read(dir.path(folder).join("report.json")).unwrap()).unwrap()
}

/// How the last pass of a run trained.
fn training(dir: &Dir, folder: &str) -> Value {
    let report = report(dir, folder);
    report["passes"].as_array().unwrap().last().unwrap()["training"][0].clone()
}

/// The names of the parts of the loss.
fn losses(training: &Value) -> String {
    let points = training["points"].as_array().unwrap();
    let parts = points.last().unwrap()["losses"].as_array().unwrap();
    parts.iter().map(|part| part[0].as_str().unwrap()).collect::<Vec<_>>().join(" ")
}

/// A metric of the report's quality, `before` or `after`.
fn metric(report: &Value, when: &str, name: &str) -> f64 {
    let metrics = report["quality"][when].as_array().unwrap();
    let found = metrics.iter().find(|m| m["name"] == name);
    found.unwrap_or_else(|| panic!("no {name} in {metrics:#?}"))["value"].as_f64().unwrap()
}

/// Saves the encoder of [`Tiny`] under every kind of head, each at its name.
pub fn save_every_head(dir: &Dir) {
    Tiny::classifier().save(&dir.path("classifier"));
    let mut regression = Tiny::classifier();
    regression.config["id2label"] = json!({"0": "score"});
    regression.remove("classifier.weight");
    regression.remove("classifier.bias");
    regression.tensor("classifier.weight", &[1, HIDDEN]);
    regression.tensor("classifier.bias", &[1]);
    regression.save(&dir.path("regression"));
    Tiny::tagger().save(&dir.path("tagger"));
    Tiny::reader().save(&dir.path("reader"));
    Tiny::masked_lm().save(&dir.path("masked"));
    bare().save(&dir.path("bare"));
    bare().save(&dir.path("embedder"));
    let modules = json!([
        {"type": "sentence_transformers.models.Transformer", "path": ""},
        {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"},
    ]);
    dir.write("embedder/modules.json", modules.to_string());
    dir.write("embedder/sentence_bert_config.json", r#"{"max_seq_length": 16}"#);
    fs::create_dir(dir.path("embedder/1_Pooling")).unwrap();
    let pooling = json!({"pooling_mode_mean_tokens": true});
    dir.write("embedder/1_Pooling/config.json", pooling.to_string());
}

/// The encoder of [`Tiny`] without a head; its tensors have no prefix.
fn bare() -> Tiny {
    let mut tiny = Tiny::classifier();
    tiny.remove("classifier.weight");
    tiny.remove("classifier.bias");
    tiny.config["architectures"] = json!(["BertModel"]);
    tiny.config.as_object_mut().unwrap().remove("id2label");
    for tensor in &mut tiny.tensors {
        tensor.name = tensor.name.strip_prefix("bert.").unwrap().to_string();
    }
    tiny
}

/// Writes examples in the words of [`Tiny`], 16 of each kind: `classes.tsv`, `scores.tsv`, `tags.jsonl`,
/// `answers.jsonl`, and `texts.txt` without labels.
pub fn write_examples(dir: &Dir) {
    let (things, verdicts) =
        (["film", "food", "we", "they"], ["good", "bad", "best", "very good", "worst"]);
    let (mut texts, mut classes) = (String::new(), "sentence\tlabel\n".to_string());
    let mut scores = "sentence\tscore\n".to_string();
    let (mut tags, mut answers) = (String::new(), String::new());
    for (i, thing) in things.into_iter().enumerate() {
        for (j, verdict) in verdicts.into_iter().take(4).enumerate() {
            let (good, begin) = (!verdict.contains("bad"), ["the", "a", "so", "but"][(i + j) % 4]);
            let text = format!("{begin} {thing} was {verdict}");
            texts += &format!("{text}\n");
            classes += &format!("{text}\t{}\n", if good { "praise" } else { "blame" });
            scores += &format!("{text}\t{}.5\n", j + 1);
            let words: Vec<&str> = text.split(' ').collect();
            let tag = |word: &&str| if *word == thing { "B-X" } else { "O" };
            let of: Vec<&str> = words.iter().map(tag).collect();
            tags += &format!("{}\n", json!({"tokens": words, "ner_tags": of}));
            let answer = json!({"text": [verdict], "answer_start": [text.find(verdict)]});
            let question = format!("was the {thing} good ?");
            let example = json!({"question": question, "context": text, "answers": answer});
            answers += &format!("{example}\n");
        }
    }
    dir.write("texts.txt", texts);
    dir.write("classes.tsv", classes);
    dir.write("scores.tsv", scores);
    dir.write("tags.jsonl", tags);
    dir.write("answers.jsonl", answers);
}
