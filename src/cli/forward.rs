//! `compress forward MODEL --inputs in.safetensors -o out.safetensors`

use super::{ThreadArgs, print, print_json, progress};
use clap::Args;
use compress::checkpoint::{Checkpoint, Dtype, OutputFolder, Tensor, write_file};
use compress::model::{Model, Task};
use compress::pipeline::root;
use compress::runtime::{Batch, Encoder, Observer, Output};
use compress::{Error, Result};
use serde_json::json;
use std::path::{Path, PathBuf};

#[derive(Debug, Args)]
pub struct ForwardArgs {
    /// The checkpoint: a Hugging Face folder or a .safetensors file
    model: PathBuf,
    /// `input_ids`, and if wanted `attention_mask` and `token_type_ids`: I64 or I32, [batch, tokens]. Positions count from
    /// the first column, padding on the left included. The head takes the first live token of a text, where Transformers
    /// takes the first column: with padding on the left, answers differ. Other inputs, as `position_ids`, are refused
    #[arg(long, value_name = "FILE")]
    inputs: PathBuf,
    /// Where `logits` (or `start_logits` and `end_logits`, `sentence_embedding`, `last_hidden_state`) go
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Store `hidden_states.N`, [batch, tokens, hidden]; zeros for padding, and for tokens that the model
    /// dropped in a layer before
    #[arg(long)]
    hidden_states: bool,
    /// Store `attentions.N`, [batch, heads, tokens, tokens], with zeros as in the hidden states
    #[arg(long)]
    attentions: bool,
    /// Replace an output file that exists
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    threads: ThreadArgs,
    /// Print the names and shapes as JSON
    #[arg(long)]
    json: bool,
}

pub fn main(args: &ForwardArgs) -> Result<()> {
    args.threads.apply()?;
    if args.output.exists() && !args.force {
        return Err(Error::Usage {
            found: format!("{} exists", args.output.display()),
            advice: "give --force to replace it".into(),
        });
    }
    OutputFolder::check_outside(&args.output, &root(&args.model))?;
    let same = |a: &Path, b: &Path| match (a.canonicalize(), b.canonicalize()) {
        (Ok(a), Ok(b)) => a == b,
        _ => false,
    };
    if same(&args.output, &args.inputs) {
        return Err(Error::Usage {
            found: format!("{} is --inputs too", args.output.display()),
            advice: "give another name: inputs are never written to".into(),
        });
    }
    let model = Model::open(&args.model)?;
    let input = Padded::read(&args.inputs)?;
    let encoder = Encoder::within_memory(&model)?;
    let mut seen = Seen {
        hidden: args.hidden_states.then(Vec::new),
        attentions: args.attentions.then(|| attention_buffers(&model, &input)),
        live: (0..input.batch.tokens()).collect(),
        input: &input,
        width: model.config.hidden,
    };
    let output = encoder.forward(&input.batch, None, &mut seen)?;
    let mut tensors = outputs(&model, &input, &output);
    for (i, x) in seen.hidden.iter().flatten().enumerate() {
        tensors.push(input.per_token(&format!("hidden_states.{i}"), x, model.config.hidden));
    }
    for (i, probs) in seen.attentions.iter().flatten().enumerate() {
        let heads = probs.len() / (input.rows * input.tokens * input.tokens).max(1);
        let shape = [input.rows, heads, input.tokens, input.tokens];
        tensors.push(Tensor::from_f32(format!("attentions.{i}"), &shape, probs, Dtype::F32));
    }
    write_file(&args.output, &tensors, &progress::interrupted)?;
    if args.json {
        let shapes: serde_json::Map<_, _> =
            tensors.iter().map(|t| (t.name.clone(), json!(t.shape))).collect();
        return print_json(&shapes);
    }
    for tensor in &tensors {
        print(&format!("{} {:?}\n", tensor.name, tensor.shape))?;
    }
    Ok(())
}

/// Whether a file of inputs may hold `name`: what is read, and what this command writes, so that one file can hold both.
fn is_read(name: &str) -> bool {
    const READ: [&str; 3] = ["input_ids", "attention_mask", "token_type_ids"];
    const WRITTEN: [&str; 6] = [
        "logits",
        "start_logits",
        "end_logits",
        "sentence_embedding",
        "last_hidden_state",
        "pooler_output",
    ];
    let by_layer = ["hidden_states.", "attentions."].iter().any(|start| name.starts_with(start));
    READ.contains(&name) || WRITTEN.contains(&name) || by_layer
}

