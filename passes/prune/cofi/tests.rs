//! Gates, budgets and the loop, on models of a few numbers.

use super::settle::open;
use super::*;
use crate::data::tokenizer::Encoded;
use crate::model::testing::*;
use crate::model::{Layer, Task};
use crate::pass::{Pass, Quiet, Work};
use crate::report;
use crate::train::objective::{Moment, Objective};
use crate::train::tape::Dropout;

/// Random texts without labels.
fn dataset(texts: usize, seed: u64) -> Dataset {
    let lengths: Vec<usize> = (0..texts).map(|i| 2 + (i * 7) % 9).collect();
    let batch = batch(seed, &lengths);
    let text = |span: &[usize]| Encoded {
        ids: batch.ids[span[0]..span[1]].to_vec(),
        type_ids: batch.type_ids[span[0]..span[1]].to_vec(),
    };
    let texts = batch.starts.windows(2).map(text).collect();
    Dataset { texts, targets: None, masker: None, source: "random texts".into() }
}

fn context<'a>(model: &'a Model, data: &'a Dataset) -> Context<'a> {
    Context { data: Some(data), seed: 5, progress: &Quiet, ..Context::new(model) }
}

fn short(sparsity: f64) -> Prune {
    Prune {
        sparsity,
        steps: 300,
        finetune: 20,
        batch: 8,
        mask_rate: 0.3,
        round_to: 1,
        ..Prune::default()
    }
}

fn run(model: &Model, prune: &Prune, data: &Dataset) -> Result<(Model, Work)> {
    let mut after = model.clone();
    let work = prune.run(&mut after, &context(model, data))?;
    after.validate().expect("parts that fit");
    Ok((after, work))
}

/// An objective at its start, and what it trains.
fn started<'a>(model: &'a Model, data: &'a Dataset, gated: Gated, target: f64) -> Cofi<'a> {
    let terms = Terms {
        temperature: 2.0,
        prediction: 0.5,
        hidden: 0.5,
        matching: crate::train::losses::Matching::Dynamic,
        ..Terms::default()
    };
    let mut inner =
        Distillation::new(terms, model, model, data, &[], 1).expect("a teacher that runs");
    inner.rows = (0..data.texts.len()).collect();
    inner.projection = Some(Projection::new(HIDDEN, HIDDEN));
    Cofi {
        inner,
        logits: logits(model),
        gated,
        lagrangian: Lagrangian { lambdas: vec![-0.5, 0.2] },
        budget: Budget::of_blocks(model, target),
        there: Open::all(model),
        warmup: Warmup { from: target, to: target, steps: 1 },
        decided: u32::MAX,
        least: -gates::BOUND,
        rates: [0.1, 0.01],
        seed: 9,
    }
}

const ALL: Gated = Gated { heads: true, hidden: true, whole_layers: false };

/// Logits around the middle, where gates are open and closed about as often.
fn undecided(cofi: &mut Cofi, seed: u64) {
    let Masks { heads, units, attention, ffn, hidden } = &mut cofi.logits;
    let all = heads.iter_mut().chain(units).chain([attention, ffn, hidden]).flatten();
    let mut normal = Normal::new(seed);
    all.for_each(|logit| *logit = normal.draw());
}

#[test]
fn the_constraint_goes_back_to_every_logit() {
    let model = tiny("bert", Task::SequenceClassification, 200);
    let data = dataset(4, 201);
    let uniform = Gated { heads: false, hidden: false, whole_layers: true };
    for gated in [ALL, uniform] {
        let mut cofi = started(&model, &data, gated, 0.6);
        undecided(&mut cofi, 202);
        let penalty = |cofi: &Cofi| cofi.lagrangian.value(cofi.sparsity(0), 0.6);
        let at = Moment::default();
        let masks = cofi.masks(at).expect("gates");
        // No text has been seen: what is left of the gradient is the constraint's.
        let found = cofi.mask_gradients(&masks, &[], at);
        let rows = found.len() - 1;
        assert_eq!(found.len() + 2, cofi.parameters().len(), "a gradient for every parameter");
        let (sparsity, lambdas) = (cofi.sparsity(0), &found[rows]);
        assert!((lambdas[0] as f64 - (sparsity - 0.6)).abs() < 1e-6);
        assert!((lambdas[1] as f64 - (sparsity - 0.6).powi(2)).abs() < 1e-6);
        for (row, found) in found[..rows].iter().enumerate() {
            for (i, found) in found.iter().enumerate() {
                let mut at = |step: f32| {
                    // The projection's two parameters come first.
                    cofi.parameters()[2 + row].1[i] += step;
                    let value = penalty(&cofi);
                    cofi.parameters()[2 + row].1[i] -= step;
                    value
                };
                let expected = (at(0.02) - at(-0.02)) / 0.04;
                let off = (*found as f64 - expected).abs();
                let allowed = 0.01 * expected.abs() + 1e-6;
                assert!(off < allowed, "{row} {i}: {found} {expected}");
            }
        }
    }
}

