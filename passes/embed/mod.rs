#![doc = include_str!("README.md")]

mod metric;
mod outline;
mod paper;
mod rotation;
mod rows;
mod subspace;
mod svd;
#[cfg(test)]
mod tests;
mod weights;

use crate::checkpoint::Tensor;
use crate::model::{Linear, Model, Outline, TableErrors, Weight};
use crate::pass::{Context, Entry, Foresight, Pass, PlanContext, Work};
use crate::report::{Change, count};
use crate::runtime::lookup;
use crate::train::sweep;
use crate::{Error, Result};
use rows::Rows;
use serde::{Deserialize, Serialize};
use subspace::Plan;
use weights::Frequencies;

pub const ENTRY: Entry = Entry::new::<Embed>(
    "embed",
    "store the word table as codes and codebooks, factors, int8 or f16",
    include_str!("README.md"),
    &["prune", "vocab", "embed"],
);

/// Options of the pass.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Embed {
    pub method: Method,
    /// With `method=subspace`, where neither `bytes` nor `share` is given: dimensions that share a code, 4 or 8.
    pub preset: Preset,
    /// Bytes of a row in codes, or in its part of the factors; 0 for what the preset says.
    pub bytes: usize,
    /// Stored bytes of the table, all of them, over those of its f32 numbers; 0 for what `bytes` or the preset says.
    pub share: f64,
    /// Most frequent rows that are stored as they are; −1 for 512 with `method=subspace`, and none else. Special tokens
    /// always are.
    pub exact: i64,
    pub weights: Weighting,
    /// Added to the counts of rows.
    pub alpha: f64,
    pub rotation: Rotate,
    /// What codes are chosen by.
    pub distance: Distance,
    /// Codewords of a book; 0 for 256, or for the root of the paper.
    pub words: usize,
    /// With `method=paper`: slices of a row.
    pub slices: usize,
    pub assignment: Assignment,
    /// What the table of positions becomes.
    pub positions: Positions,
}

/// See [`Embed::method`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// Rotation, and k-means in many short slices (subspace notes, §3.3).
    Subspace,
    /// Few slices of few codewords, to be trained (Jaiswal & Liu 2023).
    Paper,
    /// Two factors of low rank.
    Svd,
    Int8,
    F16,
}

/// See [`Embed::preset`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Preset {
    Default,
    Small,
}

/// What a row weighs that is used `n` times.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Weighting {
    /// `√(n + alpha)`
    Sqrt,
    /// `n + alpha`
    Count,
    Uniform,
}

/// See [`Embed::rotation`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rotate {
    /// All columns, or blocks where that matrix would be a large part of the table.
    Auto,
    Full,
    /// At most 128 columns among each other.
    Blocks,
    None,
}

/// See [`Embed::distance`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Distance {
    /// What errors of a row do to the answers, learned from text; plain where there is none, or no rotation to put it in.
    Answers,
    Plain,
}

/// How rows get their tuples (subspace notes, §1.2 and §1.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Assignment {
    /// k-means in each slice; rows that fall together are told apart.
    Independent,
    /// Groups of groups of whole rows.
    Hierarchical,
    /// The digits of the row's number; no code is stored.
    Dispersed,
}

/// See [`Embed::positions`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Positions {
    None,
    F16,
}

/// Exact rows of the default (subspace notes, §0), but no more than this part of a small vocabulary.
const HOTTEST: usize = 512;
const HOTTEST_PART: usize = 16;
/// With a target: of the stored bytes, those that exact rows take before longer codes do.
const EXACT_PART: usize = 4;
/// Dimensions of a slice that a target chooses from.
const WIDTHS: [usize; 9] = [2, 3, 4, 6, 8, 12, 16, 24, 32];
/// Columns of a block that is rotated, at most.
const BLOCK: usize = 128;
/// A rotation of all columns may have this part of the codes' bytes.
const ROTATION_PART: usize = 4;
/// Rows for each codeword, at least: with fewer, codebooks cost more than they save.
const ROWS_PER_WORD: usize = 4;
/// Columns for each rank of factors, where nothing says how many.
const SVD_PART: usize = 4;
/// Rows that one task compares.
const ROWS: usize = 1024;

