//! The masked, the cut and the re-read model are one; batches are their texts; observers see all.

use super::*;
use crate::checkpoint::{Dtype, Tensor};
use crate::model::slice::Masks;
use crate::model::testing::*;
use crate::model::{
    Activations, Binary, DoubleBinary, FeedForward, Int8, Layer, Linear, LowRank, Model, PoolMode,
    Score, Task, TokenSchedule, Weight, family,
};
use proptest::prelude::*;
use std::collections::BTreeMap;

/// What is left, by layer.
struct Kept {
    heads: Vec<Vec<usize>>,
    units: Vec<Vec<usize>>,
}

/// About half of everything, and of layer `empty % 3` no heads, of the next no units.
fn half(seed: u64) -> Kept {
    let mut normal = Normal::new(seed);
    let mut some = |n: usize| {
        let some: Vec<usize> = (0..n).filter(|_| normal.draw() > 0.0).collect();
        if some.is_empty() { vec![n - 1] } else { some }
    };
    let mut kept = Kept {
        heads: (0..LAYERS).map(|_| some(HEADS)).collect(),
        units: (0..LAYERS).map(|_| some(FFN)).collect(),
    };
    kept.heads[seed as usize % LAYERS].clear();
    kept.units[(seed as usize + 1) % LAYERS].clear();
    kept
}

fn masks(kept: &Kept) -> Masks {
    let ones =
        |keep: &Vec<usize>, n: usize| (0..n).map(|i| keep.contains(&i) as u8 as f32).collect();
    Masks {
        heads: kept.heads.iter().map(|k| ones(k, HEADS)).collect(),
        units: kept.units.iter().map(|k| ones(k, FFN)).collect(),
        attention: vec![1.0; LAYERS],
        ffn: vec![1.0; LAYERS],
        hidden: vec![1.0; HIDDEN],
    }
}

/// Soft masks with about 40 % of the heads, half of the units and a quarter of the hidden dimensions closed,
/// one layer without attention, one without feed-forward block, and one with neither head nor a closed block.
/// (CoFi notes, §9, T3.)
fn soft(model: &Model, seed: u64) -> Masks {
    let mut normal = Normal::new(seed);
    let mut gate = |closed: f32| {
        let quantile = 0.5 + 0.5 * (normal.draw() * 0.8).tanh();
        if quantile < closed { 0.0 } else { 0.128 + 0.868 * (quantile - closed) / (1.0 - closed) }
    };
    let mut masks = Masks::ones(model);
    masks.heads.iter_mut().flatten().for_each(|m| *m = gate(0.4));
    masks.units.iter_mut().flatten().for_each(|m| *m = gate(0.5));
    masks.attention.iter_mut().chain(&mut masks.ffn).for_each(|m| *m = gate(0.0));
    let states = matches!(model.config.task, Task::Embedding | Task::Bare);
    let closed = if states { 0.0 } else { 0.25 };
    masks.hidden.iter_mut().for_each(|m| *m = gate(closed));
    masks.attention[seed as usize % LAYERS] = 0.0;
    masks.ffn[(seed as usize + 1) % LAYERS] = 0.0;
    masks.heads[(seed as usize + 2) % LAYERS].fill(0.0);
    masks
}

fn last_state(model: &Model, batch: &Batch, masks: Option<&Masks>) -> Vec<f32> {
    let encoder = Encoder::new(model).expect("a model that runs");
    encoder.hidden(batch, masks, &mut Everything).expect("ids inside the tables").x
}

#[test]
fn soft_masks_fold_exactly_for_every_family_and_head() {
    for (i, (family, task)) in every().enumerate() {
        for seed in 0..3 {
            let what = format!("{family} {task:?} {seed}");
            let model = tiny(family, task, 900 + i as u64);
            let masks = soft(&model, seed + 3 * i as u64);
            let batch = batch(seed, &[5, 1, 8]);
            let masked = answers(&model, &batch, Some(&masks));
            let sliced = model.sliced(&masks).expect("dense");
            sliced.validate().expect("parts that fit");
            let open: Vec<usize> = (0..HIDDEN).filter(|&i| masks.hidden[i] != 0.0).collect();
            assert_eq!(sliced.config.hidden, open.len(), "{what}");
            let found = answers(&sliced, &batch, None);
            assert!(distance(&found, &masked) < 1e-5, "{what}: {}", distance(&found, &masked));

            let wide = last_state(&model, &batch, Some(&masks));
            let rows = wide.chunks_exact(HIDDEN);
            let left: Vec<f32> = rows.flat_map(|row| open.iter().map(|&i| row[i])).collect();
            let narrow = last_state(&sliced, &batch, None);
            assert!(distance(&narrow, &left) < 1e-5, "{what}: {}", distance(&narrow, &left));

            let again = reopen(&sliced);
            assert_eq!(answers(&again, &batch, None), found, "{what}");
            assert_eq!(stored(&again), stored(&sliced), "{what}");
        }
    }
}

