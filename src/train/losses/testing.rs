//! What the tests of all losses share.

use super::Loss;

/// Central differences of `value` by every element of `x`. The step is what f32 makes of `2h`.
pub fn differences(x: &[f32], h: f32, value: impl Fn(&[f32]) -> f64) -> Vec<f32> {
    let mut moved = x.to_vec();
    let mut difference = |i: usize| {
        let (low, high) = (x[i] - h, x[i] + h);
        moved[i] = high;
        let above = value(&moved);
        moved[i] = low;
        let below = value(&moved);
        moved[i] = x[i];
        ((above - below) / (high as f64 - low as f64)) as f32
    };
    (0..x.len()).map(&mut difference).collect()
}

/// 1 % on what is large; what is small may be off by as much as a tenth of that.
pub fn assert_close(found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(0.0f32, |a, x| a.max(x.abs()));
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        let allowed = 0.01 * e.abs().max(0.1 * largest);
        assert!((f - e).abs() <= allowed, "element {i}: {f}, expected {e} of {largest}");
    }
}

/// The gradient of `loss` at `x` is that of its value, and there is one.
pub fn assert_differences(x: &[f32], h: f32, loss: impl Fn(&[f32]) -> Loss) {
    let expected = differences(x, h, |x| loss(x).value);
    assert!(expected.iter().any(|e| e.abs() > 1e-6), "nothing to compare");
    assert_close(&loss(x).grad, &expected);
}

/// Value and gradient are 0, up to rounding.
pub fn assert_nothing(loss: &Loss) {
    assert!(loss.value.abs() < 1e-12, "{}", loss.value);
    assert!(loss.grad.iter().all(|g| g.abs() < 1e-7), "{:?}", loss.grad);
}
