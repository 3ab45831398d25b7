//! Learning rates over time.

use serde::{Deserialize, Serialize};

/// What the rate does after its warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// Falls to 0 at the last step along a line.
    Linear,
    /// Falls to 0 along half a cosine.
    Cosine,
    Constant,
}

impl Schedule {
    /// Share of the full rate at update `step` of `steps` (from 0), the first `warmup` of which climb along
    /// a line; the first update has rate 0, as in Transformers' schedules.
    pub fn factor(self, step: usize, steps: usize, warmup: usize) -> f32 {
        if step < warmup {
            return step as f32 / warmup as f32;
        }
        let done = (step - warmup) as f32 / (steps - warmup).max(1) as f32;
        match self {
            Schedule::Linear => (1.0 - done).max(0.0),
            Schedule::Cosine => 0.5 * (1.0 + (std::f32::consts::PI * done.min(1.0)).cos()),
            Schedule::Constant => 1.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `get_linear_schedule_with_warmup(…, 4, 10)` of Transformers, and its cousins.
    #[test]
    fn rates_are_those_of_transformers() {
        let rates = |s: Schedule| (0..11).map(|i| s.factor(i, 10, 4)).collect::<Vec<_>>();
        let linear = rates(Schedule::Linear);
        let expected =
            [0.0, 0.25, 0.5, 0.75, 1.0, 5.0 / 6.0, 4.0 / 6.0, 0.5, 2.0 / 6.0, 1.0 / 6.0, 0.0];
        assert!(linear.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{linear:?}");
        let cosine = rates(Schedule::Cosine);
        assert!((cosine[7] - 0.5).abs() < 1e-6 && cosine[10].abs() < 1e-6, "{cosine:?}");
        assert_eq!(rates(Schedule::Constant)[4..], [1.0; 7]);
        assert_eq!(Schedule::Linear.factor(0, 1, 0), 1.0);
    }
}
