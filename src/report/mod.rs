//! What a run did, as data, and as text for people.

mod change;
mod markdown;
mod plan;
mod size;
mod tables;
mod training;

pub use change::{Change, Form};
pub use markdown::{
    TARGETS, changes as markdown_changes, model_card, report as markdown,
    targets as markdown_targets,
};
pub use plan::{Expected, Met, PassMet, PlanNote, PlannedTarget, span};
pub use size::parse_bytes;
pub use tables::{
    FASTER, FEWER, SMALLER, before_after, bytes, count, counted, giga, metric_value, plain_table,
    signed, times,
};
pub use training::Training;

use crate::checkpoint::WrittenFile;
use crate::eval::latency::Latency;
use crate::eval::tasks::Metric;
use crate::model::cost::{self, Cost};
use crate::model::{Bounds, Layer, Model, TokenSchedule, Weight};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// Version of report.json.
pub const SCHEMA: u32 = 1;

/// Everything about a run that the same input, recipe, seed and version give again. What was timed stands
/// in [`Measured`], in a file of its own.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    pub schema: u32,
    pub version: &'static str,
    /// Name of the input's folder.
    pub base_model: String,
    pub seed: u64,
    pub recipe: Value,
    /// What else the output depends on, as it would be written on the command line.
    pub arguments: String,
    /// The files that all of it was made from.
    pub inputs: Vec<InputNote>,
    pub calibration: Option<CalibrationNote>,
    /// What passes that train had, where it was not the calibration text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<CalibrationNote>,
    pub before: Summary,
    pub after: Summary,
    pub passes: Vec<PassNote>,
    /// What was known of the passes before they ran; `None` where nothing was compressed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plan: Option<PlanNote>,
    pub quality: Option<Quality>,
    /// Whether stock Transformers classes load the output, and it answers there as here.
    pub loads_natively: bool,
    /// Whether they load its tensors, but run all tokens: the schedule is lost on them.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub loads_without_schedule: bool,
    /// The head's answer to a fixed input, which `compress verify` computes again.
    pub fingerprint: Vec<f32>,
    /// What is written for other software beside the native form.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub emitted: Vec<Emitted>,
    pub files: Vec<FileNote>,
}

/// A form of the model for other software.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Emitted {
    /// Its name, and the sub-folder that it is in.
    pub target: String,
    /// What it is for.
    pub purpose: String,
    /// What loads it.
    pub loads: String,
    /// How a graph has sign planes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sign_planes: Option<String>,
    /// What is different there, a sentence each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub limits: Vec<String>,
    /// Of all of its files.
    pub bytes: u64,
    /// Of those that hold weights.
    pub weight_bytes: u64,
    /// What was planned of these; `None` where it was not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub planned_weight_bytes: Option<Bounds>,
    /// SHA-256 of the code in it, by file.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub code: BTreeMap<String, String>,
}

/// A file that an output depends on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InputNote {
    /// As it was given; files of the checkpoint by their place in it.
    pub name: String,
    pub sha256: String,
    /// Whether it is one of the checkpoint.
    pub of_model: bool,
}

/// What text the passes had.
#[derive(Debug, Clone, Serialize)]
pub struct CalibrationNote {
    pub source: String,
    pub texts: usize,
    pub tokens: usize,
    pub labels: bool,
}

/// A model in numbers.
#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    pub family: &'static str,
    pub task: &'static str,
    pub hidden: usize,
    pub vocab: usize,
    pub head_dim: usize,
    pub layers: Vec<LayerNote>,
    pub cost: Cost,
    /// Of the matrices of attention and feed-forward blocks, all that is stored for them.
    pub bits_per_weight: f64,
    /// Bytes of the weight files.
    pub file_bytes: u64,
    pub compute: Compute,
}

/// One layer's shape.
#[derive(Debug, Clone, Serialize)]
pub struct LayerNote {
    /// `None` where the attention is gone.
    pub heads: Option<usize>,
    pub ffn: Option<usize>,
    /// Of a text's tokens but the first, the share that is left behind the layer; `None` where the model keeps all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens: Option<f64>,
    pub params: usize,
    pub forms: Vec<String>,
}

/// Multiply-accumulates and FLOPs at a stated size.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Compute {
    pub batch: usize,
    pub tokens: usize,
    pub macs: u64,
    pub flops: u64,
}

