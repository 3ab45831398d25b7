//! Compares what was written with our own forward pass.

use super::{Target, hf, padded};
use crate::checkpoint::{Dtype, Tensor, file_with};
use crate::model::{Activations, Head, Model, PoolMode, Task};
use crate::runtime::{Batch, Encoder, NoObserver, Output};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

/// How close a target's answers are to ours.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Compared {
    pub target: String,
    /// What computed them.
    pub by: String,
    pub texts: usize,
    /// Largest difference of two numbers.
    pub difference: f64,
    /// Root of the mean square of the differences.
    pub typical: f64,
    /// Largest of our numbers, or 1.
    pub scale: f64,
    /// Rows with the same largest number, and all rows, of heads that choose.
    pub same: Option<[usize; 2]>,
    /// The difference that is allowed, over `scale`: the largest, or where `rounds` the typical one.
    pub tolerance: f64,
    /// Whether layers round their inputs. A number between two levels falls to either side then, and now and then one
    /// answer moves by more than all others.
    pub rounds: bool,
}

impl Compared {
    /// # Errors
    /// [`Error::Mismatch`] where the difference is larger than allowed, or no number.
    pub fn check(&self) -> Result<()> {
        let judged = if self.rounds { self.typical } else { self.difference };
        if judged <= self.tolerance * self.scale {
            return Ok(());
        }
        Err(Error::Mismatch {
            found: format!(
                "the target `{}` answers otherwise by {judged:.1e} ({})",
                self.target, self.by
            ),
            expected: format!("at most {:.1e} is rounding", self.tolerance * self.scale),
            advice: "write it again; when that does not help, this is an error of `compress`",
        })
    }
}

/// Sums in another order.
const EXACT: f64 = 1e-4;
/// The same between frameworks, whose kernels differ more.
const FOREIGN: f64 = 1e-3;
/// Where layers round their inputs, of the typical difference.
const ROUNDED: f64 = 1e-2;
/// Where `MatMulNBits` rounds in blocks of its own besides.
const BLOCKS: f64 = 0.3;

/// Our answers to `batches`.
///
/// # Errors
/// As [`Encoder::forward`].
pub fn answers(encoder: &Encoder, batches: &[Batch]) -> Result<Vec<Output>> {
    batches.iter().map(|batch| encoder.forward(batch, None, &mut NoObserver)).collect()
}

/// What is allowed, of a target that other software runs. `planes`: how a graph has sign planes.
fn tolerance(rounds: bool, nbits: bool) -> f64 {
    match (nbits, rounds) {
        (true, _) => BLOCKS,
        (false, true) => ROUNDED,
        (false, false) => FOREIGN,
    }
}

fn rounds(model: &Model) -> bool {
    model.linears().iter().any(|l| l.activations != Activations::Exact)
}

/// The model without rounded inputs, which a padded checkpoint does not know.
fn exact(model: &Model) -> Model {
    let mut model = model.clone();
    let of_layers = model.layers.iter_mut().flat_map(|l| l.linears_mut());
    let all = of_layers.chain(model.head.linears_mut()).chain(&mut model.embeddings.project);
    all.for_each(|l| l.activations = Activations::Exact);
    model
}

/// The padded checkpoint in `folder`, read by our own reader.
///
/// # Errors
/// What [`Model::open`] refuses.
pub fn dense(model: &Model, folder: &Path, batches: &[Batch]) -> Result<Compared> {
    let read = Model::open(folder)?;
    let found = answers(&Encoder::packed(&read)?, batches)?;
    let exact = exact(model);
    let ours = answers(&Encoder::packed(&exact)?, batches)?;
    let mut compared = Compared {
        target: Target::Dense.name().into(),
        by: "this program".into(),
        texts: batches.iter().map(Batch::texts).sum(),
        difference: 0.0,
        typical: 0.0,
        scale: 1.0,
        same: None,
        tolerance: EXACT,
        rounds: false,
    };
    let (mut squares, mut numbers) = (0.0, 0);
    let chooses = chooses(model);
    let mut same = [0, 0];
    for (ours, found) in ours.iter().zip(&found) {
        for (a, b) in ours.values.iter().zip(&found.values) {
            let difference = if (a - b).is_nan() { f64::INFINITY } else { (a - b).abs() as f64 };
            compared.difference = compared.difference.max(difference);
            squares += difference * difference;
            numbers += 1;
            compared.scale = compared.scale.max(a.abs() as f64);
        }
        let rows = ours.values.chunks(ours.width).zip(found.values.chunks(found.width));
        for (a, b) in rows {
            same[0] += (largest(a) == largest(b)) as usize;
            same[1] += 1;
        }
    }
    compared.typical = (squares / numbers.max(1) as f64).sqrt();
    compared.same = chooses.then_some(same);
    Ok(compared)
}

fn largest(row: &[f32]) -> Option<usize> {
    (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b]).then(b.cmp(&a)))
}

fn chooses(model: &Model) -> bool {
    let classes = model.config.task == Task::SequenceClassification && !model.config.regression;
    classes || matches!(model.config.task, Task::TokenClassification | Task::MaskedLm)
}

/// The script that loads targets and compares, given to Python.
const SCRIPT: &str = include_str!("check.py");

