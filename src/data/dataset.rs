//! Texts to train on.

use super::calibration::{Calibration, sample};
use super::labels::Targets;
use super::masking::Masker;
use super::prepare::{is_labelled, label, tokenize};
use super::tables::{Columns, read_examples};
use super::tokenizer::{Encoded, Tokenizer};
use crate::Result;
use crate::model::Config;
use crate::runtime::Batch;
use std::collections::HashSet;
use std::path::Path;

/// Tokenized texts, with their labels where there are any.
#[derive(Debug, Clone)]
pub struct Dataset {
    pub texts: Vec<Encoded>,
    /// One entry a text.
    pub targets: Option<Targets>,
    /// How to hide tokens; None without a tokenizer that has a mask.
    pub masker: Option<Masker>,
    /// In the words of reports: the file's name, or `built-in text`.
    pub source: String,
}

impl Dataset {
    /// The texts that passes may watch the model on, in the order of their file.
    pub fn of(calibration: &Calibration) -> Dataset {
        let mut rows: Vec<(usize, Encoded)> = Vec::new();
        for batch in &calibration.batches {
            for (text, &row) in batch.rows.iter().enumerate() {
                let span = batch.starts[text]..batch.starts[text + 1];
                let (ids, type_ids) =
                    (batch.ids[span.clone()].to_vec(), batch.type_ids[span].to_vec());
                rows.push((row, Encoded { ids, type_ids }));
            }
        }
        rows.sort_by_key(|(row, _)| *row);
        let (rows, texts): (Vec<usize>, Vec<Encoded>) = rows.into_iter().unzip();
        let targets = calibration.targets.as_ref().map(|t| t.select(&rows));
        let masker = calibration.masker.clone();
        Dataset { texts, targets, masker, source: calibration.source.clone() }
    }

    /// Reads at most `limit` examples of a file, drawn by `seed` where there are more, of at most
    /// `max_tokens` tokens, with their labels where there are any.
    ///
    /// # Errors
    /// What [`read_examples`] and the tokenizer refuse; labels that do not fit the model.
    pub fn read(
        path: &Path,
        columns: &Columns,
        tokenizer: &Tokenizer,
        config: &Config,
        limit: usize,
        max_tokens: usize,
        seed: u64,
    ) -> Result<Dataset> {
        let mut examples = read_examples(path, columns)?.examples;
        sample(&mut examples, limit, seed);
        let tokenized = tokenize(&examples, config, tokenizer, max_tokens)?;
        let targets = match examples.iter().any(|e| is_labelled(e, config.task)) {
            true => label(&examples, config, &tokenized, path)?,
            false => None,
        };
        let source = path.file_name().map_or_else(String::new, |n| n.to_string_lossy().into());
        Ok(Dataset { texts: tokenized.encoded, targets, masker: Masker::of(tokenizer), source })
    }

    /// The texts at `rows`, in that order.
    pub fn select(&self, rows: &[usize]) -> Dataset {
        Dataset {
            texts: rows.iter().map(|&row| self.texts[row].clone()).collect(),
            targets: self.targets.as_ref().map(|t| t.select(rows)),
            masker: self.masker.clone(),
            source: self.source.clone(),
        }
    }

    /// Without the texts that `calibration` holds out: what a report judges by must not be trained on.
    pub fn without_held_out(self, calibration: &Calibration) -> Dataset {
        self.without(&calibration.held_out)
    }

    /// Without the texts of `batches`.
    pub fn without(&self, batches: &[Batch]) -> Dataset {
        let spans = |b: &'_ Batch| -> Vec<Vec<u32>> {
            b.starts.windows(2).map(|s| b.ids[s[0]..s[1]].to_vec()).collect()
        };
        let held: HashSet<Vec<u32>> = batches.iter().flat_map(spans).collect();
        let kept = |&row: &usize| !held.contains(&self.texts[row].ids);
        let rows: Vec<usize> = (0..self.texts.len()).filter(kept).collect();
        self.select(&rows)
    }

    /// `n` of its texts, spread over it; all where it has no more.
    pub fn part(&self, n: usize) -> Dataset {
        let n = n.min(self.texts.len());
        self.select(&(0..n).map(|i| i * self.texts.len() / n).collect::<Vec<_>>())
    }

    /// Tokens of all texts.
    pub fn tokens(&self) -> usize {
        self.texts.iter().map(|t| t.ids.len()).sum()
    }
}
