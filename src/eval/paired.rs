//! Two models on the same examples: is the difference more than chance?

use super::metrics::{Score, bootstrap, spearman_of};

/// What the main metric of a task is made of, example by example.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcomes {
    /// The metric is `Σ parts / Σ wholes`: accuracies and F1.
    Ratio { parts: Vec<f64>, wholes: Vec<f64> },
    /// The metric is Spearman's correlation of `predicted` with `actual`.
    Ranks { predicted: Vec<f64>, actual: Vec<f64> },
}

/// How far a metric is from that of another model on the same examples.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Difference {
    /// In the metric's own unit; below 0 where this model is worse.
    pub value: f64,
    /// 95 %, from resampled examples, the same ones for both models.
    pub interval: [f64; 2],
    /// Where an example is right or wrong: the chance that two equally good models differ this much or more
    /// (McNemar's exact test, two-sided).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p: Option<f64>,
}

/// The metric of `other` less that of `first`; `None` where one of them is undefined.
///
/// # Panics
/// If they are not of the same metric and the same examples.
pub fn difference(first: &Outcomes, other: &Outcomes, seed: u64) -> Option<Difference> {
    match (first, other) {
        (Outcomes::Ratio { parts: a, wholes: m }, Outcomes::Ratio { parts: b, wholes: n }) => {
            let pair = |x: &[f64], y: &[f64]| -> Vec<(f64, f64)> {
                assert_eq!(x.len(), y.len(), "outcomes of the same examples");
                x.iter().copied().zip(y.iter().copied()).collect()
            };
            let sum = |rows: &[(f64, f64)]| {
                rows.iter().fold((0.0, 0.0), |sum, row| (sum.0 + row.0, sum.1 + row.1))
            };
            let score = bootstrap(&pair(a, b), &pair(m, n), seed, |parts, wholes| {
                let (parts, wholes) = (sum(parts), sum(wholes));
                Some(parts.1 / wholes.1 - parts.0 / wholes.0)
            })?;
            let bits = |parts: &[f64], wholes: &[f64]| {
                wholes.iter().all(|&w| w == 1.0) && parts.iter().all(|&p| p == 0.0 || p == 1.0)
            };
            let p = (bits(a, m) && bits(b, n)).then(|| mcnemar(a, b));
            Some(Difference::of(score, p))
        }
        (
            Outcomes::Ranks { predicted: a, actual },
            Outcomes::Ranks { predicted: b, actual: same },
        ) => {
            assert_eq!(actual, same, "outcomes of the same examples");
            let both: Vec<(f64, f64)> = a.iter().copied().zip(b.iter().copied()).collect();
            let actual: Vec<(f64, f64)> = actual.iter().map(|&y| (y, y)).collect();
            let score = bootstrap(&both, &actual, seed, |x, y| {
                let (a, b): (Vec<f64>, Vec<f64>) = x.iter().copied().unzip();
                let y: Vec<f64> = y.iter().map(|y| y.0).collect();
                Some(spearman_of(&b, &y)? - spearman_of(&a, &y)?)
            })?;
            Some(Difference::of(score, None))
        }
        _ => panic!("outcomes of two different metrics"),
    }
}

impl Difference {
    fn of(score: Score, p: Option<f64>) -> Difference {
        Difference { value: score.value, interval: [score.low, score.high], p }
    }
}

/// McNemar's exact test: of the examples on which the two differ, how likely is a split as uneven as this one if
/// each falls to either side with the same chance?
fn mcnemar(a: &[f64], b: &[f64]) -> f64 {
    let only = |x: &[f64], y: &[f64]| x.iter().zip(y).filter(|(x, y)| x > y).count();
    let (fewer, more) = {
        let (one, two) = (only(a, b), only(b, a));
        (one.min(two), one.max(two))
    };
    let n = fewer + more;
    // Σ_{k ≤ fewer} C(n, k) / 2^n, in logarithms: 2^n overflows.
    let mut term = -(n as f64) * std::f64::consts::LN_2;
    let mut tail = 0.0;
    for k in 0..=fewer {
        tail += term.exp();
        term += ((n - k) as f64).ln() - ((k + 1) as f64).ln();
    }
    (2.0 * tail).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bits(right: &[usize], n: usize) -> Outcomes {
        let parts = (0..n).map(|i| f64::from(u8::from(right.contains(&i)))).collect();
        Outcomes::Ratio { parts, wholes: vec![1.0; n] }
    }

    #[test]
    fn mcnemar_is_the_binomial_tail() {
        // Ten differ, one against nine: 2 · (1 + 10) / 1024. None differ, or five against five: certain.
        let (a, b) = (bits(&[0], 20), bits(&[1, 2, 3, 4, 5, 6, 7, 8, 9], 20));
        let p = difference(&a, &b, 0).and_then(|d| d.p).expect("right or wrong");
        assert!((p - 22.0 / 1024.0).abs() < 1e-12, "{p}");
        assert_eq!(difference(&a, &a, 0).and_then(|d| d.p), Some(1.0));
        let even = difference(&bits(&[0, 1], 9), &bits(&[2, 3], 9), 0).expect("defined");
        assert_eq!((even.value, even.p.map(|p| p.min(1.0))), (0.0, Some(1.0)));
        // 2^-2000 is 0 in f64, and the test still is right: 1000 against 1000.
        let many = difference(
            &bits(&(0..1000).collect::<Vec<_>>(), 2000),
            &bits(&(1000..2000).collect::<Vec<_>>(), 2000),
            0,
        );
        assert!((many.and_then(|d| d.p).expect("defined") - 1.0).abs() < 1e-6);
    }

    #[test]
    fn a_difference_has_the_sign_of_the_second_and_a_paired_interval() {
        let first = bits(&(0..90).collect::<Vec<_>>(), 100);
        let worse = bits(&(0..80).collect::<Vec<_>>(), 100);
        let d = difference(&first, &worse, 0).expect("defined");
        assert!((d.value + 0.1).abs() < 1e-12);
        // Ten of a hundred differ, all one way: the standard error is 0.03, where two independent samples had 0.05.
        assert!(d.interval[0] > -0.17 && d.interval[1] < -0.03, "{d:?}");
        assert!(d.p.expect("right or wrong") < 0.003);
    }

    #[test]
    fn of_equal_rankings_nothing_differs() {
        let actual: Vec<f64> = (0..50).map(f64::from).collect();
        let shifted = actual.iter().map(|x| 3.0 * x + 1.0).collect();
        let reversed = actual.iter().map(|x| -x).collect();
        let of = |predicted| Outcomes::Ranks { predicted, actual: actual.clone() };
        let same = difference(&of(actual.clone()), &of(shifted), 0).expect("defined");
        assert_eq!((same.value, same.interval, same.p), (0.0, [0.0, 0.0], None));
        let d = difference(&of(actual.clone()), &of(reversed), 0).expect("defined");
        assert!((d.value + 2.0).abs() < 1e-12);
    }
}
