//! Packing with text: layer by layer, with the inputs that the layers packed so far give the next one.

use super::mixed::Planned;
use super::residual::Metric;
use super::weights::{Place, TokenWeights};
use super::{Binarize, all};
use crate::Result;
use crate::data::Calibration;
use crate::model::{Linear, Model};
use crate::pass::Context;
use crate::report::Change;
use crate::runtime::kernels::{Mat, MatMut, product};
use crate::runtime::tokens::{Importance, rows};
use crate::runtime::{Batch, Dense, Encoder, RunAttention, RunFeedForward};
use crate::train::moments::Moments;
use crate::train::{sweep, update};
use std::borrow::Cow;

/// What a layer sees of a batch.
struct Seen {
    /// `[tokens, inputs]`: what it multiplies.
    x: Vec<f32>,
    /// `[tokens, outputs]`: what its outputs lack of what the original makes of its own inputs; nothing without an aim.
    lacking: Vec<f32>,
    /// What is needed behind it.
    kept: Vec<f32>,
}

impl Binarize {
    /// Every layer: of the tokens that enter it, and behind it are left.
    ///
    /// - `before`: the model as it was
    /// - `plan`: what the matrices become, in their order
    pub(super) fn with_text(
        &self,
        before: &Model,
        model: &mut Model,
        text: &Calibration,
        plan: &[Planned],
        cx: &Context,
        changes: &mut Vec<Change>,
    ) -> Result<()> {
        let (activation, eps) = (model.config.activation, model.config.eps);
        let hidden = model.config.hidden;
        let mut batches: Vec<Cow<Batch>> = text.batches.iter().map(Cow::Borrowed).collect();
        let frozen = Model { layers: Vec::new(), ..model.clone() };
        let shell = Encoder::shell(&frozen)?;
        let mut states = all(batches.len(), |i| shell.embed(&batches[i]))?;
        // What the layers get in the model as it was.
        let mut originals = match self.aim > 0.0 {
            true => {
                let frozen = Model { layers: Vec::new(), ..before.clone() };
                let shell = Encoder::shell(&frozen)?;
                all(batches.len(), |i| shell.embed(&batches[i]))?
            }
            false => Vec::new(),
        };
        let mut weights = TokenWeights::of(before, &text.batches, cx.seed)?;
        let mut plan = plan.iter().copied();
        let mut next = || plan.next().expect("a form for every matrix");
        for (l, layer) in model.layers.iter_mut().enumerate() {
            let schedule = model.tokens.as_ref().filter(|s| s.layers[l].is_some());
            let mut ranks: Vec<Importance> = match schedule {
                Some(s) => batches.iter().map(|b| Importance::new(s.score, b.tokens())).collect(),
                None => Vec::new(),
            };
            if let Some(attention) = &mut layer.attention {
                let before = attention.clone();
                let original = RunAttention::new(&before, eps)?;
                let width = original.heads.len() * original.head_dim;
                let (metric, wanted) = self.metric([hidden, 3 * width], states.len(), |i| {
                    let x = weights.apply(i, l, Place::QueryKeyValue, &states[i]);
                    let Some(wanted) = originals.get(i) else {
                        return Ok(Seen { x, lacking: Vec::new(), kept: Vec::new() });
                    };
                    let mut seen = |_: usize, _: usize, _: &mut [f32]| {};
                    let state =
                        shell.attention_context(&original, wanted, &batches[i], None, &mut seen);
                    let now = original.query_key_value(&states[i], batches[i].tokens());
                    let lacking = difference(&state.qkv, &now);
                    let lacking = weights.apply(i, l, Place::QueryKeyValue, &lacking);
                    Ok(Seen { x, lacking, kept: state.context })
                })?;
                let linears = [&mut attention.query, &mut attention.key, &mut attention.value];
                for (i, linear) in linears.into_iter().enumerate() {
                    changes.push(self.pack_towards(linear, next(), &metric, i * width)?);
                }
                let contexts = {
                    let run = RunAttention::new(attention, eps)?;
                    let context = |i: usize| {
                        let batch = &batches[i];
                        let mut ranks = ranks.get(i).cloned();
                        let mut seen = |_: usize, text: usize, probs: &mut [f32]| {
                            if let Some(ranks) = &mut ranks {
                                let (from, to) = (batch.starts[text], batch.starts[text + 1]);
                                ranks.add(from, to - from, run.heads.len(), probs);
                            }
                        };
                        let state =
                            shell.attention_context(&run, &states[i], batch, None, &mut seen);
                        Ok((state.context, ranks))
                    };
                    let (contexts, found): (Vec<_>, Vec<_>) =
                        all(batches.len(), context)?.into_iter().unzip();
                    ranks = found.into_iter().flatten().collect();
                    contexts
                };
                let (metric, _) = self.metric([width, hidden], contexts.len(), |i| {
                    let lacking = match originals.get(i) {
                        Some(x) => {
                            let inputs = [&wanted[i], &contexts[i]];
                            lacking(&original.output, inputs.map(|x| &x[..]), [x, &states[i]])
                        }
                        None => Vec::new(),
                    };
                    let weigh = |x: &[f32]| weights.apply(i, l, Place::AttentionOutput, x);
                    Ok(Seen { x: weigh(&contexts[i]), lacking: weigh(&lacking), kept: Vec::new() })
                })?;
                changes.push(self.pack_towards(&mut attention.output, next(), &metric, 0)?);
                let run = RunAttention::new(attention, eps)?;
                update(&mut states, |i, x| Ok(run.finish(&contexts[i], x)))?;
                update(&mut originals, |i, x| Ok(original.finish(&wanted[i], x)))?;
            }
            if let Some(ffn) = &mut layer.ffn {
                let before = ffn.clone();
                let original = RunFeedForward::new(&before, activation, eps)?;
                let units = ffn.units();
                let (metric, _) = self.metric([hidden, units], states.len(), |i| {
                    let lacking = match originals.get(i) {
                        Some(x) => lacking(&original.up, [x, &states[i]], [&[], &[]]),
                        None => Vec::new(),
                    };
                    let weigh = |x: &[f32]| weights.apply(i, l, Place::Up, x);
                    Ok(Seen { x: weigh(&states[i]), lacking: weigh(&lacking), kept: Vec::new() })
                })?;
                changes.push(self.pack_towards(&mut ffn.up, next(), &metric, 0)?);
                let metric = {
                    let run = RunFeedForward::new(ffn, activation, eps)?;
                    self.metric([units, hidden], states.len(), |i| {
                        let now = run.units(&states[i]);
                        let lacking = match originals.get(i) {
                            Some(x) => {
                                let inputs = [&original.units(x)[..], &now];
                                lacking(&original.down, inputs, [x, &states[i]])
                            }
                            None => Vec::new(),
                        };
                        let weigh = |x: &[f32]| weights.apply(i, l, Place::Down, x);
                        Ok(Seen { x: weigh(&now), lacking: weigh(&lacking), kept: Vec::new() })
                    })?
                    .0
                };
                changes.push(self.pack_towards(&mut ffn.down, next(), &metric, 0)?);
                let run = RunFeedForward::new(ffn, activation, eps)?;
                update(&mut states, |_, x| Ok(run.finish(&run.units(x), x)))?;
                update(&mut originals, |_, x| Ok(original.finish(&original.units(x), x)))?;
            }
            if let Some(schedule) = schedule {
                // As the model will: the layers behind never see what goes here.
                let kept: Vec<Vec<usize>> =
                    ranks.iter().zip(&batches).map(|(r, b)| r.kept(schedule, l, b)).collect();
                update(&mut states, |i, x| Ok(rows(x, hidden, &kept[i])))?;
                update(&mut originals, |i, x| Ok(rows(x, hidden, &kept[i])))?;
                for (i, (batch, kept)) in batches.iter_mut().zip(&kept).enumerate() {
                    weights.keep(i, l, kept);
                    *batch = Cow::Owned(batch.select(kept));
                }
            }
            cx.finished(layer)?;
            cx.progress.step()?;
        }
        Ok(())
    }

