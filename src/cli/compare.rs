//! `compress compare MODEL MODEL …`, and what `bench` and `gate` share with it.

use super::texts::mind_quotes;
use super::{
    ColumnArgs, ThreadArgs, file_name, max_tokens, needed_tokenizer, print, print_json, progress,
};
use clap::Args;
use compress::checkpoint::{check_writable, write_bytes};
use compress::compare::{
    self, Comparison, DataNote, Entry as Variant, Searched, Tried, baselines, removed_by_passes,
    typical,
};
use compress::data::prepare::is_labelled;
use compress::data::tables::read_examples;
use compress::eval::load::Load;
use compress::eval::tasks::{Prepared, judgeable};
use compress::model::{Model, Task};
use compress::pipeline::{root, weight_bytes};
use compress::report::counted;
use compress::search::{self, Entry, Found, SpeedBy};
use compress::{Error, Result};
use serde_json::json;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

#[derive(Debug, Args)]
pub struct CompareArgs {
    /// Checkpoints; the first is what the others are compared with. Logs of searches (.jsonl) are drawn as with --log
    #[arg(required = true, value_name = "MODEL")]
    models: Vec<PathBuf>,
    /// Draw what a search tried, of its log; may be given again
    #[arg(long, value_name = "FILE")]
    log: Vec<PathBuf>,
    #[command(flatten)]
    judging: JudgeArgs,
    /// Write a page with figures: one HTML file that needs nothing else
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Leave out what is made for comparison: the first model in f16 and in int8
    #[arg(long)]
    no_baselines: bool,
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

/// Examples that models are judged by.
#[derive(Debug, Clone, Args)]
pub struct JudgeArgs {
    /// Examples to judge and time them by: .tsv, .csv, .jsonl, or .txt
    #[arg(long, value_name = "FILE")]
    eval: Option<PathBuf>,
    #[command(flatten)]
    columns: ColumnArgs,
    /// Tokens of a text that are read [default: what a sentence-transformers model says, else what the
    /// tokenizer says but at most 128, or 384 for question answering]
    #[arg(long, value_name = "TOKENS")]
    max_length: Option<usize>,
}

impl JudgeArgs {
    pub fn eval(&self) -> Option<&Path> {
        self.eval.as_deref()
    }
}

/// What models are timed on.
#[derive(Debug, Clone, Args)]
pub struct TimingArgs {
    /// Texts of a batch; several, separated by commas, are timed one after the other
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_values_t = [1, 32])]
    batch: Vec<usize>,
    /// Texts of --eval to time, spread over it
    #[arg(long, value_name = "N", default_value_t = 128)]
    texts: usize,
    /// Timed runs of each model and batch size
    #[arg(long, value_name = "N", default_value_t = 5)]
    runs: usize,
}

/// Tokens of a text, where there are no texts to time.
const TOKENS: usize = 64;

impl TimingArgs {
    pub fn check(&self) -> Result<()> {
        let zero = [("--texts", self.texts), ("--runs", self.runs)].into_iter();
        let zero = zero.chain(self.batch.iter().map(|&b| ("--batch", b)));
        match zero.into_iter().find(|(_, n)| *n == 0) {
            None => Ok(()),
            Some((flag, _)) => Err(Error::Usage {
                found: format!("{flag} is 0"),
                advice: "give at least 1".into(),
            }),
        }
    }

    pub fn runs(&self) -> usize {
        self.runs
    }

    /// What is told of a time: one run, or the median of several.
    pub fn told(&self) -> String {
        match self.runs() {
            1 => "one run".into(),
            n => format!("medians of {n} runs"),
        }
    }

    /// The batch sizes asked for, each once.
    pub fn sizes(&self) -> Vec<usize> {
        let mut sizes = self.batch.clone();
        sizes.sort_unstable();
        sizes.dedup();
        sizes
    }

    /// Texts of the examples, or of one length where there are none, in batches of each size; sizes beyond the number of
    /// texts are one, that of all.
    pub fn loads(&self, entry: &Variant) -> Vec<Load> {
        let texts = entry.prepared.as_ref().map(|p| typical(p, self.texts));
        let load = |batch| match &texts {
            Some(texts) => Load::of(texts, batch),
            None => Load::synthetic(&entry.model, batch, TOKENS),
        };
        let mut loads: Vec<Load> = self.sizes().into_iter().map(load).collect();
        loads.dedup_by_key(|load| load.batch);
        loads
    }

    /// What [`TimingArgs::loads`] are, in words.
    pub fn described(&self, data: Option<&DataNote>) -> String {
        match data {
            Some(data) => {
                format!(
                    "{} of {}",
                    counted(self.texts.min(data.examples) as u64, "text"),
                    data.name
                )
            }
            None => format!("texts of {TOKENS} tokens"),
        }
    }
}

