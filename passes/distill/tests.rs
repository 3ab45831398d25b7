//! What is trained, towards what, and that the numbers of the notes come out.

use super::*;
use crate::data::masking::Masker;
use crate::data::tokenizer::Encoded;
use crate::data::{Calibration, Targets};
use crate::model::testing::*;
use crate::model::{Layer, Task};
use crate::runtime::Encoder;
use crate::train::fit::Point;
use crate::train::head;
use crate::train::objective::{Moment, Objective};
use crate::train::tape::{self, Dropout, Plan};

/// Random texts, labelled where the task takes labels.
fn dataset(task: Task, texts: usize, labelled: bool) -> Dataset {
    let lengths: Vec<usize> = (0..texts).map(|i| 3 + i * 5 % 11).collect();
    let batch = batch(90, &lengths);
    let text = |span: &[usize]| Encoded {
        ids: batch.ids[span[0]..span[1]].to_vec(),
        type_ids: batch.type_ids[span[0]..span[1]].to_vec(),
    };
    let class = |i: usize| (i * 7 % 3) as u32;
    let targets = match task {
        Task::SequenceClassification => Some(Targets::Classes((0..texts).map(class).collect())),
        Task::TokenClassification => {
            let tokens = |&len: &usize| (0..len).map(|t| (t > 0).then(|| class(t))).collect();
            Some(Targets::Tokens(lengths.iter().map(tokens).collect()))
        }
        Task::QuestionAnswering => {
            Some(Targets::Spans(lengths.iter().map(|&len| Some((1, len as u32 - 1))).collect()))
        }
        _ => None,
    };
    Dataset {
        texts: batch.starts.windows(2).map(text).collect(),
        targets: targets.filter(|_| labelled),
        masker: Some(Masker { mask_id: 4, special: [0, 1, 2].into() }),
        source: "random texts".into(),
    }
}

/// The teacher with half of its heads and units gone.
fn halved(teacher: &Model) -> Model {
    let mut model = teacher.clone();
    for layer in &mut model.layers {
        let attention = layer.attention.as_ref().expect("attention");
        layer.attention = Some(attention.select_heads(&[0, 2]).expect("dense"));
        let ffn = layer.ffn.as_ref().expect("a block");
        let units: Vec<usize> = (0..FFN).step_by(2).collect();
        layer.ffn = Some(ffn.select_units(&units).expect("dense"));
    }
    model
}

fn distilled(teacher: &Model, student: &Model, distill: &Distill, data: &Dataset) -> (Model, Work) {
    let mut model = student.clone();
    let cx = Context { data: Some(data), seed: 5, ..Context::new(teacher) };
    let work = distill.run(&mut model, &cx).expect("options in range");
    model.validate().expect("parts that fit");
    (model, work)
}

/// The only entry.
fn once(training: Vec<Training>) -> Training {
    let [training] = <[Training; 1]>::try_from(training).expect("it trained once");
    training
}

fn short() -> Distill {
    Distill { steps: 6, batch: 8, rate: 1e-3, ..Distill::default() }
}

#[test]
fn every_head_comes_closer_to_its_teacher() {
    for (family, task) in every() {
        let teacher = tiny(family, task, 91);
        let student = halved(&teacher);
        for labelled in [false, true] {
            let data = dataset(task, 48, labelled);
            let options = Distill { steps: 40, task: 0.01, ..short() };
            let (model, work) = distilled(&teacher, &student, &options, &data);
            let training = once(work.training);
            let (before, best) = (training.judged_before, training.judged_best);
            assert!(best < before, "{family} {task:?} {labelled}: {before:?} to {best:?}");
            assert_eq!(training.labels, data.targets.is_some(), "{family} {task:?}");
            assert_eq!((training.texts, training.held_out), (45, 3));
            let texts = batch(92, &[4, 7]);
            assert_eq!(answers(&reopen(&model), &texts, None), answers(&model, &texts, None));
        }
    }
}

