//! Checkpoints that BiPFT's training code saves: f32 weights of which it computes with the signs alone, read here as
//! those signs (docs/format.md).

use super::binary::Binary;
use super::config::{Config, Task};
use super::family::{Activation, Family};
use crate::checkpoint::{Checkpoint, Tensor};
use crate::{Error, Result};
use serde_json::{Value, json};

/// Whether `checkpoint` is one: its first layer has a dense matrix with what makes signs of the inputs.
pub fn found(checkpoint: &Checkpoint, family: &Family, prefix: &str) -> bool {
    let query = format!("{prefix}{}0.{}", family.layer, family.query);
    let stored = |part: &str| checkpoint.get(&format!("{query}.{part}")).is_some();
    stored("weight") && stored("move.bias")
}

/// Puts into `config` what the code computes whatever config.json says.
///
/// # Errors
/// If config.json asks for another form than binary weights and activations, or the head is one for masked
/// words, which the code tells by the latent table.
pub fn settle(config: &mut Config, family: &Family) -> Result<()> {
    const ONLY: [(&str, i64); 6] = [
        ("weight_bits", 1),
        ("input_bits", 1),
        ("half_binary", 0),
        ("improve_linear", 0),
        ("sym_quant_ffn_attn", 0),
        ("embed_layerwise", 0),
    ];
    for (key, only) in ONLY {
        let Some(said) = config.raw.get(key) else { continue };
        let value = said.as_bool().map(i64::from).or(said.as_i64());
        if value != Some(only) {
            return Err(Error::Config {
                key: key.into(),
                found: said.to_string(),
                expected: format!("{only}: BiPFT's binary weights and activations"),
                advice: "compress the full-precision model instead",
            });
        }
    }
    if config.task == Task::MaskedLm {
        return Err(Error::Unsupported {
            what: "head on BiPFT's latent weights for",
            found: config.task.name().into(),
            known: format!("{}Model, and classifiers", family.class),
        });
    }
    // Whatever the key says (the code's fine-tuning writes `relu`), feed-forward blocks run GELU.
    config.activation = Activation::Gelu;
    let key = family.keys.activation;
    if config.raw.get(key).and_then(Value::as_str) != Some("gelu") {
        config.raw[key] = json!("gelu");
    }
    Ok(())
}

