//! What packing costs, what it stores, and that the packed model is the model that is read back.

use super::weights::{Place, TokenWeights};
use super::*;
use crate::checkpoint::{Dtype, Tensor, file_bytes, write_file};
use crate::data::Calibration;
use crate::model::testing::{self, *};
use crate::model::{LowRank, Score, Task, TokenSchedule, family};
use crate::report;
use crate::runtime::kernels::{Mat, MatMut, product};
use crate::runtime::{Encoder, Observer, Site};
use crate::train::moments::Moments;
use proptest::prelude::*;
use std::collections::BTreeMap;

/// Standard normal numbers, always the same.
pub fn gaussian(n: usize) -> Vec<f32> {
    testing::gaussian(n, 7)
}

fn packed(model: &Model, binarize: &Binarize, text: Option<&Calibration>) -> (Model, Vec<Change>) {
    let mut after = model.clone();
    let cx = Context { calibration: text, ..Context::new(model) };
    let changes = binarize.run(&mut after, &cx).expect("options in range").changes;
    after.validate().expect("parts that fit");
    (after, changes)
}

fn matrix(rows: usize, cols: usize, seed: u64) -> Weight {
    let values = testing::gaussian(rows * cols, seed);
    let tensor = Tensor::from_f32("w.weight", &[rows, cols], &values, Dtype::F32);
    Weight::Dense(tensor)
}

fn encoded(options: &Binarize, weight: &Weight) -> (Weight, f64) {
    let w = weight.to_f32().expect("floats");
    options.fit(weight, &w, options.uniform(weight), None).expect("a form that fits")
}

fn metric(seed: u64, width: usize) -> Metric {
    Metric::new(correlated(seed, 4 * width, width).0, 0.01).expect("finite inputs")
}

/// `tr(E·H·Eᵀ)`, `E = w − approximation`; `‖E‖²` without a metric.
fn loss(w: &[f32], approximation: &[f32], cols: usize, metric: Option<&Metric>) -> f64 {
    let error: Vec<f64> = w.iter().zip(approximation).map(|(a, b)| *a as f64 - *b as f64).collect();
    let Some(metric) = metric else { return error.iter().map(|e| e * e).sum() };
    let row = |e: &[f64]| {
        let weighted =
            |j: usize| e.iter().zip(&metric.h[j * cols..]).map(|(e, h)| e * *h as f64).sum::<f64>();
        e.iter().enumerate().map(|(j, e)| e * weighted(j)).sum::<f64>()
    };
    error.chunks_exact(cols).map(row).sum()
}

fn dense(low: &LowRank, rows: usize, cols: usize) -> Vec<f32> {
    let mut out = vec![0.0; rows * cols];
    let (u, v) = (Mat::new(&low.u, rows, low.rank), Mat::new(&low.v, low.rank, cols));
    product(MatMut::new(&mut out, rows, cols), u, v, 1.0);
    out
}

/// BiPFT notes, §9 (e).
#[test]
fn inputs_whose_squares_are_beyond_f32_are_refused() {
    let mut parts = parts("bert", Task::SequenceClassification, 98);
    let name = "bert.embeddings.LayerNorm.weight";
    let norm = parts.tensor(name);
    let values: Vec<f32> = norm.to_f32().expect("floats").iter().map(|x| x * 1e25).collect();
    *norm = Tensor::from_f32(name, &norm.shape, &values, Dtype::F32);
    let (model, text) = (parts.open(), calibration(99, 2));
    let cx = Context { calibration: Some(&text), ..Context::new(&model) };
    let options = Binarize { aim: 0.0, ..Binarize::default() };
    for options in [options.clone(), Binarize { bits: 4.0, ..options }] {
        let refused = options.run(&mut model.clone(), &cx).unwrap_err().to_string();
        assert!(refused.contains("beyond f32") && refused.contains("--calib none"), "{refused}");
        options.run(&mut model.clone(), &Context::new(&model)).expect("weights alone");
    }
}

#[test]
fn a_residual_of_full_rank_leaves_nothing() {
    for (rows, cols) in [(12, 20), (20, 12), (16, 16), (1, 9), (40, 3)] {
        let e = testing::gaussian(rows * cols, 1);
        let weighted = metric(2, cols);
        for metric in [None, Some(&weighted)] {
            let rank = rows.min(cols);
            let low = residual::low_rank(&e, (rows, cols), rank, metric);
            assert_eq!((low.u.len(), low.v.len()), (rows * rank, rank * cols));
            let left = loss(&e, &dense(&low, rows, cols), cols, metric);
            let all = loss(&e, &vec![0.0; e.len()], cols, metric);
            // What f16 takes of the factors.
            assert!(left < 1e-6 * all, "{rows} x {cols}: {left} of {all}");
        }
    }
}

/// BiPFT notes, §9 (d): against the singular values of `E·S`, `S·Sᵀ = H`.
#[test]
fn a_residual_is_nearly_the_best_of_its_rank() {
    for (rows, cols, rank) in [(48, 40, 4), (40, 96, 16), (96, 64, 1), (64, 64, 24)] {
        // Without structure the spectrum is flat: the hardest case for an iteration.
        let e = testing::gaussian(rows * cols, 3 + rank as u64);
        let weighted = metric(4, cols);
        for metric in [None, Some(&weighted)] {
            let h = |i: usize, j: usize| match metric {
                Some(m) => m.h[i * cols + j] as f64,
                None => (i == j) as u8 as f64,
            };
            let factor =
                faer::Mat::from_fn(cols, cols, h).llt(faer::Side::Lower).expect("positive");
            let e_mat = faer::Mat::from_fn(rows, cols, |i, j| e[i * cols + j] as f64);
            let values = (e_mat * factor.L()).singular_values().expect("an SVD");
            let best: f64 = values[rank..].iter().map(|s| s * s).sum();
            let low = residual::low_rank(&e, (rows, cols), rank, metric);
            let found = loss(&e, &dense(&low, rows, cols), cols, metric);
            let over = found / best - 1.0;
            assert!((-1e-4..0.005).contains(&over), "{rows} x {cols}, rank {rank}: {over} over");
        }
    }
}

