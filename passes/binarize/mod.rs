#![doc = include_str!("README.md")]

mod double;
mod elastic;
mod fit;
mod residual;
#[cfg(test)]
mod tests;
mod weights;

use crate::data::Calibration;
use crate::model::{Activations, Binary, Linear, LowRank, Model, Weight};
use crate::pass::{Context, Entry, Pass, Work};
use crate::report::Change;
use crate::runtime::tokens::{Importance, rows};
use crate::runtime::{Batch, Encoder, RunAttention, RunFeedForward};
use crate::train::moments::Moments;
use crate::train::{sweep, update};
use crate::{Error, Result};
use fit::Codes;
use residual::Metric;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use weights::{Place, TokenWeights};

pub const ENTRY: Entry = Entry::new::<Binarize>(
    "binarize",
    "store matrices as sign planes or two binary factors, plus a low-rank residual",
    include_str!("README.md"),
    &["prune", "binarize"],
);

/// Options of the pass.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Binarize {
    /// What the layers' matrices become: sign planes, or two binary factors at any number of bits a weight.
    pub form: Form,
    /// Sign planes, 1 to 4, with `form=planes`: about one bit a weight each.
    pub planes: usize,
    /// Bits a weight, 0.5 to 4, with `form=double`; 0 for 1.5.
    pub rate: f64,
    /// Rank of the residual beside sign planes; 0 for none.
    pub rank: usize,
    /// How the residual is stored.
    pub factors: Factors,
    /// Weights of a row that share a scale; 0 for the whole row.
    pub group: usize,
    /// Rounds of fitting signs and residual in turn, when there is a residual.
    pub rounds: usize,
    /// Added to the diagonal of the inputs' second moments, relative to its mean.
    pub damp: f64,
    /// Sign planes of the word embeddings, 0 to 4; 0 leaves them as they are.
    pub embeddings: usize,
    /// Sign planes of the head's linear layers, 0 to 4; 0 leaves them as they are.
    pub head: usize,
    /// Bits to which a packed layer rounds its inputs: 8, 4, or 32 for not at all; 1 makes them BiPFT's signs, to be trained.
    pub activations: u32,
    /// Rank of the estimators of attention's residuals, where activations are signs; 0 for none.
    pub estimators: usize,
}

/// See [`Binarize::form`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    Planes,
    Double,
}

/// See [`Binarize::factors`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Factors {
    F16,
    Int8,
}

/// Bits a weight of two binary factors, where none are given: the most accurate rung below two planes (BiPFT notes,
/// §5.11).
const RATE: f64 = 1.5;

impl Default for Binarize {
    fn default() -> Self {
        Binarize {
            form: Form::Planes,
            planes: 2,
            rate: 0.0,
            rank: 0,
            factors: Factors::F16,
            group: 0,
            rounds: 3,
            damp: 0.05,
            embeddings: 0,
            head: 0,
            activations: 8,
            estimators: 1,
        }
    }
}

impl Pass for Binarize {
    fn check(&self) -> Result<()> {
        let fail = |option, found: String, expected: &str| {
            Err(Error::Option { pass: "binarize", option, found, expected: expected.into() })
        };
        if !(1..=4).contains(&self.planes) {
            return fail("planes", self.planes.to_string(), "1, 2, 3 or 4");
        }
        for (option, planes) in [("embeddings", self.embeddings), ("head", self.head)] {
            if planes > 4 {
                return fail(
                    option,
                    planes.to_string(),
                    "0 to leave it as it is, or 1 to 4 planes",
                );
            }
        }
        match self.form {
            Form::Planes if self.rate != 0.0 => {
                return fail("rate", self.rate.to_string(), "0 beside `form=planes`");
            }
            Form::Double if self.rate != 0.0 && !(0.5..=4.0).contains(&self.rate) => {
                return fail("rate", self.rate.to_string(), "0 for 1.5, or a number from 0.5 to 4");
            }
            Form::Double if self.rank > 0 => {
                return fail("rank", self.rank.to_string(), "0 beside `form=double`");
            }
            Form::Double if self.group > 0 => {
                return fail("group", self.group.to_string(), "0 beside `form=double`");
            }
            _ => {}
        }
        if self.rank > 4096 {
            return fail("rank", self.rank.to_string(), "a number from 0 to 4096");
        }
        if self.factors == Factors::Int8 && self.rank == 0 {
            return fail("factors", "int8".into(), "f16 where there is no residual (`rank=0`)");
        }
        if !(1..=100).contains(&self.rounds) {
            return fail("rounds", self.rounds.to_string(), "a number from 1 to 100");
        }
        if self.group != 0 && self.group < 8 {
            return fail("group", self.group.to_string(), "0 for the whole row, or at least 8");
        }
        if !(1e-4..=10.0).contains(&self.damp) {
            // Below, the ridge is lost in the rounding of f32 moments.
            return fail("damp", self.damp.to_string(), "a number from 0.0001 to 10");
        }
        if ![32, 8, 4, 1].contains(&self.activations) {
            return fail("activations", self.activations.to_string(), "32, 8, 4 or 1");
        }
        if self.estimators > 256 {
            return fail("estimators", self.estimators.to_string(), "a number from 0 to 256");
        }
        if self.activations == 1 {
            // One scale a matrix, and nothing beside it: there is no choice of these.
            if self.form != Form::Planes {
                return fail("form", "double, with activations=1".into(), "planes");
            }
            let only =
                [("planes", self.planes, 1), ("rank", self.rank, 0), ("group", self.group, 0)];
            for (option, found, only) in only {
                if found != only {
                    let found = format!("{found}, with activations=1");
                    return fail(option, found, &only.to_string());
                }
            }
        }
        Ok(())
    }