/// What CoFi's public code does instead loses the mask on the residual stream (notes, §5.2).
#[test]
fn masks_folded_into_the_consumers_are_another_model() {
    let model = tiny("bert", Task::SequenceClassification, 930);
    let masks = soft(&model, 7);
    let batch = batch(8, &[5, 1, 8]);
    let masked = answers(&model, &batch, Some(&masks));
    let hard: Vec<f32> = masks.hidden.iter().map(|&h| if h == 0.0 { 0.0 } else { 1.0 }).collect();
    let mut wrong = model.sliced(&Masks { hidden: hard, ..masks.clone() }).expect("dense");
    let open: Vec<f32> = masks.hidden.iter().copied().filter(|&h| h != 0.0).collect();
    let narrow = |linear: &mut Linear| {
        let tensor = linear.weight.dense().expect("dense");
        let values = tensor.to_f32().expect("floats");
        let scaled: Vec<f32> =
            values.iter().enumerate().map(|(i, w)| w * open[i % open.len()]).collect();
        let tensor = Tensor::from_f32(tensor.name.clone(), &tensor.shape, &scaled, Dtype::F32);
        linear.weight = Weight::Dense(tensor);
    };
    for layer in &mut wrong.layers {
        if let Some(a) = &mut layer.attention {
            [&mut a.query, &mut a.key, &mut a.value].into_iter().for_each(narrow);
        }
        layer.ffn.iter_mut().for_each(|f| narrow(&mut f.up));
    }
    wrong.head.linears_mut().into_iter().take(1).for_each(narrow);
    let off = distance(&answers(&wrong, &batch, None), &masked);
    assert!(off > 1e-2, "{off}");
}

#[test]
fn masks_of_one_slice_nothing() {
    for (family, task) in every() {
        let model = tiny(family, task, 931);
        assert_eq!(stored(&model.sliced(&Masks::ones(&model)).expect("dense")), stored(&model));
    }
}

#[test]
fn states_that_are_answers_keep_their_width() {
    for task in [Task::Embedding, Task::Bare] {
        let model = tiny("bert", task, 932);
        let mut masks = Masks::ones(&model);
        masks.hidden[3] = 0.0;
        let error = model.sliced(&masks).expect_err("narrower answers").to_string();
        assert!(error.contains("15 of 16 hidden dimensions"), "{error}");
    }
    let model = tiny("bert", Task::SequenceClassification, 933);
    let nothing = Masks { hidden: vec![0.0; HIDDEN], ..Masks::ones(&model) };
    let error = model.sliced(&nothing).expect_err("nothing is left").to_string();
    assert!(error.contains("0 of 16 hidden dimensions"), "{error}");
}

fn cut(model: &Model, kept: &Kept) -> Model {
    let layer = |(l, layer): (usize, &Layer)| {
        let heads = layer.attention.as_ref().map(|a| a.select_heads(&kept.heads[l]));
        let units = layer.ffn.as_ref().map(|f| f.select_units(&kept.units[l]));
        Layer {
            attention: heads.transpose().expect("dense"),
            ffn: units.transpose().expect("dense"),
            bottleneck: None,
        }
    };
    Model { layers: model.layers.iter().enumerate().map(layer).collect(), ..model.clone() }
}

