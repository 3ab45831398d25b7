//! Text for passes to watch the model on.

use super::batches::bucket;
use super::labels::Targets;
use super::masking::Masker;
use super::prepare::{is_labelled, label, tokenize};
use super::tables::{Columns, Example, Table, read_examples};
use super::tokenizer::{Encoded, Tokenizer};
use crate::Result;
use crate::model::{Config, Task};
use crate::runtime::Batch;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use std::borrow::Cow;
use std::collections::HashSet;
use std::path::{Path, PathBuf};

/// Sentences written for this project (docs/architecture.md), one a line.
const BUILTIN: &str = include_str!("calibration.txt");

/// What reports call the sources that are no file.
const BUILTIN_NAME: &str = "built-in text";
const RANDOM_NAME: &str = "random tokens";

/// Batches of a text, and what it was.
#[derive(Debug, Clone)]
pub struct Calibration {
    pub batches: Vec<Batch>,
    /// Every eighth text: no pass sees it, the report judges by it.
    pub held_out: Vec<Batch>,
    /// By `Batch::rows`; `None` where the text has no labels or the model's head takes none.
    pub targets: Option<Targets>,
    /// How to hide tokens of it; None without a tokenizer, or where that has no mask.
    pub masker: Option<Masker>,
    /// In the words of reports: `built-in text`, or the file's name.
    pub source: String,
    pub texts: usize,
    pub tokens: usize,
}

/// Where the text comes from.
#[derive(Debug, Clone, PartialEq)]
pub enum Source {
    /// Token ids drawn at random: needs nothing but the model. Second moments and gradients of word soup
    /// are close enough to those of text to cut and pack by (docs/results.md).
    Random,
    Builtin,
    File {
        path: PathBuf,
        columns: Columns,
    },
}

/// Tokens of a calibration batch: small enough that a group of batches fits in little memory.
const BATCH_TOKENS: usize = 256;

impl Calibration {
    /// Reads at most `limit` texts, drawn by `seed` where there are more, of at most `max_tokens` tokens.
    ///
    /// # Errors
    /// What [`read_examples`] and the tokenizer refuse.
    ///
    /// # Panics
    /// If there is no tokenizer for a source that is text: a bug in the caller.
    pub fn read(
        source: &Source,
        tokenizer: Option<&Tokenizer>,
        config: &Config,
        limit: usize,
        max_tokens: usize,
        seed: u64,
    ) -> Result<Calibration> {
        let (mut examples, name) = match source {
            Source::Random => {
                let encoded = random(tokenizer, config, limit, max_tokens, seed)?;
                let calibration = Calibration::new(&encoded, None, RANDOM_NAME.into());
                return Ok(Calibration { masker: tokenizer.and_then(Masker::of), ..calibration });
            }
            Source::Builtin => {
                let lines = BUILTIN.lines().filter(|l| !l.trim().is_empty());
                let example = |(i, text): (usize, &str)| Example {
                    text: text.to_string(),
                    line: i + 1,
                    ..Example::default()
                };
                (lines.enumerate().map(example).collect::<Vec<_>>(), BUILTIN_NAME.to_string())
            }
            Source::File { path, columns } => {
                let name =
                    path.file_name().map_or_else(String::new, |n| n.to_string_lossy().into());
                (read_examples(path, columns)?.examples, name)
            }
        };
        sample(&mut examples, limit, seed);
        let tokenizer = tokenizer.expect("text needs a tokenizer");
        let tokenized = tokenize(&examples, config, tokenizer, max_tokens)?;
        let labelled = examples.iter().all(|e| is_labelled(e, config.task));
        let targets = match source {
            // Labels are a help, not a need: those of another task are left out, and the report
            // says that none were used.
            Source::File { path, .. } if labelled => {
                label(&examples, config, &tokenized, path).ok().flatten()
            }
            _ => None,
        };
        let calibration = Calibration::new(&tokenized.encoded, targets, name);
        Ok(Calibration { masker: Masker::of(tokenizer), ..calibration })
    }

    /// Whether it is a file that somebody chose.
    pub fn is_given(&self) -> bool {
        ![BUILTIN_NAME, RANDOM_NAME].contains(&self.source.as_str())
    }

