//! What the student is trained for: the teacher's answers and states.

use super::{Distill, Method};
use crate::data::batches::bucket;
use crate::data::masking::Masker;
use crate::data::{Dataset, Targets};
use crate::model::{Config, Model, Task};
use crate::runtime::{Batch, Encoder, NoObserver};
use crate::train::backward::Signal;
use crate::train::head::{self, HeadTape};
use crate::train::losses::{self, Loss, Matching, Projection, Sinkhorn};
use crate::train::objective::{Group, Moment, Objective, Path, Rate, Seen, Verdict};
use crate::train::tape::{self, Dropout, Plan, Tape};
use crate::train::task;
use crate::{Error, Result};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use std::borrow::Cow;

/// Temperature of similarities within a batch (distillation notes, §10).
const SIMILARITY_TEMPERATURE: f32 = 0.05;

/// See the module.
pub struct Distillation<'a> {
    options: &'a Distill,
    teacher: Encoder<'a>,
    targets: Option<&'a Targets>,
    /// Rows of the data that batches are numbered by.
    pub rows: Vec<usize>,
    /// Updates of the run.
    pub steps: usize,
    seed: u64,
    /// How tokens are hidden from a masked-LM model.
    masker: Option<&'a Masker>,
    held: Vec<Held>,
    /// From the student's states to the teacher's, where their widths differ.
    projection: Option<Projection>,
}

/// Held-out texts, by rows of the data.
struct Held {
    batch: Batch,
    /// The hidden tokens, for a masked-LM model.
    picked: Vec<usize>,
    /// What the teacher says; for a masked-LM model too much to keep.
    teacher: Option<Vec<f32>>,
}

/// No way back goes through the teacher.
const STATES: Plan = Plan {
    states_only: true,
    mask_gradients: false,
    masks: None,
    dropout: Dropout { hidden: 0.0, attention: 0.0, key: 0 },
};

/// Tokens of a batch of held-out texts.
const JUDGED_TOKENS: usize = 1024;

