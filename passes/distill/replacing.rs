//! Module replacing: layers of the teacher stand in for the student's, ever fewer (Xu et al. 2020).

use crate::Result;
use crate::runtime::{Batch, Encoder};
use crate::train::distillation::Distillation;
use crate::train::objective::{Moment, Objective, Path, Seen, Verdict};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use std::borrow::Cow;

/// What distillation trains for, on a path through layers of both models.
#[derive(Debug)]
pub struct Replacing<'a> {
    /// Without terms that compare states.
    pub distillation: Distillation<'a>,
    /// Share of layers that are the compressed ones at the start.
    pub from: f64,
    /// Updates after which all layers are.
    pub until: f64,
    pub seed: u64,
}

impl Replacing<'_> {
    /// Share of layers that are the compressed ones before update `update` (Xu et al. 2020, §3.3: linear).
    pub fn share(&self, update: u32) -> f64 {
        match update as f64 >= self.until {
            true => 1.0,
            false => self.from + (1.0 - self.from) * update as f64 / self.until,
        }
    }
}

impl Objective for Replacing<'_> {
    fn input<'a>(&self, batch: &'a Batch, at: Moment) -> (Cow<'a, Batch>, Vec<Option<u32>>) {
        self.distillation.input(batch, at)
    }

    fn path<'a>(&'a self, encoder: &'a Encoder<'a>, at: Moment) -> Path<'a> {
        let mut path = Path::of(encoder);
        let share = self.share(at.update);
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream((at.update as u64) << 20 | at.part as u64);
        for (l, layer) in path.layers.iter_mut().enumerate() {
            let drawn = (rng.next_u32() >> 8) as f64 / (1u32 << 24) as f64;
            if drawn >= share {
                *layer = &self.distillation.teacher.layers[l];
                path.own[l] = false;
            }
        }
        path
    }

    fn loss(&self, seen: &Seen) -> Result<Verdict> {
        self.distillation.loss(seen)
    }

    fn judge(&self, encoder: &Encoder) -> Result<Option<f64>> {
        self.distillation.judge(encoder)
    }
}