/// All losses at once: no tensor is forgotten by all of them.
#[test]
fn every_trained_tensor_gets_a_gradient() {
    for (family, task) in every() {
        let teacher = tiny(family, task, 93);
        let student = halved(&teacher);
        let data = dataset(task, 32, true);
        let options = Distill {
            embedding: 0.5,
            relations: 0.5,
            attention: 0.1,
            sinkhorn: if task == Task::SequenceClassification { 0.1 } else { 0.0 },
            ..Distill::default()
        };
        let rows: Vec<usize> = (0..8).collect();
        let mut objective = Distillation::new(options.terms(), &teacher, &student, &data, &[], 1)
            .expect("a teacher");
        objective.rows = rows.clone();
        let mut trainer = Trainer::new(&student, |_| true).expect("a model that trains");
        let mut batch = crate::runtime::Batch::default();
        for &row in &rows {
            batch.push(&data.texts[row].ids, &data.texts[row].type_ids, row);
        }
        let dropout = Dropout::default();
        trainer.gather(&objective, &batch, dropout, Moment::default()).expect("runs");
        for (name, grad) in trainer.gradients() {
            if name == "qa_outputs.bias" {
                continue; // it shifts all tokens alike, and a softmax over tokens does not see that
            }
            let size = grad.iter().fold(0.0f32, |m, g| m.max(g.abs()));
            assert!(size > 1e-9, "{family} {task:?}: `{name}` gets no gradient");
        }
    }
}

/// Distillation notes, §11, 7: fifty steps on 32 texts bring the distance of layers down tenfold.
#[test]
fn a_few_texts_can_be_learned_by_heart() {
    let teacher = tiny("bert", Task::Bare, 94);
    let mut student = teacher.clone();
    for (_, place) in student.places_mut() {
        if let crate::model::Place::Matrix(Weight::Dense(t)) = place {
            let noise = gaussian(t.numel(), 95);
            let values = t.to_f32().expect("floats");
            let moved: Vec<f32> = values.iter().zip(noise).map(|(v, n)| v + 0.1 * n).collect();
            *t = crate::checkpoint::Tensor::from_f32(t.name.clone(), &t.shape, &moved, t.dtype);
        }
    }
    let data = dataset(Task::Bare, 34, false);
    let options = Distill {
        steps: 50,
        batch: 32,
        rate: 2e-2,
        embeddings: true,
        evaluate: 1,
        ..Distill::default()
    };
    let (_, work) = distilled(&teacher, &student, &options, &data);
    let points = once(work.training).points;
    let (first, last) = (hidden(&points[1]), hidden(points.last().expect("points")));
    assert!(last < 0.1 * first, "{first} to {last}");
}

/// The part of the loss that compares hidden states.
fn hidden(point: &Point) -> f64 {
    point.losses.iter().find(|(name, _)| name == "hidden").expect("such a part").1
}

#[test]
fn a_student_that_is_its_teacher_stays_where_it_is() {
    let teacher = tiny("roberta", Task::SequenceClassification, 96);
    let data = dataset(Task::SequenceClassification, 32, false);
    let options = Distill { attention: 1.0, relations: 1.0, embedding: 1.0, ..short() };
    let (model, work) = distilled(&teacher, &teacher, &options, &data);
    let training = once(work.training);
    assert_eq!((training.judged_before, training.best_step), (Some(0.0), Some(0)));
    assert_eq!(stored(&model), stored(&teacher), "the first weights were the best");
    assert!(work.changes.is_empty());
}

