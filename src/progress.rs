//! How far long work is.

use crate::Result;

/// Where long work says how far it is, and learns that it should stop.
pub trait Progress: Sync {
    /// Starts a piece of work of `total` steps.
    fn start(&self, what: &str, total: usize);

    /// One step is done.
    ///
    /// # Errors
    /// [`crate::Error::Interrupted`], when somebody asked to stop.
    fn step(&self) -> Result<()>;

    /// Nothing is done yet; may it go on?
    ///
    /// # Errors
    /// As [`Progress::step`].
    fn go_on(&self) -> Result<()> {
        Ok(())
    }

    /// How it goes, in a few words, for who is watching now.
    fn note(&self, _words: &str) {}

    /// A line worth keeping.
    fn log(&self, _line: &str) {}
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
