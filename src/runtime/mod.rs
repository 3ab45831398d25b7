//! The one definition of the forward pass, over the typed model.
//!
//! Texts of a batch lie one behind the other without padding: `tokens` below counts live tokens of
//! all of them. Linear layers see one `[tokens, hidden]` matrix; attention goes text by text.

mod batch;
mod binary;
mod bottleneck;
mod encoder;
pub mod fast;
mod forward;
mod integer;
pub mod kernels;
pub mod lookup;
pub mod masked;
mod positions;
#[cfg(test)]
mod tests;
pub mod tokens;

pub use batch::Batch;
pub use binary::{Estimates, Operands, RunBinary, RunElastic};
pub use encoder::{
    Dense, Encoder, Inputs, RunAttention, RunBottleneck, RunFeedForward, RunHead, RunLayer, RunNorm,
};
pub use forward::{Everything, NoObserver, Observer, Output, Site};
pub use forward::{normalize_rows, position_rows, relative_bucket};
pub use positions::RunPositions;
