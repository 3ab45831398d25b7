//! Times whole passes over the texts of a file, in batches sorted by length, tokenisation not counted: several
//! models in turn, so that all of them see the same noise. The first one also with every token in every layer, and
//! by `--pad N` with all texts padded to N tokens: where speed comes from.
//!
//! `cargo run --release --example latency -- DATA THREADS MODEL [MODEL ...] [--batch N] [--pad N] [--tokens N] [--runs N]`

use compress::data::Dataset;
use compress::data::batches::bucket;
use compress::data::tables::Columns;
use compress::data::tokenizer::{Encoded, Tokenizer};
use compress::model::{Model, cost};
use compress::runtime::kernels::limit_by_environment;
use compress::runtime::{Batch, Encoder, Everything, NoObserver};
use rayon::prelude::*;
use std::path::Path;
use std::time::Instant;

/// Timed passes of each row, after one that warms up, unless `--runs` says otherwise.
const RUNS: usize = 9;
/// Texts of a batch, unless `--batch` says otherwise.
const BATCH: usize = 32;
/// The most tokens of a text, unless `--tokens` says otherwise.
const TOKENS: usize = 128;
const USAGE: &str =
    "usage: latency DATA THREADS MODEL [MODEL ...] [--batch N] [--pad N] [--tokens N] [--runs N]";

/// One row of the table.
struct Row<'a> {
    path: &'a str,
    way: String,
    encoder: Encoder<'a>,
    /// Every token in every layer, as a plain runtime does.
    whole: bool,
    batches: &'a [Batch],
    ms: Vec<f64>,
}

impl Row<'_> {
    fn time(&mut self) -> compress::Result<f64> {
        let (encoder, whole) = (&self.encoder, self.whole);
        let start = Instant::now();
        self.batches.par_iter().try_for_each(|batch| {
            let output = match whole {
                true => encoder.forward(batch, None, &mut Everything),
                false => encoder.forward(batch, None, &mut NoObserver),
            };
            output.map(|_| ())
        })?;
        Ok(start.elapsed().as_secs_f64() * 1e3)
    }

    fn flops(&self) -> u64 {
        let spans = self.batches.iter().flat_map(|b| b.starts.windows(2));
        let model = self.encoder.model;
        let macs = |tokens| match self.whole {
            true => cost::whole_macs(model, tokens),
            false => cost::macs(model, 1, tokens),
        };
        2 * spans.map(|span| macs(span[1] - span[0])).sum::<u64>()
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    limit_by_environment()?;
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    let pad = number(&mut args, "--pad")?;
    let tokens = number(&mut args, "--tokens")?.unwrap_or(TOKENS);
    let batch = number(&mut args, "--batch")?.unwrap_or(BATCH);
    let runs = number(&mut args, "--runs")?.unwrap_or(RUNS);
    let [data, threads, paths @ ..] = &args[..] else { return Err(USAGE.into()) };
    if paths.is_empty() {
        return Err("give at least one model".into());
    }
    rayon::ThreadPoolBuilder::new().num_threads(threads.parse()?).build_global()?;
    let models: Vec<Model> =
        paths.iter().map(|p| Model::open(Path::new(p))).collect::<Result<_, _>>()?;
    let tokenizer =
        Tokenizer::load(Path::new(&paths[0]))?.ok_or("the first model has no tokenizer")?;
    let columns = Columns::default();
    let config = &models[0].config;
    let texts =
        Dataset::read(Path::new(data), &columns, &tokenizer, config, usize::MAX, tokens, 0)?.texts;
    let batches: Vec<Batch> = bucket(&texts, usize::MAX, batch);
    let padded: Vec<Batch> = match pad {
        Some(n) => bucket(&padded(&texts, n, config.pad_id), usize::MAX, batch),
        None => Vec::new(),
    };

    let mut rows = Vec::new();
    let mut row = |path, way: &str, encoder, whole, batches| {
        rows.push(Row { path, way: way.into(), encoder, whole, batches, ms: Vec::new() });
    };
    let whole = Encoder { tokens: None, ..Encoder::packed(&models[0])? };
    if let Some(n) = pad {
        row(&paths[0], &format!("padded to {n}"), whole.clone(), true, &padded[..]);
    }
    row(&paths[0], "unpadded, all of it", whole, true, &batches);
    for (path, model) in paths.iter().zip(&models) {
        row(path, "unpadded", Encoder::packed(model)?, false, &batches);
    }
    for run in 0..=runs {
        for row in &mut rows {
            let ms = row.time()?;
            if run > 0 {
                row.ms.push(ms);
            }
        }
    }
    println!(
        "{} texts; ms a pass: median of {runs}; factors are those to the first row.\n",
        texts.len()
    );
    println!("| model | way | ms | GFLOPs | x as fast | x fewer FLOPs | of the FLOPs' factor |");
    println!("|---|---|---|---|---|---|---|");
    rows.iter_mut().for_each(|row| row.ms.sort_by(f64::total_cmp));
    let (ms, flops) = (rows[0].ms[runs / 2], rows[0].flops() as f64);
    for row in &rows {
        let (faster, fewer) = (ms / row.ms[runs / 2], flops / row.flops() as f64);
        println!(
            "| {} | {} | {:.1} | {:.3} | {faster:.2} | {fewer:.2} | {:.2} |",
            row.path,
            row.way,
            row.ms[runs / 2],
            row.flops() as f64 / 1e9,
            faster / fewer,
        );
    }
    Ok(())
}

/// Takes `name` and the number behind it out of `args`.
fn number(args: &mut Vec<String>, name: &str) -> Result<Option<usize>, Box<dyn std::error::Error>> {
    let Some(at) = args.iter().position(|a| a == name) else { return Ok(None) };
    let value = args.get(at + 1).ok_or(USAGE)?.parse::<usize>()?;
    if value == 0 {
        return Err(format!("{name} is 0").into());
    }
    args.drain(at..at + 2);
    Ok(Some(value))
}

/// All texts at `n` tokens: cut, or with `pad` behind them.
fn padded(texts: &[Encoded], n: usize, pad: u32) -> Vec<Encoded> {
    let one = |text: &Encoded| {
        let mut text = text.clone();
        text.ids.resize(n, pad);
        text.type_ids.resize(n, 0);
        text
    };
    texts.iter().map(one).collect()
}
