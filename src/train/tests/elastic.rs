//! Binary activations in training: what the paper's code computed (fixtures/bipft/make.py), and what moves.

use super::pytorch::{Stored, off};
use super::*;
use crate::checkpoint::{Checkpoint, Tensor};
use crate::model::Weight;
use crate::train::losses;
use crate::train::objective::{Moment, Objective, Seen, Verdict};
use crate::train::tape::Dropout;
use crate::train::trainer::Trainer;
use std::path::{Path, PathBuf};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/bipft")
}

fn expected() -> Stored {
    Stored(Checkpoint::open(&folder().join("expected.safetensors")).expect("the fixture"))
}

fn texts(stored: &Stored) -> Batch {
    let (ids, types) = (stored.integers("input_ids"), stored.integers("token_type_ids"));
    let mut batch = Batch::default();
    for (row, (ids, types)) in ids.chunks(9).zip(types.chunks(9)).enumerate() {
        let words = |all: &[usize]| all.iter().map(|&v| v as u32).collect::<Vec<_>>();
        batch.push(&words(ids), &words(types), row);
    }
    batch
}

/// Cross entropy, and every hidden state along a direction.
struct Case {
    labels: Vec<Option<u32>>,
}

impl Objective for Case {
    fn loss(&self, seen: &Seen) -> crate::Result<Verdict> {
        let depth = seen.encoder.layers.len();
        let last = tape::hidden(seen.tapes, depth);
        let head = head::forward(seen.encoder, seen.left, &last, &[], None, seen.dropout);
        let loss = losses::cross_entropy(&head.values, head.width, &self.labels);
        let mut parts = vec![("task", loss.value)];
        let mut signal = Signal::new(depth);
        for l in 0..=depth {
            let state = tape::hidden(seen.tapes, l);
            let n = state.len() as f64;
            let direction = (0..state.len()).map(|i| (((i + 1) as f64).sin() / n) as f32);
            let direction: Vec<f32> = direction.collect();
            parts.push(("hidden", dot(&state, &direction)));
            signal.add_hidden(l, direction, 1.0);
        }
        Ok(Verdict { losses: parts, signal, head: Some((head, loss.grad)), own: vec![] })
    }

    fn judge(&self, _: &Encoder) -> crate::Result<Option<f64>> {
        Ok(None)
    }
}

#[test]
fn a_released_checkpoint_answers_as_the_code_that_saved_it() {
    let (stored, model) = (expected(), Model::open(&folder()).expect("the fixture's checkpoint"));
    let found = answers(&model, &texts(&stored), None);
    assert!(off(&found, &stored.floats("logits")) < 1e-5, "{found:?}");
}

#[test]
fn gradients_through_signs_and_estimators_are_those_of_the_code() {
    let (stored, model) = (expected(), Model::open(&folder()).expect("the fixture's checkpoint"));
    let mut trainer = Trainer::new(&model, |_| true).expect("a model that trains");
    let labels = stored.integers("labels").into_iter().map(|c| Some(c as u32)).collect();
    let at = Moment::default();
    let found = trainer.gather(&Case { labels }, &texts(&stored), Dropout::default(), at);
    let loss: f64 = found.expect("runs").iter().map(|(_, value)| value).sum();
    assert!((loss / f64::from(stored.floats("loss")[0]) - 1.0).abs() < 1e-5, "{loss}");
    let mut compared = 0;
    for (name, grad) in trainer.gradients() {
        let expected = stored.floats(&format!("grad.{name}"));
        let largest = expected.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        if name.ends_with("k_p.bias") || name.ends_with("k_m.bias") {
            // They shift all scores of a query alike: 0 but for rounding.
            assert!(grad.iter().all(|g| g.abs() < 1e-6), "{name}");
            continue;
        }
        assert!(largest > 0.0, "{name}: nothing to compare");
        let off = off(&grad, &expected);
        assert!(off < 1e-3, "{name}: off by {off}");
        compared += 1;
    }
    // 5 of the tables, 7 of the pooler and 2 of the classifier; 16 of weights and LayerNorms, 12 of inputs,
    // 4 of operands and 8 of estimators a layer.
    assert_eq!(compared, 5 + 6 + 2 + 2 * (16 + 12 + 4 + 8), "weights compared");
}

#[test]
fn every_part_of_the_form_moves_and_is_stored_as_it_was_trained() {
    let model = latent("bert", Task::SequenceClassification, 81).open();
    let batch = batch(82, &[5, 1, 9, 7]);
    let mut objective = Case { labels: vec![Some(1), Some(0), Some(2), Some(1)] };
    // Row scales of a trained word table are rounded to f16.
    let wanted = |part| part != Part::Words;
    let mut trainer = Trainer::new(&model, wanted).expect("a model that trains");
    let rate = 1e-2;
    for update in 0..3 {
        let at = Moment { update, part: 0 };
        trainer.gather(&objective, &batch, Dropout::default(), at).expect("runs");
        trainer.update(&mut objective, rate, 0.0, 1.0).expect("finite");
    }
    let mut trained = model.clone();
    let encoder = trainer.encoder.clone();
    let moved = encoder.forward(&batch, None, &mut NoObserver).expect("runs").values;
    trainer.finish().put(&mut trained).expect("put");
    assert_eq!(answers(&reopen(&trained), &batch, None), moved);
    let changed = |name: &str| {
        let of = |m: &Model| m.tensors().into_iter().filter(|t| t.name.ends_with(name)).collect();
        let (before, after): (Vec<Tensor>, Vec<Tensor>) = (of(&model), of(&trained));
        assert!(!before.is_empty(), "{name}");
        let pairs: Vec<_> = before.into_iter().zip(after).collect();
        let most = |(b, a): &(Tensor, Tensor)| {
            let (b, a) = (b.to_f32().expect("floats"), a.to_f32().expect("floats"));
            b.iter().zip(a.iter()).map(|(b, a)| (b - a).abs()).fold(0.0, f32::max)
        };
        assert!(pairs.iter().all(|pair| most(pair) > 0.0), "{name} stands still");
        pairs.iter().map(most).fold(0.0, f32::max)
    };
    for name in ["q_p.weight", "k_m.weight", "v_p.bias", "move.bias", "pooler.LayerNorm.weight"] {
        assert!(changed(name) > 0.5 * rate, "{name}");
    }
    // A tenth of the rate, three steps.
    for name in ["input_clip_val", "clip_query", "clip_value"] {
        let most = changed(name);
        assert!(most > 0.05 * rate && most < 0.31 * rate, "{name}: {most}");
    }
    for (_, linear) in trained.layers[0].linears() {
        let Weight::Binary(binary) = &linear.weight else { panic!("signs stay signs") };
        assert!(binary.scales.iter().all(|s| *s == binary.scales[0]), "one scale a matrix");
    }
}

#[test]
fn gradients_of_signs_do_not_depend_on_threads() {
    let model = latent("mpnet", Task::SequenceClassification, 83).open();
    // Four groups.
    let batch = batch(84, &[16; 16]);
    let gradients = |threads: usize| {
        with_threads(threads, || {
            let mut trainer = Trainer::new(&model, |_| true).expect("a model that trains");
            let objective = Case { labels: vec![Some(1); 16] };
            let at = Moment::default();
            trainer
                .gather(&objective, &batch, Dropout { hidden: 0.1, attention: 0.1, key: 3 }, at)
                .expect("runs");
            trainer.gradients()
        })
    };
    let one = gradients(1);
    assert!(one.iter().any(|(name, g)| name.ends_with("clip_attn") && g[0] != 0.0));
    assert_eq!(gradients(3), one);
}
