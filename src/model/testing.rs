//! Tiny random models of every family and every head, for the tests of all layers above.
//!
//! Tensors are made under the family's names, written to a temporary folder and opened from there:
//! what tests run on has been through the loader.

use super::*;
use crate::checkpoint::{Dtype, write_file};
use crate::data::Calibration;
use crate::runtime::{Batch, Encoder, NoObserver};
use crate::train::moments::Moments;
use family::{Pooling, Project};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use serde_json::{Value, json};
use slice::Masks;
use std::path::Path;

pub const LAYERS: usize = 3;
pub const HIDDEN: usize = 16;
pub const HEADS: usize = 4;
pub const FFN: usize = 24;
pub const VOCAB: usize = 30;
/// Of MobileBERT's layers.
const NARROW: usize = 8;
const POSITIONS: usize = 20;
const CLASSES: usize = 3;

pub const TASKS: [Task; 6] = [
    Task::SequenceClassification,
    Task::TokenClassification,
    Task::QuestionAnswering,
    Task::MaskedLm,
    Task::Embedding,
    Task::Bare,
];

/// Every family that is trained with every head.
pub fn every() -> impl Iterator<Item = (&'static str, Task)> {
    family::TRAINED.iter().flat_map(|f| TASKS.map(|task| (f.model_type, task)))
}

/// Every family with every head that it has.
pub fn each() -> impl Iterator<Item = (&'static str, Task)> {
    every().chain(others())
}

/// Families with features that only the forward pass knows.
pub fn others() -> impl Iterator<Item = (&'static str, Task)> {
    let others = family::ALL.iter().filter(|f| f.feature.is_some());
    others.flat_map(|f| f.tasks.iter().map(|task| (f.model_type, *task)))
}

/// A checkpoint before it is written.
pub struct Parts {
    pub config: Value,
    pub tensors: Vec<Tensor>,
    /// `Some`: a sentence-transformers folder, by the name of its pooling.
    pub pooling: Option<&'static str>,
}

/// An open model of random numbers: see [`parts`].
pub fn tiny(family: &str, task: Task, seed: u64) -> Model {
    parts(family, task, seed).open()
}

/// Weights with a spread of 0.3 (matrices and biases; norms around 1 and 0) and 1 (tables): attention is
/// neither flat nor one-hot, activations bend, and every tensor shows in the answer.
pub fn parts(family: &str, task: Task, seed: u64) -> Parts {
    parts_of(family, task, seed, HIDDEN)
}

