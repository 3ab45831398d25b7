//! Times whole passes over the texts of a file, in batches of 32 sorted by length, tokenisation not counted: several
//! models in turn, so that all of them see the same noise.
//!
//! `cargo run --release --example latency -- DATA THREADS MODEL [MODEL ...]`

use compress::data::batches::bucket;
use compress::data::tables::Columns;
use compress::data::{Dataset, tokenizer::Tokenizer};
use compress::model::Model;
use compress::runtime::{Batch, Encoder, NoObserver};
use rayon::prelude::*;
use std::path::Path;
use std::time::Instant;

/// Timed passes of each model, after one that warms up.
const RUNS: usize = 9;
const BATCH: usize = 32;
/// The most tokens of a text.
const TOKENS: usize = 128;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [data, threads, paths @ ..] = &args[..] else {
        return Err("usage: latency DATA THREADS MODEL [MODEL ...]".into());
    };
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
        Dataset::read(Path::new(data), &columns, &tokenizer, config, usize::MAX, TOKENS, 0)?.texts;
    let batches: Vec<Batch> = bucket(&texts, usize::MAX, BATCH);
    let encoders: Vec<Encoder> = models.iter().map(Encoder::new).collect::<Result<_, _>>()?;
    let mut times = vec![Vec::new(); encoders.len()];
    for run in 0..=RUNS {
        for (encoder, times) in encoders.iter().zip(&mut times) {
            let start = Instant::now();
            batches
                .par_iter()
                .try_for_each(|batch| encoder.forward(batch, None, &mut NoObserver).map(|_| ()))?;
            if run > 0 {
                times.push(start.elapsed().as_secs_f64() * 1e3);
            }
        }
    }
    println!("| model | ms a pass, median of {RUNS} | least | times as fast as the first |");
    println!("|---|---|---|---|");
    times.iter_mut().for_each(|t| t.sort_by(f64::total_cmp));
    for (path, of) in paths.iter().zip(&times) {
        let ratio = times[0][RUNS / 2] / of[RUNS / 2];
        println!("| {path} | {:.1} | {:.1} | {ratio:.2} |", of[RUNS / 2], of[0]);
    }
    Ok(())
}
