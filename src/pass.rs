//! What a pass is, and how a recipe finds one.

pub use crate::progress::{Progress, Quiet};

use crate::Result;
use crate::checkpoint::{Spill, Tensor};
use crate::data::tokenizer::Tokenizer;
use crate::data::{Calibration, Dataset, Vocabulary, Words};
use crate::emit::Target;
use crate::model::{Layer, Model, Outline};
use crate::report::{Change, Training};
use crate::train::state::StateFile;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// One transformation of a model. Its options are its fields.
pub trait Pass: std::fmt::Debug {
    /// Rewrites `model` in place and says what it did.
    ///
    /// # Errors
    /// On an error `model` is half-rewritten; the pipeline drops it and writes nothing.
    fn run(&self, model: &mut Model, cx: &Context) -> Result<Work>;

    /// Rewrites `outline` as [`Pass::run`] would the model, as far as that is known from shapes and options.
    ///
    /// # Errors
    /// What [`Pass::run`] refuses before it does any work.
    fn outline(&self, outline: &mut Outline, cx: &PlanContext) -> Result<Foresight>;

    /// Refuses options outside their range, before anything is read.
    ///
    /// # Errors
    /// [`crate::Error::Option`].
    fn check(&self) -> Result<()>;

    /// An option that has no say beside another, and that one. A recipe that was written out names all
    /// options; who types this one means something by it, and is told.
    fn ignores(&self) -> Option<(&'static str, &'static str)> {
        None
    }

    /// Files that it reads besides: what its outcome depends on.
    fn reads(&self) -> Vec<PathBuf> {
        Vec::new()
    }

    /// Whether it looks at the tokenizer.
    fn needs_tokenizer(&self) -> bool {
        false
    }

    /// Whether it trains weights that passes before it left, when there is text to train on (`data`) or not.
    fn trains(&self, _data: bool) -> bool {
        false
    }

    /// What it does that takes layers without [`crate::model::Family::feature`], as a sentence about it goes on; `None`: it
    /// runs on every family.
    fn needs_plain_layers(&self) -> Option<&'static str> {
        None
    }

    /// What of its outcome `target` may not carry, as far as options tell; `None` where it does. With text to train on
    /// (`data`) or without.
    fn refuses(&self, _target: Target, _data: bool) -> Option<&'static str> {
        None
    }

    /// Whether it wants to know how often each word is used.
    fn counts_words(&self) -> bool {
        false
    }

    /// Whether it looks at nothing but the tables of words and positions, the model as it was read, texts and the seed, and
    /// rewrites these tables alone: behind passes that leave them as they were it comes to the same.
    fn tables_alone(&self) -> bool {
        false
    }
}

/// What a pass did.
#[derive(Debug, Default)]
pub struct Work {
    /// One entry a matrix touched.
    pub changes: Vec<Change>,
    /// One entry a loop, in their order; empty where nothing was trained.
    pub training: Vec<Training>,
    /// What the report says besides, a sentence each.
    pub notes: Vec<String>,
    /// Numbers for the report, by name.
    pub figures: BTreeMap<&'static str, f64>,
    /// Safetensors files for the output, by name.
    pub files: Vec<(&'static str, Vec<Tensor>)>,
    /// The vocabulary that the model has now, where it lost words. Passes that follow see all texts in its tokens,
    /// and a teacher that has lost the same rows.
    pub vocabulary: Option<Vocabulary>,
}

impl From<Vec<Change>> for Work {
    fn from(changes: Vec<Change>) -> Work {
        Work { changes, ..Work::default() }
    }
}

/// What a pass may use besides the model.
pub struct Context<'a> {
    /// The model as it was read, with the words of the vocabulary that there is now.
    pub teacher: &'a Model,
    /// The tokenizer beside the model, for passes that need it; `None` where there is none.
    pub tokenizer: Option<&'a Tokenizer>,
    /// Files beside the weights that an output gets too, each with its name there.
    pub side_files: &'a [(PathBuf, String)],
    /// Text to watch the model on; `None`: weights are all there is.
    pub calibration: Option<&'a Calibration>,
    /// Texts to train on; `None`: the calibration text is all there is.
    pub data: Option<&'a Dataset>,
    /// How often words are used, where a pass of the recipe asks for it.
    pub words: Option<&'a Words>,
    /// Where training keeps its state; `None`: nowhere.
    pub state: Option<&'a StateFile>,
    /// Where finished layers wait to be written; `None`: in memory.
    pub spill: Option<&'a Spill>,
    /// All randomness of the run derives from this.
    pub seed: u64,
    pub progress: &'a dyn Progress,
}

