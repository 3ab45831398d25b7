//! config.json, parsed into what the encoder needs.

use super::Features;
use super::family::{self, Activation, Family, Project};
use super::features::Narrow;
use super::features::{activation, number_or_zero};
use crate::{Error, Result};
use serde_json::Value;

/// What a checkpoint was trained to answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    SequenceClassification,
    TokenClassification,
    QuestionAnswering,
    MaskedLm,
    /// A sentence-transformers folder: pooled token states.
    Embedding,
    /// The encoder alone.
    Bare,
}

impl Task {
    /// In the words of reports.
    pub fn name(self) -> &'static str {
        match self {
            Task::SequenceClassification => "sequence classification",
            Task::TokenClassification => "token classification",
            Task::QuestionAnswering => "question answering",
            Task::MaskedLm => "masked LM",
            Task::Embedding => "sentence embedding",
            Task::Bare => "bare encoder",
        }
    }

    pub const ALL: [Task; 6] = [
        Task::SequenceClassification,
        Task::TokenClassification,
        Task::QuestionAnswering,
        Task::MaskedLm,
        Task::Embedding,
        Task::Bare,
    ];

    const BY_SUFFIX: &[(&'static str, Task)] = &[
        ("ForSequenceClassification", Task::SequenceClassification),
        ("ForTokenClassification", Task::TokenClassification),
        ("ForQuestionAnswering", Task::QuestionAnswering),
        ("ForMaskedLM", Task::MaskedLm),
        ("Model", Task::Bare),
    ];
}

/// The numbers of one encoder, from config.json.
#[derive(Debug, Clone)]
pub struct Config {
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of what the first matrix of a classifier, or a pooler, gives out: `hidden` of before it was cut.
    pub pooled: usize,
    /// Layers that have weights of their own.
    pub layers: usize,
    /// ALBERT: which of them a text goes through, one after the other; `None`: each once, in their order.
    pub shared: Option<Vec<usize>>,
    /// ALBERT: layers of a group; 1 elsewhere.
    pub inner: usize,
    pub heads: usize,
    pub head_dim: usize,
    pub ffn: usize,
    pub vocab: usize,
    pub max_positions: usize,
    /// Rows of the token type table; 0 where the family has none.
    pub token_types: usize,
    /// Rows of ERNIE's task type table; 0 when it is not used.
    pub task_types: usize,
    /// Width of the embedding tables; differs from `hidden` in small ELECTRAs.
    pub embedding: usize,
    /// Whether the tables are projected to the residual stream.
    pub projected: bool,
    pub eps: f32,
    pub activation: Activation,
    pub pad_id: u32,
    pub tied: bool,
    pub features: Features,
    pub task: Task,
    /// Class names by id; empty when config.json names none.
    pub labels: Vec<String>,
    /// The head predicts a number instead of a class.
    pub regression: bool,
    /// config.json as it was read; written back with one key more.
    pub raw: Value,
}

/// Larger numbers in config.json are a mistake or an attack: no encoder comes near them.
const LIMIT: u64 = 1 << 24;
/// As `LIMIT`, for what memory is set aside by before a tensor is looked at.
const MAX_LAYERS: u64 = 1 << 10;
const MAX_HEADS: u64 = 1 << 12;
/// Of a classifier: each gets a name.
const MAX_LABELS: u64 = 1 << 20;

