//! Named tensors to one encoder, and back.
//!
//! Passes do not edit tensors by name: they edit a [`Model`]. Its parts keep the names under which
//! the checkpoint stores them, so that what no pass touched is written back byte for byte.

pub mod binary;
pub mod config;
pub mod cost;
pub mod double;
pub mod elastic;
pub mod exact;
pub mod factored;
pub mod family;
pub mod features;
pub mod head;
pub mod int8;
mod latent;
pub mod linear;
mod load;
mod new_head;
pub mod outline;
mod packed;
mod places;
mod save;
pub mod slice;
pub mod subspace;
#[cfg(test)]
pub mod testing;
#[cfg(test)]
mod tests;
pub mod tokens;
mod words;

pub use binary::{Binary, LowRank};
pub use config::{Config, Task};
pub use double::DoubleBinary;
pub use elastic::{BinaryAttention, Elastic, Estimators};
pub use exact::Exact;
pub use factored::Factored;
pub use family::{Activation, Family};
pub use features::{Distances, Features, Narrow, Rotary};
pub use head::{Head, PoolMode};
pub use int8::Int8;
pub use linear::{Activations, Linear, Norm, NormKind, Weight};
pub use outline::{Bounds, Outline};
pub use packed::Scales;
pub use places::{Part, Place};
pub use subspace::{Codes, Rotation, Subspace, TableErrors};
pub use tokens::{Reads, Score, TokenSchedule};

use crate::checkpoint::{Spill, Tensor};
use crate::{Error, Result};

/// One encoder with its head.
#[derive(Debug, Clone)]
pub struct Model {
    pub config: Config,
    pub family: &'static Family,
    pub embeddings: Embeddings,
    pub layers: Vec<Layer>,
    /// MPNet: `[32, heads]`, added to attention scores by bucketed distance, in every layer.
    pub relative_bias: Option<Tensor>,
    /// DeBERTa: `[2 · span, hidden]`, by distance, and its LayerNorm.
    pub distances: Option<(Tensor, Option<Norm>)>,
    /// ModernBERT: behind the last layer.
    pub final_norm: Option<Norm>,
    pub head: Head,
    /// Which tokens layers drop; `None`: none.
    pub tokens: Option<TokenSchedule>,
    /// Tensors that the model does not use, kept as they are (unused poolers, position ids, copies
    /// of the tied word table).
    pub unused: Vec<Tensor>,
}

/// From token ids to the first hidden state.
#[derive(Debug, Clone)]
pub struct Embeddings {
    /// `[vocab, embedding]`
    pub word: Weight,
    /// `[positions, embedding]`
    pub position: Option<Tensor>,
    /// `[types, embedding]`
    pub token_type: Option<Tensor>,
    /// `[task types, embedding]`
    pub task_type: Option<Tensor>,
    pub norm: Norm,
    /// ELECTRA: `[hidden, embedding]`
    pub project: Option<Linear>,
}

/// One layer. A sublayer that is `None` is an identity, its LayerNorm gone with it.
#[derive(Debug, Clone)]
pub struct Layer {
    pub attention: Option<Attention>,
    pub ffn: Option<FeedForward>,
    /// MobileBERT: what its blocks stand in.
    pub bottleneck: Option<Box<Bottleneck>>,
}

/// The way into a layer's narrow stream and out of it, and what stands there besides.
#[derive(Debug, Clone)]
pub struct Bottleneck {
    /// `[narrow, hidden]`: what attention adds to.
    pub input: Linear,
    pub input_norm: Norm,
    /// `[narrow, hidden]`: what queries and keys are made of, and values of the layer's input; `None`: all three are made
    /// of what attention adds to.
    pub shared: Option<(Linear, Norm)>,
    /// Feed-forward blocks between attention and the layer's own.
    pub more: Vec<FeedForward>,
    /// `[hidden, narrow]`: what is added to the layer's input.
    pub output: Linear,
    pub output_norm: Norm,
}