pub fn main(args: &CompareArgs) -> Result<()> {
    args.threads.apply()?;
    args.timing.check()?;
    let bar = progress::Bar::new(args.quiet);
    let is_log = |path: &&PathBuf| path.is_file() && path.extension().is_some_and(|e| e == "jsonl");
    let (logs, models): (Vec<&PathBuf>, Vec<&PathBuf>) = args.models.iter().partition(is_log);
    if models.is_empty() {
        return Err(Error::Usage {
            found: "there are logs of searches and no model".into(),
            advice:
                "name a checkpoint before them: the model that was compressed, or what came of it"
                    .into(),
        });
    }
    if let Some(path) = &args.html {
        check_page(path)?; // before the work that it takes to fill it
    }
    let logs = args.log.iter().chain(logs);
    let searches = logs.map(|path| searched(path)).collect::<Result<Vec<_>>>()?;
    let models: Vec<PathBuf> = models.into_iter().cloned().collect();
    let (entries, data) = gather(&models, &args.judging, !args.no_baselines, &bar)?;
    let mut comparison = measure(entries, data, &args.timing, &bar)?;
    comparison.searches = searches;
    bar.finish();
    if let Some(path) = &args.html {
        write_bytes(path, compare::page(&comparison).as_bytes())?;
    }
    if args.json {
        return print_json(&json!(comparison));
    }
    print(&compare::table(&comparison))?;
    let removed = compare::removed(&comparison);
    if !removed.is_empty() {
        print(&format!("\n{removed}"))?;
    }
    for searched in &comparison.searches {
        print(&format!("\n{}", compare::searched_table(searched)))?;
    }
    let judged = match &comparison.data {
        Some(data) => {
            format!("judged by {} ({}), ", data.name, counted(data.examples as u64, "example"))
        }
        None => String::new(),
    };
    print(&format!(
        "\n{judged}timed on {}, {}, {} in turn\n",
        comparison.timed_on,
        counted(comparison.threads as u64, "thread"),
        args.timing.told(),
    ))?;
    match &args.html {
        Some(path) => print(&format!("wrote {}\n", path.display())),
        None => Ok(()),
    }
}

/// Refuses to write a page over what is none, or where no file can be written.
fn check_page(path: &Path) -> Result<()> {
    let refuse = |found: &str| Error::Usage {
        found: format!("{} {found}", path.display()),
        advice: "give --html another name: only pages are replaced".into(),
    };
    if path.is_dir() {
        return Err(refuse("is a folder"));
    }
    match File::open(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(source) => return Err(Error::Read { path: path.to_owned(), source }),
        Ok(file) => {
            let mut start = Vec::new();
            let read = |source| Error::Read { path: path.to_owned(), source };
            file.take(1024).read_to_end(&mut start).map_err(read)?;
            let start = String::from_utf8_lossy(&start).trim_start().to_ascii_lowercase();
            let page = start.starts_with("<!doctype html") || start.starts_with("<html");
            if !page && !start.is_empty() {
                return Err(refuse("exists and is no HTML page"));
            }
        }
    }
    check_writable(path)
}

/// What the search tried that wrote the log at `path`.
fn searched(path: &Path) -> Result<Searched> {
    let (header, entries) = search::read(path)?;
    let last = header.rungs.len().saturating_sub(1);
    // Each recipe as far as it came.
    let mut highest: BTreeMap<String, (usize, Found)> = BTreeMap::new();
    for Entry { rung, passes, found, .. } in entries {
        let Some(found) = found else { continue };
        if highest.get(&passes).is_none_or(|(there, _)| *there <= rung) {
            highest.insert(passes, (rung, found));
        }
    }
    let mut all: Vec<(String, (usize, Found))> = highest.into_iter().collect();
    all.sort_by_key(|(_, (rung, found))| (*rung != last, found.bytes));
    let whole: Vec<&Found> = all.iter().map(|(_, (_, found))| found).collect();
    let whole = &whole[..all.iter().take_while(|(_, (rung, _))| *rung == last).count()];
    let front = search::front(whole);
    let first = all.first().map(|(_, (_, found))| (&found.drop_of, &found.divergence_of));
    let (metric, divergence) = first.map_or_else(Default::default, |(m, d)| (m.clone(), d.clone()));
    let tried = |(i, (passes, (rung, found))): (usize, (String, (usize, Found)))| Tried {
        passes: if passes.is_empty() { "(nothing)".into() } else { passes },
        texts: found.texts,
        judged: found.judged,
        whole: rung == last,
        bytes: found.bytes,
        speed: found.speed,
        measured: found.speed_by == SpeedBy::Measured,
        drop: found.drop,
        divergence: found.divergence,
        front: front.contains(&i),
    };
    Ok(Searched {
        name: file_name(path),
        model: header.model,
        judged_by: header.judged_by,
        metric,
        divergence,
        tried: all.into_iter().enumerate().map(tried).collect(),
    })
}

