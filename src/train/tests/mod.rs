//! Gradients against differences, and sums that do not depend on threads.

mod elastic;
mod fit;
mod masks;
mod pytorch;
mod tokens;

use super::backward::{self, Signal};
use super::fisher::{MaskGradients, mask_gradients};
use super::moments::Moments;
use super::tape::{self, Plan};
use super::{head, sweep, weights};
use crate::Error;
use crate::data::Targets;
use crate::model::slice::Masks;
use crate::model::testing::*;
use crate::model::{Head, Model, Part, Place, PoolMode, Task, family};
use crate::runtime::{Batch, Encoder, NoObserver};

/// A model whose layers have lost different heads and units.
fn uneven(family: &str, task: Task, seed: u64) -> Model {
    let mut model = tiny(family, task, seed);
    let attention = model.layers[1].attention.as_ref().expect("attention");
    model.layers[1].attention = Some(attention.select_heads(&[0, 2, 3]).expect("dense"));
    let ffn = model.layers[2].ffn.as_ref().expect("a block");
    model.layers[2].ffn = Some(ffn.select_units(&[1, 2, 3, 5, 8, 13]).expect("dense"));
    model
}

/// Central differences of `loss` by every mask: by layer, heads and units.
fn differences(model: &Model, loss: impl Fn(&Masks) -> f64) -> MaskGradients {
    const H: f32 = 0.01;
    let ones = Masks::ones(model);
    let along = |pick: &dyn Fn(&mut Masks) -> &mut f32| {
        let at = |step: f32| {
            let mut masks = ones.clone();
            *pick(&mut masks) += step;
            loss(&masks)
        };
        ((at(H) - at(-H)) / (2.0 * H as f64)) as f32
    };
    let layers = 0..ones.heads.len();
    let heads =
        |l: usize| (0..ones.heads[l].len()).map(|i| along(&|m| &mut m.heads[l][i])).collect();
    let units =
        |l: usize| (0..ones.units[l].len()).map(|i| along(&|m| &mut m.units[l][i])).collect();
    MaskGradients { heads: layers.clone().map(heads).collect(), units: layers.map(units).collect() }
}

/// 1 % on what is large; what is small may be off by as much as that.
fn assert_close(found: &MaskGradients, expected: &MaskGradients, what: &str) {
    for (found, expected) in [(&found.heads, &expected.heads), (&found.units, &expected.units)] {
        assert_eq!(found.len(), expected.len());
        let largest = expected.iter().flatten().fold(0.0f32, |a, x| a.max(x.abs()));
        assert!(largest > 1e-3, "{what}: nothing to compare");
        for (l, (found, expected)) in found.iter().zip(expected).enumerate() {
            assert_eq!(found.len(), expected.len(), "{what}, layer {l}");
            for (i, (f, e)) in found.iter().zip(expected).enumerate() {
                let allowed = 0.01 * e.abs().max(0.1 * largest);
                assert!(
                    (f - e).abs() < allowed,
                    "{what}, layer {l}, mask {i}: {f}, by differences {e}"
                );
            }
        }
    }
}

/// Row `text` of gradients by text.
fn of_text(gradients: &MaskGradients, text: usize, texts: usize) -> MaskGradients {
    let row = |all: &Vec<f32>| {
        let width = all.len() / texts;
        all[text * width..(text + 1) * width].to_vec()
    };
    MaskGradients {
        heads: gradients.heads.iter().map(row).collect(),
        units: gradients.units.iter().map(row).collect(),
    }
}

fn cross_entropy(logits: &[f32], class: usize) -> f64 {
    let exp = |x: &f32| (*x as f64).exp();
    logits.iter().map(exp).sum::<f64>().ln() - logits[class] as f64
}

