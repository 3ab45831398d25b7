//! Labels as written in a file to what the model's head puts out.

use std::collections::BTreeSet;
use std::path::Path;

use crate::data::tables::Example;
use crate::error::{Error, Result};

/// What the model should answer, one entry per example.
#[derive(Debug, Clone, PartialEq)]
pub enum Targets {
    /// Class ids, each below the number of labels of the model.
    Classes(Vec<u32>),
    /// Finite scores, in the unit of the file.
    Scores(Vec<f32>),
    /// By token of the text as it was tokenized, special tokens included: the class id of the word that
    /// begins there; None for the rest of a word and for special tokens.
    Tokens(Vec<Vec<Option<u32>>>),
    /// First and last token of the answer, counted in the text as it was tokenized; `(0, 0)`, the first
    /// special token, for a question without an answer (SQuAD 2); None where truncation cut it off.
    Spans(Vec<Option<(u32, u32)>>),
}

impl Targets {
    /// Those of the examples at `rows`, in that order.
    pub fn select(&self, rows: &[usize]) -> Targets {
        match self {
            Targets::Classes(all) => Targets::Classes(rows.iter().map(|&r| all[r]).collect()),
            Targets::Scores(all) => Targets::Scores(rows.iter().map(|&r| all[r]).collect()),
            Targets::Tokens(all) => Targets::Tokens(rows.iter().map(|&r| all[r].clone()).collect()),
            Targets::Spans(all) => Targets::Spans(rows.iter().map(|&r| all[r]).collect()),
        }
    }
}

/// Class order of GLUE for models that name their labels `LABEL_0`, `LABEL_1`, …; MNLI's is the
/// order of the `glue` and `xnli` data sets on the Hugging Face hub.
const GLUE: [&[&str]; 2] =
    [&["entailment", "not_entailment"], &["entailment", "neutral", "contradiction"]];

/// The targets of `examples` for a model with the labels `id2label` (index = class id).
///
/// All labels of a file are read in the same way, the first of these that fits them all: names of
/// `id2label` exactly; the same in any case; class ids; GLUE's names in GLUE's order if `id2label`
/// is generic. With `regression`, labels are numbers and `id2label` is not looked at.
///
/// - `path`: the file, for messages
///
/// # Errors
/// [`Error::Mismatch`] when a row has no label, a label is no number (regression), or the labels
/// fit the model in none of these ways.
pub fn targets(
    examples: &[Example],
    id2label: &[String],
    regression: bool,
    path: &Path,
) -> Result<Targets> {
    let labels: Vec<(&str, usize)> = examples
        .iter()
        .map(|e| match &e.label {
            Some(label) => Ok((label.as_str(), e.line)),
            None => Err(Error::Mismatch {
                found: format!("{}: line {} has no label", path.display(), e.line),
                expected: "every row needs one".into(),
                advice: "fill it in, drop the row, or name the column with --label-column",
            }),
        })
        .collect::<Result<_>>()?;

    if regression {
        let scores = labels.iter().map(|&(label, line)| score(label, line, path));
        return Ok(Targets::Scores(scores.collect::<Result<_>>()?));
    }
    let names = || labels.iter().map(|(label, _)| *label);
    class_ids(names(), id2label)
        .or_else(|| {
            let glue =
                GLUE.iter().filter(|names| names.len() == id2label.len() && is_generic(id2label));
            let ids = |glue| names().map(|label| position_in_any_case(glue, label)).collect();
            glue.map(|names| ids(names)).find_map(|ids: Option<Vec<u32>>| ids)
        })
        .map(Targets::Classes)
        .ok_or_else(|| mismatch(&labels, id2label, path))
}

/// The class ids of all `labels`, read in the same way, the first of these that fits them all: names of
/// `id2label` exactly; the same in any case; class ids.
pub(super) fn class_ids<'a>(
    labels: impl Iterator<Item = &'a str> + Clone,
    id2label: &[String],
) -> Option<Vec<u32>> {
    let exactly = |label: &str| id2label.iter().position(|name| name == label);
    let exactly = |label| exactly(label).map(|id| id as u32);
    // Names before ids: a model may call its classes `1` to `5`.
    let ids: Option<Vec<u32>> = labels.clone().map(exactly).collect();
    ids.or_else(|| labels.clone().map(|label| position_in_any_case(id2label, label)).collect())
        .or_else(|| labels.clone().map(|label| class_id(label, id2label.len())).collect())
}

fn score(label: &str, line: usize, path: &Path) -> Result<f32> {
    label.parse().ok().filter(|score: &f32| score.is_finite()).ok_or_else(|| Error::Mismatch {
        found: format!("{}: line {line} has label `{label}`", path.display()),
        expected: "the model answers in numbers, not classes, and is judged by numbers".into(),
        advice: "name another column with --label-column, or use data of the model's task",
    })
}

pub(super) fn position_in_any_case(names: &[impl AsRef<str>], label: &str) -> Option<u32> {
    let label = label.to_lowercase();
    names.iter().position(|name| name.as_ref().to_lowercase() == label).map(|id| id as u32)
}

/// `1`, and `1.0`, which is how pandas writes integers of a column with gaps; below `classes`.
pub(super) fn class_id(label: &str, classes: usize) -> Option<u32> {
    let id = label.strip_suffix(".0").unwrap_or(label).parse().ok();
    id.filter(|&id: &u32| (id as usize) < classes)
}