/// CoFi notes, §9, T3.
fn masked_is_cut_is_reread(family: &str, task: Task, dtype: Dtype, seed: u64) {
    let what = format!("{family} {task:?} {dtype} {seed}");
    let model = parts(family, task, seed).stored_as(dtype).open();
    let kept = half(seed);
    let batch = batch(seed, &[5, 1, 8]);
    let masked = answers(&model, &batch, Some(&masks(&kept)));
    let sliced = cut(&model, &kept);
    sliced.validate().expect("parts that fit");
    let found = answers(&sliced, &batch, None);
    assert!(distance(&found, &masked) < 1e-5, "{what}: {}", distance(&found, &masked));
    let again = reopen(&sliced);
    assert_eq!(answers(&again, &batch, None), found, "{what}");
    assert_eq!(stored(&again), stored(&sliced), "{what}");

    // The control: one other unit, and one other head, and it is another model.
    for heads in [true, false] {
        let mut other = half(seed);
        let lists = if heads { &mut other.heads } else { &mut other.units };
        let list = lists.iter_mut().find(|l| !l.is_empty()).expect("half is left");
        let most = if heads { HEADS } else { FFN };
        let Some(free) = (0..most).find(|i| !list.contains(i)) else { continue };
        list.remove(0);
        list.push(free);
        list.sort_unstable();
        let wrong = distance(&answers(&cut(&model, &other), &batch, None), &masked);
        assert!(wrong > 1e-4, "{what}: {wrong} with something else cut");
    }
}

