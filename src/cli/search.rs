//! `compress search MODEL --target … -o OUT`

use super::run::hashes;
use super::texts::TextArgs;
use super::units::{Share, Size};
use super::{
    ThreadArgs, file_name, keep_freed_buffers, max_tokens, print, print_json, progress,
    recipe_text, tokenizer,
};
use clap::Args;
use compress::checkpoint::OutputFolder;
use compress::data::calibration::unseen;
use compress::data::tokenizer::Tokenizer;
use compress::data::{Calibration, Source};
use compress::model::Model;
use compress::pass::Progress;
use compress::pipeline::plan::{Foreseen, planned_bytes};
use compress::pipeline::{self, Options, Outcome, Texts, root, side_files, weight_bytes};
use compress::recipe::fits;
use compress::report::{self, InputNote, Report, bytes, count, counted, plain_table, signed};
use compress::search::{
    Bench, Entry, Found, Given, Header, Held, Log, Rung, SCHEMA, Searched, Settings, Space,
    SpeedBy, Targets, default_space, search,
};
use compress::{Error, Result};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Where weight files are split.
const MAX_SHARD_BYTES: u64 = 5_000_000_000;

#[derive(Debug, Args)]
pub struct SearchArgs {
    /// The checkpoint: a Hugging Face folder, or a .safetensors file with config.json beside it
    model: PathBuf,

    /// The folder that the best variant is written to; must be new or empty
    #[arg(short, long, value_name = "OUT", required_unless_present = "print_space")]
    output: Option<PathBuf>,

    /// What is asked, one or more of them: `size=6MB` (weight file), `speedup=2` (times as fast as the original, for
    /// one text and for batches of 32), `drop=1%` (of the main metric where texts have labels, else of equal answers)
    #[arg(
        long,
        value_name = "NAME=VALUE,…",
        value_delimiter = ',',
        required_unless_present = "print_space"
    )]
    target: Vec<Target>,

    /// What to choose from: a TOML recipe with `{ choose = [a, b] }` in the place of values (docs/search.md) [default:
    /// what --print-space prints]
    #[arg(long, value_name = "FILE")]
    space: Option<PathBuf>,

    /// Print the space for this model, and do nothing
    #[arg(long)]
    print_space: bool,

    /// Different recipes to try: half of them spread over the space, half of them near the best
    #[arg(long, value_name = "N", default_value_t = 40)]
    trials: usize,

    /// Amounts of text, each three times the one below: all recipes are tried with the least, the best third with more
    #[arg(long, value_name = "N", default_value_t = 3)]
    rungs: usize,

    /// The most texts of --calib to judge by, of those that no pass sees
    #[arg(long, value_name = "N", default_value_t = 2048)]
    judge_texts: usize,

    // --eval is seen by the best variant alone.
    #[command(flatten)]
    texts: TextArgs,

    /// A line for each variant that was made, as JSON; `compare --log` draws it [default: OUT.search.jsonl]
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,

    /// Take from the log what an earlier search with the same arguments has made; targets and trials may be others.
    /// Where `speedup` is asked for that was not before, what was not timed is made again
    #[arg(long)]
    resume: bool,

    /// Replace an output folder that has content, and without --resume the log of another search
    #[arg(long)]
    force: bool,

    #[command(flatten)]
    threads: ThreadArgs,

    /// Print JSON
    #[arg(long)]
    json: bool,

    /// No progress on stderr
    #[arg(short, long)]
    quiet: bool,
}

/// One budget.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Target {
    Size(u64),
    Speedup(f64),
    Drop(f64),
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Target, String> {
        let (name, value) = text.split_once('=').unwrap_or((text, ""));
        let value = value.trim();
        match name.trim() {
            "size" => value.parse().map(|Size(bytes)| Target::Size(bytes)),
            "drop" => value.parse().map(|Share(share)| Target::Drop(share)),
            "speedup" => match value.parse::<f64>() {
                Ok(times) if times > 0.0 && times.is_finite() => Ok(Target::Speedup(times)),
                _ => Err("expected how many times as fast, as `speedup=2`".into()),
            },
            _ => Err("expected `size=6MB`, `speedup=2` or `drop=1%`".into()),
        }
    }
}

