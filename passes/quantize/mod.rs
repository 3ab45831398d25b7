#![doc = include_str!("README.md")]

#[cfg(test)]
mod tests;

use crate::model::{Activations, Linear, Model, Outline, Weight};
use crate::pass::{Context, Entry, Foresight, Pass, PlanContext, Work};
use crate::report::Change;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};

pub const ENTRY: Entry = Entry::new::<Quantize>(
    "quantize",
    "store matrices in 8-bit integers with a scale a row, or in half precision",
    include_str!("README.md"),
    &["prune", "vocab", "binarize", "quantize"],
);

/// Options of the pass.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Quantize {
    /// What the layers' matrices become.
    pub form: Form,
    /// What the word embeddings become.
    pub embeddings: Form,
    /// What the head's linear layers become.
    pub head: Form,
}

/// What a matrix becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    /// It stays as it is.
    None,
    /// [`crate::model::Int8`]; a layer rounds its inputs to 8 bits too.
    Int8,
    F16,
}

/// Of one thread, for each weight (docs/plan.md).
const SECONDS: f64 = 1e-8;

impl Default for Quantize {
    fn default() -> Self {
        Quantize { form: Form::Int8, embeddings: Form::Int8, head: Form::None }
    }
}

impl Pass for Quantize {
    fn check(&self) -> Result<()> {
        if [self.form, self.embeddings, self.head] == [Form::None; 3] {
            return Err(Error::Option {
                pass: "quantize",
                option: "form",
                found: "none, as `embeddings` and `head` are".into(),
                expected: "int8 or f16 for one of them".into(),
            });
        }
        Ok(())
    }

    fn outline(&self, outline: &mut Outline, cx: &PlanContext) -> Result<Foresight> {
        outline.each(|model| self.run(model, &Context::new(cx.teacher)).map(drop))?;
        Ok(Foresight { seconds: SECONDS * cx.weights(), ..Foresight::default() })
    }

    fn run(&self, model: &mut Model, cx: &Context) -> Result<Work> {
        self.check()?;
        cx.progress.start("quantize", model.layers.len() + 1);
        let mut work = Work::default();
        if self.form != Form::None {
            for linear in model.embeddings.project.iter_mut() {
                work.changes.push(pack(linear, self.form)?);
            }
        }
        for layer in &mut model.layers {
            if self.form != Form::None {
                for linear in layer.linears_mut() {
                    work.changes.push(pack(linear, self.form)?);
                }
            }
            cx.finished(layer)?;
            cx.progress.step()?;
        }
        if self.embeddings != Form::None {
            let before = Linear::table(&model.embeddings.word);
            let (packed, error) = encode(&before.weight, self.embeddings)?;
            before.weight.dense()?.release(); // all of a large table was read
            model.embeddings.word = packed;
            model.drop_tied_copy();
            let after = Linear::table(&model.embeddings.word);
            work.changes.push(Change::new(&before, &after, Some(error)));
        }
        if self.head != Form::None {
            let linears = model.head.linears_mut();
            if linears.is_empty() {
                work.notes.push("the head has no matrix to quantise".into());
            }
            for linear in linears {
                work.changes.push(pack(linear, self.head)?);
            }
        }
        cx.progress.step()?;
        Ok(work)
    }
}

/// Packs one layer.
fn pack(linear: &mut Linear, form: Form) -> Result<Change> {
    let before = linear.clone();
    let (packed, error) = encode(&linear.weight, form)?;
    before.weight.dense()?.release();
    linear.weight = packed;
    if form == Form::Int8 {
        linear.activations = Activations::Int8;
    }
    Ok(Change::new(&before, linear, Some(error)))
}

/// The packed matrix, and the relative squared error of its weights.
fn encode(weight: &Weight, form: Form) -> Result<(Weight, f64)> {
    let packed = match form {
        Form::None => weight.clone(),
        Form::Int8 => weight.to_int8()?,
        Form::F16 => weight.to_f16()?,
    };
    let w = weight.to_f32()?;
    let square = |x: f32| (x as f64).powi(2);
    let power: f64 = w.iter().map(|&w| square(w)).sum();
    let lost: f64 = w.iter().zip(packed.to_f32()?.iter()).map(|(w, q)| square(w - q)).sum();
    Ok((packed, if power > 0.0 { lost / power } else { 0.0 }))
}
