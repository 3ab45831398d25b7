#![doc = include_str!("README.md")]

mod budget;
mod cofi;
#[cfg(test)]
#[path = "constraint/tests.rs"]
mod constraint;
mod masks;
mod measure;
mod outline;
mod price;
mod rearrange;
mod repair;
mod scores;
mod search;
#[cfg(test)]
mod tests;

use crate::data::Calibration;
use crate::emit::Target;
use crate::model::slice::Masks;
use crate::model::{Layer, Linear, Model, Outline, cost};
use crate::pass::{Context, Entry, Foresight, Pass, PlanContext, Work};
use crate::report::{self, Change};
use crate::train::losses::Matching;
use crate::{Error, Result};
use budget::Budget;
use price::{Open, Price};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What is removed where no target is named.
const SPARSITY: f64 = 0.25;

/// Each round costs as much as a whole run of one.
const MAX_ROUNDS: usize = 100;

pub const ENTRY: Entry = Entry::new::<Prune>(
    "prune",
    "cut heads, feed-forward units, blocks and hidden dimensions",
    include_str!("README.md"),
    &[],
);

/// Options of the pass.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Prune {
    /// Share of the parameters of attention and feed-forward blocks to remove, in [0, 1).
    pub sparsity: f64,
    /// In its place: share of the FLOPs that may be left, in (0, 1]; 0 where it is not meant.
    pub flops: f64,
    /// In its place: how many times as fast one text is to run on this machine; 0 where it is not meant.
    pub speedup: f64,
    /// In its place: parameters of the whole model that may be left; 0 where it is not meant.
    pub params: usize,
    /// In its place: a file of masks to cut by, as safetensors; empty for none.
    pub masks: String,
    /// Write the masks into the output.
    pub save_masks: bool,
    /// Widths of feed-forward blocks, and of the hidden states, are multiples of this.
    pub round_to: usize,
    /// How the cut is spread over the layers.
    pub shape: Shape,
    /// What the pass goes by.
    pub mode: Mode,
    /// With Fisher scores: the cut is made in as many steps; each goes by what is left after the one before.
    /// 0: one up to a half that goes, four beyond.
    pub rounds: usize,
    /// With Fisher scores: what goes of a layer is chosen together, so that its gradients cancel.
    pub rearrange: Rearrange,
    /// Refit what is left so that each block's output stays close to the original's.
    pub repair: bool,
    /// Training: which gates are open at the start.
    pub start: Start,
    /// Training: prune the width of the hidden states as well.
    pub width: bool,
    /// Training: updates of masks and weights together; 0 for five passes over the texts, but 600 to 2,000.
    pub steps: usize,
    /// Training: share of `steps` in which the target climbs.
    pub warmup: f64,
    /// Training: updates of what is left after the cut; 0 for as many as `steps`.
    pub finetune: usize,
    /// Training: texts of a batch.
    pub batch: usize,
    /// Training: learning rate of the weights, falling to 0.
    pub rate: f64,
    /// Training: as `rate`, after the cut.
    pub finetune_rate: f64,
    /// Training: learning rate of masks and multipliers; 0 for as fast as `steps` ask for.
    pub mask_rate: f64,
    pub dropout: f64,
    /// Training: of the predictions, where they are classes.
    pub temperature: f64,
    /// Training: weight of the distance between predictions.
    pub prediction: f64,
    /// Training: weight of the distance between hidden states.
    pub hidden: f64,
    /// Training: which hidden states are compared.
    pub matching: Matching,
}

/// How the cut is spread over the layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Shape {
    /// Each layer loses what matters least over all of them.
    Layers,
    /// Every layer keeps all heads and the same number of units: stock Transformers loads it.
    Uniform,
}

/// Whether what goes of a layer is chosen together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rearrange {
    /// Where the cut is made in rounds.
    Auto,
    Always,
    Never,
}

/// Which gates training starts with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Start {
    /// Those that mode `text` leaves open at the target, with what it repairs.
    Text,
    /// All of them, as in the paper; the target climbs.
    Open,
}

