//! Loss on hidden states, with a projection where widths differ.

use super::{differ, sum};
use crate::runtime::kernels::{Mat, MatMut, add_product, product};
use crate::train::fisher::normal;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

/// From the student's width to the teacher's, `s·Wᵀ + b`. Trained beside the student, absent from what is
/// written.
#[derive(Debug, Clone, PartialEq)]
pub struct Projection {
    /// `[dt, ds]`
    pub weight: Vec<f32>,
    /// `[dt]`
    pub bias: Vec<f32>,
}

impl Projection {
    /// The identity for equal widths, else N(0, 0.02), always the same (distillation notes, §0).
    pub fn new(dt: usize, ds: usize) -> Projection {
        let weight = if dt == ds {
            (0..dt * ds).map(|i| if i / ds == i % ds { 1.0 } else { 0.0 }).collect()
        } else {
            let mut rng = ChaCha8Rng::seed_from_u64(0);
            (0..dt * ds).map(|_| 0.02 * normal(&mut rng)).collect()
        };
        Projection { weight, bias: vec![0.0; dt] }
    }
}

impl Projection {
    /// `s·Wᵀ + b` of `student`, `[tokens, ds]`.
    pub fn apply(&self, student: &[f32], ds: usize) -> Vec<f32> {
        let (tokens, dt) = (student.len() / ds, self.bias.len());
        assert_eq!(self.weight.len(), dt * ds, "a projection from the student's width");
        let mut out = self.bias.repeat(tokens);
        let weight = Mat::new(&self.weight, dt, ds);
        add_product(
            MatMut::new(&mut out, tokens, dt),
            Mat::new(student, tokens, ds),
            weight.t(),
            1.0,
        );
        out
    }
}

/// The value of [`hidden`] alone, for a student's state that is as wide as the teacher's.
pub fn hidden_distance(student: &[f32], teacher: &[f32]) -> f64 {
    assert_eq!(student.len(), teacher.len(), "states of one width");
    let squares: f64 = student.iter().zip(teacher).map(|(s, t)| ((s - t) as f64).powi(2)).sum();
    squares / (teacher.len().max(1) as f64 * spread(teacher))
}

/// What [`hidden`] gives.
#[derive(Debug, Clone, PartialEq)]
pub struct HiddenLoss {
    pub value: f64,
    /// `[tokens, ds]`, with respect to the student's state.
    pub grad: Vec<f32>,
    /// With respect to the projection, if there is one.
    pub projection: Option<Projection>,
}

/// A teacher that varies less than this is a constant, and the error is not divided. Rounding leaves 1e-20 of
/// constant states; states behind a norm vary by 0.01 and more.
const CONSTANT: f64 = 1e-12;

/// Squared error of a hidden state, in units of the variance of the teacher's state in this batch: 1 is what
/// the best constant reaches, and layers of different scale weigh the same (distillation notes, §0 and §10.2).
///
/// - `student`: `[tokens, ds]`
/// - `teacher`: `[tokens, dt]`
/// - `projection`: from `ds` to `dt`; without one the widths are equal
///
/// Mean over tokens and `dt`; the variance is about one mean of everything.
///
/// # Panics
/// If the shapes do not fit.
pub fn hidden(
    student: &[f32],
    teacher: &[f32],
    ds: usize,
    dt: usize,
    projection: Option<&Projection>,
) -> HiddenLoss {
    assert!(ds > 0 && dt > 0, "a hidden state has a width");
    let tokens = student.len() / ds;
    assert_eq!((tokens * ds, tokens * dt), (student.len(), teacher.len()), "states of {tokens}");
    let state = Mat::new(student, tokens, ds);
    let mut grad = match projection {
        Some(projection) => projection.apply(student, ds),
        None => {
            assert_eq!(ds, dt, "other widths need a projection");
            student.to_vec()
        }
    };
    let scale = 1.0 / (teacher.len().max(1) as f64 * spread(teacher));
    let value = scale * differ(&mut grad, teacher, (2.0 * scale) as f32);
    let Some(projection) = projection else {
        return HiddenLoss { value, grad, projection: None };
    };
    let mut out = Projection { weight: vec![0.0; dt * ds], bias: vec![0.0; dt] };
    for row in grad.chunks_exact(dt) {
        out.bias.iter_mut().zip(row).for_each(|(b, g)| *b += g);
    }
    let upstream = Mat::new(&grad, tokens, dt);
    product(MatMut::new(&mut out.weight, dt, ds), upstream.t(), state, 1.0);
    let mut back = vec![0.0; student.len()];
    let weight = Mat::new(&projection.weight, dt, ds);
    product(MatMut::new(&mut back, tokens, ds), upstream, weight, 1.0);
    HiddenLoss { value, grad: back, projection: Some(out) }
}