/// One draw a batch, the same again, another for the next.
#[test]
fn masks_are_drawn_anew_for_every_batch() {
    let model = tiny("electra", Task::SequenceClassification, 203);
    let data = dataset(4, 204);
    let mut cofi = started(&model, &data, ALL, 0.5);
    undecided(&mut cofi, 205);
    let draw = |update, part| cofi.masks(Moment { update, part }).expect("gates");
    assert_eq!(draw(3, 1), draw(3, 1));
    assert!(draw(3, 1) != draw(3, 2) && draw(3, 1) != draw(4, 1));
    let tied = Cofi { gated: Gated { heads: false, hidden: false, whole_layers: true }, ..cofi };
    for update in 0..20 {
        let masks = tied.masks(Moment { update, part: 0 }).expect("gates");
        assert_eq!(masks.attention, masks.ffn);
        assert!(masks.heads.iter().flatten().chain(&masks.hidden).all(|&z| z == 1.0));
    }
}

/// CoFi notes, §9, T7.
#[test]
fn one_step_moves_what_is_trained_and_nothing_else() {
    let model = tiny("roberta", Task::SequenceClassification, 206);
    let data = dataset(16, 207);
    let mut cofi = started(&model, &data, ALL, 0.9);
    undecided(&mut cofi, 208);
    let at = (0..)
        .map(|update| Moment { update, part: 0 })
        .find(|&at| {
            let masks = cofi.masks(at).expect("gates");
            let one = |blocks: &[f32]| open(blocks) == LAYERS - 1;
            one(&masks.attention) && one(&masks.ffn) && masks.attention[0] != 0.0
        })
        .expect("a draw that leaves one block of each kind out");
    let masks = cofi.masks(at).expect("gates");
    let wanted = |part| matches!(part, Part::Layer(_) | Part::Head);
    let mut trainer = Trainer::new(&model, wanted).expect("a model that trains");
    let mut texts = crate::runtime::Batch::default();
    for (row, text) in data.texts.iter().enumerate() {
        texts.push(&text.ids, &text.type_ids, row);
    }
    let before = (cofi.logits.clone(), cofi.inner.projection.clone());
    trainer.gather(&cofi, &texts, Dropout::default(), at).expect("runs");
    trainer.update(&mut cofi, 1e-3, 0.0, 1.0).expect("finite");
    let mut after = model.clone();
    trainer.finish().put(&mut after).expect("the same shapes");

    let name = |t: &Tensor| (t.name.clone(), t.bytes().to_vec());
    let same = |a: &[Tensor], b: &[Tensor]| a.iter().map(name).eq(b.iter().map(name));
    let tables = |m: &Model| {
        let e = &m.embeddings;
        [e.word.tensors(), e.position.iter().cloned().collect(), e.norm.tensors()].concat()
    };
    assert!(same(&tables(&model), &tables(&after)), "embeddings are frozen");
    let blocks = |layer: &Layer| {
        let a = layer.attention.as_ref().expect("attention");
        let f = layer.ffn.as_ref().expect("a block");
        (a.norm.as_ref().expect("there").tensors(), f.norm.tensors(), f.up.tensors())
    };
    for (l, (b, a)) in model.layers.iter().zip(&after.layers).enumerate() {
        let ((bn, bf, bu), (an, af, au)) = (blocks(b), blocks(a));
        assert_eq!(same(&bn, &an), masks.attention[l] == 0.0, "attention's LayerNorm of layer {l}");
        assert_eq!(same(&bf, &af), masks.ffn[l] == 0.0, "feed-forward LayerNorm of layer {l}");
        assert_eq!(same(&bu, &au), masks.ffn[l] == 0.0, "feed-forward matrix of layer {l}");
    }
    assert!(cofi.inner.projection != before.1, "the projection");
    let moved = |a: &[f32], b: &[f32]| a != b;
    assert!(cofi.logits.heads != before.0.heads && cofi.logits.units != before.0.units);
    assert!(moved(&cofi.logits.attention, &before.0.attention));
    assert!(moved(&cofi.logits.ffn, &before.0.ffn));
    assert!(moved(&cofi.logits.hidden, &before.0.hidden));
}

