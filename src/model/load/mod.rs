//! Named tensors to a [`Model`].

mod layers;

use self::layers::{distances, layer};
use super::config::{Config, Task};
use super::family::{Family, Pooling, Project};
use super::latent;
use super::save::Structure;
use super::*;
use crate::checkpoint::{Checkpoint, Dtype, read_json};
use std::path::Path;

impl Model {
    /// Reads the folder or `.safetensors` file at `path`, with the config.json beside the weights.
    ///
    /// # Errors
    /// What [`Checkpoint::open`] and [`Config::parse`] refuse; tensors that are missing, that belong
    /// to nothing, whose shape disagrees with config.json, or that hold NaN or infinity.
    pub fn open(path: &Path) -> Result<Model> {
        Model::read(Checkpoint::open(path)?)
    }

    /// As [`Model::open`], from headers and config.json alone: forms and shapes, and none of the numbers.
    ///
    /// # Errors
    /// As [`Model::open`], but for what only the numbers show.
    pub fn outline(path: &Path) -> Result<Model> {
        Model::read(Checkpoint::open(path)?.blanked())
    }

    fn read(mut checkpoint: Checkpoint) -> Result<Model> {
        let folder = checkpoint.transformer_dir.clone();
        let (mut config, family) = Config::parse(read_json(&folder.join("config.json"))?)?;
        let mut embedding = None;
        let modules = checkpoint.root.join("modules.json");
        if modules.is_file() {
            // Many folders name what their encoder was pre-trained as; sentence-transformers reads the encoder alone.
            if !matches!(config.task, Task::Bare | Task::MaskedLm) {
                return Err(Error::Unsupported {
                    what: "sentence-transformers architecture",
                    found: config.task.name().into(),
                    known: format!("{0}Model, {0}ForMaskedLM", family.class),
                });
            }
            config.task = Task::Embedding;
            embedding = Some(pooling(&checkpoint.root, &modules)?);
        }
        Model::from_parts(&mut checkpoint, config, family, embedding)
    }

    /// Reads what was made of `of` and written as its tensors and [`Model::config_json`], in a folder without anything
    /// else.
    ///
    /// # Errors
    /// As [`Model::open`].
    pub fn reopen(path: &Path, of: &Model) -> Result<Model> {
        let mut checkpoint = Checkpoint::open(path)?;
        let (mut config, family) = Config::parse(read_json(&path.join("config.json"))?)?;
        config.task = of.config.task;
        let embedding = matches!(config.task, Task::Embedding).then(|| of.head.clone());
        Model::from_parts(&mut checkpoint, config, family, embedding)
    }

    fn from_parts(
        checkpoint: &mut Checkpoint,
        mut config: Config,
        family: &'static Family,
        embedding: Option<Head>,
    ) -> Result<Model> {
        let structure = Structure::read(&config)?;
        if let (Some(feature), Some(_)) = (family.feature, &structure.tokens) {
            return Err(Error::Config {
                key: "compress.tokens".into(),
                found: "a schedule".into(),
                expected: format!("null: `{}` has {feature}", family.model_type),
                advice: "use the config.json that was written with these weights",
            });
        }
        let prefixed = checkpoint.names().any(|n| n.starts_with(family.prefix));
        let prefix = if prefixed { family.prefix } else { "" };
        let latent = latent::found(checkpoint, family, prefix);
        if latent {
            latent::settle(&mut config, family)?;
        }
        let mut reader = Reader {
            checkpoint,
            structure: &structure,
            config: &config,
            family,
            prefix,
            latent,
            idle: Vec::new(),
        };
        let embeddings = embeddings(&mut reader, family)?;
        let layers = (0..config.layers)
            .map(|i| layer(&mut reader, family, i))
            .collect::<Result<Vec<_>>>()?;
        let relative_bias = match family.relative_bias {
            Some(name) => {
                let name = format!("{}{name}.weight", reader.prefix);
                Some(reader.tensor(&name, &[32, config.heads], family.keys.heads)?)
            }
            None => None,
        };
        let distances = distances(&mut reader, family)?;
        let final_norm = match family.final_norm {
            Some(name) => {
                let name = format!("{}{name}", reader.prefix);
                Some(reader.norm(&name, config.hidden, family.keys.hidden)?)
            }
            None => None,
        };
        let head = match embedding {
            Some(head) => head,
            None => head(&mut reader, family)?,
        };
        let unused = reader.unused(family)?;
        let tokens = structure.tokens.clone();
        let model = Model {
            embeddings,
            layers,
            relative_bias,
            distances,
            final_norm,
            head,
            tokens,
            unused,
            config,
            family,
        };
        for tensor in model.tensors() {
            tensor.check_finite()?;
            // What is needed is read again; a large table is needed by a few rows.
            tensor.release();
        }
        model.validate()?;
        Ok(model)
    }
}

