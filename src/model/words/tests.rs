//! What is left of a vocabulary answers as before.

use super::*;
use crate::checkpoint::Dtype;
use crate::model::testing::*;
use crate::runtime::Batch;
use serde_json::json;

/// The same texts in new ids.
fn renamed(batch: &Batch, keep: &[u32]) -> Batch {
    let mut batch = batch.clone();
    for id in &mut batch.ids {
        *id = keep.binary_search(id).expect("a kept id") as u32;
    }
    batch
}

#[test]
fn every_model_answers_as_before_on_what_is_left() {
    for (i, (family, task)) in each().enumerate() {
        let dtype = [Dtype::F32, Dtype::F16, Dtype::BF16][i % 3];
        let model = parts(family, task, 7).stored_as(dtype).open();
        let keep: Vec<u32> = (0..VOCAB as u32).filter(|id| id % 3 < 2).collect();
        let mut texts = batch(8, &[5, 1, 7]);
        texts.ids.iter_mut().for_each(|id| *id = keep[*id as usize % keep.len()]);
        let small = reopen(&model.select_words(&keep).expect("a dense table"));
        assert_eq!(small.config.vocab, keep.len());
        assert!(small.loads_natively(), "{family} {task:?}");
        let (before, after) =
            (answers(&model, &texts, None), answers(&small, &renamed(&texts, &keep), None));
        let before: Vec<f32> = match task {
            Task::MaskedLm => before
                .chunks(VOCAB)
                .flat_map(|row| keep.iter().map(|&id| row[id as usize]))
                .collect(),
            _ => before,
        };
        // A product of another width may be summed in another order.
        assert!(distance(&after, &before) < 1e-6, "{family} {task:?}");
    }
}

#[test]
fn copies_of_the_table_and_the_bias_are_cut_alike() {
    let mut parts = parts("bert", Task::MaskedLm, 9);
    let table = parts.tensor("bert.embeddings.word_embeddings.weight").clone();
    let bias = parts.tensor("cls.predictions.bias").clone();
    parts.tensors.push(table.renamed("cls.predictions.decoder.weight"));
    parts.tensors.push(bias.renamed("cls.predictions.decoder.bias"));
    let small = reopen(&parts.open().select_words(&[0, 1, 4, 9]).expect("dense"));
    let stored = |name: &str| {
        let found = small.tensors().into_iter().find(|t| t.name == name).expect("stored");
        (found.shape.clone(), found.bytes().to_vec())
    };
    assert_eq!(
        stored("cls.predictions.decoder.weight"),
        stored("bert.embeddings.word_embeddings.weight")
    );
    assert_eq!(stored("cls.predictions.decoder.bias"), stored("cls.predictions.bias"));
    assert_eq!(stored("cls.predictions.bias").0, [4]);
}

#[test]
fn a_decoder_of_its_own_is_cut_with_the_table() {
    let mut parts = parts("bert", Task::MaskedLm, 10);
    parts.config["tie_word_embeddings"] = json!(false);
    let table = parts.tensor("bert.embeddings.word_embeddings.weight").clone();
    parts.tensors.push(table.renamed("cls.predictions.decoder.weight"));
    let small = reopen(&parts.open().select_words(&[0, 1, 4, 9]).expect("dense"));
    let Head::MaskedLm { decoder: Some(decoder), .. } = &small.head else { panic!("a decoder") };
    assert_eq!(decoder.bytes(), small.embeddings.word.dense().expect("dense").bytes());
}

#[test]
fn ids_of_the_configuration_move_with_their_rows() {
    let mut parts = parts("roberta", Task::Bare, 11);
    parts.config["eos_token_id"] = json!([2, 9]);
    parts.config["mask_token_id"] = json!(29);
    parts.config["bos_token_id"] = json!(50256);
    parts.config["sep_token_id"] = Value::Null;
    let model = parts.open();
    assert_eq!(model.config.token_ids().into_iter().collect::<Vec<_>>(), [1, 2, 9, 29]);
    let small = model.select_words(&[1, 2, 9, 29]).expect("dense").config;
    assert_eq!((small.pad_id, small.vocab), (0, 4));
    let said = ["pad_token_id", "eos_token_id", "mask_token_id", "bos_token_id", "sep_token_id"]
        .map(|key| small.raw[key].to_string());
    assert_eq!(said, ["0", "[1,2]", "3", "50256", "null"]);
}

#[test]
fn a_packed_table_is_refused_with_the_order_that_works() {
    let mut model = tiny("bert", Task::Bare, 12);
    let table = model.embeddings.word.to_f32().expect("dense").into_owned();
    let name = model.embeddings.word.name().to_string();
    model.embeddings.word = Weight::Int8(Int8::new(name, (VOCAB, HIDDEN), &table));
    let error = model.select_words(&[1, 2]).expect_err("packed");
    insta::assert_snapshot!(error, @"`embeddings.word_embeddings` is stored as int8, but only rows of a dense table can be cut out; run `vocab` before the passes that pack the word embeddings: `embed`, `binarize`, `quantize`");
}
