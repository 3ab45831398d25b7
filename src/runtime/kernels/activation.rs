//! Activations and softmax, with their gradients.

use super::{LANES, dispatch, reduce};
use crate::model::Activation;

/// e^x for x ≤ 88, 0 below −87: range reduction by ln 2 in two parts and a degree-6 polynomial
/// (Cephes `expf`), relative error under 2e-7.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    let clamped = if x < -87.0 { -87.0 } else { x };
    let clamped = if clamped > 88.0 { 88.0 } else { clamped };
    // Adding and subtracting 1.5·2^23 rounds to the nearest integer without a branch or SSE4.
    const ROUND: f32 = 12_582_912.0;
    let n = (clamped * std::f32::consts::LOG2_E + ROUND) - ROUND;
    let r = clamped - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let mut p = 1.987_569_1e-4;
    for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 5e-1] {
        p = p * r + c;
    }
    let y = p * r * r + r + 1.0;
    // SAFETY: |n| ≤ 128 by the clamps above (NaN was replaced by them, or stays out of `n` below).
    let exponent = unsafe { if n.is_nan() { 0.0 } else { n }.to_int_unchecked::<i32>() };
    let value = y * f32::from_bits(((exponent + 127) << 23) as u32);
    if x < -87.0 { 0.0 } else { value }
}

/// Φ(x) = (1 + erf(x / √2)) / 2 and e^(−x²/2), by Abramowitz and Stegun 7.1.26 (error 1.5e-7).
#[inline(always)]
fn normal(x: f32) -> (f32, f32) {
    let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / (1.0 + 0.327_591_1 * z);
    let e = exp(-z * z);
    let mut p = 1.061_405_4;
    for c in [-1.453_152_1, 1.421_413_8, -0.284_496_72, 0.254_829_6] {
        p = p * t + c;
    }
    let tail = 0.5 * p * t * e;
    (if x < 0.0 { tail } else { 1.0 - tail }, e)
}

/// `x·Φ(x)`, with erf as a quotient of polynomials: its relative error is 2e-8 up to 3.92, beyond which it is 1 to within a bit
/// (fitted by reweighted least squares for this file). With AVX-512 it takes less than a third of the time of [`normal`].
#[inline(always)]
fn gelu(x: f32) -> f32 {
    use std::f32::consts::FRAC_2_SQRT_PI;
    const END: f32 = 3.92;
    let z = x * std::f32::consts::FRAC_1_SQRT_2;
    let z = if z > END { END } else { z };
    let z = if z < -END { -END } else { z };
    let t = z * z;
    let mut above = 2.050_103_4e-6;
    for c in [2.848_805e-4, 3.765_523e-3, 5.274_843_4e-2, 1.904_043e-1, FRAC_2_SQRT_PI] {
        above = above * t + c;
    }
    let mut below = 3.809_176_6e-5;
    for c in [1.162_512_5e-3, 1.496_902_9e-2, 1.141_082_1e-1, 5.020_741e-1, 1.0] {
        below = below * t + c;
    }
    0.5 * x * (1.0 + z * above / below)
}

#[inline(always)]
fn tanh(x: f32) -> f32 {
    let x = if x > 10.0 { 10.0 } else { x };
    let x = if x < -10.0 { -10.0 } else { x };
    // For small |x| the quotient cancels; the odd series is exact to f32 there.
    let e = exp(2.0 * x);
    let series = x - x * x * x * (1.0 / 3.0 - x * x * (2.0 / 15.0));
    if x.abs() < 0.03 { series } else { (e - 1.0) / (e + 1.0) }
}

const SQRT_2_OVER_PI: f32 = 0.797_884_6;
const CUBIC: f32 = 0.044_715;

#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

#[inline(always)]
fn map(x: &mut [f32], f: impl Fn(f32) -> f32) {
    x.iter_mut().for_each(|x| *x = f(*x));
}

#[inline(always)]
fn activate_body(kind: Activation, x: &mut [f32]) {
    match kind {
        Activation::Gelu => map(x, gelu),
        Activation::GeluTanh => {
            map(x, |x| 0.5 * x * (1.0 + tanh(SQRT_2_OVER_PI * (x + CUBIC * x * x * x))))
        }
        Activation::Relu => map(x, |x| if x > 0.0 { x } else { 0.0 }),
        Activation::Silu => map(x, |x| x * sigmoid(x)),
        Activation::Tanh => map(x, tanh),
    }
}

dispatch! {
    /// `x ← f(x)`, element by element.
    pub fn activate(kind: Activation, x: &mut [f32]) = activate_body
}

#[inline(always)]
fn chain(x: &[f32], grad: &mut [f32], derivative: impl Fn(f32) -> f32) {
    grad.iter_mut().zip(x).for_each(|(g, &x)| *g *= derivative(x));
}

