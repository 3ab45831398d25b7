//! Masked-LM corruption (BERT, Devlin et al. 2019, §3.1).

use super::tokenizer::Tokenizer;
use crate::runtime::Batch;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use std::collections::BTreeSet;

/// Share of tokens that are hidden (BERT).
const RATE: f32 = 0.15;

/// What hiding tokens takes of a tokenizer.
#[derive(Debug, Clone, PartialEq)]
pub struct Masker {
    pub mask_id: u32,
    /// Ids that are no text.
    pub special: BTreeSet<u32>,
}

impl Masker {
    /// None when the tokenizer has no mask.
    pub fn of(tokenizer: &Tokenizer) -> Option<Masker> {
        Some(Masker { mask_id: tokenizer.mask_id()?, special: tokenizer.special_ids() })
    }

    /// `batch` with some of its tokens hidden, and by token what stood there. The same `seed`, `step` and
    /// row of a text give the same choice.
    pub fn hide(
        &self,
        batch: &Batch,
        vocab: usize,
        seed: u64,
        step: u64,
    ) -> (Batch, Vec<Option<u32>>) {
        let (mut hidden, mut targets) = (batch.clone(), Vec::with_capacity(batch.tokens()));
        for (span, &row) in batch.starts.windows(2).zip(&batch.rows) {
            let ids = &batch.ids[span[0]..span[1]];
            let special = |i: usize| self.special.contains(&ids[i]);
            let seed = seed ^ step.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let (corrupted, asked) =
                mask_tokens(ids, special, self.mask_id, vocab, RATE, seed, row as u64);
            hidden.ids[span[0]..span[1]].copy_from_slice(&corrupted);
            targets.extend(asked);
        }
        (hidden, targets)
    }
}

/// `batch` with about `rate` of the tokens of each text swapped for tokens drawn from all its texts: other texts with the
/// words of these, for a teacher to answer. Half of the texts stay as they are; so do the ids in `special`, and the first
/// and the last token of a text where none is known. The same `seed` and row of a text give the same choice.
pub fn swap_tokens(batch: &Batch, special: &BTreeSet<u32>, rate: f32, seed: u64) -> Batch {
    let mut swapped = batch.clone();
    let ordinary = |t: usize, span: &[usize]| match special.is_empty() {
        true => t > span[0] && t + 1 < span[1],
        false => !special.contains(&batch.ids[t]),
    };
    let spans = || batch.starts.windows(2);
    let words: Vec<u32> = spans()
        .flat_map(|span| (span[0]..span[1]).filter(move |&t| ordinary(t, span)))
        .map(|t| batch.ids[t])
        .collect();
    for (span, &row) in spans().zip(&batch.rows) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(row as u64);
        if uniform(&mut rng) < 0.5 {
            continue;
        }
        for t in (span[0]..span[1]).filter(|&t| ordinary(t, span)) {
            if uniform(&mut rng) < rate {
                swapped.ids[t] = words[below(&mut rng, words.len())];
            }
        }
    }
    swapped
}

/// `ids` with some tokens hidden, and by token what stood there; None where nothing is asked.
///
/// Each ordinary token is chosen with probability `rate` (BERT: 0.15), and one of them at least, if there
/// is any. Of those chosen, 80 % become `mask_id`, 10 % a token drawn from the vocabulary, and 10 % stay
/// as they are. The same `seed` and `stream` (a number for each text and step) give the same choice.
///
/// - `special`: whether the token at an index is no text ([`crate::data::tokenizer::Tokenizer::special_ids`])
/// - `vocab`: rows of the word table; a drawn token is below
///
/// # Panics
/// If `vocab` is 0.
pub fn mask_tokens(
    ids: &[u32],
    special: impl Fn(usize) -> bool,
    mask_id: u32,
    vocab: usize,
    rate: f32,
    seed: u64,
    stream: u64,
) -> (Vec<u32>, Vec<Option<u32>>) {
    assert!(vocab > 0, "a model has words");
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(stream);
    let ordinary: Vec<usize> = (0..ids.len()).filter(|&i| !special(i)).collect();
    let mut chosen = ordinary.clone();
    chosen.retain(|_| uniform(&mut rng) < rate);
    if chosen.is_empty() && !ordinary.is_empty() {
        chosen.push(ordinary[below(&mut rng, ordinary.len())]);
    }
    let (mut corrupted, mut targets) = (ids.to_vec(), vec![None; ids.len()]);
    for i in chosen {
        targets[i] = Some(ids[i]);
        match below(&mut rng, 10) {
            0..8 => corrupted[i] = mask_id,
            8 => corrupted[i] = below(&mut rng, vocab) as u32,
            _ => {}
        }
    }
    (corrupted, targets)
}

