//! Which texts come when.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// One text in so many is held out to judge by, up to so many in all, and one of fewer.
const HELD_OUT: (usize, usize) = (16, 500);

/// Which of `texts` are trained on, and which are judged by.
pub fn split(texts: usize) -> (Vec<usize>, Vec<usize>) {
    let every = HELD_OUT.0.max(texts.div_ceil(HELD_OUT.1)).min(texts.max(2));
    (0..texts).partition(|row| row % every != every - 1)
}

/// The batches of a run: the texts of each, in an order that the seed fixes.
#[derive(Debug, Clone, PartialEq)]
pub enum Order {
    /// All texts once, then again in another order.
    Shuffled {
        /// Tokens of each text.
        lengths: Vec<usize>,
        batch: usize,
        /// Batches whose texts are sorted by length among each other, so that a batch holds texts of a
        /// length; 0 for none.
        bucket: usize,
        seed: u64,
    },
    /// Batches as given, from the first again after the last.
    Given(Vec<Vec<usize>>),
}

impl Order {
    /// Batches until every text was seen.
    pub fn epoch(&self) -> usize {
        match self {
            Order::Shuffled { lengths, batch, .. } => lengths.len().div_ceil(*batch),
            Order::Given(batches) => batches.len(),
        }
    }

    /// The texts of batch `index`, counted from the start of training. `cache` holds an epoch.
    pub fn batch<'a>(&'a self, index: usize, cache: &'a mut Cache) -> &'a [usize] {
        let (epoch, within) = (index / self.epoch(), index % self.epoch());
        match self {
            Order::Given(batches) => &batches[within],
            Order::Shuffled { lengths, batch, bucket, seed } => {
                if cache.0.as_ref().is_none_or(|(e, _)| *e != epoch) {
                    cache.0 = Some((epoch, shuffled(lengths, *batch, *bucket, *seed, epoch)));
                }
                &cache.0.as_ref().expect("just set").1[within]
            }
        }
    }
}

/// The batches of the epoch that was asked for last.
#[derive(Debug, Default)]
pub struct Cache(Option<(usize, Vec<Vec<usize>>)>);

fn shuffled(
    lengths: &[usize],
    batch: usize,
    bucket: usize,
    seed: u64,
    epoch: usize,
) -> Vec<Vec<usize>> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(epoch as u64);
    let mut rows: Vec<usize> = (0..lengths.len()).collect();
    shuffle(&mut rows, &mut rng);
    if bucket > 0 {
        for window in rows.chunks_mut(batch.saturating_mul(bucket)) {
            window.sort_by_key(|&row| lengths[row]); // stable: equals stay shuffled
        }
    }
    let mut batches: Vec<Vec<usize>> = rows.chunks(batch).map(<[usize]>::to_vec).collect();
    if bucket > 0 {
        shuffle(&mut batches, &mut rng);
    }
    batches
}

/// Fisher and Yates.
fn shuffle<T>(items: &mut [T], rng: &mut ChaCha8Rng) {
    for i in (1..items.len()).rev() {
        items.swap(i, (rng.next_u64() % (i as u64 + 1)) as usize);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(bucket: usize) -> Order {
        let lengths = (0..23).map(|i| i * 7 % 19 + 1).collect();
        Order::Shuffled { lengths, batch: 4, bucket, seed: 5 }
    }

    #[test]
    fn an_epoch_has_every_text_once_and_the_next_another_order() {
        for bucket in [0, 2] {
            let order = order(bucket);
            let epoch = |e: usize| -> Vec<usize> {
                let mut cache = Cache::default();
                (e * 6..e * 6 + 6).flat_map(|i| order.batch(i, &mut cache).to_vec()).collect()
            };
            assert_eq!(order.epoch(), 6);
            let mut first = epoch(0);
            assert_ne!(first, epoch(1));
            assert_eq!(first, epoch(0));
            first.sort_unstable();
            assert!(first.into_iter().eq(0..23));
        }
    }

    #[test]
    fn buckets_hold_texts_of_a_length() {
        let Order::Shuffled { lengths, .. } = order(0) else { unreachable!() };
        let spread = |order: &Order| -> usize {
            let mut cache = Cache::default();
            let one = |i| {
                let of: Vec<_> = order.batch(i, &mut cache).iter().map(|&r| lengths[r]).collect();
                of.iter().max().expect("texts") - of.iter().min().expect("texts")
            };
            (0..6).map(one).sum()
        };
        assert!(spread(&order(6)) * 2 < spread(&order(0)));
    }

    #[test]
    fn a_given_order_starts_again() {
        let order = Order::Given(vec![vec![3, 1], vec![0]]);
        let mut cache = Cache::default();
        assert_eq!(order.batch(2, &mut cache), [3, 1]);
    }
}
