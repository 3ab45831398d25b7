//! Examples to what a model takes, and their labels to what its head should say of it.

use std::path::Path;

use rayon::prelude::*;

use crate::data::calibration::inputs;
use crate::data::labels::{
    Targets, WRITE_NAMES, class_id, class_ids, list, position_in_any_case, targets,
};
use crate::data::tables::{Annotation, Example, Span};
use crate::data::tokenizer::{Encoded, Origin, Tokenizer};
use crate::error::{Error, Result};
use crate::model::{Config, Task};

/// Examples as a model takes them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Tokenized {
    /// In the order of the examples; for sentence embeddings pairs are two texts, one after the other.
    pub encoded: Vec<Encoded>,
    /// By text and token; empty but for token classification and question answering.
    pub origins: Vec<Vec<Option<Origin>>>,
}

/// The examples as `config`'s model takes them, and what its head should say of each: the two steps
/// [`tokenize`] and [`label`] in one, for those who need no origins.
///
/// Targets are None where no example has a label, and for heads whose targets are not made here: masked
/// LM (see [`crate::data::masking`]), sentence embeddings and bare encoders.
///
/// # Errors
/// As [`tokenize`] and [`label`]. Labels that do not fit the task are an error; who wants the texts all
/// the same takes the two steps one by one.
pub fn prepare(
    examples: &[Example],
    config: &Config,
    tokenizer: &Tokenizer,
    max_tokens: usize,
    path: &Path,
) -> Result<(Vec<Encoded>, Option<Targets>)> {
    let tokenized = tokenize(examples, config, tokenizer, max_tokens)?;
    let labelled = examples.iter().any(|e| e.label.is_some() || e.annotation.is_some());
    let targets = match labelled {
        true => label(examples, config, &tokenized, path)?,
        false => None,
    };
    Ok((tokenized.encoded, targets))
}

/// Tokenizes `examples`, each in at most `max_tokens` tokens.
///
/// Words with tags are tokenized as the text they make with spaces between, which for BERT's tokenizers,
/// SentencePiece and byte-level tokenizers with `add_prefix_space` is the same as word by word. For
/// question answering, the context is cut and not the question.
///
/// # Errors
/// As [`Tokenizer::encode`].
pub fn tokenize(
    examples: &[Example],
    config: &Config,
    tokenizer: &Tokenizer,
    max_tokens: usize,
) -> Result<Tokenized> {
    if !matches!(config.task, Task::TokenClassification | Task::QuestionAnswering) {
        let encoded = tokenizer.encode_all(&inputs(examples, config), max_tokens)?;
        return Ok(Tokenized { encoded, origins: Vec::new() });
    }
    let encode = |e: &Example| tokenizer.encode_placed(&e.text, e.pair.as_deref(), max_tokens);
    let placed: Vec<_> = examples.par_iter().map(encode).collect::<Result<_>>()?;
    let (encoded, origins) = placed.into_iter().unzip();
    Ok(Tokenized { encoded, origins })
}

/// Whether `example` has the kind of label that a head for `task` is judged by.
pub fn is_labelled(example: &Example, task: Task) -> bool {
    match task {
        Task::SequenceClassification | Task::Embedding => example.label.is_some(),
        Task::TokenClassification => matches!(example.annotation, Some(Annotation::Tags(_))),
        Task::QuestionAnswering => matches!(example.annotation, Some(Annotation::Spans(_))),
        Task::MaskedLm | Task::Bare => false,
    }
}

