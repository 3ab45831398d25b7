//! Losses on importance: a student ranks the tokens of a text as its teacher does.

use super::Loss;
use serde::{Deserialize, Serialize};
use std::f64::consts::LN_2;
use std::ops::Range;

/// Which ranking loss. Both sum `weight · log2(1 + exp(−(s_i − s_j)))` over the pairs of tokens of which the
/// teacher puts i before j.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ranking {
    /// The weight is how many ranks the two are apart; the sum is divided by k², for the k tokens compared. The
    /// one of ToP's code.
    Arp2,
    /// The weight is about what swapping the two costs in normalised discounted cumulative gain. Gains are
    /// `2^y − 1`, with y from k − 1 at the best token to 0 at the last, so the first few tokens count for nearly
    /// all. Not divided by k². An alternative in ToP's code.
    Ndcg2,
}

/// How far the order that a student's scores give to a text's tokens is from the teacher's (ToP, KDD 2023;
/// ToP notes, §4, sigma 1).
///
/// - `student`, `teacher`: importance of tokens, `[tokens]`. The first token (`[CLS]`) of each text is in place
///   but neither ranked nor compared: its gradient is 0
/// - `starts`: `[texts + 1]`, where texts begin
/// - `top`: how many of the teacher's best tokens are compared
///
/// Mean over texts; one with fewer than two tokens to compare counts, with 0. The teacher's equals are ranked by
/// position. Positions in the student's order, which [`Ranking::Ndcg2`] weighs by, have no gradient; there equals
/// are in the teacher's order.
///
/// k is `min(top, tokens of the text but the first)`. The reference takes the batch's longest text for it, which
/// pads the others with zeros; here is no padding.
///
/// # Panics
/// If the shapes do not fit.
pub fn ranking(
    kind: Ranking,
    student: &[f32],
    teacher: &[f32],
    starts: &[usize],
    top: usize,
) -> Loss {
    assert_eq!(student.len(), teacher.len(), "student and teacher have one shape");
    assert_eq!(student.len(), starts.last().copied().unwrap_or(0), "one score a token");
    let mut loss = Loss::zero(student.len());
    let texts = starts.len().saturating_sub(1);
    for span in starts.windows(2) {
        let best = best(teacher, span[0] + 1..span[1], top);
        let k = best.len();
        if k < 2 {
            continue;
        }
        let scores: Vec<f64> = best.iter().map(|&t| student[t] as f64).collect();
        let relevances: Vec<usize> = (0..k).rev().collect();
        let (value, grad) = pairwise(kind, &scores, &relevances);
        let share = match kind {
            Ranking::Arp2 => 1.0 / (texts * k * k) as f64,
            Ranking::Ndcg2 => 1.0 / texts as f64,
        };
        loss.value += share * value;
        for (t, g) in best.into_iter().zip(grad) {
            loss.grad[t] = (share * g) as f32;
        }
    }
    loss
}

/// The `top` tokens with the highest scores, best first; of equals, the first.
fn best(scores: &[f32], tokens: Range<usize>, top: usize) -> Vec<usize> {
    let mut order: Vec<usize> = tokens.collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    order.truncate(top);
    order
}

/// The loss of one text, not divided, and its gradient with respect to `scores`.
///
/// - `scores`: `[k]`, the student's; equals rank in the order given
/// - `relevances`: `[k]`, the teacher's: more is better
fn pairwise(kind: Ranking, scores: &[f64], relevances: &[usize]) -> (f64, Vec<f64>) {
    let k = scores.len();
    let (gains, positions) = (gains(relevances), positions(scores));
    let weight = |i: usize, j: usize| match kind {
        Ranking::Arp2 => (relevances[i] - relevances[j]) as f64,
        Ranking::Ndcg2 => {
            let apart = positions[i].abs_diff(positions[j]);
            (discount(apart) - discount(apart + 1)) * (gains[i] - gains[j])
        }
    };
    let mut value = 0.0;
    let mut grad = vec![0.0; k];
    for i in 0..k {
        for j in (0..k).filter(|&j| relevances[i] > relevances[j]) {
            let (weight, lead) = (weight(i, j) / LN_2, scores[i] - scores[j]);
            // ln(1 + exp(−lead)), with an argument of exp that is never positive.
            value += weight * ((-lead).max(0.0) + (-lead.abs()).exp().ln_1p());
            let pull = weight / (1.0 + lead.exp());
            grad[i] -= pull;
            grad[j] += pull;
        }
    }
    (value, grad)
}

/// `(2^y − 1) / maxDCG`, with numerator and denominator divided by the largest 2^y: no k overflows.
fn gains(relevances: &[usize]) -> Vec<f64> {
    let most = relevances.iter().copied().max().unwrap_or(0) as f64;
    let gain = |y: usize| (y as f64 - most).exp2() - (-most).exp2();
    let mut ideal = relevances.to_vec();
    ideal.sort_unstable_by(|a, b| b.cmp(a));
    let dcg: f64 = ideal.into_iter().enumerate().map(|(p, y)| gain(y) * discount(p)).sum();
    relevances.iter().map(|&y| gain(y) / dcg).collect()
}