/// Variance, or 1 for a constant.
fn spread(x: &[f32]) -> f64 {
    let n = x.len().max(1) as f64;
    let mean = sum(x, |x| x) / n;
    let variance = sum(x, |x| (x - mean) * (x - mean)) / n;
    if variance > CONSTANT { variance } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::super::Loss;
    use super::super::testing::*;
    use super::*;
    use crate::model::testing::{distance, gaussian};

    #[test]
    fn a_case_by_hand() {
        // Variance of 0, 2, 4, 6 is 5; errors 1, 0, −2, 0.
        let loss = hidden(&[1.0, 2.0, 2.0, 6.0], &[0.0, 2.0, 4.0, 6.0], 2, 2, None);
        assert!((loss.value - 0.25).abs() < 1e-12, "{}", loss.value);
        assert!(distance(&loss.grad, &[0.1, 0.0, -0.2, 0.0]) < 1e-6, "{:?}", loss.grad);
        assert_eq!(loss.projection, None);
    }

    #[test]
    fn the_mean_of_the_teacher_is_one_away() {
        let teacher: Vec<f32> = gaussian(64, 1).iter().map(|x| 3.0 + 0.1 * x).collect();
        let mean = teacher.iter().sum::<f32>() / 64.0;
        let loss = hidden(&[mean; 64], &teacher, 8, 8, None);
        assert!((loss.value - 1.0).abs() < 1e-4, "{}", loss.value);
    }

    #[test]
    fn a_constant_teacher_leaves_the_plain_error() {
        let loss = hidden(&[2.1; 6], &[0.1; 6], 3, 3, None);
        assert!((loss.value - 4.0).abs() < 1e-6, "{}", loss.value);
        let nothing = HiddenLoss { value: 0.0, grad: Vec::new(), projection: None };
        assert_eq!(hidden(&[], &[], 3, 3, None), nothing);
    }

    #[test]
    fn nothing_to_learn_from_the_teacher_itself() {
        let x = gaussian(35 * 20, 2);
        for projection in [None, Some(Projection::new(20, 20))] {
            let loss = hidden(&x, &x, 20, 20, projection.as_ref());
            assert_nothing(&Loss { value: loss.value, grad: loss.grad });
            if let Some(projection) = loss.projection {
                assert!(projection.weight.iter().chain(&projection.bias).all(|&g| g == 0.0));
            }
        }
    }

    #[test]
    fn gradients_are_their_differences() {
        let (tokens, ds, dt) = (7, 5, 9);
        let (student, teacher) = (gaussian(tokens * ds, 3), gaussian(tokens * dt, 4));
        let same = gaussian(tokens * dt, 5);
        assert_differences(&same, 1e-2, |x| {
            let loss = hidden(x, &teacher, dt, dt, None);
            Loss { value: loss.value, grad: loss.grad }
        });
        let projection = Projection { weight: gaussian(dt * ds, 6), bias: gaussian(dt, 7) };
        let run = |student: &[f32], projection: &Projection| {
            hidden(student, &teacher, ds, dt, Some(projection))
        };
        assert_differences(&student, 1e-2, |x| {
            let loss = run(x, &projection);
            Loss { value: loss.value, grad: loss.grad }
        });
        let found = run(&student, &projection).projection.expect("a gradient");
        let by_weight = differences(&projection.weight, 1e-2, |w| {
            run(&student, &Projection { weight: w.to_vec(), ..projection.clone() }).value
        });
        assert_close(&found.weight, &by_weight);
        let by_bias = differences(&projection.bias, 1e-2, |b| {
            run(&student, &Projection { bias: b.to_vec(), ..projection.clone() }).value
        });
        assert_close(&found.bias, &by_bias);
    }

    #[test]
    fn projections_start_at_the_identity_or_small() {
        assert_eq!(Projection::new(2, 2).weight, [1.0, 0.0, 0.0, 1.0]);
        let projection = Projection::new(40, 30);
        assert_eq!(projection, Projection::new(40, 30));
        let square = sum(&projection.weight, |w| w * w) / 1200.0;
        assert!((square.sqrt() - 0.02).abs() < 0.002, "{square}");
        assert!(projection.bias.iter().all(|&b| b == 0.0));
    }

    /// §11.7: descent along these gradients drives the loss down.
    #[test]
    fn descent_drives_it_down_tenfold() {
        let (tokens, ds, dt) = (12, 8, 6);
        let (mut student, teacher) = (gaussian(tokens * ds, 8), gaussian(tokens * dt, 9));
        let mut projection = Projection { weight: gaussian(dt * ds, 10), bias: vec![0.0; dt] };
        let first = hidden(&student, &teacher, ds, dt, Some(&projection)).value;
        let step = |x: &mut [f32], g: &[f32]| x.iter_mut().zip(g).for_each(|(x, g)| *x -= g);
        for _ in 0..50 {
            let loss = hidden(&student, &teacher, ds, dt, Some(&projection));
            step(&mut student, &loss.grad);
            let by = loss.projection.expect("a gradient");
            step(&mut projection.weight, &by.weight);
            step(&mut projection.bias, &by.bias);
        }
        let last = hidden(&student, &teacher, ds, dt, Some(&projection)).value;
        assert!(last < 0.1 * first, "{first}, {last}");
    }
}
