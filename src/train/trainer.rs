//! A model in training: its weights, their gradients, and the optimizer's memory.

use super::centred::Centred;
use super::compact::Compact;
use super::forms::{Codebook, Double, Form, Kind, Rounded, Signs, TableFactors};
use super::objective::{Moment, Objective, Rate, Seen};
use super::optimizer::{Adam, Step, sum_of_squares};
use super::tape::{self, Dropout, Plan};
use super::{backward, head, weights};
use crate::checkpoint::Tensor;
use crate::model::{Head, Linear, Model, Part, Place, Weight};
use crate::runtime::{Batch, Encoder, RunHead};
use crate::{Error, Result};
use rayon::prelude::*;
use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

/// Rate of scales of sign planes, relative to that of weights (BiPFT notes, §5.11).
const SCALE_RATE: f32 = 0.1;

/// One weight of the model.
#[derive(Debug)]
struct Slot {
    /// Of its tensor, in the checkpoint.
    name: String,
    trained: bool,
    /// Matrices and tables decay; biases and LayerNorms do not.
    decays: bool,
    form: Form,
    /// One a parameter of the form.
    states: Vec<Adam>,
}

/// See the module.
#[derive(Debug)]
pub struct Trainer<'m> {
    /// The model as it is now.
    pub encoder: Encoder<'m>,
    /// Empty where nothing is trained.
    grads: Encoder<'m>,
    slots: Vec<Slot>,
    /// Of the objective's own parameters.
    own_grads: Vec<Vec<f32>>,
    own_states: Vec<Adam>,
    /// Batches whose gradients were gathered since the last update.
    gathered: u32,
    /// Updates so far.
    pub updates: u32,
    /// Rate of codewords, relative to that of weights.
    pub codeword_rate: f32,
}

