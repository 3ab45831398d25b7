//! Variants of one model side by side: size, compute, speed and quality, with what is left of each.
//!
//! The first one is what the others are measured against. Everything that is shown, as text or as a page, is in
//! [`Comparison`], which is also what `--json` prints.

mod page;
mod plot;
mod searched;
mod tables;

pub use page::page;
pub use searched::{Searched, Tried, searched_table};
pub use tables::{removed, table};

use crate::checkpoint::{file_bytes, read_json};
use crate::data::tokenizer::Encoded;
use crate::eval::load::{self, Load, Timing};
use crate::eval::paired::{Difference, Outcomes, difference};
use crate::eval::tasks::{Metric, Prepared, answer, fidelity_of, metrics, outcomes};
use crate::model::cost::{self, Macs};
use crate::model::{Model, Weight};
use crate::pass::{Context, Pass, Progress, Quiet};
use crate::passes::quantize::{Form, Quantize};
use crate::pipeline::{cpu_features, macs_of};
use crate::report::{LayerNote, Summary};
use crate::runtime::Encoder;
use crate::{Error, Result};
use serde::Serialize;
use serde_json::Value;
use std::path::Path;

/// Version of what `compare --json` prints.
pub const SCHEMA: u32 = 1;

/// A model to be compared, and what it is run on.
#[derive(Debug)]
pub struct Entry {
    pub name: String,
    pub model: Model,
    /// Of its weight files, or those that would be written.
    pub file_bytes: u64,
    /// Made for the comparison, not given.
    pub baseline: bool,
    /// Examples in the tokens of this model.
    pub prepared: Option<Prepared>,
    /// What it is timed on: the same work at the same place for every model.
    pub loads: Vec<Load>,
    pub passes: Vec<Removed>,
}

/// Variants side by side.
#[derive(Debug, Clone, Serialize)]
pub struct Comparison {
    pub schema: u32,
    pub version: &'static str,
    pub cpu_features: Vec<&'static str>,
    pub threads: usize,
    /// What they were judged by.
    pub data: Option<DataNote>,
    /// What they were timed on.
    pub timed_on: String,
    /// In the order given; the first is the reference.
    pub variants: Vec<Variant>,
    /// What searches tried, each judged by texts of its own.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub searches: Vec<Searched>,
}

/// Examples, by name.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DataNote {
    pub name: String,
    pub examples: usize,
}

/// One of the models.
#[derive(Debug, Clone, Serialize)]
pub struct Variant {
    pub name: String,
    pub baseline: bool,
    pub file_bytes: u64,
    /// Logical parameters, tied tensors once.
    pub params: usize,
    /// Of the matrices of the layers, everything stored for them counted.
    pub bits_per_weight: f64,
    pub embedding: Table,
    pub parts: cost::Cost,
    /// Of one text of as many tokens as reports use.
    pub flops: Flops,
    /// Of all examples, each at its own length.
    pub flops_on_data: Option<u64>,
    pub metrics: Vec<Metric>,
    /// Of the first metric, to that of the reference.
    pub difference: Option<Difference>,
    /// How close its answers are to the reference's.
    pub closeness: Vec<Metric>,
    pub timings: Vec<Timing>,
    pub layers: Vec<Layer>,
    pub passes: Vec<Removed>,
}

/// The word embeddings.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Table {
    pub rows: usize,
    pub form: String,
    pub bytes: usize,
}

/// FLOPs of one text, by what they are spent on.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Flops {
    pub tokens: usize,
    pub total: u64,
    /// The linear layers of attention.
    pub attention: u64,
    /// Scores and contexts: what grows with the square of the length.
    pub products: u64,
    pub ffn: u64,
    pub around: u64,
}

/// What is left of one layer.
#[derive(Debug, Clone, Serialize)]
pub struct Layer {
    #[serde(flatten)]
    pub note: LayerNote,
    /// Bits stored for each weight of its matrices; 0 where nothing is left.
    pub bits_per_weight: f64,
}

/// What a pass took away, as its run reported it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Removed {
    pub pass: String,
    pub params_before: u64,
    pub params_after: u64,
    pub bytes_before: u64,
    pub bytes_after: u64,
}

