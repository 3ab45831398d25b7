//! What turns token states into an answer.

use super::family::Activation;
use super::linear::{Linear, Norm};
use crate::checkpoint::Tensor;

/// One head, by task.
#[derive(Debug, Clone)]
pub enum Head {
    /// `out(activation(dense(x)))` of the first token's state `x`, with a norm
    /// `out(activation(norm(dense(x)) + x))`, `[classes]` per text.
    SequenceClassification {
        dense: Linear,
        /// Of BiPFT's pooler.
        norm: Option<Norm>,
        activation: Activation,
        /// ModernBERT: behind the activation.
        last: Option<Box<Norm>>,
        /// Whether all tokens' mean stands in the place of the first's state (ModernBERT).
        mean: bool,
        out: Linear,
    },
    /// `[classes]` per token.
    TokenClassification { out: Linear },
    /// Start and end score per token.
    QuestionAnswering { out: Linear },
    /// `[vocab]` per token: `word table · norm(activation(dense(x))) + bias`.
    MaskedLm {
        dense: Linear,
        activation: Activation,
        norm: Norm,
        /// `[vocab, embedding]`; `None` when it is the word table.
        decoder: Option<Tensor>,
        /// `[vocab]`
        bias: Tensor,
    },
    /// Pooled token states, `[hidden]` per text.
    Embedding { pool: PoolMode, normalize: bool },
    /// Token states, and BERT's pooler output where there is one; `norm` as in a classifier.
    Bare { pooler: Option<Linear>, norm: Option<Norm> },
}

/// How a sentence embedding is made of token states (`1_Pooling/config.json`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolMode {
    Cls,
    Mean,
    Max,
}

impl Head {
    pub fn tensors(&self) -> Vec<Tensor> {
        match self {
            Head::SequenceClassification { dense, norm, last, out, .. } => {
                let norms = norm.iter().chain(last.as_deref()).flat_map(Norm::tensors).collect();
                [dense.tensors(), norms, out.tensors()].concat()
            }
            Head::TokenClassification { out } | Head::QuestionAnswering { out } => out.tensors(),
            Head::MaskedLm { dense, norm, decoder, bias, .. } => {
                let mut tensors = [dense.tensors(), norm.tensors()].concat();
                tensors.extend(decoder.clone());
                tensors.push(bias.clone());
                tensors
            }
            Head::Embedding { .. } => Vec::new(),
            Head::Bare { pooler, norm } => {
                let norm = norm.iter().flat_map(Norm::tensors);
                pooler.iter().flat_map(Linear::tensors).chain(norm).collect()
            }
        }
    }

    /// The linear layers of the head.
    pub fn linears(&self) -> Vec<&Linear> {
        match self {
            Head::SequenceClassification { dense, out, .. } => vec![dense, out],
            Head::TokenClassification { out } | Head::QuestionAnswering { out } => vec![out],
            Head::MaskedLm { dense, .. } => vec![dense],
            Head::Embedding { .. } => Vec::new(),
            Head::Bare { pooler, .. } => pooler.iter().collect(),
        }
    }

    /// The linear layers of the head, which passes may pack on demand.
    pub fn linears_mut(&mut self) -> Vec<&mut Linear> {
        match self {
            Head::SequenceClassification { dense, out, .. } => vec![dense, out],
            Head::TokenClassification { out } | Head::QuestionAnswering { out } => vec![out],
            Head::MaskedLm { dense, .. } => vec![dense],
            Head::Embedding { .. } => Vec::new(),
            Head::Bare { pooler, .. } => pooler.iter_mut().collect(),
        }
    }

    /// Logical parameters; a tied decoder counts with the word table.
    pub fn params(&self) -> usize {
        match self {
            Head::SequenceClassification { dense, norm, last, out, .. } => {
                let norms = norm.iter().chain(last.as_deref()).map(Norm::params).sum::<usize>();
                dense.params() + norms + out.params()
            }
            Head::TokenClassification { out } | Head::QuestionAnswering { out } => out.params(),
            Head::MaskedLm { dense, norm, decoder, bias, .. } => {
                let decoder = decoder.as_ref().map_or(0, Tensor::numel);
                dense.params() + norm.params() + decoder + bias.numel()
            }
            Head::Embedding { .. } => 0,
            Head::Bare { pooler, norm } => {
                let norm = norm.as_ref().map_or(0, Norm::params);
                pooler.as_ref().map_or(0, Linear::params) + norm
            }
        }
    }
}
