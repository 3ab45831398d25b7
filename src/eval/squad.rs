//! Answers to questions, as the SQuAD script judges them (Rajpurkar et al. 2016, 2018).

use crate::data::tables::Span;
use crate::data::tokenizer::Origin;

/// Tokens of the longest answer, as in Transformers' run_qa.py.
const MAX_ANSWER: usize = 30;

/// A context and the answers that are right; none if it holds no answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Passage {
    pub context: String,
    pub answers: Vec<String>,
    /// By token of the question and the context.
    pub origins: Vec<Option<Origin>>,
}

impl Passage {
    pub fn new(context: &str, answers: &[Span], origins: Vec<Option<Origin>>) -> Passage {
        let answers = answers.iter().map(|a| a.text.clone()).collect();
        Passage { context: context.into(), answers, origins }
    }

    /// The text of the most likely answer: of all pairs of a start and an end in the context, at most 30
    /// tokens apart, the one whose logits have the largest sum. Empty if there is none, or, where
    /// `may_be_none`, if the first token, which stands for no answer, has a larger one.
    ///
    /// - `logits`: start and end, `[tokens, 2]`
    pub fn answer(&self, logits: &[f32], may_be_none: bool) -> String {
        let score = |first: usize, last: usize| logits[2 * first] + logits[2 * last + 1];
        let in_context = |i: usize| self.origins[i].filter(|o| o.in_pair);
        let tokens = self.origins.len();
        let mut best = None;
        let mut most = if may_be_none { score(0, 0) } else { f32::NEG_INFINITY };
        for first in (0..tokens).filter(|&i| in_context(i).is_some()) {
            let lasts =
                (first..tokens.min(first + MAX_ANSWER)).map_while(|l| Some((l, in_context(l)?)));
            for (last, origin) in lasts {
                // NaN is never larger.
                if score(first, last) > most {
                    most = score(first, last);
                    best = in_context(first).map(|o| (o.start as usize, origin.end as usize));
                }
            }
        }
        let Some((start, end)) = best else { return String::new() };
        self.context.chars().skip(start).take(end.saturating_sub(start)).collect()
    }
}

/// Whether `predicted` is one of `answers`, up to case, punctuation and articles; with no answers, whether
/// it is empty.
pub fn exact_match(predicted: &str, answers: &[String]) -> bool {
    let predicted = words(predicted);
    rightful(answers).contains(&predicted)
}

/// The largest F1 of the words that `predicted` shares with one of `answers`, in [0, 1].
pub fn f1(predicted: &str, answers: &[String]) -> f64 {
    let predicted = words(predicted);
    rightful(answers).iter().map(|answer| overlap(&predicted, answer)).fold(0.0, f64::max)
}

/// The words of each answer; no words where there is no answer with any.
fn rightful(answers: &[String]) -> Vec<Vec<String>> {
    let mut right: Vec<_> = answers.iter().map(|a| words(a)).filter(|w| !w.is_empty()).collect();
    if right.is_empty() {
        right.push(Vec::new());
    }
    right
}

fn overlap(predicted: &[String], answer: &[String]) -> f64 {
    if predicted.is_empty() || answer.is_empty() {
        return f64::from(u8::from(predicted.is_empty() && answer.is_empty()));
    }
    let mut left: Vec<&String> = answer.iter().collect();
    let shared = predicted.iter().filter(|word| {
        let at = left.iter().position(|w| w == word);
        at.map(|at| left.swap_remove(at)).is_some()
    });
    2.0 * shared.count() as f64 / (predicted.len() + answer.len()) as f64
}