#[test]
fn compensation_pays_when_inputs_depend_on_each_other() {
    let (rows, cols) = (24, 48);
    for seed in 0..4 {
        let w = testing::gaussian(rows * cols, seed);
        let metric = metric(10 + seed, cols);
        for (planes, group) in [(1, cols), (2, cols), (2, 20), (3, cols)] {
            let nearest = Codes::fit(&w, (rows, cols), planes, group);
            let pushed = nearest.clone().compensate(&w, &metric.factor, &metric.order);
            let of = |codes: &Codes| loss(&w, &codes.to_dense(), cols, Some(&metric));
            let (before, after) = (of(&nearest), of(&pushed));
            assert!(after < 0.8 * before, "{planes} planes of {group}: {before} to {after}");
            // It pays in the output, and costs in the weights.
            assert!(
                loss(&w, &pushed.to_dense(), cols, None)
                    > loss(&w, &nearest.to_dense(), cols, None)
            );
            assert_eq!(nearest.scales(), pushed.scales(), "scales stay");
        }
    }
}

#[test]
fn relative_errors_are_what_they_say() {
    let (rows, cols) = (6, 10);
    let w = testing::gaussian(60, 20);
    let q = Codes::fit(&w, (rows, cols), 1, cols).pack("w".into(), None);
    let exact = Codes::fit(&[0.5; 60], (rows, cols), 1, cols).pack("w".into(), None);
    let metric = metric(22, cols);
    let zero = vec![0.0; rows * cols];
    for metric in [None, Some(&metric)] {
        let error = |w: &[f32], q: &Binary| {
            let add_row = |row: usize, out: &mut [f32]| q.add_row(row, out);
            residual::relative_error(w, (rows, cols), add_row, metric)
        };
        let expected = loss(&w, &q.to_dense(), cols, metric) / loss(&w, &zero, cols, metric);
        let found = error(&w, &q);
        assert!((found / expected - 1.0).abs() < 1e-4, "{found}, {expected}");
        assert_eq!(error(&[0.5; 60], &exact), 0.0);
        assert_eq!(error(&zero, &exact), 0.0, "nothing to lose");
    }
    // The factor is one of the inverse: U·P·H·Pᵀ·Uᵀ = 1.
    let (u, order) = (&metric.factor, &metric.order);
    let h = |i: usize, j: usize| metric.h[order[i] * cols + order[j]] as f64;
    for (i, j) in (0..cols).flat_map(|i| (0..cols).map(move |j| (i, j))) {
        let value: f64 = (0..cols)
            .flat_map(|k| (0..cols).map(move |l| (k, l)))
            .map(|(k, l)| u[i * cols + k] as f64 * h(k, l) * u[j * cols + l] as f64)
            .sum();
        assert!((value - (i == j) as u8 as f64).abs() < 1e-3, "{i} {j}: {value}");
    }
    assert!(order.windows(2).all(|o| metric.h[o[0] * (cols + 1)] >= metric.h[o[1] * (cols + 1)]));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    /// BiPFT notes, §6.3 and §9 (i), for one matrix in a file of its own.
    #[test]
    fn a_file_is_as_long_as_the_formula_says(
        rows in 1..20usize, cols in 1..80usize, planes in 1..5usize, rank in 0..6usize, group in 0..40usize,
    ) {
        let group = if group < 8 { 0 } else { group };
        let options = Binarize { planes, rank, group, ..Binarize::default() };
        let weight = encoded(&options, &matrix(rows, cols, 30)).0;
        let Weight::Binary(binary) = &weight else { panic!("{weight:?}") };
        let groups = if group == 0 { 1 } else { cols.div_ceil(group) };
        let rank = rank.min(rows).min(cols);
        let scale = if binary.scale_dtype == Dtype::F16 { 2 } else { 4 };
        let words = planes * rows * cols.div_ceil(32);
        let expected = 4 * words + scale * planes * rows * groups + 2 * rank * (rows + cols) + 16;
        prop_assert_eq!(weight.bytes(), expected);
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("w.safetensors");
        write_file(&path, &weight.tensors(), &|| false).expect("a file");
        let file = std::fs::read(&path).expect("a file");
        let header = u64::from_le_bytes(file[..8].try_into().expect("8 bytes")) as usize;
        prop_assert_eq!(file.len(), 8 + header + expected);
    }
}

/// BiPFT notes, §9 (h): the first plane alone is a coarser matrix. Where one weight stands out, greedy
/// scales rise, and where planes repeat each other they stay as they are.
#[test]
fn scales_fall_from_plane_to_plane() {
    let falls = |s: &[f32]| s.windows(2).all(|s| s[0] >= s[1]) && s.iter().all(|&s| s >= 0.0);
    let outlier = Codes::fit(&[0.0, 0.0, 0.0, 4.0], (1, 4), 3, 4);
    assert!(falls(outlier.scales()), "{outlier:?}");
    for (seed, cols) in (0..200).flat_map(|seed| [4, 12, 33].map(|cols| (seed, cols))) {
        for planes in 2..=4 {
            let codes = Codes::fit(&testing::gaussian(cols, seed), (1, cols), planes, 8);
            assert!(codes.scales().chunks(planes).all(falls), "{codes:?}");
        }
    }
}

#[test]
fn another_plane_never_hurts_a_lone_weight() {
    let mut w = [0.0; 11];
    w[0] = 0.4;
    for planes in 2..=4 {
        let found = Codes::fit(&w, (1, 11), planes, 11).to_dense();
        assert!(loss(&w, &found, 11, None) < 1e-9, "{planes} planes: {found:?}");
    }
}

/// At any rate, by text or without, the model in memory is the model that is read back.
#[test]
fn two_factors_are_packed_once_and_more_bits_never_hurt() {
    let text = calibration(80, 2);
    let texts = batch(81, &[6, 1, 9]);
    for (family, task) in [("bert", Task::Bare), ("electra", Task::SequenceClassification)] {
        let model = parts_of(family, task, 82, 48).open();
        for text in [None, Some(&text)] {
            let of = |rate| {
                let options = Binarize { form: Form::Double, rate, head: 2, ..Binarize::default() };
                packed(&model, &options, text)
            };
            let (after, changes) = of(1.5);
            assert!(changes[0].after.form.starts_with("double(rank="), "{}", changes[0].after.form);
            let again = reopen(&after);
            assert_eq!(answers(&again, &texts, None), answers(&after, &texts, None));
            assert_eq!(stored(&again), stored(&after));
            assert_eq!(mean_error(&of(0.0).1), mean_error(&changes), "1.5 is what 0 stands for");
            assert!(mean_error(&of(4.0).1) < mean_error(&changes));
        }
    }
}

