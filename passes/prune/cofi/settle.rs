//! From gates that were trained to masks that are fast to cut by.

use super::super::price::Open;
use super::objective::Cofi;
use crate::model::slice::Masks;
use crate::train::gates;

/// How far what the gates are expected to leave and what is cut may lie apart: beyond it what is cut is not the
/// model that was trained (CoFi notes, §8.7).
pub const TOLERANCE: f64 = 0.02;
/// The same for the deterministic masks before widths are rounded. Rows of few gates round by themselves: of a
/// model with six layers up to a hundredth.
pub const HOVERING: f64 = 0.05;
/// How far what the gates are expected to leave may lie from what was asked for: beyond it the constraint had no
/// time to bring them there.
pub const MISSED: f64 = 0.05;

/// The deterministic masks with widths in multiples of `step`, as close to the budget as whole steps of units
/// come, and within it. What is opened or closed for that are the gates nearest to it. `uniform` gives every
/// layer that is left the same number of units.
pub fn settle(cofi: &Cofi, step: usize, uniform: bool) -> Masks {
    let mut masks = cofi.masks_to_cut();
    if cofi.gated.hidden {
        let width = masks.hidden.len();
        let count = rounded(open(&masks.hidden), step, width);
        keep(&mut masks.hidden, &cofi.logits.hidden, count);
    }
    let alive = |masks: &Masks| -> Vec<usize> {
        (0..masks.units.len())
            .filter(|&l| masks.ffn[l] != 0.0 && !masks.units[l].is_empty())
            .collect()
    };
    let price = |masks: &Masks| cofi.budget.price.of(&cofi.hard(masks));
    let allowed = cofi.budget.allowed();
    if uniform {
        let layers = alive(&masks);
        let width = layers.iter().map(|&l| masks.units[l].len()).min().unwrap_or(0);
        // A block that is narrower than a step stays as it is.
        let mut count = if width < step { width } else { width - width % step };
        loop {
            for &l in &layers {
                keep(&mut masks.units[l], &cofi.logits.units[l], count);
            }
            if count <= step || price(&masks) <= allowed {
                return masks;
            }
            count -= step;
        }
    }
    for l in alive(&masks) {
        let width = masks.units[l].len();
        let count = rounded(open(&masks.units[l]), step, width);
        keep(&mut masks.units[l], &cofi.logits.units[l], count);
    }
    // Too much is left: the weakest steps go, as long as there are any.
    while price(&masks) > allowed {
        let mut groups: Vec<(f32, usize, usize)> = Vec::new();
        for l in alive(&masks) {
            let count = open(&masks.units[l]);
            // A whole block may be no multiple of the step.
            let fewer = count.saturating_sub(1) / step * step;
            if fewer > 0 {
                groups.push((mean_at(&cofi.logits.units[l], fewer, count), l, fewer));
            }
        }
        if let Some(&(_, l, count)) = groups.iter().min_by(|a, b| a.0.total_cmp(&b.0)) {
            keep(&mut masks.units[l], &cofi.logits.units[l], count);
            continue;
        }
        // Then heads, but one of each layer.
        let heads = (0..masks.heads.len()).filter(|&l| {
            cofi.gated.heads && masks.attention[l] != 0.0 && open(&masks.heads[l]) > 1
        });
        let weakest = |l: usize| {
            let count = open(&masks.heads[l]);
            (mean_at(&cofi.logits.heads[l], count - 1, count), l, count - 1)
        };
        let Some((_, l, count)) = heads.map(weakest).min_by(|a, b| a.0.total_cmp(&b.0)) else {
            break;
        };
        keep(&mut masks.heads[l], &cofi.logits.heads[l], count);
    }
    // There is room: the strongest steps come back.
    loop {
        let mut best: Option<(f32, Masks)> = None;
        for l in alive(&masks) {
            let (count, width) = (open(&masks.units[l]), masks.units[l].len());
            if count == 0 || count + step > width {
                continue;
            }
            let strength = mean_at(&cofi.logits.units[l], count, count + step);
            if best.as_ref().is_some_and(|(most, _)| *most >= strength) {
                continue;
            }
            let mut wider = masks.clone();
            keep(&mut wider.units[l], &cofi.logits.units[l], count + step);
            if price(&wider) <= allowed {
                best = Some((strength, wider));
            }
        }
        match best {
            Some((_, wider)) => masks = wider,
            None => return masks,
        }
    }
}

/// How many gates are not closed.
pub fn open(row: &[f32]) -> usize {
    row.iter().filter(|&&z| z != 0.0).count()
}

/// The nearest multiple of `step` that is in `step..=width`; 0 stays, and so does what `step` does not divide
/// when all of it is left.
fn rounded(count: usize, step: usize, width: usize) -> usize {
    if count == 0 || count == width {
        return count;
    }
    let nearest = ((count + step / 2) / step).max(1) * step;
    if nearest > width { width } else { nearest }
}

/// Logits of `row` from the strongest, by places.
fn order(row: &[f32]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..row.len()).collect();
    order.sort_by(|&a, &b| row[b].total_cmp(&row[a]).then(b.cmp(&a)));
    order
}

/// The mean logit of the ranks `from..to`.
fn mean_at(row: &[f32], from: usize, to: usize) -> f32 {
    let ranked = order(row);
    ranked[from..to].iter().map(|&i| row[i]).sum::<f32>() / (to - from) as f32
}

/// Opens the `count` strongest gates and closes the rest. Of equals the last stay, as in
/// [`gates::deterministic`].
fn keep(mask: &mut [f32], logits: &[f32], count: usize) {
    for (rank, i) in order(logits).into_iter().enumerate() {
        mask[i] = if rank < count { gates::soft(logits[i]) } else { 0.0 };
    }
}

/// Shares of gates by how open they are in expectation, in tenths: settled gates are in the first and the
/// last.
pub fn histogram(open: &Open) -> [usize; 10] {
    let mut counts = [0; 10];
    let all =
        open.heads.iter().chain(&open.units).chain([&open.attention, &open.ffn, &open.hidden]);
    for &p in all.flatten() {
        counts[((p * 10.0) as usize).min(9)] += 1;
    }
    counts
}
