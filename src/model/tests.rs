//! Loading and storing, for every family and head.

use super::testing::*;
use super::*;
use crate::checkpoint::Dtype;
use serde_json::{Value, json};

#[test]
fn an_untouched_model_is_stored_as_it_was_read() {
    for (family, task) in each() {
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
    for family in family::ALL.iter().filter(|f| f.tasks.contains(&Task::MaskedLm)) {
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
    for family in family::TRAINED {
        let mut model = tiny(family.model_type, Task::Bare, 7);
        let shorter = Model {
            layers: vec![model.layers[0].clone(), model.layers[2].clone()],
            ..model.clone()
        };
        model.layers[1] = Layer { attention: None, ffn: None, bottleneck: None };
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
        let task = family.tasks[i % family.tasks.len()];
        let parts = parts(family.model_type, task, 12);
        let before = answers(&parts.open(), &texts, None);
        // A shift of all keys by one vector moves all scores of a query alike.
        let mut keys = vec![format!("{}.bias", family.key)];
        keys.extend(family.distances.map(|names| format!("{}.bias", names.key)));
        let of_keys = |t: &&Tensor| keys.iter().any(|bias| t.name.ends_with(bias));
        for t in parts.tensors.iter().filter(|t| !of_keys(t)) {
            let values: Vec<f32> = t.to_f32().expect("floats").iter().map(|x| -x).collect();
            let negated = Tensor::from_f32(t.name.clone(), &t.shape, &values, Dtype::F32);
            let other = |o: &Tensor| if o.name == t.name { negated.clone() } else { o.clone() };
            let tensors = parts.tensors.iter().map(other).collect();
            let model = Parts { tensors, config: parts.config.clone(), ..parts }.open();
            let moved = distance(&answers(&model, &texts, None), &before);
            // What is scaled down layer by layer moves less, and rounding a hundredth of this.
            let least = if family.norms == NormKind::Scale { 2e-5 } else { 1e-3 };
            assert!(
                moved > least,
                "{} {task:?}: `{}` moves it by {moved}",
                family.model_type,
                t.name
            );
        }
    }
}

/// A model whose first layer has a query in two binary factors and a value in int8.
fn with_every_form() -> Model {
    let mut model = tiny("bert", Task::Bare, 13);
    let attention = model.layers[0].attention.as_mut().expect("attention");
    let name = |linear: &Linear| linear.weight.name().to_string();
    let (u, v) = (gaussian(HIDDEN * 40, 14), gaussian(40 * HIDDEN, 15));
    let scales = [HIDDEN, 40, HIDDEN].map(|n| (0..n).map(|i| 0.1 + 0.01 * i as f32).collect());
    let query = &mut attention.query;
    let double = DoubleBinary::new(name(query), (HIDDEN, HIDDEN), 40, (&u, &v), scales);
    query.weight = Weight::Double(double);
    query.activations = Activations::Int4;
    let value = &mut attention.value;
    let int8 = Int8::new(name(value), (HIDDEN, HIDDEN), &gaussian(HIDDEN * HIDDEN, 16));
    value.weight = Weight::Int8(int8);
    value.activations = Activations::Int8;
    let codes = [1; HIDDEN * HIDDEN];
    let factors = LowRank::int8(2, gaussian(2 * HIDDEN, 17), gaussian(2 * HIDDEN, 18));
    let (key, shape) = (&mut attention.key, (HIDDEN, HIDDEN));
    let scales = [0.5; HIDDEN];
    let binary = Binary::new(name(key), shape, 1, HIDDEN, &codes, &scales, Some(factors));
    key.weight = Weight::Binary(binary);
    let table = model.embeddings.word.to_f32().expect("floats").into_owned();
    let int8 = Int8::new(model.embeddings.word.name().into(), (VOCAB, HIDDEN), &table);
    model.embeddings.word = Weight::Int8(int8);
    model
}

#[test]
fn every_form_is_read_as_it_was_written() {
    let model = with_every_form();
    let json = model.config_json(&json!("tests"));
    insta::assert_snapshot!(json["compress"]["packed"], @r#"{"embeddings.word_embeddings":{"form":"int8","activations":null},"encoder.layer.0.attention.self.query":{"form":"double","rank":40,"activations":4},"encoder.layer.0.attention.self.key":{"form":"binary","planes":1,"group":null,"rank":2,"activations":null},"encoder.layer.0.attention.self.value":{"form":"int8","activations":8}}"#);
    let again = reopen(&model);
    assert_eq!(again.config_json(&json!("tests")), json);
    assert_eq!(stored(&again), stored(&model));
    let batch = batch(19, &[4, 7]);
    assert_eq!(answers(&again, &batch, None), answers(&model, &batch, None));
    for weight in [&model.layers[0].linears()[0].1.weight, &model.embeddings.word] {
        let bytes: usize = weight.tensors().iter().map(|t| t.bytes().len()).sum();
        assert_eq!(weight.bytes(), bytes, "{}", weight.form());
    }
    // Where a layer is gone, the others are numbered anew, with what is packed in them.
    let mut shorter = model.clone();
    shorter.layers.swap(0, 1);
    shorter.layers[2] = Layer { attention: None, ffn: None, bottleneck: None };
    let moved = shorter.compacted();
    for (role, linear) in moved.layers[1].linears() {
        let name = linear.weight.name();
        assert!(name.starts_with("encoder.layer.1."), "{role}: {name}");
    }
}

/// What runs is what counts: both factors.
#[test]
fn two_factors_count_as_two_matrices() {
    let dense = tiny("bert", Task::Bare, 13);
    let packed = with_every_form();
    let more = (40 * (HIDDEN + HIDDEN) - HIDDEN * HIDDEN) as u64;
    assert_eq!(cost::macs(&packed, 2, 7), cost::macs(&dense, 2, 7) + 14 * more);
}

#[test]
fn mistakes_in_packed_parts_are_named() {
    let model = with_every_form();
    let mut told = String::new();
    let mut open = |edit: &dyn Fn(&mut Parts)| {
        let config = model.config_json(&json!("tests"));
        let mut parts = Parts { config, tensors: model.tensors(), pooling: None };
        edit(&mut parts);
        let dir = tempfile::tempdir().expect("a temporary folder");
        parts.write(dir.path());
        let error = Model::open(dir.path()).expect_err("a mistake");
        told += &format!("{error}\n");
    };
    let at = |part: &str| format!("encoder.layer.0.attention.self.{part}");
    let halves = |parts: &mut Parts, part: &str, shape: &[usize], value: f32| {
        let values = vec![value; shape.iter().product()];
        *parts.tensor(&at(part)) = Tensor::from_f32(at(part), shape, &values, Dtype::F16);
    };
    for part in ["query.dbf_v", "query.weight_shape", "value.weight_scale", "key.lowrank_u_scale"] {
        open(&|p| p.tensors.retain(|t| t.name != at(part)));
    }
    open(&|p| {
        let name = at("query.dbf_v");
        *p.tensor(&name) = Tensor::from_i32(name.clone(), &[70, 1], &[0; 70]);
    });
    open(&|p| halves(p, "query.dbf_m", &[39], 0.5));
    open(&|p| halves(p, "query.dbf_b", &[HIDDEN], f32::NAN));
    open(&|p| halves(p, "value.weight_scale", &[HIDDEN, 1], 0.5));
    open(&|p| halves(p, "key.lowrank_v_scale", &[3], 0.5));
    open(&|p| {
        let name = at("value.weight_int8");
        let codes = [-65; HIDDEN * HIDDEN];
        *p.tensor(&name) = Tensor::from_i8(name.clone(), &[HIDDEN, HIDDEN], &codes);
    });
    open(&|p| halves(p, "value.weight_int8", &[HIDDEN, HIDDEN], 1.0));
    let query = at("query");
    open(&|p| p.config["compress"]["packed"][&query]["form"] = json!("ternary"));
    open(&|p| p.config["compress"]["packed"][&query]["activations"] = json!(16));
    insta::assert_snapshot!(told, @r#"
    tensor `encoder.layer.0.attention.self.query.dbf_v` is missing, expected by the packed matrix `encoder.layer.0.attention.self.query.dbf_u`; use the config.json that was saved with these weights, or fetch the checkpoint again
    tensor `encoder.layer.0.attention.self.query.weight_shape` is missing, expected by the packed matrix `encoder.layer.0.attention.self.query.dbf_u`; use the config.json that was saved with these weights, or fetch the checkpoint again
    tensor `encoder.layer.0.attention.self.value.weight_scale` is missing, expected by the packed matrix `encoder.layer.0.attention.self.value.weight_int8`; use the config.json that was saved with these weights, or fetch the checkpoint again
    tensor `encoder.layer.0.attention.self.key.lowrank_u_scale` is missing, expected by the packed matrix `encoder.layer.0.attention.self.key.weight_packed`; use the config.json that was saved with these weights, or fetch the checkpoint again
    tensor `encoder.layer.0.attention.self.query.dbf_u` has shape [16, 2], expected [16, 3] from the `compress` entry and the sizes in config.json; use the config.json that was saved with these weights
    tensor `encoder.layer.0.attention.self.query.dbf_m` has shape [39], expected [40] from the `compress` entry and the sizes in config.json; use the config.json that was saved with these weights
    tensor `encoder.layer.0.attention.self.query.dbf_b` holds NaN at flat index 0, expected finite numbers; the checkpoint is damaged or its training diverged
    tensor `encoder.layer.0.attention.self.value.weight_scale` has shape [16, 1], expected [16] from the `compress` entry and the sizes in config.json; use the config.json that was saved with these weights
    tensor `encoder.layer.0.attention.self.key.lowrank_v_scale` has shape [3], expected [2] from the `compress` entry and the sizes in config.json; use the config.json that was saved with these weights
    tensor `encoder.layer.0.attention.self.value.weight_int8` holds the code -65, but codes go from -64 to 64; pack the model again, or fetch the checkpoint again
    tensor `encoder.layer.0.attention.self.value.weight_int8` has dtype F16, expected I8; convert the checkpoint first
    config.json: `compress.packed.encoder.layer.0.attention.self.query.form` is "ternary", expected "binary", "double", "int8", "subspace", "factored": the forms that this build reads; use the config.json that was written with these weights
    config.json: `compress.packed.encoder.layer.0.attention.self.query.activations` is 16, expected null, 8, 4 or 1; use the config.json that was written with these weights
    "#);
}

/// all-mpnet-base-v2 says what its encoder was pre-trained as; sentence-transformers reads the encoder alone.
#[test]
fn a_folder_with_a_pooling_is_a_sentence_embedding_model_whatever_it_was_pre_trained_as() {
    let expected = stored(&tiny("mpnet", Task::Embedding, 12));
    let mut parts = parts("mpnet", Task::Embedding, 12);
    parts.config["architectures"] = json!(["MPNetForMaskedLM"]);
    let model = parts.open();
    assert_eq!((model.config.task, stored(&model)), (Task::Embedding, expected));
    let batch = batch(13, &[4, 6]);
    assert_eq!(answers(&model, &batch, None).len(), 2 * HIDDEN);
}
