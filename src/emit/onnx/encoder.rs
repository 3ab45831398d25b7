//! A model as a graph: embeddings, layers, head.
//!
//! States are `[tokens, width]`, the texts of a batch one below the other: runtimes multiply two matrices, and add the bias
//! on the way. Where texts matter they are taken apart ([`Builder::by_text`]).

use super::graph::{Graph, Value};
use super::linear::Linears;
use super::proto::{Attribute, Dim, Message, Type, value_info};
use super::tokens::{Left, kept, pick, pick_rows, put};
use super::{SignPlanes, tables};
use crate::model::family::{Activation, Positions};
use crate::model::{Attention, FeedForward, Head, Layer, Linear, Model, Norm, PoolMode, Reads};
use crate::runtime::relative_bucket;

/// A graph with its inputs and outputs, `ValueInfoProto` each.
pub struct Built<'m> {
    pub graph: Graph<'m>,
    pub inputs: Vec<Message>,
    pub outputs: Vec<Message>,
}

/// Added to scores where no token is: finite, so that a text without tokens gives no NaN.
const MASKED: f32 = -1e9;

/// Distances from here on fall into MPNet's last bucket.
const FAR: i64 = 128;

struct Builder<'m> {
    model: &'m Model,
    graph: Graph<'m>,
    linears: Linears,
    /// Texts, and tokens that are left of each with their padding: `[2]`.
    sides: Value,
    outputs: Vec<Message>,
}

/// The graph of `model`, which is as it is stored. No data is read of it before that of a constant is.
pub fn build(model: &Model, sign_planes: SignPlanes) -> Built<'_> {
    let mut builder = Builder {
        model,
        graph: Graph::default(),
        linears: Linears::new(sign_planes),
        sides: String::new(),
        outputs: Vec::new(),
    };
    let sides = [Dim::Named("batch"), Dim::Named("sequence")];
    let mut names = vec!["input_ids", "attention_mask"];
    if model.config.token_types > 1 {
        names.push("token_type_ids");
    }
    let inputs = names.iter().map(|name| value_info(name, Type::I64, &sides)).collect();
    let (x, left) = builder.encoder();
    builder.head(&x, &left);
    Built { graph: builder.graph, inputs, outputs: builder.outputs }
}

impl<'m> Builder<'m> {
    /// The last hidden state, `[tokens, hidden]`, and which tokens are there: all, but for a head that reads the first
    /// alone.
    fn encoder(&mut self) -> (Value, Left) {
        let model = self.model;
        self.sides = self.graph.op("Shape", &["input_ids"]);
        let mut x = self.embed();
        let hidden = model.config.hidden;
        let g = &mut self.graph;
        let zero = g.int(0);
        let live = g.op("Equal", &["attention_mask", &zero]);
        let mask = g.op("Not", &[&live]);
        let tokens = g.side("input_ids", 1);
        let all = Left { mask, ids: "input_ids".into(), places: None };
        let mut left = all.clone();
        let drops = model.tokens.as_ref().filter(|t| t.drops());
        // Of sentence embeddings too, all states are an output.
        let firsts = matches!(model.head, Head::SequenceClassification { .. });
        let last_attention = model.layers.iter().rposition(|l| l.attention.is_some());
        // What becomes of tokens that are dropped, where somebody reads it.
        let mut states = match drops {
            Some(_) if !firsts => Some(self.nothing(&x, hidden)),
            _ => None,
        };
        let (mut bias, mut scores) = (self.mask_bias(&left), self.score_bias(&left));
        for (l, layer) in model.layers.iter().enumerate() {
            let bins = drops.and_then(|t| t.layers[l].as_ref().map(|bins| (t, bins)));
            let only_first = firsts && last_attention == Some(l);
            let Some(attention) = &layer.attention else {
                x = self.block(layer, x);
                continue;
            };
            let (mut context, probs) = self.attend(attention, &x, &bias, scores.as_deref());
            let mut residual = x;
            let inner = attention.output.weight.cols();
            if only_first {
                residual = self.firsts(&residual, hidden);
                context = context.map(|c| self.firsts(&c, inner));
                let (batch, one) = (self.graph.side("input_ids", 0), self.graph.ints(&[1]));
                self.sides = joined(&mut self.graph, &[&batch, &one]);
            }
            let cut = match (bins, probs) {
                (Some((schedule, bins)), Some(probs)) if !only_first => {
                    Some(kept(&mut self.graph, schedule, bins, &probs, &left))
                }
                _ => None,
            };
            match (&cut, &states) {
                // Nobody reads what is dropped: it goes before the rest of the layer is computed.
                (Some([places, _]), None) => {
                    residual = self.picked(&residual, hidden, places);
                    context = context.map(|c| self.picked(&c, inner, places));
                    x = self.finish(attention, context, &residual);
                    x = self.block(layer, x);
                }
                (Some([places, _]), Some(before)) => {
                    x = self.finish(attention, context, &residual);
                    x = self.block(layer, x);
                    let rows = self.by_text(&x, hidden);
                    states = Some(put(&mut self.graph, before, &rows, &left));
                    x = self.picked(&x, hidden, places);
                }
                (None, _) => {
                    x = self.finish(attention, context, &residual);
                    x = self.block(layer, x);
                }
            }
            if let Some([places, mask]) = cut {
                left = pick(&mut self.graph, &left, &places, mask, &tokens);
                self.sides = self.graph.op("Shape", &[&left.mask]);
                (bias, scores) = (self.mask_bias(&left), self.score_bias(&left));
            }
        }
        let Some(mut states) = states else { return (x, left) };
        let rows = self.by_text(&x, hidden);
        if model.reads() == Reads::Left {
            // Mean and maximum stay as they are when what is gone has the mean of what is left.
            let mean = self.mean(&rows, &left);
            let mean = self.graph.unsqueeze(&mean, &[1]);
            let zero = self.graph.float(0.0);
            let zeros = self.graph.op("Mul", &[&states, &zero]);
            states = self.graph.op("Add", &[&zeros, &mean]);
        }
        let states = put(&mut self.graph, &states, &rows, &left);
        let g = &mut self.graph;
        let (zero, one) = (g.ints(&[0]), g.ints(&[1]));
        let states = g.op("Slice", &[&states, &zero, &tokens, &one]);
        self.sides = g.op("Shape", &["input_ids"]);
        (self.below(&states, hidden), all)
    }

