//! BiPFT's form: signs of weights by signs of what they multiply, to be trained.

use super::{Binarize, all, residual};
use crate::data::Calibration;
use crate::model::{BinaryAttention, Estimators, Linear, Model, Weight};
use crate::pass::Context;
use crate::report::Change;
use crate::runtime::{Encoder, RunAttention, RunFeedForward};
use crate::train::update;
use crate::{Error, Result};

impl Binarize {
    /// Layer by layer, with the inputs that the layers before it give by then. Scales are twice the mean of what is
    /// scaled (BiPFT notes, §1.2), four times where it is probabilities; shifts are 0, estimators random and small.
    ///
    /// Of a model that drops tokens, those that will be gone count in these means.
    ///
    /// # Errors
    /// Without text, and on packed matrices.
    pub(super) fn to_signs(
        &self,
        model: &mut Model,
        cx: &Context,
        changes: &mut Vec<Change>,
    ) -> Result<()> {
        let Some(Calibration { batches, .. }) = cx.calibration else {
            return Err(no_text());
        };
        let (activation, eps) = (model.config.activation, model.config.eps);
        let hidden = model.config.hidden;
        let frozen = Model { layers: Vec::new(), ..model.clone() };
        let shell = Encoder::shell(&frozen)?;
        let mut states = all(batches.len(), |i| shell.embed(&batches[i]))?;
        for (l, layer) in model.layers.iter_mut().enumerate() {
            if let Some(attention) = &mut layer.attention {
                let scale = 2.0 * mean(&states);
                for linear in [&mut attention.query, &mut attention.key, &mut attention.value] {
                    changes.push(signs(linear, scale)?);
                }
                let prefix = BinaryAttention::prefix(attention.query.weight.name()).to_string();
                let scales = {
                    let run = RunAttention::new(attention, eps)?;
                    let qkv = all(batches.len(), |i| {
                        Ok(run.query_key_value(&states[i], batches[i].tokens()))
                    })?;
                    let width = run.heads.len() * run.head_dim;
                    let part = |which| 2.0 * mean_of_part(&qkv, width, which);
                    // Each row of probabilities sums to 1.
                    let (mut rows, mut probabilities) = (0, 0);
                    for span in batches.iter().flat_map(|b| b.starts.windows(2)) {
                        rows += span[1] - span[0];
                        probabilities += (span[1] - span[0]).pow(2);
                    }
                    [part(0), part(1), part(2), 4.0 * rows as f32 / probabilities.max(1) as f32]
                };
                let mut binary = BinaryAttention::new(&prefix, scales);
                if self.estimators > 0 {
                    let seed = cx.seed.wrapping_add(l as u64);
                    let rank = self.estimators.min(hidden);
                    binary.estimators = Some(Estimators::new(&prefix, hidden, rank, seed));
                }
                attention.binary = Some(binary);
                let contexts = {
                    let run = RunAttention::new(attention, eps)?;
                    let mut nobody = |_: usize, _: usize, _: &mut [f32]| {};
                    let mut context = Vec::with_capacity(batches.len());
                    for (x, batch) in states.iter().zip(batches) {
                        let state = shell.attention_context(&run, x, batch, None, &mut nobody);
                        context.push(state.context);
                    }
                    context
                };
                changes.push(signs(&mut attention.output, 2.0 * mean(&contexts))?);
                let run = RunAttention::new(attention, eps)?;
                update(&mut states, |i, x| Ok(run.finish(&contexts[i], x)))?;
            }
            if let Some(ffn) = &mut layer.ffn {
                changes.push(signs(&mut ffn.up, 2.0 * mean(&states))?);
                let units = {
                    let run = RunFeedForward::new(ffn, activation, eps)?;
                    all(batches.len(), |i| Ok(run.units(&states[i])))?
                };
                changes.push(signs(&mut ffn.down, 2.0 * mean(&units))?);
                let run = RunFeedForward::new(ffn, activation, eps)?;
                update(&mut states, |i, x| Ok(run.finish(&units[i], x)))?;
            }
            cx.progress.step()?;
        }
        Ok(())
    }
}

pub fn no_text() -> Error {
    Error::Mismatch {
        found: "binarize(activations=1) has no text".into(),
        expected: "scales of signs are means of what text makes".into(),
        advice: "drop `--calib none`",
    }
}

/// Makes signs of one layer, whose inputs get `scale`.
fn signs(linear: &mut Linear, scale: f32) -> Result<Change> {
    let signs = linear.to_elastic(scale)?;
    let before = std::mem::replace(linear, signs);
    let Weight::Binary(binary) = &linear.weight else { unreachable!("signs were just made") };
    let shape = (binary.rows, binary.cols);
    let add_row = |row: usize, out: &mut [f32]| binary.add_row(row, out);
    let error = residual::relative_error(&before.weight.to_f32()?, shape, add_row, None);
    before.weight.dense()?.release();
    Ok(Change::new(&before, linear, Some(error)))
}

/// Mean of `|x|` over all of `parts`; 0 for nothing.
fn mean(parts: &[Vec<f32>]) -> f32 {
    let sum: f64 = parts.iter().flatten().map(|x| f64::from(x.abs())).sum();
    let count: usize = parts.iter().map(Vec::len).sum();
    (sum / count.max(1) as f64) as f32
}

/// Of queries (0), keys (1) or values (2), in rows of `3 · width`.
fn mean_of_part(qkv: &[Vec<f32>], width: usize, which: usize) -> f32 {
    let columns = which * width..(which + 1) * width;
    let rows = qkv.iter().flat_map(|x| x.chunks_exact((3 * width).max(1)));
    let (mut sum, mut count) = (0.0, 0);
    for row in rows {
        sum += row[columns.clone()].iter().map(|x| f64::from(x.abs())).sum::<f64>();
        count += width;
    }
    (sum / count.max(1) as f64) as f32
}
