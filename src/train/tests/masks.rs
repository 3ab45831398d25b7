//! Gradients of all masks, masks at a rate of their own, multipliers by ascent.

use super::*;
use crate::data::Dataset;
use crate::data::tokenizer::Encoded;
use crate::train::backward::Back;
use crate::train::distillation::{Distillation, Terms};
use crate::train::losses::Matching;
use crate::train::objective::{Group, Moment, Objective, Rate, Seen, Verdict};
use crate::train::trainer::Trainer;

/// The answer along a direction, through masks that are parameters, and a multiplier of their sum.
struct Masked {
    masks: Masks,
    values: Vec<f32>,
    multiplier: Vec<f32>,
    direction: Vec<f32>,
    /// The most that a mask may be.
    most: f32,
}

impl Masked {
    fn fill(&self) -> Masks {
        let mut masks = self.masks.clone();
        let cells = masks.heads.iter_mut().chain(&mut masks.units).flatten();
        cells.zip(&self.values).for_each(|(m, v)| *m = *v);
        masks
    }
}

impl Objective for Masked {
    fn masks(&self, _: Moment) -> Option<Masks> {
        Some(self.fill())
    }

    fn loss(&self, seen: &Seen) -> crate::Result<Verdict> {
        assert_eq!(seen.masks.map(|m| &m.units), Some(&self.fill().units));
        let depth = seen.encoder.layers.len();
        let last = tape::hidden(seen.tapes, depth);
        let mut signal = Signal::new(depth);
        signal.add_hidden(depth, self.direction.clone(), 1.0);
        let losses = vec![("along", dot(&last, &self.direction))];
        Ok(Verdict { losses, signal, head: None, own: Vec::new() })
    }

    fn parameters(&mut self) -> Vec<(Group, &mut Vec<f32>)> {
        let group = |rate| Group { rate: Rate::Constant(rate), decay: 0.0, clipped: false };
        vec![(group(0.01), &mut self.values), (group(-0.02), &mut self.multiplier)]
    }

    fn mask_gradients(&self, masks: &Masks, backs: &[Back], _: Moment) -> Vec<Vec<f32>> {
        let all = masks.heads.iter().chain(&masks.units).map(Vec::len);
        let layers = masks.heads.len();
        let sum = |(i, width): (usize, usize)| -> Vec<f32> {
            let mut sum = vec![0.0; width];
            for back in backs {
                let rows = if i < layers { &back.heads[i] } else { &back.units[i - layers] };
                for row in rows.chunks_exact(width.max(1)) {
                    sum.iter_mut().zip(row).for_each(|(s, g)| *s += g);
                }
            }
            sum
        };
        let of_masks = all.enumerate().flat_map(sum).collect();
        vec![of_masks, vec![self.values.iter().sum()]]
    }

    fn updated(&mut self) {
        self.values.iter_mut().for_each(|v| *v = v.min(self.most));
    }

    fn judge(&self, _: &Encoder) -> crate::Result<Option<f64>> {
        Ok(None)
    }
}

#[test]
fn masks_and_multipliers_move_at_their_own_rates() {
    let model = uneven("bert", Task::Bare, 140);
    let batch = batch(141, &[18, 18, 18, 18, 18, 5]);
    let masks = Masks::ones(&model);
    let count = masks.heads.iter().chain(&masks.units).map(Vec::len).sum();
    let values: Vec<f32> = gaussian(count, 142).iter().map(|n| 1.0 + 0.2 * n).collect();
    let direction = gaussian(batch.tokens() * HIDDEN, 143);
    let (values_now, multiplier, most) = (values.clone(), vec![0.0], f32::INFINITY);
    let mut objective = Masked { masks, values: values_now, multiplier, direction, most };
    let mut trainer = Trainer::new(&model, |_| true).expect("a model that trains");
    let dropout = tape::Dropout::default();
    trainer.gather(&objective, &batch, dropout, Moment::default()).expect("runs");

    let encoder = Encoder::new(&model).expect("a model that runs");
    let loss = |objective: &Masked| {
        let masks = objective.fill();
        let last = encoder.hidden(&batch, Some(&masks), &mut NoObserver).expect("runs").x;
        dot(&last, &objective.direction)
    };
    // By differences, for some of them; AdamW's first step shows the sign alone.
    let mut signs = Vec::new();
    for i in (0..count).step_by(7) {
        let mut at = |step: f32| {
            objective.values[i] += step;
            let found = loss(&objective);
            objective.values[i] -= step;
            found
        };
        let difference = at(1e-2) - at(-1e-2);
        if difference.abs() > 1e-3 {
            signs.push((i, difference.signum() as f32));
        }
    }
    assert!(signs.len() > 5, "{signs:?}");
    trainer.update(&mut objective, 1e-9, 0.0, 0.0).expect("finite");
    for (i, sign) in signs {
        let moved = objective.values[i] - values[i];
        assert!((moved + 0.01 * sign).abs() < 1e-5, "mask {i}: {moved}, {sign}");
    }
    let sum: f32 = values.iter().sum();
    let moved = objective.multiplier[0];
    assert!((moved - 0.02 * sum.signum()).abs() < 1e-5, "up the constraint: {moved}");
}

