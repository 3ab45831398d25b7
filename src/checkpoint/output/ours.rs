//! Which files of a folder belong to a checkpoint: all that replacing it may delete.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use super::write_error;
use crate::checkpoint::read_json;
use crate::checkpoint::shards::INDEX;
use crate::error::Result;

/// What we write, and what checkpoints have besides weights, at any depth. Weights in other formats and training's own
/// files are left out: we write none, and they may be all there is of them.
const FILES: &[&str] = &[
    "config.json",
    INDEX,
    "modules.json",
    "README.md",
    "report.json",
    "report.md",
    "measured.json",
    "recipe.toml",
    // Of tokenizers; an output goes by tokenizer.json.
    "spm.model",
    // Of targets.
    "configuration_compress.py",
    "modeling_compress.py",
    "model.onnx",
    "model.onnx_data",
];

/// Files of tokenizers and of sentence-transformers that stand beside weights, by name.
pub const SIDE_FILES: &[&str] = &[
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "sentencepiece.bpe.model",
    "spiece.model",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
];

/// Sub-folders of targets.
const FOLDERS: &[&str] = &["hf", "onnx", "dense"];

/// Whether a folder with this file in it looks like a checkpoint.
pub fn is_mark(name: &OsStr) -> bool {
    name == "config.json" || name == "report.json" || is_weights(name)
}

/// The first file or folder in `target`, by name, that belongs to no checkpoint.
///
/// # Errors
/// [`crate::Error::Write`] for folders that cannot be looked into.
pub fn foreign(target: &Path) -> Result<Option<PathBuf>> {
    let found = foreign_in(target, &modules(target))?;
    Ok(found.map(|path| path.strip_prefix(target).unwrap_or(&path).to_owned()))
}

fn foreign_in(folder: &Path, modules: &[String]) -> Result<Option<PathBuf>> {
    let failed = |source| write_error(folder, source);
    let entries = fs::read_dir(folder).map_err(failed)?;
    let mut entries = entries.collect::<Result<Vec<_>, _>>().map_err(failed)?;
    entries.sort_by_key(|entry| entry.file_name());
    for entry in entries {
        // Of a link it is that of the link: what it leads to stays.
        let is_folder = entry.file_type().map_err(failed)?.is_dir();
        let name = entry.file_name();
        if !is_folder && is_file(&name) {
            continue;
        }
        if !is_folder || !is_part(&name, modules) {
            return Ok(Some(entry.path()));
        }
        if let Some(found) = foreign_in(&entry.path(), modules)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

fn is_file(name: &OsStr) -> bool {
    let text = name.to_string_lossy();
    let papers = ["LICENSE", "LICENCE", "NOTICE"];
    FILES.contains(&&*text)
        || SIDE_FILES.contains(&&*text)
        || is_weights(name)
        || papers.iter().any(|paper| text.to_uppercase().starts_with(paper))
}

fn is_weights(name: &OsStr) -> bool {
    Path::new(name).extension().is_some_and(|ext| ext == "safetensors")
}

/// Whether a folder of this name is that of a target or of a module.
fn is_part(name: &OsStr, modules: &[String]) -> bool {
    let text = name.to_string_lossy();
    // As sentence-transformers calls them: `1_Pooling`.
    let numbered = text.split_once('_').is_some_and(|(number, kind)| {
        let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
        digits(number) && kind.starts_with(|c: char| c.is_ascii_uppercase())
    });
    numbered || FOLDERS.contains(&&*text) || modules.iter().any(|module| *module == *text)
}

/// The folders on the paths that modules.json names, if there is one.
fn modules(target: &Path) -> Vec<String> {
    let list = read_json(&target.join("modules.json")).unwrap_or_default();
    let paths = list.as_array().into_iter().flatten().filter_map(|m| m["path"].as_str());
    paths.flat_map(|path| path.split('/')).filter(|p| !p.is_empty()).map(str::to_owned).collect()
}
