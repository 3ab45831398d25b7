//! What a matrix can become, and which of it every matrix gets under a budget.

use super::{Binarize, Factors};
use crate::model::{Binary, DoubleBinary, Int8, LowRank, Weight};

/// What a matrix becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rung {
    Planes {
        planes: usize,
        rank: usize,
    },
    /// Two binary factors of this inner dimension.
    Double {
        rank: usize,
    },
    Int8,
}

impl Binarize {
    /// A matrix in the form of `rung` without its numbers: how it is stored, and how many bytes it takes where no scale is
    /// too small for f16.
    pub(super) fn blank(&self, name: &str, shape: (usize, usize), rung: Rung) -> Weight {
        let (rows, cols) = shape;
        let name = name.to_string();
        match rung {
            Rung::Planes { planes, rank } => {
                let (group, rank) = (self.group(cols), rank.min(rows).min(cols));
                let int8 = self.factors == Factors::Int8;
                let low_rank = (rank > 0).then(|| LowRank::blank(rank, int8));
                Weight::Binary(Binary::blank(name, shape, planes, group, low_rank))
            }
            Rung::Double { rank } => Weight::Double(DoubleBinary::blank(name, shape, rank)),
            Rung::Int8 => Weight::Int8(Int8::blank(name, shape)),
        }
    }

    /// Columns that share a scale.
    pub(super) fn group(&self, cols: usize) -> usize {
        if self.group == 0 { cols.max(1) } else { self.group.min(cols.max(1)) }
    }
}

/// One of the forms that a matrix could take.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Choice {
    pub bytes: usize,
    /// What it costs the model's answer; comparable between matrices, and summed over them.
    pub cost: f64,
}

/// For every matrix the place of one of its choices, so that all together take no more than `budget` bytes and cost little:
/// the convex hull of each matrix's choices is climbed step by step, the step that saves most for a byte first, and what is
/// left goes to single choices that still fit. `None` when the smallest of all take more.
///
/// # Panics
/// If a matrix has no choice.
pub fn choose(matrices: &[Vec<Choice>], budget: usize) -> Option<Vec<usize>> {
    let hulls: Vec<Vec<usize>> = matrices.iter().map(|choices| hull(choices)).collect();
    let mut chosen: Vec<usize> = hulls.iter().map(|hull| hull[0]).collect();
    let mut left = budget;
    for (choices, &at) in matrices.iter().zip(&chosen) {
        left = left.checked_sub(choices[at].bytes)?;
    }
    let mut steps: Vec<(f64, usize, usize)> = Vec::new();
    for (i, hull) in hulls.iter().enumerate() {
        for (step, pair) in hull.windows(2).enumerate() {
            let (from, to) = (matrices[i][pair[0]], matrices[i][pair[1]]);
            let worth = (from.cost - to.cost) / (to.bytes - from.bytes) as f64;
            steps.push((worth, i, step + 1));
        }
    }
    // A matrix's steps fall in worth, so that they come in their order.
    steps.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
    let mut stuck = vec![false; matrices.len()];
    for (_, i, step) in steps {
        let (from, to) = (chosen[i], hulls[i][step]);
        let more = matrices[i][to].bytes - matrices[i][from].bytes;
        if stuck[i] || more > left {
            stuck[i] = true;
            continue;
        }
        left -= more;
        chosen[i] = to;
    }
    // What no step of a hull fits into may still hold a choice beside it.
    loop {
        let mut best: Option<(f64, usize, usize)> = None;
        for (i, choices) in matrices.iter().enumerate() {
            let now = choices[chosen[i]];
            for (to, choice) in choices.iter().enumerate() {
                let gain = now.cost - choice.cost;
                let fits = choice.bytes <= now.bytes + left;
                if fits && gain > 0.0 && best.is_none_or(|(most, ..)| gain > most) {
                    best = Some((gain, i, to));
                }
            }
        }
        let Some((_, i, to)) = best else { return Some(chosen) };
        left = left + matrices[i][chosen[i]].bytes - matrices[i][to].bytes;
        chosen[i] = to;
    }
}

/// The choices on the lower convex hull of cost over bytes, from the smallest on, as far as costs fall.
fn hull(choices: &[Choice]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..choices.len()).collect();
    let key = |i: usize| (choices[i].bytes, choices[i].cost);
    order.sort_by(|&a, &b| {
        key(a).0.cmp(&key(b).0).then(key(a).1.total_cmp(&key(b).1)).then(a.cmp(&b))
    });
    let mut hull: Vec<usize> = Vec::new();
    for i in order {
        let at = choices[i];
        if hull.last().is_some_and(|&last| at.cost >= choices[last].cost) {
            continue;
        }
        while let [.., first, second] = hull[..] {
            let (first, second) = (choices[first], choices[second]);
            let slope = |to: Choice| (first.cost - to.cost) / (to.bytes - first.bytes) as f64;
            if slope(second) > slope(at) {
                break;
            }
            hull.pop();
        }
        hull.push(i);
    }
    hull
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn choices(list: &[(usize, f64)]) -> Vec<Choice> {
        list.iter().map(|&(bytes, cost)| Choice { bytes, cost }).collect()
    }

    /// By hand: steps are worth 6 (a to 2), 5 (b to 20), 1 (a to 4), 0.1 (b to 30); (3, 3) of a lies above its hull.
    #[test]
    fn the_hand_computed_knapsack_comes_out() {
        let a = choices(&[(1, 10.0), (2, 4.0), (3, 3.9), (4, 2.0)]);
        let b = choices(&[(10, 60.0), (20, 10.0), (30, 9.0)]);
        assert_eq!(hull(&a), [0, 1, 3]);
        let at = |budget| choose(&[a.clone(), b.clone()], budget);
        assert_eq!(at(10), None);
        assert_eq!(at(11), Some(vec![0, 0]));
        assert_eq!(at(13), Some(vec![2, 0]), "what is left goes to a choice beside the hull");
        assert_eq!(at(22), Some(vec![1, 1]));
        assert_eq!(at(24), Some(vec![3, 1]));
        assert_eq!(at(34), Some(vec![3, 2]));
    }

    proptest! {
        #[test]
        fn budgets_are_kept_and_more_never_costs_more(
            lists in prop::collection::vec(
                prop::collection::vec((1usize..40, 0.0f64..9.0), 1..5), 1..5),
            budget in 1usize..160,
        ) {
            let matrices: Vec<Vec<Choice>> = lists.iter().map(|l| choices(l)).collect();
            let least: usize = matrices.iter().map(|m| m.iter().map(|c| c.bytes).min().unwrap_or(0)).sum();
            let sum = |chosen: &[usize]| -> (usize, f64) {
                let all = || matrices.iter().zip(chosen).map(|(m, &c)| m[c]);
                (all().map(|c| c.bytes).sum(), all().map(|c| c.cost).sum())
            };
            match choose(&matrices, budget) {
                None => prop_assert!(least > budget),
                Some(chosen) => {
                    prop_assert!(sum(&chosen).0 <= budget);
                    // Nothing alone could still be bettered.
                    let left = budget - sum(&chosen).0;
                    for (m, &at) in matrices.iter().zip(&chosen) {
                        prop_assert!(m.iter().all(|c| c.bytes > m[at].bytes + left || c.cost >= m[at].cost));
                    }
                }
            }
        }
    }
}
