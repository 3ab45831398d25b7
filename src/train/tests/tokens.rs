//! Tokens that are dropped in training: states, gradients of weights and of bins, distillation, the loop.

use super::*;
use crate::data::Dataset;
use crate::data::tokenizer::Encoded;
use crate::model::{Reads, Score, TokenSchedule};
use crate::progress::Quiet;
use crate::runtime::tokens::Importance;
use crate::runtime::{Everything, Observer};
use crate::train::backward::Back;
use crate::train::distillation::{Distillation, RankingTerm, Terms};
use crate::train::fit::{self, Settings, fit};
use crate::train::keep::Keep;
use crate::train::losses::{self, Matching, Ranking};
use crate::train::objective::{Group, Moment, Objective, Rate, Seen, Verdict};
use crate::train::sampling::Order;
use crate::train::schedule::Schedule;
use crate::train::tape::{Dropout, Tape};
use crate::train::trainer::Trainer;

/// Bins with holes in all layers of three but the second.
fn schedule(model: &Model, score: Score) -> TokenSchedule {
    let mut tokens = TokenSchedule::keep_all(model.layers.len(), score, model.reads());
    let bins = |bits: &str| Some(bits.bytes().map(|b| b == b'1').collect());
    for (l, layer) in tokens.layers.iter_mut().enumerate().filter(|(l, _)| l % 3 != 1) {
        *layer = if l % 3 == 0 { bins("11011110") } else { bins("110") };
    }
    tokens.protect = vec![3];
    tokens
}

/// Bins that are on, off and on by degrees, in every layer.
fn keep(model: &Model, score: Score) -> Keep {
    let like = TokenSchedule::keep_all(model.layers.len(), score, model.reads());
    let values = [vec![1.0, 0.6, 0.0, 0.8, 0.9], vec![0.5, 1.0, 0.0], vec![0.7, 0.0, 0.4, 0.8]];
    Keep::new(&like, values.map(Some).to_vec())
}

/// Texts of two groups, one of a single token.
fn texts(seed: u64) -> Batch {
    batch(seed, &[18, 1, 17, 18, 12])
}

/// Which rows went on and by which bins, by layer of every group.
type Fates = Vec<Option<Vec<(usize, Option<usize>)>>>;

fn fates(tapes: &[Tape]) -> Fates {
    let layers = tapes.iter().flat_map(|tape| &tape.layers);
    layers.map(|layer| layer.left.as_ref().map(|left| left.kept.clone())).collect()
}

#[test]
fn states_are_those_of_the_plain_pass() {
    for (i, (family, task)) in every().enumerate() {
        for score in [Score::Received, Score::First] {
            let mut model = tiny(family, task, 200 + i as u64);
            model.tokens = Some(schedule(&model, score));
            let encoder = Encoder::new(&model).expect("a model that runs");
            let batch = texts(201);
            let path: Vec<_> = encoder.layers.iter().collect();
            let tapes = tape::forward(&encoder, &path, &batch, &Plan::default()).expect("runs");
            assert!(tapes.len() > 1, "one group");
            let expected = encoder.hidden(&batch, None, &mut Everything).expect("runs");
            let last = tape::hidden(&tapes, LAYERS);
            let what = format!("{family} {task:?} {score:?}");
            assert!(
                distance(&last, &expected.x) < 1e-6,
                "{what}: {}",
                distance(&last, &expected.x)
            );
            let left = tape::left(&tapes, &batch);
            assert_eq!(left, expected.batch, "{what}");
            assert_eq!(tape::starts(&tapes, LAYERS), left.starts, "{what}");
            assert_eq!(tape::tokens(&tapes, LAYERS).len(), left.tokens(), "{what}");
            assert!(tape::tokens(&tapes, 1).len() < batch.tokens(), "{what}: nothing is dropped");
            assert_eq!(tape::tokens(&tapes, 1).len(), tape::hidden(&tapes, 1).len() / HIDDEN);
            assert_eq!(tape::dropped(&tapes, LAYERS), model.reads() != Reads::Every, "{what}");
        }
    }
}

/// A loss along directions on the head's answer and on all that a loss can look at.
struct Along<'a> {
    encoder: &'a Encoder<'a>,
    batch: &'a Batch,
    plan: Plan<'a>,
}

