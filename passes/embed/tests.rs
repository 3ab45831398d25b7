//! The numeric checks of the subspace notes (§8), and that what is stored is what is read back.

use super::rotation::{balanced, buckets, covariance, mean};
use super::*;
use crate::checkpoint::Dtype;
use crate::data::Words;
use crate::model::subspace::digit;
use crate::model::testing::*;
use crate::model::{Codes, Layer, Task};
use crate::pass::Quiet;
use crate::report;

fn embedded(model: &Model, options: &Embed, words: Option<&Words>) -> (Model, Work) {
    embedded_under(model, options, &Context { words, seed: 7, ..Context::new(model) })
}

fn embedded_under(model: &Model, options: &Embed, cx: &Context) -> (Model, Work) {
    let mut after = model.clone();
    let work = options.run(&mut after, cx).expect("options in range");
    after.validate().expect("parts that fit");
    (after, work)
}

fn methods() -> Vec<Embed> {
    let of = |method| Embed { method, ..Embed::default() };
    let paper = |assignment| Embed { assignment, ..of(Method::Paper) };
    vec![
        Embed::default(),
        Embed { preset: Preset::Small, exact: 3, ..Embed::default() },
        Embed { bytes: 5, words: 4, rotation: Rotate::None, ..Embed::default() },
        Embed { share: 0.6, exact: 1, ..Embed::default() },
        paper(Assignment::Independent),
        Embed { slices: 2, ..paper(Assignment::Hierarchical) },
        paper(Assignment::Dispersed),
        Embed { bytes: 6, exact: 2, ..of(Method::Svd) },
        of(Method::Int8),
        Embed { positions: Positions::F16, ..of(Method::F16) },
    ]
}

fn table(rows: usize, cols: usize, values: &[f32]) -> Tensor {
    Tensor::from_f32("w.weight", &[rows, cols], values, Dtype::F32)
}

fn relative(tensor: &Tensor, weight: &Weight) -> f64 {
    errors(tensor, weight, &vec![1.0; tensor.shape[0]]).expect("floats").uniform
}

fn fitted(tensor: &Tensor, plan: &Plan) -> f64 {
    let weights = vec![1.0; tensor.shape[0]];
    let found =
        subspace::fit((tensor, "w"), &weights, &[], (plan, None), 0, &Quiet).expect("floats");
    relative(tensor, &Weight::Subspace(Box::new(found)))
}

#[test]
fn layers_do_not_matter_to_it() {
    let model = tiny("bert", Task::SequenceClassification, 82);
    let mut cut = model.clone();
    cut.layers[1] = Layer { attention: None, ffn: None, bottleneck: None };
    let bytes = |tensors: Vec<Tensor>| -> Vec<(String, Vec<u8>)> {
        tensors.into_iter().map(|t| (t.name.clone(), t.bytes().to_vec())).collect()
    };
    let tables = |m: &Model| {
        let word = m.embeddings.word.tensors();
        bytes([word, m.embeddings.position.iter().cloned().collect()].concat())
    };
    let rest = |m: &Model| {
        let own: Vec<String> = tables(m).into_iter().map(|(name, _)| name).collect();
        bytes(m.tensors().into_iter().filter(|t| !own.contains(&t.name)).collect())
    };
    let text = calibration(85, 3);
    let cx = Context { calibration: Some(&text), seed: 7, ..Context::new(&model) };
    for options in methods() {
        assert!(options.tables_alone());
        let [whole, behind] = [&model, &cut].map(|m| embedded_under(m, &options, &cx).0);
        assert_eq!(tables(&whole), tables(&behind), "{options:?}");
        assert_eq!(rest(&cut), rest(&behind), "{options:?}");
    }
}

#[test]
fn what_is_written_is_read_and_answers_the_same() {
    let texts = batch(80, &[6, 1, 9]);
    let all = methods();
    for (i, (family, task)) in each().enumerate() {
        let dtype = [Dtype::F32, Dtype::F16, Dtype::BF16][i % 3];
        let model = parts(family, task, 81).stored_as(dtype).open();
        let mut options = all[i % all.len()].clone();
        if model.embeddings.position.is_none() {
            options.positions = Positions::None;
        }
        let options = &options;
        let (after, _) = embedded(&model, options, None);
        let again = reopen(&after);
        let what = format!("{family} {task:?} {options:?}");
        assert_eq!(answers(&again, &texts, None), answers(&after, &texts, None), "{what}");
        assert_eq!(stored(&again), stored(&after), "{what}");
        let recipe = serde_json::json!("tests");
        assert_eq!(again.config_json(&recipe), after.config_json(&recipe), "{what}");
        let bytes: usize = after.embeddings.word.tensors().iter().map(|t| t.bytes().len()).sum();
        assert_eq!(after.embeddings.word.bytes(), bytes, "{what}");
    }
}

