//! The layering of the crate, as a test: a module uses only what stands before it in `LAYERS`.

use std::fs;
use std::path::{Path, PathBuf};

/// Lowest first.
const LAYERS: &[&str] = &[
    "error",
    "progress",
    "checkpoint",
    "model",
    "runtime",
    "data",
    "train",
    "eval",
    "report",
    "emit",
    "pass",
    "passes",
    "recipe",
    "pipeline",
    "compare",
    "search",
];

#[test]
fn a_module_uses_only_lower_layers() {
    let mut bad = Vec::new();
    for (rank, layer) in LAYERS.iter().enumerate() {
        for path in files_of(layer).iter().filter(|p| !is_test(p)) {
            for used in used(&code(path)) {
                match LAYERS.iter().position(|l| *l == used) {
                    Some(found) if found <= rank => {}
                    Some(_) => {
                        bad.push(format!("{}: `{layer}` uses `{used}` above it", shown(path)))
                    }
                    None => bad.push(format!("{}: `{used}` has no layer", shown(path))),
                }
            }
        }
    }
    assert!(bad.is_empty(), "{}", bad.join("\n"));
}

#[test]
fn every_module_has_a_layer() {
    let outside = ["lib", "main", "cli", "layers", "allocations"];
    for entry in fs::read_dir(root().join("src")).expect("src/").flatten() {
        let name = entry.path().file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let known = LAYERS.contains(&name.as_str()) || outside.contains(&name.as_str());
        assert!(known, "src/{name} has no place in `LAYERS`");
    }
    for layer in LAYERS {
        assert!(!files_of(layer).is_empty(), "`{layer}` has no file");
    }
}

#[test]
fn no_pass_uses_another() {
    let folder = |entry: fs::DirEntry| entry.path().is_dir().then(|| entry.path());
    let passes = root().join("passes");
    let passes: Vec<PathBuf> =
        fs::read_dir(passes).expect("passes/").flatten().filter_map(folder).collect();
    let name = |p: &Path| p.file_name().unwrap_or_default().to_string_lossy().into_owned();
    assert!(passes.len() > 1);
    for pass in &passes {
        for file in rust_files(pass) {
            let code = code(&file);
            assert!(!used(&code).contains(&"passes"), "{} uses `passes`", shown(&file));
            for other in passes.iter().filter(|p| *p != pass).map(|p| name(p)) {
                let reached = format!("super::{other}");
                assert!(!code.contains(&reached), "{} uses `{other}`", shown(&file));
            }
        }
    }
}

/// Only `cli` prints, exits or reads flags (docs: style).
#[test]
fn the_library_does_not_speak() {
    let speech =
        ["println!", "eprintln!", "print!(", "dbg!", "process::exit", "env::args", "crate::cli"];
    for path in LAYERS.iter().flat_map(|l| files_of(l)).filter(|p| !is_test(p)) {
        let code = code(&path);
        let code = code.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
        for word in speech {
            assert!(!code.contains(word), "{} has `{word}`", shown(&path));
        }
    }
}

/// The modules of this crate that `code` names: `crate::a::…`, `crate::{a, b::…}`.
fn used(code: &str) -> Vec<&str> {
    let mut used = Vec::new();
    for (at, start) in code.match_indices("crate::") {
        // Not the tail of `some_crate::`, nor `$crate::`.
        if code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_') {
            continue;
        }
        let rest = &code[at + start.len()..];
        match rest.strip_prefix('{') {
            Some(group) => used.extend(top_level(group)),
            None => used.push(word(rest)),
        }
    }
    // `Error` and `Result` stand at the root; a lower-case name is a module.
    let module = |w: &&str| w.starts_with(|c: char| c.is_ascii_lowercase());
    used.into_iter().map(|w| if module(&w) { w } else { "error" }).collect()
}

/// First words of the entries of `{a, b::{c, d}, …}`, its opening brace gone.
fn top_level(group: &str) -> Vec<&str> {
    let (mut words, mut depth, mut start) = (Vec::new(), 1, 0);
    for (i, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 || (depth == 1 && c == ',') {
            words.extend(Some(word(&group[start..i])).filter(|w| !w.is_empty()));
            start = i + 1;
        }
        if depth == 0 {
            break;
        }
    }
    words
}

fn word(text: &str) -> &str {
    let text = text.trim_start();
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    &text[..end]
}

/// Content without comments.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).expect("a source file");
    let lines = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    lines.map(|line| format!("{line}\n")).collect()
}

/// Tests may use what stands above them; `model/testing.rs` makes batches and runs models.
fn is_test(path: &Path) -> bool {
    path.ends_with("tests.rs") || path.ends_with("testing.rs")
}

fn files_of(layer: &str) -> Vec<PathBuf> {
    let folder = root().join("src").join(layer);
    let places = [folder.with_extension("rs"), folder, root().join(layer)];
    places.iter().flat_map(|p| rust_files(p)).collect()
}

fn rust_files(path: &Path) -> Vec<PathBuf> {
    if path.is_dir() {
        let entries = fs::read_dir(path).expect("a folder of sources").flatten();
        entries.flat_map(|e| rust_files(&e.path())).collect()
    } else {
        let is_rust = path.is_file() && path.extension().is_some_and(|e| e == "rs");
        is_rust.then(|| path.to_path_buf()).into_iter().collect()
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn shown(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

#[test]
fn names_are_found_in_every_spelling() {
    let code = "use crate::{Error, passes, model::{self, Head}};\nfn f() -> crate::data::Batch;\nother_crate::x";
    assert_eq!(used(code), ["error", "passes", "model", "data"]);
    assert_eq!(used("use crate::{\n    pass::Entry,\n};"), ["pass"]);
}
