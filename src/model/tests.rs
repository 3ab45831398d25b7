//! Loading and storing, for every family and head.

use super::testing::*;
use super::*;
use crate::checkpoint::Dtype;
use serde_json::{Value, json};

#[test]
fn an_untouched_model_is_stored_as_it_was_read() {
    for (family, task) in every() {
        let mut parts = parts(family, task, 1);
        let prefix = if matches!(task, Task::Embedding | Task::Bare) { "" } else { parts.prefix() };
        let ids: Vec<i64> = (0..20).collect();
        let extra = Tensor::from_i64(format!("{prefix}embeddings.position_ids"), &[1, 20], &ids);
        parts.tensors.push(extra);
        let model = parts.open();
        assert_eq!(model.config_json(&Value::Null), parts.config, "{family} {task:?}");
        assert_eq!(model.unused.len(), 1);
        let mut expected = parts.tensors.clone();
        let mut found = model.tensors();
        expected.sort_by(|a, b| a.name.cmp(&b.name));
        found.sort_by(|a, b| a.name.cmp(&b.name));
        assert_eq!(found.len(), expected.len(), "{family} {task:?}");
        for (found, expected) in found.iter().zip(&expected) {
            assert_eq!((&found.name, found.dtype), (&expected.name, expected.dtype));
            assert_eq!((&found.shape, found.bytes()), (&expected.shape, expected.bytes()));
        }
    }
}

impl Parts {
    fn prefix(&self) -> &'static str {
        family::find(self.config["model_type"].as_str().unwrap_or_default()).expect("known").prefix
    }
}

/// Names of all that is in the file and not in the model's parts.
fn unused(model: &Model) -> Vec<&str> {
    model.unused.iter().map(|t| t.name.as_str()).collect()
}

#[test]
fn what_transformers_ignores_is_kept_byte_for_byte() {
    let names =
        ["cls.seq_relationship.weight", "cls.predictions.decoder.bias", "bert.pooler.dense.weight"];
    let mut parts = parts("bert", Task::MaskedLm, 2);
    let values = gaussian(5, 3);
    parts.tensors.extend(names.map(|n| Tensor::from_f32(n, &[5], &values, Dtype::BF16)));
    let model = parts.open();
    let mut expected = names;
    expected.sort();
    assert_eq!(unused(&model), expected);
    assert_eq!(stored(&reopen(&model)), stored(&model));
    let bytes = Tensor::from_f32("", &[5], &values, Dtype::BF16);
    assert!(reopen(&model).unused.iter().all(|t| t.bytes() == bytes.bytes()));
}

#[test]
fn a_tied_decoder_is_a_copy_and_an_untied_one_a_part() {
    for family in family::ALL {
        let mut parts = parts(family.model_type, Task::MaskedLm, 4);
        let name = format!("{}.weight", family.masked_lm.decoder);
        let word = format!("{}{}.weight", family.prefix, family.word);
        let shape = parts.tensor(&word).shape.clone();
        let without = parts.open();
        let batch = batch(5, &[6, 2]);

        let other = gaussian(shape.iter().product(), 6);
        parts.tensors.push(Tensor::from_f32(name.clone(), &shape, &other, Dtype::F32));
        let tied = parts.open();
        assert_eq!(unused(&tied), [name.as_str()]);
        assert_eq!(answers(&tied, &batch, None), answers(&without, &batch, None));

        parts.config["tie_word_embeddings"] = json!(false);
        let untied = parts.open();
        assert_eq!(unused(&untied), [""; 0]);
        assert!(distance(&answers(&untied, &batch, None), &answers(&tied, &batch, None)) > 0.1);
        assert_eq!(answers(&reopen(&untied), &batch, None), answers(&untied, &batch, None));
    }
}

#[test]
fn a_layer_without_sublayers_is_an_identity_and_is_read_back_so() {
    for family in family::ALL {
        let mut model = tiny(family.model_type, Task::Bare, 7);
        let shorter = Model {
            layers: vec![model.layers[0].clone(), model.layers[2].clone()],
            ..model.clone()
        };
        model.layers[1] = Layer { attention: None, ffn: None };
        let batch = batch(8, &[5, 1]);
        let expected = answers(&shorter, &batch, None);
        assert_eq!(answers(&model, &batch, None), expected);
        let again = reopen(&model);
        assert!(again.layers[1].attention.is_none() && again.layers[1].ffn.is_none());
        assert_eq!(answers(&again, &batch, None), expected);
    }
}

#[test]
fn the_compress_entry_says_what_shapes_do_not() {
    let mut model = tiny("bert", Task::Bare, 9);
    let attention = model.layers[0].attention.take().expect("attention");
    model.layers[0].attention = Some(attention.select_heads(&[1, 3]).expect("dense"));
    model.layers[1].attention = None;
    let ffn = model.layers[2].ffn.take().expect("a block");
    let mut ffn = ffn.select_units(&[0, 5, 7]).expect("dense");
    let codes: Vec<u8> = (0..3 * HIDDEN).map(|i| (i % 4) as u8).collect();
    let name = ffn.up.weight.name().to_string();
    // Groups of 10 of 16 columns: the last one is short.
    let binary = Binary::new(name, (3, HIDDEN), 2, 10, &codes, &[0.5; 2 * 3 * 2], None);
    ffn.up.weight = Weight::Binary(binary);
    model.layers[2].ffn = Some(ffn);
    let json = model.config_json(&json!({"passes": []}));
    insta::assert_snapshot!(json["compress"], @r#"{"version":1,"recipe":{"passes":[]},"head_dim":4,"layers":[{"heads":[1,3],"ffn":24},{"heads":null,"ffn":24},{"heads":[0,1,2,3],"ffn":3}],"packed":{"encoder.layer.2.intermediate.dense":{"form":"binary","planes":2,"group":10,"rank":null,"activations":null}}}"#);
    let again = reopen(&model);
    assert_eq!(again.config_json(&json!({"passes": []})), json);
    assert_eq!(stored(&again), stored(&model));
    let batch = batch(10, &[4, 7]);
    assert_eq!(answers(&again, &batch, None), answers(&model, &batch, None));
}

#[test]
fn every_tensor_shows_in_the_answer() {
    let texts = batch(11, &[6, 4]);
    for (i, family) in family::ALL.iter().enumerate() {
        let task = TASKS[i % TASKS.len()];
        let parts = parts(family.model_type, task, 12);
        let before = answers(&parts.open(), &texts, None);
        // A shift of all keys by one vector moves all scores of a query alike.
        let key_bias = format!("{}.bias", family.key);
        for t in parts.tensors.iter().filter(|t| !t.name.ends_with(&key_bias)) {
            let values: Vec<f32> = t.to_f32().expect("floats").iter().map(|x| -x).collect();
            let negated = Tensor::from_f32(t.name.clone(), &t.shape, &values, Dtype::F32);
            let other = |o: &Tensor| if o.name == t.name { negated.clone() } else { o.clone() };
            let tensors = parts.tensors.iter().map(other).collect();
            let model = Parts { tensors, config: parts.config.clone(), ..parts }.open();
            let moved = distance(&answers(&model, &texts, None), &before);
            assert!(
                moved > 1e-3,
                "{} {task:?}: `{}` moves it by {moved}",
                family.model_type,
                t.name
            );
        }
    }
}
