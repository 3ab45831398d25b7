//! Every command that the documentation shows is one: its flags exist, and its recipe is a recipe.

mod blocks;

use super::Cli;
use blocks::{commands, documents};
use clap::Parser;
use compress::recipe::Recipe;
use std::fs;

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
