//! Hard-concrete gates: masks in [0, 1] that are exactly 0 or 1 with a probability that can be trained
//! (Louizos et al. 2018, §2.2), with the constants of CoFi (Xia et al. 2022).
//!
//! A gate has one parameter, its logit (`log α`).

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::RngCore;

/// The interval that a concrete sample is stretched to before it is cut to [0, 1].
const GAMMA: f32 = -0.1;
const ZETA: f32 = 1.1;
/// Temperature of the concrete distribution.
const BETA: f32 = 2.0 / 3.0;
/// Uniform samples and probabilities keep this distance from 0 and 1.
const EPS: f32 = 1e-6;
/// On the logit of a deterministic mask, besides the temperature (Wang et al. 2020).
const FACTOR: f32 = 0.8;
/// `-β·ln(-γ / ζ)`
const SHIFT: f32 = 1.598_596_8;
/// ln 100: logits stay in [-BOUND, BOUND].
pub const BOUND: f32 = 4.605_170_2;

/// P(z > 0).
pub fn open(logit: f32) -> f32 {
    sigmoid(logit + SHIFT).clamp(EPS, 1.0 - EPS)
}

/// `d open / d logit = p · (1 - p)`. The limits of [`open`] do not show in it: they lie beyond [`BOUND`].
pub fn open_slope(logit: f32) -> f32 {
    // Not p · (1 - p), which has few digits left where a gate is wide open.
    let e = (-(logit + SHIFT).abs()).exp();
    e / ((1.0 + e) * (1.0 + e))
}

/// The value of a gate that is not drawn, in (0, 1): neither stretched nor cut.
pub fn soft(logit: f32) -> f32 {
    sigmoid(FACTOR / BETA * logit)
}

/// One value in [0, 1] for every gate.
pub fn sample(logits: &[f32], rng: &mut ChaCha8Rng) -> Vec<f32> {
    let draw = |&logit: &f32| {
        let unit = (rng.next_u32() as f64 + 0.5) / 4294967296.0;
        let u = EPS as f64 + (1.0 - 2.0 * EPS as f64) * unit;
        let s = sigmoid(((u / (1.0 - u)).ln() as f32 + logit) / BETA);
        (s * (ZETA - GAMMA) + GAMMA).clamp(0.0, 1.0)
    };
    logits.iter().map(draw).collect()
}

/// `dz / d logit` of a sample `z`, which says by itself where its gate's noise lay: nothing else has to be
/// kept for the way back.
pub fn slope(z: f32) -> f32 {
    if z <= 0.0 || z >= 1.0 {
        return 0.0; // cut off
    }
    let s = (z - GAMMA) / (ZETA - GAMMA);
    (ZETA - GAMMA) * s * (1.0 - s) / BETA
}

/// The mask to evaluate and to cut with: as many gates of `row` are 0 as are closed in expectation
/// (rounded, halves to even), those with the smallest logits, of equals the first; the rest are [`soft`].
/// A row is what closes together: the heads of a layer, its units, the hidden width, or one gate alone,
/// which closes where P(z > 0) is below a half.
pub fn deterministic(row: &[f32]) -> Vec<f32> {
    let shut: f64 = row.iter().map(|&logit| 1.0 - open(logit) as f64).sum();
    let mut order: Vec<usize> = (0..row.len()).collect();
    order.sort_by(|&a, &b| row[a].total_cmp(&row[b])); // stable: ties go by index
    let mut mask: Vec<f32> = row.iter().map(|&logit| soft(logit)).collect();
    for &gate in &order[..shut.round_ties_even() as usize] {
        mask[gate] = 0.0;
    }
    mask
}

