#![doc = include_str!("README.md")]

mod pieces;
mod rewrite;
#[cfg(test)]
mod tests;

use crate::checkpoint::read_json;
use crate::data::tables::{Columns, Example, NAME_COLUMNS, check_examples, read_examples};
use crate::data::tokenizer::{Encoded, Tokenizer};
use crate::data::vocabulary::Cuts;
use crate::data::{Dataset, Vocabulary};
use crate::model::family::Positions;
use crate::model::{Head, Linear, Model, Outline};
use crate::pass::{Context, Entry, Foresight, Pass, PlanContext, Text, Work};
use crate::report::{Change, count};
use crate::{Error, Result};
use pieces::{Kind, Pieces};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

pub const ENTRY: Entry = Entry::new::<Vocab>(
    "vocab",
    "keep the tokens that given texts need, in the word embeddings and in the tokenizer",
    include_str!("README.md"),
    &["vocab"],
);

/// Options of the pass.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Vocab {
    /// Files of texts whose tokens stay; none: the text of `--data`, else of `--calib`.
    pub keep: OneOrMore<PathBuf>,
    /// The column of the text, and of the second text, in files of `keep` that have columns; none: as `--data` finds
    /// them.
    pub columns: OneOrMore<String>,
    /// How often a token has to occur.
    pub min_count: u64,
    /// Rows to keep, the most frequent; 0 for all that occur often enough.
    pub size: usize,
}

/// One word, or a list of them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum OneOrMore<T> {
    One(T),
    More(Vec<T>),
}

impl<T> OneOrMore<T> {
    fn list(&self) -> &[T] {
        match self {
            OneOrMore::One(one) => std::slice::from_ref(one),
            OneOrMore::More(list) => list,
        }
    }
}

impl Default for Vocab {
    fn default() -> Self {
        let (keep, columns) = (OneOrMore::More(Vec::new()), OneOrMore::More(Vec::new()));
        Vocab { keep, columns, min_count: 1, size: 0 }
    }
}

/// Special tokens among the first `1 / LOW` of the rows keep their ids, and with them every row below: programs
/// write 101 and 102 for BERT's separators. It takes 99 rows of BERT, and none of RoBERTa and XLM-R.
const LOW: usize = 64;

/// Texts whose tokens are counted.
struct Corpus {
    name: String,
    /// Empty where the tokens alone are known.
    examples: Vec<Example>,
    /// By text.
    ids: Vec<Vec<u32>>,
}

impl Pass for Vocab {
    fn check(&self) -> Result<()> {
        let bad = |option, found: String, expected: &str| Error::Option {
            pass: "vocab",
            option,
            found,
            expected: expected.into(),
        };
        if self.min_count == 0 {
            return Err(bad("min_count", "0".into(), "at least 1"));
        }
        let columns = self.columns.list();
        if columns.len() > 2 {
            let found = format!("{} columns", columns.len());
            return Err(bad("columns", found, "that of the text, or that of both texts of a pair"));
        }
        if !columns.is_empty() && self.keep.list().is_empty() {
            let expected = "files in `keep` to read them from";
            return Err(bad("columns", format!("`{}`", columns.join("`, `")), expected));
        }
        Ok(())
    }

    fn reads(&self) -> Vec<PathBuf> {
        self.keep.list().to_vec()
    }

    fn needs_tokenizer(&self) -> bool {
        true
    }

    fn outline(&self, outline: &mut Outline, cx: &PlanContext) -> Result<Foresight> {
        self.check()?;
        let tokenizer = cx.tokenizer.ok_or_else(no_tokenizer)?;
        if self.keep.list().is_empty() && !cx.data && cx.text != Some(Text::Given) {
            return Err(no_text());
        }
        self.keep.list().iter().try_for_each(|path| check_examples(path))?;
        let mut json = tokenizer.json()?;
        let pieces = Pieces::read(&json, tokenizer.path())?;
        let side = side_files(cx.side_files)?;
        outline.spread(|model| {
            model.word_table()?;
            let rows = model.config.vocab;
            let always = always(model, tokenizer, &pieces, &mut json, &side)?;
            let keep = |count: u64| -> Result<Model> {
                let kept = self.chosen(&pieces, &vec![count; rows], always.clone())?;
                if kept.len() < rows { model.select_words(&kept) } else { Ok(model.clone()) }
            };
            Ok(vec![keep(0)?, keep(self.min_count)?])
        })?;
        // Tables are copied; reading texts is not counted.
        let foresight = Foresight { seconds: 1.0, copies: 2.0, ..Foresight::default() };
        Ok(foresight.noting("the texts say which rows of the word embeddings stay"))
    }

