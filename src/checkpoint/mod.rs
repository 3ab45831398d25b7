//! Checkpoint folders to named tensors and back. Nothing here knows what a tensor is for.
//!
//! Reading maps files and believes nothing in them; writing goes to a hidden folder that is renamed
//! when it is complete. Mapped files must not be cut off by others while they are in use: the system
//! answers that with a signal (SIGBUS), not with an error.

mod header;
mod output;
mod shards;
mod spill;
mod tensor;
mod writer;

pub use output::{OutputFolder, SIDE_FILES, remove_stale};
pub use spill::Spill;
pub use tensor::{Dtype, Tensor};
pub use writer::{
    WrittenFile, check_writable, file_bytes, file_with, metadata, weight_files, write_bytes,
    write_file,
};

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Component, Path, PathBuf};

use crate::error::{Error, Result};
use sha2::{Digest, Sha256};

/// No side file of a checkpoint comes near: the longest `tokenizer.json` in use has about 35 MB.
const MAX_JSON_BYTES: u64 = 64 << 20;

/// The tensors of one checkpoint, and the files they are in.
#[derive(Debug)]
pub struct Checkpoint {
    /// The folder that was opened, or the one around the file that was opened.
    pub root: PathBuf,
    /// Where weights and `config.json` are: `root`, or the sub-folder that `modules.json` of a
    /// sentence-transformers checkpoint names.
    pub transformer_dir: PathBuf,
    /// The weight files, sorted.
    pub files: Vec<PathBuf>,
    /// `__metadata__` of the weight files; where shards disagree, the first one's.
    pub metadata: BTreeMap<String, String>,
    tensors: BTreeMap<String, Tensor>,
}

impl Checkpoint {
    /// Opens a Hugging Face folder or a single `.safetensors` file.
    ///
    /// In a folder, `model.safetensors` is preferred to `model.safetensors.index.json`, as
    /// Transformers does. Tensors are mapped: nothing but headers is read.
    ///
    /// # Errors
    /// [`Error::Read`] if something is not there or not readable, [`Error::Malformed`] if it is not
    /// what it should be.
    pub fn open(path: &Path) -> Result<Checkpoint> {
        let kind = fs::metadata(path).map_err(|source| read_error(path, source))?;
        let (root, transformer_dir, weights) = if kind.is_dir() {
            let dir = shards::transformer_dir(path)?;
            let weights = shards::open_folder(&dir)?;
            (path.to_owned(), dir, weights)
        } else {
            let dir = match path.parent() {
                Some(dir) if dir != Path::new("") => dir.to_owned(),
                _ => PathBuf::from("."),
            };
            (dir.clone(), dir, shards::open_file(path)?)
        };
        let shards::Weights { files, metadata, tensors } = weights;
        Ok(Checkpoint { root, transformer_dir, files, metadata, tensors })
    }

    /// The same with names, types and shapes alone, and none of the data.
    pub fn blanked(mut self) -> Checkpoint {
        self.tensors.values_mut().for_each(|tensor| *tensor = tensor.blanked());
        self
    }

    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(name)
    }

    /// Removes a tensor; what is left at the end is what nobody asked for.
    pub fn take(&mut self, name: &str) -> Option<Tensor> {
        self.tensors.remove(name)
    }

    /// Adds a tensor, in the place of one of its name.
    pub fn put(&mut self, tensor: Tensor) {
        self.tensors.insert(tensor.name.clone(), tensor);
    }

    /// Names in byte order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Tensors by name.
    pub fn iter(&self) -> impl Iterator<Item = &Tensor> {
        self.tensors.values()
    }

    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// Bytes of all tensors, headers not counted.
    pub fn total_bytes(&self) -> u64 {
        self.iter().map(|t| t.byte_len() as u64).sum()
    }
}

