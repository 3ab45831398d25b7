//! How much each head and each unit matters.

use super::Kept;
use super::rearrange::rearrange;
use crate::Result;
use crate::data::Calibration;
use crate::model::{Activation, Attention, FeedForward, Model, Norm};
use crate::pass::Context;
use crate::runtime::Encoder;
use crate::runtime::kernels::{self, Mat, MatMut};
use crate::train::fisher::{MaskGradients, mask_gradients};
use crate::train::sweep;

/// By layer: one score a head and one a unit. The higher, the more is lost without it.
#[derive(Debug, Clone, Default)]
pub struct Scores {
    pub heads: Vec<Vec<f64>>,
    pub units: Vec<Vec<f64>>,
    /// Of some of the texts: those that were asked to be kept.
    pub gradients: MaskGradients,
}

impl Scores {
    /// As many heads and units of layer `l` as `kept` has, chosen together on the gradients that were kept.
    pub fn rearranged(&self, l: usize, kept: &Kept) -> Kept {
        Kept {
            heads: rearrange(&self.gradients.heads[l], &self.heads[l], &kept.heads),
            units: rearrange(&self.gradients.units[l], &self.units[l], &kept.units),
        }
    }
}

/// Diagonal Fisher information of the masks: Σ over texts of the squared gradient (Kwon et al. 2022,
/// §4.2; theirs squares the gradient of a batch, ours that of a text, which is the less noisy estimate).
/// Gradients are kept of `rows` texts, or of all where there are less.
pub fn fisher(model: &Model, text: &Calibration, rows: usize, cx: &Context) -> Result<Scores> {
    let encoder = Encoder::new(model)?;
    let zeros = |counts: Vec<usize>| counts.into_iter().map(|n| vec![0.0; n]).collect::<Vec<_>>();
    let heads = |l: &crate::model::Layer| l.attention.as_ref().map_or(0, |a| a.heads.len());
    let units = |l: &crate::model::Layer| l.ffn.as_ref().map_or(0, FeedForward::units);
    let mut scores = Scores {
        heads: zeros(model.layers.iter().map(heads).collect()),
        units: zeros(model.layers.iter().map(units).collect()),
        gradients: MaskGradients {
            heads: vec![Vec::new(); model.layers.len()],
            units: vec![Vec::new(); model.layers.len()],
        },
    };
    let texts: usize = text.batches.iter().map(|b| b.texts()).sum();
    let rows = rows.min(texts);
    let mut seen = 0;
    cx.progress.start("prune: scoring", text.batches.len());
    let gradients =
        |i: usize| mask_gradients(&encoder, &text.batches[i], text.targets.as_ref(), cx.seed);
    sweep(text.batches.len(), gradients, |i, gradients| {
        add_squares(&mut scores.heads, &gradients.heads);
        add_squares(&mut scores.units, &gradients.units);
        // Batches are sorted by length, so rows are taken at even distances.
        let here = text.batches[i].texts();
        let keep: Vec<usize> = (0..here)
            .filter(|t| (seen + t + 1) * rows / texts > (seen + t) * rows / texts)
            .collect();
        seen += here;
        let Scores { heads, units, gradients: rows } = &mut scores;
        keep_rows(&mut rows.heads, &gradients.heads, heads, &keep);
        keep_rows(&mut rows.units, &gradients.units, units, &keep);
        cx.progress.step()
    })?;
    Ok(scores)
}

fn add_squares(sums: &mut [Vec<f64>], gradients: &[Vec<f32>]) {
    for (sums, gradients) in sums.iter_mut().zip(gradients).filter(|(s, _)| !s.is_empty()) {
        for row in gradients.chunks_exact(sums.len()) {
            sums.iter_mut().zip(row).for_each(|(s, &g)| *s += (g as f64).powi(2));
        }
    }
}

/// Appends the `rows` of `gradients` to those of each layer, which are as wide as its scores.
fn keep_rows(kept: &mut [Vec<f32>], gradients: &[Vec<f32>], scores: &[Vec<f64>], rows: &[usize]) {
    for ((kept, gradients), scores) in kept.iter_mut().zip(gradients).zip(scores) {
        let n = scores.len();
        rows.iter().for_each(|row| kept.extend(&gradients[row * n..(row + 1) * n]));
    }
}

/// Variance that each head and unit adds to the residual stream, if the inputs of every block were what
/// its LayerNorm makes of independent normal numbers: mean β and variance γ² by channel.
pub fn from_weights(model: &Model) -> Result<Scores> {
    let mut scores = Scores::default();
    let mut norm = &model.embeddings.norm;
    // ELECTRA's narrow embeddings are projected after their norm: nothing is known of the first input.
    let mut input = Input::of(norm, model.config.hidden)?;
    for layer in &model.layers {
        scores.heads.push(match &layer.attention {
            None => Vec::new(),
            Some(attention) => {
                let scores = heads_from_weights(attention, &input)?;
                norm = attention.norm.as_ref().expect(NORM);
                input = Input::of(norm, model.config.hidden)?;
                scores
            }
        });
        scores.units.push(match &layer.ffn {
            None => Vec::new(),
            Some(ffn) => {
                let scores = units_from_weights(ffn, &input, model.config.activation)?;
                norm = &ffn.norm;
                input = Input::of(norm, model.config.hidden)?;
                scores
            }
        });
    }
    Ok(scores)
}

