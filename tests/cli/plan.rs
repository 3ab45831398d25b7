//! `compress plan` says beforehand what a run makes.

use crate::support::{Dir, planned, reviews, shared};
use compress::model::Model;
use compress::model::cost::Cost;
use serde_json::Value;
use std::io::Write;
use std::path::Path;

/// Recipes of which every size is known beforehand, with what else is on the command line.
const KNOWN: &[(&str, &str)] = &[
    ("", ""),
    ("quantize", ""),
    ("quantize(form=f16,embeddings=f16,head=int8)", "--calib none"),
    ("binarize", ""),
    ("binarize(planes=3,rank=5,group=48)", "--calib none"),
    ("binarize(rank=6,factors=int8,embeddings=2,head=1,activations=4)", "--calib none"),
    ("binarize(form=double)", "--calib none"),
    ("binarize(form=double,rate=0.5,head=2)", "--calib none"),
    ("binarize(planes=1,activations=1)", ""),
    ("embed", ""),
    ("embed(preset=small,rotation=none,exact=0,positions=f16)", "--calib none"),
    ("embed(bytes=5,words=7,rotation=full)", "--calib random"),
    ("embed(share=0.1)", ""),
    ("embed(method=svd,bytes=30,exact=9)", ""),
    ("embed(method=svd,share=0.2)", ""),
    ("embed(method=int8)", ""),
    ("embed(method=f16)", ""),
    ("embed(method=paper,slices=4)", ""),
    ("embed(method=paper,slices=2,words=200,assignment=dispersed,exact=3)", ""),
    ("embed(method=paper,slices=2,words=300,assignment=hierarchical)", ""),
    ("tokens(flops=0.6,mode=ratio)", "--calib none"),
    ("prune(sparsity=0.4,shape=uniform)", ""),
    ("prune(sparsity=0.6,shape=uniform,round_to=4)", ""),
    ("prune(flops=0.7,shape=uniform,mode=weights)", "--calib none"),
    ("prune(sparsity=0)", ""),
    ("distill(steps=2)", ""),
    ("embed,binarize", ""),
    ("prune(sparsity=0.5,shape=uniform),embed,binarize(rank=4)", ""),
    ("binarize(embeddings=1),distill(steps=2)", ""),
    ("embed,quantize(embeddings=none),distill(steps=1)", ""),
];

/// Recipes of which something depends on numbers or texts.
const BOUNDED: &[(&str, &str)] = &[
    ("prune", ""),
    ("prune(sparsity=0.6)", ""),
    ("prune(sparsity=0.9,mode=weights)", "--calib none"),
    ("prune(sparsity=0.3,round_to=1)", "--calib none"),
    ("prune(sparsity=0.55,round_to=32)", ""),
    ("prune(flops=0.4)", "--calib none"),
    ("prune(params=400000)", "--calib none"),
    ("prune(speedup=1.5)", ""),
    ("prune(sparsity=0.7,rounds=3,rearrange=always)", ""),
    ("prune,binarize", ""),
    ("prune(sparsity=0.5),binarize(planes=1,rank=16,group=24)", "--calib none"),
    ("prune(sparsity=0.6),binarize(form=double)", "--calib none"),
    ("prune(sparsity=0.3),binarize(form=double,rate=3)", "--calib none"),
    ("prune(sparsity=0.6),quantize", "--calib none"),
    ("prune(sparsity=0.5),embed,binarize", ""),
    ("binarize(bits=1.3)", "--calib none"),
    ("binarize(bits=2.5)", ""),
    ("binarize(size=600kB,embeddings=2)", "--calib none"),
    ("binarize(size=1.2MB)", ""),
    ("binarize(size=1.2MB),embed", "--calib none"),
    ("embed,binarize(size=400kB)", "--calib none"),
    ("prune(sparsity=0.4),binarize(bits=1.7)", "--calib none"),
    ("prune(sparsity=0.4),embed,binarize(size=300kB)", "--calib none"),
    ("vocab", "--calib DEV"),
    ("vocab(size=700)", "--calib DEV"),
    ("vocab(keep=\"DEV\",min_count=5)", ""),
    ("vocab(keep=\"DEV\"),embed", ""),
    ("vocab(keep=\"DEV\"),embed(share=0.15),binarize", "--calib none"),
    ("vocab(size=900),prune(sparsity=0.5),quantize", "--calib DEV"),
    ("embed", "--calib DEV"),
    ("embed(exact=1500)", "--calib DEV --calib-texts 20"),
    ("tokens(flops=0.5)", ""),
    ("tokens(flops=0.5,mode=ratio)", "--calib DEV"),
    ("tokens(flops=0.7,mode=ratio)", "--calib random"),
    ("tokens(flops=0.98,mode=ratio)", ""),
    ("tokens(flops=0.6,protect=true)", ""),
    ("tokens(flops=0.6,protect=true,mode=ratio),quantize", ""),
    ("prune(sparsity=0.3),tokens(flops=0.7),embed,binarize", "--calib DEV"),
];

