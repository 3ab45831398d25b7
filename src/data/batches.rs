//! Batches without padding: sequences laid end to end.

use crate::data::tokenizer::Encoded;
use crate::runtime::Batch;

/// Sorts `encoded` by length, keeping the order of equals, and cuts it into batches of at most
/// `max_tokens_per_batch` tokens and `max_sequences` sequences, the shortest first.
///
/// A sequence longer than `max_tokens_per_batch` is a batch of its own.
///
/// # Panics
/// If a sequence is empty (a tokenizer adds special tokens) or `max_sequences` is 0.
pub fn bucket(
    encoded: &[Encoded],
    max_tokens_per_batch: usize,
    max_sequences: usize,
) -> Vec<Batch> {
    assert!(max_sequences > 0, "a batch holds at least one sequence");
    assert!(encoded.iter().all(|e| !e.ids.is_empty()), "a sequence has at least one token");
    let mut rows: Vec<usize> = (0..encoded.len()).collect();
    rows.sort_by_key(|&row| encoded[row].ids.len());

    let mut batches: Vec<Batch> = Vec::new();
    for row in rows {
        let sequence = &encoded[row];
        let fits = |b: &&mut Batch| {
            b.rows.len() < max_sequences && b.ids.len() + sequence.ids.len() <= max_tokens_per_batch
        };
        match batches.last_mut().filter(fits) {
            Some(batch) => batch.push(&sequence.ids, &sequence.type_ids, row),
            None => {
                let mut batch = Batch::default();
                batch.push(&sequence.ids, &sequence.type_ids, row);
                batches.push(batch);
            }
        }
    }
    batches
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sequence(len: usize, id: u32) -> Encoded {
        Encoded { ids: vec![id; len], type_ids: vec![0; len] }
    }

    #[test]
    fn similar_lengths_come_together_and_equals_keep_their_order() {
        let encoded = [sequence(3, 10), sequence(1, 11), sequence(3, 12), sequence(2, 13)];
        let batches = bucket(&encoded, 6, 8);
        assert_eq!(
            batches,
            [
                Batch {
                    ids: vec![11, 13, 13, 10, 10, 10],
                    type_ids: vec![0; 6],
                    positions: vec![0, 0, 1, 0, 1, 2],
                    starts: vec![0, 1, 3, 6],
                    rows: vec![1, 3, 0],
                    padding: Vec::new(),
                },
                Batch {
                    ids: vec![12, 12, 12],
                    type_ids: vec![0; 3],
                    positions: vec![0, 1, 2],
                    starts: vec![0, 3],
                    rows: vec![2],
                    padding: Vec::new(),
                },
            ]
        );
    }

    #[test]
    fn an_overlong_sequence_is_alone() {
        let batches = bucket(&[sequence(9, 1), sequence(2, 2)], 4, 8);
        let rows: Vec<_> = batches.iter().map(|b| b.rows.clone()).collect();
        assert_eq!(rows, [[1], [0]]);
    }

    #[test]
    fn nothing_makes_no_batch() {
        assert_eq!(bucket(&[], 4, 1), []);
    }

    proptest! {
        #[test]
        fn every_token_is_in_exactly_one_batch(
            lengths in proptest::collection::vec(1..9usize, 0..20), tokens in 1..20usize, sequences in 1..5usize
        ) {
            let encoded: Vec<_> = lengths.iter().enumerate().map(|(i, &n)| sequence(n, i as u32)).collect();
            let batches = bucket(&encoded, tokens, sequences);
            let mut seen: Vec<usize> = Vec::new();
            for b in &batches {
                prop_assert!(b.rows.len() <= sequences);
                prop_assert!(b.ids.len() <= tokens || b.rows.len() == 1);
                prop_assert_eq!(b.ids.len(), b.positions.len());
                for (s, &row) in b.rows.iter().enumerate() {
                    let span = b.starts[s]..b.starts[s + 1];
                    prop_assert_eq!(&b.ids[span.clone()], &encoded[row].ids[..]);
                    prop_assert!(b.positions[span].iter().copied().eq(0..lengths[row] as u32));
                    seen.push(row);
                }
            }
            seen.sort();
            prop_assert!(seen.into_iter().eq(0..lengths.len()));
        }
    }
}
