//! A finished model for other software, written beside the native form, which is the folder itself.
//!
//! A target says what it cannot carry ([`Target::refusal`]) before it writes anything, and leaves nothing out.

pub mod check;
mod dense;
mod hf;
pub mod onnx;
#[cfg(test)]
mod tests;

pub use dense::padded;
pub use onnx::SignPlanes;

use crate::checkpoint::{self, OutputFolder, WrittenFile, metadata};
use crate::model::{Activations, Head, Linear, Model};
use crate::report::Emitted;
use crate::{Error, Result};
use serde_json::Value;

/// What other software reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Target {
    /// The output folder itself, which is always written.
    Native,
    /// Zero-padded matrices for stock Transformers classes.
    Dense,
    /// Weights in their forms, with the Python code that reads them.
    Hf,
    Onnx,
}

impl Target {
    pub const ALL: [Target; 4] = [Target::Native, Target::Hf, Target::Onnx, Target::Dense];

    /// As recipes and reports call it, and the folder that it is in.
    pub fn name(self) -> &'static str {
        match self {
            Target::Native => "native",
            Target::Dense => "dense",
            Target::Hf => "hf",
            Target::Onnx => "onnx",
        }
    }

    /// The form of this name.
    ///
    /// # Errors
    /// [`Error::Usage`], with all names.
    pub fn named(name: &str) -> Result<Target> {
        Target::ALL.into_iter().find(|f| f.name() == name).ok_or_else(|| Error::Usage {
            found: format!("no target is named `{name}`"),
            advice: format!("this build writes {}", Target::ALL.map(Target::name).join(", ")),
        })
    }

    /// Where its file `name` is in the output folder.
    fn path(self, name: &str) -> String {
        match self {
            Target::Native => name.to_string(),
            _ => format!("{}/{name}", self.name()),
        }
    }

    /// What of `model` it cannot carry; `None` where it carries all.
    pub fn refusal(self, model: &Model) -> Option<String> {
        match self {
            Target::Native => None,
            Target::Dense => dense::refusal(model),
            Target::Hf => hf::refusal(model),
            Target::Onnx => onnx::refusal(model),
        }
    }
}

/// What to write besides the native target.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Emit {
    /// Without [`Target::Native`], each once.
    pub targets: Vec<Target>,
    pub sign_planes: SignPlanes,
}

impl Emit {
    /// Of names separated by commas or given one by one, in the order of [`Target::ALL`].
    ///
    /// # Errors
    /// [`Error::Usage`] for unknown names, and for `sign_planes` where nothing is written that has them.
    pub fn new(names: &[String], sign_planes: Option<SignPlanes>) -> Result<Emit> {
        let names = names.iter().flat_map(|list| list.split(',')).map(str::trim);
        let named =
            names.filter(|n| !n.is_empty()).map(Target::named).collect::<Result<Vec<_>>>()?;
        let asked = |f: &Target| *f != Target::Native && named.contains(f);
        let targets: Vec<Target> = Target::ALL.into_iter().filter(asked).collect();
        if sign_planes.is_some() && !targets.contains(&Target::Onnx) {
            return Err(Error::Usage {
                found: "--onnx-binary without the target `onnx`".into(),
                advice: "add --emit onnx, or leave --onnx-binary out".into(),
            });
        }
        Ok(Emit { targets, sign_planes: sign_planes.unwrap_or_default() })
    }

    /// Checks that every target carries `model`.
    ///
    /// # Errors
    /// [`Error::Mismatch`], with what is in the way and the targets that carry it.
    pub fn check(&self, model: &Model) -> Result<()> {
        for &target in &self.targets {
            if let Some(found) = target.refusal(model) {
                return Err(refused(target, found, |other| other.refusal(model).is_none()));
            }
        }
        self.sign_planes.check(model, self.targets.contains(&Target::Onnx))
    }
}

/// The error of a target that cannot carry `found`; `carries` says which others can.
pub fn refused(target: Target, found: String, carries: impl Fn(Target) -> bool) -> Error {
    let can: Vec<&str> =
        Target::ALL.into_iter().filter(|f| carries(*f)).map(Target::name).collect();
    Error::Mismatch {
        found,
        expected: format!(
            "the target `{}` cannot carry that, of all targets {} can",
            target.name(),
            can.join(", ")
        ),
        advice: "leave it out of --emit, or change the recipe",
    }
}

/// What neither Python code nor a graph of ours knows: binary activations.
fn unread(model: &Model) -> Option<String> {
    let signs = |l: &&Linear| l.elastic.is_some();
    if let Some(linear) = model.linears().into_iter().find(signs) {
        return Some(format!("the inputs of `{}` are signs", linear.weight.name()));
    }
    let norm = match &model.head {
        Head::SequenceClassification { norm, .. } | Head::Bare { norm, .. } => norm.is_some(),
        _ => false,
    };
    norm.then(|| "the pooler has a LayerNorm of its own".into())
}

/// What neither of them knows, and stock classes do.
fn unwritten(model: &Model) -> Option<String> {
    let family = model.family;
    family.feature.map(|feature| format!("family `{}` has {feature}", family.model_type))
}