/// As [`parts`], of another width.
pub fn parts_of(family: &str, task: Task, seed: u64, hidden: usize) -> Parts {
    let family = family::find(family).expect("a family of this build");
    let suffix = match task {
        Task::SequenceClassification => "ForSequenceClassification",
        Task::TokenClassification => "ForTokenClassification",
        Task::QuestionAnswering => "ForQuestionAnswering",
        Task::MaskedLm => "ForMaskedLM",
        Task::Embedding | Task::Bare => "Model",
    };
    let keys = &family.keys;
    let embedding = if family.project.is_some() { 8 } else { hidden };
    let config = json!({
        "model_type": family.model_type,
        "architectures": [format!("{}{suffix}", family.class)],
        keys.hidden: hidden, keys.layers: LAYERS, keys.heads: HEADS, keys.ffn: FFN,
        keys.activation: "gelu", "vocab_size": VOCAB, "max_position_embeddings": POSITIONS,
        "embedding_size": embedding, "pad_token_id": 1, "use_task_id": family.task_type.is_some(),
        "num_hidden_groups": 2,
        // ModernBERT: two of three layers see three tokens on each side.
        "local_attention": 6, "classifier_bias": true,
        // DeBERTa: distances beyond 2 in steps.
        "relative_attention": true, "position_buckets": 4, "pos_att_type": ["c2p", "p2c"],
        "norm_rel_ebd": "layer_norm", "share_att_key": false, "type_vocab_size": 2,
        // MobileBERT.
        "intra_bottleneck_size": NARROW, "num_feedforward_networks": 2,
        "id2label": {"0": "a", "1": "b", "2": "c"},
    });
    let encoder_alone = matches!(task, Task::Embedding | Task::Bare);
    let prefix = if encoder_alone { "" } else { family.prefix };
    let mut make = Maker::new(seed);

    let at = |name: &str| format!("{prefix}{name}");
    let word_width = embedding;
    // Of the other tables, and within layers.
    let words = matches!(family.project, Some(Project::Words(_)));
    let embedding = if words { hidden } else { embedding };
    let inner = if family.bottleneck.is_some() { NARROW } else { hidden };
    let table = |make: &mut Maker, name: &str, rows: usize, width: usize| {
        make.add(format!("{prefix}{name}.weight"), &[rows, width], 0.0, 1.0);
    };
    table(&mut make, family.word, VOCAB, word_width);
    if let Some(name) = family.position {
        table(&mut make, name, POSITIONS, embedding);
    }
    if let Some(name) = family.token_type {
        table(&mut make, name, 2, embedding);
    }
    if let Some(name) = family.task_type {
        table(&mut make, name, 3, embedding);
    }
    if let Some(name) = family.relative_bias {
        table(&mut make, name, 32, HEADS);
    }
    if let Some(names) = family.distances {
        table(&mut make, names.table, 8, hidden);
        make.norm(&at(names.norm), hidden);
    }
    if family.norms == NormKind::Scale {
        // What no norm divides grows from layer to layer.
        make.scale = 0.4;
    }
    make.norm_biases = !family.rotary;
    make.biases = !family.rotary;
    if let Some(name) = family.final_norm {
        make.norm(&at(name), hidden);
    }
    make.norm(&at(family.embedding_norm), embedding);
    if let Some(project) = family.project {
        make.linear(&at(project.name()), hidden, if words { 3 * word_width } else { embedding });
    }
    // ALBERT: two groups of one, the first for two steps.
    for layer in 0..if family.inner.is_some() { 2 } else { LAYERS } {
        let at = |name: &str| format!("{prefix}{}{name}", family.layer_prefix(layer, 1));
        match family.joined_attention {
            Some(name) => make.linear(&at(name), 3 * hidden, hidden),
            None => {
                make.linear(&at(family.query), inner, inner);
                make.linear(&at(family.key), inner, inner);
                make.linear(&at(family.value), inner, hidden);
            }
        }
        if let Some(name) = family.bottleneck {
            let ways = [format!("{name}input"), format!("{name}attention")];
            for (name, shape) in ways.map(|name| (name, [inner, hidden])).into_iter().chain([
                ("output.bottleneck".into(), [hidden, inner]),
                ("ffn.0.output".into(), [inner, FFN]),
            ]) {
                make.linear(&at(&format!("{name}.dense")), shape[0], shape[1]);
                make.norm(&at(&format!("{name}.LayerNorm")), shape[0]);
            }
            make.linear(&at("ffn.0.intermediate.dense"), FFN, inner);
        }
        if let Some(names) = family.distances {
            make.linear(&at(names.key), hidden, hidden);
            make.linear(&at(names.query), hidden, hidden);
        }
        make.linear(&at(family.attention_output), inner, inner);
        match family.joined_ffn {
            Some(name) => make.linear(&at(name), 2 * FFN, hidden),
            None => make.linear(&at(family.up), FFN, inner),
        }
        make.linear(&at(family.down), inner, FFN);
        if family.final_norm.is_none() || layer > 0 {
            make.norm(&at(family.attention_norm), inner);
        }
        make.norm(&at(family.ffn_norm), inner);
    }
    make.biases = true;
    match task {
        Task::SequenceClassification => {
            if let Pooling::Normed { norm, .. } = family.classify {
                make.norm(norm, hidden);
            }
            let (dense, out) = match family.classify {
                Pooling::Pooler => (at(family.pooler.unwrap_or_default()), "classifier"),
                Pooling::Dense { dense, out, .. } | Pooling::Normed { dense, out, .. } => {
                    (dense.to_string(), out)
                }
            };
            make.linear(&dense, hidden, hidden);
            make.linear(out, CLASSES, hidden);
        }
        Task::TokenClassification => make.linear("classifier", CLASSES, hidden),
        Task::QuestionAnswering => make.linear("qa_outputs", 2, hidden),
        Task::MaskedLm => {
            let names = &family.masked_lm;
            make.linear(names.dense, embedding, hidden);
            make.norm(names.norm, embedding);
            make.add(names.bias[0].to_string(), &[VOCAB], 0.0, 0.3);
        }
        Task::Bare => {
            family.pooler.into_iter().for_each(|name| make.linear(&at(name), hidden, hidden));
        }
        Task::Embedding => {}
    }
    let pooling = (task == Task::Embedding).then_some("mean_tokens");
    Parts { config, tensors: make.tensors, pooling }
}