impl Config {
    /// Reads config.json's content.
    ///
    /// # Errors
    /// Unknown families, heads and activations are refused by name, with what is supported; numbers
    /// that are missing, of the wrong type, zero, or inconsistent are named with what was expected.
    pub fn parse(raw: Value) -> Result<(Config, &'static Family)> {
        let Some(object) = raw.as_object() else {
            return Err(config("(whole file)", kind(&raw), "a JSON object"));
        };
        let model_type = match object.get("model_type") {
            Some(Value::String(s)) => s.clone(),
            Some(other) => return Err(config("model_type", kind(other), "the name of a family")),
            None => return Err(config("model_type", "missing", "the name of a family")),
        };
        if model_type == "compress" {
            return Err(Error::Config {
                key: "model_type".into(),
                found: "compress".into(),
                expected: "a family: this is what `--emit hf` writes for Transformers".into(),
                advice: "give the folder above",
            });
        }
        let Some(family) = family::find(&model_type) else {
            return Err(Error::Unsupported {
                what: "model family",
                found: model_type,
                known: family::known(),
            });
        };
        if object.contains_key("quantization_config") {
            return Err(Error::Config {
                key: "quantization_config".into(),
                found: "set".into(),
                expected: "a checkpoint with plain weights".into(),
                advice: "start from the checkpoint as it was before quantization",
            });
        }
        for key in ["is_decoder", "add_cross_attention"] {
            if object.get(key).and_then(Value::as_bool) == Some(true) {
                return Err(config(key, "true", "an encoder, with this key false"));
            }
        }
        if let Some(found) = object.get("position_embedding_type").and_then(Value::as_str)
            && found != "absolute"
        {
            return Err(Error::Unsupported {
                what: "position_embedding_type",
                found: found.into(),
                known: "absolute".into(),
            });
        }
        if family.relative_bias.is_some() {
            let buckets = number_or(&raw, "relative_attention_num_buckets", 32)?;
            if buckets != 32 {
                return Err(config("relative_attention_num_buckets", buckets, "32"));
            }
        }

        let keys = &family.keys;
        let whole = number(&raw, keys.hidden)?;
        let hidden = match raw.get("compress").and_then(|c| c.get("hidden")) {
            None | Some(Value::Null) => whole,
            Some(value) => match value.as_u64() {
                Some(n) if (1..=whole as u64).contains(&n) => n as usize,
                _ => {
                    let expected = format!("an integer from 1 to {} {whole}", keys.hidden);
                    return Err(config("compress.hidden", value, expected));
                }
            },
        };
        let heads = number_below(&raw, keys.heads, MAX_HEADS)?;
        let (stream, of) = match Narrow::parse(&raw, family)? {
            Some(narrow) => (narrow.width, "intra_bottleneck_size"),
            None => (whole, keys.hidden),
        };
        if stream % heads != 0 {
            return Err(config(keys.heads, heads, format!("a divisor of {of} {stream}")));
        }
        let activation = activation(&raw, keys.activation, family.default_activation)?;
        let eps = match object.get(keys.eps) {
            None => family.default_eps,
            Some(value) => value
                .as_f64()
                .filter(|e| (0.0..1.0).contains(e))
                .ok_or_else(|| config(keys.eps, value, "a number in [0, 1)"))?,
        };
        let use_task = object.get("use_task_id").and_then(Value::as_bool) == Some(true);
        let task_types = match family.task_type {
            Some(_) if use_task => number_or(&raw, "task_type_vocab_size", 3)?,
            _ => 0,
        };
        let labels = labels(&raw)?;
        if let Some(n) = raw.get("num_labels").and_then(Value::as_u64)
            && n >= MAX_LABELS
        {
            return Err(config("num_labels", n, format!("less than {MAX_LABELS} labels")));
        }
        let regression = match object.get("problem_type").and_then(Value::as_str) {
            Some("multi_label_classification") => {
                return Err(Error::Unsupported {
                    what: "problem_type",
                    found: "multi_label_classification".into(),
                    known: "single_label_classification, regression".into(),
                });
            }
            Some(found) => found == "regression",
            None => labels.len() == 1,
        };
        let embedding = match family.project {
            // As wide as the residual stream, it has no projection, and was cut with it.
            Some(Project::WhereNarrow(_)) => {
                Some(number_or(&raw, "embedding_size", whole)?).filter(|&n| n != whole)
            }
            // Of one word as wide as the others there is nothing to project.
            Some(Project::Words(_)) => {
                let width = number_or(&raw, "embedding_size", 128)?;
                let three = Narrow::parse(&raw, family)?.is_some_and(|narrow| narrow.words > 1);
                Some(width).filter(|&width| three || width != whole)
            }
            Some(Project::Always(_, default)) => Some(number_or(&raw, "embedding_size", default)?),
            None => None,
        };
        let depth = number_below(&raw, keys.layers, MAX_LAYERS)?;
        let (shared, inner) = match family.inner {
            Some(_) => {
                let (stack, inner) = stack(&raw, depth, keys.layers)?;
                (Some(stack), inner)
            }
            None => (None, 1),
        };
        let features = Features::parse(&raw, family, depth, stream / heads)?;
        let config = Config {
            hidden,
            pooled: whole,
            layers: shared.as_ref().map_or(depth, |s| s.iter().max().map_or(0, |last| last + 1)),
            shared,
            inner,
            heads,
            head_dim: stream / heads,
            ffn: number(&raw, keys.ffn)?,
            vocab: number(&raw, "vocab_size")?,
            max_positions: number_or(&raw, "max_position_embeddings", family.default_positions)?,
            token_types: match family.token_type {
                Some(_) if family.default_types == 0 => number_or_zero(&raw, "type_vocab_size")?,
                Some(_) => number_or(&raw, "type_vocab_size", family.default_types)?,
                None => 0,
            },
            task_types,
            embedding: embedding.unwrap_or(hidden),
            projected: embedding.is_some(),
            eps: eps as f32,
            activation,
            pad_id: match raw.get("pad_token_id") {
                None | Some(Value::Null) => family.default_pad_id,
                Some(value) => value
                    .as_u64()
                    .filter(|id| *id < LIMIT)
                    .ok_or_else(|| config("pad_token_id", value, "a token id"))?
                    as u32,
            },
            tied: raw.get("tie_word_embeddings").and_then(Value::as_bool).unwrap_or(true),
            features,
            task: task(&raw, family)?,
            labels,
            regression,
            raw,
        };
        Ok((config, family))
    }