impl<'a> Distillation<'a> {
    pub fn new(
        options: &'a Distill,
        teacher: &'a Model,
        student: &Model,
        data: &'a Dataset,
        held: &[usize],
        seed: u64,
    ) -> Result<Distillation<'a>> {
        let mut distillation = Distillation {
            options,
            teacher: Encoder::new(teacher)?,
            targets: data.targets.as_ref().filter(|_| options.task > 0.0),
            rows: Vec::new(),
            steps: 0,
            seed,
            masker: None,
            held: Vec::new(),
            projection: None,
        };
        let task = teacher.config.task;
        let classes = task == Task::SequenceClassification && !teacher.config.regression;
        if options.sinkhorn > 0.0 && !classes {
            return Err(Error::Mismatch {
                found: format!("distill(sinkhorn={}) on {}", options.sinkhorn, task.name()),
                expected: "the Sinkhorn distance compares classes of whole texts".into(),
                advice: "leave sinkhorn at 0 for this model",
            });
        }
        let (wide, narrow) = (teacher.config.hidden, student.config.hidden);
        if wide != narrow {
            distillation.projection = Some(Projection::new(wide, narrow));
        }
        if teacher.config.task == Task::MaskedLm {
            distillation.masker = data.masker.as_ref();
            if data.masker.is_none() {
                return Err(Error::Mismatch {
                    found: "there is no tokenizer with a token to hide words by".into(),
                    expected: "a masked-LM model is trained by hiding tokens".into(),
                    advice: "use the tokenizer that belongs to the checkpoint",
                });
            }
        }
        let texts: Vec<_> = held.iter().map(|&row| data.texts[row].clone()).collect();
        for batch in bucket(&texts, JUDGED_TOKENS, JUDGED_TOKENS) {
            let batch = task::renumbered(batch, held);
            let mut one = Held { batch, picked: Vec::new(), teacher: None };
            match distillation.masker {
                Some(masker) => {
                    let vocab = teacher.config.vocab;
                    let (hidden, asked) = masker.hide(&one.batch, vocab, seed, task::JUDGED);
                    one = Held { batch: hidden, picked: task::places(&asked), teacher: None };
                }
                None => one.teacher = Some(distillation.ask(&one.batch, &[])?.1.values),
            }
            distillation.held.push(one);
        }
        Ok(distillation)
    }

    /// In a few words.
    pub fn describe(&self) -> String {
        match self.options.method {
            Method::Kd => "distillation".into(),
            Method::Theseus => "module replacing".into(),
        }
    }

    /// Whether labels are used.
    pub fn labels(&self) -> bool {
        self.targets.is_some()
    }

    /// The teacher's way through `batch`, and its answer.
    fn ask(&self, batch: &Batch, picked: &[usize]) -> Result<(Vec<Tape>, HeadTape)> {
        let path = Path::of(&self.teacher);
        let tapes = tape::forward(&self.teacher, &path.layers, batch, &STATES)?;
        let last = tape::hidden(&tapes, path.layers.len());
        let says = head::forward(&self.teacher, batch, &last, picked, None, Dropout::default());
        Ok((tapes, says))
    }

    fn config(&self) -> &Config {
        &self.teacher.model.config
    }

    /// How far the student's answer is from the teacher's.
    fn predictions(&self, student: &[f32], teacher: &[f32], width: usize, batch: &Batch) -> Loss {
        let temperature = self.options.temperature as f32;
        match self.config().task {
            Task::SequenceClassification if self.config().regression => {
                losses::squares(student, teacher)
            }
            Task::SequenceClassification | Task::TokenClassification | Task::MaskedLm => {
                losses::divergence(student, teacher, width, temperature)
            }
            Task::QuestionAnswering => {
                losses::span_divergence(student, teacher, &batch.starts, temperature)
            }
            Task::Embedding => losses::cosine(student, teacher, width),
            Task::Bare => {
                let loss = losses::hidden(student, teacher, width, width, None);
                Loss { value: loss.value, grad: loss.grad }
            }
        }
    }

    /// Losses that look at states, each with its weight.
    fn states(&self, seen: &Seen, teacher: &[Tape], sum: &mut Sum) {
        let options = self.options;
        if [options.hidden, options.embedding, options.attention, options.relations] == [0.0; 4] {
            return;
        }
        let depths = (self.teacher.layers.len(), seen.encoder.layers.len());
        let hidden = |tapes: &[Tape], index: usize| tape::hidden(tapes, index);
        let widths = (seen.encoder.model.config.hidden, self.config().hidden);
        // Where layers can be told apart by their places, all are compared (TinyBERT, §3); where a match
        // is searched for, as many as CoFi does.
        let watched = match options.matching {
            Matching::Uniform => (1..=depths.0).collect(),
            Matching::Dynamic | Matching::Ordered => losses::watched_layers(depths.0),
        };
        let alive: Vec<bool> =
            seen.encoder.layers.iter().map(|l| l.attention.is_some() || l.ffn.is_some()).collect();
        let compare = |t: usize, s: usize| {
            let (student, teacher) = (hidden(seen.tapes, s), hidden(teacher, t));
            losses::hidden(&student, &teacher, widths.0, widths.1, self.projection.as_ref())
        };
        let pairs = losses::matched_layers(
            options.matching,
            &watched,
            &alive,
            |t, s| compare(t, s).value,
            depths.0,
            depths.1,
        );
        if options.hidden > 0.0 {
            let weight = options.hidden / pairs.len().max(1) as f64;
            for &(t, s) in &pairs {
                let loss = compare(t, s);
                sum.add("hidden", weight, loss.value);
                sum.signal.add_hidden(s, loss.grad, weight as f32);
                sum.project(loss.projection, weight as f32);
            }
        }
        if options.embedding > 0.0 {
            let loss = compare(0, 0);
            sum.add("embedding", options.embedding, loss.value);
            sum.signal.add_hidden(0, loss.grad, options.embedding as f32);
            sum.project(loss.projection, options.embedding as f32);
        }
        let starts = &seen.batch.starts;
        let attention =
            |e: &Encoder, l: usize| e.layers[l].attention.as_ref().map(|a| a.heads.to_vec());
        // Layers whose attention both still have.
        let both: Vec<(usize, usize)> = pairs
            .iter()
            .map(|&(t, s)| (t - 1, s - 1))
            .filter(|&(t, s)| {
                self.teacher.layers[t].attention.is_some()
                    && seen.encoder.layers[s].attention.is_some()
            })
            .collect();
        let qkv = |t: usize, s: usize| tape::qkv(teacher, t).zip(tape::qkv(seen.tapes, s));
        if options.attention > 0.0 {
            let weight = options.attention / both.len().max(1) as f64;
            for &(t, s) in &both {
                let Some((of_teacher, of_student)) = qkv(t, s) else { continue };
                let loss = losses::scores(
                    &of_student,
                    &attention(seen.encoder, s).unwrap_or_default(),
                    &of_teacher,
                    &attention(&self.teacher, t).unwrap_or_default(),
                    self.config().head_dim,
                    starts,
                );
                sum.add("attention", weight, loss.value);
                sum.signal.add_qkv(s, loss.grad, weight as f32);
            }
        }
        // Of the last layer that has any (MiniLMv2: one layer is enough).
        let last = both.iter().max_by_key(|(_, s)| *s).and_then(|&(t, s)| Some((qkv(t, s)?, s)));
        if let (true, Some(((of_teacher, of_student), s))) = (options.relations > 0.0, last) {
            let tokens = seen.batch.tokens();
            let width = |qkv: &[f32]| qkv.len() / (3 * tokens);
            let (student, teacher) = (width(&of_student), width(&of_teacher));
            let heads = losses::relation_heads(student, teacher, self.config().heads);
            let loss = losses::relations(&of_student, student, &of_teacher, teacher, heads, starts);
            sum.add("relations", options.relations, loss.value);
            sum.signal.add_qkv(s, loss.grad, options.relations as f32);
        }
    }

    /// Share of layers that are the compressed ones before update `update` (Xu et al. 2020, §3.3: linear).
    pub fn replacement(&self, update: u32) -> f64 {
        let rising = self.options.replaced_at * self.steps as f64;
        let from = self.options.replace;
        match update as f64 >= rising {
            true => 1.0,
            false => from + (1.0 - from) * update as f64 / rising,
        }
    }
}

