//! The pass `distill`.

use super::{losses, report, save_every_head, training, with_reviews, words, write_examples};
use crate::determinism::timeless;
use crate::support::{Dir, stored};
use std::fs;

#[test]
fn recovery_helps_and_the_report_says_how() {
    let dir = with_reviews();
    let examples = fs::read_to_string(dir.path("dev.tsv")).unwrap();
    dir.write("dev.tsv", examples.split_inclusive('\n').take(101).collect::<String>());
    let run = "-q --passes prune(sparsity=0.7,repair=false,mode=text,rounds=1),distill(steps=20,rate=0.0005) \
               --calib-texts 48 --data train.tsv --data-texts 256 --eval dev.tsv model -o out";
    dir.ok(&words(run));
    dir.ok(&["verify", "out"]);
    let found = report(&dir, "out");
    // Of the 48 texts that calibration takes of the same file, it holds out six: nothing trains on them.
    assert_eq!(found["data"]["texts"], 250);
    assert_eq!(found["data"]["labels"], true);
    assert_eq!(found["calibration"]["source"], "train.tsv", "passes that watch take --data too");
    assert_eq!(found["quality"]["before"][0]["name"], "accuracy");

    let trained = training(&dir, "out");
    for (key, value) in [("texts", 235), ("held_out", 15), ("steps", 20), ("batch", 32)] {
        assert_eq!(trained[key], value, "{key}");
    }
    assert_eq!((&trained["data"], &trained["labels"]), (&"train.tsv".into(), &true.into()));
    assert_eq!(losses(&trained), "task prediction hidden");
    let steps = trained["points"].as_array().unwrap().iter().map(|p| p["step"].as_u64().unwrap());
    assert_eq!(steps.collect::<Vec<_>>(), [0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20]);
    let judged = |when: &str| trained[when].as_f64().unwrap();
    assert!(judged("judged_best") < 0.7 * judged("judged_before"), "{trained:#}");

    // What it wrote, with the arguments of its first line, makes it again.
    let recipe = fs::read_to_string(dir.path("out/recipe.toml")).unwrap();
    let first = recipe.lines().next().unwrap().strip_prefix("# compress --recipe recipe.toml ");
    let arguments = words(first.unwrap());
    let rest = ["-q", "model", "-o", "again", "--recipe", "out/recipe.toml"];
    dir.ok(&[&rest[..], &arguments].concat());
    let weights = |out: &str| dir.tree(out)["/model.safetensors"].clone();
    assert_eq!(weights("out"), weights("again"));
}

#[test]
fn threads_change_no_byte_of_a_recovered_model() {
    let dir = with_reviews();
    let recipes = [
        "binarize(planes=1,rank=4),distill(steps=2)",
        "binarize(planes=1,activations=1),distill(steps=2,dropout=0.1)",
        "prune(sparsity=0.5,mode=text),distill(steps=2,method=theseus)",
        "distill(steps=2,dropout=0.2,accumulate=2,batch=16,bucket=2,embeddings=true,attention=1,\
         sinkhorn=1,relations=1,embedding=1,matching=dynamic)",
    ];
    for (i, recipe) in recipes.into_iter().enumerate() {
        let [one, two] = ["1", "2"].map(|threads| {
            let out = format!("out-{i}-{threads}");
            let run = "-q --calib-texts 24 --data train.tsv --data-texts 48 model -o";
            let more = [out.as_str(), "--passes", recipe, "--threads", threads];
            dir.ok(&[&words(run)[..], &more].concat());
            dir.ok(&["verify", &out]);
            timeless(&dir, &out)
        });
        assert_eq!(one, two, "{recipe}");
    }
}

#[test]
fn dropout_and_the_seed_change_what_comes_out() {
    let dir = Dir::with_tiny();
    let made = [
        "--passes prune(sparsity=0.5,mode=weights),distill(steps=3,rate=0.001)",
        "--passes prune(sparsity=0.5,mode=weights),distill(steps=3,rate=0.001) --seed 1",
        "--passes prune(sparsity=0.5,mode=weights),distill(steps=3,rate=0.001,dropout=0.5)",
        "--passes prune(sparsity=0.5,mode=weights),distill(steps=3,rate=0.001,method=theseus)",
        "--passes prune(sparsity=0.5,mode=weights),distill(steps=3,rate=0.001,task=0)",
    ];
    let made = made.iter().enumerate().map(|(i, options)| {
        let out = format!("out{i}");
        let run = format!("-q --calib none --data data.tsv model -o {out}");
        dir.ok(&[&words(&run)[..], &words(options)].concat());
        dir.tree(&out)["/model.safetensors"].clone()
    });
    let made: Vec<String> = made.collect();
    for (i, one) in made.iter().enumerate() {
        assert!(!made[..i].contains(one), "run {i} made what an earlier one made");
    }
}

#[test]
fn nothing_is_lost_where_nothing_was_compressed() {
    let dir = with_reviews();
    let run = "-q --passes distill(steps=4,rate=0.01,task=0,hidden=0,warmup=0) --calib none \
               --data train.tsv --data-texts 64 model -o out";
    dir.ok(&words(run));
    // The teacher is the student: no step is better than none, and that one is kept.
    assert_eq!(training(&dir, "out")["best_step"], 0);
    assert!(stored(&dir.path("out")) == stored(&dir.path("model")));
}