/// What the head should say of every example; None for heads whose targets are not made here, as in
/// [`prepare`].
///
/// - `tokenized`: of the same `examples`, by [`tokenize`]
/// - `path`: the file, for messages
///
/// # Errors
/// [`Error::Mismatch`] when an example has no label, or one for another task, or one that the model does
/// not know; see [`targets`].
pub fn label(
    examples: &[Example],
    config: &Config,
    tokenized: &Tokenized,
    path: &Path,
) -> Result<Option<Targets>> {
    let id2label = config.label_names();
    match config.task {
        Task::SequenceClassification => {
            let other = examples.iter().find(|e| e.label.is_none() && e.annotation.is_some());
            if let Some(example) = other {
                return Err(unfit(example, config.task, path));
            }
            targets(examples, &id2label, config.regression, path).map(Some)
        }
        Task::TokenClassification => tokens(examples, &id2label, tokenized, path).map(Some),
        Task::QuestionAnswering => spans(examples, tokenized, path).map(Some),
        Task::Embedding | Task::MaskedLm | Task::Bare => Ok(None),
    }
}

fn tokens(
    examples: &[Example],
    id2label: &[String],
    tokenized: &Tokenized,
    path: &Path,
) -> Result<Targets> {
    let tags: Vec<&[String]> = examples.iter().map(|e| tags_of(e, path)).collect::<Result<_>>()?;
    let all = tags.iter().flat_map(|tags| tags.iter().map(String::as_str));
    let Some(ids) = class_ids(all, id2label) else {
        let lines = examples.iter().map(|e| e.line).zip(&tags);
        let tags = lines.flat_map(|(line, tags)| tags.iter().map(move |t| (t.as_str(), line)));
        return Err(unknown_tag(tags, id2label, path));
    };
    let mut ids = ids.as_slice();
    let mut targets = Vec::with_capacity(examples.len());
    for ((example, tags), origins) in examples.iter().zip(&tags).zip(&tokenized.origins) {
        let (classes, rest) = ids.split_at(tags.len());
        ids = rest;
        let first = first_pieces(&example.text, origins);
        targets.push(first.into_iter().map(|word| word.map(|w| classes[w])).collect());
    }
    Ok(Targets::Tokens(targets))
}

fn tags_of<'a>(example: &'a Example, path: &Path) -> Result<&'a [String]> {
    match &example.annotation {
        Some(Annotation::Tags(tags)) => Ok(tags),
        _ => Err(unfit(example, Task::TokenClassification, path)),
    }
}

/// By token: the word of `text`, counted from 0, that begins with it; None for tokens within a word, and
/// for those of no word. Words have one space between.
fn first_pieces(text: &str, origins: &[Option<Origin>]) -> Vec<Option<usize>> {
    // By character: its word; a space counts to the word behind it, as for some tokenizers it begins the
    // word's first token, or is a token of its own.
    let mut words = Vec::with_capacity(text.len());
    let mut word = 0;
    for c in text.chars() {
        word += usize::from(c == ' ');
        words.push(word);
    }
    let mut next = 0;
    let first = |origin: &Option<Origin>| {
        let word = *words.get(origin.filter(|o| !o.in_pair)?.start as usize)?;
        // The words in front of it made no token, as those of control characters only.
        let begins = word >= next;
        next = next.max(word + 1);
        begins.then_some(word)
    };
    origins.iter().map(first).collect()
}

fn spans(examples: &[Example], tokenized: &Tokenized, path: &Path) -> Result<Targets> {
    let target = |(example, origins): (&Example, &Vec<_>)| match &example.annotation {
        Some(Annotation::Spans(spans)) => Ok(match spans.first() {
            Some(span) => tokens_of(span, origins),
            None => Some((0, 0)),
        }),
        _ => Err(unfit(example, Task::QuestionAnswering, path)),
    };
    examples.iter().zip(&tokenized.origins).map(target).collect::<Result<_>>().map(Targets::Spans)
}

/// The first and the last token of `span` of the second text; None if it goes on behind the last token of
/// that text, which was cut there, or has no token.
fn tokens_of(span: &Span, origins: &[Option<Origin>]) -> Option<(u32, u32)> {
    let before = span.text.chars().take_while(|c| c.is_whitespace()).count();
    let start = span.start + before;
    let end = start + span.text.trim().chars().count();
    let context = || {
        let tokens = origins.iter().enumerate();
        tokens.filter_map(|(i, o)| o.filter(|o| o.in_pair).map(|o| (i as u32, o)))
    };
    let (first, _) = context().find(|(_, o)| o.end as usize > start)?;
    let (last, _) = context().rfind(|(_, o)| (o.start as usize) < end)?;
    let (_, kept) = context().next_back()?;
    (first <= last && end <= kept.end as usize).then_some((first, last))
}