/// As BiPFT's training code saves a model: latent weights in f32, and what makes signs of all that layers
/// multiply, with estimators of rank 2.
pub fn latent(family: &str, task: Task, seed: u64) -> Parts {
    let mut parts = parts(family, task, seed);
    let family = family::find(family).expect("a family of this build");
    let encoder_alone = matches!(task, Task::Embedding | Task::Bare);
    let prefix = if encoder_alone { "" } else { family.prefix };
    let mut make = Maker::new(seed + 1);
    let number = |make: &mut Maker, name: String, value: f32| {
        make.tensors.push(Tensor::from_f32(name, &[], &[value], Dtype::F32));
    };
    let signs = |make: &mut Maker, name: &str, width: usize, scale: f32| {
        make.add(format!("{name}.move.bias"), &[width], 0.0, 0.3);
        number(make, format!("{name}.input_clip_val"), scale);
        make.add(format!("{name}.sa.weight"), &[width], 0.25, 0.0);
    };
    for layer in 0..LAYERS {
        let at = |name: &str| format!("{prefix}{}{layer}.{name}", family.layer);
        for (i, name) in [family.query, family.key, family.value].into_iter().enumerate() {
            signs(&mut make, &at(name), HIDDEN, 0.9 + 0.1 * i as f32);
        }
        signs(&mut make, &at(family.attention_output), HIDDEN, 0.7);
        signs(&mut make, &at(family.up), HIDDEN, 1.2);
        signs(&mut make, &at(family.down), FFN, 0.6);
        let query = at(family.query);
        let prefix = BinaryAttention::prefix(&query);
        for (name, scale) in BinaryAttention::SCALES.into_iter().zip([0.6, 0.7, 0.8, 0.45]) {
            number(&mut make, format!("{prefix}{name}"), scale);
        }
        for name in Estimators::NAMES {
            make.linear(&format!("{prefix}{name}"), if name == "v_p" { 1 } else { 2 }, HIDDEN);
        }
    }
    if let (Task::SequenceClassification, Pooling::Pooler) = (task, family.classify) {
        let name = format!("{prefix}{}", family.pooler.unwrap_or_default());
        signs(&mut make, &name, HIDDEN, 1.1);
        make.norm(&format!("{}LayerNorm", BinaryAttention::prefix(&name)), HIDDEN);
    }
    parts.tensors.extend(make.tensors);
    parts
}

impl Parts {
    /// Loads it, from a folder that is gone afterwards (the mapping keeps the file).
    pub fn open(&self) -> Model {
        let dir = tempfile::tempdir().expect("a temporary folder");
        self.write(dir.path());
        Model::open(dir.path()).expect("a tiny checkpoint opens")
    }

    pub fn write(&self, dir: &Path) {
        let file = |name: &str, value: &Value| {
            std::fs::write(dir.join(name), value.to_string()).expect("a side file");
        };
        write_file(&dir.join("model.safetensors"), &self.tensors, &|| false).expect("the weights");
        file("config.json", &self.config);
        if let Some(mode) = self.pooling {
            let module = |kind, path| json!({"type": format!("sentence_transformers.models.{kind}"), "path": path});
            let modules = [
                module("Transformer", ""),
                module("Pooling", "1_Pooling"),
                module("Normalize", "2_Normalize"),
            ];
            file("modules.json", &json!(modules));
            std::fs::create_dir(dir.join("1_Pooling")).expect("a sub-folder");
            file("1_Pooling/config.json", &json!({"pooling_mode": mode}));
        }
    }