#[test]
fn a_table_is_looked_up_as_it_stands_and_tied_heads_use_it() {
    let texts = batch(82, &[6, 1, 9]);
    for options in methods() {
        for task in [Task::MaskedLm, Task::SequenceClassification] {
            let (after, _) = embedded(&tiny("bert", task, 83), &options, None);
            let dense = after.embeddings.word.to_f32().expect("floats").into_owned();
            let ids: Vec<u32> = (0..VOCAB as u32).rev().collect();
            let rows = lookup::rows(&after.embeddings.word, &ids).expect("floats");
            for (row, id) in rows.chunks(HIDDEN).zip(ids) {
                assert!(distance(row, &dense[id as usize * HIDDEN..][..HIDDEN]) < 1e-5);
            }
            // A dense table of the same numbers, and its tied decoder.
            let mut plain = after.clone();
            let name = format!("{}.weight", after.embeddings.word.name());
            let tensor = Tensor::from_f32(name, &[VOCAB, HIDDEN], &dense, Dtype::F32);
            plain.embeddings.word = Weight::Dense(tensor);
            let off = distance(&answers(&after, &texts, None), &answers(&plain, &texts, None));
            assert!(off < 1e-4, "{options:?} {task:?}: {off}");
        }
    }
}

/// `Σ (e − ê)ᵀ S (e − ê)`
fn lost(model: &Model, after: &Model, metric: &[f64]) -> f64 {
    let [before, after] =
        [model, after].map(|m| m.embeddings.word.to_f32().expect("floats").into_owned());
    let cols = model.embeddings.word.cols();
    let off: Vec<f64> = before.iter().zip(&after).map(|(x, y)| f64::from(x - y)).collect();
    let product = |x: &[f64], line: &[f64]| x.iter().zip(line).map(|(x, s)| x * s).sum::<f64>();
    let one = |x: &[f64]| -> f64 {
        x.iter().zip(metric.chunks_exact(cols)).map(|(xi, line)| xi * product(x, line)).sum()
    };
    off.chunks_exact(cols).map(one).sum()
}

#[test]
fn roots_of_a_metric_multiply_to_it_block_by_block() {
    let (cols, block) = (6, 3);
    let x = gaussian(12 * cols, 3);
    let mut metric = vec![0.0f64; cols * cols];
    for row in x.chunks_exact(cols) {
        let pairs =
            (0..cols * cols).map(|at| f64::from(row[at / cols]) * f64::from(row[at % cols]));
        metric.iter_mut().zip(pairs).for_each(|(m, p)| *m += p);
    }
    let [root, inverse] = metric::roots(&metric, cols, block);
    for (at, (root, inverse)) in root.chunks_exact(9).zip(inverse.chunks_exact(9)).enumerate() {
        for (i, j) in (0..9).map(|k| (k / block, k % block)) {
            let times = |a: &[f32], b: &[f32]| -> f64 {
                (0..block).map(|k| f64::from(a[i * block + k]) * f64::from(b[k * block + j])).sum()
            };
            let expected = metric[(at * block + i) * cols + at * block + j];
            assert!((times(root, root) - expected).abs() < 1e-4 * expected.abs().max(1.0));
            let one = f64::from(u8::from(i == j));
            assert!((times(root, inverse) - one).abs() < 1e-4);
        }
    }
}

