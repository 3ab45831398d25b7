//! The pass `prune`: masks, targets, whole layers and training, from the command line.

use crate::determinism::timeless;
use crate::support::{Dir, planned, reviews, stored, write_tensors};
use crate::tiny::{FFN, HIDDEN, Tiny};
use crate::train::{config, report, save_every_head, words, write_examples};
use compress::checkpoint::{Dtype, Tensor};
use compress::model::{Model, cost};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// Heads of a layer of [`Tiny`].
const HEADS: usize = 2;

/// Numbers of a file of masks, layer after layer.
struct Masks {
    layers: usize,
    heads: Vec<f32>,
    attention: Vec<f32>,
    units: Vec<f32>,
    ffn: Vec<f32>,
    hidden: Vec<f32>,
}

impl Masks {
    /// All open, for a [`Tiny`] of so many layers.
    fn ones(layers: usize) -> Masks {
        Masks {
            layers,
            heads: vec![1.0; layers * HEADS],
            attention: vec![1.0; layers],
            units: vec![1.0; layers * FFN],
            ffn: vec![1.0; layers],
            hidden: vec![1.0; HIDDEN],
        }
    }

    /// For two layers: what is open is so by 0.128 to 0.996. A quarter of the hidden dimensions, the attention
    /// of the first layer, five of its units, the heads of the second and its feed-forward block are closed.
    fn soft() -> Masks {
        let mut masks = Masks::ones(2);
        let Masks { heads, attention, units, ffn, hidden, .. } = &mut masks;
        for row in [&mut *heads, attention, units, ffn, hidden] {
            let last = row.len() as f32 - 1.0;
            row.iter_mut().enumerate().for_each(|(i, z)| *z = 0.128 + 0.868 * i as f32 / last);
        }
        hidden.iter_mut().step_by(4).for_each(|z| *z = 0.0);
        attention[0] = 0.0;
        units[..5].fill(0.0);
        heads[HEADS..].fill(0.0);
        ffn[1] = 0.0;
        masks
    }

    /// Written with the shapes of CoFi's `zs.pt`.
    fn save(&self, dir: &Dir, name: &str) {
        let n = self.layers;
        let tensors = [
            ("head_z", &[n, 1, HEADS, 1, 1][..], &self.heads),
            ("head_layer_z", &[n], &self.attention),
            ("intermediate_z", &[n, 1, 1, FFN], &self.units),
            ("mlp_z", &[n], &self.ffn),
            ("hidden_z", &[HIDDEN], &self.hidden),
        ];
        let tensors =
            tensors.map(|(name, shape, values)| Tensor::from_f32(name, shape, values, Dtype::F32));
        write_tensors(&dir.path(name), &tensors);
    }
}

/// What tensors are there, and of what shape.
fn shapes(dir: &Dir, file: &str) -> BTreeMap<String, Vec<usize>> {
    stored(&dir.path(file)).into_iter().map(|(name, t)| (name, t.shape)).collect()
}

/// A number of a report.
#[track_caller]
fn number(report: &Value, pointer: &str) -> f64 {
    let found = report.pointer(pointer).and_then(Value::as_f64);
    found.unwrap_or_else(|| panic!("no {pointer} in {report:#}"))
}

/// Three texts for `compress forward`, one of them padded.
const IDS: [[i64; 5]; 3] = [[2, 20, 25, 30, 3], [2, 7, 11, 35, 3], [2, 39, 3, 0, 0]];

/// Logits of a model of two classes.
fn logits(dir: &Dir, model: &str) -> Vec<f32> {
    let mask: Vec<i64> = IDS.as_flattened().iter().map(|&id| i64::from(id != 0)).collect();
    let inputs = [
        Tensor::from_i64("input_ids", &[3, 5], IDS.as_flattened()),
        Tensor::from_i64("attention_mask", &[3, 5], &mask),
    ];
    write_tensors(&dir.path("in.safetensors"), &inputs);
    dir.ok(&["forward", model, "--inputs", "in.safetensors", "-o", "out.safetensors", "--force"]);
    let found = stored(&dir.path("out.safetensors"))["logits"].clone();
    assert_eq!(found.shape, [3, 2]);
    found.f32()
}

