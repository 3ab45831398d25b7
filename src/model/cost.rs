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
                let linears = || linears.into_iter().chain(a.of_distances.iter().flatten());
                let norms = || a.norm.iter();
                let tensors =
                    linears().flat_map(|l| l.tensors()).chain(norms().flat_map(Norm::tensors));
                let params = linears().map(|l| l.params()).chain(norms().map(Norm::params)).sum();
                add(&mut attention, part(tensors.collect(), params));
                if let Some(binary) = &a.binary {
                    add(&mut attention, part(binary.tensors(), binary.params()));
                }
            }
            if let Some(f) = &layer.ffn {
                let linears = || [&f.up, &f.down].into_iter().chain(&f.gate);
                let tensors = linears().flat_map(|l| l.tensors()).chain(f.norm.tensors()).collect();
                let params = linears().map(|l| l.params()).sum::<usize>() + f.norm.params();
                add(&mut ffn, part(tensors, params));
            }
            if let Some(n) = &layer.bottleneck {
                let linears = || {
                    let ways = [&n.input, &n.output].into_iter();
                    let shared = n.shared.iter().map(|(linear, _)| linear);
                    ways.chain(shared).chain(n.more.iter().flat_map(|f| [&f.up, &f.down]))
                };
                let tensors = linears().flat_map(Linear::tensors);
                let tensors = tensors.chain(n.norms().flat_map(Norm::tensors)).collect();
                let params = linears().map(Linear::params).chain(n.norms().map(Norm::params)).sum();
                add(&mut ffn, part(tensors, params));
            }
        }
        let mut bias: Vec<Tensor> = model.relative_bias.iter().cloned().collect();
        bias.extend(model.distances.iter().map(|(table, _)| table.clone()));
        let norms = model.distances.iter().flat_map(|(_, norm)| norm);
        bias.extend(norms.chain(&model.final_norm).flat_map(Norm::tensors));
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
    Part { params, bytes: tensors.iter().map(Tensor::byte_len).sum() }
}

fn add(sum: &mut Part, part: Part) {
    sum.params += part.params;
    sum.bytes += part.bytes;
}

fn embedding_tensors(model: &Model) -> Vec<Tensor> {
    let e = &model.embeddings;
    let mut tensors = e.word.tensors();
    tensors.extend(e.position.iter().chain(&e.token_type).chain(&e.task_type).cloned());
    tensors.extend(e.norm.tensors());
    tensors.extend(e.project.iter().flat_map(Linear::tensors));
    tensors
}

fn embedding_params(model: &Model) -> usize {
    let e = &model.embeddings;
    let tables = e.position.iter().chain(&e.token_type).chain(&e.task_type);
    let tables = tables.map(Tensor::numel).sum::<usize>();
    let project = e.project.as_ref().map_or(0, Linear::params);
    e.word.params() + tables + e.norm.params() + project
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
/// and attention products, and the rotation of a table's rows. FLOPs are twice this. Two binary factors count as two matrices, any other packed matrix as
/// the dense one that it stands for; LayerNorm, softmax and activations are not counted. What the runtime leaves out is not counted
/// either: tokens that a schedule drops, and all but the first token in the last layer where only that is read.
pub fn macs(model: &Model, batch: usize, tokens: usize) -> u64 {
    batch as u64 * layer_macs(model, model.tokens.as_ref(), tokens) + around(model, batch, tokens)
}

/// [`macs`] of one text, by what they are spent on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Macs {
    /// The linear layers of attention.
    pub attention: u64,
    /// Scores and contexts: what grows with the square of the length.
    pub products: u64,
    pub ffn: u64,
    /// Embeddings and head.
    pub around: u64,
}

/// As [`macs`], of one text, part by part.
pub fn macs_by_part(model: &Model, tokens: usize) -> Macs {
    let spent = through_layers(model, model.tokens.as_ref(), tokens, model.reads());
    let [attention, products, ffn] = spent.map(|macs| macs as u64);
    Macs { attention, products, ffn, around: around(model, 1, tokens) }
}

/// As [`macs`], of one text, with every token in every layer: a cost that is linear in heads and units.
pub fn whole_macs(model: &Model, tokens: usize) -> u64 {
    total(through_layers(model, None, tokens, Reads::Every)) as u64 + around(model, 1, tokens)
}

/// Embeddings and head.
fn around(model: &Model, batch: usize, tokens: usize) -> u64 {
    let rows = (batch * tokens) as u64;
    let words = rows * model.embeddings.word.lookup_macs() as u64;
    words
        + model.embeddings.project.as_ref().map_or(0, |p| product(p, batch * tokens))
        + match &model.head {
            Head::SequenceClassification { dense, out, .. } => {
                product(dense, batch) + product(out, batch)
            }
            Head::TokenClassification { out } | Head::QuestionAnswering { out } => {
                product(out, batch * tokens)
            }
            Head::MaskedLm { dense, .. } => {
                product(dense, batch * tokens) + rows * model.embeddings.word.params() as u64
            }
            Head::Embedding { .. } => 0,
            Head::Bare { pooler, .. } => pooler.as_ref().map_or(0, |p| product(p, batch)),
        }
}

