//! Losses on attention, from the query, key and value of one layer.
//!
//! Both go text by text, on all threads: each text writes its own rows of the gradient, and the values are
//! added in the order of texts, so results do not depend on the number of threads.

use super::{LANES, Loss, differ};
use crate::runtime::kernels::{Mat, MatMut, product, softmax};
use rayon::prelude::*;

/// Squared error of attention scores before the softmax, `Q·Kᵀ / √head_dim` (TinyBERT; distillation notes,
/// §1.1), of the heads that both have.
///
/// - `student_qkv`: `[tokens, 3 · student_heads · head_dim]`: query columns, key columns, value columns
/// - `teacher_qkv`: the same for its heads
/// - `student_heads`, `teacher_heads`: original numbers of the heads that are left; equal numbers match
/// - `starts`: `[texts + 1]`, where texts begin
///
/// Mean over common heads and all tokens × tokens entries of all texts. The paper's code counts padding into
/// the mean; here is none. No head in common: 0. The value columns have no gradient.
///
/// # Panics
/// If the shapes do not fit.
pub fn scores(
    student_qkv: &[f32],
    student_heads: &[usize],
    teacher_qkv: &[f32],
    teacher_heads: &[usize],
    head_dim: usize,
    starts: &[usize],
) -> Loss {
    let common: Vec<(usize, usize)> = student_heads
        .iter()
        .enumerate()
        .filter_map(|(s, head)| Some((s, teacher_heads.iter().position(|h| h == head)?)))
        .collect();
    let entries: usize = starts.windows(2).map(|span| (span[1] - span[0]).pow(2)).sum();
    let share = 1.0 / (common.len() * entries).max(1) as f64;
    let scale = 1.0 / (head_dim as f32).sqrt();
    let student = Layer { qkv: student_qkv, width: student_heads.len() * head_dim };
    let teacher = Layer { qkv: teacher_qkv, width: teacher_heads.len() * head_dim };
    by_text(student, teacher, starts, |student, teacher, grad| {
        let n = student.tokens();
        let mut errors = vec![0.0; n * n];
        let mut expected = vec![0.0; n * n];
        let mut value = 0.0;
        for &(s, t) in &common {
            let part = |which| student.part(which, s * head_dim, head_dim);
            let teacher = |which| teacher.part(which, t * head_dim, head_dim);
            product(MatMut::new(&mut errors, n, n), part(QUERY), part(KEY).t(), scale);
            product(MatMut::new(&mut expected, n, n), teacher(QUERY), teacher(KEY).t(), scale);
            value += share * differ(&mut errors, &expected, (2.0 * share) as f32 * scale);
            let upstream = Mat::new(&errors, n, n);
            let mut write = |which: usize, a: Mat, b: Mat| {
                let out = MatMut::new(grad, n, 3 * student.width);
                let out = out.columns(which * student.width + s * head_dim, head_dim);
                product(out, a, b, 1.0);
            };
            write(QUERY, upstream, part(KEY));
            write(KEY, upstream.t(), part(QUERY));
        }
        value
    })
}