/// What [`Along`] gives.
struct Found<'m> {
    loss: f64,
    grads: Encoder<'m>,
    /// By layer.
    bins: Vec<Vec<f32>>,
    fates: Fates,
}

impl<'a> Along<'a> {
    fn run(&self) -> Found<'a> {
        let Along { encoder, batch, plan } = *self;
        let path: Vec<_> = encoder.layers.iter().collect();
        let mut tapes = tape::forward(encoder, &path, batch, &plan).expect("runs");
        let (fates, depth) = (fates(&tapes), path.len());
        let (last, left) = (tape::hidden(&tapes, depth), tape::left(&tapes, batch));
        let head = head::forward(encoder, &left, &last, &[0, 3, 40], plan.masks, plan.dropout);
        let mut grads = encoder.clone();
        grads.leaves_mut().into_iter().for_each(|leaf| leaf.to_mut().fill(0.0));
        let values = gaussian(head.values.len(), 210);
        let mut loss = dot(&head.values, &values);
        let back = head::backward(encoder, Some(&mut grads), &left, &last, &head, &values);
        let mut signal = Signal::new(depth);
        signal.add_hidden(depth, back.last, 1.0);
        for l in 0..=depth {
            let state = tape::hidden(&tapes, l);
            let direction = gaussian(state.len(), 211 + l as u64);
            loss += 0.5 * dot(&state, &direction);
            signal.add_hidden(l, direction, 0.5);
        }
        for l in 0..depth {
            let qkv = tape::qkv(&tapes, l).expect("attention");
            let direction = gaussian(qkv.len(), 221 + l as u64);
            loss += dot(&qkv, &direction);
            signal.add_qkv(l, direction, 1.0);
            // Importance is of the order of a tenth.
            let importance = tape::importance(&tapes, l).expect("asked for");
            let direction = gaussian(importance.len(), 231 + l as u64);
            loss += 30.0 * dot(&importance, &direction);
            signal.add_importance(l, direction, 30.0);
        }
        let backs = backward::backward(encoder, &path, &mut tapes, &signal, &plan);
        weights::add(encoder, &mut grads, &tapes, &backs, &vec![true; depth]);
        Found { loss, grads, bins: bins(&backs), fates }
    }
}

/// Gradients of the bins' values, by layer, over all groups.
fn bins(backs: &[Back]) -> Vec<Vec<f32>> {
    let mut sums = backs[0].bins.clone();
    for back in &backs[1..] {
        let cells = sums.iter_mut().flatten().zip(back.bins.iter().flatten());
        cells.for_each(|(sum, g)| *sum += g);
    }
    sums
}

