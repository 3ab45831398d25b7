//! What a model costs: parameters, stored bytes, multiply-accumulates.

use super::*;
use serde::Serialize;

/// Parameters and bytes of one part of a model.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Part {
    /// Logical parameters: those of the matrices that are stood for, tied tensors counted once.
    pub params: usize,
    /// Bytes of the tensors that store them, without the file's header.
    pub bytes: usize,
}

/// The cost of a model, by part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Cost {
    pub embeddings: Part,
    pub attention: Part,
    pub ffn: Part,
    pub head: Part,
    /// Tensors that are stored and not used.
    pub unused: Part,
    pub total: Part,
}

impl Cost {
    pub fn of(model: &Model) -> Cost {
        let embeddings = part(embedding_tensors(model), embedding_params(model));
        let (mut attention, mut ffn) = (Part::default(), Part::default());
        for layer in &model.layers {
            if let Some(a) = &layer.attention {
                let linears = [&a.query, &a.key, &a.value, &a.output];
                let tensors = linears.iter().flat_map(|l| l.tensors()).chain(a.norm.tensors());
                let params = linears.iter().map(|l| l.params()).sum::<usize>() + a.norm.params();
                add(&mut attention, part(tensors.collect(), params));
            }
            if let Some(f) = &layer.ffn {
                let tensors = [f.up.tensors(), f.down.tensors(), f.norm.tensors()].concat();
                let params = f.up.params() + f.down.params() + f.norm.params();
                add(&mut ffn, part(tensors, params));
            }
        }
        let bias: Vec<Tensor> = model.relative_bias.iter().cloned().collect();
        let params = bias.iter().map(Tensor::numel).sum();
        add(&mut attention, part(bias, params));
        let head = part(model.head.tensors(), model.head.params());
        let unused = part(model.unused.clone(), model.unused.iter().map(Tensor::numel).sum());
        let mut total = Part::default();
        for p in [embeddings, attention, ffn, head, unused] {
            add(&mut total, p);
        }
        Cost { embeddings, attention, ffn, head, unused, total }
    }
}

fn part(tensors: Vec<Tensor>, params: usize) -> Part {
    Part { params, bytes: tensors.iter().map(|t| t.bytes().len()).sum() }
}

fn add(sum: &mut Part, part: Part) {
    sum.params += part.params;
    sum.bytes += part.bytes;
}

fn embedding_tensors(model: &Model) -> Vec<Tensor> {
    let e = &model.embeddings;
    let mut tensors = e.word.tensors();
    tensors.push(e.position.clone());
    tensors.extend(e.token_type.iter().chain(&e.task_type).cloned());
    tensors.extend(e.norm.tensors());
    tensors.extend(e.project.iter().flat_map(Linear::tensors));
    tensors
}

fn embedding_params(model: &Model) -> usize {
    let e = &model.embeddings;
    let tables = e.token_type.iter().chain(&e.task_type).map(Tensor::numel).sum::<usize>();
    let project = e.project.as_ref().map_or(0, Linear::params);
    e.word.params() + e.position.numel() + tables + e.norm.params() + project
}

/// Weights and biases of the linear layers of one layer: what `prune` counts sparsity in (CoFi §3.1,
/// without the LayerNorms).
pub fn prunable(layer: &Layer) -> usize {
    layer.linears().iter().map(|(_, l)| l.params()).sum()
}

/// Bits per weight of the encoder's matrices, everything stored for them counted.
pub fn bits_per_weight(model: &Model) -> f64 {
    let linears = || model.layers.iter().flat_map(|l| l.linears());
    let bytes: usize = linears().map(|(_, l)| l.weight.bytes()).sum();
    let params: usize = linears().map(|(_, l)| l.weight.params()).sum();
    8.0 * bytes as f64 / params.max(1) as f64
}

/// Multiply-accumulates of one forward pass over `batch` texts of `tokens` tokens each: linear layers
/// and attention products. FLOPs are twice this. A packed matrix counts as the dense one that it is
/// expanded to; LayerNorm, softmax and activations are not counted.
pub fn macs(model: &Model, batch: usize, tokens: usize) -> u64 {
    let rows = (batch * tokens) as u64;
    let product = |linear: &Linear, rows: u64| rows * linear.weight.params() as u64;
    let mut macs = model.embeddings.project.as_ref().map_or(0, |p| product(p, rows));
    for layer in &model.layers {
        macs += layer.linears().iter().map(|(_, l)| product(l, rows)).sum::<u64>();
        if let Some(a) = &layer.attention {
            macs += 2 * rows * tokens as u64 * (a.heads.len() * a.head_dim) as u64;
        }
    }
    let texts = batch as u64;
    macs + match &model.head {
        Head::SequenceClassification { dense, out, .. } => {
            product(dense, texts) + product(out, texts)
        }
        Head::TokenClassification { out } | Head::QuestionAnswering { out } => product(out, rows),
        Head::MaskedLm { dense, .. } => {
            product(dense, rows) + rows * model.embeddings.word.params() as u64
        }
        Head::Embedding { .. } => 0,
        Head::Bare { pooler } => pooler.as_ref().map_or(0, |p| product(p, texts)),
    }
}