/// All budgets together, each given once.
fn targets(given: &[Target]) -> Result<Targets> {
    let mut targets = Targets::default();
    for target in given {
        let twice = match *target {
            Target::Size(bytes) => targets.size.replace(bytes).is_some(),
            Target::Speedup(times) => targets.speedup.replace(times).is_some(),
            Target::Drop(share) => targets.drop.replace(share).is_some(),
        };
        if twice {
            return Err(usage("--target has a budget twice", "give each of them once"));
        }
    }
    Ok(targets)
}

/// Fewest examples of a file to judge by; below these, its held-out texts are.
const FEWEST_JUDGED: usize = 8;

pub fn main(args: &SearchArgs) -> Result<()> {
    let targets = targets(&args.target)?;
    let counts =
        [("--trials", args.trials), ("--rungs", args.rungs), ("--judge-texts", args.judge_texts)];
    if let Some((flag, _)) = counts.into_iter().find(|(_, n)| *n == 0) {
        return Err(usage(format!("{flag} is 0"), "give at least 1"));
    }
    args.threads.apply()?;
    let model = Model::open(&args.model)?;
    let space = match &args.space {
        Some(path) => recipe_text(path)?,
        None => default_space(&model)?,
    };
    if args.print_space {
        Space::parse(&space)?;
        return print(&space);
    }
    let space = Space::parse(&space)?;
    space.passes().iter().try_for_each(|s| fits(s.name, s.pass.needs_plain_layers(), &model))?;
    let output = args.output.as_deref().expect("clap requires it");
    let folder = OutputFolder::create(output, &args.model, args.force)?;
    let path = args.log.clone().unwrap_or_else(|| {
        let mut name = output.file_name().unwrap_or_default().to_os_string();
        name.push(".search.jsonl");
        output.with_file_name(name)
    });
    if path.exists() && !args.resume && !args.force {
        let found = format!("{} is there already", path.display());
        return Err(usage(
            found,
            "go on with it by --resume, replace it by --force, or give another --log",
        ));
    }
    let bar = progress::Bar::new(args.quiet);
    let done = run(args, (&model, &space, &targets), folder, &path, &bar);
    bar.finish();
    if matches!(done, Err(Error::Interrupted)) {
        bar.log(&format!(
            "the log is in {}; the same command with --resume goes on",
            path.display()
        ));
    }
    done
}