/// Of every third weight along a random direction, and of every bin. Steps that change a rank that counts are
/// left out: the loss jumps there.
#[test]
fn gradients_of_weights_and_bins_are_their_differences() {
    let (mut tried, mut checked) = (0, 0);
    for (i, (family, task)) in every().enumerate() {
        let mut model = uneven(family, task, 240 + i as u64);
        if task == Task::Embedding {
            model.head = Head::Embedding { pool: PoolMode::Mean, normalize: true };
        }
        let (ranks, recorded) = match i % 2 {
            0 => (Score::Received, Score::First),
            _ => (Score::First, Score::Received),
        };
        let recorded = if i % 3 == 0 { ranks } else { recorded };
        let encoder = Encoder::trainable(&model).expect("a model that runs");
        let (batch, keep) = (texts(241), keep(&model, ranks));
        let mut masks = Masks::ones(&model);
        masks.heads[0] = vec![0.8, 0.0, 1.2, 0.9];
        masks.ffn[1] = 0.9;
        let plan = Plan {
            masks: (i % 2 == 0).then_some(&masks),
            keep: Some(&keep),
            importance: Some(recorded),
            dropout: Dropout { hidden: 0.1, attention: 0.2, key: 9 },
            ..Plan::default()
        };
        let mut found = Along { encoder: &encoder, batch: &batch, plan }.run();
        let leaves: Vec<Vec<f32>> = found.grads.leaves_mut().iter().map(|l| l.to_vec()).collect();
        let at = |encoder: &Encoder, keep: &Keep| {
            let plan = Plan { keep: Some(keep), ..plan };
            let found_there = Along { encoder, batch: &batch, plan }.run();
            (found_there.fates == found.fates).then_some(found_there.loss)
        };
        for (n, leaf) in leaves.iter().enumerate().skip(i % 3).step_by(3) {
            tried += 1;
            // The first direction along which no rank changes.
            let differences = (0..5).find_map(|attempt| {
                let along = gaussian(leaf.len(), 250 + 10 * n as u64 + attempt);
                let moved = |step: f32| {
                    let mut moved = encoder.clone();
                    let mut leaves = moved.leaves_mut();
                    let values = leaves[n].to_mut().iter_mut().zip(&along);
                    values.for_each(|(v, d)| *v += step * d);
                    drop(leaves);
                    at(&moved, &keep)
                };
                Some(((moved(1e-3)? - moved(-1e-3)?) / 2e-3, dot(leaf, &along)))
            });
            let Some((expected, found)) = differences else { continue };
            checked += 1;
            let size = leaf.iter().map(|g| (*g as f64).powi(2)).sum::<f64>().sqrt();
            let off = (found - expected).abs();
            assert!(off < 0.02 * size + 0.1, "{family} {task:?}, leaf {n}: {found}, {expected}");
        }
        let all: Vec<f32> = found.bins.concat();
        let size = all.iter().map(|g| (*g as f64).powi(2)).sum::<f64>().sqrt();
        for (l, gradients) in found.bins.iter().enumerate() {
            let values = keep.values[l].as_ref().expect("bins");
            assert_eq!(gradients.len(), values.len());
            for (b, &gradient) in gradients.iter().enumerate() {
                if values[b] == 0.0 {
                    assert_eq!(gradient, 0.0, "no slope where nothing is kept");
                    continue;
                }
                tried += 1;
                let moved = |step: f32| {
                    let mut values = keep.values.clone();
                    values[l].as_mut().expect("bins")[b] += step;
                    at(&encoder, &Keep::new(&keep.schedule, values))
                };
                let Some((up, down)) = moved(2e-3).zip(moved(-2e-3)) else { continue };
                checked += 1;
                let expected = (up - down) / 4e-3;
                let off = (gradient as f64 - expected).abs();
                let what = format!("{family} {task:?}, layer {l}, bin {b}");
                assert!(off < 0.02 * size + 0.05, "{what}: {gradient}, {expected}");
            }
        }
    }
    assert!(3 * checked > 2 * tried, "{checked} of {tried}");
}

/// Six layers: three, twice.
fn deep(family: &str, task: Task, seed: u64) -> Model {
    let mut model = tiny(family, task, seed);
    model.layers = [model.layers.clone(), model.layers].concat();
    model
}

fn data(batch: &Batch) -> Dataset {
    let text = |span: &[usize]| Encoded {
        ids: batch.ids[span[0]..span[1]].to_vec(),
        type_ids: batch.type_ids[span[0]..span[1]].to_vec(),
    };
    let texts = batch.starts.windows(2).map(text).collect();
    Dataset { texts, targets: None, masker: None, source: "random texts".into() }
}

/// Every loss that needs no labels.
fn all_terms(task: Task) -> Terms {
    Terms {
        prediction: 1.0,
        hidden: 0.7,
        matching: Matching::Uniform,
        embedding: 0.3,
        relations: 2.0,
        attention: 0.2,
        sinkhorn: if task == Task::SequenceClassification { 0.5 } else { 0.0 },
        similarity: 0.5,
        // Scores differ by hundredths.
        ranking: RankingTerm { weight: 20.0, warmup: 10, ..RankingTerm::default() },
        ..Terms::default()
    }
}