    /// Every tensor rounded to `dtype`.
    pub fn stored_as(mut self, dtype: Dtype) -> Parts {
        for t in &mut self.tensors {
            let values = t.to_f32().expect("floats").into_owned();
            *t = Tensor::from_f32(t.name.clone(), &t.shape, &values, dtype);
        }
        self
    }

    pub fn tensor(&mut self, name: &str) -> &mut Tensor {
        self.tensors.iter_mut().find(|t| t.name == name).expect("a tensor of this name")
    }
}

/// As the pipeline writes it, and opened again.
pub fn reopen(model: &Model) -> Model {
    let pooling = match model.head {
        Head::Embedding { pool: PoolMode::Cls, .. } => Some("cls"),
        Head::Embedding { pool: PoolMode::Mean, .. } => Some("mean"),
        Head::Embedding { pool: PoolMode::Max, .. } => Some("max"),
        _ => None,
    };
    Parts { config: model.config_json(&json!("tests")), tensors: model.tensors(), pooling }.open()
}

/// What the model says of a batch: the head's values, then the pooler's if there is one.
pub fn answers(model: &Model, batch: &Batch, masks: Option<&Masks>) -> Vec<f32> {
    let encoder = Encoder::new(model).expect("a model that runs");
    let output = encoder.forward(batch, masks, &mut NoObserver).expect("ids inside the tables");
    [output.values, output.pooled.unwrap_or_default()].concat()
}

/// Random texts of these lengths, with both token types.
pub fn batch(seed: u64, lengths: &[usize]) -> Batch {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut batch = Batch::default();
    for (row, &len) in lengths.iter().enumerate() {
        let ids: Vec<u32> = (0..len).map(|_| rng.next_u32() % VOCAB as u32).collect();
        let types: Vec<u32> = (0..len).map(|i| (i > len / 2) as u32).collect();
        batch.push(&ids, &types, row);
    }
    batch
}

/// `batches` batches of random texts without labels, numbered through.
pub fn calibration(seed: u64, batches: usize) -> Calibration {
    let lengths = [1, 3, 5, 9, 7, 4, 12, 2];
    let mut batches: Vec<Batch> =
        (0..batches).map(|i| batch(seed * 1000 + i as u64, &lengths)).collect();
    for (i, batch) in batches.iter_mut().enumerate() {
        batch.rows.iter_mut().for_each(|row| *row += i * lengths.len());
    }
    Calibration {
        masker: None,
        texts: batches.iter().map(Batch::texts).sum(),
        tokens: batches.iter().map(Batch::tokens).sum(),
        batches,
        held_out: Vec::new(),
        targets: None,
        source: "random tokens".into(),
    }
}

/// Name, shape and bytes of a tensor.
pub type Stored = (String, Vec<usize>, Vec<u8>);

/// Every tensor the model is stored as, by name.
pub fn stored(model: &Model) -> Vec<Stored> {
    let mut tensors: Vec<_> = model
        .tensors()
        .into_iter()
        .map(|t| (t.name.clone(), t.shape.clone(), t.bytes().to_vec()))
        .collect();
    tensors.sort();
    tensors
}

/// Largest difference, relative to the largest number expected.
pub fn distance(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let most = |x: f64, y: f64| if y.is_nan() { y } else { x.max(y) };
    let difference = found.iter().zip(expected).map(|(a, b)| (a - b).abs() as f64).fold(0.0, most);
    difference / expected.iter().map(|x| x.abs() as f64).fold(f64::MIN_POSITIVE, most)
}

/// Moments of `tokens` random inputs that depend on each other, `[tokens, width]`, with strong and weak
/// channels; and the inputs.
pub fn correlated(seed: u64, tokens: usize, width: usize) -> (Moments, Vec<f32>) {
    let mut normal = Normal::new(seed);
    let mut x = vec![0.0; tokens * width];
    for row in x.chunks_exact_mut(width) {
        let mut last = 0.0;
        for (c, x) in row.iter_mut().enumerate() {
            last = 0.8 * last + normal.draw() * (1.0 + (c % 5) as f32);
            *x = last;
        }
    }
    let mut moments = Moments::new(width, 0);
    moments.add(&x, &[]);
    (moments, x)
}