#[test]
fn layers_round_their_inputs_and_tables_do_not() {
    let model = tiny("bert", Task::SequenceClassification, 83);
    for (activations, expected) in
        [(8, Activations::Int8), (4, Activations::Int4), (32, Activations::Exact)]
    {
        let options = Binarize { activations, embeddings: 2, ..Binarize::default() };
        let (after, _) = packed(&model, &options, None);
        let told = |model: &Model| -> Vec<Activations> {
            let linears = model.layers.iter().flat_map(|l| l.linears());
            linears.map(|(_, l)| l.activations).collect()
        };
        assert_eq!(told(&after), vec![expected; 6 * LAYERS]);
        assert_eq!(told(&reopen(&after)), told(&after));
        let mut head = after.head.clone();
        assert!(head.linears_mut().iter().all(|l| l.activations == Activations::Exact));
        let (after, _) = packed(&model, &Binarize { head: 1, ..options }, None);
        let mut head = after.head.clone();
        assert!(head.linears_mut().iter().all(|l| l.activations == expected));
    }
}

#[test]
fn a_residual_in_int8_takes_half_the_bytes_and_loses_next_to_nothing() {
    let text = calibration(84, 2);
    let model = parts_of("bert", Task::Bare, 85, 48).open();
    let texts = batch(86, &[5, 8]);
    for text in [None, Some(&text)] {
        let of =
            |factors| packed(&model, &Binarize { rank: 4, factors, ..Binarize::default() }, text);
        let ((_, before), (int8, after)) = (of(Factors::F16), of(Factors::Int8));
        let (f16_error, int8_error) = (mean_error(&before), mean_error(&after));
        assert!((int8_error / f16_error - 1.0).abs() < 0.05, "{f16_error} {int8_error}");
        for (f16, int8) in before.iter().zip(&after) {
            // Of `rank · (rows + cols)` numbers a byte each, less a scale a rank direction and side.
            let [rows, cols] = f16.after.shape;
            let saved = f16.after.bytes as i64 - int8.after.bytes as i64;
            let scales = 4 * (rows + cols) as i64 - saved;
            assert!((16..=32).contains(&scales), "{}: {saved} bytes saved", f16.tensor);
        }
        assert_eq!(stored(&reopen(&int8)), stored(&int8));
        assert_eq!(answers(&reopen(&int8), &texts, None), answers(&int8, &texts, None));
    }
}

/// What is left of the encoder's matrices, the mean over them.
fn mean_error(changes: &[Change]) -> f64 {
    changes.iter().filter_map(|c| c.error).sum::<f64>() / changes.len() as f64
}

#[test]
fn more_planes_and_more_rank_never_hurt() {
    let text = calibration(31, 3);
    let model = tiny("bert", Task::Bare, 32);
    for text in [None, Some(&text)] {
        let error = |options: Binarize| mean_error(&packed(&model, &options, text).1);
        let planes: Vec<f64> =
            (1..=4).map(|planes| error(Binarize { planes, ..Binarize::default() })).collect();
        assert!(planes.windows(2).all(|e| e[1] < e[0]), "{planes:?}");
        let ranks: Vec<f64> =
            [0, 1, 2, 4, 8].map(|rank| error(Binarize { rank, ..Binarize::default() })).into();
        assert!(ranks.windows(2).all(|e| e[1] < e[0]), "{ranks:?}");
        let rounds: Vec<f64> = [1, 2, 4, 8]
            .map(|rounds| error(Binarize { rank: 2, rounds, ..Binarize::default() }))
            .into();
        assert!(rounds.windows(2).all(|e| e[1] <= e[0]), "{rounds:?}");
    }
}

/// BiPFT notes, §9, test 7: a 1-bit model near the original would mean that dense weights are still used.
#[test]
fn one_untrained_plane_is_clearly_worse_than_three() {
    let batch = batch(33, &[7, 4, 9]);
    let power = |x: &[f32]| x.iter().map(|&x| (x as f64).powi(2)).sum::<f64>();
    for family in family::TRAINED {
        let model = tiny(family.model_type, Task::Bare, 34);
        let expected = answers(&model, &batch, None);
        let off = |planes| {
            let options = Binarize { planes, embeddings: planes, ..Binarize::default() };
            let (after, changes) = packed(&model, &options, None);
            let found = answers(&after, &batch, None);
            let difference: Vec<f32> = found.iter().zip(&expected).map(|(a, b)| a - b).collect();
            (power(&difference) / power(&expected), mean_error(&changes))
        };
        let ((one, one_weights), (three, three_weights)) = (off(1), off(3));
        let what = format!("{}: {one}, {three}", family.model_type);
        assert!(one > 0.2 && one > 2.0 * three, "{what}");
        assert!(one_weights > 0.2 && three_weights < 0.04, "{one_weights} {three_weights}");
    }
}

#[test]
fn text_makes_the_answers_better() {
    let text = calibration(35, 8);
    let batch = batch(36, &[7, 4, 9, 12]);
    let (mut with, mut without) = (0.0, 0.0);
    for seed in 0..5 {
        let model = tiny("bert", Task::Bare, 40 + seed);
        let expected = answers(&model, &batch, None);
        let off = |text| {
            let found = answers(&packed(&model, &Binarize::default(), text).0, &batch, None);
            found.iter().zip(&expected).map(|(a, b)| ((a - b) as f64).powi(2)).sum::<f64>()
        };
        with += off(Some(&text));
        without += off(None);
    }
    assert!(with < without, "{with} with text, {without} without");
}

#[test]
fn packing_is_done_once() {
    let text = calibration(50, 2);
    let texts = batch(51, &[6, 1, 9]);
    let shapes = [(1, 0, 0), (2, 3, 0), (3, 0, 10), (2, 2, 9), (4, 1, 16)];
    for (i, (family, task)) in each().enumerate() {
        let (planes, rank, group) = shapes[i % shapes.len()];
        let dtype = [Dtype::F32, Dtype::F16, Dtype::BF16][i % 3];
        let model = parts(family, task, 52).stored_as(dtype).open();
        let (embeddings, head) = (i % 4, (i + 1) % 3);
        let options = Binarize { planes, rank, group, embeddings, head, ..Binarize::default() };
        for text in [None, Some(&text)] {
            let (after, _) = packed(&model, &options, text);
            let again = reopen(&after);
            let what = format!("{family} {task:?} {options:?}");
            assert_eq!(answers(&again, &texts, None), answers(&after, &texts, None), "{what}");
            assert_eq!(stored(&again), stored(&after), "{what}");
            let recipe = serde_json::json!("tests");
            assert_eq!(again.config_json(&recipe), after.config_json(&recipe), "{what}");
            assert!(!again.loads_natively());
        }
    }
}

