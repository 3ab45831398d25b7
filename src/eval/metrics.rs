//! Task metrics with their uncertainty, and distances between two models' outputs. All in f64.
//!
//! A metric is None where it is undefined: no rows, constant input, values that are not finite.
//! Slices that belong together have equal lengths, or the function panics.
//!
//! Proportions have Wilson's interval. The others have a percentile bootstrap over rows (Efron 1979)
//! rather than Fisher's z: z assumes normal data, STS-B's scores are bounded and tied, and there is
//! no z for F1 and Matthews, so that one method serves all four.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use rayon::prelude::*;
use serde::Serialize;

/// A metric and its 95 % confidence interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Score {
    pub value: f64,
    pub low: f64,
    pub high: f64,
}

/// A bound then has a standard error of about 2 % of the interval (normal case).
const RESAMPLES: u64 = 1000;

/// Share of rows where `predicted` is `actual`, in [0, 1].
pub fn accuracy(predicted: &[u32], actual: &[u32]) -> Option<Score> {
    assert_eq!(predicted.len(), actual.len(), "one prediction per row");
    proportion(predicted.iter().zip(actual).filter(|(p, a)| p == a).count(), actual.len())
}

/// `hits` of `rows` with Wilson's score interval (Wilson 1927), which stays in [0, 1] and is right
/// near its ends.
pub(super) fn proportion(hits: usize, rows: usize) -> Option<Score> {
    if rows == 0 {
        return None;
    }
    const Z: f64 = 1.959963984540054; // the normal's 97.5th percentile
    let (n, p) = (rows as f64, hits as f64 / rows as f64);
    let scale = 1.0 / (1.0 + Z * Z / n);
    let center = scale * (p + Z * Z / (2.0 * n));
    let half = scale * Z * (p * (1.0 - p) / n + Z * Z / (4.0 * n * n)).sqrt();
    // Rounding must not push the value itself out.
    Some(Score {
        value: p,
        low: (center - half).clamp(0.0, p),
        high: (center + half).clamp(p, 1.0),
    })
}

/// F1 of class 1, in [0, 1]; None if class 1 is neither predicted nor there.
pub fn f1(predicted: &[u32], actual: &[u32], seed: u64) -> Option<Score> {
    bootstrap(predicted, actual, seed, |p, a| f1_of(1, p, a))
}

/// Mean over classes of their F1, in [0, 1]; the classes are those predicted or there.
pub fn macro_f1(predicted: &[u32], actual: &[u32], seed: u64) -> Option<Score> {
    bootstrap(predicted, actual, seed, |predicted, actual| {
        let classes = 0..=*predicted.iter().chain(actual).max()?;
        let scores: Vec<f64> = classes.filter_map(|c| f1_of(c, predicted, actual)).collect();
        Some(scores.iter().sum::<f64>() / scores.len() as f64)
    })
}

fn f1_of(class: u32, predicted: &[u32], actual: &[u32]) -> Option<f64> {
    let count = |labels: &[u32]| labels.iter().filter(|&&l| l == class).count();
    let both = predicted.iter().zip(actual).filter(|&(&p, &a)| p == class && a == class).count();
    let total = count(predicted) + count(actual);
    (total > 0).then(|| 2.0 * both as f64 / total as f64)
}

/// Matthews correlation, in [-1, 1], for any number of classes (Gorodkin 2004, R_K); None if only
/// one class is predicted or only one is there.
pub fn matthews(predicted: &[u32], actual: &[u32], seed: u64) -> Option<Score> {
    bootstrap(predicted, actual, seed, |predicted, actual| {
        let classes = *predicted.iter().chain(actual).max()? as usize + 1;
        let (mut p, mut a, mut both) = (vec![0.0; classes], vec![0.0; classes], 0.0);
        for (&i, &j) in predicted.iter().zip(actual) {
            p[i as usize] += 1.0;
            a[j as usize] += 1.0;
            both += f64::from(u8::from(i == j));
        }
        let n = predicted.len() as f64;
        let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
        let spread = (n * n - dot(&p, &p)) * (n * n - dot(&a, &a));
        (spread > 0.0).then(|| (n * both - dot(&p, &a)) / spread.sqrt())
    })
}

