//! Commands besides the run itself, and the options they share.

use crate::support::{Dir, stored, write_tensors};
use crate::tiny::Tiny;
use compress::checkpoint::Tensor;
use serde_json::Value;

fn inputs(dir: &Dir, ids: &[i64], mask: Option<&[i64]>, shape: &[usize]) {
    let mut tensors = vec![Tensor::from_i64("input_ids", shape, ids)];
    tensors.extend(mask.map(|mask| Tensor::from_i64("attention_mask", shape, mask)));
    write_tensors(&dir.path("in.safetensors"), &tensors);
}

const FORWARD: &[&str] =
    &["forward", "model", "--inputs", "in.safetensors", "-o", "out.safetensors"];

#[test]
fn json_of_every_command_parses() {
    let dir = Dir::with_tiny();
    inputs(&dir, &[2, 20, 3], None, &[1, 3]);
    let run = ["--passes", "prune,binarize", "--eval", "data.tsv", "model", "-o", "out"];
    let train = ["train", "-q", "model", "--data", "data.tsv", "-o", "trained"];
    let commands: &[(&[&str], &str)] = &[
        (&run, "/report/after/cost/total/params"),
        (&["inspect", "model"], "/cost/total/params"),
        (&["inspect", "out"], "/layers/1/forms/0"),
        (&["eval", "model", "--data", "data.tsv"], "/metrics/0/value"),
        (&["eval", "out", "--data", "data.tsv", "--teacher", "model"], "/fidelity/0/value"),
        (&train, "/report/passes/0/training/0/steps"),
        (&["passes"], "/0/options"),
        (&["passes", "prune"], "/options/sparsity"),
        (FORWARD, "/logits/1"),
        (&["verify", "out"], "/tensors"),
    ];
    for (args, key) in commands {
        let json = dir.json(args);
        assert!(json.pointer(key).is_some_and(|v| !v.is_null()), "{args:?}: no {key} in {json:#}");
    }
    let report = |name: &str| -> Value {
        serde_json::from_slice(&std::fs::read(dir.path("out").join(name)).unwrap()).unwrap()
    };
    assert_eq!(report("report.json")["recipe"][1]["pass"], "binarize");
    assert!(report("measured.json")["wall_seconds"].as_f64().is_some());
}

#[test]
fn options_by_line_set_and_file_are_the_same() {
    let dir = Dir::with_tiny();
    dir.write("r.toml", "version = 1\n[[step]]\npass = \"prune\"\nsparsity = 0.5\n");
    let rest = ["--calib", "none", "model", "-o"];
    let recipes: [&[&str]; 4] = [
        &["--passes", "prune(sparsity=0.5)"],
        &["--passes", "prune(sparsity=0.1)", "--set", "prune.sparsity=0.5"],
        &["--recipe", "r.toml"],
        &["--recipe", "r.toml", "--set", "prune.sparsity=0.9", "--set", "prune.sparsity=0.5"],
    ];
    let outputs = recipes.iter().enumerate().map(|(i, recipe)| {
        let out = format!("out{i}");
        dir.ok(&[recipe, &rest[..], &[out.as_str()]].concat());
        (dir.tree(&out)["/model.safetensors"].clone(), dir.tree(&out)["/recipe.toml"].clone())
    });
    let outputs: Vec<_> = outputs.collect();
    assert!(outputs.iter().all(|o| *o == outputs[0]), "{outputs:?}");
}

#[test]
fn eval_against_itself_agrees() {
    let dir = Dir::with_tiny();
    let eval =
        |options: &[&str]| dir.json(&[&["eval", "model", "--data", "data.tsv"], options].concat());
    let result = eval(&["--teacher", "model"]);
    let value = |name: &str| {
        let of =
            |list: &Value| list.as_array().unwrap().iter().find(|m| m["name"] == name).cloned();
        of(&result["fidelity"]).or(of(&result["metrics"])).unwrap()["value"].as_f64().unwrap()
    };
    assert_eq!((value("agreement"), value("mean_kl_nats"), value("relative_l2")), (1.0, 0.0, 0.0));
    assert!((0.0..=1.0).contains(&value("accuracy")));
    assert_eq!(result["examples"], 8);
    assert_eq!(eval(&["--threads", "1"])["metrics"], eval(&["--threads", "2"])["metrics"]);

    dir.write("texts.txt", "a good film\n\nnot bad\n");
    let unlabelled = dir.json(&["eval", "model", "--data", "texts.txt", "--teacher", "model"]);
    assert_eq!(
        (&unlabelled["examples"], &unlabelled["metrics"]),
        (&2.into(), &serde_json::json!([]))
    );
}

