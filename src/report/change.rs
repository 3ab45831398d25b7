//! What a pass did to one matrix.

use crate::model::{Linear, Weight};
use serde::{Deserialize, Serialize};

/// One matrix before and after a pass.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Change {
    /// Its prefix in the checkpoint.
    pub tensor: String,
    pub before: Form,
    pub after: Form,
    /// Relative squared error of the layer's output on the calibration text, or of the weights
    /// themselves without one; `None` where rows or columns were cut.
    pub error: Option<f64>,
}

/// How a matrix is stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Form {
    pub shape: [usize; 2],
    pub form: String,
    pub bytes: usize,
}

impl Form {
    pub fn of(weight: &Weight) -> Form {
        let shape = [weight.rows(), weight.cols()];
        Form { shape, form: weight.form(), bytes: weight.bytes() }
    }
}

impl Change {
    /// A matrix that is no more.
    pub fn gone(before: &Linear) -> Change {
        let form = Form::of(&before.weight);
        let after = Form { shape: [0, 0], form: "gone".into(), bytes: 0 };
        Change { tensor: before.weight.name().to_string(), before: form, after, error: None }
    }

    /// What became of `before`.
    pub fn new(before: &Linear, after: &Linear, error: Option<f64>) -> Change {
        let (before, after) = (&before.weight, &after.weight);
        let tensor = before.name().to_string();
        Change { tensor, before: Form::of(before), after: Form::of(after), error }
    }
}