    /// `[tokens, width]` as `[batch, tokens of a text, width]`.
    fn by_text(&mut self, x: &str, width: usize) -> Value {
        let shape = self.shape(&[width as i64]);
        self.graph.op("Reshape", &[x, &shape])
    }

    /// The sides of the batch, and those behind them.
    fn shape(&mut self, behind: &[i64]) -> Value {
        let behind = self.graph.ints(behind);
        joined(&mut self.graph, &[&self.sides, &behind])
    }

    /// `[batch, tokens of a text, width]` as `[tokens, width]`.
    fn below(&mut self, x: &str, width: usize) -> Value {
        self.graph.reshape(x, &[-1, width as i64])
    }

    /// The first token of each text, `[batch, width]`, of `[tokens, width]`.
    fn firsts(&mut self, x: &str, width: usize) -> Value {
        let x = self.by_text(x, width);
        let index = self.graph.int(0);
        self.graph.with("Gather", &[&x, &index], &[("axis", Attribute::Int(1))])
    }

    /// Tokens at `places` of each text, of `[tokens, width]` and as that.
    fn picked(&mut self, x: &str, width: usize, places: &str) -> Value {
        let x = self.by_text(x, width);
        let x = pick_rows(&mut self.graph, &x, places);
        self.below(&x, width)
    }

    fn embed(&mut self) -> Value {
        let (config, e) = (&self.model.config, &self.model.embeddings);
        let word = tables::rows(&mut self.graph, &e.word, "input_ids");
        let g = &mut self.graph;
        let pad = match self.model.family.positions {
            Positions::FromZero => None,
            Positions::AfterPadding => Some(config.pad_id),
            Positions::AfterOne => Some(1),
        };
        let positions = match pad {
            None => g.count("input_ids", 1),
            Some(pad) => {
                let pad = g.int(pad as i64);
                let padding = g.op("Equal", &["input_ids", &pad]);
                let live = g.op("Not", &[&padding]);
                let live = g.cast(&live, Type::I64);
                let axis = g.int(1);
                let counted = g.op("CumSum", &[&live, &axis]);
                let counted = g.op("Mul", &[&counted, &live]);
                g.op("Add", &[&counted, &pad])
            }
        };
        let mut x = word;
        if let Some(table) = &e.position {
            let position = g.rows(table, &positions);
            x = g.op("Add", &[&x, &position]);
        }
        if let Some(table) = &e.token_type {
            let row = match config.token_types {
                1 => {
                    let first = g.int(0);
                    g.rows(table, &first)
                }
                _ => g.rows(table, "token_type_ids"),
            };
            x = g.op("Add", &[&x, &row]);
        }
        if let Some(table) = &e.task_type {
            let first = g.int(0);
            let row = g.rows(table, &first);
            x = g.op("Add", &[&x, &row]);
        }
        x = self.norm(&e.norm, &x);
        x = self.below(&x, e.word.cols());
        match &e.project {
            Some(project) => self.linear(project, &x),
            None => x,
        }
    }

