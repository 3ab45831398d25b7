//! Losses of distillation and training: from what the student gave, and the teacher or a label, to a
//! value and its gradient with respect to the student's side. The teacher's side takes no gradient.
//!
//! Texts of a batch lie one behind the other, text `s` at tokens `starts[s]..starts[s + 1]`, so nothing
//! is masked: a mean is over all there is. A mean over nothing is 0, with a gradient of 0.

mod attention;
mod embedding;
mod hidden;
mod matching;
mod prediction;
mod ranking;
mod sinkhorn;
#[cfg(test)]
mod testing;

pub use attention::{relation_heads, relations, scores};
pub use embedding::{cosine, similarities};
pub use hidden::{HiddenLoss, Projection, hidden, hidden_distance};
pub use matching::{Matching, matched_layers, watched_layers};
pub use prediction::{cross_entropy, divergence, span_cross_entropy, span_divergence, squares};
pub use ranking::{Ranking, ranking};
pub use sinkhorn::{Sinkhorn, sinkhorn};

/// A loss and its gradient with respect to what the student gave (same shape).
#[derive(Debug, Clone, PartialEq)]
pub struct Loss {
    pub value: f64,
    pub grad: Vec<f32>,
}

impl Loss {
    fn zero(len: usize) -> Loss {
        Loss { value: 0.0, grad: vec![0.0; len] }
    }
}

/// Rows of `[rows, width]`, the same for student and teacher.
fn rows(student: &[f32], teacher: &[f32], width: usize) -> usize {
    assert!(width > 0 && student.len().is_multiple_of(width), "{} in {width}s", student.len());
    assert_eq!(student.len(), teacher.len(), "student and teacher have one shape");
    student.len() / width
}

/// log softmax(x / temperature).
fn log_softmax(x: impl Iterator<Item = f64>, temperature: f64) -> Vec<f64> {
    let mut x: Vec<f64> = x.collect();
    let max = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    x.iter_mut().for_each(|x| *x = (*x - max) / temperature);
    let log_sum = x.iter().map(|x| x.exp()).sum::<f64>().ln();
    x.iter_mut().for_each(|x| *x -= log_sum);
    x
}

/// KL(teacher ‖ student) of two rows of log-probabilities, and `p_s − p_t`: the gradient with respect to
/// what was the softmax's argument on the student's side.
fn kullback_leibler(student: &[f64], teacher: &[f64]) -> (f64, Vec<f64>) {
    let pairs = student.iter().zip(teacher);
    let value = pairs.clone().map(|(s, t)| t.exp() * (t - s)).sum();
    (value, pairs.map(|(s, t)| s.exp() - t.exp()).collect())
}

/// Independent accumulators: enough for the compiler to vectorise a sum and hide its latency.
const LANES: usize = 16;

/// Σ f(x), in f64.
#[inline(always)]
fn sum(x: &[f32], f: impl Fn(f64) -> f64) -> f64 {
    let mut lanes = [0.0; LANES];
    let chunks = x.chunks_exact(LANES);
    let tail: f64 = chunks.remainder().iter().map(|&x| f(x as f64)).sum();
    for chunk in chunks {
        for i in 0..LANES {
            lanes[i] += f(chunk[i] as f64);
        }
    }
    lanes.iter().sum::<f64>() + tail
}

/// `x ← factor · (x − y)`, and Σ (x − y)² of what was there.
fn differ(x: &mut [f32], y: &[f32], factor: f32) -> f64 {
    x.iter_mut().zip(y).for_each(|(x, y)| *x -= y);
    let squares = sum(x, |d| d * d);
    x.iter_mut().for_each(|x| *x *= factor);
    squares
}
