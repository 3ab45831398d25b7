//! How good and how fast a model is.

pub mod latency;
pub mod load;
pub mod metrics;
pub mod paired;
pub mod squad;
pub mod tagging;
pub mod tasks;
