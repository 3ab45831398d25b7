//! `compress bench MODEL …`

use super::compare::{JudgeArgs, TimingArgs, gather};
use super::{ThreadArgs, print, print_json, progress};
use clap::Args;
use compress::compare::Entry as Variant;
use compress::eval::latency;
use compress::eval::load::{Load, Timing, time};
use compress::pipeline::cpu_features;
use compress::report::{counted, plain_table};
use compress::runtime::Encoder;
use compress::{Error, Result};
use serde_json::json;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub struct BenchArgs {
    /// Checkpoints, timed in turn; the first is what the others are compared with
    #[arg(required = true, value_name = "MODEL")]
    models: Vec<PathBuf>,
    /// Tokens of a text; several, separated by commas, are timed one after the other. Not with --eval
    /// [default: 16,64,128, as far as every model takes them]
    #[arg(long, value_name = "N,…", value_delimiter = ',', conflicts_with = "eval")]
    length: Vec<usize>,
    #[command(flatten)]
    judging: JudgeArgs,
    /// Also time the first model in f16 and in int8, as `quantize` makes them
    #[arg(long)]
    baselines: bool,
    #[command(flatten)]
    timing: TimingArgs,
    #[command(flatten)]
    threads: ThreadArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// No progress on stderr
    #[arg(short, long)]
    quiet: bool,
}

pub fn main(args: &BenchArgs) -> Result<()> {
    args.threads.apply()?;
    args.timing.check()?;
    let bar = progress::Bar::new(args.quiet);
    let (entries, data) = gather(&args.models, &args.judging, args.baselines, &bar)?;
    let loads: Vec<Vec<Load>> = match &data {
        Some(_) => entries.iter().map(|e| args.timing.loads(e)).collect(),
        None => {
            let mut sizes = Vec::new();
            let lengths = lengths(&args.length, &entries)?;
            for entry in &entries {
                let sized = |batch: usize| {
                    lengths.iter().map(move |&tokens| Load::synthetic(&entry.model, batch, tokens))
                };
                sizes.push(args.timing.sizes().into_iter().flat_map(sized).collect());
            }
            sizes
        }
    };
    let encoders: Vec<Encoder> =
        entries.iter().map(|e| Encoder::packed(&e.model)).collect::<Result<_>>()?;
    let encoders: Vec<&Encoder> = encoders.iter().collect();
    use compress::pass::Progress;
    bar.start("timing", loads.first().map_or(0, Vec::len) * (args.timing.runs() + 1));
    let timings = time(&encoders, &loads, args.timing.runs(), &|| bar.step())?;
    bar.finish();
    let described = match &data {
        Some(_) => args.timing.described(data.as_ref()),
        None => "texts of equal length".into(),
    };
    if args.json {
        let of = |(e, t): (&Variant, &Vec<Timing>)| json!({"name": e.name, "file_bytes": e.file_bytes, "timings": t});
        return print_json(&json!({
            "version": env!("CARGO_PKG_VERSION"),
            "cpu_features": cpu_features(),
            "threads": rayon::current_num_threads(),
            "timed_on": described,
            "models": entries.iter().zip(&timings).map(of).collect::<Vec<_>>(),
        }));
    }
    let mut rows = Vec::new();
    for l in 0..loads.first().map_or(0, Vec::len) {
        for (entry, timings) in entries.iter().zip(&timings) {
            let t = &timings[l];
            let length = t.tokens as f64 / t.texts.max(1) as f64;
            rows.push(vec![
                entry.name.clone(),
                t.batch.to_string(),
                format!("{length:.1}").trim_end_matches(".0").to_string(),
                format!(
                    "{:.2} ({:.2} to {:.2})",
                    t.batch_ms.median, t.batch_ms.low, t.batch_ms.high
                ),
                format!("{:.0}", t.texts_per_second),
                format!("{:.0}", t.tokens_per_second),
                format!("{:.2}x ({:.2} to {:.2})", t.speedup.median, t.speedup.low, t.speedup.high),
            ]);
        }
    }
    let length = if data.is_some() { "mean tokens" } else { "tokens" };
    print(&plain_table(
        &["", "batch", length, "ms a batch", "texts/s", "tokens/s", "as fast as the first"],
        &rows,
    ))?;
    print(&format!(
        "\n{described}, {}, {}; {} in turn, the quarters around them in parentheses\n",
        counted(rayon::current_num_threads() as u64, "thread"),
        cpu_features().join(" "),
        args.timing.told(),
    ))
}

/// Tokens of a text where none are given.
const LENGTHS: [usize; 3] = [16, 64, 128];

/// The lengths that are timed: those `given`, or the usual ones that every model takes, or the most that all of them do.
fn lengths(given: &[usize], entries: &[Variant]) -> Result<Vec<usize>> {
    let most = |entry: &Variant| latency::max_tokens(&entry.model.config, entry.model.family);
    let narrowest = entries.iter().min_by_key(|e| most(e)).expect("clap requires a model");
    let most = most(narrowest);
    if let Some(length) = given.iter().find(|&&n| n == 0 || n > most) {
        return Err(Error::Usage {
            found: format!("--length has {length}"),
            advice: format!("{} takes 1 to {most} tokens", narrowest.name),
        });
    }
    let usual: Vec<usize> = LENGTHS.into_iter().filter(|&n| n <= most).collect();
    Ok(match (given, &usual[..]) {
        ([], []) => vec![most],
        ([], _) => usual,
        _ => given.to_vec(),
    })
}