#[test]
fn mask_gradients_of_the_cross_entropy_are_its_differences() {
    for family in family::TRAINED {
        // With this seed no step crosses the bend of DistilBERT's ReLU.
        let model = uneven(family.model_type, Task::SequenceClassification, 131);
        let encoder = Encoder::new(&model).expect("a model that runs");
        let mut batch = batch(32, &[4, 1, 7]);
        batch.rows = vec![5, 0, 3];
        let classes = vec![2u32, 9, 9, 1, 9, 0];
        let targets = Targets::Classes(classes.clone());
        let gradients = mask_gradients(&encoder, &batch, Some(&targets), 0).expect("runs");
        for text in 0..batch.texts() {
            let class = classes[batch.rows[text]] as usize;
            let loss = |masks: &Masks| {
                let output = encoder.forward(&batch, Some(masks), &mut NoObserver).expect("runs");
                cross_entropy(&output.values[text * 3..(text + 1) * 3], class)
            };
            let what = format!("{}, text {text}", family.model_type);
            assert_close(&of_text(&gradients, text, 3), &differences(&model, loss), &what);
        }
    }
}

#[test]
fn mask_gradients_of_a_regression_are_its_differences() {
    let mut parts = parts("mpnet", Task::SequenceClassification, 33);
    parts.config["id2label"] = serde_json::json!({"0": "score"});
    for name in ["classifier.out_proj.weight", "classifier.out_proj.bias"] {
        let t = parts.tensor(name);
        let row = t.to_f32().expect("floats")[..t.numel() / 3].to_vec();
        t.shape[0] = 1;
        *t = crate::checkpoint::Tensor::from_f32(name, &t.shape.clone(), &row, t.dtype);
    }
    let model = parts.open();
    assert!(model.config.regression);
    let encoder = Encoder::new(&model).expect("a model that runs");
    let batch = batch(34, &[6]);
    let targets = Targets::Scores(vec![2.5]);
    let gradients = mask_gradients(&encoder, &batch, Some(&targets), 0).expect("runs");
    let loss = |masks: &Masks| {
        let output = encoder.forward(&batch, Some(masks), &mut NoObserver).expect("runs");
        (output.values[0] as f64 - 2.5).powi(2) / 2.0
    };
    assert_close(&gradients, &differences(&model, loss), "half the squared error");
}

#[test]
fn mask_gradients_of_labelled_tokens_are_their_differences() {
    for family in ["bert", "mpnet"] {
        let model = uneven(family, Task::TokenClassification, 135);
        let encoder = Encoder::new(&model).expect("a model that runs");
        let mut batch = batch(49, &[5, 3]);
        batch.rows = vec![1, 0];
        let labels = vec![vec![Some(1), None, Some(0)], vec![None, Some(2), None, Some(0), None]];
        let targets = Targets::Tokens(labels.clone());
        let gradients = mask_gradients(&encoder, &batch, Some(&targets), 0).expect("runs");
        for text in 0..2 {
            let loss = |masks: &Masks| {
                let output = encoder.forward(&batch, Some(masks), &mut NoObserver).expect("runs");
                let tokens = output.values.chunks_exact(3).skip(batch.starts[text]);
                let losses = tokens.zip(&labels[batch.rows[text]]);
                losses.filter_map(|(t, l)| l.map(|l: u32| cross_entropy(t, l as usize))).sum()
            };
            let what = format!("{family}, text {text}");
            assert_close(&of_text(&gradients, text, 2), &differences(&model, loss), &what);
        }
    }
}