#[test]
fn masked_sliced_and_reread_models_agree_for_every_family_and_head() {
    for (i, (family, task)) in every().enumerate() {
        masked_is_cut_is_reread(family, task, Dtype::F32, i as u64);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn masked_sliced_and_reread_models_agree_in_every_dtype(
        family in 0..family::TRAINED.len(), task in prop::sample::select(&TASKS[..]),
        dtype in prop::sample::select(&[Dtype::F32, Dtype::F16, Dtype::BF16][..]), seed in 100..10_000u64,
    ) {
        masked_is_cut_is_reread(family::TRAINED[family].model_type, task, dtype, seed);
    }
}

#[test]
fn all_heads_and_units_gone_still_adds_biases_and_normalises() {
    for family in family::TRAINED {
        let model = tiny(family.model_type, Task::Bare, 5);
        let nothing = Kept { heads: vec![vec![]; LAYERS], units: vec![vec![]; LAYERS] };
        let batch = batch(6, &[3, 4]);
        let masked = answers(&model, &batch, Some(&masks(&nothing)));
        let sliced = cut(&model, &nothing);
        assert!(distance(&answers(&sliced, &batch, None), &masked) < 1e-5);
        let layers = vec![Layer { attention: None, ffn: None, bottleneck: None }; LAYERS];
        let gone = Model { layers, ..model.clone() };
        assert!(distance(&answers(&gone, &batch, None), &masked) > 0.05, "CoFi notes, §5.4");
    }
}

#[test]
fn masks_of_one_change_no_bit() {
    for (family, task) in every() {
        let model = tiny(family, task, 14);
        let batch = batch(15, &[4, 9]);
        let ones = Masks::ones(&model);
        let encoder = Encoder::new(&model).expect("a model that runs");
        let output = |masks| encoder.forward(&batch, masks, &mut Everything).expect("ids in range");
        assert_eq!(output(Some(&ones)), output(None));
    }
}

/// Text `text` of `batch` alone.
fn alone(batch: &Batch, text: usize) -> Batch {
    let span = batch.starts[text]..batch.starts[text + 1];
    let mut one = Batch::default();
    one.push(&batch.ids[span.clone()], &batch.type_ids[span], batch.rows[text]);
    one
}

#[test]
fn a_batch_says_what_its_texts_say_alone() {
    for (i, (family, task)) in each().enumerate() {
        let mut parts = parts(family, task, 16);
        if task == Task::Embedding {
            parts.pooling = Some(["cls", "mean", "max"][i % 3]);
        }
        let model = parts.open();
        let batch = batch(17, &[7, 1, 12, 3]);
        let encoder = Encoder::new(&model).expect("a model that runs");
        let answer = |b: &Batch| encoder.forward(b, None, &mut NoObserver).expect("ids in range");
        let together = answer(&batch);
        let single: Vec<Output> = (0..batch.texts()).map(|t| answer(&alone(&batch, t))).collect();
        let values: Vec<f32> = single.iter().flat_map(|o| o.values.clone()).collect();
        assert!(distance(&together.values, &values) < 1e-5, "{family} {task:?}");
        let pooled: Vec<f32> =
            single.iter().flat_map(|o| o.pooled.clone().unwrap_or_default()).collect();
        let found = together.pooled.clone().unwrap_or_default();
        assert!(distance(&found, &pooled) < 1e-5, "{family} {task:?}");
        let rows = if together.per_token { batch.tokens() } else { batch.texts() };
        assert_eq!(together.values.len(), rows * together.width);
    }
}

#[test]
fn the_order_of_texts_orders_the_answers() {
    let model = tiny("mpnet", Task::SequenceClassification, 18);
    let batch = batch(19, &[7, 2, 5]);
    let mut turned = Batch::default();
    for text in [2, 0, 1] {
        let one = alone(&batch, text);
        turned.push(&one.ids, &one.type_ids, one.rows[0]);
    }
    let (found, expected) = (answers(&model, &turned, None), answers(&model, &batch, None));
    let width = expected.len() / 3;
    let expected: Vec<f32> =
        [2, 0, 1].iter().flat_map(|t| &expected[t * width..(t + 1) * width]).copied().collect();
    assert!(distance(&found, &expected) < 1e-5);
}

#[derive(Default)]
struct Log {
    inputs: BTreeMap<(usize, Site), Vec<f32>>,
    probs: BTreeMap<(usize, usize, usize), Vec<f32>>,
    hidden: Vec<Vec<f32>>,
}

impl Observer for Log {
    fn linear_input(&mut self, layer: usize, site: Site, x: &[f32]) {
        assert!(self.inputs.insert((layer, site), x.to_vec()).is_none(), "{layer} {site:?} twice");
    }

    fn attention(&mut self, layer: usize, head: usize, text: usize, probs: &[f32]) {
        let old = self.probs.insert((layer, head, text), probs.to_vec());
        assert!(old.is_none(), "layer {layer}, head {head}, text {text} twice");
    }

    fn hidden(&mut self, index: usize, x: &[f32]) {
        assert_eq!(index, self.hidden.len(), "hidden states come in order");
        self.hidden.push(x.to_vec());
    }
}

#[test]
fn observers_see_every_site_once_with_its_shape() {
    for (i, family) in family::TRAINED.iter().enumerate() {
        let model = cut(&tiny(family.model_type, Task::Bare, 20), &half(21 + i as u64));
        let batch = batch(22, &[6, 1, 3]);
        let encoder = Encoder::new(&model).expect("a model that runs");
        let mut log = Log::default();
        let last = encoder.hidden(&batch, None, &mut log).expect("ids in range").x;
        assert_eq!(log.hidden.len(), LAYERS + 1);
        assert!(log.hidden.iter().all(|x| x.len() == batch.tokens() * HIDDEN));
        assert_eq!(log.hidden[LAYERS], last);
        assert_eq!(log.hidden[0], encoder.embed(&batch).expect("ids in range"));

        let mut heads = 0;
        for (l, layer) in model.layers.iter().enumerate() {
            let left = layer.attention.as_ref().map_or(0, |a| a.heads.len());
            let units = layer.ffn.as_ref().map_or(0, FeedForward::units);
            let widths = [
                (Site::QueryKeyValue, HIDDEN),
                (Site::AttentionOutput, left * HIDDEN / HEADS),
                (Site::Up, HIDDEN),
                (Site::Down, units),
            ];
            for (site, width) in widths {
                assert_eq!(log.inputs[&(l, site)].len(), batch.tokens() * width, "{l} {site:?}");
            }
            assert_eq!(log.inputs[&(l, Site::QueryKeyValue)], log.hidden[l]);
            for (head, text) in (0..left).flat_map(|h| (0..batch.texts()).map(move |t| (h, t))) {
                let len = batch.starts[text + 1] - batch.starts[text];
                let probs = &log.probs[&(l, head, text)];
                assert_eq!(probs.len(), len * len);
                for row in probs.chunks_exact(len) {
                    assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-5);
                }
            }
            heads += left * batch.texts();
        }
        assert_eq!((log.inputs.len(), log.probs.len()), (4 * LAYERS, heads));
    }
}