fn is_generic(id2label: &[String]) -> bool {
    id2label.iter().enumerate().all(|(i, name)| *name == format!("LABEL_{i}"))
}

fn mismatch(labels: &[(&str, usize)], id2label: &[String], path: &Path) -> Error {
    let found: BTreeSet<&str> = labels.iter().map(|(label, _)| *label).collect();
    Error::Mismatch {
        found: format!("{} has the labels {}", path.display(), list(found.into_iter())),
        expected: format!("the model has {}", list(id2label.iter().map(String::as_str))),
        advice: WRITE_NAMES,
    }
}

pub(super) const WRITE_NAMES: &str =
    "write the model's names or class ids into the file, or set `id2label` in config.json";

/// The first eight of `names`, and how many more there are.
pub(super) fn list<'a>(names: impl ExactSizeIterator<Item = &'a str>) -> String {
    let rest = names.len().saturating_sub(8);
    let shown: Vec<String> =
        names.take(8).map(|n| format!("`{}`", n.chars().take(40).collect::<String>())).collect();
    match rest {
        0 => shown.join(", "),
        _ => format!("{} and {rest} more", shown.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn examples(labels: &[&str]) -> Vec<Example> {
        let label = |label: &str| Some(label.to_string()).filter(|l| !l.is_empty());
        let example =
            |(i, l): (usize, &&str)| Example { label: label(l), line: i + 2, ..Default::default() };
        labels.iter().enumerate().map(example).collect()
    }

    fn classes(labels: &[&str], id2label: &[&str]) -> Result<Targets> {
        let id2label: Vec<String> = id2label.iter().map(|s| s.to_string()).collect();
        targets(&examples(labels), &id2label, false, Path::new("dev.tsv"))
    }

    #[track_caller]
    fn ids(labels: &[&str], id2label: &[&str], expected: &[u32]) {
        assert_eq!(classes(labels, id2label).unwrap(), Targets::Classes(expected.to_vec()));
    }

    const GENERIC: [&str; 3] = ["LABEL_0", "LABEL_1", "LABEL_2"];

    #[test]
    fn integers_are_class_ids() {
        ids(&["1", "0", "1.0"], &["negative", "positive"], &[1, 0, 1]);
    }

    #[test]
    fn names_are_the_models_names() {
        ids(&["no", "yes"], &["yes", "no"], &[1, 0]);
    }

    #[test]
    fn case_matters_only_between_names_that_differ_by_it() {
        ids(&["POSITIVE", "negative"], &["Negative", "Positive"], &[1, 0]);
        ids(&["us", "US"], &["US", "us"], &[1, 0]);
    }

    #[test]
    fn a_class_called_1_goes_before_the_class_with_id_1() {
        ids(&["1", "5", "3"], &["1", "2", "3", "4", "5"], &[0, 4, 2]);
    }

    #[test]
    fn nameless_models_have_glues_order() {
        ids(&["entailment", "not_entailment"], &GENERIC[..2], &[0, 1]);
        ids(&["contradiction", "neutral", "entailment"], &GENERIC, &[2, 1, 0]);
        ids(&["entailment", "entailment"], &GENERIC, &[0, 0]);
    }

    #[test]
    fn unknown_names_show_both_sides() {
        let err = classes(&["good", "bad", "good"], &GENERIC[..2]).unwrap_err();
        assert_eq!(
            err.to_string(),
            "dev.tsv has the labels `bad`, `good`, but the model has `LABEL_0`, `LABEL_1`; \
             write the model's names or class ids into the file, or set `id2label` in config.json"
        );
    }

    #[test]
    fn glues_order_is_not_assumed_for_other_numbers_of_classes() {
        assert!(classes(&["entailment", "neutral"], &GENERIC[..2]).is_err());
    }

    #[test]
    fn an_id_the_model_lacks_is_an_error() {
        assert!(classes(&["0", "2"], &["a", "b"]).is_err());
        assert!(classes(&["-1", "0"], &["a", "b"]).is_err());
        assert!(classes(&["0.5"], &["a", "b"]).is_err());
    }

    #[test]
    fn many_labels_are_cut_short() {
        let labels: Vec<String> = (10..30).map(|i| i.to_string()).collect();
        let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        let err = classes(&labels, &["a"]).unwrap_err().to_string();
        assert!(err.contains("`17` and 12 more, but the model has `a`;"), "{err}");
    }

    #[test]
    fn a_missing_label_names_its_line() {
        let err = classes(&["1", ""], &["a", "b"]).unwrap_err();
        assert_eq!(
            err.to_string(),
            "dev.tsv: line 3 has no label, but every row needs one; \
             fill it in, drop the row, or name the column with --label-column"
        );
    }

    #[test]
    fn regression_reads_numbers_and_nothing_else() {
        let scores = |labels: &[&str]| targets(&examples(labels), &[], true, Path::new("dev.tsv"));
        assert_eq!(scores(&["5.000", "3"]).unwrap(), Targets::Scores(vec![5.0, 3.0]));
        for bad in ["high", "nan", "inf", "1e99"] {
            let err = scores(&["1", bad]).unwrap_err().to_string();
            assert!(err.starts_with(&format!("dev.tsv: line 3 has label `{bad}`")), "{err}");
        }
    }
}
