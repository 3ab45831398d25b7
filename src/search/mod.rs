//! Looks for the recipe that meets budgets of bytes, time and quality.
//!
//! Many variants are tried with little text and few of them with all of it (successive halving, Jamieson & Talwalkar
//! 2016, in the order of ASHA, Li et al. 2020: whoever is among the best third of a rung goes up). The first half of the
//! trials is spread over the space (a Latin hypercube), the rest are neighbours of what is best so far. What is too large
//! by its plan is not made. Nothing but what was measured depends on anything but the seed.

mod bench;
mod defaults;
mod design;
mod log;
mod score;
mod space;

pub use bench::{Bench, Given, Held, Rung};
pub use defaults::default_space;
pub use log::{Header, Log, SCHEMA, read};
pub use score::{Found, SpeedBy, Targets, front};
pub use space::{Space, Steps, passes_of};

use crate::recipe::Recipe;
use crate::{Error, Result};
use design::Design;
use score::Score;
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::collections::{HashMap, HashSet};

/// Of the variants of a rung, one in as many goes up, and a rung has as many times the text of the one below it.
pub const ETA: usize = 3;

/// Neighbours that are tried before what is best is looked at again.
const BATCH: usize = 2 * ETA;

/// Where a size is asked for, the design begins with what may have this share of it at least: what is far smaller has
/// thrown away more than it had to. (0.6 and 0.8 choose as well.)
const NEAR: f64 = 0.7;

/// How a space is searched.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    pub targets: Targets,
    /// Different recipes to try.
    pub trials: usize,
    /// At the last of them a variant is made and judged with all of the text.
    pub rungs: usize,
    pub seed: u64,
}

/// What a variant came to at one rung: a line of the log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// From 0, the least text, up.
    pub rung: usize,
    /// As `--passes` takes it.
    pub passes: String,
    /// The same as a TOML file.
    pub recipe: String,
    /// Why there is no such variant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    #[serde(flatten)]
    pub found: Option<Found>,
    /// How far from the targets it is; 0 where it meets them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub miss: Option<f64>,
    /// Whether it meets them.
    pub feasible: bool,
    pub seconds: f64,
}

/// A recipe and what is known of it.
#[derive(Debug, Clone)]
pub struct Trial {
    point: Vec<usize>,
    steps: Steps,
    pub passes: String,
    /// By rung, those that it has been at; `None`: it was refused there.
    pub found: Vec<Option<Found>>,
}

impl Trial {
    fn at(&self, rung: usize) -> Option<&Found> {
        self.found.get(rung)?.as_ref()
    }

    /// The recipe.
    ///
    /// # Errors
    /// As [`Recipe::from_steps`].
    pub fn recipe(&self) -> Result<Recipe> {
        Recipe::from_steps(self.steps.clone(), &[])
    }
}

/// What a search came to.
#[derive(Debug)]
pub struct Searched {
    pub trials: Vec<Trial>,
    /// Of `trials`, those judged with all of the text that no other beats in bytes, speed and quality, the best of the
    /// targets first.
    pub front: Vec<usize>,
    /// Of `trials`, the one that meets the targets and is best.
    pub winner: Option<usize>,
    /// Variants that were made and judged, those of an earlier run included.
    pub evaluations: usize,
    /// Those taken from an earlier run.
    pub known: usize,
    pub refused: usize,
}

impl Searched {
    /// What was found out about trial `index` with all of the text.
    ///
    /// # Panics
    /// If it was not judged with all of it: those of `front` were.
    pub fn top(&self, index: usize) -> &Found {
        let found = self.trials[index].found.last().and_then(Option::as_ref);
        found.expect("the front was judged with all of the text")
    }
}

/// Makes and judges a recipe at a rung, and says how many seconds that took.
pub type Evaluate<'a> = dyn FnMut(&Recipe, usize) -> Result<(Found, f64)> + 'a;

/// Bytes of the weight file that a recipe makes at least, where they are known before it is made.
pub type Foresee<'a> = dyn Fn(&Recipe) -> Option<u64> + 'a;

