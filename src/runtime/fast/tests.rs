//! The fast pass is the plain one, the plain one is the masked one, and both cost what is counted.

use super::super::kernels::MACS;
use super::super::{Everything, NoObserver, Observer};
use super::*;
use crate::model::cost;
use crate::model::testing::*;
use crate::model::{Activations, Binary, DoubleBinary, Int8, LowRank, Model, Task, Weight};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// Bins with holes in every layer but one.
fn schedule(model: &Model, score: Score, seed: u64) -> TokenSchedule {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let layers = model.layers.len();
    let mut all = TokenSchedule::keep_all(layers, score, model.reads());
    for layer in (0..layers).filter(|&l| l != seed as usize % (layers + 1)) {
        let mut bins: Vec<bool> =
            (0..3 + seed as usize % 5).map(|_| rng.next_u32() % 3 > 0).collect();
        bins[2] = false;
        all.layers[layer] = Some(bins);
    }
    all
}

/// All of these texts at once: lengths 1 (nothing to rank) to 12.
fn texts(seed: u64) -> Batch {
    batch(seed, &[5, 1, 12, 2, 8])
}

fn values(encoder: &Encoder, batch: &Batch, observer: &mut dyn Observer) -> Vec<f32> {
    let output = encoder.forward(batch, None, observer).expect("ids inside the tables");
    [output.values, output.pooled.unwrap_or_default()].concat()
}

/// How often a forward pass asks for memory, once it has run a few times.
fn allocations(encoder: &Encoder, batch: &Batch) -> usize {
    let once = || drop(values(encoder, batch, &mut NoObserver));
    (0..8).for_each(|_| once());
    crate::allocations::of(once)
}

#[test]
fn no_layer_asks_for_memory_once_others_have_run() {
    let binary = |name, shape: (usize, usize), planes: usize, residual| {
        let codes: Vec<u8> = (0..shape.0 * shape.1).map(|i| i as u8 % (1 << planes)).collect();
        let scales = vec![0.1; planes * shape.0];
        Weight::Binary(Binary::new(name, shape, planes, shape.1, &codes, &scales, residual))
    };
    let low_rank = |(rows, cols)| LowRank::new(2, gaussian(2 * rows, 1), gaussian(2 * cols, 2));
    let form = |form, name, shape: (usize, usize)| match form {
        "int8" => Weight::Int8(Int8::new(name, shape, &gaussian(shape.0 * shape.1, 5))),
        "signs" => binary(name, shape, 1, Some(low_rank(shape))),
        "two planes" => binary(name, shape, 2, None),
        _ => {
            let (u, v) = (gaussian(shape.0 * 20, 5), gaussian(20 * shape.1, 6));
            let scales = [shape.0, 20, shape.1].map(|n| vec![0.1; n]);
            Weight::Double(DoubleBinary::new(name, shape, 20, (&u, &v), scales))
        }
    };
    let forms = [
        ("f32", Activations::Exact),
        ("f32", Activations::Int8),
        ("int8", Activations::Int8),
        ("signs", Activations::Int8),
        ("signs", Activations::Int4),
        ("two planes", Activations::Int8),
        ("double", Activations::Int8),
    ];
    let batch = batch(3, &[12, 9, 12, 10, 12]);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a pool");
    pool.install(|| {
        for family in ["bert", "mpnet", "modernbert", "mobilebert"] {
            for (name, activations) in forms {
                let count = |layers: usize| {
                    let mut model = tiny(family, Task::SequenceClassification, 3);
                    model.layers.truncate(layers);
                    for linear in model.layers.iter_mut().flat_map(|l| l.linears_mut()) {
                        let shape = (linear.weight.rows(), linear.weight.cols());
                        if name != "f32" {
                            linear.weight = form(name, linear.weight.name().into(), shape);
                        }
                        linear.activations = activations;
                    }
                    let encoder = Encoder::packed(&model).expect("a model that runs");
                    allocations(&encoder, &batch)
                };
                assert_eq!(count(3), count(2), "{family}, {name}, {activations:?}");
            }
        }
    });
}

/// But for lists of what is kept: not for each head.
#[test]
fn layers_that_drop_tokens_ask_for_lists_alone() {
    let batch = batch(3, &[12, 9, 12, 10, 12]);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a pool");
    pool.install(|| {
        for score in [Score::First, Score::Received] {
            let mut model = tiny("bert", Task::SequenceClassification, 3);
            let mut schedule = TokenSchedule::keep_all(LAYERS, score, model.reads());
            schedule.layers[1] = Some(vec![true, false, true]);
            model.tokens = Some(schedule);
            let count = |model: &Model| {
                let encoder = Encoder::packed(model).expect("a model that runs");
                allocations(&encoder, &batch)
            };
            let more = count(&model) - count(&Model { tokens: None, ..model.clone() });
            assert!(more <= 8 * batch.texts(), "{score:?}: {more}");
        }
    });
}

