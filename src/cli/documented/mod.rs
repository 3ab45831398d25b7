//! Every command that the documentation shows is one: its flags exist, and its recipe is a recipe.

use super::Cli;
use clap::Parser;
use compress::recipe::Recipe;
use std::fs;
use std::path::{Path, PathBuf};

/// Markdown that speaks to users.
fn documents() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = vec![root.join("README.md")];
    let folders = fs::read_dir(root.join("passes")).expect("a folder").flatten();
    found.extend(folders.map(|e| e.path().join("README.md")).filter(|p| p.is_file()));
    let docs = fs::read_dir(root.join("docs")).expect("a folder").flatten();
    found.extend(docs.map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "md")));
    found
}

/// The lines of a document's shell blocks that call us, continued lines joined.
fn commands(text: &str) -> Vec<String> {
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

#[test]
fn documented_commands_are_commands() {
    let (mut seen, mut broken) = (0, String::new());
    for path in documents() {
        let text = fs::read_to_string(&path).expect("UTF-8");
        for command in commands(&text) {
            // Where the reader is to put something.
            if command.contains('…') || command.contains("...") {
                continue;
            }
            seen += 1;
            let words = shlex::split(&command).unwrap_or_default();
            let parsed = Cli::try_parse_from([&["compress".to_string()], &words[..]].concat());
            let wrong = match &parsed {
                Err(e) => e.to_string().lines().next().map(str::to_string),
                Ok(Cli { command: None, run }) => run
                    .recipe
                    .passes
                    .as_ref()
                    .and_then(|passes| Recipe::parse(passes, &[]).err())
                    .map(|e| e.to_string()),
                Ok(_) => None,
            };
            if let Some(wrong) = wrong {
                broken += &format!("{}: compress {command}\n  {wrong}\n", path.display());
            }
        }
    }
    assert!(seen > 30, "{seen} commands");
    assert!(broken.is_empty(), "{broken}");
}
