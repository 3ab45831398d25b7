//! The command `train`.

use super::{
    bare, config, losses, metric, report, save_every_head, training, with_reviews, words,
    write_examples,
};
use crate::determinism::timeless;
use crate::support::{Dir, stored};
use crate::tiny::{HIDDEN, Tiny};
use serde_json::json;

/// Enough to learn 16 examples by heart.
const BY_HEART: &str = "--steps 200 --batch 8 --rate 0.01 --dropout 0";

#[test]
fn a_checkpoint_of_any_kind_learns_any_task() {
    let dir = Dir::with_tiny();
    write_examples(&dir);
    save_every_head(&dir);
    let tasks = [
        ("classes.tsv", "BertForSequenceClassification", "accuracy"),
        ("scores.tsv", "BertForSequenceClassification", "pearson"),
        ("tags.jsonl", "BertForTokenClassification", "accuracy"),
        ("answers.jsonl", "BertForQuestionAnswering", "f1"),
    ];
    for origin in ["bare", "embedder", "masked"] {
        for (data, architecture, name) in tasks {
            let what = format!("{origin} on {data}");
            let run = format!("train -q {origin} --data {data} --eval {data} -o out --force");
            dir.ok(&[words(&run), words(BY_HEART)].concat());
            let made = config(&dir, "out");
            assert_eq!(made["architectures"], json!([architecture]), "{what}");
            let classes = match data {
                "classes.tsv" => json!({"0": "blame", "1": "praise"}),
                "scores.tsv" => json!({"0": "score"}),
                "tags.jsonl" => json!({"0": "B-X", "1": "O"}),
                _ => made["id2label"].clone(), // as the checkpoint has it: answers have no classes
            };
            assert_eq!(made["id2label"], classes, "{what}");
            let (of, trained) = (report(&dir, "out"), training(&dir, "out"));
            let (before, after) = (metric(&of, "before", name), metric(&of, "after", name));
            // 200 steps of so small a model end here or there by the last bit of a sum.
            assert!(before < 0.9 && after > before.max(0.8), "{what}: {before} to {after}");
            assert_eq!((&trained["steps"], &trained["held_out"]), (&200.into(), &0.into()));
            assert_eq!((&trained["labels"], &losses(&trained)[..]), (&true.into(), "task"));

            // A checkpoint as Transformers saves it, and as our own commands read it.
            let names = stored(&dir.path("out"));
            let of_encoder = |n: &&String| n.contains("embeddings.") || n.contains("layer.");
            assert!(names.keys().filter(of_encoder).all(|n| n.starts_with("bert.")), "{what}");
            assert!(!names.keys().any(|n| n.starts_with("cls.")), "{what}");
            assert!(!dir.path("out/modules.json").exists());
            assert!(!dir.path("out/sentence_bert_config.json").exists());
            dir.ok(&["verify", "out"]);
            dir.ok(&["inspect", "out"]);
            let judged = dir.json(&["eval", "out", "--data", data]);
            let judged = judged["metrics"].as_array().unwrap();
            let judged = judged.iter().find(|m| m["name"] == name).unwrap();
            assert_eq!(judged["value"].as_f64(), Some(after), "{what}");
        }
    }
}

#[test]
fn a_new_head_is_what_transformers_would_make() {
    let dir = Dir::with_tiny();
    write_examples(&dir);
    bare().save(&dir.path("bare"));
    let mut roberta = Tiny::roberta();
    roberta.tensors.retain(|t| !t.name.starts_with("classifier"));
    roberta.config["architectures"] = json!(["RobertaModel"]);
    for tensor in &mut roberta.tensors {
        tensor.name = tensor.name.strip_prefix("roberta.").unwrap().to_string();
    }
    roberta.save(&dir.path("roberta"));
    for (origin, usual) in [("bare", Tiny::classifier()), ("roberta", Tiny::roberta())] {
        let run =
            format!("train -q {origin} --data classes.tsv --steps 1 --warmup 1 -o of-{origin}");
        dir.ok(&words(&run));
        let names = stored(&dir.path(&format!("of-{origin}")));
        let mut usual: Vec<&String> = usual.tensors.iter().map(|t| &t.name).collect();
        usual.sort();
        assert!(names.keys().eq(usual), "{:?}", names.keys());
        let made = config(&dir, &format!("of-{origin}"));
        assert_eq!(made["label2id"], json!({"blame": 0, "praise": 1}));
    }
    // An update of the warm-up has rate 0 at first: what the checkpoint had is what it was, its pooler too.
    let (before, after) = (stored(&dir.path("bare")), stored(&dir.path("of-bare")));
    assert!(before.iter().all(|(name, tensor)| after[&format!("bert.{name}")] == *tensor));
    let spread: f32 = after["classifier.weight"].f32().iter().map(|w| w * w).sum();
    let spread = (spread / (2 * HIDDEN) as f32).sqrt();
    // 32 draws of N(0, 0.02²): four standard deviations of their spread.
    assert!((spread / 0.02 - 1.0).abs() < 0.5, "{spread}");
    assert_eq!(after["classifier.bias"].f32(), [0.0; 2]);

    dir.ok(&words("train -q bare --data classes.tsv --steps 1 --warmup 1 --seed 1 -o seed"));
    let seed = stored(&dir.path("seed"));
    let differ: Vec<_> = seed.keys().filter(|n| seed[*n] != after[*n]).collect();
    assert_eq!(differ, ["classifier.weight"]);
}