/// 1 / D(p), for positions from 0.
fn discount(position: usize) -> f64 {
    1.0 / (position as f64 + 2.0).log2()
}

/// Where each score is in descending order.
fn positions(scores: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    let mut positions = vec![0; scores.len()];
    order.into_iter().enumerate().for_each(|(p, i)| positions[i] = p);
    positions
}

#[cfg(test)]
mod tests {
    use super::super::testing::assert_differences;
    use super::Ranking::{Arp2, Ndcg2};
    use super::*;
    use crate::model::testing::{distance, gaussian};

    const KINDS: [Ranking; 2] = [Arp2, Ndcg2];

    fn assert_near(found: f64, expected: f64) {
        assert!((found - expected).abs() < 1e-6, "{found}, expected {expected}");
    }

    /// §11, number cross-checks.
    #[test]
    fn values_are_those_of_the_notes() {
        let s = [0.3, 0.2, 0.1];
        assert_near(pairwise(Arp2, &s, &[2, 0, 1]).0, 3.796205);
        assert_near(pairwise(Ndcg2, &s, &[2, 0, 1]).0, 0.172247);
        assert_near(pairwise(Ndcg2, &s, &[3, 1, 2]).0, 0.133170);
        // The same through a teacher that ranks so.
        let of = |kind| ranking(kind, &[9.0, 0.3, 0.2, 0.1], &[0.0, 0.5, 0.1, 0.4], &[0, 4], 20);
        assert_near(of(Arp2).value, 0.421801);
        assert_near(of(Ndcg2).value, 0.172247);
    }

    /// §4: k (k² − 1) / 6 / k² for k = 20, the number a run starts with.
    #[test]
    fn equal_scores_give_the_flat_value() {
        let loss = ranking(Arp2, &[0.01; 31], &gaussian(31, 1), &[0, 31], 20);
        assert_near(loss.value, 3.325);
        assert_near(3.0 * loss.value, 9.975);
    }

    #[test]
    fn gradient_of_two_by_hand() {
        // Both at 0: log2(2) and, each way, ½ / ln 2; times the weight.
        let [arp, ndcg] = KINDS.map(|kind| ranking(kind, &[0.0; 3], &[0.0, 0.1, 0.2], &[0, 3], 5));
        let swap = 1.0 / 3f64.log2() - 0.5; // of gains 1 and 0, maxDCG 1
        for (loss, weight) in [(arp, 0.25), (ndcg, swap)] {
            assert_near(loss.value, weight);
            let pull = (weight / 2.0 / LN_2) as f32;
            assert!(distance(&loss.grad, &[0.0, pull, -pull]) < 1e-6, "{loss:?}");
        }
    }

    /// Texts of every kind: empty, of `[CLS]` alone, of one more, shorter and longer than what is compared.
    const STARTS: [usize; 7] = [0, 0, 1, 3, 7, 19, 25];

    #[test]
    fn gradients_are_their_differences() {
        let (x, y) = (gaussian(25, 2), gaussian(25, 3));
        for (kind, top) in KINDS.into_iter().flat_map(|kind| [(kind, 6), (kind, 64)]) {
            assert_differences(&x, 1e-3, |x| ranking(kind, x, &y, &STARTS, top));
        }
    }

    #[test]
    fn losses_are_means_over_texts() {
        let (x, y) = (gaussian(25, 4), gaussian(25, 5));
        for kind in KINDS {
            let texts = STARTS
                .windows(2)
                .map(|s| ranking(kind, &x[s[0]..s[1]], &y[s[0]..s[1]], &[0, s[1] - s[0]], 6));
            let (values, grads): (Vec<f64>, Vec<Vec<f32>>) =
                texts.map(|loss| (loss.value, loss.grad)).unzip();
            let both = ranking(kind, &x, &y, &STARTS, 6);
            assert_near(both.value, values.iter().sum::<f64>() / 6.0);
            let grad: Vec<f32> = grads.concat().iter().map(|g| g / 6.0).collect();
            assert!(distance(&both.grad, &grad) < 1e-6);
        }
    }

    #[test]
    fn only_the_teacher_s_best_have_a_gradient() {
        let teacher = [9.0, 0.1, 0.4, 0.2, 0.3];
        for kind in KINDS {
            let has = |top| {
                let grad = ranking(kind, &gaussian(5, 6), &teacher, &[0, 5], top).grad;
                grad.iter().map(|g| *g != 0.0).collect::<Vec<_>>()
            };
            assert_eq!(has(2), [false, false, true, false, true]);
            assert_eq!(has(3), [false, false, true, true, true]);
            assert_eq!(has(9), [false, true, true, true, true]);
        }
    }

