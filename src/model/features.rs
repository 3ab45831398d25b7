//! What only some families have, from the config.json keys that say so.

use super::config::{config as bad, number_or};
use super::{Activation, Family, PoolMode};
use crate::{Error, Result};
use serde_json::Value;

/// See the fields; BERT has all of its biases and nothing else of this.
#[derive(Debug, Clone)]
pub struct Features {
    pub biases: Biases,
    /// ModernBERT, by layer.
    pub rotary: Vec<Rotary>,
    /// What a sequence classifier reads.
    pub pool: PoolMode,
    /// Of the dense layer of a head, where config.json names it.
    pub head_activation: Option<Activation>,
    /// DeBERTa.
    pub distances: Option<Distances>,
    /// MobileBERT.
    pub bottleneck: Option<Narrow>,
    /// DeBERTa: whether absolute positions have a table.
    pub positions: bool,
}

/// Which layers have biases.
#[derive(Debug, Clone, Copy)]
pub struct Biases {
    pub attention: bool,
    pub ffn: bool,
    /// The dense layer of the head.
    pub head: bool,
    pub norm: bool,
}

/// Queries and keys turned by their positions (RoFormer, Su et al. 2021), and how far they see.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rotary {
    /// The base of the frequencies.
    pub theta: f32,
    /// Tokens on each side that are seen; `None`: all.
    pub window: Option<usize>,
}

/// DeBERTa's distances between tokens (He et al. 2021, §3.1; buckets as in version 2).
#[derive(Debug, Clone, Copy)]
pub struct Distances {
    /// Distances below half of this are told apart, those beyond in logarithmic steps; 0: all are told apart.
    pub buckets: usize,
    /// Where the logarithm ends.
    pub most: usize,
    /// Queries meet keys made of distances.
    pub c2p: bool,
    /// Keys meet queries made of distances.
    pub p2c: bool,
    /// Distances go through the matrices that words go through.
    pub shared: bool,
    /// The table is normalised.
    pub norm: bool,
}

impl Distances {
    /// Rows of the table on each side of distance 0.
    pub fn span(&self) -> usize {
        if self.buckets > 0 { self.buckets } else { self.most }
    }

    /// What scores are divided by the root of, besides the width of a head.
    pub fn factor(&self) -> usize {
        1 + usize::from(self.c2p) + usize::from(self.p2c)
    }

    /// The row of the table for a query `distance` tokens behind its key.
    pub fn row(&self, distance: i64) -> usize {
        let span = self.span() as i64;
        let (mid, size) = (self.buckets as i64 / 2, distance.abs());
        let bucket = if self.buckets == 0 || size <= mid {
            distance
        } else {
            // In f32, as Transformers computes it: rounding up falls on the same side.
            let mid32 = mid as f32;
            let most = ((self.most as f64 - 1.0) / mid as f64) as f32;
            let log = (size as f32 / mid32).ln() / most.ln() * (mid32 - 1.0);
            (log.ceil() + mid32) as i64 * distance.signum()
        };
        (bucket + span).clamp(0, 2 * span - 1) as usize
    }
}

/// MobileBERT's layers (Sun et al. 2020, §3).
#[derive(Debug, Clone, Copy)]
pub struct Narrow {
    /// Of the stream within a layer.
    pub width: usize,
    /// Whether queries and keys have a bottleneck of their own, and values none.
    pub shared: bool,
    /// Feed-forward blocks of a layer.
    pub ffns: usize,
    /// Words that the embedding of one is made of: 1 or 3.
    pub words: usize,
}

impl Narrow {
    /// `None` for families without.
    pub fn parse(raw: &Value, family: &Family) -> Result<Option<Narrow>> {
        if family.bottleneck.is_none() {
            return Ok(None);
        }
        for key in ["use_bottleneck", "classifier_activation"] {
            if !flag(raw, key, true)? {
                return Err(bad(key, "false", "true: MobileBERT without is not supported"));
            }
        }
        if raw.get("normalization_type").is_some_and(|kind| kind != "no_norm") {
            return Err(bad("normalization_type", &raw["normalization_type"], "no_norm"));
        }
        let all = flag(raw, "use_bottleneck_attention", false)?;
        if !all && !flag(raw, "key_query_shared_bottleneck", true)? {
            let expected =
                "true, or use_bottleneck_attention: queries have no inputs of their width";
            return Err(bad("key_query_shared_bottleneck", "false", expected));
        }
        let ffns = number_or(raw, "num_feedforward_networks", 4)?;
        if ffns > 64 {
            return Err(bad("num_feedforward_networks", ffns, "at most 64"));
        }
        Ok(Some(Narrow {
            width: number_or(raw, "intra_bottleneck_size", 128)?,
            shared: !all,
            ffns,
            words: if flag(raw, "trigram_input", true)? { 3 } else { 1 },
        }))
    }
}

