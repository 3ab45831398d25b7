//! Inputs of a linear layer rounded to a few bits.

use crate::model::Activations;

/// The rows of `x`, `[tokens, width]`, as their quantised codes say: each row has a scale and a zero point of its
/// own, so that 0 is exact.
pub fn rounded(x: &[f32], width: usize, activations: Activations) -> Vec<f32> {
    let Some(bits) = activations.bits() else { return x.to_vec() };
    let top = ((1 << bits) - 1) as f32;
    let mut out = super::arena::copy(x);
    for row in out.chunks_exact_mut(width.max(1)) {
        let (low, high) = row.iter().fold((0.0f32, 0.0f32), |(l, h), &x| (l.min(x), h.max(x)));
        let scale = (high - low) / top;
        if scale > 0.0 {
            let zero = (-low / scale).round_ties_even();
            for x in row {
                *x = scale * (((*x / scale).round_ties_even() + zero).clamp(0.0, top) - zero);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_rounded_to_its_own_steps_and_zero_stays_zero() {
        let x = [0.0, 15.0, 7.4, 3.5, -1.0, 0.5, 0.0, 0.1];
        let found = rounded(&x, 4, Activations::Int4);
        assert_eq!(found[..4], [0.0, 15.0, 7.0, 4.0]);
        let step = 1.5 / 15.0;
        let expected = [-1.0, 0.5, 0.0, 0.1];
        for (found, expected) in found[4..].iter().zip(expected) {
            assert!((found - expected).abs() < 1e-6, "{found} {expected}, steps of {step}");
        }
        assert_eq!(rounded(&x, 4, Activations::Exact), x);
    }
}