/// Divergence of the relations among queries, among keys and among values: `KL(teacher ‖ student)` of the
/// softmaxes over `X·Xᵀ / √d`, for X each of the three, re-split into `relation_heads` of
/// `d = width / relation_heads` columns (MiniLMv2; distillation notes, §0). Head counts and widths may differ.
///
/// - `student_qkv`: `[tokens, 3 · student_width]`: query columns, key columns, value columns
/// - `teacher_qkv`: `[tokens, 3 · teacher_width]`
/// - `relation_heads`: divides both widths; see [`relation_heads`](self::relation_heads)
/// - `starts`: `[texts + 1]`, where texts begin
///
/// Mean over tokens × relation heads × 3. A width of 0 (no head left) has no relations: 0.
///
/// # Panics
/// If the shapes do not fit or `relation_heads` does not divide a width.
pub fn relations(
    student_qkv: &[f32],
    student_width: usize,
    teacher_qkv: &[f32],
    teacher_width: usize,
    relation_heads: usize,
    starts: &[usize],
) -> Loss {
    if student_width == 0 || teacher_width == 0 {
        return Loss::zero(student_qkv.len());
    }
    let dim = |width: usize| {
        assert!(width.is_multiple_of(relation_heads), "{width} in {relation_heads} relation heads");
        width / relation_heads
    };
    let (student_dim, teacher_dim) = (dim(student_width), dim(teacher_width));
    let scale = |dim: usize| 1.0 / (dim as f32).sqrt();
    let tokens = starts.last().copied().unwrap_or(0);
    let share = 1.0 / (3 * relation_heads * tokens).max(1) as f64;
    let student = Layer { qkv: student_qkv, width: student_width };
    let teacher = Layer { qkv: teacher_qkv, width: teacher_width };
    by_text(student, teacher, starts, |student, teacher, grad| {
        let n = student.tokens();
        let (mut ours, mut theirs) = (vec![0.0; n * n], vec![0.0; n * n]);
        let (mut by_score, mut probs) = (vec![0.0; n * n], vec![0.0; n]);
        let mut value = 0.0;
        for block in 0..3 * relation_heads {
            let (which, head) = (block / relation_heads, block % relation_heads);
            let x = student.part(which, head * student_dim, student_dim);
            let y = teacher.part(which, head * teacher_dim, teacher_dim);
            product(MatMut::new(&mut ours, n, n), x, x.t(), scale(student_dim));
            product(MatMut::new(&mut theirs, n, n), y, y.t(), scale(teacher_dim));
            let factor = share as f32 * scale(student_dim);
            let scores = ours.chunks_exact(n).zip(theirs.chunks_exact(n));
            for ((ours, theirs), out) in scores.zip(by_score.chunks_exact_mut(n)) {
                value += share * diverge(ours, theirs, out, &mut probs, factor);
            }
            // X stands on both sides of the product: its gradient is (G + Gᵀ)·X.
            for i in 0..n {
                for j in 0..=i {
                    let both = by_score[i * n + j] + by_score[j * n + i];
                    (by_score[i * n + j], by_score[j * n + i]) = (both, both);
                }
            }
            let column = which * student_width + head * student_dim;
            let out = MatMut::new(grad, n, 3 * student_width).columns(column, student_dim);
            product(out, Mat::new(&by_score, n, n), x, 1.0);
        }
        value
    })
}

/// The largest number of relation heads up to `wanted` that divides both widths: at least 1.
pub fn relation_heads(student_width: usize, teacher_width: usize, wanted: usize) -> usize {
    let divides = |heads: &usize| {
        student_width.is_multiple_of(*heads) && teacher_width.is_multiple_of(*heads)
    };
    (1..=wanted).rev().find(divides).unwrap_or(1)
}

const QUERY: usize = 0;
const KEY: usize = 1;

/// Query, key and value of some tokens, `[tokens, 3 · width]`.
#[derive(Clone, Copy)]
struct Layer<'a> {
    qkv: &'a [f32],
    width: usize,
}

impl<'a> Layer<'a> {
    fn tokens(self) -> usize {
        self.qkv.len() / (3 * self.width)
    }

    fn text(self, span: &[usize]) -> Layer<'a> {
        let row = 3 * self.width;
        Layer { qkv: &self.qkv[span[0] * row..span[1] * row], ..self }
    }

    /// `dim` columns of query, key or value.
    fn part(self, which: usize, column: usize, dim: usize) -> Mat<'a> {
        let all = Mat::new(self.qkv, self.tokens(), 3 * self.width);
        all.columns(which * self.width + column, dim)
    }
}

