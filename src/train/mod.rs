//! Gradients. So far those that passes score with; the training loop will stand on the same ones.

pub mod backward;
pub mod fisher;
pub mod moments;

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
