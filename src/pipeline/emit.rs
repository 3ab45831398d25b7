//! More targets for an output that is there.

use super::{pretty, to_json};
use crate::checkpoint::{OutputFolder, read_json};
use crate::emit::{self, Emit, SignPlanes, Target};
use crate::model::Model;
use crate::report::{self, Emitted, FileNote, PlannedTarget};
use crate::{Error, Result};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

/// Files that say what targets there are, and are written anew.
const SAYS: [&str; 4] = ["report.json", "report.md", "README.md", "recipe.toml"];
/// Files of the native form that no target takes over.
const OURS: [&str; 2] = ["config.json", "masks.safetensors"];

/// Writes the targets of `emit` into the output `folder` and says so in its report; those that are there already are
/// written again. The folder is replaced whole, or stays as it is.
///
/// # Errors
/// [`Error::Malformed`] for a report that is not one of ours, and what [`emit::write`] refuses.
pub fn add(
    folder: &Path,
    emit: &Emit,
    max_shard_bytes: u64,
    interrupted: &dyn Fn() -> bool,
) -> Result<Vec<Emitted>> {
    let path = folder.join("report.json");
    if folder.is_dir() && !path.exists() {
        return Err(Error::Mismatch {
            found: format!("{} has no report.json", folder.display()),
            expected: "targets are added to what `compress` wrote".into(),
            advice: "give an output folder; of any other checkpoint --passes '' --emit makes one",
        });
    }
    let mut report = read_json(&path)?;
    let malformed = |found: String, expected: &str| Error::Malformed {
        path: path.clone(),
        found,
        expected: expected.into(),
        advice: "write the output again",
    };
    let said = report.get("emitted").cloned().unwrap_or_else(|| json!([]));
    let mut emitted: Vec<Emitted> = serde_json::from_value(said).map_err(|e| {
        malformed(format!("`emitted` that does not parse ({e})"), "what `compress` wrote")
    })?;
    let files = report["files"].as_array().cloned().unwrap_or_default();
    let name = |file: &Value| file["name"].as_str().unwrap_or_default().to_string();
    if files.is_empty() {
        return Err(malformed("no list of files".into(), "the report of an output"));
    }
    let model = Model::open(folder)?;
    emit.check(&model)?;

    let replaced =
        |name: &str| emit.targets.iter().any(|t| name.starts_with(&format!("{}/", t.name())));
    let of_target =
        |name: &str| Target::ALL.iter().any(|t| name.starts_with(&format!("{}/", t.name())));
    let mut output = OutputFolder::replace(folder)?;
    for name in files_below(folder, "")? {
        if !replaced(&name) && !SAYS.contains(&name.as_str()) {
            output.copy_file(&folder.join(&name), &name)?;
        }
    }
    let weights = |name: &str| name.starts_with("model") && name.contains(".safetensors");
    let beside: Vec<String> = files
        .iter()
        .map(name)
        .filter(|n| {
            !of_target(n)
                && !weights(n)
                && !SAYS.contains(&n.as_str())
                && !OURS.contains(&n.as_str())
        })
        .collect();
    let (notes, mut written) =
        emit::write(emit, &model, &beside, &mut output, max_shard_bytes, interrupted)?;
    emitted.retain(|e| notes.iter().all(|n| n.target != e.target));
    emitted.extend(notes.iter().cloned());
    let place = |e: &Emitted| Target::ALL.iter().position(|t| t.name() == e.target);
    emitted.sort_by_key(place);

    let planned = report["plan"]["targets"].clone();
    let planned: Vec<PlannedTarget> = serde_json::from_value(planned).unwrap_or_default();
    emitted.iter_mut().for_each(|note| note.put_beside(&planned, max_shard_bytes));
    for (file, plan) in [("report.md", true), ("README.md", false)] {
        let section = report::markdown_targets(&emitted, plan);
        let mut text = read_text(&folder.join(file))?;
        if let Some(at) = text.find(report::TARGETS) {
            text.truncate(at);
        }
        written.push(output.add_file(file, (text + &section).as_bytes())?);
    }
    if folder.join("recipe.toml").is_file() {
        let text = recipe(&read_text(&folder.join("recipe.toml"))?, &emitted, emit);
        written.push(output.add_file("recipe.toml", text.as_bytes())?);
    }
    let mut list: Vec<Value> = files
        .iter()
        .filter(|f| !replaced(&name(f)) && written.iter().all(|w| w.name != name(f)))
        .cloned()
        .collect();
    list.extend(written.into_iter().map(|w| to_json(&FileNote::from(w))));
    list.sort_by_key(name);
    // In the order of a report that had them from the start.
    report.as_object_mut().expect("it has a list of files").shift_remove("files");
    report["emitted"] = to_json(&emitted);
    report["files"] = json!(list);
    output.add_file("report.json", &pretty(&report))?;
    output.commit(interrupted)?;
    Ok(notes)
}

/// The recipe with these targets in the place of those it had. Of sign planes, what was said last counts.
fn recipe(text: &str, emitted: &[Emitted], emit: &Emit) -> String {
    let names: Vec<&str> = emitted.iter().map(|e| e.target.as_str()).collect();
    let planes = match emit.targets.contains(&Target::Onnx) {
        true => Some(emit.sign_planes)
            .filter(|planes| *planes != SignPlanes::default())
            .map(|planes| format!("onnx_binary = \"{}\"", planes.name())),
        false => text.lines().find(|l| l.starts_with("onnx_binary = ")).map(str::to_string),
    };
    let mut out = String::new();
    for line in
        text.lines().filter(|l| !l.starts_with("emit = ") && !l.starts_with("onnx_binary = "))
    {
        out += &format!("{line}\n");
        if line == "version = 1" {
            out += &format!("emit = {names:?}\n");
            out.extend(planes.iter().map(|p| format!("{p}\n")));
        }
    }
    out
}

fn read_text(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_owned(), source })
}

/// The regular files of a folder, with `/`, sorted.
fn files_below(folder: &Path, prefix: &str) -> Result<Vec<String>> {
    let path = folder.join(prefix);
    let read = |source| Error::Read { path: path.clone(), source };
    let mut found = Vec::new();
    for entry in fs::read_dir(&path).map_err(read)? {
        let entry = entry.map_err(read)?;
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        match entry.path() {
            path if path.is_dir() => found.extend(files_below(folder, &format!("{name}/"))?),
            path if path.is_file() => found.push(name),
            _ => {}
        }
    }
    found.sort();
    Ok(found)
}
