//! Sinkhorn distance between the predictions of a batch (SinKD; distillation notes, §2).

use super::{Loss, log_softmax, rows};

/// Settings of [`sinkhorn`]; the defaults are the published ones.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sinkhorn {
    /// Of both softmaxes.
    pub temperature: f32,
    /// Entropic regularisation, λ of the notes: the smaller, the nearer to plain transport.
    pub epsilon: f32,
    /// Each normalises rows, then columns.
    pub iterations: usize,
}

impl Default for Sinkhorn {
    fn default() -> Sinkhorn {
        Sinkhorn { temperature: 2.0, epsilon: 0.1, iterations: 20 }
    }
}

/// Cost of transporting the student's predictions of a batch onto the teacher's, `Σ P∘D / rows`: D is the L1
/// distance of every two rows after softmax, P the plan after `iterations` (§2.1). The gradient goes back
/// through all iterations, as published.
///
/// - `student`, `teacher`: logits, `[rows, width]`
///
/// Mean over rows: the published term is `0.001 · Σ P∘D`, a weight of `0.001 · rows` here. It does not say
/// which row matches which, so it stands beside a loss that does, never alone. No signal at a width of 1.
///
/// # Panics
/// If the shapes do not fit.
pub fn sinkhorn(student: &[f32], teacher: &[f32], width: usize, settings: &Sinkhorn) -> Loss {
    let n = rows(student, teacher, width);
    let mut loss = Loss::zero(student.len());
    let temperature = settings.temperature as f64;
    let (p, q) = (softmaxes(student, width, temperature), softmaxes(teacher, width, temperature));
    let cost = costs(&p, &q, width);
    let history = plans(&cost, n, settings);
    let plan: Vec<f64> = history[history.len() - 1].iter().map(|log| log.exp()).collect();
    loss.value = plan.iter().zip(&cost).map(|(p, d)| p * d).sum::<f64>() / n.max(1) as f64;

    // By log P, then through one normalisation after the other: y = x − logsumexp(x) gives
    // dx = dy − exp(y) · Σ dy.
    let mut grad: Vec<f64> = plan.iter().zip(&cost).map(|(p, d)| p * d / n as f64).collect();
    for (step, after) in history.iter().enumerate().skip(1).rev() {
        for group in 0..n {
            let cells = cells(n, group, step % 2 == 1);
            let sum: f64 = cells.clone().map(|i| grad[i]).sum();
            cells.for_each(|i| grad[i] -= after[i].exp() * sum);
        }
    }
    // log P starts at −D / ε; D is in the value itself as well.
    let epsilon = settings.epsilon as f64;
    let by_cost: Vec<f64> =
        plan.iter().zip(&grad).map(|(p, g)| p / n as f64 - g / epsilon).collect();
    for i in 0..n {
        let p = &p[i * width..(i + 1) * width];
        let mut by_p = vec![0.0; width];
        for (q, weight) in q.chunks_exact(width).zip(&by_cost[i * n..]) {
            for ((g, p), q) in by_p.iter_mut().zip(p).zip(q) {
                *g += weight * sign(p - q);
            }
        }
        let mean: f64 = p.iter().zip(&by_p).map(|(p, g)| p * g).sum();
        for ((out, p), g) in loss.grad[i * width..].iter_mut().zip(p).zip(by_p) {
            *out = (p * (g - mean) / temperature) as f32;
        }
    }
    loss
}

fn softmaxes(logits: &[f32], width: usize, temperature: f64) -> Vec<f64> {
    let logs = |row: &[f32]| log_softmax(row.iter().map(|&x| x as f64), temperature);
    logits.chunks_exact(width).flat_map(logs).map(f64::exp).collect()
}

/// L1 distances of rows of `p` and rows of `q`, `[rows, rows]`.
fn costs(p: &[f64], q: &[f64], width: usize) -> Vec<f64> {
    let distance = |p: &[f64], q: &[f64]| p.iter().zip(q).map(|(p, q)| (p - q).abs()).sum();
    let row = |p| q.chunks_exact(width).map(move |q| distance(p, q));
    p.chunks_exact(width).flat_map(row).collect()
}

/// Log of the plan: before the first normalisation, after it on rows, after the next on columns, and so on.
/// In the log domain, where no ε makes a row underflow (§2.3).
fn plans(cost: &[f64], n: usize, settings: &Sinkhorn) -> Vec<Vec<f64>> {
    let mut history = vec![cost.iter().map(|d| -d / settings.epsilon as f64).collect()];
    for step in 1..=2 * settings.iterations {
        let before: &Vec<f64> = &history[step - 1];
        let mut after = vec![0.0; n * n];
        for group in 0..n {
            let cells = cells(n, group, step % 2 == 1);
            let logs = log_softmax(cells.clone().map(|i| before[i]), 1.0);
            cells.zip(logs).for_each(|(i, log)| after[i] = log);
        }
        history.push(after);
    }
    history
}

