//! `compress eval MODEL --data FILE`

use super::texts::mind_quotes;
use super::{ColumnArgs, ThreadArgs, max_tokens, needed_tokenizer, print, print_json, progress};
use clap::Args;
use compress::data::Targets;
use compress::data::prepare::is_labelled;
use compress::data::tables::read_examples;
use compress::data::tokenizer::Tokenizer;
use compress::eval::tasks::{Metric, Prepared, Recut, answer, fidelity, judgeable, metrics};
use compress::model::{Model, Task};
use compress::pass::Progress;
use compress::report::{count, counted, metric_value, plain_table};
use compress::runtime::Encoder;
use compress::{Error, Result};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::time::Instant;

#[derive(Debug, Args)]
pub struct EvalArgs {
    /// The checkpoint: a Hugging Face folder or a .safetensors file
    model: PathBuf,
    /// Examples: .tsv, .csv, .jsonl, or .txt
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// Another model, to say how close the answers are to its answers
    #[arg(long, value_name = "MODEL")]
    teacher: Option<PathBuf>,
    #[command(flatten)]
    columns: ColumnArgs,
    /// Tokens of a text that are read [default: what a sentence-transformers model says, else what the
    /// tokenizer says but at most 128, or 384 for question answering]
    #[arg(long, value_name = "TOKENS")]
    max_length: Option<usize>,
    #[command(flatten)]
    threads: ThreadArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// No progress on stderr
    #[arg(short, long)]
    quiet: bool,
}

pub fn main(args: &EvalArgs) -> Result<()> {
    args.threads.apply()?;
    let model = Model::open(&args.model)?;
    let tokenizer = needed_tokenizer(&args.model)?;
    let tokens = max_tokens(&model, Some(&tokenizer), &args.model, args.max_length)?;
    let table = read_examples(&args.data, &args.columns.columns())?;
    mind_quotes(&table, &args.data);
    let labelled = table.examples.iter().all(|e| is_labelled(e, model.config.task));
    let wanted = labelled || args.teacher.is_none();
    let prepared = Prepared::new(&table, &model, &tokenizer, tokens, wanted, &args.data)?;
    let encoder = Encoder::within_memory(&model)?;
    let bar = progress::Bar::new(args.quiet);
    let start = Instant::now();
    let judged = match prepared.targets.is_some() || args.teacher.is_none() {
        true => {
            judgeable(&model, &prepared)?;
            bar.start("judging", prepared.batches.len());
            let answers = answer(&encoder, &prepared.batches, prepared.rows, &bar)?;
            metrics(&model, &prepared, &answers)?
        }
        false => Vec::new(),
    };
    let mut seconds = start.elapsed().as_secs_f64();
    let against = match &args.teacher {
        None => Vec::new(),
        Some(path) => {
            let teacher = Model::open(path)?;
            let words = words_of(path, &tokenizer)?;
            check_comparable(&teacher, &model, words.as_ref())?;
            let teachers = match &words {
                None => None,
                Some((tokenizer, _)) => {
                    let prepared =
                        Prepared::new(&table, &teacher, tokenizer, tokens, false, &args.data)?;
                    Some(prepared.batches)
                }
            };
            let recut = words.map(|(_, old)| Recut::new(&prepared.batches, old));
            let batches = teachers.as_deref().unwrap_or(&prepared.batches);
            bar.start("beside the teacher", batches.len());
            let teacher = Encoder::within_memory(&teacher)?;
            fidelity(&teacher, &encoder, batches, recut.as_ref(), &bar)?
        }
    };
    bar.finish();
    if judged.is_empty() {
        seconds = start.elapsed().as_secs_f64() / 2.0; // both models have answered, one after the other
    }
    let rate = prepared.tokens as f64 / seconds.max(1e-9);
    if args.json {
        return print_json(&json!({
            "task": model.config.task.name(), "examples": prepared.examples, "tokens": prepared.tokens,
            "max_length": tokens, "columns": prepared.columns, "labels": model.config.label_names(),
            "metrics": judged, "fidelity": against,
            "measured": {"seconds": seconds, "tokens_per_second": rate, "threads": rayon::current_num_threads()},
        }));
    }
    let line = |m: &Metric| vec![m.name.to_string(), metric_value(m)];
    let mut rows: Vec<Vec<String>> = judged.iter().map(line).collect();
    let judged_on = match &prepared.targets {
        Some(Targets::Tokens(texts)) => texts.iter().flatten().flatten().count(),
        _ => prepared.examples,
    };
    if let Some(at) = judged.iter().position(|m| m.name == "accuracy") {
        let right = (judged[at].value * judged_on as f64).round() as u64;
        let correct = format!("{} of {}", count(right), count(judged_on as u64));
        rows.insert(at + 1, vec!["correct".into(), correct]);
    }
    rows.extend(
        against.iter().map(|m| vec![format!("{} with the teacher", m.name), metric_value(m)]),
    );
    print(&plain_table(&["metric", "value (95 % interval)"], &rows))?;
    let columns = &prepared.columns;
    let named = [("text", &columns.text), ("pair", &columns.pair), ("label", &columns.label)];
    let used: Vec<String> =
        named.iter().filter_map(|(role, c)| c.as_ref().map(|c| format!("{role} `{c}`"))).collect();
    print(&format!(
        "\n{} ({}), {} at most {tokens} a text, in {seconds:.2} s: {rate:.0} tokens/s on {}\n",
        counted(prepared.examples as u64, "example"),
        if used.is_empty() { "one a line".into() } else { used.join(", ") },
        counted(prepared.tokens as u64, "token"),
        counted(rayon::current_num_threads() as u64, "thread"),
    ))
}

/// Another vocabulary: a tokenizer, and by id of the model the id of the same token there, if it has it.
type Words = (Tokenizer, Vec<Option<u32>>);

/// The vocabulary of `teacher`, where it has one of its own that is not the model's.
fn words_of(teacher: &Path, tokenizer: &Tokenizer) -> Result<Option<Words>> {
    let Some(teachers) = super::tokenizer(teacher)? else { return Ok(None) };
    let (old, new) = (teachers.tokens(), tokenizer.tokens());
    if old == new {
        return Ok(None);
    }
    let mut by_id = vec![None; tokenizer.vocab_size()];
    for (token, id) in new {
        by_id[id as usize] = old.get(&token).copied();
    }
    Ok(Some((teachers, by_id)))
}

fn check_comparable(teacher: &Model, model: &Model, words: Option<&Words>) -> Result<()> {
    let (t, m) = (&teacher.config, &model.config);
    let known = |&id: &Option<u32>| id.is_some_and(|id| (id as usize) < t.vocab);
    let same_words = match words {
        None => t.vocab == m.vocab,
        Some((_, old)) => m.task != Task::MaskedLm || old.len() == m.vocab && old.iter().all(known),
    };
    let wide = !matches!(m.task, Task::Embedding | Task::Bare) || t.hidden == m.hidden;
    let same = t.task == m.task && same_words && t.classes() == m.classes() && wide;
    if same {
        return Ok(());
    }
    let say = |c: &compress::model::Config| {
        format!("{}, {} words and width {}", c.head_in_words(), c.vocab, c.hidden)
    };
    Err(Error::Mismatch {
        found: format!("the teacher is for {}", say(t)),
        expected: format!("the model is for {}", say(m)),
        advice: "give the model that this one was made from",
    })
}
