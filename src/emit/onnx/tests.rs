//! Graphs are read and run by an interpreter of their own, and answer as the runtime does.

use super::interpreter::{Array, read};
use super::*;
use crate::checkpoint::{Dtype, Tensor};
use crate::model::testing::*;
use crate::model::{
    Activations, Binary, Codes, DoubleBinary, Exact, Factored, Int8, LowRank, Rotation, Score,
    Subspace, Task, TokenSchedule,
};
use crate::runtime::{Batch, Encoder, NoObserver};
use std::collections::HashMap;

/// The file of `model`, and the one beside it.
fn file(model: &Model, sign_planes: SignPlanes, large: usize) -> (Vec<u8>, Vec<u8>) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let out = dir.path().join("out");
    let mut folder = OutputFolder::replace(&out).expect("a new folder");
    let written = write_within(large, model, sign_planes, &mut folder, &|| false)
        .expect("a graph is written");
    folder.commit(&|| false).expect("a folder");
    let read = |file: &WrittenFile| std::fs::read(out.join(&file.name)).expect("a file");
    (read(&written[0]), written.get(1).map(read).unwrap_or_default())
}

/// The texts of a batch side by side, padded behind.
fn padded(batch: &Batch, pad: u32) -> Vec<(&'static str, Array)> {
    let longest = batch.starts.windows(2).map(|s| s[1] - s[0]).max().expect("a text");
    let mut columns = [Vec::new(), Vec::new(), Vec::new()];
    for span in batch.starts.windows(2) {
        for i in 0..longest {
            let t = span[0] + i;
            let live = t < span[1];
            columns[0].push(if live { batch.ids[t] } else { pad } as i64);
            columns[1].push(live as i64);
            columns[2].push(if live { batch.type_ids[t] as i64 } else { 0 });
        }
    }
    let names = ["input_ids", "attention_mask", "token_type_ids"];
    let dims = [batch.texts(), longest];
    names.into_iter().zip(columns).map(|(name, c)| (name, Array::whole(&dims, c))).collect()
}

/// What the graph says of a batch, as the runtime would say it.
fn by_graph(model: &Model, batch: &Batch, outputs: &HashMap<String, Array>) -> Vec<f32> {
    let of = |name: &str| &outputs[name];
    let all = |array: &Array| array.values.iter().map(|&v| v as f32).collect::<Vec<f32>>();
    let live = |arrays: &[&Array]| -> Vec<f32> {
        let tokens = arrays[0].dims[1];
        let width = arrays[0].dims.get(2).copied().unwrap_or(1);
        let mut out = Vec::new();
        for (text, span) in batch.starts.windows(2).enumerate() {
            for t in 0..span[1] - span[0] {
                let at = (text * tokens + t) * width;
                arrays
                    .iter()
                    .for_each(|a| out.extend(a.values[at..at + width].iter().map(|&v| v as f32)));
            }
        }
        out
    };
    match model.config.task {
        Task::SequenceClassification => all(of("logits")),
        Task::TokenClassification | Task::MaskedLm => live(&[of("logits")]),
        Task::QuestionAnswering => live(&[of("start_logits"), of("end_logits")]),
        Task::Embedding => all(of("sentence_embedding")),
        Task::Bare => {
            let states = live(&[of("last_hidden_state")]);
            [states, outputs.get("pooler_output").map(all).unwrap_or_default()].concat()
        }
    }
}

/// How far the graph's answers are from the runtime's.
#[track_caller]
fn off(model: &Model, sign_planes: SignPlanes) -> f64 {
    let (bytes, _) = file(model, sign_planes, usize::MAX);
    let file = read(&bytes, &[]);
    assert_eq!(file.opset, 18);
    let batch = batch(5, &[5, 1, 12, 2, 8]);
    let found = by_graph(model, &batch, &file.run(&padded(&batch, model.config.pad_id)));
    let output = Encoder::packed(model).unwrap().forward(&batch, None, &mut NoObserver).unwrap();
    distance(&found, &[output.values, output.pooled.unwrap_or_default()].concat())
}

/// Of f32 beside f64.
const CLOSE: f64 = 1e-4;
/// A number between two levels falls to either side, in layers of 16 numbers.
const ROUNDED: f64 = 3e-2;
/// The same with 16 levels.
const COARSE: f64 = 0.15;

