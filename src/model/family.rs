//! The families this build reads, one table each.
//!
//! A family is data, not code: the names of its tensors by role, the names of its config keys, and
//! its quirks as named options. The one encoder in `runtime` runs them all. To add a family, add a
//! row; if a row cannot say what the family does, the missing feature belongs into these types.

use super::{NormKind, Task};

/// How token positions become rows of the position table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Positions {
    /// Row `i` for the token at index `i` (BERT).
    FromZero,
    /// Counts tokens that are not padding, starting after the padding id (RoBERTa: the first token
    /// has row `pad_token_id + 1`).
    AfterPadding,
    /// As `AfterPadding`, with a padding id that the code fixes at 1 whatever config.json says
    /// (MPNet).
    AfterOne,
}

/// What stands between the encoder and the last linear layer of a sequence classifier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// The encoder's own `pooler.dense` with tanh, then `classifier` (BERT, ERNIE).
    Pooler,
    /// A dense layer of the head with this activation, then the output layer.
    Dense { dense: &'static str, activation: Activation, out: &'static str },
    /// Likewise, with a LayerNorm behind the activation (ModernBERT).
    Normed { dense: &'static str, norm: &'static str, out: &'static str },
}

/// DeBERTa's distances: a table, its LayerNorm, and the matrices of layers that do not share those of words.
#[derive(Debug, Clone, Copy)]
pub struct DistanceNames {
    pub table: &'static str,
    pub norm: &'static str,
    pub key: &'static str,
    pub query: &'static str,
}

/// The linear layer between embedding tables and a residual stream of another width.
#[derive(Debug, Clone, Copy)]
pub enum Project {
    /// Behind the LayerNorm of the tables, where the widths differ (ELECTRA).
    WhereNarrow(&'static str),
    /// Of words alone, before the other tables are added: of one, or of three in a row (MobileBERT).
    Words(&'static str),
    /// Behind the LayerNorm of the tables, always; with the width where config.json has no `embedding_size` (ALBERT).
    Always(&'static str, usize),
}

impl Project {
    pub fn name(self) -> &'static str {
        match self {
            Project::WhereNarrow(name) | Project::Words(name) | Project::Always(name, _) => name,
        }
    }
}

/// The masked-LM head: dense, activation, LayerNorm, then the (tied) word table and a bias.
#[derive(Debug, Clone, Copy)]
pub struct MaskedLmNames {
    pub dense: &'static str,
    pub norm: &'static str,
    /// `None`: the encoder's own activation.
    pub activation: Option<Activation>,
    /// Prefix of the decoder's weight, which repeats the word table when it is tied.
    pub decoder: &'static str,
    /// Full names under which the decoder's bias is found, the first one that exists counts.
    pub bias: &'static [&'static str],
}

/// The element-wise functions that encoders use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x · Φ(x)` with the exact normal distribution function.
    Gelu,
    /// The tanh approximation (`gelu_new`, `gelu_pytorch_tanh`).
    GeluTanh,
    Relu,
    Silu,
    Tanh,
}

impl Activation {
    /// The activation that `hidden_act` names in config.json.
    pub fn from_name(name: &str) -> Option<Activation> {
        Some(match name {
            "gelu" => Activation::Gelu,
            "gelu_new" | "gelu_pytorch_tanh" => Activation::GeluTanh,
            "relu" => Activation::Relu,
            "silu" | "swish" => Activation::Silu,
            "tanh" => Activation::Tanh,
            _ => return None,
        })
    }
}

/// Names of the config.json keys that the families spell differently.
#[derive(Debug, Clone, Copy)]
pub struct Keys {
    pub hidden: &'static str,
    pub layers: &'static str,
    pub heads: &'static str,
    pub ffn: &'static str,
    pub activation: &'static str,
    pub eps: &'static str,
}

const BERT_KEYS: Keys = Keys {
    hidden: "hidden_size",
    layers: "num_hidden_layers",
    heads: "num_attention_heads",
    ffn: "intermediate_size",
    activation: "hidden_act",
    eps: "layer_norm_eps",
};

/// One family of encoders: post-LayerNorm transformers that differ in names and quirks.
#[derive(Debug)]
pub struct Family {
    /// `model_type` in config.json.
    pub model_type: &'static str,
    /// Start of the class names in `architectures`: `Bert` of `BertForMaskedLM`.
    pub class: &'static str,
    /// Put before the encoder's tensors when a head is saved with it.
    pub prefix: &'static str,
    pub keys: Keys,