#[test]
fn mask_gradients_of_an_answer_are_its_differences() {
    for family in ["bert", "mpnet"] {
        let model = uneven(family, Task::QuestionAnswering, 136);
        let encoder = Encoder::new(&model).expect("a model that runs");
        let mut batch = batch(50, &[6, 4, 3]);
        batch.rows = vec![2, 0, 1];
        let answers = vec![Some((0, 0)), None, Some((2, 4))];
        let targets = Targets::Spans(answers.clone());
        let gradients = mask_gradients(&encoder, &batch, Some(&targets), 0).expect("runs");
        for text in 0..2 {
            let (first, last) = answers[batch.rows[text]].expect("an answer");
            let loss = |masks: &Masks| {
                let output = encoder.forward(&batch, Some(masks), &mut NoObserver).expect("runs");
                let tokens = &output.values[2 * batch.starts[text]..2 * batch.starts[text + 1]];
                let column =
                    |c: usize| tokens.iter().skip(c).step_by(2).copied().collect::<Vec<_>>();
                cross_entropy(&column(0), first as usize) + cross_entropy(&column(1), last as usize)
            };
            let what = format!("{family}, text {text}");
            assert_close(&of_text(&gradients, text, 3), &differences(&model, loss), &what);
        }
        // The answer of the third text was cut off.
        let third = of_text(&gradients, 2, 3);
        assert!(third.heads.iter().chain(&third.units).flatten().all(|g| *g == 0.0));
    }
}

/// Back through all layers from `direction` on the last hidden state, to the masks.
fn back(encoder: &Encoder, batch: &Batch, direction: &[f32]) -> MaskGradients {
    let path: Vec<_> = encoder.layers.iter().collect();
    let plan = Plan { mask_gradients: true, ..Plan::default() };
    let mut tapes = tape::forward(encoder, &path, batch, &plan).expect("ids in range");
    let mut signal = Signal::new(path.len());
    signal.add_hidden(path.len(), direction.to_vec(), 1.0);
    let mut backs = backward::backward(encoder, &path, &mut tapes, &signal, &plan);
    let back = backs.swap_remove(0);
    MaskGradients { heads: back.heads, units: back.units }
}

/// Where the loss of [`leaf_gradients`] looks: the head's answer, every hidden state, every layer's query,
/// key and value, each along a direction of its own.
struct Directions {
    values: Vec<f32>,
    hidden: Vec<Vec<f32>>,
    qkv: Vec<Vec<f32>>,
}

/// The loss along `directions`, and its gradient by every leaf.
fn leaf_gradients<'m>(
    encoder: &Encoder<'m>,
    batch: &Batch,
    picked: &[usize],
    directions: &Directions,
    plan: &Plan,
) -> (f64, Encoder<'m>) {
    let path: Vec<_> = encoder.layers.iter().collect();
    let mut tapes = tape::forward(encoder, &path, batch, plan).expect("ids in range");
    let last = tape::hidden(&tapes, path.len());
    let head = head::forward(encoder, batch, &last, picked, plan.masks, plan.dropout);
    let mut loss = dot(&head.values, &directions.values);
    let mut grads = encoder.clone();
    grads.leaves_mut().into_iter().for_each(|leaf| leaf.to_mut().fill(0.0));
    let mut signal = Signal::new(path.len());
    let values = &directions.values;
    let grad = head::backward(encoder, Some(&mut grads), batch, &last, &head, values).last;
    signal.add_hidden(path.len(), grad, 1.0);
    for (l, direction) in directions.hidden.iter().enumerate() {
        loss += 0.5 * dot(&tape::hidden(&tapes, l), direction);
        signal.add_hidden(l, direction.clone(), 0.5);
    }
    for (l, direction) in directions.qkv.iter().enumerate() {
        loss += 2.0 * tape::qkv(&tapes, l).map_or(0.0, |qkv| dot(&qkv, direction));
        signal.add_qkv(l, direction.clone(), 2.0);
    }
    let backs = backward::backward(encoder, &path, &mut tapes, &signal, plan);
    weights::add(encoder, &mut grads, &tapes, &backs, &vec![true; path.len()]);
    (loss, grads)
}