/// Answers outlive a pass, those of a data set all of its passes.
#[test]
fn answers_take_as_much_memory_as_they_are_large() {
    for (family, task) in every() {
        let model = tiny(family, task, 3);
        let encoder = Encoder::packed(&model).expect("a model that runs");
        let out = encoder.forward(&texts(3), None, &mut NoObserver).expect("ids inside the tables");
        assert!(out.values.capacity() <= 2 * out.values.len(), "{family}, {task:?}");
        let pooled = out.pooled.unwrap_or_default();
        assert!(pooled.capacity() <= 2 * pooled.len(), "{family}, {task:?}");
    }
}

#[test]
fn groups_are_whole_texts_and_say_what_their_batch_says() {
    let lengths = [100, 100, 56, 1, 12, 12, 11, 10, 9, 255, 7];
    let batch = {
        let mut batch = Batch::default();
        for (row, len) in lengths.into_iter().enumerate() {
            let ids: Vec<u32> = (0..len).map(|i| (i * 7 + row as u32) % 13).collect();
            batch.push(&ids, &vec![0; ids.len()], row);
        }
        batch
    };
    let spans = |b: &Batch| b.starts.windows(2).map(|s| (s[1] - s[0]) as u32).collect::<Vec<_>>();
    let found: Vec<Vec<u32>> = groups(&batch).iter().map(spans).collect();
    assert_eq!(found, [vec![100, 100, 56], vec![1, 12, 12, 11, 10, 9], vec![255], vec![7]]);
    assert_eq!(groups(&batch.part(0, 1)), [batch.part(0, 1)]);
    assert!(groups(&Batch::default()).is_empty());
}

#[test]
fn a_batch_of_several_groups_answers_as_its_texts() {
    for task in [Task::SequenceClassification, Task::TokenClassification, Task::Bare] {
        let model = tiny("bert", task, 3);
        let encoder = Encoder::packed(&model).expect("a model that runs");
        let many: Vec<usize> = (0..60).map(|i| 1 + i % 12).collect();
        let batch = batch(5, &many);
        assert!(groups(&batch).len() > 1);
        let alone: Vec<Output> = (0..batch.texts())
            .map(|t| encoder.forward(&batch.part(t, t + 1), None, &mut NoObserver).expect("ids"))
            .collect();
        let all = encoder.forward(&batch, None, &mut NoObserver).expect("ids");
        let values: Vec<f32> = alone.iter().flat_map(|o| &o.values).copied().collect();
        assert_eq!(all.values.len(), values.len());
        let near = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-5);
        assert!(near(&all.values, &values), "{task:?}");
        let pooled: Option<Vec<Vec<f32>>> = alone.into_iter().map(|o| o.pooled).collect();
        match (all.pooled, pooled) {
            (Some(all), Some(pooled)) => assert!(near(&all, &pooled.concat()), "{task:?}"),
            (all, pooled) => assert!(all.is_none() && pooled.is_none(), "{task:?}"),
        }
    }
}

#[test]
fn other_families_answer_fast_as_plainly() {
    for (i, (family, task)) in others().enumerate() {
        let model = tiny(family, task, 40 + i as u64);
        let batch = texts(41 + i as u64);
        for encoder in [Encoder::new(&model), Encoder::packed(&model)] {
            let encoder = encoder.expect("a model that runs");
            let plain = values(&encoder, &batch, &mut Everything);
            let fast = values(&encoder, &batch, &mut NoObserver);
            let off = distance(&fast, &plain);
            assert!(off < 1e-5, "{family} {task:?}: {off}");
        }
        let encoder = Encoder::new(&model).expect("a model that runs");
        let macs = |tokens: usize| {
            MACS.with(|m| m.set(0));
            encoder.hidden(&batch_of(tokens), None, &mut NoObserver).expect("runs");
            MACS.with(|m| m.get())
        };
        macs(1); // What is made of distances is made once.
        for tokens in [1, 2, 7, 12] {
            let project = model.embeddings.project.as_ref();
            let project = project.map_or(0, |p| tokens * p.weight.params()) as u64;
            let counted = project + cost::layer_macs(&model, None, tokens);
            assert_eq!(macs(tokens), counted, "{family} {task:?} {tokens}");
        }
    }
}

