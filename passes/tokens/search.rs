//! Which schedule costs least at a budget: families of one parameter, then exchange (ToP notes, §7.2).

use super::budget::Budget;
use super::judge::{Distance, Judge};
use crate::Result;
use crate::model::{Score, TokenSchedule};
use crate::pass::Progress;

/// Shares of the tokens left behind each site.
type Shares = Vec<f64>;

/// A schedule that was tried.
#[derive(Debug, Clone)]
pub struct Found {
    pub schedule: TokenSchedule,
    pub distance: Distance,
    /// By which family it came, and whether exchange changed it.
    pub family: String,
    shares: Shares,
}

/// The rows of the notes' figure (§5.3), as shares behind each of 12 layers: seeds.
const LEARNED: [(&str, [f64; 12]); 3] = [
    ("ToP, SST-2", [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.88, 0.66, 0.32, 0.04, 0.04]),
    ("ToP, MNLI", [1.0, 1.0, 1.0, 1.0, 1.0, 0.88, 0.79, 0.70, 0.64, 0.54, 0.25, 0.25]),
    ("ToP, QQP", [1.0, 1.0, 0.68, 0.42, 0.22, 0.10, 0.04, 0.02, 0.01, 0.0, 0.0, 0.0]),
];

/// Exchange tries no more schedules than this.
const TRIALS: usize = 80;
/// Steps of one share, in turn.
const STEPS: [f64; 4] = [0.15, -0.15, 0.07, -0.07];
/// What a change must gain, relative to the loss.
const GAIN: f64 = 0.005;

/// A shape of schedule with one parameter in [0, 1].
pub struct Family {
    pub name: String,
    shares: Box<dyn Fn(f64) -> Shares>,
}

impl Family {
    fn new(name: impl Into<String>, shares: impl Fn(f64) -> Shares + 'static) -> Family {
        Family { name: name.into(), shares: Box::new(shares) }
    }

    /// Those for `n` sites of a model of `layers` layers.
    pub fn all(n: usize, sites: &[usize], layers: usize) -> Vec<Family> {
        let mut all = vec![
            Family::geometric(n),
            Family::new("geo1", move |p| (0..n).map(|i| p.powi(i as i32)).collect()),
            Family::new("step", move |p| {
                (0..n)
                    .map(|i| [1.0 - 0.6 * (1.0 - p), 1.0 - 0.8 * (1.0 - p), p][i.min(2)])
                    .collect()
            }),
        ];
        for m in 1..n {
            // 1 to site m, then down a line (SpAtten, LTP).
            all.push(Family::new(format!("linear({m})"), move |p| {
                let slope = |i: usize| (i + 1 - m) as f64 / (n - m) as f64;
                (0..n).map(|i| if i < m { 1.0 } else { 1.0 - (1.0 - p) * slope(i) }).collect()
            }));
        }
        for m in 0..n {
            all.push(Family::new(format!("shot({m})"), move |p| {
                (0..n).map(|i| if i < m { 1.0 } else { p }).collect()
            }));
        }
        for (name, learned) in LEARNED {
            let at = |&site: &usize| learned[((site + 1) * 12).div_ceil(layers) - 1];
            let shares: Shares = sites.iter().map(at).collect();
            // A share of 0 stays 0: what is left of it is a matter of the exponent before.
            all.push(Family::new(name, move |p| {
                let power = (1.0 - p) / p.max(1e-6);
                shares.iter().map(|s| s.max(1e-3).powf(power)).collect()
            }));
        }
        all
    }

    /// Every site leaves the same share of what it gets.
    pub fn geometric(n: usize) -> Family {
        Family::new("geo", move |p| (0..n).map(|i| p.powi(i as i32 + 1)).collect())
    }

    /// The schedule that leaves most within `flops`, where there is one.
    pub fn within(&self, budget: &Budget, flops: f64, score: Score) -> Option<TokenSchedule> {
        let shares = budget.within(flops, score, &self.shares)?;
        Some(budget.schedule(score, &shares))
    }
}

/// The best of all families at `flops`, by `scores`; `None` where none gets down to it.
pub fn families(
    budget: &Budget,
    flops: f64,
    scores: &[Score],
    judge: &Judge,
    progress: &dyn Progress,
) -> Result<Option<Found>> {
    let layers = budget.like.layers.len();
    let families = Family::all(budget.sites.len(), &budget.sites, layers);
    progress.start("tokens: families of schedules", families.len() * scores.len());
    let mut best: Option<Found> = None;
    for &score in scores {
        for family in &families {
            if let Some(shares) = budget.within(flops, score, &family.shares) {
                let schedule = budget.schedule(score, &shares);
                let distance = judge.of(&schedule);
                if best.as_ref().is_none_or(|b| distance.loss < b.distance.loss) {
                    best = Some(Found { schedule, distance, family: family.name.clone(), shares });
                }
            }
            progress.step()?;
        }
    }
    Ok(best)
}

/// Moves shares between the sites of `found`, at the same budget, as long as that helps.
pub fn exchange(
    budget: &Budget,
    flops: f64,
    found: &Found,
    judge: &Judge,
    progress: &dyn Progress,
) -> Result<Found> {
    let mut best = found.clone();
    let score = found.schedule.score;
    let mut trials = 0;
    progress.start("tokens: exchange", TRIALS);
    loop {
        let before = best.distance.loss;
        for site in 0..budget.sites.len() {
            for step in STEPS {
                if trials == TRIALS {
                    return Ok(best);
                }
                let Some(shares) = moved(budget, flops, score, &best.shares, site, step) else {
                    continue;
                };
                let schedule = budget.schedule(score, &shares);
                if schedule == best.schedule {
                    continue;
                }
                trials += 1;
                let distance = judge.of(&schedule);
                progress.step()?;
                if distance.loss < best.distance.loss * (1.0 - GAIN) {
                    let family = format!("{}, exchanged", found.family);
                    best = Found { schedule, distance, family, shares };
                }
            }
        }
        if best.distance.loss == before {
            return Ok(best);
        }
    }
}

/// `shares` with that of `site` changed by `step`, the others raised to one power so that the budget is met.
fn moved(
    budget: &Budget,
    flops: f64,
    score: Score,
    shares: &[f64],
    site: usize,
    step: f64,
) -> Option<Shares> {
    let target = (shares[site] + step).clamp(0.0, 1.0);
    if target == shares[site] {
        return None;
    }
    let shares = shares.to_vec();
    // From 0 (all others at 0, or nearly) to 1 (all at 1): the power is (1 - p) / p.
    let family = move |p: f64| -> Shares {
        let power = (1.0 - p) / p.max(1e-6);
        let other = |(i, s): (usize, &f64)| match i.cmp(&site) {
            std::cmp::Ordering::Less => s.max(1e-3).powf(power).max(target),
            std::cmp::Ordering::Equal => target,
            std::cmp::Ordering::Greater => s.max(1e-3).powf(power).min(target),
        };
        let mut moved: Shares = shares.iter().enumerate().map(other).collect();
        (1..moved.len()).for_each(|i| moved[i] = moved[i].min(moved[i - 1]));
        moved
    };
    budget.within(flops, score, family)
}