#[test]
fn a_packed_model_stays_packed_and_gets_other_signs_and_scales() {
    let teacher = tiny("bert", Task::SequenceClassification, 97);
    let mut student = teacher.clone();
    for layer in &mut student.layers {
        for (i, linear) in layer.linears_mut().into_iter().enumerate() {
            let (rows, cols) = (linear.weight.rows(), linear.weight.cols());
            let w = linear.weight.to_f32().expect("floats").into_owned();
            let codes: Vec<u8> = w.iter().map(|w| (*w >= 0.0) as u8).collect();
            let scale = |row: &[f32]| row.iter().map(|w| w.abs()).sum::<f32>() / cols as f32;
            let scales: Vec<f32> = w.chunks_exact(cols).map(scale).collect();
            let factor = |n, seed| gaussian(n, seed).iter().map(|x| 0.1 * x).collect();
            let low_rank = (i == 1)
                .then(|| crate::model::LowRank::new(2, factor(2 * rows, 98), factor(2 * cols, 99)));
            let name = linear.weight.name().to_string();
            let binary =
                crate::model::Binary::new(name, (rows, cols), 1, cols, &codes, &scales, low_rank);
            linear.weight = Weight::Binary(binary);
        }
    }
    let data = dataset(Task::SequenceClassification, 48, false);
    let options = Distill { steps: 60, rate: 2e-2, ..short() };
    let (model, work) = distilled(&teacher, &student, &options, &data);
    let training = once(work.training);
    assert!(training.judged_best < training.judged_before, "{training:?}");
    let signs = |m: &Model| -> Vec<u32> {
        let linears = m.layers.iter().flat_map(Layer::linears);
        let words = linears.flat_map(|(_, l)| match &l.weight {
            Weight::Binary(binary) => binary.signs.to_vec(),
            _ => panic!("a matrix was unpacked"),
        });
        words.collect()
    };
    let pairs = signs(&model).into_iter().zip(signs(&student));
    let flipped: u32 = pairs.map(|(a, b)| (a ^ b).count_ones()).sum();
    assert!(flipped > 20, "{flipped} signs flipped");
    let texts = batch(92, &[4, 7]);
    assert_eq!(answers(&reopen(&model), &texts, None), answers(&model, &texts, None));
    // What the report says was judged is the packed model, up to the rounding of what is stored.
    insta::assert_snapshot!(crate::report::markdown_changes(&work.changes[..2]), @r"
    | matrix | before | after | error |
    |---|---|---|---|
    | bert.encoder.layer.0.attention.self.query | binary(planes=1) 16 x 16 | binary(planes=1) 16 x 16 | - |
    | bert.encoder.layer.0.attention.self.key | binary(planes=1, rank=2) 16 x 16 | binary(planes=1, rank=2) 16 x 16 | - |
    ");
}

#[test]
fn matches_are_found_where_they_are_searched() {
    let teacher = tiny("bert", Task::SequenceClassification, 100);
    let data = dataset(Task::SequenceClassification, 32, false);
    for matching in [Matching::Dynamic, Matching::Ordered] {
        let options = Distill { matching, steps: 30, ..short() };
        let (_, work) = distilled(&teacher, &halved(&teacher), &options, &data);
        let training = once(work.training);
        assert!(training.judged_best < training.judged_before, "{matching:?}");
    }
}

#[test]
fn a_narrower_student_is_compared_through_a_projection() {
    let teacher = tiny("bert", Task::SequenceClassification, 101);
    let student = parts_of("bert", Task::SequenceClassification, 102, 8).open();
    let data = dataset(Task::SequenceClassification, 48, false);
    let options = Distill { steps: 40, embedding: 0.5, rate: 5e-3, ..short() };
    let (model, work) = distilled(&teacher, &student, &options, &data);
    let points = once(work.training).points;
    let (first, last) = (hidden(&points[1]), hidden(points.last().expect("points")));
    assert!(last < 0.9 * first, "{first} to {last}");
    let names: Vec<String> = model.tensors().iter().map(|t| t.name.clone()).collect();
    assert_eq!(names.len(), student.tensors().len(), "the projection is not stored");
}

fn theseus() -> Distill {
    Distill { method: Method::Theseus, ..short() }
}

fn replacing<'a>(
    (from, until): (f64, f64),
    (teacher, student): (&'a Model, &Model),
    data: &'a Dataset,
) -> Replacing<'a> {
    let terms = theseus().terms();
    let distillation = Distillation::new(terms, teacher, student, data, &[], 1).expect("a teacher");
    Replacing { distillation, from, until, seed: 1 }
}

/// Distillation notes, §11, 4, in shares of a run: b = 0.3, k = 6e-4 is 1 at step 1,167.
#[test]
fn replacement_rises_along_a_line() {
    let teacher = tiny("bert", Task::Bare, 103);
    let data = dataset(Task::Bare, 16, false);
    let objective = replacing((0.3, 7000.0 / 6.0), (&teacher, &teacher), &data); // k = 0.7 / until = 6e-4
    for (update, expected) in [(0, 0.3), (500, 0.6), (1000, 0.9), (1166, 0.9996), (1167, 1.0)] {
        let found = objective.share(update);
        assert!((found - expected).abs() < 2e-4, "{update}: {found}");
    }
}