/// Searches, prints what was found, and writes the best.
fn run(
    args: &SearchArgs,
    (model, space, targets): (&Model, &Space, &Targets),
    folder: OutputFolder,
    path: &Path,
    bar: &progress::Bar,
) -> Result<()> {
    let (input, given) = (&args.model, &args.texts);
    let passes = space.passes();
    let counted = passes.iter().any(|s| s.pass.counts_words());
    if passes.iter().any(|s| s.pass.trains(given.data.is_some())) {
        keep_freed_buffers();
    }
    let tokenizer = tokenizer(input)?;
    let texts = given.read(model, tokenizer.as_ref(), input, counted)?;
    let (held, judged_by) = held_out(args, model, tokenizer.as_ref(), &texts)?;
    let whole = Rung {
        texts: texts.calibration.as_ref().map_or(0, |c| c.texts),
        data: texts.data.as_ref().map_or(0, |d| d.texts.len()),
        judged: held.examples(&texts),
    };
    let rungs = Rung::plan(&whole, args.rungs);
    let settings =
        Settings { targets: *targets, trials: args.trials, rungs: rungs.len(), seed: given.seed };
    let files = given.files().into_iter().chain(passes.iter().flat_map(|s| s.pass.reads()));
    let header = Header {
        search: SCHEMA,
        version: env!("CARGO_PKG_VERSION").into(),
        model: file_name(&std::fs::canonicalize(root(input)).unwrap_or_else(|_| root(input))),
        inputs: named(hashes(input, files)?),
        arguments: format!("{} --judge-texts {}", given.arguments(), args.judge_texts),
        space: space.to_toml(),
        rungs: rungs.clone(),
        timed: targets.speedup.is_some(),
        judged_by,
        bytes: weight_bytes(input)?,
        targets: *targets,
        trials: args.trials,
    };
    let (mut log, known) = match args.resume {
        true => Log::resume(path, &header)?,
        false => (Log::create(path, &header)?, Vec::new()),
    };
    let read =
        |model: &Model, tokenizer: &Tokenizer| given.read(model, Some(tokenizer), input, counted);
    let side_files = side_files(&root(input), input)?;
    let mut bench = Bench::new(Given {
        teacher: model,
        tokenizer: tokenizer.as_ref(),
        side_files: &side_files,
        texts: &texts,
        read: &read,
        held: &held,
        rungs: &rungs,
        timed: header.timed,
        seed: given.seed,
        progress: bar,
        interrupted: &progress::interrupted,
    })?;
    let outline = Model::outline(input)?;
    let foreseen = Foreseen::of(&texts, tokenizer.as_ref(), &side_files, MAX_SHARD_BYTES);
    // What a plan refuses is made, and refused with its reason in the log.
    let foresee =
        |recipe: &_| planned_bytes(&outline, recipe, &foreseen).ok().map(|bytes| bytes.low);
    let evaluate = &mut |recipe: &_, rung| bench.look_at(recipe, rung);
    let record = &mut |entry: &Entry| {
        log.append(entry)?;
        bar.log(&line(entry, rungs.len()));
        if progress::interrupted() { Err(Error::Interrupted) } else { Ok(()) }
    };
    let searched = search(space, &settings, &foresee, known, evaluate, record)?;
    drop((log, bench)); // the run makes the best one anew
    bar.finish();
    let told = Told { searched: &searched, header: &header, path };
    if !args.json {
        print(&told.text())?;
    }
    let Some(winner) = searched.winner else {
        if args.json {
            print_json(&told.json(None))?;
        }
        return Err(told.unmet());
    };
    let small_enough = |report: &Report| match targets.size {
        // What is trained with all of the texts need not be cut as it was with fewer.
        Some(most) if report.after.file_bytes > most => Err(Error::Unmet {
            nearest: format!(
                "with all of the texts the best one has {} bytes, at most {}",
                count(report.after.file_bytes),
                count(most)
            ),
        }),
        _ => Ok(()),
    };
    let recipe = searched.trials[winner].recipe()?;
    let files = given.files().into_iter().chain(recipe.steps.iter().flat_map(|s| s.pass.reads()));
    let options = Options {
        seed: given.seed,
        arguments: &given.arguments(),
        inputs: &hashes(input, files)?,
        texts: &texts,
        tokenizer: tokenizer.as_ref(),
        read: &read,
        state: None,
        cache: None,
        spill: Some(folder.spill()),
        max_shard_bytes: MAX_SHARD_BYTES,
        measure: true,
        accept: &small_enough,
        progress: bar,
        interrupted: &progress::interrupted,
    };
    let done = pipeline::run(model, input, &recipe, folder, &options)?;
    bar.finish();
    match args.json {
        true => print_json(&told.json(Some(&done))),
        false => {
            let seen = match &given.eval {
                Some(eval) => format!("; {} was seen by it alone, once", file_name(eval)),
                None => String::new(),
            };
            print(&format!(
                "\n{}\nwrote {} with all of the text{seen}; report.md in it has the details\n",
                report::before_after(&done.report, &done.measured),
                args.output.as_deref().unwrap_or(&done.output).display(),
            ))
        }
    }
}