/// Runs `recipe` for every target that can carry it, and returns what is planned and what came where they do not fit, a
/// line each.
fn misfits(dir: &Dir, (recipe, more): (&str, &str), known: bool) -> String {
    let (model, dev) = (reviews("model"), reviews("dev.tsv"));
    let recipe = recipe.replace("DEV", &dev);
    let more = more.replace("DEV", &dev);
    let mut args = vec!["--passes", &recipe, &model];
    args.extend(more.split_whitespace());
    if !more.contains("--calib-texts") && more != "--calib none" {
        args.extend(["--calib-texts", "24"]);
    }
    let plan = dir.json(&[&["plan"], &args[..]].concat());
    let targets = carried(&plan);
    let names = targets.iter().map(|t| t["name"].as_str().unwrap()).collect::<Vec<_>>().join(",");
    dir.ok(&[&["-q", "-o", "out", "--force", "--emit", &names], &args[..]].concat());
    let report = std::fs::read(dir.path("out/report.json")).unwrap();
    let report: Value = serde_json::from_slice(&report).unwrap();
    let mut wrong = String::new();
    for (name, [low, high], came) in planned(&report) {
        if !(low..=high).contains(&came) || (known && low != high) {
            wrong += &format!("{recipe} {more}: {name}: {low} to {high}, came {came}\n");
        }
    }
    // The report holds the plan that `compress plan` prints, and of the files that are there.
    assert_eq!(plan["file_bytes"], report["plan"]["file_bytes"]["planned"], "{recipe}");
    let met = report["plan"]["passes"].as_array().unwrap();
    for (planned, met) in plan["passes"].as_array().unwrap().iter().zip(met) {
        for number in ["params", "bytes", "flops"] {
            assert_eq!(planned[number], met[number]["planned"], "{recipe}");
        }
    }
    let bytes = |file: &str| std::fs::metadata(dir.path("out").join(file)).unwrap().len();
    let file = bytes("model.safetensors");
    assert_eq!(report["plan"]["file_bytes"]["came"], file, "{recipe}");
    if known {
        assert_eq!(plan["files"][0]["bytes"], file, "{recipe}");
    }
    // What stands in the report of each target is the plan's, and all of its files are planned by name.
    let met = report["emitted"].as_array().into_iter().flatten();
    let met: Vec<&Value> = met.map(|target| &target["planned_weight_bytes"]).collect();
    let planned: Vec<&Value> = targets[1..].iter().map(|target| &target["weight_bytes"]).collect();
    assert_eq!(planned, met, "{recipe}");
    for target in &targets {
        let files = target["files"].as_array().unwrap();
        assert_eq!(files.is_empty(), !known, "{recipe}: {target}");
        for file in files {
            let name = file["name"].as_str().unwrap();
            if file["bytes"] != bytes(name) {
                wrong += &format!("{recipe} {more}: {file}, came {}\n", bytes(name));
            }
        }
    }
    if let Some(native) = plan["loads_natively"].as_bool() {
        assert_eq!(report["loads_natively"], native, "{recipe}");
    }
    outlined(&dir.path("out"));
    // Of the output everything is known, packed as it is.
    let again = dir.json(&["plan", "--passes", "", "out", "--calib", "none"]);
    for came in report["emitted"].as_array().into_iter().flatten() {
        let mut targets = again["targets"].as_array().unwrap().iter();
        let target = targets.find(|t| t["name"] == came["target"]).unwrap();
        let bytes = &came["weight_bytes"];
        assert_eq!(
            [&target["weight_bytes"][0], &target["weight_bytes"][1]],
            [bytes; 2],
            "{recipe}"
        );
    }
    wrong
}

/// The targets of `plan` that are not refused, the native one first.
fn carried(plan: &Value) -> Vec<Value> {
    let targets = plan["targets"].as_array().unwrap();
    targets.iter().filter(|target| target["refused"].is_null()).cloned().collect()
}

