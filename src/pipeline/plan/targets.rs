//! Which targets will carry the output, and in how many bytes.

use super::PlannedFile;
use crate::Result;
use crate::emit::{self, SignPlanes, Target};
use crate::model::{Bounds, Model, Outline};
use crate::recipe::{Recipe, Step};
use serde::Serialize;

/// Whether a target will carry the output, and how large it will be: its weight files and its code. config.json and
/// copies of the tokenizer come on top.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TargetPlan {
    pub name: &'static str,
    /// Whether it is to be written.
    pub asked: bool,
    /// How a graph has sign planes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sign_planes: Option<&'static str>,
    /// Why it will not, or may not.
    pub refused: Option<String>,
    /// Bytes of its weight files; `None` where it is refused.
    pub weight_bytes: Option<Bounds>,
    /// Bytes of the Python code in it.
    pub code_bytes: u64,
    /// Files of weights and of code, where all are known.
    pub files: Vec<PlannedFile>,
}

/// Bytes of a layer by which a graph between those of an outline may be smaller or larger than all of them: shapes, lists
/// of axes and single numbers, a dozen constants that layers share where their widths and forms are the same; and the
/// nodes of queries, keys and values, which are multiplied at once where their forms are the same.
const SHARED: u64 = 3 << 10;
/// Bytes of a layer's nodes at most. Where blocks may be gone, more may be than in any model of an outline.
const NODES: u64 = 16 << 10;

/// Of all targets, the native one first. Weight files are split at `max_shard_bytes`; `data`: whether there are texts
/// to train on.
///
/// # Errors
/// As [`emit::weight_files`].
pub(super) fn all(
    recipe: &Recipe,
    outline: &Outline,
    data: bool,
    max_shard_bytes: u64,
) -> Result<Vec<TargetPlan>> {
    let plan = |target: Target| -> Result<TargetPlan> {
        let refused = refused(target, recipe, outline, data);
        let code = emit::code_files(target);
        let planes = recipe.emit.sign_planes;
        let (mut weight_bytes, mut files) = (None, Vec::new());
        if refused.is_none() {
            weight_bytes = Some(bytes(target, outline, planes, max_shard_bytes)?);
            if outline.is_exact() {
                let model = &outline.models()[0];
                files = emit::weight_files(target, model, planes, max_shard_bytes)?;
                files.extend(code.clone());
            }
        }
        Ok(TargetPlan {
            name: target.name(),
            asked: target == Target::Native || recipe.emit.targets.contains(&target),
            sign_planes: (target == Target::Onnx).then(|| planes.name()),
            refused,
            weight_bytes,
            code_bytes: code.iter().map(|(_, bytes)| bytes).sum(),
            files: PlannedFile::list(files),
        })
    };
    Target::ALL.into_iter().map(plan).collect()
}

fn refused(target: Target, recipe: &Recipe, outline: &Outline, data: bool) -> Option<String> {
    let by_pass = |step: &Step| {
        step.pass.refuses(target, data).map(|why| format!("after `{}` {why}", step.name))
    };
    let by_model = |model: &Model| target.refusal(model);
    let by_planes = |model: &Model| recipe.emit.sign_planes.refusal(model);
    let models = || outline.models().iter();
    recipe
        .steps
        .iter()
        .find_map(by_pass)
        .or_else(|| models().find_map(by_model))
        .or_else(|| models().find_map(by_planes).filter(|_| target == Target::Onnx))
}

/// Bytes of the weight files of `target`.
fn bytes(target: Target, outline: &Outline, planes: SignPlanes, shard: u64) -> Result<Bounds> {
    let bytes = |model: &Model| -> Result<u64> {
        let files = emit::weight_files(target, model, planes, shard)?;
        Ok(files.iter().map(|(_, bytes)| bytes).sum())
    };
    match target {
        Target::Native => outline.file_bytes(shard),
        Target::Hf => outline.bytes_by(true, bytes),
        // Matrices stand in f32 whatever their form.
        Target::Dense => outline.bytes_by(false, bytes),
        Target::Onnx => {
            // Signs that are bytes, or two bits, take several times what a budget counts.
            let mut bounds = outline.bytes_by(planes == SignPlanes::Unpack, bytes)?;
            if !outline.is_exact() {
                let layers = outline.models().iter().map(|model| model.layers.len()).max();
                let layers = layers.unwrap_or(0) as u64;
                let nodes = if outline.models().iter().any(lacks_a_block) { NODES } else { 0 };
                bounds.low = bounds.low.saturating_sub((SHARED + nodes) * layers);
                bounds.high += SHARED * layers;
            }
            Ok(bounds)
        }
    }
}

fn lacks_a_block(model: &Model) -> bool {
    model.layers.iter().any(|layer| layer.attention.is_none() || layer.ffn.is_none())
}