#[inline(always)]
fn activation_gradient_body(kind: Activation, x: &[f32], grad: &mut [f32]) {
    match kind {
        Activation::Gelu => chain(x, grad, |x| {
            let (phi, e) = normal(x);
            phi + x * e * 0.398_942_3
        }),
        Activation::GeluTanh => chain(x, grad, |x| {
            let t = tanh(SQRT_2_OVER_PI * (x + CUBIC * x * x * x));
            let slope = SQRT_2_OVER_PI * (1.0 + 3.0 * CUBIC * x * x);
            0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * slope
        }),
        Activation::Relu => chain(x, grad, |x| if x > 0.0 { 1.0 } else { 0.0 }),
        Activation::Silu => chain(x, grad, |x| {
            let s = sigmoid(x);
            s * (1.0 + x * (1.0 - s))
        }),
        Activation::Tanh => chain(x, grad, |x| {
            let t = tanh(x);
            1.0 - t * t
        }),
    }
}

dispatch! {
    /// `grad ← grad · f'(x)`, where `x` is the activation's input.
    pub fn activation_gradient(kind: Activation, x: &[f32], grad: &mut [f32]) = activation_gradient_body
}

#[inline(always)]
fn softmax_body(row: &mut [f32]) {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let chunks = row.chunks_exact(LANES);
    let tail = chunks.remainder().iter().copied().fold(f32::NEG_INFINITY, f32::max);
    for chunk in chunks {
        for i in 0..LANES {
            lanes[i] = if chunk[i] > lanes[i] { chunk[i] } else { lanes[i] };
        }
    }
    let max = lanes.iter().copied().fold(tail, f32::max);
    map(row, |x| exp(x - max));
    let scale = 1.0 / reduce(row, row, |x, _| x);
    map(row, |x| x * scale);
}

dispatch! {
    /// `row ← softmax(row)`.
    pub fn softmax(row: &mut [f32]) = softmax_body
}

#[inline(always)]
fn softmax_backward_body(probs: &[f32], grad: &mut [f32]) {
    let mean = reduce(probs, grad, |p, g| p * g);
    grad.iter_mut().zip(probs).for_each(|(g, p)| *g = p * (*g - mean));
}

dispatch! {
    /// `grad ← probs · (grad − Σ probs · grad)`: through a softmax whose output was `probs`.
    pub fn softmax_backward(probs: &[f32], grad: &mut [f32]) = softmax_backward_body
}

#[cfg(test)]
mod tests {
    use super::super::reference;
    use super::*;
    use proptest::prelude::*;

    const ALL: [Activation; 5] = [
        Activation::Gelu,
        Activation::GeluTanh,
        Activation::Relu,
        Activation::Silu,
        Activation::Tanh,
    ];

    proptest! {
        #[test]
        fn activations_agree_with_the_reference(x in prop::collection::vec(-12.0f32..12.0, 1..40)) {
            for kind in ALL {
                let mut fast = x.clone();
                activate(kind, &mut fast);
                for (&x, &y) in x.iter().zip(&fast) {
                    let expected = reference::activation(kind, x as f64);
                    prop_assert!((y as f64 - expected).abs() <= 4e-7 * (1.0 + x.abs() as f64), "{kind:?}({x}) = {y}, {expected}");
                }
            }
        }

        #[test]
        fn gradients_agree_with_differences(x in prop::collection::vec(-6.0f32..6.0, 1..40)) {
            for kind in ALL {
                let mut grad = vec![1.0; x.len()];
                activation_gradient(kind, &x, &mut grad);
                for (&x, &g) in x.iter().zip(&grad) {
                    if kind == Activation::Relu && x.abs() < 1e-3 { continue; }
                    let f = |x| reference::activation(kind, x);
                    let expected = (f(x as f64 + 1e-5) - f(x as f64 - 1e-5)) / 2e-5;
                    prop_assert!((g as f64 - expected).abs() < 2e-5, "{kind:?}'({x}) = {g}, {expected}");
                }
            }
        }

        #[test]
        fn softmax_agrees_with_the_reference(x in prop::collection::vec(-90.0f32..90.0, 1..70)) {
            let mut fast = x.clone();
            softmax(&mut fast);
            let expected = reference::softmax(&x);
            for (y, e) in fast.iter().zip(&expected) {
                prop_assert!((*y as f64 - e).abs() < 2e-6);
            }
        }
    }

    #[test]
    fn exp_covers_its_range() {
        for i in -8700..8800 {
            let x = i as f32 / 100.0;
            let (y, e) = (exp(x) as f64, (x as f64).exp());
            assert!((y - e).abs() <= 3e-7 * e, "exp({x}) = {y}, {e}");
        }
        assert_eq!((exp(-1e30), exp(f32::NEG_INFINITY)), (0.0, 0.0));
    }
}
