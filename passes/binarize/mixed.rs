//! A form for every matrix under a budget: what each costs the model's answer in each form is measured, and the sum is made
//! small.

use super::Binarize;
use super::double::{self, Rounds};
use super::residual::Metric;
use super::rungs::{Choice, Rung, choose};
use super::weights::{Place, TokenWeights};
use crate::checkpoint::file_bytes;
use crate::data::Calibration;
use crate::model::{Linear, Model, Task, Weight};
use crate::pass::Context;
use crate::runtime::{Batch, Encoder, Observer, Site};
use crate::train::moments::Moments;
use crate::train::sweep;
use crate::{Error, Result};
use std::borrow::Cow;
use std::collections::BTreeMap;

/// Planes that a matrix may get.
const PLANES: [usize; 4] = [1, 2, 3, 4];
/// Rates at which a matrix may get two factors; beyond them planes lose less.
const RATES: [f64; 6] = [0.75, 1.0, 1.25, 1.5, 1.75, 2.0];
/// At these two factors are fitted to see what they lose; at others it lies on the line through the logarithms.
const FITTED: [f64; 2] = [1.0, 1.75];
/// In this form a matrix is put into the model to see what the answer makes of its error.
const SEEN: Rung = Rung::Planes { planes: 2, rank: 0 };
/// How closely they are fitted: their order is seen soon.
const QUICK: Rounds = Rounds { outer: 10, refine: 1 };
/// Tokens on which answers are compared.
const TOKENS: usize = 1024;

/// What a matrix is to become, and the bytes that it may take.
#[derive(Debug, Clone, Copy)]
pub struct Planned {
    pub rung: Rung,
    pub bytes: usize,
}

impl Planned {
    /// In whatever it takes.
    pub fn free(rung: Rung) -> Planned {
        Planned { rung, bytes: usize::MAX }
    }
}

impl Binarize {
    /// Whether every matrix gets a form of its own.
    pub(super) fn is_mixed(&self) -> bool {
        self.bits > 0.0 || self.size.0 > 0
    }

    /// What the matrices of the layers get, in their order.
    ///
    /// # Errors
    /// [`Error::Option`] for a budget that cannot be met.
    pub(super) fn plan(&self, model: &Model, cx: &Context) -> Result<Vec<Planned>> {
        let matrices: Vec<&Linear> = linears(model);
        let rungs: Vec<Vec<Rung>> = matrices.iter().map(|l| rungs(&l.weight)).collect();
        let text = cx.calibration.filter(|_| model.family.feature.is_none());
        let choices: Vec<Vec<Choice>> = match text {
            Some(text) => self.costs(model, text, cx, &rungs)?,
            None => {
                // Of weights alone a loss in one matrix is as bad as in another.
                let choices = matrices.iter().zip(&rungs).map(|(l, rungs)| {
                    let w = l.weight.dense()?.to_f32()?;
                    self.choices(&w, &l.weight, rungs, None)
                });
                choices.collect::<Result<_>>()?
            }
        };
        let least = |choices: &Vec<Choice>| choices.iter().map(|c| c.bytes).min().unwrap_or(0);
        let least: usize = choices.iter().map(least).sum();
        let params: usize = matrices.iter().map(|l| l.weight.params()).sum();
        let pick = |budget| {
            let chosen = choose(&choices, budget)?;
            let each = rungs.iter().zip(&choices).zip(chosen);
            let planned = each.map(|((rungs, choices), at)| Planned {
                rung: rungs[at],
                bytes: choices[at].bytes,
            });
            Some(planned.collect::<Vec<Planned>>())
        };
        if self.bits > 0.0 {
            let budget = (self.bits * params as f64 / 8.0).floor() as usize;
            return pick(budget).ok_or_else(|| self.too_few_bits(least, params));
        }
        // Headers grow with the number of tensors: what a plan takes is known when it is made.
        let mut budget = self.size.0 as usize;
        let smallest = self.file_bytes(model, &pick(least).expect("the least bytes suffice"))?;
        loop {
            let plan = pick(budget.max(least)).expect("the least bytes suffice");
            let over = self.file_bytes(model, &plan)?.saturating_sub(self.size.0) as usize;
            if over == 0 {
                return Ok(plan);
            }
            if budget <= least {
                return Err(self.too_small(smallest));
            }
            budget = budget.saturating_sub(over).max(least);
        }
    }