    fn run(&self, model: &mut Model, cx: &Context) -> Result<Work> {
        self.check()?;
        model.word_table()?;
        let tokenizer = cx.tokenizer.ok_or_else(no_tokenizer)?;
        cx.progress.start("vocab", 2 * self.keep.list().len() + 3);
        let mut corpora = self.corpora(tokenizer, cx)?;
        let rows = model.config.vocab;
        let mut json = tokenizer.json()?;
        let pieces = Pieces::read(&json, tokenizer.path())?;
        let side = side_files(cx.side_files)?;
        let always = always(model, tokenizer, &pieces, &mut json, &side)?;
        let counts = counted(&corpora, rows);
        let kept = self.chosen(&pieces, &counts, always)?;
        if kept.len() == rows {
            let note = format!("all {} rows of the word embeddings stay", count(rows as u64));
            return Ok(Work { notes: vec![note], ..Work::default() });
        }
        let json = rewrite::tokenizer_json(json, &pieces, &kept, tokenizer.path())?;
        let after = Vocabulary {
            tokenizer: tokenizer.with_json(&json)?,
            files: Vec::new(),
            unknown: match pieces.kind {
                Kind::WordPiece { .. } => pieces.unknown,
                _ => None,
            },
            kept,
        };
        checked(&pieces, &after)?;
        cx.progress.step()?;

        let mut work = Work::default();
        let told = |(id, count): (usize, &u64)| (*count > 0).then_some(id as u32);
        let seen = counts.iter().enumerate().filter_map(told).count();
        work.notes.push(format!(
            "{} of {} rows of the word embeddings are left, of which {} occur in the texts",
            count(after.kept.len() as u64),
            count(rows as u64),
            count(seen.min(after.kept.len()) as u64),
        ));
        let mut all = Cuts::default();
        for corpus in &mut corpora {
            if corpus.examples.is_empty() {
                continue; // the pipeline reads these texts again, and compares
            }
            let cuts = compared(corpus, &after)?;
            work.notes.push(format!("{}: {}", corpus.name, cuts.describe()));
            all.texts += cuts.texts;
            all.same += cuts.same;
            cx.progress.step()?;
        }
        if all.texts > 0 {
            work.figures.insert("keep_same", all.share());
        }
        work.figures.insert("rows", after.kept.len() as f64);

        let before = words_of(model);
        *model = model.select_words(&after.kept)?;
        let pairs = before.iter().zip(words_of(model));
        work.changes = pairs.map(|(before, after)| Change::new(before, &after, None)).collect();
        cx.progress.step()?;
        let files = written(tokenizer, &json, &side, &after.kept, &mut work.notes)?;
        work.vocabulary = Some(Vocabulary { files, ..after });
        cx.progress.step()?;
        Ok(work)
    }
}

impl Vocab {
    /// The texts whose tokens stay.
    fn corpora(&self, tokenizer: &Tokenizer, cx: &Context) -> Result<Vec<Corpus>> {
        let columns = self.columns.list();
        let columns =
            Columns { text: columns.first().cloned(), pair: columns.get(1).cloned(), label: None };
        let read = |path: &PathBuf| {
            let plain = path.extension().is_some_and(|e| e == "txt");
            let columns = if plain { Columns::default() } else { columns.clone() };
            let examples = read_examples(path, &columns).map_err(by_option)?.examples;
            // Whole texts: a longer limit later must not meet a token that was cut off here.
            let encoded = tokenizer.encode_all(&examples, usize::MAX)?;
            cx.progress.step()?;
            Ok(Corpus {
                name: path.to_string_lossy().into_owned(), // two files may be called `train.tsv`
                examples,
                ids: encoded.into_iter().map(|text| text.ids).collect(),
            })
        };
        if !self.keep.list().is_empty() {
            return self.keep.list().iter().map(read).collect();
        }
        let given = cx.calibration.filter(|text| text.is_given());
        let data = match (cx.data, given) {
            (Some(data), _) => data.clone(),
            (None, Some(text)) => Dataset::of(text),
            (None, None) => return Err(no_text()),
        };
        let ids = data.texts.into_iter().map(|text| text.ids).collect();
        Ok(vec![Corpus { name: data.source, examples: Vec::new(), ids }])
    }

