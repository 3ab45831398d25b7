//! Plain training on a task, with the loop that passes use.

use crate::data::batches::bucket;
use crate::model::{Model, Outline, Part, Task};
use crate::pass::{Context, Foresight, Pass, PlanContext, Work};
use crate::report::Training;
use crate::train::fit::{Settings, fit};
use crate::train::sampling::{Order, split};
use crate::train::task::{TaskObjective, renumbered};
use crate::train::trainer::Trainer;
use crate::{Error, Result};

/// Tokens of a batch of held-out texts.
const JUDGED_TOKENS: usize = 1024;

/// Fine-tuning: the task's own loss and nothing else.
#[derive(Debug, Clone)]
pub struct Finetune {
    /// `steps` is 0 for `epochs` passes over the texts; `warmup` is set from `warmup_share`.
    pub settings: Settings,
    pub epochs: f64,
    /// Share of the steps in which the rate climbs.
    pub warmup_share: f64,
    /// Texts of a batch.
    pub batch: usize,
    /// Batches whose texts are sorted by length among each other; 0 for none.
    pub bucket: usize,
    /// The texts of each batch, instead of an order drawn by the seed.
    pub order: Option<Vec<Vec<usize>>>,
    /// Leave the embeddings as they are.
    pub freeze_embeddings: bool,
}

impl Finetune {
    /// As [`Pass::needs_plain_layers`].
    pub const DOES: &str = "trains no such layers";
}

impl Pass for Finetune {
    fn needs_plain_layers(&self) -> Option<&'static str> {
        Some(Finetune::DOES)
    }

    fn check(&self) -> Result<()> {
        Ok(())
    }

    fn trains(&self, _data: bool) -> bool {
        true
    }

    /// No recipe has it, and it changes no shape.
    fn outline(&self, _outline: &mut Outline, _cx: &PlanContext) -> Result<Foresight> {
        Ok(Foresight::default())
    }

    fn run(&self, model: &mut Model, cx: &Context) -> Result<Work> {
        let data = cx.data.expect("fine-tuning is given data");
        let masked = model.config.task == Task::MaskedLm;
        if masked && data.masker.is_none() {
            return Err(Error::Mismatch {
                found: "there is no tokenizer with a token to hide words by".into(),
                expected: "a masked-LM model is trained by hiding tokens".into(),
                advice: "use the tokenizer that belongs to the checkpoint",
            });
        }
        let judged = self.settings.evaluate > 0;
        let (train, held) = match (&self.order, judged) {
            // Rows of a given order are those of the file.
            (Some(_), _) | (None, false) => ((0..data.texts.len()).collect(), Vec::new()),
            (None, true) => split(data.texts.len()),
        };
        let order = match &self.order {
            Some(batches) => Order::Given(batches.clone()),
            None => Order::Shuffled {
                lengths: train.iter().map(|&row| data.texts[row].ids.len()).collect(),
                batch: self.batch.min(train.len().max(1)),
                bucket: self.bucket,
                seed: cx.seed,
            },
        };
        let all = (self.epochs * order.epoch() as f64 / self.settings.accumulate as f64).ceil();
        let steps = if self.settings.steps == 0 { all as usize } else { self.settings.steps };
        let settings = Settings {
            steps,
            warmup: (self.warmup_share * steps as f64).round() as usize,
            ..self.settings.clone()
        };
        let largest = match &order {
            Order::Given(batches) => batches.iter().map(Vec::len).max().unwrap_or(0),
            Order::Shuffled { batch, .. } => *batch,
        };
        let texts: Vec<_> = train.iter().map(|&row| data.texts[row].clone()).collect();
        let held_texts: Vec<_> = held.iter().map(|&row| data.texts[row].clone()).collect();
        let before = model.clone();
        let held_batches = bucket(&held_texts, JUDGED_TOKENS, JUDGED_TOKENS).into_iter();
        let mut objective = TaskObjective {
            vocab: before.config.vocab,
            targets: data.targets.as_ref(),
            masker: data.masker.as_ref().filter(|_| masked),
            rows: train,
            held: held_batches.map(|batch| renumbered(batch, &held)).collect(),
            seed: cx.seed,
        };
        let mut trainer = Trainer::new(&before, |part| {
            !(self.freeze_embeddings && matches!(part, Part::Words | Part::Embeddings))
        })?;
        let progress = ("train", cx.progress);
        let history =
            fit(&mut trainer, &mut objective, &texts, &order, &settings, cx.state, progress)?;
        let training = Training {
            method: "fine-tuning".into(),
            data: data.source.clone(),
            texts: texts.len(),
            held_out: held_texts.len(),
            labels: !masked,
            params: trainer.trained_params(),
            batch: largest * settings.accumulate,
            ..Training::default()
        };
        trainer.finish().put(model)?;
        Ok(Work { training: vec![training.with(&history)], ..Work::default() })
    }
}
