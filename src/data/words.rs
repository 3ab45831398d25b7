//! How often the words of a vocabulary are used, and which of them stand for no text.

use super::calibration::{Calibration, Source};
use super::dataset::Dataset;
use super::prepare::tokenize;
use super::tables::read_examples;
use super::tokenizer::Tokenizer;
use crate::Result;
use crate::model::Config;
use std::collections::{BTreeSet, HashSet};

/// Counts of tokens in a text.
#[derive(Debug, Clone, Default)]
pub struct Words {
    /// `[vocab]`; empty where there was no text.
    pub counts: Vec<u64>,
    /// In the words of reports; empty where there was no text.
    pub source: String,
    pub texts: usize,
    pub tokens: usize,
    /// Whether the text was the built-in one, which is too short to tell rare words from those that never come.
    pub builtin: bool,
    /// Padding, unknown, separators and the like.
    pub special: BTreeSet<u32>,
    /// Rows that no text uses: ids that the tokenizer does not know, and those it keeps in reserve.
    pub unused: BTreeSet<u32>,
}

impl Words {
    /// Counts all texts of `data`, else the whole file of `source`, else the calibration text; never what is held out of
    /// that. Random tokens are not counted.
    ///
    /// # Errors
    /// What reading the file refuses.
    pub fn read(
        source: Option<&Source>,
        calibration: Option<&Calibration>,
        data: Option<&Dataset>,
        tokenizer: Option<&Tokenizer>,
        config: &Config,
        max_tokens: usize,
    ) -> Result<Words> {
        let mut words = Words::default();
        if let Some(tokenizer) = tokenizer {
            words.special = tokenizer.special_ids();
            words.unused = tokenizer.unused_ids();
            words.unused.extend((tokenizer.vocab_size()..config.vocab).map(|id| id as u32));
        }
        let text = |ids: &[u32], words: &mut Words| {
            words.texts += 1;
            words.tokens += ids.len();
            for &id in ids {
                if let Some(count) = words.counts.get_mut(id as usize) {
                    *count += 1;
                }
            }
        };
        let begin = |words: &mut Words, source: &str| {
            words.counts = vec![0; config.vocab];
            words.source = source.into();
        };
        if let Some(data) = data {
            begin(&mut words, &data.source);
            data.texts.iter().for_each(|t| text(&t.ids, &mut words));
            return Ok(words);
        }
        match (source, calibration, tokenizer) {
            (Some(Source::File { path, columns }), Some(calibration), Some(tokenizer)) => {
                begin(&mut words, &calibration.source);
                let examples = read_examples(path, columns)?.examples;
                let spans = calibration.held_out.iter().flat_map(|batch| {
                    batch.starts.windows(2).map(|span| &batch.ids[span[0]..span[1]])
                });
                let held: HashSet<&[u32]> = spans.collect();
                // Some at a time: a large file makes many tokens.
                for part in examples.chunks(1 << 14) {
                    let encoded = tokenize(part, config, tokenizer, max_tokens)?.encoded;
                    let seen = encoded.iter().filter(|t| !held.contains(&t.ids[..]));
                    seen.for_each(|t| text(&t.ids, &mut words));
                }
            }
            (Some(Source::Builtin), Some(calibration), _) => {
                begin(&mut words, &calibration.source);
                words.builtin = true;
                for batch in &calibration.batches {
                    let spans = batch.starts.windows(2);
                    spans.for_each(|span| text(&batch.ids[span[0]..span[1]], &mut words));
                }
            }
            _ => {}
        }
        Ok(words)
    }
}