/// Lower-cased, without punctuation (ASCII's) and articles, split at white space.
fn words(text: &str) -> Vec<String> {
    let lower = text.to_lowercase();
    let bare: String = lower.chars().filter(|c| !c.is_ascii_punctuation()).collect();
    // An article is a whole run of letters: `a` of `a–b` goes, of `ab` not (the script's `\b`).
    let mut kept = String::with_capacity(bare.len());
    let is_word = |c: char| c.is_alphanumeric();
    let mut rest = bare.as_str();
    while let Some(first) = rest.chars().next() {
        let end = rest.find(|c| is_word(c) != is_word(first)).unwrap_or(rest.len());
        let (run, after) = rest.split_at(end);
        kept.push_str(if ["a", "an", "the"].contains(&run) { " " } else { run });
        rest = after;
    }
    kept.split_whitespace().map(String::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|t| t.to_string()).collect()
    }

    #[test]
    fn words_are_normalised_as_by_the_script() {
        // transformers 4.46.3: squad_metrics.normalize_answer
        for (text, expected) in [
            ("The  Answer, of a Theme!", "answer of theme"),
            ("A–b an", "–b"),
            ("don't", "dont"),
            ("l’a", "l’"),
            ("U.S.A. (the)", "usa"),
            ("a.b a", "ab"),
            ("thea the", "thea"),
            ("ÉTÉ\u{a0}x", "été x"),
            ("the_a a_", "thea"),
            ("naïve an 3", "naïve 3"),
            ("The", ""),
        ] {
            assert_eq!(words(text).join(" "), expected, "{text}");
        }
    }

    #[test]
    fn scores_are_the_scripts() {
        // transformers 4.46.3: squad_metrics.compute_exact and compute_f1, the best of the answers
        for (predicted, right, exact, f) in [
            ("Rome", &["rome."][..], true, 1.0),
            ("in the Rome of old", &["Rome", "old Rome"], false, 0.6666666666666666),
            ("Rome Rome", &["Rome"], false, 0.6666666666666666),
            ("the", &[], true, 1.0),
            ("", &[], true, 1.0),
            ("Rome", &[], false, 0.0),
            ("", &["Rome"], false, 0.0),
            ("a", &["the"], true, 1.0),
            ("Rome", &["the", "Rome"], true, 1.0),
            ("x y", &["z"], false, 0.0),
            ("b a b c", &["c b b d"], false, 0.8571428571428571),
        ] {
            assert_eq!(exact_match(predicted, &answers(right)), exact, "{predicted}");
            assert!((f1(predicted, &answers(right)) - f).abs() < 1e-12, "{predicted}");
        }
    }

    /// [CLS] q [SEP] für · Rom · in · Rom [SEP]
    fn passage() -> Passage {
        let origin = |&(start, end): &(u32, u32)| Some(Origin { in_pair: true, start, end });
        let context = [(0, 3), (4, 7), (7, 10), (11, 14)];
        let question = [None, Some(Origin { in_pair: false, start: 0, end: 1 }), None];
        let origins =
            question.into_iter().chain(context.iter().map(origin)).chain([None]).collect();
        Passage { context: "für Rom in Rom".into(), answers: Vec::new(), origins }
    }

    /// Logits of 1 at these tokens, else 0.
    fn logits(starts: &[usize], ends: &[usize]) -> Vec<f32> {
        let mut logits = vec![0.0; 16];
        starts.iter().for_each(|i| logits[2 * i] = 1.0);
        ends.iter().for_each(|i| logits[2 * i + 1] = 1.0);
        logits
    }

    #[test]
    fn an_answer_is_cut_from_the_context() {
        let p = passage();
        assert_eq!(p.answer(&logits(&[4], &[6]), false), "Rom in Rom");
        assert_eq!(p.answer(&logits(&[4], &[4]), true), "Rom");
        // The end may not stand before the start; neither may stand in the question.
        assert_eq!(p.answer(&logits(&[5], &[3, 6]), false), " in Rom");
        assert_eq!(p.answer(&logits(&[1, 6], &[1, 7, 6]), false), "Rom");
        // The first token stands for no answer, if there may be none.
        assert_eq!(p.answer(&logits(&[0, 3], &[0]), true), "");
        assert_eq!(p.answer(&logits(&[0, 3], &[0, 3]), true), "");
        assert_eq!(p.answer(&logits(&[0, 3], &[0, 3]), false), "für");
    }

    #[test]
    fn an_answer_has_at_most_30_tokens() {
        let origin = |i| Some(Origin { in_pair: true, start: i, end: i + 1 });
        let passage = Passage {
            context: "x".repeat(40),
            answers: Vec::new(),
            origins: (0..40).map(origin).collect(),
        };
        let answer = |first: usize, last: usize| {
            let mut logits = vec![0.0; 80];
            (logits[2 * first], logits[2 * last + 1]) = (1.0, 1.0);
            passage.answer(&logits, false).len()
        };
        assert_eq!((answer(3, 32), answer(3, 33)), (30, 1));
    }

    #[test]
    fn numbers_that_are_none_make_no_answer() {
        assert_eq!(passage().answer(&[f32::NAN; 16], false), "");
        assert_eq!(passage().answer(&[f32::NAN; 16], true), "");
        let bare = Passage { origins: vec![None, None], ..passage() };
        assert_eq!(bare.answer(&[0.0; 4], false), "");
    }
}