/// Every mask of a model, in one order.
fn all_mut(masks: &mut Masks) -> Vec<&mut f32> {
    let Masks { heads, units, attention, ffn, hidden } = masks;
    heads.iter_mut().chain(units).chain([attention, ffn, hidden]).flatten().collect()
}

/// The loss along directions on the answer and on every hidden state, and its gradient by every mask in the
/// order of [`all_mut`].
fn along(
    encoder: &Encoder,
    batch: &Batch,
    (values, states): (&[f32], &[Vec<f32>]),
    masks: &Masks,
) -> (f64, Vec<f32>) {
    let picked = [0, 3, 7];
    let path: Vec<_> = encoder.layers.iter().collect();
    let dropout = tape::Dropout { hidden: 0.1, attention: 0.2, key: 9 };
    let plan = Plan { masks: Some(masks), mask_gradients: true, dropout, ..Plan::default() };
    let mut tapes = tape::forward(encoder, &path, batch, &plan).expect("runs");
    let last = tape::hidden(&tapes, path.len());
    let head = head::forward(encoder, batch, &last, &picked, Some(masks), dropout);
    let values = &values[..head.values.len()];
    let mut loss = dot(&head.values, values);
    let mut signal = Signal::new(path.len());
    let back = head::backward(encoder, None, batch, &last, &head, values);
    signal.add_hidden(path.len(), back.last, 1.0);
    for (l, direction) in states.iter().enumerate() {
        loss += dot(&tape::hidden(&tapes, l), direction);
        signal.add_hidden(l, direction.clone(), 1.0);
    }
    let backs = backward::backward(encoder, &path, &mut tapes, &signal, &plan);
    let mut sums = masks.clone();
    all_mut(&mut sums).into_iter().for_each(|m| *m = 0.0);
    sums.hidden = back.hidden;
    for back in &backs {
        let add = |sum: &mut [f32], rows: &[f32]| {
            for row in rows.chunks_exact(sum.len().max(1)) {
                sum.iter_mut().zip(row).for_each(|(s, g)| *s += g);
            }
        };
        for l in 0..path.len() {
            add(&mut sums.heads[l], &back.heads[l]);
            add(&mut sums.units[l], &back.units[l]);
        }
        add(&mut sums.attention, &back.attention);
        add(&mut sums.ffn, &back.ffn);
        add(&mut sums.hidden, &back.hidden);
    }
    (loss, all_mut(&mut sums).into_iter().map(|m| *m).collect())
}

