//! The commands that the documentation shows.

use std::fs;
use std::path::{Path, PathBuf};

/// Markdown that speaks to users.
pub fn documents() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = vec![root.join("README.md")];
    let folders = fs::read_dir(root.join("passes")).expect("a folder").flatten();
    found.extend(folders.map(|e| e.path().join("README.md")).filter(|p| p.is_file()));
    let docs = fs::read_dir(root.join("docs")).expect("a folder").flatten();
    found.extend(docs.map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "md")));
    found
}

/// The lines of a document's shell blocks that call us, continued lines joined.
pub fn commands(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut inside = false;
    for line in text.replace("\\\n", " ").lines() {
        match line.trim() {
            "```sh" | "```bash" | "```yaml" => inside = true,
            "```" => inside = false,
            line if inside => {
                let line = line.trim_start_matches("run: ");
                let ours = ["compress ", "cargo run --release -- "];
                let rest = ours.iter().find_map(|start| line.strip_prefix(start));
                // A pipe, a comment and a redirection are the shell's.
                let rest = rest.map(|rest| {
                    let end = [" | ", " # ", "  #", " > ", " && "]
                        .map(|e| rest.find(e).unwrap_or(rest.len()));
                    rest[..end.into_iter().min().unwrap_or(rest.len())].to_string()
                });
                found.extend(rest);
            }
            _ => {}
        }
    }
    found
}