/// Takes tensors out of a checkpoint, checking each against the shape that config.json states.
struct Reader<'a> {
    checkpoint: &'a mut Checkpoint,
    structure: &'a Structure,
    config: &'a Config,
    family: &'static Family,
    /// `bert.`, or nothing in a checkpoint of the encoder alone.
    prefix: &'static str,
    /// Whether dense matrices are latent weights, to be read as their signs.
    latent: bool,
    /// Starts of names of what BiPFT's checkpoints hold and its code does not use.
    idle: Vec<String>,
}

impl Reader<'_> {
    fn tensor(&mut self, name: &str, shape: &[usize], key: &str) -> Result<Tensor> {
        let Some(tensor) = self.checkpoint.take(name) else {
            let expected = format!("the `{}` encoder of config.json", self.model_type());
            return Err(Error::MissingTensor { name: name.into(), expected });
        };
        if tensor.shape != shape {
            return Err(Error::Shape {
                name: name.into(),
                found: tensor.shape,
                expected: shape.to_vec(),
                key: format!("`{key}`"),
            });
        }
        match tensor.dtype {
            Dtype::F32 | Dtype::F16 | Dtype::BF16 => Ok(tensor),
            other => Err(Error::Dtype {
                name: name.into(),
                found: other.to_string(),
                expected: "F32, F16 or BF16",
            }),
        }
    }

    fn weight(&mut self, name: &str, shape: [usize; 2], key: &str) -> Result<Weight> {
        let group = self.structure.packed(name).group;
        match Weight::take_packed(self.checkpoint, name, shape, group)? {
            Some(packed) => Ok(packed),
            None => Ok(Weight::Dense(self.tensor(&format!("{name}.weight"), &shape, key)?)),
        }
    }

    /// Takes the matrix `name` apart, of `rows` rows for each of `parts`, with its bias: as if they were stored one by
    /// one, as they are once they are packed.
    fn split(&mut self, name: &str, parts: &[&str], rows: usize, cols: usize) -> Result<()> {
        for end in ["weight", "bias"] {
            let name = format!("{name}.{end}");
            if self.checkpoint.get(&name).is_none() {
                continue;
            }
            let shape = [parts.len() * rows, cols];
            let shape = if end == "weight" { &shape[..] } else { &shape[..1] };
            let whole = self.tensor(&name, shape, self.family.keys.hidden)?;
            for (i, part) in parts.iter().enumerate() {
                let part = format!("{part}.{end}");
                self.checkpoint.put(whole.rows(part, i * rows..(i + 1) * rows));
            }
        }
        Ok(())
    }

    fn linear(&mut self, name: &str, shape: [usize; 2], key: &str) -> Result<Linear> {
        self.linear_with(name, shape, key, true)
    }

    fn linear_with(
        &mut self,
        name: &str,
        shape: [usize; 2],
        key: &str,
        bias: bool,
    ) -> Result<Linear> {
        let mut weight = self.weight(name, shape, key)?;
        let bias = match bias {
            true => Some(self.tensor(&format!("{name}.bias"), &shape[..1], key)?),
            false => None,
        };
        let activations = self.structure.packed(name).activations;
        let elastic = self.elastic(name, shape[1], key)?;
        if let (Weight::Dense(tensor), Some(_)) = (&weight, &elastic) {
            let shape = (shape[0], shape[1]);
            weight = Weight::Binary(latent::matrix(tensor, name, shape, Binary::centred)?);
        }
        Ok(Linear { weight, bias, activations, elastic })
    }

    /// The word table: of latent weights, its signs.
    fn words(&mut self, name: &str, shape: [usize; 2], key: &str) -> Result<Weight> {
        let said = self.structure.packed(name);
        let table = Weight::take_table(self.checkpoint, name, shape, said.errors, said.digits)?;
        if let Some(table) = table {
            return Ok(table);
        }
        match self.weight(name, shape, key)? {
            Weight::Dense(tensor) if self.latent => {
                let shape = (shape[0], shape[1]);
                Ok(Weight::Binary(latent::matrix(&tensor, name, shape, Binary::centred_rows)?))
            }
            other => Ok(other),
        }
    }

    /// What makes signs of the inputs of `name`, where there is something that does.
    fn elastic(&mut self, name: &str, width: usize, key: &str) -> Result<Option<Box<Elastic>>> {
        let shift = format!("{name}.move.bias");
        if self.checkpoint.get(&shift).is_none() {
            return Ok(None);
        }
        self.idle.push(format!("{name}.sa."));
        Ok(Some(Box::new(Elastic {
            shift: self.tensor(&shift, &[width], key)?,
            scale: self.number(&format!("{name}.input_clip_val"))?,
        })))
    }

    /// One number, as a tensor without dimensions or of one.
    fn number(&mut self, name: &str) -> Result<Tensor> {
        let flat = self.checkpoint.get(name).is_some_and(|t| t.shape == [1]);
        self.tensor(name, if flat { &[1] } else { &[] }, "nothing: it is one number")
    }

    /// Signs of queries, keys, values and probabilities, of a layer whose inputs are signs.
    fn binary_attention(&mut self, query: &str, hidden: usize) -> Result<BinaryAttention> {
        let prefix = BinaryAttention::prefix(query);
        let at = |name: &str| format!("{prefix}{name}");
        let [query, key, value, probabilities] = BinaryAttention::SCALES.map(at);
        let mut binary = BinaryAttention {
            query: self.number(&query)?,
            key: self.number(&key)?,
            value: self.number(&value)?,
            probabilities: self.number(&probabilities)?,
            estimators: None,
        };
        let [q_p, k_p, q_m, k_m, v_p] = Estimators::NAMES.map(at);
        if let Some(first) = self.checkpoint.get(&format!("{q_p}.weight")) {
            let rank = first.shape.first().map_or(1, |&rank| rank.max(1));
            let mut linear = |name: &str, rows| self.linear(name, [rows, hidden], "lora_rank");
            binary.estimators = Some(Estimators {
                q_p: linear(&q_p, rank)?,
                k_p: linear(&k_p, rank)?,
                q_m: linear(&q_m, rank)?,
                k_m: linear(&k_m, rank)?,
                v_p: linear(&v_p, 1)?,
            });
        }
        Ok(binary)
    }

    /// BiPFT's LayerNorm behind the pooler `dense`.
    fn pooler_norm(&mut self, dense: &str, width: usize) -> Result<Option<Norm>> {
        let name = format!("{}LayerNorm", BinaryAttention::prefix(dense));
        match self.checkpoint.get(&format!("{name}.weight")) {
            Some(_) => Ok(Some(self.norm(&name, width, "hidden_size")?)),
            None => Ok(None),
        }
    }

    /// Older checkpoints call the two parts `gamma` and `beta`.
    fn norm(&mut self, name: &str, width: usize, key: &str) -> Result<Norm> {
        let biased = self.config.features.biases.norm;
        let kind = self.family.norms;
        let mut part = |new: &str, old: &str| {
            let legacy = format!("{name}.{old}");
            let found = self.checkpoint.get(&legacy).is_some();
            let name = if found { legacy } else { format!("{name}.{new}") };
            self.tensor(&name, &[width], key)
        };
        let weight = part("weight", "gamma")?;
        let bias = if biased { Some(part("bias", "beta")?) } else { None };
        Ok(Norm { weight, bias, kind })
    }

    fn model_type(&self) -> String {
        self.config.raw["model_type"].as_str().unwrap_or_default().to_string()
    }

    /// What is left must be something that Transformers would ignore too.
    fn unused(&mut self, family: &Family) -> Result<Vec<Tensor>> {
        let mut known = vec![format!("{}embeddings.position_ids", self.prefix)];
        known.extend(
            [
                "cls.",
                "lm_head.",
                "pooler.",
                "discriminator_predictions.",
                "predictions.",
                "sop_classifier.",
            ]
            .map(String::from),
        );
        known.push(format!("{}pooler.", self.prefix));
        if family.distances.is_some() {
            known.extend(["lm_predictions.", "mask_predictions."].map(String::from));
            known.push(format!("{}embeddings.position_embeddings.", self.prefix));
        }
        known.push(format!("{}task_type_embeddings.", self.prefix));
        known.append(&mut self.idle);
        for name in [family.masked_lm.dense, family.masked_lm.norm, family.masked_lm.decoder] {
            known.push(format!("{name}."));
        }
        let names: Vec<String> = self.checkpoint.names().map(str::to_string).collect();
        names
            .into_iter()
            .map(|name| match self.checkpoint.take(&name) {
                Some(tensor) if known.iter().any(|k| name.starts_with(k)) => Ok(tensor),
                _ => Err(Error::ExtraTensor {
                    name,
                    expected: format!(
                        "a `{}` encoder of {} layers with a head for {}",
                        self.model_type(),
                        self.config.layers,
                        self.config.task.name()
                    ),
                }),
            })
            .collect()
    }
}

