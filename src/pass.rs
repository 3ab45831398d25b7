//! What a pass is, and how a recipe finds one.

use crate::Result;
use crate::data::Calibration;
use crate::model::Model;
use crate::report::Change;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// One transformation of a model. Its options are its fields.
pub trait Pass: std::fmt::Debug {
    /// Rewrites `model` in place and says what changed, one entry a matrix touched.
    ///
    /// # Errors
    /// On an error `model` is half-rewritten; the pipeline drops it and writes nothing.
    fn run(&self, model: &mut Model, cx: &Context) -> Result<Vec<Change>>;

    /// Refuses options outside their range, before anything is read.
    ///
    /// # Errors
    /// [`crate::Error::Option`].
    fn check(&self) -> Result<()>;
}

/// What a pass may use besides the model.
pub struct Context<'a> {
    /// Text to watch the model on; `None`: weights are all there is.
    pub calibration: Option<&'a Calibration>,
    /// All randomness of the run derives from this.
    pub seed: u64,
    pub progress: &'a dyn Progress,
}

/// Where long work says how far it is, and learns that it should stop.
pub trait Progress: Sync {
    /// Starts a piece of work of `total` steps.
    fn start(&self, what: &str, total: usize);

    /// One step is done.
    ///
    /// # Errors
    /// [`crate::Error::Interrupted`], when somebody asked to stop.
    fn step(&self) -> Result<()>;
}

/// Says nothing and never stops.
#[derive(Debug)]
pub struct Quiet;

impl Progress for Quiet {
    fn start(&self, _: &str, _: usize) {}

    fn step(&self) -> Result<()> {
        Ok(())
    }
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