#[test]
fn masks_that_are_saved_make_the_same_cut_again() {
    let dir = Dir::with_tiny();
    dir.ok(&words(
        "-q --calib none --passes prune(sparsity=0.4,repair=false,save_masks=true) model -o first",
    ));
    let found: Vec<String> =
        shapes(&dir, "first/masks.safetensors").iter().map(|s| format!("{s:?}")).collect();
    insta::assert_snapshot!(found.join("\n"), @r#"
    ("head_layer_z", [2])
    ("head_z", [2, 1, 2, 1, 1])
    ("hidden_z", [16])
    ("intermediate_z", [2, 1, 1, 24])
    ("mlp_z", [2])
    "#);
    dir.ok(&["verify", "first"]);
    let files = report(&dir, "first")["files"].clone();
    let name = |f: &Value| f["name"] == "masks.safetensors";
    assert!(files.as_array().unwrap().iter().any(name), "{files:#}");

    let again = "-q --calib none --passes prune(masks=first/masks.safetensors) model -o second";
    dir.ok(&words(again));
    let weights = |out: &str| dir.tree(out)["/model.safetensors"].clone();
    assert_eq!(weights("second"), weights("first"));
    assert!(!dir.path("second/masks.safetensors").exists(), "nobody asked for them");
    assert_ne!(shapes(&dir, "first/model.safetensors"), shapes(&dir, "model/model.safetensors"));

    // What the repair made of the weights is not in the masks.
    dir.ok(&words("-q --passes prune(sparsity=0.4,save_masks=true) model -o text"));
    dir.ok(&words("-q --passes prune(masks=text/masks.safetensors) model -o cut"));
    assert_eq!(shapes(&dir, "cut/model.safetensors"), shapes(&dir, "text/model.safetensors"));
    assert_ne!(weights("cut"), weights("text"));
}

#[test]
fn an_output_is_pruned_on_without_its_masks() {
    let dir = Dir::with_tiny();
    let run = "-q --calib none --passes prune(sparsity=0.2,save_masks=true,round_to=4)";
    dir.ok(&words(&format!("{run} model -o a")));
    dir.ok(&words(&format!("{run} a -o b")));
    dir.ok(&["verify", "b"]);
    // Its masks are those of `a`, in the places of the heads of `model`.
    dir.ok(&words("-q --calib none --passes prune(masks=b/masks.safetensors) a -o c"));
    assert_eq!(shapes(&dir, "c/model.safetensors"), shapes(&dir, "b/model.safetensors"));
    dir.ok(&words("-q --calib none --passes binarize b -o d"));
    assert!(!dir.path("d/masks.safetensors").exists(), "weights of another model");
}

#[test]
fn two_passes_of_a_recipe_save_their_masks_apart() {
    let dir = Dir::with_tiny();
    let pass = "prune(sparsity=0.2,save_masks=true,round_to=4)";
    dir.ok(&words(&format!("-q --calib none --passes {pass},{pass} model -o out")));
    dir.ok(&["verify", "out"]);
    let names = dir.tree("out").into_keys().filter(|name| name.contains("masks"));
    assert_eq!(names.collect::<Vec<_>>(), ["/1-masks.safetensors", "/masks.safetensors"]);
}

#[test]
fn soft_masks_are_folded_into_the_weights() {
    let dir = Dir::with_tiny();
    Masks::soft().save(&dir, "zs.safetensors");
    dir.ok(&words("-q --passes prune(masks=zs.safetensors) model -o out"));
    dir.ok(&["verify", "out"]);

    let found = dir.json(&["inspect", "out"]);
    assert_eq!(found["hidden"], HIDDEN * 3 / 4);
    let text = dir.ok(&["inspect", "out"]);
    assert!(text.contains("\n2 layers, hidden 12, 0 heads of 8, "), "{text}");
    let config = config(&dir, "out");
    assert_eq!(config["hidden_size"], HIDDEN, "as the heads are of");
    insta::assert_snapshot!(
        format!("hidden {}, layers {}", config["compress"]["hidden"], config["compress"]["layers"]),
        @r#"hidden 12, layers [{"heads":null,"ffn":19},{"heads":[],"ffn":null}]"#
    );
    assert_eq!(report(&dir, "out")["loads_natively"], false);
    let (before, after) = (logits(&dir, "model"), logits(&dir, "out"));
    assert!(after.iter().all(|x| x.is_finite()) && after != before, "{after:?}");
    // What it wrote is read and written as it is.
    dir.ok(&["--passes", "", "out", "-o", "copy"]);
    assert_eq!(stored(&dir.path("copy")), stored(&dir.path("out")));
    assert_eq!(logits(&dir, "copy"), after);
}

#[test]
fn a_narrower_model_of_every_kind_goes_through_other_passes() {
    let dir = Dir::with_tiny();
    save_every_head(&dir);
    Tiny::roberta().save(&dir.path("roberta"));
    write_examples(&dir);
    Masks::soft().save(&dir, "zs.safetensors");
    for model in ["classifier", "regression", "tagger", "reader", "masked", "roberta"] {
        let run = format!("-q --force --passes prune(masks=zs.safetensors) {model} -o narrow");
        dir.ok(&words(&run));
        dir.ok(&["verify", "narrow"]);
        assert_eq!(dir.json(&["inspect", "narrow"])["hidden"], HIDDEN * 3 / 4, "{model}");
        for passes in [
            "prune(sparsity=0.2,mode=text,round_to=4),binarize(planes=2,rank=1)",
            "prune(flops=0.9,mode=weights,round_to=4),distill(steps=2,embeddings=true)",
        ] {
            let run = format!("-q --force --data texts.txt --passes {passes} narrow -o out");
            dir.ok(&words(&run));
            dir.ok(&["verify", "out"]);
        }
    }
}

/// What is wrong, the exit code, and options of the pass and of the line.
type Refusal = (&'static str, i32, &'static str, &'static str);

const REFUSALS: &[Refusal] = &[
    ("no file", 6, "masks=nosuch.safetensors", "model"),
    ("not safetensors", 4, "masks=data.tsv", "model"),
    ("garbage", 4, "masks=garbage.safetensors", "model"),
    ("another model", 4, "masks=bare/model.safetensors", "model"),
    ("an unknown name", 4, "masks=unknown.safetensors", "model"),
    ("a wrong shape", 4, "masks=shape.safetensors", "model"),
    ("a value above 1", 4, "masks=above.safetensors", "model"),
    ("NaN", 4, "masks=nan.safetensors", "model"),
    ("integers", 4, "masks=integers.safetensors", "model"),
    ("hidden states that are the answers", 4, "masks=narrow.safetensors", "bare"),
    ("a sentence embedding", 4, "masks=narrow.safetensors", "embedder"),
    ("no hidden dimension left", 4, "masks=none.safetensors", "model"),
    ("a packed model", 4, "masks=open.safetensors", "packed"),
    ("masks beside sparsity", 3, "masks=open.safetensors,sparsity=0.5", "model"),
    ("flops beside speedup", 3, "flops=0.5,speedup=2", "model"),
    ("flops above 1", 3, "flops=2", "model"),
    ("flops that heads and units do not take", 3, "flops=0.001", "model"),
    ("speedup below 1", 3, "speedup=0.5", "model"),
    ("more params than there are", 3, "params=1000000", "model"),
    ("fewer params than stay", 3, "params=10", "model"),
    ("training without data", 3, "mode=train", "model"),
    ("widths in multiples of 0", 3, "round_to=0", "model"),
];

#[test]
fn what_cannot_be_is_refused() {
    let dir = Dir::with_tiny();
    save_every_head(&dir);
    Tiny::packed().save(&dir.path("packed"));
    let masks = |name: &str, change: fn(&mut Masks)| {
        let mut masks = Masks::ones(2);
        change(&mut masks);
        masks.save(&dir, &format!("{name}.safetensors"));
    };
    masks("open", |_| {});
    masks("above", |m| m.units[30] = 1.5);
    masks("nan", |m| m.heads[1] = f32::NAN);
    masks("narrow", |m| m.hidden[3] = 0.0);
    masks("none", |m| m.hidden.fill(0.0));
    dir.write("garbage.safetensors", [7; 500]);
    let one = |name: &str, tensor: Tensor| {
        write_tensors(&dir.path(&format!("{name}.safetensors")), &[tensor]);
    };
    one("unknown", Tensor::from_f32("heads_z", &[4], &[1.0; 4], Dtype::F32));
    one("shape", Tensor::from_f32("head_z", &[2, 1, 3, 1, 1], &[1.0; 6], Dtype::F32));
    one("integers", Tensor::from_i64("hidden_z", &[HIDDEN], &[1; HIDDEN]));
    let mut text = String::new();
    for (name, code, options, model) in REFUSALS {
        let run = format!("-q --calib none --passes prune({options}) {model} -o out");
        let message = dir.refusal(*code, &words(&run)).unwrap_or_else(|broken| broken);
        text += &format!("{name} ({code}): {message}\n");
    }
    insta::assert_snapshot!(text, @r#"
    no file (6): pass `prune` failed: cannot read nosuch.safetensors: No such file or directory (os error 2)
    not safetensors (4): pass `prune` failed: data.tsv: found a file named `data.tsv`, expected a folder or a `.safetensors` file; check the path
    garbage (4): pass `prune` failed: garbage.safetensors: found a header length of 506381209866536711 bytes, expected at most 100000000; the file is damaged, or is not a safetensors file
    another model (4): pass `prune` failed: bare/model.safetensors: found a tensor `embeddings.LayerNorm.bias`, expected head_z, head_layer_z, intermediate_z, mlp_z, hidden_z; convert CoFi's `zs.pt` tensor by tensor, names and values as they are
    an unknown name (4): pass `prune` failed: unknown.safetensors: found a tensor `heads_z`, expected head_z, head_layer_z, intermediate_z, mlp_z, hidden_z; convert CoFi's `zs.pt` tensor by tensor, names and values as they are
    a wrong shape (4): pass `prune` failed: shape.safetensors: found `head_z` of shape [2, 1, 3, 1, 1], expected 2 x 2 numbers, for the model that is to be cut; convert CoFi's `zs.pt` tensor by tensor, names and values as they are
    a value above 1 (4): pass `prune` failed: above.safetensors: found 1.5 in `intermediate_z`, expected numbers in [0, 1]; convert CoFi's `zs.pt` tensor by tensor, names and values as they are
    NaN (4): pass `prune` failed: nan.safetensors: found NaN in `head_z`, expected numbers in [0, 1]; convert CoFi's `zs.pt` tensor by tensor, names and values as they are
    integers (4): pass `prune` failed: tensor `hidden_z` has dtype I64, expected F32, F16 or BF16; convert the checkpoint first
    hidden states that are the answers (4): pass `prune` failed: masks leave 15 of 16 hidden dimensions of a model for bare encoder, but its hidden states are its answers, and their width stays; leave `hidden_z` out of the masks
    a sentence embedding (4): pass `prune` failed: masks leave 15 of 16 hidden dimensions of a model for sentence embedding, but its hidden states are its answers, and their width stays; leave `hidden_z` out of the masks
    no hidden dimension left (4): pass `prune` failed: masks leave 0 of 16 hidden dimensions of a model for sequence classification, but a model has at least one; leave `hidden_z` out of the masks
    a packed model (4): pass `prune` failed: `bert.encoder.layer.0.intermediate.dense` is packed in 1 sign planes, but only dense weights can be cut or packed; start from the checkpoint as it was before binarization
    masks beside sparsity (3): pass `prune`: `masks` is given beside sparsity, expected one target
    flops beside speedup (3): pass `prune`: `flops` is given beside speedup, expected one target
    flops above 1 (3): pass `prune`: `flops` is 2, expected a share that is left, in (0, 1]
    flops that heads and units do not take (3): pass `prune`: `flops` is 0.001, expected a share above 0.0016, with all blocks gone
    speedup below 1 (3): pass `prune`: `speedup` is 0.5, expected a factor from 1 to 1000
    more params than there are (3): pass `prune`: `params` is 1000000, expected from 1522 to 5442, what the model has
    fewer params than stay (3): pass `prune`: `params` is 10, expected from 1522 to 5442, what the model has
    training without data (3): pass `prune`: `mode` is "train", without text to train on, expected a file by --data, or mode=text
    widths in multiples of 0 (3): pass `prune`: `round_to` is 0, expected a number from 1 to 1024
    "#);
}

#[test]
fn targets_are_met_within_a_step_of_units() {
    let (dir, model) = (Dir::new(), reviews("model"));
    // 8 units of 128 hidden dimensions.
    let step_params = 8.0 * (2.0 * 128.0 + 1.0);
    let report_of = |options: &str| {
        let run = format!("-q --force --calib none --passes prune({options}) {model} -o out");
        dir.ok(&words(&run));
        report(&dir, "out")
    };
    for asked in [0.9, 0.7, 0.5] {
        let found = report_of(&format!("flops={asked}"));
        let tokens = number(&found, "/before/compute/tokens");
        // Of every token in every layer: a classifier's last layer, of which the runtime computes one token, is
        // priced as the others are.
        let [before, after] = [Path::new(&model), &dir.path("out")].map(|path| {
            let model = Model::open(path).unwrap();
            2.0 * cost::whole_macs(&model, tokens as usize) as f64
        });
        let step = 8.0 * 2.0 * 2.0 * 128.0 * tokens;
        assert!((after - asked * before).abs() <= step, "{asked}: {after} of {before}");
    }
    for asked in [600_000, 450_000] {
        let found = report_of(&format!("params={asked}"));
        let after = number(&found, "/after/cost/total/params");
        assert!((after - f64::from(asked)).abs() <= step_params, "{asked}: {after}");
    }
    // What cannot be had is not passed over in silence.
    let found = report_of("params=280000");
    insta::assert_snapshot!(
        found["passes"][0]["notes"][1],
        @r#""parameters gone 0.5791 asked for, 0.5381 cut: every layer keeps a head and 8 units""#
    );
    // Of a target that is what there is, nothing goes.
    assert_eq!(report_of("flops=1")["passes"][0]["changes"], serde_json::json!([]));
}

#[test]
fn a_speedup_is_measured_and_said() {
    let (dir, model) = (Dir::new(), reviews("model"));
    dir.ok(&words(&format!("-q --calib none --passes prune(speedup=1.2) {model} -o out")));
    dir.ok(&["verify", "out"]);
    let found = report(&dir, "out");
    let notes = found["passes"][0]["notes"].as_array().unwrap();
    let note = notes.last().unwrap().as_str().unwrap();
    assert!(note.starts_with("speedup 1.2 asked for, ") && note.contains(" measured"), "{note}");
    let params = |when: &str| number(&found, &format!("/{when}/cost/total/params"));
    assert!(params("after") < params("before"));
}

/// [`Tiny::classifier`] with a third layer, other than the second.
fn three_layers() -> Tiny {
    let mut tiny = Tiny::classifier();
    tiny.config["num_hidden_layers"] = 3.into();
    for tensor in tiny.tensors.clone() {
        if tensor.name.contains(".layer.1.") {
            tiny.tensor(&tensor.name.replace(".layer.1.", ".layer.2."), &tensor.shape);
        }
    }
    tiny
}

/// Outputs that Transformers loads: of a model of which a whole layer went, at `shorter`, and of one whose
/// layers are narrower, at `narrower`.
fn uniform() -> Dir {
    let dir = Dir::new();
    three_layers().save(&dir.path("model"));
    let mut masks = Masks::ones(3);
    (masks.attention[1], masks.ffn[1]) = (0.0, 0.0);
    for (layer, units) in masks.units.chunks_mut(FFN).enumerate() {
        units[4 * layer..4 * layer + 8].fill(0.0); // as many of each, not the same
    }
    masks.units[FFN + 3] = 0.0; // of the layer that goes
    masks.save(&dir, "zs.safetensors");
    dir.ok(&words("-q --calib none --passes prune(masks=zs.safetensors) model -o shorter"));
    let narrow = "-q --calib none --passes prune(shape=uniform,sparsity=0.3) -o narrower";
    dir.ok(&[&words(narrow)[..], &[&reviews("model")]].concat());
    dir
}

#[test]
fn a_layer_without_blocks_goes_and_the_others_close_up() {
    let dir = uniform();
    let (before, after) = (stored(&dir.path("model")), stored(&dir.path("shorter")));
    let mut names: Vec<&str> = after.keys().map(String::as_str).collect();
    names.extend(before.keys().map(|n| &n[..]).filter(|n| n.contains(".layer.2.")));
    names.sort_unstable();
    assert_eq!(names, before.keys().map(String::as_str).collect::<Vec<_>>());
    let at = |l: usize, rest: &str| format!("bert.encoder.layer.{l}.{rest}");
    for name in ["attention.self.query.weight", "output.LayerNorm.bias"] {
        assert_eq!(after[&at(0, name)], before[&at(0, name)]);
        assert_eq!(after[&at(1, name)], before[&at(2, name)]);
    }
    let up = &after[&at(1, "intermediate.dense.weight")];
    assert_eq!(up.shape, [FFN - 8, HIDDEN]);
    assert_eq!(up.bytes, {
        let whole = &before[&at(2, "intermediate.dense.weight")].bytes;
        let row = HIDDEN * size_of::<f32>();
        [&whole[..8 * row], &whole[16 * row..]].concat()
    });

    for (out, layers, units) in [("shorter", 2, FFN - 8), ("narrower", 2, 280)] {
        dir.ok(&["verify", out]);
        let (config, report) = (config(&dir, out), report(&dir, out));
        assert_eq!(config["num_hidden_layers"], layers, "{out}");
        assert_eq!(config["intermediate_size"], units, "{out}");
        assert_eq!(report["loads_natively"], true, "{out}");
    }
}

/// Loads folders as anyone would; prints how that went, and their logits.
const PYTHON: &str = r#"
import json, sys
try:
    import torch
    from transformers import AutoModelForSequenceClassification as Auto
except ImportError:
    sys.exit(77)
torch.set_num_threads(1)
ids = torch.tensor(json.loads(sys.argv[1]))
for folder in sys.argv[2:]:
    model, info = Auto.from_pretrained(folder, output_loading_info=True)
    with torch.no_grad():
        logits = model.eval()(input_ids=ids, attention_mask=(ids != 0).long()).logits
    kinds = ["missing_keys", "unexpected_keys", "mismatched_keys"]
    problems = [str(key) for kind in kinds for key in info[kind]]
    print(json.dumps({"problems": problems, "logits": logits.flatten().tolist()}))
"#;

/// With torch and transformers, in the Python of `COMPRESS_PYTHON` or `python3`.
#[test]
fn transformers_loads_uniform_shapes() {
    let dir = uniform();
    let python = std::env::var("COMPRESS_PYTHON").unwrap_or_else(|_| "python3".into());
    let folders = ["shorter", "narrower"];
    let mut command = std::process::Command::new(python);
    command.args(["-c", PYTHON, &serde_json::json!(IDS).to_string()]);
    command.args(folders.map(|f| dir.path(f))).env("HF_HUB_OFFLINE", "1");
    let Some(run) = command.output().ok().filter(|run| run.status.code() != Some(77)) else {
        println!("skipped: no Python with torch and transformers");
        return;
    };
    let told = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success(), "{told}");
    let lines: Vec<Value> = run
        .stdout
        .split(|&b| b == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_slice(line).unwrap())
        .collect();
    assert_eq!(lines.len(), folders.len());
    for (folder, line) in folders.into_iter().zip(lines) {
        assert_eq!(line["problems"], serde_json::json!([]), "{folder}: {told}");
        let expected = line["logits"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap());
        for (found, expected) in logits(&dir, folder).into_iter().zip(expected) {
            // Logits are up to 4: 1e-4 is about f32 rounding over two layers, ten times.
            assert!((f64::from(found) - expected).abs() < 1e-4, "{folder}: {found} {expected}");
        }
    }
}

/// An update takes a millisecond or two. Rows of so few gates settle where widths are not rounded.
const TRAIN: &str = "--passes prune(sparsity=0.4,steps=240,finetune=300,batch=8,mask_rate=0.3,round_to=1) \
     --calib-texts 8 --data texts.txt model";

fn with_examples() -> Dir {
    let dir = Dir::with_tiny();
    write_examples(&dir);
    dir
}

#[test]
fn training_is_reported_and_the_same_on_any_number_of_threads() {
    let dir = with_examples();
    for threads in ["1", "2"] {
        let more = format!("-q --threads {threads} -o out{threads}");
        dir.ok(&[words(TRAIN), words(&more)].concat());
    }
    assert_eq!(timeless(&dir, "out1"), timeless(&dir, "out2"));
    dir.ok(&["verify", "out1"]);

    let found = report(&dir, "out1");
    for (name, [low, high], came) in planned(&found) {
        assert!((low..=high).contains(&came), "{name}: {low} to {high}, came {came}");
    }
    let pass = &found["passes"][0];
    let trainings = pass["training"].as_array().unwrap();
    let steps: Vec<u64> = trainings.iter().map(|t| t["steps"].as_u64().unwrap()).collect();
    assert_eq!(steps, [240, 300]);
    let note = pass["notes"][0].as_str().unwrap();
    assert!(note.starts_with("mode train (CoFi, from "), "{note}");
    assert!(note.contains("): sparsity 0.4000 asked for"), "{note}");
    let figures = pass["figures"].as_object().unwrap();
    let names: Vec<&str> = figures.keys().map(String::as_str).collect();
    insta::assert_snapshot!(names.join(" "), @"block_sparsity cofi_expected_sparsity cofi_hard_sparsity encoder_sparsity");
    assert!(figures.values().all(|x| (0.2..0.9).contains(&x.as_f64().unwrap())), "{figures:?}");
    let markdown = std::fs::read_to_string(dir.path("out1/report.md")).unwrap();
    assert!(markdown.contains(note), "{markdown}");
}

#[test]
fn a_model_whose_attention_has_lost_its_heads_is_trained() {
    let dir = with_examples();
    let mut masks = Masks::ones(2);
    masks.heads[HEADS..].fill(0.0);
    masks.save(&dir, "zs.safetensors");
    dir.ok(&words("-q --passes prune(masks=zs.safetensors) model -o headless"));
    let train = TRAIN.replace(" model", " headless").replace("sparsity=0.4", "sparsity=0.5");
    dir.ok(&[words(&train), words("-q -o out")].concat());
    dir.ok(&["verify", "out"]);
}

#[test]
#[cfg(unix)]
fn a_run_that_is_stopped_in_either_loop_goes_on_as_if_nothing_had_happened() {
    use crate::support::wait;
    use crate::train::resuming::{await_state, start, stderr};
    let dir = with_examples();
    dir.ok(&[words(TRAIN), words("-q -o whole")].concat());
    let resume = "-o out --resume --save-every 0";
    for state in ["0-prune.safetensors", "0-prune-finetune.safetensors"] {
        let mut child = start(&dir, TRAIN, resume);
        await_state(&mut child, &dir.path("out.resume").join(state), 3);
        // SAFETY: the child is ours and not yet waited for, so the number is still its own.
        assert_eq!(unsafe { libc::kill(child.id() as i32, libc::SIGINT) }, 0);
        assert_eq!(wait(&mut child), Some(130), "{state}");
        let told = stderr(child);
        assert!(told.contains("the state is in out.resume; the same command goes on"), "{told}");
        assert!(!dir.path("out").exists());
    }
    dir.ok(&[words(TRAIN), words("-q --threads 1"), words(resume)].concat());
    assert!(!dir.path("out.resume").exists());
    assert_eq!(timeless(&dir, "out"), timeless(&dir, "whole"));
}
