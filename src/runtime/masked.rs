//! Blocks under masks of layers and hidden dimensions (CoFi notes, §1.2 and §1.3).

use super::encoder::{Dense, RunNorm};
use super::kernels;
use crate::model::slice::Masks;

/// A mask of hidden dimensions that is not all ones.
#[derive(Debug)]
pub struct Channels<'a> {
    /// `[hidden]`
    pub mask: &'a [f32],
    /// Dimensions whose mask is not exactly 0.
    pub open: Vec<usize>,
}

impl<'a> Channels<'a> {
    /// `None` where the mask changes nothing.
    pub fn of(masks: Option<&'a Masks>) -> Option<Channels<'a>> {
        let mask = masks?.hidden.as_slice();
        if mask.iter().all(|&h| h == 1.0) {
            return None;
        }
        Some(Channels { mask, open: (0..mask.len()).filter(|&i| mask[i] != 0.0).collect() })
    }

    /// `h ⊙ x` for the rows of `x`, `[rows, hidden]`.
    pub fn multiply(&self, x: &mut [f32]) {
        for row in x.chunks_exact_mut(self.mask.len()) {
            row.iter_mut().zip(self.mask).for_each(|(x, h)| *x *= h);
        }
    }

    /// The open dimensions of `x`, `[rows, hidden]`, side by side.
    pub fn gather(&self, x: &[f32]) -> Vec<f32> {
        let rows = x.chunks_exact(self.mask.len());
        rows.flat_map(|row| self.open.iter().map(|&i| row[i])).collect()
    }

    /// The way back from [`Channels::gather`], zeros elsewhere.
    pub fn scatter(&self, compact: &[f32], x: &mut [f32]) {
        x.fill(0.0);
        let rows = x.chunks_exact_mut(self.mask.len());
        for (row, from) in rows.zip(compact.chunks_exact(self.open.len().max(1))) {
            self.open.iter().zip(from).for_each(|(&i, v)| row[i] = *v);
        }
    }

    /// `h ⊙ values` of the open dimensions, `[hidden]` to `[open]`.
    pub fn folded(&self, values: &[f32]) -> Vec<f32> {
        self.open.iter().map(|&i| values[i] * self.mask[i]).collect()
    }

    /// `h ⊙ LN_h(x)`: mean and variance over the open dimensions, zero in the others. A LayerNorm over all
    /// of them would count the closed ones in.
    pub fn norm(&self, norm: &RunNorm, x: &mut [f32]) {
        let mut compact = self.gather(x);
        if !self.open.is_empty() {
            let (weight, bias) = (self.folded(&norm.weight), self.folded(&norm.bias));
            kernels::layer_norm(&mut compact, &weight, &bias, norm.eps);
        }
        self.scatter(&compact, x);
    }
}

/// `norm(x)`, under `channels` where there are any.
pub fn apply_norm(norm: &RunNorm, channels: Option<&Channels>, x: &mut [f32]) {
    match channels {
        Some(channels) => channels.norm(norm, x),
        None => norm.apply(x),
    }
}

/// `h ⊙ block · (inner·Wᵀ + b)`: what a block adds to the residual stream, `[tokens, hidden]`.
pub fn block_output(
    linear: &Dense,
    inner: &[f32],
    tokens: usize,
    block: f32,
    channels: Option<&Channels>,
) -> Vec<f32> {
    let mut y = linear.forward_rows(inner, tokens);
    scale(&mut y, block, channels);
    y
}

/// `h ⊙ block · x`
pub fn scale(x: &mut [f32], block: f32, channels: Option<&Channels>) {
    if block != 1.0 {
        x.iter_mut().for_each(|x| *x *= block);
    }
    if let Some(channels) = channels {
        channels.multiply(x);
    }
}
