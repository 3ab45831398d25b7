//! Losses on what a head predicts: logits, spans and scores.

use super::{Loss, differ, kullback_leibler, log_softmax, rows};
use std::iter::StepBy;
use std::ops::Range;

/// Cross-entropy against classes.
///
/// - `logits`: `[rows, width]`
/// - `classes`: `[rows]`, each below `width`; a row of `None` has no loss and no gradient
///
/// Mean over the rows that have a class.
///
/// # Panics
/// If the shapes do not fit or a class is not below `width`.
pub fn cross_entropy(logits: &[f32], width: usize, classes: &[Option<u32>]) -> Loss {
    assert_eq!(logits.len(), classes.len() * width, "one class a row of {width}");
    let mut loss = Loss::zero(logits.len());
    let share = 1.0 / classes.iter().flatten().count() as f64;
    for (row, class) in classes.iter().enumerate() {
        let Some(class) = *class else { continue };
        add_cross_entropy(&mut loss, logits, row_cells(row, width), class, share);
    }
    loss
}

/// Divergence of the student's classes from the teacher's: `T² · KL(teacher ‖ student)`, both softmaxes at
/// temperature T (distillation notes, §0). T² keeps the gradient's scale independent of T.
///
/// - `student`, `teacher`: logits, `[rows, width]`
///
/// Mean over rows. Constant, so without gradient, at a width of 1: use [`squares`] there.
///
/// # Panics
/// If the shapes do not fit.
pub fn divergence(student: &[f32], teacher: &[f32], width: usize, temperature: f32) -> Loss {
    let rows = rows(student, teacher, width);
    mean_divergence(student, teacher, (0..rows).map(|r| row_cells(r, width)), temperature)
}

/// Squared error against scores of a teacher or of labels: for regression, where a softmax of one logit
/// would carry no gradient (TinyBERT; distillation notes, §1.1 f).
///
/// - `student`, `target`: any one shape
///
/// Mean over all elements.
///
/// # Panics
/// If the shapes differ.
pub fn squares(student: &[f32], target: &[f32]) -> Loss {
    if rows(student, target, 1) == 0 {
        return Loss::zero(0);
    }
    let mut grad = student.to_vec();
    let sum = differ(&mut grad, target, 2.0 / student.len() as f32);
    Loss { value: sum / student.len() as f64, grad }
}

/// Cross-entropy against spans: a start and an end are each chosen over the tokens of their text.
///
/// - `logits`: `[tokens, 2]`, start and end
/// - `starts`: `[texts + 1]`, where texts begin
/// - `spans`: `[texts]`, start and end as positions inside their text; a text of `None` has no loss
///
/// Mean of start and end, and mean over the texts that have a span.
///
/// # Panics
/// If the shapes do not fit or a span is not inside its text.
pub fn span_cross_entropy(logits: &[f32], starts: &[usize], spans: &[Option<(u32, u32)>]) -> Loss {
    let columns = text_columns(logits, starts);
    assert_eq!(columns.len(), spans.len(), "one span a text");
    let mut loss = Loss::zero(logits.len());
    let share = 0.5 / spans.iter().flatten().count() as f64;
    for ([first, last], span) in columns.into_iter().zip(spans) {
        let Some((start, end)) = *span else { continue };
        add_cross_entropy(&mut loss, logits, first, start, share);
        add_cross_entropy(&mut loss, logits, last, end, share);
    }
    loss
}

/// Divergence of the student's spans from the teacher's: `T² · KL(teacher ‖ student)` of the softmaxes over
/// the tokens of each text (CoFi notes, §4).
///
/// - `student`, `teacher`: logits, `[tokens, 2]`, start and end
/// - `starts`: `[texts + 1]`, where texts begin
///
/// Mean of start and end, and mean over texts.
///
/// # Panics
/// If the shapes do not fit.
pub fn span_divergence(
    student: &[f32],
    teacher: &[f32],
    starts: &[usize],
    temperature: f32,
) -> Loss {
    rows(student, teacher, 2);
    let columns = text_columns(student, starts).into_iter().flatten();
    mean_divergence(student, teacher, columns, temperature)
}

/// Where the logits of one softmax lie.
type Cells = StepBy<Range<usize>>;

fn row_cells(row: usize, width: usize) -> Cells {
    (row * width..(row + 1) * width).step_by(1)
}