/// What the pass goes by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// `train` where there is text to train on, else `text` where there is any, else `weights`.
    Auto,
    /// What the weights say of a head's or a unit's contribution.
    Weights,
    /// Fisher scores on text.
    Text,
    /// Masks and weights learned together (CoFi), on the text to train on.
    Train,
}

impl Default for Prune {
    fn default() -> Self {
        Prune {
            sparsity: SPARSITY,
            flops: 0.0,
            speedup: 0.0,
            params: 0,
            masks: String::new(),
            save_masks: false,
            round_to: 8,
            shape: Shape::Layers,
            mode: Mode::Auto,
            rounds: 0,
            rearrange: Rearrange::Auto,
            repair: true,
            start: Start::Text,
            width: true,
            steps: 0,
            warmup: 0.5,
            finetune: 0,
            batch: 32,
            rate: 1e-4,
            finetune_rate: 1e-4,
            mask_rate: 0.0,
            dropout: 0.0,
            temperature: 2.0,
            prediction: 0.5,
            hidden: 0.5,
            matching: Matching::Dynamic,
        }
    }
}

impl Pass for Prune {
    fn needs_plain_layers(&self) -> Option<&'static str> {
        Some("cuts no such layers")
    }

    fn check(&self) -> Result<()> {
        if !(0.0..1.0).contains(&self.sparsity) {
            return Err(refusal("sparsity", self.sparsity.to_string(), "a number in [0, 1)"));
        }
        let named = [
            ("flops", self.flops != 0.0),
            ("speedup", self.speedup != 0.0),
            ("params", self.params != 0),
            ("masks", !self.masks.is_empty()),
            ("sparsity", self.sparsity != SPARSITY),
        ];
        let mut named = named.iter().filter(|(_, named)| *named).map(|(name, _)| *name);
        if let (Some(first), Some(second)) = (named.next(), named.next()) {
            return Err(refusal(first, format!("given beside {second}"), "one target"));
        }
        if !self.masks.is_empty() && self.mode != Mode::Auto {
            let found = format!("{:?}", self.mode).to_lowercase() + ", beside masks";
            return Err(refusal("mode", found, "mode=auto where masks are given"));
        }
        if !(0.0..=1.0).contains(&self.flops) {
            return Err(refusal(
                "flops",
                self.flops.to_string(),
                "a share that is left, in (0, 1]",
            ));
        }
        if self.speedup != 0.0 && !(1.0..=1000.0).contains(&self.speedup) {
            return Err(refusal("speedup", self.speedup.to_string(), "a factor from 1 to 1000"));
        }
        for (option, value, range) in [
            ("rounds", self.rounds, 0..=MAX_ROUNDS),
            ("round_to", self.round_to, 1..=1024),
            ("batch", self.batch, 1..=65536),
            ("steps", self.steps, 0..=100_000_000),
            ("finetune", self.finetune, 0..=100_000_000),
        ] {
            if !range.contains(&value) {
                let expected = format!("a number from {} to {}", range.start(), range.end());
                return Err(refusal(option, value.to_string(), &expected));
            }
        }
        for (option, value) in
            [("warmup", self.warmup), ("rate", self.rate), ("finetune_rate", self.finetune_rate)]
        {
            if !(0.0..=1.0).contains(&value) {
                return Err(refusal(option, value.to_string(), "a number in [0, 1]"));
            }
        }
        if !(0.0..=10.0).contains(&self.mask_rate) {
            return Err(refusal("mask_rate", self.mask_rate.to_string(), "a number in [0, 10]"));
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return Err(refusal("dropout", self.dropout.to_string(), "a number in [0, 1)"));
        }
        if !(self.temperature > 0.0 && self.temperature <= 100.0) {
            return Err(refusal(
                "temperature",
                self.temperature.to_string(),
                "a number in (0, 100]",
            ));
        }
        for (option, value) in [("prediction", self.prediction), ("hidden", self.hidden)] {
            if !(0.0..=1e6).contains(&value) {
                return Err(refusal(option, value.to_string(), "a number from 0 to 1000000"));
            }
        }
        if self.prediction + self.hidden == 0.0 {
            return Err(refusal("prediction", "0, as `hidden` is".into(), "one above 0"));
        }
        Ok(())
    }

    fn outline(&self, outline: &mut Outline, cx: &PlanContext) -> Result<Foresight> {
        self.check()?;
        self.outline_cut(outline, cx)
    }

    fn run(&self, model: &mut Model, cx: &Context) -> Result<Work> {
        self.check()?;
        if self.targets() == [0.0; 4] && self.masks.is_empty() {
            return Ok(Work::default());
        }
        check_whole(model)?;
        let before = model.clone();
        if !self.masks.is_empty() {
            let masks = masks::read(Path::new(&self.masks), model)?;
            *model = model.sliced(&masks)?;
            let note = format!("mode masks: cut by {}, without training", self.masks);
            return Ok(self.work(&before, model, &masks, vec![note]));
        }
        let text = self.text(cx.calibration, cx.data.is_some())?;
        let mut budget = Budget::of(self, model)?;
        if self.trains(cx.data.is_some()) {
            let done = cofi::run(self, model, budget, cx)?;
            let mut work = self.work(&before, model, &done.masks, done.notes);
            work.figures.insert("cofi_expected_sparsity", done.expected);
            return Ok(Work { training: done.trainings, ..work });
        }
        let mut notes = Vec::new();
        let masks = loop {
            let masks = self.without_training(model, &before, &budget, text, cx)?;
            let Some(found) = budget.measured(&before, model)? else { break masks };
            if budget.reached(found, &mut notes) {
                break masks;
            }
            *model = before.clone();
        };
        notes.insert(0, self.note(&budget, text, cx));
        let mut left = Open::all(&before);
        left.cut(&masks);
        notes.extend(budget.short(&left, self.round_to));
        Ok(self.work(&before, model, &masks, notes))
    }

    fn reads(&self) -> Vec<PathBuf> {
        if self.masks.is_empty() { Vec::new() } else { vec![self.masks.clone().into()] }
    }

    fn trains(&self, data: bool) -> bool {
        match self.mode {
            Mode::Train => true,
            Mode::Auto => data && self.masks.is_empty(),
            Mode::Weights | Mode::Text => false,
        }
    }

    fn refuses(&self, target: Target, data: bool) -> Option<&'static str> {
        let free = self.trains(data) && self.shape == Shape::Layers;
        (target == Target::Dense && free)
            .then_some("training may cut hidden dimensions, and blocks with their LayerNorms")
    }
}

