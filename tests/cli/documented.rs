//! The commands of the documentation, run in a folder that has what they name: the shipped checkpoint and its texts stand for
//! all models and data.

#[path = "../../src/cli/documented/blocks.rs"]
mod blocks;

use crate::support::{Dir, write_tensors};
use blocks::{commands, documents};
use compress::checkpoint::Tensor;
use std::fs;
use std::path::Path;

/// Not commands of a user's day: measurements of hours, on models of others.
const MEASURED: [&str; 1] = ["docs/results.md"];
/// Their budgets are not those of a model of 0.7 MB: exit code 5 is an answer.
const MAY_MISS: [&str; 2] = ["gate", "search"];
/// What the documentation calls models.
const MODELS: [&str; 9] = [
    "models/minilm-sst2",
    "models/all-MiniLM-L6-v2",
    "models/e5-small",
    "model",
    "big",
    "a",
    "b",
    "small",
    "best",
];
const RECIPE: &str = "version = 1\n\n[[step]]\npass = \"binarize\"\n";

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    let files = fs::read_dir(from).unwrap().flatten().filter(|e| e.path().is_file());
    for file in files {
        fs::copy(file.path(), to.join(file.file_name())).unwrap();
    }
}

fn folder() -> Dir {
    let dir = Dir::new();
    let reviews = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/reviews");
    for model in MODELS.into_iter().chain(["fixtures/reviews/model"]) {
        copy(&reviews.join("model"), &dir.path(model));
    }
    copy(&reviews, &dir.path("fixtures/reviews"));
    let texts = [
        ("train.tsv", "train.tsv", 400),
        ("en.tsv", "train.tsv", 200),
        ("de.tsv", "train.tsv", 300),
        ("dev.tsv", "dev.tsv", 200),
    ];
    for (name, from, lines) in texts {
        let all = fs::read_to_string(reviews.join(from)).unwrap();
        dir.write(name, all.lines().take(lines).collect::<Vec<_>>().join("\n"));
    }
    dir.write("recipe.toml", RECIPE);
    let ids = Tensor::from_i64("input_ids", &[1, 3], &[2, 20, 3]);
    write_tensors(&dir.path("in.safetensors"), &[ids]);
    dir
}

#[test]
fn documented_commands_run() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (mut ran, mut broken) = (0, String::new());
    for path in documents() {
        let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_string();
        if MEASURED.contains(&&name[..]) {
            continue;
        }
        let dir = folder();
        for command in commands(&fs::read_to_string(&path).unwrap()) {
            // Where the reader is to put something, and what needs more than this program.
            if command.contains('…') || command.contains("...") || command.contains("--python") {
                continue;
            }
            // The shipped checkpoint takes 64 tokens.
            let mut words = shlex::split(&command.replace("16,64,128", "16,64")).unwrap();
            // Enough of a search to see that it runs.
            if words[0] == "search" && !words.iter().any(|w| w == "--trials") {
                words.extend(["--trials", "4"].map(String::from));
            }
            let outputs = words.windows(2).filter(|w| w[0] == "-o").map(|w| dir.path(&w[1]));
            let outputs: Vec<_> = outputs.collect();
            for output in &outputs {
                let _ = fs::remove_dir_all(output);
                let _ = fs::remove_file(output);
            }
            let run = dir.run(&words.iter().map(String::as_str).collect::<Vec<_>>());
            let missed = run.code == Some(5) && MAY_MISS.contains(&&words[0][..]);
            if run.code != Some(0) && !missed {
                let why = run.stderr.lines().rev().take(4).collect::<Vec<_>>().join("\n  ");
                broken += &format!("{name}: compress {command}\n  {:?}: {why}\n", run.code);
            }
            // Of a search that finds nothing there is a log, and no output for the commands behind it.
            if missed && words[0] == "search" {
                outputs.iter().for_each(|output| copy(&dir.path("model"), output));
            }
            ran += 1;
        }
    }
    assert!(ran > 25, "{ran} commands");
    assert!(broken.is_empty(), "{broken}");
}