/// Pearson's correlation, in [-1, 1]; None if a side is constant.
pub fn pearson(x: &[f64], y: &[f64], seed: u64) -> Option<Score> {
    bootstrap(x, y, seed, correlation)
}

/// Spearman's correlation, in [-1, 1]: Pearson's of the ranks, ties sharing their mean rank; None
/// if a side is constant.
pub fn spearman(x: &[f64], y: &[f64], seed: u64) -> Option<Score> {
    bootstrap(x, y, seed, spearman_of)
}

/// [`spearman`] without its interval.
pub(super) fn spearman_of(x: &[f64], y: &[f64]) -> Option<f64> {
    // Else a NaN would get a rank.
    let finite = x.iter().chain(y).all(|v| v.is_finite());
    finite.then(|| correlation(&ranks(x), &ranks(y))).flatten()
}

fn correlation(x: &[f64], y: &[f64]) -> Option<f64> {
    let n = x.len() as f64;
    let (mean_x, mean_y) = (x.iter().sum::<f64>() / n, y.iter().sum::<f64>() / n);
    let (mut xx, mut yy, mut xy) = (0.0, 0.0, 0.0);
    for (x, y) in x.iter().zip(y) {
        let (dx, dy) = (x - mean_x, y - mean_y);
        xx += dx * dx;
        yy += dy * dy;
        xy += dx * dy;
    }
    // Not `xx > 0`: the mean of a constant such as 0.1 is rounded, and leaves dust.
    let varies = |v: &[f64]| v.iter().any(|e| *e != v[0]);
    (varies(x) && varies(y)).then(|| (xy / (xx.sqrt() * yy.sqrt())).clamp(-1.0, 1.0))
}

/// Ranks from 1, equal values sharing their mean rank.
fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_unstable_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut ranks = vec![0.0; values.len()];
    let mut below = 0;
    for ties in order.chunk_by(|&a, &b| values[a] == values[b]) {
        let rank = below as f64 + (ties.len() + 1) as f64 / 2.0;
        ties.iter().for_each(|&row| ranks[row] = rank);
        below += ties.len();
    }
    ranks
}

/// Sum of `parts` by sum of `wholes`; None if that is 0.
pub(super) fn ratio(parts: &[f64], wholes: &[f64], seed: u64) -> Option<Score> {
    bootstrap(parts, wholes, seed, |p, w| Some(p.iter().sum::<f64>() / w.iter().sum::<f64>()))
}

/// `metric` of all rows, and the 2.5th and 97.5th percentile of it over resampled rows.
///
/// Resamples on which it is undefined are left out. Each resample has its own stream, so that the
/// result does not depend on the number of threads.
pub(super) fn bootstrap<T: Copy + Sync>(
    x: &[T],
    y: &[T],
    seed: u64,
    metric: impl Fn(&[T], &[T]) -> Option<f64> + Sync,
) -> Option<Score> {
    assert_eq!(x.len(), y.len(), "one prediction per row");
    let defined = |x: &[T], y: &[T]| metric(x, y).filter(|v| v.is_finite());
    let value = defined(x, y)?;
    let resample = |stream: u64| {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(stream);
        // Lemire's multiplication; its bias, rows / 2^64, is far below the noise.
        let draw = |_| ((u128::from(rng.next_u64()) * x.len() as u128) >> 64) as usize;
        let rows: Vec<usize> = (0..x.len()).map(draw).collect();
        let pick = |v: &[T]| rows.iter().map(|&row| v[row]).collect::<Vec<T>>();
        defined(&pick(x), &pick(y))
    };
    let mut values: Vec<f64> = (0..RESAMPLES).into_par_iter().filter_map(resample).collect();
    values.sort_unstable_by(f64::total_cmp);
    // Only possible for a handful of rows.
    if values.is_empty() {
        return Some(Score { value, low: value, high: value });
    }
    Some(Score { value, low: percentile(&values, 0.025), high: percentile(&values, 0.975) })
}

/// Linear between the two nearest, as numpy's default.
pub(super) fn percentile(sorted: &[f64], share: f64) -> f64 {
    let at = share * (sorted.len() - 1) as f64;
    let (below, above) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    below + (above - below) * at.fract()
}

/// Index of the largest logit, the first of equals; None if there is none or one is NaN.
pub fn argmax(logits: &[f32]) -> Option<u32> {
    if logits.iter().any(|l| l.is_nan()) {
        return None;
    }
    let largest = logits.iter().copied().reduce(f32::max)?;
    logits.iter().position(|&l| l == largest).map(|i| i as u32)
}

