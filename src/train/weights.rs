//! Gradients of the weights, from tapes that the way back has been gone over.

use super::backward::{Back, NormGradient};
use super::elastic::{BinaryGradient, ElasticGradient, ScaleGradient};
use super::tape::Tape;
use crate::runtime::kernels::{Mat, MatMut, add_columns, add_product};
use crate::runtime::{Dense, Encoder, RunBinary, RunElastic, RunNorm, position_rows};
use rayon::prelude::*;
use std::borrow::Cow;

/// Rows of a weight's gradient that one task computes.
const BLOCK_ROWS: usize = 96;

/// A part of one linear layer's gradient, and where its factors are on a tape: the gradient of its
/// output and its input.
struct Task<'a> {
    /// `[rows, in]` of the weight's gradient, from row `first`.
    weight: &'a mut [f32],
    first: usize,
    /// The whole bias gradient, with the first block.
    bias: Option<&'a mut [f32]>,
    site: Site,
    /// What makes signs of the layer's inputs.
    elastic: Option<&'a RunElastic<'a>>,
}

#[derive(Debug, Clone, Copy)]
enum Site {
    /// Query, key or value of a layer.
    Qkv(usize, usize),
    AttentionOutput(usize),
    Up(usize),
    Down(usize),
    Project,
}

impl Site {
    /// Gradient of the output `[tokens, out]`, and input `[tokens, in]`, of the tokens that came here.
    fn factors(self, tape: &Tape) -> (Mat<'_>, Mat<'_>) {
        let tokens = match self {
            Site::Qkv(l, _) | Site::AttentionOutput(l) | Site::Up(l) | Site::Down(l) => {
                tape.batch_at(l).tokens()
            }
            Site::Project => tape.batch.tokens(),
        };
        let whole = |x: &'_ [f32]| x.len() / tokens;
        let mat = |x| Mat::new(x, tokens, whole(x));
        const KEPT: &str = "a tape of the same layers";
        match self {
            Site::Qkv(l, which) => {
                let kept = tape.layers[l].attention.as_ref().expect(KEPT);
                let width = whole(&kept.context);
                (mat(&kept.qkv).columns(which * width, width), mat(&tape.layers[l].x))
            }
            Site::AttentionOutput(l) => {
                let kept = tape.layers[l].attention.as_ref().expect(KEPT);
                (mat(&kept.sum), mat(&kept.context))
            }
            Site::Up(l) => {
                let kept = tape.layers[l].ffn.as_ref().expect(KEPT);
                (mat(&kept.inner), mat(&kept.x))
            }
            Site::Down(l) => {
                let kept = tape.layers[l].ffn.as_ref().expect(KEPT);
                (mat(&kept.sum), mat(&kept.units))
            }
            Site::Project => {
                let input = tape.embedding_norm.as_ref().expect(KEPT);
                (mat(&tape.embedding_grad), mat(input))
            }
        }
    }
}

/// See [`super::fisher::token_powers`]; of one layer, from tapes that the way back has been gone over.
pub fn token_powers(tapes: &[Tape], layer: usize) -> [Vec<f32>; 4] {
    let mut powers: [Vec<f32>; 4] = Default::default();
    for tape in tapes {
        let ran = &tape.layers[layer];
        let mut add = |place: usize, site: Site, parts: usize| {
            let (output, _) = site.factors(tape);
            let rows = output.data.chunks(output.stride.max(1)).take(output.rows);
            let power = |row: &[f32]| {
                let row = &row[..output.cols * parts];
                row.iter().map(|g| g * g).sum::<f32>() / row.len().max(1) as f32
            };
            powers[place].extend(rows.map(power));
        };
        if ran.attention.is_some() {
            add(0, Site::Qkv(layer, 0), 3);
            add(1, Site::AttentionOutput(layer), 1);
        }
        if ran.ffn.is_some() {
            add(2, Site::Up(layer), 1);
            add(3, Site::Down(layer), 1);
        }
    }
    powers
}

impl Task<'_> {
    /// `+= outputᵀ · input`, tape after tape: the order of the sum does not depend on threads.
    fn run(self, tapes: &[Tape]) {
        let Task { weight, first, bias, site, elastic } = self;
        for tape in tapes {
            let (output, input) = site.factors(tape);
            let signs = elastic.map(|elastic| elastic.signs(input.data));
            let input = signs.as_ref().map_or(input, |x| Mat::new(x, input.rows, input.cols));
            if let Some(rows) = weight.len().checked_div(input.cols) {
                let out = MatMut::new(weight, rows, input.cols);
                add_product(out, output.columns(first, rows).t(), input, 1.0);
            }
        }
        let Some(bias) = bias else { return };
        for tape in tapes {
            let output = site.factors(tape).0;
            if output.stride == bias.len() {
                add_columns(output.data, bias);
            } else {
                for row in output.data.chunks(output.stride) {
                    bias.iter_mut().zip(row).for_each(|(b, g)| *b += g);
                }
            }
        }
    }
}

