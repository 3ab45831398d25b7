//! What quantising costs, what it stores, and that the packed model is the model that is read back.

use super::*;
use crate::checkpoint::{Dtype, Tensor};
use crate::model::Task;
use crate::model::testing::*;
use crate::report;

fn quantized(model: &Model, options: &Quantize) -> (Model, Work) {
    let mut after = model.clone();
    let work = options.run(&mut after, &Context::new(model)).expect("options in range");
    after.validate().expect("parts that fit");
    (after, work)
}

#[test]
fn packing_is_done_once() {
    let texts = batch(70, &[6, 1, 9]);
    let forms = [Form::None, Form::Int8, Form::F16];
    for (i, (family, task)) in each().enumerate() {
        let dtype = [Dtype::F32, Dtype::F16, Dtype::BF16][i % 3];
        let model = parts(family, task, 71).stored_as(dtype).open();
        let options =
            Quantize { form: forms[1 + i % 2], embeddings: forms[i % 3], head: forms[i / 3 % 3] };
        let (after, _) = quantized(&model, &options);
        let again = reopen(&after);
        let what = format!("{family} {task:?} {options:?}");
        assert_eq!(answers(&again, &texts, None), answers(&after, &texts, None), "{what}");
        assert_eq!(stored(&again), stored(&after), "{what}");
        let recipe = serde_json::json!("tests");
        assert_eq!(again.config_json(&recipe), after.config_json(&recipe), "{what}");
        let packed = [options.form, options.embeddings].contains(&Form::Int8);
        assert!(!packed || !again.loads_natively(), "{what}");
    }
}

#[cfg(unix)]
#[test]
fn finished_layers_wait_in_a_file_and_are_what_they_would_be_in_memory() {
    let folder = tempfile::tempdir().unwrap();
    let spill = crate::checkpoint::Spill::new(folder.path());
    for form in [Form::Int8, Form::F16] {
        let model = tiny("bert", Task::Bare, 75);
        let options = Quantize { form, ..Quantize::default() };
        let (expected, _) = quantized(&model, &options);
        let mut found = model.clone();
        let cx = Context { spill: Some(&spill), ..Context::new(&model) };
        options.run(&mut found, &cx).expect("options in range");
        assert_eq!(stored(&found), stored(&expected), "{form:?}");
        let bulk = |t: &Tensor| t.shape.len() == 2 && t.name.contains(".layer.");
        let layers = found.tensors();
        let matrices: Vec<&Tensor> = layers.iter().filter(|t| bulk(t)).collect();
        assert_eq!(matrices.len(), 18, "{form:?}");
        assert!(matrices.iter().all(|t| t.is_mapped()), "{form:?}");
    }
}

#[test]
fn answers_stay_near_what_they_were() {
    let texts = batch(72, &[7, 4, 9]);
    for (family, task) in each() {
        let model = tiny(family, task, 73);
        let expected = answers(&model, &texts, None);
        let size = expected.iter().fold(0.0f32, |most, x| most.max(x.abs()));
        // Half a step of 64, and of 255 for inputs, through three layers; f16 has 11 bits.
        // Products of two rounded numbers are off by both.
        let gated = model.layers[0].ffn.as_ref().is_some_and(|f| f.gate.is_some());
        for (form, most) in [(Form::Int8, if gated { 0.15 } else { 0.1 }), (Form::F16, 5e-3)] {
            let (after, work) = quantized(&model, &Quantize { form, embeddings: form, head: form });
            let found = answers(&after, &texts, None);
            let pairs = found.iter().zip(&expected);
            let off = pairs.fold(0.0f32, |most, (a, b)| most.max((a - b).abs())) / size;
            assert!(off > 0.0 && off < most, "{family} {task:?} {form:?}: {off}");
            let errors = work.changes.iter().filter_map(|c| c.error);
            assert!(errors.fold(0.0, f64::max) < if form == Form::Int8 { 5e-4 } else { 1e-6 });
        }
    }
}

#[test]
fn half_precision_loads_natively_and_a_quarter_is_left_of_a_matrix_in_int8() {
    let model = tiny("bert", Task::SequenceClassification, 74);
    let f16 = Quantize { form: Form::F16, embeddings: Form::F16, head: Form::F16 };
    let (after, work) = quantized(&model, &f16);
    assert!(after.loads_natively() && reopen(&after).loads_natively());
    assert!(work.changes.iter().all(|c| 2 * c.after.bytes == c.before.bytes));
    let (_, work) = quantized(&model, &Quantize::default());
    for change in &work.changes {
        let scales = 2 * change.after.shape[0];
        assert_eq!(4 * (change.after.bytes - scales), change.before.bytes, "{}", change.tensor);
    }
}

