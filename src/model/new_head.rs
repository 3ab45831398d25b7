//! A head for another task, to be trained.

use super::config::{Config, Task};
use super::family::Pooling;
use super::*;
use crate::checkpoint::Dtype;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use serde_json::{Map, json};

/// Spread of a fresh matrix (BERT's `initializer_range`).
const SPREAD: f32 = 0.02;

impl Model {
    /// The encoder with a fresh head for `task` in the place of its own; a pooler that the checkpoint has is
    /// kept where the family's head begins with one. Matrices are drawn from N(0, 0.02²) by `seed`, biases
    /// are 0.
    ///
    /// - `labels`: class names by id; one name for a regression; not used for question answering
    ///
    /// # Errors
    /// [`Error::Unsupported`] for heads that cannot be made: masked LM and embeddings.
    pub fn with_head(&self, task: Task, labels: &[String], seed: u64) -> Result<Model> {
        let suffix = match task {
            Task::SequenceClassification => "ForSequenceClassification",
            Task::TokenClassification => "ForTokenClassification",
            Task::QuestionAnswering => "ForQuestionAnswering",
            Task::MaskedLm | Task::Embedding | Task::Bare => {
                return Err(Error::Unsupported {
                    what: "a new head for",
                    found: task.name().into(),
                    known: "sequence classification, token classification, question answering"
                        .into(),
                });
            }
        };
        let family = self.family;
        let mut raw = self.config.raw.clone();
        raw["architectures"] = json!([format!("{}{suffix}", family.class)]);
        if let Some(object) = raw.as_object_mut() {
            object.remove("num_labels");
            object.remove("problem_type");
        }
        if task != Task::QuestionAnswering {
            let ids = labels.iter().enumerate();
            let names: Map<_, _> = ids.clone().map(|(i, n)| (i.to_string(), json!(n))).collect();
            raw["id2label"] = names.into();
            let ids: Map<_, _> = ids.map(|(i, n)| (n.clone(), json!(i))).collect();
            raw["label2id"] = ids.into();
        }
        let (config, _) = Config::parse(raw)?;

        let mut model = Model { config, ..self.clone() };
        let mut fresh = Fresh::new(seed);
        model.add_prefix();
        let (hidden, pooled) = (model.config.hidden, model.config.pooled);
        let classes = model.config.classes();
        model.head = match task {
            Task::SequenceClassification => {
                let (dense, activation, out) = match family.classify {
                    Pooling::Pooler => {
                        let pooler = family.pooler.unwrap_or("pooler.dense");
                        (format!("{}{pooler}", family.prefix), Activation::Tanh, "classifier")
                    }
                    Pooling::Dense { dense, activation, out } => (dense.into(), activation, out),
                    Pooling::Normed { .. } => unreachable!("such families are not trained"),
                };
                let kept = model.pooler(&dense, pooled, hidden);
                let (dense, norm) =
                    kept.unwrap_or_else(|| (fresh.linear(&dense, pooled, hidden), None));
                let out = fresh.linear(out, classes, pooled);
                let (last, mean) = (None, false);
                Head::SequenceClassification { dense, norm, activation, last, mean, out }
            }
            Task::TokenClassification => {
                Head::TokenClassification { out: fresh.linear("classifier", classes, hidden) }
            }
            _ => Head::QuestionAnswering { out: fresh.linear("qa_outputs", 2, hidden) },
        };
        // What is left of other heads, and copies of the tied table under a decoder's name.
        model.unused.clear();
        model.validate()?;
        Ok(model)
    }

    /// Puts the family's prefix before the encoder's tensors, as in checkpoints with a head; a bare encoder's
    /// pooler is among them.
    fn add_prefix(&mut self) {
        let prefix = self.family.prefix;
        let bare = matches!(self.head, Head::Bare { .. });
        let add = |name: &mut String| {
            if !name.starts_with(prefix) {
                *name = format!("{prefix}{name}");
            }
        };
        for (part, place) in self.places_mut() {
            match place {
                _ if part == Part::Head && !bare => {}
                Place::Matrix(weight) => add(weight.prefix_mut()),
                Place::Tensor(tensor) | Place::Scale(tensor) | Place::FirstRow(tensor) => {
                    add(&mut tensor.name)
                }
            }
        }
        for tensor in self.unused.iter_mut().filter(|t| t.name.starts_with("pooler.")) {
            add(&mut tensor.name);
        }
    }

    /// The layer `name`, `[rows, cols]`, of the present head, with its LayerNorm, or from the unused tensors.
    fn pooler(&self, name: &str, rows: usize, cols: usize) -> Option<(Linear, Option<Norm>)> {
        match &self.head {
            Head::SequenceClassification { dense, norm, .. }
            | Head::Bare { pooler: Some(dense), norm }
                if dense.weight.name() == name =>
            {
                return Some((dense.clone(), norm.clone()));
            }
            _ => {}
        }
        let find = |part: &str, shape: &[usize]| {
            let name = format!("{name}.{part}");
            self.unused.iter().find(|t| t.name == name && t.shape == shape).cloned()
        };
        let weight = find("weight", &[rows, cols])?;
        Some((Linear::dense(weight, find("bias", &[rows])), None))
    }
}

/// Fresh layers, as BERT's are.
pub(super) struct Fresh {
    rng: ChaCha8Rng,
}

impl Fresh {
    pub fn new(seed: u64) -> Fresh {
        Fresh { rng: ChaCha8Rng::seed_from_u64(seed) }
    }

    /// `[rows, cols]` of N(0, 0.02²), with a bias of zeros.
    pub fn linear(&mut self, name: &str, rows: usize, cols: usize) -> Linear {
        let mut uniform = || (self.rng.next_u32() >> 8) as f32 / (1u32 << 24) as f32;
        // Box and Muller.
        let mut normal = || {
            let (u, v) = (1.0 - uniform(), uniform());
            SPREAD * (-2.0 * u.ln()).sqrt() * (std::f32::consts::TAU * v).cos()
        };
        let values: Vec<f32> = (0..rows * cols).map(|_| normal()).collect();
        let weight = Tensor::from_f32(format!("{name}.weight"), &[rows, cols], &values, Dtype::F32);
        let zeros = vec![0.0; rows];
        let bias = Tensor::from_f32(format!("{name}.bias"), &[rows], &zeros, Dtype::F32);
        Linear::dense(weight, Some(bias))
    }
}