fn batch_of(tokens: usize) -> Batch {
    batch(42, &[tokens])
}

/// Nothing is removed: tokens that are dropped stay where they are, and no other token sees them. Scores are
/// means over the tokens that are left. Returns the last states, and which of them are left.
fn masked(encoder: &Encoder, schedule: &TokenSchedule, batch: &Batch) -> (Vec<f32>, Vec<bool>) {
    let hidden = encoder.model.config.hidden;
    let mut x = encoder.embed(batch).expect("ids inside the tables");
    let mut alive = vec![true; batch.tokens()];
    for (l, layer) in encoder.layers.iter().enumerate() {
        let before = alive.clone();
        let old = x.clone();
        if let Some(attention) = &layer.attention {
            let mut scores = vec![0.0; batch.tokens()];
            let mut mask = |_: usize, text: usize, probs: &mut [f32]| {
                let (from, len) = (batch.starts[text], batch.starts[text + 1] - batch.starts[text]);
                for (q, row) in probs.chunks_exact_mut(len).enumerate() {
                    // What a softmax with -10000 at these keys gives.
                    let live = |k: usize| before[from + k] as u8 as f32;
                    let sum: f32 = row.iter().enumerate().map(|(k, p)| live(k) * p).sum();
                    for (k, p) in row.iter_mut().enumerate() {
                        *p *= live(k) / sum;
                        let counts = schedule.score == Score::Received || q == 0;
                        scores[from + k] += if counts { live(q) * *p } else { 0.0 };
                    }
                }
            };
            let context = encoder.attention_context(attention, &x, batch, None, &mut mask).context;
            x = attention.finish(&context, &x);
            for span in batch.starts.windows(2) {
                let live: Vec<usize> = (span[0]..span[1]).filter(|&t| before[t]).collect();
                let ids: Vec<u32> = live.iter().map(|&t| batch.ids[t]).collect();
                let scores: Vec<f32> = live.iter().map(|&t| scores[t]).collect();
                let kept = schedule.kept(l, &ids, &scores);
                live.iter().for_each(|&t| alive[t] = false);
                kept.iter().for_each(|&i| alive[live[i]] = true);
            }
        }
        if let Some(ffn) = &layer.ffn {
            x = ffn.finish(&ffn.units(&x), &x);
        }
        // Those that were gone before this layer stay as they were.
        for t in (0..batch.tokens()).filter(|&t| !before[t]) {
            x[t * hidden..(t + 1) * hidden].copy_from_slice(&old[t * hidden..(t + 1) * hidden]);
        }
    }
    (x, alive)
}

#[test]
fn gathered_is_plain_is_masked_for_every_family_and_head() {
    for (i, (family, task)) in every().enumerate() {
        for (seed, score) in [(1, Score::First), (2, Score::Received), (7, Score::Received)] {
            let what = format!("{family} {task:?} {seed} {score:?}");
            let model = tiny(family, task, 40 + i as u64);
            let mut encoder = Encoder::new(&model).expect("a model that runs");
            let batch = texts(seed);
            let whole = values(&encoder, &batch, &mut Everything);
            let fast = values(&encoder, &batch, &mut NoObserver);
            assert!(distance(&fast, &whole) < 1e-5, "{what}: without a schedule");

            let keep = TokenSchedule::keep_all(LAYERS, score, model.reads());
            let ones = TokenSchedule { layers: vec![Some(vec![true; 4]); LAYERS], ..keep.clone() };
            for all in [keep, ones] {
                encoder.tokens = Some(all);
                let kept = values(&encoder, &batch, &mut NoObserver);
                assert!(distance(&kept, &whole) < 1e-5, "{what}: all kept");
                let kept = values(&encoder, &batch, &mut Everything);
                assert!(distance(&kept, &whole) < 1e-6, "{what}: all kept, plainly");
            }

            let schedule = schedule(&model, score, seed + i as u64);
            encoder.tokens = Some(schedule.clone());
            let plain = values(&encoder, &batch, &mut Everything);
            let fast = values(&encoder, &batch, &mut NoObserver);
            assert!(distance(&fast, &plain) < 1e-5, "{what}: {}", distance(&fast, &plain));
            assert!(distance(&plain, &whole) > 1e-4, "{what}: it changes nothing");

            let (x, alive) = masked(&encoder, &schedule, &batch);
            let live: Vec<usize> = (0..batch.tokens()).filter(|&t| alive[t]).collect();
            let mut states = States::of(x, &batch);
            if model.reads() != Reads::Every {
                states = states.select(&live);
            }
            let output = encoder.answer(&states.batch, &states.x, None);
            let masked = [output.values, output.pooled.unwrap_or_default()].concat();
            assert!(distance(&plain, &masked) < 1e-5, "{what}: {}", distance(&plain, &masked));
        }
    }
}