    /// What scores of padding lose: `[batch, 1, 1, left]`.
    fn mask_bias(&mut self, left: &Left) -> Value {
        let g = &mut self.graph;
        let (zero, far) = (g.float(0.0), g.float(MASKED));
        let bias = g.op("Where", &[&left.mask, &zero, &far]);
        g.unsqueeze(&bias, &[1, 2])
    }

    /// MPNet's bias by distance, `[1 or batch, left, left, original heads]`.
    fn score_bias(&mut self, left: &Left) -> Option<Value> {
        let table = self.model.relative_bias.as_ref()?;
        let heads = self.model.config.heads;
        let rows = move || {
            let values = table.to_f32().expect("a floating type, as the loader checked");
            let row = |d: i64| &values[relative_bucket(d) * heads..][..heads];
            (-FAR..=FAR).flat_map(row).copied().collect()
        };
        let g = &mut self.graph;
        let by_distance = g.floats("distance_bias", &[2 * FAR as usize + 1, heads], rows);
        let places = match &left.places {
            Some(places) => places.clone(),
            None => {
                let numbers = g.count(&left.mask, 1);
                g.unsqueeze(&numbers, &[0])
            }
        };
        let (keys, queries) = (g.unsqueeze(&places, &[1]), g.unsqueeze(&places, &[2]));
        let distance = g.op("Sub", &[&keys, &queries]);
        let (near, far) = (g.int(-FAR), g.int(FAR));
        let distance = g.op("Max", &[&distance, &near]);
        let distance = g.op("Min", &[&distance, &far]);
        let row = g.op("Add", &[&distance, &far]);
        Some(g.op("Gather", &[&by_distance, &row]))
    }

    /// What the heads of a block make of `x`, and their probabilities; nothing where no head is left.
    fn attend(
        &mut self,
        attention: &'m Attention,
        x: &str,
        mask: &str,
        scores: Option<&str>,
    ) -> (Option<Value>, Option<Value>) {
        let (heads, dim) = (attention.heads.len() as i64, attention.head_dim as i64);
        if heads == 0 {
            return (None, None);
        }
        let [query, key, value] = self.split(attention, x);
        let g = &mut self.graph;
        let key = g.transpose(&key, &[0, 1, 3, 2]);
        let product = g.op("MatMul", &[&query, &key]);
        let root = g.float((attention.head_dim as f32).sqrt());
        let mut sum = g.op("Div", &[&product, &root]);
        if let Some(bias) = scores {
            let left: Vec<i64> = attention.heads.iter().map(|&h| h as i64).collect();
            // Which heads are left is no matter of the graph's size: plans know how many.
            let left = g.list(&left);
            let bias = g.with("Gather", &[bias, &left], &[("axis", Attribute::Int(3))]);
            let bias = g.transpose(&bias, &[0, 3, 1, 2]);
            sum = g.op("Add", &[&sum, &bias]);
        }
        sum = g.op("Add", &[&sum, mask]);
        let probs = g.with("Softmax", &[&sum], &[("axis", Attribute::Int(-1))]);
        let context = g.op("MatMul", &[&probs, &value]);
        let context = g.transpose(&context, &[0, 2, 1, 3]);
        let context = g.reshape(&context, &[-1, heads * dim]);
        (Some(context), Some(probs))
    }

    /// Queries, keys and values of the heads of a block, `[batch, heads, tokens of a text, head width]` each.
    fn split(&mut self, attention: &'m Attention, x: &str) -> [Value; 3] {
        let (heads, dim) = (attention.heads.len() as i64, attention.head_dim as i64);
        let linears = [&attention.query, &attention.key, &attention.value];
        if let Some(all) = self.linears.together(&mut self.graph, &linears, x) {
            let shape = self.shape(&[3, heads, dim]);
            let g = &mut self.graph;
            let all = g.op("Reshape", &[&all, &shape]);
            let all = g.transpose(&all, &[2, 0, 3, 1, 4]);
            return [0, 1, 2].map(|i| {
                let index = g.int(i);
                g.with("Gather", &[&all, &index], &[("axis", Attribute::Int(0))])
            });
        }
        linears.map(|linear| {
            let y = self.linear(linear, x);
            let shape = self.shape(&[heads, dim]);
            let y = self.graph.op("Reshape", &[&y, &shape]);
            self.graph.transpose(&y, &[0, 2, 1, 3])
        })
    }

