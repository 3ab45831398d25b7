//! What matrices become, before they are fitted.

use super::mixed::rungs;
use super::rungs::Rung;
use super::{Binarize, Form};
use crate::Result;
use crate::checkpoint::file_bytes;
use crate::model::outline::layer_bytes;
use crate::model::{BinaryAttention, Estimators, Linear, Model, Outline, Weight};
use crate::pass::{Foresight, PlanContext};

/// Ranks of two factors are multiples of this.
const RANK_STEP: isize = 32;

/// Seconds of one thread for each weight, of planes and of two factors; for as many planes again behind each residual.
const PLANES: f64 = 1e-7;
const DOUBLE: f64 = 4e-6;
/// With text: times that it goes through the layers, and in every round multiply-accumulates for each weight and hidden
/// dimension.
const WATCHED: f64 = 7.0;
const COMPENSATED: f64 = 40.0;

impl Binarize {
    /// Roughly, as measured (docs/plan.md).
    pub(super) fn foresight(&self, cx: &PlanContext) -> Foresight {
        let weights = cx.weights();
        let rounds = if self.rank > 0 { self.rounds as f64 } else { 1.0 };
        let planes = rounds * weights * PLANES;
        let fit = match self.form {
            _ if self.is_mixed() => weights * DOUBLE + 4.0 * planes,
            Form::Planes => planes,
            Form::Double => weights * DOUBLE,
        };
        let hidden = cx.teacher.config.hidden as f64;
        let watched = match cx.text {
            None => 0.0,
            Some(_) => WATCHED * cx.watch() + rounds * cx.forward(COMPENSATED * hidden),
        };
        let copies = if cx.text.is_some() { 5.0 } else { 2.0 };
        Foresight { seconds: fit + watched, copies, ..Foresight::default() }
    }

    /// Tables and heads.
    pub(super) fn outline_around(&self, model: &mut Model) -> Result<()> {
        if self.embeddings > 0 {
            let word = &mut model.embeddings.word;
            *word = self.blank_of(word, self.plain(self.embeddings))?;
            model.drop_tied_copy();
        }
        if self.head > 0 {
            for linear in model.head.linears_mut() {
                self.outline_linear(linear, self.plain(self.head))?;
            }
        }
        Ok(())
    }

    /// Every matrix of the layers in the form that `rung` gives it.
    pub(super) fn outline_layers(
        &self,
        model: &mut Model,
        rung: impl Fn(&Weight) -> Rung,
    ) -> Result<()> {
        for linear in model.layers.iter_mut().flat_map(|layer| layer.linears_mut()) {
            let rung = rung(&linear.weight);
            self.outline_linear(linear, rung)?;
        }
        Ok(())
    }

    fn outline_linear(&self, linear: &mut Linear, rung: Rung) -> Result<()> {
        linear.weight = self.blank_of(&linear.weight, rung)?;
        linear.activations = self.rounding();
        Ok(())
    }

    fn blank_of(&self, weight: &Weight, rung: Rung) -> Result<Weight> {
        weight.dense()?;
        Ok(self.blank(weight.name(), (weight.rows(), weight.cols()), rung))
    }

    /// As [`Binarize::to_signs`].
    pub(super) fn outline_signs(&self, model: &mut Model) -> Result<()> {
        let hidden = model.config.hidden;
        for layer in &mut model.layers {
            for linear in layer.linears_mut() {
                *linear = linear.to_elastic(1.0)?;
            }
            let Some(attention) = &mut layer.attention else { continue };
            let prefix = BinaryAttention::prefix(attention.query.weight.name()).to_string();
            let mut binary = BinaryAttention::new(&prefix, [1.0; 4]);
            if self.estimators > 0 {
                let rank = self.estimators.min(hidden);
                binary.estimators = Some(Estimators::new(&prefix, hidden, rank, 0));
            }
            attention.binary = Some(binary);
        }
        Ok(())
    }

    fn widen(&self, outline: &mut Outline) -> Result<()> {
        outline.hold_params();
        outline.spread(|model| self.widened(model))
    }

