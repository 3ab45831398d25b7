//! Between which schedules the one that is found lies.

use super::budget::Budget;
use super::{BISECTIONS, Mode, Tokens};
use crate::Result;
use crate::eval::latency;
use crate::model::{Model, TokenSchedule, cost};
use crate::pass::{Foresight, Pass, PlanContext};
use crate::report::compute_tokens;

/// By how much of itself a share may miss its budget: bins are whole.
const SLACK: f64 = 0.03;

/// Schedules that a search tries on all texts, in passes of the text through the layers (docs/plan.md).
const TRIED: f64 = 25.0;

impl Tokens {
    /// Roughly, as measured (docs/plan.md).
    pub(super) fn foresight(&self, cx: &PlanContext) -> Foresight {
        let searched = if self.mode == Mode::Ratio { 0.0 } else { TRIED * cx.watch() };
        if !self.trains(cx.data) {
            let times = if self.drop.0 > 0.0 { BISECTIONS as f64 } else { 1.0 };
            return Foresight { seconds: times * searched, copies: 4.0, ..Foresight::default() };
        }
        let steps = if self.steps == 0 { 1000 } else { self.steps };
        let finetune = if self.finetune == 0 { steps } else { self.finetune };
        let seconds = searched + cx.training(steps + finetune, self.batch);
        Foresight { seconds, copies: 12.0, ..Foresight::default() }
    }

    /// Schedules for `model`: where they are searched for or trained, that which drops all it may and that which drops
    /// nothing; else those for texts of all lengths, as the lengths that there will be are not known.
    pub(super) fn schedules(
        &self,
        model: &Model,
        searched: bool,
        trains: bool,
    ) -> Result<Vec<Model>> {
        let mut bare = model.clone();
        bare.tokens = None;
        let longest = latency::max_tokens(&model.config, model.family);
        // A graph holds the bins, and the id of a separator: as many and as large as may come.
        let bins = self.bins_for(trains, &[longest]);
        let protect = if self.protect {
            vec![model.config.vocab.saturating_sub(1) as u32]
        } else {
            Vec::new()
        };
        let budget = |tokens: usize| Budget::new(&bare, [tokens], self.from, bins, protect.clone());
        let any = budget(longest);
        if any.sites.is_empty() {
            return Err(self.no_site());
        }
        let mut schedules: Vec<Option<TokenSchedule>> = Vec::new();
        if !searched {
            let lengths = std::iter::successors(Some(2), |n| Some((n + 1).max(n * 5 / 4)));
            for tokens in lengths.take_while(|n| *n <= longest).chain([longest]) {
                for flops in [self.flops * (1.0 - SLACK), (self.flops * (1.0 + SLACK)).min(1.0)] {
                    let asked = Tokens { flops, ..self.clone() };
                    let found = asked.by_ratio(&bare, &budget(tokens), &mut Vec::new());
                    schedules.extend(found.map(|schedule| schedule.drops().then_some(schedule)));
                }
            }
        }
        // Searched for, or out of reach of texts of any length: the run will say of which.
        if schedules.is_empty() {
            let nothing = vec![0.0; any.sites.len()];
            let all = self.scores().into_iter().map(|score| Some(any.schedule(score, &nothing)));
            schedules.extend([None].into_iter().chain(all));
        }
        let with = |tokens| Model { tokens, ..bare.clone() };
        let mut models: Vec<Model> = schedules.into_iter().map(with).collect();
        if models.len() > 3 {
            let macs = |m: &&Model| cost::macs(m, 1, compute_tokens(m));
            let sites = |m: &&Model| dropping(m); // each takes its part of a graph
            let all = || models.iter();
            let extremes = [
                all().min_by_key(macs),
                all().max_by_key(macs),
                all().min_by_key(sites),
                all().max_by_key(sites),
            ];
            let mut extremes: Vec<Model> = extremes.into_iter().flatten().cloned().collect();
            extremes.dedup_by(|a, b| a.tokens == b.tokens);
            models = extremes;
        }
        Ok(models)
    }
}

/// Layers that drop tokens.
fn dropping(model: &Model) -> usize {
    model.tokens.iter().flat_map(|schedule| &schedule.layers).flatten().count()
}