const ALL: Biases = Biases { attention: true, ffn: true, head: true, norm: true };

impl Features {
    pub fn parse(raw: &Value, family: &Family, layers: usize, head_dim: usize) -> Result<Features> {
        let head_activation = match family.head_activation {
            None => None,
            Some(key) => Some(activation(raw, key, Activation::Gelu)?),
        };
        let mut features = Features {
            biases: ALL,
            rotary: Vec::new(),
            pool: PoolMode::Cls,
            head_activation,
            distances: None,
            bottleneck: Narrow::parse(raw, family)?,
            positions: true,
        };
        if family.rotary {
            features.biases = Biases {
                attention: flag(raw, "attention_bias", false)?,
                ffn: flag(raw, "mlp_bias", false)?,
                head: flag(raw, "classifier_bias", false)?,
                norm: flag(raw, "norm_bias", false)?,
            };
            features.rotary = rotary(raw, layers)?;
            features.pool = match raw.get("classifier_pooling").map(Value::as_str) {
                None | Some(Some("cls")) => PoolMode::Cls,
                Some(Some("mean")) => PoolMode::Mean,
                Some(_) => {
                    return Err(bad(
                        "classifier_pooling",
                        &raw["classifier_pooling"],
                        "cls or mean",
                    ));
                }
            };
            if !flag(raw, "decoder_bias", true)? {
                return Err(bad("decoder_bias", "false", "true: the head has a bias"));
            }
            if !head_dim.is_multiple_of(2) {
                let expected = "heads of an even width, which rotary positions turn in pairs";
                return Err(bad("num_attention_heads", &raw["num_attention_heads"], expected));
            }
        }
        if family.distances.is_some() {
            features.positions = flag(raw, "position_biased_input", true)?;
            features.distances = distances(raw)?;
        }
        Ok(features)
    }
}

/// DeBERTa's; `None` where attention knows no distances.
fn distances(raw: &Value) -> Result<Option<Distances>> {
    if number_or_zero(raw, "conv_kernel_size")? > 0 {
        return Err(bad(
            "conv_kernel_size",
            &raw["conv_kernel_size"],
            "0: convolutions are not supported",
        ));
    }
    for key in ["embedding_size", "pooler_hidden_size"] {
        let hidden = &raw["hidden_size"];
        if raw.get(key).is_some_and(|size| !size.is_null() && size != hidden) {
            return Err(bad(
                key,
                &raw[key],
                format!("hidden_size {hidden}: other widths are not supported"),
            ));
        }
    }
    if raw.get("attention_head_size").is_some_and(|size| !size.is_null()) {
        return Err(bad(
            "attention_head_size",
            &raw["attention_head_size"],
            "none: heads share hidden_size",
        ));
    }
    if !flag(raw, "legacy", true)? {
        let masked =
            raw["architectures"][0].as_str().is_some_and(|name| name.ends_with("MaskedLM"));
        if masked {
            return Err(bad(
                "legacy",
                "false",
                "true: of masked-LM heads the legacy one alone is supported",
            ));
        }
    }
    let listed: Vec<String> = match &raw["pos_att_type"] {
        Value::Null => Vec::new(),
        Value::String(names) => names.split('|').map(|name| name.trim().to_lowercase()).collect(),
        Value::Array(names) => {
            names.iter().map(|n| n.as_str().unwrap_or("?").to_string()).collect()
        }
        other => return Err(bad("pos_att_type", other, "a list of c2p and p2c")),
    };
    if listed.iter().any(|name| name != "c2p" && name != "p2c") {
        return Err(bad("pos_att_type", &raw["pos_att_type"], "c2p, p2c, or both"));
    }
    if !flag(raw, "relative_attention", false)? {
        // They would still count in the scale of scores.
        return match listed.is_empty() {
            true => Ok(None),
            false => {
                Err(bad("pos_att_type", &raw["pos_att_type"], "nothing without relative_attention"))
            }
        };
    }
    let norms: Vec<&str> = match &raw["norm_rel_ebd"] {
        Value::Null => vec!["none"],
        Value::String(names) => names.split('|').map(str::trim).collect(),
        other => return Err(bad("norm_rel_ebd", other, "none or layer_norm")),
    };
    if norms.iter().any(|name| !["none", "layer_norm"].contains(&name.to_lowercase().as_str())) {
        return Err(bad("norm_rel_ebd", &raw["norm_rel_ebd"], "none or layer_norm"));
    }
    let signed = |key: &str| match &raw[key] {
        Value::Null => Ok(0),
        value => match value.as_i64() {
            Some(n) if n < 1 << 24 => Ok(n.max(0) as usize),
            _ => Err(bad(key, value, "an integer below 16777216")),
        },
    };
    let most = match signed("max_relative_positions")? {
        0 => number_or(raw, "max_position_embeddings", 512)?,
        most => most,
    };
    let buckets = signed("position_buckets")?;
    // At these the logarithm has no room.
    if buckets > 0 && (buckets < 4 || most <= buckets / 2 + 1) {
        let expected = format!("-1, or at least 4 and below twice the {most} positions");
        return Err(bad("position_buckets", buckets, expected));
    }
    Ok(Some(Distances {
        buckets,
        most,
        c2p: listed.iter().any(|name| name == "c2p"),
        p2c: listed.iter().any(|name| name == "p2c"),
        shared: flag(raw, "share_att_key", false)?,
        norm: norms.iter().any(|name| name.eq_ignore_ascii_case("layer_norm")),
    }))
}