/// What variants are judged by, and its name: of a file what no pass sees; else, and where that is next to nothing, what
/// the calibration text holds out.
fn held_out(
    args: &SearchArgs,
    model: &Model,
    tokenizer: Option<&Tokenizer>,
    texts: &Texts,
) -> Result<(Held, String)> {
    let given = &args.texts;
    let Some(calibration) = &texts.calibration else {
        return Err(usage(
            "--calib is none",
            "give texts: variants are judged by those that no pass sees",
        ));
    };
    if let Some(Source::File { path, columns }) = given.source(tokenizer.is_some()) {
        let mut table = unseen(&path, &columns, &model.config, given.calib_texts, given.seed)?;
        table.examples.truncate(args.judge_texts);
        let n = table.examples.len();
        if n >= FEWEST_JUDGED {
            let max_tokens = max_tokens(model, tokenizer, &args.model, given.max_length)?;
            let name = format!("{} of {}", counted(n as u64, "held-out text"), calibration.source);
            return Ok((Held::File { table, path, max_tokens }, name));
        }
    }
    let n = Held::Calibration.examples(texts);
    if n == 0 {
        let found = format!("{} holds out no text", describe(calibration));
        return Err(usage(found, "give a --calib with at least eight"));
    }
    Ok((
        Held::Calibration,
        format!("{} of {}", counted(n as u64, "held-out text"), calibration.source),
    ))
}

fn describe(calibration: &Calibration) -> String {
    format!("{} ({})", calibration.source, counted(calibration.texts as u64, "text"))
}

/// Hashes by the names of their files; those of the same name are numbered.
fn named(inputs: Vec<InputNote>) -> BTreeMap<String, String> {
    let mut named = BTreeMap::new();
    for InputNote { name, sha256: hash, .. } in inputs {
        let name = file_name(Path::new(&name));
        let taken = |n: &usize| match n {
            1 => name.clone(),
            n => format!("{name} #{n}"),
        };
        let free = (1..).map(|n| taken(&n)).find(|name| !named.contains_key(name));
        named.insert(free.expect("there is always a larger number"), hash);
    }
    named
}

/// A variant that was just made, for who is watching.
fn line(entry: &Entry, rungs: usize) -> String {
    let rung = format!("rung {} of {rungs}", entry.rung + 1);
    match (&entry.found, &entry.refused) {
        (Some(found), _) => {
            let by = match found.speed_by {
                SpeedBy::Flops => " by FLOPs",
                SpeedBy::Measured => "",
            };
            let meets = if entry.feasible { ", meets the targets" } else { "" };
            format!(
                "{rung}: {}, {:.2} times as fast{by}, change of {} {}{meets}: {}",
                bytes(found.bytes),
                found.speed,
                found.drop_of,
                signed(-found.drop),
                shown(&entry.passes)
            )
        }
        (None, why) => {
            format!("{rung}: refused: {}: {}", shown(&entry.passes), why.as_deref().unwrap_or("-"))
        }
    }
}

/// The recipe that does nothing has no name.
fn shown(passes: &str) -> &str {
    if passes.is_empty() { "(nothing)" } else { passes }
}

/// A search and where it is kept, to be told.
struct Told<'a> {
    searched: &'a Searched,
    header: &'a Header,
    path: &'a Path,
}

