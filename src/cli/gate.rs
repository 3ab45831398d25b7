//! `compress gate OUT`: does an output keep what it has to?

use super::compare::{JudgeArgs, TimingArgs, gather, measure};
use super::units::{Kept, Ratio, Share, Size};
use super::verify::check_files;
use super::{ThreadArgs, print, print_json, progress};
use clap::Args;
use compress::checkpoint::read_json;
use compress::compare::{Comparison, DataNote};
use compress::emit::Target;
use compress::pipeline::weight_bytes;
use compress::report::{count, plain_table};
use compress::{Error, Result};
use serde::Serialize;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

#[derive(Debug, Args)]
pub struct GateArgs {
    /// The output to be checked
    output: PathBuf,
    /// The model that it was made from: judged and timed beside it. Without it, the report in OUT says how good and how
    /// fast that was, if the files are those that it names
    #[arg(long, value_name = "MODEL")]
    against: Option<PathBuf>,
    /// The most that the main metric may fall by: `1%` or `0.01` is one point, and all of it `100%`
    #[arg(long, value_name = "DROP")]
    max_drop: Option<Share>,
    /// The least share of answers that must be as those of the original, as `98%`
    #[arg(long, value_name = "SHARE")]
    min_agreement: Option<Kept>,
    /// The most bytes of the weight files, as `20MB`, `19.5MiB` or a number of bytes
    #[arg(long, value_name = "SIZE")]
    max_size: Option<Size>,
    /// The most time that it may take, as a share of the original's: 0.5 or 50% is twice as fast
    #[arg(long, value_name = "RATIO")]
    max_latency_ratio: Option<Ratio>,
    #[command(flatten)]
    judging: JudgeArgs,
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

/// One thing that was asked for.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Check {
    name: &'static str,
    passed: bool,
    found: f64,
    limit: f64,
    /// `measured` now, or what the `report` of the run says.
    source: &'static str,
    /// What quality was judged by; `None` for what needs no texts.
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<DataNote>,
    /// What was found, in words.
    text: String,
}

impl Check {
    fn at_most(
        name: &'static str,
        found: f64,
        limit: f64,
        source: &'static str,
        text: String,
    ) -> Check {
        Check { name, passed: found <= limit, found, limit, source, data: None, text }
    }

    /// Names the texts that it comes from.
    fn of(mut self, data: Option<DataNote>) -> Check {
        if let Some(data) = &data {
            self.text += &format!("; {} texts of {}", count(data.examples as u64), data.name);
        }
        Check { data, ..self }
    }
}

pub fn main(args: &GateArgs) -> Result<()> {
    args.threads.apply()?;
    args.timing.check()?;
    std::fs::metadata(&args.output)
        .map_err(|source| Error::Read { path: args.output.clone(), source })?;
    let quality = args.max_drop.is_some() || args.min_agreement.is_some();
    if !quality && args.max_size.is_none() && args.max_latency_ratio.is_none() {
        return Err(Error::Usage {
            found: "nothing is asked of the output".into(),
            advice: "give --max-drop, --min-agreement, --max-size or --max-latency-ratio".into(),
        });
    }
    let mut checks = Vec::new();
    if let Some(Size(limit)) = args.max_size {
        let found = weight_bytes(&args.output)?;
        let text = format!("{} bytes, at most {}", count(found), count(limit));
        checks.push(Check::at_most("size", found as f64, limit as f64, "measured", text));
    }
    match &args.against {
        Some(original) if quality || args.max_latency_ratio.is_some() => {
            if quality && args.judging.eval().is_none() {
                return Err(Error::Usage {
                    found: "there is nothing to judge by".into(),
                    advice: "give examples with --eval".into(),
                });
            }
            let bar = progress::Bar::new(args.quiet);
            let models = [original.clone(), args.output.clone()];
            let (entries, data) = gather(&models, &args.judging, false, &bar)?;
            let comparison = measure(entries, data, &args.timing, &bar)?;
            bar.finish();
            measured(args, &comparison, &mut checks)?;
        }
        Some(_) => {}
        None => reported(args, &mut checks)?,
    }
    let failed: Vec<&Check> = checks.iter().filter(|c| !c.passed).collect();
    if args.json {
        print_json(&json!({"passed": failed.is_empty(), "checks": checks}))?;
    } else {
        let row = |c: &Check| {
            let verdict = if c.passed { "ok" } else { "FAILED" };
            vec![c.name.to_string(), verdict.to_string(), c.source.to_string(), c.text.clone()]
        };
        let rows: Vec<Vec<String>> = checks.iter().map(row).collect();
        print(&plain_table(&["", "", "from", "found"], &rows))?;
    }
    match failed.is_empty() {
        true => Ok(()),
        false => Err(Error::Gate {
            failed: failed
                .iter()
                .map(|c| format!("{}: {}", c.name, c.text))
                .collect::<Vec<_>>()
                .join("; "),
        }),
    }
}

