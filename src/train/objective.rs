//! What training is for: the part of the loop that a pass writes.

use super::backward::{Back, Signal};
use super::head::HeadTape;
use super::keep::Keep;
use super::tape::{Dropout, Tape};
use crate::Result;
use crate::model::Score;
use crate::model::slice::Masks;
use crate::runtime::{Batch, Encoder, RunLayer};
use std::borrow::Cow;

/// A point in time of a training run: which update, and which of the batches gathered for it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Moment {
    /// Updates done so far.
    pub update: u32,
    /// Of the batches gathered for one update.
    pub part: u32,
}

/// A way through the layers: those of the model, or others in their place.
#[derive(Debug, Clone)]
pub struct Path<'a> {
    pub layers: Vec<&'a RunLayer<'a>>,
    /// Whether a layer is the model's own, and so is trained.
    pub own: Vec<bool>,
}

impl<'a> Path<'a> {
    /// The model's own layers.
    pub fn of(encoder: &'a Encoder<'a>) -> Path<'a> {
        let layers: Vec<_> = encoder.layers.iter().collect();
        Path { own: vec![true; layers.len()], layers }
    }
}

/// What the loss sees of a forward pass.
pub struct Seen<'a> {
    pub encoder: &'a Encoder<'a>,
    pub batch: &'a Batch,
    /// The tokens of it that the last hidden state has rows for: what the head is run over.
    pub left: &'a Batch,
    /// What was asked of a masked-LM head; else empty.
    pub targets: &'a [Option<u32>],
    /// Under masks without heads and units that are closed.
    pub tapes: &'a [Tape],
    /// Those of [`Objective::masks`], through which the tapes went.
    pub masks: Option<&'a Masks>,
    /// For the head, which the loss runs.
    pub dropout: Dropout,
    pub at: Moment,
}

/// What the loss found.
#[derive(Debug)]
pub struct Verdict {
    /// Its parts by name, weighted: their sum is the loss.
    pub losses: Vec<(&'static str, f64)>,
    /// Gradients with respect to hidden states, to query, key and value, and to the importance of tokens.
    pub signal: Signal,
    /// The head's tape, and the gradient with respect to what it said.
    pub head: Option<(HeadTape, Vec<f32>)>,
    /// Gradients of the objective's own parameters.
    pub own: Vec<Vec<f32>>,
}

/// How a parameter of an objective is trained.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Group {
    pub rate: Rate,
    pub decay: f32,
    /// Whether its gradient counts in clipping and is clipped.
    pub clipped: bool,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rate {
    /// The schedule's, times this.
    Scheduled(f32),
    /// Negative for ascent (multipliers of a constraint).
    Constant(f32),
}

/// What a pass trains for.
pub trait Objective: Sync {
    /// What the model is given of `batch`: a masked-LM objective hides tokens, and says which
    /// (`[tokens]`, the hidden ones' ids).
    fn input<'a>(&self, batch: &'a Batch, _at: Moment) -> (Cow<'a, Batch>, Vec<Option<u32>>) {
        (Cow::Borrowed(batch), Vec::new())
    }

    /// The layers that this batch goes through.
    fn path<'a>(&'a self, encoder: &'a Encoder<'a>, _at: Moment) -> Path<'a> {
        Path::of(encoder)
    }

    /// Multipliers of heads, units, blocks and hidden dimensions.
    fn masks(&self, _at: Moment) -> Option<Masks> {
        None
    }

    /// Which tokens layers keep in this batch; `None`: as the model's own schedule says.
    fn keep(&self, _at: Moment) -> Option<Keep> {
        None
    }

    /// Which importance of tokens the loss looks at, where any: see [`super::tape::importance`].
    fn importance(&self) -> Option<Score> {
        None
    }

    /// The loss of one batch, a mean over its texts, and its gradients.
    ///
    /// # Errors
    /// What running another model refuses.
    fn loss(&self, seen: &Seen) -> Result<Verdict>;

    /// Parameters of its own, in the order of [`Verdict::own`], then of [`Objective::mask_gradients`],
    /// then of [`Objective::keep_gradients`].
    fn parameters(&mut self) -> Vec<(Group, &mut Vec<f32>)> {
        Vec::new()
    }

    /// The gradients of the parameters behind the masks.
    fn mask_gradients(&self, _masks: &Masks, _backs: &[Back], _at: Moment) -> Vec<Vec<f32>> {
        Vec::new()
    }

    /// The gradients of the parameters behind [`Objective::keep`], where it gave any.
    fn keep_gradients(&self, _keep: &Keep, _backs: &[Back], _at: Moment) -> Vec<Vec<f32>> {
        Vec::new()
    }

    /// After every update of the weights and of its own parameters: to bring those back into their range.
    fn updated(&mut self) {}

    /// A few words on where it stands, for the line that a judgement is told in.
    fn note(&self, _update: u32) -> Option<String> {
        None
    }

    /// How good the model is on what it was not trained on: lower is better. `None` when there is nothing
    /// to judge by.
    ///
    /// # Errors
    /// As [`Encoder::forward`].
    fn judge(&self, encoder: &Encoder) -> Result<Option<f64>>;
}
