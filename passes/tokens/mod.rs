#![doc = include_str!("README.md")]

mod budget;
mod gated;
mod judge;
mod outline;
mod search;
#[cfg(test)]
mod tests;
mod training;

use crate::data::Calibration;
use crate::emit::Target;
use crate::model::{Model, Outline, Reads, Score, TokenSchedule};
use crate::pass::{Context, Entry, Foresight, Pass, PlanContext, Work};
use crate::report::COMPUTE_TOKENS;
use crate::runtime::{Batch, Encoder};
use crate::train::losses::Ranking;
use crate::{Error, Result};
use budget::Budget;
use judge::{Distance, Judge};
use search::{Family, Found};
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::BTreeMap;

/// What is left where no target is named.
const FLOPS: f64 = 0.7;

pub const ENTRY: Entry = Entry::new::<Tokens>(
    "tokens",
    "drop the tokens of a text that matter least, layer by layer",
    include_str!("README.md"),
    &["prune", "tokens"],
);

/// Options of the pass.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tokens {
    /// Share of the layers' FLOPs that may be left, in (0, 1]: net of padding, and of what the head does not read.
    pub flops: f64,
    /// In its place: how much worse answers may get, as a share (0.005) or in per cent (0.5%); 0 where it is not
    /// meant.
    pub drop: Share,
    /// What the pass goes by.
    pub mode: Mode,
    /// What makes a token important.
    pub score: By,
    /// The first layer that may drop tokens, counted from 0.
    pub from: usize,
    /// Ranks fall into as many bins in every layer; 0 for 100.
    pub bins: usize,
    /// Separators rank before all other tokens.
    pub protect: bool,
    /// Texts that schedules are tried on; 0 for all there are.
    pub texts: usize,
    /// Training: which schedule it starts with.
    pub start: Start,
    /// Training: updates of schedule and weights together; 0 for five passes over the texts, but 200 to 1,000.
    pub steps: usize,
    /// Training: share of `steps` in which the target climbs.
    pub warmup: f64,
    /// Training: updates under the schedule that has been found; 0 for as many as `steps`.
    pub finetune: usize,
    /// Training: texts of a batch.
    pub batch: usize,
    /// Training: learning rate of the weights, falling to 0 in each of both loops.
    pub rate: f64,
    /// Training: learning rate of gates and multipliers; 0 for as fast as `steps` ask for, at least 0.02.
    pub mask_rate: f64,
    pub dropout: f64,
    /// Training: of the predictions, where they are classes.
    pub temperature: f64,
    /// Training: weight of the distance between predictions.
    pub prediction: f64,
    /// Training: weight of the distance between hidden states, of the tokens that are left.
    pub hidden: f64,
    /// Training: weight of the task's own loss, where there are labels.
    pub task: f64,
    /// Training: weight of the ranking loss at the start; it falls to a hundredth within the warm-up.
    pub ranking: f64,
    /// Training: which ranking loss.
    pub ranking_loss: Ranking,
    /// Training: so many of the teacher's best tokens are ranked.
    pub top: usize,
}

/// Which schedule training starts with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Start {
    /// The one that mode `text` finds at the target.
    Text,
    /// None, as in the paper: all gates are shut, and the target climbs.
    Open,
}

/// A share of 1; in recipes also a string in per cent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Share(pub f64);

impl<'de> Deserialize<'de> for Share {
    fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<Share, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Number(f64),
            Text(String),
        }
        match Written::deserialize(from)? {
            Written::Number(n) => Ok(Share(n)),
            Written::Text(text) => {
                let number = text.strip_suffix('%').and_then(|n| n.trim().parse::<f64>().ok());
                let wrong = || serde::de::Error::custom(format!("`{text}` is no share, as 0.5%"));
                number.map(|n| Share(n / 100.0)).ok_or_else(wrong)
            }
        }
    }
}

/// What the pass goes by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// `train` where there is text to train on, else `text` where there is any, else `ratio`.
    Auto,
    /// Every layer leaves the same share.
    Ratio,
    /// The schedule that changes the answers to a text least.
    Text,
    /// Schedule and weights learned together (ToP), on the text to train on.
    Train,
}

/// Which score ranks the tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum By {
    /// The better one.
    Auto,
    /// Attention from all tokens that are left.
    Received,
    /// Attention from the first token.
    First,
}

