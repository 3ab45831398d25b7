//! Training a student towards its teacher's answers and states.

use super::backward::Signal;
use super::head::{self, HeadTape};
use super::losses::{self, Loss, Matching, Projection, Ranking, Sinkhorn};
use super::objective::{Group, Moment, Objective, Path, Rate, Seen, Verdict};
use super::tape::{self, Dropout, Plan, Tape};
use super::task;
use crate::data::batches::bucket;
use crate::data::masking::{Masker, swap_tokens};
use crate::data::{Dataset, Targets};
use crate::model::slice::Masks;
use crate::model::{Config, Model, Score, Task};
use crate::runtime::tokens::rows;
use crate::runtime::{Batch, Encoder, NoObserver, RunLayer};
use crate::{Error, Result};
use rayon::prelude::*;
use std::borrow::Cow;
use std::collections::BTreeSet;

/// Temperature of similarities within a batch (distillation notes, §10).
const SIMILARITY_TEMPERATURE: f32 = 0.05;

/// Of what the loss is made: the weight of each part, 0 for none.
#[derive(Debug, Clone)]
pub struct Terms {
    /// Of the predictions, where they are classes.
    pub temperature: f64,
    /// Distance between predictions: divergence of classes, squared error of scores, cosine distance of
    /// embeddings.
    pub prediction: f64,
    /// Distance between hidden states.
    pub hidden: f64,
    /// Share of a text's tokens that are swapped for others of the batch before teacher and student see it.
    pub swap: f64,
    /// Which hidden states are compared.
    pub matching: Matching,
    /// Distance between embeddings of the tokens.
    pub embedding: f64,
    /// Divergence between the relations of queries, keys and values in the last layer.
    pub relations: f64,
    /// Distance between attention scores of matched layers.
    pub attention: f64,
    /// The task's own loss, where there are labels.
    pub task: f64,
    /// Sinkhorn distance between the batch's predictions; for classes of whole texts alone.
    pub sinkhorn: f64,
    /// Divergence between similarities within the batch (sentence embeddings).
    pub similarity: f64,
    /// Distance between the orders in which tokens are important.
    pub ranking: RankingTerm,
}

/// Early layers of the student rank tokens as the teacher's last layer does (ToP notes, §4).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RankingTerm {
    /// At the start; 0 for none.
    pub weight: f64,
    pub kind: Ranking,
    /// The teacher's best tokens of a text, which are compared.
    pub top: usize,
    /// Updates over which the weight falls to a hundredth; 0: it stays.
    pub warmup: u32,
}

impl Default for RankingTerm {
    fn default() -> Self {
        RankingTerm { weight: 0.0, kind: Ranking::Arp2, top: 20, warmup: 0 }
    }
}

impl RankingTerm {
    /// The weight in update `update`.
    pub fn weight_at(&self, update: u32) -> f64 {
        match self.warmup {
            0 => self.weight,
            warmup => self.weight * (1.0 - update as f64 / warmup as f64).max(0.01),
        }
    }
}

