//! Which hidden state of the student is compared with which of the teacher.
//!
//! Hidden states are numbered as everywhere: 0 behind the embeddings, `l` behind layer `l` of `1..=depth`.

use serde::{Deserialize, Serialize};

/// How layers of a student find those of its teacher.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Matching {
    /// At the same relative depth (TinyBERT; distillation notes, §1.2).
    Uniform,
    /// The nearest state (CoFi notes, §4, unrestricted).
    Dynamic,
    /// The nearest state below the last match, from the top down: safer with little data (CoFi notes, §4,
    /// ordered).
    Ordered,
}

/// Pairs of hidden states to compare, `(teacher, student)`, by teacher from the bottom up.
///
/// - `teacher_layers`: hidden states to match, of `1..=teacher_depth`; see [`watched_layers`]
/// - `student_alive`: `[student_depth]`, by layer: attention or feed-forward block is left. A dead layer hands
///   on the state below, so [`Matching::Dynamic`] and [`Matching::Ordered`] pass it over
/// - `distance`: of a teacher's hidden state to a student's, by their indices; uniform matching asks for none
///
/// A teacher's state without a candidate is left out: when no layer is alive, none is below the last match, or
/// (uniform) another is nearer to its student's depth. Uniform matching of all teacher layers is TinyBERT's
/// `g(m) = m · L / M`; halves go up.
///
/// # Panics
/// If `student_alive` is not of `student_depth`, or a layer not of the teacher.
pub fn matched_layers(
    matching: Matching,
    teacher_layers: &[usize],
    student_alive: &[bool],
    distance: impl Fn(usize, usize) -> f64,
    teacher_depth: usize,
    student_depth: usize,
) -> Vec<(usize, usize)> {
    assert_eq!(student_alive.len(), student_depth, "every layer of the student lives or not");
    let mut teachers = teacher_layers.to_vec();
    teachers.sort_unstable();
    assert!(teachers.iter().all(|&t| (1..=teacher_depth).contains(&t)), "layers of the teacher");
    if matching == Matching::Uniform {
        return uniform(&teachers, teacher_depth, student_depth);
    }
    let mut pairs = Vec::new();
    let mut below = student_depth + 1;
    for &teacher in teachers.iter().rev() {
        // From the top: of equals, the upper one leaves more to the rest.
        let alive = (1..below).rev().filter(|&s| student_alive[s - 1]);
        let distances = alive.map(|s| (s, distance(teacher, s)));
        let Some((student, _)) = distances.min_by(|a, b| a.1.total_cmp(&b.1)) else { continue };
        pairs.push((teacher, student));
        if matching == Matching::Ordered {
            below = student;
        }
    }
    pairs.reverse();
    pairs
}

/// Each teacher layer at the student layer of its relative depth; of those at one student layer the nearest,
/// of equals the upper.
fn uniform(teachers: &[usize], teacher_depth: usize, student_depth: usize) -> Vec<(usize, usize)> {
    let mut pairs: Vec<(usize, usize)> = Vec::new();
    if student_depth == 0 {
        return pairs;
    }
    let off = |(t, s): (usize, usize)| (t * student_depth).abs_diff(s * teacher_depth);
    for &teacher in teachers {
        let student = rounded(teacher * student_depth, teacher_depth).max(1);
        let pair = (teacher, student);
        match pairs.last_mut() {
            Some(last) if last.1 == student => {
                if off(pair) <= off(*last) {
                    *last = pair;
                }
            }
            _ => pairs.push(pair),
        }
    }
    pairs
}

/// The hidden states of a teacher that are matched: four, evenly spread, from 12 layers on, else three, and
/// the last always (CoFi notes, §4: 3, 6, 9, 12 of 12; distillation notes, §10.2: 2, 4, 6 of 6).
pub fn watched_layers(depth: usize) -> Vec<usize> {
    let count = if depth >= 12 { 4 } else { 3 }.min(depth);
    (1..=count).map(|i| rounded(i * depth, count)).collect()
}