    /// A name for every class: those of `id2label`, else `LABEL_0` and so on, as Transformers does.
    pub fn label_names(&self) -> Vec<String> {
        if self.labels.is_empty() {
            return (0..self.classes()).map(|i| format!("LABEL_{i}")).collect();
        }
        self.labels.clone()
    }

    /// Classes of a classifier head: from `id2label`, else `num_labels`, else 2 as Transformers does.
    pub fn classes(&self) -> usize {
        if !self.labels.is_empty() {
            return self.labels.len();
        }
        self.raw.get("num_labels").and_then(Value::as_u64).map_or(2, |n| n as usize)
    }

    /// What the head is for, in words, with the number of its classes where it has any.
    pub fn head_in_words(&self) -> String {
        let task = self.task.name();
        match (self.task, self.classes()) {
            (Task::SequenceClassification, _) if self.regression => format!("{task} by a number"),
            (Task::SequenceClassification | Task::TokenClassification, 1) => {
                format!("{task} with 1 class")
            }
            (Task::SequenceClassification | Task::TokenClassification, n) => {
                format!("{task} with {n} classes")
            }
            _ => task.to_string(),
        }
    }
}

/// ALBERT's order of layers, and how many of them are a group: of `depth` steps, each goes through all of one.
fn stack(raw: &Value, depth: usize, key: &str) -> Result<(Vec<usize>, usize)> {
    let groups = number_or(raw, "num_hidden_groups", 1)?;
    let inner = number_or(raw, "inner_group_num", 1)?;
    if groups > depth {
        return Err(config("num_hidden_groups", groups, format!("at most {key} {depth}")));
    }
    if depth.checked_mul(inner).is_none_or(|steps| steps as u64 >= MAX_LAYERS) {
        let expected = format!("less than {MAX_LAYERS} layers together with {key} {depth}");
        return Err(config("inner_group_num", inner, expected));
    }
    // In floats, as Transformers divides.
    let group = |step: usize| (step as f64 / (depth as f64 / groups as f64)) as usize;
    let stack = (0..depth).flat_map(|step| (0..inner).map(move |i| group(step) * inner + i));
    Ok((stack.collect(), inner))
}

fn task(raw: &Value, family: &Family) -> Result<Task> {
    let known = || {
        let tasks = Task::BY_SUFFIX.iter().filter(|(_, task)| family.tasks.contains(task));
        let names = tasks.map(|(suffix, _)| format!("{}{suffix}", family.class));
        names.collect::<Vec<_>>().join(", ")
    };
    let found = match raw.get("architectures").and_then(|a| a.get(0)).and_then(Value::as_str) {
        Some(name) => name,
        None => {
            return Err(Error::Config {
                key: "architectures".into(),
                found: "missing".into(),
                expected: format!("one of {}", known()),
                advice: "add the class that the checkpoint was saved from",
            });
        }
    };
    let suffix = found.strip_prefix(family.class).map(|suffix| match suffix {
        // BiPFT's class for fine-tuning.
        "ForSequenceClassification2" => "ForSequenceClassification",
        other => other,
    });
    suffix
        .and_then(|s| Task::BY_SUFFIX.iter().find(|(known, _)| *known == s))
        .map(|&(_, task)| task)
        .filter(|task| family.tasks.contains(task))
        .ok_or_else(|| Error::Unsupported {
            what: "architecture",
            found: found.into(),
            known: known(),
        })
}

fn labels(raw: &Value) -> Result<Vec<String>> {
    let Some(map) = raw.get("id2label").and_then(Value::as_object) else { return Ok(Vec::new()) };
    (0..map.len())
        .map(|id| match map.get(&id.to_string()) {
            Some(Value::String(name)) => Ok(name.clone()),
            Some(other) => Ok(other.to_string()),
            None => Err(config("id2label", "ids with a hole", format!("an entry for class {id}"))),
        })
        .collect()
}

fn number(raw: &Value, key: &str) -> Result<usize> {
    number_below(raw, key, LIMIT)
}

fn number_below(raw: &Value, key: &str, limit: u64) -> Result<usize> {
    match raw.get(key) {
        None => Err(config(key, "missing", "a positive integer")),
        Some(value) => match value.as_u64() {
            Some(n) if (1..limit).contains(&n) => Ok(n as usize),
            _ => Err(config(key, value, format!("an integer from 1 to {}", limit - 1))),
        },
    }
}

