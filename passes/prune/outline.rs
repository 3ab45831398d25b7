//! How much a cut leaves, before it is known what.

use super::budget::Budget;
use super::cofi::MISSED;
use super::scores::Scores;
use super::search::{self, Costs};
use super::{Kept, Prune, Shape, masks};
use crate::Result;
use crate::model::slice::Masks;
use crate::model::{Model, Outline};
use crate::pass::{Foresight, Pass, PlanContext};
use std::path::Path;

/// What scores and repair of a round take, and what comes on top, in passes of the text through the layers
/// (docs/plan.md).
const SCORED: f64 = 3.0;
const BESIDES: f64 = 2.0;

impl Prune {
    pub(super) fn outline_cut(&self, outline: &mut Outline, cx: &PlanContext) -> Result<Foresight> {
        if self.targets() == [0.0; 4] && self.masks.is_empty() {
            return Ok(Foresight::default());
        }
        outline.models().iter().try_for_each(super::check_whole)?;
        if !self.masks.is_empty() {
            let path = Path::new(&self.masks);
            outline.spread(|model| Ok(vec![model.sliced(&masks::read(path, model)?)?]))?;
            return Ok(Foresight { copies: 2.0, ..Foresight::default() });
        }
        let text = self.text(cx.text, cx.data)?.is_some();
        let trains = self.trains(cx.data);
        let foresight = self.foresight(cx, text, trains);
        if self.speedup != 0.0 {
            outline
                .spread(|model| Ok(vec![least(model, self.round_to, trains)?, model.clone()]))?;
            outline.uneven = true;
            return Ok(foresight.noting("what is left is timed on the machine that runs it"));
        }
        if self.shape == Shape::Uniform && !trains {
            outline.spread(|model| Ok(vec![self.even(model, text)?]))?;
            return Ok(foresight.noting("which units go is chosen by what they add"));
        }
        outline.spread(|model| self.cuts(model, text, trains))?;
        outline.uneven = true;
        let more = if trains && self.width { ", blocks and hidden dimensions" } else { "" };
        let note = format!("which heads and units{more} go is chosen by what they add");
        Ok(foresight.noting(note))
    }

    /// Roughly, as measured (docs/plan.md).
    fn foresight(&self, cx: &PlanContext, text: bool, trains: bool) -> Foresight {
        let rounds = match self.rounds {
            0 if self.sparsity <= 0.5 && self.targets()[1..] == [0.0; 3] => 1.0,
            0 => 4.0,
            rounds => rounds as f64,
        };
        let watched = if text { (BESIDES + rounds * SCORED) * cx.watch() } else { 0.0 };
        if !trains {
            let copies = if text { 5.0 } else { 2.0 };
            return Foresight { seconds: watched, copies, ..Foresight::default() };
        }
        let steps = if self.steps == 0 { 2000 } else { self.steps };
        let finetune = if self.finetune == 0 { steps } else { self.finetune };
        let seconds = watched + cx.training(steps + finetune, self.batch);
        Foresight { seconds, copies: 12.0, ..Foresight::default() }
    }

    /// With as many units as [`search::uniform`] leaves, whatever the scores.
    fn even(&self, model: &Model, text: bool) -> Result<Model> {
        let budget = Budget::of(self, model)?;
        search::check_uniform(model, &budget, self.round_to)?;
        let mut left = model.clone();
        let rounds = if text { self.rounds_for(&budget) } else { 1 };
        for round in 1..=rounds {
            let counts: Vec<Kept> = left.layers.iter().map(Kept::all).collect();
            let scores = Scores {
                heads: counts.iter().map(|k| vec![0.0; k.heads.len()]).collect(),
                units: counts.iter().map(|k| vec![0.0; k.units.len()]).collect(),
                ..Scores::default()
            };
            let allowed = budget.after(round, rounds);
            let kept = search::uniform(&left, &scores, &budget, allowed, self.round_to);
            for (layer, kept) in left.layers.iter_mut().zip(kept) {
                *layer = layer.resized(kept.heads.len(), kept.units.len())?;
            }
        }
        Ok(left)
    }