impl Default for Embed {
    fn default() -> Self {
        Embed {
            method: Method::Subspace,
            preset: Preset::Default,
            bytes: 0,
            share: 0.0,
            exact: -1,
            weights: Weighting::Sqrt,
            alpha: 0.1,
            rotation: Rotate::Auto,
            distance: Distance::Answers,
            words: 0,
            slices: 3,
            assignment: Assignment::Independent,
            positions: Positions::None,
        }
    }
}

fn refused<T>(option: &'static str, found: String, expected: &str) -> Result<T> {
    Err(Error::Option { pass: "embed", option, found, expected: expected.into() })
}

impl Pass for Embed {
    fn check(&self) -> Result<()> {
        let sized = matches!(self.method, Method::Subspace | Method::Svd);
        if !(0.0..1.0).contains(&self.share) {
            return refused(
                "share",
                self.share.to_string(),
                "0 for no target, or a number below 1",
            );
        }
        if self.share > 0.0 && self.bytes > 0 {
            return refused(
                "share",
                format!("{} beside bytes={}", self.share, self.bytes),
                "one of them",
            );
        }
        if !sized && (self.share > 0.0 || self.bytes > 0) {
            let option = if self.bytes > 0 { "bytes" } else { "share" };
            let found =
                if self.bytes > 0 { self.bytes.to_string() } else { self.share.to_string() };
            return refused(option, found, "0: only `subspace` and `svd` have a size to choose");
        }
        if !(-1..=1 << 24).contains(&self.exact) {
            return refused("exact", self.exact.to_string(), "-1, or a number of rows");
        }
        if self.exact > 0 && matches!(self.method, Method::Int8 | Method::F16) {
            return refused(
                "exact",
                self.exact.to_string(),
                "-1 or 0: `int8` and `f16` round all rows alike",
            );
        }
        if !(0.0..=1e6).contains(&self.alpha) || self.alpha == 0.0 {
            return refused("alpha", self.alpha.to_string(), "a number above 0, at most 1000000");
        }
        let most = if self.method == Method::Paper { 1 << 16 } else { 256 };
        if self.words > most || self.words == 1 {
            return refused(
                "words",
                self.words.to_string(),
                &format!("0, or a number from 2 to {most}"),
            );
        }
        if !(1..=64).contains(&self.slices) {
            return refused("slices", self.slices.to_string(), "a number from 1 to 64");
        }
        Ok(())
    }

    fn counts_words(&self) -> bool {
        true
    }

    fn tables_alone(&self) -> bool {
        true
    }

    fn outline(&self, outline: &mut Outline, cx: &PlanContext) -> Result<Foresight> {
        self.check()?;
        outline.models().iter().try_for_each(|model| self.check_positions(model))?;
        self.outline_tables(outline, cx)
    }