impl<'m> Trainer<'m> {
    /// Makes `model` ready; `wanted` says which parts are trained.
    ///
    /// # Errors
    /// If a stored tensor is of no floating type.
    pub fn new(model: &'m Model, wanted: impl Fn(Part) -> bool) -> Result<Trainer<'m>> {
        let mut encoder = Encoder::trainable(model)?;
        let mut named = model.clone();
        let mut slots = Vec::new();
        let centred = centred(model);
        for (part, place) in named.places_mut() {
            let (name, decays, form) = match place {
                Place::Matrix(weight) => {
                    let form = match &*weight {
                        _ if !wanted(part) => Form::Dense,
                        Weight::Dense(_) => Form::Dense,
                        Weight::Binary(binary) => match centred.contains(binary.name.as_str()) {
                            true => Form::Centred(Centred::of(binary)),
                            false => Form::Signs(Signs::of(binary)),
                        },
                        Weight::Double(double) => Form::Double(Double::of(double)),
                        Weight::Int8(int8) => Form::Rounded(Rounded::of(int8)),
                        Weight::Subspace(table) => {
                            Form::Codebook(Box::new(Codebook { table: *table.clone() }))
                        }
                        Weight::Factored(table) => Form::Factors(TableFactors::of(table)),
                    };
                    (format!("{}.weight", weight.name()), true, form)
                }
                Place::Tensor(tensor) | Place::FirstRow(tensor) => {
                    let table = tensor.shape.len() == 2;
                    (tensor.name.clone(), table, Form::Dense)
                }
                Place::Scale(tensor) => (tensor.name.clone(), false, Form::Scale),
            };
            // The pooler of a bare encoder has no part in what it is judged by.
            let idle = part == Part::Head && matches!(encoder.head, RunHead::Bare { .. });
            let trained = wanted(part) && !idle;
            slots.push(Slot { name, trained, decays, form, states: Vec::new() });
        }
        let mut grads = encoder.clone();
        let leaves = encoder.leaves_mut().into_iter().zip(grads.leaves_mut());
        for ((value, grad), slot) in leaves.zip(&mut slots) {
            slot.form.write(value.to_mut());
            *grad = Cow::Owned(if slot.trained { vec![0.0; value.len()] } else { Vec::new() });
            let parameters = slot.form.parameters(&mut Vec::new()).len();
            slot.states = vec![Adam::default(); parameters];
        }
        Ok(Trainer {
            encoder,
            grads,
            slots,
            own_grads: Vec::new(),
            own_states: Vec::new(),
            gathered: 0,
            updates: 0,
            codeword_rate: 1.0,
        })
    }

    /// Latent weights behind signs start at the matrices of `origin`, the model as it was before it was packed, where they
    /// have the shape: see [`Signs::start_at`].
    ///
    /// # Errors
    /// If a tensor cannot be read.
    pub fn start_at(&mut self, origin: &Model) -> Result<()> {
        let mut origin = origin.clone();
        let mut matrices = HashMap::new();
        for (_, place) in origin.places_mut() {
            if let Place::Matrix(weight) = place {
                matrices.insert(weight.name().to_string(), weight.clone());
            }
        }
        let leaves = self.encoder.leaves_mut().into_iter().zip(&mut self.slots);
        for (leaf, slot) in leaves {
            let Form::Signs(signs) = &mut slot.form else { continue };
            let name = slot.name.strip_suffix(".weight").unwrap_or(&slot.name);
            let Some(weight) = matrices.get(name) else { continue };
            if (weight.rows(), weight.cols()) == (signs.rows, signs.cols) {
                signs.start_at(&weight.to_f32()?);
                slot.form.write(leaf.to_mut());
            }
        }
        Ok(())
    }

    /// The gathered gradient of every weight that is trained, by the name of its tensor.
    pub fn gradients(&mut self) -> Vec<(String, Vec<f32>)> {
        let leaves = self.grads.leaves_mut().into_iter().zip(&self.slots);
        let trained = leaves.filter(|(_, slot)| slot.trained);
        trained.map(|(leaf, slot)| (slot.name.clone(), leaf.to_vec())).collect()
    }

    /// Parameters that are trained, latent weights, scales and factors counted as they are.
    pub fn trained_params(&mut self) -> usize {
        let Trainer { encoder, slots, .. } = self;
        let leaves = encoder.leaves_mut().into_iter().zip(slots).filter(|(_, s)| s.trained);
        let count = |(leaf, slot): (&mut Cow<[f32]>, &mut Slot)| -> usize {
            slot.form.parameters(leaf.to_mut()).iter().map(|(_, p)| p.len()).sum()
        };
        leaves.map(count).sum()
    }

    /// Runs one batch forward and back and adds its gradients to those gathered so far.
    ///
    /// # Errors
    /// As [`Encoder::forward`]; [`Error::Diverged`] when the loss is no number.
    pub fn gather(
        &mut self,
        objective: &dyn Objective,
        batch: &Batch,
        dropout: Dropout,
        at: Moment,
    ) -> Result<Vec<(&'static str, f64)>> {
        let Trainer { encoder, grads, own_grads, gathered, .. } = self;
        let encoder: &Encoder = encoder;
        let (batch, targets) = objective.input(batch, at);
        let path = objective.path(encoder, at);
        let masks = objective.masks(at);
        let masks = masks.as_ref();
        let compact = masks.map(|masks| Compact::new(&path.layers, &path.own, masks));
        let layers = match &compact {
            Some(compact) => compact.path(&path.layers),
            None => path.layers.clone(),
        };
        let keep = objective.keep(at);
        let plan = Plan {
            masks: compact.as_ref().map(|c| &c.masks),
            mask_gradients: compact.is_some(),
            keep: keep.as_ref(),
            importance: objective.importance(),
            dropout,
            ..Plan::default()
        };
        let mut tapes = tape::forward(encoder, &layers, &batch, &plan)?;
        let (batch, targets) = (&*batch, &targets[..]);
        let left = tape::left(&tapes, batch);
        let left: &Batch = &left;
        let seen = Seen { encoder, batch, left, targets, tapes: &tapes, masks, dropout, at };
        let verdict = objective.loss(&seen)?;
        let total: f64 = verdict.losses.iter().map(|(_, value)| value).sum();
        if !total.is_finite() {
            return Err(Error::Diverged { step: at.update as usize + 1, found: total });
        }
        let mut signal = verdict.signal;
        let last = tape::hidden(&tapes, path.layers.len());
        let mut of_mask = Vec::new();
        if let Some((head, grad)) = &verdict.head {
            let back = head::backward(encoder, Some(grads), left, &last, head, grad);
            signal.add_hidden(path.layers.len(), back.last, 1.0);
            of_mask = back.hidden;
        }
        let mut backs = backward::backward(encoder, &layers, &mut tapes, &signal, &plan);
        let taken = compact.as_ref().map(|c| c.narrow(&mut grads.layers));
        weights::add(encoder, grads, &tapes, &backs, &path.own);
        if let (Some(compact), Some(taken), Some(masks)) = (&compact, taken, masks) {
            compact.widen(&mut grads.layers, taken);
            compact.spread(&mut backs, masks);
        }
        if let Some(first) = backs.first_mut() {
            first.hidden.iter_mut().zip(of_mask).for_each(|(h, g)| *h += g);
        }
        let mut own = verdict.own;
        if let Some(masks) = masks {
            own.extend(objective.mask_gradients(masks, &backs, at));
        }
        if let Some(keep) = &keep {
            own.extend(objective.keep_gradients(keep, &backs, at));
        }
        assert!(
            own_grads.is_empty() || own_grads.len() == own.len(),
            "an objective has as many parameters in every batch"
        );
        own_grads.resize(own.len(), Vec::new());
        for (sum, part) in own_grads.iter_mut().zip(own) {
            sum.resize(part.len(), 0.0);
            sum.iter_mut().zip(part).for_each(|(s, p)| *s += p);
        }
        *gathered += 1;
        Ok(verdict.losses)
    }

    /// Length of the mean gradient of everything that is clipped.
    fn norm(&self, gradients: &[Vec<Cow<[f32]>>], clipped: &[bool]) -> f64 {
        let own = self.own_grads.iter().zip(clipped).filter(|(_, clipped)| **clipped);
        let own: f64 = own.map(|(g, _)| sum_of_squares(g)).sum();
        let weights: f64 = gradients.iter().flatten().map(|g| sum_of_squares(g)).sum();
        (own + weights).sqrt() / self.gathered.max(1) as f64
    }

    /// Moves everything that is trained by the gathered gradients and forgets them. Returns the length of
    /// the mean gradient before clipping.
    ///
    /// # Errors
    /// [`Error::Diverged`] when a gradient is no number.
    pub fn update(
        &mut self,
        objective: &mut dyn Objective,
        rate: f32,
        decay: f32,
        clip: f32,
    ) -> Result<f64> {
        let mut grads = std::mem::replace(&mut self.grads, Encoder::hollow(self.encoder.model));
        let norm = {
            let leaves = grads.leaves_mut();
            let gradients: Vec<Vec<Cow<[f32]>>> = leaves
                .par_iter()
                .zip(&self.slots)
                .map(|(leaf, slot)| match slot.trained {
                    true => slot.form.gradients(leaf),
                    false => Vec::new(),
                })
                .collect();
            let mut own = objective.parameters();
            assert_eq!(own.len(), self.own_grads.len(), "a gradient for every parameter");
            let clipped: Vec<bool> = own.iter().map(|(group, _)| group.clipped).collect();
            let norm = self.norm(&gradients, &clipped);
            // Beyond this the square of an element may be infinite, and AdamW stands still without a word.
            if norm.is_nan() || norm > 1e15 {
                return Err(Error::Diverged { step: self.updates as usize + 1, found: norm });
            }
            self.updates += 1;
            let mean = 1.0 / self.gathered.max(1) as f32;
            let shrink = match clip > 0.0 {
                // As PyTorch's clip_grad_norm_.
                true => (clip as f64 / (norm + 1e-6)).min(1.0) as f32,
                false => 1.0,
            };
            let count = self.updates;
            let step = |rate, decay, scale| Step { rate, decay, scale, count };
            let values = self.encoder.leaves_mut().into_iter().zip(&mut self.slots);
            for ((leaf, slot), gradients) in values.zip(&gradients).filter(|((_, s), _)| s.trained)
            {
                let Slot { form, states, decays, .. } = slot;
                let leaf = leaf.to_mut();
                let states = states.iter_mut().zip(gradients);
                for ((kind, values), (state, grad)) in form.parameters(leaf).into_iter().zip(states)
                {
                    let (factor, decay) = match kind {
                        Kind::Weight if *decays => (1.0, decay),
                        Kind::Weight | Kind::Latent | Kind::Factor => (1.0, 0.0),
                        Kind::Scale => (SCALE_RATE, 0.0),
                        Kind::Codeword => (self.codeword_rate, 0.0),
                    };
                    state.update(values, grad, &step(rate * factor, decay, mean * shrink));
                }
            }
            self.refresh();
            self.own_states.resize(own.len(), Adam::default());
            let states = self.own_states.iter_mut().zip(&self.own_grads);
            for ((group, values), (state, grad)) in own.iter_mut().zip(states) {
                let rate = match group.rate {
                    Rate::Scheduled(factor) => rate * factor,
                    Rate::Constant(rate) => rate,
                };
                let scale = if group.clipped { mean * shrink } else { mean };
                state.update(values, grad, &step(rate, group.decay, scale));
            }
            norm
        };
        objective.updated();
        self.own_grads.clear();
        self.grads = grads;
        self.forget();
        Ok(norm)
    }

    /// Sets the gathered gradients to zero.
    fn forget(&mut self) {
        let leaves = self.grads.leaves_mut();
        leaves.into_par_iter().for_each(|leaf| leaf.to_mut().fill(0.0));
        self.gathered = 0;
    }

    /// Every trained parameter with the optimizer's memory of it, by the name of its tensor and a number.
    pub fn parameters(&mut self) -> Vec<Parameter<'_>> {
        let leaves = self.encoder.leaves_mut().into_iter().zip(&mut self.slots);
        let mut all = Vec::new();
        for (leaf, slot) in leaves.filter(|(_, slot)| slot.trained) {
            let values = slot.form.parameters(leaf.to_mut()).into_iter();
            for (i, ((_, values), state)) in values.zip(&mut slot.states).enumerate() {
                all.push(Parameter { name: format!("{}.{i}", slot.name), values, state });
            }
        }
        all
    }