/// Names and bytes of the weight files that [`write()`] makes for `target`, below the output folder, without the index of
/// shards. No data is read of `model`: it may have none.
///
/// # Errors
/// As [`checkpoint::weight_files`], and [`padded`].
pub fn weight_files(
    target: Target,
    model: &Model,
    sign_planes: SignPlanes,
    max_shard_bytes: u64,
) -> Result<Vec<(String, u64)>> {
    let tensors = match target {
        Target::Native => model.compacted().tensors(),
        Target::Dense => dense::outlined(model)?,
        Target::Hf => hf::parts(model).0,
        Target::Onnx => return Ok(onnx::files(model, sign_planes)),
    };
    let files = checkpoint::weight_files(&tensors, max_shard_bytes)?;
    Ok(files.into_iter().map(|(name, bytes)| (target.path(&name), bytes)).collect())
}

/// Names and bytes of the code that [`write()`] puts beside the weights for `target`.
pub fn code_files(target: Target) -> Vec<(String, u64)> {
    let file = |(name, code): (&str, &str)| (target.path(name), code.len() as u64);
    if target == Target::Hf { hf::CODE.map(file).to_vec() } else { Vec::new() }
}

/// Writes the targets of `emit` into `folder`, which holds the native one. `side_files` are those of its files that
/// belong to the tokenizer and the like.
///
/// # Errors
/// What [`Emit::check`] refuses, and what the folder does.
pub fn write(
    emit: &Emit,
    model: &Model,
    side_files: &[String],
    folder: &mut OutputFolder,
    max_shard_bytes: u64,
    interrupted: &dyn Fn() -> bool,
) -> Result<(Vec<Emitted>, Vec<WrittenFile>)> {
    emit.check(model)?;
    let (mut notes, mut files) = (Vec::new(), Vec::new());
    for &target in &emit.targets {
        let mut writer = Writer { folder, target, interrupted, max_shard_bytes, files: Vec::new() };
        match target {
            Target::Native => {}
            Target::Dense => {
                let (padded, config) = padded(model)?;
                writer.tensors(&padded.tensors())?;
                writer.folder_around(&config, side_files)?;
            }
            Target::Hf => {
                let (tensors, config) = hf::parts(model);
                writer.tensors(&tensors)?;
                writer.folder_around(&config, side_files)?;
                for (name, code) in hf::CODE {
                    writer.file(name, code.as_bytes())?;
                }
            }
            Target::Onnx => {
                writer.files = onnx::write(model, emit.sign_planes, writer.folder, interrupted)?
            }
        }
        notes.push(note(target, model, emit, &writer.files));
        files.extend(writer.files);
    }
    Ok((notes, files))
}

/// Writes the sub-folder of one target.
struct Writer<'a> {
    folder: &'a mut OutputFolder,
    target: Target,
    interrupted: &'a dyn Fn() -> bool,
    max_shard_bytes: u64,
    files: Vec<WrittenFile>,
}

impl Writer<'_> {
    fn file(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let name = self.target.path(name);
        self.files.push(self.folder.add_file(&name, bytes)?);
        Ok(())
    }

    fn tensors(&mut self, tensors: &[checkpoint::Tensor]) -> Result<()> {
        let under = self.target.name();
        let (limit, interrupted) = (self.max_shard_bytes, self.interrupted);
        let written =
            self.folder.write_tensors_under(under, tensors, &metadata(), limit, interrupted)?;
        self.files.extend(written);
        Ok(())
    }

    /// config.json, and copies of what belongs to the tokenizer.
    fn folder_around(&mut self, config: &Value, side_files: &[String]) -> Result<()> {
        self.file("config.json", format!("{config:#}\n").as_bytes())?;
        for name in side_files {
            let copy = self.target.path(name);
            self.files.push(self.folder.copy_within(name, &copy)?);
        }
        Ok(())
    }
}

/// What the report says of a target that was written.
fn note(target: Target, model: &Model, emit: &Emit, files: &[WrittenFile]) -> Emitted {
    let rounds = model.linears().iter().any(|l| l.activations != Activations::Exact);
    let weights = |f: &&WrittenFile| {
        [".safetensors", ".onnx", ".onnx_data"].iter().any(|end| f.name.ends_with(end))
    };
    let (purpose, loads) = match target {
        Target::Native => ("smallest and fastest with `compress`", "`compress`"),
        Target::Dense => (
            "software that knows nothing but stock classes; zero-padded, no smaller and no faster than the original",
            "stock Transformers classes",
        ),
        Target::Hf => (
            "Transformers, with shapes, packed weights, tables and schedule as they are; expanded when they are multiplied",
            "Transformers 5 with `trust_remote_code=True`, which runs the two Python files beside it",
        ),
        Target::Onnx => ("ONNX Runtime and what is built on it", "ONNX Runtime"),
    };
    let mut limits = Vec::new();
    if target == Target::Dense && rounds {
        limits.push(
            "inputs of layers are not rounded to 8 bits there: answers differ by what that costs"
                .to_string(),
        );
    }
    if target == Target::Onnx {
        limits.extend(emit.sign_planes.note(model));
    }
    Emitted {
        target: target.name().into(),
        purpose: purpose.into(),
        loads: loads.into(),
        sign_planes: (target == Target::Onnx).then(|| emit.sign_planes.name().into()),
        limits,
        bytes: files.iter().map(|f| f.bytes).sum(),
        weight_bytes: files.iter().filter(weights).map(|f| f.bytes).sum(),
        planned_weight_bytes: None,
        code: files
            .iter()
            .filter(|f| f.name.ends_with(".py"))
            .map(|f| (f.name.clone(), f.sha256.clone()))
            .collect(),
    }
}
