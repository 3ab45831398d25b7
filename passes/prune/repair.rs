//! Refitting what is left.

use super::Kept;
use super::scores::{Input, unit_moments};
use crate::Result;
use crate::checkpoint::Tensor;
use crate::data::Calibration;
use crate::model::{Layer, Linear, Model, Weight};
use crate::pass::Context;
use crate::runtime::{Batch, Encoder, RunAttention, RunFeedForward};
use crate::train::moments::Moments;
use crate::train::sweep;

/// Ridge of the refit, relative to the mean variance of the inputs: 0.01 to 0.3 differ by less than the
/// noise of 872 sentences on a 6 x 384 classifier; the larger ones are safer with little text.
const DAMP: f64 = 0.1;

/// Goes up the layers with two sets of hidden states, those of the model before (`teacher`) and those of
/// the cut one, and refits the output matrix and bias of every block so that the sum before its LayerNorm
/// comes close to the teacher's: ridge regression of what is missing on what is there. (Kwon et al. 2022,
/// §4.4, refit one scale a head and a unit; a whole matrix has more to give, and the ridge keeps it from
/// fitting noise.)
pub fn with_text(
    teacher: &Model,
    model: &mut Model,
    text: &Calibration,
    cx: &Context,
) -> Result<()> {
    let (activation, eps) = (model.config.activation, model.config.eps);
    let shell = Encoder::shell(teacher)?;
    let batches = &text.batches;
    let mut states: Vec<Pair> = Vec::with_capacity(batches.len());
    sweep(
        batches.len(),
        |i| shell.embed(&batches[i]),
        |_, x| {
            states.push(Pair { teacher: x.clone(), student: x });
            Ok(())
        },
    )?;
    cx.progress.start("prune: repairing", model.layers.len());
    for (before, after) in teacher.layers.iter().zip(&mut model.layers) {
        repair_attention(&shell, before, after, batches, &mut states, eps)?;
        if let (Some(old), Some(new)) = (&before.ffn, &mut after.ffn) {
            let old = RunFeedForward::new(old, activation, eps)?;
            let mut moments = Moments::new(new.units(), model.config.hidden);
            {
                let cut = RunFeedForward::new(new, activation, eps)?;
                let sums = |i: usize| {
                    let Pair { teacher, student } = &states[i];
                    let target = old.sum(&old.units(teacher), teacher);
                    let units = cut.units(student);
                    let missing = difference(&target, &cut.sum(&units, student));
                    Ok((units, missing))
                };
                sweep(batches.len(), sums, |_, (x, r)| {
                    moments.add(&x, &r);
                    Ok(())
                })?;
            }
            refit(&mut new.down, &moments)?;
            let new = RunFeedForward::new(new, activation, eps)?;
            let next = |i: usize| {
                let Pair { teacher, student } = &states[i];
                Ok(Pair {
                    teacher: old.finish(&old.units(teacher), teacher),
                    student: new.finish(&new.units(student), student),
                })
            };
            states = collect(batches.len(), next)?;
        }
        cx.progress.step()?;
    }
    Ok(())
}

/// Hidden states of one batch, `[tokens, hidden]`.
struct Pair {
    teacher: Vec<f32>,
    student: Vec<f32>,
}

fn repair_attention(
    shell: &Encoder,
    before: &Layer,
    after: &mut Layer,
    batches: &[Batch],
    states: &mut Vec<Pair>,
    eps: f32,
) -> Result<()> {
    let (Some(old), Some(new)) = (&before.attention, &mut after.attention) else { return Ok(()) };
    let old = RunAttention::new(old, eps)?;
    let context = |a: &RunAttention, x: &[f32], batch: &Batch| {
        shell.attention_context(a, x, batch, None, &mut |_, _, _| {}).context
    };
    let mut moments = Moments::new(new.heads.len() * new.head_dim, new.output.weight.rows());
    {
        let cut = RunAttention::new(new, eps)?;
        let sums = |i: usize| {
            let Pair { teacher, student } = &states[i];
            let target = old.sum(&context(&old, teacher, &batches[i]), teacher);
            let context = context(&cut, student, &batches[i]);
            let missing = difference(&target, &cut.sum(&context, student));
            Ok((context, missing))
        };
        sweep(batches.len(), sums, |_, (x, r)| {
            moments.add(&x, &r);
            Ok(())
        })?;
    }
    refit(&mut new.output, &moments)?;
    let new = RunAttention::new(new, eps)?;
    let next = |i: usize| {
        let Pair { teacher, student } = &states[i];
        Ok(Pair {
            teacher: old.finish(&context(&old, teacher, &batches[i]), teacher),
            student: new.finish(&context(&new, student, &batches[i]), student),
        })
    };
    *states = collect(batches.len(), next)?;
    Ok(())
}

fn collect(n: usize, compute: impl Fn(usize) -> Result<Pair> + Sync) -> Result<Vec<Pair>> {
    let mut all = Vec::with_capacity(n);
    sweep(n, compute, |_, pair| {
        all.push(pair);
        Ok(())
    })?;
    Ok(all)
}

fn difference(a: &[f32], b: &[f32]) -> Vec<f32> {
    a.iter().zip(b).map(|(a, b)| a - b).collect()
}

/// Adds the regression of the residual to weight and bias. A residual of exactly zero changes no byte.
fn refit(linear: &mut Linear, moments: &Moments) -> Result<()> {
    if moments.xr.iter().all(|&v| v == 0.0) && moments.r.iter().all(|&v| v == 0.0) {
        return Ok(());
    }
    let Some((weight, bias)) = moments.least_squares(DAMP) else { return Ok(()) };
    let tensor = linear.weight.dense()?;
    linear.weight = Weight::Dense(plus(tensor, &weight)?);
    if let Some(old) = &linear.bias {
        linear.bias = Some(plus(old, &bias)?);
    }
    Ok(())
}

fn plus(tensor: &Tensor, change: &[f32]) -> Result<Tensor> {
    let sum: Vec<f32> = tensor.to_f32()?.iter().zip(change).map(|(a, b)| a + b).collect();
    Ok(Tensor::from_f32(tensor.name.clone(), &tensor.shape, &sum, tensor.dtype))
}

/// Without text: the expected value of the units that are gone moves into the bias.
pub fn bias(teacher: &Model, model: &mut Model, kept: &[Kept]) -> Result<()> {
    let hidden = model.config.hidden;
    for ((before, after), kept) in teacher.layers.iter().zip(&mut model.layers).zip(kept) {
        let (Some(old), Some(new)) = (&before.ffn, &mut after.ffn) else { continue };
        let (Some(attention), Some(bias)) = (&before.attention, &new.down.bias) else { continue };
        if kept.units.len() == old.units() {
            continue;
        }
        let input = Input::of(&attention.norm, hidden)?;
        let moments = unit_moments(old, &input, model.config.activation)?;
        let gone: Vec<usize> =
            (0..old.units()).filter(|u| kept.units.binary_search(u).is_err()).collect();
        let down = old.down.weight.to_f32()?;
        let lost = |row: &[f32]| gone.iter().map(|&u| row[u] as f64 * moments[u].0).sum::<f64>();
        let change: Vec<f32> = down.chunks_exact(old.units()).map(|row| lost(row) as f32).collect();
        new.down.bias = Some(plus(bias, &change)?);
    }
    Ok(())
}
