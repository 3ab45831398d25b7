//! How much of a model may be left, in the terms that the user chose.

use super::price::{Open, Price};
use super::{Prune, refusal};
use crate::Result;
use crate::eval::latency;
use crate::model::Model;
use crate::report::COMPUTE_TOKENS;
use crate::runtime::Encoder;

/// A price and how much of it is to go.
#[derive(Debug, Clone, PartialEq)]
pub struct Budget {
    /// The option that it comes from, and its value.
    pub option: &'static str,
    pub asked: String,
    /// What goes, in the words of reports.
    pub name: &'static str,
    pub price: Price,
    /// The price of what is whole.
    pub whole: f64,
    /// The share that is to go.
    pub target: f64,
    /// What was asked for of what can be measured when it is cut: how many times as fast. `target` moves until
    /// it is there.
    speedup: Option<f64>,
    /// Times that it was measured.
    tries: usize,
}

/// Measured speed may fall short of what was asked for by as much: timings of one run differ by more.
const SLACK: f64 = 0.97;
/// Cuts until a speed is there. Prices are fitted, and off by less each time.
const TRIES: usize = 4;
/// Timed passes of each model.
const RUNS: usize = 15;

impl Budget {
    /// What `prune` asks for.
    ///
    /// # Errors
    /// For a target that is no smaller than `model`, or that even nothing would not reach.
    pub fn of(prune: &Prune, model: &Model) -> Result<Budget> {
        let all = Open::all(model);
        let tokens = COMPUTE_TOKENS.min(latency::max_tokens(&model.config, model.family));
        let (option, asked, name, price) = match (prune.flops, prune.speedup, prune.params) {
            (0.0, 0.0, 0) => {
                return Ok(Budget {
                    asked: prune.sparsity.to_string(),
                    ..Budget::of_blocks(model, prune.sparsity)
                });
            }
            (0.0, 0.0, n) => ("params", n.to_string(), "parameters gone", Price::params(model)),
            (0.0, n, _) => {
                ("speedup", n.to_string(), "time gone", Price::measured(model, 1, tokens)?)
            }
            (n, ..) => ("flops", n.to_string(), "FLOPs gone", Price::macs(model, tokens)),
        };
        let whole = price.of(&all);
        let target = match option {
            "params" => 1.0 - prune.params as f64 / whole,
            "speedup" => 1.0 - 1.0 / prune.speedup,
            _ => 1.0 - prune.flops,
        };
        let least = price.of(&Open::none(&all)) / whole;
        if !(0.0..1.0 - least).contains(&target) {
            let expected = match option {
                "params" => format!("from {:.0} to {whole:.0}, what the model has", least * whole),
                "speedup" => format!("a factor below {:.1}, with all blocks gone", 1.0 / least),
                _ => format!("a share above {least:.4}, with all blocks gone"),
            };
            return Err(refusal(option, asked, &expected));
        }
        let speedup = (prune.speedup != 0.0).then_some(prune.speedup);
        Ok(Budget { option, asked, name, price, whole, target, speedup, tries: 0 })
    }

    /// A share of the weights and biases of attention and feed-forward blocks.
    pub fn of_blocks(model: &Model, target: f64) -> Budget {
        let dim = model.config.head_dim as f64;
        let price = Price {
            head: [3.0 * dim, 4.0 * dim],
            unit: [1.0, 2.0],
            attention: [0.0, 1.0],
            ffn: [0.0, 1.0],
            rest: [0.0; 2],
        };
        Budget {
            option: "sparsity",
            asked: target.to_string(),
            name: "sparsity",
            price,
            whole: price.of(&Open::all(model)),
            target,
            speedup: None,
            tries: 0,
        }
    }

    /// The share of the price that is gone.
    pub fn sparsity(&self, open: &Open) -> f64 {
        1.0 - self.price.of(open) / self.whole
    }

    /// What is said where `left` is more than may be left, by more than comes of whole steps of units.
    pub fn short(&self, left: &Open, step: usize) -> Option<String> {
        if self.speedup.is_some() {
            return None; // it is measured, and said by `reached`
        }
        let [fixed, each] = self.price.unit;
        let unit = fixed + each * left.hidden.iter().sum::<f64>();
        // Each layer's width is rounded to the nearest step.
        let rounded = (left.units.len() * step) as f64 / 2.0 * unit / self.whole;
        let cut = self.sparsity(left);
        (cut + rounded + 1e-9 < self.target).then(|| {
            format!(
                "{} {:.4} asked for, {cut:.4} cut: every layer keeps a head and {step} units",
                self.name, self.target
            )
        })
    }

    /// The derivative of [`Budget::sparsity`] by every gate.
    pub fn gradient(&self, open: &Open) -> Open {
        let mut by = self.price.gradient(open);
        let Open { heads, units, attention, ffn, hidden } = &mut by;
        let all = heads.iter_mut().chain(units).chain([attention, ffn, hidden]).flatten();
        all.for_each(|g| *g /= -self.whole);
        by
    }

    /// What may be left.
    pub fn allowed(&self) -> f64 {
        self.whole * (1.0 - self.target)
    }