/// At a high sparsity a draw may leave no block at all, and so no state to compare.
#[test]
fn a_draw_without_blocks_mixes_no_gradients_up() {
    let model = tiny("bert", Task::SequenceClassification, 290);
    let data = dataset(4, 291);
    let mut cofi = started(&model, &data, ALL, 0.9);
    cofi.logits.attention.fill(-1e3);
    cofi.logits.ffn.fill(-1e3);
    let wanted = |part| matches!(part, Part::Layer(_) | Part::Head);
    let mut trainer = Trainer::new(&model, wanted).expect("a model that trains");
    let mut texts = crate::runtime::Batch::default();
    for (row, text) in data.texts.iter().enumerate() {
        texts.push(&text.ids, &text.type_ids, row);
    }
    let at = Moment::default();
    let before = cofi.inner.projection.clone();
    trainer.gather(&cofi, &texts, Dropout::default(), at).expect("runs");
    trainer.update(&mut cofi, 1e-3, 0.0, 1.0).expect("finite");
    assert!(cofi.inner.projection == before, "there was nothing to project");
    assert!(cofi.lagrangian.lambdas != [-0.5, 0.2], "the constraint was not met");
}

#[test]
fn settled_masks_are_in_whole_steps_and_within_the_budget() {
    let data = dataset(4, 210);
    for seed in 0..8 {
        let model = tiny("bert", Task::SequenceClassification, 211);
        let mut cofi = started(&model, &data, ALL, 0.5);
        undecided(&mut cofi, 212 + seed);
        cofi.logits.attention.fill(3.0);
        cofi.logits.ffn.fill(3.0);
        cofi.budget.target = cofi.hard_sparsity();
        let masks = settle(&cofi, 4, false);
        let widths: Vec<usize> = masks.units.iter().map(|row| open(row)).collect();
        assert!(widths.iter().all(|w| w % 4 == 0 && *w > 0), "{widths:?}");
        assert_eq!(open(&masks.hidden) % 4, 0);
        let found = cofi.budget.sparsity(&cofi.hard(&masks));
        assert!(found >= cofi.budget.target, "{found} of {}", cofi.budget.target);
        // What stays is what is strongest.
        for (row, logits) in masks.units.iter().zip(&cofi.logits.units) {
            let of = |kept: bool| {
                row.iter().zip(logits).filter(move |(z, _)| (**z != 0.0) == kept).map(|(_, l)| *l)
            };
            assert!(
                of(true).fold(f32::INFINITY, f32::min)
                    >= of(false).fold(f32::NEG_INFINITY, f32::max)
            );
        }
        // One step more would be over.
        let least = masks.units.iter().map(|row| open(row)).min().unwrap_or(0);
        if least < FFN {
            let step = 4.0 * (2.0 * open(&masks.hidden) as f64 + 1.0) / cofi.budget.whole;
            assert!(found - cofi.budget.target < step + 1e-9, "{found} of {}", cofi.budget.target);
        }
    }
}

#[test]
fn where_units_are_not_enough_heads_go() {
    let data = dataset(4, 215);
    let model = tiny("bert", Task::SequenceClassification, 216);
    let mut cofi = started(&model, &data, ALL, 0.9);
    cofi.logits.units.iter_mut().flatten().for_each(|l| *l = -4.0);
    let masks = settle(&cofi, 4, false);
    assert!(masks.units.iter().all(|row| open(row) <= 4), "{:?}", masks.units);
    let heads: Vec<usize> = masks.heads.iter().map(|row| open(row)).collect();
    assert!(heads.iter().all(|&n| (1..HEADS).contains(&n)), "{heads:?}");
    assert!(cofi.budget.sparsity(&cofi.hard(&masks)) >= 0.65);
}

#[test]
fn uniform_masks_have_one_width() {
    let data = dataset(4, 220);
    let model = tiny("distilbert", Task::SequenceClassification, 221);
    let gated = Gated { heads: false, hidden: false, whole_layers: true };
    let mut cofi = started(&model, &data, gated, 0.6);
    undecided(&mut cofi, 222);
    cofi.logits.attention = vec![3.0, -4.0, 3.0];
    cofi.budget.target = 0.5;
    let masks = settle(&cofi, 4, true);
    assert_eq!(masks.attention[1], 0.0);
    assert_eq!(masks.attention, masks.ffn);
    assert_eq!(open(&masks.units[0]), open(&masks.units[2]));
    let found = cofi.budget.sparsity(&cofi.hard(&masks));
    assert!((0.5..0.6).contains(&found), "{found}");
    // No block is emptied because it is narrower than a step.
    let masks = settle(&cofi, 2 * FFN, true);
    assert_eq!((open(&masks.units[0]), open(&masks.units[2])), (FFN, FFN));
}

