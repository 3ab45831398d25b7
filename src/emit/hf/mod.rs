//! A folder that `trust_remote_code=True` loads: weights in their forms, and the Python that reads them.

use super::{unread, unwritten};
use crate::checkpoint::{Dtype, Tensor};
use crate::model::family::{Activation, Positions};
use crate::model::{Head, Linear, Model, Norm, Reads, Task, Weight};
use serde_json::{Map, Value, json};

/// The code, by the names of its files.
pub const CODE: [(&str, &str); 2] = [
    ("configuration_compress.py", include_str!("configuration_compress.py")),
    ("modeling_compress.py", include_str!("modeling_compress.py")),
];

/// What of `model` the code does not know.
pub fn refusal(model: &Model) -> Option<String> {
    unread(model).or_else(|| unwritten(model))
}

/// The tensors of `model` under the names of the code's modules, without data where it has none, and its config.json.
pub fn parts(model: &Model) -> (Vec<Tensor>, Value) {
    let model = model.compacted();
    let bare = matches!(model.config.task, Task::Bare | Task::Embedding);
    let prefix = if bare { "" } else { "encoder." };
    let mut parts = Parts { prefix, tensors: Vec::new(), matrices: Map::new() };
    parts.encoder(&model);
    let head = parts.head(&model);
    let config = config(&model, head, parts.matrices);
    (parts.tensors, config)
}

struct Parts {
    /// Before the names of the encoder's tensors.
    prefix: &'static str,
    tensors: Vec<Tensor>,
    /// How each matrix is stored, by its name.
    matrices: Map<String, Value>,
}

impl Parts {
    fn encoder(&mut self, model: &Model) {
        let (prefix, e) = (self.prefix, &model.embeddings);
        let mut plain = |name: &str, tensor: &Tensor| {
            self.tensors.push(tensor.clone().renamed(format!("{prefix}{name}")));
        };
        e.position.iter().for_each(|t| plain("positions", t));
        e.token_type.iter().for_each(|t| plain("token_types", t));
        model.relative_bias.iter().for_each(|t| plain("relative_bias", t));
        if let Some(table) = &e.task_type {
            plain("task_type", &first_row(table));
        }
        self.table(&e.word);
        self.norm(&format!("{prefix}embedding_norm"), &e.norm);
        if let Some(project) = &e.project {
            self.matrix(prefix, "project", project);
        }
        for (i, layer) in model.layers.iter().enumerate() {
            if let Some(a) = &layer.attention {
                let linears = [
                    ("query", &a.query),
                    ("key", &a.key),
                    ("value", &a.value),
                    ("output", &a.output),
                ];
                for (name, linear) in linears {
                    self.matrix(prefix, &format!("layers.{i}.attention.{name}"), linear);
                }
                let name = format!("{prefix}layers.{i}.attention.norm");
                a.norm.iter().for_each(|norm| self.norm(&name, norm));
            }
            if let Some(f) = &layer.ffn {
                self.matrix(prefix, &format!("layers.{i}.ffn.up"), &f.up);
                self.matrix(prefix, &format!("layers.{i}.ffn.down"), &f.down);
                self.norm(&format!("{prefix}layers.{i}.ffn.norm"), &f.norm);
            }
        }
    }

    /// Adds the tensors of the head and says what it is.
    fn head(&mut self, model: &Model) -> Value {
        match &model.head {
            Head::SequenceClassification { dense, activation, out, .. } => {
                self.matrix("", "dense", dense);
                self.matrix("", "out", out);
                let regression = model.config.regression;
                json!({"kind": "sequence", "activation": name(*activation), "regression": regression})
            }
            Head::TokenClassification { out } => {
                self.matrix("", "out", out);
                json!({"kind": "tokens"})
            }
            Head::QuestionAnswering { out } => {
                self.matrix("", "out", out);
                json!({"kind": "answers"})
            }
            Head::MaskedLm { dense, activation, norm, decoder, bias } => {
                self.matrix("", "dense", dense);
                self.norm("norm", norm);
                self.tensors.push(bias.clone().renamed("bias"));
                self.tensors.extend(decoder.iter().map(|d| d.clone().renamed("decoder")));
                json!({"kind": "words", "activation": name(*activation), "tied": decoder.is_none()})
            }
            Head::Embedding { .. } => json!({"kind": "bare", "pooler": false}),
            Head::Bare { pooler, .. } => {
                if let Some(pooler) = pooler {
                    self.matrix(self.prefix, "pooler", pooler);
                }
                json!({"kind": "bare", "pooler": pooler.is_some()})
            }
        }
    }

    fn norm(&mut self, name: &str, norm: &Norm) {
        self.tensors.push(norm.weight.clone().renamed(format!("{name}.weight")));
        let bias = norm.bias.iter().cloned();
        self.tensors.extend(bias.map(|bias| bias.renamed(format!("{name}.bias"))));
    }

    fn table(&mut self, word: &Weight) {
        self.matrix(self.prefix, "words", &Linear::table(word));
    }