fn embeddings(reader: &mut Reader, family: &Family) -> Result<Embeddings> {
    let config = reader.config;
    let prefix = reader.prefix;
    let narrow = config.embedding;
    // Of the other tables, and of what the norm sees.
    let width = match family.project {
        Some(Project::Words(_)) => config.hidden,
        _ => narrow,
    };
    let width_key = if family.project.is_some() { "embedding_size" } else { family.keys.hidden };
    let mut table = |name: &str, rows: usize, key: &str| {
        reader.tensor(&format!("{prefix}{name}.weight"), &[rows, width], key)
    };
    let position = match family.position {
        Some(name) if config.features.positions => {
            Some(table(name, config.max_positions, "max_position_embeddings")?)
        }
        _ => None,
    };
    let token_type = match family.token_type {
        Some(name) if config.token_types > 0 => {
            Some(table(name, config.token_types, "type_vocab_size")?)
        }
        _ => None,
    };
    let task_type = match family.task_type {
        Some(name) if config.task_types > 0 => {
            Some(table(name, config.task_types, "task_type_vocab_size")?)
        }
        _ => None,
    };
    let word = format!("{prefix}{}", family.word);
    if let (Some(Project::Words(name)), false) = (family.project, config.projected) {
        // It is stored all the same.
        reader.idle.push(format!("{prefix}{name}."));
    }
    let project = match family.project {
        Some(project) if config.projected => {
            let name = format!("{prefix}{}", project.name());
            let words = config.features.bottleneck.map_or(1, |n| n.words);
            Some(reader.linear(&name, [config.hidden, words * narrow], "embedding_size")?)
        }
        _ => None,
    };
    Ok(Embeddings {
        word: reader.words(&word, [config.vocab, narrow], "vocab_size")?,
        norm: reader.norm(&format!("{prefix}{}", family.embedding_norm), width, width_key)?,
        position,
        token_type,
        task_type,
        project,
    })
}

