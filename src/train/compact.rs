//! Layers without what a mask has closed: masks of training leave more and more out, and what is multiplied by
//! 0 need not be computed.

use super::backward::Back;
use crate::model::slice::Masks;
use crate::runtime::{Dense, RunAttention, RunFeedForward, RunLayer, RunNorm, RunPositions};
use rayon::prelude::*;
use std::borrow::Cow;

/// Cutting and putting back costs about as much as a tenth of a layer.
const WORTH_IT: f64 = 0.9;

/// The layers of a path, those that masks close much of without it.
#[derive(Debug)]
pub struct Compact {
    /// By layer; `None` where the layer is used as it is.
    cut: Vec<Option<Cut>>,
    /// Of what is left.
    pub masks: Masks,
}

#[derive(Debug)]
struct Cut {
    layer: RunLayer<'static>,
    /// Heads and units that are left, ascending.
    heads: Vec<usize>,
    units: Vec<usize>,
}

impl Compact {
    /// Of `layers` under `masks`; `own[l]` is false where a layer is not under them.
    pub fn new(layers: &[&RunLayer], own: &[bool], masks: &Masks) -> Compact {
        let open =
            |mask: &[f32]| -> Vec<usize> { (0..mask.len()).filter(|&i| mask[i] != 0.0).collect() };
        let cut = |l: usize| {
            let (heads, units) = (open(&masks.heads[l]), open(&masks.units[l]));
            let few =
                |left: &[usize], all: &[f32]| (left.len() as f64) < WORTH_IT * all.len() as f64;
            let worth = few(&heads, &masks.heads[l]) || few(&units, &masks.units[l]);
            // Layers of signs are not pruned: no shape but the whole one is made of them.
            if !own[l] || !worth || layers[l].attention.iter().any(|a| a.binary.is_some()) {
                return None;
            }
            let attention = layers[l].attention.as_ref().filter(|_| masks.attention[l] != 0.0);
            let ffn = layers[l].ffn.as_ref().filter(|_| masks.ffn[l] != 0.0);
            let layer = RunLayer {
                bottleneck: None,
                attention: attention.map(|a| {
                    let dims = spread(&heads, a.head_dim);
                    RunAttention {
                        query: rows(&a.query, &dims),
                        key: rows(&a.key, &dims),
                        value: rows(&a.value, &dims),
                        output: columns(&a.output, &dims),
                        norm: owned(&a.norm),
                        heads: heads.iter().map(|&h| a.heads[h]).collect(),
                        head_dim: a.head_dim,
                        binary: None,
                        positions: RunPositions::default(),
                    }
                }),
                ffn: ffn.map(|f| RunFeedForward {
                    up: rows(&f.up, &units),
                    gate: None,
                    down: columns(&f.down, &units),
                    norm: owned(&f.norm),
                    activation: f.activation,
                }),
            };
            Some(Cut { layer, heads, units })
        };
        let cut: Vec<_> = (0..layers.len()).into_par_iter().map(cut).collect();
        let mut left = masks.clone();
        for (l, cut) in cut.iter().enumerate() {
            let Some(Cut { heads, units, .. }) = cut else { continue };
            left.heads[l] = heads.iter().map(|&h| masks.heads[l][h]).collect();
            left.units[l] = units.iter().map(|&u| masks.units[l][u]).collect();
        }
        Compact { cut, masks: left }
    }

    /// The way through the layers.
    pub fn path<'a>(&'a self, layers: &[&'a RunLayer<'a>]) -> Vec<&'a RunLayer<'a>> {
        let pairs = self.cut.iter().zip(layers);
        pairs.map(|(cut, whole)| cut.as_ref().map_or(*whole, |cut| &cut.layer)).collect()
    }

    /// Takes the gradients of layers that are cut out of `grads`, and leaves zeros of the cut shapes.
    pub fn narrow<'a>(&self, grads: &mut [RunLayer<'a>]) -> Vec<Option<RunLayer<'a>>> {
        let narrow = |(cut, grads): (&Option<Cut>, &mut RunLayer<'a>)| {
            let cut = cut.as_ref()?;
            // A buffer that is empty says that its gradient is not wanted.
            let mut zeros: RunLayer = cut.layer.clone();
            for (zeros, grad) in zeros.leaves_mut().into_iter().zip(matching(grads, &cut.layer)) {
                *zeros = Cow::Owned(vec![0.0; if grad.is_empty() { 0 } else { zeros.len() }]);
            }
            Some(std::mem::replace(grads, zeros))
        };
        self.cut.iter().zip(grads).map(narrow).collect()
    }

    /// The way back from [`Compact::narrow`]: adds what was gathered meanwhile to what was taken.
    pub fn widen<'a>(&self, grads: &mut [RunLayer<'a>], taken: Vec<Option<RunLayer<'a>>>) {
        let parts = self.cut.par_iter().zip(grads).zip(taken);
        parts.for_each(|((cut, grads), taken)| {
            let (Some(cut), Some(mut whole)) = (cut, taken) else { return };
            std::mem::swap(grads, &mut whole);
            if let (Some(to), Some(from)) = (&mut grads.attention, &whole.attention) {
                let dims = spread(&cut.heads, to.head_dim);
                add_rows(&mut to.query, &from.query, &dims);
                add_rows(&mut to.key, &from.key, &dims);
                add_rows(&mut to.value, &from.value, &dims);
                add_columns(&mut to.output, &from.output, &dims);
                add(&mut to.norm.weight, &from.norm.weight);
                add(&mut to.norm.bias, &from.norm.bias);
            }
            if let (Some(to), Some(from)) = (&mut grads.ffn, &whole.ffn) {
                add_rows(&mut to.up, &from.up, &cut.units);
                add_columns(&mut to.down, &from.down, &cut.units);
                add(&mut to.norm.weight, &from.norm.weight);
                add(&mut to.norm.bias, &from.norm.bias);
            }
        });
    }

    /// Gradients of the masks, zeros where they are closed: a mask has no slope there.
    pub fn spread(&self, backs: &mut [Back], masks: &Masks) {
        let wide = |rows: &mut Vec<f32>, kept: &[usize], width: usize| {
            let mut out = vec![0.0; rows.len().checked_div(kept.len()).unwrap_or(0) * width];
            let pairs =
                out.chunks_exact_mut(width.max(1)).zip(rows.chunks_exact(kept.len().max(1)));
            for (out, row) in pairs {
                kept.iter().zip(row).for_each(|(&i, g)| out[i] = *g);
            }
            *rows = out;
        };
        for (l, cut) in self.cut.iter().enumerate() {
            let Some(cut) = cut else { continue };
            for back in &mut *backs {
                wide(&mut back.heads[l], &cut.heads, masks.heads[l].len());
                wide(&mut back.units[l], &cut.units, masks.units[l].len());
            }
        }
    }
}