/// In [0, 1).
fn uniform(rng: &mut ChaCha8Rng) -> f32 {
    (rng.next_u32() >> 8) as f32 / (1u32 << 24) as f32
}

/// Lemire's multiplication; its bias, n / 2^64, is far below the noise.
fn below(rng: &mut ChaCha8Rng, n: usize) -> usize {
    ((u128::from(rng.next_u64()) * n as u128) >> 64) as usize
}

#[cfg(test)]
mod tests {
    #[test]
    fn swapped_texts_keep_their_length_and_what_is_no_text() {
        let mut batch = Batch::default();
        for row in 0..40u32 {
            let ids: Vec<u32> =
                [101].into_iter().chain(1000 + row * 10..1010 + row * 10).chain([102]).collect();
            batch.push(&ids, &[0; 12], row as usize);
        }
        for special in [BTreeSet::from([101, 102]), BTreeSet::new()] {
            let swapped = swap_tokens(&batch, &special, 0.3, 7);
            assert_eq!(swapped, swap_tokens(&batch, &special, 0.3, 7));
            assert_ne!(swapped.ids, swap_tokens(&batch, &special, 0.3, 8).ids);
            assert_eq!((&swapped.starts, &swapped.rows), (&batch.starts, &batch.rows));
            let changed = |row: usize| {
                (0..12).filter(|i| swapped.ids[row * 12 + i] != batch.ids[row * 12 + i]).count()
            };
            assert!(
                (0..40)
                    .all(|row| swapped.ids[row * 12] == 101 && swapped.ids[row * 12 + 11] == 102)
            );
            let (touched, tokens) =
                ((0..40).filter(|&r| changed(r) > 0).count(), (0..40).map(changed).sum::<usize>());
            assert!((10..30).contains(&touched), "{touched} of 40 texts");
            assert!(
                (30..90).contains(&tokens),
                "{tokens} of 200 tokens of those, at a rate of 0.3"
            );
            assert!(swapped.ids.iter().all(|id| batch.ids.contains(id)));
        }
    }

    use proptest::prelude::*;

    use super::*;

    const MASK: u32 = 999;

    #[test]
    fn eighty_ten_ten_of_fifteen_percent() {
        let ids: Vec<u32> = (0..100_000).map(|i| i % 500).collect();
        let (corrupted, targets) = mask_tokens(&ids, |i| i % 10 == 0, MASK, 500, 0.15, 1, 2);
        let chosen: Vec<usize> = (0..ids.len()).filter(|&i| targets[i].is_some()).collect();
        let masked = chosen.iter().filter(|&&i| corrupted[i] == MASK).count() as f64;
        let kept = chosen.iter().filter(|&&i| corrupted[i] == ids[i]).count() as f64;
        let n = chosen.len() as f64;
        // Four standard deviations of the binomials: 0.0048, 0.014 and 0.010.
        assert!((n / 90_000.0 - 0.15).abs() < 0.0048, "{n} of 90000 chosen");
        assert!((masked / n - 0.8).abs() < 0.014, "{masked} of {n} masked");
        // A drawn token is the one that stood there once in 500.
        assert!((kept / n - 0.1002).abs() < 0.010, "{kept} of {n} kept");
        assert!(chosen.iter().all(|i| i % 10 != 0));
        let drawn = chosen.iter().map(|&i| corrupted[i]).filter(|&id| id != MASK).max();
        assert!(drawn > Some(480), "drawn from the whole vocabulary");
    }

    #[test]
    fn a_seed_and_a_stream_give_one_choice() {
        let ids: Vec<u32> = (0..64).collect();
        let with = |seed, stream| mask_tokens(&ids, |_| false, MASK, 64, 0.15, seed, stream);
        assert_eq!(with(1, 2), with(1, 2));
        assert_ne!(with(1, 2), with(1, 3));
        assert_ne!(with(1, 2), with(2, 2));
    }

    proptest! {
        #[test]
        fn what_is_asked_is_what_stood_there_and_nothing_else_changes(
            ids in proptest::collection::vec(0u32..40, 0..12), rate in 0f32..1.0, stream in 0u64..99
        ) {
            let special = |i: usize| ids[i] < 5;
            let (corrupted, targets) = mask_tokens(&ids, special, 4, 40, rate, 7, stream);
            let ordinary = (0..ids.len()).filter(|&i| !special(i)).count();
            prop_assert_eq!(targets.iter().any(Option::is_some), ordinary > 0);
            for (i, target) in targets.iter().enumerate() {
                match target {
                    Some(id) => prop_assert!(*id == ids[i] && !special(i) && corrupted[i] < 40),
                    None => prop_assert_eq!(corrupted[i], ids[i]),
                }
            }
        }
    }
}