/// The two columns of each text of `[tokens, 2]`.
fn text_columns(logits: &[f32], starts: &[usize]) -> Vec<[Cells; 2]> {
    assert_eq!(logits.len(), 2 * starts.last().copied().unwrap_or(0), "start and end a token");
    let columns = |span: &[usize]| [0, 1].map(|c| (2 * span[0] + c..2 * span[1]).step_by(2));
    starts.windows(2).map(columns).collect()
}

/// Adds `share` of the cross-entropy of one softmax against `class`.
fn add_cross_entropy(loss: &mut Loss, logits: &[f32], cells: Cells, class: u32, share: f64) {
    let class = class as usize;
    let logs = log_softmax(cells.clone().map(|i| logits[i] as f64), 1.0);
    assert!(class < logs.len(), "class {class} of {}", logs.len());
    loss.value -= share * logs[class];
    for (c, (i, log)) in cells.zip(logs).enumerate() {
        let hit = if c == class { 1.0 } else { 0.0 };
        loss.grad[i] = (share * (log.exp() - hit)) as f32;
    }
}

/// `T² · KL(teacher ‖ student)`, mean over softmaxes.
fn mean_divergence(
    student: &[f32],
    teacher: &[f32],
    softmaxes: impl Iterator<Item = Cells> + Clone,
    temperature: f32,
) -> Loss {
    let mut loss = Loss::zero(student.len());
    let temperature = temperature as f64;
    let share = temperature / softmaxes.clone().count() as f64;
    for cells in softmaxes {
        let logs = |x: &[f32]| log_softmax(cells.clone().map(|i| x[i] as f64), temperature);
        let (value, difference) = kullback_leibler(&logs(student), &logs(teacher));
        loss.value += share * temperature * value;
        for (i, d) in cells.zip(difference) {
            loss.grad[i] = (share * d) as f32;
        }
    }
    loss
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use crate::model::testing::{distance, gaussian};

    fn assert_near(found: f64, expected: f64) {
        assert!((found - expected).abs() < 2e-6, "{found}, expected {expected}");
    }

    fn assert_all_near(found: &[f32], expected: &[f64]) {
        assert_eq!(found.len(), expected.len());
        found.iter().zip(expected).for_each(|(f, e)| assert_near(*f as f64, *e));
    }

    /// §11.1, whose gradients at temperature 2 are without T².
    #[test]
    fn divergences_are_those_of_the_notes() {
        let (s, t) = ([1.0, 0.0], [2.0, 0.0]);
        let loss = divergence(&s, &t, 2, 1.0);
        assert_near(loss.value, 0.067131);
        assert_all_near(&loss.grad, &[-0.149738, 0.149738]);
        let loss = divergence(&s, &t, 2, 2.0);
        assert_near(loss.value, 0.105378);
        assert_all_near(&loss.grad, &[4.0 * -0.054300, 4.0 * 0.054300]);
        let loss = divergence(&[0.0, 0.0, 1.0], &[2.0, 1.0, 0.0], 3, 1.0);
        assert_near(loss.value, 0.629019);
        assert_all_near(&loss.grad, &[-0.453299, -0.032787, 0.486086]);
    }

    /// §11.1: against a softmax as target, cross-entropy is a mean over classes.
    #[test]
    fn cross_entropies_are_those_of_the_notes() {
        let p = 0.880797;
        let of = |class| cross_entropy(&[1.0, 0.0], 2, &[Some(class)]);
        assert_near(p * of(0).value + (1.0 - p) * of(1).value, 0.432465);
        assert_all_near(&of(0).grad, &[-0.268941, 0.268941]);
        assert_all_near(&of(1).grad, &[0.731059, -0.731059]);
    }

    #[test]
    fn losses_are_means_over_rows() {
        let (x, y) = (gaussian(12, 1), gaussian(12, 2));
        let both = divergence(&x, &y, 3, 1.5);
        let one = |r: usize| divergence(&x[3 * r..3 * r + 3], &y[3 * r..3 * r + 3], 3, 1.5);
        assert_near(both.value, (0..4).map(|r| one(r).value).sum::<f64>() / 4.0);
        let grad: Vec<f32> = (0..4).flat_map(|r| one(r).grad).map(|g| g / 4.0).collect();
        assert!(distance(&both.grad, &grad) < 1e-6);
        assert_near(squares(&[1.0, 2.0, 3.0], &[0.0, 2.0, 5.0]).value, 5.0 / 3.0);
    }

    #[test]
    fn rows_without_a_class_do_not_count() {
        let x = gaussian(9, 3);
        let loss = cross_entropy(&x, 3, &[None, Some(2), None]);
        let alone = cross_entropy(&x[3..6], 3, &[Some(2)]);
        assert_eq!(loss.value, alone.value);
        assert_eq!(loss.grad, [&[0.0; 3], alone.grad.as_slice(), &[0.0; 3]].concat());
        assert_eq!(cross_entropy(&x, 3, &[None; 3]), Loss::zero(9));
        assert_eq!(span_cross_entropy(&x[..8], &[0, 1, 4], &[None; 2]), Loss::zero(8));
    }

    #[test]
    fn nothing_to_learn_from_the_teacher_itself() {
        let x: Vec<f32> = gaussian(24, 4).iter().map(|x| 5.0 * x).collect();
        assert_nothing(&divergence(&x, &x, 6, 2.0));
        assert_nothing(&span_divergence(&x, &x, &[0, 5, 12], 2.0));
        assert_nothing(&squares(&x, &x));
        // One logit says nothing, whatever it is.
        assert_nothing(&divergence(&x, &gaussian(24, 5), 1, 2.0));
    }

    #[test]
    fn gradients_are_their_differences() {
        let (x, y) = (gaussian(20, 6), gaussian(20, 7));
        for temperature in [0.7, 1.0, 3.0] {
            assert_differences(&x, 1e-2, |x| divergence(x, &y, 5, temperature));
            assert_differences(&x, 1e-2, |x| span_divergence(x, &y, &[0, 3, 4, 10], temperature));
        }
        assert_differences(&x, 1e-2, |x| squares(x, &y));
        let classes = [Some(4), None, Some(0), Some(4)];
        assert_differences(&x, 1e-2, |x| cross_entropy(x, 5, &classes));
        let spans = [Some((0, 2)), None, Some((5, 5))];
        assert_differences(&x, 1e-2, |x| span_cross_entropy(x, &[0, 3, 4, 10], &spans));
    }

    #[test]
    fn spans_are_chosen_over_the_tokens_of_a_text() {
        // Start logits of the second text 0, ln 3; end logits equal. The first text has no span.
        let logits = [9.0, -7.0, 0.0, 1.0, 3f32.ln(), 1.0];
        let loss = span_cross_entropy(&logits, &[0, 1, 3], &[None, Some((1, 0))]);
        assert_near(loss.value, ((4.0f64 / 3.0).ln() + 2.0f64.ln()) / 2.0);
        assert_all_near(&loss.grad, &[0.0, 0.0, 0.125, -0.25, -0.125, 0.25]);
    }

    #[test]
    fn span_divergence_is_the_mean_of_its_columns() {
        let (x, y) = (gaussian(14, 8), gaussian(14, 9));
        let starts = [0, 3, 7];
        let mut sum = 0.0;
        for span in starts.windows(2) {
            for column in 0..2 {
                let of =
                    |x: &[f32]| (span[0]..span[1]).map(|t| x[2 * t + column]).collect::<Vec<_>>();
                sum += divergence(&of(&x), &of(&y), span[1] - span[0], 2.0).value;
            }
        }
        assert_near(span_divergence(&x, &y, &starts, 2.0).value, sum / 4.0);
    }

    #[test]
    fn far_logits_stay_finite() {
        let (x, y) = ([1e4, 0.0, -1e4], [-1e4, 0.0, 1e4]);
        let loss = divergence(&x, &y, 3, 1.0);
        assert_near(loss.value, 2e4);
        assert!(loss.grad.iter().all(|g| g.is_finite()));
        assert_near(cross_entropy(&x, 3, &[Some(2)]).value, 2e4);
    }

    #[test]
    fn nothing_has_no_loss() {
        assert_eq!(cross_entropy(&[], 3, &[]), Loss::zero(0));
        assert_eq!(divergence(&[], &[], 3, 1.0), Loss::zero(0));
        assert_eq!(squares(&[], &[]), Loss::zero(0));
        assert_eq!(span_cross_entropy(&[], &[0], &[]), Loss::zero(0));
        assert_eq!(span_divergence(&[], &[], &[0], 1.0), Loss::zero(0));
    }

    #[test]
    #[should_panic(expected = "class 3 of 3")]
    fn a_class_is_below_the_width() {
        cross_entropy(&[0.0; 3], 3, &[Some(3)]);
    }
}