    /// Ids that stay, ascending: `always`, and of the rest those with the largest counts.
    fn chosen(&self, pieces: &Pieces, counts: &[u64], always: BTreeSet<u32>) -> Result<Vec<u32>> {
        let mut kept = BTreeSet::new();
        for id in always {
            kept.extend(pieces.closure(id, &kept));
        }
        if self.size > 0 && kept.len() > self.size {
            return Err(Error::Option {
                pass: "vocab",
                option: "size",
                found: self.size.to_string(),
                expected: format!(
                    "at least {}: special tokens and single characters stay",
                    kept.len()
                ),
            });
        }
        let often = |&id: &u32| counts[id as usize] >= self.min_count;
        let mut wanted: Vec<u32> = (0..counts.len() as u32).filter(often).collect();
        wanted.sort_by_key(|&id| (std::cmp::Reverse(counts[id as usize]), id));
        for id in wanted {
            let more = pieces.closure(id, &kept);
            if self.size == 0 || kept.len() + more.len() <= self.size {
                kept.extend(more);
            }
        }
        // What a token of the table is made of may have no row itself.
        let rows = counts.len();
        Ok(kept.into_iter().filter(|&id| (id as usize) < rows).collect())
    }
}

fn no_tokenizer() -> Error {
    Error::Mismatch {
        found: "the model has no tokenizer".into(),
        expected: "its tokens are what `vocab` chooses from".into(),
        advice: "copy tokenizer.json from the model that this one was trained from",
    }
}

fn no_text() -> Error {
    Error::Mismatch {
        found: "no text was given".into(),
        expected: "what the texts of the model's use need is what `vocab` keeps".into(),
        advice: "name files of them, as in `vocab(keep=\"corpus.txt\")`, or give --data or --calib",
    }
}

/// Columns of files in `keep` are named by an option of the pass.
fn by_option(error: Error) -> Error {
    match error {
        Error::Malformed { path, found, expected, advice } if advice == NAME_COLUMNS => {
            let advice = "name them in `columns`, as in `vocab(keep=\"FILE\",columns=[\"text\"])`";
            Error::Malformed { path, found, expected, advice }
        }
        other => other,
    }
}

/// How often each row occurs; tokens beyond the table are none of its rows.
fn counted(corpora: &[Corpus], rows: usize) -> Vec<u64> {
    let mut counts = vec![0; rows];
    for &id in corpora.iter().flat_map(|corpus| corpus.ids.iter().flatten()) {
        if let Some(count) = counts.get_mut(id as usize) {
            *count += 1;
        }
    }
    counts
}

/// A JSON file beside tokenizer.json that may name ids.
struct Side {
    name: String,
    path: PathBuf,
    json: Option<Value>,
}

fn side_files(files: &[(PathBuf, String)]) -> Result<Vec<Side>> {
    let read = |(path, name): &(PathBuf, String)| {
        let named = ["tokenizer_config.json", "added_tokens.json"].contains(&name.as_str());
        let json = named.then(|| read_json(path)).transpose()?;
        Ok(Side { name: name.clone(), path: path.clone(), json })
    };
    files.iter().map(read).collect()
}