/// Row or column `group` of `[n, n]`.
fn cells(n: usize, group: usize, row: bool) -> std::iter::StepBy<std::ops::Range<usize>> {
    if row { (group * n..(group + 1) * n).step_by(1) } else { (group..n * n).step_by(n) }
}

/// 0 at 0, unlike `signum`: |x| has no derivative there.
fn sign(x: f64) -> f64 {
    if x == 0.0 { 0.0 } else { x.signum() }
}

#[cfg(test)]
mod tests {
    use super::super::testing::assert_differences;
    use super::*;
    use crate::model::testing::{distance, gaussian};
    use proptest::prelude::*;

    const A: ([f32; 4], [f32; 4]) = ([0.0, 0.0, 1.0, 0.0], [2.0, 0.0, 0.0, 2.0]);
    const B: ([f32; 9], [f32; 9]) = (
        [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0],
        [2.0, 0.0, 0.0, 0.0, 3.0, 0.0, 1.0, 1.0, 0.0],
    );

    /// The plan, and `Σ P∘D`.
    fn plan(
        student: &[f32],
        teacher: &[f32],
        width: usize,
        settings: &Sinkhorn,
    ) -> (Vec<f64>, f64) {
        let n = student.len() / width;
        let temperature = settings.temperature as f64;
        let (p, q) =
            (softmaxes(student, width, temperature), softmaxes(teacher, width, temperature));
        let cost = costs(&p, &q, width);
        let plan: Vec<f64> = plans(&cost, n, settings)[2 * settings.iterations]
            .iter()
            .map(|log| log.exp())
            .collect();
        let value = plan.iter().zip(&cost).map(|(p, d)| p * d).sum();
        (plan, value)
    }

    fn assert_near(found: f64, expected: f64) {
        assert!((found - expected).abs() < 1e-6, "{found}, expected {expected}");
    }

    #[test]
    fn costs_are_those_of_the_notes() {
        let softmax = |x: &[f32], width| softmaxes(x, width, 2.0);
        let d = costs(&softmax(&A.0, 2), &softmax(&A.1, 2), 2);
        for (d, e) in d.iter().zip([0.462117, 0.462117, 0.217198, 0.707036]) {
            assert_near(*d, e);
        }
        let d = costs(&softmax(&B.0, 3), &softmax(&B.1, 3), 3);
        let expected = [
            0.248508, 0.834740, 0.219166, 0.604097, 0.479151, 0.219166, 0.604097, 0.834740,
            0.438332,
        ];
        for (d, e) in d.iter().zip(expected) {
            assert_near(*d, e);
        }
    }

    #[test]
    fn case_a_converges_as_in_the_notes() {
        for (iterations, value, expected) in [
            (1, 0.764934, [0.334987, 0.985409, 0.665013, 0.014591]),
            (2, 0.736590, [0.205888, 0.972036, 0.794112, 0.027964]),
            (20, 0.718257, [0.079642, 0.920645, 0.920358, 0.079355]),
        ] {
            let settings = Sinkhorn { iterations, ..Sinkhorn::default() };
            let (plan, sum) = plan(&A.0, &A.1, 2, &settings);
            plan.iter().zip(expected).for_each(|(p, e)| assert_near(*p, e));
            assert_near(sum, value);
            assert_near(2.0 * sinkhorn(&A.0, &A.1, 2, &settings).value, value);
        }
    }

    #[test]
    fn case_b_converges_as_in_the_notes() {
        for (iterations, value) in [(1, 1.200454), (2, 1.254879), (20, 1.256683)] {
            let settings = Sinkhorn { iterations, ..Sinkhorn::default() };
            assert_near(3.0 * sinkhorn(&B.0, &B.1, 3, &settings).value, value);
        }
        let expected = [
            0.699708, 0.019981, 0.280311, 0.019981, 0.699708, 0.280311, 0.280311, 0.280311,
            0.439378,
        ];
        let (plan, _) = plan(&B.0, &B.1, 3, &Sinkhorn::default());
        plan.iter().zip(expected).for_each(|(p, e)| assert_near(*p, e));
    }

    #[test]
    fn gradients_are_those_of_unrolling_not_of_a_constant_plan() {
        let a = [0.299863, -0.299863, -0.281875, 0.281875];
        let b = [
            -0.196738, 0.079578, 0.117160, 0.079578, -0.196738, 0.117160, -0.101112, -0.101112,
            0.202225,
        ];
        for (found, n) in sinkhorn(&A.0, &A.1, 2, &Sinkhorn::default()).grad.iter().zip(a) {
            assert_near(2.0 * *found as f64, n);
        }
        for (found, n) in sinkhorn(&B.0, &B.1, 3, &Sinkhorn::default()).grad.iter().zip(b) {
            assert_near(3.0 * *found as f64, n);
        }
    }

    /// Logits at temperature 2 of these probabilities.
    fn logits(p: [f32; 4]) -> [f32; 4] {
        p.map(|p| 2.0 * p.ln())
    }