    /// Layers whose widths are open, by a step narrower and wider: so much do words of signs and groups of scales round up
    /// in each of them.
    fn widened(&self, model: &Model) -> Result<Vec<Model>> {
        let step = self.group.max(32);
        let (most_heads, most_units) = (model.config.heads, model.config.ffn);
        let resize = |wider: bool| -> Result<Model> {
            let mut model = model.clone();
            for layer in &mut model.layers {
                let heads = layer.attention.as_ref().map_or(0, |a| a.heads.len());
                let units = layer.ffn.as_ref().map_or(0, |f| f.units());
                let dims = layer.attention.as_ref().map_or(1, |a| a.head_dim.max(1));
                let by = |n: usize, step: usize, most: usize| match wider {
                    true => (n + step).min(most.max(n)),
                    false => n.saturating_sub(step).max(n.min(1)),
                };
                let heads = by(heads, step.div_ceil(dims), most_heads);
                *layer = layer.resized(heads, by(units, step, most_units))?;
            }
            Ok(model)
        };
        Ok(vec![resize(false)?, resize(true)?])
    }

    /// What every matrix gets where widths are open: ranks round to a step in each of them.
    pub(super) fn outline_open(&self, outline: &mut Outline) -> Result<()> {
        self.widen(outline)?;
        outline.spread(|model| {
            let moved = |step: isize| {
                let mut model = model.clone();
                self.outline_layers(&mut model, |weight| match self.uniform(weight) {
                    Rung::Double { rank } => {
                        Rung::Double { rank: rank.saturating_add_signed(step) }
                    }
                    planes => planes,
                })?;
                Ok(model)
            };
            match self.form {
                Form::Planes => Ok(vec![moved(0)?]),
                Form::Double => Ok(vec![moved(-RANK_STEP)?, moved(RANK_STEP)?]),
            }
        })
    }

    /// Between the forms with fewest and most bytes, fewest and most products, and fewest and most signs, of which a graph may
    /// make bytes (`--onnx-binary`); within the budget.
    ///
    /// # Errors
    /// [`crate::Error::Option`] for a budget that is smaller than the smallest.
    pub(super) fn outline_mixed(&self, outline: &mut Outline) -> Result<()> {
        if outline.uneven {
            self.widen(outline)?;
        }
        let all = |model: &Model, by: fn(&Weight) -> usize, most: bool| -> Result<Model> {
            let mut model = model.clone();
            self.outline_layers(&mut model, |weight| {
                let size = |rung: &Rung| by(&self.blank("", (weight.rows(), weight.cols()), *rung));
                let rungs = rungs(weight).into_iter();
                let chosen = if most { rungs.max_by_key(size) } else { rungs.min_by_key(size) };
                chosen.expect("a matrix may become something")
            })?;
            Ok(model)
        };
        let file = |model: &Model| file_bytes(&model.compacted().tensors());
        let (mut at_most, mut refusal) = (None, None);
        for model in outline.models() {
            let least = all(model, Weight::bytes, false)?;
            if self.bits > 0.0 {
                let weights = model.layers.iter().flat_map(|layer| layer.linears());
                let params: usize = weights.map(|(_, linear)| linear.weight.params()).sum();
                let budget = (self.bits * params as f64 / 8.0).floor() as usize;
                match budget >= layer_bytes(&least) {
                    true => at_most = at_most.max(Some(budget)),
                    false => refusal = Some(self.too_few_bits(layer_bytes(&least), params)),
                }
                continue;
            }
            let smallest = file(&least)?;
            if smallest > self.size.0 {
                refusal = Some(self.too_small(smallest));
                continue;
            }
            // The header is shortest where every matrix has fewest tensors.
            let mut int8 = model.clone();
            self.outline_layers(&mut int8, |_| Rung::Int8)?;
            let others = file(&int8)? - layer_bytes(&int8) as u64;
            at_most = at_most.max(Some(self.size.0.saturating_sub(others) as usize));
        }
        let Some(at_most) = at_most else {
            return Err(refusal.expect("a model that does not fit"));
        };
        outline.spread(|model| {
            let extremes =
                [(Weight::bytes as fn(&Weight) -> usize), Weight::macs, signs].into_iter();
            let extremes = extremes.flat_map(|by| [false, true].map(|most| all(model, by, most)));
            extremes.collect()
        })?;
        outline.cap(at_most, (self.size.0 > 0).then_some(self.size.0));
        Ok(())
    }
}

/// Signs of a matrix, those of all its planes or of both its factors; or its codes.
fn signs(weight: &Weight) -> usize {
    match weight {
        Weight::Binary(binary) => binary.planes * weight.params(),
        _ => weight.macs(),
    }
}