/// `a / b`, halves up.
fn rounded(a: usize, b: usize) -> usize {
    (2 * a + b) / (2 * b)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(
        matching: Matching,
        teachers: &[usize],
        alive: &[bool],
        depth: usize,
        distance: impl Fn(usize, usize) -> f64,
    ) -> Vec<(usize, usize)> {
        matched_layers(matching, teachers, alive, distance, depth, alive.len())
    }

    fn by_depth(teachers: &[usize], depth: usize, student_depth: usize) -> Vec<(usize, usize)> {
        let asked = |_, _| panic!("uniform matching looks at no state");
        run(Matching::Uniform, teachers, &vec![true; student_depth], depth, asked)
    }

    #[test]
    fn watched_layers_are_spread_evenly() {
        let of = |depth| watched_layers(depth);
        assert_eq!((of(12), of(24)), (vec![3, 6, 9, 12], vec![6, 12, 18, 24]));
        assert_eq!((of(6), of(4), of(3)), (vec![2, 4, 6], vec![1, 3, 4], vec![1, 2, 3]));
        assert_eq!((of(2), of(1), of(0)), (vec![1, 2], vec![1], vec![]));
    }

    #[test]
    fn uniform_matching_is_tinybert_s() {
        let all: Vec<usize> = (1..=12).collect();
        assert_eq!(by_depth(&all, 12, 4), [(3, 1), (6, 2), (9, 3), (12, 4)]);
        let every_second = (1..=6).map(|s| (2 * s, s)).collect::<Vec<_>>();
        assert_eq!(by_depth(&all, 12, 6), every_second);
        let same = (1..=12).map(|s| (s, s)).collect::<Vec<_>>();
        assert_eq!(by_depth(&all, 12, 12), same);
    }

    #[test]
    fn uniform_matching_rounds_and_takes_a_student_once() {
        assert_eq!(by_depth(&[3, 6, 9, 12], 12, 6), [(3, 2), (6, 3), (9, 5), (12, 6)]);
        assert_eq!(by_depth(&[2, 4, 6], 6, 4), [(2, 1), (4, 3), (6, 4)]);
        // 3, 6, 9 of 12 are 0.75, 1.5, 2.25 of 3.
        assert_eq!(by_depth(&[3, 6, 9, 12], 12, 3), [(3, 1), (9, 2), (12, 3)]);
        assert_eq!(by_depth(&[3, 6, 9, 12], 12, 1), [(12, 1)]);
        assert_eq!(by_depth(&[3, 6], 6, 0), []);
        assert_eq!(by_depth(&[1, 2], 2, 4), [(1, 2), (2, 4)]);
    }

    /// Distance to the student layer that `nearest` names.
    fn to(nearest: fn(usize) -> usize) -> impl Fn(usize, usize) -> f64 {
        move |t, s| (nearest(t) as f64 - s as f64).abs()
    }

    #[test]
    fn dynamic_matching_takes_the_nearest_alive_layer() {
        let alive = [true, true, false, true, true, true];
        let found = run(Matching::Dynamic, &[2, 4, 6], &alive, 6, to(|_| 5));
        assert_eq!(found, [(2, 5), (4, 5), (6, 5)]);
        // Layer 3 is nearest but dead; 2 and 4 are equally near.
        let found = run(Matching::Dynamic, &[2, 6], &alive, 6, to(|t| t / 2));
        assert_eq!(found, [(2, 1), (6, 4)]);
    }

    #[test]
    fn ordered_matching_goes_down_and_drops_what_is_left() {
        let found = run(Matching::Ordered, &[6, 2, 4], &[true; 6], 6, to(|_| 5));
        assert_eq!(found, [(2, 3), (4, 4), (6, 5)]);
        let found = run(Matching::Ordered, &[2, 4, 6], &[true; 6], 6, to(|_| 2));
        assert_eq!(found, [(4, 1), (6, 2)]);
        let alive = [false, true, false, true, false, false];
        let found = run(Matching::Ordered, &[2, 4, 6], &alive, 6, to(|t| t));
        assert_eq!(found, [(4, 2), (6, 4)]);
    }

    #[test]
    fn a_student_without_layers_has_no_match() {
        for matching in [Matching::Dynamic, Matching::Ordered] {
            assert_eq!(run(matching, &[1, 2], &[false; 3], 2, to(|t| t)), []);
            assert_eq!(run(matching, &[1, 2], &[], 2, to(|t| t)), []);
        }
    }

    #[test]
    fn a_distance_that_is_no_number_is_never_the_nearest() {
        let distance = |_, s| if s == 2 { f64::NAN } else { s as f64 };
        assert_eq!(run(Matching::Dynamic, &[1], &[true; 3], 1, distance), [(1, 1)]);
    }

    #[test]
    fn names_in_recipes_are_lower_case() {
        #[derive(Deserialize)]
        struct Recipe {
            matching: Vec<Matching>,
        }
        let recipe: Recipe =
            toml::from_str("matching = ['uniform', 'dynamic', 'ordered']").expect("names");
        assert_eq!(recipe.matching, [Matching::Uniform, Matching::Dynamic, Matching::Ordered]);
    }

    proptest! {
        #[test]
        fn ordered_matches_rise_strictly_over_alive_layers(
            alive in prop::collection::vec(any::<bool>(), 0..9),
            distances in prop::collection::vec(0.0f64..1.0, 13 * 9),
        ) {
            let distance = |t: usize, s: usize| distances[t * 9 + s];
            let found = run(Matching::Ordered, &watched_layers(12), &alive, 12, distance);
            prop_assert!(found.windows(2).all(|p| p[0].0 < p[1].0 && p[0].1 < p[1].1));
            prop_assert!(found.iter().all(|&(_, s)| alive[s - 1]));
            // The top one is free to choose.
            let best = (1..=alive.len()).filter(|s| alive[s - 1])
                .min_by(|&a, &b| distance(12, a).total_cmp(&distance(12, b)));
            prop_assert_eq!(found.last().copied(), best.map(|s| (12, s)));
        }
    }
}