/// Brings logits back within [`BOUND`], where their gradients do not vanish; `least` may be further down.
pub fn clamp(logits: &mut [f32], least: f32) {
    logits.iter_mut().for_each(|logit| *logit = logit.clamp(least, BOUND));
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_chacha::rand_core::SeedableRng;

    /// By logit: P(z > 0), the soft mask, P(z = 1). Computed from the formulas in f64.
    const TABLE: [(f32, f32, f32, f64); 9] = [
        (4.60517, 0.997982, 0.996035, 0.95287),
        (3.0, 0.990034, 0.973403, 0.80241),
        (2.0, 0.973367, 0.916827, 0.59902),
        (1.0, 0.930771, 0.768525, 0.35466),
        (0.0, 0.831822, 0.500000, 0.16818),
        (-1.0, 0.645335, 0.231475, 0.06923),
        (-1.5986, 0.500000, 0.128049, 0.03927),
        (-3.0, 0.197594, 0.026597, 0.00997),
        (-4.60517, 0.047130, 0.003965, 0.00202),
    ];

    #[test]
    fn probabilities_and_soft_masks_are_those_of_the_formulas() {
        for (logit, p, z, _) in TABLE {
            assert!((open(logit) - p).abs() < 1e-6, "{logit}: {}", open(logit));
            assert!((soft(logit) - z).abs() < 1e-6, "{logit}: {}", soft(logit));
        }
        assert!((SHIFT + BETA * (-GAMMA / ZETA).ln()).abs() < 1e-6);
        assert_eq!((open(-50.0), open(50.0)), (EPS, 1.0 - EPS));
    }

    #[test]
    fn samples_are_0_and_1_as_often_as_they_should() {
        let rng = &mut ChaCha8Rng::seed_from_u64(1);
        for (logit, p, _, one) in TABLE.into_iter().filter(|t| [-1.0, 0.0, 2.0].contains(&t.0)) {
            let z = sample(&vec![logit; 1_000_000], rng);
            let share = |of: f32| z.iter().filter(|z| **z == of).count() as f64 / 1e6;
            assert!((share(0.0) - (1.0 - p as f64)).abs() < 2e-3, "{logit}: {}", share(0.0));
            assert!((share(1.0) - one).abs() < 2e-3, "{logit}: {}", share(1.0));
        }
    }

    #[test]
    fn slopes_are_differences() {
        assert!((open_slope(0.0) - 0.139894).abs() < 1e-6);
        // The same noise each time; 1/64 is exact, so that only the values are rounded.
        let (h, moved) = (1.0 / 64.0, |by: f32| {
            let logits: Vec<f32> = (0..200).map(|i| (i % 9) as f32 - 4.0 + by).collect();
            (sample(&logits, &mut ChaCha8Rng::seed_from_u64(2)), logits)
        });
        let ((low, _), (z, logits), (high, _)) = (moved(-h), moved(0.0), moved(h));
        let mut inside = 0;
        for i in 0..logits.len() {
            let found = (open(logits[i] + h) - open(logits[i] - h)) / (2.0 * h);
            assert!((found - open_slope(logits[i])).abs() < 2e-5, "{}", logits[i]);
            let cut = |z: f32| z == 0.0 || z == 1.0;
            if !cut(low[i]) && !cut(high[i]) {
                let found = (high[i] - low[i]) / (2.0 * h);
                assert!((found - slope(z[i])).abs() < 1e-4, "{found} at {}", z[i]);
                inside += 1;
            }
        }
        assert!(inside > 20);
        assert_eq!((slope(0.0), slope(1.0)), (0.0, 0.0));
    }

    #[test]
    fn a_row_closes_what_is_closed_in_expectation() {
        let row = [3.0, 3.0, 3.0, 3.0, -3.0, -3.0, -3.0, -3.0, 0.0, 0.0, 1.0, -1.0];
        let sum: f32 = row.iter().map(|&logit| open(logit)).sum();
        assert!((sum - 7.990262).abs() < 1e-5, "{sum}"); // a sum of twelve in f32
        let expected = [
            0.973403, 0.973403, 0.973403, 0.973403, 0.0, 0.0, 0.0, 0.0, 0.5, 0.5, 0.768525,
            0.231475,
        ];
        for (found, expected) in deterministic(&row).into_iter().zip(expected) {
            assert!((found - expected).abs() < 1e-6, "{found} {expected}");
        }
        // Ten closed gates of twelve equal ones (12 · .8024): the first ten.
        let equal = deterministic(&[-3.0; 12]);
        assert!(equal[..10].iter().all(|z| *z == 0.0) && equal[10..].iter().all(|z| *z > 0.0));
        // A gate alone, on both sides of a half.
        assert_eq!(deterministic(&[-1.6]), [0.0]);
        assert_eq!(deterministic(&[-1.597]), [soft(-1.597)]);
        assert!(deterministic(&[]).is_empty());
        // Even what is as open as can be loses a little: 1.55 of 768 gates.
        let open = deterministic(&[BOUND; 768]);
        assert_eq!(open.iter().filter(|z| **z == 0.0).count(), 2);
    }

    #[test]
    fn logits_stay_in_bounds() {
        let mut logits = [10.0, -10.0, 0.5];
        clamp(&mut logits, -BOUND);
        assert_eq!(logits, [100f32.ln(), -(100f32.ln()), 0.5]);
    }
}