#[test]
fn all_layers_replaced_is_the_student_and_none_is_the_teacher() {
    let teacher = tiny("mpnet", Task::SequenceClassification, 104);
    let student = halved(&teacher);
    let data = dataset(Task::SequenceClassification, 16, false);
    let run = Encoder::new(&student).expect("a model that runs");
    let texts = batch(105, &[5, 3]);
    for (from, until, expected) in [(1.0, 0.0, &student), (0.0, 1e6, &teacher)] {
        let objective = replacing((from, until), (&teacher, &student), &data);
        let path = objective.path(&run, Moment::default());
        let tapes = tape::forward(&run, &path.layers, &texts, &Plan::default()).expect("runs");
        let last = tape::hidden(&tapes, LAYERS);
        let head = head::forward(&run, &texts, &last, &[], None, Dropout::default());
        assert!(distance(&head.values, &answers(expected, &texts, None)) < 1e-6);
    }
}

#[test]
fn layers_are_drawn_one_by_one_at_the_rate_of_the_schedule() {
    let teacher = tiny("bert", Task::Bare, 106);
    let data = dataset(Task::Bare, 16, false);
    let objective = replacing((0.5, 1e9), (&teacher, &teacher), &data);
    let run = Encoder::new(&teacher).expect("a model that runs");
    let own = |update| objective.path(&run, Moment { update, part: 0 }).own;
    let replaced: usize = (0..10_000).map(|u| own(u).iter().filter(|o| **o).count()).sum();
    // §11, 4: 3 ± 0.05 of six modules; here of three, per ten thousand draws.
    let mean = replaced as f64 / 10_000.0;
    assert!((mean - 1.5).abs() < 0.05, "{mean}");
    assert!((0..50).any(|u| own(u) != own(u + 50)));
}

#[test]
fn module_replacing_trains_the_layers_alone() {
    let teacher = tiny("bert", Task::SequenceClassification, 107);
    let data = dataset(Task::SequenceClassification, 48, true);
    let before = stored(&teacher);
    let student = halved(&teacher);
    let options = Distill { steps: 30, evaluate: 30, ..theseus() };
    let (model, work) = distilled(&teacher, &student, &options, &data);
    assert_eq!(stored(&teacher), before);
    assert_eq!(once(work.training).method, "module replacing");
    let (old, new) = (stored(&student), stored(&model));
    for (old, new) in old.iter().zip(&new) {
        let layer = old.0.contains(".layer.");
        // The best weights may be the first: then nothing has changed anywhere.
        assert!(layer || old == new, "{} changed", old.0);
    }
}

#[test]
fn threads_change_no_byte() {
    let teacher = tiny("distilbert", Task::Embedding, 108);
    let student = halved(&teacher);
    let data = dataset(Task::Embedding, 48, false);
    let options = Distill { dropout: 0.1, relations: 1.0, attention: 1.0, ..short() };
    let on = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
        stored(&pool.install(|| distilled(&teacher, &student, &options, &data)).0)
    };
    assert_eq!(on(1), on(3));
    let other = Distill { steps: 7, ..options.clone() };
    assert_ne!(on(1), stored(&distilled(&teacher, &student, &other, &data).0));
}

#[test]
fn without_data_the_calibration_text_is_trained_on() {
    let teacher = tiny("bert", Task::SequenceClassification, 109);
    let text = Calibration { source: "built-in text".into(), ..calibration(110, 8) };
    let mut model = halved(&teacher);
    let cx = Context { calibration: Some(&text), ..Context::new(&teacher) };
    let training = once(short().run(&mut model, &cx).expect("texts").training);
    assert_eq!((training.data.as_str(), training.labels), ("built-in text", false));
    let error = short().run(&mut model, &Context::new(&teacher)).expect_err("no text");
    insta::assert_snapshot!(error, @"distill has no text, but it trains on some; give a file by --data, or drop `--calib none`");
}

#[test]
fn the_sinkhorn_distance_is_for_classes_of_texts() {
    let teacher = tiny("bert", Task::TokenClassification, 113);
    let data = dataset(Task::TokenClassification, 16, false);
    let cx = Context { data: Some(&data), ..Context::new(&teacher) };
    let options = Distill { sinkhorn: 0.5, ..short() };
    let error = options.run(&mut teacher.clone(), &cx).expect_err("token by token");
    insta::assert_snapshot!(error, @"distill(sinkhorn=0.5) on token classification, but the Sinkhorn distance compares classes of whole texts; leave sinkhorn at 0 for this model");
}