#[test]
fn codes_are_chosen_by_what_answers_depend_on() {
    let text = calibration(86, 6);
    for (family, task) in each() {
        let model = tiny(family, task, 87);
        if model.family.feature.is_some() {
            continue; // nothing goes back through it
        }
        let cx = Context { calibration: Some(&text), seed: 7, ..Context::new(&model) };
        let metric = metric::metric(&model, &text, 7).expect("texts that fit");
        let options = Embed { bytes: 4, exact: 0, words: 8, ..Embed::default() };
        let plain = Embed { distance: Distance::Plain, ..options.clone() };
        let [by_answers, plain] = [&options, &plain].map(|o| embedded_under(&model, o, &cx).0);
        let [found, without] = [&by_answers, &plain].map(|after| lost(&model, after, &metric));
        assert!(found < without, "{family} {task:?}: {found}, {without}");
        // Without text the one is the other.
        let cx = Context { calibration: None, ..cx };
        let again = embedded_under(&model, &options, &cx).0;
        assert_eq!(stored(&again), stored(&plain), "{family} {task:?}");
    }
}

#[test]
fn gradients_beyond_f32_are_refused_and_the_plain_distance_is_not() {
    let mut parts = parts("bert", Task::SequenceClassification, 88);
    let out = parts.tensor("classifier.weight");
    let values: Vec<f32> = out.to_f32().expect("floats").iter().map(|x| x * 1e25).collect();
    *out = Tensor::from_f32("classifier.weight", &out.shape, &values, Dtype::F32);
    let (model, text) = (parts.open(), calibration(89, 2));
    let cx = Context { calibration: Some(&text), ..Context::new(&model) };
    let refused = Embed::default().run(&mut model.clone(), &cx).unwrap_err().to_string();
    assert!(refused.contains("beyond f32") && refused.contains("distance=plain"), "{refused}");
    embedded_under(&model, &Embed { distance: Distance::Plain, ..Embed::default() }, &cx);
}

#[test]
fn a_tied_copy_of_the_table_goes_with_it() {
    let mut parts = parts("bert", Task::MaskedLm, 84);
    let copy = parts.tensor("bert.embeddings.word_embeddings.weight").clone();
    parts.tensors.push(copy.renamed("cls.predictions.decoder.weight"));
    assert!(embedded(&parts.open(), &Embed::default(), None).0.unused.is_empty());
}

#[test]
fn special_and_frequent_rows_are_exact_and_unused_ones_weigh_nothing() {
    let model = parts("bert", Task::Bare, 85).stored_as(Dtype::F16).open();
    let mut words = Words { counts: vec![1; VOCAB], source: "x.txt".into(), ..Words::default() };
    words.counts[20] = 9;
    words.counts[11] = 8;
    words.special = [3, 4].into();
    words.unused = [5, 6, 7].into();
    let options = Embed { exact: 2, ..Embed::default() };
    let (after, _) = embedded(&model, &options, Some(&words));
    let Weight::Subspace(found) = &after.embeddings.word else { panic!("a subspace table") };
    // 1 is the padding id of config.json.
    assert_eq!(found.exact.ids, [1, 3, 4, 11, 20]);
    let before = model.embeddings.word.to_f32().expect("floats").into_owned();
    let rows = lookup::rows(&after.embeddings.word, &found.exact.ids).expect("floats");
    for (row, &id) in rows.chunks(HIDDEN).zip(&found.exact.ids) {
        assert_eq!(row, &before[id as usize * HIDDEN..][..HIDDEN]);
    }
    let frequencies = Frequencies::new(Some(&words), VOCAB, 1);
    let weights = frequencies.weights(&options, &found.exact.ids);
    let zero: Vec<usize> = (0..VOCAB).filter(|&id| weights[id] == 0.0).collect();
    assert_eq!(zero, [1, 3, 4, 5, 6, 7, 11, 20]);
    assert!((weights[8] - 1.1f32.sqrt()).abs() < 1e-6);
}

#[test]
fn counts_without_text_follow_the_order_of_the_vocabulary() {
    let none = Frequencies::new(None, 100, 0);
    assert_eq!(none.counts[0], 0.0);
    assert!(none.counts[1..].windows(2).all(|w| w[0] > w[1]));
    assert!((none.counts.iter().sum::<f64>() - 1000.0).abs() < 1e-9);
    insta::assert_snapshot!(none.note, @"There was no text to count words in: counts are Zipf's, by the order of the vocabulary");
    let words = Words {
        counts: (0..100).map(|i| u64::from(i == 50) * 30).collect(),
        tokens: 30,
        texts: 2,
        builtin: true,
        source: "built-in text".into(),
        ..Words::default()
    };
    let blended = Frequencies::new(Some(&words), 100, 0);
    assert!((blended.counts.iter().sum::<f64>() - 60.0).abs() < 1e-9);
    assert_eq!(blended.exact(1), [0, 50]);
    insta::assert_snapshot!(blended.note, @"Words are counted in built-in text: 2 texts, 30 tokens, 1 of 100 rows; as many again are Zipf's, by the order of the vocabulary");
}

