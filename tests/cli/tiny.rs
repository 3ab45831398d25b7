//! Random checkpoints of a few kilobytes.

use crate::support::write_tensors;
use compress::checkpoint::{Dtype, Tensor};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

pub const HIDDEN: usize = 16;
pub const FFN: usize = 24;
pub const VOCAB: usize = 40;

const WORDS: &str = "[PAD] [UNK] [CLS] [SEP] [MASK] a b c d e f g i o s t the film food was it not good \
    bad best worst and but so very me you we they he she . , ! ?";

/// What a checkpoint folder holds, in memory.
#[derive(Debug, Clone)]
pub struct Tiny {
    pub config: Value,
    pub tensors: Vec<Tensor>,
}

impl Tiny {
    /// A BERT of two layers with a head for two classes.
    pub fn classifier() -> Tiny {
        let mut tiny = Tiny::encoder("BertForSequenceClassification");
        tiny.push("bert.pooler.dense", &[HIDDEN, HIDDEN]);
        tiny.push("classifier", &[2, HIDDEN]);
        tiny
    }

    /// The classifier as a RoBERTa, whose positions count from behind the padding id.
    pub fn roberta() -> Tiny {
        let mut tiny = Tiny::classifier();
        tiny.config["model_type"] = json!("roberta");
        tiny.config["architectures"] = json!(["RobertaForSequenceClassification"]);
        tiny.config["pad_token_id"] = json!(1);
        for tensor in &mut tiny.tensors {
            tensor.name = match tensor.name.strip_prefix("bert.") {
                Some("pooler.dense.weight") => "classifier.dense.weight".into(),
                Some("pooler.dense.bias") => "classifier.dense.bias".into(),
                Some(name) => format!("roberta.{name}"),
                None => tensor.name.replace("classifier", "classifier.out_proj"),
            };
        }
        tiny
    }

    /// The same encoder with a tied masked-LM head.
    pub fn masked_lm() -> Tiny {
        let mut tiny = Tiny::encoder("BertForMaskedLM");
        tiny.push("cls.predictions.transform.dense", &[HIDDEN, HIDDEN]);
        tiny.norm("cls.predictions.transform.LayerNorm");
        tiny.tensor("cls.predictions.bias", &[VOCAB]);
        tiny
    }

    /// The same encoder with a head for entities of one type.
    pub fn tagger() -> Tiny {
        let mut tiny = Tiny::encoder("BertForTokenClassification");
        tiny.config["id2label"] = json!({"0": "O", "1": "B-X", "2": "I-X"});
        tiny.push("classifier", &[3, HIDDEN]);
        tiny
    }

    /// The same encoder with a head for answers.
    pub fn reader() -> Tiny {
        let mut tiny = Tiny::encoder("BertForQuestionAnswering");
        tiny.push("qa_outputs", &[2, HIDDEN]);
        tiny
    }

    fn encoder(architecture: &str) -> Tiny {
        let config = json!({
            "architectures": [architecture], "model_type": "bert", "hidden_act": "gelu",
            "hidden_size": HIDDEN, "num_hidden_layers": 2, "num_attention_heads": 2,
            "intermediate_size": FFN, "vocab_size": VOCAB, "max_position_embeddings": 32,
            "type_vocab_size": 2, "layer_norm_eps": 1e-12, "pad_token_id": 0,
            "id2label": {"0": "negative", "1": "positive"},
        });
        let mut tiny = Tiny { config, tensors: Vec::new() };
        for (name, rows) in [("word", VOCAB), ("position", 32), ("token_type", 2)] {
            tiny.tensor(&format!("bert.embeddings.{name}_embeddings.weight"), &[rows, HIDDEN]);
        }
        tiny.norm("bert.embeddings.LayerNorm");
        for layer in 0..2 {
            let at = |name: &str| format!("bert.encoder.layer.{layer}.{name}");
            for name in ["self.query", "self.key", "self.value", "output.dense"] {
                tiny.push(&at(&format!("attention.{name}")), &[HIDDEN, HIDDEN]);
            }
            tiny.norm(&at("attention.output.LayerNorm"));
            tiny.push(&at("intermediate.dense"), &[FFN, HIDDEN]);
            tiny.push(&at("output.dense"), &[HIDDEN, FFN]);
            tiny.norm(&at("output.LayerNorm"));
        }
        tiny
    }

    fn push(&mut self, name: &str, shape: &[usize]) {
        self.tensor(&format!("{name}.weight"), shape);
        self.tensor(&format!("{name}.bias"), &shape[..1]);
    }

    fn norm(&mut self, name: &str) {
        let one = Tensor::from_f32(format!("{name}.weight"), &[HIDDEN], &[1.0; HIDDEN], Dtype::F32);
        self.tensors.push(one);
        self.tensor(&format!("{name}.bias"), &[HIDDEN]);
    }

    /// Adds random numbers in [-0.5, 0.5) that F16 and BF16 hold exactly.
    pub fn tensor(&mut self, name: &str, shape: &[usize]) {
        let mut rng = ChaCha8Rng::seed_from_u64(self.tensors.len() as u64);
        let mut value = || (rng.next_u32() >> 25) as f32 / 128.0 - 0.5;
        let values: Vec<f32> = (0..shape.iter().product()).map(|_| value()).collect();
        self.tensors.push(Tensor::from_f32(name, shape, &values, Dtype::F32));
    }

