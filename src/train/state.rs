//! Where a run stood, on disk, so that it can go on as if nothing had happened.

use super::fit::History;
use super::objective::Objective;
use super::optimizer::Adam;
use super::trainer::Trainer;
use crate::checkpoint::{Checkpoint, Dtype, Tensor, write_file};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The file of one training run.
#[derive(Debug, Clone)]
pub struct StateFile {
    pub path: PathBuf,
    /// What the outcome depends on: a file with another key belongs to another run.
    pub key: String,
    /// Time between two savings.
    pub every: Duration,
}

/// What the file says besides tensors.
#[derive(Debug, Serialize, Deserialize)]
struct Head {
    key: String,
    updates: u32,
    history: History,
}

/// The best values so far, by parameter; empty when none were judged.
pub type Best = Vec<Vec<f32>>;

impl StateFile {
    /// The file of a further loop of the same run, beside this one: `name` is appended to this one's.
    pub fn part(&self, name: &str) -> StateFile {
        let stem = self.path.file_stem().unwrap_or_default().to_string_lossy();
        let path = self.path.with_file_name(format!("{stem}-{name}.safetensors"));
        StateFile { path, ..self.clone() }
    }

    /// Replaces the file.
    ///
    /// # Errors
    /// [`Error::Write`].
    pub fn save(
        &self,
        trainer: &mut Trainer,
        objective: &mut dyn Objective,
        history: &History,
        best: &Best,
    ) -> Result<()> {
        let head =
            Head { key: self.key.clone(), updates: trainer.updates, history: history.clone() };
        let json = serde_json::to_vec(&head).expect("plain data");
        let mut tensors = vec![Tensor::from_u8("state", &[json.len()], &json)];
        let mut add = |name: String, values: &[f32]| {
            tensors.push(Tensor::from_f32(name, &[values.len()], values, Dtype::F32));
        };
        for parameter in trainer.parameters() {
            add(format!("{}.value", parameter.name), parameter.values);
            add(format!("{}.mean", parameter.name), &parameter.state.mean);
            add(format!("{}.square", parameter.name), &parameter.state.square);
        }
        for (i, (_, values)) in objective.parameters().into_iter().enumerate() {
            add(format!("own.{i}.value"), values);
        }
        for (i, state) in trainer.own_states().iter().enumerate() {
            add(format!("own.{i}.mean"), &state.mean);
            add(format!("own.{i}.square"), &state.square);
        }
        for (i, values) in best.iter().enumerate() {
            add(format!("best.{i}"), values);
        }
        write_file(&self.path, &tensors, &|| false)
    }

    /// Goes back to where the file says that the run stood; `None` when there is no file.
    ///
    /// # Errors
    /// [`Error::Usage`] when the file belongs to another run; [`Error::Malformed`] when it is damaged.
    pub fn load(
        &self,
        trainer: &mut Trainer,
        objective: &mut dyn Objective,
    ) -> Result<Option<(History, Best)>> {
        if !self.path.is_file() {
            return Ok(None);
        }
        let checkpoint = Checkpoint::open(&self.path).map_err(|e| match e {
            Error::Malformed { path, found, expected, .. } => {
                Error::Malformed { path, found, expected, advice: ANEW }
            }
            e => e,
        })?;
        let head: Head = match checkpoint.get("state").map(|t| serde_json::from_slice(t.bytes())) {
            Some(Ok(head)) => head,
            _ => return Err(damaged(&self.path, "no readable `state`")),
        };
        if head.key != self.key {
            return Err(Error::Usage {
                found: format!("{} belongs to another run", self.path.display()),
                advice:
                    "give the arguments and the files of that run, or remove the folder to start \
                         anew"
                        .into(),
            });
        }
        let read = |name: &str| -> Result<Vec<f32>> {
            match checkpoint.get(name) {
                Some(tensor) => Ok(tensor.to_f32()?.into_owned()),
                None => Err(damaged(&self.path, &format!("no tensor `{name}`"))),
            }
        };
        let replace = |name: &str, values: &mut Vec<f32>| -> Result<()> {
            let stored = read(name)?;
            if stored.len() != values.len() {
                let found = format!("`{name}` of {} values", stored.len());
                return Err(damaged(&self.path, &found));
            }
            *values = stored;
            Ok(())
        };
        for parameter in trainer.parameters() {
            let (name, values) = (parameter.name, parameter.values);
            replace(&format!("{name}.value"), values)?;
            parameter.state.mean.resize(values.len(), 0.0);
            replace(&format!("{name}.mean"), &mut parameter.state.mean)?;
            parameter.state.square.resize(values.len(), 0.0);
            replace(&format!("{name}.square"), &mut parameter.state.square)?;
        }
        for (i, (_, values)) in objective.parameters().into_iter().enumerate() {
            replace(&format!("own.{i}.value"), values)?;
        }
        trainer.own_states().clear();
        for i in (0..).take_while(|i| checkpoint.get(&format!("own.{i}.mean")).is_some()) {
            let mean = read(&format!("own.{i}.mean"))?;
            let square = read(&format!("own.{i}.square"))?;
            trainer.own_states().push(Adam { mean, square });
        }
        let best = (0..).take_while(|i| checkpoint.get(&format!("best.{i}")).is_some());
        let best = best.map(|i| read(&format!("best.{i}"))).collect::<Result<Best>>()?;
        let lengths = trainer.parameters().into_iter().map(|p| p.values.len());
        let fits = match head.history.best {
            None => best.is_empty(),
            Some(_) => lengths.eq(best.iter().map(Vec::len)),
        };
        if !fits {
            return Err(damaged(&self.path, "best values that fit no parameters"));
        }
        trainer.updates = head.updates;
        trainer.refresh();
        Ok(Some((head.history, best)))
    }
}

const ANEW: &str = "remove it to start anew";

fn damaged(path: &Path, found: &str) -> Error {
    Error::Malformed {
        path: path.to_owned(),
        found: found.into(),
        expected: "the state of a training run".into(),
        advice: ANEW,
    }
}
