//! JSON lines that say more than one label a text: tags of words, answers in a context.

use std::path::Path;

use serde_json::{Map, Value};

use crate::data::tables::columns::{LABELS, PAIRS, Picked};
use crate::data::tables::{Annotation, Columns, Example, Span, clip, malformed, take_string};
use crate::error::Result;

const WORDS: [&str; 2] = ["tokens", "words"];
/// First match wins: CoNLL 2003 on the Hugging Face hub has parts of speech beside the names.
const TAGS: [&str; 6] = ["ner_tags", "tags", "labels", "label", "pos_tags", "upos"];
const QUESTION: &str = "question";
const CONTEXT: &str = "context";
/// Texts and starts as lists in one object, as the hub stores SQuAD.
const ANSWERS: &str = "answers";
/// One text, with its start under [`START`] beside it.
const ANSWER: &str = "answer";
const START: &str = "answer_start";

/// What the columns of an annotated example hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Words, and a tag for each.
    Tags,
    /// A question, and answers in column `context`.
    Spans { context: usize },
}

/// The columns and the kind of the annotated examples that begin with `first`; None if they are ordinary
/// ones: what has a class or a score for the whole text is, whatever else it has.
pub fn pick(
    first: &Map<String, Value>,
    names: &[&str],
    wanted: &Columns,
) -> Option<(Picked, Kind)> {
    let named = |name: &str| names.iter().position(|n| n.eq_ignore_ascii_case(name));
    let is_list = |&c: &usize| first[names[c]].is_array();
    let is_one = |c: usize| !is_list(&c) && !first[names[c]].is_null();
    let one_label = LABELS.into_iter().filter_map(named).any(is_one);

    let words = match &wanted.text {
        Some(name) => named(name),
        None => WORDS.into_iter().find_map(named),
    };
    if let Some(text) = words.filter(is_list) {
        let tags = |name: &str| named(name).filter(is_list);
        let label = match &wanted.label {
            Some(name) => Some(tags(name)?),
            None => TAGS.into_iter().find_map(tags),
        };
        let fits = wanted.text.is_some() || (label.is_some() && !one_label);
        return fits.then_some((Picked { text, pair: None, label }, Kind::Tags));
    }

    let (text, context) = match (&wanted.text, &wanted.pair) {
        // To name one text is to ask for that one.
        (Some(text), pair) => (named(text)?, named(pair.as_ref()?)?),
        (None, pair) => (named(QUESTION)?, named(pair.as_deref().unwrap_or(CONTEXT))?),
    };
    let is_answers = |&c: &usize| match &first[names[c]] {
        Value::Object(_) | Value::Null => true,
        Value::String(_) => named(START).is_some(),
        _ => false,
    };
    let label = match &wanted.label {
        Some(name) => Some(named(name).filter(is_answers)?),
        None => [ANSWERS, ANSWER].into_iter().filter_map(named).find(is_answers),
    };
    let is_known_pair = || PAIRS.iter().any(|(a, b)| named(a).is_some() && named(b).is_some());
    let fits = wanted.label.is_some() || (!one_label && (label.is_some() || !is_known_pair()));
    fits.then_some((Picked { text, pair: Some(context), label }, Kind::Spans { context }))
}

/// One line of the examples that [`pick`] has chosen columns for.
///
/// # Errors
/// [`crate::Error::Malformed`] for texts that are no strings, tags that are not one a word, and answers
/// that are not where they are said to be.
pub fn read(
    object: Map<String, Value>,
    names: &[&str],
    (picked, kind): (&Picked, Kind),
    line: usize,
    path: &Path,
) -> Result<Example> {
    let (text, label) = (names[picked.text], picked.label.map(|c| names[c]));
    match kind {
        Kind::Tags => tagged(object, text, label, line, path),
        Kind::Spans { context } => answered(object, [text, names[context]], label, line, path),
    }
}

/// The words and tags of one line.
fn tagged(
    mut object: Map<String, Value>,
    words: &str,
    tags: Option<&str>,
    line: usize,
    path: &Path,
) -> Result<Example> {
    const WRITE: &str =
        "write lists, as in {\"tokens\": [\"in\", \"Rome\"], \"ner_tags\": [\"O\", \"B-LOC\"]}";
    let list = |value: Option<Value>, name: &str| match value {
        Some(Value::Array(list)) => Ok(list),
        Some(other) => {
            let found = format!("`{}`: `{}`", clip(name), clip(&other.to_string()));
            Err(malformed(path, line, &found, "a list", WRITE))
        }
        None => Err(malformed(path, line, &format!("no `{}`", clip(name)), "a list", WRITE)),
    };
    let word = |value: Value| match value {
        Value::String(word) if word.trim().is_empty() => {
            let advice = "drop that word and its tag";
            Err(malformed(path, line, "an empty word", "words with letters or signs", advice))
        }
        Value::String(word) if word.contains(' ') => {
            let found = format!("the word `{}`", clip(&word));
            let advice = "split it into words with a tag each, or take the space out";
            Err(malformed(path, line, &found, "words without a space", advice))
        }
        Value::String(word) => Ok(word),
        other => {
            let found = format!("`{}` in `{}`", clip(&other.to_string()), clip(words));
            Err(malformed(path, line, &found, "words, as strings", WRITE))
        }
    };
    let tag = |value: Value| match value {
        Value::String(tag) => Ok(tag.trim().to_string()),
        Value::Number(id) => Ok(id.to_string()),
        other => {
            let found = format!("tag `{}`", clip(&other.to_string()));
            Err(malformed(path, line, &found, "the name or the id of a class", WRITE))
        }
    };
    let text = list(object.remove(words), words)?;
    let text: Vec<String> = text.into_iter().map(word).collect::<Result<_>>()?;
    let annotation = match tags.and_then(|name| Some((name, object.remove(name)?))) {
        None | Some((_, Value::Null)) => None,
        Some((name, value)) => {
            let tags = list(Some(value), name)?;
            if tags.len() != text.len() {
                let (n, m) = (text.len(), tags.len());
                let (words, name) = (clip(words), clip(name));
                let found = format!("`{words}` of length {n} and `{name}` of length {m}");
                let advice = "add the tags that are missing, or drop the line";
                return Err(malformed(path, line, &found, "one tag for every word", advice));
            }
            Some(Annotation::Tags(tags.into_iter().map(tag).collect::<Result<_>>()?))
        }
    };
    Ok(Example { text: text.join(" "), annotation, line, ..Example::default() })
}

