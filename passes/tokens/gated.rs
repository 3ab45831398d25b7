//! Bins and sites that are trained with the weights, under a constraint on the FLOPs (ToP notes, §2 to §5).

use super::budget::Budget;
use crate::Result;
use crate::model::{Score, TokenSchedule};
use crate::runtime::{Batch, Encoder};
use crate::train::backward::Back;
use crate::train::distillation::Distillation;
use crate::train::gates;
use crate::train::keep::Keep;
use crate::train::lagrangian::{Lagrangian, Warmup};
use crate::train::objective::{Group, Moment, Objective, Path, Rate, Seen, Verdict};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use std::borrow::Cow;

/// Distillation under a schedule that is drawn anew for every batch.
pub struct Gated<'a> {
    pub inner: Distillation<'a>,
    pub budget: &'a Budget<'a>,
    pub score: Score,
    /// By site, `[bins]`: logits of the rank masks.
    pub bins: Vec<Vec<f32>>,
    /// `[sites]`: logits of the gates, which open a site.
    pub sites: Vec<f32>,
    pub lagrangian: Lagrangian,
    /// Of the share of the FLOPs that is gone.
    pub warmup: Warmup,
    /// The update from which sites are no longer drawn: each is as open as it is by then, for good. A site is a large
    /// part of what may go, and one that hovers at a half leaves what is expected far from what is cut.
    pub decided: u32,
    /// Learning rate of the logits.
    pub rate: f32,
    /// Logits go no lower.
    pub least: f32,
    pub seed: u64,
}

/// Learning rate of the multipliers (notes, §5.2), however fast the gates are: in a short run they would swing.
const LAMBDA: f32 = 0.02;

/// What is drawn for a batch.
struct Drawn {
    /// By site: masks of the bins.
    bins: Vec<Vec<f32>>,
    /// By site: before it is taken for open or shut.
    sites: Vec<f32>,
}

impl Gated<'_> {
    fn draw(&self, at: Moment) -> Drawn {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        // Streams of their own: 0 and up are those of shuffling and of hidden tokens.
        rng.set_stream(1 << 63 | (at.update as u64) << 20 | at.part as u64);
        let bins = self.bins.iter().map(|row| gates::sample(row, &mut rng)).collect();
        let sites = match at.update >= self.decided {
            true => (0..self.sites.len()).map(|i| f32::from(u8::from(self.open(i)))).collect(),
            false => gates::sample(&self.sites, &mut rng),
        };
        Drawn { bins, sites }
    }

    /// Whether a site is more open than shut.
    fn open(&self, site: usize) -> bool {
        gates::open(self.sites[site]) >= 0.5
    }

    /// How open each site is in expectation.
    fn sites_at(&self, update: u32) -> Vec<f64> {
        let open = |i: usize| match update >= self.decided {
            true => f64::from(u8::from(self.open(i))),
            false => gates::open(self.sites[i]) as f64,
        };
        (0..self.sites.len()).map(open).collect()
    }

    /// Share of the tokens that each site is expected to leave of what it gets: `1 - (1 - mean P(bin)) · P(site)`.
    fn rates(&self, update: u32) -> Vec<f64> {
        let sites = self.sites_at(update);
        let rate = |(row, site): (&Vec<f32>, f64)| 1.0 - (1.0 - mean_open(row)) * site;
        self.bins.iter().zip(sites).map(rate).collect()
    }

    /// Share of the FLOPs that is expected to go.
    pub fn expected(&self, update: u32) -> f64 {
        1.0 - self.budget.expected(self.score, &self.rates(update))
    }

    /// Its derivative by the share that each site leaves.
    fn slopes(&self, rates: &[f64]) -> Vec<f64> {
        const STEP: f64 = 1e-4;
        let at = |site: usize, by: f64| {
            let mut rates = rates.to_vec();
            rates[site] += by;
            self.budget.expected(self.score, &rates)
        };
        (0..rates.len()).map(|site| (at(site, -STEP) - at(site, STEP)) / (2.0 * STEP)).collect()
    }

    /// The schedule to evaluate and to end with (notes, §2): as many bins of a row go as are expected to, those with
    /// the smallest logits; a site that is more shut than open drops nothing. With `flops`, bins nearest to being
    /// the other way are turned off or on until the schedule leaves as much of the budget's texts as fits.
    pub fn settled(&self, flops: Option<f64>) -> TokenSchedule {
        let mut schedule = TokenSchedule { score: self.score, ..self.budget.like.clone() };
        for (i, &site) in self.budget.sites.iter().enumerate().filter(|(i, _)| self.open(*i)) {
            let mask = gates::deterministic(&self.bins[i]);
            schedule.layers[site] = Some(mask.into_iter().map(|z| z > 0.0).collect());
        }
        if let Some(flops) = flops {
            self.meet(flops, &mut schedule);
        }
        for layer in &mut schedule.layers {
            *layer = layer.take().filter(|bins| bins.contains(&false));
        }
        schedule
    }

    fn meet(&self, flops: f64, schedule: &mut TokenSchedule) {
        let share = |s: &TokenSchedule| self.budget.share(s);
        // The bins of open sites by how near they are to the other side: (logit, layer, bin).
        let candidates = |schedule: &TokenSchedule, on: bool| {
            let mut all: Vec<(f32, usize, usize)> = Vec::new();
            for (row, &layer) in self.bins.iter().zip(&self.budget.sites) {
                let Some(bins) = &schedule.layers[layer] else { continue };
                let some = bins.iter().zip(row).enumerate().filter(|(_, (b, _))| **b == on);
                all.extend(some.map(|(bin, (_, &logit))| (logit, layer, bin)));
            }
            // Of equal logits the last rank goes first, and comes last.
            all.sort_by(|a, b| a.0.total_cmp(&b.0).then(b.2.cmp(&a.2)));
            all
        };
        let set = |schedule: &mut TokenSchedule, layer: usize, bin: usize, on: bool| {
            if let Some(bins) = &mut schedule.layers[layer] {
                bins[bin] = on;
            }
        };
        for (_, layer, bin) in candidates(schedule, true) {
            if share(schedule) <= flops {
                break;
            }
            set(schedule, layer, bin, false);
        }
        for (_, layer, bin) in candidates(schedule, false).into_iter().rev() {
            set(schedule, layer, bin, true);
            if share(schedule) > flops {
                set(schedule, layer, bin, false);
            }
        }
    }
}