/// Layers of uneven shapes: fewer heads and units, none, blocks that are gone.
fn uneven(family: &str, task: Task, seed: u64) -> Model {
    let mut model = tiny(family, task, seed);
    let dim = model.config.head_dim;
    let keep = |heads: &[usize]| -> Vec<usize> {
        heads.iter().flat_map(|h| h * dim..(h + 1) * dim).collect()
    };
    for (layer, heads, units) in [(0, vec![1, 3], 10), (1, vec![], 0), (2, vec![2], 7)] {
        let a = model.layers[layer].attention.as_mut().unwrap();
        for linear in [&mut a.query, &mut a.key, &mut a.value] {
            *linear = linear.select_outputs(&keep(&heads)).unwrap();
        }
        a.output = a.output.select_inputs(&keep(&heads)).unwrap();
        a.heads = heads;
        let f = model.layers[layer].ffn.as_mut().unwrap();
        let units: Vec<usize> = (0..units).collect();
        f.up = f.up.select_outputs(&units).unwrap();
        f.down = f.down.select_inputs(&units).unwrap();
    }
    model
}

#[test]
fn every_family_and_head_answers_as_the_runtime_does() {
    for (i, (family, task)) in every().enumerate() {
        let error = off(&tiny(family, task, 90 + i as u64), SignPlanes::Unpack);
        assert!(error < CLOSE, "{family}, {task:?}: {error}");
    }
    for family in ["bert", "mpnet", "electra"] {
        let mut model = uneven(family, Task::TokenClassification, 30);
        let error = off(&model, SignPlanes::Unpack);
        assert!(error < CLOSE, "uneven {family}: {error}");
        model.layers[0].attention = None;
        model.layers[1].ffn = None;
        let error = off(&model, SignPlanes::Unpack);
        assert!(error < CLOSE, "{family} without blocks: {error}");
    }
    let half = parts("bert", Task::MaskedLm, 31).stored_as(Dtype::F16).open();
    assert!(off(&half, SignPlanes::Unpack) < CLOSE);
    let brain = parts("roberta", Task::MaskedLm, 32).stored_as(Dtype::BF16).open();
    assert!(off(&brain, SignPlanes::Unpack) < CLOSE);
}

#[test]
fn tokens_are_dropped_as_the_runtime_drops_them() {
    let mut dropped = 0;
    for (i, (family, task)) in every().filter(|(f, _)| ["bert", "mpnet"].contains(f)).enumerate() {
        for score in [Score::First, Score::Received] {
            let mut model = tiny(family, task, 40 + i as u64);
            let mut schedule = TokenSchedule::keep_all(LAYERS, score, model.reads());
            schedule.layers[0] = Some(vec![true, true, false, true]);
            schedule.layers[2] = Some(vec![true, false]);
            schedule.protect = if i % 2 == 0 { vec![7, 3] } else { Vec::new() };
            schedule.least = i % 3;
            model.tokens = Some(schedule);
            let error = off(&model, SignPlanes::Unpack);
            assert!(error < CLOSE, "{family}, {task:?}, {score:?}: {error}");
            let whole = Model { tokens: None, ..model.clone() };
            let batch = batch(5, &[5, 1, 12, 2, 8]);
            dropped += (answers(&model, &batch, None) != answers(&whole, &batch, None)) as usize;
        }
    }
    assert!(dropped > 16, "schedules show in {dropped} of 24 models");
}

/// Packs every matrix of the layers, in turn in another form.
fn pack(model: &mut Model, activations: Activations, group: Option<usize>) {
    let layers = model.layers.iter_mut().flat_map(|l| l.linears_mut());
    for (turn, linear) in (0u64..).zip(layers.chain(model.head.linears_mut())) {
        let (name, shape) =
            (linear.weight.name().to_string(), (linear.weight.rows(), linear.weight.cols()));
        let (rows, cols) = shape;
        let noise = gaussian(rows * cols, 60 + turn);
        linear.activations = activations;
        linear.weight = match turn % 5 {
            0 => Weight::Int8(Int8::new(name, shape, &noise)),
            1 => {
                let (u, v) = (gaussian(rows * 6, turn), gaussian(6 * cols, turn + 1));
                let scales = [vec![0.2; rows], vec![0.5; 6], vec![0.7; cols]];
                Weight::Double(DoubleBinary::new(name, shape, 6, (&u, &v), scales))
            }
            planes => {
                let planes = planes as usize - 1;
                let group = group.unwrap_or(cols);
                let codes: Vec<u8> =
                    noise.iter().map(|&x| (x.abs() * 5.0) as u8 % (1 << planes)).collect();
                let count = planes * rows * cols.div_ceil(group);
                let scales: Vec<f32> =
                    gaussian(count, turn + 7).iter().map(|x| 0.05 + x.abs() / 5.0).collect();
                let (u, v) = (gaussian(rows * 2, turn + 8), gaussian(2 * cols, turn + 9));
                let small = |x: Vec<f32>| x.iter().map(|x| x / 8.0).collect();
                let low = match planes {
                    1 => None,
                    2 => Some(LowRank::new(2, small(u), small(v))),
                    _ => Some(LowRank::int8(2, small(u), small(v))),
                };
                Weight::Binary(Binary::new(name, shape, planes, group, &codes, &scales, low))
            }
        };
    }
}

