//! What finished passes made, on disk, so that a run that was stopped goes on behind them.
//!
//! An entry is a folder `N-PASS-KEY` with a checkpoint (model.safetensors, config.json), further tensors and a
//! `pass.json`. Its key is a hash of all that the outcome depends on: this very program, input, texts, seed, and the steps
//! up to this one with their options. Processors are not part of it: another kind may round differently.

use super::apply::{Applied, Cut, recut};
use super::{Options, pretty, to_json};
use crate::checkpoint::{Checkpoint, OutputFolder, Tensor, metadata, read_json, sha256};
use crate::data::Vocabulary;
use crate::model::Model;
use crate::pass::Work;
use crate::recipe::Step;
use crate::report::PassNote;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A folder of finished passes.
#[derive(Debug, Clone)]
pub struct Cache {
    pub folder: PathBuf,
    /// What every pass of the run depends on: the input, texts, arguments, and the program.
    pub key: String,
    /// What the examples are that the output is judged by: a cut vocabulary says what it does to them.
    pub judged_by: String,
}

/// An entry's own description.
#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    note: PassNote,
    seconds: f64,
    /// config.json as the model holds it in memory, and what passes change of its numbers.
    raw: Value,
    hidden: usize,
    embedding: usize,
    vocab: usize,
    pad_id: u32,
    /// Names of further safetensors files of the run, each stored as `tensors-N.safetensors`.
    tensors: Vec<String>,
    vocabulary: Option<Words>,
    /// SHA-256 by file.
    files: Vec<(String, String)>,
}

/// A vocabulary that has been cut by now.
#[derive(Debug, Serialize, Deserialize)]
struct Words {
    kept: Vec<u32>,
    unknown: Option<u32>,
    tokenizer: Value,
    /// Each with the name of the file that holds its content, `None` where it is left out.
    files: Vec<(String, Option<String>)>,
}

const ENTRY: &str = "pass.json";

impl Cache {
    /// Where the outcome of the last of `steps` is kept.
    ///
    /// # Errors
    /// [`Error::Read`] for files that passes read.
    pub fn entry(&self, steps: &[Step]) -> Result<PathBuf> {
        let mut hash = Sha256::new();
        hash.update(&self.key);
        for step in steps {
            hash.update(json!([step.name, step.options]).to_string());
            for file in step.pass.reads().into_iter().filter(|file| file.is_file()) {
                hash.update(sha256(&file)?);
            }
        }
        if steps.iter().any(|s| s.pass.needs_tokenizer()) {
            hash.update(&self.judged_by);
        }
        let key: String = hash.finalize().iter().take(8).map(|b| format!("{b:02x}")).collect();
        let last = steps.len() - 1;
        Ok(self.folder.join(format!("{last}-{}-{key}", steps[last].name)))
    }

    /// Whether `name` is one of an entry.
    pub fn is_entry(name: &str) -> bool {
        let mut parts = name.split('-');
        let number = parts.next().is_some_and(|n| n.parse::<usize>().is_ok());
        let key = parts.next_back().unwrap_or_default();
        number && key.len() == 16 && key.bytes().all(|b| b.is_ascii_hexdigit())
    }

    /// The outcome of as many of `steps` as are kept, and how many these are.
    ///
    /// - `teacher`: the model as it was read
    ///
    /// # Errors
    /// [`Error::Malformed`] for an entry that is damaged.
    pub(super) fn latest(
        &self,
        teacher: &Model,
        steps: &[Step],
        options: &Options,
    ) -> Result<(Applied, usize)> {
        let entries: Vec<PathBuf> =
            (1..=steps.len()).map(|n| self.entry(&steps[..n])).collect::<Result<_>>()?;
        let kept = entries.iter().take_while(|entry| entry.join(ENTRY).is_file());
        let mut applied = Applied::of(teacher);
        let mut done = 0;
        let mut last = None;
        for (step, path) in steps.iter().zip(kept) {
            let entry = read(path)?;
            restore(&mut applied, teacher, step, (path, &entry), options)?;
            (done, last) = (done + 1, Some((path, entry)));
        }
        // It holds the model; what is told of passes before it stands in theirs.
        if let Some((path, entry)) = last {
            applied.model = reopen(path, &entry, teacher)?;
        }
        Ok((applied, done))
    }

