//! Masks that are trained with the weights, under a constraint on what is left (CoFi notes, §2 to §4).

use super::super::budget::Budget;
use super::super::price::Open;
use crate::Result;
use crate::model::slice::Masks;
use crate::runtime::{Batch, Encoder};
use crate::train::backward::Back;
use crate::train::distillation::Distillation;
use crate::train::gates;
use crate::train::lagrangian::{Lagrangian, Warmup};
use crate::train::objective::{Group, Moment, Objective, Path, Rate, Seen, Verdict};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use std::borrow::Cow;

/// Distillation through gates that are drawn anew for every batch.
pub struct Cofi<'a> {
    pub inner: Distillation<'a>,
    /// The logit of every gate, in the shape of the masks.
    pub logits: Masks,
    pub gated: Gated,
    pub lagrangian: Lagrangian,
    pub budget: Budget,
    /// Logits go no lower; see [`super::CLOSED`].
    pub least: f32,
    /// What the model has, gates or not.
    pub there: Open,
    pub warmup: Warmup,
    /// The update from which gates of blocks are no longer drawn: each is as open as it is by then, for good.
    /// A block is a large part of a shallow model, and one that hovers at a half leaves what is expected far
    /// from what is cut; the finer gates then meet the target around what is decided.
    pub decided: u32,
    /// Learning rates of the logits, and of the multipliers.
    pub rates: [f32; 2],
    pub seed: u64,
}

/// Which masks have gates; the others stay at 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gated {
    pub heads: bool,
    pub hidden: bool,
    /// One gate opens or closes both blocks of a layer.
    pub whole_layers: bool,
}

/// The rows of a set of masks (or of logits), each of which closes together, in the order of parameters.
fn rows(masks: &Masks, gated: Gated) -> Vec<&Vec<f32>> {
    let Masks { heads, units, attention, ffn, hidden } = masks;
    let mut rows: Vec<&Vec<f32>> = Vec::new();
    rows.extend(heads.iter().filter(|_| gated.heads));
    rows.extend(units);
    rows.push(attention);
    rows.extend((!gated.whole_layers).then_some(ffn));
    rows.extend(gated.hidden.then_some(hidden));
    rows
}

fn rows_mut(masks: &mut Masks, gated: Gated) -> Vec<&mut Vec<f32>> {
    let Masks { heads, units, attention, ffn, hidden } = masks;
    let mut rows: Vec<&mut Vec<f32>> = Vec::new();
    rows.extend(heads.iter_mut().filter(|_| gated.heads));
    rows.extend(units);
    rows.push(attention);
    rows.extend((!gated.whole_layers).then_some(ffn));
    rows.extend(gated.hidden.then_some(hidden));
    rows
}

impl Cofi<'_> {
    /// How open every gate is in expectation.
    pub fn expected(&self, update: u32) -> Open {
        let value = |logit: f32| gates::open(logit) as f64;
        let block = |logit: f32| match update >= self.decided {
            true => f64::from(u8::from(value(logit) >= 0.5)),
            false => value(logit),
        };
        let (mut open, masks) = (self.there.clone(), &self.logits);
        let all = |there: &mut [Vec<f64>], found: &[Vec<f32>]| {
            for (there, found) in there.iter_mut().zip(found) {
                there.iter_mut().zip(found).for_each(|(t, &f)| *t = value(f));
            }
        };
        let Gated { heads, hidden, whole_layers } = self.gated;
        if heads {
            all(&mut open.heads, &masks.heads);
        }
        all(&mut open.units, &masks.units);
        let ffn = if whole_layers { &masks.attention } else { &masks.ffn };
        for (there, found) in [(&mut open.attention, &masks.attention), (&mut open.ffn, ffn)] {
            there.iter_mut().zip(found).for_each(|(t, &f)| *t *= block(f));
        }
        if hidden {
            open.hidden.iter_mut().zip(&masks.hidden).for_each(|(t, &f)| *t = value(f));
        }
        open
    }

    /// The sparsity that is expected, in the terms of the budget.
    pub fn sparsity(&self, update: u32) -> f64 {
        self.budget.sparsity(&self.expected(update))
    }

    /// The sparsity of the masks that would be cut with.
    pub fn hard_sparsity(&self) -> f64 {
        self.budget.sparsity(&self.hard(&self.masks_to_cut()))
    }

    /// What `masks` leave, as 0 and 1.
    pub fn hard(&self, masks: &Masks) -> Open {
        let mut open = self.there.clone();
        open.cut(masks);
        open
    }

    /// The deterministic masks (CoFi notes, §2).
    pub fn masks_to_cut(&self) -> Masks {
        let mut masks = self.ones();
        let from = rows(&self.logits, self.gated);
        for (row, logits) in rows_mut(&mut masks, self.gated).into_iter().zip(from) {
            *row = match self.is_block(logits) {
                true => decided(logits),
                false => gates::deterministic(logits),
            };
        }
        self.tie(masks)
    }

    fn is_block(&self, row: &Vec<f32>) -> bool {
        std::ptr::eq(row, &self.logits.attention) || std::ptr::eq(row, &self.logits.ffn)
    }

    fn ones(&self) -> Masks {
        let ones = |rows: &[Vec<f32>]| rows.iter().map(|r| vec![1.0; r.len()]).collect();
        Masks {
            heads: ones(&self.logits.heads),
            units: ones(&self.logits.units),
            attention: vec![1.0; self.logits.attention.len()],
            ffn: vec![1.0; self.logits.ffn.len()],
            hidden: vec![1.0; self.logits.hidden.len()],
        }
    }

    fn tie(&self, mut masks: Masks) -> Masks {
        if self.gated.whole_layers {
            masks.ffn.clone_from(&masks.attention);
        }
        masks
    }
}