#[test]
fn observed_inputs_are_what_the_linear_layers_get() {
    let model = tiny("roberta", Task::Bare, 23);
    let batch = batch(24, &[5, 2]);
    let encoder = Encoder::new(&model).expect("a model that runs");
    // Masks show in what the second matrix of a block sees.
    let mut masks = Masks::ones(&model);
    masks.units[1][3] = 0.0;
    masks.heads[2][1] = 0.0;
    let mut log = Log::default();
    encoder.hidden(&batch, Some(&masks), &mut log).expect("ids in range");
    let column = |layer, site, width: usize, c: usize| -> Vec<f32> {
        log.inputs[&(layer, site)].chunks_exact(width).map(|row| row[c]).collect()
    };
    assert!(column(1, Site::Down, FFN, 3).iter().all(|&x| x == 0.0));
    assert!(column(1, Site::Down, FFN, 4).iter().any(|&x| x != 0.0));
    let dim = HIDDEN / HEADS;
    assert!(column(2, Site::AttentionOutput, HIDDEN, dim).iter().all(|&x| x == 0.0));
    assert!(column(2, Site::AttentionOutput, HIDDEN, 2 * dim).iter().any(|&x| x != 0.0));
    // Down of layer 0 and its residual make hidden state 1.
    let ffn = encoder.layers[0].ffn.as_ref().expect("a block");
    let found = ffn.finish(&log.inputs[&(0, Site::Down)], &log.inputs[&(0, Site::Up)]);
    assert_eq!(found, log.hidden[1]);
}

#[test]
fn what_lies_outside_the_tables_is_refused_by_name() {
    let model = tiny("bert", Task::Bare, 25);
    let encoder = Encoder::new(&model).expect("a model that runs");
    let error = |ids: &[u32], types: &[u32]| {
        let mut batch = Batch::default();
        batch.push(ids, types, 0);
        encoder.forward(&batch, None, &mut NoObserver).expect_err("out of range").to_string()
    };
    insta::assert_snapshot!(error(&[30], &[0]), @"a text has token id 30, but the model has 30 (numbered from 0); use the tokenizer that belongs to the checkpoint");
    insta::assert_snapshot!(error(&[3], &[2]), @"a text has token type 2, but the model has 2 (numbered from 0); use the tokenizer that belongs to the checkpoint");
    insta::assert_snapshot!(error(&[3; 21], &[0; 21]), @"a text has a token at position row 20, but the model has 20 (numbered from 0); give shorter texts: --max-length cuts them, where they are read as text");
}

#[test]
fn normalized_embeddings_have_length_one() {
    for pooling in ["cls", "mean", "max"] {
        let mut parts = parts("bert", Task::Embedding, 26);
        parts.pooling = Some(pooling);
        let model = parts.open();
        assert!(matches!(
            (&model.head, pooling),
            (crate::model::Head::Embedding { pool: PoolMode::Cls, .. }, "cls")
                | (crate::model::Head::Embedding { pool: PoolMode::Mean, .. }, "mean")
                | (crate::model::Head::Embedding { pool: PoolMode::Max, .. }, "max")
        ));
        for row in answers(&model, &batch(27, &[4, 6]), None).chunks_exact(HIDDEN) {
            assert!((row.iter().map(|x| x * x).sum::<f32>() - 1.0).abs() < 1e-5);
        }
    }
}

/// `model` with its layers' matrices packed, and inputs that are rounded: in int8, in two binary factors, or in sign
/// planes with a residual.
fn packed_as(mut model: Model, kind: usize, rank: usize, activations: Activations) -> Model {
    for (l, layer) in model.layers.iter_mut().enumerate() {
        for (i, linear) in layer.linears_mut().into_iter().enumerate() {
            let shape @ (rows, cols) = (linear.weight.rows(), linear.weight.cols());
            let mut normal = Normal::new((l * 10 + i) as u64);
            let mut some = |n: usize| -> Vec<f32> { (0..n).map(|_| normal.draw()).collect() };
            let name = linear.weight.name().to_string();
            linear.weight = match kind {
                0 => Weight::Int8(Int8::new(name, shape, &some(rows * cols))),
                5 => {
                    let (u, v) = (some(rows * 20), some(20 * cols));
                    let scales =
                        [rows, 20, cols].map(|n| (0..n).map(|j| 0.3 + 0.01 * j as f32).collect());
                    Weight::Double(DoubleBinary::new(name, shape, 20, (&u, &v), scales))
                }
                planes => {
                    let codes: Vec<u8> = some(rows * cols)
                        .iter()
                        .map(|x| (x * 1e4) as i32 as u8 % (1 << planes))
                        .collect();
                    let scale = |j: usize| 0.2 / (1 << (j / rows)) as f32 + 1e-3 * j as f32;
                    let scales: Vec<f32> = (0..planes * rows).map(scale).collect();
                    let factors = (some(rows * rank), some(rank * cols));
                    let small = |x: Vec<f32>| x.iter().map(|x| 0.1 * x).collect();
                    let low_rank =
                        (rank > 0).then(|| LowRank::new(rank, small(factors.0), small(factors.1)));
                    Weight::Binary(Binary::new(
                        name, shape, planes, cols, &codes, &scales, low_rank,
                    ))
                }
            };
            linear.activations = activations;
        }
    }
    model
}