    /// Of a model whose matrices take `least` bytes at least.
    pub(super) fn too_few_bits(&self, least: usize, params: usize) -> Error {
        let bits = (8e3 * least as f64 / params.max(1) as f64).ceil() / 1e3;
        let (found, expected) =
            (self.bits.to_string(), format!("at least {bits:.3} for this model"));
        Error::Option { pass: "binarize", option: "bits", found, expected }
    }

    /// Of a model whose file takes `smallest` bytes at least.
    pub(super) fn too_small(&self, smallest: u64) -> Error {
        Error::Option {
            pass: "binarize",
            option: "size",
            found: format!("{} bytes", self.size.0),
            expected: format!(
                "at least {smallest} bytes for this model; `embeddings` and `head` make more room"
            ),
        }
    }

    /// As [`Binarize::fit`], in no more bytes than planned: scales too small for f16 take twice theirs, and then a smaller
    /// form has to do.
    pub(super) fn fit_within(
        &self,
        weight: &Weight,
        w: &[f32],
        planned: Planned,
        metric: Option<&Metric>,
    ) -> Result<(Weight, f64)> {
        let (packed, error) = self.fit(weight, w, planned.rung, metric)?;
        if packed.bytes() <= planned.bytes {
            return Ok((packed, error));
        }
        let shape = (weight.rows(), weight.cols());
        let bytes = |rung| self.blank("", shape, rung).bytes();
        let mut smaller: Vec<Rung> = rungs(weight);
        smaller.retain(|&r| bytes(r) < bytes(planned.rung));
        smaller.sort_by_key(|&r| std::cmp::Reverse(bytes(r)));
        for rung in smaller {
            let (packed, error) = self.fit(weight, w, rung, metric)?;
            if packed.bytes() <= planned.bytes {
                return Ok((packed, error));
            }
        }
        Err(Error::Mismatch {
            found: format!("scales of `{}` are too small for f16", weight.name()),
            expected: format!("{} bytes of the budget are left for it", planned.bytes),
            advice: "give `bits` or `size` more room",
        })
    }

    /// Bytes of the weight file once the layers' matrices have these forms.
    fn file_bytes(&self, model: &Model, plan: &[Planned]) -> Result<u64> {
        let mut model = model.clone();
        let mut more = 0;
        for (linear, planned) in model.layers.iter_mut().flat_map(|l| l.linears_mut()).zip(plan) {
            let (name, shape) =
                (linear.weight.name(), (linear.weight.rows(), linear.weight.cols()));
            linear.weight = self.blank(name, shape, planned.rung);
            more += planned.bytes - linear.weight.bytes();
        }
        Ok(file_bytes(&model.compacted().tensors())? + more as u64)
    }

    /// By matrix and rung, as cost: the relative squared error that it alone would make in the model's answer, as far as errors of
    /// a matrix add up: measured for [`SEEN`], and in proportion for others.
    fn costs(
        &self,
        model: &Model,
        text: &Calibration,
        cx: &Context,
        rungs: &[Vec<Rung>],
    ) -> Result<Vec<Vec<Choice>>> {
        let mut encoder = Encoder { tokens: None, ..Encoder::new(model)? };
        let weights = TokenWeights::of(model, &text.batches, cx.seed)?;
        let moments = self.moments(&encoder, text, &weights)?;
        let mut watched = Vec::new();
        for batch in &text.batches {
            if watched.iter().map(|w: &Watched| w.batch.tokens()).sum::<usize>() < TOKENS {
                watched.push(Watched::new(&encoder, batch)?);
            }
        }
        let mut costs = Vec::new();
        let mut moments = moments;
        for (l, layer) in model.layers.iter().enumerate() {
            let mut metric: Option<(usize, Metric)> = None;
            for (i, (_, linear)) in layer.linears().into_iter().enumerate() {
                let place = place(layer.attention.is_some(), i);
                if metric.as_ref().is_none_or(|(at, _)| *at != place as usize) {
                    let moments = moments.remove(&(l, place as usize));
                    let found = moments.map(|m| Metric::new(m, self.damp)).transpose()?;
                    metric = found.map(|found| (place as usize, found));
                }
                let metric = metric.as_ref().map(|(_, metric)| metric);
                let w = linear.weight.dense()?.to_f32()?;
                let rungs = &rungs[costs.len()];
                let mut choices = self.choices(&w, &linear.weight, rungs, metric)?;
                let (seen, error) = self.fit(&linear.weight, &w, SEEN, metric)?;
                let seen = seen.to_f32()?.into_owned();
                let was = {
                    let run = &mut encoder.layers[l];
                    std::mem::replace(weight(run, layer.attention.is_some(), i), Cow::Owned(seen))
                };
                let moved = moved(&encoder, l, &watched)?;
                *weight(&mut encoder.layers[l], layer.attention.is_some(), i) = was;
                let scale = if error > 0.0 { moved / error } else { 0.0 };
                choices.iter_mut().for_each(|c| c.cost *= scale);
                costs.push(choices);
            }
            cx.progress.step()?;
        }
        Ok(costs)
    }

