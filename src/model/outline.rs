//! A model before its numbers are there: what a plan reckons with.

use super::*;
use crate::checkpoint::weight_files;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// The least and the greatest that a number may be; the same where it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "[u64; 2]", into = "[u64; 2]")]
pub struct Bounds {
    pub low: u64,
    pub high: u64,
}

impl From<[u64; 2]> for Bounds {
    fn from([low, high]: [u64; 2]) -> Bounds {
        Bounds { low, high }
    }
}

impl From<Bounds> for [u64; 2] {
    fn from(bounds: Bounds) -> [u64; 2] {
        [bounds.low, bounds.high]
    }
}

impl Bounds {
    pub fn is_exact(self) -> bool {
        self.low == self.high
    }

    pub fn contains(self, found: u64) -> bool {
        (self.low..=self.high).contains(&found)
    }

    /// Around all of `values`; of none it is 0.
    pub fn around(values: impl IntoIterator<Item = u64>) -> Bounds {
        let mut values = values.into_iter();
        let first = values.next().unwrap_or(0);
        values.fold(Bounds { low: first, high: first }, |b, n| Bounds {
            low: b.low.min(n),
            high: b.high.max(n),
        })
    }
}

/// Models without data ([`Tensor::blank`]) between which an outcome lies: each of its numbers is between the least and
/// the greatest of theirs. One model where all is known.
#[derive(Debug, Clone)]
pub struct Outline {
    models: Vec<Model>,
    /// Whether the layers' widths are open: their sum is known, and not how it is spread.
    pub uneven: bool,
    /// Parameters, where forms stand for the same ones whatever the models say.
    held: Option<Bounds>,
    /// Bytes that the layers' matrices take at most, whatever the models say.
    layers_at_most: Option<usize>,
    /// As that, of the weight file, until something changes it again.
    file_at_most: Option<u64>,
}

/// Bytes by which the entry of a tensor in a file's header may differ when its shape does: the digits of two
/// dimensions and two offsets.
const ENTRY: u64 = 16;

impl Outline {
    pub fn new(model: Model) -> Outline {
        Outline {
            models: vec![model],
            uneven: false,
            held: None,
            layers_at_most: None,
            file_at_most: None,
        }
    }

    pub fn models(&self) -> &[Model] {
        &self.models
    }

    /// Whether nothing is open.
    pub fn is_exact(&self) -> bool {
        self.models.len() == 1 && self.layers_at_most.is_none()
    }

    /// Rewrites every model in the same way.
    ///
    /// # Errors
    /// The first of `rewrite`.
    pub fn each(&mut self, rewrite: impl FnMut(&mut Model) -> Result<()>) -> Result<()> {
        self.file_at_most = None;
        self.models.iter_mut().try_for_each(rewrite)
    }

    /// Puts into the place of every model those between which what becomes of it lies.
    ///
    /// # Errors
    /// The first of `spread`.
    pub fn spread(&mut self, spread: impl FnMut(&Model) -> Result<Vec<Model>>) -> Result<()> {
        self.file_at_most = None;
        let spread: Vec<Vec<Model>> = self.models.iter().map(spread).collect::<Result<_>>()?;
        self.models = spread.into_iter().flatten().collect();
        Ok(())
    }

    /// Says that parameters stay as they are, before models are made of other widths to bound how they are stored.
    pub fn hold_params(&mut self) {
        self.held = Some(self.params());
    }

    /// Says that a budget holds: bytes of the layers' matrices, and of the weight file as it is now.
    pub fn cap(&mut self, layers: usize, file: Option<u64>) {
        (self.layers_at_most, self.file_at_most) = (Some(layers), file);
    }

    /// Logical parameters.
    pub fn params(&self) -> Bounds {
        if let Some(held) = self.held {
            return held;
        }
        Bounds::around(self.models.iter().map(|m| cost::Cost::of(m).total.params as u64))
    }

    /// FLOPs of one text of `tokens` tokens.
    pub fn flops(&self, tokens: usize) -> Bounds {
        Bounds::around(self.models.iter().map(|m| 2 * cost::macs(m, 1, tokens)))
    }

    /// Bytes of all tensors, without headers.
    pub fn bytes(&self) -> Bounds {
        let each: Vec<u64> =
            self.models.iter().map(|m| cost::Cost::of(m).total.bytes as u64).collect();
        let mut bounds = Bounds::around(each.iter().copied());
        if let Some(at_most) = self.layers_at_most {
            bounds.high = self.capped(at_most, &each);
            bounds.low = bounds.low.min(bounds.high);
        }
        bounds
    }