/// Share of rows in which both models prefer the same class, in [0, 1]; a row with a NaN is one
/// where they do not.
///
/// - `teacher`, `student`: logits, `[rows, classes]`, row-major
pub fn agreement(teacher: &[f32], student: &[f32], classes: usize) -> Option<Score> {
    let same = |(t, s): &(&[f32], &[f32])| argmax(t).is_some_and(|t| argmax(s) == Some(t));
    proportion(rows(teacher, student, classes).filter(same).count(), teacher.len() / classes)
}

/// Mean over rows of KL(softmax(teacher) ‖ softmax(student)), in nats.
///
/// - `teacher`, `student`: logits, `[rows, classes]`, row-major
pub fn mean_kl(teacher: &[f32], student: &[f32], classes: usize) -> Option<f64> {
    mean(rows(teacher, student, classes).map(|(t, s)| {
        let (t, s) = (log_softmax(t), log_softmax(s));
        t.iter().zip(&s).map(|(t, s)| t.exp() * (t - s)).sum()
    }))
}

fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let largest = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = logits.iter().map(|&l| (f64::from(l) - largest).exp()).sum();
    logits.iter().map(|&l| f64::from(l) - largest - sum.ln()).collect()
}

/// Mean over rows of their cosine, in [-1, 1].
///
/// - `a`, `b`: `[rows, width]`, row-major
pub fn mean_cosine(a: &[f32], b: &[f32], width: usize) -> Option<f64> {
    mean(rows(a, b, width).map(|(a, b)| cosine(a, b)))
}

/// Cosine of two vectors, in [-1, 1]; 0 if one of them is zero, as it then points nowhere.
pub fn cosine(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len(), "vectors of one space");
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
    };
    let norms = dot(a, a).sqrt() * dot(b, b).sqrt();
    if norms == 0.0 { 0.0 } else { (dot(a, b) / norms).clamp(-1.0, 1.0) }
}

/// ‖reference − other‖ / ‖reference‖ over all elements; None if the reference is zero.
pub fn relative_l2(reference: &[f32], other: &[f32]) -> Option<f64> {
    assert_eq!(reference.len(), other.len(), "tensors of one shape");
    let norm: f64 = reference.iter().map(|&r| f64::from(r).powi(2)).sum();
    let error: f64 =
        reference.iter().zip(other).map(|(&r, &o)| (f64::from(r) - f64::from(o)).powi(2)).sum();
    Some((error / norm).sqrt()).filter(|v| v.is_finite())
}