#[test]
fn gradients_of_every_weight_are_its_differences() {
    let dropout = tape::Dropout { hidden: 0.1, attention: 0.2, key: 9 };
    for (family, task) in every() {
        let mut model = uneven(family, task, 136);
        model.layers[0].ffn = None;
        if task == Task::Embedding {
            // Max pooling bends at every tie; the mean has the same way back otherwise.
            model.head = Head::Embedding { pool: PoolMode::Mean, normalize: true };
        }
        let encoder = Encoder::trainable(&model).expect("a model that runs");
        // More tokens than one group takes, one text of one token.
        let batch = batch(37, &[18, 1, 17, 18, 18, 18, 18, 18, 17, 5]);
        let picked = [0, 3, 18, 70, 140];
        let mut masks = Masks::ones(&model);
        let numbers = gaussian(500, 40);
        let all = masks.heads.iter_mut().chain(&mut masks.units).flatten();
        let blocks = masks.attention.iter_mut().chain(&mut masks.ffn).chain(&mut masks.hidden);
        all.chain(blocks).zip(numbers).for_each(|(m, n)| *m += 0.2 * n);
        masks.hidden[5] = 0.0;
        let plan = Plan { masks: Some(&masks), dropout, ..Plan::default() };
        let tokens = batch.tokens();
        let last = vec![0.5; tokens * HIDDEN];
        let width = head::forward(&encoder, &batch, &last, &picked, None, dropout).values.len();
        let directions = Directions {
            values: gaussian(width, 41),
            hidden: (0..4).map(|l| gaussian(tokens * HIDDEN, 42 + l)).collect(),
            qkv: (0..3)
                .map(|l| {
                    let heads = model.layers[l].attention.as_ref().map_or(0, |a| a.heads.len());
                    gaussian(tokens * 3 * heads * HIDDEN / HEADS, 50 + l as u64)
                })
                .collect(),
        };
        let (_, mut grads) = leaf_gradients(&encoder, &batch, &picked, &directions, &plan);
        let names: Vec<String> = {
            let mut named = model.clone();
            let name = |(_, place): (Part, Place)| match place {
                Place::Matrix(weight) => weight.name().to_string(),
                Place::Tensor(tensor) | Place::Scale(tensor) | Place::FirstRow(tensor) => {
                    tensor.name.clone()
                }
            };
            named.places_mut().into_iter().map(name).collect()
        };
        let leaves = grads.leaves_mut();
        assert_eq!(leaves.len(), names.len(), "{family} {task:?}");
        for (i, (leaf, name)) in leaves.into_iter().zip(names).enumerate() {
            let along = gaussian(leaf.len(), 60 + i as u64);
            let found = dot(leaf, &along);
            let at = |step: f32| {
                let mut moved = encoder.clone();
                let mut leaves = moved.leaves_mut();
                assert_eq!(leaves[i].len(), along.len(), "{family} {task:?} {name}");
                let values = leaves[i].to_mut().iter_mut().zip(&along);
                values.for_each(|(v, d)| *v += step * d);
                drop(leaves);
                leaf_gradients(&moved, &batch, &picked, &directions, &plan).0
            };
            let expected = (at(1e-3) - at(-1e-3)) / 2e-3;
            let size = (leaf.iter().map(|g| (*g as f64).powi(2)).sum::<f64>()).sqrt();
            // BERT's pooler has no part in a bare encoder's states.
            if !(task == Task::Bare && name.contains("pooler")) {
                assert!(size > 1e-3, "{family} {task:?} {name}: no gradient");
            }
            let off = (found - expected).abs();
            assert!(off < 0.02 * size + 0.05, "{family} {task:?} {name}: {found}, {expected}");
        }
    }
}

fn dot(x: &[f32], y: &[f32]) -> f64 {
    x.iter().zip(y).map(|(x, y)| *x as f64 * *y as f64).sum()
}