impl Default for Tokens {
    fn default() -> Self {
        Tokens {
            flops: FLOPS,
            drop: Share(0.0),
            mode: Mode::Auto,
            score: By::Auto,
            from: 0,
            bins: 0,
            protect: false,
            texts: 256,
            start: Start::Text,
            steps: 0,
            warmup: 0.5,
            finetune: 0,
            batch: 32,
            rate: 1e-4,
            mask_rate: 0.0,
            dropout: 0.0,
            temperature: 2.0,
            prediction: 1.0,
            hidden: 0.0,
            task: 0.0,
            ranking: 0.01,
            ranking_loss: Ranking::Arp2,
            top: 20,
        }
    }
}

impl Pass for Tokens {
    fn needs_plain_layers(&self) -> Option<&'static str> {
        Some("drops no tokens in such layers")
    }

    fn check(&self) -> Result<()> {
        if !(self.flops > 0.0 && self.flops <= 1.0) {
            return Err(refusal("flops", self.flops, "a share that is left, in (0, 1]"));
        }
        if !(0.0..1.0).contains(&self.drop.0) {
            return Err(refusal("drop", self.drop.0, "a share below 1, or per cent below 100"));
        }
        if self.drop.0 > 0.0 && self.flops != FLOPS {
            return Err(refusal("flops", "given beside drop", "one target"));
        }
        if self.drop.0 > 0.0 && self.mode == Mode::Ratio {
            return Err(refusal("drop", "given with mode=ratio", "a text, to see what changes"));
        }
        if self.bins > 4096 {
            return Err(refusal("bins", self.bins, "a number from 0 to 4096"));
        }
        if self.drop.0 > 0.0 && self.mode == Mode::Train {
            return Err(refusal("drop", "given with mode=train", "flops, or mode=text"));
        }
        self.check_training()
    }

    fn trains(&self, data: bool) -> bool {
        match self.mode {
            Mode::Train => true,
            Mode::Auto => data && self.drop.0 == 0.0,
            Mode::Ratio | Mode::Text => false,
        }
    }

    fn refuses(&self, target: Target, _data: bool) -> Option<&'static str> {
        (target == Target::Dense).then_some("layers drop tokens")
    }

    fn outline(&self, outline: &mut Outline, cx: &PlanContext) -> Result<Foresight> {
        self.check()?;
        let trains = self.trains(cx.data);
        let searched = self.text(cx.text, cx.data)?.is_some() || trains;
        if cx.text.is_none() && !searched {
            outline.each(|model| self.run(model, &Context::new(cx.teacher)).map(drop))?;
            return Ok(Foresight::default());
        }
        outline.spread(|model| self.schedules(model, searched, trains))?;
        Ok(self.foresight(cx).noting("the schedule follows the texts, and their lengths"))
    }

    fn run(&self, model: &mut Model, cx: &Context) -> Result<Work> {
        self.check()?;
        let mut notes = Vec::new();
        if model.tokens.take().is_some() {
            notes.push(
                "the schedule that the model came with was dropped: this one is found anew".into(),
            );
        }
        let text = self.text(cx.calibration, cx.data.is_some())?;
        let before = model.clone();
        let protect = if self.protect { separators(cx)? } else { Vec::new() };
        let trains = self.trains(cx.data.is_some());
        let lengths = lengths(&before, trains, cx);
        let bins = self.bins_for(trains, &lengths);
        let loops = match (trains, cx.data) {
            (true, Some(data)) => Some(training::Loops::new(self, data, cx)?),
            _ => None,
        };
        let budget = Budget::new(&before, lengths, self.from, bins, protect);
        if budget.sites.is_empty() {
            return Err(self.no_site());
        }
        if let Some(loops) = loops {
            let start = match (text, self.starts_from_text(cx)) {
                (Some(text), true) => Some(self.by_text(&before, text, &budget, cx, &mut notes)?),
                _ => None,
            };
            let done = loops.run(model, &budget, self.flops, start)?;
            notes.push(done.note);
            notes.push(told(&before, &done.schedule));
            let mut figures = figures(&before, &budget, &done.schedule);
            figures.insert("expected_flops", done.expected);
            return Ok(Work { notes, figures, training: done.trainings, ..Work::default() });
        }
        let schedule = match text {
            Some(text) => self.by_text(&before, text, &budget, cx, &mut notes)?,
            None => self.by_ratio(&before, &budget, &mut notes)?,
        };
        let figures = figures(&before, &budget, &schedule);
        notes.push(told(&before, &schedule));
        model.tokens = schedule.drops().then_some(schedule);
        Ok(Work { notes, figures, ..Work::default() })
    }
}