/// Searches `space`.
///
/// - `foresee`: what would be too large for the targets, or to be better than the best, is not asked for
/// - `known`: what an earlier run found out; not asked again
/// - `record`: is told what was new
///
/// # Errors
/// What stops the search: interruption, files that cannot be read or written. A recipe that is refused is not an error
/// unless all are: [`Error::Recipe`] then.
pub fn search(
    space: &Space,
    settings: &Settings,
    foresee: &Foresee,
    known: Vec<Entry>,
    evaluate: &mut Evaluate,
    record: &mut dyn FnMut(&Entry) -> Result<()>,
) -> Result<Searched> {
    let known = known.into_iter().map(|entry| ((entry.passes.clone(), entry.rung), entry));
    let mut search = Search {
        settings,
        design: Design::new(space, settings.trials.div_ceil(2), settings.seed),
        least: Least { foresee, known: RefCell::default() },
        known: known.collect(),
        reused: 0,
        evaluations: 0,
        trials: Vec::new(),
        tried: HashSet::new(),
        first_refusal: None,
    };
    loop {
        let mut jobs = search.promoted();
        if jobs.is_empty() {
            jobs = search.fresh();
        }
        if jobs.is_empty() {
            break;
        }
        // Recipes that begin alike stand together: what they share is made once.
        jobs.sort_by(|a, b| search.trials[a.0].passes.cmp(&search.trials[b.0].passes));
        for (trial, rung) in jobs {
            search.look_at(trial, rung, evaluate, record)?;
        }
    }
    search.finish()
}

/// Bytes that recipes make at least, each asked for once.
struct Least<'a> {
    foresee: &'a Foresee<'a>,
    known: RefCell<HashMap<String, u64>>,
}

impl Least<'_> {
    /// 0 where that is not known: it may be small.
    fn of(&self, steps: &Steps) -> u64 {
        let passes = passes_of(steps);
        if let Some(&bytes) = self.known.borrow().get(&passes) {
            return bytes;
        }
        let recipe = Recipe::from_steps(steps.clone(), &[]).ok();
        let bytes = recipe.and_then(|recipe| (self.foresee)(&recipe)).unwrap_or(0);
        self.known.borrow_mut().insert(passes, bytes);
        bytes
    }
}

struct Search<'a> {
    settings: &'a Settings,
    design: Design<'a>,
    least: Least<'a>,
    known: HashMap<(String, usize), Entry>,
    reused: usize,
    evaluations: usize,
    trials: Vec<Trial>,
    /// Recipes of `trials`.
    tried: HashSet<String>,
    first_refusal: Option<String>,
}