    /// The only tensor whose name ends so.
    pub fn find(&mut self, suffix: &str) -> &mut Tensor {
        let mut found = self.tensors.iter_mut().filter(|t| t.name.ends_with(suffix));
        let (first, second) = (found.next(), found.next());
        assert!(second.is_none(), "two tensors end in {suffix}");
        first.unwrap_or_else(|| panic!("no tensor ends in {suffix}"))
    }

    pub fn remove(&mut self, name: &str) {
        self.find(name);
        self.tensors.retain(|t| !t.name.ends_with(name));
    }

    pub fn converted(mut self, dtype: Dtype) -> Tiny {
        for t in &mut self.tensors {
            *t = Tensor::from_f32(t.name.clone(), &t.shape, &t.to_f32().unwrap(), dtype);
        }
        self
    }

    /// Replaces the dense up-projection of layer 0 by one sign plane with scales and a rank-1 residual.
    pub fn packed() -> Tiny {
        let mut tiny = Tiny::classifier();
        let name = "bert.encoder.layer.0.intermediate.dense";
        tiny.remove("layer.0.intermediate.dense.weight");
        let at = |part: &str| format!("{name}.{part}");
        let signs: Vec<i32> = (0..FFN as i32).map(|i| i * 2654 % (1 << HIDDEN)).collect();
        let halves = |part, shape: &[usize]| {
            let values = vec![0.25; shape.iter().product()];
            Tensor::from_f32(at(part), shape, &values, Dtype::F16)
        };
        tiny.tensors.extend([
            Tensor::from_i32(at("weight_packed"), &[1, FFN, 1], &signs),
            Tensor::from_i64(at("weight_shape"), &[2], &[FFN as i64, HIDDEN as i64]),
            halves("weight_scale", &[1, FFN]),
            halves("lowrank_u", &[FFN, 1]),
            halves("lowrank_v", &[1, HIDDEN]),
        ]);
        tiny.config["compress"] = tiny.compress_entry();
        tiny
    }

    /// Replaces the word table by codes for four slices, a rotation in two blocks, a mean and two exact rows.
    pub fn embedded() -> Tiny {
        let mut tiny = Tiny::classifier();
        tiny.remove("word_embeddings.weight");
        let at = |part: &str| format!("bert.embeddings.word_embeddings.{part}");
        let numbers = |part: &str, shape: &[usize], dtype| {
            let numel: usize = shape.iter().product();
            let values: Vec<f32> = (0..numel).map(|i| (i * 7 % 13) as f32 / 16.0 - 0.375).collect();
            Tensor::from_f32(at(part), shape, &values, dtype)
        };
        let codes: Vec<u8> = (0..VOCAB * 4).map(|i| (i * 5 % 7 % 4) as u8).collect();
        tiny.tensors.extend([
            Tensor::from_u8(at("pq_codes"), &[VOCAB, 4], &codes),
            numbers("pq_codebooks", &[4, 4, 4], Dtype::F16),
            numbers("pq_rotation", &[2, 8, 8], Dtype::F16),
            numbers("pq_mean", &[HIDDEN], Dtype::F32),
            Tensor::from_u32(at("exact_ids"), &[2], &[0, 7]),
            numbers("exact_rows", &[2, HIDDEN], Dtype::F16),
        ]);
        tiny.config["compress"] = tiny.compress_entry();
        tiny
    }

    /// Replaces the word table by two factors of rank 2.
    pub fn factored() -> Tiny {
        let mut tiny = Tiny::classifier();
        tiny.remove("word_embeddings.weight");
        for (part, shape) in [("factor_u", [VOCAB, 2]), ("factor_v", [2, HIDDEN])] {
            let name = format!("bert.embeddings.word_embeddings.{part}");
            let values = vec![0.25; shape[0] * shape[1]];
            tiny.tensors.push(Tensor::from_f32(name, &shape, &values, Dtype::F16));
        }
        tiny.config["compress"] = tiny.compress_entry();
        tiny
    }

    /// What config.json says of an output in which nothing was pruned.
    pub fn compress_entry(&self) -> Value {
        let layer = json!({"heads": [0, 1], "ffn": FFN});
        json!({"version": 1, "recipe": null, "head_dim": HIDDEN / 2, "layers": [layer, layer], "packed": {}})
    }

    /// Writes the folder, with a tokenizer.
    pub fn save(&self, folder: &Path) {
        self.save_config(folder);
        write_tensors(&folder.join("model.safetensors"), &self.tensors);
    }

    /// Writes the folder with its tensors in two shards.
    pub fn save_sharded(&self, folder: &Path) {
        self.save_config(folder);
        let (first, second) = self.tensors.split_at(self.tensors.len() / 2);
        let mut map = serde_json::Map::new();
        for (i, shard) in [first, second].into_iter().enumerate() {
            let file = format!("model-{:05}-of-00002.safetensors", i + 1);
            write_tensors(&folder.join(&file), shard);
            map.extend(shard.iter().map(|t| (t.name.clone(), json!(file))));
        }
        let index = json!({"metadata": {}, "weight_map": map});
        fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
    }

    fn save_config(&self, folder: &Path) {
        fs::create_dir_all(folder).unwrap();
        let write = |name: &str, text: String| fs::write(folder.join(name), text).unwrap();
        write("config.json", format!("{:#}\n", self.config));
        write(
            "tokenizer_config.json",
            json!({"do_lower_case": true, "model_max_length": 32}).to_string(),
        );
        let words: Vec<&str> = WORDS.split_whitespace().collect();
        assert_eq!(words.len(), VOCAB);
        write("vocab.txt", words.join("\n") + "\n");
    }
}