/// A loss in the making.
struct Sum {
    losses: Vec<(&'static str, f64)>,
    signal: Signal,
    /// With respect to what the head said.
    grad: Vec<f32>,
    projection: Option<Projection>,
}

impl Sum {
    fn add(&mut self, name: &'static str, weight: f64, value: f64) {
        match self.losses.iter_mut().find(|(n, _)| *n == name) {
            Some((_, sum)) => *sum += weight * value,
            None => self.losses.push((name, weight * value)),
        }
    }

    /// A loss of the head's answer.
    fn answer(&mut self, name: &'static str, weight: f64, loss: &Loss) {
        self.add(name, weight, loss.value);
        let grad = self.grad.iter_mut().zip(&loss.grad);
        grad.for_each(|(sum, g)| *sum += weight as f32 * g);
    }

    fn project(&mut self, grad: Option<Projection>, weight: f32) {
        let Some(grad) = grad else { return };
        let sum = self.projection.get_or_insert_with(|| Projection {
            weight: vec![0.0; grad.weight.len()],
            bias: vec![0.0; grad.bias.len()],
        });
        sum.weight.iter_mut().zip(grad.weight).for_each(|(s, g)| *s += weight * g);
        sum.bias.iter_mut().zip(grad.bias).for_each(|(s, g)| *s += weight * g);
    }
}

impl Objective for Distillation<'_> {
    fn input<'a>(&self, batch: &'a Batch, at: Moment) -> (Cow<'a, Batch>, Vec<Option<u32>>) {
        let Some(masker) = self.masker else { return (Cow::Borrowed(batch), Vec::new()) };
        let (vocab, step) = (self.config().vocab, task::masking_step(at));
        let (hidden, asked) = masker.hide(batch, vocab, self.seed, step);
        (Cow::Owned(hidden), asked)
    }

    fn path<'a>(&'a self, encoder: &'a Encoder<'a>, at: Moment) -> Path<'a> {
        let mut path = Path::of(encoder);
        if self.options.method == Method::Theseus {
            let share = self.replacement(at.update);
            let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
            rng.set_stream((at.update as u64) << 20 | at.part as u64);
            for (l, layer) in path.layers.iter_mut().enumerate() {
                let drawn = (rng.next_u32() >> 8) as f64 / (1u32 << 24) as f64;
                if drawn >= share {
                    *layer = &self.teacher.layers[l];
                    path.own[l] = false;
                }
            }
        }
        path
    }

    fn loss(&self, seen: &Seen) -> Result<Verdict> {
        let options = self.options;
        let depth = seen.encoder.layers.len();
        let picked = task::places(seen.targets);
        let last = tape::hidden(seen.tapes, depth);
        let student = head::forward(seen.encoder, seen.batch, &last, &picked, None, seen.dropout);
        let mut sum = Sum {
            losses: Vec::new(),
            signal: Signal::new(depth),
            grad: vec![0.0; student.values.len()],
            projection: None,
        };
        if let Some(targets) = self.targets {
            let batch = task::renumbered(seen.batch.clone(), &self.rows);
            sum.answer("task", options.task, &task::loss(&student, &batch, targets));
        } else if !picked.is_empty() && options.task > 0.0 {
            sum.answer("task", options.task, &task::masked_loss(&student, seen.targets));
        }
        let (tapes, teacher) = self.ask(seen.batch, &picked)?;
        let (says, width) = (&teacher.values, teacher.width);
        if options.prediction > 0.0 {
            let loss = self.predictions(&student.values, says, width, seen.batch);
            sum.answer("prediction", options.prediction, &loss);
        }
        if options.sinkhorn > 0.0 {
            let loss = losses::sinkhorn(&student.values, says, width, &Sinkhorn::default());
            sum.answer("sinkhorn", options.sinkhorn, &loss);
        }
        if options.similarity > 0.0 && self.config().task == Task::Embedding {
            let loss = losses::similarities(&student.values, says, width, SIMILARITY_TEMPERATURE);
            sum.answer("similarity", options.similarity, &loss);
        }
        // Where the teacher's layers stand in, states are partly its own.
        if options.method == Method::Kd {
            self.states(seen, &tapes, &mut sum);
        }
        if sum.losses.is_empty() && (self.masker.is_none() || !picked.is_empty()) {
            let unlabelled = options.task > 0.0 && self.targets.is_none();
            let labels = if unlabelled { " without labels" } else { "" };
            return Err(Error::Mismatch {
                found: format!(
                    "no loss with a weight above 0 is one of {}{labels}",
                    self.config().task.name()
                ),
                expected: "training needs a loss".into(),
                advice: "give `prediction` a weight above 0",
            });
        }
        let own = sum.projection.map(|p| vec![p.weight, p.bias]).unwrap_or_default();
        Ok(Verdict { losses: sum.losses, signal: sum.signal, head: Some((student, sum.grad)), own })
    }

    fn parameters(&mut self) -> Vec<(Group, &mut Vec<f32>)> {
        let group = Group { rate: Rate::Scheduled(1.0), decay: 0.0, clipped: true };
        let Some(projection) = &mut self.projection else { return Vec::new() };
        vec![(group, &mut projection.weight), (group, &mut projection.bias)]
    }

    fn judge(&self, encoder: &Encoder) -> Result<Option<f64>> {
        let (mut sum, mut texts) = (0.0, 0);
        for Held { batch, picked, teacher } in &self.held {
            let says = |encoder: &Encoder| -> Result<HeadTape> {
                let last = encoder.hidden(batch, None, &mut NoObserver)?;
                Ok(head::forward(encoder, batch, &last, picked, None, Dropout::default()))
            };
            let asked;
            let teacher = match teacher {
                Some(teacher) => teacher,
                None => {
                    asked = says(&self.teacher)?;
                    &asked.values
                }
            };
            let student = says(encoder)?;
            let loss = self.predictions(&student.values, teacher, student.width, batch);
            sum += loss.value * batch.texts() as f64;
            texts += batch.texts();
        }
        Ok((texts > 0).then(|| sum / texts as f64))
    }
}