impl Tokens {
    /// The text that the pass goes by, of that which there is; `data`: whether there is text to train on.
    fn text<T>(&self, text: Option<T>, data: bool) -> Result<Option<T>> {
        let text = match self.mode {
            Mode::Ratio => None,
            Mode::Train if !data => {
                let expected = "a file by --data, or mode=text";
                return Err(refusal("mode", "\"train\", without text to train on", expected));
            }
            Mode::Text if text.is_none() => {
                let expected = "a text by --calib, or mode=ratio";
                return Err(refusal("mode", "\"text\", without calibration text", expected));
            }
            Mode::Auto | Mode::Train | Mode::Text => text,
        };
        if self.drop.0 > 0.0 && text.is_none() {
            let expected = "a text by --calib, to see what changes";
            return Err(refusal("drop", "given without calibration text", expected));
        }
        Ok(text)
    }

    fn no_site(&self) -> Error {
        Error::Mismatch {
            found: format!("no layer from {} on can drop tokens", self.from),
            expected: "dropping takes attention heads, and a layer behind them that it saves"
                .into(),
            advice: "leave tokens out for this model, or give a smaller `from`",
        }
    }

    /// Those that are tried; the paper's first.
    fn scores(&self) -> Vec<Score> {
        match self.score {
            By::First => vec![Score::First],
            By::Received => vec![Score::Received],
            By::Auto => vec![Score::Received, Score::First],
        }
    }

    /// The same share in every layer, without a look at the model's answers.
    fn by_ratio(
        &self,
        model: &Model,
        budget: &Budget,
        notes: &mut Vec<String>,
    ) -> Result<TokenSchedule> {
        let score = match (self.score, model.reads()) {
            (By::First, _) | (By::Auto, Reads::First | Reads::Left) => Score::First,
            (By::Received, _) | (By::Auto, Reads::Every) => Score::Received,
        };
        let family = Family::geometric(budget.sites.len());
        notes.push(format!(
            "mode ratio: every layer leaves the same share of its tokens, ranked by {}",
            words(score)
        ));
        let found = family.within(budget, self.flops, score);
        found.ok_or_else(|| out_of_reach(budget, self.flops, &[score]))
    }

    fn by_text(
        &self,
        model: &Model,
        text: &Calibration,
        budget: &Budget,
        cx: &Context,
        notes: &mut Vec<String>,
    ) -> Result<TokenSchedule> {
        let encoder = Encoder::new(model)?;
        let batches = some(&text.batches, self.texts);
        let judge = Judge::new(&encoder, &batches)?;
        let held = Judge::new(&encoder, &text.held_out)?;
        let scores = self.scores();
        let best = |flops: f64| -> Result<Found> {
            let found = search::families(budget, flops, &scores, &judge, cx.progress)?;
            let found = found.ok_or_else(|| out_of_reach(budget, flops, &scores))?;
            search::exchange(budget, flops, &found, &judge, cx.progress)
        };
        let texts = judge.len() + held.len();
        if self.drop.0 > 0.0 && self.drop.0 * (texts as f64) < 1.0 {
            let found = format!("{}, which is less than one of {texts} texts", self.drop.0);
            let expected = "a larger share, or more texts by --calib and --calib-texts";
            return Err(refusal("drop", found, expected));
        }
        let mut flops = self.flops;
        let found = if self.drop.0 > 0.0 {
            // What the texts that the search did not see say counts as much.
            let worst = |found: &Found| found.distance.moved.max(held.of(&found.schedule).moved);
            let (mut low, mut high) = (0.0, 1.0);
            let mut kept = None;
            for _ in 0..BISECTIONS {
                flops = 0.5 * (low + high);
                match best(flops) {
                    Ok(found) if worst(&found) <= self.drop.0 => {
                        high = flops;
                        kept = Some(found);
                    }
                    Ok(_) | Err(Error::Mismatch { .. }) => low = flops,
                    Err(e) => return Err(e),
                }
            }
            match kept {
                Some(found) => found,
                None => {
                    notes.push(format!(
                        "nothing is dropped: at {flops:.3} of the FLOPs, the most that was tried, too many answers are \
                         others for drop={}, or too few tokens may go",
                        self.drop.0
                    ));
                    return Ok(budget.like.clone());
                }
            }
        } else {
            best(flops)?
        };
        let kept = |d: Distance| format!("loss {:.5}, moved {:.4}", d.loss, d.moved);
        let unseen = match held.len() {
            0 => "none".into(),
            _ => kept(held.of(&found.schedule)),
        };
        notes.push(format!(
            "mode text: {} texts ({}), {}, ranked by {}; {}; held out: {}",
            judge.len(),
            text.source,
            found.family,
            words(found.schedule.score),
            kept(found.distance),
            unseen,
        ));
        Ok(found.schedule)
    }
}