#[test]
fn a_projection_of_the_states_goes_back_to_masks() {
    for family in family::TRAINED {
        let mut model = uneven(family.model_type, Task::Bare, 35);
        model.layers[0].ffn = None;
        let encoder = Encoder::new(&model).expect("a model that runs");
        let batch = batch(36, &[6]);
        let direction = gaussian(6 * HIDDEN, 37);
        let gradients = back(&encoder, &batch, &direction);
        let loss = |masks: &Masks| {
            let last = encoder.hidden(&batch, Some(masks), &mut NoObserver).expect("runs").x;
            dot(&last, &direction)
        };
        assert_close(&gradients, &differences(&model, loss), family.model_type);
    }
}

#[test]
fn the_randomness_of_a_text_is_its_own() {
    for (family, task) in every() {
        let model = tiny(family, task, 39);
        let encoder = Encoder::new(&model).expect("a model that runs");
        let batch = batch(40, &[3, 8, 2]);
        let together = mask_gradients(&encoder, &batch, None, 41).expect("runs");
        for text in 0..3 {
            let span = batch.starts[text]..batch.starts[text + 1];
            let mut one = Batch::default();
            one.push(&batch.ids[span.clone()], &batch.type_ids[span], batch.rows[text]);
            let alone = mask_gradients(&encoder, &one, None, 41).expect("runs");
            let expected = of_text(&together, text, 3);
            for (a, b) in [(&alone.heads, &expected.heads), (&alone.units, &expected.units)] {
                assert!(distance(&a.concat(), &b.concat()) < 1e-4, "{family} {task:?} {text}");
            }
        }
        let other = mask_gradients(&encoder, &batch, None, 42).expect("runs");
        // A drawn class may come out the same; a random projection does not.
        if task != Task::SequenceClassification {
            assert!(distance(&other.units.concat(), &together.units.concat()) > 0.01);
        }
    }
}

/// The mean over drawn labels is the expectation over the model's own predictions.
#[test]
fn drawn_labels_follow_the_predictions() {
    let model = tiny("bert", Task::SequenceClassification, 43);
    let encoder = Encoder::new(&model).expect("a model that runs");
    let batch = batch(44, &[5]);
    let logits = encoder.forward(&batch, None, &mut NoObserver).expect("runs").values;
    let probability = |class: usize| (-cross_entropy(&logits, class)).exp();
    let by_class: Vec<Vec<f32>> = (0..3)
        .map(|c| {
            let targets = Targets::Classes(vec![c]);
            mask_gradients(&encoder, &batch, Some(&targets), 0).expect("runs").units.concat()
        })
        .collect();
    let mut drawn = [0usize; 3];
    for seed in 0..600 {
        let found = mask_gradients(&encoder, &batch, None, seed).expect("runs").units.concat();
        let class = by_class.iter().position(|g| *g == found).expect("one of the classes");
        drawn[class] += 1;
    }
    for (class, &n) in drawn.iter().enumerate() {
        let p = probability(class);
        let deviation = (600.0 * p * (1.0 - p)).sqrt();
        assert!((n as f64 - 600.0 * p).abs() < 4.0 * deviation + 1.0, "{drawn:?}, {class}: {p}");
    }
}

fn with_threads<T: Send>(threads: usize, work: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool").install(work)
}

#[test]
fn moments_do_not_depend_on_threads() {
    let (tokens, inputs, outputs) = (37, 150, 70);
    let (x, r) = (gaussian(tokens * inputs, 45), gaussian(tokens * outputs, 46));
    let sums = |threads| {
        with_threads(threads, || {
            let mut moments = Moments::new(inputs, outputs);
            moments.add(&x[..20 * inputs], &r[..20 * outputs]);
            moments.add(&x[20 * inputs..], &r[20 * outputs..]);
            moments
        })
    };
    let (one, three) = (sums(1), sums(3));
    assert_eq!((&one.xx, &one.xr, &one.x, &one.r), (&three.xx, &three.xr, &three.x, &three.r));
    assert_eq!(
        with_threads(1, || one.least_squares(0.1)),
        with_threads(3, || three.least_squares(0.1))
    );
    // And they are the sums.
    for (i, j) in [(0, 0), (63, 64), (149, 2)] {
        let expected: f64 =
            (0..tokens).map(|t| (x[t * inputs + i] * x[t * inputs + j]) as f64).sum();
        assert!((one.xx[i * inputs + j] as f64 - expected).abs() < 1e-3);
    }
    for (i, o) in [(0, 0), (64, 69), (149, 1)] {
        let expected: f64 =
            (0..tokens).map(|t| (x[t * inputs + i] * r[t * outputs + o]) as f64).sum();
        assert!((one.xr[i * outputs + o] as f64 - expected).abs() < 1e-3);
    }
    assert_eq!(one.tokens, tokens);
}