    /// What may be left after `round` of `rounds`: the same share of what was there goes in each.
    pub fn after(&self, round: usize, rounds: usize) -> f64 {
        match round == rounds {
            true => self.allowed(),
            false => self.whole * (1.0 - self.target).powf(round as f64 / rounds as f64),
        }
    }

    /// How many times as fast `after` runs one text as `before` does, timed in turn, if that is what was asked
    /// for.
    ///
    /// # Errors
    /// As [`Encoder::forward`].
    pub fn measured(&self, before: &Model, after: &Model) -> Result<Option<f64>> {
        if self.speedup.is_none() {
            return Ok(None);
        }
        let tokens = COMPUTE_TOKENS.min(latency::max_tokens(&before.config, before.family));
        let encoders = [Encoder::packed(before)?, Encoder::packed(after)?];
        let times = latency::measure(&[&encoders[0], &encoders[1]], tokens, RUNS)?;
        Ok(Some(times[0].median_ms / times[1].median_ms))
    }

    /// Whether a measured speed is what was asked for, or as near as it gets; else the target moves. Says so
    /// in `notes`.
    pub fn reached(&mut self, found: f64, notes: &mut Vec<String>) -> bool {
        let asked = self.speedup.unwrap_or(1.0);
        self.tries += 1;
        let there = found >= SLACK * asked;
        if there || self.tries == TRIES {
            let short = if there { "" } else { ", which is short of it" };
            notes.push(format!("speedup {asked} asked for, {found:.2} measured{short}"));
            return true;
        }
        // Time is nearly linear in the price: what is missing is taken off, and a little more.
        self.target = 1.0 - (1.0 - self.target) * (found / asked) * 0.98;
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Task;
    use crate::model::testing::*;

    #[test]
    fn targets_are_shares_of_what_they_count() {
        let model = tiny("bert", Task::SequenceClassification, 300);
        let of = |prune: Prune| Budget::of(&prune, &model).expect("a target within reach");
        let flops = of(Prune { flops: 0.25, ..Prune::default() });
        assert_eq!(flops.target, 0.75);
        let macs = crate::model::cost::whole_macs(&model, 20) as f64;
        assert!((flops.whole - macs).abs() < 1e-6 * macs, "{} {macs}", flops.whole);
        let all = crate::model::cost::Cost::of(&model).total.params;
        let params = of(Prune { params: all / 2, ..Prune::default() });
        assert!((params.allowed() - (all / 2) as f64).abs() < 1e-6);
        let blocks: usize = model.layers.iter().map(crate::model::cost::prunable).sum();
        let sparsity = of(Prune { sparsity: 0.4, ..Prune::default() });
        assert_eq!(sparsity.whole, blocks as f64);
        assert!((sparsity.allowed() - 0.6 * blocks as f64).abs() < 1e-6);
    }

    #[test]
    fn what_nothing_would_not_reach_is_refused() {
        let model = tiny("bert", Task::SequenceClassification, 301);
        let refused = |prune: Prune| Budget::of(&prune, &model).expect_err("too much").to_string();
        let all = crate::model::cost::Cost::of(&model).total.params;
        for params in [1, all + 1] {
            let error = refused(Prune { params, ..Prune::default() });
            let start = format!("pass `prune`: `params` is {params}, expected from ");
            assert!(error.starts_with(&start), "{error}");
            assert!(error.ends_with(&format!(" to {all}, what the model has")), "{error}");
        }
        let error = refused(Prune { flops: 1e-4, ..Prune::default() });
        let start = "pass `prune`: `flops` is 0.0001, expected a share above 0.0";
        assert!(error.starts_with(start) && error.ends_with(", with all blocks gone"), "{error}");
    }

    #[test]
    fn a_cut_that_falls_short_is_said() {
        let model = tiny("bert", Task::SequenceClassification, 303);
        let all = Open::all(&model);
        let short = |target: f64| Budget::of_blocks(&model, target).short(&all, 8);
        assert_eq!((short(0.0), short(1e-3)), (None, None));
        let told = "sparsity 0.9000 asked for, 0.0000 cut: every layer keeps a head and 8 units";
        assert_eq!(short(0.9).as_deref(), Some(told));
    }

    #[test]
    fn a_speed_that_is_missed_moves_the_target_until_it_is_given_up() {
        let model = tiny("bert", Task::SequenceClassification, 302);
        let blocks = Budget::of_blocks(&model, 0.5);
        let mut budget = Budget { speedup: Some(2.0), ..blocks };
        let mut notes = Vec::new();
        assert!(!budget.reached(1.6, &mut notes));
        assert!((budget.target - (1.0 - 0.5 * 0.8 * 0.98)).abs() < 1e-12);
        assert!(budget.reached(1.95, &mut notes));
        assert_eq!(notes, ["speedup 2 asked for, 1.95 measured"]);
        assert!(!budget.reached(1.0, &mut notes));
        assert!(budget.reached(1.0, &mut notes), "four times, and no more");
        assert!(notes[1].ends_with("1.00 measured, which is short of it"), "{notes:?}");
    }
}