/// Runs Transformers or ONNX Runtime under `python` over `targets` of `folder`.
///
/// # Errors
/// [`Error::Read`] where it does not start, [`Error::Mismatch`] where it ends with an error or a package is missing, or
/// where the code beside the weights is not this program's.
pub fn by_python(
    python: &Path,
    model: &Model,
    folder: &Path,
    targets: &[Target],
    nbits: bool,
    batches: &[Batch],
) -> Result<Vec<Compared>> {
    let outside = |source| Error::Read { path: python.to_owned(), source };
    if targets.contains(&Target::Hf) {
        known_code(folder)?;
    }
    let bytes = given(model, targets, batches)?;
    let mut child = Command::new(python)
        .args(["-c", SCRIPT])
        .arg(folder)
        .args(targets.iter().map(|t| t.name()))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(outside)?;
    let mut stdin = child.stdin.take().expect("piped");
    // It may end before it has read everything: what it says then is on stderr.
    let writer = std::thread::spawn(move || stdin.write_all(&bytes));
    let output = child.wait_with_output().map_err(outside)?;
    let _ = writer.join();
    let text = String::from_utf8_lossy(&output.stdout);
    let parsed: Option<Vec<Said>> = output
        .status
        .success()
        .then(|| text.lines().last().and_then(|line| serde_json::from_str(line).ok()))
        .flatten();
    let Some(said) = parsed else {
        let error = String::from_utf8_lossy(&output.stderr);
        let last = error.lines().rev().find(|l| !l.trim().is_empty()).unwrap_or("nothing");
        return Err(Error::Mismatch {
            found: format!("{} ended with {}: {}", python.display(), output.status, last.trim()),
            expected: "it loads what was written and compares".into(),
            advice: "give a Python with torch, transformers 5 and onnxruntime: --python=PATH",
        });
    };
    let texts = batches.iter().map(Batch::texts).sum();
    let rounds = rounds(model);
    // A padded checkpoint is compared without that.
    let rounds = |s: &Said| rounds && s.target != Target::Dense.name();
    let compared = |s: Said| Compared {
        tolerance: tolerance(rounds(&s), nbits && s.target == Target::Onnx.name()),
        rounds: rounds(&s),
        typical: s.typical.unwrap_or(f64::INFINITY),
        same: s.same.filter(|_| chooses(model)),
        target: s.target,
        by: s.by,
        texts,
        difference: s.difference.unwrap_or(f64::INFINITY),
        scale: s.scale,
    };
    Ok(said.into_iter().map(compared).collect())
}

/// What the script says of a target.
#[derive(Deserialize)]
struct Said {
    target: String,
    by: String,
    /// `None`: not a number.
    difference: Option<f64>,
    typical: Option<f64>,
    scale: f64,
    same: Option<[usize; 2]>,
}

/// Python runs what stands in the folder: only what this program put there.
fn known_code(folder: &Path) -> Result<()> {
    for (name, code) in hf::CODE {
        let path = folder.join(Target::Hf.name()).join(name);
        let read = |source| Error::Read { path: path.clone(), source };
        if std::fs::read(&path).map_err(read)? != code.as_bytes() {
            return Err(Error::Malformed {
                path: path.clone(),
                found: "other code than this version writes".into(),
                expected: "code that is safe to run".into(),
                advice: "look at it, and load it by hand; or write it again: `compress emit`",
            });
        }
    }
    Ok(())
}

/// Padded inputs of every batch and our answers to them, as one safetensors file.
fn given(model: &Model, targets: &[Target], batches: &[Batch]) -> Result<Vec<u8>> {
    let ours = answers(&Encoder::packed(model)?, batches)?;
    let mut tensors = Vec::new();
    let mut add = |ours: &[Output], prefix: &str| {
        for (i, output) in ours.iter().enumerate() {
            let rows = output.values.len() / output.width.max(1);
            let shape = [rows, output.width];
            tensors.push(Tensor::from_f32(
                format!("{prefix}{i}"),
                &shape,
                &output.values,
                Dtype::F32,
            ));
        }
    };
    add(&ours, "want.");
    if targets.contains(&Target::Dense) {
        let (dense, _) = padded(model)?;
        add(&answers(&Encoder::packed(&dense)?, batches)?, "want_exact.");
    }
    for (i, batch) in batches.iter().enumerate() {
        let texts = batch.texts();
        let longest = batch.starts.windows(2).map(|s| s[1] - s[0]).max().unwrap_or(0);
        let mut columns = [
            vec![model.config.pad_id as i64; texts * longest],
            vec![0; texts * longest],
            vec![0; texts * longest],
        ];
        for (text, span) in batch.starts.windows(2).enumerate() {
            for (j, t) in (span[0]..span[1]).enumerate() {
                let at = text * longest + j;
                columns[0][at] = batch.ids[t] as i64;
                columns[1][at] = 1;
                columns[2][at] = batch.type_ids[t] as i64;
            }
        }
        for (name, values) in ["input_ids", "attention_mask", "token_type_ids"].iter().zip(&columns)
        {
            tensors.push(Tensor::from_i64(format!("{name}.{i}"), &[texts, longest], values));
        }
    }
    let (pool, normalize) = match &model.head {
        Head::Embedding { pool, normalize } => {
            let pool = match pool {
                PoolMode::Cls => "cls",
                PoolMode::Mean => "mean",
                PoolMode::Max => "max",
            };
            (pool, *normalize)
        }
        _ => ("", false),
    };
    let said = [
        ("task", format!("{:?}", model.config.task)),
        ("pool", pool.to_string()),
        ("normalize", normalize.to_string()),
        ("batches", batches.len().to_string()),
    ];
    let metadata: BTreeMap<String, String> =
        said.map(|(key, value)| (key.to_string(), value)).into();
    file_with(&tensors, &metadata)
}