#[test]
fn without_data_it_trains_on_the_calibration_text() {
    let dir = Dir::with_tiny();
    let source = |options: &str, out: &str| {
        let run = format!("-q --passes prune,distill(steps=2) model -o {out} {options}");
        dir.ok(&words(&run));
        let (report, training) = (report(&dir, out), training(&dir, out));
        assert!(report["data"].is_null(), "{report:#}");
        assert_eq!(training["data"], report["calibration"]["source"]);
        assert_eq!(training["labels"], report["calibration"]["labels"]);
        training["data"].as_str().unwrap().to_string()
    };
    assert_eq!(source("", "a"), "built-in text");
    assert_eq!(source("--calib random", "b"), "random tokens");
    assert_eq!(source("--calib data.tsv", "c"), "data.tsv");
    let message = dir.fails(4, &words("-q --passes distill --calib none model -o x"));
    insta::assert_snapshot!(message, @r#"pass `distill` failed: distill has no text, but it trains on some; give a file by --data, or drop `--calib none`"#);
    // A file to train on needs no text to watch.
    dir.ok(&words("-q --passes distill(steps=2) --calib none --data data.tsv model -o d"));
    assert_eq!(training(&dir, "d")["data"], "data.tsv");

    for file in ["vocab.txt", "tokenizer_config.json"] {
        fs::remove_file(dir.path("model").join(file)).unwrap();
    }
    assert_eq!(source("", "e"), "random tokens");
    insta::assert_snapshot!(
        dir.fails(4, &words("-q --passes distill --data data.tsv model -o x")),
        @r#"model has no tokenizer, but texts need one: tokenizer.json, or vocab.txt for WordPiece; copy it from the model that this one was trained from"#
    );
}

#[test]
fn steps_are_ten_passes_over_the_texts_unless_said() {
    let dir = Dir::with_tiny();
    write_examples(&dir);
    let steps = |options: &str, out: &str| {
        let run = format!("-q --calib none --data texts.txt model -o {out} --passes");
        dir.ok(&[&words(&run)[..], &[options]].concat());
        training(&dir, out)["steps"].as_u64().unwrap()
    };
    // 15 of 16 texts.
    assert_eq!(steps("distill", "a"), 10);
    assert_eq!(steps("distill(batch=4)", "b"), 40);
    assert_eq!(steps("distill(batch=4,accumulate=3)", "c"), 14);
    // A rate at which nothing gets better.
    assert_eq!(steps("distill(steps=50,rate=1,warmup=0,evaluate=2,patience=3)", "d"), 6);
}

/// Name, labelled data, the losses without labels.
const HEADS: &[(&str, Option<&str>, &str)] = &[
    ("classifier", Some("data.tsv"), "prediction hidden"),
    ("regression", Some("scores.tsv"), "prediction hidden"),
    ("tagger", Some("tags.jsonl"), "prediction hidden"),
    ("reader", Some("answers.jsonl"), "prediction hidden"),
    ("masked", None, "task prediction hidden"),
    ("embedder", None, "prediction similarity hidden"),
    ("bare", None, "prediction hidden"),
];

#[test]
fn every_head_is_recovered_with_labels_and_without() {
    let dir = Dir::with_tiny();
    write_examples(&dir);
    save_every_head(&dir);
    for (head, labelled, expected) in HEADS {
        let train = |method: &str, data: &str| {
            let run = format!(
                "-q --force --passes prune(sparsity=0.5,mode=text),distill(steps=4{method}) \
                 --calib-texts 16 --data {data} {head} -o out"
            );
            dir.ok(&words(&run));
            dir.ok(&["verify", "out"]);
            let training = training(&dir, "out");
            assert_eq!(training["steps"], 4, "{head}");
            (losses(&training), training["labels"] == true)
        };
        assert_eq!(train("", "texts.txt"), (expected.to_string(), false), "{head}");
        let alone = expected.replace(" hidden", "");
        assert_eq!(train(",method=theseus", "texts.txt"), (alone.clone(), false), "{head}");
        let Some(labelled) = labelled else {
            // Labels that the head cannot use are none.
            assert_eq!(train("", "data.tsv"), (expected.to_string(), false), "{head}");
            continue;
        };
        assert_eq!(train("", labelled), (format!("task {expected}"), true), "{head}");
        assert_eq!(train(",method=theseus", labelled), (format!("task {alone}"), true), "{head}");
        assert_eq!(train(",task=0", labelled), (expected.to_string(), false), "{head}");
    }
}

#[test]
fn a_bare_encoder_keeps_its_pooler() {
    let dir = Dir::with_tiny();
    save_every_head(&dir);
    dir.ok(&words(
        "-q --passes prune(sparsity=0.5,mode=text),distill(steps=9,rate=0.001) --data data.tsv bare -o out",
    ));
    let (before, after) = (stored(&dir.path("bare")), stored(&dir.path("out")));
    assert!(before.keys().eq(after.keys()));
    let changed: Vec<&str> =
        before.keys().filter(|n| before[*n] != after[*n]).map(|n| &n[..]).collect();
    assert!(!changed.is_empty());
    assert!(changed.iter().all(|n| n.starts_with("encoder.layer.")), "{changed:?}");
}