impl Bottleneck {
    fn norms(&self) -> impl Iterator<Item = &Norm> {
        let shared = self.shared.iter().map(|(_, norm)| norm);
        let more = self.more.iter().map(|f| &f.norm);
        [&self.input_norm, &self.output_norm].into_iter().chain(shared).chain(more)
    }
}

/// Self-attention. With no heads left it still adds its output bias and normalises.
#[derive(Debug, Clone)]
pub struct Attention {
    /// `[heads · head_dim, hidden]`
    pub query: Linear,
    pub key: Linear,
    pub value: Linear,
    /// `[hidden, heads · head_dim]`
    pub output: Linear,
    /// `None`: the first of a ModernBERT has none.
    pub norm: Option<Norm>,
    /// Which of the original heads are left, ascending.
    pub heads: Vec<usize>,
    pub head_dim: usize,
    /// Signs in the place of queries, keys, values and probabilities.
    pub binary: Option<BinaryAttention>,
    /// Positions turn queries and keys.
    pub rotary: Option<Rotary>,
    /// DeBERTa: what makes keys and queries of distances, `[heads · head_dim, hidden]`, where `key` and `query` do not.
    pub of_distances: [Option<Linear>; 2],
    /// The name under which query, key and value are stored as one matrix, while they are dense.
    pub joined: Option<String>,
}

/// The feed-forward block. With no units left it still adds its bias and normalises.
#[derive(Debug, Clone)]
pub struct FeedForward {
    /// `[ffn, hidden]`
    pub up: Linear,
    /// `[ffn, hidden]`: what the units are multiplied by.
    pub gate: Option<Linear>,
    /// `[hidden, ffn]`
    pub down: Linear,
    pub norm: Norm,
    /// The name under which `up` and `gate` are stored as one matrix, while they are dense.
    pub joined: Option<String>,
}

impl FeedForward {
    /// Units left.
    pub fn units(&self) -> usize {
        self.up.weight.rows()
    }
}

impl Layer {
    /// As [`Model::release`], for the matrices of one layer.
    pub fn release(&self) {
        self.linears().iter().flat_map(|(_, l)| l.tensors()).for_each(|t| t.release());
    }

    /// Moves its matrices to a file, where they own their memory.
    ///
    /// # Errors
    /// As [`Spill::put`].
    pub fn spill(&mut self, spill: &Spill) -> Result<()> {
        self.linears_mut().into_iter().try_for_each(|linear| linear.weight.spill(spill))
    }

    /// The linear layers of both sublayers, in the order of computation, with their roles.
    pub fn linears(&self) -> Vec<(&'static str, &Linear)> {
        let mut linears = Vec::new();
        let neck = self.bottleneck.as_deref();
        let shared = || neck.iter().flat_map(|n| &n.shared).map(|(linear, _)| linear);
        linears.extend(neck.iter().map(|n| ("narrow", &n.input)));
        linears.extend(shared().map(|linear| ("narrow", linear)));
        if let Some(a) = &self.attention {
            let value = if shared().next().is_some() { "wide_value" } else { "value" };
            linears.extend([("query", &a.query), ("key", &a.key), (value, &a.value)]);
            let [key, query] = &a.of_distances;
            linears.extend(key.iter().map(|l| ("distance_key", l)));
            linears.extend(query.iter().map(|l| ("distance_query", l)));
            linears.push(("attention_output", &a.output));
        }
        for f in neck.iter().flat_map(|n| &n.more) {
            linears.extend([("more_up", &f.up), ("more_down", &f.down)]);
        }
        if let Some(f) = &self.ffn {
            linears.push(("up", &f.up));
            linears.extend(f.gate.iter().map(|l| ("gate", l)));
            linears.push(("down", &f.down));
        }
        linears.extend(neck.iter().map(|n| ("widen", &n.output)));
        linears
    }