/// From both models, run side by side.
fn measured(args: &GateArgs, comparison: &Comparison, checks: &mut Vec<Check>) -> Result<()> {
    let [original, output] = &comparison.variants[..] else {
        unreachable!("two models were compared");
    };
    if let Some(Share(limit)) = args.max_drop {
        let (Some(before), Some(after), Some(d)) =
            (original.metric(), output.metric(), output.difference)
        else {
            return Err(no_metric());
        };
        let text = format!(
            "{} {:.4}, before {:.4} ({:+.4}, 95 % {:+.4} to {:+.4}), at most {limit} less",
            after.name, after.value, before.value, d.value, d.interval[0], d.interval[1]
        );
        let check = Check::at_most("drop", -d.value, limit, "measured", text);
        checks.push(check.of(comparison.data.clone()));
    }
    if let Some(Kept(limit)) = args.min_agreement {
        let agreement = output.closeness.iter().find(|m| m.name == "agreement");
        let check = agrees(agreement.map(|m| m.value), limit, "measured")?;
        checks.push(check.of(comparison.data.clone()));
    }
    if let Some(Ratio(limit)) = args.max_latency_ratio {
        // The slowest of the loads decides: each of them is somebody's use.
        let worst =
            output.timings.iter().min_by(|a, b| a.speedup.median.total_cmp(&b.speedup.median));
        let worst = worst.expect("at least one batch size is timed");
        let found = 1.0 / worst.speedup.median;
        let text = format!(
            "{found:.3} of the time in batches of {} ({:.3} to {:.3}), at most {limit}",
            worst.batch,
            1.0 / worst.speedup.high,
            1.0 / worst.speedup.low
        );
        checks.push(Check::at_most("latency", found, limit, "measured", text));
    }
    Ok(())
}

/// From what the run that wrote the output found.
fn reported(args: &GateArgs, checks: &mut Vec<Check>) -> Result<()> {
    let path = |name: &str| args.output.join(name);
    let missing = |path: &Path, found: &str| Error::Mismatch {
        found: format!("{} {found}", path.display()),
        expected:
            "without --against, the report in the output is all that is known of the original"
                .into(),
        advice: "give the original with --against, and examples with --eval",
    };
    let read = |name: &str| -> Result<Value> {
        match path(name).is_file() {
            true => read_json(&path(name)),
            false => Err(missing(&path(name), "is not there")),
        }
    };
    let quality = args.max_drop.is_some() || args.min_agreement.is_some();
    if !quality && args.max_latency_ratio.is_none() {
        return Ok(());
    }
    let report = read("report.json")?;
    // It tells of the model that it was written with.
    check_files(&args.output, &report, answers)?;
    if quality {
        let quality = &report["quality"];
        let (Some(name), Some(examples)) = (quality["data"].as_str(), quality["examples"].as_u64())
        else {
            return Err(missing(&path("report.json"), "does not judge"));
        };
        // Without --eval the run judged by text of its own: whoever reads the verdict is to see that.
        let data = Some(DataNote { name: name.to_string(), examples: examples as usize });
        if let Some(eval) = args.judging.eval() {
            let given = super::examples_file(eval)?;
            let found = match quality["sha256"].as_str() {
                Some(sha256) if sha256 == given.sha256 => None,
                Some(_) => {
                    Some(format!("does not judge by {}, but by another {name}", eval.display()))
                }
                // Of an earlier version, or judged by text that calibration held out.
                None => Some(format!("does not judge by {} as far as it says", eval.display())),
            };
            if let Some(found) = found {
                return Err(missing(&path("report.json"), &found));
            }
        }
        if let Some(Share(limit)) = args.max_drop {
            let value = |when: &str| quality[when][0]["value"].as_f64();
            let (Some(before), Some(after)) = (value("before"), value("after")) else {
                return Err(missing(&path("report.json"), "has no metric"));
            };
            let name = quality["after"][0]["name"].as_str().unwrap_or("metric");
            let text = format!("{name} {after:.4}, before {before:.4}, at most {limit} less");
            let check = Check::at_most("drop", before - after, limit, "report", text);
            checks.push(check.of(data.clone()));
        }
        if let Some(Kept(limit)) = args.min_agreement {
            let all = quality["fidelity"].as_array().into_iter().flatten();
            let found = all.filter(|m| m["name"] == "agreement").find_map(|m| m["value"].as_f64());
            checks.push(agrees(found, limit, "report")?.of(data));
        }
    }
    if let Some(Ratio(limit)) = args.max_latency_ratio {
        let measured = read("measured.json")?;
        let ms = |i: usize| measured["latency"][i]["median_ms"].as_f64();
        let (Some(before), Some(after)) = (ms(0), ms(1)) else {
            return Err(missing(&path("measured.json"), "has no latency"));
        };
        let found = after / before;
        let text = format!(
            "{after:.2} ms, before {before:.2} ms: {found:.3} of the time, at most {limit}"
        );
        checks.push(Check::at_most("latency", found, limit, "report", text));
    }
    Ok(())
}

/// Whether answers depend on this file of an output: papers may be edited, and targets for other software be gone.
fn answers(name: &str) -> bool {
    let target = Target::ALL.iter().any(|t| name.starts_with(&format!("{}/", t.name())));
    !target && [".safetensors", ".json", ".txt", ".model"].iter().any(|end| name.ends_with(end))
}

fn agrees(found: Option<f64>, limit: f64, source: &'static str) -> Result<Check> {
    let Some(found) = found else {
        return Err(Error::Mismatch {
            found: "this head has no answers that agree or not".into(),
            expected: "--min-agreement counts equal classes".into(),
            advice: "use --max-drop",
        });
    };
    let text = format!("{found:.4} of the answers are the original's, at least {limit}");
    Ok(Check { name: "agreement", passed: found >= limit, found, limit, source, data: None, text })
}

fn no_metric() -> Error {
    Error::Mismatch {
        found: "the examples have no labels".into(),
        expected: "a drop is one of a metric".into(),
        advice: "give labelled examples, or use --min-agreement",
    }
}
