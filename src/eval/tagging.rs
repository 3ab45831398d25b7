//! Metrics of labelled tokens.
//!
//! Tokens of a text depend on each other: intervals resample texts, not tokens, and are None where no token
//! has a label.

use super::metrics::{Score, bootstrap, ratio};

/// Share of labelled tokens that got their class, in [0, 1].
///
/// - `predicted`, `actual`: class ids, by text and labelled token
pub fn accuracy(predicted: &[Vec<u32>], actual: &[Vec<u32>], seed: u64) -> Option<Score> {
    let (hits, all) = token_counts(predicted, actual);
    ratio(&hits, &all, seed)
}

/// What [`accuracy`] is the ratio of, by text.
pub(super) fn token_counts(predicted: &[Vec<u32>], actual: &[Vec<u32>]) -> (Vec<f64>, Vec<f64>) {
    let count = |(p, a): (&Vec<u32>, &Vec<u32>)| {
        (p.iter().zip(a).filter(|(p, a)| p == a).count() as f64, a.len() as f64)
    };
    predicted.iter().zip(actual).map(count).unzip()
}

/// Mean over classes of their F1, in [0, 1]; the classes are those predicted or there.
///
/// - `predicted`, `actual`: class ids, by text and labelled token
pub fn macro_f1(predicted: &[Vec<u32>], actual: &[Vec<u32>], seed: u64) -> Option<Score> {
    let classes = predicted.iter().chain(actual).flatten().max().map_or(0, |c| *c as usize + 1);
    fn slices(rows: &[Vec<u32>]) -> Vec<&[u32]> {
        rows.iter().map(Vec::as_slice).collect()
    }
    bootstrap(&slices(predicted), &slices(actual), seed, |predicted, actual| {
        // By class: right, predicted and there together.
        let mut counts = vec![[0u64; 2]; classes];
        for (&p, &a) in predicted.iter().zip(actual).flat_map(|(p, a)| p.iter().zip(*a)) {
            counts[p as usize][1] += 1;
            counts[a as usize][1] += 1;
            counts[p as usize][0] += u64::from(p == a);
        }
        let seen = counts.iter().filter(|c| c[1] > 0);
        let f1 = seen.clone().map(|c| 2.0 * c[0] as f64 / c[1] as f64);
        Some(f1.sum::<f64>() / seen.count() as f64)
    })
}

/// Micro-averaged F1 of entities, in [0, 1], as seqeval computes it unless told to be strict: an entity is
/// right if its type, start and end are; a stray `I-` begins one. None without any entity.
///
/// - `predicted`, `actual`: class ids, by text and labelled token; an id without a name is outside
/// - `names`: by class id, [`is_bio`]
pub fn entity_f1(
    predicted: &[Vec<u32>],
    actual: &[Vec<u32>],
    names: &[String],
    seed: u64,
) -> Option<Score> {
    let (right, all) = entity_counts(predicted, actual, names);
    ratio(&right, &all, seed)
}

/// What [`entity_f1`] is the ratio of, by text: twice the entities that are right, and those predicted or there.
pub(super) fn entity_counts(
    predicted: &[Vec<u32>],
    actual: &[Vec<u32>],
    names: &[String],
) -> (Vec<f64>, Vec<f64>) {
    let count = |(predicted, actual): (&Vec<u32>, &Vec<u32>)| {
        let (predicted, actual) = (entities(predicted, names), entities(actual, names));
        let right = predicted.iter().filter(|e| actual.contains(e)).count();
        (2.0 * right as f64, (predicted.len() + actual.len()) as f64)
    };
    predicted.iter().zip(actual).map(count).unzip()
}

/// Whether `names` are those of a model for entities: `O`, `B-…` and `I-…` only.
pub fn is_bio(names: &[String]) -> bool {
    names.iter().all(|n| n == "O" || kind_of(n).is_some())
        && names.iter().any(|n| kind_of(n).is_some())
}

/// `PER` of `B-PER` and `I-PER`.
fn kind_of(name: &str) -> Option<&str> {
    name.strip_prefix("B-").or_else(|| name.strip_prefix("I-"))
}