/// Notes, §8, test 1.
#[test]
fn roots_and_digits_are_whole_numbers() {
    for ((rows, slices), expected) in [
        ((27, 3), 3),
        ((64, 3), 4),
        ((250_002, 2), 501),
        ((250_002, 3), 63),
        ((30_522, 8), 4),
        ((30_522, 3), 32),
        ((50_265, 3), 37),
        ((8, 3), 2),
        ((10, 2), 4),
    ] {
        assert_eq!(paper::root(rows, slices), expected, "{rows} {slices}");
    }
    let digits = |row, words, slices| (0..slices).map(|m| digit(row, words, m)).collect::<Vec<_>>();
    assert_eq!(digits(6, 2, 3), [0, 1, 1]);
    assert_eq!([digits(7, 4, 2), digits(9, 4, 2)], [[3, 1], [1, 2]]);
    assert_eq!([digits(101, 32, 3), digits(30_521, 32, 3)], [[5, 3, 0], [25, 25, 29]]);
    assert_eq!(digits(50_264, 37, 3), [18, 26, 36]);
    assert_eq!(digits(250_001, 63, 3), [17, 62, 62]);
}

/// Notes, §8, test 2; codes and codebooks alone.
#[test]
fn bytes_are_those_of_the_formula() {
    let bytes = |rows, width, cols| {
        let plan = Plan { width, words: 256, shared: false, rotation: None };
        plan.bytes(rows, cols, 0) - 4 * cols
    };
    assert_eq!(bytes(30_522, 8, 768), 3_323_328);
    assert_eq!(bytes(30_522, 4, 768), 6_253_440);
    assert_eq!(bytes(250_002, 8, 768), 24_393_408);
    let (rows, cols) = (600, 12);
    let tensor = table(rows, cols, &gaussian(rows * cols, 86));
    let plan = Plan { width: 5, words: 20, shared: false, rotation: Some(cols) };
    let found = subspace::fit((&tensor, "w"), &vec![1.0; rows], &[3, 9], (&plan, None), 0, &Quiet);
    let found = Weight::Subspace(Box::new(found.expect("floats")));
    assert_eq!(found.bytes(), plan.bytes(rows, cols, 2));
    // Notes, §1.6: parameters are the codewords, and 99.895 % fewer of BERT's.
    let tensor = table(1000, 6, &gaussian(6000, 87));
    let options = (&vec![1.0; 1000][..], &vec![1.0; 1000][..]);
    let found = paper::fit((&tensor, "w"), options, &[], (3, 10), Assignment::Dispersed, 0, &Quiet);
    assert_eq!(found.expect("floats").stored_params(), 10 * 6);
}

/// Notes, §8, test 5.
#[test]
fn balanced_slices_gain_what_the_notes_say() {
    let eigenvalues: Vec<f64> = (0..16).map(|j| 2f64.powf(-0.5 * j as f64)).collect();
    let dealt = buckets(&eigenvalues, &[4; 4]);
    // Ties may fall either way; the products are the same.
    let firsts: Vec<[usize; 2]> = dealt.iter().map(|b| [b[0], b[1]]).collect();
    assert_eq!(firsts, [[0, 7], [1, 6], [2, 5], [3, 4]]);
    assert!(dealt.iter().all(|b| b.iter().sum::<usize>() == 30), "{dealt:?}");

    let rows = 8192;
    let mut z = gaussian(rows * 16, 88);
    for row in z.chunks_exact_mut(16) {
        row.iter_mut().enumerate().for_each(|(j, x)| *x *= 2f32.powf(-(j as f32) / 4.0));
    }
    let spread = table(rows, 16, &z);
    let all = Rows::all(&spread);
    let weights = vec![1.0; rows];
    let centre = mean(&all, &weights).expect("floats");
    let found = covariance(&all, &weights, Some(&centre)).expect("floats");
    let r = balanced(&found, 16, 16, 4);
    for i in 0..16 {
        for j in 0..16 {
            let dot: f32 = (0..16).map(|k| r[k * 16 + i] * r[k * 16 + j]).sum();
            assert!((dot - f32::from(u8::from(i == j))).abs() < 1e-5);
        }
    }
    let plan = |words, rotation| Plan { width: 4, words, shared: false, rotation };
    for (words, whole, sliced) in [(16, 0.130, 0.313), (256, 0.030, 0.078)] {
        let rotated = fitted(&spread, &plan(words, Some(16)));
        assert!((rotated / whole - 1.0).abs() < 0.1, "{words}: {rotated}");
        // Columns are its eigenvectors in order.
        let in_order = fitted(&spread, &plan(words, None));
        assert!((in_order / sliced - 1.0).abs() < 0.1, "{words}: {in_order}");
    }
    let alike = table(4096, 8, &gaussian(4096 * 8, 89));
    let change = fitted(&alike, &Plan { width: 4, words: 64, shared: false, rotation: Some(8) })
        / fitted(&alike, &Plan { width: 4, words: 64, shared: false, rotation: None });
    assert!((change - 1.0).abs() < 0.03, "{change}");
}