impl Default for Terms {
    /// No term at all, at the temperature that predictions usually have.
    fn default() -> Self {
        Terms {
            temperature: 2.0,
            prediction: 0.0,
            hidden: 0.0,
            swap: 0.0,
            matching: Matching::Dynamic,
            embedding: 0.0,
            relations: 0.0,
            attention: 0.0,
            task: 0.0,
            sinkhorn: 0.0,
            similarity: 0.0,
            ranking: RankingTerm::default(),
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Distillation<'a> {
    terms: Terms,
    pub teacher: Encoder<'a>,
    targets: Option<&'a Targets>,
    /// Ids that are no text, and stay where tokens are swapped.
    special: BTreeSet<u32>,
    /// Rows of the data that batches are numbered by.
    pub rows: Vec<usize>,
    seed: u64,
    /// How tokens are hidden from a masked-LM model.
    masker: Option<&'a Masker>,
    held: Vec<Held>,
    /// From the student's states to the teacher's, where their widths differ.
    pub projection: Option<Projection>,
    /// What makes tokens important: as in the student's schedule. An objective that keeps tokens by another
    /// score sets it.
    pub score: Score,
}

/// Held-out texts, by rows of the data.
#[derive(Debug)]
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
    keep: None,
    importance: None,
    dropout: Dropout { hidden: 0.0, attention: 0.0, key: 0 },
};

/// Tokens of a batch of held-out texts.
const JUDGED_TOKENS: usize = 1024;

impl<'a> Distillation<'a> {
    /// The training of `student` towards `teacher` on `data`, judged on its rows `held`.
    ///
    /// # Errors
    /// For a masked-LM model without a token to hide words by; what running the teacher refuses.
    pub fn new(
        terms: Terms,
        teacher: &'a Model,
        student: &Model,
        data: &'a Dataset,
        held: &[usize],
        seed: u64,
    ) -> Result<Distillation<'a>> {
        let mut distillation = Distillation {
            teacher: Encoder::new(teacher)?,
            // Of a text with other words nobody knows the label.
            targets: data.targets.as_ref().filter(|_| terms.task > 0.0 && terms.swap == 0.0),
            special: data.masker.as_ref().map(|m| m.special.clone()).unwrap_or_default(),
            terms,
            rows: Vec::new(),
            seed,
            masker: None,
            held: Vec::new(),
            projection: None,
            score: student.tokens.as_ref().map_or(Score::Received, |tokens| tokens.score),
        };
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
                None => {
                    let says = says(&distillation.teacher, &one.batch, &[], None)?;
                    one.teacher = Some(says.values);
                }
            }
            distillation.held.push(one);
        }
        Ok(distillation)
    }

    /// Whether labels are used.
    pub fn labels(&self) -> bool {
        self.targets.is_some()
    }

    /// The teacher's way through `batch`, and its answer.
    fn ask(&self, batch: &Batch, picked: &[usize]) -> Result<(Vec<Tape>, HeadTape)> {
        let path = Path::of(&self.teacher);
        let plan = Plan { importance: self.importance(), ..STATES };
        let tapes = tape::forward(&self.teacher, &path.layers, batch, &plan)?;
        let last = tape::hidden(&tapes, path.layers.len());
        let left = tape::left(&tapes, batch);
        let says = head::forward(&self.teacher, &left, &last, picked, None, Dropout::default());
        Ok((tapes, says))
    }

    fn config(&self) -> &Config {
        &self.teacher.model.config
    }

    /// How far the student's answer is from the teacher's.
    fn predictions(&self, student: &[f32], teacher: &[f32], width: usize, batch: &Batch) -> Loss {
        let temperature = self.terms.temperature as f32;
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

    /// Losses that look at states, each with its weight. Where tokens were dropped, those are compared that
    /// both states have: all of them in the last state of a model whose head reads every token.
    fn states(&self, seen: &Seen, teacher: &[Tape], sum: &mut Sum) {
        let terms = &self.terms;
        if [terms.hidden, terms.embedding, terms.attention, terms.relations] == [0.0; 4] {
            return;
        }
        let depths = (self.teacher.layers.len(), seen.encoder.layers.len());
        let hidden = |tapes: &[Tape], index: usize| tape::hidden(tapes, index);
        let widths = (seen.encoder.model.config.hidden, self.config().hidden);
        // Where layers can be told apart by their places, all are compared (TinyBERT, §3); where a match
        // is searched for, as many as CoFi does.
        let watched = match terms.matching {
            Matching::Uniform => (1..=depths.0).collect(),
            Matching::Dynamic | Matching::Ordered => losses::watched_layers(depths.0),
        };
        // What a mask leaves out is as good as gone.
        let open =
            |of: fn(&Masks) -> &Vec<f32>, l: usize| seen.masks.is_none_or(|m| of(m)[l] != 0.0);
        let alive = |(l, layer): (usize, &RunLayer)| {
            layer.attention.is_some() && open(|m| &m.attention, l)
                || layer.ffn.is_some() && open(|m| &m.ffn, l)
        };
        let alive: Vec<bool> = seen.encoder.layers.iter().enumerate().map(alive).collect();
        let shared = |t: usize, s: usize| Shared::of((seen.tapes, s), (teacher, t));
        let compare = |t: usize, s: usize| {
            let (student, teacher) = (hidden(seen.tapes, s), hidden(teacher, t));
            let shared = shared(t, s);
            let (student, teacher) = (shared.student(student), shared.teacher(teacher));
            let projection = self.projection.as_ref();
            let mut loss = losses::hidden(&student, &teacher, widths.0, widths.1, projection);
            loss.grad = shared.spread(loss.grad);
            loss
        };
        // A search looks at every state many times: each is projected once.
        let mut searched = Vec::new();
        if terms.matching != Matching::Uniform {
            let state = |s: usize| match &self.projection {
                Some(projection) => projection.apply(&hidden(seen.tapes, s), widths.0),
                None => hidden(seen.tapes, s),
            };
            searched = (1..=depths.1).into_par_iter().map(state).collect::<Vec<_>>();
        }
        let targets: Vec<Vec<f32>> = match terms.matching {
            Matching::Uniform => Vec::new(),
            _ => (1..=depths.0).map(|t| hidden(teacher, t)).collect(),
        };
        let pairs = losses::matched_layers(
            terms.matching,
            &watched,
            &alive,
            |t, s| {
                let (shared, student, teacher) = (shared(t, s), &searched[s - 1], &targets[t - 1]);
                losses::hidden_distance(&shared.student(student), &shared.teacher(teacher))
            },
            depths.0,
            depths.1,
        );
        if terms.hidden > 0.0 {
            sum.add("hidden", 0.0, 0.0); // masks may leave no layer to compare
            let weight = terms.hidden / pairs.len().max(1) as f64;
            let found: Vec<_> = pairs.par_iter().map(|&(t, s)| compare(t, s)).collect();
            for (&(_, s), loss) in pairs.iter().zip(found) {
                sum.add("hidden", weight, loss.value);
                sum.signal.add_hidden(s, loss.grad, weight as f32);
                sum.project(loss.projection, weight as f32);
            }
        }
        if terms.embedding > 0.0 {
            let loss = compare(0, 0);
            sum.add("embedding", terms.embedding, loss.value);
            sum.signal.add_hidden(0, loss.grad, terms.embedding as f32);
            sum.project(loss.projection, terms.embedding as f32);
        }
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
        // Query, key and value of teacher and student, of the tokens that came to both layers.
        let qkv = |t: usize, s: usize| {
            let (of_teacher, of_student) = (tape::qkv(teacher, t)?, tape::qkv(seen.tapes, s)?);
            let shared = shared(t, s);
            Some((shared.teacher(of_teacher), shared.student(of_student), shared))
        };
        if terms.attention > 0.0 {
            let weight = terms.attention / both.len().max(1) as f64;
            for &(t, s) in &both {
                let Some((of_teacher, of_student, shared)) = qkv(t, s) else { continue };
                let loss = losses::scores(
                    &of_student,
                    &attention(seen.encoder, s).unwrap_or_default(),
                    &of_teacher,
                    &attention(&self.teacher, t).unwrap_or_default(),
                    self.config().head_dim,
                    &shared.starts,
                );
                sum.add("attention", weight, loss.value);
                sum.signal.add_qkv(s, shared.spread(loss.grad), weight as f32);
            }
        }
        // Of the last layer that has any (MiniLMv2: one layer is enough).
        let last = both.iter().max_by_key(|(_, s)| *s).and_then(|&(t, s)| Some((qkv(t, s)?, s)));
        if let (true, Some(((of_teacher, of_student, shared), s))) = (terms.relations > 0.0, last) {
            let (starts, tokens) = (&shared.starts, shared.tokens());
            let width = |qkv: &[f32]| qkv.len() / (3 * tokens);
            let (student, teacher) = (width(&of_student), width(&of_teacher));
            let heads = losses::relation_heads(student, teacher, self.config().heads);
            let loss = losses::relations(&of_student, student, &of_teacher, teacher, heads, starts);
            sum.add("relations", terms.relations, loss.value);
            sum.signal.add_qkv(s, shared.spread(loss.grad), terms.relations as f32);
        }
    }

    /// The loss of [`RankingTerm`]. Of a model with fewer than six layers none is an early one.
    fn ranking(&self, seen: &Seen, teacher: &[Tape], sum: &mut Sum) {
        let term = &self.terms.ranking;
        if term.weight == 0.0 {
            return;
        }
        let attends =
            |layer: &RunLayer| layer.attention.as_ref().is_some_and(|a| !a.heads.is_empty());
        let last = self.teacher.layers.iter().rposition(attends);
        // In the places of the whole batch; what is gone got nothing.
        let whole = |tapes: &[Tape], l: usize| {
            let mut whole = vec![0.0; seen.batch.tokens()];
            let found = tape::importance(tapes, l)?;
            tape::tokens(tapes, l).into_iter().zip(found).for_each(|(t, value)| whole[t] = value);
            Some(whole)
        };
        let Some(expected) = last.and_then(|l| whole(teacher, l)) else { return };
        let weight = term.weight_at(seen.at.update);
        for l in 1..seen.encoder.layers.len() / 3 {
            let Some(found) = whole(seen.tapes, l) else { continue };
            let starts = &seen.batch.starts;
            let loss = losses::ranking(term.kind, &found, &expected, starts, term.top);
            sum.add("ranking", weight, loss.value);
            let grad = rows(&loss.grad, 1, &tape::tokens(seen.tapes, l));
            sum.signal.add_importance(l, grad, weight as f32);
        }
    }

    /// The mean distance between both models' answers to the held-out texts, the student's through `masks`; of sentence
    /// embeddings, with that of their similarities, by the weights of training. `None` without such texts.
    ///
    /// # Errors
    /// As [`Encoder::forward`].
    pub fn judge_with(&self, encoder: &Encoder, masks: Option<&Masks>) -> Result<Option<f64>> {
        let (mut sum, mut texts) = (0.0, 0);
        for Held { batch, picked, teacher } in &self.held {
            let asked;
            let teacher = match teacher {
                Some(teacher) => teacher,
                None => {
                    asked = says(&self.teacher, batch, picked, None)?;
                    &asked.values
                }
            };
            let student = says(encoder, batch, picked, masks)?;
            let loss = self.predictions(&student.values, teacher, student.width, batch);
            let mut value = loss.value;
            let terms = &self.terms;
            if terms.similarity > 0.0 && self.config().task == Task::Embedding {
                // What embeddings are used for, and what cosines with the teacher's hardly show.
                let loss = losses::similarities(
                    &student.values,
                    teacher,
                    student.width,
                    SIMILARITY_TEMPERATURE,
                );
                value = terms.prediction * value + terms.similarity * loss.value;
            }
            sum += value * batch.texts() as f64;
            texts += batch.texts();
        }
        Ok((texts > 0).then(|| sum / texts as f64))
    }
}

