//! Which heads and units stay, for a number of parameters.

use super::scores::Scores;
use super::{Kept, sizes};
use crate::model::Model;
use crate::{Error, Result};

/// Widths are multiples of this, so that vector units run full.
const STEP: usize = 8;

/// Keeps what scores highest over all layers: for every number of heads, the best heads and as many of
/// the best units as the budget leaves; of these, the choice with the highest sum (Kwon et al. 2022,
/// algorithm 1, counting parameters instead of MACs). Every layer keeps a head and eight units, so that
/// no block vanishes on an estimate.
pub fn by_layer(model: &Model, scores: &Scores, sparsity: f64) -> Vec<Kept> {
    let (head_size, unit_size, total) = sizes(model);
    let budget = total as f64 * (1.0 - sparsity);
    let heads = ranked(&scores.heads, 1);
    let units = ranked(&scores.units, STEP);
    let sum = |items: &[Item]| {
        let mut sum = 0.0;
        let sums = items.iter().map(|item| {
            sum += item.score;
            sum
        });
        std::iter::once(0.0).chain(sums).collect::<Vec<f64>>()
    };
    let (head_sums, unit_sums) = (sum(&heads), sum(&units));
    // The output biases stay whatever is cut.
    let fixed: usize = model
        .layers
        .iter()
        .map(|l| l.attention.is_some() as usize + l.ffn.is_some() as usize)
        .sum::<usize>()
        * model.config.hidden;
    let must = |items: &[Item]| items.iter().filter(|i| i.must).count();
    let mut best = (f64::NEG_INFINITY, must(&heads), must(&units));
    for (n, head_sum) in head_sums.iter().enumerate().skip(must(&heads)) {
        let left = budget - (fixed + n * head_size) as f64;
        let m = (left / unit_size as f64).floor().clamp(0.0, units.len() as f64) as usize;
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
        kept.units = strongest(&scores.units[layer], to_step(counts[layer]));
    }
    kept
}

/// The same number of units in every layer, and all heads.
///
/// # Errors
/// If more is asked for than the feed-forward blocks have.
pub fn uniform(model: &Model, scores: &Scores, sparsity: f64) -> Result<Vec<Kept>> {
    let (_, unit_size, total) = sizes(model);
    let width = scores.units.iter().map(Vec::len).max().unwrap_or(0);
    let layers = scores.units.iter().filter(|u| !u.is_empty()).count();
    let remove = total as f64 * sparsity / (unit_size * layers.max(1)) as f64;
    let units = ((width as f64 - remove) / STEP as f64).round().max(1.0) as usize * STEP;
    if remove > (width.saturating_sub(STEP)) as f64 {
        let most = (layers * width.saturating_sub(STEP) * unit_size) as f64 / total as f64;
        return Err(Error::Option {
            pass: "prune",
            option: "sparsity",
            found: sparsity.to_string(),
            expected: format!("at most {most:.3} with shape=uniform, which keeps all heads"),
        });
    }
    let kept = |layer: usize| Kept {
        heads: (0..scores.heads[layer].len()).collect(),
        units: strongest(&scores.units[layer], units),
    };
    Ok((0..model.layers.len()).map(kept).collect())
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

/// The nearest multiple of [`STEP`], at least one.
fn to_step(n: usize) -> usize {
    ((n + STEP / 2) / STEP).max(1) * STEP
}