#[test]
fn a_masked_lm_needs_a_mask() {
    let teacher = tiny("bert", Task::MaskedLm, 111);
    let data = Dataset { masker: None, ..dataset(Task::MaskedLm, 16, false) };
    let cx = Context { data: Some(&data), ..Context::new(&teacher) };
    let error = short().run(&mut teacher.clone(), &cx).expect_err("no mask");
    insta::assert_snapshot!(error, @"there is no tokenizer with a token to hide words by, but a masked-LM model is trained by hiding tokens; use the tokenizer that belongs to the checkpoint");
}

#[test]
fn a_rate_that_is_too_high_is_said_to_be() {
    let teacher = tiny("bert", Task::SequenceClassification, 112);
    let data = dataset(Task::SequenceClassification, 32, false);
    let options = Distill { rate: 1.0, clip: 0.0, warmup: 0.0, steps: 400, ..short() };
    let cx = Context { data: Some(&data), ..Context::new(&teacher) };
    let mut model = halved(&teacher);
    for (_, place) in model.places_mut() {
        if let crate::model::Place::Matrix(Weight::Dense(t)) = place {
            let huge = vec![1e30; t.numel()];
            *t = crate::checkpoint::Tensor::from_f32(t.name.clone(), &t.shape, &huge, t.dtype);
        }
    }
    let error = options.run(&mut model, &cx).expect_err("no number comes of this").to_string();
    assert!(error.starts_with("training diverged: "), "{error}");
}

#[test]
fn refusals_name_the_option_and_its_range() {
    let refused = |options: Distill| options.check().expect_err("out of range").to_string();
    let default = Distill::default;
    let cases = [
        Distill { batch: 0, ..default() },
        Distill { accumulate: 0, ..default() },
        Distill { rate: 1.5, ..default() },
        Distill { rate: f64::NAN, ..default() },
        Distill { warmup: 1.5, ..default() },
        Distill { dropout: 1.0, ..default() },
        Distill { temperature: 0.0, ..default() },
        Distill { hidden: -1.0, ..default() },
        Distill { prediction: 0.0, hidden: 0.0, task: 0.0, similarity: 0.0, ..default() },
        Distill { prediction: 0.0, sinkhorn: 1.0, ..default() },
    ];
    insta::assert_snapshot!(cases.map(refused).join("\n"), @r"
    pass `distill`: `batch` is 0, expected a number from 1 to 65536
    pass `distill`: `accumulate` is 0, expected a number from 1 to 65536
    pass `distill`: `rate` is 1.5, expected a number in [0, 1]
    pass `distill`: `rate` is NaN, expected a number in [0, 1]
    pass `distill`: `warmup` is 1.5, expected a number in [0, 1]
    pass `distill`: `dropout` is 1, expected a number in [0, 1)
    pass `distill`: `temperature` is 0, expected a number in (0, 100]
    pass `distill`: `hidden` is -1, expected a number from 0 to 1000000
    pass `distill`: `prediction` is 0, as all other weights are, expected one above 0
    pass `distill`: `prediction` is 0, with sinkhorn, expected above 0: the distance alone does not say which text is which
    ");
}

#[test]
fn the_usual_rate_is_for_what_can_lose_most() {
    let dense = tiny("bert", Task::SequenceClassification, 3);
    let packed = |planes: &[usize]| {
        let mut model = dense.clone();
        let linears = model.layers.iter_mut().flat_map(|layer| layer.linears_mut());
        for (linear, &planes) in linears.zip(planes) {
            let (rows, cols) = (linear.weight.rows(), linear.weight.cols());
            let name = linear.weight.name().to_string();
            let (codes, scales) = (vec![0; rows * cols], vec![0.5; planes * rows]);
            let binary =
                crate::model::Binary::new(name, (rows, cols), planes, cols, &codes, &scales, None);
            linear.weight = Weight::Binary(binary);
        }
        usual_rate(&model)
    };
    assert_eq!(packed(&[]), DENSE_RATE);
    assert_eq!(packed(&[1, 1]), PACKED_RATE);
    assert_eq!(packed(&[1, 2, 1]), FINE_RATE);
    assert_eq!(packed(&[4]), FINE_RATE);
}
