//! Compress transformer encoders, one pass at a time.
//!
//! The map, lowest layer first; a module uses only what stands above it here (`layers.rs` checks):
//! `checkpoint` reads and writes named tensors, `model` makes one encoder of them, `runtime` runs it,
//! `data` turns texts into batches, `train` has gradients, `eval` measures, `report` tells, `emit` writes
//! forms for other software, `pass` says what a pass is, `passes` holds them, `recipe` puts them in order,
//! `pipeline` runs them, `compare` puts variants side by side, `search` tries many and keeps the best.

#[cfg(test)]
mod allocations;
pub mod checkpoint;
pub mod compare;
pub mod data;
pub mod emit;
pub mod error;
pub mod eval;
#[cfg(test)]
mod layers;
pub mod model;
pub mod pass;
pub mod pipeline;
pub mod progress;
pub mod recipe;
pub mod report;

pub mod runtime;
pub mod search;
pub mod train;

// Passes sit beside `src/`, one folder each, so that what this tool can do is visible at the top of
// the repository. They are ordinary modules of this crate.
#[path = "../passes/mod.rs"]
pub mod passes;

pub use error::{Error, Result};