    /// Second moments of what every place multiplies, by layer and place; none of what nothing goes through.
    fn moments(
        &self,
        encoder: &Encoder,
        text: &Calibration,
        weights: &TokenWeights,
    ) -> Result<BTreeMap<(usize, usize), Moments>> {
        let mut sums = BTreeMap::new();
        let see = |i: usize| {
            let mut inputs = Inputs { weights, batch: i, seen: Vec::new() };
            encoder.forward(&text.batches[i], None, &mut inputs)?;
            Ok(inputs.seen)
        };
        sweep(text.batches.len(), see, |_, seen| {
            for (at, width, x) in seen {
                let sum = sums.entry(at).or_insert_with(|| Moments::new(width, 0));
                sum.add(&x, &[]);
            }
            Ok(())
        })?;
        Ok(sums)
    }

    /// What a matrix takes in the forms of `rungs`, and its relative squared error as cost.
    fn choices(
        &self,
        w: &[f32],
        weight: &Weight,
        rungs: &[Rung],
        metric: Option<&Metric>,
    ) -> Result<Vec<Choice>> {
        let (rows, cols) = (weight.rows(), weight.cols());
        let blank = |rung| self.blank("", (rows, cols), rung).bytes();
        let mut wider = false;
        let mut fitted = Vec::new();
        for rate in FITTED {
            let rung = Rung::Double { rank: double::rank(rate, rows, cols) };
            let Rung::Double { rank } = rung else { continue };
            let quick = double::fit_in(weight.name().into(), w, (rows, cols), rank, metric, &QUICK);
            let quick = Weight::Double(quick);
            let error = self.error(&quick, w, metric)?;
            wider |= quick.bytes() > blank(rung);
            fitted.push((rank as f64, error.max(1e-12).ln()));
        }
        let (low, high) = (fitted[0], fitted[1]);
        let slope = if high.0 > low.0 { (high.1 - low.1) / (high.0 - low.0) } else { 0.0 };
        let choice = |&rung: &Rung| match rung {
            Rung::Double { rank } => {
                let cost = (low.1 + slope * (rank as f64 - low.0)).exp();
                let wider = if wider { 2 * (rows + rank + cols) } else { 0 };
                Ok(Choice { bytes: blank(rung) + wider, cost })
            }
            _ => {
                let (packed, cost) = self.fit(weight, w, rung, metric)?;
                Ok(Choice { bytes: packed.bytes(), cost })
            }
        };
        rungs.iter().map(choice).collect()
    }
}

fn linears(model: &Model) -> Vec<&Linear> {
    model.layers.iter().flat_map(|l| l.linears()).map(|(_, linear)| linear).collect()
}

/// What a matrix may become.
pub(super) fn rungs(weight: &Weight) -> Vec<Rung> {
    let (rows, cols) = (weight.rows(), weight.cols());
    let double = RATES.iter().map(|&rate| double::rank(rate, rows, cols));
    let mut rungs: Vec<Rung> = double.map(|rank| Rung::Double { rank }).collect();
    rungs.dedup();
    rungs.extend(PLANES.map(|planes| Rung::Planes { planes, rank: 0 }));
    rungs.push(Rung::Int8);
    rungs
}

