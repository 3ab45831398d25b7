//! Training: the way back through the encoder, losses, and the loop that passes share.

pub mod backward;
pub mod centred;
pub mod compact;
pub mod distillation;
pub mod elastic;
pub mod fisher;
pub mod fit;
pub mod forms;
pub mod gates;
pub mod head;
pub mod keep;
pub mod kmeans;
pub mod lagrangian;
pub mod losses;
pub mod moments;
pub mod objective;
pub mod optimizer;
pub mod sampling;
pub mod schedule;
pub mod state;
pub mod tape;
pub mod task;
#[cfg(test)]
mod tests;
pub mod trainer;
pub mod weights;

use crate::Result;
use rayon::prelude::*;

/// Items that are in memory at a time in [`sweep`]: enough for the threads of today's machines, and the
/// same number for all of them.
const GROUP: usize = 8;

/// Computes items `0..n` on all threads and consumes them in order, a group at a time: results do not
/// depend on the number of threads, and only a group is in memory at once.
///
/// # Errors
/// The first error of either.
pub fn sweep<T: Send>(
    n: usize,
    compute: impl Fn(usize) -> Result<T> + Sync,
    mut consume: impl FnMut(usize, T) -> Result<()>,
) -> Result<()> {
    for start in (0..n).step_by(GROUP) {
        let group = start..(start + GROUP).min(n);
        let items: Vec<Result<T>> = group.clone().into_par_iter().map(&compute).collect();
        for (i, item) in group.zip(items) {
            consume(i, item?)?;
        }
    }
    Ok(())
}

/// Replaces every item by what `compute` makes of it, a group at a time; see [`sweep`].
///
/// # Errors
/// The first error of `compute`.
pub fn update<T: Send + Sync>(
    items: &mut [T],
    compute: impl Fn(usize, &T) -> Result<T> + Sync,
) -> Result<()> {
    for (group, items) in items.chunks_mut(GROUP).enumerate() {
        let one = |(i, item)| compute(group * GROUP + i, item);
        let next: Vec<Result<T>> = items.par_iter().enumerate().map(one).collect();
        for (item, next) in items.iter_mut().zip(next) {
            *item = next?;
        }
    }
    Ok(())
}
