//! Losses on sentence embeddings (distillation notes, §10.4).

use super::{Loss, kullback_leibler, log_softmax, rows};

/// `1 − cos(student, teacher)`.
///
/// - `student`, `teacher`: `[rows, width]`, of any length
///
/// Mean over rows. An embedding of length 0 has a cosine of 0 and no gradient.
///
/// # Panics
/// If the shapes do not fit.
pub fn cosine(student: &[f32], teacher: &[f32], width: usize) -> Loss {
    let n = rows(student, teacher, width) as f64;
    let mut loss = Loss::zero(student.len());
    let pairs = student.chunks_exact(width).zip(teacher.chunks_exact(width));
    for ((student, teacher), out) in pairs.zip(loss.grad.chunks_exact_mut(width)) {
        let (student, teacher) = (Unit::new(student), Unit::new(teacher));
        loss.value += (1.0 - dot(&student.direction, &teacher.direction)) / n;
        let grad: Vec<f64> = teacher.direction.iter().map(|t| -t / n).collect();
        student.back(&grad, out);
    }
    loss
}

/// Divergence of the student's similarities within a batch from the teacher's: softmax over the cosines of a
/// text with all others, divided by `temperature` (0.05 in the notes), and `KL(teacher ‖ student)`.
///
/// - `student`, `teacher`: `[rows, width]`, of any length
///
/// Mean over rows; without T², unlike [`divergence`](super::divergence). Fewer than 3 rows leave a softmax
/// of one element or none, which is constant: 0.
///
/// # Panics
/// If the shapes do not fit.
pub fn similarities(student: &[f32], teacher: &[f32], width: usize, temperature: f32) -> Loss {
    let n = rows(student, teacher, width);
    let mut loss = Loss::zero(student.len());
    if n < 3 {
        return loss;
    }
    let temperature = temperature as f64;
    let units = |x: &[f32]| x.chunks_exact(width).map(Unit::new).collect::<Vec<_>>();
    let (student, teacher) = (units(student), units(teacher));
    let others = |i: usize| (0..n).filter(move |&j| j != i);
    let mut by_cosine = vec![0.0; n * n];
    for i in 0..n {
        let logs = |units: &[Unit]| {
            let cosines = others(i).map(|j| dot(&units[i].direction, &units[j].direction));
            log_softmax(cosines, temperature)
        };
        let (value, difference) = kullback_leibler(&logs(&student), &logs(&teacher));
        loss.value += value / n as f64;
        for (j, d) in others(i).zip(difference) {
            by_cosine[i * n + j] = d / (temperature * n as f64);
        }
    }
    for (i, out) in loss.grad.chunks_exact_mut(width).enumerate() {
        let mut grad = vec![0.0; width];
        for j in others(i) {
            let weight = by_cosine[i * n + j] + by_cosine[j * n + i];
            grad.iter_mut().zip(&student[j].direction).for_each(|(g, x)| *g += weight * x);
        }
        student[i].back(&grad, out);
    }
    loss
}

/// A vector as direction and length.
struct Unit {
    direction: Vec<f64>,
    length: f64,
}

impl Unit {
    fn new(x: &[f32]) -> Unit {
        let direction: Vec<f64> = x.iter().map(|&x| x as f64).collect();
        let length = dot(&direction, &direction).sqrt();
        let scale = if length > 0.0 { 1.0 / length } else { 0.0 };
        Unit { direction: direction.iter().map(|x| x * scale).collect(), length }
    }

    /// From the gradient by the direction to the one by the vector.
    fn back(&self, grad: &[f64], out: &mut [f32]) {
        if self.length == 0.0 {
            return;
        }
        let along = dot(grad, &self.direction);
        for ((out, g), d) in out.iter_mut().zip(grad).zip(&self.direction) {
            *out = ((g - along * d) / self.length) as f32;
        }
    }
}

