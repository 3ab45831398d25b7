//! What is asked of a variant, what was found out about one, and which of two is better.

use serde::{Deserialize, Serialize};
use std::cmp::Ordering;
use std::collections::BTreeMap;

/// Budgets; `None`: anything will do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Targets {
    /// The most bytes of the weight file.
    pub size: Option<u64>,
    /// The least number of times it is to run as fast as the original.
    pub speedup: Option<f64>,
    /// The most that quality may fall by, as a share: see [`Found::drop`].
    pub drop: Option<f64>,
}

/// What was found out about a variant that was made and judged.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Found {
    /// Of the calibration text, that passes worked with.
    pub texts: usize,
    /// Of the texts to train on, those that it was trained on where a pass trains.
    pub data: usize,
    /// Held-out texts that it was judged by.
    pub judged: usize,
    /// Of the weight file that would be written.
    pub bytes: u64,
    /// Of the held-out texts, each at its own length.
    pub flops: u64,
    /// Over those of the original.
    pub flops_share: f64,
    /// How many times as fast as the original.
    pub speed: f64,
    pub speed_by: SpeedBy,
    /// What the main metric fell by on the held-out texts; where they have no labels, the share of answers that are
    /// others; of embeddings one less the mean cosine, and of other heads the relative error of the answers.
    pub drop: f64,
    /// Of what.
    pub drop_of: String,
    /// How far its answers are from the original's: mean KL divergence in nats where they are classes, else one less the
    /// mean cosine, or the relative error.
    pub divergence: f64,
    pub divergence_of: String,
    /// All that was measured on the held-out texts, by name.
    pub metrics: BTreeMap<String, f64>,
}

/// Where a speed comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SpeedBy {
    /// FLOPs of the original over its own.
    Flops,
    /// Both models in turn, in one run.
    Measured,
}

/// How good a variant is; less is better.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Score {
    /// How far from the targets: 0 where all are met.
    pub(super) miss: f64,
    /// What is wanted besides.
    loss: f64,
    bytes: u64,
}

/// A point of quality that is missing weighs as a tenth of the bytes or of the time.
const DROP_WEIGHT: f64 = 10.0;

impl Targets {
    /// Whether nothing is asked.
    pub fn is_empty(&self) -> bool {
        *self == Targets::default()
    }

    /// Feasibility first, then quality; where only quality is bounded, bytes.
    pub(super) fn score(&self, found: &Found) -> Score {
        let over = |x: f64| x.max(0.0);
        let size = self.too_large(found.bytes);
        let speed = self.speedup.map_or(0.0, |least| over((least / found.speed).ln()));
        let drop = self.drop.map_or(0.0, |most| over(found.drop - most) * DROP_WEIGHT);
        let loss = match (self.size, self.speedup) {
            (None, None) => found.bytes as f64,
            _ => found.divergence,
        };
        Score { miss: size + speed + drop, loss, bytes: found.bytes }
    }

    /// Whether a variant of at least so many bytes may be better than `best`, however fast it is and whatever it answers;
    /// where there is none yet, whether it may meet the targets.
    pub(super) fn hopeful(&self, bytes: u64, best: Option<&Score>) -> bool {
        let by_bytes = self.size.is_none() && self.speedup.is_none();
        let loss = if by_bytes { bytes as f64 } else { 0.0 };
        let least = Score { miss: self.too_large(bytes), loss, bytes };
        best.map_or(least.miss == 0.0, |best| least.order(best).is_lt())
    }

    /// How far from the target bytes are: 0 where they meet it.
    fn too_large(&self, bytes: u64) -> f64 {
        self.size.map_or(0.0, |most| (bytes as f64 / most as f64).ln().max(0.0))
    }

    /// What `found` misses, in words; empty where it meets all.
    pub fn missed(&self, found: &Found) -> Vec<String> {
        let mut missed = Vec::new();
        if let Some(most) = self.size.filter(|&most| found.bytes > most) {
            missed.push(format!("{} bytes, at most {most}", found.bytes));
        }
        if let Some(least) = self.speedup.filter(|&least| found.speed < least) {
            missed.push(format!("{:.3} times as fast, at least {least}", found.speed));
        }
        if let Some(most) = self.drop.filter(|&most| found.drop > most) {
            missed.push(format!("{} down by {:.4}, at most {most}", found.drop_of, found.drop));
        }
        missed
    }
}

impl Score {
    pub(super) fn order(&self, other: &Score) -> Ordering {
        let parts = [(self.miss, other.miss), (self.loss, other.loss)];
        let order = parts.into_iter().map(|(a, b)| a.total_cmp(&b)).find(|o| o.is_ne());
        order.unwrap_or_else(|| self.bytes.cmp(&other.bytes))
    }
}

