//! Dropout without a stored mask.

use super::dispatch;

/// A mixer of 32 bits (two rounds of multiply and shift; the constants are those of `lowbias32`, Wellons
/// 2018): every bit of the index moves every bit of the result, and it vectorises.
#[inline(always)]
fn mix(mut x: u32) -> u32 {
    x ^= x >> 16;
    x = x.wrapping_mul(0x7feb_352d);
    x ^= x >> 15;
    x = x.wrapping_mul(0x846c_a68b);
    x ^ (x >> 16)
}

#[inline(always)]
fn dropout_body(x: &mut [f32], rate: f32, key: u32, first: u32) {
    let threshold = (rate as f64 * 4_294_967_296.0) as u32;
    let scale = 1.0 / (1.0 - rate);
    for (i, x) in x.iter_mut().enumerate() {
        let drawn = mix(first.wrapping_add(i as u32).wrapping_mul(0x9e37_79b9) ^ key);
        *x *= if drawn >= threshold { scale } else { 0.0 };
    }
}

dispatch! {
    /// Zeroes each element with probability `rate` in `[0, 1)` and scales the others by `1 / (1 − rate)`.
    ///
    /// Which ones depends on `key` and on the element's index, the first having index `first`: the way
    /// back calls it with the same numbers on the gradient.
    pub fn dropout(x: &mut [f32], rate: f32, key: u32, first: u32) = dropout_body
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_the_scale_and_the_parts_are_right() {
        let mut whole = vec![1.0; 40_000];
        dropout(&mut whole, 0.1, 7, 0);
        let dropped = whole.iter().filter(|&&x| x == 0.0).count() as f64 / 40_000.0;
        // Three standard deviations of the share.
        assert!((dropped - 0.1).abs() < 3.0 * (0.09f64 / 40_000.0).sqrt(), "{dropped}");
        assert!(whole.iter().all(|&x| x == 0.0 || x == 1.0 / 0.9));
        let mut part = vec![1.0; 100];
        dropout(&mut part, 0.1, 7, 300);
        assert_eq!(part, whole[300..400]);
    }

    #[test]
    fn neighbours_and_keys_are_independent() {
        let n = 100_000;
        let mask = |key| {
            let mut x = vec![1.0f32; n];
            dropout(&mut x, 0.5, key, 0);
            x
        };
        let both = |a: &[f32], b: &[f32]| {
            a.iter().zip(b).filter(|(a, b)| **a > 0.0 && **b > 0.0).count() as f64 / a.len() as f64
        };
        let (a, b) = (mask(1), mask(2));
        let three_sigma = 3.0 * (0.1875 / n as f64).sqrt();
        assert!((both(&a, &b) - 0.25).abs() < three_sigma);
        for lag in [1, 2, 32, 384, 1536] {
            assert!((both(&a[lag..], &a[..n - lag]) - 0.25).abs() < 1.5 * three_sigma, "lag {lag}");
        }
    }
}