/// What people use instead: `model` in half precision and in 8-bit integers, as `quantize` makes them.
///
/// # Errors
/// As the pass; a model with a packed matrix has no such baselines, and gets none.
pub fn baselines(name: &str, model: &Model, progress: &dyn Progress) -> Result<Vec<Entry>> {
    let dense = |w: &Weight| matches!(w, Weight::Dense(_));
    let linears = model.layers.iter().flat_map(|l| l.linears());
    if !dense(&model.embeddings.word) || !linears.into_iter().all(|(_, l)| dense(&l.weight)) {
        return Ok(Vec::new());
    }
    let one = |(label, form)| {
        let mut made = model.clone();
        let pass = Quantize { form, embeddings: form, head: Form::None };
        pass.run(&mut made, &Context { progress, ..Context::new(model) })?;
        let name = format!("{name} ({label})");
        let file_bytes = file_bytes(&made.compacted().tensors())?;
        let (prepared, loads, passes) = (None, Vec::new(), Vec::new());
        Ok(Entry { name, model: made, file_bytes, baseline: true, prepared, loads, passes })
    };
    [("f16", Form::F16), ("int8", Form::Int8)].into_iter().map(one).collect()
}

/// What the passes of the run that wrote `folder` took away, if one did.
///
/// # Errors
/// If there is a report that cannot be read.
pub fn removed_by_passes(folder: &Path) -> Result<Vec<Removed>> {
    let path = folder.join("report.json");
    if !path.is_file() {
        return Ok(Vec::new());
    }
    let report = read_json(&path)?;
    let number = |pass: &Value, key: &str| pass[key].as_u64();
    let one = |pass: &Value| {
        Some(Removed {
            pass: pass["name"].as_str()?.to_string(),
            params_before: number(pass, "params_before")?,
            params_after: number(pass, "params_after")?,
            bytes_before: number(pass, "bytes_before")?,
            bytes_after: number(pass, "bytes_after")?,
        })
    };
    let passes = report["passes"].as_array().map(|passes| passes.iter().map(one).collect());
    passes.unwrap_or(Some(Vec::new())).ok_or(Error::Malformed {
        path,
        found: "passes without a name or numbers".into(),
        expected: "the report of an output".into(),
        advice: "write the output again",
    })
}

/// Texts to time models on: at most `n` of those of `prepared`, spread over it, at the same places for every model.
pub fn typical(prepared: &Prepared, n: usize) -> Vec<Encoded> {
    let mut texts = vec![None; prepared.rows];
    for batch in &prepared.batches {
        for (span, &row) in batch.starts.windows(2).zip(&batch.rows) {
            let (ids, type_ids) = (&batch.ids[span[0]..span[1]], &batch.type_ids[span[0]..span[1]]);
            texts[row] = Some(Encoded { ids: ids.to_vec(), type_ids: type_ids.to_vec() });
        }
    }
    let rows = prepared.rows;
    let n = n.min(rows);
    (0..n).filter_map(|i| texts[i * rows / n].take()).collect()
}

/// Judges and times `entries`; the first is the reference.
///
/// # Errors
/// What judging and running them refuses.
///
/// # Panics
/// If there is no entry.
pub fn compare(
    entries: &[Entry],
    data: Option<DataNote>,
    timed_on: String,
    runs: usize,
    progress: &dyn Progress,
) -> Result<Comparison> {
    let first = entries.first().expect("something to compare");
    let encoders: Vec<Encoder> =
        entries.iter().map(|e| Encoder::packed(&e.model)).collect::<Result<_>>()?;
    progress.start("judging", entries.len());
    let mut reference = None;
    let mut judged = Vec::new();
    for (entry, encoder) in entries.iter().zip(&encoders) {
        judged.push(match &entry.prepared {
            None => Judged::default(),
            Some(prepared) => {
                let answers = answer(encoder, &prepared.batches, prepared.rows, &Quiet)?;
                let found = match prepared.targets.is_some() {
                    // By the labels of the reference: what a class is called is its business.
                    true => metrics(&first.model, prepared, &answers)?,
                    false => Vec::new(),
                };
                let own = outcomes(&first.model, prepared, &answers);
                let flops = 2 * macs_of(&entry.model, &prepared.batches);
                match &reference {
                    None => {
                        reference = Some((answers, own));
                        Judged { metrics: found, flops: Some(flops), ..Judged::default() }
                    }
                    Some((theirs, reference)) => Judged {
                        metrics: found,
                        difference: differs(reference, &own),
                        closeness: fidelity_of(&first.model, theirs, &answers),
                        flops: Some(flops),
                    },
                }
            }
        });
        progress.step()?;
    }
    let loads: Vec<Vec<Load>> = entries.iter().map(|e| e.loads.clone()).collect();
    let rounds = loads.first().map_or(0, |l| l.len()) * (runs + 1);
    progress.start("timing", rounds);
    let timings =
        load::time(&encoders.iter().collect::<Vec<_>>(), &loads, runs, &|| progress.step())?;
    let variants = entries.iter().zip(judged).zip(timings);
    Ok(Comparison {
        schema: SCHEMA,
        version: env!("CARGO_PKG_VERSION"),
        cpu_features: cpu_features(),
        threads: rayon::current_num_threads(),
        data,
        timed_on,
        variants: variants.map(|((e, judged), timings)| variant(e, judged, timings)).collect(),
        searches: Vec::new(),
    })
}