#[test]
fn packing_a_tied_table_leaves_no_stale_copy() {
    for family in family::ALL.iter().filter(|f| f.tasks.contains(&Task::MaskedLm)) {
        let mut parts = parts(family.model_type, Task::MaskedLm, 53);
        let name = format!("{}.weight", family.masked_lm.decoder);
        let word = format!("{}{}.weight", family.prefix, family.word);
        let copy = parts.tensor(&word).clone().renamed(name.clone());
        parts.tensors.push(copy);
        let other = Tensor::from_i64("cls.other", &[1], &[7]);
        parts.tensors.push(other);
        let texts = batch(54, &[5, 3]);

        let options = Binarize { embeddings: 3, ..Binarize::default() };
        let (after, changes) = packed(&parts.open(), &options, None);
        assert_eq!(after.unused.iter().map(|t| t.name.as_str()).collect::<Vec<_>>(), ["cls.other"]);
        assert!(changes.iter().any(|c| format!("{}.weight", c.tensor) == word));
        assert!(after.tensors().iter().all(|t| t.name != name && t.name != word));
        let again = reopen(&after);
        assert_eq!(answers(&again, &texts, None), answers(&after, &texts, None));

        // Without packing the table, the copy is true and stays.
        let (after, _) = packed(&parts.open(), &Binarize::default(), None);
        assert!(after.unused.iter().any(|t| t.name == name));

        // An untied decoder is no copy.
        parts.config["tie_word_embeddings"] = serde_json::json!(false);
        let (after, _) = packed(&parts.open(), &options, None);
        let decoder = parts.tensor(&name).clone();
        let kept = after.tensors().into_iter().find(|t| t.name == name).expect("the decoder");
        assert_eq!(kept.bytes(), decoder.bytes());
        assert_eq!(stored(&reopen(&after)), stored(&after));
    }
}

#[test]
fn what_is_not_packed_keeps_its_bytes() {
    for (family, task) in every() {
        let mut parts = parts(family, task, 55);
        let extra = Tensor::from_f32("cls.extra", &[2], &[0.1, 0.2], Dtype::BF16);
        parts.tensors.push(extra);
        let model = parts.open();
        let (after, changes) = packed(&model, &Binarize::default(), None);
        let packed: Vec<String> = changes.iter().map(|c| format!("{}.weight", c.tensor)).collect();
        assert_eq!(packed.len(), 6 * LAYERS);
        let before = stored(&model);
        let kept: Vec<_> = before.iter().filter(|(name, ..)| !packed.contains(name)).collect();
        assert_eq!(kept.len(), before.len() - packed.len());
        let after = stored(&after);
        assert!(kept.iter().all(|t| after.contains(t)), "{family} {task:?}");
        assert!(
            before.iter().filter(|(name, ..)| packed.contains(name)).all(|t| !after.contains(t))
        );
    }
}

#[test]
fn pruned_layers_are_packed_too() {
    let text = calibration(56, 2);
    let mut model = tiny("roberta", Task::Bare, 57);
    let attention = model.layers[0].attention.as_ref().expect("attention");
    model.layers[0].attention = Some(attention.select_heads(&[2]).expect("dense"));
    let ffn = model.layers[1].ffn.as_ref().expect("a block");
    model.layers[1].ffn = Some(ffn.select_units(&[0, 3, 9]).expect("dense"));
    model.layers[2].attention = None;
    for text in [None, Some(&text)] {
        let (after, _) = packed(&model, &Binarize { rank: 8, ..Binarize::default() }, text);
        assert_eq!(stored(&reopen(&after)), stored(&after));
    }
}

/// Second moments of what the linear layers multiply when a model runs.
struct Inputs {
    moments: BTreeMap<(usize, Site), Moments>,
    weights: TokenWeights,
    batch: usize,
}

impl Observer for Inputs {
    fn linear_input(&mut self, layer: usize, site: Site, x: &[f32]) {
        let width = if site == Site::Down { FFN } else { HIDDEN };
        let place = match site {
            Site::QueryKeyValue => Place::QueryKeyValue,
            Site::AttentionOutput => Place::AttentionOutput,
            Site::Up => Place::Up,
            Site::Down => Place::Down,
            other => unreachable!("{other:?} of another family"),
        };
        let moments = self.moments.entry((layer, site)).or_insert_with(|| Moments::new(width, 0));
        moments.add(&self.weights.apply(self.batch, layer, place, x), &[]);
    }

    fn kept(&mut self, layer: usize, kept: &[usize]) {
        self.weights.keep(self.batch, layer, kept);
    }
}

/// Of tokens that were dropped before it, a layer sees nothing while it is packed either.
#[test]
fn a_layer_is_packed_by_what_it_multiplies() {
    let text = calibration(68, 3);
    let schedules = [None, Some(Score::First), Some(Score::Received)];
    for (task, score) in schedules
        .map(|s| (Task::SequenceClassification, s))
        .into_iter()
        .chain([(Task::Bare, Some(Score::First)), (Task::Embedding, Some(Score::Received))])
    {
        let mut model = tiny("bert", task, 69);
        model.tokens = score.map(|score| {
            let bins = |bits: [bool; 4]| Some(bits.to_vec());
            let layers =
                vec![bins([true, true, false, false]), bins([true, false, true, true]), None];
            let whole = TokenSchedule::keep_all(LAYERS, score, model.reads());
            TokenSchedule { layers, ..whole }
        });
        // Without an aim the error that is told is that of the weights.
        let options = Binarize { aim: 0.0, ..Binarize::default() };
        let (after, changes) = packed(&model, &options, Some(&text));
        assert_eq!(after.tokens, model.tokens);
        let encoder = Encoder::new(&after).expect("a model that runs");
        let weights = TokenWeights::of(&model, &text.batches, 0).expect("ids inside the tables");
        let mut inputs = Inputs { moments: BTreeMap::new(), weights, batch: 0 };
        for (i, batch) in text.batches.iter().enumerate() {
            inputs.batch = i;
            encoder.forward(batch, None, &mut inputs).expect("ids inside the tables");
        }
        for (l, (layer, before)) in after.layers.iter().zip(&model.layers).enumerate() {
            for ((role, linear), (_, dense)) in layer.linears().into_iter().zip(before.linears()) {
                let site = match role {
                    "attention_output" => Site::AttentionOutput,
                    "up" => Site::Up,
                    "down" => Site::Down,
                    _ => Site::QueryKeyValue,
                };
                let Weight::Binary(binary) = &linear.weight else { panic!("{role} is dense") };
                let w = dense.weight.to_f32().expect("floats");
                let moments = inputs.moments[&(l, site)].clone();
                let metric = Metric::new(moments, options.damp).expect("finite inputs");
                let (shape, add_row) =
                    ((binary.rows, binary.cols), |row: usize, out: &mut [f32]| {
                        binary.add_row(row, out);
                    });
                let error = residual::relative_error(&w, shape, add_row, Some(&metric));
                let change = changes.iter().find(|c| c.tensor == linear.weight.name());
                let told = change.and_then(|c| c.error).expect("a matrix that was packed");
                let what = format!("{task:?} {score:?}, layer {l}, {role}: {error}, {told}");
                assert!((error / told - 1.0).abs() < 1e-3, "{what}");
            }
        }
    }
}