/// `n` standard normal numbers, the same for the same seed.
pub fn gaussian(n: usize, seed: u64) -> Vec<f32> {
    let mut normal = Normal::new(seed);
    (0..n).map(|_| normal.draw()).collect()
}

/// A table of `rows` x `cols` in slices of 3 columns from 4 codewords, with one book or one a slice, with a mean and three
/// exact rows.
pub fn subspace(rows: usize, cols: usize, books: usize, rotated: bool) -> Subspace {
    let slices = cols.div_ceil(3);
    let codes: Vec<u8> = (0..rows * slices).map(|i| (i * 5 % 7 % 4) as u8).collect();
    let mut values = gaussian(books * 12, 21);
    let tail = cols % 3;
    if books > 1 && tail > 0 {
        let last = values[(books - 1) * 12..].chunks_exact_mut(3);
        last.for_each(|word| word[tail..].fill(0.0));
    }
    let identity = |i: usize| if i.is_multiple_of(cols + 1) { 1.0 } else { 0.0 };
    let mut rotation: Vec<f32> = (0..cols * cols).map(identity).collect();
    // One plane after the other by another angle.
    for c in 1..cols {
        let (sin, cos) = (c as f32).sin_cos();
        for line in rotation.chunks_exact_mut(cols) {
            (line[c - 1], line[c]) =
                (cos * line[c - 1] - sin * line[c], sin * line[c - 1] + cos * line[c]);
        }
    }
    let exact = Exact::new(vec![0, 2, rows as u32 - 1], gaussian(3 * cols, 22));
    Subspace {
        name: "w".into(),
        rows,
        cols,
        slices,
        words: 4,
        width: 3,
        codes: Codes::Stored(Tensor::from_u8("w.pq_codes", &[rows, slices], &codes)),
        books: values,
        books_dtype: Dtype::F16,
        rotation: rotated.then(|| Rotation::new(cols, rotation)),
        mean: Some(gaussian(cols, 23)),
        exact,
        errors: None,
    }
    .rounded()
}

/// Standard normal numbers.
pub struct Normal(ChaCha8Rng);

impl Normal {
    pub fn new(seed: u64) -> Normal {
        Normal(ChaCha8Rng::seed_from_u64(seed))
    }

    pub fn draw(&mut self) -> f32 {
        let mut uniform = || (self.0.next_u32() as f64 + 0.5) / 4294967296.0;
        ((-2.0 * uniform().ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos()) as f32
    }
}

struct Maker {
    tensors: Vec<Tensor>,
    normal: Normal,
    /// Whether linear layers have biases, and norms.
    biases: bool,
    norm_biases: bool,
    /// Mean of the scales of norms.
    scale: f32,
}

impl Maker {
    fn new(seed: u64) -> Maker {
        let normal = Normal::new(seed);
        Maker { tensors: Vec::new(), normal, biases: true, norm_biases: true, scale: 1.0 }
    }

    fn add(&mut self, name: String, shape: &[usize], mean: f32, spread: f32) {
        let n = shape.iter().product();
        let values: Vec<f32> = (0..n).map(|_| mean + spread * self.normal.draw()).collect();
        self.tensors.push(Tensor::from_f32(name, shape, &values, Dtype::F32));
    }

    fn linear(&mut self, name: &str, rows: usize, cols: usize) {
        self.add(format!("{name}.weight"), &[rows, cols], 0.0, 0.3);
        if self.biases {
            self.add(format!("{name}.bias"), &[rows], 0.0, 0.3);
        }
    }

    fn norm(&mut self, name: &str, width: usize) {
        self.add(format!("{name}.weight"), &[width], self.scale, 0.3 * self.scale);
        if self.norm_biases {
            self.add(format!("{name}.bias"), &[width], 0.0, 0.3);
        }
    }
}