/// What one pass did.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PassNote {
    pub name: String,
    pub params_before: usize,
    pub params_after: usize,
    pub bytes_before: usize,
    pub bytes_after: usize,
    /// Of one text of the size at which compute is reported.
    pub flops_after: u64,
    pub changes: Vec<Change>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub training: Vec<Training>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// Numbers by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub figures: BTreeMap<String, f64>,
}

/// How good the output is.
#[derive(Debug, Clone, Serialize)]
pub struct Quality {
    /// `dev.tsv`, or the part of the calibration text that no pass saw.
    pub data: String,
    /// Of the file, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    pub examples: usize,
    pub tokens: usize,
    /// FLOPs of all these texts, each at its own length, before and after; `None` where nothing was compressed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flops: Option<[u64; 2]>,
    /// Columns that the examples were read from.
    pub columns: Option<crate::data::tables::Columns>,
    /// The task's metrics, where there are labels.
    pub before: Vec<Metric>,
    pub after: Vec<Metric>,
    /// Against the model as it was read.
    pub fidelity: Vec<Metric>,
}

impl Report {
    /// FLOPs of the texts that were judged, before and after, where they say what those of one long text do not:
    /// where tokens are dropped, and of data that the user gave.
    fn flops_on_data(&self) -> Option<(String, [u64; 2])> {
        let quality = self.quality.as_ref()?;
        let drops = |s: &Summary| s.layers.iter().any(|l| l.tokens.is_some());
        let told = quality.columns.is_some() || drops(&self.before) || drops(&self.after);
        let name = format!("FLOPs on {}, no padding", quality.data);
        quality.flops.filter(|_| told).map(|flops| (name, flops))
    }
}

#[derive(Debug, Clone, Serialize)]
pub struct FileNote {
    pub name: String,
    pub bytes: u64,
    pub sha256: String,
}

/// What was timed: never the same twice.
#[derive(Debug, Clone, Serialize)]
pub struct Measured {
    pub threads: usize,
    pub cpu_features: Vec<&'static str>,
    pub wall_seconds: f64,
    pub passes: Vec<(&'static str, f64)>,
    pub peak_memory_bytes: Option<u64>,
    /// One text on one thread, before and after, timed in turn.
    pub latency: Option<[Latency; 2]>,
}

/// The size at which compute is reported.
pub const COMPUTE_TOKENS: usize = 128;

/// Tokens of the text at which the compute of `model` is reported.
pub fn compute_tokens(model: &Model) -> usize {
    COMPUTE_TOKENS.min(model.config.max_positions)
}

impl Summary {
    pub fn of(model: &Model, file_bytes: u64) -> Summary {
        let config = &model.config;
        let tokens = compute_tokens(model);
        let macs = cost::macs(model, 1, tokens);
        Summary {
            family: model.family.model_type,
            task: config.task.name(),
            hidden: config.hidden,
            vocab: config.vocab,
            head_dim: config.head_dim,
            layers: layer_notes(model),
            cost: Cost::of(model),
            bits_per_weight: cost::bits_per_weight(model),
            file_bytes,
            compute: Compute { batch: 1, tokens, macs, flops: 2 * macs },
        }
    }
}

fn layer_notes(model: &Model) -> Vec<LayerNote> {
    let shares = model.tokens.as_ref().map(TokenSchedule::shares);
    let note = |(l, layer)| layer_note(layer, shares.as_ref().map(|shares| shares[l]));
    model.layers.iter().enumerate().map(note).collect()
}

fn layer_note(layer: &Layer, tokens: Option<f64>) -> LayerNote {
    let mut forms: Vec<String> =
        layer.linears().iter().map(|(_, l)| Weight::form(&l.weight)).collect();
    forms.dedup();
    LayerNote {
        heads: layer.attention.as_ref().map(|a| a.heads.len()),
        ffn: layer.ffn.as_ref().map(|f| f.units()),
        tokens,
        params: cost::prunable(layer),
        forms,
    }
}

impl From<WrittenFile> for FileNote {
    fn from(file: WrittenFile) -> FileNote {
        FileNote { name: file.name, bytes: file.bytes, sha256: file.sha256 }
    }
}