    /// The optimizer's memory of the objective's own parameters.
    pub fn own_states(&mut self) -> &mut Vec<Adam> {
        &mut self.own_states
    }

    /// Makes the model's matrices of their parameters, after those were changed.
    pub fn refresh(&mut self) {
        let leaves = self.encoder.leaves_mut().into_par_iter().zip(&self.slots);
        let trained = leaves.filter(|(_, slot)| slot.trained);
        trained.for_each(|(leaf, slot)| slot.form.write(leaf.to_mut()));
    }

    /// What was trained, to be put into the model by [`Trained::put`]: the model is free again.
    pub fn finish(mut self) -> Trained {
        let slots = std::mem::take(&mut self.slots);
        let leaves = self.encoder.leaves_mut().into_iter();
        let value = |(leaf, slot): (&mut Cow<[f32]>, Slot)| match (slot.trained, slot.form) {
            (false, _) => None,
            (true, Form::Signs(signs)) => Some(Value::Signs(signs)),
            (true, Form::Centred(centred)) => Some(Value::Centred(centred)),
            (true, Form::Double(double)) => Some(Value::Double(double)),
            (true, Form::Rounded(rounded)) => Some(Value::Rounded(rounded)),
            (true, Form::Codebook(codebook)) => Some(Value::Codebook(codebook)),
            (true, Form::Factors(factors)) => Some(Value::Factors(factors)),
            (true, _) => Some(Value::Dense(std::mem::take(leaf.to_mut()))),
        };
        Trained { values: leaves.zip(slots).map(value).collect() }
    }
}