#[test]
fn a_tied_copy_of_the_table_goes_with_it() {
    let mut parts = parts("bert", Task::MaskedLm, 75);
    let copy = parts.tensor("bert.embeddings.word_embeddings.weight").clone();
    parts.tensors.push(copy.renamed("cls.predictions.decoder.weight"));
    let model = parts.open();
    let layers = Quantize { embeddings: Form::None, ..Quantize::default() };
    assert_eq!(quantized(&model, &layers).0.unused.len(), 1, "the copy is true and stays");
    assert!(quantized(&model, &Quantize::default()).0.unused.is_empty());
}

#[test]
fn a_table_can_be_packed_beside_sign_planes_and_nothing_is_packed_twice() {
    let model = tiny("bert", Task::Bare, 76);
    let (once, _) = quantized(&model, &Quantize { embeddings: Form::None, ..Quantize::default() });
    let table = Quantize { form: Form::None, ..Quantize::default() };
    let (both, work) = quantized(&once, &table);
    assert_eq!(work.changes.len(), 1);
    assert_eq!(both.embeddings.word.form(), "int8");
    let mut again = once.clone();
    let error = Quantize::default().run(&mut again, &Context::new(&model)).expect_err("packed");
    insta::assert_snapshot!(error, @"`encoder.layer.0.attention.self.query` is packed as int8, but only dense weights can be cut or packed; start from the checkpoint as it was before it was packed");
}

#[test]
fn a_head_without_matrices_is_told() {
    let model = tiny("bert", Task::Embedding, 77);
    let (_, work) = quantized(&model, &Quantize { head: Form::Int8, ..Quantize::default() });
    assert_eq!(work.notes, ["the head has no matrix to quantise"]);
}

#[test]
fn refusals_name_what_is_wrong() {
    let mut model = tiny("bert", Task::Bare, 78);
    let nothing = Quantize { form: Form::None, embeddings: Form::None, head: Form::None };
    let teacher = model.clone();
    let run = |options: &Quantize, model: &mut Model| {
        options.run(model, &Context::new(&teacher)).expect_err("out of range").to_string()
    };
    insta::assert_snapshot!(run(&nothing, &mut model), @"pass `quantize`: `form` is none, as `embeddings` and `head` are, expected int8 or f16 for one of them");
    let large = [1e5; HIDDEN * HIDDEN];
    let query = &mut model.layers[0].attention.as_mut().expect("attention").query;
    let name = format!("{}.weight", query.weight.name());
    query.weight = Weight::Dense(Tensor::from_f32(name, &[HIDDEN, HIDDEN], &large, Dtype::F32));
    let f16 = Quantize { form: Form::F16, ..nothing };
    insta::assert_snapshot!(run(&f16, &mut model), @"`encoder.layer.0.attention.self.query.weight` holds 100000, but f16 ends at 65504; choose int8 for it, or none");
}

#[test]
fn the_table_of_changes_is_for_people() {
    let mut model = tiny("electra", Task::SequenceClassification, 79);
    model.layers.truncate(1);
    let options = Quantize { head: Form::F16, ..Quantize::default() };
    let (_, mut work) = quantized(&model, &options);
    // The last digits of an error are the platform's.
    work.changes.iter_mut().for_each(|c| c.error = c.error.map(|e| (e * 1e4).round() / 1e4));
    insta::assert_snapshot!(report::markdown_changes(&work.changes), @r"
    | matrix | before | after | error |
    |---|---|---|---|
    | electra.embeddings_project | f32 16 x 8 | int8 16 x 8 | 0.0000 |
    | electra.encoder.layer.0.attention.self.query | f32 16 x 16 | int8 16 x 16 | 0.0001 |
    | electra.encoder.layer.0.attention.self.key | f32 16 x 16 | int8 16 x 16 | 0.0001 |
    | electra.encoder.layer.0.attention.self.value | f32 16 x 16 | int8 16 x 16 | 0.0001 |
    | electra.encoder.layer.0.attention.output.dense | f32 16 x 16 | int8 16 x 16 | 0.0001 |
    | electra.encoder.layer.0.intermediate.dense | f32 24 x 16 | int8 24 x 16 | 0.0001 |
    | electra.encoder.layer.0.output.dense | f32 16 x 24 | int8 16 x 24 | 0.0001 |
    | electra.embeddings.word_embeddings | f32 30 x 8 | int8 30 x 8 | 0.0001 |
    | classifier.dense | f32 16 x 16 | f16 16 x 16 | 0.0000 |
    | classifier.out_proj | f32 3 x 16 | f16 3 x 16 | 0.0000 |
    ");
}