/// Notes, §8, test 6: `1 − (Q − 1) / (V − 1)`.
#[test]
fn dispersed_codewords_leave_of_noise_what_the_notes_say() {
    let tensor = table(10_000, 8, &gaussian(80_000, 90));
    let ones = vec![1.0; 10_000];
    let tokens = vec![1.0; 10_000];
    let options = (&ones[..], &tokens[..]);
    let found =
        paper::fit((&tensor, "w"), options, &[], (2, 100), Assignment::Dispersed, 0, &Quiet);
    let found = Weight::Subspace(Box::new(found.expect("floats")));
    let left = relative(&tensor, &found);
    assert!((left - 0.990).abs() < 0.004, "{left}");
    let Weight::Subspace(found) = found else { unreachable!("just made") };
    assert!(matches!(found.codes, Codes::Digits));
}

#[test]
fn every_row_keeps_a_tuple_of_its_own() {
    let (rows, slices) = (400, 3);
    let tensor = table(rows, 9, &gaussian(rows * 9, 91));
    let weights = vec![1.0; rows];
    let tokens: Vec<f64> = (0..rows).map(|i| i as f64).collect();
    for assignment in [Assignment::Independent, Assignment::Hierarchical, Assignment::Dispersed] {
        let words = paper::root(rows, slices);
        let shape = (slices, words);
        let found =
            paper::fit((&tensor, "w"), (&weights, &tokens), &[], shape, assignment, 0, &Quiet);
        let found = found.expect("floats");
        let tuple = |row| (0..slices).map(|m| found.code(row, m)).collect::<Vec<_>>();
        let mut tuples: Vec<_> = (0..rows).map(tuple).collect();
        assert!(tuples.iter().flatten().all(|&code| code < words));
        tuples.sort();
        tuples.dedup();
        assert_eq!(tuples.len(), rows, "{assignment:?}");
    }
}

#[test]
fn more_codes_and_more_codewords_never_lose_more() {
    let tensor = table(3000, 16, &gaussian(48_000, 92));
    let error =
        |width, words| fitted(&tensor, &Plan { width, words, shared: false, rotation: None });
    let by_width: Vec<f64> = [8, 4, 2].map(|width| error(width, 64)).into();
    let by_words: Vec<f64> = [16, 64, 256].map(|words| error(4, words)).into();
    for errors in [by_width, by_words] {
        assert!(errors.windows(2).all(|w| w[1] <= 1.01 * w[0]), "{errors:?}");
    }
}

#[test]
fn threads_and_repetition_change_no_byte() {
    let model = tiny("bert", Task::Bare, 93);
    for options in methods() {
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            pool.expect("threads").install(|| stored(&embedded(&model, &options, None).0))
        };
        assert_eq!(run(1), run(3), "{options:?}");
    }
}