/// Judges and times what was gathered.
pub fn measure(
    mut entries: Vec<Variant>,
    data: Option<DataNote>,
    timing: &TimingArgs,
    bar: &progress::Bar,
) -> Result<Comparison> {
    for entry in &mut entries {
        entry.loads = timing.loads(entry);
    }
    let described = timing.described(data.as_ref());
    compare::compare(&entries, data, described, timing.runs(), bar)
}

/// Opens `models`, makes the baselines of the first if they are wanted, and reads the examples in the tokens of each.
pub fn gather(
    models: &[PathBuf],
    judging: &JudgeArgs,
    with_baselines: bool,
    bar: &progress::Bar,
) -> Result<(Vec<Variant>, Option<DataNote>)> {
    let names = names(models);
    let mut entries = Vec::new();
    let mut note = None;
    for (path, name) in models.iter().zip(names) {
        let model = Model::open(path)?;
        if let Some(first) = entries.first() {
            comparable(first, &name, &model)?;
        }
        let prepared = match &judging.eval {
            None => None,
            Some(data) => {
                let prepared = prepared(path, &model, data, judging)?;
                note = Some(DataNote { name: file_name(data), examples: prepared.examples });
                Some(prepared)
            }
        };
        let (file_bytes, passes) = (weight_bytes(path)?, removed_by_passes(&root(path))?);
        let loads = Vec::new();
        entries.push(Variant { name, model, file_bytes, baseline: false, prepared, loads, passes });
        if entries.len() == 1 && with_baselines {
            let mut made = baselines(&entries[0].name, &entries[0].model, bar)?;
            for entry in &mut made {
                entry.prepared = entries[0].prepared.clone();
            }
            entries.extend(made);
        }
    }
    Ok((entries, note))
}

/// The examples of `data` in the tokens of the model at `path`.
fn prepared(path: &Path, model: &Model, data: &Path, judging: &JudgeArgs) -> Result<Prepared> {
    let tokenizer = needed_tokenizer(path)?;
    let tokens = max_tokens(model, Some(&tokenizer), path, judging.max_length)?;
    let table = read_examples(data, &judging.columns.columns())?;
    mind_quotes(&table, data);
    let labelled = table.examples.iter().all(|e| is_labelled(e, model.config.task));
    let prepared = Prepared::new(&table, model, &tokenizer, tokens, labelled, data)?;
    // What these say of every token is too much to keep.
    if matches!(model.config.task, Task::MaskedLm | Task::Bare) {
        judgeable(model, &prepared)?;
    }
    Ok(prepared)
}

/// Refuses to compare what answers different questions.
fn comparable(first: &Variant, name: &str, model: &Model) -> Result<()> {
    let (a, b) = (&first.model.config, &model.config);
    if a.task == b.task && a.classes() == b.classes() && a.regression == b.regression {
        return Ok(());
    }
    Err(Error::Mismatch {
        found: format!("{name} has a head for {}", b.head_in_words()),
        expected: format!("{} has one for {}", first.name, a.head_in_words()),
        advice: "compare variants of one model",
    })
}

/// The shortest ends of the paths that tell them apart; the same path twice gets a number.
fn names(paths: &[PathBuf]) -> Vec<String> {
    let end = |path: &Path, parts: usize| -> String {
        let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
        let all: Vec<String> =
            path.iter().map(|p| p.to_string_lossy().into_owned()).filter(|p| p != "/").collect();
        all[all.len().saturating_sub(parts)..].join("/")
    };
    let distinct = |names: &[String]| {
        let mut sorted = names.to_vec();
        sorted.sort();
        sorted.dedup();
        sorted.len() == names.len()
    };
    let ends = |parts| paths.iter().map(|p| end(p, parts)).collect::<Vec<_>>();
    let mut names = match (1..=4).map(ends).find(|names| distinct(names)) {
        Some(names) => return names,
        None => ends(2),
    };
    for i in (0..names.len()).rev() {
        let before = names[..i].iter().filter(|n| **n == names[i]).count();
        if before > 0 {
            names[i] += &format!(" #{}", before + 1);
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_as_short_as_they_can_be() {
        let of = |paths: &[&str]| names(&paths.iter().map(PathBuf::from).collect::<Vec<_>>());
        assert_eq!(of(&["/no/a", "/no/b"]), ["a", "b"]);
        assert_eq!(of(&["/no/x/model", "/no/y/model"]), ["x/model", "y/model"]);
        assert_eq!(of(&["/no/a", "/no/a"]), ["no/a", "no/a #2"]);
    }
}