/// First and last token of each entity, and its type.
fn entities<'a>(classes: &[u32], names: &'a [String]) -> Vec<(usize, usize, &'a str)> {
    let mut found: Vec<(usize, usize, &str)> = Vec::new();
    let mut open = false;
    for (i, &class) in classes.iter().enumerate() {
        let name = names.get(class as usize).map_or("O", String::as_str);
        match (kind_of(name), found.last_mut()) {
            (None, _) => open = false,
            (Some(kind), Some(last)) if open && name.starts_with("I-") && last.2 == kind => {
                last.1 = i;
            }
            (Some(kind), _) => {
                found.push((i, i, kind));
                open = true;
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::eval::metrics;

    const NAMES: [&str; 5] = ["O", "B-X", "I-X", "B-Y", "I-Y"];

    fn names() -> Vec<String> {
        NAMES.map(String::from).to_vec()
    }

    fn ids(tags: &str) -> Vec<u32> {
        let id = |tag| NAMES.iter().position(|n| *n == tag).map_or(9, |i| i as u32);
        tags.split_whitespace().map(id).collect()
    }

    #[test]
    fn entities_are_seqevals() {
        // seqeval 1.2.2: get_entities; `none` is no class of the model, which is outside.
        for (tags, expected) in [
            ("B-X I-X O B-Y", vec![(0, 1, "X"), (3, 3, "Y")]),
            ("B-X B-X I-X", vec![(0, 0, "X"), (1, 2, "X")]),
            ("O I-X I-X O I-Y", vec![(1, 2, "X"), (4, 4, "Y")]),
            ("B-X I-Y I-Y I-X", vec![(0, 0, "X"), (1, 2, "Y"), (3, 3, "X")]),
            ("B-X O I-X", vec![(0, 0, "X"), (2, 2, "X")]),
            ("B-X none I-X", vec![(0, 0, "X"), (2, 2, "X")]),
            ("O O", vec![]),
            ("", vec![]),
        ] {
            assert_eq!(entities(&ids(tags), &names()), expected, "{tags}");
        }
    }

    #[test]
    fn token_metrics_by_hand() {
        let actual = [ids("B-X I-X O B-Y"), ids("O O"), ids("")];
        let predicted = [ids("B-X I-X O I-Y"), ids("B-X O"), ids("")];
        let value = |score: Option<Score>| score.expect("defined").value;
        // 4 of 6 tokens.
        assert_eq!(value(accuracy(&predicted, &actual, 0)), 4.0 / 6.0);
        // O: 2·2/(2+3), B-X: 2·1/(2+1), I-X: 1, B-Y: 0, I-Y: 0.
        let expected = (0.8 + 2.0 / 3.0 + 1.0) / 5.0;
        assert!((value(macro_f1(&predicted, &actual, 0)) - expected).abs() < 1e-12);
        // 2 of 3 predicted are right, both of those there are found: the stray I-Y is an entity.
        let f1 = value(entity_f1(&predicted, &actual, &names(), 0));
        assert!((f1 - 2.0 * (2.0 / 3.0) / (2.0 / 3.0 + 1.0)).abs() < 1e-12);
    }

    #[test]
    fn nothing_to_judge_is_none() {
        let nothing = [vec![], vec![]];
        assert_eq!(accuracy(&nothing, &nothing, 0), None);
        assert_eq!(macro_f1(&nothing, &nothing, 0), None);
        assert_eq!(entity_f1(&[ids("O")], &[ids("O")], &names(), 0), None);
    }

    #[test]
    fn only_o_b_and_i_are_bio() {
        let is = |names: &[&str]| is_bio(&names.iter().map(|n| n.to_string()).collect::<Vec<_>>());
        assert!(is(&["O", "B-PER", "I-PER"]) && is(&["B-A", "I-A"]) && is(&["I-LOC", "O"]));
        assert!(!is(&["O"]) && !is(&["NOUN", "VERB"]) && !is(&["O", "B-A", "S-A"]) && !is(&[]));
    }

    proptest! {
        /// Of one token a text, macro F1 is that of classes; its texts are its rows.
        #[test]
        fn texts_of_one_token_are_rows(rows in proptest::collection::vec((0u32..4, 0u32..4), 1..12)) {
            let (predicted, actual): (Vec<u32>, Vec<u32>) = rows.into_iter().unzip();
            let texts = |ids: &[u32]| ids.iter().map(|&id| vec![id]).collect::<Vec<_>>();
            let found = macro_f1(&texts(&predicted), &texts(&actual), 3).expect("defined");
            let expected = metrics::macro_f1(&predicted, &actual, 3).expect("defined");
            prop_assert!((found.value - expected.value).abs() < 1e-12);
            prop_assert!((found.low - expected.low).abs() < 1e-12);
            let found = accuracy(&texts(&predicted), &texts(&actual), 3).expect("defined");
            let expected = metrics::accuracy(&predicted, &actual).expect("defined");
            prop_assert!((found.value - expected.value).abs() < 1e-12);
        }

        #[test]
        fn entities_of_the_same_tags_are_all_right(tags in proptest::collection::vec(0u32..5, 1..9)) {
            let texts = [tags];
            if let Some(score) = entity_f1(&texts, &texts, &names(), 0) {
                prop_assert_eq!(score.value, 1.0);
            }
        }
    }
}
