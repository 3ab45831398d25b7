//! What pruning in training will need: masks at a rate of their own, multipliers by ascent.

use super::*;
use crate::train::backward::Back;
use crate::train::objective::{Group, Moment, Objective, Rate, Seen, Verdict};
use crate::train::trainer::Trainer;

/// The answer along a direction, through masks that are parameters, and a multiplier of their sum.
struct Masked {
    masks: Masks,
    values: Vec<f32>,
    multiplier: Vec<f32>,
    direction: Vec<f32>,
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
    let mut objective = Masked { masks, values: values.clone(), multiplier: vec![0.0], direction };
    let mut trainer = Trainer::new(&model, |_| true).expect("a model that trains");
    let dropout = tape::Dropout::default();
    trainer.gather(&objective, &batch, dropout, Moment::default()).expect("runs");

    let encoder = Encoder::new(&model).expect("a model that runs");
    let loss = |objective: &Masked| {
        let masks = objective.fill();
        let last = encoder.hidden(&batch, Some(&masks), &mut NoObserver).expect("runs");
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