    /// Whether it is no text, but tokens drawn at random.
    pub fn is_random(&self) -> bool {
        self.source == RANDOM_NAME
    }

    /// `n` of its texts, spread over it, with all that is held out; as it is where it has no more.
    pub fn part(&self, n: usize) -> Calibration {
        let mut rows: Vec<usize> = self.batches.iter().flat_map(|b| b.rows.clone()).collect();
        if rows.len() <= n {
            return self.clone();
        }
        rows.sort_unstable();
        let keep: HashSet<usize> = (0..n).map(|i| rows[i * rows.len() / n]).collect();
        let mut batches: Vec<Batch> = Vec::new();
        for batch in &self.batches {
            for (text, &row) in batch.rows.iter().enumerate().filter(|(_, r)| keep.contains(r)) {
                let span = batch.starts[text]..batch.starts[text + 1];
                let fits = |b: &&mut Batch| b.tokens() + span.len() <= BATCH_TOKENS;
                if batches.last_mut().filter(fits).is_none() {
                    batches.push(Batch::default());
                }
                let last = batches.last_mut().expect("one was pushed");
                last.push(&batch.ids[span.clone()], &batch.type_ids[span], row);
            }
        }
        let texts = batches.iter().map(Batch::texts).sum();
        let tokens = batches.iter().map(Batch::tokens).sum();
        Calibration { batches, texts, tokens, ..self.clone() }
    }

    fn new(encoded: &[Encoded], targets: Option<Targets>, source: String) -> Calibration {
        let mut batches = bucket(encoded, BATCH_TOKENS, BATCH_TOKENS);
        let held_out = hold_out(&mut batches);
        let texts = batches.iter().map(Batch::texts).sum();
        let tokens = batches.iter().map(Batch::tokens).sum();
        Calibration { batches, held_out, targets, masker: None, source, texts, tokens }
    }
}

/// Of a file, the examples that no pass sees when [`Calibration::read`] takes `limit` of them: those that are not drawn,
/// and those that are held out. In an order drawn by `seed`, so that the first of them stand for all.
///
/// # Errors
/// Those of [`read_examples`].
pub fn unseen(
    path: &Path,
    columns: &Columns,
    config: &Config,
    limit: usize,
    seed: u64,
) -> Result<Table> {
    let mut table = read_examples(path, columns)?;
    let drawn = drawn(table.examples.len(), limit, seed);
    // Of pairs that are embedded one by one, never both texts are held out.
    let pairs = drawn.iter().all(|&i| table.examples[i].pair.is_some());
    let split = config.task == Task::Embedding && pairs;
    let seen = drawn.iter().enumerate().filter(|(row, _)| split || !is_held_out(*row));
    let seen: HashSet<usize> = seen.map(|(_, &i)| i).collect();
    let mut left: Vec<Example> = std::mem::take(&mut table.examples)
        .into_iter()
        .enumerate()
        .filter_map(|(i, example)| (!seen.contains(&i)).then_some(example))
        .collect();
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    for i in (1..left.len()).rev() {
        left.swap(i, (rng.next_u64() % (i + 1) as u64) as usize);
    }
    Ok(Table { examples: left, ..table })
}

/// `limit` sequences of 4 to 32 random tokens, between the special tokens that the tokenizer puts around
/// a text, if there is one.
fn random(
    tokenizer: Option<&Tokenizer>,
    config: &Config,
    limit: usize,
    max_tokens: usize,
    seed: u64,
) -> Result<Vec<Encoded>> {
    let around = match tokenizer.map(|t| t.encode("a", None, max_tokens)).transpose()? {
        Some(Encoded { ids, .. }) if ids.len() > 2 => Some((ids[0], ids[ids.len() - 1])),
        _ => None,
    };
    let room = max_tokens.saturating_sub(2).clamp(1, 32);
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut below = |n: usize| (rng.next_u64() % n as u64) as usize;
    let sequence = |_| {
        let len = room.min(4) + below(room - room.min(4) + 1);
        let mut ids: Vec<u32> = (0..len).map(|_| below(config.vocab) as u32).collect();
        if let Some((first, last)) = around {
            ids.insert(0, first);
            ids.push(last);
        }
        Encoded { type_ids: vec![0; ids.len()], ids }
    };
    Ok((0..limit).map(sequence).collect())
}

