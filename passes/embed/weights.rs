//! What the rows of a table weigh, and which are stored as they are.

use super::{Embed, Weighting};
use crate::data::Words;
use crate::report::count;

/// Counts of rows where no text says any: the rank of a row in the vocabulary, as Zipf has it. Vocabularies are ordered
/// by frequency, but for what stands at their beginning.
const RANK: f64 = 10.0;
/// Tokens a row that such a prior stands for, where there is no text.
const PRIOR_TOKENS: f64 = 10.0;

/// Counts and what follows from them.
#[derive(Debug)]
pub struct Frequencies {
    /// `[vocab]`: how often each row is used, or is believed to be.
    pub counts: Vec<f64>,
    /// Padding and other special tokens, ascending.
    pub special: Vec<u32>,
    /// `[vocab]`: rows that no text uses.
    unused: Vec<bool>,
    /// In a sentence without a full stop: where the counts come from.
    pub note: String,
}

impl Frequencies {
    /// From what is known of the words; `pad` is the padding id that config.json names.
    pub fn new(words: Option<&Words>, vocab: usize, pad: u32) -> Frequencies {
        let none = Words::default();
        let words = words.unwrap_or(&none);
        let mut special: Vec<u32> = words
            .special
            .iter()
            .copied()
            .chain([pad])
            .filter(|&id| (id as usize) < vocab)
            .collect();
        special.sort_unstable();
        special.dedup();
        let mut unused = vec![false; vocab];
        let rows = words.unused.iter().filter(|id| !words.special.contains(id));
        rows.filter(|&&id| (id as usize) < vocab).for_each(|&id| unused[id as usize] = true);
        let seen = |counts: &[u64]| counts.iter().filter(|&&n| n > 0).count();
        let (counts, note) = match words.counts.is_empty() {
            true => {
                let counts = zipf(&special, &unused, PRIOR_TOKENS * vocab as f64);
                let note = "There was no text to count words in: counts are Zipf's, by the order of the \
                            vocabulary";
                (counts, note.to_string())
            }
            false => {
                let counts: Vec<f64> = words.counts.iter().map(|&n| n as f64).collect();
                let text = format!(
                    "Words are counted in {}: {} texts, {} tokens, {} of {} rows",
                    words.source,
                    count(words.texts as u64),
                    count(words.tokens as u64),
                    count(seen(&words.counts) as u64),
                    count(vocab as u64)
                );
                match words.builtin {
                    false => (counts, text),
                    true => {
                        let prior = zipf(&special, &unused, words.tokens as f64);
                        let counts = counts.iter().zip(prior).map(|(n, p)| n + p).collect();
                        let more = "; as many again are Zipf's, by the order of the vocabulary";
                        (counts, text + more)
                    }
                }
            }
        };
        Frequencies { counts, special, unused, note }
    }

    /// Special tokens, and the `hottest` of the others that are used at all; ascending.
    pub fn exact(&self, hottest: usize) -> Vec<u32> {
        let special = |id: &u32| self.special.binary_search(id).is_ok();
        let mut ids: Vec<u32> = (0..self.counts.len() as u32)
            .filter(|id| !special(id) && self.counts[*id as usize] > 0.0)
            .collect();
        // Of equals, the one that stands first in the vocabulary.
        ids.sort_by(|a, b| self.counts[*b as usize].total_cmp(&self.counts[*a as usize]));
        ids.truncate(hottest);
        ids.extend(&self.special);
        ids.sort_unstable();
        ids
    }

    /// `[vocab]`: what rows weigh in a fit; 0 where they are exact or no text uses them.
    pub fn weights(&self, options: &Embed, exact: &[u32]) -> Vec<f32> {
        let weight = |n: f64| match options.weights {
            Weighting::Sqrt => (n + options.alpha).sqrt(),
            Weighting::Count => n + options.alpha,
            Weighting::Uniform => 1.0,
        };
        let mut weights: Vec<f32> = self.counts.iter().map(|&n| weight(n) as f32).collect();
        for (w, _) in weights.iter_mut().zip(&self.unused).filter(|(_, unused)| **unused) {
            *w = 0.0;
        }
        exact.iter().for_each(|&id| weights[id as usize] = 0.0);
        if weights.iter().all(|&w| w == 0.0) {
            weights.fill(1.0); // all rows are exact: nothing depends on what is fitted
        }
        weights
    }
}

/// `total` tokens, by rank among the rows that text uses.
fn zipf(special: &[u32], unused: &[bool], total: f64) -> Vec<f64> {
    let used = |id: usize| !unused[id] && special.binary_search(&(id as u32)).is_err();
    let mut rank = 0.0;
    let share = |id: usize| match used(id) {
        true => {
            rank += 1.0;
            1.0 / (rank + RANK)
        }
        false => 0.0,
    };
    let mut counts: Vec<f64> = (0..unused.len()).map(share).collect();
    let sum: f64 = counts.iter().sum();
    counts.iter_mut().for_each(|n| *n *= total / sum.max(f64::MIN_POSITIVE));
    counts
}