fn head(reader: &mut Reader, family: &Family) -> Result<Head> {
    let config = reader.config;
    let (hidden, pooled, classes) = (config.hidden, config.pooled, config.classes());
    Ok(match config.task {
        Task::SequenceClassification => {
            let (dense, activation, out) = match family.classify {
                Pooling::Pooler => {
                    let pooler = family.pooler.unwrap_or("pooler.dense");
                    (format!("{}{pooler}", reader.prefix), Activation::Tanh, "classifier")
                }
                Pooling::Dense { dense, activation, out } => (dense.to_string(), activation, out),
                Pooling::Normed { dense, out, .. } => (dense.to_string(), Activation::Gelu, out),
            };
            let activation = config.features.head_activation.unwrap_or(activation);
            let name = dense;
            let bias = config.features.biases.head;
            let dense = reader.linear_with(&name, [pooled, hidden], family.keys.hidden, bias)?;
            let norm = match &dense.elastic {
                Some(_) => reader.pooler_norm(&name, pooled)?,
                None => None,
            };
            Head::SequenceClassification {
                dense,
                norm,
                activation,
                last: match family.classify {
                    Pooling::Normed { norm, .. } => {
                        Some(Box::new(reader.norm(norm, pooled, family.keys.hidden)?))
                    }
                    _ => None,
                },
                mean: config.features.pool == PoolMode::Mean,
                out: reader.linear(out, [classes, pooled], "id2label")?,
            }
        }
        Task::TokenClassification => Head::TokenClassification {
            out: reader.linear("classifier", [classes, hidden], "id2label")?,
        },
        Task::QuestionAnswering => Head::QuestionAnswering {
            out: reader.linear("qa_outputs", [2, hidden], family.keys.hidden)?,
        },
        Task::MaskedLm => {
            let names = &family.masked_lm;
            let bias = names.bias.iter().find(|n| reader.checkpoint.get(n).is_some());
            let (width, vocab) = (config.embedding, config.vocab);
            let decoder = format!("{}.weight", names.decoder);
            Head::MaskedLm {
                dense: reader.linear_with(
                    names.dense,
                    [width, hidden],
                    family.keys.hidden,
                    config.features.biases.head,
                )?,
                activation: match (config.features.head_activation, family.classify) {
                    (Some(activation), Pooling::Normed { .. }) => activation,
                    _ => names.activation.unwrap_or(config.activation),
                },
                norm: reader.norm(names.norm, width, family.keys.hidden)?,
                decoder: match config.tied {
                    true => None,
                    false => Some(reader.tensor(&decoder, &[vocab, width], "vocab_size")?),
                },
                bias: reader.tensor(bias.unwrap_or(&names.bias[0]), &[vocab], "vocab_size")?,
            }
        }
        Task::Bare => {
            let name = family.pooler.map(|name| format!("{}{name}", reader.prefix));
            let stored =
                |n: &str, part: &str| reader.checkpoint.get(&format!("{n}.{part}")).is_some();
            let parts = ["weight", "weight_packed", "dbf_u", "weight_int8"];
            let present = |n: &String| parts.iter().any(|part| stored(n, part));
            match name.filter(present) {
                Some(name) => {
                    let pooler = reader.linear(&name, [pooled, hidden], family.keys.hidden)?;
                    let norm = match &pooler.elastic {
                        Some(_) => reader.pooler_norm(&name, pooled)?,
                        None => None,
                    };
                    Head::Bare { pooler: Some(pooler), norm }
                }
                None => Head::Bare { pooler: None, norm: None },
            }
        }
        Task::Embedding => unreachable!("an embedding head comes from modules.json"),
    })
}