#[test]
fn what_is_computed_is_what_is_counted() {
    for (i, (family, task)) in every().enumerate() {
        for (seed, score) in [(3, Score::First), (4, Score::Received)] {
            let model = tiny(family, task, 50 + i as u64);
            let mut encoder = Encoder::new(&model).expect("a model that runs");
            for dropping in [false, true] {
                encoder.tokens = dropping.then(|| schedule(&model, score, seed + i as u64));
                for tokens in [1, 2, 7, 12] {
                    let batch = batch(seed, &[tokens]);
                    let macs = || {
                        MACS.with(|m| m.set(0));
                        encoder.hidden(&batch, None, &mut NoObserver).expect("runs");
                        MACS.with(|m| m.get())
                    };
                    let project = model.embeddings.project.as_ref();
                    let project = project.map_or(0, |p| tokens * p.weight.params()) as u64;
                    let counted = cost::layer_macs(&model, encoder.tokens.as_ref(), tokens);
                    assert_eq!(macs(), project + counted, "{family} {task:?} {score:?} {tokens}");
                }
            }
        }
    }
}

/// T3 of the notes: neighbours and their number change nothing.
#[test]
fn a_text_keeps_its_tokens_in_any_company() {
    for score in [Score::First, Score::Received] {
        let model = tiny("mpnet", Task::Embedding, 60);
        let mut encoder = Encoder::new(&model).expect("a model that runs");
        encoder.tokens = Some(schedule(&model, score, 61));
        let batch = texts(62);
        let together = values(&encoder, &batch, &mut NoObserver);
        for text in 0..batch.texts() {
            let alone = values(&encoder, &batch.part(text, text + 1), &mut NoObserver);
            let expected = &together[text * HIDDEN..(text + 1) * HIDDEN];
            assert!(distance(&alone, expected) < 1e-5, "text {text}");
        }
    }
}

/// A model whose attention is gone, in part or all of it, is read by its first token all the same.
#[test]
fn blocks_may_be_missing() {
    for gone in [vec![LAYERS - 1], vec![0, 1], (0..LAYERS).collect()] {
        let mut model = tiny("bert", Task::SequenceClassification, 63);
        gone.iter().for_each(|&l| model.layers[l].attention = None);
        let encoder = Encoder::new(&model).expect("a model that runs");
        let fast = values(&encoder, &texts(64), &mut NoObserver);
        let plain = values(&encoder, &texts(64), &mut Everything);
        assert!(distance(&fast, &plain) < 1e-5, "{gone:?}");
        MACS.with(|m| m.set(0));
        encoder.hidden(&batch(1, &[7]), None, &mut NoObserver).expect("runs");
        assert_eq!(MACS.with(|m| m.get()), cost::layer_macs(&model, None, 7), "{gone:?}");
    }
}

/// Observers see states of what is left, and which tokens go on.
#[test]
fn observers_see_what_is_left() {
    #[derive(Default)]
    struct Log {
        rows: Vec<usize>,
        left: Vec<usize>,
    }
    impl Observer for Log {
        fn hidden(&mut self, _: usize, x: &[f32]) {
            self.rows.push(x.len() / HIDDEN);
        }
        fn kept(&mut self, _: usize, kept: &[usize]) {
            self.left.push(kept.len());
        }
    }
    let model = tiny("bert", Task::Embedding, 65);
    let mut encoder = Encoder::new(&model).expect("a model that runs");
    let half = Some(vec![true, false]);
    let keep = TokenSchedule::keep_all(LAYERS, Score::Received, model.reads());
    encoder.tokens = Some(TokenSchedule { layers: vec![half.clone(), None, half], ..keep });
    let mut log = Log::default();
    let batch = batch(66, &[9, 1]);
    let states = encoder.hidden(&batch, None, &mut log).expect("runs");
    assert_eq!((log.rows, log.left), (vec![10, 10, 6, 6], vec![6, 4]));
    assert_eq!((states.batch.tokens(), &states.batch.starts[..]), (4, &[0, 3, 4][..]));
}