/// Halvings of the range in which `drop` looks for a budget: to 1/64.
const BISECTIONS: usize = 6;

fn words(score: Score) -> &'static str {
    match score {
        Score::First => "the first token's attention",
        Score::Received => "the attention they receive",
    }
}

fn refusal(option: &'static str, found: impl ToString, expected: &str) -> Error {
    Error::Option { pass: "tokens", option, found: found.to_string(), expected: expected.into() }
}

/// Even without any token but the first more is left.
fn out_of_reach(budget: &Budget, flops: f64, scores: &[Score]) -> Error {
    let nothing = vec![0.0; budget.sites.len()];
    let left = scores.iter().map(|&score| budget.share(&budget.schedule(score, &nothing)));
    let least = left.fold(1.0, f64::min);
    Error::Mismatch {
        found: format!("dropping all tokens where that is allowed leaves {least:.3} of the FLOPs"),
        expected: format!("flops={flops} is asked for"),
        advice: "ask for a larger share, or give a smaller `from`",
    }
}

/// Lengths of the texts that there are, those to train on first; without any, of one as reports count compute by.
fn lengths(model: &Model, trains: bool, cx: &Context) -> Vec<usize> {
    let of = |b: &Batch| b.starts.windows(2).map(|s| s[1] - s[0]).collect::<Vec<_>>();
    match (cx.data.filter(|_| trains), cx.calibration) {
        (Some(data), _) => data.texts.iter().map(|t| t.ids.len()).collect(),
        (None, Some(text)) => text.batches.iter().flat_map(of).collect(),
        (None, None) => vec![COMPUTE_TOKENS.min(model.config.max_positions)],
    }
}

/// The id that ends all texts there are: `[SEP]`, or what a family has in its place.
fn separators(cx: &Context) -> Result<Vec<u32>> {
    let batches = cx.calibration.iter().flat_map(|c| &c.batches);
    let watched = batches.flat_map(|b| b.starts.windows(2).map(|s| b.ids[s[1] - 1]));
    let trained = cx.data.iter().flat_map(|d| &d.texts).filter_map(|t| t.ids.last().copied());
    let mut ids: Vec<u32> = watched.chain(trained).collect();
    ids.sort_unstable();
    ids.dedup();
    if ids.len() == 1 {
        return Ok(ids);
    }
    let found = "true, and texts do not all end in the same token";
    Err(refusal("protect", found, "texts with a separator at their end, or protect=false"))
}

/// At most `most` texts of `batches`, of all lengths; 0 for all.
fn some(batches: &[Batch], most: usize) -> Vec<Batch> {
    let all: usize = batches.iter().map(Batch::texts).sum();
    if most == 0 || all <= most {
        return batches.to_vec();
    }
    let mut seen = 0;
    let part = |batch: &Batch| {
        let mut part = Batch::default();
        for (text, &row) in batch.rows.iter().enumerate() {
            let span = batch.starts[text]..batch.starts[text + 1];
            if (seen + 1) * most / all > seen * most / all {
                part.push(&batch.ids[span.clone()], &batch.type_ids[span], row);
            }
            seen += 1;
        }
        part
    };
    batches.iter().map(part).filter(|b| b.texts() > 0).collect()
}

/// Numbers for the report.
fn figures(
    model: &Model,
    budget: &Budget,
    schedule: &TokenSchedule,
) -> BTreeMap<&'static str, f64> {
    let padded = COMPUTE_TOKENS.min(model.config.max_positions).max(budget.longest());
    let net = budget.share(schedule);
    BTreeMap::from([
        ("net_flops", net),
        ("net_flops_by_paper", budget.paper_share(schedule)),
        ("padded_flops", net * budget.padding_share(padded)),
    ])
}

/// What is left behind each layer, for the report.
fn told(model: &Model, schedule: &TokenSchedule) -> String {
    let shares = schedule.shares();
    let shares: Vec<String> = shares.iter().map(|left| format!("{:.0}", 100.0 * left)).collect();
    let first = match model.reads() {
        Reads::First => "; of the last layer only the first token is computed",
        Reads::Left | Reads::Every => "",
    };
    format!("per cent of the tokens left behind each layer: {}{first}", shares.join(", "))
}