#[test]
fn layers_beyond_two_gibibytes_are_made_ready_one_by_one() {
    let model = tiny("bert", Task::Bare, 85);
    assert!(!Encoder::within_memory(&model).expect("a model that runs").one_by_one);
    // 2 GiB in f32, and a word; of signs, a sixteenth of that.
    let with = |weight: Weight| {
        let mut large = model.clone();
        large.layers[1].ffn.as_mut().expect("a block").up.weight = weight;
        large.layers[1].ffn.as_mut().expect("a block").up.activations = Activations::Int8;
        encoder::fits_memory(&large)
    };
    let dense = |rows| Weight::Dense(Tensor::blank("w", Dtype::F16, &[rows, 1 << 14]));
    assert!(with(dense(1 << 14)) && !with(dense((1 << 15) + 1)));
    let shape = ((1 << 15) + 1, 1 << 14);
    assert!(with(Weight::Binary(Binary::blank("w".into(), shape, 2, shape.1, None))));
}

#[test]
fn layers_made_ready_one_by_one_answer_in_the_same_bits() {
    // More tokens than are run at once, and a schedule that drops some of them.
    let texts = batch(83, &[7, 1, 12, 4].repeat(14));
    for (i, (family, task)) in every().enumerate() {
        let model = parts(family, task, 84).open();
        let mut model =
            if i % 2 == 0 { model } else { packed_as(model, i % 6, 0, Activations::Int8) };
        if model.family.feature.is_none() && i % 3 == 0 {
            let bins = Some(vec![true, true, false]);
            let all = TokenSchedule::keep_all(LAYERS, Score::Received, model.reads());
            model.tokens = Some(TokenSchedule { layers: vec![None, bins, None], ..all });
        }
        let resident = Encoder::packed(&model).expect("a model that runs");
        let lazy = Encoder::one_by_one(&model).expect("a model that runs");
        let answer = |encoder: &Encoder, observer: &mut dyn Observer| {
            encoder.forward(&texts, None, observer).expect("ids inside the tables")
        };
        assert!(lazy.layers.is_empty());
        let same = answer(&resident, &mut NoObserver) == answer(&lazy, &mut NoObserver);
        assert!(same, "{family} {task:?}");
        let same = answer(&resident, &mut Everything) == answer(&lazy, &mut Everything);
        assert!(same, "{family} {task:?}, watched");
    }
}

/// BiPFT notes, §9: the packed forward pass is the unpacked one within the rounding of activations and levels.
#[test]
fn packed_matrices_answer_as_the_matrices_they_stand_for() {
    let texts = batch(81, &[7, 1, 12, 4]);
    for (i, (family, task)) in each().enumerate() {
        let (kind, rank) = (i % 6, [0, 3][i % 2]);
        let activations = [Activations::Int8, Activations::Int4][i / 4 % 2];
        let model = packed_as(parts(family, task, 82).open(), kind, rank, activations);
        let plain = Encoder::new(&model).expect("a model that runs");
        let packed = Encoder::packed(&model).expect("a model that runs");
        assert!(packed.layers[0].ffn.as_ref().is_some_and(|f| f.up.integers.is_some()));
        let answer = |encoder: &Encoder, observer: &mut dyn Observer| {
            encoder.forward(&texts, None, observer).expect("ids inside the tables").values
        };
        let expected = answer(&plain, &mut Everything);
        let power = |x: &[f32]| x.iter().map(|&x| (x as f64).powi(2)).sum::<f64>();
        for found in [answer(&packed, &mut Everything), answer(&packed, &mut NoObserver)] {
            let off: Vec<f32> = found.iter().zip(&expected).map(|(a, b)| a - b).collect();
            let (off, of) = (power(&off).sqrt(), power(&expected).sqrt());
            // Levels of several planes are rounded to 64ths of the greatest; a step of 4 bits is a fifteenth of a row's
            // range, and one input in a few hundred takes another step.
            // Two factors round once more between them, and what they round has been scaled.
            let most = match activations {
                Activations::Int4 if kind == 5 => 0.4,
                Activations::Int4 => 0.2,
                _ => 0.06,
            };
            assert!(off < most * of, "{family} {task:?}, kind {kind}: {off} of {of}");
        }
    }
}