/// What a model is given of `examples`: pairs together, but for sentence embeddings one text after the
/// other.
pub fn inputs<'a>(examples: &'a [Example], config: &Config) -> Cow<'a, [Example]> {
    if config.task != Task::Embedding || !examples.iter().all(|e| e.pair.is_some()) {
        return Cow::Borrowed(examples);
    }
    let split = examples.iter().flat_map(|e| {
        let texts = [Some(&e.text), e.pair.as_ref()];
        texts.into_iter().flatten().map(|t| Example { text: t.clone(), ..Default::default() })
    });
    Cow::Owned(split.collect())
}

fn is_held_out(row: usize) -> bool {
    row % 8 == 7
}

/// Moves every eighth text into batches of its own. One text alone stays.
fn hold_out(batches: &mut Vec<Batch>) -> Vec<Batch> {
    let (mut kept, mut held) = (Vec::new(), Vec::new());
    for batch in batches.iter() {
        let (mut keep, mut hold) = (Batch::default(), Batch::default());
        for (text, &row) in batch.rows.iter().enumerate() {
            let span = batch.starts[text]..batch.starts[text + 1];
            let target = if is_held_out(row) { &mut hold } else { &mut keep };
            target.push(&batch.ids[span.clone()], &batch.type_ids[span], row);
        }
        kept.extend((keep.texts() > 0).then_some(keep));
        held.extend((hold.texts() > 0).then_some(hold));
    }
    *batches = kept;
    held
}

/// Keeps `limit` items in their order, chosen by `seed`.
pub(super) fn sample(examples: &mut Vec<Example>, limit: usize, seed: u64) {
    let mut keep = drawn(examples.len(), limit, seed).into_iter().peekable();
    let mut index = 0;
    examples.retain(|_| {
        let kept = keep.next_if_eq(&index).is_some();
        index += 1;
        kept
    });
}

/// `limit` of `n` places, chosen by `seed`, ascending: a partial Fisher-Yates shuffle. All where there are no more.
fn drawn(n: usize, limit: usize, seed: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..n).collect();
    if n <= limit {
        return order;
    }
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    for i in 0..limit {
        let j = i + (rng.next_u64() % (order.len() - i) as u64) as usize;
        order.swap(i, j);
    }
    order.truncate(limit);
    order.sort_unstable();
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_has_its_share_of_the_texts_and_all_that_is_held_out() {
        let encoded: Vec<Encoded> = (0..40)
            .map(|i| Encoded {
                ids: vec![i; 3 + i as usize % 5],
                type_ids: vec![0; 3 + i as usize % 5],
            })
            .collect();
        let whole = Calibration::new(&encoded, None, "t".into());
        let part = whole.part(7);
        assert_eq!((part.texts, &part.held_out), (7, &whole.held_out));
        for batch in &part.batches {
            for (text, &row) in batch.rows.iter().enumerate() {
                assert_eq!(batch.ids[batch.starts[text]..batch.starts[text + 1]], encoded[row].ids);
                assert!(!is_held_out(row));
            }
        }
        assert_eq!(part.batches.iter().map(Batch::tokens).sum::<usize>(), part.tokens);
        assert_eq!(whole.part(99).batches, whole.batches);
    }

    #[test]
    fn unseen_are_those_that_no_pass_sees() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("t.txt");
        let lines: Vec<String> = (0..100).map(|i| format!("text {i}")).collect();
        std::fs::write(&path, lines.join("\n")).expect("written");
        let config = crate::model::testing::tiny("bert", Task::SequenceClassification, 1).config;
        let columns = Columns::default();
        let mut all = read_examples(&path, &columns).expect("texts").examples;
        sample(&mut all, 40, 3);
        let seen: Vec<usize> = all
            .iter()
            .enumerate()
            .filter(|(row, _)| !is_held_out(*row))
            .map(|(_, e)| e.line)
            .collect();
        let left = unseen(&path, &columns, &config, 40, 3).expect("texts").examples;
        assert_eq!((seen.len(), left.len()), (35, 65));
        assert!(left.iter().all(|e| !seen.contains(&e.line)));
        assert!(left.windows(2).any(|pair| pair[0].line > pair[1].line), "in random order");
    }
}