/// Deterministic masks of blocks: each is a row of its own.
fn decided(logits: &[f32]) -> Vec<f32> {
    logits.iter().flat_map(|&logit| gates::deterministic(&[logit])).collect()
}

impl Objective for Cofi<'_> {
    fn input<'a>(&self, batch: &'a Batch, at: Moment) -> (Cow<'a, Batch>, Vec<Option<u32>>) {
        self.inner.input(batch, at)
    }

    fn path<'a>(&'a self, encoder: &'a Encoder<'a>, at: Moment) -> Path<'a> {
        self.inner.path(encoder, at)
    }

    fn masks(&self, at: Moment) -> Option<Masks> {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        // Streams of their own: 0 and up are those of shuffling and of hidden tokens.
        rng.set_stream(1 << 63 | (at.update as u64) << 20 | at.part as u64);
        let mut masks = self.ones();
        let from = rows(&self.logits, self.gated);
        for (row, logits) in rows_mut(&mut masks, self.gated).into_iter().zip(from) {
            *row = match self.is_block(logits) && at.update >= self.decided {
                true => decided(logits),
                false => gates::sample(logits, &mut rng),
            };
        }
        Some(self.tie(masks))
    }

    fn loss(&self, seen: &Seen) -> Result<Verdict> {
        let mut verdict = self.inner.loss(seen)?;
        let update = seen.at.update;
        let penalty = self.lagrangian.value(self.sparsity(update), self.warmup.target(update));
        verdict.losses.push(("sparsity", penalty));
        Ok(verdict)
    }

    fn parameters(&mut self) -> Vec<(Group, &mut Vec<f32>)> {
        let group = |rate| Group { rate: Rate::Constant(rate), decay: 0.0, clipped: false };
        let [logits, lambdas] = self.rates;
        let mut all = self.inner.parameters();
        all.extend(rows_mut(&mut self.logits, self.gated).into_iter().map(|r| (group(logits), r)));
        all.push((group(-lambdas), &mut self.lagrangian.lambdas));
        all
    }

    fn mask_gradients(&self, masks: &Masks, backs: &[Back], at: Moment) -> Vec<Vec<f32>> {
        // With respect to the masks.
        let mut sums = self.ones();
        rows_mut(&mut sums, Gated { heads: true, hidden: true, whole_layers: false })
            .into_iter()
            .for_each(|row| row.fill(0.0));
        let add = |sum: &mut [f32], rows: &[f32]| {
            for row in rows.chunks_exact(sum.len().max(1)) {
                sum.iter_mut().zip(row).for_each(|(s, g)| *s += g);
            }
        };
        for back in backs {
            for l in 0..sums.heads.len() {
                add(&mut sums.heads[l], &back.heads[l]);
                add(&mut sums.units[l], &back.units[l]);
            }
            add(&mut sums.attention, &back.attention);
            add(&mut sums.ffn, &back.ffn);
            add(&mut sums.hidden, &back.hidden);
        }
        if self.gated.whole_layers {
            sums.attention.iter_mut().zip(&sums.ffn).for_each(|(a, f)| *a += f);
        }
        // And of the constraint with respect to the probabilities.
        let (open, target) = (self.expected(at.update), self.warmup.target(at.update));
        let sparsity = self.budget.sparsity(&open);
        let slope = self.lagrangian.slope(sparsity, target);
        let mut by_open = self.budget.gradient(&open);
        if self.gated.whole_layers {
            by_open.attention.iter_mut().zip(&by_open.ffn).for_each(|(a, f)| *a += f);
        }
        let mut by_rows: Vec<&Vec<f64>> = Vec::new();
        by_rows.extend(by_open.heads.iter().filter(|_| self.gated.heads));
        by_rows.extend(&by_open.units);
        by_rows.push(&by_open.attention);
        by_rows.extend((!self.gated.whole_layers).then_some(&by_open.ffn));
        by_rows.extend(self.gated.hidden.then_some(&by_open.hidden));

        let (logits, drawn) = (rows(&self.logits, self.gated), rows(masks, self.gated));
        let found = rows(&sums, self.gated).into_iter().zip(by_rows).zip(logits.iter().zip(drawn));
        let mut all: Vec<Vec<f32>> = found
            .map(|((sums, by_open), (logits, drawn))| {
                if self.is_block(logits) && at.update >= self.decided {
                    return vec![0.0; logits.len()];
                }
                let gates = sums.iter().zip(by_open).zip(logits.iter().zip(drawn));
                gates
                    .map(|((sum, by_open), (&logit, &z))| {
                        let constraint = slope * by_open * gates::open_slope(logit) as f64;
                        sum * gates::slope(z) + constraint as f32
                    })
                    .collect()
            })
            .collect();
        all.push(self.lagrangian.lambda_gradients(sparsity, target));
        all
    }

    fn updated(&mut self) {
        let least = self.least;
        rows_mut(&mut self.logits, self.gated).into_iter().for_each(|row| gates::clamp(row, least));
    }

    fn judge(&self, encoder: &Encoder) -> Result<Option<f64>> {
        self.inner.judge_with(encoder, Some(&self.masks_to_cut()))
    }

    fn note(&self, update: u32) -> Option<String> {
        let (found, hard) = (self.sparsity(update), self.hard_sparsity());
        let target = self.warmup.target(update);
        Some(format!(
            "{} {target:.3} asked for, {found:.3} expected, {hard:.3} cut {:?}",
            self.budget.name, self.lagrangian.lambdas
        ))
    }
}