    #[test]
    fn the_first_token_says_nothing() {
        let (mut x, mut y) = (gaussian(25, 7), gaussian(25, 8));
        for kind in KINDS {
            let before = ranking(kind, &x, &y, &STARTS, 6);
            for &start in &STARTS[1..6] {
                assert_eq!(before.grad[start], 0.0);
                (x[start], y[start]) = (x[start] + 3.0, y[start] - 3.0);
            }
            assert_eq!(ranking(kind, &x, &y, &STARTS, 6), before);
        }
    }

    #[test]
    fn a_shift_of_all_scores_changes_nothing() {
        // In eighths, so that a sum is exact.
        let x: Vec<f32> = gaussian(25, 9).iter().map(|x| (8.0 * x).round() / 8.0).collect();
        let (y, moved) = (gaussian(25, 10), x.iter().map(|x| x + 2.5).collect::<Vec<_>>());
        for kind in KINDS {
            let loss = ranking(kind, &x, &y, &STARTS, 6);
            assert_eq!(ranking(kind, &moved, &y, &STARTS, 6), loss);
            for span in STARTS.windows(2) {
                assert!(loss.grad[span[0]..span[1]].iter().sum::<f32>().abs() < 1e-6);
            }
        }
    }

    #[test]
    fn the_teacher_s_equals_are_ranked_by_position() {
        let x = gaussian(6, 11);
        for kind in KINDS {
            let tied = ranking(kind, &x, &[0.0, 1.0, 2.0, 1.0, 2.0, 1.0], &[0, 6], 4);
            let clear = ranking(kind, &x, &[0.0, 3.0, 5.0, 2.0, 4.0, 1.0], &[0, 6], 4);
            assert_eq!(tied, clear);
            assert_eq!(tied.grad[5], 0.0);
        }
    }

    #[test]
    fn the_student_s_equals_are_in_the_teacher_s_order() {
        let teacher = [0.0, 0.1, 0.3, 0.2, 0.4];
        let almost: Vec<f32> = teacher.iter().map(|t| 1e-6 * t).collect();
        let tied = ranking(Ndcg2, &[0.0; 5], &teacher, &[0, 5], 4);
        assert_near(tied.value, ranking(Ndcg2, &almost, &teacher, &[0, 5], 4).value);
        let reversed: Vec<f32> = almost.iter().map(|x| -x).collect();
        // Distances in the order are the same from behind.
        assert_near(tied.value, ranking(Ndcg2, &reversed, &teacher, &[0, 5], 4).value);
        let other = ranking(Ndcg2, &[0.0, 1e-6, 2e-6, 3e-6, 4e-6], &teacher, &[0, 5], 4).value;
        assert!((tied.value - other).abs() > 1e-3, "{other} is that of another order");
    }

    #[test]
    fn the_teacher_s_order_costs_less_the_clearer_it_is() {
        let y = gaussian(12, 12);
        for kind in KINDS {
            let of = |scale: f32| {
                let x: Vec<f32> = y.iter().map(|y| scale * y).collect();
                ranking(kind, &x, &y, &[0, 12], 20).value
            };
            assert!(of(-1.0) > of(0.0) && of(0.0) > of(1.0) && of(1.0) > of(4.0));
            assert!(of(1e4) < 1e-3);
        }
    }

    #[test]
    fn far_scores_and_long_texts_stay_finite() {
        let y = gaussian(1500, 13);
        let x: Vec<f32> = y.iter().map(|y| -1e4 * y).collect();
        for kind in KINDS {
            let loss = ranking(kind, &x, &y, &[0, 1500], usize::MAX);
            assert!(loss.value.is_finite() && loss.value > 1.0, "{}", loss.value);
            assert!(loss.grad.iter().all(|g| g.is_finite()));
        }
    }

    #[test]
    fn nothing_to_rank_has_no_loss() {
        for kind in KINDS {
            assert_eq!(ranking(kind, &[], &[], &[], 20), Loss::zero(0));
            assert_eq!(ranking(kind, &[], &[], &[0], 20), Loss::zero(0));
            assert_eq!(ranking(kind, &[1.0; 3], &[2.0; 3], &[0, 0, 1, 3], 20), Loss::zero(3));
            for top in [0, 1] {
                assert_eq!(ranking(kind, &[1.0; 4], &[2.0; 4], &[0, 4], top), Loss::zero(4));
            }
        }
    }

    #[test]
    #[should_panic(expected = "one score a token")]
    fn texts_cover_the_tokens() {
        ranking(Arp2, &[0.0; 3], &[0.0; 3], &[0, 2], 20);
    }

    #[test]
    fn names_in_recipes_are_lower_case() {
        #[derive(Deserialize)]
        struct Recipe {
            ranking: Vec<Ranking>,
        }
        let recipe: Recipe = toml::from_str("ranking = ['arp2', 'ndcg2']").expect("names");
        assert_eq!(recipe.ranking, KINDS);
    }
}