    /// Keeps what the last of `steps` left.
    ///
    /// # Errors
    /// [`Error::Write`], [`Error::Interrupted`].
    pub(super) fn keep(
        &self,
        applied: &Applied,
        new_tensors: usize,
        cut: bool,
        steps: &[Step],
        interrupted: &dyn Fn() -> bool,
    ) -> Result<()> {
        let mut folder = OutputFolder::replace(&self.entry(steps)?)?;
        let model = &applied.model;
        let mut files =
            folder.write_tensors(&model.tensors(), &metadata(), u64::MAX, interrupted)?;
        files.push(folder.add_file("config.json", &pretty(&model.config_json(&Value::Null)))?);
        let from = applied.tensors.len() - new_tensors;
        for (i, (_, tensors)) in applied.tensors[from..].iter().enumerate() {
            let name = format!("tensors-{i}.safetensors");
            files.push(folder.add_tensors(&name, tensors, &metadata(), interrupted)?);
        }
        let mut vocabulary = None;
        if let Some(Cut { vocabulary: words, .. }) = applied.cut.as_deref().filter(|_| cut) {
            let mut names = Vec::new();
            for (i, (name, content)) in words.files.iter().enumerate() {
                let stored = match content {
                    Some(bytes) => {
                        let stored = format!("vocabulary-{i}");
                        files.push(folder.add_file(&stored, bytes)?);
                        Some(stored)
                    }
                    None => None,
                };
                names.push((name.clone(), stored));
            }
            let (kept, unknown) = (words.kept.clone(), words.unknown);
            vocabulary =
                Some(Words { kept, unknown, tokenizer: words.tokenizer.to_json()?, files: names });
        }
        let config = &model.config;
        let entry = Entry {
            note: applied.passes.last().cloned().expect("a pass has run"),
            seconds: applied.times.last().map_or(0.0, |(_, seconds)| *seconds),
            raw: config.raw.clone(),
            hidden: config.hidden,
            embedding: config.embedding,
            vocab: config.vocab,
            pad_id: config.pad_id,
            tensors: applied.tensors[from..].iter().map(|(name, _)| name.clone()).collect(),
            vocabulary,
            files: files.into_iter().map(|file| (file.name, file.sha256)).collect(),
        };
        folder.add_file(ENTRY, &pretty(&to_json(&entry)))?;
        folder.commit(interrupted).map(|_| ())
    }
}

/// Adds what `entry` tells of its pass; the model is left to the last one.
fn restore(
    applied: &mut Applied,
    teacher: &Model,
    step: &Step,
    (path, entry): (&Path, &Entry),
    options: &Options,
) -> Result<()> {
    for (i, name) in entry.tensors.iter().enumerate() {
        let file = Checkpoint::open(&path.join(format!("tensors-{i}.safetensors")))?;
        let tensors: Vec<Tensor> = file.iter().cloned().collect();
        applied.tensors.push((name.clone(), tensors));
    }
    if let Some(words) = &entry.vocabulary {
        let before = options.tokenizer.ok_or_else(|| damaged(path, "a vocabulary of no model"))?;
        let content = |stored: &String| {
            let path = path.join(stored);
            fs::read(&path).map_err(|source| Error::Read { path, source })
        };
        let files = words
            .files
            .iter()
            .map(|(name, stored)| Ok((name.clone(), stored.as_ref().map(content).transpose()?)));
        let vocabulary = Vocabulary {
            kept: words.kept.clone(),
            tokenizer: before.with_json(&words.tokenizer)?,
            files: files.collect::<Result<_>>()?,
            unknown: words.unknown,
        };
        // What that does to the texts was noted when the pass ran.
        let cut = recut(teacher, vocabulary, &mut Work::default(), options)?;
        applied.cut = Some(Arc::new(cut));
    }
    applied.passes.push(entry.note.clone());
    applied.times.push((step.name, entry.seconds));
    Ok(())
}

/// An entry whose files are what they were.
fn read(path: &Path) -> Result<Entry> {
    let entry: Entry = serde_json::from_value(read_json(&path.join(ENTRY))?)
        .map_err(|e| damaged(path, &format!("a {ENTRY} that does not parse ({e})")))?;
    for (name, hash) in &entry.files {
        if sha256(&path.join(name))? != *hash {
            return Err(damaged(path, &format!("{name} with other bytes than were written")));
        }
    }
    Ok(entry)
}

fn reopen(path: &Path, entry: &Entry, teacher: &Model) -> Result<Model> {
    let mut model = Model::reopen(path, teacher)?;
    let config = &mut model.config;
    config.clone_from(&teacher.config);
    config.raw.clone_from(&entry.raw);
    (config.hidden, config.embedding) = (entry.hidden, entry.embedding);
    (config.vocab, config.pad_id) = (entry.vocab, entry.pad_id);
    model.validate()?;
    Ok(model)
}

fn damaged(path: &Path, found: &str) -> Error {
    Error::Malformed {
        path: path.to_owned(),
        found: found.into(),
        expected: "what a finished pass left".into(),
        advice: "remove it to run the pass again",
    }
}