impl Search<'_> {
    /// What goes up a rung: the best third of one rung, the highest first. While nothing above meets the targets, the
    /// best one below that meets them goes up too, and whatever is best while there is nothing above: at most as many
    /// again.
    fn promoted(&self) -> Vec<(usize, usize)> {
        for rung in (0..self.settings.rungs - 1).rev() {
            let ranked = self.ranked(rung);
            let quota = (ranked.len() / ETA).max(1);
            let waits = |trial: &usize| self.trials[*trial].found.len() == rung + 1;
            let up: Vec<_> = ranked.iter().take(quota).copied().filter(waits).collect();
            if !up.is_empty() {
                return up.into_iter().map(|trial| (trial, rung + 1)).collect();
            }
            let above = self.ranked(rung + 1);
            let meets = |rung: usize, trial: usize| self.score(trial, rung).miss == 0.0;
            if above.iter().any(|&trial| meets(rung + 1, trial)) {
                continue;
            }
            let next = ranked.iter().take(2 * quota).copied().filter(waits);
            let mut next = next.filter(|&trial| above.is_empty() || meets(rung, trial));
            if let Some(trial) = next.next() {
                return vec![(trial, rung + 1)];
            }
        }
        Vec::new()
    }

    /// New recipes for the lowest rung: the design, then neighbours of the best, then more of the design.
    fn fresh(&mut self) -> Vec<(usize, usize)> {
        let n = (self.settings.trials - self.trials.len()).min(BATCH);
        let points = match self.trials.is_empty() {
            true => self.first(),
            false => {
                let top = self.settings.rungs - 1;
                // The best first. Not the front alone: what is on it is a matter of timing.
                let ranked = self.ranked(top);
                let best = ranked.first().map(|&trial| self.score(trial, top));
                let parents: Vec<&[usize]> =
                    ranked.iter().map(|&trial| &self.trials[trial].point[..]).collect();
                let (targets, least) = (&self.settings.targets, &self.least);
                let wanted = |steps: &Steps| targets.hopeful(least.of(steps), best.as_ref());
                let near = self.design.near(&parents, n, &self.tried, &wanted);
                match near.is_empty() {
                    true => self.design.spread(n, &self.tried, &wanted),
                    false => near,
                }
            }
        };
        let mut jobs = Vec::new();
        for point in points {
            let steps = self.design.space.steps(&point);
            let passes = passes_of(&steps);
            self.tried.insert(passes.clone());
            jobs.push((self.trials.len(), 0));
            self.trials.push(Trial { point, steps, passes, found: Vec::new() });
        }
        jobs
    }

    /// The design: spread over all recipes, but where a size is asked for first over those that may come near it from
    /// below, and then over those that may meet it.
    fn first(&mut self) -> Vec<Vec<usize>> {
        let n = self.settings.trials.div_ceil(2);
        let (mut points, mut tried) = (Vec::new(), self.tried.clone());
        let mut ranges = vec![0..=u64::MAX];
        if let Some(size) = self.settings.targets.size {
            ranges = vec![(NEAR * size as f64) as u64..=size, 0..=size, 0..=u64::MAX];
        }
        for range in ranges {
            let wanted =
                |steps: &Steps| range == (0..=u64::MAX) || range.contains(&self.least.of(steps));
            let more = self.design.spread(n - points.len(), &tried, &wanted);
            tried.extend(more.iter().map(|point| passes_of(&self.design.space.steps(point))));
            points.extend(more);
        }
        points
    }

    fn score(&self, trial: usize, rung: usize) -> Score {
        self.settings.targets.score(self.trials[trial].at(rung).expect("it was judged there"))
    }

    /// Trials that were judged at `rung`, the best first.
    fn ranked(&self, rung: usize) -> Vec<usize> {
        let judged = |trial: &usize| self.trials[*trial].at(rung).is_some();
        let mut ranked: Vec<usize> = (0..self.trials.len()).filter(judged).collect();
        ranked.sort_by(|&a, &b| {
            let order = self.score(a, rung).order(&self.score(b, rung));
            order.then_with(|| self.trials[a].passes.cmp(&self.trials[b].passes))
        });
        ranked
    }

    /// Of `ranked`, judged with all of the text, those on the Pareto front.
    fn front(&self, ranked: &[usize]) -> Vec<usize> {
        let top = self.settings.rungs - 1;
        let found: Vec<&Found> = ranked.iter().filter_map(|&t| self.trials[t].at(top)).collect();
        front(&found).into_iter().map(|i| ranked[i]).collect()
    }

    fn look_at(
        &mut self,
        trial: usize,
        rung: usize,
        evaluate: &mut Evaluate,
        record: &mut dyn FnMut(&Entry) -> Result<()>,
    ) -> Result<()> {
        let passes = self.trials[trial].passes.clone();
        self.evaluations += 1;
        if let Some(entry) = self.known.remove(&(passes.clone(), rung)) {
            self.reused += 1;
            return self.note(trial, entry);
        }
        let recipe = self.trials[trial].recipe();
        let toml = recipe.as_ref().map_or(String::new(), Recipe::to_toml);
        let outcome = recipe.and_then(|recipe| evaluate(&recipe, rung));
        let (found, refused, seconds) = match outcome {
            Ok((found, seconds)) => (Some(found), None, seconds),
            // Disk, interruption, and what the user asked for: no other recipe would help.
            Err(e @ (Error::Interrupted | Error::Read { .. } | Error::Write { .. })) => {
                return Err(e);
            }
            Err(e @ Error::Usage { .. }) => return Err(e),
            Err(e) => (None, Some(told(&e)), 0.0),
        };
        let miss = found.as_ref().map(|found| self.settings.targets.score(found).miss);
        let feasible = miss == Some(0.0);
        let entry = Entry { rung, passes, recipe: toml, refused, found, miss, feasible, seconds };
        record(&entry)?;
        self.note(trial, entry)
    }

    fn note(&mut self, trial: usize, entry: Entry) -> Result<()> {
        if let (Some(why), None) = (entry.refused, &self.first_refusal) {
            self.first_refusal = Some(format!("`{}`: {why}", entry.passes));
        }
        self.trials[trial].found.push(entry.found);
        Ok(())
    }

    fn finish(self) -> Result<Searched> {
        let top = self.ranked(self.settings.rungs - 1);
        if top.is_empty() {
            return Err(Error::Recipe {
                found: match &self.first_refusal {
                    Some(why) => {
                        format!("no recipe of the search space that runs, the first one {why}")
                    }
                    None => "a search space without a recipe".into(),
                },
                expected: "at least one that does".into(),
            });
        }
        let winner = top.first().copied();
        let meets = |trial: &usize| self.score(*trial, self.settings.rungs - 1).miss == 0.0;
        let refused = |t: &&Trial| t.found.iter().any(Option::is_none);
        Ok(Searched {
            front: self.front(&top),
            winner: winner.filter(meets),
            evaluations: self.evaluations,
            known: self.reused,
            refused: self.trials.iter().filter(refused).count(),
            trials: self.trials,
        })
    }
}

/// An error with its causes, on one line.
fn told(error: &Error) -> String {
    use std::error::Error as _;
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text += &format!(": {inner}");
        cause = inner.source();
    }
    text
}

#[cfg(test)]
mod tests;
