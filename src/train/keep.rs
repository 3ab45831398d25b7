//! Tokens that layers drop in training: a schedule whose bins are on by degrees, and the way through it and
//! back (ToP notes, §2).

use crate::model::TokenSchedule;
use crate::runtime::Batch;
use crate::runtime::tokens::rows;

/// How much of the tokens of each bin layers keep.
///
/// A token whose bin has the value 0 is dropped; the states of the others are multiplied by the values of
/// theirs. The first token of a text, and ranks below the schedule's `least`, have the value 1.
#[derive(Debug, Clone, PartialEq)]
pub struct Keep {
    /// Its bins are on where the value is above 0.
    pub schedule: TokenSchedule,
    /// By layer, `[bins]`, in [0, 1].
    pub values: Vec<Option<Vec<f32>>>,
}

impl Keep {
    /// `values`, with all else as in `like`.
    pub fn new(like: &TokenSchedule, values: Vec<Option<Vec<f32>>>) -> Keep {
        let on = |values: &Vec<f32>| values.iter().map(|v| *v > 0.0).collect();
        let layers = values.iter().map(|layer| layer.as_ref().map(on)).collect();
        Keep { schedule: TokenSchedule { layers, ..like.clone() }, values }
    }

    /// The tokens of `batch` that go on behind `layer`, ascending, each with its bin; `None` where no bin has a
    /// say. `scores`, `[tokens]`, is what they are ranked by.
    fn kept(&self, layer: usize, batch: &Batch, scores: &[f32]) -> Vec<(usize, Option<usize>)> {
        let values = self.values[layer].as_deref().unwrap_or(&[1.0]);
        let mut kept = Vec::with_capacity(batch.tokens());
        for span in batch.starts.windows(2) {
            let span = span[0]..span[1];
            let ranked = self.schedule.ranked(&batch.ids[span.clone()], &scores[span.clone()]);
            let (n, least) = (ranked.len(), self.schedule.least);
            let bin = |rank: usize| (rank >= least).then(|| rank * values.len() / n);
            let first = kept.len();
            kept.push((span.start, None));
            let tokens = ranked.into_iter().enumerate();
            let tokens = tokens.map(|(rank, token)| (span.start + token, bin(rank)));
            kept.extend(tokens.filter(|(_, bin)| bin.is_none_or(|b| values[b] > 0.0)));
            kept[first..].sort_unstable();
        }
        kept
    }
}

impl From<&TokenSchedule> for Keep {
    /// The values 1 and 0.
    fn from(schedule: &TokenSchedule) -> Keep {
        let value = |bins: &Vec<bool>| bins.iter().map(|&on| f32::from(u8::from(on))).collect();
        let values = schedule.layers.iter().map(|layer| layer.as_ref().map(value)).collect();
        Keep { schedule: schedule.clone(), values }
    }
}

/// Which tokens of a group of texts go on behind a layer.
#[derive(Debug)]
pub struct Left {
    /// Which of the layer's rows, ascending, each with its bin; `None` where no bin has a say.
    pub kept: Vec<(usize, Option<usize>)>,
    /// `[kept]`: where in the group they stand.
    pub tokens: Vec<usize>,
    /// They alone.
    pub batch: Batch,
    /// `[bins]`
    values: Vec<f32>,
    /// `[kept, hidden]`: their states before they are multiplied.
    pub x: Vec<f32>,
}

impl Left {
    /// Of what `layer` gives out, `y`, `[tokens, hidden]`, for the tokens of `batch`, which stand at `tokens` of
    /// their group and are ranked by `scores`.
    pub(super) fn of(
        (keep, layer): (&Keep, usize),
        (batch, tokens): (&Batch, &[usize]),
        scores: &[f32],
        y: &[f32],
    ) -> Left {
        let kept = keep.kept(layer, batch, scores);
        let at: Vec<usize> = kept.iter().map(|&(row, _)| row).collect();
        Left {
            tokens: at.iter().map(|&row| tokens[row]).collect(),
            batch: batch.select(&at),
            values: keep.values[layer].clone().unwrap_or_default(),
            x: rows(y, y.len() / batch.tokens(), &at),
            kept,
        }
    }

    /// Which of the layer's rows go on.
    pub(super) fn rows(&self) -> Vec<usize> {
        self.kept.iter().map(|&(row, _)| row).collect()
    }

    /// The hidden state behind the layer, `[kept, hidden]`.
    pub(super) fn states(&self) -> Vec<f32> {
        let mut x = self.x.clone();
        self.multiply(&mut x);
        x
    }

    fn multiply(&self, x: &mut [f32]) {
        let width = x.len() / self.kept.len();
        for ((_, bin), row) in self.kept.iter().zip(x.chunks_exact_mut(width)) {
            if let Some(value) = bin.map(|bin| self.values[bin]) {
                row.iter_mut().for_each(|x| *x *= value);
            }
        }
    }

    /// From `grad` with respect to [`Left::states`] to the one with respect to what the layer gave out: into
    /// `out`, `[tokens, hidden]`, whose rows of dropped tokens stay as they are. Returns the gradient with
    /// respect to each bin's value; 0 where it is 0, and has no slope.
    pub(super) fn back(&self, mut grad: Vec<f32>, out: &mut [f32]) -> Vec<f32> {
        let width = grad.len() / self.kept.len();
        let mut bins = vec![0.0; self.values.len()];
        let pairs = grad.chunks_exact(width).zip(self.x.chunks_exact(width));
        for ((_, bin), (grad, x)) in self.kept.iter().zip(pairs) {
            if let Some(bin) = *bin {
                bins[bin] += grad.iter().zip(x).map(|(g, x)| g * x).sum::<f32>();
            }
        }
        self.multiply(&mut grad);
        for ((row, _), grad) in self.kept.iter().zip(grad.chunks_exact(width)) {
            out[row * width..(row + 1) * width].copy_from_slice(grad);
        }
        bins
    }
}