/// The tasks of one linear layer; none where its gradient is not wanted (its buffers are empty).
fn tasks<'a>(grad: &'a mut Dense, of: &'a Dense<'a>, site: Site, all: &mut Vec<Task<'a>>) {
    let elastic = of.elastic.as_ref();
    let input = grad.input;
    let mut bias = grad.bias.as_mut().map(|b| &mut b.to_mut()[..]).filter(|b| !b.is_empty());
    let weight = grad.weight.to_mut();
    if weight.is_empty() {
        all.extend(bias.map(|bias| Task {
            weight: &mut [],
            first: 0,
            bias: Some(bias),
            site,
            elastic,
        }));
        return;
    }
    for (i, weight) in weight.chunks_mut(BLOCK_ROWS * input).enumerate() {
        all.push(Task { weight, first: i * BLOCK_ROWS, bias: bias.take(), site, elastic });
    }
}

/// Adds the gradients of every weight of `path` to `grads`, which has the shape of the model; an empty
/// buffer says that a gradient is not wanted. `own[l]` is false where layer `l` of the path is not the
/// model's.
pub fn add(encoder: &Encoder, grads: &mut Encoder, tapes: &[Tape], backs: &[Back], own: &[bool]) {
    let mut all = Vec::new();
    // A block that its mask left out has no gradient.
    let ran = |l: usize| {
        tapes.first().map(|t| (t.layers[l].attention.is_some(), t.layers[l].ffn.is_some()))
    };
    for (l, layer) in grads.layers.iter_mut().enumerate().filter(|(l, _)| own[*l]) {
        let (attended, fed) = ran(l).unwrap_or_default();
        let of = &encoder.layers[l];
        let inputs = |i: usize| backs.iter().map(move |b| &b.binary[l].inputs[i]);
        if let (Some(a), Some(of)) = (layer.attention.as_mut().filter(|_| attended), &of.attention)
        {
            let of_qkv = [&of.query, &of.key, &of.value];
            let linears = [&mut a.query, &mut a.key, &mut a.value];
            for (i, (linear, of)) in linears.into_iter().zip(of_qkv).enumerate() {
                ElasticGradient::add(linear, inputs(i));
                tasks(linear, of, Site::Qkv(l, i), &mut all);
            }
            ElasticGradient::add(&mut a.output, inputs(3));
            tasks(&mut a.output, &of.output, Site::AttentionOutput(l), &mut all);
            if let Some(binary) = &mut a.binary {
                operands(binary, backs.iter().map(|b| &b.binary[l]));
            }
            norms(&mut a.norm, backs.iter().map(|b| &b.norms[l][0]));
        }
        if let (Some(f), Some(of)) = (layer.ffn.as_mut().filter(|_| fed), &of.ffn) {
            ElasticGradient::add(&mut f.up, inputs(4));
            tasks(&mut f.up, &of.up, Site::Up(l), &mut all);
            ElasticGradient::add(&mut f.down, inputs(5));
            tasks(&mut f.down, &of.down, Site::Down(l), &mut all);
            norms(&mut f.norm, backs.iter().map(|b| &b.norms[l][1]));
        }
    }
    if let (Some(project), Some(of)) = (&mut grads.project, &encoder.project) {
        tasks(project, of, Site::Project, &mut all);
    }
    all.into_par_iter().for_each(|task| task.run(tapes));
    norms(&mut grads.norm, backs.iter().map(|b| &b.embedding_norm));
    if let Some(table) = &mut grads.relative_bias {
        for back in backs {
            sum(table.to_mut(), &back.relative_bias);
        }
    }
    for (tape, back) in tapes.iter().zip(backs) {
        tables(encoder, grads, tape, &back.embedding_sum);
    }
}

/// Scales and estimators of one attention block.
fn operands<'b>(grad: &mut RunBinary, parts: impl Iterator<Item = &'b BinaryGradient> + Clone) {
    for (which, scale) in grad.scales.iter_mut().enumerate().filter(|(_, s)| !s.is_empty()) {
        scale.to_mut()[0] += ScaleGradient::whole(parts.clone().map(|part| part.scales[which]));
    }
    for part in parts {
        for (linear, [weight, bias]) in grad.estimators.iter_mut().flatten().zip(&part.estimators) {
            sum(linear.weight.to_mut(), weight);
            linear.bias.iter_mut().for_each(|b| sum(b.to_mut(), bias));
        }
    }
}

fn norms<'b>(grad: &mut RunNorm, parts: impl Iterator<Item = &'b NormGradient>) {
    let (weight, bias) = (grad.weight.to_mut(), grad.bias.to_mut());
    for part in parts {
        sum(weight, &part.weight);
        sum(bias, &part.bias);
    }
}

fn sum(total: &mut [f32], part: &[f32]) {
    total.iter_mut().zip(part).for_each(|(t, p)| *t += p);
}

/// Rows of the tables get what the tokens that used them got.
fn tables(encoder: &Encoder, grads: &mut Encoder, tape: &Tape, grad: &[f32]) {
    let width = encoder.norm.weight.len();
    let batch = &tape.batch;
    let positions = position_rows(encoder.model, batch);
    let row_of = |table: Option<&mut Cow<[f32]>>, row: &dyn Fn(usize) -> usize| {
        let Some(table) = table.filter(|t| !t.is_empty()) else { return };
        let table = table.to_mut();
        for (t, grad) in grad.chunks_exact(width).enumerate() {
            let at = row(t) * width;
            sum(&mut table[at..at + width], grad);
        }
    };
    row_of(grads.word.as_mut(), &|t| batch.ids[t] as usize);
    row_of(grads.position.as_mut(), &|t| positions[t] as usize);
    row_of(grads.token_type.as_mut(), &|t| encoder.token_type_row(batch.type_ids[t] as usize));
    row_of(grads.task_type.as_mut(), &|_| 0);
}