fn unfit(example: &Example, task: Task, path: &Path) -> Error {
    let (needed, advice) = match task {
        Task::TokenClassification => (
            "tags",
            "give JSON lines with `tokens` and `ner_tags`, or name the lists with --text-column and \
             --label-column",
        ),
        Task::QuestionAnswering => (
            "answers",
            "give JSON lines with `question`, `context` and `answers`: \
             {\"text\": [\"Rome\"], \"answer_start\": [3]}",
        ),
        _ => ("label", "use data of the model's task"),
    };
    let found = match (&example.annotation, &example.label) {
        (Some(Annotation::Tags(_)), _) => "tags of words and ",
        (Some(Annotation::Spans(_)), _) => "answers in a context and ",
        (None, Some(_)) => "a label and ",
        (None, None) => "",
    };
    Error::Mismatch {
        found: format!("{}: line {} has {found}no {needed}", path.display(), example.line),
        expected: format!("the model is for {}", task.name()),
        advice,
    }
}

/// Of tags that fit the model in no way: the first that is no name of a class where any is one, else the
/// first that is no id.
fn unknown_tag<'a>(
    tags: impl Iterator<Item = (&'a str, usize)> + Clone,
    id2label: &[String],
    path: &Path,
) -> Error {
    let is_name = |tag: &str| position_in_any_case(id2label, tag).is_some();
    let names = tags.clone().any(|(tag, _)| is_name(tag));
    let known = |tag: &str| match names {
        true => is_name(tag),
        false => class_id(tag, id2label.len()).is_some(),
    };
    let mut tags = tags;
    let (tag, line) = tags.find(|(tag, _)| !known(tag)).unwrap_or_default();
    Error::Mismatch {
        found: format!("{}: line {line} has the tag {}", path.display(), list([tag].into_iter())),
        expected: format!("the model has {}", list(id2label.iter().map(String::as_str))),
        advice: WRITE_NAMES,
    }
}

#[cfg(test)]
mod tests {
    use std::slice::from_ref;

    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    const VOCAB: &str = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nb\nc\n##b\n##c\n好\n";