    fn run(&self, model: &mut Model, cx: &Context) -> Result<Work> {
        self.check_positions(model)?;
        self.check()?;
        let before = model.embeddings.word.clone();
        let tensor = before.dense()?;
        let name = before.name().to_string();
        let (rows, cols) = (before.rows(), before.cols());
        let frequencies = Frequencies::new(cx.words, rows, model.config.pad_id);
        let mut notes = vec![frequencies.note.clone()];
        let seed = cx.seed;
        let mut after = match self.method {
            Method::Subspace => {
                let (plan, hottest) =
                    self.plan(rows, cols, frequencies.special.len(), &mut notes)?;
                let exact = frequencies.exact(hottest);
                let weights = frequencies.weights(self, &exact);
                let metric = self.metric(model, &plan, cx)?;
                notes.push(match (&metric, cx.calibration) {
                    (Some(_), Some(text)) => {
                        format!("Codes are chosen by what answers to {} depend on", text.source)
                    }
                    _ => "Codes are chosen by the plain distance of rows".into(),
                });
                let table = (tensor, &name[..]);
                Weight::Subspace(Box::new(subspace::fit(
                    table,
                    &weights,
                    &exact,
                    (&plan, metric.as_deref()),
                    seed,
                    cx.progress,
                )?))
            }
            Method::Paper => {
                cx.progress.start("embed", 1);
                let words = self.paper_words(rows, cols)?;
                let exact = frequencies.exact(self.hottest(rows, 0));
                let weights = frequencies.weights(self, &exact);
                let table = paper::fit(
                    (tensor, &name),
                    (&weights, &frequencies.counts),
                    &exact,
                    (self.slices, words),
                    self.assignment,
                    seed,
                    cx.progress,
                )?;
                Weight::Subspace(Box::new(table))
            }
            Method::Svd => {
                cx.progress.start("embed", 1);
                let exact = frequencies.exact(self.hottest(rows, 0));
                let rank = self.rank(rows, cols, exact.len())?;
                let weights = frequencies.weights(self, &exact);
                Weight::Factored(svd::fit((tensor, &name), &weights, &exact, rank)?)
            }
            Method::Int8 => before.to_int8()?,
            Method::F16 => before.to_f16()?,
        };
        let errors = errors(tensor, &after, &frequencies.counts)?;
        tensor.release(); // all of a large table was read
        match &mut after {
            Weight::Subspace(table) => table.errors = Some(errors),
            Weight::Factored(table) => table.errors = Some(errors),
            _ => {}
        }
        notes.push(size(&before, &after));
        let mut work = Work::default();
        let figures = &mut work.figures;
        figures.insert("table_error_uniform", errors.uniform);
        figures.insert("table_error_frequency", errors.frequency);
        figures.insert("table_bytes_per_token", after.bytes() as f64 / rows.max(1) as f64);
        figures.insert("table_memory_mib", after.memory_bytes() as f64 / 1_048_576.0);
        work.notes = notes;
        let change = |weight: &Weight| Linear::table(weight);
        work.changes.push(Change::new(&change(&before), &change(&after), Some(errors.uniform)));
        model.embeddings.word = after;
        model.drop_tied_copy();
        if let (Positions::F16, Some(position)) = (self.positions, &mut model.embeddings.position) {
            let before = Weight::Dense(position.clone());
            let after = before.to_f16()?;
            work.changes.push(Change::new(&change(&before), &change(&after), None));
            *position = after.dense()?.clone();
        }
        cx.progress.step()?;
        Ok(work)
    }
}

impl Embed {
    fn check_positions(&self, model: &Model) -> Result<()> {
        if self.positions == Positions::F16 && model.embeddings.position.is_none() {
            return Err(Error::Option {
                pass: "embed",
                option: "positions",
                found: "f16, of a model without a table of positions".into(),
                expected: "none".into(),
            });
        }
        Ok(())
    }

    /// What codes are chosen by, where there is text to learn it from.
    fn metric(&self, model: &Model, plan: &Plan, cx: &Context) -> Result<Option<Vec<f64>>> {
        // Of the model as it was read, whatever has become of its layers, as long as its rows are these.
        let shape = |model: &Model| (model.embeddings.word.rows(), model.embeddings.word.cols());
        let model = if shape(cx.teacher) == shape(model) { cx.teacher } else { model };
        match cx.calibration {
            Some(text)
                if self.distance == Distance::Answers
                    && plan.rotation.is_some()
                    && model.family.feature.is_none() =>
            {
                Ok(Some(metric::metric(model, text, cx.seed)?))
            }
            _ => Ok(None),
        }
    }

    /// Frequent rows to be stored as they are.
    fn hottest(&self, rows: usize, default: usize) -> usize {
        match self.exact {
            -1 => default.min(rows / HOTTEST_PART),
            exact => exact as usize,
        }
    }