impl Prune {
    /// The text that the pass goes by, of that which there is; `data`: whether there is text to train on.
    fn text<T>(&self, text: Option<T>, data: bool) -> Result<Option<T>> {
        match self.mode {
            Mode::Text if text.is_none() => {
                let found = "\"text\", without calibration text".into();
                Err(refusal("mode", found, "a text by --calib, or mode=weights"))
            }
            Mode::Train if !data => {
                let found = "\"train\", without text to train on".into();
                Err(refusal("mode", found, "a file by --data, or mode=text"))
            }
            Mode::Weights => Ok(None),
            _ => Ok(text),
        }
    }

    /// Every target that is a number.
    fn targets(&self) -> [f64; 4] {
        [self.sparsity, self.flops, self.speedup, self.params as f64]
    }

    /// Updates of masks and weights, where a pass over the texts takes `epoch`.
    fn gate_steps(&self, epoch: usize) -> usize {
        match self.steps {
            0 => (5 * epoch).clamp(600, 2000),
            steps => steps,
        }
    }

    /// Updates after the cut.
    fn finetune_steps(&self, epoch: usize) -> usize {
        match self.finetune {
            0 => self.gate_steps(epoch),
            steps => steps,
        }
    }

    /// A gate has to travel from ln 100 to below -1.6, at about one rate an update, within a fraction of the
    /// warm-up; CoFi's own 0.01 is for runs of many thousand updates.
    fn mask_rate(&self, steps: usize) -> f32 {
        match self.mask_rate {
            0.0 => (50.0 / steps as f32).max(0.01),
            rate => rate as f32,
        }
    }