#[test]
fn damping_adds_a_share_of_the_mean_to_the_diagonal() {
    let mut moments = Moments::new(3, 0);
    // The last input is never live.
    moments.add(&[1.0, 2.0, 0.0, 3.0, -2.0, 0.0], &[]);
    // E[xxᵀ] = [5 −2; −2 4], mean of the diagonal 3, a tenth of it 0.3.
    let expected = [5.3, -2.0, 0.0, -2.0, 4.3, 0.0, 0.0, 0.0, 0.3];
    assert!(distance(&moments.damped(0.1), &expected) < 1e-6);
    assert!(Moments::new(2, 0).damped(0.1).iter().step_by(3).all(|&d| d > 0.0));
    assert_eq!(Moments::new(0, 0).damped(0.1), [0.0; 0]);
}

#[test]
fn least_squares_without_variation_is_none() {
    let mut moments = Moments::new(2, 1);
    assert!(moments.least_squares(0.1).is_none());
    moments.add(&[1.0, 2.0, 1.0, 2.0, 1.0, 2.0], &[1.0, 2.0, 3.0]);
    assert!(moments.least_squares(0.1).is_none());
    assert!(Moments::new(0, 3).least_squares(0.1).is_none());
}

/// The penalty is on the change: residual plus penalty never exceed what no change leaves.
#[test]
fn least_squares_never_makes_the_fit_worse() {
    let (tokens, inputs, outputs) = (40, 6, 3);
    let x = gaussian(tokens * inputs, 47);
    let noise = gaussian(tokens * outputs, 48);
    let r: Vec<f32> = (0..tokens * outputs).map(|i| noise[i] + x[i / outputs * inputs]).collect();
    let mut moments = Moments::new(inputs, outputs);
    moments.add(&x, &r);
    let mut last = r.iter().map(|&r| (r as f64).powi(2)).sum::<f64>();
    for damp in [10.0, 1.0, 0.1, 1e-6] {
        let (weight, bias) = moments.least_squares(damp).expect("inputs vary");
        let left: f64 = (0..tokens * outputs)
            .map(|i| {
                let (t, o) = (i / outputs, i % outputs);
                let row = &x[t * inputs..(t + 1) * inputs];
                let fit = dot(row, &weight[o * inputs..(o + 1) * inputs]) + bias[o] as f64;
                (r[i] as f64 - fit).powi(2)
            })
            .sum();
        assert!(left < last, "damp {damp}: {left} of {last}");
        last = left;
    }
}

#[test]
fn a_sweep_consumes_in_order_and_stops_at_the_first_error() {
    let run = |compute: &(dyn Fn(usize) -> crate::Result<usize> + Sync)| {
        let mut seen = Vec::new();
        let result = sweep(21, compute, |i, square| {
            seen.push((i, square));
            Ok(())
        });
        (seen, result)
    };
    let squares = |n: usize| (0..n).map(|i| (i, i * i)).collect::<Vec<_>>();
    let (seen, result) = run(&|i| Ok(i * i));
    assert!(seen == squares(21) && result.is_ok());
    let (seen, result) = run(&|i| if i == 10 { Err(Error::Interrupted) } else { Ok(i * i) });
    assert!(seen == squares(10) && matches!(result, Err(Error::Interrupted)));
}
