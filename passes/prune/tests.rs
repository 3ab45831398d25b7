//! What is cut, what that does to the answer, and what is repaired.

use super::scores::{self, Scores};
use super::*;
use crate::data::Calibration;
use crate::model::testing::*;
use crate::model::{FeedForward, Linear, Task, Weight, family};
use crate::report;
use crate::runtime::{Batch, Encoder, NoObserver, RunAttention, RunFeedForward};
use proptest::prelude::*;

fn context<'a>(model: &'a Model, calibration: Option<&'a Calibration>) -> Context<'a> {
    Context { calibration, seed: 3, ..Context::new(model) }
}

fn pruned(model: &Model, prune: &Prune, text: Option<&Calibration>) -> (Model, Vec<Change>) {
    let mut after = model.clone();
    let changes = prune.run(&mut after, &context(model, text)).expect("options in range").changes;
    after.validate().expect("parts that fit");
    (after, changes)
}

fn refused(prune: &Prune) -> String {
    let mut model = tiny("bert", Task::Bare, 1);
    let teacher = model.clone();
    prune.run(&mut model, &context(&teacher, None)).expect_err("out of range").to_string()
}

fn params(model: &Model) -> usize {
    model.layers.iter().map(cost::prunable).sum()
}

fn heads(model: &Model) -> Vec<Vec<usize>> {
    let heads = |l: &Layer| l.attention.as_ref().map_or(Vec::new(), |a| a.heads.clone());
    model.layers.iter().map(heads).collect()
}

fn units(model: &Model) -> Vec<usize> {
    model.layers.iter().map(|l| l.ffn.as_ref().map_or(0, FeedForward::units)).collect()
}