#[test]
fn widths_that_no_step_divides_are_cut_to_whole_steps() {
    let data = dataset(4, 225);
    let model = tiny("bert", Task::SequenceClassification, 226);
    let cofi = started(&model, &data, ALL, 0.3);
    let step = 7;
    assert!(!FFN.is_multiple_of(step));
    let masks = settle(&cofi, step, false);
    let widths: Vec<usize> = masks.units.iter().map(|row| open(row)).collect();
    assert!(widths.iter().all(|&w| w == FFN || w % step == 0), "{widths:?}");
    assert!(widths.iter().any(|&w| w < FFN), "{widths:?}");
}

#[test]
fn training_reaches_the_budget_for_every_family() {
    let data = dataset(40, 230);
    for (i, family) in crate::model::family::TRAINED.iter().enumerate() {
        let model = tiny(family.model_type, Task::SequenceClassification, 231 + i as u64);
        let (after, work) = run(&model, &short(0.5), &data).expect("settled gates");
        let whole = Budget::of_blocks(&model, 0.5).whole;
        let left: usize = after.layers.iter().map(crate::model::cost::prunable).sum();
        let gone = 1.0 - left as f64 / whole;
        assert!((0.5..0.62).contains(&gone), "{}: {gone}", family.model_type);
        assert_eq!(work.training.len(), 2);
        assert!(
            work.notes[0]
                .starts_with("mode train (CoFi, from all gates open): sparsity 0.5000 asked for"),
            "{:?}",
            work.notes
        );
        // The report's loss falls while nothing more is cut.
        let fine = &work.training[1];
        assert!(fine.judged_best <= fine.judged_before, "{fine:?}");
        let again = reopen(&after);
        assert_eq!(stored(&again), stored(&after));
    }
}

#[test]
fn uniform_shapes_load_in_stock_classes() {
    let data = dataset(40, 240);
    let model = tiny("bert", Task::SequenceClassification, 241);
    let prune = Prune { shape: Shape::Uniform, ..short(0.5) };
    let (after, _) = run(&model, &prune, &data).expect("settled gates");
    assert!(after.loads_natively() || after.layers.iter().any(|l| l.attention.is_none()));
    assert_eq!(after.config.hidden, HIDDEN);
    for layer in &after.layers {
        assert_eq!(layer.attention.is_some(), layer.ffn.is_some());
    }
}

#[test]
fn threads_change_no_byte() {
    let data = dataset(24, 250);
    let model = tiny("mpnet", Task::SequenceClassification, 251);
    let prune = short(0.4);
    let with = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
        pool.install(|| stored(&run(&model, &prune, &data).expect("settled gates").0))
    };
    assert_eq!(with(1), with(3));
}

#[test]
fn gates_that_hover_are_refused() {
    let data = dataset(24, 260);
    let model = tiny("bert", Task::SequenceClassification, 261);
    // So slow that no gate gets anywhere, towards a target that units alone cannot reach.
    let prune = Prune { steps: 30, mask_rate: 0.12, warmup: 0.0, ..short(0.9) };
    let error = match run(&model, &prune, &data) {
        Ok((_, work)) => panic!("{:?}", work.notes),
        Err(error) => error.to_string(),
    };
    assert!(
        error.starts_with("the gates have not settled: sparsity 0.900 is asked for"),
        "{error}"
    );
}

#[test]
fn gates_that_all_closed_before_the_constraint_could_act_are_refused() {
    let data = dataset(24, 265);
    let model = tiny("bert", Task::SequenceClassification, 266);
    let prune = Prune { steps: 3, mask_rate: 10.0, warmup: 0.0, finetune: 1, ..short(0.4) };
    let error = match run(&model, &prune, &data) {
        Ok((_, work)) => panic!("{:?}", work.notes),
        Err(error) => error.to_string(),
    };
    // They do not hover: what is cut is what they are expected to leave.
    let found = "sparsity 0.400 is asked for, 0.96";
    assert!(error.contains(found) && error.contains(" and 0.95"), "{error}");
}

#[test]
fn states_that_are_answers_keep_their_width() {
    let data = dataset(40, 270);
    for task in [Task::Embedding, Task::Bare] {
        let model = tiny("bert", task, 271);
        let (after, _) = run(&model, &short(0.4), &data).expect("settled gates");
        assert_eq!(after.config.hidden, HIDDEN);
    }
}

#[test]
fn the_table_of_changes_shows_every_matrix() {
    let data = dataset(40, 280);
    let model = tiny("bert", Task::SequenceClassification, 281);
    let (_, work) = run(&model, &short(0.5), &data).expect("settled gates");
    let table = report::markdown_changes(&work.changes);
    assert!(table.contains("embeddings.word_embeddings"), "{table}");
}