#[test]
fn gradients_of_distillation_are_its_differences() {
    let tasks = [Task::SequenceClassification, Task::Embedding, Task::QuestionAnswering];
    let (mut tried, mut checked) = (0, 0);
    for (i, task) in tasks.into_iter().enumerate() {
        for teacher_drops in [false, true] {
            let mut teacher = deep("bert", task, 260 + i as u64);
            if teacher_drops {
                teacher.tokens = Some(schedule(&teacher, Score::First));
            }
            let mut student = deep("bert", task, 270 + i as u64);
            let score = if i == 0 { Score::First } else { Score::Received };
            student.tokens = Some(schedule(&student, score));
            let batch = texts(261);
            let data = data(&batch);
            let terms = all_terms(task);
            let mut objective =
                Distillation::new(terms, &teacher, &student, &data, &[], 0).expect("a teacher");
            objective.rows = (0..batch.texts()).collect();
            assert_eq!(objective.importance(), Some(score));
            let mut trainer = Trainer::new(&student, |_| true).expect("a model that trains");
            let at = Moment { update: 3, part: 0 };
            let loss = |trainer: &mut Trainer| {
                let parts = trainer.gather(&objective, &batch, Dropout::default(), at);
                parts.expect("runs")
            };
            let fates_of = |trainer: &Trainer| {
                let path: Vec<_> = trainer.encoder.layers.iter().collect();
                let tapes = tape::forward(&trainer.encoder, &path, &batch, &Plan::default());
                fates(&tapes.expect("runs"))
            };
            let before = fates_of(&trainer);
            let parts = loss(&mut trainer);
            let names = ["prediction", "hidden", "embedding", "attention", "relations", "ranking"];
            for name in names {
                assert!(
                    parts.iter().any(|(n, value)| *n == name && *value > 1e-3),
                    "{name}: {parts:?}"
                );
            }
            let gradients = trainer.gradients();
            for (n, (name, gradient)) in gradients.iter().enumerate().skip(i).step_by(5) {
                tried += 1;
                let mut at = |step: f32, along: &[f32]| {
                    let mut leaves = trainer.encoder.leaves_mut();
                    let old = leaves[n].to_vec();
                    let values = leaves[n].to_mut().iter_mut().zip(along);
                    values.for_each(|(v, d)| *v += step * d);
                    drop(leaves);
                    let same = fates_of(&trainer) == before;
                    let found = loss(&mut trainer).iter().map(|(_, value)| value).sum::<f64>();
                    *trainer.encoder.leaves_mut()[n] = old.into();
                    same.then_some(found)
                };
                let differences = (0..5).find_map(|attempt| {
                    let along = gaussian(gradient.len(), 280 + 10 * n as u64 + attempt);
                    let (up, down) = (at(2e-3, &along)?, at(-2e-3, &along)?);
                    Some(((up - down) / 4e-3, dot(gradient, &along)))
                });
                let Some((expected, found)) = differences else { continue };
                checked += 1;
                let size = gradient.iter().map(|g| (*g as f64).powi(2)).sum::<f64>().sqrt();
                let off = (found - expected).abs();
                assert!(off < 0.02 * size + 2e-3, "{task:?} {name} {n}: {found}, {expected}");
            }
        }
    }
    assert!(3 * checked > 2 * tried, "{checked} of {tried}");
}

/// Importance in one layer, as the plain pass has it.
struct Watch<'a> {
    layer: usize,
    batch: &'a Batch,
    importance: Importance,
}

impl Observer for Watch<'_> {
    fn attention(&mut self, layer: usize, _: usize, text: usize, probs: &[f32]) {
        if layer == self.layer {
            let (from, to) = (self.batch.starts[text], self.batch.starts[text + 1]);
            self.importance.add(from, to - from, HEADS, probs);
        }
    }
}

#[test]
fn early_layers_are_ranked_against_the_last_of_the_teacher() {
    let (teacher, student) = (deep("bert", Task::Bare, 290), deep("bert", Task::Bare, 291));
    let batch = texts(292);
    let data = data(&batch);
    let importance = |model: &Model, layer: usize| {
        let encoder = Encoder::new(model).expect("a model that runs");
        let importance = Importance::new(Score::Received, batch.tokens());
        let mut watch = Watch { layer, batch: &batch, importance };
        encoder.forward(&batch, None, &mut watch).expect("runs");
        watch.importance.values
    };
    let ranking = RankingTerm { weight: 3.0, kind: Ranking::Ndcg2, top: 5, warmup: 4 };
    let terms = Terms { ranking, ..Terms::default() };
    let objective = Distillation::new(terms, &teacher, &student, &data, &[], 0).expect("a teacher");
    // Of six layers the second alone is an early one; the last of the teacher's is the sixth.
    let (found, expected) = (importance(&student, 1), importance(&teacher, 5));
    let expected = losses::ranking(Ranking::Ndcg2, &found, &expected, &batch.starts, 5).value;
    let mut trainer = Trainer::new(&student, |_| true).expect("a model that trains");
    for (update, weight) in [(0, 3.0), (1, 2.25), (4, 0.03), (9, 0.03)] {
        let at = Moment { update, part: 0 };
        let parts = trainer.gather(&objective, &batch, Dropout::default(), at).expect("runs");
        assert_eq!((parts.len(), parts[0].0), (1, "ranking"));
        assert!((parts[0].1 - weight * expected).abs() < 1e-5, "{update}: {parts:?}, {expected}");
    }
    assert_eq!(RankingTerm { warmup: 0, ..ranking }.weight_at(9), 3.0);
}