/// Of [`macs`], those of the layers, for one text, under `schedule` in the place of the model's.
///
/// A layer that drops tokens has keys and values of all `n`, and the rest of the `m` that go on: queries (ranked by
/// the first token's attention; by all attention, of all, and all scores), context, output projection and
/// feed-forward block. Where the head reads every token, they go after the whole layer.
///
/// # Panics
/// If `tokens` is 0.
pub fn layer_macs(model: &Model, schedule: Option<&TokenSchedule>, tokens: usize) -> u64 {
    total(through_layers(model, schedule, tokens, model.reads())) as u64
}

/// Linear layers of attention, its products, and feed-forward blocks. Of whole lengths every number is a whole one,
/// below 2^53.
type Spent = [f64; 3];

fn total(spent: Spent) -> f64 {
    spent.iter().sum()
}

fn through_layers(
    model: &Model,
    schedule: Option<&TokenSchedule>,
    tokens: usize,
    reads: Reads,
) -> Spent {
    let whole = || vec![tokens; model.stack().len() + 1];
    let lengths = schedule.map_or_else(whole, |s| s.lengths(tokens));
    let lengths: Vec<f64> = lengths.into_iter().map(|n| n as f64).collect();
    let ranked = |l: usize| schedule.filter(|s| s.layers[l].is_some()).map(|s| s.score);
    through(model, &lengths, ranked, reads)
}

/// As [`layer_macs`] of lengths that are expected: of the tokens that enter each layer and those that leave the last.
/// Layer `l` ranks its tokens by `ranked(l)`, if it does.
pub fn expected_macs(
    model: &Model,
    lengths: &[f64],
    ranked: impl Fn(usize) -> Option<Score>,
) -> f64 {
    total(through(model, lengths, ranked, model.reads()))
}

fn through(
    model: &Model,
    lengths: &[f64],
    ranked: impl Fn(usize) -> Option<Score>,
    reads: Reads,
) -> Spent {
    let each = |linear: &Linear| linear.weight.macs() as f64;
    let stack: Vec<&Layer> = model.stack().into_iter().map(|l| &model.layers[l]).collect();
    let last = stack.iter().rposition(|l| l.attention.is_some());
    let (mut linears, mut products, mut ffn) = (0.0, 0.0, 0.0);
    for (l, (layer, lengths)) in stack.iter().zip(lengths.windows(2)).enumerate() {
        // Behind the last layer where tokens see each other.
        let alone = |l: usize| reads == Reads::First && last.is_none_or(|last| l > last);
        let n = if alone(l) { 1.0 } else { lengths[0] };
        let firsts = alone(l + 1);
        // Of these the layer computes all.
        let m = match reads {
            Reads::Every => n,
            // Of a layer with a bottleneck all is computed.
            _ if layer.bottleneck.is_some() => n,
            _ if firsts => 1.0,
            _ => lengths[1],
        };
        if let Some(a) = &layer.attention {
            let width = (a.heads.len() * a.head_dim) as f64;
            let square = |rows: f64| rows * n * width;
            let estimators = a.binary.iter().flat_map(|b| &b.estimators).flat_map(|e| e.linears());
            linears += n * estimators.map(each).sum::<f64>();
            linears += n * (each(&a.key) + each(&a.value)) + m * each(&a.output);
            // Signs are multiplied for all tokens, whichever leave.
            let m = if a.binary.is_some() { n } else { m };
            products += square(m);
            let queries = match ranked(l).filter(|_| reads != Reads::Every && !firsts) {
                Some(Score::Received) => n,
                Some(Score::First) if a.binary.is_none() => 1.0 + m,
                _ => m,
            };
            linears += queries * each(&a.query);
            products += square(queries);
            // What is made of distances is made once; each text meets those that it has.
            if let Some(d) = &model.config.features.distances {
                let last = n as i64 - 1;
                let rows = (d.row(last) + 1 - d.row(-last)) as f64;
                let (c2p, p2c) = (f64::from(u8::from(d.c2p)), f64::from(u8::from(d.p2c)));
                products += rows * width * (c2p * queries + p2c * n);
            }
        }
        if let Some(f) = &layer.ffn {
            ffn += m * (each(&f.up) + f.gate.as_ref().map_or(0.0, each) + each(&f.down));
        }
        if let Some(neck) = &layer.bottleneck {
            let more = neck.more.iter().map(|f| each(&f.up) + each(&f.down)).sum::<f64>();
            let shared = neck.shared.iter().map(|(linear, _)| each(linear)).sum::<f64>();
            ffn += m * (each(&neck.input) + shared + more + each(&neck.output));
        }
    }
    [linears, products, ffn]
}

/// Of one linear layer over `rows` rows.
fn product(linear: &Linear, rows: usize) -> u64 {
    rows as u64 * linear.weight.macs() as u64
}
