//! Binary activations (BiPFT, Xing et al. 2024): signs with a learned scale in the place of what is multiplied, and
//! low-rank estimators of what the signs of queries, keys and values lose.
//!
//! Tensors have the names that the paper's code gives them. Scales are stored with the shape that they were read with,
//! `[]` or `[1]`.

use super::binary::Binary;
use super::linear::Linear;
use super::new_head::Fresh;
use crate::Result;
use crate::checkpoint::{Dtype, Tensor};

/// The smallest scale that counts: below it, this one does (as in the paper's code).
pub const LEAST_SCALE: f32 = 1e-5;

/// What a layer makes of its inputs: `scale · sgn(x + shift)`, with `sgn(0) = +1` (BiPFT notes, §1.2).
#[derive(Debug, Clone)]
pub struct Elastic {
    /// `[in]`, `{name}.move.bias`
    pub shift: Tensor,
    /// One number, `{name}.input_clip_val`.
    pub scale: Tensor,
}

/// What attention makes of its operands, one number each (BiPFT notes, §1.3): query, key and value become
/// `scale · sgn(x)`, probabilities 0, or their scale from half of it on.
#[derive(Debug, Clone)]
pub struct BinaryAttention {
    /// `clip_query`
    pub query: Tensor,
    /// `clip_key`
    pub key: Tensor,
    /// `clip_value`
    pub value: Tensor,
    /// `clip_attn`
    pub probabilities: Tensor,
    pub estimators: Option<Estimators>,
}

/// Small dense layers that read the layer's input and estimate the residual polynomials of `Q·Kᵀ` and `A·V`
/// (BiPFT notes, §2.2): `q_p·(k_m + k_p)ᵀ + q_m·k_pᵀ` is added to the scores of every head, before they are divided
/// by `√head_dim`, and `v_p` to every dimension of every value.
#[derive(Debug, Clone)]
pub struct Estimators {
    /// `[rank, hidden]`: of what the signs of the queries lose.
    pub q_p: Linear,
    /// `[rank, hidden]`: of what the signs of the keys lose.
    pub k_p: Linear,
    /// `[rank, hidden]`: of the signs of the queries.
    pub q_m: Linear,
    /// `[rank, hidden]`: of the signs of the keys.
    pub k_m: Linear,
    /// `[1, hidden]`: of what the signs of the values lose.
    pub v_p: Linear,
}

impl Elastic {
    /// Without a shift, for the `width` inputs of the layer `name`.
    pub fn new(name: &str, width: usize, scale: f32) -> Elastic {
        let zeros = vec![0.0; width];
        Elastic {
            shift: Tensor::from_f32(format!("{name}.move.bias"), &[width], &zeros, Dtype::F32),
            scale: number(format!("{name}.input_clip_val"), scale),
        }
    }

    pub fn tensors(&self) -> Vec<Tensor> {
        vec![self.shift.clone(), self.scale.clone()]
    }
}

impl BinaryAttention {
    /// Names of the four scales, in the order of [`BinaryAttention::scales`].
    pub const SCALES: [&'static str; 4] = ["clip_query", "clip_key", "clip_value", "clip_attn"];

    /// Without estimators, with the scales of query, key, value and probabilities, under `prefix`.
    pub fn new(prefix: &str, scales: [f32; 4]) -> BinaryAttention {
        let scale = |i: usize| number(format!("{prefix}{}", Self::SCALES[i]), scales[i]);
        BinaryAttention {
            query: scale(0),
            key: scale(1),
            value: scale(2),
            probabilities: scale(3),
            estimators: None,
        }
    }

    /// The scales of query, key, value and probabilities.
    pub fn scales(&self) -> [&Tensor; 4] {
        [&self.query, &self.key, &self.value, &self.probabilities]
    }

    pub fn tensors(&self) -> Vec<Tensor> {
        let mut tensors: Vec<Tensor> = self.scales().into_iter().cloned().collect();
        let linears = self.estimators.iter().flat_map(Estimators::linears);
        tensors.extend(linears.flat_map(Linear::tensors));
        tensors
    }

    pub fn params(&self) -> usize {
        let linears = self.estimators.iter().flat_map(Estimators::linears);
        4 + linears.map(Linear::params).sum::<usize>()
    }

    /// Before the names of a layer's scales and estimators: those of its query without the last part.
    pub fn prefix(query: &str) -> &str {
        &query[..query.rfind('.').map_or(0, |dot| dot + 1)]
    }
}

impl Estimators {
    /// Names, in the order of [`Estimators::linears`].
    pub const NAMES: [&'static str; 5] = ["q_p", "k_p", "q_m", "k_m", "v_p"];

    /// Under `prefix`: drawn from N(0, 0.02²) by `seed`, biases 0.
    pub fn new(prefix: &str, hidden: usize, rank: usize, seed: u64) -> Estimators {
        let mut fresh = Fresh::new(seed);
        let mut linear = |name: &str, rows| fresh.linear(&format!("{prefix}{name}"), rows, hidden);
        Estimators {
            q_p: linear("q_p", rank),
            k_p: linear("k_p", rank),
            q_m: linear("q_m", rank),
            k_m: linear("k_m", rank),
            v_p: linear("v_p", 1),
        }
    }

    pub fn linears(&self) -> [&Linear; 5] {
        [&self.q_p, &self.k_p, &self.q_m, &self.k_m, &self.v_p]
    }

    pub fn linears_mut(&mut self) -> [&mut Linear; 5] {
        [&mut self.q_p, &mut self.k_p, &mut self.q_m, &mut self.k_m, &mut self.v_p]
    }
}

impl Linear {
    /// Signs of weights and inputs: one scale for all of the matrix, and one for the inputs.
    ///
    /// # Errors
    /// If the weight is packed.
    pub fn to_elastic(&self, scale: f32) -> Result<Linear> {
        let tensor = self.weight.dense()?;
        let shape = (self.weight.rows(), self.weight.cols());
        let name = self.weight.name().to_string();
        let elastic = Elastic::new(&name, shape.1, scale);
        let binary = Binary::centred(name, shape, &tensor.to_f32()?);
        Ok(Linear {
            weight: super::Weight::Binary(binary),
            bias: self.bias.clone(),
            activations: super::Activations::Exact,
            elastic: Some(Box::new(elastic)),
        })
    }
}

fn number(name: String, value: f32) -> Tensor {
    Tensor::from_f32(name, &[], &[value], Dtype::F32)
}