/// The tokens that a state of the student and one of the teacher both have rows for.
struct Shared {
    /// Their rows in the student's state and in the teacher's; `None`: all rows of both.
    rows: Option<[Vec<usize>; 2]>,
    /// Rows of the two states.
    all: [usize; 2],
    /// Where texts begin among them, `[texts + 1]`.
    starts: Vec<usize>,
}

impl Shared {
    /// Of hidden states by their indices, and so of what the layers of these indices get.
    fn of((student, s): (&[Tape], usize), (teacher, t): (&[Tape], usize)) -> Shared {
        let starts = tape::starts(student, s);
        let tokens = starts.last().copied().unwrap_or(0);
        if !tape::dropped(student, s) && !tape::dropped(teacher, t) {
            return Shared { rows: None, all: [tokens; 2], starts };
        }
        let [ours, theirs] = [tape::tokens(student, s), tape::tokens(teacher, t)];
        let within = |some: &[usize], other: &[usize]| -> Vec<usize> {
            let has = |row: &usize| other.binary_search(&some[*row]).is_ok();
            (0..some.len()).filter(has).collect()
        };
        let rows = [within(&ours, &theirs), within(&theirs, &ours)];
        let starts = starts.iter().map(|&s| rows[0].partition_point(|&row| row < s)).collect();
        Shared { rows: Some(rows), all: [ours.len(), theirs.len()], starts }
    }