#[test]
fn a_teacher_for_another_task_is_refused() {
    let dir = Dir::with_tiny();
    Tiny::masked_lm().save(&dir.path("mlm"));
    let mut text =
        dir.fails(4, &["eval", "model", "--data", "data.tsv", "--teacher", "mlm"]) + "\n";
    text += &dir.fails(4, &["eval", "mlm", "--data", "data.tsv"]);
    text += "\n";
    text += &dir.fails(6, &["eval", "model", "--data", "data.tsv", "--teacher", "nosuch"]);
    insta::assert_snapshot!(text, @r"
    the teacher is for masked LM, 40 words and width 16, but the model is for sequence classification with 2 classes, 40 words and width 16; give the model that this one was made from
    evaluation of a head for `masked LM` is not supported; this build knows: sequence and token classification, question answering and sentence embedding; any head can be compared with another model by --teacher
    cannot read nosuch: No such file or directory (os error 2)
    ");
    dir.ok(&["eval", "mlm", "--data", "data.tsv", "--teacher", "mlm", "-q"]);
}

const TAGS: &str = r#"{"tokens": ["the", "good", "film"], "ner_tags": ["O", "B-X", "I-X"]}
{"tokens": ["bad"], "ner_tags": ["B-X"]}
"#;
const QUESTIONS: &str = r#"{"question": "was it good ?", "context": "the film was not good .", "answers": {"text": ["not good"], "answer_start": [13]}}
{"question": "who ?", "context": "the food was bad", "answers": {"text": [], "answer_start": []}}
"#;

#[test]
fn words_and_answers_are_judged_by_their_labels() {
    let dir = Dir::with_tiny();
    Tiny::tagger().save(&dir.path("tagger"));
    Tiny::reader().save(&dir.path("reader"));
    dir.write("tags.jsonl", TAGS);
    dir.write("questions.jsonl", QUESTIONS);
    let names = |json: &Value| {
        let name = |m: &Value| m["name"].as_str().unwrap().to_string();
        json["metrics"].as_array().unwrap().iter().map(name).collect::<Vec<_>>().join(" ")
    };
    let tags = dir.json(&["eval", "tagger", "--data", "tags.jsonl", "--teacher", "tagger"]);
    assert_eq!(names(&tags), "entity_f1 accuracy macro_f1");
    assert_eq!(tags["fidelity"][0]["value"], 1.0);
    assert_eq!(tags["columns"]["label"], "ner_tags");
    let questions = dir.json(&["eval", "reader", "--data", "questions.jsonl"]);
    assert_eq!(names(&questions), "f1 exact_match");
    let text = dir.ok(&["eval", "tagger", "--data", "tags.jsonl"]);
    let right = (tags["metrics"][1]["value"].as_f64().unwrap() * 4.0).round();
    assert!(text.contains(&format!("{right} of 4")), "{text}");

    // They help a run too: to score heads, and to judge the output.
    for (model, data) in [("tagger", "tags.jsonl"), ("reader", "questions.jsonl")] {
        let out = format!("{model}-small");
        let run = ["--passes", "prune", "--calib", data, "--eval", data, model, "-o", &out];
        let json = dir.json(&run);
        assert_eq!(json["report"]["calibration"]["labels"], true, "{json:#}");
        assert_eq!(
            json["report"]["quality"]["before"].as_array().unwrap().len(),
            names(match model {
                "tagger" => &tags,
                _ => &questions,
            })
            .split(' ')
            .count()
        );
    }
    // Texts without tags are still good for agreement.
    dir.ok(&["eval", "tagger", "--data", "data.tsv", "--teacher", "tagger"]);
    dir.ok(&["--passes", "prune", "--eval", "data.tsv", "reader", "-o", "by-agreement"]);
}

#[test]
fn words_and_answers_need_their_labels() {
    let dir = Dir::with_tiny();
    Tiny::tagger().save(&dir.path("tagger"));
    Tiny::reader().save(&dir.path("reader"));
    dir.write("tags.jsonl", TAGS);
    dir.write("unknown.jsonl", TAGS.replace("B-X\"]}", "B-Y\"]}"));
    let mut text = String::new();
    for [model, data] in [
        ["tagger", "data.tsv"],
        ["tagger", "unknown.jsonl"],
        ["reader", "tags.jsonl"],
        ["model", "tags.jsonl"],
    ] {
        text += &dir.fails(4, &["eval", model, "--data", data]);
        text += "\n";
    }
    insta::assert_snapshot!(text, @r#"
    data.tsv: line 2 has a label and no tags, but the model is for token classification; give JSON lines with `tokens` and `ner_tags`, or name the lists with --text-column and --label-column
    unknown.jsonl: line 2 has the tag `B-Y`, but the model has `O`, `B-X`, `I-X`; write the model's names or class ids into the file, or set `id2label` in config.json
    tags.jsonl: line 1 has tags of words and no answers, but the model is for question answering; give JSON lines with `question`, `context` and `answers`: {"text": ["Rome"], "answer_start": [3]}
    tags.jsonl: line 1 has tags of words and no label, but the model is for sequence classification; use data of the model's task
    "#);
}

#[test]
fn padding_changes_no_answer() {
    let dir = Dir::with_tiny();
    let logits = |ids: &[i64], mask: Option<&[i64]>, shape: &[usize]| {
        inputs(&dir, ids, mask, shape);
        dir.ok(&[FORWARD, &["--force"]].concat());
        stored(&dir.path("out.safetensors"))["logits"].f32()
    };
    let alone = logits(&[2, 25, 3], None, &[1, 3]);
    let padded =
        logits(&[2, 25, 3, 0, 0, 2, 6, 7, 8, 3], Some(&[1, 1, 1, 0, 0, 1, 1, 1, 1, 1]), &[2, 5]);
    // Not bit for bit: kernels sum in another order when a batch has more tokens.
    let close = padded.iter().zip(&alone).all(|(p, a)| (p - a).abs() < 1e-6);
    assert!(close, "{padded:?} begins with {alone:?}");
    assert_ne!(padded[2..], alone);
}

/// RobertaConfig of Transformers: `pad_token_id=1`, `layer_norm_eps=1e-12`.
#[test]
fn a_roberta_that_states_no_padding_id_and_epsilon_has_those_of_transformers() {
    let dir = Dir::with_tiny();
    inputs(&dir, &[2, 25, 3], None, &[1, 3]);
    let logits = |tiny: &Tiny| {
        tiny.save(&dir.path("model"));
        dir.ok(&[FORWARD, &["--force"]].concat());
        stored(&dir.path("out.safetensors"))["logits"].f32()
    };
    let stated = logits(&Tiny::roberta());
    for key in ["pad_token_id", "layer_norm_eps"] {
        let mut silent = Tiny::roberta();
        silent.config.as_object_mut().unwrap().remove(key);
        assert_eq!(logits(&silent), stated, "without {key}");
    }
}

#[test]
fn forward_stores_what_is_asked_and_replaces_only_with_force() {
    let dir = Dir::with_tiny();
    inputs(&dir, &[2, 25, 3], None, &[1, 3]);
    let text = dir.ok(&[FORWARD, &["--hidden-states", "--attentions"]].concat());
    insta::assert_snapshot!(text, @r"
    logits [1, 2]
    hidden_states.0 [1, 3, 16]
    hidden_states.1 [1, 3, 16]
    hidden_states.2 [1, 3, 16]
    attentions.0 [1, 2, 3, 3]
    attentions.1 [1, 2, 3, 3]
    ");
    let tensors = stored(&dir.path("out.safetensors"));
    let sums = tensors["attentions.0"].f32();
    assert!(sums.chunks(3).all(|row| (row.iter().sum::<f32>() - 1.0).abs() < 1e-6), "{sums:?}");
    insta::assert_snapshot!(dir.fails(2, FORWARD), @"out.safetensors exists; give --force to replace it");
    dir.ok(&[FORWARD, &["--force"]].concat());
    assert_eq!(stored(&dir.path("out.safetensors")).len(), 1);
    let mut text = String::new();
    for output in ["model/model.safetensors", "model/new.safetensors", "in.safetensors"] {
        let forward = [&FORWARD[..5], &[output, "--force"]].concat();
        text += &(dir.fails(2, &forward) + "\n");
    }
    insta::assert_snapshot!(text, @r"
    [DIR]/model/model.safetensors lies in the model's folder [DIR]/model; choose a place beside it: inputs are never written to
    [DIR]/model/new.safetensors lies in the model's folder [DIR]/model; choose a place beside it: inputs are never written to
    in.safetensors is --inputs too; give another name: inputs are never written to
    ");
}

#[test]
fn forward_refuses_inputs_that_make_no_sense() {
    let dir = Dir::with_tiny();
    let mut messages = String::new();
    let mut refuse = |name: &str, code: i32| {
        messages += &format!("{name} ({code})\n    {}\n", dir.fails(code, FORWARD));
    };
    refuse("no file", 6);
    type Input<'a> = (&'a str, &'a [i64], Option<&'a [i64]>, &'a [usize]);
    let cases: &[Input] = &[
        ("a hole in the mask", &[2, 9, 3], Some(&[1, 0, 1]), &[1, 3]),
        ("a row of padding", &[2, 3, 0, 0], Some(&[1, 1, 0, 0]), &[2, 2]),
        ("a token the model lacks", &[2, 40, 3], None, &[1, 3]),
        ("a negative token", &[2, -1, 3], None, &[1, 3]),
        ("a token beyond 32 bits", &[2, 1 << 32, 3], None, &[1, 3]),
        ("more tokens than positions", &[5; 33], None, &[1, 33]),
        ("one dimension", &[2, 3], None, &[2]),
        ("no rows", &[], None, &[0, 4]),
        ("no tokens", &[], None, &[4, 0]),
        ("rows without end", &[], None, &[1 << 60, 0]),
    ];
    for (name, ids, mask, shape) in cases {
        inputs(&dir, ids, *mask, shape);
        refuse(name, 4);
    }
    let ids = Tensor::from_i64("input_ids", &[1, 2], &[2, 3]);
    let files = [
        ("no input_ids", vec![ids.clone().renamed("ids")]),
        (
            "tokens in F32",
            vec![Tensor::from_f32(
                "input_ids",
                &[1, 2],
                &[2.0, 3.0],
                compress::checkpoint::Dtype::F32,
            )],
        ),
        (
            "a mask of another shape",
            vec![ids.clone(), Tensor::from_i64("attention_mask", &[2], &[1, 1])],
        ),
        (
            "a token type the model lacks",
            vec![ids.clone(), Tensor::from_i64("token_type_ids", &[1, 2], &[0, 2])],
        ),
        ("positions", vec![ids, Tensor::from_i64("position_ids", &[1, 2], &[5, 6])]),
    ];
    for (name, tensors) in files {
        write_tensors(&dir.path("in.safetensors"), &tensors);
        refuse(name, 4);
    }
    dir.write("in.safetensors", "x");
    refuse("no safetensors", 4);
    insta::assert_snapshot!("forward", messages);
}

/// `compress inspect model | head -1` is no error.
#[test]
#[cfg(unix)]
fn a_closed_pipe_is_no_error() {
    let dir = Dir::with_tiny();
    let mut child = dir.command(&["inspect", "model"]);
    let mut child = child.stdout(std::process::Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    assert_eq!(crate::support::wait(&mut child), Some(0));
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_stdout_is_an_error() {
    let dir = Dir::with_tiny();
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut command = dir.command(&["inspect", "model"]);
    let mut child = command.stdout(full).stderr(std::process::Stdio::null()).spawn().unwrap();
    assert_eq!(crate::support::wait(&mut child), Some(6));
}

#[test]
fn the_instruction_set_can_be_limited_and_changes_no_answer() {
    let dir = Dir::with_tiny();
    dir.ok(&["--passes", "binarize", "--calib", "none", "model", "-o", "out"]);
    let args = ["eval", "out", "--data", "data.tsv", "--teacher", "model", "--json"];
    let with = |level: &str| {
        let mut command = dir.command(&args);
        command.env("COMPRESS_SIMD", level);
        dir.finish(command)
    };
    let best = dir.json(&args[..args.len() - 1]);
    let scalar = with("scalar");
    assert_eq!(scalar.code, Some(0), "{}", scalar.stderr);
    let scalar: Value = serde_json::from_str(&scalar.stdout).unwrap();
    assert_eq!(scalar["metrics"], best["metrics"]);
    let fidelity = |report: &Value| -> Vec<f64> {
        let rows = report["fidelity"].as_array().expect("fidelity");
        rows.iter().map(|row| row["value"].as_f64().expect("a number")).collect()
    };
    // By tiles f32 sums are rounded elsewhere.
    let (scalar, best) = (fidelity(&scalar), fidelity(&best));
    assert!(!best.is_empty() && scalar.len() == best.len());
    let near = scalar.iter().zip(&best).all(|(s, b)| (s - b).abs() <= 1e-5 * (1.0 + b.abs()));
    assert!(near, "{scalar:?} {best:?}");
    let mut bench = dir.command(&["bench", "model", "--length", "4", "--runs", "1", "-q"]);
    bench.env("COMPRESS_SIMD", "scalar");
    let bench = dir.finish(bench).stdout;
    assert!(bench.contains(" COMPRESS_SIMD=scalar; one run"), "{bench}");
    let unknown = with("mmx");
    assert_eq!(unknown.code, Some(2));
    let expected =
        "error: `COMPRESS_SIMD=mmx` is no instruction set that there are kernels for; use one of `";
    assert!(unknown.stderr.starts_with(expected), "{}", unknown.stderr);
    assert!(unknown.stderr.contains("`scalar`"), "{}", unknown.stderr);
}

/// What is inside a checkpoint, and what is none, each with what to give.
#[test]
fn a_path_beside_the_checkpoint_is_told_which_one_is_meant() {
    let dir = Dir::with_tiny();
    dir.ok(&[
        "-q", "--passes", "binarize", "--calib", "none", "--emit", "hf,onnx", "model", "-o", "out",
    ]);
    dir.write("pytorch_model.bin", "x");
    let inspect = |path: &str| dir.fails(4, &["inspect", path]);
    let mut text = inspect("model/config.json") + "\n";
    text += &(dir.fails(4, &["eval", "data.tsv", "--data", "data.tsv"]) + "\n");
    text += &(inspect("pytorch_model.bin") + "\n");
    text += &(inspect("out/onnx") + "\n");
    text += &inspect("out/hf");
    insta::assert_snapshot!(text, @r"
    model/config.json: found a file named `config.json`, expected a folder or a `.safetensors` file; give the folder that it is in
    data.tsv: found a file named `data.tsv`, expected a folder or a `.safetensors` file; check the path
    pytorch_model.bin: found a file named `pytorch_model.bin`, expected a folder or a `.safetensors` file; load it with Transformers and save it again with `save_pretrained(folder, safe_serialization=True)`
    out/onnx: found model.onnx, expected `model.safetensors` or `model.safetensors.index.json`; give the folder above: this one is for ONNX Runtime
    config.json: `model_type` is compress, expected a family: this is what `--emit hf` writes for Transformers; give the folder above
    ");
}

#[test]
fn quotes_around_every_text_of_a_tsv_are_mentioned_once() {
    let dir = Dir::with_tiny();
    dir.write("quoted.tsv", "sentence\tlabel\n\"good\"\t1\n\"bad\"\t0\n");
    let compare = ["compare", "model", "model", "--runs", "1", "--batch", "1", "-q"];
    for args in [
        &["eval", "model", "--data", "quoted.tsv"][..],
        &[&compare[..], &["--eval", "quoted.tsv"]].concat(),
    ] {
        let said = dir.run(args).stderr;
        assert!(said.starts_with("note: every text of quoted.tsv stands in quotes"), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
    assert_eq!(dir.run(&["eval", "model", "--data", "data.tsv"]).stderr, "");
}

#[test]
fn a_run_without_passes_is_told_of_recipes_too() {
    let dir = Dir::with_tiny();
    for args in [&["model", "-o", "out"][..], &["plan", "model"]] {
        let said = dir.run(args).stderr;
        assert!(said.contains("--passes <PASSES>|--recipe <FILE>"), "{said}");
    }
}
