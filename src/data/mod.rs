//! Texts to batches: files of examples, their labels, tokens, and batches without padding.

pub mod batches;
pub mod labels;
pub mod masking;
mod normalizer;
pub mod prepare;
pub mod tables;
pub mod tokenizer;
pub mod vocabulary;

pub mod calibration;
pub mod dataset;
pub mod words;

pub use calibration::{Calibration, Source};
pub use dataset::Dataset;
pub use labels::Targets;
pub use vocabulary::Vocabulary;
pub use words::Words;