    /// As few heads with as many units as the budget leaves, and as many with as few; spread evenly, and over the first
    /// or the last layers.
    fn cuts(&self, model: &Model, text: bool, trains: bool) -> Result<Vec<Model>> {
        let budget = Budget::of(self, model)?;
        let costs = Costs::of(model, &budget);
        let counts: Vec<Kept> = model.layers.iter().map(Kept::all).collect();
        let heads: Vec<usize> = counts.iter().map(|k| k.heads.len()).collect();
        let units: Vec<usize> = counts.iter().map(|k| k.units.len()).collect();
        // Training may leave nothing of a block; else a head and a step of units stay in each.
        let stay = |counts: &[usize], n: usize| -> Vec<usize> {
            counts.iter().map(|&c| if trains { 0 } else { c.min(n) }).collect()
        };
        let (least_heads, least_units) = (stay(&heads, 1), stay(&units, self.round_to));
        let sum = |counts: &[usize]| counts.iter().sum::<usize>();
        let (all, must) = (sum(&units), sum(&least_units));
        // Widths round to steps, in each layer by itself. In rounds, a whole head may be missing at the end.
        let rounds = if text && !trains { self.rounds_for(&budget) } else { 1 };
        let head = if rounds > 1 { (costs.head / costs.unit).ceil() as usize } else { 0 };
        let (down, up) = match trains {
            true => {
                let missed = (MISSED * budget.whole / costs.unit).ceil() as usize;
                (missed + units.len() * self.round_to, 0)
            }
            false => {
                let layers = units.len();
                (layers * (self.round_to.saturating_sub(1) / 2), layers * (self.round_to / 2))
            }
        };
        let fits = |n: &usize| costs.units_beside(*n, budget.allowed()) >= must as f64;
        let binds = |n: &usize| costs.units_beside(*n, budget.allowed()) <= all as f64;
        let range = sum(&least_heads)..=sum(&heads);
        let most = range.clone().filter(fits).max().unwrap_or(*range.start());
        // One head less, and all units fit, with room for a part of a head.
        let fewest = range.clone().find(binds).unwrap_or(*range.end());
        let fewest = fewest.saturating_sub(1).max(*range.start()).min(most);
        let beside = |n: usize| {
            let beside = costs.units_beside(n, budget.allowed());
            beside.clamp(must as f64, all as f64) as usize
        };
        // One unit besides: what is left for less than one differs from corner to corner.
        let fewer = |n| beside(n).saturating_sub(down + head + 1).max(must);
        let more = |n| (beside(n) + up + 1).min(all);
        let mut corners = Vec::new();
        for n in [fewest, most] {
            for m in [fewer(n), more(n)] {
                corners.extend([Over::All, Over::First, Over::Last].map(|over| (n, m, over)));
            }
        }
        // Of the last layer a classifier reads one token: FLOPs are most where it keeps least, and the others all of
        // their heads or of their units, and fewest the other way round.
        let last = model.layers.len().saturating_sub(1);
        let but = |counts: &[usize], least: &[usize]| match counts.get(last) {
            Some(of_last) => {
                [sum(counts) - of_last + least[last], sum(least) - least[last] + of_last]
            }
            None => [0; 2],
        };
        let [first_heads, last_heads] = but(&heads, &least_heads);
        let with = but(&units, &least_units).map(|m| {
            let fits = |n: &usize| costs.units_beside(*n, budget.allowed()) >= m as f64;
            range.clone().filter(fits).max().unwrap_or(fewest)
        });
        for n in [first_heads, with[0]].map(|n| n.clamp(fewest, most)) {
            corners.push((n, more(n), Over::First));
        }
        for n in [last_heads, with[1]].map(|n| n.clamp(fewest, most)) {
            corners.push((n, fewer(n), Over::Last));
        }
        let mut models = Vec::new();
        for (n, m, over) in corners {
            let heads = over.spread(&least_heads, &heads, n);
            let units = over.spread(&least_units, &units, m);
            let mut cut = model.clone();
            for (l, layer) in cut.layers.iter_mut().enumerate() {
                *layer = layer.resized(heads[l], units[l])?;
            }
            models.push(cut);
        }
        if trains && self.width && self.shape == Shape::Layers {
            models.extend(self.narrow(model, &budget));
        }
        Ok(models)
    }

    /// Where all that goes are hidden dimensions; `None` where they stay.
    fn narrow(&self, model: &Model, budget: &Budget) -> Option<Model> {
        let left = (1.0 - budget.target - MISSED).max(0.0);
        let width = (left * model.config.hidden as f64) as usize / self.round_to * self.round_to;
        let mut masks = Masks::ones(model);
        masks.hidden.iter_mut().skip(width.max(self.round_to)).for_each(|z| *z = 0.0);
        model.sliced(&masks).ok() // a model that gives hidden states out keeps them all
    }
}

/// Over which layers something is spread.
#[derive(Debug, Clone, Copy)]
enum Over {
    All,
    First,
    Last,
}

impl Over {
    /// `sum` in all, in each place between `least` and `most`.
    fn spread(self, least: &[usize], most: &[usize], sum: usize) -> Vec<usize> {
        let mut counts = least.to_vec();
        let mut left = sum.saturating_sub(least.iter().sum());
        if let Over::All = self {
            let room: usize = most.iter().zip(least).map(|(most, least)| most - least).sum();
            let share = left.min(room) as f64 / room.max(1) as f64;
            for (count, most) in counts.iter_mut().zip(most) {
                let more = (share * (most - *count) as f64) as usize;
                (*count, left) = (*count + more, left - more);
            }
        }
        let order: Vec<usize> = match self {
            Over::Last => (0..counts.len()).rev().collect(),
            _ => (0..counts.len()).collect(),
        };
        for l in order {
            // What is left of an even spread is less than one a layer.
            let room = most[l] - counts[l];
            let more = if let Over::All = self { room.min(left).min(1) } else { room.min(left) };
            (counts[l], left) = (counts[l] + more, left - more);
        }
        counts
    }
}

/// With the least that can be left.
fn least(model: &Model, step: usize, trains: bool) -> Result<Model> {
    let mut model = model.clone();
    for layer in &mut model.layers {
        let Kept { heads, units } = Kept::all(layer);
        let (head, step) = if trains { (0, 0) } else { (1, step) };
        *layer = layer.resized(heads.len().min(head), units.len().min(step))?;
    }
    Ok(model)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_spread_keeps_its_sum_and_its_bounds() {
        let (least, most) = ([1, 0, 2], [4, 0, 10]);
        assert_eq!(Over::First.spread(&least, &most, 6), [4, 0, 2]);
        assert_eq!(Over::Last.spread(&least, &most, 6), [1, 0, 5]);
        assert_eq!(Over::All.spread(&least, &most, 6), [2, 0, 4]);
        assert_eq!(Over::All.spread(&least, &most, 99), most);
        assert_eq!(Over::Last.spread(&least, &most, 0), least);
    }
}