#[test]
fn packed_matrices_are_multiplied_as_the_runtime_multiplies_them() {
    for planes in [SignPlanes::Unpack, SignPlanes::Int8] {
        for (activations, limit) in
            [(Activations::Exact, CLOSE), (Activations::Int8, ROUNDED), (Activations::Int4, COARSE)]
        {
            let mut model = tiny("bert", Task::SequenceClassification, 50);
            pack(&mut model, activations, None);
            let error = off(&model, planes);
            assert!(error < limit, "{planes:?}, {activations:?}: {error}");
        }
    }
    let mut grouped = tiny("bert", Task::SequenceClassification, 51);
    pack(&mut grouped, Activations::Exact, Some(5));
    assert!(off(&grouped, SignPlanes::Unpack) < CLOSE);
    let message = SignPlanes::Int8.check(&grouped, true).expect_err("groups").to_string();
    assert!(message.contains("have scales by groups"), "{message}");
}

/// Queries, keys and values of one form are one product; other forms, and inputs in f32, three.
#[test]
fn layers_of_one_form_are_multiplied_at_once() {
    let packed = |name: String, shape: (usize, usize), planes: usize, seed: u64| {
        let noise = gaussian(shape.0 * shape.1, seed);
        if planes == 0 {
            return Weight::Int8(Int8::new(name, shape, &noise));
        }
        let codes: Vec<u8> = noise.iter().map(|&x| (x.abs() * 5.0) as u8 % (1 << planes)).collect();
        let scales: Vec<f32> =
            gaussian(planes * shape.0, seed + 1).iter().map(|x| 0.05 + x.abs() / 5.0).collect();
        Weight::Binary(Binary::new(name, shape, planes, shape.1, &codes, &scales, None))
    };
    for planes in 0..4 {
        for (activations, products) in
            [(Activations::Int8, 4), (Activations::Int4, 4), (Activations::Exact, 0)]
        {
            let mut model = uneven("bert", Task::TokenClassification, 52);
            let layers = model.layers.iter_mut().flat_map(|l| l.linears_mut());
            for (seed, linear) in (100u64..).zip(layers) {
                let (name, weight) = (linear.weight.name().to_string(), &linear.weight);
                let shape = (weight.rows(), weight.cols());
                if shape.0 * shape.1 > 0 {
                    linear.weight = packed(name, shape, planes, 2 * seed);
                    linear.activations = activations;
                }
            }
            for signs in [SignPlanes::Unpack, SignPlanes::Int8] {
                let error = off(&model, signs);
                let limit = match activations {
                    Activations::Int8 => ROUNDED,
                    Activations::Int4 => COARSE,
                    _ => CLOSE,
                };
                assert!(error < limit, "{planes}, {activations:?}, {signs:?}: {error}");
                let (bytes, _) = file(&model, signs, usize::MAX);
                let file = read(&bytes, &[]);
                let found = file.nodes.iter().filter(|n| n.op == "MatMulInteger").count();
                // Of three layers one has neither heads nor units; several planes are one product with 8 bits alone.
                let each = match (activations, planes) {
                    (Activations::Int4, 2..) => 6 * planes,
                    _ => products,
                };
                assert_eq!(found, 2 * each, "{planes}, {activations:?}, {signs:?}");
            }
        }
    }
}