    /// Its tensors as they are stored.
    pub fn tensors(&self) -> Vec<Tensor> {
        let mut tensors = Vec::new();
        if let Some(a) = &self.attention {
            tensors.extend(joined(&a.joined, &[&a.query, &a.key, &a.value]));
            tensors.extend(a.of_distances.iter().flatten().flat_map(Linear::tensors));
            tensors.extend(a.output.tensors());
            tensors.extend(a.norm.iter().flat_map(Norm::tensors));
            tensors.extend(a.binary.iter().flat_map(BinaryAttention::tensors));
        }
        if let Some(f) = &self.ffn {
            let inner: Vec<&Linear> = std::iter::once(&f.up).chain(&f.gate).collect();
            tensors.extend(joined(&f.joined, &inner));
            tensors.extend(f.down.tensors());
            tensors.extend(f.norm.tensors());
        }
        if let Some(n) = &self.bottleneck {
            let shared = n.shared.iter().map(|(linear, _)| linear);
            let more = n.more.iter().flat_map(|f| [&f.up, &f.down]);
            let linears = [&n.input, &n.output].into_iter().chain(shared).chain(more);
            tensors.extend(linears.flat_map(Linear::tensors));
            tensors.extend(n.norms().flat_map(Norm::tensors));
        }
        tensors
    }
}

/// The tensors of `parts`, as one matrix of this name while they are dense.
fn joined(name: &Option<String>, parts: &[&Linear]) -> Vec<Tensor> {
    let one = |name: &String| {
        let weights = parts.iter().map(|l| l.weight.dense().ok()).collect::<Option<Vec<_>>>()?;
        let biases: Vec<&Tensor> = parts.iter().filter_map(|l| l.bias.as_ref()).collect();
        let mut tensors = vec![Tensor::joined(format!("{name}.weight"), &weights)?];
        if !biases.is_empty() {
            tensors.push(Tensor::joined(format!("{name}.bias"), &biases)?);
        }
        Some(tensors)
    };
    let one = name.as_ref().and_then(one);
    one.unwrap_or_else(|| parts.iter().flat_map(|l| l.tensors()).collect())
}

impl Layer {
    /// As [`Layer::linears`], to change them.
    pub fn linears_mut(&mut self) -> Vec<&mut Linear> {
        let mut linears = Vec::new();
        let (mut more, mut output) = (None, None);
        if let Some(neck) = self.bottleneck.as_deref_mut() {
            linears.push(&mut neck.input);
            linears.extend(neck.shared.iter_mut().map(|(linear, _)| linear));
            (more, output) = (Some(&mut neck.more), Some(&mut neck.output));
        }
        if let Some(a) = &mut self.attention {
            linears.extend([&mut a.query, &mut a.key, &mut a.value]);
            linears.extend(a.of_distances.iter_mut().flatten());
            linears.push(&mut a.output);
        }
        for f in more.into_iter().flatten() {
            linears.extend([&mut f.up, &mut f.down]);
        }
        if let Some(f) = &mut self.ffn {
            linears.push(&mut f.up);
            linears.extend(&mut f.gate);
            linears.push(&mut f.down);
        }
        linears.extend(output);
        linears
    }
}

impl Model {
    /// Every tensor the model is stored as, in no particular order.
    pub fn tensors(&self) -> Vec<Tensor> {
        let e = &self.embeddings;
        let mut tensors = e.word.tensors();
        tensors.extend(e.position.clone());
        tensors.extend(e.token_type.clone());
        tensors.extend(e.task_type.clone());
        tensors.extend(e.norm.tensors());
        tensors.extend(e.project.iter().flat_map(Linear::tensors));
        tensors.extend(self.layers.iter().flat_map(Layer::tensors));
        tensors.extend(self.relative_bias.clone());
        if let Some((table, norm)) = &self.distances {
            tensors.push(table.clone());
            tensors.extend(norm.iter().flat_map(Norm::tensors));
        }
        tensors.extend(self.final_norm.iter().flat_map(Norm::tensors));
        tensors.extend(self.head.tensors());
        tensors.extend(self.unused.iter().cloned());
        tensors
    }