    #[test]
    fn cases_by_hand() {
        let p = logits([0.9, 0.1, 0.2, 0.8]);
        let q = logits([0.8, 0.2, 0.3, 0.7]);
        for iterations in [1, 20] {
            let settings = Sinkhorn { iterations, ..Sinkhorn::default() };
            assert_near(2.0 * sinkhorn(&p, &q, 2, &settings).value, 0.4000908);
            // Of equal predictions, entropy leaves a little.
            let same = 2.0 * sinkhorn(&q, &q, 2, &settings).value;
            assert!((same - 9.07957e-5).abs() < 1e-9, "{same}");
        }
    }

    #[test]
    fn the_gradient_is_its_differences() {
        for (seed, rows, width) in [(1, 5, 3), (2, 4, 2), (3, 1, 4), (4, 8, 6)] {
            let student = gaussian(rows * width, seed);
            let teacher: Vec<f32> =
                gaussian(rows * width, 10 + seed).iter().map(|x| 2.0 * x).collect();
            for epsilon in [0.02, 0.1, 0.5] {
                let settings = Sinkhorn { epsilon, ..Sinkhorn::default() };
                assert_differences(&student, 1e-4, |x| sinkhorn(x, &teacher, width, &settings));
            }
        }
    }

    #[test]
    fn one_logit_carries_no_signal() {
        let loss = sinkhorn(&[1.0, 2.0, 3.0], &[3.0, 0.0, 1.0], 1, &Sinkhorn::default());
        assert_eq!(loss, Loss::zero(3));
        assert_eq!(sinkhorn(&[], &[], 3, &Sinkhorn::default()), Loss::zero(0));
    }

    #[test]
    fn a_small_epsilon_does_not_underflow() {
        let settings = Sinkhorn { epsilon: 1e-3, ..Sinkhorn::default() };
        let loss = sinkhorn(&[40.0, 0.0, 40.0, 0.0], &[0.0, 40.0, 0.0, 40.0], 2, &settings);
        assert_near(loss.value, 2.0);
        assert!(loss.grad.iter().all(|g| g.is_finite()));
    }

    /// §2.1 as it is written, without logarithms.
    fn plain(cost: &[f64], n: usize, settings: &Sinkhorn) -> Vec<f64> {
        let mut plan: Vec<f64> =
            cost.iter().map(|d| (-d / settings.epsilon as f64).exp()).collect();
        for _ in 0..settings.iterations {
            for row in plan.chunks_exact_mut(n) {
                let sum: f64 = row.iter().sum();
                row.iter_mut().for_each(|p| *p /= sum);
            }
            for j in 0..n {
                let sum: f64 = (0..n).map(|i| plan[i * n + j]).sum();
                (0..n).for_each(|i| plan[i * n + j] /= sum);
            }
        }
        plan
    }

    proptest! {
        #[test]
        fn logarithms_change_nothing(
            x in prop::collection::vec(-4.0f32..4.0, 12),
            y in prop::collection::vec(-4.0f32..4.0, 12),
            epsilon in 0.05f32..1.0,
        ) {
            let settings = Sinkhorn { epsilon, ..Sinkhorn::default() };
            let cost = costs(&softmaxes(&x, 3, 2.0), &softmaxes(&y, 3, 2.0), 3);
            let (log, _) = plan(&x, &y, 3, &settings);
            for (p, e) in log.iter().zip(plain(&cost, 4, &settings)) {
                prop_assert!((p - e).abs() < 1e-12, "{} {}", p, e);
            }
        }

        #[test]
        fn every_column_is_used_once(
            x in prop::collection::vec(-4.0f32..4.0, 15),
            y in prop::collection::vec(-4.0f32..4.0, 15),
        ) {
            let (plan, value) = plan(&x, &y, 3, &Sinkhorn::default());
            for j in 0..5 {
                let sum: f64 = plan.iter().skip(j).step_by(5).sum();
                prop_assert!((sum - 1.0).abs() < 1e-12, "{}", sum);
            }
            prop_assert!(value >= 0.0);
        }

        #[test]
        fn the_order_of_the_teacher_and_shifts_of_rows_do_not_matter(
            x in prop::collection::vec(-2.0f32..2.0, 12),
            y in prop::collection::vec(-2.0f32..2.0, 12),
            shift in prop::collection::vec(-3.0f32..3.0, 4),
        ) {
            let settings = Sinkhorn { epsilon: 0.3, iterations: 200, ..Sinkhorn::default() };
            let loss = sinkhorn(&x, &y, 3, &settings);
            let turned = [&y[6..], &y[..6]].concat();
            let permuted = sinkhorn(&x, &turned, 3, &settings);
            prop_assert!((loss.value - permuted.value).abs() < 1e-6);
            prop_assert!(distance(&permuted.grad, &loss.grad) < 1e-3);
            let shifted: Vec<f32> = x.iter().enumerate().map(|(i, x)| x + shift[i / 3]).collect();
            prop_assert!((loss.value - sinkhorn(&shifted, &y, 3, &settings).value).abs() < 1e-6);
            for row in loss.grad.chunks_exact(3) {
                prop_assert!(row.iter().sum::<f32>().abs() < 1e-7);
            }
        }
    }
}