/// The question, the context and the answers of one line.
fn answered(
    mut object: Map<String, Value>,
    [question, context]: [&str; 2],
    answers: Option<&str>,
    line: usize,
    path: &Path,
) -> Result<Example> {
    let text = take_string(&mut object, question, line, path)?;
    let context = take_string(&mut object, context, line, path)?;
    let start = object.keys().find(|k| k.eq_ignore_ascii_case(START)).cloned();
    let start = start.and_then(|key| object.remove(&key));
    let answers = answers.and_then(|name| Some((name, object.remove(name)?)));
    let pairs: Option<Vec<(Value, Value)>> = match answers {
        None => None,
        Some((_, Value::Object(mut lists))) => Some(zipped(&mut lists, line, path)?),
        // One text beside its start: without a text, a question without an answer.
        Some((_, Value::Null)) => start.is_some().then(Vec::new),
        Some((_, Value::String(text))) if text.is_empty() => Some(Vec::new()),
        Some((_, text @ Value::String(_))) => Some(vec![(text, start.unwrap_or_default())]),
        Some((name, other)) => {
            let found = format!("`{}`: `{}`", clip(name), clip(&other.to_string()));
            return Err(malformed(path, line, &found, "lists of texts and starts", WRITE_LISTS));
        }
    };
    let span = |(text, start)| span(text, start, &context, line, path);
    let spans = pairs.map(|pairs| pairs.into_iter().map(span).collect::<Result<_>>());
    let annotation = spans.transpose()?.map(Annotation::Spans);
    Ok(Example { text, pair: Some(context), annotation, line, ..Example::default() })
}

const WRITE_LISTS: &str = "write {\"text\": [\"Rome\"], \"answer_start\": [3]}, with empty lists where there is no answer";

/// The texts and starts of `{"text": […], "answer_start": […]}`.
fn zipped(lists: &mut Map<String, Value>, line: usize, path: &Path) -> Result<Vec<(Value, Value)>> {
    let mut list = |key: &str| match lists.remove(key) {
        Some(Value::Array(list)) => Ok(list),
        Some(other) => {
            let found = format!("`{key}`: `{}`", clip(&other.to_string()));
            Err(malformed(path, line, &found, "a list", WRITE_LISTS))
        }
        None => Err(malformed(
            path,
            line,
            &format!("answers without `{key}`"),
            "texts and starts",
            WRITE_LISTS,
        )),
    };
    let (texts, starts) = (list("text")?, list(START)?);
    if texts.len() != starts.len() {
        let (n, m) = (texts.len(), starts.len());
        let found = format!("`text` of length {n} and `{START}` of length {m}");
        return Err(malformed(path, line, &found, "one start for every text", WRITE_LISTS));
    }
    Ok(texts.into_iter().zip(starts).collect())
}

fn span(text: Value, start: Value, context: &str, line: usize, path: &Path) -> Result<Span> {
    const COUNT: &str =
        "count from 0 in characters, not bytes, and spell the answer as the context does";
    let text = match text {
        Value::String(text) if !text.trim().is_empty() => text,
        other => {
            let found = format!("answer `{}`", clip(&other.to_string()));
            return Err(malformed(path, line, &found, "a text", WRITE_LISTS));
        }
    };
    let Some(number) = start.as_u64() else {
        let found = format!("`{START}` `{}`", clip(&start.to_string()));
        return Err(malformed(path, line, &found, "a whole number from 0", WRITE_LISTS));
    };
    let start = usize::try_from(number).unwrap_or(usize::MAX);
    let there = context.char_indices().nth(start).map_or("", |(byte, _)| &context[byte..]);
    if !there.starts_with(&text) {
        let there: String = there.chars().take(text.chars().count()).collect();
        let found = match there.is_empty() {
            true => format!("nothing at `{START}` {number}, behind the end of the context,"),
            false => format!("`{}` at `{START}` {number}", clip(&there)),
        };
        return Err(malformed(path, line, &found, &format!("`{}`", clip(&text)), COUNT));
    }
    Ok(Span { start, text })
}
