//! Finds the weight files of a checkpoint and maps their tensors.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::Mmap;
use serde::Deserialize;

use super::header::{self, Header, StringMap, shown};
use super::tensor::Tensor;
use super::{
    malformed, open_regular, parse_json, read_error, read_json, read_json_bytes, relative,
};
use crate::error::Result;

pub(super) const SINGLE: &str = "model.safetensors";
pub(super) const INDEX: &str = "model.safetensors.index.json";

const CONVERT: &str = "load it with Transformers and save it again with \
                       `save_pretrained(folder, safe_serialization=True)`";
const INCONSISTENT: &str = "fetch index and shards again, or save the checkpoint again";

/// What the weight files of a checkpoint hold together.
pub(super) struct Weights {
    pub files: Vec<PathBuf>,
    pub metadata: BTreeMap<String, String>,
    pub tensors: BTreeMap<String, Tensor>,
}

/// The folder with weights and `config.json`: `root`, unless `modules.json` of sentence-transformers
/// puts its Transformer module elsewhere (`0_Transformer`).
pub(super) fn transformer_dir(root: &Path) -> Result<PathBuf> {
    let path = root.join("modules.json");
    if !path.exists() {
        return Ok(root.to_owned());
    }
    let modules = read_json(&path)?;
    let expected = "a list of modules with `type` and `path`";
    let advice = "fetch the checkpoint again";
    let Some(modules) = modules.as_array() else {
        return Err(malformed(&path, "no list", expected, advice));
    };
    let is_transformer = |kind: &str| kind.rsplit('.').next() == Some("Transformer");
    let Some(module) = modules.iter().find(|m| m["type"].as_str().is_some_and(is_transformer))
    else {
        return Ok(root.to_owned());
    };
    match module["path"].as_str() {
        Some("" | ".") => Ok(root.to_owned()),
        Some(folder) if relative(folder).is_some() => Ok(root.join(folder)),
        _ => {
            let found = format!("the path {} of a module", shown(&module["path"].to_string()));
            Err(malformed(&path, found, "a folder inside the checkpoint", advice))
        }
    }
}

/// Opens the weights of a folder: one file, or the shards of an index.
pub(super) fn open_folder(dir: &Path) -> Result<Weights> {
    // A link to nowhere is there: opening it says what is wrong.
    let is_there = |path: &Path| fs::symlink_metadata(path).is_ok();
    let single = dir.join(SINGLE);
    if is_there(&single) {
        return open_file(&single);
    }
    let index = dir.join(INDEX);
    if is_there(&index) {
        return open_index(dir, &index);
    }
    let foreign = foreign_weights(dir)?;
    let (found, advice) = match foreign.as_slice() {
        [] => ("no weights".to_owned(), "check that the path is that of a complete checkpoint"),
        names => {
            let advice = if names.iter().any(|n| n.starts_with("adapter_model")) {
                "merge the adapter into its base model and save the result with `save_pretrained`"
            } else if names.iter().all(|n| n.ends_with(".onnx")) && is_target(dir) {
                "give the folder above: this one is for ONNX Runtime"
            } else if names.iter().any(|n| n.ends_with(".safetensors")) {
                "name the `.safetensors` file itself if it is what you mean"
            } else {
                CONVERT
            };
            (names.join(", "), advice)
        }
    };
    Err(malformed(dir, found, format!("`{SINGLE}` or `{INDEX}`"), advice))
}

/// Whether `dir` stands in a checkpoint, as what `--emit` writes does.
fn is_target(dir: &Path) -> bool {
    let above = fs::canonicalize(dir).ok().and_then(|dir| dir.parent().map(Path::to_owned));
    above.is_some_and(|above| above.join("config.json").exists())
}

/// Opens one `.safetensors` file.
pub(super) fn open_file(path: &Path) -> Result<Weights> {
    if path.extension().is_none_or(|ext| ext != "safetensors") {
        let name = path.file_name().unwrap_or_default().display();
        let found = format!("a file named `{name}`");
        let beside = path.parent().is_some_and(|dir| dir.join("config.json").exists());
        let advice = match path.extension() {
            Some(ext) if EXTENSIONS.iter().any(|known| ext == *known) => CONVERT,
            _ if beside => "give the folder that it is in",
            _ => "check the path",
        };
        return Err(malformed(path, found, "a folder or a `.safetensors` file", advice));
    }
    let (metadata, tensors) = map_file(path)?;
    let tensors = tensors.into_iter().map(|t| (t.name.clone(), t)).collect();
    Ok(Weights { files: vec![path.to_owned()], metadata, tensors })
}

