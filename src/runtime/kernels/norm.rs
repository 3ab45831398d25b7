//! LayerNorm and bias.

use super::{dispatch, reduce};

#[inline(always)]
fn moments(row: &[f32], eps: f32) -> (f32, f32) {
    let n = row.len() as f32;
    let mean = reduce(row, row, |x, _| x) / n;
    let var = reduce(row, row, |x, _| (x - mean) * (x - mean)) / n;
    (mean, 1.0 / (var + eps).sqrt())
}

#[inline(always)]
fn layer_norm_body(x: &mut [f32], weight: &[f32], bias: &[f32], eps: f32) {
    for row in x.chunks_exact_mut(weight.len()) {
        let (mean, scale) = moments(row, eps);
        for ((x, w), b) in row.iter_mut().zip(weight).zip(bias) {
            *x = (*x - mean) * scale * w + b;
        }
    }
}

dispatch! {
    /// Normalises each row of `x`, `[rows, hidden]`, in place; `weight` and `bias` are `[hidden]`.
    pub fn layer_norm(x: &mut [f32], weight: &[f32], bias: &[f32], eps: f32) = layer_norm_body
}

#[inline(always)]
fn add_norm_body(x: &mut [f32], residual: &[f32], weight: &[f32], bias: &[f32], eps: f32) {
    let width = weight.len();
    for (x, residual) in x.chunks_exact_mut(width).zip(residual.chunks_exact(width)) {
        x.iter_mut().zip(residual).for_each(|(x, r)| *x += r);
        layer_norm_body(x, weight, bias, eps);
    }
}

dispatch! {
    /// `x ← layer_norm(x + residual)`, both `[rows, hidden]`, each row read once.
    pub fn add_norm(x: &mut [f32], residual: &[f32], weight: &[f32], bias: &[f32], eps: f32) = add_norm_body
}

#[inline(always)]
fn layer_norm_backward_body(
    x: &[f32],
    weight: &[f32],
    eps: f32,
    grad: &mut [f32],
    weight_grad: &mut [f32],
    bias_grad: &mut [f32],
) {
    let width = weight.len();
    let n = width as f32;
    for (x, grad) in x.chunks_exact(width).zip(grad.chunks_exact_mut(width)) {
        let (mean, scale) = moments(x, eps);
        let sums = weight_grad.iter_mut().zip(bias_grad.iter_mut());
        for (((g, x), w), (dw, db)) in grad.iter_mut().zip(x).zip(weight).zip(sums) {
            *dw += *g * (x - mean) * scale;
            *db += *g;
            *g *= w;
        }
        let sum = reduce(grad, grad, |g, _| g) / n;
        let dot = reduce(grad, x, |g, x| g * (x - mean) * scale) / n;
        for (g, x) in grad.iter_mut().zip(x) {
            *g = scale * (*g - sum - (x - mean) * scale * dot);
        }
    }
}

dispatch! {
    /// `grad`, with respect to the output, becomes the one with respect to the input `x`
    /// (both `[rows, hidden]`); those of `weight` and of the bias, `[hidden]`, are added to theirs.
    pub fn layer_norm_backward(
        x: &[f32],
        weight: &[f32],
        eps: f32,
        grad: &mut [f32],
        weight_grad: &mut [f32],
        bias_grad: &mut [f32],
    ) = layer_norm_backward_body
}

#[inline(always)]
fn add_columns_body(x: &[f32], sums: &mut [f32]) {
    for row in x.chunks_exact(sums.len()) {
        sums.iter_mut().zip(row).for_each(|(s, x)| *s += x);
    }
}

dispatch! {
    /// Adds the rows of `x`, `[rows, out]`, to `sums`, `[out]`: the gradient of a bias.
    pub fn add_columns(x: &[f32], sums: &mut [f32]) = add_columns_body
}

#[inline(always)]
fn add_bias_body(x: &mut [f32], bias: &[f32]) {
    for row in x.chunks_exact_mut(bias.len()) {
        row.iter_mut().zip(bias).for_each(|(x, b)| *x += b);
    }
}

dispatch! {
    /// Adds `bias`, `[out]`, to each row of `x`, `[rows, out]`.
    pub fn add_bias(x: &mut [f32], bias: &[f32]) = add_bias_body
}

#[cfg(test)]
mod tests {
    use super::super::reference;
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn layer_norm_agrees_with_the_reference(
            x in prop::collection::vec(-5.0f32..5.0, 2..70), w in -2.0f32..2.0, b in -1.0f32..1.0,
        ) {
            let (weight, bias) = (vec![w; x.len()], vec![b; x.len()]);
            let mut fast = x.clone();
            layer_norm(&mut fast, &weight, &bias, 1e-5);
            for (y, e) in fast.iter().zip(reference::layer_norm(&x, &weight, &bias, 1e-5)) {
                prop_assert!((*y as f64 - e).abs() < 1e-4 * (1.0 + e.abs()), "{y} {e}");
            }
        }

        #[test]
        fn layer_norm_gradient_agrees_with_differences(x in prop::collection::vec(-3.0f32..3.0, 4..20)) {
            let n = x.len();
            let weight: Vec<f32> = (0..n).map(|i| 0.5 + 0.1 * i as f32).collect();
            let upstream: Vec<f32> = (0..n).map(|i| (i as f32 * 0.7).sin()).collect();
            let loss = |x: &[f32]| -> f64 {
                let y = reference::layer_norm(x, &weight, &vec![0.0; n], 1e-3);
                y.iter().zip(&upstream).map(|(y, &u)| y * u as f64).sum()
            };
            let mut grad = upstream.clone();
            let (mut weight_grad, mut bias_grad) = (vec![0.0; n], vec![0.0; n]);
            layer_norm_backward(&x, &weight, 1e-3, &mut grad, &mut weight_grad, &mut bias_grad);
            prop_assert_eq!(&bias_grad, &upstream);
            let normed = reference::layer_norm(&x, &vec![1.0; n], &vec![0.0; n], 1e-3);
            for ((g, u), y) in weight_grad.iter().zip(&upstream).zip(normed) {
                prop_assert!((*g as f64 - *u as f64 * y).abs() < 1e-4, "{} {}", g, *u as f64 * y);
            }
            for i in 0..n {
                let (mut up, mut down) = (x.clone(), x.clone());
                up[i] += 1e-2;
                down[i] -= 1e-2;
                let expected = (loss(&up) - loss(&down)) / (up[i] - down[i]) as f64;
                prop_assert!((grad[i] as f64 - expected).abs() < 2e-2 * (1.0 + expected.abs()), "{} {}", grad[i], expected);
            }
        }
    }
}