/// What headers alone say of a model is what all of it says.
#[track_caller]
fn outlined(folder: &Path) {
    let (full, outline) = (Model::open(folder).unwrap(), Model::outline(folder).unwrap());
    let shapes = |model: &Model| {
        let tensors = model.tensors().into_iter().map(|t| (t.name, t.dtype, t.shape));
        tensors.collect::<Vec<_>>()
    };
    assert_eq!(shapes(&full), shapes(&outline));
    assert_eq!(Cost::of(&full), Cost::of(&outline));
    assert_eq!(full.config_json(&Value::Null), outline.config_json(&Value::Null));
    let macs = |model: &Model| compress::model::cost::macs(model, 3, 20);
    assert_eq!(macs(&full), macs(&outline));
    // Scales and codebooks may be there, as zeros.
    for tensor in outline.tensors().iter().filter(|t| t.name.ends_with(".weight")) {
        assert!(tensor.is_blank(), "{tensor:?}");
    }
}

#[test]
fn what_is_known_beforehand_comes_to_the_byte() {
    let dir = Dir::new();
    let wrong: String = KNOWN.iter().map(|run| misfits(&dir, *run, true)).collect();
    assert!(wrong.is_empty(), "{wrong}");
    let saved = "prune(sparsity=0.4,save_masks=true)";
    dir.ok(&["-q", "-o", "masked", "--passes", saved, &reviews("model"), "--calib", "none"]);
    let masks = dir.path("masked/masks.safetensors");
    let again = format!("prune(masks=\"{}\"),binarize", masks.to_str().unwrap());
    let wrong = misfits(&dir, (&again, "--calib none"), true);
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn what_depends_on_numbers_and_texts_comes_within_its_bounds() {
    let dir = Dir::new();
    let wrong: String = BOUNDED.iter().map(|run| misfits(&dir, *run, false)).collect();
    assert!(wrong.is_empty(), "{wrong}");
}

/// Signs as bytes and in two bits are no form of the native file.
#[test]
fn graphs_with_other_signs_are_planned_too() {
    let (dir, model) = (Dir::new(), reviews("model"));
    for planes in ["int8", "nbits"] {
        for recipe in [
            "binarize(rank=3,embeddings=2)",
            "binarize(form=double,activations=32)",
            "binarize(bits=1.7)",
            "prune,binarize(planes=3,activations=4)",
        ] {
            let args = ["--passes", recipe, "--emit", "onnx", "--onnx-binary", planes, &model];
            let args = [&args[..], &["--calib", "none"]].concat();
            dir.ok(&[&["-q", "-o", "out", "--force"], &args[..]].concat());
            let report = std::fs::read(dir.path("out/report.json")).unwrap();
            let report: Value = serde_json::from_slice(&report).unwrap();
            let met = &report["emitted"][0];
            let [low, high] = [0, 1].map(|i| met["planned_weight_bytes"][i].as_u64().unwrap());
            let came = std::fs::metadata(dir.path("out/onnx/model.onnx")).unwrap().len();
            assert_eq!(met["weight_bytes"], came);
            assert!((low..=high).contains(&came), "{planes}, {recipe}: {met}");
            assert_eq!(low == high, !recipe.contains("bits") && !recipe.contains("prune"));
            let said = std::fs::read_to_string(dir.path("out/report.md")).unwrap();
            let count = compress::report::count;
            let line = format!("{} bytes of weights planned, {} came.", count(high), count(came));
            assert!(said.contains(&line), "{said}");
        }
    }
    let plan = ["plan", "--passes", "binarize(group=24)", "--emit", "onnx", &model];
    let plan = dir.json(&[&plan[..], &["--onnx-binary", "int8"]].concat());
    let onnx = &plan["targets"][2];
    assert!(onnx["refused"].as_str().unwrap().contains("scales by groups"), "{onnx}");
    assert!(onnx["weight_bytes"].is_null());
}

/// A target that comes later was planned only as it was going to be split.
#[test]
fn what_is_split_otherwise_was_not_planned() {
    let (dir, model) = (Dir::new(), reviews("model"));
    dir.ok(&["-q", "--passes", "", &model, "-o", "out", "--calib", "none"]);
    let planned = |args: &[&str]| {
        dir.ok(&[&["emit", "out", "--emit", "dense"], args].concat());
        let report = std::fs::read(dir.path("out/report.json")).unwrap();
        let report: Value = serde_json::from_slice(&report).unwrap();
        let target = &report["emitted"][0];
        (target["planned_weight_bytes"].clone(), target["weight_bytes"].clone())
    };
    let (whole, came) = planned(&[]);
    assert_eq!([&whole[0], &whole[1]], [&came; 2]);
    let (split, more) = planned(&["--max-shard-size", "1"]);
    assert!(split.is_null() && more.as_u64() > came.as_u64(), "{split}, {more} behind {came}");
}

/// Bytes that the README gives for a real model, each of a run, and how far apart bounds may lie.
#[test]
fn what_was_measured_of_a_real_model_is_planned() {
    let Some(real) = shared("real") else { return };
    let (model, data) = (real.join("models/minilm-sst2"), real.join("data/SST-2/train.tsv"));
    let (model, data) = (model.to_str().unwrap(), data.to_str().unwrap());
    let dir = Dir::new();
    for (recipe, text, bytes, width) in [
        ("quantize", "", 23_962_908, 0),
        ("binarize", "", 51_146_936, 0),
        ("binarize(embeddings=4)", "", 10_369_464, 0),
        ("binarize(planes=3,embeddings=4)", "", 11_738_064, 0),
        ("binarize(planes=1,rank=16)", "", 51_114_136, 0),
        ("embed", "--calib", 47_808_956, 400_000),
        ("embed(preset=small)", "--calib", 46_343_900, 400_000),
        ("prune", "", 80_261_640, 400_000),
        ("prune(sparsity=0.5)", "", 69_578_936, 200_000),
        ("prune,binarize", "", 50_465_256, 250_000),
        ("prune,embed,binarize", "--calib", 7_404_060, 700_000),
        ("prune,binarize(planes=3,embeddings=4)", "", 10_722_568, 400_000),
        ("prune(sparsity=0.8,mode=text),distill", "--data", 56_853_256, 400_000),
        ("prune(sparsity=0.95,steps=400)", "--data", 48_422_592, 50_000_000),
        ("binarize(bits=1.03)", "", 49_785_664, 300_000),
        ("vocab", "--data", 64_852_720, 50_000_000),
        ("tokens", "", 90_867_952, 0),
    ] {
        let mut args = vec!["plan", model, "--passes", recipe];
        args.extend([text, data].iter().filter(|_| !text.is_empty()));
        let plan = dir.json(&args);
        let [low, high] = [0, 1].map(|i| plan["file_bytes"][i].as_u64().unwrap());
        assert!((low..=high).contains(&bytes), "{recipe}: {low} to {high}, came {bytes}");
        assert!(high - low <= width, "{recipe}: {low} to {high}");
    }
}

/// Sparsities at which heads and units of a layer or two are all there is to choose from.
#[test]
fn every_family_comes_within_its_bounds() {
    let Some(golden) = shared("golden") else { return };
    let (dir, mut checked) = (Dir::new(), 0);
    for case in std::fs::read_dir(golden).unwrap().flatten() {
        let model = case.path().to_str().unwrap().to_string();
        for recipe in [
            "embed,binarize(rank=3)",
            "prune(sparsity=0.4),embed(method=svd),binarize(form=double)",
            "prune(sparsity=0.2),quantize",
            "prune(sparsity=0.7,round_to=1)",
            "prune(sparsity=0.3,round_to=1,shape=uniform)",
        ] {
            let args = ["--passes", recipe, &model, "--calib", "none"];
            if dir.run(&[&["plan"], &args[..]].concat()).code == Some(4) {
                continue; // of a family that this build does not know, or no model
            }
            let targets = carried(&dir.json(&[&["plan"], &args[..]].concat()));
            let names = targets.iter().map(|t| t["name"].as_str().unwrap());
            let names = names.collect::<Vec<_>>().join(",");
            dir.ok(&[&["-q", "-o", "out", "--force", "--emit", &names], &args[..]].concat());
            let report = std::fs::read(dir.path("out/report.json")).unwrap();
            for (name, [low, high], came) in planned(&serde_json::from_slice(&report).unwrap()) {
                let wrong = format!("{model}, {recipe}: {name}: {low} to {high}, came {came}");
                assert!((low..=high).contains(&came), "{wrong}");
                let open = recipe.starts_with("prune") && !recipe.contains("uniform");
                assert!(low == high || open, "{wrong}");
            }
            checked += 1;
        }
    }
    assert!(checked >= 40, "{checked} runs");
}

#[test]
fn a_plan_is_read_by_people() {
    let dir = Dir::new();
    let model = reviews("model");
    let mut text = String::new();
    for (recipe, more) in [
        ("embed,binarize(rank=4)", "--emit hf"),
        ("prune(sparsity=0.5),quantize", "--max-shard-size 1"),
        ("tokens(flops=0.5),binarize(size=1.2MB,activations=4),distill(steps=3)", ""),
        ("", ""),
    ] {
        let args = ["plan", "--threads", "2", "--passes", recipe, &model];
        let said = dir.ok(&[&args[..], &more.split_whitespace().collect::<Vec<_>>()].concat());
        // Roughly, and with the machine: what is said of time is no matter of this test.
        let lines = said.lines().filter(|line| !line.starts_with("about "));
        text += &format!("$ compress plan --passes '{recipe}' {more}\n");
        lines.for_each(|line| text += &format!("{line}\n"));
        text += "\n";
        assert!(said.contains(" on 2 threads, and "), "{said}");
    }
    insta::assert_snapshot!("plan", text);
}

#[test]
fn a_dry_run_prints_the_plan_and_writes_nothing() {
    let dir = Dir::with_tiny();
    let passes = ["--passes", "prune,binarize", "model", "--calib", "none"];
    let plan = dir.ok(&[&["plan"], &passes[..]].concat());
    assert_eq!(dir.ok(&[&passes[..], &["--dry-run"]].concat()), plan);
    assert_eq!(dir.ok(&[&passes[..], &["--dry-run", "-o", "out"]].concat()), plan);
    assert!(!dir.path("out").exists());
    std::fs::create_dir(dir.path("full")).unwrap();
    dir.write("full/file", "of the user");
    dir.fails(2, &[&passes[..], &["--dry-run", "-o", "full"]].concat()); // not even by --force
    dir.ok(&["--passes", "quantize", "--calib", "none", "model", "-o", "old"]);
    let before = dir.tree("old");
    for rest in [&["-o", "old"][..], &["-o", "old", "--force"], &["-o", "out"]] {
        assert_eq!(dir.ok(&[&passes[..], &["--dry-run"], rest].concat()), plan);
        assert_eq!(dir.ok(&[&["plan"], &passes[..], rest].concat()), plan);
    }
    assert_eq!(dir.tree("old"), before);
    assert!(!dir.path("out").exists());
    dir.fails(2, &[&["plan"], &passes[..], &["-o", "model"]].concat());
    dir.fails(2, &[&passes[..], &["--dry-run", "-o", "model"]].concat());
}

/// What a run refuses before any work, a plan refuses in the same words.
#[test]
fn a_plan_refuses_what_a_run_refuses() {
    let dir = Dir::with_tiny();
    std::fs::create_dir(dir.path("bare")).unwrap();
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(dir.path("model").join(name), dir.path("bare").join(name)).unwrap();
    }
    for (code, line) in [
        (3, "--passes binarize,prune model"),
        (3, "--passes prune(mode=train) model"),
        (3, "--passes prune(mode=text) model --calib none"),
        (3, "--passes prune(params=1) model --calib none"),
        (3, "--passes prune(sparsity=0.9,shape=uniform) model --calib none"),
        (3, "--passes tokens(mode=text) model --calib none"),
        (3, "--passes tokens(drop=1%) model --calib none"),
        (3, "--passes embed(share=0.001) model --calib none"),
        (3, "--passes embed(bytes=4000) model --calib none"),
        (3, "--passes binarize(bits=0.5) model --calib none"),
        (3, "--passes binarize(size=1kB) model --calib none"),
        (4, "--passes binarize(planes=1,activations=1) model --calib none"),
        (4, "--passes distill model --calib none"),
        (4, "--passes tokens(from=9) model --calib none"),
        (4, "--passes embed,quantize model --calib none"),
        (4, "--passes vocab model --calib none"),
        (4, "--passes vocab bare --calib none"),
        (4, "--passes prune bare --data data.tsv"),
        (6, "--passes prune model --calib missing.txt"),
        (6, "--passes vocab(keep=missing.txt) model"),
        (4, "--passes vocab(keep=missing.doc) model"),
        (4, "--passes prune model --eval model"),
        (6, "--passes prune missing"),
        (2, "--passes prune model --calib-texts 0"),
        (2, "--passes prune model --data data.tsv --data-texts 0"),
        (2, "--passes prune model --max-length 4000"),
        (2, "--passes prune model --emit nothing"),
        (4, "--passes tokens model --emit dense"),
    ] {
        let args: Vec<&str> = line.split(' ').collect();
        let planned = dir.refusal(code, &[&["plan"], &args[..]].concat());
        let ran = dir.refusal(code, &[&["-q", "-o", "out"], &args[..]].concat());
        assert!(planned.is_ok(), "{line}: {planned:?}");
        assert_eq!(planned, ran, "{line}");
    }
}

