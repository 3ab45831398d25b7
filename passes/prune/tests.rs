//! What is cut, what that does to the answer, and what is repaired.

use super::rearrange::rearrange;
use super::scores::{self, Scores};
use super::*;
use crate::data::Calibration;
use crate::model::testing::*;
use crate::model::{FeedForward, Linear, Score, Task, TokenSchedule, Weight, family};
use crate::report;
use crate::runtime::{Batch, Encoder, Everything, RunAttention, RunFeedForward};
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

/// Parameters of one head and of one unit, and of all that can be cut.
fn sizes(model: &Model) -> (usize, usize, usize) {
    let hidden = model.config.hidden;
    (model.config.head_dim * (4 * hidden + 3), 2 * hidden + 1, params(model))
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
    let model = tiny("mpnet", Task::MaskedLm, 3);
    let modes = [Mode::Auto, Mode::Weights, Mode::Text];
    for (i, mode) in (0..32 * modes.len()).zip(modes.into_iter().cycle()) {
        let on = |bit: usize| i >> bit & 1 == 1;
        let prune = Prune {
            // As little as cuts nothing goes all the way through scores and repair.
            sparsity: if on(0) { 1e-9 } else { 0.0 },
            shape: if on(1) { Shape::Uniform } else { Shape::Layers },
            mode,
            rounds: if on(2) { 3 } else { 1 },
            rearrange: if on(3) { Rearrange::Always } else { Rearrange::Never },
            repair: on(4),
            ..Prune::default()
        };
        let texts = [Some(&text), None];
        for text in &texts[..if mode == Mode::Text { 1 } else { 2 }] {
            let (after, changes) = pruned(&model, &prune, *text);
            assert_eq!(stored(&after), stored(&model), "{prune:?}");
            assert_eq!(changes, []);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    /// Widths are rounded to steps of eight units: half a step up or down in every layer. (`uniform`
    /// rounds to a unit before, which is another half.) A head that matters less than the few units that are
    /// too many goes instead of them.
    #[test]
    fn what_is_asked_for_is_cut(
        family in 0..family::TRAINED.len(), seed in 0..1000u64, sparsity in 0.01..0.65f64, uniform in any::<bool>(),
        rounds in 1..5usize,
    ) {
        let model = tiny(family::TRAINED[family].model_type, Task::Bare, seed);
        let shape = if uniform { Shape::Uniform } else { Shape::Layers };
        // Eight units of 24 and every head are the least that `uniform` keeps.
        let sparsity = if uniform { sparsity * 0.4 } else { sparsity };
        let prune = Prune { sparsity, shape, rounds, ..Prune::default() };
        let (text, by_text) = (calibration(seed, 1), seed % 2 == 0);
        let (after, _) = pruned(&model, &prune, by_text.then_some(&text));
        let asked = sparsity * params(&model) as f64;
        let found = (params(&model) - params(&after)) as f64;
        let (head, unit, _) = sizes(&model);
        let allowed = LAYERS * unit * 9 / 2 + head;
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
            &scores::fisher(&model, &text, 0, &context(&model, None)).expect("runs"),
        );
        // Just these: one head and eight units.
        let (head, unit, total) = sizes(&model);
        let sparsity = (head + 8 * unit) as f64 / total as f64 - 1e-6;
        for (mode, rounds) in [(Mode::Weights, 1), (Mode::Text, 1), (Mode::Text, 2)] {
            let prune = Prune { sparsity, mode, rounds, repair: false, ..Prune::default() };
            let (after, _) = pruned(&model, &prune, Some(&text));
            assert_eq!(heads(&after), [vec![0, 1, 2, 3], vec![0, 1, 3], vec![0, 1, 2, 3]]);
            assert_eq!(units(&after), [24, 24, 16], "{family} {task:?} {prune:?}");
            let batch = batch(6, &[5, 2]);
            let moved = distance(&answers(&after, &batch, None), &answers(&model, &batch, None));
            assert!(moved < 1e-5, "{family} {task:?} {prune:?}: {moved}");
        }
    }
}

/// The highest of what is left, and in the order of before.
#[test]
fn the_strongest_units_stay() {
    let model = tiny("bert", Task::Bare, 7);
    let scores = scores::from_weights(&model).expect("dense");
    for sparsity in [0.1, 0.3, 0.6] {
        let budget = Budget::of_blocks(&model, sparsity);
        let kept = search::by_layer(&model, &scores, &budget, budget.after(1, 1), 8);
        for (kept, scores) in kept.iter().zip(&scores.units) {
            let kept = &kept.units;
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
    let found = scores::fisher(&model, &text, 0, &context(&model, None)).expect("runs");
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
    assert!(found.gradients.heads.iter().chain(&found.gradients.units).all(Vec::is_empty));
}

#[test]
fn gradients_are_kept_of_as_many_texts_as_asked_for() {
    let model = tiny("bert", Task::SequenceClassification, 23);
    let text = calibration(24, 4);
    let texts: usize = text.batches.iter().map(|b| b.texts()).sum();
    assert!(texts > 3, "a text to leave out");
    for rows in [1, 3, texts, 2 * texts] {
        let found = scores::fisher(&model, &text, rows, &context(&model, None)).expect("runs");
        for (heads, units) in found.gradients.heads.iter().zip(&found.gradients.units) {
            assert_eq!(heads.len(), rows.min(texts) * HEADS);
            assert_eq!(units.len(), rows.min(texts) * FFN);
        }
    }
    // All of them add up to the scores.
    let found = scores::fisher(&model, &text, texts, &context(&model, None)).expect("runs");
    let squares = |u: usize| {
        let column = found.gradients.units[2].iter().skip(u).step_by(FFN);
        column.map(|g| (*g as f64).powi(2)).sum::<f64>()
    };
    assert_eq!(found.units[2], (0..FFN).map(squares).collect::<Vec<_>>());
}

#[test]
fn units_that_cancel_go_together() {
    // By text.
    let gradients = [
        [1.0, 2.0, -2.0, 3.0], //
        [1.0, 3.0, -3.0, -1.0],
    ];
    let scores = [2.0, 13.0, 13.0, 10.0];
    let stay = |kept: &[usize]| rearrange(gradients.as_flattened(), &scores, kept);
    // ‖0 + 3‖² = 16; 2 comes and 3 is taken out: ‖0 + 2‖² = 5; 1 comes and 0 is taken out: ‖1 + 2‖² = 0.
    assert_eq!(stay(&[1, 2]), best(gradients.as_flattened(), 4, 2));
    assert_eq!(stay(&[1, 2]), [0, 3]);
    assert_eq!(stay(&[0, 1, 2, 3]), [0, 1, 2, 3]);
    assert_eq!(stay(&[1, 2, 3]), [1, 2, 3]);
    assert_eq!(stay(&[]), [0usize; 0]);
}

/// `‖Σ g_i‖²` over all that is not in `kept`.
fn left(gradients: &[f32], n: usize, kept: &[usize]) -> f64 {
    let gone = |row: &[f32]| {
        (0..n).filter(|i| !kept.contains(i)).map(|i| row[i] as f64).sum::<f64>().powi(2)
    };
    gradients.chunks_exact(n).map(gone).sum()
}

/// The `count` that leave the least, of all there are.
fn best(gradients: &[f32], n: usize, count: usize) -> Vec<usize> {
    let sets = (0..1usize << n).filter(|set| set.count_ones() as usize == count);
    let sets = sets.map(|set| (0..n).filter(|i| set >> i & 1 == 1).collect::<Vec<_>>());
    sets.min_by(|a, b| left(gradients, n, a).total_cmp(&left(gradients, n, b))).expect("a set")
}

proptest! {
    /// One pass over the units is a heuristic: it ends between where it started and the best there is.
    #[test]
    fn rearranging_is_never_worse_than_not(
        n in 1..8usize,
        numbers in proptest::collection::vec(-1.0..1.0f32, 8 * 5),
        texts in 1..5usize,
        count in 0..8usize,
    ) {
        let gradients = &numbers[..texts * n];
        let square = |i: usize| gradients.iter().skip(i).step_by(n).map(|g| (*g as f64).powi(2)).sum();
        let scores: Vec<f64> = (0..n).map(square).collect();
        let mut order: Vec<usize> = (0..n).collect();
        order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
        let mut start = order[..count.min(n)].to_vec();
        start.sort_unstable();
        let found = rearrange(gradients, &scores, &start);
        prop_assert_eq!(found.len(), start.len());
        prop_assert!(found.windows(2).all(|w| w[0] < w[1]) && found.iter().all(|&i| i < n));
        let least = left(gradients, n, &best(gradients, n, start.len()));
        let now = left(gradients, n, &found);
        prop_assert!(now <= left(gradients, n, &start) + 1e-5, "{start:?} to {found:?}");
        prop_assert!(now >= least - 1e-5);
    }
}

#[test]
fn rearranging_keeps_the_counts() {
    let model = tiny("bert", Task::SequenceClassification, 25);
    let text = calibration(26, 4);
    for shape in [Shape::Layers, Shape::Uniform] {
        let prune = Prune {
            shape,
            rounds: 1,
            rearrange: Rearrange::Never,
            repair: false,
            ..Prune::default()
        };
        let (without, _) = pruned(&model, &prune, Some(&text));
        let (with, _) =
            pruned(&model, &Prune { rearrange: Rearrange::Always, ..prune }, Some(&text));
        assert_eq!(units(&with), units(&without));
        let counts = |m: &Model| heads(m).iter().map(Vec::len).collect::<Vec<_>>();
        assert_eq!(counts(&with), counts(&without));
        assert_ne!(stored(&with), stored(&without));
    }
}

/// The cut, and the repair, of each round start from the original's weights.
#[test]
fn a_round_that_cuts_nothing_changes_nothing() {
    let model = tiny("bert", Task::SequenceClassification, 27);
    let text = calibration(28, 4);
    // Half a step of units: only the last round reaches it.
    let (_, unit, total) = sizes(&model);
    let sparsity = (LAYERS * 5 * unit) as f64 / total as f64;
    for repair in [false, true] {
        let one = Prune {
            sparsity,
            shape: Shape::Uniform,
            rounds: 1,
            rearrange: Rearrange::Never,
            repair,
            ..Prune::default()
        };
        let once = pruned(&model, &one, Some(&text)).0;
        assert_eq!(units(&once), [16; LAYERS]);
        let two = Prune { rounds: 2, ..one };
        assert_eq!(stored(&pruned(&model, &two, Some(&text)).0), stored(&once));
    }
}

#[test]
fn the_note_says_what_was_done() {
    let model = tiny("bert", Task::SequenceClassification, 29);
    let text = calibration(30, 4);
    let note = |prune: Prune, text| {
        let work = prune.run(&mut model.clone(), &context(&model, text)).expect("runs");
        work.notes.join(" ")
    };
    let plain = Prune { rounds: 1, rearrange: Rearrange::Never, repair: false, ..Prune::default() };
    let full = Prune { rounds: 2, rearrange: Rearrange::Always, repair: true, ..Prune::default() };
    let weights = Prune { mode: Mode::Weights, ..full.clone() };
    insta::assert_snapshot!(note(plain.clone(), None), @"mode weights: variance that each head and unit adds, no repair");
    insta::assert_snapshot!(note(full.clone(), None), @"mode weights: variance that each head and unit adds, repair of biases");
    insta::assert_snapshot!(note(weights, Some(&text)), @"mode weights: variance that each head and unit adds, least-squares repair");
    insta::assert_snapshot!(note(full, Some(&text)), @"mode text: Fisher scores of 32 texts (random tokens, no labels), 2 rounds, rearranged, least-squares repair");
    assert_eq!(note(Prune { sparsity: 0.0, ..plain }, None), "");
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
    for family in family::TRAINED {
        let model = tiny(family.model_type, Task::Bare, 11);
        for shape in [Shape::Layers, Shape::Uniform] {
            let prune = Prune {
                sparsity: 0.25,
                shape,
                mode: Mode::Weights,
                rounds: 1,
                repair: false,
                ..Prune::default()
            };
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
            encoder.hidden(&batch, None, &mut Everything).expect("ids in range").x
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
    for (i, family) in family::TRAINED.iter().enumerate() {
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
    let prune = Prune { sparsity: 0.09, mode: Mode::Weights, repair: false, ..Prune::default() };
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
    let model = tiny("ernie", Task::SequenceClassification, 20);
    let run = |threads, rounds| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
        let prune = Prune { rounds, rearrange: Rearrange::Always, ..Prune::default() };
        pool.install(|| stored(&pruned(&model, &prune, Some(&text)).0))
    };
    for rounds in [1, 3] {
        assert_eq!(run(1, rounds), run(2, rounds));
    }
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
fn a_schedule_of_tokens_outlives_no_head() {
    let mut model = tiny("bert", Task::Bare, 4);
    let mut tokens = TokenSchedule::keep_all(LAYERS, Score::First, model.reads());
    tokens.layers[0] = Some(vec![true, false]);
    model.tokens = Some(tokens);
    let same = pruned(&model, &Prune { sparsity: 0.0, ..Prune::default() }, None).0;
    assert_eq!(same.tokens, model.tokens);
    let error = Prune::default().run(&mut model.clone(), &context(&model, None));
    insta::assert_snapshot!(error.expect_err("a schedule"), @"the model drops tokens by a schedule, but that was found for the heads that are there; prune the checkpoint as it was before `tokens`, then run `tokens`");
}

#[test]
fn refusals_name_the_option_and_its_range() {
    let with = |sparsity| Prune { sparsity, ..Prune::default() };
    insta::assert_snapshot!(refused(&with(1.0)), @"pass `prune`: `sparsity` is 1, expected a number in [0, 1)");
    insta::assert_snapshot!(refused(&with(f64::NAN)), @"pass `prune`: `sparsity` is NaN, expected a number in [0, 1)");
    insta::assert_snapshot!(refused(&with(-0.1)), @"pass `prune`: `sparsity` is -0.1, expected a number in [0, 1)");
    insta::assert_snapshot!(refused(&Prune { shape: Shape::Uniform, ..with(0.5) }), @"pass `prune`: `sparsity` is 0.5, expected at most 0.278 with shape=uniform, which keeps all heads");
    let flops = Prune { shape: Shape::Uniform, flops: 0.5, ..Prune::default() };
    assert!(refused(&flops).starts_with("pass `prune`: `flops` is 0.5, expected at least 0."));
    insta::assert_snapshot!(refused(&Prune { mode: Mode::Text, ..with(0.5) }), @r#"pass `prune`: `mode` is "text", without calibration text, expected a text by --calib, or mode=weights"#);
    insta::assert_snapshot!(refused(&Prune { mode: Mode::Train, ..with(0.5) }), @r#"pass `prune`: `mode` is "train", without text to train on, expected a file by --data, or mode=text"#);
    let other = Prune::default;
    insta::assert_snapshot!(refused(&Prune { rounds: 101, ..other() }), @"pass `prune`: `rounds` is 101, expected a number from 0 to 100");
    insta::assert_snapshot!(refused(&Prune { round_to: 0, ..other() }), @"pass `prune`: `round_to` is 0, expected a number from 1 to 1024");
    insta::assert_snapshot!(refused(&Prune { flops: 1.5, ..other() }), @"pass `prune`: `flops` is 1.5, expected a share that is left, in (0, 1]");
    insta::assert_snapshot!(refused(&Prune { speedup: 0.5, ..other() }), @"pass `prune`: `speedup` is 0.5, expected a factor from 1 to 1000");
    insta::assert_snapshot!(refused(&Prune { flops: 0.5, ..with(0.5) }), @"pass `prune`: `flops` is given beside sparsity, expected one target");
    insta::assert_snapshot!(refused(&Prune { masks: "a".into(), params: 9, ..other() }), @"pass `prune`: `params` is given beside masks, expected one target");
    insta::assert_snapshot!(refused(&Prune { masks: "a".into(), mode: Mode::Train, ..other() }), @"pass `prune`: `mode` is train, beside masks, expected mode=auto where masks are given");
    insta::assert_snapshot!(refused(&Prune { batch: 0, ..other() }), @"pass `prune`: `batch` is 0, expected a number from 1 to 65536");
    insta::assert_snapshot!(refused(&Prune { warmup: 2.0, ..other() }), @"pass `prune`: `warmup` is 2, expected a number in [0, 1]");
    insta::assert_snapshot!(refused(&Prune { mask_rate: -1.0, ..other() }), @"pass `prune`: `mask_rate` is -1, expected a number in [0, 10]");
    insta::assert_snapshot!(refused(&Prune { dropout: 1.0, ..other() }), @"pass `prune`: `dropout` is 1, expected a number in [0, 1)");
    insta::assert_snapshot!(refused(&Prune { temperature: 0.0, ..other() }), @"pass `prune`: `temperature` is 0, expected a number in (0, 100]");
    insta::assert_snapshot!(refused(&Prune { prediction: 0.0, hidden: 0.0, ..other() }), @"pass `prune`: `prediction` is 0, as `hidden` is, expected one above 0");
}