impl Told<'_> {
    /// The Pareto front, the best of the targets first.
    fn front(&self) -> impl Iterator<Item = (usize, &str, &Found)> {
        let trials = &self.searched.trials;
        self.searched.front.iter().map(|&i| (i, &trials[i].passes[..], self.searched.top(i)))
    }

    fn text(&self) -> String {
        let s = self.searched;
        let row = |(i, passes, found): (usize, &str, &Found)| {
            let mark = if s.winner == Some(i) { "*" } else { "" };
            vec![
                format!("{}{mark}", shown(passes)),
                count(found.bytes),
                format!("{:.2}", self.header.bytes as f64 / found.bytes.max(1) as f64),
                format!("{:.2}", found.speed),
                signed(-found.drop),
                format!("{:.4}", found.divergence),
            ]
        };
        let rows: Vec<Vec<String>> = self.front().map(row).collect();
        let of = |name: fn(&Found) -> &str| self.front().next().map_or("", |(.., f)| name(f));
        let change = format!("change of {}", of(|f| &f.drop_of));
        let names =
            ["", "bytes", "times smaller", "times as fast", &change, of(|f| &f.divergence_of)];
        let refused = match s.refused {
            0 => String::new(),
            n => format!(", {n} refused"),
        };
        let known = match s.known {
            0 => String::new(),
            n => format!(", {n} of these in an earlier run"),
        };
        format!(
            "{}\n{} tried{refused}, {} made{known}; judged by {}; log: {}\n{}\n",
            plain_table(&names, &rows),
            counted(s.trials.len() as u64, "recipe"),
            counted(s.evaluations as u64, "variant"),
            self.header.judged_by,
            self.path.display(),
            match s.winner {
                Some(_) => "above: what no other beats in bytes, speed and answers; * is written",
                None =>
                    "above: what no other beats in bytes, speed and answers, the nearest to the targets first",
            }
        )
    }

    fn json(&self, done: Option<&Outcome>) -> Value {
        let s = self.searched;
        let told = |(i, passes, found): (usize, &str, &Found)| {
            let mut value = json!(found);
            value["passes"] = json!(passes);
            value["missed"] = json!(self.header.targets.missed(found));
            value["winner"] = json!(s.winner == Some(i));
            value
        };
        let front: Vec<Value> = self.front().map(told).collect();
        json!({
            "output": done.map(|d| &d.output),
            "log": self.path,
            "targets": self.header.targets,
            "judged_by": self.header.judged_by,
            "trials": s.trials.len(),
            "refused": s.refused,
            "evaluations": s.evaluations,
            "known": s.known,
            "winner": s.winner.map(|w| &s.trials[w].passes),
            "front": front,
            "report": done.map(|d| &d.report),
            "measured": done.map(|d| &d.measured),
        })
    }

    fn unmet(&self) -> Error {
        let nearest = self.front().take(3).map(|(_, passes, found)| {
            let missed = self.header.targets.missed(found).join(", ");
            format!("`{}`: {missed}", shown(passes))
        });
        Error::Unmet { nearest: format!("the nearest: {}", nearest.collect::<Vec<_>>().join("; ")) }
    }
}

fn usage(found: impl Into<String>, advice: &str) -> Error {
    Error::Usage { found: found.into(), advice: advice.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_read_with_their_units() {
        let read = |text: &str| text.parse::<Target>();
        assert_eq!(read("size=6MB"), Ok(Target::Size(6_000_000)));
        assert_eq!(read("drop=1%"), Ok(Target::Drop(0.01)));
        assert_eq!(read(" speedup = 2.5"), Ok(Target::Speedup(2.5)));
        for broken in ["", "size", "size=0", "speedup=-1", "speedup=inf", "drop=2", "bytes=3"] {
            assert!(read(broken).is_err(), "{broken}");
        }
        let both = [Target::Size(1), Target::Drop(0.5)];
        let expected = Targets { size: Some(1), speedup: None, drop: Some(0.5) };
        assert_eq!(targets(&both).expect("each once"), expected);
        assert!(targets(&[Target::Drop(0.1), Target::Drop(0.1)]).is_err());
    }

    #[test]
    fn files_of_one_name_are_numbered() {
        let hash = |name: &str, hash: &str| InputNote {
            name: name.into(),
            sha256: hash.into(),
            of_model: true,
        };
        let named = named(vec![hash("m/config.json", "a"), hash("m/p/config.json", "b")]);
        let names: Vec<&str> = named.keys().map(String::as_str).collect();
        assert_eq!(names, ["config.json", "config.json #2"]);
    }
}