pub(super) fn number_or(raw: &Value, key: &str, default: usize) -> Result<usize> {
    if raw.get(key).is_none_or(Value::is_null) { Ok(default) } else { number(raw, key) }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

pub(super) fn config(key: &str, found: impl ToString, expected: impl ToString) -> Error {
    Error::Config {
        key: key.into(),
        found: found.to_string(),
        expected: expected.to_string(),
        advice: "use the config.json that was saved with these weights",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn bert() -> Value {
        json!({"model_type": "bert", "architectures": ["BertForSequenceClassification"],
            "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
            "intermediate_size": 16, "vocab_size": 10, "id2label": {"0": "no", "1": "yes"}})
    }

    fn error(change: impl FnOnce(&mut Value)) -> String {
        let mut raw = bert();
        change(&mut raw);
        Config::parse(raw).expect_err("a broken config").to_string()
    }

    #[test]
    fn reads_a_bert() {
        let (config, family) = Config::parse(bert()).expect("a config");
        assert_eq!((config.head_dim, config.classes(), family.model_type), (4, 2, "bert"));
        assert_eq!(config.labels, ["no", "yes"]);
        assert!(!config.regression);
    }

    #[test]
    fn albert_goes_through_its_groups_as_transformers_does() {
        let order = |layers: usize, groups: usize, inner: usize| {
            let mut raw = bert();
            let albert = json!({"model_type": "albert", "architectures": ["AlbertModel"],
                "num_hidden_layers": layers, "num_hidden_groups": groups, "inner_group_num": inner});
            albert.as_object().expect("an object").iter().for_each(|(k, v)| raw[k] = v.clone());
            let config = Config::parse(raw).map_err(|e| e.to_string())?.0;
            Ok::<_, String>((config.layers, config.shared.expect("an order")))
        };
        assert_eq!(order(4, 1, 1), Ok((1, vec![0; 4])));
        // int(i / (5 / 3)) of i = 0 to 4.
        assert_eq!(order(5, 3, 1), Ok((3, vec![0, 0, 1, 1, 2])));
        assert_eq!(order(2, 2, 2), Ok((4, vec![0, 1, 2, 3])));
        assert_eq!(order(2, 1, 2), Ok((2, vec![0, 1, 0, 1])));
        insta::assert_snapshot!(order(2, 3, 1).expect_err("too many"), @"config.json: `num_hidden_groups` is 3, expected at most num_hidden_layers 2; use the config.json that was saved with these weights");
        insta::assert_snapshot!(order(600, 1, 2).expect_err("too many"), @"config.json: `inner_group_num` is 2, expected less than 1024 layers together with num_hidden_layers 600; use the config.json that was saved with these weights");
    }

    #[test]
    fn refusals_name_what_was_found_and_what_is_known() {
        insta::assert_snapshot!(error(|c| c["model_type"] = json!("llama")), @"model family `llama` is not supported; this build knows: bert, roberta, xlm-roberta, distilbert, electra, mpnet, ernie, albert, modernbert, deberta-v2, mobilebert");
        insta::assert_snapshot!(error(|c| c["architectures"] = json!(["BertForNextSentencePrediction"])), @"architecture `BertForNextSentencePrediction` is not supported; this build knows: BertForSequenceClassification, BertForTokenClassification, BertForQuestionAnswering, BertForMaskedLM, BertModel");
        insta::assert_snapshot!(error(|c| c["num_attention_heads"] = json!(3)), @"config.json: `num_attention_heads` is 3, expected a divisor of hidden_size 8; use the config.json that was saved with these weights");
        insta::assert_snapshot!(error(|c| c["hidden_size"] = json!(-1)), @"config.json: `hidden_size` is -1, expected an integer from 1 to 16777215; use the config.json that was saved with these weights");
        insta::assert_snapshot!(error(|c| c["num_labels"] = json!(1u64 << 60)), @"config.json: `num_labels` is 1152921504606846976, expected less than 1048576 labels; use the config.json that was saved with these weights");
        insta::assert_snapshot!(error(|c| c["hidden_act"] = json!("mish")), @"activation `mish` is not supported; this build knows: gelu, gelu_new, gelu_pytorch_tanh, relu, silu, tanh");
        insta::assert_snapshot!(error(|c| c["position_embedding_type"] = json!("relative_key")), @"position_embedding_type `relative_key` is not supported; this build knows: absolute");
        insta::assert_snapshot!(error(|c| c["is_decoder"] = json!(true)), @"config.json: `is_decoder` is true, expected an encoder, with this key false; use the config.json that was saved with these weights");
        insta::assert_snapshot!(error(|c| { c.as_object_mut().expect("object").remove("vocab_size"); }), @"config.json: `vocab_size` is missing, expected a positive integer; use the config.json that was saved with these weights");
    }
}
