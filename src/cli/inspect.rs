//! `compress inspect MODEL`

use super::{plain, print, print_json};
use clap::Args;
use compress::Result;
use compress::model::cost::Part;
use compress::model::{Model, Task};
use compress::pipeline::weight_bytes;
use compress::report::{Summary, bytes, count, plain_table};
use std::path::PathBuf;

#[derive(Debug, Args)]
pub struct InspectArgs {
    /// The checkpoint: a Hugging Face folder or a .safetensors file
    model: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub fn main(args: &InspectArgs) -> Result<()> {
    let model = Model::open(&args.model)?;
    let summary = Summary::of(&model, weight_bytes(&args.model)?);
    if args.json {
        return print_json(&summary);
    }
    let config = &model.config;
    let heads = summary.layers.iter().filter_map(|l| l.heads).max().unwrap_or(0);
    print(&format!(
        "{} with a head for {}{}\n{} layers{}, hidden {}, {heads} heads of {}, vocabulary {}, at most {} positions\n\n",
        summary.family,
        summary.task,
        match model.config.task {
            Task::SequenceClassification | Task::TokenClassification
                if !config.labels.is_empty() =>
            {
                format!(" ({})", plain(&config.labels.join(", ")))
            }
            _ => String::new(),
        },
        model.stack().len(),
        match model.config.shared {
            Some(_) => format!(" of {} that share their weights", summary.layers.len()),
            None => String::new(),
        },
        summary.hidden,
        summary.head_dim,
        count(summary.vocab as u64),
        config.max_positions,
    ))?;
    let total = summary.cost.total;
    let row = |name: &str, part: &Part| {
        vec![
            name.to_string(),
            count(part.params as u64),
            bytes(part.bytes as u64),
            format!("{:.1} %", 100.0 * part.bytes as f64 / total.bytes.max(1) as f64),
        ]
    };
    let cost = &summary.cost;
    let mut rows = vec![
        row("embeddings", &cost.embeddings),
        row("attention", &cost.attention),
        row("feed-forward", &cost.ffn),
        row("head", &cost.head),
    ];
    if cost.unused.params > 0 {
        rows.push(row("unused", &cost.unused));
    }
    rows.push(row("total", &total));
    print(&plain_table(&["part", "parameters", "bytes", "share"], &rows))?;
    let word = &model.embeddings.word;
    if word.stored_params() != word.params() {
        let errors = word.table_errors().map_or(String::new(), |e| {
            format!("; relative error {:.4}, by counts {:.4}", e.uniform, e.frequency)
        });
        print(&format!(
            "\nword table: {}, {} numbers for {}, {} bytes, {:.1} a token{errors}\n",
            word.form(),
            count(word.stored_params() as u64),
            count(word.params() as u64),
            count(word.bytes() as u64),
            word.bytes() as f64 / word.rows().max(1) as f64,
        ))?;
    }
    let rows: Vec<Vec<String>> = summary
        .layers
        .iter()
        .enumerate()
        .map(|(i, l)| {
            let or_gone = |n: Option<usize>| n.map_or("gone".into(), |n| n.to_string());
            let mut row = vec![i.to_string(), or_gone(l.heads), or_gone(l.ffn)];
            row.extend(l.tokens.map(|share| format!("{:.1} %", 100.0 * share)));
            row.extend([count(l.params as u64), l.forms.join(", ")]);
            row
        })
        .collect();
    print("\n")?;
    let mut header = vec!["layer", "heads", "units", "parameters", "form"];
    if model.tokens.is_some() {
        header.insert(3, "tokens");
    }
    print(&plain_table(&header, &rows))?;
    print(&format!(
        "\nweight files: {}; {:.2} bits per weight of the layers\n{:.3} GFLOPs for {} x {} tokens\n",
        bytes(summary.file_bytes),
        summary.bits_per_weight,
        summary.compute.flops as f64 / 1e9,
        summary.compute.batch,
        summary.compute.tokens,
    ))
}