/// A checkpoint of two gigabytes, of which there is the header, and one number: whoever reads it finds that it is none.
#[test]
fn no_number_is_read() {
    let dir = Dir::new();
    let (hidden, layers, ffn, vocab) = (1024u64, 16, 4096, 300_000);
    let config = serde_json::json!({
        "model_type": "bert", "architectures": ["BertForSequenceClassification"], "hidden_size": hidden,
        "num_hidden_layers": layers, "num_attention_heads": 16, "intermediate_size": ffn, "vocab_size": vocab,
        "hidden_act": "gelu", "max_position_embeddings": 512, "type_vocab_size": 2,
    });
    std::fs::create_dir(dir.path("model")).unwrap();
    dir.write("model/config.json", config.to_string());
    let mut shapes: Vec<(String, Vec<u64>)> = Vec::new();
    let linear = |name: String, rows: u64, cols: u64, shapes: &mut Vec<(String, Vec<u64>)>| {
        shapes.push((format!("{name}.weight"), vec![rows, cols]));
        shapes.push((format!("{name}.bias"), vec![rows]));
    };
    let norm = |name: String, shapes: &mut Vec<(String, Vec<u64>)>| {
        shapes.push((format!("{name}.LayerNorm.weight"), vec![hidden]));
        shapes.push((format!("{name}.LayerNorm.bias"), vec![hidden]));
    };
    for (table, rows) in [("word", vocab), ("position", 512), ("token_type", 2)] {
        let name = format!("bert.embeddings.{table}_embeddings.weight");
        shapes.push((name, vec![rows, hidden]));
    }
    norm("bert.embeddings".into(), &mut shapes);
    for l in 0..layers {
        let at = |part: &str| format!("bert.encoder.layer.{l}.{part}");
        for part in ["query", "key", "value"] {
            linear(at(&format!("attention.self.{part}")), hidden, hidden, &mut shapes);
        }
        linear(at("attention.output.dense"), hidden, hidden, &mut shapes);
        norm(at("attention.output"), &mut shapes);
        linear(at("intermediate.dense"), ffn, hidden, &mut shapes);
        linear(at("output.dense"), hidden, ffn, &mut shapes);
        norm(at("output"), &mut shapes);
    }
    linear("bert.pooler.dense".into(), hidden, hidden, &mut shapes);
    linear("classifier".into(), 2, hidden, &mut shapes);
    let (mut header, mut end) = (serde_json::Map::new(), 0);
    for (name, shape) in &shapes {
        let begin = end;
        end += 4 * shape.iter().product::<u64>();
        let entry =
            serde_json::json!({"dtype": "F32", "shape": shape, "data_offsets": [begin, end]});
        header.insert(name.clone(), entry);
    }
    let header = Value::Object(header).to_string();
    let file = std::fs::File::create(dir.path("model/model.safetensors")).unwrap();
    let start = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat();
    (&file).write_all(&[&start[..], &f32::NAN.to_le_bytes()].concat()).unwrap();
    file.set_len(start.len() as u64 + end).unwrap();
    assert!(end > 2_000_000_000, "{end}");

    let run = ["--passes", "prune,embed,binarize", "model", "--calib", "none"];
    let plan = dir.json(&[&["plan"], &run[..]].concat());
    assert!(plan["file_bytes"][1].as_u64().unwrap() < end / 8, "{plan}");
    // Beyond what protobuf holds, constants stand beside the graph.
    let whole = dir.json(&["plan", "--passes", "", "model", "--calib", "none"]);
    let onnx = &whole["targets"][2];
    let bytes = |i: usize| onnx["files"][i]["bytes"].as_u64().unwrap();
    assert_eq!(onnx["files"][1]["name"], "onnx/model.onnx_data");
    assert!(bytes(0) < 1 << 20 && bytes(1) > end - (1 << 20), "{onnx}");
    assert_eq!(onnx["weight_bytes"][0], bytes(0) + bytes(1));
    let refused = dir.fails(4, &[&run[..], &["-o", "out"]].concat());
    assert!(refused.contains("NaN"), "{refused}");
}
