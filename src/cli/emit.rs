//! `compress emit OUT --emit TARGETS`

use super::units::ShardSize;
use super::{print, print_json, progress};
use clap::Args;
use compress::Result;
use compress::emit::{Emit, SignPlanes};
use compress::pipeline::add_targets;
use compress::report::{bytes, plain_table};
use std::path::PathBuf;

#[derive(Debug, Args)]
pub struct EmitArgs {
    /// An output of `compress`
    output: PathBuf,
    #[command(flatten)]
    targets: TargetArgs,
    /// Weight files larger than this are split: `500MB`, `5GB`, or a number of MB
    #[arg(long, alias = "shard-size", value_name = "SIZE", default_value_t)]
    max_shard_size: ShardSize,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What to write for other software.
#[derive(Debug, Clone, Args)]
pub struct TargetArgs {
    /// Targets for other software beside `native`: `hf` (Transformers with code of its own), `onnx`, `dense` (zero-padded,
    /// for stock classes)
    #[arg(long, value_name = "TARGETS", value_delimiter = ',')]
    emit: Vec<String>,

    /// Sign planes in `onnx`: `unpack` (bits in the file), `int8`, or `nbits` (2 bits, of ONNX Runtime; rounds otherwise)
    /// [default: unpack]
    #[arg(long, value_name = "HOW", requires = "emit")]
    onnx_binary: Option<String>,
}

impl TargetArgs {
    /// What was asked for; `None`: nothing was.
    ///
    /// # Errors
    /// Unknown names.
    pub fn emit(&self) -> Result<Option<Emit>> {
        if self.emit.is_empty() {
            return Ok(None);
        }
        let planes = self.onnx_binary.as_deref().map(SignPlanes::named).transpose()?;
        Emit::new(&self.emit, planes).map(Some)
    }
}

pub fn main(args: &EmitArgs) -> Result<()> {
    let asked = args.targets.emit()?.filter(|emit| !emit.targets.is_empty());
    let emit = asked.ok_or_else(|| compress::Error::Usage {
        found: "no target to write".into(),
        advice: "name some: --emit hf,onnx,dense; `native` is there already".into(),
    })?;
    let notes = add_targets(&args.output, &emit, args.max_shard_size.0, &progress::interrupted)?;
    if args.json {
        return print_json(&notes);
    }
    let row = |n: &compress::report::Emitted| {
        vec![n.target.clone(), bytes(n.weight_bytes), bytes(n.bytes), n.loads.clone()]
    };
    let rows: Vec<Vec<String>> = notes.iter().map(row).collect();
    print(&plain_table(&["target", "weights", "all files", "loaded by"], &rows))
}