    /// Bytes of the weight files, split at `max_shard_bytes`.
    ///
    /// # Errors
    /// As [`weight_files`].
    pub fn file_bytes(&self, max_shard_bytes: u64) -> Result<Bounds> {
        let files = |m: &Model| weight_files(&m.compacted().tensors(), max_shard_bytes);
        let file = |m: &Model| Ok(files(m)?.iter().map(|(_, bytes)| bytes).sum());
        let mut bounds = self.bytes_by(true, file)?;
        if let Some(at_most) = self.file_at_most.filter(|bytes| *bytes <= max_shard_bytes) {
            bounds.high = bounds.high.min(at_most);
        }
        bounds.low = bounds.low.min(bounds.high);
        Ok(bounds)
    }

    /// Bytes of the files of which `file` says how large they are for one model. `packed`: whether the layers' matrices
    /// take in them about what their forms are stored in, so that a budget of the layers holds there too.
    ///
    /// # Errors
    /// The first of `file`.
    pub fn bytes_by(
        &self,
        packed: bool,
        file: impl Fn(&Model) -> Result<u64> + Sync + Send,
    ) -> Result<Bounds> {
        // Corners of corners are hundreds of models.
        let each: Vec<u64> = self.models.par_iter().map(file).collect::<Result<_>>()?;
        let mut bounds = Bounds::around(each.iter().copied());
        if let Some(at_most) = self.layers_at_most.filter(|_| packed) {
            bounds.high = self.capped(at_most, &each);
        }
        if self.uneven {
            let entries = |m: &Model| m.layers.iter().map(|l| l.linears().len() * 6 + 4).sum();
            let slack = ENTRY * self.models.iter().map(entries).max().unwrap_or(0) as u64;
            bounds.low = bounds.low.saturating_sub(slack);
            bounds.high += slack;
        }
        bounds.low = bounds.low.min(bounds.high);
        Ok(bounds)
    }

    /// Bits stored for each weight of the layers' matrices, in thousandths.
    pub fn millibits(&self) -> Bounds {
        let bits = |m: &Model| (1e3 * cost::bits_per_weight(m)).round() as u64;
        let mut bounds = Bounds::around(self.models.iter().map(bits));
        if let Some(at_most) = self.layers_at_most {
            let weights = |m: &Model| m.layers.iter().flat_map(weights).map(|w| w.params()).sum();
            let fewest: usize = self.models.iter().map(weights).min().unwrap_or(1);
            bounds.high = bounds.high.min((8e3 * at_most as f64 / fewest.max(1) as f64) as u64);
            bounds.low = bounds.low.min(bounds.high);
        }
        bounds
    }

    /// The greatest of `bytes`, one number a model, with no more for the layers' matrices than `at_most`: in forms of any of
    /// the models.
    fn capped(&self, at_most: usize, bytes: &[u64]) -> u64 {
        let (mut others, mut layers) = (0, 0);
        for (model, bytes) in self.models.iter().zip(bytes) {
            let here = layer_bytes(model);
            others = others.max(bytes.saturating_sub(here as u64));
            layers = layers.max(here);
        }
        others + at_most.min(layers) as u64
    }
}

/// Bytes stored for the matrices of the layers.
pub fn layer_bytes(model: &Model) -> usize {
    model.layers.iter().flat_map(weights).map(Weight::bytes).sum()
}

fn weights(layer: &Layer) -> impl Iterator<Item = &Weight> {
    layer.linears().into_iter().map(|(_, linear)| &linear.weight)
}

impl Layer {
    /// With so many heads and units, whichever they are; of a layer without data. A block that loses the last of them
    /// is gone.
    ///
    /// # Errors
    /// If a matrix is packed.
    pub fn resized(&self, heads: usize, units: usize) -> Result<Layer> {
        let mut layer = self.clone();
        if let Some(a) = layer.attention.as_mut().filter(|a| a.heads.len() != heads) {
            let (width, hidden) = (heads * a.head_dim, a.output.weight.rows());
            for linear in [&mut a.query, &mut a.key, &mut a.value] {
                *linear = linear.resized(width, hidden)?;
            }
            a.output = a.output.resized(hidden, width)?;
            a.heads = (0..heads).collect();
        }
        if let Some(f) = layer.ffn.as_mut().filter(|f| f.units() != units) {
            let hidden = f.down.weight.rows();
            (f.up, f.down) = (f.up.resized(units, hidden)?, f.down.resized(hidden, units)?);
        }
        let had = |n: Option<usize>| n.is_some_and(|n| n > 0);
        if heads == 0 && had(self.attention.as_ref().map(|a| a.heads.len())) {
            layer.attention = None;
        }
        if units == 0 && had(self.ffn.as_ref().map(FeedForward::units)) {
            layer.ffn = None;
        }
        Ok(layer)
    }
}

impl Linear {
    fn resized(&self, rows: usize, cols: usize) -> Result<Linear> {
        let blank = |t: &Tensor, shape: &[usize]| Tensor::blank(t.name.clone(), t.dtype, shape);
        let weight = Weight::Dense(blank(self.weight.dense()?, &[rows, cols]));
        let bias = self.bias.as_ref().map(|bias| blank(bias, &[rows]));
        Ok(Linear { weight, bias, ..self.clone() })
    }
}
