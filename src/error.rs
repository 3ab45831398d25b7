//! The one error type of the library.

use std::path::PathBuf;

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong with input we did not write.
///
/// A message says what was found, what was expected, and what to do about it: one paragraph, lower
/// case, no full stop. The cause of an I/O error is its `source`, printed once, by `main`.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read {path}")]
    Read { path: PathBuf, source: std::io::Error },

    #[error("cannot write {path}")]
    Write { path: PathBuf, source: std::io::Error },

    /// A file whose content breaks its own format: headers, JSON, tables, tokenizers.
    #[error("{path}: found {found}, expected {expected}; {advice}")]
    Malformed { path: PathBuf, found: String, expected: String, advice: &'static str },

    #[error(
        "tensor `{name}` has shape {found:?}, expected {expected:?} from {key} in config.json; \
         use the config.json that was saved with these weights"
    )]
    Shape { name: String, found: Vec<usize>, expected: Vec<usize>, key: String },

    #[error(
        "tensor `{name}` is missing, expected by {expected}; \
         use the config.json that was saved with these weights, or fetch the checkpoint again"
    )]
    MissingTensor { name: String, expected: String },

    #[error(
        "tensor `{name}` belongs to no part of {expected}; \
         use the config.json that was saved with these weights, or remove the tensor"
    )]
    ExtraTensor { name: String, expected: String },

    #[error("tensor `{name}` has dtype {found}, expected {expected}; convert the checkpoint first")]
    Dtype { name: String, found: String, expected: &'static str },

    #[error(
        "tensor `{name}` holds {found} at flat index {index}, expected finite numbers; \
         the checkpoint is damaged or its training diverged"
    )]
    NonFinite { name: String, found: f32, index: usize },

    /// Well-formed input that this build does not handle: families, heads, activations.
    #[error("{what} `{found}` is not supported; this build knows: {known}")]
    Unsupported { what: &'static str, found: String, known: String },

    #[error("config.json: `{key}` is {found}, expected {expected}; {advice}")]
    Config { key: String, found: String, expected: String, advice: &'static str },

    /// Input that is fine by itself but does not fit what was asked of it.
    #[error("{found}, but {expected}; {advice}")]
    Mismatch { found: String, expected: String, advice: &'static str },

    #[error("no pass is named `{found}`{nearest}; this build knows: {known}")]
    UnknownPass { found: String, nearest: String, known: String },

    #[error("pass `{pass}` has no option `{found}`{nearest}; it knows: {known}")]
    UnknownOption { pass: String, found: String, nearest: String, known: String },

    #[error("pass `{pass}`: `{option}` is {found}, expected {expected}")]
    Option { pass: &'static str, option: &'static str, found: String, expected: String },

    #[error("cannot read the recipe: found {found}, expected {expected}")]
    Recipe { found: String, expected: String },

    #[error("pass `{pass}` failed")]
    InPass { pass: &'static str, source: Box<Error> },

    #[error(
        "training diverged: the loss or its gradient is {found} at step {step}, expected a finite number; \
         lower the learning rate, or check the labels"
    )]
    Diverged { step: usize, found: f64 },

    /// Arguments that exclude each other or an output path that must not be written.
    #[error("{found}; {advice}")]
    Usage { found: String, advice: String },

    /// An output that does not keep what was asked of it.
    #[error("the gate is closed: {failed}")]
    Gate { failed: String },

    /// An output that came out differently when it was made again.
    #[error("not reproduced: {found}; {advice}")]
    NotReproduced { found: String, advice: String },

    /// A search that found nothing that keeps what was asked.
    #[error(
        "no variant meets the targets; {nearest}; loosen a target, widen the space or give more --trials"
    )]
    Unmet { nearest: String },

    #[error("interrupted; nothing was written")]
    Interrupted,
}

impl Error {
    /// The documented exit code of the command line (README, "Exit codes").
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Usage { .. } => 2,
            Error::UnknownPass { .. }
            | Error::UnknownOption { .. }
            | Error::Option { .. }
            | Error::Recipe { .. } => 3,
            Error::Malformed { .. }
            | Error::Shape { .. }
            | Error::MissingTensor { .. }
            | Error::ExtraTensor { .. }
            | Error::Dtype { .. }
            | Error::NonFinite { .. }
            | Error::Unsupported { .. }
            | Error::Config { .. }
            | Error::Mismatch { .. } => 4,
            Error::Diverged { .. } => 1,
            Error::Gate { .. } | Error::Unmet { .. } | Error::NotReproduced { .. } => 5,
            Error::Read { .. } | Error::Write { .. } => 6,
            Error::InPass { source, .. } => source.exit_code(),
            Error::Interrupted => 130,
        }
    }
}