#[test]
fn gradients_of_all_masks_are_their_differences() {
    for (i, (family, task)) in every().enumerate() {
        let mut model = uneven(family, task, 150);
        if task == Task::Embedding {
            // Max pooling bends at every tie.
            model.head = Head::Embedding { pool: PoolMode::Mean, normalize: true };
        }
        let encoder = Encoder::new(&model).expect("a model that runs");
        let batch = batch(151, &[18, 18, 18, 18, 18, 5]);
        let mut masks = Masks::ones(&model);
        let numbers = gaussian(1000, 152 + i as u64);
        let cells = all_mut(&mut masks).into_iter().zip(numbers);
        cells.for_each(|(m, n)| *m = (0.7 + 0.2 * n).max(0.1));
        masks.heads[0][1] = 0.0;
        masks.units[0][2] = 0.0;
        masks.hidden[5] = 0.0;
        masks.hidden[9] = 0.0;
        masks.ffn[1] = 0.0;
        let values = gaussian(10_000, 153);
        let states: Vec<Vec<f32>> =
            (0..4).map(|l| gaussian(batch.tokens() * HIDDEN, 154 + l)).collect();
        let directions = (values.as_slice(), states.as_slice());
        let (_, found) = along(&encoder, &batch, directions, &masks);
        let largest = found.iter().fold(0.0f32, |a, g| a.max(g.abs()));
        for at in (i % 3..found.len()).step_by(3) {
            // What is closed stays closed: the function jumps there.
            if *all_mut(&mut masks)[at] == 0.0 {
                continue;
            }
            let loss = |step: f32| {
                let mut moved = masks.clone();
                *all_mut(&mut moved)[at] += step;
                along(&encoder, &batch, directions, &moved).0
            };
            let expected = (loss(2e-3) - loss(-2e-3)) / 4e-3;
            let off = (found[at] as f64 - expected).abs();
            let allowed = 0.02 * expected.abs() + 0.003 * largest as f64;
            assert!(off < allowed, "{family} {task:?}, mask {at}: {}, {expected}", found[at]);
        }
    }
}

#[test]
fn an_objective_brings_its_parameters_back_into_range_after_every_update() {
    let model = uneven("bert", Task::Bare, 144);
    let batch = batch(145, &[6, 4]);
    let masks = Masks::ones(&model);
    let count = masks.heads.iter().chain(&masks.units).map(Vec::len).sum();
    let direction = gaussian(batch.tokens() * HIDDEN, 146);
    let (values, multiplier) = (vec![1.0; count], vec![0.0]);
    let mut objective = Masked { masks, values, multiplier, direction, most: 1.0 };
    let mut trainer = Trainer::new(&model, |_| true).expect("a model that trains");
    for update in 0..3 {
        let (dropout, at) = (tape::Dropout::default(), Moment { update, part: 0 });
        trainer.gather(&objective, &batch, dropout, at).expect("runs");
        trainer.update(&mut objective, 1e-9, 0.0, 0.0).expect("finite");
        let largest = objective.values.iter().fold(0.0f32, |a, v| a.max(*v));
        assert_eq!(largest, 1.0, "the step up is undone");
        assert!(objective.values.iter().any(|v| *v < 1.0), "the step down stays");
    }
}

#[test]
fn a_model_is_judged_through_masks_as_if_it_had_been_cut() {
    let teacher = tiny("bert", Task::SequenceClassification, 147);
    let batch = batch(148, &[6, 4, 7]);
    let text = |span: &[usize]| Encoded {
        ids: batch.ids[span[0]..span[1]].to_vec(),
        type_ids: batch.type_ids[span[0]..span[1]].to_vec(),
    };
    let texts = batch.starts.windows(2).map(text).collect();
    let data = Dataset { texts, targets: None, masker: None, source: "random texts".into() };
    let terms = Terms {
        temperature: 2.0,
        prediction: 1.0,
        hidden: 0.0,
        matching: Matching::Uniform,
        ..Terms::default()
    };
    let held = [0, 1, 2];
    let objective = Distillation::new(terms, &teacher, &teacher, &data, &held, 0).expect("texts");
    let run = Encoder::new(&teacher).expect("a model that runs");
    let mut masks = Masks::ones(&teacher);
    (masks.heads[1][1], masks.heads[1][3]) = (0.0, 0.0);
    let mut cut = teacher.clone();
    let attention = cut.layers[1].attention.as_ref().expect("attention");
    cut.layers[1].attention = Some(attention.select_heads(&[0, 2]).expect("dense"));
    let cut = Encoder::new(&cut).expect("a model that runs");

    let masked = objective.judge_with(&run, Some(&masks)).expect("runs").expect("texts");
    let sliced = objective.judge(&cut).expect("runs").expect("texts");
    assert!(sliced > 1e-6, "the heads matter: {sliced}");
    assert!((masked - sliced).abs() < 1e-3 * sliced, "{masked}, {sliced}");
    assert_eq!(objective.judge(&run).expect("runs"), Some(0.0));
}

/// The last state along a direction, under masks that stay as they are.
struct Fixed {
    masks: Masks,
    direction: Vec<f32>,
}