    /// Up to a half one round is as good as four, and takes a quarter of the time.
    fn rounds_for(&self, budget: &Budget) -> usize {
        match self.rounds {
            0 if budget.target <= 0.5 => 1,
            0 => 4,
            rounds => rounds,
        }
    }

    /// With one round it is not better (README).
    fn rearranges(&self, budget: &Budget) -> bool {
        match self.rearrange {
            Rearrange::Auto => self.rounds_for(budget) > 1,
            Rearrange::Always => true,
            Rearrange::Never => false,
        }
    }

    /// Cuts `model`, which is `before`, by what the weights or a text say of it; what it was cut by.
    fn without_training(
        &self,
        model: &mut Model,
        before: &Model,
        budget: &Budget,
        text: Option<&Calibration>,
        cx: &Context,
    ) -> Result<Masks> {
        if self.shape == Shape::Uniform {
            search::check_uniform(model, budget, self.round_to)?;
        }
        let mut kept: Vec<Kept> = before.layers.iter().map(Kept::all).collect();
        // What weights say of one part does not depend on the others: rounds would cut the same.
        let rounds = if text.is_some() { self.rounds_for(budget) } else { 1 };
        let rearranged = text.is_some() && self.rearranges(budget);
        for round in 1..=rounds {
            let scores = match text {
                None => scores::from_weights(model)?,
                Some(text) => {
                    let rows = if rearranged { rearrange::ROWS } else { 0 };
                    scores::fisher(model, text, rows, cx)?
                }
            };
            model.release(); // scoring has read all of it, the rest goes layer by layer
            let allowed = budget.after(round, rounds);
            let mut next = match self.shape {
                Shape::Layers => search::by_layer(model, &scores, budget, allowed, self.round_to),
                Shape::Uniform => search::uniform(model, &scores, budget, allowed, self.round_to),
            };
            if rearranged {
                next = next.par_iter().enumerate().map(|(l, k)| scores.rearranged(l, k)).collect();
            }
            // Each round starts from the weights as they were: what the repair before it made of them was for
            // what it had, and its ridge would count again.
            for (l, next) in next.iter().enumerate() {
                kept[l] = kept[l].of(next);
                model.layers[l] = cut(&before.layers[l], &kept[l])?;
            }
            if self.repair {
                match cx.calibration {
                    Some(text) => repair::with_text(before, model, text, cx)?,
                    None => repair::bias(before, model, &kept)?,
                }
            }
        }
        let ones = |kept: &[usize], n: usize| {
            (0..n).map(|i| f32::from(u8::from(kept.binary_search(&i).is_ok()))).collect()
        };
        let all = Masks::ones(before);
        let row = |k: &Kept, heads: &Vec<f32>| ones(&k.heads, heads.len());
        Ok(Masks {
            heads: kept.iter().zip(&all.heads).map(|(k, h)| row(k, h)).collect(),
            units: kept.iter().zip(&all.units).map(|(k, u)| ones(&k.units, u.len())).collect(),
            ..all
        })
    }

    /// What is reported of a model that was cut by `masks`.
    fn work(&self, before: &Model, after: &Model, masks: &Masks, notes: Vec<String>) -> Work {
        let mut files = Vec::new();
        if self.save_masks {
            files.push(("masks.safetensors", masks::tensors(masks, before)));
        }
        let config = &before.config;
        let mut left = Open::all(before);
        left.cut(masks);
        let blocks = |m: &Model| m.layers.iter().map(cost::prunable).sum::<usize>() as f64;
        let encoder = |m: &Model| {
            let cost = cost::Cost::of(m);
            (cost.attention.params + cost.ffn.params) as f64
        };
        let gone = |of: &dyn Fn(&Model) -> f64| 1.0 - of(after) / of(before).max(1.0);
        let figures = BTreeMap::from([
            ("cofi_hard_sparsity", 1.0 - Price::hard(config).of(&left) / price::prunable(config)),
            ("block_sparsity", gone(&blocks)),
            ("encoder_sparsity", gone(&encoder)),
        ]);
        Work { changes: changes(before, after), notes, files, figures, ..Work::default() }
    }