    /// Output projection, residual and norm.
    fn finish(&mut self, a: &'m Attention, context: Option<Value>, residual: &str) -> Value {
        let context = context.as_deref().unwrap_or(residual);
        let y = self.linears.forward(&mut self.graph, &a.output, context, residual);
        let y = self.graph.op("Add", &[&y, residual]);
        self.norm(a.norm.as_ref().expect("other families are refused"), &y)
    }

    /// The feed-forward block of a layer, if it is there.
    fn block(&mut self, layer: &'m Layer, x: Value) -> Value {
        let Some(FeedForward { up, down, norm, .. }) = &layer.ffn else { return x };
        let y = match down.weight.cols() {
            0 => self.linears.forward(&mut self.graph, down, &x, &x),
            _ => {
                let units = self.linear(up, &x);
                let units = self.activate(self.model.config.activation, &units);
                self.linear(down, &units)
            }
        };
        let y = self.graph.op("Add", &[&y, &x]);
        self.norm(norm, &y)
    }

    fn linear(&mut self, linear: &'m Linear, x: &str) -> Value {
        self.linears.forward(&mut self.graph, linear, x, x)
    }

    fn norm(&mut self, norm: &'m Norm, x: &str) -> Value {
        let shift = norm.bias.as_ref().expect("other families are refused");
        let (scale, shift) = (self.graph.wide(&norm.weight), self.graph.wide(shift));
        let eps = Attribute::Float(self.model.config.eps);
        let attributes = [("axis", Attribute::Int(-1)), ("epsilon", eps)];
        self.graph.with("LayerNormalization", &[x, &scale, &shift], &attributes)
    }

    fn activate(&mut self, activation: Activation, x: &str) -> Value {
        let g = &mut self.graph;
        match activation {
            Activation::Relu => g.op("Relu", &[x]),
            Activation::Tanh => g.op("Tanh", &[x]),
            Activation::Silu => {
                let gate = g.op("Sigmoid", &[x]);
                g.op("Mul", &[x, &gate])
            }
            // In the order in which runtimes look for it, to compute it at once.
            Activation::Gelu => {
                let (root, one, half) = (g.float(2.0f32.sqrt()), g.float(1.0), g.float(0.5));
                let scaled = g.op("Div", &[x, &root]);
                let erf = g.op("Erf", &[&scaled]);
                let sum = g.op("Add", &[&erf, &one]);
                let product = g.op("Mul", &[x, &sum]);
                g.op("Mul", &[&product, &half])
            }
            Activation::GeluTanh => {
                let three = g.float(3.0);
                let cube = g.op("Pow", &[x, &three]);
                let small = g.float(0.044715);
                let cube = g.op("Mul", &[&cube, &small]);
                let sum = g.op("Add", &[x, &cube]);
                let root = g.float((2.0 / std::f32::consts::PI).sqrt());
                let inner = g.op("Mul", &[&sum, &root]);
                let tanh = g.op("Tanh", &[&inner]);
                let one = g.float(1.0);
                let sum = g.op("Add", &[&tanh, &one]);
                let product = g.op("Mul", &[x, &sum]);
                let half = g.float(0.5);
                g.op("Mul", &[&product, &half])
            }
        }
    }

    /// A place for every token and one more, `[batch, tokens + 1, width]`: zeros.
    fn nothing(&mut self, x: &str, width: usize) -> Value {
        let x = &self.by_text(x, width);
        let g = &mut self.graph;
        let first = g.slice(x, 1, 0, 1);
        let longer = g.with("Concat", &[x, &first], &[("axis", Attribute::Int(1))]);
        let zero = g.float(0.0);
        g.op("Mul", &[&longer, &zero])
    }

    /// The mean state of what is left of each text, `[batch, width]`.
    fn mean(&mut self, x: &str, left: &Left) -> Value {
        let g = &mut self.graph;
        let live = g.cast(&left.mask, Type::F32);
        let live = g.unsqueeze(&live, &[-1]);
        let kept = g.op("Mul", &[x, &live]);
        let sum = g.reduce("ReduceSum", &kept, &[1], false);
        let count = g.reduce("ReduceSum", &live, &[1], false);
        g.op("Div", &[&sum, &count])
    }