#[test]
fn a_student_that_drops_tokens_learns() {
    for (i, task) in [Task::Embedding, Task::TokenClassification].into_iter().enumerate() {
        let mut student = tiny("bert", task, 300 + i as u64);
        let teacher = student.clone();
        student.tokens = Some(schedule(&student, Score::Received));
        let batch = batch(301, &[12, 5, 9, 14, 7, 10]);
        let data = data(&batch);
        let terms = Terms { prediction: 1.0, hidden: 0.1, ..Terms::default() };
        let mut objective =
            Distillation::new(terms, &teacher, &student, &data, &[0, 1, 2], 0).expect("a teacher");
        objective.rows = (0..batch.texts()).collect();
        let mut trainer = Trainer::new(&student, |_| true).expect("a model that trains");
        let settings = Settings {
            steps: 40,
            accumulate: 1,
            rate: 2e-3,
            warmup: 0,
            schedule: Schedule::Constant,
            decay: 0.0,
            clip: 1.0,
            dropout: 0.0,
            evaluate: 10,
            keep: fit::Keep::Last,
            patience: 0,
            seed: 0,
        };
        let order = Order::Given(vec![(0..batch.texts()).collect()]);
        let progress = ("fit", &Quiet as _);
        let history =
            fit(&mut trainer, &mut objective, &data.texts, &order, &settings, None, progress)
                .expect("finite");
        let sum = |i: usize| history.points[i].losses.iter().map(|(_, v)| v).sum::<f64>();
        let (first, last) = (sum(1), sum(history.points.len() - 1));
        assert!(last < 0.8 * first, "{task:?}: {first}, {last}");
        let judged = |i: usize| history.points[i].judged.expect("texts");
        assert!(judged(history.points.len() - 1) < judged(0), "{task:?}");
    }
}

#[test]
fn gradients_do_not_depend_on_threads() {
    for task in [Task::Embedding, Task::MaskedLm] {
        let mut model = tiny("mpnet", task, 310);
        model.tokens = Some(schedule(&model, Score::Received));
        let gradients = |threads| {
            with_threads(threads, || {
                let encoder = Encoder::trainable(&model).expect("a model that runs");
                let dropout = Dropout { hidden: 0.1, attention: 0.1, key: 5 };
                let importance = Some(Score::Received);
                let plan = Plan { dropout, importance, ..Plan::default() };
                let batch = texts(311);
                let mut found = Along { encoder: &encoder, batch: &batch, plan }.run();
                let leaves: Vec<_> = found.grads.leaves_mut().iter().map(|l| l.to_vec()).collect();
                (found.loss, leaves, found.bins)
            })
        };
        assert!(gradients(1) == gradients(2));
    }
}

/// The last state along a direction, under bins whose values are parameters.
struct Binned {
    like: TokenSchedule,
    values: Vec<f32>,
    direction: Vec<f32>,
}

impl Objective for Binned {
    fn keep(&self, _: Moment) -> Option<Keep> {
        let mut layers = vec![None; self.like.layers.len()];
        layers[1] = Some(self.values.clone());
        Some(Keep::new(&self.like, layers))
    }

    fn loss(&self, seen: &Seen) -> crate::Result<Verdict> {
        let depth = seen.encoder.layers.len();
        assert_eq!(seen.left, &*tape::left(seen.tapes, seen.batch));
        let last = tape::hidden(seen.tapes, depth);
        let direction = self.direction[..last.len()].to_vec();
        let losses = vec![("along", dot(&last, &direction))];
        let mut signal = Signal::new(depth);
        signal.add_hidden(depth, direction, 1.0);
        Ok(Verdict { losses, signal, head: None, own: Vec::new() })
    }