    fn tokens(&self) -> usize {
        self.rows.as_ref().map_or(self.all[0], |[rows, _]| rows.len())
    }

    /// Their rows of `x`, the student's, `[rows, width]`.
    fn student<'x>(&self, x: impl Into<Cow<'x, [f32]>>) -> Cow<'x, [f32]> {
        self.gather(x.into(), 0)
    }

    /// Their rows of `x`, the teacher's.
    fn teacher<'x>(&self, x: impl Into<Cow<'x, [f32]>>) -> Cow<'x, [f32]> {
        self.gather(x.into(), 1)
    }

    fn gather<'x>(&self, x: Cow<'x, [f32]>, of: usize) -> Cow<'x, [f32]> {
        let Some(kept) = &self.rows else { return x };
        Cow::Owned(rows(&x, x.len() / self.all[of], &kept[of]))
    }

    /// A gradient with respect to their rows of the student's, zeros in its others.
    fn spread(&self, grad: Vec<f32>) -> Vec<f32> {
        let Some([kept, _]) = &self.rows else { return grad };
        let width = grad.len() / kept.len();
        let mut all = vec![0.0; self.all[0] * width];
        for (&row, grad) in kept.iter().zip(grad.chunks_exact(width.max(1))) {
            all[row * width..(row + 1) * width].copy_from_slice(grad);
        }
        all
    }
}

