#![doc = include_str!("README.md")]

#[allow(dead_code)] // not used yet
mod lagrangian;
#[allow(dead_code)] // not used yet
mod measure;
#[allow(dead_code)] // not used yet
mod price;
mod repair;
mod scores;
mod search;
#[cfg(test)]
mod tests;

use crate::model::{Layer, Model, cost};
use crate::pass::{Context, Entry, Pass, Work};
use crate::report::Change;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};

pub const ENTRY: Entry = Entry::new::<Prune>(
    "prune",
    "cut attention heads and feed-forward units out of every layer",
    include_str!("README.md"),
    &[],
);

/// Options of the pass.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Prune {
    /// Share of the parameters of attention and feed-forward blocks to remove, in [0, 1).
    pub sparsity: f64,
    /// How the cut is spread over the layers.
    pub shape: Shape,
    /// What says which heads and units matter.
    pub score: Score,
    /// Refit what is left so that each block's output stays close to the original's.
    pub repair: bool,
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

/// What says which heads and units matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Score {
    /// `fisher` with text, `weights` without.
    Auto,
    Fisher,
    Weights,
}

impl Default for Prune {
    fn default() -> Self {
        Prune { sparsity: 0.25, shape: Shape::Layers, score: Score::Auto, repair: true }
    }
}

impl Pass for Prune {
    fn check(&self) -> Result<()> {
        if !(0.0..1.0).contains(&self.sparsity) {
            return Err(Error::Option {
                pass: "prune",
                option: "sparsity",
                found: self.sparsity.to_string(),
                expected: "a number in [0, 1)".into(),
            });
        }
        Ok(())
    }

    fn run(&self, model: &mut Model, cx: &Context) -> Result<Work> {
        self.check()?;
        if self.sparsity == 0.0 {
            return Ok(Work::default());
        }
        for layer in &model.layers {
            for (_, linear) in layer.linears() {
                linear.weight.dense()?;
            }
        }
        let scores = match (self.score, cx.calibration) {
            (Score::Fisher, None) => {
                return Err(Error::Option {
                    pass: "prune",
                    option: "score",
                    found: "\"fisher\", without calibration text".into(),
                    expected: "a text by --calib, or score=weights".into(),
                });
            }
            (Score::Weights, _) | (Score::Auto, None) => scores::from_weights(model)?,
            (_, Some(text)) => scores::fisher(model, text, cx)?,
        };
        model.release(); // scoring has read all of it, the rest goes layer by layer
        let kept = match self.shape {
            Shape::Layers => search::by_layer(model, &scores, self.sparsity),
            Shape::Uniform => search::uniform(model, &scores, self.sparsity)?,
        };
        let before = model.clone();
        for (layer, kept) in model.layers.iter_mut().zip(&kept) {
            *layer = cut(layer, kept)?;
        }
        if self.repair {
            match cx.calibration {
                Some(text) => repair::with_text(&before, model, text, cx)?,
                None => repair::bias(&before, model, &kept)?,
            }
        }
        Ok(changes(&before, model).into())
    }
}

/// What a layer keeps: positions among the heads and units it has, ascending.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Kept {
    heads: Vec<usize>,
    units: Vec<usize>,
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
    Ok(Layer { attention, ffn })
}

/// One entry for every matrix whose shape or values changed.
fn changes(before: &Model, after: &Model) -> Vec<Change> {
    let mut changes = Vec::new();
    for (b, a) in before.layers.iter().zip(&after.layers) {
        for ((_, b), (_, a)) in b.linears().into_iter().zip(a.linears()) {
            let bytes = |l: &crate::model::Linear| l.weight.tensors()[0].bytes().as_ptr();
            if bytes(b) != bytes(a) {
                changes.push(Change::new(b, a, None));
            }
        }
    }
    changes
}

/// Parameters of one head and of one unit, and of all that can be cut.
fn sizes(model: &Model) -> (usize, usize, usize) {
    let hidden = model.config.hidden;
    let head = model.config.head_dim * (4 * hidden + 3);
    let total = model.layers.iter().map(cost::prunable).sum();
    (head, 2 * hidden + 1, total)
}
