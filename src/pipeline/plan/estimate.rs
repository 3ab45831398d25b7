//! Time and memory of a run, roughly (docs/plan.md).

use crate::pass::{Foresight, PlanContext};
use serde::Serialize;

/// What a run takes on this machine. Time is of one digit, and off by a factor of two or three elsewhere.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Estimate {
    pub threads: usize,
    pub seconds: f64,
    pub peak_memory_bytes: u64,
}

/// Reading, judging, writing: seconds, and times that the text goes through both models.
const AROUND: f64 = 1.0;
const JUDGED: f64 = 0.4;
/// The program, its tokenizer and its texts.
const PROGRAM: f64 = 70e6;
/// Numbers of 4 bytes a weight of the layers while both models answer.
const ANSWERING: f64 = 2.0;

impl Estimate {
    pub(super) fn of(passes: &[Foresight], cx: &PlanContext) -> Estimate {
        let threads = rayon::current_num_threads();
        let work: f64 = passes.iter().map(|pass| pass.seconds).sum();
        let seconds = AROUND + (work + JUDGED * cx.watch()) / threads as f64;
        let copies = passes.iter().fold(ANSWERING, |most, pass| most.max(pass.copies));
        // Of the words, the rows of a batch are read.
        let bytes = PROGRAM + 4.0 * copies * cx.weights();
        Estimate { threads, seconds: digit(seconds), peak_memory_bytes: digit(bytes) as u64 }
    }
}

/// Rounded to its first digit.
fn digit(x: f64) -> f64 {
    let unit = 10f64.powf(x.max(1.0).log10().floor());
    (x / unit).round() * unit
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_digit_is_left() {
        let rounded = [0.2, 1.0, 14.0, 16.0, 99.0, 1449.0].map(digit);
        assert_eq!(rounded, [0.0, 1.0, 10.0, 20.0, 100.0, 1000.0]);
    }
}
