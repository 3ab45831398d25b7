//! How a pass trained.

use crate::train::fit::History;
use serde::{Deserialize, Serialize};

/// What a pass trained on, how, and how it went.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Training {
    /// In a few words.
    pub method: String,
    /// Where the texts came from.
    pub data: String,
    pub texts: usize,
    /// Texts that were only judged by.
    pub held_out: usize,
    /// Whether labels were used.
    pub labels: bool,
    /// Numbers that were trained.
    pub params: usize,
    pub batch: usize,
    pub steps: usize,
    pub tokens: u64,
    /// Held-out loss before, and the best that was found with the step it was found at.
    pub judged_before: Option<f64>,
    pub judged_best: Option<f64>,
    pub best_step: Option<usize>,
    pub points: Vec<crate::train::fit::Point>,
}

impl Training {
    /// Fills in what `history` says.
    pub fn with(self, history: &History) -> Training {
        Training {
            steps: history.steps,
            tokens: history.tokens,
            judged_before: history.points.first().filter(|p| p.step == 0).and_then(|p| p.judged),
            judged_best: history.best.map(|(_, judged)| judged),
            best_step: history.best.map(|(step, _)| step),
            points: history.points.clone(),
            ..self
        }
    }
}