/// `model.safetensors.index.json`; what else it holds (sizes) is of no use.
#[derive(Deserialize)]
struct Index {
    weight_map: StringMap,
}

/// Opens the shards that `index` names and checks that both agree on where each tensor is.
fn open_index(dir: &Path, index: &Path) -> Result<Weights> {
    let Index { weight_map: StringMap(weight_map) } = parse_json(index, &read_json_bytes(index)?)?;
    let mut shards: Vec<&str> = weight_map.values().map(String::as_str).collect();
    shards.sort_unstable();
    shards.dedup();
    if shards.is_empty() {
        let found = "an index of no tensors";
        return Err(malformed(index, found, "a shard for every tensor", INCONSISTENT));
    }
    if let Some(shard) = shards.iter().find(|s| s.contains('/') || relative(s).is_none()) {
        let found = format!("a shard named `{}`", shown(shard));
        let advice = "do not use this checkpoint: its index points outside of its folder";
        return Err(malformed(index, found, "the name of a file beside the index", advice));
    }

    let mut weights =
        Weights { files: vec![], metadata: BTreeMap::new(), tensors: BTreeMap::new() };
    for shard in shards {
        let path = dir.join(shard);
        let (metadata, tensors) = map_file(&path)?;
        for tensor in tensors {
            let name = &tensor.name;
            match weight_map.get(name) {
                Some(home) if home == shard => {
                    weights.tensors.insert(name.clone(), tensor);
                }
                Some(home) => {
                    let found = format!("tensor `{name}` in shard `{shard}`");
                    let expected = format!("it only in `{home}`, where the index puts it");
                    return Err(malformed(index, found, expected, INCONSISTENT));
                }
                None => {
                    let found = format!("no entry for tensor `{name}` of shard `{shard}`");
                    return Err(malformed(index, found, "one for every tensor", INCONSISTENT));
                }
            }
        }
        for (key, value) in metadata {
            weights.metadata.entry(key).or_insert(value);
        }
        weights.files.push(path);
    }
    if let Some((name, home)) = weight_map.iter().find(|(n, _)| !weights.tensors.contains_key(*n)) {
        let name = shown(name);
        let found = format!("tensor `{name}` in shard `{home}`");
        let expected = "a tensor that the shard holds";
        return Err(malformed(index, found, expected, INCONSISTENT));
    }
    Ok(weights)
}

type Mapped = (BTreeMap<String, String>, Vec<Tensor>);

fn map_file(path: &Path) -> Result<Mapped> {
    let file = open_regular(path)?;
    // SAFETY: the mapping is only read. If another process changes the file meanwhile, values change
    // under us as they would in any reader; if it cuts the file off, we die of SIGBUS. No file system
    // call prevents that, and copying checkpoints into memory is what mapping is there to avoid.
    let map = unsafe { Mmap::map(&file) }.map_err(|source| read_error(path, source))?;
    let map = Arc::new(map);
    let Header { metadata, tensors } = header::parse(path, &map)?;
    let tensors = tensors
        .into_iter()
        .map(|t| Tensor::mapped(t.name, t.dtype, t.shape, map.clone(), t.range))
        .collect();
    Ok((metadata, tensors))
}

/// How files of weights are named elsewhere.
const EXTENSIONS: [&str; 12] = [
    "bin",
    "pt",
    "pth",
    "ckpt",
    "h5",
    "msgpack",
    "ot",
    "gguf",
    "ggml",
    "onnx",
    "tflite",
    "safetensors",
];