/// ModernBERT's, by layer.
fn rotary(raw: &Value, layers: usize) -> Result<Vec<Rotary>> {
    const KINDS: [&str; 2] = ["full_attention", "sliding_attention"];
    if raw.get("rope_scaling").is_some_and(|scaling| !scaling.is_null()) {
        return Err(bad(
            "rope_scaling",
            &raw["rope_scaling"],
            "null: scaled positions are not supported",
        ));
    }
    let theta = |kind: &str, old: &str, default: f64| -> Result<f32> {
        let stated = &raw["rope_parameters"][kind];
        for (key, value) in stated.as_object().into_iter().flatten() {
            let plain = key == "rope_type" && value == "default";
            if key != "rope_theta" && !plain && !value.is_null() {
                let key = format!("rope_parameters.{kind}.{key}");
                return Err(bad(&key, value, "rope_type default and rope_theta, nothing else"));
            }
        }
        let (key, value) = match stated.get("rope_theta") {
            Some(value) => (format!("rope_parameters.{kind}.rope_theta"), Some(value)),
            None => (old.to_string(), raw.get(old)),
        };
        let Some(value) = value else { return Ok(default as f32) };
        let theta = value.as_f64().filter(|theta| (1.0..1e12).contains(theta));
        theta.map(|theta| theta as f32).ok_or_else(|| bad(&key, value, "a number from 1 to 1e12"))
    };
    if let Some(stated) = raw["rope_parameters"].as_object()
        && let Some(key) = stated.keys().find(|key| !KINDS.contains(&key.as_str()))
    {
        let expected = format!("parameters of {}", KINDS.join(" and "));
        return Err(bad("rope_parameters", key, expected));
    }
    let full = theta(KINDS[0], "global_rope_theta", 160_000.0)?;
    let sliding = theta(KINDS[1], "local_rope_theta", 10_000.0)?;
    let window = number_or(raw, "local_attention", 128)? / 2;
    let every = number_or(raw, "global_attn_every_n_layers", 3)?;
    let kinds: Vec<bool> = match &raw["layer_types"] {
        Value::Null => (0..layers).map(|l| l % every != 0).collect(),
        Value::Array(names) if names.len() == layers => {
            let local = |name: &Value| match KINDS.iter().position(|kind| name == kind) {
                Some(kind) => Ok(kind == 1),
                None => Err(bad("layer_types", name, KINDS.join(" or "))),
            };
            names.iter().map(local).collect::<Result<_>>()?
        }
        other => return Err(bad("layer_types", other, format!("a list of {layers} kinds"))),
    };
    let rotary = |local: bool| match local {
        true => Rotary { theta: sliding, window: Some(window) },
        false => Rotary { theta: full, window: None },
    };
    Ok(kinds.into_iter().map(rotary).collect())
}

