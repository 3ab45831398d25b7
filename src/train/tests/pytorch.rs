//! What PyTorch computed (fixtures/gradients/make.py).

use super::*;
use crate::checkpoint::Checkpoint;
use crate::runtime::Encoder;
use crate::train::losses;
use crate::train::objective::{Moment, Objective, Seen, Verdict};
use crate::train::trainer::Trainer;
use std::path::{Path, PathBuf};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/gradients")
}

pub(super) struct Stored(pub Checkpoint);

impl Stored {
    fn open() -> Stored {
        Stored(Checkpoint::open(&folder().join("gradients.safetensors")).expect("the fixture"))
    }

    pub fn floats(&self, name: &str) -> Vec<f32> {
        let tensor = self.0.get(name).unwrap_or_else(|| panic!("`{name}` in the fixture"));
        tensor.to_f32().expect("floats").into_owned()
    }

    pub fn integers(&self, name: &str) -> Vec<usize> {
        let values = self.0.get(name).expect("in the fixture").to_i64().expect("integers");
        values.iter().map(|&v| v as usize).collect()
    }

    fn batch(&self) -> Batch {
        let lengths = self.integers("lengths");
        let (ids, types) = (self.integers("input_ids"), self.integers("token_type_ids"));
        let padded = ids.len() / lengths.len();
        let mut batch = Batch::default();
        for (row, &len) in lengths.iter().enumerate() {
            let part = |all: &[usize]| -> Vec<u32> {
                all[row * padded..row * padded + len].iter().map(|&v| v as u32).collect()
            };
            batch.push(&part(&ids), &part(&types), row);
        }
        batch
    }

    /// The fixture's class of each text.
    fn classes(&self) -> Vec<Option<u32>> {
        self.integers("labels").into_iter().map(|c| Some(c as u32)).collect()
    }
}

/// The losses of the fixture.
struct Case<'a> {
    stored: &'a Stored,
    distill: bool,
}

impl Objective for Case<'_> {
    fn loss(&self, seen: &Seen) -> crate::Result<Verdict> {
        let depth = seen.encoder.layers.len();
        let last = tape::hidden(seen.tapes, depth);
        let head = head::forward(seen.encoder, seen.left, &last, &[], None, seen.dropout);
        let mut signal = Signal::new(depth);
        if !self.distill {
            let classes = self.stored.classes();
            let loss = losses::cross_entropy(&head.values, head.width, &classes);
            let losses = vec![("task", loss.value)];
            return Ok(Verdict { losses, signal, head: Some((head, loss.grad)), own: vec![] });
        }
        let teacher = self.stored.floats("distill.teacher_logits");
        let loss = losses::divergence(&head.values, &teacher, head.width, 2.0);
        let mut parts = vec![("prediction", loss.value)];
        for l in 0..=depth {
            let state = tape::hidden(seen.tapes, l);
            let target = self.stored.floats(&format!("distill.teacher_hidden.{l}"));
            let width = seen.encoder.model.config.hidden;
            let weight = if l == 0 { 0.25 } else { 0.5 };
            let found = losses::hidden(&state, &target, width, width, None);
            parts.push(("hidden", weight * found.value));
            signal.add_hidden(l, found.grad, weight as f32);
        }
        Ok(Verdict { losses: parts, signal, head: Some((head, loss.grad)), own: vec![] })
    }

    fn judge(&self, _: &Encoder) -> crate::Result<Option<f64>> {
        Ok(None)
    }
}

fn model() -> Model {
    Model::open(&folder()).expect("the fixture's checkpoint")
}

/// Relative to the largest value of the tensor.
pub(super) fn off(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(0.0f32, |m, x| m.max(x.abs())) as f64;
    let pairs = found.iter().zip(expected);
    let most = pairs.map(|(f, e)| (f - e).abs() as f64).fold(0.0, f64::max);
    most / largest.max(1e-12)
}

#[test]
fn gradients_of_every_weight_are_those_of_autograd() {
    let (stored, model) = (Stored::open(), model());
    for (case, distill) in [("cross_entropy", false), ("distill", true)] {
        let mut trainer = Trainer::new(&model, |_| true).expect("a model that trains");
        let at = Moment::default();
        let objective = Case { stored: &stored, distill };
        let dropout = tape::Dropout::default();
        let losses = trainer.gather(&objective, &stored.batch(), dropout, at).expect("runs");
        let loss: f64 = losses.iter().map(|(_, value)| value).sum();
        let expected = stored.floats(&format!("{case}.loss"))[0] as f64;
        assert!((loss / expected - 1.0).abs() < 1e-5, "{case}: {loss}, {expected}");
        let mut compared = 0;
        for (name, grad) in trainer.gradients() {
            let expected = stored.floats(&format!("{case}.grad.{name}"));
            let largest = expected.iter().fold(0.0f32, |m, x| m.max(x.abs()));
            if name.ends_with("key.bias") {
                // It shifts all scores of a query alike: 0 but for rounding.
                assert!(largest < 1e-9 && grad.iter().all(|g| g.abs() < 1e-6), "{case} {name}");
                continue;
            }
            assert!(largest > 1e-6, "{case} {name}: nothing to compare");
            let off = off(&grad, &expected);
            assert!(off < 1e-4, "{case} {name}: off by {off}");
            compared += 1;
        }
        assert_eq!(compared, 54, "weights compared");
    }
}

#[test]
fn three_steps_of_adamw_arrive_where_pytorch_arrives() {
    let (stored, model) = (Stored::open(), model());
    let mut trainer = Trainer::new(&model, |_| true).expect("a model that trains");
    let mut objective = Case { stored: &stored, distill: false };
    let (losses, norms) = (stored.floats("adamw.losses"), stored.floats("adamw.norms"));
    for step in 0..3 {
        let at = Moment { update: step as u32, part: 0 };
        let dropout = tape::Dropout::default();
        let found = trainer.gather(&objective, &stored.batch(), dropout, at).expect("runs");
        let norm = trainer.update(&mut objective, 1e-2, 0.01, 1.0).expect("finite");
        let close = |a: f64, b: f32| (a / b as f64 - 1.0).abs() < 1e-3;
        assert!(close(found[0].1, losses[step]), "{} {}", found[0].1, losses[step]);
        assert!(close(norm, norms[step]), "step {step}: {norm} {}", norms[step]);
    }
    let mut compared = 0;
    for parameter in trainer.parameters() {
        let name = parameter.name.strip_suffix(".0").expect("one parameter a weight");
        if name.ends_with("key.bias") {
            continue; // its gradient is rounding, and Adam divides by it
        }
        let off = off(parameter.values, &stored.floats(&format!("adamw.param.{name}")));
        assert!(off < 1e-3, "{name}: off by {off}");
        compared += 1;
    }
    assert_eq!(compared, 54, "weights compared");
}
