//! Binary activations ready to run (BiPFT notes, §1 and §2).

#[cfg(test)]
mod tests;

use super::encoder::{Dense, RunAttention};
use super::kernels::{self, Mat, MatMut};
use crate::Result;
use crate::model::elastic::LEAST_SCALE;
use crate::model::{BinaryAttention, Elastic};
use std::borrow::Cow;

/// A weight: borrowed from the mapped file, or owned.
type Leaf<'m> = Cow<'m, [f32]>;

/// See [`Elastic`].
#[derive(Debug, Clone)]
pub struct RunElastic<'m> {
    /// `[in]`
    pub shift: Leaf<'m>,
    /// One number.
    pub scale: Leaf<'m>,
}

impl<'m> RunElastic<'m> {
    pub fn new(elastic: &'m Elastic) -> Result<RunElastic<'m>> {
        Ok(RunElastic { shift: elastic.shift.to_f32()?, scale: elastic.scale.to_f32()? })
    }

    /// The scale that counts.
    pub fn alpha(&self) -> f32 {
        self.scale[0].max(LEAST_SCALE)
    }

    /// `x + shift`, `[rows, in]`.
    pub fn shifted(&self, x: &[f32]) -> Vec<f32> {
        let mut shifted = x.to_vec();
        if self.shift.is_empty() {
            return shifted; // no inputs left
        }
        kernels::add_bias(&mut shifted, &self.shift);
        shifted
    }

    /// `scale · sgn(x + shift)`, `[rows, in]`.
    pub fn signs(&self, x: &[f32]) -> Vec<f32> {
        let mut signs = self.shifted(x);
        kernels::signs(&mut signs, self.alpha());
        signs
    }

    pub fn leaves_mut(&mut self) -> [&mut Leaf<'m>; 2] {
        [&mut self.shift, &mut self.scale]
    }
}

/// See [`BinaryAttention`].
#[derive(Debug, Clone)]
pub struct RunBinary<'m> {
    /// Of query, key, value and probabilities, one number each.
    pub scales: [Leaf<'m>; 4],
    /// `q_p`, `k_p`, `q_m`, `k_m` and `v_p`.
    pub estimators: Option<[Dense<'m>; 5]>,
}

impl<'m> RunBinary<'m> {
    pub fn new(binary: &'m BinaryAttention) -> Result<RunBinary<'m>> {
        let [query, key, value, probabilities] = binary.scales();
        let estimators = match &binary.estimators {
            Some(e) => Some([
                Dense::new(&e.q_p)?,
                Dense::new(&e.k_p)?,
                Dense::new(&e.q_m)?,
                Dense::new(&e.k_m)?,
                Dense::new(&e.v_p)?,
            ]),
            None => None,
        };
        let scales = [query.to_f32()?, key.to_f32()?, value.to_f32()?, probabilities.to_f32()?];
        Ok(RunBinary { scales, estimators })
    }

    /// The scale that counts, of query (0), key (1), value (2) or probabilities (3).
    pub fn alpha(&self, which: usize) -> f32 {
        self.scales[which][0].max(LEAST_SCALE)
    }

    pub fn leaves_mut(&mut self) -> impl Iterator<Item = &mut Leaf<'m>> {
        let estimators = self.estimators.iter_mut().flatten();
        self.scales.iter_mut().chain(estimators.flat_map(Dense::leaves_mut))
    }
}

/// What attention multiplies.
#[derive(Debug)]
pub struct Operands<'q> {
    /// `[tokens, 3 · heads · head_dim]`: query, key and value, or their signs; to values their estimate is added.
    pub qkv: Cow<'q, [f32]>,
    /// Scale of the probabilities' steps; `None`: they stay as they are.
    pub step: Option<f32>,
    pub estimates: Option<Estimates>,
}

/// What the estimators of the scores say of each token, `[tokens, rank]` each (BiPFT notes, §2.2).
#[derive(Debug)]
pub struct Estimates {
    pub rank: usize,
    pub q_p: Vec<f32>,
    pub q_m: Vec<f32>,
    pub k_p: Vec<f32>,
    /// `k_m + k_p`
    pub k: Vec<f32>,
}

impl RunAttention<'_> {
    /// Of `qkv`, `[tokens, 3 · heads · head_dim]`, which were made of `x`, `[tokens, hidden]`.
    pub fn operands<'q>(&self, qkv: &'q [f32], x: &[f32]) -> Operands<'q> {
        let Some(binary) = &self.binary else {
            return Operands { qkv: Cow::Borrowed(qkv), step: None, estimates: None };
        };
        let width = self.heads.len() * self.head_dim;
        let mut signs = qkv.to_vec();
        for row in signs.chunks_exact_mut((3 * width).max(1)) {
            for (which, part) in row.chunks_exact_mut(width).enumerate() {
                kernels::signs(part, binary.alpha(which));
            }
        }
        let estimates = binary.estimators.as_ref().map(|[q_p, k_p, q_m, k_m, v_p]| {
            let of_values = v_p.forward(x);
            for (row, e) in signs.chunks_exact_mut((3 * width).max(1)).zip(&of_values) {
                row[2 * width..].iter_mut().for_each(|v| *v += e);
            }
            let k_p = k_p.forward(x);
            let mut k = k_m.forward(x);
            k.iter_mut().zip(&k_p).for_each(|(k, p)| *k += p);
            Estimates { rank: q_p.out, q_p: q_p.forward(x), q_m: q_m.forward(x), k_p, k }
        });
        Operands { qkv: Cow::Owned(signs), step: Some(binary.alpha(3)), estimates }
    }
}

impl Operands<'_> {
    /// Makes steps of probabilities, where they are made.
    pub fn step(&self, probs: &mut [f32]) {
        if let Some(scale) = self.step {
            kernels::steps(probs, scale);
        }
    }
}

impl Estimates {
    /// `scale · (q_p·(k_m + k_p)ᵀ + q_m·k_pᵀ)` of the text at `from..from + len`: `[len, len]`.
    pub fn bracket(&self, from: usize, len: usize, scale: f32) -> Vec<f32> {
        let mut bracket = vec![0.0; len * len];
        for (q, k) in [(&self.q_p, &self.k), (&self.q_m, &self.k_p)] {
            let out = MatMut::new(&mut bracket, len, len);
            kernels::add_product(out, self.part(q, from, len), self.part(k, from, len).t(), scale);
        }
        bracket
    }

    /// Rows `from..from + len` of one of the four.
    pub fn part<'a>(&self, all: &'a [f32], from: usize, len: usize) -> Mat<'a> {
        Mat::new(&all[from * self.rank..(from + len) * self.rank], len, self.rank)
    }
}