    fn head(&mut self, x: &str, left: &Left) {
        let (model, config) = (self.model, &self.model.config);
        let [batch, sequence] = [Dim::Named("batch"), Dim::Named("sequence")];
        match &model.head {
            Head::SequenceClassification { dense, activation, out, .. } => {
                let first = self.firsts(x, config.hidden);
                let pooled = self.linear(dense, &first);
                let pooled = self.activate(*activation, &pooled);
                let logits = self.linear(out, &pooled);
                self.output("logits", &logits, &[batch, Dim::Fixed(out.weight.rows())]);
            }
            Head::TokenClassification { out } => {
                let logits = self.linear(out, x);
                let logits = self.by_text(&logits, out.weight.rows());
                self.output("logits", &logits, &[batch, sequence, Dim::Fixed(out.weight.rows())]);
            }
            Head::QuestionAnswering { out } => {
                let logits = self.linear(out, x);
                let logits = self.by_text(&logits, out.weight.rows());
                for (i, name) in ["start_logits", "end_logits"].into_iter().enumerate() {
                    let (index, axis) = (self.graph.int(i as i64), Attribute::Int(2));
                    let one = self.graph.with("Gather", &[&logits, &index], &[("axis", axis)]);
                    self.output(name, &one, &[batch, sequence]);
                }
            }
            Head::MaskedLm { dense, activation, norm, decoder, bias } => {
                let states = self.linear(dense, x);
                let states = self.activate(*activation, &states);
                let states = self.norm(norm, &states);
                let table = match decoder {
                    Some(decoder) => self.graph.wide(decoder),
                    None => tables::all(&mut self.graph, &model.embeddings.word),
                };
                let table = self.graph.transpose(&table, &[1, 0]);
                let logits = self.graph.op("MatMul", &[&states, &table]);
                let bias = self.graph.wide(bias);
                let logits = self.graph.op("Add", &[&logits, &bias]);
                let logits = self.by_text(&logits, config.vocab);
                self.output("logits", &logits, &[batch, sequence, Dim::Fixed(config.vocab)]);
            }
            Head::Bare { pooler, .. } => {
                let states = self.by_text(x, config.hidden);
                let width = Dim::Fixed(config.hidden);
                self.output("last_hidden_state", &states, &[batch, sequence, width]);
                if let Some(pooler) = pooler {
                    let first = self.firsts(x, config.hidden);
                    let pooled = self.linear(pooler, &first);
                    let pooled = self.graph.op("Tanh", &[&pooled]);
                    self.output("pooler_output", &pooled, &[batch, Dim::Fixed(config.pooled)]);
                }
            }
            Head::Embedding { pool, normalize } => {
                let states = self.by_text(x, config.hidden);
                let width = Dim::Fixed(config.hidden);
                self.output("last_hidden_state", &states, &[batch, sequence, width]);
                let mut pooled = match pool {
                    PoolMode::Cls => self.firsts(x, config.hidden),
                    PoolMode::Mean => self.mean(&states, left),
                    PoolMode::Max => {
                        let least = self.graph.float(f32::MIN);
                        let live = self.graph.unsqueeze(&left.mask, &[-1]);
                        let kept = self.graph.op("Where", &[&live, &states, &least]);
                        self.graph.reduce("ReduceMax", &kept, &[1], false)
                    }
                };
                if *normalize {
                    let g = &mut self.graph;
                    let squares = g.op("Mul", &[&pooled, &pooled]);
                    let sum = g.reduce("ReduceSum", &squares, &[1], true);
                    let length = g.op("Sqrt", &[&sum]);
                    let least = g.float(1e-12);
                    let length = g.op("Max", &[&length, &least]);
                    pooled = g.op("Div", &[&pooled, &length]);
                }
                self.output("sentence_embedding", &pooled, &[batch, Dim::Fixed(config.hidden)]);
            }
        }
    }

    fn output(&mut self, name: &str, value: &str, dims: &[Dim]) {
        self.graph.named("Identity", &[value], name);
        self.outputs.push(value_info(name, Type::F32, dims));
    }
}

/// Lists one behind the other.
fn joined(graph: &mut Graph, lists: &[&str]) -> Value {
    graph.with("Concat", lists, &[("axis", Attribute::Int(0))])
}