impl Objective for Fixed {
    fn masks(&self, _: Moment) -> Option<Masks> {
        Some(self.masks.clone())
    }

    fn loss(&self, seen: &Seen) -> crate::Result<Verdict> {
        let depth = seen.encoder.layers.len();
        let mut signal = Signal::new(depth);
        signal.add_hidden(depth, self.direction.clone(), 1.0);
        let losses = vec![("along", dot(&tape::hidden(seen.tapes, depth), &self.direction))];
        Ok(Verdict { losses, signal, head: None, own: Vec::new() })
    }

    fn parameters(&mut self) -> Vec<(Group, &mut Vec<f32>)> {
        Vec::new()
    }

    fn mask_gradients(&self, masks: &Masks, backs: &[Back], _: Moment) -> Vec<Vec<f32>> {
        let of = |pick: &dyn Fn(&Back) -> Vec<f32>| backs.iter().flat_map(pick).collect();
        let layers = 0..masks.heads.len();
        let heads = layers.clone().map(|l| of(&|b| b.heads[l].clone()));
        heads.chain(layers.map(|l| of(&|b| b.units[l].clone()))).collect()
    }

    fn judge(&self, _: &Encoder) -> crate::Result<Option<f64>> {
        Ok(None)
    }
}

/// What masks close is not computed in training: the plain way computes it and multiplies by 0.
#[test]
fn layers_without_what_is_closed_have_the_gradients_of_whole_ones() {
    for (i, family) in family::TRAINED.iter().enumerate() {
        let model = uneven(family.model_type, Task::SequenceClassification, 160 + i as u64);
        let batch = batch(161, &[18, 18, 18, 18, 18, 5]);
        let mut masks = Masks::ones(&model);
        let numbers = gaussian(1000, 162 + i as u64);
        let cells = all_mut(&mut masks).into_iter().zip(numbers);
        cells.for_each(|(m, n)| *m = if n < 0.3 { 0.0 } else { (0.4 * n).min(1.0) });
        masks.attention = vec![1.0, 0.5, 0.0];
        masks.ffn = vec![0.0, 1.0, 0.7];
        masks.heads[1].fill(0.0);
        let direction = gaussian(batch.tokens() * HIDDEN, 163);
        let objective = Fixed { masks, direction };
        let dropout = tape::Dropout { hidden: 0.1, attention: 0.0, key: 3 };
        let at = Moment::default();
        let mut trainer = Trainer::new(&model, |_| true).expect("a model that trains");
        let found_loss = trainer.gather(&objective, &batch, dropout, at).expect("runs")[0].1;
        let found = trainer.gradients();

        let encoder = Encoder::trainable(&model).expect("a model that runs");
        let path: Vec<_> = encoder.layers.iter().collect();
        let masks = Some(&objective.masks);
        let plan = Plan { masks, mask_gradients: true, dropout, ..Plan::default() };
        let mut tapes = tape::forward(&encoder, &path, &batch, &plan).expect("runs");
        let loss = dot(&tape::hidden(&tapes, path.len()), &objective.direction);
        assert!((loss - found_loss).abs() < 1e-4 * loss.abs().max(1.0), "{found_loss}, {loss}");
        let mut signal = Signal::new(path.len());
        signal.add_hidden(path.len(), objective.direction.clone(), 1.0);
        let backs = backward::backward(&encoder, &path, &mut tapes, &signal, &plan);
        let mut grads = encoder.clone();
        grads.leaves_mut().into_iter().for_each(|leaf| leaf.to_mut().fill(0.0));
        weights::add(&encoder, &mut grads, &tapes, &backs, &vec![true; path.len()]);
        let leaves = grads.leaves_mut();
        assert_eq!(leaves.len(), found.len());
        let largest = found.iter().flat_map(|(_, g)| g).fold(0.0f32, |a, g| a.max(g.abs()));
        assert!(largest > 0.1, "nothing to compare");
        for ((name, found), expected) in found.iter().zip(leaves) {
            let off = found.iter().zip(expected.iter()).map(|(a, b)| (a - b).abs());
            let off = off.fold(0.0f32, f32::max);
            assert!(off < 1e-4 * largest, "{}, {name}: {off} of {largest}", family.model_type);
        }
    }
}