/// Rows of a padded input, and the batch of their live tokens.
struct Padded {
    rows: usize,
    tokens: usize,
    /// Where the live tokens of each row start.
    offsets: Vec<usize>,
    batch: Batch,
}

impl Padded {
    fn read(path: &Path) -> Result<Padded> {
        let file = Checkpoint::open(path)?;
        let malformed = |found: String, expected: &str, advice| Error::Malformed {
            path: path.to_path_buf(),
            found,
            expected: expected.into(),
            advice,
        };
        const STORE: &str = "store what a Hugging Face tokenizer returns";
        let integers = |tensor: &Tensor| -> Result<Vec<i64>> {
            match tensor.dtype {
                Dtype::I32 => Ok(tensor.to_i32()?.iter().map(|&v| v as i64).collect()),
                Dtype::I64 => Ok(tensor.to_i64()?.into_owned()),
                other => {
                    Err(malformed(format!("`{}` of {other}", tensor.name), "I64 or I32", STORE))
                }
            }
        };
        let ids = file
            .get("input_ids")
            .ok_or_else(|| malformed("no `input_ids`".into(), "I64 [batch, tokens]", STORE))?;
        if let Some(name) = file.names().find(|name| !is_read(name)) {
            let found = format!("a tensor `{name}`");
            let expected = "`input_ids`, `attention_mask` and `token_type_ids` alone";
            return Err(malformed(found, expected, "leave it out: it would not be looked at"));
        }
        let [rows, tokens] = ids.shape[..] else {
            let found = format!("`input_ids` of shape {:?}", ids.shape);
            return Err(malformed(found, "[batch, tokens]", STORE));
        };
        let optional = |name: &str, default: i64| -> Result<Vec<i64>> {
            match file.get(name) {
                None => Ok(vec![default; rows * tokens]),
                Some(t) if t.shape == ids.shape => integers(t),
                Some(t) => {
                    let found = format!("`{name}` of shape {:?}", t.shape);
                    Err(malformed(found, "the shape of `input_ids`", STORE))
                }
            }
        };
        let (mask, types) = (optional("attention_mask", 1)?, optional("token_type_ids", 0)?);
        let ids = integers(ids)?;
        let (mut batch, mut offsets) = (Batch::default(), Vec::new());
        for row in 0..rows {
            let span = row * tokens..(row + 1) * tokens;
            let live: Vec<usize> =
                span.clone().filter(|&i| mask[i] != 0).map(|i| i - row * tokens).collect();
            let (Some(&first), Some(&last)) = (live.first(), live.last()) else {
                let found = format!("row {row} without a live token");
                return Err(malformed(found, "at least one in every row", STORE));
            };
            if last - first + 1 != live.len() {
                let found = format!("a hole in `attention_mask`, row {row}");
                return Err(malformed(found, "live tokens side by side", STORE));
            }
            let live = span.start + first..span.start + last + 1;
            let unsigned = |values: &[i64]| -> Result<Vec<u32>> {
                let convert = |&v: &i64| {
                    u32::try_from(v).map_err(|_| {
                        malformed(format!("{v} in row {row}"), "a token id or type", STORE)
                    })
                };
                values.iter().map(convert).collect()
            };
            let beside = [first.checked_sub(1), Some(last + 1).filter(|&at| at < tokens)];
            let beside = beside.map(|at| at.map(|at| unsigned(&[ids[row * tokens + at]])));
            let [before, behind] = beside.map(Option::transpose);
            batch.padding.push([before?, behind?].map(|ids| ids.map(|ids| ids[0])));
            batch.push(&unsigned(&ids[live.clone()])?, &unsigned(&types[live])?, row);
            offsets.push(first);
            // Positions count from the row's first column, padding on the left included.
            let from = batch.starts[row];
            batch.positions[from..].iter_mut().for_each(|p| *p += first as u32);
        }
        if rows == 0 || tokens == 0 {
            return Err(malformed(
                format!("`input_ids` of shape [{rows}, {tokens}]"),
                "a batch with tokens",
                STORE,
            ));
        }
        Ok(Padded { rows, tokens, offsets, batch })
    }