fn rows<'a>(
    a: &'a [f32],
    b: &'a [f32],
    width: usize,
) -> impl Iterator<Item = (&'a [f32], &'a [f32])> {
    assert_eq!(a.len(), b.len(), "outputs for the same rows");
    assert!(a.len().is_multiple_of(width), "whole rows");
    a.chunks_exact(width).zip(b.chunks_exact(width))
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, count) = values.fold((0.0, 0u64), |(sum, count), v| (sum + v, count + 1));
    Some(sum / count as f64).filter(|v| v.is_finite())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn close(found: f64, expected: f64) {
        assert!((found - expected).abs() < 1e-12, "found {found}, expected {expected}");
    }

    // Constants without a derivation: scipy 1.17.1 and numpy 2.4.6, by the call in the comment.

    #[test]
    fn accuracy_has_wilsons_interval() {
        // stats.binomtest(hits, rows).proportion_ci(0.95, "wilson")
        for (hits, rows, low, high) in [
            (774, 872, 0.8649284740671032, 0.9069007116741411),
            (3, 7, 0.1582198552514697, 0.7495416354723428),
            (10, 10, 0.7224672001371109, 1.0),
            (0, 5, 0.0, 0.43448246478317476),
        ] {
            let predicted: Vec<u32> = (0..rows).map(|row| u32::from(row < hits)).collect();
            let score = accuracy(&predicted, &vec![1; rows]).unwrap();
            close(score.value, hits as f64 / rows as f64);
            close(score.low, low);
            close(score.high, high);
        }
    }

    #[test]
    fn f1_by_hand() {
        // Class 1: 2 of 3 predicted are right, 2 of 4 are found; class 0: 1 of 3, 1 of 2.
        let (predicted, actual) = ([1, 1, 1, 0, 0, 0], [1, 1, 0, 1, 1, 0]);
        close(f1(&predicted, &actual, 0).unwrap().value, 4.0 / 7.0);
        close(macro_f1(&predicted, &actual, 0).unwrap().value, (4.0 / 7.0 + 2.0 / 5.0) / 2.0);
    }

    #[test]
    fn macro_f1_leaves_out_absent_classes() {
        close(macro_f1(&[0, 3, 3], &[0, 3, 0], 0).unwrap().value, 2.0 / 3.0);
    }

    #[test]
    fn matthews_of_two_and_of_three_classes() {
        // (TP·TN − FP·FN) / √(…) = (2·2 − 1·1) / √81
        let (predicted, actual) = ([1, 1, 0, 1, 0, 0], [1, 0, 0, 1, 1, 0]);
        close(matthews(&predicted, &actual, 0).unwrap().value, 1.0 / 3.0);
        // cov(P, A) / sqrt(cov(P, P) * cov(A, A)) of the one-hot matrices
        let (predicted, actual) = ([0, 1, 2, 2, 1, 0, 1], [0, 2, 2, 1, 1, 0, 0]);
        close(matthews(&predicted, &actual, 0).unwrap().value, 0.375);
    }

    #[test]
    fn correlations_match_scipy() {
        let x = [1.0, 2.0, 2.0, 3.5, 5.0, 4.0, 0.5, 2.0];
        let y = [1.2, 1.9, 2.5, 3.0, 4.1, 4.9, 1.0, 2.5];
        close(pearson(&x, &y, 0).unwrap().value, 0.9215461267851537); // stats.pearsonr
        close(spearman(&x, &y, 0).unwrap().value, 0.9572173526639411); // stats.spearmanr
        assert_eq!(ranks(&x), [2.0, 4.0, 4.0, 6.0, 8.0, 7.0, 1.0, 4.0]); // stats.rankdata
    }

    #[test]
    fn bootstrap_intervals_match_scipy() {
        let x: Vec<f64> = (0..200).map(|i| f64::from(i).sin()).collect();
        let y: Vec<f64> =
            x.iter().enumerate().map(|(i, x)| x + 0.5 * (i as f64 * 2.7).sin()).collect();
        // stats.bootstrap(paired=True, method="percentile"), 20,000 and 5,000 resamples. 0.003: our
        // 1,000 resamples move a bound by about 0.0008 (standard error).
        for (score, value, low, high) in [
            (pearson(&x, &y, 7), 0.894494669297021, 0.8761994591822777, 0.9115029248399666),
            (spearman(&x, &y, 7), 0.8927338183454587, 0.870215806732505, 0.9076610342083005),
        ] {
            let score = score.unwrap();
            close(score.value, value);
            assert!((score.low - low).abs() < 0.003, "{score:?}");
            assert!((score.high - high).abs() < 0.003, "{score:?}");
        }
    }

    #[test]
    fn a_seed_gives_one_interval_on_any_number_of_threads() {
        let (x, y) = ([0.1, 0.5, 0.2, 0.9, 0.4], [0.2, 0.3, 0.1, 0.7, 0.8]);
        let on = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| pearson(&x, &y, 3))
        };
        assert_eq!(on(1), on(3));
        assert_ne!(on(1), pearson(&x, &y, 4));
    }

    #[test]
    fn argmax_takes_the_first_of_equals_and_nothing_from_nan() {
        assert_eq!(argmax(&[1.0, 3.0, 3.0]), Some(1));
        assert_eq!(argmax(&[f32::NEG_INFINITY, f32::NEG_INFINITY]), Some(0));
        assert_eq!(argmax(&[f32::NAN, 1.0]), None);
        assert_eq!(argmax(&[]), None);
    }

    #[test]
    fn models_that_both_give_nan_do_not_agree() {
        let (teacher, student) = ([1.0, 0.0, f32::NAN, 0.0], [2.0, 1.0, f32::NAN, 0.0]);
        close(agreement(&teacher, &student, 2).unwrap().value, 0.5);
    }

    #[test]
    fn distances_match_scipy() {
        let (teacher, student) =
            ([2.0, -1.0, 0.5, 0.0, 0.0, 3.0], [1.5, -0.5, 1.0, 1.0, -1.0, 2.0]);
        // lt, ls = special.log_softmax(…, axis=1); (exp(lt) * (lt - ls)).sum(1).mean()
        close(mean_kl(&teacher, &student, 3).unwrap(), 0.13138745821703848);
        // (t * s).sum(1) / linalg.norm(t, axis=1) / linalg.norm(s, axis=1)
        close(mean_cosine(&teacher, &student, 3).unwrap(), 0.8748177652797066);
        // linalg.norm(t - s) / linalg.norm(t)
        close(relative_l2(&teacher, &student).unwrap(), 0.5129891760425771);
    }

    #[test]
    fn kl_by_hand() {
        // Teacher 3/4, 1/4; student even: 0.75·ln 1.5 + 0.25·ln 0.5.
        let kl = mean_kl(&[3f32.ln(), 0.0], &[5.0, 5.0], 2).unwrap();
        assert!((kl - (0.75 * 1.5f64.ln() + 0.25 * 0.5f64.ln())).abs() < 1e-7); // ln 3 as f32
    }

    #[test]
    fn large_logits_do_not_overflow() {
        close(mean_kl(&[1000.0, 0.0], &[0.0, 1000.0], 2).unwrap(), 1000.0);
    }

    #[test]
    fn a_zero_vector_is_like_nothing() {
        assert_eq!(cosine(&[0.0, 0.0], &[0.0, 0.0]), 0.0);
    }

    #[test]
    fn the_undefined_is_none() {
        let nothing: [f64; 0] = [];
        let metrics = [
            accuracy(&[], &[]),
            f1(&[], &[], 0),
            f1(&[0, 0], &[0, 2], 0),
            macro_f1(&[], &[], 0),
            matthews(&[], &[], 0),
            matthews(&[1, 1, 1], &[0, 1, 1], 0),
            pearson(&nothing, &nothing, 0),
            pearson(&[0.1, 0.1, 0.1], &[1.0, 2.0, 3.0], 0),
            pearson(&[f64::NAN, 1.0], &[1.0, 2.0], 0),
            spearman(&nothing, &nothing, 0),
            spearman(&[1.0, 2.0], &[5.0, 5.0], 0),
            spearman(&[1.0, f64::NAN], &[1.0, 2.0], 0),
            agreement(&[], &[], 2),
        ];
        assert_eq!(metrics, [None; 13]);
        let distances = [
            mean_kl(&[], &[], 2),
            mean_kl(&[f32::NAN, 0.0], &[0.0, 0.0], 2),
            mean_cosine(&[], &[], 2),
            relative_l2(&[], &[]),
            relative_l2(&[0.0], &[1.0]),
        ];
        assert_eq!(distances, [None; 5]);
    }

    #[test]
    fn one_row_has_no_spread_to_resample() {
        let score = f1(&[1], &[1], 0).unwrap();
        assert_eq!(score, Score { value: 1.0, low: 1.0, high: 1.0 });
    }

    proptest! {
        // A bootstrap each: few cases suffice.
        #![proptest_config(ProptestConfig::with_cases(16))]

        #[test]
        fn spearman_sees_only_the_order(x in proptest::collection::vec(-5i32..5, 3..20)) {
            let x: Vec<f64> = x.into_iter().map(f64::from).collect();
            let y: Vec<f64> = x.iter().map(|x| x.exp()).collect();
            if let Some(score) = spearman(&x, &y, 1) {
                prop_assert!((score.value - 1.0).abs() < 1e-12);
                prop_assert!((score.low - 1.0).abs() < 1e-12);
            }
        }

        #[test]
        fn wilson_holds_the_value(hits in 0..50usize, misses in 0..50usize) {
            if let Some(s) = proportion(hits, hits + misses) {
                prop_assert!(0.0 <= s.low && s.low <= s.value && s.value <= s.high && s.high <= 1.0);
            }
        }

        #[test]
        fn kl_is_never_negative(t in proptest::array::uniform6(-9f32..9.0), s in proptest::array::uniform6(-9f32..9.0)) {
            prop_assert!(mean_kl(&t, &s, 3).unwrap() > -1e-12);
            prop_assert!(mean_kl(&t, &t, 3).unwrap().abs() < 1e-12);
        }
    }
}