#[test]
fn no_sparsity_changes_no_byte() {
    let text = calibration(2, 1);
    for shape in [Shape::Layers, Shape::Uniform] {
        // As little as cuts nothing goes all the way through scores and repair.
        for sparsity in [0.0, 1e-9] {
            for text in [None, Some(&text)] {
                let model = tiny("mpnet", Task::MaskedLm, 3);
                let prune = Prune { sparsity, shape, ..Prune::default() };
                let (after, changes) = pruned(&model, &prune, text);
                assert_eq!(stored(&after), stored(&model));
                assert_eq!(changes, []);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    /// Widths are rounded to steps of eight units: half a step up or down in every layer. (`uniform`
    /// rounds to a unit before, which is another half.)
    #[test]
    fn what_is_asked_for_is_cut(
        family in 0..family::ALL.len(), seed in 0..1000u64, sparsity in 0.01..0.65f64, uniform in any::<bool>(),
    ) {
        let model = tiny(family::ALL[family].model_type, Task::Bare, seed);
        let shape = if uniform { Shape::Uniform } else { Shape::Layers };
        // Eight units of 24 and every head are the least that `uniform` keeps.
        let sparsity = if uniform { sparsity * 0.4 } else { sparsity };
        let (after, _) = pruned(&model, &Prune { sparsity, shape, ..Prune::default() }, None);
        let asked = sparsity * params(&model) as f64;
        let found = (params(&model) - params(&after)) as f64;
        let (_, unit, _) = sizes(&model);
        let allowed = LAYERS * unit * 9 / 2 + unit;
        prop_assert!((found - asked).abs() <= allowed as f64, "{asked} asked for, {found} cut");
        prop_assert!(units(&after).iter().all(|u| u % 8 == 0 && *u > 0));
        prop_assert!(heads(&after).iter().all(|h| !h.is_empty()));
        if uniform {
            prop_assert!(after.loads_natively());
            prop_assert_eq!(after.uniform_ffn(), Some(units(&after)[0]));
        }
    }
}

/// The model with nothing behind head 2 of layer 1 and behind units 1, 4, 7, … of layer 2.
fn with_idle_parts(family: &str, task: Task, seed: u64) -> Model {
    let mut model = tiny(family, task, seed);
    let zero = |linear: &mut Linear, idle: &dyn Fn(usize) -> bool| {
        let cols = linear.weight.cols();
        let tensor = linear.weight.dense().expect("dense");
        let mut values = tensor.to_f32().expect("floats").into_owned();
        (0..values.len()).filter(|i| idle(i % cols)).for_each(|i| values[i] = 0.0);
        let name = tensor.name.clone();
        let shape = tensor.shape.clone();
        let tensor = crate::checkpoint::Tensor::from_f32(name, &shape, &values, tensor.dtype);
        linear.weight = Weight::Dense(tensor);
    };
    let dim = model.config.head_dim;
    let attention = model.layers[1].attention.as_mut().expect("attention");
    zero(&mut attention.output, &|c| c / dim == 2);
    zero(&mut model.layers[2].ffn.as_mut().expect("a block").down, &|c| c % 3 == 1);
    model
}

fn assert_idle_parts_score_zero(scores: &Scores) {
    for (l, heads) in scores.heads.iter().enumerate() {
        for (h, score) in heads.iter().enumerate() {
            assert_eq!(*score == 0.0, (l, h) == (1, 2), "head {h} of layer {l}: {score}");
        }
    }
    for (l, units) in scores.units.iter().enumerate() {
        for (u, score) in units.iter().enumerate() {
            assert_eq!(*score == 0.0, l == 2 && u % 3 == 1, "unit {u} of layer {l}: {score}");
        }
    }
}

#[test]
fn what_goes_nowhere_goes_first() {
    for (family, task) in every() {
        let model = with_idle_parts(family, task, 4);
        let text = calibration(5, 2);
        assert_idle_parts_score_zero(&scores::from_weights(&model).expect("dense"));
        assert_idle_parts_score_zero(
            &scores::fisher(&model, &text, &context(&model, None)).expect("runs"),
        );
        // Just these: one head and eight units.
        let (head, unit, total) = sizes(&model);
        let sparsity = (head + 8 * unit) as f64 / total as f64 - 1e-6;
        for score in [Score::Weights, Score::Fisher] {
            let prune = Prune { sparsity, score, repair: false, ..Prune::default() };
            let (after, _) = pruned(&model, &prune, Some(&text));
            assert_eq!(heads(&after), [vec![0, 1, 2, 3], vec![0, 1, 3], vec![0, 1, 2, 3]]);
            assert_eq!(units(&after), [24, 24, 16], "{family} {task:?} {score:?}");
            let batch = batch(6, &[5, 2]);
            let moved = distance(&answers(&after, &batch, None), &answers(&model, &batch, None));
            assert!(moved < 1e-5, "{family} {task:?} {score:?}: {moved}");
        }
    }
}

/// The highest of what is left, and in the order of before.
#[test]
fn the_strongest_units_stay() {
    let model = tiny("bert", Task::Bare, 7);
    let scores = scores::from_weights(&model).expect("dense");
    for sparsity in [0.1, 0.3, 0.6] {
        for kept in search::by_layer(&model, &scores, sparsity).iter().zip(&scores.units) {
            let (kept, scores) = (&kept.0.units, kept.1);
            assert!(kept.windows(2).all(|w| w[0] < w[1]));
            let least = kept.iter().map(|&u| scores[u]).fold(f64::INFINITY, f64::min);
            let gone = (0..FFN).filter(|u| !kept.contains(u));
            assert!(gone.into_iter().all(|u| scores[u] <= least));
        }
    }
}

#[test]
fn fisher_scores_are_squared_gradients_by_text() {
    let model = tiny("electra", Task::SequenceClassification, 8);
    let text = calibration(9, 2);
    let found = scores::fisher(&model, &text, &context(&model, None)).expect("runs");
    let encoder = Encoder::new(&model).expect("a model that runs");
    let mut expected = [0.0f64; HEADS];
    for batch in &text.batches {
        let gradients =
            crate::train::fisher::mask_gradients(&encoder, batch, None, 3).expect("runs");
        for row in gradients.heads[1].chunks_exact(HEADS) {
            expected.iter_mut().zip(row).for_each(|(e, g)| *e += (*g as f64).powi(2));
        }
    }
    assert_eq!(found.heads[1], expected);
}

/// Squared distance of the sums before every LayerNorm from those of `teacher`, by block: each model on
/// its own states.
fn sum_errors(teacher: &Model, student: &Model, batches: &[Batch]) -> Vec<f64> {
    let shell = Encoder::shell(teacher).expect("a model that runs");
    let (activation, eps) = (teacher.config.activation, teacher.config.eps);
    let sums = |model: &Model, batch: &Batch| -> Vec<Vec<f32>> {
        let mut sums = Vec::new();
        let mut x = shell.embed(batch).expect("ids in range");
        for layer in &model.layers {
            let run =
                RunAttention::new(layer.attention.as_ref().expect("there"), eps).expect("floats");
            let context = shell.attention_context(&run, &x, batch, None, &mut |_, _, _| {}).context;
            sums.push(run.output.add(&context, &x));
            x = run.finish(&context, &x);
            let ffn = layer.ffn.as_ref().expect("there");
            let run = RunFeedForward::new(ffn, activation, eps).expect("floats");
            let units = run.units(&x);
            sums.push(run.down.add(&units, &x));
            x = run.finish(&units, &x);
        }
        sums
    };
    let mut errors = vec![0.0; 2 * LAYERS];
    for batch in batches {
        for ((error, t), s) in errors.iter_mut().zip(sums(teacher, batch)).zip(sums(student, batch))
        {
            *error += t.iter().zip(s).map(|(t, s)| ((t - s) as f64).powi(2)).sum::<f64>();
        }
    }
    errors
}

#[test]
fn repair_on_text_brings_the_sums_closer() {
    let text = calibration(10, 6);
    for family in family::ALL {
        let model = tiny(family.model_type, Task::Bare, 11);
        for shape in [Shape::Layers, Shape::Uniform] {
            let prune = Prune { sparsity: 0.25, shape, score: Score::Weights, repair: false };
            let (cut, _) = pruned(&model, &prune, Some(&text));
            let (repaired, _) = pruned(&model, &Prune { repair: true, ..prune }, Some(&text));
            assert_eq!((heads(&cut), units(&cut)), (heads(&repaired), units(&repaired)));
            let before = sum_errors(&model, &cut, &text.batches);
            let after = sum_errors(&model, &repaired, &text.batches);
            for (block, (b, a)) in before.iter().zip(&after).enumerate() {
                assert!(a < b || *b == 0.0, "{}, block {block}: {b} to {a}", family.model_type);
            }
            assert!(after.iter().sum::<f64>() < 0.8 * before.iter().sum::<f64>());
        }
    }
}

#[test]
fn repair_without_text_moves_what_is_expected_into_the_bias() {
    let batch = batch(12, &[12; 20]);
    let encoder_error = |before: &Model, after: &Model| {
        let states = |model: &Model| {
            let encoder = Encoder::new(model).expect("a model that runs");
            encoder.hidden(&batch, None, &mut NoObserver).expect("ids in range")
        };
        let pairs = states(before).into_iter().zip(states(after));
        pairs.map(|(b, a)| ((b - a) as f64).powi(2)).sum::<f64>()
    };
    let (mut with, mut without) = (0.0, 0.0);
    for seed in 0..10 {
        let model = tiny("bert", Task::Bare, 100 + seed);
        let prune = Prune { shape: Shape::Uniform, repair: false, ..Prune::default() };
        let (cut, _) = pruned(&model, &prune, None);
        let (repaired, _) = pruned(&model, &Prune { repair: true, ..prune }, None);
        let differs = |(a, b): (&Stored, &Stored)| (a != b).then(|| a.0.clone());
        let (a, b) = (stored(&cut), stored(&repaired));
        let moved: Vec<String> = a.iter().zip(&b).filter_map(differs).collect();
        let expected = (0..LAYERS).map(|l| format!("encoder.layer.{l}.output.dense.bias"));
        assert_eq!(moved, expected.collect::<Vec<_>>());
        with += encoder_error(&model, &repaired);
        without += encoder_error(&model, &cut);
    }
    assert!(with < without, "{with} with the repair, {without} without");
}

#[test]
fn changes_list_what_changed_and_nothing_else() {
    let text = calibration(13, 2);
    for (i, family) in family::ALL.iter().enumerate() {
        for repair in [false, true] {
            let model = tiny(family.model_type, Task::QuestionAnswering, 14 + i as u64);
            let prune = Prune { sparsity: 0.2, repair, ..Prune::default() };
            let (after, changes) = pruned(&model, &prune, Some(&text));
            let (b, a) = (stored(&model), stored(&after));
            let moved = b.iter().zip(&a).filter(|(b, a)| b != a).map(|(b, _)| b.0.as_str());
            let mut expected: Vec<&str> = moved.filter_map(|n| n.strip_suffix(".weight")).collect();
            let mut found: Vec<&str> = changes.iter().map(|c| c.tensor.as_str()).collect();
            expected.sort_unstable();
            found.sort_unstable();
            assert_eq!(found, expected, "{}", family.model_type);
        }
    }
}

#[test]
fn the_table_of_changes_is_for_people() {
    let model = with_idle_parts("bert", Task::Bare, 15);
    let prune = Prune { sparsity: 0.09, score: Score::Weights, repair: false, ..Prune::default() };
    let (_, changes) = pruned(&model, &prune, None);
    insta::assert_snapshot!(report::markdown_changes(&changes), @r"
    | matrix | before | after | error |
    |---|---|---|---|
    | encoder.layer.1.attention.self.query | f32 16 x 16 | f32 12 x 16 | - |
    | encoder.layer.1.attention.self.key | f32 16 x 16 | f32 12 x 16 | - |
    | encoder.layer.1.attention.self.value | f32 16 x 16 | f32 12 x 16 | - |
    | encoder.layer.1.attention.output.dense | f32 16 x 16 | f32 16 x 12 | - |
    | encoder.layer.2.intermediate.dense | f32 24 x 16 | f32 16 x 16 | - |
    | encoder.layer.2.output.dense | f32 16 x 24 | f32 16 x 16 | - |
    ");
}

#[test]
fn a_pruned_model_is_read_back_as_it_was() {
    let text = calibration(16, 2);
    for (i, (family, task)) in every().enumerate() {
        let dtype = [crate::checkpoint::Dtype::F32, crate::checkpoint::Dtype::F16][i % 2];
        let model = parts(family, task, 17).stored_as(dtype).open();
        let prune = Prune { sparsity: 0.4, ..Prune::default() };
        let (once, _) = pruned(&model, &prune, Some(&text));
        let again = reopen(&once);
        assert_eq!(stored(&again), stored(&once), "{family} {task:?}");
        let batch = batch(18, &[6, 3]);
        assert_eq!(answers(&again, &batch, None), answers(&once, &batch, None));
        assert!(once.tensors().iter().all(|t| t.dtype == dtype));
        // And what was cut can be cut again.
        let (twice, _) = pruned(&again, &Prune { sparsity: 0.2, ..prune }, Some(&text));
        assert!(params(&twice) < params(&once));
        assert_eq!(stored(&reopen(&twice)), stored(&twice));
    }
}

#[test]
fn threads_change_no_byte() {
    let text = calibration(19, 5);
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
        pool.install(|| {
            let model = tiny("ernie", Task::SequenceClassification, 20);
            stored(&pruned(&model, &Prune::default(), Some(&text)).0)
        })
    };
    assert_eq!(run(1), run(2));
}

#[test]
fn layers_without_a_sublayer_are_left_alone() {
    let text = calibration(21, 2);
    let mut model = tiny("distilbert", Task::Bare, 22);
    model.layers[0].ffn = None;
    model.layers[2].attention = None;
    for text in [None, Some(&text)] {
        for shape in [Shape::Layers, Shape::Uniform] {
            let (after, _) = pruned(&model, &Prune { shape, ..Prune::default() }, text);
            assert!(after.layers[0].ffn.is_none() && after.layers[2].attention.is_none());
            assert!(params(&after) < params(&model));
        }
    }
}

#[test]
fn refusals_name_the_option_and_its_range() {
    let with = |sparsity| Prune { sparsity, ..Prune::default() };
    insta::assert_snapshot!(refused(&with(1.0)), @"pass `prune`: `sparsity` is 1, expected a number in [0, 1)");
    insta::assert_snapshot!(refused(&with(f64::NAN)), @"pass `prune`: `sparsity` is NaN, expected a number in [0, 1)");
    insta::assert_snapshot!(refused(&with(-0.1)), @"pass `prune`: `sparsity` is -0.1, expected a number in [0, 1)");
    insta::assert_snapshot!(refused(&Prune { shape: Shape::Uniform, ..with(0.5) }), @"pass `prune`: `sparsity` is 0.5, expected at most 0.278 with shape=uniform, which keeps all heads");
    insta::assert_snapshot!(refused(&Prune { score: Score::Fisher, ..with(0.5) }), @r#"pass `prune`: `score` is "fisher", without calibration text, expected a text by --calib, or score=weights"#);
}