/// Names of the matrices of signs around their mean: those of layers whose inputs are signs too.
fn centred(model: &Model) -> HashSet<&str> {
    let layers = model.layers.iter().flat_map(|layer| layer.linears()).map(|(_, linear)| linear);
    let linears: Vec<&Linear> = layers.chain(model.head.linears()).collect();
    linears.into_iter().filter(|l| l.elastic.is_some()).map(|l| l.weight.name()).collect()
}

/// One trained parameter.
#[derive(Debug)]
pub struct Parameter<'a> {
    pub name: String,
    pub values: &'a mut Vec<f32>,
    pub state: &'a mut Adam,
}

/// The outcome of training, one entry a weight of the model.
#[derive(Debug)]
pub struct Trained {
    values: Vec<Option<Value>>,
}

#[derive(Debug)]
enum Value {
    Dense(Vec<f32>),
    Signs(Signs),
    Centred(Centred),
    Double(Double),
    Rounded(Rounded),
    Codebook(Box<Codebook>),
    Factors(TableFactors),
}

impl Trained {
    /// Puts the values into `model`, the one that was trained, each in the dtype that it had.
    ///
    /// # Errors
    /// If a tensor cannot be read.
    pub fn put(self, model: &mut Model) -> Result<()> {
        let tied_copy = format!("{}.weight", model.family.masked_lm.decoder);
        let words = self.values.first().is_some_and(Option::is_some);
        if model.config.tied && words {
            // A copy of the table under the decoder's name would contradict the trained one.
            model.unused.retain(|t| t.name != tied_copy);
        }
        if let (Head::MaskedLm { bias, .. }, Some(Some(_))) = (&model.head, self.values.last()) {
            // So would a copy of the bias under its other name.
            let (own, names) = (bias.name.clone(), model.family.masked_lm.bias);
            model.unused.retain(|t| t.name == own || !names.contains(&t.name.as_str()));
        }
        for ((_, place), value) in model.places_mut().into_iter().zip(self.values) {
            let Some(value) = value else { continue };
            let store = |tensor: &Tensor, values: &[f32]| {
                Tensor::from_f32(tensor.name.clone(), &tensor.shape, values, tensor.dtype)
            };
            match (place, value) {
                (Place::Matrix(weight), Value::Signs(signs)) => {
                    *weight = Weight::Binary(signs.pack(weight.name().to_string()));
                }
                (Place::Matrix(weight), Value::Centred(centred)) => {
                    *weight = Weight::Binary(centred.pack(weight.name().to_string()));
                }
                (Place::Matrix(weight), Value::Double(double)) => {
                    *weight = Weight::Double(double.pack(weight.name().to_string()));
                }
                (Place::Matrix(weight), Value::Rounded(rounded)) => {
                    *weight = Weight::Int8(rounded.pack(weight.name().to_string()));
                }
                (Place::Matrix(weight), Value::Codebook(codebook)) => {
                    *weight = Weight::Subspace(Box::new(codebook.pack(weight.name().to_string())));
                }
                (Place::Matrix(weight), Value::Factors(factors)) => {
                    *weight = Weight::Factored(factors.pack(weight.name().to_string()));
                }
                (Place::Matrix(weight), Value::Dense(values)) => {
                    *weight = Weight::Dense(store(weight.dense()?, &values));
                }
                (Place::Tensor(tensor) | Place::Scale(tensor), Value::Dense(values)) => {
                    *tensor = store(tensor, &values);
                }
                (Place::FirstRow(tensor), Value::Dense(values)) => {
                    let mut all = tensor.to_f32()?.into_owned();
                    all[..values.len()].copy_from_slice(&values);
                    *tensor = store(tensor, &all);
                }
                (
                    _,
                    Value::Signs(_)
                    | Value::Centred(_)
                    | Value::Double(_)
                    | Value::Rounded(_)
                    | Value::Codebook(_)
                    | Value::Factors(_),
                ) => unreachable!("only matrices are packed"),
            }
        }
        Ok(())
    }
}