#[test]
fn sublayers_of_no_width_are_packed_and_read_back() {
    let text = calibration(58, 2);
    let mut model = tiny("bert", Task::Bare, 59);
    let attention = model.layers[0].attention.as_ref().expect("attention");
    model.layers[0].attention = Some(attention.select_heads(&[]).expect("dense"));
    let ffn = model.layers[1].ffn.as_ref().expect("a block");
    model.layers[1].ffn = Some(ffn.select_units(&[]).expect("dense"));
    let texts = batch(60, &[3, 5]);
    for text in [None, Some(&text)] {
        let (after, _) = packed(&model, &Binarize { rank: 2, ..Binarize::default() }, text);
        assert_eq!(answers(&reopen(&after), &texts, None), answers(&after, &texts, None));
        let encoder = Encoder::packed(&after).expect("a model that runs");
        let found = encoder.forward(&texts, None, &mut crate::runtime::NoObserver);
        assert!(found.is_ok_and(|f| f.values.iter().all(|v| v.is_finite())));
    }
}

#[test]
fn a_packed_pooler_is_read_back() {
    let model = tiny("bert", Task::Bare, 66);
    let (after, _) = packed(&model, &Binarize { head: 2, ..Binarize::default() }, None);
    let texts = batch(67, &[5, 3]);
    assert_eq!(answers(&reopen(&after), &texts, None), answers(&after, &texts, None));
}

#[test]
fn a_packed_matrix_is_not_packed_again() {
    let model = tiny("bert", Task::Bare, 61);
    let (mut once, _) = packed(&model, &Binarize::default(), None);
    let cx = Context::new(&model);
    let error = Binarize::default().run(&mut once, &cx).expect_err("packed already");
    insta::assert_snapshot!(error, @"`encoder.layer.0.attention.self.query` is packed in 2 sign planes, but only dense weights can be cut or packed; start from the checkpoint as it was before binarization");
}

#[test]
fn threads_change_no_byte() {
    let text = calibration(62, 5);
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
        pool.install(|| {
            let model = tiny("xlm-roberta", Task::MaskedLm, 63);
            let options = Binarize { rank: 3, embeddings: 2, head: 2, ..Binarize::default() };
            stored(&packed(&model, &options, Some(&text)).0)
        })
    };
    assert_eq!(run(1), run(2));
}

