//! The loss of a task, against its labels.

use super::head::HeadTape;
use super::losses::{Loss, cross_entropy, squares};
use crate::data::Targets;
use crate::runtime::Batch;

/// What the head said of `batch` against `targets`, by `batch.rows`: a mean over texts, or over the tokens
/// that have a label.
pub fn loss(head: &HeadTape, batch: &Batch, targets: &Targets) -> Loss {
    let rows = || batch.rows.iter();
    match targets {
        Targets::Classes(classes) => {
            let classes: Vec<_> = rows().map(|&r| Some(classes[r])).collect();
            cross_entropy(&head.values, head.width, &classes)
        }
        Targets::Scores(scores) => {
            let scores: Vec<_> = rows().map(|&r| scores[r]).collect();
            squares(&head.values, &scores)
        }
    }
}

/// What a masked-LM head said of the hidden tokens against what they were; `[tokens]`, see
/// [`super::objective::Objective::input`].
pub fn masked_loss(head: &HeadTape, targets: &[Option<u32>]) -> Loss {
    let hidden: Vec<_> = targets.iter().filter(|t| t.is_some()).copied().collect();
    cross_entropy(&head.values, head.width, &hidden)
}