fn dot(x: &[f64], y: &[f64]) -> f64 {
    x.iter().zip(y).map(|(x, y)| x * y).sum()
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_differences, assert_nothing};
    use super::*;
    use crate::model::testing::gaussian;

    #[test]
    fn cosines_by_hand() {
        // cos 45° and cos 180°.
        let loss = cosine(&[2.0, 0.0, 0.0, 3.0], &[1.0, 1.0, 0.0, -0.5], 2);
        assert!((loss.value - (3.0 - 0.5f64.sqrt()) / 2.0).abs() < 1e-12, "{}", loss.value);
        // Only across the vector, and weaker the longer it is; opposite is a saddle.
        let expected = [0.0, -0.5f32.sqrt() / 4.0, 0.0, 0.0];
        assert!(loss.grad.iter().zip(expected).all(|(g, e)| (g - e).abs() < 1e-7), "{loss:?}");
    }

    #[test]
    fn length_does_not_matter() {
        let (x, y) = (gaussian(20, 1), gaussian(20, 2));
        let longer: Vec<f32> = x.iter().map(|x| 4.0 * x).collect();
        for loss in [cosine, |x: &[f32], y: &[f32], w| similarities(x, y, w, 0.5)] {
            let (short, long) = (loss(&x, &y, 5), loss(&longer, &y, 5));
            assert!((short.value - long.value).abs() < 1e-12 && short.value > 0.1);
            // So no gradient along the vector.
            for (x, g) in x.chunks_exact(5).zip(short.grad.chunks_exact(5)) {
                assert!(x.iter().zip(g).map(|(x, g)| x * g).sum::<f32>().abs() < 1e-6);
            }
            assert_nothing(&loss(&longer, &x, 5));
        }
    }

    #[test]
    fn nothing_to_learn_from_the_teacher_itself() {
        let x = gaussian(24, 3);
        assert_nothing(&cosine(&x, &x, 6));
        assert_nothing(&similarities(&x, &x, 6, 0.05));
    }

    #[test]
    fn gradients_are_their_differences() {
        for (seed, rows, width) in [(4, 1, 3), (5, 3, 2), (6, 6, 9)] {
            let (x, y) = (gaussian(rows * width, seed), gaussian(rows * width, 10 + seed));
            assert_differences(&x, 1e-3, |x| cosine(x, &y, width));
            if rows > 2 {
                assert_differences(&x, 1e-3, |x| similarities(x, &y, width, 0.5));
                assert_differences(&x, 1e-4, |x| similarities(x, &y, width, 0.05));
            }
        }
    }

    #[test]
    fn similarities_by_hand() {
        // Student: all at right angles, so 1/2 for either other. Teacher: 1 and 2 together, 3 across.
        let student = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0];
        let teacher = [1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0];
        let p = 1.0 / (1.0 + (-2.0f64).exp());
        let kl = p * (2.0 * p).ln() + (1.0 - p) * (2.0 * (1.0 - p)).ln();
        let loss = similarities(&student, &teacher, 3, 0.5);
        assert!((loss.value - 2.0 * kl / 3.0).abs() < 1e-12, "{}, {kl}", loss.value);
    }

    #[test]
    fn two_texts_have_no_similarities_to_compare() {
        for rows in 0..3 {
            let (x, y) = (gaussian(4 * rows, 7), gaussian(4 * rows, 8));
            assert_eq!(similarities(&x, &y, 4, 0.05), Loss::zero(4 * rows));
        }
        assert_eq!(cosine(&[], &[], 4), Loss::zero(0));
    }

    #[test]
    fn an_embedding_of_zeros_has_no_direction() {
        assert_eq!(cosine(&[0.0, 0.0], &[1.0, 0.0], 2), Loss { value: 1.0, grad: vec![0.0; 2] });
        let x = [0.0, 0.0, 1.0, 0.0, 1.0, 1.0];
        let loss = similarities(&x, &[1.0, 0.0, 0.0, 1.0, 1.0, 1.0], 2, 0.5);
        assert!(loss.value.is_finite() && loss.grad.iter().all(|g| g.is_finite()), "{loss:?}");
    }
}