/// Sum of what `one` gives for each text, and the gradients that it wrote.
fn by_text(
    student: Layer,
    teacher: Layer,
    starts: &[usize],
    one: impl Fn(Layer, Layer, &mut [f32]) -> f64 + Sync,
) -> Loss {
    let tokens = starts.last().copied().unwrap_or(0);
    assert!(starts.first().is_none_or(|&first| first == 0), "the first text begins at 0");
    for layer in [student, teacher] {
        assert_eq!(layer.qkv.len(), 3 * layer.width * tokens, "{tokens} tokens");
    }
    let mut loss = Loss::zero(student.qkv.len());
    if loss.grad.is_empty() || teacher.width == 0 {
        return loss;
    }
    let mut rest = loss.grad.as_mut_slice();
    let mut texts = Vec::new();
    for span in starts.windows(2) {
        let own = rest.split_off_mut(..(span[1] - span[0]) * 3 * student.width);
        texts.push((student.text(span), teacher.text(span), own.expect("starts rise")));
    }
    let values: Vec<f64> =
        texts.into_par_iter().map(|(student, teacher, grad)| one(student, teacher, grad)).collect();
    loss.value = values.iter().sum();
    loss
}

/// `KL(teacher ‖ student)` of two softmaxes over `n` scores; `out` becomes `factor · (p_s − p_t)`, and `probs`
/// what the teacher's softmax gives.
///
/// As `Σ p_t (x_t − x_s) − lse_t + lse_s`: no probability that underflowed is asked for its logarithm.
fn diverge(
    student: &[f32],
    teacher: &[f32],
    out: &mut [f32],
    probs: &mut [f32],
    factor: f32,
) -> f64 {
    out.copy_from_slice(student);
    softmax(out);
    probs.copy_from_slice(teacher);
    softmax(probs);
    // The largest probability is 1 / Σ exp(x − max).
    let log_sum = |x: &[f32], p: &[f32]| largest(x) as f64 - (largest(p) as f64).ln();
    let constant = log_sum(student, out) - log_sum(teacher, probs);
    let mut inner = 0.0;
    for ((p, t), s) in probs.iter().zip(teacher).zip(student) {
        inner += (p * (t - s)) as f64;
    }
    out.iter_mut().zip(probs).for_each(|(s, t)| *s = factor * (*s - *t));
    inner + constant
}