    /// Slices, codewords and rotation, and the number of frequent rows that are stored as they are, beside `special` ones.
    fn plan(
        &self,
        rows: usize,
        cols: usize,
        special: usize,
        notes: &mut Vec<String>,
    ) -> Result<(Plan, usize)> {
        let hottest = self.hottest(rows, HOTTEST);
        let plan =
            |width: usize, rotation: Option<usize>| self.of_width(rows, cols, width, rotation);
        let (plan, hottest) = if self.share > 0.0 {
            let budget = (self.share * (4 * rows * cols) as f64) as usize;
            let row = 2 * cols + 4;
            let widths: Vec<usize> = WIDTHS.into_iter().filter(|w| *w <= cols.max(2)).collect();
            let choices = widths.iter().flat_map(|&width| {
                self.rotations(rows, cols, width).into_iter().map(move |r| (width, r))
            });
            let mut least = usize::MAX;
            let mut found = None;
            for (width, rotation) in choices {
                let plan = plan(width, rotation);
                let start = hottest.min((budget / EXACT_PART / row).saturating_sub(special));
                let bytes = plan.bytes(rows, cols, special + start);
                least = least.min(plan.bytes(rows, cols, special));
                if bytes <= budget {
                    // What is left goes to more of them.
                    found = Some((plan, hottest.min(start + (budget - bytes) / row)));
                    break;
                }
            }
            let Some(found) = found else {
                let least = least as f64 / (4 * rows * cols).max(1) as f64;
                let expected = format!("at least {:.4} for this table", (least * 1e4).ceil() / 1e4);
                return refused("share", self.share.to_string(), &expected);
            };
            found
        } else {
            let width = match (self.bytes, self.preset) {
                (0, Preset::Default) => 4,
                (0, Preset::Small) => 8,
                (bytes, _) if bytes > cols => {
                    return refused(
                        "bytes",
                        bytes.to_string(),
                        &format!("at most {cols}, one a column"),
                    );
                }
                (bytes, _) => cols.div_ceil(bytes),
            };
            let width = width.min(cols);
            (plan(width, self.rotations(rows, cols, width)[0]), hottest)
        };
        if plan.shared {
            notes.push(
                "Codebooks of their own would cost more than the codes: all slices share one"
                    .into(),
            );
        }
        if self.words > 0 && plan.words < self.words || self.words == 0 && plan.words < 256 {
            notes.push(format!("A book has {} codewords: the vocabulary is small", plan.words));
        }
        Ok((plan, hottest))
    }

    fn of_width(&self, rows: usize, cols: usize, width: usize, rotation: Option<usize>) -> Plan {
        let wanted = if self.words == 0 { 256 } else { self.words };
        let slices = cols.div_ceil(width);
        let fit = |points: usize| wanted.min(points / ROWS_PER_WORD).max(1);
        let own = Plan { width, words: fit(rows), shared: false, rotation };
        match 2 * own.words * width > rows {
            true => Plan { words: fit(rows * slices), shared: true, ..own },
            false => own,
        }
    }

    /// Columns that are rotated together, the choices in their order.
    fn rotations(&self, rows: usize, cols: usize, width: usize) -> Vec<Option<usize>> {
        let fits = |b: &usize| cols.is_multiple_of(*b) && b.is_multiple_of(width);
        let block = (1..=BLOCK.min(cols)).rev().find(fits);
        let small = 2 * cols * cols * ROTATION_PART <= rows * cols.div_ceil(width);
        match self.rotation {
            Rotate::None => vec![None],
            Rotate::Full => vec![Some(cols)],
            Rotate::Blocks => vec![Some(block.unwrap_or(cols))],
            Rotate::Auto if small => vec![Some(cols)],
            Rotate::Auto => vec![Some(block.unwrap_or(cols))],
        }
    }