/// Families without are not cut.
pub const NORM: &str = "every block has its LayerNorm, with a bias";

/// What is known of a block's input without text.
pub struct Input {
    mean: Vec<f32>,
    variance: Vec<f32>,
}

impl Input {
    pub fn of(norm: &Norm, hidden: usize) -> Result<Input> {
        if norm.weight.numel() != hidden {
            return Ok(Input { mean: vec![0.0; hidden], variance: vec![1.0; hidden] });
        }
        let variance = norm.weight.to_f32()?.iter().map(|g| g * g).collect();
        Ok(Input { mean: norm.bias.as_ref().expect(NORM).to_f32()?.into_owned(), variance })
    }

    /// Σ of the variance: the scale that contributions are relative to.
    fn power(&self) -> f64 {
        self.variance.iter().map(|&v| v as f64).sum::<f64>().max(1e-12)
    }
}

/// `‖W_o·W_v·diag(γ)‖²` of each head.
fn heads_from_weights(attention: &Attention, input: &Input) -> Result<Vec<f64>> {
    let (dim, hidden) = (attention.head_dim, attention.value.weight.cols());
    let width = attention.heads.len() * dim;
    let value = attention.value.weight.to_f32()?;
    let scaled: Vec<f32> = value
        .chunks_exact(hidden)
        .flat_map(|row| row.iter().zip(&input.variance).map(|(w, v)| w * v.sqrt()))
        .collect();
    let output = attention.output.weight.to_f32()?;
    let mut scores = Vec::with_capacity(attention.heads.len());
    for head in 0..attention.heads.len() {
        // tr((VVᵀ)(OᵀO)) = ‖O·V‖², with V as [dim, hidden] and O as [hidden, dim].
        let v = Mat::new(&scaled, width, hidden).block(head * dim, dim);
        let o = Mat::new(&output, hidden, width).columns(head * dim, dim);
        let (mut vv, mut oo) = (vec![0.0; dim * dim], vec![0.0; dim * dim]);
        kernels::product(MatMut::new(&mut vv, dim, dim), v, v.t(), 1.0);
        kernels::product(MatMut::new(&mut oo, dim, dim), o.t(), o, 1.0);
        let norm: f64 = vv.iter().zip(&oo).map(|(a, b)| (a * b) as f64).sum();
        scores.push(norm / input.power());
    }
    Ok(scores)
}

/// `Var[f(u)]·‖W_down[:, unit]‖²` of each unit.
fn units_from_weights(
    ffn: &FeedForward,
    input: &Input,
    activation: Activation,
) -> Result<Vec<f64>> {
    let moments = unit_moments(ffn, input, activation)?;
    let down = ffn.down.weight.to_f32()?;
    let units = ffn.units();
    let mut norms = vec![0.0f64; units];
    for row in down.chunks_exact(units.max(1)) {
        norms.iter_mut().zip(row).for_each(|(n, &w)| *n += (w as f64).powi(2));
    }
    Ok(moments.iter().zip(norms).map(|((_, variance), n)| variance * n / input.power()).collect())
}

/// Mean and variance of each unit's value, by quadrature over its normal pre-activation.
pub fn unit_moments(
    ffn: &FeedForward,
    input: &Input,
    activation: Activation,
) -> Result<Vec<(f64, f64)>> {
    // 41 points over ±4 standard deviations.
    let points: Vec<f64> = (-20..=20).map(|i| i as f64 / 5.0).collect();
    let weights: Vec<f64> = points.iter().map(|z| (-z * z / 2.0).exp()).collect();
    let total: f64 = weights.iter().sum();
    let up = ffn.up.weight.to_f32()?;
    let bias = ffn.up.bias.as_ref().map(|b| b.to_f32()).transpose()?;
    let moments = up.chunks_exact(ffn.up.weight.cols()).enumerate().map(|(u, row)| {
        let dot = |x: &[f32]| row.iter().zip(x).map(|(w, x)| (w * x) as f64).sum::<f64>();
        let mean = dot(&input.mean) + bias.as_ref().map_or(0.0, |b| b[u] as f64);
        let squares = row.iter().zip(&input.variance).map(|(w, v)| (w * w * v) as f64);
        let deviation = squares.sum::<f64>().sqrt();
        let mut values: Vec<f32> = points.iter().map(|z| (mean + z * deviation) as f32).collect();
        kernels::activate(activation, &mut values);
        let average = |f: &dyn Fn(f64) -> f64| {
            values.iter().zip(&weights).map(|(&v, w)| f(v as f64) * w).sum::<f64>() / total
        };
        let first = average(&|v| v);
        (first, (average(&|v| v * v) - first * first).max(0.0))
    });
    Ok(moments.collect())
}
