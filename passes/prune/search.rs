//! Which heads and units stay, for what they may cost.

use super::budget::Budget;
use super::scores::Scores;
use super::{Kept, refusal};
use crate::Result;
use crate::model::{Layer, Model};

/// What a choice of heads and units may cost, at the width of the hidden states that the model has.
pub struct Costs {
    pub head: f64,
    pub unit: f64,
    /// What stays whatever is cut.
    fixed: f64,
}

impl Costs {
    pub fn of(model: &Model, budget: &Budget) -> Costs {
        let hidden = model.config.hidden as f64;
        let at = |[fixed, each]: [f64; 2]| fixed + each * hidden;
        let count =
            |there: fn(&Layer) -> bool| model.layers.iter().filter(|l| there(l)).count() as f64;
        let attention = count(|l| l.attention.is_some()) * at(budget.price.attention);
        let ffn = count(|l| l.ffn.is_some()) * at(budget.price.ffn);
        let fixed = at(budget.price.rest) + attention + ffn;
        Costs { head: at(budget.price.head), unit: at(budget.price.unit), fixed }
    }

    fn sum(&self, heads: usize, units: usize) -> f64 {
        self.fixed + heads as f64 * self.head + units as f64 * self.unit
    }

    /// How many units fit besides so many heads; below 0 where these are too much.
    pub fn units_beside(&self, heads: usize, allowed: f64) -> f64 {
        ((allowed - self.sum(heads, 0)) / self.unit).floor()
    }
}

/// Refuses to remove more than [`uniform`] can.
pub fn check_uniform(model: &Model, budget: &Budget, step: usize) -> Result<()> {
    let widths = || model.layers.iter().filter_map(|l| l.ffn.as_ref()).map(|f| f.units());
    let most = widths().max().unwrap_or(0).saturating_sub(step) * widths().count();
    let most = most as f64 * Costs::of(model, budget).unit / budget.whole;
    if budget.target <= most {
        return Ok(());
    }
    let range = match budget.option {
        "params" => format!("at least {:.0}", (1.0 - most) * budget.whole),
        "flops" => format!("at least {:.3}", 1.0 - most),
        "speedup" => format!("at most {:.3}", 1.0 / (1.0 - most)),
        _ => format!("at most {most:.3}"),
    };
    let expected = format!("{range} with shape=uniform, which keeps all heads");
    Err(refusal(budget.option, budget.asked.clone(), &expected))
}

/// Keeps what scores highest over all layers: for every number of heads, the best heads and as many of
/// the best units as the budget leaves; of these, the choice with the highest sum (Kwon et al. 2022,
/// algorithm 1, counting what the budget counts). Every layer keeps a head and a step of units, so that
/// no block vanishes on an estimate. Widths are multiples of `step`.
pub fn by_layer(
    model: &Model,
    scores: &Scores,
    budget: &Budget,
    allowed: f64,
    step: usize,
) -> Vec<Kept> {
    let costs = Costs::of(model, budget);
    let heads = ranked(&scores.heads, 1);
    let units = ranked(&scores.units, step);
    let sum = |items: &[Item]| {
        let mut sum = 0.0;
        let sums = items.iter().map(|item| {
            sum += item.score;
            sum
        });
        std::iter::once(0.0).chain(sums).collect::<Vec<f64>>()
    };
    let (head_sums, unit_sums) = (sum(&heads), sum(&units));
    let must = |items: &[Item]| items.iter().filter(|i| i.must).count();
    let mut best = (f64::NEG_INFINITY, must(&heads), must(&units));
    for (n, head_sum) in head_sums.iter().enumerate().skip(must(&heads)) {
        let m = costs.units_beside(n, allowed).clamp(0.0, units.len() as f64) as usize;
        if m < must(&units) {
            break;
        }
        let score = head_sum + unit_sums[m];
        if score > best.0 {
            best = (score, n, m);
        }
    }
    let mut kept: Vec<Kept> =
        model.layers.iter().map(|_| Kept { heads: Vec::new(), units: Vec::new() }).collect();
    for item in &heads[..best.1] {
        kept[item.layer].heads.push(item.index);
    }
    let mut counts = vec![0usize; kept.len()];
    for item in &units[..best.2] {
        counts[item.layer] += 1;
    }
    for (layer, kept) in kept.iter_mut().enumerate() {
        kept.heads.sort_unstable();
        kept.units = strongest(&scores.units[layer], to_step(counts[layer], step));
    }
    kept
}

/// The same number of units in every layer, and all heads.
pub fn uniform(
    model: &Model,
    scores: &Scores,
    budget: &Budget,
    allowed: f64,
    step: usize,
) -> Vec<Kept> {
    let costs = Costs::of(model, budget);
    let width = scores.units.iter().map(Vec::len).max().unwrap_or(0);
    let layers = scores.units.iter().filter(|u| !u.is_empty()).count();
    let count = |scores: &[Vec<f64>]| scores.iter().map(Vec::len).sum();
    let now = costs.sum(count(&scores.heads), count(&scores.units));
    let remove = (now - allowed).max(0.0) / (costs.unit * layers.max(1) as f64);
    let units = ((width as f64 - remove) / step as f64).round().max(1.0) as usize * step;
    let kept = |layer: usize| Kept {
        heads: (0..scores.heads[layer].len()).collect(),
        units: strongest(&scores.units[layer], units),
    };
    (0..model.layers.len()).map(kept).collect()
}

struct Item {
    layer: usize,
    index: usize,
    score: f64,
    must: bool,
}

/// All items, those that must stay first, then by falling score; ties go to the lower layer and index.
fn ranked(scores: &[Vec<f64>], least: usize) -> Vec<Item> {
    let mut items = Vec::new();
    for (layer, scores) in scores.iter().enumerate() {
        let must = strongest(scores, least);
        items.extend(scores.iter().enumerate().map(|(index, &score)| Item {
            layer,
            index,
            score,
            must: must.binary_search(&index).is_ok(),
        }));
    }
    items.sort_by(|a, b| b.must.cmp(&a.must).then(b.score.total_cmp(&a.score)));
    items
}

/// The `n` highest, ascending by index.
fn strongest(scores: &[f64], n: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
    order.truncate(n);
    order.sort_unstable();
    order
}

/// The nearest multiple of `step`, at least one.
fn to_step(n: usize, step: usize) -> usize {
    ((n + step / 2) / step).max(1) * step
}
