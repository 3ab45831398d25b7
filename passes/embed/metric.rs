//! How errors of a row move what the model says: the metric that codes are chosen in.

use super::rotation::eigen;
use crate::data::Calibration;
use crate::model::Model;
use crate::runtime::Encoder;
use crate::runtime::kernels::{Mat, MatMut, product};
use crate::train::fisher::embedding_gradients;
use crate::train::sweep;
use crate::{Error, Result};

/// Share of the metric that is the plain distance: what this text's answers do not depend on, others' may.
const PLAIN: f64 = 0.1;

/// `S = (1 − p)·E[g gᵀ] / m + p·I`, with g the gradient of a random projection of what the head gives out, with respect to
/// the sum of the embeddings of a token, and m the mean of the diagonal (Fisher information, as weights are ranked by in
/// pruning; subspace notes, §3.4, "activation-aware").
///
/// `[cols, cols]`
///
/// # Errors
/// If a text does not fit the model, or squares of gradients are beyond f32.
pub fn metric(model: &Model, text: &Calibration, seed: u64) -> Result<Vec<f64>> {
    let encoder = Encoder { tokens: None, ..Encoder::new(model)? };
    let cols = model.embeddings.word.cols();
    let mut sum = vec![0.0f64; cols * cols];
    let moments = |i: usize| {
        let g = embedding_gradients(&encoder, &text.batches[i], seed)?;
        let g = Mat::new(&g, g.len() / cols, cols);
        let mut part = vec![0.0f32; cols * cols];
        product(MatMut::new(&mut part, cols, cols), g.t(), g, 1.0);
        Ok(part)
    };
    sweep(text.batches.len(), moments, |_, part| {
        sum.iter_mut().zip(part).for_each(|(s, p)| *s += f64::from(p));
        Ok(())
    })?;
    if !sum.iter().all(|s| s.is_finite()) {
        return Err(Error::Mismatch {
            found: "answers to the text whose gradients are beyond f32".into(),
            expected: "layers that compute moderate numbers of it".into(),
            advice: "check the checkpoint; `distance=plain` goes by the table alone",
        });
    }
    let mean = (0..cols).map(|i| sum[i * cols + i]).sum::<f64>() / cols.max(1) as f64;
    let scale = if mean > 0.0 { (1.0 - PLAIN) / mean } else { 0.0 };
    sum.iter_mut().for_each(|s| *s *= scale);
    (0..cols).for_each(|i| sum[i * cols + i] += PLAIN);
    Ok(sum)
}

/// Roots of the blocks along the diagonal of a metric, and their inverses: `[cols / block, block, block]` each, symmetric.
pub fn roots(metric: &[f64], cols: usize, block: usize) -> [Vec<f32>; 2] {
    let mut both = [Vec::with_capacity(cols * block), Vec::with_capacity(cols * block)];
    for first in (0..cols).step_by(block) {
        let lines = (first..first + block).flat_map(|r| &metric[r * cols + first..][..block]);
        let (values, vectors) = eigen(&lines.copied().collect::<Vec<f64>>(), block);
        for (roots, power) in both.iter_mut().zip([0.5, -0.5]) {
            let scaled = vectors.chunks_exact(block).zip(&values);
            let scaled: Vec<f32> = scaled
                .flat_map(|(v, value)| {
                    let by = value.max(f64::MIN_POSITIVE).powf(power) as f32;
                    v.iter().map(move |x| by * x)
                })
                .collect();
            let at = roots.len();
            roots.resize(at + block * block, 0.0);
            let out = MatMut::new(&mut roots[at..], block, block);
            let vectors = Mat::new(&vectors, block, block);
            product(out, Mat::new(&scaled, block, block).t(), vectors, 1.0);
        }
    }
    both
}