#[test]
fn classes_that_are_numbers_keep_their_order() {
    let dir = Dir::with_tiny();
    bare().save(&dir.path("bare"));
    let classes = |labels: [&str; 4], out: &str| {
        let rows = labels.iter().map(|l| format!("a good film\t{l}\n"));
        dir.write("some.tsv", format!("sentence\tlabel\n{}", rows.collect::<String>()));
        dir.ok(&words(&format!("train -q bare --data some.tsv --steps 1 -o {out}")));
        config(&dir, out)["id2label"].clone()
    };
    assert_eq!(
        classes(["1", "0", "2", "0"], "a"),
        json!({"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"})
    );
    // Ids with a hole are names.
    assert_eq!(classes(["1", "3", "1", "3"], "b"), json!({"0": "1", "1": "3"}));
    assert_eq!(classes(["0.5", "3", "1", "3"], "c"), json!({"0": "score"}));
    let run = "train -q bare --data some.tsv --task classification --steps 1 -o d";
    dir.ok(&words(run));
    assert_eq!(config(&dir, "d")["id2label"], json!({"0": "0.5", "1": "1", "2": "3"}));
}

#[test]
fn a_masked_lm_model_is_trained_on_texts_alone() {
    let dir = Dir::with_tiny();
    write_examples(&dir);
    Tiny::masked_lm().save(&dir.path("masked"));
    // A classification of labelled texts is meant unless said otherwise.
    dir.ok(&words("train -q masked --data data.tsv --steps 1 -o classes"));
    assert_eq!(config(&dir, "classes")["architectures"], json!(["BertForSequenceClassification"]));
    for (data, out) in [("texts.txt", "a"), ("data.tsv --task masked-lm", "b")] {
        let run =
            format!("train -q masked --data {data} --steps 60 --rate 0.01 --evaluate 20 -o {out}");
        dir.ok(&words(&run));
        assert_eq!(config(&dir, out)["architectures"], json!(["BertForMaskedLM"]));
        assert_eq!(training(&dir, out)["labels"], false);
    }
    let trained = training(&dir, "a");
    let judged = |when: &str| trained[when].as_f64().unwrap();
    assert!(judged("judged_best") < judged("judged_before"), "{trained:#}");
}

#[test]
fn labels_that_do_not_fit_the_head_need_a_new_one() {
    let dir = Dir::with_tiny();
    write_examples(&dir);
    insta::assert_snapshot!(
        dir.fails(4, &words("train -q model --data classes.tsv -o out")),
        @r#"classes.tsv has the labels `blame`, `praise`, but the model has `negative`, `positive`; write the model's names or class ids into the file, or give --new-head for a head that knows these labels"#
    );
    let run = "train -q model --data classes.tsv --eval classes.tsv --new-head -o out";
    dir.ok(&[words(run), words(BY_HEART)].concat());
    assert_eq!(config(&dir, "out")["label2id"], json!({"blame": 0, "praise": 1}));
    assert!(metric(&report(&dir, "out"), "after", "accuracy") > 0.95);
    // For another task the head is another anyway.
    dir.ok(&words("train -q model --data tags.jsonl --task tokens --steps 1 -o tags"));
    assert_eq!(config(&dir, "tags")["id2label"], json!({"0": "B-X", "1": "O"}));
}