/// The SHA-256 of a file, in lower-case hexadecimal.
///
/// # Errors
/// [`Error::Read`].
pub fn sha256(path: &Path) -> Result<String> {
    let read = |source| read_error(path, source);
    let mut file = File::open(path).map_err(read)?;
    let (mut hasher, mut buffer) = (Sha256::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer).map_err(read)? {
            0 => break,
            n => hasher.update(&buffer[..n]),
        }
    }
    Ok(hasher.finalize().iter().map(|b| format!("{b:02x}")).collect())
}

/// Reads a JSON file of at most 64 MiB. Of equal keys the last one counts, as in Python.
///
/// # Errors
/// [`Error::Read`], or [`Error::Malformed`] with line and column.
pub fn read_json(path: &Path) -> Result<serde_json::Value> {
    parse_json(path, &read_json_bytes(path)?)
}

fn read_json_bytes(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open_regular(path)?
        .take(MAX_JSON_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(|source| read_error(path, source))?;
    if bytes.len() as u64 > MAX_JSON_BYTES {
        let found = format!("more than {} MiB of JSON", MAX_JSON_BYTES >> 20);
        return Err(malformed(path, found, "a few MiB", "check that this is the right file"));
    }
    Ok(bytes)
}

fn parse_json<T: serde::de::DeserializeOwned>(path: &Path, bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|e| {
        let found = header::shown(&e.to_string());
        malformed(path, found, "valid JSON", "correct the file, or fetch it again")
    })
}

/// Opens a file, following links, as a checkpoint in the Hugging Face cache is made of them. Others
/// than regular files are refused: opening a pipe would hang.
fn open_regular(path: &Path) -> Result<File> {
    let read = |source| read_error(path, source);
    if !fs::metadata(path).map_err(read)?.is_file() {
        let advice = "check the path";
        return Err(malformed(path, "a folder, pipe or device", "a regular file", advice));
    }
    File::open(path).map_err(read)
}

/// `name` as a path that stays inside of the folder it is joined to, on every system.
fn relative(name: &str) -> Option<&Path> {
    let path = Path::new(name);
    let plain = path.components().all(|part| matches!(part, Component::Normal(_)));
    let portable = !name.contains(['\\', ':']) && !name.chars().any(char::is_control);
    (plain && portable && !name.is_empty()).then_some(path)
}

fn read_error(path: &Path, source: std::io::Error) -> Error {
    Error::Read { path: path.to_owned(), source }
}

fn malformed(
    path: &Path,
    found: impl Into<String>,
    expected: impl Into<String>,
    advice: &'static str,
) -> Error {
    Error::Malformed {
        path: path.to_owned(),
        found: found.into(),
        expected: expected.into(),
        advice,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_errors_say_where() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        fs::write(&path, "{\n  \"a\": 1,\n}").unwrap();
        let message = read_json(&path).unwrap_err().to_string();
        assert!(
            message.contains("config.json: found trailing comma at line 3 column 1"),
            "{message}"
        );
        fs::write(&path, r#"{"b": 1, "a": [2]}"#).unwrap();
        assert_eq!(read_json(&path).unwrap()["a"][0], 2);
        fs::write(&path, "[".repeat(100_000)).unwrap();
        assert!(matches!(read_json(&path), Err(Error::Malformed { .. })));
        fs::write(&path, b"\"\xff\"").unwrap();
        assert!(matches!(read_json(&path), Err(Error::Malformed { .. })));
    }

    #[test]
    fn json_that_is_missing_huge_or_no_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        assert!(matches!(read_json(&path), Err(Error::Read { .. })));
        assert!(matches!(read_json(dir.path()), Err(Error::Malformed { .. })));
        File::create(&path).unwrap().set_len(MAX_JSON_BYTES + 1).unwrap();
        let message = read_json(&path).unwrap_err().to_string();
        assert!(message.contains("more than 64 MiB"), "{message}");
    }

    #[test]
    fn relative_names_stay_inside() {
        for name in ["a", "1_Pooling/config.json", "a/./b", "..a"] {
            assert!(relative(name).is_some(), "{name:?}");
        }
        for name in ["", "/a", "..", "../a", "a/../b", "./a", "a\\b", "C:a", "a\0"] {
            assert!(relative(name).is_none(), "{name:?}");
        }
    }
}