/// The leaves of `whole` that `cut`, which may have lost blocks, has too.
fn matching<'l, 'a>(whole: &'l mut RunLayer<'a>, cut: &RunLayer) -> Vec<&'l mut Cow<'a, [f32]>> {
    let mut leaves = Vec::new();
    if let (Some(a), true) = (&mut whole.attention, cut.attention.is_some()) {
        leaves.extend(a.leaves_mut());
    }
    if let (Some(f), true) = (&mut whole.ffn, cut.ffn.is_some()) {
        leaves.extend(f.leaves_mut());
    }
    leaves
}

/// The context dimensions of `heads`.
fn spread(heads: &[usize], dim: usize) -> Vec<usize> {
    heads.iter().flat_map(|&h| h * dim..(h + 1) * dim).collect()
}

fn owned(norm: &RunNorm) -> RunNorm<'static> {
    let [weight, bias] = [&norm.weight, &norm.bias].map(|values| Cow::Owned(values.to_vec()));
    RunNorm { weight, bias, eps: norm.eps, kind: norm.kind }
}

fn rows(linear: &Dense, keep: &[usize]) -> Dense<'static> {
    let width = linear.input;
    let row = |&r: &usize| &linear.weight[r * width..(r + 1) * width];
    let weight: Vec<f32> = keep.iter().flat_map(row).copied().collect();
    let bias = linear.bias.as_ref().map(|b| Cow::Owned(keep.iter().map(|&r| b[r]).collect()));
    let activations = linear.activations;
    Dense {
        weight: Cow::Owned(weight),
        integers: None,
        panels: None,
        bias,
        out: keep.len(),
        input: width,
        activations,
        elastic: None,
    }
}

fn columns(linear: &Dense, keep: &[usize]) -> Dense<'static> {
    let mut weight = Vec::with_capacity(linear.out * keep.len());
    for row in linear.weight.chunks_exact(linear.input.max(1)) {
        weight.extend(keep.iter().map(|&c| row[c]));
    }
    let bias = linear.bias.as_ref().map(|b| Cow::Owned(b.to_vec()));
    let (out, activations) = (linear.out, linear.activations);
    Dense {
        weight: Cow::Owned(weight),
        integers: None,
        panels: None,
        bias,
        out,
        input: keep.len(),
        activations,
        elastic: None,
    }
}

fn add(to: &mut Cow<[f32]>, from: &[f32]) {
    to.to_mut().iter_mut().zip(from).for_each(|(t, f)| *t += f);
}

fn add_rows(to: &mut Dense, from: &Dense, keep: &[usize]) {
    let width = to.input;
    if let (Some(to), Some(from)) = (&mut to.bias, &from.bias) {
        let to = to.to_mut();
        keep.iter().zip(from.iter()).for_each(|(&r, f)| to[r] += f);
    }
    let to = to.weight.to_mut();
    for (&r, from) in keep.iter().zip(from.weight.chunks_exact(width.max(1))) {
        let row = &mut to[r * width..(r + 1) * width];
        row.iter_mut().zip(from).for_each(|(t, f)| *t += f);
    }
}

fn add_columns(to: &mut Dense, from: &Dense, keep: &[usize]) {
    if let (Some(to), Some(from)) = (&mut to.bias, &from.bias) {
        add(to, from);
    }
    let width = to.input;
    let rows = to.weight.to_mut().chunks_exact_mut(width.max(1));
    for (row, from) in rows.zip(from.weight.chunks_exact(keep.len().max(1))) {
        keep.iter().zip(from).for_each(|(&c, f)| row[c] += f);
    }
}