/// What a model answers when nobody watches its way.
fn says(
    encoder: &Encoder,
    batch: &Batch,
    picked: &[usize],
    masks: Option<&Masks>,
) -> Result<HeadTape> {
    let last = encoder.hidden(batch, masks, &mut NoObserver)?;
    Ok(head::forward(encoder, &last.batch, &last.x, picked, masks, Dropout::default()))
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
        let Some(masker) = self.masker else {
            if self.terms.swap == 0.0 {
                return (Cow::Borrowed(batch), Vec::new());
            }
            let seed = self.seed ^ task::masking_step(at).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let swapped = swap_tokens(batch, &self.special, self.terms.swap as f32, seed);
            return (Cow::Owned(swapped), Vec::new());
        };
        let (vocab, step) = (self.config().vocab, task::masking_step(at));
        let (hidden, asked) = masker.hide(batch, vocab, self.seed, step);
        (Cow::Owned(hidden), asked)
    }

    fn importance(&self) -> Option<Score> {
        (self.terms.ranking.weight > 0.0).then_some(self.score)
    }

    fn loss(&self, seen: &Seen) -> Result<Verdict> {
        let terms = &self.terms;
        let depth = seen.encoder.layers.len();
        let picked = task::places(seen.targets);
        let last = tape::hidden(seen.tapes, depth);
        let student =
            head::forward(seen.encoder, seen.left, &last, &picked, seen.masks, seen.dropout);
        let mut sum = Sum {
            losses: Vec::new(),
            signal: Signal::new(depth),
            grad: vec![0.0; student.values.len()],
            projection: None,
        };
        if let Some(targets) = self.targets {
            let batch = task::renumbered(seen.batch.clone(), &self.rows);
            sum.answer("task", terms.task, &task::loss(&student, &batch, targets));
        } else if !picked.is_empty() && terms.task > 0.0 {
            sum.answer("task", terms.task, &task::masked_loss(&student, seen.targets));
        }
        let (tapes, teacher) = self.ask(seen.batch, &picked)?;
        let (says, width) = (&teacher.values, teacher.width);
        if terms.prediction > 0.0 {
            let loss = self.predictions(&student.values, says, width, seen.batch);
            sum.answer("prediction", terms.prediction, &loss);
        }
        if terms.sinkhorn > 0.0 {
            let loss = losses::sinkhorn(&student.values, says, width, &Sinkhorn::default());
            sum.answer("sinkhorn", terms.sinkhorn, &loss);
        }
        if terms.similarity > 0.0 && self.config().task == Task::Embedding {
            let loss = losses::similarities(&student.values, says, width, SIMILARITY_TEMPERATURE);
            sum.answer("similarity", terms.similarity, &loss);
        }
        self.states(seen, &tapes, &mut sum);
        self.ranking(seen, &tapes, &mut sum);
        if sum.losses.is_empty() && (self.masker.is_none() || !picked.is_empty()) {
            let unlabelled = terms.task > 0.0 && self.targets.is_none();
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
        // Parameters of others may follow: the projection has its gradients even where no states were compared.
        let own = match (sum.projection, &self.projection) {
            (Some(grad), _) => vec![grad.weight, grad.bias],
            (None, Some(p)) => vec![vec![0.0; p.weight.len()], vec![0.0; p.bias.len()]],
            (None, None) => Vec::new(),
        };
        Ok(Verdict { losses: sum.losses, signal: sum.signal, head: Some((student, sum.grad)), own })
    }

    fn parameters(&mut self) -> Vec<(Group, &mut Vec<f32>)> {
        let group = Group { rate: Rate::Scheduled(1.0), decay: 0.0, clipped: true };
        let Some(projection) = &mut self.projection else { return Vec::new() };
        vec![(group, &mut projection.weight), (group, &mut projection.bias)]
    }

    fn judge(&self, encoder: &Encoder) -> Result<Option<f64>> {
        self.judge_with(encoder, None)
    }
}