    /// The layers that a text goes through, one after the other, by their place in `layers`.
    pub fn stack(&self) -> Vec<usize> {
        match &self.config.shared {
            Some(stack) => stack.clone(),
            None => (0..self.layers.len()).collect(),
        }
    }

    /// Every linear layer of the encoder and its head, in the order of computation.
    pub fn linears(&self) -> Vec<&Linear> {
        let mut linears: Vec<&Linear> = self.embeddings.project.iter().collect();
        for layer in &self.layers {
            linears.extend(layer.linears().into_iter().map(|(_, linear)| linear));
        }
        linears.extend(self.head.linears());
        linears
    }

    /// Forgets a copy of the word table under the name of the decoder that is tied to it: it would contradict a table
    /// that was changed.
    pub fn drop_tied_copy(&mut self) {
        if self.config.tied {
            let copy = format!("{}.weight", self.family.masked_lm.decoder);
            self.unused.retain(|t| t.name != copy);
        }
    }

    /// Gives the memory of mapped weights back; they are read again when they are needed.
    pub fn release(&self) {
        self.tensors().iter().for_each(Tensor::release);
    }

    /// Checks that the parts fit each other.
    ///
    /// # Errors
    /// Names the first tensor whose shape does not fit.
    pub fn validate(&self) -> Result<()> {
        let hidden = self.config.hidden;
        let fits = |linear: &Linear, rows: usize, cols: usize| {
            let found = vec![linear.weight.rows(), linear.weight.cols()];
            let name = format!("{}.weight", linear.weight.name());
            if found != [rows, cols] {
                let key = "the other tensors of its layer, as listed".into();
                return Err(Error::Shape { name, found, expected: vec![rows, cols], key });
            }
            match &linear.bias {
                Some(b) if b.shape != [rows] => Err(Error::Shape {
                    name: b.name.clone(),
                    found: b.shape.clone(),
                    expected: vec![rows],
                    key: "the other tensors of its layer, as listed".into(),
                }),
                _ => Ok(()),
            }
        };
        if let Some(tokens) = &self.tokens {
            let cuts = tokens.layers.iter().zip(&self.layers).enumerate();
            let blind = |(l, (cut, layer)): (usize, (&Option<_>, &Layer))| {
                let heads = layer.attention.as_ref().is_some_and(|a| !a.heads.is_empty());
                (cut.is_some() && !heads).then_some(l)
            };
            if let Some(layer) = cuts.filter_map(blind).next() {
                return Err(Error::Mismatch {
                    found: format!("layer {layer} drops tokens and has no attention head"),
                    expected: "tokens are ranked by the attention of their layer".into(),
                    advice: "run `tokens` after the passes that remove heads",
                });
            }
        }
        let block = |f: &FeedForward, stream: usize| {
            fits(&f.up, f.units(), stream)?;
            f.gate.iter().try_for_each(|l| fits(l, f.units(), stream))?;
            fits(&f.down, stream, f.units())
        };
        for layer in &self.layers {
            let narrow = self.config.features.bottleneck.map(|n| n.width);
            let stream = narrow.unwrap_or(hidden);
            let mut wide_value = false;
            if let Some(neck) = &layer.bottleneck {
                wide_value = neck.shared.is_some();
                fits(&neck.input, stream, hidden)?;
                neck.shared.iter().try_for_each(|(l, _)| fits(l, stream, hidden))?;
                neck.more.iter().try_for_each(|f| block(f, stream))?;
                fits(&neck.output, hidden, stream)?;
            }
            if let Some(a) = &layer.attention {
                let width = a.heads.len() * a.head_dim;
                fits(&a.query, width, stream)?;
                fits(&a.key, width, stream)?;
                fits(&a.value, width, if wide_value { hidden } else { stream })?;
                a.of_distances.iter().flatten().try_for_each(|l| fits(l, width, hidden))?;
                fits(&a.output, stream, width)?;
            }
            layer.ffn.iter().try_for_each(|f| block(f, stream))?;
        }
        Ok(())
    }
}