    fn matrix(&mut self, prefix: &str, name: &str, linear: &Linear) {
        let weight = &linear.weight;
        let mut parts = Map::new();
        let mut add = |part: &str, tensor: Tensor| {
            let tensor = as_torch_has_it(tensor);
            parts.insert(part.into(), json!([torch_type(tensor.dtype), tensor.shape]));
            self.tensors.push(tensor.renamed(format!("{prefix}{name}.{part}")));
        };
        for tensor in weight.tensors() {
            let part = tensor.name[weight.name().len()..].trim_start_matches('.').to_string();
            match (&*part, weight) {
                ("weight_shape", _) => {}
                // Always in blocks, and scales always by plane, row and group.
                ("pq_rotation", _) if tensor.shape.len() == 2 => {
                    let shape = [1, tensor.shape[0], tensor.shape[1]];
                    add(&part, tensor.reshaped(&shape));
                }
                ("", Weight::Dense(_)) => add("weight", tensor),
                _ => add(&part, tensor),
            }
        }
        linear.bias.iter().for_each(|bias| add("bias", bias.clone()));
        let mut said = json!({
            "form": form(weight), "shape": [weight.rows(), weight.cols()],
            "activations": linear.activations.bits(), "parts": parts,
        });
        match weight {
            Weight::Binary(b) => said["group"] = json!((b.group < b.cols).then_some(b.group)),
            Weight::Subspace(s) => said["slices"] = json!(s.slices),
            _ => {}
        }
        self.matrices.insert(name.into(), said);
    }
}

fn form(weight: &Weight) -> &'static str {
    match weight {
        Weight::Dense(_) => "dense",
        Weight::Binary(_) => "binary",
        Weight::Double(_) => "double",
        Weight::Int8(_) => "int8",
        Weight::Subspace(_) => "subspace",
        Weight::Factored(_) => "factored",
    }
}

/// Unsigned integers of more than 8 bits have next to no operations in torch.
fn as_torch_has_it(tensor: Tensor) -> Tensor {
    let Tensor { name, dtype, shape, .. } = &tensor;
    match dtype {
        Dtype::U16 if tensor.is_blank() => Tensor::blank(name.clone(), Dtype::I32, shape),
        Dtype::U32 if tensor.is_blank() => Tensor::blank(name.clone(), Dtype::I64, shape),
        Dtype::U16 => {
            let pairs = tensor.bytes().chunks_exact(2);
            let wide: Vec<i32> = pairs.map(|b| u16::from_le_bytes([b[0], b[1]]) as i32).collect();
            Tensor::from_i32(name.clone(), shape, &wide)
        }
        Dtype::U32 => {
            let ids = tensor.to_u32().expect("just looked");
            let wide: Vec<i64> = ids.iter().map(|&id| id as i64).collect();
            Tensor::from_i64(name.clone(), shape, &wide)
        }
        _ => tensor,
    }
}

/// What the code calls a type: all floating ones are the model's.
fn torch_type(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::U8 => "uint8",
        Dtype::I8 => "int8",
        Dtype::I32 => "int32",
        Dtype::I64 => "int64",
        _ => "float",
    }
}

fn name(activation: Activation) -> &'static str {
    match activation {
        Activation::Gelu => "gelu",
        Activation::GeluTanh => "gelu_tanh",
        Activation::Relu => "relu",
        Activation::Silu => "silu",
        Activation::Tanh => "tanh",
    }
}

fn first_row(table: &Tensor) -> Tensor {
    table.rows(table.name.clone(), 0..1).reshaped(&table.shape[1..])
}

fn config(model: &Model, head: Value, matrices: Map<String, Value>) -> Value {
    let config = &model.config;
    let (class, auto) = match config.task {
        Task::SequenceClassification => ("ForSequenceClassification", true),
        Task::TokenClassification => ("ForTokenClassification", true),
        Task::QuestionAnswering => ("ForQuestionAnswering", true),
        Task::MaskedLm => ("ForMaskedLM", true),
        Task::Embedding | Task::Bare => ("Model", false),
    };
    let mut map = json!({
        "AutoConfig": "configuration_compress.CompressConfig",
        "AutoModel": "modeling_compress.CompressModel",
    });
    if auto {
        map[format!("AutoModel{class}")] = json!(format!("modeling_compress.Compress{class}"));
    }
    let layers: Vec<Value> = model
        .layers
        .iter()
        .map(|l| {
            let heads = l.attention.as_ref().map(|a| &a.heads);
            json!({"heads": heads, "ffn": l.ffn.as_ref().map(|f| f.units())})
        })
        .collect();
    let pad = match model.family.positions {
        Positions::FromZero => None,
        Positions::AfterPadding => Some(config.pad_id),
        Positions::AfterOne => Some(1),
    };
    let mut json = json!({
        "model_type": "compress",
        "architectures": [format!("Compress{class}")],
        "auto_map": map,
        "dtype": "float32",
        "vocab_size": config.vocab,
        "hidden_size": config.hidden,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.ffn,
        "hidden_act": name(config.activation).replace("gelu_tanh", "gelu_pytorch_tanh"),
        "layer_norm_eps": config.eps as f64,
        "max_position_embeddings": config.max_positions,
        "type_vocab_size": config.token_types,
        "pad_token_id": config.pad_id,
        "tie_word_embeddings": false,
        "compress": {
            "made_from": model.family.model_type,
            "head_dim": config.head_dim,
            "embedding_size": config.embedding,
            "activation": name(config.activation),
            "position_pad": pad,
            "task_type": model.embeddings.task_type.is_some(),
            "relative_bias": model.relative_bias.is_some(),
            "project": model.embeddings.project.is_some(),
            "reads": match model.reads() {
                Reads::Left => "left",
                Reads::First | Reads::Every => "every",
            },
            "head": head,
            "layers": layers,
            "tokens": model.tokens.as_ref().map(|t| t.to_json()),
            "matrices": matrices,
        },
    });
    for key in
        ["id2label", "label2id", "problem_type", "num_labels", "bos_token_id", "eos_token_id"]
    {
        if let Some(value) = config.raw.get(key).filter(|v| !v.is_null()) {
            json[key] = value.clone();
        }
    }
    json
}