    fn run(&self, model: &mut Model, cx: &Context) -> Result<Work> {
        self.check()?;
        let layers = model.layers.len();
        cx.progress.start("binarize", layers + 1);
        let mut changes = Vec::new();
        match cx.calibration {
            _ if self.activations == 1 => self.to_signs(model, cx, &mut changes)?,
            Some(text) => self.with_text(model, text, cx, &mut changes)?,
            None => {
                for layer in &mut model.layers {
                    for linear in layer.linears_mut() {
                        changes.push(self.pack(linear, None)?);
                    }
                    cx.progress.step()?;
                }
            }
        }
        if self.embeddings > 0 {
            changes.push(self.plain(self.embeddings).pack_embeddings(model)?);
        }
        if self.head > 0 {
            for linear in model.head.linears_mut() {
                changes.push(self.plain(self.head).pack(linear, None)?);
            }
        }
        cx.progress.step()?;
        let mut work = Work::from(changes);
        if self.activations == 1 {
            work.notes.push(
                "layers multiply signs of their inputs: until `distill`, or fine-tuning, has trained \
                 them, answers are worth little"
                    .into(),
            );
        }
        Ok(work)
    }
}

impl Binarize {
    /// Layer by layer, with the inputs that the layers packed so far give the next one: of the tokens that enter it, and
    /// behind it are left.
    fn with_text(
        &self,
        model: &mut Model,
        text: &Calibration,
        cx: &Context,
        changes: &mut Vec<Change>,
    ) -> Result<()> {
        let (activation, eps) = (model.config.activation, model.config.eps);
        let hidden = model.config.hidden;
        let mut batches: Vec<Cow<Batch>> = text.batches.iter().map(Cow::Borrowed).collect();
        let frozen = Model { layers: Vec::new(), ..model.clone() };
        let shell = Encoder::shell(&frozen)?;
        let mut states = all(batches.len(), |i| shell.embed(&batches[i]))?;
        let mut weights = TokenWeights::of(model, &text.batches, cx.seed)?;
        for (l, layer) in model.layers.iter_mut().enumerate() {
            let schedule = model.tokens.as_ref().filter(|s| s.layers[l].is_some());
            let mut ranks: Vec<Importance> = match schedule {
                Some(s) => batches.iter().map(|b| Importance::new(s.score, b.tokens())).collect(),
                None => Vec::new(),
            };
            if let Some(attention) = &mut layer.attention {
                let metric = self.metric(attention.query.weight.cols(), states.len(), |i| {
                    Ok(weights.apply(i, l, Place::QueryKeyValue, &states[i]))
                })?;
                for linear in [&mut attention.query, &mut attention.key, &mut attention.value] {
                    changes.push(self.pack(linear, Some(&metric))?);
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
                let width = attention.output.weight.cols();
                let metric = self.metric(width, contexts.len(), |i| {
                    Ok(weights.apply(i, l, Place::AttentionOutput, &contexts[i]))
                })?;
                changes.push(self.pack(&mut attention.output, Some(&metric))?);
                let run = RunAttention::new(attention, eps)?;
                update(&mut states, |i, x| Ok(run.finish(&contexts[i], x)))?;
            }
            if let Some(ffn) = &mut layer.ffn {
                let metric = self.metric(ffn.up.weight.cols(), states.len(), |i| {
                    Ok(weights.apply(i, l, Place::Up, &states[i]))
                })?;
                changes.push(self.pack(&mut ffn.up, Some(&metric))?);
                let metric = {
                    let run = RunFeedForward::new(ffn, activation, eps)?;
                    self.metric(ffn.units(), states.len(), |i| {
                        Ok(weights.apply(i, l, Place::Down, &run.units(&states[i])))
                    })?
                };
                changes.push(self.pack(&mut ffn.down, Some(&metric))?);
                let run = RunFeedForward::new(ffn, activation, eps)?;
                update(&mut states, |_, x| Ok(run.finish(&run.units(x), x)))?;
            }
            if let Some(schedule) = schedule {
                // As the model will: the layers behind never see what goes here.
                let kept: Vec<Vec<usize>> =
                    ranks.iter().zip(&batches).map(|(r, b)| r.kept(schedule, l, b)).collect();
                update(&mut states, |i, x| Ok(rows(x, hidden, &kept[i])))?;
                for (i, (batch, kept)) in batches.iter_mut().zip(&kept).enumerate() {
                    weights.keep(i, l, kept);
                    *batch = Cow::Owned(batch.select(kept));
                }
            }
            cx.progress.step()?;
        }
        Ok(())
    }

    /// Planes without a residual, for tables and heads.
    fn plain(&self, planes: usize) -> Binarize {
        let factors = Factors::F16;
        Binarize { form: Form::Planes, planes, rate: 0.0, rank: 0, factors, ..self.clone() }
    }

    /// What a packed layer makes of its inputs.
    fn rounding(&self) -> Activations {
        match self.activations {
            8 => Activations::Int8,
            4 => Activations::Int4,
            _ => Activations::Exact,
        }
    }

    /// Packs one layer; `metric` comes from what it multiplies.
    fn pack(&self, linear: &mut Linear, metric: Option<&Metric>) -> Result<Change> {
        let before = linear.clone();
        let (packed, error) = self.encode(&linear.weight, metric)?;
        linear.weight.dense()?.release();
        linear.weight = packed;
        linear.activations = self.rounding();
        Ok(Change::new(&before, linear, Some(error)))
    }

    fn pack_embeddings(&self, model: &mut Model) -> Result<Change> {
        let word = |m: &Model| Linear::table(&m.embeddings.word);
        let before = word(model);
        let (packed, error) = self.encode(&model.embeddings.word, None)?;
        model.embeddings.word.dense()?.release(); // all of a large table was read
        model.embeddings.word = packed;
        model.drop_tied_copy();
        Ok(Change::new(&before, &word(model), Some(error)))
    }

    /// Second moments of what a layer multiplies, `input` by batch.
    fn metric(
        &self,
        width: usize,
        batches: usize,
        input: impl Fn(usize) -> Result<Vec<f32>> + Sync,
    ) -> Result<Metric> {
        let mut moments = Moments::new(width, 0);
        sweep(batches, input, |_, x| {
            moments.add(&x, &[]);
            Ok(())
        })?;
        Ok(match self.form {
            Form::Planes => Metric::new(moments, self.damp),
            Form::Double => Metric::uncompensated(moments, self.damp),
        })
    }

    /// The packed matrix, and the relative error that it makes.
    fn encode(&self, weight: &Weight, metric: Option<&Metric>) -> Result<(Weight, f64)> {
        let w = weight.dense()?.to_f32()?;
        let (name, shape) = (weight.name(), (weight.rows(), weight.cols()));
        Ok(match self.form {
            Form::Planes => {
                let (binary, error) = self.planes(name, &w, shape, metric);
                (Weight::Binary(binary), error)
            }
            Form::Double => {
                let rate = if self.rate == 0.0 { RATE } else { self.rate };
                let rank = double::rank(rate, shape.0, shape.1);
                let d = metric.map(|metric| metric.diagonal(shape.1));
                let double = double::fit(name.into(), &w, shape, rank, d.as_deref());
                let dense = double.to_dense();
                let add_row = |row: usize, out: &mut [f32]| {
                    let values = &dense[row * shape.1..];
                    out.iter_mut().zip(values).for_each(|(o, v)| *o += v);
                };
                let error = residual::relative_error(&w, shape, add_row, metric);
                (Weight::Double(double), error)
            }
        })
    }

    /// `W ≈ planes + U·V`: signs and residual are fitted in turn, and the best round counts.
    fn planes(
        &self,
        name: &str,
        w: &[f32],
        (rows, cols): (usize, usize),
        metric: Option<&Metric>,
    ) -> (Binary, f64) {
        let rank = self.rank.min(rows).min(cols);
        let group = if self.group == 0 { cols.max(1) } else { self.group.min(cols.max(1)) };
        let rounds = if rank == 0 { 1 } else { self.rounds };
        let mut low_rank = None;
        let mut best: Option<(Binary, f64)> = None;
        for _ in 0..rounds {
            let rest = residual::minus(w, low_rank.as_ref(), cols);
            let codes = Codes::fit(&rest, (rows, cols), self.planes, group);
            let codes = match metric {
                Some(metric) => codes.compensate(&rest, &metric.factor, &metric.order),
                None => codes,
            };
            if rank > 0 {
                let planes = codes.pack(name.into(), None);
                let add_row = |row: usize, out: &mut [f32]| planes.add_row(row, out);
                let missing = residual::difference(w, cols, 0..rows, add_row);
                let found = residual::low_rank(&missing, (rows, cols), rank, metric);
                low_rank = Some(match self.factors {
                    Factors::F16 => found,
                    Factors::Int8 => LowRank::int8(rank, found.u, found.v),
                });
            }
            let binary = codes.pack(name.into(), low_rank.clone());
            let add_row = |row: usize, out: &mut [f32]| binary.add_row(row, out);
            let error = residual::relative_error(w, (rows, cols), add_row, metric);
            if best.as_ref().is_none_or(|(_, least)| error < *least) {
                best = Some((binary, error));
            }
        }
        best.expect("there is at least one round")
    }
}

fn all<T: Send>(n: usize, compute: impl Fn(usize) -> Result<T> + Sync) -> Result<Vec<T>> {
    let mut items = Vec::with_capacity(n);
    sweep(n, compute, |_, item| {
        items.push(item);
        Ok(())
    })?;
    Ok(items)
}