impl<'a> Context<'a> {
    /// Nothing but the model.
    pub fn new(teacher: &'a Model) -> Context<'a> {
        Context {
            teacher,
            tokenizer: None,
            side_files: &[],
            calibration: None,
            data: None,
            words: None,
            state: None,
            spill: None,
            seed: 0,
            progress: &Quiet,
        }
    }

    /// Says that this pass is done with `layer`: of a model that is larger than memory, no more than one layer is kept
    /// there at a time.
    ///
    /// # Errors
    /// [`crate::Error::Write`].
    pub fn finished(&self, layer: &mut Layer) -> Result<()> {
        self.spill.map_or(Ok(()), |spill| layer.spill(spill))
    }
}

/// What is known of a run before it begins.
pub struct PlanContext<'a> {
    /// The model as it was read, without data.
    pub teacher: &'a Model,
    /// The tokenizer beside the model, for passes that need it; `None` where there is none.
    pub tokenizer: Option<&'a Tokenizer>,
    /// Files beside the weights that an output gets too, each with its name there.
    pub side_files: &'a [(PathBuf, String)],
    /// The text to watch the model on; `None`: weights are all there is.
    pub text: Option<Text>,
    /// Texts in it at most, and their tokens, roughly.
    pub texts: usize,
    pub tokens: usize,
    /// Whether there are texts to train on.
    pub data: bool,
}

impl PlanContext<'_> {
    /// Weights of the layers' matrices, as they were read.
    pub fn weights(&self) -> f64 {
        let layers = self.teacher.layers.iter().flat_map(|layer| layer.linears());
        layers.map(|(_, linear)| linear.weight.params()).sum::<usize>() as f64
    }

    /// Seconds in which one thread runs so many tokens through the layers, as they were read.
    pub fn forward(&self, tokens: f64) -> f64 {
        tokens * self.weights() / MACS_PER_SECOND
    }

    /// Seconds in which one thread trains on so many batches, with a teacher's answers beside.
    pub fn training(&self, steps: usize, batch: usize) -> f64 {
        // Forward, and twice as much backward; the teacher's forward.
        self.forward(4.0 * (steps * batch * TOKENS_OF_A_TEXT) as f64)
    }

    /// As [`PlanContext::forward`], of the text to watch the model on; 0 without one.
    pub fn watch(&self) -> f64 {
        self.text.map_or(0.0, |_| self.forward(self.tokens as f64))
    }
}

/// Multiply-accumulates in f32 of one thread with AVX-512 (docs/plan.md).
const MACS_PER_SECOND: f64 = 4e10;

/// Tokens of a text that nobody has read: a sentence.
pub const TOKENS_OF_A_TEXT: usize = 24;

/// What a pass says of itself before it runs.
#[derive(Debug, Clone, Default)]
pub struct Foresight {
    /// What shapes and options do not tell, a sentence each, without a full stop.
    pub notes: Vec<String>,
    /// Seconds that it takes one thread, to one digit at best (docs/plan.md).
    pub seconds: f64,
    /// Numbers of 4 bytes that it keeps at once for each weight of the layers.
    pub copies: f64,
}

impl Foresight {
    /// With one more sentence.
    pub fn noting(mut self, note: impl Into<String>) -> Foresight {
        self.notes.push(note.into());
        self
    }
}

/// What a text is, before it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Text {
    Random,
    Builtin,
    /// A file, of which it is not known what stands in it.
    Given,
}

/// How a recipe finds a pass.
pub struct Entry {
    /// The folder under `passes/`, and the name in recipes and reports.
    pub name: &'static str,
    /// One line for `compress passes`, without a full stop.
    pub summary: &'static str,
    pub readme: &'static str,
    /// Passes that cannot run after this one.
    pub forbids: &'static [&'static str],
    pub parse: fn(toml::Table) -> Result<Box<dyn Pass>, toml::de::Error>,
    /// Every option with its default.
    pub defaults: fn() -> toml::Table,
}

impl Entry {
    pub const fn new<P: Pass + Serialize + DeserializeOwned + Default + 'static>(
        name: &'static str,
        summary: &'static str,
        readme: &'static str,
        forbids: &'static [&'static str],
    ) -> Entry {
        Entry {
            name,
            summary,
            readme,
            forbids,
            parse: |options| Ok(Box::new(options.try_into::<P>()?)),
            defaults: || {
                toml::Table::try_from(P::default())
                    .expect("options of a pass are plain TOML values")
            },
        }
    }
}