/// The pooling of a sentence-transformers folder.
fn pooling(root: &Path, modules: &Path) -> Result<Head> {
    let malformed = |found: String, expected: &str| Error::Malformed {
        path: modules.to_path_buf(),
        found,
        expected: expected.into(),
        advice: "save the model again with sentence-transformers",
    };
    let list = read_json(modules)?;
    let list = list.as_array().ok_or_else(|| malformed("no list".into(), "a list of modules"))?;
    let (mut pool, mut normalize) = (None, false);
    for module in list {
        let kind = module["type"].as_str().unwrap_or_default();
        match kind.rsplit('.').next().unwrap_or_default() {
            "Transformer" => {}
            "Normalize" => normalize = true,
            "Pooling" => {
                let path = module["path"].as_str().unwrap_or("1_Pooling");
                if path.is_empty() || path.contains(['/', '\\']) || path.starts_with('.') {
                    return Err(malformed(format!("path `{path}`"), "the name of a sub-folder"));
                }
                pool = Some(pool_mode(&root.join(path).join("config.json"))?);
            }
            _ => {
                return Err(Error::Unsupported {
                    what: "sentence-transformers module",
                    found: kind.into(),
                    known: "Transformer, Pooling, Normalize".into(),
                });
            }
        }
    }
    let pool = pool.ok_or_else(|| malformed("no Pooling module".into(), "one Pooling module"))?;
    Ok(Head::Embedding { pool, normalize })
}

fn pool_mode(path: &Path) -> Result<PoolMode> {
    let json = read_json(path)?;
    let on: Vec<&str> = match json["pooling_mode"].as_str() {
        Some(mode) => vec![mode],
        None => json
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(key, value)| {
                key.starts_with("pooling_mode_") && value.as_bool() == Some(true)
            })
            .map(|(key, _)| key.trim_start_matches("pooling_mode_"))
            .collect(),
    };
    match on[..] {
        ["cls_token" | "cls"] => Ok(PoolMode::Cls),
        ["mean_tokens" | "mean"] => Ok(PoolMode::Mean),
        ["max_tokens" | "max"] => Ok(PoolMode::Max),
        _ => Err(Error::Unsupported {
            what: "pooling",
            found: on.join(" + "),
            known: "cls_token, mean_tokens, max_tokens, one of them".into(),
        }),
    }
}