    fn tokenizer(name: &str, content: &str) -> Tokenizer {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(name), content).unwrap();
        Tokenizer::load(folder.path()).unwrap().expect("a tokenizer file is there")
    }

    fn bert() -> Tokenizer {
        tokenizer("vocab.txt", VOCAB)
    }

    fn config(head: &str) -> Config {
        let config = json!({"model_type": "bert", "architectures": [format!("Bert{head}")],
            "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
            "intermediate_size": 16, "vocab_size": 16, "id2label": {"0": "O", "1": "B-X", "2": "I-X"}});
        Config::parse(config).expect("a config").0
    }

    fn tagged(words: &[&str], tags: &[&str], line: usize) -> Example {
        let tags = tags.iter().map(|t| t.to_string()).collect();
        let annotation = Some(Annotation::Tags(tags));
        Example { text: words.join(" "), annotation, line, ..Example::default() }
    }

    fn asked(question: &str, context: &str, answers: &[(usize, &str)]) -> Example {
        let span = |&(start, text): &(usize, &str)| Span { start, text: text.into() };
        Example {
            text: question.into(),
            pair: Some(context.into()),
            annotation: Some(Annotation::Spans(answers.iter().map(span).collect())),
            line: 7,
            ..Example::default()
        }
    }

    fn made(examples: &[Example], head: &str, t: &Tokenizer, n: usize) -> Result<Option<Targets>> {
        prepare(examples, &config(head), t, n, Path::new("dev.jsonl")).map(|(_, targets)| targets)
    }

    /// The only row of targets for words tagged O, B-X, I-X, O, ….
    fn token_targets(t: &Tokenizer, words: &[&str], n: usize) -> Vec<Option<u32>> {
        let tags: Vec<&str> = (0..words.len()).map(|i| ["O", "B-X", "I-X"][i % 3]).collect();
        match made(&[tagged(words, &tags, 1)], "ForTokenClassification", t, n).unwrap() {
            Some(Targets::Tokens(mut rows)) => rows.remove(0),
            other => panic!("{other:?}"),
        }
    }

    fn answer_targets(context: &str, answers: &[(usize, &str)], n: usize) -> Option<(u32, u32)> {
        match made(&[asked("a b", context, answers)], "ForQuestionAnswering", &bert(), n).unwrap() {
            Some(Targets::Spans(spans)) => spans[0],
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_first_piece_of_a_word_has_its_class() {
        // [CLS] a ##b ##c 好 好 b [SEP]
        let found = token_targets(&bert(), &["abc", "好好", "b"], 99);
        let expected = [None, Some(0), None, None, Some(1), None, Some(2), None];
        assert_eq!(found, expected);
        // Two words fit, and the first piece of neither is the last token.
        assert_eq!(
            token_targets(&bert(), &["abc", "好好", "b"], 6),
            [&expected[..5], &[None]].concat()
        );
        assert_eq!(token_targets(&bert(), &[], 99), [None, None]);
    }

    #[test]
    fn a_word_without_a_token_has_no_target() {
        assert_eq!(
            token_targets(&bert(), &["a", "\u{200b}", "b"], 99),
            [None, Some(0), Some(2), None]
        );
    }

    /// The vocabulary of each has `▁` or `Ġ` alone. Expected: `word_ids()` of Transformers 5, given the
    /// words one by one.
    #[test]
    fn a_mark_of_a_word_alone_is_its_first_piece() {
        let special = |id: u32, content: &str| {
            json!({"id": id, "content": content, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": true})
        };
        let metaspace =
            json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"});
        let split =
            json!({"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, metaspace]});
        let unigram = |pre_tokenizer: &Value| {
            let pieces =
                ["<s>", "</s>", "<unk>", "▁", "▁a", "b", "▁b", "好"].map(|p| json!([p, -2.0]));
            json!({"version": "1.0", "truncation": null, "padding": null, "normalizer": null,
                "added_tokens": [special(0, "<s>"), special(1, "</s>"), special(2, "<unk>")],
                "pre_tokenizer": pre_tokenizer, "post_processor": null, "decoder": null,
                "model": {"type": "Unigram", "unk_id": 2, "vocab": pieces, "byte_fallback": false}})
        };
        let byte_level = |trim: bool| {
            let pieces = ["<s>", "</s>", "a", "b", "Ġ", "Ġa", "Ġb", "å", "¥", "½"];
            let vocab: Value =
                pieces.iter().enumerate().map(|(i, p)| (p.to_string(), json!(i))).collect();
            json!({"version": "1.0", "truncation": null, "padding": null, "normalizer": null,
                "added_tokens": [special(0, "<s>"), special(1, "</s>")],
                "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
                "post_processor": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": trim, "use_regex": true},
                "decoder": null, "model": {"type": "BPE", "vocab": vocab, "merges": ["Ġ a", "Ġ b"]}})
        };
        let [o, b, i] = [Some(0), Some(1), Some(2)];
        // ▁a b b | ▁ 好 b | ▁a | ▁ 好 | ▁b
        let marks = vec![o, None, None, b, None, None, i, o, None, b];
        // Ġa b b | Ġ å ¥ ½ b | Ġa | Ġ å ¥ ½ | Ġb
        let bytes = vec![o, None, None, b, None, None, None, None, i, o, None, None, None, b];
        for (json, expected) in [
            (unigram(&metaspace), &marks),
            (unigram(&split), &marks),
            (byte_level(true), &bytes),
            (byte_level(false), &bytes),
        ] {
            let t = tokenizer("tokenizer.json", &json.to_string());
            assert_eq!(token_targets(&t, &["abb", "好b", "a", "好", "b"], 99), *expected, "{json}");
        }
    }

    #[test]
    fn tags_are_names_or_ids() {
        let of = |tags: &[&str]| {
            let example = tagged(&["a", "b", "c"], tags, 1);
            made(&[example], "ForTokenClassification", &bert(), 99).unwrap().unwrap()
        };
        let expected = Targets::Tokens(vec![vec![None, Some(1), Some(2), Some(0), None]]);
        assert_eq!(of(&["B-X", "I-X", "O"]), expected);
        assert_eq!(of(&["b-x", "i-x", "o"]), expected);
        assert_eq!(of(&["1", "2", "0"]), expected);
    }

    #[test]
    fn an_answer_is_its_first_and_last_token() {
        // [CLS] a b [SEP] a ##b ##c c 好 b [SEP]
        let context = "abc c 好b";
        assert_eq!(answer_targets(context, &[(0, "abc")], 99), Some((4, 6)));
        assert_eq!(answer_targets(context, &[(4, "c 好"), (0, "a")], 99), Some((7, 8)));
        assert_eq!(answer_targets(context, &[(7, "b")], 99), Some((9, 9)));
        // A piece of a token is the token; spaces around do not count.
        assert_eq!(answer_targets(context, &[(1, "b")], 99), Some((5, 5)));
        assert_eq!(answer_targets(context, &[(3, " c ")], 99), Some((7, 7)));
    }

    #[test]
    fn no_answer_is_the_first_token_and_an_answer_cut_off_is_none() {
        let context = "abc c 好b";
        assert_eq!(answer_targets(context, &[], 99), Some((0, 0)));
        // [CLS] a b [SEP] a ##b ##c c [SEP]
        assert_eq!(answer_targets(context, &[(4, "c")], 9), Some((7, 7)));
        assert_eq!(answer_targets(context, &[(4, "c 好")], 9), None);
        assert_eq!(answer_targets(context, &[(6, "好")], 9), None);
        assert_eq!(answer_targets("a\u{200b}b", &[(1, "\u{200b}")], 99), None);
    }

    #[test]
    fn other_heads_have_targets_by_text_or_none() {
        let example = |label: Option<&str>| Example {
            text: "a".into(),
            pair: Some("b".into()),
            label: label.map(String::from),
            line: 1,
            ..Example::default()
        };
        let made = |head, label| made(&[example(label)], head, &bert(), 99).unwrap();
        let classes = Targets::Classes(vec![1]);
        assert_eq!(made("ForSequenceClassification", Some("B-X")), Some(classes));
        assert_eq!(made("ForSequenceClassification", None), None);
        assert_eq!(made("ForTokenClassification", None), None);
        assert_eq!(made("ForQuestionAnswering", None), None);
        assert_eq!(made("ForMaskedLM", Some("B-X")), None);
        assert_eq!(made("Model", Some("B-X")), None);
    }

    #[test]
    fn labels_that_do_not_fit_name_their_line() {
        let label = |label: Option<&str>| Example {
            text: "a".into(),
            label: label.map(String::from),
            line: 3,
            ..Example::default()
        };
        let tags = tagged(&["a", "b"], &["O", "B-X"], 1);
        let asked = asked("a", "b", &[]);
        let refused = |examples: &[Example], head: &str| {
            made(examples, head, &bert(), 99).unwrap_err().to_string()
        };
        let [token, answer, sequence] =
            ["ForTokenClassification", "ForQuestionAnswering", "ForSequenceClassification"];
        insta::assert_snapshot!(refused(&[tags.clone(), label(None)], token), @"dev.jsonl: line 3 has no tags, but the model is for token classification; give JSON lines with `tokens` and `ner_tags`, or name the lists with --text-column and --label-column");
        insta::assert_snapshot!(refused(&[label(Some("1"))], token), @"dev.jsonl: line 3 has a label and no tags, but the model is for token classification; give JSON lines with `tokens` and `ner_tags`, or name the lists with --text-column and --label-column");
        insta::assert_snapshot!(refused(from_ref(&asked), token), @"dev.jsonl: line 7 has answers in a context and no tags, but the model is for token classification; give JSON lines with `tokens` and `ner_tags`, or name the lists with --text-column and --label-column");
        insta::assert_snapshot!(refused(from_ref(&tags), answer), @r#"dev.jsonl: line 1 has tags of words and no answers, but the model is for question answering; give JSON lines with `question`, `context` and `answers`: {"text": ["Rome"], "answer_start": [3]}"#);
        insta::assert_snapshot!(refused(&[asked.clone(), label(None)], answer), @r#"dev.jsonl: line 3 has no answers, but the model is for question answering; give JSON lines with `question`, `context` and `answers`: {"text": ["Rome"], "answer_start": [3]}"#);
        insta::assert_snapshot!(refused(from_ref(&tags), sequence), @"dev.jsonl: line 1 has tags of words and no label, but the model is for sequence classification; use data of the model's task");
        insta::assert_snapshot!(refused(&[asked], sequence), @"dev.jsonl: line 7 has answers in a context and no label, but the model is for sequence classification; use data of the model's task");
        insta::assert_snapshot!(refused(&[label(Some("O")), label(None)], sequence), @"dev.jsonl: line 3 has no label, but every row needs one; fill it in, drop the row, or name the column with --label-column");
        let more = |tags: &[&str]| tagged(&["a", "b"], tags, 9);
        insta::assert_snapshot!(refused(&[tags.clone(), more(&["O", "B-Y"])], token), @"dev.jsonl: line 9 has the tag `B-Y`, but the model has `O`, `B-X`, `I-X`; write the model's names or class ids into the file, or set `id2label` in config.json");
        insta::assert_snapshot!(refused(&[tags, more(&["1", "O"])], token), @"dev.jsonl: line 9 has the tag `1`, but the model has `O`, `B-X`, `I-X`; write the model's names or class ids into the file, or set `id2label` in config.json");
        insta::assert_snapshot!(refused(&[more(&["1", "3"])], token), @"dev.jsonl: line 9 has the tag `3`, but the model has `O`, `B-X`, `I-X`; write the model's names or class ids into the file, or set `id2label` in config.json");
    }

    proptest! {
        #[test]
        fn every_word_has_one_labelled_token_unless_it_is_cut_off(
            words in proptest::collection::vec("[abc好É.x]{1,5}", 0..9), n in 3usize..20
        ) {
            let t = bert();
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            let whole = token_targets(&t, &words, 99);
            let labels: Vec<u32> = whole.iter().flatten().copied().collect();
            let expected: Vec<u32> = (0..words.len()).map(|i| i as u32 % 3).collect();
            prop_assert_eq!(labels, expected);
            let cut = token_targets(&t, &words, n);
            prop_assert_eq!(cut.len(), whole.len().min(n));
            prop_assert_eq!(&cut[..cut.len() - 1], &whole[..cut.len() - 1]);
        }

        #[test]
        fn the_tokens_of_an_answer_hold_it(
            context in "[abc好É .x]{1,20}", start in 0usize..20, len in 1usize..6, n in 8usize..30
        ) {
            let answer: String = context.chars().skip(start).take(len).collect();
            prop_assume!(!answer.trim().is_empty());
            let example = asked("a b", &context, &[(start, &answer)]);
            let tokenized = tokenize(&[example], &config("ForQuestionAnswering"), &bert(), n).unwrap();
            if let Some((first, last)) = answer_targets(&context, &[(start, &answer)], n) {
                let origin = |i: u32| tokenized.origins[0][i as usize].expect("a token of the context");
                let (from, to) = (origin(first).start as usize, origin(last).end as usize);
                let found: String = context.chars().skip(from).take(to - from).collect();
                prop_assert!(found.contains(answer.trim()), "{found:?} for {answer:?}");
            } else {
                prop_assert!(tokenized.encoded[0].ids.len() == n, "cut off");
            }
        }
    }
}
