//! The passes, one folder each.

use crate::pass::Entry;

pub mod binarize;
pub mod distill;
pub mod embed;
pub mod prune;
pub mod quantize;
pub mod tokens;
pub mod vocab;

/// Every pass of this build, in the order `compress passes` lists them.
pub const ALL: &[Entry] = &[
    vocab::ENTRY,
    prune::ENTRY,
    tokens::ENTRY,
    embed::ENTRY,
    binarize::ENTRY,
    quantize::ENTRY,
    distill::ENTRY,
];