/// The place of matrix `i` of those that a layer has.
fn place(attention: bool, i: usize) -> Place {
    match i + if attention { 0 } else { 4 } {
        0..=2 => Place::QueryKeyValue,
        3 => Place::AttentionOutput,
        4 => Place::Up,
        _ => Place::Down,
    }
}

/// The weights of matrix `i` of those that a layer has.
fn weight<'a, 'm>(
    run: &'a mut crate::runtime::RunLayer<'m>,
    attention: bool,
    i: usize,
) -> &'a mut Cow<'m, [f32]> {
    const THERE: &str = "a layer that has the matrix";
    let i = i + if attention { 0 } else { 4 };
    if i < 4 {
        let attention = run.attention.as_mut().expect(THERE);
        let linears =
            [&mut attention.query, &mut attention.key, &mut attention.value, &mut attention.output];
        let linear = linears.into_iter().nth(i).expect(THERE);
        return &mut linear.weight;
    }
    let ffn = run.ffn.as_mut().expect(THERE);
    if i == 4 { &mut ffn.up.weight } else { &mut ffn.down.weight }
}

/// What the places of a model multiply in one batch, as heavy as its tokens.
struct Inputs<'a> {
    weights: &'a TokenWeights,
    batch: usize,
    /// By layer and place: width and values.
    seen: Vec<((usize, usize), usize, Vec<f32>)>,
}

impl Observer for Inputs<'_> {
    fn linear_input(&mut self, layer: usize, site: Site, x: &[f32]) {
        let place = match site {
            Site::QueryKeyValue => Place::QueryKeyValue,
            Site::AttentionOutput => Place::AttentionOutput,
            Site::Up => Place::Up,
            Site::Down => Place::Down,
            // Of families whose forms are chosen by weights alone.
            _ => return,
        };
        let tokens = self.weights.tokens(self.batch, layer, place);
        let width = x.len().checked_div(tokens).unwrap_or(0);
        let x = self.weights.apply(self.batch, layer, place, x);
        self.seen.push(((layer, place as usize), width, x));
    }
}

/// A batch, and what the model as it was makes of it.
struct Watched<'b> {
    batch: &'b Batch,
    /// Hidden states by layer, those that enter it.
    states: Vec<Vec<f32>>,
    answer: Vec<f32>,
}

impl<'b> Watched<'b> {
    fn new(encoder: &Encoder, batch: &'b Batch) -> Result<Watched<'b>> {
        struct States(Vec<Vec<f32>>);
        impl Observer for States {
            fn hidden(&mut self, _: usize, x: &[f32]) {
                self.0.push(x.to_vec());
            }
        }
        let mut states = States(Vec::new());
        encoder.hidden(batch, None, &mut states)?;
        let mut states = states.0;
        let last = states.pop().unwrap_or_default();
        let answer = answer(encoder, encoder.layers.len(), last, batch);
        Ok(Watched { batch, states, answer })
    }
}

/// What counts of a model's answer, from hidden state `layer` on: that of its head, or the last hidden state where the
/// head says too much or nothing.
fn answer(encoder: &Encoder, layer: usize, x: Vec<f32>, batch: &Batch) -> Vec<f32> {
    let states = encoder.finish(layer, x, batch);
    match encoder.model.config.task {
        Task::MaskedLm | Task::Bare => states.x,
        _ => encoder.answer(&states.batch, &states.x, None).values,
    }
}

/// The relative squared error of the answers, when layers from `layer` on are others.
fn moved(encoder: &Encoder, layer: usize, watched: &[Watched]) -> Result<f64> {
    let (mut error, mut power) = (0.0, 0.0);
    let compute = |i: usize| {
        let Watched { batch, states, answer: was } = &watched[i];
        let is = answer(encoder, layer, states[layer].clone(), batch);
        let square = |x: f32| (x as f64).powi(2);
        let error: f64 = is.iter().zip(was).map(|(a, b)| square(a - b)).sum();
        Ok((error, was.iter().map(|&x| square(x)).sum::<f64>()))
    };
    sweep(watched.len(), compute, |_, (e, p): (f64, f64)| {
        error += e;
        power += p;
        Ok(())
    })?;
    Ok(if power > 0.0 { error / power } else { 0.0 })
}