#[test]
fn without_labels_there_is_no_task() {
    let dir = Dir::with_tiny();
    write_examples(&dir);
    bare().save(&dir.path("bare"));
    dir.write("holes.tsv", "sentence\tlabel\na good film\t1\na bad film\t\nthe film\t0\n");
    let mut text = String::new();
    for args in [
        "model --data texts.txt",
        "bare --data texts.txt",
        "bare --data texts.txt --task regression",
        "bare --data texts.txt --task tokens",
        "bare --data texts.txt --task questions",
        "bare --data texts.txt --task masked-lm",
        "bare --data classes.tsv --task regression",
        "bare --data holes.tsv",
        "bare --data nosuch.tsv",
    ] {
        let run = format!("train -q {args} -o out");
        let code = if args.contains("nosuch") { 6 } else { 4 };
        text += &format!("{args}\n    {}\n", dir.fails(code, &words(&run)));
    }
    insta::assert_snapshot!(text, @r#"
    model --data texts.txt
        texts.txt has no labels for sequence classification, but training on a task needs them; name the column with --label-column, or give another --task
    bare --data texts.txt
        texts.txt has no labels, but training on a task needs them; name the column with --label-column
    bare --data texts.txt --task regression
        texts.txt has no labels for sequence classification, but training on a task needs them; name the column with --label-column, or give another --task
    bare --data texts.txt --task tokens
        texts.txt has no labels for token classification, but training on a task needs them; name the column with --label-column, or give another --task
    bare --data texts.txt --task questions
        texts.txt has no labels for question answering, but training on a task needs them; name the column with --label-column, or give another --task
    bare --data texts.txt --task masked-lm
        a new head for `masked LM` is not supported; this build knows: sequence classification, token classification, question answering
    bare --data classes.tsv --task regression
        classes.tsv: line 2 has label `praise`, but the model answers in numbers, not classes, and is judged by numbers; name another column with --label-column, or use data of the model's task
    bare --data holes.tsv
        holes.tsv: line 3 has no label, but every row needs one; fill it in, drop the row, or name the column with --label-column
    bare --data nosuch.tsv
        cannot read nosuch.tsv: No such file or directory (os error 2)
    "#);
}

#[test]
fn the_order_of_examples_can_be_given() {
    let dir = Dir::with_tiny();
    dir.write("order.txt", "0 1 2 3\n\n4 5 6 7\n");
    let train = |more: &str, out: &str| {
        let run = format!("train -q model --data data.tsv --rate 0.01 --dropout 0 -o {out} {more}");
        dir.ok(&words(&run));
        (dir.tree(out)["/model.safetensors"].clone(), training(&dir, out)["steps"].clone())
    };
    let (first, steps) = train("--order order.txt", "a");
    assert_eq!(steps, 6, "three times two batches");
    // The seed draws nothing any more.
    assert_eq!(train("--order order.txt --seed 7", "b"), (first.clone(), 6.into()));
    dir.write("order.txt", "0 1 2 3\n7 6 5 4\n0 1 2 3\n4 5 6 7\n");
    assert_ne!(train("--order order.txt --steps 6", "c").0, first, "sums in another order");
    dir.write("order.txt", "0 1 2 3\n4 5 6 7\n0 1 2 3\n4 5 6 7\n");
    assert_eq!(train("--order order.txt --steps 6", "d").0, first);

    let mut text = String::new();
    for order in ["0 8\n", "0 1\n2 -1\n", "one\n", "0,1\n", "\n", "\u{1b}[31m\n"] {
        dir.write("order.txt", order);
        let run = "train -q model --data data.tsv -o x --order order.txt";
        text += &format!("{order:?}\n    {}\n", dir.fails(4, &words(run)));
    }
    insta::assert_snapshot!(text, @r#"
    "0 8\n"
        order.txt: found `8` in line 1, expected numbers of examples, 0 to 7; write one batch a line, numbers with spaces between
    "0 1\n2 -1\n"
        order.txt: found `-1` in line 2, expected numbers of examples, 0 to 7; write one batch a line, numbers with spaces between
    "one\n"
        order.txt: found `one` in line 1, expected numbers of examples, 0 to 7; write one batch a line, numbers with spaces between
    "0,1\n"
        order.txt: found `0,1` in line 1, expected numbers of examples, 0 to 7; write one batch a line, numbers with spaces between
    "\n"
        order.txt: found no line, expected one batch a line; leave --order out to draw an order
    "\u{1b}[31m\n"
        order.txt: found `\u{1b}[31m` in line 1, expected numbers of examples, 0 to 7; write one batch a line, numbers with spaces between
    "#);
}

#[test]
fn the_best_weights_are_kept_and_patience_ends_it() {
    let dir = Dir::with_tiny();
    write_examples(&dir);
    bare().save(&dir.path("bare"));
    // Labels by chance: what is held out is soon judged worse.
    let examples: String = (0..64)
        .map(|i| format!("{} film\t{}\n", ["a good", "not bad"][i % 2], i / 2 % 2))
        .collect();
    dir.write("chance.tsv", format!("sentence\tlabel\n{examples}"));
    let train = |more: &str, out: &str| {
        let run = format!(
            "train -q bare --data chance.tsv --batch 4 --rate 0.05 --dropout 0 --warmup 0 \
             --schedule constant --steps 100 --evaluate 5 -o {out} {more}"
        );
        dir.ok(&words(&run));
        training(&dir, out)
    };
    let stopped = train("--patience 2", "stopped");
    assert_eq!((&stopped["texts"], &stopped["held_out"]), (&60.into(), &4.into()));
    let (steps, best) =
        (stopped["steps"].as_u64().unwrap(), stopped["best_step"].as_u64().unwrap());
    assert_eq!(steps, best + 10, "two judgements after the best one");
    let points = stopped["points"].as_array().unwrap();
    let least = points.iter().map(|p| p["judged"].as_f64().unwrap()).fold(f64::INFINITY, f64::min);
    assert_eq!(stopped["judged_best"].as_f64(), Some(least));

    // The weights are those of that step.
    let whole = train("", "whole");
    assert_eq!(whole["steps"], 100);
    if whole["best_step"] == stopped["best_step"] {
        assert!(stored(&dir.path("whole")) == stored(&dir.path("stopped")));
    }
    let short = format!("--steps {best} --evaluate {}", best.max(1));
    if best > 0 {
        let run = "train -q bare --data chance.tsv --batch 4 --rate 0.05 --dropout 0 --warmup 0 \
                   --schedule constant -o short";
        dir.ok(&[words(run), words(&short)].concat());
        assert!(stored(&dir.path("short")) == stored(&dir.path("stopped")));
    }
}

#[test]
fn frozen_embeddings_stay_as_they_are() {
    let dir = Dir::with_tiny();
    let changed = |more: &str, out: &str| {
        let run = format!("train -q model --data data.tsv --steps 3 -o {out} {more}");
        dir.ok(&words(&run));
        let (before, after) = (stored(&dir.path("model")), stored(&dir.path(out)));
        let changed = before.keys().filter(|n| before[*n] != after[*n]);
        changed.filter(|n| n.starts_with("bert.embeddings.")).count()
    };
    assert_eq!(changed("", "a"), 5);
    assert_eq!(changed("--freeze-embeddings", "b"), 0);
}

#[test]
fn a_compressed_model_can_be_trained_and_stays_compressed() {
    let dir = Dir::with_tiny();
    dir.ok(&words("-q --passes prune(sparsity=0.3),binarize(planes=1,rank=1) model -o small"));
    let run = "train -q small --data data.tsv --eval data.tsv -o out";
    dir.ok(&[words(run), words(BY_HEART)].concat());
    dir.ok(&["verify", "out"]);
    let (before, after) = (stored(&dir.path("small")), stored(&dir.path("out")));
    let forms = |tensors: &std::collections::BTreeMap<String, crate::support::Stored>| {
        let form = |(name, t): (&String, &crate::support::Stored)| {
            (name.clone(), t.dtype.clone(), t.shape.clone())
        };
        tensors.iter().map(form).collect::<Vec<_>>()
    };
    assert_eq!(forms(&before), forms(&after));
    assert!(before.keys().any(|n| n.ends_with("weight_packed") && before[n] != after[n]));
    assert!(metric(&report(&dir, "out"), "after", "accuracy") > 0.95);
}

#[test]
fn threads_change_no_byte_of_a_trained_model() {
    let dir = with_reviews();
    let [one, two] = ["1", "2"].map(|threads| {
        let run = format!(
            "train -q model --data train.tsv --data-texts 64 --steps 3 --rate 0.001 --bucket 2 \
             --accumulate 2 --evaluate 2 -o out{threads} --threads {threads}"
        );
        dir.ok(&words(&run));
        timeless(&dir, &format!("out{threads}"))
    });
    assert_eq!(one, two);
}