/// The signs that stand for the latent weights `tensor`.
///
/// # Errors
/// If a latent weight is NaN or infinite.
pub fn matrix(
    tensor: &Tensor,
    name: &str,
    shape: (usize, usize),
    signs: fn(String, (usize, usize), &[f32]) -> Binary,
) -> Result<Binary> {
    tensor.check_finite()?;
    let binary = signs(name.to_string(), shape, &tensor.to_f32()?);
    tensor.release();
    Ok(binary)
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::super::{BinaryAttention, Head, Model, Weight, family};
    use super::*;

    #[test]
    fn what_training_saved_is_read_as_signs_and_stored_as_read() {
        for (family, task) in every().filter(|(_, task)| *task != Task::MaskedLm) {
            let parts = latent(family, task, 90);
            let model = parts.open();
            let what = format!("{family} {task:?}");
            assert_eq!(model.layers[0].linears().len(), 6);
            for (_, linear) in model.layers.iter().flat_map(|l| l.linears()) {
                assert!(linear.elastic.is_some(), "{what}");
                assert!(matches!(linear.weight, Weight::Binary(_)), "{what}");
            }
            assert!(matches!(model.embeddings.word, Weight::Binary(_)), "{what}");
            assert!(!model.loads_natively(), "{what}");
            let config = model.config_json(&json!("tests"));
            let packed = config["compress"]["packed"].as_object().expect("packed matrices");
            let ones = packed.values().filter(|p| p["activations"] == 1).count();
            assert!(ones == packed.len() - 1, "{what}: all but the word table");

            // Nothing of the file is lost: what is not packed is there under its name.
            let stored_names: Vec<String> = model.tensors().into_iter().map(|t| t.name).collect();
            for name in parts.tensors.iter().map(|t| &t.name) {
                let packed = format!("{name}_packed");
                let found = |n: &&String| *n == name || **n == packed;
                assert_eq!(stored_names.iter().filter(found).count(), 1, "{what} {name}");
            }
            let idle = |t: &&Tensor| !t.name.ends_with("sa.weight");
            assert_eq!(model.unused.iter().find(idle).map(|t| &t.name), None, "{what}");

            let again = reopen(&model);
            assert_eq!(stored(&again), stored(&model), "{what}");
            let batch = batch(91, &[6, 3]);
            assert_eq!(answers(&again, &batch, None), answers(&model, &batch, None), "{what}");
        }
    }

    #[test]
    fn models_without_estimators_are_read_too() {
        let mut parts = latent("bert", Task::Bare, 92);
        let estimator = |name: &str| {
            ["q_p.", "k_p.", "q_m.", "k_m.", "v_p."].iter().any(|part| name.contains(part))
        };
        parts.tensors.retain(|t| !estimator(&t.name));
        let model = parts.open();
        let binary = model.layers[0].attention.as_ref().and_then(|a| a.binary.as_ref());
        assert!(binary.is_some_and(|binary| binary.estimators.is_none()));
        assert_eq!(stored(&reopen(&model)), stored(&model));
    }

    #[test]
    fn feed_forward_blocks_run_gelu_whatever_config_json_says() {
        let mut parts = latent("bert", Task::SequenceClassification, 93);
        let expected = answers(&parts.open(), &batch(94, &[5]), None);
        parts.config["hidden_act"] = json!("relu");
        parts.config["architectures"] = json!(["BertForSequenceClassification2"]);
        let model = parts.open();
        assert_eq!(answers(&model, &batch(94, &[5]), None), expected);
        assert_eq!(model.config_json(&json!("tests"))["hidden_act"], "gelu");
        assert_eq!(answers(&reopen(&model), &batch(94, &[5]), None), expected);
    }

    fn error(change: impl FnOnce(&mut Parts)) -> String {
        let mut parts = latent("bert", Task::SequenceClassification, 95);
        change(&mut parts);
        let dir = tempfile::tempdir().expect("a temporary folder");
        parts.write(dir.path());
        Model::open(dir.path()).expect_err("a broken checkpoint").to_string()
    }

    #[test]
    fn what_is_no_binary_model_is_refused_by_name() {
        let drop = |name: &'static str| move |p: &mut Parts| p.tensors.retain(|t| t.name != name);
        let nan = |p: &mut Parts| {
            let name = "bert.encoder.layer.0.output.dense.weight";
            let tensor = p.tensor(name);
            let mut values = tensor.to_f32().expect("floats").into_owned();
            values[3] = f32::NAN;
            *tensor = Tensor::from_f32(name, &tensor.shape.clone(), &values, tensor.dtype);
        };
        insta::assert_snapshot!(error(|p| p.config["half_binary"] = json!(true)), @"config.json: `half_binary` is true, expected 0: BiPFT's binary weights and activations; compress the full-precision model instead");
        insta::assert_snapshot!(error(|p| p.config["input_bits"] = json!(8)), @"config.json: `input_bits` is 8, expected 1: BiPFT's binary weights and activations; compress the full-precision model instead");
        insta::assert_snapshot!(error(drop("bert.encoder.layer.1.attention.self.clip_attn")), @"tensor `bert.encoder.layer.1.attention.self.clip_attn` is missing, expected by the `bert` encoder of config.json; use the config.json that was saved with these weights, or fetch the checkpoint again");
        insta::assert_snapshot!(error(drop("bert.encoder.layer.1.output.dense.input_clip_val")), @"tensor `bert.encoder.layer.1.output.dense.input_clip_val` is missing, expected by the `bert` encoder of config.json; use the config.json that was saved with these weights, or fetch the checkpoint again");
        insta::assert_snapshot!(error(drop("bert.encoder.layer.2.attention.self.v_p.weight")), @"tensor `bert.encoder.layer.2.attention.self.v_p.weight` is missing, expected by the `bert` encoder of config.json; use the config.json that was saved with these weights, or fetch the checkpoint again");
        insta::assert_snapshot!(error(nan), @"tensor `bert.encoder.layer.0.output.dense.weight` holds NaN at flat index 3, expected finite numbers; the checkpoint is damaged or its training diverged");
        let dir = tempfile::tempdir().expect("a temporary folder");
        latent("bert", Task::MaskedLm, 96).write(dir.path());
        insta::assert_snapshot!(Model::open(dir.path()).expect_err("a masked LM"), @"head on BiPFT's latent weights for `masked LM` is not supported; this build knows: BertModel, and classifiers");
    }

    #[test]
    fn a_classifier_made_of_a_bare_encoder_keeps_its_pooler() {
        let mut parts = latent("bert", Task::SequenceClassification, 97);
        let batch = batch(98, &[4, 7]);
        // As the pre-trained model is saved: `bert.` before the encoder, no classifier.
        parts.config["architectures"] = json!(["BertModel"]);
        parts.tensors.retain(|t| !t.name.starts_with("classifier."));
        let bare = parts.open();
        let labels = ["a", "b"].map(String::from);
        let model = bare.with_head(Task::SequenceClassification, &labels, 5).expect("a head");
        let Head::SequenceClassification { dense, norm, .. } = &model.head else {
            panic!("a classifier")
        };
        assert!(dense.elastic.is_some() && norm.is_some());
        assert_eq!(answers(&reopen(&model), &batch, None), answers(&model, &batch, None));
    }

    #[test]
    fn names_stand_beside_those_of_the_query() {
        for family in family::TRAINED {
            let prefix = BinaryAttention::prefix(family.query);
            assert!(family.query.starts_with(prefix) && prefix.ends_with('.'));
            assert!(!family.query[prefix.len()..].contains('.'), "{}", family.query);
        }
    }
}