fn largest(x: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let chunks = x.chunks_exact(LANES);
    let tail = chunks.remainder().iter().copied().fold(f32::NEG_INFINITY, f32::max);
    for chunk in chunks {
        for i in 0..LANES {
            lanes[i] = if chunk[i] > lanes[i] { chunk[i] } else { lanes[i] };
        }
    }
    lanes.into_iter().fold(tail, f32::max)
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use crate::model::testing::{distance, gaussian};

    /// Random, `[tokens, 3 · width]`.
    fn qkv(tokens: usize, width: usize, seed: u64) -> Vec<f32> {
        gaussian(tokens * 3 * width, seed)
    }

    /// Scores of a text `from..to`, in f64, without matrices: columns `a..` against columns `b..`.
    fn plain(
        x: &[f32],
        row: usize,
        span: &[usize],
        a: usize,
        b: usize,
        dim: usize,
    ) -> Vec<Vec<f64>> {
        let dot = |i: usize, j: usize| {
            let (x, y) = (&x[i * row + a..], &x[j * row + b..]);
            (0..dim).map(|d| x[d] as f64 * y[d] as f64).sum::<f64>() / (dim as f64).sqrt()
        };
        (span[0]..span[1]).map(|i| (span[0]..span[1]).map(|j| dot(i, j)).collect()).collect()
    }

    fn softmax_of(row: &[f64]) -> Vec<f64> {
        let sum: f64 = row.iter().map(|x| x.exp()).sum();
        row.iter().map(|x| x.exp() / sum).collect()
    }

    #[test]
    fn every_entry_counts_the_same() {
        // Keys are the identity, so queries are √2 · scores: [[1 0] [2 3]] against [[0 0] [2 1]].
        let text = |scores: [f32; 4]| {
            let q = scores.map(|s| s * 2f32.sqrt());
            vec![q[0], q[1], 1.0, 0.0, 0.0, 0.0, q[2], q[3], 0.0, 1.0, 0.0, 0.0]
        };
        let (student, teacher) = (text([1.0, 0.0, 2.0, 3.0]), text([0.0, 0.0, 2.0, 1.0]));
        let loss = scores(&student, &[0], &teacher, &[0], 2, &[0, 2]);
        assert!((loss.value - 1.25).abs() < 1e-6, "{}", loss.value);
        // A text of one token whose score is off by 3 brings one entry: (4 · 1.25 + 9) / 5.
        let longer =
            |x: &[f32], score: f32| [x, &[score * 2f32.sqrt(), 0.0, 1.0, 0.0, 0.0, 0.0]].concat();
        let loss =
            scores(&longer(&student, 1.0), &[0], &longer(&teacher, 4.0), &[0], 2, &[0, 2, 3]);
        assert!((loss.value - 2.8).abs() < 1e-6, "{}", loss.value);
    }

    #[test]
    fn scores_agree_with_the_plain_sum() {
        let (starts, dim) = ([0, 5, 6, 29], 4);
        let (student, teacher) = (qkv(29, 2 * dim, 1), qkv(29, 3 * dim, 2));
        let found = scores(&student, &[2, 0], &teacher, &[0, 1, 2], dim, &starts);
        let (mut sum, mut count) = (0.0, 0);
        for span in starts.windows(2) {
            for (s, t) in [(0, 2), (1, 0)] {
                let ours = plain(&student, 6 * dim, span, s * dim, (2 + s) * dim, dim);
                let theirs = plain(&teacher, 9 * dim, span, t * dim, (3 + t) * dim, dim);
                for (x, y) in ours.concat().iter().zip(theirs.concat()) {
                    sum += (x - y) * (x - y);
                    count += 1;
                }
            }
        }
        let expected = sum / count as f64;
        assert!((found.value / expected - 1.0).abs() < 1e-5, "{} {expected}", found.value);
    }

    #[test]
    fn gradients_of_scores_are_their_differences() {
        let (starts, dim) = ([0, 3, 4, 9], 3);
        let (student, teacher) = (qkv(9, 2 * dim, 3), qkv(9, 3 * dim, 4));
        let loss = |x: &[f32]| scores(x, &[1, 3], &teacher, &[0, 3, 1], dim, &starts);
        assert_differences(&student, 1e-2, loss);
        // One head in common: the other has no gradient, and no head has one by its values.
        let loss = |x: &[f32]| scores(x, &[1, 5], &teacher, &[0, 3, 1], dim, &starts);
        assert_differences(&student, 1e-2, loss);
        let grad = loss(&student).grad;
        for row in grad.chunks_exact(6 * dim) {
            assert!(row[dim..2 * dim].iter().chain(&row[3 * dim..]).all(|&g| g == 0.0));
        }
    }

    #[test]
    fn heads_match_by_number_or_not_at_all() {
        let (starts, dim) = ([0, 4], 2);
        let teacher = qkv(4, 3 * dim, 5);
        // The teacher's heads 1 and 2, stored in the other order.
        let student: Vec<f32> = teacher
            .chunks_exact(3 * dim)
            .flat_map(|part| [&part[2 * dim..], &part[dim..2 * dim]].concat())
            .collect();
        let loss = |heads: &[usize]| scores(&student, heads, &teacher, &[0, 1, 2], dim, &starts);
        assert_nothing(&loss(&[2, 1]));
        assert!(loss(&[1, 2]).value > 0.1);
        assert_eq!(loss(&[3, 4]), Loss::zero(student.len()));
        assert_eq!(scores(&[], &[], &teacher, &[0, 1, 2], dim, &starts), Loss::zero(0));
        assert_eq!(scores(&student, &[0, 1], &[], &[], dim, &starts), Loss::zero(student.len()));
        assert_eq!(scores(&[], &[0], &[], &[0], dim, &[0]), Loss::zero(0));
    }

    #[test]
    fn relations_agree_with_the_plain_sum() {
        let (starts, heads) = ([0, 20, 21, 29], 2);
        let (student, teacher) = (qkv(29, 4, 6), qkv(29, 6, 7));
        let found = relations(&student, 4, &teacher, 6, heads, &starts);
        let mut sum = 0.0;
        for span in starts.windows(2) {
            for block in 0..3 * heads {
                let ours = plain(&student, 12, span, block * 2, block * 2, 2);
                let theirs = plain(&teacher, 18, span, block * 3, block * 3, 3);
                for (ours, theirs) in ours.iter().zip(&theirs) {
                    let pairs = softmax_of(ours).into_iter().zip(softmax_of(theirs));
                    sum += pairs.map(|(s, t)| t * (t / s).ln()).sum::<f64>();
                }
            }
        }
        let expected = sum / (29 * heads * 3) as f64;
        assert!((found.value / expected - 1.0).abs() < 1e-5, "{} {expected}", found.value);
    }

    #[test]
    fn gradients_of_relations_are_their_differences() {
        let starts = [0, 3, 4, 9];
        let (student, teacher) = (qkv(9, 4, 8), qkv(9, 6, 9));
        for heads in [1, 2] {
            assert_differences(&student, 1e-2, |x| relations(x, 4, &teacher, 6, heads, &starts));
        }
    }

    #[test]
    fn nothing_to_learn_from_the_teacher_itself() {
        let (x, starts) = (qkv(40, 12, 10), [0, 37, 38, 40]);
        assert_nothing(&scores(&x, &[0, 1, 2], &x, &[0, 1, 2], 4, &starts));
        assert_nothing(&relations(&x, 12, &x, 12, 3, &starts));
    }

    #[test]
    fn far_scores_stay_finite() {
        let far = |seed| qkv(6, 4, seed).iter().map(|x| 30.0 * x).collect::<Vec<_>>();
        let loss = relations(&far(11), 4, &far(12), 4, 2, &[0, 6]);
        assert!(loss.value.is_finite() && loss.value > 10.0, "{}", loss.value);
        assert!(loss.grad.iter().all(|g| g.is_finite()));
    }

    #[test]
    fn relations_of_nothing_are_nothing() {
        assert_eq!(relations(&[], 0, &qkv(3, 4, 13), 4, 2, &[0, 3]), Loss::zero(0));
        assert_eq!(relations(&qkv(3, 4, 13), 4, &[], 0, 2, &[0, 3]), Loss::zero(36));
        assert_eq!(relations(&[], 4, &[], 4, 2, &[0]), Loss::zero(0));
    }

    #[test]
    #[should_panic(expected = "6 in 4 relation heads")]
    fn relation_heads_divide_the_width() {
        relations(&qkv(1, 6, 14), 6, &qkv(1, 8, 15), 8, 4, &[0, 1]);
    }

    #[test]
    fn relation_heads_are_as_many_as_fit() {
        assert_eq!(relation_heads(384, 768, 48), 48);
        assert_eq!(relation_heads(320, 768, 48), 32);
        assert_eq!(relation_heads(7, 768, 48), 1);
        assert_eq!(relation_heads(384, 384, 0), 1);
    }

    #[test]
    fn threads_do_not_matter() {
        let starts = [0, 9, 10, 31, 40, 64];
        let (x, y) = (qkv(64, 24, 16), qkv(64, 24, 17));
        let run = |threads: usize| {
            let pool =
                rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
            pool.install(|| {
                let heads = [0, 1, 2];
                (scores(&x, &heads, &y, &heads, 8, &starts), relations(&x, 24, &y, 24, 4, &starts))
            })
        };
        let (one, three) = (run(1), run(3));
        assert!(one.1.value > 0.01 && distance(&one.0.grad, &one.1.grad) > 0.01);
        assert_eq!(one, three);
    }
}
