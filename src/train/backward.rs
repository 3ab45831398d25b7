//! The backward pass through one layer, by hand.
//!
//! A layer's inner activations are computed again from its input instead of being kept: memory is one
//! hidden state a layer, at the price of one more forward pass.

use crate::runtime::kernels::{
    Mat, MatMut, activation_gradient, add_product, layer_norm_backward, product, softmax_backward,
};
use crate::runtime::{Batch, Dense, Encoder, RunAttention, RunFeedForward, RunLayer};

/// Gradients with respect to one layer's input and its masks (all masks at 1).
#[derive(Debug)]
pub struct LayerGradient {
    /// `[tokens, hidden]`
    pub input: Vec<f32>,
    /// `[texts, heads]`: of each head's mask, by text.
    pub heads: Vec<f32>,
    /// `[texts, units]`: of each unit's mask, by text.
    pub units: Vec<f32>,
}

/// Goes back through `layer`, whose input was `x` (`[tokens, hidden]`), with `grad` with respect to
/// its output.
pub fn layer(
    encoder: &Encoder,
    layer: &RunLayer,
    x: &[f32],
    batch: &Batch,
    mut grad: Vec<f32>,
) -> LayerGradient {
    let (mut heads, mut units) = (Vec::new(), Vec::new());
    let state = layer
        .attention
        .as_ref()
        .map(|a| (a, encoder.attention_context(a, x, batch, None, &mut |_, _, _| {})));
    let middle = state.as_ref().map(|(a, state)| a.finish(&state.context, x));
    if let Some(ffn) = &layer.ffn {
        grad = feed_forward(ffn, middle.as_deref().unwrap_or(x), batch, grad, &mut units);
    }
    if let Some((attention, state)) = state {
        let sum = attention.output.add(&state.context, x);
        layer_norm_backward(&sum, &attention.norm.weight, attention.norm.eps, &mut grad);
        let context = input_gradient(&attention.output, &grad);
        let width = attention.heads.len() * attention.head_dim;
        heads = masked(batch, &context, &state.context, width, attention.head_dim);
        let qkv = scores(encoder, attention, &state.qkv, batch, &context);
        let tokens = batch.tokens();
        let hidden = attention.query.input;
        let linears = [&attention.query, &attention.key, &attention.value];
        for (i, linear) in linears.into_iter().enumerate().filter(|_| width > 0) {
            let part = Mat::new(&qkv, tokens, 3 * width).columns(i * width, width);
            add_product(MatMut::new(&mut grad, tokens, hidden), part, linear.matrix(), 1.0);
        }
    }
    LayerGradient { input: grad, heads, units }
}

fn feed_forward(
    ffn: &RunFeedForward,
    x: &[f32],
    batch: &Batch,
    mut grad: Vec<f32>,
    mask: &mut Vec<f32>,
) -> Vec<f32> {
    let inner = ffn.up.forward(x);
    let mut units = inner.clone();
    crate::runtime::kernels::activate(ffn.activation, &mut units);
    let sum = ffn.down.add(&units, x);
    layer_norm_backward(&sum, &ffn.norm.weight, ffn.norm.eps, &mut grad);
    let mut inner_grad = input_gradient(&ffn.down, &grad);
    *mask = masked(batch, &inner_grad, &units, ffn.up.out, 1);
    activation_gradient(ffn.activation, &inner, &mut inner_grad);
    if ffn.up.out > 0 {
        let (tokens, hidden) = (batch.tokens(), ffn.up.input);
        let part = Mat::new(&inner_grad, tokens, ffn.up.out);
        add_product(MatMut::new(&mut grad, tokens, hidden), part, ffn.up.matrix(), 1.0);
    }
    grad
}

/// `grad·W`: with respect to a linear layer's input.
pub(super) fn input_gradient(linear: &Dense, grad: &[f32]) -> Vec<f32> {
    let rows = grad.len() / linear.out;
    let mut input = vec![0.0; rows * linear.input];
    if linear.input > 0 {
        let out = MatMut::new(&mut input, rows, linear.input);
        product(out, Mat::new(grad, rows, linear.out), linear.matrix(), 1.0);
    }
    input
}

/// With respect to masks at 1 that multiply blocks of `dim` columns of `value`: Σ grad · value over the
/// tokens of each text. Both are `[tokens, width]`; `[texts, width / dim]`.
fn masked(batch: &Batch, grad: &[f32], value: &[f32], width: usize, dim: usize) -> Vec<f32> {
    let count = width / dim;
    let mut sums = vec![0.0; batch.texts() * count];
    for (span, sums) in batch.starts.windows(2).zip(sums.chunks_exact_mut(count.max(1))) {
        for t in span[0]..span[1] {
            let row = t * width..(t + 1) * width;
            let pairs = grad[row.clone()].chunks_exact(dim).zip(value[row].chunks_exact(dim));
            for (sum, (g, v)) in sums.iter_mut().zip(pairs) {
                *sum += g.iter().zip(v).map(|(g, v)| g * v).sum::<f32>();
            }
        }
    }
    sums
}

/// Back through scores, softmax and weighted sum: `grad` with respect to the context becomes the one
/// with respect to query, key and value, `[tokens, 3 · heads · head_dim]`.
fn scores(
    encoder: &Encoder,
    attention: &RunAttention,
    qkv: &[f32],
    batch: &Batch,
    grad: &[f32],
) -> Vec<f32> {
    let (tokens, dim) = (batch.tokens(), attention.head_dim);
    let width = attention.heads.len() * dim;
    let scale = 1.0 / (dim as f32).sqrt();
    let mut out = vec![0.0; qkv.len()];
    let mut probs = Vec::new();
    for text in 0..batch.texts() {
        let (from, len) = (batch.starts[text], batch.starts[text + 1] - batch.starts[text]);
        let bias = encoder.score_bias(&batch.positions[from..from + len]);
        let mut inner = vec![0.0; len * len];
        for head in 0..attention.heads.len() {
            let column = head * dim;
            let part = |which: usize| {
                Mat::new(qkv, tokens, 3 * width)
                    .columns(which * width + column, dim)
                    .block(from, len)
            };
            let mut write = |which: usize, a: Mat, b: Mat, alpha: f32| {
                let out = MatMut::new(&mut out, tokens, 3 * width);
                product(out.columns(which * width + column, dim).block(from, len), a, b, alpha);
            };
            let upstream = Mat::new(grad, tokens, width).columns(column, dim).block(from, len);
            encoder.probabilities(attention, qkv, from, len, head, bias.as_deref(), &mut probs);
            write(2, Mat::new(&probs, len, len).t(), upstream, 1.0);
            product(MatMut::new(&mut inner, len, len), upstream, part(2).t(), 1.0);
            for (p, g) in probs.chunks_exact(len).zip(inner.chunks_exact_mut(len)) {
                softmax_backward(p, g);
            }
            write(0, Mat::new(&inner, len, len), part(1), scale);
            write(1, Mat::new(&inner, len, len).t(), part(0), scale);
        }
    }
    out
}