    /// What was done by what, for the report.
    fn note(&self, budget: &Budget, text: Option<&Calibration>, cx: &Context) -> String {
        let mut note = match text {
            None => "mode weights: variance that each head and unit adds".to_string(),
            Some(text) => format!(
                "mode text: Fisher scores of {} texts ({}, {})",
                report::count(text.batches.iter().map(|b| b.texts() as u64).sum()),
                text.source,
                if text.targets.is_some() { "with labels" } else { "no labels" },
            ),
        };
        let rounds = self.rounds_for(budget);
        if text.is_some() && rounds > 1 {
            note += &format!(", {rounds} rounds");
        }
        if text.is_some() && self.rearranges(budget) {
            note += ", rearranged";
        }
        note + match (self.repair, cx.calibration) {
            (false, _) => ", no repair",
            (true, Some(_)) => ", least-squares repair",
            (true, None) => ", repair of biases",
        }
    }
}

/// Refuses a model of which nothing can be cut.
fn check_whole(model: &Model) -> Result<()> {
    if model.tokens.is_some() {
        return Err(Error::Mismatch {
            found: "the model drops tokens by a schedule".into(),
            expected: "that was found for the heads that are there".into(),
            advice: "prune the checkpoint as it was before `tokens`, then run `tokens`",
        });
    }
    let mut linears = model.layers.iter().flat_map(|layer| layer.linears());
    linears.try_for_each(|(_, linear)| linear.weight.dense().map(drop))
}

fn refusal(option: &'static str, found: String, expected: &str) -> Error {
    Error::Option { pass: "prune", option, found, expected: expected.into() }
}

/// What a layer keeps: positions among the heads and units it has, ascending.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Kept {
    heads: Vec<usize>,
    units: Vec<usize>,
}

impl Kept {
    fn all(layer: &Layer) -> Kept {
        Kept {
            heads: (0..layer.attention.as_ref().map_or(0, |a| a.heads.len())).collect(),
            units: (0..layer.ffn.as_ref().map_or(0, |f| f.units())).collect(),
        }
    }

    /// What is left when `next` is kept of this.
    fn of(&self, next: &Kept) -> Kept {
        Kept {
            heads: next.heads.iter().map(|&h| self.heads[h]).collect(),
            units: next.units.iter().map(|&u| self.units[u]).collect(),
        }
    }
}

fn cut(layer: &Layer, kept: &Kept) -> Result<Layer> {
    let attention = match &layer.attention {
        Some(a) if kept.heads.len() < a.heads.len() => Some(a.select_heads(&kept.heads)?),
        other => other.clone(),
    };
    let ffn = match &layer.ffn {
        Some(f) if kept.units.len() < f.units() => Some(f.select_units(&kept.units)?),
        other => other.clone(),
    };
    Ok(Layer { attention, ffn, bottleneck: layer.bottleneck.clone() })
}

/// One entry for every matrix whose shape or values changed, those of blocks that are gone among them.
fn changes(before: &Model, after: &Model) -> Vec<Change> {
    let mut changes = Vec::new();
    let mut add = |b: &Linear, a: Option<&Linear>| {
        let bytes = |l: &Linear| l.weight.tensors()[0].bytes().as_ptr();
        match a {
            Some(a) if bytes(b) == bytes(a) => {}
            Some(a) => changes.push(Change::new(b, a, None)),
            None => changes.push(Change::gone(b)),
        }
    };
    let table = |m: &Model| Linear::table(&m.embeddings.word);
    add(&table(before), Some(&table(after)));
    for (b, a) in before.layers.iter().zip(&after.layers) {
        let left = a.linears();
        for (role, b) in b.linears() {
            add(b, left.iter().find(|(r, _)| *r == role).map(|(_, a)| *a));
        }
    }
    for (b, a) in before.head.linears().into_iter().zip(after.head.linears()) {
        add(b, Some(a));
    }
    changes
}
