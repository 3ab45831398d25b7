//! How good and how fast a model is.

pub mod latency;
pub mod metrics;
pub mod tasks;
