//! Times whole passes over the texts of a file, in batches sorted by length, tokenisation not counted: several
//! models in turn, so that all of them see the same noise. The first one also with every token in every layer, and
//! by `--pad N` with all texts padded to N tokens: where speed comes from. A number in the place of the file is the length of
//! made-up texts, a batch of them.
//!
//! `cargo run --release --example latency -- DATA THREADS MODEL [MODEL ...] [--batch N] [--pad N] [--tokens N] [--runs N] [--texts N]`
//!
//! With `COMPRESS_PYTHON`, a Python that has torch, transformers, onnxscript and onnxruntime, the first model also by these
//! (`model_peers.py`), in turn with ours.

use compress::data::Dataset;
use compress::data::batches::bucket;
use compress::data::tables::Columns;
use compress::data::tokenizer::{Encoded, Tokenizer};
use compress::eval::latency::synthetic;
use compress::model::{Model, cost};
use compress::runtime::kernels::limit_by_environment;
use compress::runtime::{Batch, Encoder, Everything, NoObserver};
use rayon::prelude::*;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

/// Timed passes of each row, after one that warms up, unless `--runs` says otherwise.
const RUNS: usize = 9;
/// Texts of a batch, unless `--batch` says otherwise.
const BATCH: usize = 32;
/// The most tokens of a text, unless `--tokens` says otherwise.
const TOKENS: usize = 128;
const USAGE: &str = "usage: latency DATA THREADS MODEL [MODEL ...] [--batch N] [--pad N] [--tokens N] [--runs N] [--texts N]";

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
    let most = number(&mut args, "--texts")?;
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
    let mut texts = match data.parse() {
        Ok(length) => vec![made_up(&models[0], length); batch],
        Err(_) => {
            let path = Path::new(data);
            Dataset::read(path, &columns, &tokenizer, config, usize::MAX, tokens, 0)?.texts
        }
    };
    if let Some(n) = most {
        let all = texts.len();
        texts = (0..n.min(all)).map(|i| texts[i * all / n.min(all)].clone()).collect();
    }
    let batches: Vec<Batch> = bucket(&texts, usize::MAX, batch);
    let mut peers = match std::env::var_os("COMPRESS_PYTHON") {
        Some(python) => Some(Peers::start(&python, &paths[0], threads, &batches)?),
        None => None,
    };
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
        if let Some(peers) = &mut peers {
            peers.time(run > 0)?;
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
    for (name, times) in peers.iter_mut().flat_map(|p| &mut p.ms) {
        times.sort_by(f64::total_cmp);
        let median = times[runs / 2];
        println!("| {} | {name}, padded | {median:.1} | | {:.2} | | |", paths[0], ms / median);
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

/// A text of `length` tokens.
fn made_up(model: &Model, length: usize) -> Encoded {
    let text = synthetic(&model.config, length);
    Encoded { ids: text.ids, type_ids: text.type_ids }
}

/// A Python that runs the first model by other means.
struct Peers {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
    /// Timed passes of each.
    ms: Vec<(String, Vec<f64>)>,
}

impl Peers {
    fn start(
        python: &std::ffi::OsStr,
        model: &str,
        threads: &str,
        batches: &[Batch],
    ) -> Result<Peers, Box<dyn std::error::Error>> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/model_peers.py");
        let mut command = Command::new(python);
        command.arg(script).args([model, threads]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let to = child.stdin.take().ok_or("no stdin")?;
        let from = BufReader::new(child.stdout.take().ok_or("no stdout")?);
        let mut peers = Peers { child, to, from, ms: Vec::new() };
        let ids = |b: &Batch| -> Vec<Vec<u32>> {
            b.starts.windows(2).map(|s| b.ids[s[0]..s[1]].to_vec()).collect()
        };
        let batches: Vec<Vec<Vec<u32>>> = batches.iter().map(ids).collect();
        let names: Vec<String> =
            serde_json::from_str(&peers.ask(&serde_json::to_string(&batches)?)?)?;
        peers.ms = names.into_iter().map(|name| (name, Vec::new())).collect();
        Ok(peers)
    }

    fn ask(&mut self, request: &str) -> Result<String, Box<dyn std::error::Error>> {
        writeln!(self.to, "{request}")?;
        let mut answer = String::new();
        if self.from.read_line(&mut answer)? == 0 {
            return Err("the peers stopped: see above".into());
        }
        Ok(answer.trim().to_string())
    }

    /// Runs each once; `counts` says whether it is kept.
    fn time(&mut self, counts: bool) -> Result<(), Box<dyn std::error::Error>> {
        for i in 0..self.ms.len() {
            let name = self.ms[i].0.clone();
            let ms = self.ask(&name)?.parse()?;
            if counts {
                self.ms[i].1.push(ms);
            }
        }
        Ok(())
    }
}

impl Drop for Peers {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