/// Every form of a table, looked up and multiplied by (a masked-LM head that is tied to it).
#[test]
fn tables_are_looked_up_as_the_runtime_looks_them_up() {
    let name = || "bert.embeddings.word_embeddings".to_string();
    let shape = (VOCAB, HIDDEN);
    let noise = gaussian(VOCAB * HIDDEN, 70);
    let codes: Vec<u8> = noise.iter().map(|&x| (x.abs() * 5.0) as u8 % 4).collect();
    let scales = vec![0.4; 2 * VOCAB];
    let low = LowRank::new(2, gaussian(VOCAB * 2, 71), gaussian(2 * HIDDEN, 72));
    let coded = |books: usize, rotated: bool| Subspace {
        name: name(),
        ..subspace(VOCAB, HIDDEN, books, rotated)
    };
    let blocks = Rotation::new(4, gaussian(4 * 4 * 4, 73));
    let digits = Subspace { codes: Codes::Digits, ..coded(6, false) };
    let exact = Exact::new(vec![1, 4, 29], gaussian(3 * HIDDEN, 74));
    let (u, v) = (gaussian(VOCAB * 5, 75), gaussian(5 * HIDDEN, 76));
    let signs = (&gaussian(VOCAB * 6, 77)[..], &gaussian(6 * HIDDEN, 78)[..]);
    let diagonals = [vec![0.5; VOCAB], vec![0.6; 6], vec![0.8; HIDDEN]];
    let tables = [
        Weight::Int8(Int8::new(name(), shape, &noise)),
        Weight::Binary(Binary::new(name(), shape, 2, HIDDEN, &codes, &scales, Some(low))),
        Weight::Double(DoubleBinary::new(name(), shape, 6, signs, diagonals)),
        Weight::Subspace(Box::new(coded(1, true))),
        Weight::Subspace(Box::new(coded(6, false))),
        Weight::Subspace(Box::new(Subspace { rotation: Some(blocks), ..coded(6, false) })),
        Weight::Subspace(Box::new(digits)),
        Weight::Factored(Factored::new(name(), shape, u, v, exact)),
        Weight::Dense(Tensor::from_f32(
            format!("{}.weight", name()),
            &[VOCAB, HIDDEN],
            &noise,
            Dtype::F16,
        )),
    ];
    for table in tables {
        for task in [Task::SequenceClassification, Task::MaskedLm] {
            let mut model = tiny("bert", task, 80);
            let form = table.form();
            model.embeddings.word = table.clone();
            let error = off(&model, SignPlanes::Unpack);
            assert!(error < CLOSE, "{form}, {task:?}: {error}");
        }
    }
}

/// Lists as long as a row has slices.
#[test]
fn tables_of_many_slices_are_looked_up_too() {
    let mut model = parts_of("bert", Task::SequenceClassification, 87, 48).open();
    let name = model.embeddings.word.name().to_string();
    let table = Subspace { name, ..subspace(VOCAB, 48, 16, true) };
    model.embeddings.word = Weight::Subspace(Box::new(table));
    assert!(off(&model, SignPlanes::Unpack) < CLOSE);
}

/// With constants beside the file it is the same graph.
#[test]
fn large_constants_stand_beside_the_file() {
    let model = tiny("bert", Task::SequenceClassification, 85);
    let (inline, nothing) = file(&model, SignPlanes::Unpack, usize::MAX);
    let (small, beside) = file(&model, SignPlanes::Unpack, 0);
    assert!(nothing.is_empty() && !beside.is_empty() && small.len() < inline.len());
    let batch = batch(5, &[5, 1, 12]);
    let run = |bytes: &[u8], beside: &[u8]| read(bytes, beside).run(&padded(&batch, 1));
    assert_eq!(run(&inline, &[]), run(&small, &beside));
}

/// 2-bit codes 1 and 3 around 2 are −1 and 1.
#[test]
fn signs_in_two_bits_are_those_of_the_words() {
    let word = 0b1010_0000_0000_0000_0000_0000_0000_0011u32;
    let codes = linear::spread_bits(word) << 1 | 0x5555_5555_5555_5555;
    for bit in 0..32 {
        let code = (codes >> (2 * bit) & 3) as i32 - 2;
        assert_eq!(code, if word >> bit & 1 == 1 { 1 } else { -1 });
    }
    let mut model = tiny("bert", Task::SequenceClassification, 86);
    pack(&mut model, Activations::Int8, None);
    let (bytes, _) = file(&model, SignPlanes::Nbits, usize::MAX);
    assert!(String::from_utf8_lossy(&bytes).contains("MatMulNBits"));
}