    /// Second moments of what a layer multiplies, `seen` by batch, and what is needed behind it.
    fn metric(
        &self,
        [inputs, outputs]: [usize; 2],
        batches: usize,
        seen: impl Fn(usize) -> Result<Seen> + Sync,
    ) -> Result<(Metric, Vec<Vec<f32>>)> {
        let mut moments = Moments::new(inputs, if self.aim > 0.0 { outputs } else { 0 });
        let mut kept = Vec::with_capacity(batches);
        sweep(batches, seen, |_, seen| {
            moments.add(&seen.x, &seen.lacking);
            kept.push(seen.kept);
            Ok(())
        })?;
        Ok((Metric::new(moments, self.damp)?, kept))
    }

    /// Packs one layer whose outputs are those of `metric` from `first` on.
    fn pack_towards(
        &self,
        linear: &mut Linear,
        planned: Planned,
        metric: &Metric,
        first: usize,
    ) -> Result<Change> {
        let (rows, cols) = (linear.weight.rows(), linear.weight.cols());
        let aim: Vec<f32> = match metric.aim.get(first * cols..(first + rows) * cols) {
            Some(aim) => aim.iter().map(|a| self.aim as f32 * a).collect(),
            None => Vec::new(),
        };
        self.pack(linear, planned, Some((metric, &aim)))
    }
}

fn difference(a: &[f32], b: &[f32]) -> Vec<f32> {
    a.iter().zip(b).map(|(a, b)| a - b).collect()
}

/// What the output lacks when a layer gets `x[1]` in the place of `x[0]`, and what is added to it is `residual[1]` in the
/// place of `residual[0]`.
fn lacking(dense: &Dense, x: [&[f32]; 2], residual: [&[f32]; 2]) -> Vec<f32> {
    let tokens = x[0].len() / dense.input.max(1);
    let mut out = vec![0.0; tokens * dense.out];
    let x = difference(x[0], x[1]);
    let (out_of_x, x) =
        (MatMut::new(&mut out, tokens, dense.out), Mat::new(&x, tokens, dense.input));
    product(out_of_x, x, dense.matrix().t(), 1.0);
    let [was, is] = residual;
    out.iter_mut().zip(was.iter().zip(is)).for_each(|(o, (was, is))| *o += was - is);
    out
}