fn mean_open(row: &[f32]) -> f64 {
    row.iter().map(|&logit| gates::open(logit) as f64).sum::<f64>() / row.len() as f64
}

impl Objective for Gated<'_> {
    fn input<'a>(&self, batch: &'a Batch, at: Moment) -> (Cow<'a, Batch>, Vec<Option<u32>>) {
        self.inner.input(batch, at)
    }

    fn path<'a>(&'a self, encoder: &'a Encoder<'a>, at: Moment) -> Path<'a> {
        self.inner.path(encoder, at)
    }

    fn importance(&self) -> Option<Score> {
        self.inner.importance()
    }

    fn keep(&self, at: Moment) -> Option<Keep> {
        let Drawn { bins, sites } = self.draw(at);
        let mut values = vec![None; self.budget.like.layers.len()];
        let drawn = self.budget.sites.iter().zip(bins).zip(sites);
        for ((&layer, bins), site) in drawn {
            // A shut site keeps all. Its draw was cut off at 0 and has no slope: nothing is asked of its bins.
            values[layer] = (site > 0.0).then_some(bins);
        }
        let like = TokenSchedule { score: self.score, ..self.budget.like.clone() };
        Some(Keep::new(&like, values))
    }

    fn loss(&self, seen: &Seen) -> Result<Verdict> {
        let mut verdict = self.inner.loss(seen)?;
        let update = seen.at.update;
        let penalty = self.lagrangian.value(self.expected(update), self.warmup.target(update));
        verdict.losses.push(("flops", penalty));
        Ok(verdict)
    }

    fn parameters(&mut self) -> Vec<(Group, &mut Vec<f32>)> {
        let group = |rate| Group { rate: Rate::Constant(rate), decay: 0.0, clipped: false };
        let rate = self.rate;
        let mut all = self.inner.parameters();
        all.extend(self.bins.iter_mut().map(|row| (group(rate), row)));
        all.push((group(rate), &mut self.sites));
        all.push((group(-LAMBDA), &mut self.lagrangian.lambdas));
        all
    }

    fn keep_gradients(&self, _keep: &Keep, backs: &[Back], at: Moment) -> Vec<Vec<f32>> {
        let drawn = self.draw(at);
        let (gone, target) = (self.expected(at.update), self.warmup.target(at.update));
        let slope = self.lagrangian.slope(gone, target);
        let slopes = self.slopes(&self.rates(at.update));
        let sites = self.sites_at(at.update);
        let mut all = Vec::with_capacity(self.bins.len() + 2);
        let mut by_site = vec![0.0; self.sites.len()];
        for (i, &layer) in self.budget.sites.iter().enumerate() {
            let logits = &self.bins[i];
            let mut sums = vec![0.0; logits.len()];
            for back in backs.iter().filter(|b| !b.bins[layer].is_empty()) {
                sums.iter_mut().zip(&back.bins[layer]).for_each(|(s, g)| *s += g);
            }
            let z = &drawn.bins[i];
            let open = drawn.sites[i] > 0.0;
            // Straight through the gate: what is kept falls by 1 - z as it opens.
            let through: f32 = sums.iter().zip(z).map(|(g, z)| -g * (1.0 - z)).sum();
            let shut = 1.0 - mean_open(logits);
            if at.update < self.decided {
                let constraint =
                    slope * slopes[i] * -shut * gates::open_slope(self.sites[i]) as f64;
                by_site[i] = through * gates::slope(drawn.sites[i]) + constraint as f32;
            }
            let each = slope * slopes[i] * sites[i] / logits.len() as f64;
            let bin = |((g, &z), &logit): ((&f32, &f32), &f32)| {
                let data = if open { g * gates::slope(z) } else { 0.0 };
                data + (each * gates::open_slope(logit) as f64) as f32
            };
            all.push(sums.iter().zip(z).zip(logits).map(bin).collect());
        }
        all.push(by_site);
        all.push(self.lagrangian.lambda_gradients(gone, target));
        all
    }

    fn updated(&mut self) {
        let least = self.least;
        self.bins.iter_mut().for_each(|row| gates::clamp(row, least));
        gates::clamp(&mut self.sites, least);
    }

    fn judge(&self, encoder: &Encoder) -> Result<Option<f64>> {
        let encoder = Encoder { tokens: Some(self.settled(None)), ..encoder.clone() };
        self.inner.judge(&encoder)
    }

    fn note(&self, update: u32) -> Option<String> {
        let share = |gone: f64| 1.0 - gone;
        Some(format!(
            "FLOPs {:.3} asked for, {:.3} expected, {:.3} as cut {:?}",
            share(self.warmup.target(update)),
            share(self.expected(update)),
            self.budget.share(&self.settled(None)),
            self.lagrangian.lambdas
        ))
    }
}
