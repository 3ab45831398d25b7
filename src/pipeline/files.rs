//! What lies in a checkpoint's folder besides its tensors.

use crate::checkpoint::{self, SIDE_FILES};
use crate::{Error, Result};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The folder of a checkpoint given as folder or file.
pub fn root(input: &Path) -> PathBuf {
    match input.is_dir() {
        true => input.to_path_buf(),
        false => input
            .parent()
            .filter(|p| !p.as_os_str().is_empty())
            .unwrap_or(Path::new("."))
            .to_path_buf(),
    }
}

/// The name of the input's folder; of a folder of the Hugging Face cache, the repository's.
pub(super) fn name(input: &Path) -> String {
    let folder = root(input);
    let folder = match folder.file_name() {
        Some(_) => folder,
        None => std::fs::canonicalize(&folder).unwrap_or(folder), // `.` and `..`
    };
    let repository = folder.ancestors().nth(2).and_then(|p| p.file_name()?.to_str());
    let snapshot = folder.parent().is_some_and(|p| p.ends_with("snapshots"));
    match repository.and_then(|r| r.strip_prefix("models--")).filter(|_| snapshot) {
        Some(repository) => repository.replace("--", "/"),
        None => folder.file_name().map_or("model".into(), |n| n.to_string_lossy().into_owned()),
    }
}

/// Bytes of the weight files of a checkpoint.
///
/// # Errors
/// As [`checkpoint::Checkpoint::open`].
pub fn weight_bytes(input: &Path) -> Result<u64> {
    let checkpoint = checkpoint::Checkpoint::open(input)?;
    let sizes = checkpoint.files.iter().map(|path| {
        let read = |source| Error::Read { path: path.clone(), source };
        Ok(std::fs::metadata(path).map_err(read)?.len())
    });
    sizes.sum()
}

/// Files beside the weights of `input` that an output gets too, each with its name there: those of [`SIDE_FILES`]. Weights in other
/// formats, code and what we write ourselves stay behind.
///
/// # Errors
/// As [`checkpoint::Checkpoint::open`].
pub fn side_files(root: &Path, input: &Path) -> Result<Vec<(PathBuf, String)>> {
    let transformer = checkpoint::Checkpoint::open(input)?.transformer_dir;
    let mut found = BTreeMap::new();
    for folder in [root, &transformer] {
        for name in SIDE_FILES {
            let path = folder.join(name);
            if path.is_file() {
                found.insert(name.to_string(), path);
            }
        }
        let read = |source| Error::Read { path: folder.to_path_buf(), source };
        for entry in std::fs::read_dir(folder).map_err(read)? {
            let path = entry.map_err(read)?.path();
            let name =
                path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            let papers =
                ["LICENSE", "LICENCE", "NOTICE"].iter().any(|p| name.to_uppercase().starts_with(p));
            if papers && path.is_file() {
                found.insert(name, path);
            }
        }
    }
    for (_, path) in modules(root)? {
        let config = root.join(&path).join("config.json");
        if !path.is_empty() && root.join(&path) != transformer && config.is_file() {
            found.insert(format!("{path}/config.json"), config);
        }
    }
    Ok(found.into_iter().map(|(name, path)| (path, name)).collect())
}

/// Type and folder of every module of a sentence-transformers model.
fn modules(root: &Path) -> Result<Vec<(String, String)>> {
    let path = root.join("modules.json");
    if !path.is_file() {
        return Ok(Vec::new());
    }
    let list = checkpoint::read_json(&path)?;
    let text = |v: &Value| v.as_str().unwrap_or_default().to_string();
    Ok(list
        .as_array()
        .into_iter()
        .flatten()
        .map(|m| (text(&m["type"]), text(&m["path"])))
        .collect())
}

/// modules.json of the output, where the transformer lies in the folder itself.
pub(super) fn flat_modules(root: &Path) -> Result<Value> {
    let mut list = checkpoint::read_json(&root.join("modules.json"))?;
    for module in list.as_array_mut().into_iter().flatten() {
        if module["type"].as_str().and_then(|t| t.rsplit('.').next()) == Some("Transformer") {
            module["path"] = json!("");
        }
    }
    Ok(list)
}

/// The licence that the input's model card states, in its front matter.
pub(super) fn license(root: &Path) -> Option<String> {
    let card = std::fs::read_to_string(root.join("README.md")).ok()?;
    let front = card.strip_prefix("---\n")?.split("\n---").next()?;
    let value = front.lines().find_map(|l| l.strip_prefix("license:"))?.trim();
    let plain = value.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c));
    (plain && !value.is_empty()).then(|| value.to_string())
}
