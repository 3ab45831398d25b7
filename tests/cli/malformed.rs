//! Inputs nobody should send. Each gets an exit code and one paragraph, and changes no file.

use crate::support::{Dir, tree};
use crate::tiny::{FFN, HIDDEN, Tiny, VOCAB};
use compress::checkpoint::{Dtype, Tensor};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// What is wrong, the exit code, and how to make it so. Gets the folder of a healthy tiny model.
type Case = (&'static str, i32, fn(&Path));

/// A case, and what to type in the folder around the model.
type Run = (&'static str, i32, fn(&Path), &'static [&'static str]);

/// Both `inspect` and a run read the weights and refuse these, in the same words.
const CHECKPOINTS: &[Case] = &[
    // The file.
    ("no such path", 6, |m| fs::remove_dir_all(m).unwrap()),
    ("a folder without weights", 4, |m| remove(m, WEIGHTS)),
    ("weights that are a folder", 4, |m| {
        remove(m, WEIGHTS);
        fs::create_dir(m.join(WEIGHTS)).unwrap();
    }),
    ("only pytorch_model.bin", 4, |m| {
        fs::rename(m.join(WEIGHTS), m.join("pytorch_model.bin")).unwrap();
    }),
    ("only an adapter", 4, |m| {
        fs::rename(m.join(WEIGHTS), m.join("adapter_model.safetensors")).unwrap();
    }),
    ("a Git LFS pointer", 4, |m| {
        write(m, WEIGHTS, "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n");
    }),
    ("an empty file", 4, |m| write(m, WEIGHTS, "")),
    ("a file of 7 bytes", 4, |m| write(m, WEIGHTS, [8, 0, 0, 0, 0, 0, 0])),
    ("a file cut off in its data", 4, |m| bytes(m, |b| b.truncate(b.len() - 1))),
    ("a file cut off in its header", 4, |m| bytes(m, |b| b.truncate(100))),
    ("a header longer than the file", 4, |m| bytes(m, |b| b[3] = 1)),
    ("a header of 2^64 - 1 bytes", 4, |m| bytes(m, |b| b[..8].fill(255))),
    ("a header that is not UTF-8", 4, |m| bytes(m, |b| b[20] = 255)),
    ("a header that is not JSON", 4, |m| raw(m, "{\"a\": ", 0)),
    ("a header that is a list", 4, |m| raw(m, "[]", 0)),
    ("a header nested 100,000 deep", 4, |m| raw(m, &"{\"a\":".repeat(100_000), 0)),
    ("two tensors of one name", 4, |m| {
        let t = r#""a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}"#;
        raw(m, &format!("{{{t},{t}}}"), 1);
    }),
    ("tensors that overlap", 4, |m| {
        let t = |name, begin, end| {
            format!(r#""{name}":{{"dtype":"U8","shape":[4],"data_offsets":[{begin},{end}]}}"#)
        };
        raw(m, &format!("{{{},{}}}", t("a", 0, 4), t("b", 2, 6)), 6);
    }),
    ("tensors inside of each other", 4, |m| {
        let t = |name, shape, end| {
            format!(r#""{name}":{{"dtype":"U8","shape":[{shape}],"data_offsets":[0,{end}]}}"#)
        };
        raw(m, &format!("{{{},{}}}", t("a", 4, 4), t("b", 2, 2)), 4);
    }),
    ("a hole between tensors", 4, |m| {
        raw(m, r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[3,4]}}"#, 4);
    }),
    ("bytes behind the last tensor", 4, |m| bytes(m, |b| b.extend([0; 5]))),
    ("an unknown dtype", 4, |m| header(m, |h| h["classifier.bias"]["dtype"] = json!("F31"))),
    ("a shape whose product overflows", 4, |m| {
        header(m, |h| h["classifier.bias"]["shape"] = json!([1u64 << 40, 1u64 << 40]));
    }),
    ("a shape with a negative size", 4, |m| {
        header(m, |h| h["classifier.bias"]["shape"] = json!([-2]));
    }),
    ("offsets the wrong way round", 4, |m| {
        header(m, |h| h["classifier.bias"]["data_offsets"] = json!([8, 0]));
    }),
    ("offsets beyond the file", 4, |m| {
        header(m, |h| h["classifier.bias"]["data_offsets"] = json!([0, u64::MAX]));
    }),
    ("offsets that do not fit the shape", 4, |m| {
        header(m, |h| h["classifier.bias"]["shape"] = json!([3]));
    }),
    ("a tensor without dtype", 4, |m| {
        header(m, |h| h["classifier.bias"] = json!({"shape": [2], "data_offsets": [0, 8]}));
    }),
    ("a tensor named with an escape sequence", 4, |m| {
        raw(m, r#"{"\u001b[31m":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#, 1);
    }),
    ("a named pipe for weights", 4, |m| pipe(m, WEIGHTS)),
    // Tensors.
    ("a tensor missing", 4, |m| tiny(m, |t| t.remove("layer.1.output.dense.bias"))),
    ("a tensor too many", 4, |m| {
        tiny(m, |t| t.tensor("bert.encoder.layer.2.output.dense.bias", &[1]))
    }),
    ("a head of another task", 4, |m| tiny(m, |t| t.tensor("qa_outputs.weight", &[2, HIDDEN]))),
    ("a tensor of another shape", 4, |m| {
        tiny(m, |t| {
            t.remove("layer.1.intermediate.dense.weight");
            t.tensor("bert.encoder.layer.1.intermediate.dense.weight", &[HIDDEN, FFN]);
        });
    }),
    ("a tensor without dimensions", 4, |m| {
        tiny(m, |t| {
            t.remove("classifier.bias");
            t.tensor("classifier.bias", &[]);
        });
    }),
    ("weights in I32", 4, |m| {
        tiny(m, |t| {
            *t.find("classifier.bias") = Tensor::from_i32("classifier.bias", &[2], &[0; 2])
        });
    }),
    ("weights in F64", 4, |m| {
        tiny(m, |t| {
            *t.find("classifier.bias") = Tensor::new("classifier.bias", Dtype::F64, &[2], &[0; 16])
        });
    }),
    ("NaN", 4, |m| tiny(m, |t| poison(t, Dtype::F32, f32::NAN))),
    ("NaN in F16", 4, |m| tiny(m, |t| poison(t, Dtype::F16, f32::NAN))),
    ("infinity", 4, |m| tiny(m, |t| poison(t, Dtype::F32, f32::INFINITY))),
    ("infinity in BF16", 4, |m| tiny(m, |t| poison(t, Dtype::BF16, f32::NEG_INFINITY))),
    // Shards.
    ("an index that is not JSON", 4, |m| sharded(m, |_| json!(null), Some("{"))),
    ("an index without weight_map", 4, |m| sharded(m, |_| json!({"metadata": {}}), None)),
    ("an index of no tensors", 4, |m| sharded(m, |_| json!({"weight_map": {}}), None)),
    ("an index with numbers for files", 4, |m| {
        sharded(
            m,
            |mut i| {
                i["weight_map"]["classifier.bias"] = json!(1);
                i
            },
            None,
        );
    }),
    ("an index that leaves the folder", 4, |m| point(m, "../model-00002-of-00002.safetensors")),
    ("an index with an absolute path", 4, |m| point(m, "/etc/passwd")),
    ("an index with a sub-folder", 4, |m| point(m, "sub/x.safetensors")),
    ("an index with a file name of control characters", 4, |m| point(m, "x\n\u{1b}[2J")),
    ("an index that names a shard that is not there", 6, |m| {
        sharded(
            m,
            |mut i| {
                i["weight_map"]["no.such"] = json!("model-00003-of-00002.safetensors");
                i
            },
            None,
        );
    }),
    ("an index that names a tensor that is not there", 4, |m| {
        sharded(
            m,
            |mut i| {
                i["weight_map"]["no.such"] = json!("model-00001-of-00002.safetensors");
                i
            },
            None,
        );
    }),
    ("an index that puts a tensor elsewhere", 4, |m| point(m, "model-00001-of-00002.safetensors")),
    ("an index that lacks a tensor", 4, |m| {
        sharded(
            m,
            |mut i| {
                i["weight_map"].as_object_mut().unwrap().remove("classifier.bias");
                i
            },
            None,
        );
    }),
    ("a tensor in two shards", 4, |m| {
        sharded(m, |i| i, None);
        crate::support::write_tensors(
            &m.join("model-00001-of-00002.safetensors"),
            &Tiny::classifier().tensors,
        );
    }),
    // config.json.
    ("no config.json", 6, |m| remove(m, "config.json")),
    ("config.json that is not JSON", 4, |m| write(m, "config.json", "{\"a\": 1,}")),
    ("config.json that is not UTF-8", 4, |m| write(m, "config.json", b"{\"a\": \"\xff\"}")),
    ("config.json that is a list", 4, |m| write(m, "config.json", "[1]")),
    ("config.json nested 100,000 deep", 4, |m| write(m, "config.json", "[".repeat(100_000))),
    ("config.json as a named pipe", 4, |m| pipe(m, "config.json")),
    ("no model_type", 4, |m| without(m, "model_type")),
    ("model_type that is a number", 4, |m| set(m, "model_type", json!(1))),
    ("an unknown family", 4, |m| set(m, "model_type", json!("llama"))),
    ("an unknown architecture", 4, |m| {
        set(m, "architectures", json!(["BertForNextSentencePrediction"]))
    }),
    ("an architecture of another family", 4, |m| set(m, "architectures", json!(["RobertaModel"]))),
    ("no architectures", 4, |m| without(m, "architectures")),
    ("empty architectures", 4, |m| set(m, "architectures", json!([]))),
    ("no hidden_size", 4, |m| without(m, "hidden_size")),
    ("no vocab_size", 4, |m| without(m, "vocab_size")),
    ("hidden_size as a string", 4, |m| set(m, "hidden_size", json!("16"))),
    ("hidden_size as a fraction", 4, |m| set(m, "hidden_size", json!(16.5))),
    ("hidden_size 0", 4, |m| set(m, "hidden_size", json!(0))),
    ("hidden_size negative", 4, |m| set(m, "hidden_size", json!(-16))),
    ("hidden_size 2^63", 4, |m| set(m, "hidden_size", json!(1u64 << 63))),
    ("hidden_size null", 4, |m| set(m, "hidden_size", Value::Null)),
    ("num_attention_heads 0", 4, |m| set(m, "num_attention_heads", json!(0))),
    ("heads that do not divide hidden", 4, |m| set(m, "num_attention_heads", json!(3))),
    ("too few layers", 4, |m| set(m, "num_hidden_layers", json!(1))),
    ("too many layers", 4, |m| set(m, "num_hidden_layers", json!(3))),
    ("as many layers as the limit allows", 4, |m| {
        set(m, "num_hidden_layers", json!((1 << 24) - 1))
    }),
    ("another vocab_size", 4, |m| set(m, "vocab_size", json!(VOCAB + 1))),
    ("another max_position_embeddings", 4, |m| set(m, "max_position_embeddings", json!(512))),
    ("another number of labels", 4, |m| set(m, "id2label", json!({"0": "a", "1": "b", "2": "c"}))),
    ("labels with a hole", 4, |m| set(m, "id2label", json!({"0": "a", "2": "c"}))),
    ("an unknown activation", 4, |m| set(m, "hidden_act", json!("mish"))),
    ("an activation that is an object", 4, |m| set(m, "hidden_act", json!({"a": "\n"}))),
    ("layer_norm_eps as a string", 4, |m| set(m, "layer_norm_eps", json!("1e-12"))),
    ("layer_norm_eps negative", 4, |m| set(m, "layer_norm_eps", json!(-1.0))),
    ("layer_norm_eps 1", 4, |m| set(m, "layer_norm_eps", json!(1))),
    ("relative positions", 4, |m| set(m, "position_embedding_type", json!("relative_key_query"))),
    ("a decoder", 4, |m| set(m, "is_decoder", json!(true))),
    ("cross attention", 4, |m| set(m, "add_cross_attention", json!(true))),
    ("quantization_config", 4, |m| set(m, "quantization_config", json!({"quant_method": "gptq"}))),
    ("several labels at once", 4, |m| set(m, "problem_type", json!("multi_label_classification"))),
    // Our own entry in config.json, and packed tensors.
    ("compress that is a string", 4, |m| set(m, "compress", json!("yes"))),
    ("compress without version", 4, |m| entry(m, |e| e["version"] = Value::Null)),
    ("compress of a newer version", 4, |m| entry(m, |e| e["version"] = json!(2))),
    ("compress without layers", 4, |m| entry(m, |e| e["layers"] = Value::Null)),
    ("compress with too few layers", 4, |m| entry(m, |e| e["layers"] = json!([]))),
    ("compress with a head that is not there", 4, |m| {
        entry(m, |e| e["layers"][0]["heads"] = json!([0, 2]))
    }),
    ("compress with a head twice", 4, |m| entry(m, |e| e["layers"][0]["heads"] = json!([0, 0]))),
    ("compress with heads out of order", 4, |m| {
        entry(m, |e| e["layers"][1]["heads"] = json!([1, 0]))
    }),
    ("compress with a number of heads", 4, |m| entry(m, |e| e["layers"][1]["heads"] = json!(2))),
    ("compress with fewer heads than stored", 4, |m| {
        entry(m, |e| e["layers"][1]["heads"] = json!([1]))
    }),
    ("compress with fewer units than stored", 4, |m| {
        entry(m, |e| e["layers"][1]["ffn"] = json!(7))
    }),
    ("compress with a negative number of units", 4, |m| {
        entry(m, |e| e["layers"][1]["ffn"] = json!(-1))
    }),
    ("compress without a block that is stored", 4, |m| {
        entry(m, |e| e["layers"][1]["ffn"] = Value::Null)
    }),
    ("a packed matrix without scales", 4, |m| packed(m, |t| t.remove("weight_scale"))),
    ("a packed matrix without shape", 4, |m| packed(m, |t| t.remove("weight_shape"))),
    ("a packed matrix of another shape", 4, |m| {
        packed(m, |t| {
            *t.find("weight_shape") =
                Tensor::from_i64(t.find("weight_shape").name.clone(), &[2], &[-1, i64::MIN])
        });
    }),
    ("a packed matrix with too few words", 4, |m| packed(m, |t| words(t, &[1, FFN - 1, 1]))),
    ("a packed matrix of no planes", 4, |m| packed(m, |t| words(t, &[0, FFN, 1]))),
    ("a packed matrix of five planes", 4, |m| packed(m, |t| words(t, &[5, FFN, 1]))),
    ("a packed matrix without dimensions", 4, |m| packed(m, |t| words(t, &[]))),
    ("a packed matrix in F32", 4, |m| {
        packed(m, |t| {
            let name = t.find("weight_packed").name.clone();
            *t.find("weight_packed") =
                Tensor::from_f32(name, &[1, FFN, 1], &[0.0; FFN], Dtype::F32);
        });
    }),
    ("a packed matrix with a NaN scale", 4, |m| {
        packed(m, |t| {
            let name = t.find("weight_scale").name.clone();
            *t.find("weight_scale") =
                Tensor::from_f32(name, &[1, FFN], &[f32::NAN; FFN], Dtype::F16);
        });
    }),
    ("a packed matrix with scales for groups nobody told of", 4, |m| {
        packed(m, |t| {
            let name = t.find("weight_scale").name.clone();
            *t.find("weight_scale") =
                Tensor::from_f32(name, &[1, FFN, 2], &[0.5; 2 * FFN], Dtype::F16);
        });
    }),
    ("a packed matrix with half a residual", 4, |m| packed(m, |t| t.remove("lowrank_v"))),
    ("a packed matrix with factors that do not fit", 4, |m| {
        packed(m, |t| {
            let name = t.find("lowrank_v").name.clone();
            *t.find("lowrank_v") =
                Tensor::from_f32(name, &[2, HIDDEN], &[0.5; 2 * HIDDEN], Dtype::F16);
        });
    }),
    ("a matrix both packed and dense", 4, |m| {
        packed(m, |t| t.tensor("bert.encoder.layer.0.intermediate.dense.weight", &[FFN, HIDDEN]));
    }),
    ("a table of a form without codes", 4, |m| embedded(m, |t| t.remove("pq_codes"))),
    ("a table of a form without codebooks", 4, |m| embedded(m, |t| t.remove("pq_codebooks"))),
    ("a table with a code beyond its codewords", 4, |m| {
        embedded(m, |t| {
            let name = t.find("pq_codes").name.clone();
            *t.find("pq_codes") = Tensor::from_u8(name, &[VOCAB, 4], &[4; 4 * VOCAB]);
        });
    }),
    ("a table with too few codes", 4, |m| {
        embedded(m, |t| {
            let name = t.find("pq_codes").name.clone();
            *t.find("pq_codes") = Tensor::from_u8(name, &[VOCAB - 1, 4], &[0; 4 * (VOCAB - 1)]);
        });
    }),
    ("a table with codes in I32", 4, |m| {
        embedded(m, |t| {
            let name = t.find("pq_codes").name.clone();
            *t.find("pq_codes") = Tensor::from_i32(name, &[VOCAB, 4], &[0; 4 * VOCAB]);
        });
    }),
    ("a table with codes for fewer columns", 4, |m| {
        embedded(m, |t| {
            let name = t.find("pq_codes").name.clone();
            *t.find("pq_codes") = Tensor::from_u8(name, &[VOCAB, 3], &[0; 3 * VOCAB]);
        });
    }),
    ("a table with codebooks without dimensions", 4, |m| {
        embedded(m, |t| numbers(t, "pq_codebooks", &[]))
    }),
    ("a table with codewords of no width", 4, |m| {
        embedded(m, |t| numbers(t, "pq_codebooks", &[4, 4, 0]))
    }),
    ("a table with a rotation of another width", 4, |m| {
        embedded(m, |t| numbers(t, "pq_rotation", &[3, 5, 5]))
    }),
    ("a table with a rotation without dimensions", 4, |m| {
        embedded(m, |t| numbers(t, "pq_rotation", &[]))
    }),
    ("a table with a mean in F16", 4, |m| embedded(m, |t| numbers(t, "pq_mean", &[HIDDEN]))),
    ("a table with a NaN codeword", 4, |m| {
        embedded(m, |t| {
            let name = t.find("pq_codebooks").name.clone();
            *t.find("pq_codebooks") =
                Tensor::from_f32(name, &[4, 4, 4], &[f32::NAN; 64], Dtype::F16);
        });
    }),
    ("a table with exact rows out of order", 4, |m| exact(m, &[3, 2])),
    ("a table with an exact row twice", 4, |m| exact(m, &[2, 2])),
    ("a table with an exact row it does not have", 4, |m| exact(m, &[2, VOCAB as u32])),
    ("a table with exact rows but no ids", 4, |m| embedded(m, |t| t.remove("exact_ids"))),
    ("a table with ids but no exact rows", 4, |m| embedded(m, |t| t.remove("exact_rows"))),
    ("a table both embedded and dense", 4, |m| {
        embedded(m, |t| t.tensor("bert.embeddings.word_embeddings.weight", &[VOCAB, HIDDEN]));
    }),
    ("a table of factors that do not fit", 4, |m| {
        factored(m, |t| numbers(t, "factor_v", &[3, HIDDEN]))
    }),
    ("a table of one factor", 4, |m| factored(m, |t| t.remove("factor_v"))),
    ("an error of a table that is a string", 4, |m| {
        embedded(m, |t| {
            let name = "bert.embeddings.word_embeddings";
            t.config["compress"]["packed"][name] = json!({"form": "subspace", "error": "small"});
        });
    }),
    // Sentence-transformers.
    ("modules.json that is not JSON", 4, |m| write(m, "modules.json", "[")),
    ("modules.json that is an object", 4, |m| write(m, "modules.json", "{}")),
    ("modules.json for a classifier", 4, |m| {
        write(m, "modules.json", modules("1_Pooling").to_string())
    }),
    ("modules.json whose transformer is elsewhere", 4, |m| {
        write(
            m,
            "modules.json",
            json!([{"type": "x.Transformer", "path": "../other"}]).to_string(),
        );
    }),
    ("no pooling module", 4, |m| {
        embedder(m, json!([{"type": "x.Transformer", "path": ""}]), json!({}))
    }),
    ("an unknown module", 4, |m| {
        embedder(
            m,
            json!([{"type": "x.Transformer", "path": ""}, {"type": "x.Dense", "path": "2"}]),
            json!({}),
        );
    }),
    ("a pooling folder that leaves the checkpoint", 4, |m| {
        embedder(m, modules("../1_Pooling"), json!({}))
    }),
    ("no configuration of the pooling", 6, |m| {
        embedder(m, modules("1_Pooling"), json!({}));
        remove(m, "1_Pooling/config.json");
    }),
    ("an unknown pooling", 4, |m| {
        embedder(m, modules("1_Pooling"), json!({"pooling_mode_lasttoken": true}))
    }),
    ("two poolings at once", 4, |m| {
        embedder(
            m,
            modules("1_Pooling"),
            json!({"pooling_mode_cls_token": true, "pooling_mode_max_tokens": true}),
        );
    }),
    ("no pooling at all", 4, |m| embedder(m, modules("1_Pooling"), json!([]))),
    ("a family named with control characters", 4, |m| {
        set(m, "model_type", json!("a\nb\u{1b}[31m"))
    }),
    ("an architecture named with control characters", 4, |m| {
        set(m, "architectures", json!(["Bert\n\u{1b}"]))
    }),
    ("as many layers and heads as the limit allows", 4, |m| {
        for key in ["num_hidden_layers", "num_attention_heads", "hidden_size"] {
            set(m, key, json!((1 << 24) - 1));
        }
    }),
    ("a module named with control characters", 4, |m| {
        embedder(
            m,
            json!([{"type": "x.Transformer", "path": ""}, {"type": "x.Den\nse", "path": "2"}]),
            json!({}),
        );
    }),
];

/// Only a run or an evaluation reads these.
const RUNS: &[Run] = &[
    ("tokenizer.json that is not JSON", 4, |m| write(m, "tokenizer.json", "{"), RUN),
    ("tokenizer.json of nothing", 4, |m| write(m, "tokenizer.json", "{}"), RUN),
    (
        "tokenizer.json whose template names no token",
        4,
        |m| {
            let template = json!({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "[X]", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}}], "pair": [{"Sequence": {"id": "A", "type_id": 0}}],
            "special_tokens": {}});
            let model = json!({"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"});
            let json = json!({"version": "1.0", "model": model, "post_processor": template, "added_tokens": [],
            "truncation": null, "padding": null, "normalizer": null, "pre_tokenizer": null, "decoder": null});
            write(m, "tokenizer.json", json.to_string());
        },
        RUN,
    ),
    ("tokenizer_config.json that is not JSON", 4, |m| write(m, "tokenizer_config.json", "{"), RUN),
    (
        "tokenizer_config.json with another type",
        4,
        |m| {
            write(m, "tokenizer_config.json", json!({"model_max_length": "a\nb"}).to_string());
        },
        RUN,
    ),
    ("vocab.txt that is empty", 4, |m| write(m, "vocab.txt", ""), RUN),
    ("vocab.txt that is not UTF-8", 4, |m| write(m, "vocab.txt", b"\xff\xfe"), RUN),
    ("vocab.txt without [SEP]", 4, |m| write(m, "vocab.txt", "[PAD]\n[UNK]\n[CLS]\n"), RUN),
    (
        "vocab.txt larger than the model's vocabulary",
        4,
        |m| {
            let more: Vec<String> = (0..50).map(|i| format!("w{i}")).collect();
            let words = [&more.join("\n"), "[PAD]\n[UNK]\n[CLS]\n[SEP]\n"].join("\n");
            write(m, "vocab.txt", words);
        },
        RUN,
    ),
    ("no tokenizer, but texts", 4, |m| remove(m, "vocab.txt"), EVAL),
    (
        "a model without room for one word",
        4,
        |m| {
            tiny(m, |t| {
                t.config["max_position_embeddings"] = json!(2);
                t.remove("position_embeddings.weight");
                t.tensor("bert.embeddings.position_embeddings.weight", &[2, HIDDEN]);
            });
        },
        RUN,
    ),
    (
        "a padding id behind the position table",
        4,
        |m| roberta(m, |c| c["pad_token_id"] = json!(32)),
        PLAIN,
    ),
    ("data of nothing", 4, |m| data(m, "data.tsv", ""), EVAL),
    ("data of a header alone", 4, |m| data(m, "data.tsv", "sentence\tlabel\n"), EVAL),
    ("data that is not UTF-8", 4, |m| data(m, "data.tsv", b"sentence\tlabel\na\xff\t1\n"), EVAL),
    ("data with a ragged row", 4, |m| data(m, "data.tsv", "sentence\tlabel\na\t1\nb\n"), EVAL),
    ("data without known columns", 4, |m| data(m, "data.tsv", "x\ty\tz\na\tb\tc\n"), EVAL),
    ("data with an empty label", 4, |m| data(m, "data.tsv", "sentence\tlabel\na\t1\nb\t\n"), EVAL),
    (
        "data with unknown labels",
        4,
        |m| data(m, "data.tsv", "sentence\tlabel\na\tgood\nb\tbad\n"),
        EVAL,
    ),
    (
        "data with a class too many",
        4,
        |m| data(m, "data.tsv", "sentence\tlabel\na\t0\nb\t2\n"),
        EVAL,
    ),
    ("data that is not there", 6, |m| remove(m, "../data.tsv"), EVAL),
    ("data of an unknown kind", 4, |_| {}, &["eval", "model", "--data", "model/config.json"]),
    (
        "data without labels",
        4,
        |m| data(m, "data.txt", "a good film\n"),
        &["eval", "model", "--data", "data.txt"],
    ),
    (
        "data that is a folder",
        6,
        |m| fs::create_dir(m.join("../x.txt")).unwrap(),
        &["eval", "model", "--data", "x.txt"],
    ),
    (
        "a table with an open quote",
        4,
        |m| data(m, "x.csv", "sentence,label\n\"a,1\n"),
        &["eval", "model", "--data", "x.csv"],
    ),
    (
        "lines that are not JSON",
        4,
        |m| data(m, "x.jsonl", "{\"text\": \"a\", \"label\": 1}\n{\n"),
        &["eval", "model", "--data", "x.jsonl"],
    ),
    (
        "lines without a text",
        4,
        |m| {
            data(m, "x.jsonl", "{\"text\": \"a\", \"label\": 1}\n{\"text\": 1, \"label\": 1}\n");
        },
        &["eval", "model", "--data", "x.jsonl"],
    ),
    (
        "a column that is not there",
        4,
        |_| {},
        &["eval", "model", "--data", "data.tsv", "--text-column", "body"],
    ),
    (
        "calibration text that is not there",
        6,
        |_| {},
        &["--passes", "prune", "--calib", "x.txt", "model", "-o", "out"],
    ),
    ("a recipe without version", 3, |m| data(m, "r.toml", "[[step]]\npass = \"prune\"\n"), RECIPE),
    ("a recipe of a newer version", 3, |m| data(m, "r.toml", "version = 2\n"), RECIPE),
    (
        "a recipe with an unknown key",
        3,
        |m| data(m, "r.toml", "version = 1\nname = \"x\"\n"),
        RECIPE,
    ),
    (
        "a recipe with an unknown pass",
        3,
        |m| data(m, "r.toml", "version = 1\n[[step]]\npass = \"pruen\"\n"),
        RECIPE,
    ),
    (
        "a recipe with an unknown option",
        3,
        |m| data(m, "r.toml", "version = 1\n[[step]]\npass = \"prune\"\nsparse = 1\n"),
        RECIPE,
    ),
    (
        "a recipe whose steps are numbers",
        3,
        |m| data(m, "r.toml", "version = 1\nstep = [1]\n"),
        RECIPE,
    ),
    ("no recipe", 6, |_| {}, RECIPE),
    ("tokenizer.json as a named pipe", 4, |m| pipe(m, "tokenizer.json"), RUN),
    ("a padding id of 2^32 - 1", 4, |m| roberta(m, |c| c["pad_token_id"] = json!(u32::MAX)), PLAIN),
    ("a padding id of 2^32", 4, |m| roberta(m, |c| c["pad_token_id"] = json!(1u64 << 32)), PLAIN),
    (
        "a table with labels of control characters",
        4,
        |m| {
            data(m, "x.csv", "sentence,label\na,\"x\n\u{1b}[31my\"\nb,c\n");
        },
        &["eval", "model", "--data", "x.csv"],
    ),
    (
        "a recipe that is not TOML",
        3,
        |m| data(m, "r.toml", "version = 1\nversion = 2\n[[["),
        RECIPE,
    ),
    ("a recipe that is not UTF-8", 3, |m| data(m, "r.toml", b"\xff"), RECIPE),
    (
        "a recipe with a pass of control characters",
        3,
        |m| data(m, "r.toml", "version = 1\n[[step]]\npass = \"a\\nb\\u001b\"\n"),
        RECIPE,
    ),
];

const RUN: &[&str] = &["--passes", "prune", "model", "-o", "out"];
/// Without texts.
const PLAIN: &[&str] = &["--passes", "prune", "--calib", "none", "model", "-o", "out"];
const EVAL: &[&str] = &["eval", "model", "--data", "data.tsv"];
const RECIPE: &[&str] = &["--recipe", "r.toml", "model", "-o", "out"];

#[test]
fn broken_checkpoints_are_refused_in_one_paragraph() {
    insta::assert_snapshot!("checkpoints", messages(CHECKPOINTS.iter().map(refused_by_both)));
}

#[test]
fn broken_side_files_data_and_recipes_are_refused_in_one_paragraph() {
    insta::assert_snapshot!("runs", messages(RUNS.iter().map(refused)));
}

type Refusal = (&'static str, i32, Result<String, String>);

fn refused_by_both(&(name, code, damage): &Case) -> Refusal {
    let dir = Dir::with_tiny();
    damage(&dir.path("model"));
    let inspected = dir.refusal(code, &["inspect", "model"]);
    let refusal = inspected.and_then(|said| match dir.refusal(code, RUN)? {
        run if run == said => Ok(said),
        run => Err(format!("inspect says {said}, but a run {run}")),
    });
    (name, code, refusal)
}

fn refused(&(name, code, damage, args): &Run) -> Refusal {
    let dir = Dir::with_tiny();
    damage(&dir.path("model"));
    (name, code, dir.refusal(code, args))
}

/// Every message, for people to read; fails with all cases that are not refused as they should be.
fn messages(cases: impl Iterator<Item = Refusal>) -> String {
    let (mut text, mut broken) = (String::new(), String::new());
    for (name, code, refusal) in cases {
        match refusal {
            Ok(message) => text += &format!("{name} ({code})\n    {message}\n"),
            Err(why) => broken += &format!("{name}: {why}\n"),
        }
    }
    assert!(broken.is_empty(), "{broken}");
    text
}

/// What the cases damage is healthy before, so that each is refused for its own reason.
#[test]
fn what_the_cases_start_from_is_read() {
    let healthy: &[fn(&Path)] = &[
        |_| {},
        |m| header(m, |_| {}),
        |m| tiny(m, |_| {}),
        |m| sharded(m, |i| i, None),
        |m| entry(m, |_| {}),
        |m| packed(m, |_| {}),
        |m| embedded(m, |_| {}),
        |m| factored(m, |_| {}),
        |m| roberta(m, |_| {}),
        |m| embedder(m, modules("1_Pooling"), json!({"pooling_mode_mean_tokens": true})),
    ];
    for (i, make) in healthy.iter().enumerate() {
        let dir = Dir::with_tiny();
        make(&dir.path("model"));
        let before = tree(&dir.path("model"));
        dir.ok(&["inspect", "model"]);
        dir.ok(&["--passes", "", "model", "-o", "out"]);
        assert_eq!(tree(&dir.path("model")), before, "start {i}");
    }
}

fn write(m: &Path, name: &str, content: impl AsRef<[u8]>) {
    fs::write(m.join(name), content).unwrap();
}

/// Writes a file beside the model.
fn data(m: &Path, name: &str, content: impl AsRef<[u8]>) {
    write(m.parent().unwrap(), name, content);
}

fn remove(m: &Path, name: &str) {
    fs::remove_file(m.join(name)).unwrap();
}

/// A named pipe, whose reader would wait for ever.
fn pipe(m: &Path, name: &str) {
    let _ = fs::remove_file(m.join(name));
    assert!(std::process::Command::new("mkfifo").arg(m.join(name)).status().unwrap().success());
}

fn bytes(m: &Path, edit: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(m.join(WEIGHTS)).unwrap();
    edit(&mut bytes);
    write(m, WEIGHTS, bytes);
}

/// Replaces the weights by this header and so many bytes.
fn raw(m: &Path, header: &str, data: usize) {
    let len = (header.len() as u64).to_le_bytes();
    write(m, WEIGHTS, [&len, header.as_bytes(), &vec![0; data]].concat());
}

fn header(m: &Path, edit: impl FnOnce(&mut Value)) {
    bytes(m, |bytes| {
        let end = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let mut json = serde_json::from_slice(&bytes[8..end]).unwrap();
        edit(&mut json);
        let json = json.to_string();
        *bytes = [&(json.len() as u64).to_le_bytes(), json.as_bytes(), &bytes[end..]].concat();
    });
}

fn tiny(m: &Path, edit: impl FnOnce(&mut Tiny)) {
    let mut tiny = Tiny::classifier();
    edit(&mut tiny);
    tiny.save(m);
}

fn packed(m: &Path, edit: impl FnOnce(&mut Tiny)) {
    let mut tiny = Tiny::packed();
    edit(&mut tiny);
    tiny.save(m);
}

fn embedded(m: &Path, edit: impl FnOnce(&mut Tiny)) {
    let mut tiny = Tiny::embedded();
    edit(&mut tiny);
    tiny.save(m);
}

fn factored(m: &Path, edit: impl FnOnce(&mut Tiny)) {
    let mut tiny = Tiny::factored();
    edit(&mut tiny);
    tiny.save(m);
}

/// Other ids of the two exact rows.
fn exact(m: &Path, ids: &[u32]) {
    embedded(m, |t| {
        let name = t.find("exact_ids").name.clone();
        *t.find("exact_ids") = Tensor::from_u32(name, &[2], ids);
    });
}

/// A tensor in F16 of another shape.
fn numbers(t: &mut Tiny, name: &str, shape: &[usize]) {
    let tensor = t.find(name);
    let values = vec![0.5; shape.iter().product()];
    *tensor = Tensor::from_f32(tensor.name.clone(), shape, &values, Dtype::F16);
}

/// The sign words with another shape.
fn words(t: &mut Tiny, shape: &[usize]) {
    let words = t.find("weight_packed");
    *words = Tensor::from_i32(words.name.clone(), shape, &vec![0; shape.iter().product()]);
}

fn poison(t: &mut Tiny, dtype: Dtype, value: f32) {
    let tensor = t.find("layer.1.output.dense.weight");
    let mut values = tensor.to_f32().unwrap().into_owned();
    values[17] = value;
    *tensor = Tensor::from_f32(tensor.name.clone(), &tensor.shape, &values, dtype);
}

/// Two shards, with this index or this text for it.
fn sharded(m: &Path, edit: impl FnOnce(Value) -> Value, text: Option<&str>) {
    remove(m, WEIGHTS);
    Tiny::classifier().save_sharded(m);
    let index = serde_json::from_slice(&fs::read(m.join(INDEX)).unwrap()).unwrap();
    write(m, INDEX, text.map_or_else(|| edit(index).to_string(), str::to_string));
}

/// Two shards, and an index that puts one tensor into `file`.
fn point(m: &Path, file: &str) {
    sharded(
        m,
        |mut index| {
            index["weight_map"]["classifier.bias"] = json!(file);
            index
        },
        None,
    );
}

fn config(m: &Path, edit: impl FnOnce(&mut Value)) {
    let mut json = serde_json::from_slice(&fs::read(m.join("config.json")).unwrap()).unwrap();
    edit(&mut json);
    write(m, "config.json", json.to_string());
}

fn set(m: &Path, key: &str, value: Value) {
    config(m, |c| c[key] = value);
}

fn without(m: &Path, key: &str) {
    config(m, |c| drop(c.as_object_mut().unwrap().remove(key)));
}

fn entry(m: &Path, edit: impl FnOnce(&mut Value)) {
    let mut entry = Tiny::classifier().compress_entry();
    edit(&mut entry);
    set(m, "compress", entry);
}

fn modules(pooling: &str) -> Value {
    json!([{"type": "x.Transformer", "path": ""}, {"type": "x.Pooling", "path": pooling}])
}

/// A sentence-transformers folder.
fn embedder(m: &Path, modules: Value, pooling: Value) {
    tiny(m, |t| {
        t.config["architectures"] = json!(["BertModel"]);
        t.tensors.retain(|t| !t.name.starts_with("classifier"));
    });
    write(m, "modules.json", modules.to_string());
    fs::create_dir(m.join("1_Pooling")).unwrap();
    write(m, "1_Pooling/config.json", pooling.to_string());
}

fn roberta(m: &Path, edit: impl FnOnce(&mut Value)) {
    let mut tiny = Tiny::roberta();
    edit(&mut tiny.config);
    tiny.save(m);
}