/// The activation that `key` names.
pub(super) fn activation(raw: &Value, key: &str, default: Activation) -> Result<Activation> {
    let Some(value) = raw.get(key) else { return Ok(default) };
    let name = value.as_str().unwrap_or_default();
    Activation::from_name(name).ok_or_else(|| Error::Unsupported {
        what: "activation",
        found: value.to_string().trim_matches('"').into(),
        known: "gelu, gelu_new, gelu_pytorch_tanh, relu, silu, tanh".into(),
    })
}

pub(super) fn flag(raw: &Value, key: &str, default: bool) -> Result<bool> {
    match raw.get(key) {
        None | Some(Value::Null) => Ok(default),
        Some(Value::Bool(on)) => Ok(*on),
        Some(other) => Err(bad(key, other, "true or false")),
    }
}

pub(super) fn number_or_zero(raw: &Value, key: &str) -> Result<usize> {
    match raw.get(key).and_then(Value::as_u64) {
        Some(0) => Ok(0),
        _ => number_or(raw, key, 0),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Config;
    use super::*;
    use serde_json::json;

    #[test]
    fn distances_fall_into_the_buckets_of_transformers() {
        let of = |buckets, most| Distances {
            buckets,
            most,
            c2p: true,
            p2c: true,
            shared: true,
            norm: true,
        };
        // make_log_bucket_position(torch.tensor([...]), 256, 512) + 256, and 16 with 64, Transformers 5.24; clamped.
        let far = [-600, -511, -200, -129, -128, -127, 0, 5, 129, 130, 255, 256, 300, 511, 512];
        let rows = [0, 1, 87, 127, 128, 129, 256, 261, 385, 386, 448, 448, 463, 511, 511];
        assert_eq!(far.map(|d| of(256, 512).row(d)), rows);
        let near = [-70, -63, -30, -9, -8, 0, 8, 9, 10, 12, 17, 33, 63, 64];
        let rows = [0, 1, 3, 7, 8, 16, 24, 25, 25, 26, 27, 29, 31, 31];
        assert_eq!(near.map(|d| of(16, 64).row(d)), rows);
        assert_eq!([-9, -8, -1, 0, 7, 8].map(|d| of(0, 8).row(d)), [0, 0, 7, 8, 15, 15]);
    }

    fn config(model_type: &str, class: &str, change: &Value) -> Result<Config> {
        let mut raw = json!({"model_type": model_type, "architectures": [class],
            "hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2,
            "intermediate_size": 16, "vocab_size": 10});
        for (key, value) in change.as_object().expect("an object") {
            raw[key] = value.clone();
        }
        Config::parse(raw).map(|(config, _)| config)
    }

    #[test]
    fn modernbert_says_how_far_each_layer_sees() {
        let rotary = |change: Value| {
            config("modernbert", "ModernBertModel", &change).expect("a config").features.rotary
        };
        let (full, local) = (
            Rotary { theta: 160_000.0, window: None },
            Rotary { theta: 10_000.0, window: Some(64) },
        );
        assert_eq!(rotary(json!({})), [full, local, local]);
        let every = json!({"global_attn_every_n_layers": 2, "local_attention": 9, "local_rope_theta": 5e4,
            "global_rope_theta": 7.0});
        let (full, local) =
            (Rotary { theta: 7.0, window: None }, Rotary { theta: 5e4, window: Some(4) });
        assert_eq!(rotary(every), [full, local, full]);
        let named = json!({"layer_types": ["sliding_attention", "full_attention", "full_attention"],
            "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 7.0},
                "sliding_attention": {"rope_theta": 5e4}}, "local_attention": 9});
        assert_eq!(rotary(named), [local, full, full]);
    }

    #[test]
    fn what_is_not_computed_is_refused_by_its_key() {
        let error = |model_type: &str, class: &str, change: Value| {
            let error = config(model_type, class, &change).expect_err("refused").to_string();
            error.replace("; use the config.json that was saved with these weights", "")
        };
        let modern = |change| error("modernbert", "ModernBertModel", change);
        insta::assert_snapshot!(modern(json!({"rope_scaling": {"factor": 2}})), @r#"config.json: `rope_scaling` is {"factor":2}, expected null: scaled positions are not supported"#);
        insta::assert_snapshot!(modern(json!({"rope_parameters": {"full_attention": {"rope_type": "yarn"}}})), @r#"config.json: `rope_parameters.full_attention.rope_type` is "yarn", expected rope_type default and rope_theta, nothing else"#);
        insta::assert_snapshot!(modern(json!({"rope_parameters": {"rope_theta": 1.0}})), @"config.json: `rope_parameters` is rope_theta, expected parameters of full_attention and sliding_attention");
        insta::assert_snapshot!(modern(json!({"local_rope_theta": null})), @"config.json: `local_rope_theta` is null, expected a number from 1 to 1e12");
        insta::assert_snapshot!(modern(json!({"layer_types": ["full_attention"]})), @r#"config.json: `layer_types` is ["full_attention"], expected a list of 3 kinds"#);
        insta::assert_snapshot!(modern(json!({"layer_types": ["a", "b", "c"]})), @r#"config.json: `layer_types` is "a", expected full_attention or sliding_attention"#);
        insta::assert_snapshot!(modern(json!({"classifier_pooling": "max"})), @r#"config.json: `classifier_pooling` is "max", expected cls or mean"#);
        insta::assert_snapshot!(modern(json!({"decoder_bias": false})), @"config.json: `decoder_bias` is false, expected true: the head has a bias");
        insta::assert_snapshot!(modern(json!({"norm_bias": 1})), @"config.json: `norm_bias` is 1, expected true or false");
        insta::assert_snapshot!(error("modernbert", "ModernBertForTokenClassification", json!({})), @"architecture `ModernBertForTokenClassification` is not supported; this build knows: ModernBertForSequenceClassification, ModernBertForMaskedLM, ModernBertModel");
        let deberta = |change| error("deberta-v2", "DebertaV2ForMaskedLM", change);
        insta::assert_snapshot!(deberta(json!({"conv_kernel_size": 3})), @"config.json: `conv_kernel_size` is 3, expected 0: convolutions are not supported");
        insta::assert_snapshot!(deberta(json!({"legacy": false})), @"config.json: `legacy` is false, expected true: of masked-LM heads the legacy one alone is supported");
        insta::assert_snapshot!(deberta(json!({"embedding_size": 4})), @"config.json: `embedding_size` is 4, expected hidden_size 8: other widths are not supported");
        insta::assert_snapshot!(deberta(json!({"attention_head_size": 4})), @"config.json: `attention_head_size` is 4, expected none: heads share hidden_size");
        insta::assert_snapshot!(deberta(json!({"pos_att_type": ["c2p"]})), @r#"config.json: `pos_att_type` is ["c2p"], expected nothing without relative_attention"#);
        insta::assert_snapshot!(deberta(json!({"relative_attention": true, "pos_att_type": "p2p"})), @r#"config.json: `pos_att_type` is "p2p", expected c2p, p2c, or both"#);
        insta::assert_snapshot!(deberta(json!({"relative_attention": true, "norm_rel_ebd": "batch"})), @r#"config.json: `norm_rel_ebd` is "batch", expected none or layer_norm"#);
        insta::assert_snapshot!(deberta(json!({"relative_attention": true, "position_buckets": 2})), @"config.json: `position_buckets` is 2, expected -1, or at least 4 and below twice the 512 positions");
        insta::assert_snapshot!(deberta(json!({"relative_attention": true, "max_relative_positions": 1e9})), @"config.json: `max_relative_positions` is 1000000000.0, expected an integer below 16777216");
        let mobile = |change| error("mobilebert", "MobileBertModel", change);
        insta::assert_snapshot!(mobile(json!({"use_bottleneck": false})), @"config.json: `use_bottleneck` is false, expected true: MobileBERT without is not supported");
        insta::assert_snapshot!(mobile(json!({"classifier_activation": false})), @"config.json: `classifier_activation` is false, expected true: MobileBERT without is not supported");
        insta::assert_snapshot!(mobile(json!({"normalization_type": "layer_norm"})), @r#"config.json: `normalization_type` is "layer_norm", expected no_norm"#);
        insta::assert_snapshot!(mobile(json!({"key_query_shared_bottleneck": false})), @"config.json: `key_query_shared_bottleneck` is false, expected true, or use_bottleneck_attention: queries have no inputs of their width");
        insta::assert_snapshot!(mobile(json!({"num_feedforward_networks": 65})), @"config.json: `num_feedforward_networks` is 65, expected at most 64");
        insta::assert_snapshot!(mobile(json!({"intra_bottleneck_size": 7})), @"config.json: `num_attention_heads` is 2, expected a divisor of intra_bottleneck_size 7");
        insta::assert_snapshot!(error("mobilebert", "MobileBertForMaskedLM", json!({})), @"architecture `MobileBertForMaskedLM` is not supported; this build knows: MobileBertForSequenceClassification, MobileBertForTokenClassification, MobileBertForQuestionAnswering, MobileBertModel");
    }
}
