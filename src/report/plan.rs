//! What was planned of a run, beside what came of it.

use super::tables::{bytes, count, giga};
use super::{Emitted, PassNote};
use crate::model::Bounds;
use serde::{Deserialize, Serialize};

/// A number before the run and after it.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Met {
    /// At least and at most; the same where it was known.
    pub planned: Bounds,
    pub came: u64,
}

/// The model behind one pass.
#[derive(Debug, Clone, Serialize)]
pub struct PassMet {
    pub name: String,
    pub params: Met,
    /// Of the tensors.
    pub bytes: Met,
    pub flops: Met,
}

/// Everything that was planned in numbers which do not depend on the machine.
#[derive(Debug, Clone, Serialize)]
pub struct PlanNote {
    pub passes: Vec<PassMet>,
    /// Of the weight files.
    pub file_bytes: Met,
    /// Of the targets that carry the output, written or not: an output may get more of them later.
    pub targets: Vec<PlannedTarget>,
}

/// What is planned of a target for other software.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PlannedTarget {
    pub target: String,
    /// How a graph has sign planes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sign_planes: Option<String>,
    /// Of its weight files.
    pub weight_bytes: Bounds,
    /// Where these are split.
    #[serde(default)]
    pub max_shard_bytes: u64,
}

/// What is planned of the model behind one pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Expected {
    /// Logical parameters.
    pub params: Bounds,
    /// Of the tensors.
    pub bytes: Bounds,
    /// Of one text of the size at which reports state compute.
    pub flops: Bounds,
}

impl PlanNote {
    /// `expected` has one entry a pass, and `file` what was planned of the weight files and what came.
    pub fn new(
        expected: &[Expected],
        passes: &[PassNote],
        file: (Bounds, u64),
        targets: Vec<PlannedTarget>,
    ) -> PlanNote {
        let met = |(expected, pass): (&Expected, &PassNote)| PassMet {
            name: pass.name.clone(),
            params: Met { planned: expected.params, came: pass.params_after as u64 },
            bytes: Met { planned: expected.bytes, came: pass.bytes_after as u64 },
            flops: Met { planned: expected.flops, came: pass.flops_after },
        };
        PlanNote {
            passes: expected.iter().zip(passes).map(met).collect(),
            file_bytes: Met { planned: file.0, came: file.1 },
            targets,
        }
    }
}

impl Emitted {
    /// Puts what was planned of it, if it is among `planned`, beside what came, split at `max_shard_bytes`.
    pub fn put_beside(&mut self, planned: &[PlannedTarget], max_shard_bytes: u64) {
        let same = |p: &&PlannedTarget| {
            (&p.target, &p.sign_planes) == (&self.target, &self.sign_planes)
                && p.max_shard_bytes == max_shard_bytes
        };
        self.planned_weight_bytes = planned.iter().find(same).map(|p| p.weight_bytes);
    }
}

/// `1,234`, or `1,000 to 2,000`.
pub fn span(bounds: Bounds, show: impl Fn(u64) -> String) -> String {
    match bounds.is_exact() {
        true => show(bounds.low),
        false => format!("{} to {}", show(bounds.low), show(bounds.high)),
    }
}

/// The section of report.md.
pub fn section(plan: &PlanNote) -> String {
    let mut out = String::from(
        "\n## Plan\n\nWhat was known before the run (`compress plan`), and what came.\n\n\
         | behind | parameters, planned | came | bytes, planned | came | FLOPs, planned | came |\n\
         |---|---|---|---|---|---|---|\n",
    );
    for p in &plan.passes {
        let cells = [
            span(p.params.planned, count),
            count(p.params.came),
            span(p.bytes.planned, count),
            count(p.bytes.came),
            span(p.flops.planned, giga),
            giga(p.flops.came),
        ];
        out += &format!("| `{}` | {} |\n", p.name, cells.join(" | "));
    }
    let Met { planned, came } = plan.file_bytes;
    out += &format!("| weight file | | | {} | {} | | |\n", span(planned, count), bytes_and(came));
    out
}

fn bytes_and(n: u64) -> String {
    format!("{} ({})", count(n), bytes(n))
}