    fn parameters(&mut self) -> Vec<(Group, &mut Vec<f32>)> {
        let group = Group { rate: Rate::Constant(0.01), decay: 0.0, clipped: false };
        vec![(group, &mut self.values)]
    }

    fn keep_gradients(&self, keep: &Keep, backs: &[Back], at: Moment) -> Vec<Vec<f32>> {
        assert_eq!(Some(keep), self.keep(at).as_ref());
        let mut sums = bins(backs);
        assert!(sums[0].is_empty() && sums[2].is_empty(), "these layers drop nothing");
        vec![sums.swap_remove(1)]
    }

    fn judge(&self, _: &Encoder) -> crate::Result<Option<f64>> {
        Ok(None)
    }
}

#[test]
fn bins_are_parameters_like_any_other() {
    for task in [Task::Embedding, Task::Bare] {
        let mut model = tiny("bert", task, 320);
        // An objective's own word on tokens comes before the model's.
        model.tokens = Some(schedule(&model, Score::First));
        let (batch, like) = (texts(321), schedule(&model, Score::Received));
        let values = vec![0.9, 0.5, 0.0, 0.7];
        let direction = gaussian(batch.tokens() * HIDDEN, 322);
        let mut objective = Binned { like, values: values.clone(), direction };
        let mut trainer = Trainer::new(&model, |_| true).expect("a model that trains");
        let mut loss = |objective: &Binned| {
            let parts = trainer.gather(objective, &batch, Dropout::default(), Moment::default());
            parts.expect("runs")[0].1
        };
        let slopes: Vec<f64> = (0..values.len())
            .map(|b| {
                let mut at = |step: f32| {
                    objective.values[b] = values[b] + step;
                    loss(&objective)
                };
                let slope = if values[b] == 0.0 { 0.0 } else { at(2e-3) - at(-2e-3) };
                objective.values[b] = values[b];
                slope
            })
            .collect();
        let mut trainer = Trainer::new(&model, |_| true).expect("a model that trains");
        let (dropout, at) = (Dropout::default(), Moment::default());
        trainer.gather(&objective, &batch, dropout, at).expect("runs");
        trainer.update(&mut objective, 1e-9, 0.0, 0.0).expect("finite");
        for (b, slope) in slopes.into_iter().enumerate() {
            let moved = objective.values[b] - values[b];
            let expected = if slope == 0.0 { 0.0 } else { -0.01 * slope.signum() as f32 };
            assert!((moved - expected).abs() < 1e-5, "{task:?}, bin {b}: {moved}, {slope}");
        }
    }
}

#[test]
fn mask_gradients_of_a_model_that_drops_tokens_are_differences() {
    for task in [Task::SequenceClassification, Task::TokenClassification] {
        let mut model = uneven("bert", task, 330);
        model.tokens = Some(schedule(&model, Score::Received));
        let encoder = Encoder::new(&model).expect("a model that runs");
        let batch = batch(331, &[9, 6]);
        let classes = vec![2u32, 1];
        let labels: Vec<Vec<Option<u32>>> = vec![vec![Some(1); 9], vec![Some(2); 6]];
        let targets = match task {
            Task::SequenceClassification => Targets::Classes(classes.clone()),
            _ => Targets::Tokens(labels),
        };
        let gradients = mask_gradients(&encoder, &batch, Some(&targets), 0).expect("runs");
        for text in 0..2 {
            let loss = |masks: &Masks| -> f64 {
                let output = encoder.forward(&batch, Some(masks), &mut NoObserver).expect("runs");
                let rows: Vec<&[f32]> = output.values.chunks_exact(3).collect();
                if task == Task::SequenceClassification {
                    return cross_entropy(rows[text], classes[text] as usize);
                }
                let span = batch.starts[text]..batch.starts[text + 1];
                span.map(|t| cross_entropy(rows[t], text + 1)).sum()
            };
            let what = format!("{task:?}, text {text}");
            assert_close(&of_text(&gradients, text, 2), &differences(&model, loss), &what);
        }
    }
}
