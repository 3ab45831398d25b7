//! Padded checkpoints answer as the model does; what a target cannot carry is refused by name.

use super::*;
use crate::checkpoint::Dtype;
use crate::model::testing::*;
use crate::model::{Layer, Score, Task, TokenSchedule};

#[test]
fn padded_matrices_change_no_answer() {
    for (i, (family, task)) in every().enumerate() {
        let mut model = tiny(family, task, 200 + i as u64);
        let dim = model.config.head_dim;
        let (heads, units) = (vec![0, 2], vec![1, 2, 5, 9, 20]);
        let rows: Vec<usize> = heads.iter().flat_map(|h| h * dim..(h + 1) * dim).collect();
        let a = model.layers[1].attention.as_mut().unwrap();
        for linear in [&mut a.query, &mut a.key, &mut a.value] {
            *linear = linear.select_outputs(&rows).unwrap();
        }
        a.output = a.output.select_inputs(&rows).unwrap();
        a.heads = heads;
        let f = model.layers[1].ffn.as_mut().unwrap();
        f.up = f.up.select_outputs(&units).unwrap();
        f.down = f.down.select_inputs(&units).unwrap();
        model.layers[2] = Layer { attention: None, ffn: None, bottleneck: None };
        let (dense, config) = padded(&model).unwrap();
        assert!(dense.tensors_load_natively() && config.get("compress").is_none());
        let batch = batch(6, &[5, 1, 9]);
        let (ours, theirs) = (answers(&model, &batch, None), answers(&dense, &batch, None));
        assert!(distance(&theirs, &ours) < 1e-6, "{family}, {task:?}");
        assert_eq!(config[model.family.keys.layers], 2);
    }
}

/// Of every family and head, in every type of numbers.
#[test]
fn files_of_a_model_without_data_are_as_large_as_those_that_are_written() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let types = [Dtype::F32, Dtype::F16, Dtype::BF16].into_iter().cycle();
    for (i, ((family, task), dtype)) in each().zip(types).enumerate() {
        let from = dir.path().join(format!("{i}"));
        std::fs::create_dir(&from).expect("a folder");
        parts(family, task, 220 + i as u64).stored_as(dtype).write(&from);
        let [model, outline] =
            [Model::open(&from), Model::outline(&from)].map(|m| m.expect("a model"));
        let carries = |target: &Target| target.refusal(&model).is_none();
        let mut targets = Target::ALL[1..].to_vec();
        targets.retain(carries);
        let emit = Emit { targets, ..Emit::default() };
        let mut folder = OutputFolder::replace(&from.with_extension("out")).expect("a folder");
        let (notes, files) =
            write(&emit, &model, &[], &mut folder, 3000, &|| false).expect("targets are written");
        for (target, note) in emit.targets.into_iter().zip(notes) {
            let weights = weight_files(target, &outline, emit.sign_planes, 3000).expect("sizes");
            let sum: u64 = weights.iter().map(|(_, bytes)| bytes).sum();
            assert_eq!(sum, note.weight_bytes, "{family}, {task:?}, {dtype}, {target:?}");
            for (name, bytes) in [weights, code_files(target)].concat() {
                let file = files.iter().find(|file| file.name == name);
                assert_eq!(file.map(|file| file.bytes), Some(bytes), "{name}");
            }
        }
    }
}

#[test]
fn what_a_target_cannot_carry_is_refused_with_those_that_can() {
    let all = Emit::new(&["dense,hf,onnx".into()], None).unwrap();
    let one = |name: &str| Emit::new(&[name.into()], None).unwrap();
    let plain = tiny("bert", Task::SequenceClassification, 210);
    all.check(&plain).unwrap();
    let refusal = |emit: &Emit, model: &Model| emit.check(model).unwrap_err().to_string();

    let mut dropping = plain.clone();
    let mut tokens = TokenSchedule::keep_all(LAYERS, Score::First, plain.reads());
    tokens.layers[0] = Some(vec![true, false]);
    dropping.tokens = Some(tokens);
    one("hf,onnx").check(&dropping).unwrap();
    insta::assert_snapshot!(refusal(&all, &dropping), @"layers drop tokens, but the target `dense` cannot carry that, of all targets native, hf, onnx can; leave it out of --emit, or change the recipe");

    let mut halved = plain.clone();
    halved.layers[1].ffn = None;
    insta::assert_snapshot!(refusal(&one("dense"), &halved), @"layer 1 has lost a block with its LayerNorm, but the target `dense` cannot carry that, of all targets native, hf, onnx can; leave it out of --emit, or change the recipe");

    let mut four = plain.clone();
    four.layers[0].linears_mut()[0].activations = Activations::Int4;
    insta::assert_snapshot!(refusal(&one("dense"), &four), @"the inputs of `bert.encoder.layer.0.attention.self.query` are rounded to 4 bits, but the target `dense` cannot carry that, of all targets native, hf, onnx can; leave it out of --emit, or change the recipe");

    let signs = latent("bert", Task::SequenceClassification, 211).open();
    for target in ["hf", "onnx", "dense"] {
        let message = refusal(&one(target), &signs);
        let expected = format!(
            "are signs, but the target `{target}` cannot carry that, of all targets native can"
        );
        assert!(message.contains(&expected), "{message}");
    }
}

#[test]
fn names_are_known_or_refused() {
    let emit = Emit::new(&["onnx, hf".into(), "native".into(), "onnx".into()], None).unwrap();
    assert_eq!(emit.targets, [Target::Hf, Target::Onnx]);
    let error = |names: &[String], planes| Emit::new(names, planes).unwrap_err().to_string();
    insta::assert_snapshot!(error(&["onx".into()], None), @"no target is named `onx`; this build writes native, hf, onnx, dense");
    insta::assert_snapshot!(error(&["hf".into()], Some(SignPlanes::Int8)), @"--onnx-binary without the target `onnx`; add --emit onnx, or leave --onnx-binary out");
    insta::assert_snapshot!(SignPlanes::named("int4").unwrap_err(), @"sign planes are not written as `int4`; this build knows unpack, int8, nbits");
}