/// Rows that stay whatever the texts say: single characters, all ids that a file names, and low special tokens
/// with what lies below.
fn always(
    model: &Model,
    tokenizer: &Tokenizer,
    pieces: &Pieces,
    json: &mut Value,
    side: &[Side],
) -> Result<BTreeSet<u32>> {
    let (rows, path) = (model.config.vocab, tokenizer.path());
    let mut always = rewrite::named_ids(json, rows, path)?;
    for token in json["added_tokens"].as_array().into_iter().flatten() {
        let (content, id) = (token["content"].as_str().unwrap_or_default(), token["id"].as_u64());
        let found = tokenizer.id(content).map(u64::from);
        if found != id {
            let said = |id: Option<u64>| id.map_or("none".into(), |id| id.to_string());
            return Err(pieces::malformed(
                path,
                format!("the added token {content:?} with the id {}", said(id)),
                &format!("{}, its id in the vocabulary", said(found)),
            ));
        }
    }
    for file in side {
        if let Some(json) = &file.json {
            always.extend(rewrite::side_ids(&file.name, json, rows, &file.path)?);
        }
    }
    always.extend(model.config.token_ids());
    always.extend([pieces.unknown, tokenizer.mask_id(), tokenizer.pad_id()].into_iter().flatten());
    always.extend(pieces.characters());
    let low = tokenizer.special_ids().into_iter().filter(|&id| (id as usize) < rows / LOW).max();
    // Positions are counted from behind the padding id: it must not move.
    let padding = match model.family.positions {
        Positions::FromZero => None,
        Positions::AfterPadding => Some(model.config.pad_id),
        Positions::AfterOne => Some(1),
    };
    always.extend(low.max(padding).into_iter().flat_map(|last| 0..=last));
    always.retain(|&id| (id as usize) < rows);
    Ok(always)
}

/// Refuses a tokenizer that the library reads with other ids than its files say.
fn checked(pieces: &Pieces, after: &Vocabulary) -> Result<()> {
    for (new, old) in after.kept.iter().enumerate() {
        let Some(token) = pieces.tokens.get(old) else { continue };
        let found = after.tokenizer.id(token);
        if found != Some(new as u32) {
            return Err(pieces::malformed(
                after.tokenizer.path(),
                format!("the token {token:?}, which is read with the id {found:?}"),
                &format!("{new}"),
            ));
        }
    }
    Ok(())
}

/// How the texts of `corpus` are cut now.
fn compared(corpus: &Corpus, after: &Vocabulary) -> Result<Cuts> {
    let encoded: Vec<Encoded> = after.tokenizer.encode_all(&corpus.examples, usize::MAX)?;
    let texts = corpus.ids.iter().zip(&encoded).map(|(old, new)| (&old[..], &new.ids[..]));
    let cuts = Cuts::of(&after.kept, after.unknown, usize::MAX, texts);
    match cuts.broken {
        None => Ok(cuts),
        Some(row) => {
            let line = corpus.examples[row].line;
            Err(crate::data::vocabulary::broken(&format!("line {line} of {}", corpus.name)))
        }
    }
}

/// Every matrix with a row a word.
fn words_of(model: &Model) -> Vec<Linear> {
    let mut words = vec![Linear::table(&model.embeddings.word)];
    if let Head::MaskedLm { decoder: Some(decoder), bias, .. } = &model.head {
        words.push(Linear::dense(decoder.clone(), Some(bias.clone())));
    }
    words
}

/// The files of the tokenizer that change.
fn written(
    tokenizer: &Tokenizer,
    json: &Value,
    side: &[Side],
    kept: &[u32],
    notes: &mut Vec<String>,
) -> Result<Vec<(String, Option<Vec<u8>>)>> {
    let pretty = |json: &Value| Some(format!("{json:#}\n").into_bytes());
    let mut files = Vec::new();
    if tokenizer.is_json() {
        files.push(("tokenizer.json".to_string(), pretty(json)));
    }
    for Side { name, path, json: said } in side {
        let new = match (name.as_str(), said) {
            ("vocab.txt", _) => rewrite::vocab_txt(json).map(String::into_bytes),
            ("vocab.json", _) => {
                rewrite::vocab_json(json).and_then(|vocab| pretty(&Value::Object(vocab)))
            }
            ("merges.txt", _) => rewrite::merges_txt(json, &text_of(path)?).map(String::into_bytes),
            (_, Some(said)) => match rewrite::side_json(name, said.clone(), kept) {
                Some(new) => pretty(&new),
                None => continue,
            },
            (name, None) if name.ends_with(".model") => None,
            _ => continue,
        };
        if new.is_none() {
            notes.push(format!(
                "{name} is left out: it holds the whole vocabulary in a form that is not rewritten; tokenizer.json has \
                 all there is to know"
            ));
        }
        files.push((name.clone(), new));
    }
    Ok(files)
}

fn text_of(path: &Path) -> Result<String> {
    let read = |source| Error::Read { path: path.into(), source };
    Ok(String::from_utf8_lossy(&std::fs::read(path).map_err(read)?).into_owned())
}