/// Of `found`, those that no other beats in bytes, speed and divergence, in their order: the Pareto front. Of equals the
/// first stays.
pub fn front(found: &[&Found]) -> Vec<usize> {
    let costs = |f: &Found| [f.bytes as f64, -f.speed, f.divergence];
    let beats = |a: &Found, b: &Found| {
        let pairs = || costs(a).into_iter().zip(costs(b));
        pairs().all(|(a, b)| a <= b) && pairs().any(|(a, b)| a < b)
    };
    let stays = |&i: &usize| {
        let same = |f: &Found| costs(f) == costs(found[i]);
        !found.iter().any(|other| beats(other, found[i])) && !found[..i].iter().any(|f| same(f))
    };
    (0..found.len()).filter(stays).collect()
}

#[cfg(test)]
mod tests {
    use super::super::tests::found;
    use super::*;

    #[test]
    fn what_meets_the_targets_is_better_than_what_does_not() {
        let targets = Targets { size: Some(1000), speedup: Some(2.0), drop: Some(0.01) };
        let score = |bytes, speed, drop| targets.score(&found(bytes, speed, drop));
        let good = score(1000, 2.0, 0.01);
        assert_eq!(good.miss, 0.0);
        for bad in [score(1100, 9.0, 0.0), score(10, 1.9, 0.0), score(10, 9.0, 0.02)] {
            assert!(bad.miss > 0.0 && good.order(&bad).is_lt(), "{bad:?}");
        }
        // Of two that meet them, the one with the closer answers; a point weighs as much as a tenth of the bytes.
        assert!(score(900, 2.0, 0.002).order(&score(100, 9.0, 0.004)).is_lt());
        assert!((score(1000, 2.0, 0.02).miss - 0.1).abs() < 1e-12);
        assert!(score(1100, 2.0, 0.0).order(&score(1000, 2.0, 0.02)).is_lt());
    }

    #[test]
    fn where_only_quality_is_bounded_the_smallest_wins() {
        let targets = Targets { drop: Some(0.01), ..Targets::default() };
        let score = |bytes, drop| targets.score(&found(bytes, 1.0, drop));
        assert!(score(100, 0.009).order(&score(200, 0.0)).is_lt());
        assert!(score(200, 0.0).order(&score(100, 0.011)).is_lt());
    }

    #[test]
    fn bytes_alone_say_what_cannot_be_better() {
        let targets = Targets { size: Some(1000), drop: Some(0.01), ..Targets::default() };
        let best = |bytes, drop| targets.score(&found(bytes, 1.0, drop));
        let hopeful = |bytes, best: Score| targets.hopeful(bytes, Some(&best));
        // One that meets the targets may be beaten by any that may meet them, another by one that is less too large.
        assert!(hopeful(1000, best(500, 0.01)) && !hopeful(1001, best(500, 0.01)));
        assert!(hopeful(1100, best(1200, 0.0)) && !hopeful(1300, best(1200, 0.0)));
        assert!(targets.hopeful(1000, None) && !targets.hopeful(1001, None));
        // Where the smallest wins, none that is larger does.
        let targets = Targets { drop: Some(0.01), ..Targets::default() };
        let best = targets.score(&found(500, 1.0, 0.0));
        assert!(targets.hopeful(499, Some(&best)) && !targets.hopeful(501, Some(&best)));
        let missing = targets.score(&found(500, 1.0, 0.02));
        assert!(targets.hopeful(900, Some(&missing)), "quality is not known beforehand");
    }

    #[test]
    fn what_is_missed_is_said() {
        let targets = Targets { size: Some(1000), speedup: Some(2.0), drop: Some(0.01) };
        assert_eq!(
            targets.missed(&found(2000, 1.5, 0.02)),
            [
                "2000 bytes, at most 1000",
                "1.500 times as fast, at least 2",
                "agreement down by 0.0200, at most 0.01"
            ]
        );
        assert!(targets.missed(&found(1000, 2.0, 0.01)).is_empty());
    }

    #[test]
    fn the_front_is_what_nothing_beats() {
        let all = [
            found(100, 2.0, 0.03),
            found(200, 2.0, 0.03), // larger than the first, no better
            found(200, 1.0, 0.01),
            found(100, 2.0, 0.03), // the first again
            found(300, 4.0, 0.05),
        ];
        assert_eq!(front(&all.iter().collect::<Vec<_>>()), [0, 2, 4]);
    }
}