    pub word: &'static str,
    pub position: Option<&'static str>,
    pub token_type: Option<&'static str>,
    /// ERNIE's task types, when config.json sets `use_task_id`; row 0 is added to every token.
    pub task_type: Option<&'static str>,
    pub embedding_norm: &'static str,
    /// From `embedding_size` to `hidden_size`.
    pub project: Option<Project>,
    pub positions: Positions,

    /// Before the layer's number.
    pub layer: &'static str,
    /// ALBERT: between the number of a group and that of a layer in it. The layers of a group are run again and again.
    pub inner: Option<&'static str>,
    pub query: &'static str,
    pub key: &'static str,
    pub value: &'static str,
    pub attention_output: &'static str,
    pub attention_norm: &'static str,
    pub up: &'static str,
    pub down: &'static str,
    pub ffn_norm: &'static str,
    /// MPNet's bias on attention scores by bucketed distance, `[32, heads]`, shared by all layers.
    pub relative_bias: Option<&'static str>,
    pub norms: NormKind,
    /// Behind the last layer, where norms come first (ModernBERT). Its first layer has none before attention.
    pub final_norm: Option<&'static str>,
    /// The matrix that query, key and value are stored in, one below the other.
    pub joined_attention: Option<&'static str>,
    /// What the units are multiplied by.
    pub gate: Option<&'static str>,
    /// The matrix that `up` and `gate` are stored in.
    pub joined_ffn: Option<&'static str>,
    /// Positions turn queries and keys, and layers may see a window alone (ModernBERT).
    pub rotary: bool,
    pub distances: Option<DistanceNames>,
    /// Before the names of what makes a layer's narrow stream (MobileBERT).
    pub bottleneck: Option<&'static str>,

    /// `pad_token_id` when config.json has none, as in the family's configuration class.
    pub default_pad_id: u32,
    /// Likewise.
    pub default_activation: Activation,
    pub default_eps: f64,
    pub default_positions: usize,
    pub default_types: usize,
    pub pooler: Option<&'static str>,
    pub classify: Pooling,
    /// The key of the activation behind the head's dense layer, where config.json names it; gelu by default.
    pub head_activation: Option<&'static str>,
    pub masked_lm: MaskedLmNames,
    /// The heads that this build knows.
    pub tasks: &'static [Task],
    /// What it has that only the forward pass knows: no gradient goes back through it, no pass cuts it, no target for other
    /// software but `dense` carries it. `None`: nothing, everything runs on it.
    pub feature: Option<&'static str>,
}

impl Family {
    /// What the names of the tensors of layer `index` begin with, `inner` layers being a group.
    pub fn layer_prefix(&self, index: usize, inner: usize) -> String {
        match self.inner {
            None => format!("{}{index}.", self.layer),
            Some(name) => format!("{}{}{name}{}.", self.layer, index / inner, index % inner),
        }
    }
}

const BERT: Family = Family {
    model_type: "bert",
    class: "Bert",
    prefix: "bert.",
    keys: BERT_KEYS,
    word: "embeddings.word_embeddings",
    position: Some("embeddings.position_embeddings"),
    token_type: Some("embeddings.token_type_embeddings"),
    task_type: None,
    embedding_norm: "embeddings.LayerNorm",
    project: None,
    positions: Positions::FromZero,
    layer: "encoder.layer.",
    inner: None,
    query: "attention.self.query",
    key: "attention.self.key",
    value: "attention.self.value",
    attention_output: "attention.output.dense",
    attention_norm: "attention.output.LayerNorm",
    up: "intermediate.dense",
    down: "output.dense",
    ffn_norm: "output.LayerNorm",
    relative_bias: None,
    norms: NormKind::Behind,
    final_norm: None,
    joined_attention: None,
    gate: None,
    joined_ffn: None,
    rotary: false,
    distances: None,
    bottleneck: None,
    default_pad_id: 0,
    default_activation: Activation::Gelu,
    default_eps: 1e-12,
    default_positions: 512,
    default_types: 2,
    pooler: Some("pooler.dense"),
    classify: Pooling::Pooler,
    head_activation: None,
    masked_lm: MaskedLmNames {
        dense: "cls.predictions.transform.dense",
        norm: "cls.predictions.transform.LayerNorm",
        activation: None,
        decoder: "cls.predictions.decoder",
        bias: &["cls.predictions.bias", "cls.predictions.decoder.bias"],
    },
    tasks: &Task::ALL,
    feature: None,
};