/// What running a model on the examples told.
#[derive(Debug, Default)]
struct Judged {
    metrics: Vec<Metric>,
    difference: Option<Difference>,
    closeness: Vec<Metric>,
    flops: Option<u64>,
}

fn differs(reference: &Option<Outcomes>, own: &Option<Outcomes>) -> Option<Difference> {
    difference(reference.as_ref()?, own.as_ref()?, 0)
}

fn variant(entry: &Entry, judged: Judged, timings: Vec<Timing>) -> Variant {
    let model = &entry.model;
    let summary = Summary::of(model, entry.file_bytes);
    let word = &model.embeddings.word;
    let Macs { attention, products, ffn, around } =
        cost::macs_by_part(model, summary.compute.tokens);
    let bits = |layer: &crate::model::Layer| {
        let linears = layer.linears();
        let bytes: usize = linears.iter().map(|(_, l)| l.weight.bytes()).sum();
        let params: usize = linears.iter().map(|(_, l)| l.weight.params()).sum();
        8.0 * bytes as f64 / params.max(1) as f64
    };
    Variant {
        name: entry.name.clone(),
        baseline: entry.baseline,
        file_bytes: entry.file_bytes,
        params: summary.cost.total.params,
        bits_per_weight: summary.bits_per_weight,
        embedding: Table { rows: word.rows(), form: word.form(), bytes: word.bytes() },
        flops: Flops {
            tokens: summary.compute.tokens,
            total: summary.compute.flops,
            attention: 2 * attention,
            products: 2 * products,
            ffn: 2 * ffn,
            around: 2 * around,
        },
        parts: summary.cost,
        flops_on_data: judged.flops,
        metrics: judged.metrics,
        difference: judged.difference,
        closeness: judged.closeness,
        timings,
        layers: summary
            .layers
            .into_iter()
            .zip(&model.layers)
            .map(|(note, layer)| Layer { note, bits_per_weight: bits(layer) })
            .collect(),
        passes: entry.passes.clone(),
    }
}

impl Variant {
    /// The metric that decides.
    pub fn metric(&self) -> Option<&Metric> {
        self.metrics.first()
    }

    /// What one batch of the largest size costs, in milliseconds.
    pub fn batch_ms(&self) -> Option<&Timing> {
        self.timings.iter().max_by_key(|t| (t.batch, t.tokens))
    }
}

/// Of `variants`, in the order of falling cost, those that no other beats in both cost and value: the Pareto front.
///
/// - `points`: cost (less is better) and value (more is better)
pub fn front(points: &[(f64, f64)]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..points.len()).collect();
    // The cheapest first, of equals the best.
    order.sort_by(|&a, &b| {
        points[a]
            .0
            .total_cmp(&points[b].0)
            .then(points[b].1.total_cmp(&points[a].1))
            .then(a.cmp(&b))
    });
    let mut best = f64::NEG_INFINITY;
    order.retain(|&i| {
        let better = points[i].1 > best;
        best = best.max(points[i].1);
        better
    });
    order
}

#[cfg(test)]
mod tests;