    /// Live rows put back to their places, zeros elsewhere: `[batch, tokens, width]`, or
    /// `[batch, tokens]` of width 1.
    fn per_token(&self, name: &str, x: &[f32], width: usize) -> Tensor {
        let mut out = vec![0.0; self.rows * self.tokens * width];
        for (row, span) in self.batch.starts.windows(2).enumerate() {
            let to = (row * self.tokens + self.offsets[row]) * width;
            let values = &x[span[0] * width..span[1] * width];
            out[to..to + values.len()].copy_from_slice(values);
        }
        Tensor::from_f32(name, &[self.rows, self.tokens, width], &out, Dtype::F32)
    }
}

struct Seen<'a> {
    /// Of all tokens of the batch, zeros for those that are gone.
    hidden: Option<Vec<Vec<f32>>>,
    /// By step: `[batch, heads, tokens, tokens]`.
    attentions: Option<Vec<Vec<f32>>>,
    /// Where in the batch the tokens stand that are left.
    live: Vec<usize>,
    input: &'a Padded,
    width: usize,
}

impl Observer for Seen<'_> {
    fn hidden(&mut self, _: usize, x: &[f32]) {
        let Some(hidden) = &mut self.hidden else { return };
        let mut all = vec![0.0; self.input.batch.tokens() * self.width];
        for (&t, row) in self.live.iter().zip(x.chunks_exact(self.width)) {
            all[t * self.width..(t + 1) * self.width].copy_from_slice(row);
        }
        hidden.push(all);
    }

    fn attention(&mut self, step: usize, head: usize, text: usize, probs: &[f32]) {
        let Some(attentions) = &mut self.attentions else { return };
        let (tokens, offset) = (self.input.tokens, self.input.offsets[text]);
        let [from, to] = [text, text + 1].map(|text| self.input.batch.starts[text]);
        let before = |end: usize| self.live.partition_point(|&t| t < end);
        let live = &self.live[before(from)..before(to)];
        let heads = attentions[step].len() / (self.input.rows * tokens * tokens);
        for (q, line) in live.iter().zip(probs.chunks_exact(live.len())) {
            let row = ((text * heads + head) * tokens + offset + q - from) * tokens + offset;
            live.iter().zip(line).for_each(|(k, p)| attentions[step][row + k - from] = *p);
        }
    }

    fn kept(&mut self, _step: usize, kept: &[usize]) {
        self.live = kept.iter().map(|&t| self.live[t]).collect();
    }
}

fn attention_buffers(model: &Model, input: &Padded) -> Vec<Vec<f32>> {
    let heads = |l: &compress::model::Layer| l.attention.as_ref().map_or(0, |a| a.heads.len());
    let size = |l| vec![0.0; input.rows * heads(l) * input.tokens * input.tokens];
    model.stack().into_iter().map(|l| size(&model.layers[l])).collect()
}

/// The head's output under the names that Transformers gives it.
fn outputs(model: &Model, input: &Padded, output: &Output) -> Vec<Tensor> {
    let per_text = |name: &str, values: &[f32], width: usize| {
        Tensor::from_f32(name, &[input.rows, width], values, Dtype::F32)
    };
    match model.config.task {
        Task::SequenceClassification => vec![per_text("logits", &output.values, output.width)],
        Task::TokenClassification | Task::MaskedLm => {
            vec![input.per_token("logits", &output.values, output.width)]
        }
        Task::QuestionAnswering => ["start_logits", "end_logits"]
            .iter()
            .enumerate()
            .map(|(i, name)| {
                let column: Vec<f32> = output.values.iter().skip(i).step_by(2).copied().collect();
                let tensor = input.per_token(name, &column, 1);
                Tensor::new(*name, Dtype::F32, &[input.rows, input.tokens], tensor.bytes())
            })
            .collect(),
        Task::Embedding => vec![per_text("sentence_embedding", &output.values, output.width)],
        Task::Bare => {
            let mut tensors =
                vec![input.per_token("last_hidden_state", &output.values, output.width)];
            if let Some(pooled) = &output.pooled {
                tensors.push(per_text("pooler_output", pooled, model.config.pooled));
            }
            tensors
        }
    }
}