    fn paper_words(&self, rows: usize, cols: usize) -> Result<usize> {
        if self.slices > cols || (self.slices - 1) * cols.div_ceil(self.slices) >= cols {
            let expected = format!("a number of slices that {cols} columns can be cut into");
            return refused("slices", self.slices.to_string(), &expected);
        }
        let least = paper::root(rows, self.slices);
        if least > 1 << 16 {
            return refused("slices", self.slices.to_string(), "2 or more for so many rows");
        }
        match self.words {
            0 => Ok(least),
            words if words < least => {
                let expected = format!(
                    "at least {least}, of which {} slices tell {rows} rows apart",
                    self.slices
                );
                refused("words", words.to_string(), &expected)
            }
            words => Ok(words),
        }
    }

    fn rank(&self, rows: usize, cols: usize, exact: usize) -> Result<usize> {
        let rank = if self.share > 0.0 {
            let budget = self.share * (4 * rows * cols) as f64 - (exact * (2 * cols + 4)) as f64;
            (budget / (2 * (rows + cols)) as f64).max(0.0) as usize
        } else if self.bytes > 0 {
            self.bytes / 2
        } else {
            cols / SVD_PART
        };
        if rank == 0 || rank > cols {
            let (option, found) = match self.share > 0.0 {
                true => ("share", self.share.to_string()),
                false => ("bytes", self.bytes.to_string()),
            };
            let least = (2 * (rows + cols) + exact * (2 * cols + 4)) as f64
                / (4 * rows * cols).max(1) as f64;
            let expected = match self.share > 0.0 {
                true => format!("from {:.4} on, and no more than half", (least * 1e4).ceil() / 1e4),
                false => format!("2 to {}, two bytes a rank", 2 * cols),
            };
            return refused(option, found, &expected);
        }
        Ok(rank)
    }
}

/// Relative squared errors of all rows, exact ones included.
fn errors(tensor: &Tensor, after: &Weight, counts: &[f64]) -> Result<TableErrors> {
    let rows = Rows::all(tensor);
    let cols = rows.cols;
    let block = |i: usize| {
        let span = rows.span(i, ROWS);
        let ids: Vec<u32> = span.clone().map(|row| row as u32).collect();
        let original = rows.read(span.clone())?;
        let found = lookup::rows(after, &ids)?;
        let mut sums = [0.0f64; 4];
        let lines = original.chunks_exact(cols).zip(found.chunks_exact(cols));
        for ((x, y), n) in lines.zip(&counts[span]) {
            let lost: f64 = x.iter().zip(y).map(|(x, y)| ((x - y) as f64).powi(2)).sum();
            let power: f64 = x.iter().map(|x| (*x as f64).powi(2)).sum();
            for (sum, part) in sums.iter_mut().zip([lost, power, n * lost, n * power]) {
                *sum += part;
            }
        }
        Ok(sums)
    };
    let mut sums = [0.0f64; 4];
    sweep(rows.count().div_ceil(ROWS), block, |_, part| {
        sums.iter_mut().zip(part).for_each(|(s, p)| *s += p);
        Ok(())
    })?;
    let share = |lost: f64, power: f64| if power > 0.0 { lost / power } else { 0.0 };
    // Six digits: config.json keeps them.
    let short = |x: f64| format!("{x:.6}").parse().unwrap_or(x);
    Ok(TableErrors {
        uniform: short(share(sums[0], sums[1])),
        frequency: short(share(sums[2], sums[3])),
    })
}

/// Parameters as the paper counts them, beside bytes.
fn size(before: &Weight, after: &Weight) -> String {
    let (params, stored) = (before.params(), after.stored_params());
    let (bytes, left) = (before.bytes(), after.bytes());
    let cut = |before: usize, after: usize| 100.0 * (1.0 - after as f64 / before.max(1) as f64);
    format!(
        "The table has {} numbers in the place of {} ({:.3} % fewer), and {} bytes in the place of {} \
         ({:.3} % fewer, {:.2} times smaller), codes included; {:.2} times smaller than in f32",
        count(stored as u64),
        count(params as u64),
        cut(params, stored),
        count(left as u64),
        count(bytes as u64),
        cut(bytes, left),
        bytes as f64 / left.max(1) as f64,
        (4 * params) as f64 / left.max(1) as f64,
    )
}
