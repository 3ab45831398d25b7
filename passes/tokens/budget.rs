//! What a schedule costs: the share of the FLOPs that it leaves, net of padding.

use crate::model::{Model, Reads, Score, TokenSchedule, cost};
use std::collections::BTreeMap;

/// Where tokens may be dropped, by which bins, and the lengths of the texts that a schedule is priced by.
#[derive(Debug, Clone)]
pub struct Budget<'a> {
    model: &'a Model,
    /// Layers that may drop tokens, ascending.
    pub sites: Vec<usize>,
    /// Bins of every layer.
    pub bins: usize,
    /// What a schedule has besides.
    pub like: TokenSchedule,
    /// How many texts there are, by their tokens.
    lengths: BTreeMap<usize, u64>,
    full: f64,
}

impl<'a> Budget<'a> {
    /// Of a model, over texts of `lengths` tokens. Layers before `from` leave all tokens.
    pub fn new(
        model: &'a Model,
        lengths: impl IntoIterator<Item = usize>,
        from: usize,
        bins: usize,
        protect: Vec<u32>,
    ) -> Budget<'a> {
        let mut counts = BTreeMap::new();
        lengths.into_iter().for_each(|n| *counts.entry(n).or_default() += 1);
        let reads = model.reads();
        let sees =
            |l: &usize| model.layers[*l].attention.as_ref().is_some_and(|a| !a.heads.is_empty());
        let mut sites: Vec<usize> = (0..model.layers.len()).filter(sees).collect();
        // Behind the last layer where tokens see each other there is nothing to be saved, but of a mean over
        // what is left.
        if reads != Reads::Left {
            let last = model.layers.iter().rposition(|l| l.attention.is_some());
            sites.retain(|&l| Some(l) != last);
        }
        sites.retain(|&l| l >= from);
        let like = TokenSchedule {
            protect,
            ..TokenSchedule::keep_all(model.layers.len(), Score::First, reads)
        };
        let mut budget = Budget { model, sites, bins, like, lengths: counts, full: 1.0 };
        budget.full = budget.macs(None);
        budget
    }

    fn macs(&self, schedule: Option<&TokenSchedule>) -> f64 {
        let texts = self.lengths.iter();
        texts.map(|(&n, &count)| (count * cost::layer_macs(self.model, schedule, n)) as f64).sum()
    }

    /// FLOPs of the layers that `schedule` leaves, relative to those without one: both as the runtime computes
    /// them, without padding.
    pub fn share(&self, schedule: &TokenSchedule) -> f64 {
        self.macs(Some(schedule)) / self.full
    }

    /// As [`Budget::share`] in expectation, where each site leaves the share `rates` of the tokens it gets. Counts are
    /// rounded up ([`TokenSchedule::left`]), which adds half a token to each that is cut by more than one, and is a
    /// twentieth of the FLOPs where texts have ten tokens.
    pub fn expected(&self, score: Score, rates: &[f64]) -> f64 {
        let layers = self.model.layers.len();
        let mut by_layer = vec![1.0; layers];
        self.sites.iter().zip(rates).for_each(|(&site, &rate)| by_layer[site] = rate);
        let ranked = |l: usize| self.sites.contains(&l).then_some(score);
        let text = |(&n, &count): (&usize, &u64)| {
            let mut left = (n - 1) as f64;
            let mut lengths = vec![1.0 + left];
            for rate in &by_layer {
                left = rate * left + 0.5 * (1.0 - (-(1.0 - rate) * left).exp());
                lengths.push(1.0 + left);
            }
            count as f64 * cost::expected_macs(self.model, &lengths, ranked)
        };
        self.lengths.iter().map(text).sum::<f64>() / self.full
    }

    /// As [`Budget::share`] by the paper's formula ([`paper_macs`]).
    pub fn paper_share(&self, schedule: &TokenSchedule) -> f64 {
        let sum = |schedule: Option<&TokenSchedule>| -> f64 {
            let macs = |n| match schedule {
                Some(schedule) => paper_macs(self.model, &schedule.lengths(n)),
                None => paper_macs(self.model, &vec![n; self.model.layers.len() + 1]),
            };
            self.lengths.iter().map(|(&n, &count)| count as f64 * macs(n)).sum()
        };
        sum(Some(schedule)) / sum(None)
    }

    /// Tokens of the longest text.
    pub fn longest(&self) -> usize {
        self.lengths.keys().next_back().copied().unwrap_or(1)
    }

    /// FLOPs without padding and without a schedule, relative to those of texts padded to `padded` tokens.
    pub fn padding_share(&self, padded: usize) -> f64 {
        let texts: u64 = self.lengths.values().sum();
        self.full / (texts * cost::layer_macs(self.model, None, padded)) as f64
    }

    /// The schedule that leaves, of the tokens besides the first, the shares `left` behind each site: 1 at most,
    /// none above the one before.
    pub fn schedule(&self, score: Score, left: &[f64]) -> TokenSchedule {
        let mut schedule = TokenSchedule { score, ..self.like.clone() };
        let mut before = 1.0;
        for (&site, &share) in self.sites.iter().zip(left) {
            let on = if before > 0.0 { share / before * self.bins as f64 } else { 0.0 };
            let on = (on.round() as usize).min(self.bins);
            schedule.layers[site] =
                (on < self.bins).then(|| (0..self.bins).map(|bin| bin < on).collect());
            before *= on as f64 / self.bins as f64;
        }
        schedule
    }

    /// The most that `family` leaves within `flops`, as a schedule; `None` where even its least is too much.
    /// `family` gives shares by site, for a parameter in [0, 1] that they grow with.
    pub fn within(
        &self,
        flops: f64,
        score: Score,
        family: impl Fn(f64) -> Vec<f64>,
    ) -> Option<Vec<f64>> {
        let fits = |p: f64| self.share(&self.schedule(score, &family(p))) <= flops;
        if fits(1.0) {
            return Some(family(1.0));
        }
        let (mut low, mut high) = (0.0, 1.0);
        if !fits(low) {
            return None;
        }
        for _ in 0..20 {
            let middle = 0.5 * (low + high);
            if fits(middle) { low = middle } else { high = middle }
        }
        Some(family(low))
    }
}

/// Multiply-accumulates of the layers by the formula of ToP's code (notes, §3), for a text of which `lengths` tokens
/// enter each layer and leave the last: attention as wide as what enters, the feed-forward block as what leaves.
pub fn paper_macs(model: &Model, lengths: &[usize]) -> f64 {
    let mut macs = 0.0;
    for (layer, n) in model.layers.iter().zip(lengths.windows(2)) {
        let (n, left) = (n[0] as f64, n[1] as f64);
        if let Some(a) = &layer.attention {
            let linears = [&a.query, &a.key, &a.value, &a.output];
            let params: usize = linears.iter().map(|l| l.weight.params()).sum();
            let heads = a.heads.len() as f64;
            macs += n * params as f64 + n * n * heads * (2 * a.head_dim + 1) as f64;
        }
        if let Some(f) = &layer.ffn {
            macs += left * (f.up.weight.params() + f.down.weight.params()) as f64;
        }
    }
    macs
}