#[test]
fn a_share_is_met_or_refused_with_the_least_that_can_be() {
    let rows = 3000;
    let model = parts_of("bert", Task::Bare, 94, 16);
    let frequencies = Frequencies::new(None, rows, 0);
    for share in [0.5, 0.2, 0.1] {
        let options = Embed { share, ..Embed::default() };
        let (plan, hottest) =
            options.plan(rows, 16, frequencies.special.len(), &mut Vec::new()).expect("room");
        let bytes = plan.bytes(rows, 16, hottest + 1);
        assert!(bytes as f64 <= share * (4 * rows * 16) as f64, "{share}: {bytes} {plan:?}");
    }
    let mut model = model.open();
    let teacher = model.clone();
    let refusal = |options: Embed, model: &mut Model| {
        options.run(model, &Context::new(&teacher)).expect_err("refused").to_string()
    };
    let none = Embed::default();
    insta::assert_snapshot!(refusal(Embed { share: 0.01, ..none.clone() }, &mut model), @"pass `embed`: `share` is 0.01, expected at least 0.4511 for this table");
    insta::assert_snapshot!(refusal(Embed { bytes: 17, ..none.clone() }, &mut model), @"pass `embed`: `bytes` is 17, expected at most 16, one a column");
    insta::assert_snapshot!(refusal(Embed { bytes: 1, share: 0.5, ..none.clone() }, &mut model), @"pass `embed`: `share` is 0.5 beside bytes=1, expected one of them");
    insta::assert_snapshot!(refusal(Embed { method: Method::Int8, bytes: 4, ..none.clone() }, &mut model), @"pass `embed`: `bytes` is 4, expected 0: only `subspace` and `svd` have a size to choose");
    insta::assert_snapshot!(refusal(Embed { method: Method::F16, exact: 4, ..none.clone() }, &mut model), @"pass `embed`: `exact` is 4, expected -1 or 0: `int8` and `f16` round all rows alike");
    insta::assert_snapshot!(refusal(Embed { method: Method::Svd, bytes: 1, ..none.clone() }, &mut model), @"pass `embed`: `bytes` is 1, expected 2 to 32, two bytes a rank");
    insta::assert_snapshot!(refusal(Embed { method: Method::Paper, words: 3, ..none.clone() }, &mut model), @"pass `embed`: `words` is 3, expected at least 4, of which 3 slices tell 30 rows apart");
    insta::assert_snapshot!(refusal(Embed { method: Method::Paper, slices: 20, ..none.clone() }, &mut model), @"pass `embed`: `slices` is 20, expected a number of slices that 16 columns can be cut into");
    insta::assert_snapshot!(refusal(Embed { words: 257, ..none.clone() }, &mut model), @"pass `embed`: `words` is 257, expected 0, or a number from 2 to 256");
    insta::assert_snapshot!(refusal(Embed { alpha: 0.0, ..none.clone() }, &mut model), @"pass `embed`: `alpha` is 0, expected a number above 0, at most 1000000");
    none.run(&mut model, &Context::new(&teacher)).expect("a dense table");
    insta::assert_snapshot!(refusal(none, &mut model), @"the table `embeddings.word_embeddings` is already stored as subspace(slices=4, words=30, exact=2), but only a dense table can be cut or packed; behind `embed`, leave the embeddings alone: `quantize(embeddings=none)`, `binarize(embeddings=0)`");
}

#[test]
fn the_report_is_for_people() {
    let mut parts = parts("electra", Task::SequenceClassification, 95);
    parts.config["vocab_size"] = serde_json::json!(400);
    let name = "electra.embeddings.word_embeddings.weight";
    let large = Tensor::from_f32(name, &[400, 8], &gaussian(3200, 96), Dtype::F32);
    *parts.tensor(name) = large;
    let (_, mut work) = embedded(&parts.open(), &Embed::default(), None);
    // The last digits of an error are the platform's.
    work.changes.iter_mut().for_each(|c| c.error = c.error.map(|e| (e * 1e2).round() / 1e2));
    let text = work.notes.join("\n") + "\n" + &report::markdown_changes(&work.changes);
    insta::assert_snapshot!(text, @r"
    There was no text to count words in: counts are Zipf's, by the order of the vocabulary
    Codebooks of their own would cost more than the codes: all slices share one
    A book has 200 codewords: the vocabulary is small
    Codes are chosen by the plain distance of rows
    The table has 1,080 numbers in the place of 3,200 (66.250 % fewer), and 3,080 bytes in the place of 12,800 (75.938 % fewer, 4.16 times smaller), codes included; 4.16 times smaller than in f32
    | matrix | before | after | error |
    |---|---|---|---|
    | electra.embeddings.word_embeddings | f32 400 x 8 | subspace(slices=2, words=200, exact=26) 400 x 8 | 0.0500 |
    ");
}