const ROBERTA: Family = Family {
    model_type: "roberta",
    class: "Roberta",
    prefix: "roberta.",
    positions: Positions::AfterPadding,
    default_pad_id: 1,
    classify: Pooling::Dense {
        dense: "classifier.dense",
        activation: Activation::Tanh,
        out: "classifier.out_proj",
    },
    masked_lm: MaskedLmNames {
        dense: "lm_head.dense",
        norm: "lm_head.layer_norm",
        activation: Some(Activation::Gelu),
        decoder: "lm_head.decoder",
        bias: &["lm_head.bias", "lm_head.decoder.bias"],
    },
    ..BERT
};

const XLM_ROBERTA: Family = Family { model_type: "xlm-roberta", class: "XLMRoberta", ..ROBERTA };

const DISTILBERT: Family = Family {
    model_type: "distilbert",
    class: "DistilBert",
    prefix: "distilbert.",
    keys: Keys {
        hidden: "dim",
        layers: "n_layers",
        heads: "n_heads",
        ffn: "hidden_dim",
        activation: "activation",
        eps: "layer_norm_eps",
    },
    token_type: None,
    layer: "transformer.layer.",
    query: "attention.q_lin",
    key: "attention.k_lin",
    value: "attention.v_lin",
    attention_output: "attention.out_lin",
    attention_norm: "sa_layer_norm",
    up: "ffn.lin1",
    down: "ffn.lin2",
    ffn_norm: "output_layer_norm",
    pooler: None,
    classify: Pooling::Dense {
        dense: "pre_classifier",
        activation: Activation::Relu,
        out: "classifier",
    },
    masked_lm: MaskedLmNames {
        dense: "vocab_transform",
        norm: "vocab_layer_norm",
        activation: None,
        decoder: "vocab_projector",
        bias: &["vocab_projector.bias"],
    },
    ..BERT
};

const ELECTRA: Family = Family {
    model_type: "electra",
    class: "Electra",
    prefix: "electra.",
    project: Some(Project::WhereNarrow("embeddings_project")),
    pooler: None,
    classify: Pooling::Dense {
        dense: "classifier.dense",
        activation: Activation::Gelu,
        out: "classifier.out_proj",
    },
    masked_lm: MaskedLmNames {
        dense: "generator_predictions.dense",
        norm: "generator_predictions.LayerNorm",
        activation: Some(Activation::Gelu),
        decoder: "generator_lm_head",
        bias: &["generator_lm_head.bias"],
    },
    ..BERT
};

const MPNET: Family = Family {
    model_type: "mpnet",
    class: "MPNet",
    prefix: "mpnet.",
    token_type: None,
    positions: Positions::AfterOne,
    query: "attention.attn.q",
    key: "attention.attn.k",
    value: "attention.attn.v",
    attention_output: "attention.attn.o",
    attention_norm: "attention.LayerNorm",
    relative_bias: Some("encoder.relative_attention_bias"),
    ..ROBERTA
};

const ERNIE: Family = Family {
    model_type: "ernie",
    class: "Ernie",
    prefix: "ernie.",
    task_type: Some("embeddings.task_type_embeddings"),
    ..BERT
};

/// The LayerNorm behind the feed-forward block stands beside it, under a name that says otherwise.
const ALBERT: Family = Family {
    model_type: "albert",
    class: "Albert",
    prefix: "albert.",
    project: Some(Project::Always("encoder.embedding_hidden_mapping_in", 128)),
    layer: "encoder.albert_layer_groups.",
    inner: Some(".albert_layers."),
    query: "attention.query",
    key: "attention.key",
    value: "attention.value",
    attention_output: "attention.dense",
    attention_norm: "attention.LayerNorm",
    up: "ffn",
    down: "ffn_output",
    ffn_norm: "full_layer_layer_norm",
    default_activation: Activation::GeluTanh,
    pooler: Some("pooler"),
    masked_lm: MaskedLmNames {
        dense: "predictions.dense",
        norm: "predictions.LayerNorm",
        activation: None,
        decoder: "predictions.decoder",
        bias: &["predictions.bias", "predictions.decoder.bias"],
    },
    feature: Some("layers that share their weights"),
    ..BERT
};