#[test]
fn the_table_of_changes_is_for_people() {
    let mut model = tiny("distilbert", Task::SequenceClassification, 64);
    model.layers.truncate(1);
    let options =
        Binarize { planes: 2, rank: 2, group: 10, embeddings: 4, head: 1, ..Binarize::default() };
    let (_, mut changes) = packed(&model, &options, None);
    // The last digits of an error are the platform's.
    changes.iter_mut().for_each(|c| c.error = c.error.map(|e| (e * 1000.0).round() / 1000.0));
    insta::assert_snapshot!(report::markdown_changes(&changes), @r"
    | matrix | before | after | error |
    |---|---|---|---|
    | distilbert.transformer.layer.0.attention.q_lin | f32 16 x 16 | binary(planes=2, group=10, rank=2) 16 x 16 | 0.0340 |
    | distilbert.transformer.layer.0.attention.k_lin | f32 16 x 16 | binary(planes=2, group=10, rank=2) 16 x 16 | 0.0340 |
    | distilbert.transformer.layer.0.attention.v_lin | f32 16 x 16 | binary(planes=2, group=10, rank=2) 16 x 16 | 0.0300 |
    | distilbert.transformer.layer.0.attention.out_lin | f32 16 x 16 | binary(planes=2, group=10, rank=2) 16 x 16 | 0.0310 |
    | distilbert.transformer.layer.0.ffn.lin1 | f32 24 x 16 | binary(planes=2, group=10, rank=2) 24 x 16 | 0.0300 |
    | distilbert.transformer.layer.0.ffn.lin2 | f32 16 x 24 | binary(planes=2, group=10, rank=2) 16 x 24 | 0.0350 |
    | distilbert.embeddings.word_embeddings | f32 30 x 16 | binary(planes=4, group=10) 30 x 16 | 0.0020 |
    | pre_classifier | f32 16 x 16 | binary(planes=1, group=10) 16 x 16 | 0.3000 |
    | classifier | f32 3 x 16 | binary(planes=1, group=10) 3 x 16 | 0.3500 |
    ");
}

#[test]
fn refusals_name_the_option_and_its_range() {
    let error = |options: Binarize| {
        let mut model = tiny("bert", Task::Bare, 65);
        let teacher = model.clone();
        let error =
            options.run(&mut model, &Context::new(&teacher)).expect_err("out of range").to_string();
        assert_eq!(stored(&model), stored(&tiny("bert", Task::Bare, 65)));
        error
    };
    let all = [
        Binarize { planes: 0, ..Binarize::default() },
        Binarize { planes: 5, ..Binarize::default() },
        Binarize { rank: 4097, ..Binarize::default() },
        Binarize { group: 7, ..Binarize::default() },
        Binarize { rounds: 0, ..Binarize::default() },
        Binarize { rounds: 101, ..Binarize::default() },
        Binarize { damp: 0.0, ..Binarize::default() },
        Binarize { damp: f64::NAN, ..Binarize::default() },
        Binarize { embeddings: 5, ..Binarize::default() },
        Binarize { head: 9, ..Binarize::default() },
        Binarize { rate: 1.0, ..Binarize::default() },
        Binarize { form: Form::Double, rate: 0.4, ..Binarize::default() },
        Binarize { form: Form::Double, rate: f64::NAN, ..Binarize::default() },
        Binarize { form: Form::Double, rank: 2, ..Binarize::default() },
        Binarize { form: Form::Double, group: 32, ..Binarize::default() },
        Binarize { factors: Factors::Int8, ..Binarize::default() },
        Binarize { activations: 16, ..Binarize::default() },
        Binarize { aim: 1.5, ..Binarize::default() },
        Binarize { aim: f64::NAN, ..Binarize::default() },
        Binarize { bits: 0.1, ..Binarize::default() },
        Binarize { bits: f64::NAN, ..Binarize::default() },
        Binarize { bits: 2.0, size: Size(9000), ..Binarize::default() },
        Binarize { bits: 2.0, planes: 1, ..Binarize::default() },
        Binarize { size: Size(9000), form: Form::Double, ..Binarize::default() },
        Binarize { size: Size(9000), rank: 4, ..Binarize::default() },
        Binarize { size: Size(9000), ..Binarize::default() },
        Binarize { bits: 0.5, ..Binarize::default() },
    ];
    insta::assert_snapshot!(all.map(error).join("\n"), @r"
    pass `binarize`: `planes` is 0, expected 1, 2, 3 or 4
    pass `binarize`: `planes` is 5, expected 1, 2, 3 or 4
    pass `binarize`: `rank` is 4097, expected a number from 0 to 4096
    pass `binarize`: `group` is 7, expected 0 for the whole row, or at least 8
    pass `binarize`: `rounds` is 0, expected a number from 1 to 100
    pass `binarize`: `rounds` is 101, expected a number from 1 to 100
    pass `binarize`: `damp` is 0, expected a number from 0.0001 to 10
    pass `binarize`: `damp` is NaN, expected a number from 0.0001 to 10
    pass `binarize`: `embeddings` is 5, expected 0 to leave it as it is, or 1 to 4 planes
    pass `binarize`: `head` is 9, expected 0 to leave it as it is, or 1 to 4 planes
    pass `binarize`: `rate` is 1, expected 0 beside `form=planes`
    pass `binarize`: `rate` is 0.4, expected 0 for 1.5, or a number from 0.5 to 4
    pass `binarize`: `rate` is NaN, expected 0 for 1.5, or a number from 0.5 to 4
    pass `binarize`: `rank` is 2, expected 0 beside `form=double`
    pass `binarize`: `group` is 32, expected 0 beside `form=double`
    pass `binarize`: `factors` is int8, expected f16 where there is no residual (`rank=0`)
    pass `binarize`: `activations` is 16, expected 32, 8, 4 or 1
    pass `binarize`: `aim` is 1.5, expected a number from 0 to 1
    pass `binarize`: `aim` is NaN, expected a number from 0 to 1
    pass `binarize`: `bits` is 0.1, expected 0 for no budget, or a number from 0.5 to 8.5
    pass `binarize`: `bits` is NaN, expected 0 for no budget, or a number from 0.5 to 8.5
    pass `binarize`: `size` is 9000, expected 0 beside `bits`
    pass `binarize`: `planes` is 1, expected 2, its default, beside `bits`
    pass `binarize`: `form` is double, expected planes, its default, beside `size`
    pass `binarize`: `rank` is 4, expected 0 beside `size`
    pass `binarize`: `size` is 9000 bytes, expected at least 18176 bytes for this model; `embeddings` and `head` make more room
    pass `binarize`: `bits` is 0.5, expected at least 3.215 for this model
    ");
}

/// What gets the original's inputs has nothing to make up for; and where nothing was lost, no weight is moved.
#[test]
fn an_aim_moves_nothing_where_nothing_was_lost() {
    let text = calibration(70, 3);
    let model = tiny("bert", Task::Embedding, 71);
    let of = |aim| stored(&packed(&model, &Binarize { aim, ..Binarize::default() }, Some(&text)).0);
    let (with, without) = (of(1.0), of(0.0));
    let first = |t: &&Stored| t.0.contains("layer.0.attention.self");
    let same = with.iter().filter(first).zip(without.iter().filter(first));
    assert!(same.clone().count() > 6 && same.clone().all(|(a, b)| a == b));
    assert_ne!(with, without, "what comes behind is another");
    let mut moments = Moments::new(6, 3);
    moments.add(&testing::gaussian(60, 72), &[0.0; 30]);
    assert_eq!(Metric::new(moments, 0.05).expect("finite inputs").aim, [0.0; 18]);
}

/// `r = A·x` is removed by `A`, up to the ridge.
#[test]
fn an_aim_is_what_removes_what_outputs_lack() {
    let (x, a) = (testing::gaussian(400 * 6, 73), testing::gaussian(4 * 6, 74));
    let mut r = vec![0.0; 400 * 4];
    product(MatMut::new(&mut r, 400, 4), Mat::new(&x, 400, 6), Mat::new(&a, 4, 6).t(), 1.0);
    let mut moments = Moments::new(6, 4);
    moments.add(&x, &r);
    let found = Metric::new(moments, 1e-4).expect("finite inputs").aim;
    assert!(found.iter().zip(&a).all(|(f, a)| (f - a).abs() < 1e-2), "{found:?} {a:?}");
}

#[test]
fn aimed_layers_answer_more_like_the_original() {
    let text = calibration(75, 8);
    let off = |aim: f64| -> f64 {
        let each = (0..6).map(|seed| {
            let model = tiny("bert", Task::Bare, 76 + seed);
            let options = Binarize { aim, planes: 1, ..Binarize::default() };
            let (after, _) = packed(&model, &options, Some(&text));
            let of = |model: &Model| -> Vec<f32> {
                text.batches.iter().flat_map(|b| answers(model, b, None)).collect()
            };
            let pairs = of(&after).into_iter().zip(of(&model));
            pairs.map(|(a, b)| ((a - b) as f64).powi(2)).sum::<f64>()
        });
        each.sum()
    };
    let (with, without) = (off(0.5), off(0.0));
    assert!(with < without, "{with} aimed, {without} not");
}

/// Strips and products change nothing but the rounding of sums.
#[test]
fn compensation_in_strips_is_compensation_column_by_column() {
    let (rows, cols) = (3, 150);
    let w = testing::gaussian(rows * cols, 80);
    let metric = metric(81, cols);
    let codes = Codes::fit(&w, (rows, cols), 2, cols);
    let found = codes.clone().compensate(&w, &metric.factor, &metric.order).to_dense();
    for row in 0..rows {
        let scales = &codes.scales()[2 * row..2 * row + 2];
        let mut rest: Vec<f64> = metric.order.iter().map(|&c| w[row * cols + c] as f64).collect();
        for (j, &c) in metric.order.iter().enumerate() {
            let value = crate::model::binary::Levels::new(scales).nearest(rest[j] as f32).1;
            assert!((found[row * cols + c] - value).abs() < 1e-6, "row {row}, column {c}");
            let line = &metric.factor[j * cols..(j + 1) * cols];
            let error = (rest[j] - value as f64) / line[j] as f64;
            rest.iter_mut().zip(line).for_each(|(x, u)| *x -= error * *u as f64);
        }
    }
}

#[test]
fn descent_only_makes_the_output_better_and_ends_where_no_weight_alone_could() {
    let (rows, cols) = (6, 70);
    for (seed, planes, group) in [(0, 1, cols), (1, 2, cols), (2, 2, 20), (3, 3, cols)] {
        let w = testing::gaussian(rows * cols, 110 + seed);
        let metric = metric(115 + seed, cols);
        let codes = Codes::fit(&w, (rows, cols), planes, group);
        let pushed = codes.compensate(&w, &metric.factor, &metric.order);
        let of = |codes: &Codes| loss(&w, &codes.to_dense(), cols, Some(&metric));
        let mut last = of(&pushed);
        let mut codes = pushed;
        for _ in 0..20 {
            codes = codes.descend(&w, &metric.h, &metric.order);
            assert!(of(&codes) <= last * (1.0 + 1e-6), "{} after {last}", of(&codes));
            last = of(&codes);
        }
        let again = codes.clone().descend(&w, &metric.h, &metric.order);
        assert_eq!(again.to_dense(), codes.to_dense(), "{planes} planes of {group}");
    }
}

#[test]
fn two_factors_refitted_in_the_whole_metric_lose_less_of_the_output() {
    for (seed, rows, cols) in [(0, 48, 40), (1, 40, 80), (2, 33, 70), (3, 5, 100)] {
        let w = testing::gaussian(rows * cols, 90 + seed);
        let metric = metric(95 + seed, cols);
        let diagonal = Metric {
            h: (0..cols * cols)
                .map(|i| if i % (cols + 1) == 0 { metric.h[i] } else { 0.0 })
                .collect(),
            factor: Vec::new(),
            order: metric.order.clone(),
            aim: Vec::new(),
        };
        let of = |by: &Metric| {
            let double = double::fit("w".into(), &w, (rows, cols), 32, Some(by));
            loss(&w, &double.to_dense(), cols, Some(&metric))
        };
        let (plain, whole) = (of(&diagonal), of(&metric));
        assert!(whole < 0.9 * plain, "{rows} x {cols}: {plain} to {whole}");
    }
}

#[test]
fn budgets_are_met_and_never_exceeded() {
    let text = calibration(100, 3);
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join("model.safetensors");
    for (family, task) in [("bert", Task::SequenceClassification), ("mpnet", Task::Embedding)] {
        let model = tiny(family, task, 101);
        for text in [None, Some(&text)] {
            let mut last = f64::INFINITY;
            for bits in [3.3, 3.6, 4.2, 5.7, 8.5] {
                let options = Binarize { bits, ..Binarize::default() };
                let (after, changes) = packed(&model, &options, text);
                let weights: usize =
                    changes.iter().map(|c| c.after.shape[0] * c.after.shape[1]).sum();
                let bytes: usize = changes.iter().map(|c| c.after.bytes).sum();
                let found = 8.0 * bytes as f64 / weights as f64;
                assert!(found <= bits, "{found} of {bits} bits");
                // With text it is the answer's error that is made small, not the mean of the matrices'.
                let error = if text.is_none() { mean_error(&changes) } else { 0.0 };
                assert!(error < last, "{bits} bits: {error} after {last}");
                last = error.max(1e-9);
                assert_eq!(stored(&reopen(&after)), stored(&after));
            }
            let of = |model: &Model| file_bytes(&model.tensors()).expect("a header");
            let best = Binarize { bits: 8.5, embeddings: 2, ..Binarize::default() };
            let largest = of(&packed(&model, &best, text).0);
            for size in [largest - 1500, largest - 1000, largest - 500, largest, largest + 999] {
                let options = Binarize { size: Size(size), bits: 0.0, ..best.clone() };
                let (after, _) = packed(&model, &options, text);
                write_file(&path, &after.tensors(), &|| false).expect("a file");
                let file = std::fs::metadata(&path).expect("a file").len();
                let more = of(&after) - file;
                assert!(more <= 40, "`format` is all that a model's header says besides: {more}");
                assert!(
                    of(&after) <= size && of(&after) + 400 > size.min(largest),
                    "{size}: {file}"
                );
            }
        }
    }
}

/// Scales too small for f16 are stored in f32: twice the bytes that were planned.
#[test]
fn tiny_weights_stay_in_the_budget() {
    let mut parts = parts("bert", Task::SequenceClassification, 103);
    let tensor = parts.tensor("bert.encoder.layer.1.output.dense.weight");
    let tiny: Vec<f32> = tensor.to_f32().expect("floats").iter().map(|w| w * 1e-5).collect();
    *tensor = Tensor::from_f32(tensor.name.clone(), &tensor.shape, &tiny, Dtype::F32);
    let model = parts.open();
    let (_, changes) = packed(&model, &Binarize { bits: 4.2, ..Binarize::default() }, None);
    let weights: usize = changes.iter().map(|c| c.after.shape[0] * c.after.shape[1]).sum();
    let bytes: usize = changes.iter().map(|c| c.after.bytes).sum();
    assert!(8.0 * bytes as f64 <= 4.2 * weights as f64);
}

/// Where one matrix matters far more than all others, it gets the most.
#[test]
fn what_the_answer_listens_to_gets_more() {
    let text = calibration(104, 4);
    let mut model = tiny("bert", Task::Bare, 105);
    // Layers 0 and 1 hardly speak: their outputs are next to nothing beside what goes around them.
    for layer in &mut model.layers[..2] {
        for linear in layer.linears_mut() {
            let w: Vec<f32> =
                linear.weight.to_f32().expect("floats").iter().map(|w| w * 0.05).collect();
            let shape = [linear.weight.rows(), linear.weight.cols()];
            let name = format!("{}.weight", linear.weight.name());
            linear.weight = Weight::Dense(Tensor::from_f32(name, &shape, &w, Dtype::F32));
        }
    }
    let (_, changes) = packed(&model, &Binarize { bits: 4.0, ..Binarize::default() }, Some(&text));
    let bytes = |layers: std::ops::Range<usize>| -> f64 {
        let of = changes.chunks(6).enumerate().filter(|(l, _)| layers.contains(l));
        let sum: usize = of.map(|(_, c)| c.iter().map(|c| c.after.bytes).sum::<usize>()).sum();
        sum as f64 / layers.len() as f64
    };
    assert!(bytes(2..3) > 1.3 * bytes(0..2), "{} {}", bytes(2..3), bytes(0..2));
}

#[test]
fn sizes_are_numbers_of_bytes_with_or_without_a_unit() {
    let parse = |text: &str| -> std::result::Result<u64, String> {
        let table: toml::Table = format!("size = {text}").parse().expect("TOML");
        table.try_into::<Binarize>().map(|b| b.size.0).map_err(|e| e.message().to_string())
    };
    let found =
        ["1200", "\"12MB\"", "\"1mb\"", "\"1000KB\"", "\"2KiB\"", "\"1MiB\"", "\"7B\"", "\"7\""]
            .map(parse);
    let expected = [1200, 12_000_000, 1_000_000, 1_000_000, 2048, 1 << 20, 7, 7];
    assert_eq!(found.map(|f| f.expect("a size")), expected);
    for wrong in ["\"12 m\"", "\"MB\"", "-3", "\"-1MB\"", "\"nan\"", "true"] {
        assert!(parse(wrong).is_err(), "{wrong}");
    }
    insta::assert_snapshot!(parse("\"12 apples\"").unwrap_err(), @"`12 apples` has none of the units B, kB, MB, GB, KiB, MiB and GiB: expected bytes, as 12000000, 12MB or 11.5MiB");
}

#[test]
fn activations_of_one_bit_make_every_layer_bipfts_and_are_read_back() {
    let text = calibration(40, 2);
    for (family, task) in every() {
        let model = tiny(family, task, 41);
        let options = Binarize { planes: 1, activations: 1, ..Binarize::default() };
        let (after, changes) = packed(&model, &options, Some(&text));
        assert_eq!(changes.len(), 6 * LAYERS, "{family} {task:?}");
        for layer in &after.layers {
            assert!(layer.linears().iter().all(|(_, l)| l.elastic.is_some()));
            let binary = layer.attention.as_ref().and_then(|a| a.binary.as_ref()).expect("signs");
            let estimators = binary.estimators.as_ref().expect("estimators").linears();
            assert_eq!(estimators.map(|l| l.weight.rows()), [1; 5]);
        }
        let again = reopen(&after);
        assert_eq!(stored(&again), stored(&after), "{family} {task:?}");
        let batch = batch(42, &[7, 3]);
        assert_eq!(answers(&again, &batch, None), answers(&after, &batch, None));
        let without = Binarize { estimators: 0, ..options };
        let (plain, _) = packed(&model, &without, Some(&text));
        let names: Vec<String> = plain.tensors().into_iter().map(|t| t.name).collect();
        assert!(!names.iter().any(|name| name.contains("q_p")), "{family} {task:?}");
    }
}

#[test]
fn scales_start_at_means_of_the_text() {
    let text = calibration(43, 1);
    let model = tiny("bert", Task::Bare, 44);
    let options = Binarize { planes: 1, activations: 1, ..Binarize::default() };
    let (after, _) = packed(&model, &options, Some(&text));
    let encoder = Encoder::new(&after).expect("a model that runs");
    let x = encoder.embed(&text.batches[0]).expect("embeds");
    let mean = |x: &[f32]| x.iter().map(|x| x.abs() as f64).sum::<f64>() / x.len() as f64;
    let attention = after.layers[0].attention.as_ref().expect("attention");
    let close = |tensor: &Tensor, expected: f64| {
        let found = f64::from(tensor.to_f32().expect("floats")[0]);
        assert!((found / expected - 1.0).abs() < 1e-5, "{}: {found} {expected}", tensor.name);
    };
    let input = attention.query.elastic.as_ref().expect("signs");
    close(&input.scale, 2.0 * mean(&x));
    let run = encoder.layers[0].attention.as_ref().expect("attention");
    let qkv = run.query_key_value(&x, text.batches[0].tokens());
    let keys: Vec<f32> =
        qkv.chunks(3 * HIDDEN).flat_map(|r| &r[HIDDEN..2 * HIDDEN]).copied().collect();
    let binary = attention.binary.as_ref().expect("signs");
    close(&binary.key, 2.0 * mean(&keys));
    let mut all = Vec::new();
    let mut seen = |_: usize, _: usize, probs: &mut [f32]| all.extend_from_slice(probs);
    encoder.attention_context(run, &x, &text.batches[0], None, &mut seen);
    close(&binary.probabilities, 4.0 * mean(&all));
    let ffn = after.layers[0].ffn.as_ref().expect("a block");
    let weight = |m: &Model| m.layers[0].ffn.as_ref().expect("a block").up.weight.clone();
    let (before, signs) = (weight(&model), weight(&after));
    let m = mean(&before.to_f32().expect("floats")) as f32;
    assert!(signs.to_f32().expect("floats").iter().all(|w| (w.abs() / m - 1.0).abs() < 1e-6));
    assert!(ffn.up.elastic.as_ref().is_some_and(|e| e.shift.shape == [HIDDEN]));
}

#[test]
fn activations_of_one_bit_need_one_plane_and_text_and_say_that_they_need_training() {
    let check = |options: Binarize| options.check().expect_err("out of range").to_string();
    let one = || Binarize { planes: 1, activations: 1, ..Binarize::default() };
    insta::assert_snapshot!(check(Binarize { planes: 2, ..one() }), @"pass `binarize`: `planes` is 2, with activations=1, expected 1");
    insta::assert_snapshot!(check(Binarize { form: Form::Double, ..one() }), @"pass `binarize`: `form` is double, with activations=1, expected planes");
    insta::assert_snapshot!(check(Binarize { rank: 4, ..one() }), @"pass `binarize`: `rank` is 4, with activations=1, expected 0");
    insta::assert_snapshot!(check(Binarize { activations: 2, ..one() }), @"pass `binarize`: `activations` is 2, expected 32, 8, 4 or 1");
    insta::assert_snapshot!(check(Binarize { estimators: 300, ..one() }), @"pass `binarize`: `estimators` is 300, expected a number from 0 to 256");
    let model = tiny("bert", Task::Bare, 45);
    let error = one().run(&mut model.clone(), &Context::new(&model)).expect_err("no text");
    insta::assert_snapshot!(error, @"binarize(activations=1) has no text, but scales of signs are means of what text makes; drop `--calib none`");
    let text = calibration(46, 1);
    let cx = Context { calibration: Some(&text), ..Context::new(&model) };
    let work = one().run(&mut model.clone(), &cx).expect("runs");
    insta::assert_snapshot!(work.notes.concat(), @"layers multiply signs of their inputs: until `distill`, or fine-tuning, has trained them, answers are worth little");
}