/// Files in `dir` that look like weights, sorted, at most eight.
fn foreign_weights(dir: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for (folder, prefix) in [(dir.to_owned(), ""), (dir.join("onnx"), "onnx/")] {
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(_) if !prefix.is_empty() => continue,
            Err(source) => return Err(read_error(&folder, source)),
        };
        for entry in entries {
            let entry = entry.map_err(|source| read_error(&folder, source))?;
            let name = PathBuf::from(entry.file_name());
            if name.extension().is_some_and(|ext| EXTENSIONS.iter().any(|known| ext == *known)) {
                names.push(format!("{prefix}{}", shown(&name.to_string_lossy())));
            }
        }
    }
    names.sort();
    names.truncate(8);
    Ok(names)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use safetensors::tensor::TensorView;
    use serde_json::json;

    use super::super::Checkpoint;
    use super::*;
    use crate::error::Error;

    /// Writes U8 tensors of one element with the reference implementation.
    fn write(path: &Path, names: &[&str]) {
        let views = names.iter().map(|name| {
            let data = &name.as_bytes()[..1];
            (name, TensorView::new(safetensors::Dtype::U8, vec![1], data).unwrap())
        });
        let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        fs::write(path, safetensors::serialize(views, Some(metadata)).unwrap()).unwrap();
    }

    fn write_index(dir: &Path, weight_map: serde_json::Value) {
        let index = json!({ "metadata": { "total_size": 3 }, "weight_map": weight_map });
        fs::write(dir.join(INDEX), index.to_string()).unwrap();
    }

    /// A folder with shards `x` (tensors a, b) and `y` (tensor c) and this index.
    fn sharded(weight_map: serde_json::Value) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        write(&dir.path().join("x.safetensors"), &["a", "b"]);
        write(&dir.path().join("y.safetensors"), &["c"]);
        write_index(dir.path(), weight_map);
        dir
    }

    #[track_caller]
    fn refuses(path: &Path, words: &[&str]) {
        let error = Checkpoint::open(path).unwrap_err();
        assert!(matches!(error, Error::Malformed { .. }), "{error}");
        let message = error.to_string();
        for word in words {
            assert!(message.contains(word), "no {word:?} in {message:?}");
        }
    }

    #[test]
    fn opens_a_folder_a_file_and_shards() {
        let dir =
            sharded(json!({"a": "x.safetensors", "b": "x.safetensors", "c": "y.safetensors"}));
        let mut shards = Checkpoint::open(dir.path()).unwrap();
        assert_eq!(shards.names().collect::<Vec<_>>(), ["a", "b", "c"]);
        assert_eq!(
            shards.files,
            ["x", "y"].map(|f| dir.path().join(f).with_extension("safetensors"))
        );
        assert_eq!((shards.total_bytes(), shards.len()), (3, 3));
        assert_eq!(shards.metadata["format"], "pt");
        assert_eq!(shards.get("c").unwrap().bytes(), b"c");
        assert!(shards.get("c").unwrap().is_mapped());
        assert_eq!(shards.take("c").unwrap().name, "c");
        assert!(shards.get("c").is_none());

        write(&dir.path().join(SINGLE), &["single"]);
        let single = Checkpoint::open(dir.path()).unwrap();
        assert_eq!(single.names().collect::<Vec<_>>(), ["single"]);
        assert_eq!(
            (single.root.as_path(), single.transformer_dir.as_path()),
            (dir.path(), dir.path())
        );

        let file = Checkpoint::open(&dir.path().join("y.safetensors")).unwrap();
        assert_eq!(file.names().collect::<Vec<_>>(), ["c"]);
        assert_eq!(file.root, dir.path());
    }

    #[test]
    fn a_path_that_does_not_exist_is_a_read_error() {
        let error = Checkpoint::open(Path::new("/no/such/folder")).unwrap_err();
        assert!(matches!(&error, Error::Read { path, .. } if path == Path::new("/no/such/folder")));
    }

    #[test]
    fn a_missing_shard_is_named() {
        let dir =
            sharded(json!({"a": "x.safetensors", "b": "x.safetensors", "c": "z.safetensors"}));
        let error = Checkpoint::open(dir.path()).unwrap_err();
        assert!(matches!(error, Error::Read { path, .. } if path.ends_with("z.safetensors")));
    }

    #[test]
    fn index_and_shards_must_agree() {
        let dir = sharded(json!({"a": "x.safetensors", "c": "y.safetensors"}));
        refuses(dir.path(), &["no entry for tensor `b` of shard `x.safetensors`"]);
        let all = json!({"a": "x.safetensors", "b": "x.safetensors", "c": "y.safetensors"});

        let mut more = all.clone();
        more["d"] = "y.safetensors".into();
        write_index(dir.path(), more);
        refuses(dir.path(), &["tensor `d` in shard `y.safetensors`"]);

        write_index(dir.path(), all);
        write(&dir.path().join("y.safetensors"), &["c", "a"]);
        refuses(dir.path(), &["tensor `a` in shard `y.safetensors`", "`x.safetensors`"]);
    }

    #[test]
    fn an_index_cannot_leave_its_folder() {
        let elsewhere = tempfile::tempdir().unwrap();
        let outside = elsewhere.path().join("x.safetensors");
        write(&outside, &["a"]);
        let sub = "sub/x.safetensors";
        for shard in
            ["../x.safetensors", outside.to_str().unwrap(), sub, "..", "", "a\\b", "x\u{1b}"]
        {
            let dir = sharded(json!({ "a": shard }));
            refuses(dir.path(), &["a shard named `"]);
        }
    }

    #[test]
    fn a_malformed_index_is_refused() {
        let dir = sharded(json!({}));
        refuses(dir.path(), &["no tensors"]);
        write_index(dir.path(), json!({ "a": 1 }));
        refuses(dir.path(), &["integer `1`"]);
        let twice = r#"{"weight_map":{"a":"x.safetensors","a":"y.safetensors"}}"#;
        fs::write(dir.path().join(INDEX), twice).unwrap();
        refuses(dir.path(), &["a second key `a`"]);
        fs::write(dir.path().join(INDEX), "{}").unwrap();
        refuses(dir.path(), &["missing field `weight_map`"]);
    }

    #[test]
    fn foreign_formats_are_named_with_advice() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("config.json"), "{}").unwrap();
        refuses(dir.path(), &["found no weights", "`model.safetensors` or"]);
        fs::create_dir(dir.path().join("onnx")).unwrap();
        for name in ["pytorch_model.bin", "tf_model.h5", "q.gguf", "onnx/model.onnx"] {
            fs::write(dir.path().join(name), "x").unwrap();
        }
        let all = "onnx/model.onnx, pytorch_model.bin, q.gguf, tf_model.h5";
        refuses(dir.path(), &[all, "save_pretrained(folder, safe_serialization=True)"]);
        let bin = dir.path().join("pytorch_model.bin");
        refuses(&bin, &["`pytorch_model.bin`", "safe_serialization=True"]);

        write(&dir.path().join("other.safetensors"), &["a"]);
        refuses(dir.path(), &["other.safetensors", "name the `.safetensors` file itself"]);
        write(&dir.path().join("adapter_model.safetensors"), &["a"]);
        refuses(dir.path(), &["adapter_model.safetensors", "merge the adapter"]);
    }

    #[test]
    fn modules_json_says_where_the_transformer_is() {
        let dir = tempfile::tempdir().unwrap();
        let sub = dir.path().join("0_Transformer");
        fs::create_dir(&sub).unwrap();
        write(&sub.join(SINGLE), &["a"]);
        let modules = |path: &str| {
            let module = |kind: &str, path: &str| json!({"idx": 0, "type": kind, "path": path});
            let transformer = module("sentence_transformers.models.Transformer", path);
            let modules = json!([transformer, module("x.models.Pooling", "1_Pooling")]);
            fs::write(dir.path().join("modules.json"), modules.to_string()).unwrap();
        };
        modules("0_Transformer");
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        assert_eq!((&checkpoint.root, &checkpoint.transformer_dir), (&dir.path().to_owned(), &sub));
        assert_eq!(checkpoint.len(), 1);

        for outside in ["../0_Transformer", "/tmp", ".."] {
            modules(outside);
            refuses(dir.path(), &["modules.json", "inside the checkpoint"]);
        }

        write(&dir.path().join(SINGLE), &["root"]);
        modules("");
        assert!(Checkpoint::open(dir.path()).unwrap().get("root").is_some());
        fs::write(dir.path().join("modules.json"), "{}").unwrap();
        refuses(dir.path(), &["modules.json", "a list of modules"]);
    }

    #[cfg(unix)]
    #[test]
    fn links_are_followed_as_in_the_hugging_face_cache() {
        let blobs = tempfile::tempdir().unwrap();
        let dir = tempfile::tempdir().unwrap();
        write(&blobs.path().join("0123"), &["a"]);
        let link = dir.path().join(SINGLE);
        std::os::unix::fs::symlink(blobs.path().join("0123"), &link).unwrap();
        assert_eq!(Checkpoint::open(dir.path()).unwrap().len(), 1);
        fs::remove_file(blobs.path().join("0123")).unwrap();
        let error = Checkpoint::open(dir.path()).unwrap_err();
        assert!(matches!(error, Error::Read { path, .. } if path == link));
    }

    #[test]
    fn an_empty_file_and_a_folder_are_no_weights() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(SINGLE), "").unwrap();
        refuses(dir.path(), &["0 bytes"]);
        fs::remove_file(dir.path().join(SINGLE)).unwrap();
        fs::create_dir(dir.path().join(SINGLE)).unwrap();
        refuses(dir.path(), &["a folder, pipe or device"]);
    }
}