/// Its three matrices of attention, and the two that its units are made of, are stored as one each.
const MODERNBERT: Family = Family {
    model_type: "modernbert",
    class: "ModernBert",
    prefix: "model.",
    keys: Keys { activation: "hidden_activation", eps: "norm_eps", ..BERT_KEYS },
    word: "embeddings.tok_embeddings",
    position: None,
    token_type: None,
    embedding_norm: "embeddings.norm",
    layer: "layers.",
    query: "attn.Wqkv.query",
    key: "attn.Wqkv.key",
    value: "attn.Wqkv.value",
    joined_attention: Some("attn.Wqkv"),
    attention_output: "attn.Wo",
    attention_norm: "attn_norm",
    up: "mlp.Wi.up",
    gate: Some("mlp.Wi.gate"),
    joined_ffn: Some("mlp.Wi"),
    down: "mlp.Wo",
    ffn_norm: "mlp_norm",
    norms: NormKind::First,
    final_norm: Some("final_norm"),
    rotary: true,
    default_pad_id: 50283,
    default_eps: 1e-5,
    default_positions: 8192,
    pooler: None,
    classify: Pooling::Normed { dense: "head.dense", norm: "head.norm", out: "classifier" },
    head_activation: Some("classifier_activation"),
    masked_lm: MaskedLmNames {
        dense: "head.dense",
        norm: "head.norm",
        activation: None,
        decoder: "decoder",
        bias: &["decoder.bias"],
    },
    tasks: &[Task::SequenceClassification, Task::MaskedLm, Task::Embedding, Task::Bare],
    feature: Some("rotary positions and gated units"),
    ..BERT
};

/// Version 3 has the same code.
const DEBERTA_V2: Family = Family {
    model_type: "deberta-v2",
    class: "DebertaV2",
    prefix: "deberta.",
    query: "attention.self.query_proj",
    key: "attention.self.key_proj",
    value: "attention.self.value_proj",
    distances: Some(DistanceNames {
        table: "encoder.rel_embeddings",
        norm: "encoder.LayerNorm",
        key: "attention.self.pos_key_proj",
        query: "attention.self.pos_query_proj",
    }),
    default_eps: 1e-7,
    default_types: 0,
    pooler: None,
    classify: Pooling::Dense {
        dense: "pooler.dense",
        activation: Activation::Gelu,
        out: "classifier",
    },
    head_activation: Some("pooler_hidden_act"),
    feature: Some("disentangled attention"),
    ..BERT
};

/// Layers work in a stream that is narrower than the one between them, with several feed-forward blocks, and scale where
/// others normalise.
const MOBILEBERT: Family = Family {
    model_type: "mobilebert",
    class: "MobileBert",
    prefix: "mobilebert.",
    project: Some(Project::Words("embeddings.embedding_transformation")),
    norms: NormKind::Scale,
    bottleneck: Some("bottleneck."),
    default_activation: Activation::Relu,
    tasks: &[
        Task::SequenceClassification,
        Task::TokenClassification,
        Task::QuestionAnswering,
        Task::Embedding,
        Task::Bare,
    ],
    feature: Some("bottlenecks"),
    ..BERT
};

/// Every family of this build.
pub const ALL: &[Family] = &[
    BERT,
    ROBERTA,
    XLM_ROBERTA,
    DISTILBERT,
    ELECTRA,
    MPNET,
    ERNIE,
    ALBERT,
    MODERNBERT,
    DEBERTA_V2,
    MOBILEBERT,
];

/// Those that gradients go back through and that can be cut.
#[cfg(test)]
pub const TRAINED: &[Family] = &[BERT, ROBERTA, XLM_ROBERTA, DISTILBERT, ELECTRA, MPNET, ERNIE];

/// The family that `model_type` names.
pub fn find(model_type: &str) -> Option<&'static Family> {
    ALL.iter().find(|f| f.model_type == model_type)
}

/// The names of all families, for error messages.
pub fn known() -> String {
    ALL.iter().map(|f| f.model_type).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_family_is_found_by_its_own_name() {
        for family in ALL {
            assert_eq!(find(family.model_type).map(|f| f.class), Some(family.class));
        }
        assert!(find("llama").is_none());
    }

    #[test]
    fn families_without_a_feature_of_their_own_are_trained() {
        let plain = ALL.iter().filter(|f| f.feature.is_none()).map(|f| f.model_type);
        assert_eq!(
            plain.collect::<Vec<_>>(),
            TRAINED.iter().map(|f| f.model_type).collect::<Vec<_>>()
        );
    }
}
